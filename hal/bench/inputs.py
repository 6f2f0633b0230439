"""Tensors for a shape: a large cache in which many copies of the call lie on shuffled pages, so that none stays cached.

A call's copies share no page, as the layers and steps of a model do not. Values are normal; they come from a bank
of tokens that is laid end to end, its length prime so that the pages of a call do not hold the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal.bench.limits import BYTES
from hal.bench.shapes import PHASES, Shape, widths
from hal.config import AttentionConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BANK = 8191
MOST_COPIES = 64
SCALE = 0.05  # of an fp8 cache: real = stored * scale, which keeps normal values far inside both formats
NewCache = Callable[[int, int], tuple[Any, Any]]
WriteCache = Callable[..., None]


@dataclass(frozen=True)
class Inputs:
    """function: the contract's function to call. calls: its keyword arguments, one dict for each copy."""

    function: str
    calls: tuple[dict[str, Any], ...]


def bytes_of(config: AttentionConfig, shape: Shape, page_size: int) -> tuple[int, int]:
    """(K and V, q and out) of one copy, in bytes; a cache holds whole pages."""
    w, packed = widths(config, shape), PHASES[shape.phase].packed_kv
    tokens = shape.seqlen if packed else -(-shape.seqlen // page_size) * page_size
    kv = shape.batch * tokens * w.num_kv_heads * w.stored * BYTES[config.dtype if packed else config.stored_dtype]
    return kv, sum(shape.queries) * w.num_heads * (w.head_dim + w.head_dim_v) * BYTES[config.dtype]


def copies_of(config: AttentionConfig, shape: Shape, page_size: int, cold_bytes: int) -> int:
    """How many copies of a call fill cold_bytes: at least 1, at most MOST_COPIES."""
    return max(1, min(MOST_COPIES, cold_bytes // max(1, sum(bytes_of(config, shape, page_size)))))


def lengths_of(shape: Shape, device: str) -> dict[str, Any]:
    """The length arguments of a shape's calls. Made once, so that one forward context is about everyone's."""
    import torch

    phase = PHASES[shape.phase]

    def starts(lengths: tuple[int, ...]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    found: dict[str, Any] = {}
    if phase.packed_q:
        found |= {"cu_seqlens_q": starts(shape.queries), "max_seqlen_q": max(shape.queries)}
    if phase.packed_kv:
        return found | {"cu_seqlens_k": starts((shape.seqlen,) * shape.batch), "max_seqlen_k": shape.seqlen}
    return found | {"cache_seqlens": torch.full((shape.batch,), shape.seqlen, dtype=torch.int32, device=device)}


def make(config: AttentionConfig, shape: Shape, lengths: dict[str, Any], page_size: int, device: str, seed: int,
         cold_bytes: int, q_dtype: str, new_cache: NewCache, write: WriteCache) -> Inputs:
    """The calls of a shape on a device. lengths: lengths_of() it. new_cache and write are an impl's, so that the layout
    is its kernel's."""
    import torch

    w, phase = widths(config, shape), PHASES[shape.phase]
    random = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    copies = copies_of(config, shape, page_size, cold_bytes)
    total_q = sum(shape.queries)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random).to(device, dtype)

    mla = None if phase.packed_kv or config.mla is None or isinstance(config.mla, bool) else config.mla
    dim_k, dim_v = (mla.qk_rope_head_dim, mla.kv_lora_rank) if mla else (w.head_dim, w.head_dim_v)
    need = -(-shape.seqlen // page_size)
    pages = shape.batch * need * copies
    tokens = shape.batch * shape.seqlen
    bank = min(BANK, tokens * copies if phase.packed_kv else pages * page_size)
    bank_k, bank_v = normal(bank, w.num_kv_heads, dim_k), normal(bank, w.num_kv_heads, dim_v)
    bank_q = normal(max(total_q + copies, min(BANK, total_q * copies)), w.num_heads, dim_k)
    bank_qv = normal(bank_q.shape[0], w.num_heads, dim_v) if mla else None
    common = _common(config, device, random) | lengths

    def queries(tokens: Tensor, copy: int) -> Tensor:
        at = torch.arange(total_q, device=device) + copy * total_q
        rows = tokens[at % tokens.shape[0]]
        return rows if phase.packed_q else rows.view(shape.batch, -1, *rows.shape[1:])

    if phase.packed_kv:
        rows = [(torch.arange(tokens, device=device) + copy * tokens) % bank for copy in range(copies)]
        return Inputs("flash_attn_varlen_func", tuple(
            {"q": queries(bank_q, copy), "k": bank_k[at], "v": bank_v[at], **common} for copy, at in enumerate(rows)))

    caches = new_cache(pages, page_size)
    fp8 = config.stored_dtype.startswith("fp8")
    scale = torch.tensor(SCALE, device=device)
    for first in range(0, pages * page_size, bank):
        slots = torch.arange(first, min(first + bank, pages * page_size), device=device)
        scales = {"k_scale": scale, "v_scale": scale} if fp8 else {}
        write(bank_k[: len(slots)], bank_v[: len(slots)], *caches, slots, **scales)
    if fp8:
        common |= {"k_descale": scale, "v_descale": scale}
    table = torch.randperm(pages, generator=random).to(device, torch.int32).view(copies, shape.batch, need)
    common |= {"k_cache": caches[0], "v_cache": caches[1]}
    calls = []
    for copy in range(copies):
        call = {"q": queries(bank_q, copy), "page_table": table[copy], **common}
        if bank_qv is not None:
            call["qv"] = queries(bank_qv, copy)
        calls.append(_quantised(call, q_dtype, config.dtype))
    return Inputs("flash_attn_with_kvcache", tuple(calls))


def _common(config: AttentionConfig, device: str, random: torch.Generator) -> dict[str, Any]:
    """Arguments that follow from the config; those at the contract's defaults are left out."""
    import torch

    common: dict[str, Any] = {"causal": config.causal}
    if config.sliding_window is not None:
        common["window_size"] = config.window_size
    if config.attention_chunk is not None:
        common["attention_chunk"] = config.attention_chunk
    if config.softcap:
        common["softcap"] = config.softcap
    if config.softmax_scale is not None:
        common["softmax_scale"] = config.softmax_scale
    if config.sinks:
        common["sinks"] = torch.randn(config.num_heads, generator=random).to(device, getattr(torch, config.dtype))
    return common


def _quantised(call: dict[str, Any], q_dtype: str, dtype: str) -> dict[str, Any]:
    """The call with q (and qv) in the dtype that a backend's decision asks for."""
    if q_dtype == dtype:
        return call
    import torch

    from hal.kv_cache import FP8, quantize

    scale = torch.tensor(SCALE, device=call["q"].device)
    done: dict[str, Any] = {"q_descale": scale}
    for name in ("q", "qv"):
        if name in call:
            x = call[name]
            done[name] = quantize(x.flatten(0, -2), getattr(torch, FP8[q_dtype]), scale).view(x.shape)
    return {**call, **done}
