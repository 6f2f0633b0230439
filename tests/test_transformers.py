"""transformers' models on HAL: the same tokens as transformers' own attention, and refusals by name."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import hal
from hal.backends.torch_native import TorchNative
from hal.integrations import transformers as hosted
from hal.integrations import transformers_attention, transformers_mask

PROMPTS = ["What is the capital of France?", "Write one sentence about the sea.", "Count from one to ten:",
           "Why is the sky blue?", "Name three prime numbers.",
           "The quick brown fox jumps over the lazy dog and then it runs into the forest, where"]
NEW = 32
# float32 on both sides, sums in another order: two layers with activations of about 1 stay within 1e-5.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    hosted.register()


@contextlib.contextmanager
def only_hal() -> Iterator[None]:
    """Within it transformers' own attention raises."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def boom(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("transformers' own attention was called")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", boom)
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.models.") and "eager_attention_forward" in vars(module):
                patch.setattr(module, "eager_attention_forward", boom)
        yield


class Calls:
    """Counts the calls of an impl's bound functions by wrapping them."""

    def __init__(self, impls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        for phase in {id(p): p for impl in impls for p in (impl.prefill, impl.decode)}.values():
            for name in ("flash_attn_with_kvcache", "flash_attn_varlen_func"):
                monkeypatch.setattr(phase, name, self._wrap(phase.backend, name, getattr(phase, name)))

    def _wrap(self, backend: str, name: str, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.seen.append((backend, name))
            return function(*args, **kwargs)

        return wrapper

    def take(self) -> dict[tuple[str, str], int]:
        counts = {call: self.seen.count(call) for call in self.seen}
        self.seen.clear()
        return counts


KVCACHE, VARLEN = ("torch", "flash_attn_with_kvcache"), ("torch", "flash_attn_varlen_func")


# ---- the real model -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def smollm2(default_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(default_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(default_model, padding_side="left")


def inputs_of(tokenizer: Any, prompts: list[str]) -> Any:
    return tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)


def generated(model: Any, inputs: Any) -> torch.Tensor:
    """Greedy continuation, [batch, NEW]."""
    out = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    return out[:, inputs["input_ids"].shape[1]:]


@torch.no_grad()
def sdpa_agrees(model: Any, inputs: Any, new: torch.Tensor) -> bool:
    """Whether sdpa's greedy continuation is `new`: by induction, if it picks each token after those before it.

    One forward instead of one per token.
    """
    model.set_attn_implementation("sdpa")
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    out = model(input_ids=torch.cat([inputs["input_ids"], new], 1), attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -NEW - 1:-1]
    # min_new_tokens forbids the end token.
    out[..., model.generation_config.eos_token_id] = -torch.inf
    return bool((out.argmax(-1) == new).all())


@pytest.mark.model
def test_smollm2_gives_the_tokens_of_sdpa(smollm2: Any, tokenizer: Any,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    smollm2.set_attn_implementation("sdpa")
    first = generated(smollm2, inputs_of(tokenizer, PROMPTS[:1]))
    smollm2.set_attn_implementation("hal")
    smollm2.generate(torch.tensor([[5, 6]]), max_new_tokens=1)
    impls = hosted.impls(smollm2)
    assert list(impls) == [f"model.layers.{i}.self_attn" for i in range(30)]
    assert len(set(map(id, impls.values()))) == 1  # one impl, so that plans can be shared
    calls = Calls(impls.values(), monkeypatch)
    chosen = next(iter(impls.values())).decode.backend  # cpu, or torch where its kernels were not built
    for prompts in [*([prompt] for prompt in PROMPTS), PROMPTS]:
        inputs = inputs_of(tokenizer, prompts)
        smollm2.set_attn_implementation("hal")
        with only_hal():
            new = generated(smollm2, inputs)
        # The forward of the prompt gives the first token; 30 layers each time.
        assert calls.take() == {(chosen, VARLEN[1]): 30, (chosen, KVCACHE[1]): 30 * (NEW - 1)}
        assert sdpa_agrees(smollm2, inputs, new), prompts
        if prompts == PROMPTS[:1]:
            assert new.tolist() == first.tolist()
            assert not sdpa_agrees(smollm2, inputs, new.flip(1))


@pytest.mark.model
def test_the_guard_works(smollm2: Any) -> None:
    smollm2.set_attn_implementation("sdpa")
    with only_hal(), pytest.raises(AssertionError, match="own attention was called"):
        smollm2.generate(torch.tensor([[5, 6]]), max_new_tokens=1)


# ---- tiny random models: what SmolLM2 does not have -------------------------------------------------------

COMMON = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
          # Large weights: attention is far from uniform, so that a dropped feature shows.
          "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
TINY = {
    "gpt_oss": transformers.GptOssConfig(**COMMON, head_dim=16, sliding_window=8, num_local_experts=4,
                                         num_experts_per_tok=2),
    "gemma2": transformers.Gemma2Config(**COMMON, head_dim=16, sliding_window=8, attn_logit_softcapping=2.0,
                                        query_pre_attn_scalar=9),
    "mistral": transformers.MistralConfig(**COMMON, head_dim=16, sliding_window=8),
    "deepseek_v3": transformers.DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": 4}, kv_lora_rank=32, q_lora_rank=None, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=16, first_k_dense_replace=1,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0, "rope_theta": 1e4,
                         "original_max_position_embeddings": 64}),
}


