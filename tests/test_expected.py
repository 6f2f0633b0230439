"""The table of expected choices (data_expected), the accepted models, every alias, and mutations of every declaration.

`python tests/test_expected.py` prints the red rows and the surviving mutations as lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import data_expected as data
import pytest
from data_expected import Row

import hal
from hal import registry
from hal.backend import AttentionBackend
from hal.backends import ALIASES
from hal.capabilities import HeadDims, PageSizes
from hal.config import AttentionConfig, LayerKind
from hal.decision import Decision
from hal.packages import Packages
from hal.platform import Platform
from hal.platforms import table
from hal.selection import explain_kinds


@cache
def _question(number: int) -> tuple[AttentionConfig, Platform]:
    row = data.ROWS[number]
    return AttentionConfig(**row.config), Platform.parse(row.device)


def decide(number: int) -> Decision:
    """hal.explain's answer to a row. A name is asked for in the row's phase alone: some serve one phase."""
    row = data.ROWS[number]
    config, platform = _question(number)
    # Not the text: a mutation that takes a package away makes its name unknown, which is not what is tested.
    packages = Packages.assumed() if row.packages is None else Packages.named(row.packages.split(","))
    return hal.explain(config, platform, packages=packages, **{f"{row.phase}_backend": row.ask})


def problem(row: Row, decision: Decision) -> str | None:
    """What of a row does not hold, None where all does."""
    phase = decision.prefill if row.phase == "prefill" else decision.decode
    if row.chosen not in (phase.chosen, data.ANY):
        return f"{row.id}: {row.device} {row.config} chose {phase.chosen}, expected {row.chosen}: " \
               f"{_reasons(phase, row.chosen)} ({row.source})"
    if row.rejected is not None:
        backend, start = row.rejected
        reasons = _reasons(phase, backend)
        if not reasons or not any(reason.startswith(start) for reason in reasons):
            return f"{row.id}: {backend} says {reasons}, expected a reason that starts {start!r} ({row.source})"
    return None


def _reasons(phase: Any, backend: str | None) -> tuple[str, ...] | None:
    return next((c.reasons for c in phase.candidates if c.backend == backend), None)


@pytest.mark.parametrize("number", range(len(data.ROWS)), ids=[row.id for row in data.ROWS])
def test_row(number: int) -> None:
    """Every row holds, but for those that NOT_YET explains: they must not hold, so that none outlives its reason."""
    found = problem(data.ROWS[number], decide(number))
    if data.ROWS[number].id in data.NOT_YET:
        assert found is not None, "the row holds by now: take it out of NOT_YET"
    else:
        assert found is None, found


def test_not_yet_names_rows() -> None:
    assert set(data.NOT_YET) <= {row.id for row in data.ROWS}


def test_table_covers_the_field() -> None:
    """At least 150 choices made automatically, over every vendor and generation; ids are names, so unique."""
    assert len([row for row in data.CHOICES if row.ask == "auto"]) >= 150
    assert len({row.id for row in data.ROWS}) == len(data.ROWS)
    devices = {row.device for row in data.CHOICES}
    archs = {"cuda": data.SM75_UP, "rocm": data.GFX, "npu": data.NPUS, "musa": data.MUSAS, "cpu": data.CPUS}
    assert {f"{kind}:{arch}" for kind, names in archs.items() for arch in names} - devices <= {"cuda:sm87"}
    assert all(row.source for row in data.ROWS)


def test_packages_of_the_table_are_known() -> None:
    known = {package.distribution for name in registry.names() for package in registry.get(name).packages}
    named = {name for row in data.ROWS if row.packages for name in row.packages.split(",")}
    assert named <= known


# Acceptance: DeepSeek-V3.

DEEPSEEK = AttentionConfig(mla=True, num_heads=128)
DEEPSEEK_DECODES = {
    "cuda:sm100": ("trtllm_mla",), "cuda:sm90": ("flash_attn_mla", "flashmla"), "npu:ascend910b": ("ascend_mla",),
    "musa:mp31": ("mate_mla",), "rocm:gfx942": ("aiter_mla",), "cuda:sm120": ("triton_mla",),
}


@pytest.mark.parametrize("device", DEEPSEEK_DECODES)
def test_deepseek_v3(device: str) -> None:
    decision = hal.explain(DEEPSEEK, device)
    assert decision.decode.chosen in DEEPSEEK_DECODES[device]
    assert decision.prefill.chosen, str(decision)
    assert decision.page_size
    assert all((decision.prefill.target, decision.decode.target))
    if device == "cuda:sm100":
        assert decision.prefill.chosen != decision.decode.chosen


# Acceptance: one answer for each kind of layer, one page size, on all five platforms.

GPT_OSS = [LayerKind("sliding", (0, 2), AttentionConfig(num_heads=64, head_dim=64, sinks=True, sliding_window=128)),
           LayerKind("full", (1, 3), AttentionConfig(num_heads=64, head_dim=64, sinks=True))]
GEMMA_3 = [LayerKind("sliding", (0, 1, 2, 3, 4), AttentionConfig(num_heads=16, num_kv_heads=8, head_dim=256,
                                                                sliding_window=1024)),
           LayerKind("full", (5,), AttentionConfig(num_heads=16, num_kv_heads=8, head_dim=256))]
LLAMA_4 = [LayerKind("chunked", (0, 1, 2), AttentionConfig(num_heads=40, num_kv_heads=8, attention_chunk=8192)),
           LayerKind("full", (3,), AttentionConfig(num_heads=40, num_kv_heads=8))]
KINDS = {"gpt-oss": GPT_OSS, "Gemma 3": GEMMA_3, "Llama 4": LLAMA_4}
PLATFORMS = ("cuda:sm75", "cuda:sm80", "cuda:sm90", "cuda:sm100", "cuda:sm120", "rocm:gfx90a", "rocm:gfx942",
             "npu:ascend910b", "npu:ascend310p", "musa:mp22", "musa:mp31", "cpu:x86_64_v3", "cpu:aarch64")


@pytest.mark.parametrize("device", PLATFORMS)
@pytest.mark.parametrize("model", KINDS)
def test_one_answer_for_each_kind(model: str, device: str) -> None:
    decisions = explain_kinds(KINDS[model], device)
    assert list(decisions) == [kind.kind for kind in KINDS[model]]
    assert len({decision.page_size for decision in decisions.values()}) == 1
    for decision in decisions.values():
        for phase in (decision.prefill, decision.decode):
            if phase.chosen is None:
                assert all(candidate.reasons for candidate in phase.candidates), str(decision)
            else:
                assert all((phase.target, decision.page_size))


# Aliases.

@pytest.mark.parametrize("alias", data.FIELD_ALIASES)
def test_field_alias(alias: str) -> None:
    assert data.FIELD_ALIASES[alias] in registry.resolve(alias)


@pytest.mark.parametrize("name", sorted({*data.VLLM_NAMES, *data.SGLANG_NAMES, *ALIASES, "nonsense"}))
def test_engine_name_resolves_or_errs_with_the_list(name: str) -> None:
    """Every name of both engines means known backends, and can be asked about; or the error lists what can."""
    if name not in registry.names() and name not in ALIASES:
        with pytest.raises(ValueError, match=f"'{name}' is not known") as caught:
            hal.explain(device="cuda:sm90", backend=name)
        assert all(known in str(caught.value) for known in (*registry.names(), *ALIASES))
        return
    backends = registry.resolve(name)
    assert backends
    assert set(backends) <= set(registry.names())
    for device in ("cuda:sm90", "cuda:sm100", "rocm:gfx942", "npu:ascend910b", "musa:mp31", "cpu:x86_64_v3"):
        for config in (AttentionConfig(), DEEPSEEK):
            decision = hal.explain(config, device, backend=name)
            assert {c.backend for c in decision.candidates} == set(backends)


# Mutations: each takes one declaration away, or swaps two neighbours of an order, and must turn a row red.

@dataclasses.dataclass(frozen=True)
class Mutation:
    """`set` puts `value` in place of an attribute of `owner`; rows: those whose answer may change."""

    name: str
    owner: Any
    attribute: str
    value: Any
    rows: tuple[int, ...]


def _without(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return tuple(v for v in values if v != value)


def _dims_mutants(dims: HeadDims) -> Iterator[tuple[str, HeadDims]]:
    if dims == HeadDims():
        return
    yield "any head dim", HeadDims()
    for dim in dims.only:
        yield f"head_dim {dim}", HeadDims(only=_without(dims.only, dim) or (1 << 29,))
    if not dims.only:
        if dims.low > 1:
            yield f"head_dim lowest {dims.low}", dataclasses.replace(dims, low=dims.low + 1)
        if dims.high < 1 << 30:
            yield f"head_dim highest {dims.high}", dataclasses.replace(dims, high=dims.high - 1)
        if dims.step > 1:
            yield f"head_dim step {dims.step}", dataclasses.replace(dims, step=dims.step * 2)


def _pages_mutants(pages: PageSizes) -> Iterator[tuple[str, PageSizes]]:
    if pages.only or pages.step > 1:
        yield "any page size", PageSizes(pages.preferred)
    for size in pages.only:
        rest = _without(pages.only, size) or (1 << 29,)
        yield f"page_size {size}", PageSizes(rest[0], only=rest)
    if not pages.only:
        yield f"page_size step {pages.step}", PageSizes(pages.preferred * 2, step=pages.step * 2)


def _deletions(backend: type[AttentionBackend]) -> Iterator[tuple[str, str, Any]]:
    """(what is taken away, attribute, the attribute without it) for everything a backend declares."""
    for attribute in ("dtypes", "kv_cache_dtypes", "phases", "attention_types", "packages", "mla_prefill",
                      "prefill_with"):
        if attribute == "mla_prefill" and not _expanding(backend, True):
            continue  # selection does not read it
        for value in getattr(backend, attribute):
            label = getattr(value, "distribution", value)
            yield f"{attribute} {label}", attribute, _without(getattr(backend, attribute), value)
    for attribute in ("features", "requires"):
        for value in sorted(getattr(backend, attribute)):
            yield f"{attribute} {value}", attribute, getattr(backend, attribute) - {value}
    for kind, archs in backend.platforms.items():
        others = {k: v for k, v in backend.platforms.items() if k != kind}
        for arch in archs or ("any",):
            rest = _without(archs, arch)
            yield f"platforms {kind}:{arch}", "platforms", {**others, kind: rest} if rest else others
    for pair in backend.head_dim_pairs or ():
        yield f"head_dim_pairs {pair}", "head_dim_pairs", _without(backend.head_dim_pairs or (), pair)
    if backend.head_dim_pairs is None:
        yield "head_dim_pairs any", "head_dim_pairs", ()
    yield from ((label, "head_dims", dims) for label, dims in _dims_mutants(backend.head_dims))
    if backend.reads_cache:
        yield from ((label, "page_sizes", pages) for label, pages in _pages_mutants(backend.page_sizes))
    if backend.graph_level != "never":
        yield "graph", "graph_level", "never"
    if backend.max_decode_query_len is None:
        yield "max_decode_query_len any", "max_decode_query_len", 1
    elif backend.max_decode_query_len > 1:
        yield f"max_decode_query_len {backend.max_decode_query_len}", "max_decode_query_len", \
            backend.max_decode_query_len - 1


def _orders() -> dict[tuple[str, bool, str, tuple[str, ...]], list[str]]:
    """(platform, mla, phase, order) -> the archs with that order. A phase "non-causal" is for NON_CAUSAL's."""
    orders: dict[tuple[str, bool, str, tuple[str, ...]], list[str]] = {}
    for kind, module in table().items():
        for arch in module.ARCHS:
            for mla in (False, True):
                for phase in ("prefill", "decode"):
                    key = (kind, mla, phase, tuple(module.priority(arch, mla, phase)))
                    orders.setdefault(key, []).append(arch)
        for arch, order in getattr(module, "NON_CAUSAL", {}).items():
            orders.setdefault((kind, False, "non-causal", tuple(order)), []).append(arch)
    return orders


