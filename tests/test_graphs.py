"""Graphs without a GPU: a toy backend whose kernel reads device memory alone, and a graph that records its launches.

The kernel knows lengths only through its plan, so a stale or moved plan gives wrong numbers; a replay runs the
recorded launches on the recorded memory and calls nothing of HAL.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hal
from hal import oracle, registry, stream
from hal.backend import AttentionBackend, Bound
from hal.context import bound, host
from hal.plan import Planner

PAGE, HEADS, KV_HEADS, DIM = 4, 4, 2, 8


class Graph:
    """Records what is launched while it is captured: each launch's kernel, tensors, addresses and result."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.launches: list[tuple[Callable[..., Any], tuple[Any, ...], list[int], torch.Tensor]] = []

    def __enter__(self) -> None:
        Graph.capturing = self

    def __exit__(self, *error: object) -> None:
        Graph.capturing = None

    def replay(self) -> None:
        for kernel, tensors, addresses, out in self.launches:
            assert [x.data_ptr() for x in tensors] == addresses, "a tensor of the graph moved"
            out.copy_(kernel(*tensors))


def launch(kernel: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    out = kernel(*tensors)
    if Graph.capturing is not None:
        Graph.capturing.launches.append((kernel, tensors, [x.data_ptr() for x in tensors], out))
    return out


def kernel(q: Any, k_cache: Any, v_cache: Any, page_table: Any, spans: Any) -> Any:
    """Keys spans[0][b] <= j < spans[1][b] of sequence b, for its single query."""
    keys, values = (c[page_table.long()].flatten(1, 2).repeat_interleave(HEADS // KV_HEADS, 2)
                    for c in (k_cache, v_cache))
    j = torch.arange(keys.shape[1])
    seen = (j >= spans[0][:, None]) & (j < spans[1][:, None])
    s = torch.einsum("bihd,bjhd->bhij", q, keys) * DIM**-0.5
    weights = torch.softmax(s.masked_fill(~seen[:, None, None], -torch.inf), -1).nan_to_num(0.0)
    return torch.einsum("bhij,bjhd->bihd", weights, values)


class Toy(AttentionBackend):
    name = "toy_graph"
    platforms = {"cpu": ()}
    dtypes = ("float32",)
    features = frozenset({"sliding_window"})
    graph_level = "single-token decode"
    graph_padding_length = 1
    targets = {"prefill": "toy.prefill", "decode": "toy.decode"}
    plans = 0  # how often the "vendor" planned
    bounds: list[Any] = []

    @classmethod
    def make(cls, device: Any, cache_seqlens: Any, window: int) -> Any:
        Toy.plans += 1
        Toy.bounds.append(bound("max_seqlen_k", cache_seqlens))
        start = (cache_seqlens - window).clamp(min=0) if window else torch.zeros_like(cache_seqlens)
        return torch.stack([start, cache_seqlens])

    @classmethod
    def planner(cls) -> Planner:
        return Planner(cls.make)

    @classmethod
    def plan_of(cls, planner: Planner, q: Any, cache_seqlens: Any, window: int) -> Any:
        return planner(q.device, (cache_seqlens,), (window,))

    @classmethod
    def bind(cls, config: Any, platform: Any, package: Any) -> Bound:
        planner = cls.planner()

        def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, *, cache_seqlens: Any, page_table: Any,
                                    causal: bool, window_size: Any = (-1, -1)) -> Any:
            spans = cls.plan_of(planner, q, cache_seqlens, window_size[0] + 1)
            return launch(kernel, q, k_cache, v_cache, page_table, spans)

        return Bound(flash_attn_with_kvcache, flash_attn_with_kvcache)


def attn_of(backend: type[AttentionBackend], **config: Any) -> Any:
    fields = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM, "dtype": "float32", "page_size": PAGE}
    registry.register_backend(backend.name, backend)
    return hal.get_attention_impl(hal.AttentionConfig(**{**fields, **config}), device="cpu", backend=backend.name)


@pytest.fixture
def use() -> Iterator[Callable[..., Any]]:
    """attn_of, whose backends are taken back afterwards."""
    names: list[str] = []

    def make(backend: type[AttentionBackend] = Toy, **config: Any) -> Any:
        names.append(backend.name)
        return attn_of(backend, **config)

    Toy.plans, Toy.bounds = 0, []
    yield make
    for name in names:
        registry.unregister_backend(name)


