"""The adapters mate and mate_mla against the emulator of MATE, on emulated devices: a model of four kinds of layer over
random steps, threads, refusals, and deliberate faults in the adapters' source, each of which must be seen.

The conformance grid is run by ci/verify_emulated.py; a sample of its quick cases is here.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from adapter_calls import KVCACHE_REFUSED, KVCACHE_SAMPLES, Recorder, bind, latent_call
from emulators.common import Vendor
from emulators.devices import on, plain_of, tag_of
from emulators.mate import KVCACHE, METADATA, mate
from emulators.torch_musa import TorchMusa

import hal
from hal import AttentionConfig, Platform, oracle, registry

ROOT = Path(__file__).parents[1]
BF16 = torch.bfloat16
PAGE, PAGES = 64, 17  # the last page holds NaN and is what unused entries of a table name
NAN_PAGE = PAGES - 1
KINDS = {
    "full": AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=64),
    "sliding": AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=64, sliding_window=20),
    "chunked": AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=64, attention_chunk=16),
    "mla": AttentionConfig(num_heads=8, mla=True, softmax_scale=0.1),
}
ARGUMENTS = {"full": {}, "sliding": {"window_size": (19, 0)}, "chunked": {"attention_chunk": 16},
             "mla": {"softmax_scale": 0.1}}


class Here(NamedTuple):
    machine: TorchMusa
    vendor: Vendor

    def count(self, function: str = METADATA) -> int:
        return sum(call.function == function for call in self.vendor.calls)


@pytest.fixture
def here() -> Iterator[Here]:
    with TorchMusa("musa:0", "musa:1") as machine, mate(current_device=machine.current).installed() as vendor:
        yield Here(machine, vendor)


def platform(index: int = 0, arch: str = "mp31") -> Platform:
    return Platform("musa", arch, f"musa:{index}", index, "emulated MTT")


def ints(values: list[int], device: str = "musa:0") -> torch.Tensor:
    return on(torch.tensor(values, dtype=torch.int32), device)


# --- a model ---

class Step:
    """Lengths, pages and query tokens of one step of one model. queries: tokens of each sequence."""

    def __init__(self, rng: random.Random, device: str, decode: bool) -> None:
        self.device, batch = device, rng.randint(1, 4)
        self.queries = [1] * batch if decode else [1, *(rng.choice((1, 0, rng.randint(2, 30))) for _ in range(batch))]
        batch = len(self.queries)
        self.keys = [max(q, rng.choice((q, 0, 63, 64, 65, rng.randint(1, 150)))) for q in self.queries]
        self.keys = [min(n, 150) for n in self.keys]
        pages = rng.sample(range(NAN_PAGE), NAN_PAGE)
        width = max(-(-n // PAGE) for n in self.keys) + 1
        rows = [[pages.pop() for _ in range(-(-n // PAGE))] for n in self.keys]
        self.table = [row + [NAN_PAGE] * (width - len(row)) for row in rows]
        self.decode, self.total, self.longest = decode, sum(self.queries), max(self.queries)
        ends = [sum(self.queries[:i]) for i in range(batch + 1)]
        self.lens, self.cu = ints(self.keys, device), ints(ends, device)
        self.page_table = on(torch.tensor(self.table, dtype=torch.int32), device)

    def context(self) -> Any:
        return hal.forward_context(cache_seqlens=self.lens, cu_seqlens_q=self.cu, page_table=self.page_table)

    def grow(self, rng: random.Random) -> None:
        """Other lengths, in the same memory."""
        self.keys = [max(q, n - rng.choice((0, 1, 9))) for q, n in zip(self.queries, self.keys)]
        plain_of(self.lens).copy_(torch.tensor(self.keys, dtype=torch.int32))


class Layer:
    """A layer with its own cache, full of random numbers but for the page of NaN."""

    def __init__(self, kind: str, impl: Any, generator: torch.Generator) -> None:
        self.kind, self.impl, self.generator = kind, impl, generator
        self.k_cache, self.v_cache = impl.new_kv_cache(PAGES)
        slots, where = torch.arange(PAGES * PAGE), impl.platform.torch_device
        new = [torch.randn(len(slots), *cache.shape[2:], generator=generator).to(BF16)
               for cache in (self.k_cache, self.v_cache)]
        for x in new:
            x[NAN_PAGE * PAGE :] = float("nan")
        impl.write_kv_cache(*(on(x, where) for x in new), self.k_cache, self.v_cache, on(slots, where))

    def call(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """(the adapter's result, the oracle's)."""
        config = self.impl.config
        shape = (len(step.queries), 1) if step.decode else (step.total,)
        def randn(width: int) -> torch.Tensor:
            return torch.randn(*shape, config.num_heads, width, generator=self.generator).to(BF16)

        host: dict[str, Any] = {"q": randn(self.k_cache.shape[-1]), "k_cache": plain_of(self.k_cache),
                                "v_cache": plain_of(self.v_cache), "cache_seqlens": plain_of(step.lens),
                                "page_table": plain_of(step.page_table), "causal": True, **ARGUMENTS[self.kind]}
        if self.kind == "mla":
            host["qv"] = randn(512) * 0.3
        if not step.decode:
            host |= {"cu_seqlens_q": plain_of(step.cu), "max_seqlen_q": step.longest}
        here = {name: on(x, step.device) if name in ("q", "qv") else x for name, x in host.items()} | {
            "k_cache": self.k_cache, "v_cache": self.v_cache, "cache_seqlens": step.lens,
            "page_table": step.page_table} | ({} if step.decode else {"cu_seqlens_q": step.cu})
        phase = self.impl.decode if step.decode else self.impl.prefill
        got = phase.flash_attn_with_kvcache(**here)
        with torch._C.DisableTorchFunction():  # plain tensors: no need to ask the devices about each operation
            return got, oracle.flash_attn_with_kvcache(**host)


class Model:
    """Two layers of each kind on one device."""

    def __init__(self, here: Here, index: int, kinds: dict[str, AttentionConfig] = KINDS, seed: int = 0) -> None:
        self.machine, self.device = here.machine, f"musa:{index}"
        self.impls = hal.get_attention_impls(kinds, platform(index))
        generator = torch.Generator().manual_seed(seed + index)
        self.layers = [Layer(kind, self.impls[kind], generator) for kind in kinds for _ in range(2)]

    def run(self, step: Step, again: bool = False) -> None:
        """Every layer; `again`: one of each kind."""
        for layer in self.layers[:: 2 if again else 1]:
            own = layer.impl.decision.decode.chosen.startswith("mate")
            with self.machine.no_sync() if own else nullcontext():  # MATE's layers never wait for the device
                got, want = layer.call(step)
            assert str(tag_of(got)) == self.device
            assert near(got, want), f"{layer.kind} of {step.queries} queries over {step.keys} keys"


def near(got: Any, want: torch.Tensor, tolerance: float = 2e-2) -> bool:
    return bool(torch.allclose(plain_of(got).double(), want.double(), atol=tolerance, rtol=tolerance))


def test_who_serves_which_kind(here: Here) -> None:
    impls = hal.get_attention_impls(KINDS, platform())
    assert {kind: impl.decode.backend for kind, impl in impls.items()} == {
        "full": "mate", "sliding": "mate", "chunked": "torch", "mla": "mate_mla"}
    assert {impl.decision.page_size for impl in impls.values()} == {64}
    assert "MUSA SDK 5.1" in why(impls["chunked"].decision, "mate")[0]


EVENTS = ("plain", "update", "draft", "error", "inference", "devices")
PLANS = 2  # schedules of an epoch: full and sliding layers


def test_two_hundred_random_steps(here: Here) -> None:
    """Every event many times: the oracle's numbers, one schedule for each kind of layer of a model and epoch, one
    workspace initialised, and no copy of lengths to the host (Model.run)."""
    rng, models, drafts = random.Random(3), [Model(here, n) for n in (0, 1)], [Model(here, n, seed=9) for n in (0, 1)]
    served: Counter[str] = Counter()
    for number in range(200):
        event = EVENTS[number % len(EVENTS)]
        n = rng.randrange(2)
        model, step = models[n], Step(rng, f"musa:{n}", rng.random() < 0.5)
        here.vendor.calls.clear()
        epochs = 1
        with torch.inference_mode() if event == "inference" else nullcontext(), step.context() as outer:
            model.run(step)
            if event == "update":
                step.grow(rng)
                outer.update()
                model.run(step, again=True)
                epochs = 2
            elif event in ("draft", "error"):
                other, epochs = Step(rng, step.device, rng.random() < 0.5), 2
                with pytest.raises(KeyError) if event == "error" else nullcontext(), other.context():
                    drafts[n].run(other)
                    model.run(step, again=True)  # the outer model's layers inside the inner context
                    model.run(other, again=True)  # the same impls over the inner lengths: plans of their own
                    epochs += 1
                    if event == "error":
                        raise KeyError
                model.run(step, again=True)
            elif event == "devices":
                other, epochs = Step(rng, f"musa:{1 - n}", False), 2
                with other.context():
                    models[1 - n].run(other)
                    model.run(step, again=True)
        assert here.count() == PLANS * epochs, (number, event)
        flags = [call.arguments["scheduler_metadata"][1] for call in here.vendor.calls
                 if call.function == KVCACHE and call.arguments["qv"] is not None]
        assert flags.count(False) == epochs < len(flags), (number, event)
        served[event] += 1
    assert min(served.values()) >= 30
    assert len(served) == len(EVENTS)


# --- the adapters' source, as it is or with a fault ---

FILES = ("mate_plans", "mate", "mate_mla")


class Adapter:
    """backends/mate*.py with some text replaced in one of them; its backends, bound to the emulator at hand."""

    def __init__(self, here: Here, file: str = "", old: str = "", new: str = "") -> None:
        self.machine, modules = here.machine, {}
        for name in FILES:
            source = (ROOT / "backends" / f"{name}.py").read_text()
            if name == file:
                assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {name}.py"
                source = source.replace(old, new)
            module = modules[f"hal.backends.{name}"] = types.ModuleType(f"hal.backends.{name}")
            # `from hal.backends import mate_plans` asks the package for its attribute first.
            attributes = {key.rpartition(".")[2]: value for key, value in modules.items()}
            with mock.patch.dict(sys.modules, modules), mock.patch.dict(vars(sys.modules["hal.backends"]), attributes):
                exec(compile(source, f"{name}.py", "exec"), module.__dict__)
        self.backends = {"mate": modules["hal.backends.mate"].Mate,
                         "mate_mla": modules["hal.backends.mate_mla"].MateMLA}

    def bind(self, name: str, **config: Any) -> Any:
        backend = self.backends[name]
        return backend.bind(AttentionConfig(**config), platform(), backend.packages[0])

    def cache(self, name: str, device: str, **config: Any) -> Any:
        return self.backends[name].new_kv_cache(AttentionConfig(**config), device, PAGES, PAGE)


DENSE, MLA = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}, {"num_heads": 8, "mla": True, "softmax_scale": 0.1}


def compare(adapter: Adapter, name: str, keys: list[int], queries: list[int] | int, *, bound: Any = None,
            device: str = "musa:0", lse: bool = True, config: dict[str, Any] | None = None, **given: Any) -> None:
    """One call of kvcache against the oracle, result and LSE. queries: packed, or one number for each sequence."""
    config = config or (MLA if name == "mate_mla" else DENSE)
    settings = AttentionConfig(**config)
    bound = bound or adapter.bind(name, **config)
    generator = torch.Generator().manual_seed(len(keys) + sum(keys))
    k_cache, v_cache = adapter.cache(name, device, **config)
    for cache in (k_cache, v_cache):
        plain_of(cache).copy_(torch.randn(cache.shape, generator=generator))
        plain_of(cache)[NAN_PAGE] = float("nan")
    free = iter(range(NAN_PAGE))
    width = max(-(-n // PAGE) for n in keys) + 2
    rows = [[next(free) for _ in range(-(-n // PAGE))] for n in keys]
    shape = (len(keys), queries) if isinstance(queries, int) else (sum(queries),)
    host: dict[str, Any] = {
        "q": torch.randn(*shape, settings.num_heads, k_cache.shape[-1], generator=generator).to(BF16),
        "cache_seqlens": torch.tensor(keys, dtype=torch.int32), "causal": True, "return_softmax_lse": lse,
        "page_table": torch.tensor([r + [NAN_PAGE] * (width - len(r)) for r in rows], dtype=torch.int32), **given}
    if name == "mate_mla":
        host["qv"] = torch.randn(*shape, settings.num_heads, 512, generator=generator).to(BF16) * 0.3
    if not isinstance(queries, int):
        ends = [sum(queries[:i]) for i in range(len(queries) + 1)]
        host |= {"cu_seqlens_q": torch.tensor(ends, dtype=torch.int32), "max_seqlen_q": max(queries)}
    call = {n: on(x, device) if isinstance(x, torch.Tensor) else x for n, x in host.items()}
    got = bound.flash_attn_with_kvcache(k_cache=k_cache, v_cache=v_cache, **call)
    want = oracle.flash_attn_with_kvcache(
        k_cache=plain_of(k_cache), v_cache=plain_of(v_cache),
        **({"softmax_scale": settings.softmax_scale} if settings.softmax_scale else {}) | host)
    for a, b in zip(got if lse else (got,), want if lse else (want,)):
        assert str(tag_of(a)) == device
        assert a.shape == b.shape
        assert near(a, b), name


def packed_prefill(adapter: Adapter, keys: list[int], queries: list[int] | None = None, **given: Any) -> None:
    """The varlen function over packed keys: the queries' own tokens, with one tensor of lengths, or others."""
    same, queries = queries is None, queries or keys
    generator, bound = torch.Generator().manual_seed(1), adapter.bind("mate", **DENSE)
    host: dict[str, Any] = {
        name: torch.randn(sum(rows), heads, 64, generator=generator).to(BF16)
        for name, rows, heads in (("q", queries, 4), ("k", keys, 2), ("v", keys, 2))}
    for name, rows in (("q", queries), ("k", keys)):
        host |= {f"cu_seqlens_{name}": torch.tensor([sum(rows[:i]) for i in range(len(rows) + 1)], dtype=torch.int32),
                 f"max_seqlen_{name}": max(rows)}
    host |= {"causal": True, "return_softmax_lse": True, **given}
    here = {n: on(x, "musa:0") if isinstance(x, torch.Tensor) else x for n, x in host.items()}
    here |= {"cu_seqlens_k": here["cu_seqlens_q"]} if same else {}
    got = bound.flash_attn_varlen_func(**here)
    for a, b in zip(got, oracle.flash_attn_varlen_func(**host)):
        assert near(a, b)


