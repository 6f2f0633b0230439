"""benchmarks/cpu and benchmarks/generate.py: what is measured, who takes part, the arithmetic of the goals, the tables.

The kernels of vLLM and SGLang are not here: ci/env_vllm.sh runs tests/env_vllm with them. No test asks how long
something took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks is no installed package

import benchmarks.cpu
from benchmarks import generate
from benchmarks.cpu import __main__ as benchmark
from benchmarks.cpu import goals, measure, peer_limits, peer_vllm, report, sweep, wheel, write
from benchmarks.cpu.sweep import Case
from hal.bench import cells, limits, peers, run, trial
from hal.bench.shapes import Shape
from hal.bench.timing import Sample
from hal.config import AttentionConfig, LayerKind, MLADims
from hal.platform import Platform

CPU = Platform("cpu", "x86_64_v3", "cpu", None, "test")
DECODE = Case("decode", "GQA 32/8", "bfloat16", 128, 1, 1024, 1)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_peers", dict(peers._peers))
    benchmarks.cpu.register()
    benchmarks.cpu.register()


# -- the sweep --


def test_the_sweep_has_every_dimension_and_no_cell_twice() -> None:
    cases = sweep.full()
    assert len({case.key for case in cases}) == len(cases)
    assert cases[: len(sweep.quick())] == sweep.quick()
    decode = [case for case in cases if case.group == "decode"]
    assert {case.batch for case in decode} >= {1, 64}
    assert {case.seqlen for case in decode} >= {128, 32768}
    assert {case.page_size for case in decode} == {16, 128}
    assert {case.heads for case in decode} == {"GQA 32/8", "MHA 32/32"}
    for group in sweep.GROUPS:
        found = [case for case in cases if case.group == group]
        assert {case.threads for case in found} == {1, 2}, group
        assert {case.dtype for case in found} >= {"bfloat16", "float32"}, group


@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda goal: goal.text)
def test_every_goal_has_a_quick_cell(goal: goals.Goal) -> None:
    picked = [case for case in sweep.quick() if goal.where(case)]
    assert picked
    times = {"kind": "peer", "status": "timed", "median_s": 1.0, "low_s": 1.0, "high_s": 1.0, "wall_s": 1.0}
    whole = {case.key: {"case": dataclasses.asdict(case), "contenders": dict.fromkeys(
        ("cpu", "copy", *case.peers), times)} for case in sweep.quick()}
    assert goals.judge(whole, "cpu", [goal])[0]["reached"] == 1.0, "no quick cell has all that the goal takes"


def test_memory_is_bounded_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    large = dataclasses.replace(DECODE, batch=64, seqlen=32768)
    assert large.kv_bytes == 64 * 32768 * 2 * 8 * 128 * 2
    monkeypatch.setattr(cells, "prepare", lambda settings: pytest.fail("made"))
    told = measure.measure(large, CPU, 0.1, 6 << 30)
    assert "GiB (limit: 6.0 GiB)" in told["skipped"]
    assert "contenders" not in told
    assert DECODE.memory < 6 << 30


def test_mla_cases_hold_the_latent_once() -> None:
    case = Case("mla", "MLA 16", "bfloat16", 128, 4, 1024, 1)
    assert case.config.num_kv_heads == 1
    assert case.kv_bytes == 4 * 1024 * 576 * 2
    assert case.shape.phase == "decode"


# -- who takes part --


def test_peers_are_known_to_hal_bench_and_absent_ones_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.bench.contenders import Refusal, gather

    wheel.kernels.cache_clear()
    monkeypatch.setattr(wheel, "DISTRIBUTION", "no-such-distribution")
    names, config = ["vllm", "sglang", "stream"], AttentionConfig(page_size=16)
    found = {one.name: one for one in gather(["torch"], names, config, CPU, "decode")}
    wheel.kernels.cache_clear()
    for name in ("vllm", "sglang"):
        one = found[name]
        assert isinstance(one, Refusal)
        assert one.reasons == ("no-such-distribution is not installed: benchmarks/cpu/run.sh makes the environment "
                               "that has it",)
    assert found["stream"].kind == "limit"
    assert peers.get("flex").__name__ == "flex"


@pytest.mark.parametrize(("flags", "name"), [((True, True), "_C.abi3.so"), ((True, False), "_C_AVX512.abi3.so"),
                                             ((False, False), "_C_AVX2.abi3.so")])
def test_the_library_for_a_cpu(flags: tuple[bool, bool], name: str) -> None:
    assert wheel.library(*flags) == name


@pytest.mark.parametrize(("given", "isa"), [
    (("bfloat16", 128, 128, True), "amx"), (("bfloat16", 128, 128, False), "vec"), (("float16", 128, 128, True), "vec"),
    (("bfloat16", 16, 128, True), "vec16"), (("bfloat16", 128, 80, True), "vec16")])
def test_the_variant_that_vllm_picks(given: tuple[Any, ...], isa: str) -> None:
    assert peer_vllm.isa_of(*given) == isa


def entries(config: AttentionConfig, shape: Shape, names: list[str], time: bool = False) -> dict[str, cells.Entry]:
    settings = cells.Settings(CPU, [LayerKind("all", (), config)], [shape], ["torch"], names, rounds=3,
                              cold_bytes=1 << 18)
    made = cells.prepare(settings)
    if time:
        run.execute(settings, made, measure.Quiet(3))
    else:
        with torch.inference_mode():
            trial.judge_all(made[0], settings, trial.inputs_for(made[0], made[0].shape, settings))
    assert not made[0].refusals
    return {entry.contender.name: entry for entry in made[0].entries}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_good_torch_formulation_of_mla_is_right(dtype: str) -> None:
    config = AttentionConfig(num_heads=4, mla=MLADims(), dtype=dtype, page_size=16, softmax_scale=0.07)
    entry = entries(config, Shape("decode", 3, 49, 1), ["mla_torch"])["mla_torch"]
    assert (entry.status, entry.reason) == ("timed", "")
    assert entry.checked is not None


def test_limits_take_turns_unchecked() -> None:
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=32, dtype="float32", page_size=16)
    found = entries(config, Shape("extend", 2, 40, 8), ["stream", "matmul", "naive"], time=True)
    for name, kind in (("stream", "limit"), ("matmul", "limit"), ("naive", "peer"), ("torch", "backend")):
        entry = found[name]
        assert (entry.status, entry.contender.kind) == ("timed", kind)
        assert len(entry.passes) == run.PASSES
        assert (entry.checked is None) == (kind == "limit")


@pytest.mark.parametrize("mla", [False, True])
@pytest.mark.parametrize("shape", [Shape("decode", 3, 100, 1), Shape("extend", 2, 100, 30)])
def test_limits_count_as_hal_bench_counts(shape: Shape, mla: bool) -> None:
    config = AttentionConfig(num_heads=16, mla=MLADims()) if mla else AttentionConfig(num_heads=8, num_kv_heads=2)
    done = limits.work(config, shape)
    keys = [shape.seqlen] * shape.batch
    assert peer_limits.bytes_of(config, list(shape.queries), keys) == done.bytes
    assert peer_limits.flops_of(config, list(shape.queries), keys) == done.flops


@pytest.mark.parametrize("flops", [10**6, 10**9, 137 * 10**9])
def test_the_product_has_as_many_flops(flops: int) -> None:
    rows, side = peer_limits.sides(flops)
    assert side <= peer_limits.SIDE
    assert 2 * rows * side**2 == pytest.approx(flops, rel=0.01)


# -- the KV write --


def test_hals_write_is_timed_beside_the_others_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "COLD_BYTES", 1 << 18)
    told = write.measure(Case("write", "GQA 32/8", "float32", 16, 1, 37, 1), CPU, 0.01)
    assert {name: one["status"] for name, one in told.items() if name in ("torch", "sglang", "copy")} == dict.fromkeys(
        ("torch", "sglang", "copy"), "timed")
    assert (told["torch"]["checked"], told["copy"]["kind"]) == ("every slot read back", "limit")
    assert told["torch"]["samples"] >= run.LEAST_ROUNDS
    assert 0 < told["torch"]["low_s"] <= told["torch"]["median_s"] <= told["torch"]["high_s"]


def test_a_wrong_write_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(case: Case, platform: Platform) -> Any:
        good, state, read, _, _ = write._sglang(case, platform)
        return lambda k, v, a, b, slots: good(k, v, a, b, slots.roll(1)), state, read, "peer", ""

    monkeypatch.setattr(write, "COLD_BYTES", 1 << 18)
    monkeypatch.setattr(write, "MAKERS", {"off": off_by_one, "copy": write._copy})
    told = write.measure(Case("write", "GQA 32/8", "float32", 16, 1, 37, 1), CPU, 0.01)
    assert (told["off"]["status"], told["off"]["reason"]) == ("wrong", "k: 37 of 48 slots differ")
    assert told["copy"]["status"] == "timed"


# -- goals --


def cell(case: Case, **times: float) -> dict[str, Any]:
    """A cell whose spreads are 10 % to both sides; wall time is twice the figure's."""
    return {"case": dataclasses.asdict(case), "load": [0.5, 0.7], "contenders": {
        name: {"kind": "peer", "status": "timed", "median_s": time, "low_s": time * 0.9, "high_s": time * 1.1,
               "wall_s": 2 * time} for name, time in times.items()}}


