"""Tensors that say they are on a device that is not here, several devices on one machine.

    with Devices("cuda:0", "cuda:1") as devices:
        q = torch.zeros(2, 3, device="cuda:1")      # what an adapter does runs unchanged
        q.device, q + torch.zeros(2, 3)              # cuda:1; RuntimeError as torch raises it
        devices.syncs                                # what made the host wait for a device

The data are CPU tensors, so views, in-place writes and indexing are torch's own. Only what Python sees of a device is
changed: a tensor subclass answers for `.device` and refuses to mix devices (__torch_function__), and a mode, while the
block is open, does the same for factory functions. Not seen: what torch's own Python or C++ code does inside one
function, and torch.device("npu:0") itself. What counts as a wait was read in torch's documentation and not compared
with an accelerator. Tried instead, and why not: a wrapper subclass (_make_wrapper_subclass with __torch_dispatch__) of
device cuda dies in torch's device guards on a build without CUDA, and so does one of privateuseone; FakeTensor has no
data; and privateuseone takes one name per process, so NPU and MUSA could not be told apart in one test run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

HERE = ("cpu", "meta")  # devices of torch itself, left alone


class DeviceName(str):
    """Stands in for torch.device where torch knows no such type ("npu:0" without torch_npu).

    It is a str because torch lets those through to the mode as a `device` argument.
    """

    @property
    def type(self) -> str:
        return self.partition(":")[0]

    @property
    def index(self) -> int:
        return int(self.partition(":")[2])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceName) and str.__eq__(self, other)  # a torch.device equals no str either

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((DeviceName, str(self)))

    def __repr__(self) -> str:
        return f"device(type={self.type!r}, index={self.index})"


Device = Any  # torch.device, or DeviceName where torch has no such type


@dataclass(frozen=True)
class Sync:
    """One wait of the host: which operation, of which device, in which direction ("to host", "to device" or
    "between devices")."""

    operation: str
    device: str
    direction: str


def device_of(value: Any) -> Device | None:
    """The tagged device that a `device` argument names; None for cpu, meta and no device.

    "cuda" is "cuda:0", and a bare number is a CUDA device, as in torch.
    """
    if value is None or isinstance(value, DeviceName):
        return value
    text = f"cuda:{value}" if isinstance(value, int) else str(value)
    kind, _, index = text.partition(":")
    if kind in HERE:
        return None
    text = f"{kind}:{index or 0}"
    try:
        return torch.device(text)
    except RuntimeError:
        return DeviceName(text)


class Tagged(torch.Tensor):
    """A CPU tensor with a device of its own; made by `on`."""

    tag: Device

    # Attributes that the vendors' torch extensions add.
    @property
    def is_musa(self) -> bool:
        return bool(self.tag.type == "musa")

    @property
    def is_npu(self) -> bool:
        return bool(self.tag.type == "npu")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def on(tensor: torch.Tensor, device: str | Device) -> Tagged:
    """The same data, said to be on `device`; an alias, not a copy. Raises ValueError for cpu and meta."""
    tag = device_of(device)
    if tag is None:
        raise ValueError(f"device {device!r} is torch's own and needs no tag (tags: cuda:1, npu:0, musa:0 ...)")
    plain = plain_of(tensor)
    # An alias of its own: the same tensor can be handed out under two devices.
    tagged = plain.view_as(plain).as_subclass(Tagged) if not isinstance(tensor, Tagged) else plain.as_subclass(Tagged)
    tagged.tag = tag
    return tagged


def plain_of(tensor: torch.Tensor) -> torch.Tensor:
    """The CPU tensor behind a tagged one, sharing its data: what an emulated kernel computes with."""
    with torch._C.DisableTorchFunction():
        return tensor.as_subclass(torch.Tensor) if isinstance(tensor, Tagged) else tensor


def tag_of(tensor: Any) -> Device | None:
    return tensor.tag if isinstance(tensor, Tagged) else None


# --- the record of waits ---

_RECORDS: list[Devices] = []


def _record(operation: str, device: Device, direction: str = "to host") -> None:
    for devices in _RECORDS:
        devices.syncs.append(Sync(operation, str(device), direction))


class Devices(TorchFunctionMode):
    """While open, factory functions know the named devices, and `syncs` lists the host's waits.

    Raises ValueError for a name of torch's own devices. A device that was not named is refused as torch does.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            if device_of(name) is None:
                raise ValueError(f"device {name!r} is torch's own (give names such as cuda:1, npu:0, musa:0)")
        self.devices = tuple(device_of(name) for name in names)
        self.syncs: list[Sync] = []

    def __enter__(self) -> Devices:
        super().__enter__()
        _RECORDS.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 where: TracebackType | None) -> None:
        _RECORDS.remove(self)
        super().__exit__(kind, error, where)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = _target(func, args, kwargs)
        if target is not None and target not in self.devices:
            raise RuntimeError(f"device {target} is not here (devices: {', '.join(map(str, self.devices))})")
        return _call(func, args, kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Raise AssertionError if the host waits inside the block: `with devices.no_sync(): layer(...)`."""
        before = len(self.syncs)
        yield
        seen = self.syncs[before:]
        assert not seen, "the host waited: " + "; ".join(f"{s.operation} ({s.device} {s.direction})" for s in seen)


# --- what torch does with devices, function by function ---

# Functions whose answer the host needs, which waits for the device: values, or a result whose shape they decide.
_WAITS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__",
          "__contains__", "__repr__", "__format__", "__str__", "is_nonzero", "nonzero", "argwhere", "masked_select",
          "unique", "unique_consecutive", "equal", "allclose", "bincount", "__dlpack__"}
# Indices may be on the CPU, and a slice is written by a copy, from any device.
_INDEXED = {"__setitem__", "__getitem__", "index_put_", "index_put"}


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _target(func: Any, args: Any, kwargs: dict[str, Any]) -> Device | None:
    """The tagged device that a call asks for, by `device=` or as .to("cuda:1") and .cuda(1) do."""
    name = _name(func)
    if name == "to" and len(args) > 1 and not isinstance(args[1], (torch.dtype, torch.Tensor)):
        return device_of(args[1])
    if name == "cuda":
        return device_of(args[1] if len(args) > 1 and args[1] is not None else kwargs.get("device") or "cuda")
    return device_of(kwargs.get("device"))


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = _name(func)
    self = args[0] if args else None
    if isinstance(self, Tagged) and name == "__get__":
        attribute = _name(getattr(func, "__self__", None))
        if attribute == "device":
            return self.tag
        if attribute.startswith("is_") and attribute[3:] in ("cpu", "cuda", "xpu", "mps"):
            return attribute[3:] == self.tag.type
    if isinstance(self, Tagged) and name == "get_device":
        return self.tag.index
    if name in ("to", "cpu", "cuda"):
        return _move(func, name, args, kwargs)
    tags = [tag for tag in map(tag_of, _tensors([args, kwargs])) if tag is not None]
    target = _target(func, args, kwargs)
    if not tags and target is None:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    _check_devices(name, args, kwargs)
    _check_waits(name, args, kwargs, tags[0] if tags else None, target)
    explicit = kwargs.get("device") is not None
    if target is not None and explicit:
        kwargs = {**kwargs, "device": "cpu"}
    with torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
    if result is self:
        return result  # written in place, wherever it is
    # Where no device is asked for, the result is where the first tagged tensor is.
    tag = target if explicit else tags[0]
    return _untag(result) if tag is None else _tag(result, tag)


def _place(tensor: torch.Tensor) -> str:
    return str(tag_of(tensor) or "cpu")


def _dim(tensor: torch.Tensor) -> int:
    return plain_of(tensor).dim()


def _check_devices(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """torch's rule: one device, and zero-dimensional CPU tensors with any."""
    if name == "copy_":
        return
    if name in _INDEXED:
        index = list(_tensors(args[1]))
        must = [args[0], *(t for t in index if tag_of(t) is not None)]
        if index:  # index_put, which copies no values between devices
            must += [t for t in _tensors(args[2:3]) if _dim(t)]
    else:
        must = [t for t in _tensors([args, kwargs]) if isinstance(t, Tagged) or _dim(t)]
    places = sorted({_place(t) for t in must})
    if len(places) > 1:
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, "
                           f"{places[0]} and {places[1]}! (in {name})")


