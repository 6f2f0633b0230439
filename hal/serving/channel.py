"""Messages between the server and its worker: JSON objects, one a line, over a socket pair."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

LONGEST = 1 << 26  # bytes of a line: a prompt of a few million tokens


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Channel:
    """The worker's end, blocking. send may be called from several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(encode(message))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The server's messages, until it is gone."""
        for line in self._reader:
            yield json.loads(line)
