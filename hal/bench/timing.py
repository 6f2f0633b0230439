"""Samples on the host's clocks, and what is made of them: a median and an honest spread."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

MIN_SAMPLE = 0.02  # seconds a sample lasts at least, so that clocks and counters are fine enough
Thunk = Callable[[], Any]


class Sample(NamedTuple):
    """Seconds a call: wall on a CPU, device time on an accelerator; CPU time of all threads where it was taken."""

    seconds: float
    cpu_seconds: float | None


class Clock(Protocol):
    """what: the words for the figure. sample: the mean over `calls` calls, taken in turn from thunks[at]."""

    what: str

    def sample(self, thunks: Sequence[Thunk], at: int, calls: int) -> Sample: ...


class HostClock:
    what = "wall time of a call"

    def sample(self, thunks: Sequence[Thunk], at: int, calls: int) -> Sample:
        order = [thunks[(at + i) % len(thunks)] for i in range(calls)]
        collecting = gc.isenabled()
        gc.disable()
        try:
            cpu, begin = time.process_time_ns(), time.perf_counter_ns()
            for call in order:
                call()
            wall, used = time.perf_counter_ns() - begin, time.process_time_ns() - cpu
        finally:
            if collecting:
                gc.enable()
        return Sample(wall / 1e9 / calls, used / 1e9 / calls)


@dataclass(frozen=True)
class Figure:
    """median of all samples; low and high: the spread, see `figure`. Seconds a call."""

    median: float
    low: float
    high: float


def figure(passes: Sequence[Sequence[float]]) -> Figure:
    """The median over all samples, and the spread: the middle 80 % of them, widened to hold each pass's median.

    Passes are minutes apart and build their inputs anew, so that the spread holds what changes between two runs:
    the load of the machine and where memory happened to lie. The samples of one pass alone would look far steadier.
    """
    every = sorted(sample for one in passes for sample in one)
    medians = [statistics.median(one) for one in passes]
    cut = len(every) // 10
    return Figure(statistics.median(every), min(every[cut], *medians), max(every[-1 - cut], *medians))


def calls_for(seconds: float) -> int:
    """Calls of one sample, from what one call took."""
    return max(1, min(100_000, math.ceil(MIN_SAMPLE / max(seconds, 1e-9))))
