"""The forward context: what a plan is keyed by, how contexts nest, what they keep, and what they refuse.

Each component of the key has a check here, and a mutant of the source without that component, which must fail it.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import tracemalloc
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from emulators.devices import Devices, on

import hal
from hal import context, plan, stream

ROOT = Path(__file__).parents[1]
FILES = ("stream", "context", "plan")
CPU = torch.device("cpu")


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


class Lab:
    """hal/stream.py, context.py and plan.py, as they are or with some text replaced: (old, new)."""

    def __init__(self, *edits: tuple[str, str]) -> None:
        self.edited = [0] * len(edits)
        modules = {}
        for file in FILES:
            source = (ROOT / "hal" / f"{file}.py").read_text()
            for n, (old, new) in enumerate(edits):
                self.edited[n] += source.count(old)
                source = source.replace(old, new)
            module = modules[f"hal.{file}"] = types.ModuleType(f"hal.{file}")
            with mock.patch.dict(sys.modules, modules):
                exec(compile(source, f"{file}.py", "exec"), module.__dict__)
        self.stream, self.context, self.plan = (modules[f"hal.{file}"] for file in FILES)
        self.forward_context: Callable[..., Any] = self.context.forward_context

    def planner(self, **kwargs: Any) -> Any:
        """A planner whose plans are new lists of what they were made from."""
        return self.plan.Planner(lambda device, *args: [device, *args], **kwargs)


# --- the key: a check for each component, and the edit that drops it ---


def check_epoch(lab: Lab) -> None:
    lens, planner = ints(3, 5), lab.planner()
    with lab.forward_context(cache_seqlens=lens) as step:
        first = planner(CPU, (lens,))
        assert planner(CPU, (lens,)) is first
        lens += 1
        step.update()
        assert planner(CPU, (lens,)) is not first


def check_impl(lab: Lab) -> None:
    lens = ints(3)
    with lab.forward_context(cache_seqlens=lens):
        assert lab.planner()(CPU, (lens,)) is not lab.planner()(CPU, (lens,))


def check_device(lab: Lab) -> None:
    lab.stream.READERS["cuda"] = lambda device: 0
    planner = lab.planner()
    with lab.forward_context():
        plans = [planner(torch.device("cuda", n), (7, None)) for n in (0, 1, 0)]
    assert [p[0].index for p in plans] == [0, 1, 0]
    assert plans[0] is plans[2]


def check_stream(lab: Lab) -> None:
    current = 0
    lab.stream.READERS["cuda"] = lambda device: current
    planner, lens = lab.planner(), ints(3)
    with lab.forward_context(cache_seqlens=lens):
        first = planner(torch.device("cuda", 0), (lens,))
        current = 1
        second = planner(torch.device("cuda", 0), (lens,))
        assert second is not first
        current = 0
        assert planner(torch.device("cuda", 0), (lens,)) is first


def check_address(lab: Lab) -> None:
    planner, a, b = lab.planner(), ints(3), ints(3)
    with lab.forward_context():
        assert planner(CPU, (a,)) is not planner(CPU, (b,))


def check_object(lab: Lab) -> None:
    """The shortcut by object must tell two tensors apart as the address does."""
    check_address(lab)


def check_same_memory(lab: Lab) -> None:
    """Another tensor object of the same memory is the same lengths."""
    planner, lens = lab.planner(), ints(3, 5)
    with lab.forward_context(cache_seqlens=lens):
        assert planner(CPU, (lens,)) is planner(CPU, (lens[:],))


def _views(lab: Lab, a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.data_ptr() == b.data_ptr()
    planner = lab.planner()
    with lab.forward_context():
        assert planner(CPU, (a,)) is not planner(CPU, (b,))


def check_shape(lab: Lab) -> None:
    lens = ints(3, 5, 7)
    _views(lab, lens[:2], lens[:3])


def check_stride(lab: Lab) -> None:
    lens = ints(3, 5, 7)
    _views(lab, lens[:2], lens[::2])


def check_dtype(lab: Lab) -> None:
    lens = ints(3)
    _views(lab, lens, lens.view(torch.float32))


def check_length_device(lab: Lab) -> None:
    lens = ints(3)
    a, b = on(lens, "musa:0"), on(lens, "musa:1")
    _views(lab, a, b)


def check_host_copy_is_no_tensor(lab: Lab) -> None:
    """An int, None and a tensor are three things."""
    planner = lab.planner()
    with lab.forward_context():
        plans = [planner(CPU, (length,)) for length in (None, 0, 1, ints(1), 1000, 1001)]
    assert len({id(p) for p in plans}) == 6


def check_kept(lab: Lab) -> None:
    """A tensor that a plan was made from lives as long as the plan: nothing else gets its address or id."""
    planner, lens = lab.planner(), ints(3)
    planner.make = lambda device, lengths: []
    ref = weakref.ref(lens)
    with lab.forward_context():
        planner(CPU, (lens,))
        del lens
        gc.collect()
        assert ref() is not None
    gc.collect()
    assert ref() is None


def check_owner(lab: Lab) -> None:
    """A layer of the outer model inside the inner context: its own plan, made before or not; never the inner's."""
    target, draft, stray = ints(30, 50), ints(3, 5), ints(1, 1)
    planner, early = lab.planner(), lab.planner()
    with lab.forward_context(cache_seqlens=target):
        outside = early(CPU, (target,))
        with lab.forward_context(cache_seqlens=draft) as inner:
            inside = planner(CPU, (target,))
            assert early(CPU, (target,)) is outside
            assert early(CPU, (draft,)) is not outside
            undeclared = planner(CPU, (stray,))
            inner.update()
            assert planner(CPU, (target,)) is inside
            assert planner(CPU, (stray,)) is not undeclared
        assert planner(CPU, (target,)) is inside
        assert early(CPU, (target,)) is outside


