"""Mutants of the FlashAttention adapters: every small change of their files, on the emulators of their packages.

DRAWN of each file are looked at. tests/mutants_flash_attn_killed.py says which case of the conformance kit, on which
machine, turns each red; write it anew with

    python tests/mutants_flash_attn.py --regenerate [FILE...]     some twenty minutes on two cores for all

What survives the quick grid on every machine of its file must be explained in tests/mutants_flash_attn_kept.py: as
equivalent, or by a test of tests/test_flash_attn_family.py that it turns red.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import mutate
from flash_attn_machines import FILES, cases, changed, installed, there

import hal
from hal import registry
from hal.conformance.case import Case
from hal.conformance.runner import REFUSED, Runner
from hal.packages import Package, _Installed

FOLDER, SEED = Path(__file__).parent, 7
DRAWN = {"flash_attn_v2": 50, "flash_attn_v3": 50, "flash_attn_4": 50, "flash_attn_cache": 25, "flash_attn": 25,
         "flash_attn_variants": 10}


HEAD = '''"""Mutants of the FlashAttention adapters -> (where, the case of the conformance kit that turns each red).

Written by `python tests/mutants_flash_attn.py --regenerate`.
"""

# ruff: noqa: E501

'''


class Where(NamedTuple):
    """A backend on an emulated GPU with one vendor package; context: inside a forward context."""

    backend: str
    arch: str
    package: str
    context: bool = False


TWO = [Where("flash_attn_2", "sm80", "flash-attn", context) for context in (False, True)]
THREE = [Where("flash_attn_3", "sm90", package, context) for context in (False, True)
         for package in ("flash-attn-3", "vllm", "sglang-kernel")]  # in a context as well: a schedule is made there
DIFF = [Where("flash_attn_diffkv", "sm90", "flash-attn-3", context) for context in (False, True)]
ABSORBED = [Where("flash_attn_mla", "sm90", package, context) for package in ("flash-attn-3", "vllm")
            for context in (False, True)]
FOUR = [Where("flash_attn_4", arch, "flash-attn-4") for arch in ("sm100", "sm90")]
# file -> where its mutants are asked, in order.
ASKED = {"flash_attn_v2": TWO, "flash_attn_v3": [THREE[3], THREE[4], *ABSORBED, THREE[0]], "flash_attn_4": FOUR,
         "flash_attn_cache": [*TWO, FOUR[0]], "flash_attn_variants": [DIFF[0], ABSORBED[0], ABSORBED[2]]}
# Groups of the grid that ask an adapter nothing that others don't: what differs is the emulator's.
WIDE = ("long", "pages", "heads", "head_dim", "types", "deterministic", "pairs")


@cache
def mutants() -> dict[str, tuple[ast.Module, mutate.Mutant]]:
    return mutate.mutants({file: FILES[file] for file in DRAWN})


def drawn() -> list[str]:
    return [name for file, count in DRAWN.items()
            for name in mutate.drawn([m for m in mutants() if m.startswith(f"{file}.")], count)]


def mutated(name: str) -> AbstractContextManager[None]:
    """The family with one mutant in it. Raises KeyError for a name that the source no longer gives."""
    return installed(changed(name.partition(".")[0], mutate.tree_of(mutants(), name)))


@cache
def quick(backend: str) -> dict[str, Case]:
    """The quick grid without its widths and long sequences, in one dtype."""
    found = [case for case in cases(backend) if case.group.partition(" ")[2] not in WIDE
             and case.note not in ("long", "32k", "many")]
    return {case.name: case for case in found if case.fields["dtype"] == "bfloat16"}


def run(where: Where, name: str) -> str:
    """How one case ends on the family as it is now."""
    with there(where.arch, where.package) as machine:
        return _run(where, Runner(registry.get(where.backend), machine.platform, SEED), name)


def _run(where: Where, runner: Runner, name: str) -> str:
    try:
        with hal.forward_context() if where.context else nullcontext():
            return runner.run(quick(where.backend)[name]).result
    except Exception as error:  # noqa: BLE001 - a mutant of a declaration: selection itself breaks
        return f"selection raised {type(error).__name__}"


def _looked_up_once() -> Any:
    """The files of this machine's packages do not change meanwhile, and looking for them is most of a decision."""
    look, seen = _Installed._look, dict[Package, str | None]()

    def once(self: _Installed, package: Package) -> str | None:
        if package not in seen:
            seen[package] = look(self, package)
        return seen[package]

    return once


