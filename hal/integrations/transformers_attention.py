"""The attention function that transformers calls: its arguments turned into calls of HAL's two functions."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hal.attention import AttentionImpl, get_attention_impl
from hal.config import AttentionConfig
from hal.integrations.transformers_mask import even_cu_seqlens, padding_of
from hal.platform import Platform, platform_of
from hal.selection import Choice

if TYPE_CHECKING:
    from torch import Tensor

NAME = "hal"
CHOICE = "_hal_choice"  # attribute of a module: unlike a table, it survives copies of the model

# What an attention function of transformers may be handed -> why it changes nothing here.
HARMLESS = {
    "position_ids": "already applied to q and k",
    "use_cache": "k and v come with the cache in them",
    "output_hidden_states": "collected outside attention",
    "output_router_logits": "collected outside attention",
    "return_dict": "about the model's result",
}
_PACKED = "packed sequences are a training format: pass a batch with an attention_mask"
_CONTINUOUS = "continuous batching is not served by this implementation"
_SPARSE = "sparse attention is not offered through transformers"
# ... -> why it can't be served. What is in neither table is refused too. None and False ask for nothing.
REFUSED = {
    "position_bias": "HAL's functions take no additive bias",
    "head_mask": "HAL's functions take no weights per head",
    "indices": _SPARSE, "topk_indices": _SPARSE, "block_indices": _SPARSE,
    "output_attentions": "attention weights are never materialised; load the model with 'eager' to see them",
    "cache": _CONTINUOUS, "read_index": _CONTINUOUS, "write_index": _CONTINUOUS, "block_table": _CONTINUOUS,
    "cu_seq_lens_q": _PACKED, "cu_seq_lens_k": _PACKED, "max_length_q": _PACKED, "max_length_k": _PACKED,
}


@dataclass(frozen=True)
class Layer:
    """What one attention module was last called with, the impl for it and its constant keywords."""

    key: tuple[Any, ...]
    impl: AttentionImpl
    options: dict[str, Any]


served: WeakKeyDictionary[Any, Layer] = WeakKeyDictionary()
_building = threading.Lock()


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
              dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
              softcap: float | None = None, is_causal: bool | None = None, s_aux: Tensor | None = None,
              **kwargs: Any) -> tuple[Tensor, None]:
    """query [b, Hq, sq, D], key and value [b, Hkv, sk, D(v)] -> (out [b, sq, Hq, Dv], None).

    key and value hold the cached tokens too. attention_mask: None, or bool [b, sk], False for padding.
    sliding_window counts the current token. Raises ValueError for training and, by name, for arguments that
    HAL can't honour; NoBackendError where no backend serves the layer.
    """
    _refuse(module, query, key, value, attention_mask, dropout, kwargs)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    layer = _layer(module, query, key, value, causal, scaling, sliding_window, softcap or 0.0,
                   s_aux is not None)
    options = layer.options if s_aux is None else {**layer.options, "sinks": s_aux}
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if attention_mask is not None:
        return _padded(layer.impl, q, k, v, attention_mask, causal, sliding_window, options), None
    batch, length, seen = q.shape[0], q.shape[1], k.shape[1]
    if causal and length > seen:
        raise ValueError(f"query has {length} tokens but key only {seen}: causal attention needs as many")
    if length == 1:
        return layer.impl.decode.flash_attn_with_kvcache(q, k, v, **options), None
    if causal and length < seen:
        return layer.impl.prefill.flash_attn_with_kvcache(q, k, v, **options), None
    out = layer.impl.prefill.flash_attn_varlen_func(
        *(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)), even_cu_seqlens(batch, length, q.device),
        even_cu_seqlens(batch, seen, q.device), length, seen, **options)
    return out.view(batch, length, *out.shape[1:]), None


def _padded(impl: AttentionImpl, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool,
            window: int | None, options: dict[str, Any]) -> Tensor:
    """Attention without the padding; rows of q that are padding give 0."""
    batch, length = q.shape[:2]
    places = mask.shape[1]
    if mask.shape[0] != batch or k.shape[1] < places or (causal and length > places):
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, expected [{batch}, {k.shape[1]}] "
                         f"for {length} queries and {k.shape[1]} keys")
    keys = padding_of(mask)
    if window is not None and keys.has_holes:
        raise ValueError("attention_mask has padding between tokens, which would not count for "
                         f"sliding_window {window}: pad on the left")
    # A static cache is longer than what it holds.
    k, v = (x[:, :places].reshape(batch * places, *x.shape[2:]) for x in (k, v))
    out: Tensor
    if length == 1:
        out = impl.decode.flash_attn_with_kvcache(q, k[keys.left_aligned], v[keys.left_aligned],
                                                  cache_seqlens=keys.lengths, **options)
        return out
    q = q.reshape(batch * length, *q.shape[2:])
    k, v = k[keys.rows], v[keys.rows]
    varlen = impl.prefill.flash_attn_varlen_func
    if not causal:
        # The mask is the keys'; queries may be other tokens (cross-attention), and each gets an answer.
        out = varlen(q, k, v, even_cu_seqlens(batch, length, q.device), keys.cu_seqlens, length,
                     keys.max_length, **options)
    else:
        queries = keys.last(length)
        packed = varlen(q[queries.rows], k, v, queries.cu_seqlens, keys.cu_seqlens, queries.max_length,
                        keys.max_length, **options)
        out = packed.new_zeros(batch * length, *packed.shape[1:]).index_copy_(0, queries.rows, packed)
    return out.view(batch, length, *out.shape[1:])


def _refuse(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float,
            kwargs: dict[str, Any]) -> None:
    import torch

    for name, given in kwargs.items():
        if name not in HARMLESS and given is not None and given is not False:
            why = REFUSED.get(name, f"it is not known (known and without effect: {', '.join(HARMLESS)})")
            raise ValueError(f"argument {name} is not supported by attn_implementation 'hal': {why}")
    if dropout:
        raise ValueError(f"dropout {dropout} is not supported by attn_implementation 'hal': inference only")
    if module.training:
        raise ValueError("the model is in training mode, but attn_implementation 'hal' is inference only "
                         "(backward is out of scope): call model.eval()")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise ValueError("query requires grad, but attn_implementation 'hal' is inference only (backward is "
                         "out of scope): call the model under torch.no_grad() or torch.inference_mode()")
    if mask is not None and (mask.dim() != 2 or mask.dtype != torch.bool):
        raise ValueError(f"attention_mask is {mask.dtype} {tuple(mask.shape)}, expected padding as "
                         "torch.bool [batch, kv_len]: attn_implementation 'hal' supports no other masks")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}, expected "
                         "one dtype")


def _layer(module: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float | None,
           window: int | None, softcap: float, sinks: bool) -> Layer:
    choice = getattr(module, CHOICE, Choice())
    wanted = (choice, query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], value.shape[3],
              scaling, window, softcap, sinks, causal)
    layer = served.get(module)
    if layer is not None and layer.key == wanted:
        return layer
    if window is not None and not causal:
        # transformers' bidirectional window means |i - j| <= W, its causal one W tokens with the current.
        raise ValueError(f"sliding_window {window} with is_causal False is not supported by "
                         "attn_implementation 'hal' (supported: causal windows)")
    config = AttentionConfig(
        num_heads=query.shape[1], num_kv_heads=key.shape[1], head_dim=query.shape[3],
        head_dim_v=None if value.shape[3] == query.shape[3] else value.shape[3], dtype=str(query.dtype),
        causal=causal, sliding_window=window, softcap=softcap, sinks=sinks, softmax_scale=scaling)
    options: dict[str, Any] = {"softmax_scale": config.scale, "causal": causal}
    # What is not asked for is left out: a vendor's function may not know the word.
    if window is not None:
        options["window_size"] = config.window_size
    if softcap:
        options["softcap"] = softcap
    with _building:
        layer = served[module] = Layer(wanted, _impl(config, platform_of(query.device), choice), options)
    return layer


@cache
def _impl(config: AttentionConfig, platform: Platform, choice: Choice) -> AttentionImpl:
    """One impl for all layers that are alike, of all models."""
    return get_attention_impl(config, platform, choice.backend, choice.prefill_backend, choice.decode_backend)
