"""Mutants of the `torch` backend: every small change of its two files, by name, and the backend made from one.

A mutant's name is the function it is in, the operator, the source text that changes, and its occurrence among equals:
it survives edits elsewhere. DRAWN of them are drawn by the hash of their names, so an edit changes the draw by little.
tests/mutants_killed.py says which case of the conformance kit turns each red; write it anew with

    python tests/mutants_torch.py --regenerate     some ten minutes on two cores

which asks first the recorded case, then the quick grid, then the full one. What survives all of it must be explained
in tests/mutants_equivalent.py, or get a case in tests/mutants_cases.py.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import itertools
import resource
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from hal import registry
from hal.backend import AttentionBackend
from hal.conformance.case import Case
from hal.conformance.grid import grid
from hal.conformance.runner import FAILED, Result, Runner
from hal.platform import Platform, detect

FOLDER = Path(__file__).parent
FILES = {name: FOLDER.parent / "backends" / f"{name}.py" for name in ("torch_native", "torch_sequence")}
DRAWN, SEED = 100, "1"  # mutants, and what their hashes are salted with
NAME = "torch_mutant"
STRIDE = 4  # pieces that work is cut in
MEMORY = 4 << 30  # bytes that one case may ask for: a mutant may recurse for ever
STATM = Path("/proc/self/statm")
KIT_SEED = 0  # of the inputs: a recorded case is one call, the same every time

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv, ast.Mult: ast.Add,
              ast.Div: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
OTHER_NAMES = {"min": "max", "max": "min", "any": "all"}


@dataclass(frozen=True)
class Mutant:
    """One change: holder.field (or holder.field[index]) becomes `new`; None as new deletes a statement."""

    name: str
    holder: ast.AST
    field: str
    index: int | None
    new: Any

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        target, key = (vars(self.holder), self.field) if self.index is None else (
            getattr(self.holder, self.field), self.index)
        old = target[key]
        target[key] = self.new
        try:
            yield
        finally:
            target[key] = old


_made = itertools.count()


@cache
def sources() -> dict[str, str]:
    return {name: path.read_text() for name, path in FILES.items()}


@cache
def mutants() -> dict[str, tuple[ast.Module, Mutant]]:
    """Every mutant by name, with the tree that it changes."""
    found: dict[str, tuple[ast.Module, Mutant]] = {}
    for file, text in sources().items():
        tree = ast.parse(text)
        seen: Counter[str] = Counter()
        for function, holder, field, index, node in _nodes(tree, ""):
            for operator, what, new in _changes(node, holder):
                plain = f"{file}.{function}: {operator}: {what}"
                seen[plain] += 1
                name = plain if seen[plain] == 1 else f"{plain} #{seen[plain]}"
                located = ast.fix_missing_locations(ast.copy_location(new, node))
                found[name] = (tree, Mutant(name, holder, field, index, located))
    return found


def drawn() -> list[str]:
    """The mutants that are looked at: of each operator in turn, as calls outnumber everything else."""
    by_operator: dict[str, list[str]] = {}
    for name in sorted(mutants(), key=lambda name: hashlib.sha256(f"{SEED} {name}".encode()).digest()):
        by_operator.setdefault(name.split(": ")[1], []).append(name)
    turns = itertools.zip_longest(*(by_operator[operator] for operator in sorted(by_operator)))
    return [name for turn in turns for name in turn if name is not None][:DRAWN]


def _brief(node: ast.AST) -> str:
    first, *more = ast.unparse(node).splitlines()
    return first + " ..." * bool(more)


def _nodes(tree: ast.AST, function: str) -> Iterator[tuple[str, ast.AST, str, int | None, ast.AST]]:
    """(function, holder, field, index, node) of all that stands in a function's body, outside annotations."""
    for field, value in ast.iter_fields(tree):
        if field in ("args", "returns", "annotation", "decorator_list") and not isinstance(tree, ast.Call):
            continue  # default values and types
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
                continue  # a message is not behaviour that the kit judges
            inner = f"{function}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef) else function
            if function:
                yield function, tree, field, index, node
            yield from _nodes(node, inner)


