"""Selection: explain() and explain_kinds() put a question together and have hal/rule.py answer it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from hal import env, registry
from hal.backend import AttentionBackend
from hal.config import AttentionConfig, LayerKind
from hal.decision import PHASES, Decision, Hint
from hal.host import Host
from hal.kinds import as_choices, as_kinds
from hal.packages import Package, Packages, numbers
from hal.platform import Platform, PlatformNotFoundError, detect
from hal.platforms import table
from hal.rule import Question, decide

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


def _candidates(platform: Platform, config: AttentionConfig, wanted: str, phase: str) -> list[type[AttentionBackend]]:
    if wanted != "auto":
        return [registry.get(name) for name in registry.resolve(wanted)]
    ranked = table()[platform.kind].priority(platform.arch, config.mla is not None, phase)
    unknown = [name for name in ranked if name not in registry.names()]
    if unknown:
        raise ValueError(f"the priority of platform {platform.kind} names {unknown[0]!r}, which is no usable backend "
                         f"(backends: {', '.join(registry.names())})")
    return [registry.get(name) for name in dict.fromkeys([*ranked, *registry.names()])]
