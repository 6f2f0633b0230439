"""The import system's side of the stand-ins: modules, specs and distribution metadata, and nothing else."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from hal.compat.stand_ins import StandIn, left_out

if TYPE_CHECKING:
    from hal.compat.metadata import Distribution

Patch = Callable[[ModuleType], None]


class Finder(importlib.abc.MetaPathFinder):
    """Answers for the modules and distributions of some stand-ins, first in sys.meta_path.

    patches: module of another package -> what is done to it right after it was executed.
    """

    def __init__(self, stand_ins: Sequence[StandIn], patches: Mapping[str, Patch]) -> None:
        self.stand_ins = tuple(stand_ins)
        self.tops = {top: stand_in for stand_in in stand_ins for top in stand_in.tops}
        self.patches = patches

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """None for modules of the real package that are not answered for; where one is being imported, that raises
        ModuleNotFoundError with the reason."""
        if name in self.patches:
            return self._patched(name, path, target)
        top = name.partition(".")[0]
        stand_in = self.tops.get(top)
        if stand_in is None:
            return None
        if name not in stand_in.modules:
            if not _importing():
                return None
            # Not `name`: the import system keeps quiet about a submodule of that name in `from package import it`.
            raise ModuleNotFoundError(left_out(name), name=top)
        source = importlib.util.find_spec(stand_in.modules[name])
        assert source is not None
        spec = importlib.machinery.ModuleSpec(name, Loader(stand_in, name), origin=source.origin)
        spec.has_location = True
        # Every one has a path, so that `from it import what_is_not_there` comes here and learns why.
        spec.submodule_search_locations = []
        return spec

    def _patched(self, name: str, path: Sequence[str] | None,
                 target: ModuleType | None) -> importlib.machinery.ModuleSpec | None:
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # Of this one loader object, which serves this one module.
            spec.loader.exec_module = _then(spec.loader.exec_module, self.patches[name])  # type: ignore[assignment]
        return spec

    def find_distributions(self, context: Any = None) -> Iterable[Distribution]:
        """The stand-ins as installed distributions; not where a path is asked about, on which they are not."""
        from hal.compat.metadata import Distribution

        asked = vars(context) if context is not None else {}
        if "path" in asked:
            return
        name = asked.get("name")
        for stand_in in self.stand_ins:
            if name is None or _plain(name) == _plain(stand_in.distribution):
                yield Distribution(stand_in)


def _importing() -> bool:
    """Whether the import system asks on behalf of an import, not of importlib.util.find_spec: it asks both through
    _find_spec (importlib/_bootstrap.py), and hooks of others may stand between."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "_find_spec" and frame.f_globals.get("__name__") == "importlib._bootstrap":
            asking = frame.f_back
            return asking is not None and asking.f_code.co_name == "_find_and_load_unlocked"
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _then(execute: Patch, patch: Patch) -> Patch:
    def exec_module(module: ModuleType) -> None:
        execute(module)
        patch(module)

    return exec_module


class Loader(importlib.abc.Loader):
    """Makes a module that has everything of one of HAL's."""

    hal_compat = True  # hal.host looks for real packages, and knows by this that it has not found one

    def __init__(self, stand_in: StandIn, name: str) -> None:
        self.stand_in, self.name = stand_in, name

    def exec_module(self, module: ModuleType) -> None:
        modules, source = self.stand_in.modules, self.stand_in.modules[self.name]
        own = vars(importlib.import_module(source))
        module.__dict__.update({name: value for name, value in own.items() if f"{source}.{name}" not in sys.modules
                                and (not name.startswith("__") or name in _COPIED)})
        module.__dict__["__getattr__"] = self._attribute
        for name in modules:  # what HAL's module imported of its submodules, as the real one does
            if name.rpartition(".")[0] == self.name and modules[name] in sys.modules:
                importlib.import_module(name)

    def _attribute(self, name: str) -> NoReturn:
        """The module's __getattr__: why it has no such attribute."""
        raise AttributeError(left_out(f"{self.name}.{name}"), name=name)


_COPIED = ("__all__", "__doc__", "__version__")


def _plain(distribution: str) -> str:
    return distribution.lower().replace("-", "_").replace(".", "_")
