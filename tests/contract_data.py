"""Vendor signatures from ci/contracts/, and the checks of a call and of what an adapter relies on against them.

Reads data only: nothing of HAL and nothing of a vendor is imported here, so emulators may use it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "ci" / "contracts"
KINDS = {str(kind.name).lower(): kind for kind in inspect._ParameterKind}
_UNNAMED = ("var_positional", "var_keyword")


@dataclass(frozen=True)
class Parameter:
    """default: source text, None where the caller must pass it. type: of op schemas alone."""

    name: str
    kind: str
    default: str | None = None
    type: str | None = None


Signature = tuple[Parameter, ...]


@dataclass(frozen=True)
class Symbol:
    """A default that is no literal, by its source text ("torch.float16")."""

    text: str


@dataclass(frozen=True)
class Contract:
    """One vendor package. functions: name -> release -> overloads (most have one); absent where it does not exist."""

    package: str
    releases: tuple[str, ...]  # oldest first
    functions: Mapping[str, Mapping[str, tuple[Signature, ...]]]

    def overloads(self, function: str, release: str) -> tuple[Signature, ...]:
        """Raises KeyError with what there is for an unknown function or release; () where it does not exist."""
        if function not in self.functions:
            raise KeyError(f"{function} has no contract in {self.package}.json (there: {', '.join(self.functions)})")
        if release not in self.releases:
            raise KeyError(f"{self.package} {release} has no contract (there: {', '.join(self.releases)})")
        return self.functions[function].get(release, ())


def packages() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "sources")


@functools.cache
def load(package: str) -> Contract:
    path = FOLDER / f"{package}.json"
    if not path.is_file():
        raise KeyError(f"{package} has no contract (there: {', '.join(packages())})")
    return parse(json.loads(path.read_text()))


def parse(data: Mapping[str, Any]) -> Contract:
    """The contents of a contract file."""
    functions: dict[str, dict[str, tuple[Signature, ...]]] = {}
    for function, entries in data["functions"].items():
        rows = functions[function] = {}
        for entry in entries:
            signatures = (op_schema(entry["schema"]),) if "schema" in entry else tuple(
                tuple(Parameter(*row) for row in signature) for signature in entry["signatures"])
            rows |= {release: signatures for release in entry["releases"]}
    return Contract(data["package"], tuple(data["releases"]), functions)


def op_schema(text: str) -> Signature:
    """A torch op's schema, by torch's own parser."""
    import torch

    def parameter(a: Any) -> Parameter:
        default = repr(a.default_value) if a.has_default_value() else None
        return Parameter(a.name, "keyword_only" if a.kwarg_only else "positional_or_keyword", default, str(a.type))

    return tuple(parameter(a) for a in torch._C.parse_schema(text).arguments)


def value_of(default: str) -> Any:
    """A default's value; a Symbol where it is no literal."""
    try:
        return ast.literal_eval(default)
    except ValueError:
        return Symbol(default)


# --- one call ---

def python_signature(signature: Signature) -> inspect.Signature:
    return inspect.Signature([
        inspect.Parameter(p.name, KINDS[p.kind], default=inspect.Parameter.empty if p.default is None
                          else value_of(p.default)) for p in signature])


def bind(signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """(every parameter's value, the names that were passed). Raises TypeError as the vendor's function would."""
    bound = python_signature(signature).bind(*args, **kwargs)
    passed = set(bound.arguments)
    for p in signature:
        if p.type is not None and p.name in passed:
            _check_type(p, bound.arguments[p.name])
    bound.apply_defaults()
    return dict(bound.arguments), passed


def _check_type(p: Parameter, value: Any) -> None:
    """What torch's dispatcher would refuse: its ops convert no lists, no numbers and no tensors."""
    import torch

    kind = str(p.type)
    bare = kind.removeprefix("Optional[").rstrip("]") if kind.startswith("Optional") else kind
    if value is None:
        fits = kind.startswith("Optional")
    elif "List[" in kind:
        element: Any = torch.Tensor if "Tensor" in kind else int
        fits = isinstance(value, (list, tuple)) and all(isinstance(v, element) and not isinstance(v, bool)
                                                        for v in value)
    elif "Tensor" in kind:
        fits = isinstance(value, torch.Tensor)
    else:
        fits = type(value).__name__ == bare
    if not fits:
        raise TypeError(f"argument {p.name} must be {kind}, not {value!r}")


# --- what an adapter relies on ---

@dataclass(frozen=True)
class Reliance:
    """How one adapter calls one vendor function: the parameters by position in every call, by keyword in every
    call, by keyword where the caller gave them; and the defaults it counts on wherever it does not pass one."""

    positional: tuple[str, ...] = ()
    always: frozenset[str] = frozenset()
    sometimes: frozenset[str] = frozenset()
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def passes(self) -> frozenset[str]:
        return self.always | self.sometimes | set(self.positional)


@dataclass(frozen=True)
class Finding:
    """One way in which a release is not what an adapter relies on. check: one of CHECKS."""

    check: str
    parameter: str
    text: str


CHECKS = {
    "absent": "a parameter that is passed by keyword does not exist",
    "position": "another parameter stands where one is passed by position",
    "required": "a parameter without a default is not always passed",
    "default": "a default that is relied on is another",
    "unknown": "there is a parameter that nobody has looked at",
}


def differences(reliance: Reliance, overloads: tuple[Signature, ...]) -> list[Finding]:
    """What is not as relied on, by the overload that is nearest; [] where one fits."""
    if not overloads:
        return [Finding("absent", "", "the function does not exist")]
    return min((_differences(reliance, signature) for signature in overloads), key=len)


def _differences(reliance: Reliance, signature: Signature) -> list[Finding]:
    found = []
    named = {p.name: p for p in signature if p.kind not in _UNNAMED}
    by_position = [p.name for p in signature if p.kind.startswith("positional")]
    rest = next((p.name for p in signature if p.kind == "var_positional"), "nothing")
    for index, name in enumerate(reliance.positional):
        there = by_position[index] if index < len(by_position) else rest
        if there != name:
            found.append(Finding("position", name, f"{name} is passed at position {index}, where {there} is"))
    for name in sorted(reliance.always | reliance.sometimes):
        if name not in named or named[name].kind == "positional_only":
            found.append(Finding("absent", name, f"{name} is passed, which there is not"))
    sure = reliance.always | set(reliance.positional)
    for name, p in named.items():
        if name in sure:
            continue
        if p.default is None:
            found.append(Finding("required", name, f"{name} is not always passed and has no default"))
        elif name not in reliance.defaults and name not in reliance.sometimes:
            found.append(Finding("unknown", name, f"{name}={p.default} is a parameter nobody has looked at"))
        elif reliance.defaults.get(name) != p.default:
            found.append(Finding("default", name, f"{name} has default {p.default}, relied on is "
                                                  f"{reliance.defaults.get(name)}"))
    return found
