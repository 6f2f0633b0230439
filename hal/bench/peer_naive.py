"""The peer naive: what code without an attention kernel does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.bench.peer_torch import functions, mask_of, plain_causal, result_dtype, scale_of
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform


def naive(config: AttentionConfig, platform: Platform) -> Peer:
    """Sequence by sequence: gather the pages, repeat the KV heads, SDPA (or a plain softmax where SDPA has no such
    argument). What engines call their torch-native attention."""
    return Peer(*functions("naive", config, _sequence), note="one sequence at a time: gather pages, repeat KV "
                "heads, F.scaled_dot_product_attention (a float32 softmax for softcap, sinks and MLA)")


def _sequence(config: AttentionConfig, a: dict[str, Any], b: int, q: Tensor, qv: Tensor | None, k: Tensor,
                    v: Tensor) -> Tensor:
    """q [n, Hq, D] over k [m, Hkv, D] and v [m, Hkv, Dv] -> [n, Hq, Dv]."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if not q.shape[0] or not k.shape[0]:
        return q.new_zeros(*q.shape[:2], v.shape[-1], dtype=result_dtype(q))
    k, v = _real(k, a["k_descale"], b, q), _real(v, a["v_descale"], b, q)
    q = _real(q, a["q_descale"], b, q)
    group, scale = q.shape[1] // k.shape[1], scale_of(config, a)
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    plain = qv is None and not a["softcap"] and a["sinks"] is None
    causal = plain and plain_causal(a, q.shape[0], k.shape[1])
    mask = None if causal else mask_of(a, q.shape[0], k.shape[1], q.device)
    if plain:
        out = scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask,
                                           is_causal=causal, scale=scale)[0].transpose(0, 1)
        return out if mask is None else out.masked_fill(~mask.any(1)[:, None, None], 0.0)
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)).float()
    if qv is not None:
        scores += (_real(qv, a["q_descale"], b, q).transpose(0, 1) @ v.transpose(1, 2)).float()
    scores *= scale
    if a["softcap"]:
        scores = a["softcap"] * torch.tanh(scores / a["softcap"])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if a["sinks"] is not None:
        sink = a["sinks"].float().view(-1, 1, 1).expand(-1, q.shape[0], 1)
        scores = torch.cat((scores, sink), dim=2)
    out = (torch.softmax(scores, dim=2)[..., : k.shape[1]].to(v.dtype) @ v).transpose(0, 1)
    return out if mask is None else out.masked_fill(~mask.any(1)[:, None, None], 0.0)


def _real(x: Tensor, descale: Tensor | None, b: int, q: Tensor) -> Tensor:
    """x in the result's dtype: fp8 times its descale (scalar, or row b of [B, Hkv])."""
    if x.dtype.itemsize > 1:
        return x
    real = x.float()
    if descale is not None:
        per_head = descale.reshape(-1) if descale.numel() == 1 else descale[b]
        real = real * per_head.repeat_interleave(x.shape[1] // per_head.numel())[:, None]
    return real.to(result_dtype(q))
