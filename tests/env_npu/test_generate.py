"""From the flag to the kernel: `hal generate --device npu` on the fake NPU says what the CPU says, in float16.

The rest of the model runs on CPU torch over the device's memory (tests/fake_npu/aten.py), so this is about the way
there, not about the chip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_npu

ROOT = Path(__file__).parents[2]


def generate(device: str, environ: dict[str, str], *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "hal", "generate", "What is the capital of France?", "--device", device, "--dtype",
         "float16", "--max-new-tokens", "6", "--json", *more],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n"):])  # torch_npu may print before
    return answer


def test_the_tokens_are_the_cpus() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    npu = generate("npu", fake_npu.start(devices=1, environ=clean))
    # Without CANN's libraries transformers fails on torch_npu, whatever the device.
    cpu = generate("cpu", fake_npu.start(devices=0, environ=clean), "--attention-backend", "torch")
    assert npu["platform"]["arch"] == "ascend910b"
    assert {row[phase]["chosen"] for row in npu["kinds"] for phase in ("prefill", "decode")} == {"ascend"}
    assert {row[phase]["chosen"] for row in cpu["kinds"] for phase in ("prefill", "decode")} == {"torch"}
    assert npu["tokens"] == cpu["tokens"]
    assert len(npu["tokens"]) == 6
    assert "Paris" in npu["text"]
