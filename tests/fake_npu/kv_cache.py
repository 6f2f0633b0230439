"""npu_scatter_pa_kv_cache and npu_gather_pa_kv_cache: tokens into and out of a paged cache.

Source: op-plugin, docs/zh/custom_APIs/torch_npu/torch_npu-npu_scatter_pa_kv_cache.md; for gather, ops-transformer's
aclnnGatherPaKvCache and op-plugin's GatherPaKvCacheKernelNpuOpApi.cpp.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import torch
from torch import Tensor

from fake_npu.decode import FRACTAL_NZ
from fake_npu.refusal import PARAM_INVALID, TILING, Rule, check

NORM = (None, "", "Norm")
NOBODYS = 77  # what a slot holds that several tokens were written to


def _mode(a: SimpleNamespace) -> str | None:
    if os.environ["FAKE_NPU_SOC"].startswith(("Ascend310P", "Ascend910A")):
        return f"ScatterPaKvCache is not supported on {os.environ['FAKE_NPU_SOC']}"
    return None if a.cache_mode in (*NORM, "PA_NZ") else f"cache_mode {a.cache_mode}: None, Norm or PA_NZ is expected"


def _dtypes(a: SimpleNamespace) -> str | None:
    dtypes = {x.dtype for x in (a.key, a.value, a.key_cache, a.value_cache)}
    if len(dtypes) > 1:
        return f"key, value and caches have dtypes {sorted(map(str, dtypes))}: one is expected"
    if a.slot_mapping.dtype not in (torch.int32, torch.int64):
        return f"slot_mapping is {a.slot_mapping.dtype}: int32 or int64 is expected"
    return None


def _contiguous(a: SimpleNamespace) -> str | None:
    named = ("key", "value", "key_cache", "value_cache", "slot_mapping")
    wrong = next((name for name in named if not getattr(a, name).is_contiguous()), None)
    return f"{wrong}, stride {getattr(a, wrong).stride()}, is not contiguous" if wrong else None


def _compressed(a: SimpleNamespace) -> str | None:
    given = [x for x in ("compress_lens", "compress_seq_offsets", "seq_lens") if getattr(a, x) is not None]
    if given or a.key.dim() != 3:
        return f"{given} or a key of {a.key.dim()} dimensions is not answered by this fake"
    return None


def _shapes(a: SimpleNamespace) -> str | None:
    if a.key.shape[:2] != a.value.shape[:2] or a.slot_mapping.shape != a.key.shape[:1]:
        shapes = [tuple(x.shape) for x in (a.key, a.value, a.slot_mapping)]
        return f"key, value and slot_mapping {shapes} differ"
    for name, x, cache in (("key_cache", a.key, a.key_cache), ("value_cache", a.value, a.value_cache)):
        shape = tuple(cache.shape)
        if cache.dim() != 4:
            return f"{name} {shape} must have 4 dimensions"
        _, heads, size = x.shape
        wanted = (heads, size) if a.cache_mode in NORM else (heads * size // shape[3],)
        if (shape[2:] if a.cache_mode in NORM else shape[1:2]) != wanted:
            return f"{name} {shape} does not hold {heads} heads of {size} with cache_mode {a.cache_mode}"
    return None


RULES = (
    Rule(TILING, _mode, "the page's product table and cache_mode"),
    Rule(PARAM_INVALID, _dtypes, "the page, constraints"),
    Rule(PARAM_INVALID, _contiguous, "the page, constraints: no non-contiguous inputs"),
    Rule(200006, _compressed, "scenario 2 of the page"),
    Rule(TILING, _shapes, "the page, scenario 1 and constraints"),
)


def _scatter(a: SimpleNamespace) -> None:
    slots = a.slot_mapping.long()
    for x, cache in ((a.key, a.key_cache), (a.value, a.value_cache)):
        size = cache.shape[1] if a.cache_mode in NORM else cache.shape[2]
        # "slot_mapping is in [0, num_blocks * block_size - 1]": nothing checks it, and what another value does is not
        # said. Here it counts from the cache's start, wherever that leads, and a write outside it raises.
        total = cache.shape[0] * size
        if slots.numel() and not (-total <= int(slots.min()) and int(slots.max()) < total):
            raise IndexError(f"aicore exception: slot_mapping from {int(slots.min())} to {int(slots.max())}, the cache "
                             f"has {total} slots")
        # "slot_mapping's values do not repeat; where they do, correctness is not guaranteed": nobody's token is there.
        values, counts = slots.unique(return_counts=True)
        twice = values[counts > 1] % total
        slots = slots % total  # a padding slot of -1 is the last one: it is overwritten
        if a.cache_mode in NORM:
            cache.view(-1, *cache.shape[2:])[slots] = x
            cache.view(-1, *cache.shape[2:])[twice] = NOBODYS
        else:
            cache[slots // size, :, slots % size] = x.reshape(x.shape[0], cache.shape[1], cache.shape[3])
            cache[twice // size, :, twice % size] = NOBODYS


def _tokens(cache: Tensor, nz: bool) -> Tensor:
    """[blocks, block_size, N, D], or with the heads joined for NZ: a view where it can be."""
    return cache.transpose(1, 2).flatten(2) if nz else cache


def _gather(a: SimpleNamespace) -> None:
    nz = a.cache_mode == "PA_NZ"
    lengths = a.seq_lens.long()
    if a.is_seq_lens_cumsum:
        lengths = lengths.diff()
    starts = a.seq_offset.long() if a.seq_offset is not None else torch.zeros_like(lengths)
    for cache, out in ((a.key_cache, a.key), (a.value_cache, a.value)):
        tokens = _tokens(cache, nz)
        row = 0
        for b, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist())):
            at = torch.arange(start, start + length)
            found = tokens[a.block_tables[b].long()[at // tokens.shape[1]], at % tokens.shape[1]]
            out[row:row + length] = found.reshape(length, *out.shape[1:])
            row += length


def _gather_formats(a: SimpleNamespace) -> str | None:
    one, other = (x.format == FRACTAL_NZ for x in (a.key_cache, a.value_cache))
    return "one of key_cache and value_cache is NZ" if one != other else None


GATHER_RULES = (Rule(TILING, _gather_formats, "op-plugin: one cacheMode for both"),)
COMPUTE = {"aclnnScatterPaKvCache": _scatter, "aclnnGatherPaKvCache": _gather}
CHECK = {"aclnnScatterPaKvCache": lambda a: check(RULES, a),
         "aclnnGatherPaKvCache": lambda a: check(GATHER_RULES, a)}
