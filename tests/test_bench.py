"""hal bench: what it prints, what it counts, whom it catches, what it refuses. No test asks how long something took."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import kvcache_case, pick_features, varlen_case

from hal import oracle, registry
from hal.__main__ import main
from hal.backend import AttentionBackend
from hal.bench import cells, check, compare, contenders, inputs, limits, peers, run, timing
from hal.bench.shapes import PHASES, Shape
from hal.config import AttentionConfig, LayerKind
from hal.context import bound
from hal.kv_cache import new_kv_cache, write_kv_cache
from hal.plan import Planner
from hal.platform import Platform

CPU = Platform("cpu", "x86_64_v3", "cpu", None, "test")
TINY = ("bench", "--device", "cpu", "--threads", "1", "--cold-mib", "1", "--rounds", "3", "--heads", "4",
        "--kv-heads", "2", "--head-dim", "16", "--dtype", "float32")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_CHECK", "HAL_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    monkeypatch.setattr(peers, "_peers", dict(peers._peers))
    return peers.register


def bench(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    assert main([*TINY, *argv, "--json", "-"]) == code
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    assert main(["bench", *argv]) == code
    seen = capsys.readouterr()
    assert seen.out == ""
    return seen.err


# -- a run --


def test_every_phase_is_checked_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    told = bench(capsys, "--phase", ",".join(PHASES), "--batch", "3", "--seqlen", "40", "--chunk", "7",
                 "--backend", "torch", "--seed", "5")
    assert set(told) >= {"format", "platform", "versions", "date", "threads", "cpus", "load", "clock", "limits",
                         "checked", "settings", "cells"}
    assert (told["threads"], told["settings"]["seed"], told["checked"]) == (1, 5, True)
    assert told["versions"]["torch"] == torch.__version__
    assert told["limits"]["bytes_per_second"] > 0
    assert told["limits"]["flops_per_second"]["float32"] > 0
    assert len(told["limits"]["measured"]) == 3
    assert [cell["phase"] for cell in told["cells"]] == list(PHASES)
    assert [cell["queries"] for cell in told["cells"]] == [[1, 1, 1], [4, 4, 4], [40, 40, 40], [7, 7, 7], [1, 1, 7]]
    for cell in told["cells"]:
        assert cell["baseline"] == "naive"
        assert [(r["contender"], r["status"], r["kind"]) for r in cell["results"]] == [
            ("torch", "timed", "backend"), ("naive", "timed", "peer"), ("sdpa", "timed", "peer")]
        for result in cell["results"]:
            assert [len(one) for one in result["samples_s"]] == [1, 1, 1]
            assert 0 < result["low_s"] <= result["median_s"] <= result["high_s"]
            assert result["cpu_s"] > 0
            assert result["check"]["error"] <= result["check"]["bound"]
            assert result["check"]["reduced"] is False
            assert result["fraction"] == pytest.approx(cell["limit_s"] / result["median_s"])
        ratios = {r["contender"]: r["ratio"] for r in cell["results"]}
        medians = {r["contender"]: r["median_s"] for r in cell["results"]}
        assert ratios["naive"] == 1
        assert ratios["torch"] == pytest.approx(medians["naive"] / medians["torch"])
    assert told["cells"][0]["results"][0]["target"] == "hal.backends.torch_native.flash_attn_with_kvcache"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--phase", "decode", "--batch", "1,2", "--seqlen", "33", "--backend", "torch_native"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    rows = [line.split() for line in out.splitlines()]
    header = next(row for row in rows if row[:1] == ["phase"])
    assert " ".join(header) == "phase batch x len contender median spread CPU time vs naive of the limit"
    assert sum(row[:4] == ["decode", n, "x", "33"] for row in rows for n in "12") == 2
    assert "checked  against the float64 oracle before timing" in out
    assert "plans  made before the clock starts, once for each set of inputs" in out
    assert "graphs  " not in out
    assert "sdpa:  reads no pages" in out


def test_all_backends_that_serve_and_why_others_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    told = bench(capsys, "--phase", "decode", "--batch", "1", "--seqlen", "20", "--peer", "none", "--kv-cache-dtype",
                 "fp8_e4m3")
    results = {r["contender"]: r for r in told["cells"][0]["results"]}
    assert results["torch"]["status"] == "timed"
    assert results["torch"]["ratio"] == 1
    assert results["flex_attention"]["status"] == "refused"
    assert "kv_cache_dtype fp8_e4m3 is not supported" in results["flex_attention"]["reason"]


def test_a_backend_asked_for_by_name_that_cannot_serve(capsys: pytest.CaptureFixture[str]) -> None:
    told = bench(capsys, "--phase", "decode", "--batch", "1", "--seqlen", "20", "--backend", "torch,mate", code=1)
    results = {r["contender"]: r for r in told["cells"][0]["results"]}
    assert results["mate"]["reason"] == "platform cpu is not supported (mate: musa)"
    assert (results["torch"]["status"], results["naive"]["status"]) == ("timed", "timed")


def test_a_backend_that_selection_accepts_but_that_cannot_be_bound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(config: Any, platform: Any, package: Any) -> Any:
        raise OSError("libkernel.so: no such file")

    monkeypatch.setattr(registry.get("torch"), "bind", bind)
    told = bench(capsys, "--phase", "decode", "--batch", "1", "--seqlen", "20", code=1)
    result = next(r for r in told["cells"][0]["results"] if r["contender"] == "torch")
    assert (result["status"], result["expected"]) == ("refused", True)
    assert "could not be bound: OSError: libkernel.so: no such file" in result["reason"]


def test_no_backend_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    told = bench(capsys, "--phase", "decode", "--batch", "1", "--seqlen", "20", "--backend", "mate", code=1)
    assert [r["status"] for r in told["cells"][0]["results"]] == ["timed", "timed", "refused"]


@pytest.mark.parametrize("config", [
    '{"sliding_window": 9, "softcap": 20, "sinks": true}', '{"attention_chunk": 16}',
    '{"causal": false, "sliding_window": 5}'])
def test_features_reach_everyone(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = bench(capsys, "--phase", ",".join(PHASES), "--batch", "2", "--seqlen", "35", "--chunk", "6", "--config",
                 config, "--backend", "torch")
    for cell in told["cells"]:
        assert {r["status"] for r in cell["results"] if r["contender"] != "sdpa"} == {"timed"}
        sdpa = next(r for r in cell["results"] if r["contender"] == "sdpa")
        if "softcap" in config:
            assert sdpa["reason"] == "softcap 20.0 is not supported (sdpa: F.scaled_dot_product_attention has no " \
                                     "such argument)"
        else:
            assert sdpa["status"] == "timed"


def test_mla_and_kinds_of_layer_of_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["bench", "--device", "cpu", "--threads", "1", "--cold-mib", "1", "--rounds", "3", "--batch", "2",
            "--seqlen", "20", "--json", "-"]
    assert main([*argv, "--backend", "torch", "--mla", "--heads", "2", "--phase", "decode,prefill"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [[r["status"] for r in cell["results"] if r["status"] != "refused"] for cell in told["cells"]] == [
        ["timed"] * 3] * 2
    assert told["cells"][0]["config"]["softmax_scale"] == pytest.approx(192**-0.5)
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "gpt_oss", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_hidden_layers": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"]}))
    assert main([*argv, "--model", str(tmp_path), "--phase", "decode"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {(cell["kind"], cell["config"]["sliding_window"]) for cell in told["cells"]} == {("sliding", 8),
                                                                                          ("full", None)}


# -- correctness first --


def _peer(change: Callable[[Any], Any]) -> Any:
    """naive, with its results changed."""
    def make(config: AttentionConfig, platform: Platform) -> peers.Peer:
        naive = peers.get("naive")(config, platform)
        return peers.Peer(*(lambda f=f, **kwargs: change(f(**kwargs)) for f in (
            naive.flash_attn_with_kvcache, naive.flash_attn_varlen_func)))
    return make


def test_a_wrong_peer_is_caught_and_not_timed(
    capsys: pytest.CaptureFixture[str], register: Callable[[str, Any], None]
) -> None:
    register("off", _peer(lambda out: out + 0.01))
    register("half", _peer(lambda out: out.to(torch.bfloat16)))
    register("one_head", _peer(lambda out: torch.cat((out[..., :-1, :], out[..., :1, :]), -2)))
    register("none_at_all", _peer(lambda out: None))
    register("a_pair", _peer(lambda out: (out, out)))
    told = bench(capsys, "--phase", "decode,mixed", "--batch", "2", "--seqlen", "30", "--peer",
                 "off,half,one_head,none_at_all,a_pair,naive", "--backend", "torch", code=1)
    for cell in told["cells"]:
        results = {r["contender"]: r for r in cell["results"]}
        for name in ("off", "half", "one_head", "none_at_all", "a_pair"):
            assert results[name]["status"] == "wrong", name
            assert "median_s" not in results[name]
            assert "samples_s" not in results[name]
        assert "error 0.01, bound" in results["off"]["reason"]
        assert "bfloat16" in results["half"]["reason"]
        assert "head 3" in results["one_head"]["reason"]
        assert results["none_at_all"]["reason"] == "the result is None, expected a tensor"
        assert results["a_pair"]["reason"] == "the result is tuple, expected a tensor"
        # The baseline was not timed, so there is nothing to be faster than.
        assert results["naive"]["status"] == "timed"
        assert results["naive"]["ratio"] is None
    argv = ["--phase", "decode", "--batch", "2", "--seqlen", "30", "--peer", "off"]
    assert main([*TINY, *argv]) == 1
    assert "WRONG, not timed" in capsys.readouterr().out
    assert main([*TINY, *argv, "--no-check"]) == 0
    assert "NO: --no-check" in capsys.readouterr().out


def test_a_peer_that_raises_has_failed(
    capsys: pytest.CaptureFixture[str], register: Callable[[str, Any], None]
) -> None:
    def fail(out: Any) -> Any:
        raise RuntimeError("no kernel\nimage")

    register("broken", _peer(fail))
    told = bench(capsys, "--phase", "prefill", "--batch", "1", "--seqlen", "20", "--peer", "naive,broken", code=1)
    result = next(r for r in told["cells"][0]["results"] if r["contender"] == "broken")
    assert (result["status"], result["reason"]) == ("failed", "RuntimeError: no kernel image")


def test_a_result_that_is_wrong_on_the_full_shape_alone(
    capsys: pytest.CaptureFixture[str], register: Callable[[str, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the oracle saw a smaller shape, the timed one is still looked at."""
    monkeypatch.setattr(check, "LIMIT", 1e-3)
    register("large", _peer(lambda out: out * float("nan") if out.shape[0] > 100 else out))
    told = bench(capsys, "--phase", "prefill", "--batch", "1", "--seqlen", "200", "--peer", "naive,large", code=1)
    results = {r["contender"]: r for r in told["cells"][0]["results"]}
    assert results["large"]["reason"] == "out holds NaN or infinity"
    assert results["naive"]["check"]["reduced"] is True
    assert results["naive"]["check"]["shape"]["seqlen"] < 100