def _check_waits(name: str, args: Any, kwargs: dict[str, Any], tag: Device | None, target: Device | None) -> None:
    """Record what makes the host wait. tag: the device of the first tagged tensor. target: where the result goes."""
    if tag is None:
        if target is not None and name in ("tensor", "as_tensor"):
            _record(name, target, "to device")  # from Python numbers: a copy from pageable memory
        return
    if name in _WAITS or name in ("tensor", "as_tensor"):
        _record(name, tag)
    elif name == "new_tensor":
        _record(name, tag, "to device")
    elif name == "where" and len(args) + len(kwargs) == 1:
        _record("where of one argument", tag)
    elif name == "repeat_interleave" and kwargs.get("output_size") is None and any(
            isinstance(v, torch.Tensor) for v in [*args[1:2], kwargs.get("repeats")]):
        _record("repeat_interleave without output_size", tag)
    if name in _INDEXED:
        for index in _tensors(args[1]):
            dtype, scalar_fill = plain_of(index).dtype, name == "__setitem__" and not any(map(_dim, _tensors(args[2])))
            if dtype == torch.bool and not scalar_fill:
                _record(f"{name} with a bool mask", tag)  # a mask decides how many elements there are
            elif dtype != torch.bool and not _dim(index) and tag_of(index) is not None:
                _record(f"{name} with a 0-dim index", tag)
            elif tag_of(index) is None and _dim(index):
                _record(f"{name} with an index on the host", tag, "to device")
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(isinstance(part, list) and not any(_tensors(part)) for part in parts):
            _record(f"{name} with an index on the host", tag, "to device")
    if name in ("copy_", "__setitem__"):
        source = args[1] if name == "copy_" else args[2]
        if isinstance(source, torch.Tensor) and tag_of(source) != tag_of(args[0]):
            _record(name, tag, _direction(tag_of(source), tag_of(args[0])))


