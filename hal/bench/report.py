"""A run as JSON and as a table of at most 100 columns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hal.bench.cells import Cell, Entry, Settings
from hal.bench.limits import limit, work
from hal.bench.run import Run
from hal.bench.timing import figure
from hal.text import table

FORMAT = 2


def to_dict(run: Run, settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
    """Everything of a run, as JSON types. about: versions, date, threads, load ... of hal.bench.about."""
    rates = run.rates
    cells = []
    for cell in run.cells:
        done = work(cell.config, cell.shape)
        least = limit(done, rates["bytes_per_second"], rates["flops_per_second"][cell.config.dtype])
        base = next((e for e in cell.live if settings.peers and e.contender.name == settings.peers[0]), None)
        base = base or (next(iter(cell.live), None) if not settings.peers else None)
        cells.append({
            "kind": cell.kind, "phase": cell.shape.phase, "shape": str(cell.shape),
            "batch": cell.shape.batch, "seqlen": cell.shape.seqlen, "queries": list(cell.shape.queries),
            "config": cell.config.to_dict(), "bytes": done.bytes, "flops": done.flops, "limit": least.kind,
            "limit_s": least.seconds, "baseline": base.contender.name if base else None,
            "results": [_entry(entry, least.seconds, base, cell, settings) for entry in cell.entries] + [
                {"contender": refused.name, "kind": refused.kind, "status": "refused", "reason":
                 "; ".join(refused.reasons), "expected": refused.expected} for refused in cell.refusals]})
    return {"format": FORMAT, **about, "platform": settings.platform.to_dict(), "clock": run.clock,
            "seconds": run.seconds, "limits": rates, "checked": settings.check, "settings": {
                "rounds": settings.rounds, "seconds": settings.seconds, "cold_bytes": settings.cold_bytes,
                "seed": settings.seed, "graph": settings.graph, "peers": settings.peers,
                "backends": settings.backends}, "cells": cells}


def _entry(entry: Entry, least: float, base: Entry | None, cell: Cell, settings: Settings) -> dict[str, Any]:
    one = entry.contender
    told: dict[str, Any] = {
        "contender": one.name, "kind": one.kind, "status": entry.status, "reason": entry.reason or None,
        "target": one.target, "note": one.note or None, "page_size": one.page_size, "kv_layout": one.kv_layout,
        "q_dtype": one.q_dtype, "graph": settings.graph and one.kind == "backend",
        "check": None if entry.checked is None else {
            "shape": dataclasses.asdict(entry.checked), "reduced": entry.checked != cell.shape,
            "error": _finite(entry.error), "bound": _finite(entry.bound)}}
    if entry.status != "timed" or not entry.passes:
        return told
    own = _figure(entry)
    return {**told, "median_s": own.median, "low_s": own.low, "high_s": own.high, "cpu_s": entry.cpu_seconds,
            "ratio": None if base is None else _figure(base).median / own.median, "fraction": least / own.median,
            "calls_per_sample": entry.calls,
            "samples_s": [[sample.seconds for sample in one] for one in entry.passes]}


def _finite(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON has no words for; the reason says them."""
    return value if value is not None and math.isfinite(value) else None


def _figure(entry: Entry) -> Any:
    return figure([[sample.seconds for sample in one] for one in entry.passes])


def exit_code(report: dict[str, Any]) -> int:
    """0: measured. 1: someone was wrong or failed, a backend that was expected to serve does not, or none does."""
    results = [result for cell in report["cells"] for result in cell["results"]]
    backends = [r for r in results if r["kind"] == "backend"]
    bad = (any(r["status"] in ("wrong", "failed") for r in results)
           or any(r["status"] == "refused" and r["expected"] for r in backends))
    return 1 if bad or not any(r["status"] == "timed" for r in backends) else 0


