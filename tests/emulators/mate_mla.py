"""MATE's latent path: flash_attn_with_kvcache with qv of 512 and q of 64, csrc/mla_pybind.mu:852-955.

Ignored there, whatever is passed (mate/mha_interface.py:921-945): window_size, softcap, learnable_sink,
attention_chunk, k, v, rotary_*, cache_batch_idx, cache_leftpad, cu_seqlens_k_new, num_splits, q/k/v_descale, cp_*.
"""

from __future__ import annotations

import math
import types
from typing import Any

import torch

from emulators.devices import plain_of, tag_of
from emulators.mate_common import TILE_N, Machine, Unspecified, ceil_div, icheck, ints, is_musa, like, unwritten
from emulators.mate_schedule import PART, latent, parts

LATENT, ROPE = 512, 64


def _prepared(x: torch.Tensor, dense: bool) -> torch.Tensor:
    """mate/mha_interface.py:144-156: copied where the kernel could not express its strides."""
    if x.stride(-1) != 1 or (dense and x.stride(-3) != x.shape[-2] * x.stride(-2)):
        return x.contiguous()
    return x


def _same(a: torch.Tensor, b: torch.Tensor) -> None:
    """CHECK_MUSA and CHECK_DEVICE of csrc/tvm_ffi_utils.hpp:20, 51-53."""
    icheck(is_musa(a), "must be a MUSA tensor")
    icheck(tag_of(a) == tag_of(b), f"Check failed: device_id ({tag_of(a)} vs. {tag_of(b)})")


