"""The least a call can cost: bytes that must move and operations to be done, over what the device was seen to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hal.bench.shapes import PHASES, Shape, widths
from hal.config import AttentionConfig

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True)
class Work:
    """bytes: q, out, and K and V of the keys that some query sees, each moved once. flops: of the pairs seen.

    pairs: (query, key) pairs that the mask leaves, a head. keys: keys that some query sees, all sequences together.
    """

    bytes: int
    flops: int
    pairs: int
    keys: int


@dataclass(frozen=True)
class Limit:
    """The time in seconds that a call needs at least, and what binds it: "memory" or "compute"."""

    seconds: float
    kind: str


def work(config: AttentionConfig, shape: Shape) -> Work:
    """What one call must move and compute. flops = 2 * pairs * (head_dim + head_dim_v) * num_heads."""
    w = widths(config, shape)
    left, right = config.window_size
    seen = [_visible(queries, shape.seqlen, left, right, config.attention_chunk or 0) for queries in shape.queries]
    pairs, keys = sum(p for p, _ in seen), sum(k for _, k in seen)
    # Packed K and V are the model's activations; only the cache is in the cache's dtype.
    stored = config.dtype if PHASES[shape.phase].packed_kv else config.stored_dtype
    moved = (sum(shape.queries) * w.num_heads * (w.head_dim + w.head_dim_v) * BYTES[config.dtype]
             + keys * w.num_kv_heads * w.stored * BYTES[stored])
    return Work(moved, 2 * pairs * (w.head_dim + w.head_dim_v) * w.num_heads, pairs, keys)


def limit(done: Work, bytes_per_second: float, flops_per_second: float) -> Limit:
    memory, compute = done.bytes / bytes_per_second, done.flops / flops_per_second
    return Limit(memory, "memory") if memory >= compute else Limit(compute, "compute")


@lru_cache(maxsize=4096)
def _visible(len_q: int, len_k: int, left: int, right: int, chunk: int) -> tuple[int, int]:
    """(pairs, keys that some query sees) of one sequence, by the contract's mask."""
    pairs, first, last = 0, len_k, 0
    for i in range(len_q):
        p = i + len_k - len_q
        low = max(0, p - left) if left >= 0 else 0
        high = min(len_k, p + right + 1) if right >= 0 else len_k
        if chunk:
            low, high = max(low, p // chunk * chunk), min(high, (p // chunk + 1) * chunk)
        if high > low:
            pairs, first, last = pairs + high - low, min(first, low), max(last, high)
    # Queries are neighbours and each sees itself, so the keys seen have no gap.
    return pairs, max(0, last - first)
