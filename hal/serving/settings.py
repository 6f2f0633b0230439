"""What a server is told, as data: made by `hal serve` from its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Everything the server needs to know; the limits' defaults are those of the command line. Seconds and bytes.

    name: the model's id in requests and answers. folder: where its tokenizer is. engine: "module:function", called in
    the worker as function(**arguments) with JSON values; it returns an object with the methods of
    hal.serving.worker.Engine. preload: "module:function", called as function(**arguments) in a spare worker before the
    engine: what takes time and touches no device. labels: one dict for each kernel that is bound, for the metrics.
    """

    name: str
    folder: Path
    engine: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preload: str | None = None
    labels: Sequence[Mapping[str, str]] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_running: int = 32
    max_queue: int = 256
    max_body: int = 4 << 20
    request_timeout: float = 600.0
    hang_timeout: float = 300.0
    shutdown_timeout: float = 10.0
    spare_worker: bool = True