def test_a_kernel_with_a_layout_of_its_own_is_judged_by_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages hold their tokens backwards, so the oracle can't read its cache."""
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32", page_size=16)
    naive = peers.get("naive")(config, CPU)

    def write(k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any) -> None:
        write_kv_cache(k, v, k_cache, v_cache, slots // 16 * 16 + 15 - slots % 16)

    def backwards(k_cache: Any, v_cache: Any, **call: Any) -> Any:
        return naive.flash_attn_with_kvcache(k_cache=k_cache.flip(1), v_cache=v_cache.flip(1), **call)

    def contender(name: str, function: Any) -> contenders.Contender:
        return contenders.Contender(name, "backend", "", "", {"flash_attn_with_kvcache": function}, 16, "backwards",
                                    "float32", lambda pages, size: new_kv_cache(config, "cpu", pages, size), write)

    found = [contender("right", backwards), contender("wrong", naive.flash_attn_with_kvcache)]
    monkeypatch.setattr(cells, "gather", lambda *args: found)
    settings = cells.Settings(CPU, [LayerKind("all", (), config)], [Shape("decode", 2, 40, 1)], None, [], rounds=3,
                            cold_bytes=1 << 16)
    prepared = cells.prepare(settings)
    run.execute(settings, prepared)
    assert [(e.contender.name, e.status) for e in prepared[0].entries] == [("right", "timed"), ("wrong", "wrong")]


def test_reduced_shapes_cost_little() -> None:
    config = AttentionConfig()
    assert check.reduced(config, Shape("decode", 8, 1024, 256)) == Shape("decode", 8, 1024, 256)
    for shape in (Shape("prefill", 64, 8192, 256), Shape("mixed", 256, 32768, 2048), Shape("decode", 512, 65536, 1)):
        small = check.reduced(config, shape)
        assert check.seconds(config, small) <= check.LIMIT
        assert small.batch >= 2
        assert small.seqlen % 2
        assert small.phase == shape.phase


def test_plans_are_made_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in each pass for each copy of the inputs, told the bounds that an engine tells; none while a sample runs."""
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32", page_size=16)
    naive = peers.get("naive")(config, CPU)
    made: list[tuple[bool, Any, int]] = []
    called: list[bool] = []

    def plan(device: Any, cache_seqlens: Any, page_table: Any) -> int:
        made.append((clocked[0], (bound("max_seqlen_q", cache_seqlens), bound("max_seqlen_k", cache_seqlens)),
                     page_table.data_ptr()))
        return len(made)

    planner, clocked = Planner(plan), [False]

    def planned(q: Any, cache_seqlens: Any, page_table: Any, **call: Any) -> Any:
        called.append(clocked[0])
        planner(q.device, (cache_seqlens, page_table))
        return naive.flash_attn_with_kvcache(q=q, cache_seqlens=cache_seqlens, page_table=page_table, **call)

    class Clock(timing.HostClock):
        def sample(self, thunks: Any, at: int, calls: int) -> timing.Sample:
            clocked[0] = True
            try:
                return super().sample(thunks, at, min(calls, 40))
            finally:
                clocked[0] = False

    found = [contenders.Contender(name, "backend", "", "", {"flash_attn_with_kvcache": planned}, size, "", "float32",
                                  lambda pages, size: new_kv_cache(config, "cpu", pages, size), write_kv_cache)
             for name, size in (("a", 16), ("b", 32))]  # inputs of their own, lengths in common
    monkeypatch.setattr(cells, "gather", lambda *args: found)
    monkeypatch.setattr(run, "HostClock", Clock)
    settings = cells.Settings(CPU, [LayerKind("all", (), config)], [Shape("decode", 2, 40, 1)], None, [], rounds=3,
                              cold_bytes=1 << 16, check=False)
    prepared = cells.prepare(settings)
    run.execute(settings, prepared)
    assert [e.status for e in prepared[0].entries] == ["timed"] * 2
    copies = sum(inputs.copies_of(config, Shape("decode", 2, 40, 1), size, 1 << 16) for size in (16, 32))
    assert copies > 4
    assert any(called)
    assert len(made) == run.PASSES * copies
    assert {(clock, bounds) for clock, bounds, _ in made} == {(False, (1, 40))}


def test_a_plan_that_serves_one_call_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first call is right. Timed calls find a plan that was used, so a used one is judged."""
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32", page_size=16)
    naive = peers.get("naive")(config, CPU)
    planner = Planner(lambda device, cache_seqlens: [0])

    def worn(q: Any, cache_seqlens: Any, **call: Any) -> Any:
        plan = planner(q.device, (cache_seqlens,))
        plan[0] += 1
        return naive.flash_attn_with_kvcache(q=q, cache_seqlens=cache_seqlens, **call) + 0.1 * (plan[0] > 1)

    monkeypatch.setattr(cells, "gather", lambda *args: [contenders.Contender(
        "worn", "backend", "", "", {"flash_attn_with_kvcache": worn}, 16, AttentionBackend.kv_layout, "float32",
        lambda pages, size: new_kv_cache(config, "cpu", pages, size), write_kv_cache)])
    settings = cells.Settings(CPU, [LayerKind("all", (), config)], [Shape("decode", 2, 40, 1)], None, [], rounds=3,
                              cold_bytes=1 << 16)
    prepared = cells.prepare(settings)
    run.execute(settings, prepared)
    assert (prepared[0].entries[0].status, "error 0.1" in prepared[0].entries[0].reason) == ("wrong", True)


def test_a_backend_whose_cache_cannot_be_made_has_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such op")

    monkeypatch.setattr(registry.get("torch"), "write_kv_cache", classmethod(lambda cls, config: broken))
    told = bench(capsys, "--phase", "decode", "--batch", "1", "--seqlen", "20", "--backend", "torch", code=1)
    assert [(r["contender"], r["status"], r["reason"]) for r in told["cells"][0]["results"]] == [
        ("torch", "failed", "RuntimeError: no such op"), ("naive", "timed", None), ("sdpa", "timed", None)]


def test_nan_is_json_that_others_read(
    capsys: pytest.CaptureFixture[str], register: Callable[[str, Any], None]
) -> None:
    register("nan", _peer(lambda out: out * float("nan")))
    assert main([*TINY, "--phase", "decode", "--batch", "1", "--seqlen", "20", "--peer", "nan", "--json", "-"]) == 1

    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    told = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    result = next(r for r in told["cells"][0]["results"] if r["contender"] == "nan")
    assert (result["status"], result["check"]["error"]) == ("wrong", None)


def test_one_layout_with_other_strides_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend gets the memory that it allocates, even where another one's would be read just as well."""
    backend = registry.get("torch")
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32")

    def reads() -> Any:
        found = contenders.gather(["torch"], ["naive"], config, CPU, "decode")
        return [one.reads for one in found if isinstance(one, contenders.Contender)]

    assert len(set(reads())) == 1
    monkeypatch.setattr(backend, "new_kv_cache", classmethod(lambda cls, *args: new_kv_cache(*args)))
    assert len(set(reads())) == 2


def test_verify_keeps_a_longer_query_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(contenders, "_backend", lambda name, config, *rest: seen.append(
        config.max_decode_query_len) or contenders.Refusal(name, "backend", (), False))
    for least in (1, 8):
        contenders.gather(["torch"], [], AttentionConfig(max_decode_query_len=least), CPU, "verify")
    assert seen == [4, 8]


def test_peers_by_path_and_their_preparation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_peer.py").write_text(
        "from hal.bench import peers\n"
        "SEEN = []\n"
        "def make(config, platform):\n"
        "    SEEN.append((config.page_size, platform.kind))\n"
        "    naive = peers.get('naive')(config, platform)\n"
        "    def prepare(function, call):\n"
        "        SEEN.append(function)\n"
        "        return {**call, 'softcap': 0.0}\n"
        "    return peers.Peer(naive.flash_attn_with_kvcache, naive.flash_attn_varlen_func, 'mine', prepare)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = bench(capsys, "--phase", "decode", "--batch", "1", "--seqlen", "20", "--peer", "outside_peer:make",
                 "--page-size", "32")
    result = next(r for r in told["cells"][0]["results"] if r["kind"] == "peer")
    assert (result["contender"], result["note"], result["page_size"]) == ("outside_peer:make", "mine", 32)
    assert result["target"] == "outside_peer.make"
    seen = sys.modules["outside_peer"].SEEN
    assert seen[0] == (32, "cpu")
    assert set(seen[1:]) == {"flash_attn_with_kvcache"}


