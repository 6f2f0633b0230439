"""Decisions as data: every candidate in order, accepted or with its reasons; printed and JSON alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hal.config import AttentionConfig
from hal.platform import Platform
from hal.text import table

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Candidate:
    """One backend that was looked at for one phase. `reasons` is empty when it was accepted.

    elsewhere: it is of other platforms only; tables name it and leave its reasons to show_all.
    """

    backend: str
    reasons: tuple[str, ...]
    level: str
    elsewhere: bool = False

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "accepted": self.accepted, "reasons": list(self.reasons), "level": self.level}


@dataclass(frozen=True)
class PhaseDecision:
    """The answer for one phase: the backend chosen (None: none can serve) and the vendor function it ends in.

    asked: "auto", or the name that left only these candidates.
    """

    phase: str
    chosen: str | None
    target: str | None
    candidates: tuple[Candidate, ...]
    asked: str = "auto"

    def rank(self, backend: str | None) -> int:
        """Position among the candidates, 0 is the best; after them all for None."""
        return len(self.candidates) if backend is None else [c.backend for c in self.candidates].index(backend)

    def to_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "target": self.target, "candidates": [c.to_dict() for c in self.candidates]}


@dataclass(frozen=True)
class Hint:
    """One change that alone gets better-ranked backends: found by asking selection again with it (hal.hints).

    setting: a field of AttentionConfig, or "package". value: what it is now. needed: what it would have to be
    (for a package the distribution to install). serves: phase -> the backend that would be chosen then.
    """

    setting: str
    value: Any
    needed: Any
    serves: Mapping[str, str]
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"setting": self.setting, "value": self.value, "needed": self.needed, "serves": dict(self.serves),
                "text": self.text}


@dataclass(frozen=True)
class Decision:
    """What was decided for one configuration on one platform, and why.

    `.chosen`, `.target` and `.candidates` are the decode phase's; `.prefill` and `.decode` have both.
    page_size is in tokens; q_dtype is the dtype that the caller's q must have. `.hints` are worked out when
    they are first read, so that a decision that nobody prints does not pay for them.
    """

    platform: Platform
    config: AttentionConfig
    prefill: PhaseDecision
    decode: PhaseDecision
    page_size: int | None
    q_dtype: str
    kv_layout: str | None
    packages: str = "installed"
    needed: tuple[str, ...] = ()
    find_hints: Callable[[], tuple[Hint, ...]] = field(default=tuple, repr=False, compare=False)

    @cached_property
    def hints(self) -> tuple[Hint, ...]:
        """What single change of a setting, or which package, would get better-ranked backends; best first."""
        return self.find_hints()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hints": self.hints, "find_hints": tuple}  # the question itself can't be pickled

    @property
    def chosen(self) -> str | None:
        return self.decode.chosen

    @property
    def target(self) -> str | None:
        return self.decode.target

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.decode.candidates

    @property
    def complete(self) -> bool:
        """Both phases have a backend."""
        return self.prefill.chosen is not None and self.decode.chosen is not None

    def to_dict(self) -> dict[str, Any]:
        return {"platform": self.platform.to_dict(), "config": self.config.to_dict(), "page_size": self.page_size,
                "q_dtype": self.q_dtype, "kv_layout": self.kv_layout, "packages": self.packages,
                "needed": list(self.needed), "hints": [hint.to_dict() for hint in self.hints],
                "prefill": self.prefill.to_dict(), "decode": self.decode.to_dict()}

    def summary(self) -> str:
        """One line: what was chosen, what was passed over, and why."""
        parts = []
        for phase in (self.prefill, self.decode):
            passed = [c for c in phase.candidates if not c.accepted]
            before = [c for c in passed if phase.rank(c.backend) < phase.rank(phase.chosen)]
            why = "; ".join(f"not {c.backend}: {c.reasons[0]}" for c in before)
            parts.append(f"{phase.phase}: {phase.chosen or 'none'}" + (f" ({why})" if why else ""))
        text = ", ".join(parts)
        if parts[0].partition(": ")[2] == parts[1].partition(": ")[2]:
            text = parts[1].partition(": ")[2]
        return f"attention on {self.platform}: {text}; page_size {self.page_size}"

    def __str__(self) -> str:
        return self.text()

    def text(self, show_all: bool = False) -> str:
        """The decision as tables of 100 columns: the chosen backend, the other accepted ones, the refused ones.

        Where the choice was automatic, a refused backend shows its first reason, +N says that N more follow, and
        backends of other platforms are only named; show_all leaves nothing out.
        """
        both, lines, hidden = (self.prefill, self.decode), [], []
        for phases in ((both,) if self._one_table(show_all) else ((self.prefill,), (self.decode,))):
            full = show_all or phases[0].asked != "auto"
            targets = " / ".join(dict.fromkeys(str(phase.target) for phase in phases))
            head = f"{' and '.join(phase.phase for phase in phases)}: {phases[0].chosen or 'no backend can serve this'}"
            lines.append(table((head, f"({targets})" if phases[0].chosen else ""), []))
            columns = ("level", "reasons") if full else ("level, or why not",)
            lines.append(table(("", "rank", "backend", *columns), self._rows(phases, full), indent=2))
            hidden += [] if full else [c.backend for phase in phases for c in phase.candidates if c.elsewhere]
        if hidden:
            names = ", ".join(dict.fromkeys(hidden))
            lines.append(table(("other platforms:", f"{names} (--all shows them)"), [], indent=2))
        if re.search(r" \+[0-9]+$", "\n".join(lines), re.M):
            lines.append("  +N: as many more reasons (--all shows them)")
        if self.needed:
            lines.append(table(("needs:", ", ".join(self.needed)), []))
        return "\n".join([*lines, *(table(("hint:", hint.text), []) for hint in self.hints)])

    def _one_table(self, show_all: bool) -> bool:
        """Both phases have one answer; where nothing may be left out, with the same reasons too."""
        prefill, decode = self.prefill, self.decode
        return (prefill.chosen, prefill.asked) == (decode.chosen, decode.asked) and (
            prefill.candidates == decode.candidates if show_all or prefill.asked != "auto"
            else [c.backend for c in prefill.candidates] == [c.backend for c in decode.candidates])

    def _rows(self, phases: tuple[PhaseDecision, ...], full: bool) -> list[tuple[str, ...]]:
        """The candidates as rows: chosen, accepted, refused, each in order of rank."""
        rows: list[tuple[str, ...]] = []
        for rank, seen in enumerate(zip(*(phase.candidates for phase in phases)), 1):
            name, serves = seen[0].backend, [phase.phase for phase, c in zip(phases, seen) if c.accepted]
            mark = "chosen" if name == phases[0].chosen else "accepted" if serves else "no"
            if full:
                rows.append((mark, str(rank), name, seen[0].level, "; ".join(seen[0].reasons) or "-"))
            elif not seen[0].elsewhere:
                rows.append((mark, str(rank), name, self._shortened(seen, serves)))
        return sorted(rows, key=lambda row: ("chosen", "accepted", "no").index(row[0]))

    def _shortened(self, seen: tuple[Candidate, ...], serves: list[str]) -> str:
        """One backend's row: its level, or its first reason (one that holds for all phases, if any) and +N."""
        reasons = dict.fromkeys(reason for c in seen for reason in c.reasons)
        if serves:
            return seen[0].level + (f", {serves[0]} only +{len(reasons)}" if reasons else "")
        first = min(reasons, key=lambda reason: sum(reason not in c.reasons for c in seen))
        # The row names the backend, and the head of the whole answer has MLA's widths.
        first = first.replace(f"({seen[0].backend}: ", "(")
        first = first.replace(f"mla {self.config.mla} ", "mla ")
        return first + (f" +{len(reasons) - 1}" if len(reasons) > 1 else "")


class NoBackendError(RuntimeError):
    """No backend, or not the one asked for, can serve. The text is the whole table of reasons."""

    def __init__(self, decisions: dict[str, Decision], asked: str) -> None:
        self.decisions = decisions
        failing = {kind: d for kind, d in decisions.items() if not d.complete} or decisions
        first = next(iter(failing.values()))
        head = f"no attention backend can serve this on {first.platform}" if asked == "auto" else \
            f"attention backend {asked} can't serve this on {first.platform}"
        body = "\n".join((f"[{kind}]\n" if len(decisions) > 1 else "") + decision.text(show_all=True)
                         for kind, decision in failing.items())
        super().__init__(f"{head}:\n{body}")
