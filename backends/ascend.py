"""Huawei Ascend NPUs: torch_npu's fused inference attention, dense models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends import ascend_plans
from hal.backends.ascend_cache import PAGE, both, new_cache, paged, table_rows, writer
from hal.backends.ascend_fused import V1, V2, fused, sparse
from hal.backends.ascend_plans import Shares, Step
from hal.backends.ascend_rules import REFUSALS, RULES, reasons
from hal.backends.refuse import mask, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.contract import VARLEN, WITH_KVCACHE
from hal.graph import captures
from hal.packages import Package

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.platform import Platform

# NPUs without the op: op-plugin lets the call through, and CANN fails.
_MISSING = {"ascend310p": " but ops and a cache layout of its own",
            "ascend910a": ": its document lists Atlas A2 and A3 only"}


def missing_op_reasons(name: str, arch: str | None) -> list[str]:
    """Why an NPU can't run the op that both of Ascend's backends end in."""
    if arch not in _MISSING:
        return []
    return [f"arch {arch} has no npu_fused_infer_attention_score{_MISSING[arch]} ({name}: {RULES['arch']})"]


def parallel_reasons(name: str, config: AttentionConfig) -> list[str]:
    """A rank's tokens of a window are now one more, now one less, and pre_tokens is one number."""
    if config.context_parallel_size > 1 and config.sliding_window is not None:
        return [f"sliding_window {config.sliding_window} with context_parallel {config.context_parallel_size} is not "
                f"supported ({name}: one of them)"]
    return []


class Ascend(AttentionBackend):
    """npu_fused_infer_attention_score in layout TND, its version 2 with sinks; sparse_mode 3 is causal, 4 a window.

    Lengths go to the op as lists of the host, made once per step. An unpaged cache that is not full is packed in every
    call: the op takes keys packed or paged.
    """

    name = "ascend"
    # From 2.10.0 on npu_scatter_pa_kv_cache always has cache_mode; of the older ones only some post releases.
    packages = (Package("torch-npu", "torch_npu", "install torch_npu for this torch, and CANN", minimum="2.10.0",
                        metadata=("torch_npu",)),)
    platforms = {"npu": RULES["arch"].limit}
    dtypes = RULES["dtype"].limit
    head_dims = HeadDims(only=RULES["head_dim"].limit)
    head_dim_pairs = RULES["head_dim with head_dim_v"].limit
    page_sizes = PageSizes(PAGE, only=RULES["page_size"].limit)
    features = frozenset({"sliding_window", "sinks", "non_causal", "return_softmax_lse", "context_parallel"})
    calls = frozenset({"unpaged", "packed_decode", "paged_varlen", "out"})
    attention_types = ("decoder", "encoder", "encoder_only", "encoder_decoder")
    max_decode_query_len = RULES["query tokens of a decoded sequence"].limit
    graph_level = "uniform batch"
    graph_padding_length = 1  # vllm-ascend 182b75ea pads with 1
    graph_skips_slots = False  # npu_scatter_pa_kv_cache: slots from 0 on, none of them twice
    refusals = REFUSALS
    targets = {"prefill": "torch_npu.npu_fused_infer_attention_score",
               "decode": "torch_npu.npu_fused_infer_attention_score"}
    sources = ("Ascend op-plugin, documents of torch_npu.npu_fused_infer_attention_score, .._v2 and "
               "npu_scatter_pa_kv_cache", "torch_npu 2.13.0, op schemas and npu/graphs.py",
               "CANN ops-transformer (head dims of TND: 64, 128, 192)", "backends/ascend_rules.py, rule by rule")

    @classmethod
    def target(cls, phase: str, package: Package | None, config: AttentionConfig) -> str:
        return cls.targets[phase] + "_v2" * config.sinks

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        seen: dict[str, Any] = {
            "num_heads": config.num_heads, "num_heads per KV head": config.num_heads // config.num_kv_heads,
            "num_kv_heads * head_dim": config.num_kv_heads * max(config.head_dim, config.v_dim)}
        if config.sinks:
            seen |= {"sinks with dtype": config.dtype, "sinks with head_dim_v": config.v_dim}
        return [*missing_op_reasons(cls.name, platform.arch), *reasons(cls.name, platform.arch, seen),
                *parallel_reasons(cls.name, config)]

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        attend = fused(V2 if config.sinks else V1, platform.torch_device)
        return Bound(_kvcache(attend, config.scale, config.sinks),
                     varlen(attend, config.scale, cls.name, config.sinks))

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        return new_cache(cls.name, config, device, num_pages, page_size)

    @classmethod
    def write_kv_cache(cls, config: AttentionConfig) -> Callable[..., None]:
        return writer(cls.name)


def _moved(x: Tensor, index: Tensor | None) -> Tensor:
    return x.contiguous() if index is None else x.index_select(0, index)


