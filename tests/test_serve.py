"""`hal serve` over HTTP, with the engine of serve_double.py: answers, refusals, limits, and workers that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serve_machine import NAME, Machine, Reply, lines, until

from hal.serving.dispatch import Dispatcher
from hal.serving.errors import ApiError
from hal.serving.metrics import Metrics
from hal.serving.prompts import Prompts

pytestmark = pytest.mark.model  # its tokenizer
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
WORDS = "one two three four five six seven"  # a token each
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(default_model: Path) -> Path:
    return default_model


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Prompts:
    return Prompts(folder)


@pytest.fixture(scope="module")
def shared(folder: Path, prompts: Prompts) -> Iterator[Machine]:
    """One server for the tests that leave it as it was."""
    with Machine(folder, prompts, labels=[{"kind": "full", "backend": "double"}]) as machine:
        yield machine


# ---- answers --------------------------------------------------------------------------------------------------------

def test_completion(shared: Machine) -> None:
    reply = shared.complete(WORDS, 3)
    answer = reply.json()
    assert reply.status == 200
    assert answer.pop("id").startswith("cmpl-")
    assert abs(answer.pop("created") - time.time()) < 60
    assert answer == {
        "object": "text_completion", "model": NAME,
        "choices": [{"index": 0, "text": "one two three", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}


def test_chat_goes_through_the_template(shared: Machine) -> None:
    # <|im_start|>system\nYou are a helpful ...: the double repeats the prompt; special tokens are no text.
    answer = shared.chat("Hello", 6).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "system\nYou are a"},
                                  "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 6


def test_parts_of_text_are_lines(shared: Machine) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    ask = {"model": NAME, "max_tokens": 1}
    as_parts = shared.ask("POST", CHAT, {**ask, "messages": [{"role": "user", "content": parts}]}).json()
    as_text = shared.ask("POST", CHAT, {**ask, "messages": [{"role": "user", "content": "Hello\nthere"}]}).json()
    assert as_parts["usage"] == as_text["usage"]


def test_token_ids_are_a_prompt(shared: Machine, prompts: Prompts) -> None:
    ids = prompts.completion(WORDS)
    assert shared.ask("POST", COMPLETION, {"model": NAME, "prompt": ids, "max_tokens": 2}).json()["choices"][0][
        "text"] == "one two"


def test_streams(shared: Machine) -> None:
    whole = shared.chat("Hello", 6, stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = whole.events()
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "system\nYou are a"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    plain = shared.complete(WORDS, 3, stream=True).events()
    assert "".join(chunk["choices"][0]["text"] for chunk in plain[:-1]) == "one two three"
    assert all("usage" not in chunk for chunk in plain[:-1])


@pytest.mark.parametrize(("stop", "text", "finish"), [
    ("four", "one two three ", "stop"), (["zz", " three"], "one two", "stop"), ("o th", "one tw", "stop"),
    ("one", "", "stop"), ("eight", WORDS, "length"), (None, WORDS, "length"), ([], WORDS, "length")])
def test_stop(shared: Machine, stop: Any, text: str, finish: str) -> None:
    choice = shared.complete(WORDS, 7, stop=stop).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, finish)
    events = shared.complete(WORDS, 7, stop=stop, stream=True).events()
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text
    assert events[-2]["choices"][0]["finish_reason"] == finish


def test_characters_are_whole_in_a_stream(shared: Machine) -> None:
    text = "\U0001f600 na\u00efve \u4f60\u597d"
    events = shared.complete(text, 30, stream=True).events()[:-1]
    pieces = [event["choices"][0]["text"] for event in events]
    assert "".join(pieces).startswith(text)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces[:-1])


def test_sampling_reaches_the_engine(folder: Path, prompts: Prompts, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("HAL_TEST_SERVE_LOG", str(log))
    with Machine(folder, prompts) as machine:
        machine.complete(WORDS, 2, temperature=0.5, top_p=0.25, top_k=7, seed=3)
        machine.complete(WORDS, 1, temperature=0, top_k=-1)
        machine.ask("POST", COMPLETION, {"model": NAME, "prompt": WORDS})
        machine.ask("POST", CHAT, {"model": NAME, "messages": HELLO, "max_completion_tokens": 3})
    seen = [line.partition(" ")[2].partition(" ")[2] for line in log.read_text().splitlines()]
    assert seen == [
        "{'max_tokens': 2, 'temperature': 0.5, 'top_p': 0.25, 'top_k': 7, 'seed': 3}",
        "{'max_tokens': 1, 'temperature': 0.0, 'top_p': 1.0, 'top_k': 0, 'seed': None}",
        "{'max_tokens': 16, 'temperature': 1.0, 'top_p': 1.0, 'top_k': 0, 'seed': None}",
        "{'max_tokens': 3, 'temperature': 1.0, 'top_p': 1.0, 'top_k': 0, 'seed': None}"]


def test_chat_without_max_tokens_may_fill_the_context(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, {"cache_tokens": 50}) as machine:
        usage = machine.ask("POST", CHAT, {"model": NAME, "messages": HELLO}).json()["usage"]
        assert usage["total_tokens"] == 50
        assert machine.get("/v1/models").json()["data"][0]["max_model_len"] == 50


def test_models(shared: Machine) -> None:
    listed = shared.get("/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (NAME, "model", 4096)
    assert shared.get(f"/v1/models/{NAME}").json() == model
    assert shared.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_requests_run_at_the_same_time(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, {"step": 0.05}) as machine, ThreadPoolExecutor(6) as pool:
        begin = time.monotonic()
        texts = list(pool.map(lambda n: machine.complete(WORDS, 10, seed=n).json()["choices"][0]["text"].split()[0],
                              range(6)))
        assert texts == WORDS.split()[:6]  # each its own
        assert time.monotonic() - begin < 6 * 10 * 0.05 / 2


# ---- what is refused ------------------------------------------------------------------------------------------------

def ok(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": HELLO, "max_tokens": 2, **fields}


def user(content: Any) -> dict[str, Any]:
    return ok(messages=[{"role": "user", "content": content}])


BAD: list[tuple[Any, int, str]] = [
    (b"", 400, "not valid JSON"), (b"{", 400, "not valid JSON"), (b"[]", 400, "expected a JSON object"),
    (b"\xff", 400, "not UTF-8"), (b'{"model": "\\ud800"}', 400, "half of a surrogate pair"),
    (b'{"model": 1, "model": 2}', 400, "'model' stands twice"), (b'{"temperature": NaN}', 400, "NaN is no number"),
    (b"[" * 100_000, 400, "nested too deeply"), (b'{"seed": ' + b"9" * 5000 + b"}", 400, "not valid JSON"),
    ({}, 400, "model is missing"), ({"model": NAME}, 400, "messages is missing"),
    (ok(model="gpt-4"), 404, "the model 'gpt-4' is not served here (served: double)"),
    (ok(messages=[]), 400, "messages: "), (ok(messages="Hello"), 400, "messages: "),
    (ok(messages=[{"role": "user"}]), 400, "messages.0.content is missing"),
    (ok(messages=[{"role": "tool", "content": "x"}]), 400, "messages.0.role: "),
    (ok(messages=[{"role": "user", "content": "x", "name": "me"}]), 400, "messages.0.name: "),
    (user(None), 400, "messages.0.content: "), (user([]), 400, "no parts"),
    (user([{"type": "image_url", "image_url": {"url": "http://x"}}]), 400, "a part of type 'image_url' is not suppo"),
    (user([{"type": "text"}]), 400, "exactly the fields type and text"),
    (ok(max_tokens=0), 400, "max_tokens: Input should be greater than or equal to 1, got 0"),
    (ok(max_tokens="5"), 400, "max_tokens: "), (ok(max_tokens=True), 400, "max_tokens: "),
    (ok(max_tokens=10**9), 400, "together more than the 4096 tokens that this server takes"),
    (ok(max_completion_tokens=2), 400, "max_tokens 2 and max_completion_tokens 2 mean one thing"),
    (user("word " * 5000), 400, "the prompt has 50"),
    (ok(temperature=-1), 400, "temperature: "), (ok(temperature=2.1), 400, "temperature: "),
    (ok(temperature=1e-5), 400, "must be 0 (always the likeliest token), or 0.001 to 2, got 1e-05"),
    (ok(top_p=0), 400, "top_p: "), (ok(top_p=1.5), 400, "top_p: "), (ok(top_k=-2), 400, "top_k: "),
    (ok(seed=-1), 400, "seed: "), (ok(seed=1.5), 400, "seed: "), (ok(stop=""), 400, "a stop string of 0 characters"),
    (ok(stop=["a"] * 17), 400, "17 stop strings (at most 16)"), (ok(stop=5), 400, "stop: expected a string or a list"),
    (ok(stream="yes"), 400, "stream: "), (ok(stream_options={"include_usage": True}), 400, "without stream: true"),
    (ok(stream=True, stream_options={"x": 1}), 400, "stream_options.x: "),
    (ok(n=2), 400, "n 2 is not supported by this server (accepted: 1, null)"), (ok(n=True), 400, "n True is not"),
    (ok(logprobs=True), 400, "logprobs True is not"), (ok(top_logprobs=3), 400, "top_logprobs 3 is not"),
    (ok(tools=[{"type": "function"}]), 400, "tools [{'type': 'function'}] is not"),
    (ok(tool_choice="required"), 400, "tool_choice 'required' is not"),
    (ok(response_format={"type": "json_object"}), 400, "response_format {'type': 'json_object'} is not"),
    (ok(presence_penalty=0.5), 400, "presence_penalty 0.5 is not"),
    (ok(frequency_penalty=-1), 400, "frequency_penalty -1 is not"), (ok(logit_bias={"5": 1}), 400, "logit_bias"),
    (ok(reasoning_effort="high"), 400, "reasoning_effort 'high' is not"), (ok(store=True), 400, "store True is not"),
    (ok(tempreature=1), 400, "unknown field 'tempreature': 1"), (ok(prompt="x"), 400, "unknown field 'prompt'"),
]
BAD_COMPLETIONS: list[tuple[Any, int, str]] = [
    ({"prompt": ["a", "b"]}, 400, "a list of 2, which is not supported unless all are token ids"),
    ({"prompt": ""}, 400, "the prompt has no tokens"), ({"prompt": []}, 400, "the prompt has no tokens"),
    ({"prompt": [1, 49152]}, 400, "prompt has the token id 49152 (expected 0 to 49151)"),
    ({"prompt": [-1]}, 400, "the token id -1"), ({"prompt": 5}, 400, "prompt"), ({}, 400, "prompt is missing"),
    ({"prompt": "x", "echo": True}, 400, "echo True is not"), ({"prompt": "x", "best_of": 2}, 400, "best_of 2 is not"),
    ({"prompt": "x", "suffix": "y"}, 400, "suffix 'y' is not"), ({"prompt": "x", "logprobs": 0}, 400, "logprobs 0 is"),
    ({"prompt": "x", "messages": HELLO}, 400, "unknown field 'messages'"),
]


def check_error(reply: Reply, status: int, text: str) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert (reply.status, text in error["message"]) == (status, True), error
    assert set(error) == {"message", "type", "param", "code"}
    assert len(reply.body) < 1000, "an error repeats what it was sent"
    assert error["type"] == ("invalid_request_error" if status < 500 and status != 429 else
                             "rate_limit_error" if status == 429 else "server_error")
    return error


@pytest.mark.parametrize(("body", "status", "text"), BAD, ids=lambda value: str(value)[:40])
def test_bad_chat_request(shared: Machine, body: Any, status: int, text: str) -> None:
    before = shared.metric("hal_requests_total", "refused")
    check_error(shared.ask("POST", CHAT, body), status, text)
    assert shared.metric("hal_requests_total", "refused") == before + 1


@pytest.mark.parametrize(("body", "status", "text"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
def test_bad_completion_request(shared: Machine, body: Any, status: int, text: str) -> None:
    check_error(shared.ask("POST", COMPLETION, {"model": NAME, **body}), status, text)


def test_bad_requests_over_http(shared: Machine) -> None:
    body = json.dumps(ok()).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        check_error(shared.ask("POST", CHAT, body, {"Content-Type": kind}), 415, "application/json")
    check_error(shared.ask("POST", CHAT, body, {"Content-Encoding": "gzip"}), 415, "Content-Encoding 'gzip'")
    check_error(shared.ask("GET", CHAT), 405, "GET is not served")
    check_error(shared.ask("DELETE", "/v1/models"), 405, "DELETE is not served")
    for path in ("/", "/v1", "/v1/responses", "/v1/embeddings", "/docs", "/openapi.json", "/load_model", "/../etc"):
        check_error(shared.get(path), 404, "is not served here")
    large = b" " * (shared.settings.max_body + 1)
    check_error(shared.ask("POST", CHAT, large), 413, "has 4194305 bytes or more, at most 4194304 are taken")
    check_error(shared.get("/v1/models", Host="evil.example:80"), 403, "Host 'evil.example:80' is not of this machine")
    for host in ("localhost", "localhost:1", "127.0.0.1:80", "[::1]:80", "[::1]"):
        assert shared.get("/v1/models", Host=host).status == 200
    with socket.create_connection(("127.0.0.1", shared.port)) as raw:
        raw.sendall(b"this is no HTTP\r\n\r\n")
        assert b" 400 " in raw.recv(1000).splitlines()[0]
    assert shared.complete(WORDS, 1).status == 200


def test_a_body_in_chunks_is_counted(shared: Machine) -> None:
    connection = shared.connect()
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    chunk = b" " * (1 << 20)
    for _ in range(4):
        connection.send(b"100000\r\n" + chunk + b"\r\n")
    connection.send(b"1\r\n \r\n0\r\n\r\n")
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_does_not_come(shared: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal.serving.guard.BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", shared.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 100\r\n\r\n{")
        assert b" 408 " in raw.recv(1000).splitlines()[0]


@pytest.mark.parametrize("fields", [
    {"n": 1}, {"logprobs": False}, {"tools": []}, {"tool_choice": "none"}, {"response_format": {"type": "text"}},
    {"presence_penalty": 0.0, "frequency_penalty": 0}, {"logit_bias": {}}, {"user": "me", "metadata": {"a": "b"}},
    {"stop": None, "temperature": None, "seed": None, "stream": None, "top_p": None, "n": None},
    {"service_tier": "auto", "store": False, "parallel_tool_calls": True}])
def test_fields_that_ask_for_nothing(shared: Machine, fields: dict[str, Any]) -> None:
    assert shared.ask("POST", CHAT, ok(**fields)).status == 200


def test_a_template_that_refuses(folder: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    with Machine(folder, prompts) as machine:
        template = prompts.tokenizer.chat_template
        for made, text in (("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must al"),
                           ("{{ messages[0].content + 1 }}", "failed on these messages"),
                           ("{{ 1 / 0 }}", "failed on these"), ("{% for %}", "refuses these"),
                           (None, "no chat template: use /v1/completions")):
            monkeypatch.setattr(prompts.tokenizer, "chat_template", made)
            check_error(machine.chat("Hello"), 400, text)
        monkeypatch.setattr(prompts.tokenizer, "chat_template", template)
        assert machine.chat("Hello").status == 200


def test_keys(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, api_key="right") as machine:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"},
                        {"Authorization": "Bearer right2"}, {"Authorization": "Bearer \xe9"}):
            for path in ("/v1/models", "/nowhere"):
                reply = machine.ask("GET", path, None, headers)
                assert check_error(reply, 401, "API key is missing or wrong")["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
        good = {"Authorization": "Bearer right"}
        assert machine.ask("POST", CHAT, ok(), good).status == 200
        assert machine.get("/health").status == machine.get("/metrics").status == 200
        assert machine.get("/v1/models", Host="serving.example", **good).status == 200  # behind a proxy, with a key


# ---- limits ---------------------------------------------------------------------------------------------------------

def test_the_queue_is_first_come_first_served_and_has_an_end(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, {"step": 0.05}, max_running=1, max_queue=2) as machine, ThreadPoolExecutor(3) as pool:
        ends: list[int] = []

        def one(number: int) -> Reply:
            reply = machine.complete(WORDS, 20)
            ends.append(number)
            return reply

        waiting = []
        for number in range(3):
            waiting.append(pool.submit(one, number))
            until(lambda n=number: (machine.metric("hal_requests_running") == 1  # type: ignore[misc]
                                    and machine.metric("hal_requests_queued") == n))
        full = machine.complete(WORDS, 1)
        error = check_error(full, 429, "the queue is full: 2 requests wait (--max-queue 2) and 1 run")
        assert error["code"] == "queue_full"
        assert full.headers["retry-after"] == "1"
        assert [each.result().status for each in waiting] == [200, 200, 200]
        assert ends == [0, 1, 2]
        assert machine.metric("hal_requests_total", "queue_full") == 1
        assert machine.metric("hal_requests_total", "length") == 3


def test_time_is_limited(folder: Path, prompts: Prompts) -> None:
    """What waits in the queue times out too, just after it was sent also; the worker has done nothing wrong."""
    with Machine(folder, prompts, {"step": 0.1}, request_timeout=1.0, max_running=1) as machine, \
            ThreadPoolExecutor(3) as pool:
        worker = machine.worker
        for slow in [pool.submit(machine.complete, WORDS, 50) for _ in range(3)]:
            assert check_error(slow.result(), 504, "longer than 1 s (--request-timeout)")["code"] == "timeout"
        assert machine.complete(WORDS, 1).status == 200
        assert machine.worker == worker
        assert machine.metric("hal_worker_restarts_total") == 0
        assert machine.metric("hal_requests_total", "timeout") == 3


@pytest.mark.parametrize(("word", "timeout", "code"), [
    ("stuck", 30.0, "worker_died"), ("freeze", 30.0, "worker_died"), ("freeze", 0.7, "timeout")])
def test_a_worker_that_hangs_is_replaced(folder: Path, prompts: Prompts, word: str, timeout: float, code: str) -> None:
    """From the start or after some tokens; also when the request has timed out before that was known."""
    with Machine(folder, prompts, request_timeout=timeout, hang_timeout=1.5) as machine:
        worker = machine.worker
        assert machine.complete(WORDS, 1).status == 200
        events = machine.complete(f"please {word} now", 5, stream=True).events()
        assert events[-1]["error"]["code"] == code
        until(lambda: machine.worker != worker and machine.healthy())
        assert machine.complete(WORDS, 1).status == 200
        assert machine.metric("hal_worker_restarts_total") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_leaves_is_forgotten(folder: Path, prompts: Prompts, tmp_path: Path, stream: bool, waits: bool,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("HAL_TEST_SERVE_LOG", str(log))
    with Machine(folder, prompts, {"step": 0.02}, max_running=1) as machine:
        leaving = []
        for number in range(2 if waits else 1):
            connection = machine.connect()
            connection.request("POST", COMPLETION, json.dumps(
                {"model": NAME, "prompt": WORDS, "max_tokens": 3000, "stream": stream}),
                {"Content-Type": "application/json"})
            leaving.append(connection)
            until(lambda n=number: machine.metric("hal_requests_queued") == n  # type: ignore[misc]
                  and machine.metric("hal_requests_running") == 1)
        for number, connection in enumerate(reversed(leaving), 1):  # the one that waits first
            assert connection.sock is not None
            connection.sock.close()
            connection.close()
            until(lambda n=number: machine.metric("hal_requests_total", "client_gone") == n)  # type: ignore[misc]
        assert (machine.metric("hal_requests_queued"), machine.metric("hal_requests_running")) == (0, 0)
        assert machine.complete(WORDS, 1).status == 200
        noted = [line.split()[0] for line in log.read_text().splitlines()]
        assert noted == ["submit", "cancel", "submit"]  # what waited never came to the engine


@pytest.mark.parametrize("leaves", [False, True])
def test_while_a_prompt_is_tokenized(folder: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch,
                                     leaves: bool) -> None:
    """Long texts hold up those behind them: they count as waiting, have an end, and may be given up."""
    go_on = threading.Event()
    original = prompts.completion

    def slow(prompt: Any) -> list[int]:
        go_on.wait(20)
        return original(prompt)

    monkeypatch.setattr(prompts, "completion", slow)
    with Machine(folder, prompts, request_timeout=30.0 if leaves else 1.0, max_running=1, max_queue=1) as machine, \
            ThreadPoolExecutor(2) as pool:
        try:
            waiting = [machine.connect() for _ in range(2)]
            for number, connection in enumerate(waiting, 1):
                connection.request("POST", COMPLETION, json.dumps({"model": NAME, "prompt": WORDS, "max_tokens": 1}),
                                   {"Content-Type": "application/json"})
                until(lambda n=number: machine.metric("hal_requests_queued") == n)  # type: ignore[misc]
            check_error(pool.submit(machine.complete, WORDS).result(), 429, "the queue is full: 2 requests wait")
            for connection in waiting:
                assert leaves or connection.getresponse().status == 504
                connection.close()
            until(lambda: machine.metric("hal_requests_total", "client_gone" if leaves else "timeout") == 2)
            assert machine.metric("hal_requests_queued") == 0
        finally:
            go_on.set()
        assert machine.complete(WORDS, 1).status == 200


def test_many_clients_that_leave(folder: Path, prompts: Prompts) -> None:
    """At any moment, also just when a token comes."""
    with Machine(folder, prompts, {"step": 0.003}, max_running=1) as machine:
        for number in range(60):
            connection = machine.connect()
            connection.request("POST", COMPLETION, json.dumps(
                {"model": NAME, "prompt": WORDS, "max_tokens": 4000, "stream": number % 2 == 0}),
                {"Content-Type": "application/json"})
            until(lambda: machine.metric("hal_requests_running") == 1)
            connection.close()
            until(lambda: machine.metric("hal_requests_running") == 0)
        assert machine.metric("hal_requests_total", "client_gone") == 60


def test_a_stop_string_ends_the_work_of_the_engine(folder: Path, prompts: Prompts, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("HAL_TEST_SERVE_LOG", str(log))
    with Machine(folder, prompts, {"step": 0.02}) as machine:
        assert machine.complete(WORDS, 4000, stop="three").json()["usage"]["completion_tokens"] < 100
        until(lambda: machine.metric("hal_requests_running") == 0 and "cancel" in log.read_text())


# ---- workers that die -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("word", "why"), [("die", "SIGKILL"), ("crash", "exit code 70")])
def test_a_worker_that_dies_takes_only_what_it_had(folder: Path, prompts: Prompts, word: str, why: str) -> None:
    with Machine(folder, prompts, {"step": 0.02, "load_seconds": 0.3}, max_running=2) as machine, \
            ThreadPoolExecutor(6) as pool:
        worker = machine.worker
        stream = pool.submit(machine.complete, WORDS, 3000, stream=True)  # runs when the other one dies
        until(lambda: machine.metric("hal_requests_running") == 1)
        killer = pool.submit(machine.complete, f"please {word} now", 50)
        until(lambda: machine.metric("hal_requests_running") == 2)
        waiting = [pool.submit(machine.complete, WORDS, 3) for _ in range(3)]
        assert check_error(killer.result(), 500, f"the engine's process ended ({why}) while this request was with it")[
            "code"] == "worker_died"
        events = stream.result().events()
        assert events[-1]["error"]["code"] == "worker_died"
        assert "one" in "".join(event["choices"][0]["text"] for event in events[:-1])
        assert [each.result().status for each in waiting] == [200] * 3
        assert machine.worker != worker
        assert machine.metric("hal_worker_restarts_total") == 1
        assert machine.metric("hal_requests_total", "worker_died") == 2


def test_what_a_dead_worker_never_got_goes_to_the_next() -> None:
    """Sent in the moment before its death was known: no answer to "submit", so nothing was begun."""
    async def main() -> list[list[str]]:
        dispatcher = Dispatcher(3, 9, 60, 60, Metrics(()), pytest.fail)
        workers: list[list[str]] = [[], []]
        dispatcher.worker_came(lambda message: workers[0].append(message["id"]))
        tickets = [dispatcher.submit(dispatcher.reserve(), [1], {}) for _ in range(4)]  # the fourth waits
        dispatcher.on_taken(tickets[0].id)
        dispatcher.worker_went("SIGKILL")
        assert isinstance(tickets[0].answers.get_nowait(), ApiError)
        dispatcher.worker_came(lambda message: workers[1].append(message["id"]))
        assert all(ticket.answers.empty() for ticket in tickets)
        return workers

    assert asyncio.run(main()) == [["r1", "r2", "r3"], ["r2", "r3", "r4"]]


def test_health_and_requests_while_there_is_no_worker(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, {"load_seconds": 1.0}) as machine, ThreadPoolExecutor(1) as pool:
        os.kill(machine.worker, signal.SIGKILL)
        until(lambda: machine.get("/health").status == 503)
        assert machine.get("/health").json() == {"status": "restarting"}
        assert machine.metric("hal_worker_up") == 0
        assert pool.submit(machine.complete, WORDS, 1).result().status == 200  # it waits for the next one
        assert machine.metric("hal_worker_up") == 1


def test_a_spare_takes_over(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, preload="serve_double:preload", spare_worker=True) as machine:
        supervisor = machine.server.supervisor
        until(lambda: supervisor.spare is not None)
        spare = supervisor.spare
        assert spare is not None
        os.kill(machine.worker, signal.SIGKILL)
        until(lambda: machine.worker == spare.process.pid and machine.healthy())
        assert machine.complete(WORDS, 1).status == 200
        until(lambda: supervisor.spare is not None)
        following = supervisor.spare
        assert following is not None
        assert following.process.pid != spare.process.pid
        os.kill(following.process.pid, signal.SIGKILL)  # a spare that died unseen
        time.sleep(0.1)
        os.kill(machine.worker, signal.SIGKILL)
        until(lambda: machine.worker not in (spare.process.pid, following.process.pid) and machine.healthy())
        assert machine.complete(WORDS, 1).status == 200


def test_a_request_that_the_engine_fails_on(shared: Machine) -> None:
    reply = shared.complete("a broken one", 5)
    check_error(reply, 500, "the engine failed on this request")
    assert b"path" not in reply.body
    assert shared.complete("a broken one", 5, stream=True).events()[-1]["error"]["code"] == "engine_failed"
    assert shared.complete(WORDS, 1).status == 200


def test_workers_that_can_not_start_end_the_server(folder: Path, prompts: Prompts, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal.serving.supervisor.PAUSE", 0.05)
    with Machine(folder, prompts, {"fails": "no device"}) as machine:
        assert str(machine.failed) == "no device"
    with Machine(folder, prompts, {"preload_fails": True}, preload="serve_double:preload") as machine:
        assert str(machine.failed) == "the preload was told to fail"
    trap = tmp_path / "trap"
    with Machine(folder, prompts, {"kills": str(trap)}) as machine, ThreadPoolExecutor(1) as pool:
        trap.touch()
        os.kill(machine.worker, signal.SIGKILL)
        waiting = pool.submit(machine.complete, WORDS, 1)
        machine.thread.join(20)
        assert str(machine.failed) == "the worker ended while it loaded the model (SIGKILL)"
        assert waiting.result().status == 503


# ---- metrics, and the end -------------------------------------------------------------------------------------------

def test_metrics(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, labels=[{"kind": "full", "backend": "double"}]) as machine:
        machine.complete(WORDS, 4)
        machine.chat("Hello", 3, stream=True)
        seen = machine.metrics()
        assert seen['hal_attention_info{backend="double",kind="full"}'] == 1
        assert seen['hal_requests_total{endpoint="completions",outcome="length"}'] == 1
        assert seen['hal_requests_total{endpoint="chat",outcome="length"}'] == 1
        assert seen["hal_generated_tokens_total"] == 7
        assert seen["hal_prompt_tokens_total"] > 7
        assert seen["hal_kv_cache_tokens"] == 4096
        for name in ("queue", "time_to_first_token", "time_per_output_token", "request"):
            assert seen[f"hal_{name}_seconds_count"] == 2, name
        assert machine.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_what_runs_may_finish_when_the_server_ends(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, {"step": 0.05}, max_running=1, shutdown_timeout=5.0) as machine, \
            ThreadPoolExecutor(2) as pool:
        running = pool.submit(machine.complete, WORDS, 20)
        until(lambda: machine.metric("hal_requests_running") == 1)
        waiting = pool.submit(machine.complete, WORDS, 1)
        until(lambda: machine.metric("hal_requests_queued") == 1)
        machine.server.handle_exit(signal.SIGTERM, None)
        assert check_error(waiting.result(), 503, "shutting down")["code"] == "shutdown"
        assert running.result().json()["usage"]["completion_tokens"] == 20
        machine.thread.join(10)
        assert not machine.thread.is_alive()


def test_what_runs_too_long_is_ended_with_an_error(folder: Path, prompts: Prompts) -> None:
    with Machine(folder, prompts, {"step": 0.05}, shutdown_timeout=0.5) as machine:
        connection = machine.connect()
        connection.request("POST", COMPLETION, json.dumps({
            "model": NAME, "prompt": WORDS, "max_tokens": 3000, "stream": True}), {"Content-Type": "application/json"})
        events = lines(connection.getresponse())
        assert "one" in next(events)["choices"][0]["text"]
        begin = time.monotonic()
        machine.server.handle_exit(signal.SIGTERM, None)
        assert [event["error"]["code"] for event in events if "error" in event] == ["shutdown"]
        machine.thread.join(10)
        assert not machine.thread.is_alive()
        assert time.monotonic() - begin < 5
        connection.close()
