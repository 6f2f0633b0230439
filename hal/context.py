"""The forward context: one step's lengths, and every plan made from them. Thread-local; it nests.

    with hal.forward_context(cache_seqlens=lens, cu_seqlens_q=cu, max_seqlen_q=1, max_seqlen_k=n) as step:
        ...                                   # every layer
        step.update(cache_seqlens=longer)     # the next epoch

Plans live in the Epoch (hal/plan.py makes them). Nothing here needs torch before a tensor is given.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hal import env
from hal.checks import is_int, need
from hal.tracing import traced

if TYPE_CHECKING:
    from torch import Tensor

# Length tensors, int32 on one device -> how many values they hold beyond one per sequence.
LENGTHS: Mapping[str, int] = {
    "cache_seqlens": 0, "cache_leftpad": 0, "seqused_q": 0, "seqused_k": 0, "cp_tot_seqused_k": 0,
    "cu_seqlens_q": 1, "cu_seqlens_k": 1, "cu_seqlens_k_new": 1,
}
# What the engine already has on the host, so that nobody copies it back -> the tensor it is a copy of.
HOST_COPIES: Mapping[str, str] = {f"{name}_cpu": name for name in LENGTHS}
BOUNDS = ("max_seqlen_q", "max_seqlen_k")
NAMES = (*LENGTHS, "page_table", "slot_mapping", *BOUNDS, *HOST_COPIES, "slot_mapping_cpu")

Identity = Any  # of a length argument: hashable


def identity(length: Any) -> Identity:
    """What tells one length argument from another: the memory of a tensor, the value of an int or None."""
    if length is None or isinstance(length, int):
        return length
    return (
        length.data_ptr() or -id(length),  # 0: empty or meta, so the object itself, which the epoch keeps alive
        length.shape,
        length.stride(),
        length.dtype,
        length.device,
    )


class Epoch:
    """The time in which lengths are frozen, and all that was made from them. Of one thread.

    tensors: the context's own, by name; slot mappings are "slot_mapping[0]" and so on. bounds: max_seqlen_q and
    max_seqlen_k where given. copies, hosts: host copies that were given, by name (a graph's may be a function that gets
    it), and all there are, by identity. by_object, by_memory: key -> plan (hal/plan.py). made: what each plan was made
    from, which also keeps those tensors alive. graph: None, or the mode of a graph's epoch (GraphContext in
    hal/graph.py). frozen: under HAL_CHECK=1 (name, tensor, its content when first seen), else None.
    """

    __slots__ = ("_declared", "bounds", "by_memory", "by_object", "copies", "frozen", "graph", "hosts", "kept", "made",
                 "tensors")

    def __init__(self, tensors: dict[str, Any], bounds: dict[str, int], copies: dict[str, Any], check: bool) -> None:
        self.tensors = tensors
        self.bounds = bounds
        self.copies = copies
        self._declared: dict[Identity, str] | None = None
        self.hosts: dict[Identity, tuple[int, ...]] | None = None
        self.by_object: dict[Any, Any] = {}
        self.by_memory: dict[Any, Any] = {}
        self.made: list[tuple[Any, ...]] = []
        self.kept: list[Any] = []
        self.graph: str | None = None
        self.frozen: list[tuple[str, Any, Any]] | None = [] if check else None
        if check:
            for name, tensor in tensors.items():
                self.freeze(name, tensor)

    @property
    def declared(self) -> dict[Identity, str]:
        """identity -> name of the context's own tensors; asked for when a plan is made, not on entering."""
        if self._declared is None:
            self._declared = {identity(tensor): name for name, tensor in self.tensors.items()}
        return self._declared

    def fetch(self, lengths: Mapping[Identity, Any]) -> dict[Identity, tuple[int, ...]]:
        """The values of tensors of this epoch by identity: given, copied before, or copied now in one go."""
        if self.hosts is None:
            self.hosts = {identity(self.tensors[name]): copy() if callable(copy) else copy
                          for name, copy in self.copies.items()}
        missing = {key: tensor for key, tensor in lengths.items() if key not in self.hosts}
        if missing:
            # A copy waits for the device: the context's other lengths come along, so that no call waits again.
            own = {} if _on_host(missing) else {
                key: self.tensors[name] for key, name in self.declared.items() if name != "page_table"}
            missing |= {key: tensor for key, tensor in own.items() if key not in self.hosts}
            self.hosts |= zip(missing, _copied(list(missing.values())))
            for tensor in missing.values():
                self.kept.append(tensor)  # so that no other tensor gets its address
                self.freeze("a length tensor", tensor)
        return self.hosts

    def copy(self, lengths: Any) -> tuple[int, ...]:
        """The values of one tensor of this epoch."""
        self.verify()
        return self.fetch({identity(lengths): lengths})[identity(lengths)]

    def freeze(self, name: str, tensor: Any) -> None:
        """Remember the content of a tensor, to be held to it."""
        if self.frozen is not None and all(tensor is not other for _, other, _ in self.frozen):
            self.frozen.append((name, tensor, tensor.clone()))

    def verify(self) -> None:
        """Raise ValueError for the first frozen tensor whose content changed. Synchronises."""
        for name, tensor, before in self.frozen or ():
            changed = (tensor != before).nonzero()
            if len(changed):
                at = tuple(changed[0].tolist())
                raise ValueError(
                    f"{name}: got {tensor[at].item()} at {list(at)}, expected {before[at].item()}, its value when the "
                    "epoch began: lengths are frozen inside a forward context; call update() after changing them")


