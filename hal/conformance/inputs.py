"""From a Case to tensors: what the oracle gets, what the mathematics is (for eager), what is written to the cache.

Whatever must not be read holds NaN: pages in no sequence, and the unused tails of pages where the backend declares
`nan_safe_tail` (else large finite numbers, as a reused page holds). Pages are shuffled; the
slots of every write end with -1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal.config import AttentionConfig, MLADims
from hal.conformance.case import (
    ATTN_PROBS,
    CONFIG_SCALE,
    GARBAGE_TABLE,
    INT_SEQLENS,
    NO_SEQLENS,
    Case,
    Length,
    Pages,
)
from hal.conformance.eager import Scores, Sequence
from hal.kv_cache import FP8

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPARE_PAGES = 3  # in no sequence: a kernel that reads one shows NaN
UNPAGED = 16  # what Pages(1) means for an unpaged cache
# Queries of head h are this much larger: some heads attend almost evenly, some to a few keys.
SHARPNESS = (1.0, 3.0, 0.5, 2.0)
GROWTH = 4  # tokens; an even average over values of the size (1 + j / 4) ** 0.5 is about 1 at any length
LOST = 7.0  # what tokens of slot -1 hold: it shows wherever it lands, on NaN as well as on numbers
POWERS = (0.25, 0.5, 1.0, 2.0)  # fp8 scales whose division is exact on every device


@dataclass
class Write:
    """One call of write_kv_cache: k, v [n, Hkv, D] in the model's dtype, slots int64 [n], scales or None."""

    k: Tensor
    v: Tensor
    slots: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None


@dataclass
class Inputs:
    """arguments: of `function`, on the host; what the device's call does not share are the caches, made by `writes`.

    rows: of each sequence in out flattened to [total_q, Hq, Dv]. pages: of the paged cache, 0 without one.
    """

    function: str
    arguments: dict[str, Any]
    sequences: list[Sequence]
    scores: Scores
    rows: list[tuple[int, int]]
    packed: bool
    writes: list[Write]
    pages: int


