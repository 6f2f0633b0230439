"""A long run of `hal serve` with the default model on the CPU: mixed requests without end, and memory that stays flat.

    .venv/bin/python ci/soak_serve.py --minutes 10

Eight clients ask all the time: chat and completions, streamed or not, greedy and sampled, with stop strings, some left
midway, some wrong. Every answer is checked for its shape, and greedy ones for their text (memory that is trampled on
shows there). Memory is that of the server's and of the worker's process alone (USS), every two seconds. Flat means: the
median of the last quarter is at most GROWTH above that of the second quarter (the first warms up), for each of them;
open files must not grow at all. The last line is PASSED or FAILED: reason; exit code 0 or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
CLIENTS = 8
GROWTH = 0.03  # and at least 8 MiB: what the allocator keeps in hand comes and goes
WORDS = ("The capital of France is", "Once upon a time", "def main():", "One, two, three,", "Dear Sir or Madam",
         "\U0001f600 \u4f60\u597d na\u00efve")


class Soak:
    def __init__(self, url: str, model: str, seed: int) -> None:
        self.address, self.model, self.seed = url.removeprefix("http://").partition("/")[0], model, seed
        self.outcomes: Counter[str] = Counter()
        self.greedy: dict[str, str] = {}
        self.faults: list[str] = []
        self.over = threading.Event()
        self.lock = threading.Lock()

    def client(self, number: int) -> None:
        random_ = random.Random(self.seed * 1000 + number)
        kinds = (self.greedily, self.sampled, self.streamed, self.left, self.wrong, self.chat)
        while not self.over.is_set():
            kind = random_.choice(kinds)
            try:
                kind(random_)
                outcome = kind.__name__
            except (OSError, http.client.HTTPException, AssertionError, ValueError, KeyError, IndexError) as error:
                outcome = "fault"
                with self.lock:
                    self.faults.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            with self.lock:
                self.outcomes[outcome] += 1

    def post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        return self.asked(path, body).getresponse()

    def asked(self, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.address, timeout=300)
        connection.request("POST", path, json.dumps({"model": self.model, **body}),
                           {"Content-Type": "application/json", "Connection": "close"})
        return connection

    def fill_the_cache(self) -> None:
        """One request over all pages: memory that is touched for the first time is no leak."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request("GET", "/v1/models")
        most = json.load(connection.getresponse())["data"][0]["max_model_len"]
        connection.close()
        random_ = random.Random(self.seed)
        prompt = [random_.randrange(1000, 40000) for _ in range(most - 1)]
        with self.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}) as answer:
            assert json.load(answer)["usage"]["total_tokens"] == most

    def greedily(self, random_: random.Random) -> None:
        prompt = random_.choice(WORDS)
        with self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0}) as answer:
            text = json.load(answer)["choices"][0]["text"]
        with self.lock:
            known = self.greedy.setdefault(prompt, text)
        assert text == known, f"{prompt!r}: {text!r}, before {known!r}"

    def sampled(self, random_: random.Random) -> None:
        with self.post("/v1/completions", {
                "prompt": random_.choice(WORDS) * random_.randrange(1, 60), "max_tokens": random_.randrange(1, 30),
                "temperature": random_.uniform(0.1, 2), "top_p": random_.uniform(0.1, 1),
                "top_k": random_.randrange(50), "stop": ["\n\n", "."]}) as answer:
            assert json.load(answer)["choices"][0]["finish_reason"] in ("stop", "length")

    def chat(self, random_: random.Random) -> None:
        with self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": random_.choice(WORDS)}],
                                                "max_tokens": 20, "seed": random_.randrange(9)}) as answer:
            assert json.load(answer)["choices"][0]["message"]["role"] == "assistant"

    def streamed(self, random_: random.Random) -> None:
        asked = {"prompt": random_.choice(WORDS), "max_tokens": 16, "stream": True}
        with self.post("/v1/completions", asked) as answer:
            lines = answer.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""], lines[-2:]

    def left(self, random_: random.Random) -> None:
        stream = random_.random() < 0.7
        connection = self.asked("/v1/completions", {"prompt": random_.choice(WORDS), "max_tokens": 2000,
                                                    "stream": stream})
        if stream:
            with connection.getresponse() as answer:
                for _ in range(random_.randrange(4)):
                    answer.readline()
        else:
            time.sleep(random_.random())
        connection.close()

    def wrong(self, random_: random.Random) -> None:
        bad = random_.choice([{"n": 5}, {"max_tokens": 10**7}, {"nonsense": "x" * 1000}, {"temperature": 9}])
        with self.post("/v1/completions", {"prompt": "Hi", **bad}) as answer:
            assert (answer.status, "error" in json.load(answer)) == (400, True)


