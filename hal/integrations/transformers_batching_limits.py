"""How long a request of a batched model may be, and how much memory its cache may take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hal.config import LayerKind
from hal.platform import Platform

LESS = "lower num_pages, or give a lower cache_bytes"


def longest(config: Any) -> tuple[int, str]:
    """Most tokens of a request for the model's sake, and why.

    Rotary embeddings that change with the longest sequence of a batch would make one request's answer depend on the
    others: such a model is kept to the lengths where they do not.
    """
    longest = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        first = int(rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None) or longest)
        return min(first, longest), f"the model's longrope changes for a whole batch beyond {first} tokens"
    return longest, f"the model's max_position_embeddings is {longest}"


def budget(platform: Platform) -> int:
    """Bytes for the cache where nobody said: see BatchedModel."""
    if platform.kind == "cpu":
        return min(4 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
    return int(free_bytes(platform) * 0.8)


def page_bytes(kinds: Sequence[LayerKind], page_size: int) -> int:
    """Bytes of one page: K and V of page_size tokens in every layer, in the kinds' dtype."""
    import torch

    return sum(len(kind.layers) * page_size * 2 * kind.config.num_kv_heads * kind.config.head_dim
               * int(getattr(torch, kind.config.dtype).itemsize) for kind in kinds)


def free_bytes(platform: Platform) -> int:
    """Memory that the device has to give; on a CPU without Linux's account of it, all that the machine has."""
    import torch

    if platform.kind != "cpu":
        device = torch.device(platform.torch_device)
        return int(torch.get_device_module(device).mem_get_info(device)[0])
    account = Path("/proc/meminfo")
    for line in account.read_text().splitlines() if account.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def must_fit(asked: str, size: int, platform: Platform) -> None:
    """Raise MemoryError for a cache that is larger than what is free. A CPU's system would hand it out all the same,
    and end the process when it is filled."""
    free = free_bytes(platform)
    if size > free:
        raise MemoryError(f"{asked} ({size / 2**30:.1f} GiB) does not fit: {platform.torch_device} has "
                          f"{free / 2**30:.1f} GiB free; {LESS}")
