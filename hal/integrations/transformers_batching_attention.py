"""The attention function of a batched model: one write and one call of HAL's functions a layer, nothing gathered.

attn_implementation "hal_batching" is for hal.integrations.transformers_batching alone: BatchedModel opens a step around
each forward, and outside one the function refuses to run. transformers makes no mask for it: the lengths say it all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hal import registry
from hal.attention import AttentionImpl
from hal.backend import AttentionBackend
from hal.config import LayerKind
from hal.integrations.transformers_attention import HARMLESS

if TYPE_CHECKING:
    from torch import Tensor

    from hal.integrations.transformers_batching_cache import Cache
    from hal.integrations.transformers_batching_step import AnyStep

NAME = "hal_batching"


class Layer:
    """One attention layer: HAL's functions for it, its cache, and what they are called with in every step."""

    def __init__(self, number: int, kind: int, impl: AttentionImpl, cache: tuple[Tensor, Tensor]) -> None:
        config = impl.config
        self.number, self.kind, self.config = number, kind, config
        self.k_cache, self.v_cache = cache
        self.write = impl.write_kv_cache
        self.decode = impl.decode.flash_attn_with_kvcache
        self.mixed = impl.prefill.flash_attn_with_kvcache
        self.varlen = impl.prefill.flash_attn_varlen_func
        self.options: dict[str, Any] = {"softmax_scale": config.scale, "causal": True}
        # What is not asked for is left out: a vendor's function may not know the word.
        if config.sliding_window is not None:
            self.options["window_size"] = config.window_size
        if config.softcap:
            self.options["softcap"] = config.softcap
        self.checked: tuple[Any, ...] | None = None
        self.calls = 0

    def check(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, dropout: float, scaling: float | None,
              window: int | None, softcap: float | None, sinks: bool, causal: bool | None,
              others: Iterable[str]) -> None:
        """Raise ValueError where the model asks for another attention than its config announced."""
        config = self.config
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        for name, seen, expected in (
                ("num_heads", query.shape[1], config.num_heads), ("num_kv_heads", key.shape[1], config.num_kv_heads),
                ("head_dim", query.shape[3], config.head_dim), ("head_dim_v", value.shape[3], config.v_dim),
                ("dtype", str(query.dtype).removeprefix("torch."), config.dtype),
                ("sliding_window", window, config.sliding_window), ("softcap", softcap or 0.0, config.softcap),
                ("sinks", sinks, config.sinks), ("dropout", dropout, 0.0), ("attention_mask", mask, None)):
            if seen is not expected and seen != expected:
                raise ValueError(f"layer {self.number}: the model asks for {name} {seen!r}, its config announced "
                                 f"{expected!r}: it can't be batched; use attn_implementation 'hal' and generate()")
        if not math.isclose(scale, config.scale, rel_tol=1e-6):
            raise ValueError(f"layer {self.number}: the model asks for softmax_scale {scale}, its config announced "
                             f"{config.scale}")
        if causal is False:
            raise ValueError(f"layer {self.number}: is_causal False can't be batched (supported: causal attention)")
        for name in others:
            if name not in HARMLESS:
                raise ValueError(f"argument {name} is not supported by attn_implementation {NAME!r} (known and without "
                                 f"effect: {', '.join(HARMLESS)})")


class _Open(threading.local):
    step: AnyStep | None = None
    layers: Sequence[Layer] = ()


_open = _Open()


