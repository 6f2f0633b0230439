"""hal verify: what it prints, writes and returns. The cases themselves are in tests/test_conformance.py."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from hal import registry
from hal.__main__ import main
from hal.conformance.grid import grid

ROOT = Path(__file__).parents[1]
SCALE = "dense scale: decode"  # two quick cases: one token, and four
TWO = ["--device", "cpu", "--backend", "torch", "--case", SCALE, "--seed", "7"]
# A backend that gives twice the answer where a scale is configured, and refuses a softcap that it declares.
BROKEN = textwrap.dedent("""
    from hal.backend import Bound
    from hal.backends.torch_native import TorchNative


    class Broken(TorchNative):
        name = "broken"

        @classmethod
        def bind(cls, config, platform, package):
            right = super().bind(config, platform, package)

            def wrong(function):
                def call(**a):
                    if a.get("softcap"):
                        raise ValueError("softcap is not supported " + "after all " * 30)
                    return function(**a) * (2 if config.softmax_scale else 1)
                return call

            return Bound(wrong(right.flash_attn_with_kvcache), wrong(right.flash_attn_varlen_func))


    class Absent(TorchNative):
        name = "absent"
        platforms = {"cuda": ()}
""")


@pytest.fixture(autouse=True)
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `broken_kernels` can be imported, here and in child processes."""
    (tmp_path / "broken_kernels.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    yield
    sys.modules.pop("broken_kernels", None)
    for name in {"broken", "absent"} & set(registry._registered):
        registry.unregister_backend(name)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["verify", *words])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_passed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *TWO)
    assert code == 0, out + err
    assert out.startswith("torch: 2 passed, 0 failed, 0 refused\n")
    assert "phase decode" in out
    assert "2 cases of torch, quick, seed 7, about 0 s" in err
    assert all(len(line) <= 100 for line in out.splitlines())


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The shape that others read, the same in a file and on stdout, where the summary then goes to stderr."""
    file = tmp_path / "record.json"
    assert run(capsys, *TWO, "--json", str(file), "--driver", "none")[0] == 0
    code, out, err = run(capsys, *TWO, "--json", "-", "--driver", "none")
    made, printed = json.loads(file.read_text()), json.loads(out)
    assert code == 0
    assert "torch: 2 passed" in err
    made.pop("seconds"), printed.pop("seconds")
    assert made == printed
    assert made["platform"]["kind"] == "cpu"
    assert {"torch", "python", "attention-hal"} <= set(made["versions"])
    assert (made["mode"], made["seed"], made["driver"], len(made["source"])) == ("quick", 7, "none", 64)
    backend = made["backends"]["torch"]
    assert (backend["passed"], backend["failed"], backend["refused"], backend["unproven"]) == (2, 0, 0, {})
    assert backend["by_feature"]["phase decode"] == {"passed": 2, "failed": 0, "refused": 0}
    assert "softcap" not in backend["by_feature"]
    assert [c["case"].split()[2] for c in backend["cases"]] == ["decode-q4", "decode"]
    assert all(c["result"] == "passed" and 0 <= c["error"] <= c["bound"] for c in backend["cases"])
    assert all('"result"' not in line or line.startswith('    {"case"') for line in file.read_text().splitlines())


def test_a_driver_named_like_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    """No text of the user is taken for the place where the cases go."""
    code, out, _ = run(capsys, *TWO, "--json", "-", "--driver", "@torch")
    assert (code, json.loads(out)["driver"], len(json.loads(out)["backends"]["torch"]["cases"])) == (0, "@torch", 2)


def test_a_seed_repeats_and_without_one_it_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    def errors(*words: str) -> Any:
        words = ("--backend", "torch", "--device", "cpu", "--case", SCALE, "--json", "-", *words)
        made = json.loads(run(capsys, *words)[1])
        return made["seed"], [c["error"] for c in made["backends"]["torch"]["cases"]]

    first = errors("--seed", "7")
    assert first == errors("--seed", "7")
    assert first[1] != errors("--seed", "8")[1]
    assert len({errors()[0] for _ in range(2)}) == 2


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--device", "cpu", "--backend", "torch", "--list", "--full")
    assert code == 0
    assert out.splitlines() == [f"torch: {c.name}" for c in grid(registry.get("torch"), True)]
    assert len(run(capsys, *TWO, "--list")[1].splitlines()) == 2


@pytest.mark.parametrize(("words", "said"), [
    (("--backend", "no_such"), "attention backend 'no_such' is not known"),
    (("--backend", "no.such.module:Class"), "No module named 'no'"),
    (("--backend", "hal.config:AttentionConfig"), "expected a subclass of hal.backend.AttentionBackend"),
    (("--device", "cuda:sm90"), "cuda:sm90"), (("--device", "nonsense"), "nonsense"),
    (("--case", "no such case"), "'no such case' is in no case's name"),
    (("--json", "/no/such/folder/x.json"), "the folder /no/such/folder is not there or can't be written to"),
    (("--json", "."), "--json .: is a folder"),
    (("--seed", "-1"), "'-1' is no whole number"), (("--seed", "1", "--seed", "2"), "--seed"),
    (("--quick", "--full"), "not allowed with"),
])
def test_wrong_arguments(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line, before any case runs."""
    base = [] if "--device" in words else ["--device", "cpu"]
    code, out, err = run(capsys, *base, *([] if "--backend" in words else ["--backend", "torch"]), *words)
    assert (code, out) == (2, ""), err
    assert said in err
    assert "cases of" not in err
    assert len(err.splitlines()) == 1


