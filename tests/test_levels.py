"""hal/levels.py is what ci/levels.py derives; records count for exactly the code they were made on, and for no more."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hal
from hal import levels, registry
from hal.backend import AttentionBackend
from hal.backends import BACKENDS
from hal.backends.torch_native import TorchNative
from hal.capabilities import LEVELS
from hal.conformance import record
from hal.conformance.runner import Result
from hal.platform import Platform
from hal.platforms import KINDS

ROOT = Path(__file__).parents[1]


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("ci_levels", ROOT / "ci" / "levels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CI = _script()


def test_levels_are_those_that_are_proven(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CI, "asked", ASKED)
    monkeypatch.setattr(sys, "argv", ["levels.py", "--check"])
    code = CI.main()
    assert code == 0, capsys.readouterr().out


def test_every_claim_rests_on_something() -> None:
    for name, rows in levels.REACHED.items():
        assert name in BACKENDS
        backend = registry.get(name)
        for where, (level, proof) in rows.items():
            assert level in LEVELS[1:]
            assert Platform.parse(where).kind in backend.platforms
            assert not proof.endswith(".json") or (ROOT / "docs" / "evidence" / proof).is_file()
            assert proof.endswith(".json") == (level != "contract")


def test_no_backend_of_hal_types_its_level() -> None:
    for name in BACKENDS:
        assert not registry.get(name).levels, name
        assert not registry.get(name).evidence, name


# --- records ---

CASES = [{"case": "a", "result": "passed", "error": 0.0, "bound": 1.0}, {"case": "b", "result": "refused", "why": "no"}]
GOOD: dict[str, Any] = {
    "platform": {"kind": "cpu", "arch": "aarch64"}, "date": "2026-01-02", "mode": "full",
    "backends": {"torch": {"passed": 1, "failed": 0, "refused": 1, "unproven": {}, "whole": True,
                           "files": record.files(TorchNative), "cases": CASES}}}
NAME = "verify-cpu-aarch64-2026-01-02.json"
ASKED = CI.asked


@pytest.fixture(autouse=True)
def _small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid of these records has the cases a and b."""
    monkeypatch.setattr(CI, "asked", lambda backend, kind, arch: frozenset({"a", "b"}))


def read(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object] = lambda r, b: None,
         name: str = NAME) -> Any:
    """What the good record is worth after a change of it and of its backend's part."""
    made = copy.deepcopy(GOOD)
    change(made, made["backends"]["torch"])
    (folder / name).write_text(json.dumps(made))
    [found] = CI.records(folder)
    return found


