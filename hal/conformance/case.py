"""Case: one call of one function, as data. Tensors are made from it by hal.conformance.inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hal.capabilities import CALLS, FEATURES
from hal.config import AttentionConfig, MLADims

# phase of a case -> (phase of the decision that serves it, function)
PHASES: Mapping[str, tuple[str, str]] = {
    "prefill": ("prefill", "flash_attn_varlen_func"),
    "extend": ("prefill", "flash_attn_with_kvcache"),
    "mixed": ("prefill", "flash_attn_with_kvcache"),
    "paged_varlen": ("prefill", "flash_attn_varlen_func"),
    "decode": ("decode", "flash_attn_with_kvcache"),
}


# Notes that say how the call is spelled. Any other note is for people alone.
GARBAGE_TABLE = "garbage table"  # entries of page_table past a sequence's end are no page's id
INT_SEQLENS = "int cache_seqlens"  # one number for all sequences
NO_SEQLENS = "no cache_seqlens"  # unpaged: the whole cache
CONFIG_SCALE = "scale of the config"  # no softmax_scale in the call
ATTN_PROBS = "return_attn_probs"  # the varlen function's other name for the LSE


class Pages(NamedTuple):
    """A length around a page boundary: `pages` pages and `more` tokens (which may be negative)."""

    pages: int
    more: int = 0

    def tokens(self, page_size: int) -> int:
        return max(0, self.pages * page_size + self.more)


Length = int | Pages


@dataclass(frozen=True, kw_only=True)
class Case:
    """fields: of AttentionConfig. queries, keys: tokens of each sequence; keys count the appended ones too.

    calls: what the call uses beyond the plain one (capabilities.CALLS). appended: of the keys, how many are handed
    over as k and v; with "rotary", rotary_dim and the rest are in `rotary`. cp_rank: of config.context_parallel_size.
    page_size None leaves it to the decision. window: the call's, where it is not the config's own. Lengths are in
    tokens. note: tells cases apart; some are orders (above).
    """

    group: str
    phase: str
    fields: Mapping[str, Any]
    queries: tuple[Length, ...]
    keys: tuple[Length, ...]
    packed: bool = True
    calls: frozenset[str] = frozenset()
    page_size: int | None = None
    appended: tuple[int, ...] = ()
    rotary: Mapping[str, Any] = field(default_factory=dict)
    cp_rank: int = 0
    expanded: bool = False
    window: tuple[int, int] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        unknown = self.calls - set(CALLS)
        assert not unknown, f"{unknown} is no kind of call ({', '.join(CALLS)})"
        assert len(self.queries) == len(self.keys), self
        assert self.phase in PHASES, self.phase

    @property
    def config(self) -> AttentionConfig:
        return AttentionConfig(**{"page_size": self.page_size, **self.fields})

    @property
    def name(self) -> str:
        """Unique in a grid, and readable: phase, dtype, heads, features, calls, lengths."""
        config = self.config
        heads = f"{config.num_heads}/{config.num_kv_heads}x{config.head_dim}"
        if config.v_dim != config.head_dim:
            heads += f"-{config.v_dim}"
        dtype = config.dtype if config.kv_cache_dtype == "auto" else f"{config.dtype}+{config.stored_dtype}"
        words = [self.phase if self.packed or self.phase == "decode" else f"{self.phase}-batched", dtype, heads]
        if config.max_decode_query_len > 1:
            words[0] += f"-q{config.max_decode_query_len}"
        if self.expanded:
            words.append("expanded{}/{}".format(*self.expanded_dims))
        if self.page_size is not None:
            words.append(f"page{self.page_size}")
        words += [f"{name}{'' if value is True else f'={value}'}" for name, asked in FEATURES.items()
                  for value in [asked(config)] if value is not None]
        if self.window is not None:
            words.append("window={},{}".format(*self.window))
        if config.context_parallel_size > 1:
            words.append(f"rank{self.cp_rank}")
        if config.attention_type != "decoder":
            words.append(config.attention_type)
        if config.softmax_scale is not None and config.mla is None:
            words.append(f"scale={config.softmax_scale}")
        words += [call for call in CALLS if call in self.calls]
        words += [self.note] if self.note else []
        return f"{self.group}: {' '.join(words)}"

    @property
    def expanded_dims(self) -> tuple[int, int]:
        """(head_dim, head_dim_v) of MLA's expanded keys and values."""
        mla = self.config.mla
        assert isinstance(mla, MLADims)
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim

    @property
    def features(self) -> tuple[str, ...]:
        """What a passing case is evidence for: the words of declarations."""
        config = self.config
        words = [name for name, asked in FEATURES.items() if asked(config) is not None]
        words += sorted(self.calls)
        words += [f"phase {PHASES[self.phase][0]}", f"dtype {config.dtype}",
                  f"attention_type {config.attention_type}"]
        if config.kv_cache_dtype not in ("auto", config.dtype):
            words.append(f"kv_cache_dtype {config.kv_cache_dtype}")
        if self.expanded:
            words.append("mla_prefill {}/{}".format(*self.expanded_dims))
        if config.max_decode_query_len > 1:
            words.append("max_decode_query_len")
        if self.page_size is not None:
            words.append(f"page_size {self.page_size}")
        if not self.expanded:
            equal = config.v_dim == config.head_dim
            words.append(f"head_dim {config.head_dim}" + ("" if equal else f"/{config.v_dim}"))
        return tuple(words)