# -- what a call must move and compute: counted by hand --


@pytest.mark.parametrize(("fields", "shape", "pairs", "keys", "moved"), [
    # 2 sequences, 1 query on 10 keys: q and out 2 x 4 x (8 + 8) x 4 bytes, K and V 20 x 2 x 16 x 4.
    ({}, Shape("decode", 2, 10, 4), 20, 20, 512 + 2560),
    # 4 queries on 10 keys: 7 + 8 + 9 + 10.
    ({}, Shape("verify", 1, 10, 4), 34, 10, 4 * 4 * 16 * 4 + 10 * 2 * 16 * 4),
    # A window of 3 tokens: the last query sees 3 keys.
    ({"sliding_window": 3}, Shape("decode", 1, 10, 4), 3, 3, 256 + 3 * 128),
    # 4 queries with a window of 3 see 3 each, of keys 4 to 9.
    ({"sliding_window": 3}, Shape("verify", 1, 10, 4), 12, 6, 1024 + 6 * 128),
    # Chunks of 4: the token at position 9 sees 8 and 9.
    ({"attention_chunk": 4}, Shape("decode", 1, 10, 4), 2, 2, 256 + 2 * 128),
    # A prompt of 6 in chunks of 4: 1 + 2 + 3 + 4 and 1 + 2.
    ({"attention_chunk": 4}, Shape("prefill", 1, 6, 4), 13, 6, 6 * 256 + 6 * 128),
    ({}, Shape("prefill", 2, 4, 4), 20, 8, 8 * 256 + 8 * 128),
    ({"causal": False}, Shape("prefill", 1, 4, 4), 16, 4, 4 * 256 + 4 * 128),
    # A window of 2 to both sides over 4 tokens: 2 + 3 + 3 + 2.
    ({"causal": False, "sliding_window": 2}, Shape("prefill", 1, 4, 4), 10, 4, 4 * 256 + 4 * 128),
    # 3 of 5 tokens are queries: 3 + 4 + 5.
    ({}, Shape("extend", 1, 5, 3), 12, 5, 3 * 256 + 5 * 128),
    # One decoding sequence (5) and a chunk of 3 (3 + 4 + 5).
    ({}, Shape("mixed", 2, 5, 3), 17, 10, 4 * 256 + 10 * 128),
    # An fp8 cache is a quarter of float32's; packed K and V are not in the cache.
    ({"kv_cache_dtype": "fp8_e4m3"}, Shape("decode", 1, 10, 4), 10, 10, 256 + 10 * 32),
    ({"kv_cache_dtype": "fp8_e4m3"}, Shape("prefill", 1, 1, 4), 1, 1, 256 + 128),
])
def test_work(fields: dict[str, Any], shape: Shape, pairs: int, keys: int, moved: int) -> None:
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, dtype="float32", **fields)
    done = limits.work(config, shape)
    assert (done.pairs, done.keys, done.bytes) == (pairs, keys, moved)
    assert done.flops == 2 * pairs * 16 * 4


