"""The table of model families; the rules of latent attention, of encoders and of encoder-decoders.

Sources as in hal/model_rules.py: transformers 5.23, models/<model_type>, unless a rule says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hal import model_rules as rules
from hal.config import MLADims
from hal.model_config import PER_HEAD, Source
from hal.model_rules import SLIDING, Kind

INDEXED = {"indexed_attention": "sparse_mla", "deepseek_sparse_attention": "sparse_mla"}


@dataclass(frozen=True)
class Family:
    """rule: settings to kinds. handles: the attention features it reads. defaults: what published files leave out."""

    rule: Callable[[Source], list[Kind]]
    handles: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _mla_fields(source: Source) -> dict[str, Any]:
    dims = MLADims(**{key: source.whole(key) for key in
                      ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")})
    scale = (dims.qk_nope_head_dim + dims.qk_rope_head_dim) ** -0.5 * _mscale(source) ** 2
    return {"num_heads": source.heads(kv_key=None)["num_heads"], "num_kv_heads": 1, "mla": dims,
            "softmax_scale": scale}


def _mla(source: Source) -> list[Kind]:
    return rules.split(["mla"] * source.whole("num_hidden_layers"), _mla_fields(source))


def _sparse_mla(source: Source) -> list[Kind]:
    # DSA: each query sees the index_topk tokens of an indexer, its layer's or (GLM's "shared") an earlier one's.
    source.whole("index_topk", 2048)
    kinds = rules.layers(source, INDEXED, lambda i: True)
    return rules.split(kinds, {**_mla_fields(source), "sparse": True})


def _mscale(source: Source) -> float:
    """YaRN's factor on q and on k (Peng et al. 2023, section 3.4) with mscale_all_dim; else 1.0."""
    given = [key for key in ("rope_parameters", "rope_scaling") if source.values.get(key) is not None]
    if len(given) == 2 and source.values[given[0]] != source.values[given[1]]:
        raise ValueError(f"model {source.name}: rope_parameters and rope_scaling are both set and differ")
    rope = source.values[given[0]] if given else {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"model {source.name}: {given[0]} must be an object, got {rope!r}")
    nested = [key for key, value in rope.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(f"model {source.name}: {given[0]} has one object per kind of layer ({', '.join(nested)}), "
                         "which is not handled for MLA (handled: one for all)")
    if rope.get("rope_type", rope.get("type", "default")) == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    yarn = Source(f"{source.name}, {given[0]}", rope)
    factor, mscale = yarn.number("factor"), yarn.number("mscale_all_dim")
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _encoder(source: Source) -> dict[str, Any]:
    for key in ("is_decoder", "add_cross_attention", "is_causal"):
        if source.get(key, None):
            raise ValueError(f"model {source.name}: {key} = {source.get(key)!r} is not handled for model_type "
                             f"{source.get('model_type')!r} (handled: an encoder, {key} false)")
    return {"head_dim": rules.even_head_dim(source), **source.heads(kv_key=None), "causal": False,
            "attention_type": "encoder_only"}


def _bert(source: Source) -> list[Kind]:
    return rules.split(["full"] * source.whole("num_hidden_layers"), _encoder(source))


def _modernbert(source: Source) -> list[Kind]:
    # local_attention is the whole width: |i - j| <= local_attention // 2 (ModernBertAttention).
    every = source.whole("global_attn_every_n_layers", 3)
    kinds = rules.layers(source, SLIDING, lambda i: i % every != 0)
    window = {"sliding_window": source.whole("local_attention") // 2 + 1} if "sliding" in kinds else {}
    return rules.split(kinds, _encoder(source), sliding=window)


def _whisper(source: Source) -> list[Kind]:
    # transformers scales q itself and calls attention with 1.0; the model's scale is head_dim ** -0.5 all the same.
    kinds = []
    for name, side, causal, attention_type in (("encoder", "encoder", False, "encoder"),
                                               ("decoder", "decoder", True, "decoder"),
                                               ("cross", "decoder", False, "encoder_decoder")):
        heads = f"{side}_attention_heads"
        fields = {"head_dim": source.divided("d_model", heads), **source.heads(heads, None), "causal": causal,
                  "attention_type": attention_type}
        kinds.append(Kind(name, tuple(range(source.whole(f"{side}_layers"))), fields))
    return kinds


_ONE_EACH = {"num_key_value_heads": PER_HEAD}
_QWEN = ("use_sliding_window", "sliding_window", "max_window_layers")
_Q_TEMPERATURE = ("attn_temperature_tuning", "attn_scale")  # llama4 scales q itself, before attention
_MLA_KEYS = ("kv_lora_rank",)
_DSA_KEYS = ("kv_lora_rank", "index_topk", "layer_types")
_BERT = Family(_bert, ("is_causal", "is_decoder", "add_cross_attention"))

# model_type -> its rules.
FAMILIES: Mapping[str, Family] = {
    "llama": Family(rules.plain, defaults=_ONE_EACH),
    "mistral": Family(rules.mistral, ("sliding_window",)),
    # sliding_window_size repeats sliding_window in the published files, and is read by nothing.
    "gemma2": Family(rules.gemma2, ("sliding_window", "sliding_window_size", "layer_types",
                                    "attn_logit_softcapping", "query_pre_attn_scalar")),
    "gpt_oss": Family(rules.gpt_oss, ("sliding_window", "layer_types")),
    "deepseek_v3": Family(_mla, _MLA_KEYS),
    "deepseek_v2": Family(_mla, _MLA_KEYS),
    "deepseek_v32": Family(_sparse_mla, _DSA_KEYS),
    # Kimi-K2's model card: the DeepSeek-V3 architecture under another name; transformers renames it (kimi_k25).
    "kimi_k2": Family(_mla, _MLA_KEYS),
    "qwen2": Family(rules.qwen2, (*_QWEN, "layer_types")),
    "qwen2_moe": Family(rules.qwen2_moe, (*_QWEN, "layer_types")),
    "qwen3": Family(rules.qwen3, (*_QWEN, "layer_types")),
    "qwen3_moe": Family(rules.qwen3_moe, _QWEN),
    "gemma": Family(rules.own_head_dim, defaults={"head_dim": 256}),  # PaliGemma's files leave it out
    # Gemma-3-4b's file leaves all of these to Gemma3TextConfig.
    "gemma3_text": Family(
        rules.gemma3, ("sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "layer_types",
                       "query_pre_attn_scalar", "use_bidirectional_attention"),
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}),
    "phi3": Family(rules.all_sliding, ("sliding_window",), _ONE_EACH),
    "mixtral": Family(rules.all_sliding, ("sliding_window",)),
    "starcoder2": Family(rules.all_sliding, ("sliding_window",)),
    "llama4_text": Family(rules.llama4, ("attention_chunk_size", "layer_types", *_Q_TEMPERATURE)),
    "glm": Family(rules.own_head_dim),
    "glm4": Family(rules.own_head_dim),
    "glm4_moe": Family(rules.plain),
    "glm4_moe_lite": Family(_mla, _MLA_KEYS),
    "glm_moe_dsa": Family(_sparse_mla, _DSA_KEYS),
    "cohere": Family(rules.even, defaults=_ONE_EACH),
    "cohere2": Family(rules.cohere2, ("sliding_window", "sliding_window_pattern", "layer_types"), _ONE_EACH),
    "olmo": Family(rules.plain, defaults=_ONE_EACH),
    "olmo2": Family(rules.plain, defaults=_ONE_EACH),
    "olmo3": Family(rules.olmo3, ("sliding_window", "layer_types"), _ONE_EACH),
    "granite": Family(rules.granite, ("attention_multiplier",), _ONE_EACH),
    "granitemoe": Family(rules.granite, ("attention_multiplier",), _ONE_EACH),
    "smollm3": Family(rules.smollm3, (*_QWEN, "layer_types")),
    "gpt_neox": Family(rules.even, defaults=_ONE_EACH),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "modernbert": Family(_modernbert, ("is_causal", "is_decoder", "add_cross_attention", "local_attention",
                                       "global_attn_every_n_layers", "layer_types")),
    "whisper": Family(_whisper),
}
