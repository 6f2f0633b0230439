"""FlashAttention 4 (flash_attn.cute) from its documents and source, per release.

    vendor = FlashAttn4(release="4.0.0b36", arch="sm100")

Sources, from the release's wheel: flash_attn/cute/interface.py (checks), mask.py, softmax.py, flash_fwd*.py. There is
no function with a KV cache, no append and no rotary embedding. Not emulated, and refused aloud: score_mod, mask_mod and
block sparsity (CuTe code cannot run here), scheduler metadata, gathered KV, gradients.
"""

from __future__ import annotations

import itertools
import types
from dataclasses import dataclass
from typing import Any

import torch

from emulators.attend import (
    MULTIPROCESSORS,
    UNINITIALISED,
    Undocumented,
    attend,
    check,
    compute_capability,
    contiguous_last,
    data,
    illegal_access,
    like,
    numbers,
    one_device,
    pages,
    rows,
    visible,
)
from emulators.common import Refusal, Vendor

VARLEN = "flash_attn.cute.interface.flash_attn_varlen_func"
HALF = (torch.float16, torch.bfloat16)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SINKS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Rules:
    """What differs between releases and copies of the code. archs, paged: major numbers of the archs that run, and that
    have pages. window: how it is read, see `resolve`. head_dims: pairs are checked per arch, else 256 at most.
    empty_exits: a call without keys or queries at all returns before any kernel. hd256_limits: head_dim 256 on sm100
    is a kernel of its own, with fewer features. nan_sinks_sm90: a row without keys has an LSE of NaN there.
    sm120_one_split: num_splits must be 1, not 0. qv_sinks: qv goes with sinks. fp8: exists, on sm100."""

    arch: int
    archs: tuple[int, ...] = (8, 9, 10, 11, 12)
    window: str = "sum"
    sink_dtypes: tuple[torch.dtype, ...] = SINKS
    paged: tuple[int, ...] = (9, 10, 11)
    head_dims: bool = True
    max_head_dim_sm90: int = 256
    empty_exits: bool = True
    hd256_limits: bool = True
    nan_sinks_sm90: bool = False
    sm120_one_split: bool = True
    qv_sinks: bool = False
    fp8: bool = True

    @property
    def major(self) -> int:
        return self.arch // 10


def release_rules(release: str, arch: int) -> Rules:
    """Raises KeyError for a release without rules."""
    return {
        "4.0.0b3": Rules(arch, archs=(9, 10, 11), sink_dtypes=(torch.bfloat16,), paged=(10, 11), head_dims=False,
                         empty_exits=False, hd256_limits=False, nan_sinks_sm90=True, fp8=False),
        "4.0.0b27": Rules(arch),
        "4.0.0b36": Rules(arch, window="negative", hd256_limits=False, sm120_one_split=False, qv_sinks=True),
    }[release]


@dataclass
class Call:
    """_flash_attn_fwd's arguments."""

    q: Any
    k: Any
    v: Any
    qv: Any = None
    out: Any = None
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None
    seqused_q: Any = None
    seqused_k: Any = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    page_table: Any = None
    softmax_scale: float | None = None
    causal: bool = False
    window: tuple[int | None, int | None] = (None, None)
    softcap: float = 0.0
    sink: Any = None
    num_splits: int = 1
    score_mod: Any = None
    return_lse: bool = False


def resolve(reading: str, causal: bool, left: int | None, right: int | None) -> tuple[int | None, int | None]:
    """The bounds that the mask gets; None is none, and a number is read as it stands, -1 too.

    "literal": only None is unbounded. "sum" (b3, b27): both None where their sum is negative, after causal set right to
    0, so that a left bound of -1 goes with causal, and (-1, 0) and (0, -1) without causal are full attention.
    "negative" (b36): both None where both are negative, before causal; (-1, 0) then leaves no key at all.
    """
    if reading == "negative" and left is not None and right is not None and left < 0 and right < 0:
        left = right = None
    if causal:
        right = 0
    if reading == "sum" and left is not None and right is not None and left + right < 0:
        return None, 0 if causal else None
    return left, right


def fail(condition: bool, message: str = "") -> None:
    """An assert; those without a message have none in the source either."""
    check(condition, message, AssertionError)