@contextmanager
def opened(step: AnyStep, layers: Sequence[Layer]) -> Iterator[None]:
    """Within it this thread's attention is that of one step, and plans are made once."""
    _open.step, _open.layers = step, layers
    try:
        with step.context():
            yield
    finally:
        _open.step, _open.layers = None, ()


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
              dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
              softcap: float | None = None, is_causal: bool | None = None, s_aux: Tensor | None = None,
              **kwargs: Any) -> tuple[Tensor, None]:
    """query [1, Hq, T, D], key and value [1, Hkv, T, D] of this step's new tokens -> (out [1, T, Hq, D], None).

    Writes key and value to the cache and attends to all that its sequences have there. Raises RuntimeError outside a
    step of a BatchedModel, ValueError where the model asks for what its config did not announce.
    """
    step = _open.step
    if step is None:
        raise RuntimeError(f"attn_implementation {module.config._attn_implementation!r} is for continuous batching "
                           "alone (hal.integrations.transformers_batching): for generate() load the model with "
                           "attn_implementation 'hal'")
    layer = _open.layers[module.layer_idx]
    asked = (query.shape[1], key.shape[1], query.shape[3], value.shape[3], query.dtype, scaling, sliding_window,
             softcap, s_aux is None, is_causal, dropout, attention_mask, *kwargs)
    if layer.checked != asked:
        layer.check(query, key, value, attention_mask, dropout, scaling, sliding_window, softcap, s_aux is not None,
                    is_causal, [name for name, given in kwargs.items()
                                if given is not None and given is not False and name not in step.known])
        layer.checked = asked
    layer.calls += 1
    options = layer.options if s_aux is None else {**layer.options, "sinks": s_aux}
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    out: Tensor = step.pages[layer.kind].attend(layer, step, q, k, v, options)
    return out.unsqueeze(0), None


def register(name: str = NAME) -> None:
    """Make the attn_implementation known to transformers. Raises RuntimeError when someone else has the name."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name in ALL_ATTENTION_FUNCTIONS and ALL_ATTENTION_FUNCTIONS[name] is not attention:
        raise RuntimeError(f"attn_implementation {name!r} is already registered, for {ALL_ATTENTION_FUNCTIONS[name]!r}")
    AttentionInterface.register(name, attention)


def refuse_kinds(kinds: Sequence[LayerKind]) -> None:
    """Raise ValueError, with the way out, for a model of which some layer can't be batched."""
    for kind in kinds:
        config = kind.config
        for asked, what in (
                (config.mla is not None, "multi-head latent attention (MLA), whose latent cache transformers' batching "
                                         "has no pages for"),
                (config.sparse, "sparse attention"), (config.attention_chunk is not None, "chunked attention"),
                (config.mm_prefix, "image tokens that attend in both directions"),
                (not config.causal or config.attention_type != "decoder", "attention that is not a causal decoder's"),
                (config.v_dim != config.head_dim, f"head_dim_v {config.v_dim} beside head_dim {config.head_dim}")):
            if asked:
                raise ValueError(f"layers of kind {kind.kind} have {what}: they can't be batched (supported: causal "
                                 f"attention, full or with a sliding window). {WAY_OUT}")


WAY_OUT = ("One request at a time works: `hal generate`, or attn_implementation 'hal' and generate(). For many at once "
           "use an engine that batches such models (vLLM, SGLang)")


def refuse_impls(impls: dict[str, AttentionImpl]) -> None:
    """Raise ValueError for a backend that can't read or fill transformers' paged cache, or not in a mixed batch."""
    for name, impl in impls.items():
        decision = impl.decision
        if decision.kv_layout != AttentionBackend.kv_layout:
            raise ValueError(f"[{name}] backend {decision.decode.chosen} keeps its KV cache as {decision.kv_layout}, "
                             f"but the batched cache's pages are views of one buffer, "
                             f"{AttentionBackend.kv_layout}: choose another --attention-backend")
        if not registry.get(str(decision.prefill.chosen)).reads(impl.config, "prefill"):
            raise ValueError(f"[{name}] prefill backend {decision.prefill.chosen} never reads the paged cache, but a "
                             "batch of prompts and answers needs one that does: choose another "
                             "--prefill-attention-backend")


def make_layers(kinds: Sequence[LayerKind], impls: dict[str, AttentionImpl], cache: Cache) -> list[Layer]:
    """The layers of a model by number."""
    layers = {number: Layer(number, index, impls[kind.kind], cache.views(number))
              for index, kind in enumerate(kinds) for number in kind.layers}
    return [layers[number] for number in range(len(layers))]
