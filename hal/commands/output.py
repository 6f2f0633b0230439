"""What several commands say, or ask before they begin."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hal.cli_args import AttentionArgs
from hal.config import LayerKind
from hal.decision import Decision, NoBackendError, PhaseDecision
from hal.platform import Platform
from hal.selection import explain_kinds


def decided(attention: AttentionArgs, kinds: Sequence[LayerKind], platform: Platform) -> dict[str, Decision]:
    """Kind of layer -> what serves it, with the backends that the command line asked for. kinds: as attention.apply()
    gives them. Raises NoBackendError with the whole table."""
    choices = {kind.kind: attention.choice(kind.kind) for kind in kinds}
    decisions = explain_kinds(kinds, platform, choices)
    if not all(decision.complete for decision in decisions.values()):
        raise NoBackendError(decisions, " + ".join(dict.fromkeys(str(choice) for choice in choices.values())))
    return decisions


def announcement(decisions: Mapping[str, Decision]) -> list[str]:
    """What will serve a model, as lines: for each kind of layer what was chosen, why, and the functions it ends in."""
    lines = []
    for kind, decision in decisions.items():
        lines.append(f"[{kind}] {decision.summary()}")
        lines += [f"[{kind}] {phase.phase} runs {phase.target} (verification level: {level_of(phase)})"
                  for phase in (decision.prefill, decision.decode)]
    return lines


def level_of(phase: PhaseDecision) -> str:
    """The verification level of what was chosen."""
    return next(c.level for c in phase.candidates if c.backend == phase.chosen)


def check_target(flag: str, file: str) -> None:
    """What a command writes at its end must be writable before it begins.

    Raises ValueError where the file that `flag` names can't be written: a folder, one that is not there ...
    """
    path = Path(file)
    folder = path.absolute().parent
    if path.is_dir():
        raise ValueError(f"{flag} {file}: is a folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{flag} {file}: the folder {folder} is not there or can't be written to")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{flag} {file}: is there and can't be written to")
