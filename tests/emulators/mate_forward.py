"""MATE's dense forward call: its asserts in their order and words, then the kernel on plain tensors.

mate/jit/attention/fmha/fmha_fwd.py:437-901 of v0.2.2; lines below are that file's.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from emulators.devices import plain_of, tag_of
from emulators.mate_common import (
    HALF,
    Machine,
    Unspecified,
    check,
    differences,
    ints,
    is_musa,
    lengths,
    like,
    same_device,
    unwritten,
)
from emulators.mate_dense import Problem, run
from emulators.mate_schedule import auto_splits, resolve_mask, tiles

LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k")
Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def forward(a: types.SimpleNamespace, k: torch.Tensor, v: torch.Tensor, scale: float, machine: Machine) -> Result:
    """(out, lse, o_accum, lse_accum). Descales are taken and not used (csrc/templates/attention/fmha/fwd_kern.j2)."""
    old = machine.release == "0.2.0"
    chunk = a.attention_chunk or 0
    if old:
        check(a.cache_leftpad is None, "leftpad_k parameter is not supported yet")
        check(a.rotary_cos is None, "rotary_cos parameter is not supported yet")
    check(a.qv is None, "qv parameter is not supported yet")
    if old:
        check(chunk == 0, "attention_chunk parameter is not supported yet")
    check((a.k_new is None) == (a.v_new is None), "k_new and v_new must be provided together")
    a.q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (a.q, k, v))
    q, table = a.q, a.page_table
    heads, dim = q.shape[-2:]
    heads_kv, dim_v = k.shape[-2], v.shape[-1]
    if a.cu_seqlens_q is None:
        batch, len_q = q.shape[:2]
    else:
        check(a.max_seqlen_q is not None)
        batch, len_q = a.cu_seqlens_q.shape[0] - 1, a.max_seqlen_q
    len_k = table.shape[1] * k.shape[1] if table is not None else k.shape[-3]
    _check_tensors(a, k, v, batch, heads)
    _check_shapes(a, k, v, batch, heads_kv, dim, dim_v, len_k)
    check(heads % heads_kv == 0, "num_head must be divisible by num_head_kv")
    num_splits, schedule = a.num_splits, a.scheduler_metadata
    if a.learnable_sink is not None:  # "FIXME: bug learnable_sink + split": the schedule is dropped, :687-690
        num_splits, schedule = -1, None
    fixed = (all(getattr(a, n) is None for n in LENGTHS) and a.cache_leftpad is None and table is None
             and a.k_new is None)
    if chunk > 0 and fixed and len_q <= len_k <= chunk:
        chunk = 0
    left, right = (-1, -1) if a.window_size is None else a.window_size
    mask = resolve_mask(len_q, len_k, a.causal, left, right, chunk)
    check(a.cp_world_size > 0, "cp_world_size must be positive, required by downstream unified code path. "
          "Use 1 if CP is not enabled.")
    check(a.cp_world_size != 1 or a.cp_rank == 0, "When context parallelism is disabled, cp_rank must be zero")
    check(a.cp_world_size == 1 or a.cp_tot_seqused_k is not None,
          "cp_tot_seqused_k must be provided when context parallelism is enabled.")
    check(not (mask.local and a.cp_world_size > 1), "Local attention (sliding window) is not currently supported with "
          "context parallelism (cp_world_size > 1).")
    shape = (*q.shape[:-1], dim_v)
    if a.out is not None:
        check(tuple(a.out.shape) == shape)
        check(a.out.dtype == q.dtype)
        check(tag_of(a.out) == tag_of(q))
    if schedule is not None:  # the one thing that is looked at: a longer one is cut at the wrong places, :765-776
        check(schedule.shape[0] >= batch * 4, "metadata buffer is too small")
    tile = tiles(len_q, heads // heads_kv, dim, dim_v, a.pack_gqa)
    if chunk > 0 and machine.sdk < (5, 1, 0):
        raise Unspecified("attention_chunk needs MUSA SDK >= 5.1.0 (docs/flash_attention.md), this is "
                          + ".".join(map(str, machine.sdk)))
    given = (a.cu_seqlens_q, a.seqused_q, a.cu_seqlens_k, a.seqused_k, a.cache_leftpad)
    if a.k_new is not None and all(t is None for t in given):
        raise RuntimeError("static assertion failed: AppendKV is only supported with Varlen")  # seqlen.hpp:36
    # A sink off the local path is added all the same (softmax.hpp:180-182 asks for no window), though
    # docs/flash_attention.md lists it for the local path only and tests/test_fmha.py:877 tests no other.
    same_device(q, k=k, v=v, page_table=table, scheduler_metadata=schedule, cp_tot_seqused_k=a.cp_tot_seqused_k,
                rotary_cos=a.rotary_cos, rotary_sin=a.rotary_sin, rotary_seqlens=a.rotary_seqlens, k_new=a.k_new,
                v_new=a.v_new, cache_batch_idx=a.cache_batch_idx, cache_leftpad=a.cache_leftpad,
                learnable_sink=a.learnable_sink, **{n: getattr(a, n) for n in LENGTHS})
    room = 1  # without a schedule there are no splits, whatever num_splits says: fwd_kern.j2:97-99
    if schedule is not None:
        static = a.max_seqlen_k if a.cu_seqlens_k is not None else len_k
        room = num_splits if num_splits > 0 else auto_splits(
            machine, tile.tile_m, mask, batch, len_q, static, heads, heads_kv, dim + dim_v, a.sm_margin)
    out = unwritten(shape, q.dtype) if a.out is None else plain_of(a.out)
    total = q.shape[0] * (q.shape[1] if q.dim() == 4 else 1)
    lse = unwritten((heads, total), torch.float32)
    known = _problem(a, k, v, batch, len_q, len_k, scale)
    problem = Problem(**known, mask=mask, chunk=chunk, tile=tile, max_seqlen_q=len_q, num_splits=room,
                      schedule=None if schedule is None else ints(schedule), lse=lse,
                      out=out.view(total, heads, dim_v) if out.is_contiguous() else out.flatten(0, -3))
    if problem.out.data_ptr() != out.data_ptr():
        raise Unspecified("out that is neither packed nor contiguous: emulated as written in place only")
    o_accum, lse_accum = run(problem)
    if a.cu_seqlens_q is None:
        lse = lse.view(heads, batch, -1).transpose(0, 1).contiguous()
    o_accum, lse_accum = (_accum(t, batch if a.cu_seqlens_q is None else 1) for t in (o_accum, lse_accum))
    return (a.out if a.out is not None else like(out, q)), like(lse, q), like(o_accum, q), like(lse_accum, q)


def _accum(t: torch.Tensor, batch: int) -> torch.Tensor:
    """[splits, H, total, ..] as the kernel allocates it: [batch or 1, H, splits, total_q or seqlen_q, ..]."""
    return t.reshape(*t.shape[:2], batch, -1, *t.shape[3:]).movedim(2, 0).transpose(1, 2).contiguous()


def _check_tensors(a: types.SimpleNamespace, k: torch.Tensor, v: torch.Tensor, batch: int, heads: int) -> None:
    """:520-591. scheduler_metadata, rotary_seqlens, cp_tot_seqused_k and the descales are not among them."""
    musa = (a.q, k, v, *(getattr(a, n) for n in LENGTHS), a.page_table, a.learnable_sink, a.k_new, a.v_new,
            a.rotary_cos, a.rotary_sin, a.cache_leftpad, a.cache_batch_idx)
    check(all(t is None or is_musa(t) for t in musa), "inputs must be on MUSA device")
    check(a.q.dtype in HALF, "inputs must be float16 or bfloat16")
    check(a.q.dtype == k.dtype == v.dtype, "inputs must have the same dtype")
    if a.k_new is not None:
        check(a.k_new.dtype == a.q.dtype == a.v_new.dtype, "k_new and v_new must have the same dtype as q, k and v")
    for t in (*(getattr(a, n) for n in LENGTHS), a.cache_leftpad):
        if t is not None:
            check(t.dtype == torch.int32, f"{', '.join(LENGTHS)}, leftpad_k must be int32")
            check(t.stride(0) == 1, f"{', '.join(LENGTHS)}, leftpad_k must be contiguous")
    if a.page_table is not None:
        check(a.cu_seqlens_k is None, "page_table is not supported with cu_seqlens_k")
        check(a.page_table.dtype == torch.int32, "page_table must be int32")
        check(a.page_table.stride(-1) == 1, "page_table must be contiguous")
    for name, t in (("kv_batch_idx", a.cache_batch_idx), ("leftpad_k", a.cache_leftpad)):
        if t is not None:
            check(t.dtype == torch.int32, f"{name} must be int32")
            check(tuple(t.shape) == (batch,), f"{name} must have shape (batch_size,)")
            check(t.stride(0) == 1, f"{name} must be contiguous")
    if a.learnable_sink is not None:
        check(tuple(a.learnable_sink.shape) == (heads,))
        check(a.learnable_sink.dtype == torch.bfloat16, "learnable_sink must be bfloat16")


def _check_shapes(a: types.SimpleNamespace, k: torch.Tensor, v: torch.Tensor, batch: int, heads_kv: int, dim: int,
                  dim_v: int, len_k: int) -> None:
    """:593-682."""
    table = a.page_table
    batch_k = table.shape[0] if table is not None else (
        k.shape[0] if a.cu_seqlens_k is None else a.cu_seqlens_k.shape[0] - 1)
    if a.cache_batch_idx is None:
        check(batch_k == batch, "batch_size must equal batch_size_k when kv_batch_idx is None")
    rows = (len_k,) if a.cu_seqlens_k is not None else (batch_k, len_k) if table is None else tuple(k.shape[:2])
    check(tuple(k.shape) == (*rows, heads_kv, dim))
    check(tuple(v.shape) == (*rows, heads_kv, dim_v))
    if a.cu_seqlens_k is not None:
        check(tuple(a.cu_seqlens_k.shape) == (batch + 1,), "cu_seqlens_k must have shape (batch_size + 1,)")
        check(a.cache_batch_idx is None, "kv_batch_idx is not supported when cu_seqlens_k is provided")
    for name in ("seqused_q", "seqused_k"):
        t = getattr(a, name)
        check(t is None or tuple(t.shape) == (batch,), f"{name} must have shape (batch_size,)")
    if a.k_new is not None:
        packed = a.cu_seqlens_k_new is not None
        rows = tuple(a.k_new.shape[:1]) if packed else (batch, a.k_new.shape[1])
        words = "packed {} must have shape (total_k_new, num_head_kv, {})" if packed else (
            "{} must have shape (batch_size, seqlen_k_new, num_head_kv, {})")
        check(tuple(a.k_new.shape) == (*rows, heads_kv, dim), words.format("k_new", "head_dim"))
        check(tuple(a.v_new.shape) == (*rows, heads_kv, dim_v), words.format("v_new", "head_dim_v"))
        if packed:
            check(tuple(a.cu_seqlens_k_new.shape) == (batch + 1,), "cu_seqlens_k_new must have shape (batch_size + 1,)")
            # Waits for the device, in every call that appends packed keys: :650.
            check(int(a.cu_seqlens_k_new[-1].item()) == rows[0], "cu_seqlens_k_new[-1] must equal total_k_new")
    if a.rotary_cos is not None:
        check(a.k_new is not None, "If rotary cos/sin are provided, new key / value to be appended to KV cache must "
              "also be provided")
        check(a.rotary_sin is not None, "If rotary cos is provided, rotary sin must also be provided")
        rotary_dim = a.rotary_cos.shape[1] * 2
        check(rotary_dim <= dim, "rotary_dim must be <= headdim")
        check(rotary_dim % 16 == 0, "Only rotary dimensions divisible by 16 are currently supported")
        if table is not None:
            check(a.rotary_cos.shape[0] >= len_k, "cos/sin seqlen must be at least the seqlen of KV cache")
        check(a.rotary_cos.dtype == a.rotary_sin.dtype == a.q.dtype, "rotary_cos must have the same dtype as query")
        check(a.rotary_cos.shape == a.rotary_sin.shape)
        if a.rotary_seqlens is not None:
            check(a.rotary_seqlens.dtype == torch.int32, "seqlens_rotary must have dtype torch.int32")
            check(tuple(a.rotary_seqlens.shape) == (batch,))


def _problem(a: types.SimpleNamespace, k: torch.Tensor, v: torch.Tensor, batch: int, len_q: int, len_k: int,
             scale: float) -> dict[str, Any]:
    """The lengths as include/mate/attention/fmha/seqlen.hpp:69-141 has them."""
    pad = ints(a.cache_leftpad) if a.cache_leftpad is not None else [0] * batch
    old = [n - p for n, p in zip(lengths(a.seqused_k, a.cu_seqlens_k, len_k, batch), pad)]
    if min(old, default=0) < 0:
        raise Unspecified(f"cache_leftpad {pad} is more than the keys {lengths(a.seqused_k, None, len_k, batch)}: "
                          "the unsigned length wraps around")
    # Without k the new lengths are not looked at: seqlen.hpp:115-122.
    appends = a.k_new is not None
    packed = appends and a.cu_seqlens_k_new is not None
    new = (differences(a.cu_seqlens_k_new) if packed else None) or [a.k_new.shape[1] if appends else 0] * batch
    starts = ints(a.rotary_seqlens) if a.rotary_seqlens is not None and appends else [
        n + p for n, p in zip(old, pad)]
    cp = None
    if a.cp_world_size > 1:
        # One length per sequence, the bits of an int32, whatever the dtype: fwd_kern.j2:396-398, seqlen.hpp:140. The
        # documents say cumulative, [batch + 1].
        raw = plain_of(a.cp_tot_seqused_k).contiguous().view(torch.int32)
        if raw.numel() < batch:
            raise Unspecified(f"cp_tot_seqused_k has {raw.numel()} numbers for {batch} sequences")
        cp = (a.cp_world_size, a.cp_rank, [int(x) for x in raw[:batch]])
    flat_new = [plain_of(t).reshape(-1, *t.shape[-2:]) if appends else None for t in (a.k_new, a.v_new)]
    return {
        "q": plain_of(a.q).reshape(-1, *a.q.shape[-2:]), "k": plain_of(k), "v": plain_of(v),
        "offset_q": ints(a.cu_seqlens_q) if a.cu_seqlens_q is not None else [i * len_q for i in range(batch)],
        "len_q": lengths(a.seqused_q, a.cu_seqlens_q, len_q, batch), "old_k": old, "leftpad": pad,
        "padded": a.cache_leftpad is not None,
        "cu_k": ints(a.cu_seqlens_k) if a.cu_seqlens_k is not None else None,
        "rows_kv": ints(a.cache_batch_idx) if a.cache_batch_idx is not None else list(range(batch)),
        "page_table": plain_of(a.page_table).tolist() if a.page_table is not None else None,
        "k_new": flat_new[0], "v_new": flat_new[1], "len_new": new,
        "offset_new": ints(a.cu_seqlens_k_new) if packed else [i * new[0] for i in range(batch)],
        "rotary": None if a.rotary_cos is None else (
            plain_of(a.rotary_cos), plain_of(a.rotary_sin), a.rotary_interleaved),
        "rotary_start": starts, "scale": scale, "softcap": float(a.softcap), "cp": cp,
        "sink": plain_of(a.learnable_sink) if a.learnable_sink is not None else None,
    }
