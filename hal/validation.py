"""Validation of calls, in one place for all backends: bad input is an error before anything is written.

Checks read lengths on the host, which synchronises on accelerators. So they run in the `torch` backend, and on
every backend under HAL_CHECK=1; never otherwise (design.md, promise 4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hal import contract
from hal.call_checks import (
    check_common,
    check_config,
    check_kv,
    check_lengths,
    check_pages,
    check_parallel,
    check_q,
    check_rotary,
    check_table,
    check_tensors,
    check_written,
    scale_of,
)
from hal.checks import is_int, lengths, need, rows_of
from hal.config import AttentionConfig


@dataclass
class Call:
    """The host's view of a valid call, so that a backend need not read the lengths again.

    rows: (first, last + 1) of each sequence in q flattened to [total_q, Hq, D]. start, end: the tokens of the
    cache (or of packed k) that each sequence attends to, after the append. before: where the append starts.
    new_rows: rows of each sequence in flattened k. scale: the softmax scale to use. len_k: keys per sequence
    as the mask counts them (global under context parallelism).
    """

    rows: list[tuple[int, int]]
    start: list[int]
    end: list[int]
    scale: float
    len_k: list[int]
    before: list[int]
    new_rows: list[tuple[int, int]]
    owner: list[int]


def checked(function: Callable[..., Any], config: AttentionConfig, name: str,
            logical: Callable[[Any], Any] = lambda x: x) -> Callable[..., Any]:
    """`function` with every call validated first, and held to the config it was bound for (HAL_CHECK=1).

    logical: a paged cache of the backend's layout -> the same in the contract's shape (AttentionBackend.logical_cache).
    """
    caches = ("k_cache", "v_cache") if name == "flash_attn_with_kvcache" else ("k", "v")
    bind = contract.binder(contract.WITH_KVCACHE if name == "flash_attn_with_kvcache" else contract.VARLEN)
    check = check_with_kvcache if name == "flash_attn_with_kvcache" else check_varlen

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        arguments = bind(args, kwargs)
        if arguments["page_table"] is not None:
            arguments |= {cache: logical(arguments[cache]) for cache in caches if hasattr(arguments[cache], "view")}
        check(config, **arguments)
        check_config(config, arguments)
        return function(*args, **kwargs)

    return wrapper


def check_with_kvcache(config: AttentionConfig, **a: Any) -> Call:
    """Validate one flash_attn_with_kvcache call (all arguments of the contract, by name).

    Raises ValueError naming the argument, its value and what was expected.
    """
    q, k_cache, v_cache, table = a["q"], a["k_cache"], a["v_cache"], a["page_table"]
    check_tensors(a, ("q", "k_cache", "v_cache"))
    packed = a["cu_seqlens_q"] is not None
    check_q(q, packed, a)
    rows = rows_of(q, a["cu_seqlens_q"], "cu_seqlens_q", a["max_seqlen_q"])
    batch = len(rows)
    check_kv(q, k_cache, v_cache, 4, "k_cache", "v_cache")
    page_size = k_cache.shape[1]
    owner = lengths(a["cache_batch_idx"], "cache_batch_idx", batch) or list(range(batch))
    if table is not None:
        check_table(table, page_size)
    # Sparse queries name their keys, so the table serves an append only.
    sequences = a["sparse_indices"] is None or a["k"] is not None
    owners = k_cache.shape[0] if table is None else table.shape[0]
    what = "k_cache's batch" if table is None else "page_table's rows"
    if a["cache_batch_idx"] is None:
        # A table may have more rows than the batch (padded engines); a cache must match it.
        need(owners == batch or (table is not None and owners > batch) or not sequences,
             "k_cache" if table is None else "page_table", f"{owners} rows",
             f"{batch} rows, the batch of q (or cache_batch_idx)")
    else:
        bad = [i for i in owner if not 0 <= i < owners]
        need(not bad, "cache_batch_idx", bad[:1], f"values from 0 to {owners - 1} ({what})")
    capacity = page_size if table is None else table.shape[1] * page_size
    new_rows, before, end, start = check_lengths(config, a, batch, capacity, owner)
    check_rotary(q, a, batch, before, new_rows, rows)
    if table is not None and sequences:
        sparse = a["sparse_indices"] is not None
        check_pages(table, owner, before if sparse else start, end, page_size, k_cache.shape[0])
    if a["k"] is not None:
        check_written(a, owner, before, end)
    len_k = check_parallel(a, [e - s for s, e in zip(start, end)])
    check_common(config, a, rows, len_k, packed, k_cache, v_cache, new_rows)
    return Call(rows, start, end, scale_of(config, a), len_k, before, new_rows, owner)


def check_varlen(config: AttentionConfig, **a: Any) -> Call:
    """Validate one flash_attn_varlen_func call. Raises as check_with_kvcache does."""
    q, k, v, table = a["q"], a["k"], a["v"], a["page_table"]
    check_tensors(a, ("q", "k", "v"))
    need(a["cu_seqlens_q"] is not None, "cu_seqlens_q", None, "int32 [B + 1]")
    check_q(q, True, a)
    rows = rows_of(q, a["cu_seqlens_q"], "cu_seqlens_q", a["max_seqlen_q"])
    batch = len(rows)
    used = lengths(a["seqused_q"], "seqused_q", batch)
    if used is not None:
        bad = [n for n, (first, last) in zip(used, rows) if not 0 <= n <= last - first]
        need(not bad, "seqused_q", bad[:1], "lengths between 0 and each sequence's own")
        rows = [(first, first + n) for n, (first, _) in zip(used, rows)]
    seqused_k = lengths(a["seqused_k"], "seqused_k", batch)
    if table is not None:
        need(a["cu_seqlens_k"] is None, "cu_seqlens_k", "a tensor", "None with page_table: pass seqused_k")
        need(seqused_k is not None, "seqused_k", None, "int32 [B] with page_table")
        check_kv(q, k, v, 4, "k", "v")
        check_table(table, k.shape[1])
        need(table.shape[0] >= batch, "page_table", f"{table.shape[0]} rows", f"at least {batch}, the batch")
        end = list(seqused_k or [])
        capacity = table.shape[1] * k.shape[1]
        bad = [n for n in end if not 0 <= n <= capacity]
        need(not bad, "seqused_k", bad[:1], f"lengths from 0 to {capacity}, what page_table can hold")
        start, most = [0] * batch, a["max_seqlen_k"]
        need(most is None or is_int(most, max(end)), "max_seqlen_k", most, f"None or at least {max(end)}, the longest")
        check_pages(table, list(range(batch)), start, end, k.shape[1], k.shape[0])
    else:
        need(a["cu_seqlens_k"] is not None, "cu_seqlens_k", None, "int32 [B + 1], or page_table with seqused_k")
        check_kv(q, k, v, 3, "k", "v")
        spans = rows_of(k, a["cu_seqlens_k"], "cu_seqlens_k", a["max_seqlen_k"])
        need(len(spans) == batch, "cu_seqlens_k", f"{len(spans)} sequences", f"{batch} as cu_seqlens_q")
        if seqused_k is not None:
            bad = [n for n, (first, last) in zip(seqused_k, spans) if not 0 <= n <= last - first]
            need(not bad, "seqused_k", bad[:1], "lengths between 0 and each sequence's own")
            spans = [(first, first + n) for n, (first, _) in zip(seqused_k, spans)]
        start, end = [s for s, _ in spans], [e for _, e in spans]
    len_k = check_parallel(a, [e - s for s, e in zip(start, end)])
    need(isinstance(a["deterministic"], bool), "deterministic", a["deterministic"], "True or False")
    need(isinstance(a["return_attn_probs"], bool), "return_attn_probs", a["return_attn_probs"], "True or False")
    need(a["sparse_indices"] is None or table is not None, "sparse_indices", "a tensor",
         "None without page_table: it names slots of a paged cache")
    check_common(config, a, rows, len_k, True, k, v, [])
    return Call(rows, start, end, scale_of(config, a), len_k, start, [], list(range(batch)))
