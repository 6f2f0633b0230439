"""FlashAttention 2 from its documents and source, per release: `flash_attn` and the kernels that vLLM builds from it.

    vendor = FlashAttn2(release="2.8.3.post1", arch="sm90")
    with vendor.installed(): ...

Sources, all at the release's tag: flash_attn/flash_attn_interface.py (Python), csrc/flash_attn/flash_api.cpp (checks),
csrc/flash_attn/src/{block_info,mask,softmax}.h and flash_fwd_kernel.h (arithmetic). Not emulated, and refused aloud:
dropout, the backward pass, and reads outside a cache (an illegal access on a device).
"""

from __future__ import annotations

import itertools
import re
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
    rotate,
    rows,
    unwritten,
    visible,
    write_pages,
)
from emulators.common import Refusal, Vendor

KVCACHE = "flash_attn.flash_attn_interface.flash_attn_with_kvcache"
VARLEN = "flash_attn.flash_attn_interface.flash_attn_varlen_func"
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernel:
    """What differs between builds of the CUDA code. page_multiple: of the size of a page. lse_unpadded: varlen's LSE is
    [H, total_q], before it was [B, H, max_seqlen_q]. only_sm8x_sm90: the archs, else all from sm80.
    lse_transposed: vLLM's transposition of the LSE where queries and groups were swapped and keys not split.
    pads_head_dim: the C++ varlen function pads odd head dims itself, where Python does not."""

    arch: int
    page_multiple: int = 256
    lse_unpadded: bool = True
    only_sm8x_sm90: bool = False
    lse_transposed: bool = False
    pads_head_dim: bool = False

    def refuses_arch(self) -> bool:
        return self.arch // 10 not in (8, 9) if self.only_sm8x_sm90 else self.arch < 80


def check_common(kernel: Kernel, q: Any, k: Any, v: Any, table: Any, **more: Any) -> None:
    """What both functions of flash_api.cpp check first, in their order."""
    check(not kernel.refuses_arch(), "FlashAttention only supports Ampere GPUs or newer.")
    check(q.dtype in HALF, "FlashAttention only support fp16 and bf16 data type")
    check(k.dtype == q.dtype, "query and key must have the same dtype")
    check(v.dtype == q.dtype, "query and value must have the same dtype")
    for name, tensor in {"q": q, "k": k, "v": v, "block_table": table, **more}.items():
        check(tensor is None or tensor.is_cuda, f"{name} must be on CUDA")
    one_device(q=q, k=k, v=v, block_table=table, **more)
    if table is not None:
        check(table.dtype == torch.int32, "block_table must have dtype torch.int32")
        check(data(table).stride(-1) == 1, "block_table must have contiguous last dimension")
    for tensor in (q, k, v):
        check(data(tensor).stride(-1) == 1, "Input tensor must have contiguous last dimension")
    if table is not None:
        check(k.shape[1] % kernel.page_multiple == 0,
              f"Paged KV cache block size must be divisible by {kernel.page_multiple}")


def check_heads(batch: int, head_dim: int, num_heads: int, num_heads_k: int) -> None:
    check(batch > 0, "batch size must be positive")
    check(head_dim <= 256, "FlashAttention forward only supports head dimension at most 256")
    check(num_heads % num_heads_k == 0, "Number of heads in key/value must divide number of heads in query")


def check_alibi(slopes: Any, batch: int, num_heads: int) -> None:
    if slopes is not None:
        check(slopes.dtype == torch.float32, "ALiBi slopes must have dtype fp32")
        check(data(slopes).stride(-1) == 1, "ALiBi slopes tensor must have contiguous last dimension")
        check(tuple(slopes.shape) in ((num_heads,), (batch, num_heads)),
              "Expected alibi_slopes.sizes() == torch::IntArrayRef({num_heads}) || ({batch_size, num_heads})")


def append_block(head_dim: int) -> int:
    """kBlockN of flash_fwd_launch_template.h, run_mha_fwd_splitkv_dispatch, which every append goes through."""
    return 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64


