"""paged_softmax: gather a sequence's pages, then a plain softmax, in torch. For CPUs, and for showing how it is done.

PAGED_SOFTMAX_MISTAKE=1 makes windows one token too wide, which the conformance kit has to notice.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hal import AttentionBackend, contract
from hal.backend import Bound
from hal.capabilities import HeadDims, PageSizes

SHARED = {"q", "softmax_scale", "causal", "window_size", "softcap", "out", "cu_seqlens_q", "max_seqlen_q"}
WITH_KVCACHE = SHARED | {"k_cache", "v_cache", "cache_seqlens", "page_table", "return_softmax_lse"}
VARLEN = SHARED | {"k", "v", "cu_seqlens_k", "max_seqlen_k", "return_softmax_lse", "return_attn_probs"}


class PagedSoftmax(AttentionBackend):
    name = "paged_softmax"
    platforms = {"cpu": ()}
    dtypes = ("bfloat16", "float32")
    head_dims = HeadDims(low=16, high=128, step=16)
    page_sizes = PageSizes(preferred=16, step=16)
    features = frozenset({"sliding_window", "softcap", "non_causal", "return_softmax_lse"})
    calls = frozenset({"out", "packed_decode", "unpaged", "strided_cache"})
    max_decode_query_len = None
    nan_safe_tail = True
    targets = {"prefill": "paged_softmax.varlen", "decode": "paged_softmax.with_kvcache"}

    @classmethod
    def bind(cls, config: Any, platform: Any, package: Any) -> Bound:
        def with_kvcache(*args: Any, **kwargs: Any) -> Any:
            a = honoured(contract.WITH_KVCACHE, WITH_KVCACHE, args, kwargs)
            q, cache, table, lens = a["q"], a["k_cache"], a["page_table"], a["cache_seqlens"]
            batch = len(q) if a["cu_seqlens_q"] is None else len(a["cu_seqlens_q"]) - 1
            if lens is None or isinstance(lens, int):
                whole = cache.shape[1] * (1 if table is None else table.shape[1])
                lens = [whole if lens is None else lens] * batch
            lens = [int(n) for n in lens]

            def keys(b: int) -> tuple[Any, Any]:
                if table is None:
                    return cache[b, : lens[b]], a["v_cache"][b, : lens[b]]
                mine = table[b, : -(-lens[b] // cache.shape[1])].long()
                return tuple(x[mine].flatten(0, 1)[: lens[b]] for x in (cache, a["v_cache"]))  # type: ignore[return-value]

            return attention(a, config, keys, a["return_softmax_lse"])

        def varlen(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("page_table") is not None:  # before what comes with it
                raise ValueError("page_table: got a tensor, which paged_softmax takes in flash_attn_with_kvcache only")
            a = honoured(contract.VARLEN, VARLEN, args, kwargs)
            ends = a["cu_seqlens_k"].tolist()

            def keys(b: int) -> tuple[Any, Any]:
                return a["k"][ends[b] : ends[b + 1]], a["v"][ends[b] : ends[b + 1]]

            return attention(a, config, keys, a["return_softmax_lse"] or a["return_attn_probs"])

        return Bound(with_kvcache, varlen)


def honoured(signature: inspect.Signature, names: set[str], args: Any, kwargs: Any) -> dict[str, Any]:
    """Every argument by name; ValueError for one that this kernel has no use for and that is not at its default."""
    bound = signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        default = signature.parameters[name].default
        plain = isinstance(value, (bool, int, float, tuple))
        if name not in names and value is not default and not (plain and value == default):
            seen = getattr(value, "shape", value)
            raise ValueError(f"{name}: got {seen}, which paged_softmax does not honour: leave it at {default}")
    bound.apply_defaults()
    return bound.arguments


def attention(a: dict[str, Any], config: Any, keys: Callable[[int], tuple[Any, Any]], want_lse: bool) -> Any:
    """All sequences, one at a time; keys(b) are the K and V of sequence b."""
    import torch

    q, cu = a["q"], a["cu_seqlens_q"]
    rows = list(range(0, len(q) * q.shape[1] + 1, q.shape[1] or 1)) if cu is None else cu.tolist()
    if cu is None and q.shape[1] == 0:
        rows = [0] * (len(q) + 1)
    flat = q.reshape(-1, *q.shape[-2:])
    scale = a["softmax_scale"] or config.softmax_scale or q.shape[-1] ** -0.5
    outs, lses = [], []
    for b, (first, last) in enumerate(pairwise(rows)):
        out, lse = softmax(flat[first:last], *keys(b), scale, a["softcap"], a["causal"], a["window_size"])
        outs.append(out.to(q.dtype))
        lses.append(lse)
    result = torch.cat(outs).view(*q.shape[:-1], -1) if len(flat) else q.new_zeros(q.shape)
    if a["out"] is not None:
        result = a["out"].copy_(result)
    if not want_lse:
        return result
    lse = torch.cat(lses, 1)
    return result, lse if cu is not None else lse.view(len(lse), len(q), -1).transpose(0, 1).contiguous()


def softmax(q: Any, k: Any, v: Any, scale: float, softcap: float, causal: bool, window: tuple[int, int]) -> Any:
    """One sequence in float32: out [Lq, Hq, Dv], lse [Hq, Lq]."""
    import torch

    k, v = (x.float().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q.float(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = torch.arange(len(k))[None] - (torch.arange(len(q))[:, None] + len(k) - len(q))
    left, right = window[0], 0 if causal else window[1]
    if os.environ.get("PAGED_SOFTMAX_MISTAKE") and left >= 0:
        left += 1
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0) if len(k) else scores
    return torch.einsum("hij,jhd->ihd", weights, v), torch.logsumexp(scores, -1)
