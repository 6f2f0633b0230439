"""torch.compile: bound functions are opaque ops that look plans up when they run, not when they are traced."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import hal
from hal import contract, custom_ops, oracle, registry
from hal.backend import AttentionBackend, Bound
from hal.context import STATE, host
from hal.plan import Planner

ROOT = Path(__file__).parents[1]
HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 8
CONFIG = hal.AttentionConfig(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, dtype="float32", page_size=PAGE)
TORCH = hal.get_attention_impl(CONFIG, device="cpu", backend="torch")


class Planned(AttentionBackend):
    """The torch backend, reading its lengths from a plan alone: one that was made while tracing would show."""

    name = "toy_planned"
    platforms = {"cpu": ()}
    dtypes = ("float32",)
    features = frozenset({"return_softmax_lse"})
    targets = {"prefill": "toy.prefill", "decode": "toy.decode"}
    made: list[tuple[tuple[int, ...], bool]] = []

    @classmethod
    def bind(cls, config: Any, platform: Any, package: Any) -> Bound:
        def make(device: Any, lengths: Any) -> Any:
            cls.made.append((host(lengths), STATE.current is not None))
            return torch.tensor(host(lengths), dtype=torch.int32)

        planner = Planner(make)

        def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, *, cache_seqlens: Any, **given: Any) -> Any:
            return TORCH.flash_attn_with_kvcache(q, k_cache, v_cache, **given,
                                                 cache_seqlens=planner(q.device, (cache_seqlens,)))

        def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, **given: Any) -> Any:
            return TORCH.flash_attn_varlen_func(q, k, v, planner(q.device, (cu_seqlens_q,)), **given)

        return Bound(flash_attn_with_kvcache, flash_attn_varlen_func)


@pytest.fixture
def attn() -> Iterator[Any]:
    torch._dynamo.reset()
    counters.clear()
    Planned.made = []
    registry.register_backend(Planned.name, Planned)
    yield hal.get_attention_impl(CONFIG, device="cpu", backend=Planned.name)
    registry.unregister_backend(Planned.name)


class Model(torch.nn.Module):
    """Two layers that append a token and attend; matrix products alone, so that no compiler of C++ is needed."""

    def __init__(self, attend: Callable[..., Any], lse: bool = False) -> None:
        super().__init__()
        self.attend, self.lse = attend, lse
        self.project = torch.nn.ModuleList(torch.nn.Linear(HEADS * DIM, HEADS * DIM, bias=False) for _ in range(2))
        self.caches = [(torch.randn(24, PAGE, KV_HEADS, DIM), torch.randn(24, PAGE, KV_HEADS, DIM)) for _ in range(2)]

    def forward(self, x: Any, k: Any, v: Any, lens: Any, table: Any) -> Any:
        lse = None
        for project, (k_cache, v_cache) in zip(self.project, self.caches):
            q = project(x).view(-1, 1, HEADS, DIM)
            out = self.attend(q, k_cache, v_cache, k=k, v=v, cache_seqlens=lens, page_table=table, causal=True,
                              return_softmax_lse=self.lse)
            out, lse = out if self.lse else (out, None)
            x = out.reshape(-1, HEADS * DIM)
        return x if lse is None else (x, lse)


def step(batch: int) -> tuple[Any, ...]:
    lens = torch.randint(0, 2 * PAGE, (batch,), dtype=torch.int32)
    table = torch.randperm(24)[: 3 * batch].view(batch, 3).int()
    return (torch.randn(batch, HEADS * DIM), torch.randn(batch, 1, KV_HEADS, DIM), torch.randn(batch, 1, KV_HEADS, DIM),
            lens, table)


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_model_in_one_graph(attn: Any, backend: str, lse: bool) -> None:
    """Several batches and epochs of one compiled model equal the oracle, caches included, with two plans a step."""
    torch.manual_seed(seed := random.randrange(2**31))
    model, reference = Model(attn.flash_attn_with_kvcache, lse), Model(oracle.flash_attn_with_kvcache, lse)
    reference.double().load_state_dict(model.state_dict())
    reference.caches = [(k.clone(), v.clone()) for k, v in model.caches]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for batch in (7, 7, 5, 2):  # 3, the width of the table, would be taken for the same size
        inputs = step(batch)
        lens = inputs[3]
        Planned.made = []
        with torch.no_grad(), hal.forward_context(cache_seqlens=lens) as forward:
            got = compiled(*inputs)
            assert Planned.made == [(tuple(lens.tolist()), True)], "one plan for two layers, made at run time"
            want = reference(inputs[0].double(), *inputs[1:])
            for a, b in zip(got if lse else (got,), want if lse else (want,)):
                assert a.shape == b.shape
                assert (a - b).abs().max() < 1e-4, f"seed {seed}"
            for ours, theirs in zip(model.caches, reference.caches):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs)), "the append did not reach the cache"
            lens += 1
            forward.update()
            compiled(*inputs)
            assert [made for made, _ in Planned.made] == [tuple((lens - 1).tolist()), tuple(lens.tolist())]
            reference(inputs[0].double(), *inputs[1:])
    assert counter.frame_count == 1, "one graph for all batches"
    assert not counters["graph_break"]


def test_the_check_above_sees_a_function_that_is_traced(attn: Any) -> None:
    """What torch.compile does without the op: the adapter is traced into, and can't be one graph."""
    plain = attn.flash_attn_with_kvcache.__wrapped__
    inputs = step(2)
    with torch.no_grad(), hal.forward_context(cache_seqlens=inputs[3]), pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(Model(plain), backend="eager", fullgraph=True)(*inputs)