class _State(threading.local):
    current: ForwardContext | None = None


STATE = _State()


class ForwardContext:
    """What `with hal.forward_context(...)` gives. Opened once, by one thread.

    epoch: the current Epoch while open, None before and after. outer: the context around it.
    """

    __slots__ = ("__weakref__", "_given", "epoch", "outer")

    def __init__(self, epoch: Epoch) -> None:
        self._given: Epoch | None = epoch
        self.epoch: Epoch | None = None
        self.outer: ForwardContext | None = None

    def __enter__(self) -> ForwardContext:
        if self._given is None:
            raise RuntimeError("this forward context was entered before: each `with` takes a new hal.forward_context()")
        _refuse_traced("entered")
        around = STATE.current and STATE.current.epoch
        if around and around.graph and self._given.graph is None:
            raise RuntimeError("a forward context was entered inside a graph's: its plans would be made while the "
                               "graph is captured; warm_up() and capture() are the forward context there")
        self.epoch, self._given = self._given, None
        self.outer = STATE.current
        STATE.current = self
        return self

    def __exit__(self, *error: object) -> None:
        self.epoch = None
        outer, self.outer = self.outer, None
        if STATE.current is self:
            STATE.current = outer
            return
        inner = STATE.current
        while inner is not None and inner.outer is not self:
            inner = inner.outer
        if inner is None:
            raise RuntimeError("a forward context was closed on another thread than the one that entered it, whose "
                               "calls now find a closed one")
        inner.outer = outer
        raise RuntimeError("forward contexts were closed out of order: an outer one before the inner one (two "
                           "generators or coroutines on one thread?)")

    def update(self, **given: Any) -> None:
        """Open the next epoch: every plan and host copy is forgotten, and lengths may have changed.

        Names as in forward_context. A tensor that is not named stays, whatever it holds now; page_table too.
        Bounds and host copies that are not named are unknown from here on: the old ones need not fit.
        """
        if self.epoch is None or STATE.current is not self:
            raise RuntimeError("update() is for the innermost open forward context of this thread: "
                               f"{'this one is not open' if self.epoch is None else 'close the inner one first'}")
        if self.epoch.graph is not None:
            raise RuntimeError("update() is not for a graph's context: call prepare_replay() between replays")
        _refuse_traced("updated")
        tensors = {name: tensor for name, tensor in self.epoch.tensors.items() if name not in given}
        slots = [tensors.pop(name) for name in list(tensors) if name.startswith("slot_mapping")]
        given = {"slot_mapping": slots, **given}
        self.epoch = _epoch({**tensors, **given})

    def __repr__(self) -> str:
        state = "closed" if self.epoch is None else f"open, {', '.join(self.epoch.tensors) or 'no lengths'}"
        return f"<hal.forward_context {'not entered' if self._given is not None else state}>"


def forward_context(**given: Any) -> ForwardContext:
    """A context manager around one step of a model: lengths are frozen inside, plans are made once.

    All optional, by keyword, None meaning not given:
        cache_seqlens, cache_leftpad, seqused_q, seqused_k, cp_tot_seqused_k: int32 [B].
        cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new: int32 [B + 1].
        page_table: int32 [B, max_pages]. All tensors on one device.
        slot_mapping: int64 [tokens] of write_kv_cache, or a list of them where kinds of layer write to other slots.
            Worth it for a backend that needs them on the host (Ascend's): they come with the lengths, in one copy.
        max_seqlen_q, max_seqlen_k: whole numbers, no smaller than the longest sequence (max_seqlen_k: of keys
            after an append).
        <name>_cpu of any length above: the same numbers as a list or tuple of int, where they are at hand. A backend
            that needs numbers on the host copies them from the device otherwise, once. slot_mapping_cpu: as
            slot_mapping, one list of int or a list of them.

    Calls are recognised by the tensors they pass: those given here, or others, which must not change inside either.
    HAL_CHECK=1 verifies it. Raises TypeError for an unknown name, ValueError for anything else that is wrong.
    """
    return ForwardContext(_epoch(given))


