"""Every known backend by name, the names users already type, and registration."""

from __future__ import annotations

import difflib
import importlib
from functools import cache

from hal.backend import AttentionBackend
from hal.backends import ALIASES, BACKENDS
from hal.declaration import backend_problem

_registered: dict[str, str | type[AttentionBackend]] = {}


def register_backend(name: str, backend: str | type[AttentionBackend]) -> None:
    """Add a backend under `name`: a class, or "package.module:Class", imported on first use.

    Raises ValueError when the name or an alias of that name exists already. Out of tree, an entry point in
    the group `hal.backends` does the same without a call.
    """
    if name in BACKENDS or name in ALIASES or name in _registered or name in _plugins():
        raise ValueError(f"backend name {name!r} is taken (known: {', '.join(names())})")
    if not isinstance(backend, str):
        _check(name, backend)
    _registered[name] = backend


def unregister_backend(name: str) -> None:
    """Take back a register_backend call. Raises ValueError for a name that was not registered by one."""
    if name not in _registered:
        raise ValueError(f"backend {name!r} was not registered (registered: {', '.join(_registered) or 'none'})")
    del _registered[name]


def _plugins() -> dict[str, type[AttentionBackend]]:
    from hal.plugins import load_group

    return dict(load_group("hal.backends").loaded)


def plugin_failures() -> dict[str, str]:
    """Plugins and registered backends that can't be used, name -> reason."""
    from hal.plugins import load_group

    failures = dict(load_group("hal.backends").failed)
    for name in _registered:
        try:
            get(name)
        except ValueError as error:
            failures[name] = str(error)
    for name, backend in _plugins().items():
        if name in BACKENDS or name in ALIASES:
            failures[name] = f"plugin {name}: the name is taken by a backend or alias of HAL"
        elif not (isinstance(backend, type) and issubclass(backend, AttentionBackend)):
            failures[name] = f"plugin {name} is no subclass of hal.AttentionBackend but {backend!r}"
        elif getattr(backend, "name", None) != name:
            failures[name] = f"plugin {name}: its class says name = {getattr(backend, 'name', None)!r}"
        elif backend_problem(backend):
            failures[name] = f"plugin {name} is declared wrongly: {backend_problem(backend)}"
    return failures


def names() -> list[str]:
    """Every usable backend name: built in, registered, then plugins."""
    failures = plugin_failures()
    return [*BACKENDS, *(name for name in dict.fromkeys([*_registered, *_plugins()]) if name not in failures)]


def get(name: str) -> type[AttentionBackend]:
    """The class of a backend name. Raises ValueError for an unknown one, with the known names."""
    if name in BACKENDS:
        return _load(BACKENDS[name])
    if name in _registered:
        backend = _registered[name]
        return _check(name, _load(backend) if isinstance(backend, str) else backend)
    failures = plugin_failures()
    if name in failures:
        raise ValueError(f"backend {name!r} can't be used: {failures[name]}")
    if name in _plugins():
        return _plugins()[name]
    raise ValueError(unknown(name))


def resolve(name: str) -> list[str]:
    """The backend names that a name or alias stands for, in order. Raises ValueError for an unknown one.

    A backend's own name may be an alias too: "ascend" is `ascend`, `ascend_mla` for a model with MLA, and
    `ascend_310p` on that chip.
    """
    if name in names() or name in plugin_failures():
        get(name)
        return list(dict.fromkeys([name, *ALIASES.get(name, ())]))
    if name in ALIASES:
        return list(ALIASES[name])
    raise ValueError(unknown(name))


def unknown(name: str) -> str:
    """The message for a name that is neither a backend nor an alias."""
    known = list(dict.fromkeys([*names(), *ALIASES]))
    close = difflib.get_close_matches(str(name), known, 1)
    return (f"attention backend {name!r} is not known{f', did you mean {close[0]!r}?' if close else ''} "
            f"(backends: {', '.join(names())}; aliases: {', '.join(ALIASES)})")


def aliases_of(name: str) -> list[str]:
    """What users of other systems type for a backend, beside its name."""
    return [alias for alias, backends in ALIASES.items() if name in backends and alias != name]


@cache
def _load(target: str) -> type[AttentionBackend]:
    module, _, attribute = target.partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"backend {target!r} can't be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(backend, type):
        raise ValueError(f"backend {target!r} is {backend!r}, expected a class")
    return backend


def _check(name: str, backend: object) -> type[AttentionBackend]:
    if not (isinstance(backend, type) and issubclass(backend, AttentionBackend)):
        raise ValueError(f"backend {name!r} must be a subclass of hal.AttentionBackend, got {backend!r}")
    if getattr(backend, "name", None) != name:
        raise ValueError(f"backend {name!r}: its class says name = {getattr(backend, 'name', None)!r}")
    problem = backend_problem(backend)
    if problem:
        raise ValueError(f"backend {name!r} is declared wrongly: {problem}")
    return backend
