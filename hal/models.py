"""A model's config.json as kinds of attention layer. Needs neither torch nor transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.config import AttentionConfig, LayerKind, MLADims

# Keys that change attention -> the families that handle them. Elsewhere: absent, null, false or 0.
GUARDED: Mapping[str, tuple[str, ...]] = {
    "sliding_window": ("mistral", "gemma2", "gpt_oss"),
    "layer_types": ("gemma2", "gpt_oss"),
    "attn_logit_softcapping": ("gemma2",),
    "query_pre_attn_scalar": ("gemma2",),
    "kv_lora_rank": ("deepseek_v3",),
    "attention_chunk_size": (),
    "use_sliding_window": (),
    "use_bidirectional_attention": (),
    "alibi": (),
    "index_topk": (),
}
# Wrappers whose image tokens attend in both directions: their text_config alone would say "causal".
PREFIX_LM = ("paligemma", "colpali")
_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}
_REQUIRED = object()


@dataclass(frozen=True)
class _Source:
    """One model's settings and what to call it in messages."""

    name: str
    values: Mapping[str, Any]

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        if key in self.values:
            return self.values[key]
        if default is _REQUIRED:
            raise ValueError(f"model {self.name}: its config has no key {key!r}")
        return default

    def whole(self, key: str, default: Any = _REQUIRED) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"model {self.name}: {key} must be a whole number >= 1, got {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"model {self.name}: {key} must be a finite number > 0, got {value!r}")
        return float(value)


def kinds_from_model(model: Any, tensor_parallel_size: int = 1) -> list[LayerKind]:
    """One LayerKind ("full", "sliding", "mla") per kind of attention layer, in order of their first layers.

    model: a folder with config.json, a dict of its content, or a transformers config object. Heads are per
    rank; KV heads are replicated when there are fewer than ranks. dtype is the config's `dtype` or
    `torch_dtype`; where it has neither, bfloat16. Raises ValueError, naming the model and the key, for an
    unknown model_type, a missing or bad key, a feature that HAL's rules for the family don't cover, and heads
    that don't divide. The rules are those of transformers 5.23 (models/<model_type>).
    """
    tp = tensor_parallel_size
    if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1:
        raise ValueError(f"tensor_parallel_size must be a whole number >= 1, got {tp!r}")
    source = _read(model)
    family = source.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"model {source.name}: model_type {family!r} is not known "
                         f"(known: {', '.join(FAMILIES)})")
    for key, families in GUARDED.items():
        value = source.values.get(key)
        if key == "layer_types" and isinstance(value, list) and {*value} == {"full_attention"}:
            continue
        if value and family not in families:
            raise ValueError(f"model {source.name}: {key} = {value!r} is not handled "
                             f"for model_type {family!r}")
    fields, layers = FAMILIES[family](source)
    fields = {**fields, **_heads(source, tp, mla="mla" in fields), "dtype": _dtype(source)}
    order = list(dict.fromkeys(layers))
    kinds = []
    for kind in order:
        fields["sliding_window"] = source.whole("sliding_window") if kind == "sliding" else None
        try:
            config = AttentionConfig(**fields)
        except ValueError as error:
            raise ValueError(f"model {source.name}: {error}") from None
        kinds.append(LayerKind(kind, tuple(i for i, k in enumerate(layers) if k == kind), config))
    return kinds


def _read(model: Any) -> _Source:
    if isinstance(model, (str, Path)):
        folder = Path(model)
        if not folder.is_dir():
            raise ValueError(f"model {str(model)!r} is no folder: names on a hub are not downloaded, "
                             "give a folder with config.json")
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"model {str(model)!r}: the folder has no config.json") from None
        except ValueError as error:
            raise ValueError(f"model {str(model)!r}: config.json is no JSON: {error}") from None
        name = str(model)
    else:
        values = model.to_dict() if hasattr(model, "to_dict") else model
        name = ""
    if not isinstance(values, Mapping):
        raise ValueError(f"model {name!r}: config.json must hold an object" if name else "model must be a "
                         f"folder, a dict or a transformers config, got {type(model).__name__}")
    name = name or str(values.get("_name_or_path") or values.get("model_type") or "(a dict)")
    text = values.get("text_config")
    if text is None:
        return _Source(name, values)
    if values.get("model_type") in PREFIX_LM:
        raise ValueError(f"model {name}: model_type {values['model_type']!r} attends to image tokens in both "
                         "directions, which is not handled")
    text = text.to_dict() if hasattr(text, "to_dict") else text
    if not isinstance(text, Mapping):
        raise ValueError(f"model {name}: text_config must be an object, got {text!r}")
    # The dtype is written once, often beside text_config rather than in it.
    outer = {key: values[key] for key in ("dtype", "torch_dtype") if values.get(key) is not None}
    return _Source(name, {**outer, **{key: value for key, value in text.items()
                                      if not (value is None and key in outer)}})


