"""HAL's own Triton kernels, dense and MLA. Not written yet: what they are to serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.backends.nvidia import SM75_UP, sm75_reasons
from hal.capabilities import HeadDims, PageSizes
from hal.config import ATTENTION_TYPES, DTYPES
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

TRITON = Package("triton", "triton", "install the triton that this torch was built with")
# CUDA from sm75 on, as vLLM 0.33 executed for TRITON_ATTN (Triton's README says 8.0; offline compilation was tried
# from sm80 on). MUSA and NPU have Tritons of their own: they follow when the kernels were compiled with those.
PLATFORMS = {"cuda": SM75_UP, "rocm": ()}
# Triton has no type fp8e4nv there (compiled offline with 3.6 to 3.9; amd/backend/compiler.py, supported_fp8_dtypes).
_NO_E4M3 = ("sm75", "sm80", "sm86", "sm87", "gfx90a", "gfx1100")


def _e4m3_reasons(name: str, config: AttentionConfig, platform: Platform) -> list[str]:
    if config.stored_dtype == "fp8_e4m3" and platform.arch in _NO_E4M3:
        return [f"kv_cache_dtype fp8_e4m3 on {platform.arch} is not supported ({name}: not on "
                f"{', '.join(_NO_E4M3)}, where Triton has no such type)"]
    return []


class Triton(AttentionBackend):
    """One kernel for prefill, extend and decode over pages."""

    name = "triton"
    packages = (TRITON,)
    platforms = PLATFORMS
    dtypes = DTYPES
    kv_cache_dtypes = ("fp8_e4m3", "fp8_e5m2")
    head_dims = HeadDims(low=32, high=576, step=8)  # vLLM 0.33 executed
    head_dim_pairs = None  # TRITON_ATTN_DIFFKV
    # Any: the kernel gathers by page table. vLLM's multiples of 16 are its loads', SGLang runs 1.
    page_sizes = PageSizes(16)
    features = frozenset({"sliding_window", "attention_chunk", "softcap", "sinks", "tree_mask", "mm_prefix",
                          "non_causal", "return_softmax_lse", "deterministic"})
    # SGLang's Triton prefills expanded MLA so; 256/256 and 128/128 are vLLM 0.33's other pairs.
    mla_prefill = ((192, 128), (256, 256), (128, 128))
    attention_types = ATTENTION_TYPES  # vLLM 0.33 executed: all; SGLang 0.5.23: no encoder-decoder
    max_decode_query_len = None
    graph_level = "always"
    adapter = False
    refusals = {"mla": "triton_mla has it",
                "context_parallel": "vLLM 0.33 executed: supports_dcp False"}
    targets = {"prefill": "hal.kernels.triton.attention", "decode": "hal.kernels.triton.attention"}
    sources = ("vLLM 0.33, checks of TRITON_ATTN and TRITON_ATTN_DIFFKV executed",
               "SGLang 0.5.23, attention_registry.py", "Triton 3.6 to 3.9, compiled offline (types per target)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reads = cls.reads(config, phase)
        return sm75_reasons(cls.name, config, platform) + (_e4m3_reasons(cls.name, config, platform) if reads else [])


class TritonMLA(AttentionBackend):
    """Absorbed MLA with the keys split among programs; any number of query tokens."""

    name = "triton_mla"
    packages = (TRITON,)
    platforms = PLATFORMS
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dim_pairs = None
    page_sizes = PageSizes(64)  # any; 64 is what the vendors' MLA kernels want
    features = frozenset({"mla", "non_causal", "return_softmax_lse", "context_parallel", "deterministic"})
    requires = frozenset({"mla"})
    max_decode_query_len = None
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"
    adapter = False
    targets = {"prefill": "hal.kernels.triton.mla", "decode": "hal.kernels.triton.mla"}
    sources = ("vLLM 0.33, checks of TRITON_MLA executed",)

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        return sm75_reasons(cls.name, config, platform) + _e4m3_reasons(cls.name, config, platform)
