"""One step of a batched model: its lengths, page tables and slots, made once and shared by every layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hal.context import ForwardContext, forward_context

if TYPE_CHECKING:
    from torch import Tensor

    from hal.integrations.transformers_batching_attention import Layer
    from hal.integrations.transformers_batching_cache import Cache


@dataclass(frozen=True)
class Row:
    """One sequence of a step: its name in the cache, the tokens it has there, and the new ones that follow."""

    request_id: str
    cached: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class Pages:
    """Where one kind of layer keeps this step's sequences.

    table: int32 [B, pages]; what is past a sequence's end is 0. cache_seqlens: int32 [B] tokens there, with the new
    ones. slots: int64 [T], where the new tokens go; in slots_cpu the same as a list, where it is known.
    """

    table: Tensor
    cache_seqlens: Tensor
    slots: Tensor
    slots_cpu: list[int] | None

    def attend(self, layer: Layer, step: AnyStep, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        """[T, Hq, D] for q [T, Hq, D] of one layer, once k and v [T, Hkv, D] are in its pages."""
        layer.write(k, v, layer.k_cache, layer.v_cache, self.slots)
        out: Tensor
        if step.one_each:
            out = layer.decode(q.unsqueeze(1), layer.k_cache, layer.v_cache, cache_seqlens=self.cache_seqlens,
                               page_table=self.table, **options)
            return out.squeeze(1)
        out = layer.mixed(q, layer.k_cache, layer.v_cache, cache_seqlens=self.cache_seqlens, page_table=self.table,
                          cu_seqlens_q=step.cu_seqlens_q, max_seqlen_q=step.max_seqlen_q, **options)
        return out


class AnyStep(Protocol):
    """What the attention function asks of a step: HAL's own below, or one of transformers' manager.

    pages: one for each kind of layer, with Pages' attend. known: arguments of the attention function that the step
    has taken care of.
    """

    one_each: bool
    cu_seqlens_q: Tensor
    max_seqlen_q: int
    known: Collection[str]

    @property
    def pages(self) -> Sequence[Any]: ...

    def context(self) -> ForwardContext: ...


class Step:
    """What every layer of one step is called with. B sequences, T new tokens, on the model's device.

    input_ids, position_ids: int64 [1, T]. last: int64 [B], each sequence's last row. cache_seqlens: int32 [B] tokens
    with the new ones. cu_seqlens_q: int32 [B + 1]. one_each: every sequence has one new token. pages: one for each
    kind of layer, in the cache's order.
    """

    known: Collection[str] = ()

    def __init__(self, rows: Sequence[Row], cache: Cache) -> None:
        device = cache.device
        lengths = [len(row.tokens) for row in rows]
        ends = [0]
        positions: list[int] = []
        ids: list[int] = []
        for row, length in zip(rows, lengths):
            ends.append(ends[-1] + length)
            positions.extend(range(row.cached, row.cached + length))
            ids.extend(row.tokens)
        self.lens_cpu = [row.cached + length for row, length in zip(rows, lengths)]
        self.ends_cpu = ends
        self.max_seqlen_q, self.max_seqlen_k = max(lengths), max(self.lens_cpu)
        self.one_each = self.max_seqlen_q == 1
        self.input_ids = torch.tensor([ids], device=device)
        self.position_ids = torch.tensor([positions], device=device)
        self.cache_seqlens = torch.tensor(self.lens_cpu, dtype=torch.int32, device=device)
        self.cu_seqlens_q = torch.tensor(ends, dtype=torch.int32, device=device)
        self.last = torch.tensor([end - 1 for end in ends[1:]], device=device)
        self.pages: Sequence[Pages] = [self._pages(rows, allocator, device)
                                       for allocator in cache.cache_allocators.values()]

    def _pages(self, rows: Sequence[Row], allocator: Any, device: Any) -> Pages:
        size = allocator.tokens_per_page
        stride = allocator.block_physical_stride // size
        width = -(-self.max_seqlen_k // size)
        table: list[list[int]] = []
        slots: list[int] = []
        for row, length in zip(rows, self.lens_cpu):
            blocks = allocator.block_table[row.request_id]
            if len(blocks) * size < length:
                raise RuntimeError(f"request {row.request_id} has {len(blocks)} pages of {size} tokens for {length}")
            pages = [block * stride for block in blocks[:width]]
            table.append(pages + [0] * (width - len(pages)))
            if length - row.cached == 1:
                slots.append(pages[row.cached // size] * size + row.cached % size)
            else:
                slots.extend(allocator.get_write_indices(row.request_id, row.cached, length - row.cached))
        return Pages(torch.tensor(table, dtype=torch.int32, device=device), self.cache_seqlens,
                     torch.tensor(slots, device=device), slots)

    def context(self) -> ForwardContext:
        """The forward context of this step, host copies included, so that no backend waits for the device."""
        return forward_context(
            cache_seqlens=self.cache_seqlens, cu_seqlens_q=self.cu_seqlens_q, page_table=self.pages[0].table,
            slot_mapping=[pages.slots for pages in self.pages], max_seqlen_q=self.max_seqlen_q,
            max_seqlen_k=self.max_seqlen_k, cache_seqlens_cpu=self.lens_cpu, cu_seqlens_q_cpu=self.ends_cpu,
            slot_mapping_cpu=[pages.slots_cpu for pages in self.pages])
