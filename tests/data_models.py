"""Published config.json files, and by hand what the attention of their layers is. Every row is data."""

from __future__ import annotations

from typing import Any

from hal import MLADims

# What the attention needs of each published config.json, as published.
SMOLLM2_135M = {"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
                "num_hidden_layers": 30, "rope_scaling": None, "torch_dtype": "bfloat16"}
LLAMA_31_8B = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
               "num_key_value_heads": 8, "num_hidden_layers": 32, "torch_dtype": "bfloat16",
               "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}
MISTRAL_7B_V01 = {"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32,
                  "num_key_value_heads": 8, "num_hidden_layers": 32, "sliding_window": 4096,
                  "torch_dtype": "bfloat16"}
GEMMA2_9B = {"model_type": "gemma2", "hidden_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 8,
             "head_dim": 256, "num_hidden_layers": 42, "sliding_window": 4096, "sliding_window_size": 4096,
             "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
             "torch_dtype": "float32"}
GPT_OSS_20B = {"model_type": "gpt_oss", "hidden_size": 2880, "num_attention_heads": 64,
               "num_key_value_heads": 8, "head_dim": 64, "num_hidden_layers": 24, "sliding_window": 128,
               "layer_types": ["sliding_attention", "full_attention"] * 12,
               "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
                                "original_max_position_embeddings": 4096, "truncate": False}}
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn"}
# As transformers 5 spells it.
NEW_YARN = {**{k: v for k, v in YARN.items() if k != "type"}, "rope_type": "yarn", "rope_theta": 1e4}
DEEPSEEK_V3 = {"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128,
               "num_key_value_heads": 128, "num_hidden_layers": 61, "kv_lora_rank": 512, "q_lora_rank": 1536,
               "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_scaling": YARN,
               "torch_dtype": "bfloat16"}
# 192 ** -0.5 = 0.0721687836..., 0.1 * ln(40) + 1 = 1.3688879454..., squared 1.8738542070...
DEEPSEEK_SCALE = 0.13523377
QWEN25_7B = {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
             "num_hidden_layers": 28, "max_window_layers": 28, "sliding_window": 131072,
             "use_sliding_window": False, "torch_dtype": "bfloat16"}
QWEN15_MOE = {"model_type": "qwen2_moe", "hidden_size": 2048, "num_attention_heads": 16,
              "num_key_value_heads": 16, "num_hidden_layers": 24, "max_window_layers": 21,
              "sliding_window": 32768, "use_sliding_window": False, "decoder_sparse_step": 1,
              "torch_dtype": "bfloat16"}
QWEN3_06B = {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
             "head_dim": 128, "num_hidden_layers": 28, "max_window_layers": 28, "sliding_window": None,
             "use_sliding_window": False, "attention_bias": False, "torch_dtype": "bfloat16"}
QWEN3_30B_A3B = {"model_type": "qwen3_moe", "hidden_size": 2048, "num_attention_heads": 32,
                 "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 48, "max_window_layers": 48,
                 "sliding_window": None, "use_sliding_window": False, "decoder_sparse_step": 1,
                 "mlp_only_layers": [], "torch_dtype": "bfloat16"}
GEMMA3_1B = {"model_type": "gemma3_text", "hidden_size": 1152, "num_attention_heads": 4,
             "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 26, "sliding_window": 512,
             "sliding_window_pattern": 6, "query_pre_attn_scalar": 256, "attn_logit_softcapping": None,
             "final_logit_softcapping": None, "rope_local_base_freq": 10000, "torch_dtype": "bfloat16"}
# Keys that the file leaves to Gemma3TextConfig: heads 8 and 4, head_dim 256, query_pre_attn_scalar 256.
GEMMA3_4B = {"model_type": "gemma3", "mm_tokens_per_image": 256, "torch_dtype": "bfloat16",
             "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
                             "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
             "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152,
                               "num_attention_heads": 16, "num_hidden_layers": 27}}