def _direction(source: Device | None, target: Device | None) -> str:
    return "to host" if target is None else "to device" if source is None else "between devices"


def _move(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """.to(), .cpu() and .cuda(): a move is a copy and a wait, even where the caller asked for none."""
    self, rest = args[0], list(args[1:])
    source, named = tag_of(self), _target(func, args, kwargs)
    if name == "cpu":
        moved, target = True, None
    elif name == "cuda":
        moved, target, rest = True, named, []
    elif rest and isinstance(rest[0], torch.Tensor):
        moved, target = True, tag_of(rest[0])
        rest[0] = plain_of(rest[0])
    else:
        positional = bool(rest) and not isinstance(rest[0], (torch.dtype, bool)) and rest[0] is not None
        moved, target = positional or kwargs.get("device") is not None, named
        rest = [r for r in rest if isinstance(r, (torch.dtype, bool))] if positional else rest
    kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    with torch._C.DisableTorchFunction():
        plain = plain_of(self)
        if not moved:
            result = plain.to(*rest, **kwargs)
            return self if result is plain else _tag(result, source) if source is not None else result
        if name == "to":
            result = plain.to(*rest, **kwargs)
        else:
            result = plain
        if target == source:
            return self if result is plain else _tag(result, source) if source is not None else result
        _record(name, source if source is not None else target, _direction(source, target))
        result = result.clone() if result.data_ptr() == plain.data_ptr() else result
    return _tag(result, target) if target is not None else result


def _tag(result: Any, tag: Device) -> Any:
    """The result with every tensor in it on `tag`; a tensor that is tagged already stays the same object."""
    if isinstance(result, Tagged):
        if not hasattr(result, "tag"):
            result.tag = tag
        return result
    if isinstance(result, torch.Tensor):
        with torch._C.DisableTorchFunction():
            tagged = result.as_subclass(Tagged)
        tagged.tag = tag
        return tagged
    if isinstance(result, (list, tuple)) and any(isinstance(item, (torch.Tensor, list, tuple)) for item in result):
        items = [_tag(item, tag) for item in result]
        return items if isinstance(result, list) else type(result)(items) if type(result) is not tuple else tuple(items)
    return result


def _untag(result: Any) -> Any:
    return plain_of(result) if isinstance(result, Tagged) else result
