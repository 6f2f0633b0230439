"""Both functions of hal.contract, one (query, head, key) at a time in Python floats: what the oracle is checked by.

Written from hal/contract.py and, for what that leaves to FlashAttention-3, the documentation of
hopper/flash_attn_interface.py. It shares no code with hal.oracle, has no blocks and no tensor arithmetic, and is for
a handful of tokens. Hand it valid calls, on CPU tensors.
"""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal.contract import VARLEN, WITH_KVCACHE

INF = float("inf")
Vector = list[float]
Place = tuple[int, int]  # page and offset in it; row and token of an unpaged cache; 0 and row of packed keys


class Sequence(NamedTuple):
    """One sequence of the batch: its rows of q, and where its keys lie in the order of their positions."""

    b: int
    rows: range
    places: list[Place]
    len_k: int  # as positions count it: under context parallelism the global length


def with_kvcache(**call: Any) -> tuple[Tensor, Tensor]:
    """flash_attn_with_kvcache, appending into the caches it is given.

    Returns out [.., Hq, Dv] and lse, [B, Hq, Sq] or packed [Hq, total_q], both float64.
    """
    a = _kvcache(call)
    q = a.q.reshape(-1, *a.q.shape[-2:])
    _append(a)
    if a.rotary_cos is not None:
        q = q.clone()
        local = tuple(a.window_size) != (-1, -1) or a.attention_chunk > 0
        for s in a.sequences:
            for i, row in enumerate(s.rows):
                # "If not causal and not local, the query will be rotated at indices cache_seqlens only."
                position = a.rotary_start[s.b] + (i if a.causal or local else 0)
                q[row] = _turned(q[row], position, a)
    out, lse = _attend(a, q)
    if a.cu_seqlens_q is None:
        batch, len_q = a.q.shape[:2]
        out = out.view(batch, len_q, *out.shape[1:])
        lse = lse.view(-1, batch, len_q).permute(1, 0, 2)
    return out, lse


def varlen(**call: Any) -> tuple[Tensor, Tensor]:
    """flash_attn_varlen_func. Returns out [total_q, Hq, Dv] and lse [Hq, total_q], both float64.

    Rows past seqused_q, which the contract leaves open, are 0 and -inf, as the oracle promises.
    """
    a = _varlen(call)
    return _attend(a, a.q)


def kvcache_reads(**call: Any) -> set[Place]:
    """Where the keys lie that flash_attn_with_kvcache may read, the appended ones among them."""
    return _reads(_kvcache(call))


def varlen_reads(**call: Any) -> set[Place]:
    """Where the keys lie that flash_attn_varlen_func may read."""
    return _reads(_varlen(call))


# --- where everything lies ---------------------------------------------------------------------------------------


def _arguments(signature: inspect.Signature, call: dict[str, Any]) -> SimpleNamespace:
    """Every argument by its name in the contract, defaults filled in."""
    bound = signature.bind(**call)
    bound.apply_defaults()
    return SimpleNamespace(**bound.arguments)


def _kvcache(call: dict[str, Any]) -> SimpleNamespace:
    """The arguments with keys, values [pages, page_size, Hkv, D(v)], sequences, new_rows and rotary_start."""
    a = _arguments(WITH_KVCACHE, call)
    a.keys, a.values = a.k_cache, a.v_cache
    rows = _ranges(a.q, a.cu_seqlens_q)
    batch = range(len(rows))
    a.owner = [b if a.cache_batch_idx is None else int(a.cache_batch_idx[b]) for b in batch]
    if a.cache_seqlens is None:  # the whole cache
        whole = a.k_cache.shape[1] * (1 if a.page_table is None else a.page_table.shape[1])
        a.before = [whole for _ in batch]
    else:
        a.before = [a.cache_seqlens if isinstance(a.cache_seqlens, int) else int(a.cache_seqlens[b]) for b in batch]
    a.new_rows = [range(0) for _ in batch] if a.k is None else _ranges(a.k, a.cu_seqlens_k_new)
    a.rotary_start = a.before if a.rotary_seqlens is None else a.rotary_seqlens.tolist()
    a.sequences = []
    for b in batch:
        first = 0 if a.cache_leftpad is None else int(a.cache_leftpad[b])
        places = [_place(a, b, token) for token in range(first, a.before[b] + len(a.new_rows[b]))]
        a.sequences.append(Sequence(b, rows[b], places, _len_k(a, b, len(places))))
    return a