GEMMA3_27B = {**GEMMA3_4B, "text_config": {
    "model_type": "gemma3_text", "head_dim": 128, "hidden_size": 5376, "num_attention_heads": 32,
    "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}
EMBEDDING_GEMMA = {"model_type": "gemma3_text", "hidden_size": 768, "num_attention_heads": 3,
                   "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 24, "sliding_window": 512,
                   "_sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
                   "use_bidirectional_attention": True, "torch_dtype": "float32"}
PHI3_MINI_4K = {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
                "num_hidden_layers": 32, "sliding_window": 2047, "attention_bias": False,
                "torch_dtype": "bfloat16"}
PHI4 = {"model_type": "phi3", "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 10,
        "num_hidden_layers": 40, "sliding_window": None, "torch_dtype": "bfloat16"}
PHI4_MINI = {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8,
             "num_hidden_layers": 32, "sliding_window": 262144, "full_attn_mod": 1,
             "partial_rotary_factor": 0.75, "torch_dtype": "bfloat16"}
MIXTRAL_8X7B = {"model_type": "mixtral", "hidden_size": 4096, "num_attention_heads": 32,
                "num_key_value_heads": 8, "num_hidden_layers": 32, "num_local_experts": 8,
                "sliding_window": None, "torch_dtype": "bfloat16"}
LLAMA4_SCOUT = {"model_type": "llama4", "torch_dtype": "bfloat16", "text_config": {
    "model_type": "llama4_text", "_attn_implementation_autoset": True, "attention_chunk_size": 8192,
    "attn_scale": 0.1, "attn_temperature_tuning": True, "floor_scale": 8192, "head_dim": 128,
    "hidden_size": 5120, "no_rope_layers": [], "num_attention_heads": 40, "num_hidden_layers": 48,
    "num_key_value_heads": 8, "num_local_experts": 16, "use_qk_norm": True, "torch_dtype": "bfloat16"},
    "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 1408}}
DEEPSEEK_V2_LITE = {"model_type": "deepseek_v2", "hidden_size": 2048, "num_attention_heads": 16,
                    "num_key_value_heads": 16, "num_hidden_layers": 27, "kv_lora_rank": 512,
                    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
                    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
                    "torch_dtype": "bfloat16"}
DEEPSEEK_V32 = {**DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64,
                "index_topk": 2048}
KIMI_K2 = {**DEEPSEEK_V3, "model_type": "kimi_k2", "num_attention_heads": 64, "num_key_value_heads": 64,
           "rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0}}
KIMI_K25 = {"model_type": "kimi_k25", "text_config": {**KIMI_K2, "rope_scaling": {**KIMI_K2["rope_scaling"],
                                                                                  "factor": 64.0}}}
GLM4_9B = {"model_type": "glm4", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 2,
           "head_dim": 128, "num_hidden_layers": 40, "attention_bias": True, "partial_rotary_factor": 0.5,
           "torch_dtype": "bfloat16"}
GLM_9B_CHAT = {**GLM4_9B, "model_type": "glm"}
GLM_45 = {"model_type": "glm4_moe", "hidden_size": 5120, "num_attention_heads": 96, "num_key_value_heads": 8,
          "head_dim": 128, "num_hidden_layers": 92, "attention_bias": True, "use_qk_norm": True,
          "torch_dtype": "bfloat16"}
GLM_47_FLASH = {"model_type": "glm4_moe_lite", "hidden_size": 2048, "num_attention_heads": 20,
                "num_key_value_heads": 20, "num_hidden_layers": 47, "kv_lora_rank": 512, "q_lora_rank": 768,
                "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "rope_scaling": None,
                "torch_dtype": "bfloat16"}
GLM_5 = {"model_type": "glm_moe_dsa", "hidden_size": 6144, "num_attention_heads": 64,
         "num_key_value_heads": 64, "head_dim": 64, "num_hidden_layers": 78, "kv_lora_rank": 512,
         "q_lora_rank": 2048, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
         "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048, "dtype": "bfloat16",
         "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}
BERT_BASE = {"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12,
             "attention_probs_dropout_prob": 0.1, "position_embedding_type": "absolute"}
ROBERTA_LARGE = {**BERT_BASE, "model_type": "roberta", "hidden_size": 1024, "num_attention_heads": 16,
                 "num_hidden_layers": 24}
BGE_M3 = {**ROBERTA_LARGE, "model_type": "xlm-roberta", "torch_dtype": "float32"}
MODERNBERT_BASE = {"model_type": "modernbert", "hidden_size": 768, "num_attention_heads": 12,
                   "num_hidden_layers": 22, "local_attention": 128, "global_attn_every_n_layers": 3,
                   "attention_bias": False, "deterministic_flash_attn": False, "position_embedding_type":
                   "absolute", "torch_dtype": "float32"}
WHISPER_LARGE_V3 = {"model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32,
                    "encoder_attention_heads": 20, "decoder_attention_heads": 20, "num_hidden_layers": 32,
                    "is_encoder_decoder": True, "torch_dtype": "float16"}
GEMMA_7B = {"model_type": "gemma", "hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16,
            "head_dim": 256, "num_hidden_layers": 28, "torch_dtype": "bfloat16"}
# head_dim is left to GemmaConfig: 256.
PALIGEMMA_3B = {"model_type": "paligemma", "torch_dtype": "float32", "projection_dim": 2048,
                "text_config": {"model_type": "gemma", "hidden_size": 2048, "num_attention_heads": 8,
                                "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1,
                                "torch_dtype": "float32"},
                "vision_config": {"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14}}
PALIGEMMA2_10B = {**PALIGEMMA_3B, "text_config": {**GEMMA2_9B, "torch_dtype": "bfloat16"}}
COMMAND_R = {"model_type": "cohere", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 64,
             "num_hidden_layers": 40, "logit_scale": 0.0625, "torch_dtype": "float16"}
COMMAND_R7B = {"model_type": "cohere2", "hidden_size": 4096, "num_attention_heads": 32,
               "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 32, "sliding_window": 4096,
               "sliding_window_pattern": 4, "order_of_interleaved_layers": "local_attn_first",
               "position_embedding_type": "rope_gptj", "layer_switch": 4, "torch_dtype": "bfloat16"}
OLMO_7B = {"model_type": "olmo", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
           "num_hidden_layers": 32, "clip_qkv": None, "torch_dtype": "float32"}
OLMO2_7B = {**OLMO_7B, "model_type": "olmo2"}
OLMO3_7B = {**OLMO_7B, "model_type": "olmo3", "sliding_window": 4096, "torch_dtype": "bfloat16",
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8}
GRANITE_8B = {"model_type": "granite", "hidden_size": 4096, "num_attention_heads": 32,
              "num_key_value_heads": 8, "num_hidden_layers": 40, "attention_multiplier": 0.0078125,
              "embedding_multiplier": 12.0, "torch_dtype": "bfloat16"}
GRANITE_3B_MOE = {"model_type": "granitemoe", "hidden_size": 1536, "num_attention_heads": 24,
                  "num_key_value_heads": 8, "num_hidden_layers": 32, "attention_multiplier": 0.015625,
                  "torch_dtype": "bfloat16"}
SMOLLM3_3B = {"model_type": "smollm3", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4,
              "num_hidden_layers": 36, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
              "layer_types": ["full_attention"] * 36, "use_sliding_window": False, "sliding_window": None,
              "max_window_layers": 28, "torch_dtype": "bfloat16"}
STARCODER2_7B = {"model_type": "starcoder2", "hidden_size": 4608, "num_attention_heads": 36,
                 "num_key_value_heads": 4, "num_hidden_layers": 32, "sliding_window": 4096,
                 "attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True,
                 "scale_attn_weights": True, "torch_dtype": "bfloat16"}
PYTHIA_160M = {"model_type": "gpt_neox", "hidden_size": 768, "num_attention_heads": 12,
               "num_hidden_layers": 12, "rotary_pct": 0.25, "torch_dtype": "float16"}

EVEN, ODD = (tuple(range(start, 42, 2)) for start in (0, 1))
# config -> [(kind, layers, the fields that differ from AttentionConfig's defaults, scale)]
EXPECTED: dict[str, tuple[dict[str, Any], list[tuple[str, tuple[int, ...], dict[str, Any], float]]]] = {
    "SmolLM2-135M": (SMOLLM2_135M, [
        ("full", tuple(range(30)), {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64}, 0.125)]),
    "Llama-3.1-8B": (LLAMA_31_8B, [
        ("full", tuple(range(32)), {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}, 0.08838835)]),
    "Mistral-7B-v0.1": (MISTRAL_7B_V01, [
        ("sliding", tuple(range(32)), {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128,
                                       "sliding_window": 4096}, 0.08838835)]),
    "Gemma-2-9B": (GEMMA2_9B, [
        ("sliding", EVEN, {"num_heads": 16, "num_kv_heads": 8, "head_dim": 256, "softcap": 50.0,
                           "sliding_window": 4096, "dtype": "float32", "softmax_scale": 0.0625}, 0.0625),
        ("full", ODD, {"num_heads": 16, "num_kv_heads": 8, "head_dim": 256, "softcap": 50.0,
                       "dtype": "float32", "softmax_scale": 0.0625}, 0.0625)]),
    "gpt-oss-20b": (GPT_OSS_20B, [
        ("sliding", EVEN[:12], {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "sinks": True,
                                "sliding_window": 128}, 0.125),
        ("full", ODD[:12], {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "sinks": True}, 0.125)]),
}

# Layers in order, as numbers of layers of the period: every(62, 6, 5) is 5, 11, ..., 59.


def every(count: int, period: int, *places: int) -> tuple[int, ...]:
    return tuple(i for i in range(count) if i % period in places)


DENSE = 0.08838835  # 128 ** -0.5
MLA = {"head_dim": 576, "head_dim_v": 512, "num_kv_heads": 1}
GLM_DIMS = MLADims(kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=192, v_head_dim=256)
ENCODER = {"causal": False, "attention_type": "encoder_only"}
GEMMA27 = {"num_heads": 32, "num_kv_heads": 16, "head_dim": 128, "softmax_scale": 168**-0.5, "mm_prefix": True}
GEMMA4B = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "softmax_scale": 0.0625, "mm_prefix": True}
GEMMA1B = {"num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "softmax_scale": 0.0625}
EMBED = {"num_heads": 3, "num_kv_heads": 1, "head_dim": 256, "softmax_scale": 0.0625, "dtype": "float32", **ENCODER}
PALI10B = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 256, "softcap": 50.0, "softmax_scale": 0.0625,
           "mm_prefix": True}
LARGE = {"num_heads": 20, "num_kv_heads": 20, "head_dim": 64, "dtype": "float16"}
EXPECTED |= {
    "Qwen2.5-7B": (QWEN25_7B, [("full", every(28, 1, 0), {"num_heads": 28, "num_kv_heads": 4}, DENSE)]),
    "Qwen1.5-MoE-A2.7B": (QWEN15_MOE, [("full", every(24, 1, 0), {"num_heads": 16, "num_kv_heads": 16}, DENSE)]),
    "Qwen3-0.6B": (QWEN3_06B, [("full", every(28, 1, 0), {"num_heads": 16, "num_kv_heads": 8}, DENSE)]),
    "Qwen3-30B-A3B": (QWEN3_30B_A3B, [("full", every(48, 1, 0), {"num_heads": 32, "num_kv_heads": 4}, DENSE)]),
    "Gemma-3-1B": (GEMMA3_1B, [
        ("sliding", every(26, 6, 0, 1, 2, 3, 4), {**GEMMA1B, "sliding_window": 512}, 0.0625),
        ("full", (5, 11, 17, 23), GEMMA1B, 0.0625)]),
    "Gemma-3-4B": (GEMMA3_4B, [
        ("sliding", every(34, 6, 0, 1, 2, 3, 4), {**GEMMA4B, "sliding_window": 1024}, 0.0625),
        ("full", (5, 11, 17, 23, 29), GEMMA4B, 0.0625)]),
    "Gemma-3-27B": (GEMMA3_27B, [
        ("sliding", every(62, 6, 0, 1, 2, 3, 4), {**GEMMA27, "sliding_window": 1024}, 0.07715167),
        ("full", (5, 11, 17, 23, 29, 35, 41, 47, 53, 59), GEMMA27, 0.07715167)]),
    "EmbeddingGemma-300M": (EMBEDDING_GEMMA, [
        ("sliding", every(24, 6, 0, 1, 2, 3, 4), {**EMBED, "sliding_window": 257}, 0.0625),
        ("full", (5, 11, 17, 23), EMBED, 0.0625)]),
    "Phi-3-mini-4k": (PHI3_MINI_4K, [
        ("sliding", every(32, 1, 0), {"num_heads": 32, "num_kv_heads": 32, "head_dim": 96, "sliding_window": 2047},
         0.10206207)]),
    "Phi-4": (PHI4, [("full", every(40, 1, 0), {"num_heads": 40, "num_kv_heads": 10}, DENSE)]),
    "Phi-4-mini": (PHI4_MINI, [
        ("sliding", every(32, 1, 0), {"num_heads": 24, "num_kv_heads": 8, "sliding_window": 262144}, DENSE)]),
    "Mixtral-8x7B": (MIXTRAL_8X7B, [("full", every(32, 1, 0), {"num_heads": 32, "num_kv_heads": 8}, DENSE)]),
    "Llama-4-Scout": (LLAMA4_SCOUT, [
        ("chunked", every(48, 4, 0, 1, 2), {"num_heads": 40, "num_kv_heads": 8, "attention_chunk": 8192}, DENSE),
        ("full", every(48, 4, 3), {"num_heads": 40, "num_kv_heads": 8}, DENSE)]),
    "DeepSeek-V3": (DEEPSEEK_V3, [
        ("mla", every(61, 1, 0), {"num_heads": 128, "mla": True, "softmax_scale": DEEPSEEK_SCALE, **MLA},
         DEEPSEEK_SCALE)]),
    # 0.0707 * ln(40) + 1 = 1.2608037774, squared 1.5896261651
    "DeepSeek-V2-Lite": (DEEPSEEK_V2_LITE, [
        ("mla", every(27, 1, 0), {"num_heads": 16, "mla": True, "softmax_scale": 0.11472139, **MLA}, 0.11472139)]),
    "DeepSeek-V3.2-Exp": (DEEPSEEK_V32, [
        ("sparse_mla", every(61, 1, 0), {"num_heads": 128, "mla": True, "sparse": True,
                                         "softmax_scale": DEEPSEEK_SCALE, **MLA}, DEEPSEEK_SCALE)]),
    # 0.1 * ln(32) + 1 = 1.3465735903, squared 1.8132604340; with 64: 1.4158883083, squared 2.0047397017
    "Kimi-K2": (KIMI_K2, [
        ("mla", every(61, 1, 0), {"num_heads": 64, "mla": True, "softmax_scale": 0.13086080, **MLA}, 0.13086080)]),
    "Kimi-K2.5": (KIMI_K25, [
        ("mla", every(61, 1, 0), {"num_heads": 64, "mla": True, "softmax_scale": 0.14467962, **MLA}, 0.14467962)]),
    "GLM-4-9B-0414": (GLM4_9B, [("full", every(40, 1, 0), {"num_heads": 32, "num_kv_heads": 2}, DENSE)]),
    "glm-4-9b-chat": (GLM_9B_CHAT, [("full", every(40, 1, 0), {"num_heads": 32, "num_kv_heads": 2}, DENSE)]),
    "GLM-4.5": (GLM_45, [("full", every(92, 1, 0), {"num_heads": 96, "num_kv_heads": 8}, DENSE)]),
    "GLM-4.7-Flash": (GLM_47_FLASH, [
        ("mla", every(47, 1, 0), {"num_heads": 20, "mla": GLM_DIMS, "softmax_scale": 0.0625, **MLA}, 0.0625)]),
    "GLM-5": (GLM_5, [
        ("sparse_mla", every(78, 1, 0), {"num_heads": 64, "mla": GLM_DIMS, "sparse": True, "softmax_scale": 0.0625,
                                         **MLA}, 0.0625)]),
    "bert-base": (BERT_BASE, [
        ("full", every(12, 1, 0), {"num_heads": 12, "num_kv_heads": 12, "head_dim": 64, **ENCODER}, 0.125)]),
    "roberta-large": (ROBERTA_LARGE, [
        ("full", every(24, 1, 0), {"num_heads": 16, "num_kv_heads": 16, "head_dim": 64, **ENCODER}, 0.125)]),
    "bge-m3": (BGE_M3, [
        ("full", every(24, 1, 0), {"num_heads": 16, "num_kv_heads": 16, "head_dim": 64, "dtype": "float32",
                                   **ENCODER}, 0.125)]),
    # 64 tokens on either side and the current one.
    "ModernBERT-base": (MODERNBERT_BASE, [
        ("full", (0, 3, 6, 9, 12, 15, 18, 21), {"num_heads": 12, "num_kv_heads": 12, "head_dim": 64,
                                                "dtype": "float32", **ENCODER}, 0.125),
        ("sliding", every(22, 3, 1, 2), {"num_heads": 12, "num_kv_heads": 12, "head_dim": 64, "dtype": "float32",
                                         "sliding_window": 65, **ENCODER}, 0.125)]),
    "whisper-large-v3": (WHISPER_LARGE_V3, [
        ("encoder", every(32, 1, 0), {**LARGE, "causal": False, "attention_type": "encoder"}, 0.125),
        ("decoder", every(32, 1, 0), {**LARGE, "causal": True, "attention_type": "decoder"}, 0.125),
        ("cross", every(32, 1, 0), {**LARGE, "causal": False, "attention_type": "encoder_decoder"}, 0.125)]),
    "gemma-7b": (GEMMA_7B, [
        ("full", every(28, 1, 0), {"num_heads": 16, "num_kv_heads": 16, "head_dim": 256}, 0.0625)]),
    "paligemma-3b": (PALIGEMMA_3B, [
        ("full", every(18, 1, 0), {"num_heads": 8, "num_kv_heads": 1, "head_dim": 256, "dtype": "float32",
                                   "mm_prefix": True}, 0.0625)]),
    "paligemma2-10b": (PALIGEMMA2_10B, [
        ("sliding", EVEN, {**PALI10B, "sliding_window": 4096}, 0.0625), ("full", ODD, PALI10B, 0.0625)]),
    "command-r": (COMMAND_R, [
        ("full", every(40, 1, 0), {"num_heads": 64, "num_kv_heads": 64, "dtype": "float16"}, DENSE)]),
    "command-r7b": (COMMAND_R7B, [
        ("sliding", every(32, 4, 0, 1, 2), {"num_heads": 32, "num_kv_heads": 8, "sliding_window": 4096}, DENSE),
        ("full", every(32, 4, 3), {"num_heads": 32, "num_kv_heads": 8}, DENSE)]),
    "OLMo-7B": (OLMO_7B, [
        ("full", every(32, 1, 0), {"num_heads": 32, "num_kv_heads": 32, "dtype": "float32"}, DENSE)]),
    "OLMo-2-7B": (OLMO2_7B, [
        ("full", every(32, 1, 0), {"num_heads": 32, "num_kv_heads": 32, "dtype": "float32"}, DENSE)]),
    "Olmo-3-7B": (OLMO3_7B, [
        ("sliding", every(32, 4, 0, 1, 2), {"num_heads": 32, "num_kv_heads": 32, "sliding_window": 4096}, DENSE),
        ("full", every(32, 4, 3), {"num_heads": 32, "num_kv_heads": 32}, DENSE)]),
    "granite-3.0-8b": (GRANITE_8B, [
        ("full", every(40, 1, 0), {"num_heads": 32, "num_kv_heads": 8, "softmax_scale": 0.0078125}, 0.0078125)]),
    "granite-3.0-3b-a800m": (GRANITE_3B_MOE, [
        ("full", every(32, 1, 0), {"num_heads": 24, "num_kv_heads": 8, "head_dim": 64, "softmax_scale": 0.015625},
         0.015625)]),
    "SmolLM3-3B": (SMOLLM3_3B, [("full", every(36, 1, 0), {"num_heads": 16, "num_kv_heads": 4}, DENSE)]),
    "starcoder2-7b": (STARCODER2_7B, [
        ("sliding", every(32, 1, 0), {"num_heads": 36, "num_kv_heads": 4, "sliding_window": 4096}, DENSE)]),
    "pythia-160m": (PYTHIA_160M, [
        ("full", every(12, 1, 0), {"num_heads": 12, "num_kv_heads": 12, "head_dim": 64, "dtype": "float16"}, 0.125)]),
}

ON = {"use_sliding_window": True, "num_hidden_layers": 6}
SCOUT_TEXT: dict[str, Any] = LLAMA4_SCOUT["text_config"]
S, F, C = "sliding_attention", "full_attention", "chunked_attention"
# What no published file says, but the rules do: (config, {kind: layers}, window or chunk of the kind that has one)
RULES: list[tuple[dict[str, Any], dict[str, tuple[int, ...]], int]] = [
    ({**QWEN25_7B, **ON, "max_window_layers": 4}, {"full": (0, 1, 2, 3), "sliding": (4, 5)}, 131072),
    ({**QWEN25_7B, **ON, "max_window_layers": 0}, {"sliding": (0, 1, 2, 3, 4, 5)}, 131072),
    ({**QWEN25_7B, **ON, "sliding_window": None}, {"full": (0, 1, 2, 3, 4, 5)}, 0),
    ({**QWEN25_7B, **ON, "layer_types": [S, F, F, F, F, S]}, {"sliding": (0, 5), "full": (1, 2, 3, 4)}, 131072),
    ({**QWEN3_06B, **ON, "sliding_window": 64, "max_window_layers": 3}, {"full": (0, 1, 2), "sliding": (3, 4, 5)}, 64),
    ({**QWEN15_MOE, **ON, "max_window_layers": 4}, {"sliding": (0, 2), "full": (1, 3, 4, 5)}, 32768),
    ({**QWEN3_30B_A3B, **ON, "sliding_window": 64}, {"sliding": (0, 1, 2, 3, 4, 5)}, 64),
    ({**SMOLLM3_3B, **ON, "sliding_window": 64, "layer_types": None, "no_rope_layers": [1, 1, 1, 0, 1, 0]},
     {"full": (0, 1, 2, 4), "sliding": (3, 5)}, 64),
    ({**SMOLLM3_3B, **ON, "sliding_window": 64, "layer_types": None, "no_rope_layers": None,
      "no_rope_layer_interval": 2}, {"full": (0, 2, 4), "sliding": (1, 3, 5)}, 64),
    ({**MIXTRAL_8X7B, "num_hidden_layers": 2, "sliding_window": 4096}, {"sliding": (0, 1)}, 4096),
    ({**GEMMA3_1B, "num_hidden_layers": 4, "sliding_window_pattern": 2}, {"sliding": (0, 2), "full": (1, 3)}, 512),
    ({**GEMMA3_1B, "num_hidden_layers": 3, "layer_types": [F, S, F]}, {"full": (0, 2), "sliding": (1,)}, 512),
    ({**COMMAND_R7B, "num_hidden_layers": 3, "sliding_window_pattern": 2}, {"sliding": (0, 2), "full": (1,)}, 4096),
    ({k: v for k, v in {**COMMAND_R7B, "num_hidden_layers": 5}.items() if k != "sliding_window_pattern"},
     {"sliding": (0, 1, 2, 4), "full": (3,)}, 4096),
    ({**OLMO3_7B, "num_hidden_layers": 5, "layer_types": None}, {"sliding": (0, 1, 2, 4), "full": (3,)}, 4096),
    ({**SCOUT_TEXT, "num_hidden_layers": 4, "no_rope_layers": [0, 1, 1, 0]}, {"full": (0, 3), "chunked": (1, 2)}, 8192),
    ({**SCOUT_TEXT, "num_hidden_layers": 3, "layer_types": [C, F, C]}, {"chunked": (0, 2), "full": (1,)}, 8192),
    ({**SCOUT_TEXT, "num_hidden_layers": 2, "no_rope_layer_interval": 2}, {"chunked": (0,), "full": (1,)}, 8192),
    ({**SCOUT_TEXT, "num_hidden_layers": 2, "attention_chunk_size": None, "layer_types": [F, F]}, {"full": (0, 1)}, 0),
    ({**MODERNBERT_BASE, "num_hidden_layers": 3, "layer_types": [S, F, F]}, {"sliding": (0,), "full": (1, 2)}, 65),
    ({**MODERNBERT_BASE, "num_hidden_layers": 3, "global_attn_every_n_layers": 1}, {"full": (0, 1, 2)}, 0),
    ({**DEEPSEEK_V32, "num_hidden_layers": 2, "layer_types": ["deepseek_sparse_attention"] * 2},
     {"sparse_mla": (0, 1)}, 0),
]

TEXT_27B: dict[str, Any] = GEMMA3_27B["text_config"]
LINEAR = ["linear_attention"] * 27 + [F]
# Attention features that no rule covers, and settings that contradict a rule: (config, what the error says).
UNHANDLED: list[tuple[dict[str, Any], str]] = [
    ({**LLAMA_31_8B, "sliding_window": 4096}, "sliding_window = 4096 is not handled for model_type 'llama' .handled"),
    ({**LLAMA_31_8B, "is_causal": False}, "is_causal = False is not handled for model_type 'llama'"),
    ({**QWEN25_7B, "is_causal": False}, "is_causal = False is not handled for model_type 'qwen2'"),
    ({**QWEN25_7B, "dual_chunk_attention_config": {"chunk_size": 262144}},
     "dual_chunk_attention_config = {'chunk_size': 262144} is not handled for model_type 'qwen2' .handled for no"),
    ({**QWEN25_7B, "layer_types": LINEAR}, "layer_types must list 28 .*linear_attention is no attention that HAL"),
    ({**QWEN25_7B, "layer_types": [S] * 28}, "layer_types has sliding_attention, but use_sliding_window is false"),
    ({**QWEN25_7B, "use_sliding_window": "yes"}, "use_sliding_window must be true or false, got 'yes'"),
    ({**QWEN25_7B, **ON, "max_window_layers": None}, "max_window_layers must be a whole number >= 0, got None"),
    ({**QWEN25_7B, "attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0 .* 'qwen2' .handled for gemma2"),
    ({**QWEN3_06B, "attention_sink_size": 4}, "attention_sink_size = 4 is not handled for model_type 'qwen3'"),
    ({k: v for k, v in QWEN3_06B.items() if k != "head_dim"}, "no key 'head_dim'"),
    ({**QWEN3_30B_A3B, "layer_types": [S] * 48}, "layer_types = 48 of 'sliding_attention' is not .*'qwen3_moe'"),
    ({**GEMMA3_1B, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not handled .*'gemma3_text'"),
    ({**GEMMA3_1B, "sliding_window": None}, "sliding_window must be a whole number >= 1, got None"),
    ({**GEMMA3_1B, "layer_types": [S] * 25 + ["mamba"]}, "mamba is no attention that HAL serves"),
    ({**GEMMA3_27B, "mm_tokens_per_image": 2048}, "mm_tokens_per_image 2048 is more than sliding_window 1024"),
    ({**GEMMA3_27B, "text_config": {**TEXT_27B, "use_bidirectional_attention": True}},
     "use_bidirectional_attention = True is not handled for model_type 'gemma3_text' inside 'gemma3'"),
    ({**GEMMA3_27B, "text_config": MISTRAL_7B_V01}, "model_type 'mistral' is not known inside 'gemma3'"),
    ({**PALIGEMMA_3B, "text_config": QWEN25_7B}, "'qwen2' is not known inside 'paligemma' .known: gemma, gemma2"),
    ({**PALIGEMMA_3B, "model_type": "colpali"}, "'colpali' is not served: its image tokens attend in both"),
    ({**PALIGEMMA_3B["text_config"], "use_bidirectional_attention": True}, "bidirectional_attention = True .*'gemma'"),
    ({**LLAMA4_SCOUT, "cross_attention_layers": [3, 8]}, "cross_attention_layers = .3, 8. .* inside 'llama4'"),
    ({**SCOUT_TEXT, "attention_chunk_size": None}, "attention_chunk_size must be a whole number >= 1, got None"),
    ({**SCOUT_TEXT, "no_rope_layers": [1, 0]}, "no_rope_layers must list 48 of 0 and 1"),
    ({**SCOUT_TEXT, "layer_types": [S] * 48}, "layer_types must list 48 of full_attention, chunked_attention"),
    ({**SCOUT_TEXT, "sliding_window": 64}, "sliding_window = 64 is not handled for model_type 'llama4_text'"),
    ({**PHI4_MINI, "full_attn_mod": 2}, "full_attn_mod = 2 is not handled for model_type 'phi3'"),
    ({**MIXTRAL_8X7B, "sliding_window": 0}, "sliding_window must be a whole number >= 1, got 0"),
    ({**DEEPSEEK_V3, "index_topk": 2048}, "index_topk = 2048 .*'deepseek_v3' .handled for deepseek_v32, glm_moe_dsa"),
    ({**DEEPSEEK_V32, "index_topk": None}, "index_topk must be a whole number >= 1, got None"),
    ({**DEEPSEEK_V32, "layer_types": [F] * 61}, "layer_types must list 61 of indexed_attention"),
    ({**KIMI_K2, "layer_types": LINEAR}, "layer_types = 28 of 'linear_attention', 'full_attention' is not .*'kimi_k2'"),
    ({**GLM4_9B, "kv_lora_rank": 512}, "kv_lora_rank = 512 is not handled for model_type 'glm4'"),
    ({**GLM_45, "head_dim": None}, "hidden_size 5120 does not divide by num_attention_heads 96"),
    ({**BERT_BASE, "is_decoder": True}, "is_decoder = True is not handled for model_type 'bert'"),
    ({**BERT_BASE, "add_cross_attention": True}, "add_cross_attention = True is not handled"),
    ({**BERT_BASE, "position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not"),
    ({**BERT_BASE, "pruned_heads": {"0": [1]}}, "pruned_heads = .* is not handled"),
    ({**BERT_BASE, "head_dim": 32}, "head_dim 32 is not hidden_size / num_attention_heads = 64"),
    ({k: v for k, v in MODERNBERT_BASE.items() if k != "local_attention"}, "no key 'local_attention'"),
    ({**WHISPER_LARGE_V3, "decoder_attention_heads": 19}, "d_model 1280 does not divide by decoder_attention_h"),
    ({**WHISPER_LARGE_V3, "encoder_layers": None}, "encoder_layers must be a whole number >= 1, got None"),
    ({**COMMAND_R7B, "order_of_interleaved_layers": "global_attn_first"}, "order_of_interleaved_layers = 'global_a"),
    ({**OLMO2_7B, "sliding_window": 4096}, "sliding_window = 4096 is not handled for model_type 'olmo2'"),
    ({**GRANITE_8B, "attention_multiplier": 0}, "attention_multiplier must be a finite number > 0, got 0"),
    ({**LLAMA_31_8B, "attention_multiplier": 0.01}, "attention_multiplier = 0.01 .* 'llama' .handled for granite"),
    ({**STARCODER2_7B, "scale_attn_weights": False}, "scale_attn_weights = False is not handled"),
    ({**STARCODER2_7B, "swa_head_dim": 64}, "swa_head_dim = 64 is not handled for model_type 'starcoder2'"),
    ({**PYTHIA_160M, "alibi": True}, "alibi = True is not handled for model_type 'gpt_neox'"),
    ({**QWEN25_7B, "model_type": "qwen3_next", "layer_types": LINEAR}, "'qwen3_next' .*: it has linear_attention"),
    ({"model_type": "mamba2"}, "'mamba2' is not known .*: it has mamba layers and no attention"),
    ({"model_type": "t5"}, "'t5' is not known .*: it adds a relative position bias"),
    ({"model_type": ["llama"]}, r"model_type \['llama'\] is not known"),
]
