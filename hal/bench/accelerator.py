"""Samples on an accelerator: device events around each call, the L2 cache written over between calls, graphs.

Not run on hardware so far: its calls were exercised against a stand-in for torch's device module alone (see
tests/test_bench.py). torch.cuda, torch.npu and torch.musa all have Event, synchronize and current_stream; graphs are
torch.cuda.CUDAGraph, torch.npu.NPUGraph and torch.musa.MUSAGraph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hal.bench.timing import Sample, Thunk

FLUSH_BYTES = 256 << 20  # larger than any L2 cache so far


class DeviceClock:
    what = "device time of a call, L2 cold"

    def __init__(self, device: str) -> None:
        import torch

        self.module: Any = torch.get_device_module(device)
        self.flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def sample(self, thunks: Sequence[Thunk], at: int, calls: int) -> Sample:
        event = partial(self.module.Event, enable_timing=True)
        pairs = [(event(), event()) for _ in range(calls)]
        for i, (begin, end) in enumerate(pairs):
            # Also keeps the device busy while the host launches, so that what is timed is the device's work.
            self.flush.zero_()
            begin.record()
            thunks[(at + i) % len(thunks)]()
            end.record()
        self.module.synchronize()
        return Sample(sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3 / calls, None)


def captured(device: str, thunks: Sequence[Thunk]) -> list[Thunk]:
    """Each call as the replay of a graph of its own. Raises RuntimeError where the device's torch has no graphs."""
    import torch

    module: Any = torch.get_device_module(device)
    kinds = ("CUDAGraph", "NPUGraph", "MUSAGraph")
    make = next((getattr(module, kind) for kind in kinds if hasattr(module, kind)), None)
    if make is None or not hasattr(module, "graph"):
        raise RuntimeError(f"--graph: {module.__name__} has none of {', '.join(kinds)}: leave --graph out")
    module.synchronize()  # the inputs, made on another stream, are there
    stream = module.Stream()
    replays: list[Thunk] = []
    for call in thunks:
        # Lazy initialisation must not fall into the capture, nor plans, which belong to the stream they were made on.
        with module.stream(stream):
            call()
        module.synchronize()
        graph = make()
        with module.graph(graph, stream=stream):
            kept = call()
        replays.append(partial(_replay, graph, kept))
    return replays


def _replay(graph: Any, kept: Any) -> Any:
    """kept: the captured result, whose memory the graph writes to."""
    graph.replay()
    return kept