def _shape(x: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
    icheck(tuple(x.shape) == shape, f"{name} has shape {tuple(x.shape)}, expected {shape}")


def forward(a: types.SimpleNamespace, machine: Machine, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): lse is [B, Sq, H] here, and [H, total_q] with cu_seqlens_q (mate/mha_interface.py:118-141)."""
    for name in ("cache_seqlens", "page_table"):
        if getattr(a, name) is None:  # no Optional in the C++ signature: mla_pybind.mu:856-857
            raise TypeError(f"dispatch_mla_impl_for_fa_interface: {name} must be a Tensor, not None")
    by_asm = a.qv.shape[-2] == 128
    qv, q = _prepared(a.qv, not by_asm), _prepared(a.q, not by_asm)
    heads = qv.shape[-2]
    if a.cu_seqlens_q is not None and a.max_seqlen_q is None:
        raise RuntimeError("max_seqlen_q must be provided when cu_seqlens_q is provided")
    len_q = qv.shape[1] if a.cu_seqlens_q is None else a.max_seqlen_q
    batch = a.cache_seqlens.shape[0]
    given = a.scheduler_metadata
    workspace: Any = None
    workspace, ready = given if given is not None else (None, False)
    icheck(workspace is not None, "workspace must be provided")
    icheck(is_musa(workspace), "workspace.value() must be a MUSA tensor")
    icheck(workspace.is_contiguous(), "workspace.value() must be contiguous")
    _same(workspace, qv)
    icheck(workspace.dim() == 1, "workspace.value() must be a 1D tensor")
    icheck(workspace.dtype == torch.uint8, "Inconsistency of Tensor type: workspace.value()")
    count = parts(machine, len_q * heads)
    size = (count * PART + batch + 1) * 4
    icheck(workspace.numel() >= size, "workspace is too small for MLA scheduler metadata")
    memory = plain_of(workspace)[:size].view(torch.int32)
    if not ready:  # the flag is believed: nothing ties the workspace to this call's lengths, batch or queries
        icheck(a.cache_seqlens.dtype == torch.int32, "Inconsistency of Tensor type: seqlens_k.value()")
        icheck(is_musa(a.cache_seqlens), "seqlens_k.value() must be a MUSA tensor")
        table, cumulated = latent(count, ints(a.cache_seqlens))
        memory[:] = torch.tensor([x for row in table for x in row] + cumulated, dtype=torch.int32)
    _check(a, q, qv, by_asm)
    out = unwritten((*q.shape[:-1], LATENT), q.dtype)
    lse = unwritten(tuple(q.shape[:-1]) if q.dim() == 4 else (q.shape[1], q.shape[0]), torch.float32)
    _run(a, plain_of(q), plain_of(qv), scale, memory.tolist(), count, out, lse, by_asm)
    return like(out, q), like(lse, q)


def _check(a: types.SimpleNamespace, q: torch.Tensor, qv: torch.Tensor, by_asm: bool) -> None:
    """mla_pybind.mu:323-406; with 128 heads csrc/flash_mla_asm.mu:487-598."""
    ckv, kpe, lens, table = a.v_cache, a.k_cache, a.cache_seqlens, a.page_table
    for x in (q, ckv, kpe, lens, table):
        _same(x, qv)
    dtypes = {x.dtype for x in (q, qv, ckv, kpe)}
    same = "q_nope, q_pe, ckv and kpe must have the same dtype" if by_asm else "input tensor dtypes must match"
    half = f"{'flash_mla_asm' if by_asm else 'mla'} only supports fp16 and bf16"
    wrong = [half, same] if not by_asm else [same, half]
    for message in wrong:
        icheck(len(dtypes) == 1 if message == same else qv.dtype in (torch.float16, torch.bfloat16), message)
    icheck(lens.is_contiguous(), "seqlens_k must be contiguous")
    icheck(lens.dtype == torch.int32, "Inconsistency of Tensor type: seqlens_k")
    icheck(table.dtype == torch.int32, "Inconsistency of Tensor type: block_table")
    icheck(table.stride(-1) == 1, "block_table must have contiguous last dimension")
    batch = qv.shape[0]
    if a.cu_seqlens_q is not None:
        _same(a.cu_seqlens_q, qv)
        icheck(a.cu_seqlens_q.is_contiguous(), "cu_seqlens_q.value() must be contiguous")
        icheck(a.cu_seqlens_q.dtype == torch.int32, "Inconsistency of Tensor type: cu_seqlens_q.value()")
        batch = a.cu_seqlens_q.shape[0] - 1
        icheck(qv.dim() == 3, "q_latent must be 3D")
    _shape(q, (*qv.shape[:-1], ROPE), "q_rope")
    pages = ckv.shape[:2] if not by_asm else (ckv.shape[0], 64)
    ones = () if ckv.dim() == 3 else (1,)
    _shape(ckv, (*pages, *ones, LATENT), "ckv")
    _shape(kpe, (*pages, *ones, ROPE), "kpe")
    if by_asm:
        rank = "-3" if ones else "-2"
        for name, x in (("ckv", ckv), ("kpe", kpe)):
            icheck(x.stride(1) % 576 == 0, f"flash_mla_asm() {name} stride {rank} must be multiple of 576")
        for name, x in (("ckv", ckv), ("kpe", kpe)):
            icheck(x.stride(0) % 576 == 0, f"flash_mla_asm() {name} stride 0 must be multiple of 576")
    _shape(lens, (batch,), "seqlens_k")
    icheck(table.dim() == 2 and table.shape[0] == batch, f"block_table has shape {tuple(table.shape)}")
    icheck(ckv.shape[1] == 64, "page size only supports 64")


def _run(a: types.SimpleNamespace, q: torch.Tensor, qv: torch.Tensor, scale: float, memory: list[int], count: int,
         out: torch.Tensor, lse: torch.Tensor, by_asm: bool) -> None:
    """The parts, then the merge: flash_mla/mla_kernel_tme_warpspecialized.hpp:223-340, mpxx_mla_combine.hpp:30-170."""
    heads, lens, batch = q.shape[-2], ints(a.cache_seqlens), a.cache_seqlens.shape[0]
    limit = q.shape[1] if q.dim() == 4 else a.max_seqlen_q
    rows = [range(b * limit, (b + 1) * limit) for b in range(batch)]
    if a.cu_seqlens_q is not None:
        cu = ints(a.cu_seqlens_q)
        rows = [range(cu[b], cu[b + 1]) for b in range(batch)]
        if any(len(r) > limit for r in rows):
            raise Unspecified(f"max_seqlen_q {limit} and {max(map(len, rows))} queries of one sequence")
    flat_q, flat_qv = q.reshape(-1, heads, ROPE).float(), qv.reshape(-1, heads, LATENT).float()
    flat_out = out.view(-1, heads, LATENT)
    flat_lse = lse.view(-1, heads) if q.dim() == 4 else lse.T
    cumulated = memory[count * PART :]
    partial: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in range(count):
        first, start, last, end, split = memory[part * PART : part * PART + 5]
        if first >= batch:
            continue
        for b in range(first, last + 1):
            if not 0 <= b < batch:
                raise Unspecified(f"the workspace names sequence {b} of {batch}: it is read out of bounds")
            if not rows[b]:
                continue
            at = slice(rows[b].start, rows[b].stop)
            alone = cumulated[b + 1] - cumulated[b] == 1
            stop = end if b == last else ceil_div(lens[b], TILE_N)
            result, sums = _attend(a, flat_q[at], flat_qv[at], scale, b, lens[b], start if b == first else 0, stop,
                                   by_asm, alone)
            if alone:
                flat_out[at], flat_lse[at] = result.to(out.dtype), sums
            else:
                partial[cumulated[b] + (split if b == first else 0)] = (result, sums)
    for b in range(batch):
        splits = range(cumulated[b], cumulated[b + 1])
        if len(splits) == 1 or not rows[b]:
            continue
        at, shape = slice(rows[b].start, rows[b].stop), (len(rows[b]), heads)
        if not splits:  # nothing to merge: 0 and +inf, combine :100
            flat_out[at], flat_lse[at] = 0.0, math.inf
            continue
        missing = (unwritten((*shape, LATENT), torch.float32), unwritten(shape, torch.float32))
        merged = [partial.get(s, missing) for s in splits]
        merged = [m if m[1].shape == shape else missing for m in merged]
        sums = torch.stack([m[1] for m in merged])
        whole = sums.logsumexp(0)
        weight = torch.where(whole == -math.inf, torch.zeros_like(sums), (sums - whole).exp())
        flat_out[at] = (weight[..., None] * torch.stack([m[0] for m in merged])).sum(0).to(out.dtype)
        flat_lse[at] = torch.where((whole == -math.inf) | whole.isnan(), torch.full_like(whole, math.inf), whole)


def _attend(a: types.SimpleNamespace, q: torch.Tensor, qv: torch.Tensor, scale: float, b: int, len_k: int, start: int,
            stop: int, by_asm: bool, alone: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One run of pages. Causal is bottom-right (tests/test_mla.py:68-72). The first page is read in any case."""
    ckv = plain_of(a.v_cache)
    ckv = ckv if ckv.dim() == 3 else ckv[:, :, 0]
    kpe = plain_of(a.k_cache)
    kpe = kpe if kpe.dim() == 3 else kpe[:, :, 0]
    if by_asm:
        # The rope part is read behind the latent one, wherever k_cache is: flash_mla_asm.mu:288-298, 729-730.
        begin = ckv.storage_offset() + LATENT
        last = begin + (ckv.shape[0] - 1) * ckv.stride(0) + 63 * ckv.stride(1) + ROPE
        if last * ckv.element_size() > ckv.untyped_storage().nbytes():
            raise Unspecified("with 128 heads the rope part is read behind v_cache's rows, where there is no memory")
        kpe = torch.as_strided(ckv, (ckv.shape[0], 64, ROPE), (ckv.stride(0), ckv.stride(1), 1), begin)
    table = plain_of(a.page_table)
    row, keys, values, columns = torch.arange(q.shape[0])[:, None], [], [], []
    for block in range(start, max(stop, start + 1)):
        if not 0 <= block < table.shape[1] or not 0 <= int(table[b, block]) < ckv.shape[0]:
            if block * 64 < len_k:
                raise Unspecified(f"block {block} of sequence {b} has no page in page_table {tuple(table.shape)}")
            continue  # a page that holds no key of the sequence and does not exist
        page = int(table[b, block])
        keys.append(torch.cat([ckv[page].float(), kpe[page].float()], -1))
        values.append(ckv[page].float())
        columns.append(block * 64 + torch.arange(64))
    if not keys:
        keys, values = [torch.zeros(0, LATENT + ROPE)], [torch.zeros(0, LATENT)]
        columns = [torch.zeros(0, dtype=torch.int64)]
    column = torch.cat(columns)[None]
    score = torch.einsum("qhd,kd->qhk", torch.cat([qv, q], -1), torch.cat(keys)) * scale
    seen = column < len_k
    if a.causal:
        seen = seen & (column <= row + len_k - q.shape[0])
    seen = seen.expand(q.shape[0], -1)
    score = score.masked_fill(~seen[:, None], -math.inf)
    lse = score.logsumexp(-1) if score.shape[-1] else torch.full(score.shape[:2], -math.inf)
    weight = torch.where(lse[..., None] == -math.inf, torch.zeros_like(score), (score - lse[..., None]).exp())
    out = torch.einsum("qhk,kd->qhd", weight, torch.cat(values))  # whole pages: NaN in a page's tail shows
    if alone:
        # What a row that sees nothing gets is in mutlass, which is not here; among several splits it must be an empty
        # partial result, or tests/test_mla.py could not pass (causal, 129 keys, 5 queries, batch 1).
        blind = lse == -math.inf
        out, lse = out.masked_fill(blind[..., None], math.nan), lse.masked_fill(blind, math.nan)
    return out, lse
