"""Ascend's adapters on the fake NPU, through the real torch_npu: what the conformance grid does not ask for.

The grid is run by ci/verify_emulated.py on the other generations that have the op, and whole where it leaves a record.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import fake_npu
import pytest
import torch
import torch_npu
from env_npu.on_fake_npu.altered import altered, edited
from env_npu.on_fake_npu.data_faults import FAULTS, Fault

import hal
from hal import oracle, registry
from hal.conformance.case import Case
from hal.conformance.grid import grid
from hal.conformance.record import unproven
from hal.conformance.runner import Result, Runner
from hal.merge import merge_attention_states

PLATFORM = hal.detect("npu")
H, HKV, D, PAGE = 4, 2, 64, 128
LATENT, ROPE, SCALE = 512, 64, 0.1147
DENSE = hal.AttentionConfig(num_heads=H, num_kv_heads=HKV, head_dim=D, page_size=PAGE)
MLA = hal.AttentionConfig(num_heads=3, mla=True, softmax_scale=SCALE)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def cumulated(lengths: Any) -> torch.Tensor:
    return ints(*itertools.accumulate(lengths, initial=0))


def npu(call: dict[str, Any]) -> dict[str, Any]:
    return {name: x.npu() if isinstance(x, torch.Tensor) else x for name, x in call.items()}


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.allclose(got.cpu().double(), want.double(), atol=2e-2, rtol=2e-2), (
        got.cpu().double() - want.double()).abs().max()


def vendor_calls() -> list[str]:
    return [name for name, _ in fake_npu.calls() if "FusedInfer" in name or "ScatterPa" in name]


@functools.cache
def quick(backend: str) -> dict[str, Case]:
    return {case.name: case for case in grid(registry.get(backend), False)}


# --- refusals, faults ---

@pytest.mark.parametrize("backend", ["ascend", "ascend_mla"])
def test_quick_grid_with_all_refusals_before_the_vendor_is_called(backend: str) -> None:
    runner, results = Runner(registry.get(backend), PLATFORM, 7), []
    for case in quick(backend).values():
        fake_npu.reset_counters()
        result = runner.run(case)
        assert result.result != "failed", result
        if result.result == "refused":
            assert not [name for name in vendor_calls() if "FusedInfer" in name], result
        results.append(result)
    assert unproven(registry.get(backend), results) == {}
    assert sum(result.result == "refused" for result in results) > 250


def result_of(fault: Fault) -> Result:
    return Runner(registry.get(fault.backend), PLATFORM, 11).run(quick(fault.backend)[fault.case])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_turns_its_case_red(fault: Fault) -> None:
    before = result_of(fault)
    assert before.result == "passed", before
    with altered(edited(*fault.edits)):
        after = result_of(fault)
    assert after.result == "failed", after
    assert result_of(fault).result == "passed", "the fault was not taken back"


@pytest.mark.parametrize("backend", ["ascend", "ascend_mla"])
def test_no_trap_of_a_stack_meets_hals_calls(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NPU_TRAPS", ",".join(fake_npu.TRAPS))
    runner, passed = Runner(registry.get(backend), PLATFORM, 13), 0
    for case in quick(backend).values():
        if any(word in case.name for word in ("sliding_window", "non_causal", "empty rows", "encoder", " plain", "q4")):
            result = runner.run(case)
            assert result.result != "failed", result
            passed += result.result == "passed"
    assert passed > 15


def test_a_window_over_fewer_keys_than_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NPU_TRAPS", "band_keeps_empty_rows")
    impl = hal.get_attention_impl(DENSE.replace(sliding_window=9, return_softmax_lse=True), PLATFORM).prefill
    call = {**dense((3, 200), (7, 2), 2), "causal": True, "window_size": (8, 0), "return_softmax_lse": True}
    for windows in ({}, {"causal": False, "window_size": (8, 2)}, {"causal": False, "window_size": (8, -1)}):
        each = call | windows
        got, want = impl.flash_attn_with_kvcache(**npu(each)), oracle.flash_attn_with_kvcache(**each)
        close(got[0], want[0])
        assert torch.equal(got[1].cpu().isneginf(), want[1].isneginf())
        close(got[1].nan_to_num(neginf=0.0), want[1].nan_to_num(neginf=0.0))


# --- once per step ---

class Model:
    """Two kinds of layer over one batch: full attention and a window, each with its caches."""

    def __init__(self, lens: tuple[int, ...], new: tuple[int, ...]) -> None:
        self.impls = hal.get_attention_impls({"full": DENSE, "window": DENSE.replace(sliding_window=9)}, PLATFORM)
        self.new, self.pages = new, 3 * len(lens)
        self.table = torch.arange(self.pages, dtype=torch.int32).view(len(lens), 3).flip(1)
        self.lens, self.cu = ints(*lens), cumulated(new)
        self.slots = torch.tensor([int(self.table[b, at // PAGE]) * PAGE + at % PAGE for b, (end, count) in
                                   enumerate(zip(lens, new)) for at in range(end - count, end)] + [-1])
        self.on_npu = npu({"cache_seqlens": self.lens, "page_table": self.table, "cu_seqlens_q": self.cu,
                           "slots": self.slots})
        self.caches = {name: impl.new_kv_cache(self.pages) for name, impl in self.impls.items()}
        self.host = {name: tuple(torch.randn(self.pages, PAGE, HKV, D).bfloat16() for _ in "kv") for name in self.impls}
        for name, pair in self.host.items():
            for cache, value in zip(self.caches[name], pair):
                cache.copy_(value)
        self.q = torch.randn(sum(new), H, D).bfloat16()
        self.kv = [torch.randn(sum(new) + 1, HKV, D).bfloat16() for _ in "kv"]
        self.inputs = self.q.npu(), *(x.npu() for x in self.kv)

    def step(self, layers: int, slots: Any = None) -> dict[str, torch.Tensor]:
        q, k, v = self.inputs
        a, out = self.on_npu, {}
        for _ in range(layers):
            for name, impl in self.impls.items():
                impl.write_kv_cache(k, v, *self.caches[name], slots[name] if slots else a["slots"])
                out[name] = impl.prefill.flash_attn_with_kvcache(
                    q, *self.caches[name], cache_seqlens=a["cache_seqlens"], page_table=a["page_table"], causal=True,
                    cu_seqlens_q=a["cu_seqlens_q"], max_seqlen_q=max(self.new), window_size=impl.config.window_size)
        return out

    def expect(self, out: dict[str, torch.Tensor]) -> None:
        for name, impl in self.impls.items():
            caches = [x.clone() for x in self.host[name]]
            for cache, new in zip(caches, self.kv):
                cache.view(-1, HKV, D)[self.slots[:-1]] = new[:-1]
            close(out[name], oracle.flash_attn_with_kvcache(
                self.q, *caches, cache_seqlens=self.lens, page_table=self.table, cu_seqlens_q=self.cu, causal=True,
                max_seqlen_q=max(self.new), window_size=impl.config.window_size))


@pytest.mark.parametrize(("lens", "new"), [((130, 7, 300), (1, 1, 1)), ((130, 7, 300), (30, 7, 1))])
def test_a_step_with_two_kinds_of_layer_waits_once(lens: Any, new: Any) -> None:
    model = Model(lens, new)
    model.expect(model.step(1))
    given = {name: model.on_npu[name] for name in ("cache_seqlens", "page_table", "cu_seqlens_q")}
    for layers in (1, 6):
        torch.npu.synchronize()
        fake_npu.reset_counters()
        with hal.forward_context(**given):
            out = model.step(layers)
        assert fake_npu.counters()["host_waits"] == 1
        assert fake_npu.counters()["blocking_copies_to_host"] == 1
        assert fake_npu.counters()["aclnnFusedInferAttentionScoreV3"] == 2 * layers
        model.expect(out)


def test_a_step_whose_lengths_the_engine_has_on_the_host_does_not_wait_to_attend() -> None:
    model = Model((130, 7, 300), (30, 7, 1))
    a, host = model.on_npu, {"cache_seqlens_cpu": [130, 7, 300], "cu_seqlens_q_cpu": [0, 30, 37, 38]}
    fake_npu.reset_counters()
    with hal.forward_context(cache_seqlens=a["cache_seqlens"], cu_seqlens_q=a["cu_seqlens_q"], **host):
        out = model.impls["full"].prefill.flash_attn_with_kvcache(
            model.inputs[0], *model.caches["full"], cache_seqlens=a["cache_seqlens"], page_table=a["page_table"],
            cu_seqlens_q=a["cu_seqlens_q"], max_seqlen_q=30, causal=True)
    assert fake_npu.counters()["host_waits"] == 0
    assert out.isfinite().all()


@pytest.mark.parametrize("on_host", [False, True])
def test_kinds_of_layer_with_slots_of_their_own_wait_no_more(on_host: bool) -> None:
    model = Model((130, 7, 300), (30, 7, 1))
    own = {name: model.slots.npu() for name in model.impls}
    given: dict[str, Any] = {name: model.on_npu[name] for name in ("cache_seqlens", "page_table", "cu_seqlens_q")}
    given["slot_mapping"] = list(own.values())
    if on_host:
        given |= {"cache_seqlens_cpu": [130, 7, 300], "cu_seqlens_q_cpu": [0, 30, 37, 38],
                  "slot_mapping_cpu": [model.slots.tolist()] * 2}
    torch.npu.synchronize()
    fake_npu.reset_counters()
    with hal.forward_context(**given):
        out = model.step(3, own)
    assert fake_npu.counters()["host_waits"] == (0 if on_host else 1)
    model.expect(out)


def test_the_order_of_the_readme_waits_once() -> None:
    model = Model((130, 7, 300), (1, 1, 1))
    a, (q, k, v) = model.on_npu, model.inputs
    torch.npu.synchronize()
    fake_npu.reset_counters()
    with hal.forward_context(cache_seqlens=a["cache_seqlens"], slot_mapping=a["slots"]):
        for _ in range(3):
            model.impls["full"].write_kv_cache(k, v, *model.caches["full"], a["slots"])
            model.impls["full"].flash_attn_with_kvcache(q[:, None], *model.caches["full"], causal=True,
                                                        cache_seqlens=a["cache_seqlens"], page_table=a["page_table"])
    assert fake_npu.counters()["host_waits"] == 1


def test_no_length_is_an_npu_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the Python op: the dispatcher makes lists of tensors, and waits for each."""
    op, seen = torch_npu.npu_fused_infer_attention_score, []

    def recorded(**arguments: Any) -> Any:
        seen.append((arguments["actual_seq_lengths"], arguments["actual_seq_lengths_kv"]))
        return op(**arguments)

    monkeypatch.setattr(torch_npu, "npu_fused_infer_attention_score", recorded)
    Model((130, 7), (1, 1)).step(1)
    assert len(seen) == 2
    for lengths in seen:
        assert all(type(each) is list and all(type(x) is int for x in each) for each in lengths)
        assert lengths == ([1, 2], [130, 7])


