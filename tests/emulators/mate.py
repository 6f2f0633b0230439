"""MATE, Moore Threads' attention library, at 0.2.0 or 0.2.2: mate.mha_interface.

    vendor = mate("0.2.2")
    with vendor.installed():
        from mate.mha_interface import flash_attn_with_kvcache, flash_attn_varlen_func, get_scheduler_metadata

Written from the source and documents of the release (the files named here are MATE's, at v0.2.2): asserts in its
order and words; a schedule is the int32 tensor that the real one makes, and the kernel follows it without looking
whether it was made for this call. What no tile writes is NaN. What the source leaves open raises Unspecified.
Not emulated: streams, `pack_gqa` and `sm_margin` as speeds, gradients.
"""

from __future__ import annotations

import types
from itertools import pairwise
from typing import Any

import torch

from emulators import mate_mla, mate_schedule
from emulators.common import Vendor
from emulators.devices import on, plain_of, tag_of
from emulators.mate_common import (
    HALF,
    Machine,
    Unspecified,
    check,
    differences,
    icheck,
    ints,
    is_musa,
    lengths,
    like,
    same_device,
    unwritten,
)
from emulators.mate_forward import forward

MODULE = "mate.mha_interface"
KVCACHE, VARLEN = f"{MODULE}.flash_attn_with_kvcache", f"{MODULE}.flash_attn_varlen_func"
METADATA = f"{MODULE}.get_scheduler_metadata"


def mate(release: str = "0.2.2", **machine: Any) -> Vendor:
    """machine: fields of Machine. Raises ValueError for a release whose kernels were not read."""
    if release not in ("0.2.0", "0.2.2"):
        raise ValueError(f"MATE {release} is not emulated (emulated: 0.2.0, 0.2.2)")
    here = Machine(release, **machine)
    return Vendor("mate", release, {KVCACHE: lambda a: kvcache(a, here), VARLEN: lambda a: varlen(a, here),
                                    METADATA: lambda a: metadata(a, here)})


# --- get_scheduler_metadata: mate/jit/attention/fmha/fmha_get_metadata.py:250-424 ---

def metadata(a: types.SimpleNamespace, machine: Machine) -> torch.Tensor:
    """page_size, has_softcap and qkv_dtype are not used (mate/mha_interface.py:1025-1047)."""
    left, right = (-1, -1) if a.window_size is None else a.window_size
    batch, chunk = a.batch_size, a.attention_chunk
    # Windows, chunks and leftpad reach the metadata in 0.2.2 only.
    leftpad = a.cache_leftpad if machine.release != "0.2.0" else None
    tensors = {"cu_seqlens_k": a.cu_seqlens_k, "cu_seqlens_q": a.cu_seqlens_q, "seqused_q": a.seqused_q,
               "seqused_k": a.seqused_k, "leftpad_k": leftpad}
    check(a.cu_seqlens_q is None or a.max_seqlen_q is not None)
    for name, tensor in tensors.items():
        size = batch + name.startswith("cu_")
        check(tensor is None or tuple(tensor.shape) == (size,),
              f"{name} must have shape (batch_size{' + 1' * name.startswith('cu_')},)")
    last = ", leftpad_k" if machine.release != "0.2.0" else ""
    for tensor in tensors.values():
        if tensor is not None:
            names = f"cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k{last}"
            check(tensor.dtype == torch.int32, f"{names} must be int32")
            check(tensor.stride(0) == 1, f"{names} must be contiguous")
    check(all(t is None or is_musa(t) for t in tensors.values()), "inputs must be on MUSA device")
    check(a.num_heads_q % a.num_heads_kv == 0, "num_heads_q must be divisible by num_heads_kv")
    result = on(torch.zeros(batch * 4, dtype=torch.int32), machine.current_device)
    same_device(result, cu_seqlens_k_new=a.cu_seqlens_k_new, **tensors)  # device="musa", the current one: :348
    if machine.release == "0.2.0":
        mask = mate_schedule.Mask(a.causal, False, -1, -1)
    else:
        lens = (a.cu_seqlens_q, a.cu_seqlens_k, a.cu_seqlens_k_new, a.seqused_q, a.seqused_k)
        if all(t is None for t in lens) and a.max_seqlen_q <= a.max_seqlen_k <= chunk:
            chunk = 0
        mask = mate_schedule.resolve_mask(a.max_seqlen_q, a.max_seqlen_k, a.causal, left, right, chunk)
    dim_v = a.headdim if a.headdim_v is None else a.headdim_v
    ratio = a.num_heads_q // a.num_heads_kv
    tile = mate_schedule.tiles(a.max_seqlen_q, ratio, a.headdim, dim_v, a.pack_gqa)
    splits = a.num_splits
    if splits <= 0:
        splits = mate_schedule.auto_splits(machine, tile.tile_m, mask, batch, a.max_seqlen_q, a.max_seqlen_k,
                                           a.num_heads_q, a.num_heads_kv, a.headdim + dim_v, a.mp_margin)
    # The new keys count, whether the forward call appends or not: metadata.hpp:290-298.
    new = differences(a.cu_seqlens_k_new) or [a.max_seqlen_k_new] * batch
    pad = ints(leftpad) if leftpad is not None else [0] * batch
    old = lengths(a.seqused_k, a.cu_seqlens_k, a.max_seqlen_k, batch)
    counted = mate_schedule.Lengths(lengths(a.seqused_q, a.cu_seqlens_q, a.max_seqlen_q, batch),
                                    [k - p + n for k, p, n in zip(old, pad, new)])
    plain_of(result)[:] = mate_schedule.dense(machine, counted, tile, mask, ratio, a.num_heads_q, splits)
    return result