def steps(adapter: Adapter, name: str) -> None:
    """Two steps of other lengths, two layers each; then the other device, which is not the current one."""
    bound = adapter.bind(name, **(MLA if name == "mate_mla" else DENSE))
    for keys in ([700, 1], [3, 650]):
        with hal.forward_context():
            compare(adapter, name, keys, 1, bound=bound)
            compare(adapter, name, keys, 1, bound=bound)
    with hal.forward_context():
        compare(adapter, name, [70, 5], 2, bound=bound, device="musa:1")


def check_mate(adapter: Adapter) -> None:
    """What must be right of mate: every fault below breaks one of these."""
    steps(adapter, "mate")
    compare(adapter, "mate", [0, 0], 1, num_splits=4)  # nothing at all to attend to
    bound = adapter.bind("mate", **DENSE)
    for queries in ([30, 1, 0], [0, 1, 30]):
        with hal.forward_context():
            compare(adapter, "mate", [40, 40, 40], queries, bound=bound)
    compare(adapter, "mate", [120], [100], config={**DENSE, "head_dim": 256})  # several tiles of query rows
    compare(adapter, "mate", [40, 3, 0, 130], [30, 5, 0, 1])  # rows without keys
    for window, causal in (((9, 0), True), ((9, 0), False), ((-1, 0), False), ((5, 3), False)):
        compare(adapter, "mate", [200, 70], [3, 40], window_size=window, causal=causal)
    compare(adapter, "mate", [100, 5], 2, softmax_scale=0.3, softcap=4.0)
    sinks = {"sinks": torch.tensor([0.5, -1.0, 2.0, 9.0], dtype=BF16), "window_size": (9, 0)}
    compare(adapter, "mate", [100, 0], 1, config={**DENSE, "sinks": True, "sliding_window": 10}, **sinks)
    compare(adapter, "mate", [60, 60], 1, config={**DENSE, "softmax_scale": 0.4}, lse=False)
    packed_prefill(adapter, [50, 2, 0], [50, 5, 3])
    for given in ({"causal": True}, {"causal": False, "window_size": (-1, 0)}, {"window_size": (9, 0)}):
        packed_prefill(adapter, [50, 2, 0], **given)
    append(adapter)


