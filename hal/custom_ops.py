"""The two functions as opaque custom ops, for torch.compile: one op for each way of writing into arguments.

A compiled graph holds the number of a bound function; the function runs when the op does, so it reads the forward
context of that moment. Schemas come from hal.contract, so that an argument can't be forgotten here.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from hal import contract
from hal.tracing import traced

if TYPE_CHECKING:
    from torch import Tensor


class Kernel:
    """What an op's number stands for. A class of its own because not every callable can be referred to weakly."""

    def __init__(self, function: Callable[..., Any], logical: Callable[[Any], Any]) -> None:
        self.function, self.logical = function, logical


# number -> kernel, as long as its bound function lives.
KERNELS: WeakValueDictionary[int, Kernel] = WeakValueDictionary()
# What a function is bound for -> how many were: the next one's number differs from theirs.
_bound: Counter[str] = Counter()

_CONTRACTS = {"flash_attn_with_kvcache": contract.WITH_KVCACHE, "flash_attn_varlen_func": contract.VARLEN}
_REQUIRED = {name: [p.name for p in signature.parameters.values() if p.default is p.empty]
             for name, signature in _CONTRACTS.items()}
_POSITIONAL = {name: [p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
               for name, signature in _CONTRACTS.items()}
_NAMES = {name: list(signature.parameters) for name, signature in _CONTRACTS.items()}
# Schema types of what is no tensor. cache_seqlens may be an int too, which gets an argument of its own.
_TYPES = {
    "max_seqlen_q": "SymInt?", "max_seqlen_k": "SymInt?", "softmax_scale": "float?", "causal": "bool",
    "window_size": "SymInt[]", "attention_chunk": "SymInt", "softcap": "float", "rotary_interleaved": "bool",
    "num_splits": "SymInt", "pack_gqa": "bool?", "deterministic": "bool", "sm_margin": "SymInt",
    "return_softmax_lse": "bool", "return_attn_probs": "bool", "cp_world_size": "SymInt", "cp_rank": "SymInt",
}
_INT_LENGTH = "cache_seqlens_int"
# Op suffix -> the arguments it writes.
VARIANTS = {
    "flash_attn_with_kvcache": {"": (), "_append": ("k_cache", "v_cache"), "_out": ("out",),
                                "_append_out": ("k_cache", "v_cache", "out")},
    "flash_attn_varlen_func": {"": (), "_out": ("out",)},
}
# Op name -> op: defined once in a process, by the first bound function, because that is when torch is there.
OPS: dict[str, Callable[..., Any]] = {}
_defining = threading.Lock()


def compilable(function: Callable[..., Any], name: str, bound_for: str = "",
               logical: Callable[[Any], Any] = lambda x: x) -> Callable[..., Any]:
    """`function` (bound, of the contract's function `name`), which torch.compile sees as one opaque op.

    bound_for: the backend, configuration and device. Equal texts give equal numbers in any process, others don't: a
    graph that was saved finds the kernel of its own configuration where it is loaded, or none. logical: a cache in the
    contract's shape (AttentionBackend.logical_cache).
    Eager calls go straight through. Under torch.compile, scheduler_metadata must be a tensor or None, bounds ints.
    """
    import torch

    with _defining:
        if not OPS:
            OPS.update({name + suffix: _define(name, suffix, written)
                        for name, variants in VARIANTS.items() for suffix, written in variants.items()})
    kernel = Kernel(function, logical)
    with _defining:
        nth = _bound[bound_for] = _bound[bound_for] + 1
        # 7 bytes: it fits into a schema's int.
        number = int.from_bytes(hashlib.sha256(f"{name} {nth} {bound_for}".encode()).digest()[:7], "big")
        KERNELS[number] = kernel
    is_compiling = torch.compiler.is_compiling

    @functools.wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        if is_compiling() and traced(args, kwargs):
            return _call_op(name, number, args, kwargs)
        return function(*args, **kwargs)

    bound.kernel = kernel  # type: ignore[attr-defined]  # lives as long as the bound function
    return bound


def _call_op(name: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the tracer sees of a call: the op that writes what this call writes."""
    a = _bind(name, args, kwargs)
    out = a.pop("out", None)
    lse = a.get("return_softmax_lse", False) or a.get("return_attn_probs", False)
    suffix = ""
    if "k_cache" in a and a.get("k") is not None:
        suffix = "_append"
    if out is not None:
        suffix, a["out"] = suffix + "_out", out
    if isinstance(a.get("cache_seqlens"), int):
        a[_INT_LENGTH] = a.pop("cache_seqlens")
    results = OPS[name + suffix](impl=number, **a)
    if out is not None:
        return (out, results) if lse else out
    return results if lse else results[0]


def _bind(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The given arguments by name, in words that a tracer follows (contract.binder is faster and is not).

    Defaults are the op's: read here from a dict, a tracer would take their numbers for inputs.
    """
    if len(args) > len(_POSITIONAL[name]):
        raise TypeError(f"{name} takes up to {len(_POSITIONAL[name])} positional arguments, got {len(args)}")
    given = dict(zip(_POSITIONAL[name], args))
    for key in kwargs:
        if key in given or key not in _NAMES[name]:
            raise TypeError(f"{name} {'got two values for' if key in given else 'has no argument'} {key!r}")
    for key in _REQUIRED[name]:
        if key not in given and key not in kwargs:
            raise TypeError(f"{name} needs {key!r}")
    return {**given, **kwargs}


def _arguments(name: str, written: tuple[str, ...]) -> dict[str, str]:
    """Argument -> how the op's schema declares it, in order: first what has no default."""
    letters = iter("abc")
    required, optional = {"impl": "SymInt impl"}, {}
    for key, parameter in _CONTRACTS[name].parameters.items():
        must = key in _REQUIRED[name] or key == "out"
        if key == "out" and key not in written:
            continue
        kind = _TYPES.get(key, "Tensor" if must else "Tensor?")
        if key in written:
            kind = f"Tensor({next(letters)}!)"
        if must:
            required[key] = f"{kind} {key}"
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        optional[key] = f"{kind} {key}={default}"
        if key == "cache_seqlens":
            optional[_INT_LENGTH] = f"SymInt? {_INT_LENGTH}=None"
    return required | optional


def _run(name: str, names: list[str], values: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The op's body: the bound function, called with what differs from the contract's defaults."""
    import torch

    a = dict(zip(names, values))  # without those at the end that are at their defaults
    number = a.pop("impl")
    kernel = KERNELS.get(number)
    if kernel is None:
        raise RuntimeError(f"attention impl {number} of this compiled graph is gone: keep the hal.AttentionImpl that "
                           "it was traced with; in another process, make one of the same config, device and backend")
    length = a.pop(_INT_LENGTH, None)
    if length is not None:
        a["cache_seqlens"] = length
    if "window_size" in a:
        a["window_size"] = tuple(a["window_size"])
    positional, given = [], {}
    for key, parameter in _CONTRACTS[name].parameters.items():
        if key in _REQUIRED[name]:
            positional.append(a[key])
        elif key in a and (isinstance(a[key], torch.Tensor) or a[key] != parameter.default):
            given[key] = a[key]
    result = kernel.function(*positional, **given)
    out, lse = result if isinstance(result, tuple) else (result, positional[0].new_empty(0, dtype=torch.float32))
    # The fake implementation promises contiguous results.
    return out.contiguous(), lse.contiguous()


def _fake(name: str, a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Shapes, dtypes and devices of (out, lse); without an LSE that is empty."""
    import torch

    q, v = a["q"], a["v_cache"] if name == "flash_attn_with_kvcache" else a["v"]
    kernel = KERNELS.get(a["impl"])
    if kernel is not None and a.get("page_table") is not None:
        v = kernel.logical(v)
    dtype = q.dtype if q.dtype.itemsize > 1 else torch.bfloat16
    if not (a.get("return_softmax_lse") or a.get("return_attn_probs")):
        shape: tuple[Any, ...] = (0,)
    elif q.dim() == 3:
        shape = (q.shape[1], q.shape[0])
    else:
        shape = (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=dtype), q.new_empty(shape, dtype=torch.float32)


def _define(name: str, suffix: str, written: tuple[str, ...]) -> Callable[..., Any]:
    import torch

    arguments = _arguments(name, written)
    names = list(arguments)
    schema = f"({', '.join(arguments.values())}) -> {'Tensor' if 'out' in written else '(Tensor, Tensor)'}"

    def run(*values: Any) -> Any:
        out, lse = _run(name, names, values)
        return lse if "out" in written else (out, lse)

    def fake(*values: Any) -> Any:
        out, lse = _fake(name, dict(zip(names, values)))
        return lse if "out" in written else (out, lse)

    op = torch.library.custom_op(f"hal::{name}{suffix}", run, mutates_args=written, schema=schema)
    op.register_fake(fake)
    overload: Callable[..., Any] = getattr(torch.ops.hal, name + suffix).default
    return overload