# --- the page table's rows ---

def absorbed(lens: Any, new: Any, pages: int) -> dict[str, Any]:
    table = torch.arange(len(lens) * pages, dtype=torch.int32).view(len(lens), pages).flip(1)
    return {"q": torch.randn(sum(new), 3, ROPE).bfloat16(), "qv": torch.randn(sum(new), 3, LATENT).bfloat16(),
            "k_cache": torch.randn(table.numel(), PAGE, 1, ROPE).bfloat16(),
            "v_cache": torch.randn(table.numel(), PAGE, 1, LATENT).bfloat16(), "cache_seqlens": ints(*lens),
            "page_table": table, "cu_seqlens_q": cumulated(new), "max_seqlen_q": max(new), "softmax_scale": SCALE}


def dense(lens: Any, new: Any, pages: int) -> dict[str, Any]:
    table = torch.arange(len(lens) * pages, dtype=torch.int32).view(len(lens), pages).flip(1)
    k, v = (torch.randn(table.numel(), PAGE, HKV, D).bfloat16() for _ in "kv")
    return {"q": torch.randn(sum(new), H, D).bfloat16(), "k_cache": k, "v_cache": v, "cache_seqlens": ints(*lens),
            "page_table": table, "cu_seqlens_q": cumulated(new), "max_seqlen_q": max(new)}