def append(adapter: Adapter) -> None:
    """New keys, rotated, into pages and attended to; with one number for all lengths."""
    bound, device = adapter.bind("mate", **DENSE), "musa:0"
    generator, half = torch.Generator().manual_seed(2), 16
    caches = [torch.randn(4, PAGE, 2, 64, generator=generator).to(BF16) for _ in range(2)]
    angles = torch.rand(80, half, generator=generator) * 6
    host: dict[str, Any] = {
        "q": torch.randn(2, 2, 4, 64, generator=generator).to(BF16), "cache_seqlens": 63, "causal": True,
        "k": torch.randn(2, 2, 2, 64, generator=generator).to(BF16), "rotary_cos": angles.cos().to(BF16),
        "v": torch.randn(2, 2, 2, 64, generator=generator).to(BF16), "rotary_sin": angles.sin().to(BF16),
        "page_table": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), "rotary_interleaved": False}
    mine = [on(x.clone(), device) for x in caches]
    got = bound.flash_attn_with_kvcache(k_cache=mine[0], v_cache=mine[1], **{
        n: on(x, device) if isinstance(x, torch.Tensor) else x for n, x in host.items()})
    want = oracle.flash_attn_with_kvcache(k_cache=caches[0], v_cache=caches[1], **host)
    assert near(got, want[0] if isinstance(want, tuple) else want)
    for a, b in zip(mine, caches):
        assert near(a, b.double())


