"""The rule of selection, for one question: which backend serves which phase of which kind of layer.

1. Candidates are the platform's priority order (its NON_CAUSAL order for dense attention that is not causal), then
   every other known backend. An explicit choice leaves only the backends that its name stands for, and for MLA's
   prefill those that they bring (`prefill_with`).
2. A candidate is accepted when `unsupported_reasons` is empty and the arch has the dtype (its platform's LACKS).
3. All kinds of layer share one page size: the one asked for, else of the sizes that accepted backends
   prefer (and their least common multiple) the one that leaves every kind and phase the best-ranked backends.
4. Decode takes its first accepted candidate for which some accepted prefill candidate reads the same cache with
   the same queries, or reads no cache; prefill takes the first such one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hal import registry
from hal.backend import AttentionBackend
from hal.config import DTYPES, AttentionConfig, LayerKind
from hal.decision import PHASES, Candidate, Decision, PhaseDecision
from hal.packages import Packages
from hal.platform import Platform
from hal.platforms import table

Refused = set[tuple[str, str, type[AttentionBackend]]]
Rows = list[tuple[type[AttentionBackend], list[str]]]
Pair = tuple[type[AttentionBackend] | None, type[AttentionBackend] | None]


@dataclass(frozen=True)
class Question:
    """All that decisions follow from, so that the same can be asked again with one thing changed.

    wanted: (kind, phase) -> "auto" or the name asked for. candidates: (kind, phase) -> backends in order.
    """

    kinds: tuple[LayerKind, ...]
    platform: Platform
    packages: Packages
    wanted: Mapping[tuple[str, str], str]
    candidates: Mapping[tuple[str, str], Sequence[type[AttentionBackend]]]

    @cached_property
    def lacks(self) -> tuple[str, ...]:
        """dtypes that the arch does not have, so that no backend can."""
        return self._of_arch("LACKS")

    @cached_property
    def non_causal(self) -> tuple[str, ...]:
        """The arch's order for dense attention that is not causal; () where it is the usual one."""
        return self._of_arch("NON_CAUSAL")

    def _of_arch(self, name: str) -> tuple[str, ...]:
        data: Mapping[Any, tuple[str, ...]] = getattr(table().get(self.platform.kind), name, {})
        return data.get(self.platform.arch, ())


def arranged(question: Question) -> Question:
    """The question with the candidates of rule 1, where the configuration has a say in them."""
    return replace(question, candidates={
        (kind.kind, phase): _candidates(question, kind, phase, question.candidates[kind.kind, phase])
        for kind in question.kinds for phase in PHASES})


def _candidates(question: Question, kind: LayerKind, phase: str,
                given: Sequence[type[AttentionBackend]]) -> Sequence[type[AttentionBackend]]:
    mla = kind.config.mla is not None
    if question.wanted[kind.kind, phase] != "auto":
        brought = [registry.get(name) for b in given for name in b.prefill_with] if mla and phase == "prefill" else []
        return list(dict.fromkeys([*given, *brought]))
    order = () if mla or kind.config.causal else question.non_causal
    ranks = {name: rank for rank, name in enumerate(order)}
    return sorted(given, key=lambda b: ranks.get(b.name, len(ranks)))  # stable: the others keep their order


def decide(question: Question) -> dict[str, Decision]:
    """kind -> Decision, by the rule above, with one page size."""
    question = arranged(question)
    kinds = question.kinds
    asked = {k.config.page_size for k in kinds if k.config.page_size is not None}
    if len(asked) > 1:
        raise ValueError(f"the kinds of layer of one model share one page size, got {sorted(asked)}")
    size: int | None = next(iter(asked), None)
    if not asked:
        sizes, refused = _preferred_sizes(question)
        # min() keeps the first of equals, so the order of preference breaks ties.
        size = min(sizes, default=None, key=lambda size: sum(
            _cost(question, kind, size, refused) for kind in kinds)) if len(sizes) != 1 else sizes[0]
    return {kind.kind: _decide_kind(question, kind, size) for kind in kinds}


def _preferred_sizes(question: Question) -> tuple[list[int], Refused]:
    """The sizes that backends prefer which accept some page size, and (kind, phase, backend) of those with none."""
    sizes: list[int] = []
    refused: Refused = set()
    for kind in question.kinds:
        for phase in ("decode", "prefill"):
            for backend in question.candidates[kind.kind, phase]:
                if reasons_of(backend, kind.config, question, phase, None):
                    refused.add((kind.kind, phase, backend))
                elif backend.reads(kind.config, phase):
                    sizes.append(backend.preferred_page_size(kind.config))
    return list(dict.fromkeys([*sizes, math.lcm(*sizes)])) if sizes else [], refused


