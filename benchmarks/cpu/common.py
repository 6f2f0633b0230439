"""What the peers share: refusals that name both sides, and what a call of hal.bench holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig


def refuse(name: str, config: AttentionConfig, **served: tuple[Any, ...]) -> None:
    """Raise ValueError for the first field of the config that has none of the values served."""
    for field, values in served.items():
        value = getattr(config, field)
        if value not in values:
            raise ValueError(f"{field} {value} is not supported ({name}: {', '.join(map(str, values))})")


def lengths_of(function: str, call: dict[str, Any]) -> tuple[list[int], list[int]]:
    """(query tokens, keys) of each sequence of a call that hal.bench.inputs made."""
    cu = call.get("cu_seqlens_q")
    if cu is None:
        queries = [call["q"].shape[1]] * call["q"].shape[0]
    else:
        queries = cu.diff().tolist()
    if function == "flash_attn_varlen_func":
        return queries, call["cu_seqlens_k"].diff().tolist()
    return queries, call["cache_seqlens"].tolist()


def packed(x: Tensor) -> Tensor:
    """q as [total_q, Hq, D]."""
    return x.reshape(-1, *x.shape[-2:])


def scale_of(config: AttentionConfig, call: dict[str, Any]) -> float:
    return float(call.get("softmax_scale") or config.scale)
