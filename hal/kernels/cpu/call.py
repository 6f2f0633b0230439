"""The two structs of abi.h, filled from tensors."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Fields of HalCall and HalWrite in order: tensors, whole numbers, floating numbers.
TENSORS = ("q", "k", "v", "k_new", "v_new", "qv", "rotary_cos", "rotary_sin", "cache_seqlens", "cache_batch_idx",
           "cache_leftpad", "page_table", "cu_seqlens_q", "cu_seqlens_k", "rotary_seqlens", "q_descale", "k_descale",
           "v_descale", "sinks", "out", "lse", "tree_mask", "mm_prefix_ranges", "sparse_indices", "cp_tot_seqused_k",
           "seqused_q", "seqused_k")
NUMBERS = ("varlen", "causal", "left", "right", "chunk", "interleaved", "cp_world", "cp_rank", "seqlen",
           "max_seqlen_q", "max_seqlen_k", "threads", "num_splits", "isa")
WRITE_TENSORS = ("k", "v", "k_cache", "v_cache", "slots", "k_scale", "v_scale")
# data, dtype, dim, size[4], stride[4]
_ONE = [struct.Struct(f"=qqq{n}q{8 * (4 - n)}x{n}q{8 * (4 - n)}x") for n in range(5)]
TENSOR_SIZE = _ONE[0].size
_NUMBERS = struct.Struct(f"={len(NUMBERS)}q2d")
_WRITE_NUMBERS = struct.Struct("=2q2d")
_NUMBERS_AT, _WRITE_NUMBERS_AT = len(TENSORS) * TENSOR_SIZE, len(WRITE_TENSORS) * TENSOR_SIZE
CALL_SIZE, WRITE_SIZE = _NUMBERS_AT + _NUMBERS.size, _WRITE_NUMBERS_AT + _WRITE_NUMBERS.size
_AT = {name: i * TENSOR_SIZE for i, name in enumerate(TENSORS)}
_WRITE_AT = {name: i * TENSOR_SIZE for i, name in enumerate(WRITE_TENSORS)}
_DTYPES: dict[Any, int] = {}
_OTHER = 99  # a dtype that no argument may have
_EMPTY = 64  # a tensor without elements has no memory: any address that is not null says that it was given

# What filling a struct raises where an argument is no tensor, number or pair at all.
NOT_CALLABLE = (AttributeError, IndexError, TypeError, ValueError, struct.error)


def _dtypes() -> dict[Any, int]:
    """torch dtype -> HalDtype."""
    if not _DTYPES:
        import torch

        _DTYPES.update({torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3,
                        torch.float8_e5m2: 4, torch.int32: 5, torch.int64: 6, torch.bool: 7})
    return _DTYPES


def _put(into: bytearray, places: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    dtypes = _DTYPES or _dtypes()
    for name, x in tensors.items():
        if x is not None:
            if not x.is_cpu:
                raise TypeError(f"{name} is not on the CPU")
            shape = x.shape
            n = len(shape)
            address = x.data_ptr()
            if not address:
                if x.numel():
                    raise _no_memory(name, x, tensors)
                address = _EMPTY
            _ONE[n].pack_into(into, places[name], address, dtypes.get(x.dtype, _OTHER), n, *shape, *x.stride())


def _no_memory(field: str, x: Tensor, tensors: dict[str, Tensor | None]) -> Exception:
    """A DTensor, a FakeTensor and other wrappers have elements and no address. Not among NOT_CALLABLE: validation looks
    at values, and would end in torch's own words."""
    name = {"slots": "slot_mapping"}.get(field, field)
    if "k_new" in tensors:  # of a call over a cache
        name = {"k": "k_cache", "v": "v_cache", "k_new": "k", "v_new": "v", "cu_seqlens_k": "cu_seqlens_k_new"}.get(
            field, field)
    return NotImplementedError(f"{name}: got a {type(x).__name__} without memory of its own, expected a plain tensor: "
                               "pass what it holds (to_local() of a DTensor); under FakeTensorMode use torch.compile")


def call(tensors: dict[str, Tensor | None], numbers: tuple[int, ...], scale: float, softcap: float) -> bytes:
    """A HalCall. tensors: by the names of TENSORS, None where not given, at most 4 dimensions each."""
    into = bytearray(CALL_SIZE)
    _put(into, _AT, tensors)
    _NUMBERS.pack_into(into, _NUMBERS_AT, *numbers, scale, softcap)
    return bytes(into)


def write(tensors: dict[str, Tensor | None], threads: int, isa: int, k_scale: float, v_scale: float) -> bytes:
    """A HalWrite. tensors: by the names of WRITE_TENSORS."""
    into = bytearray(WRITE_SIZE)
    _put(into, _WRITE_AT, tensors)
    _WRITE_NUMBERS.pack_into(into, _WRITE_NUMBERS_AT, threads, isa, k_scale, v_scale)
    return bytes(into)
