"""One case measured: everyone checked, then timed in turns, by hal.bench; what comes out is one JSON object."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from benchmarks.cpu import write
from benchmarks.cpu.sweep import COLD_BYTES, Case
from hal.bench import about, cells, run
from hal.bench.timing import Sample, figure
from hal.config import LayerKind
from hal.platform import Platform
from hal.progress import Progress

BACKENDS = ["cpu", "torch"]


class Quiet(Progress):
    """A cell is one step of the sweep's own progress."""

    def step(self, what: str) -> None: ...

    def say(self, line: str) -> None: ...


def measure(case: Case, platform: Platform, seconds: float, limit: int) -> dict[str, Any]:
    """{"case", "contenders": {name: result}, "clock", "load", "seconds"}, or with "skipped": why nothing was timed.

    limit: bytes of memory that a cell may take. Torch's threads are the case's when this returns.
    """
    import torch

    told: dict[str, Any] = {"case": dataclasses.asdict(case)}
    if case.memory > limit:
        return {**told, "skipped": f"needs about {case.memory / 2**30:.1f} GiB (limit: {limit / 2**30:.1f} GiB)"}
    begin, load = time.monotonic(), about.load()
    torch.set_num_threads(case.threads)
    if case.group == "write":
        contenders = write.measure(case, platform, seconds)
    else:
        settings = cells.Settings(platform, [LayerKind("all", (), case.config)], [case.shape], BACKENDS, case.peers,
                                  seconds=seconds, cold_bytes=COLD_BYTES)
        made = cells.prepare(settings)
        run.execute(settings, made, Quiet(run.PASSES))
        contenders = {entry.contender.name: _entry(entry, case) for entry in made[0].entries} | {
            one.name: {"kind": one.kind, "status": "refused", "reason": "; ".join(one.reasons)}
            for one in made[0].refusals}
    return {**told, "contenders": contenders, "clock": clock(case.threads), "load": [load, about.load()],
            "seconds": round(time.monotonic() - begin, 1)}


def clock(threads: int) -> str:
    """With one thread other work on the machine takes CPUs away but no CPU time is charged for it."""
    return "cpu" if threads == 1 else "wall"


def _entry(entry: cells.Entry, case: Case) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": entry.contender.kind, "status": entry.status, "note": entry.contender.note}
    if entry.reason:
        told["reason"] = entry.reason
    if entry.checked is not None:
        told |= {"error": entry.error, "bound": entry.bound, "checked": str(entry.checked)}
    return told | (figures(entry.passes, case.threads) if entry.status == "timed" else {})


def figures(passes: list[list[Sample]], threads: int) -> dict[str, Any]:
    """Median and spread by the case's clock, and the wall time's median beside them."""
    wall = figure([[sample.seconds for sample in one] for one in passes])
    own = wall
    if clock(threads) == "cpu":
        own = figure([[sample.cpu_seconds or 0.0 for sample in one] for one in passes])
    return {"median_s": own.median, "low_s": own.low, "high_s": own.high, "wall_s": wall.median,
            "samples": sum(map(len, passes))}
