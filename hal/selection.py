"""Selection: which backend serves which phase of which kind of layer, and why not the others.

The rule, for one platform:
1. Candidates are the platform's priority order, then every other known backend. An explicit choice leaves
   only the backends that its name stands for.
2. A candidate is accepted when `unsupported_reasons` is empty.
3. All kinds of layer share one page size: the one asked for, else of the sizes that accepted backends
   prefer the one that leaves every kind and phase the best-ranked backends.
4. Decode takes its first accepted candidate; prefill the first that reads the same cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hal import env, registry
from hal.backend import AttentionBackend
from hal.config import AttentionConfig, LayerKind
from hal.decision import Candidate, Decision, PhaseDecision
from hal.host import Host
from hal.packages import Package, Packages
from hal.platform import Platform, detect
from hal.platforms import table


@dataclass(frozen=True)
class Choice:
    """What a caller asked for by name: "auto", a backend or an alias, for all or per phase."""

    backend: str = "auto"
    prefill_backend: str | None = None
    decode_backend: str | None = None

    def for_phase(self, phase: str) -> str:
        wanted = (self.prefill_backend if phase == "prefill" else self.decode_backend) or self.backend
        return str(env.get("HAL_ATTENTION_BACKEND")) if wanted == "auto" else wanted

    def __str__(self) -> str:
        names = dict.fromkeys((self.for_phase("prefill"), self.for_phase("decode")))
        return " + ".join(names)


def explain(config: AttentionConfig | None = None, device: str | Platform = "auto", backend: str = "auto",
            prefill_backend: str | None = None, decode_backend: str | None = None,
            packages: Packages | str | None = None) -> Decision:
    """The Decision for one configuration: all candidates in order, each accepted or with its reasons.

    device: "auto", a device of this machine ("cuda:1"), or one with an arch ("cuda:sm90"), which need not be
    here; vendor packages are then assumed present unless `packages` ("installed", "assumed" or a comma list)
    says otherwise. Nothing is bound. Raises ValueError for unknown names, PlatformNotFoundError for a device
    without an arch that is not here; a choice that can't serve is no error here but a Decision with none chosen.
    """
    kind = LayerKind("all", (), config or AttentionConfig())
    choice = Choice(backend, prefill_backend, decode_backend)
    return explain_kinds([kind], device, {"all": choice}, packages)["all"]


def explain_kinds(kinds: Sequence[LayerKind], device: str | Platform = "auto",
                  choices: dict[str, Choice] | Choice | None = None,
                  packages: Packages | str | None = None) -> dict[str, Decision]:
    """Decisions for the kinds of layer of one model, made jointly: kind -> Decision, one page size."""
    platform, here = find_platform(device)
    if packages is None:
        packages = Packages.installed() if here else Packages.assumed()
    elif isinstance(packages, str):
        packages = Packages.parse(packages)
    packages.adapters_assumed = not here
    if choices is None or isinstance(choices, Choice):
        choices = {kind.kind: choices or Choice() for kind in kinds}
    decisions = _decide(kinds, platform, choices, packages)
    # On the real machine what is chosen must import too: a broken package is a reason, and the next one's turn.
    while here and packages.listing == "installed":
        broken = _first_broken(decisions, packages)
        if broken is None:
            break
        packages.broken[broken[0]] = f"package {broken[0].distribution} is installed but broken: {broken[1]}"
        decisions = _decide(kinds, platform, choices, packages)
    return decisions


def find_platform(device: str | Platform) -> tuple[Platform, bool]:
    """The Platform a text means, and whether it is a device of this machine (rather than a named arch)."""
    if isinstance(device, Platform):
        return device, bool(device.name)
    text = env.get("HAL_DEVICE") if device == "auto" else device
    if text != "auto" and Platform.parse(text).arch is not None:
        return Platform.parse(text), False
    return detect(text), True


def _first_broken(decisions: dict[str, Decision], packages: Packages) -> tuple[Package, str] | None:
    for decision in decisions.values():
        for phase in (decision.prefill, decision.decode):
            package = registry.get(phase.chosen).package_for(packages, decision.config) if phase.chosen else None
            if package is None or package.module in sys.modules:
                continue
            extension = getattr(table()[decision.platform.kind], "EXTENSION", None)
            error = Host().import_error(package.module, extension)
            if error:
                return package, error
    return None


def _decide(kinds: Sequence[LayerKind], platform: Platform, choices: dict[str, Choice],
            packages: Packages) -> dict[str, Decision]:
    if not kinds:
        raise ValueError("kinds is empty: pass at least one LayerKind")
    asked = {k.config.page_size for k in kinds if k.config.page_size is not None}
    if len(asked) > 1:
        raise ValueError(f"the kinds of layer of one model share one page size, got {sorted(asked)}")
    sizes = list(asked) or _preferred_sizes(kinds, platform, choices, packages) or [None]
    plans = [(size, {k.kind: _decide_kind(k.config, platform, choices[k.kind], packages, size) for k in kinds})
             for size in sizes]
    # min() keeps the first of equals, so the order of preference breaks ties.
    return min(plans, key=lambda plan: sum(_cost(d) for d in plan[1].values()))[1]


def _preferred_sizes(kinds: Sequence[LayerKind], platform: Platform, choices: dict[str, Choice],
                     packages: Packages) -> list[int | None]:
    sizes: list[int | None] = []
    for kind in kinds:
        for phase in ("decode", "prefill"):
            for backend in _candidates(platform, kind.config, choices[kind.kind].for_phase(phase), phase):
                reasons = backend.unsupported_reasons(kind.config, platform, packages, phase)
                if backend.reads(kind.config, phase) and not reasons:
                    sizes.append(backend.page_sizes.preferred)
    return list(dict.fromkeys(sizes))


def _cost(decision: Decision) -> int:
    """How far down their lists the chosen backends stand; a phase that nothing serves costs more than any rank."""
    cost = 0
    for phase in (decision.prefill, decision.decode):
        names = [c.backend for c in phase.candidates]
        cost += names.index(phase.chosen) if phase.chosen else 1000
    return cost


def _candidates(platform: Platform, config: AttentionConfig, wanted: str, phase: str) -> list[type[AttentionBackend]]:
    if wanted != "auto":
        return [registry.get(name) for name in registry.resolve(wanted)]
    ranked = table()[platform.kind].priority(platform.arch, config.mla is not None, phase)
    return [registry.get(name) for name in dict.fromkeys([*ranked, *registry.names()])]


def _decide_kind(config: AttentionConfig, platform: Platform, choice: Choice, packages: Packages,
                 size: int | None) -> Decision:
    def look(phase: str) -> list[tuple[type[AttentionBackend], list[str]]]:
        return [(b, b.unsupported_reasons(config, platform, packages, phase, size))
                for b in _candidates(platform, config, choice.for_phase(phase), phase)]

    decode, prefill = look("decode"), look("prefill")
    pair: tuple[type[AttentionBackend] | None, type[AttentionBackend] | None] = (None, None)
    fitting = [(d, p) for d, d_reasons in decode if not d_reasons
               for p, p_reasons in prefill if not p_reasons and not _cache_mismatch(p, d, config)]
    if fitting:
        pair = fitting[0]
    else:
        pair = (next((b for b, reasons in decode if not reasons), None), None)
    chosen_decode, chosen_prefill = pair
    if chosen_decode is not None:
        prefill = [(b, reasons + _cache_mismatch(b, chosen_decode, config)) for b, reasons in prefill]

    def phase_decision(phase: str, rows: list[tuple[type[AttentionBackend], list[str]]],
                       chosen: type[AttentionBackend] | None) -> PhaseDecision:
        return PhaseDecision(phase, chosen.name if chosen else None,
                             chosen.target(phase, chosen.package_for(packages, config)) if chosen else None,
                             tuple(Candidate(b.name, tuple(reasons), b.level(platform)) for b, reasons in rows))

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
    if not prefill.reads(config, "prefill") or prefill.kv_layout == decode.kv_layout:
        return []
    return [f"kv_layout {prefill.kv_layout} is not the decode backend's ({decode.name}: {decode.kv_layout})"]
