"""FlashAttention 3 and 2 on NVIDIA GPUs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends.nvidia import SM80_UP, expanded_only
from hal.backends.refuse import keep, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.contract import VARLEN, WITH_KVCACHE
from hal.packages import Package

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.platform import Platform

Function = Callable[..., Any]
UPSTREAM = Package("flash-attn-3", "flash_attn_interface", metadata=("flash_attn_3",),
                   install="build it from the folder hopper/ of Dao-AILab/flash-attention")
# Called sgl-kernel before 0.4. The minimum is the oldest release whose signatures were read; it has sinks.
SGLANG = Package("sglang-kernel", "sgl_kernel.flash_attn", "pip install sglang-kernel", minimum="0.3.21",
                 metadata=("sgl-kernel",))
TARGETS = {"prefill": "{module}.flash_attn_varlen_func", "decode": "{module}.flash_attn_with_kvcache"}
# The contract takes by position what is FlashAttention-3's own. qv (MLA) is another backend's.
_FA3_KVCACHE, _FA3_VARLEN = (
    frozenset(p.name for p in contract.parameters.values() if p.kind is not p.KEYWORD_ONLY) - {"qv"}
    for contract in (WITH_KVCACHE, VARLEN))
_DESCALES = frozenset({"q_descale", "k_descale", "v_descale"})
# What FlashAttention 2 calls by the same names: packed queries, over pages, over an unpaged cache, varlen.
_FA2_PACKED = frozenset({"causal", "window_size", "softcap"})
_FA2_PAGED = _FA2_PACKED | {"rotary_cos", "rotary_sin", "rotary_interleaved", "num_splits"}
_FA2_UNPAGED = _FA2_PAGED | {"cache_batch_idx", "cache_leftpad"}
_FA2_VARLEN = _FA2_PACKED | {"deterministic"}
# What engines have around these kernels and HAL has not yet. Graphs too (vLLM: uniform batch): the adapters keep no
# static buffers, so the graph level is "never".
_NOT_YET = {"deterministic": "what is promised where the kernel splits the keys is not decided",
            "context_parallel": "vLLM's build has the arguments, these packages have not"}


class FlashAttention3(AttentionBackend):
    """FlashAttention 3. With an fp8 cache the queries are fp8 too and the output is bfloat16."""

    name = "flash_attn_3"
    packages = (UPSTREAM, SGLANG)
    platforms = {"cuda": ("sm90",)}  # SGLang's build also runs on sm80, where its default is flashinfer
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dims = HeadDims(low=8, high=256, step=8)
    head_dim_pairs = None  # by the rule of _head_reasons
    page_sizes = PageSizes(64)  # any; MLA kernels of the same GPUs read 64: kinds of layer can share it
    features = frozenset({"sliding_window", "attention_chunk", "softcap", "sinks", "non_causal", "return_softmax_lse"})
    refusals = _NOT_YET
    mla_prefill = ((192, 128), (256, 256), (128, 128))  # of those in _head_reasons, the ones that models have
    attention_types = ("decoder", "encoder", "encoder_only", "encoder_decoder")
    max_decode_query_len = None
    targets = TARGETS
    sources = ("flash-attention 0251105a, hopper/flash_attn_interface.py", "hopper/flash_api.cpp, mha_fwd",
               "sgl-kernel 0.3.21 and sglang-kernel 0.4.10, signatures of sgl_kernel/flash_attn.py")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """fp8 with an fp8 cache: "query and key must have the same dtype" (flash_api.cpp)."""
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
        if config.sinks and package is UPSTREAM:
            return ["sinks is not supported by flash-attn-3 (flash_attn_3: with sglang-kernel)"]
        return []

    @classmethod
    def _head_reasons(cls, config: AttentionConfig) -> list[str]:
        d, dv = config.head_dim, config.v_dim
        if config.mla is not None or d == dv:
            return super()._head_reasons(config)
        # flash_api.cpp: "If V headdim is different from Q/K dim, we only support ..."
        if d % 8 == dv % 8 == 0 and ((128 < d <= 192 and 96 < dv <= 128) or (d <= 64 and dv <= 512)):
            return []
        return [f"head_dim {d} with head_dim_v {dv} is not supported ({cls.name}: multiples of 8; equal, "
                "129 to 192 with 97 to 128, or up to 64 with up to 512)"]

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = []
        d, dv, fp8 = config.head_dim, config.v_dim, config.stored_dtype == "fp8_e4m3" and cls.reads(config, phase)
        if config.sinks and config.return_softmax_lse:
            reasons.append("return_softmax_lse with sinks is not supported (flash_attn_3: one of the two; "
                           "whether the LSE of sglang-kernel holds the sink is not known)")
        if fp8 and config.dtype != "bfloat16":
            reasons.append(f"kv_cache_dtype fp8_e4m3 with dtype {config.dtype} is not supported "
                           "(flash_attn_3: bfloat16, which is what the kernel returns for fp8)")
        if fp8 and (d % 16 or dv % 16 or dv > 256):
            reasons.append(f"kv_cache_dtype fp8_e4m3 with head_dim {d} and head_dim_v {dv} is not "
                           "supported (flash_attn_3: multiples of 16, head_dim_v up to 256)")
        return reasons

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        # No version tells: builds of before and after (203b9b3d of August 2025) all call themselves 3.0.0.
        flag = "return_softmax_lse" if package is SGLANG else "return_attn_probs"
        if flag not in inspect.signature(vendor.flash_attn_varlen_func).parameters:
            raise RuntimeError(f"{package.module}.flash_attn_varlen_func has no {flag} (flash_attn_3: builds of "
                               f"{package.distribution} from September 2025 on); {package.install}")
        # Never the vendor's function as it is: with a 16-bit cache it ignores descales, with fp8 it wants them
        # spread to [B, Hkv], and asked for the LSE it returns four values.
        kvcache = _fa3_kvcache(vendor.flash_attn_with_kvcache, config, package)
        kvcache = kvcache if config.mla is None else expanded_only(cls.name)
        return Bound(kvcache, _fa3_varlen(vendor.flash_attn_varlen_func, kvcache, config, package))


def _fa3_kvcache(vendor: Function, config: AttentionConfig, package: Package) -> Function:
    fp8, scale = config.stored_dtype == "fp8_e4m3", config.softmax_scale
    honoured = _FA3_KVCACHE - (frozenset() if fp8 else _DESCALES)
    honoured = honoured | {"sinks"} if package is SGLANG else honoured

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                softmax_scale: float | None = None, return_softmax_lse: bool = False,
                                **given: Any) -> Any:
        keep(honoured, "flash_attn_3", WITH_KVCACHE, given)
        if fp8:
            _spread_descales(given, q, given.get("cu_seqlens_q"), k_cache.shape[-2])
        result = vendor(q, k_cache, v_cache, k=k, v=v, return_softmax_lse=return_softmax_lse,
                        softmax_scale=scale if softmax_scale is None else softmax_scale, **given)
        return _out_and_lse(result) if return_softmax_lse else result

    return flash_attn_with_kvcache


def _fa3_varlen(vendor: Function, kvcache: Function, config: AttentionConfig, package: Package) -> Function:
    fp8, scale, sglang = config.stored_dtype == "fp8_e4m3" and not config.mla, config.softmax_scale, package is SGLANG
    honoured = _FA3_VARLEN - (frozenset() if fp8 else _DESCALES)
    honoured = honoured - {"deterministic"} | {"sinks"} if sglang else honoured
    lse_flag = "return_softmax_lse" if sglang else "return_attn_probs"

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_q: Any = None, seqused_k: Any = None, page_table: Any = None,
                               softmax_scale: float | None = None, return_attn_probs: bool = False,
                               return_softmax_lse: bool = False, **given: Any) -> Any:
        lse = return_attn_probs or return_softmax_lse
        keep(honoured, "flash_attn_3", VARLEN, given)
        if page_table is not None:
            # The varlen function reads no pages; the other one does, for packed queries too.
            refuse("flash_attn_3 with page_table", VARLEN,
                   {"cu_seqlens_k": cu_seqlens_k, "seqused_q": seqused_q,
                    "deterministic": given.pop("deterministic", False)})
            require("flash_attn_3", "with page_table", seqused_k=seqused_k)
            return kvcache(q, k, v, cache_seqlens=seqused_k, page_table=page_table, cu_seqlens_q=cu_seqlens_q,
                           max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale, return_softmax_lse=lse,
                           **{"num_splits": 1, **given})
        if fp8:
            _spread_descales(given, q, cu_seqlens_q, k.shape[-2])
        result = vendor(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=seqused_q,
                        seqused_k=seqused_k, softmax_scale=scale if softmax_scale is None else softmax_scale,
                        **{lse_flag: lse}, **given)
        return _out_and_lse(result) if lse else result

    return flash_attn_varlen_func


def _spread_descales(given: dict[str, Any], q: Tensor, cu_seqlens_q: Any, num_kv_heads: int) -> None:
    """Descales as the kernel wants them, [B, Hkv]; the contract allows scalars."""
    import torch

    shape = (q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1, num_kv_heads)
    for name in _DESCALES & given.keys():
        value = given[name]
        if isinstance(value, (int, float)):
            given[name] = torch.full(shape, value, dtype=torch.float32, device=q.device)
        elif value is not None and value.numel() == 1:
            given[name] = value.reshape(1, 1).expand(shape)


def _out_and_lse(result: Any) -> tuple[Tensor, Tensor]:
    # FA3 adds two partial results. Both give +inf where there are no keys at all.
    out, lse = result[:2]
    return out, lse.masked_fill_(lse == float("inf"), float("-inf"))


class FlashAttention2(AttentionBackend):
    """FlashAttention 2. Packed queries over pages go through its varlen function."""

    name = "flash_attn_2"
    # 2.6 brought softcap and the unpadded LSE [Hq, total_q] (its README), 2.6.1 cache_leftpad.
    packages = (Package("flash-attn", "flash_attn.flash_attn_interface", "pip install flash-attn",
                        minimum="2.6.1", wrong="flash_attn is here, but as flash-attn-4 without version 2"),)
    platforms = {"cuda": SM80_UP}
    head_dims = HeadDims(low=8, high=256, step=8)
    page_sizes = PageSizes(256, step=256)  # upstream's; vLLM's own build takes multiples of 16
    features = frozenset({"sliding_window", "softcap", "non_causal", "return_softmax_lse"})
    refusals = _NOT_YET
    mla_prefill = ((128, 128), (256, 256))  # V as wide as K (CHECK_SHAPE); for 192/128 vLLM pads V and cuts
    attention_types = ("decoder", "encoder", "encoder_only", "encoder_decoder")
    max_decode_query_len = None
    targets = TARGETS
    sources = ("flash-attn 2.8.3.post2, flash_attn/flash_attn_interface.py",
               "csrc/flash_attn/flash_api.cpp (page size, head dim)", "csrc/flash_attn/src/softmax.h (LSE)")

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        varlen = _fa2_varlen(vendor.flash_attn_varlen_func, config.softmax_scale)
        kvcache = _fa2_kvcache(vendor.flash_attn_with_kvcache, varlen, config.softmax_scale)
        return Bound(kvcache if config.mla is None else expanded_only(cls.name), varlen)


def _fa2_kvcache(vendor: Function, varlen: Function, scale: float | None) -> Function:
    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cache_seqlens: Any = None, page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                return_softmax_lse: bool = False, **given: Any) -> Any:
        if cu_seqlens_q is not None:
            given.update(k=k, v=v)
            keep(_FA2_PACKED, "flash_attn_2 with cu_seqlens_q", WITH_KVCACHE, given)
            require("flash_attn_2", "with cu_seqlens_q", page_table=page_table, cache_seqlens=cache_seqlens)
            if isinstance(cache_seqlens, int):
                cache_seqlens = cu_seqlens_q.new_full((cu_seqlens_q.shape[0] - 1,), cache_seqlens)
            return varlen(q, k_cache, v_cache, cu_seqlens_q, None, max_seqlen_q, seqused_k=cache_seqlens,
                          page_table=page_table, softmax_scale=softmax_scale, return_softmax_lse=return_softmax_lse,
                          **given)
        keep(_FA2_UNPAGED if page_table is None else _FA2_PAGED, "flash_attn_2", WITH_KVCACHE, given)
        if max_seqlen_q not in (None, q.shape[1]):
            raise ValueError(f"max_seqlen_q {max_seqlen_q} is not supported (flash_attn_2: {q.shape[1]}, as q)")
        result = vendor(q, k_cache, v_cache, k=k, v=v, cache_seqlens=cache_seqlens, block_table=page_table,
                        softmax_scale=scale if softmax_scale is None else softmax_scale,
                        return_softmax_lse=return_softmax_lse, **given)
        return _out_and_lse(result) if return_softmax_lse else result

    return flash_attn_with_kvcache


def _fa2_varlen(vendor: Function, scale: float | None) -> Function:
    import torch
    from torch.nn import functional

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_k: Any = None, page_table: Any = None,
                               softmax_scale: float | None = None, return_attn_probs: bool = False,
                               return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_FA2_VARLEN, "flash_attn_2", VARLEN, given)
        if page_table is None:
            refuse("flash_attn_2 without page_table", VARLEN, {"seqused_k": seqused_k})
        else:
            refuse("flash_attn_2 with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require("flash_attn_2", "with page_table", seqused_k=seqused_k)
            cu_seqlens_k = functional.pad(seqused_k.cumsum(0, dtype=torch.int32), (1, 0))
            max_seqlen_k = max_seqlen_k or page_table.shape[1] * k.shape[1]
        lse = return_attn_probs or return_softmax_lse
        result = vendor(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                        softmax_scale=scale if softmax_scale is None else softmax_scale,
                        block_table=page_table, return_attn_probs=lse, **given)
        return _out_and_lse(result) if lse else result

    return flash_attn_varlen_func