def test_work_of_mla() -> None:
    config = AttentionConfig(num_heads=4, mla=True, softmax_scale=0.1, dtype="bfloat16")
    done = limits.work(config, Shape("decode", 2, 10, 1))
    # Keys of 576 whose first 512 are the values: one latent head, read once.
    assert done.flops == 2 * 20 * (576 + 512) * 4
    assert done.bytes == 2 * 4 * (576 + 512) * 2 + 20 * 576 * 2
    done = limits.work(config, Shape("prefill", 1, 3, 1))  # expanded: every head has keys of 192 and values of 128
    assert done.flops == 2 * 6 * (192 + 128) * 4
    assert done.bytes == 3 * 4 * 320 * 2 + 3 * 4 * 320 * 2


def test_limit_names_what_binds() -> None:
    done = limits.Work(bytes=100, flops=1000, pairs=0, keys=0)
    assert limits.limit(done, 10, 1000) == limits.Limit(10.0, "memory")
    assert limits.limit(done, 1000, 10) == limits.Limit(100.0, "compute")


def test_work_agrees_with_the_oracles_mask() -> None:
    rng = random.Random(3)
    for _ in range(60):
        config = AttentionConfig(causal=rng.random() < 0.7, sliding_window=rng.choice((None, 1, 3, 9)),
                                 attention_chunk=rng.choice((None, 2, 5)))
        len_k = rng.randint(1, 12)
        len_q = rng.randint(1, len_k)
        seen = oracle.visible(torch.arange(len_k - len_q, len_k), torch.arange(len_k), len_k, config.causal,
                              config.window_size, config.attention_chunk or 0)
        got = limits.work(config, Shape("extend", 1, len_k, len_q))
        assert (got.pairs, got.keys) == (int(seen.sum()), int(seen.any(0).sum())), config