def _red(arguments: tuple[Sequence[str], Where, Sequence[str]]) -> dict[str, str]:
    """Of some mutants, those that a case turns red, and the first that does. Red is another end than the adapter's
    own; cases that its declarations refuse are not asked."""
    import torch

    torch.set_num_threads(1)
    names, where, asked = arguments
    found: dict[str, str] = {}
    families = {name: changed(name.partition(".")[0], mutate.tree_of(mutants(), name)) for name in names}
    runners: dict[str, Runner] = {}
    with mutate.remembered(), there(where.arch, where.package) as machine, \
            mock.patch.object(_Installed, "_look", _looked_up_once()):
        own = Runner(registry.get(where.backend), machine.platform, SEED)
        for case in asked:
            before = _run(where, own, case)
            if before == REFUSED and not quick(where.backend)[case].calls - own.backend.calls:
                continue
            for name in names:
                if name in found:
                    continue
                with installed(families[name]):
                    if name not in runners:
                        runners[name] = Runner(registry.get(where.backend), machine.platform, SEED)
                    if _run(where, runners[name], case) != before:
                        found[name] = case
            for vendor in machine.vendors.values():
                vendor.calls.clear()
    return found


def search(names: Sequence[str], workers: int) -> dict[str, tuple[Where, str]]:
    """Mutant -> where and by which case it is turned red."""
    red: dict[str, tuple[Where, str]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for file, places in ASKED.items():
            for where in places:
                left = [name for name in names if name.startswith(f"{file}.") and name not in red]
                asked = sorted(quick(where.backend), key=lambda case: ("calls" not in case, "return" not in case))
                pieces = [(left[i::workers], where, asked) for i in range(workers)]
                for found in pool.map(_red, pieces):
                    for name, case in found.items():
                        red[name] = (where, case)
                        print(f"killed: {name}\n    {tuple(where)}: {case}", flush=True)
                print(f"{file}: {len([n for n in left if n not in red])} left after {tuple(where)}", flush=True)
    return red


def stale(names: Sequence[str]) -> str | None:
    """What is wrong with recorded names, and what to do; None where nothing is."""
    gone = [name for name in names if name not in mutants()]
    if not gone:
        return None
    return (f"{len(gone)} recorded mutants are no longer in the source, the first: {gone[0]}. Write the records anew: "
            "python tests/mutants_flash_attn.py --regenerate")


def _regenerate(target: Path, files: Sequence[str], workers: int) -> int:
    """files: those whose mutants are looked at anew; the others' records stay."""
    from mutants_flash_attn_kept import ELSEWHERE, EQUIVALENT
    from mutants_flash_attn_killed import KILLED

    red = {name: (Where(*where), case) for name, (where, case) in KILLED.items() if name.partition(".")[0] not in files}
    red |= search([name for name in drawn() if name.partition(".")[0] in files], workers)
    lines = "".join(f"    {name!r}:\n        ({tuple(red[name][0])!r}, {red[name][1]!r}),\n" for name in sorted(red))
    target.write_text(HEAD + f"KILLED: dict[str, tuple[tuple[str, str, str, bool], str]] = {{\n{lines}}}\n")
    explained: Mapping[str, object] = {**EQUIVALENT, **ELSEWHERE}
    wrong = {"survives and is not explained": [n for n in drawn() if n not in red and n not in explained],
             "is explained, and a case turns it red": [n for n in red if n in explained],
             "is explained and no longer drawn": [n for n in explained if n not in drawn()]}
    print(f"{len(red)} killed, {len(drawn()) - len(red)} survive -> {target.name}")
    for what, some in wrong.items():
        for name in some:
            print(f"{what}: {name}")
    return int(any(wrong.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutants of the FlashAttention adapters and what turns them red.")
    parser.add_argument("--regenerate", nargs="*", choices=list(DRAWN), metavar="FILE",
                        help=f"write tests/mutants_flash_attn_killed.py anew (all of it, or of {', '.join(DRAWN)})")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the names of the drawn mutants")
    args = parser.parse_args()
    if args.list:
        print("\n".join(drawn()))
        return 0
    if args.regenerate is not None:
        return _regenerate(FOLDER / "mutants_flash_attn_killed.py", args.regenerate or list(DRAWN), args.workers)
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main())
