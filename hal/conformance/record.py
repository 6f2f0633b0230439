"""What a verification run leaves: counts per feature, what declared words stayed unproven, and the JSON record."""

from __future__ import annotations

import ast
import datetime
import hashlib
import importlib.util
import os
import platform as python_platform
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hal
from hal import registry
from hal.backend import AttentionBackend
from hal.capabilities import CALLS, FEATURES
from hal.conformance.grid import HEAD_DIMS, PAGE_SIZES, UNEQUAL
from hal.conformance.runner import FAILED, PASSED, REFUSED, Result
from hal.host import Host
from hal.platform import Platform

ENDS = (PASSED, FAILED, REFUSED)


def declared(backend: type[AttentionBackend]) -> list[str]:
    """The words of a backend's declarations, each of which wants a passing case (Case.features uses the same)."""
    words = [*sorted(backend.features), *sorted(backend.calls)]
    words += [f"phase {p}" for p in backend.phases] + [f"dtype {d}" for d in backend.dtypes]
    words += [f"kv_cache_dtype {d}" for d in backend.kv_cache_dtypes]
    words += [f"attention_type {t}" for t in backend.attention_types]
    words += [f"mla_prefill {d}/{d_v}" for d, d_v in backend.mla_prefill]
    words += ["max_decode_query_len"] if backend.max_decode_query_len != 1 and "decode" in backend.phases else []
    if backend.reads_cache:
        words += [f"page_size {n}" for n in PAGE_SIZES if n in backend.page_sizes]
    if "mla" not in backend.requires:
        words += [f"head_dim {n}" for n in HEAD_DIMS if n in backend.head_dims]
    pairs = UNEQUAL if backend.head_dim_pairs is None else backend.head_dim_pairs
    words += [f"head_dim {d}/{d_v}" for d, d_v in pairs]
    return words


def unproven(backend: type[AttentionBackend], results: Sequence[Result]) -> dict[str, str]:
    """Declared word -> why no case proves it. A word that selection refuses here by name is not declared here."""
    missing, other = {}, FEATURES.keys() - backend.features
    for word in declared(backend):
        cases = [r for r in results if word in r.features]
        if any(r.result == PASSED for r in cases):
            continue
        # What is refused beside a feature that is not declared tells nothing about this word.
        cases = [r for r in cases if r.result != REFUSED or not other.intersection(r.features)]
        refused = [r for r in cases if r.result == REFUSED]
        if refused and len(refused) == len(cases) and all(
                any(f"{reason} ".startswith(_said(word)) for reason in r.why.split("; ")) for r in refused):
            continue
        if not cases:
            missing[word] = "no case asks for it"
        elif refused:
            missing[word] = f"declared, then refused: {refused[0].why}"
        else:
            missing[word] = f"every case failed, the first: {cases[0].why}"
    return missing


def _said(word: str) -> str:
    """How a reason about a declared word begins (hal.backend)."""
    if word in CALLS:  # one of several packages may not take it (AttentionBackend.calls_of)
        return f"{CALLS[word]} "
    kind, _, value = word.partition(" ")
    if "/" not in value:
        return f"{word} "
    begin, link = ("MLA prefill with head_dim", "and") if kind == "mla_prefill" else ("head_dim", "with")
    d, d_v = value.split("/")
    return f"{begin} {d} {link} head_dim_v {d_v} "


def summary(backend: type[AttentionBackend], results: Sequence[Result], whole: bool,
            code: dict[str, str] | None = None) -> dict[str, Any]:
    """One backend of the record. whole: the grid was run to its end, so that unproven words are failures. code: files()
    from before the run (default: from now)."""
    def count(some: Iterable[Result]) -> dict[str, int]:
        found = Counter(r.result for r in some)
        return {end: found[end] for end in ENDS}

    words = list(dict.fromkeys(word for r in results for word in r.features))
    cases = [{"case": r.case, "result": r.result} | ({"why": r.why} if r.result != PASSED else {
        "error": float(f"{r.error:.3g}"), "bound": float(f"{r.bound:.3g}")}) for r in results]
    return {**count(results), "by_feature": {word: count(r for r in results if word in r.features) for word in words},
            "unproven": unproven(backend, results) if whole else {}, "whole": whole,
            "files": files(backend) if code is None else code, "cases": cases}


