"""One contender's call on one shape: made, tried, and compared with the float64 oracle before it may be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend
from hal.bench import check, inputs
from hal.bench.cells import Cell, Entry, Settings
from hal.bench.contenders import Contender, Reads
from hal.bench.shapes import PHASES, Shape, widths
from hal.bench.timing import Thunk
from hal.context import ForwardContext, forward_context
from hal.kv_cache import new_kv_cache, write_kv_cache

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Made:
    """The inputs of a shape for everyone in play, by what they read; lengths are the same tensors in all of them."""

    shape: Shape
    lengths: dict[str, Any]
    inputs: dict[Reads, inputs.Inputs]

    def step(self) -> ForwardContext:
        """What an engine enters around the layers of a step: inside, whatever is planned is planned once."""
        bounds = {"max_seqlen_q": max(self.shape.queries), "max_seqlen_k": self.shape.seqlen}
        return forward_context(**self.lengths | bounds)


def inputs_for(cell: Cell, shape: Shape, settings: Settings) -> Made:
    """Inputs for everyone in play; who reads the same layout shares them. Whose can't be made has failed."""
    device = settings.platform.torch_device
    made = Made(shape, inputs.lengths_of(shape, device), {})
    packed = PHASES[shape.phase].packed_kv
    for entry in cell.live:
        one = entry.contender
        if packed and made.inputs:
            made.inputs[one.reads] = next(iter(made.inputs.values()))  # packed K and V have one layout
        elif one.reads not in made.inputs:
            own = attempt(entry, partial(inputs.make, cell.config, shape, made.lengths, one.page_size, device,
                                         settings.seed, settings.cold_bytes, one.q_dtype, one.new_cache, one.write))
            if own is not None:
                made.inputs[one.reads] = own
    return made


def call_of(one: Contender, made: Made, copy: int) -> Thunk:
    own = made.inputs[one.reads]
    call = own.calls[copy]
    if one.prepare is not None:
        call = one.prepare(own.function, call)
    return partial(one.functions[own.function], **call)


def judge_all(cell: Cell, settings: Settings, made: Made) -> None:
    """Judge everyone's result, on the very shape or on a smaller one where the oracle would take too long.

    The oracle reads the logical layout; for a kernel with another one the same values are laid out once more.
    """
    if not settings.check:
        return
    shape = check.reduced(cell.config, cell.shape)
    seen = made if shape == cell.shape else inputs_for(cell, shape, settings)
    references: dict[tuple[int, str], check.Reference] = {}
    with seen.step():
        for entry in cell.live:
            one = entry.contender
            if one.kind == "limit":
                continue
            key = one.page_size, one.q_dtype
            if key not in references:
                plain = seen.inputs[one.reads]
                if not PHASES[shape.phase].packed_kv and one.kv_layout != AttentionBackend.kv_layout:
                    plain = inputs.make(cell.config, shape, inputs.lengths_of(shape, "cpu"), one.page_size, "cpu",
                                        settings.seed, settings.cold_bytes, one.q_dtype,
                                        partial(new_kv_cache, cell.config, "cpu"), write_kv_cache)
                references[key] = check.reference(plain.function, plain.calls[0], cell.config.dtype)
            thunk = attempt(entry, partial(call_of, one, seen, 0))
            if thunk is None or attempt(entry, thunk) is None:
                continue
            out = attempt(entry, thunk)  # finds the plan that the first call made, as every timed call does
            problem = None if out is None else _no_tensor(out)
            if problem:
                entry.fail("wrong", problem)
            if entry.status != "timed":
                continue
            verdict = references[key].judge(out)
            entry.checked, entry.error, entry.bound = shape, verdict.error, verdict.bound
            if verdict.problem:
                entry.fail("wrong", f"{verdict.problem} (on {shape})")


def warm(entry: Entry, thunks: Sequence[Thunk], cell: Cell) -> bool:
    """Call each of these copies once before the clock starts: plans are made, and a result that is no good is seen."""
    for thunk in thunks:
        out = attempt(entry, thunk)
        problem = None if out is None or entry.contender.kind == "limit" else problem_of(out, cell)
        if problem:
            entry.fail("wrong", problem)
        if entry.status != "timed":
            return False
    return True


def attempt(entry: Entry, call: Callable[[], Any]) -> Any:
    """The call's result; None where it raised, which is then the entry's reason."""
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises is the reason shown
        entry.fail("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
        return None
    if result is None:
        entry.fail("wrong", "the result is None, expected a tensor")
    return result


def _no_tensor(out: Any) -> str | None:
    import torch

    return None if isinstance(out, torch.Tensor) else f"the result is {type(out).__name__}, expected a tensor"


def problem_of(out: Tensor, cell: Cell) -> str | None:
    """Whatever shape the oracle saw: the timed one gives a finite tensor of the right shape."""
    import torch

    wrong = _no_tensor(out)
    if wrong:
        return wrong
    w, shape = widths(cell.config, cell.shape), cell.shape
    rows = (sum(shape.queries),) if PHASES[shape.phase].packed_q else (shape.batch, shape.queries[0])
    expected = (*rows, w.num_heads, w.head_dim_v)
    if tuple(out.shape) != expected:
        return f"out is {tuple(out.shape)}, expected {expected}"
    return None if bool(torch.isfinite(out).all()) else "out holds NaN or infinity"
