"""Memory for a KV cache on a CPU: on huge pages where Linux gives them to those who ask."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HUGE = 2 << 20  # bytes of a huge page on x86-64, and on aarch64 with pages of 4 KiB
MADV_HUGEPAGE = 14


@functools.cache
def _madvise() -> Any:
    """libc's function; None where it has none."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def empty(like: Tensor) -> Tensor:
    """An uninitialised CPU tensor of the shape, strides and dtype of `like`, which may be on the device meta.

    Attention reads a cache once a step, in pages of 4 KiB mostly to find out where the next one lies. So the whole huge
    pages in the tensor are asked for before they are touched (transparent_hugepage "madvise" or "always"). Where there
    are none to be had, the tensor lies on small pages like any other.
    """
    import torch

    made = torch.empty_like(like, device="cpu")
    first = -(-made.data_ptr() // HUGE) * HUGE
    last = (made.data_ptr() + made.numel() * made.element_size()) // HUGE * HUGE
    madvise = _madvise()
    if first < last and madvise is not None:
        madvise(first, last - first, MADV_HUGEPAGE)  # EINVAL: a kernel without them
    return made
