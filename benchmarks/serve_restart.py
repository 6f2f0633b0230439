"""How soon `hal serve` answers again after its worker was killed (SIGKILL), with the default model on this machine.

    .venv/bin/python benchmarks/serve_restart.py --kills 4 --pause 30
    .venv/bin/python benchmarks/serve_restart.py --json docs/evidence/bench-serve-restart-DATE.json

Seconds from the kill to the end of the first answer (4 tokens) of the new worker; a client asks every 20 ms. The worker
is the child that holds the model: the largest. Memory is USS: the server's own process, its worker, its spares.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
LIMIT = 60.0


def ask(url: str, model: str) -> None:
    body = {"model": model, "prompt": "One two three", "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(url + "/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT) as answer:
        answer.read()


def back_after_kill(url: str, model: str, server: psutil.Process) -> dict[str, Any]:
    children = sorted(server.children(recursive=True), key=lambda child: -child.memory_info().rss)
    uss = [round(process.memory_full_info().uss / 2 ** 20) for process in (server, *children)]
    load = os.getloadavg()[0]
    children[0].kill()
    begin = time.monotonic()
    while True:
        try:
            ask(url, model)
        except urllib.error.HTTPError:
            if time.monotonic() - begin > LIMIT:
                raise
            time.sleep(0.02)
        else:
            return {"seconds": round(time.monotonic() - begin, 2), "load": round(load, 1),
                    "mib": {"server": uss[0], "worker": uss[1], "spares": uss[2:]}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=4, help="how many times (default: 4)")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds before each kill (default: 30)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    options = parser.parse_args()
    server = subprocess.Popen([sys.executable, "-m", "hal", "serve", "--port", "0"], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        with urllib.request.urlopen(url + "/models", timeout=LIMIT) as answer:
            model = json.load(answer)["data"][0]["id"]
        ask(url, model)
        found = []
        for _ in range(options.kills):
            time.sleep(options.pause)
            found.append(back_after_kill(url, model, psutil.Process(server.pid)))
            print(json.dumps(found[-1]), flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(LIMIT)
    if options.json:
        options.json.write_text(json.dumps({"date": datetime.date.today().isoformat(), "pause": options.pause,
                                            "kills": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
