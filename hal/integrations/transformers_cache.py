"""A cache for transformers' generate() that is written in place, as engines do: transformers' own copies all of it at
every step of every layer (DynamicLayer.update concatenates)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from hal.kernels.cpu import memory

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 128  # tokens of room beyond what is held: that many, or a quarter of it


@cache
def growing_layer() -> type[Any]:
    """The class of a layer; transformers is imported here."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
        """keys and values are views [batch, heads, seq_len, head_dim] of buffers [batch, room, heads, head_dim], which
        grow by a quarter. Views handed out before stay as they were. What transformers puts in their place (a crop,
        reordered beams) is copied into new buffers by the next update."""

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            super().lazy_initialization(key_states, value_states)
            self.rooms: list[Tensor] = []
            self.views: list[Tensor] = []

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            seen, states = self.get_seq_length(), (key_states, value_states)
            kept: Any = self.keys, self.values
            whole = seen + key_states.shape[-2]
            mine = bool(self.views) and self.views[0] is kept[0] and self.views[1] is kept[1]
            if not mine or self.rooms[0].shape[1] < whole:
                # Normal tensors, also under inference_mode: they are written outside it too.
                with torch.inference_mode(False):
                    self.rooms = [_room(x, whole + max(LEAST, whole // 4)) for x in states]
                if seen:
                    for room, held in zip(self.rooms, kept):
                        room[:, :seen].copy_(held.transpose(1, 2))
            for room, new in zip(self.rooms, states):
                room[:, seen:whole].copy_(new.transpose(1, 2))
            self.views = [room[:, :whole].transpose(1, 2) for room in self.rooms]
            self.keys, self.values = self.views
            # A prompt's own tensors are all there is, and lie densely.
            return (self.keys, self.values) if seen else states

        def reset(self) -> None:
            super().reset()
            self.rooms, self.views = [], []

    return GrowingLayer


def _room(states: Tensor, tokens: int) -> Tensor:
    """An uninitialised [batch, tokens, heads, head_dim] for states [batch, heads, seq_len, head_dim]."""
    import torch

    on_cpu = states.device.type == "cpu"
    made = torch.empty(states.shape[0], tokens, states.shape[1], states.shape[3], dtype=states.dtype,
                       device="meta" if on_cpu else states.device)
    return memory.empty(made) if on_cpu else made


def takes_new_cache(model: Any) -> bool:
    """Whether transformers itself would make a DynamicCache for the model."""
    return not model.config.is_encoder_decoder and bool(model._supports_default_dynamic_cache())


def new_cache(model: Any) -> Any:
    """A cache for one model.generate(past_key_values=...): transformers' DynamicCache, whose layers of full attention
    are written in place. Layers of other kinds (sliding windows, states) stay transformers' own.

    Raises ValueError for a model whose cache is no DynamicCache.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if not takes_new_cache(model):
        raise ValueError(f"{type(model).__name__} has a cache of its own kind: leave past_key_values to transformers")
    made = DynamicCache(config=model.config)
    made.layers = [growing_layer()() if type(layer) is DynamicLayer else layer for layer in made.layers]
    return made
