"""What Ascend's ops want to know of a step's lengths, on the host, made once per forward context: see hal/plan.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from hal.backends.ascend_rules import RULES, check
from hal.context import hosts
from hal.graph import in_graph
from hal.plan import Planner

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Row(NamedTuple):
    """One sequence as the op sees it. queries: rows of q. keys: how many. owner: whose keys."""

    queries: range
    keys: int
    owner: int


class Shares(NamedTuple):
    """How a call's sequences become rows. most: query tokens of a row. after: keys beyond its own that a query sees,
    None where there is no bound. world, rank, totals: context parallelism, with the tokens that all ranks hold of each
    sequence."""

    causal: bool
    most: int | None = None
    world: int = 1
    rank: int = 0
    totals: tuple[int, ...] = ()
    after: int | None = None


def rows_of(queries: Sequence[int], keys: Sequence[int], how: Shares) -> Iterator[Row]:
    """Rows, each bottom-right aligned if causal, which together are the sequences.

    With context parallelism a rank's keys are every world-th token, so queries that are world apart see one key more
    each: they are a causal row of their own.
    """
    start = 0
    for owner, (count, seen) in enumerate(zip(queries, keys)):
        parts = [(range(start, start + count), seen)]
        if how.world > 1 and how.causal:
            first = how.totals[owner] - count  # position of the first query
            parts = []
            for offset in range(min(how.world, count)):
                part = range(start + offset, start + count, how.world)
                last = first + part[-1] - start
                parts.append((part, min(seen, max(0, (last - how.rank) // how.world + 1))))
        for part, visible in parts:
            step = how.most or max(1, len(part))
            for at in range(0, len(part), step):
                piece = part[at:at + step]
                behind = len(part) - at - len(piece)  # queries after this piece
                yield Row(piece, max(0, visible - behind) if how.causal else visible, owner)
            if not part and how.most is None and how.world == 1:
                yield Row(part, visible, owner)  # so that rows stay sequences
        start += count


def _rows(name: str, queries: Sequence[int], keys: Sequence[int], how: Shares) -> list[Row]:
    """rows_of(). Raises ValueError where they are more than the op takes."""
    if how.world > 1 and len(how.totals) != len(queries):
        raise ValueError(f"cp_tot_seqused_k of {len(how.totals)} is not supported ({name}: {len(queries)}, as there "
                         "are sequences)")
    check(name, None, "keys of a sequence with one query", max((k for q, k in zip(queries, keys) if q == 1), default=0))
    rows, rule = list(rows_of(queries, keys, how)), RULES["sequences"]
    if rule.breaks(len(rows)):
        apart = f" in {how.world} interleaved parts (cp_world_size)" if how.world > 1 else ""
        size = f" in rows of up to {how.most} tokens" if how.most else ""
        raise ValueError(f"rows of queries {len(rows)} is not supported ({name}: {rule}; here {len(queries)} sequences "
                         f"go{apart}{size}): call it for fewer queries at a time")
    return rows


class Step:
    """A call's lengths as the op takes them.

    q_ends: where each row's queries end. keys: each row's keys, of paged ones; where they end, of packed ones. order,
    back: rows of q as the op gets them and the way back, None where nothing moves. source: rows of packed k and v, or
    None. table: the page table with a row for each row, None for the call's own. empty: there is no key at all. blind:
    rows of the op's q that see no key beside others that do, or None. tasks: captured calls, to be updated before a
    replay (ascend_fused.py).
    """

    __slots__ = ("back", "blind", "empty", "keys", "order", "q_ends", "source", "table", "tasks")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.q_ends = list(accumulate(len(row.queries) for row in rows))
        self.keys = [row.keys for row in rows]
        self.empty = not any(self.keys)
        self.blind: Tensor | None = None
        self.order: Tensor | None = None
        self.back: Tensor | None = None
        self.source: Tensor | None = None
        self.table: Tensor | None = None
        self.tasks: list[Callable[[], None]] = []

    def hide(self, rows: Sequence[Row], after: int | None, device: torch.device) -> None:
        """Sets blind. V1, inner_precise, names sparse_mode 3 alone as one that sees to such rows unasked, and V2 takes
        nothing but inner_precise 0 of bfloat16 in TND: so the adapter does."""
        blind: list[int] = []
        start = 0
        for row in rows:
            if after is not None and row.keys:
                blind += range(start, start + max(0, len(row.queries) - row.keys - after))
            start += len(row.queries)
        self.blind = on_device(blind, device) if blind else None

    def sort(self, rows: Sequence[Row], device: torch.device) -> None:
        """Sets order and back, where context parallelism took rows apart."""
        order = [i for row in rows for i in row.queries]
        if order != list(range(len(order))):
            back = [0] * len(order)
            for at, i in enumerate(order):
                back[i] = at
            self.order, self.back = on_device(order, device), on_device(back, device)

    def refresh(self, new: Step, device: torch.device) -> None:
        """Takes the lengths of `new`, in the memory that a graph knows, and updates the captured calls."""
        for name in ("order", "back", "source", "table"):
            before, after = getattr(self, name), getattr(new, name)
            if (before is None) != (after is None) or (before is not None and before.shape != after.shape):
                raise RuntimeError(f"the {name} of an Ascend call changed its shape since it was captured: a graph "
                                   "can't follow")
            if before is not None:
                before.copy_(after)
        self.q_ends, self.keys, self.empty, self.blind = new.q_ends, new.keys, new.empty, new.blind
        if self.tasks:
            import torch_npu

            # Not before the replay that was started last has run: it would run with these lengths, or take this one's
            # event for its own and leave the next replay without.
            update_stream(device).wait_stream(torch_npu.npu.current_stream(device))
        for task in self.tasks:
            task()


@cache
def update_stream(device: torch.device) -> Any:
    """The stream on which captured calls get their lengths."""
    import torch_npu

    return torch_npu.npu.Stream(device)


def on_device(values: Sequence[int], device: torch.device) -> Tensor:
    """int64 on the device, without waiting for it."""
    import torch

    tensor = torch.tensor(values, device="cpu").long()  # an empty list's are floats
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _queries(name: str, cu_seqlens_q: tuple[int, ...] | None, batch: int, len_q: int, total_q: int,
             max_seqlen_q: int | None) -> list[int]:
    """Query tokens of each sequence. Raises ValueError for what the op would take for something else."""
    if cu_seqlens_q is None:
        counts = [len_q] * batch
    else:
        counts = _between("cu_seqlens_q", cu_seqlens_q, total_q, name)
    check(name, None, "sequences", len(counts))
    _longest("max_seqlen_q", max_seqlen_q, counts, name)
    return counts


def _between(argument: str, ends: tuple[int, ...], total: int, name: str) -> list[int]:
    counts = [b - a for a, b in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != total or min(counts, default=0) < 0:
        raise ValueError(f"{argument} {list(ends[:4])} to {ends[-1]} is not supported ({name}: from 0 to {total}, the "
                         "tokens there are, never less)")
    return counts


def _longest(argument: str, longest: int | None, counts: Sequence[int], name: str) -> None:
    # The op takes no such argument, so it can only be wrong.
    seen = max(counts, default=0)
    if longest is not None and longest < seen:
        raise ValueError(f"{argument} {longest} is not supported for this call ({name}: at least {seen}, the longest "
                         "sequence)")


def cached(name: str) -> Planner:
    """Steps over a cache: paged, or [B, S, Hkv, D] (whose keys are gathered: the op wants them packed)."""

    def ascend_cached(device: torch.device, seqlens: Any, cu_seqlens_q: Tensor | None, totals: Tensor | None,
                      table: Tensor | None, batch: int, len_q: int, total_q: int, max_seqlen_q: int | None, width: int,
                      paged: bool, how: Shares) -> Step:
        given = [x for x in (cu_seqlens_q, totals, seqlens) if x is not None and not isinstance(x, int)]
        found = dict(zip(map(id, given), _hosts(given)))
        queries = _queries(name, found.get(id(cu_seqlens_q)), batch, len_q, total_q, max_seqlen_q)
        keys = found.get(id(seqlens))
        if keys is None:
            keys = (width if seqlens is None else seqlens,) * batch
        if len(keys) != batch:
            raise ValueError(f"cache_seqlens of {len(keys)} is not supported ({name}: {batch}, as there are sequences)")
        if not all(0 <= count <= width for count in keys):
            raise ValueError(f"cache_seqlens from {min(keys)} to {max(keys)} is not supported ({name}: 0 to {width}, "
                             "the room in page_table or the cache)")
        rows = _rows(name, queries, keys, how._replace(totals=found.get(id(totals), ())))
        step = Step(rows)
        step.hide(rows, how.after, device)
        if how.world > 1:
            step.sort(rows, device)
        if paged:
            if [row.owner for row in rows] != list(range(batch)):
                assert table is not None
                step.table = table.index_select(0, on_device([row.owner for row in rows], device))
            return step
        if any(row.keys != width for row in rows) or len(rows) != batch:
            step.source = on_device([i for row in rows for i in range(row.owner * width, row.owner * width + row.keys)],
                                    device)
        step.keys = list(accumulate(step.keys))
        return step

    return Planner(ascend_cached, _refresh(ascend_cached), lambda step: step.tasks.clear())


def packed(name: str) -> Planner:
    """Steps over packed keys."""

    def ascend_packed(device: torch.device, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, totals: Tensor | None,
                      total_q: int, total_k: int, max_seqlen_q: int | None, max_seqlen_k: int | None,
                      how: Shares) -> Step:
        ends_q, ends_k, *tokens = _hosts([x for x in (cu_seqlens_q, cu_seqlens_k, totals) if x is not None])
        queries = _queries(name, ends_q, 0, 0, total_q, max_seqlen_q)
        keys = _between("cu_seqlens_k", ends_k, total_k, name)
        if len(keys) != len(queries):
            raise ValueError(f"cu_seqlens_k of {len(keys)} sequences is not supported ({name}: {len(queries)}, as "
                             "cu_seqlens_q)")
        _longest("max_seqlen_k", max_seqlen_k, keys, name)
        rows = _rows(name, queries, keys, how._replace(totals=tokens[0] if tokens else ()))
        step = Step(rows)
        step.hide(rows, how.after, device)
        if how.world > 1:
            step.sort(rows, device)
            source = [i for row in rows for i in range(ends_k[row.owner], ends_k[row.owner] + row.keys)]
            if source != list(range(total_k)):
                step.source = on_device(source, device)
        step.keys = list(accumulate(step.keys))
        return step

    return Planner(ascend_packed, _refresh(ascend_packed), lambda step: step.tasks.clear())


def _refresh(make: Callable[..., Step]) -> Callable[..., None]:
    def refresh(plan: Step, device: torch.device, *arguments: Any) -> None:
        plan.refresh(make(device, *arguments), device)

    return refresh


def _hosts(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return hosts(*tensors) if tensors else ()


class Slots(NamedTuple):
    """What is written: rows of k and v (None: all, as they come), and their slots."""

    source: Tensor | None
    slots: Tensor


def slots(name: str) -> Planner:
    """Slots without those of -1, for which the op has no rule."""

    def ascend_slots(device: torch.device, slot_mapping: Tensor, room: int) -> Slots:
        if in_graph(slot_mapping, "slot_mapping"):  # graph_state gave every token a slot
            return Slots(None, slot_mapping)
        values = hosts(slot_mapping)[0]
        wrong = next((slot for slot in values if not -1 <= slot < room), None)
        if wrong is not None:
            raise ValueError(f"slot_mapping holds {wrong}, which is not supported ({name}: -1, skipped, or 0 to "
                             f"{room - 1})")
        kept = [i for i, slot in enumerate(values) if slot >= 0]
        if len({values[i] for i in kept}) < len(kept):
            twice = next(slot for slot, count in Counter(values).items() if count > 1 and slot >= 0)
            raise ValueError(f"slot_mapping holds {twice} more than once, which is not supported ({name}: each slot "
                             "once)")
        if len(kept) == len(values):
            return Slots(None, slot_mapping)
        source = on_device(kept, device)
        return Slots(source, slot_mapping.index_select(0, source))

    return Planner(ascend_slots)
