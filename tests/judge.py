"""Judging a result against the float64 oracle, by what the same dtype can do at all.

The bound, per (sequence, head): twice the error of an eager computation in the same dtype, plus a floor. Eager is
the oracle's own walk over the sequences with its arithmetic replaced by unfused ops of the working dtype.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch

from hal import oracle

# Floors, for outputs up to size 1 (larger ones scale): about one rounding in the dtype (bf16: 2 ** -8, fp16:
# 2 ** -11). For float32 it is one rounding of a score of size 100, which becomes a relative error of the weights.
OUT_FLOOR = {torch.float32: 2e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}
LSE_FLOOR = 2e-5  # the LSE is float32 for every dtype


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


def judge(got: Any, want: Any, rough: Any, rows: list[tuple[int, int]], packed: bool, label: str,
          rotary: bool = False) -> None:
    """Raise AssertionError unless got is as good as twice eager. All three are (out, lse).

    rotary: rotated elements are rounded to the dtype, and one that falls on the other side of a tie moves its
    score by a rounding of the dtype, which eager, rotating as the oracle does, does not show.
    """
    (out, lse), (ref, ref_lse), (eag, eag_lse) = got, want, rough
    assert out.shape == ref.shape, f"{label}: out is {tuple(out.shape)}, expected {tuple(ref.shape)}"
    dtype = out.dtype
    lse_floor = OUT_FLOOR[dtype] if rotary else LSE_FLOOR
    flat = [x.double().reshape(-1, *x.shape[-2:]) for x in (out, ref, eag)]
    if lse is not None:
        assert lse.shape == ref_lse.shape, f"{label}: lse is {tuple(lse.shape)}, expected {tuple(ref_lse.shape)}"
        assert lse.dtype == torch.float32
    for b, (first, last) in enumerate(rows):
        if first == last:
            continue
        o, r, e = (x[first:last] for x in flat)
        assert not bool(torch.isnan(o).any()), f"{label}: NaN in sequence {b}"
        floor = (2 if rotary else 1) * OUT_FLOOR[dtype] * max(1.0, r.abs().max().item())
        error, bound = (o - r).abs().amax((0, 2)), 2 * (e - r).abs().amax((0, 2)) + floor
        h = int((error - bound).argmax())
        assert bool((error <= bound).all()), \
            f"{label}: sequence {b}, head {h}: error {error[h]:.3g}, bound {bound[h]:.3g}"
        if lse is not None:
            pick = (lambda x: x[:, first:last]) if packed else (lambda x: x[b])  # noqa: B023 - used in this turn only
            lo, lr, le = pick(lse).double(), pick(ref_lse).double(), pick(eag_lse).double()
            empty = lr == -oracle.INF
            assert bool((lo[empty] == -oracle.INF).all()), f"{label}: an empty row of sequence {b} has a finite LSE"
            if bool((~empty).any()):
                worst = (lo - lr)[~empty].abs().max()
                allowed = 2 * (le - lr)[~empty].abs().max() + lse_floor * (1 + lr[~empty].abs().max())
                assert bool(worst <= allowed), f"{label}: LSE of sequence {b} off by {worst:.3g}, bound {allowed:.3g}"