# -- inputs --


def test_copies_share_no_page_and_hold_different_pages() -> None:
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32")

    def new(pages: int, size: int) -> Any:
        return new_kv_cache(config, "cpu", pages, size)

    shape = Shape("decode", 3, 20, 1)
    made = inputs.make(config, shape, inputs.lengths_of(shape, "cpu"), 16, "cpu", 1, 60_000, "float32", new,
                       write_kv_cache)
    used = torch.cat([call["page_table"].flatten() for call in made.calls])
    assert len(made.calls) == 60_000 // (3 * 32 * 16 * 4 + 3 * 2 * 16 * 4) == 9
    assert len(set(used.tolist())) == len(used) == made.calls[0]["k_cache"].shape[0]
    assert used.tolist() != sorted(used.tolist())
    cache = made.calls[0]["k_cache"].flatten(1)
    assert len(torch.unique(cache, dim=0)) == len(cache)
    assert bool((made.calls[0]["q"] != made.calls[1]["q"]).all())
    again = inputs.make(config, shape, inputs.lengths_of(shape, "cpu"), 16, "cpu", 1, 60_000, "float32", new,
                       write_kv_cache)
    assert torch.equal(again.calls[3]["q"], made.calls[3]["q"])
    assert torch.equal(again.calls[3]["page_table"], made.calls[3]["page_table"])


# -- the peers against the oracle, on ragged and empty lengths --

ALLOWED = {"naive": ("causal", "window", "both_windows", "chunk", "softcap", "sinks", "scale", "qv"),
           "sdpa": ("causal", "window", "both_windows", "chunk", "scale", "qv")}


def _agrees(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) < 2e-5 if want.numel() else True


@pytest.mark.parametrize("name", ["naive", "sdpa"])
def test_peers_agree_with_the_oracle_over_pages(name: str) -> None:
    empty = 0
    for seed in range(120):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        features = pick_features(rng, ALLOWED[name])
        call = kvcache_case(rng, features, "float32", rng.choice((4, 16)), rng.choice((1, 3)), 16, 24)
        config = AttentionConfig(num_heads=call["q"].shape[-2], num_kv_heads=call["k_cache"].shape[2], head_dim=16,
                                 head_dim_v=24, dtype="float32")
        call.setdefault("cache_seqlens", torch.full((call["page_table"].shape[0],), call["page_table"].shape[1]
                                                    * call["k_cache"].shape[1], dtype=torch.int32))
        want = oracle.flash_attn_with_kvcache(**call)
        peer = peers.get(name)(config, CPU)
        given = peer.prepare("flash_attn_with_kvcache", call) if peer.prepare else call
        _agrees(peer.flash_attn_with_kvcache(**given), want)
        empty += int((call["cache_seqlens"] == 0).any())
    assert empty > 10


