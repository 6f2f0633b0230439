"""310P on the fake NPU: its operators of ATB by themselves, the adapter's faults, and what the grid does not ask for.

ci/env_npu.sh runs this file with --soc 310p3 and the others with another SoC; the grid is ci/verify_emulated.py's.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import fake_npu
import pytest

if not os.environ["FAKE_NPU_SOC"].startswith("Ascend310P"):
    pytest.skip("for --soc 310p3", allow_module_level=True)

import contract_data
import torch
import torch_npu
from env_npu.on_fake_npu.altered import altered, edited
from env_npu.on_fake_npu.data_faults_310p import FAULTS, Fault
from env_npu.on_fake_npu.plain_attention import attention, causal, everything

import hal
from hal import oracle, registry
from hal.conformance.case import Case
from hal.conformance.grid import grid
from hal.conformance.record import unproven
from hal.conformance.runner import Result, Runner

PLATFORM = hal.detect("npu")
H, HKV, D, PAGE, NZ = 4, 2, 32, 64, 29
CONFIG = hal.AttentionConfig(num_heads=H, num_kv_heads=HKV, head_dim=D, page_size=PAGE, dtype="float16")
OPS = ("_npu_flash_attention", "_npu_paged_attention", "_npu_paged_attention_splitfuse", "_npu_reshape_and_cache")
HIDDEN = -60000.0


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def half(*shape: int) -> torch.Tensor:
    return torch.randn(shape).half()


def nz(x: torch.Tensor) -> torch.Tensor:
    """[.., m, n] as [.., n / 16, m, 16], by the definition of the layout: element by element."""
    *outer, m, n = x.shape
    found = torch.zeros(*outer, n // 16, m, 16, dtype=x.dtype)
    for i, j in itertools.product(range(m), range(n)):
        found[..., j // 16, i, j % 16] = x[..., i, j]
    return found


def cast(x: torch.Tensor) -> torch.Tensor:
    return torch_npu.npu_format_cast(x.npu(), NZ)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.cpu().double(), expected.double(), atol=4e-3, rtol=4e-3)


def vendor_calls() -> list[str]:
    return [name for name, _ in fake_npu.calls() if name.startswith("atb")]


@functools.cache
def quick() -> dict[str, Case]:
    return {case.name: case for case in grid(registry.get("ascend_310p"), False)}


# --- the operators ---

@pytest.mark.parametrize("name", OPS)
def test_the_registered_schema_is_the_contracts(name: str) -> None:
    """The contract has it from a C++ header, which knows of no default and of no `*`."""
    schema = getattr(torch.ops.atb, name).default._schema
    [contract] = contract_data.load("torch-npu").overloads(f"torch_npu.{name}", "2.13.0")
    assert [(a.name, str(a.type)) for a in schema.arguments] == [(p.name, p.type) for p in contract]
    assert {a.name for a in schema.arguments if a.has_default_value()} == {p.name for p in contract if p.default}


def paged(pages: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values [pages, PAGE, HKV, D] on the host, and both as the operators want them."""
    k, v = half(pages, PAGE, HKV, D), half(pages, PAGE, HKV, D)
    return k, v, cast(nz(k.flatten(2))), cast(nz(v.flatten(2)))


def of_pages(x: torch.Tensor, table: list[int], length: int) -> torch.Tensor:
    return torch.cat([x[page] for page in table])[:length].float()


def test_paged_attention_reads_tiles_and_lengths_on_the_device() -> None:
    k, v, k_cache, v_cache = paged()
    q, tables, lens, out = half(2, H, D), [[5, 0], [2, 3]], [70, 9], half(2, H, D).npu()
    torch_npu._npu_paged_attention(query=q.npu(), key_cache=k_cache, value_cache=v_cache, num_kv_heads=HKV, num_heads=H,
                                   scale_value=0.3, block_table=torch.tensor(tables).int().npu(),
                                   context_lens=ints(*lens).npu(), out=out)
    for b, (table, length) in enumerate(zip(tables, lens)):
        want, _ = attention(q[b:b + 1].float(), of_pages(k, table, length), of_pages(v, table, length), everything, 0.3)
        close(out[b:b + 1], want)


