"""The platforms: one file each, in the order of detection. `hal.platforms()` lists them with reasons."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from hal.declaration import platform_problem

# Shims make torch.cuda look present on MUSA, NPU and ROCm machines, so they are asked before CUDA.
KINDS = ("musa", "npu", "rocm", "cuda", "cpu")
# What a platform file, or the object a plugin's entry point names, must have. Optional: EXTENSION, the package that
# gives torch these devices; LACKS, arch -> dtypes that it has not; NON_CAUSAL, arch -> the order of backends for dense
# attention that is not causal, where it is not what priority() says; current_stream(device), where torch.accelerator
# does not know it.
ATTRIBUTES = ("KIND", "TORCH_DEVICE", "ARCHS", "priority", "probe")


def table() -> dict[str, Any]:
    """kind -> platform module: plugins first (they were installed on purpose), then KINDS."""
    from hal.plugins import load_group

    plugins = {name: module for name, module in load_group("hal.platforms").loaded.items()
               if _problem(name, module) is None}
    return {**plugins, **{kind: importlib.import_module(f"hal.platforms.{kind}") for kind in KINDS}}


def plugin_failures() -> dict[str, str]:
    """Platform plugins that can't be used, with the reason."""
    from hal.plugins import load_group

    plugins = load_group("hal.platforms")
    problems = {name: _problem(name, module) for name, module in plugins.loaded.items()}
    failures = {**plugins.failed, **{name: problem for name, problem in problems.items() if problem}}
    return {f"{name} (plugin)" if name in KINDS else name: reason for name, reason in failures.items()}


def _problem(name: str, module: Any) -> str | None:
    """What is wrong with a platform plugin, None where nothing is."""
    missing = [attribute for attribute in ATTRIBUTES if not hasattr(module, attribute)]
    if name in (*KINDS, "auto"):
        return f"plugin {name}: the name is taken by HAL itself: give it a name of its own"
    if ":" in name or not name.strip():
        return f"plugin {name}: a platform's name has no ':', which separates index and arch"
    if missing:
        return f"plugin {name} is no platform: it has no {', '.join(missing)}"
    if platform_problem(module):
        return f"plugin {name} is declared wrongly: {platform_problem(module)}"
    if name != module.KIND:
        return f"plugin {name}: its KIND is {module.KIND!r}, which must be its name"
    return None


class _CallableModule(ModuleType):
    """hal.platforms is a folder of files and, as design.md section 5 has it, a function too."""

    def __call__(self, host: Any = None) -> list[Any]:
        from hal.platform import probe_all

        return probe_all(host)


sys.modules[__name__].__class__ = _CallableModule
