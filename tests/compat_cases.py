"""Calls of flash_attn's functions with what they should give, for tests/test_compat_numerics.py.

What is visible is written down here from FlashAttention's own sources, by widths and limits as they stand there, and
not by hal/compat's rule: csrc/flash_attn/flash_api.cpp (the windows), set_params_fprop and src/mask.h for version 2,
hopper/flash_api.cpp and mask.h for 3. The arithmetic is HAL's float64 oracle.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from judge import eager
from torch import Tensor

from hal import oracle
from hal.conformance.judge import judge

NAN = float("nan")


@dataclass
class Sequence:
    """One sequence, ready to be attended to: q [Lq, H, D], k [Lk, Hkv, D], v [Lk, Hkv, Dv], qv [Lq, H, Dv] or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    qv: Tensor | None = None


@dataclass
class Call:
    """The keywords of a call, the sequences it stands for, and the widths that the function knows of them."""

    keywords: dict[str, Any]
    sequences: list[Sequence]
    width_q: int
    width_k: int
    mask: dict[str, Any] = field(default_factory=dict)
    scale: float = 0.0
    softcap: float = 0.0


def bounds(version: int, causal: bool, left: int, right: int, chunk: int, width_q: int,
           width_k: int) -> tuple[str, int, int]:
    """("full" | "causal" | "local", left, right), as the parameters of the kernel are."""
    if version == 2:
        left = -1 if left >= width_k else left
        right = -1 if right >= width_k else right
        if width_q == 1:
            causal = False
    else:
        left = -1 if left >= width_k - 1 else left
        right = -1 if right >= width_q - 1 else right
        if width_q == 1 and left == -1 and right == -1 and chunk == 0:
            causal = False
    if causal:
        right = 0
    is_causal = left < 0 and right == 0 and chunk == 0
    is_local = (left >= 0 or right >= 0 or chunk >= 1) and not is_causal
    if version == 2:
        if left < 0 and right >= 0:
            left = width_k
        if left >= 0 and right < 0:
            right = width_k
    else:
        left = width_k - 1 if left < 0 else left
        right = width_q - 1 if right < 0 else right
        if chunk > 0:
            left, right = min(left, chunk - 1), min(right, chunk - 1)
    return "causal" if is_causal else "local" if is_local else "full", left, right


def limits(kind: str, left: int, right: int, chunk: int, row: int, len_q: int, len_k: int) -> tuple[int, int]:
    """First and last + 1 of the columns that a row sees."""
    if kind == "full":
        return 0, len_k
    if kind == "causal":
        return 0, min(len_k, row + 1 + len_k - len_q)
    low, high = max(0, row + len_k - len_q - left), min(len_k, row + 1 + len_k - len_q + right)
    if chunk > 0:
        start = (row + len_k - len_q) // chunk * chunk
        low, high = max(low, start), min(high, start + chunk)
    return low, high


