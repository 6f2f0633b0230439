"""vLLM's attention on AMD GPUs: paged decode in HIP where a kernel fits, Triton elsewhere; Triton prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.aiter_triton import fp8_reasons
from hal.backends.layouts import ROCM_PAGED
from hal.capabilities import HeadDims, PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform


class RocmAttn(AttentionBackend):
    """chunked_prefill_paged_decode, which picks between the HIP kernel and Triton by itself.

    The HIP kernel has pages of 16 and 32, head dims of 64 and 128 (RDNA: 16, 128, and 3 to 16 query heads per KV
    head) and no window (rocm.py, use_rocm_custom_paged_attention); the rest runs in Triton over the same cache.
    Page sizes: older documents say 16, 32 and 544; 0.33's check, executed, answers multiples of 16, 544 being one
    that a hybrid model asked for. fp8_e5m2 passes vLLM's check too but not its kernel (csrc/rocm/attention.cu:
    "fp8" or "fp8_e4m3"), and its Triton path views the cache as e4m3.
    """

    name = "rocm_attn"
    packages = (Package("vllm", "vllm.v1.attention.ops.chunked_prefill_paged_decode", "install vLLM built for ROCm",
                        minimum="0.33.0"),)
    platforms = {"rocm": ()}
    dtypes = ("float16", "bfloat16", "float32")
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dims = HeadDims(only=(32, 64, 80, 96, 128, 160, 192, 224, 256))
    page_sizes = PageSizes(16, step=16)
    features = frozenset({"sliding_window", "non_causal"})
    refusals = {"sinks": "the HIP kernel has none (RocmAttentionBackend.supports_sink)",
                "softcap": "RocmAttentionImpl stores it and does not pass it on",
                "return_softmax_lse": "neither kernel returns one",
                "mm_prefix": "not implemented (RocmAttentionBackend.supports_mm_prefix)"}
    attention_types = ("decoder", "encoder", "encoder_only")
    # Longer queries go to context_attention_fwd, which wants the new tokens' K and V beside the cache; after
    # write_kv_cache they are in it.
    max_decode_query_len = 1
    kv_layout = ROCM_PAGED
    graph_level = "always"
    adapter = False
    targets = {"prefill": "{module}.chunked_prefill_paged_decode", "decode": "{module}.chunked_prefill_paged_decode"}
    sources = ("vLLM 0.33 executed: ROCM_ATTN (sizes, dtypes, types, graph)",
               "vLLM main of autumn 2026, v1/attention/backends/rocm_attn.py (softcap, layout) and platforms/rocm.py",
               "csrc/rocm/attention.cu (page sizes, fp8)",
               "v1/attention/ops/triton_prefill_attention.py (encoders: windows)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = fp8_reasons(cls.name, config, platform)
        if config.stored_dtype.startswith("fp8") and config.attention_type != "decoder":
            reasons.append(f"kv_cache_dtype {config.stored_dtype} with attention_type {config.attention_type} is not "
                           "supported (rocm_attn: decoder)")  # _forward_encoder_attention raises
        if config.sliding_window is not None and not (config.causal and config.attention_type == "decoder"):
            # chunked_prefill_paged_decode has a left bound alone. vLLM sends encoders to a Triton kernel with both,
            # but sets the right one to 0 (its newest source: W - 1), which that kernel takes for none.
            reasons.append(f"sliding_window {config.sliding_window} with attention_type {config.attention_type} and "
                           f"causal {config.causal} is not supported (rocm_attn: causal windows of a decoder, it has "
                           "nothing for the right)")
        return reasons
