"""The float64 oracle: both functions of hal.contract, every feature, blockwise. It judges all else.

Written for being read beside the contract, not for speed, and shares no code with any backend. Returns
float64. It does not validate: hand it valid calls, on CPU tensors. Scores are computed in blocks with a
running maximum, so that 32k tokens fit in memory. Sources of the rules: hal/contract.py and, for what it leaves to
FlashAttention-3, hopper/{mask.h, seqlen.h, rotary.h, flash_attn_interface.py} of that project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK_Q, BLOCK_K = 256, 1024
INF = float("inf")


def visible(p: Tensor, key: Tensor, len_k: int, causal: bool, window: tuple[int, int], chunk: int) -> Tensor:
    """bool [len(p), len(key)]: does the query at position p see the key at position key? (mask.h)"""
    p, key = p[:, None], key[None, :]
    left, right = window
    if causal:
        right = 0
    seen = (key < len_k).expand(p.shape[0], -1)
    if left >= 0:
        seen = seen & (p - key <= left)
    if right >= 0:
        seen = seen & (key - p <= right)
    if chunk > 0:
        start = torch.div(p, chunk, rounding_mode="floor") * chunk
        seen = seen & (key >= start) & (key < start + chunk)
    return seen


def attend(q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, scale: float, softcap: float, sinks: Tensor | None,
           mask: Callable[[int, int, int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """One sequence: q [Lq, Hq, D], k [Lk, Hkv, D], v [Lk, Hkv, Dv], all float64; mask(i0, i1, j0, j1) -> bool.

    Returns out [Lq, Hq, Dv] and lse [Hq, Lq].
    """
    len_q, hq = q.shape[:2]
    group = hq // k.shape[1]
    out = q.new_zeros(len_q, hq, v.shape[2])
    lse = q.new_full((hq, len_q), -INF)
    for i0 in range(0, len_q, BLOCK_Q):
        i1 = min(i0 + BLOCK_Q, len_q)
        top = q.new_full((hq, i1 - i0), -INF)
        total = q.new_zeros(hq, i1 - i0)
        acc = q.new_zeros(hq, i1 - i0, v.shape[2])
        for j0 in range(0, k.shape[0], BLOCK_K):
            j1 = min(j0 + BLOCK_K, k.shape[0])
            seen = mask(i0, i1, j0, j1)
            if not bool(seen.any()):
                continue
            # Keys that no row of this block sees must not be read: they may hold NaN.
            used = seen.any(0)[:, None, None]
            kb = torch.where(used, k[j0:j1], 0.0).repeat_interleave(group, dim=1)
            vb = torch.where(used, v[j0:j1], 0.0).repeat_interleave(group, dim=1)
            s = torch.einsum("ihd,jhd->hij", q[i0:i1], kb)
            if qv is not None:
                s = s + torch.einsum("ihd,jhd->hij", qv[i0:i1], vb)
            s = s * scale
            if softcap > 0:
                s = softcap * torch.tanh(s / softcap)
            s = torch.where(seen, s, -INF)
            new_top = torch.maximum(top, s.amax(-1))
            # A row that has seen nothing yet has new_top -inf: shift by 0 there, exp(-inf) is 0.
            shift = torch.where(new_top == -INF, 0.0, new_top)
            weight = torch.exp(s - shift[:, :, None])
            decay = torch.exp(top - shift)
            total = total * decay + weight.sum(-1)
            acc = acc * decay[:, :, None] + torch.einsum("hij,jhd->hid", weight, vb)
            top = new_top
        if sinks is not None:
            sink = sinks[:, None]
            new_top = torch.maximum(top, sink)
            decay = torch.exp(top - new_top)
            total = total * decay + torch.exp(sink - new_top)
            acc = acc * decay[:, :, None]
            top = new_top
        # Only a row that saw nothing is empty: a NaN that was seen stays one.
        out[i0:i1] = torch.where(total[:, :, None] == 0, 0.0, acc / total[:, :, None]).transpose(0, 1)
        lse[:, i0:i1] = torch.where(total == 0, -INF, top + torch.log(total))
    return out, lse


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of x [T, H, D] at positions [T]; cos, sin [S, R/2]; dims past R pass through (rotary.h)."""
    half = cos.shape[1]
    c, s = cos.double()[positions][:, None, :], sin.double()[positions][:, None, :]
    turned = x.double().clone()
    if interleaved:
        a, b = x[..., 0 : 2 * half : 2].double(), x[..., 1 : 2 * half : 2].double()
        turned[..., 0 : 2 * half : 2], turned[..., 1 : 2 * half : 2] = a * c - b * s, a * s + b * c
    else:
        a, b = x[..., :half].double(), x[..., half : 2 * half].double()
        turned[..., :half], turned[..., half : 2 * half] = a * c - b * s, a * s + b * c
    return turned