# --- flash_attn_with_kvcache: mate/mha_interface.py:759-990 ---

def kvcache(a: types.SimpleNamespace, machine: Machine) -> Any:
    """Asked for the LSE it returns four tensors, or two on the latent path: `(out, softmax_lse, *rest)`, :990."""
    check(a.k_cache.stride(-1) == 1, "k_cache must have contiguous last dimension")
    check(a.v_cache.stride(-1) == 1, "v_cache must have contiguous last dimension")
    scale = default_scale(a)
    if isinstance(a.cache_seqlens, int):  # as many as the cache has rows, which are pages where there is a table: :914
        a.cache_seqlens = like(torch.full((a.k_cache.shape[0],), a.cache_seqlens, dtype=torch.int32), a.k_cache)
    if a.qv is not None and a.qv.shape[-1] == 512 and a.q.shape[-1] == 64:
        result = mate_mla.forward(a, machine, scale)
        return result if a.return_softmax_lse else result[0]
    results: tuple[torch.Tensor, ...] = forward(types.SimpleNamespace(
        **vars(a), k_new=a.k, v_new=a.v, cu_seqlens_k=None, seqused_q=None, seqused_k=a.cache_seqlens,
        max_seqlen_k=None, out=None), a.k_cache, a.v_cache, scale, machine)
    return results if a.return_softmax_lse else results[0]


def default_scale(a: types.SimpleNamespace) -> float:
    if a.softmax_scale is not None:
        return float(a.softmax_scale)
    return float((a.q.shape[-1] + (a.qv.shape[-1] if a.qv is not None else 0)) ** -0.5)


# --- flash_attn_varlen_func: mate/mha_interface.py:312-521 ---

def varlen(a: types.SimpleNamespace, machine: Machine) -> Any:
    window = (-1, -1) if a.window_size is None else a.window_size
    chosen = a.backend
    if chosen == "auto":
        chosen = "mubin" if fits_mubin(a, window, machine) else "mutlass"
    scale = default_scale(a)
    if chosen == "mutlass":
        none = dict.fromkeys(("k_new", "v_new", "cu_seqlens_k_new", "cache_batch_idx", "cache_leftpad", "rotary_cos",
                              "rotary_sin", "rotary_seqlens"))
        v = a.v.contiguous() if a.v.stride(-1) != 1 and a.v.stride(-3) != 1 else a.v
        out, lse = forward(types.SimpleNamespace(**vars(a), **none, rotary_interleaved=True), a.k, v, scale,
                           machine)[:2]
    elif chosen == "mubin":
        out, lse = mubin(a, window, scale, machine)
    else:
        raise ValueError(f"Only support backend 'mutlass', 'mubin' and 'auto'! Get unknown backend {chosen}!")
    return (out, lse) if a.return_softmax_lse else out


