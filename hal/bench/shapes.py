"""The shapes that are timed, as data: how many query tokens and keys each sequence of a call has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hal.config import AttentionConfig

VERIFY_QUERIES = 4


@dataclass(frozen=True)
class Phase:
    """bound: which of an impl's two backends serves it. packed_kv: K and V come packed, not from the cache.

    queries(batch, seqlen, chunk): query tokens of each sequence. Every sequence has seqlen keys, the last of them
    its own query tokens. packed_q: q is [total_q, Hq, D] with cu_seqlens_q, else [B, Sq, Hq, D].
    """

    bound: str
    packed_kv: bool
    packed_q: bool
    queries: Callable[[int, int, int], tuple[int, ...]]
    text: str


PHASES = {
    "decode": Phase("decode", False, False, lambda b, n, c: (1,) * b, "one query token a sequence, paged cache"),
    "verify": Phase("decode", False, False, lambda b, n, c: (min(VERIFY_QUERIES, n),) * b,
                    f"{VERIFY_QUERIES} query tokens a sequence (speculative decoding), paged cache"),
    "prefill": Phase("prefill", True, True, lambda b, n, c: (n,) * b, "whole prompts, packed, no cache"),
    "extend": Phase("prefill", False, True, lambda b, n, c: (min(c, n),) * b,
                    "the last CHUNK tokens of each prompt, the rest cached"),
    "mixed": Phase("prefill", False, True, lambda b, n, c: (*(1,) * (b - 1), min(c, n)),
                   "BATCH - 1 decoding sequences and one prefill chunk in one call, paged cache"),
}


@dataclass(frozen=True)
class Shape:
    """One call: `batch` sequences of `seqlen` keys each; `chunk` is the length of a prefill chunk. In tokens."""

    phase: str
    batch: int
    seqlen: int
    chunk: int

    @property
    def queries(self) -> tuple[int, ...]:
        return PHASES[self.phase].queries(self.batch, self.seqlen, self.chunk)

    def __str__(self) -> str:
        text = f"{self.batch} x {self.seqlen}"
        return text + (f", chunk {max(self.queries)}" if self.phase in ("extend", "mixed") else "")


# phase -> (batches, seqlens) where the user names none: about a minute in all, on a CPU and on an accelerator.
DEFAULTS = {
    "cpu": {"decode": ((1, 8), (512, 4096)), "verify": ((8,), (1024,)), "prefill": ((1,), (512, 1024)),
            "extend": ((1,), (2048,)), "mixed": ((8,), (1024,))},
    "accelerator": {"decode": ((1, 64), (1024, 16384)), "verify": ((64,), (4096,)), "prefill": ((1,), (1024, 8192)),
                    "extend": ((1,), (16384,)), "mixed": ((64,), (4096,))},
}


def shapes_of(phases: list[str], batches: list[int] | None, seqlens: list[int] | None, chunk: int,
              kind: str) -> list[Shape]:
    """The shapes of some phases, in order; None: the defaults for a device of this kind ("cpu" or another)."""
    table = DEFAULTS["cpu" if kind == "cpu" else "accelerator"]
    return [Shape(phase, batch, seqlen, chunk) for phase in phases
            for batch in batches or table[phase][0] for seqlen in seqlens or table[phase][1]]


@dataclass(frozen=True)
class Widths:
    """Heads and head dims of a call as the mathematics sees them, and the elements a token's K and V take."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int
    stored: int


def widths(config: AttentionConfig, shape: Shape) -> Widths:
    """MLA is absorbed over the cache (keys of 576, whose first 512 are the values), expanded in packed prefill."""
    heads, mla = config.num_heads, config.mla
    if mla is None or isinstance(mla, bool):
        return Widths(heads, config.num_kv_heads, config.head_dim, config.v_dim, config.head_dim + config.v_dim)
    if PHASES[shape.phase].packed_kv:
        dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        return Widths(heads, heads, dim, mla.v_head_dim, dim + mla.v_head_dim)
    return Widths(heads, 1, mla.head_dim, mla.kv_lora_rank, mla.head_dim)
