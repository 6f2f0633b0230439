"""A run: everyone is checked, then timed in turns, pass after pass."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hal.bench import rates, trial
from hal.bench.cells import Cell, Entry, Settings
from hal.bench.timing import MIN_SAMPLE, Clock, HostClock, Sample, Thunk, calls_for
from hal.progress import Progress

if TYPE_CHECKING:
    from hal.platform import Platform

PASSES = 3
LEAST_ROUNDS, MOST_ROUNDS = 9, 60  # of a cell, where --seconds decides


@dataclass
class Run:
    """cells with their samples; rates: what the device was measured to do (hal.bench.rates.best)."""

    cells: list[Cell]
    rates: dict[str, Any]
    clock: str
    seconds: float


def execute(settings: Settings, cells: list[Cell], progress: Progress | None = None) -> Run:
    """Check and time everyone in `cells`, whose entries get their results. Progress goes to stderr, or to the caller's
    own, of PASSES * len(cells) steps."""
    import torch

    begin = time.monotonic()
    clock = _clock(settings.platform)
    order = random.Random(settings.seed)
    measured: list[dict[str, Any]] = []
    # An accelerator's calls find its L2 cold whatever they rotate over, so its bandwidth is that of memory.
    size = settings.cold_bytes if settings.platform.kind == "cpu" else max(settings.cold_bytes, 256 << 20)
    with torch.inference_mode(), progress or Progress(PASSES * len(cells)) as progress:
        if settings.rounds is None and settings.seconds * len(cells) > 2:
            progress.say(f"{len(cells)} shapes, about {settings.seconds:g} s each and what building and checking "
                         f"take: {_minutes(len(cells) * (settings.seconds + 3))}")
        for number in range(PASSES):
            measured.append({
                "bandwidth": rates.bandwidth(clock, settings.platform.torch_device, size),
                "matmul": {dtype: rates.matmul(clock, settings.platform.torch_device, dtype)
                           for dtype in dict.fromkeys(cell.config.dtype for cell in cells)}})
            for cell in cells:
                _one_pass(cell, settings, clock, order, number)
                progress.step(f"pass {number + 1} of {PASSES}, {cell}")
    return Run(cells, rates.best(measured), clock.what, time.monotonic() - begin)


def _one_pass(cell: Cell, settings: Settings, clock: Clock, order: random.Random, number: int) -> None:
    """Inputs made anew; on the first pass everyone is checked and rounds are decided; then rounds in random order.

    All in one forward context, as the layers of a step are: what a backend plans is made before the clock starts, for
    each copy of the inputs that will be timed.
    """
    made = trial.inputs_for(cell, cell.shape, settings)
    if number == 0:
        trial.judge_all(cell, settings, made)
    with made.step():
        ready: list[tuple[Entry, list[Thunk]]] = []
        for entry in cell.live:
            thunks = trial.attempt(entry, partial(_thunks, entry, made, settings))
            if thunks is not None and trial.warm(entry, thunks[:1], cell):
                ready.append((entry, thunks))
        if number == 0:
            _decide(cell, settings, [(entry, clock.sample(thunks, 0, 1).seconds) for entry, thunks in ready])
        _rounds(cell, clock, order, [(entry, thunks) for entry, thunks in ready
                                     if trial.warm(entry, thunks[1 : cell.rounds * entry.calls], cell)])


def _decide(cell: Cell, settings: Settings, took: list[tuple[Entry, float]]) -> None:
    """Calls of each one's samples, and rounds of a pass, from the seconds that one call took."""
    for entry, seconds in took:
        entry.calls = calls_for(seconds)
    turn = sum(max(MIN_SAMPLE, seconds) for _, seconds in took)
    fit = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(settings.seconds / turn) if turn else 0))
    cell.rounds = -(-(fit if settings.rounds is None else settings.rounds) // PASSES)


def _rounds(cell: Cell, clock: Clock, order: random.Random, ready: list[tuple[Entry, list[Thunk]]]) -> None:
    """Everyone's samples of one pass, in turns of random order."""
    at = {id(entry): 0 for entry, _ in ready}
    samples: dict[int, list[Sample]] = {id(entry): [] for entry, _ in ready}
    for _ in range(cell.rounds):
        order.shuffle(ready)
        for entry, thunks in ready:
            samples[id(entry)].append(clock.sample(thunks, at[id(entry)], entry.calls))
            at[id(entry)] += entry.calls
    for entry, _ in ready:
        entry.passes.append(samples[id(entry)])


def _thunks(entry: Entry, made: trial.Made, settings: Settings) -> list[Thunk]:
    one = entry.contender
    thunks = [trial.call_of(one, made, copy) for copy in range(len(made.inputs[one.reads].calls))]
    if settings.graph and one.kind == "backend":
        from hal.bench.accelerator import captured

        thunks = captured(settings.platform.torch_device, thunks)
    return thunks


def _clock(platform: Platform) -> Clock:
    if platform.kind == "cpu":
        return HostClock()
    from hal.bench.accelerator import DeviceClock

    return DeviceClock(platform.torch_device)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
