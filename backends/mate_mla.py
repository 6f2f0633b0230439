"""Moore Threads' MATE: multi-head latent attention on MUSA GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.backends.mate import Mate
from hal.capabilities import PageSizes

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# tests/test_mla.py; 128 is an assembly kernel (csrc/mla_pybind.mu, dispatch_mla_impl_for_fa_interface).
_HEADS = (8, 16, 32, 64, 128)
_IGNORED = "the MLA branch of flash_attn_with_kvcache ignores it"


class MateMLA(AttentionBackend):
    """Absorbed attention by flash_attn_with_kvcache with `qv` (512) beside q (64); prefill over expanded K and V.

    The MLA branch takes its scheduler metadata as (workspace, is_inited): a 1-D uint8 tensor on q's device, one per
    device and stream, computed once a step; without it the C++ side raises "workspace must be provided".
    """

    name = "mate_mla"
    packages = Mate.packages
    platforms = {"musa": ("mp31",)}  # check_mp31
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(64, only=(64,))  # "page size only supports 64"; the dense kernel takes any
    features = frozenset({"mla", "return_softmax_lse", "non_causal"})
    requires = frozenset({"mla"})
    mla_prefill = ((192, 128),)
    refusals = {"sliding_window": _IGNORED, "softcap": _IGNORED, "sinks": _IGNORED, "attention_chunk": _IGNORED,
                "context_parallel": _IGNORED,
                "sparse": "mate.flashmla has kernels of its own for it, over fp8_ds_mla"}
    max_decode_query_len = None  # the tests run 1, 3 and 5 query tokens, packed ones too
    # For 128 heads all strides must be multiples of 576, so two buffers would not do (csrc/flash_mla_asm.mu).
    kv_layout = MLA_JOINT
    adapter = False
    targets = {"prefill": "{module}.flash_attn_varlen_func", "decode": "{module}.flash_attn_with_kvcache"}
    sources = ("MooreThreads/mate 3f58cc3, mate/mha_interface.py (is_mla_decode)",
               "csrc/mla_pybind.mu and csrc/flash_mla_asm.mu (page size, dims, strides, dense fp8)",
               "tests/test_mla.py (heads, query lengths, masks)")

    @classmethod
    def _expands(cls, config: AttentionConfig, phase: str) -> bool:
        return config.mla is not None and phase == "prefill"

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.mla is None or phase == "prefill" or config.num_heads in _HEADS:
            return []
        return [f"num_heads {config.num_heads} is not supported (mate_mla: {', '.join(map(str, _HEADS))})"]
