"""Unmodified transformers with attn_implementation="flash_attention_2" and "_3" on a CPU, through `hal run`.

tests/drop_in/transformers_program.py knows nothing of HAL; what it prints is judged here. ci/env_compat.sh does so
with packages that are not installed here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "drop_in" / "transformers_program.py"


def run(*words: str) -> tuple[list[dict[str, Any]], str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    done = subprocess.run([sys.executable, "-m", "hal", "run", "--device", "cpu", *words], env=environ,
                          capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.model
@pytest.mark.parametrize(("backend", "version"), [("cpu", "2"), ("torch", "3")])
def test_logits_and_tokens_are_those_of_sdpa(default_model: Path, backend: str, version: str) -> None:
    with_model = ["--model", str(default_model)] if version == "2" else []
    rows, said = run("--attention-backend", backend, str(PROGRAM), "--version", version, *with_model)
    assert f"(kernels: {backend})" in said
    assert "transformers' is_flash_attn_2_available and is_flash_attn_3_available answer True on cpu" in said
    real = [("SmolLM2", "padded"), ("SmolLM2", "packed")] if with_model else []
    cases = ("GQA", "MHA, head_dim 80", "head_dim 256", "sliding window", "softcap and window")
    assert [(row["case"], row["inputs"]) for row in rows] == [
        *((case, inputs) for case in cases for inputs in ("batch", "padded", "packed")), ("GQA", "continuous"),
        ("sliding window", "continuous"), *real]
    for row in rows:
        assert row["difference"] < 1e-5, row
        assert row.get("same_tokens", True), row
        assert row.get("without_the_feature", 1.0) > 1e-2, row
    assert sum("without_the_feature" in row for row in rows) == 2
    assert sum("same_tokens" in row for row in rows) == 12 + len(real[:1])


def test_nothing_pretends_to_be_cuda(tmp_path: Path) -> None:
    """What is corrected in transformers, and what is not; and the way to a device by set_attn_implementation."""
    program = tmp_path / "program.py"
    program.write_text("""
import json, torch, transformers
from transformers import utils
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX as matrix
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
    vocab_size=10))
model.set_attn_implementation("flash_attention_2")
try:
    model(torch.zeros(1, 3, dtype=torch.long))
except ValueError as error:
    refused = str(error)
utils.is_flash_attn_2_available.cache_clear()
print(json.dumps({"cuda": torch.cuda.is_available(), "two": utils.is_flash_attn_2_available(),
                  "three": utils.is_flash_attn_3_available(), "four": utils.is_flash_attn_4_available(),
                  "musa": utils.is_torch_musa_available(), "at_least": utils.is_flash_attn_greater_or_equal("2.8.3"),
                  "devices": [[name for _, name in matrix[n]["supported_devices"]] for n in (2, 3, 4)],
                  "refused": refused}))
""")
    [told], _ = run("--flash-attn-version", "2", str(program))
    assert told["refused"].startswith("q: got a tensor that requires grad")
    assert (told["cuda"], told["musa"], told["four"]) == (False, False, False)
    assert (told["two"], told["three"], told["at_least"]) == (True, False, True)
    assert [devices[-1:] == ["cpu"] for devices in told["devices"]] == [True, False, False]


def test_other_releases_are_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import types

    import transformers

    from hal.compat import transformers_checks

    monkeypatch.setattr(transformers, "__version__", "5.99.0")
    module = types.ModuleType("import_utils")
    module.is_flash_attn_2_available = lambda: False  # type: ignore[attr-defined]
    transformers_checks._answer_checks(module, ["2"])
    assert module.is_flash_attn_2_available() is False
    assert "the checks of transformers 5.99.0 are not known to HAL (known: 5.23.*) and left alone" in caplog.text


@pytest.mark.model
def test_the_program_of_the_page(default_model: Path, tmp_path: Path) -> None:
    """docs/drop-in.md: three commands from nothing to tokens."""
    page = (ROOT / "docs" / "drop-in.md").read_text()
    program = tmp_path / "answer.py"
    program.write_text(re.search(r"^```python\n(.*?)^```", page, re.M | re.S).group(1))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    done = subprocess.run([sys.executable, "-m", "hal", "run", str(program), str(default_model)], env=environ, cwd=ROOT,
                          capture_output=True, text=True, timeout=300, check=False)
    assert "The capital of France is Paris." in done.stdout, done.stderr


def test_the_page_names_what_is_there() -> None:
    import importlib

    from hal.compat.stand_ins import STAND_INS

    page = (ROOT / "docs" / "drop-in.md").read_text()
    rows = re.findall(r"^\| (`flash_attn.*?`) \| (\S+).*? \| (.*?) \|$", page, re.M)
    named = {module for row in rows for module in re.findall(r"`([\w.]+)`", row[0])}
    modules = {name: s for s in STAND_INS.values() for name in s.modules}
    assert named == set(modules) - {"flash_attn.layers"}
    for where, version, functions in rows:
        last = re.findall(r"`([\w.]+)`", where)[-1 if "flash_attn_3" not in where else 0]
        assert version == modules[last].version
        there = importlib.import_module(modules[last].modules[last])
        for function in re.findall(r"`(\w+)`", functions):
            assert function == "_wrapped_" or callable(getattr(there, function)), function
