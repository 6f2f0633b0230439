"""One contender's call on one shape: made, tried, and compared with the float64 oracle before it may be timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend
from hal.bench import check, inputs
from hal.bench.cells import Cell, Entry, Settings
from hal.bench.contenders import Contender
from hal.bench.shapes import PHASES, Shape, widths
from hal.bench.timing import Thunk
from hal.kv_cache import new_kv_cache, write_kv_cache

if TYPE_CHECKING:
    from torch import Tensor

# (page size, layout, dtype of q) -> the inputs in it
Made = dict[tuple[int, str, str], inputs.Inputs]


def inputs_for(cell: Cell, shape: Shape, settings: Settings) -> Made:
    """Inputs for everyone in play; who reads the same layout shares them."""
    made: Made = {}
    packed = PHASES[shape.phase].packed_kv
    for entry in cell.live:
        one = entry.contender
        if packed and made:
            made[one.reads] = next(iter(made.values()))  # packed K and V have one layout
        elif one.reads not in made:
            made[one.reads] = inputs.make(
                cell.config, shape, one.page_size, settings.platform.torch_device, settings.seed, settings.cold_bytes,
                one.q_dtype, one.new_cache, one.write)
    return made


def call_of(one: Contender, made: inputs.Inputs, copy: int) -> Thunk:
    call = made.calls[copy]
    if one.prepare is not None:
        call = one.prepare(made.function, call)
    return partial(one.functions[made.function], **call)


def judge_all(cell: Cell, settings: Settings, made: Made) -> None:
    """Judge everyone's result, on the very shape or on a smaller one where the oracle would take too long.

    The oracle reads the logical layout; for a kernel with another one the same values are laid out once more.
    """
    if not settings.check:
        return
    shape = check.reduced(cell.config, cell.shape)
    seen = made if shape == cell.shape else inputs_for(cell, shape, settings)
    references: dict[tuple[int, str], check.Reference] = {}
    for entry in cell.live:
        one, (page_size, layout, q_dtype) = seen[entry.contender.reads], entry.contender.reads
        key = page_size, q_dtype
        if key not in references:
            plain = one if PHASES[shape.phase].packed_kv or layout == AttentionBackend.kv_layout else inputs.make(
                cell.config, shape, page_size, "cpu", settings.seed, settings.cold_bytes, q_dtype,
                partial(new_kv_cache, cell.config, "cpu"), write_kv_cache)
            references[key] = check.reference(plain.function, plain.calls[0], cell.config.dtype)
        thunk = attempt(entry, partial(call_of, entry.contender, one, 0))
        out = None if thunk is None else attempt(entry, thunk)
        if out is None:
            continue
        problem = _no_tensor(out)
        if problem:
            entry.fail("wrong", problem)
            continue
        verdict = references[key].judge(out)
        entry.checked, entry.error, entry.bound = shape, verdict.error, verdict.bound
        if verdict.problem:
            entry.fail("wrong", f"{verdict.problem} (on {shape})")


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