def of(*many: tuple[Case, dict[str, float]]) -> dict[str, dict[str, Any]]:
    return {case.key: cell(case, **times) for case, times in many}


def row(found: dict[str, dict[str, Any]], text: str) -> dict[str, Any]:
    return next(row for row in goals.judge(found, "cpu") if row["goal"] == text)


def test_a_goal_is_the_geometric_mean_of_the_cells_it_is_about() -> None:
    found = of((DECODE, {"cpu": 1.0, "vllm": 1.0, "stream": 0.5}),
               (dataclasses.replace(DECODE, batch=4), {"cpu": 1.0, "vllm": 4.0, "stream": 0.5}),
               (dataclasses.replace(DECODE, dtype="float32"), {"cpu": 1.0, "vllm": 100.0}),
               (dataclasses.replace(DECODE, group="prefill"), {"cpu": 1.0, "vllm": 100.0}))
    told = row(found, "decode bf16, x vLLM")
    assert (told["cells"], told["reached"], told["met"]) == (2, pytest.approx(2.0), True)
    assert (told["low"], told["high"]) == (pytest.approx(2 * 0.9 / 1.1), pytest.approx(2 * 1.1 / 0.9))
    assert told["worst"] == pytest.approx(1.0)
    assert told["worst_cell"] == DECODE.key
    assert told["ceiling"] == pytest.approx(4.0)
    every = row(found, "decode bf16, every cell, x vLLM")
    assert (every["reached"], every["met"]) == (pytest.approx(1.0), False)


