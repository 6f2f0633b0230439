"""Planner: what a kernel wants computed once per step, made at most once per key.

For adapters. `bind` makes a Planner from a function that computes the plan; each call asks it:

    def make(device, cache_seqlens, cu_seqlens_q, max_seqlen_q, causal, window):
        return vendor.get_scheduler_metadata(...)

    planner = Planner(make)                                            # in bind
    metadata = planner(q.device, (cache_seqlens, cu_seqlens_q), (max_seqlen_q, causal, window))    # in each call

`make` is told nothing but the key, so whatever it uses is in the key: it may close over the configuration it was
bound for, and over nothing of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from hal.context import STATE, Epoch, ForwardContext, identity, owner
from hal.stream import current_stream

if TYPE_CHECKING:
    import torch


class Planner:
    """Plans of one impl. Holds no state: plans belong to the forward context's epoch.

    make(device, *lengths, *params) -> any plan, None included. A mutable plan belongs to its epoch and key alone: what
        the first layer writes into it the later ones find (MATE's MLA: [workspace, is_initialised]).
    refresh(plan, device, *lengths, *params): makes the plan good again *in the same memory*, after lengths changed
        under a graph. Default: `make` again and copy its tensors, whose shapes must not have changed.
    forget(plan): drops what captured calls left in the plan, before a batch is captured (again) and where that failed.
    """

    __slots__ = ("forget", "make", "refresh")

    def __init__(self, make: Callable[..., Any], refresh: Callable[..., None] | None = None,
                 forget: Callable[[Any], None] | None = None) -> None:
        self.make, self.forget = make, forget
        self.refresh = refresh or self._copy

    def __call__(self, device: torch.device, lengths: tuple[Any, ...], params: tuple[Hashable, ...] = ()) -> Any:
        """The plan for this call, made now if need be.

        device: where the plan is used, q's. lengths: the call's length tensors, each also an int or None. params: what
        else it depends on (head counts, head dims, dtypes, page size, causal, window, softcap, chunk, splits, bounds
        ...), hashable, no tensors. Outside a forward context every call makes one.
        """
        context = STATE.current
        if context is None:
            return self.make(device, *lengths, *params)
        epoch = context.epoch
        if epoch is not None and epoch.frozen is None:
            try:
                # By object first: an address takes longer to ask for. `made` keeps the objects, so no id is reused.
                return epoch.by_object[self._key(epoch, device, params), tuple(map(id, lengths))]
            except KeyError:
                pass
        return self._find(context, device, lengths, params)

    def _key(self, epoch: Epoch, device: Any, params: Any) -> tuple[Any, ...]:
        """All of the key but the lengths; the epoch is in it by holding the plans."""
        return (
            self,
            device,
            "graph" if epoch.graph else current_stream(device),
            params,
        )

    def _find(self, context: ForwardContext, device: Any, lengths: tuple[Any, ...], params: tuple[Any, ...]) -> Any:
        """The plan by the memory of its lengths, in the epoch that these belong to; made there where there is none."""
        identities = tuple([identity(length) for length in lengths])
        epoch = owner(context, identities)
        epoch.verify()
        key = self._key(epoch, device, params), identities
        capturing = context.epoch is not None and context.epoch.graph == "capture"
        if key in epoch.by_memory and not (capturing and epoch.graph is None):  # a graph outlives a step's plans
            return epoch.by_memory[key]
        if capturing:
            raise RuntimeError(
                f"a plan is missing inside a capture: {self.make.__qualname__}{(str(device), *params)} was not asked "
                "for in warm_up() with these length tensors; run the same calls there first, on the batch's tensors")
        if device.index is None and device.type != "cpu":
            raise ValueError(f"device of {self.make.__qualname__}: got {device}, expected an index, as q.device has: "
                             "what it means changes with the current device")
        for param in params:
            if hasattr(param, "data_ptr"):
                raise TypeError(f"params of {self.make.__qualname__} hold a tensor: pass it in lengths")
        plan = self.make(device, *lengths, *params)
        if epoch.graph == "refresh":  # for a plan that is being refreshed, from tensors that go with it
            return plan
        epoch.made.append((self, device, lengths, params, plan))
        epoch.by_memory[key] = epoch.by_object[key[0], tuple(map(id, lengths))] = plan
        if epoch.frozen is not None:
            names = list(inspect.signature(self.make).parameters)[1:]
            for name, length in zip(names, lengths):
                if hasattr(length, "data_ptr"):
                    epoch.freeze(name, length)
        return plan

    def _copy(self, plan: Any, device: Any, *arguments: Any) -> None:
        copy_plan(plan, self.make(device, *arguments), self.make.__qualname__)


def copy_plan(old: Any, new: Any, name: str) -> None:
    """The tensors of `new` into those of `old`: same shapes and dtypes, in tuples, lists or alone.

    Raises RuntimeError where something else than their content differs: a captured graph could not follow.
    """
    if hasattr(old, "copy_") and hasattr(new, "copy_"):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise RuntimeError(f"the plan of {name} was {old.dtype} {tuple(old.shape)} when captured and is "
                               f"{new.dtype} {tuple(new.shape)} now: a graph can't follow; give its Planner a refresh")
        old.copy_(new)
    elif isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)) and len(old) == len(new):
        for before, after in zip(old, new):
            copy_plan(before, after, name)
    elif old != new:
        raise RuntimeError(f"the plan of {name} held {old!r} when captured and holds {new!r} now: a graph can't follow "
                           "what is no tensor; give its Planner a refresh")
