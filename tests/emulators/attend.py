"""Plain attention arithmetic and tensor handling that the FlashAttention emulators share.

No vendor's rule is in here: masks, scales, lengths and layouts are each emulator's own. Everything is computed in
float32 on the CPU data behind tagged tensors.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from emulators.devices import on, plain_of, tag_of

UNINITIALISED = float("nan")  # what torch.empty holds where no kernel wrote: never a plausible number
# Multiprocessors of a usual card of each arch: the vendors' split heuristics read them.
MULTIPROCESSORS = {80: 108, 86: 84, 87: 16, 89: 142, 90: 132, 100: 148, 103: 160, 110: 20, 120: 188, 121: 48}


class Undocumented(NotImplementedError):
    """Neither the vendor's documents nor its source say what happens; said aloud instead of guessed."""


class StalePlan(AssertionError):
    """A plan is used with another call than it was made from, where the real kernel would not notice."""


def check(condition: bool, message: str, error: type[Exception] = RuntimeError) -> None:
    """TORCH_CHECK, or with error=AssertionError an assert."""
    if not condition:
        raise error(message)


def illegal_access(what: str) -> NoReturn:
    raise RuntimeError(f"CUDA error: an illegal memory access was encountered ({what})")


def compute_capability(arch: str) -> int:
    """"sm90" -> 90. Raises ValueError for what is no arch that the emulators know."""
    number = arch.removeprefix("sm")
    if not number.isdigit() or int(number) not in (75, *MULTIPROCESSORS):
        raise ValueError(f"arch {arch!r} is not known (sm75, {', '.join(f'sm{n}' for n in MULTIPROCESSORS)})")
    return int(number)


# --- tensors ---

def data(tensor: Any) -> Any:
    """The CPU data of a tensor; None and what is no tensor as they are."""
    return plain_of(tensor) if isinstance(tensor, torch.Tensor) else tensor


def numbers(tensor: torch.Tensor) -> list[int]:
    return [int(v) for v in data(tensor)]


def like(result: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The result on the tensor's device."""
    tag = tag_of(tensor)
    return result if tag is None else on(result, tag)


def one_device(**tensors: Any) -> None:
    """Kernels take pointers: a tensor on another device than the first is an illegal access, not an error message."""
    places = {name: str(tag_of(t) or "cpu") for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    if len(set(places.values())) > 1:
        illegal_access(f"tensors on several devices: {places}")


def contiguous_last(tensor: Any) -> Any:
    """maybe_contiguous() of all the vendors' interfaces."""
    return tensor.contiguous() if tensor is not None and data(tensor).stride(-1) != 1 else tensor


# --- caches ---

def pages(cache: torch.Tensor, table: torch.Tensor, length: int, start: int = 0) -> torch.Tensor:
    """[length, Hkv, D]: tokens start .. start + length of one sequence, from the pages of its table row alone."""
    where = torch.arange(start, start + length)
    page, offset = where // cache.shape[1], where % cache.shape[1]
    if length and int(page.max()) >= len(table):
        illegal_access(f"token {start + length - 1} in a table of {len(table)} pages of {cache.shape[1]}")
    page = table[page].long()
    if length and (int(page.min()) < 0 or int(page.max()) >= cache.shape[0]):
        illegal_access(f"pages {page.tolist()} of {cache.shape[0]}")
    return cache[page, offset]


def unwritten(end: int, new: int, len_q: int, reach_left: int | None, block: int) -> int:
    """How many of `new` tokens, appended at `end`, a kernel leaves out that writes what its tiles of queries read:
    those before the block of keys in which the first query begins to see. reach_left: keys it sees before its own
    place; None is all. All, where there is no query (version 2: n_block_copy_min; 3: get_n_block_k_new_min_max)."""
    if not len_q:
        return new
    if reach_left is None:
        return 0
    first = max(0, end + new - len_q - reach_left) // block * block
    return min(max(first - end, 0), new)


def write_pages(cache: torch.Tensor, table: torch.Tensor, start: int, new: torch.Tensor) -> None:
    """In place: new tokens from position `start` of one sequence."""
    where = torch.arange(start, start + len(new))
    page = where // cache.shape[1]
    if len(new) and int(page.max()) >= len(table):
        illegal_access(f"token {start + len(new) - 1} written in a table of {len(table)} pages of {cache.shape[1]}")
    cache[table[page].long(), where % cache.shape[1]] = new


def rows(cache: torch.Tensor, index: int, start: int, length: int) -> torch.Tensor:
    """[length, Hkv, D] of an unpaged cache [B, S, Hkv, D]."""
    if index >= cache.shape[0] or start + length > cache.shape[1]:
        illegal_access(f"tokens {start}..{start + length} of row {index} in a cache of {tuple(cache.shape)}")
    return cache[index, start:start + length]


# --- arithmetic ---

def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
           interleaved: bool) -> torch.Tensor:
    """Rotary embedding of x [L, H, D] at the positions [L]; cos, sin [S, R/2] turn the first R of D."""
    if len(positions) and int(positions.max()) >= len(cos):
        illegal_access(f"rotary position {int(positions.max())} of {len(cos)}")
    half = cos.shape[1]
    c, s = cos[positions].float()[:, None], sin[positions].float()[:, None]
    out = x.float().clone()
    pairs = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    one, two = pairs if interleaved else (slice(0, half), slice(half, 2 * half))
    a, b = x[..., one].float(), x[..., two].float()
    out[..., one], out[..., two] = a * c - b * s, a * s + b * c
    return out.to(x.dtype)


def visible(len_q: int, len_k: int, left: int | None, right: int | None, chunk: int = 0) -> torch.Tensor:
    """bool [len_q, len_k], bottom-right aligned: p - left <= j <= p + right with p = i + len_k - len_q, None being
    no bound, and where chunk > 0 within p's chunk of that many keys."""
    p = torch.arange(len_q)[:, None] + len_k - len_q
    j = torch.arange(len_k)[None]
    mask = torch.ones(len_q, len_k, dtype=torch.bool)
    if left is not None:
        mask &= j >= p - left
    if right is not None:
        mask &= j <= p + right
    if chunk:
        if len_q > len_k > 0:  # of no keys none is visited (hopper/block.h:22, and the mainloop's early exit)
            raise Undocumented(f"attention_chunk={chunk} with {len_q} queries over {len_k} keys: negative positions")
        mask &= (j >= p // chunk * chunk) & (j < (p // chunk + 1) * chunk)
    return mask


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float | torch.Tensor, *,
           softcap: float = 0.0, bias: torch.Tensor | None = None, sink: torch.Tensor | None = None,
           qv: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """q [Lq, H, D], k [Lk, Hkv, D], v [Lk, Hkv, Dv], mask [Lq, Lk] -> out [Lq, H, Dv], LSE [H, Lq], float32.

    scale: a number or [H]. bias [H, Lq, Lk] is added after the softcap. sink [H]: a logit of the denominator alone.
    qv [Lq, H, Dv]: its product with v adds to the score. A row without keys gives 0 and the sink, or -inf without one.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.float().repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k)
    if qv is not None:
        scores = scores + torch.einsum("qhd,khd->hqk", qv.float(), v)
    scores = scores * (scale[:, None, None] if isinstance(scale, torch.Tensor) else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, -1) if k.shape[0] else torch.full(scores.shape[:2], float("-inf"))
    if sink is not None:
        lse = torch.logaddexp(lse, sink.float()[:, None].expand_as(lse))
    weights = torch.where(mask, torch.exp(scores - lse[..., None]), 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v), lse
