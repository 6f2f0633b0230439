"""MATE's dense kernel: tiles of query rows against tiles of 64 keys, in float32, on plain CPU tensors.

It reads what the real one reads, tile by tile, so that NaN that a tile loads shows up and NaN that none loads does not.
Sources are paths of MATE v0.2.2 under include/mate/attention/fmha/, where no other folder is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from emulators.mate_common import TILE_N, Unspecified, ceil_div, unwritten
from emulators.mate_schedule import MAX_SPLITS, ROUNDED, Mask, Tiles

Optional = torch.Tensor | None


@dataclass
class Problem:
    """Plain tensors and host numbers. lengths in tokens, by sequence of the call."""

    q: torch.Tensor  # [total, H, D]
    k: torch.Tensor  # as the caller's: [pages, page_size, Hkv, D], [B, S, Hkv, D] or [total, Hkv, D]
    v: torch.Tensor
    offset_q: list[int]  # where a sequence's rows begin in q
    len_q: list[int]
    old_k: list[int]  # keys before the append, leftpad off
    leftpad: list[int]
    padded: bool  # whether there is a leftpad tensor, of whatever values
    cu_k: list[int] | None
    rows_kv: list[int]  # which row of the cache or of the page table: cache_batch_idx
    page_table: list[list[int]] | None
    k_new: Optional  # [total, Hkv, D]
    v_new: Optional
    offset_new: list[int]
    len_new: list[int]
    rotary: tuple[torch.Tensor, torch.Tensor, bool] | None  # cos, sin [S, rotary_dim / 2], interleaved
    rotary_start: list[int]
    scale: float
    mask: Mask
    chunk: int
    softcap: float
    sink: Optional
    cp: tuple[int, int, list[int]] | None  # world size, rank, global lengths
    tile: Tiles
    max_seqlen_q: int
    schedule: list[int] | None  # of get_scheduler_metadata
    num_splits: int  # that the forward call makes room for
    out: torch.Tensor  # [total, H, Dv]
    lse: torch.Tensor  # [H, total]

    @cached_property
    def size(self) -> tuple[int, ...]:
        """k.shape: asked of a tensor for each key it takes most of an emulated call's time."""
        return tuple(self.k.shape)

    @property
    def ratio(self) -> int:
        return int(self.q.shape[-2] // self.k.shape[-2])

    @property
    def by_threads(self) -> bool:
        """K is loaded by threads and not by the tensor engine; mp31_fmha_fwd_tme_warpspecialized.hpp:118-120."""
        if self.page_table is not None:
            return self.k.shape[1] != TILE_N or self.padded
        return self.cu_k is not None or self.padded


class Slot(NamedTuple):
    """One entry of the schedule."""

    sequence: int
    splits: int
    m_blocks: int


def slots(p: Problem) -> list[Slot]:
    """fmha_fwd_kernel.hpp:338-345: the schedule is followed as it is, whatever it was made for."""
    batch, blocks = len(p.len_q), ceil_div(p.max_seqlen_q * (p.ratio if p.tile.pack_gqa else 1), p.tile.tile_m)
    if p.schedule is None:
        # Without a schedule a block past the end of its own sequence does nothing; tile_scheduler.hpp:89-100.
        ends = [ceil_div(n * (p.ratio if p.tile.pack_gqa else 1), p.tile.tile_m) for n in p.len_q]
        return [Slot(b, 1, min(blocks, ends[b])) for b in range(batch)]
    splits, table, m_blocks = (p.schedule[batch * i : batch * (i + 1)] for i in range(3))
    for b in table:
        if not 0 <= b < batch:
            raise Unspecified(f"scheduler_metadata names sequence {b} of {batch}: it is read out of bounds")
    return [Slot(b, s, min(blocks, m)) for b, s, m in zip(table, splits, m_blocks)]


def run(p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes p.out and p.lse. Returns o_accum [splits, H, total, Dv] and lse_accum [splits, H, total]."""
    total, heads, dim_v = p.q.shape[0], p.q.shape[1], p.v.shape[-1]
    o_accum = unwritten((p.num_splits, heads, total, dim_v), torch.float32)
    lse_accum = unwritten((p.num_splits, heads, total), torch.float32)
    todo = slots(p)
    appended: set[int] = set()
    for slot in todo:
        b, splits = slot.sequence, slot.splits
        # A sequence of which no tile runs gets no new keys either: the tiles append them, fmha_fwd_kernel.hpp:263-278.
        if slot.m_blocks and min(splits, p.num_splits) > 0 and p.k_new is not None and b not in appended:
            append(p, b)
            appended.add(b)
        for m_block in range(slot.m_blocks):
            for split in range(min(splits, p.num_splits)):
                attend(p, b, m_block, split, splits, (o_accum[split], lse_accum[split]) if splits > 1 else None)
    if p.schedule is not None:
        combine(p, todo, o_accum, lse_accum)
    return o_accum, lse_accum


def combine(p: Problem, todo: list[Slot], o_accum: torch.Tensor, lse_accum: torch.Tensor) -> None:
    """fmha_combine.hpp:245-413. It merges as many splits as the schedule says; those that the forward call made no
    room for are other memory: NaN here."""
    if p.num_splits > MAX_SPLITS:  # mate/jit/attention/fmha/fmha_combine.py:69-70
        raise ValueError("num_split exceeds max supported splits 128")
    for slot in todo:
        if slot.splits <= 1:
            continue
        rows = slice(p.offset_q[slot.sequence], p.offset_q[slot.sequence] + p.len_q[slot.sequence])
        lse, out = lse_accum[: slot.splits, :, rows], o_accum[: slot.splits, :, rows]
        if slot.splits > p.num_splits:
            lse = torch.cat([lse, unwritten((1, *lse.shape[1:]), torch.float32)])
            out = torch.cat([out, unwritten((1, *out.shape[1:]), torch.float32)])
        merged = lse.logsumexp(0)
        weight = torch.where(merged == -math.inf, torch.zeros_like(lse), (lse - merged).exp())
        # A split whose LSE is -inf has stored zeros; epilogue_fwd.hpp:223-229.
        p.out[rows] = (weight[..., None] * out).sum(0).transpose(0, 1).to(p.out.dtype)
        p.lse[:, rows] = merged


def rotate(x: torch.Tensor, p: Problem, positions: torch.Tensor) -> torch.Tensor:
    """x [n, heads, D] at its positions [n]; rotary.hpp. cos and sin are read with their own row stride assumed dense:
    csrc/templates/attention/fmha/fwd_kern.j2:360-362."""
    assert p.rotary is not None
    cos, sin, interleaved = p.rotary
    if len(positions) and int(positions.max()) >= cos.shape[0]:
        raise Unspecified(f"rotary position {int(positions.max())} of {cos.shape[0]} rows in rotary_cos")
    half = cos.shape[1]
    dense_cos, dense_sin = (torch.as_strided(t, t.shape, (half, 1)).float()[positions][:, None] for t in (cos, sin))
    result = x.float().clone()
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (
        slice(0, half), slice(half, 2 * half))
    a, b = result[..., first].clone(), result[..., second].clone()
    result[..., first], result[..., second] = a * dense_cos - b * dense_sin, a * dense_sin + b * dense_cos
    return result.to(x.dtype)  # the rotated tile goes back to shared memory in the element type


def append(p: Problem, b: int) -> None:
    """mp31_fmha_fwd_tme_warpspecialized.hpp:1475-1676: at the absolute position leftpad + old_k."""
    count, first = p.len_new[b], p.leftpad[b] + p.old_k[b]
    if not count:
        return
    assert p.k_new is not None
    assert p.v_new is not None
    if p.page_table is not None and (p.k.shape[-1] not in ROUNDED or p.v.shape[-1] not in ROUNDED):
        raise Unspecified(f"an append to pages stores rows of the rounded head_dim, over what follows a row of "
                          f"{p.k.shape[-1]} or {p.v.shape[-1]}: paged_kv.hpp:281-288 has no limit on columns")
    if p.page_table is None and p.tile.head_dim != p.tile.head_dim_v:
        raise Unspecified("an append without pages limits K's columns by V's: "
                          "mp31_fmha_fwd_tme_warpspecialized.hpp:1598, head_dim "
                          f"{p.k.shape[-1]} and {p.v.shape[-1]}")
    new_k, new_v = (t[p.offset_new[b] : p.offset_new[b] + count] for t in (p.k_new, p.v_new))
    if p.rotary is not None:
        new_k = rotate(new_k, p, p.rotary_start[b] + torch.arange(count))
    for i in range(count):
        place = where(p, b, first + i)
        if place is None:
            raise Unspecified(f"an append at position {first + i}, where the cache of sequence {b} has no room")
        p.k[place], p.v[place] = new_k[i], new_v[i]


def where(p: Problem, b: int, position: int) -> tuple[int, int] | None:
    """The index of an absolute position in a cache, None where it has no such row."""
    if p.page_table is None:
        return (p.rows_kv[b], position) if position < p.size[1] else None
    column, offset = divmod(position, p.size[1])
    if column >= len(p.page_table[0]):
        return None
    page = p.page_table[p.rows_kv[b]][column]
    return (page, offset) if 0 <= page < p.size[0] else None


def keys(p: Problem, b: int, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tile of 64 keys: K [64, Hkv, D], V [64, Hkv, Dv], and the keys [64, Hkv] whose row is followed by NaN.

    The whole tile is read, also past the sequence's end: with pages of 64, the rest of its page; with smaller pages,
    the pages of the *next entries of the table* (paged_kv.hpp:133-168, 223-250: "clear oob if needed" is a TODO);
    in packed keys, the next sequences'.
    """
    k_rows = torch.zeros(TILE_N, p.k.shape[-2], p.k.shape[-1])
    v_rows = torch.zeros(TILE_N, p.v.shape[-2], p.v.shape[-1])
    spoiled = torch.zeros(TILE_N, p.k.shape[-2], dtype=torch.bool)
    places = [place(p, b, block * TILE_N + i) for i in range(TILE_N)]
    inside = [i for i, at in enumerate(places) if at[-1] < p.size[len(at) - 1]]  # zeros past the tensor
    index = tuple(torch.tensor(x) for x in zip(*(places[i] for i in inside)))
    if inside:
        k_rows[inside], v_rows[inside] = p.k[index].float(), p.v[index].float()
    if p.by_threads and p.tile.head_dim > p.k.shape[-1]:
        for i in inside:
            spoiled[i] = _followed_by_nan(p, p.k[places[i]])
    return k_rows, v_rows, spoiled


def place(p: Problem, b: int, position: int) -> tuple[int, ...]:
    """Where a tile reads a position, counted from leftpad: an index of the cache."""
    if p.cu_k is not None:
        return (p.cu_k[b] + p.leftpad[b] + position,)
    if p.page_table is None:
        return (p.rows_kv[b], p.leftpad[b] + position)
    end = p.old_k[b] + (p.len_new[b] if p.k_new is not None else 0)
    column, offset = divmod(position + p.leftpad[b], p.size[1])
    width = len(p.page_table[0])
    row, column = p.rows_kv[b] + column // width, column % width  # past its row the table goes on with the next
    if row != p.rows_kv[b] and position < end:
        raise Unspecified(f"sequence {b} has {end} keys and its page_table {width} columns")
    # Past the table's end a robust load gives 0: that page sizes other than 64 work (docs/flash_attention.md) needs it,
    # for a tile of 64 keys is always loaded whole.
    page = p.page_table[row][column] if row < len(p.page_table) else 0
    if not 0 <= page < p.size[0]:
        raise Unspecified(f"page {page} of {p.size[0]} is read for position {position} of sequence {b}, "
                          f"which has {end} keys" + (": a tile of 64 keys is loaded whole" * (position >= end)))
    return (page, offset)


def _followed_by_nan(p: Problem, row: torch.Tensor) -> torch.Tensor:
    """Threads load a row of the rounded head_dim, into what follows it in memory (paged_kv.hpp:212-219); q is zero
    there, so that only NaN and infinity show."""
    memory = torch.as_strided(p.k, (p.k.untyped_storage().nbytes() // p.k.element_size(),), (1,), 0)
    result = torch.zeros(row.shape[0], dtype=torch.bool)
    for head in range(row.shape[0]):
        after = row[head].storage_offset() + row.shape[1]
        more = memory[after : after + p.tile.head_dim - row.shape[1]]
        result[head] = not bool(more.isfinite().all())
    return result


def attend(p: Problem, b: int, m_block: int, split: int, splits: int,
           partial: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    """One tile of query rows; into the partial result, or the final one."""
    len_q, len_k = p.len_q[b], p.old_k[b] + (p.len_new[b] if p.k_new is not None else 0)
    group = p.ratio if p.tile.pack_gqa else 1
    packed = torch.arange(m_block * p.tile.tile_m, min((m_block + 1) * p.tile.tile_m, len_q * group))
    if not len(packed):
        return
    tokens = packed // group  # [R]
    if p.tile.pack_gqa:
        heads = torch.arange(p.k.shape[-2])[:, None] * group + packed % group  # [Hkv, R]
    else:
        heads = torch.arange(p.q.shape[1])[:, None].expand(-1, len(packed))  # [H, R]
    head_kv = heads[:, 0] // p.ratio
    first, last = blocks(p, m_block, group, len_q, len_k, b)
    if splits > 1:
        each = 0 if last <= first else ceil_div(last - first, splits)
        first = first + split * each
        last = min(last, first + each)
    rows = p.offset_q[b] + tokens
    out = torch.zeros(*heads.shape, p.v.shape[-1])
    lse = torch.full(heads.shape, -math.inf)
    if first < last:  # otherwise zeros and -inf, also with a sink: fmha_fwd_kernel.hpp:409-432
        q = p.q[p.offset_q[b] : p.offset_q[b] + len_q]
        if p.rotary is not None:
            # Neither causal nor local: every query at the first position; ..._warpspecialized.hpp:1063.
            moving = int(p.mask.causal or p.mask.local)
            q = rotate(q, p, p.rotary_start[b] + moving * torch.arange(len_q))
        out, lse = softmax(p, q[tokens[None].expand_as(heads), heads].float(), head_kv, tokens, heads, first, last, b,
                           len_q, len_k)
    columns = min(p.v.shape[-1], p.tile.head_dim_v)
    if partial is not None:
        partial[0][heads, rows[None], :columns] = out[..., :columns]
        partial[1][heads, rows[None]] = lse
    else:
        p.out[rows[None].expand_as(heads), heads, :columns] = out[..., :columns].to(p.out.dtype)
        p.lse[heads, rows[None]] = lse


def blocks(p: Problem, m_block: int, group: int, len_q: int, len_k: int, b: int) -> tuple[int, int]:
    """The key tiles that a tile of rows reads; block_info.hpp:24-79."""
    last, first = ceil_div(len_k, TILE_N), 0
    row_end, row = ceil_div((m_block + 1) * p.tile.tile_m, group), m_block * p.tile.tile_m // group
    if p.mask.causal or p.mask.local:
        whole = p.cp[2][b] if p.cp is not None and not p.mask.local else len_k
        at = row_end + whole - len_q
        end = at + (p.mask.right if p.mask.local else 0)
        if p.mask.local and p.chunk:
            end = min(end, ceil_div(at, p.chunk) * p.chunk)
        if p.cp is not None and not p.mask.local:
            end = ceil_div(end - p.cp[1], p.cp[0])
        last = min(last, ceil_div(end, TILE_N))
    if p.mask.local:
        at = row + len_k - len_q
        left = at - p.mask.left
        if p.chunk:
            left = max(left, at // p.chunk * p.chunk)
        first = max(0, left // TILE_N)
    return first, last


def visible(p: Problem, b: int, tokens: torch.Tensor, j: torch.Tensor, len_q: int, len_k: int) -> torch.Tensor:
    """bool [R, keys]; mask.hpp:105-245."""
    row, col = tokens[:, None], j[None]
    if p.cp is not None:
        world, rank, totals = p.cp
        there = col * world + rank
        if p.mask.causal:  # cache_seqlens does not limit these: :164-178
            return (there <= row + totals[b] - len_q) & (there < totals[b])
        return ((col < len_k) & (there < totals[b])).expand(len(tokens), -1)
    seen = (col < len_k).expand(len(tokens), -1)
    position = row + len_k - len_q
    if p.mask.causal:
        return seen & (col <= position)
    if p.mask.local:
        seen = seen & (col >= position - p.mask.left) & (col <= position + p.mask.right)
        if p.chunk:
            begin = position.div(p.chunk, rounding_mode="floor") * p.chunk
            seen = seen & (col >= begin) & (col < begin + p.chunk)
    return seen


def softmax(p: Problem, q: torch.Tensor, head_kv: torch.Tensor, tokens: torch.Tensor, heads: torch.Tensor, first: int,
            last: int, b: int, len_q: int, len_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The online softmax from the last tile to the first; softmax.hpp:26-198. q [G, R, D]. A row that saw nothing yet
    has maximum 0 (:80-82), so that scores far below 0 vanish in later tiles."""
    scale = 1.0 if p.softcap else p.scale  # the softcap's scores are scaled already
    top = torch.zeros(q.shape[:2])
    total, out = torch.zeros(q.shape[:2]), torch.zeros(*q.shape[:2], p.v.shape[-1])
    width = min(q.shape[-1], p.tile.head_dim)
    for n, block in enumerate(range(last - 1, first - 1, -1)):
        k, v, spoiled = keys(p, b, block)
        score = q[..., :width] @ k[:, head_kv, :width].permute(1, 2, 0)
        score = score.masked_fill(spoiled[:, head_kv].T[:, None], math.nan)
        if p.softcap:
            score = p.softcap * torch.tanh(score * (p.scale / p.softcap))
        seen = visible(p, b, tokens, block * TILE_N + torch.arange(TILE_N), len_q, len_k)
        score = score.masked_fill(~seen, -math.inf)
        new = score.amax(-1) if n == 0 else torch.maximum(top, score.amax(-1))
        new = torch.where(new == -math.inf, torch.zeros_like(new), new)
        weight = ((score - new[..., None]) * scale).exp()
        correction = ((top - new) * scale).exp() if n else torch.ones_like(new)
        total = total * correction + weight.sum(-1)
        out = out * correction[..., None] + weight @ v[:, head_kv].permute(1, 0, 2)  # NaN in V shows even at weight 0
        top = new
    if p.sink is not None:
        total = total + (p.sink.float()[heads] - top * scale).exp()
    bad = (total == 0) | total.isnan()  # :184-187
    out = out * torch.where(bad, torch.zeros_like(total), 1 / total)[..., None]
    return out, torch.where(bad, torch.full_like(total, -math.inf), top * scale + total.log())
