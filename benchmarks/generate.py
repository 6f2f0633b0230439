"""Tokens a second of SmolLM2 through HAL's transformers integration, as `hal generate` runs it, beside sdpa.

    python benchmarks/generate.py [--backend cpu] [--quick] [--threads 1] [--json FILE]
    python benchmarks/generate.py --show FILE FILE ...          the tables and goals of several reports as one

One model object; its attention is switched between transformers' "sdpa" and "hal" by turns, in random order, several
rounds. A turn is one call of model.generate() for all sequences: greedy, no end-of-sequence, prompts of random tokens.
Each has the KV cache that its user gets: sdpa transformers' own, which is copied at every step, HAL the one of
`hal generate`, which is written in place; --same-cache gives both transformers' own.
The rate is of the tokens after the first (seconds to the first one are shown beside it); "attn" is the part of that
time spent inside the attention function, which the turn itself counts; "at most" is the ratio if attention took no time
at all and nothing else changed (a cache that is not copied can go beyond it). With one thread time is CPU time, which
other work on the machine adds nothing to but cache misses; with more it is wall time, and wants a quiet machine. Before
anything is timed both give logits for the same prompt and the next token; they must agree.

Goal: the geometric mean of HAL's rate over sdpa's is above 1.1, and no cell is below 0.97 beyond its spread.

exit codes: 0 measured; 1 the logits differ, or another backend ran than the one asked for; 2 a wrong argument.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hal.commands.numbers import count, counts
from hal.progress import Progress
from hal.text import table

SEQUENCES, CONTEXTS = (1, 8, 32), (100, 2000)
WANTED, LEAST = 1.1, 0.97
NAMES = ("sdpa", "hal")
CLOSE = 0.03  # largest difference of logits, in parts of the largest logit: bfloat16 through thirty layers


@dataclass
class Turn:
    """first: seconds to the first token. rate: tokens a second after it. share: of that time inside attention."""

    first: float
    rate: float
    share: float


@dataclass
class Cell:
    sequences: int
    context: int
    turns: dict[str, list[Turn]] = field(default_factory=lambda: {name: [] for name in NAMES})


def summary(cell: Cell) -> dict[str, Any]:
    """Medians of everyone, and HAL's rate over sdpa's: of the medians, and the least and most of one round."""
    told: dict[str, Any] = {"sequences": cell.sequences, "context": cell.context, "rounds": len(cell.turns["hal"])}
    for name, turns in cell.turns.items():
        told[name] = {what: statistics.median(getattr(turn, what) for turn in turns)
                      for what in ("first", "rate", "share")}
    pairs = [hal.rate / sdpa.rate for sdpa, hal in zip(cell.turns["sdpa"], cell.turns["hal"])]
    # What is left of sdpa's time without its attention.
    return {**told, "at_most": 1 / (1 - told["sdpa"]["share"]), "low": min(pairs), "high": max(pairs),
            "ratio": told["hal"]["rate"] / told["sdpa"]["rate"],
            "first_ratio": told["sdpa"]["first"] / told["hal"]["first"]}


def judge(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The goal's two halves. A cell breaks the second one where even its best round is below it."""
    mean = statistics.geometric_mean(cell["ratio"] for cell in cells)
    most = statistics.geometric_mean(cell["at_most"] for cell in cells)
    worst = min(cells, key=lambda cell: cell["ratio"])
    return {"geomean": mean, "geomean_wanted": WANTED, "geomean_met": mean > WANTED, "at_most": most,
            "worst": worst["ratio"], "worst_cell": f"{worst['sequences']} x {worst['context']}", "worst_wanted": LEAST,
            "worst_met": not any(max(cell["ratio"], cell["high"]) < LEAST for cell in cells),
            "whole": {(cell["sequences"], cell["context"]) for cell in cells} >= {
                (n, m) for n in SEQUENCES for m in CONTEXTS}}


