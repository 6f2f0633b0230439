"""The life of one request after it was taken: tokens from the engine become text, until a reason to finish."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from hal.serving.detokenizer import Detokenizer
from hal.serving.dispatch import Dispatcher, Ticket
from hal.serving.stops import StopStrings


@dataclass(frozen=True)
class Piece:
    """New text, how many tokens were generated up to it, and why it is the last one ("stop" or "length"), if it is."""

    text: str
    tokens: int
    finish: str | None


async def pieces(dispatcher: Dispatcher, ticket: Ticket, decode: Callable[[Sequence[int]], str],
                 stops: Sequence[str]) -> AsyncGenerator[Piece]:
    """The answer as it comes; the last piece has a reason. Close it (contextlib.aclosing) to give the request up."""
    detokenizer, watch, count = Detokenizer(decode), StopStrings(stops), 0
    async with aclosing(dispatcher.answers(ticket)) as answers:
        async for tokens, finish in answers:
            count += len(tokens)
            new = detokenizer.feed(tokens) + (detokenizer.flush() if finish else "")
            text, stopped = watch.feed(new)
            if stopped:  # closing tells the engine, which may be further on
                yield Piece(text, count, "stop")
                return
            text += watch.flush() if finish else ""
            if text or finish:
                yield Piece(text, count, finish)