@pytest.mark.parametrize("name", ["naive", "sdpa"])
def test_peers_agree_with_the_oracle_over_packed_keys(name: str) -> None:
    tried = 0
    for seed in range(80):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        features = pick_features(rng, ALLOWED[name]) - {"qv"}
        call = varlen_case(rng, features, "float32", rng.choice((1, 3)), 16, 24)
        if "seqused_k" in call:
            continue
        tried += 1
        config = AttentionConfig(num_heads=call["q"].shape[-2], num_kv_heads=call["k"].shape[1], head_dim=16,
                                 head_dim_v=24, dtype="float32")
        peer = peers.get(name)(config, CPU)
        _agrees(peer.flash_attn_varlen_func(**call), oracle.flash_attn_varlen_func(**call))
    assert tried > 40


def test_peers_refuse_what_they_do_not_honour() -> None:
    config = AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=8, dtype="float32")
    q, cache = torch.zeros(1, 1, 2, 8), torch.zeros(2, 16, 2, 8)
    call = {"q": q, "k_cache": cache, "v_cache": cache, "cache_seqlens": torch.tensor([3], dtype=torch.int32),
            "page_table": torch.zeros(1, 1, dtype=torch.int32)}
    naive, sdpa = (peers.get(name)(config, CPU) for name in ("naive", "sdpa"))
    with pytest.raises(ValueError) as error:
        naive.flash_attn_with_kvcache(**call, return_softmax_lse=True)
    assert str(error.value) == "return_softmax_lse: got True, which the peer naive does not honour: leave it at False"
    with pytest.raises(ValueError) as error:
        sdpa.flash_attn_with_kvcache(**call)
    assert str(error.value) == ("page_table: got a tensor, expected None: sdpa reads no pages, prepare() lays K and V "
                                "out")
    call["page_table"] = None
    with pytest.raises(ValueError) as error:
        sdpa.flash_attn_with_kvcache(**call, sinks=torch.zeros(2))
    assert str(error.value) == "sinks: got a tensor (2,), which the peer sdpa does not honour: leave it at None"


# -- samples and their spread --


def test_figure_holds_what_changes_between_passes() -> None:
    steady = [float(n) for n in range(100, 120)]
    assert timing.figure([steady]) == timing.Figure(109.5, 102.0, 117.0)
    got = timing.figure([[1.0] * 12, [1.0] * 12, [3.0]])
    assert (got.median, got.low, got.high) == (1.0, 1.0, 3.0)


def test_calls_of_a_sample_fill_the_least_time() -> None:
    assert timing.calls_for(0.5) == 1
    assert timing.calls_for(0.001) == 20
    assert timing.calls_for(0.0) == 100_000


def test_host_clock_takes_the_calls_in_turn() -> None:
    seen: list[int] = []
    thunks = [lambda n=n: seen.append(n) for n in range(3)]
    sample = timing.HostClock().sample(thunks, 2, 5)
    assert seen == [2, 0, 1, 2, 0]
    assert sample.seconds > 0