def _platform_mutants(green: list[int]) -> Iterator[Mutation]:
    """What a platform's own data says of an arch, taken away."""
    for kind, module in table().items():
        for attribute in ("LACKS", "NON_CAUSAL"):
            data_of = getattr(module, attribute, {})
            for arch in data_of:
                rows = tuple(n for n in green if (_question(n)[1].kind, _question(n)[1].arch) == (kind, arch))
                yield Mutation(f"{kind} {attribute} {arch}", module, attribute,
                               {a: v for a, v in data_of.items() if a != arch}, rows)


def never_both(first: type[AttentionBackend], second: type[AttentionBackend], kind: str, archs: list[str], mla: bool,
               phase: str) -> str | None:
    """Why two backends never both serve one configuration, so that their order means nothing; None where they may."""
    for one, other in ((first, second), (second, first)):
        listed = one.platforms.get(kind)
        if listed is None or (listed and not set(listed) & set(archs)):
            return f"{one.name} serves no {kind} of {', '.join(archs)}"
        if phase not in one.phases:
            return f"{one.name} serves no {phase}"
        if not mla and "mla" in one.requires:
            return f"{one.name} requires mla"
        if not set(archs) & set(other.platforms.get(kind, ()) or archs) & set(listed or archs):
            return "no arch in common"
        missing = one.requires - other.features - ({"mla"} if phase == "prefill" and other.mla_prefill else set())
        if missing:
            return f"{one.name} requires {', '.join(sorted(missing))}, which {other.name} does not serve"
        expands = phase == "prefill" and bool(other.mla_prefill)
        if mla and "mla" not in other.features and not expands:
            return f"{other.name} serves no MLA"
        if phase == "prefill" and one.kv_layout != other.kv_layout and not _expanding(one, mla) and not _expanding(
                other, mla) and one.reads_cache and other.reads_cache:
            return "the decode backend's kv_layout admits one of the two at most"
        if not set(one.attention_types) & set(other.attention_types) or not set(one.dtypes) & set(other.dtypes):
            return "no attention type or dtype in common"
    return None


