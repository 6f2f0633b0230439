"""Arguments of flash_attn's functions: what is refused, what is made ready, and errors in the caller's words."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hal.compat import binding

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("hal")
Names = Mapping[str, str]  # HAL's name of an argument -> the caller's
_told: set[str] = set()


def prepared(names: Names, q: Any, k: Any, v: Any, qv: Any, causal: Any, dims: int, dims_k: int,
             cache: bool = False) -> tuple[Any, ...]:
    """(q, k, v, qv, causal) with contiguous last dimensions; a cache must have that itself, as it is written in place.

    Raises ValueError for what is no tensor of so many dimensions, and for what would need a gradient.
    """
    try:
        ready = (q.ndim == dims and k.ndim == v.ndim == dims_k and q.dtype == k.dtype == v.dtype
                 and not ((q.requires_grad or k.requires_grad or v.requires_grad) and torch.is_grad_enabled())
                 and (causal is True or causal is False) and qv is None and q.stride(-1) == 1
                 and (cache or (k.stride(-1) == 1 and v.stride(-1) == 1)))
    except (AttributeError, TypeError):
        ready = False
    if ready:
        return q, k, v, None, causal
    for name, x, wanted in (("q", q, dims), ("k", k, dims_k), ("v", v, dims_k), ("qv", qv, dims)):
        if x is None and name == "qv":
            continue
        own = shown(names, _CACHE[name] if cache else name)
        if not isinstance(x, torch.Tensor) or x.dim() != wanted:
            seen = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"{own}: got {seen}, expected a tensor of {wanted} dimensions")
        if x.dtype != q.dtype:
            raise ValueError(f"{own}: got {x.dtype}, expected {q.dtype} as q")
        refuse_grad(names, name, x)
    if causal not in (0, 1):
        raise ValueError(f"causal: got {causal!r}, expected True or False")
    return contiguous(q), *((k, v) if cache else (contiguous(k), contiguous(v))), contiguous(qv), bool(causal)


_CACHE = {"q": "q", "k": "k_cache", "v": "v_cache", "qv": "qv"}


def refuse_grad(names: Names, name: str, x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{shown(names, name)}: got a tensor that requires grad; HAL's flash_attn is for inference "
                         "and has no backward: call it under torch.no_grad() or torch.inference_mode(), or detach it")


def check_table(names: Names, table: Any) -> None:
    if table is not None and getattr(table, "ndim", None) != 2:
        raise ValueError(f"{shown(names, 'page_table')}: got {getattr(table, 'shape', table)!r}, expected int32 "
                         "[B, max_pages]")


def find(names: Names, *call: Any) -> binding.Bound:
    try:
        return binding.find(*call)
    except ValueError as error:
        raise _renamed(names, error) from None


def run(names: Names, function: Any, *args: Any, **options: Any) -> Any:
    """Call HAL's function; what it finds wrong is said in the caller's words."""
    try:
        return function(*args, **options)
    except (ValueError, NotImplementedError) as error:
        raise _renamed(names, error) from None


def refuse(function: str, why: Mapping[str, str], **given: Any) -> None:
    """Raise ValueError for the first argument that is given, with why HAL does not serve it."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{function}: {name} is not supported: {why[name]}")


def hints(function: str, **given: tuple[Any, Any]) -> None:
    """Arguments (value, default) that change speed on FlashAttention's GPUs and never results: HAL decides such things
    itself. One that was given is named once, on stderr."""
    for name, (value, default) in given.items():
        if value != default and name not in _told:
            _told.add(name)
            text = "" if isinstance(value, torch.Tensor) else f"={value!r}"
            logger.warning("%s: %s%s has no effect here: it tunes FlashAttention's own kernels and changes no result",
                           function, name, text)


def descales(function: str, q: Tensor, *given: Tensor | None) -> dict[str, Tensor]:
    """Version 3's q_descale, k_descale and v_descale: of fp8 inputs alone. With others the real function does not look
    at them, which is said."""
    if given == (None, None, None):
        return {}
    kept = {name: value for name, value in zip(("q_descale", "k_descale", "v_descale"), given) if value is not None}
    if not isinstance(q, torch.Tensor) or q.dtype.itemsize == 1:
        return kept
    if "descale" not in _told:
        _told.add("descale")
        logger.warning("%s: %s have no effect, as in FlashAttention 3: q is %s, and they are for fp8", function,
                       ", ".join(kept), q.dtype)
    return {}


def contiguous(x: Any) -> Any:
    """With a contiguous last dimension, as the real functions copy (maybe_contiguous)."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def whole(names: Names, name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{shown(names, name)}: got {value!r}, expected a whole number") from None


def shown(names: Names, name: str) -> str:
    return names.get(name, name)


def _renamed(names: Names, error: ValueError | NotImplementedError) -> Exception:
    text = str(error)
    if names:
        text = re.sub(r"\b(?:" + "|".join(names) + r")\b", lambda found: names[found.group()], text)
    return (NotImplementedError if isinstance(error, NotImplementedError) else ValueError)(text)