def text(report: dict[str, Any]) -> str:
    rows = []
    for cell in report["cells"]:
        own, other = cell["hal"], cell["sdpa"]
        rows.append((str(cell["sequences"]), str(cell["context"]), f"{own['rate']:.1f}", f"{other['rate']:.1f}",
                     f"{cell['ratio']:.2f} ({cell['low']:.2f}-{cell['high']:.2f})",
                     f"{cell['at_most']:.2f}", f"{own['share']:.0%}", f"{other['share']:.0%}", f"{own['first']:.2f} s",
                     f"{cell['first_ratio']:.2f}"))
    goal = report["goal"]
    part = "" if goal["whole"] else " of these cells alone: the goal is about all six"
    lines = [
        table(("device", f"{report['device']}, {report['threads']} threads ({report['clock']} time), "
               f"{report['dtype']}, torch {report['torch']}, transformers {report['transformers']}, load "
               f"{report['load'][0]} to {report['load'][1]}, {report['date']}"), []),
        table(("backend", f"hal: {report['backend']}, KV cache: {report['cache']}"), []), "",
        table(("seqs", "context", "hal tok/s", "sdpa tok/s", "ratio (spread)", "at most", "attn hal", "attn sdpa",
               "first", "x sdpa"), rows), "",
        table(("goal", "wanted", "reached", "met?"), [
            ("geometric mean of tokens/s over sdpa's", f"> {WANTED}",
             f"{goal['geomean']:.2f} (at most {goal['at_most']:.2f})", ("yes" if goal["geomean_met"] else "NO") + part),
            ("worst cell, beyond its spread", f">= {LEAST}", f"{goal['worst']:.2f} ({goal['worst_cell']})",
             ("yes" if goal["worst_met"] else "NO") + part)])]
    return "\n".join(lines)


SAME = ("device", "threads", "clock", "dtype", "backend", "cache", "torch", "transformers")


def joined(files: list[Path]) -> dict[str, Any]:
    """Several reports as one, each with cells of its own. Raises ValueError where they do not go together."""
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for what in SAME:
        if len({report[what] for report in reports}) > 1:
            raise ValueError(f"--show: {what} differs: {', '.join(str(report[what]) for report in reports)}")
    cells = [cell for report in reports for cell in report["cells"]]
    names = [(cell["sequences"], cell["context"]) for cell in cells]
    if len(set(names)) < len(names):
        raise ValueError(f"--show: a cell stands in two reports: {sorted(names)}")
    loads = [load for report in reports for load in report["load"]]
    return {**reports[0], "cells": cells, "goal": judge(cells), "load": [min(loads), max(loads)],
            "date": " and ".join(dict.fromkeys(report["date"][:10] for report in reports))}


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    if args.show:
        print(text(joined(args.show)))
        return 0
    import torch

    import hal
    from hal import default_model
    from hal.bench import about

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    backend = hal.registry.resolve(args.backend)[0] if args.backend else _best()
    folder = default_model.prepare(lambda line: print(line, file=sys.stderr)) if args.model is None else args.model
    model = _model(folder, args.dtype, backend)
    clock = clock_of(torch.get_num_threads())
    watch = _watch(clock)
    problem = _differ(model, backend)
    if problem:
        print(f"benchmarks/generate.py: {problem}", file=sys.stderr)
        return 1
    cells = [Cell(n, m) for m in args.context for n in args.sequences]
    order, load = random.Random(0), about.load()
    with torch.inference_mode(), Progress(len(cells) * args.rounds * len(NAMES)) as progress:
        for cell in cells:
            for number in range(args.rounds):
                names = list(NAMES)
                order.shuffle(names)
                for name in names:
                    model.set_attn_implementation(name)
                    own = name == "hal" and not args.same_cache
                    cell.turns[name].append(_turn(model, cell, args.new_tokens, clock, watch, number, own))
                    progress.step(f"{cell.sequences} x {cell.context}: {name} {cell.turns[name][-1].rate:.1f} tokens/s")
    import transformers

    found = about.about(None)
    told = [summary(cell) for cell in cells]
    report = {"device": hal.detect("cpu").name, "threads": torch.get_num_threads(),
              "clock": "cpu" if clock is time.process_time else "wall", "dtype": args.dtype,
              "backend": backend, "cache": "transformers'" if args.same_cache else "HAL's",
              "torch": torch.__version__, "transformers": transformers.__version__,
              "new_tokens": args.new_tokens, "date": found["date"], "load": [load, about.load()], "cells": told,
              "goal": judge(told)}
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(text(report))
    return 0


def _best() -> str:
    """cpu, or where it can't be bound here torch, with a line that says so."""
    import hal

    config = hal.AttentionConfig(num_heads=9, num_kv_heads=3, head_dim=64)
    try:
        hal.get_attention_impl(config, "cpu", backend="cpu")
    except (hal.NoBackendError, RuntimeError) as error:
        print(f"the backend cpu can't serve, so torch is timed: {' '.join(str(error).split())}", file=sys.stderr)
        return "torch"
    return "cpu"


