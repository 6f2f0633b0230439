"""Attention of one sequence in torch: the SDPA path where it is exact, else a float32 softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from hal.validation import Call

# Elements of one block of scores or of a mask: 64 MiB of float32.
BLOCK = 1 << 24


def sequence(call: Call, b: int, first: int, last: int, q: Tensor, qv: Tensor | None, keys: Any, k_store: Tensor,
             v_store: Tensor, result: Tensor, lse: Tensor | None, packed: bool, a: dict[str, Any]) -> None:
    """Write rows first..last of result (and lse). keys(b, low, high) reads keys of sequence b."""
    import torch

    if a["sparse_indices"] is not None:
        _sparse(call, b, first, last, q, qv, k_store, v_store, result, lse, a)
        return
    local = call.end[b] - call.start[b]
    world, rank = a["cp_world_size"], a["cp_rank"]
    free = a["tree_mask"] is None and a["mm_prefix_ranges"] is None and world == 1
    plain = (free and qv is None and lse is None and a["sinks"] is None and a["softcap"] == 0
             and q.dtype.itemsize > 1 and k_store.dtype == q.dtype
             and a["q_descale"] is None and a["k_descale"] is None and a["v_descale"] is None)
    heads, group = q.shape[1], q.shape[1] // k_store.shape[-2]
    whole = plain and _is_plain_causal(a, last - first, call.len_k[b])
    # plain causal: SDPA's own is_causal needs no mask, so the whole sequence is one block.
    step = last - first if whole else max(1, BLOCK // max(1, local * (1 if plain else heads)))
    for i0 in range(first, last, step):
        i1 = min(i0 + step, last)
        p0 = i0 - first + call.len_k[b] - (last - first)
        p1 = p0 + i1 - i0 - 1
        low, high = (0, local) if not free else _span(p0, p1, call.len_k[b], a)
        if high <= low:
            if lse is not None and a["sinks"] is not None:
                lse[:, i0:i1] = a["sinks"].float()[:, None]
            continue  # no key is visible: 0 and -inf (or the sink) stand already
        k, v = keys(b, low, high)
        if whole:
            out = _sdpa(q[i0:i1], k, v, call.scale, None, True, group)
        else:
            mask = None
            if not (free and _all_visible(p0, p1, low, high, a, call.len_k[b])):
                key = torch.arange(low, high, device=q.device) * world + rank
                mask = _mask(call, b, first, last, i0, i1, p0, key, packed, a)
                if not free:  # a window then leaves keys in the span that nobody sees: they may hold NaN
                    unseen = ~mask.any(0)[:, None, None]
                    k, v = _real(k, None, b).masked_fill(unseen, 0.0), _real(v, None, b).masked_fill(unseen, 0.0)
            if plain:
                out = _sdpa(q[i0:i1], k, v, call.scale, mask, False, group)
            else:
                out, block_lse = _exact(
                    _real(q[i0:i1], a["q_descale"], b), _real(k, a["k_descale"], b), _real(v, a["v_descale"], b),
                    None if qv is None else _real(qv[i0:i1], a["q_descale"], b), call.scale, a["softcap"], mask,
                    a["sinks"])
                if lse is not None:
                    lse[:, i0:i1] = block_lse
        result[i0:i1] = out.to(result.dtype)


def _limits(p: int, len_k: int, a: dict[str, Any]) -> tuple[int, int]:
    """First visible key and one past the last, for position p, by window, causal and chunk alone.

    Both never fall as p grows, so a block of positions is described by its first and its last.
    """
    left, right = a["window_size"]
    right = 0 if a["causal"] else right
    low = max(0, p - left) if left >= 0 else 0
    high = min(len_k, p + right + 1) if right >= 0 else len_k
    chunk = a["attention_chunk"]
    if chunk > 0:
        low, high = max(low, p // chunk * chunk), min(high, (p // chunk + 1) * chunk)
    return low, high


def _span(first: int, last: int, len_k: int, a: dict[str, Any]) -> tuple[int, int]:
    """The keys that positions first..last can see: (low, high), empty when high <= low."""
    for p in range(first, last + 1):
        low, high = _limits(p, len_k, a)
        if high > low:  # positions before this one see nothing
            return low, _limits(last, len_k, a)[1]
    return 0, 0


def _all_visible(first: int, last: int, low: int, high: int, a: dict[str, Any], len_k: int) -> bool:
    """Every position first..last sees every key low..high."""
    return _limits(last, len_k, a)[0] <= low and _limits(first, len_k, a)[1] >= high


def _is_plain_causal(a: dict[str, Any], len_q: int, len_k: int) -> bool:
    return bool(a["causal"] and a["window_size"][0] < 0 and a["attention_chunk"] == 0 and len_q == len_k and len_q > 1)


def _mask(call: Call, b: int, first: int, last: int, i0: int, i1: int, p0: int, key: Tensor, packed: bool,
          a: dict[str, Any]) -> Tensor:
    """bool [i1 - i0, len(key)], True where visible. key: positions of the keys, global; row i0 is at position p0."""
    import torch

    len_k = call.len_k[b]
    limits = torch.tensor([_limits(p, len_k, a) for p in range(p0, p0 + i1 - i0)], device=key.device)
    mask: Tensor = (key >= limits[:, :1]) & (key < limits[:, 1:])
    if a["tree_mask"] is not None:
        tree = a["tree_mask"][i0:i1] if packed else a["tree_mask"][b, i0 - first : i1 - first]
        own = key - (len_k - (last - first))
        mask = torch.where(own >= 0, tree[:, own.clamp(0, tree.shape[1] - 1)], mask)
    if a["mm_prefix_ranges"] is not None:
        p = torch.arange(p0, p0 + i1 - i0, device=key.device)
        for start, end in a["mm_prefix_ranges"][b].tolist():
            mask = mask | (((p >= start) & (p < end))[:, None] & (key >= start) & (key < end) & (key < len_k))
    return mask


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, causal: bool, group: int) -> Tensor:
    """torch's SDPA on q [n, Hq, D], k [m, Hkv, D], v [m, Hkv, Dv]; rows that see nothing give 0."""
    from torch.nn.functional import pad, scaled_dot_product_attention

    n, heads, dim = q.shape
    width = max(dim, v.shape[-1])
    if dim != v.shape[-1]:
        # The kernels that need no score matrix want equal head dims: zeros change neither scores nor outputs.
        out = _sdpa(pad(q, (0, width - dim)), pad(k, (0, width - dim)), pad(v, (0, width - v.shape[-1])), scale, mask,
                    causal, group)
        return out[..., : v.shape[-1]]
    kk, vv = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
    if mask is None and not causal:
        folded = q.view(n, heads // group, group, dim).permute(1, 2, 0, 3).reshape(1, heads // group, group * n, dim)
        out = scaled_dot_product_attention(folded, kk, vv, scale=scale)
        return out.view(heads, n, -1).transpose(0, 1)
    out = scaled_dot_product_attention(q.transpose(0, 1)[None], kk, vv, attn_mask=mask, is_causal=causal, scale=scale,
                                       enable_gqa=group > 1)[0].transpose(0, 1)
    return out if mask is None else out.masked_fill(~mask.any(-1)[:, None, None], 0.0)


def _exact(q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, scale: float, softcap: float, mask: Tensor | None,
           sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax in float32: out [n, Hq, Dv] and lse [Hq, n]. Inputs are float32; the group is folded as in _sdpa."""
    import torch

    n, heads = q.shape[:2]
    kv_heads = k.shape[1]
    group = heads // kv_heads

    def fold(x: Tensor) -> Tensor:
        return x.view(n, kv_heads, group, -1).permute(1, 2, 0, 3).reshape(kv_heads, group * n, -1)

    vt = v.transpose(0, 1)
    scores = fold(q) @ k.permute(1, 2, 0)
    if qv is not None:
        scores = scores + fold(qv) @ v.permute(1, 2, 0)
    scores = (scores * scale).view(heads, n, -1)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float()[:, None].expand_as(lse))
    # A row that sees nothing has lse -inf: exp(-inf - 0) is 0.
    weights = torch.exp(scores - torch.where(lse == float("-inf"), 0.0, lse)[..., None])
    out = weights.view(kv_heads, group * n, -1) @ vt
    return out.view(heads, n, -1).transpose(0, 1), lse


def _sparse(call: Call, b: int, first: int, last: int, q: Tensor, qv: Tensor | None, k_store: Tensor, v_store: Tensor,
            result: Tensor, lse: Tensor | None, a: dict[str, Any]) -> None:
    """Query t sees exactly the slots sparse_indices[t]; -1 is none."""
    import torch

    size = k_store.shape[1]
    for t in range(first, last):
        slots = a["sparse_indices"][t].long()
        slots = slots[slots >= 0]
        if not slots.numel():
            if lse is not None and a["sinks"] is not None:
                lse[:, t] = a["sinks"].float()
            continue
        k, v = (store.view(torch.uint8)[slots // size, slots % size].view(store.dtype) if store.dtype.itemsize == 1
                else store[slots // size, slots % size] for store in (k_store, v_store))
        out, row_lse = _exact(
            _real(q[t : t + 1], a["q_descale"], b), _real(k, a["k_descale"], b), _real(v, a["v_descale"], b),
            None if qv is None else _real(qv[t : t + 1], a["q_descale"], b), call.scale, a["softcap"], None, a["sinks"])
        result[t] = out[0].to(result.dtype)
        if lse is not None:
            lse[:, t] = row_lse[:, 0]


def _real(x: Tensor, descale: Tensor | None, b: int) -> Tensor:
    """x [n, H, D] as float32 times its descale (scalar, or row b of [B, Hkv], one per group of heads)."""
    x = x.float()
    if descale is None:
        return x
    if descale.numel() == 1:
        return x * descale.reshape(())
    return x * descale[b].repeat_interleave(x.shape[1] // descale.shape[1])[:, None]
