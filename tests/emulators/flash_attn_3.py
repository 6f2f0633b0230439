"""FlashAttention 3 from its documents and source, per release and provider.

    FlashAttn3(release="git 203b9b3d", arch="sm90")     flash_attn_interface: upstream's hopper/
    SglKernel(release="0.4.10", arch="sm90")            sgl_kernel.flash_attn
    VllmFlashAttn(release="0.33.0", arch="sm90")        vllm.vllm_flash_attn: 2, 3 and 4 behind one function

Sources: hopper/flash_attn_interface.py, flash_api.cpp (checks), mask.h, seqlen.h, softmax.h, tile_size.h, rotary.h at
the release's commit; SGLang's kernel at sgl-attn 98c2b6c (the newest there is source of; its Python from the wheels);
vLLM's kernel at vllm-project/flash-attention 617264c1, its Python from the wheels. Not emulated, as results do not
depend on it: splits, pack_gqa, sm_margin, and fp8's rounding of the probabilities.
"""

from __future__ import annotations

import hashlib
import itertools
import types
from dataclasses import dataclass, field
from typing import Any

import torch

from emulators import flash_attn_2, flash_attn_4
from emulators.attend import (
    UNINITIALISED,
    StalePlan,
    Undocumented,
    attend,
    check,
    compute_capability,
    contiguous_last,
    data,
    like,
    numbers,
    one_device,
    pages,
    rotate,
    rows,
    unwritten,
    visible,
    write_pages,
)
from emulators.common import Refusal, Vendor

FP8 = torch.float8_e4m3fn
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Build:
    """What differs between builds of hopper/. metadata: the layout of the scheduler's vector ("counts": 1 + B;
    "sorted": up to four vectors of B rounded to 4; "vllm": up to three). chunk: attention_chunk exists. sinks: the name
    of the argument, None where there is none. max_seqlen_k_bounds: a max_seqlen_k that is given counts as the keys'
    width also when paged. qv_from_256: qv needs a head_dim_v of at least 256. append: appending is built in.
    cubins: the archs that the build has kernels for."""

    arch: int
    metadata: str = "sorted"
    chunk: bool = True
    sinks: str | None = None
    max_seqlen_k_bounds: bool = False
    qv_from_256: bool = True
    append: bool = True
    cubins: tuple[int, ...] = (80, 86, 87, 89, 90)


@dataclass(frozen=True)
class Mask:
    """params.is_causal, is_local and the windows as set_params_fprop leaves them; None is no bound."""

    causal: bool
    local: bool
    left: int | None
    right: int | None
    chunk: int


def resolve(causal: bool, left: int, right: int, chunk: int, seqlen_q: int, seqlen_k: int, keeps_causal: bool) -> Mask:
    """flash_api.cpp. Windows that reach over all keys are none; then a single query is not causal (keeps_causal: but
    for head dims 65..128 with pages). seqlen_q, seqlen_k: the widths, by the caller's word, not the lengths."""
    if left >= seqlen_k - 1:
        left = -1
    if right >= seqlen_q - 1:
        right = -1
    if seqlen_q == 1 and left == -1 and right == -1 and chunk == 0 and not keeps_causal:
        causal = False
    if causal:
        right = 0
    is_causal = left < 0 and right == 0 and chunk == 0
    is_local = (left >= 0 or right >= 0 or chunk >= 1) and not is_causal
    # An unbounded side becomes the width: nothing is beyond it, unless the caller gave a max_seqlen that is too small.
    left_bound = None if not is_local else left if left >= 0 else seqlen_k - 1
    right_bound = (0 if is_causal else None) if not is_local else right if right >= 0 else seqlen_q - 1
    if chunk > 0:
        left_bound, right_bound = min(left_bound or 0, chunk - 1), min(right_bound or 0, chunk - 1)
    return Mask(is_causal, is_local, left_bound, right_bound, chunk)


def tile_rows(head_dim: int, head_dim_v: int) -> int:
    """kBlockM of tile_size.h for sm90; sm8x's is 128."""
    return 64 if head_dim <= 64 and head_dim_v > 256 else 192 if head_dim <= 96 and head_dim_v <= 96 else 128


def append_block(head_dim: int, head_dim_v: int, fp8: bool) -> int:
    """kBlockN of tile_size.h for sm90 with a window or chunk: tokens before the first block read are not appended."""
    if fp8:
        return 160 if head_dim <= 64 else 128 if head_dim <= 96 else 160 if head_dim <= 192 else 64
    if head_dim <= 64 and head_dim_v >= 256:
        return 64 if head_dim_v == 512 else 96
    return 128 if head_dim <= 128 else 96 if head_dim <= 192 else 64


# --- scheduler metadata ---

@dataclass(frozen=True)
class Plan:
    """What a metadata vector was computed from. Compared with the call that uses it."""

    batch: int
    lens_q: tuple[int, ...]
    lens_k: tuple[int, ...]
    heads: tuple[int, int]
    head_dims: tuple[int, int]
    dtype: str
    paged: bool
    causal: bool
    local: bool
    softcap: bool
    appended: bool

    def differences(self, other: Plan) -> list[str]:
        return [f"{name}: planned {mine!r}, called with {getattr(other, name)!r}"
                for name, mine in vars(self).items() if mine != getattr(other, name)]


