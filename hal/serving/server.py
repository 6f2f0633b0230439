"""run(settings): listen, start the worker, serve until a signal, end in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from hal.serving import app
from hal.serving.dispatch import Dispatcher
from hal.serving.errors import ApiError
from hal.serving.guard import is_loopback
from hal.serving.metrics import Metrics
from hal.serving.prompts import Prompts
from hal.serving.settings import Settings
from hal.serving.supervisor import Send, StartError, Supervisor

logger = logging.getLogger("hal.serving")

_ENDING = ApiError(503, "the server is shutting down", code="shutdown", headers={"Retry-After": "5"})


def run(settings: Settings) -> int:
    """Serve until SIGTERM (0) or SIGINT (130). The line that says where goes to stdout once the model can answer.

    Raises ValueError where nothing can listen there, the tokenizer can't be read or the worker says that an argument is
    wrong; RuntimeError where no worker can be brought to serve.
    """
    listener = listen(settings.host, settings.port)
    try:
        return asyncio.run(_serve(settings, Prompts(settings.folder), listener))
    except StartError as error:
        raise (ValueError if error.wrong else RuntimeError)(str(error)) from None
    finally:
        listener.close()


async def _serve(settings: Settings, prompts: Prompts, listener: socket.socket) -> int:
    server = Server(settings, prompts, listener)
    for name in (signal.SIGINT, signal.SIGTERM):  # before uvicorn has them, and after: it raises them once more
        signal.signal(name, server.handle_exit)
    return await server.serve_all()


def listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                             flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: can't listen there ({error.strerror or error})") from None
    return listener


class Server(uvicorn.Server):
    """uvicorn, which owns the signals, beside the supervisor. serve_all() is all there is to call."""

    def __init__(self, settings: Settings, prompts: Prompts, listener: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings, self.listener = settings, listener
        self.metrics = Metrics(settings.labels)
        self.supervisor = Supervisor(settings, self._ready, self._message, self._ended)
        self.dispatcher = Dispatcher(
            settings.max_running, settings.max_queue, settings.request_timeout, settings.hang_timeout, self.metrics,
            lambda: self.supervisor.kill(f"with requests to serve it made no step for {settings.hang_timeout:g} s "
                                         "(--hang-timeout)"))
        self.service = app.Service(settings, prompts, self.dispatcher, self.metrics)
        self.got: int | None = None  # the first signal
        self.told = False
        check_host = settings.api_key is None and is_loopback(settings.host)
        super().__init__(uvicorn.Config(
            app.build(self.service, check_host), log_config=None, access_log=False, lifespan="off", http="h11",
            ws="none", server_header=False, proxy_headers=False, backlog=2048,
            # Requests get the error of _deadline first; this is for clients that do not read it.
            timeout_graceful_shutdown=int(settings.shutdown_timeout) + 2))

    async def serve_all(self) -> int:
        """Raises StartError."""
        supervising = asyncio.ensure_future(self.supervisor.run())
        supervising.add_done_callback(self._gave_up)
        await self.serve([self.listener])
        supervising.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervising
        return 130 if self.got == signal.SIGINT else 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.got is None:
            self.got = sig
            _say(f"{signal.Signals(sig).name}: ending; what runs has {self.settings.shutdown_timeout:g} s")
            self._end()
        super().handle_exit(sig, frame)  # the second SIGINT ends at once

    def _end(self) -> None:
        self.service.state = "shutting down"
        loop = self.loop  # this is a signal's handler: the loop must be woken
        loop.call_soon_threadsafe(self.dispatcher.close, _ENDING)
        loop.call_soon_threadsafe(loop.call_later, self.settings.shutdown_timeout, self.dispatcher.close, _ENDING, True)

    def _gave_up(self, supervising: asyncio.Future[None]) -> None:
        if not supervising.cancelled():
            self.should_exit = True
            self.dispatcher.close(ApiError(503, "the engine can't be started", code="shutdown"), running=True)

    def _ready(self, send: Send, stats: dict[str, Any]) -> None:
        self.service.capacity = int(stats["max_length"])
        self.dispatcher.on_stats(stats)
        self.dispatcher.worker_came(send)
        if not self.told:
            self.told = True
            self.service.state = "restarting"  # what /health says whenever there is no worker from now on
            host, port = self.listener.getsockname()[:2]
            print(f"hal: {self.settings.name} is served at http://{f'[{host}]' if ':' in host else host}:{port}/v1",
                  flush=True)

    def _message(self, message: dict[str, Any]) -> None:
        if message["is"] == "taken":
            self.dispatcher.on_taken(message["id"])
            return
        if message["is"] == "refused":
            self.dispatcher.on_refused(message["id"], message["error"])
            return
        self.dispatcher.on_stats(message["stats"])
        if message["is"] == "tokens":
            self.dispatcher.on_events(message["events"])

    def _ended(self, why: str) -> None:
        self.metrics.worker_restarts.inc()
        self.dispatcher.worker_went(why)


def _say(line: str) -> None:
    print(f"hal: {line}", file=sys.stderr, flush=True)
