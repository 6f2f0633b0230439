"""The endpoints: a FastAPI application over a dispatcher."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from hal.serving import answers, protocol
from hal.serving.dispatch import Dispatcher
from hal.serving.errors import ApiError, shown
from hal.serving.generation import Piece, pieces
from hal.serving.guard import Guard, read_body
from hal.serving.metrics import CONTENT_TYPE, OUTCOMES, Metrics
from hal.serving.prompts import Prompts
from hal.serving.protocol import ChatRequest, CompletionRequest
from hal.serving.settings import Settings
from hal.serving.streaming import EventStream, unless_gone

logger = logging.getLogger("hal.serving")


class Service:
    """What the routes share. `state` says for /health why there is no worker."""

    def __init__(self, settings: Settings, prompts: Prompts, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self.settings, self.prompts, self.dispatcher, self.metrics = settings, prompts, dispatcher, metrics
        self.capacity: int | None = None  # tokens of prompt and answer together; the first worker says it
        self.created = int(time.time())
        self.state = "loading"
        # One thread: tokenizers may not be set up by two at once, and long prompts must not stop the event loop.
        self.tokenizing = ThreadPoolExecutor(1, "hal-tokenizer")

    async def health(self) -> Response:
        serving = self.dispatcher.serving and self.dispatcher.closed is None
        return JSONResponse({"status": "ok" if serving else self.state}, 200 if serving else 503)

    async def show_metrics(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def one_model(self, name: str) -> dict[str, Any]:
        self._check_name(name)
        return self._model()

    def _model(self) -> dict[str, Any]:
        return {"id": self.settings.name, "object": "model", "created": self.created, "owned_by": "local",
                "max_model_len": self.capacity}

    async def chat(self, request: Request) -> Response:
        def tokens(asked: ChatRequest) -> list[int]:
            return self.prompts.chat(asked.messages)

        return await self._answer(request, "chat", answers.CHAT, protocol.chat_request, tokens)

    async def completion(self, request: Request) -> Response:
        def tokens(asked: CompletionRequest) -> list[int]:
            return self.prompts.completion(asked.prompt)

        return await self._answer(request, "completions", answers.COMPLETION, protocol.completion_request, tokens)

    async def _answer(self, request: Request, endpoint: str, shape: answers.Shape, read: Callable[[bytes], Any],
                      tokens: Callable[[Any], list[int]]) -> Response:
        seen = _Observed(self.metrics, endpoint)
        with seen.errors():
            asked = read(await read_body(request, self.settings.max_body))
            self._check_name(asked.model)
            if self.capacity is None:
                raise ApiError(503, "the model is being loaded", code="loading", headers={"Retry-After": "5"})
            ticket = self.dispatcher.reserve()
            try:
                job = asyncio.get_running_loop().run_in_executor(self.tokenizing, tokens, asked)
                prompt = await unless_gone(request.receive, self.dispatcher.prepared(ticket, job), lambda: None)
                if prompt is None:
                    raise ClientDisconnect
                sampling = {"max_tokens": _most(len(prompt), asked.most_tokens, self.capacity), **asked.sampling()}
                self.dispatcher.submit(ticket, prompt, sampling)
            except BaseException:
                self.dispatcher.cancel(ticket)
                raise

        def give_up() -> None:
            """Nobody waits for the answer any more; nothing happens where it is complete."""
            self.dispatcher.cancel(ticket)
            seen.end("client_gone")

        parts = seen.pieces(pieces(self.dispatcher, ticket, self.prompts.text, asked.stop))
        answer = answers.Answer(shape, self.settings.name, len(prompt))
        if asked.stream:
            return EventStream(_events(parts, answer, asked.include_usage), give_up)
        whole = await unless_gone(request.receive, _whole(parts, answer), give_up)
        return Response(status_code=499) if whole is None else JSONResponse(whole)

    def _check_name(self, name: str) -> None:
        if name != self.settings.name:
            raise ApiError(404, f"the model {shown(name)} is not served here (served: {self.settings.name})", "model",
                           "model_not_found")


def _most(prompt: int, asked: int | None, capacity: int) -> int:
    """How many tokens may be generated. Raises ApiError where prompt and answer don't fit."""
    if prompt == 0:
        raise ApiError(400, "the prompt has no tokens", "prompt")
    if prompt + (asked or 1) > capacity:
        raise ApiError(400, f"the prompt has {prompt} tokens and max_tokens is {asked or 'not given'}, together more "
                            f"than the {capacity} tokens that this server takes", "max_tokens",
                       "context_length_exceeded")
    return asked or capacity - prompt


class _Observed:
    """One request's numbers for the metrics. Its outcome is counted once: the first one that end() is told."""

    def __init__(self, metrics: Metrics, endpoint: str) -> None:
        self.metrics, self.endpoint, self.begin, self.ended = metrics, endpoint, time.monotonic(), False

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            self.end(error.code if error.code in OUTCOMES else "refused" if error.status < 500 else "error")
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            self.end("client_gone")
            raise
        except Exception:
            self.end("error")
            raise

    async def pieces(self, source: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
        first: tuple[float, int] | None = None
        with self.errors():
            async with aclosing(source):
                async for piece in source:
                    now = time.monotonic()
                    if first is None:
                        first = now, piece.tokens
                        self.metrics.first_token.observe(now - self.begin)
                    if piece.finish is not None:
                        if piece.tokens > first[1]:
                            self.metrics.per_token.observe((now - first[0]) / (piece.tokens - first[1]))
                        self.end(piece.finish)
                    yield piece

    def end(self, outcome: str) -> None:
        if self.ended:
            return
        self.ended = True
        seconds = time.monotonic() - self.begin
        self.metrics.requests.labels(self.endpoint, outcome).inc()
        self.metrics.request_seconds.observe(seconds)
        logger.info("%s: %s after %.2f s", self.endpoint, outcome, seconds)


async def _whole(parts: AsyncGenerator[Piece], answer: answers.Answer) -> dict[str, Any]:
    texts = []
    async with aclosing(parts):
        async for piece in parts:
            texts.append(piece.text)
            if piece.finish is not None:
                return answer.whole("".join(texts), piece.tokens, piece.finish)
    raise RuntimeError("an answer ended without a reason")


async def _events(parts: AsyncGenerator[Piece], answer: answers.Answer, with_usage: bool) -> AsyncGenerator[bytes]:
    first = True
    try:
        async with aclosing(parts):
            async for piece in parts:
                yield answers.event(answer.chunk(piece.text, piece.finish, first, with_usage))
                first = False
                if piece.finish is not None and with_usage:
                    yield answers.event(answer.last(piece.tokens))
    except ApiError as error:
        yield answers.event(error.body())
        return  # without [DONE]: a client that overlooks the error must not take this for the end of an answer
    yield answers.DONE


def build(service: Service, check_host: bool) -> ASGIApp:
    """The whole application. check_host: refuse clients that reached this machine by another name (guard.Guard)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", service.completion, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", service.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", service.one_model, methods=["GET"], response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", service.show_metrics, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _bug)
    return Guard(app, service.settings.api_key, check_host)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    path = shown(request.scope["path"])
    what = {404: f"{path} is not served here",
            405: f"{request.method} is not served at {path}"}.get(error.status_code, error.detail)
    return await _api_error(request, ApiError(error.status_code, what, headers=dict(error.headers or {})))


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    """The traceback goes to the log (the framework raises it again), not to the client."""
    return await _api_error(request, ApiError(500, "internal error (the server's log says more)"))
