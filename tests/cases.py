"""Random calls of the two functions, with poison wherever a kernel must not look."""

from __future__ import annotations

import random
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
FEATURES = ("causal", "window", "both_windows", "chunk", "softcap", "sinks", "lse", "append", "rotary", "leftpad",
            "batch_idx", "tree_mask", "mm_prefix", "sparse", "qv", "fp8", "cp", "strided", "scale")
# Pairs that the contract excludes.
EXCLUDES = {"sparse": {"causal", "window", "both_windows", "chunk", "tree_mask", "mm_prefix", "leftpad", "cp"},
            "cp": {"append", "rotary", "leftpad"}, "both_windows": {"window"}}


def lengths(rng: random.Random, batch: int, page: int, most: int) -> list[int]:
    """Ragged lengths: empty, one token, page boundaries and their neighbours, and anything between."""
    special = [0, 1, page - 1, page, page + 1, 2 * page - 1, 2 * page, 2 * page + 1]
    return [min(most, rng.choice(special) if rng.random() < 0.6 else rng.randint(0, most)) for _ in range(batch)]


def pick_features(rng: random.Random, allowed: tuple[str, ...] = FEATURES) -> set[str]:
    chosen: set[str] = set()
    for name in rng.sample(allowed, len(allowed)):
        clash = EXCLUDES.get(name, set()) | {other for other, out in EXCLUDES.items() if name in out}
        if rng.random() < 0.25 and not clash & chosen:
            chosen.add(name)
    if "rotary" in chosen:
        chosen.add("append")
        if "cp" in chosen or "sparse" in chosen:
            chosen -= {"rotary", "append"}
    return chosen


