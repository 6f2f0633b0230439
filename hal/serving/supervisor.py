"""The worker processes: one serves, one may be kept warm to take its place, and what dies is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from hal.serving.channel import LONGEST, encode
from hal.serving.settings import Settings

logger = logging.getLogger("hal.serving")

Send = Callable[[dict[str, Any]], None]

PAUSE = 1.0  # seconds before the next try, times the tries so far
TRIES = 3  # workers in a row that did not come to serve, or did nothing when they did, before the server gives up
STEADY = 60.0  # seconds after which a worker has served, also without a token
_CODE = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hal.serving.worker import main; "
         "main(*json.loads(sys.argv[2]))")


class StartError(Exception):
    """A worker could not be brought to serve. wrong: an argument is to blame, not the machine."""

    def __init__(self, text: str, wrong: bool = False) -> None:
        super().__init__(text)
        self.wrong = wrong


class Worker:
    """The server's end of one worker process."""

    def __init__(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader,
                 writer: asyncio.StreamWriter) -> None:
        self.process, self.reader, self.writer = process, reader, writer

    @classmethod
    async def start(cls, settings: Settings) -> Worker:
        """A process that makes itself warm."""
        ours, theirs = socket.socketpair()
        # The same import path as here; no key in the environment of what runs a model; a session of its own, so that
        # Ctrl-C comes to the server alone; what a package prints goes to stderr.
        environ = {name: value for name, value in os.environ.items() if name != "HAL_API_KEY"}
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CODE, json.dumps(sys.path),
                json.dumps([theirs.fileno(), settings.preload, dict(settings.arguments)]), pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL, stdout=2, env=environ, start_new_session=True)
        reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
        return cls(process, reader, writer)

    def send(self, message: dict[str, Any]) -> None:
        """Never waits. What is sent to a worker that has died is lost; that it died is told in its own way."""
        self.writer.write(encode(message))

    async def receive(self) -> dict[str, Any] | None:
        """The next message, None when the process has ended."""
        try:
            line = await self.reader.readline()
        except ConnectionError:
            return None
        return dict(json.loads(line)) if line.endswith(b"\n") else None

    async def load(self, settings: Settings) -> dict[str, Any]:
        """Make it serve: its first stats. Raises StartError."""
        self.send({"do": "load", "engine": settings.engine, "arguments": dict(settings.arguments)})
        while (message := await self.receive()) is not None:
            if message["is"] == "ready":
                return dict(message["stats"])
            if message["is"] == "failed":
                raise StartError(str(message["error"]), bool(message["wrong"]))
        raise StartError(f"the worker ended while it loaded the model ({await self.ended()})")

    async def ended(self) -> str:
        """Wait for the end, and say how it came. A process that has closed its socket but lives on is killed."""
        waiting = asyncio.ensure_future(self.process.wait())
        if not (await asyncio.wait({waiting}, timeout=2))[0]:
            self.kill()
        code = await waiting
        self.writer.close()
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class Supervisor:
    """run() keeps a worker serving until it is cancelled. on_ready(send, stats), on_message(message), on_end(why)."""

    def __init__(self, settings: Settings, on_ready: Callable[[Send, dict[str, Any]], None],
                 on_message: Callable[[dict[str, Any]], None], on_end: Callable[[str], None]) -> None:
        self.settings = settings
        self.on_ready, self.on_message, self.on_end = on_ready, on_message, on_end
        self.worker: Worker | None = None
        self.spare: Worker | None = None

    async def run(self) -> None:
        """Raises StartError when the first worker does not come to serve, or TRIES later ones in a row fail: they don't
        come to serve, or end before they gave a token or lived for STEADY seconds."""
        failures, first = 0, True
        try:
            while True:
                since = time.monotonic()
                self.worker, self.spare = self.spare or await Worker.start(self.settings), None
                try:
                    stats = await self.worker.load(self.settings)
                except StartError as error:
                    failures += 1
                    await self._end(self.worker)
                    if first:
                        raise
                    if failures == TRIES:  # what the first one was told was right
                        raise StartError(str(error)) from error
                    logger.warning("a worker could not start (%d of %d): %s", failures, TRIES, error)
                    await asyncio.sleep(PAUSE * failures)
                    continue
                first, ready, useful = False, time.monotonic(), False
                logger.info("worker %d serves after %.2f s", self.worker.process.pid, time.monotonic() - since)
                self.on_ready(self.worker.send, stats)
                if self.settings.spare_worker:
                    self.spare = await Worker.start(self.settings)
                while (message := await self.worker.receive()) is not None:
                    useful = useful or any(tokens for _, tokens, *_ in message.get("events", ()))
                    self.on_message(message)
                why = await self.worker.ended()
                logger.warning("worker %d ended (%s)", self.worker.process.pid, why)
                self.on_end(why)
                failures = 0 if useful or time.monotonic() - ready > STEADY else failures + 1
                if failures == TRIES:
                    raise StartError(f"{TRIES} workers in a row ended before one gave a token (the last: {why})")
                await asyncio.sleep(PAUSE * failures)
        finally:
            for worker in filter(None, (self.worker, self.spare)):
                await self._end(worker)

    def kill(self, why: str) -> None:
        """End a worker that hangs; run() makes another."""
        if self.worker is not None:
            logger.warning("worker %d is killed: %s", self.worker.process.pid, why)
            self.worker.kill()

    async def _end(self, worker: Worker) -> None:
        worker.kill()
        await worker.process.wait()
        worker.writer.close()