def varlen_of(call: dict[str, Any]) -> dict[str, Any]:
    names = {"k_cache": "k", "v_cache": "v", "cache_seqlens": "seqused_k"}
    return {names.get(name, name): x for name, x in call.items()} | {"max_seqlen_k": 2 * PAGE}


@pytest.mark.parametrize(("config", "made", "function"), [
    (DENSE, dense, "flash_attn_with_kvcache"), (DENSE, dense, "flash_attn_varlen_func"),
    (MLA, absorbed, "flash_attn_with_kvcache")], ids=["kvcache", "varlen", "absorbed"])
def test_a_page_table_has_a_row_for_each_sequence_at_least(config: Any, made: Any, function: str) -> None:
    call = {**made((200, 7), (2, 1), 2), "causal": True}
    more = torch.cat([call["page_table"], call["page_table"]])
    call, calls = (call, lambda table: {**call, "page_table": table}) if function != "flash_attn_varlen_func" else (
        varlen_of(call), lambda table: varlen_of({**call, "page_table": table}))
    attend, want = getattr(hal.get_attention_impl(config, PLATFORM).prefill, function), getattr(oracle, function)
    close(attend(**npu(calls(more))), want(**call))
    fake_npu.reset_counters()
    with pytest.raises(ValueError, match=r"page_table with 1 rows is not supported \(ascend.*: 2, as there are seq"):
        attend(**npu(calls(call["page_table"][:1])))
    assert vendor_calls() == []


# --- long queries of absorbed MLA ---

@pytest.mark.parametrize("causal", [False, True])
def test_absorbed_queries_go_in_rows_of_sixteen(causal: bool) -> None:
    call = {**absorbed((300, 20), (40, 17), 3), "causal": causal}
    impl = hal.get_attention_impl(MLA.replace(causal=causal), PLATFORM).prefill
    fake_npu.reset_counters()
    close(impl.flash_attn_with_kvcache(**npu(call)), oracle.flash_attn_with_kvcache(**call))
    [arguments] = [arguments for name, arguments in fake_npu.calls() if "FusedInfer" in name]
    assert arguments["actual_seq_lengths"] == [16, 32, 40, 56, 57]
    assert arguments["sparse_mode"] == (3 if causal else 4)