class Model:
    """Two kinds of layer over two caches, on tensors that stay where they are."""

    def __init__(self, attn: Any, batch: int) -> None:
        self.attn, self.q = attn, torch.zeros(batch, 1, HEADS, DIM)
        self.caches = [tuple(torch.randn(32, PAGE, KV_HEADS, DIM) for _ in "kv") for _ in range(2)]

    def run(self, attend: Callable[..., Any], q: Any, lens: Any, table: Any) -> list[Any]:
        call = {"cache_seqlens": lens, "page_table": table, "causal": True}
        return [attend(q, *cache, **call, window_size=window)
                for cache, window in zip(self.caches * 2, ((-1, -1), (2, 0), (2, 0), (-1, -1)))]

    def __call__(self, batch: Any) -> list[Any]:
        return self.run(self.attn.flash_attn_with_kvcache, self.q, batch.cache_seqlens, batch.page_table)


def step(rng: random.Random, n: int, pages: int) -> tuple[torch.Tensor, torch.Tensor]:
    lens = torch.tensor([rng.randint(1, pages * PAGE) for _ in range(n)], dtype=torch.int32)
    return lens, torch.tensor([rng.sample(range(1, 32), pages) for _ in range(n)], dtype=torch.int32)


@pytest.mark.parametrize("inference", [False, True])
def test_replays_equal_the_oracle(use: Callable[..., Any], inference: bool) -> None:
    """Two batch sizes captured once, replayed with other lengths, tables and fewer sequences; no HAL in a replay."""
    torch.manual_seed(seed := random.randrange(2**31))
    rng = random.Random(seed)
    attn = use()
    with torch.inference_mode(inference):
        state = attn.graph_state(max_batch=4, max_tokens=4, max_pages=5)
        prepared = {}
        for size in (4, 2):
            batch, model, graph = state.prepare_capture(size), Model(attn, size), Graph()
            with batch.warm_up():
                model(batch)
            assert Toy.plans == 2, "four layers of two kinds: two plans"
            with batch.capture(), graph:
                planned = Toy.plans
                outs = model(batch)
                assert Toy.plans == planned, "the captured part planned"
            assert len(graph.launches) == 4
            prepared[size] = model, graph, outs
            Toy.plans = 0
    assert Toy.bounds[0] == 5 * PAGE
    batch.slot_mapping[0] = 0  # an engine may write it too, in any mode
    for n, size, pages in ((4, 4, 5), (2, 2, 3), (3, 4, 2), (1, 2, 5), (4, 4, 1), (2, 4, 4)):
        lens, table = step(rng, n, pages)
        model, graph, outs = prepared[size]
        q = torch.randn(n, 1, HEADS, DIM)
        batch = state.prepare_replay(size, cache_seqlens=lens, page_table=table)
        with torch.inference_mode():
            model.q[:n].copy_(q)
            graph.replay()
        want = model.run(oracle.flash_attn_with_kvcache, q, lens, table)
        for got, expected in zip(outs, want):
            assert (got[:n] - expected).abs().max() < 1e-5, f"seed {seed}, {n} of {size}"
            assert bool(torch.isfinite(got).all())
        assert batch.cache_seqlens.tolist() == [*lens.tolist(), *[Toy.graph_padding_length] * (size - n)]
        assert batch.page_table[n:].unique().tolist() in ([], [0])


