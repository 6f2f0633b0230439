"""FlashAttention 3 and 2 on NVIDIA GPUs: the declarations. flash_attn_v3.py and flash_attn_v2.py are the adapters.

No attribute is the vendor's own function, in any configuration (design.md, promise 4), for each has a refusal of its
own whatever is configured: version 3 ignores descales beside 16 bits without a word and returns four values where a
call asks for the LSE, SGLang's varlen function drops page_table, and version 2 knows neither page_table nor
cu_seqlens_q.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, ClassVar

from hal.backend import AttentionBackend, Bound
from hal.backends import flash_attn_v2 as v2
from hal.backends import flash_attn_v3 as v3
from hal.backends.flash_attn_v3 import SGLANG, UPSTREAM, VLLM
from hal.backends.nvidia import SM80_UP, expanded_only
from hal.capabilities import HeadDims, PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

TARGETS = {"prefill": "{module}.flash_attn_varlen_func", "decode": "{module}.flash_attn_with_kvcache"}


class FlashAttention3(AttentionBackend):
    """FlashAttention 3 of any of three providers; the decision's target says whose. With an fp8 cache the queries are
    fp8 too and the output is bfloat16. Inside a forward context its scheduler runs once a step."""

    name = "flash_attn_3"
    packages = (UPSTREAM, SGLANG, VLLM)
    platforms = {"cuda": ("sm90",)}  # SGLang's build also runs on sm80, where its default is flashinfer
    kv_cache_dtypes: ClassVar[tuple[str, ...]] = ("fp8_e4m3",)
    head_dims = HeadDims(low=8, high=256, step=8)
    head_dim_pairs = None  # by the rule of head_reasons
    page_sizes = PageSizes(64)  # any; MLA kernels of the same GPUs read 64: kinds of layer can share it
    features = frozenset({"sliding_window", "attention_chunk", "softcap", "sinks", "non_causal", "return_softmax_lse",
                          "context_parallel", "deterministic"})
    calls = frozenset({"append", "rotary", "cache_batch_idx", "cache_leftpad", "unpaged", "strided_cache",
                       "packed_decode", "paged_varlen", "seqused", "descale_per_head"})
    graph_level = "uniform batch"  # vLLM 0.33, its builder for FLASH_ATTN
    # Of those in head_reasons, the ones that models have.
    mla_prefill: ClassVar[tuple[tuple[int, int], ...]] = ((192, 128), (256, 256), (128, 128))
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
    def calls_of(cls, package: Package | None) -> frozenset[str]:
        """vLLM's function has no arguments for three of them."""
        return cls.calls - {"rotary", "cache_leftpad", "seqused"} if package is VLLM else cls.calls

    @classmethod
    def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
        reasons, size = [], config.context_parallel_size
        if config.sinks and package is UPSTREAM:
            reasons.append(f"sinks is not supported by flash-attn-3 ({cls.name}: with sglang-kernel or vllm)")
        if size > 1 and package is not VLLM:
            reasons.append(f"context_parallel {size} is not supported by {package.distribution} ({cls.name}: with "
                           "vllm)")
        if package is not VLLM:
            return reasons
        if config.attention_chunk:
            reasons.append(f"attention_chunk {config.attention_chunk} is not supported by vllm ({cls.name}: with "
                           "flash-attn-3 or sglang-kernel)")
        # flash_api.cpp there: "We only support query heads <= 64 with S aux", "We don't support S aux with hdim != .."
        if config.sinks and (config.num_heads > 64 or config.head_dim != config.v_dim):
            reasons.append(f"sinks with num_heads {config.num_heads}, head_dim {config.head_dim} and head_dim_v "
                           f"{config.v_dim} is not supported by vllm ({cls.name}: up to 64 heads, equal head dims)")
        return reasons

    @classmethod
    def target(cls, phase: str, package: Package | None, config: AttentionConfig) -> str:
        """vLLM's build has one function for both."""
        return f"{VLLM.module}.flash_attn_varlen_func" if package is VLLM else super().target(phase, package, config)

    @classmethod
    def head_reasons(cls, config: AttentionConfig) -> list[str]:
        d, dv = config.head_dim, config.v_dim
        if config.mla is not None or d == dv:
            return super().head_reasons(config)
        # flash_api.cpp: "If V headdim is different from Q/K dim, we only support ..."
        if d % 8 == dv % 8 == 0 and ((128 < d <= 192 and 96 < dv <= 128) or (d <= 64 and dv <= 512)):
            return []
        return [f"head_dim {d} with head_dim_v {dv} is not supported ({cls.name}: multiples of 8; equal, "
                "129 to 192 with 97 to 128, or up to 64 with up to 512)"]

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = []
        d, dv, fp8 = config.head_dim, config.v_dim, config.stored_dtype == "fp8_e4m3" and cls.reads(config, phase)
        if config.sinks and config.dtype != "bfloat16":
            reasons.append(f"sinks with dtype {config.dtype} is not supported ({cls.name}: bfloat16, the only dtype of "
                           "sinks that the kernels take)")
        local, size = {"sliding_window": config.sliding_window, "attention_chunk": config.attention_chunk}, \
            config.context_parallel_size
        reasons += [f"{name} {value} with context_parallel {size} is not supported ({cls.name}: one of the two)"
                    for name, value in local.items() if value and size > 1]
        if fp8 and config.dtype != "bfloat16":
            reasons.append(f"kv_cache_dtype fp8_e4m3 with dtype {config.dtype} is not supported "
                           f"({cls.name}: bfloat16, which is what the kernel returns for fp8)")
        if fp8 and (d % 16 or dv % 16 or dv > 256):
            reasons.append(f"kv_cache_dtype fp8_e4m3 with head_dim {d} and head_dim_v {dv} is not "
                           f"supported ({cls.name}: multiples of 16, head_dim_v up to 256)")
        return reasons

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        build = v3.build_of(vendor, package, cls.name)
        kvcache = v3.with_kvcache(vendor, config, build, cls.name) if config.mla is None else expanded_only(cls.name)
        return Bound(kvcache, v3.varlen_func(vendor, config, build, cls.name, kvcache))


class FlashAttention2(AttentionBackend):
    """FlashAttention 2. Batched queries need no plan; packed ones of different lengths need one a step, and are fastest
    where the forward context has the lengths on the host (flash_attn_v2.py)."""

    name = "flash_attn_2"
    # Older ones check for sm8x and sm90 (flash_api.cpp), and before 2.6 the LSE of packed queries is padded.
    packages = (Package("flash-attn", "flash_attn.flash_attn_interface", "pip install flash-attn",
                        minimum="2.7.4", wrong="flash_attn is here, but as flash-attn-4 without version 2"),)
    platforms = {"cuda": SM80_UP}
    head_dims = HeadDims(low=8, high=256, step=8)
    page_sizes = PageSizes(256, step=256)  # upstream's; vLLM's own build takes multiples of 16
    features = frozenset({"sliding_window", "softcap", "non_causal", "return_softmax_lse", "deterministic"})
    # Not rotary (no rotary_seqlens, and packed queries have no function with it) and not cache_leftpad (unpaged only).
    calls = frozenset({"append", "cache_batch_idx", "unpaged", "strided_cache", "packed_decode", "paged_varlen"})
    refusals = {"context_parallel": "its functions have no argument for the global lengths"}
    graph_level = "uniform batch"  # vLLM 0.33, its builder for FLASH_ATTN
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
        kvcache = v2.with_kvcache(vendor, config) if config.mla is None else expanded_only(cls.name)
        return Bound(kvcache, v2.varlen_func(vendor, config, kvcache))
