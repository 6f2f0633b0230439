"""Hints: which single change would get a better-ranked backend.

Nothing is read out of the reasons: selection is asked again with one thing changed, and a hint says what it
answers then. A change counts only where some phase gets a better-ranked backend and no phase of any kind of
layer a worse one. Only what the operator decides is changed, never the model's heads, head dims, window,
softcap or sinks. Nothing is imported to find out: that a package is there is taken to mean that it works.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hal.backend import AttentionBackend
from hal.config import AttentionConfig, LayerKind
from hal.decision import PHASES, Decision, Hint
from hal.packages import Package, Packages
from hal.rule import Question, arranged, decide, reasons_of

MOST = 5  # hints of one decision; the best-ranked come first
PACKAGE = "package"  # what Hint.setting says where the change is a package to install


@dataclass(frozen=True)
class Setting:
    """A field of AttentionConfig that the operator decides.

    values: what a backend might serve instead, the likeliest first. supports: what to say it supports; without
    it, those of `values` that it accepts.
    """

    values: Callable[[type[AttentionBackend]], Iterable[Any]]
    supports: Callable[[type[AttentionBackend]], str] | None = None


SETTINGS = {
    "page_size": Setting(lambda b: (b.page_sizes.preferred, *b.page_sizes.only), lambda b: str(b.page_sizes)),
    "graph": Setting(lambda b: (False,), lambda b: f"graph level {b.graph_level}"),
    "max_decode_query_len": Setting(lambda b: (b.max_decode_query_len or 1,),
                                    lambda b: f"up to {b.max_decode_query_len or 1}"),
    "return_softmax_lse": Setting(lambda b: (False,)),
    "deterministic": Setting(lambda b: (False,)),
    "context_parallel_size": Setting(lambda b: (1,)),
    "kv_cache_dtype": Setting(lambda b: (*b.kv_cache_dtypes, "auto")),
    "dtype": Setting(lambda b: b.dtypes),
}


@dataclass(frozen=True)
class Change:
    """One thing changed: a setting to another value, or (PACKAGE) a package that is there."""

    setting: str
    needed: Any


def find(question: Question, decisions: dict[str, Decision], kind: str) -> tuple[Hint, ...]:
    """The hints for one kind's decision, of those that answered the question: best-ranked backends first.

    A setting gives one hint: the change of it that gets the best backends, and every backend that it excluded.
    """
    question, decision = arranged(question), decisions[kind]
    freed = _freed(question, decision, kind)
    best: dict[str | tuple[tuple[str, str], ...], tuple[int, Hint]] = {}
    for change in dict.fromkeys(change for _, change in freed):
        after = decide(_changed(question, change, decision.config))
        if any(_moved(decisions[name], after[name], worse=True) for name in decisions):
            continue
        serves = _moved(decision, after[kind])
        if not serves:
            continue
        rank = sum(phase.rank(phase.chosen) for phase in (after[kind].prefill, after[kind].decode))
        # Of two packages that serve the same, the backend's order decides; of two page sizes, the result.
        key = tuple(serves.items()) if change.setting == PACKAGE else change.setting
        if key not in best or rank < best[key][0]:
            best[key] = rank, _hint(question, decision, change, serves, freed)
    return tuple(hint for _, hint in sorted(best.values(), key=lambda pair: pair[0])[:MOST])


def _moved(before: Decision, after: Decision, worse: bool = False) -> dict[str, str]:
    """phase -> the backend chosen after, where that one stands higher in the order than before (or lower)."""
    moved = {}
    for old, new in ((before.prefill, after.prefill), (before.decode, after.decode)):
        step = new.rank(new.chosen) - old.rank(old.chosen)
        if step > 0 if worse else step < 0:
            moved[old.phase] = str(new.chosen)
    return moved


def _freed(question: Question, decision: Decision, kind: str) -> list[tuple[type[AttentionBackend], Change]]:
    """The backends before the chosen one, in order of rank, each with the changes that alone make it acceptable."""
    freed = []
    alone = dataclasses.replace(question, kinds=(LayerKind(kind, (), decision.config),))
    for phase in (decision.decode, decision.prefill):
        for backend in question.candidates[kind, phase.phase][:phase.rank(phase.chosen)]:
            # No reason of its own: the page size of another kind or the other phase's cache excluded it.
            if reasons_of(backend, decision.config, question, phase.phase, None):
                for change in _possible(question.packages, decision.config, backend):
                    asked = _changed(alone, change, decision.config)
                    if not reasons_of(backend, asked.kinds[0].config, asked, phase.phase, None):
                        freed.append((backend, change))
    return freed


def _possible(packages: Packages, config: AttentionConfig, backend: type[AttentionBackend]) -> Iterator[Change]:
    """What might make a backend acceptable: its missing packages, and the values it serves of each setting."""
    yield from (Change(PACKAGE, package) for package in backend.packages if packages.missing(package))
    for name, setting in SETTINGS.items():
        for value in dict.fromkeys(setting.values(backend)):
            if value != getattr(config, name) and _valid(config, name, value):
                yield Change(name, value)


def _valid(config: AttentionConfig, name: str, value: Any) -> bool:
    try:
        config.replace(**{name: value})
    except ValueError:  # fp8_ds_mla exists for MLA alone
        return False
    return True


def _changed(question: Question, change: Change, config: AttentionConfig) -> Question:
    """The question with one thing changed: a setting, for the kinds of layer with `config`'s value that can take it."""
    if change.setting == PACKAGE:
        return dataclasses.replace(question, packages=_with(question.packages, change.needed))
    now = getattr(config, change.setting)
    kinds = tuple(LayerKind(k.kind, k.layers, k.config.replace(**{change.setting: change.needed}))
                  if getattr(k.config, change.setting) == now and _valid(k.config, change.setting, change.needed) else k
                  for k in question.kinds)
    return dataclasses.replace(question, kinds=kinds)


def _with(packages: Packages, package: Package) -> Packages:
    """These packages and one distribution more, new enough and not broken."""
    def missing(other: Package) -> str | None:
        return None if other.distribution == package.distribution else packages.missing(other)

    return dataclasses.replace(packages, _missing=missing, broken={})


def _hint(question: Question, decision: Decision, change: Change, serves: dict[str, str],
          freed: list[tuple[type[AttentionBackend], Change]]) -> Hint:
    phases = {backend: " and ".join(p for p in PHASES if serves.get(p) == backend) for backend in serves.values()}
    then = "would serve " + " and ".join(f"{phase} with {backend}" for backend, phase in phases.items())
    if change.setting == PACKAGE:
        package: Package = change.needed
        least = f" {package.minimum} or newer" if package.minimum else ""
        verb = "reinstalling" if package in question.packages.broken else "installing"
        return Hint(PACKAGE, None, package.distribution, serves,
                    f"{verb} {package.distribution}{least} {then}: {package.install}")
    now, supports = getattr(decision.config, change.setting), SETTINGS[change.setting].supports
    values: dict[type[AttentionBackend], dict[str, None]] = {}  # an ordered set: both phases may free the same
    for backend, other in freed:
        if other.setting == change.setting:
            values.setdefault(backend, {})[str(other.needed)] = None
    excluded = [f"{b.name} ({supports(b) if supports else ', '.join(seen)})" for b, seen in values.items()]
    return Hint(change.setting, now, change.needed, serves, f"{change.setting} {now} excluded {', '.join(excluded)}; "
                f"{change.setting} {change.needed} {then}")
