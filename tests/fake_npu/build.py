"""Builds the libraries that torch_npu asks for, from the names in its own wheel: gcc and binutils, a few seconds, once.

torch_npu's libraries need about 190 functions of CANN when they are linked, and look up about 2,100 more by name.
runtime/*.cpp define those that do something. Of the others, the ones in NOTHING succeed and do nothing, each of
CANN's C functions and ATB's fails with its name when called, and each C++ function of the
graph engine ends the process with its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from fake_npu.signatures import SIGNATURES, letters

SOURCES = Path(__file__).parent / "runtime"
TOOLS = ("gcc", "g++", "nm", "readelf")
# Calls that torch_npu makes on its way and whose effect no test here sees: start, settings, log, profiling.
NOTHING = (
    "HcclSetConfig", "aclFinalize", "aclInit", "aclSetCompileopt", "aclmdlFinalizeDump", "aclmdlInitDump",
    "aclopSetCompileFlag", "aclrtCtxSetSysParamOpt", "aclrtDeviceEnablePeerAccess", "aclrtSetDeviceSatMode",
    "aclrtSetExceptionInfoCallback", "aclrtSetOpExecuteTimeOut", "aclrtSetOpExecuteTimeOutV2", "aclrtSetOpWaitTimeout",
    "aclrtSetStreamAttribute", "aclrtSetStreamFailureMode", "aclrtSetSysParamOpt")
# Not there, as in an older CANN, so that torch_npu takes the operator before: these have no public description.
ABSENT = ("aclnnTopkV2", "aclnnTopkV2GetWorkspaceSize")
# NEEDED libraries of CANN that the runtime isn't in: empty, so that the loader finds them.
EMPTY = ("libatb.so", "libnnopbase.so", "libruntime.so")
CANN = re.compile(r"lib(?:hccl|ascend\w*|acl_\w+|ge_runner|graph|fmk_parser|atb|runtime)\.so")
LOOKED_UP = re.compile(rb"(?:acl|Hccl|rt|Hcomm)(?:rt|op|mdl|tdt|sys|nn|prof|sk)?[A-Z]\w*")

# The arguments of an operator as the calling convention has them: whole numbers and pointers in registers and then on
# the stack, floating-point numbers in registers of their own. signatures.py says what each one is.
STACKED = [f"s{i}" for i in range(44)]  # more than any operator has
CAPTURE = f"""
#define STACK {", ".join(f"int64_t {name}" for name in STACKED)}
#define STACKED {", ".join(STACKED)}
""" + """
#include <stdint.h>
extern int fake_npu_prepare(const char *, const char *, const int64_t *, const double *);
extern int fake_npu_launch(const char *, void *, void *);
extern int fake_npu_unanswered(const char *);
typedef int64_t I;
#define REALS double d0,double d1,double d2,double d3,double d4,double d5,double d6,double d7
#ifdef __aarch64__
#define REGISTERS I r0,I r1,I r2,I r3,I r4,I r5,I r6,I r7
#define REGISTERED r0,r1,r2,r3,r4,r5,r6,r7
#else
#define REGISTERS I r0,I r1,I r2,I r3,I r4,I r5
#define REGISTERED r0,r1,r2,r3,r4,r5
#endif
#define PREPARE(name, op, kinds) int name(REGISTERS, REALS, STACK) { \\
    const I integers[] = {REGISTERED, STACKED}; const double reals[] = {d0,d1,d2,d3,d4,d5,d6,d7}; \\
    return fake_npu_prepare(op, kinds, integers, reals); }
