"""TensorRT-LLM's kernels for sm100, as FlashInfer ships them: dense, MLA decode, sparse MLA, MLA prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.backends.nvidia import FLASHINFER, SM100, sinks_lse_reasons
from hal.capabilities import HeadDims, PageSizes

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# trtllm_batch_decode_with_kv_cache_mla allocates its result as bfloat16 whatever the query, and takes no `out` of
# another dtype (flashinfer/mla/_core.py), so float16 in would be bfloat16 out. vLLM lists float16 all the same.
_OUT = ("bfloat16",)
_SM120 = ("sm120", "sm121")
_SM120_HEADS = (8, 16, 32, 64, 128)


class TrtllmMHA(AttentionBackend):
    """trtllm_batch_decode_with_kv_cache and trtllm_batch_context_with_kv_cache.

    SGLang 0.5.23 also takes it on sm90 and sm120, where the decode function is XQA: no LSE, no packed queries,
    and the context function is not built there. HAL leaves those to the other backends. Only the last dimension
    must be contiguous ("the head and batch/page dims can have arbitrary strides"), so the cache stays NHD, as
    SGLang's is; vLLM 0.33 hands over HND.
    """

    name = "trtllm_mha"
    packages = (FLASHINFER,)
    platforms = {"cuda": SM100}
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dims = HeadDims(only=(64, 128, 256, 512))  # vLLM 0.33; FlashInfer's tests run 128, 256 and 512
    # SGLang 0.5.23: these, else it forces 64. vLLM's kernels are given 16, 32 and 64.
    page_sizes = PageSizes(64, only=(16, 32, 64, 128))
    features = frozenset({"sliding_window", "sinks", "return_softmax_lse"})
    max_decode_query_len = None
    graph_level = "uniform batch"
    adapter = False
    refusals = {"softcap": "neither function has such an argument",
                "non_causal": "the decode function has no such argument",
                "context_parallel": "the context function has no argument for the global lengths",
                "attention_chunk": "neither function has such an argument",
                "tree_mask": "`mask` is XQA's alone", "mla": "trtllm_mla has it"}
    targets = {"prefill": "{module}.prefill.trtllm_batch_context_with_kv_cache",
               "decode": "{module}.decode.trtllm_batch_decode_with_kv_cache"}
    sources = ("flashinfer-python 0.7.2.post1, signatures", "FlashInfer fb28d724 (0.6.18), decode.py and prefill.py",
               "vLLM 0.33, documentation of FLASHINFER", "SGLang 0.5.23, attention_registry.py and attention_hook.py")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """fp8 with an fp8 cache: decode has a kernel that widens K and V, the context function has none."""
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        return sinks_lse_reasons(cls.name, config)


class TrtllmMLA(AttentionBackend):
    """trtllm_batch_decode_with_kv_cache_mla: absorbed decode only, so prefill always goes to another backend.

    Head counts that its tiles do not divide go to FlashInfer's CuTe DSL kernel of the same function, and so does
    context parallelism. Query lengths of a batch must be equal, or the queries packed.
    """

    name = "trtllm_mla"
    packages = (FLASHINFER,)
    platforms = {"cuda": SM100}
    phases = ("decode",)
    prefill_with = ("trtllm_ragged",)
    dtypes = _OUT
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dim_pairs = ((576, 512), (320, 256))  # _core.py: "supported dimensions are: ..."
    page_sizes = PageSizes(64, only=(32, 64))
    features = frozenset({"mla", "sinks", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    max_decode_query_len = None
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    # vLLM 0.33 serves non-causal by flattening queries to single-token rows; that is its adapter's doing.
    refusals = {"non_causal": "the function has no such argument", "sparse": "flashinfer_mla_sparse has it",
                "softcap": "the function has no such argument", "sliding_window": "the function has no such argument"}
    targets = {"decode": "{module}.mla.trtllm_batch_decode_with_kv_cache_mla"}
    sources = ("flashinfer-python 0.7.2.post1, signatures",
               "FlashInfer fb28d724 (0.6.18), flashinfer/mla/_core.py (dims, sinks, DCP, dtype of the result)",
               "vLLM 0.33, documentation of FLASHINFER_MLA", "SGLang 0.5.23, attention_registry.py (page 32/64)",
               "vLLM, v1/attention/backends/mla/flashinfer_mla.py (graph level, head counts)")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """The cache's: "uses the query-compatible dense dtype"."""
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = sinks_lse_reasons(cls.name, config)
        # Context parallelism and head counts between 64 and 128 go to CuTe DSL's kernel, which is 512 + 64 alone.
        cute = config.context_parallel_size > 1 or 64 < config.num_heads < 128
        if cute and (config.head_dim, config.v_dim) != (576, 512):
            reasons.append(f"head_dim {config.head_dim} with num_heads {config.num_heads} and context_parallel "
                           f"{config.context_parallel_size} is not supported (trtllm_mla: 576, or one rank and up to "
                           "64 heads or from 128)")
        if config.sinks and config.context_parallel_size > 1:
            reasons.append(f"sinks with context_parallel {config.context_parallel_size} is not supported (trtllm_mla: "
                           "one of the two)")
        return reasons


