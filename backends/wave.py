"""Wave: attention templates compiled by IREE for CDNA3 and CDNA4, as SGLang uses them. Experimental."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.capabilities import HeadDims, PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# What SGLang's tests run, phase by phase.
_DIMS = {"prefill": (128,), "decode": (64, 80)}


class Wave(AttentionBackend):
    """wave_lang's extend and paged-decode templates.

    Declared is what SGLang's own tests of them run: float16, head dims 64 and 80 in decode, 128 in extend. So it
    serves no model alone, only one phase beside another backend. SGLang accepts any dtype and head dim and would
    compile for it.
    """

    name = "wave"
    packages = (Package("wave-lang", "wave_lang.kernel.wave.templates.paged_decode_attention",
                        "pip install wave-lang", metadata=("wave_lang",)),)
    platforms = {"rocm": ("gfx942", "gfx950")}
    dtypes = ("float16",)
    head_dims = HeadDims(only=(64, 80, 128))
    page_sizes = PageSizes(1, only=(1,))
    refusals = {"sliding_window": "neither template has one, and SGLang's wave backend does not pass it",
                "sinks": "neither template has them", "softcap": "no test runs its logit_cap",
                "non_causal": "SGLang calls it with is_causal=True only",
                "return_softmax_lse": "decode keeps it in its partial results"}
    graph_level = "single-token decode"
    adapter = False
    targets = {"prefill": "wave_lang.kernel.wave.templates.extend_attention.get_extend_attention_kernel",
               "decode": "{module}.get_paged_decode_attention_kernels"}
    sources = ("SGLang 0.5.23, attention_registry.py (ROCm, experimental)",
               "SGLang 08300d1990, layers/attention/wave_backend.py and wave_ops/ (page size 1)",
               "SGLang, test_wave_attention_kernels.py (dtype, head dims)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.head_dim not in cls.head_dims or config.head_dim in _DIMS.get(phase, ()):
            return []
        ran = "; ".join(f"{', '.join(map(str, dims))} in {name}" for name, dims in _DIMS.items())
        return [f"head_dim {config.head_dim} in {phase} is not supported (wave: {ran})"]
