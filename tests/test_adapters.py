"""Every adapter against stand-ins that have the vendor functions' real parameter lists.

This proves what is called, with which arguments, and that nothing is dropped, on CPU tensors and without any kernel;
test_contracts.py binds the same calls to every release. It says nothing about numbers, so the backends stay at level
"declared".
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import adapter_calls
import pytest
import torch
from adapter_calls import (
    ADAPTERS,
    DENSE,
    HKV,
    INF,
    KVCACHE_CHECKED,
    KVCACHE_REFUSED,
    KVCACHE_SAMPLES,
    NEW,
    PAGES,
    TRANSLATED,
    VARLEN_CHECKED,
    VARLEN_REFUSED,
    VARLEN_SAMPLES,
    B,
    D,
    H,
    Recorder,
    ints,
    kvcache_call,
    paged_varlen_call,
    run,
    varlen_call,
)

from hal import AttentionConfig, contract, forward_context, registry, validation
from hal.backends.ascend_rules import UNBOUNDED
from hal.packages import Package


@pytest.fixture
def bind() -> Iterator[Any]:
    """bind(adapter, **config) -> (Bound, Recorder), the vendor package being the recorder's."""
    with ExitStack() as stack:
        def make(adapter: str, **config: Any) -> tuple[Any, Recorder]:
            recorder = Recorder(ADAPTERS[adapter].module)
            stack.enter_context(recorder.vendor.installed())
            return adapter_calls.bind(adapter, recorder, **config), recorder

        yield make


def test_samples_cover_the_contract() -> None:
    optional = lambda s: {n for n, p in s.parameters.items() if p.default is not p.empty}  # noqa: E731
    assert KVCACHE_SAMPLES.keys() == optional(contract.WITH_KVCACHE)
    assert VARLEN_SAMPLES.keys() == optional(contract.VARLEN)
    for samples, signature in ((KVCACHE_SAMPLES, contract.WITH_KVCACHE), (VARLEN_SAMPLES, contract.VARLEN)):
        for name, (value, _) in samples.items():
            # The base calls are causal already.
            assert name == "causal" or differs(value, signature.parameters[name].default)