def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def kvcache_case(rng: random.Random, features: set[str], dtype: str, page: int | None, group: int, dim: int,
                 dim_v: int) -> dict[str, Any]:
    """Keyword arguments of one flash_attn_with_kvcache call."""
    torch_dtype = DTYPES[dtype]
    stored = FP8[rng.choice(list(FP8))] if "fp8" in features else torch_dtype
    batch, kv_heads = rng.randint(1, 4), rng.choice((1, 2, 3))
    if "qv" in features:
        kv_heads = 1
    size = page or rng.choice((17, 40))
    most = 3 * size if page else size
    world = rng.choice((2, 3)) if "cp" in features else 1
    rank = rng.randrange(world)
    total = lengths(rng, batch, size, most)
    lens = [len(range(rank, n, world)) for n in total] if "cp" in features else total
    packed = rng.random() < 0.5
    queries = [rng.choice((0, 1, 2, 5)) for _ in range(batch)] if packed else [rng.choice((0, 1, 1, 3))] * batch
    if "tree_mask" in features:
        lens = [max(n, max(queries)) for n in lens]
        total = [max(n, max(queries)) for n in total]
        if "cp" in features:
            lens = [len(range(rank, n, world)) for n in total]
    new = [0] * batch
    if "append" in features:
        new = [rng.randint(0, n) for n in lens] if packed else [min(min(lens), rng.randint(0, 3))] * batch
    end, before = lens, [n - m for n, m in zip(lens, new)]
    heads = kv_heads * group
    args: dict[str, Any] = {}

    def store(width: int) -> torch.Tensor:
        shape = (pages, size, kv_heads, width)
        return torch.full(shape, float("nan")).to(stored)

    owners = list(range(batch))
    if "batch_idx" in features:
        owners = rng.sample(range(batch + 2), batch)
        args["cache_batch_idx"] = torch.tensor(owners, dtype=torch.int32)
    rows = batch + 2 if "batch_idx" in features else batch
    if page:
        need = [-(-n // size) for n in end]
        pages = sum(need) + 2
        order = rng.sample(range(pages), pages)
        table = torch.full((rows, max(max(need), 1) + 1), 2**30, dtype=torch.int32)
        at = 0
        for b in range(batch):
            table[owners[b], : need[b]] = torch.tensor(order[at : at + need[b]], dtype=torch.int32)
            at += need[b]
        args["page_table"] = table
    else:
        pages = rows
    k_cache, v_cache = store(dim), store(dim_v)
    slots: list[list[tuple[int, int]]] = []
    for b in range(batch):
        places = [(int(args["page_table"][owners[b], t // size]), t % size) if page else (owners[b], t)
                  for t in range(end[b])]
        slots.append(places)
        for where in places[: before[b]]:
            k_cache[where] = tensor((kv_heads, dim), torch.float32).to(stored)
            v_cache[where] = tensor((kv_heads, dim_v), torch.float32).to(stored)
    if "strided" in features and "fp8" not in features:
        # As vLLM hands them over: K and V of one page side by side, per head.
        both = torch.cat([k_cache, v_cache], -1).transpose(1, 2).contiguous()
        k_cache, v_cache = (x.transpose(1, 2) for x in both.split([dim, dim_v], dim=-1))
    args |= {"k_cache": k_cache, "v_cache": v_cache}
    if rng.random() < 0.8 or "append" in features or min(end) < size * (1 if not page else table.shape[1]):
        args["cache_seqlens"] = torch.tensor(before, dtype=torch.int32)
    cu = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    shape = (sum(queries), heads) if packed else (batch, queries[0], heads)
    args["q"] = tensor((*shape, dim), torch_dtype)
    if packed:
        args |= {"cu_seqlens_q": cu, "max_seqlen_q": max(queries) + rng.choice((0, 2))}
    if "qv" in features:
        args |= {"qv": tensor((*shape, dim_v), torch_dtype), "softmax_scale": 0.1}
    if "append" in features:
        new_shape = (sum(new), kv_heads) if packed else (batch, new[0], kv_heads)
        args |= {"k": tensor((*new_shape, dim), torch.float32).to(stored),
                 "v": tensor((*new_shape, dim_v), torch.float32).to(stored)}
        if packed:
            args["cu_seqlens_k_new"] = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
    if "rotary" in features and "fp8" not in features:
        width = rng.choice((dim // 2, dim)) // 2
        angle = torch.rand(most + 8, width) * 6
        args |= {"rotary_cos": angle.cos().to(torch_dtype), "rotary_sin": angle.sin().to(torch_dtype),
                 "rotary_interleaved": rng.random() < 0.5}
        if rng.random() < 0.5:
            args["rotary_seqlens"] = torch.tensor([rng.randint(0, 5) for _ in range(batch)], dtype=torch.int32)
    if "leftpad" in features:
        args["cache_leftpad"] = torch.tensor([rng.randint(0, n) for n in before], dtype=torch.int32)
        if "tree_mask" in features:
            args["cache_leftpad"].zero_()
    if "fp8" in features:
        for name in ("k_descale", "v_descale"):
            args[name] = torch.rand(batch, kv_heads) + 0.5 if rng.random() < 0.5 else torch.tensor(rng.uniform(0.5, 2))
    if "cp" in features:
        args |= {"cp_world_size": world, "cp_rank": rank, "cp_tot_seqused_k": torch.tensor(total, dtype=torch.int32)}
    if "sparse" in features:
        topk = rng.randint(1, 6)
        rows_q = [b for b, n in enumerate(queries) for _ in range(n)]
        index = torch.full((len(rows_q), topk), -1, dtype=torch.int32)
        for t, b in enumerate(rows_q):
            some = rng.sample(slots[b], min(len(slots[b]), rng.randint(0, topk)))
            index[t, : len(some)] = torch.tensor([p * size + o for p, o in some], dtype=torch.int32)
        args["sparse_indices"] = index
    return args | common(rng, features, batch, queries, packed, heads, max([*total, 1]), args.get("max_seqlen_q"))


def common(rng: random.Random, features: set[str], batch: int, queries: list[int], packed: bool, heads: int, most: int,
           max_seqlen_q: int | None) -> dict[str, Any]:
    """Masks and scores, the same for both functions."""
    args: dict[str, Any] = {}
    if "causal" in features:
        args["causal"] = True
    if "window" in features:
        args["window_size"] = (rng.randint(0, 12), rng.choice((-1, 0)))
    if "both_windows" in features:
        args["window_size"] = (rng.choice((-1, 0, 3, 20)), rng.randint(0, 5))
    if "chunk" in features:
        args["attention_chunk"] = rng.choice((1, 4, 16))
    if "softcap" in features:
        args["softcap"] = rng.choice((0.5, 5.0, 30.0))
    if "sinks" in features:
        args["sinks"] = torch.randn(heads) * 3
    if "scale" in features:
        args["softmax_scale"] = rng.uniform(0.05, 0.5)
    if "tree_mask" in features:
        shape = (sum(queries), max_seqlen_q) if packed else (batch, queries[0], queries[0])
        args["tree_mask"] = torch.rand(*shape) < 0.5  # type: ignore[arg-type]
    if "mm_prefix" in features:
        ranges = torch.full((batch, 2, 2), -1, dtype=torch.int32)
        for b in range(batch):
            start = rng.randint(0, most)
            ranges[b, 0] = torch.tensor([start, start + rng.randint(0, 6)])
        args["mm_prefix_ranges"] = ranges
    return args


def varlen_case(rng: random.Random, features: set[str], dtype: str, group: int, dim: int, dim_v: int) -> dict[str, Any]:
    """Keyword arguments of one flash_attn_varlen_func call over packed keys."""
    torch_dtype = DTYPES[dtype]
    batch, kv_heads = rng.randint(1, 4), 1 if "qv" in features else rng.choice((1, 2))
    keys = lengths(rng, batch, 16, 50)
    world = rng.choice((2, 3)) if "cp" in features else 1
    rank = rng.randrange(world)
    queries = [rng.choice((0, 1, 3, n)) for n in keys]
    if "tree_mask" in features:
        queries = [min(n, m) for n, m in zip(queries, keys)]
    total = keys
    keys = [len(range(rank, n, world)) for n in keys]
    heads = kv_heads * group
    cu_q = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    cu_k = torch.tensor([0, *torch.tensor(keys).cumsum(0).tolist()], dtype=torch.int32)
    args: dict[str, Any] = {
        "q": tensor((sum(queries), heads, dim), torch_dtype), "k": tensor((sum(keys), kv_heads, dim), torch_dtype),
        "v": tensor((sum(keys), kv_heads, dim_v), torch_dtype), "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k,
        "max_seqlen_q": max(queries), "max_seqlen_k": max(keys)}
    if "qv" in features:
        args |= {"qv": tensor((sum(queries), heads, dim_v), torch_dtype), "softmax_scale": 0.1}
    if "cp" in features:
        args |= {"cp_world_size": world, "cp_rank": rank, "cp_tot_seqused_k": torch.tensor(total, dtype=torch.int32)}
    elif rng.random() < 0.3 and "tree_mask" not in features:
        args["seqused_k"] = torch.tensor([rng.randint(0, n) for n in keys], dtype=torch.int32)
        for b, n in enumerate(args["seqused_k"].tolist()):
            args["k"][int(cu_k[b]) + n : int(cu_k[b + 1])] = float("nan")
            args["v"][int(cu_k[b]) + n : int(cu_k[b + 1])] = float("nan")
    return args | common(rng, features, batch, queries, True, heads, max([*total, 1]), max(queries))