def expected(version: int, call: Call, module: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Per sequence out [Lq, H, Dv] and lse [H, Lq] in float64, by the oracle or an eager one."""
    causal, (left, right), chunk = (call.mask.get("causal", False), call.mask.get("window_size", (-1, -1)),
                                    call.mask.get("attention_chunk", 0))
    kind, left, right = bounds(version, causal, left, right, chunk, call.width_q, call.width_k)
    outs, lses = [], []
    for s in call.sequences:
        len_q, len_k = len(s.q), len(s.k)
        seen = torch.zeros(len_q, len_k, dtype=torch.bool)
        for row in range(len_q):
            low, high = limits(kind, left, right, chunk, row, len_q, len_k)
            seen[row, low:max(low, high)] = True
        out, lse = module.attend(s.q.double(), s.k.double(), s.v.double(), None if s.qv is None else s.qv.double(),
                                 call.scale, call.softcap, None,
                                 lambda i0, i1, j0, j1, seen=seen: seen[i0:i1, j0:j1])
        outs.append(out)
        lses.append(lse)
    return outs, lses


def check(version: int, call: Call, got: Any, packed: bool, dtype: torch.dtype, label: str,
          rotary: bool = False) -> None:
    """Raise AssertionError unless (out, lse or None) is as good as twice eager, empty rows as the version has them."""
    out, lse = got
    want, rough = (_joined(expected(version, call, module), packed) for module in (oracle, eager(dtype)))
    if lse is not None:
        empty = want[1] == -oracle.INF
        no_keys = all(len(s.k) == 0 for s in call.sequences) and call.width_k == 0
        there = oracle.INF if version == 2 or no_keys else -oracle.INF
        assert bool((lse[empty] == there).all()), f"{label}: softmax_lse of rows that see no key is not {there}"
        assert not bool(lse[~empty].isinf().any()), f"{label}: an infinite softmax_lse in a row that sees keys"
        lse = torch.where(empty, -oracle.INF, lse.float())
    rows, at = [], 0
    for s in call.sequences:
        rows.append((at, at + len(s.q)))
        at += len(s.q)
    verdict = judge((out, lse), want, rough, rows, packed, str(dtype).removeprefix("torch."), rotary)
    assert verdict.problem is None, f"{label}: {verdict.problem}"


def _joined(result: tuple[list[Tensor], list[Tensor]], packed: bool) -> tuple[Tensor, Tensor]:
    outs, lses = result
    return (torch.cat(outs), torch.cat(lses, 1)) if packed else (torch.stack(outs), torch.stack(lses))


# --- random calls ---

def tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def options(rng: random.Random, version: int, most: int) -> dict[str, Any]:
    """Mask and scores: keywords that both versions' functions have."""
    chosen: dict[str, Any] = {}
    if rng.random() < 0.5:
        chosen["causal"] = True
    if rng.random() < 0.5:
        side = (-1, 0, 1, 3, most - 1, most, most + 3)
        chosen["window_size"] = (rng.choice(side), rng.choice(side))
    if version == 3 and rng.random() < 0.25:
        chosen["attention_chunk"] = rng.choice((1, 4, 7))
    if rng.random() < 0.3:
        chosen["softcap"] = rng.choice((0.7, 5.0, -1.0))
    if rng.random() < 0.4:
        chosen["softmax_scale"] = rng.uniform(0.05, 0.6)
    return chosen


def finish(call: Call, chosen: dict[str, Any], head_dim: int) -> Call:
    call.keywords |= chosen
    call.mask = {name: chosen[name] for name in ("causal", "window_size", "attention_chunk") if name in chosen}
    call.scale = chosen.get("softmax_scale") or head_dim**-0.5
    call.softcap = max(0.0, chosen.get("softcap", 0.0))
    return call


def heads(rng: random.Random) -> tuple[int, int, int]:
    """(query heads, KV heads, head_dim)"""
    kv = rng.choice((1, 2, 3))
    return kv * rng.choice((1, 2, 4)), kv, rng.choice((32, 40, 64, 80))


def dense(rng: random.Random, version: int, dtype: torch.dtype, form: str = "func") -> Call:
    """form: "func", "kvpacked" or "qkvpacked" (equal lengths and heads)."""
    h, kv, d = heads(rng)
    batch, len_q, len_k = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 5, 17)), rng.choice((1, 2, 9, 30))
    if form == "qkvpacked":
        kv, len_k = h, len_q
    sizes = ((h, len_q), (kv, len_k), (kv, len_k))
    if rng.random() < 0.3:  # transposed, as transformers hands them over
        q, k, v = (tensor(batch, n, s, d, dtype=dtype).transpose(1, 2) for n, s in sizes)
    else:
        q, k, v = (tensor(batch, s, n, d, dtype=dtype) for n, s in sizes)
    given = {"func": {"q": q, "k": k, "v": v}, "kvpacked": {"q": q, "kv": torch.stack((k, v), 2)},
             "qkvpacked": {"qkv": torch.stack((q, k, v), 2) if form == "qkvpacked" else None}}[form]
    call = Call(given, [Sequence(q[b], k[b], v[b]) for b in range(batch)], len_q, len_k)
    return finish(call, options(rng, version, max(len_q, len_k)), d)


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def packed(rng: random.Random, version: int, dtype: torch.dtype, form: str = "func", paged: bool = False) -> Call:
    h, kv, d = heads(rng)
    batch = rng.choice((1, 2, 4))
    lens_q = [rng.choice((0, 1, 2, 5, 17)) for _ in range(batch)]
    lens_k = [rng.choice((0, 1, 3, 16, 30)) for _ in range(batch)]
    lens_q[0], lens_k[0] = max(lens_q[0], 1), max(lens_k[0], 1)
    if form == "qkvpacked":
        kv, lens_k = h, lens_q
    cu_q, cu_k = cumulative(lens_q), cumulative(lens_k)
    q = tensor(sum(lens_q), h, d, dtype=dtype)
    k, v = tensor(sum(lens_k), kv, d, dtype=dtype), tensor(sum(lens_k), kv, d, dtype=dtype)
    sequences = [Sequence(q[cu_q[b]:cu_q[b + 1]], k[cu_k[b]:cu_k[b + 1]], v[cu_k[b]:cu_k[b + 1]]) for b in range(batch)]
    max_q, max_k = max(lens_q) + rng.choice((0, 3)), max(lens_k) + rng.choice((0, 4))
    lengths: dict[str, Any] = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
    if form == "qkvpacked":
        max_k = max_q
        lengths = {"cu_seqlens": cu_q, "max_seqlen": max_q}
    given: dict[str, Any] = {"func": {"q": q, "k": k, "v": v}, "kvpacked": {"q": q, "kv": torch.stack((k, v), 1)},
                             "qkvpacked": {"qkv": torch.stack((q, k, v), 1) if form == "qkvpacked" else None}}[form]
    if paged:
        size = rng.choice((4, 16))
        k_pages, v_pages, table = pages(rng, sequences, size)
        given |= {"k": k_pages, "v": v_pages, "block_table": table}
    call = Call(given | lengths, sequences, max_q, max_k)
    return finish(call, options(rng, version, max(*lens_q, *lens_k)), d)