@dataclass(frozen=True)
class Window:
    """params.window_size_* and is_causal as set_params_fprop leaves them; None is no bound."""

    left: int | None
    right: int | None

    @property
    def causal(self) -> bool:
        return self.left is None and self.right == 0

    @property
    def local(self) -> bool:
        return not self.causal and (self.left is not None or self.right is not None)


def window(causal: bool, size: Any, seqlen_q: int, seqlen_k: int, alibi: bool) -> Window:
    """flash_api.cpp: a single query drops causal, a window as wide as seqlen_k is none, and an open right side beside
    a left bound is seqlen_k (set_params_fprop). seqlen_k is the cache's width, or in varlen what the caller called
    max_seqlen_k, whatever the keys are."""
    left, right = size
    if causal and not (seqlen_q == 1 and not alibi):
        right = 0
    bounds = Window(left if 0 <= left < seqlen_k else None, right if 0 <= right < seqlen_k else None)
    return Window(bounds.left, seqlen_k) if bounds.left is not None and bounds.right is None else bounds


def attend_2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: Window, scale: float, softcap: float,
             slopes: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax.h: a row without keys gives 0 and +inf. mask.h: with causal, ALiBi adds slope * j and not
    -slope * (p - j): the same output, and an LSE that is off by slope * p."""
    len_q, len_k = len(q), len(k)
    bias = None
    if slopes is not None:
        j = torch.arange(len_k)[None].float()
        p = torch.arange(len_q)[:, None] + len_k - len_q
        bias = slopes.float()[:, None, None] * (j.expand(len_q, -1) if w.causal else -(p - j).abs())
    out, lse = attend(q, k, v, visible(len_q, len_k, w.left, w.right), scale, softcap=softcap, bias=bias)
    return out, torch.where(lse == float("-inf"), float("inf"), lse)


def splits(batch_heads_blocks: int, multiprocessors: int, key_blocks: int) -> int:
    """num_splits_heuristic of flash_api.cpp, at most 128."""
    if batch_heads_blocks >= 0.8 * multiprocessors:
        return 1
    most = min(128, multiprocessors, key_blocks)

    def blocks(n: int) -> int:
        return -(-key_blocks // n)

    efficiency = {}
    for n in range(1, most + 1):
        if n == 1 or blocks(n) != blocks(n - 1):
            waves = batch_heads_blocks * n / multiprocessors
            efficiency[n] = waves / -(-waves // 1)
    best = max(efficiency.values(), default=0.0)
    return next((n for n, e in efficiency.items() if e >= 0.85 * best), 1)


def varlen(kernel: Kernel, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, seqused_k: Any, table: Any, slopes: Any,
           max_q: int, max_k: int, scale: float, causal: bool, size: Any, softcap: float, num_splits: int = 0,
           out: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """mha_varlen_fwd."""
    check(not kernel.refuses_arch(), "FlashAttention only supports Ampere GPUs or newer.")
    check(q.dtype in HALF, "FlashAttention only support fp16 and bf16 data type")
    check(k.dtype == q.dtype, "query and key must have the same dtype")
    check(v.dtype == q.dtype, "query and value must have the same dtype")
    check(cu_q.dtype == torch.int32, "cu_seqlens_q must have dtype int32")
    check(cu_k.dtype == torch.int32, "cu_seqlens_k must have dtype int32")
    check_common(kernel, q, k, v, table, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, seqused_k=seqused_k,
                 alibi_slopes=slopes)
    check(data(cu_q).is_contiguous(), "cu_seqlens_q must be contiguous")
    check(data(cu_k).is_contiguous(), "cu_seqlens_k must be contiguous")
    batch, (total_q, num_heads, head_dim) = cu_q.numel() - 1, q.shape
    num_heads_k = k.shape[-2]
    w = window(causal, size, max_q, max_k, slopes is not None)
    swapped = (max_q == 1 and num_heads > num_heads_k and size[0] < 0 and size[1] < 0 and head_dim % 8 == 0
               and slopes is None)
    if swapped:  # queries of a group take the place of tokens; cu_seqlens_q is not read then
        check(total_q == batch, f"shape '[{batch}, {num_heads_k}, {num_heads // num_heads_k}, {head_dim}]' is invalid "
                                f"for input of size {q.numel()}")
    check_heads(batch, head_dim, num_heads, num_heads_k)
    check(head_dim % 8 == 0 or kernel.pads_head_dim,
          "query, key, value, and out_ must have a head_size that is a multiple of 8")
    paged = table is not None
    for name, tensor in (("k", k), ("v", v)):
        check(tensor.dim() == (4 if paged else 3) and tuple(tensor.shape[-2:]) == (num_heads_k, head_dim),
              f"{name} must have shape " + ("(num_blocks, page_block_size, num_heads_k, head_size)" if paged else
                                           "(total_k, num_heads_k, head_size)"))
    if paged:
        check(table.shape[0] == batch, "block_table must have shape (batch_size, max_num_blocks_per_seq)")
    check(tuple(cu_k.shape) == (batch + 1,), "cu_seqlens_k must have shape (batch_size + 1)")
    if seqused_k is not None:
        check(seqused_k.dtype == torch.int32, "seqused_k must have dtype int32")
        check(tuple(seqused_k.shape) == (batch,), "seqused_k must have shape (batch_size)")
    if out is not None:
        check(out.dtype == q.dtype, "Output must have the same dtype as inputs")
        check(out.shape == q.shape, "out must have shape (sizes[0], sizes[1], head_size)")
    check_alibi(slopes, batch, num_heads)

    result = torch.full(q.shape, UNINITIALISED)
    if max_k <= 0:  # told that there are no keys, it looks for none
        lse = torch.full((num_heads, total_q) if kernel.lse_unpadded else (batch, num_heads, max_q), float("inf"))
        return _finish(torch.zeros(q.shape), q, out), like(lse, q)
    starts_q = list(range(batch + 1)) if swapped else numbers(cu_q)
    starts_k = numbers(cu_k)
    lens_k = numbers(seqused_k) if seqused_k is not None else [b - a for a, b in itertools.pairwise(starts_k)]
    by_row = torch.full((num_heads, total_q), UNINITIALISED)
    for b in range(batch):
        start, count = starts_q[b], min(starts_q[b + 1] - starts_q[b], max_q)  # the grid ends at max_seqlen_q
        if paged:
            kv = [pages(data(t), data(table)[b], lens_k[b]) for t in (k, v)]
        else:
            if starts_k[b] + lens_k[b] > k.shape[0]:
                illegal_access(f"keys up to {starts_k[b] + lens_k[b]} of {k.shape[0]}")
            kv = [data(t)[starts_k[b]:starts_k[b] + lens_k[b]] for t in (k, v)]
        slope = None if slopes is None else data(slopes) if slopes.dim() == 1 else data(slopes)[b]
        # A window bounds a longer sequence by its own positions: rows past max_seqlen_q keep their places.
        rows_q = data(q)[start:starts_q[b + 1]]
        o, l = attend_2(rows_q, *kv, w, scale, softcap, slope)
        result[start:start + count], by_row[:, start:start + count] = o[:count], l[:, :count]
    if not kernel.lse_unpadded:
        lse = torch.full((batch, num_heads, max_q), UNINITIALISED)
        for b in range(batch):
            count = min(starts_q[b + 1] - starts_q[b], max_q)
            lse[b, :, :count] = by_row[:, starts_q[b]:starts_q[b] + count]
        return _finish(result, q, out), like(lse, q)
    groups = num_heads // num_heads_k
    if swapped:
        blocks = num_splits or splits(batch * num_heads_k * -(-groups // 64), 2 * MULTIPROCESSORS[kernel.arch],
                                      -(-max_k // (256 if head_dim <= 64 else 128 if head_dim <= 128 else 64)))
        lse = _swapped_lse(kernel, by_row, lens_k, num_heads_k, groups, paged, blocks)
    else:
        lse = _unsplit_lse(by_row, starts_q, lens_k, max_q, w) if paged else by_row
    return _finish(result, q, out), like(lse, q)


def _finish(result: torch.Tensor, q: Any, out: Any) -> torch.Tensor:
    if out is None:
        return like(result.to(q.dtype), q)
    data(out).copy_(result)
    return out  # type: ignore[no-any-return]


def _swapped_lse(kernel: Kernel, by_row: torch.Tensor, lens_k: list[int], num_heads_k: int, groups: int, paged: bool,
                 blocks: int) -> torch.Tensor:
    """The LSE where query groups were swapped for tokens, through the memory it is written in.

    The function returns that memory as [Hkv, groups, B]. The standard kernel and the combination of splits write it so
    (get_lse_tile, combine_attn_seqk_parallel); the split kernel without splits writes [Hkv, B, groups]
    (flash_fwd_kernel.h, row_offset_lseaccum), and puts the +inf of a sequence without keys elsewhere again. vLLM
    transposes when unsplit.
    """
    batch = by_row.shape[1]
    values = by_row.view(num_heads_k, groups, batch)
    flat = torch.full((num_heads_k * groups * batch,), UNINITIALISED)
    if blocks > 1 or not paged:
        flat[:] = values.reshape(-1)
    else:
        for b in range(batch):
            for h in range(num_heads_k):
                start = (h * batch + b) * groups if lens_k[b] else (b * num_heads_k + h) * groups
                at = flat[start:start + groups]
                # Two tiles at one place: whichever came last, so neither is to be relied on.
                flat[start:start + groups] = torch.where(at.isnan(), values[h, :, b], UNINITIALISED)
    if kernel.lse_transposed and blocks <= 1:
        flat = flat.view(num_heads_k, batch, groups).transpose(1, 2).reshape(-1)
    return flat.view(num_heads_k * groups, batch)


def _unsplit_lse(by_row: torch.Tensor, starts: list[int], lens_k: list[int], max_q: int, w: Window) -> torch.Tensor:
    """The split kernel's LSE of packed queries: right, but for tiles of 64 rows without a key block, whose +inf goes to
    where [B, H, max_seqlen_q] would have it (flash_fwd_kernel.h, the early exit)."""
    num_heads, total_q = by_row.shape
    flat = by_row.clone().reshape(-1)
    stray = []
    for b, len_k in enumerate(lens_k):
        len_q = starts[b + 1] - starts[b]
        for row in range(0, min(len_q, max_q), 64):
            last = row + 64 + len_k - len_q + (w.right if w.right is not None else total_q + len_q)
            if len_k and min(len_k, last) > 0:
                continue
            count = min(64, len_q - row)
            for h in range(num_heads):
                right = h * total_q + starts[b] + row
                flat[right:right + count] = UNINITIALISED
                stray.append(((b * num_heads + h) * max_q + row, count))
    for start, count in stray:
        if start + count > len(flat):
            illegal_access(f"the LSE of an empty tile is written past its end: {start + count} of {len(flat)}")
        at = flat[start:start + count]
        flat[start:start + count] = torch.where(at.isnan() | at.isinf(), float("inf"), UNINITIALISED)
    return flat.view(num_heads, total_q)


@dataclass
class FlashAttn2(Vendor):
    """The package flash-attn. arch: the device's, "sm75" to "sm121"."""

    package: str = "flash-attn"
    release: str = "2.8.3.post1"
    arch: str = "sm80"

    def __post_init__(self) -> None:
        self.number = tuple(int(part) for part in re.findall(r"\d+", self.release)[:3])
        self.kernel = Kernel(compute_capability(self.arch), lse_unpadded=self.number >= (2, 6),
                             only_sm8x_sm90=self.number < (2, 7), pads_head_dim=self.number < (2, 7))
        self.semantics = {KVCACHE: self.kvcache, VARLEN: self.varlen}
        self.refusals = {
            KVCACHE: (
                Refusal(lambda a: data(a.k_cache).stride(-1) != 1, AssertionError,
                        "k_cache must have contiguous last dimension", "flash_attn_interface.py"),
                Refusal(lambda a: data(a.v_cache).stride(-1) != 1, AssertionError,
                        "v_cache must have contiguous last dimension", "flash_attn_interface.py"),
            ),
            VARLEN: (
                Refusal(lambda a: a.dropout_p != 0.0, Undocumented, "dropout_p: dropout is not emulated",
                        "this file: inference only"),
            ),
        }
        super().__post_init__()

    def varlen(self, a: types.SimpleNamespace) -> Any:
        q, k, v = (contiguous_last(x) for x in (a.q, a.k, a.v))
        scale = q.shape[-1] ** -0.5 if a.softmax_scale is None else a.softmax_scale
        odd = q.shape[-1] % 8
        if odd:
            q, k, v = (torch.nn.functional.pad(x, (0, 8 - odd)) for x in (q, k, v))
        out, lse = varlen(self.kernel, q, k, v, a.cu_seqlens_q, a.cu_seqlens_k, None, a.block_table, a.alibi_slopes,
                          a.max_seqlen_q, a.max_seqlen_k, scale, a.causal, a.window_size, getattr(a, "softcap", 0.0))
        out = out[..., :a.q.shape[-1]] if odd else out
        # return_attn_probs without dropout returns no probabilities: an empty tensor.
        return (out, lse, like(torch.empty(0, dtype=q.dtype), q)) if a.return_attn_probs else out

    def kvcache(self, a: types.SimpleNamespace) -> Any:
        """mha_fwd_kvcache."""
        q, new_k, new_v = (contiguous_last(x) for x in (a.q, a.k, a.v))
        k, v, table, slopes = a.k_cache, a.v_cache, contiguous_last(a.block_table), a.alibi_slopes
        leftpad, softcap = getattr(a, "cache_leftpad", None), getattr(a, "softcap", 0.0)
        scale = q.shape[-1] ** -0.5 if a.softmax_scale is None else a.softmax_scale
        lens = a.cache_seqlens
        if isinstance(lens, int):  # as many as the cache has rows, be they pages or sequences
            lens = like(torch.full((k.shape[0],), lens, dtype=torch.int32), k)
        check_common(self.kernel, q, k, v, table, seqlens_k=lens, leftpad_k=leftpad, k_new=new_k, v_new=new_v,
                     cache_batch_idx=a.cache_batch_idx, rotary_cos=a.rotary_cos, rotary_sin=a.rotary_sin,
                     alibi_slopes=slopes)
        paged = table is not None
        check(not (paged and a.cache_batch_idx is not None), "Paged KVcache does not support cache_batch_idx")
        batch, len_q, num_heads, head_dim = q.shape
        width = table.shape[1] * k.shape[1] if paged else k.shape[1]
        num_heads_k = k.shape[2]
        check_heads(batch, head_dim, num_heads, num_heads_k)
        w = window(a.causal, a.window_size, len_q, width, slopes is not None)
        # Where groups take the place of tokens, the "queries" that the checks count are the group's.
        swapped = (len_q == 1 and num_heads > num_heads_k and a.window_size[0] < 0 and a.window_size[1] < 0
                   and head_dim % 8 == 0 and slopes is None)
        counted = num_heads // num_heads_k if swapped else len_q
        check(tuple(k.shape[2:]) == (num_heads_k, head_dim), "kcache must have shape (batch_size_c, seqlen_k, "
                                                             "num_heads_k, head_size_og)")
        check(v.shape == k.shape, "vcache must have shape (batch_size_c, seqlen_k, num_heads_k, head_size_og)")
        if paged:
            check(table.shape[0] == batch, "block_table must have shape (batch_size, max_num_blocks_per_seq)")
        if new_k is not None:
            check(new_v is not None, "If key is supplied, value must also be passed in")
            check(lens is not None, "If key is supplied, seqlens_k must also be passed in")
            check(counted <= width, "If key is supplied, it must have seqlen <= the seqlen of the KV cache")
            check(new_k.dtype == q.dtype, "Key must have the same dtype as query")
            check(new_v.dtype == q.dtype, "Value must have the same dtype as query")
            for name, tensor in (("k", new_k), ("v", new_v)):
                check(tuple(tensor.shape) == (batch, new_k.shape[1], num_heads_k, head_dim),
                      f"{name} must have shape (batch_size, seqlen_knew, num_heads_k, head_size_og)")
        if lens is not None:
            check(lens.dtype == torch.int32, "seqlens_k must have dtype int32")
            check(data(lens).is_contiguous(), "seqlens_k must be contiguous")
            check(tuple(lens.shape) == (batch,), "seqlens_k must have shape (batch_size)")
        if leftpad is not None:
            check(not paged, "We don't support Paged KV and leftpad_k running at the same time yet")
            check(leftpad.dtype == torch.int32, "leftpad_k must have dtype int32")
            check(tuple(leftpad.shape) == (batch,), "leftpad_k must have shape (batch_size)")
            if lens is None:
                raise Undocumented("cache_leftpad without cache_seqlens: whether the kernel masks is a matter of tiles")
        if a.rotary_cos is not None:
            self._check_rotary(a, q, width, head_dim)
        if a.cache_batch_idx is not None:
            check(a.cache_batch_idx.dtype == torch.int32, "cache_batch_idx must have dtype int32")
        check(a.num_splits <= 128, "num_splits > 128 not supported")
        check_alibi(slopes, batch, num_heads)

        ends = numbers(lens) if lens is not None else [width] * batch
        pads = numbers(leftpad) if leftpad is not None else [0] * batch
        index = numbers(a.cache_batch_idx) if a.cache_batch_idx is not None else list(range(batch))
        result, lse = torch.empty(q.shape), torch.empty(batch, num_heads, len_q)
        for b in range(batch):
            rows_q, added = data(q)[b], 0
            if new_k is not None:
                added = new_k.shape[1]
                rows_k, rows_v = data(new_k)[b], data(new_v)[b]
                if a.rotary_cos is not None:
                    cos, sin = data(a.rotary_cos), data(a.rotary_sin)
                    rows_k = rotate(rows_k, cos, sin, ends[b] + torch.arange(added), a.rotary_interleaved)
                    # Neither causal nor local: all of q is at the position where the append starts.
                    steps = torch.arange(len_q) if w.causal or w.local else torch.zeros(len_q, dtype=torch.long)
                    rows_q = rotate(rows_q, cos, sin, ends[b] + steps, a.rotary_interleaved)
                lost = unwritten(ends[b], added, len_q, w.left if w.local else None, append_block(head_dim))
                for cache, new in ((k, rows_k), (v, rows_v)):
                    if paged:
                        write_pages(data(cache), data(table)[b], ends[b] + lost, new[lost:])
                    else:
                        rows(data(cache), index[b], ends[b] + lost, added - lost).copy_(new[lost:])
            length = ends[b] - pads[b] + added
            kv = [pages(data(t), data(table)[b], length) if paged else rows(data(t), index[b], pads[b], length)
                  for t in (k, v)]
            slope = None if slopes is None else data(slopes) if slopes.dim() == 1 else data(slopes)[b]
            result[b], lse[b] = attend_2(rows_q, *kv, w, scale, softcap, slope)
        out = like(result.to(q.dtype), q)
        return (out, like(lse, q)) if getattr(a, "return_softmax_lse", False) else out

    @staticmethod
    def _check_rotary(a: types.SimpleNamespace, q: Any, width: int, head_dim: int) -> None:
        check(a.k is not None, "If rotary cos/sin are provided, new key / value to be appended to KV cache must also "
                               "be provided")
        dim = a.rotary_cos.shape[1] * 2
        check(dim <= -(-head_dim // 8) * 8, "rotary_dim must be <= headdim")
        check(dim % 16 == 0, "Only rotary dimensions divisible by 16 are currently supported")
        check(a.rotary_cos.shape[0] >= width, "cos/sin seqlen must be at least the seqlen of KV cache")
        check(a.rotary_cos.dtype == q.dtype, "rotary_cos must have the same dtype as query")
        check(a.rotary_sin is not None, "If rotary cos is provided, rotary sin must also be provided")
        check(a.rotary_sin.shape == a.rotary_cos.shape, "rotary_sin must have shape (seqlen_ro, params.rotary_dim / 2)")
        check(a.rotary_sin.dtype == q.dtype, "rotary_cos must have the same dtype as query")