def _descale(x: Tensor, descale: Any, b: int) -> Tensor:
    """x [T, H, D] as float64 times its descale: a scalar, or row b of [B, Hkv] (a KV head's group of query heads)."""
    x = x.double()
    if descale is None:
        return x
    scale = torch.as_tensor(descale).double()
    if scale.numel() == 1:
        return x * scale.reshape(())
    return x * scale[b].repeat_interleave(x.shape[1] // scale.shape[1])[None, :, None]


def _rows(q: Tensor, cu_seqlens_q: Tensor | None, seqused_q: Tensor | None = None) -> list[tuple[int, int]]:
    """(first, last + 1) of each sequence's rows in q flattened to [total_q, Hq, D]."""
    if cu_seqlens_q is None:
        return [(b * q.shape[1], (b + 1) * q.shape[1]) for b in range(q.shape[0])]
    cu = cu_seqlens_q.tolist()
    used = [cu[b + 1] - cu[b] for b in range(len(cu) - 1)] if seqused_q is None else seqused_q.tolist()
    return [(cu[b], cu[b] + used[b]) for b in range(len(cu) - 1)]


def _ints(value: Any, default: list[int]) -> list[int]:
    """A length argument as a list: an int for all sequences, a tensor, or the default."""
    if value is None:
        return default
    return [value] * len(default) if isinstance(value, int) else [int(x) for x in value]


def _sequence_mask(b: int, rows: tuple[int, int], len_k: int, causal: bool, window: tuple[int, int], chunk: int,
                   packed: bool, tree_mask: Tensor | None, ranges: Tensor | None, cp_world_size: int, cp_rank: int,
                   ) -> Callable[[int, int, int, int], Tensor]:
    """The mask of sequence b. len_k is its global length; local key j is at position j * cp_world_size + cp_rank."""
    first, last = rows
    len_q = last - first
    pairs = [] if ranges is None else [(int(a), int(e)) for a, e in ranges[b] if a >= 0]

    def mask(i0: int, i1: int, j0: int, j1: int) -> Tensor:
        i, j = torch.arange(i0, i1), torch.arange(j0, j1)
        p = i + len_k - len_q
        key = j * cp_world_size + cp_rank
        seen = visible(p, key, len_k, causal, window, chunk)
        if tree_mask is not None:
            step = key - (len_k - len_q)
            tree = tree_mask[first + i] if packed else tree_mask[b][i]
            own = (step >= 0)[None, :].expand_as(seen)
            seen = torch.where(own, tree[:, step.clamp(0, tree.shape[1] - 1)], seen)
        for start, end in pairs:
            inside_p, inside_key = (p >= start) & (p < end), (key >= start) & (key < end)
            seen = seen | (inside_p[:, None] & inside_key[None, :] & (key < len_k))
        return seen

    return mask


def _attend_sparse(q: Tensor, qv: Tensor | None, k_cache: Tensor, v_cache: Tensor, k_descale: Any, v_descale: Any,
                   b: int, indices: Tensor, scale: float, softcap: float, sinks: Tensor | None,
                   ) -> tuple[Tensor, Tensor]:
    """One sequence whose query i sees exactly the slots indices[i] (-1: none), page * page_size + offset."""
    page_size = k_cache.shape[1]
    outs, lses = [], []
    for i in range(q.shape[0]):
        slots = indices[i][indices[i] >= 0].long()
        page, offset = slots // page_size, slots % page_size
        out, lse = attend(q[i : i + 1], _descale(k_cache[page, offset], k_descale, b),
                          _descale(v_cache[page, offset], v_descale, b), None if qv is None else qv[i : i + 1],
                          scale, softcap, sinks, lambda i0, i1, j0, j1: torch.ones(i1 - i0, j1 - j0, dtype=torch.bool))
        outs.append(out)
        lses.append(lse)
    if not outs:
        return q.new_zeros(0, q.shape[1], v_cache.shape[-1]), q.new_zeros(q.shape[1], 0)
    return torch.cat(outs), torch.cat(lses, dim=1)


def _scale(softmax_scale: float | None, q: Tensor, qv: Tensor | None) -> float:
    if softmax_scale is not None:
        return softmax_scale
    if qv is not None:
        raise ValueError("softmax_scale: got None, expected a number with qv: no default is any model's")
    return float(q.shape[-1] ** -0.5)


def _finish(result: Tensor, lse: Tensor, q: Tensor, packed: bool, out: Tensor | None, want_lse: bool) -> Any:
    """Shapes of the contract: out like q with Dv; lse [Hq, total_q] or [B, Hq, Sq]."""
    if not packed:
        result = result.view(*q.shape[:-1], result.shape[-1])
        lse = lse.view(lse.shape[0], q.shape[0], q.shape[1]).transpose(0, 1).contiguous()
    if out is not None:
        out.copy_(result)
    return (result, lse) if want_lse else result


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None,
    qv: Tensor | None = None, rotary_cos: Tensor | None = None, rotary_sin: Tensor | None = None,
    cache_seqlens: Any = None, cache_batch_idx: Tensor | None = None, cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None, cu_seqlens_q: Tensor | None = None, cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None, rotary_seqlens: Tensor | None = None, q_descale: Any = None,
    k_descale: Any = None, v_descale: Any = None, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0,
    rotary_interleaved: bool = True, scheduler_metadata: Any = None, num_splits: int = 0, pack_gqa: Any = None,
    sm_margin: int = 0, return_softmax_lse: bool = False, *, sinks: Tensor | None = None, out: Tensor | None = None,
    tree_mask: Tensor | None = None, mm_prefix_ranges: Tensor | None = None, sparse_indices: Tensor | None = None,
    cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Tensor | None = None,
) -> Any:
    """hal.contract.flash_attn_with_kvcache in float64. Appends to the caches in place, as the contract says."""
    packed = cu_seqlens_q is not None
    rows = _rows(q, cu_seqlens_q)
    batch = len(rows)
    flat_q = q.reshape(-1, *q.shape[-2:])
    flat_qv = None if qv is None else qv.reshape(-1, *qv.shape[-2:])
    result = torch.zeros(flat_q.shape[0], flat_q.shape[1], v_cache.shape[-1], dtype=torch.float64)
    lse = torch.full((flat_q.shape[1], flat_q.shape[0]), -INF, dtype=torch.float64)
    page_size = k_cache.shape[1]
    capacity = page_size if page_table is None else page_table.shape[1] * page_size
    owner = _ints(cache_batch_idx, list(range(batch)))
    before = _ints(cache_seqlens, [capacity] * batch)
    leftpad = _ints(cache_leftpad, [0] * batch)
    scale = _scale(softmax_scale, q, qv)
    local = window_size[0] >= 0 or window_size[1] >= 0 or attention_chunk > 0

    def place(b: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Indices (page, offset) of tokens start..end of sequence b."""
        token = torch.arange(start, end)
        if page_table is None:
            return torch.full_like(token, owner[b]), token
        return page_table[owner[b]].long()[token // page_size], token % page_size

    appended = [0] * batch
    if k is not None and v is not None:
        new_rows = _rows(k, cu_seqlens_k_new)
        flat_k, flat_v = k.reshape(-1, *k.shape[-2:]), v.reshape(-1, *v.shape[-2:])
        for b, (first, last) in enumerate(new_rows):
            appended[b] = last - first
            page, offset = place(b, before[b], before[b] + appended[b])
            new_k = flat_k[first:last]
            if rotary_cos is not None and rotary_sin is not None:
                start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])
                positions = start + torch.arange(appended[b])
                new_k = rotate(new_k, rotary_cos, rotary_sin, positions, rotary_interleaved).to(k_cache.dtype)
            k_cache[page, offset] = new_k.to(k_cache.dtype)
            v_cache[page, offset] = flat_v[first:last].to(v_cache.dtype)

    for b, (first, last) in enumerate(rows):
        len_q = last - first
        end = before[b] + appended[b]
        qb = flat_q[first:last].double()
        if rotary_cos is not None and rotary_sin is not None:
            start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])
            # Neither causal nor local: every query stands at the start position (FlashAttention-3's rule).
            positions = start + (torch.arange(len_q) if causal or local else torch.zeros(len_q, dtype=torch.long))
            # The kernel holds rotated queries in q's dtype, as it does keys in the cache's (rotary.h).
            qb = rotate(qb, rotary_cos, rotary_sin, positions, rotary_interleaved).to(q.dtype).double()
        qb = _descale(qb, q_descale, b)
        qvb = None if flat_qv is None else _descale(flat_qv[first:last], q_descale, b)
        sink = None if sinks is None else sinks.double()
        if sparse_indices is not None:
            result[first:last], lse[:, first:last] = _attend_sparse(
                qb, qvb, k_cache, v_cache, k_descale, v_descale, b, sparse_indices[first:last], scale, softcap, sink)
            continue
        page, offset = place(b, leftpad[b], end)
        kb, vb = _descale(k_cache[page, offset], k_descale, b), _descale(v_cache[page, offset], v_descale, b)
        len_k = end - leftpad[b] if cp_tot_seqused_k is None else int(cp_tot_seqused_k[b])
        mask = _sequence_mask(b, (first, last), len_k, causal, window_size, attention_chunk, packed, tree_mask,
                              mm_prefix_ranges, cp_world_size, cp_rank)
        result[first:last], lse[:, first:last] = attend(qb, kb, vb, qvb, scale, softcap, sink, mask)
    return _finish(result, lse, q, packed, out, return_softmax_lse)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None, softmax_scale: float | None = None, causal: bool = False,
    qv: Tensor | None = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False, *,
    return_softmax_lse: bool = False, page_table: Tensor | None = None, sinks: Tensor | None = None,
    out: Tensor | None = None, tree_mask: Tensor | None = None, mm_prefix_ranges: Tensor | None = None,
    sparse_indices: Tensor | None = None, cp_world_size: int = 1, cp_rank: int = 0,
    cp_tot_seqused_k: Tensor | None = None,
) -> Any:
    """hal.contract.flash_attn_varlen_func in float64. Rows past seqused_q come back as 0, LSE -inf."""
    rows = _rows(q, cu_seqlens_q, seqused_q)
    result = torch.zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=torch.float64)
    lse = torch.full((q.shape[1], q.shape[0]), -INF, dtype=torch.float64)
    scale = _scale(softmax_scale, q, qv)
    sink = None if sinks is None else sinks.double()
    for b, (first, last) in enumerate(rows):
        qb = _descale(q[first:last], q_descale, b)
        qvb = None if qv is None else _descale(qv[first:last], q_descale, b)
        if sparse_indices is not None:
            result[first:last], lse[:, first:last] = _attend_sparse(
                qb, qvb, k, v, k_descale, v_descale, b, sparse_indices[first:last], scale, softcap, sink)
            continue
        if page_table is not None:
            assert seqused_k is not None
            token = torch.arange(int(seqused_k[b]))
            page, offset = page_table[b].long()[token // k.shape[1]], token % k.shape[1]
            kb, vb = k[page, offset], v[page, offset]
        else:
            assert cu_seqlens_k is not None
            start = int(cu_seqlens_k[b])
            end = int(cu_seqlens_k[b + 1]) if seqused_k is None else start + int(seqused_k[b])
            kb, vb = k[start:end], v[start:end]
        kb, vb = _descale(kb, k_descale, b), _descale(vb, v_descale, b)
        len_k = kb.shape[0] if cp_tot_seqused_k is None else int(cp_tot_seqused_k[b])
        mask = _sequence_mask(b, (first, last), len_k, causal, window_size, attention_chunk, True, tree_mask,
                              mm_prefix_ranges, cp_world_size, cp_rank)
        result[first:last], lse[:, first:last] = attend(qb, kb, vb, qvb, scale, softcap, sink, mask)
    return _finish(result, lse, q, True, out, return_softmax_lse or return_attn_probs)
