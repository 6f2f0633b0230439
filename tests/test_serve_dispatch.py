"""What `hal serve` does with requests and workers that go wrong, piece by piece: no HTTP, no model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from hal.cli_args import json_object
from hal.serving import protocol, supervisor
from hal.serving.app import _Observed
from hal.serving.dispatch import Dispatcher
from hal.serving.errors import ApiError
from hal.serving.guard import Guard
from hal.serving.metrics import Metrics
from hal.serving.settings import Settings

STATS = {"cache_tokens": 100, "cache_used": 0.0, "steps": 0}


class Bench:
    """A dispatcher with a worker that only notes what it is sent."""

    def __init__(self, hang: float = 60.0, timeout: float = 60.0, **limits: Any) -> None:
        self.hung: list[float] = []
        self.sent: list[dict[str, Any]] = []
        self.metrics = Metrics(())
        self.dispatcher = Dispatcher(**{"max_running": 4, "max_queue": 9, **limits}, timeout=timeout, hang=hang,
                                     metrics=self.metrics, on_hung=lambda: self.hung.append(time.monotonic()))
        self.dispatcher.worker_came(self.sent.append)

    def ask(self, prompt: tuple[int, ...] = (1, 2)) -> Any:
        return self.dispatcher.submit(self.dispatcher.reserve(), list(prompt), {})

    def submitted(self) -> list[str]:
        return [message["id"] for message in self.sent if message["do"] == "submit"]


# ---- workers that hang ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sign", ["tokens of another", "a step without tokens"])
def test_a_worker_that_shows_progress_is_not_hung(sign: str) -> None:
    """Its requests may be late, time out, and new ones may get nothing: something is done."""
    async def main() -> Bench:
        bench = Bench(hang=0.4, timeout=0.3)
        tickets = [bench.ask(), bench.ask()]
        for step in range(8):
            await asyncio.sleep(0.1)
            if sign == "tokens of another":
                bench.dispatcher.on_events([[tickets[0].id, [5], None, None]])
            else:
                bench.dispatcher.on_stats({**STATS, "steps": step})
        assert isinstance(tickets[1].answers.get_nowait(), ApiError)
        return bench

    assert asyncio.run(main()).hung == []


def test_a_worker_without_work_is_not_hung() -> None:
    async def main() -> Bench:
        bench = Bench(hang=0.1)
        first, second = bench.ask(), bench.ask()
        bench.dispatcher.on_events([[first.id, [5], "stop", None]])
        bench.dispatcher.cancel(second)
        bench.dispatcher.on_events([[second.id, [], "cancelled", None]])
        await asyncio.sleep(0.3)
        return bench

    assert asyncio.run(main()).hung == []


@pytest.mark.parametrize("gone", [False, True])
def test_a_worker_that_gives_nothing_any_more_is_hung(gone: bool) -> None:
    """Also when the request had tokens; and when nobody waits for it any more, since the engine owes it an end."""
    async def main() -> Bench:
        bench = Bench(hang=0.3)
        begin = time.monotonic()
        ticket = bench.ask()
        bench.dispatcher.on_taken(ticket.id)
        bench.dispatcher.on_events([[ticket.id, [5], None, None]])
        if gone:
            bench.dispatcher.cancel(ticket)
        for _ in range(8):  # alive, but always at the same step
            await asyncio.sleep(0.1)
            bench.dispatcher.on_stats({**STATS, "steps": 1})
        assert all(0.3 <= at - begin < 0.6 for at in bench.hung)
        return bench

    assert len(asyncio.run(main()).hung) == 1


# ---- requests that a worker took with it ----------------------------------------------------------------------------

def test_tokens_before_taken_mean_taken() -> None:
    async def main() -> None:
        bench = Bench()
        ticket = bench.ask()
        bench.dispatcher.on_events([[ticket.id, [11], None, None]])
        bench.dispatcher.worker_went("SIGKILL")
        bench.dispatcher.worker_came(bench.sent.append)
        assert bench.submitted() == [ticket.id]
        assert ticket.answers.get_nowait() == ([11], None)
        assert ticket.answers.get_nowait().code == "worker_died"

    asyncio.run(main())


def test_a_request_is_put_back_once_and_counted_once() -> None:
    async def main() -> None:
        bench = Bench()
        ticket = bench.ask()
        for _ in range(2):
            bench.dispatcher.worker_went("SIGKILL")
            bench.dispatcher.worker_came(bench.sent.append)
        assert bench.submitted() == [ticket.id] * 2
        assert ticket.answers.get_nowait().code == "worker_died"
        text = bench.metrics.text().decode()
        assert "hal_prompt_tokens_total 2.0" in text
        assert "hal_queue_seconds_count 1.0" in text

    asyncio.run(main())


# ---- requests that are still being made into tokens -----------------------------------------------------------------

def test_requests_that_are_tokenized_count_as_waiting() -> None:
    async def main() -> None:
        bench = Bench(max_running=1, max_queue=2, timeout=0.2)
        tickets = [bench.dispatcher.reserve() for _ in range(3)]  # one can run, two can wait
        with pytest.raises(ApiError, match="the queue is full: 3 requests wait"):
            bench.dispatcher.reserve()
        bench.dispatcher.cancel(tickets[0])
        tickets[0] = bench.dispatcher.reserve()
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with pytest.raises(ApiError, match="--request-timeout"):
            await bench.dispatcher.prepared(tickets[0], never)
        assert never.cancelled()
        bench.dispatcher.cancel(tickets[0])
        done = asyncio.get_running_loop().create_future()
        done.set_result(7)
        assert await bench.dispatcher.prepared(bench.ask(), done) == 7

    asyncio.run(main())


# ---- workers that die -----------------------------------------------------------------------------------------------

class Short:
    """A worker that comes to serve, gives these messages and ends."""

    started: list[float]
    messages: list[dict[str, Any]]
    errors: list[supervisor.StartError | None]

    def __init__(self) -> None:
        self.process = self.writer = self
        self.pid, self.left = 1, list(self.messages)

    @classmethod
    async def start(cls, settings: Settings) -> Short:
        cls.started.append(time.monotonic())
        return cls()

    async def load(self, settings: Settings) -> dict[str, Any]:
        error = self.errors[min(len(self.started), len(self.errors)) - 1]
        if error is not None:
            raise error
        return dict(STATS)

    async def receive(self) -> dict[str, Any] | None:
        await asyncio.sleep(0.01)
        return self.left.pop(0) if self.left else None

    async def ended(self) -> str:
        return "SIGKILL"

    async def wait(self) -> int:
        return 0

    def send(self, message: dict[str, Any]) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, bool]]:
    def run(messages: list[dict[str, Any]], errors: list[supervisor.StartError | None], most: float = 3.0
            ) -> tuple[int, str, bool]:
        """Workers started, the error's text, whether an argument is to blame."""
        Short.started, Short.messages, Short.errors = [], messages, errors
        monkeypatch.setattr(supervisor, "Worker", Short)
        monkeypatch.setattr(supervisor, "PAUSE", 0.05)
        watched = supervisor.Supervisor(Settings("m", tmp_path, "x:y", spare_worker=False), lambda *_: None,
                                        lambda _: None, lambda _: None)
        try:
            asyncio.run(asyncio.wait_for(watched.run(), most))
        except supervisor.StartError as error:
            return len(Short.started), str(error), error.wrong
        except asyncio.TimeoutError:
            return len(Short.started), "", False
        raise AssertionError("it ended")

    return run


