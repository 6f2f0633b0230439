"""Continuous batching through HAL: the tokens of eager generate(), whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from hal.cli_args import AttentionArgs
from hal.commands import generate
from hal.commands.output import decided
from hal.integrations import transformers_batching_attention as paged
from hal.integrations.transformers_batching import BatchedModel, Sampling
from hal.integrations.transformers_batching_sampling import Chooser
from hal.models import kinds_from_model
from hal.platform import detect

NEW = 12
COMMON = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
          # Large weights: attention is far from uniform, so that a dropped feature shows.
          "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
          "tie_word_embeddings": False}
TINY = {
    "gqa_64": transformers.LlamaConfig(**COMMON, head_dim=64),
    "mha_80": transformers.LlamaConfig(**{**COMMON, "num_key_value_heads": 4}, head_dim=80),
    "gqa_256": transformers.LlamaConfig(**COMMON, head_dim=256),
    "mistral": transformers.MistralConfig(**COMMON, head_dim=80, sliding_window=8),
    "gpt_oss": transformers.GptOssConfig(**COMMON, head_dim=64, sliding_window=8, num_local_experts=4,
                                         num_experts_per_tok=2),
    "gemma2": transformers.Gemma2Config(**COMMON, head_dim=256, sliding_window=8, attn_logit_softcapping=2.0,
                                        query_pre_attn_scalar=9),
}
LENGTHS = (1, 5, 17, 33, 16, 40, 3, 8)


def make(name: str, seed: int = 7, sinks: bool = True, **changes: Any) -> Any:
    """A tiny random model with eager attention, the same weights for the same seed; sinks get values that matter."""
    torch.manual_seed(seed)
    config = TINY[name].__class__(**{**TINY[name].to_dict(), **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.uniform_(parameter, 2.0, 6.0)
            if not sinks:
                torch.nn.init.constant_(parameter, -1e9)
    return model


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 97, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def eager(model: Any, asked: list[list[int]], new: int = NEW) -> list[list[int]]:
    """Greedy tokens of plain generate(), one prompt at a time."""
    model.set_attn_implementation("eager")
    return [model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)[0, len(ids):].tolist()
            for ids in asked]


def collect(model: BatchedModel, names: Sequence[str]) -> dict[str, tuple[list[int], str, str | None]]:
    """name -> (tokens, finish, error), read until all of them have ended."""
    tokens: dict[str, list[int]] = {name: [] for name in names}
    ended: dict[str, tuple[list[int], str, str | None]] = {}
    for event in model.events():
        tokens[event.request_id] += event.tokens
        if event.finish is not None:
            assert event.request_id not in ended
            ended[event.request_id] = tokens[event.request_id], event.finish, event.error
        if len(ended) == len(names):
            break
    return ended


def batched(model: Any, asked: list[list[int]], new: int = NEW,
            **settings: Any) -> tuple[list[list[int]], dict[str, Any]]:
    """Greedy tokens of all prompts at once, and the numbers at the end."""
    page_size = settings.pop("page_size", 4)
    with BatchedModel(model, AttentionArgs(page_size=page_size), **{"num_pages": 256, **settings}) as served:
        for index, ids in enumerate(asked):
            served.submit(str(index), ids, Sampling(max_tokens=new))
        ended = collect(served, [str(index) for index in range(len(asked))])
        stats = served.stats()
    assert {finish for _, finish, _ in ended.values()} == {"length"}, ended
    assert (stats["cache_used"], stats["running"], stats["waiting"]) == (0, 0, 0)
    return [ended[str(index)][0] for index in range(len(asked))], stats


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_those_of_eager(name: str) -> None:
    model, asked = make(name), prompts()
    expected = eager(model, asked)
    together, stats = batched(model, asked)
    assert together == expected
    assert stats["generated_tokens"] == NEW * len(asked)
    assert stats["prompt_tokens"] == sum(LENGTHS)
    # Prompts in chunks, and more requests than run at once.
    chunked, stats = batched(model, asked, max_batch_tokens=7, max_requests=3)
    assert chunked == expected
    assert stats["steps"] > sum(LENGTHS) / 7
    # A cache in which not all of them fit: some are put back and begin again.
    crowded, stats = batched(model, asked, max_batch_tokens=16, num_pages=8 if name == "mistral" else 20)
    assert crowded == expected
    assert stats["put_back"] > 0
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(("name", "change"), [
    ("mistral", {"sliding_window": 64}), ("mistral", {"sliding_window": 9}), ("gpt_oss", {"sliding_window": 64}),
    ("gpt_oss", {"sinks": False}), ("gemma2", {"sliding_window": 64}), ("gemma2", {"attn_logit_softcapping": None}),
])
def test_without_the_feature_the_tokens_are_others(name: str, change: dict[str, Any]) -> None:
    asked = prompts()
    assert eager(make(name), asked) != eager(make(name, **change), asked)


# ---- requests that go their own way -----------------------------------------------------------------------------

@pytest.fixture
def served() -> Iterator[BatchedModel]:
    with BatchedModel(make("mistral"), AttentionArgs(page_size=4), num_pages=64, max_batch_tokens=16) as model:
        yield model


def alone(model: BatchedModel, ids: list[int], sampling: Sampling) -> list[int]:
    model.submit("alone", ids, sampling)
    return collect(model, ["alone"])["alone"][0]


def test_every_request_is_sampled_by_its_own_settings(served: BatchedModel) -> None:
    asked = prompts((9, 9, 9, 4, 21, 30))
    asked[1] = asked[2] = asked[0]
    settings = [Sampling(max_tokens=10), Sampling(max_tokens=10, temperature=1.0, seed=1),
                Sampling(max_tokens=10, temperature=1.0, seed=2),
                Sampling(max_tokens=7, temperature=0.7, top_k=5, seed=1),
                Sampling(max_tokens=12, temperature=2.0, top_p=0.8, seed=5), Sampling(max_tokens=3, top_k=3, top_p=0.1)]
    by_itself = [alone(served, ids, sampling) for ids, sampling in zip(asked, settings)]
    assert [len(tokens) for tokens in by_itself] == [10, 10, 10, 7, 12, 3]
    assert by_itself[0] != by_itself[1] != by_itself[2] != by_itself[0]
    for order in (range(6), reversed(range(6))):
        names = list(map(str, order))
        for name in names:
            served.submit(name, asked[int(name)], settings[int(name)])
        ended = collect(served, names)
        assert [ended[str(index)][0] for index in range(6)] == by_itself
    # A temperature this low, or one candidate, leaves nothing to chance.
    for greedy in (Sampling(max_tokens=10, temperature=0.001), Sampling(max_tokens=10, temperature=5.0, top_k=1),
                   Sampling(max_tokens=10, temperature=1.0, top_p=1e-9)):
        assert alone(served, asked[0], greedy) == by_itself[0]
    # Without a seed, other tokens each time: 20 of 97 at this temperature are never the same twice.
    hot = Sampling(max_tokens=20, temperature=50.0)
    assert alone(served, asked[0], hot) != alone(served, asked[0], hot)


def test_stop_tokens(served: BatchedModel) -> None:
    ids = prompts((9,))[0]
    tokens = alone(served, ids, Sampling(max_tokens=12))
    stop = tokens[4]
    end = tokens.index(stop) + 1
    served.submit("stops", ids, Sampling(max_tokens=12, stop_token_ids=(stop, 96)))
    assert collect(served, ["stops"])["stops"] == (tokens[:end], "stop", None)


def test_cancel_frees_the_pages_and_leaves_the_others_alone(served: BatchedModel) -> None:
    asked = prompts((9, 21))
    expected = alone(served, asked[0], Sampling(max_tokens=12))
    served.submit("long", asked[1], Sampling(max_tokens=200))
    served.submit("short", asked[0], Sampling(max_tokens=12))
    ended = {}
    for event in served.events():
        if event.request_id == "long" and event.tokens and "long" not in ended:
            served.cancel("long")
        if event.finish:
            ended[event.request_id] = event.finish
        if len(ended) == 2:
            break
    assert ended == {"long": "cancelled", "short": "length"}
    assert alone(served, asked[0], Sampling(max_tokens=12)) == expected
    served.cancel("long")  # has ended
    served.cancel("never was")
    assert served.stats()["cache_used"] == 0
    assert served.stats()["cancelled"] == 1


def test_after_requests_were_put_back_and_the_running_ones_cancelled_the_rest_runs() -> None:
    """transformers' scheduler takes no new requests after it put some back until one ends."""
    with BatchedModel(make("gqa_64"), AttentionArgs(page_size=4), num_pages=24, max_batch_tokens=64) as model:
        names = list(map(str, range(4)))
        for name in names:
            model.submit(name, prompts((20,), seed=int(name))[0], Sampling(max_tokens=60))
        ended: dict[str, str] = {}
        cancelled: set[str] = set()
        for event in model.events():
            if model.stats()["put_back"] and not cancelled:
                cancelled = set(model._loop.scheduler.active_requests)
                for name in cancelled:
                    model.cancel(name)
            if event.finish:
                ended[event.request_id] = event.finish
            if len(ended) == 4:
                break
        assert 0 < len(cancelled) < 4
        assert ended == {name: "cancelled" if name in cancelled else "length" for name in names}