def check_inner_redeclares(lab: Lab) -> None:
    """Lengths that both were given belong to the inner context: it was entered when they held something else."""
    lens, planner = ints(3, 5), lab.planner()
    with lab.forward_context(cache_seqlens=lens):
        before = planner(CPU, (lens,))
        lens += 1
        with lab.forward_context(cache_seqlens=lens):
            assert planner(CPU, (lens,)) is not before


def check_stranger(lab: Lab) -> None:
    """A tensor that no context was given goes with the inner epoch, also beside one that the outer was given."""
    cu, lens = ints(0, 1), ints(3)
    planner = lab.planner()
    with lab.forward_context(cu_seqlens_q=cu), lab.forward_context(max_seqlen_q=1) as inner:
        before = planner(CPU, (lens, cu))
        assert planner(CPU, (lens, cu)) is before
        lens += 1
        inner.update()
        assert planner(CPU, (lens, cu)) is not before


def check_no_memory(lab: Lab) -> None:
    """All tensors without memory have the same address, 0."""
    planner, a, b = lab.planner(), *(torch.empty(2, dtype=torch.int32, device="meta") for _ in "ab")
    with lab.forward_context():
        assert planner(CPU, (a,)) is not planner(CPU, (b,))
        assert planner(CPU, (a,)) is planner(CPU, (a,))


def check_nesting(lab: Lab) -> None:
    seen = [lab.context.STATE.current]
    outer, inner = lab.forward_context(max_seqlen_q=1), lab.forward_context(max_seqlen_q=2)
    with contextlib.suppress(RuntimeError), outer:
        seen.append(lab.context.STATE.current)
        with pytest.raises(KeyError), inner:
            seen.append(lab.context.STATE.current)
            raise KeyError
        seen.append(lab.context.STATE.current)
    assert [*seen, lab.context.STATE.current] == [None, outer, inner, outer, None]


def check_host_once(lab: Lab) -> None:
    """Lengths are copied from the device once a step, whoever asks and by whichever view."""
    with Devices("npu:0") as devices:
        lens = torch.tensor([3, 5], dtype=torch.int32, device="npu:0")
        for _ in range(2):
            with lab.forward_context(cache_seqlens=lens) as step:
                for _ in range(3):
                    assert lab.context.host(lens) == lab.context.host(lens[:]) == (3, 5)
                step.update(cache_seqlens=lens)
                assert lab.context.host(lens) == (3, 5)
        assert [s.operation for s in devices.syncs if s.direction == "to host"] == ["tolist"] * 4


