"""torch: the floor. Every feature of the contract on any device that torch runs on.

One sequence at a time: gather its pages, then torch's SDPA where that computes exactly what was asked (with the
GQA group folded into the query length: SDPA's own GQA reads K and V once per query head), else an exact float32
softmax. Keys that no query of a block can see have no influence, whatever they hold. Reads the lengths on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.capabilities import CALLS, FEATURES, EveryPlatform, HeadDims, PageSizes
from hal.config import ATTENTION_TYPES, DTYPES, AttentionConfig
from hal.torch_import import load_torch

if TYPE_CHECKING:
    from torch import Tensor

    from hal.packages import Package
    from hal.platform import Platform
    from hal.validation import Call



class TorchNative(AttentionBackend):
    name = "torch"
    platforms = EveryPlatform(cuda=(), rocm=(), npu=(), musa=(), cpu=())
    dtypes = DTYPES
    kv_cache_dtypes = ("fp8_e4m3", "fp8_e5m2")
    head_dims = HeadDims()
    head_dim_pairs = None
    page_sizes = PageSizes(preferred=16)
    # graph: lengths are read on the host, so nothing can be captured.
    features = frozenset(FEATURES)
    calls = frozenset(CALLS)
    mla_prefill = ((192, 128), (256, 256), (128, 128))  # beside the absorbed form; any other widths would do too
    attention_types = ATTENTION_TYPES
    max_decode_query_len = None
    nan_safe_tail = True
    targets = {"prefill": "hal.backends.torch_native.flash_attn_varlen_func",
               "decode": "hal.backends.torch_native.flash_attn_with_kvcache"}
    sources = ("torch.nn.functional.scaled_dot_product_attention, torch 2.13",)

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        load_torch()
        from hal import contract
        from hal.validation import check_varlen, check_with_kvcache

        with_kvcache, varlen = contract.binder(contract.WITH_KVCACHE), contract.binder(contract.VARLEN)

        def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Any:
            a = with_kvcache(args, kwargs)
            call = check_with_kvcache(config, **a)
            _refuse_hints(a)
            return _with_kvcache(call, **a)

        def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> Any:
            a = varlen(args, kwargs)
            call = check_varlen(config, **a)
            _refuse_hints(a)
            return _varlen(call, **a)

        return Bound(flash_attn_with_kvcache, flash_attn_varlen_func)


def _refuse_hints(a: dict[str, Any]) -> None:
    """Tuning hints that torch has no knob for are refused, not dropped; 0 and 1 splits are what it does."""
    honoured = {"scheduler_metadata": (None,), "num_splits": (0, 1), "pack_gqa": (None,), "sm_margin": (0,)}
    for name, values in honoured.items():
        if a.get(name) is not None and a[name] not in values:
            raise ValueError(f"{name}: got {a[name]!r}, which the torch backend does not honour; it is a tuning hint: "
                             f"leave it at {values[0]!r}")


def _with_kvcache(call: Call, q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Tensor | None,
                  qv: Tensor | None, rotary_cos: Tensor | None, rotary_sin: Tensor | None, rotary_seqlens: Any,
                  rotary_interleaved: bool, page_table: Tensor | None, cu_seqlens_q: Tensor | None,
                  return_softmax_lse: bool, out: Tensor | None, **a: Any) -> Any:
    flat_q = q.reshape(-1, *q.shape[-2:])
    flat_qv = None if qv is None else qv.reshape(-1, *qv.shape[-2:])
    if k is not None and v is not None:
        starts = call.before if rotary_seqlens is None else rotary_seqlens.tolist()
        if rotary_cos is not None and rotary_sin is not None:
            whole = a["causal"] or tuple(a["window_size"]) != (-1, -1) or a["attention_chunk"] > 0
            flat_q = _rotate_rows(flat_q, call.rows, starts, rotary_cos, rotary_sin, rotary_interleaved, whole)
        _append(call, k, v, k_cache, v_cache, page_table, starts, rotary_cos, rotary_sin, rotary_interleaved)

    def keys(b: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Keys and values low..high of sequence b, counted from its start: only the pages that hold them are read."""
        return tuple(_read(cache, page_table, call.owner[b], call.start[b] + low, call.start[b] + high)
                     for cache in (k_cache, v_cache))  # type: ignore[return-value]

    return _attention(call, flat_q, flat_qv, keys, k_cache, v_cache, q, cu_seqlens_q is not None, out,
                      return_softmax_lse, a)