def check_mla(adapter: Adapter) -> None:
    """What must be right of mate_mla."""
    steps(adapter, "mate_mla")
    compare(adapter, "mate_mla", [0, 70, 0], 1)
    compare(adapter, "mate_mla", [40, 3, 0, 130], [30, 5, 0, 1])
    compare(adapter, "mate_mla", [700, 2], 5)
    compare(adapter, "mate_mla", [66, 300], 3, causal=False)
    compare(adapter, "mate_mla", [66, 300], 3, causal=False, window_size=(-1, 0))
    compare(adapter, "mate_mla", [100, 5], 2, softmax_scale=0.03)
    compare(adapter, "mate_mla", [5], 1, config={**MLA, "num_heads": 128})  # the rope part behind the latent one
    compare(adapter, "mate_mla", [60, 60], 1, lse=False)


def test_adapters_are_right(here: Here) -> None:
    adapter = Adapter(here)
    check_mate(adapter)
    check_mla(adapter)


# name -> (file, text, what the fault makes of it)
MATE_FAULTS = {
    "lengths": ("mate", "cache_seqlens=cache_seqlens, page_table=page_table,",
                "cache_seqlens=cache_seqlens - 1, page_table=page_table,"),
    "layout": ("mate", "attend(q, k_cache, v_cache, k=k,", "attend(q, v_cache, k_cache, k=k,"),
    "pages": ("mate", "cache_seqlens=cache_seqlens, page_table=page_table,",
              "cache_seqlens=cache_seqlens, page_table=page_table.flip(0),"),
    "window": ("mate", "causal, window = mask(causal, window_size)",
               "causal, window = mask(causal, window_size)\n    window = (window[0] + (window[0] >= 0), window[1])"),
    "window that is causal": ("mate", "causal, window = mask(causal, window_size)",
                              "window = tuple(window_size)"),
    "scale": ("mate", "rotary_cos=rotary_cos, rotary_sin=rotary_sin, causal=causal, window_size=window,\n"
              "                        softmax_scale=scale if softmax_scale is None else softmax_scale,",
              "rotary_cos=rotary_cos, rotary_sin=rotary_sin, causal=causal, window_size=window,\n"
              "                        softmax_scale=softmax_scale,"),
    "softcap": ("mate", "return_softmax_lse=return_softmax_lse, **given)\n        if",
                "return_softmax_lse=return_softmax_lse)\n        if"),
    "sink": ("mate", "learnable_sink=sinks,\n                        scheduler_metadata",
             "learnable_sink=None,\n                        scheduler_metadata"),
    "LSE of a sink": ("mate", "    if sinks is not None:\n        lse = torch.where",
                      "    if False:\n        lse = torch.where"),
    "schedule of another call": ("mate_plans", "    return Planner(mate_schedule)", """
    made = []

    def first(device, lengths, params):
        made.append(mate_schedule(device, *lengths, *params))
        return made[0]

    return first"""),
    "schedule of another epoch": ("mate_plans", "    return Planner(mate_schedule)", """
    made = {}

    def once(device, lengths, params):
        return made.setdefault((device, params), mate_schedule(device, *lengths, *params))

    return once"""),
    "schedule with other splits": ("mate_plans", "has_softcap=has_softcap, num_splits=num_splits,",
                                   "has_softcap=has_softcap, num_splits=64,"),
    "schedule with other packing": ("mate_plans", "pack_gqa=pack_gqa, mp_margin", "pack_gqa=False, mp_margin"),
    "schedule on the current device": ("mate_plans", "with _current(device):", "with contextlib.nullcontext():"),
    "schedule of nothing": ("mate_plans", "cache_seqlens.clamp(min=1)", "cache_seqlens"),
    "rows without keys": ("mate", '"auto" if same else "mutlass"', '"auto"'),
    "one length a page": ("mate_plans", "torch.full((batch,), length", "torch.full((4,), length"),
    "rotation by too few rows": ("mate", "rotary_cos.shape[0] < capacity", "rotary_cos.shape[0] < 0"),
    "results": ("mate", "out, lse = result[:2]", "out, lse, *_ = result[1:]"),
}
MLA_FAULTS = {
    "lengths": ("mate_mla", "qv=qv, cache_seqlens=cache_seqlens,", "qv=qv, cache_seqlens=cache_seqlens - 1,"),
    "layout": ("mate_mla", "    return joint[..., None, _LATENT:], joint[..., None, :_LATENT]",
               "    return joint[..., None, :_ROPE], joint[..., None, _ROPE:]"),
    "pages": ("mate_mla", "page_table=page_table,\n                             cu_seqlens_q",
              "page_table=page_table.flip(0),\n                             cu_seqlens_q"),
    "scale": ("mate_mla", "        softmax_scale = scale if softmax_scale is None else softmax_scale\n",
              "        softmax_scale = scale\n"),
    "mask": ("mate_mla", "causal=causal, scheduler_metadata", "causal=False, scheduler_metadata"),
    "window that is causal": ("mate_mla", "    return causal or right == 0", "    return causal"),
    "workspace of another call": ("mate_plans", "    return Planner(mate_workspace)", """
    made = []

    def first(device, lengths, params):
        made.append(mate_workspace(device, *lengths, *params))
        return made[0]

    return first"""),
    "workspace that nobody filled": ("mate_plans", "dtype=torch.uint8, device=device), False]",
                                     "dtype=torch.uint8, device=device), True]"),
    "workspace of another device": ("mate_plans", "dtype=torch.uint8, device=device), False]",
                                    'dtype=torch.uint8, device="musa:0"), False]'),
    "workspace too small": ("mate_plans", "_PARTS_BYTES, _SEQUENCE_BYTES = 2048 * 8 * 4, 4",
                            "_PARTS_BYTES, _SEQUENCE_BYTES = 64, 4"),
    "rows without keys": ("mate_mla", "        result.masked_fill_(blind[..., None, None], 0.0)\n", ""),
    "LSE of rows without keys": ("mate_mla", '.masked_fill(blind[:, None], float("-inf"))', ""),
    "LSE's layout": ("mate_mla", "lse.transpose(1, 2).masked_fill(blind[:, None]", "lse.masked_fill(blind[..., None]"),
}


