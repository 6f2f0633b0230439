"""The vocabulary of declarations: features, levels, head dims and page sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hal.config import AttentionConfig

LEVELS = ("declared", "contract", "emulated", "compiled", "hardware")
# What a captured graph may hold: nothing, decode with one token a sequence, with equally many, anything.
GRAPH_LEVELS = ("never", "single-token decode", "uniform batch", "always")

# Feature name -> (is it asked for, the value to show). A backend lists the names it serves in `features`.
FEATURES: Mapping[str, Callable[[AttentionConfig], Any]] = {
    "sliding_window": lambda c: c.sliding_window,
    "attention_chunk": lambda c: c.attention_chunk,
    "softcap": lambda c: c.softcap or None,
    "sinks": lambda c: c.sinks or None,
    "mla": lambda c: None if c.mla is None else True,
    "sparse": lambda c: c.sparse or None,
    "tree_mask": lambda c: c.tree_mask or None,
    "mm_prefix": lambda c: c.mm_prefix or None,
    "non_causal": lambda c: None if c.causal else True,
    "return_softmax_lse": lambda c: c.return_softmax_lse or None,
    "context_parallel": lambda c: c.context_parallel_size if c.context_parallel_size > 1 else None,
    "deterministic": lambda c: c.deterministic or None,
}

# What a call may use beyond the plain one, where kernels differ -> the argument that a refusal names. No configuration
# asks for these, so selection can't refuse them: a backend lists those it takes in `calls`, and its adapter refuses
# the others by name.
CALLS: Mapping[str, str] = {
    "append": "k",  # k and v of this step, written before attending
    "rotary": "rotary_cos",
    "cache_batch_idx": "cache_batch_idx",
    "cache_leftpad": "cache_leftpad",
    "unpaged": "page_table",  # a cache [B, S, Hkv, D], no page_table
    "strided_cache": "k_cache",  # K and V of a page side by side per head, as vLLM hands them over
    "packed_decode": "cu_seqlens_q",  # the decode function with packed queries
    "paged_varlen": "page_table",  # the varlen function over a paged cache
    "varlen_qv": "qv",  # absorbed MLA through the varlen function
    "seqused": "seqused_q",  # seqused_q and seqused_k with packed keys
    "descale_per_head": "k_descale",  # [B, Hkv] rather than a scalar
    "out": "out",
}


class EveryPlatform(dict[str, tuple[str, ...]]):
    """`platforms` of a backend that runs on any, plugins' included: every arch of every kind."""

    def __contains__(self, kind: object) -> bool:
        return True

    def __missing__(self, kind: str) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class HeadDims:
    """Supported head dims: multiples of `step` from `low` to `high`, or exactly `only`. In elements."""

    low: int = 1
    high: int = 1 << 30
    step: int = 1
    only: tuple[int, ...] = ()

    def __contains__(self, dim: object) -> bool:
        if not isinstance(dim, int):
            return False
        return dim in self.only if self.only else self.low <= dim <= self.high and dim % self.step == 0

    def __str__(self) -> str:
        if self.only:
            return ", ".join(map(str, self.only))
        multiples = f"multiples of {self.step} " if self.step > 1 else ""
        return f"{multiples}from {self.low} to {self.high}" if self.high < 1 << 30 else f"{multiples or 'any '}".strip()


@dataclass(frozen=True)
class PageSizes:
    """Supported page sizes in tokens: multiples of `step`, or exactly `only`; `preferred` where none was asked for."""

    preferred: int
    step: int = 1
    only: tuple[int, ...] = ()

    def __contains__(self, size: object) -> bool:
        if not isinstance(size, int) or size < 1:
            return False
        return size in self.only if self.only else size % self.step == 0

    def __str__(self) -> str:
        if self.only:
            return ", ".join(map(str, self.only))
        return f"multiples of {self.step}" if self.step > 1 else "any"
