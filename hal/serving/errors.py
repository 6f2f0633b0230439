"""Errors as clients of the OpenAI API expect them. Their texts never hold a path or a traceback."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer other than 200: HTTP status, text, the argument it is about, a code for programs, headers."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}"""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else \
            "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shown(value: Any, limit: int = 80) -> str:
    """A value of a request, as an error shows it: short."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
