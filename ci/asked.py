"""What selection answers about a backend: hal.explain, asked on every arch that it declares, one thing at a time.

The question is the conformance grid's base shape with one word of the vocabulary changed. Declarations only say which
words there are and on which archs to ask. Dense attention and MLA are asked apart: a backend may serve one word of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import hal
from hal import capabilities
from hal.backend import AttentionBackend
from hal.config import ATTENTION_TYPES, DTYPES, KV_CACHE_DTYPES, AttentionConfig, MLADims
from hal.conformance.grid import FEATURES, HEAD_DIMS, MLA, PAGE_SIZES, UNEQUAL, base_dims
from hal.decision import PHASES, Decision
from hal.platform import Platform
from hal.platforms import KINDS, table

Fields = Mapping[str, Any]
# (arch, phase) of every yes. The names of archs are unique over all platforms.
Answer = frozenset[tuple[str, str]]

TOKENS = (2, 4, 16, 64)  # query tokens of a decode call
# A tree is verified: its decode calls have several tokens. Some kernels take sinks only beside a window.
FEATURE_FIELDS: dict[str, Fields] = {name: FEATURES[name][0] for name in capabilities.FEATURES if name in FEATURES}
FEATURE_FIELDS |= {"tree_mask": {**FEATURE_FIELDS["tree_mask"], "max_decode_query_len": 4},
                   "sinks + sliding_window": {**FEATURE_FIELDS["sinks"], **FEATURE_FIELDS["sliding_window"]}}
GRAPHS: Mapping[str, Fields] = {"one token": {"graph": True},
                                "several tokens": {"graph": True, "max_decode_query_len": 4}}


@dataclass
class Family:
    """One backend's answers for dense attention or for MLA.

    base: where the base shape is served, with the shape. reads: those of it that read the paged cache. preferred: page
    size -> where nobody asks for another. words: topic -> word -> where it is served.
    """

    base: dict[tuple[str, str], str]
    reads: Answer
    preferred: dict[str, Answer]
    words: dict[str, dict[str, Answer]] = field(default_factory=dict)


class _Question(NamedTuple):
    topic: str
    word: str
    fields: Fields


def ask(backend: type[AttentionBackend], mla: bool) -> Family | None:
    """One family of a backend; None where no base shape is served anywhere."""
    base: dict[tuple[Platform, str], tuple[Fields, bool]] = {}  # -> the shape, and whether it reads the cache
    preferred: dict[str, set[tuple[str, str]]] = {}
    for platform in _platforms(backend):
        for fields in _bases(backend, mla):
            decision = hal.explain(AttentionConfig(**fields), platform, backend.name)
            for phase in _accepted(backend, decision):
                if (platform, phase) not in base:
                    base[platform, phase] = fields, backend.reads(decision.config, phase)
                    if base[platform, phase][1] and decision.page_size is not None:
                        preferred.setdefault(str(decision.page_size), set()).add((str(platform.arch), phase))
            if all((platform, phase) in base for phase in backend.phases):
                break
    if not base:
        return None
    family = Family({_where(key): _shown(fields) for key, (fields, _) in base.items()},
                    frozenset(_where(key) for key, (_, reads) in base.items() if reads),
                    {size: frozenset(where) for size, where in preferred.items()})
    for question in _questions(backend, mla):
        yes = set()
        asked: dict[tuple[Platform, AttentionConfig], tuple[str, ...]] = {}
        for (platform, phase), (fields, _) in base.items():
            config = _config({**fields, **question.fields})
            if config is None:
                continue
            key = (platform, config)
            if key not in asked:
                asked[key] = _accepted(backend, hal.explain(config, platform, backend.name))
            if phase in asked[key]:
                yes.add((str(platform.arch), phase))
        if asked or question.topic != "features":
            family.words.setdefault(question.topic, {})[question.word] = frozenset(yes)
    return family


def _config(fields: Fields) -> AttentionConfig | None:
    """None where the contract excludes the company of sparse attention."""
    try:
        return AttentionConfig(**fields)
    except ValueError:
        if fields.get("sparse"):
            return None
        raise


def why_nowhere(backend: type[AttentionBackend]) -> str:
    """The first reason that every base shape is met with on the backend's first arch."""
    fields = next(_bases(backend, "mla" in backend.requires))
    decision = hal.explain(AttentionConfig(**fields), next(_platforms(backend)), backend.name)
    return next(c.reasons[0] for c in decision.decode.candidates if c.backend == backend.name)