def test_workers_that_die_before_they_did_anything_end_it(supervise: Callable[..., tuple[int, str, bool]]) -> None:
    begin = time.monotonic()
    started, text, wrong = supervise([{"is": "stats", "stats": STATS}], [None])
    assert (started, text, wrong) == (
        supervisor.TRIES, "3 workers in a row ended before one gave a token (the last: SIGKILL)", False)
    assert time.monotonic() - begin > 0.05 + 0.1  # with growing pauses between


def test_a_worker_that_gave_a_token_is_a_new_beginning(supervise: Callable[..., tuple[int, str, bool]]) -> None:
    started, text, _ = supervise([{"is": "tokens", "events": [["r1", [5], None, None]], "stats": STATS}], [None], 1.0)
    assert text == ""
    assert started > supervisor.TRIES


def test_a_worker_that_lived_for_a_while_is_a_new_beginning(supervise: Callable[..., tuple[int, str, bool]],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STEADY", 0.005)
    started, text, _ = supervise([{"is": "stats", "stats": STATS}], [None], 1.0)
    assert text == ""
    assert started > supervisor.TRIES


def test_an_argument_is_to_blame_only_at_the_first_worker(supervise: Callable[..., tuple[int, str, bool]]) -> None:
    wrong = supervisor.StartError("the device's memory is not free yet", wrong=True)
    assert supervise([], [wrong]) == (1, "the device's memory is not free yet", True)
    assert supervise([], [None, wrong])[1:] == ("the device's memory is not free yet", False)


# ---- bodies, errors, keys -------------------------------------------------------------------------------------------

def test_an_object_with_many_keys_is_read_at_once() -> None:
    """Each key compared with each other would be 10 thousand million comparisons."""
    class Key(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return str.__eq__(self, other)

    pairs: list[tuple[str, Any]] = [(Key(f"key{number}"), number) for number in range(3000)]
    assert json_object(pairs) == dict(pairs)
    assert Key.compared < 100_000
    with pytest.raises(ValueError, match="'b' stands twice"):
        json_object([("a", 1), ("b", 1), ("b", 2), ("a", 2)])


@pytest.mark.parametrize("prompt", [5, None, {"a": 1}, True])
def test_a_prompt_that_is_neither_text_nor_tokens(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        protocol.completion_request(json.dumps({"model": "m", "prompt": prompt}).encode())
    assert caught.value.param == "prompt"
    assert caught.value.message.startswith("prompt: expected text or a list of token ids, got ")


def test_a_bug_is_counted_as_an_error() -> None:
    metrics = Metrics(())
    seen = _Observed(metrics, "chat")
    with pytest.raises(ZeroDivisionError), seen.errors():
        raise ZeroDivisionError
    seen.end("client_gone")  # what gives the request up says this last
    assert 'hal_requests_total{endpoint="chat",outcome="error"} 1.0' in metrics.text().decode()


def test_the_key_is_asked_for_by_the_path_that_is_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a URL into which a client's Host may have gone."""
    monkeypatch.setattr(Request, "url", property(lambda _: pytest.fail("the URL has what the client says in it")))
    guard = Guard(None, "secret", False)  # type: ignore[arg-type]

    def refusal(path: str) -> ApiError | None:
        return guard._refusal(Request({"type": "http", "path": path, "headers": [(b"host", b"x/health?")]}))

    assert refusal("/health") is None
    refused = refusal("/v1/models")
    assert refused is not None
    assert refused.status == 401