def reasons_of(backend: type[AttentionBackend], config: AttentionConfig, question: Question, phase: str,
               size: int | None) -> list[str]:
    """A backend's reasons; what it raises instead is a reason too, and nobody else's problem."""
    try:
        reasons = backend.unsupported_reasons(config, question.platform, question.packages, phase, size)
    except Exception as error:  # noqa: BLE001 - a backend out of tree may raise anything
        return [f"unsupported_reasons raised {type(error).__name__}: {error} "
                f"({backend.name}: a mistake in the backend)"]
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        return [f"unsupported_reasons gave {reasons!r} ({backend.name}: a mistake in the backend, it must be a "
                "list of str)"]
    if config.dtype in question.lacks:
        has = ", ".join(dtype for dtype in DTYPES if dtype not in question.lacks)
        reasons = [*reasons, f"dtype {config.dtype} is not supported ({question.platform}: {has})"]
    return reasons + ([question.packages.torch] if question.packages.torch else [])


def _cost(question: Question, kind: LayerKind, size: int | None, refused: Refused) -> int:
    """How far down their lists the chosen backends stand; a phase that nothing serves costs more than any rank."""
    _, _, pair = _pair(question, kind, size, refused)
    return sum(1000 if backend is None else question.candidates[kind.kind, phase].index(backend)
               for phase, backend in zip(("decode", "prefill"), pair))


def _pair(question: Question, kind: LayerKind, size: int | None, refused: Refused) -> tuple[Rows, Rows, Pair]:
    """Decode and prefill candidates with their reasons, and the (decode, prefill) pair that rule 4 gives.

    refused: known to be so whatever the size; not asked again.
    """
    config = kind.config

    def look(phase: str) -> Rows:
        return [(b, ["refused"] if (kind.kind, phase, b) in refused else reasons_of(b, config, question, phase, size))
                for b in question.candidates[kind.kind, phase]]

    decode, prefill = look("decode"), look("prefill")
    serving = [b for b, reasons in prefill if not reasons]
    # decode backend -> the first prefill backend that goes with it
    partners = {b: next((p for p in serving if not _cache_mismatch(p, b, config)), None)
                for b, reasons in decode if not reasons}
    fits = [b for b, partner in partners.items() if partner is not None]
    if fits:
        # Decode backends that were passed over because no prefill backend goes with them say so.
        decode = [(b, reasons or ([] if b in fits else _unpaired(b, prefill, config))) for b, reasons in decode]
        return decode, prefill, (fits[0], partners[fits[0]])
    first = next(iter(partners), None)
    return decode, prefill, (first, next(iter(serving), None) if first is None else None)


def _decide_kind(question: Question, kind: LayerKind, size: int | None) -> Decision:
    config, platform, packages = kind.config, question.platform, question.packages
    decode, prefill, pair = _pair(question, kind, size, set())
    chosen_decode, chosen_prefill = pair
    if chosen_decode is not None:
        prefill = [(b, reasons + _cache_mismatch(b, chosen_decode, config)) for b, reasons in prefill]

    def phase_decision(phase: str, rows: Rows, chosen: type[AttentionBackend] | None) -> PhaseDecision:
        return PhaseDecision(phase, chosen.name if chosen else None,
                             chosen.target(phase, chosen.package_for(packages, config), config) if chosen else None,
                             tuple(Candidate(b.name, tuple(reasons), b.level(platform),
                                             elsewhere=platform.kind not in b.platforms) for b, reasons in rows),
                             question.wanted[kind.kind, phase])

    adapters = [f"an adapter for {b.name} (not written yet)" for b in pair if b and not b.adapter]
    needed = [package.distribution for b in pair if b for package in [b.package_for(packages, config)] if package]
    return Decision(
        platform=platform, config=config, prefill=phase_decision("prefill", prefill, chosen_prefill),
        decode=phase_decision("decode", decode, chosen_decode),
        page_size=size if chosen_decode else config.page_size,
        q_dtype=chosen_decode.q_dtype(config) if chosen_decode else config.dtype,
        kv_layout=chosen_decode.kv_layout if chosen_decode else None, packages=packages.listing,
        needed=tuple(dict.fromkeys([*needed, *adapters])))


def _cache_mismatch(prefill: type[AttentionBackend], decode: type[AttentionBackend],
                    config: AttentionConfig) -> list[str]:
    """Why the two can't share one cache: its layout, or the dtype that it makes queries have."""
    if not prefill.reads(config, "prefill"):
        return []
    return [f"{name} {mine} is not the decode backend's ({decode.name}: {theirs})"
            for name, mine, theirs in (("kv_layout", prefill.kv_layout, decode.kv_layout),
                                       ("q_dtype", prefill.q_dtype(config), decode.q_dtype(config))) if mine != theirs]


def _unpaired(decode: type[AttentionBackend], prefill: Sequence[tuple[type[AttentionBackend], list[str]]],
              config: AttentionConfig) -> list[str]:
    others = ", ".join(f"{b.name}: {b.kv_layout}, q {b.q_dtype(config)}" for b, reasons in prefill if not reasons)
    return [f"kv_layout {decode.kv_layout} with q {decode.q_dtype(config)} is read by no accepted prefill backend "
            f"({others})"]
