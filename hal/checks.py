"""The primitives of validation: one sentence per failure, naming argument, value and expectation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def need(ok: bool, name: str, seen: Any, expected: str) -> None:
    """Raise ValueError "name: got SEEN, expected EXPECTED" unless ok. A str is shown as it is."""
    if not ok:
        raise ValueError(f"{name}: got {show(seen)}, expected {expected}")


def show(value: Any) -> str:
    if isinstance(value, str):
        return value
    shape = getattr(value, "shape", None)
    return f"{value.dtype} {tuple(shape)} on {value.device}" if shape is not None else repr(value)


def int32(x: Any, name: str, dims: int) -> None:
    import torch

    need(isinstance(x, torch.Tensor), name, x, "a tensor")
    need(x.dtype == torch.int32, name, x.dtype, "torch.int32")
    need(x.dim() == dims, name, tuple(x.shape), f"{dims} dimension{'s' if dims > 1 else ''}")


def lengths(x: Any, name: str, batch: int) -> list[int] | None:
    if x is None:
        return None
    int32(x, name, 1)
    need(x.shape[0] == batch, name, tuple(x.shape), f"({batch},), one per sequence")
    return numbers(x)


def numbers(x: Tensor) -> list[int]:
    """A tensor of lengths on the host. Of a device's, one copy a step: the forward context shares it."""
    if x.device.type == "cpu":
        return list(x.tolist())
    from hal.context import host

    return list(host(x))


def rows_of(x: Tensor, cu: Any, name: str, most: Any) -> list[tuple[int, int]]:
    """(first, last + 1) of each sequence, from cumulative lengths or from [B, S, ..]."""
    if cu is None:
        return [(b * x.shape[1], (b + 1) * x.shape[1]) for b in range(x.shape[0])]
    int32(cu, name, 1)
    need(cu.is_contiguous(), name, f"stride {cu.stride()}", "a contiguous tensor")
    need(cu.shape[0] >= 2, name, tuple(cu.shape), "at least 2 values: [0, len]")
    values = numbers(cu)
    need(values[0] == 0, name, f"{values[0]} first", "0 first")
    need(all(x <= y for x, y in pairwise(values)), name, values[:8], "values that do not decrease")
    need(values[-1] == x.shape[0], name, f"{values[-1]} last", f"{x.shape[0]} last, the number of rows")
    longest = max(y - x for x, y in pairwise(values))
    limit = name.replace("cu_seqlens", "max_seqlen").removesuffix("_new")
    need(most is None or (is_int(most, 0) and most >= longest), limit, most,
         f"at least {longest}, the longest sequence")
    return list(pairwise(values))


def is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
