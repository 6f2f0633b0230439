"""The KV write: new tokens' K and V into a paged cache, beside vLLM's and SGLang's ways and a plain copy.

hal.bench times attention; this takes turns in the same way, with the same clock. A write is checked by reading every
slot back: written ones must hold the very values, all others what they held before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.cpu import wheel
from benchmarks.cpu.peer_vllm import isa_of
from benchmarks.cpu.sweep import COLD_BYTES, Case
from hal.bench.run import LEAST_ROUNDS, MOST_ROUNDS, PASSES
from hal.bench.timing import MIN_SAMPLE, HostClock, Sample, calls_for

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

Write = Callable[..., Any]
#: A contender: (its write(k, v, *state, slots), state of one copy(pages), read(state) -> (k, v) [slots, Hkv, D] or None
#: where the layout can't be read back, kind, note).
Contender = tuple[Write, Callable[[int], tuple[Any, ...]], Callable[..., Any] | None, str, str]


def measure(case: Case, platform: Platform, seconds: float) -> dict[str, dict[str, Any]]:
    """name -> its result, as benchmarks.cpu.measure.measure has them."""
    import torch

    from benchmarks.cpu.measure import figures

    told: dict[str, dict[str, Any]] = {}
    found: dict[str, Contender] = {}
    for name, make in MAKERS.items():
        try:
            found[name] = make(case, platform)
        except (ValueError, ImportError, RuntimeError) as error:
            told[name] = {"kind": "backend" if name in ("cpu", "torch") else "peer", "status": "refused",
                          "reason": " ".join(str(error).split())}
    tokens = case.batch * case.seqlen
    pages = -(-tokens // case.page_size)
    copies = max(1, min(64, COLD_BYTES // case.kv_bytes))
    clock, order = HostClock(), random.Random(0)
    passes: dict[str, list[list[Sample]]] = {name: [] for name in found}
    rounds, calls = 0, dict.fromkeys(found, 1)
    with torch.inference_mode():
        for number in range(PASSES):
            news = [_tokens(case, tokens, pages, number * copies + copy) for copy in range(copies)]
            turns = []
            for name, (write, state, read, kind, note) in found.items():
                if name in told:
                    continue  # wrong or failed in the first pass
                states = [state(pages) for _ in range(copies)]
                if number == 0:
                    problem = _problem(write, states[0], read, *news[0])
                    if problem:
                        told[name] = {"kind": kind, "status": "wrong", "reason": problem, "note": note}
                        continue
                thunks = [_bound(write, k, v, one, slots) for (k, v, slots), one in zip(news, states)]
                for call in thunks:
                    call()
                turns.append((name, thunks))
            if number == 0:
                took = {name: clock.sample(thunks, 0, 1).seconds for name, thunks in turns}
                calls = {name: calls_for(one) for name, one in took.items()}
                turn = sum(max(MIN_SAMPLE, one) for one in took.values())
                rounds = -(-max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / turn))) // PASSES)
            samples: dict[str, list[Sample]] = {name: [] for name, _ in turns}
            for i in range(rounds):
                order.shuffle(turns)
                for name, thunks in turns:
                    samples[name].append(clock.sample(thunks, i * calls[name], calls[name]))
            for name in samples:
                passes[name].append(samples[name])
    for name, (_, _, read, kind, note) in found.items():
        if name not in told:
            told[name] = {"kind": kind, "status": "timed", "note": note, **figures(passes[name], case.threads),
                          "checked": "every slot read back" if read else "not checked"}
    return told


def _tokens(case: Case, tokens: int, pages: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(k, v, slots): sequences one after the other, on shuffled pages."""
    import torch

    random = torch.Generator().manual_seed(seed)
    config = case.config
    shape = (tokens, config.num_kv_heads, config.head_dim)
    k, v = (torch.randn(shape, generator=random).to(getattr(torch, case.dtype)) for _ in "kv")
    order = torch.randperm(pages, generator=random)
    token = torch.arange(tokens)
    return k, v, order[token // case.page_size] * case.page_size + token % case.page_size


def _bound(write: Write, k: Tensor, v: Tensor, state: tuple[Any, ...], slots: Tensor) -> Callable[[], Any]:
    return lambda: write(k, v, *state, slots)


def _problem(write: Write, state: tuple[Any, ...], read: Callable[..., Any] | None, k: Tensor, v: Tensor,
             slots: Tensor) -> str | None:
    """What is wrong with a write into poisoned memory; None where nothing is, or where it can't be read back."""
    if read is None:
        return None
    for store in state:
        store.fill_(77.0)
    write(k, v, *state, slots)
    for name, new, cache in zip("kv", (k, v), read(*state)):
        want = cache.clone().fill_(77.0)
        want[slots] = new
        if not bool((cache == want).all()):
            return f"{name}: {int((cache != want).any(-1).any(-1).sum())} of {len(cache)} slots differ"
    return None


def _hal(backend: str) -> Callable[[Case, Platform], Contender]:
    def make(case: Case, platform: Platform) -> Contender:
        from hal import get_attention_impl

        impl = get_attention_impl(case.config, platform, backend=backend)
        return (impl.write_kv_cache, impl.new_kv_cache,
                lambda k, v: (k.flatten(0, 1), v.flatten(0, 1)), "backend", "with its checks of every argument")

    return make


def _vllm(case: Case, platform: Platform) -> Contender:
    import torch

    ops, config, size = wheel.kernels(), case.config, case.page_size
    isa = isa_of(case.dtype, size, config.head_dim, torch.cpu._is_amx_tile_supported())

    def state(pages: int) -> tuple[Any, ...]:
        store = torch.zeros(pages, config.num_kv_heads, 2 * size, config.head_dim, dtype=getattr(torch, case.dtype))
        return store.chunk(2, dim=2)

    def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        ops.cpu_attn_reshape_and_cache(k, v, k_cache, v_cache, slots, isa, 1.0, 1.0, "auto")

    return write, state, None, "peer", (f"vLLM's cpu_attn_reshape_and_cache, variant {isa}; its order of elements "
                                        "can't be read back: attention over it is checked in other cells")


def _sglang(case: Case, platform: Platform) -> Contender:
    import torch

    config = case.config

    def state(pages: int) -> tuple[Any, ...]:
        shape = (pages * case.page_size, config.num_kv_heads, config.head_dim)
        return tuple(torch.zeros(shape, dtype=getattr(torch, case.dtype)) for _ in "kv")

    def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        k_cache[slots], v_cache[slots] = k, v

    return write, state, lambda k, v: (k, v), "peer", "cache[slots] = new, as SGLang's token pool on CPUs writes"


def _copy(case: Case, platform: Platform) -> Contender:
    _, state, _, _, _ = _sglang(case, platform)

    def copy(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        k_cache[: len(k)].copy_(k)
        v_cache[: len(v)].copy_(v)

    return copy, state, None, "limit", "a limit, no write into pages: torch's copy_ of the same bytes"


MAKERS: dict[str, Callable[[Case, Platform], Contender]] = {
    "cpu": _hal("cpu"), "torch": _hal("torch"), "vllm": _vllm, "sglang": _sglang, "copy": _copy}