def test_a_fault_is_really_in_the_source() -> None:
    """A fault whose text is gone, or there twice, would be no fault: Adapter refuses it."""
    for file, old, _ in (*MATE_FAULTS.values(), *MLA_FAULTS.values()):
        assert (ROOT / "backends" / f"{file}.py").read_text().count(old) == 1, old


@pytest.mark.parametrize(("check", "fault"), [(check_mate, fault) for fault in MATE_FAULTS] + [
    (check_mla, fault) for fault in MLA_FAULTS])
def test_faults_are_seen(here: Here, check: Callable[[Adapter], None], fault: str) -> None:
    adapter = Adapter(here, *(MATE_FAULTS if check is check_mate else MLA_FAULTS)[fault])
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check(adapter)


def test_the_prebuilt_kernel_is_for_keys_of_the_same_tokens(here: Here) -> None:
    adapter = Adapter(here)
    packed_prefill(adapter, [50, 2, 0])
    packed_prefill(adapter, [50, 2, 0], [50, 2, 0])  # equal, but nobody knows without asking the device
    assert [call.arguments["backend"] for call in here.vendor.calls] == ["auto", "mutlass"]


# --- plans ---

def calls(here: Here) -> list[dict[str, Any]]:
    return [call.arguments for call in here.vendor.calls if call.function == KVCACHE]


