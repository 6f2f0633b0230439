"""Backends made of FlashAttention 2 and 3: unequal head dims, absorbed MLA, dual-chunk attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.flash_attn import SGLANG, TARGETS, UPSTREAM, FlashAttention2, FlashAttention3
from hal.backends.layouts import MLA_JOINT
from hal.backends.nvidia import VLLM_INSTALL
from hal.capabilities import PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# vLLM's build of FlashAttention 3: one function for paged and ragged keys, with cp_world_size, cp_rank and
# cp_tot_seqused_k, which upstream's and SGLang's functions do not have (signatures.json).
VLLM = Package("vllm", "vllm.vllm_flash_attn.flash_attn_interface", VLLM_INSTALL)


class FlashAttentionDiffKV(AttentionBackend):
    """K and V of unequal head dims, side by side in one cache tensor of width head_dim + head_dim_v.

    The two caches are strided views, so the layout is the ordinary one. FlashAttention 3 alone: version 2 checks
    that V is as wide as K (flash_api.cpp, CHECK_SHAPE(v, .., head_size)), although vLLM 0.33 accepts
    FLASH_ATTN_DIFFKV from 8.0 on; version 4's unequal dims are flash_attn_4's own.
    """

    name = "flash_attn_diffkv"
    packages = (UPSTREAM, SGLANG)
    platforms = FlashAttention3.platforms
    head_dim_pairs = None  # by the rule of _head_reasons
    kv_cache_dtypes = ()  # vLLM 0.33, executed: auto, float16, bfloat16
    # vLLM 0.33 executed: multiples of 16 (doc: any). The kernel takes any; kept to what is run.
    page_sizes = PageSizes(64, step=16)
    features = frozenset({"sliding_window", "softcap", "sinks", "non_causal", "return_softmax_lse"})
    attention_types = FlashAttention3.attention_types
    max_decode_query_len = None
    graph_level = "uniform batch"
    adapter = False
    targets = TARGETS
    sources = ("vLLM 0.33, checks of FLASH_ATTN_DIFFKV executed (page sizes, attention types, non-causal)",
               "flash-attention 0251105a, hopper/flash_api.cpp, mha_fwd (pairs of head dims)",
               "vLLM, v1/attention/backends/flash_attn_diffkv.py (cache of width head_dim + head_dim_v)")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        return FlashAttention3.q_dtype(config)

    @classmethod
    def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
        if config.sinks and package is UPSTREAM:
            return [f"sinks is not supported by flash-attn-3 ({cls.name}: with sglang-kernel)"]
        return []

    @classmethod
    def _head_reasons(cls, config: AttentionConfig) -> list[str]:
        d, dv = config.head_dim, config.v_dim
        if config.mla is not None:
            return []  # the missing feature is the reason, not its width
        if d == dv:
            return [f"head_dim {d} with head_dim_v {dv} is not supported ({cls.name}: unequal dims only)"]
        if d % 8 == dv % 8 == 0 and ((128 < d <= 192 and 96 < dv <= 128) or (d <= 64 and dv <= 512)):
            return []
        return [f"head_dim {d} with head_dim_v {dv} is not supported ({cls.name}: multiples of 8; 129 to 192 with 97 "
                "to 128, or up to 64 with up to 512)"]

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        # The kernel is flash_attn_3's, and so are its rules.
        return [reason.replace("flash_attn_3", cls.name) for reason in
                FlashAttention3.extra_reasons(config, platform, phase)]


class FlashAttentionMLA(AttentionBackend):
    """Absorbed MLA: q is the rope part, `qv` the latent part; k_cache and v_cache are views of one tensor.

    Any number of query tokens, so it also prefills in absorbed form where nothing prefills expanded K and V.
    """

    name = "flash_attn_mla"
    packages = (UPSTREAM, SGLANG, VLLM)
    platforms = {"cuda": ("sm90",)}  # "q_v is only supported for Hopper GPUs"
    # flash_api.cpp: head_size up to 64, head_size_v 256 to 512, fp16 and bf16 only: no fp8 cache.
    head_dim_pairs = ((576, 512),)
    # vLLM 0.33 says multiples of 16; SGLang 0.5.23 runs pages of 1 through the same function. The narrower claim
    # holds until pages of other sizes have run on hardware. 64 is what FlashMLA needs too.
    page_sizes = PageSizes(64, step=16)
    features = frozenset({"mla", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    max_decode_query_len = None  # QueryLenSupport.VARLEN
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    refusals = {"non_causal": "vLLM 0.33 never runs it so (supports_non_causal False)",
                "softcap": "vLLM raises for it with MLA, and no MLA model has one",
                "sliding_window": "vLLM raises for it with MLA, and no MLA model has one",
                "sparse": "flashmla_sparse has it"}
    targets = TARGETS
    sources = ("flash-attention 0251105a, hopper/flash_api.cpp (q_v)",
               "vLLM 0.33, documentation of FLASH_ATTN_MLA (dtypes, page sizes, compute capability)",
               "vLLM, v1/attention/backends/mla/flashattn_mla.py (query lengths, graph level, context parallelism)")

    @classmethod
    def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
        if config.context_parallel_size > 1 and package is not VLLM:
            return [f"context_parallel {config.context_parallel_size} is not supported by {package.distribution} "
                    f"({cls.name}: with vllm)"]
        return []

    @classmethod
    def target(cls, phase: str, package: Package | None, config: AttentionConfig) -> str:
        """vLLM's build has one function for both."""
        return f"{VLLM.module}.flash_attn_varlen_func" if package is VLLM else super().target(phase, package, config)


class DualChunkFlashAttention(AttentionBackend):
    """Qwen2.5-1M's dual-chunk attention: three FlashAttention calls (same, previous and far chunks), LSEs merged.

    Always refused: it computes another function of q and k than attention does, so no other configuration may get
    it, and no field of AttentionConfig asks for it. SGLang 0.5.23 and vLLM 0.33 have both dropped theirs.
    """

    name = "dual_chunk_flash_attn"
    packages = FlashAttention2.packages
    platforms = FlashAttention2.platforms
    head_dims = FlashAttention2.head_dims
    page_sizes = FlashAttention2.page_sizes
    adapter = False
    targets = TARGETS
    sources = ("SGLang 0.5.23, attention_registry.py (gone; only rope leftovers remain)",)

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        return ["dual_chunk_attention_config None is not supported (dual_chunk_flash_attn: only models that have one; "
                "always refused, for no field of AttentionConfig asks for it)"]
