"""npu_fused_infer_attention_score, v1 (aclnn...V3), v2 (V4) and both on Ascend 950 (V5): what it computes.

Source: op-plugin, docs/zh/custom_APIs/torch_npu/torch_npu-npu_fused_infer_attention_score.md and .._v2.md; where a rule
is from elsewhere it says so. What the operator does not say anything about is not refused and not repaired here.
"""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import torch
from torch import Tensor

from fake_npu.fused_infer_rules import check_fused_infer

OPERATORS = tuple(f"aclnnFusedInferAttentionScore{version}" for version in ("V3", "V4", "V5"))
HIDDEN = torch.finfo(torch.float32).min
# Which dimension of a layout is which.
PACKED = ("TND", "NTD")


def _traps() -> list[str]:
    return os.environ.get("FAKE_NPU_TRAPS", "").split(",")


def by_token(x: Tensor, layout: str, heads: int) -> Tensor:
    """A tensor of any layout as [B, S, N, D], or [T, N, D] for the packed ones. A view."""
    if layout == "BSH":
        return x.unflatten(-1, (heads, x.shape[-1] // heads))
    if layout == "BNSD":
        return x.transpose(1, 2)
    if layout == "NBSD":
        return x.permute(1, 2, 0, 3)
    if layout == "NTD":
        return x.transpose(0, 1)
    return x


def from_pages(cache: Tensor, pages: Tensor, length: int, heads: int) -> Tensor:
    """[length, N, D] of one sequence. The cache's rank says its layout: 3 BnBsH, 4 BnNBsD, 5 NZ."""
    used = cache[pages.long()]
    if cache.dim() == 3:
        tokens = used.unflatten(-1, (heads, -1)).flatten(0, 1)
    elif cache.dim() == 4:
        tokens = used.transpose(1, 2).flatten(0, 1)
    else:
        tokens = used.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2)
    return tokens[:length]


def bounds(lengths: list[int] | None, batch: int, size: int) -> list[tuple[int, int]]:
    """Start and end of each sequence of an unpacked tensor. One length is everybody's; None is the whole S."""
    each = [size] * batch if lengths is None else lengths * batch if len(lengths) == 1 else lengths[:batch]
    return [(0, length) for length in each]


def cumulative(ends: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends[:-1]], ends))


