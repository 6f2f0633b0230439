"""What a batched model tells about its requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """News of one request: new tokens, its end, or both.

    tokens: new token ids, in order; the stop token that ended a request included. finish: None while it goes on;
    "stop", one of its stop tokens came; "length", max_tokens did; "cancelled"; or "error", and error then says what
    went wrong in one line. A request's events come in order, and the one with a finish is its last.
    """

    request_id: str
    tokens: list[int]
    finish: str | None
    error: str | None
