"""An engine for tests of the server: deterministic, no model, the interface of hal.serving.worker.Engine.

It "generates" tokens of the prompt's own text in turn, or those it is told; one batch a step for all that run. A prompt
that holds one of the words below does what the word says.

    die      kills the process (SIGKILL) after two tokens
    crash    raises in the engine's own thread
    stuck    the engine hangs: nothing for anybody any more
    freeze   the same after two tokens
    broken   fails alone, with a text that holds a path
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Event = tuple[str, list[int], "str | None", "str | None"]


def preload(**arguments: Any) -> None:
    if arguments.get("preload_fails"):
        raise ValueError("the preload was told to fail")


def load(folder: str, step: float = 0.0, fails: str = "", kills: str = "", cache_tokens: int = 4096,
         load_seconds: float = 0.0, **_: Any) -> Double:
    """fails: a text to fail with when loading; kills: a file that, while it is there, makes loading end the process."""
    time.sleep(load_seconds)
    if fails:
        raise RuntimeError(fails)
    if kills and Path(kills).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return Double(folder, step, cache_tokens)


class Double:
    def __init__(self, folder: str, step: float, cache_tokens: int) -> None:
        from tokenizers import Tokenizer

        self.words = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.step, self.cache_tokens = step, cache_tokens
        self.running: dict[str, tuple[list[int], dict[str, Any], int]] = {}
        self.cancelled: list[str] = []
        self.steps = 0
        self.lock = threading.Condition()
        self.log = os.environ.get("HAL_TEST_SERVE_LOG")

    def _note(self, line: str) -> None:
        if self.log:
            with open(self.log, "a") as file:
                file.write(line + "\n")

    def submit(self, request_id: str, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        if len(prompt_ids) + sampling["max_tokens"] > self.cache_tokens:
            raise ValueError(f"{len(prompt_ids)} + {sampling['max_tokens']} tokens do not fit {self.cache_tokens}")
        self._note(f"submit {request_id} {sampling}")
        with self.lock:
            self.running[request_id] = (prompt_ids, sampling, 0)
            self.lock.notify()

    def cancel(self, request_id: str) -> None:
        with self.lock:
            if self.running.pop(request_id, None) is not None:
                self._note(f"cancel {request_id}")
                self.cancelled.append(request_id)
                self.lock.notify()

    def events(self) -> Iterator[Event]:
        while True:
            with self.lock:
                while not self.running and not self.cancelled:
                    self.lock.wait()
                hangs = any(self._hangs(*request) for request in self.running.values())
            while hangs:
                time.sleep(60)
            with self.lock:
                batch = [event for request_id in list(self.running) for event in self._next(request_id)]
                batch += [(request_id, [], "cancelled", None) for request_id in self.cancelled]
                self.cancelled.clear()
            self.steps += 1
            yield from batch
            time.sleep(max(self.step, 0.001))

    def _hangs(self, prompt: list[int], sampling: dict[str, Any], done: int) -> bool:
        text = self.words.decode(prompt)
        return "stuck" in text or (done == 2 and "freeze" in text)

    def _next(self, request_id: str) -> Sequence[Event]:
        prompt, sampling, done = self.running[request_id]
        text = self.words.decode(prompt)
        if "broken" in text:
            del self.running[request_id]
            return [(request_id, [], None, f"/some/path/{request_id}: no such kernel")]
        if done == 2 and "die" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == 2 and "crash" in text:
            raise RuntimeError("the double was told to crash")
        token = prompt[(done + (sampling["seed"] or 0)) % len(prompt)]
        end = done + 1 == sampling["max_tokens"]
        if end:
            del self.running[request_id]
        else:
            self.running[request_id] = (prompt, sampling, done + 1)
        return [(request_id, [token], "length" if end else None, None)]

    def stats(self) -> dict[str, Any]:
        return {"max_length": self.cache_tokens, "steps": self.steps, "cache_tokens": self.cache_tokens,
                "cache_used": min(1.0, len(self.running) / 32)}
