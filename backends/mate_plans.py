"""What MATE's functions want beside the call's own arguments, made once per forward context: see hal/plan.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.plan import Planner

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# csrc/mla_pybind.mu, dispatch_mla_impl_for_fa_interface: 8 int32 a part, as many parts as there are multiprocessors
# at most (56 on MP31; there is room for 2048), then an int32 a sequence and one.
_PARTS_BYTES, _SEQUENCE_BYTES = 2048 * 8 * 4, 4


def lengths() -> Planner:
    """cache_seqlens given as one number: int32 [batch]. MATE itself makes as many as the cache has *pages*."""

    def mate_lengths(device: torch.device, length: int, batch: int) -> Tensor:
        import torch

        return torch.full((batch,), length, dtype=torch.int32, device=device)

    return Planner(mate_lengths)


def schedules(vendor: Callable[..., Any]) -> Planner:
    """int32 [4 * batch], of get_scheduler_metadata. The forward call checks no more than its size, so everything that
    the two compute alike (tile sizes, splits, masks) is given to both from the same values."""

    def mate_schedule(device: torch.device, cache_seqlens: Tensor | None, cu_seqlens_q: Tensor | None,
                      cu_seqlens_k_new: Tensor | None, batch: int, max_seqlen_q: int, max_seqlen_k: int,
                      max_seqlen_k_new: int, num_heads: int, num_kv_heads: int, head_dim: int, head_dim_v: int,
                      dtype: torch.dtype, page_size: int | None, causal: bool, window: tuple[int, int],
                      has_softcap: bool, num_splits: int, pack_gqa: bool | None, sm_margin: int) -> Any:
        # Its kernel divides by the number of tiles: none, where every sequence is empty (metadata.hpp, num_splits).
        used = None if cache_seqlens is None else cache_seqlens.clamp(min=1)
        with _current(device):  # it allocates on device="musa", the current one
            return vendor(batch_size=batch, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
                          num_heads_q=num_heads, num_heads_kv=num_kv_heads, headdim=head_dim, headdim_v=head_dim_v,
                          seqused_k=used, qkv_dtype=dtype, cu_seqlens_q=cu_seqlens_q,
                          cu_seqlens_k_new=cu_seqlens_k_new, page_size=page_size, max_seqlen_k_new=max_seqlen_k_new,
                          causal=causal, window_size=window, has_softcap=has_softcap, num_splits=num_splits,
                          pack_gqa=pack_gqa, mp_margin=sm_margin)

    return Planner(mate_schedule)


def _current(device: torch.device) -> Any:
    """A guard that makes `device` current; nothing for device types that have but one (the CPU)."""
    import torch

    guard = getattr(getattr(torch, device.type), "device", None)
    return contextlib.nullcontext() if guard is None else guard(device)


def rotations() -> Planner:
    """rotary_cos or rotary_sin [rows, rotary_dim / 2], with the rows it lacks: MATE asks for one for every token that
    page_table has room for, and reads those of the tokens that there are."""

    def mate_rotation(device: torch.device, table: Tensor, rows: int) -> Tensor:
        import torch

        return torch.nn.functional.pad(table, (0, 0, 0, rows - table.shape[0]))

    return Planner(mate_rotation)


def workspaces() -> Planner:
    """[workspace, is_initialised] of the MLA branch: the first layer's call fills it with a schedule of these lengths,
    the others follow that. The adapter sets the flag, on the stream that the plan is keyed by."""

    def mate_workspace(device: torch.device, cache_seqlens: Tensor, batch: int, max_seqlen_q: int,
                       num_heads: int) -> list[Any]:
        import torch

        size = _PARTS_BYTES + _SEQUENCE_BYTES * (batch + 1)
        return [torch.zeros(size, dtype=torch.uint8, device=device), False]

    return Planner(mate_workspace)


def blind_rows() -> Planner:
    """bool [B, Sq], or [total_q] with cu_seqlens_q: query rows that see no key. The MLA branch leaves NaN there, or 0
    with an LSE of +inf, by how the schedule split them (mpxx_mla_combine.hpp)."""

    def mate_blind_rows(device: torch.device, cache_seqlens: Tensor, cu_seqlens_q: Tensor | None, rows: int,
                        causal: bool) -> Tensor:
        import torch

        row = torch.arange(rows, device=device)
        if cu_seqlens_q is None:  # rows of each sequence
            keys = cache_seqlens[:, None] + (row - rows + 1 if causal else 0 * row)
            return keys <= 0
        ends = cu_seqlens_q[1:]
        sequence = (row[:, None] >= ends).sum(1).clamp(max=ends.shape[0] - 1)
        keys = cache_seqlens[sequence] + (row - ends[sequence] + 1 if causal else 0 * row)
        return keys <= 0

    return Planner(mate_blind_rows)
