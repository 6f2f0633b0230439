"""Cache arguments in the forms that FlashAttention's functions take. What depends on lengths alone is computed once per
forward context and shared by all layers; nothing here makes the host wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.backends.refuse import require
from hal.plan import Planner

if TYPE_CHECKING:
    from torch import Tensor


def queries(name: str, q: Tensor, cu_seqlens_q: Any, max_seqlen_q: int | None) -> tuple[int, int]:
    """(sequences, the most queries of one). Raises ValueError naming max_seqlen_q."""
    if cu_seqlens_q is None:
        if max_seqlen_q not in (None, q.shape[1]):
            raise ValueError(f"max_seqlen_q {max_seqlen_q} is not supported ({name}: {q.shape[1]}, as q)")
        return q.shape[0], q.shape[1]
    require(name, "with cu_seqlens_q", max_seqlen_q=max_seqlen_q)
    assert max_seqlen_q is not None
    return cu_seqlens_q.shape[0] - 1, max_seqlen_q


def lengths(cache_seqlens: Any, batch: int, device: Any) -> Any:
    """int32 [B] where one number was given: the vendors spread it over the rows of the cache or of q, packed or not."""
    if isinstance(cache_seqlens, int):
        return _spread(device, (cache_seqlens,), (batch,))
    return cache_seqlens


def rows(page_table: Any, cache_batch_idx: Any, batch: int) -> Any:
    """The page table with exactly one row a sequence, as all versions want it; None stays None."""
    if page_table is None:
        return None
    if cache_batch_idx is not None:
        # Selected here: version 2 refuses the two together, 4 has no such argument.
        return _picked(page_table.device, (page_table, cache_batch_idx))
    return page_table if page_table.shape[0] == batch else _cut(page_table.device, (page_table,), (batch,))


def fused(q: Tensor, k: Tensor, cu_seqlens_q: Any, cu_seqlens_k_new: Any, batch: int, most: int) -> bool:
    """Whether a kernel's own append stores every token. It appends in its tiles of queries, and only from the first
    key that they see on: nothing for a sequence without queries, not all of more tokens than queries before a window
    (version 2: flash_fwd_kernel.h, n_block_copy_min; 3: block.h, get_n_block_k_new_min_max)."""
    each = cu_seqlens_q is None or q.shape[0] == batch * most  # as many queries of every sequence
    return cu_seqlens_k_new is None and each and k.shape[1] <= most


def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Any, cu_seqlens_k_new: Any,
          page_table: Any, cache_batch_idx: Any, batch: int) -> Any:
    """Append k and v at cache_seqlens, for functions that can't. Returns the lengths after it, int32 [B].

    page_table, cache_batch_idx: as `rows` leaves them; the latter counts without a table alone.
    """
    new = k.shape[1] if cu_seqlens_k_new is None else None
    first, second = _slots(k.device, (cache_seqlens, cu_seqlens_k_new, page_table, cache_batch_idx),
                           (batch, new, k.numel() // (k.shape[-1] * k.shape[-2]), k_cache.shape[1]))
    for tokens, cache in ((k, k_cache), (v, v_cache)):
        cache[first, second] = tokens.reshape(-1, *tokens.shape[-2:])
    return _after(k.device, (cache_seqlens, cu_seqlens_k_new), (new,))


def turned(q: Tensor, k: Tensor, cache_seqlens: Any, cu_seqlens_q: Any, cu_seqlens_k_new: Any, moving: bool, *,
           cos: Any, sin: Any, seqlens: Any, interleaved: Any) -> tuple[Tensor, Tensor]:
    """q and new k with the rotary embedding of the contract, for appends that no kernel makes. moving: q's positions go
    up from cache_seqlens (or rotary_seqlens), else all are there: causal or local, or neither. The last four are the
    call's rotary_*."""
    starts = cache_seqlens if seqlens is None else seqlens
    interleaved = interleaved is not False  # the contract's default

    def rotate(x: Tensor, cu_seqlens: Any, steps: bool) -> Tensor:
        each = x.shape[1] if cu_seqlens is None else 0
        flat = x.reshape(-1, *x.shape[-2:])
        at = _positions(x.device, (starts, cu_seqlens), (flat.shape[0], each, steps))
        c, s = (table.index_select(0, at).float()[:, None] for table in (cos, sin))
        half, wide = cos.shape[1], flat.float()
        one, two = ((slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved
                    else (slice(0, half), slice(half, 2 * half)))
        out = wide.clone()
        out[..., one], out[..., two] = (wide[..., one] * c - wide[..., two] * s,
                                        wide[..., one] * s + wide[..., two] * c)
        return out.to(x.dtype).view(x.shape)

    return rotate(q, cu_seqlens_q, moving), rotate(k, cu_seqlens_k_new, True)


def owners(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(sequence, row) of each of `total` packed rows, int64."""
    import torch

    row = torch.arange(total, device=cu_seqlens.device)
    return (row[:, None] >= cu_seqlens[1:]).sum(1), row


def _make_spread(device: Any, length: int, batch: int) -> Tensor:
    import torch

    return torch.full((batch,), length, dtype=torch.int32, device=device)


def _make_cut(device: Any, page_table: Tensor, batch: int) -> Tensor:
    return page_table[:batch]


def _make_positions(device: Any, starts: Tensor, cu_seqlens: Any, total: int, each: int, steps: bool) -> Tensor:
    """int64 [total]: where each row stands; each: rows of a sequence where there is no cu_seqlens."""
    import torch

    if cu_seqlens is None:
        row = torch.arange(total, device=device)
        owner, offset = row // max(each, 1), row % max(each, 1)
    else:
        owner, row = owners(cu_seqlens, total)
        offset = row - cu_seqlens[owner]
    return starts[owner].long() + (offset if steps else 0)


def _make_picked(device: Any, page_table: Tensor, cache_batch_idx: Tensor) -> Tensor:
    return page_table.index_select(0, cache_batch_idx)


def _make_slots(device: Any, seqlens: Tensor, cu_new: Any, table: Any, index: Any, batch: int, new: int | None,
                total: int, page_size: int) -> tuple[Tensor, Tensor]:
    import torch

    if cu_new is None:
        row = torch.arange(total, device=device)
        owner, offset = row // max(new or 0, 1), row % max(new or 0, 1)
    else:
        owner, row = owners(cu_new, total)
        offset = row - cu_new[owner]
    position = seqlens[owner].long() + offset
    if table is None:
        return (owner if index is None else index[owner].long()), position
    return table[owner, position // page_size].long(), position % page_size


def _make_after(device: Any, seqlens: Tensor, cu_new: Any, new: int | None) -> Tensor:
    return seqlens + (cu_new[1:] - cu_new[:-1] if new is None else new)


_spread, _picked, _cut, _slots, _after, _positions = (Planner(make) for make in (
    _make_spread, _make_picked, _make_cut, _make_slots, _make_after, _make_positions))
