"""aclnnFlashAttentionScore, the operator behind torch's scaled_dot_product_attention on an NPU (npu_fusion_attention).

Source: op-plugin, docs/zh/custom_APIs/torch_npu/torch_npu-npu_fusion_attention.md. Forward only, without dropout, bias
and prefix; the softmax statistics that the backward wants are left unwritten. Its packed form (TND) has no answer.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fake_npu.fused_infer import attend, by_token
from fake_npu.refusal import PARAM_INVALID, Rule, check

LAYOUTS = ("BNSD", "BSND", "BSH")


def _left_out(a: SimpleNamespace) -> str | None:
    given = [name for name in ("pse", "drop_mask", "padding_mask") if getattr(a, name) is not None]
    given += ["prefix"] if a.prefix else []
    if given or a.keep_prob != 1 or a.input_layout not in LAYOUTS or a.sparse_mode > 4:
        return (f"{given}, keep_prob {a.keep_prob}, layout {a.input_layout} or sparse_mode {a.sparse_mode} is not "
                "answered by this fake")
    return None


def _mask(a: SimpleNamespace) -> str | None:
    if a.atten_mask is None:
        return f"sparse_mode {a.sparse_mode} needs atten_mask" if a.sparse_mode else None
    if a.atten_mask.dtype not in (torch.bool, torch.uint8):
        return f"atten_mask is {a.atten_mask.dtype}: bool or uint8 is expected"
    return None


RULES = (Rule(200006, _left_out, "of this fake"), Rule(PARAM_INVALID, _mask, "the page, atten_mask and sparse_mode"))


def _compute(a: SimpleNamespace) -> None:
    query = by_token(a.query, a.input_layout, a.head_num)
    heads = a.head_num * a.key.shape[-1] // a.query.shape[-1] if a.input_layout == "BSH" else by_token(
        a.key, a.input_layout, 0).shape[2]
    key, value = (by_token(x, a.input_layout, heads) for x in (a.key, a.value))
    out = by_token(a.out, a.input_layout, a.head_num)
    # It has no path of its own for one query: mask and window count there too.
    rules = SimpleNamespace(**vars(a), query_rope=None, block_table=None)
    rules.inner_precise = 0
    for b in range(query.shape[0]):
        masks = rules.atten_mask = a.atten_mask
        if masks is not None and masks.dim() == 4 and masks.shape[1] > 1:  # (B, N, S, S): a mask for each head
            for h in range(a.head_num):
                rules.atten_mask = masks[:, h:h + 1]
                group = h // (a.head_num // heads)
                out[b, :, h:h + 1] = attend(rules, query[b, :, h:h + 1], key[b, :, group:group + 1],
                                            value[b, :, group:group + 1], b, 1, True)[0].to(out.dtype)
            continue
        out[b] = attend(rules, query[b], key[b], value[b], b, a.head_num // heads, True)[0].to(out.dtype)


COMPUTE = {"aclnnFlashAttentionScore": _compute}
CHECK = {"aclnnFlashAttentionScore": lambda a: check(RULES, a)}
