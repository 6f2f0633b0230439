"""AMD's AITER on CDNA3 and CDNA4 GPUs."""

from __future__ import annotations

import importlib
import os
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

_NOTHING: frozenset[str] = frozenset()


class Aiter(AttentionBackend):
    """AITER's composable-kernel and assembly attention.

    Packed keys go to flash_attn_varlen_func. Pages go to mha_batch_prefill_func in its linear layout, for
    decode too: flash_attn_varlen_func reads only pages of multiples of 128 tokens, and the paged-decode
    kernels want a layout that no strides can express. Head dims and page sizes are those that aiter's own
    test of that function runs; vLLM's 64 and its pages of 32 are served by other kernels.

    Its one fp8 is torch's float8_e4m3fnuz on gfx942 and float8_e4m3fn on gfx950 (aiter/utility/dtypes.py; vLLM,
    platforms/rocm.py, fp8_dtype). HAL's "fp8_e4m3" is float8_e4m3fn, so an adapter for fp8 caches must allocate and
    fill the other type on gfx942: the same bytes there mean half the value.
    """

    name = "aiter"
    # 0.1.10 is the oldest release read whose mha_batch_prefill_func has block_table and seqlen_k.
    packages = (Package("amd-aiter", "aiter.ops.mha", "build it from ROCm/aiter", minimum="0.1.10",
                        metadata=("aiter",)),)
    platforms = {"rocm": ("gfx942", "gfx950")}
    head_dims = HeadDims(only=(128, 256))
    page_sizes = PageSizes(16, only=(16, 1024))
    features = frozenset({"sliding_window", "softcap", "non_causal", "return_softmax_lse"})
    max_decode_query_len = None
    # vLLM 0.33 executed also has fp8 caches and graphs of uniform batches: not in HAL's adapter yet.
    refusals = {"sinks": "the assembly kernels that flash_attn_varlen_func picks for bfloat16 would ignore them"}
    targets = {"prefill": "{module}.flash_attn_varlen_func",
               "decode": "{module}.mha_batch_prefill_func"}
    sources = ("ROCm/aiter e4048607a5, aiter/ops/mha.py", "op_tests/test_batch_prefill.py (sizes)",
               "csrc/py_itfs_ck/mha_varlen_fwd_kernels.cu and mha_batch_prefill_kernels.cu (checks, LSE)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.sliding_window == 1:
            return ["sliding_window 1 would be ignored by the assembly kernels, which take a left bound of 0 "
                    "for none (aiter: 2 or more)"]
        return []

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        softcaps = _softcap_is_tanh(vendor)
        if config.softcap and not softcaps:
            raise RuntimeError(f"softcap {config.softcap} is not served by this build of aiter (aiter: built "
                               "with ENABLE_CK and CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT 0)")
        scale = config.softmax_scale
        paged = _paged(vendor.mha_batch_prefill_func, scale, softcaps)
        return Bound(_kvcache(paged), _varlen(vendor.flash_attn_varlen_func, paged, scale, softcaps))


def _softcap_is_tanh(vendor: Any) -> bool:
    # Without CK the Triton route drops logits_soft_cap; that variable makes CK compile x / (1 + |x|) instead.
    other = os.environ.get("CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT", "0") not in ("", "0")
    return bool(getattr(vendor, "ENABLE_CK", True)) and not other


def _paged(vendor: Callable[..., Any], scale: float | None, softcaps: bool) -> Callable[..., Any]:
    def paged(q: Tensor, k_cache: Tensor, v_cache: Tensor, cu_seqlens_q: Tensor, max_seqlen_q: int | None,
              page_table: Tensor, lengths: Tensor, softmax_scale: float | None, causal: bool,
              window_size: Any, softcap: float, lse: bool, out: Tensor | None) -> Any:
        import torch

        batch, max_pages = cu_seqlens_q.shape[0] - 1, page_table.shape[1]
        page_table = page_table[:batch]  # the contract allows more rows, the kernel does not
        if softcap and not softcaps:
            raise ValueError(f"softcap {softcap} is not supported (aiter in this build: softcap 0.0)")
        causal, window = mask(causal, window_size)
        # block_table and seqlen_k replace the ragged list; it must be given nevertheless: the table's own
        # rows.
        starts = torch.arange(0, (batch + 1) * max_pages, max_pages, dtype=torch.int32, device=q.device)
        result = vendor(q, k_cache, v_cache, cu_seqlens_q, starts, page_table.reshape(-1), max_seqlen_q,
                        max_pages * k_cache.shape[1], causal=causal, window_size=window,
                        softmax_scale=scale if softmax_scale is None else softmax_scale, return_lse=lse,
                        logits_soft_cap=softcap, out=out, block_table=page_table, seqlen_k=lengths)
        return _out_and_lse(result) if lse else result

    return paged


def _kvcache(paged: Callable[..., Any]) -> Callable[..., Any]:
    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, *, cache_seqlens: Any = None,
                                page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
                                out: Any = None, return_softmax_lse: bool = False, **given: Any) -> Any:
        import torch

        keep(_NOTHING, "aiter", WITH_KVCACHE, given)
        require("aiter", "by flash_attn_with_kvcache", page_table=page_table, cache_seqlens=cache_seqlens)
        if isinstance(cache_seqlens, int):
            batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
            cache_seqlens = page_table.new_full((batch,), cache_seqlens)
        call = (page_table, cache_seqlens, softmax_scale, causal, window_size, softcap, return_softmax_lse)
        if cu_seqlens_q is not None:
            require("aiter", "with cu_seqlens_q", max_seqlen_q=max_seqlen_q)
            return paged(q, k_cache, v_cache, cu_seqlens_q, max_seqlen_q, *call, out)
        batch, length, heads, _ = q.shape
        if max_seqlen_q not in (None, length):
            raise ValueError(f"max_seqlen_q {max_seqlen_q} is not supported without cu_seqlens_q (aiter: "
                             f"{length}, the length of q)")
        refuse("aiter without cu_seqlens_q", WITH_KVCACHE, {"out": out})
        rows = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=q.device)
        result = paged(q.reshape(batch * length, heads, -1), k_cache, v_cache, rows, length, *call, None)
        if not return_softmax_lse:
            return result.view(batch, length, heads, -1)
        return result[0].view(batch, length, heads, -1), result[1].view(heads, batch, length).transpose(0, 1)

    return flash_attn_with_kvcache


