"""HAL: one attention API over every LLM-serving accelerator.

`import hal` loads neither torch nor any vendor package: every public name below is imported
on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "AttentionBackend": "hal.backend",
    "AttentionConfig": "hal.config",
    "AttentionImpl": "hal.attention",
    "Choice": "hal.selection",
    "Decision": "hal.decision",
    "LayerKind": "hal.config",
    "MLADims": "hal.config",
    "NoBackendError": "hal.decision",
    "Platform": "hal.platform",
    "add_cli_args": "hal.cli_args",
    "detect": "hal.platform",
    "explain": "hal.selection",
    "explain_kinds": "hal.selection",
    "forward_context": "hal.context",
    "from_cli_args": "hal.cli_args",
    "get_attention_impl": "hal.attention",
    "get_attention_impls": "hal.attention",
    "merge_attention_states": "hal.merge",
    "platforms": "hal.platforms",  # the subpackage, whose module object is callable: hal.platforms()
    "register_backend": "hal.registry",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hal' has no attribute {name!r}; it has: {', '.join(sorted(_PUBLIC))}")
    module = importlib.import_module(_PUBLIC[name])
    value = module if _PUBLIC[name] == f"hal.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


if TYPE_CHECKING:
    from hal.attention import AttentionImpl as AttentionImpl
    from hal.attention import get_attention_impl as get_attention_impl
    from hal.attention import get_attention_impls as get_attention_impls
    from hal.backend import AttentionBackend as AttentionBackend
    from hal.cli_args import add_cli_args as add_cli_args
    from hal.cli_args import from_cli_args as from_cli_args
    from hal.config import AttentionConfig as AttentionConfig
    from hal.config import LayerKind as LayerKind
    from hal.config import MLADims as MLADims
    from hal.context import forward_context as forward_context
    from hal.decision import Decision as Decision
    from hal.decision import NoBackendError as NoBackendError
    from hal.merge import merge_attention_states as merge_attention_states
    from hal.platform import Platform as Platform
    from hal.platform import PlatformStatus
    from hal.platform import detect as detect
    from hal.registry import register_backend as register_backend
    from hal.selection import Choice as Choice
    from hal.selection import explain as explain
    from hal.selection import explain_kinds as explain_kinds

    def platforms(host: Any = None) -> list[PlatformStatus]:
        """Every known platform, found or not, with the reason why not."""
