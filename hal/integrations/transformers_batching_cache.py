"""The paged cache of a batched model: transformers' allocation, with sliding layers that no step has to gather.

transformers keeps a sliding layer's tokens in a ring of sliding_window slots. A prompt that comes in chunks overwrites
there what its own first queries still see, so transformers copies the ring before it writes, in every layer of every
step. Here a sliding layer has a page table like any other layer, and the pages that slid out of the window go back to
the pool: a request holds at most sliding_window - 1 + max_batch_tokens tokens and one page, rather than sliding_window.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import ceil, lcm
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import CachePool, FullAttentionCacheAllocator

from hal.config import LayerKind
from hal.integrations.transformers_batching_limits import page_bytes

# A page table's entry for a page that slid out of the window: a block of the reserved first sector, which is never
# written, so that a kernel that reads and masks it finds zeros.
GONE = 0


class WindowAllocator(FullAttentionCacheAllocator):
    """Pages of one kind of sliding layer. block_table has an entry for every page of a sequence, GONE for past ones."""

    supports_block_sharing = False
    sliding_window: int

    def _past_pages(self, request_id: str, past_length: int) -> range:
        """Pages that no query from past_length on can see and that are still held."""
        table, last = self.block_table.get(request_id, []), max(0, past_length - self.sliding_window + 1)
        last //= self.tokens_per_page
        first = last
        while first and table[first - 1] != GONE:
            first -= 1
        return range(first, last)

    def needs_new_blocks(self, request_id: str, past_length: int, query_length: int) -> int:
        needed: int = super().needs_new_blocks(request_id, past_length, query_length)
        return max(0, needed - len(self._past_pages(request_id, past_length)))

    def allocate_cache_to_request(self, request_id: str, past_length: int, query_length: int) -> None:
        past = self._past_pages(request_id, past_length)
        if past:
            table = self.block_table[request_id]
            self.pool.free_blocks(self.index, table[past.start:past.stop])
            table[past.start:past.stop] = [GONE] * len(past)
        super().allocate_cache_to_request(request_id, past_length, query_length)

    def free_blocks(self, request_id: str, no_cache: bool = False) -> None:
        self.pool.free_blocks(self.index, [b for b in self.block_table.pop(request_id, []) if b != GONE])


class Cache(PagedAttentionCache):
    """transformers' PagedAttentionCache for HAL's kinds of layer, of exactly num_pages pages.

    transformers' own __init__ guesses the size from the memory of the host where it does not know the device, and
    knows two kinds of layer by name; this one is told. A page is page_size tokens of every layer.
    """

    def __init__(self, kinds: Sequence[LayerKind], device: Any, dtype: torch.dtype, num_pages: int, page_size: int,
                 max_batch_tokens: int, share_prefixes: bool) -> None:
        self.dtype, self.device = dtype, device
        self.page_size, self.max_batch_tokens = page_size, max_batch_tokens
        self.windows: dict[str, int | None] = {kind.kind: kind.config.sliding_window for kind in kinds}
        self.cache_allocators, self.layer_to_allocator = {}, {}
        for index, kind in enumerate(kinds):
            window = kind.config.sliding_window
            allocator = (FullAttentionCacheAllocator if window is None else WindowAllocator)(
                index=index, layer_indices=list(kind.layers), num_key_value_heads=kind.config.num_kv_heads,
                config=cast(Any, SimpleNamespace(head_dim=kind.config.head_dim)), cache_dtype=dtype,
                page_size=page_size, allow_block_sharing=share_prefixes)
            if isinstance(allocator, WindowAllocator) and window is not None:
                allocator.sliding_window = window
            self.cache_allocators[kind.kind] = allocator
            self.layer_to_allocator |= dict.fromkeys(kind.layers, allocator)
        allocators = list(self.cache_allocators.values())
        # What all kinds divide into blocks, aligned as torch aligns tensors.
        self.bytes_per_sector = lcm(*(each.bytes_per_block for each in allocators), 128)
        self.num_sectors = max(1, ceil(num_pages * page_bytes(kinds, page_size) / self.bytes_per_sector))
        kept = self.num_sectors * self.bytes_per_sector
        self.cache_tensor = _zeros(kept + 2 * self.bytes_per_sector, device)
        self.pool = CachePool(self.num_sectors, len(allocators))
        for each in allocators:
            each.register_cache_tensor(self.bytes_per_sector, kept, self.cache_tensor, self.pool)
        self.allow_block_sharing = share_prefixes
        self.use_prefix_sharing = all(each.use_block_sharing for each in allocators)
        # The scheduler's limits on transformers' own ways of reading, which are not used here.
        self.max_blocks_per_request = self.max_decode_fast_path_length = 0
        self.read_cache_limit = None

    def views(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(k_cache, v_cache) of one layer, contiguous [pages, page_size, num_kv_heads, head_dim], as page ids count."""
        views: tuple[torch.Tensor, torch.Tensor] = self.layer_to_allocator[layer].get_cache_for_block_table(layer)
        return views

    def longest(self) -> int:
        """Tokens of the longest request that an empty cache holds, prompt and answer together."""
        low, high = 0, self.num_sectors * self.bytes_per_sector
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._sectors(middle) <= self.num_sectors else (low, middle - 1)
        return low

    def _sectors(self, tokens: int) -> int:
        """Sectors that one request of so many tokens takes."""
        total = 0
        for name, each in self.cache_allocators.items():
            held, window = tokens, self.windows[name]
            if window is not None:
                held = min(tokens, window - 1 + self.max_batch_tokens + each.tokens_per_page)
            total += ceil(ceil(held / each.tokens_per_page) / each.blocks_per_sector)
        return total

    def used(self) -> float:
        """The part of the cache that requests hold, 0 to 1; pages kept for reuse count as free."""
        kept = sum(len(each.ledger.cached_blocks) * each.bytes_per_block for each in self.cache_allocators.values())
        free = self.compute_free_capacity() + kept / (self.num_sectors * self.bytes_per_sector)
        return max(0.0, 1.0 - float(free))


def _zeros(size: int, device: Any) -> torch.Tensor:
    """Zeros, uint8 [size]. On a CPU the system gives memory when it is first touched, zero already, where torch.zeros
    would touch all of it: seconds, and gigabytes that an idle server does not need."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=torch.uint8, device=device)
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)