class Maker:
    """Builds the Inputs of one case. Everything random comes from `seed`."""

    def __init__(self, case: Case, config: AttentionConfig, page_size: int | None, q_dtype: str, nan_tail: bool,
                 seed: int) -> None:
        from hal.torch_import import load_torch

        self.torch = load_torch()
        self.case, self.config, self.q_name, self.nan_tail = case, config, q_dtype, nan_tail
        self.rng = random.Random(f"{seed} {case.name}")
        self.generator = self.torch.Generator().manual_seed(self.rng.randrange(1 << 31))
        self.dtype = getattr(self.torch, config.dtype)
        self.stored = getattr(self.torch, FP8.get(config.stored_dtype, config.stored_dtype))
        self.q_dtype = getattr(self.torch, FP8.get(q_dtype, q_dtype))
        size = page_size if page_size is not None and "unpaged" not in case.calls else UNPAGED
        self.queries = [_tokens(n, size) for n in case.queries]
        self.total = [_tokens(n, size) for n in case.keys]
        world = config.context_parallel_size
        self.positions = [list(range(case.cp_rank, n, world)) if world > 1 else list(range(n)) for n in self.total]
        self.keys = [len(p) for p in self.positions]
        self.appended = list(case.appended) or [0] * len(self.keys)
        self.batch = len(self.queries)
        self.page_size = size
        self.leftpad = [self.rng.randrange(6) if "cache_leftpad" in case.calls else 0 for _ in self.keys]
        self._dims()

    def _dims(self) -> None:
        """Head counts and widths of q, k and v in this call; with absorbed MLA q and k are the rope parts."""
        config, case = self.config, self.case
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.dim, self.dim_v, self.absorbed = config.head_dim, config.v_dim, False
        if isinstance(config.mla, MLADims):
            if case.expanded:
                self.kv_heads = self.heads
                self.dim = config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim
                self.dim_v = config.mla.v_head_dim
            else:
                self.dim, self.dim_v, self.absorbed = config.mla.qk_rope_head_dim, config.mla.kv_lora_rank, True

    def normal(self, *shape: int) -> Tensor:
        numbers: Tensor = self.torch.randn(*shape, generator=self.generator)
        return numbers

    def make(self) -> Inputs:
        paged_or_not = self.case.phase == "prefill"
        packed = self.case.packed if self.case.phase != "decode" else "packed_decode" in self.case.calls
        self.packed = packed
        self._queries()
        self._keys()
        arguments, writes, pages = self._packed_keys() if paged_or_not else self._cache()
        arguments |= self._query_arguments() | self._masks()
        if self.absorbed:
            arguments["qv"] = self.qv if packed else self.qv.view(self.batch, -1, self.heads, self.dim_v)
        arguments |= self._descales()
        function = "flash_attn_varlen_func" if self.case.phase in ("prefill", "paged_varlen") else \
            "flash_attn_with_kvcache"
        return Inputs(function, arguments, self._sequences(), self.scores, self.rows, packed, writes, pages)

    def _queries(self) -> None:
        torch, case = self.torch, self.case
        # seqused_q: rows past it are there but belong to nothing.
        self.unused = [self.rng.randrange(3) if "seqused" in case.calls else 0 for _ in self.queries]
        lengths = [n + more for n, more in zip(self.queries, self.unused)]
        self.cu_q = _cumulated(torch, lengths)
        self.max_q = max([*lengths, 0])
        first = self.cu_q.tolist()
        self.rows = [(first[b], first[b] + n) for b, n in enumerate(self.queries)]
        sharp = torch.tensor([SHARPNESS[h % len(SHARPNESS)] for h in range(self.heads)])[:, None]
        self.q_scale = torch.ones(self.batch, self.kv_heads)
        if self.q_dtype.itemsize == 1:
            self.q_scale = self._powers()
        total = sum(lengths)
        self.q = self._quantised(self.normal(total, self.heads, self.dim) * sharp)
        if self.absorbed:
            # The latent part is eight times as wide: as large a share of the score as the rope part's.
            self.qv = self._quantised(self.normal(total, self.heads, self.dim_v) * sharp * 0.3)

    def _quantised(self, x: Tensor) -> Tensor:
        """x [total_q, Hq, D] in q's dtype, divided by each sequence's scale where that is fp8."""
        if self.q_dtype.itemsize > 1:
            return x.to(dtype=self.q_dtype)
        group = self.heads // self.kv_heads
        for b, (first, last) in enumerate(self.rows):
            x[first:last] /= self.q_scale[b].repeat_interleave(group)[None, :, None]
        return _to_fp8(self.torch, x, self.q_dtype)

    def _powers(self) -> Tensor:
        """[B, Hkv] scales; the same number everywhere unless the case is about scales per head."""
        one = self.rng.choice(POWERS)
        scales: Tensor = self.torch.tensor([[self.rng.choice(POWERS) if "descale_per_head" in self.case.calls else one
                                   for _ in range(self.kv_heads)] for _ in range(self.batch)])
        return scales

    def _keys(self) -> None:
        """Keys and values of each sequence in the model's dtype (real), and as they are stored."""
        torch = self.torch
        self.k_scale, self.v_scale = torch.ones(self.batch, self.kv_heads), torch.ones(self.batch, self.kv_heads)
        self.fp8 = self.stored.itemsize == 1 and self.case.phase != "prefill"
        if self.fp8:
            self.k_scale, self.v_scale = self._powers(), self._powers()
        self.real = [[self.normal(n, self.kv_heads, self.dim).to(self.dtype), self._values(n)] for n in self.keys]
        self.rotate = self._rotation()
        self.tokens = []
        for b, (k, v) in enumerate(self.real):
            if "rotary" in self.case.calls:
                k = k.clone()
                new = self.appended[b]
                start = len(k) - new
                k[start:] = self.rotate(k[start:], self.rotary_start[b], True)
            self.tokens.append([self._store(k, self.k_scale[b]), self._store(v, self.v_scale[b])])

    def _values(self, n: int) -> Tensor:
        """Values of n keys. In prefill they grow along a sequence, as one key's weight falls: a lost key still shows.

        (Errors are bounded over all queries of a sequence, of which the first see few keys and give large outputs.)
        """
        values = self.normal(n, self.kv_heads, self.dim_v)
        if self.case.phase == "prefill" and not self.absorbed:  # absorbed values are keys too
            values *= (1 + self.torch.arange(n) / GROWTH).sqrt()[:, None, None]
        return values.to(self.dtype)

    def _store(self, x: Tensor, scale: Tensor) -> Tensor:
        if not self.fp8:
            dtype = self.q_dtype if self.case.phase == "prefill" and self.q_dtype.itemsize == 1 else self.dtype
            return _to_fp8(self.torch, x.float(), dtype) if dtype.itemsize == 1 else x.to(dtype)
        return _to_fp8(self.torch, x.float() / scale[None, :, None], self.stored)

    def _rotation(self) -> Callable[[Tensor, int, bool], Tensor]:
        """rotate(x [n, H, D], start, moving): what rotary_cos and rotary_sin of this call do."""
        torch, how = self.torch, self.case.rotary
        before = [n - new + pad for n, new, pad in zip(self.keys, self.appended, self.leftpad)]
        self.rotary_start = [self.rng.randrange(5) for _ in before] if how.get("seqlens") else before
        if not how:
            return lambda x, start, moving: x
        half = how["dim"] // 2
        angles = torch.rand(max(self.rotary_start) + max([*self.queries, *self.appended]) + 2, half,
                            generator=self.generator) * 6
        self.cos, self.sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        interleaved = bool(how["interleaved"])

        def rotate(x: Tensor, start: int, moving: bool) -> Tensor:
            at = start + (torch.arange(len(x)) if moving else torch.zeros(len(x), dtype=torch.long))
            pairs = torch.complex(self.cos.float()[at], self.sin.float()[at])[:, None]
            part = x[..., : 2 * half].float()
            if interleaved:
                z = torch.complex(part[..., ::2].contiguous(), part[..., 1::2].contiguous()) * pairs
                turned = torch.view_as_real(z).flatten(-2)
            else:
                z = torch.complex(part[..., :half].contiguous(), part[..., half:].contiguous()) * pairs
                turned = torch.cat([z.real, z.imag], -1)
            result: Tensor = torch.cat([turned.to(x.dtype), x[..., 2 * half :]], -1)
            return result

        return rotate

    def _packed_keys(self) -> tuple[dict[str, Any], list[Write], int]:
        """Arguments of the varlen function over packed k and v."""
        torch = self.torch
        unused = [self.rng.randrange(4) if "seqused" in self.case.calls else 0 for _ in self.keys]
        cu_k = _cumulated(torch, [n + more for n, more in zip(self.keys, unused)])
        parts: list[list[Tensor]] = [[], []]
        for (k, v), more in zip(self.tokens, unused):
            for part, x in zip(parts, (k, v)):
                part += [x, self._tail(x[:0].new_zeros(more, *x.shape[1:]))]
        arguments: dict[str, Any] = {"k": torch.cat(parts[0]), "v": torch.cat(parts[1]), "cu_seqlens_k": cu_k,
                                     "max_seqlen_k": max([n + more for n, more in zip(self.keys, unused)])}
        if "seqused" in self.case.calls:
            arguments |= {"seqused_q": torch.tensor(self.queries, dtype=torch.int32),
                          "seqused_k": torch.tensor(self.keys, dtype=torch.int32)}
        return arguments, [], 0

    def _tail(self, x: Tensor) -> Tensor:
        """Fills what may be read but has no influence: NaN, or numbers that would show."""
        if x.dtype.itemsize == 1:
            x.copy_(self.torch.full(x.shape, float("nan") if self.nan_tail else 40.0).to(x.dtype))
            return x
        return x.fill_(float("nan") if self.nan_tail else 40.0)

    def _cache(self) -> tuple[dict[str, Any], list[Write], int]:
        """Arguments about the cache, and the writes that fill a device's."""
        torch, case, size = self.torch, self.case, self.page_size
        absolute = [n + pad for n, pad in zip(self.keys, self.leftpad)]  # tokens the cache holds after the append
        owners = list(range(self.batch))
        owner_rows = self.batch
        if "cache_batch_idx" in case.calls:
            owner_rows = self.batch + 2
            owners = self.rng.sample(range(owner_rows), self.batch)
        if "unpaged" in case.calls:
            size = max([*absolute, 1]) + (0 if case.note == NO_SEQLENS else 5)
            table, pages = None, owner_rows
            places = [[(owners[b], t) for t in range(size)] for b in range(self.batch)]
        else:
            need = [-(-n // size) for n in absolute]
            pages = sum(need) + SPARE_PAGES
            order = self.rng.sample(range(pages), pages)
            # Entries past a sequence's end name a page of NaN.
            table = torch.full((owner_rows, max([*need, 1]) + 1), order[-1], dtype=torch.int32)
            if case.note == GARBAGE_TABLE:
                table.fill_(1 << 30)
            at, places = 0, []
            for b, count in enumerate(need):
                mine = order[at : at + count]
                at += count
                table[owners[b], :count] = torch.tensor(mine, dtype=torch.int32)
                places.append([(page, o) for page in mine for o in range(size)])
        slots = [torch.tensor([p * size + o for p, o in where], dtype=torch.int64) for where in places]
        self.slots = [where[self.leftpad[b] :].tolist() for b, where in enumerate(slots)]
        writes = self._writes(slots, absolute, pages * size)
        caches = [torch.zeros(pages * size, self.kv_heads, dim, dtype=self.stored) for dim in (self.dim, self.dim_v)]
        for write in writes:
            _apply(torch, write, caches, self.stored)
        k_cache, v_cache = (x.view(pages, size, self.kv_heads, -1) for x in caches)
        arguments: dict[str, Any] = {"k_cache": k_cache, "v_cache": v_cache}
        before = [n - new for n, new in zip(absolute, self.appended)]
        if case.phase == "paged_varlen":
            arguments = {"k": k_cache, "v": v_cache, "seqused_k": torch.tensor(before, dtype=torch.int32),
                         "page_table": table, "max_seqlen_k": max(before)}
            return arguments, writes, pages
        if case.note != NO_SEQLENS:
            whole = case.note == INT_SEQLENS
            arguments["cache_seqlens"] = before[0] if whole else torch.tensor(before, dtype=torch.int32)
        if table is not None:
            arguments["page_table"] = table
        if "cache_batch_idx" in case.calls:
            arguments["cache_batch_idx"] = torch.tensor(owners, dtype=torch.int32)
        if "cache_leftpad" in case.calls:
            arguments["cache_leftpad"] = torch.tensor(self.leftpad, dtype=torch.int32)
        if "append" in case.calls:
            arguments |= self._append()
        return arguments, writes, 0 if table is None else pages

    def _writes(self, slots: list[Tensor], absolute: list[int], end: int) -> list[Write]:
        """What fills the cache: NaN everywhere, then tails, then each sequence's tokens but those to be appended."""
        torch = self.torch

        def full(n: int, value: float) -> tuple[Tensor, Tensor]:
            k, v = (torch.full((n, self.kv_heads, dim), value, dtype=self.dtype) for dim in (self.dim, self.dim_v))
            return k, v

        one = torch.ones(()) if self.fp8 else None
        writes = [Write(*full(end, float("nan")), torch.arange(end), one, one)]
        for b, where in enumerate(slots):
            old = absolute[b] - self.appended[b]
            pad = self.leftpad[b]
            idle = torch.cat([where[:pad], where[old:]])
            writes.append(Write(*full(len(idle), float("nan") if self.nan_tail else 40.0), idle, one, one))
            k, v = (x[: old - pad] for x in self.real[b])
            lost_k, lost_v = full(1, LOST)
            skipped = torch.cat([where[pad:old], torch.tensor([-1])])
            scales = (self.k_scale[b], self.v_scale[b]) if self.fp8 else (None, None)
            writes.append(Write(torch.cat([k, lost_k]), torch.cat([v, lost_v]), skipped, *scales))
        return writes

    def _append(self) -> dict[str, Any]:
        """k and v of this step, before rotation, and the rotary arguments."""
        torch = self.torch
        new = []
        for i, scale in enumerate((self.k_scale, self.v_scale)):
            new.append([self._store(real[i][len(real[i]) - n :], scale[b])
                        for b, (real, n) in enumerate(zip(self.real, self.appended))])
        k, v = (torch.cat(parts) for parts in new)
        arguments: dict[str, Any] = {"k": k, "v": v}
        if self.packed:
            arguments["cu_seqlens_k_new"] = _cumulated(torch, self.appended)
        else:
            arguments = {n: x.view(self.batch, -1, *x.shape[1:]) for n, x in arguments.items()}
        if self.case.rotary:
            arguments |= {"rotary_cos": self.cos, "rotary_sin": self.sin,
                          "rotary_interleaved": bool(self.case.rotary["interleaved"])}
            if self.case.rotary.get("seqlens"):
                arguments["rotary_seqlens"] = torch.tensor(self.rotary_start, dtype=torch.int32)
        return arguments

    def _query_arguments(self) -> dict[str, Any]:
        if self.packed:
            return {"q": self.q, "cu_seqlens_q": self.cu_q, "max_seqlen_q": self.max_q}
        return {"q": self.q.view(self.batch, -1, self.heads, self.dim)}

    def _masks(self) -> dict[str, Any]:
        """Masks and scores of the call as the config says, and self.scores for eager."""
        torch, config, case = self.torch, self.config, self.case
        sinks = self.normal(self.heads).mul(2).to(self.dtype) if config.sinks else None
        causal = config.causal and not config.sparse
        left, right = config.window_size
        scale = config.softmax_scale
        arguments: dict[str, Any] = {"causal": causal, "softcap": config.softcap}
        if case.window is not None:
            arguments["window_size"] = case.window
        elif config.sliding_window is not None:
            arguments["window_size"] = (left, right)
        if config.attention_chunk:
            arguments["attention_chunk"] = config.attention_chunk
        if sinks is not None:
            arguments["sinks"] = sinks
        if scale is not None and case.note != CONFIG_SCALE:
            arguments["softmax_scale"] = scale
        if config.return_softmax_lse:
            arguments["return_attn_probs" if case.note == ATTN_PROBS else "return_softmax_lse"] = True
        self.scores = Scores(
            scale=scale if scale is not None else float(self.dim) ** -0.5, softcap=config.softcap, causal=causal,
            window=arguments.get("window_size", (-1, -1)), chunk=config.attention_chunk or 0, sinks=sinks)
        self.tree: Tensor | None = None
        if config.tree_mask:
            width = self.max_q
            self.tree = torch.rand(self.q.shape[0], width, generator=self.generator) < 0.5
            arguments["tree_mask"] = self.tree if self.packed else self.tree.view(self.batch, width, width)
        self.ranges: list[tuple[tuple[int, int], ...]] = [() for _ in self.queries]
        if config.mm_prefix:
            self.ranges = [self._ranges(n) for n in self.total]
            rows = [[*pairs, *[(-1, -1)] * (2 - len(pairs))] for pairs in self.ranges]
            arguments["mm_prefix_ranges"] = torch.tensor(rows, dtype=torch.int32)
        if config.context_parallel_size > 1:
            arguments |= {"cp_world_size": config.context_parallel_size, "cp_rank": case.cp_rank,
                          "cp_tot_seqused_k": torch.tensor(self.total, dtype=torch.int32)}
        self.picks: list[list[list[int]]] | None = None
        if config.sparse:
            arguments["sparse_indices"] = self._picks()
        return arguments

    def _ranges(self, length: int) -> tuple[tuple[int, int], ...]:
        """One or two ranges that do not touch, half-open; the last may be this step's own tokens."""
        if length < 2:
            return ()
        cut = self.rng.randrange(1, length)
        pairs = [(self.rng.randrange(0, cut), cut), (min(length, cut + 1), length)]
        return tuple(pair for pair in pairs[: self.rng.choice((1, 2))] if pair[1] > pair[0])

    def _picks(self) -> Tensor:
        torch, topk = self.torch, self.rng.choice((5, 16))
        self.picks = []
        index = torch.full((sum(self.queries), topk), -1, dtype=torch.int32)
        for b, (first, last) in enumerate(self.rows):
            picked = []
            for row in range(first, last):
                some = self.rng.sample(range(self.keys[b]), min(self.keys[b], self.rng.randint(0, topk)))
                at = self.rng.sample(range(topk), len(some))  # -1 may stand anywhere
                index[row, at] = torch.tensor([self.slots[b][t] for t in some], dtype=torch.int32)
                picked.append(some)
            self.picks.append(picked)
        picked_slots: Tensor = index
        return picked_slots

    def _descales(self) -> dict[str, Any]:
        per_head = "descale_per_head" in self.case.calls
        named = {"k_descale": self.k_scale, "v_descale": self.v_scale} if self.fp8 else {}
        if self.q_dtype.itemsize == 1:
            named["q_descale"] = self.q_scale
        return {name: x.clone() if per_head else x[0, 0].clone() for name, x in named.items()}

    def _sequences(self) -> list[Sequence]:
        torch, found = self.torch, []
        moving = self.scores.causal or self.scores.window != (-1, -1) or self.scores.chunk > 0
        for b, (first, last) in enumerate(self.rows):
            q, (k, v) = self.q[first:last], self.tokens[b]
            if self.case.rotary:
                q = self.rotate(q, self.rotary_start[b], moving)
            found.append(Sequence(
                q=q, k=k, v=v, qv=self.qv[first:last] if self.absorbed else None,
                position=torch.tensor(self.positions[b], dtype=torch.long), length=self.total[b],
                q_descale=self.q_scale[b], k_descale=self.k_scale[b], v_descale=self.v_scale[b],
                tree=None if self.tree is None else self.tree[first:last], ranges=self.ranges[b],
                picks=None if self.picks is None else self.picks[b]))
        return found


def _tokens(length: Length, size: int) -> int:
    return length.tokens(size) if isinstance(length, Pages) else length


def _cumulated(torch: Any, lengths: list[int]) -> Tensor:
    total = torch.tensor([0, *lengths]).cumsum(0)
    cumulated: Tensor = total.to(torch.int32)
    return cumulated


def _to_fp8(torch: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    most = torch.finfo(dtype).max
    stored: Tensor = x.clamp(-most, most).to(dtype)
    return stored


def _apply(torch: Any, write: Write, caches: list[Tensor], stored: torch.dtype) -> None:
    """A Write on host caches [slots, Hkv, D], as the contract says: -1 is skipped."""
    keep = write.slots >= 0
    for new, cache, scale in ((write.k, caches[0], write.k_scale), (write.v, caches[1], write.v_scale)):
        if scale is not None:
            new = _to_fp8(torch, new.float() / (scale if scale.dim() == 0 else scale[None, :, None]), stored)
            cache.view(torch.uint8)[write.slots[keep]] = new[keep].view(torch.uint8)
        else:
            cache[write.slots[keep]] = new[keep]
