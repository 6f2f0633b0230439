"""AttentionConfig.from_model against published config.json values; every expected value is by hand."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_models import (
    DEEPSEEK_SCALE,
    DEEPSEEK_V3,
    EXPECTED,
    GEMMA2_9B,
    GPT_OSS_20B,
    KIMI_K2,
    LLAMA4_SCOUT,
    LLAMA_31_8B,
    MISTRAL_7B_V01,
    NEW_YARN,
    PALIGEMMA_3B,
    RULES,
    SMOLLM2_135M,
    UNHANDLED,
    WHISPER_LARGE_V3,
    YARN,
)

from hal import AttentionConfig, MLADims
from hal.model_features import HARMLESS, NOT_SERVED, SUSPECT
from hal.models import FAMILIES


@pytest.mark.parametrize("name", EXPECTED)
def test_published_config(name: str) -> None:
    config, expected = EXPECTED[name]
    kinds = AttentionConfig.from_model(config)
    assert [(k.kind, k.layers) for k in kinds] == [(kind, layers) for kind, layers, _, _ in expected]
    for kind, (_, _, fields, scale) in zip(kinds, expected):
        seen, wanted = kind.config.to_dict(), AttentionConfig(**fields).to_dict()
        given = seen.pop("softmax_scale"), wanted.pop("softmax_scale")
        assert seen == wanted
        assert (given[0] is None) == (given[1] is None)
        assert kind.config.scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(("config", "kinds", "size"), RULES, ids=range(len(RULES)))
def test_rule(config: dict[str, Any], kinds: dict[str, tuple[int, ...]], size: int) -> None:
    seen = AttentionConfig.from_model(config)
    assert {kind.kind: kind.layers for kind in seen} == kinds
    for kind in seen:
        windowed = {"sliding": (size, None), "chunked": (None, size)}.get(kind.kind, (None, None))
        assert (kind.config.sliding_window, kind.config.attention_chunk) == windowed
    # What transformers makes of the same config.
    types = getattr(hf_config(config), "layer_types", None)
    if types is not None:
        names = {"full_attention": "full", "sliding_attention": "sliding", "chunked_attention": "chunked",
                 "indexed_attention": "sparse_mla"}
        layers = [next(kind for kind in kinds if i in kinds[kind]) for i in range(len(types))]
        assert [names[name] for name in types] == layers


def test_deepseek_v3() -> None:
    [kind] = AttentionConfig.from_model(DEEPSEEK_V3)
    assert (kind.kind, kind.layers) == ("mla", tuple(range(61)))
    config = kind.config
    assert config.mla == MLADims(kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim_v) == (128, 1, 576, 512)
    assert config.scale == pytest.approx(DEEPSEEK_SCALE, rel=1e-6)
    assert config.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


@pytest.mark.parametrize(("change", "scale"), [
    ({"rope_scaling": None}, 0.07216878),
    ({"rope_scaling": {**YARN, "mscale_all_dim": 0}}, 0.07216878),
    ({"rope_scaling": {**YARN, "factor": 0.5}}, 0.07216878),
    ({"rope_scaling": {**YARN, "mscale_all_dim": 0.707}}, 192**-0.5 * (0.0707 * math.log(40) + 1) ** 2),
    ({"rope_scaling": None, "rope_parameters": NEW_YARN}, DEEPSEEK_SCALE),
    ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 0.07216878),
])
def test_yarn_scale(change: dict[str, Any], scale: float) -> None:
    [kind] = AttentionConfig.from_model({**DEEPSEEK_V3, **change})
    assert kind.config.scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(("config", "ranks", "heads", "kv_heads"), [
    (LLAMA_31_8B, 2, 16, 4), (LLAMA_31_8B, 8, 4, 1), (LLAMA_31_8B, 16, 2, 1), (SMOLLM2_135M, 3, 3, 1),
    (SMOLLM2_135M, 9, 1, 1), (GPT_OSS_20B, 4, 16, 2), (DEEPSEEK_V3, 8, 16, 1), (DEEPSEEK_V3, 128, 1, 1),
    (LLAMA4_SCOUT, 4, 10, 2), (LLAMA4_SCOUT, 40, 1, 1), (KIMI_K2, 16, 4, 1), (WHISPER_LARGE_V3, 5, 4, 4),
    (PALIGEMMA_3B, 4, 2, 1), (EXPECTED["GLM-4.5"][0], 8, 12, 1), (EXPECTED["bert-base"][0], 3, 4, 4),
    (EXPECTED["GLM-5"][0], 64, 1, 1), (EXPECTED["Gemma-3-27B"][0], 32, 1, 1), (EXPECTED["pythia-160m"][0], 2, 6, 6),
])
def test_heads_per_rank(config: dict[str, Any], ranks: int, heads: int, kv_heads: int) -> None:
    for kind in AttentionConfig.from_model(config, tensor_parallel_size=ranks):
        assert (kind.config.num_heads, kind.config.num_kv_heads) == (heads, kv_heads)


def test_details_of_older_and_newer_files() -> None:
    def only(config: dict[str, Any]) -> tuple[str, AttentionConfig]:
        [kind] = AttentionConfig.from_model(config)
        return kind.kind, kind.config

    # v0.2 and v0.3 of Mistral-7B write null.
    assert only({**MISTRAL_7B_V01, "sliding_window": None})[0] == "full"
    # The first Llama: no num_key_value_heads at all.
    assert only({k: v for k, v in LLAMA_31_8B.items() if k != "num_key_value_heads"})[1].num_kv_heads == 32
    assert only({k: v for k, v in LLAMA_31_8B.items() if k != "torch_dtype"})[1].dtype == "bfloat16"
    assert only({**LLAMA_31_8B, "torch_dtype": None, "dtype": "float16"})[1].dtype == "float16"
    assert only({**LLAMA_31_8B, "head_dim": 64})[1].head_dim == 64
    assert only({**LLAMA_31_8B, "layer_types": ["full_attention"] * 32, "sliding_window": None})[0] == "full"
    no_types = {k: v for k, v in GPT_OSS_20B.items() if k != "layer_types"}
    assert AttentionConfig.from_model(no_types) == AttentionConfig.from_model(GPT_OSS_20B)
    full_first = {**GPT_OSS_20B, "num_hidden_layers": 3,
                  "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    kinds = AttentionConfig.from_model(full_first)
    assert [(k.kind, k.layers) for k in kinds] == [("full", (0, 2)), ("sliding", (1,))]
    kinds = AttentionConfig.from_model({**GEMMA2_9B, "attn_logit_softcapping": None})
    assert [k.config.softcap for k in kinds] == [0, 0]


def test_what_a_file_may_leave_out() -> None:
    gemma = EXPECTED["gemma-7b"][0]  # head_dim is 256, though 3072 / 16 is not
    assert AttentionConfig.from_model(without(gemma, "head_dim")) == AttentionConfig.from_model(gemma)
    olmo = EXPECTED["OLMo-2-7B"][0]  # as many KV heads as heads
    for changed in (without(olmo, "num_key_value_heads"), {**olmo, "num_key_value_heads": None}):
        assert AttentionConfig.from_model(changed) == AttentionConfig.from_model(olmo)


def test_shieldgemma_is_gemma3_inside() -> None:
    gemma = EXPECTED["Gemma-3-4B"][0]
    assert AttentionConfig.from_model({**gemma, "model_type": "shieldgemma2"}) == AttentionConfig.from_model(gemma)


def test_a_nested_text_config_counts_with_the_outer_dtype() -> None:
    text = {k: v for k, v in MISTRAL_7B_V01.items() if k != "torch_dtype"}
    outer = {"model_type": "llava", "torch_dtype": "float16", "text_config": text}
    [kind] = AttentionConfig.from_model(outer)
    assert (kind.kind, kind.config.dtype, kind.config.sliding_window) == ("sliding", "float16", 4096)


def hf_config(config: dict[str, Any]) -> Any:
    """The same settings as transformers' config object."""
    from transformers import AutoConfig

    settings = {k: v for k, v in config.items() if k not in ("model_type", "torch_dtype", "dtype")}
    return AutoConfig.for_model(config["model_type"], **settings, dtype=config.get("dtype", config.get("torch_dtype")))