def _model(folder: Path, dtype: str, backend: str) -> Any:
    import torch
    import transformers

    from hal.integrations import transformers as hosted

    hosted.register()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, attn_implementation="sdpa").eval()
    hosted.use(model, backend=backend)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no end: every turn has the same tokens
    return model


def clock_of(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def _watch(clock: Callable[[], float]) -> list[float]:
    """Wraps both attention functions; the only element is the seconds spent in them so far."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    spent = [0.0]

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def attention(*args: Any, **kwargs: Any) -> Any:
            begin = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += clock() - begin

        return attention

    for name in NAMES:
        ALL_ATTENTION_FUNCTIONS[name] = wrapped(ALL_ATTENTION_FUNCTIONS[name])
    return spent


def _prompt(model: Any, sequences: int, context: int, seed: int) -> Any:
    import torch

    return torch.randint(10, model.config.vocab_size, (sequences, context),
                         generator=torch.Generator().manual_seed(seed))


def _differ(model: Any, backend: str) -> str | None:
    """Why HAL's logits are not sdpa's, or who ran instead of `backend`; None where all is well."""
    import torch

    from hal.integrations.transformers import impls

    ids, logits = _prompt(model, 3, 65, 1), {}
    for name in NAMES:
        model.set_attn_implementation(name)
        with torch.inference_mode():
            first = model(ids[:, :64], use_cache=True)
            second = model(ids[:, 64:], past_key_values=first.past_key_values, use_cache=True)
        logits[name] = torch.stack((first.logits[:, -1], second.logits[:, -1])).float()
    ran = {(impl.prefill.backend, impl.decode.backend) for impl in impls(model).values()}
    if ran != {(backend, backend)}:
        return f"asked for {backend}, but (prefill, decode) ran on {sorted(ran)}"
    off = float((logits["hal"] - logits["sdpa"]).abs().max() / logits["sdpa"].abs().max())
    return None if off <= CLOSE else (
        f"HAL's logits differ from sdpa's by {off:.1%} of the largest (allowed: {CLOSE:.0%})")


def _turn(model: Any, cell: Cell, new_tokens: int, clock: Callable[[], float], watch: list[float], seed: int,
          own_cache: bool) -> Turn:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    seen: list[tuple[float, float]] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            seen.append((clock(), watch[0]))
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    from hal.integrations.transformers import new_cache

    ids = _prompt(model, cell.sequences, cell.context, seed)
    begin = clock()
    cache = new_cache(model) if own_cache else None
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens,
                         stopping_criteria=StoppingCriteriaList([Clock()]), past_key_values=cache)
    if out.shape[1] != cell.context + new_tokens or len(seen) != new_tokens:
        raise RuntimeError(f"generated {out.shape[1] - cell.context} tokens in {len(seen)} steps, not {new_tokens}")
    (first, spent), (last, all_spent) = seen[0], seen[-1]
    return Turn(first - begin, cell.sequences * (new_tokens - 1) / (last - first), (all_spent - spent) / (last - first))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", help="HAL's backend (default: cpu where it is built, else torch)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model's folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--sequences", type=counts, default=list(SEQUENCES), metavar="N,M", help="default: 1,8,32")
    parser.add_argument("--context", type=counts, default=list(CONTEXTS), metavar="N,M", help="default: 100,2000")
    parser.add_argument("--quick", action="store_true", help="1 and 8 sequences of 100 tokens")
    parser.add_argument("--new-tokens", type=count, default=32, metavar="N", help="of each sequence (default: 32)")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="turns in a cell (default: 5)")
    parser.add_argument("--threads", type=count, metavar="N", help="torch's threads (default: torch's own choice)")
    parser.add_argument("--same-cache", action="store_true", help="transformers' own cache for HAL too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--show", type=Path, metavar="FILE", nargs="+", help="measure nothing, print these reports")
    args = parser.parse_args(argv)
    if args.new_tokens < 2:
        parser.error(f"--new-tokens must be 2 or more, got {args.new_tokens}: the rate is of those after the first")
    if args.quick:
        args.sequences, args.context = [1, 8], [100]
    return args


if __name__ == "__main__":
    sys.exit(main())
