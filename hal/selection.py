"""Selection: which backend serves which phase of which kind of layer, and why not the others.

The rule, for one platform:
1. Candidates are the platform's priority order, then every other known backend. An explicit choice leaves
   only the backends that its name stands for.
2. A candidate is accepted when `unsupported_reasons` is empty.
3. All kinds of layer share one page size: the one asked for, else of the sizes that accepted backends
   prefer (and their least common multiple) the one that leaves every kind and phase the best-ranked backends.
4. Decode takes its first accepted candidate for which some accepted prefill candidate reads the same cache with
   the same queries, or reads no cache; prefill takes the first such one.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from hal import env, registry
from hal.backend import AttentionBackend
from hal.config import AttentionConfig, LayerKind
from hal.decision import PHASES, Candidate, Decision, Hint, PhaseDecision
from hal.host import Host
from hal.kinds import as_choices, as_kinds
from hal.packages import Package, Packages, numbers
from hal.platform import Platform, PlatformNotFoundError, detect
from hal.platforms import table

TORCH = (2, 6)  # the oldest release that the backends run on


@dataclass(frozen=True)
class Choice:
    """What a caller asked for by name: "auto", a backend or an alias, for all or per phase."""

    backend: str = "auto"
    prefill_backend: str | None = None
    decode_backend: str | None = None

    def for_phase(self, phase: str) -> str:
        wanted = self._said(phase)
        return str(env.get("HAL_ATTENTION_BACKEND")) if wanted == "auto" else wanted

    def _said(self, phase: str) -> str:
        own = self.prefill_backend if phase == "prefill" else self.decode_backend
        return self.backend if own is None else own

    def __str__(self) -> str:
        names = {name: "" if self._said(phase) == name else " (HAL_ATTENTION_BACKEND)"
                 for phase in PHASES for name in [self.for_phase(phase)]}
        return " + ".join(f"{name}{source}" for name, source in names.items())


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


def explain(config: AttentionConfig | None = None, device: str | Platform = "auto", backend: str = "auto",
            prefill_backend: str | None = None, decode_backend: str | None = None,
            packages: Packages | str | None = None) -> Decision:
    """The Decision for one configuration: all candidates in order, each accepted or with its reasons.

    device: "auto", a device of this machine ("cuda:1"), or one with an arch ("cuda:sm90"), which need not be
    here; vendor packages are then assumed present unless `packages` ("installed", "assumed" or a comma list)
    says otherwise. Nothing is bound. Raises ValueError for unknown names, PlatformNotFoundError for a device
    without an arch that is not here; a choice that can't serve is no error here but a Decision with none chosen.
    """
    kinds = {"all": AttentionConfig() if config is None else config}
    return explain_kinds(kinds, device, Choice(backend, prefill_backend, decode_backend), packages)["all"]


def explain_kinds(kinds: Sequence[LayerKind] | Mapping[str, AttentionConfig], device: str | Platform = "auto",
                  choices: Mapping[str, Choice | str] | Choice | str | None = None,
                  packages: Packages | str | None = None) -> dict[str, Decision]:
    """Decisions for the kinds of layer of one model, made jointly: kind -> Decision, one page size.

    choices: for all kinds, or kind -> Choice or backend name for those that differ from "auto".
    """
    kinds = as_kinds(kinds)
    choices = as_choices(kinds, Choice(), choices)
    platform, here = find_platform(device)
    if packages is None:
        packages = Packages.installed() if here else Packages.assumed()
    elif isinstance(packages, str):
        packages = Packages.parse(packages, [p for name in registry.names() for p in registry.get(name).packages])
    elif not isinstance(packages, Packages):
        raise ValueError(f"packages is {packages!r}, expected 'installed', 'assumed' or a comma list of distributions")
    packages.adapters_assumed = not here
    packages.torch = torch_problem(Host()) if here else None
    wanted = {(k.kind, phase): choices[k.kind].for_phase(phase) for k in kinds for phase in PHASES}
    candidates = {(k.kind, phase): _candidates(platform, k.config, wanted[k.kind, phase], phase)
                  for k in kinds for phase in PHASES}
    question = Question(tuple(kinds), platform, packages, wanted, candidates)
    decisions = decide(question)
    # On the real machine what is chosen must import too: a broken package is a reason, and the next one's turn.
    while here and packages.listing == "installed":
        broken = _first_broken(decisions, packages)
        if broken is None:
            break
        packages.broken[broken[0]] = f"package {broken[0].distribution} is installed but broken: {broken[1]}"
        decisions = decide(question)
    return {kind: replace(decision, find_hints=partial(_find_hints, question, decisions, kind))
            for kind, decision in decisions.items()}


def _find_hints(question: Question, decisions: dict[str, Decision], kind: str) -> tuple[Hint, ...]:
    from hal.hints import find  # asked for where decisions are shown, never where they are made

    return find(question, decisions, kind)


def find_platform(device: str | Platform) -> tuple[Platform, bool]:
    """The Platform a text means, and whether it is a device of this machine (rather than a named arch)."""
    if isinstance(device, Platform):
        if not device.name and device.arch is None:
            raise ValueError(f"device is the Platform {device.kind} with neither an arch nor a name: give "
                             f"{device.kind!r} for the one of this machine, or name an arch")
        return device, bool(device.name)
    env.warn_unknown()
    text = str(env.get("HAL_DEVICE")) if device == "auto" else device
    if text == "auto" or Platform.parse(text).arch is None:
        return detect(text), True
    if device == "auto":  # an arch from HAL_DEVICE that is here is this machine, as it is for get_attention_impl
        with contextlib.suppress(PlatformNotFoundError):
            return detect(text), True
    return Platform.parse(text), False


def torch_problem(host: Host) -> str | None:
    """Why this machine's torch can't serve any backend; None where it can (design.md section 3: torch >= 2.6)."""
    build = host.torch_build()
    needed = f"(every backend needs torch {'.'.join(map(str, TORCH))} or newer)"
    if build.problem:
        return f"{build.problem}: install the build of your accelerator's vendor {needed}"
    return None if numbers(build.version) >= TORCH else f"torch {build.version} is too old {needed}"


def _first_broken(decisions: dict[str, Decision], packages: Packages) -> tuple[Package, str] | None:
    for decision in decisions.values():
        for phase in (decision.prefill, decision.decode):
            package = registry.get(phase.chosen).package_for(packages, decision.config) if phase.chosen else None
            if package is None or package.module in sys.modules:
                continue
            error = _import_error(package.module, getattr(table()[decision.platform.kind], "EXTENSION", None))
            if error:
                return package, error
    return None


@cache
def _import_error(module: str, extension: str | None) -> str | None:
    """Asked once per process: a package that hangs costs its time limit."""
    return Host().import_error(module, extension)


def decide(question: Question) -> dict[str, Decision]:
    """The rule of this file's first lines: kind -> Decision, one page size."""
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