def test_a_workspace_is_of_one_stream_and_a_failed_call_fills_none(here: Here) -> None:
    adapter = Adapter(here)
    bound, lens = adapter.bind("mate_mla", **MLA), ints([5, 70])
    table = on(torch.tensor([[0, 1], [2, 3]]).int(), "musa:0")
    k_cache, v_cache = adapter.cache("mate_mla", "musa:0", **MLA)
    call = {"q": torch.zeros(2, 1, 8, 64), "qv": torch.zeros(2, 1, 8, 512)}
    call = {n: on(x.to(BF16), "musa:0") for n, x in call.items()} | {
        "k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": lens, "page_table": table}
    with hal.forward_context(cache_seqlens=lens):
        with pytest.raises(RuntimeError, match="block_table"):
            bound.flash_attn_with_kvcache(**{**call, "page_table": table.long()})
        for _ in range(2):
            bound.flash_attn_with_kvcache(**call)
        with torch.musa.stream(here.machine.new_stream("musa:0")):  # type: ignore[attr-defined]
            for _ in range(2):
                bound.flash_attn_with_kvcache(**call)
        bound.flash_attn_with_kvcache(**call)
    given = [a["scheduler_metadata"] for a in calls(here)]
    assert [flag for _, flag in given] == [False, False, True, False, True, True]
    first, second = given[1][0], given[3][0]
    assert [workspace is first for workspace, _ in given] == [True, True, True, False, False, True]
    assert second is given[4][0]
    assert second.data_ptr() != first.data_ptr()
    here.vendor.calls.clear()
    for _ in range(2):  # outside a context every call plans for itself
        bound.flash_attn_with_kvcache(**call)
    assert [a["scheduler_metadata"][1] for a in calls(here)] == [False, False]


def test_one_schedule_for_layers_that_differ_in_nothing_it_is_made_of(here: Here) -> None:
    adapter = Adapter(here)
    one, other = adapter.bind("mate", **DENSE), adapter.bind("mate", **DENSE)
    k_cache, v_cache = adapter.cache("mate", "musa:0", **DENSE)
    base = {"q": on(torch.zeros(2, 1, 4, 64, dtype=BF16), "musa:0"), "k_cache": k_cache, "v_cache": v_cache,
            "cache_seqlens": ints([5, 70]), "page_table": on(torch.tensor([[0, 1], [2, 3]]).int(), "musa:0")}
    with hal.forward_context(cache_seqlens=base["cache_seqlens"]):
        counts = []
        for bound, more in ((one, {}), (one, {"softmax_scale": 0.5}), (one, {"window_size": (5, 0)}),
                            (one, {"num_splits": 3}), (one, {"pack_gqa": True}), (one, {"sm_margin": 2}),
                            (one, {"cache_seqlens": ints([5, 70])}), (other, {}), (one, {})):
            bound.flash_attn_with_kvcache(**{**base, **more})
            counts.append(here.count())
    assert counts == [1, 1, 2, 3, 4, 5, 6, 7, 7]
    sinks = on(torch.zeros(4, dtype=BF16), "musa:0")
    one.flash_attn_with_kvcache(**base, sinks=sinks, window_size=(5, 0))
    assert here.count() == 7, "a schedule that MATE drops"


