"""What the drop-in flash_attn costs: its functions beside HAL's own for the same call, bound before.

    python benchmarks/compat.py [--backend cpu] [--rounds 15] [--json FILE]

Both take turns in random order, several rounds; a turn is a loop of calls, in CPU time with one thread (other work on
the machine adds nothing to it but cache misses). Shown are the medians per call, their ratio with the least and the
most of one round, and the difference. The shapes are those of a small model (9 query heads, 3 KV heads, head_dim 64),
where a call is short and the cost shows; results are compared before anything is timed.

exit codes: 0 measured, 1 the results differ, 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import hal
from hal.bench import about
from hal.compat import flash_attn_interface, settings
from hal.compat.flash_attn import flash_attn_interface as two
from hal.text import table

three = flash_attn_interface
HEADS, KV_HEADS, DIM = 9, 3, 64
TURN = 0.02  # seconds that a turn takes, about


@dataclass
class Pair:
    """One call, through flash_attn's function and through HAL's."""

    name: str
    dropped_in: Callable[[], Any]
    direct: Callable[[], Any]


def pairs(backend: str) -> list[Pair]:
    config = hal.AttentionConfig(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM)
    attn = hal.get_attention_impl(config, "cpu", backend=backend)
    settings.use(settings.Settings("cpu", backend))
    made = []

    def x(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).bfloat16()

    for batch, length in ((1, 128), (8, 512)):
        q, k_cache, v_cache = x(batch, 1, HEADS, DIM), x(batch, length, KV_HEADS, DIM), x(batch, length, KV_HEADS, DIM)
        lens = torch.full((batch,), length - 1, dtype=torch.int32)
        pages = [c.view(-1, 16, KV_HEADS, DIM) for c in (k_cache, v_cache)]
        page_table = torch.arange(batch * length // 16, dtype=torch.int32).view(batch, -1)
        k, v = x(batch, 1, KV_HEADS, DIM), x(batch, 1, KV_HEADS, DIM)
        shape = f"{batch} x {length}"
        made += [
            Pair(f"2 func, decode {shape}",
                 lambda q=q, k=k_cache, v=v_cache: two.flash_attn_func(q, k, v, causal=True),
                 lambda q=q, k=k_cache, v=v_cache: attn.flash_attn_with_kvcache(q, k, v, causal=True)),
            Pair(f"2 kvcache, append, pages {shape}",
                 lambda q=q, p=pages, k=k, v=v, n=lens, t=page_table: two.flash_attn_with_kvcache(
                     q, *p, k, v, cache_seqlens=n, block_table=t, causal=True),
                 lambda q=q, p=pages, k=k, v=v, n=lens, t=page_table: attn.flash_attn_with_kvcache(
                     q, *p, k, v, cache_seqlens=n, page_table=t, causal=True)),
            Pair(f"3 kvcache, pages {shape}",
                 lambda q=q, p=pages, n=lens, t=page_table: three.flash_attn_with_kvcache(
                     q, *p, cache_seqlens=n, page_table=t, causal=True),
                 lambda q=q, p=pages, n=lens, t=page_table: attn.flash_attn_with_kvcache(
                     q, *p, cache_seqlens=n, page_table=t, causal=True))]
    for batch, length in ((1, 32), (4, 128)):
        q, k, v = x(batch * length, HEADS, DIM), x(batch * length, KV_HEADS, DIM), x(batch * length, KV_HEADS, DIM)
        cu = torch.arange(batch + 1, dtype=torch.int32) * length
        given = (q, k, v, cu, cu, length, length)
        made += [
            Pair(f"2 varlen, prefill {batch} x {length}",
                 lambda g=given: two.flash_attn_varlen_func(*g, causal=True),
                 lambda g=given: attn.flash_attn_varlen_func(*g, causal=True)),
            Pair(f"3 varlen, prefill {batch} x {length}",
                 lambda g=given: three.flash_attn_varlen_func(*g, causal=True),
                 lambda g=given: attn.flash_attn_varlen_func(*g, causal=True))]
    return made


def turn(call: Callable[[], Any], times: int) -> float:
    begin = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begin) / times


def measure(pair: Pair, rounds: int, order: random.Random) -> dict[str, Any]:
    times = max(1, round(TURN / max(1e-6, turn(pair.direct, 20))))
    seen: dict[str, list[float]] = {"dropped_in": [], "direct": []}
    for _ in range(rounds):
        names = list(seen)
        order.shuffle(names)
        for name in names:
            seen[name].append(turn(getattr(pair, name), times))
    ratios = [a / b for a, b in zip(seen["dropped_in"], seen["direct"])]
    ours, theirs = (statistics.median(seen[name]) * 1e6 for name in seen)
    return {"call": pair.name, "microseconds": ours, "direct_microseconds": theirs, "ratio": ours / theirs,
            "low": min(ratios), "high": max(ratios), "added_microseconds": ours - theirs}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu", help="HAL's backend (default: cpu)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {args.rounds}")
    torch.set_num_threads(1)
    with torch.inference_mode():
        made = pairs(args.backend)
        for pair in made:
            if not torch.equal(pair.dropped_in(), pair.direct()):
                print(f"benchmarks/compat.py: {pair.name}: the results differ", file=sys.stderr)
                return 1
        rows = [measure(pair, args.rounds, random.Random(0)) for pair in made]
    report = {"device": hal.detect("cpu").name, "backend": args.backend, "torch": torch.__version__, "clock": "cpu",
              "rounds": args.rounds, "date": about.about(None)["date"], "calls": rows}
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(("device", f"{report['device']}, 1 thread (cpu time), backend {args.backend}, torch "
                 f"{torch.__version__}, {report['date']}"), []))
    print(table(("call", "drop-in", "direct", "added", "ratio (spread)"), [
        (row["call"], f"{row['microseconds']:.1f} us", f"{row['direct_microseconds']:.1f} us",
         f"{row['added_microseconds']:.1f} us", f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})")
        for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
