"""Huawei Ascend NPUs: torch_npu's fused inference attention for multi-head latent attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.ascend import Ascend, missing_op_reasons
from hal.backends.layouts import MLA_APART
from hal.capabilities import PageSizes

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# Query heads over the latent head, from the op's document (CANN before the second half of 2026; newer ones take any:
# vllm-ascend#15558). vllm-ascend pads to these; SGLang sends fewer than 8 to _npu_paged_attention_mla, which copies
# the whole cache in every layer, so the document wins.
_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)


class AscendMLA(AttentionBackend):
    """Prefill: npu_fused_infer_attention_score in TND with query_rope and key_rope (128 + 64, v 128), sparse_mode 3.

    Decode: its version 2, absorbed (512 + 64), over pages of 128 tokens; version 1's document excludes the LSE for
    512. Partial results merge through npu_attention_update. bfloat16 only: TND with rope takes nothing else, and
    vllm-ascend converts float16 there and back (mla_v1.py, need_dtype_convert).
    """

    name = "ascend_mla"
    packages = Ascend.packages
    platforms = Ascend.platforms
    dtypes = ("bfloat16",)
    head_dim_pairs = ((576, 512),)
    page_sizes = PageSizes(128, only=(128,))  # vllm-ascend's only size; the op: multiples of 16 up to 1024
    features = frozenset({"mla", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    mla_prefill = ((192, 128),)
    refusals = {**Ascend.refusals,
                "sliding_window": "with absorbed MLA the op takes sparse modes 0, 3 and 4 without saying what 4 means",
                "sinks": "learnable_sink is not for absorbed MLA decode",
                "sparse": "npu_sparse_flash_attention has it, which is not this backend's op"}
    max_decode_query_len = 16  # vllm-ascend asserts it: the limit of TND in decode
    # Two buffers, latent and rope, each contiguous: what memory_pool_npu.py and vllm-ascend allocate.
    kv_layout = MLA_APART
    graph_level = "uniform batch"  # AscendMLAMetadataBuilder.get_cudagraph_support
    adapter = False
    targets = {"prefill": "torch_npu.npu_fused_infer_attention_score",
               "decode": "torch_npu.npu_fused_infer_attention_score_v2"}
    sources = ("Ascend op-plugin, documents of torch_npu.npu_fused_infer_attention_score and _v2",
               "torch_npu 2.13.0, op schemas", "vllm-ascend 182b75ea, vllm_ascend/attention/mla_v1.py",
               "vllm-ascend 182b75ea, attention/context_parallel/mla_cp.py", "SGLang 0.5.23, ascend_backend.py")

    @classmethod
    def _expands(cls, config: AttentionConfig, phase: str) -> bool:
        return config.mla is not None and phase == "prefill"

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = missing_op_reasons(cls.name, platform.arch)
        if config.mla is None:
            return reasons
        if platform.arch == "ascend310p":
            reasons.append("arch ascend310p has no MLA in vllm-ascend 182b75ea either (ascend_mla: "
                           f"{', '.join(cls.platforms['npu'])})")
        if config.num_heads not in _HEADS:
            reasons.append(f"num_heads {config.num_heads} is not supported (ascend_mla: "
                           f"{', '.join(map(str, _HEADS))})")
        if phase == "decode" and config.context_parallel_size > 1 and config.max_decode_query_len > 1:
            reasons.append(f"max_decode_query_len {config.max_decode_query_len} with context_parallel "
                           f"{config.context_parallel_size} is not supported (ascend_mla: 1; no mask of the op knows "
                           "which tokens a rank holds)")
        return reasons