def check_host_together(lab: Lab) -> None:
    """One wait brings all lengths: those asked for, whatever their dtype, and the context's others."""
    with Devices("npu:0") as devices:
        lens, cu = (torch.tensor(x, dtype=torch.int32, device="npu:0") for x in ([3, 5], [0, 1, 4]))
        slots = torch.tensor([7, -1, 9], device="npu:0")
        assert lab.context.hosts(cu, lens) == ((0, 1, 4), (3, 5))
        with lab.forward_context(cache_seqlens=lens, cu_seqlens_q=cu, page_table=lens[:, None]):
            assert lab.context.hosts(slots) == ((7, -1, 9),)
            assert lab.context.hosts(cu, slots, lens) == ((0, 1, 4), (7, -1, 9), (3, 5))
        assert [s.operation for s in devices.syncs if s.direction == "to host"] == ["tolist"] * 2


def check_host_slots(lab: Lab) -> None:
    """Slot mappings that the context was given come with the lengths, stay over an update, and may be on the host."""
    with Devices("npu:0") as devices:
        lens = torch.tensor([3, 5], dtype=torch.int32, device="npu:0")
        one, two = torch.tensor([7, -1, 9], device="npu:0"), torch.tensor([1, 2, 3], device="npu:0")
        with lab.forward_context(cache_seqlens=lens, slot_mapping=[one, two]) as step:
            for _ in range(2):
                assert lab.context.host(two) == (1, 2, 3)
                assert lab.context.hosts(one, lens) == ((7, -1, 9), (3, 5))
                step.update()
            step.update(slot_mapping=two)
            assert lab.context.hosts(two, lens) == ((1, 2, 3), (3, 5))
            step.update(cache_seqlens_cpu=[3, 5], slot_mapping_cpu=[1, 2, 3])
            assert lab.context.hosts(two, lens) == ((1, 2, 3), (3, 5))
            assert lab.context.host(one) == (7, -1, 9)
        assert [s.operation for s in devices.syncs if s.direction == "to host"] == ["tolist"] * 4


def check_host_given(lab: Lab) -> None:
    """Copies the engine passes are used, even where two names share one tensor; they go with their epoch."""
    lens = ints(3, 5)
    with lab.forward_context(cache_seqlens=lens, seqused_k=lens, cache_seqlens_cpu=[30, 50]) as step:
        assert lab.context.host(lens) == (30, 50)
        step.update()
        assert lab.context.host(lens) == (3, 5)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
ADDRESS = ("        length.data_ptr() or -id(length),  # 0: empty or meta, so the object itself, which the epoch keeps "
           "alive\n")