def test_outside_a_context_and_nested_ones(attn: Any) -> None:
    """The context of the moment decides: none, one, one inside another."""
    model = Model(attn.flash_attn_with_kvcache)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs, draft = step(2), step(2)
    with torch.no_grad():
        compiled(*inputs)
        assert Planned.made == [(tuple(inputs[3].tolist()), False)] * 2
        Planned.made = []
        with hal.forward_context(cache_seqlens=inputs[3]):
            compiled(*inputs)
            with hal.forward_context(cache_seqlens=draft[3]):
                compiled(*draft)
                compiled(*inputs)
            compiled(*inputs)
        assert [made for made, _ in Planned.made] == [tuple(inputs[3].tolist()), tuple(draft[3].tolist())]


def test_a_context_is_not_entered_while_tracing() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with hal.forward_context(max_seqlen_q=1):
            return x + 1

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"(?s)inside torch.compile|forward_context"):
        torch.compile(forward, backend="eager", fullgraph=True)(torch.zeros(2))
    assert STATE.current is None


CALLS: dict[str, dict[str, Any]] = {
    "plain": {}, "lse": {"return_softmax_lse": True}, "append": {"append": True}, "out": {"out": True},
    "append and out, lse": {"append": True, "out": True, "return_softmax_lse": True},
    "packed": {"packed": True}, "packed, lse": {"packed": True, "return_softmax_lse": True},
    "packed, out": {"packed": True, "out": True}, "int length": {"cache_seqlens": 9},
    "window, softcap, scale": {"window_size": (3, 0), "softcap": 2.0, "softmax_scale": 0.3, "causal": True},
    "sinks": {"sinks": torch.ones(HEADS)}, "unpaged": {"page_table": None},
    "fp8": {"fp8": True, "return_softmax_lse": True}, "float16": {"half": True}, "another v": {"dim_v": 24},
}
VARLEN: dict[str, dict[str, Any]] = {
    "plain": {}, "lse": {"return_softmax_lse": True}, "other name": {"return_attn_probs": True}, "out": {"out": True},
    "out, lse": {"out": True, "return_softmax_lse": True}, "window": {"window_size": (3, 0), "causal": True},
    "fp8": {"fp8": True}, "another v": {"dim_v": 24, "return_softmax_lse": True},
}


