"""Two runs side by side: old over new for everyone in both, marked where the spreads do not meet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hal.bench.report import FORMAT, busy, figures
from hal.text import table

# What must be the same for two figures to mean the same thing.
SAME = (("platform", "kind"), ("platform", "arch"), ("platform", "name"), ("threads",), ("clock",),
        ("settings", "cold_bytes"))


def load(file: str) -> dict[str, Any]:
    """A report that `hal bench --json` wrote. Raises ValueError for anything else."""
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--compare {file}: can't be read as JSON: {error}") from None
    if not isinstance(report, dict) or "cells" not in report:
        raise ValueError(f"--compare {file}: is no report of hal bench: give a file that --json wrote")
    if report.get("format") != FORMAT:
        raise ValueError(f"--compare {file}: has format {report.get('format')!r}, this hal reads {FORMAT}: "
                         "measure again")
    try:
        if _timed(report):
            compare(report, report)  # reads all that a comparison will read
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"--compare {file}: is no whole report of hal bench ({type(error).__name__}: {error}): give a "
                         "file that --json wrote") from None
    return report


def compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """{"rows": what is in both, "only_old", "only_new": [...], "busy", "unchecked": which of the two runs was}.

    A row's ratio is old / new: above 1 the new one is faster. changed: the two spreads do not meet. Raises
    ValueError where device, threads, clock or the bytes that inputs rotate over differ, or nothing was timed in both.
    """
    for path in SAME:
        before, after = (_at(report, path) for report in (old, new))
        if before != after:
            raise ValueError(f"--compare: {'.'.join(path)} is {before!r} in the old report and {after!r} in the new "
                             "one: only runs on the same device, with the same --threads and --cold-mib, can be "
                             "compared")
    a, b = _timed(old), _timed(new)
    rows = []
    for key in (key for key in a if key in b):
        before, after = a[key], b[key]
        rows.append({"kind": key[0], "phase": key[1], "shape": key[2], "contender": key[4],
                     "old": {name: before[name] for name in ("median_s", "low_s", "high_s")},
                     "new": {name: after[name] for name in ("median_s", "low_s", "high_s")},
                     "ratio": before["median_s"] / after["median_s"],
                     "changed": after["low_s"] > before["high_s"] or after["high_s"] < before["low_s"]})
    if not rows:
        raise ValueError("--compare: nobody was timed on the same shape and config in both reports")
    return {"rows": rows, "only_old": [_name(key) for key in a if key not in b],
            "only_new": [_name(key) for key in b if key not in a],
            "busy": [side for side, report in (("old", old), ("new", new)) if busy(report)],
            "unchecked": [side for side, report in (("old", old), ("new", new)) if not report["checked"]]}


def text(told: dict[str, Any]) -> str:
    rows = []
    for row in told["rows"]:
        (before, before_spread), (after, after_spread) = figures(row["old"]), figures(row["new"])
        mark = "" if not row["changed"] else "FASTER" if row["ratio"] > 1 else "SLOWER"
        name = row["phase"] if row["kind"] == "all" else f"{row['kind']} {row['phase']}"
        rows.append((name, row["shape"], row["contender"].rpartition(":")[2][:16], f"{before} ({before_spread})",
                     f"{after} ({after_spread})", f"{row['ratio']:.2f}x {mark}".strip()))
    changed = sum(row["changed"] for row in told["rows"])
    lines = [table(("phase", "batch x len", "contender", "old (spread)", "new (spread)", "old / new"), rows), "",
             f"{changed} of {len(rows)} changed, that is, their spreads do not meet"]
    if told["busy"]:
        lines.append(table(("BUSY", f"the machine was busy with other work in the {' and the '.join(told['busy'])} "
                            "run: what changed may be its load"), []))
    if told["unchecked"]:
        lines.append(table(("UNCHECKED", "nobody's results were looked at in the "
                            f"{' and the '.join(told['unchecked'])} run: --no-check"), []))
    for side in ("old", "new"):
        if told[f"only_{side}"]:
            lines.append(table((f"only in the {side} report:", "; ".join(told[f"only_{side}"])), []))
    return "\n".join(lines)


def _at(report: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _timed(report: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """(kind, phase, shape, the rest that must be the same, contender) -> result."""
    return {(cell["kind"], cell["phase"], cell["shape"],
             json.dumps([cell["config"], result["page_size"], result["q_dtype"], result["graph"]], sort_keys=True),
             result["contender"]): result
            for cell in report["cells"] for result in cell["results"] if "median_s" in result}


def _name(key: tuple[str, ...]) -> str:
    return " ".join((*(() if key[0] == "all" else (key[0],)), key[1], key[2], key[4]))
