"""Continuous batching of the real model, and what it leans on inside transformers."""

from __future__ import annotations

import ast
import inspect
import runpy
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching import cache, cache_allocators, offloading_manager, requests, scheduler

from hal.integrations import transformers_batching
from hal.integrations.transformers_batching import BatchedModel, Sampling

PROMPTS = ["What is the capital of France?", "Count: one, two, three, four, five, six, seven, eight, nine, ten,", "Why",
           "The quick brown fox jumps over the lazy dog, then runs into the forest, where it finds a house. " * 3,
           "Name three prime numbers."]
NEW = 12
TIE = 1e-3  # of logits of about 20, in float32: where the two best are closer, either may win


@pytest.mark.model
def test_smollm2_gives_the_tokens_of_plain_generate(default_model: Path) -> None:
    """In one ragged batch, prompts in chunks of 32. Where tokens differ, generate()'s own two best were within TIE."""
    with BatchedModel(default_model, dtype="float32", num_pages=64, max_batch_tokens=32) as served:
        assert {decision.decode.chosen for decision in served.decisions.values()} <= {"cpu", "torch"}
        asked = [served.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        for index, ids in enumerate(asked):
            served.submit(str(index), ids, Sampling(max_tokens=NEW, stop_token_ids=()))
        found: dict[str, list[int]] = {str(index): [] for index in range(len(asked))}
        ended = 0
        for event in served.events():
            assert event.error is None
            found[event.request_id] += event.tokens
            ended += event.finish is not None
            if ended == len(asked):
                break
        model = served._model
    model.set_attn_implementation("sdpa")
    for index, ids in enumerate(asked):
        out = model.generate(torch.tensor([ids]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
                             eos_token_id=None, output_logits=True, return_dict_in_generate=True)
        expected = out.sequences[0, len(ids):].tolist()
        for place, (mine, theirs) in enumerate(zip(found[str(index)], expected, strict=True)):
            if mine != theirs:
                best = out.logits[place][0].topk(2)
                assert best.indices.tolist() == [theirs, mine], (index, place)
                assert float(best.values[0] - best.values[1]) < TIE, (index, place)
                break


# ---- the insides of transformers ---------------------------------------------------------------------------------
# tests/test_batching.py holds what they do to eager's tokens; here is what they are, so that a change has a name.

def assigned(cls: type) -> set[str]:
    """Attributes that a class's __init__ sets on self."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def test_the_cache_sets_every_attribute_that_transformers_own_does() -> None:
    assert assigned(cache.PagedAttentionCache) == {
        "config", "dtype", "device", "max_blocks_per_request", "cache_allocators", "layer_to_allocator",
        "bytes_per_sector", "tokens_per_sector", "max_batch_tokens", "num_sectors", "cache_tensor", "pool",
        "allow_block_sharing", "use_prefix_sharing", "num_blocks", "read_cache_limit", "max_decode_fast_path_length",
        "max_tokens_read"}
    source = inspect.getsource(cache.PagedAttentionCache)
    # These HAL's cache leaves out: only __init__ and what it calls may read them.
    methods = {name: inspect.getsource(each) for name, each in vars(cache.PagedAttentionCache).items()
               if inspect.isfunction(each)}
    for name in ("config", "tokens_per_sector", "num_blocks", "max_tokens_read"):
        readers = {method for method, text in methods.items() if f"self.{name}" in text}
        assert readers <= {"__init__"}, (name, readers)
    assert "self.max_blocks_per_request" in source


@pytest.mark.parametrize(("function", "parameters"), [
    (scheduler.FIFOScheduler.__init__, "self cache safety_margin max_requests_per_batch"),
    (scheduler.FIFOScheduler.schedule_batch, "self token_budget cache_budget"),
    (scheduler.Scheduler.add_waiting_request, "self state"), (scheduler.Scheduler.finish_request, "self request_id"),
    (scheduler.Scheduler.set_request_cancellation, "self request_id"),
    (scheduler.Scheduler.clear_cancelled_requests, "self"),
    (offloading_manager.OffloadingManager.__init__,
     "self cache scheduler cpu_offload_space_gib safety_threshold compute_stream distributed_helper"),
    (offloading_manager.OffloadingManager.offload_requests, "self"),
    (cache.PagedAttentionCache.mark_complete_blocks, "self state complete_blocks"),
    (cache.PagedAttentionCache.compute_free_capacity, "self relative"), (cache.PagedAttentionCache.reset, "self"),
    (cache_allocators.FullAttentionCacheAllocator.__init__,
     "self index config num_key_value_heads cache_dtype page_size layer_indices allow_block_sharing"),
    (cache_allocators.FullAttentionCacheAllocator.register_cache_tensor,
     "self bytes_per_sector non_trash_bytes cache_tensor pool"),
    (cache_allocators.FullAttentionCacheAllocator.needs_new_blocks, "self request_id past_length query_length"),
    (cache_allocators.FullAttentionCacheAllocator.allocate_cache_to_request,
     "self request_id past_length query_length"),
    (cache_allocators.FullAttentionCacheAllocator.get_write_indices, "self request_id past_length query_length"),
    (cache_allocators.FullAttentionCacheAllocator.get_cache_for_block_table, "self layer_idx"),
    (cache_allocators.CacheAllocator.free_blocks, "self request_id no_cache"),
    (cache_allocators.CachePool.free_blocks, "self index block_ids"),
    (requests.RequestState.update_and_check_completion, "self token_id logprob"),
    (requests.RequestState.create_equivalent_initial_request, "self"),
])
def test_signatures_are_the_known_ones(function: Any, parameters: str) -> None:
    assert list(inspect.signature(function).parameters) == parameters.split()


def test_states_have_the_known_fields() -> None:
    assert {"request_id", "initial_tokens", "max_new_tokens", "eos_token_id", "tokens_to_process", "generated_tokens",
            "position_offset", "remaining_prefill_tokens"} <= {each.name for each in fields(requests.RequestState)}
    assert requests.FutureRequestState.__slots__ == ("state", "has_new_token", "complete_blocks", "query_length")
    assert assigned(scheduler.Scheduler) == {"cache", "safety_margin", "max_requests_per_batch", "_cancellation_lock"}


def test_two_first_sectors_are_nobodys() -> None:
    """Page 0 stands for pages that slid out of a window: nothing is ever written there."""
    pool = cache_allocators.CachePool(3, 1)
    pool.set_blocks_per_sector(0, 2)
    for _ in range(3):
        pool.allocate_sector(0)
    assert sorted(pool.get_free_blocks(0, 6)) == [4, 5, 6, 7, 8, 9]


def test_another_transformers_is_refused_when_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.24.0")
    with pytest.raises(ImportError, match=r"transformers 5\.24\.0 is not supported; .*>=5\.23,<5\.24"):
        runpy.run_path(str(transformers_batching.__file__))
