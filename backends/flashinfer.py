"""FlashInfer on NVIDIA GPUs: its own kernels, dense and MLA, planned once a step and run once a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.backends.nvidia import FLASHINFER, SM75_UP, single_token_shard_reasons, sm75_reasons
from hal.capabilities import HeadDims, PageSizes

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.packages import Package
    from hal.platform import Platform


class FlashInfer(AttentionBackend):
    """BatchDecode and BatchPrefillWithPagedKVCacheWrapper: the FlashAttention-2 and -3 templates.

    It takes NHD and HND caches alike, with any strides of pages and heads; vLLM 0.33 hands over HND on sm100.
    HAL's caches are NHD, so that prefill and decode may be of different families.
    """

    name = "flashinfer"
    packages = (FLASHINFER,)
    # README, "GPU Support": SM 7.5 to 12.1. vLLM 0.33 documents 8.x to 12.x; FlashInfer's own word counts.
    platforms = {"cuda": SM75_UP}
    kv_cache_dtypes = ("fp8_e4m3", "fp8_e5m2")
    # Both wrappers' tests run 128 and 256, prefill 64 too, decode 512 too; vLLM 0.33 documents 512 as well.
    head_dims = HeadDims(only=(64, 128, 256))
    # Any: tests run 1, 5, 8 and 16, SGLang runs 1. vLLM names 16 to 1024, which is its own choice.
    page_sizes = PageSizes(16)
    # tree_mask: custom_mask of plan(), within which window and softcap still hold (attention/variants.cuh).
    features = frozenset({"sliding_window", "softcap", "tree_mask", "non_causal", "return_softmax_lse",
                          "context_parallel", "deterministic"})
    # BatchPrefillWithRaggedKVCacheWrapper (tests/attention/test_deepseek_mla.py).
    mla_prefill = ((192, 128),)
    # vLLM 0.33 documents the decoder alone; SGLang 0.5.23 takes it by default for Whisper. The wrappers need
    # nothing but causal=False.
    attention_types = ("decoder", "encoder", "encoder_only", "encoder_decoder")
    max_decode_query_len = None
    # vLLM's builder; several tokens go through the prefill wrapper, which vLLM does not capture.
    graph_level = "single-token decode"
    adapter = False
    refusals = {"sinks": "vLLM and SGLang refuse them without TensorRT-LLM's kernels; trtllm_mha has them",
                "attention_chunk": "plan() has no such argument", "mla": "flashinfer_mla has it",
                "mm_prefix": "vLLM 0.33 refuses it (supports_mm_prefix False)"}
    targets = {"prefill": "{module}.prefill.BatchPrefillWithPagedKVCacheWrapper.run",
               "decode": "{module}.decode.BatchDecodeWithPagedKVCacheWrapper.run"}
    sources = ("flashinfer-python 0.7.2.post1, signatures", "FlashInfer fb28d724 (0.6.18), README (GPUs)",
               "tests/attention/test_batch_prefill_kernels.py, test_batch_decode_kernels.py (head dims, page sizes)",
               "vLLM 0.33, documentation of FLASHINFER", "SGLang 0.5.23, attention_registry.py and attention_hook.py")

    @classmethod
    def target(cls, phase: str, package: Package | None, config: AttentionConfig) -> str:
        """Expanded MLA has a wrapper of its own: ragged keys and values, no cache."""
        if cls._expands(config, phase):
            return f"{FLASHINFER.module}.prefill.BatchPrefillWithRaggedKVCacheWrapper.run"
        return super().target(phase, package, config)

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        # Prefill over a shard needs plan()'s custom_mask (as vLLM's DCP builds it): the adapter's business.
        reasons = sm75_reasons(cls.name, config, platform) + single_token_shard_reasons(cls.name, config, phase)
        if config.sliding_window is not None and not config.causal:
            reasons.append(f"sliding_window {config.sliding_window} with non_causal is not supported (flashinfer: "
                           "causal windows, plan() has window_left and nothing for the right)")
        return reasons


class FlashInferMLA(AttentionBackend):
    """BatchMLAPagedAttentionWrapper: absorbed MLA through the FlashAttention-2 template, on sm90 also the third's.

    On sm100 it still runs but says itself that it "gives poor MLA decode performance": trtllm_mla's place.
    """

    name = "flashinfer_mla"
    packages = (FLASHINFER,)
    platforms = {"cuda": ("sm80", "sm86", "sm87", "sm89", "sm90", "sm120", "sm121")}
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dim_pairs = ((576, 512),)
    # Any: tests run 1, 16, 32 and 64. vLLM's 32 and 64 are those of trtllm_mla, under the same name there.
    page_sizes = PageSizes(64)
    features = frozenset({"mla", "non_causal", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    max_decode_query_len = None  # "decode, and incremental prefill"
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    refusals = {"sinks": "the fa2 and fa3 templates of the wrapper have none", "sparse": "flashinfer_mla_sparse has it",
                "softcap": "plan() of the MLA wrapper has no such argument",
                "sliding_window": "plan() of the MLA wrapper has no such argument"}
    targets = {"prefill": "{module}.mla.BatchMLAPagedAttentionWrapper.run",
               "decode": "{module}.mla.BatchMLAPagedAttentionWrapper.run"}
    sources = ("flashinfer-python 0.7.2.post1, signatures", "FlashInfer fb28d724 (0.6.18), flashinfer/mla/_core.py",
               "tests/attention/test_deepseek_mla.py (page sizes, causal or not)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = single_token_shard_reasons(cls.name, config, phase)
        if phase == "prefill" and config.context_parallel_size > 1:
            # Absorbed prefill reads the shard with many causal tokens; the MLA wrapper takes no custom mask either.
            reasons.append(f"context_parallel {config.context_parallel_size} in prefill is not supported "
                           "(flashinfer_mla: decode with one token a sequence)")
        if config.stored_dtype == "fp8_e4m3" and platform.arch != "sm90":
            reasons.append(f"kv_cache_dtype fp8_e4m3 on {platform.arch} is not supported (flashinfer_mla: sm90)")
        if config.stored_dtype == "fp8_e4m3" and config.dtype != "bfloat16":
            reasons.append(f"kv_cache_dtype fp8_e4m3 with dtype {config.dtype} is not supported (flashinfer_mla: "
                           "bfloat16)")
        return reasons