def test_failures_are_shown_and_can_be_repeated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit code 1; the command line it prints repeats the same failure, in another process."""
    file = tmp_path / "first.json"
    name = "broken_kernels:Broken"
    code, out, err = run(capsys, "--device", "cpu", "--backend", name, "--case", SCALE, "--case",
                         "dense softcap: decode", "--case", "dense sinks: decode-q4", "--json", str(file))
    assert code == 1
    assert out.startswith("broken: 1 passed, 4 failed, 0 refused\n"), out
    assert "failed: dense scale: decode bfloat16 8/2x128 scale=" in out
    assert "ValueError: softcap is not supported after all" in out
    assert all(len(line) <= 100 for line in out.splitlines()), out
    line = next(line for line in err.splitlines() if line.startswith("hal: to repeat one: "))
    command = shlex.split(line.removeprefix("hal: to repeat one: "))
    assert command[0] == "hal"
    assert command[command.index("--seed") + 1] == str(json.loads(file.read_text())["seed"])
    again = tmp_path / "again.json"
    done = subprocess.run([sys.executable, "-m", *command, "--json", str(again)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1, done.stderr
    assert "broken: 0 passed, 1 failed" in done.stdout
    (repeated,) = json.loads(again.read_text())["backends"]["broken"]["cases"]
    assert repeated in json.loads(file.read_text())["backends"]["broken"]["cases"]
    assert repeated["result"] == "failed"


def test_nothing_passed(capsys: pytest.CaptureFixture[str]) -> None:
    """A backend that is not for this device: refused by name, and that is no success."""
    code, out, err = run(capsys, "--device", "cpu", "--backend", "broken_kernels:Absent", "--case", SCALE)
    assert code == 1
    assert "absent: 0 passed, 0 failed, 2 refused" in out
    assert "all refused, the first: platform cpu is not supported (absent: cuda)" in out
    assert "nothing passed" in err


def test_an_unproven_declaration_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole grid ran, nothing failed, and a declared word has no case: exit code 1."""
    torch = registry.get("torch")
    few = [c for c in grid(torch, False) if c.name.startswith(SCALE)]
    monkeypatch.setattr("hal.conformance.grid.grid", lambda backend, full, lacks: few)
    code, out, _ = run(capsys, "--device", "cpu", "--backend", "torch")
    assert code == 1
    assert "torch: 2 passed, 0 failed" in out
    assert "not proven: softcap: no case asks for it" in out


def test_backends_that_cannot_be_asked_here_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With no --backend: what serves the device, and why the others of this platform are left out."""
    code, out, _ = run(capsys, "--device", "cpu", "--case", SCALE, "--seed", "1")
    assert code == 0
    lines = out[out.index("not verified") :].splitlines()
    others = [n for n in registry.names() if "cpu" in registry.get(n).platforms and n != "torch"]
    for name in others:
        if not registry.get(name).adapter:
            assert any(line.split()[0] == name and "its adapter is not written yet" in line for line in lines[1:]), name
    assert not any(line.startswith("torch") for line in lines)


def test_an_absent_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.packages import Package

    package = Package("no-such-kernels", "no_such_kernels", "pip install no-such-kernels")
    for name in ("torch", "cpu"):
        monkeypatch.setattr(registry.get(name), "packages", (package,))
    code, out, err = run(capsys, "--device", "cpu", "--case", SCALE)
    assert code == 1
    assert any(line.startswith("torch ") and "no-such-kernels" in line for line in out.splitlines()), out
    assert "nothing to verify: no backend serves cpu" in err
    code, out, err = run(capsys, "--device", "cpu", "--case", SCALE, "--backend", "torch")
    assert (code, "all refused, the first: " in out, "no-such-kernels" in out) == (1, True, True)


def test_progress_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, off a terminal: a line now and then with the time left. stdout stays clean."""
    monkeypatch.setattr("hal.progress.QUIET", -1.0)
    monkeypatch.setattr("hal.progress.EVERY", 0.0)
    code, out, err = run(capsys, *TWO, "--json", "-")
    assert code == 0
    json.loads(out)
    assert "1 of 2, about " in err
    assert f"s left: torch: {SCALE}" in err


def test_interrupted() -> None:
    """Ctrl-C: 130, no traceback."""
    command = [sys.executable, "-m", "hal", "verify", "--device", "cpu", "--backend", "torch", "--full"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert "cases of torch, full" in child.stderr.readline()
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=300)
    assert (child.returncode, out) == (130, ""), err
    assert "hal: interrupted" in err
    assert "Traceback" not in err