def text(report: dict[str, Any]) -> str:
    """The report as a header, a table for each kind of layer, and notes."""
    rates, platform = report["limits"], report["platform"]
    flops = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates["flops_per_second"].items())
    lines = [
        table(("device", f"{platform['name']} ({platform['kind']}:{platform['arch']}), {threads_of(report)}, "
               f"torch {report['versions']['torch']}, load {report['load']['start']} to {report['load']['end']}"), []),
        table(("limits", f"measured here: {rates['bytes_per_second'] / 1e9:.1f} GB/s, {flops}"), []),
        table(("time", f"{report['clock']}: median, and the spread (middle 80 % of the samples and every pass's "
               "median)"), []),
        table(("plans", "made before the clock starts, once for each set of inputs, as in a forward context"), []),
        table(("checked", "against the float64 oracle before timing" if report["checked"] else
               "NO: --no-check, nobody's results were looked at"), [])]
    if report["settings"]["graph"]:
        lines.append(table(("graphs", "backends are replayed as captured graphs, peers are called one by one"), []))
    if busy(report):
        lines.append(table(("BUSY", f"more ran here than {report['cpus']} CPUs can do at once: figures and limits are "
                            "of a busy machine, most of all with several threads"), []))
    for kind in dict.fromkeys(cell["kind"] for cell in report["cells"]):
        cells = [cell for cell in report["cells"] if cell["kind"] == kind]
        lines.append("" if kind == "all" else f"\n[{kind}]")
        against = next((cell["baseline"] for cell in cells if cell["baseline"]), None)
        rows = [row for cell in cells for row in _rows(cell)]
        lines.append(table(("phase", "batch x len", "contender", "median", "spread", "CPU time",
                            f"vs {_short(against)}" if against else "ratio", "of the limit"), rows))
    return "\n".join([*lines, *_notes(report)])


def busy(report: dict[str, Any]) -> bool:
    """More ran on the machine than it has CPUs for, before or after the run."""
    return max(report["load"]["start"] or 0, report["load"]["end"] or 0) > (report["cpus"] or 1) + 0.5


def threads_of(report: dict[str, Any]) -> str:
    return f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"


def _rows(cell: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for result in cell["results"]:
        if result["status"] == "refused":
            continue
        timed = "median_s" in result
        rows.append((
            "" if rows else cell["phase"], "" if rows else cell["shape"], _short(result["contender"]),
            *(figures(result) if timed else ("-", "-")), _time(result.get("cpu_s")),
            f"{result['ratio']:.2f}x" if result.get("ratio") else "-",
            f"{cell['limit']} {result['fraction']:.1%}" if timed else f"{result['status'].upper()}, not timed"))
    return rows or [(cell["phase"], cell["shape"], *"-----", "nobody serves this")]


def figures(result: dict[str, Any]) -> tuple[str, str]:
    """(median, spread), the spread in the median's unit."""
    factor, unit = _unit(result["median_s"])
    low, high = (_digits(result[name] * factor) for name in ("low_s", "high_s"))
    return f"{_digits(result['median_s'] * factor)} {unit}", f"{low}-{high}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    factor, unit = _unit(seconds)
    return f"{_digits(seconds * factor)} {unit}"


def _unit(seconds: float) -> tuple[float, str]:
    return (1e6, "us") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1.0, "s")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _short(name: str) -> str:
    """A peer given by its path is its function's name in the table."""
    return name.rpartition(":")[2][:16]


def _notes(report: dict[str, Any]) -> list[str]:
    """What is wrong or refused, once for each reason; who was checked on less; what the peers are."""
    said: dict[tuple[str, str], list[str]] = {}
    for cell in report["cells"]:
        where = f"{cell['phase']} {cell['shape']}"
        for result in cell["results"]:
            name = result["contender"]
            if result["status"] in ("wrong", "failed"):
                said.setdefault((name, f"{result['status'].upper()}: {result['reason']}"), []).append(where)
            elif result["status"] == "refused":
                said.setdefault((name, f"not served: {result['reason']}"), []).append(cell["phase"])
            elif result["note"]:
                said.setdefault((name, result["note"]), [])
    notes = [table((f"{name}:", reason + (f" [{', '.join(dict.fromkeys(where))}]" if where else "")), [])
             for (name, reason), where in said.items()]
    smaller = [f"{cell['phase']} {cell['shape']}" for cell in report["cells"]
               if any((result.get("check") or {}).get("reduced") for result in cell["results"])]
    if smaller:
        notes.append(table(("checked on a smaller shape, the oracle being slow:", ", ".join(smaller)), []))
    return ["", *notes] if notes else []