def watch(processes: dict[str, psutil.Process], end: float) -> dict[str, list[tuple[int, int]]]:
    """Name -> (bytes, open files), every two seconds."""
    seen: dict[str, list[tuple[int, int]]] = {name: [] for name in processes}
    told = time.monotonic()
    while time.monotonic() < end:
        time.sleep(2)
        for name, process in processes.items():
            seen[name].append((process.memory_full_info().uss, process.num_fds()))
        if time.monotonic() - told > 30:
            told = time.monotonic()
            memory = ", ".join(f"{name} {rows[-1][0] >> 20} MiB" for name, rows in seen.items())
            print(f"{end - told:.0f} s left: {memory}", file=sys.stderr, flush=True)
    return seen


def flat(name: str, rows: list[tuple[int, int]]) -> str | None:
    """None, or in which way it is not."""
    quarter = len(rows) // 4
    before, after = rows[quarter:2 * quarter], rows[-quarter:]
    memory = [statistics.median(row[0] for row in part) for part in (before, after)]
    files = [min(row[1] for row in part) for part in (before, after)]
    print(f"{name}: {memory[0] / 2**20:.1f} MiB in the second quarter, {memory[1] / 2**20:.1f} in the last; "
          f"open files {files[0]} and {files[1]} at least")
    if memory[1] - memory[0] > max(GROWTH * memory[0], 8 << 20):
        return f"the memory of the {name} grew by {(memory[1] - memory[0]) / 2**20:.1f} MiB"
    return f"the open files of the {name} grew from {files[0]} to {files[1]}" if files[1] > files[0] else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31), help="repeat a run")
    args = parser.parse_args()
    # float32: in bfloat16 the two best tokens are often equal, and the batch decides between them.
    process = subprocess.Popen([sys.executable, "-m", "hal", "serve", "--device", "cpu", "--port", "0",
                                "--dtype", "float32", "--kv-cache-memory", "128MiB"],
                               cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        if not line:
            print("FAILED: the server did not start")
            return 1
        soak = Soak(line[-1], line[1], args.seed)
        server = psutil.Process(process.pid)
        worker = max(server.children(), key=lambda child: child.memory_info().rss)
        soak.fill_the_cache()
        clients = [threading.Thread(target=soak.client, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            seen = watch({"server": server, "worker": worker}, time.monotonic() + args.minutes * 60)
        finally:
            soak.over.set()
            for client in clients:
                client.join()
        print(f"seed {args.seed}, {args.minutes:g} minutes, {sum(soak.outcomes.values())} requests: "
              f"{dict(sorted(soak.outcomes.items()))}")
        problems = [problem for name, rows in seen.items() if (problem := flat(name, rows))]
        problems += soak.faults[:5]
        if len(soak.greedy) < len(WORDS):
            problems.append("too short a run: not every greedy prompt was asked")
    except psutil.NoSuchProcess as error:
        problems = [f"process {error.pid} ended: the worker was lost"]
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
    if process.returncode != 0:
        problems.append(f"the server ended with exit code {process.returncode}")
    print(f"FAILED: {'; '.join(problems)}" if problems else "PASSED")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
