"""Moore Threads' MATE: FlashAttention-3's interface on MUSA GPUs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends.refuse import keep, mask, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.contract import VARLEN, WITH_KVCACHE
from hal.packages import Package

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.platform import Platform

# What MATE calls by the same names and its kernel honours. Not here: descales (no fp8; the 16-bit kernel
# ignores them), qv (another backend's), attention_chunk (needs MUSA SDK 5.1, which nothing here can ask for),
# cp_tot_seqused_k (its docstring says cumulative, its code reads one a sequence: not settled).
_KVCACHE = frozenset({"rotary_cos", "rotary_sin", "rotary_interleaved", "rotary_seqlens", "cache_seqlens",
                      "cache_batch_idx", "cache_leftpad", "page_table", "cu_seqlens_q", "max_seqlen_q",
                      "softcap", "scheduler_metadata", "num_splits", "pack_gqa", "sm_margin"})
_VARLEN = frozenset({"seqused_q", "seqused_k", "page_table", "softcap", "num_splits", "pack_gqa",
                     "deterministic", "sm_margin", "out"})


class Mate(AttentionBackend):
    """MATE's dense attention. Without scheduler_metadata it runs its single-tile scheduler."""

    name = "mate"
    packages = (Package("mate", "mate.mha_interface",
                        install="install Moore Threads' MATE from its repository, MooreThreads/mate; never "
                                "`pip install mate`",
                        wrong="the installed mate is another project (PyPI's is \"Matchers for unittest\")"),)
    platforms = {"musa": ("mp31",)}
    # Head dims are rounded up to 64, 128, 192, 256, 384 or 512: 96 costs what 128 does. Of the pairs only
    # 192/128 has a kernel; (128, 64) and others fail an assertion (fmha_utils.py, _get_fwd_kernel_config).
    head_dims = HeadDims(low=8, high=512, step=8)
    head_dim_pairs = ((192, 128),)
    page_sizes = PageSizes(64)  # any size; 64 is the only one with the fast loads (fmha_fwd.py, force_lsu_kv)
    features = frozenset({"sliding_window", "softcap", "sinks", "non_causal", "return_softmax_lse"})
    max_decode_query_len = None
    refusals = {"attention_chunk": "it needs MUSA SDK 5.1 or newer, and HAL does not read that version",
                "context_parallel": "the functions have its arguments, HAL's adapter does not pass them on yet"}
    targets = {"prefill": "{module}.flash_attn_varlen_func",
               "decode": "{module}.flash_attn_with_kvcache"}
    sources = ("MooreThreads/mate 3f58cc3, mate/mha_interface.py", "mate/jit/attention/fmha/fmha_fwd.py",
               "docs/flash_attention.md (sinks on the local path, SDK for attention_chunk)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.sinks and config.sliding_window is None:
            return ["sinks with sliding_window None is not supported (mate: sinks with a sliding_window; "
                    "they are documented on its local-attention path only)"]
        return []

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        return Bound(_kvcache(vendor.flash_attn_with_kvcache, config.softmax_scale),
                     _varlen(vendor.flash_attn_varlen_func, config.softmax_scale))


def _kvcache(vendor: Callable[..., Any], scale: float | None) -> Callable[..., Any]:
    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cu_seqlens_k_new: Any = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1), sinks: Any = None,
                                return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_KVCACHE, "mate", WITH_KVCACHE, given)
        if k is None:
            # Its metadata kernel adds these lengths to the cache's even where nothing is appended.
            refuse("mate without k", WITH_KVCACHE, {"cu_seqlens_k_new": cu_seqlens_k_new})
        causal, window = _mask(causal, window_size, sinks)
        result = vendor(q, k_cache, v_cache, k=k, v=v, cu_seqlens_k_new=cu_seqlens_k_new, causal=causal,
                        window_size=window, softmax_scale=scale if softmax_scale is None else softmax_scale,
                        learnable_sink=sinks, return_softmax_lse=return_softmax_lse, **given)
        return _out_and_lse(result, sinks) if return_softmax_lse else result

    return flash_attn_with_kvcache


def _varlen(vendor: Callable[..., Any], scale: float | None) -> Callable[..., Any]:
    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               softmax_scale: float | None = None, causal: bool = False,
                               window_size: Any = (-1, -1), sinks: Any = None,
                               return_attn_probs: bool = False, return_softmax_lse: bool = False,
                               **given: Any) -> Any:
        keep(_VARLEN, "mate", VARLEN, given)
        if given.get("page_table") is None:
            require("mate", "without page_table", cu_seqlens_k=cu_seqlens_k)  # it reads .is_musa of None
        else:
            refuse("mate with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require("mate", "with page_table", seqused_k=given.get("seqused_k"))
        causal, window = _mask(causal, window_size, sinks)
        lse = return_attn_probs or return_softmax_lse
        # The contract's num_splits is 1 here, as FlashAttention-3's; MATE's own default is 0.
        result = vendor(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal,
                        window_size=window, softmax_scale=scale if softmax_scale is None else softmax_scale,
                        learnable_sink=sinks, return_softmax_lse=lse, **{"num_splits": 1, **given})
        return _out_and_lse(result, sinks) if lse else result

    return flash_attn_varlen_func


def _mask(causal: bool, window_size: Any, sinks: Any) -> tuple[bool, tuple[int, int]]:
    # (-1, 0) would pick the prebuilt kernel and then fail its assertion (mha_interface.py, "mubin").
    causal, window = mask(causal, window_size)
    if sinks is not None and window == (-1, -1):
        raise ValueError(f"sinks with window_size {tuple(window_size)} is not supported (mate: sinks with a "
                         "bounded window, its local-attention path)")
    return causal, window


def _out_and_lse(result: Any, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exactly (out, lse): it adds two partial results. Without keys the LSE is the sink, not -inf or NaN."""
    import torch

    out, lse = result[:2]
    if sinks is not None:
        lse = torch.where(lse.isfinite(), lse, sinks.float()[:, None])
    return out, lse
