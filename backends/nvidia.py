"""What declarations for NVIDIA GPUs share: lists of archs, FlashInfer's and vLLM's packages, rules of a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

SM80_UP = ("sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
SM75_UP = ("sm75", *SM80_UP)
# FlashInfer and FlashMLA call these two one family, "SM100": TensorRT-LLM's kernels are built for both.
SM100 = ("sm100", "sm103")

# The minimum is the oldest release whose source was read; 0.7.2.post1 is the newest (its signatures).
FLASHINFER = Package("flashinfer-python", "flashinfer", "pip install flashinfer-python", minimum="0.6.18",
                     metadata=("flashinfer_python",))
VLLM_INSTALL = "pip install vllm"


def sm75_reasons(name: str, config: AttentionConfig, platform: Platform) -> list[str]:
    """bfloat16 before sm80: PTX has no bf16 mma there (FlashInfer 0.6.18, include/flashinfer/mma.cuh, asserts)."""
    if platform.arch == "sm75" and config.dtype == "bfloat16":
        return [f"dtype bfloat16 on sm75 is not supported ({name}: float16 there, bfloat16 on sm80 and newer)"]
    return []


def single_token_shard_reasons(name: str, config: AttentionConfig, phase: str) -> list[str]:
    """What a shard of the cache makes wrong where the kernel has no argument for global lengths.

    Rank r holds tokens r, r + n, ...: neither the causal edge of several queries nor a window is where the shard's
    own length puts it.
    """
    most, size = config.max_decode_query_len, config.context_parallel_size
    if size > 1 and config.sliding_window is not None:
        return [f"sliding_window {config.sliding_window} with context_parallel {size} is not supported ({name}: no "
                "window, it has no argument for the global lengths)"]
    if phase == "decode" and size > 1 and most > 1:
        return [f"max_decode_query_len {most} with context_parallel {size} is not supported ({name}: 1, it has no "
                "argument for the global lengths)"]
    return []


def sinks_lse_reasons(name: str, config: AttentionConfig) -> list[str]:
    """FlashInfer does not document whether its LSE holds the sink, so the two are not offered together."""
    if config.sinks and config.return_softmax_lse:
        return [f"return_softmax_lse with sinks is not supported ({name}: one of the two; whether the LSE holds "
                "the sink is not documented)"]
    return []


def expanded_only(name: str) -> Callable[..., Any]:
    """The kvcache function of a backend that serves MLA by its varlen function alone."""

    def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"flash_attn_with_kvcache is not supported for MLA ({name}: flash_attn_varlen_func over "
                         "expanded K and V; the decode backend reads the latent cache)")

    return flash_attn_with_kvcache
