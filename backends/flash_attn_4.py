"""FlashAttention 4: CuTe DSL kernels, compiled at first use, for sm80 and newer; made for sm100."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.backend import AttentionBackend
from hal.backends.nvidia import SM80_UP, SM100
from hal.capabilities import HeadDims, PageSizes
from hal.packages import Package

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.platform import Platform

# interface.py, _flash_attn_fwd: "paged KV not supported on SM 8.0" and "Paged KV not supported on SM 12.0", by
# family: sm80, sm86, sm87, sm89, sm120 and sm121.
_PAGED = ("sm90", "sm100", "sm103", "sm110")
# One family in interface.py ("arch // 10 in [10, 11]"), with its own head dims and a kernel apart for 256.
_BLACKWELL = (*SM100, "sm110")


class FlashAttention4(AttentionBackend):
    """Only varlen and batched functions: no kvcache function, no append, no rotary. Pages go to the varlen function.

    Absorbed MLA (`qv`, the fourth positional argument, sm100 and sm110 only) is left out: it allows no split and
    no LSE in the contract's layout. Its window_size is (None, None) for none; -1 and 0 mean other things than in
    FlashAttention 3 (non-causal (-1, 0) becomes full attention, (W - 1, -1) is taken literally).
    """

    name = "flash_attn_4"
    packages = (Package("flash-attn-4", "flash_attn.cute.interface", "pip install --pre flash-attn-4",
                        metadata=("flash_attn_4",)),)
    platforms = {"cuda": SM80_UP}
    kv_cache_dtypes = ("fp8_e4m3", "fp8_e5m2")
    head_dims = HeadDims(low=8, high=256, step=8)
    head_dim_pairs = None  # by arch, in extra_reasons
    # Any size; 128 is the tile, the one that is loaded by TMA, and what SGLang 0.5.23 forces on sm100.
    page_sizes = PageSizes(128)
    features = frozenset({"sliding_window", "softcap", "sinks", "non_causal", "return_softmax_lse"})
    # DeepSeek; GLM-5's 192+64; 64+64. All within the head dims of every arch below.
    mla_prefill = ((192, 128), (256, 256), (128, 128))
    attention_types = ("decoder", "encoder", "encoder_only", "encoder_decoder")
    max_decode_query_len = None
    graph_level = "uniform batch"  # vLLM 0.33, its builder for FLASH_ATTN
    adapter = False
    refusals = {"mla": "absorbed MLA is flash_attn_mla's; this one prefills expanded K and V",
                "attention_chunk": "its varlen function has no such argument",
                "context_parallel": "its varlen function has no argument for the global lengths"}
    targets = {"prefill": "{module}.flash_attn_varlen_func", "decode": "{module}.flash_attn_varlen_func"}
    sources = ("flash-attn-4 4.0.0b36, signatures of flash_attn/cute/interface.py",
               "flash-attention 0251105a, flash_attn/cute/interface.py (_flash_attn_fwd, _validate_head_dims)",
               "flash_attn/cute/flash_fwd_sm90.py and flash_fwd_sm100.py (paged KV: \"irregular head dim\")")

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """fp8 with an fp8 cache: "q, k, v, and qv must have the same dtype"."""
        return config.stored_dtype if config.stored_dtype.startswith("fp8") else config.dtype

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        if config.mla is not None:  # expanded: no pages, no fp8, dims as in mla_prefill
            return cls._dedicated_reasons(config, platform) if cls._expands(config, phase) else []
        d, dv, arch, reasons = config.head_dim, config.v_dim, platform.arch, []
        if arch not in _PAGED:
            reasons.append(f"paged KV cache on {arch} is not supported (flash_attn_4: {', '.join(_PAGED)}; elsewhere "
                           "it asserts that page_table is None)")
        if config.stored_dtype.startswith("fp8"):
            if arch not in SM100:
                reasons.append(f"kv_cache_dtype {config.stored_dtype} on {arch} is not supported (flash_attn_4: "
                               f"{', '.join(SM100)})")
            if config.dtype != "bfloat16":
                reasons.append(f"kv_cache_dtype {config.stored_dtype} with dtype {config.dtype} is not supported "
                               "(flash_attn_4: bfloat16, which is what it returns for fp8)")
        if arch in _BLACKWELL and (d > 128 or dv > 128) and (d, dv) not in ((192, 128), (256, 256)):
            reasons.append(f"head_dim {d} with head_dim_v {dv} is not supported on {arch} (flash_attn_4: up to 128 "
                           "with up to 128, 192 with 128, 256 with 256)")
        if d != dv and (d % 8 or dv % 8 or max(d, dv) > 256):
            reasons.append(f"head_dim {d} with head_dim_v {dv} is not supported (flash_attn_4: multiples of 8 up "
                           "to 256)")
        # Pages of another size than the tile are gathered without bounds on the head dim; rounding is to 16.
        if arch in _PAGED and d % 8 == dv % 8 == 0 and (d % 16 or dv % 16):
            reasons.append(f"paged KV cache with head_dim {d} and head_dim_v {dv} is not supported (flash_attn_4: "
                           "multiples of 16)")
        if arch in _BLACKWELL and (d, dv) == (256, 256):
            reasons.append(f"paged KV cache with head_dim 256 on {arch} is not supported (flash_attn_4: its kernel "
                           "for 256 there takes no seqused_k)")
        return reasons + cls._dedicated_reasons(config, platform)

    @classmethod
    def _dedicated_reasons(cls, config: AttentionConfig, platform: Platform) -> list[str]:
        """sm100's kernel for 256 has neither softcap nor sinks ("SM100 forward with head_dim=256 ...")."""
        mla = config.mla
        wide = config.head_dim if mla is None or isinstance(mla, bool) else mla.qk_nope_head_dim + mla.qk_rope_head_dim
        if platform.arch not in _BLACKWELL or wide != 256:
            return []
        asked = {"softcap": config.softcap, "sinks": config.sinks}
        return [f"{name} {value} with head_dim 256 on {platform.arch} is not supported (flash_attn_4: without {name}, "
                "or head_dim up to 192)" for name, value in asked.items() if value]
