"""Whether the engine hangs: it has work, and for a long time there was no sign that it does any of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class HangWatch:
    """on_hung is called once the engine owes a request its end and has, for `limit` seconds, given nothing to any
    request and made no step. A cancelled request is owed until the engine itself says that it is over."""

    def __init__(self, limit: float, on_hung: Callable[[], None]) -> None:
        self.limit, self.on_hung = limit, on_hung
        self._owed: set[str] = set()
        self._last = 0.0
        self._steps = -1
        self._timer: asyncio.TimerHandle | None = None

    def given(self, request_id: str) -> None:
        """The engine is sent a request."""
        if not self._owed:  # until now there was nothing to do
            self.progress()
        self._owed.add(request_id)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limit, self._look)

    def ended(self, request_id: str) -> None:
        """The engine has no more to do with a request."""
        self._owed.discard(request_id)

    def progress(self) -> None:
        """The engine gave something."""
        self._last = time.monotonic()

    def steps(self, count: int) -> None:
        """How many steps it has made: some give no token (parts of a long prompt)."""
        if count != self._steps:
            self._steps = count
            self.progress()

    def forget(self) -> None:
        """The engine is gone, and all that it had."""
        self._owed.clear()
        self._steps = -1

    def _look(self) -> None:
        """Come back when it may be so."""
        self._timer = None
        if not self._owed:
            return
        left = self._last + self.limit - time.monotonic()
        if left <= 0:
            self.on_hung()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._look)