def test_more_rows_than_the_op_takes_are_refused_with_their_cause() -> None:
    call = absorbed((20,), (16 * 4096 + 1,), 1)
    impl = hal.get_attention_impl(MLA.replace(causal=False), PLATFORM).prefill
    fake_npu.reset_counters()
    with pytest.raises(ValueError, match=r"rows of queries 4097 .*up to 4096.*1 sequences go in rows of up to 16"):
        impl.flash_attn_with_kvcache(**npu(call))
    assert vendor_calls() == []


# --- chunked context ---

def test_a_chunked_context_merges_to_the_whole() -> None:
    """MLA's prefill as engines do it: this step's tokens, causal, and the context in chunks without a mask."""
    heads, seen, new = 5, (300, 0, 40), (7, 3, 1)
    impl = hal.get_attention_impl(hal.AttentionConfig(num_heads=heads, mla=True, softmax_scale=SCALE, causal=False),
                                  PLATFORM).prefill
    q = torch.randn(sum(new), heads, 192).bfloat16()
    keys = [[torch.randn(s + n, heads, width).bfloat16() for s, n in zip(seen, new)] for width in (192, 128)]

    def part(first: Any, last: Any, causal: bool) -> Any:
        k, v = (torch.cat([x[a:b] for x, a, b in zip(side, first, last)]) for side in keys)
        lengths = [b - a for a, b in zip(first, last)]
        call = {"q": q, "k": k, "v": v, "cu_seqlens_q": cumulated(new), "cu_seqlens_k": cumulated(lengths),
                "max_seqlen_q": max(new), "max_seqlen_k": max(lengths), "causal": causal, "softmax_scale": SCALE,
                "return_softmax_lse": True}
        return impl.flash_attn_varlen_func(**npu(call)), oracle.flash_attn_varlen_func(**call)

    got, _ = part(seen, [s + n for s, n in zip(seen, new)], True)
    for first in (0, 128, 256):
        starts, ends = [min(first, s) for s in seen], [min(first + 128, s) for s in seen]
        chunk, want = part(starts, ends, False)
        close(chunk[0], want[0])
        assert torch.equal(chunk[1].cpu().isinf(), want[1].isinf())
        got = merge_attention_states(*got, *chunk)
    _, (out, lse) = part([0] * 3, [s + n for s, n in zip(seen, new)], True)
    close(got[0], out)
    close(got[1], lse)


# --- what the quick grid has no case for ---

def test_pieces_of_a_long_query_without_keys() -> None:
    """Absorbed queries go in rows of 16: of 40 over 10 keys the first two rows see none."""
    impl = hal.get_attention_impl(MLA, PLATFORM).prefill
    new, lens = (40, 2, 17), (10, 0, 300)
    call = {"q": torch.randn(sum(new), 3, ROPE).bfloat16(), "qv": torch.randn(sum(new), 3, LATENT).bfloat16(),
            "k_cache": torch.randn(5, PAGE, 1, ROPE).bfloat16(), "v_cache": torch.randn(5, PAGE, 1, LATENT).bfloat16(),
            "cache_seqlens": ints(*lens), "page_table": torch.tensor([[4, 0, 0], [0, 0, 0], [1, 3, 2]]).int(),
            "cu_seqlens_q": cumulated(new), "max_seqlen_q": 40, "causal": True, "softmax_scale": SCALE,
            "return_softmax_lse": True}
    got, want = impl.flash_attn_with_kvcache(**npu(call)), oracle.flash_attn_with_kvcache(**call)
    close(got[0], want[0])
    assert torch.equal(got[1].cpu().isinf(), want[1].isinf())
    close(got[1].nan_to_num(neginf=0.0), want[1].nan_to_num(neginf=0.0))


def test_an_unpaged_cache_that_is_full_in_places() -> None:
    impl = hal.get_attention_impl(DENSE, PLATFORM)
    call = {"q": torch.randn(3, 1, H, D).bfloat16(), "k_cache": torch.randn(3, 20, HKV, D).bfloat16(),
            "v_cache": torch.randn(3, 20, HKV, D).bfloat16(), "cache_seqlens": ints(20, 5, 20), "causal": True}
    close(impl.flash_attn_with_kvcache(**npu(call)), oracle.flash_attn_with_kvcache(**call))


