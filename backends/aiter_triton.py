"""AITER's Triton kernels: unified attention over pages, and MLA decode. CDNA3 and newer, and RDNA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.capabilities import HeadDims, PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# ROCm/aiter e4048607a5, README, "Supported Hardware": RDNA is experimental, "Triton and most FlyDSL kernels run";
# gfx90a is not listed. vLLM 0.33 is narrower (gfx942 and gfx950, _aiter_ops.py) because it asks once for all of
# aiter, its assembly included; HAL asks per kernel.
_ARCHS = ("gfx942", "gfx950", "gfx1100", "gfx1201")
# Those of them whose tuning file mha.py finds (configs/*-MHA-DEFAULT.json); it raises for the others.
_VARLEN_ARCHS = ("gfx942", "gfx950")
# aiter/ops/triton/utils/_triton/arch_info.py, is_fp8_avail; vLLM, platforms/rocm.py, supports_fp8 (gfx94, 95, 12).
FP8_ARCHS = ("gfx942", "gfx950", "gfx1201")


def fp8_reasons(name: str, config: AttentionConfig, platform: Platform) -> list[str]:
    """fp8 caches on AMD GPUs without fp8. On gfx942 e4m3 is torch's float8_e4m3fnuz."""
    if not config.stored_dtype.startswith("fp8") or platform.arch in FP8_ARCHS:
        return []
    return [f"kv_cache_dtype {config.stored_dtype} is not supported on {platform.arch} "
            f"({name}: {', '.join(FP8_ARCHS)})"]


class AiterUnified(AttentionBackend):
    """One kernel for prefill and decode, always over pages; causal only.

    vLLM 0.33 lists more: every attention type (it calls other Triton kernels for encoders and for cross attention)
    and fp8_e5m2 (it views the cache as e4m3, which would be read wrongly). "Any page" in SGLang's and vLLM's
    prose is any multiple of 16: a page of 1 would be a tile of 1, which tl.dot does not take.
    """

    name = "aiter_unified"
    # 0.1.10 is the oldest release read that has the function.
    packages = (Package("amd-aiter", "aiter.ops.triton.attention.unified_attention", "build it from ROCm/aiter",
                        minimum="0.1.10", metadata=("aiter",)),)
    platforms = {"rocm": _ARCHS}
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dims = HeadDims(low=32, high=512)  # vLLM: 32 or more; 512 is the widest that aiter's test runs
    page_sizes = PageSizes(64, step=16)  # vLLM's get_preferred_block_size; aiter's test runs 16 and 64
    features = frozenset({"sliding_window", "softcap", "sinks"})
    refusals = {"non_causal": "the kernel asserts causal", "return_softmax_lse": "the kernel returns no LSE",
                "mm_prefix": "the kernel has no such mask, and vLLM calls it without one"}
    max_decode_query_len = None
    graph_level = "always"  # vLLM's builder is RocmAttentionMetadataBuilder: ALWAYS
    adapter = False
    targets = {"prefill": "{module}.unified_attention", "decode": "{module}.unified_attention"}
    sources = ("ROCm/aiter e4048607a5, aiter/ops/triton/attention/unified_attention.py and its test",
               "vLLM 00e5aa02a6, v1/attention/backends/rocm_aiter_unified_attn.py; 0.33 documented (not executable)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = fp8_reasons(cls.name, config, platform)
        # select_3d_config rounds a page below 64 up to a power of two and asserts that the page divides it.
        if config.page_size == 48:
            reasons.append(f"page_size {config.page_size} is not supported (aiter_unified: 16, 32, or a multiple of "
                           "16 from 64)")
        return reasons


class AiterTritonMLA(AttentionBackend):
    """Absorbed decode with decode_attention_fwd; prefill over expanded K and V with aiter's Triton varlen function.

    vLLM's ROCM_AITER_TRITON_MLA is another mixture (assembly decode, this prefill); field.md's row is "aiter Triton
    MLA" on every AMD GPU, and the assembly is aiter_mla already. Page sizes, LSE, fp8 and context parallelism are
    the same in both: this kernel's own arguments, and what vLLM's checks answer when executed.
    """

    name = "aiter_triton_mla"
    # 0.1.13 is the oldest release read that has mla_decode.
    packages = (Package("amd-aiter", "aiter.ops.triton.attention.mla_decode", "build it from ROCm/aiter",
                        minimum="0.1.13", metadata=("aiter",)),)
    platforms = {"rocm": _ARCHS}
    kv_cache_dtypes = ("fp8_e4m3", "fp8_e5m2")  # k.dtype.is_fp8(): whatever fp8 the cache is typed as
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(16)
    features = frozenset({"mla", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    mla_prefill = ((192, 128),)
    refusals = {"sliding_window": "the kernel has none", "sparse": "aiter_mla_sparse has it",
                "non_causal": "its prefill is called causal"}
    kv_layout = MLA_JOINT
    graph_level = "single-token decode"  # one query token a sequence is all that the kernel takes
    adapter = False
    targets = {"prefill": "aiter.ops.triton.attention.mha.flash_attn_varlen_func",
               "decode": "{module}.decode_attention_fwd"}
    sources = ("ROCm/aiter e4048607a5, aiter/ops/triton/attention/mla_decode.py and mha.py",
               "vLLM 0.33 executed: AITER_TRITON_MLA (any page, LSE, fp8, context parallel)")

    @classmethod
    def _expands(cls, config: AttentionConfig, phase: str) -> bool:
        return config.mla is not None and phase == "prefill"

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if phase == "decode":
            return fp8_reasons(cls.name, config, platform)
        if platform.arch in _ARCHS and platform.arch not in _VARLEN_ARCHS:
            return [f"arch {platform.arch} has no tuning file of aiter's Triton varlen function "
                    f"(aiter_triton_mla in prefill: {', '.join(_VARLEN_ARCHS)})"]
        return []
