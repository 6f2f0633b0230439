"""Progress on stderr: a tqdm bar on a terminal where tqdm is installed, else now and then a line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

QUIET = 2.0  # seconds; what is over sooner needs no progress
EVERY = 10.0  # seconds between lines, where there is no bar


class Progress:
    """`with Progress(total) as progress:`, then step(what) once for each of `total` steps, when it is done."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.begin = time.monotonic()
        self.told = self.begin + QUIET - EVERY
        self.bar: Any = None
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            self.bar = importlib.import_module("tqdm").tqdm(total=total, file=sys.stderr, leave=False, delay=QUIET)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, what: str) -> None:
        self.done += 1
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_description(what, refresh=False)
            self.bar.update(1)
        elif now - self.told > EVERY:
            self.told = now
            left = (now - self.begin) / self.done * (self.total - self.done)
            self.say(f"{self.done} of {self.total}, about {left:.0f} s left: {what}")

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
