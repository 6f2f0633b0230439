"""What a backend or platform plugin must declare to be asked at all. A mistake is a reason, found before any use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hal.capabilities import CALLS, FEATURES, GRAPH_LEVELS, LEVELS, HeadDims, PageSizes
from hal.config import ATTENTION_TYPES, DTYPES, KV_CACHE_DTYPES
from hal.packages import Package

PHASES = ("prefill", "decode")


def backend_problem(cls: Any) -> str | None:
    """What is wrong with a backend class's declarations, None where nothing is."""
    for name, allowed in (("dtypes", DTYPES), ("kv_cache_dtypes", KV_CACHE_DTYPES), ("phases", PHASES),
                          ("attention_types", ATTENTION_TYPES), ("prefill_with", None), ("sources", None),
                          ("evidence", None)):
        problem = _names(name, getattr(cls, name), tuple, allowed)
        if problem:
            return problem
    for name, known in (("features", FEATURES), ("requires", FEATURES), ("calls", CALLS)):
        problem = _names(name, getattr(cls, name), (set, frozenset), tuple(known))
        if problem:
            return problem
    if not isinstance(cls.platforms, Mapping):
        return f"platforms is {cls.platforms!r}, expected a dict of kind -> archs"
    for kind, archs in cls.platforms.items():
        problem = _names(f"platforms[{kind!r}]", archs, tuple, None)
        if problem:
            return problem
    for name, kind_of in (("head_dims", HeadDims), ("page_sizes", PageSizes), ("refusals", Mapping),
                          ("levels", Mapping), ("targets", Mapping), ("kv_layout", str), ("reads_cache", bool),
                          ("adapter", bool), ("nan_safe_tail", bool)):
        if not isinstance(getattr(cls, name), kind_of):
            return f"{name} is {getattr(cls, name)!r}, expected {kind_of.__name__}"
    if cls.reads_cache and cls.page_sizes.preferred not in cls.page_sizes:
        return f"page_sizes.preferred is {cls.page_sizes.preferred}, which it does not support ({cls.page_sizes})"
    if not isinstance(cls.packages, tuple) or not all(isinstance(package, Package) for package in cls.packages):
        return f"packages is {cls.packages!r}, expected a tuple of hal.packages.Package"
    most = cls.max_decode_query_len
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        return f"max_decode_query_len is {most!r}, expected a whole number >= 1, or None for any"
    padding = cls.graph_padding_length
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        return f"graph_padding_length is {padding!r}, expected a whole number >= 0"
    if cls.graph_level not in GRAPH_LEVELS:
        return f"graph_level is {cls.graph_level!r}, expected one of: {', '.join(GRAPH_LEVELS)}"
    for name in ("head_dim_pairs", "mla_prefill"):
        pairs = getattr(cls, name)
        if not (pairs is None and name == "head_dim_pairs") and not (isinstance(pairs, tuple) and all(
                isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)):
            return f"{name} is {pairs!r}, expected a tuple of (head_dim, head_dim_v)"
    missing = [phase for phase in cls.phases if not isinstance(cls.targets.get(phase), str)]
    if missing:
        return f"targets has no vendor function for {', '.join(missing)} (it has: {', '.join(cls.targets) or 'none'})"
    wrong = [level for level in cls.levels.values() if level not in LEVELS]
    if wrong:
        return f"levels has {wrong[0]!r}, expected one of: {', '.join(LEVELS)}"
    return None


def platform_problem(module: Any) -> str | None:
    """What is wrong with a platform module, None where nothing is."""
    for name in ("KIND", "TORCH_DEVICE"):
        if not isinstance(getattr(module, name, None), str):
            return f"{name} is {getattr(module, name, None)!r}, expected a str"
    problem = _names("ARCHS", getattr(module, "ARCHS", None), tuple, None)
    if problem:
        return problem
    for name in ("probe", "priority"):
        if not callable(getattr(module, name, None)):
            return f"{name} is {getattr(module, name, None)!r}, expected a function"
    for name, allowed in (("LACKS", DTYPES), ("NON_CAUSAL", None)):  # optional: arch -> dtypes, arch -> backends
        data = getattr(module, name, {})
        if not isinstance(data, Mapping) or not set(data) <= set(module.ARCHS):
            return f"{name} is {data!r}, expected a dict whose keys are some of: {', '.join(module.ARCHS)}"
        for arch, names in data.items():
            problem = _names(f"{name}[{arch!r}]", names, tuple, allowed)
            if problem:
                return problem
    return None


def _names(name: str, value: Any, kind: Any, allowed: tuple[str, ...] | None) -> str | None:
    """A collection of str, of the right type: a lone str would be taken letter by letter."""
    expected = "a tuple of str" if kind is tuple else "a set of str"
    if not isinstance(value, kind) or not all(isinstance(item, str) for item in value):
        return f"{name} is {value!r}, expected {expected}"
    unknown = sorted(set(value) - set(allowed)) if allowed is not None else []
    return f"{name} has {unknown[0]!r}, expected some of: {', '.join(allowed or ())}" if unknown else None
