"""FlashAttention 4: CuTe DSL kernels, compiled at first use, for sm80 and newer; made for sm100."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import flash_attn_cache as cache
from hal.backends.flash_attn_v2 import splits
from hal.backends.nvidia import SM80_UP, SM100, expanded_only
from hal.backends.refuse import keep, mask, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.config import MLADims
from hal.contract import VARLEN, WITH_KVCACHE
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# interface.py, _flash_attn_fwd: "paged KV not supported on SM 8.0" and "Paged KV not supported on SM 12.0", by
# family: sm80, sm86, sm87, sm89, sm120 and sm121.
_PAGED = ("sm90", "sm100", "sm103", "sm110")
# One family in interface.py ("arch // 10 in [10, 11]"), with its own head dims and, in b27, a kernel apart for 256.
_BLACKWELL = (*SM100, "sm110")
# 101,376 bytes of shared memory: tiles of 256/256 need 131,072 (FlashAttentionForwardSm120.can_implement, which
# interface.py never asks).
_SMALL = ("sm86", "sm89", "sm120", "sm121")
_SINKS = ("torch.bfloat16", "torch.float16", "torch.float32")  # interface.py, _LEARNABLE_SINK_DTYPES
Function = Callable[..., Any]


class FlashAttention4(AttentionBackend):
    """One function for packed and batched queries; no append, no rotary. Pages go to it too.

    Never the vendor's own function: it has no page table under HAL's name in a cache's call, returns (out, None) where
    no LSE is asked for, and reads windows literally, -1 too (mask_4). fp8 is left out: descales are arguments of the
    private function alone. Absorbed MLA (`qv`, the fourth positional argument, sm100 and sm110 only) as well: its LSE
    is in another layout.
    """

    name = "flash_attn_4"
    packages = (Package("flash-attn-4", "flash_attn.cute.interface", "pip install --pre flash-attn-4",
                        minimum="4.0.0b27",  # b3 has no pages on sm90, and NaN for the LSE of an empty row with sinks
                        metadata=("flash_attn_4",)),)
    platforms = {"cuda": SM80_UP}
    # The kernels take multiples of 8. Pages of another size than the tile are gathered without bounds on the head dim,
    # and rounding is to 16 ("irregular head dim" in flash_fwd_sm90.py and flash_fwd_sm100.py).
    head_dims = HeadDims(low=16, high=256, step=16)
    head_dim_pairs = None  # by arch, in extra_reasons
    # Any size; 128 is the tile, the one that is loaded by TMA, and what SGLang 0.5.23 forces on sm100.
    page_sizes = PageSizes(128)
    features = frozenset({"sliding_window", "softcap", "sinks", "non_causal", "return_softmax_lse", "deterministic"})
    calls = frozenset({"cache_batch_idx", "unpaged", "strided_cache", "packed_decode", "paged_varlen", "seqused"})
    # DeepSeek; GLM-5's 192+64 (not on _SMALL); 64+64.
    mla_prefill = ((192, 128), (256, 256), (128, 128))
    attention_types = ("decoder", "encoder", "encoder_only", "encoder_decoder")
    max_decode_query_len = None
    graph_level = "uniform batch"  # vLLM 0.33, its builder for FLASH_ATTN
    refusals = {"mla": "absorbed MLA is flash_attn_mla's; this one prefills expanded K and V",
                "attention_chunk": "its varlen function has no such argument",
                "context_parallel": "its varlen function has no argument for the global lengths"}
    targets = {"prefill": "{module}.flash_attn_varlen_func", "decode": "{module}.flash_attn_varlen_func"}
    sources = ("flash-attn-4 4.0.0b36, signatures of flash_attn/cute/interface.py",
               "flash-attention 0251105a, flash_attn/cute/interface.py (_flash_attn_fwd, _validate_head_dims)",
               "flash_attn/cute/flash_fwd_sm90.py and flash_fwd_sm100.py (paged KV: \"irregular head dim\")")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.mla is not None:  # expanded: no pages, no fp8, dims as in mla_prefill
            return cls._expanded_rules(config, platform) if cls._expands(config, phase) else []
        d, dv, arch, reasons = config.head_dim, config.v_dim, platform.arch, []
        if arch not in _PAGED:
            reasons.append(f"paged KV cache on {arch} is not supported (flash_attn_4: {', '.join(_PAGED)}; elsewhere "
                           "it asserts that page_table is None)")
        if arch in _BLACKWELL and (d > 128 or dv > 128) and (d, dv) not in ((192, 128), (256, 256)):
            reasons.append(f"head_dim {d} with head_dim_v {dv} is not supported on {arch} (flash_attn_4: up to 128 "
                           "with up to 128, 192 with 128)")
        if d != dv and (d % 16 or dv % 16 or max(d, dv) > 256):
            reasons.append(f"head_dim {d} with head_dim_v {dv} is not supported (flash_attn_4: multiples of 16 up "
                           "to 256)")
        if arch in _BLACKWELL and (d, dv) == (256, 256):
            reasons.append(f"head_dim 256 on {arch} is not supported (flash_attn_4: 4.0.0b27's kernel for 256 there "
                           "takes no seqused_k, which a paged KV cache needs)")
        return reasons + cls._dedicated_reasons(config, platform)

    @classmethod
    def _expanded_rules(cls, config: AttentionConfig, platform: Platform) -> list[str]:
        assert isinstance(config.mla, MLADims)
        d, arch, reasons = config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim, platform.arch, []
        if config.sinks and arch not in _PAGED:  # flash_fwd.py: "Learnable sink is not supported in this kernel"
            reasons.append(f"sinks on {arch} is not supported (flash_attn_4: {', '.join(_PAGED)})")
        if d == 256 and arch in _SMALL:
            reasons.append(f"MLA prefill with head_dim 256 and head_dim_v {config.mla.v_head_dim} on {arch} is not "
                           "supported (flash_attn_4: up to 192 there; tiles of 256 need more shared memory)")
        return reasons + cls._dedicated_reasons(config, platform)

    @classmethod
    def _dedicated(cls, config: AttentionConfig, platform: Platform) -> bool:
        """Whether sm100's kernel for 256 serves, in 4.0.0b27; b36 has none apart. The narrower one is declared."""
        mla = config.mla
        wide = config.head_dim if mla is None or isinstance(mla, bool) else mla.qk_nope_head_dim + mla.qk_rope_head_dim
        return platform.arch in _BLACKWELL and wide == 256

    @classmethod
    def _dedicated_reasons(cls, config: AttentionConfig, platform: Platform) -> list[str]:
        """It has neither softcap nor sinks ("SM100 forward with head_dim=256 ...")."""
        if not cls._dedicated(config, platform):
            return []
        asked = {"softcap": config.softcap, "sinks": config.sinks}
        return [f"{name} {value} with head_dim 256 on {platform.arch} is not supported (flash_attn_4: without {name}, "
                "or head_dim up to 192)" for name, value in asked.items() if value]

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module).flash_attn_varlen_func
        call = _call(vendor, config, str(platform.arch))
        return Bound(_kvcache(call) if config.mla is None else expanded_only(cls.name),
                     _varlen(call, bool(cls._dedicated(config, platform))))


