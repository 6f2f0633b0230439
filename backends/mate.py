"""Moore Threads' MATE: FlashAttention-3's interface on MUSA GPUs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import mate_plans
from hal.backends.refuse import keep, mask, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.contract import VARLEN, WITH_KVCACHE
from hal.packages import Package

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.platform import Platform

# What MATE calls by the same names and its kernel honours. Not here: descales (no fp8; the 16-bit kernel ignores
# them), qv (another backend's), attention_chunk (below), cp_* (below), scheduler_metadata (the kernel follows it
# without looking what it was made for: HAL makes it), and cache_leftpad with or without pages: a tile of 64 keys then
# begins inside a page and ends in the next entry of the table, which may be anything (paged_kv.hpp, "clear oob").
_KVCACHE = frozenset({"rotary_interleaved", "rotary_seqlens", "cache_batch_idx", "softcap"})
_VARLEN = frozenset({"seqused_q", "seqused_k", "page_table", "softcap", "num_splits", "pack_gqa", "deterministic",
                     "sm_margin", "out"})
_MOST_SPLITS = 128  # mate/jit/attention/fmha/fmha_combine.py
_TILES = (64, 128, 192, 256, 384, 512)  # head dims that have a kernel; others are rounded up
_ROTARY_STEP = 16


class Mate(AttentionBackend):
    """MATE's dense attention. Appending keys packed by cu_seqlens_k_new waits for the device in every call, as its
    Python reads the last of them; so pass one token a sequence as [B, 1, Hkv, D]. Packed, a sequence without a query
    gets no new keys either: its tiles are what appends."""

    name = "mate"
    packages = (Package("mate", "mate.mha_interface",
                        install="install Moore Threads' MATE from its repository, MooreThreads/mate; never "
                                "`pip install mate`",
                        # 0.2.0: no rotary embedding, and its prebuilt kernel is picked with a softcap it ignores.
                        minimum="0.2.1",
                        wrong="the installed mate is another project (PyPI's is \"Matchers for unittest\")"),)
    platforms = {"musa": ("mp31",)}
    # Head dims are rounded up to 64, 128, 192, 256, 384 or 512: 96 costs what 128 does. Of the pairs only
    # 192/128 has a kernel; (128, 64) and others fail an assertion (fmha_utils.py, _get_fwd_kernel_config).
    head_dims = HeadDims(low=8, high=512, step=8)
    head_dim_pairs = ((192, 128),)
    # It takes any size. A tile is 64 keys: with other sizes it reads the pages of table entries past a sequence's end.
    page_sizes = PageSizes(64, only=(64,))
    features = frozenset({"sliding_window", "softcap", "sinks", "non_causal", "return_softmax_lse"})
    calls = frozenset({"append", "rotary", "cache_batch_idx", "unpaged", "strided_cache", "packed_decode",
                       "paged_varlen", "seqused", "out"})
    max_decode_query_len = None
    # Its own tests and benchmarks capture nothing of these functions (bench_mla_decode.py has it commented out).
    graph_level = "never"
    refusals = {"attention_chunk": "it needs MUSA SDK 5.1 or newer, and HAL does not read that version",
                "context_parallel": "MATE's documents and its kernel disagree about cp_tot_seqused_k"}
    targets = {"prefill": "{module}.flash_attn_varlen_func",
               "decode": "{module}.flash_attn_with_kvcache"}
    sources = ("MooreThreads/mate 3f58cc3, mate/mha_interface.py", "mate/jit/attention/fmha/fmha_fwd.py",
               "docs/flash_attention.md (sinks on the local path, SDK for attention_chunk)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = []
        if config.sinks and config.sliding_window is None:
            reasons.append("sinks with sliding_window None is not supported (mate: sinks with a sliding_window; they "
                           "are documented on its local-attention path only)")
        if config.sinks and config.dtype != "bfloat16":
            reasons.append(f"sinks with dtype {config.dtype} is not supported (mate: sinks are bfloat16)")
        return reasons

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        return Bound(_kvcache(vendor, config.softmax_scale), varlen(vendor, config.softmax_scale))


def _kvcache(vendor: Any, scale: float | None) -> Callable[..., Any]:
    import torch

    attend, bfloat16 = vendor.flash_attn_with_kvcache, torch.bfloat16
    schedule, spread = mate_plans.schedules(vendor.get_scheduler_metadata), mate_plans.lengths()
    rotation = mate_plans.rotations()

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cache_seqlens: Any = None, page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: Any = None, cu_seqlens_k_new: Any = None, rotary_cos: Any = None,
                                rotary_sin: Any = None, softmax_scale: float | None = None, causal: bool = False,
                                window_size: Any = (-1, -1), sinks: Any = None, num_splits: int = 0,
                                pack_gqa: bool | None = None, sm_margin: int = 0, out: Any = None,
                                return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_KVCACHE, "mate", WITH_KVCACHE, given)
        causal, window = _mask(causal, window_size, sinks, bfloat16)
        if num_splits > _MOST_SPLITS:
            raise ValueError(f"num_splits {num_splits} is not supported (mate: up to {_MOST_SPLITS}, 0 for its own)")
        head_dim, head_dim_v, device = q.shape[-1], v_cache.shape[-1], q.device
        check_out("mate", q, head_dim_v, out)
        batch, max_seqlen_q = queries("mate", q, cu_seqlens_q, max_seqlen_q)
        if page_table is None:
            capacity, page_size = k_cache.shape[1], None
        else:
            page_size = k_cache.shape[1]
            if page_size != 64:
                raise ValueError(f"k_cache with page_size {page_size} is not supported (mate: 64)")
            capacity = page_table.shape[1] * page_size
        max_seqlen_k_new = 0
        if k is None:
            # Its metadata kernel adds these lengths to the cache's even where nothing is appended.
            refuse("mate without k", WITH_KVCACHE, {"cu_seqlens_k_new": cu_seqlens_k_new})
        else:
            _can_append(head_dim, head_dim_v, page_size, q, cache_seqlens)
            max_seqlen_k_new = k.shape[1] if cu_seqlens_k_new is None else 0
        if not q.numel():
            return no_queries(q, head_dim_v, out, return_softmax_lse)
        if rotary_cos is not None:
            _can_rotate(2 * rotary_cos.shape[1])
            if page_table is not None and rotary_cos.shape[0] < capacity:
                rotary_cos, rotary_sin = (None if x is None else rotation(device, (x,), (capacity,))
                                          for x in (rotary_cos, rotary_sin))
        if isinstance(cache_seqlens, int):
            cache_seqlens = spread(device, (cache_seqlens,), (batch,))
        metadata = None
        if sinks is None:  # it drops a schedule beside sinks
            metadata = schedule(device, (cache_seqlens, cu_seqlens_q, cu_seqlens_k_new), (
                batch, max_seqlen_q, capacity, max_seqlen_k_new, q.shape[-2], k_cache.shape[-2], head_dim, head_dim_v,
                q.dtype, page_size, causal, window, given.get("softcap", 0.0) != 0.0, num_splits, pack_gqa, sm_margin))
        result = attend(q, k_cache, v_cache, k=k, v=v, cache_seqlens=cache_seqlens, page_table=page_table,
                        cu_seqlens_q=cu_seqlens_q, max_seqlen_q=max_seqlen_q, cu_seqlens_k_new=cu_seqlens_k_new,
                        rotary_cos=rotary_cos, rotary_sin=rotary_sin, causal=causal, window_size=window,
                        softmax_scale=scale if softmax_scale is None else softmax_scale, learnable_sink=sinks,
                        scheduler_metadata=metadata, num_splits=num_splits, pack_gqa=pack_gqa, sm_margin=sm_margin,
                        return_softmax_lse=return_softmax_lse, **given)
        if return_softmax_lse:
            result, lse = _out_and_lse(result, sinks)
        if out is not None:  # the function has no such argument
            result = out.copy_(result)
        return (result, lse) if return_softmax_lse else result

    return flash_attn_with_kvcache


def varlen(vendor: Any, scale: float | None) -> Callable[..., Any]:
    """flash_attn_varlen_func over packed keys, or pages of 64."""
    import torch

    attend, bfloat16 = vendor.flash_attn_varlen_func, torch.bfloat16

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               softmax_scale: float | None = None, causal: bool = False,
                               window_size: Any = (-1, -1), sinks: Any = None, return_attn_probs: bool = False,
                               return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_VARLEN, "mate", VARLEN, given)
        require("mate", "in the varlen function", max_seqlen_q=max_seqlen_q)
        if given.get("page_table") is None:
            require("mate", "without page_table", cu_seqlens_k=cu_seqlens_k)  # it reads .is_musa of None
        else:
            refuse("mate with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require("mate", "with page_table", seqused_k=given.get("seqused_k"))
            if k.shape[1] != 64:
                raise ValueError(f"k with page_size {k.shape[1]} is not supported (mate: 64)")
        out = given.get("out")
        check_out("mate", q, v.shape[-1], out)
        if out is not None and not out.is_contiguous():
            raise ValueError(f"out with strides {out.stride()} is not supported (mate: contiguous)")
        causal, window = _mask(causal, window_size, sinks, bfloat16)
        lse = return_attn_probs or return_softmax_lse
        if not q.numel():
            return no_queries(q, v.shape[-1], out, lse)
        # Its prebuilt kernel leaves NaN in rows without keys: there are none where queries and keys are the same
        # tokens, as in a prefill. The other kernel gives 0 and -inf.
        same = cu_seqlens_k is not None and _same_memory(cu_seqlens_q, cu_seqlens_k)
        # The contract's num_splits is 1 here, as FlashAttention-3's; MATE's own default is 0.
        result = attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal,
                        window_size=window, softmax_scale=scale if softmax_scale is None else softmax_scale,
                        learnable_sink=sinks, return_softmax_lse=lse, backend="auto" if same else "mutlass",
                        **{"num_splits": 1, **given})
        return _out_and_lse(result, sinks) if lse else result

    return flash_attn_varlen_func


def _mask(causal: bool, window_size: Any, sinks: Any, bfloat16: torch.dtype) -> tuple[bool, tuple[int, int]]:
    # (-1, 0) would pick the prebuilt kernel and then fail its assertion (mha_interface.py, "mubin").
    causal, window = mask(causal, window_size)
    if sinks is not None and window == (-1, -1):
        raise ValueError(f"sinks with window_size {tuple(window_size)} is not supported (mate: sinks with a "
                         "bounded window, its local-attention path)")
    if sinks is not None and sinks.dtype is not bfloat16:
        raise ValueError(f"sinks {sinks.dtype} is not supported (mate: torch.bfloat16)")
    return causal, window


def _can_append(head_dim: int, head_dim_v: int, page_size: int | None, q: Any, cache_seqlens: Any) -> None:
    """Raise ValueError where MATE would write new keys beside their rows, or not at all."""
    if cache_seqlens is None:
        require("mate", "with k", cache_seqlens=None)
    if page_size is not None and (head_dim not in _TILES or head_dim_v not in _TILES):
        # Rows of the rounded head_dim are stored, over what follows (paged_kv.hpp).
        raise ValueError(f"k with head_dim {head_dim} and head_dim_v {head_dim_v} is not supported (mate: into pages "
                         f"{', '.join(map(str, _TILES))}); write the cache first")
    if page_size is None and head_dim != head_dim_v:
        raise ValueError(f"k with head_dim {head_dim} and head_dim_v {head_dim_v} is not supported (mate: equal ones "
                         "without page_table); write the cache first")
    if not q.numel():
        raise ValueError(f"k with q {tuple(q.shape)} is not supported (mate: a query in every sequence that gets keys; "
                         "write the cache first)")


def _can_rotate(rotary_dim: int) -> None:
    if rotary_dim % _ROTARY_STEP:
        raise ValueError(f"rotary_cos for rotary_dim {rotary_dim} is not supported (mate: multiples of "
                         f"{_ROTARY_STEP})")


def queries(backend: str, q: Tensor, cu_seqlens_q: Any, max_seqlen_q: Any) -> tuple[int, int]:
    """(batch, max_seqlen_q) of a kvcache call. Raises ValueError where they can't be known or can't be."""
    if cu_seqlens_q is not None:
        require(backend, "with cu_seqlens_q", max_seqlen_q=max_seqlen_q)
        return cu_seqlens_q.shape[0] - 1, max_seqlen_q
    batch, len_q = q.shape[:2]
    if max_seqlen_q is not None and max_seqlen_q < len_q:
        raise ValueError(f"max_seqlen_q {max_seqlen_q} is not supported ({backend} with q {tuple(q.shape)}: at least "
                         f"{len_q})")
    return batch, len_q


def check_out(backend: str, q: Tensor, head_dim_v: int, out: Any) -> None:
    """Raise ValueError for an `out` that the result could not be copied to as it is."""
    shape = (*q.shape[:-1], head_dim_v)
    if out is not None and (out.shape != shape or out.dtype != q.dtype or out.device != q.device):
        raise ValueError(f"out {out.dtype} {tuple(out.shape)} on {out.device} is not supported ({backend}: {q.dtype} "
                         f"{shape} on {q.device}, as q)")


def no_queries(q: Tensor, head_dim_v: int, out: Any, lse: bool) -> Any:
    """The result of a call without any query: nothing is launched."""
    import torch

    result = q.new_zeros((*q.shape[:-1], head_dim_v)) if out is None else out
    shape = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    return (result, q.new_zeros(shape, dtype=torch.float32)) if lse else result


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


def _out_and_lse(result: Any, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exactly (out, lse): it adds two partial results. Without keys the LSE is the sink, not -inf."""
    import torch

    out, lse = result[:2]
    if sinks is not None:
        lse = torch.where(lse.isfinite(), lse, sinks.float()[:, None])
    return out, lse
