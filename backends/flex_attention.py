"""torch's FlexAttention: any mask and score function, compiled by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.nvidia import SM75_UP, sm75_reasons
from hal.capabilities import HeadDims, PageSizes
from hal.config import DTYPES

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform


class FlexAttention(AttentionBackend):
    """Masks are a BlockMask over physical pages, made once a step.

    No package: on GPUs it is compiled by Triton, which torch's wheels for them require.
    """

    name = "flex_attention"
    platforms = {"cuda": SM75_UP, "rocm": (), "cpu": ()}
    dtypes = DTYPES
    head_dims = HeadDims(low=16, high=576, step=8)  # vLLM 0.33 executed
    page_sizes = PageSizes(16, step=16)
    # tree_mask, mm_prefix, attention_chunk and sliding_window are mask_mod, softcap is score_mod.
    features = frozenset({"sliding_window", "attention_chunk", "softcap", "tree_mask", "mm_prefix", "non_causal",
                          "return_softmax_lse", "deterministic"})
    # vLLM 0.33 executed. SGLang 0.5.23's has no non-causal form; torch's function has.
    attention_types = ("decoder", "encoder_only")
    max_decode_query_len = None
    # vLLM 0.33 executed says ALWAYS, with buffers of its own for the mask; SGLang 0.5.23 turns graphs off. A
    # graph is promised when HAL's adapter holds such buffers.
    graph_level = "never"
    adapter = False
    refusals = {"sinks": "vLLM 0.33 executed: supports_sink False", "mla": "its keys and values are separate tensors",
                "context_parallel": "vLLM 0.33 executed: supports_dcp False"}
    targets = {"prefill": "torch.nn.attention.flex_attention.flex_attention",
               "decode": "torch.nn.attention.flex_attention.flex_attention"}
    sources = ("vLLM 0.33, checks of FLEX_ATTENTION executed", "torch 2.13.0, signatures",
               "SGLang 0.5.23, attention_registry.py")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        return sm75_reasons(cls.name, config, platform)
