"""Attention in float64, one query row at a time: what the fake operators' numbers are held to.

It knows no vendor's layouts, masks or lengths: a test says for each row which keys it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Sees = Callable[[int, int, int, int], bool]  # query row, key, rows, keys of the sequence


def causal(i: int, j: int, rows: int, keys: int) -> bool:
    return j <= i + keys - rows


def everything(i: int, j: int, rows: int, keys: int) -> bool:
    return True


def window(left: int, right: int) -> Sees:
    return lambda i, j, rows, keys: i + keys - rows - left <= j <= i + keys - rows + right


def attention(q: Tensor, k: Tensor, v: Tensor, sees: Sees, scale: float,
              sink: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q [Sq, Hq, D], k [Sk, Hkv, D], v [Sk, Hkv, Dv], float. Returns float64 [Sq, Hq, Dv] and LSE [Sq, Hq].

    A row that sees nothing gives 0 and +inf, as the vendor's does.
    """
    rows, heads, _ = q.shape
    out = torch.zeros(rows, heads, v.shape[-1], dtype=torch.float64)
    lse = torch.full((rows, heads), math.inf, dtype=torch.float64)
    for i in range(rows):
        seen = [j for j in range(k.shape[0]) if sees(i, j, rows, k.shape[0])]
        if not seen:
            continue
        for h in range(heads):
            g = h // (heads // k.shape[1])
            scores = (k[seen, g].double() @ q[i, h].double()) * scale
            everyone = scores if sink is None else torch.cat([scores, sink[h].double()[None]])
            lse[i, h] = everyone.logsumexp(0)
            out[i, h] = (scores - lse[i, h]).exp() @ v[seen, g].double()
    return out, lse


def close(found: Tensor, expected: Tensor) -> None:
    """bfloat16 results: 8 bits of the largest value; LSEs are float32."""
    tolerance = 2 ** -8 if found.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.cpu().double(), expected.double(), atol=tolerance * 4, rtol=tolerance)
