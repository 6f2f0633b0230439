"""Continuous batching on the fake NPU says what the CPU says, in float16: prompts in chunks, answers, a sliding window.

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
import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import json, sys
import torch, transformers
from hal import default_model
from hal.cli_args import AttentionArgs
from hal.integrations.transformers_batching import BatchedModel, Sampling

device, backend, folder, window = sys.argv[1:]
torch.manual_seed(7)
config = transformers.MistralConfig(
    vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=64,
    num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
    eos_token_id=None, tie_word_embeddings=False, sliding_window=int(window) or None)
transformers.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
source = default_model.prepare()  # for its tokenizer alone
for name in ("tokenizer.json", "tokenizer_config.json"):
    open(f"{folder}/{name}", "w").write((source / name).read_text())
chance, found, left = torch.Generator().manual_seed(3), {}, 4
with BatchedModel(folder, AttentionArgs(device=device), dtype="float16", num_pages=8, max_batch_tokens=16) as model:
    assert {d.decode.chosen for d in model.decisions.values()} == {backend}
    for number, length in enumerate((1, 5, 17, 33)):
        model.submit(str(number), torch.randint(2, 97, (length,), generator=chance).tolist(),
                     Sampling(max_tokens=6, temperature=0.0 if number else 0.9, seed=1))
    for event in model.events():
        assert event.error is None, event
        found[event.request_id] = found.get(event.request_id, []) + event.tokens
        left -= event.finish is not None
        if not left:
            break
print(json.dumps([found[str(number)] for number in range(4)]))
"""


def tokens(device: str, backend: str, window: int, environ: dict[str, str], folder: Path) -> Any:
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", CHILD, device, backend, str(folder), str(window)], cwd=ROOT,
                          env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("window", [0, 8])
def test_the_tokens_are_the_cpus(window: int, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    clean["HAL_ATTENTION_BACKEND"] = "auto"
    npu = tokens("npu", "ascend", window, fake_npu.start(devices=1, environ=clean), tmp_path / "npu")
    clean["HAL_ATTENTION_BACKEND"] = "torch"
    cpu = tokens("cpu", "torch", window, fake_npu.start(devices=0, environ=clean), tmp_path / "cpu")
    assert npu == cpu
    assert [len(each) for each in npu] == [6] * 4
