"""DeepSeek's FlashMLA (dense decode on sm90, sparse on sm90 and sm100), and CUTLASS MLA for sm100."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.backends.nvidia import SM100, VLLM_INSTALL, single_token_shard_reasons
from hal.capabilities import PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

UPSTREAM = Package("flash-mla", "flash_mla.flash_mla_interface", "build it from deepseek-ai/FlashMLA",
                   metadata=("flash_mla",))
# vLLM's build has the dense decode over fp8 caches, which upstream has not.
VLLM = Package("vllm", "vllm.v1.attention.ops.flashmla", VLLM_INSTALL)
# Upstream's sparse kernels are built for 64 and 128 query heads ("Unsupported h_q"); vLLM 0.33 and SGLang 0.5.23
# pad fewer heads with zeros, and so must the adapter.
_MOST_HEADS = 128


class FlashMLA(AttentionBackend):
    """flash_mla_with_kvcache over a dense cache. Decode only: all sequences have equally many query tokens.

    Planning is lazy: the first call fills the object that get_mla_metadata returned. vLLM 0.33 executed accepts it
    on sm100 too; the support matrix and dense_decode.h ("only supported on SM90a") do not, and they count.
    """

    name = "flashmla"
    packages = (UPSTREAM, VLLM)
    platforms = {"cuda": ("sm90",)}
    phases = ("decode",)
    # vLLM 0.33 prefills with FlashAttention whatever decodes (mla/prefill/selector.py: the rest of its list is 10.x);
    # SGLang's FlashMLABackend is a FlashInferMLAAttnBackend and leaves extend to it (flashmla_backend.py).
    prefill_with = ("flash_attn_3", "flashinfer")
    # float16 is built too (sm90/decode/dense/instantiations/fp16.cu).
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(64, only=(64,))  # "Currently page_block_size must be 64"
    features = frozenset({"mla", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    max_decode_query_len = None
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    refusals = {"non_causal": "vLLM 0.33 never runs it so (supports_non_causal False)",
                "sinks": "attn_sink is for its sparse kernels (\"must be None when dense attention is used\")",
                "sparse": "flashmla_sparse has it", "tree_mask": "its only masks are causal and none"}
    targets = {"decode": "{module}.flash_mla_with_kvcache"}
    sources = ("FlashMLA 9241ae3, README (support matrix) and csrc/api/dense_decode.h",
               "vLLM 0.33, checks of FLASHMLA executed")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """vLLM's fp8 decode takes descale_q: queries are fp8 too."""
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
        if config.stored_dtype == "fp8_e4m3" and package is not VLLM:
            return [f"kv_cache_dtype fp8_e4m3 is not supported by {package.distribution} (flashmla: with vllm)"]
        return []

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        return single_token_shard_reasons(cls.name, config, phase)


class FlashMLASparse(AttentionBackend):
    """DeepSeek-V3.2's sparse attention. Each query token names its slots, so prefill is the same computation.

    fp8_ds_mla goes to flash_mla_with_kvcache in both phases; a bfloat16 cache, seen as a flat list of tokens, to
    flash_mla_sparse_fwd in both.
    """

    name = "flashmla_sparse"
    packages = (UPSTREAM, VLLM)
    platforms = {"cuda": ("sm90", *SM100)}
    dtypes = ("bfloat16",)
    # vLLM's "fp8" is an alias of fp8_ds_mla here. HAL's "fp8" is fp8_e4m3, another layout, and is refused.
    kv_cache_dtypes = ("fp8_ds_mla",)
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(64, only=(64,))
    # attn_sink "has no effect on the returned softmax_lse": the adapter adds it.
    features = frozenset({"mla", "sparse", "sinks", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla", "sparse"})
    max_decode_query_len = None
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    targets = {"prefill": "{module}.flash_mla_sparse_fwd", "decode": "{module}.flash_mla_with_kvcache"}
    sources = ("FlashMLA 9241ae3, README, csrc/api/sparse_decode.h and sparse_fwd.h",
               "vLLM 0.33, checks of FLASHMLA_SPARSE executed")

    @classmethod
    def target(cls, phase: str, package: Package | None, config: AttentionConfig) -> str:
        """The KV dtype decides, not the phase."""
        return super().target("decode" if config.stored_dtype == "fp8_ds_mla" else "prefill", package, config)

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.num_heads > _MOST_HEADS:
            return [f"num_heads {config.num_heads} is not supported (flashmla_sparse: up to {_MOST_HEADS})"]
        return []


class CutlassMLA(AttentionBackend):
    """CUTLASS's MLA decode for sm100, one query token a sequence.

    vLLM's op alone: sgl_kernel.cutlass_mla_decode returns no LSE and is gone from sglang-kernel 0.4.10, and
    SGLang 0.5.23 has no such backend any more.
    """

    name = "cutlass_mla"
    packages = (Package("vllm", "vllm._custom_ops", VLLM_INSTALL),)
    platforms = {"cuda": SM100}
    phases = ("decode",)
    prefill_with = ("trtllm_ragged",)
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(128, only=(128,))
    features = frozenset({"mla", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    kv_layout = MLA_JOINT
    graph_level = "single-token decode"
    adapter = False
    refusals = {"non_causal": "vLLM 0.33 never runs it so (supports_non_causal False)",
                "sparse": "flashmla_sparse has it"}
    targets = {"decode": "{module}.sm100_cutlass_mla_decode"}
    sources = ("vLLM 0.33, documentation of CUTLASS_MLA (page size, KV dtypes)",
               "vLLM, v1/attention/backends/mla/cutlass_mla.py (128 heads, dims, graph level)",
               "sgl-kernel 0.3.21, signatures")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """The cache's: "q_nope.dtype == q_pe.dtype == kv_c_and_k_pe_cache.dtype"."""
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.num_heads > _MOST_HEADS:
            return [f"num_heads {config.num_heads} is not supported (cutlass_mla: up to {_MOST_HEADS})"]
        return []