def arguments(function: str, given: dict[str, Any]) -> dict[str, Any]:
    """One call of the torch backend, from the words of CALLS and VARLEN."""
    words = {word: given.get(word) for word in ("append", "out", "packed", "fp8", "half", "dim_v")}
    given = {name: value for name, value in given.items() if name not in words}
    dim_v = words["dim_v"] or DIM
    dtype = torch.float8_e4m3fn if words["fp8"] else torch.float16 if words["half"] else torch.float32
    cu = torch.tensor([0, 2, 5], dtype=torch.int32)

    def random_(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    if function == "flash_attn_varlen_func":
        a = {"q": random_(5, HEADS, DIM), "k": random_(5, KV_HEADS, DIM), "v": random_(5, KV_HEADS, dim_v),
             "cu_seqlens_q": cu, "cu_seqlens_k": cu.clone(), "max_seqlen_q": 3, "max_seqlen_k": 3}
    else:
        a = {"q": random_(5, HEADS, DIM) if words["packed"] else random_(2, 3, HEADS, DIM),
             "k_cache": random_(6, PAGE, KV_HEADS, DIM), "v_cache": random_(6, PAGE, KV_HEADS, dim_v),
             "cache_seqlens": torch.tensor([5, 9], dtype=torch.int32),
             "page_table": torch.tensor([[3, 1], [0, 5]], dtype=torch.int32)}
        if words["packed"]:
            a |= {"cu_seqlens_q": cu, "max_seqlen_q": 3}
        if words["append"]:
            a |= {"k": random_(2, 3, KV_HEADS, DIM), "v": random_(2, 3, KV_HEADS, dim_v)}
        if given.get("page_table", 0) is None:
            a |= {"k_cache": a["k_cache"][:2], "v_cache": a["v_cache"][:2], "cache_seqlens": torch.tensor([5, 8]).int()}
    if words["out"]:
        a["out"] = torch.zeros(*a["q"].shape[:-1], dim_v, dtype=torch.bfloat16 if words["fp8"] else dtype)
    return {**a, **given}


EVERY = [*(("flash_attn_with_kvcache", name) for name in CALLS), *(("flash_attn_varlen_func", name) for name in VARLEN)]


def of(function: str, name: str) -> dict[str, Any]:
    return arguments(function, (CALLS if function == "flash_attn_with_kvcache" else VARLEN)[name])


def copy(a: dict[str, Any]) -> dict[str, Any]:
    return {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in a.items()}


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_compiled_equals_eager(function: str, name: str) -> None:
    """Every way of calling, through a graph: the same bits, in the same places, of the same kind."""
    torch._dynamo.reset()
    attend, a = getattr(TORCH, function), of(function, name)
    b = copy(a)
    want = attend(**a)
    got = torch.compile(lambda call: attend(**call), backend="aot_eager", fullgraph=True)(b)
    assert isinstance(got, tuple) == isinstance(want, tuple)
    for x, y in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,)):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert torch.equal(x, y)
    assert all(torch.equal(b[n].float(), x.float()) for n, x in a.items() if isinstance(x, torch.Tensor))
    if "out" in a:
        assert (got[0] if isinstance(got, tuple) else got).data_ptr() == b["out"].data_ptr()


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every op that a wrapper calls, with its arguments."""
    called: list[tuple[Any, ...]] = []
    original = dict(custom_ops.OPS)
    for op_name, op in original.items():
        def record(*args: Any, _op: Any = op, **kwargs: Any) -> Any:
            called.append((_op, args, copy(kwargs)))  # as they were before the op wrote into them
            return _op(*args, **kwargs)

        monkeypatch.setitem(custom_ops.OPS, op_name, record)
    return called


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_opcheck(function: str, name: str, ops: list[tuple[Any, ...]]) -> None:
    """torch's own checks: the schema's mutations, the fake implementation, tracing with dynamic shapes."""
    attn = hal.get_attention_impl(CONFIG, device="cpu", backend="torch")
    wrapper = getattr(attn, function)
    number = next(n for n, kernel in custom_ops.KERNELS.items() if kernel is wrapper.kernel)
    custom_ops._call_op(function, number, (), of(function, name))
    op, args, kwargs = ops[0]
    tests: tuple[str, ...] = ("test_autograd_registration", "test_faketensor")
    if "fp8" not in name:  # the other two compare values, for which torch has no fp8 arithmetic on a CPU
        tests += ("test_schema", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op, args, kwargs, test_utils=tests)


def test_eager_calls_do_not_pass_through_an_op(ops: list[tuple[Any, ...]]) -> None:
    for function in ("flash_attn_with_kvcache", "flash_attn_varlen_func"):
        getattr(TORCH, function)(**of(function, "plain"))
    assert not ops


@pytest.mark.parametrize(("call", "text"), [
    (lambda f, a: f(**a, nonsense=1), "has no argument 'nonsense'"),
    (lambda f, a: f(a["q"], **a), "got two values for 'q'"),
    (lambda f, a: f(a["q"]), "needs 'k_cache'"),
    (lambda f, a: f(*range(31)), "takes up to 30 positional arguments, got 31"),
])
def test_bad_calls_are_named(call: Any, text: str) -> None:
    a = of("flash_attn_with_kvcache", "plain")
    with pytest.raises(TypeError, match=text):
        call(lambda *args, **kwargs: custom_ops._call_op("flash_attn_with_kvcache", 0, args, kwargs), a)


def test_an_impl_that_is_gone_is_named(attn: Any) -> None:
    """Its number is not reused, nothing keeps it, and a graph of it says so."""
    other = hal.get_attention_impl(CONFIG, device="cpu", backend="torch")
    numbers = [n for n, kernel in custom_ops.KERNELS.items() if kernel is other.flash_attn_with_kvcache.kernel]
    assert len(numbers) == 1
    function = other.flash_attn_with_kvcache
    del other
    assert numbers[0] in custom_ops.KERNELS, "the function alone is enough"
    del function
    gc.collect()
    assert numbers[0] not in custom_ops.KERNELS
    with pytest.raises(RuntimeError, match=rf"attention impl {numbers[0]} of this compiled graph is gone"):
        custom_ops._call_op("flash_attn_with_kvcache", numbers[0], (), of("flash_attn_with_kvcache", "plain"))


def test_numbers_say_what_they_are_of() -> None:
    """The same in every process for the same backend, configuration and device, another for any other: a saved graph
    never finds another one's kernel. Two alike have two."""
    code = ("import hal, sys\nfrom hal import custom_ops\n"
            "config = dict(num_heads=4, num_kv_heads=2, head_dim=16, dtype='float32')\n"
            "keep = [hal.get_attention_impl(hal.AttentionConfig(**config, softmax_scale=float(scale)), device='cpu',\n"
            "                               backend='torch') for scale in sys.argv[1:]]\n"
            "print(*custom_ops.KERNELS)")
    a, b = (subprocess.run([sys.executable, "-c", code, *scales], capture_output=True, text=True, check=True,
                           cwd=ROOT).stdout.split() for scales in (("1", "9", "1"), ("9", "1", "1")))
    assert len(set(a)) == 6, "two functions of three impls"
    assert [*a[2:4], *a[:2], *a[4:]] == b