def _varlen(vendor: Callable[..., Any], paged: Callable[..., Any], scale: float | None,
            softcaps: bool) -> Callable[..., Any]:
    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_k: Any = None, page_table: Any = None,
                               softmax_scale: float | None = None, causal: bool = False,
                               window_size: Any = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
                               out: Any = None, return_attn_probs: bool = False,
                               return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_NOTHING, "aiter", VARLEN, given)
        lse = return_attn_probs or return_softmax_lse
        if page_table is not None:
            refuse("aiter with page_table", VARLEN,
                   {"cu_seqlens_k": cu_seqlens_k, "deterministic": deterministic})
            require("aiter", "with page_table", seqused_k=seqused_k)
            return paged(q, k, v, cu_seqlens_q, max_seqlen_q, page_table, seqused_k, softmax_scale, causal,
                         window_size, softcap, lse, out)
        refuse("aiter without page_table", VARLEN, {"seqused_k": seqused_k})
        if softcap and not softcaps:
            raise ValueError(f"softcap {softcap} is not supported (aiter in this build: softcap 0.0)")
        causal, window = mask(causal, window_size)
        if window[0] == 0:
            raise ValueError(f"window_size {tuple(window_size)} is not supported (aiter: a left bound of -1, "
                             "or 1 and more; its assembly kernels take 0 for none)")
        result = vendor(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal,
                        softmax_scale=scale if softmax_scale is None else softmax_scale,
                        window_size=(*window, 0), logits_soft_cap=softcap, deterministic=deterministic,
                        return_lse=lse, out=out)
        return _out_and_lse(result) if lse else result

    return flash_attn_varlen_func


def _out_and_lse(result: Any) -> tuple[Tensor, Tensor]:
    out, lse = result
    # +inf where max_seqlen_k is 0 (mha_varlen_fwd_kernels.cu).
    return out, lse.masked_fill_(lse == float("inf"), float("-inf"))