def metadata_size(build: Build, plan: Plan, num_splits: int) -> int:
    """Elements of the int32 vector. num_splits: as passed; what the heuristic makes of 0 is not emulated, so 0 counts
    as one split in both functions."""
    if build.metadata == "counts":
        return 1 + (plan.batch if plan.batch <= 992 else 0)
    vectors = {"sorted": 2 + (not plan.local), "vllm": 1 + (num_splits > 1 and plan.batch <= 992)}[build.metadata]
    return -(-plan.batch // 4) * 4 * (vectors + (plan.causal or plan.local)) + 1


@dataclass
class Plans:
    """The metadata vectors handed out. A vector carries its plan's number, so it may be copied, as engines do to keep
    it in one place for a graph; only the semaphore's slot is the kernel's to write."""

    build: Build
    made: dict[int, Plan] = field(default_factory=dict)

    def vector(self, plan: Plan, num_splits: int) -> torch.Tensor:
        key = int(hashlib.sha256(repr(plan).encode()).hexdigest()[:7], 16)
        self.made[key] = plan
        result = torch.zeros(metadata_size(self.build, plan, num_splits), dtype=torch.int32)
        result[self._slot] = key
        return result

    @property
    def _slot(self) -> int:
        return 1 if self.build.metadata == "counts" else 0  # the semaphore is first there, and last elsewhere

    def rows_computed(self, vector: torch.Tensor, called: Plan, num_splits: int) -> list[int] | None:
        """None where the plan is the call's own; else the query rows per sequence that the kernel gets to.

        Raises RuntimeError as the checks of flash_api.cpp do, StalePlan where the kernel would take no notice.
        """
        check(tuple(vector.shape) == (metadata_size(self.build, called, num_splits),),
              "scheduler_metadata must have shape (metadata_size)")
        check(data(vector).is_contiguous(), "scheduler_metadata must be contiguous")
        check(vector.dtype == torch.int32, "scheduler_metadata must have dtype int32")
        plan = self.made.get(int(data(vector)[self._slot]))
        if plan is None:
            raise StalePlan("scheduler_metadata was not made by get_scheduler_metadata of this installation")
        if plan == called:
            return None
        differences = plan.differences(called)
        if self.build.metadata != "counts" and len(differences) == 1 and plan.lens_q != called.lens_q:
            group = called.heads[0] // called.heads[1]
            tile = tile_rows(*called.head_dims)
            done = [-(-n * group // tile) * tile // group for n in plan.lens_q]  # num_m_blocks tiles, heads packed
            if any(n < wanted for n, wanted in zip(done, called.lens_q)):
                return done
        raise StalePlan(f"scheduler_metadata is of another call: {'; '.join(differences)}")


# --- the forward function of flash_api.cpp ---

@dataclass
class Call:
    """mha_fwd's arguments. Those that a build does not have stay at their defaults."""

    q: Any
    k: Any
    v: Any
    k_new: Any = None
    v_new: Any = None
    qv: Any = None
    out: Any = None
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None
    cu_seqlens_k_new: Any = None
    seqused_q: Any = None
    seqused_k: Any = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    page_table: Any = None
    kv_batch_idx: Any = None
    leftpad_k: Any = None
    rotary_cos: Any = None
    rotary_sin: Any = None
    seqlens_rotary: Any = None
    q_descale: Any = None
    k_descale: Any = None
    v_descale: Any = None
    softmax_scale: float = 1.0
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    attention_chunk: int = 0
    softcap: float = 0.0
    rotary_interleaved: bool = True
    scheduler_metadata: Any = None
    num_splits: int = 0
    sinks: Any = None
    only_qv: bool = False
    cp_world_size: int = 1
    cp_rank: int = 0
    cp_tot_seqused_k: Any = None


INTS = ("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "leftpad_k")


def check_call(build: Build, c: Call) -> None:
    """The checks that come before the windows are resolved, in flash_api.cpp's order."""
    check(build.arch >= 80, "FlashAttention only supports Ampere GPUs or newer.")
    check(c.q.dtype in (*HALF, FP8), "FlashAttention only supports fp16, bf16, and fp8_e4m3 data type")
    if build.arch < 90:
        check(c.q.dtype in HALF, "FlashAttention on Ampere/Ada cards only supports fp16 and bf16 data type")
    check(c.k.dtype == c.q.dtype, "query and key must have the same dtype")
    check(c.v.dtype == c.q.dtype, "query and value must have the same dtype")
    tensors = {name: t for name, t in vars(c).items() if isinstance(t, torch.Tensor)}
    # 16 bits: the descales are not even looked at.
    used = {name: t for name, t in tensors.items() if c.q.dtype == FP8 or not name.endswith("_descale")}
    for name, tensor in used.items():
        check(tensor.is_cuda, f"{name} must be on CUDA")
    one_device(**used)
    for tensor in (c.q, c.k, c.v):
        check(data(tensor).stride(-1) == 1, "Input tensor must have contiguous last dimension")
    if c.page_table is not None:
        check(c.page_table.dtype == torch.int32, "page_table must have dtype torch.int32")
        check(data(c.page_table).stride(-1) == 1, "page_table must have contiguous last dimension")
    if c.cu_seqlens_q is not None:
        check(data(c.cu_seqlens_q).is_contiguous(), "cu_seqlens_q must be contiguous")
        check(c.cu_seqlens_q.dtype == torch.int32, "cu_seqlens_q must have dtype torch.int32")
        check(c.max_seqlen_q is not None, "max_seqlen_q must be provided if cu_seqlens_q is provided")
    if c.cu_seqlens_k is not None:
        check(data(c.cu_seqlens_k).is_contiguous(), "cu_seqlens_k must be contiguous")
        check(c.cu_seqlens_k.dtype == torch.int32, "cu_seqlens_k must have dtype torch.int32")
        check(c.max_seqlen_k is not None, "max_seqlen_k must be provided if cu_seqlens_k is provided")
        check(c.page_table is None and c.kv_batch_idx is None,
              "If cu_seqlens_k is passed in, then page table is not supported")


def check_shapes(build: Build, c: Call, batch: int, batch_k: int) -> None:
    head_dim, head_dim_v = c.q.shape[-1], c.v.shape[-1]
    heads, heads_k = c.q.shape[-2], c.k.shape[-2]
    if c.kv_batch_idx is None:
        check(batch == batch_k, "batch_size must be equal to batch_size_k")
    check(head_dim <= 256, "FlashAttention forward only supports head dimension at most 256")
    check(heads % heads_k == 0, "Number of heads in key/value must divide number of heads in query")
    if head_dim_v != head_dim:
        check((128 < head_dim <= 192 and 96 < head_dim_v <= 128) or (head_dim <= 64 and head_dim_v <= 512),
              "If V headdim is different from Q/K dim, we only support Q/K headdim in (128, 192] and V headdim in "
              "(96, 128], or (Q/K <= 64 and V <= 512).")
        check(build.arch // 10 == 9, "Only Hopper supports different V headdim")
        check(head_dim_v <= 256 or c.q.dtype in HALF, "HeaddimV > 256 requires fp16 and bf16 data type")
    varlen_k, paged = c.cu_seqlens_k is not None, c.page_table is not None
    check(c.q.dim() == (3 if c.cu_seqlens_q is not None else 4),
          "q must have shape " + ("(total_q, num_heads, head_size)" if c.cu_seqlens_q is not None else
                                  "(batch_size, seqlen_q, num_heads, head_size)"))
    leading = ("total_k" if varlen_k else "num_pages, page_size" if paged else "batch_size_k, seqlen_k")
    for name, tensor, dim in (("k", c.k, head_dim), ("v", c.v, head_dim_v)):
        check(tensor.dim() == (3 if varlen_k else 4) and tuple(tensor.shape) == (*c.k.shape[:-1], dim),
              f"{name} must have shape ({leading}, num_heads_k, head_size{'_v' if name == 'v' else ''})")
    for name in INTS[:2]:
        tensor = getattr(c, name)
        check(tensor is None or tuple(tensor.shape) == (batch + 1,), f"{name} must have shape (batch_size + 1)")
    for name in INTS[2:]:
        tensor = getattr(c, name)
        if tensor is not None:
            check(tensor.dtype == torch.int32, f"{name} must have dtype int32")
            check(data(tensor).is_contiguous(), f"{name} must be contiguous")
            check(tuple(tensor.shape) == (batch,), f"{name} must have shape (batch_size)")
    alignment = 16 if c.q.dtype == FP8 else 8
    check(head_dim % alignment == 0, f"head_size should be a multiple of {alignment}")
    check(head_dim_v % alignment == 0, f"head_size_v should be a multiple of {alignment}")
    if c.out is not None:
        check(c.out.dtype == (torch.bfloat16 if c.q.dtype == FP8 else c.q.dtype),
              "For FP16/BF16 input, output must have the same dtype as inputs. For FP8 input, output must have dtype "
              "BF16")
        check(data(c.out).stride(-1) == 1, "Output tensor must have contiguous last dimension")
        check(tuple(c.out.shape) == (*c.q.shape[:-1], head_dim_v), "out must have shape "
              + ("(total_q, num_heads, head_size_v)" if c.q.dim() == 3 else
                 "(batch_size, seqlen_q, num_heads, head_size_v)"))


def check_extras(build: Build, c: Call, batch: int, seqlen_q: int, seqlen_k: int, mask: Mask) -> None:
    """The checks after the windows: append, qv, rotary, batch index, descales, sinks, context parallelism."""
    head_dim, head_dim_v = c.q.shape[-1], c.v.shape[-1]
    heads, heads_k = c.q.shape[-2], c.k.shape[-2]
    if c.k_new is not None:
        check(c.v_new is not None, "If k_new is supplied, v_new must also be passed in")
        check(c.seqused_k is not None, "If k_new is supplied, seqlens_k must also be passed in")
        check(seqlen_q <= seqlen_k, "If k_new is supplied, it must have seqlen <= the seqlen of the KV cache")
        packed = c.cu_seqlens_k_new is not None
        if packed:
            check(c.cu_seqlens_k_new.dtype == torch.int32, "cu_seqlens_k_new must have dtype torch.int32")
        for name, tensor, dim in (("k_new", c.k_new, head_dim), ("v_new", c.v_new, head_dim_v)):
            check(tensor.dtype == c.q.dtype, f"{name} must have the same dtype as query")
            expected = (c.k_new.shape[0], heads_k, dim) if packed else (batch, c.k_new.shape[1], heads_k, dim)
            check(tuple(tensor.shape) == expected, f"{name} must have shape "
                  + ("(total_k_new, num_heads_k, head_size)" if packed else
                     "(batch_size, seqlen_k_new, num_heads_k, head_size)"))
        if packed:
            check(tuple(c.cu_seqlens_k_new.shape) == (batch + 1,), "cu_seqlens_k_new must have shape (batch_size + 1)")
    if c.qv is not None:
        check(head_dim <= 64, "q_v is only supported for head_size <= 64")
        if build.qv_from_256:
            check(head_dim_v >= 256, "q_v is only supported for hdim_v >= 256.")
        elif head_dim_v < 256:
            raise Undocumented(f"qv with head_dim_v {head_dim_v}: this release has no check for it and no kernel")
        check(c.q.dtype in HALF, "q_v is only supported for fp16 and bf16 data type")
        check(build.arch == 90, "q_v is only supported for Hopper GPUs")
        check(c.qv.dtype == c.q.dtype, "q_v must have the same dtype as query")
        check(tuple(c.qv.shape) == (*c.q.shape[:-1], head_dim_v), "q_v must have shape "
              + ("(total_q, num_heads, head_size_v)" if c.q.dim() == 3 else
                 "(batch_size, seqlen_q, num_heads, head_size_v)"))
    if c.rotary_cos is not None:
        check(c.k_new is not None, "If rotary cos/sin are provided, new key / value to be appended to KV cache must "
                                   "also be provided")
        dim = c.rotary_cos.shape[1] * 2
        check(dim <= head_dim, "rotary_dim must be <= headdim")
        check(dim % 16 == 0, "Only rotary dimensions divisible by 16 are currently supported")
        if c.page_table is not None:
            check(c.rotary_cos.shape[0] >= seqlen_k, "cos/sin seqlen must be at least the seqlen of KV cache")
        check(c.rotary_cos.dtype == c.q.dtype, "rotary_cos must have the same dtype as query")
        check(c.rotary_sin is not None, "If rotary cos is provided, rotary sin must also be provided")
        check(c.rotary_sin.shape == c.rotary_cos.shape, "rotary_sin must have shape (seqlen_ro, params.rotary_dim / 2)")
        check(c.rotary_sin.dtype == c.q.dtype, "rotary_cos must have the same dtype as query")
        if c.seqlens_rotary is not None:
            check(c.seqlens_rotary.dtype == torch.int32, "seqlens_rotary must have dtype torch.int32")
            check(tuple(c.seqlens_rotary.shape) == (batch,), "seqlens_rotary must have shape (batch_size)")
    if c.kv_batch_idx is not None:
        check(c.kv_batch_idx.dtype == torch.int32, "kv_batch_idx must have dtype int32")
    check(c.num_splits <= 256, "num_splits > 256 not supported")
    if c.q.dtype == FP8:
        for name in ("q_descale", "k_descale", "v_descale"):
            tensor = getattr(c, name)
            if tensor is not None:
                check(tuple(tensor.shape) == (batch, heads_k), f"{name} must have shape (batch_size, num_heads_k)")
                check(tensor.dtype == torch.float32, f"expected scalar type Float but found {tensor.dtype}")
    if c.sinks is not None:
        _check_sinks(build, c, heads, head_dim, head_dim_v)
    check(c.cp_world_size > 0, "cp_world_size must be positive, required by downstream unified code path. Use 1 if CP "
                               "is not enabled.")
    check(c.cp_world_size != 1 or c.cp_rank == 0, "When context parallelism is disabled, cp_rank must be zero")
    check(c.cp_world_size == 1 or c.cp_tot_seqused_k is not None,
          "cp_tot_seqused_k_ must be provided when context parallelism is enabled.")
    check(not (mask.local and c.cp_world_size > 1), "Local attention (sliding window) is not currently supported with "
                                                    "context parallelism (cp_world_size > 1).")
    check(build.append or c.k_new is None, "This flash attention build does not support appending KV.")
    if build.arch not in build.cubins:
        check(False, "CUDA error: no kernel image is available for execution on the device")


def _check_sinks(build: Build, c: Call, heads: int, head_dim: int, head_dim_v: int) -> None:
    if build.sinks == "s_aux":
        check(build.arch == 90, "S aux is currently only supported for Hopper GPUs")
        check(heads <= 64, "We only support query heads <= 64 with S aux")
        check(head_dim == head_dim_v, "We don't support S aux with hdim != hdim_v")
        check(c.sinks.dtype == torch.bfloat16, "We only support bf16 dtype for S aux.")
    else:
        check(c.sinks.dtype == torch.bfloat16, "sinks must have dtype bfloat16")
        if build.arch < 90:
            raise Undocumented("sinks below sm90: the kernel for sm80 (flash_fwd_kernel_sm80.h at sgl-attn 98c2b6c) "
                               "does not read them, and there is no source of what this release does")
    check(tuple(c.sinks.shape) == (heads,), f"{build.sinks} must have shape (num_heads)")
    check(data(c.sinks).is_contiguous(), f"{build.sinks} must be contiguous")


def forward(build: Build, plans: Plans, c: Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """mha_fwd: (out, softmax_lse, out_accum, softmax_lse_accum); the last two are empty, as without splits."""
    check_call(build, c)
    q, k, v = data(c.q), data(c.k), data(c.v)
    packed, paged = c.cu_seqlens_q is not None, c.page_table is not None
    batch = c.cu_seqlens_q.shape[0] - 1 if packed else q.shape[0]
    seqlen_q = int(c.max_seqlen_q) if packed else q.shape[1]  # type: ignore[arg-type]
    width = c.page_table.shape[1] * k.shape[1] if paged else k.shape[1] if k.dim() == 4 else 0
    told = c.max_seqlen_k if c.cu_seqlens_k is not None or build.max_seqlen_k_bounds else None
    seqlen_k = width if told is None else int(told)
    batch_k = (c.page_table.shape[0] if paged else c.cu_seqlens_k.shape[0] - 1 if c.cu_seqlens_k is not None
               else k.shape[0])
    head_dim, head_dim_v, heads, heads_k = q.shape[-1], v.shape[-1], q.shape[-2], k.shape[-2]
    check_shapes(build, c, batch, batch_k)
    if c.attention_chunk and not build.chunk:
        raise Undocumented("attention_chunk in a build without it")
    mask = resolve(c.causal, *c.window, c.attention_chunk, seqlen_q, seqlen_k, paged and 64 < head_dim <= 128)
    check_extras(build, c, batch, seqlen_q, seqlen_k, mask)

    starts_q = numbers(c.cu_seqlens_q) if packed else [seqlen_q * b for b in range(batch + 1)]
    given_q = [b - a for a, b in itertools.pairwise(starts_q)]
    lens_q = numbers(c.seqused_q) if c.seqused_q is not None else given_q
    starts_k = numbers(c.cu_seqlens_k) if c.cu_seqlens_k is not None else [0] * (batch + 1)
    ends = (numbers(c.seqused_k) if c.seqused_k is not None else
            [b - a for a, b in itertools.pairwise(starts_k)] if c.cu_seqlens_k is not None else [width] * batch)
    pads = numbers(c.leftpad_k) if c.leftpad_k is not None else [0] * batch
    index = numbers(c.kv_batch_idx) if c.kv_batch_idx is not None else list(range(batch))
    new_starts = ([] if c.k_new is None else numbers(c.cu_seqlens_k_new) if c.cu_seqlens_k_new is not None else
                  [c.k_new.shape[1] * b for b in range(batch + 1)])

    done = None
    varlen = any(getattr(c, name) is not None for name in INTS)
    called = Plan(batch, tuple(lens_q), tuple(ends), (heads, heads_k), (head_dim, head_dim_v), str(c.q.dtype), paged,
                  mask.causal, mask.local, c.softcap > 0, c.k_new is not None)
    if c.scheduler_metadata is not None:
        if not varlen:
            raise Undocumented("scheduler_metadata without lengths: whether it is read depends on the scheduler")
        done = plans.rows_computed(c.scheduler_metadata, called, c.num_splits)

    flat_q = q.reshape(-1, heads, head_dim)
    flat_qv = None if c.qv is None else data(c.qv).reshape(-1, heads, head_dim_v)
    out = torch.full((len(flat_q), heads, head_dim_v), UNINITIALISED)
    lse = torch.full((heads, len(flat_q)), UNINITIALISED)
    total_k = k.shape[0] if c.cu_seqlens_k is not None else batch * k.shape[1]
    if total_k + (new_starts[-1] if new_starts else 0) == 0:
        out.zero_()
        lse.fill_(float("inf"))  # no key anywhere: the one +inf of this version
        lens_q = [0] * batch
    for b in range(batch):
        start, len_q = starts_q[b], lens_q[b]
        if not len_q:  # no tile of queries: nothing is appended either
            continue
        if len_q > seqlen_q and build.arch < 90:
            raise Undocumented(f"{len_q} queries with max_seqlen_q {seqlen_q} below sm90; sm90 counts for itself")
        rows_q = flat_q[start:start + len_q]
        if new_starts:
            rows_q = _append(c, b, ends[b], index[b], rows_q, mask, new_starts)
        length = ends[b] - pads[b] + (new_starts[b + 1] - new_starts[b] if new_starts else 0)
        kv = [pages(t, data(c.page_table)[b], length, pads[b]) if paged else
              t[starts_k[b] + pads[b]:starts_k[b] + pads[b] + length] if c.cu_seqlens_k is not None else
              rows(t, index[b], pads[b], length) for t in (k, v)]
        o, row_lse = _rows(build, c, b, rows_q, *kv, mask,
                           None if flat_qv is None else flat_qv[start:start + len_q], head_dim, head_dim_v)
        count = len_q if done is None else min(len_q, done[b])
        out[start:start + count], lse[:, start:start + count] = o[:count], row_lse[:, :count]
    result = out.view(*q.shape[:-1], head_dim_v)
    lse = lse if packed else lse.view(heads, batch, -1).transpose(0, 1).contiguous()
    if c.out is not None:
        data(c.out).copy_(result)
        final = c.out
    else:
        final = like(result.to(torch.bfloat16 if c.q.dtype == FP8 else c.q.dtype), c.q)
    return final, like(lse, c.q), like(torch.empty(0), c.q), like(torch.empty(0), c.q)


def _append(c: Call, b: int, end: int, index: int, rows_q: torch.Tensor, mask: Mask,
            new_starts: list[int]) -> torch.Tensor:
    """Writes sequence b's new tokens at its cache's end; its queries, turned where there is a rotary embedding."""
    new = [data(t).reshape(-1, *t.shape[-2:])[new_starts[b]:new_starts[b + 1]] for t in (c.k_new, c.v_new)]
    if c.rotary_cos is not None:
        cos, sin = data(c.rotary_cos), data(c.rotary_sin)
        first = numbers(c.seqlens_rotary)[b] if c.seqlens_rotary is not None else end
        new[0] = rotate(new[0], cos, sin, first + torch.arange(len(new[0])), c.rotary_interleaved)
        # FixedPosition = !(Is_causal || Is_local): all of q at the position where the append starts.
        steps = torch.arange(len(rows_q)) if mask.causal or mask.local else torch.zeros(len(rows_q), dtype=torch.long)
        rows_q = rotate(rows_q, cos, sin, first + steps, c.rotary_interleaved)
    reach = mask.left if mask.local else None
    if mask.chunk:  # round_down(attention_chunk, n_idx)
        place = end + len(new[0]) - len(rows_q)
        reach = min(reach if reach is not None else place, place % mask.chunk) if place > 0 else reach
    head_dim, head_dim_v = c.k.shape[-1], c.v.shape[-1]
    lost = unwritten(end, len(new[0]), len(rows_q), reach, append_block(head_dim, head_dim_v, c.q.dtype == FP8))
    for cache, tokens in zip((data(c.k), data(c.v)), new):
        if c.page_table is not None:
            write_pages(cache, data(c.page_table)[b], end + lost, tokens[lost:])
        else:
            rows(cache, index, end + lost, len(tokens) - lost).copy_(tokens[lost:])
    return rows_q


def _rows(build: Build, c: Call, b: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask,
          qv: torch.Tensor | None, head_dim: int, head_dim_v: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence."""
    len_q, len_k = len(q), len(k)
    group = q.shape[1] // k.shape[1]
    scale: float | torch.Tensor = c.softmax_scale
    v_scale = None
    if c.q.dtype == FP8:
        one = torch.ones(k.shape[1])
        of = {name: one if getattr(c, name) is None else data(getattr(c, name))[b]
              for name in ("q_descale", "k_descale", "v_descale")}
        scale = (of["q_descale"] * of["k_descale"] * c.softmax_scale).repeat_interleave(group)  # q's too is [B, Hkv]
        v_scale = of["v_descale"].repeat_interleave(group)
    if c.cp_world_size > 1:
        # mask.h: local key j is global j * world + rank; the query's row counts from the global length. Without causal
        # nothing but the local length bounds.
        total = numbers(c.cp_tot_seqused_k)[b]
        seen, reach = torch.ones(len_q, len_k, dtype=torch.bool), total - len_q - c.cp_rank
        if mask.causal:
            j = torch.arange(len_k)[None] * c.cp_world_size + c.cp_rank
            seen = (j <= torch.arange(len_q)[:, None] + total - len_q) & (j < total)
    else:
        seen, reach = visible(len_q, len_k, mask.left, mask.right, mask.chunk), len_k - len_q + (mask.right or 0)
    if c.only_qv:
        q, k = torch.zeros_like(q), torch.zeros_like(k)  # K's product is skipped: only the latent part scores
    sink = None if c.sinks is None else data(c.sinks)
    out, lse = attend(q, k, v, seen, scale, softcap=c.softcap, sink=sink, qv=qv)
    if v_scale is not None:
        out = out * v_scale[:, None]
    if sink is not None:
        empty = ~seen.any(1)
        lse[:, empty] = _empty_rows(sink, empty, reach, len_k, group, tile_rows(head_dim, head_dim_v))
    return out, lse


def _empty_rows(sink: torch.Tensor, empty: torch.Tensor, reach: int, len_k: int, group: int,
                tile: int) -> torch.Tensor:
    """LSE [H, n] of the rows without keys, with sinks. A tile of rows that reaches no block of keys is skipped and gets
    -inf (epilogue store_zero); a row in a tile that does reach one gets its sink (softmax finalize).

    reach: a tile that ends before row n reaches keys up to n + reach (block.h, get_n_block_min_max; vLLM's counts the
    global length there, from cp_rank on).
    """
    where = empty.nonzero().flatten()
    lse = torch.full((len(sink), len(where)), float("-inf"))
    if not len_k:
        return lse
    for column, row in enumerate(where.tolist()):
        skipped = set()
        for size in {tile, tile // group}:  # whether the heads of a group are packed is a heuristic's choice
            end = (row // max(size, 1) + 1) * max(size, 1)
            skipped.add(end + reach <= 0)
        if len(skipped) > 1:
            raise Undocumented(f"LSE of row {row} over {len_k} keys with sinks: it depends on pack_gqa")
        if skipped == {False}:
            lse[:, column] = sink.float()
    return lse


def scheduler_metadata(build: Build, plans: Plans, a: types.SimpleNamespace) -> torch.Tensor:
    """mha_fwd_get_scheduler_metadata."""
    check(a.qkv_dtype in (*HALF, FP8), "FlashAttention only supports fp16, bf16, and fp8_e4m3 data type")
    check(a.num_heads_q % a.num_heads_kv == 0, "Number of heads in key/value must divide number of heads in query")
    lens = a.cache_seqlens
    check(lens.dtype == torch.int32, f"expected scalar type Int but found {lens.dtype}")
    if len(lens) < a.batch_size:
        raise Undocumented(f"batch_size {a.batch_size} with {len(lens)} cache_seqlens: the kernel reads past them")
    chunk = getattr(a, "attention_chunk", 0)
    paged = a.page_size is not None
    mask = resolve(a.causal, *a.window_size, chunk, a.max_seqlen_q, a.max_seqlen_k, paged and 64 < a.headdim <= 128)
    lens_q = ([b - a_ for a_, b in itertools.pairwise(numbers(a.cu_seqlens_q))] if a.cu_seqlens_q is not None else
              [a.max_seqlen_q] * a.batch_size)
    plan = Plan(a.batch_size, tuple(lens_q), tuple(numbers(lens)[:a.batch_size]), (a.num_heads_q, a.num_heads_kv),
                (a.headdim, a.headdim if a.headdim_v is None else a.headdim_v), str(a.qkv_dtype), paged, mask.causal,
                mask.local, a.has_softcap, a.max_seqlen_k_new > 0 or a.cu_seqlens_k_new is not None)
    return like(plans.vector(plan, a.num_splits), lens)


def default_scale(q: Any, qv: Any) -> float:
    """All providers but vLLM: with qv, of both parts together. It is the scale of no model that has them."""
    return float((q.shape[-1] + (qv.shape[-1] if qv is not None else 0)) ** -0.5)


def kvcache_call(a: types.SimpleNamespace, lens: Any, **more: Any) -> Call:
    """flash_attn_with_kvcache's call of mha_fwd: the cache's lengths are seqused_k, and there is no max_seqlen_k."""
    return Call(contiguous_last(a.q), a.k_cache, a.v_cache, contiguous_last(a.k), contiguous_last(a.v), a.qv,
                cu_seqlens_q=a.cu_seqlens_q, cu_seqlens_k_new=a.cu_seqlens_k_new, seqused_k=lens,
                max_seqlen_q=a.max_seqlen_q, page_table=contiguous_last(a.page_table), kv_batch_idx=a.cache_batch_idx,
                leftpad_k=a.cache_leftpad, rotary_cos=a.rotary_cos, rotary_sin=a.rotary_sin,
                seqlens_rotary=a.rotary_seqlens, q_descale=a.q_descale, k_descale=a.k_descale, v_descale=a.v_descale,
                causal=a.causal, window=tuple(a.window_size), attention_chunk=a.attention_chunk or 0,
                softcap=a.softcap, rotary_interleaved=a.rotary_interleaved, scheduler_metadata=a.scheduler_metadata,
                num_splits=a.num_splits, **more)


def varlen_call(a: types.SimpleNamespace, **more: Any) -> Call:
    return Call(contiguous_last(a.q), contiguous_last(a.k), contiguous_last(a.v), qv=a.qv, cu_seqlens_q=a.cu_seqlens_q,
                cu_seqlens_k=a.cu_seqlens_k, seqused_q=a.seqused_q, seqused_k=a.seqused_k, max_seqlen_q=a.max_seqlen_q,
                max_seqlen_k=a.max_seqlen_k, q_descale=a.q_descale, k_descale=a.k_descale, v_descale=a.v_descale,
                causal=a.causal, window=tuple(a.window_size), attention_chunk=a.attention_chunk or 0,
                softcap=a.softcap, num_splits=a.num_splits, **more)


STRIDES = (
    Refusal(lambda a: a.k_cache is not None and data(a.k_cache).stride(-1) != 1, AssertionError,
            "k_cache must have contiguous last dimension", "flash_attn_interface.py flash_attn_with_kvcache"),
    Refusal(lambda a: data(a.v_cache).stride(-1) != 1, AssertionError,
            "v_cache must have contiguous last dimension", "flash_attn_interface.py flash_attn_with_kvcache"),
)


@dataclass
class FlashAttn3(Vendor):
    """Upstream's flash_attn_interface. arch: the device's, "sm75" to "sm121"."""

    package: str = "flash-attn-3"
    release: str = "git 203b9b3d"
    arch: str = "sm90"

    MODULE = "flash_attn_interface"

    def __post_init__(self) -> None:
        first = self.release == "git v2.8.3.post1"
        self.build = Build(compute_capability(self.arch), metadata="counts" if first else "sorted",
                           qv_from_256=not first)
        self.plans = Plans(self.build)
        self.int_lengths_per_cache_row = first  # cache_seqlens as a number: as many as the cache has rows, or q
        names = (f"{self.MODULE}.{name}" for name in
                 ("flash_attn_with_kvcache", "flash_attn_varlen_func", "get_scheduler_metadata"))
        self.kvcache_name, self.varlen_name, self.metadata_name = names
        self.semantics = {self.kvcache_name: self.kvcache, self.varlen_name: self.varlen,
                          self.metadata_name: lambda a: scheduler_metadata(self.build, self.plans, a)}
        self.refusals = {self.kvcache_name: STRIDES}
        super().__post_init__()

    def kvcache(self, a: types.SimpleNamespace) -> Any:
        """With the LSE: four values."""
        lens = a.cache_seqlens
        if isinstance(lens, int):
            count = (a.k_cache if self.int_lengths_per_cache_row else a.q).shape[0]
            lens = like(torch.full((count,), lens, dtype=torch.int32), a.k_cache)
        scale = default_scale(a.q, a.qv) if a.softmax_scale is None else a.softmax_scale
        results = forward(self.build, self.plans, kvcache_call(a, lens, softmax_scale=scale))
        return results if a.return_softmax_lse else results[0]

    def varlen(self, a: types.SimpleNamespace) -> Any:
        """With the LSE, which the oldest release never returns: two values. There are no pages here."""
        scale = default_scale(a.q, a.qv) if a.softmax_scale is None else a.softmax_scale
        results = forward(self.build, self.plans, varlen_call(a, softmax_scale=scale))
        return results[:2] if getattr(a, "return_attn_probs", False) else results[0]


@dataclass
class SglKernel(Vendor):
    """SGLang's build. FlashAttention 4 behind ver=4 is there in 0.3.21 alone; later releases ignore `ver`."""

    package: str = "sglang-kernel"
    release: str = "0.4.10"
    arch: str = "sm90"

    def __post_init__(self) -> None:
        self.build = Build(compute_capability(self.arch), sinks="sinks")
        self.plans = Plans(self.build)
        self.has_4 = self.release == "0.3.21"
        self.int_lengths_per_cache_row = self.release in ("0.3.21", "0.4.0")
        self.distribution = self.distribution or ("sgl-kernel" if self.has_4 else "sglang-kernel")
        kvcache, varlen = (f"sgl_kernel.flash_attn.{name}" for name in
                           ("flash_attn_with_kvcache", "flash_attn_varlen_func"))
        self.semantics = {kvcache: self.kvcache, varlen: self.varlen}
        self.refusals = {kvcache: self._kvcache_refusals(), varlen: self._varlen_refusals()}
        super().__post_init__()

    def _is_4(self, a: types.SimpleNamespace) -> bool:
        return self.has_4 and a.ver == 4

    def _kvcache_refusals(self) -> tuple[Refusal, ...]:
        here = "sgl_kernel/flash_attn.py flash_attn_with_kvcache"

        def four(when: Any, message: str) -> Refusal:
            return Refusal(lambda a: self._is_4(a) and when(a), AssertionError, message, here + " (0.3.21, ver == 4)")

        return (
            four(lambda a: a.k is not None or a.v is not None, "FA4 does not support updating KV cache in-place."),
            four(lambda a: any(x is not None for x in (a.rotary_cos, a.rotary_sin, a.rotary_seqlens)),
                 "FA4 does not support rotary embedding."),
            four(lambda a: a.cache_batch_idx is not None or a.cache_leftpad is not None,
                 "FA4 does not support non-consecutive batch indices or left padding."),
            four(lambda a: any(x is not None for x in (a.q_descale, a.k_descale, a.v_descale)),
                 "FA4 does not support descale."),
            Refusal(lambda a: a.v_cache is None, ValueError, "v_cache must be provided", here),
            *STRIDES[::-1],
            Refusal(lambda a: a.k_cache is None and not a.only_qv, ValueError,
                    "k_cache can only be None when only_qv=True", here),
            Refusal(lambda a: a.q is None and not a.only_qv, ValueError, "q can only be None when only_qv=True", here),
            Refusal(lambda a: a.q is None and a.qv is None, ValueError,
                    "q must be provided unless qv is provided with only_qv=True", here),
            Refusal(lambda a: a.softmax_scale is None and getattr(a, "only_qv", False) and a.qv is None, ValueError,
                    "only_qv=True requires qv to be provided", here),
        )

    def _varlen_refusals(self) -> tuple[Refusal, ...]:
        here = "sgl_kernel/flash_attn.py flash_attn_varlen_func"
        return (
            Refusal(lambda a: not self._is_4(a) and self.build.arch // 10 not in (8, 9), NotImplementedError,
                    "flash_attn at sgl-kernel is only supported on sm90 and above", here),
            Refusal(lambda a: not self._is_4(a) and None in (a.max_seqlen_q, a.max_seqlen_k), ValueError,
                    "max_seqlen_q and max_seqlen_k are required for FA3", here),
        )

    def _four(self, a: types.SimpleNamespace, **call: Any) -> Any:
        """_fa4_interface.py. Handed on: what is named here, and none other."""
        size = (None, None) if tuple(a.window_size) == (-1, -1) else tuple(a.window_size)
        rules = flash_attn_4.Rules(self.build.arch, archs=(9, 10, 11), window="literal",
                                   sink_dtypes=(torch.bfloat16,), paged=(10, 11), head_dims=False)
        results = flash_attn_4.forward(rules, flash_attn_4.Call(
            softmax_scale=a.softmax_scale, causal=a.causal, window=size, softcap=a.softcap, sink=a.sinks,
            score_mod=a.score_mod, page_table=a.page_table, return_lse=a.return_softmax_lse, **call))
        return results if a.return_softmax_lse else results[0]

    def kvcache(self, a: types.SimpleNamespace) -> Any:
        """With the LSE: four values. score_mod, aux_tensors and (after 0.3.21) ver are not looked at."""
        if self._is_4(a):
            if isinstance(a.cache_seqlens, int):
                raise AttributeError("'int' object has no attribute 'shape'")
            return self._four(a, q=a.q, k=a.k_cache, v=a.v_cache, cu_seqlens_q=a.cu_seqlens_q,
                              seqused_k=a.cache_seqlens, num_splits=a.num_splits)
        only_qv = getattr(a, "only_qv", False)
        if a.k_cache is None:  # a placeholder that is not read
            dim = a.q.shape[-1] if a.q is not None else 64
            a.k_cache = like(torch.empty(*a.v_cache.shape[:-1], dim, dtype=a.v_cache.dtype), a.v_cache)
        if a.q is None:
            a.q = like(torch.empty(*a.qv.shape[:-1], a.k_cache.shape[-1], dtype=a.qv.dtype), a.qv)
        scale = a.softmax_scale
        if scale is None:
            scale = a.qv.shape[-1] ** -0.5 if only_qv else default_scale(a.q, a.qv)
        lens = a.cache_seqlens
        if isinstance(lens, int):
            count = (a.k_cache if self.int_lengths_per_cache_row else a.q).shape[0]
            lens = like(torch.full((count,), lens, dtype=torch.int32), a.v_cache)
        call = kvcache_call(a, lens, softmax_scale=scale, sinks=a.sinks, only_qv=only_qv, out=getattr(a, "out", None))
        results = forward(self.build, self.plans, call)
        return results if a.return_softmax_lse else results[0]

    def varlen(self, a: types.SimpleNamespace) -> Any:
        """With the LSE: four values. page_table is taken and not handed on."""
        if self._is_4(a):
            return self._four(a, q=a.q, k=a.k, v=a.v, cu_seqlens_q=a.cu_seqlens_q, cu_seqlens_k=a.cu_seqlens_k,
                              seqused_q=a.seqused_q, seqused_k=a.seqused_k)
        scale = default_scale(a.q, a.qv) if a.softmax_scale is None else a.softmax_scale
        call = varlen_call(a, softmax_scale=scale, sinks=a.sinks, only_qv=getattr(a, "only_qv", False),
                           out=getattr(a, "out", None))
        results = forward(self.build, self.plans, call)
        return results if a.return_softmax_lse else results[0]


@dataclass
class VllmFlashAttn(Vendor):
    """vLLM's build. fa_version chooses 2, 3 or 4; its default, a constant of the module, is 2."""

    package: str = "vllm"
    release: str = "0.33.0"
    arch: str = "sm90"

    NAME = "vllm.vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"
    METADATA = "vllm.vllm_flash_attn.flash_attn_interface.get_scheduler_metadata"

    def __post_init__(self) -> None:
        arch = compute_capability(self.arch)
        self.build_2 = flash_attn_2.Kernel(arch, page_multiple=16, lse_transposed=True)
        self.build = Build(arch, metadata="vllm", chunk=False, sinks="s_aux", max_seqlen_k_bounds=True, append=False,
                           cubins=(90,))
        self.plans = Plans(self.build)
        self.semantics = {self.NAME: self.varlen,
                          self.METADATA: lambda a: scheduler_metadata(self.build, self.plans, a)}
        self.refusals = {self.NAME: self._refusals()}
        super().__post_init__()

    def _version(self, a: types.SimpleNamespace) -> int:
        return a.fa_version if isinstance(a.fa_version, int) else 2

    def _refusals(self) -> tuple[Refusal, ...]:
        here = "vllm/vllm_flash_attn/flash_attn_interface.py flash_attn_varlen_func"

        def of(version: int, when: Any, message: str, error: type[Exception] = NotImplementedError) -> Refusal:
            return Refusal(lambda a: self._version(a) == version and when(a), error, message, here)

        both = {"0.32.0": lambda a: True, "0.33.0": lambda a: self._version(a) != 4}[self.release]
        return (
            Refusal(lambda a: a.cu_seqlens_k is None and a.seqused_k is None, AssertionError,
                    "cu_seqlens_k or seqused_k must be provided", here),
            Refusal(lambda a: a.cu_seqlens_k is not None and a.seqused_k is not None and both(a), AssertionError,
                    "cu_seqlens_k and seqused_k cannot be provided at the same time", here),
            Refusal(lambda a: a.block_table is not None and a.seqused_k is None, AssertionError,
                    "seqused_k must be provided if block_table is provided", here),
            Refusal(lambda a: a.output_scale is not None and self._version(a) != 4, AssertionError,
                    "Fused FP8 output (output_scale) is only supported by FA4", here),
            Refusal(lambda a: self._version(a) not in (2, 3, 4), ValueError, "Unsupported FA version", here),
            of(2, lambda a: None not in (a.scheduler_metadata, a.q_descale, a.k_descale, a.v_descale),
               "FA2 does not support scheduler_metadata, q_descale, k_descale, v_descale"),
            of(2, lambda a: a.s_aux is not None, "FA2 does not support s_aux"),
            of(2, lambda a: a.num_splits > 1, "FA2 does not support num_splits > 1"),
            of(2, lambda a: a.mask_mod is not None, "FA2 does not support mask_mod"),
            of(2, lambda a: a.aux_tensors is not None, "FA2 does not support aux_tensors"),
            of(3, lambda a: a.alibi_slopes is not None, "Alibi is not supported in FA3", AssertionError),
            of(3, lambda a: a.mask_mod is not None, "FA3 does not support mask_mod"),
            of(3, lambda a: a.aux_tensors is not None, "FA3 does not support aux_tensors"),
            of(4, lambda a: a.alibi_slopes is not None, "Alibi is not supported in FA4", AssertionError),
            Refusal(lambda a: a.dropout_p != 0.0, Undocumented, "dropout_p: dropout is not emulated", "this file"),
            Refusal(lambda a: any(getattr(a, name, None) is not None for name in (
                "mask_mod", "block_sparse_tensors", "aux_tensors", "dynamic_causal", "gather_kv_indices",
                "output_scale")), Undocumented, "mask_mod, block_sparse_tensors, aux_tensors, dynamic_causal, "
                "gather_kv_indices and output_scale of FA4 are not emulated", "this file"),
        )

    def varlen(self, a: types.SimpleNamespace) -> Any:
        scale = a.q.shape[-1] ** -0.5 if a.softmax_scale is None else a.softmax_scale  # of q alone, also with q_v
        size = (-1, -1) if a.window_size is None else tuple(a.window_size)
        check(len(size) == 2, "", AssertionError)
        q, k, v = (contiguous_last(x) for x in (a.q, a.k, a.v))
        out, lse = {2: self._two, 3: self._three, 4: self._four}[self._version(a)](a, q, k, v, scale, size)
        return (out, lse) if a.return_softmax_lse else out

    def _two(self, a: types.SimpleNamespace, q: Any, k: Any, v: Any, scale: float, size: Any) -> Any:
        """Not looked at: q_v, cp_*, and the descales unless all three and the metadata are given."""
        cu_k = a.cu_seqlens_k
        if cu_k is None:
            if a.block_table is None:
                raise Undocumented("seqused_k without block_table: cu_seqlens_k is then torch.empty, and read")
            cu_k = like(torch.zeros(a.cu_seqlens_q.shape, dtype=a.cu_seqlens_q.dtype), a.cu_seqlens_q)
        return flash_attn_2.varlen(self.build_2, q, k, v, a.cu_seqlens_q, cu_k, a.seqused_k, a.block_table,
                                   a.alibi_slopes, a.max_seqlen_q, a.max_seqlen_k, scale, a.causal, size, a.softcap,
                                   a.num_splits, a.out)

    def _three(self, a: types.SimpleNamespace, q: Any, k: Any, v: Any, scale: float, size: Any) -> Any:
        return forward(self.build, self.plans, Call(
            q, k, v, qv=a.q_v, out=a.out, cu_seqlens_q=a.cu_seqlens_q, cu_seqlens_k=a.cu_seqlens_k,
            seqused_k=a.seqused_k, max_seqlen_q=a.max_seqlen_q, max_seqlen_k=a.max_seqlen_k, page_table=a.block_table,
            q_descale=a.q_descale, k_descale=a.k_descale, v_descale=a.v_descale, softmax_scale=scale, causal=a.causal,
            window=size, softcap=a.softcap, scheduler_metadata=a.scheduler_metadata, num_splits=a.num_splits,
            sinks=a.s_aux, cp_world_size=a.cp_world_size, cp_rank=a.cp_rank, cp_tot_seqused_k=a.cp_tot_seqused_k))[:2]

    def _four(self, a: types.SimpleNamespace, q: Any, k: Any, v: Any, scale: float, size: Any) -> Any:
        """Negative windows become None before they get to the kernel. Not looked at: scheduler_metadata, cp_*."""
        fp8 = v.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        if a.q_v is not None or fp8:
            raise Undocumented("q_v and fp8 of vLLM's FA4 are not emulated")
        rules = flash_attn_4.Rules(self.build.arch, max_head_dim_sm90=512)
        return flash_attn_4.forward(rules, flash_attn_4.Call(
            q=q, k=k, v=v, out=a.out, cu_seqlens_q=a.cu_seqlens_q, cu_seqlens_k=a.cu_seqlens_k, seqused_k=a.seqused_k,
            page_table=a.block_table, softmax_scale=scale, causal=a.causal, softcap=a.softcap, sink=a.s_aux,
            window=(size[0] if size[0] >= 0 else None, size[1] if size[1] >= 0 else None), num_splits=a.num_splits,
            max_seqlen_q=a.max_seqlen_q, max_seqlen_k=a.max_seqlen_k, return_lse=a.return_softmax_lse))