def _epoch(given: dict[str, Any]) -> Epoch:
    """The Epoch of arguments that have been checked. Contents are read only under HAL_CHECK=1."""
    torch: Any = sys.modules.get("torch")  # whoever has a tensor has imported it
    tensors: dict[str, Any] = {}
    bounds: dict[str, int] = {}
    copies: dict[str, tuple[int, ...]] = {}
    batch, first, device = -1, "", None
    slots, slots_cpu = given.get("slot_mapping"), given.get("slot_mapping_cpu")
    for name, value in given.items():
        if value is None or name in ("slot_mapping", "slot_mapping_cpu"):
            continue
        extra = LENGTHS.get(name)
        if extra is not None or name == "page_table":
            dims = 1 if extra is not None else 2
            if torch is None or not isinstance(value, torch.Tensor) or value.dtype is not torch.int32 \
                    or value.dim() != dims:
                need(False, name, value, f"an int32 tensor of {dims} dimension{'s' * (dims - 1)}")
            rows = value.shape[0] - (extra or 0)
            if batch < 0:
                batch, first, device = rows, name, value.device
                need(rows >= 0, name, tuple(value.shape), "at least 1 value: [0, len, ..]")
            elif rows != batch or value.device != device:
                need(rows == batch, name, f"{rows} sequences", f"{batch}, as {first}")
                need(False, name, f"a tensor on {value.device}", f"one on {device}, where {first} is")
            tensors[name] = value
        elif name in BOUNDS:
            need(is_int(value, 0), name, value, "a whole number >= 0")
            bounds[name] = value
        elif name in HOST_COPIES:
            need(isinstance(value, (list, tuple)), name, value, "a list or tuple of int")
            need(not value or is_int(value[0], 0), name, f"{value[:1]!r} first", "whole numbers >= 0")
            copies[HOST_COPIES[name]] = tuple(value)
        else:
            raise TypeError(f"{name!r} is no argument of hal.forward_context (arguments: {', '.join(NAMES)})")
    for name, copy in copies.items():
        need(name in tensors, f"{name}_cpu", "a copy", f"{name} beside it, the tensor it is a copy of")
        need(len(copy) == tensors[name].shape[0], f"{name}_cpu", f"{len(copy)} values", f"{batch + LENGTHS[name]}")
    mappings = [] if slots is None else list(slots) if isinstance(slots, (list, tuple)) else [slots]
    for index, value in enumerate(mappings):
        if torch is None or not isinstance(value, torch.Tensor) or value.dtype is not torch.int64 or value.dim() != 1:
            need(False, "slot_mapping", value, "an int64 tensor of 1 dimension, or a list of them")
        device = device or value.device
        need(value.device == device, "slot_mapping", f"a tensor on {value.device}", f"one on {device}, as the others")
        tensors[f"slot_mapping[{index}]"] = value
    if slots_cpu is not None:
        need(isinstance(slots_cpu, (list, tuple)), "slot_mapping_cpu", slots_cpu, "a list of int, or a list of them")
        rows = slots_cpu if slots_cpu and isinstance(slots_cpu[0], (list, tuple)) else [slots_cpu]
        sizes = [len(row) for row in rows], [len(tensor) for tensor in mappings]
        need(sizes[0] == sizes[1], "slot_mapping_cpu", f"{sizes[0]} values", f"{sizes[1]}, as slot_mapping")
        copies |= {f"slot_mapping[{index}]": tuple(row) for index, row in enumerate(rows)}
    check = env.get("HAL_CHECK")
    if check:
        _check_contents(tensors, bounds, copies)
    return Epoch(tensors, bounds, copies, check)


