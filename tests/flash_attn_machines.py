"""Emulated NVIDIA machines for the tests of the FlashAttention family: a device, vendor packages, a case's run."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

from emulators.common import Call, Vendor
from emulators.devices import Devices
from emulators.flash_attn_2 import FlashAttn2
from emulators.flash_attn_3 import FlashAttn3, SglKernel, VllmFlashAttn
from emulators.flash_attn_4 import FlashAttn4

import hal.backends
from hal import registry, stream
from hal.conformance.case import Case
from hal.conformance.grid import grid
from hal.conformance.runner import Result, Runner
from hal.platform import Platform

DEVICE, SEED = "cuda:0", 7
# Package -> its emulator on an arch. flash-attn and flash-attn-4 share a top-level name: one machine has one of them.
PACKAGES: dict[str, Callable[[str], Vendor]] = {
    "flash-attn": lambda arch: FlashAttn2(arch=arch),
    "flash-attn-3": lambda arch: FlashAttn3(arch=arch),
    "sglang-kernel": lambda arch: SglKernel(arch=arch),
    "vllm": lambda arch: VllmFlashAttn(arch=arch),
    "flash-attn-4": lambda arch: FlashAttn4(arch=arch),
}


@dataclass
class Machine:
    """One GPU with packages, while `there`. calls: of all vendors, in order. platform: what hal.detect() would say."""

    arch: str
    packages: tuple[str, ...]
    vendors: dict[str, Vendor]
    devices: Devices
    calls: list[Call]

    @property
    def platform(self) -> Platform:
        return Platform("cuda", self.arch, DEVICE, 0, f"emulated {self.arch}")


@contextmanager
def there(arch: str, *packages: str) -> Iterator[Machine]:
    with ExitStack() as stack:
        devices = stack.enter_context(Devices(DEVICE))
        stack.enter_context(mock.patch.dict(stream.READERS, {"cuda": lambda device: 0}))  # no torch here has streams
        vendors = {name: stack.enter_context(PACKAGES[name](arch).installed()) for name in packages}
        calls: list[Call] = []
        for vendor in vendors.values():
            vendor.calls = calls
        yield Machine(arch, packages, vendors, devices, calls)


# In the order of their imports.
MODULES = ("flash_attn_cache", "flash_attn_v2", "flash_attn_v3", "flash_attn", "flash_attn_variants", "flash_attn_4")
FILES = {name: Path(hal.backends.__file__ or "").parent / f"{name}.py" for name in MODULES}


@contextmanager
def installed(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """These modules as the family's while the context is open; None: gone, so that an import makes it anew."""
    before = {name: importlib.import_module(f"hal.backends.{name}") for name in modules}
    try:
        _install(modules)
        yield
    finally:
        _install(before)


def _install(modules: Mapping[str, ModuleType | None]) -> None:
    for name, module in modules.items():
        if module is None:
            del sys.modules[f"hal.backends.{name}"]
            delattr(hal.backends, name)
        else:
            sys.modules[f"hal.backends.{name}"] = module
            setattr(hal.backends, name, module)  # what `from hal.backends import ...` reads
    registry._load.cache_clear()


def changed(file: str, code: str | ast.Module) -> dict[str, ModuleType]:
    """The family's modules made anew, `file` among them from other source; `installed` puts them in place."""
    modules = {}
    with installed(dict.fromkeys(MODULES)):
        for name in MODULES:
            modules[name] = module = ModuleType(f"hal.backends.{name}")
            _install({name: module})
            source, where = (code, f"{name}.py (changed)") if name == file else (FILES[name].read_text(), FILES[name])
            exec(compile(source, where, "exec", dont_inherit=True), module.__dict__)
    return modules


def cases(backend: str, full: bool = False) -> list[Case]:
    return grid(registry.get(backend), full)


def results(machine: Machine, backend: str, chosen: list[Case]) -> list[Result]:
    runner, found = Runner(registry.get(backend), machine.platform, SEED), []
    for case in chosen:
        found.append(runner.run(case))
        machine.calls.clear()
    return found