#define LAUNCH(op) int op(void *w, uint64_t n, void *executor, void *stream) { \\
    (void)w; (void)n; return fake_npu_launch(#op, executor, stream); }
#define UNANSWERED(name) int name(void) { return fake_npu_unanswered(#name); }
"""
DECLARATIONS = """
int fake_npu_unanswered(const char *); void fake_npu_abort(const char *); void fake_npu_count(const char *);
"""


class BuildError(RuntimeError):
    """The fake NPU can't be built here; the message says what is missing."""


def build() -> Path:
    """The folder with cann/, driver/ and libdevice_files.so, made if need be beside this Python's packages.

    Raises BuildError where a tool or torch_npu is missing, or a compiler fails.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BuildError(f"{', '.join(missing)} not found: the fake NPU is built with gcc and binutils")
    if platform.machine() not in ("x86_64", "aarch64"):
        raise BuildError(f"the calling convention of {platform.machine()} is not known here: x86_64, aarch64")
    packages = Path(sysconfig.get_paths()["purelib"])
    if not (packages / "torch_npu").is_dir():
        raise BuildError(f"torch_npu is not installed in {packages}")
    digest = hashlib.sha256()
    own = [Path(__file__), Path(__file__).with_name("signatures.py"), *sorted(SOURCES.iterdir())]
    for path in [*own, *packages.glob("torch_npu-*.dist-info/RECORD")]:
        digest.update(path.read_bytes())
    folder = Path(sys.prefix) / "fake_npu" / digest.hexdigest()[:16]
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _build(folder, packages)
            (folder / "built").touch()
    return folder


def _build(folder: Path, packages: Path) -> None:
    wheel = packages / "torch_npu"
    libraries = [*wheel.glob("_C.*.so"), *wheel.glob("lib/*.so"), *wheel.glob("dynamo/torchair/core/*.so")]
    cann, driver, source = folder / "cann", folder / "driver", folder / "source"
    for path in (cann, driver, source):
        path.mkdir(parents=True)
    linked = _undefined(libraries) - _defined([*(packages / "torch" / "lib").glob("*.so*"), *libraries, *_system()])
    looked_up = {name.decode() for library in libraries if library.name == "libtorch_npu.so"
                 for name in LOOKED_UP.findall(library.read_bytes())}
    needed = {name for library in libraries for name in CANN.findall(_run("readelf", "-d", str(library)))}

    # The driver's library apart from CANN's: without it libascendcl.so does not load, as on a machine without driver.
    (source / "empty.c").write_text("")
    hal = _shared(driver / "libascend_hal.so", source / "empty.c")
    objects = []
    for path in sorted(SOURCES.glob("*.cpp")):
        objects.append(source / f"{path.stem}.o")
        _run("g++", "-std=c++17", "-O1", "-Wall", "-fPIC", "-c", str(path), "-o", str(objects[-1]))
    others = linked | looked_up - {name for name in looked_up if name.startswith("aclnn")}
    rest = sorted(others - _defined(objects))
    (source / "others.c").write_text(DECLARATIONS + "\n".join(_other(i, name) for i, name in enumerate(rest)))
    runtime = _shared(cann / "libascendcl.so", source / "others.c", *objects, hal, "-lstdc++", "-ldl", "-lpthread")
    (source / "operators.c").write_text(CAPTURE + "\n".join(_operators(looked_up)))
    _shared(cann / "libopapi.so", source / "operators.c", runtime)
    for name in sorted((needed | set(EMPTY)) - {runtime.name}):
        _shared(cann / name, source / "empty.c", runtime)
    _run("gcc", "-O1", "-Wall", "-fPIC", "-shared", str(SOURCES / "device_files.c"), "-o",
         str(folder / "libdevice_files.so"), "-ldl")


def _other(index: int, name: str) -> str:
    if name in NOTHING:
        return f'int f{index}(void) __asm__("{name}"); int f{index}(void) {{ fake_npu_count("{name}"); return 0; }}'
    if name.startswith("_Z") and not name.startswith("_ZN3atb"):  # atb's return a status, which torch_npu raises
        return f'void f{index}(void) __asm__("{name}"); void f{index}(void) {{ fake_npu_abort("{name}"); }}'
    return f'int f{index}(void) __asm__("{name}"); int f{index}(void) {{ return fake_npu_unanswered("{name}"); }}'


def _operators(looked_up: Iterable[str]) -> Iterable[str]:
    unanswered = {name for name in looked_up if name.startswith("aclnn")} - set(ABSENT)
    for name in SIGNATURES:
        unanswered -= {name, f"{name}GetWorkspaceSize", f"{name}GetMaxWorkspaceSize"}
        yield f'PREPARE({name}GetWorkspaceSize, "{name}", "{letters(name)}") LAUNCH({name})'
        yield f'PREPARE({name}GetMaxWorkspaceSize, "{name}", "{letters(name)}")'
    yield from (f"UNANSWERED({name})" for name in sorted(unanswered))


def _shared(out: Path, *inputs: object) -> Path:
    _run("gcc", "-w", "-O1", "-fPIC", "-shared", "-o", str(out), f"-Wl,-soname,{out.name}", "-Wl,--no-as-needed",
         *map(str, inputs))
    return out


def _system() -> list[Path]:
    """Libraries of the system that define what torch_npu needs besides CANN and torch."""
    names = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1")
    found = [Path(_run("gcc", f"-print-file-name={name}").strip()) for name in names]
    loader = next(Path("/").glob("lib*/ld-linux-*.so.*"), None) or next(Path("/lib").glob("*/ld-linux-*.so.*"))
    python = Path(sysconfig.get_config_var("LIBDIR") or "/").glob("libpython3*.so*")
    return [*(path for path in found if path.is_absolute()), loader, Path(sys.executable).resolve(), *python]


def _symbols(flag: str, paths: Iterable[Path]) -> Iterable[tuple[str, str]]:
    for path in paths:
        flags = ["--defined-only"] if path.suffix == ".o" else ["-D", flag]
        for line in _run("nm", *flags, str(path)).splitlines():
            parts = line.split()
            if len(parts) >= 2:
                yield parts[-1].partition("@")[0], parts[-2]


def _defined(paths: Iterable[Path]) -> set[str]:
    return {name for name, _ in _symbols("--defined-only", paths)}


def _undefined(paths: Iterable[Path]) -> set[str]:
    return {name for name, kind in _symbols("--undefined-only", paths) if kind != "w"}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed: {done.stderr.strip()[:2000]}")
    return done.stdout
