"""What this device can do, measured: bytes a second of a streaming read or copy, flops a second of a matrix product."""

from __future__ import annotations

from typing import Any

from hal.bench.timing import Clock, Thunk, calls_for

LARGEST = 8192  # rows of the largest product tried
LONG_ENOUGH = 0.005  # seconds: a product that takes this long is large enough to reach the device's rate
ROUNDS = 5


def bandwidth(clock: Clock, device: str, size: int) -> dict[str, float]:
    """Bytes a second over `size` bytes: "read" (a sum) and "copy" (which moves each byte twice); best of the rounds."""
    import torch

    x = torch.ones(max(size, 1 << 20) // 4, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    return {"read": x.nbytes / _best(clock, x.sum), "copy": 2 * x.nbytes / _best(clock, lambda: y.copy_(x))}


def matmul(clock: Clock, device: str, dtype: str) -> float:
    """Flops a second of n x n products, n doubled until one takes long enough; best of the rounds."""
    import torch

    n = 256
    while True:
        x, y = (torch.randn(n, n).to(device, getattr(torch, dtype)) for _ in range(2))
        seconds = _best(clock, lambda: x @ y)  # noqa: B023 - used in this turn only
        if seconds >= LONG_ENOUGH or n >= LARGEST:
            return 2 * n**3 / seconds
        n *= 2


def _best(clock: Clock, call: Thunk) -> float:
    call()
    calls = calls_for(clock.sample([call], 0, 1).seconds)
    return min(clock.sample([call], 0, calls).seconds for _ in range(ROUNDS))


def best(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of several measurements: a limit is what the device can do, not what it did while it was busy."""
    return {"bytes_per_second": max(rate for one in passes for rate in one["bandwidth"].values()),
            "flops_per_second": {dtype: max(one["matmul"][dtype] for one in passes) for dtype in passes[0]["matmul"]},
            "measured": passes}
