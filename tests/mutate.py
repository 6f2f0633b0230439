"""Mutants: every small change of some source files, by name; and a memory that makes many of them quick to ask.

A mutant's name is the function it is in, the operator, the source text that changes, and its occurrence among equals:
it survives edits elsewhere. Some are drawn by the hash of their names, so an edit changes the draw by little.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import itertools
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hal.conformance.case import Case

SEED = "1"  # what the hashes are salted with

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


def mutants(files: Mapping[str, Path]) -> dict[str, tuple[ast.Module, Mutant]]:
    """Every mutant of the files (module -> source) by name, with the tree that it changes."""
    found: dict[str, tuple[ast.Module, Mutant]] = {}
    for file, path in files.items():
        tree = ast.parse(path.read_text())
        seen: Counter[str] = Counter()
        for function, holder, field, index, node in _nodes(tree, ""):
            for operator, what, new in _changes(node, holder):
                plain = f"{file}.{function}: {operator}: {what}"
                seen[plain] += 1
                name = plain if seen[plain] == 1 else f"{plain} #{seen[plain]}"
                located = ast.fix_missing_locations(ast.copy_location(new, node))
                found[name] = (tree, Mutant(name, holder, field, index, located))
    return found


def drawn(names: Iterable[str], count: int, seed: str = SEED) -> list[str]:
    """The `count` that are looked at: of each operator in turn, as calls outnumber everything else."""
    by_operator: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        by_operator.setdefault(name.split(": ")[1], []).append(name)
    turns = itertools.zip_longest(*(by_operator[operator] for operator in sorted(by_operator)))
    return [name for turn in turns for name in turn if name is not None][:count]


def tree_of(found: Mapping[str, tuple[ast.Module, Mutant]], name: str) -> ast.Module:
    """A copy of the tree with one mutant in it. Raises KeyError for a name that the source no longer gives."""
    tree, mutant = found[name]
    with mutant.applied():
        return copy.deepcopy(tree)


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
