"""From logits to tokens, each request by its own settings and with random numbers of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 1024  # likeliest tokens to look at before all of them are sorted for top_p


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen, and when it ends. Raises ValueError naming the field and its value.

    max_tokens: most new tokens, >= 1. temperature: 0, always the likeliest token, or a number >= 0.001. top_p: only the
    likeliest tokens that together reach this probability, 0 < top_p <= 1, after temperature and top_k. top_k: only so
    many likeliest tokens, 0 for all. seed: whole number >= 0; with it the random numbers depend on seed and on the
    token's number alone, not on what else is in the batch. None: other ones each time. stop_token_ids: end the request
    after one of these; None for the model's own end tokens, () for none.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1)
        _whole("top_k", self.top_k, 0)
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        # Logits divided by less than this overflow: 0 is what is meant.
        if self.temperature and self.temperature < 1e-3:
            raise ValueError(f"temperature must be 0, or a number >= 0.001, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be > 0 and <= 1, got {self.top_p!r}")
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
            for token in self.stop_token_ids or ():
                _whole("stop_token_ids", token, 0)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


class Chooser:
    """One request's sampling, with its random numbers: one is taken for each token."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = random.Random(sampling.seed)

    def draw(self, row: Tensor) -> Tensor:
        """A token of one row of logits, float32 [V]; a tensor, so that nothing waits for the device."""
        sampling, point = self.sampling, self.random.random()
        row = row / sampling.temperature
        ids = None
        if sampling.top_k and sampling.top_k < len(row):
            row, ids = row.topk(sampling.top_k)
        chances = row.softmax(-1)
        if sampling.top_p < 1:
            chances, ids = self._nucleus(chances, ids)
        total = chances.cumsum(-1)
        place = torch.searchsorted(total, total[-1:] * point, right=True).clamp_(max=len(total) - 1)
        return place if ids is None else ids[place]

    def _nucleus(self, chances: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """The likeliest chances that reach top_p, the one that crosses it included, and their tokens."""
        top_p = self.sampling.top_p
        if ids is None:
            some, few = chances.topk(min(_FEW, len(chances)))
            if len(few) < len(chances) and float(some.sum()) < top_p:
                some, few = chances.sort(descending=True)
            chances, ids = some, few
        before = chances.cumsum(-1) - chances
        return torch.where(before < top_p, chances, 0.0), ids


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[int | None]:
    """Next tokens for logits float32 [B, V], one a request; None where a row's largest is not finite.

    Waits for the device once (once more for each request whose top_p reaches over many tokens).
    """
    best, tokens = logits.max(-1)
    drawn = [index for index, chooser in enumerate(choosers) if chooser.sampling.temperature]
    if drawn:
        tokens[torch.tensor(drawn, device=tokens.device)] = torch.cat([choosers[i].draw(logits[i]) for i in drawn])
    found, fine = torch.stack((tokens, best.isfinite().long())).tolist()
    return [token if ok else None for token, ok in zip(found, fine)]