def test_what_was_not_measured_is_not_met() -> None:
    found = of((DECODE, {"cpu": 1.0, "vllm": 9.0}))
    told = row(found, "decode bf16, x SGLang")
    assert (told["cells"], told["met"]) == (0, None)
    assert "reached" not in told
    found[DECODE.key]["contenders"]["vllm"] = {"kind": "peer", "status": "wrong", "reason": "off"}
    assert row(found, "decode bf16, x vLLM")["met"] is None


def test_part_of_a_limit() -> None:
    found = of((DECODE, {"cpu": 1.0, "stream": 0.39}))
    assert row(found, "decode bf16 T1, of the stream limit")["met"] is True
    found = of((DECODE, {"cpu": 1.0, "stream": 0.37}))
    assert row(found, "decode bf16 T1, of the stream limit")["met"] is False


def test_either_of_two_goals_meets_both() -> None:
    case = Case("prefill", "GQA 32/8", "float32", 128, 1, 512, 1)
    found = of((case, {"cpu": 1.0, "vllm": 1.1, "matmul": 0.9}))
    told = [row(found, f"prefill fp32, {what}") for what in ("x vLLM", "of the matmul rate")]
    assert [one["met"] for one in told] == [True, True]
    assert [one["met_by_other"] for one in told] == [True, False]
    found = of((case, {"cpu": 1.0, "vllm": 1.1, "matmul": 0.5}))
    assert [row(found, f"prefill fp32, {what}")["met"] for what in ("x vLLM", "of the matmul rate")] == [False, False]


def test_float16_within_one_and_a_half_of_bfloat16() -> None:
    half = Case("prefill", "GQA 32/8", "float16", 128, 1, 512, 1)
    whole = dataclasses.replace(half, dtype="bfloat16", flex=True)
    assert row(of((half, {"cpu": 1.49}), (whole, {"cpu": 1.0})), "prefill fp16, bf16's time over it")["met"] is True
    assert row(of((half, {"cpu": 1.51}), (whole, {"cpu": 1.0})), "prefill fp16, bf16's time over it")["met"] is False
    assert row(of((half, {"cpu": 1.51})), "prefill fp16, bf16's time over it")["met"] is None


def test_two_threads_are_compared_by_wall_time() -> None:
    one = Case("decode", "GQA 32/8", "bfloat16", 128, 1, 32768, 1)
    two = dataclasses.replace(one, threads=2)
    found = of((one, {"cpu": 1.0}), (two, {"cpu": 1.0}))
    found[one.key]["contenders"]["cpu"]["wall_s"] = 3.0
    for name in ("median_s", "wall_s"):
        found[two.key]["contenders"]["cpu"][name] = 1.5
    told = row(found, "decode 1x32768, 2 threads x 1")
    assert (told["reached"], told["met"], told["cells"]) == (pytest.approx(2.0), True, 1)


