"""What a call can't beat: stream reads the bytes that it must move, matmul does the operations that it must do.

They take turns with everyone else, so that they see the same machine. No attention comes out of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from benchmarks.cpu import common
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

SIDE = 2048  # of the matrices of a product, where it has operations enough


def stream(config: AttentionConfig, platform: Platform) -> Peer:
    """torch's sum over as many bytes as K, V, q and the result have."""
    import torch

    _refuse("stream", config)

    def attend(x: Tensor) -> Tensor:
        return x.sum()

    def prepare(function: str, call: dict[str, Any]) -> dict[str, Any]:
        return {"x": torch.ones(bytes_of(config, *common.lengths_of(function, call)) // 4)}

    return Peer(attend, attend, prepare=prepare, limit=True,
                note="a limit, no attention: torch's sum over as many bytes as K, V, q and the result have")


def matmul(config: AttentionConfig, platform: Platform) -> Peer:
    """One product of square-ish matrices in the config's dtype with as many operations as the visible pairs need."""
    _refuse("matmul", config)

    def attend(x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def prepare(function: str, call: dict[str, Any]) -> dict[str, Any]:
        return dict(zip("xy", _matrices(*sides(flops_of(config, *common.lengths_of(function, call))), config.dtype)))

    return Peer(attend, attend, prepare=prepare, limit=True,
                note=f"a limit, no attention: one product in {config.dtype} with as many operations as the visible "
                     f"pairs need, of matrices up to {SIDE} wide")


def _refuse(name: str, config: AttentionConfig) -> None:
    common.refuse(name, config, attention_chunk=(None,), sliding_window=(None,), causal=(True,),
                  kv_cache_dtype=("auto", config.dtype))


def bytes_of(config: AttentionConfig, queries: list[int], keys: list[int]) -> int:
    """Of q, the result, and K and V of every key, each once."""
    from hal.bench.limits import BYTES

    mla = config.mla
    if mla is None:
        token, query = config.num_kv_heads * (config.head_dim + config.v_dim), config.head_dim + config.v_dim
    else:
        token, query = mla.head_dim, mla.head_dim + mla.kv_lora_rank
    return BYTES[config.dtype] * (sum(keys) * token + sum(queries) * config.num_heads * query)


def flops_of(config: AttentionConfig, queries: list[int], keys: list[int]) -> int:
    """2 for each multiply-add of both products, over the pairs that a causal mask leaves."""
    mla = config.mla
    width = config.head_dim + config.v_dim if mla is None else mla.head_dim + mla.kv_lora_rank
    pairs = sum(m * n - m * (m - 1) // 2 for m, n in zip(queries, keys))
    return 2 * pairs * width * config.num_heads


def sides(flops: int) -> tuple[int, int]:
    """(rows of the first matrix, side of the second) of a product with about so many flops: a cube up to SIDE."""
    side = max(16, min(SIDE, round((flops / 2) ** (1 / 3) / 16) * 16))
    return max(1, round(flops / 2 / side**2)), side


@lru_cache(maxsize=2)
def _matrices(rows: int, side: int, dtype: str) -> tuple[Tensor, Tensor]:
    import torch

    random = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, side, generator=random).to(getattr(torch, dtype))  # type: ignore[return-value]
                 for n in (rows, side))