def compute(a: SimpleNamespace) -> None:
    layout, _, out_layout = a.input_layout.partition("_")
    heads, kv_heads = a.num_heads, a.num_key_value_heads or a.num_heads
    query = by_token(a.query, layout, heads)
    if a.query_rope is not None:
        query = torch.cat([query, by_token(a.query_rope, layout, heads)], -1)
    packed = layout in PACKED
    queries = cumulative(a.actual_seq_lengths) if packed else bounds(a.actual_seq_lengths, *query.shape[:2])
    # "Q_S = 1: actual_seq_lengths has no effect" outside TND (v1 page, Q_S = 1).
    if not packed and query.shape[1] == 1:
        queries = [(0, 1)] * query.shape[0]
    out = by_token(a.out, out_layout or layout, heads)
    # Where no result is written there is 0, and +inf for the LSE (ops-transformer, prompt_flash_attention's
    # zero-output and its successors: "set the value of invalid batch to inf").
    out.zero_()
    if a.softmax_lse_flag:
        a.lse.fill_(math.inf)
    for b, (start, end) in enumerate(queries):
        if end == start:
            continue
        rows = slice(start, end)
        key, value = _keys(a, layout, b, kv_heads)
        if key.shape[0] == 0:
            continue
        result, lse = attend(a, query[rows] if packed else query[b, rows], key, value, b, heads // kv_heads, packed)
        (out if packed else out[b])[rows] = result.to(out.dtype)
        if a.softmax_lse_flag:  # (T, N, 1) packed, else (B, N, S, 1)
            if packed:
                a.lse[rows, :, 0] = lse.T
            else:
                a.lse[b, :, rows, 0] = lse


def _keys(a: SimpleNamespace, layout: str, b: int, heads: int) -> tuple[Tensor, Tensor]:
    """Key and value of sequence b: [S, N, D]."""
    def both(read: object, tensor: Tensor, rope: Tensor | None) -> Tensor:
        part = read(tensor)  # type: ignore[operator]
        return torch.cat([part, read(rope)], -1) if rope is not None else part  # type: ignore[operator,no-any-return]

    lengths = a.actual_seq_lengths_kv
    if a.block_table is not None:  # lengths are each sequence's own here, also with TND queries
        length = lengths[0] if len(lengths) == 1 else lengths[b]
        pages = a.block_table[b, :-(-length // a.block_size)]
        if a.block_size < 128 and "small_pages" in _traps():
            pages = pages[:1].expand_as(pages)

        def read(cache: Tensor) -> Tensor:
            return from_pages(cache, pages, length, heads)
    elif layout in PACKED:
        first, last = cumulative(lengths)[b]

        def read(cache: Tensor) -> Tensor:
            return by_token(cache, layout, heads)[first:last]
    else:
        first, last = bounds(lengths, *by_token(a.key[0], layout, heads).shape[:2])[b]

        def read(cache: Tensor) -> Tensor:
            return by_token(cache, layout, heads)[b, first:last]
    return both(read, a.key[0], a.key_rope), both(read, a.value[0], None)


def attend(a: SimpleNamespace, query: Tensor, key: Tensor, value: Tensor, b: int, group: int,
            packed: bool) -> tuple[Tensor, Tensor]:
    """Output [Sq, N, D] and LSE [N, Sq], float32."""
    key, value = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * a.scale
    if packed and a.sparse_mode == 0 and a.atten_mask is None and "uniform_average" in _traps():
        scores.zero_()
    hidden = _hidden(a, query.shape[0], key.shape[0], b, packed)
    scores = scores.masked_fill(hidden, HIDDEN)
    top = scores.amax(-1, keepdim=True)
    sink = getattr(a, "learnable_sink", None)
    if sink is not None:
        top = torch.maximum(top, sink.float()[:, None, None])
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        # V2 has the sink in the denominator and says nothing of the LSE: the log of that denominator, as it is.
        total = total + (sink.float()[:, None, None] - top).exp()
    out = torch.einsum("hqk,khd->qhd", weights / total, value)
    lse = (top + total.log())[..., 0]
    # A row that sees no key: repaired where asked for (inner_precise 2, 3) or where the mode alone tells; otherwise its
    # scores are all alike, and the result is the plain average of V (v1 page, inner_precise). The page's example of
    # such a mode is 3; of 2 and 4 nothing is said, hence the trap.
    nothing = hidden.all(-1)
    telling = (3,) if "band_keeps_empty_rows" in _traps() else (2, 3, 4)
    if a.inner_precise in (2, 3) or a.sparse_mode in telling:
        out[nothing] = 0
        lse[:, nothing] = math.inf
    return out, lse


def _hidden(a: SimpleNamespace, rows: int, columns: int, b: int, packed: bool) -> Tensor:
    """bool [rows, columns], True where a query does not see a key."""
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None]
    none = torch.zeros(rows, columns, dtype=torch.bool)
    mode, mask = a.sparse_mode, a.atten_mask
    # "Q_S = 1 without rope: sparse_mode, pre_tokens and next_tokens have no effect." The page speaks of Q_S, which TND
    # has not; vllm-ascend relies on mode 4 for windows in TND decode, so it has an effect there. TILING agrees:
    # GetLegacyIfaFlag, which drops the mode for one query, asks for BSH, BSND or BNSD with S 1.
    alone = not packed and rows == 1 and a.query_rope is None
    if alone and mode in (2, 3, 4):
        return none
    if mode in (0, 1):
        if mask is None:
            return none
        if mask.dim() == 2:  # (B, KV_S) for one query each, else (Q_S, KV_S)
            mask = mask[:, None] if alone else mask[None]
        elif mask.dim() == 4:
            mask = mask[:, 0]
        masked = mask[b if mask.shape[0] > 1 else 0, :rows, :columns] != 0
        if alone and a.block_table is not None and mode == 0 and "mask_ends_at_512" in _traps():
            masked = masked & (j < 512)
        band = none if mode == 1 or alone else (j < i - a.pre_tokens) | (j > i + a.next_tokens)
        return masked | band
    # The compressed mask is read along the diagonal, so what the caller put into it counts: 1 above the diagonal.
    offset = 0 if mode == 2 else columns - rows
    upper = a.next_tokens if mode == 4 else 0
    square = mask.reshape(mask.shape[-2:]) != 0
    distance = j - i - offset - upper  # > 0 is past the last visible key
    near = distance.clamp(-2047, 2047)
    hidden = torch.where(distance.abs() > 2047, distance > 0, square[(-near).clamp(min=0), near.clamp(min=0)])
    if mode == 4:
        # The current token is not among the "previous": npu_fusion_attention.md masks tril(diagonal -pre_tockens - 1).
        hidden = hidden | (j < i + offset - a.pre_tokens)
    return hidden


COMPUTE = dict.fromkeys(OPERATORS, compute)
CHECK = {name: (lambda a, name=name: check_fused_infer(a, name)) for name in OPERATORS}