def _varlen(call: Call, q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, page_table: Tensor | None,
            return_softmax_lse: bool, return_attn_probs: bool, out: Tensor | None, **a: Any) -> Any:
    def keys(b: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        first, last = call.start[b] + low, call.start[b] + high
        if page_table is None:
            return k[first:last], v[first:last]
        return _read(k, page_table, b, first, last), _read(v, page_table, b, first, last)

    return _attention(call, q, qv, keys, k, v, q, True, out, return_softmax_lse or return_attn_probs, a)


def _attention(call: Call, flat_q: Tensor, flat_qv: Tensor | None, keys: Any, k_store: Tensor, v_store: Tensor,
               q: Tensor, packed: bool, out: Tensor | None, want_lse: bool, a: dict[str, Any]) -> Any:
    """All sequences of a call into `out`; shapes of the contract."""
    import torch

    from hal.backends.torch_sequence import sequence

    dtype = q.dtype if q.dtype.itemsize > 1 else torch.bfloat16
    total, heads = flat_q.shape[:2]
    result = torch.zeros(total, heads, v_store.shape[-1], dtype=dtype, device=q.device)
    lse = torch.full((heads, total), float("-inf"), device=q.device) if want_lse else None
    for b, (first, last) in enumerate(call.rows):
        if last > first:
            sequence(call, b, first, last, flat_q, flat_qv, keys, k_store, v_store, result, lse, packed, a)
    shaped = result if packed else result.view(*q.shape[:-1], v_store.shape[-1])
    if out is not None:
        shaped = out.copy_(shaped)
    if lse is None:
        return shaped
    return shaped, lse if packed else lse.view(heads, q.shape[0], q.shape[1]).transpose(0, 1).contiguous()


def _read(cache: Tensor, page_table: Tensor | None, owner: int, first: int, last: int) -> Tensor:
    """Tokens first..last (absolute) of one sequence, [n, Hkv, D]; a view where the cache is not paged."""
    if page_table is None:
        return cache[owner, first:last]
    size = cache.shape[1]
    low, high = first // size, -(-last // size)
    ids = page_table[owner, low:high].long()
    if cache.dtype.itemsize == 1:  # fp8 has no gather on some devices; bytes do
        import torch

        pages = cache.view(torch.uint8)[ids].view(cache.dtype)
    else:
        pages = cache[ids]
    return pages.flatten(0, 1)[first - low * size : last - low * size]


def _append(call: Call, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, page_table: Tensor | None,
            starts: list[int], cos: Tensor | None, sin: Tensor | None, interleaved: bool) -> None:
    """Write k and v at each sequence's end, rotated where cos and sin are given."""
    import torch

    flat_k, flat_v = k.reshape(-1, *k.shape[-2:]), v.reshape(-1, *v.shape[-2:])
    if cos is not None and sin is not None:
        flat_k = _rotate_rows(flat_k, call.new_rows, starts, cos, sin, interleaved, True)
    size = k_cache.shape[1]
    for b, (first, last) in enumerate(call.new_rows):
        token = torch.arange(call.before[b], call.before[b] + last - first, device=k.device)
        if page_table is None:
            page, offset = torch.full_like(token, call.owner[b]), token
        else:
            page, offset = page_table[call.owner[b]].long()[token // size], token % size
        for cache, new in ((k_cache, flat_k), (v_cache, flat_v)):
            if cache.dtype.itemsize == 1:
                cache.view(torch.uint8)[page, offset] = new[first:last].view(torch.uint8)
            else:
                cache[page, offset] = new[first:last]


def _rotate_rows(x: Tensor, rows: list[tuple[int, int]], starts: list[int], cos: Tensor, sin: Tensor,
                 interleaved: bool, moving: bool) -> Tensor:
    """Rotary embedding of packed rows in float32, cast back; `moving`: positions go up along a sequence."""
    import torch

    position = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    for (first, last), start in zip(rows, starts):
        steps = torch.arange(last - first, device=x.device) if moving else 0
        position[first:last] = start + steps
    c, s = cos.float()[position][:, None], sin.float()[position][:, None]
    width = 2 * cos.shape[1]
    head, rest = x[..., :width].float(), x[..., width:]
    if interleaved:
        a, b = head[..., 0::2], head[..., 1::2]
        turned = torch.stack((a * c - b * s, a * s + b * c), dim=-1).flatten(-2)
    else:
        a, b = head.chunk(2, dim=-1)
        turned = torch.cat((a * c - b * s, a * s + b * c), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)
