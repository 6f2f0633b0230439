"""Which vendor packages count as present: assumed (hypothetical platform), installed, or named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from hal.host import Host


@dataclass(frozen=True)
class Package:
    """A vendor package a backend needs.

    distribution: its name for people and for --packages. module: the dotted module that proves it is the
    right one (PyPI's `mate` is another project). wrong: what to say when only the top-level name is there.
    minimum: lowest version accepted, compared number by number.
    """

    distribution: str
    module: str
    install: str
    minimum: str | None = None
    wrong: str | None = None
    # Distributions whose metadata carries the version, where it is not `distribution`.
    metadata: tuple[str, ...] = ()


def numbers(version: str) -> tuple[int, ...]:
    """(2, 8, 3) of "2.8.3.post2+cu12": leading numbers of the first three parts."""
    parts = []
    for part in version.split("+")[0].split(".")[:3]:
        digits = "".join(c for c in part if c.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _plain(distribution: str) -> str:
    return distribution.strip().lower().replace("_", "-")


@dataclass
class Packages:
    """The packages selection may count on. `listing` is what --packages said, for messages."""

    listing: str
    _missing: Callable[[Package], str | None] = field(repr=False)
    broken: dict[Package, str] = field(default_factory=dict, repr=False)
    # On a platform that is not here, HAL's own adapters that are not written yet count as present too.
    adapters_assumed: bool = False
    # Why this machine's torch can serve nothing, where it can't.
    torch: str | None = None

    def missing(self, package: Package) -> str | None:
        """Why a package does not count as present, with what to install; None where it does."""
        return self.broken.get(package) or self._missing(package)

    @classmethod
    def assumed(cls) -> Packages:
        """Every package present: a platform that is not here."""
        return cls("assumed", lambda package: None)

    @classmethod
    def named(cls, distributions: Iterable[str]) -> Packages:
        """Only these distributions present."""
        names = {_plain(name) for name in distributions if name.strip()}

        def missing(package: Package) -> str | None:
            if names & {_plain(name) for name in (package.distribution, *package.metadata)}:
                return None
            return f"package {package.distribution} is not among --packages ({', '.join(sorted(names)) or 'none'})"

        return cls(",".join(sorted(names)), missing)

    @classmethod
    def installed(cls, host: Host | None = None) -> Packages:
        """What is installed on this machine. Nothing is imported here."""
        return cls("installed", _Installed(host or Host()).missing)

    @classmethod
    def parse(cls, text: str, known: Iterable[Package]) -> Packages:
        """`installed`, `assumed`, or a comma list of distribution names.

        Raises ValueError for a name that is of none of the `known` packages.
        """
        if text == "installed":
            return cls.installed()
        if text == "assumed":
            return cls.assumed()
        names = {_plain(name) for package in known for name in (package.distribution, *package.metadata)}
        unknown = sorted(_plain(name) for name in text.split(",") if name.strip() and _plain(name) not in names)
        if unknown:
            raise ValueError(f"packages has {unknown[0]!r}, which no backend uses (installed, assumed, or some of: "
                             f"{', '.join(sorted(names))})")
        return cls.named(text.split(","))


class _Installed:
    def __init__(self, host: Host) -> None:
        self.host = host

    @cached_property
    def _seen(self) -> dict[Package, str | None]:
        return {}

    def missing(self, package: Package) -> str | None:
        if package not in self._seen:
            self._seen[package] = self._look(package)
        return self._seen[package]

    def _look(self, package: Package) -> str | None:
        top = package.module.partition(".")[0]
        if self.host.find_module(package.module) is None:
            if package.wrong and self.host.find_module(top) is not None:
                return f"{package.wrong}; {package.install}"
            if self.host.find_module(top) is not None:
                return f"package {top} is installed but has no {package.module}; {package.install}"
            for name in (package.distribution, *package.metadata):
                version = self.host.version(name)
                if version is not None:
                    return f"package {name} {version} is half installed: it has metadata but no module " \
                           f"{top}; {package.install}"
            return f"package {package.distribution} is not installed; {package.install}"
        if package.minimum is None:
            return None
        for name in (package.distribution, *package.metadata):
            version = self.host.version(name)
            if version is None:
                continue
            if numbers(version) < numbers(package.minimum):
                return f"{name} {version} is too old (needs {package.minimum} or newer); {package.install}"
            return None
        return f"package {package.distribution} has no version in its metadata (needs {package.minimum} or newer); " \
               f"{package.install}"