def fits_mubin(a: types.SimpleNamespace, window: Any, machine: Machine) -> bool:
    """_check_valid_asm_input, :23-111. 0.2.0 does not look at qv, softcap and attention_chunk."""
    q, k, v = a.q, a.k, a.v
    dims, dim_v = q.shape[-1], v.shape[-1]
    left, right = window
    fits = (all(is_musa(t) for t in (q, k, v)) and q.dtype in HALF and q.dtype == k.dtype == v.dtype
            and q.dim() in (3, 4) and q.dim() == k.dim() == v.dim()
            and ((dims, dim_v) == (192, 128) or dims == dim_v <= 128)
            and a.page_table is None and a.seqused_q is None and a.seqused_k is None
            and (left is None or left < 0) and (right is None or right <= 0)
            and a.learnable_sink is None and a.cp_world_size == 1)
    if machine.release != "0.2.0":
        fits = fits and a.qv is None and a.softcap == 0.0 and (a.attention_chunk or 0) == 0
    if not fits:
        return False
    if q.dim() == 3:
        for cumulated in (a.cu_seqlens_q, a.cu_seqlens_k):
            if cumulated is None:  # asked for its device first and for None after, :93-97
                raise AttributeError("'NoneType' object has no attribute 'is_musa'")
        return (is_musa(a.cu_seqlens_q) and is_musa(a.cu_seqlens_k) and v.shape[:2] == k.shape[:2]
                and k.shape[-1] == dims and a.cu_seqlens_k.numel() == a.cu_seqlens_q.numel()
                and a.max_seqlen_q is not None and a.max_seqlen_k is not None)
    return bool(k.shape[0] == q.shape[0] and v.shape[:3] == k.shape[:3] and k.shape[-1] == dims)


def mubin(a: types.SimpleNamespace, window: Any, scale: float, machine: Machine) -> tuple[torch.Tensor, torch.Tensor]:
    """The assembly kernel, :426-501: a binary. Taken from the documents: FlashAttention-3's results for plain causal
    or full attention. Not said: what a row without a key gets (NaN here), and a wrong max_seqlen_q."""
    left, right = window
    check(a.seqused_q is None)
    check(a.seqused_k is None)
    check(left is None or left < 0)
    check(right is None or right < 0)  # the choice above lets 0 pass: :73 and :437
    if machine.release != "0.2.0":
        check(a.qv is None)
    check(a.learnable_sink is None)
    if machine.release != "0.2.0":
        check(a.softcap == 0.0)
        check((a.attention_chunk or 0) == 0)
        check(a.q.dtype in HALF)
        check(a.q.dtype == a.k.dtype == a.v.dtype)
    check(a.page_table is None)
    packed = a.cu_seqlens_q is not None and a.cu_seqlens_k is not None
    q, k, v = (plain_of(t) for t in (a.q, a.k, a.v))
    if packed:
        check(a.max_seqlen_k is not None)
        check(a.max_seqlen_q is not None)
        ends_q, ends_k = ints(a.cu_seqlens_q), ints(a.cu_seqlens_k)
        for name, most, ends in (("q", a.max_seqlen_q, ends_q), ("k", a.max_seqlen_k, ends_k)):
            if any(e - s > most for s, e in pairwise(ends)):
                raise Unspecified(f"max_seqlen_{name}={most} is less than a sequence has (cu_seqlens_{name} {ends})")
    else:
        ends_q, ends_k = ([i * t.shape[1] for i in range(t.shape[0] + 1)] for t in (q, k))
    for tensor in (a.q, a.k, a.v, *((a.cu_seqlens_q, a.cu_seqlens_k) if packed else ()), a.out):
        icheck(tensor is None or tag_of(tensor) == tag_of(a.q), "Check failed: a.device().device_id == b.device()")
    shape = (*q.shape[:-1], v.shape[-1])
    out = unwritten(shape, q.dtype) if a.out is None else plain_of(a.out)
    icheck(tuple(out.shape) == shape, f"out has shape {tuple(out.shape)}, expected {shape}")
    icheck(out.dtype == q.dtype, "q, k, v and out must have the same dtype")
    icheck(out.is_contiguous(), "out must be contiguous")
    flat_q, flat_k, flat_v = (t.reshape(-1, *t.shape[-2:]).float() for t in (q, k, v))
    ratio = q.shape[-2] // k.shape[-2]
    lse = unwritten((q.shape[-2], flat_q.shape[0]), torch.float32)
    flat_out = out.view(-1, *out.shape[-2:])
    for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
        kk, vv = (t[k0:k1].repeat_interleave(ratio, 1) for t in (flat_k, flat_v))
        score = torch.einsum("qhd,khd->hqk", flat_q[q0:q1], kk) * scale
        if a.causal:
            hidden = torch.arange(k1 - k0)[None] > torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
            score = score.masked_fill(hidden, float("-inf"))
        if k1 > k0:
            # A blind row's softmax is 0/0, and so is its LSE made.
            flat_out[q0:q1] = torch.einsum("hqk,khd->qhd", score.softmax(-1), vv).to(out.dtype)
            sums = score.logsumexp(-1)
            lse[:, q0:q1] = sums.masked_fill(sums == float("-inf"), float("nan"))
    if not packed:
        lse = lse.view(-1, *q.shape[:2]).transpose(0, 1).contiguous()
    return (a.out if a.out is not None else like(out, a.q)), like(lse, a.q)