def _changes(node: ast.AST, holder: ast.AST) -> Iterator[tuple[str, str, ast.AST]]:
    """(operator, what changes, the new node) for every change of one node."""

    def other(**fields: Any) -> Any:
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    def plain(operator: str, new: ast.AST) -> tuple[str, str, ast.AST]:
        return operator, f"{_brief(node)} -> {_brief(new)}", new

    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in COMPARISONS:
                yield plain("comparison", other(ops=[*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1 :]]))
    elif isinstance(node, ast.BoolOp):
        yield plain("and/or", other(op=ast.Or() if isinstance(node.op, ast.And) else ast.And()))
        for i, term in enumerate(node.values):
            rest = [*node.values[:i], *node.values[i + 1 :]]
            yield "term dropped", _brief(term), rest[0] if len(rest) == 1 else other(values=rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert, ast.USub)):
        yield plain("sign or not dropped", copy.deepcopy(node.operand))
    elif isinstance(node, ast.BinOp):
        if type(node.op) in ARITHMETIC:
            yield plain("arithmetic", other(op=ARITHMETIC[type(node.op)]()))
        if isinstance(node.op, ast.Sub):
            yield plain("operands swapped", other(left=node.right, right=node.left))
    elif isinstance(node, ast.Constant):
        values: list[Any] = []
        if isinstance(node.value, bool):
            values = [not node.value]
        elif isinstance(node.value, (int, float)):
            values = [node.value + 1, node.value - 1]
        elif node.value == "-inf":
            values = ["inf"]
        around = f" in {_brief(holder)}" if isinstance(holder, (ast.expr, ast.stmt)) else ""
        for value in values:
            yield "constant", f"{node.value!r} -> {value!r}{around}", other(value=value)
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in OTHER_NAMES:
            yield plain("function", other(func=ast.Name(OTHER_NAMES[node.func.id], ast.Load())))
        if isinstance(node.func, ast.Attribute) and node.func.attr in OTHER_NAMES:
            yield plain("function", other(func=ast.Attribute(node.func.value, OTHER_NAMES[node.func.attr],
                                                             ast.Load())))
        for i, (a, b) in enumerate(zip(node.args, node.args[1:])):
            if ast.unparse(a) != ast.unparse(b):
                yield ("arguments swapped", f"{_brief(a)}, {_brief(b)} of {_called(node)}",
                       other(args=[*node.args[:i], b, a, *node.args[i + 2 :]]))
        for i, a in enumerate(node.args):
            if isinstance(a, (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.IfExp)):
                yield ("argument is None", f"{_brief(a)} of {_called(node)}",
                       other(args=[*node.args[:i], ast.Constant(None), *node.args[i + 1 :]]))
    elif isinstance(node, ast.IfExp):
        yield plain("arms swapped", other(body=node.orelse, orelse=node.body))
    elif isinstance(node, ast.If):
        yield "condition negated", _brief(node), other(test=ast.UnaryOp(ast.Not(), node.test))
        yield "statement deleted", _brief(node), ast.Pass()
    elif isinstance(node, ast.Slice):
        if node.lower is not None:
            yield "bound dropped", f"{_brief(node.lower)} of {_brief(holder)}", other(lower=None)
        if node.upper is not None:
            yield "bound dropped", f"{_brief(node.upper)} of {_brief(holder)}", other(upper=None)
    elif isinstance(node, ast.Assign):
        # A name that is bound anew; one that is bound first would be missing later, which shows at once.
        names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        if names & used or not all(isinstance(t, (ast.Name, ast.Tuple)) for t in node.targets):
            yield "statement deleted", _brief(node), ast.Pass()
    elif isinstance(node, (ast.Continue, ast.Expr)) and not isinstance(getattr(node, "value", None), ast.Constant):
        yield "statement deleted", _brief(node), ast.Pass()


def _called(node: ast.Call) -> str:
    """The function that a call is of, without the expression a method stands on."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


def mutated(name: str) -> type[AttentionBackend]:
    """The torch backend with one mutant in it. Raises KeyError for a name that the source no longer gives."""
    tree, mutant = mutants()[name]
    file = name.partition(".")[0]
    with mutant.applied():
        changed = copy.deepcopy(tree)
    return made({file: changed})


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


@contextlib.contextmanager
def remembered(keep: int = 1) -> Iterator[None]:
    """Once for all mutants: the inputs of the last `keep` cases, the oracle's and eager's answers, torch's build."""
    from hal import oracle
    from hal.conformance import runner
    from hal.host import Host

    kept: dict[str, dict[str, Any]] = {}
    now: dict[Any, Any] = {}
    maker, eager = runner.Maker, runner.eager
    build = Host().torch_build()

    def made_once(case: Case, *args: Any) -> Any:
        nonlocal now
        if case.name not in kept:
            while len(kept) >= keep:
                del kept[next(iter(kept))]
            kept[case.name] = {"inputs": maker(case, *args).make()}
        now = kept[case.name]
        return types.SimpleNamespace(make=lambda: now["inputs"])

    def answered_once(function: Any) -> Any:
        def answer(**a: Any) -> Any:
            caches = [name for name in ("k_cache", "v_cache") if name in a]
            if "want" not in now:
                now["want"] = function(**a), {name: a[name].clone() for name in caches}
            for name in caches:  # what the call appends
                a[name].copy_(now["want"][1][name])
            return now["want"][0]

        return answer

    def eager_once(sequence: Any, how: Any, dtype: Any) -> Any:
        key = id(sequence), dtype  # the sequence is one of now["inputs"]
        if key not in now:
            now[key] = eager(sequence, how, dtype)
        return now[key]

    with (mock.patch.object(Host, "torch_build", return_value=build), mock.patch.object(runner, "Maker", made_once),
          mock.patch.object(runner, "eager", eager_once),
          mock.patch.object(oracle, "flash_attn_with_kvcache", answered_once(oracle.flash_attn_with_kvcache)),
          mock.patch.object(oracle, "flash_attn_varlen_func", answered_once(oracle.flash_attn_varlen_func))):
        yield


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
