"""Plugins by entry point (importlib.metadata). HAL_PLUGINS filters by name before anything is imported."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hal import env

logger = logging.getLogger("hal")
GROUPS = ("hal.backends", "hal.platforms")


@dataclass
class Plugins:
    """What one entry-point group gave: name -> object, and name -> reason for those that failed."""

    loaded: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


_loading = threading.RLock()


def load_group(group: str) -> Plugins:
    """The plugins of one group, loaded once per process. A failure is a reason: no crash, no silence."""
    wanted = env.get("HAL_PLUGINS")
    with _loading:
        return _load(group, wanted)


@cache
def _entries() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """group -> its entry points, read once: every installed distribution's metadata is opened for it."""
    found = importlib.metadata.entry_points()
    return {group: list(found.select(group=group)) for group in GROUPS}


@cache
def _load(group: str, wanted: tuple[str, ...] | None) -> Plugins:
    plugins = Plugins()
    entries = [entry for entry in _entries()[group] if wanted is None or entry.name in wanted]
    times = Counter(entry.name for entry in entries)
    for entry in entries:
        if times[entry.name] > 1:
            values = ", ".join(sorted(e.value for e in entries if e.name == entry.name))
            plugins.failed[entry.name] = f"{times[entry.name]} installed plugins are named {entry.name!r} " \
                                         f"in {group} ({values}): none is used"
            continue
        try:
            plugins.loaded[entry.name] = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything; it becomes the reason
            plugins.failed[entry.name] = f"plugin {entry.name} ({entry.value}) did not load: " \
                                         f"{type(error).__name__}: {error}"
    # A name counts as known when either group has it: HAL_PLUGINS filters both.
    known = {entry.name for group_entries in _entries().values() for entry in group_entries}
    for name in wanted or ():
        if name not in known:
            plugins.failed[name] = f"HAL_PLUGINS names {name!r}, which no installed package offers " \
                                   f"(offered: {', '.join(sorted(known)) or 'none'})"
    for reason in plugins.failed.values():
        logger.warning("%s", reason)
    return plugins
