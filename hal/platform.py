"""Platform: which accelerator, which generation; and the search for the one of this machine."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal import env

if TYPE_CHECKING:
    from hal.host import Host


@dataclass(frozen=True)
class Platform:
    """One device, here or hypothetical.

    kind: "cuda", "rocm", "npu", "musa", "cpu" or a plugin's. arch: one of the kind's archs ("sm90"), or
    None where the text named none. torch_device: what torch calls it. index: device number, None for cpu.
    name: what the driver calls it; empty for a device that is not known to be here.
    """

    kind: str
    arch: str | None
    torch_device: str
    index: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.kind if self.arch is None else f"{self.kind}:{self.arch}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "arch": self.arch, "torch_device": self.torch_device, "index": self.index,
                "name": self.name}

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`cuda`, `cuda:1` (an index) or `cuda:sm90` (an arch, which need not be here).

        Raises ValueError with the list of what is known.
        """
        from hal.platforms import table

        kinds = table()
        kind, _, rest = text.strip().partition(":") if isinstance(text, str) else ("", "", "")
        if kind not in kinds:
            raise ValueError(f"device {text!r} is not known (known: auto, {', '.join(sorted(kinds))}; "
                             "or with an index or an arch: cuda:1, cuda:sm90)")
        module = kinds[kind]
        if not rest and ":" not in text:
            return cls(kind, None, module.TORCH_DEVICE, None if kind == "cpu" else 0)
        if rest.isdecimal() and kind != "cpu":
            return cls(kind, None, f"{module.TORCH_DEVICE}:{int(rest)}", int(rest))
        if rest in module.ARCHS:
            return cls(kind, rest, module.TORCH_DEVICE, None if kind == "cpu" else 0)
        raise ValueError(f"device {text!r}: {rest!r} is no arch of {kind} (archs: {', '.join(module.ARCHS)})")


@dataclass(frozen=True)
class Probe:
    """What a platform's probe() saw: its devices, or why there is none."""

    devices: tuple[Platform, ...]
    reason: str

    @property
    def found(self) -> bool:
        return bool(self.devices)


@dataclass(frozen=True)
class PlatformStatus:
    """One row of hal.platforms(): a known platform, found or not, with the reason."""

    kind: str
    found: bool
    reason: str
    devices: tuple[Platform, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "found": self.found, "reason": self.reason,
                "devices": [device.to_dict() for device in self.devices]}


class PlatformNotFoundError(RuntimeError):
    """The device asked for is not on this machine; the text says why and what is."""


def known_devices(kind: str, torch_device: str, archs: tuple[str, ...], seen: list[tuple[str, str]],
                  versions: str) -> Probe:
    """The Probe for devices seen as (arch, name), by index. An unknown arch is a reason."""
    found = tuple(Platform(kind, arch, f"{torch_device}:{index}", index, name or kind)
                  for index, (arch, name) in enumerate(seen) if arch in archs)
    unknown = [f"{kind}:{index} ({name}) is {arch}, which HAL does not know (archs: {', '.join(archs)})"
               for index, (arch, name) in enumerate(seen) if arch not in archs]
    return Probe(found, "; ".join([versions, *unknown] if seen else [versions, "torch counts 0 devices"]))


def ask_devices(host: Host, kind: str, package: str) -> Probe:
    """What devices() of the platform file `kind` answers, once nothing cheap speaks against it.

    It imports `package`, which may hang, abort, or leave its mark on every later import, so a child process
    does it; in this process only where the package is loaded already, or where HAL_PROBE_TIMEOUT is 0.
    """
    if (host.is_this_process and package in sys.modules) or env.get("HAL_PROBE_TIMEOUT", host.environ) == 0:
        probe: Probe = importlib.import_module(f"hal.platforms.{kind}").devices()
        return probe
    answer = host.ask(package, f"__import__('hal.platform').platform.devices_as_json({kind!r})")
    if answer.text is None:
        return Probe((), str(answer.error))
    seen = json.loads(answer.text)
    return Probe(tuple(Platform(**device) for device in seen["devices"]), seen["reason"])


def devices_as_json(kind: str) -> str:
    """The child process's half of ask_devices."""
    probe = importlib.import_module(f"hal.platforms.{kind}").devices()
    return json.dumps({"devices": [device.to_dict() for device in probe.devices], "reason": probe.reason})