def test_warm_up_and_capture_on_two_streams(use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of a graph belong to the graph: prepare_replay orders them, not the stream they were made on."""
    attn = use()
    current = 0
    monkeypatch.setitem(stream.READERS, "cpu", lambda device: current)
    batch, model = attn.graph_state(2, 2, 3).prepare_capture(2), Model(attn, 2)
    with batch.warm_up():
        model(batch)
    current = 1
    with batch.capture():
        model(batch)


def test_the_graph_above_can_see_a_stale_plan(use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refresh of plans a replay uses the captured lengths; with a new plan it would not be in the graph."""
    attn = use()
    state = attn.graph_state(2, 2, 3)
    batch, model, graph = state.prepare_capture(2), Model(attn, 2), Graph()
    with batch.warm_up():
        model(batch)
    with batch.capture(), graph:
        outs = model(batch)
    lens, table = torch.tensor([9, 5], dtype=torch.int32), torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    model.q.normal_()
    want = model.run(oracle.flash_attn_with_kvcache, model.q, lens, table)
    monkeypatch.setattr(type(batch), "_refresh", lambda self, copies: None)
    state.prepare_replay(2, cache_seqlens=lens, page_table=table)
    graph.replay()
    assert (outs[0] - want[0]).abs().max() > 1e-2


class Workspace(Toy):
    """As MATE's MLA: the first layer of a step initialises what the later ones read."""

    name = "toy_workspace"
    seen: list[bool] = []

    @classmethod
    def planner(cls) -> Planner:
        def make(device: Any, cache_seqlens: Any, window: int) -> list[Any]:
            return [torch.full((2, len(cache_seqlens)), -1, dtype=torch.int32), False]

        def refresh(plan: list[Any], *key: Any) -> None:
            plan[1] = False

        return Planner(make, refresh)

    @classmethod
    def plan_of(cls, planner: Planner, q: Any, cache_seqlens: Any, window: int) -> Any:
        plan = planner(q.device, (cache_seqlens,), (window,))
        cls.seen.append(plan[1])
        if not plan[1]:
            launch(lambda lens, spans: spans.copy_(cls.make(q.device, lens, window)), cache_seqlens, plan[0])
            plan[1] = True
        return plan[0]


def test_a_workspace_is_initialised_by_the_first_layer_of_each_replay(use: Callable[..., Any]) -> None:
    attn = use(Workspace)
    Workspace.seen = []
    state = attn.graph_state(2, 2, 3)
    batch, model, graph = state.prepare_capture(2), Model(attn, 2), Graph()
    for _ in range(2):
        with batch.warm_up():
            model(batch)
    with batch.capture(), graph:
        outs = model(batch)
    assert Workspace.seen == [False, False, *[True] * 6, False, False, True, True]
    lens, table = step(random.Random(1), 2, 3)
    state.prepare_replay(2, cache_seqlens=lens, page_table=table)
    model.q.normal_()
    graph.replay()
    for got, want in zip(outs, model.run(oracle.flash_attn_with_kvcache, model.q, lens, table)):
        assert (got - want).abs().max() < 1e-5
    # And outside graphs: first layer of an epoch, first of the next, and each call on its own.
    Workspace.seen = []
    call = (attn.flash_attn_with_kvcache, model.q, lens, table)
    with hal.forward_context(cache_seqlens=lens) as forward:
        model.run(*call)
        forward.update()
        model.run(*call)
    model.run(*call)
    assert Workspace.seen == [False, False, True, True] * 2 + [False] * 4


def test_two_kinds_of_layer_with_a_state_each(use: Callable[..., Any]) -> None:
    """Two impls captured in one graph, each on its own state's tensors."""
    kinds = [use(Toy), use(Workspace)]
    states = [attn.graph_state(2, 2, 3) for attn in kinds]
    batches, models, graph = [s.prepare_capture(2) for s in states], [Model(attn, 2) for attn in kinds], Graph()
    with batches[0].warm_up(), batches[1].warm_up():
        _ = [model(batch) for model, batch in zip(models, batches)]
    with batches[0].capture(), batches[1].capture(), graph:
        outs = [model(batch) for model, batch in zip(models, batches)]
    steps = [step(random.Random(n), 2, 3) for n in range(2)]
    for (lens, table), state, model in zip(steps, states, models):
        state.prepare_replay(2, cache_seqlens=lens, page_table=table)
        model.q.normal_()
    graph.replay()
    for (lens, table), model, got in zip(steps, models, outs):
        want = model.run(oracle.flash_attn_with_kvcache, model.q, lens, table)
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(got, want))


