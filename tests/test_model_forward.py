"""What reaches the attention of a running transformers model, against what from_model says of its layers.

A tiny random model of each family runs with an attention function that only notes its arguments; windows, scales,
softcaps, sinks, indices, head counts and the mask itself must be those of the layer's AttentionConfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from hal import AttentionConfig
from hal.config import LayerKind

NAME, TOKENS = "noting", 14
SIZES = {"hidden_size": 64, "intermediate_size": 32, "moe_intermediate_size": 16, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 50, "pad_token_id": 0, "max_position_embeddings": 64,
         "num_hidden_layers": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "n_routed_experts": 4}
MLA = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
       "v_head_dim": 12, "n_group": 1, "topk_group": 1, **EXPERTS}
DSA = {**MLA, "index_topk": 3, "index_head_dim": 8, "index_n_heads": 2}
YARN = {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.7, "rope_theta": 1e4,
        "original_max_position_embeddings": 16}
TEXT3 = {**SIZES, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 6, "sliding_window_pattern": 2,
         "query_pre_attn_scalar": 24}
VISION = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TOKENS_1 = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0]])  # Gemma 3: 1 is an image token
PREFIX_0 = torch.tensor([[0] * 9 + [1] * 5])  # PaliGemma: 0 is the prefix

# name -> (model_type, settings, further inputs, the ranges that see each other in both directions)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[tuple[int, int]]]] = {
    "llama": ("llama", SIZES, {}, []),
    "mistral": ("mistral", {**SIZES, "sliding_window": 5}, {}, []),
    "gemma2": ("gemma2", {**SIZES, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 24}, {}, []),
    "gpt_oss": ("gpt_oss", {**SIZES, **EXPERTS, "head_dim": 16, "sliding_window": 5}, {}, []),
    "qwen2": ("qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}, {}, []),
    "qwen2 without": ("qwen2", {**SIZES, "sliding_window": 5, "max_window_layers": 2}, {}, []),
    "qwen2_moe": ("qwen2_moe", {**SIZES, **EXPERTS, "use_sliding_window": True, "sliding_window": 5,
                                "max_window_layers": 2}, {}, []),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5,
                        "max_window_layers": 1}, {}, []),
    "qwen3_moe": ("qwen3_moe", {**SIZES, **EXPERTS, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5},
                  {}, []),
    "gemma3_text": ("gemma3_text", TEXT3, {}, []),
    "gemma3_text, both ways": ("gemma3_text", {**TEXT3, "use_bidirectional_attention": True}, {}, []),
    "gemma3": ("gemma3", {"text_config": TEXT3, "vision_config": VISION, "mm_tokens_per_image": 4},
               {"token_type_ids": TOKENS_1}, [(2, 6), (8, 11)]),
    "paligemma": ("paligemma", {"text_config": {**SIZES, "model_type": "gemma", "head_dim": 8},
                                "vision_config": VISION}, {"token_type_ids": PREFIX_0}, [(0, 9)]),
    "paligemma2": ("paligemma", {"text_config": {**SIZES, "model_type": "gemma2", "head_dim": 8, "sliding_window": 5},
                                 "vision_config": VISION}, {"token_type_ids": PREFIX_0}, [(0, 9)]),
    "phi3": ("phi3", {**SIZES, "sliding_window": 5}, {}, []),
    "mixtral": ("mixtral", {**SIZES, **EXPERTS, "sliding_window": 5}, {}, []),
    "starcoder2": ("starcoder2", {**SIZES, "sliding_window": 5}, {}, []),
    "llama4_text": ("llama4_text", {**SIZES, **EXPERTS, "head_dim": 8, "attention_chunk_size": 4,
                                    "no_rope_layer_interval": 3, "intermediate_size_mlp": 16}, {}, []),
    "deepseek_v2": ("deepseek_v2", {**SIZES, **MLA, "rope_parameters": YARN, "topk_method": "greedy"}, {}, []),
    "deepseek_v3": ("deepseek_v3", {**SIZES, **MLA, "rope_parameters": YARN}, {}, []),
    "deepseek_v32": ("deepseek_v32", {**SIZES, **DSA, "rope_parameters": YARN}, {}, []),
    "glm_moe_dsa": ("glm_moe_dsa", {**SIZES, **DSA, "index_topk_freq": 2}, {}, []),
    "glm4_moe_lite": ("glm4_moe_lite", {**SIZES, **MLA}, {}, []),
    "glm": ("glm", {**SIZES, "head_dim": 8}, {}, []),
    "glm4": ("glm4", {**SIZES, "head_dim": 8}, {}, []),
    "glm4_moe": ("glm4_moe", {**SIZES, **EXPERTS, "head_dim": 8}, {}, []),
    "cohere": ("cohere", SIZES, {}, []),
    "cohere2": ("cohere2", {**SIZES, "sliding_window": 5}, {}, []),
    "olmo": ("olmo", SIZES, {}, []),
    "olmo2": ("olmo2", SIZES, {}, []),
    "olmo3": ("olmo3", {**SIZES, "sliding_window": 5}, {}, []),
    "granite": ("granite", {**SIZES, "attention_multiplier": 0.03}, {}, []),
    "granitemoe": ("granitemoe", {**SIZES, **EXPERTS, "attention_multiplier": 0.03}, {}, []),
    "smollm3": ("smollm3", {**SIZES, "use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2},
                {}, []),
    "gpt_neox": ("gpt_neox", {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, {}, []),
    "bert": ("bert", SIZES, {}, []),
    "roberta": ("roberta", SIZES, {}, []),
    "xlm-roberta": ("xlm-roberta", SIZES, {}, []),
    "modernbert": ("modernbert", {**SIZES, "local_attention": 8}, {}, []),
    "whisper": ("whisper", {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
                            "decoder_attention_heads": 2, "vocab_size": 50, "pad_token_id": 0, "num_mel_bins": 4,
                            "max_source_positions": 6, "decoder_start_token_id": 1},
                {"input_features": torch.zeros(1, 4, 12)}, []),
}
# transformers makes the right mask, but hands these attention classes no window beside it.
NO_WINDOW_GIVEN = ("qwen2_moe",)
Call = tuple[str, Any, Any, Any, Any, Any, dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def noting() -> Iterator[None]:
    from transformers.masking_utils import eager_mask

    transformers.AttentionInterface.register(NAME, _note)
    transformers.AttentionMaskInterface.register(NAME, eager_mask)
    yield
    for table in (transformers.AttentionInterface._global_mapping, transformers.AttentionMaskInterface._global_mapping):
        table.pop(NAME, None)


notes: list[tuple[Any, ...]] = []


def _note(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, None]:
    notes.append((module, query, key, value, mask, options))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def calls(config: Any, inputs: dict[str, Any]) -> list[Call]:
    """(name of the module, the module, query, key, value, mask, options) of every call of one forward."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation=NAME).eval()
    names = {module: name for name, module in model.named_modules()}
    notes.clear()
    ids = {"decoder_input_ids" if "input_features" in inputs else "input_ids": torch.randint(1, 50, (1, TOKENS))}
    with torch.no_grad():
        model(**ids, **inputs)
    return [(names[note[0]], *note) for note in notes]


