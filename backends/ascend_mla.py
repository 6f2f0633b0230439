"""Huawei Ascend NPUs: torch_npu's fused inference attention for multi-head latent attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import ascend_plans
from hal.backends.ascend import Ascend, check_out, missing_op_reasons, run, shaped, shares, varlen
from hal.backends.ascend_cache import PAGE, both, new_cache, table_rows, writer
from hal.backends.ascend_fused import V1, V2, fused
from hal.backends.ascend_rules import RULES, reasons
from hal.backends.layouts import MLA_APART
from hal.backends.refuse import refuse, require
from hal.capabilities import PageSizes
from hal.contract import VARLEN, WITH_KVCACHE

if TYPE_CHECKING:
    from hal.config import AttentionConfig
    from hal.packages import Package
    from hal.platform import Platform

_ROPE, _LATENT = 64, 512
_HEADS: tuple[int, ...] = RULES["num_heads of absorbed MLA"].limit


class AscendMLA(AttentionBackend):
    """Prefill over expanded keys: npu_fused_infer_attention_score in TND with K 192 and V 128, which needs no split of
    the rope part. A chunked context is calls without causal, merged by their LSE.

    Absorbed (decode and extend): its version 2 with query_rope and key_rope (512 + 64), over pages of 128 tokens;
    version 1's document excludes the LSE for 512. Heads are padded to a power of two, and queries go in rows of up to
    16 tokens, as many as engines are known to give it. Both documents list sparse modes 0, 3 and 4 for 512.
    """

    name = "ascend_mla"
    packages = Ascend.packages
    platforms = Ascend.platforms
    dtypes = RULES["dtype of MLA"].limit
    head_dim_pairs = ((_LATENT + _ROPE, _LATENT),)
    page_sizes = PageSizes(PAGE, only=RULES["page_size"].limit)
    features = frozenset({"mla", "non_causal", "return_softmax_lse", "context_parallel"})
    calls = frozenset({"packed_decode", "out"})
    requires = frozenset({"mla"})
    mla_prefill = (*Ascend.head_dim_pairs, (128, 128))
    refusals = {**Ascend.refusals,
                "sliding_window": "no MLA model has one, and queries in rows of 16 have not been asked of it",
                "sinks": "learnable_sink is not for absorbed MLA decode",
                "sparse": "npu_sparse_flash_attention has it, which is not this backend's op"}
    max_decode_query_len = Ascend.max_decode_query_len
    # Two buffers, latent and rope, each contiguous: what memory_pool_npu.py and vllm-ascend allocate.
    kv_layout = MLA_APART
    graph_level = "uniform batch"  # AscendMLAMetadataBuilder.get_cudagraph_support
    graph_padding_length, graph_skips_slots = Ascend.graph_padding_length, Ascend.graph_skips_slots
    targets = {"prefill": "torch_npu.npu_fused_infer_attention_score",
               "decode": "torch_npu.npu_fused_infer_attention_score_v2"}
    sources = ("Ascend op-plugin, documents of torch_npu.npu_fused_infer_attention_score and _v2",
               "torch_npu 2.13.0, op schemas", "vllm-ascend 182b75ea, vllm_ascend/attention/mla_v1.py",
               "vllm-ascend 182b75ea, attention/context_parallel/mla_cp.py", "SGLang 0.5.23, ascend_backend.py",
               "backends/ascend_rules.py, rule by rule")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        found = missing_op_reasons(cls.name, platform.arch)
        if config.mla is None:
            return found
        if platform.arch == "ascend310p":
            found.append("arch ascend310p has no MLA in vllm-ascend 182b75ea either (ascend_mla: "
                         f"{', '.join(cls.platforms['npu'])})")
        # Prefill serves both forms: expanded keys, and absorbed ones where there is a cached prefix.
        found += cls._expanded_reasons(config) if phase == "prefill" else []
        return [*found, *reasons(cls.name, platform.arch, {"num_heads of absorbed MLA": padded(config.num_heads)})]

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        device = platform.torch_device
        return Bound(_absorbed(fused(V2, device), config.softmax_scale),
                     _expanded(varlen(fused(V1, device), config.softmax_scale, cls.name, False)))

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        return new_cache(cls.name, config, device, num_pages, page_size)

    @classmethod
    def write_kv_cache(cls, config: AttentionConfig) -> Callable[..., None]:
        return writer(cls.name)


def padded(num_heads: int) -> int:
    """The next number of heads that the op takes; num_heads itself above them all."""
    return next((heads for heads in _HEADS if heads >= num_heads), num_heads)


def _absorbed(attend: Callable[..., Any], scale: float | None) -> Callable[..., Any]:
    import torch

    cached = ascend_plans.cached("ascend_mla")

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, qv: Any = None, *,
                                cache_seqlens: Any = None, page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1), out: Any = None,
                                return_softmax_lse: bool = False, cp_world_size: int = 1, cp_rank: int = 0,
                                cp_tot_seqused_k: Any = None, **given: Any) -> Any:
        refuse("ascend_mla", WITH_KVCACHE, {"k": k, "v": v, **given})
        causal = _causal(causal, window_size)
        require("ascend_mla", "for absorbed MLA", qv=qv, page_table=page_table, cache_seqlens=cache_seqlens)
        softmax_scale = scale if softmax_scale is None else softmax_scale
        if softmax_scale is None:
            raise ValueError("softmax_scale None is not supported with qv (ascend_mla: a number, in the call or in the "
                             "config: (64 + 512) ** -0.5 is no model's)")
        for argument, x, width in (("q", q, _ROPE), ("qv", qv, _LATENT), ("k_cache", k_cache, _ROPE),
                                   ("v_cache", v_cache, _LATENT)):
            if x.shape[-1] != width:
                raise ValueError(f"{argument} with last dimension {x.shape[-1]} is not supported (ascend_mla: {width})")
        check_out("ascend_mla", qv, _LATENT, out)
        rope, latent = both("ascend_mla", k_cache=k_cache, v_cache=v_cache)
        how = shares(causal, cp_world_size, cp_rank, cp_tot_seqused_k, "ascend_mla",
                     Ascend.max_decode_query_len)
        batch, len_q = (q.shape[0], q.shape[1]) if cu_seqlens_q is None else (cu_seqlens_q.shape[0] - 1, 0)
        page_table = table_rows("ascend_mla", page_table, batch)
        heads = q.shape[-2]
        q, query = (x.reshape(-1, *x.shape[-2:]) for x in (q, qv))
        if not q.numel():
            return shaped(qv, cu_seqlens_q, query.new_zeros(query.shape), None, out, return_softmax_lse)
        step = cached(q.device, (cache_seqlens, cu_seqlens_q, cp_tot_seqused_k, page_table),
                      (batch, len_q, q.shape[0], max_seqlen_q, page_table.shape[1] * PAGE, True, how))
        missing = padded(heads) - heads
        if missing:
            q, query = (torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in (q, query))
        result, lse = run(attend, step, query, latent, latent, 1, softmax_scale, return_softmax_lse, page_table,
                          (causal, (-1, -1)), query_rope=q.contiguous(), key_rope=rope)
        if missing:
            result, lse = result[:, :heads], lse[:heads] if return_softmax_lse else None
        return shaped(qv, cu_seqlens_q, result, lse, out, return_softmax_lse)

    return flash_attn_with_kvcache


def _causal(causal: bool, window_size: Any) -> bool:
    """There is no window: (-1, 0) is causal, every other bound is refused."""
    left, right = window_size
    if left != -1 or right not in (-1, 0):
        refuse("ascend_mla", WITH_KVCACHE, {"window_size": (left, right)})
    return causal or right == 0


def _expanded(dense: Callable[..., Any]) -> Callable[..., Any]:
    """The dense varlen function for expanded keys; the cache holds latent ones, which it can't read."""

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               *more: Any, page_table: Any = None, window_size: Any = (-1, -1),
                               causal: bool = False, **given: Any) -> Any:
        refuse("ascend_mla", VARLEN, {"page_table": page_table})
        return dense(q, k, v, cu_seqlens_q, cu_seqlens_k, *more, causal=_causal(causal, window_size), **given)

    return flash_attn_varlen_func
