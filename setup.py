"""Builds hal/kernels/cpu/libhal_cpu.so beside what pyproject.toml says: a plain shared library, no Python API.

Optional: without a C++ compiler the install succeeds, and not_built.txt says why the cpu backend is absent. The same
source is compiled once per ISA, each into a namespace of its own; one whose flags the compiler lacks is left out. CXX
names the compiler (default: c++, g++, clang++).
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("hal/kernels/cpu")
LIBRARY, REASON = "libhal_cpu.so", "not_built.txt"
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wall", "-Wextra", "-Wno-psabi",
         "-Wno-maybe-uninitialized"]  # the last: GCC 12 warns of its own intrinsics
_V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
# Namespace -> the macro that tells plan.cpp, and the compiler's flags.
X86 = {"v3": ("HAL_HAVE_V3", ["-march=x86-64-v3"]), "v4": ("HAL_HAVE_V4", _V4),
       "bf16": ("HAL_HAVE_BF16", [*_V4, "-mavx512bf16"]),
       "amx": ("HAL_HAVE_AMX", [*_V4, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"])}


class NotBuilt(Exception):
    """Why there is no library, as one sentence for people."""


def compiler() -> list[str]:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise NotBuilt(f"CXX={named} was not found when it was installed" if named else
                   "no C++ compiler (c++, g++, clang++) was found when it was installed")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise NotBuilt(f"{Path(command[0]).name} failed when it was installed ({errors[0].strip()[:200]})")


def build(into: Path, work: Path) -> None:
    """Compile and link. Raises NotBuilt."""
    cxx = compiler()
    work.mkdir(parents=True, exist_ok=True)
    into.parent.mkdir(parents=True, exist_ok=True)
    empty = work / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    variants = {"generic": ("", [])}
    if platform.machine().lower() in ("x86_64", "amd64"):
        for name, (macro, flags) in X86.items():
            if subprocess.run([*cxx, *flags, "-c", str(empty), "-o", str(work / "empty.o")], capture_output=True,
                              check=False).returncode == 0:
                variants[name] = (macro, flags)
    jobs = [[*cxx, *FLAGS, *flags, f"-DHAL_NS=hal_{name}", "-c", str(FOLDER / "kernel.cpp"), "-o",
             str(work / f"{name}.o")] for name, (_, flags) in variants.items()]
    macros = [f"-D{macro}" for macro, _ in variants.values() if macro]
    jobs.append([*cxx, *FLAGS, *macros, "-c", str(FOLDER / "plan.cpp"), "-o", str(work / "plan.o")])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, jobs))
    run([*cxx, "-shared", "-fopenmp", "-o", str(into), *(str(work / f"{name}.o") for name in [*variants, "plan"])])


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        into = Path(self.get_ext_fullpath(ext.name))
        reason = into.with_name(REASON)
        try:
            build(into, Path(self.build_temp) / "hal_cpu")
        except NotBuilt as error:
            self.warn(f"the cpu backend is left out: {error}")
            into.unlink(missing_ok=True)
            into.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{error}\n", encoding="utf-8")
        else:
            reason.unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:  # an editable install, or --inplace
        for name in (LIBRARY, REASON):
            there, here = Path(self.build_lib) / FOLDER / name, FOLDER / name
            here.unlink(missing_ok=True)  # never written over: a process may have it mapped
            if there.is_file():
                shutil.copy2(there, here)

    def get_outputs(self) -> list[str]:
        return [name for name in super().get_outputs() if Path(name).is_file()]


class AnyPython(bdist_wheel):
    """py3-none-PLATFORM: the library knows no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


sources = [str(FOLDER / name) for name in ("kernel.cpp", "plan.cpp")]
setup(ext_modules=[Extension("hal.kernels.cpu.libhal_cpu", sources, optional=True,
                             depends=sorted(map(str, FOLDER.glob("*.h"))))],
      cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython})
