"""FlashAttention 3's functions: its signatures, to the letter, and its meaning, with HAL's kernels. Inference only.

Shapes, window_size, attention_chunk, softcap, page_table and the cache are those of FlashAttention's own documentation;
with qv (absorbed MLA) and no softmax_scale the scale is (D + Dv) ** -0.5, as there. num_splits, pack_gqa, sm_margin and
scheduler_metadata tune its kernels and change no result: HAL decides such things itself and says so once. Tensors that
require grad while gradients are recorded are refused; `deterministic` is about the backward pass alone. softmax_lse is
float32 [B, H, Sq], or [H, total_q] of packed sequences, -inf for a row that sees no key.

Annotations are the originals' too, which is why there are few.
"""

from typing import Optional, Union

import torch

from hal.compat import calls
from hal.compat.arguments import descales, hints
from hal.compat.meaning import INF, Version
from hal.compat.stand_ins import STAND_INS

__version__ = STAND_INS["3"].version
__all__ = ["flash_attn_combine", "flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
           "flash_attn_with_kvcache", "get_scheduler_metadata"]

VERSION = Version(3, -INF)
NAMES = {"k_cache": "k", "v_cache": "v"}
QKV_NAMES = {"q": "qkv's q", "k_cache": "qkv's k", "v_cache": "qkv's v", "k": "qkv's k", "v": "qkv's v"}


def flash_attn_qkvpacked_func(
    qkv,
    softmax_scale=None,
    causal=False,
    q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    deterministic=False,
    num_heads_q=None,
    sm_margin=0,
    return_attn_probs=False,
):
    """qkv: [B, S, 3, H, D], or [B, S, num_heads_q + 2 * Hkv, D] with num_heads_q."""
    if sm_margin:
        hints("flash_attn_qkvpacked_func", sm_margin=(sm_margin, 0))
    q, k, v = _unpack(qkv, num_heads_q)
    scales = descales("flash_attn_qkvpacked_func", q, q_descale, k_descale, v_descale)
    out, lse = calls.dense(VERSION, QKV_NAMES, q, k, v, softmax_scale, causal, window_size, softcap,
                           bool(return_attn_probs), attention_chunk, **scales)
    return (out, lse) if return_attn_probs else out


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """q: [B, Sq, H, D]; k: [B, Sk, Hkv, D]; v: [B, Sk, Hkv, Dv]; qv: [B, Sq, H, Dv]."""
    if num_splits != 1 or pack_gqa is not None or sm_margin:
        hints("flash_attn_func", num_splits=(num_splits, 1), pack_gqa=(pack_gqa, None), sm_margin=(sm_margin, 0))
    scales = descales("flash_attn_func", q, q_descale, k_descale, v_descale)
    out, lse = calls.dense(VERSION, NAMES, q, k, v, _scale(softmax_scale, q, qv), causal, window_size, softcap,
                           bool(return_attn_probs), attention_chunk, qv, **scales)
    return (out, lse) if return_attn_probs else out


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """q: [total_q, H, D]; k: [total_k, Hkv, D]; v: [total_k, Hkv, Dv]; seqused_q, seqused_k: int32 [B], how many
    leading tokens of each sequence count; rows of q past that are unspecified."""
    if num_splits != 1 or pack_gqa is not None or sm_margin:
        hints("flash_attn_varlen_func", num_splits=(num_splits, 1), pack_gqa=(pack_gqa, None), sm_margin=(sm_margin, 0))
    scales = descales("flash_attn_varlen_func", q, q_descale, k_descale, v_descale)
    out, lse = calls.packed(VERSION, {}, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                            _scale(softmax_scale, q, qv), causal, window_size, softcap, bool(return_attn_probs),
                            attention_chunk, qv, seqused_q=seqused_q, seqused_k=seqused_k, **scales)
    return (out, lse) if return_attn_probs else out


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """(out [B, S, H, D], softmax_lse [B, S, H]) of partial results over different keys.

    out_partial: float32 [splits, B, S, H, D]; lse_partial: float32 [splits, B, S, H]. A part with LSE -inf is ignored;
    a row that no part has is 0, with LSE -inf. out_dtype: float32 (the default), float16 or bfloat16, also `out`'s.
    """
    for name, x, dims in (("out_partial", out_partial, 5), ("lse_partial", lse_partial, 4)):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or x.dim() != dims:
            raise ValueError(f"{name}: got {getattr(x, 'dtype', type(x).__name__)} {tuple(getattr(x, 'shape', ()))}, "
                             f"expected a float32 tensor of {dims} dimensions")
    if out_partial.shape[:-1] != lse_partial.shape:
        raise ValueError(f"lse_partial: got {tuple(lse_partial.shape)}, expected {tuple(out_partial.shape[:-1])}, "
                         "out_partial's but for the last")
    dtype = torch.float32 if out_dtype is None else out_dtype
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"out_dtype: got {out_dtype}, expected torch.float32, float16 or bfloat16")
    lse = lse_partial.logsumexp(0)
    shift = torch.where(lse == -INF, 0.0, lse)
    parts = torch.where((lse_partial == -INF)[..., None], 0.0, out_partial)
    total = (parts * (lse_partial - shift).exp()[..., None]).sum(0).to(dtype)
    if out is None:
        return total, lse
    if out.shape != total.shape or out.dtype != dtype:
        raise ValueError(f"out: got {out.dtype} {tuple(out.shape)}, expected {dtype} {tuple(total.shape)}")
    return out.copy_(total), lse


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens: Optional[Union[(int, torch.Tensor)]] = None,
    cache_batch_idx: Optional[torch.Tensor] = None,
    cache_leftpad: Optional[torch.Tensor] = None,
    page_table: Optional[torch.Tensor] = None,
    cu_seqlens_q: Optional[torch.Tensor] = None,
    cu_seqlens_k_new: Optional[torch.Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    rotary_seqlens: Optional[torch.Tensor] = None,
    q_descale: Optional[torch.Tensor] = None,
    k_descale: Optional[torch.Tensor] = None,
    v_descale: Optional[torch.Tensor] = None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
):
    """As hal.contract.flash_attn_with_kvcache, whose arguments are these.

    With return_softmax_lse the result is (out, softmax_lse, out_accum, softmax_lse_accum); the last two are the partial
    results of FlashAttention's splits, and empty, as they are there without splits.
    """
    if num_splits != 0 or pack_gqa is not None or sm_margin or scheduler_metadata is not None:
        hints("flash_attn_with_kvcache", num_splits=(num_splits, 0), pack_gqa=(pack_gqa, None),
              sm_margin=(sm_margin, 0), scheduler_metadata=(scheduler_metadata, None))
    scales = descales("flash_attn_with_kvcache", q, q_descale, k_descale, v_descale)
    given = {"cache_seqlens": cache_seqlens, "cache_batch_idx": cache_batch_idx, "cache_leftpad": cache_leftpad,
             "rotary_cos": rotary_cos, "rotary_sin": rotary_sin, "rotary_seqlens": rotary_seqlens,
             "rotary_interleaved": None if rotary_cos is None else bool(rotary_interleaved),
             "cu_seqlens_k_new": cu_seqlens_k_new, **scales}
    out, lse = calls.with_kvcache(VERSION, {}, q, k_cache, v_cache, k, v, page_table, cu_seqlens_q, max_seqlen_q,
                                  _scale(softmax_scale, q, qv), causal, window_size, softcap, bool(return_softmax_lse),
                                  attention_chunk, qv, **given)
    if not return_softmax_lse:
        return out
    return out, lse, torch.tensor([], device=out.device), torch.tensor([], device=out.device)


