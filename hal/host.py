"""What can be learnt about a machine cheaply: device files, environment, installed packages.

Probes ask a Host and nothing else, so a test can hand them a machine that is not there. Nothing here
imports torch or a vendor package into this process.
"""

from __future__ import annotations

import glob
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hal import env
from hal.child import Answer, ask


@dataclass(frozen=True)
class TorchBuild:
    """torch/version.py read as text. cuda and hip are version strings, or None where built without.

    problem: why there is no torch to read about, None where there is one.
    """

    version: str
    cuda: str | None
    hip: str | None
    problem: str | None = None


class Host:
    """A machine: its root folder, environment and import path. The defaults are this process's own."""

    def __init__(self, root: str = "/", environ: Mapping[str, str] | None = None,
                 path: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        self.environ = os.environ if environ is None else environ
        self.path = list(sys.path if path is None else path)
        self.is_this_process = path is None

    def glob(self, pattern: str) -> list[str]:
        """Files that match an absolute pattern, as absolute names of that machine."""
        base = "" if str(self.root) == "/" else str(self.root)
        return sorted(name[len(base):] for name in glob.glob(glob.escape(base) + pattern))

    def read(self, name: str) -> str:
        """Text of an absolute file name, "" where it can't be read."""
        try:
            return (self.root / name.lstrip("/")).read_text(errors="replace")
        except OSError:
            return ""

    def hidden_by(self, *names: str) -> str | None:
        """The reason when one of these visible-devices variables hides every device."""
        for name in names:
            value = self.environ.get(name)
            # Drivers stop reading at the first negative number, so "-1,0" hides everything as "-1" does.
            if value is not None and value.split(",")[0].strip() in ("", "-1", "NoDevFiles"):
                return f"{name}={value} hides every device" if value.strip() else f"{name} is empty"
        return None

    def version(self, distribution: str) -> str | None:
        """Version of an installed distribution from its metadata, None where there is none."""
        for dist in importlib.metadata.distributions(name=distribution, path=self.path):
            return str(dist.metadata["Version"]) if "Version" in dist.metadata else "unknown"
        return None

    def find_module(self, dotted: str) -> Path | None:
        """The file of a module, found on the path without importing it or its parents."""
        search: Sequence[str] | None = self.path
        spec = None
        name = ""
        for part in dotted.split("."):
            if search is None:
                return None
            name = f"{name}.{part}" if name else part
            importlib.machinery.PathFinder.invalidate_caches()
            spec = importlib.machinery.PathFinder.find_spec(name, search)
            if spec is None and self.is_this_process and name == part:
                # Editable installs answer through an import hook, not through the path.
                known = sys.modules.get(name)
                spec = known.__spec__ if known else importlib.util.find_spec(name)
                if spec is not None and getattr(spec.loader, "hal_compat", False):
                    return None  # HAL's own stand-in for the package (hal.compat) is not the package
            if spec is None:
                return None
            locations = spec.submodule_search_locations
            search = None if locations is None else list(locations)
        if spec is None:
            return None
        return Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or [""])))

    def missing(self, package: str) -> str | None:
        """Why a package can't be imported, as far as its files tell: it is not there, or half of it is."""
        version, found = self.version(package), self.find_module(package)
        if found is None and version is None:
            return f"{package} is not installed"
        if found is None:
            return f"{package} {version} is half installed: it has metadata but no module"
        if found.is_dir():
            return f"{package} is half installed: its folder has no __init__.py"
        return None

    def torch_build(self) -> TorchBuild:
        """How the installed torch was built, without importing it."""
        problem, init = self.missing("torch"), self.find_module("torch")
        if problem or init is None:
            return TorchBuild("", None, None, problem)
        try:
            text = (init.parent / "version.py").read_text(errors="replace")
        except OSError:
            return TorchBuild("", None, None, "torch is half installed: torch/version.py is missing")

        def value(name: str) -> str | None:
            match = re.search(rf"^{name}\s*(?::[^=]*)?=\s*['\"]([^'\"]*)['\"]", text, re.M)
            return match.group(1) if match else None

        return TorchBuild(value("__version__") or "unknown", value("cuda"), value("hip"))

    def library_error(self, name: str) -> str | None:
        """Why a shared library can't be loaded, None where it can. Tried in a child process."""
        error = self.ask("ctypes", f"str(ctypes.CDLL({name!r}))").error
        return error and error.removeprefix("asking ctypes failed: OSError: ")

    def import_error(self, module: str, extension: str | None = None) -> str | None:
        """Why `import module` fails, None where it works: tried in a child process, with a time limit.

        extension: the package that gives torch its devices ("torch_musa"), imported first.

        A package that hangs, aborts or kills its process does so there. The limit is HAL_PROBE_TIMEOUT; 0
        asks for no such trial, so nothing is known to fail.
        """
        if env.get("HAL_PROBE_TIMEOUT", self.environ) == 0:
            return None
        return self.ask(f"{extension}, {module}" if extension else module, "''").error

    def ask(self, module: str, expression: str) -> Answer:
        """Import `module` on this machine, in a child process, and evaluate `expression`: see hal.child."""
        # Without autoload a broken torch_npu can't kill an innocent torch; who asks for torch_npu imports it.
        environ = {**self.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        environ.pop("HAL_FLASH_ATTN", None)  # what is asked about is the real packages, below `hal run` too
        limit = env.get("HAL_PROBE_TIMEOUT", self.environ) or env.VARIABLES["HAL_PROBE_TIMEOUT"].default
        return ask(module, expression, environ, self.path, limit, self.is_this_process)