def test_host_work_inside_a_capture_is_refused(use: Callable[..., Any]) -> None:
    attn = use()
    state = attn.graph_state(2, 2, 3)
    batch, model = state.prepare_capture(2), Model(attn, 2)
    with batch.capture(), pytest.raises(RuntimeError, match=r"missing inside a capture: Toy.make.*in warm_up"):
        model(batch)
    with batch.warm_up():
        model(batch)
        assert host(batch.cache_seqlens) == (1, 1)
    other = batch.cache_seqlens.clone()
    with hal.forward_context(cache_seqlens=other):  # a step's own plans die with it
        model.run(attn.flash_attn_with_kvcache, model.q, other, batch.page_table)
        with batch.capture():
            model(batch)
            with pytest.raises(RuntimeError, match="missing inside a capture"):
                model.run(attn.flash_attn_with_kvcache, model.q, other, batch.page_table)
            with pytest.raises(RuntimeError, match="lengths of 2 were asked for on the host inside a capture"):
                host(batch.cache_seqlens)
    for mode in (batch.warm_up, batch.capture):
        with mode() as forward:
            with pytest.raises(RuntimeError, match=r"not for a graph's context: call prepare_replay\(\)"):
                forward.update()
            with pytest.raises(RuntimeError, match="entered inside a graph's"), hal.forward_context():
                pass


def test_a_plan_that_a_graph_cant_follow_is_refused(use: Callable[..., Any]) -> None:
    """Plans with numbers of the host, or of another shape: an error, not a stale graph."""

    class Numbers(Toy):
        name = "toy_numbers"

        @classmethod
        def plan_of(cls, planner: Planner, q: Any, cache_seqlens: Any, window: int) -> Any:
            return planner(q.device, (cache_seqlens,), (window,))[0]

        @classmethod
        def make(cls, device: Any, cache_seqlens: Any, window: int) -> Any:
            return super().make(device, cache_seqlens, window), host(cache_seqlens)[0]

    class Shapes(Toy):
        name = "toy_shapes"

        @classmethod
        def make(cls, device: Any, cache_seqlens: Any, window: int) -> Any:
            spans = super().make(device, cache_seqlens, window)
            return spans if host(cache_seqlens)[0] == 1 else spans.repeat(2, 1)

    table = torch.zeros(2, 3, dtype=torch.int32)
    for backend, text in ((Numbers, "held 1 when captured and holds 7"), (Shapes, r"\(2, 2\) when captured and is")):
        attn = use(backend)
        state = attn.graph_state(2, 2, 3)
        batch, model = state.prepare_capture(2), Model(attn, 2)
        with batch.warm_up():
            model(batch)
        state.prepare_replay(2, cache_seqlens=torch.tensor([1, 9], dtype=torch.int32), page_table=table)
        with pytest.raises(RuntimeError, match=text):
            state.prepare_replay(2, cache_seqlens=torch.tensor([7, 9], dtype=torch.int32), page_table=table)


def test_host_copies_are_taken_and_padded(use: Callable[..., Any]) -> None:
    class Hosted(Toy):
        name = "toy_hosted"

        @classmethod
        def make(cls, device: Any, cache_seqlens: Any, window: int) -> Any:
            return super().make(device, torch.tensor(host(cache_seqlens), dtype=torch.int32), window)

    attn = use(Hosted)
    state = attn.graph_state(4, 4, 3)
    batch, model = state.prepare_capture(4), Model(attn, 4)
    with batch.warm_up():
        _, spans = model(batch)[0], batch._epoch.made[0][-1]
    state.prepare_replay(4, cache_seqlens=torch.tensor([3, 5, 7], dtype=torch.int32), cache_seqlens_cpu=[2, 4, 6],
                         page_table=torch.zeros(3, 2, dtype=torch.int32))
    assert spans[1].tolist() == [2, 4, 6, 1]
    state.prepare_replay(4, cache_seqlens=torch.tensor([3, 5], dtype=torch.int32),
                         page_table=torch.zeros(2, 2, dtype=torch.int32))
    assert spans[1].tolist() == [3, 5, 1, 1]