def _varlen(call: dict[str, Any]) -> SimpleNamespace:
    """The arguments with keys, values [pages, page_size, Hkv, D(v)] (packed keys are one page) and sequences."""
    a = _arguments(VARLEN, call)
    paged = a.page_table is not None
    a.keys, a.values = (a.k, a.v) if paged else (a.k[None], a.v[None])
    a.sequences = []
    for b, rows in enumerate(_ranges(a.q, a.cu_seqlens_q)):
        if a.seqused_q is not None:
            rows = rows[: int(a.seqused_q[b])]
        if paged:
            places = [_slot(a.page_table[b], token, a.k.shape[1]) for token in range(int(a.seqused_k[b]))]
        else:
            places = [(0, row) for row in range(int(a.cu_seqlens_k[b]), int(a.cu_seqlens_k[b + 1]))]
            if a.seqused_k is not None:
                places = places[: int(a.seqused_k[b])]
        a.sequences.append(Sequence(b, rows, places, _len_k(a, b, len(places))))
    return a


def _ranges(x: Tensor, cu_seqlens: Tensor | None) -> list[range]:
    """The rows of each sequence in x [B, S, H, D] or packed [total, H, D], flattened to [total, H, D]."""
    if cu_seqlens is None:
        return [range(b * x.shape[1], (b + 1) * x.shape[1]) for b in range(x.shape[0])]
    return [range(int(cu_seqlens[b]), int(cu_seqlens[b + 1])) for b in range(len(cu_seqlens) - 1)]


