"""Huawei Atlas inference NPUs (310P): ops of Ascend's transformer library (ATB) over a cache of 16-wide tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import ascend_310p_plans
from hal.backends.ascend import Ascend, check_out, shaped
from hal.backends.ascend_310p_cache import as_nz, caches, shape, size_reasons, writer
from hal.backends.ascend_310p_plans import Step
from hal.backends.ascend_310p_rules import RULES, reasons
from hal.backends.ascend_cache import table_rows
from hal.backends.refuse import mask, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.contract import VARLEN, WITH_KVCACHE

if TYPE_CHECKING:
    import inspect

    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.packages import Package
    from hal.platform import Platform

_OPS = "vllm-ascend 182b75ea hands 310P's ops nothing of it"
_NAME = "ascend_310p"


class Ascend310P(AttentionBackend):
    """Prefill: _npu_flash_attention; one query a sequence: _npu_paged_attention; more of them over the cache, and both
    at once: _npu_paged_attention_splitfuse. Causal alone.

    Their masks are added to the scores and as large as these: 2 bytes for each pair of a query and a key that the op is
    called for, built once a step, a square for prefill. So long prompts are better cut into chunks. The compressed
    masks of torch_npu 2.13's _npu_flash_attention_v3 and _npu_paged_attention_splitfuse_v2 are not used: older releases
    lack both, and the second one's tiling wants context_lens on the host (ATB, BuildFromTensor310P), where its own test
    and vllm-ascend give it the device's.
    """

    name = _NAME
    packages = Ascend.packages
    platforms = {"npu": RULES["arch"].limit}
    dtypes = RULES["dtype"].limit
    head_dims = HeadDims(low=16, high=RULES["head_dim"].limit, step=16)
    page_sizes = PageSizes(RULES["page_size"].limit[0], only=RULES["page_size"].limit)
    calls = frozenset({"packed_decode", "paged_varlen", "out"})
    refusals = dict.fromkeys(("sliding_window", "sinks", "non_causal", "return_softmax_lse"), _OPS)
    max_decode_query_len = None  # AscendAttentionState.SpecDecoding goes through splitfuse
    # get_kv_cache_shape there: no other backend reads it
    kv_layout = "[num_pages, num_kv_heads * head_dim / 16, page_size, 16], format NZ"
    targets = {"prefill": "torch_npu._npu_flash_attention", "decode": "torch_npu._npu_paged_attention"}
    sources = ("vllm-ascend 182b75ea, vllm_ascend/_310p/attention",
               "Ascend ATB ddcc8b62, src/ops/ops_infer and src/kernels/mixkernels: paged attention, self attention "
               "(PA_ENCODER), reshape_and_cache", "Ascend op-plugin 517f2e7d, op_plugin/ops/atb and _atb_api_docs.py",
               "torch_npu, op schemas of libop_plugin_atb.so", "backends/ascend_310p_rules.py, rule by rule")

    @classmethod
    def preferred_page_size(cls, config: AttentionConfig) -> int:
        """The first that goes with the head dim, as vllm-ascend chooses."""
        sizes: tuple[int, ...] = RULES["page_size"].limit
        return next((size for size in sizes if not size_reasons(cls.name, config, size)), cls.page_sizes.preferred)

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        size = config.page_size if config.page_size is not None else min(RULES["page_size"].limit)
        wide = {"num_heads": config.num_heads, "num_heads * head_dim": config.num_heads * config.head_dim}
        return [*size_reasons(cls.name, config, size), *reasons(cls.name, wide)]

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        over_pages = _over_pages(config)
        return Bound(_kvcache(config, over_pages), _varlen(config, over_pages))

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        import torch

        size, dtype = shape(cls.name, config, num_pages, page_size), getattr(torch, config.dtype)
        return (as_nz(torch.zeros(size, dtype=dtype, device=device)),
                as_nz(torch.zeros(size, dtype=dtype, device=device)))

    @classmethod
    def write_kv_cache(cls, config: AttentionConfig) -> Callable[..., None]:
        return writer(cls.name, config)

    @classmethod
    def logical_cache(cls, config: AttentionConfig, x: Tensor) -> Tensor:
        """Its shape, on the same memory, whose order is another: for checks and shapes, never for numbers."""
        width = config.num_kv_heads * config.head_dim
        tiled = x.dim() == 4 and x.shape[1] * x.shape[3] == width and x.is_contiguous()
        return x.view(x.shape[0], x.shape[2], config.num_kv_heads, config.head_dim) if tiled else x


def _causal(contract: inspect.Signature, causal: bool, window_size: Any) -> bool:
    causal, window = mask(causal, window_size)
    if window != (-1, -1):
        refuse(_NAME, contract, {"window_size": window_size})
    return causal


def _check_q(config: AttentionConfig, q: Tensor, k: Tensor) -> None:
    """Head counts go to the ops as numbers, of which they believe whatever divides."""
    if q.shape[-2:] != (config.num_heads, config.head_dim) or q.dtype != k.dtype:
        raise ValueError(f"q {q.dtype} {tuple(q.shape)} is not supported ({_NAME}: {k.dtype} of {config.num_heads} "
                         f"heads of {config.head_dim}, as the keys and the config)")


def _outside_graphs(capturing: Callable[[], bool]) -> None:
    """Lengths on the host would stay those of the capture."""
    if capturing():
        raise RuntimeError(f"{_NAME} inside an NPUGraph is not supported (graph level never): it would keep the "
                           "lengths of this call; run it eagerly")


def _result(step: Step | None, out: Tensor | None, q: Tensor) -> Tensor:
    """The op's result, a row for each of q's; 0 for those that see no key."""
    if step is None or out is None:
        return q.new_zeros(q.shape)
    if step.back is not None:
        out = out.index_select(0, step.back)
    if step.blind is not None:
        out.index_copy_(0, step.blind, out.new_zeros(len(step.blind), *out.shape[1:]))
    return out


def _over_pages(config: AttentionConfig) -> Callable[..., Tensor]:
    """attend(q [T, Hq, D], k_cache, v_cache, page_table, seqlens, cu_seqlens_q, batch, len_q, max_seqlen_q, causal,
    scale) -> [T, Hq, D]."""
    import torch_npu

    planned, capturing = ascend_310p_plans.cached(_NAME), torch_npu.npu.is_current_stream_capturing

    def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, page_table: Tensor, seqlens: Any, cu_seqlens_q: Any,
               batch: int, len_q: int, max_seqlen_q: int | None, causal: bool, scale: float) -> Tensor:
        _outside_graphs(capturing)
        page_size = k_cache.shape[2]
        table = table_rows(_NAME, page_table, batch)
        step = planned(q.device, (seqlens, cu_seqlens_q),
                       (batch, len_q, q.shape[0], max_seqlen_q, table.shape[1] * page_size, page_size, causal))
        if step is None:
            return _result(None, None, q)
        query = q.contiguous() if step.order is None else q.index_select(0, step.order)
        out = query.new_empty(query.shape)
        call = {"query": query, "key_cache": k_cache, "value_cache": v_cache, "num_kv_heads": config.num_kv_heads,
                "num_heads": config.num_heads, "scale_value": scale, "context_lens": step.keys, "out": out,
                "block_table": table if step.table is None else table.index_select(0, step.table)}
        if step.mask is None:
            torch_npu._npu_paged_attention(**call)
        else:
            torch_npu._npu_paged_attention_splitfuse(**call, mask=step.mask, seq_len=step.queries)
        return _result(step, out, q)

    return attend


def _kvcache(config: AttentionConfig, over_pages: Callable[..., Tensor]) -> Callable[..., Any]:
    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cache_seqlens: Any = None, page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1), out: Any = None,
                                **given: Any) -> Any:
        refuse(_NAME, WITH_KVCACHE, {"k": k, "v": v, **given})
        causal = _causal(WITH_KVCACHE, causal, window_size)
        require(_NAME, "by its ops", page_table=page_table, cache_seqlens=cache_seqlens)
        caches(_NAME, config, k_cache, v_cache)
        _check_q(config, q, k_cache)
        check_out(_NAME, q, config.head_dim, out)
        packed = q.reshape(-1, *q.shape[-2:])
        if not packed.numel():
            return shaped(q, cu_seqlens_q, packed.new_zeros(packed.shape), None, out, False)
        batch, len_q = (q.shape[0], q.shape[1]) if cu_seqlens_q is None else (cu_seqlens_q.shape[0] - 1, 0)
        result = over_pages(packed, k_cache, v_cache, page_table, cache_seqlens, cu_seqlens_q, batch, len_q,
                            max_seqlen_q, causal, config.scale if softmax_scale is None else softmax_scale)
        return shaped(q, cu_seqlens_q, result, None, out, False)

    return flash_attn_with_kvcache


def _varlen(config: AttentionConfig, over_pages: Callable[..., Tensor]) -> Callable[..., Any]:
    import torch_npu

    planned, capturing = ascend_310p_plans.packed(_NAME), torch_npu.npu.is_current_stream_capturing

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_k: Any = None, page_table: Any = None, softmax_scale: float | None = None,
                               causal: bool = False, window_size: Any = (-1, -1), out: Any = None,
                               **given: Any) -> Any:
        refuse(_NAME, VARLEN, given)
        causal = _causal(VARLEN, causal, window_size)
        scale = config.scale if softmax_scale is None else softmax_scale
        _check_q(config, q, k)
        check_out(_NAME, q, config.head_dim, out)
        if page_table is not None:
            refuse(f"{_NAME} with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require(_NAME, "with page_table", seqused_k=seqused_k)
            caches(_NAME, config, k, v, "k")
        else:
            refuse(f"{_NAME} without page_table", VARLEN, {"seqused_k": seqused_k})
            require(_NAME, "without page_table", cu_seqlens_k=cu_seqlens_k)
        if not q.numel():
            return shaped(q, cu_seqlens_q, q.new_zeros(q.shape), None, out, False)
        if page_table is not None:
            result = over_pages(q, k, v, page_table, seqused_k, cu_seqlens_q, cu_seqlens_q.shape[0] - 1, 0,
                                max_seqlen_q, causal, scale)
            return shaped(q, cu_seqlens_q, result, None, out, False)
        _outside_graphs(capturing)
        step = planned(q.device, (cu_seqlens_q, cu_seqlens_k),
                       (q.shape[0], k.shape[0], max_seqlen_q, max_seqlen_k, causal))
        if step is None:
            return shaped(q, cu_seqlens_q, _result(None, None, q), None, out, False)
        query, key, value = (x.contiguous() if order is None else x.index_select(0, order) for x, order in (
            (q, step.order), (k, step.keys_order), (v, step.keys_order)))
        made = query.new_empty(query.shape)
        torch_npu._npu_flash_attention(query=query, key=key, value=value, mask=step.mask, seq_len=step.queries,
                                       scale_value=scale, num_heads=config.num_heads,
                                       num_kv_heads=config.num_kv_heads, out=made)
        return shaped(q, cu_seqlens_q, _result(step, made, q), None, out, False)

    return flash_attn_varlen_func

