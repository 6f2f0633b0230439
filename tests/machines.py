"""Machines that are not there: a root folder with device files and a site folder with fake vendor packages.

`Machine.hal()` runs HAL in a process of its own, whose import path is the fake site folder, the checkout and
the standard library (python -S), and which sees the fake root folder instead of "/". `Machine.host()` is the
same machine for a probe in this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hal.host import Host

ROOT = Path(__file__).parents[1]
X86 = "model name\t: Fake CPU\nflags\t\t: fpu sse2 sse4_2 abm avx avx2 bmi1 bmi2 f16c fma movbe\n"
# Host's default root becomes the fake one; then `hal ARGS...`, or code.
_DRIVER = """
import sys
from hal.host import Host
Host.__init__.__defaults__ = (sys.argv[1], *Host.__init__.__defaults__[1:])
if sys.argv[2] == "-c":
    exec(sys.argv[3])
else:
    from hal.__main__ import main
    sys.exit(main(sys.argv[2:]))
"""


class Machine:
    """One fake machine, built by parts in a folder of its own."""

    def __init__(self, folder: Path, *parts: Part) -> None:
        self.root, self.site = folder / "root", folder / "site"
        self.environ: dict[str, str] = {}
        self.site.mkdir(parents=True)
        self.file("/proc/cpuinfo", X86)
        for part in parts:
            part(self)

    def file(self, name: str, text: str = "") -> None:
        """A file of the machine, by its absolute name."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def module(self, name: str, text: str = "") -> None:
        """A file of the site folder, by its name relative to it, and an __init__.py for each parent."""
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in list(path.relative_to(self.site).parents)[:-1]:
            (self.site / parent / "__init__.py").touch()
        path.write_text(text)

    def metadata(self, distribution: str, version: str, entry_points: str = "") -> None:
        """An installed distribution's metadata."""
        info = self.site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        if entry_points:
            (info / "entry_points.txt").write_text(entry_points)

    def host(self) -> Host:
        """The machine as a probe in this process sees it."""
        return Host(str(self.root), {"PATH": os.defpath, **self.environ}, [str(self.site)])

    def hal(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`hal ARGS...` on the machine; with "-c" first, the code after it."""
        environ = {
            "PATH": os.defpath,
            "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.environ,
        }
        return subprocess.run(
            [sys.executable, "-S", "-c", _DRIVER, str(self.root), *args],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


Part = Callable[[Machine], None]


def dev(*names: str) -> Part:
    """Device files: dev("nvidia0", "nvidiactl")."""

    def part(machine: Machine) -> None:
        for name in names:
            machine.file(f"/dev/{name}")

    return part


def env(**variables: str) -> Part:
    """Environment variables."""
    return lambda machine: machine.environ.update(variables)


def cpuinfo(text: str) -> Part:
    """Another /proc/cpuinfo."""
    return lambda machine: machine.file("/proc/cpuinfo", text)


def module(name: str, text: str = "") -> Part:
    """One file of the site folder: module("mate/__init__.py")."""
    return lambda machine: machine.module(name, text)


def metadata(distribution: str, version: str, entry_points: str = "") -> Part:
    """Metadata alone, with no module."""
    return lambda machine: machine.metadata(distribution, version, entry_points)


def package(distribution: str, version: str, file: str, text: str = "") -> Part:
    """A whole package: metadata and one file of it."""

    def part(machine: Machine) -> None:
        machine.metadata(distribution, version)
        machine.module(file, text)

    return part


def plugin(group: str, name: str, value: str, text: str = "", distribution: str = "") -> Part:
    """A distribution with an entry point `name = value`, and the module that value names."""

    def part(machine: Machine) -> None:
        machine.metadata(distribution or f"{name}-plugin", "1.0", f"[{group}]\n{name} = {value}\n")
        machine.module(value.partition(":")[0].replace(".", "/") + ".py", text)

    return part


def torch(
    cuda: str | None = None,
    hip: str | None = None,
    *,
    devices: tuple[tuple[str, object], ...] = (),
    available: bool | None = None,
    before: str = "",
    version: str = "2.13.0",
) -> Part:
    """A torch: how it was built, and what its torch.cuda says.

    devices: (name, capability) with a pair of numbers for CUDA or a gcnArchName for ROCm. before: code that
    runs first when torch is imported.
    """
    is_available = bool(devices) if available is None else available

    def part(machine: Machine) -> None:
        machine.metadata("torch", version)
        machine.module(
            "torch/version.py",
            f"from typing import Optional\n__version__ = '{version}'\n"
            f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = {hip!r}\n",
        )
        machine.module(
            "torch/cuda.py",
            f"""
from types import SimpleNamespace
_devices = {list(devices)!r}
def is_available(): return {is_available}
def device_count(): return len(_devices)
def get_device_name(index): return _devices[index][0]
def get_device_capability(index): return _devices[index][1]
def get_device_properties(index): return SimpleNamespace(gcnArchName=_devices[index][1])
""",
        )
        machine.module(
            "torch/__init__.py",
            f"{before}\nfrom torch import cuda, version\n__version__ = version.__version__\n",
        )

    return part


def torch_musa(*capabilities: tuple[int, int], available: bool = True, before: str = "") -> Part:
    """A torch_musa 2.7.1 that gives torch one device for each capability."""
    return package(
        "torch_musa",
        "2.7.1",
        "torch_musa/__init__.py",
        f"""
{before}
import torch, types
__version__ = "2.7.1"
_capabilities = {list(capabilities)!r}
torch.musa = types.SimpleNamespace(
    is_available=lambda: {available}, device_count=lambda: len(_capabilities),
    get_device_capability=lambda index: _capabilities[index], get_device_name=lambda index: "MTT Fake")
""",
    )


def torch_npu(soc: int = 220, count: int = 1, available: bool = True, before: str = "") -> Part:
    """A torch_npu 2.13.0 with `count` NPUs of one SoC number."""
    return package(
        "torch_npu",
        "2.13.0",
        "torch_npu/__init__.py",
        f"""
{before}
import torch, types
__version__ = "2.13.0"
npu = types.SimpleNamespace(utils=types.SimpleNamespace(get_soc_version=lambda: {soc}))
torch.npu = types.SimpleNamespace(is_available=lambda: {available}, device_count=lambda: {count},
                                  get_device_name=lambda index: "Ascend Fake")
""",
    )


def cann() -> Part:
    """CANN's libascendcl.so: any library that loads will do, so this process's libc stands in."""

    def part(machine: Machine) -> None:
        maps = Path("/proc/self/maps").read_text().split()
        libc = next(name for name in maps if "/libc.so" in name or "/libc-" in name or "/ld-musl" in name)
        (machine.root / "cann").mkdir()
        (machine.root / "cann" / "libascendcl.so").symlink_to(libc)
        machine.environ["LD_LIBRARY_PATH"] = str(machine.root / "cann")

    return part
