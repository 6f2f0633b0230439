"""Who is timed: HAL's backends, bound as an engine binds them, and peers. Who can't serve is kept with its reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal import registry
from hal.backend import AttentionBackend
from hal.bench import inputs, peers
from hal.bench.shapes import PHASES
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from hal.platform import Platform

# What tells one set of inputs from another: page size, layout, who allocates it, dtype of q.
Reads = tuple[int, str, str, str]
PAGE_SIZE = 16  # of peers, where neither the user nor a backend says otherwise


@dataclass(frozen=True)
class Contender:
    """One who can be called. page_size, kv_layout, allocator and q_dtype: who shares them reads the same cache.

    target: the function it ends in, for people. new_cache, write: an impl's, in its kernel's layout. allocator: whose
    new_kv_cache that is, for one layout can have several strides; "" is HAL's own. kind: backend, peer or limit.
    """

    name: str
    kind: str
    target: str
    note: str
    functions: dict[str, Callable[..., Any]]
    page_size: int
    kv_layout: str
    q_dtype: str
    new_cache: inputs.NewCache
    write: inputs.WriteCache
    prepare: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    allocator: str = ""

    @property
    def reads(self) -> Reads:
        return self.page_size, self.kv_layout, self.allocator, self.q_dtype


@dataclass(frozen=True)
class Refusal:
    """One who can't serve a phase of a config. expected: asked for by name, or selection accepted it all the same."""

    name: str
    kind: str
    reasons: tuple[str, ...]
    expected: bool


def gather(backends: list[str] | None, peer_names: list[str], config: AttentionConfig, platform: Platform,
           phase: str) -> list[Contender | Refusal]:
    """Everyone for one phase (of hal.bench.shapes) of one config, backends first. backends None: all that serve.

    Raises ValueError for unknown names.
    """
    if phase == "verify":
        least = max(PHASES[phase].queries(1, 1 << 20, 1))
        config = config.replace(max_decode_query_len=max(least, config.max_decode_query_len))
    named = backends is not None
    asked = backends if backends is not None else [
        name for name in registry.names() if platform.kind in registry.get(name).platforms]
    found: dict[str, Contender | Refusal] = {}
    for name in asked:
        one = _backend(name, config, platform, PHASES[phase].bound, named)
        found.setdefault(one.name, one)
    first = next((one for one in found.values() if isinstance(one, Contender)), None)
    size = config.page_size or (first.page_size if first else PAGE_SIZE)
    own = config if config.page_size is not None else config.replace(page_size=size)
    return [*found.values(), *(_peer(name, own, platform) for name in peer_names)]


def _backend(name: str, config: AttentionConfig, platform: Platform, phase: str, named: bool) -> Contender | Refusal:
    from hal.attention import BindError, get_attention_impl
    from hal.decision import NoBackendError

    impl = None
    reasons: list[str] = []
    # For both phases first: one of prefill alone, or of decode alone, gets an automatic partner.
    for choice in ({"backend": name}, {f"{phase}_backend": name}):
        try:
            impl = get_attention_impl(config, platform, **choice)
            break
        except NoBackendError as error:
            decision = error.decisions["all"]
            seen = decision.prefill if phase == "prefill" else decision.decode
            said = [reason for candidate in seen.candidates for reason in candidate.reasons]
            reasons = reasons or said or [f"no backend of the other phase goes with it: {error}"]
            if said:
                break
        except BindError as error:
            reasons, named = [str(error)], True
            break
    if impl is None:
        return Refusal(name, "backend", tuple(dict.fromkeys(reasons)), named)
    decision = impl.decision
    bound = impl.prefill if phase == "prefill" else impl.decode
    chosen = decision.prefill if phase == "prefill" else decision.decode
    functions = {f: getattr(bound, f) for f in ("flash_attn_with_kvcache", "flash_attn_varlen_func")}
    assert decision.page_size is not None
    own = registry.get(str(decision.decode.chosen)).new_kv_cache.__func__  # type: ignore[attr-defined]
    allocator = "" if own is AttentionBackend.new_kv_cache.__func__ else str(own.__qualname__)  # type: ignore[attr-defined]
    return Contender(bound.backend, "backend", str(chosen.target), "", functions, decision.page_size,
                     decision.kv_layout or "", decision.q_dtype, impl.new_kv_cache, impl.write_kv_cache,
                     allocator=allocator)


def _peer(name: str, config: AttentionConfig, platform: Platform) -> Contender | Refusal:
    from hal.kv_cache import new_kv_cache, write_kv_cache

    make = peers.get(name)
    try:
        peer = make(config, platform)
    except (ValueError, ImportError) as error:
        return Refusal(name, "peer", (str(error),), True)
    if not isinstance(peer, peers.Peer):
        raise ValueError(f"peer {name!r} made {peer!r}, expected a hal.bench.peers.Peer")
    size = config.page_size
    assert size is not None

    def new_cache(pages: int, page_size: int) -> tuple[Any, Any]:
        return new_kv_cache(config, platform.torch_device, pages, page_size)

    target = f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', type(make).__name__)}"
    functions = {"flash_attn_with_kvcache": peer.flash_attn_with_kvcache,
                 "flash_attn_varlen_func": peer.flash_attn_varlen_func}
    return Contender(name, "limit" if peer.limit else "peer", target, peer.note, functions, size,
                     AttentionBackend.kv_layout, config.dtype, new_cache, write_kv_cache, peer.prepare)