def pages(rng: random.Random, sequences: list[Sequence], size: int, spare: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(k, v, table) of a paged cache with NaN in all that no sequence holds; spare: tokens of room after each."""
    need = [-(-(len(s.k) + spare) // size) for s in sequences]
    order = rng.sample(range(sum(need) + 2), sum(need) + 2)
    first = sequences[0]
    k, v = (torch.full((len(order), size, *x.shape[1:]), NAN, dtype=x.dtype) for x in (first.k, first.v))
    table = torch.full((len(sequences), max(1, *need) if len(need) > 1 else max(1, need[0])), 2**30, dtype=torch.int32)
    at = 0
    for b, s in enumerate(sequences):
        own = order[at:at + need[b]]
        at += need[b]
        table[b, :len(own)] = torch.tensor(own, dtype=torch.int32)
        for token in range(len(s.k)):
            k[own[token // size], token % size] = s.k[token]
            v[own[token // size], token % size] = s.v[token]
    return k, v, table


@dataclass
class CacheCall(Call):
    """A call of flash_attn_with_kvcache. holds(b): what sequence b's cache must hold after it, k and v."""

    written: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def holds(self, b: int) -> tuple[Tensor, Tensor]:
        """The tokens of sequence b in the caches that the call got, read back."""
        w, start = self.keywords, self.starts[b]
        length = start + len(self.written[b][0])
        table = w.get("block_table", w.get("page_table"))
        out = []
        for name in ("k_cache", "v_cache"):
            cache = w[name]
            if table is None:
                row = b if w.get("cache_batch_idx") is None else int(w["cache_batch_idx"][b])
                out.append(cache[row, start:length])
            else:
                size = cache.shape[1]
                out.append(torch.stack([cache[int(table[b, t // size]), t % size] for t in range(start, length)])
                           if length > start else cache[0, :0])
        return out[0], out[1]

    starts: list[int] = field(default_factory=list)


def cached(rng: random.Random, version: int, dtype: torch.dtype) -> tuple[CacheCall, bool]:
    """(the call, whether it rotates)"""
    h, kv, d = heads(rng)
    batch, paged, append = rng.choice((1, 2, 3)), rng.random() < 0.5, rng.random() < 0.6
    varlen = version == 3 and rng.random() < 0.3
    rotary = append and rng.random() < 0.5
    new = rng.choice((1, 2, 5)) if append else 0
    before = [rng.choice((0, 1, 7, 16, 21)) for _ in range(batch)]
    lens_q = [rng.choice((0, 1, 3)) if varlen else 0 for _ in range(batch)]
    if varlen:
        lens_q[0] = max(lens_q[0], 1)
    else:
        lens_q = [new or rng.choice((1, 1, 4))] * batch
    q = tensor(sum(lens_q), h, d, dtype=dtype)
    cu = cumulative(lens_q)
    k_new, v_new = tensor(batch, new, kv, d, dtype=dtype), tensor(batch, new, kv, d, dtype=dtype)
    old = [(tensor(n, kv, d, dtype=dtype), tensor(n, kv, d, dtype=dtype)) for n in before]
    leftpad = [rng.randint(0, n) for n in before] if not paged and rng.random() < 0.3 else [0] * batch
    given: dict[str, Any] = {"cache_seqlens": torch.tensor(before, dtype=torch.int32)}
    if len(set(before)) == 1 and rng.random() < 0.5:
        given["cache_seqlens"] = before[0]
    if paged:
        size = rng.choice((4, 16))
        k_cache, v_cache, table = pages(rng, [Sequence(q[:0], *kv_old) for kv_old in old], size, spare=new)
        given["page_table" if version == 3 else "block_table"] = table
        width = table.shape[1] * size
    else:
        width = max(before) + new + rng.choice((0, 5))
        rows = batch + rng.choice((0, 2))
        k_cache, v_cache = (torch.full((rows, max(width, 1), kv, d), NAN, dtype=dtype) for _ in "kv")
        width = k_cache.shape[1]
        owner = list(range(batch))
        if rows > batch or rng.random() < 0.3:
            owner = rng.sample(range(rows), batch)
            given["cache_batch_idx"] = torch.tensor(owner, dtype=torch.int32)
        for b, (k, v) in enumerate(old):
            k_cache[owner[b], :len(k)], v_cache[owner[b], :len(v)] = k, v
        if any(leftpad):
            given["cache_leftpad"] = torch.tensor(leftpad, dtype=torch.int32)
            for b, n in enumerate(leftpad):
                k_cache[owner[b], :n], v_cache[owner[b], :n] = NAN, NAN
    if append:
        given |= {"k": k_new, "v": v_new}
    chosen = options(rng, version, max([*before, 1]) + new)
    width_q = max(lens_q) + (rng.choice((0, 2)) if varlen else 0)
    turned_q, turned_k = list(q.split(lens_q)), list(k_new)
    if rotary:
        half = rng.choice((d // 2, d // 4 // 8 * 8 or 8))
        angle = torch.rand(width + 8, half) * 6
        cos, sin, pairs = angle.cos().to(dtype), angle.sin().to(dtype), rng.random() < 0.5
        given |= {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": pairs}
        starts = before
        if version == 3 and rng.random() < 0.4:
            starts = [rng.randint(0, 5) for _ in range(batch)]
            given["rotary_seqlens"] = torch.tensor(starts, dtype=torch.int32)
        kind, _, _ = bounds(version, chosen.get("causal", False), *chosen.get("window_size", (-1, -1)),
                            chosen.get("attention_chunk", 0), width_q, width)
        for b in range(batch):
            steps = torch.arange(lens_q[b]) if kind != "full" else torch.zeros(lens_q[b], dtype=torch.long)
            turned_q[b] = oracle.rotate(turned_q[b], cos, sin, starts[b] + steps, pairs).to(dtype)
            turned_k[b] = oracle.rotate(k_new[b], cos, sin, starts[b] + torch.arange(new), pairs).to(dtype)
    written = [(torch.cat((old[b][0][leftpad[b]:], turned_k[b])), torch.cat((old[b][1][leftpad[b]:], v_new[b])))
               for b in range(batch)]
    sequences = [Sequence(turned_q[b], *written[b]) for b in range(batch)]
    if varlen:
        given |= {"q": q, "cu_seqlens_q": cu, "max_seqlen_q": width_q}
    else:
        given["q"] = q.view(batch, lens_q[0], h, d)
    call = CacheCall({"k_cache": k_cache, "v_cache": v_cache, **given}, sequences, width_q, width,
                     written=written, starts=leftpad)
    finish(call, chosen, d)
    return call, rotary