def run(attend: Callable[..., Any], step: Step, q: Tensor, k: Tensor, v: Tensor, kv_heads: int, scale: float,
        lse: bool, table: Tensor | None, mask: tuple[bool, tuple[int, int]], **more: Any) -> tuple[Any, Any]:
    """(out [T, Hq, Dv], lse [Hq, T] where it is asked for) of packed queries in their own order.

    more: learnable_sink, or query_rope and key_rope, for a version of the op that has them.
    """
    sinks = more.get("learnable_sink")
    if step.empty and not captures():  # nothing is launched: the op takes no empty keys
        out = q.new_zeros(*q.shape[:2], v.shape[-1] // (1 if table is None else kv_heads))
        softmax_lse = q.new_full((q.shape[1], q.shape[0]), float("-inf"), dtype=_float32())
    else:
        if step.order is not None and "query_rope" in more:
            more["query_rope"] = more["query_rope"].index_select(0, step.order)
        out, softmax_lse = attend(step, _moved(q, step.order), k, v, (q.shape[1], kv_heads), scale, lse,
                                  **paged(table, step), **sparse(*mask), **more)
        if step.blind is not None and not captures():  # in a graph only padding rows are so short
            blind, infinite = step.blind, float("-inf")
            out.index_copy_(0, blind, out.new_zeros(len(blind), *out.shape[1:]))
            if lse:
                softmax_lse.index_copy_(1, blind, softmax_lse.new_full((q.shape[1], len(blind)), infinite))
        if step.back is not None:
            out = out.index_select(0, step.back)
            if lse:
                softmax_lse = softmax_lse.index_select(1, step.back)
    if lse and sinks is not None:  # a row without keys
        softmax_lse = softmax_lse.where(softmax_lse > float("-inf"), sinks.float()[:, None])
    return out, softmax_lse


def _float32() -> Any:
    import torch

    return torch.float32


def _check_sinks(name: str, sinks: Tensor | None, q: Tensor, served: bool) -> None:
    if not served:  # version 1 of the op was bound
        refuse(f"{name} without sinks in the config", WITH_KVCACHE, {"sinks": sinks})
    if sinks is not None and (sinks.dtype != q.dtype or sinks.shape != q.shape[-2:-1]):
        raise ValueError(f"sinks {sinks.dtype} {tuple(sinks.shape)} is not supported ({name}: {q.dtype} "
                         f"({q.shape[-2]},), q's dtype and heads)")


def _sinks(sinks: Tensor | None, with_sinks: bool) -> dict[str, Any]:
    return {"learnable_sink": sinks} if with_sinks else {}


def shares(causal: bool, world: int, rank: int, totals: Tensor | None, name: str, most: int | None = None) -> Shares:
    if world > 1:
        if totals is None:
            raise ValueError(f"cp_world_size {world} is not supported without cp_tot_seqused_k ({name}: both)")
        if not 0 <= rank < world:
            raise ValueError(f"cp_rank {rank} is not supported ({name} with cp_world_size {world}: 0 to {world - 1})")
    elif rank or totals is not None:
        refuse(f"{name} with cp_world_size 1", WITH_KVCACHE, {"cp_rank": rank, "cp_tot_seqused_k": totals})
    return Shares(causal, most, world, rank)


def _kvcache(attend: Callable[..., Any], scale: float, with_sinks: bool) -> Callable[..., Any]:
    cached = ascend_plans.cached("ascend")

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cache_seqlens: Any = None, page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1),
                                return_softmax_lse: bool = False, sinks: Any = None, out: Any = None,
                                cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Any = None,
                                **given: Any) -> Any:
        refuse("ascend", WITH_KVCACHE, {"k": k, "v": v, **given})
        causal, window = mask(causal, window_size)
        how = shares(causal, cp_world_size, cp_rank, cp_tot_seqused_k, "ascend")
        how = _windowed(how, window)
        _check_sinks("ascend", sinks, q, with_sinks)
        check_out("ascend", q, v_cache.shape[-1], out)
        kv_heads = k_cache.shape[-2]
        packed = q.reshape(-1, *q.shape[-2:])
        batch, len_q = (q.shape[0], q.shape[1]) if cu_seqlens_q is None else (cu_seqlens_q.shape[0] - 1, 0)
        width = k_cache.shape[1] if page_table is None else page_table.shape[1] * PAGE
        if page_table is not None:
            require("ascend", "with page_table", cache_seqlens=cache_seqlens)
            k, v = both("ascend", k_cache=k_cache, v_cache=v_cache)
            page_table = table_rows("ascend", page_table, batch)
        elif k_cache.shape[0] != batch:
            raise ValueError(f"k_cache with {k_cache.shape[0]} sequences is not supported (ascend without page_table: "
                             f"{batch}, as q)")
        if not packed.numel():
            return shaped(q, cu_seqlens_q, packed.new_zeros(*packed.shape[:2], v_cache.shape[-1]), None, out,
                          return_softmax_lse)
        step = cached(q.device, (cache_seqlens, cu_seqlens_q, cp_tot_seqused_k,
                                 page_table if cp_world_size > 1 else None),
                      (batch, len_q, packed.shape[0], max_seqlen_q, width, page_table is not None, how))
        if page_table is None:
            k, v = (_moved(x.reshape(-1, *x.shape[2:]), step.source) for x in (k_cache, v_cache))
        result, lse = run(attend, step, packed, k, v, kv_heads, scale if softmax_scale is None else softmax_scale,
                          return_softmax_lse, page_table, (causal, window), **_sinks(sinks, with_sinks))
        return shaped(q, cu_seqlens_q, result, lse, out, return_softmax_lse)

    return flash_attn_with_kvcache