@pytest.mark.parametrize("config", [DENSE, MLA], ids=["dense", "mla"])
def test_no_queries_have_an_empty_lse(config: hal.AttentionConfig) -> None:
    mla = config.mla is not None
    impl = hal.get_attention_impl(config.replace(return_softmax_lse=True), PLATFORM)
    k_cache, v_cache = impl.new_kv_cache(2)
    q = torch.zeros(0, config.num_heads, ROPE if mla else D, dtype=torch.bfloat16, device="npu")
    more = {"qv": q.new_zeros(0, config.num_heads, LATENT), "softmax_scale": SCALE} if mla else {}
    out, lse = impl.flash_attn_with_kvcache(
        q, k_cache, v_cache, **more, **npu({"cache_seqlens": ints(5), "page_table": ints(1)[None],
                                            "cu_seqlens_q": ints(0, 0)}), max_seqlen_q=0, return_softmax_lse=True)
    assert out.shape == (0, config.num_heads, LATENT if mla else D)
    assert (lse.shape, lse.dtype) == ((config.num_heads, 0), torch.float32)


@pytest.mark.parametrize("rank", [0, 1])
def test_context_parallel_over_pages_through_the_varlen_function(rank: int) -> None:
    [case] = [case for case in grid(registry.get("ascend"), True) if case.name == (
        f"dense context_parallel: paged_varlen bfloat16 8/2x128 context_parallel=2 rank{rank} paged_varlen")]
    result = Runner(registry.get("ascend"), PLATFORM, 3).run(case)
    assert result.result == "passed", result


# --- graphs ---

