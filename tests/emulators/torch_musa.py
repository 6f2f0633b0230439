"""What of torch_musa HAL and MATE ask for, without MUSA: devices, streams and the current device of a thread.

    with TorchMusa("musa:0", "musa:1") as machine:      # tensors on them: emulators.devices
        torch.musa.current_device()                     # 0
        with torch.musa.device("musa:1"), torch.musa.stream(machine.new_stream("musa:1")): ...
        mate(current_device=machine.current)            # where a bare device="musa" goes
"""

from __future__ import annotations

import importlib.machinery
import itertools
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from emulators.devices import Devices


class Current:
    """The current device as text, whoever asks."""

    def __init__(self, machine: TorchMusa) -> None:
        self.machine = machine

    def __str__(self) -> str:
        return f"musa:{self.machine.index()}"


class TorchMusa(Devices):
    """Devices, with torch.musa and the module torch_musa beside them. version: of torch_musa; capability: as its
    get_device_capability says, (3, 1) being mp31."""

    def __init__(self, *names: str, version: str = "2.7.1", capability: tuple[int, int] = (3, 1)) -> None:
        super().__init__(*(names or ("musa:0",)))
        self.count, self.current = len(self.devices), Current(self)
        self._thread, self._streams = threading.local(), itertools.count(1)
        own = types.ModuleType("torch_musa")
        own.__version__ = version  # type: ignore[attr-defined]
        own.__spec__ = importlib.machinery.ModuleSpec("torch_musa", None)
        self.module, self.names = own, types.SimpleNamespace(
            is_available=lambda: True, device_count=lambda: self.count,
            get_device_capability=lambda device=None: capability, get_device_name=lambda device=None: "emulated MTT",
            current_device=self.index, device=self._device, current_stream=self._current_stream, stream=self._stream)

    def index(self) -> int:
        return int(getattr(self._thread, "index", 0))

    def new_stream(self, device: Any) -> Any:
        """A stream: an object with device and musa_stream."""
        return types.SimpleNamespace(device=str(device), musa_stream=next(self._streams))

    @contextmanager
    def _device(self, device: Any) -> Iterator[None]:
        before, index = self.index(), device if isinstance(device, int) else int(str(device).partition(":")[2] or 0)
        if not 0 <= index < self.count:
            raise RuntimeError(f"musa:{index} is not here ({self.count} devices)")
        self._thread.index = index
        try:
            yield
        finally:
            self._thread.index = before

    def _current_stream(self, device: Any) -> Any:
        chosen = getattr(self._thread, "streams", {}).get(str(device))
        return chosen or types.SimpleNamespace(device=str(device), musa_stream=0)

    @contextmanager
    def _stream(self, stream: Any) -> Iterator[None]:
        before = getattr(self._thread, "streams", {})
        self._thread.streams = {**before, stream.device: stream}
        try:
            yield
        finally:
            self._thread.streams = before

    def __enter__(self) -> TorchMusa:
        super().__enter__()
        self._before = getattr(torch, "musa", None), sys.modules.get("torch_musa")
        torch.musa, sys.modules["torch_musa"] = self.names, self.module  # type: ignore[attr-defined, assignment]
        return self

    def __exit__(self, *error: Any) -> None:
        names, module = self._before
        if names is None:
            del torch.musa  # type: ignore[attr-defined]
        else:
            torch.musa = names  # type: ignore[attr-defined, assignment]
        sys.modules.pop("torch_musa")
        if module is not None:
            sys.modules["torch_musa"] = module
        super().__exit__(*error)