def test_figures_are_cpu_time_on_one_thread_and_wall_time_on_two() -> None:
    passes = [[Sample(3.0, 1.0)], [Sample(5.0, 1.0)], [Sample(4.0, 1.2)]]
    assert measure.figures(passes, 1) == {"median_s": 1.0, "low_s": 1.0, "high_s": 1.2, "wall_s": 4.0, "samples": 3}
    assert measure.figures(passes, 2) == {"median_s": 4.0, "low_s": 3.0, "high_s": 5.0, "wall_s": 4.0, "samples": 3}


# -- the report and the command --


ABOUT = {"platform": CPU.to_dict(), "amx": True, "cpu_isa": "x86_64_v4_amx", "cpus": 2,
         "versions": {"torch": "2.13.0"}, "date": "2026-01-01"}


def test_the_tables_fit_a_terminal_and_say_everything() -> None:
    every = {case.key: cell(case, **{"cpu": 1e-3, "torch": 0.0541, "copy": 1e-4, **dict.fromkeys(case.peers, 0.0123)})
             for case in sweep.quick()}
    every[DECODE.key]["contenders"]["sglang"] = {"kind": "peer", "status": "wrong", "reason": "error 5.36"}
    skipped = dataclasses.replace(DECODE, batch=64, seqlen=32768)
    every[skipped.key] = {"case": dataclasses.asdict(skipped), "skipped": "needs about 60.0 GiB (limit: 6.0 GiB)"}
    told = report.text({"format": 1, "about": ABOUT, "cells": every})
    assert max(map(len, told.splitlines())) <= 100
    for words in ("cpu:x86_64_v3, AMX", "load  0.5 to 0.7", "1x1024 ", "WRONG", f"error 5.36 [{DECODE.key[:20]}",
                  "1 cells do not fit", "goal (of cpu)", "reached (spread)", "decode T1", "stream, matmul, copy"):
        assert words in told, words
    for goal in goals.GOALS:
        assert goal.text in told


def test_torch_is_judged_where_cpu_was_not_timed() -> None:
    found = of((DECODE, {"torch": 2.0, "vllm": 1.0}))
    found[DECODE.key]["contenders"]["cpu"] = {"kind": "backend", "status": "refused", "reason": "not built"}
    told = report.text({"format": 1, "about": ABOUT, "cells": found})
    assert "goal (of torch)" in told
    assert "cpu:  refused: not built" in told
    assert "NOT MEASURED" in told


def test_a_cell_end_to_end_and_a_run_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "COLD_BYTES", 1 << 20)
    file = tmp_path / "report.json"
    before = torch.get_num_threads()
    match = ["--match", "decode 1x128 GQA 32/8 float32 page 16", "--seconds", "0.1", "--json", str(file)]
    try:
        assert benchmark.main([*match, "--threads", "1"]) == 0
        assert "1 of 1" in capsys.readouterr().err
        assert benchmark.main([*match, "--resume"]) == 0
    finally:
        torch.set_num_threads(before)
    seen = capsys.readouterr()
    assert "1 cells to measure, 1 are in the report" in seen.err
    told = json.loads(file.read_text())
    assert {told["cells"][key]["case"]["threads"] for key in told["cells"]} == {1, 2}
    results = told["cells"]["decode 1x128 GQA 32/8 float32 page 16 threads 1"]["contenders"]
    for name, kind in (("torch", "backend"), ("naive", "peer"), ("sdpa", "peer"), ("stream", "limit")):
        assert (results[name]["status"], results[name]["kind"]) == ("timed", kind)
    assert results["torch"]["error"] <= results["torch"]["bound"]
    assert results["sglang"]["status"] == "refused"
    assert told["goals"][0]["goal"] == goals.GOALS[0].text
    assert benchmark.main(["--show", str(file)]) == 0
    assert capsys.readouterr().out == seen.out


def test_a_wrong_backend_is_an_error_and_a_wrong_peer_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kind, code in (("sglang", "peer", 0), ("torch", "backend", 1)):
        wrong = {"kind": kind, "status": "wrong", "reason": "error 5.36"}
        monkeypatch.setattr(measure, "measure", lambda case, *a, one=(name, wrong): {
            **cell(case, copy=1.0), "contenders": dict([one])})
        assert benchmark.main(["--match", DECODE.key]) == code
        assert f"{name}:  wrong: error 5.36" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "said"), [
    (["--only", "training"], "'training' is not known (known: decode, prefill, extend, mla, write)"),
    (["--match", "no such cell"], "no cell is left"),
    (["--resume"], "--resume needs --json"),
    (["--minutes", "0"], "must be a number > 0, got '0'"),
    (["--show", "missing.json"], "no report of this benchmark")])
