"""Answers the aclnn calls of this process: imported by the runtime when the first operator is called.

An operator has two phases. The first checks its arguments and may refuse; the second computes. A captured operator
computes at each replay, on what its tensors hold then.
"""

from __future__ import annotations

import ctypes
import os
import traceback
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

import torch

from fake_npu import aten, attention_update, fused_infer, fusion_attention, kv_cache
from fake_npu.decode import AddressError, RawCall, call_of
from fake_npu.refusal import Refused
from fake_npu.signatures import SIGNATURES

INNER = 561000
AICORE_EXCEPTION = 507015  # what the chip reports of an address that is not its own
# What computes, and what checks before: operators without rules have none.
COMPUTE: dict[str, Callable[[SimpleNamespace], None]] = {
    **aten.COMPUTE, **fused_infer.COMPUTE, **kv_cache.COMPUTE, **attention_update.COMPUTE,
    **fusion_attention.COMPUTE}
CHECK: dict[str, Callable[[SimpleNamespace], None]] = {
    **fused_infer.CHECK, **kv_cache.CHECK, **attention_update.CHECK, **fusion_attention.CHECK}

# The latest operators, in order of their computing: name, and each argument's value, or shape and dtype.
calls: deque[tuple[str, dict[str, object]]] = deque(maxlen=10_000)

_library = ctypes.CDLL("libascendcl.so")
_TRACE = "FAKE_NPU_TRACE" in os.environ


def _summary(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return [_summary(item) for item in value] if isinstance(value, list) else value


def _answer(raw: RawCall, table: dict[str, Callable[[SimpleNamespace], None]], log: bool) -> int:
    try:
        name, arguments = call_of(raw)
        if log:
            calls.append((name, {key: _summary(value) for key, value in vars(arguments).items()}))
            if _TRACE:
                print(*calls[-1], flush=True)
        if name in table:
            # The caller may be under inference mode or a dispatch mode; this is the device, not the program.
            with torch.no_grad(), torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
                table[name](arguments)
    except Refused as refused:
        return _fail(refused.code, str(refused))
    except AddressError as error:
        return _fail(AICORE_EXCEPTION, str(error))
    except Exception as error:  # noqa: BLE001 - C++ called; it gets a code, and the caller an exception again
        traceback.print_exc()
        return _fail(INNER, f"{raw.name.decode()}: {type(error).__name__}: {error}")
    return 0


def _fail(code: int, text: str) -> int:
    return int(_library.fake_npu_fail(code, text.encode()))


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(RawCall))


@_Callback
def _check(raw: ctypes._Pointer[RawCall]) -> int:
    return _answer(raw.contents, CHECK, log=False)


@_Callback
def _run(raw: ctypes._Pointer[RawCall]) -> int:
    return _answer(raw.contents, COMPUTE, log=True)


if set(COMPUTE) != set(SIGNATURES):
    raise RuntimeError(f"signatures and answers differ in {sorted(set(COMPUTE) ^ set(SIGNATURES))}")
_library.fake_npu_answer_with(_check, _run)
