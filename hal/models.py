"""A model's config.json as kinds of attention layer. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hal.config import AttentionConfig, LayerKind
from hal.model_config import MM_PREFIX, Source, read
from hal.model_families import FAMILIES, Family
from hal.model_features import NOT_SERVED, told, unhandled


def kinds_from_model(model: Any, tensor_parallel_size: int = 1) -> list[LayerKind]:
    """One LayerKind per kind of attention layer, in order of their first layers.

    Kinds: "full", "sliding", "chunked", "mla", "sparse_mla"; "encoder", "decoder" and "cross" for an
    encoder-decoder, whose layers are numbered in their own stack. Only the language model of a multimodal
    model is described, with mm_prefix=True where its image tokens attend in both directions.

    model: a folder with config.json, a dict of its content, or a transformers config object. Heads are per
    rank; KV heads are replicated when there are fewer than ranks. dtype is the config's `dtype` or
    `torch_dtype`; where it has neither, bfloat16. Raises ValueError, naming the model and the key, for an
    unknown model_type, a missing or bad key, an attention feature that HAL's rules for the family don't cover
    (hal/model_features.py), and heads that don't divide. The rules and their sources: hal/model_families.py.
    """
    tp = tensor_parallel_size
    if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1:
        raise ValueError(f"tensor_parallel_size must be a whole number >= 1, got {tp!r}")
    source = read(model)
    name = source.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        why = f": {NOT_SERVED[name]}" if isinstance(name, str) and name in NOT_SERVED else ""
        raise ValueError(f"model {source.name}: model_type {name!r} is not known "
                         f"(known: {', '.join(FAMILIES)}){why}")
    family = FAMILIES[name]
    prefix = _mm_prefix(source)
    _refuse_unhandled(source, family, prefix)
    source = replace(source.with_defaults(family.defaults), ranks=tp)
    kinds = []
    for kind in family.rule(source):
        try:
            config = AttentionConfig(**kind.fields, **prefix, dtype=source.dtype())
        except ValueError as error:
            raise ValueError(f"model {source.name}: {error}") from None
        kinds.append(LayerKind(kind.name, kind.layers, config))
    return kinds


def _mm_prefix(source: Source) -> dict[str, Any]:
    """mm_prefix=True for a wrapper whose image tokens attend in both directions, in layers of every kind.

    HAL's ranges go beyond the window, as PaliGemma's do. Gemma 3 cuts them by the window on the left: the same,
    as long as an image is no longer than the window.
    """
    if source.wrapper not in MM_PREFIX:
        return {}
    if source.wrapper != "paligemma":
        image, window = source.outer.get("mm_tokens_per_image", 256), source.values.get("sliding_window", 4096)
        if isinstance(image, int) and isinstance(window, int) and image > window:
            raise ValueError(f"model {source.name}: mm_tokens_per_image {image} is more than sliding_window "
                             f"{window}, which cuts image tokens off from each other: not handled")
    return {"mm_prefix": True}


def _refuse_unhandled(source: Source, family: Family, prefix: Mapping[str, Any]) -> None:
    handled = set(family.handles)
    if prefix and source.wrapper == "paligemma":
        # PaliGemmaConfig sets it, and its mask is the prefix's either way.
        handled.add("use_bidirectional_attention")
    elif prefix:
        # Both directions for all tokens and for those of images: no model has asked for that.
        handled.discard("use_bidirectional_attention")
    # A wrapper may repeat what its text_config says.
    repeated = [key for key, value in source.outer.items() if key in source.values and source.values[key] == value]
    for key, value in [*unhandled(source.values, handled), *unhandled(source.outer, repeated)]:
        others = [name for name, other in FAMILIES.items() if key in other.handles]
        where = f"handled for {', '.join(others)}" if others else "handled for no model_type"
        inside = f" inside {source.wrapper!r}" if source.wrapper else ""
        raise ValueError(f"model {source.name}: {key} = {told(value)} is not handled for model_type "
                         f"{source.values.get('model_type')!r}{inside} ({where})")