def _expanding(backend: type[AttentionBackend], mla: bool) -> bool:
    """It prefills MLA without the cache: not one that has widths for it but prefers its absorbed form (torch)."""
    return mla and not backend.reads(DEEPSEEK, "prefill")


def _serving(number: int, decision: Decision) -> set[str]:
    return {name for name in (decision.prefill.chosen, decision.decode.chosen) if name}


def mutations() -> tuple[list[Mutation], list[int], dict[str, str]]:
    """Every mutation, the rows that are red before any, and the swaps that can't matter with their reason."""
    answers = {number: decide(number) for number in range(len(data.ROWS))}
    red = [number for number, decision in answers.items() if problem(data.ROWS[number], decision)]
    green = [number for number in answers if number not in red]
    # A row can only change where the backend serves it, or is expected to be passed over.
    by_backend: dict[str, list[int]] = {}
    for number in green:
        row = data.ROWS[number]
        names = _serving(number, answers[number]) | ({row.rejected[0]} if row.rejected else set())
        for name in names:
            by_backend.setdefault(name, []).append(number)
    found, idle = [], {}
    for name in registry.names():
        backend = registry.get(name)
        rows = tuple(sorted(by_backend.get(name, ()), key=lambda n, name=name: data.ROWS[n].ask != name))
        for label, attribute, value in _deletions(backend):
            found.append(Mutation(f"{name}: {label}", backend, attribute, value, rows))
    for (kind, mla, phase, order), archs in _orders().items():
        module = table()[kind]
        for index in range(len(order) - 1):
            first, second = order[index], order[index + 1]
            label = f"{kind} {'mla' if mla else 'dense'} {phase} {'/'.join(archs)}: {first} <-> {second}"
            order_of = "prefill" if phase == "non-causal" else phase
            why = never_both(registry.get(first), registry.get(second), kind, archs, mla, order_of)
            if why:
                idle[label] = why
                continue
            swapped = (*order[:index], second, first, *order[index + 2:])
            rows = tuple(number for number in green if data.ROWS[number].ask == "auto"
                         and _serving(number, answers[number]) & {first, second}
                         and _question(number)[1].kind == kind and _question(number)[1].arch in archs
                         and (_question(number)[0].mla is not None) == mla)
            if phase == "non-causal":
                found.append(Mutation(label, module, "NON_CAUSAL",
                                      {**module.NON_CAUSAL, **dict.fromkeys(archs, swapped)}, rows))
                continue
            priority = _swapped(module.priority, mla, phase, order, swapped)
            found.append(Mutation(label, module, "priority", priority, rows))
    return [*found, *_platform_mutants(green)], red, idle


