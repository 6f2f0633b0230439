"""What is to be timed: settings, and everyone on every shape, bound and with room in memory, before anything runs."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hal.bench import inputs
from hal.bench.contenders import PAGE_SIZE, Contender, Refusal, gather
from hal.bench.shapes import Shape
from hal.bench.timing import Sample
from hal.config import AttentionConfig, LayerKind

if TYPE_CHECKING:
    from hal.platform import Platform


@dataclass(frozen=True)
class Settings:
    """What to time. backends None: all that serve. rounds: samples of each, None: as many as fit into `seconds`
    a cell; rounded up to the same number in each pass."""

    platform: Platform
    kinds: list[LayerKind]
    shapes: list[Shape]
    backends: list[str] | None
    peers: list[str]
    rounds: int | None = None
    seconds: float = 4.0
    seed: int = 0
    cold_bytes: int = 256 << 20
    check: bool = True
    graph: bool = False


@dataclass
class Entry:
    """One contender on one shape. status: "timed", or "wrong" or "failed" with the reason, and then never timed.

    checked: the shape its result was compared with the oracle on; error and bound of the (sequence, head) that came
    nearest to its bound. passes: the samples of each pass.
    """

    contender: Contender
    status: str = "timed"
    reason: str = ""
    checked: Shape | None = None
    error: float | None = None
    bound: float | None = None
    calls: int = 1
    passes: list[list[Sample]] = field(default_factory=list)

    def fail(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    @property
    def cpu_seconds(self) -> float | None:
        """Median CPU seconds of a call, over all threads; None where the clock takes none."""
        used = [sample.cpu_seconds for one in self.passes for sample in one if sample.cpu_seconds is not None]
        return statistics.median(used) if used else None


@dataclass
class Cell:
    """One shape of one kind of layer, and everyone on it."""

    kind: str
    config: AttentionConfig
    shape: Shape
    entries: list[Entry]
    refusals: list[Refusal]
    rounds: int = 0

    @property
    def live(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == "timed"]

    def __str__(self) -> str:
        return f"{'' if self.kind == 'all' else self.kind + ' '}{self.shape.phase} {self.shape}"


def prepare(settings: Settings) -> list[Cell]:
    """Everyone bound, nothing allocated. Raises ValueError for unknown names and for shapes that memory can't hold."""
    cells, bound = [], {}
    for kind in settings.kinds:
        config = kind.config.replace(graph=True) if settings.graph else kind.config
        for shape in settings.shapes:
            key = kind.kind, shape.phase
            if key not in bound:
                bound[key] = gather(settings.backends, settings.peers, config, settings.platform, shape.phase)
            found = bound[key]
            cells.append(Cell(kind.kind, config, shape, [Entry(one) for one in found if isinstance(one, Contender)],
                              [one for one in found if isinstance(one, Refusal)]))
    for cell in cells:
        _fits(cell, settings)
    return cells


def _fits(cell: Cell, settings: Settings) -> None:
    """Twice the inputs (a peer may lay them out anew) and the random bank must fit into memory."""
    size = max((entry.contender.page_size for entry in cell.entries), default=PAGE_SIZE)
    copies = inputs.copies_of(cell.config, cell.shape, size, settings.cold_bytes)
    layouts = len({entry.contender.reads for entry in cell.entries})
    need = copies * sum(inputs.bytes_of(cell.config, cell.shape, size)) * (layouts + 1)
    most = _memory(settings.platform)
    if need > most:
        raise ValueError(f"{cell} needs about {need / 2**30:.1f} GiB, but {settings.platform.torch_device} has "
                         f"{most / 2**30:.1f} GiB: give a smaller --batch or --seqlen")


def _memory(platform: Platform) -> int:
    """Bytes that could be had: all of a host's (its file cache gives way), what is free of an accelerator's."""
    import torch

    if platform.kind == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free: int = torch.get_device_module(platform.torch_device).mem_get_info(platform.torch_device)[0]
    return free
