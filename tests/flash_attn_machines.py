"""Emulated NVIDIA machines for the tests of the FlashAttention family: a device, vendor packages, a case's run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from emulators.common import Call, Vendor
from emulators.devices import Devices
from emulators.flash_attn_2 import FlashAttn2
from emulators.flash_attn_3 import FlashAttn3, SglKernel, VllmFlashAttn
from emulators.flash_attn_4 import FlashAttn4

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


def cases(backend: str, full: bool = False) -> list[Case]:
    """The grid of a backend. That of flash_attn_diffkv is flash_attn_3's with the widths that it is for: the grid's
    base shape has equal ones, which it refuses."""
    if backend != "flash_attn_diffkv":
        return grid(registry.get(backend), full)
    found = [replace(case, fields={**case.fields, "head_dim": 192, "head_dim_v": 128}, rotary=_wide(case.rotary))
             for case in grid(registry.get("flash_attn_3"), full)
             if case.group.startswith("dense ") and case.fields["head_dim"] == 128 and "head_dim_v" not in case.fields]
    return list({case.name: case for case in found}.values())


def _wide(rotary: Any) -> dict[str, Any]:
    return {**rotary, "dim": rotary["dim"] * 3 // 2} if rotary else {}


def results(machine: Machine, backend: str, chosen: list[Case]) -> list[Result]:
    runner, found = Runner(registry.get(backend), machine.platform, SEED), []
    for case in chosen:
        found.append(runner.run(case))
        machine.calls.clear()
    return found
