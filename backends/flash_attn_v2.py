"""The adapter of FlashAttention 2: flash_attn 2.7 and newer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backends import flash_attn_cache as cache
from hal.backends.refuse import keep, refuse, require
from hal.context import STATE, host
from hal.contract import VARLEN, WITH_KVCACHE
from hal.plan import Planner

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig

Function = Callable[..., Any]
NAME = "flash_attn_2"
_VARLEN = frozenset({"causal", "window_size", "softcap", "deterministic"})


def with_kvcache(vendor: Any, config: AttentionConfig) -> Function:
    """Packed queries have three ways, for there is no cu_seqlens_q: equally many of each sequence are batched queries;
    else the varlen function where the host knows that it is safe (_make_route); else rows of padding."""
    scale, one_split, route = config.softmax_scale, config.deterministic, Planner(_make_route)
    decode, varlen = vendor.flash_attn_with_kvcache, vendor.flash_attn_varlen_func

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *,
                                cache_seqlens: Any = None, cache_batch_idx: Any = None, page_table: Any = None,
                                cu_seqlens_q: Any = None, cu_seqlens_k_new: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
                                num_splits: int = 0, return_softmax_lse: bool = False, **given: Any) -> Any:
        refuse(NAME, WITH_KVCACHE, given)
        num_splits = splits(NAME, num_splits, one_split)
        packed = cu_seqlens_q is not None
        batch, most = cache.queries(NAME, q, cu_seqlens_q, max_seqlen_q)
        table = cache.rows(page_table, cache_batch_idx, batch)
        index = cache_batch_idx if table is None else None
        seqlens = cache.lengths(cache_seqlens, batch, q.device)
        uniform = not packed or q.shape[0] == batch * most  # each sequence has at most so many
        width = k_cache.shape[1] * (1 if table is None else table.shape[1])
        if _open_right(window_size, causal) and most > width + 1:
            raise ValueError(f"window_size {tuple(window_size)} is not supported ({NAME}, not causal, with {most} "
                             f"queries of a sequence: over a cache of {width} tokens {width + 1} queries, or a bound "
                             "on the right)")
        if k is not None:
            require(NAME, "with k", v=v, cache_seqlens=cache_seqlens)
            # It counts a group of heads as so many queries of one, and asks that many rows of the cache of them.
            group = q.shape[-2] // k.shape[-2]
            if (not q.numel() or group > width
                    or not cache.fused(q, k, cu_seqlens_q, cu_seqlens_k_new, batch, most)):
                seqlens = cache.write(k, v, k_cache, v_cache, seqlens, cu_seqlens_k_new, table, index, batch)
                k = v = None
        else:
            refuse(f"{NAME} without k", WITH_KVCACHE, {"v": v, "cu_seqlens_k_new": cu_seqlens_k_new})
        if not q.numel():  # a grid of no blocks is a CUDA error
            return _empty(q, v_cache, packed, return_softmax_lse)
        mask = {"softmax_scale": scale if softmax_scale is None else softmax_scale, "causal": causal,
                "window_size": window_size, "softcap": softcap}
        at = None
        if not uniform:
            ask = table is not None and seqlens is not None and not num_splits and _may_ask_the_host()
            way, plan = route(q.device, (seqlens, cu_seqlens_q), (q.shape[0], batch, most, ask))
            if way == "varlen":
                result = varlen(q, k_cache, v_cache, cu_seqlens_q, plan, max(most, 2), width, block_table=table,
                                return_attn_probs=return_softmax_lse, **mask)
                return out_and_lse(result) if return_softmax_lse else result
            at = plan
        rows = q if at is None else q.new_zeros(batch * most, *q.shape[1:]).index_copy_(0, at, q)
        result = decode(rows.view(batch, most, *q.shape[-2:]), k_cache, v_cache, k=k, v=v, cache_seqlens=seqlens,
                        cache_batch_idx=index, block_table=table, num_splits=num_splits,
                        return_softmax_lse=return_softmax_lse, **mask)
        if not packed:
            return out_and_lse(result) if return_softmax_lse else result
        out, lse = out_and_lse(result) if return_softmax_lse else (result, None)
        out = out.view(-1, *out.shape[-2:])
        out = out if at is None else out.index_select(0, at)
        if lse is None:
            return out
        lse = lse.transpose(0, 1).reshape(lse.shape[1], -1)
        return out, lse if at is None else lse.index_select(1, at)

    return flash_attn_with_kvcache


def varlen_func(vendor: Any, config: AttentionConfig, kvcache: Function) -> Function:
    scale, varlen = config.softmax_scale, vendor.flash_attn_varlen_func

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_k: Any = None, page_table: Any = None, softmax_scale: float | None = None,
                               return_attn_probs: bool = False, return_softmax_lse: bool = False,
                               **given: Any) -> Any:
        keep(_VARLEN, NAME, VARLEN, given)
        lse = return_attn_probs or return_softmax_lse
        if page_table is not None:
            given.pop("deterministic", None)  # of the backward pass; the forward one always is, unless keys are split
            refuse(f"{NAME} with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require(NAME, "with page_table", seqused_k=seqused_k)
            return kvcache(q, k, v, cache_seqlens=seqused_k, page_table=page_table, cu_seqlens_q=cu_seqlens_q,
                           max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale, return_softmax_lse=lse, **given)
        refuse(f"{NAME} without page_table", VARLEN, {"seqused_k": seqused_k})
        require(NAME, "without page_table", cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
                max_seqlen_k=max_seqlen_k)
        if not q.numel():
            return _empty(q, v, True, lse)
        assert max_seqlen_q is not None
        assert max_seqlen_k is not None
        if _open_right(given.get("window_size", (-1, -1)), bool(given.get("causal", False))):
            max_seqlen_k = max(max_seqlen_k, max_seqlen_q)
        # Of 1 it makes another call: exactly one query a sequence, whatever cu_seqlens_q says.
        result = varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max(max_seqlen_q, 2), max_seqlen_k,
                        softmax_scale=scale if softmax_scale is None else softmax_scale, block_table=None,
                        return_attn_probs=lse, **given)
        return out_and_lse(result) if lse else result

    return flash_attn_varlen_func


def _open_right(window_size: Any, causal: bool) -> bool:
    """Whether keys are bounded on the left alone. The kernel then bounds them on the right too, by max_seqlen_k or the
    cache's width (flash_api.cpp, set_params_fprop), which hides keys where there are more queries than that and one."""
    left, right = window_size
    return left >= 0 and right < 0 and not causal


