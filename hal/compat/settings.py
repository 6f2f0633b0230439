"""What install() was told about devices and backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Called when the settings change.
forget: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Settings:
    """"auto" is the environment's HAL_DEVICE and HAL_ATTENTION_BACKEND, else anything."""

    device: str = "auto"
    backend: str = "auto"

    def __str__(self) -> str:
        return f"device {self.device} and backend {self.backend}"


_current = Settings()


def current() -> Settings:
    return _current


def use(new: Settings | None) -> None:
    """Device and backend of all calls from now on. None: the environment's."""
    global _current
    _current = new or Settings()
    for function in forget:
        function()