Refused = set[tuple[str, str, type[AttentionBackend]]]


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
                    sizes.append(backend.page_sizes.preferred)
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
    return reasons + ([question.packages.torch] if question.packages.torch else [])


def _cost(question: Question, kind: LayerKind, size: int | None, refused: Refused) -> int:
    """How far down their lists the chosen backends stand; a phase that nothing serves costs more than any rank."""
    _, _, pair = _pair(question, kind, size, refused)
    return sum(1000 if backend is None else question.candidates[kind.kind, phase].index(backend)
               for phase, backend in zip(("decode", "prefill"), pair))


def _candidates(platform: Platform, config: AttentionConfig, wanted: str, phase: str) -> list[type[AttentionBackend]]:
    if wanted != "auto":
        return [registry.get(name) for name in registry.resolve(wanted)]
    ranked = table()[platform.kind].priority(platform.arch, config.mla is not None, phase)
    unknown = [name for name in ranked if name not in registry.names()]
    if unknown:
        raise ValueError(f"the priority of platform {platform.kind} names {unknown[0]!r}, which is no usable backend "
                         f"(backends: {', '.join(registry.names())})")
    return [registry.get(name) for name in dict.fromkeys([*ranked, *registry.names()])]


Rows = list[tuple[type[AttentionBackend], list[str]]]
Pair = tuple[type[AttentionBackend] | None, type[AttentionBackend] | None]


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
                             chosen.target(phase, chosen.package_for(packages, config)) if chosen else None,
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