def test_refreshing_keeps_nothing(use: Callable[..., Any]) -> None:
    """Host copies and plans that are made on the way to a plan, of tensors that are gone afterwards."""
    inner = Planner(lambda device, lens: lens * 2)
    state = use().graph_state(2, 2, 3)
    batch, cpu = state.prepare_capture(2), torch.device("cpu")

    def make(device: Any, lens: Any) -> Any:
        return torch.tensor(host(lens + 1), dtype=torch.int32) + inner(device, (lens + 2,))

    planner = Planner(make)
    with batch.warm_up():
        plan = planner(cpu, (batch.cache_seqlens,))
    sizes = []
    for n in (3, 5, 7):
        state.prepare_replay(2, cache_seqlens=torch.tensor([n, n], dtype=torch.int32), page_table=TABLE)
        assert plan.tolist() == [n + 1 + 2 * (n + 2)] * 2
        epoch = batch._epoch
        sizes.append(tuple(map(len, (epoch.kept, epoch.made, epoch.by_memory, epoch.by_object))))
    assert len(set(sizes)) == 1


def test_a_plan_stays_with_its_graph(use: Callable[..., Any]) -> None:
    """Also one made from a tensor beside the batch's own, inside another batch's context."""
    attn = use()
    states = [attn.graph_state(2, 2, 3) for _ in range(2)]
    (first, second), cpu = [state.prepare_capture(2) for state in states], torch.device("cpu")
    planner, table = Planner(lambda device, lens, more: lens + more), torch.ones(2, dtype=torch.int32)
    with first.warm_up(), second.warm_up():
        plan = planner(cpu, (first.cache_seqlens, table))
    for state in (states[1], states[0]):
        state.prepare_replay(2, cache_seqlens=LENS, page_table=TABLE)
    assert plan.tolist() == [4, 6]


def test_a_warm_up_never_runs_on_another_batchs_rows(use: Callable[..., Any]) -> None:
    """Batches share buffers: rows prepared for another one are padded again, or a warm-up would write to live slots."""
    state = use(Uniform).graph_state(4, 12, 3)
    four, two = state.prepare_capture(4, 1), state.prepare_capture(2, 3)
    planner = Planner(lambda device, lens: lens * 2)
    for mode in (four.warm_up, four.capture, four.warm_up):
        state.prepare_replay(4, cache_seqlens=LENS, page_table=TABLE)
        state.prepare_replay(2, 3, cache_seqlens=LENS, page_table=TABLE + 7, slot_mapping=torch.arange(6))
        with mode():
            plan = planner(torch.device("cpu"), (four.cache_seqlens,))
            assert four.cache_seqlens.tolist() == [1] * 4
            assert plan.tolist() == [2] * 4
            assert four.slot_mapping.tolist() == [-1] * 4
            assert four.cu_seqlens_q.tolist() == [0, 1, 2, 3, 4]
            assert not four.page_table.any()
    state.prepare_replay(2, 3, cache_seqlens=LENS, page_table=TABLE, slot_mapping=torch.arange(6))
    with two.warm_up():  # its own stay
        assert (two.cache_seqlens.tolist(), two.slot_mapping.tolist()) == ([3, 5], [0, 1, 2, 3, 4, 5])


def test_a_captures_context_stays_one(use: Callable[..., Any]) -> None:
    """Whatever is made or asked for before it is left: nothing turns it into one that plans."""
    attn = use()
    state = attn.graph_state(4, 4, 3)
    batch, other, model = state.prepare_capture(2), state.prepare_capture(3), Model(attn, 2)
    capture, _ = batch.capture(), batch.warm_up()
    with capture:
        with pytest.raises(RuntimeError, match=r"missing inside a capture"):
            model(batch)
        for enter, text in ((batch.warm_up, "warm-up of batch 2 inside its capture"),
                            (batch.capture, "capture of batch 2 inside its capture"),
                            (other.warm_up, "warm-up of batch 3 inside a capture")):
            with pytest.raises(RuntimeError, match=text), enter():
                pass
        for size in (2, 3):
            with pytest.raises(RuntimeError, match=rf"prepare_replay\(\) of batch {size} inside a capture"):
                state.prepare_replay(size, cache_seqlens=LENS, page_table=TABLE)
        with pytest.raises(RuntimeError, match=r"missing inside a capture"):
            model(batch)
    with batch.warm_up():
        with pytest.raises(RuntimeError, match="or its own warm-up"):
            state.prepare_replay(2, cache_seqlens=LENS, page_table=TABLE)
        model(batch)
    assert batch.cache_seqlens.tolist() == [1, 1]


