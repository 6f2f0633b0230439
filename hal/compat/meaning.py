"""How FlashAttention 2 and 3 differ from HAL's contract, and from each other."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

INF = float("inf")


@dataclass(frozen=True)
class Version:
    """How a version differs. empty_lse: the LSE of a row that sees no key (2: softmax.h, normalize_softmax_lse; 3:
    softmax.h, finalize, and epilogue_fwd.hpp, store_zero)."""

    number: int
    empty_lse: float

    def window(self, causal: bool, size: Any, len_q: int, len_k: int) -> tuple[int, int]:
        """The window as the kernel takes it. len_q, len_k: the widths that it knows on the host: those of the tensors,
        max_seqlen_q and max_seqlen_k, or the capacity of a cache.

        Bounds that reach over everything are dropped, which also decides whether queries rotate along. Version 2 then
        has an unbounded right side end len_k keys on, as soon as there is a left one: that shows where there are more
        queries than keys (flash_api.cpp, set_params_fprop).
        """
        if size == (-1, -1):
            return (-1, -1)
        try:
            left, right = map(operator.index, size)
        except (TypeError, ValueError):
            raise ValueError(f"window_size: got {size!r}, expected (left, right), whole numbers (negative: unbounded)"
                             ) from None
        if self.number == 2:
            left, right = (-1 if n < 0 or n >= len_k else n for n in (left, right))
            if left >= 0 and right < 0 and not causal and len_q > len_k:
                right = len_k
        else:
            left = -1 if left < 0 or left >= len_k - 1 else left
            right = -1 if right < 0 or right >= len_q - 1 else right
        if causal:
            right = 0 if left >= 0 else -1
        return (left, right)

    def lse(self, found: Tensor, keys: int) -> Tensor:
        """HAL's -inf of a row that sees no key as this version has it. Without any key in the call both have +inf."""
        if self.empty_lse == -INF and keys:
            return found
        return found.masked_fill(found == -INF, INF)
