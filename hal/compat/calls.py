"""What all of flash_attn's functions come down to: three calls of HAL's, in a version's meaning.

Sources, read at the releases that hal/compat/stand_ins.py names: flash_attn/flash_attn_interface.py and
csrc/flash_attn/flash_api.cpp (2), hopper/flash_attn_interface.py and hopper/flash_api.cpp (3). A mask is HAL's
(hal.contract) but for what `window` below does to the bounds. What differs between the versions is in `Version`.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal.compat import binding

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("hal")
INF = float("inf")
Names = Mapping[str, str]  # HAL's name of an argument -> the caller's
_told: set[str] = set()


@dataclass(frozen=True)
class Version:
    """How a version differs. empty_lse: the LSE of a row that sees no key (2: softmax.h, normalize_softmax_lse; 3:
    softmax.h, finalize, and epilogue_fwd.hpp, store_zero)."""

    number: int
    empty_lse: float

    def window(self, causal: bool, size: Any, len_q: int, len_k: int) -> tuple[int, int]:
        """The window as the kernel takes it. len_q, len_k: the widths that it knows on the host: those of the tensors,
        max_seqlen_q and max_seqlen_k, or the capacity of a cache.

        Bounds that reach over everything are dropped, which also decides whether queries rotate along. Version 2 then
        has an unbounded right side end len_k keys on, as soon as there is a left one: that shows where there are more
        queries than keys (flash_api.cpp, set_params_fprop).
        """
        if size == (-1, -1):
            return (-1, -1)
        try:
            left, right = map(operator.index, size)
        except (TypeError, ValueError):
            raise ValueError(f"window_size: got {size!r}, expected (left, right), whole numbers (negative: unbounded)"
                             ) from None
        if self.number == 2:
            left, right = (-1 if n < 0 or n >= len_k else n for n in (left, right))
            if left >= 0 and right < 0 and not causal and len_q > len_k:
                right = len_k
        else:
            left = -1 if left < 0 or left >= len_k - 1 else left
            right = -1 if right < 0 or right >= len_q - 1 else right
        if causal:
            right = 0 if left >= 0 else -1
        return (left, right)


def dense(version: Version, names: Names, q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: Any,
          window: Any, softcap: float, lse: bool, chunk: int = 0, qv: Tensor | None = None,
          **descales: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) of q [B, Sq, Hq, D], k [B, Sk, Hkv, D] and v [B, Sk, Hkv, Dv]."""
    q, k, v, qv, causal = prepared(names, q, k, v, qv, causal, 4)
    batch, len_q, len_k = q.shape[0], q.shape[1], k.shape[1]
    if not batch == k.shape[0] == v.shape[0] or v.shape[1] != len_k:
        raise ValueError(f"{_shown(names, 'k')}: got shapes {tuple(k.shape)} and {tuple(v.shape)} of k and v, expected "
                         f"[{batch}, Sk, Hkv, D] for q of shape {tuple(q.shape)}")
    window = version.window(causal, window, len_q, len_k)
    softcap = _softcap(softcap)
    bound = find(names, q, k, v, None, causal, window, chunk, softcap, lse, qv is not None)
    options = _options(scale, causal, window, chunk, softcap, qv, descales)
    if lse:
        options["return_softmax_lse"] = True
    if bound.unpaged:
        call = bound.one if len_q == 1 else bound.many
        result = run(names, call, q, k, v, **options)
    else:
        flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        if qv is not None:
            options["qv"] = qv.reshape(-1, *qv.shape[2:])
        result = run(names, bound.varlen, *flat, _even(batch, len_q, q), _even(batch, len_k, q), len_q, len_k, **options)
        out, found = result if lse else (result, None)
        out = out.view(batch, len_q, *out.shape[1:])
        result = out if found is None else (out, found.view(-1, batch, len_q).transpose(0, 1).contiguous())
    return (result[0], _empty(version, result[1], len_k)) if lse else (result, None)


