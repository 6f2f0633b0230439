"""transformers' own continuous batching on HAL: model.generate_batch() and ContinuousBatchingManager.

    from hal.integrations import transformers_batching_manager as managed

    config = managed.use(model, num_blocks=512, max_batch_tokens=1024)
    model.generate_batch(prompts, continuous_batching_config=config, max_new_tokens=64)

For code that has the manager already; a server wants BatchedModel (hal.integrations.transformers_batching), which mends
what the manager gets wrong (docs/transformers.md). Layers of full attention are one call over the manager's pages, none
gathered. So are sliding layers in steps of answers alone; in a step with a part of a prompt they are gathered, by
transformers' own code, since there a chunk overwrites in the ring what its first tokens still see.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hal.cli_args import AttentionArgs
from hal.context import ForwardContext, forward_context
from hal.integrations import transformers_batching_attention as paged
from hal.integrations.transformers_batching import batchable_kinds, impls_for
from hal.integrations.transformers_batching_step import Pages
from hal.platform import platform_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "hal_flash"  # the manager accepts names with "flash" in them alone, and none with a 2 or 3 takes its fast path


def use(model: Any, attention: AttentionArgs | None = None, **settings: Any) -> Any:
    """Give a loaded model HAL's attention for continuous batching; returns the ContinuousBatchingConfig to batch with.

    attention: backends and page size; the device is the model's. settings: the config's other fields; give num_blocks
    and max_batch_tokens, since transformers' own defaults take most of the memory. Graphs and asynchronous batching are
    off. Call it again for other backends, model.set_attn_implementation(...) to go back.
    Raises ImportError, NoBackendError and ValueError as BatchedModel does.
    """
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    off = {"page_size", "auto_switch_to_flash", "use_cuda_graph", "use_async_batching"} & settings.keys()
    if off:
        raise ValueError(f"{', '.join(sorted(off))} can't be chosen here: page_size is attention's, the others are off")
    args = AttentionArgs() if attention is None else attention
    kinds = batchable_kinds(model.config, args, str(model.dtype))
    impls = impls_for(kinds, args, platform_of(model.device))
    paged.register(NAME)
    before = _managed.pop(model, None)
    if before is not None:
        before.remove()
    _managed[model] = _Managed(model, {number: impls[kind.kind] for kind in kinds for number in kind.layers})
    model.config._attn_implementation = NAME  # set_attn_implementation looks for a package of that name
    page_size = next(iter(impls.values())).decision.page_size
    return ContinuousBatchingConfig(page_size=int(page_size or 0), use_cuda_graph=False, auto_switch_to_flash=False,
                                    use_async_batching=False, **settings)


class _Managed:
    """One model's impls by layer, and the hooks that open a step around each of its forwards."""

    def __init__(self, model: Any, impls: dict[int, Any]) -> None:
        self.impls = impls
        self.layers: WeakKeyDictionary[Any, list[paged.Layer]] = WeakKeyDictionary()
        self.open = ExitStack()
        self.handles = [model.register_forward_pre_hook(self._before, with_kwargs=True),
                        model.register_forward_hook(self._after, always_call=True)]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("cache")
        if model.config._attn_implementation != NAME or cache is None:
            return
        if cache not in self.layers:
            self.layers[cache] = self._layers(cache)
        self.open.enter_context(paged.opened(ManagerStep(kwargs), self.layers[cache]))

    def _after(self, model: Any, args: Any, output: Any) -> None:
        self.open.close()

    def _layers(self, cache: Any) -> list[paged.Layer]:
        size = next(iter(cache.cache_allocators.values())).tokens_per_page
        wanted = self.impls[0].decision.page_size
        if size != wanted:
            raise ValueError(f"the cache's page_size is {size}, but the backends were chosen for {wanted}: batch with "
                             "the config that use() returned")
        return [paged.Layer(number, cache.layer_to_allocator[number].index, impl,
                            cache.layer_to_allocator[number]._kv_page_views[number])
                for number, impl in sorted(self.impls.items())]


