"""What HAL costs before the first token (`import hal`, `hal devices`, selection) and in each step (forward context).

    python benchmarks/overhead.py [--rounds 11] [--json]

The first two are median wall times of fresh processes, in milliseconds; the commands take turns, so that a
machine that gets slower does so for all of them. Selection is timed inside one process, after a first round
that loads every backend: per decision the median over the rounds, and of the decisions the median and the
slowest. A forward context and a plan that is found again take microseconds: CPU time of a loop, the least of the
rounds (other work on the machine only adds to it), on CPU tensors; an accelerator adds asking for its current stream.
Exit code 1 where a limit is broken (design: `import hal` under 50 ms, `hal devices` under 500 ms on
a machine that has a CPU alone; a decision under 5 ms, the slowest too; entering and leaving a context under 10
microseconds, a plan found again under 2).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import hal'": ["-c", "import hal"],
    "hal devices": ["-m", "hal", "devices"],
    "hal explain --device cuda:sm90": ["-m", "hal", "explain", "--device", "cuda:sm90"],
}
# Figure -> (limit in ms, the command, the command whose time is taken off).
LIMITS = {
    "import hal": (50.0, "python -c 'import hal'", "python -c pass"),
    "hal devices": (500.0, "hal devices", None),
}
SELECTION_LIMIT_MS = 5.0
# Figure -> limit in ms, None where there is none; each is timed over this many runs at a time.
STEP_LIMITS = {"forward context, enter and leave": 0.010, "a plan found again": 0.002,
               "a bound function over the kernel's own": None}
STEP_RUNS = 2000
# Devices x configurations whose decisions are timed; the last two are refused by nearly every candidate.
DEVICES = ("cuda:sm75", "cuda:sm80", "cuda:sm90", "cuda:sm100", "cuda:sm120", "rocm:gfx942", "npu:ascend910b",
           "musa:mp31", "cpu:x86_64_v3")
CONFIGS: dict[str, dict[str, Any]] = {
    "dense": {},
    "page_size 16": {"page_size": 16},
    "MLA": {"mla": True, "num_heads": 128},
    "sparse MLA": {"mla": True, "num_heads": 128, "sparse": True},
    "gpt-oss": {"num_heads": 64, "head_dim": 64, "sinks": True, "sliding_window": 128},
    "fp8 KV": {"kv_cache_dtype": "fp8_e4m3"},
    "all features": {"sinks": True, "softcap": 50.0, "tree_mask": True, "mm_prefix": True, "graph": True,
                     "attention_chunk": 64, "max_decode_query_len": 8},
    "page_size 7": {"page_size": 7, "dtype": "float32"},
}
# Kinds of layer that are decided together: the most that one model has (Whisper's three).
JOINT: dict[str, dict[str, Any]] = {
    "encoder": {"num_heads": 20, "num_kv_heads": 20, "head_dim": 64, "attention_type": "encoder", "causal": False},
    "decoder": {"num_heads": 20, "num_kv_heads": 20, "head_dim": 64},
    "cross": {"num_heads": 20, "num_kv_heads": 20, "head_dim": 64, "attention_type": "encoder_decoder",
              "causal": False},
}


def measure(rounds: int) -> dict[str, list[float]]:
    """command -> wall times in ms, one for each round, after one round that only warms the disk cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            if number:
                times[name].append((time.perf_counter() - started) * 1000)
    return times


def measure_selection(rounds: int) -> dict[str, float]:
    """"device, configuration" -> median time of one decision in ms; three kinds of layer count as one."""
    sys.path.insert(0, str(ROOT))
    import hal

    questions = {name: {"all": hal.AttentionConfig(**fields)} for name, fields in CONFIGS.items()}
    questions["three kinds"] = {name: hal.AttentionConfig(**fields) for name, fields in JOINT.items()}
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for device in DEVICES:
            for name, kinds in questions.items():
                started = time.perf_counter()
                hal.explain_kinds(kinds, device)
                if number:
                    times.setdefault(f"{device}, {name}", []).append((time.perf_counter() - started) * 1000)
    return {question: statistics.median(values) for question, values in times.items()}


