"""Unmodified packages from PyPI that import flash_attn, on a CPU through `hal run`, beside what they give without."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hal import default_model

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "drop_in"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}


def run(*words: str, wanted: int = 0) -> tuple[list[dict[str, Any]], str]:
    done = subprocess.run([sys.executable, "-m", "hal", "run", "--device", "cpu", *words], cwd=ROOT, env=ENVIRON,
                          capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == wanted, done.stderr
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def test_no_real_flash_attn_is_here() -> None:
    for name in ("flash_attn", "flash_attn_3"):
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)


@pytest.mark.parametrize("program", ["diffusers_program.py", "yunchang_program.py"])
def test_without_hal_run_they_do_not_work(program: str) -> None:
    done = subprocess.run([sys.executable, str(PROGRAMS / program)], cwd=ROOT, env=ENVIRON, capture_output=True,
                          text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr


@pytest.mark.parametrize(("backend", "version"), [("torch", "2"), ("cpu", "3")])
def test_transformers(backend: str, version: str) -> None:
    """The other two pairs are in tests/test_compat_transformers.py."""
    rows, _ = run("--attention-backend", backend, str(PROGRAMS / "transformers_program.py"), "--version", version,
                  "--model", str(default_model.prepare()))
    assert len(rows) == 19
    for row in rows:
        assert row["difference"] < 1e-5, row
        assert row.get("same_tokens", True), row
        assert row.get("without_the_feature", 1.0) > 1e-2, row


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_diffusers(backend: str) -> None:
    rows, said = run("--attention-backend", backend, str(PROGRAMS / "diffusers_program.py"))
    assert [row["case"] for row in rows] == [
        "Flux, flash", "Flux, flash_varlen", "Flux, _flash_varlen_3", "padded keys, flash_varlen",
        "padded keys, _flash_varlen_3", "causal, flash"]
    assert all(row["difference"] < 1e-5 for row in rows), rows
    assert "Falling back" not in said


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_yunchang(backend: str) -> None:
    """Partial results are merged by their softmax_lse: it must be right too."""
    rows, _ = run("--attention-backend", backend, str(PROGRAMS / "yunchang_program.py"))
    assert [row["case"] for row in rows] == [
        "ring, causal False", "ring, causal True", "zigzag ring, causal True", "ulysses, causal False",
        "ulysses, causal True"]
    assert all(row["difference"] < 1e-5 for row in rows), rows
