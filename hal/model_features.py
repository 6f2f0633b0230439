"""Settings of a config.json that change attention: what asks for nothing, and what no rule covers.

A key that sounds like attention and is set is either read by the family's rule, or known to be applied outside
the attention call, or an error. So a feature that a new model brings is reported, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Keys with these words in them, and these keys, are about attention until shown otherwise.
SUSPECT = re.compile(r"alibi|sliding|window|chunk|sink|softcap|bidirection|causal|attn|attention|mamba|ssm_|swa_"
                     r"|block_sparse|sparse_config|prefix_lm"
                     r"|recurrent|softmax|layer_types|layers_block_type")
SUSPECT_KEYS = (
    "kv_lora_rank", "index_topk", "hybrid_override_pattern", "num_kv_shared_layers", "linear_num_key_heads",
    "conv_L_cache", "pruned_heads",
)

# Keys with such words -> why the attention call is the same whatever they say.
HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), "a size"),
    **dict.fromkeys(("attention_bias", "attention_out_bias", "attention_qkv_bias"), "part of a projection"),
    **dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob", "attn_dropout", "attn_pdrop"), "training"),
    **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
                     "_attn_implementation_internal", "use_flash_attn", "use_flash_attention_2",
                     "deterministic_flash_attn"), "which kernel, not what it computes"),
    **dict.fromkeys(("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"), "HAL always accumulates so"),
    "attn_output_gate": "applied to attention's output",
    "final_logit_softcapping": "caps the vocabulary's logits, not the scores",
    "chunk_size_feed_forward": "about the MLP",
    "mlp_layer_types": "about the MLP",
    "output_attentions": "asks for results, changes none",
}

# Keys whose neutral values are these, rather than null, false, 0 and empty.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (None, True),  # false asks for both directions: masking_utils.create_causal_mask
    "scale_attn_weights": (None, True),  # false asks for scores without a scale
    "position_embedding_type": (None, "absolute", "rope", "rope_gptj"),
    "order_of_interleaved_layers": (None, "local_attn_first"),
    "full_attn_mod": (None, 1),  # Phi-4-mini publishes it; transformers reads it nowhere
}
# Entries of layer_types that are no attention HAL has functions for (transformers 5.23: configuration_utils).
NO_ATTENTION = ("linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding", "moe", "recurrent")

# Models that people will ask for -> why no rule for them can be written yet.
NOT_SERVED: Mapping[str, str] = {
    **dict.fromkeys(("bloom", "mpt", "falcon"), "it adds ALiBi or may (alibi)"),
    **dict.fromkeys(("t5", "mt5", "umt5"), "it adds a relative position bias to the scores"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), "it has mamba layers and no attention"),
    **dict.fromkeys(("jamba", "bamba", "zamba2", "nemotron_h", "granitemoehybrid", "falcon_h1"),
                    "it has mamba layers beside attention"),
    **dict.fromkeys(("qwen3_next", "kimi_linear", "minimax", "olmo_hybrid", "glm5_next_text"),
                    "it has linear_attention layers beside attention"),
    "lfm2": "it has conv layers beside attention",
    "recurrent_gemma": "it has recurrent layers beside attention",
    "deepseek_v4": "its layers are compressed_sparse_attention and heavily_compressed_attention",
    "mllama_text_model": "its layers of cross attention are not described",
}


def unhandled(values: Mapping[str, Any], handled: Iterable[str]) -> list[tuple[str, Any]]:
    """(key, value) of every attention feature that is asked for and is not among the handled keys."""
    handled = set(handled)
    return [(key, value) for key, value in values.items()
            if isinstance(key, str) and key not in handled and key not in HARMLESS
            and (key in SUSPECT_KEYS or key in NEUTRAL or SUSPECT.search(key)) and not _neutral(key, value)]


def _neutral(key: str, value: Any) -> bool:
    if key in NEUTRAL:
        return value in NEUTRAL[key]
    if key == "layer_types" and isinstance(value, (list, tuple)):
        return {*map(str, value)} <= {"full_attention", "attention"}
    return not value


def told(value: Any) -> str:
    """repr, but for a long list of names what is in it, once each."""
    if isinstance(value, (list, tuple)) and len(value) > 8 and all(isinstance(item, str) for item in value):
        return f"{len(value)} of {', '.join(map(repr, dict.fromkeys(value)))}"
    return repr(value)