def versions() -> dict[str, str]:
    """Releases of HAL, Python, torch and every vendor package that is installed."""
    names = {"torch", "torch_npu", "torch_musa", "triton"}
    names |= {package.distribution for name in registry.names() for package in registry.get(name).packages}
    host = Host()
    found = {name: host.version(name) for name in sorted(names)}
    return {"attention-hal": hal.__version__, "python": python_platform.python_version(),
            **{name: version for name, version in found.items() if version}}


def source_hash() -> str:
    """SHA-256 over every Python file of the installed package, so that a record names the code it is about."""
    root = Path(hal.__file__).parent
    total = hashlib.sha256()
    # hal/backends and hal/platforms are links in a checkout, which rglob does not follow.
    files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    for path in sorted((p for p in files if p.suffix == ".py"), key=lambda p: p.relative_to(root).as_posix()):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def files(backend: type[AttentionBackend]) -> dict[str, str]:
    """File, relative to the hal package -> SHA-256 of its text: the code that a record of this backend is about.

    The modules of its classes and what they import, wherever in the text, of hal.backends and hal.kernels; the other
    sources in a kernel's folder; hal/kv_cache.py where its functions are used. A module out of tree stands under its
    dotted name. A module that is imported by a computed name is not seen.
    """
    found: dict[str, Path] = {}
    todo = [cls.__module__ for cls in backend.__mro__ if issubclass(cls, AttentionBackend)
            and cls is not AttentionBackend]
    if any(getattr(backend, name).__func__ is getattr(AttentionBackend, name).__func__
           for name in ("new_kv_cache", "write_kv_cache")):
        todo.append("hal.kv_cache")
    while todo:
        module = todo.pop()
        path = _file(module)
        if path is None or _key(module, path) in found:
            continue
        found[_key(module, path)] = path
        todo += _imports(module, path)
        if module.startswith("hal.kernels."):
            todo.append(module.rpartition(".")[0])  # its __init__.py runs too
            others = [p for p in path.parent.iterdir() if p.suffix in _SOURCES]
            found |= {p.relative_to(_ROOT).as_posix(): p for p in others}
    return {key: hashlib.sha256(found[key].read_text(encoding="utf-8").encode()).hexdigest() for key in sorted(found)}


_ROOT = Path(hal.__file__).parent
_SOURCES = (".c", ".cc", ".cpp", ".cu", ".h", ".hpp")


def _file(module: str) -> Path | None:
    """A module's file; None for a package without one, and for a class typed into a prompt."""
    if module.partition(".")[0] != "hal":
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file else None
    base = _ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _key(module: str, path: Path) -> str:
    return path.relative_to(_ROOT).as_posix() if module.partition(".")[0] == "hal" else module


def _imports(module: str, path: Path) -> list[str]:
    """What a module imports of hal.backends, hal.kernels and hal.kv_cache; names of modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names += [name if name.startswith("hal.") and _file(name) else base for name in inner]
    return [name for name in names
            if name == "hal.kv_cache" or f"{name}.".startswith(("hal.backends.", "hal.kernels."))]


def emulator_files(root: Path, emulator: str) -> dict[str, str]:
    """File, relative to root -> SHA-256 of its text: the emulator that a record was made with.

    Its file, and the modules of that folder which it imports, wherever in the text, and so on.
    """
    found: dict[str, str] = {}
    todo = [root / emulator]
    while todo:
        path = todo.pop()
        key, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        if key in found:
            continue
        found[key] = hashlib.sha256(text.encode()).hexdigest()
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), path.parent.name)
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            inside = [name.split(".")[1] for name in names if name.startswith(f"{path.parent.name}.")]
            todo += [file for name in inside if (file := path.with_name(f"{name}.py")).is_file()]
    return dict(sorted(found.items()))


def record(device: Platform, backends: dict[str, dict[str, Any]], mode: str, seed: int, driver: str,
           seconds: float, source: str | None = None) -> dict[str, Any]:
    """The JSON of `hal verify --json` (design.md section 5), and what evidence needs beside it.

    source: source_hash() from before the run (default: from now). The date is that of the run's begin, in UTC.
    """
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=seconds)
    return {"platform": device.to_dict(), "driver": driver, "versions": versions(),
            "source": source_hash() if source is None else source,
            "date": begin.strftime("%Y-%m-%d"), "mode": mode, "seed": seed,
            "seconds": round(seconds, 1), "backends": backends}
