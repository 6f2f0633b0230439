"""Judging a result against the float64 oracle, by what the same dtype can do at all (design.md section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Floors beside twice eager's error, for a (sequence, head) whose largest output is 1: they scale with that. 16 bits:
# about one rounding of the dtype. float32: one rounding of a score of size 100, which becomes a relative error of the
# weights. fp8: of q and of the weights, whose results are bfloat16.
FLOORS = {"float32": 2e-5, "float16": 5e-4, "bfloat16": 4e-3, "float8_e4m3fn": 2e-2, "float8_e5m2": 4e-2}
SMALLEST = 2.0**-5  # outputs that small, or 0, still get this share of the floor
LSE_FLOOR = 2e-5  # the LSE is float32 for every dtype of 16 bits or more
LSE_FLOOR_FP8 = 1e-3


class Verdict(NamedTuple):
    """problem: None when good. error, bound: of the (sequence, head) that came nearest to its bound or passed it."""

    problem: str | None
    error: float
    bound: float


def judge(got: tuple[Tensor, Tensor | None], want: tuple[Tensor, Tensor], rough: tuple[Tensor, Tensor],
          rows: list[tuple[int, int]], packed: bool, q_dtype: str, rotary: bool = False) -> Verdict:
    """Is (out, lse) as good as twice eager plus a floor, for every (sequence, head)?

    All three are (out, lse) in the shapes of the contract; lse of `got` is None where it was not asked for. rows: the
    rows of each sequence in out flattened to [total_q, Hq, Dv]; rows in no sequence are not looked at. rotary: rotated
    elements are rounded to the dtype, and one that falls on the other side of a tie moves its score by a rounding of
    the dtype, which eager, rotating as the oracle does, does not show.
    """
    import torch

    (out, lse), (ref, ref_lse), (eag, eag_lse) = got, want, rough
    name = str(out.dtype).removeprefix("torch.")
    wanted = "bfloat16" if q_dtype.startswith("float8") else q_dtype
    if out.shape != ref.shape or name != wanted:
        return Verdict(f"out is {name} {tuple(out.shape)}, expected {wanted} {tuple(ref.shape)}", 0.0, 0.0)
    if lse is not None and (lse.shape != ref_lse.shape or lse.dtype != torch.float32):
        return Verdict(f"softmax_lse is {lse.dtype} {tuple(lse.shape)}, expected torch.float32 "
                       f"{tuple(ref_lse.shape)}", 0.0, 0.0)
    floor = FLOORS[q_dtype] * (2 if rotary else 1)
    lse_floor = LSE_FLOOR_FP8 if q_dtype.startswith("float8") else FLOORS[q_dtype] if rotary else LSE_FLOOR
    flat_out, flat_ref, flat_eag = (x.double().reshape(-1, *x.shape[-2:]) for x in (out, ref, eag))
    worst = Verdict(None, 0.0, floor)
    for b, (first, last) in enumerate(rows):
        if first == last:
            continue
        o, r, e = (x[first:last] for x in (flat_out, flat_ref, flat_eag))
        if bool(torch.isnan(o).any()):
            row = int(torch.isnan(o).flatten(1).any(1).nonzero()[0])
            return Verdict(f"NaN in sequence {b}, query {row}: read what must not be read, or left unwritten",
                           float("nan"), floor)
        error = (o - r).abs().amax((0, 2))
        # An even average over n keys is of size n ** -0.5: against a fixed floor one key of many would not count.
        bound = 2 * (e - r).abs().amax((0, 2)) + floor * r.abs().amax((0, 2)).clamp(min=SMALLEST)
        head = int((error / bound).argmax())
        seen = Verdict(None, float(error[head]), float(bound[head]))
        if not seen.error <= seen.bound:
            row = int((o - r)[:, head].abs().amax(1).argmax())
            return Verdict(f"out of sequence {b}, head {head}, query {row}: error {seen.error:.3g}, "
                           f"bound {seen.bound:.3g}", seen.error, seen.bound)
        if seen.error * worst.bound > worst.error * seen.bound:
            worst = seen
        if lse is None:
            continue
        lo, lr, le = (x[:, first:last].double() if packed else x[b].double() for x in (lse, ref_lse, eag_lse))
        empty = lr == float("-inf")
        if not bool((lo[empty] == float("-inf")).all()):
            return Verdict(f"softmax_lse of sequence {b}: {float(lo[empty].max()):.3g} in a row that sees no key, "
                           "expected -inf", float("inf"), 0.0)
        lo, lr, le = (torch.where(empty, 0.0, x) for x in (lo, lr, le))
        off = (lo - lr).abs().amax(1)
        allowed = 2 * (le - lr).abs().amax(1) + lse_floor * (1 + lr.abs().amax(1))
        if not bool((off <= allowed).all()):
            head = int((off / allowed).nan_to_num(float("inf")).argmax())
            return Verdict(f"softmax_lse of sequence {b}, head {head}: error {off[head]:.3g}, bound "
                           f"{allowed[head]:.3g}", float(off[head]), float(allowed[head]))
    return worst