class FlashInferMLASparse(AttentionBackend):
    """The same function with sparse_mla_top_k: page_table then holds the slots that each query token sees.

    On sm120 FlashInfer has a kernel of its own behind it, over fp8_ds_mla. vLLM 0.33 has another one for sm90,
    last in its order; there flashmla_sparse is HAL's answer.
    """

    name = "flashinfer_mla_sparse"
    packages = (FLASHINFER,)
    # vLLM 0.33 executed: 10.0 and 10.3, and FLASHINFER_MLA_SPARSE_SM120 for 12.0 and 12.1.
    platforms = {"cuda": (*SM100, *_SM120)}
    dtypes = _OUT
    kv_cache_dtypes = ("fp8_e4m3", "fp8_ds_mla")
    head_dim_pairs = ((576, 512),)
    # TensorRT-LLM's MLA pages are 32 or 64; vLLM 0.33 executed accepts multiples and divides them.
    page_sizes = PageSizes(64, only=(32, 64))
    features = frozenset({"mla", "sparse", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla", "sparse"})
    max_decode_query_len = None
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    targets = {"prefill": "{module}.mla.trtllm_batch_decode_with_kv_cache_mla",
               "decode": "{module}.mla.trtllm_batch_decode_with_kv_cache_mla"}
    sources = ("vLLM 0.33, checks of FLASHINFER_MLA_SPARSE and FLASHINFER_MLA_SPARSE_SM120 executed",
               "FlashInfer fb28d724 (0.6.18), flashinfer/mla/_core.py")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        stored, arch, reasons = config.stored_dtype, platform.arch, []
        if arch in SM100 and stored == "fp8_ds_mla":
            reasons.append(f"kv_cache_dtype fp8_ds_mla on {arch} is not supported (flashinfer_mla_sparse: auto or "
                           "fp8_e4m3 there, fp8_ds_mla on sm120 and sm121)")
        if arch in _SM120:
            # "SM120 sparse MLA v32/GLM": a packed uint8 cache of 656 bytes a token.
            if stored != "fp8_ds_mla":
                reasons.append(f"kv_cache_dtype {stored} on {arch} is not supported (flashinfer_mla_sparse: "
                               "fp8_ds_mla)")
            # _sparse_mla_sm120.py: one page size, and head counts that have a decode kernel.
            if config.page_size not in (None, 64):
                reasons.append(f"page_size {config.page_size} on {arch} is not supported (flashinfer_mla_sparse: 64)")
            if config.num_heads not in _SM120_HEADS:
                reasons.append(f"num_heads {config.num_heads} on {arch} is not supported (flashinfer_mla_sparse: "
                               f"{', '.join(map(str, _SM120_HEADS))})")
            if config.context_parallel_size > 1:
                reasons.append(f"context_parallel {config.context_parallel_size} on {arch} is not supported "
                               f"(flashinfer_mla_sparse: {', '.join(SM100)})")
        return reasons


class TrtllmRagged(AttentionBackend):
    """trtllm_ragged_attention_deepseek: MLA prefill over expanded K and V. It never reads the cache."""

    name = "trtllm_ragged"
    packages = (FLASHINFER,)
    platforms = {"cuda": SM100}
    phases = ("prefill",)
    reads_cache = False
    requires = frozenset({"mla"})
    # prefill.py: "Supported: (192, 192, 128) for DeepSeek-R1, (128, 128, 128), or (256, 256, 256) for GLM-5".
    mla_prefill = ((192, 128), (128, 128), (256, 256))
    # Each rank of context parallelism expands the tokens it was given, all of them.
    features = frozenset({"non_causal", "return_softmax_lse", "context_parallel"})
    adapter = False
    refusals = {"sparse": "it attends to every key; flashinfer_mla_sparse has it",
                "sinks": "with empty key rows it raises (\"attention sinks are provided\")"}
    targets = {"prefill": "{module}.prefill.trtllm_ragged_attention_deepseek"}
    sources = ("flashinfer-python 0.7.2.post1, signatures", "FlashInfer fb28d724 (0.6.18), prefill.py (dims)",
               "vLLM 0.33, documentation of MLA prefill (TRTLLM_RAGGED)")