_NAME = FlashAttention4.name


def _call(vendor: Function, config: AttentionConfig, arch: str) -> Function:
    """The vendor's function with masks, splits and results as the contract has them."""
    scale, one_split = config.softmax_scale, config.deterministic
    # _flash_attn_fwd asserts one split on other families, and "SplitKV is not supported for hdim >= 192".
    splittable = arch in _BLACKWELL and config.v_dim < 192

    def call(q: Any, k: Any, v: Any, lse: bool, softmax_scale: float | None, causal: bool, window_size: Any,
             num_splits: int, sinks: Any, **given: Any) -> Any:
        if not splittable and num_splits not in (0, 1):
            raise ValueError(f"num_splits {num_splits} is not supported ({_NAME} with head_dim_v {config.v_dim} on "
                             f"{arch}: 1, which 0 means then)")
        if sinks is not None and str(sinks.dtype) not in _SINKS:
            raise ValueError(f"sinks {sinks.dtype} is not supported ({_NAME}: {', '.join(_SINKS)})")
        causal, window = mask_4(causal, window_size)
        out, softmax_lse = vendor(q, k, v, softmax_scale=scale if softmax_scale is None else softmax_scale,
                                  causal=causal, window_size=window, learnable_sink=sinks, return_lse=lse,
                                  num_splits=splits(_NAME, num_splits, one_split or not splittable), **given)
        return (out, softmax_lse) if lse else out

    return call


