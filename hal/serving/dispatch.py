"""Which request is with the engine, which waits, and who gets what comes out. All of it on the event loop's thread."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hal.serving.errors import ApiError
from hal.serving.hang import HangWatch
from hal.serving.metrics import Metrics

logger = logging.getLogger("hal.serving")

Send = Callable[[dict[str, Any]], None]
Event = Sequence[Any]  # request id, new tokens, finish reason or None, error or None
_T = TypeVar("_T")


@dataclass(eq=False)
class Ticket:
    """One request on its way. `answers` gets (tokens, finish reason or None), or the ApiError it ends with."""

    id: str
    prompt: list[int] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)
    sent: float | None = None
    taken: bool = False
    put_back: bool = False
    timer: asyncio.TimerHandle | None = None
    answers: asyncio.Queue[tuple[list[int], str | None] | ApiError] = field(default_factory=asyncio.Queue)


class Dispatcher:
    """First come, first served: at most max_running requests are with the engine, at most max_queue wait here.

    A worker that dies takes with it what it was sent; what waits here goes to the next one. on_hung is called when it
    has made no progress for `hang` seconds (hang.HangWatch).
    """

    def __init__(self, max_running: int, max_queue: int, timeout: float, hang: float, metrics: Metrics,
                 on_hung: Callable[[], None]) -> None:
        self.max_running, self.max_queue, self.timeout = max_running, max_queue, timeout
        self.metrics, self.watch = metrics, HangWatch(hang, on_hung)
        self.preparing: set[Ticket] = set()  # their prompts are no tokens yet
        self.queue: deque[Ticket] = deque()
        self.running: dict[str, Ticket] = {}
        self.closed: ApiError | None = None  # why no request is taken any more
        self._send: Send | None = None
        self._numbers = itertools.count(1)

    @property
    def serving(self) -> bool:
        """A worker is there."""
        return self._send is not None

    def reserve(self) -> Ticket:
        """Take a request whose prompt is no tokens yet: its time begins, and it counts as waiting. submit() or cancel()
        it. Raises ApiError where the queue is full (429) or the server ends (503)."""
        if self.closed is not None:
            raise self.closed
        waiting = len(self.queue) + len(self.preparing)
        free = self.max_running - len(self.running) if self.serving else 0
        if waiting >= self.max_queue + free:
            raise ApiError(429, f"the queue is full: {waiting} requests wait (--max-queue {self.max_queue}) "
                                f"and {len(self.running)} run: try again later", code="queue_full",
                           headers={"Retry-After": "1"})
        ticket = Ticket(f"r{next(self._numbers)}")
        ticket.timer = asyncio.get_running_loop().call_later(self.timeout, self._time_is_up, ticket)
        self.preparing.add(ticket)
        self._count()
        return ticket

    async def prepared(self, ticket: Ticket, job: asyncio.Future[_T]) -> _T:
        """What `job` gives, which makes the prompt. Raises ApiError, with the job cancelled, where the request's time
        is up or the server ends before."""
        answer = asyncio.ensure_future(ticket.answers.get())
        try:
            either: set[asyncio.Future[Any]] = {answer, job}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and isinstance(error := answer.result(), ApiError):
                raise error
            return job.result()
        finally:
            answer.cancel()
            job.cancel()

    def submit(self, ticket: Ticket, prompt: list[int], sampling: dict[str, Any]) -> Ticket:
        """Queue a request that was reserved."""
        self.preparing.remove(ticket)
        ticket.prompt, ticket.sampling = prompt, sampling
        self.queue.append(ticket)
        self._pump()
        return ticket

    async def answers(self, ticket: Ticket) -> AsyncGenerator[tuple[list[int], str | None]]:
        """(new tokens, finish reason or None) until the reason comes. However this ends, the engine has no more work
        with the request. Raises ApiError where it fails or its time is up."""
        try:
            while True:
                # Not asyncio.wait_for: before Python 3.12 it forgets that it was cancelled when an answer comes at the
                # same time, and nobody would notice a client that left.
                answer = await ticket.answers.get()
                if isinstance(answer, ApiError):
                    raise answer
                yield answer
                if answer[1] is not None:
                    return
        finally:
            self.cancel(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request, wherever it is; one that has ended is no error."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        self.preparing.discard(ticket)
        if ticket in self.queue:
            self.queue.remove(ticket)
        elif self.running.pop(ticket.id, None) is not None and self._send is not None:
            self._send({"do": "cancel", "id": ticket.id})
        self._pump()

    def worker_came(self, send: Send) -> None:
        self._send = send
        self.metrics.worker_up.set(1)
        self._pump()

    def worker_went(self, why: str) -> None:
        """Fail what the worker had; keep what waits, and what it never got."""
        self._send = None
        self.watch.forget()
        self.metrics.worker_up.set(0)
        self.metrics.cache_used.set(0)
        lost, self.running = list(self.running.values()), {}
        for ticket in reversed(lost):
            if not ticket.taken and not ticket.put_back:  # sent to a worker that was dead already
                ticket.put_back = True
                self.queue.appendleft(ticket)
                continue
            ticket.answers.put_nowait(ApiError(
                500, f"the engine's process ended ({why}) while this request was with it, and is being replaced: send "
                     "the request again", code="worker_died"))
        self._pump()

    def close(self, why: ApiError, running: bool = False) -> None:
        """Take no more requests; fail those that wait, and those that run too if asked."""
        self.closed = why
        for ticket in [*self.queue, *self.preparing, *(self.running.values() if running else ())]:
            ticket.answers.put_nowait(why)
        self.queue.clear()
        self._count()

    def on_events(self, events: Sequence[Event]) -> None:
        """What a worker said came out of the engine. Requests that were cancelled meanwhile are not known any more."""
        self.watch.progress()
        for request_id, tokens, finish, error in events:
            if finish is not None or error is not None:
                self.watch.ended(request_id)
            ticket = self.running.get(request_id)
            if ticket is None:
                continue
            ticket.taken = True  # tokens may overtake the word "taken"
            self.metrics.generated_tokens.inc(len(tokens))
            if finish is not None or error is not None:
                del self.running[request_id]
            if error is not None:
                logger.warning("the engine failed on a request: %s", error)
            ticket.answers.put_nowait((tokens, finish) if error is None else ApiError(
                500, "the engine failed on this request (the server's log says why)", code="engine_failed"))
        self._pump()

    def on_taken(self, request_id: str) -> None:
        """The engine has a request."""
        if request_id in self.running:
            self.running[request_id].taken = True

    def on_refused(self, request_id: str, why: str) -> None:
        """The engine would not take a request."""
        self.watch.ended(request_id)
        ticket = self.running.pop(request_id, None)
        if ticket is not None:
            ticket.answers.put_nowait(ApiError(400, why))
        self._pump()

    def on_stats(self, stats: dict[str, Any]) -> None:
        self.watch.steps(stats["steps"])
        self.metrics.cache_tokens.set(stats["cache_tokens"])
        self.metrics.cache_used.set(stats["cache_used"])

    def _pump(self) -> None:
        while self._send is not None and self.queue and len(self.running) < self.max_running:
            ticket = self.queue.popleft()
            now = time.monotonic()
            if ticket.sent is None:  # not for one that was put back
                self.metrics.queue_seconds.observe(now - ticket.begin)
                self.metrics.prompt_tokens.inc(len(ticket.prompt))
            ticket.sent = now
            self.running[ticket.id] = ticket
            self.watch.given(ticket.id)
            self._send({"do": "submit", "id": ticket.id, "prompt": ticket.prompt, "sampling": ticket.sampling})
        self._count()

    def _count(self) -> None:
        self.metrics.queued.set(len(self.queue) + len(self.preparing))
        self.metrics.running.set(len(self.running))

    def _time_is_up(self, ticket: Ticket) -> None:
        ticket.answers.put_nowait(ApiError(
            504, f"the request took longer than {self.timeout:g} s (--request-timeout), "
                 f"{'part of it' if ticket.sent else 'all of it'} in the queue", code="timeout"))
