"""What 310P's ops want to know of a step's lengths, made once per forward context: see hal/plan.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from hal.backends.ascend_310p_cache import TILE, rows, triangle
from hal.backends.ascend_310p_rules import RULES, check
from hal.backends.ascend_plans import _between, _hosts, _longest, _queries, on_device
from hal.plan import Planner

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOKENS: int = RULES["multiple of packed tokens"].limit


class Step(NamedTuple):
    """A call's lengths as an op takes them.

    queries: tokens of each sequence, int32 on the host. keys: how many each one sees, int32 on the device; packed
    keys are as many as their queries. mask: format NZ; None where each sequence has one query. order, keys_order: rows
    of q, and of packed k and v, as the op gets them, None where nothing moves. back: where each row of q is in the op's
    result. table: sequences that are called for, None for all. blind: rows of q that see no key.
    """

    queries: Tensor
    keys: Tensor | None
    mask: Tensor | None
    order: Tensor | None = None
    keys_order: Tensor | None = None
    back: Tensor | None = None
    table: Tensor | None = None
    blind: Tensor | None = None


def _int32(values: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(values, device="cpu").int()


def _check_mask(name: str, causal: bool, queries: Sequence[int]) -> None:
    """Its masks are triangles; one query sees all the keys with or without."""
    if not causal and max(queries, default=0) > 1:
        raise ValueError(f"causal False is not supported ({name}: True, where a sequence has more than one query, here "
                         f"{max(queries)})")


def _moved(order: list[int], total: int, device: torch.device) -> Tensor | None:
    return None if order == list(range(total)) else on_device(order, device)


def _backed(order: list[int], seeing: list[int], total: int, device: torch.device) -> dict[str, Tensor | None]:
    """back and blind. order: of the op's rows. seeing: those of them that are asked for."""
    where = {order[at]: at for at in seeing}
    if len(order) == total and list(where) == list(range(total)):
        return {"back": None, "blind": None}
    blind = [i for i in range(total) if i not in where]
    return {"back": on_device([where.get(i, 0) for i in range(total)], device),
            "blind": on_device(blind, device) if blind else None}


def cached(name: str) -> Planner:
    """Steps over pages; None where no query sees a key."""

    def ascend_310p_cached(device: torch.device, seqlens: Any, cu_seqlens_q: Tensor | None, batch: int, len_q: int,
                           total_q: int, max_seqlen_q: int | None, width: int, page_size: int,
                           causal: bool) -> Step | None:
        given = [x for x in (cu_seqlens_q, seqlens) if x is not None and not isinstance(x, int)]
        found = dict(zip(map(id, given), _hosts(given)))
        queries = _queries(name, found.get(id(cu_seqlens_q)), batch, len_q, total_q, max_seqlen_q)
        keys = found.get(id(seqlens)) or ((seqlens,) * batch if isinstance(seqlens, int) else ())
        if len(keys) != batch:
            raise ValueError(f"cache_seqlens of {len(keys)} is not supported ({name}: {batch}, as there are sequences)")
        if not all(0 <= count <= width for count in keys):
            raise ValueError(f"cache_seqlens from {min(keys)} to {max(keys)} is not supported ({name}: 0 to {width}, "
                             "the room in page_table)")
        _check_mask(name, causal, queries)
        ends = list(accumulate(queries))
        # An op of many queries takes no sequence without them, and one of single queries writes nothing without keys.
        seen = [b for b in range(batch) if min(queries[b], keys[b])]
        if not seen:
            return None
        counts = [min(queries[b], keys[b]) for b in seen]  # the first queries of more than there are keys see none
        single = max(queries) == 1
        check(name, "sequences of one query" if single else "sequences", len(seen))
        order = [i for b, count in zip(seen, counts) for i in range(ends[b] - count, ends[b])]
        mask = None
        if not single:
            last = [keys[b] - count + i for b, count in zip(seen, counts) for i in range(count)]
            last += [0] * (-len(last) % TILE)
            mask = rows(on_device(last, device), -(-max(keys[b] for b in seen) // page_size) * page_size)
        whole = len(seen) == batch
        of_keys = seqlens if whole and not isinstance(seqlens, int) else on_device([keys[b] for b in seen], device)
        return Step(_int32(counts), of_keys.int().contiguous(), mask, _moved(order, total_q, device),
                    table=None if whole else on_device(seen, device),
                    **_backed(order, list(range(len(order))), total_q, device))

    return Planner(ascend_310p_cached)


def packed(name: str) -> Planner:
    """Steps over packed keys; None where no query sees a key.

    The op takes as many keys as queries of each sequence and, all together, a multiple of 16 tokens: queries that are
    fewer are moved to the end, behind copies that nobody looks at, and the last sequence is made longer (as
    vllm-ascend does), where it changes nothing for those before.
    """

    def ascend_310p_packed(device: torch.device, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_q: int,
                           total_k: int, max_seqlen_q: int | None, max_seqlen_k: int | None,
                           causal: bool) -> Step | None:
        ends_q, ends_k = _hosts([cu_seqlens_q, cu_seqlens_k])
        queries = _queries(name, ends_q, 0, 0, total_q, max_seqlen_q)
        keys = _between("cu_seqlens_k", ends_k, total_k, name)
        if len(keys) != len(queries):
            raise ValueError(f"cu_seqlens_k of {len(keys)} sequences is not supported ({name}: {len(queries)}, as "
                             "cu_seqlens_q)")
        _longest("max_seqlen_k", max_seqlen_k, keys, name)
        _check_mask(name, causal, queries)
        order: list[int] = []
        of_keys: list[int] = []
        seeing: list[int] = []
        lengths: list[int] = []
        for b, (count, length) in enumerate(zip(queries, keys)):
            count = min(count, length)
            if not count:
                continue
            lengths.append(length)
            seeing += range(len(order) + length - count, len(order) + length)
            order += [ends_q[b + 1] - 1] * (length - count) + list(range(ends_q[b + 1] - count, ends_q[b + 1]))
            of_keys += range(ends_k[b], ends_k[b + 1])
        if not lengths:
            return None
        check(name, "sequences", len(lengths))
        more = -len(order) % TOKENS
        lengths[-1] += more
        order, of_keys = order + order[-1:] * more, of_keys + of_keys[-1:] * more
        size = max(128, 1 << (max(lengths) - 1).bit_length())  # few sizes, so that a mask serves many steps
        return Step(_int32(lengths), None, triangle(device, size), _moved(order, total_q, device),
                    _moved(of_keys, total_k, device), **_backed(order, seeing, total_q, device))

    return Planner(ascend_310p_packed)
