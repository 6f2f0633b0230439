"""The grid: every case that a backend is asked. What it declares must pass, what it does not must be refused.

Every word of the vocabulary is asked of every backend; its declarations only choose the base shape. quick holds each
word at least once; full crosses them with phases, dtypes, page sizes and each other.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hal.backend import AttentionBackend
from hal.config import DTYPES, AttentionConfig, MLADims
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
from hal.platform import Platform
from hal.platforms import table

Fields = Mapping[str, Any]
Lengths = tuple[tuple[Length, ...], tuple[Length, ...]]

# name -> (phase, queries, keys, max_decode_query_len). Ragged, empty, one token, page boundaries and their neighbours.
PREFILL: Lengths = ((5, 1, 37, 64, 0, 16), (5, 1, 37, 64, 0, 16))
DECODE: Lengths = ((1,) * 7, (0, 1, 7, Pages(1, -1), Pages(1), Pages(1, 1), Pages(2, 1)))
VERIFY: Lengths = ((4,) * 5, (4, 5, Pages(1, 3), Pages(2, 4), 40))
EXTEND: Lengths = ((3, 1, 0, 17, 2, 5), (3, 40, 9, Pages(2, 17), Pages(1, 2), Pages(1, 4)))
MIXED: Lengths = ((1, 1, 1, 33, 1, 8), (Pages(1), Pages(2, -1), 5, 33, Pages(1, 1), 70))
SHAPES: Mapping[str, tuple[str, Lengths, int]] = {
    "prefill": ("prefill", PREFILL, 1), "decode": ("decode", DECODE, 1), "verify": ("decode", VERIFY, 4),
    "extend": ("extend", EXTEND, 1), "mixed": ("mixed", MIXED, 1), "paged_varlen": ("paged_varlen", EXTEND, 1),
}
READERS = ("decode", "verify", "extend", "mixed", "paged_varlen")  # of the paged cache
# Kernels have been seen to ignore a mask past position 512 and past 2048.
LONG: Mapping[str, Lengths] = {
    "prefill": ((600, 40), (600, 40)), "decode": ((1, 1), (2100, 513)), "verify": ((4, 4), (2100, 516)),
    "extend": ((60, 3), (2100, 515)), "mixed": ((1, 260), (2100, 600)), "paged_varlen": ((60, 3), (2100, 515)),
}
# The first rows of a sequence see nothing, the others do.
FEW: Lengths = ((5, 9, 3), (2, 4, 1))
# Further lengths, by phase: nothing at all, single sequences, exact pages.
LENGTHS: Mapping[str, tuple[tuple[str, Lengths], ...]] = {
    "prefill": (("one token", ((1,), (1,))), ("empty sequences", ((0, 0, 3), (0, 0, 3))), ("one", ((129,), (129,))),
                ("few queries", ((1, 2, 3), (50, 2, 17))), ("no keys", ((2, 1), (0, 5))),
                ("fewer keys than queries", FEW)),
    "decode": (("one token", ((1,), (1,))), ("all empty", ((1, 1), (0, 0))), ("one page", ((1,), (Pages(1),))),
               ("many", ((1,) * 33, tuple(range(0, 99, 3)))), (GARBAGE_TABLE, DECODE),
               ("no query", ((0, 0), (5, 9)))),
    "verify": (("one", ((4,), (4,))), ("all cached", ((4, 4), (Pages(2), Pages(3))))),
    "extend": (("one token", ((1,), (1,))), ("to the boundary", ((Pages(1), 1), (Pages(2), Pages(1)))),
               ("past the boundary", ((Pages(1, 1), 2), (Pages(2, 1), Pages(1, 1)))), (GARBAGE_TABLE, EXTEND),
               ("no keys", ((2, 1), (0, 5))), ("fewer keys than queries", FEW)),
    "mixed": (("one long", ((1, 300), (40, 300))),),
    "paged_varlen": (("one token", ((1,), (1,))), (GARBAGE_TABLE, EXTEND)),
}
PAGE_SIZES = (1, 16, 32, 64, 128, 256)
# (num_heads, num_kv_heads): GQA 1, 4, 8 and MQA, groups that are no power of two, one head.
HEADS = ((4, 4), (8, 2), (16, 2), (8, 1), (6, 2), (7, 1), (1, 1), (32, 8))
HEAD_DIMS = (32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
UNEQUAL = ((192, 128), (128, 64), (64, 128), (576, 512))
# feature -> the fields that ask for it. Windows and chunks short enough to cut every length, and long ones.
FEATURES: Mapping[str, tuple[Fields, ...]] = {
    "sliding_window": ({"sliding_window": 9}, {"sliding_window": 1}, {"sliding_window": 128}),
    "attention_chunk": ({"attention_chunk": 16}, {"attention_chunk": 7}, {"attention_chunk": 64}),
    "softcap": ({"softcap": 5.0}, {"softcap": 30.0}, {"softcap": 0.7}),
    "sinks": ({"sinks": True},),
    "tree_mask": ({"tree_mask": True},),
    "mm_prefix": ({"mm_prefix": True},),
    "non_causal": ({"causal": False},),
    "return_softmax_lse": ({"return_softmax_lse": True},),
    "deterministic": ({"deterministic": True},),
    "sparse": ({"sparse": True},),
    "scale": ({"softmax_scale": 0.31},),  # no feature: every backend takes a scale
    "context_parallel": ({"context_parallel_size": 2}, {"context_parallel_size": 3}),
}
# (left, right) of calls whose window is not the config's: both sides unequal, one side only, the token itself.
WINDOWS = ((8, 3), (-1, 2), (5, 0), (0, 0))
ROTARY: tuple[Fields, ...] = ({"interleaved": False}, {"interleaved": True},
                              {"interleaved": True, "seqlens": True, "half": True})
MLA: Fields = {"mla": True, "num_heads": 16, "softmax_scale": 0.1147}
# Other models' MLA: expanded keys and values of 256/256 and 128/128, and a latent of 256 (absorbed width 320).
EXPANDED = (MLADims(qk_nope_head_dim=192, v_head_dim=256), MLADims(qk_nope_head_dim=64, v_head_dim=128))
LATENT = MLADims(kv_lora_rank=256)
BASE_DIMS = (128, 64, *HEAD_DIMS)
RANDOM = 300  # cases of random company


def base_dims(backend: type[AttentionBackend]) -> dict[str, int]:
    """head_dim of the dense base shape, and head_dim_v where the backend serves unequal ones alone."""
    pairs: list[tuple[int, int | None]] = [*((dim, None) for dim in BASE_DIMS), *UNEQUAL]
    d, dv = next((pair for pair in pairs if not backend.head_reasons(
        AttentionConfig(head_dim=pair[0], head_dim_v=pair[1]))), pairs[0])
    return {"head_dim": d} if dv is None else {"head_dim": d, "head_dim_v": dv}


def lacking(device: Platform) -> tuple[str, ...]:
    """dtypes that the device's chip does not have (its platform's LACKS)."""
    return tuple(getattr(table().get(device.kind), "LACKS", {}).get(device.arch, ()))


def grid(backend: type[AttentionBackend], full: bool, lacks: Sequence[str] = ()) -> list[Case]:
    """Every case for one backend, without repetition; names are unique, or it raises AssertionError.

    lacks: dtypes that the device does not have, so that no base shape is of one.
    """
    dtype = next((d for d in ("bfloat16", "float16", "float32") if d in backend.dtypes and d not in lacks), "bfloat16")
    dense = {"num_heads": 8, "num_kv_heads": 2, "dtype": dtype, **base_dims(backend)}
    found: list[Case] = []
    for name, base in (("dense", dense), ("mla", {**MLA, "dtype": dtype})):
        if "sparse" in backend.requires:
            base = {**base, "sparse": True}
        # A family that is refused as a whole is asked the quick questions only.
        serves = ("mla" in backend.features or backend.mla_prefill) if name == "mla" else "mla" not in backend.requires
        found += _family(name, base, full and bool(serves), backend)
    unique: dict[str, Case] = {}
    for case in filter(_possible, found):
        same = unique.setdefault(case.name, case)
        assert same == case, f"two cases have one name, {case.name}: {same} and {case}"
    return list(unique.values())


def _possible(case: Case) -> bool:
    """What the contract excludes is no case: masks beside sparse_indices, trees over tokens that are not there."""
    fields = case.fields
    if fields.get("tree_mask") and case.phase == "decode" and fields.get("max_decode_query_len", 1) == 1:
        return False  # sequences without keys
    masks = any(fields.get(name) for name in ("sliding_window", "attention_chunk", "tree_mask", "mm_prefix"))
    return not fields.get("sparse") or not (
        masks or fields.get("causal") is False or fields.get("context_parallel_size", 1) > 1
        or case.phase == "prefill" or "cache_leftpad" in case.calls)


def _family(name: str, base: Fields, full: bool, backend: type[AttentionBackend]) -> Iterator[Case]:
    mla = name == "mla"
    dtypes = DTYPES if full else (str(base["dtype"]),)

    def case(group: str, shape: str, fields: Fields = {}, lengths: Lengths | None = None, **more: Any) -> Case:  # noqa: B006 - read only
        phase, usual, tokens = SHAPES[shape]
        queries, keys = lengths or usual
        if more.get("page_size") == 1 and lengths is None and shape in ("extend", "paged_varlen"):
            keys = tuple(max(q, _at(k, 1)) for q, k in zip(queries, keys))
        if shape == "paged_varlen":
            more["calls"] = more.get("calls", frozenset()) | {"paged_varlen"}
        merged = {**base, **fields} | ({"max_decode_query_len": tokens} if tokens > 1 else {})
        return Case(group=f"{name} {group}", phase=phase, fields=merged, queries=queries, keys=keys, **more)

    # With MLA the varlen function takes expanded keys; absorbed ones are a kind of call.
    plain: dict[str, Any] = {"expanded": True} if mla else {}
    shapes = [s for s in SHAPES if not (mla and s == "paged_varlen")]
    readers = [s for s in READERS if s in shapes]
    own = {s: plain if s == "prefill" else {} for s in shapes}

    for dtype, shape in itertools.product(DTYPES, shapes):
        yield case("plain", shape, {"dtype": dtype}, **own[shape])
    for shape in shapes if full else [s for s in shapes if s in ("prefill", "decode", "extend")]:
        for note, lengths in LENGTHS[shape]:
            yield case("lengths", shape, {}, lengths, note=note, **own[shape])
        yield case("long", shape, {}, LONG[shape], note="long", **own[shape])
    if full or not mla:
        yield case("long", "decode", {}, ((1, 1), (32768, 9001)), note="32k")
    for page, shape, dtype in itertools.product(PAGE_SIZES, readers, dtypes):
        yield case("pages", shape, {"dtype": dtype}, page_size=page)
    for (heads, kv), shape, dtype in itertools.product(HEADS, shapes if full else ("prefill", "decode"), dtypes):
        if not mla:
            yield case("heads", shape, {"dtype": dtype, "num_heads": heads, "num_kv_heads": kv})
        elif kv == 1 or heads == 32:
            yield case("heads", shape, {"dtype": dtype, "num_heads": heads}, **own[shape])
    if not mla:
        for dim, shape, dtype in itertools.product(HEAD_DIMS, shapes if full else ("prefill", "decode"), dtypes):
            yield case("head_dim", shape, {"dtype": dtype, "head_dim": dim, "head_dim_v": dim})
        for (dim, dim_v), shape, dtype in itertools.product(UNEQUAL, shapes if full else ("prefill", "decode"), dtypes):
            yield case("head_dim", shape, {"dtype": dtype, "head_dim": dim, "head_dim_v": dim_v})
        yield from _attention_types(case, full)
    else:
        for dims, dtype in itertools.product(EXPANDED, dtypes):
            yield case("dims", "prefill", {"dtype": dtype, "mla": dims}, expanded=True)
        for shape, dtype in itertools.product(readers if full else ("decode", "extend"), dtypes):
            yield case("dims", shape, {"dtype": dtype, "mla": LATENT})
    lse = {"return_softmax_lse": True}  # of rows that see nothing: the sink, or -inf
    yield case("sinks", "decode", {"sinks": True, **lse}, ((1,) * 3, (0, 20, 0)), note="no keys")
    yield case("lengths", "extend", lse, FEW, note="fewer keys than queries")
    yield from _spellings(case, own, mla)
    yield from _features(case, base, own, dtypes, full)
    yield from _calls(case, base, shapes, own, dtypes, full, mla)
    yield from _fp8(case, readers, full)
    if full:
        yield from _random(case, base, own, backend, mla)


def _at(length: Length, page_size: int) -> int:
    return length.tokens(page_size) if isinstance(length, Pages) else length


def _attention_types(case: Any, full: bool) -> Iterator[Case]:
    """Encoders see both ways and keep no cache; cross-attention has keys of another length, cached or not."""
    for kind in ("encoder", "encoder_only"):
        for window in (None, 9):
            yield case("types", "prefill", {"attention_type": kind, "causal": False, "sliding_window": window})
    cross = {"attention_type": "encoder_decoder", "causal": False}
    yield case("types", "prefill", cross, ((5, 1, 3), (40, 17, 1)), note="cross")
    yield case("types", "decode", cross, ((1, 1, 1), (40, 17, 1)), note="cross")
    if full:
        yield case("types", "extend", cross, ((5, 1, 3), (40, 17, 1)), note="cross")


def _spellings(case: Any, own: Mapping[str, Fields], mla: bool) -> Iterator[Case]:
    """Other ways to say the same: lengths as a number or not at all, the config's scale, the LSE's other name."""
    scale: Fields = {} if mla else {"softmax_scale": 0.31}
    for shape in ("prefill", "extend", "decode"):
        yield case("spelling", shape, scale, note=CONFIG_SCALE, **own[shape])
    yield case("spelling", "prefill", {"return_softmax_lse": True}, note=ATTN_PROBS, **own["prefill"])
    yield case("spelling", "decode", {}, ((1,) * 3, (37,) * 3), note=INT_SEQLENS)
    yield case("spelling", "extend", {}, ((3, 5), (37, 37)), note=INT_SEQLENS)
    yield case("spelling", "decode", {}, ((1,) * 3, (21,) * 3), note=NO_SEQLENS, calls=frozenset({"unpaged"}))


def _ranks(fields: Fields) -> Sequence[int]:
    return range(fields.get("context_parallel_size", 1))


def _features(case: Any, base: Fields, own: Mapping[str, Fields], dtypes: Sequence[str],
              full: bool) -> Iterator[Case]:
    for feature, variants in FEATURES.items():
        if feature == "scale" and "mla" in base:
            continue
        for fields in variants if full else variants[:1]:
            for shape, dtype in itertools.product(own if full else ("prefill", "verify", "extend", "decode"), dtypes):
                for rank in _ranks(fields):
                    yield case(feature, shape, {"dtype": dtype, **fields}, cp_rank=rank, **own[shape])
        for fields in variants if full else variants[:1]:  # also where the sequence is long
            if "mla" in base and not full:
                break
            for shape in own if full else ("prefill", "extend"):
                for rank in _ranks(fields) if full else (0,):
                    yield case(feature, shape, fields, LONG[shape], cp_rank=rank, note="long", **own[shape])
    for shape, lengths in (("extend", FEW), ("decode", ((1, 1, 1), (0, 20, 0)))):  # rows whose LSE is -inf, or the sink
        for sinks in (False, True):
            yield case("empty rows", shape, {"return_softmax_lse": True, "sinks": sinks}, lengths)
    both = {"sliding_window": 9, "causal": False}
    for window in WINDOWS if full else WINDOWS[:1]:
        for shape in own if full else ("prefill", "extend"):
            yield case("windows", shape, both, window=window, **own[shape])
    pairs = [("sliding_window", "non_causal"), ("sinks", "context_parallel")]
    if full:
        pairs = list(itertools.combinations([f for f in FEATURES if f != "scale"], 2))
    for a, b in pairs:
        fields = {**FEATURES[a][0], **FEATURES[b][0]}
        for shape in ("prefill", "verify", "extend"):
            for rank in _ranks(fields):
                yield case("pairs", shape, fields, cp_rank=rank, **own[shape])


def _calls(case: Any, base: Fields, shapes: Sequence[str], own: Mapping[str, Fields], dtypes: Sequence[str], full: bool,
           mla: bool) -> Iterator[Case]:
    """The kinds of call that no configuration asks for (capabilities.CALLS)."""
    lse = {"return_softmax_lse": True}
    for dtype in dtypes:
        d = {"dtype": dtype}
        for shape in shapes:
            yield case("calls", shape, d, calls=frozenset({"out"}), **own[shape])
            if shape not in ("prefill", "paged_varlen"):
                for call in ("unpaged", "strided_cache", "cache_batch_idx", "cache_leftpad"):
                    yield case("calls", shape, d, calls=frozenset({call}))
        yield case("calls", "prefill", d, calls=frozenset({"seqused"}), **own["prefill"])
        yield case("calls", "decode", d, calls=frozenset({"packed_decode"}))
        yield case("calls", "verify", d, ((4, 1, 0, 3), (4, Pages(1, 1), 5, 40)), calls=frozenset({"packed_decode"}))
        if mla:
            yield case("calls", "prefill", d, calls=frozenset({"varlen_qv"}))
        else:
            yield case("calls", "paged_varlen", d)
        appended: tuple[int, ...]
        for shape, appended in (("decode", (0, 1, 1, 1, 1, 1, 1)), ("extend", (3, 1, 0, 17, 0, 4))):
            packed = frozenset({"append"} | ({"packed_decode"} if shape == "decode" else set()))
            yield case("calls", shape, d, calls=packed, appended=appended)
            for how in ROTARY if not mla else ():
                rotary = {"dim": base["head_dim"] // (2 if how.get("half") else 1), **how}
                for causal in (True, False) if full else (True,):
                    yield case("calls", shape, {**d, "causal": causal}, calls=packed | {"rotary"}, appended=appended,
                               rotary=rotary, note=" ".join(k if v else f"{k}={v}" for k, v in how.items()))
        yield case("calls", "decode", d, ((1,) * 3, (1, Pages(1), Pages(1, 1))), calls=frozenset({"append"}),
                   appended=(1, 1, 1), note="one each")
        yield case("calls", "verify", d, ((4,) * 3, (4, Pages(1), Pages(1, 4))), calls=frozenset({"append"}),
                   appended=(4, 4, 4), note="four each")
        # Rotary positions are absolute: padding counts. A chunk is local as a window is: q's positions go up.
        new, turn = (3, 1, 0, 17, 0, 4), {"dim": base.get("head_dim"), "interleaved": False}
        for company, calls in () if mla else (
                ({}, {"cache_leftpad"}), ({"attention_chunk": 16, "causal": False}, set()),
                ({"sliding_window": 9, "causal": False}, set())):
            yield case("calls", "extend", {**d, **company}, calls=frozenset({"append", "rotary", *calls}), appended=new,
                       rotary=turn, note="interleaved=False")
        for call in ("unpaged", "strided_cache", "cache_batch_idx", "cache_leftpad"):
            for shape, appended in (("extend", (3, 1, 0, 17, 0, 4)), ("verify", (4, 2, 4, 0, 3))):
                packed = frozenset({"append", call} | ({"packed_decode"} if shape == "verify" else set()))
                yield case("calls", shape, d, calls=packed, appended=appended)
    if not full:
        return
    # Calls in company: of masks, of each other, of other page sizes.
    for page in (1, 64, 256):
        for call in ("strided_cache", "cache_batch_idx", "cache_leftpad"):
            for shape in ("decode", "extend"):
                yield case("calls", shape, lse, calls=frozenset({call}), page_size=page)
        yield case("calls", "extend", lse, calls=frozenset({"append"}), appended=(3, 1, 0, 17, 0, 4), page_size=page)
    for fields in ({"sliding_window": 9}, {"attention_chunk": 7}, {"causal": False}, lse, {"mm_prefix": True}):
        for shape in ("decode", "extend"):
            yield case("calls", shape, fields, calls=frozenset({"cache_leftpad", "unpaged"}))
            yield case("calls", shape, fields, calls=frozenset({"cache_leftpad", "cache_batch_idx"}))
        yield case("calls", "extend", fields, calls=frozenset({"append", "cache_leftpad"}),
                   appended=(3, 1, 0, 17, 0, 4))
        yield case("calls", "extend", fields, packed=False, lengths=((2,) * 4, (2, Pages(1, 1), 40, Pages(2, 2))),
                   note="batched")


def _fp8(case: Any, readers: Sequence[str], full: bool) -> Iterator[Case]:
    for kv, shape in itertools.product(("fp8_e4m3", "fp8_e5m2"), readers if full else ("decode", "extend")):
        yield case("fp8", shape, {"kv_cache_dtype": kv})
        yield case("fp8", shape, {"kv_cache_dtype": kv}, calls=frozenset({"descale_per_head"}))
        if shape == "extend":
            yield case("fp8", shape, {"kv_cache_dtype": kv}, calls=frozenset({"append"}), appended=(3, 1, 0, 17, 0, 4))
        if not full:
            continue
        for page in (1, 32, 128):
            yield case("fp8", shape, {"kv_cache_dtype": kv}, page_size=page)
        for feature in ("sliding_window", "softcap", "sinks", "return_softmax_lse", "non_causal", "tree_mask",
                        "sparse"):
            yield case("fp8", shape, {"kv_cache_dtype": kv, **FEATURES[feature][0]},
                       calls=frozenset({"descale_per_head"}))
        yield case("fp8", shape, {"kv_cache_dtype": kv, "dtype": "float16"})


def _random(case: Any, base: Fields, own: Mapping[str, Fields], backend: type[AttentionBackend],
            mla: bool) -> Iterator[Case]:
    """Random company of what the backend declares. The draw is fixed, so that a name means one case for good."""
    rng = random.Random(f"{backend.name} {sorted(base)}")
    features = sorted(f for f in FEATURES if f in backend.features and f != "context_parallel")
    calls = sorted(backend.calls & {"out", "strided_cache", "cache_batch_idx", "cache_leftpad"})
    for n in range(RANDOM):
        shape = rng.choice([s for s in own if s != "paged_varlen"])
        chosen = rng.sample(features, min(len(features), rng.randint(1, 4)))
        fields: dict[str, Any] = {"dtype": rng.choice(backend.dtypes)}
        for feature in chosen:
            fields |= rng.choice(FEATURES[feature])
        if not mla:
            heads, kv = rng.choice(HEADS)
            fields |= {"num_heads": heads, "num_kv_heads": kv}
            if "head_dim_v" not in base:
                fields["head_dim"] = rng.choice([d for d in HEAD_DIMS if d in backend.head_dims] or [128])
        used = set(rng.sample(calls, min(len(calls), rng.randint(0, 2)))) if shape != "prefill" else set()
        if shape == "prefill":
            used = {"out"} & backend.calls if rng.random() < 0.3 else set()
        page = rng.choice([None, *[p for p in PAGE_SIZES if p in backend.page_sizes]]) if shape != "prefill" else None
        queries, keys = (tuple(rng.choice(pair) for _ in range(rng.randint(1, 5))) for pair in ((1, 2), (1, 2)))
        yield case("random", shape, fields, _some(rng, shape, len(queries) + len(keys)), calls=frozenset(used),
                   page_size=page, note=f"#{n}", **own[shape])


def _some(rng: random.Random, shape: str, batch: int) -> Lengths:
    """Random lengths of one phase; keys are never fewer than queries."""
    if shape == "prefill":
        same = tuple(rng.choice((0, 1, rng.randint(2, 90))) for _ in range(batch))
        return same, same
    if shape in ("decode", "verify"):
        tokens = SHAPES[shape][2]
        return (tokens,) * batch, tuple(_around(rng, tokens) for _ in range(batch))
    queries = tuple(rng.choice((0, 1, 2, rng.randint(3, 40))) for _ in range(batch))
    return queries, tuple(_around(rng, q) for q in queries)


def _around(rng: random.Random, least: int) -> Length:
    if rng.random() < 0.5:
        return Pages(rng.randint(1, 2), least + rng.choice((-1, 0, 1))) if least else Pages(1, rng.choice((-1, 0, 1)))
    return least + rng.choice((0, 1, rng.randint(0, 150)))