class Captured:
    """One decode step of `batch` sequences in a graph: the new tokens written, then attention with its LSE."""

    def __init__(self, config: hal.AttentionConfig, batch: int, query_len: int = 1, layers: int = 1) -> None:
        self.impl = hal.get_attention_impl(config.replace(
            graph=True, return_softmax_lse=True, max_decode_query_len=query_len), PLATFORM)
        self.mla, self.query_len, self.layers = config.mla is not None, query_len, layers
        self.window = config.window_size
        heads = config.num_heads
        self.pages = 1 + 3 * batch  # page 0 is for padding
        self.k_cache, self.v_cache = self.impl.new_kv_cache(self.pages)
        self.host = [torch.randn(cache.shape).bfloat16() for cache in (self.k_cache, self.v_cache)]
        for cache, content in zip((self.k_cache, self.v_cache), self.host):
            cache.copy_(content)
        self.state = self.impl.graph_state(batch, batch * query_len, max_pages=3)
        self.batch = self.state.prepare_capture(batch, query_len)
        widths = (ROPE, LATENT) if self.mla else (D,)
        self.q = [torch.zeros(batch, query_len, heads, width, dtype=torch.bfloat16, device="npu") for width in widths]
        kv_heads = 1 if self.mla else HKV
        self.kv = [torch.zeros(batch * query_len, kv_heads, cache.shape[-1], dtype=torch.bfloat16, device="npu")
                   for cache in (self.k_cache, self.v_cache)]
        with self.batch.warm_up():
            self.call()
        self.graph = torch.npu.NPUGraph()
        with self.batch.capture(), torch.npu.graph(self.graph):
            self.out, self.lse = self.call()

    def call(self) -> Any:
        for _ in range(self.layers):
            self.impl.write_kv_cache(*self.kv, self.k_cache, self.v_cache, self.batch.slot_mapping)
            result = self.impl.flash_attn_with_kvcache(
                self.q[0], self.k_cache, self.v_cache, cache_seqlens=self.batch.cache_seqlens,
                page_table=self.batch.page_table, causal=True, return_softmax_lse=True,
                **({"qv": self.q[1], "softmax_scale": SCALE} if self.mla else {"window_size": self.window}))
        return result

    def new_step(self, lens: list[int], skipped: Any = ()) -> dict[str, Any]:
        """New queries, keys and lengths (query_len of them new); what prepare_replay is given, on the host.

        skipped: tokens whose keys are not written.
        """
        order = torch.randperm(self.pages - 1)[: 3 * len(lens)] + 1
        table = order.view(len(lens), 3).int()
        slots = [int(table[b, at // PAGE]) * PAGE + at % PAGE for b, end in enumerate(lens)
                 for at in range(end - self.query_len, end)]
        for token in skipped:
            slots[token] = -1
        for x in (*self.q, *self.kv):
            x.copy_(torch.randn(x.shape))
        return {"cache_seqlens": ints(*lens), "page_table": table, "slot_mapping": torch.tensor(slots)}

    def expect(self, given: dict[str, Any]) -> None:
        """Against caches of the host that have this step's writes and no others."""
        n, slots = len(given["cache_seqlens"]), given["slot_mapping"]
        for cache, new in zip(self.host, self.kv):
            cache.view(-1, *cache.shape[2:])[slots[slots >= 0]] = new.cpu()[: len(slots)][slots >= 0]
        for cache, host in zip((self.k_cache, self.v_cache), self.host):
            assert torch.equal(cache.cpu()[1:], host[1:])  # all but the padding page
        q = [x[:n].cpu() for x in self.q]
        want, lse = oracle.flash_attn_with_kvcache(
            q[0], *self.host, cache_seqlens=given["cache_seqlens"],
            page_table=given["page_table"], causal=True, return_softmax_lse=True,
            **({"qv": q[1], "softmax_scale": SCALE} if self.mla else {"window_size": self.window}))
        close(self.out[:n], want)
        close(self.lse[:n], lse)


@pytest.mark.parametrize(("config", "query_len"), [
    (DENSE, 1), (DENSE.replace(sliding_window=9), 3), (MLA, 1), (MLA, 3)], ids=["dense", "window", "mla", "mla-q3"])
def test_a_captured_step_follows_the_lengths_of_each_replay(config: hal.AttentionConfig, query_len: int) -> None:
    captured = Captured(config, 4, query_len)
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        n = int(torch.randint(1, 5, (), generator=generator))
        lens = torch.randint(query_len, 3 * PAGE + 1, (n,), generator=generator).tolist()
        skipped = (torch.rand(n * query_len, generator=generator) < torch.rand((), generator=generator)).nonzero()
        given = captured.new_step(lens, skipped.flatten().tolist())
        captured.state.prepare_replay(4, query_len, **npu(given))
        captured.graph.replay()
        captured.expect(given)


def test_a_replay_waits_no_more_than_once() -> None:
    captured = Captured(DENSE, 2, layers=5)
    given = captured.new_step([200, 7])
    on_npu = npu(given)
    fake_npu.reset_counters()
    captured.state.prepare_replay(2, **on_npu)
    captured.graph.replay()
    assert fake_npu.counters()["host_waits"] == 1
    fake_npu.reset_counters()
    captured.state.prepare_replay(2, **on_npu, cache_seqlens_cpu=[200, 7])
    captured.graph.replay()
    assert fake_npu.counters()["host_waits"] == 0
    captured.expect(given)


def test_states_wait_once_for_lengths_that_a_forward_context_was_given() -> None:
    kinds = [Captured(DENSE, 2), Captured(DENSE.replace(sliding_window=9), 2)]
    given = [kind.new_step([200, 7]) for kind in kinds]
    lens, on_npu = given[0]["cache_seqlens"].npu(), [npu(each) for each in given]
    torch.npu.synchronize()
    fake_npu.reset_counters()
    with hal.forward_context(cache_seqlens=lens):
        for kind, each in zip(kinds, on_npu):
            kind.state.prepare_replay(2, **{**each, "cache_seqlens": lens})
    for kind in kinds:
        kind.graph.replay()
    assert fake_npu.counters()["host_waits"] == 1
    for kind, each in zip(kinds, given):
        kind.expect(each)


def test_lengths_of_the_host_are_not_copied_back() -> None:
    captured = Captured(DENSE, 3)
    given = captured.new_step([200, 7])
    pinned = {name: x.pin_memory() for name, x in given.items()}
    torch.npu.synchronize()
    fake_npu.reset_counters()
    captured.state.prepare_replay(3, **pinned)
    captured.graph.replay()
    assert fake_npu.counters()["host_waits"] == 0
    captured.expect(given)


class Packed(Captured):
    """Its call says where queries end."""

    def call(self) -> Any:
        self.impl.write_kv_cache(*self.kv, self.k_cache, self.v_cache, self.batch.slot_mapping)
        out, lse = self.impl.flash_attn_with_kvcache(
            self.q[0].flatten(0, 1), self.k_cache, self.v_cache, cache_seqlens=self.batch.cache_seqlens, causal=True,
            page_table=self.batch.page_table, cu_seqlens_q=self.batch.cu_seqlens_q, max_seqlen_q=1,
            return_softmax_lse=True)
        return out[:, None], lse.transpose(0, 1)[..., None]


def test_where_queries_end_is_not_copied_back() -> None:
    captured = Packed(DENSE, 3)
    given = captured.new_step([200, 7])
    on_npu = npu(given)
    torch.npu.synchronize()
    fake_npu.reset_counters()
    captured.state.prepare_replay(3, **on_npu, cache_seqlens_cpu=[200, 7])
    captured.graph.replay()
    assert fake_npu.counters()["host_waits"] == 0
    captured.expect(given)


def test_the_next_step_may_be_prepared_while_one_runs() -> None:
    """As an asynchronous scheduler does: all of it is enqueued while the device still does earlier work."""
    captured = Captured(DENSE, 2, layers=2)
    steps = {(100, 200): captured.new_step([100, 200])}
    steps |= {lens: steps[100, 200] | {"cache_seqlens": ints(*lens)} for lens in ((7, 9), (128, 3))}
    given = [npu(step) for step in steps.values()]
    torch.npu.synchronize()
    gate, outs = torch.npu.ExternalEvent(), []
    gate.wait(torch.npu.current_stream())
    fake_npu.reset_counters()
    for lens, step in zip(steps, given):
        captured.state.prepare_replay(2, **step, cache_seqlens_cpu=lens)
        captured.graph.replay()
        outs.append((captured.out.clone(), captured.lse.clone()))
    assert fake_npu.counters()["host_waits"] == 0
    gate.record(torch.npu.Stream())
    torch.npu.synchronize()
    for step, (captured.out, captured.lse) in zip(steps.values(), outs):
        captured.expect(step)


def updates_of(captured: Captured) -> int:
    """How many captured calls a replay's preparation updates; the replay is right."""
    given = captured.new_step([50, 60])
    fake_npu.reset_counters()
    captured.state.prepare_replay(2, **npu(given))
    found = fake_npu.counters()["aclmdlRICaptureTaskUpdateBegin"]
    captured.graph.replay()
    captured.expect(given)
    return found


def test_a_capture_that_failed_leaves_nothing_to_update() -> None:
    captured = Captured(DENSE, 2, layers=2)
    with pytest.raises(KeyError), captured.batch.capture(), torch.npu.graph(torch.npu.NPUGraph()):
        captured.call()
        raise KeyError
    captured.graph = torch.npu.NPUGraph()
    captured.state.prepare_replay(2, **npu(captured.new_step([5, 6])))
    with captured.batch.capture(), torch.npu.graph(captured.graph):
        captured.out, captured.lse = captured.call()
    assert updates_of(captured) == 2


def test_a_graph_that_is_captured_anew_is_updated_alone() -> None:
    captured = Captured(DENSE, 2, layers=2)
    captured.graph.reset()
    captured.graph = torch.npu.NPUGraph()
    with captured.batch.capture(), torch.npu.graph(captured.graph):
        captured.out, captured.lse = captured.call()
    assert updates_of(captured) == 2


def test_a_warm_up_after_one_without_keys_attends() -> None:
    captured = Captured(DENSE, 2)
    captured.state = captured.impl.graph_state(2, 2, 3)
    captured.batch = captured.state.prepare_capture(2)
    for lens in ([0, 0], [5, 300], [0, 0], [7, 9]):
        given = captured.new_step(lens, (0, 1))
        captured.state.prepare_replay(2, **npu(given))
        with captured.batch.warm_up():
            captured.out, captured.lse = captured.call()
        captured.expect(given)


def test_stale_lengths_are_seen() -> None:
    captured = Captured(DENSE, 2)
    given = captured.new_step([100, 200])
    captured.state.prepare_replay(2, **npu(given))
    captured.graph.replay()
    captured.expect(given)
    # Other lengths with the updates left out, as a backend would that does not know of them.
    [plan] = [plan for *_, plan in captured.batch._epoch.made if hasattr(plan, "tasks")]
    task = plan.tasks.pop()
    given = captured.new_step([101, 7])
    captured.state.prepare_replay(2, **npu(given))
    captured.graph.replay()
    with pytest.raises(RuntimeError, match="waits for an event that nobody records"):  # on the chip it hangs
        torch.npu.synchronize()
    plan.q_ends, plan.keys = [1, 2], [100, 200]
    task()  # the update, with the lengths of the step before
    torch.npu.synchronize()
    with pytest.raises(AssertionError):
        captured.expect(given)
    plan.tasks.append(task)
    captured.state.prepare_replay(2, **npu(given))
    captured.graph.replay()
    captured.expect(given)


def test_a_graph_that_hal_does_not_know_of_is_refused() -> None:
    impl = hal.get_attention_impl(DENSE, PLATFORM)
    k_cache, v_cache = impl.new_kv_cache(2)
    call = npu({"q": torch.zeros(1, 1, H, D).bfloat16(), "cache_seqlens": ints(5), "page_table": ints(1)[None]})
    with hal.forward_context(cache_seqlens=call["cache_seqlens"], cache_seqlens_cpu=[5]):
        impl.flash_attn_with_kvcache(**call, k_cache=k_cache, v_cache=v_cache, causal=True)
        with pytest.raises(RuntimeError, match=r"would keep the lengths .*graph_state\(\)"), \
                torch.npu.graph(torch.npu.NPUGraph()):
            impl.flash_attn_with_kvcache(**call, k_cache=k_cache, v_cache=v_cache, causal=True)


def test_slots_that_a_replay_would_not_follow_are_refused() -> None:
    captured = Captured(DENSE, 2)
    with captured.batch.warm_up(), pytest.raises(RuntimeError, match="slot_mapping of 2 inside .* is not its batch's"):
        captured.impl.write_kv_cache(*captured.kv, captured.k_cache, captured.v_cache,
                                     captured.batch.slot_mapping.clone())


def test_more_tokens_than_the_padding_pages_hold_are_refused() -> None:
    impl = hal.get_attention_impl(DENSE.replace(graph=True), PLATFORM)
    with pytest.raises(ValueError, match=r"max_tokens 129 is not supported \(ascend: up to 128, what padding_pages 1"):
        impl.graph_state(129, 129, 3)
    batch = impl.graph_state(129, 129, 3, padding_pages=2).prepare_capture(129)
    assert len(set(batch.slot_mapping.tolist())) == 129


def test_batches_of_one_state_are_captured_side_by_side() -> None:
    captured = Captured(DENSE, 4)
    small = captured.state.prepare_capture(2)
    captured.batch, large, first = small, captured.batch, (captured.graph, captured.out, captured.lse)
    q, kv = captured.q, captured.kv
    captured.q, captured.kv = [x[:2].clone() for x in q], [x[:2].clone() for x in kv]
    with small.warm_up():
        captured.call()
    graph = torch.npu.NPUGraph()
    with small.capture(), torch.npu.graph(graph):
        second = graph, *captured.call()
    two = captured.q, captured.kv
    for lens, batch, (own, captured.out, captured.lse), (captured.q, captured.kv) in (
            ([5, 300], small, second, two), ([1, 129, 256, 384], large, first, (q, kv)), ([9], small, second, two)):
        given = captured.new_step(lens)
        captured.state.prepare_replay(batch.batch, **npu(given))
        own.replay()
        captured.expect(given)


def test_a_sequence_without_keys_in_a_replay() -> None:
    captured = Captured(DENSE, 3)
    given = captured.new_step([200, 1, 30], (1,))
    given["cache_seqlens"] = ints(200, 0, 30)
    captured.state.prepare_replay(3, **npu(given))
    captured.graph.replay()
    assert not captured.out[1].any()
    assert captured.lse[1].isneginf().all()
    captured.lse[1] = 0
    want, lse = oracle.flash_attn_with_kvcache(
        captured.q[0].cpu(), captured.k_cache.cpu(), captured.v_cache.cpu(), cache_seqlens=given["cache_seqlens"],
        page_table=given["page_table"], causal=True, return_softmax_lse=True)
    close(captured.out, want)
    close(captured.lse, lse.nan_to_num(neginf=0.0))


# --- writing ---

@pytest.mark.parametrize("config", [DENSE, MLA], ids=["dense", "mla"])
def test_a_cache_over_int32_is_refused_before_it_is_allocated(config: hal.AttentionConfig) -> None:
    width = LATENT if config.mla is not None else HKV * D
    most = 2**31 // (PAGE * width)
    with pytest.raises(ValueError, match=rf"elements of the cache {2**31} is not .*\(ascend.*: up to {2**31 - 1}"):
        hal.get_attention_impl(config, PLATFORM).new_kv_cache(most)

def caches() -> Any:
    impl = hal.get_attention_impl(DENSE, PLATFORM)
    return impl, *impl.new_kv_cache(2)


@pytest.mark.parametrize("kept", [(), (0,), (2,), (0, 1, 2)])
def test_skipped_slots_leave_every_row_alone(kept: tuple[int, ...]) -> None:
    impl, *pair = caches()
    for cache in pair:
        cache.copy_(torch.randn(cache.shape))
    before = [cache.cpu() for cache in pair]
    new = [torch.randn(3, HKV, D).bfloat16() for _ in "kv"]
    slots = torch.tensor([(7, 200, 255)[i] if i in kept else -1 for i in range(3)])
    impl.write_kv_cache(*(x.npu() for x in new), *pair, slots.npu())
    for cache, old, x in zip(pair, before, new):
        for i in kept:
            old.view(-1, HKV, D)[slots[i]] = x[i]
        assert torch.equal(cache.cpu(), old)


def test_a_slot_that_repeats_is_refused_before_anything_is_written() -> None:
    impl, *pair = caches()
    x = torch.ones(4, HKV, D, dtype=torch.bfloat16, device="npu")
    fake_npu.reset_counters()
    with pytest.raises(ValueError, match="slot_mapping holds 3 more than once"):
        impl.write_kv_cache(x, x, *pair, torch.tensor([-1, 3, -1, 3]).npu())
    assert vendor_calls() == []


@pytest.mark.parametrize("slot", [256, -2])
def test_a_slot_outside_the_cache_is_refused_before_anything_is_written(slot: int) -> None:
    impl, *pair = caches()
    x = torch.ones(2, HKV, D, dtype=torch.bfloat16, device="npu")
    fake_npu.reset_counters()
    with pytest.raises(ValueError, match=f"slot_mapping holds {slot}, .*0 to 255"):
        impl.write_kv_cache(x, x, *pair, torch.tensor([3, slot]).npu())
    assert vendor_calls() == []
