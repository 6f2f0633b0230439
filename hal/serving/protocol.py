"""Requests: from the bytes of a body to a checked object, or to a 4xx that names the field and its value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hal.cli_args import json_object
from hal.serving import unsupported
from hal.serving.errors import ApiError, shown

MOST_STOPS, LONGEST_STOP = 16, 256  # stop strings, and characters of each


def _stops(value: Any) -> Any:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("expected a string or a list of strings")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"{len(stops)} stop strings (at most {MOST_STOPS})")
    for stop in stops:
        if not 1 <= len(stop) <= LONGEST_STOP:
            raise ValueError(f"a stop string of {len(stop)} characters (expected 1 to {LONGEST_STOP})")
    return stops


def _text(value: Any) -> Any:
    """A message's content: a string, or parts of text alone, which are joined by line breaks."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"a part of type {shown(kind)} is not supported (supported: text)")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("a part of text must have exactly the fields type and text, a string")
        texts.append(part["text"])
    if not texts:
        raise ValueError("no parts")
    return "\n".join(texts)


def _prompt(value: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise ValueError("expected text or a list of token ids")
    return value


def _temperature(value: Any) -> Any:
    if isinstance(value, (int, float)) and 0 < value < 1e-3:
        raise ValueError("must be 0 (always the likeliest token), or 0.001 to 2")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]


class _Request(_Strict):
    """What both endpoints take. null means the default everywhere."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: Annotated[float, BeforeValidator(_temperature), Field(ge=0, le=2)] | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Annotated[list[str], BeforeValidator(_stops)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self) -> dict[str, Any]:
        """temperature, top_p, top_k (0: all tokens) and seed (None: a fresh one), with OpenAI's defaults."""
        return {"temperature": 1.0 if self.temperature is None else float(self.temperature),
                "top_p": 1.0 if self.top_p is None else float(self.top_p),
                "top_k": max(0, self.top_k or 0), "seed": self.seed}

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to generate; None where the request does not say."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(_Request):
    """prompt: text or token ids. A list of prompts is refused: one prompt a request."""

    prompt: Annotated[str | list[int], BeforeValidator(_prompt)]

    @property
    def most_tokens(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default here


_R = TypeVar("_R", bound=_Request)


def chat_request(body: bytes) -> ChatRequest:
    """Raises ApiError, as completion_request does."""
    request = _checked(ChatRequest, parse(body), unsupported.CHAT)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, f"max_tokens {request.max_tokens} and max_completion_tokens "
                            f"{request.max_completion_tokens} mean one thing: give one of them", "max_tokens")
    return request


def completion_request(body: bytes) -> CompletionRequest:
    found = parse(body)
    prompt = found.get("prompt")
    if isinstance(prompt, list) and prompt and not all(type(token) is int for token in prompt):
        raise ApiError(400, f"prompt is a list of {len(prompt)}, which is not supported unless all are token ids: "
                            "send one request for each prompt", "prompt")
    return _checked(CompletionRequest, found, unsupported.COMPLETION)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Stricter than json: no key twice, no NaN, no half of a surrogate pair."""
    try:
        text = body.decode("utf-8")
        found = json.loads(text, object_pairs_hook=json_object, parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # "\ud800" is in no text
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start}", code="invalid_json") from None
    except UnicodeEncodeError:
        raise ApiError(400, "the body has half of a surrogate pair in a string", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body is {shown(found)}, expected a JSON object", code="invalid_json")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _checked(model: type[_R], body: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> _R:
    fields = unsupported.refuse(body, model.model_fields, neutral)
    try:
        request = model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"][:3]))
        if first["type"] == "missing":
            raise ApiError(400, f"{where} is missing", where, "missing_parameter") from None
        what = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{where}: {what}, got {shown(first['input'])}", where, "invalid_value") from None
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is given without stream: true", "stream_options")
    return request
