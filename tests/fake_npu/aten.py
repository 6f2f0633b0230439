# ruff: noqa: E501 - tables: a row stays on its line
"""torch's own operators on npu tensors, computed by CPU torch on the same memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace

import torch

from fake_npu.decode import DTYPES, origin
from fake_npu.signatures import SIGNATURES

Compute = Callable[[SimpleNamespace], None]


def _write(out: torch.Tensor, value: torch.Tensor) -> None:
    out.copy_(value.reshape(out.shape) if value.numel() == out.numel() else value)


def _to(name: str, function: Callable[..., torch.Tensor], *arguments: str) -> tuple[str, Compute]:
    """An operator that writes function(arguments) to its `out`, or to self where it works in place."""

    def compute(a: SimpleNamespace) -> None:
        _write(a.out if hasattr(a, "out") else a.self, function(*(getattr(a, argument) for argument in arguments)))

    return name, compute


_UNARY = {
    "Abs": torch.abs, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf,
    "Exp": torch.exp, "Floor": torch.floor, "IsFinite": torch.isfinite, "IsInf": torch.isinf,
    "Isfinite": torch.isfinite, "IsNegInf": torch.isneginf, "IsPosInf": torch.isposinf, "Log": torch.log, "Log1p": torch.log1p, "LogicalNot": torch.logical_not,
    "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Silu": torch.nn.functional.silu, "Sin": torch.sin,
    "Sqrt": torch.sqrt, "Tanh": torch.tanh, "Trunc": torch.trunc,
}
_BINARY = {
    "Mul": torch.mul, "Div": torch.div, "FloorDivide": torch.floor_divide, "Maximum": torch.maximum,
    "Minimum": torch.minimum, "EqTensor": torch.eq, "NeTensor": torch.ne, "LtTensor": torch.lt, "LeTensor": torch.le,
    "GtTensor": torch.gt, "GeTensor": torch.ge, "LogicalAnd": torch.logical_and, "LogicalOr": torch.logical_or,
    "LogicalXor": torch.logical_xor, "BitwiseAndTensor": torch.bitwise_and, "BitwiseOrTensor": torch.bitwise_or,
    "BitwiseXorTensor": torch.bitwise_xor, "PowTensorTensor": torch.pow, "RemainderTensorTensor": torch.remainder,
    "FmodTensor": torch.fmod, "Atan2": torch.atan2, "LogAddExp": torch.logaddexp, "Muls": torch.mul, "Divs": torch.div,
    "FloorDivides": torch.floor_divide, "EqScalar": torch.eq, "NeScalar": torch.ne, "LtScalar": torch.lt,
    "LeScalar": torch.le, "GtScalar": torch.gt, "GeScalar": torch.ge, "BitwiseAndScalar": torch.bitwise_and,
    "BitwiseOrScalar": torch.bitwise_or, "BitwiseXorScalar": torch.bitwise_xor, "PowTensorScalar": torch.pow,
    "RemainderTensorScalar": torch.remainder, "RemainderScalarTensor": torch.remainder,
    "PowScalarTensor": torch.pow, "FmodScalar": torch.fmod, "LeftShifts": torch.bitwise_left_shift,
    "Matmul": torch.matmul, "Mm": torch.mm, "BatchMatMul": torch.bmm, "Mv": torch.mv,
}
_ROUNDING = {0: None, 1: "trunc", 2: "floor"}  # op-plugin's mode of DivMod


def _add(sign: int) -> Callable[..., torch.Tensor]:
    return lambda x, y, alpha: torch.add(x, torch.as_tensor(y), alpha=sign * alpha)


def _div(x: torch.Tensor, y: torch.Tensor | float, mode: int) -> torch.Tensor:
    return torch.div(x, y, rounding_mode=_ROUNDING[mode])  # type: ignore[call-overload,no-any-return]


def _set_shape(out: torch.Tensor, value: torch.Tensor) -> None:
    """For operators whose result's size is in the data: fills `out`, and tells the caller how much of it."""
    out.flatten()[:value.numel()].copy_(value.flatten())
    shape = (ctypes.c_int64 * value.dim())(*value.shape)
    ctypes.CDLL("libascendcl.so").fake_npu_set_shape(ctypes.c_void_p(origin(out)), shape, ctypes.c_int64(value.dim()))


def _index(a: SimpleNamespace) -> list[torch.Tensor | None]:
    # op-plugin hands over a dimension that is not indexed (x[:, i]) as a tensor without elements.
    indices = [None if index is None or not index.numel() else index for index in a.indices]
    return [index if index is None or index.dtype in (torch.bool, torch.uint8) else index.long() for index in indices]