def splits(name: str, num_splits: int, one: bool) -> int:
    """num_splits of the call; one: the config is deterministic, so results must not depend on the batch they are in."""
    if one and num_splits not in (0, 1):
        raise ValueError(f"num_splits {num_splits} is not supported ({name} with deterministic: 1, which 0 means then)")
    return 1 if one else num_splits


def out_and_lse(result: Any, sinks: Any = None) -> tuple[Tensor, Tensor]:
    """Exactly two of what versions 2 and 3 return. A row without keys has an LSE of +inf, -inf or NaN's neighbour by
    version, provider and tile: the contract's is the sink, or -inf."""
    import torch

    out, lse = result[:2]
    if sinks is None:
        return out, lse.masked_fill_(lse == float("inf"), float("-inf"))
    return out, torch.where(lse.isinf(), sinks.float()[:, None], lse)


def _may_ask_the_host() -> bool:
    """Inside a forward context lengths are on the host at most one copy a step; a graph must not depend on them."""
    context = STATE.current
    return context is not None and context.epoch is not None and context.epoch.graph is None


def _make_route(device: Any, seqlens: Tensor, cu_seqlens_q: Tensor, total: int, batch: int, most: int,
                ask: bool) -> tuple[str, Tensor]:
    """("varlen", cu_seqlens_k), or ("rows", where each query goes among batch * most).

    The kernel for pages writes the LSE of a tile of queries without any key to where unpacked ones would have it: over
    others' or past the end (flash_fwd_kernel.h, row_offset_lseaccum of the early exit). So no query may be without.
    """
    import torch

    if ask:
        ends, keys = host(cu_seqlens_q), host(seqlens)
        if all(key >= end - start for start, end, key in zip(ends, ends[1:], keys)):
            return "varlen", torch.nn.functional.pad(seqlens.cumsum(0, dtype=torch.int32), (1, 0))
    owner, row = cache.owners(cu_seqlens_q, total)
    # Last rows of a sequence are its last: the mask is bottom-right aligned.
    return "rows", (owner + 1) * most - (cu_seqlens_q[1:][owner] - row)


def _empty(q: Tensor, v: Tensor, packed: bool, lse: bool) -> Any:
    import torch

    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    shape = (q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1])
    return (out, q.new_empty(shape, dtype=torch.float32)) if lse else out