def measure_step(rounds: int) -> dict[str, float]:
    """Figure of STEP_LIMITS -> time in ms."""
    sys.path.insert(0, str(ROOT))
    import torch

    import hal
    from hal.custom_ops import compilable
    from hal.plan import Planner

    lens = torch.full((64,), 1000, dtype=torch.int32)
    cu, table = torch.arange(65, dtype=torch.int32), torch.zeros(64, 64, dtype=torch.int32)
    given = {"cache_seqlens": lens, "cu_seqlens_q": cu, "page_table": table, "max_seqlen_q": 1, "max_seqlen_k": 1000}
    planner, params = Planner(lambda device, *key: key), (1, 1000, 32, 8, 128, True, (-1, -1), 0.0, 0, 16)

    def kernel(q: Any, k_cache: Any, v_cache: Any, cache_seqlens: Any = None, causal: bool = False) -> Any:
        return q

    bound = compilable(kernel, "flash_attn_with_kvcache")

    def per_run(run: Any) -> float:
        samples = []
        for _ in range(rounds):
            started = time.thread_time()
            for _ in range(STEP_RUNS):
                run()
            samples.append((time.thread_time() - started) / STEP_RUNS * 1000)
        return min(samples)

    def context() -> None:
        with hal.forward_context(**given):
            pass

    nothing = per_run(lambda: None)
    enter = per_run(context)
    with hal.forward_context(**given):
        found = per_run(lambda: planner(lens.device, (lens, cu), params))
    calls = [per_run(lambda f=f: f(lens, table, table, cache_seqlens=lens, causal=True)) for f in (bound, kernel)]
    return dict(zip(STEP_LIMITS, (enter - nothing, found - nothing, calls[0] - calls[1])))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="fresh processes of each command, 11 or more")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.rounds < 11:
        parser.error(f"--rounds must be 11 or more, got {args.rounds}")
    times = measure(args.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    figures = {}
    for figure, (limit, command, base) in LIMITS.items():
        cost = medians[command] - (medians[base] if base else 0.0)
        figures[figure] = {"ms": round(cost, 1), "limit_ms": limit, "ok": cost < limit}
    selection = measure_selection(args.rounds)
    slowest = max(selection, key=lambda question: selection[question])
    for figure, cost in (("selection, median decision", statistics.median(selection.values())),
                         ("selection, slowest decision", selection[slowest])):
        figures[figure] = {"ms": round(cost, 2), "limit_ms": SELECTION_LIMIT_MS, "ok": cost < SELECTION_LIMIT_MS}
    for figure, cost in measure_step(args.rounds).items():
        limit = STEP_LIMITS[figure]
        figures[figure] = {"ms": round(cost, 6), "limit_ms": limit, "ok": limit is None or cost < limit}
    if args.json:
        print(
            json.dumps(
                {
                    "rounds": args.rounds,
                    "python": sys.version.split()[0],
                    "figures": figures,
                    "median_ms": {name: round(value, 1) for name, value in medians.items()},
                    "min_ms": {name: round(min(values), 1) for name, values in times.items()},
                    "selection_ms": {question: round(value, 3) for question, value in selection.items()},
                },
                indent=2,
            )
        )
    else:
        print(f"{'command':32}{'median ms':>10}{'min ms':>9}{'max ms':>9}   ({args.rounds} rounds)")
        for name, values in times.items():
            print(f"{name:32}{medians[name]:10.1f}{min(values):9.1f}{max(values):9.1f}")
        print(f"{len(selection)} decisions; the slowest: {slowest}")
        for figure, row in figures.items():
            limit = "no limit" if row["limit_ms"] is None else f"limit {row['limit_ms']:g} ms"
            print(f"{figure}: {row['ms']} ms, {limit}: {'ok' if row['ok'] else 'TOO SLOW'}")
    return 0 if all(row["ok"] for row in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