def test_eager_calls_while_another_thread_compiles(ops: list[tuple[Any, ...]]) -> None:
    """torch's flag is_compiling is the process's: this thread's calls stay eager. Fake tensors are traced."""
    a = of("flash_attn_with_kvcache", "plain")
    with torch.compiler._compile_session_context():
        TORCH.flash_attn_with_kvcache(**a)
        assert not ops
        with FakeTensorMode() as mode:
            TORCH.flash_attn_with_kvcache(**{n: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
                                             for n, x in a.items()})
        assert len(ops) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    a = of("flash_attn_with_kvcache", "plain")

    class One(torch.nn.Module):
        def forward(self, a: Any) -> Any:
            return TORCH.flash_attn_with_kvcache(**a)

    program = torch.export.export(One(), (a,), strict=strict)
    assert torch.equal(program.module()(copy(a)), TORCH.flash_attn_with_kvcache(**a))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("layout", ["interleaved", "heads first", "two planes"])
def test_a_joint_cache_is_written(layout: str, inside: bool, backend: str) -> None:
    """K and V that are views of one tensor, as vLLM hands them over: made inside the graph or given to it."""
    torch._dynamo.reset()
    joint = torch.randn(*{"interleaved": (6, PAGE, KV_HEADS, 2 * DIM), "heads first": (6, KV_HEADS, PAGE, 2 * DIM),
                          "two planes": (6, 2, PAGE, KV_HEADS, DIM)}[layout])
    a = of("flash_attn_with_kvcache", "append")

    def views(x: Any) -> tuple[Any, Any]:
        if layout == "two planes":
            return x[:, 0], x[:, 1]
        x = x.transpose(1, 2) if layout == "heads first" else x
        return x[..., :DIM], x[..., DIM:]

    def forward(q: Any, *caches: Any) -> Any:
        for _ in range(2):
            given = dict(zip(("k_cache", "v_cache"), views(*caches) if inside else caches))
            q = TORCH.flash_attn_with_kvcache(**{**a, "q": q, **given})
        return q

    mine, theirs = joint.clone(), joint.clone()
    with torch.no_grad():
        got, want = (f(a["q"], *((x,) if inside else views(x))) for f, x in (
            (torch.compile(forward, backend=backend, fullgraph=True), mine), (forward, theirs)))
    assert torch.equal(got, want)
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, joint)


WRITES = {"flash_attn_with_kvcache": set(), "flash_attn_with_kvcache_append": {"k_cache", "v_cache"},
          "flash_attn_with_kvcache_out": {"out"}, "flash_attn_with_kvcache_append_out": {"k_cache", "v_cache", "out"},
          "flash_attn_varlen_func": set(), "flash_attn_varlen_func_out": {"out"}}


def test_schemas_have_every_argument_of_the_contract() -> None:
    assert custom_ops.OPS.keys() == WRITES.keys()
    for name, op in custom_ops.OPS.items():
        kvcache = name.startswith("flash_attn_with_kvcache")
        signature = contract.WITH_KVCACHE if kvcache else contract.VARLEN
        arguments = {argument.name: argument for argument in op._schema.arguments}
        extra = {"impl", "cache_seqlens_int"} if kvcache else {"impl"}
        assert arguments.keys() == (set(signature.parameters) - {"out"}) | extra | (WRITES[name] & {"out"})
        assert {n for n, a in arguments.items() if a.alias_info is not None and a.alias_info.is_write} == WRITES[name]
        for n, parameter in signature.parameters.items():
            if n in arguments and parameter.default is not parameter.empty and n != "out":
                default = arguments[n].default_value
                assert (tuple(default) if isinstance(default, list) else default) == parameter.default
