"""`hal serve --device npu` on the fake NPU: continuous batching says there, in float16, what the CPU's generate() says.

As in test_generate.py the rest of the model runs on CPU torch over the device's memory: this is about the way there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_npu

ROOT = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"


def ask(url: str, question: str) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_it_serves(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    environ = fake_npu.start(devices=1, environ=clean)
    # The fake's library that shows device files hides itself from the children of a process; the worker is one.
    (tmp_path / "sitecustomize.py").write_text(f"import os; os.environ['LD_PRELOAD'] = {environ['LD_PRELOAD']!r}\n")
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environ['PYTHONPATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "hal", "serve", "--device", "npu", "--dtype", "float16", "--port", "0",
         "--kv-cache-memory", "64MiB", "--no-spare-worker"],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = ""
    for line in process.stdout:  # torch_npu may print before
        if line.startswith("hal: "):
            url = line.split()[-1]
            break
    try:
        assert url, process.communicate(timeout=30)[1]
        with ThreadPoolExecutor(2) as pool:  # two at once: prompts and answers in one batch
            paris, other = pool.map(lambda question: ask(url, question),
                                    ["What is the capital of France?", "What is 1 + 1?"])
        assert paris["choices"][0]["message"]["content"] == "The capital of France is Paris."
        assert paris["usage"] == {"prompt_tokens": 37, "completion_tokens": 8, "total_tokens": 45}
        assert other["choices"][0]["message"]["content"]
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
            [prefill, decode] = [line for line in answer.read().decode().splitlines()
                                 if line.startswith("hal_attention_info{")]
        for line in (prefill, decode):
            assert 'backend="ascend"' in line
            assert 'device="npu:ascend910b"' in line
    finally:
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err


def test_without_one_it_says_why_and_loads_nothing() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    done = subprocess.run([sys.executable, "-m", "hal", "serve", "--device", "npu"], cwd=ROOT,
                          env=fake_npu.start(devices=0, environ=clean), capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 2
    assert "device 'npu' is not on this machine: " in done.stderr
    assert "loading" not in done.stderr
