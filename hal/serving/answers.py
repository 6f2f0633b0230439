"""Answers in the shapes of the OpenAI API, whole and as chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Shape:
    """How one endpoint puts its answers."""

    prefix: str
    whole: str
    chunk: str
    chat: bool


CHAT = Shape("chatcmpl", "chat.completion", "chat.completion.chunk", True)
COMPLETION = Shape("cmpl", "text_completion", "text_completion", False)


@dataclass(frozen=True)
class Answer:
    """One request's answer: what all its parts have in common."""

    shape: Shape
    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, tokens: int, finish: str) -> dict[str, Any]:
        choice = {"message": {"role": "assistant", "content": text}} if self.shape.chat else {"text": text}
        return {**self._head(self.shape.whole), "choices": [self._choice(choice, finish)], "usage": self.usage(tokens)}

    def chunk(self, text: str, finish: str | None, first: bool, with_usage: bool) -> dict[str, Any]:
        """One chunk of a stream. with_usage: the last one will be `last`, so this has the field as null."""
        if self.shape.chat:
            choice: dict[str, Any] = {"delta": {**({"role": "assistant"} if first else {}), "content": text}}
        else:
            choice = {"text": text}
        return {**self._head(self.shape.chunk), "choices": [self._choice(choice, finish)],
                **({"usage": None} if with_usage else {})}

    def last(self, tokens: int) -> dict[str, Any]:
        """The chunk that has the usage."""
        return {**self._head(self.shape.chunk), "choices": [], "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens,
                "total_tokens": self.prompt_tokens + tokens}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.shape.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    @staticmethod
    def _choice(choice: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **choice, "logprobs": None, "finish_reason": finish}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