def test_a_good_record_proves_hardware_on_its_arch_alone(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found == CI.Claim("torch", "cpu:aarch64", "hardware", NAME)
    assert CI.derive([found]) == {"torch": {"cpu:aarch64": ("hardware", NAME)}}


@pytest.mark.parametrize(("change", "why"), [
    (lambda r, b: r.update(mode="quick"), "mode is 'quick', expected 'full'"),
    (lambda r, b: r.pop("mode"), "mode is None"),
    (lambda r, b: b.update(whole=False), "not the whole grid"),
    (lambda r, b: b.pop("whole"), "not the whole grid"),
    (lambda r, b: b.update(unproven={"sinks": "no case asks for it"}), "not proven: sinks"),
    (lambda r, b: b.pop("unproven"), "not proven: it does not say"),
    (lambda r, b: b.update(failed=1, cases=[*CASES, {"case": "c", "result": "failed"}]), "1 failed"),
    (lambda r, b: b.update(passed=0, cases=CASES[1:]), "0 passed"),
    # "whole" is not taken on trust: a run of some cases, or of a smaller grid, proves what it ran.
    (lambda r, b: b.update(refused=0, cases=CASES[:1]), "1 cases of the grid as it is now are not in it, 'b' the"),
    (lambda r, b: b.update(cases=[*CASES, {"case": "c", "result": "skipped"}]), "its counts are not those"),
    (lambda r, b: b.update(cases=[{**CASES[0], "error": 1.5}, CASES[1]]), "passed, and not within their bound: a"),
    (lambda r, b: b.update(cases=[{"case": "a", "result": "passed"}, CASES[1]]), "not within their bound: a"),
    (lambda r, b: b.update(cases=[*CASES, {"case": "c", "result": "failed"}]), "counts are not those of its cases"),
    (lambda r, b: b.update(passed=2), "counts are not those of its cases"),
    (lambda r, b: b["files"].update({"kv_cache.py": "0" * 64}), "other code than is here: kv_cache.py changed"),
    (lambda r, b: b["files"].pop("backends/torch_sequence.py"), "backends/torch_sequence.py changed"),
    (lambda r, b: b["files"].update({"backends/gone.py": "0" * 64}), "backends/gone.py changed"),
    (lambda r, b: b.pop("files"), "backends/torch_native.py"),
    (lambda r, b: r.update(emulator="tests/emulators/common.py"), "an emulator made it"),
])
def test_a_record_that_proves_nothing(tmp_path: Path, change: Callable[[Any, Any], object], why: str) -> None:
    found = read(tmp_path, change)
    assert isinstance(found, CI.Refused)
    assert why in found.why
    # Who reads it knows which file, and what to run where.
    assert NAME in str(found)
    assert ("on cpu:aarch64: hal verify --device cpu --backend torch --full --json docs/evidence/verify-cpu-aarch64-"
            in found.renew)


def test_a_backend_that_is_none(tmp_path: Path) -> None:
    found = read(tmp_path, lambda r, b: r["backends"].update(nobody=r["backends"].pop("torch")))
    assert found.why == "nobody is no backend of HAL"


EMULATED: dict[str, Any] = {"emulator": "tests/emulators/common.py", "command": "pytest tests/test_x.py",
            "emulator_files": record.emulator_files(ROOT, "tests/emulators/common.py")}


def test_an_emulated_record(tmp_path: Path) -> None:
    name = "emulated-torch-cpu-aarch64.json"
    assert read(tmp_path, lambda r, b: r.update(EMULATED), name) == CI.Claim("torch", "cpu:aarch64", "emulated", name)
    for change, why in (({"emulator": "tests/emulators/none.py"}, "expected a file of the repository"),
                        ({"emulator": None}, "expected a file of the repository"),
                        ({"command": None}, "does not say which command"),
                        ({"emulator_files": None}, "made by another emulator than is here: tests/emulators/common.py"),
                        ({"emulator_files": {**EMULATED["emulator_files"], "tests/emulators/common.py": "0" * 64}},
                         "made by another emulator than is here: tests/emulators/common.py changed"),
                        ({"emulator_files": {**EMULATED["emulator_files"], "tests/emulators/gone.py": "0" * 64}},
                         "tests/emulators/gone.py changed")):
        found = read(tmp_path, lambda r, b, c=change: r.update(EMULATED | c), name)
        assert why in found.why
    found = read(tmp_path, lambda r, b: r.update(EMULATED, mode="quick"), name)
    assert found.renew == "pytest tests/test_x.py"


def test_an_emulators_files(tmp_path: Path) -> None:
    """Its file and what it imports of its folder, however that is spelled; nothing else."""
    folder = tmp_path / "tests" / "fake"
    folder.mkdir(parents=True)
    texts = {"main": "import os, fake.one\ndef f():\n    from fake import two, nobody\n",
             "one": "from .three import x\n", "two": "from fake.one import y\nfrom fakes.four import z\n",
             "three": "x = 1\n", "four": "", "os": ""}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    found = record.emulator_files(tmp_path, "tests/fake/main.py")
    assert list(found) == [f"tests/fake/{name}.py" for name in ("main", "one", "three", "two")]
    (folder / "three.py").write_text("x = 2\n")
    after = record.emulator_files(tmp_path, "tests/fake/main.py")
    assert [name for name in found if after[name] != found[name]] == ["tests/fake/three.py"]


def test_a_compiled_record_needs_no_mode(tmp_path: Path) -> None:
    name = "compiled-torch-cpu-aarch64.json"

    def compiled(r: dict[str, Any], b: dict[str, Any]) -> None:
        r.update(command="ci/compile.sh")
        for key in ("whole", "unproven"):
            del b[key]
        del r["mode"]

    assert read(tmp_path, compiled, name).level == "compiled"


@pytest.mark.parametrize("name", ["cpu-aarch64.json", "verify-cpu-x86_64_v3-2026-01-02.json",
                                  "verify-cuda-aarch64-2026-01-02.json", "verify-cpu-aarch64-2026-01-03.json",
                                  "emulated-triton-cpu-aarch64.json"])
def test_a_name_that_says_something_else_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        read(tmp_path, name=name)


def test_what_is_no_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no 'platform'"):
        read(tmp_path, lambda r, b: r.pop("platform"))
    with pytest.raises(ValueError, match="'sm90' is no arch of cpu"):
        read(tmp_path, lambda r, b: r.update(platform={"kind": "cpu", "arch": "sm90"}))


def test_a_platform_that_is_none_and_a_file_that_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: 'tpu' is no platform \\(.*cpu"):
        read(tmp_path, lambda r, b: r.update(platform={"kind": "tpu", "arch": "v4"}))
    (tmp_path / NAME).write_text('{"platform": ')
    with pytest.raises(ValueError, match=f"docs/evidence/{NAME} is no JSON"):
        list(CI.records(tmp_path))


def test_asked_is_what_verify_asks_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """Told the dtypes that an arch has not."""
    from hal.__main__ import main

    here = hal.detect("cpu")
    assert main(["verify", "--device", "cpu", "--backend", "torch", "--full", "--list"]) == 0
    listed = {line.removeprefix("torch: ") for line in capsys.readouterr().out.splitlines()}
    assert ASKED("torch", "cpu", here.arch) == listed
    assert ASKED("torch", "npu", "ascend310p") != ASKED("torch", "npu", "ascend910b")


def test_quick_and_bench_prove_nothing(tmp_path: Path) -> None:
    for name in ("quick-cpu-aarch64-2026-01-02.json", "bench-cuda-sm90-2026-01-02.json"):
        (tmp_path / name).write_text("{}")
    assert list(CI.records(tmp_path)) == []


def test_the_highest_wins() -> None:
    claims = [CI.Claim("torch", "cpu:aarch64", level, proof)
              for level, proof in (("emulated", "b"), ("hardware", "a"), ("contract", "c"))]
    assert CI.derive(claims)["torch"]["cpu:aarch64"] == ("hardware", "a")
    assert CI.derive(claims[2:])["torch"]["cpu:aarch64"] == ("contract", "c")
    # Of two records of one level the later is named.
    later = [CI.Claim("torch", "cpu:aarch64", "hardware", f"verify-{day}.json") for day in ("2026-01-03", "2026-01-02")]
    assert CI.derive(later)["torch"]["cpu:aarch64"][1] == "verify-2026-01-03.json"


def test_check_says_what_is_stale_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(CI, "contracts", lambda: [])
    monkeypatch.setattr(CI, "TARGET", tmp_path / "levels.py")
    monkeypatch.setattr(CI.records, "__defaults__", (tmp_path,))
    CI.TARGET.write_text("old")
    read(tmp_path)
    monkeypatch.setattr(sys, "argv", ["levels.py", "--check"])
    assert CI.main() == 1
    assert CI.TARGET.read_text() == "old"
    assert "run: python ci/levels.py" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["levels.py"])
    assert CI.main() == 0
    space: dict[str, Any] = {}
    exec(CI.TARGET.read_text(), space)
    assert space["REACHED"] == {"torch": {"cpu:aarch64": ("hardware", NAME)}}
    # The code changes: the level is gone, and it is said why.
    read(tmp_path, lambda r, b: b["files"].update({"kv_cache.py": ""}))
    monkeypatch.setattr(sys, "argv", ["levels.py", "--check"])
    assert CI.main() == 1
    said = capsys.readouterr().out
    assert f"{NAME} counts for nothing for torch: it is about other code than is here: kv_cache.py changed" in said
    assert "renew it: on cpu:aarch64: hal verify" in said
    (tmp_path / "strange.json").write_text("{}")
    assert CI.main() == 2


# --- the contract check ---

def test_contract_needs_two_releases_of_every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import data_reliance

    backend = registry.get("flash_attn_3")
    held = CI._releases(backend)
    assert held.keys() == {"flash-attn-3", "sglang-kernel", "vllm"}
    assert all(len(releases) >= 2 for releases in held.values())
    assert "git v2.8.3.post1" not in held["flash-attn-3"]  # its varlen function has no return_attn_probs
    # Relying on a default that no release has breaks the contract, of that package alone.
    key = ("fa3", "flash_attn_interface.flash_attn_with_kvcache")
    old = data_reliance.RELIANCE[key]
    wrong = type(old)(old.positional, old.always, old.sometimes, {**old.defaults, "softcap": "1.0"})
    monkeypatch.setitem(data_reliance.RELIANCE, key, wrong)
    assert CI._releases(backend) == {**held, "flash-attn-3": []}
    monkeypatch.setattr(CI, "BACKENDS", {"flash_attn_3": ""})
    assert list(CI.contracts()) == []


def test_every_adapter_of_a_package_must_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two adapters for one package of one backend: what the second holds for does not stand in for the first."""
    import adapter_calls
    import data_reliance

    backend = registry.get("flash_attn_2")
    assert CI._releases(backend)["flash-attn"]
    twice = {"broken": adapter_calls.ADAPTERS["fa2"], **adapter_calls.ADAPTERS}
    monkeypatch.setattr(adapter_calls, "ADAPTERS", twice)
    real = adapter_calls.vendor_calls
    monkeypatch.setattr(adapter_calls, "vendor_calls", lambda name: real("fa2" if name == "broken" else name))
    own = {key: value for key, value in data_reliance.RELIANCE.items() if key[0] == "fa2"}
    for (_, function), old in own.items():
        wrong = type(old)(old.positional, old.always, old.sometimes, {**old.defaults, "softcap": "1.0"})
        monkeypatch.setitem(data_reliance.RELIANCE, ("broken", function), wrong)
    assert CI._releases(backend)["flash-attn"] == []


def test_contract_of_a_backend_with_an_adapter_nobody_recorded() -> None:
    for name in ("flashmla", "cudnn", "cpu"):
        assert not any(CI._releases(registry.get(name)).values()), name


def test_contract_of_torch_is_about_its_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import data_reliance

    assert len(CI._torch_releases(TorchNative)["torch"]) >= 2
    made = "torch.nn.functional.scaled_dot_product_attention"
    assert made in data_reliance.TORCH
    monkeypatch.setattr(data_reliance, "TORCH", {k: v for k, v in data_reliance.TORCH.items() if k != made})
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        CI._torch_releases(TorchNative)


# --- the files of a record ---

@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of HAL's backends with a kernel folder, which hal.conformance.record reads instead."""
    shutil.copytree(ROOT / "backends", tmp_path / "backends", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hal" / "kv_cache.py", tmp_path)
    kernels = tmp_path / "kernels" / "cpu"
    kernels.mkdir(parents=True)
    for name, text in {"../__init__.py": "", "__init__.py": "", "call.py": "from hal.kernels.cpu import build\n",
                       "build.py": "", "other.py": "", "decode.cpp": "int main;", "notes.txt": ""}.items():
        (kernels / name).write_text(text)
    monkeypatch.setattr(record, "_ROOT", tmp_path)
    return tmp_path


TORCH_FILES = {"backends/torch_native.py", "backends/torch_sequence.py", "kv_cache.py"}


def test_files_are_the_module_what_it_imports_and_the_cache(package: Path) -> None:
    assert record.files(TorchNative).keys() == TORCH_FILES
    text = (ROOT / "backends" / "torch_native.py").read_text()
    assert record.files(TorchNative)["backends/torch_native.py"] == hashlib.sha256(text.encode()).hexdigest()
    assert "backends/__init__.py" not in record.files(TorchNative)  # the table of backends grows


@pytest.mark.parametrize("line", ["    from hal.kernels.cpu import call", "    import hal.kernels.cpu.call",
                                  "    from hal.kernels.cpu.call import anything",
                                  "    from ..kernels.cpu import call"])
def test_files_follow_imports_inside_functions(package: Path, line: str) -> None:
    module = package / "backends" / "torch_sequence.py"
    module.write_text(module.read_text() + f"\n\ndef late():\n{line}\n")
    assert record.files(TorchNative).keys() >= TORCH_FILES | {
        "kernels/cpu/call.py", "kernels/cpu/build.py", "kernels/cpu/__init__.py", "kernels/cpu/decode.cpp"}
    assert not {"kernels/cpu/other.py", "kernels/cpu/notes.txt"} & record.files(TorchNative).keys()


@pytest.mark.parametrize("name", sorted(TORCH_FILES))
def test_a_changed_file_has_another_hash(package: Path, name: str) -> None:
    before = record.files(TorchNative)
    (package / name).write_text((package / name).read_text() + "\n# changed\n")
    after = record.files(TorchNative)
    assert {key for key in before if before[key] != after[key]} == {name}


def test_out_of_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module stands by its name, beside what it imports of HAL; with a cache of its own it is not about ours."""
    (tmp_path / "out.py").write_text("def bind():\n    from hal.backends.refuse import anything\n")
    monkeypatch.setitem(sys.modules, "out.of.tree", types.SimpleNamespace(__file__=str(tmp_path / "out.py")))

    class Half(AttentionBackend):
        name = "out"
        __module__ = "out.of.tree"
        new_kv_cache = classmethod(lambda cls, *a: None)  # type: ignore[assignment]

    class Own(Half):
        write_kv_cache = classmethod(lambda cls, config: None)  # type: ignore[assignment]
        __module__ = "out.of.tree"

    assert record.files(Half).keys() == {"out.of.tree", "backends/refuse.py", "kv_cache.py"}
    assert record.files(Own).keys() == {"out.of.tree", "backends/refuse.py"}


def test_a_summary_has_files_and_whether_it_is_whole() -> None:
    results = [Result("a", "passed", "", 0.0, 1.0, 0.0, ())]
    for whole in (True, False):
        part = record.summary(TorchNative, results, whole)
        assert part["whole"] is whole
        assert part["files"] == record.files(TorchNative)


# --- AttentionBackend.level ---

def test_level_is_the_higher_of_what_is_derived_and_what_the_class_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin(AttentionBackend):
        name = "plugin"
        platforms = {"cpu": ()}

    here, there = Platform.parse("cpu:aarch64"), Platform.parse("cpu:x86_64_v3")
    assert Plugin.level(here) == "declared"
    Plugin.levels = {"cpu": "contract", "cpu:aarch64": "emulated"}
    assert (Plugin.level(here), Plugin.level(there)) == ("emulated", "contract")
    monkeypatch.setattr("hal.backend.REACHED", {"plugin": {"cpu:x86_64_v3": ("hardware", ""),
                                                           "cpu:aarch64": ("contract", "")}})
    assert (Plugin.level(here), Plugin.level(there)) == ("emulated", "hardware")
    assert Plugin.level(Platform("cpu", None, "cpu")) == "contract"


def test_explain_shows_the_level() -> None:
    decision = hal.explain(hal.AttentionConfig(), "cuda:sm75")
    assert {c.backend: c.level for c in decision.candidates}["torch"] == levels.REACHED["torch"]["cuda:sm75"][0]


# --- the scripts that make records ---

FAKE = """#!/usr/bin/env bash
case "$*" in
    "-m hal devices --json")
        echo '{"platforms": [{"kind": "cuda", "found": true, "reason": "", "devices": [{"arch": "sm90"}]},
                             {"kind": "npu", "found": false, "reason": "no NPU here", "devices": []}]}' ;;
    *load_torch*) exit "${NO_TORCH-0}" ;;
    "-c "*) exec REAL "$@" ;;
    "-m hal verify"*) echo "$*" >>CALLS; sleep "${SLEEP-0}"; exit "${VERIFY-0}" ;;
    "-m hal bench"*) echo "$*" >>CALLS; exit "${BENCH-0}" ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """Run ci/NAME.sh with an interpreter that only writes down what it is asked: (exit code, last line, calls)."""
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(FAKE.replace("CALLS", str(calls)).replace("REAL", sys.executable))
    python.chmod(0o755)

    def run(name: str, *options: str, **environ: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        done = subprocess.run([str(ROOT / "ci" / f"{name}.sh"), *options], capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHON": str(python), **environ})
        return done.returncode, (done.stdout.splitlines() or [""])[-1], calls.read_text().splitlines()

    return run


def test_cuda_verifies_in_full_then_benches(script: Any) -> None:
    code, last, (verify, bench) = script("cuda")
    assert (code, last) == (0, "PASSED")
    assert re.fullmatch(r"-m hal verify --device cuda --full --driver .+ "
                        r"--json docs/evidence/verify-cuda-sm90-\d{4}-\d\d-\d\d\.json", verify)
    assert re.fullmatch(r"-m hal bench --device cuda --json docs/evidence/bench-cuda-sm90-\S+\.json", bench)


def test_names_of_partial_and_quick_records(script: Any) -> None:
    _, _, (verify, bench) = script("cuda", "--quick", "--backend", "a", "--backend", "b")
    assert "--quick --driver" in verify
    assert re.search(r" --json docs/evidence/quick-cuda-sm90-a-b-[\d-]+\.json --backend a --backend b$", verify)
    assert bench.endswith(" --backend a,b")
    _, _, (verify, _) = script("cuda", "--backend", "torch")
    assert re.search(r"docs/evidence/verify-cuda-sm90-torch-[\d-]+\.json", verify)


@pytest.mark.parametrize(("name", "options", "environ", "code", "last"), [
    ("cuda", (), {"VERIFY": "1"}, 1, "FAILED"),
    ("cuda", (), {"BENCH": "1"}, 1, "FAILED"),
    ("cuda", (), {"NO_TORCH": "1"}, 77, "has no torch that imports"),
    ("cuda", ("--time-limit", "5"), {"SLEEP": "20"}, 1, "FAILED"),
    ("cuda", ("--time-limit", "60"), {}, 0, "PASSED"),
    ("npu", (), {}, 77, "NOT RUN: no NPU here"),
    ("npu", ("--time-limit", "soon"), {}, 2, ""),
    ("npu", ("--backend",), {}, 2, ""),
    ("npu", ("--fast",), {}, 2, ""),
])
def test_how_a_script_ends(script: Any, name: str, options: tuple[str, ...], environ: dict[str, str], code: int,
                           last: str) -> None:
    found = script(name, *options, **environ)
    assert found[0] == code
    assert found[1].endswith(last)
    assert len(found[2]) == {0: 2, 1: 1 + ("BENCH" in environ)}.get(code, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_platform_has_its_script(kind: str) -> None:
    text = (ROOT / "ci" / f"{kind}.sh").read_text()
    assert 'read_options "$@"' in text
    assert f"{'verify' if kind == 'cuda' else 'verify_platform'} {kind} " in text
