"""What every adapter does with the contract's arguments: refuse by name, and one spelling of a mask."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def refuse(backend: str, contract: inspect.Signature, given: Mapping[str, Any]) -> None:
    """Raise unless every argument in `given` is at the contract's default: the kernel does not honour them.

    backend: its name, with the circumstance where there is one ("flash_attn_2 with page_table"). contract:
    hal.contract.WITH_KVCACHE or VARLEN. Raises ValueError naming the argument, the value seen and the value
    supported; TypeError for a name that is not in the contract.
    """
    for name, value in given.items():
        parameter = contract.parameters.get(name)
        if parameter is None:
            raise TypeError(f"{name!r} is no argument of HAL's attention functions "
                            f"(arguments: {', '.join(contract.parameters)})")
        default = None if parameter.default is parameter.empty else parameter.default
        if not _same(value, default):
            raise ValueError(f"{name} {_show(value)} is not supported ({backend}: {name} {default})")


def keep(honoured: frozenset[str], backend: str, contract: inspect.Signature, given: dict[str, Any]) -> None:
    """Leave in `given` what is in `honoured`; the rest is dropped at its default and refused otherwise, the first of
    the call's order by name."""
    if not given.keys() <= honoured:
        refuse(backend, contract, {name: given.pop(name) for name in list(given) if name not in honoured})


def require(backend: str, why: str, **given: Any) -> None:
    """Raise ValueError for the first argument that is None although a call of this kind needs it."""
    for name, value in given.items():
        if value is None:
            raise ValueError(f"{name} None is not supported {why} ({backend}: it is needed)")


def mask(causal: bool, window_size: Any) -> tuple[bool, tuple[int, int]]:
    """(causal, (left, right)) in one spelling: a right bound of 0 is causal, and causal has right -1.

    hal.contract: causal caps right at 0. Some kernels pick their path by the spelling, wrongly for (-1, 0).
    """
    left, right = window_size
    return (True, (left, -1)) if causal or right == 0 else (False, (left, right))


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    value = tuple(value) if isinstance(value, list) else value
    # A tensor compares elementwise, and True == 1: only plain values of the default's kind can equal it.
    plain = isinstance(value, (bool, int, float, str, tuple))
    return plain and isinstance(value, bool) == isinstance(default, bool) and bool(value == default)


def _show(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"(a tensor of shape {tuple(shape)})"
