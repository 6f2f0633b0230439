"""What the two peers in plain torch share: the contract's functions as a loop over sequences, pages, masks."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hal import contract
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

_SERVED = ("q", "k_cache", "v_cache", "k", "v", "qv", "page_table", "cache_seqlens", "cu_seqlens_q", "cu_seqlens_k",
           "max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_size", "attention_chunk", "softcap",
           "sinks", "q_descale", "k_descale", "v_descale")


def functions(name: str, config: AttentionConfig, sequence: Any, unserved: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """The contract's two functions as a loop over sequences; `sequence` attends to one, `unserved` are refused."""
    binders = contract.binder(contract.WITH_KVCACHE), contract.binder(contract.VARLEN)

    def with_kvcache(*args: Any, **kwargs: Any) -> Any:
        import torch

        a = binders[0](args, kwargs)
        refuse(name, a, contract.WITH_KVCACHE, ("k", "v", *unserved))
        q, table = a["q"], a["page_table"]
        packed, batch = a["cu_seqlens_q"] is not None, q.shape[0]
        flat_q = q.reshape(-1, *q.shape[-2:])
        flat_qv = None if a["qv"] is None else a["qv"].reshape(-1, *a["qv"].shape[-2:])
        cu = a["cu_seqlens_q"].tolist() if packed else [b * q.shape[1] for b in range(batch + 1)]
        lengths = lengths_of(a, batch if not packed else len(cu) - 1)
        out = torch.empty(*flat_q.shape[:2], a["v_cache"].shape[-1], device=q.device, dtype=result_dtype(q))
        for b, (first, last) in enumerate(pairwise(cu)):
            k, v = (read(a[cache], table, b, lengths[b]) for cache in ("k_cache", "v_cache"))
            qv = None if flat_qv is None else flat_qv[first:last]
            out[first:last] = sequence(config, a, b, flat_q[first:last], qv, k, v)
        return out if packed else out.view(*q.shape[:-1], out.shape[-1])

    def varlen(*args: Any, **kwargs: Any) -> Any:
        import torch

        a = binders[1](args, kwargs)
        refuse(name, a, contract.VARLEN, ("page_table", *unserved))
        q, k, v = a["q"], a["k"], a["v"]
        cu_q, cu_k = a["cu_seqlens_q"].tolist(), a["cu_seqlens_k"].tolist()
        out = torch.empty(*q.shape[:2], v.shape[-1], device=q.device, dtype=result_dtype(q))
        for b, (first, last) in enumerate(pairwise(cu_q)):
            qv = None if a["qv"] is None else a["qv"][first:last]
            keys = slice(cu_k[b], cu_k[b + 1])
            out[first:last] = sequence(config, a, b, q[first:last], qv, k[keys], v[keys])
        return out

    return with_kvcache, varlen


def refuse(name: str, a: dict[str, Any], signature: Any, unserved: tuple[str, ...]) -> None:
    for argument, parameter in signature.parameters.items():
        if argument in _SERVED and argument not in unserved:
            continue
        if a[argument] is not None and a[argument] != parameter.default:
            raise ValueError(f"{argument}: got {_shown(a[argument])}, which the peer {name} does not honour: "
                             f"leave it at {parameter.default!r}")


def _shown(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)


def result_dtype(q: Tensor) -> Any:
    """dtype of the result: q's, or bfloat16 for fp8 queries."""
    import torch

    return q.dtype if q.dtype.itemsize > 1 else torch.bfloat16


def lengths_of(a: dict[str, Any], batch: int) -> list[int]:
    """cache_seqlens on the host; None is the whole cache, a number is for all sequences."""
    seqlens, table = a["cache_seqlens"], a["page_table"]
    if seqlens is None:
        seqlens = a["k_cache"].shape[1] * (1 if table is None else table.shape[1])
    return [seqlens] * batch if isinstance(seqlens, int) else list(seqlens.tolist())


def read(cache: Tensor, table: Tensor | None, b: int, length: int) -> Tensor:
    """The tokens of sequence b, [length, Hkv, D]; gathered where there are pages."""
    import torch

    if table is None:
        return cache[b, :length]
    ids = table[b, : -(-length // cache.shape[1])].long()
    if cache.dtype.itemsize == 1:  # fp8 has no gather on some devices; bytes do
        return cache.view(torch.uint8)[ids].view(cache.dtype).flatten(0, 1)[:length]
    return cache[ids].flatten(0, 1)[:length]


def mask_of(a: dict[str, Any], len_q: int, len_k: int, device: Any) -> Tensor | None:
    """bool [len_q, len_k] by the contract's rules; None where every query sees every key."""
    import torch

    left, right = a["window_size"]
    right = 0 if a["causal"] else right
    if (right < 0 or (right == 0 and len_q == 1)) and (left < 0 or left >= len_k) and not a["attention_chunk"]:
        return None
    p = torch.arange(len_k - len_q, len_k, device=device)[:, None]
    key = torch.arange(len_k, device=device)
    seen = torch.ones(len_q, len_k, dtype=torch.bool, device=device)
    if right >= 0:
        seen &= key - p <= right
    if left >= 0:
        seen &= p - key <= left
    if a["attention_chunk"]:
        seen &= key // a["attention_chunk"] == torch.div(p, a["attention_chunk"], rounding_mode="floor")
    return seen


def scale_of(config: AttentionConfig, a: dict[str, Any]) -> float:
    if a["softmax_scale"] is not None:
        return float(a["softmax_scale"])
    return config.scale if config.mla is not None or config.softmax_scale is not None else a["q"].shape[-1] ** -0.5


def plain_causal(a: dict[str, Any], len_q: int, len_k: int) -> bool:
    return bool(a["causal"] and len_q == len_k > 1 and a["window_size"][0] < 0 and not a["attention_chunk"])