# --- threads: a kernel that only looks whose schedule it got ---

@pytest.fixture
def stub(here: Here) -> list[str]:
    """MATE's two functions, fast: a schedule remembers its thread and its lengths, and the kernel compares."""
    wrong: list[str] = []

    def metadata(**a: Any) -> Any:
        made: Any = a["seqused_k"].clone()
        made.made_by = threading.get_ident()
        return made

    def kernel(q: Any, k_cache: Any, v_cache: Any, **a: Any) -> Any:
        schedule, lens = a["scheduler_metadata"], a["cache_seqlens"]
        if schedule.made_by != threading.get_ident() or not torch.equal(schedule, lens):
            wrong.append(f"{schedule.tolist()} of thread {schedule.made_by} for {lens.tolist()}")
        return q

    module: Any = sys.modules["mate.mha_interface"]
    module.get_scheduler_metadata, module.flash_attn_with_kvcache = metadata, kernel
    return wrong


@pytest.mark.parametrize(("count", "shared"), [(16, False), (8, True)])
def test_threads(here: Here, stub: list[str], count: int, shared: bool) -> None:
    made = [hal.get_attention_impl(KINDS["full"], platform()) for _ in range(1 if shared else count)]
    steps_done, errors = Counter[int](), []

    def work(number: int) -> None:
        impl, rng = made[0 if shared else number], random.Random(number)
        try:
            q, cache = torch.zeros(2, 1, 4, 64), torch.zeros(2, PAGE, 2, 64)  # on the CPU: nothing here is computed
            lens, table = torch.ones(2, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32)
            for _ in range(2000):
                lens[0] = rng.randint(1, 60)
                with hal.forward_context(cache_seqlens=lens):
                    for _ in range(2):
                        impl.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=lens, page_table=table)
                steps_done[number] += 1
        except Exception as error:  # noqa: BLE001 - of another thread
            errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert (errors, stub[:1]) == ([], [])
    assert steps_done == Counter({n: 2000 for n in range(count)})


# --- refusals ---

@pytest.mark.parametrize("name", KVCACHE_SAMPLES)
def test_mla_refuses_by_name_what_its_branch_ignores(name: str) -> None:
    """And what it does not refuse reaches MATE."""
    recorder, (value, more) = Recorder("mate.mha_interface"), KVCACHE_SAMPLES[name]
    more = {n: v for n, v in more.items() if n not in KVCACHE_REFUSED["mate_mla"]}
    with recorder.vendor.installed():
        bound = bind("mate_mla", recorder, mla=True, num_kv_heads=1, softmax_scale=0.1)
        call = latent_call(**more, **{name: value})
        if name in KVCACHE_REFUSED["mate_mla"]:
            with pytest.raises(ValueError, match=rf"^{name} .*\(mate_mla"):
                bound.flash_attn_with_kvcache(**call)
            assert recorder.calls == [], "refused only after the call"
            return
        result = bound.flash_attn_with_kvcache(**call)
        if name == "out":
            assert result is call["out"]
        elif isinstance(value, torch.Tensor):
            assert any(seen is value for seen in recorder.calls[-1][1].values()), f"{name} did not reach MATE"
        elif name not in ("return_softmax_lse", "max_seqlen_q"):  # it is always asked for; q has the other
            assert recorder.calls[-1][1][name] == value


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mate", {"page": 16}, r"^k_cache with page_size 16 .*mate: 64"),
    ("mate", {"cache_leftpad": torch.tensor([1, 0]).int()}, r"^cache_leftpad .*mate: cache_leftpad None"),
    ("mate", {"attention_chunk": 16}, r"^attention_chunk 16 .*mate"),
    ("mate", {"sinks": torch.zeros(4)}, r"^sinks with window_size \(-1, -1\)"),
    ("mate", {"sinks": torch.zeros(4), "window_size": (5, 0)}, r"^sinks torch.float32 .*mate: torch.bfloat16"),
    ("mate", {"num_splits": 129}, r"^num_splits 129 .*mate: up to 128"),
    ("mate", {"scheduler_metadata": torch.zeros(8).int()}, r"^scheduler_metadata .*mate"),
    ("mate", {"max_seqlen_q": 0}, r"^max_seqlen_q 0 .*at least 1"),
    ("mate", {"cu_seqlens_q": torch.tensor([0, 1, 2]).int()}, r"^max_seqlen_q None .*with cu_seqlens_q"),
    ("mate", {"out": torch.zeros(1, 2)}, r"^out torch.float32 \(1, 2\) .*mate"),
    ("mate", {"new": 64, "cache_seqlens": None}, r"^cache_seqlens None .*with k"),
    ("mate", {"new": 80}, r"^k with head_dim 80 .*64, 128, 192, 256, 384, 512"),
    ("mate", {"new": 64, "rotary_cos": torch.zeros(200, 12)}, r"^rotary_cos for rotary_dim 24 .*multiples of 16"),
    ("mate_mla", {"apart": True}, r"^k_cache with strides .*the two views of one tensor"),
    ("mate_mla", {"page": 32}, r"^k_cache with page_size 32 .*mate_mla: 64"),
    ("mate_mla", {"cache_seqlens": None}, r"^cache_seqlens None .*mate_mla: it is needed"),
    ("mate_mla", {"page_table": None}, r"^page_table None .*mate_mla: it is needed"),
    ("mate_mla", {"qv": None}, r"^qv None .*mate_mla: it is needed"),
    ("mate_mla", {"window_size": (5, 0)}, r"^window_size \(5, 0\) .*mate_mla"),
    ("mate_mla", {"window_size": (-1, 2)}, r"^window_size \(-1, 2\) .*mate_mla"),
    ("mate_mla", {"unscaled": True}, r"^softmax_scale None .*with qv"),
    ("mate_mla", {"q": torch.zeros(2, 1, 8, 128)}, r"^q with last dimension 128 .*mate_mla: 64"),
]


