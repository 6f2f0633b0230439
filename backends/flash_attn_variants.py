"""Backends made of FlashAttention 2 and 3: unequal head dims, absorbed MLA, dual-chunk attention."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import flash_attn_v3 as v3
from hal.backends.flash_attn import TARGETS, FlashAttention2, FlashAttention3
from hal.backends.flash_attn_v3 import SGLANG, UPSTREAM, VLLM
from hal.backends.layouts import MLA_JOINT
from hal.capabilities import HeadDims, PageSizes
from hal.config import MLADims
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform


class FlashAttentionDiffKV(FlashAttention3):
    """K and V of unequal head dims, side by side in one cache tensor of width head_dim + head_dim_v.

    The two caches are strided views, so the layout is the ordinary one. FlashAttention 3 alone: version 2 checks
    that V is as wide as K (flash_api.cpp, CHECK_SHAPE(v, .., head_size)), although vLLM 0.33 accepts
    FLASH_ATTN_DIFFKV from 8.0 on; version 4's unequal dims are flash_attn_4's own.
    """

    name = "flash_attn_diffkv"
    kv_cache_dtypes = ()  # vLLM 0.33, executed: auto, float16, bfloat16
    head_dims = HeadDims()  # by the rule of head_reasons
    # vLLM 0.33 executed: multiples of 16 (doc: any). The kernel takes any; kept to what is run.
    page_sizes = PageSizes(64, step=16)
    calls = FlashAttention3.calls - {"descale_per_head"}
    mla_prefill = ()
    sources = ("vLLM 0.33, checks of FLASH_ATTN_DIFFKV executed (page sizes, attention types, non-causal)",
               "flash-attention 0251105a, hopper/flash_api.cpp, mha_fwd (pairs of head dims)",
               "vLLM, v1/attention/backends/flash_attn_diffkv.py (cache of width head_dim + head_dim_v)")

    @classmethod
    def head_reasons(cls, config: AttentionConfig) -> list[str]:
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
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        """Two views of one zero-filled tensor [num_pages, page_size, num_kv_heads, head_dim + head_dim_v]."""
        return joint_cache(config, device, (num_pages, page_size, config.num_kv_heads), config.head_dim, config.v_dim)


class FlashAttentionMLA(AttentionBackend):
    """Absorbed MLA: q is the rope part, `qv` the latent part; k_cache and v_cache are views of one tensor.

    Any number of query tokens, so it also prefills in absorbed form where nothing prefills expanded K and V. HAL
    appends, for vLLM's function can't; rotary_cos and cache_leftpad it can't take either, so nobody's does.
    """

    name = "flash_attn_mla"
    packages = (UPSTREAM, SGLANG, VLLM)
    platforms = {"cuda": ("sm90",)}  # "q_v is only supported for Hopper GPUs"
    # flash_api.cpp: head_size up to 64, head_size_v 256 to 512, fp16 and bf16 only: no fp8 cache.
    head_dim_pairs = ((576, 512),)
    # vLLM 0.33 says multiples of 16; SGLang 0.5.23 runs pages of 1 through the same function. The narrower claim
    # holds until pages of other sizes have run on hardware. 64 is what FlashMLA needs too.
    page_sizes = PageSizes(64, step=16)
    features = frozenset({"mla", "return_softmax_lse", "context_parallel", "deterministic"})
    calls = frozenset({"append", "cache_batch_idx", "unpaged", "strided_cache", "packed_decode", "varlen_qv"})
    requires = frozenset({"mla"})
    max_decode_query_len = None  # QueryLenSupport.VARLEN
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
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

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        assert package is not None
        vendor = importlib.import_module(package.module)
        build = v3.build_of(vendor, package, cls.name)
        kvcache = v3.with_kvcache(vendor, config, build, cls.name, mla=True)
        return Bound(kvcache, v3.varlen_func(vendor, config, build, cls.name, kvcache, mla=True))

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        """Zero-filled (rope, latent): views of one tensor [num_pages, page_size, 1, latent + rope], latent first."""
        assert isinstance(config.mla, MLADims)
        latent, rope = joint_cache(config, device, (num_pages, page_size, 1), config.mla.kv_lora_rank,
                                   config.mla.qk_rope_head_dim)
        return rope, latent


def joint_cache(config: AttentionConfig, device: str, shape: tuple[int, ...], first: int,
                second: int) -> tuple[Any, Any]:
    """Views [*shape, first] and [*shape, second] of one zero-filled tensor."""
    import torch

    both = torch.zeros((*shape, first + second), dtype=getattr(torch, config.stored_dtype), device=device)
    return both[..., :first], both[..., first:]


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
