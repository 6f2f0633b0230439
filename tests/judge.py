"""Judging a result of the torch backend's fuzz against the oracle: the bound is hal.conformance.judge's.

Eager here is the oracle's own walk over the sequences with its arithmetic replaced by unfused ops of the working dtype,
so that it takes any call of the contract.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch

from hal import oracle
from hal.conformance import judge as kit


def eager(dtype: torch.dtype) -> types.ModuleType:
    """An oracle whose arithmetic is plain `dtype` ops: scores, softmax and sum rounded at every step."""

    def attend(q: Any, k: Any, v: Any, qv: Any, scale: float, softcap: float, sinks: Any, mask: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        qd, kd, vd = (x.to(dtype) for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
        s = torch.einsum("ihd,jhd->hij", qd, kd)
        if qv is not None:
            s = s + torch.einsum("ihd,jhd->hij", qv.to(dtype), vd)
        s = s * scale
        if softcap > 0:
            s = softcap * torch.tanh(s / softcap)
        s = s.float()
        if k.shape[0] and q.shape[0]:
            s = s.masked_fill(~mask(0, q.shape[0], 0, k.shape[0]), -oracle.INF)
        lse = torch.logsumexp(s, -1)
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks.float()[:, None].expand_as(lse))
        p = torch.exp(s - torch.where(lse == -oracle.INF, 0.0, lse)[..., None]).to(dtype)
        return torch.einsum("hij,jhd->ihd", p, vd).double(), lse.double()

    module = types.ModuleType(f"eager_{dtype}")
    exec(compile(inspect.getsource(oracle), "eager.py", "exec"), module.__dict__)
    module.attend = attend  # type: ignore[attr-defined]
    return module


def judge(got: Any, want: Any, rough: Any, rows: list[tuple[int, int]], packed: bool, label: str, dtype: torch.dtype,
          rotary: bool = False) -> None:
    """Raise AssertionError unless got is as good as twice eager. All three are (out, lse); dtype is q's."""
    verdict = kit.judge(got, want, rough, rows, packed, str(dtype).removeprefix("torch."), rotary)
    assert verdict.problem is None, f"{label}: {verdict.problem}"
