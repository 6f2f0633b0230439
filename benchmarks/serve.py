"""What `hal serve` costs: tokens of the server against the same engine driven directly, by turns.

    python benchmarks/serve.py [--requests 1,8,32] [--prompt 200] [--new-tokens 32] [--rounds 5] [--json FILE]

Both have the default model (or --model DIR) on the CPU with one thread, the same cache, and get the same prompts of
random tokens, greedy. direct: BatchedModel in this process. server: `hal serve` in processes of its own, one
streaming client for each request; its cost is the CPU time of server and worker together, the clients' is not counted.
The rate is new tokens over that time, prompts included: CPU time, to which other work on the machine adds little.
A turn is from the first request to the last token; medians over --rounds. The last column is the CPU time of the
server's own process, without the worker, for each new token: tokenizing, queueing, detokenizing, HTTP.

exit codes: 0 measured; 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil

from hal import default_model
from hal.progress import Progress
from hal.text import table

ROOT = Path(__file__).resolve().parents[1]
CACHE = 1 << 30  # bytes


class Direct:
    name = "direct"

    def __init__(self, folder: Path) -> None:
        from hal.cli_args import AttentionArgs
        from hal.integrations.transformers_batching import BatchedModel

        self.model = BatchedModel(folder, AttentionArgs("cpu"), cache_bytes=CACHE, max_requests=32)
        self.events = self.model.events()

    def turn(self, prompts: list[list[int]], new: int) -> tuple[int, float]:
        """(new tokens, CPU seconds)"""
        from hal.integrations.transformers_batching import Sampling

        begin, tokens, left = time.process_time(), 0, len(prompts)
        for number, prompt in enumerate(prompts):
            self.model.submit(str(number), prompt, Sampling(max_tokens=new))
        while left:
            event = next(self.events)
            tokens += len(event.tokens)
            left -= event.finish is not None
        return tokens, time.process_time() - begin


class Server:
    name = "server"

    def __init__(self, folder: Path) -> None:
        self.own = self.tokens = 0.0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hal", "serve", str(folder), "--device", "cpu", "--port", "0", "--no-spare-worker",
             "--served-model-name", "m", "--kv-cache-memory", str(CACHE)], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1].split("/")[2]
        parent = psutil.Process(self.process.pid)
        self.all = [parent, *parent.children()]

    def turn(self, prompts: list[list[int]], new: int) -> tuple[int, float]:
        begin, own = self._seconds(self.all), self._seconds(self.all[:1])
        with ThreadPoolExecutor(len(prompts)) as pool:
            tokens = sum(pool.map(lambda prompt: self._ask(prompt, new), prompts))
        self.own += self._seconds(self.all[:1]) - own
        self.tokens += tokens
        return tokens, self._seconds(self.all) - begin

    def _seconds(self, processes: list[psutil.Process]) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in processes))

    def _ask(self, prompt: list[int], new: int) -> int:
        connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/v1/completions", json.dumps({
            "model": "m", "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}), {"Content-Type": "application/json"})
        lines = [line for line in connection.getresponse().read().split(b"\n\n") if line]
        connection.close()
        return int(json.loads(lines[-2].removeprefix(b"data: "))["usage"]["completion_tokens"])


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    server = Server(folder)
    ways, random_ = [Direct(folder), server], random.Random(args.seed)
    counts = [int(count) for count in args.requests.split(",")]
    rows = []
    try:
        with Progress(len(counts) * args.rounds * 2) as progress:
            for count in counts:
                server.own = server.tokens = 0.0
                rates: dict[str, list[float]] = {way.name: [] for way in ways}
                for number in range(args.rounds + 1):
                    prompts = [[random_.randrange(1000, 40000) for _ in range(args.prompt)] for _ in range(count)]
                    for way in random_.sample(ways, 2):
                        tokens, seconds = way.turn(prompts, args.new_tokens)
                        if number:  # the first warms up
                            rates[way.name].append(tokens / seconds)
                            progress.step(f"{way.name}, {count} requests")
                median = {name: statistics.median(values) for name, values in rates.items()}
                rows.append({"requests": count, "rates": rates, "median": median,
                             "ratio": median["server"] / median["direct"],
                             "own_ms_per_token": 1000 * server.own / server.tokens})
    finally:
        server.process.terminate()
        server.process.wait(30)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="folder of a model (default: the default model)")
    parser.add_argument("--requests", default="1,8,32", help="how many at once (default: 1,8,32)")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt (default: 200)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens to generate (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    args = parser.parse_args()
    if not all(text.isdecimal() and 1 <= int(text) <= 32 for text in args.requests.split(",")):
        parser.error(f"--requests {args.requests!r}: expected numbers from 1 to 32 with commas")
    folder = default_model.prepare(print) if args.model is None else Path(args.model)
    rows = measure(args, folder)
    print(f"tokens a CPU second, prompts of {args.prompt}, {args.new_tokens} new tokens, median of {args.rounds}, "
          f"seed {args.seed}")
    print(table(("requests", "direct", "server", "server / direct", "ms a token without the worker"), [
        (str(row["requests"]), *(f"{row['median'][name]:.1f}" for name in ("direct", "server")), f"{row['ratio']:.3f}",
         f"{row['own_ms_per_token']:.2f}") for row in rows]))
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
