"""npu_attention_update: merges partial attention results by their LSEs.

Source: op-plugin, docs/zh/custom_APIs/torch_npu/torch_npu-npu_attention_update.md.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fake_npu.refusal import PARAM_INVALID, TILING, Rule, check


def _count(a: SimpleNamespace) -> str | None:
    if len(a.lse) != len(a.local_out) or not 1 <= len(a.lse) <= 16:
        return f"{len(a.lse)} lse and {len(a.local_out)} local_out: as many of each, 1 to 16, are expected"
    return None if a.update_type in (0, 1) else f"update_type {a.update_type}: 0 or 1 is expected"


def _shapes(a: SimpleNamespace) -> str | None:
    for lse, out in zip(a.lse, a.local_out):
        if lse.dtype != torch.float32 or lse.dim() != 1 or out.dim() != 2 or out.shape[0] != lse.shape[0]:
            return (f"lse {lse.dtype} {tuple(lse.shape)}, local_out {tuple(out.shape)}: float32 (n,) and (n, D) are "
                    "expected")
        if out.shape[1] % 8 or not 8 <= out.shape[1] <= 512:
            return f"head_dim {out.shape[1]}: a multiple of 8 from 8 to 512 is expected"
    return None


def _compute(a: SimpleNamespace) -> None:
    lse, out = torch.stack(a.lse), torch.stack(a.local_out).float()
    top = lse.amax(0)
    merged = top + (lse - top).exp().sum(0).log()  # as the page writes it: an infinite lse makes NaN
    a.out.copy_((out * (lse - merged).exp()[..., None]).sum(0))
    if a.update_type == 1:
        a.lse_out.copy_(merged)


COMPUTE = {"aclnnAttentionUpdate": _compute}
_RULES = (Rule(PARAM_INVALID, _count, "constraints: SP 1 to 16, lists of one length"),
          Rule(TILING, _shapes, "arguments and constraints: shapes, float32 lse, head_dim"))
CHECK = {"aclnnAttentionUpdate": lambda a: check(_RULES, a)}