# Mutant -> (the check that must fail, its edits).
MUTANTS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "epoch": ("epoch", (("        self.epoch = _epoch({**tensors, **given})\n",
                         "        old, self.epoch = self.epoch, _epoch({**tensors, **given})\n"
                         "        self.epoch.by_object, self.epoch.by_memory = old.by_object, old.by_memory\n"),)),
    "impl": ("impl", (("            self,\n            device,\n", "            device,\n"),)),
    "device": ("device", (("            self,\n            device,\n", "            self,\n"),)),
    "stream": ("stream", (('            "graph" if epoch.graph else current_stream(device),\n', ""),)),
    "object": ("object", ((", tuple(map(id, lengths))", ", 0"),)),
    "address": ("address", ((ADDRESS, ""),)),
    "shape": ("shape", (("        length.shape,\n", ""),)),
    "stride": ("stride", (("        length.stride(),\n", ""),)),
    "dtype": ("dtype", (("        length.dtype,\n", ""),)),
    "length device": ("length_device", (("        length.device,\n", ""),)),
    "identity by object": ("same_memory", ((ADDRESS, "        id(length),\n"),)),
    "int lengths": ("host_copy_is_no_tensor", (("        return length\n", "        return None\n"),
                                               (", tuple(map(id, lengths))", ", object()"))),
    "kept tensors": ("kept", (("        epoch.made.append((self, device, lengths, params, plan))\n", ""),)),
    "owner": ("owner", (("        if found is None and not epoch.declared.keys().isdisjoint(strange):",
                         "        if found is None:"), ("(found.graph or not strange)", "True"))),
    "owner, outermost first": ("inner_redeclares", (("found is None and not epoch.declared.keys().isdisjoint(strange)",
                                                     "not epoch.declared.keys().isdisjoint(identities)"),)),
    "owner, of some of the lengths": ("stranger", (("(found.graph or not strange)", "True"),)),
    "owner, never an outer one": ("owner", (("(found.graph or not strange)", "False"),)),
    "no memory": ("no_memory", ((" or -id(length)", ""),)),
    "restore": ("nesting", (("            STATE.current = outer\n", "            STATE.current = None\n"),)),
    "host memo": ("host_once", (("if key not in self.hosts}\n        if missing:", "}\n        if missing:"),)),
    "host copies apart": ("host_together", (("if len(lengths) < 2 or", "if len(lengths) > 0 or"),)),
    "host copies of others": ("host_together", (("missing |= {key: tensor for", "missing | {key: tensor for"),)),
    "host copies given": ("host_given", (("                          for name, copy in self.copies.items()}",
                                          "                          for name, copy in ()}"),)),
}


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name](Lab())


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant: str) -> None:
    check, edits = MUTANTS[mutant]
    lab = Lab(*edits)
    assert all(lab.edited), f"the source has no {edits[lab.edited.index(0)][0]!r} any more"
    with pytest.raises(AssertionError):
        CHECKS[check](lab)


def test_every_component_has_a_mutant() -> None:
    """What the key is built of in the source, line by line, against the mutants above."""
    source = (ROOT / "hal" / "plan.py").read_text() + (ROOT / "hal" / "context.py").read_text()
    edited = {line.strip() for _, edits in MUTANTS.values() for old, _ in edits for line in old.splitlines()}
    key = source[source.index("    def _key(") :]
    key = key[key.index("return (\n") : key.index("        )\n")]
    identity = source[source.index("def identity(") :]
    identity = identity[identity.index("return (\n") : identity.index("    )\n")]
    lines = [line.strip() for text in (key, identity) for line in text.splitlines()[1:]]
    assert len(lines) == 9
    assert [line for line in lines if line not in edited] == ["params,"]  # one mutant for each parameter, below


# What a call's plan may depend on beside lengths, two values each.
PARAMS: dict[str, tuple[Any, Any]] = {
    "num_heads": (8, 16), "num_kv_heads": (2, 4), "head_dim": (64, 128), "head_dim_v": (64, 128),
    "dtype": (torch.float16, torch.bfloat16), "kv_cache_dtype": (torch.float16, torch.float8_e4m3fn),
    "page_size": (16, 64), "causal": (False, True), "window_size": ((-1, -1), (127, 0)), "softcap": (0.0, 30.0),
    "attention_chunk": (0, 64), "num_splits": (0, 4), "max_seqlen_q": (1, 4), "max_seqlen_k": (100, 200),
}


def check_param(lab: Lab, name: str) -> None:
    """Two calls that differ in one parameter: two plans, each of its own value."""
    lens, planner = ints(3), lab.planner()
    base = {key: values[0] for key, values in PARAMS.items()}
    with lab.forward_context(cache_seqlens=lens):
        for value in PARAMS[name] * 2:
            got = planner(CPU, (lens,), tuple((base | {name: value}).values()))
            assert got[2 + list(PARAMS).index(name)] == value
        assert len(lab.context.STATE.current.epoch.made) == 2