_managed: WeakKeyDictionary[Any, _Managed] = WeakKeyDictionary()


@dataclass(frozen=True)
class Gathered:
    """A sliding layer's sequences in a step with a part of a prompt: the ring copied out by transformers."""

    allocator: Any
    read_index: Tensor
    write_index: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_k: int

    def attend(self, layer: paged.Layer, step: ManagerStep, q: Tensor, k: Tensor, v: Tensor,
               options: dict[str, Any]) -> Tensor:
        k, v = self.allocator.update(k, v, layer.number, self.read_index, self.write_index)
        out: Tensor = layer.varlen(q, k, v, step.cu_seqlens_q, self.cu_seqlens_k, step.max_seqlen_q, self.max_seqlen_k,
                                   **options)
        return out


class ManagerStep:
    """One step of transformers' manager, read from what it gives the model."""

    known: Collection[str] = frozenset((
        "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "read_index", "write_index", "block_table",
        "cache", "logits_indices", "logits_processor_args", "is_causal"))

    def __init__(self, given: dict[str, Any]) -> None:
        if given.get("block_table") is not None:
            raise ValueError("block_table: the manager's fast path is its own kernel's: batch with the config that "
                             "use() returned")
        self.cu_seqlens_q, self.max_seqlen_q = given["cu_seq_lens_q"], int(given["max_length_q"])
        self.one_each = self.max_seqlen_q == 1
        self.past = given["position_ids"][0].index_select(0, self.cu_seqlens_q[:-1].long())
        self.pages = [self._pages(allocator, given) for allocator in given["cache"].cache_allocators.values()]

    def _pages(self, allocator: Any, given: dict[str, Any]) -> Pages | Gathered:
        kind, size = allocator.layer_type, allocator.tokens_per_page
        read, write = given["read_index"][allocator.index], given["write_index"][allocator.index]
        lengths, longest = given["cu_seq_lens_k"][kind], int(given["max_length_k"][kind])
        if kind != "sliding_attention":
            # Without cached tokens nothing is read back, and the new ones are all there is.
            index, starts = (read, lengths) if read.numel() else (write, self.cu_seqlens_q)
            held = (starts[1:] - starts[:-1]).int()
            first = _first_slots(held, longest, size)
            return self._table(held, first, index, starts[:-1, None] + first, write, size)
        if not self.one_each:
            return Gathered(allocator, read, write, lengths, longest)
        # The ring: position p is in slot p % window, and its order does not matter to one query that sees all of it.
        window = allocator.sliding_window
        held = (self.past + 1).clamp(max=window).int()
        first = _first_slots(held, min(longest, window), size)
        cached = self.past.clamp(max=window - 1)[:, None]
        begin = ((self.past + 1) % window * (self.past >= window))[:, None]
        place = (first - begin) % window
        new = self.cu_seqlens_q[:-1, None].expand_as(place)
        if not read.numel():
            return self._table(held, first, write, new, write, size)
        import torch

        both = torch.cat((read, write))
        at = torch.where(place < cached, lengths[:-1, None] + place, len(read) + new)
        return self._table(held, first, both, at, write, size)

    def _table(self, held: Tensor, first: Tensor, index: Tensor, at: Tensor, write: Tensor, size: int) -> Pages:
        """Pages from the physical slot of each one's first token: index[at], where it is among a sequence's `held`."""
        slots = index[at.long().clamp(max=len(index) - 1)]
        return Pages((slots // size * (first < held[:, None])).int(), held, write, None)

    def context(self) -> ForwardContext:
        pages: Sequence[Any] = self.pages
        lengths = next((each.cache_seqlens for each in pages if isinstance(each, Pages)), None)
        return forward_context(cache_seqlens=lengths, cu_seqlens_q=self.cu_seqlens_q, max_seqlen_q=self.max_seqlen_q)


def _first_slots(held: Tensor, longest: int, size: int) -> torch.Tensor:
    """[1, pages]: the number, in its sequence, of each page's first token."""
    import torch

    return torch.arange(0, longest, size, device=held.device)[None]
