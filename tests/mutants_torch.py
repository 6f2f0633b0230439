"""Mutants of the `torch` backend: every small change of its two files, by name, and the backend made from one.

DRAWN of those that mutate.py finds are looked at. tests/mutants_killed.py says which case of the conformance kit turns
each red; write it anew with

    python tests/mutants_torch.py --regenerate     some ten minutes on two cores

which asks first the recorded case, then the quick grid, then the full one. What survives all of it must be explained
in tests/mutants_equivalent.py, or get a case in tests/mutants_cases.py.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import resource
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import mutate
from mutate import remembered

from hal import registry
from hal.backend import AttentionBackend
from hal.conformance.case import Case
from hal.conformance.grid import grid
from hal.conformance.runner import FAILED, Result, Runner
from hal.platform import Platform, detect

FOLDER = Path(__file__).parent
FILES = {name: FOLDER.parent / "backends" / f"{name}.py" for name in ("torch_native", "torch_sequence")}
DRAWN = 100
NAME = "torch_mutant"
STRIDE = 4  # pieces that work is cut in
MEMORY = 4 << 30  # bytes that one case may ask for: a mutant may recurse for ever
STATM = Path("/proc/self/statm")
KIT_SEED = 0  # of the inputs: a recorded case is one call, the same every time

_made = itertools.count()


@cache
def sources() -> dict[str, str]:
    return {name: path.read_text() for name, path in FILES.items()}


@cache
def mutants() -> dict[str, tuple[ast.Module, mutate.Mutant]]:
    return mutate.mutants(FILES)


def drawn() -> list[str]:
    return mutate.drawn(mutants(), DRAWN)


def mutated(name: str) -> type[AttentionBackend]:
    """The torch backend with one mutant in it. Raises KeyError for a name that the source no longer gives."""
    return made({name.partition(".")[0]: mutate.tree_of(mutants(), name)})


def made(changed: dict[str, ast.Module]) -> type[AttentionBackend]:
    """The torch backend from the trees given, and from its own source where none is given."""
    trees = {file: changed.get(file) or ast.parse(text) for file, text in sources().items()}
    own = f"{NAME}_{next(_made)}_sequence"  # looked up at each call: backends made side by side need their own
    links = [node for node in ast.walk(trees["torch_native"])
             if isinstance(node, ast.ImportFrom) and node.module == "hal.backends.torch_sequence"]
    assert len(links) == 1, "torch_native imports torch_sequence more than once, or not at all: mend made()"
    links[0].module = own
    modules = {}
    for file, name in (("torch_sequence", own), ("torch_native", own.replace("sequence", "native"))):
        modules[file] = sys.modules[name] = types.ModuleType(name)
        exec(compile(trees[file], f"<mutant of {file}>", "exec", dont_inherit=True), modules[file].__dict__)
    found: type[AttentionBackend] = type("Mutant", (modules["torch_native"].TorchNative,), {"name": NAME})
    return found


@cache
def cpu() -> Platform:
    return detect("cpu")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """MEMORY more than this process has now, and no more (on Linux): what needs more fails as any error does."""
    if not STATM.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(STATM.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Bounded(Runner):
    def run(self, case: Case) -> Result:
        with bounded():
            return super().run(case)


@contextlib.contextmanager
def running(backend: type[AttentionBackend]) -> Iterator[Runner]:
    """A Runner of a backend that is registered for as long."""
    registry.register_backend(backend.name, backend)
    try:
        yield Bounded(backend, cpu(), KIT_SEED)
    finally:
        registry.unregister_backend(backend.name)


@cache
def cases(full: bool) -> dict[str, Case]:
    """The grid of the torch backend itself: its random cases hang on the backend's name."""
    found = {case.name: case for case in grid(registry.get("torch"), False)}
    return {**{case.name: case for case in grid(registry.get("torch"), True)}, **found} if full else found


def first_red(backend: type[AttentionBackend], names: Iterable[str]) -> Result | None:
    """The first of the cases that ends as failed."""
    with running(backend) as runner:
        return next((result for result in (runner.run(cases(True)[name]) for name in names)
                     if result.result == FAILED), None)