@pytest.mark.parametrize("name", PARAMS)
def test_parameter_is_in_the_key(name: str) -> None:
    check_param(Lab(), name)
    at = list(PARAMS).index(name)
    without = Lab(("            params,\n", f"            params[:{at}] + params[{at + 1}:],\n"))
    assert without.edited == [1]
    with pytest.raises(AssertionError):
        check_param(without, name)
    for other in PARAMS.keys() - {name}:
        check_param(without, other)


# --- entering, leaving, refusing ---

LENS, CU, TABLE = ints(3, 5), ints(0, 1, 2), torch.zeros(2, 4, dtype=torch.int32)


@pytest.mark.parametrize(("given", "error", "text"), [
    ({"cache_seqlen": LENS}, TypeError, "'cache_seqlen' is no argument of .* .arguments: cache_seqlens, "),
    ({"cache_seqlens": LENS.long()}, ValueError, "cache_seqlens: got torch.int64 .*expected an int32 tensor of 1 dim"),
    ({"cache_seqlens": [3, 5]}, ValueError, r"cache_seqlens: got \[3, 5\], expected an int32 tensor"),
    ({"cache_seqlens": TABLE}, ValueError, "cache_seqlens: got .*expected an int32 tensor of 1 dimension$"),
    ({"page_table": LENS}, ValueError, "page_table: got .*expected an int32 tensor of 2 dimensions$"),
    ({"cache_seqlens": LENS, "cu_seqlens_q": LENS}, ValueError, "cu_seqlens_q: got 1 sequences, expected 2, as cache_"),
    ({"cache_seqlens": LENS, "page_table": TABLE[:1]}, ValueError, "page_table: got 1 sequences, expected 2"),
    ({"cu_seqlens_q": LENS[:0]}, ValueError, r"cu_seqlens_q: got \(0,\), expected at least 1 value"),
    ({"cache_seqlens": LENS, "cu_seqlens_q": CU.to("meta")}, ValueError, "cu_seqlens_q: got a tensor on meta, "),
    ({"max_seqlen_q": -1}, ValueError, "max_seqlen_q: got -1, expected a whole number"),
    ({"max_seqlen_k": 3.0}, ValueError, "max_seqlen_k: got 3.0, expected a whole number"),
    ({"slot_mapping": LENS}, ValueError, "slot_mapping: got torch.int32.* expected an int64 tensor of 1 dim"),
    ({"slot_mapping": [LENS.long(), 3]}, ValueError, "slot_mapping: got 3, expected an int64 tensor of 1 dim"),
    ({"slot_mapping_cpu": [3]}, ValueError, r"slot_mapping_cpu: got \[1\] values, expected \[\], as slot_mapping"),
    ({"slot_mapping": LENS.long(), "slot_mapping_cpu": [3]}, ValueError, r"_cpu: got \[1\] values, expected \[2\]"),
    ({"slot_mapping": LENS.long(), "slot_mapping_cpu": 3}, ValueError, "_cpu: got 3, expected a list of int"),
    ({"cache_seqlens_cpu": [3, 5]}, ValueError, "cache_seqlens_cpu: got a copy, expected cache_seqlens beside it"),
    ({"cache_seqlens": LENS, "cache_seqlens_cpu": [3]}, ValueError, "cache_seqlens_cpu: got 1 values, expected 2"),
    ({"cu_seqlens_q": CU, "cu_seqlens_q_cpu": [1, 2]}, ValueError, "cu_seqlens_q_cpu: got 2 values, expected 3"),
    ({"cache_seqlens": LENS, "cache_seqlens_cpu": LENS}, ValueError, "cache_seqlens_cpu: got .* a list or tuple"),
    ({"cache_seqlens": LENS, "cache_seqlens_cpu": list(LENS)}, ValueError, "_cpu: got .tensor.* first, expected whole"),
    ({"cache_seqlens": LENS, "cache_seqlens_cpu": [-3, 5]}, ValueError, r"_cpu: got .-3. first, expected whole num"),
])
def test_bad_input(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        hal.forward_context(**given)
    with hal.forward_context(max_seqlen_q=1) as step:
        with pytest.raises(error, match=text):
            step.update(**given)
        assert step.epoch is not None


@pytest.mark.parametrize(("given", "text"), [
    ({"cache_seqlens": ints(3, -1)}, "cache_seqlens: got -1, expected lengths >= 0"),
    ({"cu_seqlens_q": ints(1, 2)}, "cu_seqlens_q: got 1 first, expected 0 first"),
    ({"cu_seqlens_k": ints(0, 3, 2)}, "cu_seqlens_k: got -1, expected lengths >= 0"),
    ({"cu_seqlens_q": ints(0, 3), "max_seqlen_q": 2}, "max_seqlen_q: got 2, expected at least 3, the longest of"),
    ({"cache_seqlens": LENS, "max_seqlen_k": 4}, "max_seqlen_k: got 4, expected at least 5"),
    ({"slot_mapping": LENS.long(), "slot_mapping_cpu": [3, 4]}, r"slot_mapping_cpu: got \(3, 4\), expected \(3, 5\)"),
    ({"cache_seqlens": LENS, "cache_seqlens_cpu": [3, 4]}, r"cache_seqlens_cpu: got \(3, 4\), expected \(3, 5\)"),
    ({"cache_seqlens": LENS, "cache_seqlens_cpu": [3, 5.0]}, r"cache_seqlens_cpu: got \[5.0\], expected whole numbers"),
])
def test_contents_are_checked_when_asked_for(given: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hal.forward_context(**given)
    monkeypatch.setenv("HAL_CHECK", "1")
    with pytest.raises(ValueError, match=text):
        hal.forward_context(**given)


def test_closing_out_of_order_is_an_error() -> None:
    outer, inner = hal.forward_context(), hal.forward_context()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="out of order"):
        outer.__exit__(None, None, None)
    assert context.STATE.current is inner
    inner.__exit__(None, None, None)
    assert context.STATE.current is None


def test_a_context_belongs_to_its_thread_and_is_used_once() -> None:
    with hal.forward_context(cache_seqlens=LENS) as step:
        seen: list[Any] = []

        def other() -> None:
            seen.append(context.STATE.current)
            for use in (step.update, lambda: step.__exit__(None, None, None)):
                try:
                    use()
                except RuntimeError as error:
                    seen.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen[0] is None
        assert "innermost open forward context of this thread" in seen[1]
        assert "another thread" in seen[2]
        with pytest.raises(RuntimeError, match="closed by another thread"):
            context.host(LENS)
    with pytest.raises(RuntimeError, match="entered before"):
        step.__enter__()
    with pytest.raises(RuntimeError, match="this one is not open"):
        step.update()


def test_an_outer_context_is_not_updated_from_inside() -> None:
    with hal.forward_context() as step, hal.forward_context(), pytest.raises(RuntimeError, match="close the inner one"):
        step.update()


def test_bound_is_that_of_the_context_which_has_the_lengths() -> None:
    target, draft = ints(30), ints(3)
    assert context.bound("max_seqlen_k", target) is None
    with hal.forward_context(cache_seqlens=target, max_seqlen_k=100) as step:
        with hal.forward_context(cache_seqlens=draft, max_seqlen_k=10):
            assert (context.bound("max_seqlen_k", target), context.bound("max_seqlen_k", draft)) == (100, 10)
            assert context.bound("max_seqlen_q", draft) is context.bound("max_seqlen_k", ints(3)) is None
        step.update(cache_seqlens=target)
        assert context.bound("max_seqlen_k", target) is None


def test_outside_a_context_every_call_plans_for_itself() -> None:
    planner = plan.Planner(lambda device, *args: [device, *args])
    first = planner(CPU, (LENS,), (1,))
    assert first == [CPU, LENS, 1]
    assert planner(CPU, (LENS,), (1,)) is not first
    assert context.host(LENS) == (3, 5)


def test_none_is_a_plan_and_a_failed_one_is_made_again() -> None:
    made: list[int] = []

    def make(device: Any, length: int) -> None:
        made.append(length)
        if len(made) == 1:
            raise KeyError("vendor")

    planner = plan.Planner(make)
    with hal.forward_context():
        with pytest.raises(KeyError):
            planner(CPU, (3,))
        assert planner(CPU, (3,)) is planner(CPU, (3,)) is None
    assert made == [3, 3]


def test_a_tensor_among_the_parameters_is_refused() -> None:
    with hal.forward_context(), pytest.raises(TypeError, match="hold a tensor: pass it in lengths"):
        plan.Planner(lambda *a: None)(CPU, (), (LENS,))


def test_a_device_without_an_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.READERS, "cuda", lambda device: 0)
    planner = plan.Planner(lambda device: [])
    with hal.forward_context():
        with pytest.raises(ValueError, match="got cuda, expected an index, as q.device has"):
            planner(torch.device("cuda"), ())
        assert planner(torch.device("cuda", 0), ()) is planner(torch.device("cuda", 0), ())


