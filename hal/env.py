"""Every environment variable HAL reads, in one table. A bad value raises and names the valid ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("hal")


def _text(value: str) -> str:
    return value


def _device(value: str) -> str:
    if value != "auto":
        from hal.platform import Platform

        Platform.parse(value)
    return value


def _backend(value: str) -> str:
    if value != "auto":
        from hal.registry import resolve

        resolve(value)
    return value


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return value == "1"


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _stand_ins(value: str) -> tuple[str, ...]:
    from hal.compat.stand_ins import STAND_INS

    names = _names(value)
    if not names or not set(names) <= set(STAND_INS):
        raise ValueError(f"expected some of {','.join(STAND_INS)}")
    return names


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError("expected a number of seconds, 0 or more (0: no probe, import in this process)")
    return seconds


def _isa(value: str) -> str:
    from hal.kernels.cpu.library import ISAS

    if value not in ISAS:
        raise ValueError(f"expected one of {', '.join(ISAS)}")
    return value


@dataclass(frozen=True)
class Variable:
    """One environment variable: how its text is read, its default and one line of help."""

    parse: Callable[[str], Any]
    default: Any
    help: str


VARIABLES: Mapping[str, Variable] = {
    "HAL_DEVICE": Variable(_device, "auto", "device used for 'auto': cuda, cuda:1, npu, ..."),
    "HAL_ATTENTION_BACKEND": Variable(_backend, "auto", "backend used for 'auto'; strict"),
    "HAL_PLUGINS": Variable(_names, None, "comma list of entry points to load; unset: all, empty: none"),
    "HAL_CHECK": Variable(_flag, False, "1: validate every call of the two functions before it is launched"),
    "HAL_FLASH_ATTN": Variable(_stand_ins, None, "set by `hal run`: versions of flash_attn that HAL answers for"),
    "HAL_FLASH_ATTN_PYTHON": Variable(_text, None, "set by `hal run`: the Python environment that it serves"),
    "HAL_CPU_ISA": Variable(_isa, None, "variant of the cpu backend's kernels; unset: the best that the CPU runs"),
    "HAL_PROBE_TIMEOUT": Variable(_seconds, 60.0, "seconds a vendor package may take to import in a probe"),
    "HAL_API_KEY": Variable(_text, None, "key that hal serve asks its clients for"),
    "HAL_CACHE_DIR": Variable(_text, None, "folder for prepared models; default: the user's cache folder"),
}


def get(name: str, environ: Mapping[str, str] | None = None) -> Any:
    """The parsed value of one HAL variable; its default when unset.

    Raises ValueError naming the variable, the value seen and the valid ones. An empty string counts as
    unset, except for HAL_PLUGINS, where it means "no plugin".
    """
    variable = VARIABLES[name]
    source = os.environ if environ is None else environ
    text = source.get(name)
    if text is None or (text == "" and name != "HAL_PLUGINS"):
        return variable.default
    try:
        return variable.parse(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is not valid: {error}") from None


_warned: set[str] = set()


def check(environ: Mapping[str, str] | None = None) -> None:
    """Every HAL variable parsed once, and the unknown ones named: a typing error shows before it matters.

    Raises ValueError as get does.
    """
    warn_unknown(environ)
    for name in VARIABLES:
        get(name, environ)


def warn_unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """Names that start with HAL_ but that HAL does not read: most are typing errors, so say so once each."""
    source = os.environ if environ is None else environ
    ours = sorted(name for name in source if name.startswith("HAL_") and not name.startswith("HAL_TEST_"))
    unknown = [name for name in ours if name not in VARIABLES]
    for name in unknown:
        if name not in _warned:
            _warned.add(name)
            logger.warning("environment variable %s is not read by HAL (it reads: %s)", name,
                           ", ".join(VARIABLES))
    return unknown
