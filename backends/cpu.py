"""HAL's own C++ kernels for CPUs. Not built yet: what they are to serve."""

from __future__ import annotations

from hal.backend import AttentionBackend
from hal.capabilities import HeadDims, PageSizes
from hal.config import ATTENTION_TYPES, DTYPES


class CPU(AttentionBackend):
    """Paged decode and prefill, vectorised for what the CPU has; lengths are read on the host."""

    name = "cpu"
    platforms = {"cpu": ()}
    dtypes = DTYPES
    head_dims = HeadDims(low=32, high=256)  # vLLM's CPU_ATTN also has 512
    page_sizes = PageSizes(16)  # any; vLLM's multiples of 32 are those of its cache layout
    # No sinks: vLLM 0.33's CPU_ATTN, executed, has none either. torch serves them.
    features = frozenset({"sliding_window", "softcap", "tree_mask", "non_causal", "return_softmax_lse"})
    attention_types = ATTENTION_TYPES
    max_decode_query_len = None
    adapter = False
    refusals = {"mla": "torch serves it on CPUs"}
    targets = {"prefill": "hal.kernels.cpu.varlen", "decode": "hal.kernels.cpu.paged"}
    sources = ("vLLM 0.33, checks of CPU_ATTN executed",)
