"""Merging partial attention results by their LSE."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def merge_attention_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the attention over each.

    For cascades, context parallelism and chunked contexts. out: [total_q, H, Dv] with lse [H, total_q], or
    [B, Sq, H, Dv] with lse [B, H, Sq]; lse natural log, float32 (or float64). A partial with LSE -inf is ignored
    whatever its output holds; both empty gives 0 and -inf. A sink must be in exactly one partial.
    Returns (out in out_a's dtype, lse in lse_a's dtype). Raises ValueError for shapes that do not belong together,
    and for +inf, which some kernels give for empty rows: adapters normalise it.
    """
    import torch

    if out_a.shape != out_b.shape:
        raise ValueError(f"out_b has shape {tuple(out_b.shape)}, expected out_a's {tuple(out_a.shape)}")
    if out_a.dim() not in (3, 4):
        raise ValueError(f"out_a has shape {tuple(out_a.shape)}, expected [total_q, H, D] or [B, Sq, H, D]")
    rows = tuple(out_a.shape[:-1])
    expected = (rows[1], rows[0]) if out_a.dim() == 3 else (rows[0], rows[2], rows[1])
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        if tuple(lse.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(lse.shape)}, expected {expected} for out_a "
                             f"{tuple(out_a.shape)}")
        if lse.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {lse.dtype}, expected torch.float32 or torch.float64 (natural log)")
        if lse.device.type == "cpu" and bool((lse == float("inf")).any()):
            raise ValueError(f"{name} holds +inf, expected -inf for a row that saw no key")
    top = torch.maximum(lse_a, lse_b)
    shift = torch.where(top == float("-inf"), torch.zeros_like(top), top)
    weight_a, weight_b = torch.exp(lse_a - shift), torch.exp(lse_b - shift)
    total = weight_a + weight_b
    # total is 0 only where both are empty; a NaN stays one rather than looking like an empty row.
    lse = torch.where(total == 0, torch.full_like(total, float("-inf")), shift + torch.log(total)).to(lse_a.dtype)

    def part(out: Tensor, weight: Tensor) -> Tensor:
        # An ignored partial may hold NaN, and 0 * NaN is NaN. total is at least 1 where any weight is not 0.
        share = (weight / torch.where(total == 0, torch.ones_like(total), total)).transpose(-1, -2).unsqueeze(-1)
        wide = torch.promote_types(out.dtype, share.dtype)
        return torch.where(share == 0, torch.zeros((), dtype=wide, device=out.device), out.to(wide) * share.to(wide))

    return (part(out_a, weight_a) + part(out_b, weight_b)).to(out_a.dtype), lse
