"""The cache that is written in place holds what transformers' own holds, whatever is done to it in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from hal.integrations import transformers as hosted
from hal.integrations.transformers_cache import LEAST, growing_layer
from hal.kernels.cpu import memory


def states(tokens: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, tokens, 8), torch.randn(batch, 3, tokens, 16)


def both() -> tuple[Any, Any]:
    ours, theirs = DynamicCache(), DynamicCache()
    ours.layer_class_to_replicate = growing_layer()
    return ours, theirs


def same(ours: Any, theirs: Any, new: tuple[torch.Tensor, torch.Tensor]) -> None:
    for got, want in zip(ours.update(*new, 0), theirs.update(*new, 0)):
        assert torch.equal(got, want)
    assert ours.get_seq_length() == theirs.get_seq_length()


CHANGES = {
    "nothing": lambda cache: None,
    "crop": lambda cache: cache.crop(-3),
    "beams": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_holds_what_transformers_own_holds(change: str) -> None:
    ours, theirs = both()
    for tokens in (5, 1, 1, LEAST + 7, 1, 4, 1):
        same(ours, theirs, states(tokens))
    before = ours.layers[0].keys
    kept = before.clone()
    for cache in (ours, theirs):
        CHANGES[change](cache)
    batch = {"repeat": 4, "select": 1}.get(change, 2)
    for tokens in (1, 1, 2 * LEAST, 1):
        same(ours, theirs, states(tokens, batch))
    assert torch.equal(before, kept), "a view that was handed out has changed"


def test_a_step_copies_nothing_that_is_held() -> None:
    ours, _ = both()
    ours.update(*states(5), 0)
    first = ours.update(*states(1), 0)[0].data_ptr()
    assert all(ours.update(*states(1), 0)[0].data_ptr() == first for _ in range(LEAST - 1))


def test_a_copy_is_a_cache_of_its_own() -> None:
    ours, theirs = both()
    same(ours, theirs, states(5))
    twin, other = copy.deepcopy(ours), copy.deepcopy(theirs)
    same(ours, theirs, states(1))
    same(twin, other, states(1))
    same(ours, theirs, states(1))


def test_written_in_and_outside_inference_mode() -> None:
    ours, theirs = both()
    with torch.inference_mode():
        same(ours, theirs, states(5))
    with torch.no_grad():
        for tokens in (1, LEAST + 1, 1):
            same(ours, theirs, states(tokens))


def test_sliding_layers_stay_transformers_own_and_other_caches_are_refused() -> None:
    config = transformers.Gemma2Config(num_hidden_layers=2, hidden_size=32, intermediate_size=32, vocab_size=64,
                                       num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8)
    model = transformers.AutoModelForCausalLM.from_config(config)
    kinds = [type(layer).__name__ for layer in hosted.new_cache(model).layers]
    assert sorted(kinds) == ["DynamicSlidingWindowLayer", "GrowingLayer"]
    t5 = transformers.AutoModelForSeq2SeqLM.from_config(transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32))
    assert not hosted.takes_new_cache(t5)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has a cache of its own kind"):
        hosted.new_cache(t5)


def test_memory_has_the_shape_that_was_asked_for() -> None:
    for shape in ((3, 5), (0,), (1 << 21, 3)):
        made = memory.empty(torch.empty(*shape, dtype=torch.bfloat16, device="meta"))
        assert (made.shape, made.dtype, made.device.type) == (shape, torch.bfloat16, "cpu")
        assert float(made.zero_().sum()) == 0
