"""Eager: attention of one sequence in plain unfused torch ops of the working dtype. The yardstick of error.

Shares no code with the oracle or any backend, so that a mistake in one of them shows as disagreement: hal.conformance
.runner voids a case in which eager is far from the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class Sequence:
    """One sequence as the mathematics sees it: no pages, no padding.

    q [Lq, Hq, D] and qv [Lq, Hq, Dv] in their own dtype, k [n, Hkv, D] and v [n, Hkv, Dv] as stored; the descales
    are [Hkv] (1 without fp8). position [n]: of each key, counted from the sequence's start. length: keys in all (more
    than n under context parallelism). tree [Lq, Lq], ranges [(first, end)], picks [Lq][keys that a query sees].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    qv: Tensor | None
    position: Tensor
    length: int
    q_descale: Tensor
    k_descale: Tensor
    v_descale: Tensor
    tree: Tensor | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    picks: list[list[int]] | None = None


@dataclass
class Scores:
    """What all sequences of a call have in common; sinks [Hq] or None."""

    scale: float
    softcap: float
    causal: bool
    window: tuple[int, int]
    chunk: int
    sinks: Tensor | None


def mask(s: Sequence, how: Scores) -> Tensor:
    """bool [Lq, n]: which key each query sees."""
    import torch

    len_q = s.q.shape[0]
    if s.picks is not None:
        seen = torch.zeros(len_q, s.k.shape[0], dtype=torch.bool)
        for i, picked in enumerate(s.picks):
            seen[i, picked] = True
        return seen
    query = (s.length - len_q + torch.arange(len_q)).view(-1, 1)
    key = s.position.view(1, -1)
    ahead = key - query  # how far in the future a key is
    seen = torch.ones(len_q, s.k.shape[0], dtype=torch.bool)
    if how.causal:
        seen &= ahead <= 0
    elif how.window[1] >= 0:
        seen &= ahead <= how.window[1]
    if how.window[0] >= 0:
        seen &= -ahead <= how.window[0]
    if how.chunk > 0:
        seen &= torch.floor(key / how.chunk) == torch.floor(query / how.chunk)
    if s.tree is not None:
        own = (key - (s.length - len_q)).view(-1)
        for j in torch.nonzero(own >= 0).view(-1).tolist():
            seen[:, j] = s.tree[:, own[j]]
    for first, end in s.ranges:
        inside = (query >= first) & (query < end)
        seen |= inside & (key >= first) & (key < end)
    return seen


def eager(s: Sequence, how: Scores, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out [Lq, Hq, Dv], lse [Hq, Lq]) as float64 numbers that a computation in `dtype` gave.

    Scores, softcap and weights are rounded to dtype where an unfused computation would hold them; with fp8 queries the
    weights are rounded to that fp8, as every fp8 kernel does.
    """
    import torch

    heads, kv_heads = s.q.shape[1], s.k.shape[1]

    def real(x: Tensor, descale: Tensor) -> Tensor:
        per_head = descale.float().repeat_interleave(x.shape[1] // descale.shape[0])
        return (x.float() * per_head[None, :, None]).to(dtype) if x.dtype.itemsize == 1 else x.to(dtype)

    q = real(s.q, s.q_descale)
    k, v = (real(x, d).repeat_interleave(heads // kv_heads, dim=1)
            for x, d in ((s.k, s.k_descale), (s.v, s.v_descale)))
    scores = torch.bmm(q.transpose(0, 1), k.permute(1, 2, 0))
    if s.qv is not None:
        scores = scores + torch.bmm(real(s.qv, s.q_descale).transpose(0, 1), v.permute(1, 2, 0))
    scores = scores * how.scale
    if how.softcap:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    scores = scores.float().masked_fill(~mask(s, how), float("-inf"))
    if how.sinks is not None:
        sink = how.sinks.float().view(-1, 1, 1).expand(heads, s.q.shape[0], 1)
        scores = torch.cat([scores, sink], dim=2)
    lse = torch.logsumexp(scores, dim=2)
    weights = torch.softmax(scores, dim=2).nan_to_num(0.0)[..., : k.shape[0]]
    if s.q.dtype.itemsize == 1:
        weights = weights.to(s.q.dtype).float()
    out = torch.bmm(weights.to(dtype), v.transpose(0, 1)).transpose(0, 1)
    return out.double(), lse.double()
