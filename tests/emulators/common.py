"""What every emulator of a vendor package is made of: real signatures, a record of calls, refusals, installation.

    vendor = Vendor("flash-attn", "2.8.3.post1", {KVCACHE: kvcache, VARLEN: varlen}, refusals={VARLEN: (Refusal(...),)})
    with vendor.installed():
        import flash_attn.flash_attn_interface      # modules whose functions have the release's own signatures
        importlib.metadata.version("flash-attn")    # "2.8.3.post1"
    vendor.calls                                     # every call, with its arguments bound

An emulator is such a vendor with a semantic function for each of its functions, written from the vendor's documents and
source. A semantic gets the bound arguments as attributes (`a.q`, `a.causal`), every default filled in.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import contract_data

from emulators.devices import tag_of

Semantic = Callable[[types.SimpleNamespace], Any]


class Call(NamedTuple):
    """One call of a vendor function. function: its dotted name. arguments: all, defaults included. passed: the names
    the caller gave. args, kwargs: as they came. devices: "cpu" or the tag of each tensor argument, by name."""

    function: str
    arguments: dict[str, Any]
    passed: frozenset[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    devices: dict[str, str]


@dataclass(frozen=True)
class Refusal:
    """A documented refusal: the call raises `error(message)` where `when(arguments)` is true. source: where the vendor
    says so. Checked before the semantic function, in order; the call is recorded all the same."""

    when: Callable[[types.SimpleNamespace], bool]
    error: type[Exception]
    message: str
    source: str


@dataclass
class Vendor:
    """A vendor package at one release, with the functions of its contract and none other.

    semantics: dotted name -> what it computes; a function without one raises NotImplementedError when called, after its
    arguments were bound. A name "module.Class.method" makes a class; `a.self` is the object, whose attributes are the
    semantics' to use. package, release: a file and a release of ci/contracts. distribution: the name in the metadata
    where it is not the package's; version: likewise.
    Raises KeyError for an unknown package or release, and for a semantic or refusal of a function that the release
    does not have; ValueError for torch, which emulators compute with.
    """

    package: str
    release: str
    semantics: dict[str, Semantic] = field(default_factory=dict)
    refusals: Mapping[str, tuple[Refusal, ...]] = field(default_factory=dict)
    distribution: str | None = None
    version: str | None = None
    contract: contract_data.Contract | None = None  # instead of the committed one, in tests of this file
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.package == "torch":
            raise ValueError("package torch can't be emulated: emulators compute with it (package: a vendor's)")
        self.contract = self.contract or contract_data.load(self.package)
        contract = self.contract
        self.functions = {name: overloads for name in contract.functions
                          if (overloads := contract.overloads(name, self.release))}
        for name in (*self.semantics, *self.refusals):
            if name not in self.functions:
                raise KeyError(f"{self.package} {self.release} has no {name} (it has: {', '.join(self.functions)})")
        self.modules = self._modules()

    def _modules(self) -> dict[str, types.ModuleType]:
        """Dotted name -> module, parents included."""
        modules: dict[str, types.ModuleType] = {}
        overloads = [dotted for dotted in self.functions if dotted.rpartition(".")[0] in self.functions]
        for dotted in self.functions:
            if dotted in overloads:
                continue
            owner, _, name = dotted.rpartition(".")
            parent, _, last = owner.rpartition(".")
            is_method = last[:1].isupper()
            module = self._module(modules, parent if is_method else owner)
            function = self._function(dotted)
            if is_method:
                if not hasattr(module, last):
                    setattr(module, last, type(last, (), {"__module__": parent}))
                setattr(getattr(module, last), name, function)
            else:
                setattr(module, name, function)
        for dotted in overloads:  # of an op: "torch_npu.op.out"
            owner, _, name = dotted.rpartition(".")
            module, _, op = owner.rpartition(".")
            setattr(getattr(modules[module], op), name, self._function(dotted))
        return modules

    def _module(self, modules: dict[str, types.ModuleType], dotted: str) -> types.ModuleType:
        if dotted not in modules:
            modules[dotted] = types.ModuleType(dotted, f"emulated: {self.package} {self.release}")
            modules[dotted].__path__ = []  # a package, so that submodules can be imported
            parent, _, last = dotted.rpartition(".")
            if parent:
                setattr(self._module(modules, parent), last, modules[dotted])
        return modules[dotted]

    def _function(self, dotted: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            return self._call(dotted, args, kwargs)

        function.__name__ = dotted.rpartition(".")[2]
        function.__qualname__ = function.__name__
        function.__module__ = dotted.rpartition(".")[0]
        if len(self.functions[dotted]) == 1:
            # So that inspect.signature() answers as it does for the vendor's own function.
            function.__signature__ = contract_data.python_signature(self.functions[dotted][0])  # type: ignore[attr-defined]
        return function

    def _call(self, dotted: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        errors = []
        for signature in self.functions[dotted]:
            try:
                arguments, passed = contract_data.bind(signature, args, kwargs)
                break
            except TypeError as error:
                errors.append(str(error))
        else:
            raise TypeError(f"{dotted}() of {self.package} {self.release}: {'; '.join(errors)}")
        devices = {name: str(tag_of(value) or value.device) for name, value in arguments.items()
                   if hasattr(value, "device") and name != "self"}
        self.calls.append(Call(dotted, arguments, frozenset(passed), args, kwargs, devices))
        a = types.SimpleNamespace(**arguments)
        for refusal in self.refusals.get(dotted, ()):
            if refusal.when(a):
                raise refusal.error(refusal.message)
        if dotted not in self.semantics:
            raise NotImplementedError(f"{dotted} has no semantics in this emulator of {self.package} {self.release}")
        return self.semantics[dotted](a)

    @contextmanager
    def installed(self) -> Iterator[Vendor]:
        """The package as if it were installed: importable, found by path and by metadata. All is put back after.

        Whatever has the same top-level names is hidden meanwhile. The files on the path are empty: they say that the
        modules are there, to those who look without importing (another process that imports them gets empty modules).
        """
        tops = {name.partition(".")[0] for name in self.modules}
        hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
        with tempfile.TemporaryDirectory() as temporary:
            self._write(Path(temporary))
            for name in hidden:
                del sys.modules[name]
            sys.modules.update(self.modules)
            sys.path.insert(0, temporary)
            importlib.invalidate_caches()
            try:
                yield self
            finally:
                sys.path.remove(temporary)
                for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
                    del sys.modules[name]
                sys.modules.update(hidden)
                importlib.invalidate_caches()

    def _write(self, folder: Path) -> None:
        for dotted, module in self.modules.items():
            path = folder.joinpath(*dotted.split("."))
            path.mkdir(parents=True, exist_ok=True)
            (path / "__init__.py").touch()
            module.__file__ = str(path / "__init__.py")
            module.__spec__ = importlib.util.spec_from_file_location(
                dotted, path / "__init__.py", submodule_search_locations=[str(path)])
        name, version = self.distribution or self.package, self.version or self.release.removeprefix("git ")
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
