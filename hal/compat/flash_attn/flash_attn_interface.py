"""FlashAttention 2's functions: its signatures, to the letter, and its meaning, with HAL's kernels. Inference only.

Shapes, window_size, softcap, block_table and the cache are those of FlashAttention's own documentation. Refused by
name: dropout, alibi_slopes, and tensors that require grad while gradients are recorded. `deterministic` is about the
backward pass alone. With return_attn_probs the result is (out, softmax_lse, S_dmask): softmax_lse float32 [B, H, Sq],
or [H, total_q] of packed sequences, +inf for a row that sees no key; S_dmask empty, as it is without dropout.

Annotations are the originals' too, which is why there are few.
"""

from typing import Optional, Tuple, Union

import torch

from hal.compat import calls
from hal.compat.arguments import hints, refuse
from hal.compat.flash_attn.attend import (
    CACHE_NAMES,
    KV_NAMES,
    NAMES,
    PACKED_NAMES,
    QKV_NAMES,
    VERSION,
    check,
    refuse_backward,
    returned,
    unpack,
)


def flash_attn_qkvpacked_func(
    qkv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """qkv: [B, S, 3, H, D]."""
    check("flash_attn_qkvpacked_func", dropout_p, alibi_slopes)
    q, k, v = unpack("qkv", qkv, 5, 3)
    result = calls.dense(VERSION, QKV_NAMES, q, k, v, softmax_scale, causal, window_size, softcap,
                         bool(return_attn_probs))
    return returned(result, return_attn_probs)


def flash_attn_kvpacked_func(
    q,
    kv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """q: [B, Sq, H, D]; kv: [B, Sk, 2, Hkv, D]."""
    check("flash_attn_kvpacked_func", dropout_p, alibi_slopes)
    k, v = unpack("kv", kv, 5, 2)
    result = calls.dense(VERSION, KV_NAMES, q, k, v, softmax_scale, causal, window_size, softcap,
                         bool(return_attn_probs))
    return returned(result, return_attn_probs)


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """q: [B, Sq, H, D]; k, v: [B, Sk, Hkv, D]."""
    check("flash_attn_func", dropout_p, alibi_slopes)
    result = calls.dense(VERSION, NAMES, q, k, v, softmax_scale, causal, window_size, softcap, bool(return_attn_probs))
    return returned(result, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(
    qkv,
    cu_seqlens,
    max_seqlen,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """qkv: [total, 3, H, D]; cu_seqlens: int32 [B + 1]."""
    check("flash_attn_varlen_qkvpacked_func", dropout_p, alibi_slopes)
    q, k, v = unpack("qkv", qkv, 4, 3)
    result = calls.packed(VERSION, PACKED_NAMES, q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, softmax_scale,
                          causal, window_size, softcap, bool(return_attn_probs))
    return returned(result, return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q,
    kv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """q: [total_q, H, D]; kv: [total_k, 2, Hkv, D]; cu_seqlens_q, cu_seqlens_k: int32 [B + 1]."""
    check("flash_attn_varlen_kvpacked_func", dropout_p, alibi_slopes)
    k, v = unpack("kv", kv, 4, 2)
    result = calls.packed(VERSION, KV_NAMES, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                          softmax_scale, causal, window_size, softcap, bool(return_attn_probs))
    return returned(result, return_attn_probs)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """q: [total_q, H, D]; k, v: [total_k, Hkv, D], or with block_table (int32 [B, n]) pages [num_pages, page_size, Hkv,
    D], of which sequence b holds cu_seqlens_k[b + 1] - cu_seqlens_k[b] tokens."""
    check("flash_attn_varlen_func", dropout_p, alibi_slopes)
    result = calls.packed(VERSION, CACHE_NAMES, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                          softmax_scale, causal, window_size, softcap, bool(return_attn_probs), page_table=block_table)
    return returned(result, return_attn_probs)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens: Optional[Union[(int, torch.Tensor)]] = None,
    cache_batch_idx: Optional[torch.Tensor] = None,
    cache_leftpad: Optional[torch.Tensor] = None,
    block_table: Optional[torch.Tensor] = None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    """q: [B, Sq, H, D]; caches [Bc, S, Hkv, D], or with block_table pages. k, v: [B, Snew, Hkv, D], written to the
    caches at cache_seqlens first."""
    check("flash_attn_with_kvcache", 0.0, alibi_slopes)
    if block_table is not None:
        both = {"cache_batch_idx": cache_batch_idx, "cache_leftpad": cache_leftpad}
        why = dict.fromkeys(both, "FlashAttention 2 does not take it with block_table")
        refuse("flash_attn_with_kvcache", why, **both)
    if num_splits:
        hints("flash_attn_with_kvcache", num_splits=(num_splits, 0))
    given = {"cache_seqlens": cache_seqlens, "cache_batch_idx": cache_batch_idx, "cache_leftpad": cache_leftpad,
             "rotary_cos": rotary_cos, "rotary_sin": rotary_sin,
             "rotary_interleaved": None if rotary_cos is None else bool(rotary_interleaved)}
    out, lse = calls.with_kvcache(VERSION, CACHE_NAMES, q, k_cache, v_cache, k, v, block_table, None, None,
                                  softmax_scale, causal, window_size, softcap, bool(return_softmax_lse), **given)
    return (out, lse) if return_softmax_lse else out


# What other packages build on: the forward ops beneath the functions above, with every result.

def _flash_attn_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[torch.Tensor],
    return_softmax: bool
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, softmax_lse, S_dmask, rng_state); the last two are empty without dropout, and rng_state is zeros here."""
    check("_flash_attn_forward", dropout_p, alibi_slopes)
    out, lse, mask = returned(calls.dense(VERSION, NAMES, q, k, v, softmax_scale, causal,
                                          (window_size_left, window_size_right), softcap, True), True)
    return out, lse, mask, torch.zeros(2, dtype=torch.int64, device=q.device)


def _flash_attn_varlen_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Optional[torch.Tensor] = None,
    return_softmax: bool = False,
    block_table: Optional[torch.Tensor] = None,
    leftpad_k: Optional[torch.Tensor] = None,
    seqused_k: Optional[torch.Tensor] = None,
    zero_tensors: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As _flash_attn_forward, of packed sequences. zero_tensors: nothing is left unwritten anyway."""
    check("_flash_attn_varlen_forward", dropout_p, alibi_slopes)
    refuse("_flash_attn_varlen_forward", {"leftpad_k": "HAL's packed sequences begin where cu_seqlens_k says"},
           leftpad_k=leftpad_k)
    out, lse, mask = returned(calls.packed(
        VERSION, CACHE_NAMES, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal,
        (window_size_left, window_size_right), softcap, True, page_table=block_table, seqused_k=seqused_k), True)
    return out, lse, mask, torch.zeros(2, dtype=torch.int64, device=q.device)


_wrapped_flash_attn_forward = _flash_attn_forward
_wrapped_flash_attn_varlen_forward = _flash_attn_varlen_forward


def _flash_attn_backward(*args, **kwargs):
    """Raises: there is no backward pass."""
    refuse_backward("_flash_attn_backward")


def _flash_attn_varlen_backward(*args, **kwargs):
    """Raises: there is no backward pass."""
    refuse_backward("_flash_attn_varlen_backward")


_wrapped_flash_attn_backward = _flash_attn_backward
_wrapped_flash_attn_varlen_backward = _flash_attn_varlen_backward