def make(name: str, seed: int = 7, **changes: Any) -> Any:
    """A tiny random model with eager attention; sinks get values that matter."""
    print(f"{name}: seed {seed}")
    torch.manual_seed(seed)
    config = TINY[name].__class__(**{**TINY[name].to_dict(), **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.uniform_(parameter, 0.0, 4.0)
    return model


def batches() -> dict[str, dict[str, torch.Tensor]]:
    """Two sequences of 21 tokens, or of 21 and 13 with padding on the left."""
    ids = torch.randint(2, 97, (2, 21), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 21, dtype=torch.int64)
    padded_mask = mask.clone()
    padded_mask[1, :8] = 0
    return {"even": {"input_ids": ids, "attention_mask": mask},
            "padded": {"input_ids": torch.where(padded_mask.bool(), ids, 0), "attention_mask": padded_mask}}


@torch.no_grad()
def logits(model: Any, batch: dict[str, torch.Tensor], implementation: str, split: int = 0) -> torch.Tensor:
    """Logits of all tokens, [tokens, vocabulary]; with `split`, the last tokens come in a second forward."""
    model.set_attn_implementation(implementation)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if not split:
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    else:
        cache = DynamicCache(config=model.config)
        parts = [model(input_ids=ids[:, part], attention_mask=mask[:, :part.stop], past_key_values=cache,
                       position_ids=positions[:, part]).logits
                 for part in (slice(0, ids.shape[1] - split), slice(ids.shape[1] - split, ids.shape[1]))]
        out = torch.cat(parts, 1)
    return out[mask.bool()]


def steps(model: Any, batch: dict[str, torch.Tensor], **settings: Any) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy tokens and the logits of every step, [step, batch, vocabulary]."""
    out = model.generate(**batch, max_new_tokens=12, do_sample=False, return_dict_in_generate=True,
                         output_logits=True, **settings)
    return out.sequences.tolist(), torch.stack(out.logits)


@pytest.mark.parametrize("kind", ["even", "padded"])
@pytest.mark.parametrize("name", TINY)
def test_logits_and_tokens_are_those_of_eager(name: str, kind: str) -> None:
    model, batch = make(name), batches()[kind]
    expected = logits(model, batch, "eager")
    expected_tokens, expected_steps = steps(model, batch)
    with only_hal():
        torch.testing.assert_close(logits(model, batch, "hal"), expected, **TOLERANCE)
        torch.testing.assert_close(logits(model, batch, "hal", split=5), expected, **TOLERANCE)
        torch.testing.assert_close(logits(model, batch, "hal", split=1), expected, **TOLERANCE)
        new, new_steps = steps(model, batch)
    assert new == expected_tokens
    torch.testing.assert_close(new_steps, expected_steps, **TOLERANCE)
    assert len(hosted.impls(model)) == 2


@pytest.mark.parametrize(("name", "change"), [
    ("gpt_oss", {"sliding_window": 64}), ("gpt_oss", "no sinks"), ("gemma2", {"sliding_window": 64}),
    ("gemma2", {"attn_logit_softcapping": None}), ("gemma2", {"query_pre_attn_scalar": 16}),
    ("mistral", {"sliding_window": 64}), ("mistral", {"sliding_window": 9}),
    ("deepseek_v3", {"rope_parameters": {**TINY["deepseek_v3"].rope_parameters, "mscale_all_dim": 0.0}}),
])
def test_the_features_of_the_tiny_models_matter(name: str, change: Any) -> None:
    """Without a feature, eager's logits are far outside the tolerance: the test above could not miss it."""
    batch = batches()["even"]
    model = make(name)
    other = make(name, **({} if change == "no sinks" else change))
    if change == "no sinks":
        for parameter_name, parameter in other.named_parameters():
            if parameter_name.endswith("sinks"):
                torch.nn.init.constant_(parameter, -1e9)
    difference = (logits(model, batch, "eager") - logits(other, batch, "eager")).abs().max()
    assert difference > 0.02


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
@pytest.mark.parametrize("kind", ["even", "padded"])
def test_static_cache(name: str, kind: str) -> None:
    model, batch = make(name), batches()[kind]
    expected, expected_steps = steps(model, batch)
    model.set_attn_implementation("hal")
    with only_hal():
        new, new_steps = steps(model, batch, cache_implementation="static")
    assert new == expected
    torch.testing.assert_close(new_steps, expected_steps, **TOLERANCE)


def test_layer_kinds_are_what_is_asked_for() -> None:
    """What `hal generate` announces from config.json equals what the attention modules ask for."""
    for name in TINY:
        model = make(name)
        logits(model, batches()["even"], "hal")
        for kind in hosted.layer_kinds(model.config):
            for layer in kind.layers:
                bound = hosted.impls(model)[f"model.layers.{layer}.self_attn"].config
                announced = kind.config.replace(dtype="float32", softmax_scale=kind.config.scale)
                assert bound.replace(softmax_scale=bound.scale) == announced, name
    # DeepSeek's heads, expanded: 16 + 8 wide for q and k, 16 for v.
    assert (announced.head_dim, announced.head_dim_v, announced.num_kv_heads) == (24, 16, 4)


# ---- choosing backends ------------------------------------------------------------------------------------

@pytest.fixture
def twin() -> Iterator[str]:
    """A second backend that serves the CPU."""
    hal.register_backend("torch_twin", type("TorchTwin", (TorchNative,), {"name": "torch_twin"}))
    yield "torch_twin"
    from hal.registry import unregister_backend

    unregister_backend("torch_twin")


def test_two_models_with_different_backends(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make("mistral"), make("mistral")
    hosted.use(second, prefill_backend=twin, decode_backend="torch")
    batch = batches()["even"]
    expected = logits(first, batch, "eager")
    logits(first, batch, "hal", split=1)
    logits(second, batch, "hal", split=1)
    calls = Calls([*hosted.impls(first).values(), *hosted.impls(second).values()], monkeypatch)
    torch.testing.assert_close(logits(first, batch, "hal", split=1), expected, **TOLERANCE)
    assert calls.take() == {VARLEN: 2, KVCACHE: 2}
    torch.testing.assert_close(logits(second, batch, "hal", split=1), expected, **TOLERANCE)
    assert calls.take() == {(twin, "flash_attn_varlen_func"): 2, KVCACHE: 2}
    # Several tokens on a cached prefix are the prefill backend's.
    torch.testing.assert_close(logits(second, batch, "hal", split=3), expected, **TOLERANCE)
    assert calls.take() == {(twin, "flash_attn_varlen_func"): 2, (twin, "flash_attn_with_kvcache"): 2}


def test_use_again_and_for_some_layers(twin: str) -> None:
    model = make("mistral")
    logits(model, batches()["even"], "hal")
    hosted.use(model, twin, layers=[1])
    logits(model, batches()["even"], "hal")
    assert [impl.decode.backend for impl in hosted.impls(model).values()] == ["torch", twin]
    hosted.use(model, "torch")
    logits(model, batches()["even"], "hal")
    assert [impl.decode.backend for impl in hosted.impls(model).values()] == ["torch", "torch"]


def test_a_choice_that_can_not_serve() -> None:
    model = make("mistral")
    with pytest.raises(ValueError, match="'flash_attn_33' is not known, did you mean 'flash_attn_3'"):
        hosted.use(model, "flash_attn_33")
    hosted.use(model, "flash_attn_3")
    with pytest.raises(hal.NoBackendError, match="flash_attn_3 can't serve this on cpu"):
        logits(model, batches()["even"], "hal")


# ---- the padding of a forward is computed once ------------------------------------------------------------

def test_padding_is_shared_by_layers_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counting(transformers_mask.Padding):
        def __init__(self, mask: torch.Tensor) -> None:
            made.append(mask.shape)
            super().__init__(mask)

    monkeypatch.setattr(transformers_mask, "Padding", Counting)
    model = make("mistral", num_hidden_layers=5)
    logits(model, batches()["padded"], "hal")
    assert len(made) == 2  # the keys' and, from it, the queries'
    assert len(set(map(id, hosted.impls(model).values()))) == 1
    gc.collect()
    assert len(transformers_mask._memo) == 0


def test_padding_by_hand() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    padding = transformers_mask.Padding(mask)
    assert padding.lengths.tolist() == [2, 4, 2, 0]
    assert padding.cu_seqlens.tolist() == [0, 2, 6, 8, 8]
    assert {padding.cu_seqlens.dtype, padding.lengths.dtype} == {torch.int32}
    assert padding.max_length == 4
    assert padding.rows.tolist() == [2, 3, 4, 5, 6, 7, 8, 10]
    assert padding.left_aligned.tolist() == [[2, 3, 0, 1], [4, 5, 6, 7], [8, 10, 9, 11], [12, 13, 14, 15]]
    assert padding.last(2).lengths.tolist() == [2, 2, 1, 0]
    assert padding.has_holes
    assert not transformers_mask.Padding(mask[:2]).has_holes
    assert not transformers_mask.Padding(torch.tensor([[True, True, False]])).has_holes


# ---- calls that no decoder makes --------------------------------------------------------------------------

class Module(torch.nn.Module):
    """Stands for an attention module of a model."""

    def __init__(self, is_causal: bool = True) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.eval()


def qkv(sq: int, sk: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    print("seed 5")
    torch.manual_seed(5)
    return torch.randn(batch, 4, sq, 16), torch.randn(batch, 2, sk, 16), torch.randn(batch, 2, sk, 16)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sq", [1, 6, 9])
def test_not_causal(sq: int, padded: bool) -> None:
    """Encoders and cross-attention: the mask is that of the keys, every query counts."""
    q, k, v = qkv(sq, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = not padded
    out, weights = transformers_attention.attention(Module(False), q, k, v, mask if padded else None)
    k, v = k.repeat_interleave(2, 1).double(), v.repeat_interleave(2, 1).double()
    scores = (q.double() @ k.transpose(2, 3) / 4).masked_fill(~mask[:, None, None], -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).float()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert weights is None


def test_a_sequence_that_is_all_padding() -> None:
    q, k, v = qkv(3, 3)
    mask = torch.tensor([[True] * 3, [False] * 3])
    out, _ = transformers_attention.attention(Module(), q, k, v, mask)
    alone, _ = transformers_attention.attention(Module(), q[:1], k[:1], v[:1], None)
    torch.testing.assert_close(out[:1], alone)
    assert out[1].count_nonzero() == 0
    last, _ = transformers_attention.attention(Module(), q[:, :, -1:], k, v, mask)
    torch.testing.assert_close(last[0], alone[0, -1:])
    assert last[1].count_nonzero() == 0


# ---- refusals ---------------------------------------------------------------------------------------------

BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    *(({name: 1}, f"argument {name} is not supported by attn_implementation 'hal': ") for name in
      ("position_bias", "head_mask", "indices", "topk_indices", "block_indices", "output_attentions", "cache",
       "cu_seq_lens_q", "max_length_k", "read_index", "block_table")),
    ({"speed": 3}, "argument speed is not supported .*: it is not known .known and without effect: posi"),
    ({"dropout": 0.1}, "dropout 0.1 is not supported"),
    ({"attention_mask": torch.ones(2, 1, 5, 5, dtype=torch.bool)}, r"is torch.bool \(2, 1, 5, 5\), expected"),
    ({"attention_mask": torch.ones(2, 5)}, r"attention_mask is torch.float32 \(2, 5\), expected padding"),
    ({"attention_mask": torch.ones(3, 5, dtype=torch.bool)}, r"shape \(3, 5\), expected \[2, 5\]"),
    ({"attention_mask": torch.ones(2, 6, dtype=torch.bool)}, r"shape \(2, 6\), expected \[2, 5\]"),
    ({"attention_mask": torch.tensor([[True, False, True, True, True]] * 2), "sliding_window": 3},
     "padding between tokens, .* sliding_window 3"),
    ({"sliding_window": 3, "is_causal": False}, "sliding_window 3 with is_causal False is not supported"),
    ({"query": torch.randn(2, 4, 7, 16)}, "query has 7 tokens but key only 5"),
    ({"key": torch.randn(2, 2, 5, 16, dtype=torch.float64)}, "float32, torch.float64 and torch.float32"),
    ({"query": torch.randn(2, 4, 5, 16, requires_grad=True)}, "requires grad.*inference only"),
    ({"module": Module().train()}, "training mode.*inference only"),
    ({"softcap": -1.0}, "softcap must be a finite number >= 0"),
    ({"scaling": 0.0}, "softmax_scale must be a finite number > 0"),
    ({"sliding_window": 0}, "sliding_window must be a whole number >= 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[message[:50] for _, message in BAD_CALLS])
def test_refused(arguments: dict[str, Any], message: str) -> None:
    q, k, v = qkv(5, 5)
    call = {"module": Module(), "query": q, "key": k, "value": v, "attention_mask": None, **arguments}
    with pytest.raises(ValueError, match=message):
        transformers_attention.attention(**call)


def test_harmless_arguments_and_unasked_ones_pass() -> None:
    q, k, v = qkv(5, 5)
    plain, _ = transformers_attention.attention(Module(), q, k, v, None)
    asked = {**dict.fromkeys(transformers_attention.REFUSED),
             **dict.fromkeys(transformers_attention.HARMLESS, True)}
    out, _ = transformers_attention.attention(Module(), q, k, v, None, **asked, output_something=False)
    assert torch.equal(out, plain)


@pytest.fixture(scope="module")
def mistral() -> Any:
    model = make("mistral")
    model.set_attn_implementation("hal")
    return model


@pytest.mark.parametrize(("arguments", "message"), [
    ({"output_attentions": True}, "argument output_attentions is not supported"),
    ({"attention_mask": torch.ones(1, 1, 6, 6, dtype=torch.bool)}, r"is torch.bool \(1, 1, 6, 6\), expected"),
    ({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "use_cache": False}, "mask of packed_sequence"),
    ({"attention_mask": torch.ones(1, 9, dtype=torch.int64)}, "attention_mask has 9 columns, expected 6"),
    ({"cu_seq_lens_q": torch.tensor([0, 6])}, "argument cu_seq_lens_q is not supported"),
])
def test_refused_in_a_model(mistral: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.no_grad():
        mistral(input_ids=torch.tensor([[2, 3, 4, 5, 6, 7]]), **arguments)


def test_training_is_refused(mistral: Any) -> None:
    ids = torch.tensor([[2, 3, 4]])
    with pytest.raises(ValueError, match=r"requires grad.*inference only.*no_grad"):
        mistral(ids)
    model = make("mistral").train()
    model.set_attn_implementation("hal")
    with pytest.raises(ValueError, match=r"training mode.*model\.eval"), torch.no_grad():
        model(ids)


@pytest.mark.parametrize("function", ["chunked_causal_mask_function", "or_masks", "blockwise_overlay"])
def test_other_masks_are_refused(function: str) -> None:
    from transformers import masking_utils

    mask_function = {
        "chunked_causal_mask_function": lambda: masking_utils.chunked_causal_mask_function(4, torch.zeros(1)),
        "or_masks": lambda: masking_utils.or_masks(masking_utils.causal_mask_function,
                                                   masking_utils.bidirectional_mask_function),
        "blockwise_overlay": lambda: masking_utils.blockwise_overlay(torch.zeros(1, 4)),
    }[function]()
    with pytest.raises(ValueError, match=r"(chunked_overlay|or_mask|blockwise_overlay).* is not supported"):
        transformers_mask.padding_mask(1, 4, 4, mask_function=mask_function)


# ---- registration -----------------------------------------------------------------------------------------

def test_register_again_and_a_name_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    hosted.register()
    hosted.register()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "hal", print)
    with pytest.raises(RuntimeError, match="'hal' is already registered, for <built-in function print>"):
        hosted.register()


@pytest.mark.parametrize("version", ["5.24.0", "5.22.9", "4.57.1", "6.0.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # By name: transformers replaces its own entry in sys.modules while it loads a model.
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(ImportError, match=rf"transformers {version} is not supported; .*>=5.23,<5.24"):
        hosted.register()
    monkeypatch.setattr("transformers.__version__", "5.23.4")
    hosted.version_check()


def test_sparse_layers_are_refused_before_anything_runs() -> None:
    sparse = {"model_type": "deepseek_v32", "num_attention_heads": 4, "num_hidden_layers": 2, "kv_lora_rank": 32,
              "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "index_topk": 8, "index_n_heads": 2,
              "index_head_dim": 16, "num_key_value_heads": 4, "hidden_size": 64}
    with pytest.raises(ValueError, match="are sparse, which attn_implementation 'hal' does not offer"):
        hosted.layer_kinds(sparse)