@pytest.mark.parametrize(("name", "change", "match"), REFUSED)
def test_refusals(here: Here, name: str, change: dict[str, Any], match: str) -> None:
    change = dict(change)
    latent, page, new = name == "mate_mla", change.pop("page", 64), change.pop("new", 0)
    config = {**(MLA if latent else {**DENSE, "head_dim": new or 64})}
    if change.pop("unscaled", False):
        del config["softmax_scale"]
    bound = registry.get(name).bind(AttentionConfig(**config), platform(), registry.get(name).packages[0])
    k_cache, v_cache = registry.get(name).new_kv_cache(AttentionConfig(**config), "musa:0", 4, page)
    if change.pop("apart", False):
        k_cache, v_cache = k_cache.contiguous(), v_cache.contiguous()
    heads, width = AttentionConfig(**config).num_heads, k_cache.shape[-1]
    call = {"q": torch.zeros(2, 1, heads, width, dtype=BF16), "k_cache": k_cache, "v_cache": v_cache,
            "cache_seqlens": torch.tensor([3, 4]).int(), "page_table": torch.tensor([[0, 1], [2, 3]]).int()}
    if latent:
        call["qv"] = torch.zeros(2, 1, heads, 512, dtype=BF16)
    if new:
        call |= {"k": torch.zeros(2, 1, 2, new, dtype=BF16), "v": torch.zeros(2, 1, 2, new, dtype=BF16)}
    call |= change
    call = {n: on(x, "musa:0") if isinstance(x, torch.Tensor) and tag_of(x) is None else x for n, x in call.items()}
    with pytest.raises(ValueError, match=match):
        bound.flash_attn_with_kvcache(**call)
    assert not here.vendor.calls, "refused only after a call"


def test_no_query_launches_nothing(here: Here) -> None:
    adapter = Adapter(here)
    for name, config in (("mate", DENSE), ("mate_mla", MLA)):
        compare(adapter, name, [5, 9], 0, config=config)
    packed_prefill(adapter, [0, 0])
    assert not here.vendor.calls


# --- selection, on a machine that has MATE ---

def why(decision: Any, backend: str) -> list[str]:
    """The reasons against a backend in decode."""
    return next(list(c.reasons) for c in decision.decode.candidates if c.backend == backend)


@pytest.mark.parametrize("arch", ["mp21", "mp22"])
def test_older_chips_fall_back_with_a_reason(here: Here, arch: str) -> None:
    for kind, name in (("full", "mate"), ("mla", "mate_mla")):
        decision = hal.explain(KINDS[kind], platform(arch=arch))
        assert decision.decode.chosen == decision.prefill.chosen == "torch"
        assert f"arch {arch} is not supported ({name}: mp31)" in why(decision, name)


def test_an_older_mate_is_refused_by_its_version() -> None:
    with TorchMusa("musa:0"), mate("0.2.0").installed():
        decision = hal.explain(KINDS["full"], platform())
    assert decision.decode.chosen == "torch"
    assert any("mate 0.2.0 is too old (needs 0.2.1 or newer)" in reason for reason in why(decision, "mate"))


# --- the conformance grid ---

def test_a_sample_of_the_grid() -> None:
    """ci/verify_emulated.py over every seventh quick case; the whole grid is what leaves the record."""
    path = ROOT / "ci" / "verify_emulated.py"
    spec = importlib.util.spec_from_file_location("verify_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for backend in ("mate", "mate_mla"):
        cases = script._cases(backend, True, "")[::7]
        ends = Counter(result.result for result in script.results(backend, None, cases, 5))
        assert ends["failed"] == 0
        assert ends["passed"] >= 8