def _swapped(priority: Callable[..., Any], mla: bool, phase: str, order: tuple[str, ...],
             swapped: tuple[str, ...]) -> Callable[..., tuple[str, ...]]:
    def replaced(arch: str | None, wanted_mla: bool, wanted_phase: str) -> tuple[str, ...]:
        seen = tuple(priority(arch, wanted_mla, wanted_phase))
        return swapped if (wanted_mla, wanted_phase, seen) == (mla, phase, order) else seen

    return replaced


def killer(mutation: Mutation) -> str | None:
    """The id of a row that turns red under a mutation; None where it survives."""
    owner, attribute = mutation.owner, mutation.attribute
    own = owner.__dict__.get(attribute)
    had = attribute in owner.__dict__
    # A backend that inherits the declaration keeps it: the mutation is of one backend alone.
    heirs = [heir for heir in map(registry.get, registry.names()) if isinstance(owner, type) and heir is not owner
             and issubclass(heir, owner) and attribute not in heir.__dict__]
    kept = [(heir, getattr(heir, attribute)) for heir in heirs]
    try:
        for heir, value in kept:
            setattr(heir, attribute, value)
        setattr(owner, attribute, mutation.value)
        for number in mutation.rows:
            if problem(data.ROWS[number], decide(number)):
                return data.ROWS[number].id
        return None
    finally:
        for heir, _ in kept:
            delattr(heir, attribute)
        if had:
            setattr(owner, attribute, own)
        else:
            delattr(owner, attribute)