def packed(version: Version, names: Names, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: Any,
           max_k: Any, scale: float | None, causal: Any, window: Any, softcap: float, lse: bool, chunk: int = 0,
           qv: Tensor | None = None, page_table: Tensor | None = None, seqused_q: Tensor | None = None,
           seqused_k: Tensor | None = None, **descales: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) of packed sequences; with page_table k and v are a paged cache, and cu_k says how long each is.

    max_q, max_k: whole numbers, or tensors of one.
    """
    q, k, v, qv, causal = prepared(names, q, k, v, qv, causal, 3, 3 if page_table is None else 4)
    max_q, max_k = (_whole(names, name, n) for name, n in (("max_seqlen_q", max_q), ("max_seqlen_k", max_k)))
    window = version.window(causal, window, max_q, max_k)
    softcap = _softcap(softcap)
    page_size = None if page_table is None else k.shape[1]
    _check_table(names, page_table)
    bound = find(names, q, k, v, page_size, causal, window, chunk, softcap, lse, qv is not None)
    options = _options(scale, causal, window, chunk, softcap, qv, descales)
    if page_table is not None:
        options["page_table"] = page_table
        seqused_k = cu_k[1:] - cu_k[:-1] if seqused_k is None else seqused_k
        cu_k = None  # type: ignore[assignment]
    if seqused_q is not None:
        options["seqused_q"] = seqused_q
    if seqused_k is not None:
        options["seqused_k"] = seqused_k
    if lse:
        options["return_softmax_lse"] = True
    result = run(names, bound.varlen, q, k, v, cu_q, cu_k, max_q, max_k, **options)
    return (result[0], _empty(version, result[1], k.shape[0])) if lse else (result, None)


def with_kvcache(version: Version, names: Names, q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None,
                 v: Tensor | None, page_table: Tensor | None, cu_seqlens_q: Tensor | None, max_seqlen_q: Any,
                 scale: float | None, causal: Any, window: Any, softcap: float, lse: bool, chunk: int = 0,
                 qv: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) over a cache, after k and v were appended to it where they are given.

    given: the other arguments by HAL's names, None for what was left out.
    """
    varlen = cu_seqlens_q is not None
    q, k_cache, v_cache, qv, causal = prepared(names, q, k_cache, v_cache, qv, causal, 3 if varlen else 4, 4, cache=True)
    for name, new in (("k", k), ("v", v)):
        if new is not None:
            _refuse_grad(names, name, new)
    if varlen:
        max_seqlen_q = _whole(names, "max_seqlen_q", max_seqlen_q)
    len_q = max_seqlen_q if varlen else q.shape[1]
    page_size = None if page_table is None else k_cache.shape[1]
    _check_table(names, page_table)
    width = k_cache.shape[1] * (1 if page_table is None else page_table.shape[-1])
    window = version.window(causal, window, len_q, width)
    softcap = _softcap(softcap)
    bound = find(names, q, k_cache, v_cache, page_size, causal, window, chunk, softcap, lse, qv is not None)
    options = _options(scale, causal, window, chunk, softcap, qv, given)
    if k is not None or v is not None:
        options["k"], options["v"] = (x if x is None else _dense(x) for x in (k, v))
    if page_table is not None:
        options["page_table"] = _dense(page_table)
    if varlen:
        options["cu_seqlens_q"], options["max_seqlen_q"] = cu_seqlens_q, max_seqlen_q
    if lse:
        options["return_softmax_lse"] = True
    result = run(names, bound.one if len_q == 1 else bound.many, q, k_cache, v_cache, **options)
    return (result[0], _empty(version, result[1], width)) if lse else (result, None)


# --- what the three share ---

