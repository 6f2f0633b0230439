"""Which stream of a device is current: part of what a plan is keyed by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

# Device type -> function (device) -> what tells its current stream from its others. Filled on first use of a type.
READERS: dict[str, Callable[[Any], Hashable]] = {"cpu": lambda device: None}  # the CPU has no streams


def current_stream(device: Any) -> Hashable:
    """A value that is equal for equal current streams of `device` (a torch.device), and None where it has none.

    Read by the platform's own `current_stream(device)` where its file or plugin defines one, else by torch.
    Raises RuntimeError for a device type that neither can answer for.
    """
    kind = device.type
    try:
        read = READERS[kind]
    except KeyError:
        read = READERS[kind] = _reader(kind)
    return read(device)


def _reader(kind: str) -> Callable[[Any], Hashable]:
    import torch

    from hal.platforms import table

    for platform in table().values():
        if kind == platform.TORCH_DEVICE and hasattr(platform, "current_stream"):
            own: Callable[[Any], Hashable] = platform.current_stream
            return own
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type == kind:
        current = torch.accelerator.current_stream
        return lambda device: current(device).stream_id
    raise RuntimeError(
        f"device type {kind!r}: torch.accelerator answers for {accelerator}, so the current stream is not known; give "
        f"the platform's file a function current_stream(device), or hal.stream.READERS an entry {kind!r}")