def test_a_request_of_sliding_layers_lives_in_the_pages_of_its_window() -> None:
    """Window 8, chunks of 5, pages of 4: four pages are enough for any length, if those that slid out count as free."""
    model, ids = make("mistral"), prompts((40,))[0]
    expected = eager(model, [ids], new=60)
    found, stats = batched(model, [ids], new=60, num_pages=4, max_batch_tokens=5)
    assert found == expected
    assert (stats["num_pages"], stats["put_back"]) == (4, 0)


def test_each_layer_is_one_call_of_the_phase_it_is_in(served: BatchedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (calls.append(name), function(*args, **kwargs))[1]

    for layer in served._loop.layers:
        for name in ("write", "decode", "mixed"):
            monkeypatch.setattr(layer, name, counted(name, getattr(layer, name)))
    before = served.stats()["steps"]
    alone(served, prompts((9,))[0], Sampling(max_tokens=5))
    assert served.stats()["steps"] - before == 5
    assert calls == ["write", "mixed"] * 2 + ["write", "decode"] * 2 * 4
    calls.clear()
    # A prompt of 20 in chunks of at most 16 beside an answer: no step is all answers before the prompt is through.
    served.submit("a", [5], Sampling(max_tokens=3))
    served.submit("b", prompts((20,))[0], Sampling(max_tokens=1))
    collect(served, "ab")
    assert calls.count("mixed") >= 4
    assert len(calls) == 2 * calls.count("write")


def test_no_event_is_lost_when_a_reader_stops_and_another_begins(served: BatchedModel) -> None:
    asked = prompts((9, 9))
    expected = alone(served, asked[1], Sampling(max_tokens=10))
    for _ in range(5):
        served.submit("a", asked[0], Sampling(max_tokens=3))
        served.submit("b", asked[1], Sampling(max_tokens=10))
        found: list[int] = []
        finished: list[str] = []
        while "b" not in finished:
            for event in served.events():  # one event each time
                found += event.tokens if event.request_id == "b" else []
                finished += [event.request_id] if event.finish else []
                break
        assert found == expected
        assert sorted(finished) == ["a", "b"]


def test_a_request_that_does_not_fit_is_not_overtaken_by_those_behind_it() -> None:
    """25 of 32 pages: while small requests took what was free, it waited as long as they kept coming."""
    with BatchedModel(make("gqa_64"), AttentionArgs(page_size=4), num_pages=32, max_batch_tokens=128) as model:
        small = Sampling(max_tokens=30, stop_token_ids=())
        for number in range(4):
            model.submit(f"before {number}", prompts((12,), seed=number)[0], small)
        began: list[str] = []
        ended: list[str] = []
        for event in model.events():
            if not began:
                model.submit("big", [7] * 100, Sampling(max_tokens=8, stop_token_ids=()))
                for number in range(12):
                    model.submit(f"after {number}", prompts((12,), seed=number)[0], small)
            if event.tokens and event.request_id not in began:
                began.append(event.request_id)
            if event.finish:
                assert event.finish == "length"
                ended.append(event.request_id)
            if len(ended) == 17:
                break
        assert [name for name in began if name.startswith("after")] == [f"after {number}" for number in range(12)]
        assert sorted(began[:5]) == ["before 0", "before 1", "before 2", "before 3", "big"]
        assert model.stats()["cache_used"] == 0


def test_pages_kept_for_reuse_do_not_keep_a_request_waiting() -> None:
    with BatchedModel(make("gqa_64"), AttentionArgs(page_size=4), num_pages=32, max_batch_tokens=128) as model:
        assert len(alone(model, prompts((60,))[0], Sampling(max_tokens=4))) == 4
        assert sum(len(each.ledger.cached_blocks) for each in model._loop.cache.cache_allocators.values()) == 15
        model.submit("runs", [5] * 4, Sampling(max_tokens=40, stop_token_ids=()))
        model.submit("big", [7] * 70, Sampling(max_tokens=1, stop_token_ids=()))
        ended = list(collect(model, ["runs", "big"]))
        assert ended == ["big", "runs"]


def test_those_put_back_come_before_those_that_wait() -> None:
    with BatchedModel(make("gqa_64"), AttentionArgs(page_size=4), num_pages=24, max_batch_tokens=64,
                      max_requests=4) as model:
        names = list(map(str, range(8)))
        for name in names:
            model.submit(name, prompts((20,), seed=int(name))[0], Sampling(max_tokens=40, stop_token_ids=()))
        ended = list(collect(model, names))
        assert model.stats()["put_back"] > 0
        assert sorted(ended[:4]) == names[:4]


def test_an_exception_after_the_step_loses_no_other_requests_end(served: BatchedModel,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """In the books after a forward, once another request of it had ended."""
    mark = served._loop.cache.mark_complete_blocks

    def broken(state: Any, *args: Any) -> None:
        if state.request_id == "b" and len(state.generated_tokens) == 3:
            raise RuntimeError("the books do not add up")
        mark(state, *args)

    monkeypatch.setattr(served._loop.cache, "mark_complete_blocks", broken)
    ids = prompts((5,))[0]
    served.submit("a", ids, Sampling(max_tokens=3))
    served.submit("b", ids, Sampling(max_tokens=12))
    served.submit("c", ids, Sampling(max_tokens=12))
    seen = []
    while True:
        event = served._events.get(timeout=30)
        for each in event if isinstance(event, list) else [event]:
            if each.finish:
                seen.append((each.request_id, each.finish, each.error))
        if len({name for name, *_ in seen}) == 3:
            break
    assert sorted(seen) == [("a", "length", None), ("b", "error", "RuntimeError: the books do not add up"),
                            ("c", "error", "RuntimeError: the books do not add up")]
    assert len(alone(served, ids, Sampling(max_tokens=12))) == 12


class Point:
    """random.Random's random(), of one value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.5}, {"top_p": 0.999}, {"top_k": 5}, {"top_k": 5, "top_p": 0.5}])
@pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2**-24, 1 - 2**-30, 1 - 2**-53])
def test_no_point_draws_a_token_without_a_chance(settings: dict[str, Any], point: float) -> None:
    """float32 has no number between 1 - 2**-25 and 1: such a point must not fall behind the last candidate."""
    logits = torch.full((2000,), -float("inf"))
    logits[7], logits[8] = 30.0, 29.0
    chooser = Chooser(Sampling(temperature=1.0, **settings))
    chooser.random = Point(point)  # type: ignore[assignment]
    expected = {7} if settings.get("top_p") == 0.5 or point <= 0.5 else {8}
    assert int(chooser.draw(logits)) in expected


def test_an_exception_in_a_step_is_an_error_of_those_in_it(served: BatchedModel, monkeypatch: pytest.MonkeyPatch,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    ids = prompts((9,))[0]
    expected = alone(served, ids, Sampling(max_tokens=12))
    layer, calls = served._loop.layers[1], []
    write = layer.write

    def broken(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the kernel tripped")
        write(*args)

    monkeypatch.setattr(layer, "write", broken)
    for name in "ab":
        served.submit(name, ids, Sampling(max_tokens=12))
    ended = collect(served, "ab")
    assert {(finish, error) for _, finish, error in ended.values()} == {("error", "RuntimeError: the kernel tripped")}
    assert alone(served, ids, Sampling(max_tokens=12)) == expected
    assert served.stats()["failed"] == 2
    assert served.stats()["cache_used"] == 0
    assert "the kernel tripped" in caplog.text


def test_logits_that_are_not_finite_are_an_error(served: BatchedModel) -> None:
    with torch.no_grad():
        served._model.lm_head.weight[3] = float("nan")
    served.submit("nan", [5, 6], Sampling(max_tokens=4))
    assert collect(served, ["nan"])["nan"] == ([], "error", "the model gave logits that are not finite")


def test_requests_that_begin_alike_share_pages() -> None:
    model = make("gqa_64")
    start = prompts((40,))[0]
    asked = [start + rest for rest in prompts((3, 7, 1))]
    expected = eager(model, asked)
    with BatchedModel(model, AttentionArgs(page_size=4), num_pages=128) as served:
        for index, ids in enumerate(asked):
            assert alone(served, ids, Sampling(max_tokens=NEW)) == expected[index]
        # The second and third found the first forty tokens there.
        assert served.stats()["prompt_tokens"] == 43 + 7 + 1


def test_closing_ends_what_runs_and_takes_no_more(served: BatchedModel) -> None:
    served.submit("long", [5, 6, 7], Sampling(max_tokens=200))
    served.close()
    events = list(served.events())
    assert events[-1].finish == "error"
    assert "closed" in str(events[-1].error)
    assert list(served.events()) == []
    with pytest.raises(RuntimeError, match="closed"):
        served.submit("late", [5], Sampling())


# ---- refusals --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("prompt", "sampling", "message"), [
    ([5] * 40, {"max_tokens": 250}, r"40 tokens, with max_tokens 250 that is 290, but a request may have 256 \(the"),
    ([], {}, "prompt_ids is empty"), ([5, 97], {}, "from 0 to 96, got 97"), ([5, -1], {}, "from 0 to 96, got -1"),
    ([5, True], {}, "got True"), ([5], {"stop_token_ids": (97,)}, "got 97"),
])
def test_bad_requests_are_refused_with_their_values(served: BatchedModel, prompt: list[int], sampling: dict[str, Any],
                                                    message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served.submit("bad", prompt, Sampling(**sampling))
    assert len(alone(served, [5], Sampling(max_tokens=2))) == 2


def test_a_name_in_use_is_refused(served: BatchedModel) -> None:
    served.submit("a", [5], Sampling(max_tokens=200))
    with pytest.raises(ValueError, match="'a' is in use"):
        served.submit("a", [5], Sampling())
    served.cancel("a")
    collect(served, ["a"])
    served.submit("a", [5], Sampling(max_tokens=1))
    assert collect(served, ["a"])["a"][1] == "length"


@pytest.mark.parametrize(("field", "value"), [
    ("max_tokens", 0), ("max_tokens", 1.5), ("temperature", -1.0), ("temperature", float("nan")), ("temperature", 1e-4),
    ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("seed", -1), ("seed", "x"), ("stop_token_ids", (-1,))])
def test_bad_sampling_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_pages": 1 << 32}, r"num_pages 4294967296 .*GiB.* cpu has .*GiB.*lower num_pages"),
    ({"cache_bytes": 500 << 30}, r"cache_bytes 536870912000 \(500\.0 GiB\).*lower cache_bytes")])
def test_a_cache_larger_than_the_memory_is_refused_before_weights_are_read(settings: dict[str, int], message: str,
                                                                           tmp_path: Path) -> None:
    TINY["gqa_64"].save_pretrained(tmp_path)  # no weights: nothing of them is read
    with pytest.raises(MemoryError, match=message):
        BatchedModel(tmp_path, **settings)
    model = make("gqa_64")
    with pytest.raises(MemoryError, match=message):
        BatchedModel(model, **settings)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError(),
                                   OSError(12, "Cannot allocate memory")])
def test_a_cache_that_is_not_given_is_a_memory_error_that_says_what_to_do(error: Exception,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise error

    monkeypatch.setattr("hal.integrations.transformers_batching_cache.Cache.__init__", refused)
    model = make("gqa_64")
    with pytest.raises(MemoryError, match=r"num_pages 8 .*was not given.*lower num_pages"):
        BatchedModel(model, num_pages=8)
    with pytest.raises(MemoryError, match=r"cache_bytes \d+, the default, .*was not given.*give a lower cache_bytes"):
        BatchedModel(model)


@pytest.mark.parametrize("way", ["batched", "generate"])
def test_code_in_a_models_folder_is_refused_and_nobody_is_asked(way: str, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    TINY["gqa_64"].save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "FooTok", "auto_map": {"AutoTokenizer": ["tok.FooTok", null]}}')
    ran = tmp_path / "ran"
    (tmp_path / "tok.py").write_text(f"open({str(ran)!r}, 'w')\nclass FooTok:\n    @classmethod\n"
                                     "    def from_pretrained(cls, *a, **k): return cls()\n    @classmethod\n"
                                     "    def register_for_auto_class(cls, *a, **k): pass\n")
    kinds = kinds_from_model(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        if way == "batched":
            BatchedModel(tmp_path, num_pages=8)
        else:
            generate._load(tmp_path, kinds, decided(AttentionArgs(), kinds, detect("cpu")))
    assert not ran.exists()


def test_a_prompt_longer_than_the_cache_is_refused() -> None:
    with BatchedModel(make("gqa_64"), AttentionArgs(page_size=4), num_pages=8) as served:
        assert (served.num_pages, served.max_length) == (8, 32)
        with pytest.raises(ValueError, match=r"40 tokens.* may have 32 \(the cache has 8 pages of 4 tokens\)"):
            served.submit("a", [5] * 40, Sampling(max_tokens=1))
        assert len(alone(served, [5] * 20, Sampling(max_tokens=12))) == 12


MLA = transformers.DeepseekV3Config(
    **{**COMMON, "num_key_value_heads": 4}, kv_lora_rank=32, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8,
    v_head_dim=16, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16,
    first_k_dense_replace=1)


@pytest.mark.parametrize(("config", "reason"), [
    (MLA, r"multi-head latent attention \(MLA\)"),
    (transformers.Qwen3NextConfig(**COMMON, layer_types=["linear_attention", "full_attention"]), "linear_attention"),
    (transformers.Llama4TextConfig(**COMMON, head_dim=64, attention_chunk_size=8), "chunked attention"),
    (transformers.BertConfig(num_hidden_layers=2), "not a causal decoder's"),
])
def test_models_that_can_not_be_batched_are_refused_at_start_with_the_way_out(config: Any, reason: str,
                                                                            tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)  # no weights: nothing of them is read
    with pytest.raises(ValueError, match=rf"{reason}.*hal generate.*vLLM"):
        BatchedModel(tmp_path)


def test_a_layer_that_asks_for_what_its_config_did_not_announce(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mistral")
    model.model.layers[1].self_attn.scaling *= 2
    with pytest.raises(ValueError, match="layer 1: the model asks for softmax_scale"):
        BatchedModel(model, num_pages=8)
    assert model.config._attn_implementation == "eager"


def test_outside_a_batched_model_the_function_refuses() -> None:
    model = make("mistral")
    paged.register()
    model.set_attn_implementation(paged.NAME)
    with pytest.raises(RuntimeError, match="attn_implementation 'hal'"):
        model(torch.tensor([[5, 6]]))


def test_arguments_of_the_model_are_refused() -> None:
    model = make("mistral")
    for settings, message in (({"num_pages": 0}, "num_pages"), ({"max_requests": 1.5}, "max_requests"),
                              ({"num_pages": 4, "cache_bytes": 4}, "one thing"), ({"cache_bytes": 4}, "holds no page"),
                              ({"dtype": "float16"}, "loaded model")):
        with pytest.raises(ValueError, match=message):
            BatchedModel(model, **settings)
    with pytest.raises(ValueError, match="kv_cache_dtype fp8_e4m3 is not supported"):
        BatchedModel(model, AttentionArgs(kv_cache_dtype="fp8_e4m3"))
    assert model.config._attn_implementation == "eager"
