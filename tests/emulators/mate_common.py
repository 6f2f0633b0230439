"""What the parts of the emulator of MATE share: the machine, memory nobody wrote, and asserts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from emulators.devices import on, plain_of, tag_of

TILE_N = 64  # keys of one tile, in every configuration: mate/jit/attention/fmha/fmha_utils.py:157-190
HALF = (torch.float16, torch.bfloat16)


class Unspecified(RuntimeError):
    """MATE's source does not say what happens here, or says that it is undefined. The emulator stops, so that nobody
    relies on it; the real one may crash, give anything, or work."""


@dataclass(frozen=True)
class Machine:
    """multiprocessors: MATE asks the device; what its tests use as a batch size stands here (tests/test_mla.py:140).
    sdk: MUSA SDK. current_device: where a bare device="musa" goes. release: of MATE."""

    release: str = "0.2.2"
    multiprocessors: int = 56
    sdk: tuple[int, int, int] = (5, 1, 0)
    current_device: str = "musa:0"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def check(condition: bool, message: str = "") -> None:
    """A Python `assert` of MATE's."""
    if not condition:
        raise AssertionError(message)


def icheck(condition: bool, message: str = "") -> None:
    """A TVM_FFI_ICHECK of MATE's C++: an InternalError of tvm_ffi, which is a RuntimeError."""
    if not condition:
        raise RuntimeError(message)


def is_musa(tensor: torch.Tensor) -> bool:
    """The attribute that torch_musa gives to every tensor."""
    tag = tag_of(tensor)
    return tag is not None and tag.type == "musa"


def same_device(first: torch.Tensor, **others: Any) -> None:
    """Kernels run on q's device and MATE checks for these tensors only that they are MUSA tensors, or nothing."""
    for name, tensor in others.items():
        if tensor is not None and tag_of(tensor) != tag_of(first):
            raise Unspecified(f"{name} is on {tag_of(tensor) or 'cpu'} and the kernel runs on {tag_of(first)}: "
                              "MATE does not check it, and whether the device can read it is not said")


def unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """torch.empty on the device: whoever reads what no tile wrote reads anything. Here that is NaN."""
    return torch.full(shape, math.nan, dtype=dtype)


def ints(tensor: torch.Tensor) -> list[int]:
    return [int(x) for x in plain_of(tensor).tolist()]


def like(result: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The result on the tensor's device."""
    return on(result, tag_of(tensor))


def differences(cumulated: torch.Tensor | None) -> list[int] | None:
    if cumulated is None:
        return None
    values = ints(cumulated)
    return [end - start for start, end in pairwise(values)]


def lengths(used: torch.Tensor | None, cumulated: torch.Tensor | None, static: int, batch: int) -> list[int]:
    """seqlen.hpp:95-114: seqused before cu_seqlens before the static length."""
    return ints(used) if used is not None else differences(cumulated) or [static] * batch
