"""hal verify: is a backend right? Every case of the conformance kit against the float64 oracle, on this device."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hal import registry
from hal.backend import AttentionBackend
from hal.cli_args import Once
from hal.commands.output import check_target
from hal.packages import Packages
from hal.platform import Platform, detect
from hal.text import table

HELP = "verify attention backends on this device against the float64 oracle"
EPILOG = """examples:
  hal verify                                     every backend of this machine's device, the quick grid
  hal verify --device cpu --backend torch --full
  hal verify --backend my_package.kernels:MyBackend
  hal verify --backend torch --case "sinks" --case "softcap"     only cases whose name has one of these
  hal verify --full --json record.json           what docs/evidence holds

A case ends as passed, failed, or refused (selection or the adapter said no, by name). A word that a backend
declares and no case proves is a failure too. Exit codes: 0 all that was asked passed, 1 something failed or
nothing passed, 2 a wrong argument, 130 interrupted.
"""
SHOWN = 12  # failures of one backend that are shown
WIDTH = 100  # columns of the summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="DEVICE", action=Once, default="auto",
                        help="auto, or a device of this machine: cuda, cuda:1, npu, cpu, ... (default: auto)")
    parser.add_argument("--backend", metavar="NAME", action="append", default=[],
                        help="a backend, or package.module:Class; repeatable (default: all that serve the device)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="each feature at least once (default)")
    size.add_argument("--full", action="store_true", help="the whole grid")
    parser.add_argument("--case", metavar="TEXT", action="append", default=[],
                        help="only cases whose name contains TEXT; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and run nothing")
    parser.add_argument("--seed", metavar="N", type=_seed, action=Once, help="repeat a run (default: a fresh one)")
    parser.add_argument("--driver", metavar="TEXT", action=Once, default="",
                        help="what the vendor's tool says about the driver, for the record")
    parser.add_argument("--json", metavar="FILE", action=Once, help="write the record there; - is stdout")


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("\nhal: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from hal.conformance.grid import grid, lacking
    from hal.conformance.record import files, record, source_hash, summary
    from hal.conformance.runner import backend_of

    target = None if args.json in (None, "-") else Path(args.json)
    if target is not None:
        check_target("--json", args.json)
    device = detect(args.device)
    chosen = [backend_of(name) for name in dict.fromkeys(args.backend)]
    absent: list[tuple[str, str]] = []
    if not chosen:
        chosen, absent = _serving(device)
        if not chosen:
            print(_not_verified(absent), file=sys.stderr if args.json == "-" else sys.stdout)
            _say(f"nothing to verify: no backend serves {device}; --backend NAME asks one all the same")
            return 1
    lacks = lacking(device)
    cases = {b.name: [c for c in grid(b, args.full, lacks)
                      if not args.case or any(text in c.name for text in args.case)] for b in chosen}
    if args.case and not any(cases.values()):
        raise ValueError(f"--case {args.case[0]!r} is in no case's name (hal verify --list shows them)")
    if args.list:
        for backend in chosen:
            print("\n".join(f"{backend.name}: {case.name}" for case in cases[backend.name]))
        return 0
    seed = random.SystemRandom().randrange(1 << 31) if args.seed is None else args.seed
    total = sum(map(len, cases.values()))
    mode = "full" if args.full else "quick"
    # Measured on two cores of a CPU; a device is usually faster.
    _say(f"{device} ({device.name}): {total} cases of {', '.join(cases)}, {mode}, seed {seed}, "
         f"about {total / 15:.0f} s on a CPU")
    start, source, code = time.monotonic(), source_hash(), {b.name: files(b) for b in chosen}
    found = {}
    for backend in chosen:
        results = _results(backend, cases[backend.name], device, seed)
        found[backend.name] = summary(backend, results, not args.case, code[backend.name])
    made = record(device, found, mode, seed, args.driver, time.monotonic() - start, source)
    if target is not None:
        target.write_text(_compact(made))
    if args.json == "-":
        print(_compact(made), end="")
    print(_readable(made, absent), file=sys.stderr if args.json == "-" else sys.stdout)
    for name in found:
        failed = [c for c in found[name]["cases"] if c["result"] == "failed"]
        if failed:
            _say(f"to repeat one: hal verify --device {args.device} --backend {_named(name, args.backend)} --{mode} "
                 f"--seed {seed} --case {shlex.quote(failed[0]['case'])}")
    good = all(not b["failed"] and not b["unproven"] for b in found.values())
    if not any(b["passed"] for b in found.values()):
        _say("nothing passed: no backend that was asked serves this device")
        return 1
    return 0 if good else 1


def _results(backend: type[AttentionBackend], cases: list[Any], device: Platform, seed: int) -> list[Any]:
    from hal.conformance.runner import FAILED, Runner
    from hal.progress import Progress

    runner, results = Runner(backend, device, seed), []
    with Progress(len(cases)) as progress:
        for case in cases:
            results.append(runner.run(case))
            if results[-1].result == FAILED:
                progress.say(f"failed: {backend.name}: {case.name}: {results[-1].why}")
            progress.step(f"{backend.name}: {case.name}")
    return results


def _serving(device: Platform) -> tuple[list[type[AttentionBackend]], list[tuple[str, str]]]:
    """Backends of this platform that can be asked here, and (name, why not) of the others."""
    packages = Packages.installed()
    there, absent = [], []
    for name in registry.names():
        backend = registry.get(name)
        if device.kind not in backend.platforms:
            continue
        archs = backend.platforms[device.kind]
        missing = [packages.missing(package) for package in backend.packages]
        if not backend.adapter:
            absent.append((name, "its adapter is not written yet"))
        elif archs and device.arch not in archs:
            absent.append((name, f"arch {device.arch} is not supported ({', '.join(archs)})"))
        elif missing and all(missing):
            absent.append((name, str(missing[0])))
        else:
            there.append(backend)
    return there, absent


def _readable(made: dict[str, Any], absent: list[tuple[str, str]]) -> str:
    """The summary for people, within 100 columns."""
    parts = []
    for name, found in made["backends"].items():
        counts = [(f"{word}", str(n["passed"]), str(n["failed"] or ""), str(n["refused"] or ""))
                  for word, n in found["by_feature"].items()]
        parts.append(f"{name}: {found['passed']} passed, {found['failed']} failed, {found['refused']} refused")
        parts.append(_columns(counts))
        bad = [c for c in found["cases"] if c["result"] == "failed"]
        for c in bad[:SHOWN]:
            parts += [_wrapped(f"failed: {c['case']}", 2), _wrapped(c["why"], 10)]
        if len(bad) > SHOWN:
            parts.append(f"  ... and {len(bad) - SHOWN} more")
        if found["refused"] == len(found["cases"]) > 0:  # then every declared word is unproven, for this one reason
            parts.append(_wrapped(f"all refused, the first: {found['cases'][0]['why']}", 2))
        else:
            parts += [_wrapped(f"not proven: {word}: {why}", 2) for word, why in found["unproven"].items()]
    if absent:
        parts.append(_not_verified(absent))
    return "\n".join(parts)


def _not_verified(absent: list[tuple[str, str]]) -> str:
    return table(("not verified", "why"), absent, WIDTH)


def _columns(counts: Sequence[tuple[str, ...]]) -> str:
    """feature passed failed refused, two to a line."""
    head = ("", "pass", "fail", "refuse")
    longest = max((len(row[0]) for row in counts), default=0)

    def cell(row: tuple[str, ...]) -> str:
        return f"  {row[0]:<{longest}} {row[1]:>4} {row[2]:>4} {row[3]:>6}"

    half = -(-len(counts) // 2)
    left, right = counts[:half], [*counts[half:], *[("", "", "", "")] * (half - len(counts[half:]))]
    lines = [f"{cell(a)}  {cell(b)}".rstrip() for a, b in zip([head, *left], [head, *right])]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * 10, break_on_hyphens=False)


def _compact(made: dict[str, Any]) -> str:
    """JSON with one case a line: a record is read by people and kept in git."""
    backends = made["backends"]
    shell = {**made, "backends": {name: {**b, "cases": f"@{name}"} for name, b in backends.items()}}
    text = json.dumps(shell, indent=1)
    for name, b in backends.items():
        lines = ",\n".join("    " + json.dumps(case) for case in b["cases"])
        # With its key, which no text of a user can hold: quotes inside a string are escaped.
        text = text.replace(f'"cases": {json.dumps(f"@{name}")}', f'"cases": [\n{lines}\n   ]' if lines else
                            '"cases": []')
    return text + "\n"


def _named(name: str, asked: list[str]) -> str:
    """How the user named a backend: by its name, or package.module:Class."""
    return next((text for text in asked if ":" in text and text not in registry.names()
                 and text.rpartition(":")[2] == registry.get(name).__name__), name)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number >= 0")
    return int(text)


def _say(line: str) -> None:
    print(f"hal: {line}", file=sys.stderr, flush=True)
