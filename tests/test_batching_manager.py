"""transformers' own ContinuousBatchingManager on HAL: the tokens of eager, and nothing gathered where that is said."""

from __future__ import annotations

from typing import Any

import pytest
from test_batching import NEW, TINY, batched, eager, make, prompts
from transformers import GenerationConfig
from transformers.generation.continuous_batching.cache_allocators import (
    FullAttentionCacheAllocator,
    SlidingAttentionCacheAllocator,
)

from hal.cli_args import AttentionArgs
from hal.integrations import transformers_batching_manager as managed


def generate_batch(model: Any, asked: list[list[int]], **settings: Any) -> list[list[int]]:
    config = managed.use(model, AttentionArgs(page_size=4), **{"num_blocks": 128, "max_batch_tokens": 64, **settings})
    found = model.generate_batch(asked, generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
                                 continuous_batching_config=config, max_new_tokens=NEW)
    assert {output.error for output in found.values()} == {None}
    return [output.generated_tokens for output in found.values()]


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_those_of_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = make(name), prompts()
    expected = eager(model, asked)
    gathered: list[int] = []
    update = SlidingAttentionCacheAllocator.update

    def never(*args: Any) -> None:
        raise AssertionError("a layer of full attention was gathered")

    def counted(self: Any, keys: Any, *args: Any) -> Any:
        gathered.append(len(keys))
        return update(self, keys, *args)

    monkeypatch.setattr(FullAttentionCacheAllocator, "update", never)
    monkeypatch.setattr(SlidingAttentionCacheAllocator, "update", counted)
    assert generate_batch(model, asked, max_batch_tokens=256) == expected
    # All prompts come in the first step: sliding layers are gathered there, and in no step of answers.
    sliding = {"mistral": 2, "gpt_oss": 1, "gemma2": 1}.get(name, 0)
    assert gathered == [sum(map(len, asked))] * sliding
    assert generate_batch(model, asked, max_batch_tokens=7, max_requests_per_batch=3) == expected
    assert model.config._attn_implementation == managed.NAME


def test_a_window_that_is_no_number_of_pages() -> None:
    """Pages of 4, a window of 10: the ring's last page is half used, so the order of its pages matters."""
    model, asked = make("mistral", sliding_window=10), prompts((1, 9, 10, 11, 23))
    expected = eager(model, asked)
    assert generate_batch(model, asked) == expected
    assert batched(model, asked, max_batch_tokens=7)[0] == expected
    assert model.config._attn_implementation == managed.NAME  # the manager's again


def test_what_the_manager_can_not_have_is_refused() -> None:
    model = make("gqa_64")
    with pytest.raises(ValueError, match="page_size can't be chosen here"):
        managed.use(model, page_size=8)
    managed.use(model, AttentionArgs(page_size=8))
    config = managed.use(model, AttentionArgs(page_size=4), num_blocks=16, max_batch_tokens=16)
    config.page_size = 8
    found = model.generate_batch([[5, 6]], generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
                                 continuous_batching_config=config, max_new_tokens=2)
    assert [output.error for output in found.values()] == [
        "the cache's page_size is 8, but the backends were chosen for 4: batch with the config that use() returned"]
