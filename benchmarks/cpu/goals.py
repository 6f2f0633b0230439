"""The goals HAL's CPU kernels are held to, as data, and the arithmetic that says whether they are reached.

A goal is about ratios: somebody's time over HAL's, in every cell it selects. It is reached when the geometric mean (or
the least, where it says "every cell") is. Nothing is claimed where nothing was measured. T1: one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu.sweep import Case

Cells = dict[str, dict[str, Any]]  # a report's cells, by key
Ratio = tuple[float, float, float]  # the medians', and the least and most that the spreads allow


@dataclass(frozen=True)
class Goal:
    """text: what is asked. wanted: the bound, from below, of `ratio` over the cells that `where` picks.

    ratio(cells, key, subject) is None where a cell has not what it takes. every: the worst cell counts, not the
    geometric mean. either: goals with the same word there are met together when one of them is. ceiling: the limit
    whose time, put in place of HAL's, gives what could be reached at all. aside: shown, but no goal of the issue.
    """

    text: str
    wanted: float
    where: Callable[[Case], bool]
    ratio: Callable[[Cells, str, str], Ratio | None]
    every: bool = False
    either: str = ""
    ceiling: str = ""
    aside: bool = False


def over(peer: str) -> Callable[[Cells, str, str], Ratio | None]:
    """A peer's time over HAL's: how many times as fast HAL is; for a limit, the part of it that HAL reaches."""
    return lambda cells, key, subject: _quotient(_times(cells, key, peer), _times(cells, key, subject))


def over_case(**changes: Any) -> Callable[[Cells, str, str], Ratio | None]:
    """HAL's time in the same case with some fields changed, over HAL's time in this one."""

    def ratio(cells: Cells, key: str, subject: str) -> Ratio | None:
        other = Case(**cells[key]["case"]).but(**changes)
        return _quotient(_times(cells, other, subject), _times(cells, key, subject))

    return ratio


def wall_over_threads(cells: Cells, key: str, subject: str) -> Ratio | None:
    """Wall time on one thread over wall time on two."""
    other = cells.get(Case(**cells[key]["case"]).but(threads=1), {})
    one, two = (cell.get("contenders", {}).get(subject, {}) for cell in (other, cells[key]))
    if "wall_s" not in one or "wall_s" not in two:
        return None
    scale = one["wall_s"] / one["median_s"]
    return _quotient(tuple(one[name] * scale for name in FIGURES), tuple(two[name] for name in FIGURES))


FIGURES = ("median_s", "low_s", "high_s")


def _times(cells: Cells, key: str, name: str) -> tuple[float, ...] | None:
    result = cells.get(key, {}).get("contenders", {}).get(name, {})
    return tuple(result[one] for one in FIGURES) if "median_s" in result else None


def _quotient(above: tuple[float, ...] | None, below: tuple[float, ...] | None) -> Ratio | None:
    if above is None or below is None:
        return None
    return above[0] / below[0], above[1] / below[2], above[2] / below[1]


def geomean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _is(group: str, dtype: str, page: int | None = None, heads: str | None = None, threads: int | None = None,
        ) -> Callable[[Case], bool]:
    return lambda case: (case.group == group and case.dtype == dtype and page in (None, case.page_size)
                         and (heads is None or case.heads.startswith(heads)) and threads in (None, case.threads))


B, H, F = "bfloat16", "float16", "float32"
GOALS = [
    Goal("decode bf16, x vLLM", 1.4, _is("decode", B), over("vllm"), ceiling="stream"),
    Goal("decode bf16, x SGLang", 1.4, _is("decode", B), over("sglang"), ceiling="stream"),
    Goal("decode bf16, every cell, x vLLM", 1.15, _is("decode", B), over("vllm"), every=True, ceiling="stream"),
    Goal("decode bf16, every cell, x SGLang", 1.15, _is("decode", B), over("sglang"), every=True, ceiling="stream"),
    Goal("decode fp32, x vLLM", 1.25, _is("decode", F), over("vllm"), ceiling="stream"),
    Goal("decode bf16 MHA, x vLLM", 1.4, _is("decode", B, heads="MHA"), over("vllm"), ceiling="stream"),
    Goal("decode bf16 MHA, x SGLang", 1.4, _is("decode", B, heads="MHA"), over("sglang"), ceiling="stream"),
    Goal("decode 1x32768, 2 threads x 1", 1.5, lambda case: (
        case.group == "decode" and (case.batch, case.seqlen, case.threads) == (1, 32768, 2)), wall_over_threads),
    Goal("decode bf16 T1, of the stream limit", 0.38, _is("decode", B, threads=1), over("stream")),
    Goal("decode fp32 T1, of the stream limit", 0.40, _is("decode", F, threads=1), over("stream")),
    Goal("prefill bf16, x SGLang", 1.0, _is("prefill", B), over("sglang"), ceiling="matmul"),
    Goal("prefill bf16, x vLLM", 1.8, _is("prefill", B), over("vllm"), ceiling="matmul"),
    Goal("prefill bf16, of the matmul rate", 0.60, _is("prefill", B), over("matmul")),
    Goal("prefill fp32, x vLLM", 1.15, _is("prefill", F), over("vllm"), either="prefill fp32", ceiling="matmul"),
    Goal("prefill fp32, of the matmul rate", 0.85, _is("prefill", F), over("matmul"), either="prefill fp32"),
    Goal("extend bf16, x SGLang", 1.0, _is("extend", B), over("sglang"), ceiling="matmul"),
    Goal("extend bf16, x vLLM", 1.8, _is("extend", B), over("vllm"), ceiling="matmul"),
    Goal("extend bf16, of the matmul rate", 0.60, _is("extend", B), over("matmul")),
    Goal("extend fp32, x vLLM", 1.15, _is("extend", F), over("vllm"), either="extend fp32", ceiling="matmul"),
    Goal("extend fp32, of the matmul rate", 0.85, _is("extend", F), over("matmul"), either="extend fp32"),
    # Within 1.5x: bf16's time over fp16's is 1 / 1.5 at least.
    Goal("prefill fp16, bf16's time over it", 1 / 1.5, _is("prefill", H), over_case(dtype=B)),
    Goal("extend fp16, bf16's time over it", 1 / 1.5, _is("extend", H), over_case(dtype=B)),
    Goal("MLA decode bf16, x a good torch one", 3.0, _is("mla", B), over("mla_torch"), ceiling="stream"),
    Goal("KV write, of copy bandwidth", 0.70, lambda case: case.group == "write" and case.seqlen > 1, over("copy")),
    Goal("decode bf16 pg 128, x vLLM", 1.4, _is("decode", B, page=128), over("vllm"), ceiling="stream", aside=True),
    Goal("decode bf16, x vLLM without AMX", 1.4, _is("decode", B, page=128), over("vllm_vec"),
         ceiling="stream", aside=True),
    Goal("decode bf16 T1, of stream: stretch", 0.50, _is("decode", B, threads=1), over("stream"), aside=True),
    Goal("prefill bf16, x vLLM without AMX", 1.8, _is("prefill", B), over("vllm_vec"), ceiling="matmul", aside=True),
    Goal("decode fp16, x vLLM", 1.4, _is("decode", H), over("vllm"), ceiling="stream", aside=True),
    Goal("decode fp16, x SGLang", 1.4, _is("decode", H), over("sglang"), ceiling="stream", aside=True),
    Goal("decode fp16, bf16's time over it", 1 / 1.5, _is("decode", H), over_case(dtype=B), aside=True),
    Goal("MLA decode bf16, x SGLang", 1.0, _is("mla", B), over("sglang"), ceiling="stream", aside=True),
    Goal("KV write of 64 tokens, of copy", 0.70, lambda case: case.group == "write" and case.seqlen == 1,
         over("copy"), aside=True),
]


def judge(cells: Cells, subject: str, goals: list[Goal] = GOALS) -> list[dict[str, Any]]:
    """One row for each goal: wanted, reached, the spread, cells, worst cell, ceiling, met (None: not measured)."""
    rows = [_row(goal, cells, subject) for goal in goals]
    for row in rows:
        together = [other["met"] for other in rows if row["either"] and other["either"] == row["either"]]
        if any(together):
            row["met_by_other"] = not row["met"]
            row["met"] = True
    return rows


def _row(goal: Goal, cells: Cells, subject: str) -> dict[str, Any]:
    found: dict[str, Ratio] = {}
    tops = []
    for key, cell in cells.items():
        if goal.where(Case(**cell["case"])):
            ratio = goal.ratio(cells, key, subject)
            if ratio is not None:
                found[key] = ratio
                top = goal.ratio(cells, key, goal.ceiling) if goal.ceiling else None
                tops += [top[0]] if top else []
    row: dict[str, Any] = {"goal": goal.text, "wanted": goal.wanted, "every": goal.every, "either": goal.either,
                           "aside": goal.aside, "cells": len(found), "met": None}
    if not found:
        return row
    worst = min(found, key=lambda key: found[key][0])
    reduce = min if goal.every else geomean
    middle, low, high = (reduce([ratio[i] for ratio in found.values()]) for i in range(3))
    return {**row, "reached": middle, "low": low, "high": high, "met": middle >= goal.wanted, "worst": found[worst][0],
            "worst_cell": worst, "ceiling": reduce(tops) if tops else None}