def differs(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape != b.shape or not torch.equal(a, b)
    return type(a) is not type(b) or a != b


def check_argument(bound: Any, recorder: Recorder, adapter: str, function: str, name: str, value: Any,
                   base: dict[str, Any], reference: dict[str, Any], refused: bool, checked: bool) -> None:
    """The call `base` with the argument against the call `reference` without it."""
    if refused:
        with pytest.raises(ValueError, match=rf"^{name} .*\({ADAPTERS[adapter][0]}"):
            run(bound, function, {**base, name: value})
        assert recorder.calls == [], "refused only after the call"
        return
    run(bound, function, {**base, name: value})
    with_it = recorder.calls[-1]
    if isinstance(value, torch.Tensor) and name not in TRANSLATED.get(adapter, ()):
        assert any(seen is value for seen in with_it[1].values()), f"{name} did not reach {with_it[0]}"
    run(bound, function, reference)
    without = recorder.calls[-1]
    changed = with_it[0] != without[0] or {n for n in with_it[1].keys() | without[1].keys()
                                           if differs(with_it[1].get(n), without[1].get(n))}
    assert bool(changed) != checked, f"{name} was dropped" if not changed else f"{name} is not only checked"


@pytest.mark.parametrize("name", KVCACHE_SAMPLES)
@pytest.mark.parametrize("adapter", DENSE)
def test_no_argument_of_with_kvcache_is_dropped(bind: Any, adapter: str, name: str) -> None:
    bound, recorder = bind(adapter)
    value, companions = KVCACHE_SAMPLES[name]
    if name in KVCACHE_REFUSED[adapter]:
        # Companions that are refused themselves would be named instead.
        companions = {n: v for n, v in companions.items() if n not in KVCACHE_REFUSED[adapter]}
    base = kvcache_call(adapter, **companions)
    # Queries can't be packed without cu_seqlens_q.
    reference = kvcache_call(adapter) if name == "cu_seqlens_q" else base
    check_argument(bound, recorder, adapter, "flash_attn_with_kvcache", name, value, base, reference,
                   name in KVCACHE_REFUSED[adapter], name in KVCACHE_CHECKED.get(adapter, ()))


@pytest.mark.parametrize("name", VARLEN_SAMPLES)
@pytest.mark.parametrize("adapter", DENSE)
def test_no_argument_of_varlen_is_dropped(bind: Any, adapter: str, name: str) -> None:
    bound, recorder = bind(adapter)
    value, companions = VARLEN_SAMPLES[name]
    companions = {n: v for n, v in companions.items() if n not in VARLEN_REFUSED[adapter]}
    reference = varlen_call(adapter, **companions)
    base = paged_varlen_call(adapter) if name == "page_table" else reference
    check_argument(bound, recorder, adapter, "flash_attn_varlen_func", name, value, base, reference,
                   name in VARLEN_REFUSED[adapter], name in VARLEN_CHECKED.get(adapter, ()))


@pytest.mark.parametrize("function", ["flash_attn_with_kvcache", "flash_attn_varlen_func"])
@pytest.mark.parametrize("adapter", DENSE)
def test_unknown_argument_is_a_type_error(bind: Any, adapter: str, function: str) -> None:
    bound, _ = bind(adapter)
    call = kvcache_call(adapter) if function == "flash_attn_with_kvcache" else varlen_call(adapter)
    with pytest.raises(TypeError, match="block_tables"):
        run(bound, function, {**call, "block_tables": 1})


@pytest.mark.parametrize("adapter", DENSE)
def test_defaults_spelled_out_are_accepted(bind: Any, adapter: str) -> None:
    for signature, function, call in (
            (contract.WITH_KVCACHE, "flash_attn_with_kvcache", kvcache_call(adapter)),
            (contract.VARLEN, "flash_attn_varlen_func", varlen_call(adapter))):
        bound, recorder = bind(adapter)
        defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
        run(bound, function, {**defaults, "window_size": [-1, -1], **call})
        assert len(recorder.calls) == 1


# --- results ---

@pytest.mark.parametrize("adapter", [name for name in DENSE if name != "ascend_310p"])  # which has none
def test_lse_is_exactly_a_pair_with_minus_inf(bind: Any, adapter: str) -> None:
    bound, _ = bind(adapter, return_softmax_lse=True)
    out, lse = run(bound, "flash_attn_with_kvcache", kvcache_call(adapter, return_softmax_lse=True))
    assert out.shape == (B, 1, H, D)
    assert lse.shape == (B, H, 1)
    assert not (lse == INF).any()
    if adapter != "ascend":
        assert lse.flatten()[0] == -INF
    for flag in contract.VARLEN_LSE:
        out, lse = run(bound, "flash_attn_varlen_func", varlen_call(adapter, **{flag: True}))
        assert (out.shape, lse.shape) == ((5, H, D), (H, 5))
        assert not (lse == INF).any()
    out, lse = run(bound, "flash_attn_varlen_func", paged_varlen_call(adapter, return_softmax_lse=True))
    assert (out.shape, lse.shape) == ((5, H, D), (H, 5))
    assert isinstance(run(bound, "flash_attn_varlen_func", varlen_call(adapter)), torch.Tensor)
    assert isinstance(run(bound, "flash_attn_with_kvcache", kvcache_call(adapter)), torch.Tensor)


@pytest.mark.parametrize(("adapter", "name"), [("fa3", "softmax_scale"), ("fa2", "softmax_scale"),
                                               ("mate", "softmax_scale"), ("aiter", "softmax_scale"),
                                               ("ascend", "scale"),
                                               ("ascend_310p", "scale_value")])
def test_scale_of_the_config_is_the_default(bind: Any, adapter: str, name: str) -> None:
    bound, recorder = bind(adapter, softmax_scale=0.5)
    for function, call in (("flash_attn_with_kvcache", kvcache_call(adapter)),
                           ("flash_attn_varlen_func", varlen_call(adapter)),
                           ("flash_attn_varlen_func", paged_varlen_call(adapter))):
        run(bound, function, call)
        assert recorder.calls[-1][1][name] == 0.5
        run(bound, function, {**call, "softmax_scale": 2.0})
        assert recorder.calls[-1][1][name] == 2.0


# --- one by one ---

def in_fp8(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "q": call["q"].to(torch.float8_e4m3fn)}


def test_fa3_takes_descales_with_an_fp8_cache_only(bind: Any) -> None:
    # "if q_type == Float8": the 16-bit kernels read none (flash_api.cpp).
    descale = torch.full((B, HKV), 2.0)
    bound, recorder = bind("fa3", kv_cache_dtype="fp8_e4m3")
    run(bound, "flash_attn_with_kvcache", in_fp8(kvcache_call("fa3", k_descale=descale)))
    assert recorder.calls[-1][1]["k_descale"] is descale
    for function, call in (("flash_attn_with_kvcache", kvcache_call("fa3", k_descale=descale)),
                           ("flash_attn_varlen_func", varlen_call("fa3", k_descale=descale))):
        with pytest.raises(ValueError, match=r"^k_descale .* is not supported \(flash_attn_3 with q of torch\.float"):
            run(bound, function, call)
    bound, _ = bind("fa3")
    with pytest.raises(ValueError, match="k_descale"):
        run(bound, "flash_attn_with_kvcache", kvcache_call("fa3", k_descale=descale))


def test_fa3_varlen_over_pages_is_the_kvcache_function(bind: Any) -> None:
    for adapter in ("fa3", "fa3_sglang"):
        bound, recorder = bind(adapter)
        call = paged_varlen_call(adapter, window_size=(3, 0), softcap=20.0)
        run(bound, "flash_attn_varlen_func", call)
        [(function, seen)] = recorder.calls
        assert function == "flash_attn_with_kvcache"
        assert seen["cache_seqlens"] is call["seqused_k"]
        assert seen["cu_seqlens_q"] is call["cu_seqlens_q"]
        assert (seen["max_seqlen_q"], seen["window_size"], seen["softcap"]) == (3, (3, 0), 20.0)
        assert seen["page_table"] is call["page_table"]
        assert seen["num_splits"] == 1, "the varlen function's default"
        for name, value in (("cu_seqlens_k", ints(0, 5, 12)), ("seqused_q", ints(1, 1)), ("seqused_k", None)):
            with pytest.raises(ValueError, match=name):
                run(bound, "flash_attn_varlen_func", {**call, name: value})


def test_fa3_spreads_scalar_descales(bind: Any) -> None:
    bound, recorder = bind("fa3", kv_cache_dtype="fp8_e4m3")
    run(bound, "flash_attn_with_kvcache", in_fp8(kvcache_call("fa3", q_descale=2.0, k_descale=torch.tensor(3.0))))
    seen = recorder.calls[-1][1]
    assert torch.equal(seen["q_descale"], torch.full((B, HKV), 2.0))
    assert torch.equal(seen["k_descale"], torch.full((B, HKV), 3.0))
    assert seen["v_descale"] is None
    run(bound, "flash_attn_varlen_func", in_fp8(varlen_call("fa3", v_descale=0.5)))
    assert torch.equal(recorder.calls[-1][1]["v_descale"], torch.full((B, HKV), 0.5))


def test_sinks_reach_sglangs_function_only(bind: Any) -> None:
    sinks = torch.ones(H, dtype=torch.bfloat16)
    bound, recorder = bind("fa3_sglang", sinks=True)
    run(bound, "flash_attn_with_kvcache", kvcache_call("fa3_sglang", sinks=sinks))
    run(bound, "flash_attn_varlen_func", varlen_call("fa3_sglang", sinks=sinks))
    assert [call[1]["sinks"] is sinks for call in recorder.calls] == [True, True]


def test_fa2_renames_and_routes(bind: Any) -> None:
    bound, recorder = bind("fa2")
    call = kvcache_call("fa2")
    run(bound, "flash_attn_with_kvcache", call)
    function, seen = recorder.calls[-1]
    assert function == "flash_attn_with_kvcache"
    assert seen["block_table"] is call["page_table"]
    packed = {"q": torch.zeros(5, H, D), "cu_seqlens_q": ints(0, 2, 5), "max_seqlen_q": 3, "window_size": (4, 0)}
    for lengths, each, cumulative in ((ints(5, 7), [5, 7], [0, 5, 12]), (9, [9, 9], [0, 9, 18])):
        out = run(bound, "flash_attn_with_kvcache", kvcache_call("fa2", **packed, cache_seqlens=lengths))
        function, seen = recorder.calls[-1]
        assert (function, seen["q"].shape, out.shape) == ("flash_attn_with_kvcache", (2, 3, H, D), (5, H, D))
        assert (seen["cache_seqlens"].tolist(), seen["window_size"]) == (each, (4, 0))
        with forward_context():
            run(bound, "flash_attn_with_kvcache", kvcache_call("fa2", **packed, cache_seqlens=lengths))
        function, seen = recorder.calls[-1]
        assert function == "flash_attn_varlen_func"
        assert seen["cu_seqlens_k"].tolist() == cumulative
        assert seen["cu_seqlens_k"].dtype == torch.int32
        assert (seen["max_seqlen_q"], seen["max_seqlen_k"], seen["window_size"]) == (3, PAGES * 256, (4, 0))
    with pytest.raises(ValueError, match="max_seqlen_q 7"):
        run(bound, "flash_attn_with_kvcache", kvcache_call("fa2", max_seqlen_q=7))
    for name in ("rotary_cos", "cache_leftpad", "sinks"):
        value = KVCACHE_SAMPLES[name][0]
        with pytest.raises(ValueError, match=rf"^{name} .*flash_attn_2"):
            run(bound, "flash_attn_with_kvcache", kvcache_call("fa2", **{**packed, name: value}))
    with pytest.raises(ValueError, match="max_seqlen_q None"):
        run(bound, "flash_attn_with_kvcache", kvcache_call("fa2", **{**packed, "max_seqlen_q": None}))


def test_fa2_unpaged_cache_takes_batch_index(bind: Any) -> None:
    bound, recorder = bind("fa2")
    run(bound, "flash_attn_with_kvcache", kvcache_call("fa2", page_table=None, cache_batch_idx=ints(1, 0)))
    assert recorder.calls[-1][1]["cache_batch_idx"].tolist() == [1, 0]


def test_mate_uses_its_native_names(bind: Any) -> None:
    bound, recorder = bind("mate", sinks=True, sliding_window=4)
    sinks = torch.full((H,), 2.0, dtype=torch.bfloat16)
    for function, call in (("flash_attn_with_kvcache", kvcache_call("mate")),
                           ("flash_attn_varlen_func", varlen_call("mate"))):
        flag = {"return_softmax_lse": True}
        _, lse = run(bound, function, {**call, **flag, "sinks": sinks, "window_size": (3, 0)})
        seen = recorder.calls[-1][1]
        assert seen["learnable_sink"] is sinks
        assert seen["return_softmax_lse"] is True
        assert lse.flatten()[0] == 2.0, "a row without keys has the sink as its LSE"
        with pytest.raises(ValueError, match=r"sinks with window_size \(-1, -1\)"):
            run(bound, function, {**call, "sinks": sinks})
    assert recorder.calls[-1][1]["num_splits"] == 1, "FlashAttention-3's varlen default, MATE's is 0"


def test_mate_never_sees_a_right_bound_of_zero(bind: Any) -> None:
    # Its "mubin" path is picked for (-1, 0) and then fails its own assertion.
    bound, recorder = bind("mate")
    for causal, window, expected in ((True, (-1, 0), (True, (-1, -1))), (False, (-1, 0), (True, (-1, -1))),
                                     (True, (3, 0), (True, (3, -1))), (False, (3, 2), (False, (3, 2)))):
        run(bound, "flash_attn_varlen_func", varlen_call("mate", causal=causal, window_size=window))
        seen = recorder.calls[-1][1]
        assert (seen["causal"], seen["window_size"]) == expected


def test_mate_gets_cu_seqlens_k_new_only_when_appending(bind: Any) -> None:
    bound, recorder = bind("mate")
    with pytest.raises(ValueError, match=r"cu_seqlens_k_new .*mate without k"):
        run(bound, "flash_attn_with_kvcache", kvcache_call("mate", cu_seqlens_k_new=ints(0, 1, 2)))
    run(bound, "flash_attn_with_kvcache", kvcache_call("mate", cu_seqlens_k_new=ints(0, 1, 2), **NEW))
    assert recorder.calls[-1][1]["cu_seqlens_k_new"].tolist() == [0, 1, 2]


def test_aiter_reads_pages_through_batch_prefill(bind: Any) -> None:
    bound, recorder = bind("aiter")
    call = kvcache_call("aiter", q=torch.zeros(B, 3, H, D), softcap=30.0)
    out = run(bound, "flash_attn_with_kvcache", call)
    function, seen = recorder.calls[-1]
    assert function == "mha_batch_prefill_func"
    assert out.shape == (B, 3, H, D)
    assert seen["q"].shape == (B * 3, H, D)
    assert seen["cu_seqlens_q"].tolist() == [0, 3, 6]
    assert seen["kv_indptr"].tolist() == [0, PAGES, 2 * PAGES]
    assert seen["kv_page_indices"].tolist() == call["page_table"].flatten().tolist()
    assert torch.equal(seen["block_table"], call["page_table"])
    assert seen["seqlen_k"] is call["cache_seqlens"]
    assert (seen["max_seqlen_q"], seen["max_seqlen_k"], seen["logits_soft_cap"]) == (3, PAGES * 16, 30.0)
    assert (seen["causal"], seen["window_size"]) == (True, (-1, -1))
    run(bound, "flash_attn_varlen_func", paged_varlen_call("aiter"))
    assert recorder.calls[-1][0] == "mha_batch_prefill_func"
    run(bound, "flash_attn_with_kvcache", kvcache_call("aiter", cache_seqlens=5))
    assert recorder.calls[-1][1]["seqlen_k"].tolist() == [5, 5]


def test_aiter_lse_of_batched_queries_is_per_sequence(bind: Any) -> None:
    bound, recorder = bind("aiter", return_softmax_lse=True)
    lse = torch.arange(H * B * 3, dtype=torch.float32).reshape(H, B * 3)
    answer = torch.zeros(B * 3, H, D), lse.clone()
    recorder.vendor.semantics["aiter.ops.mha.mha_batch_prefill_func"] = lambda a: answer
    _, result = run(bound, "flash_attn_with_kvcache", kvcache_call("aiter", q=torch.zeros(B, 3, H, D),
                                                                   return_softmax_lse=True))
    for b in range(B):
        for h in range(H):
            assert result[b, h].tolist() == lse[h, 3 * b:3 * b + 3].tolist()


def test_aiter_packed_keys(bind: Any) -> None:
    bound, recorder = bind("aiter")
    run(bound, "flash_attn_varlen_func", varlen_call("aiter", window_size=(3, 0), softcap=20.0))
    function, seen = recorder.calls[-1]
    assert function == "flash_attn_varlen_func"
    assert (seen["window_size"], seen["logits_soft_cap"], seen["causal"]) == ((3, -1, 0), 20.0, True)
    with pytest.raises(ValueError, match=r"window_size \(0, 0\)"):
        run(bound, "flash_attn_varlen_func", varlen_call("aiter", window_size=(0, 0)))


def test_aiter_builds_that_change_softcap_are_refused(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT", "1")
    with pytest.raises(RuntimeError, match=r"softcap 30\.0"):
        bind("aiter", softcap=30.0)
    bound, recorder = bind("aiter")
    for function, call in (("flash_attn_with_kvcache", kvcache_call("aiter")),
                           ("flash_attn_varlen_func", varlen_call("aiter"))):
        with pytest.raises(ValueError, match=r"softcap 30\.0"):
            run(bound, function, {**call, "softcap": 30.0})
    assert recorder.calls == []


def test_ascend_decode_and_extend(bind: Any) -> None:
    bound, recorder = bind("ascend")
    call = kvcache_call("ascend", q=torch.zeros(B, 2, H, D))
    out = run(bound, "flash_attn_with_kvcache", call)
    function, seen = recorder.calls[-1]
    assert function == "npu_fused_infer_attention_score"
    assert out.shape == (B, 2, H, D)
    assert seen["query"].shape == (B * 2, H, D)
    assert seen["key"].shape == seen["value"].shape == (8, 128, HKV * D)
    assert seen["key"].data_ptr() == call["k_cache"].data_ptr()
    assert seen["actual_seq_lengths"] == [2, 4], "cumulative"
    assert seen["actual_seq_lengths_kv"] == [5, 7], "per sequence"
    assert (seen["input_layout"], seen["sparse_mode"], seen["block_size"]) == ("TND", 3, 128)
    assert (seen["num_heads"], seen["num_key_value_heads"], seen["scale"]) == (H, HKV, D**-0.5)
    mask = seen["atten_mask"]
    assert (mask.shape, mask.dtype) == ((2048, 2048), torch.int8)
    assert (mask[5, 5], mask[5, 6], mask[6, 5]) == (0, 1, 0), "1 masks out, above the diagonal"
    run(bound, "flash_attn_with_kvcache", kvcache_call("ascend", q=torch.zeros(3, H, D), max_seqlen_q=2,
                                                       cu_seqlens_q=ints(0, 1, 3)))
    assert recorder.calls[-1][1]["actual_seq_lengths"] == [1, 3]
    assert recorder.calls[-1][1]["atten_mask"] is mask, "one mask per device"


def test_ascend_packed_keys_are_cumulative(bind: Any) -> None:
    bound, recorder = bind("ascend")
    kv = torch.zeros(7, HKV, D)
    run(bound, "flash_attn_varlen_func", varlen_call("ascend", k=kv, v=kv, cu_seqlens_k=ints(0, 3, 7),
                                                     max_seqlen_k=4))
    seen = recorder.calls[-1][1]
    assert (seen["actual_seq_lengths"], seen["actual_seq_lengths_kv"]) == ([2, 5], [3, 7])
    assert seen["block_table"] is None


@pytest.mark.parametrize(("change", "match"), [
    ({"k_cache": torch.zeros(8, 16, HKV, D)}, r"k_cache \(8, 16, 2, 128\)"),
    ({"v_cache": torch.zeros(8, HKV, 128, D).transpose(1, 2)}, r"v_cache .*contiguous"),
    ({"k_cache": torch.zeros(1, 1, 1, 1).expand(2**17, 128, HKV, D)}, "k_cache .*contiguous"),
    ({"page_table": None}, "k_cache with 8 sequences .*without page_table: 2"),
    ({"cache_seqlens": None}, "cache_seqlens None"),
    ({"cache_seqlens": ints(5, 3 * 128 + 1)}, r"cache_seqlens from 5 to 385 .*0 to 384"),
    ({"cache_seqlens": ints(5, -1)}, "cache_seqlens from -1"),
    ({"cache_seqlens": ints(5)}, "cache_seqlens of 1"),
    ({"cu_seqlens_q": ints(0, 1, 2), "q": torch.zeros(3, H, D)}, r"cu_seqlens_q \[0, 1, 2\].*0 to 3"),
    ({"cu_seqlens_q": ints(0, 3, 2), "q": torch.zeros(2, H, D)}, r"cu_seqlens_q \[0, 3, 2\]"),
    ({"cu_seqlens_q": ints(1, 2, 3), "q": torch.zeros(3, H, D)}, r"cu_seqlens_q \[1, 2, 3\]"),
    ({"max_seqlen_q": 0}, "max_seqlen_q 0"),
    ({"sinks": torch.ones(H)}, "sinks .*without sinks in the config"),
    ({"out": torch.zeros(B, 1, H, D - 1)}, "out torch.float32"),
    ({"v_cache": torch.zeros(1, 128, HKV, D)}, r"v_cache of 1 pages beside k_cache of \d+ .*ascend: as many"),
    ({"cache_seqlens": ints(262145, 1), "page_table": torch.zeros(2, 2049, dtype=torch.int32)},
     "keys of a sequence with one query 262145 .*ascend: up to 262144"),
    ({"cache_seqlens": ints()}, r"cache_seqlens of 0 .*ascend: 2"),
    ({"cp_world_size": 2, "cp_tot_seqused_k": ints(9)}, r"cp_tot_seqused_k of 1 .*ascend: 2"),
    ({"cp_world_size": 2, "cp_rank": 2, "cp_tot_seqused_k": ints(9, 9)}, "cp_rank 2 .*0 to 1"),
    ({"cp_world_size": 2, "cp_tot_seqused_k": ints(9, 9), "window_size": (3, 0)}, r"window_size \(3, -1\)"),
])
def test_ascend_refuses(bind: Any, change: dict[str, Any], match: str) -> None:
    bound, recorder = bind("ascend")
    with pytest.raises(ValueError, match=match):
        run(bound, "flash_attn_with_kvcache", kvcache_call("ascend", **change))
    assert recorder.calls == []


@pytest.mark.parametrize(("change", "match"), [
    ({"max_seqlen_q": 2}, "max_seqlen_q 2 .*at least 3"), ({"max_seqlen_k": 2}, "max_seqlen_k 2 .*at least 3"),
    ({"cu_seqlens_k": ints(0, 2, 4)}, r"cu_seqlens_k \[0, 2, 4\].*0 to 5"),
    ({"cu_seqlens_k": ints(0, 5)}, "cu_seqlens_k of 1 sequences .*: 2"),
    ({"seqused_k": ints(1, 2)}, "seqused_k .*without page_table"),
])
def test_ascend_varlen_refuses(bind: Any, change: dict[str, Any], match: str) -> None:
    bound, recorder = bind("ascend")
    with pytest.raises(ValueError, match=match):
        run(bound, "flash_attn_varlen_func", varlen_call("ascend", **change))
    assert recorder.calls == []


def test_ascend_refuses_more_sequences_than_the_op_takes(bind: Any) -> None:
    bound, recorder = bind("ascend")
    many = torch.zeros(4097, dtype=torch.int32)
    call = kvcache_call("ascend", q=torch.zeros(4097, 1, H, D), cache_seqlens=many, page_table=many[:, None])
    with pytest.raises(ValueError, match="sequences 4097 is not supported .*up to 4096"):
        run(bound, "flash_attn_with_kvcache", call)
    assert recorder.calls == []


@pytest.mark.parametrize(("causal", "window", "expected"), [
    # op-plugin's document: pre_tokens previous tokens, the current one not counted; a model's window of 8 is (7, 0).
    (True, (-1, -1), (3, UNBOUNDED, UNBOUNDED)), (False, (-1, 0), (3, UNBOUNDED, UNBOUNDED)),
    (True, (7, 0), (4, 7, 0)), (True, (7, 5), (4, 7, 0)), (False, (7, 0), (4, 7, 0)), (False, (7, 5), (4, 7, 5)),
    (False, (-1, -1), (4, UNBOUNDED, UNBOUNDED)), (False, (-1, 5), (4, UNBOUNDED, 5)), (True, (0, 0), (4, 0, 0)),
])
def test_ascend_masks(bind: Any, causal: bool, window: tuple[int, int], expected: tuple[int, int, int]) -> None:
    bound, recorder = bind("ascend")
    for function, call in (("flash_attn_with_kvcache", kvcache_call("ascend")),
                           ("flash_attn_varlen_func", varlen_call("ascend"))):
        run(bound, function, {**call, "causal": causal, "window_size": window})
        seen = recorder.calls[-1][1]
        assert (seen["sparse_mode"], seen["pre_tokens"], seen["next_tokens"]) == expected
        assert seen["atten_mask"] is not None, "sparse_mode 0 without a mask gave uniform averages"


@pytest.mark.parametrize("adapter", ["aiter", "ascend"])
def test_page_table_with_more_rows_than_sequences(bind: Any, adapter: str) -> None:
    padded = ints(*range(4 * PAGES)).reshape(4, PAGES)
    for lengths in ([5, 7], 9):
        bound, recorder = bind(adapter)
        given = lengths if lengths == 9 else ints(5, 7)
        out = run(bound, "flash_attn_with_kvcache", kvcache_call(adapter, page_table=padded, cache_seqlens=given))
        seen = recorder.calls[-1][1]
        assert out.shape == (B, 1, H, D)
        if adapter == "ascend":
            assert seen["actual_seq_lengths"] == [1, 2]
            assert seen["actual_seq_lengths_kv"] == ([9, 9] if lengths == 9 else [5, 7])
        else:
            assert seen["block_table"].tolist() == padded[:B].tolist()
            assert seen["kv_indptr"].shape == seen["cu_seqlens_q"].shape == (B + 1,)
            assert seen["seqlen_k"].shape == (B,)


def test_ascend_without_any_key_calls_nothing(bind: Any) -> None:
    bound, recorder = bind("ascend", return_softmax_lse=True)
    out, lse = run(bound, "flash_attn_with_kvcache",
                   kvcache_call("ascend", cache_seqlens=ints(0, 0), return_softmax_lse=True))
    assert recorder.calls == []
    assert not out.any()
    assert (lse == -INF).all()


def test_ascend_sinks_are_version_2s(bind: Any) -> None:
    bound, recorder = bind("ascend", sinks=True)
    sinks = torch.ones(H)
    run(bound, "flash_attn_with_kvcache", kvcache_call("ascend", sinks=sinks))
    function, seen = recorder.calls[-1]
    assert function == "npu_fused_infer_attention_score_v2"
    assert seen["learnable_sink"] is sinks
    assert (seen["actual_seq_qlen"], seen["actual_seq_kvlen"]) == ([1, 2], [5, 7])
    assert (seen["num_query_heads"], seen["softmax_scale"]) == (H, D**-0.5)
    for wrong in (sinks.half(), sinks[:1]):
        with pytest.raises(ValueError, match=r"sinks torch\.float"):
            run(bound, "flash_attn_with_kvcache", kvcache_call("ascend", sinks=wrong))


def test_ascend_writes_the_cache_without_padding_slots(bind: Any) -> None:
    _, recorder = bind("ascend")
    write = registry.get("ascend").write_kv_cache(AttentionConfig())
    k, v = torch.arange(3.0).reshape(3, 1, 1), torch.arange(3.0, 6.0).reshape(3, 1, 1)
    caches = torch.zeros(2, 128, 1, 1), torch.zeros(2, 128, 1, 1)
    write(k, v, *caches, torch.tensor([7, -1, 130]))
    function, seen = recorder.calls[-1]
    assert (function, seen["cache_mode"]) == ("npu_scatter_pa_kv_cache", "Norm")
    assert seen["key"].flatten().tolist() == [0.0, 2.0]
    assert seen["value"].flatten().tolist() == [3.0, 5.0]
    assert seen["slot_mapping"].tolist() == [7, 130]
    assert seen["key_cache"] is caches[0]
    assert seen["value_cache"] is caches[1]
    whole = torch.tensor([7, 8, 130])
    write(k, v, *caches, whole)
    assert recorder.calls[-1][1]["slot_mapping"] is whole, "nothing is moved where nothing is skipped"
    before = len(recorder.calls)
    write(k, v, *caches, torch.full((3,), -1))
    assert len(recorder.calls) == before
    for change, match in (({"k": k.double()}, "k torch.float64"), ({"v": v[:, :, :0]}, "v torch.float32"),
                          ({"slot_mapping": torch.tensor([7, 256, 1])}, "slot_mapping holds 256.*0 to 255"),
                          ({"slot_mapping": torch.tensor([7, -2, 1])}, "slot_mapping holds -2"),
                          ({"slot_mapping": torch.tensor([7])}, r"slot_mapping \(1,\)"),
                          ({"v_cache": caches[1][:1]}, "v_cache .*as many pages"),
                          ({"k_scale": 1.0}, "k_scale"), ({"v_scale": 1.0}, "v_scale")):
        with pytest.raises(ValueError, match=match):
            write(**{"k": k, "v": v, "k_cache": caches[0], "v_cache": caches[1],
                     "slot_mapping": torch.tensor([7, -1, 130]), **change})


def untiled(x: torch.Tensor) -> torch.Tensor:
    """[1, n / 16, m, 16] as [m, n]."""
    return x[0].transpose(0, 1).flatten(1)


def test_ascend_310p_decode_and_extend(bind: Any) -> None:
    bound, recorder = bind("ascend_310p")
    call = kvcache_call("ascend_310p")
    out = run(bound, "flash_attn_with_kvcache", call)
    function, seen = recorder.calls[-1]
    assert (function, out.shape) == ("_npu_paged_attention", (B, 1, H, D))
    assert seen["key_cache"] is call["k_cache"]
    assert (seen["num_heads"], seen["num_kv_heads"], seen["scale_value"]) == (H, HKV, D**-0.5)
    assert seen["context_lens"] is call["cache_seqlens"], "on the device"
    run(bound, "flash_attn_with_kvcache", kvcache_call("ascend_310p", q=torch.zeros(3, H, D), max_seqlen_q=2,
                                                       cu_seqlens_q=ints(0, 1, 3)))
    function, seen = recorder.calls[-1]
    assert function == "_npu_paged_attention_splitfuse"
    assert (seen["seq_len"].tolist(), seen["seq_len"].dtype) == ([1, 2], torch.int32)
    assert seen["context_lens"].tolist() == [5, 7]
    assert seen["mask"].shape == (1, 128 // 16, 16, 16)
    hidden = untiled(seen["mask"])[:3] < 0
    assert hidden.int().argmax(1).tolist() == [5, 6, 7], "the first key that a query does not see"
    assert hidden.sum(1).tolist() == [123, 122, 121]


def test_ascend_310p_prefill_pads_to_tiles(bind: Any) -> None:
    bound, recorder = bind("ascend_310p")
    call = varlen_call("ascend_310p", q=torch.arange(1.0, 6.0)[:, None, None].expand(5, H, D))
    run(bound, "flash_attn_varlen_func", call)
    function, seen = recorder.calls[-1]
    assert function == "_npu_flash_attention"
    assert seen["seq_len"].tolist() == [2, 14], "16 tokens, of which the last 11 are nobody's"
    assert seen["query"][:, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0] + [5.0] * 11
    assert torch.equal(untiled(seen["mask"]) < 0, torch.triu(torch.ones(128, 128), 1) > 0)
    few = {"k": torch.arange(7.0)[:, None, None].expand(7, HKV, D), "cu_seqlens_k": ints(0, 4, 7), "max_seqlen_k": 4}
    run(bound, "flash_attn_varlen_func", {**call, **few, "v": few["k"]})
    seen = recorder.calls[-1][1]
    assert seen["seq_len"].tolist() == [4, 12]
    assert seen["query"][:7, 0, 0].tolist() == [2.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0], "fewer queries stand last"
    assert seen["key"][:7, 0, 0].tolist() == list(range(7))


def test_ascend_310p_leaves_out_what_sees_no_key(bind: Any) -> None:
    bound, recorder = bind("ascend_310p")
    call = kvcache_call("ascend_310p", q=torch.ones(6, H, D), cu_seqlens_q=ints(0, 4, 6), max_seqlen_q=4,
                        cache_seqlens=ints(3, 0))
    run(bound, "flash_attn_with_kvcache", call)
    seen = recorder.calls[-1][1]
    assert (seen["seq_len"].tolist(), seen["context_lens"].tolist()) == ([3], [3])
    assert seen["block_table"].tolist() == call["page_table"][:1].tolist()
    assert seen["query"].shape == (3, H, D)
    before = len(recorder.calls)
    assert not run(bound, "flash_attn_with_kvcache", {**call, "cache_seqlens": ints(0, 0)}).any()
    assert len(recorder.calls) == before


def test_ascend_310p_refuses_many_sequences_and_other_caches(bind: Any) -> None:
    bound, recorder = bind("ascend_310p")
    many = torch.ones(2001, dtype=torch.int32)
    call = kvcache_call("ascend_310p", q=torch.zeros(2001, 2, H, D), cache_seqlens=many, page_table=many[:, None])
    with pytest.raises(ValueError, match=r"sequences 2001 is not supported \(ascend_310p: up to 2000"):
        run(bound, "flash_attn_with_kvcache", call)
    for change, match in (({"k_cache": torch.zeros(8, 128, HKV, D)}, r"k_cache \(8, 128, 2, 128\)"),
                          ({"v_cache": torch.zeros(9, 16, 128, 16)}, r"v_cache \(9, 16, 128, 16\) beside k_cache"),
                          ({"q": torch.zeros(B, 1, H + 1, D)}, "q torch.float32"),
                          ({"cache_seqlens": ints(5, 385)}, "cache_seqlens from 5 to 385 .*0 to 384")):
        with pytest.raises(ValueError, match=match):
            run(bound, "flash_attn_with_kvcache", kvcache_call("ascend_310p", **change))
    assert recorder.calls == []


def test_checks_see_the_logical_shape_of_a_tiled_cache(bind: Any) -> None:
    bound, recorder = bind("ascend_310p")
    config = AttentionConfig(num_heads=H, num_kv_heads=HKV, head_dim=D, dtype="float32")
    logical = functools.partial(registry.get("ascend_310p").logical_cache, config)
    call = kvcache_call("ascend_310p")
    assert logical(call["k_cache"]).shape == (8, 128, HKV, D)
    assert logical(call["q"]) is call["q"], "no cache of this layout"
    checked = validation.checked(bound.flash_attn_with_kvcache, config, "flash_attn_with_kvcache", logical)
    assert checked(**call).shape == (B, 1, H, D)
    with pytest.raises(ValueError, match="page_table"):
        checked(**{**call, "page_table": call["page_table"] + 5})
    assert len(recorder.calls) == 1


def test_adapters_stay_declared() -> None:
    for name in {row[0] for row in ADAPTERS.values()}:
        assert registry.get(name).levels == {}
        assert registry.get(name).sources
        assert all(isinstance(package, Package) for package in registry.get(name).packages)


def test_recorders_have_the_real_parameters() -> None:
    module = Recorder("flash_attn.flash_attn_interface").module
    with pytest.raises(TypeError, match="page_table"):
        module.flash_attn_with_kvcache(torch.zeros(1, 1, 1, 1), None, None, page_table=None)
    op = functools.partial(Recorder("torch_npu").module.npu_fused_infer_attention_score, *[torch.zeros(1, 1, D)] * 3)
    with pytest.raises(TypeError, match="actual_seq_qlen"):
        op(actual_seq_qlen=[1])
    with pytest.raises(TypeError, match="actual_seq_lengths must be"):
        op(actual_seq_lengths=ints(1))