def _slot(table: Tensor, token: int, page_size: int) -> Place:
    return int(table[token // page_size]), token % page_size


def _place(a: SimpleNamespace, b: int, token: int) -> Place:
    """Where token number `token` of sequence b lies in the cache: cache_batch_idx names a row of it or of the table."""
    if a.page_table is None:
        return a.owner[b], token
    return _slot(a.page_table[a.owner[b]], token, a.k_cache.shape[1])


def _len_k(a: SimpleNamespace, b: int, local: int) -> int:
    return local if a.cp_tot_seqused_k is None else int(a.cp_tot_seqused_k[b])


# --- the rules ---------------------------------------------------------------------------------------------------


def _append(a: SimpleNamespace) -> None:
    """k and v are written at cache_seqlens, in the cache's dtype; k is rotated at its position from rotary_start."""
    if a.k is None:
        return
    k, v = a.k.reshape(-1, *a.k.shape[-2:]), a.v.reshape(-1, *a.v.shape[-2:])
    for s in a.sequences:
        for t, row in enumerate(a.new_rows[s.b]):
            place = _place(a, s.b, a.before[s.b] + t)
            new = k[row] if a.rotary_cos is None else _turned(k[row], a.rotary_start[s.b] + t, a)
            a.k_cache[place] = new.to(a.k_cache.dtype)
            a.v_cache[place] = v[row].to(a.v_cache.dtype)


def _turned(x: Tensor, position: int, a: SimpleNamespace) -> Tensor:
    """x [H, D] after rotary embedding, in its own dtype. Each pair is a complex number, turned by cos + i sin.

    Pairs are (0, 1), (2, 3), .. if interleaved, else (0, R/2), (1, R/2 + 1), ..; dimensions from R on stay.
    """
    half = a.rotary_cos.shape[1]
    turned = x.to(torch.float64, copy=True)
    for h in range(x.shape[0]):
        for m in range(half):
            left, right = (2 * m, 2 * m + 1) if a.rotary_interleaved else (m, m + half)
            by = complex(a.rotary_cos[position, m], a.rotary_sin[position, m])
            z = complex(x[h, left], x[h, right]) * by
            turned[h, left], turned[h, right] = z.real, z.imag
    return turned.to(x.dtype)


def _sees(a: SimpleNamespace, s: Sequence, i: int, key: int) -> bool:
    """Does query i of the sequence see the key at position `key`? The contract's paragraph "Mask", line by line."""
    len_q = len(s.rows)
    p = i + s.len_k - len_q
    left, right = a.window_size
    if a.causal:
        right = 0
    step = key - (s.len_k - len_q)
    if a.tree_mask is not None and step >= 0:
        seen = bool(a.tree_mask[s.b, i, step] if a.cu_seqlens_q is None else a.tree_mask[s.rows[i], step])
    else:
        seen = (left == -1 or p - left <= key) and (right == -1 or key <= p + right)
        if a.attention_chunk > 0:
            chunk = math.floor(p / a.attention_chunk)
            seen = seen and chunk * a.attention_chunk <= key < (chunk + 1) * a.attention_chunk
    if a.mm_prefix_ranges is not None:
        for start, end in a.mm_prefix_ranges[s.b].tolist():
            if start != -1 and start <= p < end and start <= key < end:
                seen = True
    return seen


def _seen(a: SimpleNamespace, s: Sequence, i: int) -> list[Place]:
    """Where the keys lie that query i of the sequence sees. Rank r of n holds the tokens r, r + n, ..."""
    if a.sparse_indices is not None:
        slots = a.sparse_indices[s.rows[i]].tolist()
        return [divmod(slot, a.keys.shape[1]) for slot in slots if slot != -1]
    return [place for j, place in enumerate(s.places) if _sees(a, s, i, j * a.cp_world_size + a.cp_rank)]


def _reads(a: SimpleNamespace) -> set[Place]:
    return {place for s in a.sequences for i in range(len(s.rows)) for place in _seen(a, s, i)}


def _descale(descale: Any, b: int, head: int) -> float:
    """The factor of a KV head: real = stored * descale; a scalar, or [B, Hkv]."""
    if descale is None:
        return 1.0
    return float(descale[b, head] if isinstance(descale, Tensor) and descale.dim() == 2 else descale)


def _softmax(q: Vector, qv: Vector | None, keys: list[Vector], values: list[Vector], dim_v: int, scale: float,
             softcap: float, sink: float | None) -> tuple[Vector, float]:
    """One query of one head over the keys that it sees. Returns its output [Dv] and its LSE."""
    scores = []
    for key, value in zip(keys, values):
        score = sum(x * y for x, y in zip(q, key))
        if qv is not None:
            score += sum(x * y for x, y in zip(qv, value))
        score *= scale
        scores.append(softcap * math.tanh(score / softcap) if softcap > 0 else score)
    logits = scores if sink is None else [*scores, sink]
    if not logits:
        return [0.0] * dim_v, -INF
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    weights = [math.exp(x - top) / total for x in scores]
    return [sum(w * value[d] for w, value in zip(weights, values)) for d in range(dim_v)], top + math.log(total)


def _attend(a: SimpleNamespace, q: Tensor) -> tuple[Tensor, Tensor]:
    """q [total_q, Hq, D], already rotated. Returns out [total_q, Hq, Dv] and lse [Hq, total_q]."""
    total_q, heads, dim = q.shape
    group, dim_v = heads // a.keys.shape[2], a.values.shape[-1]
    scale = dim**-0.5 if a.softmax_scale is None else a.softmax_scale
    out = torch.zeros(total_q, heads, dim_v, dtype=torch.float64)
    lse = torch.full((heads, total_q), -INF, dtype=torch.float64)
    keys, values, queries = a.keys.double().tolist(), a.values.double().tolist(), q.double().tolist()
    latent = None if a.qv is None else a.qv.reshape(total_q, heads, dim_v).double().tolist()
    for s in a.sequences:
        for i, row in enumerate(s.rows):
            seen = _seen(a, s, i)
            for h in range(heads):
                g = h // group
                by_q, by_k, by_v = (_descale(x, s.b, g) for x in (a.q_descale, a.k_descale, a.v_descale))
                result, lse[h, row] = _softmax(
                    [x * by_q for x in queries[row][h]],
                    None if latent is None else [x * by_q for x in latent[row][h]],
                    [[x * by_k for x in keys[page][offset][g]] for page, offset in seen],
                    [[x * by_v for x in values[page][offset][g]] for page, offset in seen],
                    dim_v, scale, a.softcap, None if a.sinks is None else float(a.sinks[h]))
                out[row, h] = torch.tensor(result, dtype=torch.float64)
    return out, lse
