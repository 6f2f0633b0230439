"""What all of flash_attn's functions come down to: three calls of HAL's, in a version's meaning.

Sources, read at the releases that hal/compat/stand_ins.py names: flash_attn/flash_attn_interface.py and
csrc/flash_attn/flash_api.cpp (2), hopper/flash_attn_interface.py and hopper/flash_api.cpp (3). What differs between
them, and from HAL's contract, is in hal/compat/meaning.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hal.compat.arguments import Names, check_table, contiguous, find, prepared, refuse_grad, run, shown, whole
from hal.compat.meaning import Version

if TYPE_CHECKING:
    from torch import Tensor


def dense(version: Version, names: Names, q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: Any,
          window: Any, softcap: float, lse: bool, chunk: int = 0, qv: Tensor | None = None,
          **descales: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) of q [B, Sq, Hq, D], k [B, Sk, Hkv, D] and v [B, Sk, Hkv, Dv]."""
    q, k, v, qv, causal = prepared(names, q, k, v, qv, causal, 4, 4)
    batch, len_q, len_k = q.shape[0], q.shape[1], k.shape[1]
    if not batch == k.shape[0] == v.shape[0] or v.shape[1] != len_k:
        raise ValueError(f"{shown(names, 'k')}: got shapes {tuple(k.shape)} and {tuple(v.shape)} of k and v, expected "
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
    elif not batch:  # packed sequences are one or more
        out = q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype if q.dtype.itemsize > 1 else torch.bfloat16)
        result = (out, out.new_empty((0, q.shape[2], len_q), dtype=torch.float32)) if lse else out
    else:
        flat = (x.flatten(0, 1) for x in (q, k, v))
        if qv is not None:
            options["qv"] = qv.flatten(0, 1)
        cu_q, cu_k = _even(batch, len_q, q), _even(batch, len_k, q)
        result = run(names, bound.varlen, *flat, cu_q, cu_k, len_q, len_k, **options)
        out, found = result if lse else (result, None)
        out = out.view(batch, len_q, *out.shape[1:])
        result = out if found is None else (out, found.view(q.shape[2], batch, len_q).transpose(0, 1).contiguous())
    return (result[0], version.lse(result[1], len_k)) if lse else (result, None)


def packed(version: Version, names: Names, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: Any,
           max_k: Any, scale: float | None, causal: Any, window: Any, softcap: float, lse: bool, chunk: int = 0,
           qv: Tensor | None = None, page_table: Tensor | None = None, seqused_q: Tensor | None = None,
           seqused_k: Tensor | None = None, **descales: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) of packed sequences; with page_table k and v are a paged cache, whose lengths are cu_k's.

    max_q, max_k: whole numbers, or tensors of one.
    """
    q, k, v, qv, causal = prepared(names, q, k, v, qv, causal, 3, 3 if page_table is None else 4)
    max_q, max_k = (whole(names, name, n) for name, n in (("max_seqlen_q", max_q), ("max_seqlen_k", max_k)))
    window = version.window(causal, window, max_q, max_k)
    softcap = _softcap(softcap)
    page_size = None if page_table is None else k.shape[1]
    check_table(names, page_table)
    bound = find(names, q, k, v, page_size, causal, window, chunk, softcap, lse, qv is not None)
    options = _options(scale, causal, window, chunk, softcap, qv, descales)
    if page_table is not None:
        options["page_table"] = page_table
        if seqused_k is None:
            seqused_k = _lengths(names, cu_k, page_table.shape[0])
            names = {**names, "seqused_k": "cu_seqlens_k"}
        cu_k = None  # type: ignore[assignment]
    if seqused_q is not None:
        options["seqused_q"] = seqused_q
    if seqused_k is not None:
        options["seqused_k"] = seqused_k
    if lse:
        options["return_softmax_lse"] = True
    result = run(names, bound.varlen, q, k, v, cu_q, cu_k, max_q, max_k, **options)
    return (result[0], version.lse(result[1], k.shape[0])) if lse else (result, None)


def with_kvcache(version: Version, names: Names, q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None,
                 v: Tensor | None, page_table: Tensor | None, cu_seqlens_q: Tensor | None, max_seqlen_q: Any,
                 scale: float | None, causal: Any, window: Any, softcap: float, lse: bool, chunk: int = 0,
                 qv: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) over a cache, after k and v were appended to it where they are given.

    given: the other arguments by HAL's names, None for what was left out.
    """
    varlen = cu_seqlens_q is not None
    dims = 3 if varlen else 4
    q, k_cache, v_cache, qv, causal = prepared(names, q, k_cache, v_cache, qv, causal, dims, 4, cache=True)
    for name, new in (("k", k), ("v", v)):
        if new is not None:
            if not isinstance(new, torch.Tensor):
                raise ValueError(f"{shown(names, name)}: got {type(new).__name__}, expected a tensor")
            refuse_grad(names, name, new)
    if varlen:
        max_seqlen_q = whole(names, "max_seqlen_q", max_seqlen_q)
    len_q = max_seqlen_q if varlen else q.shape[1]
    page_size = None if page_table is None else k_cache.shape[1]
    check_table(names, page_table)
    width = k_cache.shape[1] * (1 if page_table is None else page_table.shape[-1])
    window = version.window(causal, window, len_q, width)
    softcap = _softcap(softcap)
    bound = find(names, q, k_cache, v_cache, page_size, causal, window, chunk, softcap, lse, qv is not None)
    options = _options(scale, causal, window, chunk, softcap, qv, given)
    if k is not None or v is not None:
        options["k"], options["v"] = (x if x is None else contiguous(x) for x in (k, v))
    if page_table is not None:
        options["page_table"] = contiguous(page_table)
    if varlen:
        options["cu_seqlens_q"], options["max_seqlen_q"] = cu_seqlens_q, max_seqlen_q
    if lse:
        options["return_softmax_lse"] = True
    result = run(names, bound.one if len_q == 1 else bound.many, q, k_cache, v_cache, **options)
    return (result[0], version.lse(result[1], width)) if lse else (result, None)


def _options(scale: float | None, causal: bool, window: tuple[int, int], chunk: int, softcap: float,
             qv: Tensor | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for HAL's function. What is not asked for is left out: a vendor's may not know the word."""
    options: dict[str, Any] = {name: value for name, value in more.items() if value is not None} if more else {}
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


def _lengths(names: Names, cu_k: Any, batch: int) -> Tensor:
    """int32 [batch]: what lies between the values of cu_k."""
    if not isinstance(cu_k, torch.Tensor) or cu_k.shape != (batch + 1,):
        seen = tuple(cu_k.shape) if isinstance(cu_k, torch.Tensor) else type(cu_k).__name__
        raise ValueError(f"{shown(names, 'cu_seqlens_k')}: got {seen}, expected int32 [{batch + 1}], one more than the "
                         f"rows of {shown(names, 'page_table')}")
    return cu_k[1:] - cu_k[:-1]


def _even(batch: int, length: int, like: Tensor) -> Tensor:
    return torch.arange(batch + 1, dtype=torch.int32, device=like.device) * length


def _softcap(value: Any) -> float:
    """0.0 for none: zero and what is below deactivate it."""
    try:
        return float(value) if value > 0 else 0.0
    except TypeError:
        raise ValueError(f"softcap: got {value!r}, expected a number (0: none)") from None