def _windowed(how: Shares, window: tuple[int, int]) -> Shares:
    if how.world > 1 and window != (-1, -1):
        raise ValueError(f"window_size {window} is not supported (ascend with cp_world_size {how.world}: (-1, -1))")
    right = 0 if how.causal else window[1]
    return how._replace(after=None if right < 0 else right)


def check_out(name: str, q: Tensor, head_dim_v: int, out: Any) -> None:
    """Raise ValueError for an `out` that the result could not be copied to as it is."""
    shape = (*q.shape[:-1], head_dim_v)
    if out is not None and (out.shape != shape or out.dtype != q.dtype or out.device != q.device):
        raise ValueError(f"out {out.dtype} {tuple(out.shape)} on {out.device} is not supported ({name}: {q.dtype} "
                         f"{shape} on {q.device}, as q)")


def shaped(q: Tensor, cu_seqlens_q: Any, result: Tensor, lse: Tensor | None, out: Any, with_lse: bool) -> Any:
    """The op's packed results in the form of the call. lse None: there are no queries, or it is not asked for."""
    result = result.view(*q.shape[:-1], result.shape[-1])
    if out is not None:  # the op writes to memory of its own
        result = out.copy_(result)
    if not with_lse:
        return result
    if lse is None:
        lse = q.new_zeros(q.shape[-2], 0, dtype=_float32())
    return result, lse if cu_seqlens_q is not None else lse.reshape(-1, *q.shape[:2]).transpose(0, 1)


def varlen(attend: Callable[..., Any], scale: float | None, name: str, with_sinks: bool) -> Callable[..., Any]:
    """flash_attn_varlen_func over packed keys, or pages."""
    packed, cached = ascend_plans.packed(name), ascend_plans.cached(name)

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_k: Any = None, page_table: Any = None,
                               softmax_scale: float | None = None, causal: bool = False,
                               window_size: Any = (-1, -1), return_attn_probs: bool = False,
                               return_softmax_lse: bool = False, sinks: Any = None, out: Any = None,
                               cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Any = None,
                               **given: Any) -> Any:
        refuse(name, VARLEN, given)
        causal, window = mask(causal, window_size)
        how = shares(causal, cp_world_size, cp_rank, cp_tot_seqused_k, name)
        how = _windowed(how, window)
        _check_sinks(name, sinks, q, with_sinks)
        check_out(name, q, v.shape[-1], out)
        with_lse = return_attn_probs or return_softmax_lse
        kv_heads, head_dim_v = k.shape[-2], v.shape[-1]
        if softmax_scale is None:  # the config's, or without one (MLA) that of these keys
            softmax_scale = scale if scale is not None else float(q.shape[-1] ** -0.5)
        if page_table is not None:
            refuse(f"{name} with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require(name, "with page_table", seqused_k=seqused_k)
            k, v = both(name, k=k, v=v)
            page_table = table_rows(name, page_table, cu_seqlens_q.shape[0] - 1)
        else:
            refuse(f"{name} without page_table", VARLEN, {"seqused_k": seqused_k})
            require(name, "without page_table", cu_seqlens_k=cu_seqlens_k)
        if not q.numel():
            return shaped(q, cu_seqlens_q, q.new_zeros(*q.shape[:2], head_dim_v), None, out, with_lse)
        if page_table is not None:
            step = cached(q.device, (seqused_k, cu_seqlens_q, cp_tot_seqused_k,
                                     page_table if cp_world_size > 1 else None),
                          (cu_seqlens_q.shape[0] - 1, 0, q.shape[0], max_seqlen_q, page_table.shape[1] * PAGE, True,
                           how))
        else:
            step = packed(q.device, (cu_seqlens_q, cu_seqlens_k, cp_tot_seqused_k),
                          (q.shape[0], k.shape[0], max_seqlen_q, max_seqlen_k, how))
            k, v = _moved(k, step.source), _moved(v, step.source)
        result, lse = run(attend, step, q, k, v, kv_heads, softmax_scale, with_lse, page_table, (causal, window),
                          **_sinks(sinks, with_sinks))
        return shaped(q, cu_seqlens_q, result, lse, out, with_lse)

    return flash_attn_varlen_func