def _where(key: tuple[Platform, str]) -> tuple[str, str]:
    return str(key[0].arch), key[1]


def _bases(backend: type[AttentionBackend], mla: bool) -> Iterator[dict[str, Any]]:
    """The base shape of hal.conformance.grid; where a backend refuses that, one with what it has instead."""
    base: Fields = MLA if mla else {"num_heads": 8, "num_kv_heads": 2, **base_dims(backend)}
    instead: list[Fields] = [{}, {"head_dim": 64}]
    if mla:
        instead = [{}, *({"mla": _expanded(*pair)} for pair in backend.mla_prefill), {"kv_cache_dtype": "fp8_ds_mla"}]
    sparse = {"sparse": True} if "sparse" in backend.requires else {}
    for other in instead:
        for dtype in ("bfloat16", "float16", "float32"):
            yield {**base, **sparse, **other, "dtype": dtype}


def _expanded(d: int, dv: int) -> MLADims:
    return MLADims(qk_nope_head_dim=d - 64, v_head_dim=dv)


def _shown(fields: Fields) -> str:
    """A base shape: "bfloat16 8/2x128"."""
    config = AttentionConfig(**fields)
    kv = "" if config.kv_cache_dtype == "auto" else f"+{config.kv_cache_dtype}"
    if config.mla is not None:
        dims = config.mla
        widths = f"{dims.qk_nope_head_dim + dims.qk_rope_head_dim}/{dims.v_head_dim}"
        return f"{config.dtype}{kv}" + ("" if widths == "192/128" else f", {widths} expanded")
    unequal = "" if config.v_dim == config.head_dim else f"/{config.v_dim}"
    return f"{config.dtype}{kv}, head dim {config.head_dim}{unequal}"


def _platforms(backend: type[AttentionBackend]) -> Iterator[Platform]:
    for kind in KINDS:
        if kind in backend.platforms:
            for arch in backend.platforms[kind] or table()[kind].ARCHS:
                yield Platform.parse(f"{kind}:{arch}")


def _accepted(backend: type[AttentionBackend], decision: Decision) -> tuple[str, ...]:
    both = {"prefill": decision.prefill, "decode": decision.decode}
    return tuple(phase for phase in PHASES
                 if any(c.accepted for c in both[phase].candidates if c.backend == backend.name))


def _questions(backend: type[AttentionBackend], mla: bool) -> Iterator[_Question]:
    for dtype in DTYPES:
        yield _Question("dtypes", dtype, {"dtype": dtype})
    for kv in KV_CACHE_DTYPES:
        if kv not in ("auto", *DTYPES) and (mla or kv != "fp8_ds_mla"):  # a layout of MLA's caches alone
            yield _Question("KV dtypes", kv, {"kv_cache_dtype": kv})
    for size in sorted({*PAGE_SIZES, *backend.page_sizes.only, backend.page_sizes.preferred}):
        yield _Question("page sizes", str(size), {"page_size": size})
    if mla:
        for d, dv in sorted({(576, 512), *(backend.head_dim_pairs or ())}):
            dims = MLADims(kv_lora_rank=dv, qk_rope_head_dim=d - dv) if d > dv else None
            if dims:
                yield _Question("absorbed", f"{d}/{dv}", {"mla": dims})
        for d, dv in sorted({(192, 128), *backend.mla_prefill}):
            yield _Question("expanded", f"{d}/{dv}", {"mla": _expanded(d, dv)})
    else:
        for dim in sorted({*HEAD_DIMS, *backend.head_dims.only}):
            yield _Question("head dims", str(dim), {"head_dim": dim, "head_dim_v": None})
        for d, dv in sorted({*UNEQUAL, *(backend.head_dim_pairs or ())}):
            yield _Question("unequal", f"{d}/{dv}", {"head_dim": d, "head_dim_v": dv})
        for kind in ATTENTION_TYPES:
            yield _Question("types", kind, {"attention_type": kind, "causal": kind == "decoder"})
    for name, fields in FEATURE_FIELDS.items():
        yield _Question("features", name, fields)
    for tokens in TOKENS:
        yield _Question("tokens", str(tokens), {"max_decode_query_len": tokens})
    for word, fields in GRAPHS.items():
        yield _Question("graph", word, fields)
