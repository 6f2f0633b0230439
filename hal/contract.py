"""The contract: what the two functions of an AttentionImpl take, mean and return. Not callable kernels.

Keyword names and defaults are FlashAttention-3's (hopper/flash_attn_interface.py); what is keyword-only is
HAL's extension. Semantics common to both:

Mask. With p = i + len_k - len_q (bottom-right alignment), key j is visible to query i iff
p - left <= j <= p + right; window_size = (left, right), -1 unbounded; causal caps right at 0.
attention_chunk c > 0 intersects this with floor(p/c)*c <= j < (floor(p/c)+1)*c. tree_mask replaces it over
this step's own tokens (the last len_q keys; window and chunk still cut the earlier cache); mm_prefix_ranges
adds keys: p and j inside one range see each other. All positions count from cache_leftpad.

Scores. s = (q . k + qv . v) * softmax_scale; softcap * tanh(s / softcap) where softcap > 0; then the mask.
softmax_scale None means the config's, else head_dim ** -0.5; with qv and neither it raises. sinks [Hq] are
natural-log logits, unscaled and not softcapped, added to the denominator.

Results. A tensor of q's dtype (bfloat16 for fp8 q), or exactly (out, softmax_lse) when the LSE is asked for:
natural log, float32, including the sink. A fully masked row gives output 0 and LSE = sink, or -inf. Rows past
seqused_q are unspecified. fp8: real = stored * descale; descales are float32, scalar or [B, Hkv].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

VARLEN_LSE = ("return_attn_probs", "return_softmax_lse")
# Tuning hints: they may change speed, never results. A backend that has no such knob refuses them by name.
HINTS = ("scheduler_metadata", "num_splits", "pack_gqa", "sm_margin")


def flash_attn_with_kvcache(
    q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, qv: Any = None, rotary_cos: Any = None,
    rotary_sin: Any = None, cache_seqlens: Any = None, cache_batch_idx: Any = None, cache_leftpad: Any = None,
    page_table: Any = None, cu_seqlens_q: Any = None, cu_seqlens_k_new: Any = None, max_seqlen_q: Any = None,
    rotary_seqlens: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    softmax_scale: Any = None, causal: bool = False, window_size: Any = (-1, -1), attention_chunk: int = 0,
    softcap: float = 0.0, rotary_interleaved: bool = True, scheduler_metadata: Any = None, num_splits: int = 0,
    pack_gqa: Any = None, sm_margin: int = 0, return_softmax_lse: bool = False, *, sinks: Any = None,
    out: Any = None, tree_mask: Any = None, mm_prefix_ranges: Any = None, sparse_indices: Any = None,
    cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Any = None,
) -> Any:
    """Attention over a KV cache, paged or not, after appending k and v where they are given.

    Args:
        q: [B, Sq, Hq, D], or [total_q, Hq, D] with cu_seqlens_q (int32 [B+1], the last entry total_q) and max_seqlen_q.
        k_cache, v_cache: [num_pages, page_size, Hkv, D(v)] with page_table (int32 [B, max_pages]), else
            [B, S, Hkv, D(v)]. Only the last dimension must be contiguous. Query head h reads KV head h // (Hq/Hkv).
            page_table entries past a sequence's end may be anything; their pages are never read.
        k, v: [B, Snew, Hkv, D(v)], or packed with cu_seqlens_k_new: written at cache_seqlens, in the cache's
            dtype, before attending.
        qv: like q with v's head dim: absorbed MLA; q and k_cache are then the rope parts, v_cache the latent.
        rotary_cos, rotary_sin: [S, rotary_dim/2], q's dtype; need k, and a cache that is not fp8. k is rotated
            at its position, starting at absolute cache_seqlens (or rotary_seqlens, int32 [B]); q likewise if
            causal or local (a window or chunk was given; FlashAttention-3's source first drops windows that
            cover the whole cache), else all of q at the start position. rotary_interleaved: pairs (0,1),(2,3)..
            rather than halves.
        cache_seqlens: int or int32 [B], tokens in the cache before the append, absolute; None: the whole cache.
        cache_leftpad: int32 [B]; the cache starts there. len_k = cache_seqlens - leftpad + appended.
        cache_batch_idx: int32 [B]; row of the unpaged cache, or of page_table.
        sinks: [Hq]. out: where to write. tree_mask: bool [B, Sq, Sq], or [total_q, max_seqlen_q] packed.
        mm_prefix_ranges: int32 [B, R, 2], positions, half-open, -1 padded.
        sparse_indices: int32 [total_q, topk], slots page * page_size + offset, -1 none; exclusive with causal.
        cp_world_size, cp_rank, cp_tot_seqused_k: rank r of n holds tokens r, r+n, ..; int32 [B] global lengths.
            Neither k and v nor cache_leftpad go with it: write the cache first.

    Returns: out [.., Hq, Dv], or (out, lse) with lse [B, Hq, Sq], packed [Hq, total_q].
    Raises: ValueError naming the argument, its value and what was expected, before anything is written.
    """
    raise TypeError("hal.contract describes the two functions; call those of hal.get_attention_impl()")


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None, max_seqlen_q: Any = None,
    max_seqlen_k: Any = None, seqused_q: Any = None, seqused_k: Any = None, softmax_scale: Any = None,
    causal: bool = False, qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    window_size: Any = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False, *,
    return_softmax_lse: bool = False, page_table: Any = None, sinks: Any = None, out: Any = None,
    tree_mask: Any = None, mm_prefix_ranges: Any = None, sparse_indices: Any = None, cp_world_size: int = 1,
    cp_rank: int = 0, cp_tot_seqused_k: Any = None,
) -> Any:
    """Attention over packed sequences of different lengths.

    Args:
        q: [total_q, Hq, D]; sequence b is rows cu_seqlens_q[b] to cu_seqlens_q[b+1] (int32 [B+1]).
        k, v: [total_k, Hkv, D(v)] with cu_seqlens_k, or a paged cache [num_pages, page_size, Hkv, D(v)] with
            page_table and seqused_k.
        seqused_q, seqused_k: int32 [B]; only so many leading tokens of each sequence count.
        The rest as flash_attn_with_kvcache. Both return_attn_probs and return_softmax_lse ask for the LSE.

    Returns: out [total_q, Hq, Dv], or (out, lse) with lse [Hq, total_q].
    Raises: ValueError naming the argument, its value and what was expected, before anything is written.
    """
    raise TypeError("hal.contract describes the two functions; call those of hal.get_attention_impl()")


WITH_KVCACHE = inspect.signature(flash_attn_with_kvcache)
VARLEN = inspect.signature(flash_attn_varlen_func)


def binder(signature: inspect.Signature) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """A function (args, kwargs) -> every argument by name, defaults filled in. Raises TypeError as a call would.

    What signature.bind and apply_defaults do, in a twentieth of their time.
    """
    parameters = signature.parameters
    positional = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    required = [name for name, p in parameters.items() if p.default is p.empty]
    defaults = {name: None if p.default is p.empty else p.default for name, p in parameters.items()}

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = defaults.copy()
        bound.update(zip(positional, args))
        bound.update(kwargs)
        if len(bound) > len(defaults) or len(args) > len(positional) or not kwargs.keys().isdisjoint(
                positional[: len(args)]) or any(n not in kwargs for n in required[len(args) :]):
            signature.bind(*args, **kwargs)  # raises, and words it as Python does
        return bound

    return bind
