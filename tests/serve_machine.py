"""A server for tests: in this process with the engine of serve_double.py, and plain HTTP to talk to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.serving.prompts import Prompts
from hal.serving.server import Server, listen
from hal.serving.settings import Settings

NAME = "double"


@dataclass
class Reply:
    """A whole answer. json() raises where it is none."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of server-sent events, [DONE] as a string."""
        parts = self.body.decode().split("\n\n")
        assert parts[-1] == "", "the stream ends within an event"
        data = [part.removeprefix("data: ") for part in parts[:-1]]
        return [text if text == "[DONE]" else json.loads(text) for text in data]


class Machine:
    """A running server. Use as a context; arguments are fields of Settings, `double` those of serve_double.load."""

    def __init__(self, folder: Path, prompts: Prompts, double: dict[str, Any] | None = None, **settings: Any) -> None:
        self.settings = Settings(**{"name": NAME, "folder": folder, "engine": "serve_double:load", "port": 0,
                                    "arguments": {"folder": str(folder), **(double or {})}, "spare_worker": False,
                                    **settings})
        self.listener = listen(self.settings.host, self.settings.port)
        self.port = self.listener.getsockname()[1]
        self.prompts = prompts
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def main() -> None:
            self.server = Server(self.settings, self.prompts, self.listener)
            await self.server.serve_all()

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  the test reads it
            self.failed = error

    def __enter__(self) -> Machine:
        self.thread.start()
        until(lambda: self.failed is not None or self.healthy())
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server does not end"
        self.listener.close()

    def healthy(self) -> bool:
        try:
            return self.get("/health").status == 200
        except OSError:
            return False

    @property
    def worker(self) -> int:
        """The process id of the worker."""
        assert self.server.supervisor.worker is not None
        return self.server.supervisor.worker.process.pid

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """body: bytes as they are, anything else as JSON."""
        connection = self.connect()
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            return _reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, headers)

    def complete(self, prompt: str, max_tokens: int = 5, **more: Any) -> Reply:
        return self.ask("POST", "/v1/completions", {"model": NAME, "prompt": prompt, "max_tokens": max_tokens, **more})

    def chat(self, text: str, max_tokens: int = 5, **more: Any) -> Reply:
        return self.ask("POST", "/v1/chat/completions", {
            "model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, **more})

    def metrics(self) -> dict[str, float]:
        """Series with labels -> value."""
        lines = self.get("/metrics").body.decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's series that have all these values of labels."""
        return sum(value for series, value in self.metrics().items()
                   if re.fullmatch(rf"{name}(\{{.*\}})?", series) and all(f'"{label}"' in series for label in labels))


def _reply(response: http.client.HTTPResponse) -> Reply:
    return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def until(met: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition. Fails when it does not come."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)


def lines(response: http.client.HTTPResponse) -> Iterator[Any]:
    """Events of a stream as they come; ends where it does."""
    while line := response.readline():
        if line.startswith(b"data: "):
            text = line[6:].strip()
            yield "[DONE]" if text == b"[DONE]" else json.loads(text)
