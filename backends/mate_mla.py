"""Moore Threads' MATE: multi-head latent attention on MUSA GPUs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import mate_plans
from hal.backends.layouts import MLA_JOINT
from hal.backends.mate import Mate, check_out, no_queries, queries, varlen
from hal.backends.refuse import refuse, require
from hal.capabilities import PageSizes
from hal.contract import VARLEN, WITH_KVCACHE

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.packages import Package
    from hal.platform import Platform

# tests/test_mla.py; 128 is an assembly kernel (csrc/mla_pybind.mu, dispatch_mla_impl_for_fa_interface).
_HEADS = (8, 16, 32, 64, 128)
_LATENT, _ROPE = 512, 64
_IGNORED = "the MLA branch of flash_attn_with_kvcache ignores it"


class MateMLA(AttentionBackend):
    """Absorbed attention by flash_attn_with_kvcache with `qv` (512) beside q (64); prefill over expanded K and V.

    Of kvcache's other arguments the MLA branch hands on none (mha_interface.py, is_mla_decode): all are refused.
    """

    name = "mate_mla"
    packages = Mate.packages
    platforms = {"musa": ("mp31",)}  # check_mp31
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(64, only=(64,))  # "page size only supports 64"
    features = frozenset({"mla", "return_softmax_lse", "non_causal"})
    calls = frozenset({"packed_decode", "out", "seqused"})
    requires = frozenset({"mla"})
    mla_prefill = ((192, 128),)
    refusals = {"sliding_window": _IGNORED, "softcap": _IGNORED, "sinks": _IGNORED, "attention_chunk": _IGNORED,
                "context_parallel": _IGNORED,
                "sparse": "mate.flashmla has kernels of its own for it, over fp8_ds_mla"}
    max_decode_query_len = None  # the tests run 1, 3 and 5 query tokens, packed ones too
    # With 128 heads the rope part is read behind the latent one, wherever k_cache is (csrc/flash_mla_asm.mu).
    kv_layout = MLA_JOINT
    graph_level = "never"  # as Mate's; its own benchmark has the capture commented out (bench_mla_decode.py)
    targets = Mate.targets
    sources = ("MooreThreads/mate 3f58cc3, mate/mha_interface.py (is_mla_decode)",
               "csrc/mla_pybind.mu and csrc/flash_mla_asm.mu (page size, dims, strides, dense fp8)",
               "tests/test_mla.py (heads, query lengths, masks)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.mla is None:
            return []
        # Prefill serves both forms: expanded keys, and absorbed ones where there is a cached prefix.
        reasons = cls._expanded_reasons(config) if phase == "prefill" else []
        if config.num_heads not in _HEADS:
            reasons.append(f"num_heads {config.num_heads} is not supported (mate_mla: {', '.join(map(str, _HEADS))})")
        return reasons

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        return Bound(_kvcache(vendor.flash_attn_with_kvcache, config.softmax_scale),
                     _expanded(varlen(vendor, config.softmax_scale)))

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        """(rope, latent): views of one tensor, as kv_layout says."""
        from hal.torch_import import load_torch

        torch = load_torch()
        joint = torch.zeros(num_pages, page_size, _LATENT + _ROPE, dtype=getattr(torch, config.dtype), device=device)
        return joint[..., None, _LATENT:], joint[..., None, :_LATENT]


def _kvcache(attend: Callable[..., Any], scale: float | None) -> Callable[..., Any]:
    workspaces, blind_rows, spread = mate_plans.workspaces(), mate_plans.blind_rows(), mate_plans.lengths()

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, qv: Any = None, *,
                                cache_seqlens: Any = None, page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: Any = None, softmax_scale: float | None = None, causal: bool = False,
                                window_size: Any = (-1, -1), out: Any = None, return_softmax_lse: bool = False,
                                **given: Any) -> Any:
        refuse("mate_mla", WITH_KVCACHE, {"k": k, "v": v, **given})
        causal = _causal(causal, window_size)
        require("mate_mla", "in the MLA branch", qv=qv, page_table=page_table, cache_seqlens=cache_seqlens)
        softmax_scale = scale if softmax_scale is None else softmax_scale
        if softmax_scale is None:
            raise ValueError("softmax_scale None is not supported with qv (mate_mla: a number, in the call or in the "
                             "config: (64 + 512) ** -0.5 is no model's)")
        _check_shapes(q, qv, k_cache, v_cache)
        check_out("mate_mla", q, _LATENT, out)
        batch, max_seqlen_q = queries("mate_mla", q, cu_seqlens_q, max_seqlen_q)
        if not q.numel():
            return no_queries(qv, _LATENT, out, return_softmax_lse)
        device = q.device
        if isinstance(cache_seqlens, int):
            cache_seqlens = spread(device, (cache_seqlens,), (batch,))
        plan = workspaces(device, (cache_seqlens,), (batch, max_seqlen_q, q.shape[-2]))
        rows = q.shape[1] if cu_seqlens_q is None else q.shape[0]
        blind = blind_rows(device, (cache_seqlens, cu_seqlens_q), (rows, causal))
        result, lse = attend(q, k_cache, v_cache, qv=qv, cache_seqlens=cache_seqlens, page_table=page_table,
                             cu_seqlens_q=cu_seqlens_q, max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale,
                             causal=causal, scheduler_metadata=tuple(plan), return_softmax_lse=True)
        plan[1] = True  # after the call: one that raised may have filled nothing
        result.masked_fill_(blind[..., None, None], 0.0)
        if out is not None:  # the function has no such argument
            result = out.copy_(result)
        if not return_softmax_lse:
            return result
        if cu_seqlens_q is None:
            return result, lse.transpose(1, 2).masked_fill(blind[:, None], float("-inf"))  # its own is [B, Sq, H]
        return result, lse.masked_fill(blind, float("-inf"))

    return flash_attn_with_kvcache


def _causal(causal: bool, window_size: Any) -> bool:
    """The branch has no window: (-1, 0) is causal, every other bound is refused."""
    left, right = window_size
    if left != -1 or right not in (-1, 0):
        refuse("mate_mla", WITH_KVCACHE, {"window_size": (left, right)})
    return causal or right == 0


def _check_shapes(q: Tensor, qv: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Raise ValueError for what would take the dense branch, and for caches that are not views of one tensor."""
    for name, x, width in (("q", q, _ROPE), ("qv", qv, _LATENT), ("k_cache", k_cache, _ROPE),
                           ("v_cache", v_cache, _LATENT)):
        if x.shape[-1] != width:
            raise ValueError(f"{name} with last dimension {x.shape[-1]} is not supported (mate_mla: {width})")
    if k_cache.shape[1] != 64:
        raise ValueError(f"k_cache with page_size {k_cache.shape[1]} is not supported (mate_mla: 64)")
    row = _LATENT + _ROPE
    strides = k_cache.stride()[:2]
    if strides != v_cache.stride()[:2] or strides != (64 * row, row) or (
            k_cache.data_ptr() != v_cache.data_ptr() + _LATENT * v_cache.element_size()):
        raise ValueError(f"k_cache with strides {k_cache.stride()} beside v_cache with {v_cache.stride()} is not "
                         f"supported (mate_mla: the two views of one tensor that new_kv_cache makes, {MLA_JOINT})")


def _expanded(dense: Callable[..., Any]) -> Callable[..., Any]:
    """The dense varlen function for expanded keys; the cache holds latent ones, which it can't read."""

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               *more: Any, page_table: Any = None, **given: Any) -> Any:
        refuse("mate_mla", VARLEN, {"page_table": page_table})
        return dense(q, k, v, cu_seqlens_q, cu_seqlens_k, *more, **given)

    return flash_attn_varlen_func