def test_wrong_arguments(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_report_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    file.write_text("{}")
    with pytest.raises(SystemExit):
        benchmark.main(["--json", str(file)])
    assert "is there already: say --resume" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--json", str(file), "--resume"])
    assert "no report of this benchmark: KeyError: 'format'" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--quick", "--only", "mla", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mla 4x1024 MLA 16 bfloat16 page 128 threads 1", "mla 1x4096 MLA 128 bfloat16 page 128 threads 1"]


# -- benchmarks/generate.py --


def turns(rates: tuple[float, ...], share: float) -> list[generate.Turn]:
    return [generate.Turn(1.0, rate, share) for rate in rates]


def test_the_ratio_of_a_cell_and_its_spread() -> None:
    told = generate.summary(generate.Cell(8, 100, {"hal": turns((20.0, 24.0, 22.0), 0.1),
                                                   "sdpa": turns((20.0, 20.0, 10.0), 0.2)}))
    assert (told["ratio"], told["low"], told["high"]) == (pytest.approx(1.1), 1.0, pytest.approx(2.2))
    assert told["hal"]["share"] == 0.1
    assert told["at_most"] == pytest.approx(1.25)


def test_the_goal_of_generation() -> None:
    def one(n: int, context: int, ratio: float, high: float) -> dict[str, Any]:
        return {"sequences": n, "context": context, "ratio": ratio, "low": ratio, "high": high, "at_most": 2.0}

    whole = [one(n, context, 1.2, 1.3) for n in generate.SEQUENCES for context in generate.CONTEXTS]
    told = generate.judge(whole)
    assert (told["geomean"], told["geomean_met"], told["worst_met"], told["whole"]) == (
        pytest.approx(1.2), True, True, True)
    noisy = generate.judge([*whole[1:], one(1, 100, 0.96, 0.98)])
    assert (noisy["worst"], noisy["worst_cell"], noisy["worst_met"]) == (0.96, "1 x 100", True)
    assert generate.judge([*whole[1:], one(1, 100, 0.95, 0.96)])["worst_met"] is False
    low = generate.judge([one(1, 100, 1.05, 1.2)])
    assert (low["geomean_met"], low["whole"]) == (False, False)


def test_reports_of_generation_shown_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def report_of(n: int, context: int, **changes: Any) -> Path:
        cell = generate.summary(generate.Cell(n, context, {"hal": turns((24.0,), 0.1), "sdpa": turns((20.0,), 0.2)}))
        file = tmp_path / f"{n}-{context}-{len(changes)}.json"
        file.write_text(json.dumps({**dict.fromkeys(generate.SAME, "same"), "cells": [cell], "load": [1.0, 2.0],
                                    "date": "2026-01-01T00:00", "goal": {}, **changes}))
        return file

    files = [report_of(n, context) for n in generate.SEQUENCES for context in generate.CONTEXTS]
    assert generate.main(["--show", *map(str, files)]) == 0
    out = capsys.readouterr().out
    assert "1.20 (at most 1.25)  yes\n" in out
    assert max(map(len, out.splitlines())) <= 100
    with pytest.raises(ValueError, match="threads differs: same, 2"):
        generate.joined([files[0], report_of(8, 2000, threads=2)])
    with pytest.raises(ValueError, match="a cell stands in two reports"):
        generate.joined([files[0], files[0]])


@pytest.mark.model
def test_tokens_a_second_end_to_end(default_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    file = tmp_path / "report.json"
    with contextlib.ExitStack() as undo:
        for name in generate.NAMES:
            if name in ALL_ATTENTION_FUNCTIONS:
                undo.callback(ALL_ATTENTION_FUNCTIONS.__setitem__, name, ALL_ATTENTION_FUNCTIONS[name])
            else:
                from hal.integrations import transformers_attention

                undo.callback(ALL_ATTENTION_FUNCTIONS.__setitem__, name, transformers_attention.attention)
        assert generate.main(["--backend", "torch", "--sequences", "2", "--context", "9", "--new-tokens", "3",
                              "--rounds", "2", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "backend  hal: torch" in out
    assert "the goal is about all six" in " ".join(out.split())
    told = json.loads(file.read_text())
    assert told["backend"] == "torch"
    (only,) = told["cells"]
    for name in generate.NAMES:
        assert only[name]["rate"] > 0
        assert 0 < only[name]["share"] < 1