def test_a_context_is_entered_while_another_thread_compiles() -> None:
    """torch's flag is_compiling is the process's; only the thread that is traced must not enter one."""
    with torch.compiler._compile_session_context():
        assert torch.compiler.is_compiling()
        with hal.forward_context(max_seqlen_q=1) as step:
            step.update(max_seqlen_q=2)


def test_unknown_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device type that nobody can say the stream of is an error; a platform that says it is asked."""
    monkeypatch.setattr(stream, "READERS", dict(stream.READERS))
    device = types.SimpleNamespace(type="npu", index=0)
    with pytest.raises(RuntimeError, match=r"device type 'npu'.*current_stream\(device\)"):
        stream.current_stream(device)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))  # no platform's file
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda d: types.SimpleNamespace(stream_id=d.index))
    assert [stream.current_stream(torch.device("xpu", n)) for n in (3, 4)] == [3, 4]
    from hal.platforms import npu

    monkeypatch.setattr(npu, "current_stream", lambda device: ("stream of", device.index), raising=False)
    assert stream.current_stream(device) == ("stream of", 0)


# --- HAL_CHECK=1: frozen is verified ---


def test_changed_lengths_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CHECK", "1")
    lens, table, other, cu = ints(3, 5), torch.zeros(2, 4, dtype=torch.int32), ints(1, 2), ints(0, 1, 2)

    def make(device: Any, cache_seqlens: Any, seqused_q: Any) -> list[Any]:
        return []

    planner = plan.Planner(make)
    with hal.forward_context(cache_seqlens=lens, page_table=table, cu_seqlens_q=cu) as step:
        first = planner(CPU, (lens, other))
        assert planner(CPU, (lens, other)) is first
        frozen = {"cache_seqlens": lens, "page_table": table, "cu_seqlens_q": cu, "seqused_q": other}
        for name, tensor in frozen.items():
            before = tensor.clone()
            tensor.view(-1)[1] += 7
            was, now = before.view(-1)[1].item(), tensor.view(-1)[1].item()
            with pytest.raises(ValueError, match=rf"{name}: got {now} at .*, expected {was}, its value when the epoch"):
                planner(CPU, (lens, other))
            with pytest.raises(ValueError, match=f"{name}: got {now} at"):
                context.host(lens)
            tensor.copy_(before)
        lens += 1
        step.update()
        assert planner(CPU, (lens, other)) is not first


def test_changed_lengths_are_named_by_any_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by one that plans nothing."""
    monkeypatch.setenv("HAL_CHECK", "1")
    attn = hal.get_attention_impl(hal.AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32"),
                                  device="cpu", backend="torch")
    lens, cache, q = ints(3, 5), torch.randn(2, 9, 1, 8), torch.randn(2, 1, 2, 8)
    with hal.forward_context(cache_seqlens=lens), hal.forward_context():
        attn.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=lens)
        lens += 1
        with pytest.raises(ValueError, match="cache_seqlens: got 4 at"):
            attn.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=lens)