LENS, TABLE = torch.tensor([3, 5], dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)


class Uniform(Toy):
    name = "toy_uniform"
    graph_level = "uniform batch"
    max_decode_query_len = 3


class Always(Uniform):
    name = "toy_always"
    graph_level = "always"


def test_levels(use: Callable[..., Any]) -> None:
    """What is over the level is refused by name, with both sides; what is not is laid out as it says."""
    never = hal.get_attention_impl(hal.AttentionConfig(dtype="float32"), device="cpu", backend="torch")
    with pytest.raises(ValueError, match=r"graph_state is not supported \(torch: graph level never\)"):
        never.graph_state(1, 1, 1)
    single, uniform, always = use(Toy), use(Uniform), use(Always)
    with pytest.raises(ValueError, match=r"max_tokens 4 with max_batch 2 is not supported \(toy_graph: graph level s"):
        single.graph_state(2, 4, 3)
    with pytest.raises(ValueError, match=r"query_len 2 is not supported \(toy_graph: graph level single-token"):
        single.graph_state(4, 4, 3).prepare_capture(2, 2)
    for attn in (uniform, always):
        state = attn.graph_state(4, 12, 3)
        with pytest.raises(ValueError, match=rf"query_len 4 is not supported \({attn.decode.backend}: .*query_len 3"):
            state.prepare_capture(2, 4)
        batch = state.prepare_capture(4, 3)
        assert batch.cu_seqlens_q.tolist() == [0, 3, 6, 9, 12]
        assert (batch.max_seqlen_q, batch.max_seqlen_k) == (3, 12)
        smaller = state.prepare_capture(2, 1)
        assert smaller.cu_seqlens_q.tolist() == [0, 1, 2]
        cu = torch.tensor([0, 1, 4], dtype=torch.int32)
        if attn is uniform:
            with pytest.raises(ValueError, match=r"cu_seqlens_q: got a tensor, expected None \(toy_uniform: graph"):
                state.prepare_replay(4, 3, cache_seqlens=LENS, page_table=TABLE, cu_seqlens_q=cu)
            cu = None
        state.prepare_replay(4, 3, cache_seqlens=LENS, page_table=TABLE, cu_seqlens_q=cu,
                             slot_mapping=torch.tensor([7, 8, 9, 10]))
        assert batch.cu_seqlens_q.tolist() == ([0, 3, 6, 9, 12] if attn is uniform else [0, 1, 4, 4, 4])
        assert batch.slot_mapping.tolist() == [7, 8, 9, 10, *[-1] * 8]
        state.prepare_replay(4, 3, cache_seqlens=LENS, page_table=TABLE)
        assert batch.slot_mapping.tolist() == [-1] * 12
        assert batch.cu_seqlens_q.tolist() == [0, 3, 6, 9, 12]


def test_padding_rows_name_the_page_given(use: Callable[..., Any]) -> None:
    state = use().graph_state(4, 4, 3, padding_page=31)
    batch = state.prepare_capture(4)
    assert batch.page_table.tolist() == [[31] * 3] * 4
    state.prepare_replay(4, cache_seqlens=LENS, page_table=TABLE)
    assert batch.page_table.tolist() == [[0] * 3] * 2 + [[31] * 3] * 2


class NoSkipping(Uniform):
    name = "toy_no_skipping"
    graph_skips_slots = False


def test_tokens_that_are_not_written_have_a_slot_each_where_the_kernel_needs_one(use: Callable[..., Any]) -> None:
    attn = use(NoSkipping)
    with pytest.raises(ValueError, match=r"max_tokens 12 is not supported \(toy_no_skipping: up to 8, what padding_p"):
        attn.graph_state(4, 12, 3, padding_page=5, padding_pages=2)
    state = attn.graph_state(4, 12, 3, padding_page=5, padding_pages=3)
    first = 5 * attn.decision.page_size
    batch = state.prepare_capture(3, 3)
    assert batch.slot_mapping.tolist() == list(range(first, first + 9))
    state.prepare_replay(3, 3, cache_seqlens=LENS, page_table=TABLE, slot_mapping=torch.tensor([7, -1, 9, -1, 0]))
    assert batch.slot_mapping.tolist() == [7, first + 1, 9, first + 3, 0, *range(first + 5, first + 9)]
    with batch.capture():
        pass
    state.prepare_replay(3, 3, cache_seqlens=LENS, page_table=TABLE)
    assert batch.slot_mapping.tolist() == list(range(first, first + 9))