@pytest.mark.parametrize("name", EXPECTED)
def test_folder_dict_and_transformers_config_agree(name: str, tmp_path: Path) -> None:
    config = EXPECTED[name][0]
    from_dict = AttentionConfig.from_model(config, 1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AttentionConfig.from_model(tmp_path) == from_dict
    assert AttentionConfig.from_model(str(tmp_path)) == from_dict
    if config["model_type"] == "kimi_k2":  # transformers has no config class of that name: it reads it as deepseek_v3
        config = {**config, "model_type": "deepseek_v3"}
    hf = hf_config(config)
    assert AttentionConfig.from_model(hf) == from_dict
    # What this release of transformers writes (rope_parameters, layer_types, dtype) reads the same.
    hf.save_pretrained(tmp_path / "saved")
    assert AttentionConfig.from_model(tmp_path / "saved") == from_dict


@pytest.mark.parametrize(("class_name", "settings"), [
    ("MistralConfig", {}), ("Gemma2Config", {"query_pre_attn_scalar": 144}), ("GptOssConfig", {}),
    ("DeepseekV3Config", {"rope_parameters": NEW_YARN})])
def test_scale_is_that_of_transformers_own_attention(class_name: str, settings: dict[str, Any]) -> None:
    """The scaling and the window that transformers' attention module computes for the same config."""
    import torch
    import transformers

    config = getattr(transformers, class_name)(**settings, num_hidden_layers=2)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    for kind in AttentionConfig.from_model(config):
        for layer in kind.layers:
            attention = model.layers[layer].self_attn
            assert kind.config.scale == pytest.approx(attention.scaling)
            if class_name in ("Gemma2Config", "GptOssConfig"):
                assert kind.config.sliding_window == attention.sliding_window


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


BAD: list[tuple[Any, int, str]] = [
    ({**LLAMA_31_8B, "model_type": "bloom"}, 1, r"'bloom' is not known \(known: llama, mistral, gemma2"),
    (without(LLAMA_31_8B, "model_type"), 1, "no key 'model_type'"),
    (without(LLAMA_31_8B, "num_attention_heads"), 1, "llama: its config has no key 'num_attention_heads'"),
    (without(LLAMA_31_8B, "num_hidden_layers"), 1, "no key 'num_hidden_layers'"),
    (without(MISTRAL_7B_V01, "sliding_window"), 1, "mistral: its config has no key 'sliding_window'"),
    (without(MISTRAL_7B_V01, "num_key_value_heads"), 1, "no key 'num_key_value_heads'"),
    (without(GEMMA2_9B, "query_pre_attn_scalar"), 1, "no key 'query_pre_attn_scalar'"),
    (without(GEMMA2_9B, "attn_logit_softcapping"), 1, "no key 'attn_logit_softcapping'"),
    (without(GPT_OSS_20B, "head_dim"), 1, "no key 'head_dim'"),
    (without(DEEPSEEK_V3, "kv_lora_rank"), 1, "no key 'kv_lora_rank'"),
    ({**DEEPSEEK_V3, "rope_scaling": without(YARN, "factor")}, 1, "no key 'factor'"),
    ({**DEEPSEEK_V3, "rope_parameters": {"rope_type": "default"}}, 1, "both set and differ"),
    (LLAMA_31_8B, 3, "num_attention_heads 32 does not divide by tensor_parallel_size 3"),
    ({**LLAMA_31_8B, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 128}, 6,
     "num_key_value_heads 4 neither divides by tensor_parallel_size 6 nor divides it"),
    (LLAMA_31_8B, 0, "tensor_parallel_size must be a whole number >= 1, got 0"),
    (LLAMA_31_8B, True, "tensor_parallel_size must be a whole number >= 1, got True"),
    ({**LLAMA_31_8B, "torch_dtype": "float64"}, 1, "dtype 'float64' is not known"),
    ({**LLAMA_31_8B, "num_attention_heads": "32"}, 1, "num_attention_heads must be a whole .*got '32'"),
    ({**LLAMA_31_8B, "hidden_size": 4097}, 1, "hidden_size 4097 does not divide by num_attention_heads 32"),
    ({**LLAMA_31_8B, "num_key_value_heads": 5}, 1, "multiple of num_kv_heads, got 32 and 5"),
    ({**LLAMA_31_8B, "attn_logit_softcapping": 30.0}, 1, "attn_logit_softcapping = 30.0 is not handled"),
    ({**LLAMA_31_8B, "attention_chunk_size": 8192}, 1, "attention_chunk_size = 8192 is not handled"),
    ({**LLAMA_31_8B, "sliding_window": 4096}, 1, "sliding_window = 4096 is not .* 'llama'"),
    ({**MISTRAL_7B_V01, "use_sliding_window": True}, 1, "use_sliding_window = True is not handled"),
    ({**MISTRAL_7B_V01, "layer_types": ["sliding_attention"]}, 1, "layer_types = .* is not handled"),
    ({**GEMMA2_9B, "use_bidirectional_attention": True}, 1, "use_bidirectional_attention = True is not"),
    ({**LLAMA_31_8B, "alibi": True}, 1, "alibi = True is not handled"),
    ({**GPT_OSS_20B, "layer_types": ["full_attention"] * 23}, 1, "layer_types must list 24 of"),
    ({**GPT_OSS_20B, "layer_types": ["chunked_attention"] * 24}, 1, "must list 24 of full_attention"),
    ({**GPT_OSS_20B, "sliding_window": None}, 1, "sliding_window must be a whole number >= 1, got None"),
    ({**GEMMA2_9B, "attn_logit_softcapping": -1}, 1, "softcapping must be a finite number > 0, got -1"),
    ({"model_type": "llava", "text_config": "mistral"}, 1, "text_config must be an object, got 'mistral'"),
    (7, 1, "model must be a folder, a dict or a transformers config, got int"),
    ("meta-llama/Llama-3.1-8B", 1, "8B' is no folder: names on a hub are not downloaded"),
]


@pytest.mark.parametrize(("model", "ranks", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_input(model: Any, ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionConfig.from_model(model, tensor_parallel_size=ranks)


@pytest.mark.parametrize(("config", "message"), UNHANDLED, ids=[message[:50] for _, message in UNHANDLED])
def test_unhandled_feature(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionConfig.from_model(config)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(("key", "value"), [
    ("alibi", True), ("attention_window", [512]), ("num_sink_tokens", 4), ("new_sliding_thing", 7),
    ("linear_attention_every", 2), ("mamba_d_state", 16), ("softmax_scale", 0.5), ("kv_lora_ranks_attn", {"a": 1})])
def test_no_family_ignores_a_feature(name: str, key: str, value: Any) -> None:
    config = EXPECTED[name][0]
    inside = {**config, "text_config": {**config["text_config"], key: value}} if "text_config" in config else config
    for changed in ({**config, key: value}, inside):
        if changed is not config:
            with pytest.raises(ValueError, match=re.escape(f"{key} = {value!r} is not handled for model_type")):
                AttentionConfig.from_model(changed)
    # The same key, neutral, asks for nothing.
    for nothing in (None, False, 0, "", [], {}):
        assert AttentionConfig.from_model({**config, key: nothing}) == AttentionConfig.from_model(config)


@pytest.mark.parametrize("name", EXPECTED)
def test_odd_values_raise_value_error_or_nothing(name: str) -> None:
    config = EXPECTED[name][0]
    for key in [*config, *config.get("text_config", {}), "layer_types", "is_causal", "rope_parameters"]:
        for value in (None, True, -1, 0, 1.5, "x", [], ["x"], [[]], {}, {"x": 1}, float("nan")):
            nested = key in config.get("text_config", {}) and key not in config
            changed = {"text_config": {**config["text_config"], key: value}} if nested else {key: value}
            with contextlib.suppress(ValueError):
                AttentionConfig.from_model({**config, **changed})


def test_tables_hold_together() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as KNOWN

    assert all(SUSPECT.search(key) for key in HARMLESS)
    assert not set(NOT_SERVED) & set(FAMILIES)
    assert set(NOT_SERVED) <= set(KNOWN) | {"mllama_text_model", "qwen3_next", "glm5_next_text"}
    assert set(FAMILIES) - set(KNOWN) == {"kimi_k2"}


@pytest.mark.parametrize(("text", "message"), [
    (None, "has no config.json"), ("{", "config.json is no JSON"), ("[]", "config.json must hold an object")])
def test_bad_folder(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        AttentionConfig.from_model(tmp_path)


def test_needs_neither_torch_nor_transformers() -> None:
    code = (f"from hal import AttentionConfig; AttentionConfig.from_model({LLAMA_31_8B!r}); import sys; "
            "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_family_is_tested() -> None:
    tested = {config.get("text_config", config)["model_type"] for config, _ in EXPECTED.values()}
    assert tested == set(FAMILIES)
