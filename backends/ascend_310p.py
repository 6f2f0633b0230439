"""Huawei Atlas inference NPUs (310P): ops of Ascend's transformer library (ATB) over a cache of 16-wide tiles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.ascend import Ascend
from hal.backends.ascend_rules import RULES, reasons
from hal.capabilities import HeadDims, PageSizes

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

_OPS = "vllm-ascend 182b75ea hands 310P's ops nothing of it"


class Ascend310P(AttentionBackend):
    """Prefill: _npu_flash_attention; decode: _npu_paged_attention; both at once: _npu_paged_attention_splitfuse.

    Causal alone. No adapter yet: the tests' fake NPU has no ATB, and the ops' masks and caches are in a format (NZ)
    whose use here could be checked on a chip only.
    """

    name = "ascend_310p"
    # 2.13.0: the oldest release with a header that tells what these ops take.
    packages = (dataclasses.replace(Ascend.packages[0], minimum="2.13.0"),)
    platforms = {"npu": RULES["310P: arch"].limit}
    dtypes = RULES["310P: dtype"].limit
    head_dims = HeadDims(low=16, high=RULES["310P: head_dim"].limit, step=16)
    page_sizes = PageSizes(RULES["310P: page_size"].limit[0], only=RULES["310P: page_size"].limit)
    refusals = dict.fromkeys(("sliding_window", "sinks", "non_causal", "return_softmax_lse"), _OPS)
    max_decode_query_len = None  # AscendAttentionState.SpecDecoding goes through splitfuse
    # get_kv_cache_shape there: no other backend reads it
    kv_layout = "[num_pages, num_kv_heads * head_dim / 16, page_size, 16], format NZ"
    adapter = False
    targets = {"prefill": "torch_npu._npu_flash_attention", "decode": "torch_npu._npu_paged_attention"}
    sources = ("vllm-ascend 182b75ea, vllm_ascend/_310p/attention",
               "Ascend ATB ddcc8b62, paged_attention_operation.cpp", "torch_npu 2.13.0, AtbOpsInterface.h")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        page_size = config.page_size if config.page_size is not None else min(RULES["310P: page_size"].limit)
        return list(reasons(cls.name, platform.arch, {"310P: head_dim * page_size": config.head_dim * page_size}))
