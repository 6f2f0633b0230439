"""The worker: a process that loads the model, runs the engine and says over its socket what comes out.

It is born a spare: it imports what takes time, says "warm", and waits for the word "load". When the socket closes, the
server is gone, and so is the worker. An engine that raises ends the process: the supervisor makes another.

From the server: load {engine, arguments}; submit {id, prompt, sampling}; cancel {id}.
To the server: warm; ready {stats}; failed {error, wrong}, wrong telling a bad argument from a broken machine;
taken {id}; refused {id, error}; tokens {events: [[id, tokens, finish_reason, error]], stats}; stats {stats}.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Protocol

from hal.serving.channel import Channel

STATS_EVERY = 1.0  # seconds
BROKEN = 70  # exit code: the engine raised


# (request_id, new tokens, finish_reason or None, error or None); the one with a reason or an error is a request's last.
Event = tuple[str, list[int], "str | None", "str | None"]


class Engine(Protocol):
    """What the function named by Settings.engine returns. submit and cancel may be called from another thread."""

    def submit(self, request_id: str, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        """Begin a request. ValueError is about this request alone; anything else ends the worker."""

    def cancel(self, request_id: str) -> None:
        """Forget a request; one that is not known is no error."""

    def events(self) -> Iterator[Event]:
        """What comes out, for ever: finish_reason is "stop", "length", or another for a request that was cancelled.
        Each request gets one event with a reason or an error, a cancelled one too: until then it is work to do."""

    def stats(self) -> dict[str, Any]:
        """max_length: the most tokens of one request; cache_tokens: of all together; cache_used: 0 to 1; steps: a
        number that changes with each step, also one that gives no token. Must not wait for a step."""


def main(fd: int, preload: str | None, arguments: dict[str, Any]) -> NoReturn:
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    channel = Channel(sock)
    if preload is not None:
        try:
            _function(preload)(**arguments)
        except (ValueError, ImportError, OSError, RuntimeError) as error:
            _fail(channel, error)
    channel.send({"is": "warm"})
    messages = iter(channel)
    first = next(messages, None)
    if first is not None:
        _serve(channel, messages, _load(channel, first))
    os._exit(0)


def _load(channel: Channel, message: dict[str, Any]) -> Engine:
    try:
        engine: Engine = _function(message["engine"])(**message["arguments"])
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        _fail(channel, error)
    channel.send({"is": "ready", "stats": engine.stats()})
    return engine


def _fail(channel: Channel, error: Exception) -> NoReturn:
    traceback.print_exc()
    text = " ".join(str(error).split()) or type(error).__name__
    channel.send({"is": "failed", "error": text, "wrong": not isinstance(error, RuntimeError)})
    os._exit(BROKEN)


def _serve(channel: Channel, messages: Iterator[dict[str, Any]], engine: Engine) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    for work in ((_gather, engine, events), (_tell_events, engine, events), (_tell_stats, engine)):
        threading.Thread(target=_or_die, args=(work[0], channel, *work[1:]), daemon=True).start()
    _or_die(_obey, channel, engine, messages)


def _obey(channel: Channel, engine: Engine, messages: Iterator[dict[str, Any]]) -> None:
    for message in messages:
        if message["do"] == "cancel":
            engine.cancel(message["id"])
            continue
        try:
            engine.submit(message["id"], message["prompt"], message["sampling"])
        except ValueError as error:
            channel.send({"is": "refused", "id": message["id"], "error": str(error)})
        else:
            channel.send({"is": "taken", "id": message["id"]})


def _gather(channel: Channel, engine: Engine, events: SimpleQueue[Event]) -> None:
    for event in engine.events():
        events.put(event)
    raise RuntimeError("the engine's events ended")


def _tell_events(channel: Channel, engine: Engine, events: SimpleQueue[Event]) -> None:
    """All that has come since the last message goes in one."""
    while True:
        batch = [events.get()]
        with contextlib.suppress(Empty):
            while True:
                batch.append(events.get_nowait())
        channel.send({"is": "tokens", "events": batch, "stats": engine.stats()})


def _tell_stats(channel: Channel, engine: Engine) -> None:
    while True:
        time.sleep(STATS_EVERY)
        channel.send({"is": "stats", "stats": engine.stats()})


def _or_die(work: Callable[..., None], channel: Channel, *arguments: Any) -> None:
    try:
        work(channel, *arguments)
    except ConnectionError:  # the server has closed the socket
        os._exit(0)
    except BaseException:  # noqa: BLE001  whatever it is, it must not be a thread that silently is no more
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