class _Event:
    """A stand-in for torch.cuda.Event, whose clock moves by 2 ms whenever the module is asked to."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = _Event.now

    def elapsed_time(self, end: _Event) -> float:
        return end.at - self.at


def test_device_clock_against_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.bench import accelerator

    synchronised: list[int] = []
    module = types.SimpleNamespace(__name__="torch.fake", Event=_Event, synchronize=lambda: synchronised.append(1))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(accelerator, "FLUSH_BYTES", 64)
    clock = accelerator.DeviceClock("cpu")
    clock.flush.fill_(7)
    flushed: list[bool] = []

    def call() -> None:
        flushed.append(not clock.flush.any())
        clock.flush.fill_(7)
        _Event.now += 2.0

    assert clock.sample([call], 0, 3) == timing.Sample(0.002, None)
    assert flushed == [True] * 3
    assert synchronised == [1]
    with pytest.raises(RuntimeError, match=r"--graph: torch.fake has none of CUDAGraph, NPUGraph, MUSAGraph: leave"):
        accelerator.captured("cpu", [call])


def test_a_graph_is_captured_on_the_stream_that_its_plans_were_made_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.bench import accelerator

    current = ["default"]
    seen: list[str] = []

    @contextlib.contextmanager
    def on(stream: str) -> Iterator[None]:
        before, current[0] = current[0], stream
        yield
        current[0] = before

    module = types.SimpleNamespace(
        __name__="torch.fake", synchronize=lambda: None, Stream=lambda: "own", stream=on,
        CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: seen.append("replay")),
        graph=lambda graph, stream="of the capture": on(stream))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    [replay] = accelerator.captured("cpu", [lambda: seen.append(current[0]) or 7])  # type: ignore[func-returns-value]
    assert seen == ["own", "own"]
    assert replay() == 7
    assert (seen[2:], current) == (["replay"], ["default"])


# -- files: --json, --plot, --compare --


def test_two_runs_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for file, seqlen in zip(files, ("20,33", "33,40")):
        assert main([*TINY, "--phase", "decode", "--batch", "2", "--seqlen", seqlen, "--json", file]) == 0
        assert "decode" in capsys.readouterr().out
    assert main(["bench", "--compare", *files, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {(row["phase"], row["shape"], row["contender"]) for row in told["rows"]} == {
        ("decode", "2 x 33", name) for name in ("torch", "naive", "sdpa")}
    old = json.loads(Path(files[0]).read_text())["cells"][1]["results"][0]
    new = json.loads(Path(files[1]).read_text())["cells"][0]["results"][0]
    assert told["rows"][0]["ratio"] == pytest.approx(old["median_s"] / new["median_s"])
    assert told["only_old"] == [f"decode 2 x 20 {name}" for name in ("torch", "naive", "sdpa")]
    assert told["only_new"] == [f"decode 2 x 40 {name}" for name in ("torch", "naive", "sdpa")]
    assert main(["bench", "--compare", *files]) == 0
    out = capsys.readouterr().out
    assert "only in the old report:  decode 2 x 20 torch; decode 2 x 20 naive" in out
    assert max(map(len, out.splitlines())) <= 100


def _report(**figures: tuple[float, float, float]) -> dict[str, Any]:
    results = [{"contender": name, "page_size": 16, "q_dtype": "float32", "graph": False, "median_s": median,
                "low_s": low, "high_s": high} for name, (median, low, high) in figures.items()]
    return {"format": 2, "platform": {"kind": "cpu", "arch": "x", "name": "n"}, "threads": 1, "clock": "c", "cpus": 2,
            "checked": True, "settings": {"cold_bytes": 9}, "load": {"start": 0.1, "end": 1.2}, "cells": [
        {"kind": "all", "phase": "decode", "shape": "1 x 8", "config": {}, "results": results}]}


def test_compare_marks_what_is_outside_both_spreads() -> None:
    old = _report(faster=(2.0, 1.8, 2.2), same=(2.0, 1.8, 2.2), slower=(1.0, 0.9, 1.1), later=(1.0, 0.9, 1.1))
    new = _report(faster=(1.0, 0.9, 1.79), same=(1.5, 1.4, 1.81), slower=(2.0, 1.2, 2.2), later=(1.25, 1.09, 1.3))
    told = compare.compare(old, new)
    assert [(row["contender"], row["ratio"], row["changed"]) for row in told["rows"]] == [
        ("faster", 2.0, True), ("same", 2.0 / 1.5, False), ("slower", 0.5, True),
        ("later", 0.8, False)]
    lines = compare.text(told).splitlines()
    assert lines[1].endswith("2.00x FASTER")
    assert lines[2].endswith("1.33x")
    assert lines[3].endswith("0.50x SLOWER")
    assert lines[-1] == "2 of 4 changed, that is, their spreads do not meet"
    assert told["busy"] == []
    told = compare.compare(old, {**new, "load": {"start": 0.1, "end": 2.6}})
    assert told["busy"] == ["new"]
    assert "BUSY  the machine was busy with other work in the new run" in compare.text(told)
    assert "UNCHECKED" not in compare.text(told)
    told = compare.compare({**old, "checked": False}, new)
    assert told["unchecked"] == ["old"]
    assert "UNCHECKED  nobody's results were looked at in the old run: --no-check" in compare.text(told)


def test_reports_that_do_not_go_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def written(name: str, report: Any) -> str:
        (tmp_path / name).write_text(json.dumps(report))
        return str(tmp_path / name)

    old = written("old.json", _report(torch=(1.0, 0.9, 1.1)))
    for changed, message in (
        ({"threads": 2}, "threads is 1 in the old report and 2 in the new one: only runs on the same device, "
                         "with the same --threads and --cold-mib, can be compared"),
        ({"platform": {"kind": "cuda", "arch": "x", "name": "n"}},
         "platform.kind is 'cpu' in the old report and 'cuda' in the new one: only runs on the same device, with "
         "the same --threads and --cold-mib, can be compared"),
        ({"settings": {"cold_bytes": 8}},
         "settings.cold_bytes is 9 in the old report and 8 in the new one: only runs on the same device, with the same "
         "--threads and --cold-mib, can be compared"),
        ({"cells": []}, "nobody was timed on the same shape and config in both reports"),
    ):
        new = written("new.json", {**_report(torch=(1.0, 0.9, 1.1)), **changed})
        assert refused(capsys, "--compare", old, new) == f"hal: error: --compare: {message}\n"
    new = written("new.json", {"format": 2})
    assert refused(capsys, "--compare", old, new) == (
        f"hal: error: --compare {new}: is no report of hal bench: give a file that --json wrote\n")
    new = written("new.json", {**_report(), "format": 0})
    assert refused(capsys, "--compare", old, new) == (
        f"hal: error: --compare {new}: has format 0, this hal reads 2: measure again\n")
    assert refused(capsys, "--compare", old, str(tmp_path / "none.json")).startswith(
        f"hal: error: --compare {tmp_path}/none.json: can't be read as JSON: ")
    cut = _report(torch=(1.0, 0.9, 1.1))["cells"]
    del cut[0]["results"][0]["low_s"]
    for odd in ([{"kind": "all"}], [3], 3, cut, _report(torch=(0.0, 0.0, 0.0))["cells"]):
        new = written("new.json", {**_report(), "cells": odd})
        assert refused(capsys, "--compare", old, new).startswith(
            f"hal: error: --compare {new}: is no whole report of hal bench (")
    for flag, *value in (("--plot", "a.png"), ("--threads", "1"), ("--no-check",), ("--phase", "decode")):
        assert refused(capsys, "--compare", old, old, flag, *value) == (
            f"hal: error: {flag} is not supported with --compare: leave it out\n")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(suffix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / f"speed{suffix}"
    assert main([*TINY, "--phase", "decode,mixed", "--batch", "2", "--seqlen", "20,33", "--plot", str(file)]) == 0
    capsys.readouterr()
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    if suffix == ".png":
        from matplotlib.image import imread

        image = imread(file)
        assert min(image.shape[:2]) > 400
        assert len({tuple(pixel) for row in image[::7, ::7] for pixel in row}) > 20
    else:
        text = content.decode()
        assert all(f"<!-- {word} -->" in text for word in ("decode", "mixed", "2 x 20", "torch", "naive", "sdpa"))


def test_plot_without_matplotlib(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.import_module", _no_matplotlib)
    file = tmp_path / "a.png"
    assert refused(capsys, "--plot", str(file)) == (
        "hal: error: --plot: matplotlib is not installed: pip install 'attention-hal[bench]'\n")
    assert not file.exists()


def _no_matplotlib(name: str, package: str | None = None) -> Any:
    if name.partition(".")[0] == "matplotlib":
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    __import__(name)
    return sys.modules[name]


# -- refusals, before anything is timed --


@pytest.mark.parametrize(("argv", "message"), [
    ("--backend nope", "attention backend 'nope' is not known"),
    ("--peer nope", "peer 'nope' is not known (peers: naive, sdpa; or a path, package.module:function)\n"),
    ("--peer json:nope", "peer 'json:nope' can't be loaded: AttributeError: module 'json' has no attribute 'nope'\n"),
    ("--peer no_module_here:f", "peer 'no_module_here:f' can't be loaded: ModuleNotFoundError: No module named"),
    ("--peer hal.bench.peers:_peers", "peer 'hal.bench.peers:_peers' is {"),
    ("--phase decode,train", "--phase 'train' is not known (known: decode, verify, prefill, extend, mixed)\n"),
    ("--phase decode,decode", "argument --phase: must be names with commas between, none twice, got 'decode,decode'"),
    ("--batch 0", "argument --batch: must be a whole number >= 1, got '0'"),
    ("--batch 1,x", "argument --batch: must be a whole number >= 1, got 'x'"),
    ("--seqlen 8,8", "argument --seqlen: must not have a number twice, got '8,8'"),
    ("--seqlen -4", "argument --seqlen: "),
    ("--rounds 2", "argument --rounds: must be a whole number >= 3, got '2'"),
    ("--seconds 0", "argument --seconds: must be a number of seconds > 0, got '0'"),
    ("--seconds nan", "argument --seconds: must be a number of seconds > 0, got 'nan'"),
    ("--rounds 3 --seconds 1", "argument --seconds: not allowed with argument --rounds"),
    ("--seed -1", "argument --seed: "),
    ("--batch 1 --batch 2", "argument --batch: given twice, as [1] and [2]: give one of them"),
    ("--heads 3 --kv-heads 2", "num_heads must be a multiple of num_kv_heads, got 3 and 2\n"),
    ("--heads 4 --config {\"num_heads\":4}", "num_heads stands in --config and in --heads: give one of them\n"),
    ("--mla --config {\"mla\":true}", "mla stands in --config and in --mla: give one of them\n"),
    ("--config {\"nope\":4}", "unknown field nope in attention config"),
    ("--config @none.json", "--config @none.json: can't be read: "),
    ("--config {\"sparse\":true,\"mla\":true}",
     "sparse True is not supported by hal bench, which makes no inputs for it (supported: False)\n"),
    ("--config {\"attention_type\":\"encoder\"}", "attention_type 'encoder' is not supported by hal bench"),
    ("--config {\"tree_mask\":true}", "tree_mask True is not supported by hal bench, which makes no inputs for it"),
    ("--config {\"return_softmax_lse\":true}", "return_softmax_lse True is not supported by hal bench"),
    ("--config {\"graph\":true}", "graph True is not supported in --config of hal bench: say --graph, which also"),
    ("--chunk 64 --phase decode,verify", "--chunk 64 is not used by --phase decode,verify (used by: extend, mixed): "),
    ("--model none --heads 4", "--heads is not supported with --model, whose layers say it: leave one of them out\n"),
    ("--model none", "model 'none' is no folder"),
    ("--graph", "--graph is not supported on cpu: graphs are captured on accelerators, leave it out\n"),
    ("--device cuda:7", "device 'cuda:7' is not on this machine"),
    ("--device quantum", "device 'quantum' is not known"),
    ("--json none/a.json", "--json none/a.json: the folder "),
    ("--json .", "--json .: is a folder\n"),
    ("--plot a.pdf", "--plot a.pdf: .pdf is not supported (supported: .png, .svg)\n"),
    ("--batch 100000 --seqlen 1000000 --phase decode", "decode 100000 x 1000000 needs about "),
])
def test_refusals(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = argv.split() if "--device" in argv else ["--device", "cpu", *argv.split()]
    said = refused(capsys, *words)
    assert said.startswith(f"hal: error: {message}"), said
    assert len(said.splitlines()) == 1


def test_hal_check_would_be_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CHECK", "1")
    assert refused(capsys, "--device", "cpu").startswith(
        "hal: error: HAL_CHECK=1 is set, and the validation of every call would be timed with it: unset it")


def test_names_of_peers(register: Callable[[str, Any], None]) -> None:
    with pytest.raises(ValueError, match=r"peer name 'naive' is taken \(peers: naive, sdpa\)"):
        register("naive", lambda config, platform: None)
    with pytest.raises(ValueError, match="peer 'mine' was not registered"):
        peers.unregister("mine")
    register("mine", "hal.bench.peer_sdpa:sdpa")
    assert peers.get("mine") is peers.get("sdpa")
    peers.unregister("mine")
    assert peers.names() == ["naive", "sdpa"]


def test_a_peer_must_make_a_peer(capsys: pytest.CaptureFixture[str], register: Callable[[str, Any], None]) -> None:
    register("odd", lambda config, platform: 3)
    assert refused(capsys, "--device", "cpu", "--peer", "odd", "--phase", "decode") == (
        "hal: error: peer 'odd' made 3, expected a hal.bench.peers.Peer\n")
