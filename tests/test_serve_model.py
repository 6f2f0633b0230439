"""`hal serve` with the default model in float32: the OpenAI client, many requests at once, a worker that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serve_machine import until

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[1]
MODEL = "SmolLM2-135M-Instruct"
PROMPTS = ["The capital of France is", "Water boils at", "One, two, three,", "My name is", "def add(a, b):\n",
           "Once upon a time there was a"]
TOKENS = 12
GAP = 1e-3  # of two logits: float32 sums them in another order in another batch


@dataclass
class Serving:
    process: subprocess.Popen[str]
    url: str
    log: list[str]

    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + path, timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in self.get("/metrics").splitlines()
                   if re.match(rf"{name}[ {{]", line))

    def healthy(self) -> bool:
        try:
            return bool(json.loads(self.get("/health"))["status"] == "ok")
        except OSError:
            return False

    def workers(self) -> list[int]:
        """Process ids of the workers that served, in order."""
        return [int(number) for line in self.log for number in re.findall(r"worker (\d+) serves", line)]


@pytest.fixture(scope="module")
def serving(default_model: Path) -> Iterator[Serving]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "hal", "-v", "serve", "--device", "cpu", "--dtype", "float32", "--port", "0",
         "--kv-cache-memory", "512MiB"],
        cwd=ROOT, env={**environ, "HAL_CACHE_DIR": str(default_model.parent)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    reading = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reading.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"hal: {MODEL} is served at http://127.0.0.1:"), "".join(log)
    yield Serving(process, line.split()[-1], log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, "".join(log)
    assert process.stdout.read() == ""


def test_the_decision_comes_first(serving: Serving) -> None:
    until(lambda: bool(serving.workers()))
    at = {text: next(i for i, line in enumerate(serving.log) if text in line) for text in (
        f"model: {MODEL}, float32, on cpu:", "[full] attention on cpu:", "[full] prefill runs ", "[full] decode runs ",
        "loading the weights from ", " serves after ")}
    assert list(at.values()) == sorted(at.values())
    [backend] = re.findall(r"\[full\] attention on \S+: (\w+)", "".join(serving.log))
    assert re.search(rf'hal_attention_info\{{backend="{backend}",device="cpu:\w+",dtype="float32",kind="full",',
                     serving.get("/metrics"))


def test_the_openai_client(serving: Serving) -> None:
    client = serving.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 20, "messages": [
        {"role": "user", "content": "What is the capital of France?"}]}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)  # with the end token
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The capital of France is Paris."
    assert len(chunks) > 5  # token by token
    assert chunks[-1].usage.completion_tokens == 8
    stopped = client.chat.completions.create(**asked, stop=[" is Par"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("The capital of France", "stop")


def test_errors_reach_the_openai_client(serving: Serving) -> None:
    import openai

    client = serving.client()
    with pytest.raises(openai.BadRequestError, match="n 2 is not supported by this server"):
        client.chat.completions.create(model=MODEL, n=2, messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4' is not served here"):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError, match="together more than the 8192 tokens"):
        client.completions.create(model=MODEL, prompt="Hi", max_tokens=10**9)


def _greedy(serving: Serving, prompt: str) -> str:
    return str(serving.client().completions.create(model=MODEL, prompt=prompt, max_tokens=TOKENS, temperature=0)
               .choices[0].text)


def test_32_at_once(serving: Serving, default_model: Path) -> None:
    """Each of them ends right whatever the others do; greedy ones say what they say alone."""
    alone = {prompt: _greedy(serving, prompt) for prompt in PROMPTS}
    before = serving.metric("hal_worker_restarts_total")

    def sampled(number: int) -> None:
        answer = serving.client().completions.create(
            model=MODEL, prompt=PROMPTS[number % 6], max_tokens=TOKENS, temperature=0.3 + number / 10, seed=number,
            top_p=1 - number / 20, extra_body={"top_k": 5 * number})
        assert answer.choices[0].finish_reason in ("length", "stop")
        assert 1 <= answer.usage.completion_tokens <= TOKENS

    def aborted(number: int) -> None:
        with serving.client().completions.create(model=MODEL, prompt=PROMPTS[number], max_tokens=4000, temperature=1,
                                                 stream=True) as stream:
            for _ in zip(range(3), stream):
                pass

    def stopped(number: int) -> None:
        word = alone[PROMPTS[number]].split()[1]
        choice = serving.client().completions.create(model=MODEL, prompt=PROMPTS[number], max_tokens=TOKENS,
                                                     temperature=0, stop=word).choices[0]
        assert choice.finish_reason == "stop"
        assert alone[PROMPTS[number]].partition(word)[0] == choice.text

    def absurd() -> None:
        import openai

        with pytest.raises(openai.BadRequestError):
            serving.client().completions.create(model=MODEL, prompt=list(range(100)) * 100, max_tokens=1)

    with ThreadPoolExecutor(32) as pool:
        greedy = [(prompt, pool.submit(_greedy, serving, prompt)) for prompt in PROMPTS * 2]
        others = [pool.submit(sampled, number) for number in range(10)]
        others += [pool.submit(aborted, number) for number in range(6)]
        others += [pool.submit(stopped, number) for number in range(3)]
        others += [pool.submit(absurd)]
        assert len(greedy) + len(others) == 32
        for each in others:
            each.result()
        for prompt, each in greedy:
            if each.result() != alone[prompt]:
                _check_tie(default_model, prompt, alone[prompt], each.result())
    until(lambda: serving.metric("hal_requests_running") == serving.metric("hal_requests_queued") == 0)
    until(lambda: serving.metric("hal_kv_cache_used_ratio") == 0)
    assert serving.metric("hal_worker_restarts_total") == before
    assert re.search(r'outcome="client_gone"\} [6-9]', serving.get("/metrics"))


def _check_tie(folder: Path, prompt: str, one: str, other: str) -> None:
    """Greedy answers may part only where the two best logits are closer than GAP, by transformers' own attention."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    begin = ids.shape[1]
    with torch.inference_mode():
        for _ in range(TOKENS):
            best = model(ids).logits[0, -1].topk(2)
            if float(best.values[0] - best.values[1]) < GAP:
                return
            ids = torch.cat([ids, best.indices[None, :1]], 1)
            text = tokenizer.decode(ids[0, begin:], skip_special_tokens=True)
            assert all(each.startswith(text) for each in (one, other)), f"{one!r} and {other!r} part without a tie"


def test_the_check_of_ties_can_fail(default_model: Path) -> None:
    with pytest.raises(AssertionError, match="part without a tie"):
        _check_tie(default_model, PROMPTS[0], " Paris.", " London.")


def test_a_killed_worker_loses_what_ran_and_nothing_else(serving: Serving) -> None:
    import openai

    until(lambda: bool(serving.workers()))
    worker = serving.workers()[-1]
    stream = serving.client().completions.create(model=MODEL, prompt="Once", max_tokens=4000, stream=True)
    next(iter(stream))
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(openai.APIError, match=r"the engine's process ended \(SIGKILL\)"):
        list(stream)
    answer = serving.client().completions.create(model=MODEL, prompt=PROMPTS[0], max_tokens=2, temperature=0)
    assert answer.choices[0].text == " Paris."
    assert serving.healthy()
    assert serving.workers()[-1] != worker
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, 0)
        raise AssertionError("the dead worker is still there")