def _check_contents(tensors: dict[str, Any], bounds: dict[str, int], copies: dict[str, tuple[int, ...]]) -> None:
    """What only HAL_CHECK=1 looks at: the numbers themselves."""
    for name, tensor in tensors.items():
        if name == "page_table":
            continue
        values = tuple(tensor.tolist())
        if name not in LENGTHS:  # slots; what else they must be is the cache's to say
            copy = copies.get(name, values)
            need(copy == values, "slot_mapping_cpu", str(copy[:8]), f"{values[:8]}, what {name} holds")
            continue
        copy = copies.get(name, values)
        odd = [value for value in copy if not is_int(value, 0)] if name in copies else []
        need(not odd, f"{name}_cpu", f"{odd[:1]!r}", "whole numbers >= 0")
        need(copy == values, f"{name}_cpu", str(copy[:8]), f"{values[:8]}, what {name} holds")
        if LENGTHS[name] == 1:
            need(values[0] == 0, name, f"{values[0]} first", "0 first")
            values = tuple(end - start for start, end in pairwise(values))
        need(min(values, default=0) >= 0, name, min(values, default=0), "lengths >= 0")
        bound = "max_seqlen_q" if name.endswith("_q") else "max_seqlen_k"
        most = max(values, default=0)
        if name not in ("cp_tot_seqused_k", "cache_leftpad", "cu_seqlens_k_new"):
            need(bounds.get(bound, most) >= most, bound, bounds.get(bound), f"at least {most}, the longest of {name}")


def owner(context: ForwardContext, identities: tuple[Identity, ...]) -> Epoch:
    """The epoch that a call with these lengths belongs to: of the innermost open context that was given one of them,
    else of the innermost. So a layer of the outer model finds its own plans inside the inner model's context.

    One that no context was given is frozen no longer than the innermost epoch, so that one is the owner then; but a
    graph's plans stay with the graph, whose prepare_replay makes them anew."""
    strange = {each for each in identities if isinstance(each, tuple)}
    found: Epoch | None = None
    seeking: ForwardContext | None = context
    while seeking is not None:
        epoch = _open(seeking)
        if found is None and not epoch.declared.keys().isdisjoint(strange):
            found = epoch
        strange -= epoch.declared.keys()
        seeking = seeking.outer
    return found if found is not None and (found.graph or not strange) else _open(context)


def _open(context: ForwardContext) -> Epoch:
    if context.epoch is None:
        raise RuntimeError("the forward context of this thread was closed by another thread")
    return context.epoch


def host(lengths: Tensor) -> tuple[int, ...]:
    """The values of a 1-D length tensor on the host: see hosts()."""
    return hosts(lengths)[0]


def hosts(*lengths: Tensor) -> tuple[tuple[int, ...], ...]:
    """The values of 1-D length tensors on the host: each copied at most once per epoch, by whoever asks first.

    On an accelerator a copy waits for the device, so one copy brings all that are missing, and every other length of
    the context beside them. Outside any context it brings these.
    Raises RuntimeError inside a graph's capture, where a number would be baked in.
    """
    context = STATE.current
    if context is None:
        return tuple(_copied(lengths))
    keys = tuple([identity(length) for length in lengths])
    epoch = owner(context, keys)
    if epoch.graph == "capture":
        raise RuntimeError(f"lengths of {len(lengths[0])} were asked for on the host inside a capture: a graph would "
                           "keep these numbers for ever; the backend's graph level can't be what it declares")
    epoch.verify()
    found = epoch.fetch(dict(zip(keys, lengths)))
    return tuple([found[key] for key in keys])


def _on_host(lengths: Mapping[Identity, Any]) -> bool:
    return all(tensor.device.type == "cpu" for tensor in lengths.values())


def _copied(lengths: Sequence[Any]) -> list[tuple[int, ...]]:
    """The values of tensors of one device, in one copy where that is not the host."""
    if len(lengths) < 2 or lengths[0].device.type == "cpu":
        return [tuple(tensor.tolist()) for tensor in lengths]
    import torch

    wide = torch.int64 if len({tensor.dtype for tensor in lengths}) > 1 else lengths[0].dtype
    values, found = torch.cat([tensor.to(wide) for tensor in lengths]).tolist(), []
    for tensor in lengths:
        found.append(tuple(values[:len(tensor)]))
        del values[:len(tensor)]
    return found


def bound(name: str, lengths: Any) -> int | None:
    """max_seqlen_q or max_seqlen_k as given to the context that `lengths` (a tensor) was given to; None otherwise.

    For functions whose own arguments do not say it; asked in a plan's `make`, it costs nothing per call.
    """
    seeking = STATE.current
    key = identity(lengths)
    while seeking is not None:
        epoch = _open(seeking)
        if key in epoch.declared:
            return epoch.bounds.get(name)
        seeking = seeking.outer
    return None


def verified(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the frozen lengths of every open context verified before each call (HAL_CHECK=1)."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        context = STATE.current
        while context is not None:
            _open(context).verify()
            context = context.outer
        return function(*args, **kwargs)

    return wrapper


def _refuse_traced(what: str) -> None:
    # A tracer would run it once, while tracing, and never when the compiled code runs.
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling() and traced():
        raise RuntimeError(f"hal.forward_context is {what} inside torch.compile: do so around the compiled function")