def _index_put(a: SimpleNamespace) -> None:
    a.self.index_put_([index for index in _index(a)], a.values, accumulate=a.accumulate)


def _split(a: SimpleNamespace) -> None:
    for out, part in zip(a.out, a.self.split(a.sizes, a.dim)):
        out.copy_(part)


def _dims(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, dims, keepdim: function(x, dims or list(range(x.dim())), keepdim=keepdim)


def _both(function: Callable[..., tuple[torch.Tensor, torch.Tensor]], *arguments: str) -> Compute:
    def compute(a: SimpleNamespace) -> None:
        values, indices = function(*(getattr(a, argument) for argument in arguments))
        a.out.copy_(values)
        a.indices.copy_(indices)

    return compute


def _scatter_nd(a: SimpleNamespace) -> None:
    a.self[tuple(a.indices.long().unbind(-1))] = a.updates


def _scatter(a: SimpleNamespace) -> None:
    source = a.source if hasattr(a, "source") else a.value
    if a.reduction:
        raise NotImplementedError(f"scatter with reduction {a.reduction}")
    a.self.scatter_(a.dim, a.index.long(), source)


def _random(fill: Callable[[torch.Tensor, SimpleNamespace, torch.Generator], object]) -> Compute:
    # The chip's own random numbers are not known; these are as repeatable as its: by seed and offset.
    def compute(a: SimpleNamespace) -> None:
        fill(a.self if hasattr(a, "self") else a.out, a, torch.Generator().manual_seed(a.seed + (a.offset << 20)))

    return compute


def _operators() -> dict[str, Compute]:
    found: dict[str, Compute] = {}
    for names, arguments in ((_UNARY, ("self",)), (_BINARY, ("self", "other"))):
        for name, function in names.items():
            found.update([_to(name, function, *arguments), _to(f"Inplace{name}", function, *arguments)])
    for place in ("", "Inplace"):
        for name, sign in (("Add", 1), ("Adds", 1), ("Sub", -1), ("Subs", -1)):
            found.update([_to(place + name, _add(sign), "self", "other", "alpha")])
        found.update([_to(f"{place}DivMod", _div, "self", "other", "mode"),
                      _to(f"{place}DivMods", _div, "self", "other", "mode"),
                      _to(f"{place}Tril", torch.tril, "self", "diagonal"),
                      _to(f"{place}Triu", torch.triu, "self", "diagonal"),
                      _to(f"{place}NanToNum", torch.nan_to_num, "self", "nan", "posinf", "neginf")])
    found.update([
        _to("Rsub", lambda x, y, alpha: y - alpha * x, "self", "other", "alpha"),
        _to("Rsubs", lambda x, y, alpha: y - alpha * x, "self", "other", "alpha"),
        _to("InplaceCopy", lambda x: x, "source"), _to("Cast", lambda x: x, "self"),
        _to("IndexSelect", lambda x, d, i: x.index_select(d, i.long()), "self", "dim", "index"),
        _to("Gather", lambda x, d, i: x.gather(d, i.long()), "self", "dim", "index"),
        _to("Embedding", lambda w, i: w[i.long()], "weight", "indices"),
        _to("Cat", lambda t, d: torch.cat(t, d), "tensors", "dim"),
        _to("Stack", lambda t, d: torch.stack(t, d), "tensors", "dim"),
        _to("Cumsum", lambda x, d, t: x.cumsum(d, dtype=DTYPES[t]), "self", "dim", "dtype"),
        _to("ReduceSum", lambda x, d, k, t: x.sum(d or None, keepdim=k, dtype=DTYPES[t]), "self", "dims", "keepdim", "dtype"),
        _to("Mean", lambda x, d, k, t: x.mean(d or None, keepdim=k, dtype=DTYPES[t]), "self", "dims", "keepdim", "dtype"),
        _to("Max", torch.max, "self"), _to("Min", torch.min, "self"),
        _to("Amax", _dims(torch.amax), "self", "dims", "keepdim"), _to("Amin", _dims(torch.amin), "self", "dims", "keepdim"),
        _to("All", _dims(torch.all), "self", "dims", "keepdim"), _to("Any", _dims(torch.any), "self", "dims", "keepdim"),
        _to("ArgMax", lambda x, d, k: x.argmax(d, keepdim=k), "self", "dim", "keepdim"),
        _to("ArgMin", lambda x, d, k: x.argmin(d, keepdim=k), "self", "dim", "keepdim"),
        _to("Equal", lambda x, y: torch.tensor(torch.equal(x, y)), "self", "other"),
        _to("SWhere", torch.where, "condition", "self", "other"),
        _to("RepeatInterleaveInt", lambda x, n: x.repeat_interleave(n), "self", "repeats"),
        _to("RepeatInterleaveIntWithDim", lambda x, n, d: x.repeat_interleave(n, d), "self", "repeats", "dim"),
        _to("RepeatInterleave", lambda x, n: x.repeat_interleave(n.long()), "self", "repeats"),
        _to("RepeatInterleaveWithDim", lambda x, n, d: x.repeat_interleave(n.long(), d), "self", "repeats", "dim"),
        _to("RepeatInterleaveTensor", lambda n: torch.repeat_interleave(n.long()), "repeats"),
        _to("Repeat", lambda x, n: x.repeat(n), "self", "repeats"), _to("Flip", torch.flip, "self", "dims"),
        _to("Eye", torch.eye, "n", "m"), _to("Linspace", torch.linspace, "start", "end", "steps"),
        _to("ConstantPadNd", lambda x, p, v: torch.constant_pad_nd(x, p, v), "self", "pad", "value"),
        _to("Addmm", lambda x, y, z, b, a: torch.addmm(x, y, z, beta=b, alpha=a), "self", "mat1", "mat2", "beta", "alpha"),
        _to("Softmax", torch.softmax, "self", "dim"), _to("LogSoftmax", torch.log_softmax, "self", "dim"),
        _to("LogSumExp", _dims(torch.logsumexp), "self", "dims", "keepdim"),
        _to("Clamp", torch.clamp, "self", "min", "max"), _to("ClampMin", torch.clamp_min, "self", "min"),
        _to("ClampMax", torch.clamp_max, "self", "max"),
        _to("Bincount", torch.bincount, "self", "weights", "minlength"),
        _to("InplaceMaskedFillScalar", torch.masked_fill, "self", "mask", "value"),
    ])
    found |= {
        "InplaceMaskedFillTensor": lambda a: a.self.masked_fill_(a.mask, a.value.reshape(())),
        "InplaceZero": lambda a: a.self.zero_(), "InplaceOne": lambda a: a.self.fill_(1),
        "InplaceFillScalar": lambda a: a.self.fill_(a.value), "InplaceFillTensor": lambda a: a.self.fill_(a.value.reshape(())),
        "Arange": lambda a: a.out.copy_(torch.arange(a.start, a.end, a.step)[:a.out.numel()]),
        "Index": lambda a: a.out.copy_(torch.ops.aten.index(a.self, _index(a))), "IndexPutImpl": _index_put,
        "MaskedSelect": lambda a: _set_shape(a.out, a.self.masked_select(a.mask)),
        "Nonzero": lambda a: _set_shape(a.out, a.self.nonzero()),
        "NonzeroV2": lambda a: _set_shape(a.out, a.self.nonzero().T),
        "InplaceIndexCopy": lambda a: a.self.index_copy_(a.dim, a.index.long(), a.source),
        "IndexAdd": lambda a: a.out.copy_(a.self.index_add(a.dim, a.index.long(), a.source, alpha=a.alpha)),
        "IsClose": lambda a: a.out.copy_(torch.isclose(a.self, a.other, a.rtol, a.atol, a.equal_nan)),
        "SearchSorted": lambda a: a.out.copy_(torch.searchsorted(a.sequence, a.self, right=a.right, sorter=a.sorter)),
        "Roll": lambda a: a.out.copy_(a.self.roll(a.shifts, a.dims)),
        "ScatterNdUpdate": _scatter_nd, "InplaceScatter": _scatter, "InplaceScatterValue": _scatter,
        "MaxDim": _both(torch.max, "self", "dim", "keepdim"), "MinDim": _both(torch.min, "self", "dim", "keepdim"),
        "Sort": _both(lambda x, s, d, r: torch.sort(x, stable=s, dim=d, descending=r), "self", "stable", "dim", "descending"),
        "Topk": _both(torch.topk, "self", "k", "dim", "largest", "sorted"), "SplitWithSize": _split,
        "InplaceNormal": _random(lambda x, a, g: x.normal_(a.mean, a.std, generator=g)),
        "InplaceUniform": _random(lambda x, a, g: x.uniform_(a.low, a.high, generator=g)),
        "InplaceRandom": _random(lambda x, a, g: x.random_(a.low, a.high, generator=g)),
        "Randperm": _random(lambda x, a, g: x.copy_(torch.randperm(a.n, generator=g))),
    }
    return found


COMPUTE: dict[str, Compute] = {f"aclnn{name}": compute for name, compute in _operators().items()
                               if f"aclnn{name}" in SIGNATURES}
