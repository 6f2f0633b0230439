"""MATE's schedules: what get_scheduler_metadata writes for the dense kernel, and get_mla_metadata for the latent one.

Both are int32 tensors that the kernels follow without checking them against anything. Sources are paths of MATE v0.2.2.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch

from emulators.mate_common import TILE_N, Machine, Unspecified, ceil_div, check

MAX_SPLITS = 128
ROUNDED = (64, 128, 192, 256, 384, 512)
PAIRS = ((64, 64), (128, 128), (192, 128), (192, 192), (256, 256), (384, 384), (512, 512))


def f32(x: float) -> float:
    """Rounded to the float that the C++ computes with."""
    return float(struct.unpack("f", struct.pack("f", x))[0])


class Tiles(NamedTuple):
    tile_m: int
    pack_gqa: bool
    head_dim: int  # rounded up
    head_dim_v: int


class Mask(NamedTuple):
    causal: bool
    local: bool
    left: int
    right: int


def resolve_mask(len_q: int, len_k: int, causal: bool, left: int | None, right: int | None, chunk: int) -> Mask:
    """fmha_utils.py:43-73. (-1, 0) is causal whatever the flag says, unless len_q is 1."""
    left = -1 if left is None or left >= len_k - 1 else left
    right = -1 if right is None or right >= len_q - 1 else right
    right = 0 if causal else right
    is_causal = left < 0 and right == 0 and chunk == 0
    is_local = (left >= 0 or right >= 0 or chunk >= 1) and not is_causal
    left = len_k - 1 if left < 0 else left
    right = len_q - 1 if right < 0 else right
    if chunk > 0:
        left, right = min(left, chunk - 1), min(right, chunk - 1)
    return Mask(is_causal, is_local, left, right)


def tiles(len_q: int, ratio: int, head_dim: int, head_dim_v: int, pack_gqa: bool | None) -> Tiles:
    """fmha_utils.py:76-208. A head_dim past 512 rounds *down* to 512: only so many columns are read or written."""
    pair = tuple(next((r for r in ROUNDED if d <= r), 512) for d in (head_dim, head_dim_v))
    pack = len_q * ratio <= 256 if pack_gqa is None else pack_gqa
    rows = len_q * ratio if pack else len_q
    tile_m = next((t for t in (32, 64, 128, 192) if rows <= t), 256)
    check(pair in PAIRS, f"Add config for headdim {pair[0]}-{pair[1]}")
    if pair == (256, 256):
        tile_m = 32 if pack else 192
    tile_m = {384: 64, 512: 32}.get(pair[0], tile_m)
    return Tiles(tile_m, pack, *pair)


def auto_splits(machine: Machine, tile_m: int, mask: Mask, batch: int, len_q: int, len_k: int, heads: int,
                heads_kv: int, dims: int, margin: int) -> int:
    """num_splits <= 0, on either side: include/mate/attention/fmha/metadata.hpp:425-496. dims: both head dims' sum."""
    mps = machine.multiprocessors - margin
    cap = mask.local and machine.release != "0.2.0"
    loaded = max(0, min(len_k, mask.right + mask.left + 1 + tile_m)) if cap else len_k
    n_blocks, m_blocks = ceil_div(loaded, TILE_N), ceil_div(len_q * (heads // heads_kv), tile_m)
    kv_bytes, total, l2 = len_k * dims * 2, batch * heads_kv * m_blocks, 3 * 512 * 1024
    if total >= f32(f32(0.8) * mps):
        if kv_bytes > l2 and m_blocks >= mps * 2 and not (mask.causal or mask.local):
            return min(ceil_div(kv_bytes, l2), MAX_SPLITS)
        return 1
    if n_blocks <= 4:
        return 1
    waves = [f32(total * s / mps) for s in range(1, min(MAX_SPLITS, mps, n_blocks) + 1)]
    efficiency = [f32(w / math.ceil(w)) if w else 0.0 for w in waves]
    return next((i + 1 for i, e in enumerate(efficiency) if e and e >= 0.85 * max(efficiency)), 1)


class Lengths(NamedTuple):
    """Of each sequence: queries, and keys as the metadata kernel counts them, the new ones included."""

    q: list[int]
    k: list[int]


def dense(machine: Machine, lengths: Lengths, tile: Tiles, mask: Mask, ratio: int, heads: int, num_splits: int) -> \
        torch.Tensor:
    """int32 [4 * batch]: splits, sequence, query tiles and heads in L2 of each slot; metadata.hpp:187-423.

    num_splits: 1 or more. The last quarter is never read (tile_scheduler.hpp:119-127) and stays 0 here."""
    batch = len(lengths.q)
    m_blocks = [ceil_div(n * (ratio if tile.pack_gqa else 1), tile.tile_m) for n in lengths.q]
    keys = lengths.k
    if mask.local:  # :299-306
        keys = [max(0, min(n, mask.left + mask.right + 1 + tile.tile_m)) for n in keys]
    n_blocks = [ceil_div(n, TILE_N) for n in keys]
    splits = [1] * batch
    if num_splits != 1 and batch <= 31 * 32:  # one thread block; :326
        # The launch gives the kernel all processors, whatever the margin: metadata_kern.j2:129.
        mps, one = machine.multiprocessors, heads // ratio if tile.pack_gqa else heads
        total = sum(m * n for m, n in zip(m_blocks, n_blocks))
        per_mp = math.ceil(f32(f32(f32(f32(total) * f32(1.1)) * one) / mps))
        if per_mp == 0:
            raise Unspecified("the metadata kernel divides by zero where no sequence has both queries and keys "
                              "(metadata.hpp:339-342)")
        splits = [max(min(ceil_div(n, per_mp), num_splits), 1) for n in n_blocks]
        _within_budget(splits, n_blocks, mps)
        n_blocks = [ceil_div(n, s) for n, s in zip(n_blocks, splits)]
    order = [n * TILE_N - m * tile.tile_m if mask.causal else n for n, m in zip(n_blocks, m_blocks)]
    slots = []
    for first in range(0, batch, 31 * 32):  # each thread block sorts its own
        slots += sorted(range(first, min(batch, first + 31 * 32)), key=lambda b: -order[b])
    return torch.tensor([splits[b] for b in slots] + slots + [m_blocks[b] for b in slots] + [0] * batch,
                        dtype=torch.int32)


def _within_budget(splits: list[int], n_blocks: list[int], mps: int) -> None:
    """One split less for the cheapest, until there are no more splits than processors; metadata.hpp:346-383."""
    overflow = max(sum(splits) - mps, 0)
    while overflow > 0:
        cost = {b: ceil_div(n_blocks[b], s - 1) - ceil_div(n_blocks[b], s) for b, s in enumerate(splits) if s > 1}
        if not cost:
            break
        chosen = sorted(cost, key=lambda b: (cost[b], b))[:overflow]
        for b in chosen:
            splits[b] -= 1
        overflow -= len(chosen)


# --- the latent kernel ---

PART = 8  # int32 of one part: first sequence, its first block, last sequence, its end block, first split
OVERHEAD = 5  # blocks that a sequence costs; csrc/mla_pybind.mu:40-48


def parts(machine: Machine, rows: int) -> int:
    """rows: max_seqlen_q * heads. csrc/mla_pybind.mu:48."""
    return max(machine.multiprocessors // ceil_div(rows, 128), 1)


def latent(num_parts: int, lens: list[int]) -> tuple[list[list[int]], list[int]]:
    """(parts, cumulated splits [batch + 1]); include/mate/attention/flash_mla/mpxx_get_mla_metadata.hpp:26-113."""
    blocks = [max(n - 1, 0) // TILE_N + 1 for n in lens]
    payload = ceil_div(sum(blocks) + OVERHEAD * len(lens), num_parts) + OVERHEAD
    table, cumulated, splits = [], [0], 0
    at = block = split = 0
    for _ in range(num_parts):
        row = [at, block, 0, 0, split, 0, 0, 0]
        left = payload
        while at < len(lens):
            if left >= blocks[at] - block + OVERHEAD:
                splits += split + 1
                cumulated.append(splits)
                left -= blocks[at] - block + OVERHEAD
                at, block, split = at + 1, 0, 0
                continue
            if left - OVERHEAD > 0:
                block += left - OVERHEAD
                split += 1
            break
        row[2] = at if block else at - 1
        row[3] = block if block else 0 if not lens[at - 1] else blocks[at - 1]
        table.append(row)
    return table, cumulated
