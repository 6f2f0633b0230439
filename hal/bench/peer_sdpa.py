"""The peer sdpa: the most that code which gathers pages for torch's SDPA can reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal import contract
from hal.bench.peer_torch import functions, lengths_of, mask_of, plain_causal, read, refuse, scale_of
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

# prepare() makes one tensor of MLA's two parts; for the others SDPA has no argument.
_NOT_SDPA = ("qv", "softcap", "sinks", "q_descale", "k_descale", "v_descale")


def sdpa(config: AttentionConfig, platform: Platform) -> Peer:
    """F.scaled_dot_product_attention on K and V that lie contiguous and padded before the clock starts."""
    for field in ("softcap", "sinks"):
        if getattr(config, field):
            raise ValueError(f"{field} {getattr(config, field)} is not supported (sdpa: "
                             "F.scaled_dot_product_attention has no such argument)")
    if config.stored_dtype != config.dtype:
        raise ValueError(f"kv_cache_dtype {config.stored_dtype} is not supported (sdpa with dtype {config.dtype}: "
                         f"auto, {config.dtype})")
    with_kvcache, varlen = functions("sdpa", config, _sequence, _NOT_SDPA)

    def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Any:
        a = contract.binder(contract.WITH_KVCACHE)(args, kwargs)
        if a["page_table"] is not None:
            raise ValueError("page_table: got a tensor, expected None: sdpa reads no pages, prepare() lays K and V out")
        if a["cu_seqlens_q"] is not None:
            return with_kvcache(**kwargs)
        return _batched(a, config)

    return Peer(flash_attn_with_kvcache, varlen, prepare=_contiguous,
                note="reads no pages: K and V lie contiguous and padded before the clock starts, so an upper bound of "
                     "what code that gathers pages can reach; masks are made in the call. One call where all "
                     "sequences have equally many queries, else one a sequence; the GQA group is folded into the query "
                     "length where there is one query")


def _sequence(config: AttentionConfig, a: dict[str, Any], b: int, q: Tensor, qv: Tensor | None, k: Tensor,
                   v: Tensor) -> Tensor:
    if not q.shape[0] or not k.shape[0]:
        return q.new_zeros(*q.shape[:2], v.shape[-1])
    causal = plain_causal(a, q.shape[0], k.shape[0])
    mask = None if causal else mask_of(a, q.shape[0], k.shape[0], q.device)
    x, keys, values = q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]
    return _sdpa(x, keys, values, mask, causal, scale_of(config, a))[0].transpose(0, 1)


def _batched(a: dict[str, Any], config: AttentionConfig) -> Tensor:
    """All sequences in one call: q [B, Sq, Hq, D] over [B, S, Hkv, D]."""
    import torch

    q, k, v = a["q"], a["k_cache"], a["v_cache"]
    refuse("sdpa", a, contract.WITH_KVCACHE, ("k", "v", *_NOT_SDPA))
    width, ends = k.shape[1], lengths_of(a, q.shape[0])
    masks = {n: mask_of(a, q.shape[1], n, q.device) for n in set(ends)}
    mask = None
    if set(ends) != {width} or masks[width] is not None:
        mask = torch.zeros(q.shape[0], 1, q.shape[1], width, dtype=torch.bool, device=q.device)
        for b, n in enumerate(ends):
            own = masks[n]
            mask[b, 0, :, :n] = True if own is None else own
    out = _sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, False, scale_of(config, a))
    return out.transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """q [B, Hq, n, D], k and v [B, Hkv, m, ..]; rows that see nothing give 0."""
    from torch.nn.functional import scaled_dot_product_attention

    group = q.shape[1] // k.shape[1]
    if q.shape[2] == 1:  # SDPA's own GQA reads K and V once for each query head
        folded = q.reshape(q.shape[0], k.shape[1], group, q.shape[-1])
        out = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
        out = out.reshape(*q.shape[:3], v.shape[-1])
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=group > 1)
    return out if mask is None else out.masked_fill(~mask.any(-1)[..., None], 0.0)


def _contiguous(function: str, call: dict[str, Any]) -> dict[str, Any]:
    """The same call over an unpaged cache: [B, S, Hkv, D], each head's tokens contiguous; MLA as one head of 576."""
    import torch

    if call.get("page_table") is None:
        return call
    lengths = call["cache_seqlens"].tolist()
    stores = []
    for name in ("k_cache", "v_cache"):
        store = call[name].new_zeros(len(lengths), max(lengths), *call[name].shape[2:])
        for b, length in enumerate(lengths):
            store[b, :length] = read(call[name], call["page_table"], b, length)
        stores.append(store)
    k, v = stores
    done = {**call, "page_table": None}
    if call.get("qv") is not None:
        done |= {"q": torch.cat((call["q"], call["qv"]), dim=-1), "qv": None}
        k = torch.cat((k, v), dim=-1)
    return {**done, "k_cache": k.transpose(1, 2).contiguous().transpose(1, 2),
            "v_cache": v.transpose(1, 2).contiguous().transpose(1, 2)}