def survey() -> tuple[dict[str, str], list[str], list[int], dict[str, str]]:
    """Mutation -> the row it turns red; the survivors; the rows red before any; swaps that can't matter."""
    found, red, idle = mutations()
    killers = {mutation.name: killer(mutation) for mutation in found}
    survivors = [name for name, row in killers.items() if row is None]
    return {name: row for name, row in killers.items() if row}, survivors, red, idle


def _equivalent(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in data.EQUIVALENT)


def test_every_mutation_turns_a_row_red() -> None:
    killed, survivors, red, _ = survey()
    assert len(killed) > 500
    assert red == [number for number in range(len(data.ROWS)) if problem(data.ROWS[number], decide(number))], \
        "a mutation was not taken back"
    unexplained = [name for name in survivors if not _equivalent(name)]
    assert not unexplained, "\n".join(["no row notices:", *unexplained])
    stale = [name for name in data.EQUIVALENT if not any(fnmatchcase(survivor, name) for survivor in survivors)]
    assert not stale, f"said to be equivalent, but a row notices, or it is gone: {stale}"


if __name__ == "__main__":
    import time

    start = time.perf_counter()
    killed, survivors, red, idle = survey()
    print(*(problem(data.ROWS[number], decide(number)) for number in red), sep="\n")
    print(f"\n{len(data.ROWS)} rows, {len(red)} red; {len(killed)} mutations killed, {len(survivors)} survive, "
          f"{len(idle)} swaps can't matter; {time.perf_counter() - start:.1f} s")
    print(*(f"{'equivalent' if _equivalent(name) else 'SURVIVES'} {name}" for name in survivors), sep="\n")