def get_scheduler_metadata(
    batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim,
    cache_seqlens: torch.Tensor,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q: Optional[torch.Tensor] = None,
    cu_seqlens_k_new: Optional[torch.Tensor] = None,
    cache_leftpad: Optional[torch.Tensor] = None,
    page_size: Optional[int] = None,
    max_seqlen_k_new=0,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    has_softcap=False,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """int32 zeros [1 + batch_size], to hand to flash_attn_with_kvcache, where they have no effect: HAL plans itself."""
    if num_splits != 0 or pack_gqa is not None or sm_margin:
        hints("get_scheduler_metadata", num_splits=(num_splits, 0), pack_gqa=(pack_gqa, None), sm_margin=(sm_margin, 0))
    return torch.zeros(1 + batch_size, dtype=torch.int32, device=cache_seqlens.device)


def _scale(softmax_scale, q, qv):
    """FlashAttention 3's default with qv; without, HAL's is the same."""
    if softmax_scale is not None or not (isinstance(q, torch.Tensor) and isinstance(qv, torch.Tensor)):
        return softmax_scale
    return float((q.shape[-1] + qv.shape[-1]) ** -0.5)


def _unpack(qkv, num_heads_q):
    shape = tuple(getattr(qkv, "shape", ()))
    if len(shape) == 5 and shape[2] == 3:
        return qkv.unbind(2)
    if len(shape) == 4 and num_heads_q is not None and (shape[2] - num_heads_q) % 2 == 0 and shape[2] > num_heads_q:
        kv_heads = (shape[2] - num_heads_q) // 2
        return qkv.split([num_heads_q, kv_heads, kv_heads], dim=2)
    raise ValueError(f"qkv: got {shape or type(qkv).__name__} with num_heads_q {num_heads_q}, expected [B, S, 3, H, "
                     "D], or [B, S, num_heads_q + 2 * Hkv, D] with num_heads_q")
