"""The `hal` command and the arguments HAL adds to a server: what they print, what they refuse, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hal
from hal import registry
from hal.__main__ import main
from hal.cli_args import AttentionArgs
from hal.config import AttentionConfig, LayerKind
from hal.decision import Candidate, Decision, PhaseDecision
from hal.selection import Choice

ROOT = Path(__file__).parents[1]
BUILT_IN = {"flash_attn_3", "flash_attn_2", "aiter", "ascend", "mate", "torch"}
KINDS = [
    LayerKind("full", (0, 2), AttentionConfig()),
    LayerKind("sliding", (1,), AttentionConfig(sliding_window=128)),
]
# A model with two kinds of layer, by the keys its config.json publishes.
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 24,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HAL_")]:
        monkeypatch.delenv(name)


def report(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def parse(*argv: str) -> AttentionArgs:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    hal.add_cli_args(parser)
    return hal.from_cli_args(parser.parse_args(argv))


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    return str(tmp_path)


# -- devices and backends --


def test_devices_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = report(capsys, "devices")
    assert set(told) == {"selected", "platforms"}
    assert [row["kind"] for row in told["platforms"]][-5:] == ["musa", "npu", "rocm", "cuda", "cpu"]
    for row in told["platforms"]:
        assert set(row) == {"kind", "found", "reason", "devices"}
        assert row["found"] is bool(row["devices"])
        assert row["reason"]
    first = next(row["devices"][0] for row in told["platforms"] if row["found"])
    assert told["selected"] == first
    assert set(first) == {"kind", "arch", "torch_device", "index", "name"}


def test_devices_follows_hal_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAL_DEVICE", "cpu")
    assert report(capsys, "devices")["selected"]["kind"] == "cpu"
    assert main(["devices"]) == 0
    assert "selected: cpu (cpu:" in capsys.readouterr().out


def test_backends_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in report(capsys, "backends")}
    assert set(rows) >= BUILT_IN
    levels = ["declared", "contract", "emulated", "compiled", "hardware"]
    for row in rows.values():
        assert set(row) >= {"name", "aliases", "package", "levels", "level", "evidence", "features"}
        assert row["level"] == max(row["levels"].values(), key=levels.index)
        assert isinstance(row["evidence"], list)
        assert set(row["features"].values()) <= {True, False}
    assert "fa3" in rows["flash_attn_3"]["aliases"]
    assert "fa3" in rows["mate"]["aliases"]
    assert set(rows["flash_attn_3"]["levels"]) == {"cuda:sm90"}
    assert {"cuda:sm75", "rocm:gfx1201", "npu:ascend910a", "musa:mp22", "cpu:aarch64"} <= set(
        rows["torch"]["levels"]
    )
    assert rows["torch"]["package"] is None
    assert rows["torch"]["features"]["sinks"] is True
    assert rows["ascend"]["features"]["softcap"] is False
    assert rows["mate"]["package"] == "mate"


def test_backends_of_one_platform(capsys: pytest.CaptureFixture[str]) -> None:
    names = {row["name"] for row in report(capsys, "backends", "--platform", "npu")}
    assert {"ascend", "torch"} <= names
    assert not names & {"flash_attn_3", "mate", "aiter"}


def names_of(capsys: pytest.CaptureFixture[str], *argv: str) -> set[str]:
    return {row["name"] for row in report(capsys, "backends", *argv)}


def test_backends_by_arch_feature_level_package_and_kind_of_model(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in report(capsys, "backends")}
    backends = {name: registry.get(name) for name in rows}
    assert names_of(capsys, "--platform", "cuda:sm75") == {
        name for name, row in rows.items() if "cuda:sm75" in row["levels"]
    }
    assert "flash_attn_3" not in names_of(capsys, "--platform", "cuda:sm75")
    assert names_of(capsys, "--feature", "sinks", "--feature", "softcap") == {
        name for name, row in rows.items() if row["features"]["sinks"] and row["features"]["softcap"]
    }
    assert names_of(capsys, "--level", "declared") == set(rows)
    levels = ["declared", "contract", "emulated", "compiled", "hardware"]
    for level in levels:
        assert names_of(capsys, "--level", level, "--platform", "cuda:sm90") == {
            name
            for name, row in rows.items()
            if levels.index(row["levels"].get("cuda:sm90", "declared")) >= levels.index(level)
            and "cuda:sm90" in row["levels"]
        }
    for spelling in ("flash-attn", "Flash_Attn"):
        found = names_of(capsys, "--package", spelling)
        assert "flash_attn_2" in found
        assert found == {
            name for name, b in backends.items() if "flash-attn" in [p.distribution for p in b.packages]
        }
    mla, dense = names_of(capsys, "--mla"), names_of(capsys, "--dense")
    assert mla == {name for name, b in backends.items() if "mla" in b.features or b.mla_prefill}
    assert dense == {name for name, b in backends.items() if "mla" not in b.requires}
    assert mla | dense == set(rows)
    assert {"torch"} <= mla & dense
    assert names_of(capsys, "--platform", "npu", "--mla", "--feature", "sinks") == {
        name
        for name in mla
        if "npu" in rows[name]["platforms"] and rows[name]["features"]["sinks"]
    }


def test_backends_level_is_that_of_the_platform_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.backend.REACHED", {"flash_attn_2": {"cuda:sm80": ("contract", "two releases")}})
    monkeypatch.setattr(registry.get("torch"), "levels", {"cpu": "emulated", "cuda:sm90": "hardware"})
    assert names_of(capsys, "--level", "contract", "--platform", "cuda:sm80") == {"flash_attn_2"}
    assert "torch" in names_of(capsys, "--level", "hardware")
    assert "torch" in names_of(capsys, "--level", "compiled", "--platform", "cuda")
    assert "torch" in names_of(capsys, "--level", "emulated", "--platform", "cpu")
    assert "torch" not in names_of(capsys, "--level", "compiled", "--platform", "cpu")


def test_backends_say_whether_an_adapter_exists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.backend.REACHED", {})
    monkeypatch.setattr(registry.get("mate"), "adapter", False)
    rows = {row["name"]: row for row in report(capsys, "backends")}
    assert (rows["mate"]["adapter"], rows["torch"]["adapter"]) == (False, True)
    assert main(["backends", "--package", "mate"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^mate +declared +adapter not written yet; musa", text, re.M), text
    assert main(["backends", "--package", "flash-attn"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^flash_attn_2 +declared +cuda", text, re.M), text


def test_no_backend_passes_the_filters(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["backends", "--package", "flash-attn", "--platform", "npu"]
    assert report(capsys, *argv) == []
    assert main(argv) == 0
    assert capsys.readouterr().out == (
        f"0 of {len(registry.names())} backends: none passes all of these filters\n"
    )


# -- explain --


@pytest.mark.parametrize(
    ("device", "chosen"),
    [
        ("musa:mp31", "mate"),
        ("npu:ascend910b", "ascend"),
        ("cuda:sm90", "flash_attn_3"),
        ("rocm:gfx942", "aiter"),
    ],
)
def test_explain_chooses_the_vendors_backend(
    device: str, chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(capsys, "explain", "--device", device)
    platform = told["platform"]
    assert f"{platform['kind']}:{platform['arch']}" == device
    assert isinstance(told["page_size"], int)
    (kind,) = told["kinds"]
    assert kind["kind"] == "all"
    assert kind["layers"] == []
    assert kind["config"]["head_dim"] == 128
    for phase in ("prefill", "decode"):
        answer = kind[phase]
        assert answer["chosen"] == chosen
        assert "." in answer["target"]
        candidates = {c["backend"]: c for c in answer["candidates"]}
        assert set(candidates) >= BUILT_IN
        assert answer["candidates"][0]["backend"] == chosen
        for name, candidate in candidates.items():
            assert set(candidate) == {"backend", "accepted", "reasons", "level"}
            assert candidate["accepted"] is (not candidate["reasons"])
            # torch runs everywhere.
            assert candidate["accepted"] or name not in (chosen, "torch"), candidate
            if not candidate["accepted"]:  # a cache's layout is compared with the decode backend's
                assert any(
                    f"({name}: " in reason or reason.startswith("kv_layout ")
                    for reason in candidate["reasons"]
                ), "a reason has both sides"


@pytest.mark.parametrize(
    "device", ["musa:mp31", "npu:ascend910b", "cuda:sm90", "rocm:gfx942", "cuda:sm75", "auto"]
)
@pytest.mark.parametrize(
    "argv", [("explain",), ("explain", "--config", '{"head_dim": 80, "sliding_window": 4096}')]
)
def test_tables_fit_100_columns(
    argv: tuple[str, ...], device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--device", device]) in (0, 1)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100, text


@pytest.mark.parametrize(
    "argv",
    [
        ("devices",),
        ("backends",),
        ("--help",),
        ("devices", "--help"),
        ("backends", "--help"),
        ("explain", "--help"),
        ("generate", "--help"),
    ],
)
def test_other_tables_and_help_fit_100_columns(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(argv)) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100, text
    assert "--help" not in argv or "examples:\n  hal " in text


def test_explain_a_model_shows_its_kinds_of_layer(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["explain", "--device", "cpu:x86_64_v4", "--model", model, "--tensor-parallel-size", "2"]
    told = report(capsys, *argv)
    rows = {row["kind"]: row for row in told["kinds"]}
    assert set(rows) == {"full", "sliding"}
    assert rows["sliding"]["layers"] == list(range(0, 24, 2))
    assert rows["sliding"]["config"]["sliding_window"] == 128
    assert rows["full"]["config"]["num_heads"] == 32
    assert rows["full"]["config"]["num_kv_heads"] == 4
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "[full] (12 layers)" in text
    assert "[sliding] (12 layers)" in text
    assert "sliding_window=128" in text
    assert "dtype=bfloat16" not in text, "defaults are not repeated"
    assert max(map(len, text.splitlines())) <= 100, text


def test_explain_config_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "layer.json").write_text('{"head_dim": 80, "num_heads": 16}')
    told = report(capsys, "explain", "--device", "cpu:aarch64", "--config", f"@{tmp_path}/layer.json")
    assert told["kinds"][0]["config"]["head_dim"] == 80


def test_explain_override_for_one_kind(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = report(
        capsys,
        "explain",
        "--device",
        "cpu:x86_64_v4",
        "--model",
        model,
        "--attention-backend",
        "mate",
        "--attention-config",
        "sliding.backend=torch",
        code=1,
    )
    rows = {row["kind"]: row for row in told["kinds"]}
    assert rows["full"]["decode"]["chosen"] is None
    assert rows["full"]["decode"]["candidates"][0]["reasons"] == [
        "platform cpu is not supported (mate: musa)"
    ]
    assert rows["sliding"]["decode"]["chosen"] == "torch"


def test_explain_says_no_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--device", "cpu:aarch64", "--attention-backend", "flash_attn_3"]) == 1
    assert "platform cpu is not supported (flash_attn_3: cuda)" in " ".join(capsys.readouterr().out.split())


def test_explain_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        report(capsys, "explain", "--device", "cuda:sm80")["kinds"][0]["decode"]["chosen"] == "flash_attn_2"
    )
    told = report(capsys, "explain", "--device", "cuda:sm80", "--packages", "flash-attn-3")["kinds"][0][
        "decode"
    ]
    assert told["chosen"] == "flex_attention"  # it comes with torch, and stands before the floor
    reasons = {c["backend"]: c["reasons"] for c in told["candidates"]}
    assert "package flash-attn is not among --packages (flash-attn-3)" in reasons["flash_attn_2"]


def test_explain_page_size_and_kv_cache_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    told = report(capsys, "explain", "--device", "cuda:sm90", "--page-size", "32", "--kv-cache-dtype", "fp8")
    assert told["page_size"] == 32
    assert told["kinds"][0]["config"]["kv_cache_dtype"] == "fp8_e4m3"
    assert told["kinds"][0]["q_dtype"] == "fp8_e4m3"


Row = tuple[str, int, str]


def rows_of(text: str) -> list[Row]:
    """(mark, rank, backend) of every row of the tables of `hal explain`."""
    found = re.findall(r"^  (chosen|accepted|no) +([0-9]+) +(\S+)", text, re.M)
    return [(mark, int(rank), backend) for mark, rank, backend in found]


def expected_rows(chosen: str | None, *phases: Any) -> list[Row]:
    """The rows that one table of these phases must have: chosen, accepted in any of them, refused."""
    order = ["chosen", "accepted", "no"]
    rows = []
    for rank, seen in enumerate(zip(*(phase["candidates"] for phase in phases)), 1):
        name = seen[0]["backend"]
        accepted = any(candidate["accepted"] for candidate in seen)
        rows.append(("chosen" if name == chosen else "accepted" if accepted else "no", rank, name))
    return sorted(rows, key=lambda row: order.index(row[0]))


@pytest.mark.parametrize(
    "device", ["cuda:sm80", "cuda:sm90", "cuda:sm100", "rocm:gfx942", "npu:ascend910b", "musa:mp31"]
)
@pytest.mark.parametrize("config", ["{}", '{"sliding_window": 8, "page_size": 16}', '{"mla": true}'])
def test_explain_shows_this_platform_and_names_the_others(
    device: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["explain", "--device", device, "--config", config]
    (told,) = report(capsys, *argv)["kinds"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert main([*argv, "--all"]) == 0
    everything = capsys.readouterr().out
    kind = device.partition(":")[0]
    others = [name for name in registry.names() if kind not in registry.get(name).platforms]
    assert others
    (line,) = re.findall(r"other platforms: (.*?) \(--all shows them\)", " ".join(text.split()))
    assert sorted(line.split(", ")) == sorted(others)
    assert "--all" not in everything
    assert max(map(len, everything.splitlines())) <= 100
    prefill, decode, chosen = told["prefill"], told["decode"], told["decode"]["chosen"]
    names = [[c["backend"] for c in phase["candidates"]] for phase in (prefill, decode)]
    if prefill["chosen"] == chosen and names[0] == names[1]:
        shown = expected_rows(chosen, prefill, decode)
    else:
        shown = expected_rows(prefill["chosen"], prefill) + expected_rows(chosen, decode)
    assert rows_of(text) == [row for row in shown if row[2] not in others]
    if prefill["candidates"] == decode["candidates"]:
        assert rows_of(everything) == expected_rows(chosen, decode)
    else:
        assert rows_of(everything) == expected_rows(prefill["chosen"], prefill) + expected_rows(chosen, decode)
    flat = " ".join(everything.split())
    for candidate in (*prefill["candidates"], *decode["candidates"]):
        assert all(reason in flat for reason in candidate["reasons"]), "nothing is shortened with --all"


def _decision(prefill: list[list[str]], decode: list[list[str]], asked: str = "auto") -> Decision:
    """Candidates a, b, ... with these reasons; the first one without is chosen. Those from "elsewhere" say so."""

    def phase(name: str, rows: list[list[str]]) -> PhaseDecision:
        candidates = tuple(
            Candidate("abcdef"[i], tuple(reasons), "contract", "elsewhere" in reasons)
            for i, reasons in enumerate(rows)
        )
        chosen = next((c.backend for c in candidates if c.accepted), None)
        return PhaseDecision(name, chosen, f"vendor.{name}" if chosen else None, candidates, asked)

    platform = hal.Platform.parse("cuda:sm90")
    return Decision(
        platform, AttentionConfig(mla=True), phase("prefill", prefill), phase("decode", decode), 16, "bfloat16", None
    )


def test_one_table_for_both_phases() -> None:
    mla = str(AttentionConfig(mla=True).mla)
    e = [f"mla {mla} is not supported (e: u + v)"]
    decision = _decision(
        [["x 1 (a: 2)"], [], ["p (c: q)", "both (c: r)"], [], e, ["elsewhere"]],
        [["x 1 (a: 2)"], [], ["both (c: r)", "d (c: q)"], ["y", "z"], e, ["elsewhere"]],
    )
    assert str(decision) == "\n".join(
        [
            "prefill and decode: b  (vendor.prefill / vendor.decode)",
            "            rank  backend  level, or why not",
            "  chosen    2     b        contract",
            "  accepted  4     d        contract, prefill only +2",
            "  no        1     a        x 1 (2)",
            "  no        3     c        both (r) +2",
            "  no        5     e        mla is not supported (u + v)",
            "  other platforms:  f (--all shows them)",
            "  +N: as many more reasons (--all shows them)",
        ]
    )
    everything = decision.text(show_all=True).splitlines()
    assert everything[:2] == [
        "prefill: b  (vendor.prefill)",
        "            rank  backend  level     reasons",
    ]
    assert "  no        3     c        contract  p (c: q); both (c: r)" in everything
    assert "  no      4     d        contract  y; z" in everything
    assert "  no        6     f        contract  elsewhere" in everything
    assert not any("--all" in line for line in everything)
    short = _decision([["a + b (a: c)"], []], [["a + b (a: c)"], []])
    assert "--all" not in str(short), "nothing is left out"


def test_a_table_for_each_phase_where_the_answers_differ() -> None:
    text = str(_decision([[], ["y"]], [["z"], []]))
    assert text.splitlines() == [
        "prefill: a  (vendor.prefill)",
        "          rank  backend  level, or why not",
        "  chosen  1     a        contract",
        "  no      2     b        y",
        "decode: b  (vendor.decode)",
        "          rank  backend  level, or why not",
        "  chosen  2     b        contract",
        "  no      1     a        z",
    ]


def test_a_table_for_each_phase_where_the_candidates_differ() -> None:
    text = str(_decision([[], ["y"]], [[], ["y"], ["z"]]))
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        "prefill: a  (vendor.prefill)",
        "decode: a  (vendor.decode)",
    ]
    assert "  no      3     c        z" in text


def test_a_choice_by_name_is_shown_in_full() -> None:
    text = str(_decision([["elsewhere", "y"]], [["elsewhere", "y"]], "fa3"))
    assert text.splitlines() == [
        "prefill and decode: no backend can serve this",
        "      rank  backend  level     reasons",
        "  no  1     a        contract  elsewhere; y",
    ]


def test_explain_says_how_many_reasons_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    config = '{"page_size": 17, "dtype": "float32", "sinks": true}'
    argv = ["explain", "--device", "cuda:sm90", "--config", config]
    told = report(capsys, *argv)["kinds"][0]["decode"]
    refused = next(c for c in told["candidates"] if c["backend"] == "flash_attn_2")
    assert len(refused["reasons"]) == 3
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{refused['reasons'][0].replace('(flash_attn_2: ', '(')} +2" in text
    assert refused["reasons"][1].replace("(flash_attn_2: ", "(") not in text
    assert main([*argv, "--attention-backend", "fa2"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "; ".join(refused["reasons"]) in text, "who asked for it by name gets every reason"


def test_explain_by_a_name_of_several_platforms_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--device", "cuda:sm90", "--attention-backend", "fa3"]) == 0
    text = capsys.readouterr().out
    assert "platform cuda is not supported (mate: musa)" in text
    assert "other platforms" not in text


def test_the_error_that_nothing_can_serve_leaves_nothing_out() -> None:
    decision = hal.explain(AttentionConfig(page_size=17, dtype="float32", sinks=True), "cuda:sm90")
    text = " ".join(str(hal.NoBackendError({"all": decision}, "auto")).split())
    assert "--all" not in text
    for phase in (decision.prefill, decision.decode):
        for candidate in phase.candidates:
            assert all(reason in text for reason in candidate.reasons)


def test_explain_mla_names_both_targets(capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("cuda:sm90", "npu:ascend910b", "musa:mp31", "rocm:gfx942"):
        argv = ["explain", "--device", device, "--config", '{"mla": true}']
        (told,) = report(capsys, *argv)["kinds"]
        assert main(argv) == 0
        text = " ".join(capsys.readouterr().out.split())
        for phase in ("prefill", "decode"):
            assert told[phase]["target"] in text
            assert re.search(rf"\b(prefill and decode|{phase}): {told[phase]['chosen']} \(", text)


def test_explain_shows_hints(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["explain", "--device", "cuda:sm80", "--page-size", "16", "--packages", "flash-attn"]
    (told,) = report(capsys, *argv)["kinds"]
    hint = told["hints"][0]
    assert set(hint) == {"setting", "value", "needed", "serves", "text"}
    assert (hint["setting"], hint["value"], hint["needed"]) == ("page_size", 16, 256)
    assert hint["serves"] == {"prefill": "flash_attn_2", "decode": "flash_attn_2"}
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"hint: {hint['text']}" in text


# -- the command itself --


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hal {hal.__version__}\n"


def test_module_runs_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hal", "devices", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "selected" in json.loads(done.stdout)


def test_reader_that_goes_away_is_no_error() -> None:
    # More output than a pipe holds, and nobody reads it.
    code = (
        "import sys, hal.commands.devices as d\nfrom hal.__main__ import main\n"
        "d.run = lambda args: print('x' * 1_000_000) or 0\nsys.exit(main(['devices']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(30) == 141


def test_verbose_logs_and_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["-v", "explain", "--device", "tpu"], ["explain", "-v", "--device", "tpu"]):
        assert main(argv) == 2
        assert "Traceback" in capsys.readouterr().err
    assert main(["explain", "--device", "tpu"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_subcommand_imports_no_other() -> None:
    code = (
        "import sys\nfrom hal.__main__ import main\nassert main(['devices', '--json']) == 0\n"
        "assert 'hal.commands.devices' in sys.modules\n"
        "assert not {'hal.commands.generate', 'hal.commands.explain'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Command line -> what one line on stderr must say: the argument, the value, what was expected. Exit code 2.
BAD_COMMANDS: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: COMMAND"),
    (["frobnicate"], "invalid choice: 'frobnicate'"),
    (["devices", "--jsn"], "unrecognized arguments: --jsn"),
    (["devices", "--js"], "unrecognized arguments: --js"),
    (["devices", "cuda"], "unrecognized arguments: cuda"),
    (["backends", "--platform", "tpu"], "--platform 'tpu' is not known (known: cpu, cuda, musa, npu, rocm)"),
    (["backends", "--platform"], "argument --platform: expected one argument"),
    (["backends", "--platform", "cuda:sm70"], "--platform 'cuda:sm70': 'sm70' is no arch of cuda (archs: sm75,"),
    (["backends", "--platform", "npu:"], "--platform 'npu:': '' is no arch of npu (archs: ascend910a,"),
    (["backends", "--feature", "sink"], "--feature 'sink' is not known (known: sliding_window, attention_chunk,"),
    (["backends", "--level", "tested"], "--level 'tested' is not known (known: declared, contract, emulated,"),
    (["backends", "--package", "fa"], "--package 'fa' is not known (known: flash-attn-3, sglang-kernel,"),
    (["backends", "--mla", "--dense"], "argument --dense: not allowed with argument --mla"),
    (
        ["backends", "--platform", "npu", "--platform", "cuda"],
        "argument --platform: given twice, as 'npu' and 'cuda': give one of them",
    ),
    (
        ["explain", "--device", "tpu"],
        "--device: device 'tpu' is not known (known: auto, cpu, cuda, musa, npu, rocm",
    ),
    (
        ["explain", "--device", "cuda:sm70"],
        "--device: device 'cuda:sm70': 'sm70' is no arch of cuda (archs: sm75,",
    ),
    (["explain", "--device", ""], "--device: device '' is not known"),
    (["explain", "--device", "npu:7"], "device 'npu:7' is not on this machine: no /dev/davinci*"),
    (
        ["explain", "--attention-backend", "fa9"],
        "--attention-backend fa9: attention backend 'fa9' is not known, did you mean",
    ),
    (["explain", "--attention-backend", "nothing-like-it"], "(backends: flash_attn_3, flash_attn_2,"),
    (
        ["explain", "--prefill-attention-backend", "x"],
        "--prefill-attention-backend x: attention backend 'x' is not known",
    ),
    (
        ["explain", "--decode-attention-backend", "x"],
        "--decode-attention-backend x: attention backend 'x' is not known",
    ),
    (["explain", "--page-size", "x"], "--page-size x: page_size must be a whole number >= 1, got 'x'"),
    (["explain", "--page-size", "0"], "--page-size 0: page_size must be a whole number >= 1, got '0'"),
    (
        ["explain", "--page-size", "16.0"],
        "--page-size 16.0: page_size must be a whole number >= 1, got '16.0'",
    ),
    (["explain", "--page-size=-1"], "--page-size -1: page_size must be a whole number >= 1, got '-1'"),
    (
        ["explain", "--page-size", "16", "--page-size", "32"],
        "argument --page-size: given twice, as '16' and '32'",
    ),
    (
        ["explain", "--kv-cache-dtype", "int4"],
        "--kv-cache-dtype int4: kv_cache_dtype 'int4' is not known (known: auto, float16, bfloat16,",
    ),
    (["explain", "--kv-cache-dtype", "fp8_ds_mla"], "kv_cache_dtype 'fp8_ds_mla' is a layout of MLA caches"),
    (["explain", "--config", "{"], "--config { is not valid JSON: Expecting property name"),
    (
        ["explain", "--config", "[1]"],
        "--config [1]: expected a JSON object of AttentionConfig's fields, got [1]",
    ),
    (
        ["explain", "--config", '{"head_dims": 80}'],
        "unknown field head_dims in attention config (fields: num_heads,",
    ),
    (["explain", "--config", '{"head_dim": "80"}'], "head_dim must be a whole number >= 1, got '80'"),
    (
        ["explain", "--config", '{"dtype": "int8"}'],
        "dtype 'int8' is not known (known: float16, bfloat16, float32)",
    ),
    (
        ["explain", "--config", '{"num_heads": 6, "num_kv_heads": 4}'],
        "num_heads must be a multiple of num_kv_heads, got 6 and 4",
    ),
    (["explain", "--config", '{"causal": 1}'], "causal must be True or False, got 1"),
    (["explain", "--config", "@no/such/file.json"], "--config @no/such/file.json: can't be read:"),
    (["explain", "--model", "no/such/folder"], "--model 'no/such/folder' is no folder"),
    (["explain", "--model", "x", "--config", "{}"], "argument --config: not allowed with argument --model"),
    (
        ["explain", "--tensor-parallel-size", "2"],
        "--tensor-parallel-size 2 divides the heads of --model, which is not given",
    ),
    (
        ["explain", "--tensor-parallel-size", "two", "--model", "x"],
        "--tensor-parallel-size must be a whole number >= 1, got 'two'",
    ),
    (
        ["explain", "--tensor-parallel-size", "0", "--model", "x"],
        "--tensor-parallel-size must be a whole number >= 1, got '0'",
    ),
    (
        ["explain", "--attention-config", "sliding.backend=torch"],
        "--attention-config names the layer kind 'sliding', which this model does not have (kinds: all)",
    ),
]


@pytest.mark.parametrize(
    ("argv", "expected"), BAD_COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_command_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hal: error: ")
    assert expected in err
    assert err.count("\n") == 1, "one line, no traceback"


# -- the arguments HAL adds to a server --


def test_no_arguments_mean_auto() -> None:
    assert parse() == AttentionArgs("auto", None, None, Choice("auto", None, None), {})


def test_every_argument_by_flag_by_key_and_by_json() -> None:
    wanted = AttentionArgs("cuda:1", 64, "fp8_e4m3", Choice("fa3", "flash_attn_3", "mate"), {})
    assert (
        parse(
            "--device",
            "cuda:1",
            "--page-size",
            "64",
            "--kv-cache-dtype",
            "fp8",
            "--attention-backend",
            "fa3",
            "--prefill-attention-backend",
            "flash_attn_3",
            "--decode-attention-backend",
            "mate",
        )
        == wanted
    )
    keys = [
        f"--attention-config={setting}"
        for setting in (
            "page_size=64",
            "kv_cache_dtype=fp8",
            "backend=fa3",
            "prefill_backend=flash_attn_3",
            "decode_backend=mate",
        )
    ]
    assert parse("--device", "cuda:1", *keys) == wanted
    settings = {
        "page_size": 64,
        "kv_cache_dtype": "fp8",
        "backend": "fa3",
        "prefill_backend": "flash_attn_3",
        "decode_backend": "mate",
    }
    assert parse("--device", "cuda:1", "--attention-config", json.dumps(settings)) == wanted


@pytest.mark.parametrize(
    "config",
    ["sliding.backend=torch", "kinds.sliding.backend=torch", '{"kinds": {"sliding": {"backend": "torch"}}}'],
)
def test_override_for_a_kind(config: str) -> None:
    args = parse("--attention-backend", "mate", "--attention-config", config)
    assert args.choice("full") == Choice("mate")
    assert args.choice("sliding") == Choice("torch")


def test_backend_of_a_kind_replaces_both_global_phases_and_a_phase_of_a_kind_one() -> None:
    args = parse(
        "--attention-backend",
        "fa2",
        "--prefill-attention-backend",
        "fa3",
        "--attention-config",
        "sliding.backend=torch",
        "--attention-config",
        "full.decode_backend=mate",
    )
    assert args.choice("sliding") == Choice("torch", None, None)
    assert args.choice("full") == Choice("fa2", "fa3", "mate")


def test_apply() -> None:
    args = parse(
        "--page-size", "32", "--kv-cache-dtype", "fp8_e5m2", "--attention-config", "full.kv_cache_dtype=auto"
    )
    full, sliding = args.apply(KINDS)
    assert (full.config.page_size, sliding.config.page_size) == (32, 32)
    assert (full.config.kv_cache_dtype, sliding.config.kv_cache_dtype) == ("auto", "fp8_e5m2")
    assert (full.layers, sliding.layers) == ((0, 2), (1,))
    assert sliding.config.sliding_window == 128
    assert parse().apply(KINDS) == KINDS


def test_explain_and_get_attention_impls() -> None:
    args = parse("--device", "cpu", "--attention-config", "sliding.backend=torch", "--page-size", "32")
    decisions = args.explain(KINDS)
    first = "torch" if registry.get("cpu").not_built() else "cpu"
    assert {kind: d.chosen for kind, d in decisions.items()} == {"full": first, "sliding": "torch"}
    assert len(decisions["sliding"].candidates) == 1, "an explicit choice leaves one candidate"
    impls = args.get_attention_impls(KINDS)
    assert set(impls) == {"full", "sliding"}
    assert impls["full"].decision.page_size == 32


BAD_ARGUMENTS: list[tuple[list[str], str]] = [
    (["--device", "gpu"], "--device: device 'gpu' is not known (known: auto, cpu, cuda, musa, npu, rocm"),
    (
        ["--device", "rocm:gfx906"],
        "--device: device 'rocm:gfx906': 'gfx906' is no arch of rocm (archs: gfx90a,",
    ),
    (
        ["--attention-config", "backend"],
        "'--attention-config backend' is neither a JSON object nor KEY=VALUE (keys: backend,",
    ),
    (["--attention-config", "[1, 2]"], "is neither a JSON object nor KEY=VALUE"),
    (["--attention-config", "{backend: torch}"], "'--attention-config {backend: torch}' is not valid JSON"),
    (
        ["--attention-config", "backends=torch"],
        "--attention-config backends=torch: unknown key 'backends' (keys: backend,",
    ),
    (["--attention-config", '{"backends": "torch"}'], "unknown key 'backends'"),
    (["--attention-config", '{"kinds": {"sliding": {"window": 3}}}'], "unknown key 'window'"),
    (
        ["--attention-config", "backend=fa9"],
        "--attention-config backend=fa9: attention backend 'fa9' is not known",
    ),
    (["--attention-config", "sliding.backend="], "attention backend '' is not known"),
    (["--attention-config", '{"backend": 3}'], "backend must be a string, got 3"),
    (["--attention-config", '{"backend": null}'], "backend must be a string, got None"),
    (
        ["--attention-config", '{"page_size": "sixteen"}'],
        "page_size must be a whole number >= 1, got 'sixteen'",
    ),
    (["--attention-config", '{"page_size": true}'], "page_size must be a whole number >= 1, got True"),
    (["--attention-config", '{"page_size": 16.5}'], "page_size must be a whole number >= 1, got 16.5"),
    (
        ["--attention-config", "sliding.page_size=16"],
        "page_size can't be set for the kind 'sliding' alone: all kinds share one",
    ),
    (
        ["--attention-config", "kv_cache_dtype=fp7"],
        "kv_cache_dtype 'fp7' is not known (known: auto, float16,",
    ),
    (
        ["--attention-config", '{"kinds": ["sliding"]}'],
        "kinds must be an object of objects, kind -> settings, got",
    ),
    (["--attention-config", '{"kinds": {"sliding": "torch"}}'], "kinds must be an object of objects"),
    (
        ["--attention-config", '{"backend": "torch", "backend": "mate"}'],
        "'backend' stands twice in one JSON object: give one of them",
    ),
    (
        ["--attention-backend", "torch", "--attention-config", "backend=torch"],
        "--attention-backend torch and --attention-config backend=torch both set backend: give one of them",
    ),
    (
        ["--page-size", "16", "--attention-config", '{"page_size": 16}'],
        '--page-size 16 and --attention-config {"page_size": 16} both set page_size: give one of them',
    ),
    (
        ["--attention-config", "backend=torch", "--attention-config", "backend=mate"],
        "--attention-config backend=torch and --attention-config backend=mate both set backend",
    ),
    (
        [
            "--attention-config",
            "sliding.backend=torch",
            "--attention-config",
            '{"kinds": {"sliding": {"backend": "mate"}}}',
        ],
        "both set sliding.backend: give one of them",
    ),
    (
        ["--attention-config", "sliding.backend=torch", "--attention-config", "kinds.sliding.backend=torch"],
        "both set sliding.backend: give one of them",
    ),
]


@pytest.mark.parametrize(
    ("argv", "expected"), BAD_ARGUMENTS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_argument_fails_when_a_server_starts(argv: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(*argv)
    assert expected in str(caught.value)


@pytest.mark.parametrize("config", ["slding.backend=torch", '{"kinds": {"slding": {"backend": "torch"}}}'])
def test_unknown_kind_of_layer(config: str) -> None:
    args = parse("--device", "cpu", "--attention-config", config)
    for use in (args.apply, args.explain, args.get_attention_impls):
        with pytest.raises(
            ValueError,
            match="the layer kind 'slding', which this model does not have "
            r"\(kinds: full, sliding\)",
        ):
            use(KINDS)


def test_argument_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--device", "--attention-backend", "--page-size", "--kv-cache-dtype"):
        with pytest.raises(SystemExit):
            parse(flag, "1", flag, "2")
        assert f"argument {flag}: given twice, as '1' and '2': give one of them" in capsys.readouterr().err


def test_args_of_another_parser() -> None:
    with pytest.raises(
        ValueError, match=r"args has no device: parse them with a parser that hal\.add_cli_args"
    ):
        hal.from_cli_args(argparse.Namespace())


def test_there_are_enough_bad_ones() -> None:
    assert len(BAD_COMMANDS) + len(BAD_ARGUMENTS) >= 30


# ---- two spellings of one thing, and what is not said -----------------------------------------------------------

@pytest.mark.parametrize(("arguments", "message"), [
    (["--config", '{"page_size": 16}', "--page-size", "256"], "page_size stands in --config and in --page-size"),
    (["--config", '{"kv_cache_dtype": "auto"}', "--kv-cache-dtype", "fp8_e4m3"],
     "kv_cache_dtype stands in --config and in --kv-cache-dtype"),
    (["--config", '{"head_dim": 64, "head_dim": 128}'], "'head_dim' stands twice in one JSON object"),
    (["--attention-config", "kinds.backend=torch"], "names no kind of layer before 'backend'"),
    (["--attention-config", ".backend=torch"], "names no kind of layer before 'backend'"),
    (["--packages", "flash-atn"], "packages has 'flash-atn', which no backend uses"),
    (["--packages", "installed,triton"], "packages has 'installed', which no backend uses"),
])
def test_two_spellings_and_unknown_names(arguments: list[str], message: str,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--device", "cuda:sm90", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_defaults_of_a_server_are_no_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    hal.add_cli_args(parser)
    parser.set_defaults(device="auto")
    assert hal.from_cli_args(parser.parse_args(["--device", "cpu"])).device == "cpu"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "cpu", "--device", "cuda"])
    assert "given twice, as 'cpu' and 'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize(("environ", "message"), [
    ({"HAL_CHECK": "2"}, "hal: error: HAL_CHECK='2' is not valid: expected 0 or 1"),
    ({"HAL_PROBE_TIMEOUT": "x"}, "hal: error: HAL_PROBE_TIMEOUT='x' is not valid: expected a number of seconds"),
    ({"HAL_DEVCE": "cpu"}, "environment variable HAL_DEVCE is not read by HAL"),
])
def test_variables_are_checked_by_every_command(environ: dict[str, str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "hal", "backends", "--platform", "cpu"], text=True,
                          capture_output=True, env={**os.environ, **environ}, check=False)
    assert message in done.stderr
    assert done.returncode == (0 if "DEVCE" in message else 2)


def test_output_that_can_not_be_written() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "hal", "devices"], stdout=full, stderr=subprocess.PIPE, text=True,
                              check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("hal: error: [Errno 28]")
    assert len(done.stderr.splitlines()) == 1