def _dtype(source: _Source) -> str:
    value = source.values.get("dtype")
    if value is None:
        value = source.values.get("torch_dtype")
    return "bfloat16" if value is None else str(value)


def _heads(source: _Source, tp: int, mla: bool) -> dict[str, int]:
    """num_heads and num_kv_heads of one rank."""
    heads = source.whole("num_attention_heads")
    if heads % tp:
        raise ValueError(f"model {source.name}: num_attention_heads {heads} does not divide by "
                         f"tensor_parallel_size {tp}")
    if mla:
        return {"num_heads": heads // tp, "num_kv_heads": 1}
    # Llama's first configs have no num_key_value_heads and mean one per head (so does LlamaConfig).
    every = source.get("model_type") == "llama" and source.values.get("num_key_value_heads") is None
    kv = heads if every else source.whole("num_key_value_heads")
    if kv % tp and tp % kv:
        raise ValueError(f"model {source.name}: num_key_value_heads {kv} neither divides by "
                         f"tensor_parallel_size {tp} nor divides it")
    return {"num_heads": heads // tp, "num_kv_heads": max(1, kv // tp)}


def _head_dim(source: _Source) -> int:
    """head_dim, or hidden_size / num_attention_heads where the config leaves it out (llama, mistral)."""
    if source.values.get("head_dim") is not None:
        return source.whole("head_dim")
    hidden, heads = source.whole("hidden_size"), source.whole("num_attention_heads")
    if hidden % heads:
        raise ValueError(f"model {source.name}: no head_dim, and hidden_size {hidden} does not divide by "
                         f"num_attention_heads {heads}")
    return hidden // heads


def _alternating(source: _Source) -> list[str]:
    """layer_types as kinds; where an older config has none, even layers slide (gemma2 and gpt_oss alike)."""
    count = source.whole("num_hidden_layers")
    types = source.values.get("layer_types")
    if types is None:
        return ["sliding" if i % 2 == 0 else "full" for i in range(count)]
    if not isinstance(types, (list, tuple)) or len(types) != count or not set(types) <= set(_LAYER_TYPES):
        raise ValueError(f"model {source.name}: layer_types must list {count} of {', '.join(_LAYER_TYPES)}, "
                         f"got {types!r}")
    return [_LAYER_TYPES[name] for name in types]


_Family = tuple[dict[str, Any], list[str]]


def _llama(source: _Source) -> _Family:
    return {"head_dim": _head_dim(source)}, ["full"] * source.whole("num_hidden_layers")


def _mistral(source: _Source) -> _Family:
    # Every layer slides, unless sliding_window is null (v0.2 and later). MistralConfig's own default is 4096,
    # so a config that says nothing is ambiguous and an error.
    kind = "full" if source.get("sliding_window") is None else "sliding"
    return {"head_dim": _head_dim(source)}, [kind] * source.whole("num_hidden_layers")


def _gemma2(source: _Source) -> _Family:
    softcap = 0.0 if source.get("attn_logit_softcapping") is None else source.number("attn_logit_softcapping")
    return {"head_dim": source.whole("head_dim"), "softcap": softcap,
            "softmax_scale": source.number("query_pre_attn_scalar") ** -0.5}, _alternating(source)


def _gpt_oss(source: _Source) -> _Family:
    return {"head_dim": source.whole("head_dim"), "sinks": True}, _alternating(source)


def _deepseek_v3(source: _Source) -> _Family:
    dims = MLADims(**{key: source.whole(key) for key in
                      ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")})
    scale = (dims.qk_nope_head_dim + dims.qk_rope_head_dim) ** -0.5 * _mscale(source) ** 2
    return {"mla": dims, "softmax_scale": scale}, ["mla"] * source.whole("num_hidden_layers")


def _mscale(source: _Source) -> float:
    """YaRN's factor on q and on k (Peng et al. 2023, section 3.4) with mscale_all_dim; else 1.0."""
    given = [key for key in ("rope_parameters", "rope_scaling") if source.values.get(key) is not None]
    if len(given) == 2 and source.values[given[0]] != source.values[given[1]]:
        raise ValueError(f"model {source.name}: rope_parameters and rope_scaling are both set and differ")
    rope = source.values[given[0]] if given else {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"model {source.name}: {given[0]} must be an object, got {rope!r}")
    if rope.get("rope_type", rope.get("type", "default")) == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    yarn = _Source(f"{source.name}, {given[0]}", rope)
    factor, mscale = yarn.number("factor"), yarn.number("mscale_all_dim")
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


# model_type -> its rules: the fields of AttentionConfig that all its layers share, and each layer's kind.
FAMILIES: Mapping[str, Callable[[_Source], _Family]] = {
    "llama": _llama,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
}