def explained() -> dict[str, str]:
    from mutants_equivalent import ELSEWHERE, EQUIVALENT

    return EQUIVALENT | ELSEWHERE


def killed() -> dict[str, str]:
    from mutants_killed import KILLED

    return KILLED


def stale(names: list[str]) -> str | None:
    """What is wrong with recorded names, and what to do; None where nothing is."""
    gone = [name for name in names if name not in mutants()]
    if not gone:
        return None
    return (f"{len(gone)} recorded mutants are no longer in the source of the torch backend, the first: {gone[0]}. "
            "Write tests/mutants_killed.py anew: python tests/mutants_torch.py --regenerate")


def _red(arguments: tuple[list[str], list[str]]) -> dict[str, Result]:
    """Of some mutants, those that one of some cases turns red, and the first that does."""
    import torch

    torch.set_num_threads(1)
    names, asked = arguments
    backends, found = {name: mutated(name) for name in names}, {}
    with remembered():
        for case in asked:
            for name, backend in backends.items():
                if name not in found:
                    result = first_red(backend, [case])
                    if result is not None:
                        found[name] = result
    return found


def search(names: list[str], before: Mapping[str, str], workers: int) -> dict[str, str]:
    """Mutant -> the case that turns it red: the recorded one, else of the quick grid, else of the full one."""
    red: dict[str, str] = {}
    quick = sorted(cases(False), key=lambda case: "long" in case or "32k" in case)
    rest = [case for case in cases(True) if case not in cases(False)]
    with ProcessPoolExecutor(workers) as pool:

        def ask(pieces: list[tuple[list[str], list[str]]]) -> list[str]:
            for found in pool.map(_red, pieces):
                for name, result in found.items():
                    if name not in red:
                        red[name] = result.case
                        print(f"killed: {name}\n    {result.case}: {result.why[:300]}", flush=True)
            return [name for name in names if name not in red]

        left = ask([([name], [before[name]]) for name in names if before.get(name) in cases(True)]) if before else names
        left = ask([(left[i::STRIDE], quick) for i in range(STRIDE)])
        print(f"{len(left)} of {len(names)} pass the quick grid; {len(rest)} more cases", flush=True)
        ask([(left, rest[i::STRIDE]) for i in range(STRIDE)] if left else [])
    return red


def _regenerate(target: Path, fresh: bool, workers: int) -> int:
    try:
        before = {} if fresh else killed()
    except ModuleNotFoundError:
        before = {}
    red = search(drawn(), before, workers)
    lines = "".join(f"    {name!r}:\n        {red[name]!r},\n" for name in sorted(red))
    target.write_text('"""Mutants of the torch backend -> the case of the conformance kit that turns each red.\n\n'
                      'Written by `python tests/mutants_torch.py --regenerate`.\n"""\n\n'
                      "# ruff: noqa: E501\n\n"
                      f"KILLED: dict[str, str] = {{\n{lines}}}\n")
    unexplained = [name for name in drawn() if name not in red and name not in explained()]
    wrong = [name for name in red if name in explained()]
    old = [name for name in explained() if name not in drawn()]
    print(f"{len(red)} killed, {DRAWN - len(red)} survive -> {target.name}")
    for what, some in (("survives and is not explained in mutants_equivalent.py", unexplained),
                       ("is explained as equivalent, and a case turns it red", wrong),
                       ("is explained in mutants_equivalent.py and no longer drawn", old)):
        for name in some:
            print(f"{what}: {name}")
    return 1 if wrong or unexplained or old else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutants of the torch backend and the cases that turn them red.")
    parser.add_argument("--regenerate", action="store_true", help="write tests/mutants_killed.py anew")
    parser.add_argument("--fresh", action="store_true", help="forget the recorded cases first")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the names of the drawn mutants")
    args = parser.parse_args()
    if args.list:
        print("\n".join(drawn()))
        return 0
    if args.regenerate:
        return _regenerate(FOLDER / "mutants_killed.py", args.fresh, args.workers)
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main())
