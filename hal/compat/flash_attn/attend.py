"""What version 2's functions share: its meaning as data, its refusals, its packed tensors and its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from hal.compat.arguments import refuse
from hal.compat.meaning import INF, Version

if TYPE_CHECKING:
    from torch import Tensor

VERSION = Version(2, INF)

# HAL's name of an argument -> the caller's, for messages.
NAMES = {"k_cache": "k", "v_cache": "v"}
CACHE_NAMES = {"page_table": "block_table"}
QKV_NAMES = {"q": "qkv's q", "k_cache": "qkv's k", "v_cache": "qkv's v", "k": "qkv's k", "v": "qkv's v"}
KV_NAMES = {"k_cache": "kv's k", "v_cache": "kv's v", "k": "kv's k", "v": "kv's v"}
PACKED_NAMES = {**QKV_NAMES, "cu_seqlens_q": "cu_seqlens", "cu_seqlens_k": "cu_seqlens", "max_seqlen_q": "max_seqlen",
                "max_seqlen_k": "max_seqlen"}

_ALIBI = {"alibi_slopes": "HAL's functions take no bias (use sdpa or eager attention for ALiBi models)"}


def check(function: str, dropout_p: Any, alibi_slopes: Any) -> None:
    """Raise ValueError, naming it, for what inference through HAL has not."""
    if dropout_p != 0:
        raise ValueError(f"{function}: dropout_p {dropout_p!r} is not supported: HAL is for inference, pass 0.0 "
                         "(model.eval() does where a model asks)")
    if alibi_slopes is not None:
        refuse(function, _ALIBI, alibi_slopes=alibi_slopes)


def unpack(name: str, packed: Any, dims: int, count: int) -> tuple[Any, ...]:
    """q, k and v, or k and v, of a packed tensor, as views. It has them in its dimension before the heads."""
    shape = tuple(getattr(packed, "shape", ()))
    if len(shape) != dims or shape[-3] != count:
        raise ValueError(f"{name}: got {shape or type(packed).__name__}, expected a tensor [.., {count}, H, D] of "
                         f"{dims} dimensions")
    return tuple(packed.unbind(-3))


def returned(result: tuple[Tensor, Tensor | None], everything: Any) -> Any:
    """out, or (out, softmax_lse, S_dmask). S_dmask is about dropout: without it, empty (flash_api.cpp)."""
    out, lse = result
    return (out, lse, out.new_empty(0)) if everything else out


def refuse_backward(function: str) -> NoReturn:
    raise NotImplementedError(f"{function}: HAL's flash_attn is for inference and has no backward pass; train with the "
                              "real package, on a device that it serves")