def _status(kind: str, module: Any, host: Host) -> PlatformStatus:
    """One platform, probed. A probe that raises becomes a reason: no vendor's package hides the others."""
    try:
        probe = module.probe(host)
        return PlatformStatus(kind, probe.found, probe.reason, probe.devices)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a vendor raises is the reason shown
        return PlatformStatus(kind, False, f"its probe raised {type(error).__name__}: {error}", ())


def _checked(host: Host) -> Host:
    """A bad HAL_* value raises wherever it stands; inside a probe it would become that platform's reason."""
    env.warn_unknown(host.environ)
    env.get("HAL_PROBE_TIMEOUT", host.environ)
    return host


def probe_all(host: Host | None = None) -> list[PlatformStatus]:
    """Every known platform in the order of detection, probed once, with its reason; then broken plugins."""
    from hal.host import Host
    from hal.platforms import plugin_failures, table

    host = _checked(host or Host())
    return [_status(kind, module, host) for kind, module in table().items()] + [
        PlatformStatus(name, False, reason, ()) for name, reason in plugin_failures().items()]


def detect(device: str = "auto", host: Host | None = None) -> Platform:
    """The device of this machine that `device` means.

    "auto" is $HAL_DEVICE, else the first found in the order plugins, musa, npu, rocm, cuda, cpu (shims of
    the first three make torch.cuda look present). A kind alone ("cuda") is its first device. No platform
    that the answer does not depend on is probed. Raises ValueError for an unknown text and
    PlatformNotFoundError, with the reason, for a device that is not here.
    """
    from hal.host import Host
    from hal.platforms import table

    host = _checked(host or Host())
    wanted, asked = wanted_device(device, host)
    for kind, module in table().items():
        if wanted is None or kind == wanted.kind:
            found = _first(_status(kind, module, host), wanted, asked)
            if found:
                return found
    raise not_found(asked, probe_all(host))


@functools.cache
def platform_of(device: Any, whose: str = "the model is on device") -> Platform:
    """The Platform of a torch.device. torch says "cuda" for ROCm too: platforms are asked in their order.

    Raises ValueError, which begins with `whose`, for a device that HAL has not found on this machine.
    """
    import torch

    here = [found for status in probe_all() for found in status.devices]
    wanted = torch.device(device.type, 0) if device.index is None and device.type != "cpu" else device
    for found in here:
        if torch.device(found.torch_device) == wanted:
            return found
    raise ValueError(f"{whose} {device}, which is no device that HAL found on this machine "
                     f"(here: {', '.join(f'{d.torch_device} ({d})' for d in here)})")


def wanted_device(device: str, host: Host) -> tuple[Platform | None, str]:
    """The Platform that a device text asks for, None for any, and the text with $HAL_DEVICE resolved."""
    asked = str(env.get("HAL_DEVICE", host.environ)) if device == "auto" else device
    return (None if asked == "auto" else Platform.parse(asked)), asked


def select(rows: list[PlatformStatus], host: Host) -> Platform:
    """What detect("auto") answers, from platforms that were probed already. Raises as detect does."""
    wanted, asked = wanted_device("auto", host)
    for row in rows:
        found = _first(row, wanted, asked) if wanted is None or row.kind == wanted.kind else None
        if found:
            return found
    raise not_found(asked, rows)


def _first(row: PlatformStatus, wanted: Platform | None, asked: str) -> Platform | None:
    """The first device of a platform that fits: any, the arch, the index, or for a kind alone the first."""
    for device in row.devices:
        if wanted is None or ":" not in asked or (device.index == wanted.index if wanted.arch is None
                                                  else device.arch == wanted.arch):
            return device
    return None


def not_found(asked: str, rows: list[PlatformStatus]) -> PlatformNotFoundError:
    """The error for a device that is not here: why not, and what is."""
    here = ", ".join(f"{d.torch_device} ({d})" for row in rows for d in row.devices) or "nothing"
    kind = asked.partition(":")[0]
    why = next((f": {row.reason}" for row in rows if row.kind == kind and row.reason), "")
    return PlatformNotFoundError(f"device {asked!r} is not on this machine{why}. Here: {here}")
