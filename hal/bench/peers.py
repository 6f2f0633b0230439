"""What HAL's backends are timed beside: the registry of peers, and the two that need torch alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal.config import AttentionConfig

if TYPE_CHECKING:
    from hal.platform import Platform


@dataclass(frozen=True)
class Peer:
    """Two functions with the contract's calling convention (hal.contract), made for one config and one device.

    note: what a reader must know to judge the figure. prepare(function's name, its keyword arguments) -> the keyword
    arguments the function is then called with (they may be others than the contract's): work that is not timed, such
    as laying the cache out anew. limit: no attention but a part of what it costs, such as reading the same bytes; what
    it returns is not compared with the oracle.
    """

    flash_attn_with_kvcache: Callable[..., Any]
    flash_attn_varlen_func: Callable[..., Any]
    note: str = ""
    prepare: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    limit: bool = False


#: Makes a peer; config.page_size is that of the cache it will read. Raises ValueError or ImportError, the reason
#: shown, where it can't serve; reasons carry the value seen and the values supported.
MakePeer = Callable[[AttentionConfig, "Platform"], Peer]

_peers: dict[str, MakePeer | str] = {
    "naive": "hal.bench.peer_naive:naive",
    "sdpa": "hal.bench.peer_sdpa:sdpa",
}


def register(name: str, make: MakePeer | str) -> None:
    """Add a peer under a name: a function, or "package.module:function", imported on first use.

    Raises ValueError when the name is taken.
    """
    if name in _peers:
        raise ValueError(f"peer name {name!r} is taken (peers: {', '.join(_peers)})")
    _peers[name] = make


def unregister(name: str) -> None:
    """Take back a register call. Raises ValueError for a name that is not there."""
    if name not in _peers:
        raise ValueError(f"peer {name!r} was not registered (peers: {', '.join(_peers)})")
    del _peers[name]


def names() -> list[str]:
    return list(_peers)


def get(name: str) -> MakePeer:
    """The function that makes a peer: of a registered name, or of the path "package.module:function".

    Raises ValueError for a name that is not known or a path that can't be loaded.
    """
    make = _peers.get(name, name)
    if not isinstance(make, str):
        return make
    module, colon, attribute = make.partition(":")
    if not colon:
        raise ValueError(f"peer {name!r} is not known (peers: {', '.join(_peers)}; or a path, package.module:function)")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"peer {name!r} can't be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"peer {name!r} is {found!r}, expected a function (config, platform) -> Peer")
    make_peer: MakePeer = found
    return make_peer