def prepared(names: Names, q: Any, k: Any, v: Any, qv: Any, causal: Any, dims: int, dims_k: int | None = None,
             cache: bool = False) -> tuple[Any, ...]:
    """(q, k, v, qv, causal) with contiguous last dimensions; a cache must have that itself, as it is written in place.

    Raises ValueError for what is no tensor of so many dimensions, and for what would need a gradient.
    """
    import torch

    for name, x, wanted in (("q", q, dims), ("k", k, dims_k or dims), ("v", v, dims_k or dims), ("qv", qv, dims)):
        if x is None and name == "qv":
            continue
        if not isinstance(x, torch.Tensor) or x.dim() != wanted:
            seen = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"{_shown(names, _CACHE[name] if cache else name)}: got {seen}, expected a tensor of "
                             f"{wanted} dimensions")
        if x.dtype != q.dtype:
            raise ValueError(f"{_shown(names, _CACHE[name] if cache else name)}: got {x.dtype}, expected {q.dtype} as q")
        _refuse_grad(names, name, x)
    if causal is not True and causal is not False:
        if causal not in (0, 1):
            raise ValueError(f"causal: got {causal!r}, expected True or False")
        causal = bool(causal)
    if cache:
        return _dense(q), k, v, qv if qv is None else _dense(qv), causal
    return _dense(q), _dense(k), _dense(v), qv if qv is None else _dense(qv), causal


_CACHE = {"q": "q", "k": "k_cache", "v": "v_cache", "qv": "qv"}


def _refuse_grad(names: Names, name: str, x: Tensor) -> None:
    import torch

    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{_shown(names, name)}: got a tensor that requires grad; HAL's flash_attn is for inference and "
                         "has no backward: call it under torch.no_grad() or torch.inference_mode(), or detach the tensor")


def _check_table(names: Names, table: Any) -> None:
    if table is not None and getattr(table, "ndim", None) != 2:
        raise ValueError(f"{_shown(names, 'page_table')}: got {getattr(table, 'shape', table)!r}, expected int32 "
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
    except ValueError as error:
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
            logger.warning("%s: %s=%r has no effect here: it tunes FlashAttention's own kernels and changes no result",
                           function, name, value)


def descales(function: str, q: Tensor, **given: Tensor | None) -> dict[str, Tensor]:
    """Version 3's descales: of fp8 inputs alone. With others the real function does not look at them, which is said."""
    kept = {name: value for name, value in given.items() if value is not None}
    if not kept or getattr(q, "dtype", None) is None or q.dtype.itemsize == 1:
        return kept
    if "descale" not in _told:
        _told.add("descale")
        logger.warning("%s: %s have no effect, as in FlashAttention 3: q is %s, and they are for fp8", function,
                       ", ".join(kept), q.dtype)
    return {}


def _options(scale: float | None, causal: bool, window: tuple[int, int], chunk: int, softcap: float,
             qv: Tensor | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for HAL's function. What is not asked for is left out: a vendor's may not know the word."""
    options: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    if scale is not None:
        options["softmax_scale"] = scale
    if causal:
        options["causal"] = True
    if window != (-1, -1):
        options["window_size"] = window
    if chunk:
        options["attention_chunk"] = chunk
    if softcap:
        options["softcap"] = softcap
    if qv is not None:
        options["qv"] = qv
    return options


def _dense(x: Any) -> Any:
    """With a contiguous last dimension, as the real functions copy (maybe_contiguous)."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _even(batch: int, length: int, like: Tensor) -> Tensor:
    import torch

    return torch.arange(batch + 1, dtype=torch.int32, device=like.device) * length


def _empty(version: Version, lse: Tensor, keys: int) -> Tensor:
    """HAL's -inf of a row that sees no key as the version has it. Without any key in the call both have +inf."""
    if version.empty_lse == -INF and keys:
        return lse
    return lse.masked_fill(lse == -INF, INF)


def _whole(names: Names, name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{_shown(names, name)}: got {value!r}, expected a whole number") from None


def _softcap(value: Any) -> float:
    """0.0 for none: zero and what is below deactivate it."""
    try:
        return float(value) if value > 0 else 0.0
    except TypeError:
        raise ValueError(f"softcap: got {value!r}, expected a number (0: none)") from None


def _shown(names: Names, name: str) -> str:
    return names.get(name, name)


def _renamed(names: Names, error: ValueError) -> ValueError:
    text = str(error)
    if names:
        text = re.sub(r"\b(?:" + "|".join(names) + r")\b", lambda found: names[found.group()], text)
    return ValueError(text)
