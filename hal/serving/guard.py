"""Who may ask, and how much: checked before a body is read."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hal.serving.errors import ApiError, shown

BODY_SECONDS = 30.0  # a client that sends slower than this is given up
MOST_UNREAD = 64 << 20  # bytes over the limit that are read and forgotten, so that the client comes to read the error
OPEN = ("/health", "/metrics")  # without a key: what an orchestrator asks


def is_loopback(host: str) -> bool:
    """localhost, or an address that other machines can't reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI: the key, compared in constant time; without one, that the client means this machine.

    A page in a browser can point a name of its own at 127.0.0.1 and then talk to it as to its own server. Its requests
    carry that name as Host, so where there is no key only names of the loopback are answered.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, check_host: bool) -> None:
        self.app, self.check_host = app, check_host
        self.expected = None if api_key is None else b"Bearer " + api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        error = self._refusal(Request(scope))
        answer = self.app if error is None else JSONResponse(error.body(), error.status, error.headers)
        await answer(scope, receive, send)

    def _refusal(self, request: Request) -> ApiError | None:
        if self.check_host and not is_loopback(_without_port(request.headers.get("host", ""))):
            return ApiError(403, f"Host {shown(request.headers.get('host', ''))} is not of this machine: a server "
                                 "without --api-key answers localhost, 127.0.0.1 and [::1] alone", code="wrong_host")
        if self.expected is None or request.scope["path"] in OPEN:
            return None
        given = request.headers.get("authorization", "").encode("latin-1")
        if hmac.compare_digest(given, self.expected):
            return None
        return ApiError(401, "the API key is missing or wrong: send the header Authorization: Bearer KEY",
                        code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _without_port(host: str) -> str:
    return host.rpartition("]")[0] if host.startswith("[") else host.partition(":")[0]


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises ApiError: not JSON (415), too large (413), too slow (408)."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"Content-Type {shown(kind)} is not supported (supported: application/json)")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ApiError(415, f"Content-Encoding {shown(encoding)} is not supported (supported: identity)")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most + MOST_UNREAD:
        raise _too_large(size=int(length), most=most)

    async def read() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most + MOST_UNREAD:
                break
            if size <= most:
                parts.append(part)
        if size > most:
            raise _too_large(size, most)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s", headers={"Connection": "close"}) \
            from None


def _too_large(size: int, most: int) -> ApiError:
    return ApiError(413, f"the body has {size} bytes or more, at most {most} are taken (--max-body)",
                    code="body_too_large", headers={"Connection": "close"})
