"""The checks of one call, argument group by argument group. hal/validation.py puts them in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.checks import int32, is_int, is_number, lengths, need, rows_of
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor


# Arguments that are a tensor or None; lengths have checks of their own.
OPTIONAL = ("k", "v", "qv", "rotary_cos", "rotary_sin", "sinks", "out", "tree_mask", "mm_prefix_ranges",
            "sparse_indices", "q_descale", "k_descale", "v_descale")


def check_tensors(a: dict[str, Any], required: tuple[str, ...]) -> None:
    """Tensors where tensors belong, on one device, none of them asking for a gradient."""
    import torch

    for name in required:
        need(isinstance(a[name], torch.Tensor), name, a[name], "a tensor")
    for name in OPTIONAL:
        need(a.get(name) is None or isinstance(a[name], torch.Tensor), name, a.get(name), "a tensor or None")
    device = a["q"].device
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            need(value.device == device, name, f"a tensor on {value.device}", f"one on {device}, where q is")
            if torch.is_grad_enabled():
                need(not value.requires_grad, name, "a tensor that requires grad",
                     "inference only: backward is out of scope, call under torch.no_grad() or inference_mode()")


def check_q(q: Tensor, packed: bool, a: dict[str, Any]) -> None:
    import torch

    allowed = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)
    need(q.dtype in allowed, "q", q.dtype, "float16, bfloat16, float32 or fp8")
    need(q.dim() == (3 if packed else 4), "q", tuple(q.shape),
         "[total_q, Hq, D] with cu_seqlens_q" if packed else "[B, Sq, Hq, D], or cu_seqlens_q with packed rows")
    need(q.shape[-2] > 0 and q.shape[-1] > 0, "q", tuple(q.shape), "at least one head and one element a head")
    need(q.stride(-1) == 1 or q.shape[-1] == 1, "q", f"stride {q.stride()}", "a contiguous last dimension")
    if packed:
        need(is_int(a["max_seqlen_q"], 0), "max_seqlen_q", a["max_seqlen_q"], "a whole number with cu_seqlens_q")
    elif a["max_seqlen_q"] is not None:
        need(a["max_seqlen_q"] == q.shape[1], "max_seqlen_q", a["max_seqlen_q"], f"None or q.shape[1] = {q.shape[1]}")


def check_kv(q: Tensor, k: Tensor, v: Tensor, dims: int, k_name: str, v_name: str) -> None:
    """Shapes and dtypes of keys and values, packed or cached, against q."""
    import torch

    shapes = {3: "[total_k, Hkv, D]", 4: "[num_pages or B, page_size or S, Hkv, D]"}
    for name, x in ((k_name, k), (v_name, v)):
        need(x.dim() == dims, name, tuple(x.shape), shapes[dims])
        need(x.stride(-1) == 1 or x.shape[-1] == 1, name, f"stride {x.stride()}", "a contiguous last dimension")
    need(k.shape[:-1] == v.shape[:-1], v_name, tuple(v.shape), f"{tuple(k.shape[:-1])} + (Dv,) as {k_name}")
    need(k.shape[-1] == q.shape[-1], k_name, f"head_dim {k.shape[-1]}", f"{q.shape[-1]}, q's head_dim")
    need(k.shape[-2] > 0 and q.shape[-2] % k.shape[-2] == 0, k_name, f"{k.shape[-2]} KV heads",
         f"a divisor of q's {q.shape[-2]} heads")
    need(k.dtype == v.dtype, v_name, v.dtype, f"{k.dtype} as {k_name}")
    # Engines that keep fp8 in uint8 must view it: bytes taken for numbers would be a plausible wrong answer.
    need(k.dtype == q.dtype or k.dtype in (torch.float8_e4m3fn, torch.float8_e5m2), k_name, k.dtype,
         f"{q.dtype} as q, or fp8 (float8_e4m3fn, float8_e5m2)")
    need(q.dtype.itemsize > 1 or k.dtype == q.dtype, "q", q.dtype, f"{k.dtype} as {k_name}")


def check_lengths(config: AttentionConfig, a: dict[str, Any], batch: int, capacity: int, owner: list[int],
                   ) -> tuple[list[tuple[int, int]], list[int], list[int], list[int]]:
    """The append and the lengths around it: (new_rows, before, end, start)."""
    k, v, k_cache, v_cache = a["k"], a["v"], a["k_cache"], a["v_cache"]
    seqlens = a["cache_seqlens"]
    if isinstance(seqlens, int) and not isinstance(seqlens, bool):
        before = [seqlens] * batch
    else:
        before = lengths(seqlens, "cache_seqlens", batch) or [capacity] * batch
    bad = [n for n in before if not 0 <= n <= capacity]
    need(not bad, "cache_seqlens", bad[:1], f"lengths from 0 to {capacity}, what the cache can hold")
    new_rows: list[tuple[int, int]] = []
    need((k is None) == (v is None), "v" if v is None else "k", None, "k and v together")
    need(a["cu_seqlens_k_new"] is None or k is not None, "cu_seqlens_k_new", "a tensor", "None without k and v")
    if k is not None:
        packed_new = a["cu_seqlens_k_new"] is not None
        need(seqlens is not None, "cache_seqlens", None, "lengths before the append, with k and v")
        for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
            need(x.dim() == (3 if packed_new else 4), name, tuple(x.shape),
                 "[total_new, Hkv, D] with cu_seqlens_k_new" if packed_new else "[B, Snew, Hkv, D]")
            need(x.shape[-2:] == cache.shape[-2:], name, tuple(x.shape),
                 f"heads and head_dim {tuple(cache.shape[-2:])}")
            need(x.dtype == cache.dtype, name, x.dtype,
                 f"{cache.dtype} as {name}_cache: HAL never converts silently")
        need(k.shape[:-1] == v.shape[:-1], "v", tuple(v.shape), f"{tuple(k.shape[:-1])} + (Dv,) as k")
        new_rows = rows_of(k, a["cu_seqlens_k_new"], "cu_seqlens_k_new", None)
        need(len(new_rows) == batch, "k" if not packed_new else "cu_seqlens_k_new", f"{len(new_rows)} sequences",
             f"{batch}, the batch of q")
        need(len(set(owner)) == batch, "cache_batch_idx", owner, "distinct rows when appending")
    end = [n + (new_rows[b][1] - new_rows[b][0] if new_rows else 0) for b, n in enumerate(before)]
    bad = [n for n in end if n > capacity]
    need(not bad, "k", f"{bad[0] if bad else 0} tokens after the append",
         f"at most {capacity}, what the cache can hold")
    start = lengths(a["cache_leftpad"], "cache_leftpad", batch) or [0] * batch
    bad = [s for s, n in zip(start, before) if not 0 <= s <= n]
    need(not bad, "cache_leftpad", bad[:1], "values from 0 to cache_seqlens")
    return new_rows, before, end, start


def check_table(table: Any, page_size: int) -> None:
    """A page table as such, before its rows and ids are looked at."""
    int32(table, "page_table", 2)
    need(table.stride(-1) == 1 or table.shape[1] < 2, "page_table", f"stride {table.stride()}",
         "a contiguous last dimension")
    need(page_size > 0, "page_table", "a tensor", "None with a page size of 0")


def check_written(a: dict[str, Any], owner: list[int], before: list[int], end: list[int]) -> None:
    """An append must land where it says: in memory that can be written, each token in a place of its own."""
    table, k_cache, v_cache = a["page_table"], a["k_cache"], a["v_cache"]
    for name in ("k_cache", "v_cache"):
        check_writable(name, a[name])
    need(k_cache.data_ptr() != v_cache.data_ptr() or k_cache.numel() == 0, "v_cache", "the memory of k_cache",
         "memory of its own when appending")
    if table is None:
        return
    size, ids = k_cache.shape[1], table.tolist()
    pages = [page for b, row in enumerate(owner) if end[b] > before[b]
             for page in ids[row][before[b] // size : -(-end[b] // size)]]
    twice = [page for page in pages if pages.count(page) > 1] if len(set(pages)) < len(pages) else []
    need(not twice, "page_table", f"page {twice[:1]} twice among the pages that k and v are appended to",
         "a page of its own for every append")


def check_writable(name: str, x: Tensor) -> None:
    """Refuse what an in-place write would not reach, or would refuse half way through."""
    import torch

    need(all(stride != 0 or size < 2 for stride, size in zip(x.stride(), x.shape)), name,
         f"an expanded view, stride {x.stride()}", "memory of its own for every element, since it is written")
    need(not x.is_inference() or torch.is_inference_mode_enabled(), name, "an inference tensor",
         "a normal tensor, or a call under torch.inference_mode(), since it is written")


def check_pages(table: Tensor, owner: list[int], start: list[int], end: list[int], page_size: int,
                num_pages: int) -> None:
    """Pages that will be read or written must exist; what lies past a sequence's end may be anything."""
    ids = table.tolist()
    for b, row in enumerate(owner):
        used = ids[row][start[b] // page_size : -(-end[b] // page_size)]
        bad = [page for page in used if not 0 <= page < num_pages]
        need(not bad, "page_table", f"page {bad[0] if bad else 0} for sequence {b}", f"pages from 0 to {num_pages - 1}")


def check_rotary(q: Tensor, a: dict[str, Any], batch: int, before: list[int], new_rows: list[tuple[int, int]],
                  rows: list[tuple[int, int]]) -> None:
    cos, sin = a["rotary_cos"], a["rotary_sin"]
    need((cos is None) == (sin is None), "rotary_sin" if sin is None else "rotary_cos", None,
         "rotary_cos and rotary_sin together")
    need(cos is not None or a["rotary_seqlens"] is None, "rotary_seqlens", "a tensor", "None without rotary_cos")
    need(isinstance(a["rotary_interleaved"], bool), "rotary_interleaved", a["rotary_interleaved"], "True or False")
    if cos is None:
        return
    need(a["k"] is not None, "rotary_cos", "a tensor", "None without k and v: only an append is rotated")
    need(a["k_cache"].dtype.itemsize > 1, "rotary_cos", "a tensor", "None with an fp8 cache: rotating rounds anew")
    need(cos.dim() == 2, "rotary_cos", tuple(cos.shape), "[S, rotary_dim / 2]")
    need(cos.shape == sin.shape, "rotary_sin", tuple(sin.shape),
         f"[S, rotary_dim / 2] as rotary_cos {tuple(cos.shape)}")
    need(0 < 2 * cos.shape[1] <= q.shape[-1], "rotary_cos", f"rotary_dim {2 * cos.shape[1]}",
         f"at most head_dim {q.shape[-1]}")
    for name, x in (("rotary_cos", cos), ("rotary_sin", sin)):
        need(x.dtype == q.dtype, name, x.dtype, f"{q.dtype} as q")
    starts = lengths(a["rotary_seqlens"], "rotary_seqlens", batch) or before
    # Neither causal nor local, all of q stands at the start position.
    moving = a["causal"] is True or tuple(a["window_size"]) != (-1, -1) or a["attention_chunk"] != 0
    longest = max((s + max(n[1] - n[0], r[1] - r[0] if moving else min(1, r[1] - r[0]))
                   for s, n, r in zip(starts, new_rows, rows)), default=0)
    need(min(starts, default=0) >= 0, "rotary_seqlens", min(starts, default=0), "positions >= 0")
    need(longest <= cos.shape[0], "rotary_cos", f"{cos.shape[0]} positions", f"at least {longest}, the last one needed")


def check_parallel(a: dict[str, Any], local: list[int]) -> list[int]:
    """Context parallelism: key lengths as the mask counts them. Without it, the local ones."""
    world, rank, total = a["cp_world_size"], a["cp_rank"], a["cp_tot_seqused_k"]
    need(is_int(world, 1), "cp_world_size", world, "a whole number >= 1")
    need(is_int(rank, 0) and rank < world, "cp_rank", rank, f"from 0 to {world - 1}")
    if world == 1:
        need(total is None, "cp_tot_seqused_k", "a tensor", "None with cp_world_size 1")
        return local
    whole = lengths(total, "cp_tot_seqused_k", len(local))
    need(whole is not None, "cp_tot_seqused_k", None, f"int32 [B] global lengths with cp_world_size {world}")
    assert whole is not None
    for name in ("k", "cache_leftpad") if "k_cache" in a else ():
        need(a[name] is None, name, "a tensor", f"None with cp_world_size {world}")
    for have, tokens in zip(local, whole):
        mine = max(0, -(-(tokens - rank) // world))
        need(tokens >= 0 and have == mine, "cp_tot_seqused_k", tokens,
             f"lengths that give rank {rank} of {world} its {have} tokens")
    return whole


def check_common(config: AttentionConfig, a: dict[str, Any], rows: list[tuple[int, int]], len_k: list[int],
                  packed: bool, k: Tensor, v: Tensor, new_rows: list[tuple[int, int]]) -> None:
    """Arguments that both functions have: q's partners, scalars, masks, results, hints."""
    import torch

    q = a["q"]
    batch, heads, kv_heads = len(rows), q.shape[-2], k.shape[-2]
    if a["qv"] is not None:
        need(a["qv"].shape == (*q.shape[:-1], v.shape[-1]), "qv", tuple(a["qv"].shape),
             f"{(*q.shape[:-1], v.shape[-1])}, q's rows with v's head_dim")
        need(a["qv"].dtype == q.dtype, "qv", a["qv"].dtype, f"{q.dtype} as q")
    for name in ("q_descale", "k_descale", "v_descale"):
        x = a[name]
        if x is not None:
            need(isinstance(x, torch.Tensor) and x.dtype == torch.float32, name, x, "a float32 tensor")
            need(x.numel() == 1 or x.shape == (batch, kv_heads), name, tuple(x.shape),
                 f"a scalar or ({batch}, {kv_heads})")
    scale = a["softmax_scale"]
    need(scale is None or (is_number(scale) and scale > 0), "softmax_scale", scale, "a finite number > 0 or None")
    need(isinstance(a["causal"], bool), "causal", a["causal"], "True or False")
    window = a["window_size"]
    need(isinstance(window, (tuple, list)) and len(window) == 2 and all(is_int(x, -1) for x in window),
         "window_size", window, "(left, right), whole numbers >= -1 (-1: unbounded)")
    need(is_int(a["attention_chunk"], 0), "attention_chunk", a["attention_chunk"], "a whole number >= 0 (0: none)")
    need(is_number(a["softcap"]) and a["softcap"] >= 0, "softcap", a["softcap"], "a finite number >= 0 (0: none)")
    need(isinstance(a["return_softmax_lse"], bool), "return_softmax_lse", a["return_softmax_lse"], "True or False")
    if a["sinks"] is not None:
        need(isinstance(a["sinks"], torch.Tensor) and a["sinks"].shape == (heads,) and a["sinks"].is_floating_point(),
             "sinks", a["sinks"], f"floating ({heads},), one logit per query head")
    if a["out"] is not None:
        expected = (*q.shape[:-1], v.shape[-1])
        dtype = q.dtype if q.dtype.itemsize > 1 else torch.bfloat16
        need(isinstance(a["out"], torch.Tensor) and a["out"].shape == expected and a["out"].dtype == dtype, "out",
             a["out"], f"{dtype} {expected}")
        need(a["out"].stride(-1) == 1 or a["out"].shape[-1] == 1, "out", f"stride {a['out'].stride()}",
             "a contiguous last dimension")
        check_writable("out", a["out"])
    check_masks(a, rows, len_k, packed, k)
    need(is_int(a["num_splits"], 0), "num_splits", a["num_splits"], "a whole number >= 0")
    need(is_int(a["sm_margin"], 0), "sm_margin", a["sm_margin"], "a whole number >= 0")
    need(a["pack_gqa"] is None or isinstance(a["pack_gqa"], bool), "pack_gqa", a["pack_gqa"], "None, True or False")


def check_masks(a: dict[str, Any], rows: list[tuple[int, int]], len_k: list[int], packed: bool, k: Tensor) -> None:
    import torch

    q, batch, tree, ranges, sparse = a["q"], len(rows), a["tree_mask"], a["mm_prefix_ranges"], a["sparse_indices"]
    if tree is not None:
        expected = (q.shape[0], a["max_seqlen_q"]) if packed else (batch, q.shape[1], q.shape[1])
        need(tree.dtype == torch.bool and tuple(tree.shape) == expected, "tree_mask", tree, f"bool {expected}")
        bad = [(last - first, n) for (first, last), n in zip(rows, len_k) if last - first > n]
        need(not bad, "tree_mask", f"{bad[0] if bad else 0} (query tokens, keys)", "this step's tokens among the keys")
    if ranges is not None:
        int32(ranges, "mm_prefix_ranges", 3)
        need(ranges.shape[0] == batch and ranges.shape[2] == 2, "mm_prefix_ranges", tuple(ranges.shape),
             f"({batch}, R, 2)")
        for start, end in (pair for row in ranges.tolist() for pair in row):
            need((start, end) == (-1, -1) or 0 <= start <= end, "mm_prefix_ranges", (start, end),
                 "0 <= start <= end, or (-1, -1) for padding")
    if sparse is not None:
        int32(sparse, "sparse_indices", 2)
        total = q.shape[0] if packed else q.shape[0] * q.shape[1]
        need(sparse.shape[0] == total, "sparse_indices", tuple(sparse.shape), f"({total}, topk), a row per query token")
        others = {"causal": a["causal"], "window_size": tuple(a["window_size"]) != (-1, -1),
                  "attention_chunk": a["attention_chunk"] > 0, "tree_mask": tree is not None,
                  "mm_prefix_ranges": ranges is not None, "cp_world_size": a["cp_world_size"] > 1,
                  "cache_leftpad": a.get("cache_leftpad") is not None}
        given = [name for name, value in others.items() if value]
        need(not given, "sparse_indices", f"a tensor together with {', '.join(given)}",
             "no other mask: it names the keys")
        slots = k.shape[0] * k.shape[1]
        if sparse.numel():
            low, high = int(sparse.min()), int(sparse.max())
            need(low >= -1 and high < slots, "sparse_indices", low if low < -1 else high,
                 f"-1 (none) or 0 to {slots - 1}")


def scale_of(config: AttentionConfig, a: dict[str, Any]) -> float:
    if a["softmax_scale"] is not None:
        return float(a["softmax_scale"])
    if config.softmax_scale is not None:
        return config.softmax_scale
    need(a["qv"] is None, "softmax_scale", None, "a number with qv, here or in the config: no default is any model's")
    return float(a["q"].shape[-1] ** -0.5)


def check_config(config: AttentionConfig, a: dict[str, Any]) -> None:
    """A call against the config its kernel was chosen for. MLA's materialised prefill has dims of its own."""
    q, k, v = a["q"], a.get("k_cache", a["k"]), a.get("v_cache", a["v"])
    if config.mla is not None and a["qv"] is None:
        return
    rope = config.head_dim - config.v_dim
    for name, seen, field, expected in (
            ("q", q.shape[-2], "num_heads", config.num_heads),
            ("k", k.shape[-2], "num_kv_heads", config.num_kv_heads),
            ("q", q.shape[-1], "head_dim", config.head_dim if config.mla is None else rope),
            ("v", v.shape[-1], "head_dim_v", config.v_dim),
            ("q", str(q.dtype).removeprefix("torch."), "dtype", config.dtype),
    ):
        fp8 = field == "dtype" and q.dtype.itemsize == 1 and config.stored_dtype.startswith("fp8")
        need(seen == expected or fp8, name, f"{field} {seen}",
             f"{expected}, the config's: each config has its own impl")