def check_call(r: Rules, c: Call, batch: int) -> None:
    """interface.py, in its order."""
    packed_k, paged = c.cu_seqlens_k is not None, c.page_table is not None
    some_q = c.q if c.q is not None else c.qv
    heads, head_dim, heads_k, head_dim_v = *some_q.shape[-2:], *c.v.shape[-2:]
    if paged:
        fail(not packed_k, "page_table is not supported with cu_seqlens_k")
        fail(c.page_table.dtype == torch.int32, "page_table must be int32")
        fail(data(c.page_table).stride(-1) == 1, "page_table must be contiguous in the last dimension")
        fail(c.page_table.dim() == 2 and c.page_table.shape[0] == batch)
    lead = tuple(c.v.shape[:2]) if paged else (c.v.shape[0],) if packed_k else (batch, c.v.shape[-3])
    fail(c.k is None or tuple(c.k.shape) == (*lead, heads_k, head_dim))
    fail(tuple(c.v.shape) == (*lead, heads_k, head_dim_v))
    for name in ("cu_seqlens_k", "cu_seqlens_q"):
        tensor = getattr(c, name)
        fail(tensor is None or tuple(tensor.shape) == (batch + 1,), f"{name} must have shape (batch_size + 1,)")
    for name in ("seqused_q", "seqused_k"):
        tensor = getattr(c, name)
        fail(tensor is None or tuple(tensor.shape) == (batch,), f"{name} must have shape (batch_size,)")
    if r.fp8:
        fail(c.v.dtype in (*HALF, *FP8), "inputs must be float16, bfloat16, fp8 e4m3fn, or fp8 e5m2")
        fail(all(t is None or t.dtype == c.v.dtype for t in (c.q, c.k, c.qv)),
             "q, k, v, and qv must have the same dtype")
    else:
        fail(some_q.dtype in HALF, "inputs must be float16 or bfloat16")
        fail(some_q.dtype == c.k.dtype == c.v.dtype, "inputs must have the same dtype")
    ints = [c.cu_seqlens_q, c.cu_seqlens_k, c.seqused_q, c.seqused_k]
    for tensor in (t for t in ints if t is not None):
        fail(tensor.dtype == torch.int32, "cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k must be int32")
        fail(data(tensor).stride(0) == 1, "cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k must be contiguous")
    if c.sink is not None:
        fail(tuple(c.sink.shape) == (heads,))
        fail(c.sink.dtype in r.sink_dtypes, "learnable_sink must be bfloat16" if len(r.sink_dtypes) == 1 else
             "learnable_sink must be float16, bfloat16, or float32")
    everything = {name: t for name, t in vars(c).items() if isinstance(t, torch.Tensor)}
    fail(all(t.is_cuda for t in everything.values()), "inputs must be on CUDA device")
    one_device(**everything)
    supported = ", ".join(f"{major}.x" for major in r.archs)
    fail(r.major in r.archs, f"Unsupported compute capability. Supported: {supported}")
    fail(heads % heads_k == 0, "num_head must be divisible by num_head_kv")
    check_head_dims(r, head_dim, head_dim_v, 16 // c.v.element_size())
    if c.out is not None:
        expected = (*some_q.shape[:-1], head_dim_v)
        fail(tuple(c.out.shape) == expected, f"out shape {c.out.shape} != expected {expected}")
        fail(c.out.dtype == (torch.bfloat16 if c.v.dtype in FP8 else some_q.dtype),
             f"out dtype {c.out.dtype} != expected {some_q.dtype}")
    fail(c.v.dtype not in FP8 or r.major == 10,
         "FP8 is only supported on SM100 (compute capability 10.x) for FA4 CuTe.")


def check_head_dims(r: Rules, head_dim: int, head_dim_v: int, alignment: int) -> None:
    if not r.head_dims:
        fail(head_dim <= 256, "head_dim must be less than or equal to 256")
        fail(head_dim % alignment == 0, f"head_dim must be divisible by {alignment}")
        fail(head_dim_v % alignment == 0, f"head_dim_v must be divisible by {alignment}")
        return
    aligned = head_dim % alignment == 0 and head_dim_v % alignment == 0
    if r.major == 9:
        top = r.max_head_dim_sm90
        fail(aligned and 8 <= head_dim <= top and 8 <= head_dim_v <= top,
             f"(head_dim, head_dim_v)=({head_dim}, {head_dim_v}) is not supported on SM90. head_dim and head_dim_v "
             f"must be between 8 and {top} and divisible by {alignment}.")
    elif r.major in (10, 11):
        pair = (head_dim, head_dim_v)
        fits = all(8 <= d <= 128 for d in pair) or pair in ((192, 128), (64, 512), (512, 512), (256, 256))
        fail(aligned and fits,
             f"(head_dim, head_dim_v)=({head_dim}, {head_dim_v}) is not supported on SM100/SM110. head_dim and "
             f"head_dim_v must be between 8 and 128 and divisible by {alignment}, or (192, 128) for DeepSeek, or "
             f"(256, 256) for hd256.")


def check_kernel(r: Rules, c: Call, batch: int, bounds: tuple[int | None, int | None]) -> None:
    """What is refused once a kernel is chosen."""
    some_q = c.q if c.q is not None else c.qv
    head_dim, head_dim_v, heads_k = some_q.shape[-1], c.v.shape[-1], c.v.shape[-2]
    page_size = c.v.shape[1] if c.page_table is not None else None
    local = bounds not in ((None, None), (None, 0))
    if c.softcap != 0.0:
        fail(c.score_mod is None, "softcap and score_mod cannot be used together")
    elif c.score_mod is not None:
        if r.major == 8:
            raise NotImplementedError("Custom user-provided score_mod is not supported on SM8x architectures.")
        raise Undocumented("score_mod is CuTe code, which cannot run here")
    if r.major == 12:
        fail(c.num_splits == 1 if r.sm120_one_split else c.num_splits <= 1,
             "SM120 forward only supports num_splits=1")
    splits = c.num_splits if c.num_splits >= 1 else auto_splits(r, c, batch, heads_k, bounds)
    if c.qv is not None:
        fail(r.major in (10, 11), "only support Blackwell arch with qv")
        fail(c.q is None or c.qv.shape[:-1] == c.q.shape[:-1])
        fail(c.qv.shape[-1] == head_dim_v)
        fail(head_dim_v == 512)
        fail(c.q is None or head_dim == 64)
        fail(not local, "local not yet supported with qv")
        if not r.qv_sinks:
            fail(splits == 1, "split kv not supported with qv")
            fail(c.sink is None)
        fail(c.softcap == 0.0)
        return
    if c.page_table is not None:
        names = {8: "paged KV not supported on SM 8.0", 9: "paged KV not supported on SM 9.0",
                 12: "Paged KV not supported on SM 12.0 in this PR"}
        fail(r.major in r.paged, names.get(r.major, ""))
    if r.major in (8, 9):
        fail(splits == 1, f"SplitKV not supported on SM {r.major}.0")
    if r.major in (8, 12):
        fail(c.sink is None, "Learnable sink is not supported in this kernel")
    if r.major in (10, 11) and r.hd256_limits and (head_dim, head_dim_v) == (256, 256):
        what = "SM100 forward with head_dim=256 does not support"
        fail(c.softcap == 0.0, f"{what} softcap")
        fail(c.sink is None, f"{what} learnable_sink")
        fail(c.seqused_q is None and c.seqused_k is None, f"{what} seqused_q/seqused_k")
    tile = 128 if r.major in (10, 11) else sm90_tile(head_dim, head_dim_v, bounds)[1]
    if page_size is not None and page_size != tile:
        fail(head_dim % 16 == 0 and head_dim_v % 16 == 0, "Paged KV does not support irregular head dim")
    if splits > 1 and head_dim_v >= 192:
        fail(r.qv_sinks and head_dim_v == 256, "SplitKV is not supported for hdim >= 192")


def sm90_tile(head_dim: int, head_dim_v: int, bounds: tuple[int | None, int | None]) -> tuple[int, int]:
    """_tile_size_fwd_sm90: rows and keys of a tile."""
    local, causal = bounds not in ((None, None), (None, 0)), bounds == (None, 0)
    if head_dim <= 64:
        return 192, 128
    if head_dim <= 96:
        return 192, 128 if causal or local else 144
    if head_dim <= 128:
        return 128, 128
    if head_dim <= 192:
        return 128, 96 if local else 128 if head_dim_v <= 128 else 112
    return 128, 64 if local else 80


def auto_splits(r: Rules, c: Call, batch: int, heads_k: int, bounds: tuple[int | None, int | None]) -> int:
    """num_splits_heuristic, for the archs that refuse a split: there num_splits=0 fails for long keys. Elsewhere how
    many splits there are changes no result."""
    if r.major not in (8, 9):
        return 1
    some_q = c.q if c.q is not None else c.qv
    tile_q, tile_k = (128, 64) if r.major == 8 else sm90_tile(some_q.shape[-1], c.v.shape[-1], bounds)
    whole = c.v.shape[0] * c.v.shape[1] if c.page_table is not None else c.v.shape[-3]
    keys = whole if c.max_seqlen_k is None else c.max_seqlen_k
    queries = (some_q.shape[-3] if c.max_seqlen_q is None else c.max_seqlen_q) * some_q.shape[-2] // heads_k
    if bounds not in ((None, None), (None, 0)):
        # Until b36, a right bound of 0 counts as unbounded here.
        left, right = (keys if side is None or (side == 0 and r.window == "sum") else side for side in bounds)
        keys = max(0, min(keys, left + right + 1 + tile_q))
    key_blocks = -(-keys // tile_k)
    blocks = batch * heads_k * -(-queries // tile_q)
    if key_blocks <= 4 or not blocks:
        return 1
    return max(1, min(MULTIPROCESSORS[r.arch] // blocks, 128, key_blocks))


def forward(r: Rules, c: Call) -> tuple[torch.Tensor, torch.Tensor | None]:
    """_flash_attn_fwd."""
    c.q, c.k, c.v, c.qv = (contiguous_last(t) for t in (c.q, c.k, c.v, c.qv))
    some_q = c.q if c.q is not None else c.qv
    packed = c.cu_seqlens_q is not None
    batch = c.cu_seqlens_q.shape[0] - 1 if packed else some_q.shape[0]
    check_call(r, c, batch)
    heads, head_dim_v = some_q.shape[-2], c.v.shape[-1]
    seqlen_q = some_q.shape[-3]
    lead = (seqlen_q,) if packed else (batch, seqlen_q)
    width = c.v.shape[0] * c.v.shape[1] if c.page_table is not None else c.v.shape[-3]
    sink = None if c.sink is None else data(c.sink).float()
    empty_call = width == 0 or some_q.numel() == 0
    bounds = resolve(r.window, c.causal, *c.window)
    total_q = seqlen_q if packed else batch * seqlen_q
    out = torch.full((total_q, heads, head_dim_v), UNINITIALISED)
    lse = torch.full((heads, total_q), UNINITIALISED)
    if empty_call and not r.empty_exits:
        raise Undocumented("a call without any query or key: this release launches its kernel with it")
    if empty_call:
        out.zero_()
        lse[:] = float("-inf") if sink is None else sink[:, None]
    else:
        check_kernel(r, c, batch, bounds)
        _compute(r, c, batch, bounds, out, lse, sink)
    # With qv the heads come last.
    shaped = lse.view(heads, *lead) if packed else lse.view(heads, batch, seqlen_q).transpose(0, 1)
    shaped = (shaped.transpose(-1, -2) if c.qv is not None else shaped).contiguous()
    result = out.view(*lead, heads, head_dim_v)
    softmax_lse = like(shaped, some_q) if c.return_lse else None
    if c.out is not None:
        data(c.out).copy_(result)
        return c.out, softmax_lse
    return like(result.to(torch.bfloat16 if c.v.dtype in FP8 else some_q.dtype), some_q), softmax_lse


def _compute(r: Rules, c: Call, batch: int, bounds: tuple[int | None, int | None], out: torch.Tensor,
             lse: torch.Tensor, sink: torch.Tensor | None) -> None:
    some_q = c.q if c.q is not None else c.qv
    heads, seqlen_q = some_q.shape[-2], some_q.shape[-3]
    starts_q = numbers(c.cu_seqlens_q) if c.cu_seqlens_q is not None else [seqlen_q * b for b in range(batch + 1)]
    lens_q = (numbers(c.seqused_q) if c.seqused_q is not None else
              [b - a for a, b in itertools.pairwise(starts_q)])
    starts_k = numbers(c.cu_seqlens_k) if c.cu_seqlens_k is not None else [0] * (batch + 1)
    paged, v = c.page_table is not None, data(c.v)
    if c.seqused_k is not None:
        lens_k = numbers(c.seqused_k)
    elif c.cu_seqlens_k is not None:
        lens_k = [b - a for a, b in itertools.pairwise(starts_k)]
    else:  # without lengths, all that the table has
        lens_k = [c.page_table.shape[1] * v.shape[1] if paged else v.shape[1]] * batch
    scale = c.softmax_scale
    if scale is None:
        both = c.q is not None and c.qv is not None
        scale = (some_q.shape[-1] + (v.shape[-1] if both else 0)) ** -0.5
    q, qv = (None if t is None else data(t).reshape(-1, heads, t.shape[-1]) for t in (c.q, c.qv))
    for b in range(batch):
        if not lens_q[b]:
            continue
        at = slice(starts_q[b], starts_q[b] + lens_q[b])
        kv = []
        for tensor in (data(c.k), v):
            if tensor is None:
                kv.append(None)
            elif paged:
                kv.append(pages(tensor, data(c.page_table)[b], lens_k[b]))
            elif c.cu_seqlens_k is not None:
                if starts_k[b] + lens_k[b] > len(tensor):
                    illegal_access(f"keys up to {starts_k[b] + lens_k[b]} of {len(tensor)}")
                kv.append(tensor[starts_k[b]:starts_k[b] + lens_k[b]])
            else:
                kv.append(rows(tensor, b, 0, lens_k[b]))
        if not lens_k[b] and not r.empty_exits:
            raise Undocumented("a sequence of no keys beside others: this release's kernels do not say")
        mask = visible(lens_q[b], lens_k[b], *bounds)
        part_q, part_k = (q[at], kv[0]) if q is not None else (qv[at], kv[1])  # type: ignore[index]
        extra = qv[at] if q is not None and qv is not None else None
        out[at], lse[:, at] = attend(part_q, part_k, kv[1], mask, scale, softcap=c.softcap, sink=sink, qv=extra)
        if sink is not None and r.nan_sinks_sm90 and r.major == 9:
            nothing = torch.zeros(len(out), dtype=torch.bool)
            nothing[at] = ~mask.any(1)
            lse[:, nothing] = float("nan")  # softmax.py finalize: a maximum of -inf, and a sum of exp2(inf)


@dataclass
class FlashAttn4(Vendor):
    """The package flash-attn-4. arch: the device's, "sm80" to "sm121"."""

    package: str = "flash-attn-4"
    release: str = "4.0.0b36"
    arch: str = "sm100"

    def __post_init__(self) -> None:
        self.rules = release_rules(self.release, compute_capability(self.arch))
        self.semantics = {VARLEN: self.varlen}
        self.refusals = {VARLEN: (
            Refusal(lambda a: any(getattr(a, name, None) is not None for name in (
                "mask_mod", "block_sparse_tensors", "gather_kv_indices", "scheduler_metadata", "aux_scalars")),
                Undocumented, "mask_mod, block_sparse_tensors, gather_kv_indices, scheduler_metadata and aux_scalars "
                              "are not emulated", "this file"),
        )}
        super().__post_init__()

    def varlen(self, a: types.SimpleNamespace) -> Any:
        """Two values, whatever return_lse says: (out, None) without it."""
        q, k, qv = a.q, a.k, getattr(a, "qv", None)
        if self.release != "4.0.0b3" and k is a.v and a.v.shape[-1] == 512:
            q, k, qv = None, None, q if qv is None else qv  # one tensor for both: taken for an absorbed MLA
        left, right = a.window_size
        return forward(self.rules, Call(
            q, k, a.v, qv, None, a.cu_seqlens_q, a.cu_seqlens_k, a.seqused_q, a.seqused_k, a.max_seqlen_q,
            a.max_seqlen_k, contiguous_last(a.page_table), a.softmax_scale, a.causal, (left, right), a.softcap,
            a.learnable_sink, a.num_splits, a.score_mod, a.return_lse))