def splitfuse(q_lens: list[int], lens: list[int], **changes: Any) -> tuple[Any, torch.Tensor, torch.Tensor, Any, Any]:
    k, v, k_cache, v_cache = paged()
    tokens = sum(q_lens)
    rows = torch.zeros(-(-tokens // 16) * 16, 2 * PAGE).half()
    at = 0
    for count, length in zip(q_lens, lens):
        for i in range(count):
            rows[at + i, length - count + i + 1:] = HIDDEN
        at += count
    call = {"query": half(tokens, H, D).npu(), "key_cache": k_cache, "value_cache": v_cache, "num_kv_heads": HKV,
            "num_heads": H, "scale_value": 0.3, "block_table": ints(5, 0, 2, 3).view(2, 2).npu(),
            "context_lens": ints(*lens).npu(), "mask": cast(nz(rows)[None]), "seq_len": ints(*q_lens),
            "out": half(tokens, H, D).npu(), **changes}
    torch_npu._npu_paged_attention_splitfuse(**call)
    return call["query"].cpu(), call["out"].cpu(), rows, k, v


def test_splitfuse_takes_a_row_of_the_mask_for_each_token() -> None:
    q_lens, lens = [5, 20], [70, 90]
    q, out, _, k, v = splitfuse(q_lens, lens)
    start = 0
    for count, length, table in zip(q_lens, lens, ([5, 0], [2, 3])):
        rows = slice(start, start + count)
        want, _ = attention(q[rows].float(), of_pages(k, table, length), of_pages(v, table, length), causal, 0.3)
        close(out[rows], want)
        start += count


def test_without_its_mask_splitfuse_sees_all_keys() -> None:
    none = torch.zeros(1, 2 * PAGE // 16, 32, 16).half()
    q, out, _, k, v = splitfuse([5, 20], [70, 90], mask=cast(none))
    want, _ = attention(q[:5].float(), of_pages(k, [5, 0], 70), of_pages(v, [5, 0], 70), everything, 0.3)
    close(out[:5], want)


def test_flash_attention_adds_its_mask() -> None:
    q, k, v, mask = half(32, H, D), half(32, HKV, D), half(32, HKV, D), torch.zeros(32, 32).half()
    mask[torch.triu(torch.ones(32, 32), 1) > 0] = HIDDEN
    out = half(32, H, D).npu()
    torch_npu._npu_flash_attention(query=q.npu(), key=k.npu(), value=v.npu(), mask=cast(nz(mask)[None]),
                                   seq_len=ints(20, 12), scale_value=0.3, num_heads=H, num_kv_heads=HKV, out=out)
    for rows in (slice(0, 20), slice(20, 32)):
        close(out[rows], attention(q[rows].float(), k[rows].float(), v[rows].float(), causal, 0.3)[0])


def test_reshape_and_cache_skips_slots_below_zero() -> None:
    k, v, k_cache, v_cache = paged(2)
    new = half(3, HKV, D), half(3, HKV, D)
    torch_npu._npu_reshape_and_cache(new[0].npu(), new[1].npu(), k_cache, v_cache, ints(70, -1, 3).npu())
    for x, cache, fresh in zip((k, v), (k_cache, v_cache), new):
        x.view(-1, HKV, D)[torch.tensor([70, 3])] = fresh[[0, 2]]
        assert torch.equal(cache.cpu(), nz(x.flatten(2)))


@pytest.mark.parametrize(("changes", "why"), [
    ({"seq_len": ints(0, 20)}, "a sequence without queries"), ({"seq_len": ints(5, 20).npu()}, "lengths on the device"),
    ({"seq_len": ints(5, 20).long()}, "int64"), ({"context_lens": ints(70, 90).long().npu()}, "int64"),
    ({"mask": torch.zeros(1, 8, 32, 16).half().npu()}, "an ND mask beside an NZ cache"),
    ({"mask": torch.zeros(32, 128).half().npu()}, "a mask that is not tiled"),
    ({"num_kv_heads": 3}, "heads that do not divide"), ({"num_kv_heads": H}, "another head dim"),
    ({"query": torch.zeros(25, H, D).npu()}, "float32"),
])
def test_splitfuse_refuses(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RuntimeError, match="PagedAttentionOperation setup failed"):
        splitfuse([5, 20], [70, 90], **changes)


def test_reshape_and_cache_refuses_nd_and_int64() -> None:
    *_, k_cache, v_cache = paged(2)
    new = half(1, HKV, D).npu()
    for caches, slots in (((k_cache.cpu().npu(), v_cache.cpu().npu()), ints(3)), ((k_cache, v_cache), ints(3).long())):
        with pytest.raises(RuntimeError, match="ReshapeAndCacheOperation setup failed"):
            torch_npu._npu_reshape_and_cache(new, new, *caches, slots.npu())


def test_flash_attention_refuses() -> None:
    x, mask = half(32, H, D).npu(), cast(torch.zeros(1, 2, 32, 16).half())
    for lens, q, m in ((ints(20, 0, 12), x, mask), (ints(20, 12).npu(), x, mask), (ints(33), x, mask),
                       (ints(30), x[:30], mask), (ints(32), x, mask.cpu().npu())):
        with pytest.raises(RuntimeError, match="SelfAttentionOperation setup failed"):
            torch_npu._npu_flash_attention(q, q, q, m, lens, 0.3, H, H, torch.empty_like(q))


def test_a_format_cast_that_is_not_allowed_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    core = torch_npu._C
    before = core._npu_getOption("ALLOW_INTERNAL_FORMAT").decode()
    core._npu_setOption({"ALLOW_INTERNAL_FORMAT": "disable"})
    try:
        assert int(torch_npu.get_npu_format(cast(half(1, 2, 32, 16)))) != NZ
        k_cache, _ = impl().new_kv_cache(2)  # HAL's own is what it should be, and leaves the setting alone
        assert int(torch_npu.get_npu_format(k_cache)) == NZ
        assert core._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"disable"
    finally:
        core._npu_setOption({"ALLOW_INTERNAL_FORMAT": before})


# --- the adapter: refusals, faults ---

def test_quick_grid_with_all_refusals_before_the_vendor_is_called() -> None:
    runner, results = Runner(registry.get("ascend_310p"), PLATFORM, 7), []
    for case in quick().values():
        fake_npu.reset_counters()
        result = runner.run(case)
        assert result.result != "failed", result
        if result.result == "refused":
            assert not [name for name in vendor_calls() if "Attention" in name], result
        results.append(result)
    assert unproven(registry.get("ascend_310p"), results) == {}
    assert sum(result.result == "passed" for result in results) > 90


def result_of(fault: Fault) -> Result:
    return Runner(registry.get("ascend_310p"), PLATFORM, 11).run(quick()[fault.case])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_turns_its_case_red(fault: Fault) -> None:
    before = result_of(fault)
    assert before.result == "passed", before
    with altered(edited(*fault.edits)):
        after = result_of(fault)
    assert after.result == "failed", after


def impl(**changes: Any) -> hal.AttentionImpl:
    return hal.get_attention_impl(CONFIG.replace(**changes), PLATFORM, backend="ascend_310p")


def call_of(queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same extend call for the NPU, its cache filled through write_kv_cache, and for the oracle."""
    attn, pages = impl(), 4 * len(keys)
    k_cache, v_cache = attn.new_kv_cache(pages)
    table = torch.arange(pages, dtype=torch.int32).view(len(keys), 4).flip(1)
    host = half(pages, PAGE, HKV, D), half(pages, PAGE, HKV, D)
    attn.write_kv_cache(*(x.view(-1, HKV, D).npu() for x in host), k_cache, v_cache, torch.arange(pages * PAGE).npu())
    call = {"q": half(sum(queries), H, D), "cache_seqlens": ints(*keys), "page_table": table, "causal": True,
            "cu_seqlens_q": ints(*itertools.accumulate(queries, initial=0)), "max_seqlen_q": max(queries)}
    on_npu = {name: x.npu() if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    return {**on_npu, "k_cache": k_cache, "v_cache": v_cache}, {**call, "k_cache": host[0], "v_cache": host[1]}


@pytest.mark.parametrize(("queries", "keys", "op"), [
    ((1, 1), (70, 200), "Paged"), ((1, 0, 1), (70, 9, 0), "Paged"), ((30, 1), (100, 256), "Paged"),
    ((7, 3, 0, 5), (4, 0, 9, 130), "Paged"),
])
def test_what_the_grid_has_not(queries: tuple[int, ...], keys: tuple[int, ...], op: str) -> None:
    on_npu, on_host = call_of(queries, keys)
    fake_npu.reset_counters()
    got = impl().prefill.flash_attn_with_kvcache(**on_npu)
    assert vendor_calls() == ["atbPagedAttentionOperation"]
    close(got, oracle.flash_attn_with_kvcache(**on_host))


def test_a_step_waits_once_and_makes_its_mask_once() -> None:
    on_npu, on_host = call_of((30, 7), (100, 256))
    attn = impl()
    attn.prefill.flash_attn_with_kvcache(**on_npu)
    slots, new = torch.tensor([3, -1, 9]).npu(), half(3, HKV, D).npu()
    scratch = attn.new_kv_cache(2)
    torch.npu.synchronize()
    fake_npu.reset_counters()
    with hal.forward_context(cache_seqlens=on_npu["cache_seqlens"], page_table=on_npu["page_table"],
                             cu_seqlens_q=on_npu["cu_seqlens_q"], slot_mapping=slots):
        for _ in range(3):
            attn.write_kv_cache(new, new, *scratch, slots)
            got = attn.prefill.flash_attn_with_kvcache(**on_npu)
    counters = fake_npu.counters()
    assert (counters["host_waits"], counters["aclopIdentity"]) == (1, 1), counters
    assert vendor_calls().count("atbPagedAttentionOperation") == 3
    close(got, oracle.flash_attn_with_kvcache(**on_host))


@pytest.mark.parametrize(("change", "match"), [
    ({"causal": False}, r"causal False is not supported \(ascend_310p: True, .* here 30"),
    ({"window_size": (5, 0)}, r"window_size \(5, 0\)"), ({"page_table": None}, "page_table None"),
    ({"return_softmax_lse": True}, "return_softmax_lse True"), ({"softcap": 3.0}, r"softcap 3\.0"),
    ({"k": 1}, "k 1 is not supported"), ({"cache_seqlens": ints(100, 257)}, "cache_seqlens from 100 to 257 .*0 to 256"),
    ({"k_cache": torch.zeros(8, PAGE, HKV, D).half()}, r"k_cache \(8, 64, 2, 32\)"),
    ({"q": torch.zeros(37, 2 * H, D).half()}, "q torch.float16 .*4 heads of 32"),
])
def test_refusals_come_before_the_vendor(change: dict[str, Any], match: str) -> None:
    on_npu, _ = call_of((30, 7), (100, 256))
    fake_npu.reset_counters()
    moved = {name: x.npu() if isinstance(x, torch.Tensor) else x for name, x in change.items()}
    with pytest.raises(ValueError, match=match):
        impl().prefill.flash_attn_with_kvcache(**on_npu | moved)
    assert vendor_calls() == []


def test_writes_are_checked_before_the_vendor() -> None:
    attn, new = impl(), half(2, HKV, D).npu()
    k_cache, v_cache = attn.new_kv_cache(2)
    fake_npu.reset_counters()
    for slots in ([3, 128], [3, -2], [3, 3]):
        with pytest.raises(ValueError, match="slot_mapping holds"):
            attn.write_kv_cache(new, new, k_cache, v_cache, torch.tensor(slots).npu())
    with pytest.raises(ValueError, match=r"k_cache of format \d+ .*NZ \(29\)"):
        attn.write_kv_cache(new, new, k_cache.cpu().npu(), v_cache, torch.tensor([1, 2]).npu())
    assert vendor_calls() == []


def test_a_graph_is_refused() -> None:
    on_npu, _ = call_of((1, 1), (100, 256))
    attn = impl()
    with hal.forward_context(cache_seqlens=on_npu["cache_seqlens"], cu_seqlens_q=on_npu["cu_seqlens_q"]):
        attn.flash_attn_with_kvcache(**on_npu)
        with pytest.raises(RuntimeError, match="graph level never"), torch.npu.graph(torch.npu.NPUGraph()):
            attn.flash_attn_with_kvcache(**on_npu)


def test_torch_compile_knows_the_shape_of_the_result() -> None:
    on_npu, on_host = call_of((1, 1), (100, 200))
    attn = impl()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for name, x in on_npu.items()}
        assert attn.decode.flash_attn_with_kvcache.kernel.logical(fake["v_cache"]).shape == (8, PAGE, HKV, D)
    step = torch.compile(lambda **call: attn.flash_attn_with_kvcache(**call) * 1.0, backend="aot_eager")
    close(step(**on_npu), oracle.flash_attn_with_kvcache(**on_host))


def test_head_dims_choose_their_page_size() -> None:
    for head_dim, size in ((128, 128), (160, 64), (256, 64)):
        config = hal.AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=head_dim, dtype="float16")
        assert hal.get_attention_impl(config, PLATFORM).decision.page_size == size
        with pytest.raises(ValueError, match="page_size 16"):
            hal.get_attention_impl(config, PLATFORM).new_kv_cache(2, 16)
    with pytest.raises(ValueError, match=r"head_dim 256 with page_size 128 .*up to 16384"):
        hal.get_attention_impl(config, PLATFORM).new_kv_cache(2, 128)
