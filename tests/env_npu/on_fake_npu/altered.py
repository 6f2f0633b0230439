"""Ascend's backends with some text or a tree of their source replaced, for as long as a test asks."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import hal.backends
from hal import registry

FOLDER = Path(hal.backends.__file__ or "").parent
# In the order of their imports.
FILES = ("ascend_rules", "ascend_plans", "ascend_fused", "ascend_cache", "ascend", "ascend_mla", "ascend_310p_rules",
         "ascend_310p_cache", "ascend_310p_plans", "ascend_310p")
Trees = Mapping[str, "str | ast.Module"]


def source(file: str) -> str:
    return (FOLDER / f"{file}.py").read_text()


def edited(*edits: tuple[str, str, str]) -> dict[str, str]:
    """(file, before, after), each of which must be there once -> file -> text."""
    texts: dict[str, str] = {}
    for file, before, after in edits:
        text = texts.get(file, source(file))
        assert text.count(before) == 1, f"{before!r} is {text.count(before)} times in {file}.py"
        texts[file] = text.replace(before, after)
    return texts


@contextmanager
def altered(changed: Trees) -> Iterator[None]:
    """The backends anew, with these files changed."""
    names = [f"hal.backends.{file}" for file in FILES]
    for name in names:
        importlib.import_module(name)
    before = {name: sys.modules[name] for name in names}
    for name in names:
        del sys.modules[name]
    try:
        for file, name in zip(FILES, names):
            if file in changed:
                module = sys.modules[name] = ModuleType(name)
                exec(compile(changed[file], f"{file}.py (changed)", "exec", dont_inherit=True), module.__dict__)
                setattr(hal.backends, file, module)
            else:
                importlib.import_module(name)
        registry._load.cache_clear()
        yield
    finally:
        # No other module may leave sys.modules: some of torch's can't be imported twice.
        for file, name in zip(FILES, names):
            sys.modules[name] = before[name]
            setattr(hal.backends, file, before[name])
        registry._load.cache_clear()
