"""What HAL costs before the first token: `import hal` over a bare interpreter, and `hal devices`.

    python benchmarks/overhead.py [--rounds 11] [--json]

Every figure is the median wall time of fresh processes, in milliseconds; the commands take turns, so that a
machine that gets slower does so for all of them. Exit code 1 where a limit is broken (design: `import hal`
under 50 ms, `hal devices` under 500 ms on a machine that has a CPU alone).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

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
    if args.json:
        print(
            json.dumps(
                {
                    "rounds": args.rounds,
                    "python": sys.version.split()[0],
                    "figures": figures,
                    "median_ms": {name: round(value, 1) for name, value in medians.items()},
                    "min_ms": {name: round(min(values), 1) for name, values in times.items()},
                },
                indent=2,
            )
        )
    else:
        print(f"{'command':32}{'median ms':>10}{'min ms':>9}{'max ms':>9}   ({args.rounds} rounds)")
        for name, values in times.items():
            print(f"{name:32}{medians[name]:10.1f}{min(values):9.1f}{max(values):9.1f}")
        for figure, row in figures.items():
            print(
                f"{figure}: {row['ms']} ms, limit {row['limit_ms']:g} ms: {'ok' if row['ok'] else 'TOO SLOW'}"
            )
    return 0 if all(row["ok"] for row in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