@pytest.mark.parametrize(("given", "text"), [
    ({"batch": 3}, "batch: got 3 with query_len 1, expected one of prepare_capture: 2 with 1"),
    ({"cache_seqlens": torch.ones(3, dtype=torch.int32)}, "cache_seqlens: got 3 sequences, expected up to 2, the"),
    ({"cache_seqlens": LENS.long()}, "cache_seqlens: got torch.int64, expected torch.int32"),
    ({"page_table": TABLE[:1]}, "page_table: got 1 sequences, expected 2"),
    ({"page_table": torch.zeros(2, 4, dtype=torch.int32)}, "page_table: got 4 pages, expected up to max_pages 3"),
    ({"slot_mapping": LENS}, "slot_mapping: got torch.int32"),
    ({"slot_mapping": torch.zeros(3, dtype=torch.int64)}, "slot_mapping: got 3 tokens, expected up to 2"),
    ({"cache_seqlens_cpu": [3]}, "cache_seqlens_cpu: got 1 values, expected 2"),
    ({"cache_seqlens_cpu": [3, 13]}, "cache_seqlens_cpu: got 13, expected whole numbers up to 12, what page_table"),
    ({"cache_seqlens_cpu": [-3, 5]}, "cache_seqlens_cpu: got -3, expected whole numbers up to 12"),
    ({"slot_mapping": [1]}, r"slot_mapping: got \[1\], expected int64"),
])
def test_bad_replays_write_nothing(use: Callable[..., Any], given: dict[str, Any], text: str) -> None:
    state = use().graph_state(4, 4, 3)
    batch = state.prepare_capture(2)
    call: dict[str, Any] = {"batch": 2, "cache_seqlens": LENS, "page_table": TABLE + 1, **given}
    with pytest.raises(ValueError, match=text):
        state.prepare_replay(**call)
    assert batch.cache_seqlens.tolist() == [1, 1]
    assert not batch.page_table.any()


@pytest.mark.parametrize(("given", "text"), [
    ({"cache_seqlens": torch.tensor([3, 13], dtype=torch.int32)}, "cache_seqlens: got .13., expected lengths from 0"),
    ({"cache_seqlens_cpu": [3, 4]}, r"cache_seqlens_cpu: got \[3, 4\], expected \[3, 5\]"),
])
def test_contents_are_checked_when_asked_for(use: Callable[..., Any], given: dict[str, Any], text: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    state = use().graph_state(4, 4, 3)
    state.prepare_capture(2)
    call: dict[str, Any] = {"batch": 2, "cache_seqlens": LENS, "page_table": TABLE, **given}
    state.prepare_replay(**call)
    monkeypatch.setenv("HAL_CHECK", "1")
    with pytest.raises(ValueError, match=text):
        state.prepare_replay(**call)


@pytest.mark.parametrize(("sizes", "text"), [
    ((0, 1, 1), "max_batch: got 0"), ((1, True, 1), "max_tokens: got True"), ((1, 1, -2), "max_pages: got -2"),
    ((1, 1, 1, -1), "padding_page: got -1"), ((1, 1, 1, 0, 0), "padding_pages: got 0"),
])
def test_bad_sizes(use: Callable[..., Any], sizes: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        use().graph_state(*sizes)


def test_a_batch_is_prepared_once_and_within_the_sizes(use: Callable[..., Any]) -> None:
    state = use(Uniform).graph_state(4, 8, 3)
    state.prepare_capture(2, 2)
    state.prepare_capture(2, 3)
    for arguments, text in (((2, 2), "batch: got 2, expected one that was not prepared with query_len 2"),
                            ((5,), "batch: got 5, expected 1 to 4, max_batch"),
                            ((4, 3), "query_len: got 3, expected at least 1, and 4 sequences of it within max_tok")):
        with pytest.raises(ValueError, match=text):
            state.prepare_capture(*arguments)