def layer_kind(kinds: list[LayerKind], name: str) -> LayerKind:
    [number] = re.findall(r"layers?\.(\d+)\.", name)
    if "encoder_attn" in name or ".layers." in name:  # whisper's stacks count their layers on their own
        stack = "cross" if "encoder_attn" in name else name.split(".")[0]
        kinds = [kind for kind in kinds if kind.kind == stack] or kinds
    [kind] = [kind for kind in kinds if int(number) in kind.layers]
    return kind


def visible(config: AttentionConfig, ranges: list[tuple[int, int]]) -> Any:
    """The mask as design.md section 6 words it, one decision at a time."""
    left, right = config.window_size
    mask = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for p in range(TOKENS):
        for j in range(TOKENS):
            seen = (left < 0 or j >= p - left) and (right < 0 or j <= p + right)
            if config.attention_chunk is not None:
                seen = seen and j // config.attention_chunk == p // config.attention_chunk
            mask[p, j] = seen or any(a <= p < e and a <= j < e for a, e in ranges)
    return mask


@pytest.mark.parametrize("name", MODELS)
def test_layers_ask_for_what_from_model_says(name: str) -> None:
    model_type, settings, inputs, ranges = MODELS[name]
    hf = transformers.AutoConfig.for_model(**{"model_type": model_type, **settings})
    kinds = AttentionConfig.from_model(hf)
    seen = calls(hf, inputs)
    assert len(seen) == sum(len(kind.layers) for kind in kinds)
    for place, module, query, key, value, mask, options in seen:
        config = layer_kind(kinds, place).config
        if config.mla is None:
            assert (query.shape[1], key.shape[1]) == (config.num_heads, config.num_kv_heads)
            assert (query.shape[3], value.shape[3]) == (config.head_dim, config.v_dim)
        else:  # expanded by transformers
            assert query.shape[1] == config.num_heads
            assert query.shape[3] == config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim
            assert value.shape[3] == config.mla.v_head_dim
        # Whisper scales q itself.
        assert options["scaling"] == pytest.approx(1.0 if model_type == "whisper" else config.scale)
        if model_type not in NO_WINDOW_GIVEN:
            assert options.get("sliding_window") == config.sliding_window
        assert (options.get("softcap") or 0.0) == config.softcap
        assert (options.get("s_aux") is not None) == config.sinks
        assert (options.get("indices") is not None) == config.sparse
        if mask is not None:
            assert torch.equal(mask[0, 0] == 0, visible(config, ranges)), place
        else:
            assert (config.causal, config.sliding_window) == (False, None)
        assert config.mm_prefix == bool(ranges)
        if model_type != "paligemma":  # its modules say False, and rely on the mask of the prefix
            assert module.is_causal == config.causal


def test_every_family_runs() -> None:
    from hal.models import FAMILIES

    ran = {settings.get("text_config", {"model_type": model_type})["model_type"]
           for model_type, settings, _, _ in MODELS.values()}
    assert ran == set(FAMILIES) - {"kimi_k2"}  # transformers reads it as deepseek_v3
