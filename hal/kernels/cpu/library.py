"""The shared library: why it is not there, which variants this CPU runs, which one is used."""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal import env
from hal.torch_import import load_torch

# In the order of variants.h. v4_dot needs what v4_bf16 needs, and does blocks of bfloat16 by VDPBF16PS.
ISAS = ("generic", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16", "x86_64_v4_dot", "x86_64_v4_amx")
FOLDER = Path(__file__).parent
FILE, REASON = "libhal_cpu.so", "not_built.txt"
# Status of a call (abi.h).
OK, BAD, NO_MEMORY = 0, 1, 2
_loading = threading.Lock()


@dataclass(frozen=True)
class Library:
    """attention, write: the C functions, each taking one pointer and returning a status. isas: names this CPU runs.
    best: the one of them that is used where nobody says another."""

    attention: Any
    write: Any
    isas: tuple[str, ...]
    best: str

    def isa(self) -> int:
        """Number of the variant to use: HAL_CPU_ISA's, else the best that this CPU runs.

        Raises ValueError where HAL_CPU_ISA names one that this CPU or this build lacks.
        """
        name = env.get("HAL_CPU_ISA")
        if name is not None and name not in self.isas:
            raise ValueError(f"HAL_CPU_ISA={name!r}: this CPU or this build of HAL does not have it (it has: "
                             f"{', '.join(self.isas)})")
        return ISAS.index(name or self.best)


def missing() -> str | None:
    """Why there is no library, None where there is one. Nothing is loaded."""
    if (FOLDER / FILE).is_file():
        return None
    try:
        reason = (FOLDER / REASON).read_text(encoding="utf-8").strip()
    except OSError:
        reason = "it was not built: this is a checkout that was not installed"
    return f"hal.kernels.cpu has no {FILE}: {reason}; install a C++ compiler, then attention-hal again"


@functools.cache
def _load() -> Library:
    load_torch()  # first, so that the kernels run on torch's OpenMP threads: the loader finds its libgomp by name
    problem = missing()
    if problem:
        raise ImportError(problem)
    library = ctypes.CDLL(str(FOLDER / FILE))
    from hal.kernels.cpu.call import CALL_SIZE, WRITE_SIZE

    for name in ("isas", "isas_built", "best", "sizeof"):
        getattr(library, f"hal_cpu_{name}").restype = ctypes.c_int64
    sizes = (library.hal_cpu_sizeof(0), library.hal_cpu_sizeof(1))
    if sizes != (CALL_SIZE, WRITE_SIZE):
        raise ImportError(f"{FOLDER / FILE} was built from other sources (structs of {sizes} bytes, expected "
                          f"{(CALL_SIZE, WRITE_SIZE)}): install attention-hal again")
    for name in ("attention", "write"):
        getattr(library, f"hal_cpu_{name}").argtypes = [ctypes.c_char_p]
    bits = library.hal_cpu_isas()
    return Library(library.hal_cpu_attention, library.hal_cpu_write,
                   tuple(name for i, name in enumerate(ISAS) if bits >> i & 1), ISAS[library.hal_cpu_best()])


def load() -> Library:
    """The library of this process, loaded after torch. Raises ImportError with the reason where there is none."""
    with _loading:
        return _load()
