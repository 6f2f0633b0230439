"""Decisions as data: every candidate in order, accepted or with its reasons; printed and JSON alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hal.config import AttentionConfig
from hal.platform import Platform
from hal.text import table

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Candidate:
    """One backend that was looked at for one phase. `reasons` is empty when it was accepted."""

    backend: str
    reasons: tuple[str, ...]
    level: str

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "accepted": self.accepted, "reasons": list(self.reasons), "level": self.level}


@dataclass(frozen=True)
class PhaseDecision:
    """The answer for one phase: the backend chosen (None: none can serve) and the vendor function it ends in."""

    phase: str
    chosen: str | None
    target: str | None
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "target": self.target, "candidates": [c.to_dict() for c in self.candidates]}


@dataclass(frozen=True)
class Decision:
    """What was decided for one configuration on one platform, and why.

    `.chosen`, `.target` and `.candidates` are the decode phase's; `.prefill` and `.decode` have both.
    page_size is in tokens; q_dtype is the dtype that the caller's q must have.
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
                "needed": list(self.needed),
                "prefill": self.prefill.to_dict(), "decode": self.decode.to_dict()}

    def summary(self) -> str:
        """One line: what was chosen, what was passed over, and why."""
        parts = []
        for phase in (self.prefill, self.decode):
            passed = [c for c in phase.candidates if not c.accepted]
            before = [c for c in passed if phase.chosen is None or _rank(phase, c.backend) < _rank(phase, phase.chosen)]
            why = "; ".join(f"not {c.backend}: {c.reasons[0]}" for c in before)
            parts.append(f"{phase.phase}: {phase.chosen or 'none'}" + (f" ({why})" if why else ""))
        text = ", ".join(parts)
        if parts[0].partition(": ")[2] == parts[1].partition(": ")[2]:
            text = parts[1].partition(": ")[2]
        return f"attention on {self.platform}: {text}; page_size {self.page_size}"

    def __str__(self) -> str:
        lines = []
        same = (self.prefill.chosen, self.prefill.candidates) == (self.decode.chosen, self.decode.candidates)
        for phase in (self.decode,) if same else (self.prefill, self.decode):
            label = "prefill and decode" if same else phase.phase
            targets = " / ".join(dict.fromkeys(p.target or "none" for p in
                                               ((self.prefill, self.decode) if same else (phase,))))
            head = f"{label}: {phase.chosen or 'no backend can serve this'}"
            lines.append(table((head, f"({targets})" if phase.chosen else ""), []))
            rows = []
            for c in phase.candidates:
                mark = "chosen" if c.backend == phase.chosen else ("accepted" if c.accepted else "no")
                rows.append((mark, c.backend, c.level, "; ".join(c.reasons) or "-"))
            lines.append(table(("", "backend", "level", "reasons"), rows, indent=2))
        if self.needed:
            lines.append(f"needs: {', '.join(self.needed)}")
        return "\n".join(lines)


def _rank(phase: PhaseDecision, backend: str) -> int:
    return [c.backend for c in phase.candidates].index(backend)


class NoBackendError(RuntimeError):
    """No backend, or not the one asked for, can serve. The text is the whole table of reasons."""

    def __init__(self, decisions: dict[str, Decision], asked: str) -> None:
        self.decisions = decisions
        failing = {kind: d for kind, d in decisions.items() if not d.complete} or decisions
        first = next(iter(failing.values()))
        head = f"no attention backend can serve this on {first.platform}" if asked == "auto" else \
            f"attention backend {asked} can't serve this on {first.platform}"
        body = "\n".join((f"[{kind}]\n" if len(decisions) > 1 else "") + str(decision)
                         for kind, decision in failing.items())
        super().__init__(f"{head}:\n{body}")