@pytest.mark.parametrize("check", ["0", "1"])
def test_inference_mode_does_not_matter(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CHECK", check)
    planner = plan.Planner(lambda device, lengths: lengths + 1)
    with torch.inference_mode():
        inside = ints(3)
    for lens in (ints(3), inside):
        for outer, inner in ((True, False), (False, True)):
            with torch.inference_mode(outer), hal.forward_context(cache_seqlens=lens) as step:
                first = planner(CPU, (lens,))
                with torch.inference_mode(inner):
                    assert planner(CPU, (lens,)) is first
                    assert context.host(lens) == (3,)
                    step.update()
                    assert planner(CPU, (lens,)) is not first


# --- what is kept, and by whom ---


def test_nothing_is_alive_after_the_context() -> None:
    lens, copy = ints(3, 5), ints(1, 2)
    planner = plan.Planner(lambda device, *args: torch.zeros(4))
    refs: list[Any] = [weakref.ref(lens), weakref.ref(copy)]
    with hal.forward_context(cache_seqlens=lens) as step:
        refs += [weakref.ref(planner(CPU, (lens, copy))), weakref.ref(step.epoch.tensors["cache_seqlens"])]
        context.host(copy)
        del lens, copy
        gc.collect()
        assert all(ref() is not None for ref in refs)
        old = refs[2]
        step.update(cache_seqlens=ints(4, 6))
        gc.collect()
        assert old() is None
        assert refs[0]() is None
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4
    assert step.epoch is None


def test_no_growth_over_ten_thousand_steps() -> None:
    planner = plan.Planner(lambda device, *args: [0] * 50)

    def steps(count: int) -> None:
        for n in range(count):
            lens = ints(n, n + 1)
            with hal.forward_context(cache_seqlens=lens, max_seqlen_k=n) as step:
                for window in ((-1, -1), (127, 0)):
                    planner(CPU, (lens, n), (window,))
                    context.host(lens)
                step.update(cache_seqlens=ints(n))

    steps(200)
    gc.collect()
    tracemalloc.start()
    steps(100)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    steps(10_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000, f"{grown} bytes more after 10,000 steps"


@pytest.mark.parametrize(("threads", "shared"), [(16, False), (8, True)])
def test_no_plan_is_seen_by_another_thread(threads: int, shared: bool) -> None:
    """Each step's three layers get one plan, made by their own thread in that step; lengths may be shared too."""
    steps = 2000
    lens = ints(3, 5)

    def make(device: Any, lengths: Any, layer_kind: int) -> list[Any]:
        return [threading.get_ident(), layer_kind]

    one = plan.Planner(make)
    wrong: list[Any] = []
    done: list[int] = []
    start = threading.Barrier(threads)

    def work() -> None:
        planner = one if shared else plan.Planner(make)
        mine, made = threading.get_ident(), 0
        start.wait()
        for n in range(steps):
            with hal.forward_context(cache_seqlens=lens, max_seqlen_q=n) as step:
                first = planner(CPU, (lens,), (0,))
                with hal.forward_context(cache_seqlens=lens):
                    inner = planner(CPU, (lens,), (0,))
                again, other = planner(CPU, (lens,), (0,)), planner(CPU, (lens,), (1,))
                if again is not first or inner is first or first != [mine, 0] or other != [mine, 1]:
                    wrong.append((first, inner, again, other))
                if len(first) > 2:
                    wrong.append("a plan of an earlier step")
                first.append(n)
                made += len(step.epoch.made)
        done.append(made)

    pool = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join(120)
    finally:
        sys.setswitchinterval(switch)
    assert not any(thread.is_alive() for thread in pool)
    assert not wrong, wrong[:3]
    assert done == [2 * steps] * threads


@pytest.fixture
def clean_state() -> Iterator[None]:
    assert context.STATE.current is None
    yield
    assert context.STATE.current is None


@pytest.mark.usefixtures("clean_state")
def test_without_tensors_torch_is_not_imported() -> None:
    code = ("import sys, hal\nwith hal.forward_context(max_seqlen_q=1) as step: step.update(max_seqlen_k=2)\n"
            "try: hal.forward_context(cache_seqlens=[1])\nexcept ValueError as error: print(error)\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cache_seqlens: got [1], expected an int32 tensor")
