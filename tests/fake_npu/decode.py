"""What runtime/call.cpp hands over, as Python values: tensors are CPU tensors over the device's memory.

Keep the three structures in step with call.cpp.
"""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace
from typing import Any

import torch

from fake_npu.signatures import SIGNATURES

MAX_DIM = 8
# aclDataType of CANN's acl_base.h
DTYPES = {
    0: torch.float32, 1: torch.float16, 2: torch.int8, 3: torch.int32, 4: torch.uint8, 6: torch.int16, 9: torch.int64,
    11: torch.float64, 12: torch.bool, 16: torch.complex64, 27: torch.bfloat16,
    35: torch.float8_e5m2, 36: torch.float8_e4m3fn,
}
ND, FRACTAL_NZ = 2, 29
_SCALARS = {0: "f", 1: "e", 2: "b", 3: "i", 4: "B", 6: "h", 7: "H", 8: "I", 9: "q", 10: "Q", 11: "d", 12: "?"}


class RawTensor(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_int64), ("ndim", ctypes.c_int64), ("shape", ctypes.c_int64 * MAX_DIM),
                ("stride", ctypes.c_int64 * MAX_DIM), ("offset", ctypes.c_int64), ("dtype", ctypes.c_int64),
                ("format", ctypes.c_int64), ("data", ctypes.c_void_p), ("origin", ctypes.c_void_p)]


class RawArg(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int64), ("is_null", ctypes.c_int64), ("integer", ctypes.c_int64),
                ("count", ctypes.c_int64), ("real", ctypes.c_double), ("items", ctypes.c_void_p)]


class RawCall(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("nargs", ctypes.c_int64), ("device", ctypes.c_int64),
                ("args", ctypes.POINTER(RawArg))]


class AddressError(ValueError):
    """A tensor that is not in the memory of the device that is to work on it."""


def call_of(raw: RawCall) -> tuple[str, SimpleNamespace]:
    """An operator's name, and its arguments by name.

    Raises AddressError for a tensor of another device or of the host.
    """
    name = raw.name.decode()
    values = {argument: _value(f"{name}: {argument}", kind, raw.args[index], raw.device)
              for index, (argument, kind) in enumerate(SIGNATURES[name])}
    return name, SimpleNamespace(**values)


def origin(tensor: torch.Tensor) -> int:
    """The descriptor that a decoded tensor came from."""
    return int(tensor.origin)  # type: ignore[attr-defined]


def _value(what: str, kind: str, arg: RawArg, device: int) -> Any:
    if kind in "ib":
        return bool(arg.integer) if kind == "b" else arg.integer
    if kind == "e":
        return arg.integer
    if kind in "df":
        return arg.real
    if arg.is_null:
        return None
    if kind in "AB":
        return [bool(value) if kind == "B" else value
                for value in (ctypes.c_int64 * arg.count).from_address(arg.items)] if arg.count else []
    if kind == "S":
        return _scalar(arg.count, ctypes.string_at(arg.items, 16))
    if kind == "s":
        return ctypes.string_at(arg.items).decode()
    raws = (RawTensor * arg.count).from_address(arg.items) if arg.count else []
    tensors = [_tensor(what, raw, device) for raw in raws]
    return tensors[0] if kind == "T" else tensors


def _scalar(dtype: int, content: bytes) -> bool | int | float | complex:
    if dtype == 27:  # bfloat16: the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + content[:2])[0])
    if dtype == 16:
        return complex(*struct.unpack_from("<ff", content))
    return struct.unpack_from("<" + _SCALARS[dtype], content)[0]  # type: ignore[no-any-return]


def _tensor(what: str, raw: RawTensor, device: int) -> torch.Tensor | None:
    if not raw.tag:
        return None  # a hole in a list of indices
    if raw.dtype not in DTYPES:
        raise AddressError(f"{what} has aclDataType {raw.dtype}, this fake has {sorted(DTYPES)}")
    dtype, shape, stride = DTYPES[raw.dtype], list(raw.shape)[:raw.ndim], list(raw.stride)[:raw.ndim]
    if 0 in shape:
        tensor = torch.empty(shape, dtype=dtype)
    elif raw.data is None:
        raise AddressError(f"{what}, shape {shape}, has no memory")
    else:
        size = dtype.itemsize * (1 + sum((n - 1) * s for n, s in zip(shape, stride)))
        start = raw.data + raw.offset * dtype.itemsize
        place = ctypes.CDLL("libascendcl.so").fake_npu_owner(ctypes.c_void_p(start), ctypes.c_size_t(size))
        if place != device:
            where = "the host's memory, or freed, or shorter than the tensor" if place < 0 else f"npu:{place}"
            raise AddressError(f"{what}, shape {shape}, is in {where}; the work is for npu:{device}")
        flat = torch.frombuffer((ctypes.c_char * size).from_address(start), dtype=dtype)
        tensor = flat.as_strided(shape, stride)
    tensor.origin = raw.origin  # type: ignore[attr-defined]
    tensor.format = raw.format  # type: ignore[attr-defined]
    return tensor
