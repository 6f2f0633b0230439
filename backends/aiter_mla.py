"""AMD's AITER on CDNA3 and CDNA4 GPUs: multi-head latent attention in assembly, dense and sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.layouts import MLA_JOINT
from hal.capabilities import PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

PACKAGE = Package("amd-aiter", "aiter.mla", "build it from ROCm/aiter", metadata=("aiter",))

# Query heads per rank. The sources disagree: SGLang 0.5.23 takes aiter for 16 or 128 and Triton for the rest
# (model_override_base.py, get_default_attn_backend); vLLM 0.33 also for multiples of 16, which aiter folds in
# its persistent mode only (mla.py, "nhead in range(32, 128 + 1, 16)"), and for fewer than 16, which vLLM pads.
# Only 16 and 128 have kernels on both archs, for 16-bit and fp8 caches, in both modes (hsa/*/mla/mla_asm.csv).
_HEADS = (16, 128)


class _AiterAssemblyMLA(AttentionBackend):
    """What the dense and the sparse one share: both end in mla_decode_fwd.

    float16 is not served although vLLM 0.33 lists it: asm_mla.cu takes queries of bfloat16 and fp8 only. Nor is
    fp8_e5m2: its one fp8 type is e4m3 (on gfx942 that is torch's float8_e4m3fnuz, which new_kv_cache must
    allocate there: vLLM, platforms/rocm.py, fp8_dtype).
    """

    packages = (PACKAGE,)
    platforms = {"rocm": ("gfx942", "gfx950")}
    dtypes = ("bfloat16",)
    kv_cache_dtypes = ("fp8_e4m3",)
    head_dim_pairs = ((576, 512),)
    kv_layout = MLA_JOINT
    graph_level = "uniform batch"  # vllm_backends.json: builder's cudagraph of both
    adapter = False

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """fp8 with an fp8 cache: for 128 heads mla_asm.csv has no kernel of 16-bit queries over fp8 keys."""
        return "fp8_e4m3" if config.stored_dtype == "fp8_e4m3" else config.dtype

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.mla is None or cls._expands(config, phase) or config.num_heads in _HEADS:
            return []
        return [f"num_heads {config.num_heads} is not supported ({cls.name}: {', '.join(map(str, _HEADS))})"]


class AiterMLA(_AiterAssemblyMLA):
    """Absorbed decode over pages of one token; prefill over expanded K and V with aiter's varlen function.

    The page size is the one that mla_decode_fwd's index list counts in. vLLM accepts any size and turns it into
    pages of one token for every step (rocm_aiter_mla.py, "kernel block size is always 1").
    """

    name = "aiter_mla"
    page_sizes = PageSizes(1, only=(1,))
    features = frozenset({"mla", "return_softmax_lse", "context_parallel"})
    requires = frozenset({"mla"})
    mla_prefill = ((192, 128),)
    # 16 heads: padded to 4 query tokens in persistent mode, and fp8 stops there on gfx942 (asm_mla.cu).
    max_decode_query_len = 4
    refusals = {"softcap": "mla_decode_fwd asserts that there is none",
                "sliding_window": "the MLA kernels have none",
                "sparse": "aiter_mla_sparse has it",
                "non_causal": "the kernels without the causal mask are on gfx950 only, for some head counts"}
    targets = {"prefill": "aiter.ops.mha.flash_attn_varlen_func", "decode": "{module}.mla_decode_fwd"}
    sources = ("ROCm/aiter e4048607a5, aiter/mla.py", "csrc/py_itfs_cu/asm_mla.cu and hsa/*/mla/mla_asm.csv",
               "vLLM 0.33 executed: ROCM_AITER_MLA (LSE, context parallel, graph)",
               "SGLang 0.5.23, model_override_base.py (16 or 128 heads)")

    @classmethod
    def _expands(cls, config: AttentionConfig, phase: str) -> bool:
        return config.mla is not None and phase == "prefill"

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = super().extra_reasons(config, platform, phase)
        # Several causal tokens over a shard need the round-robin kernels ("cprr"), which only gfx950 has.
        if phase == "decode" and platform.arch == "gfx942" and config.max_decode_query_len > 1 \
                and config.context_parallel_size > 1:
            reasons.append(f"max_decode_query_len {config.max_decode_query_len} with context_parallel "
                           f"{config.context_parallel_size} is not supported on gfx942 (aiter_mla: 1; more on gfx950)")
        return reasons


class AiterMLASparse(_AiterAssemblyMLA):
    """The same kernel, given the slots that each query token sees: any page size, prefill in absorbed form too."""

    name = "aiter_mla_sparse"
    # Slots are page * page_size + offset, so the kernel always sees pages of one token. vLLM 0.33: 1 or any
    # multiple of 16; 1 is preferred because aiter_mla needs it.
    page_sizes = PageSizes(1)
    features = frozenset({"mla", "sparse"})
    requires = frozenset({"mla", "sparse"})
    max_decode_query_len = None
    targets = {"prefill": "{module}.mla_decode_fwd", "decode": "{module}.mla_decode_fwd"}
    sources = ("ROCm/aiter e4048607a5, aiter/mla.py and op_tests/test_mla_sparse.py",
               "vLLM 0.33 executed: ROCM_AITER_MLA_SPARSE (no LSE, no context parallel)")