def mask_4(causal: bool, window_size: Any) -> tuple[bool, tuple[int | None, int | None]]:
    """None is unbounded. Of numbers b27 adds the two, so (-1, 0) is full attention and (3, -1) is read as it stands."""
    causal, (left, right) = mask(causal, window_size)
    return causal, (None if left < 0 else left, None if right < 0 else right)


def _kvcache(call: Function) -> Function:
    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cache_seqlens: Any = None, cache_batch_idx: Any = None, page_table: Any = None,
                                cu_seqlens_q: Any = None, max_seqlen_q: int | None = None,
                                softmax_scale: float | None = None, causal: bool = False,
                                window_size: Any = (-1, -1), softcap: float = 0.0, num_splits: int = 0,
                                pack_gqa: bool | None = None, return_softmax_lse: bool = False, sinks: Any = None,
                                **given: Any) -> Any:
        refuse(_NAME, WITH_KVCACHE, {"k": k, "v": v, **given})
        batch, most = cache.queries(_NAME, q, cu_seqlens_q, max_seqlen_q)
        table = cache.rows(page_table, cache_batch_idx, batch)
        if table is None and cache_batch_idx is not None:
            table = cache_batch_idx[:, None]  # each row of an unpaged cache is a page
        return call(q, k_cache, v_cache, return_softmax_lse, softmax_scale, causal, window_size, num_splits, sinks,
                    cu_seqlens_q=cu_seqlens_q, max_seqlen_q=most,
                    max_seqlen_k=k_cache.shape[1] * (1 if table is None else table.shape[1]),
                    seqused_k=cache.lengths(cache_seqlens, batch, q.device), page_table=table, softcap=softcap,
                    pack_gqa=pack_gqa)

    return flash_attn_with_kvcache


def _varlen(call: Function, dedicated: bool) -> Function:
    """dedicated: the kernel for head_dim 256 on sm100, which takes no seqused_q and seqused_k."""
    honoured = frozenset({"softcap", "pack_gqa", "deterministic", "seqused_q", "seqused_k"})
    honoured -= {"seqused_q", "seqused_k"} if dedicated else set()

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               page_table: Any = None, softmax_scale: float | None = None, causal: bool = False,
                               window_size: Any = (-1, -1), num_splits: int = 1, sinks: Any = None,
                               return_attn_probs: bool = False, return_softmax_lse: bool = False,
                               **given: Any) -> Any:
        keep(honoured, _NAME, VARLEN, given)
        if page_table is None:
            require(_NAME, "without page_table", cu_seqlens_k=cu_seqlens_k)
        else:
            refuse(f"{_NAME} with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k,
                                                        "seqused_q": given.get("seqused_q")})
            require(_NAME, "with page_table", seqused_k=given.get("seqused_k"))
            page_table = cache.rows(page_table, None, cu_seqlens_q.shape[0] - 1)
        return call(q, k, v, return_attn_probs or return_softmax_lse, softmax_scale, causal, window_size, num_splits,
                    sinks, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
                    max_seqlen_k=max_seqlen_k, page_table=page_table, **given)

    return flash_attn_varlen_func
