"""FlashAttention 2, 3 and 4 behind HAL, on emulators of their packages: which function is bound where, the conformance
grid, the traps of each version, deliberate faults, plans, graphs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import data_flash_attn as data
import flash_attn_machines
import pytest
import torch
from data_flash_attn import CONFIGS, FAULTS, FUNCTIONS, NAMES, PREFILL, SERVED
from emulators.attend import StalePlan, Undocumented
from emulators.devices import on, plain_of
from flash_attn_calls import (
    HKV,
    D,
    H,
    bind,
    device_tensor,
    ints,
    paged,
    right,
    same,
    truth,
    two_of,
    vendor_function,
)
from flash_attn_machines import DEVICE, FILES, cases, changed, installed, results, there

import hal
import hal.backends
import hal.platforms
from hal import AttentionConfig, registry
from hal.conformance.case import Case
from hal.conformance.runner import Runner
from hal.graph import GraphState
from hal.packages import Packages

INF = float("inf")
FAMILY = ("flash_attn_2", "flash_attn_3", "flash_attn_4", "flash_attn_diffkv", "flash_attn_mla")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS", "HAL_CHECK"):
        monkeypatch.delenv(name, raising=False)


# --- which function where ---

def decode_call(config: AttentionConfig, backend: str, page_size: int, queries: int = 1) -> dict[str, Any]:
    """Two sequences of 5 and 3 tokens, one page each."""
    cls = registry.get(backend)
    k_cache, v_cache = cls.new_kv_cache(config, DEVICE, 3, page_size)
    call: dict[str, Any] = {"cache_seqlens": ints(5, 3), "page_table": ints(2, 0).view(2, 1), "causal": config.causal}
    dtype = torch.float8_e4m3fn if cls.q_dtype(config).startswith("fp8") else torch.bfloat16
    if config.mla is not None:
        call["qv"] = device_tensor(2, queries, config.num_heads, v_cache.shape[-1])
    if config.sinks:
        call["sinks"] = device_tensor(config.num_heads)
    if config.sliding_window:
        call["window_size"] = config.window_size
    for cache in (k_cache, v_cache):
        plain_of(cache).copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(cache.shape[-1])))
    return {**call, "q": device_tensor(2, queries, config.num_heads, k_cache.shape[-1]).to(dtype), "k_cache": k_cache,
            "v_cache": v_cache, "softcap": config.softcap, "attention_chunk": config.attention_chunk or 0,
            "return_softmax_lse": config.return_softmax_lse}


def prefill_call(config: AttentionConfig) -> dict[str, Any]:
    mla: Any = config.mla
    d, dv = mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim
    q, k, v = (device_tensor(5, config.num_heads, dim, seed=n) for n, dim in enumerate((d, d, dv)))
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": ints(0, 2, 5), "cu_seqlens_k": ints(0, 2, 5), "max_seqlen_q": 3,
            "max_seqlen_k": 3, "causal": True}


def rows(table: dict[tuple[tuple[str, ...], str], str], names: list[str]) -> Iterator[tuple[str, str, str, str | None]]:
    """(arch, packages, configuration, backend or None)."""
    for (archs, packages), letters in table.items():
        assert len(letters) == len(names), packages
        for arch, (name, letter) in itertools.product(archs, zip(names, letters)):
            yield arch, packages, name, NAMES.get(letter)


def test_the_table_covers_the_family() -> None:
    decode = list(rows(SERVED, list(CONFIGS)))
    assert {arch for arch, *_ in decode} == {*data.OTHERS, "sm90", "sm100", "sm103"}
    assert len(decode) == len({row[:3] for row in decode}) > 500
    assert {backend for *_, backend in decode} >= {"flash_attn_2", "flash_attn_3", "flash_attn_4", "flash_attn_mla"}


TABLES = {"decode": (SERVED, list(CONFIGS)), "prefill": (PREFILL, ["mla", "mla 256/256"])}


@pytest.mark.parametrize("phase", TABLES)
def test_who_serves_what(phase: str) -> None:
    """The expected backend, the vendor function that its decision names, and the same in the emulator's record."""
    (table, names), called = TABLES[phase], set()
    for arch, packages, name, expected in rows(table, names):
        config = AttentionConfig(**CONFIGS[name])
        there_are = Packages.named(packages.split(","))
        decision = hal.explain(config, f"cuda:{arch}", packages=there_are)
        chosen = getattr(decision, phase)
        where = f"{arch} with {packages or 'nothing'}, {name}"
        if expected is None:
            assert chosen.chosen not in FAMILY, where
            order = hal.platforms.table()["cuda"].priority(arch, config.mla is not None, phase)
            reasons = {c.backend: c.reasons for c in chosen.candidates}
            assert all(reasons[backend] or backend not in order for backend in FAMILY), where
            continue
        assert chosen.chosen == expected, where
        package = registry.get(expected).package_for(there_are, config)
        assert package is not None
        target = FUNCTIONS[package.distribution][phase == "prefill"]
        assert chosen.target == target, where
        if (key := (expected, package.distribution, arch, name)) in called:
            continue
        called.add(key)
        with there(arch, package.distribution) as machine:
            bound = registry.get(expected).bind(config, machine.platform, package)
            if phase == "prefill":
                bound.flash_attn_varlen_func(**prefill_call(config))
            else:
                size = decision.page_size
                assert size is not None
                bound.flash_attn_with_kvcache(**decode_call(config, expected, size))
            assert [call.function for call in machine.calls] == [target], where
    assert len(called) > (60 if phase == "decode" else 10)


def test_the_provider_of_version_3_is_in_the_decision() -> None:
    """One backend; upstream's build first, and another where that can't."""
    for config, packages, module in (
            ({}, "flash-attn-3,sglang-kernel,vllm", "flash_attn_interface."),
            ({"sinks": True}, "flash-attn-3,sglang-kernel,vllm", "sgl_kernel.flash_attn."),
            ({"context_parallel_size": 2}, "flash-attn-3,sglang-kernel,vllm", "vllm.vllm_flash_attn."),
            ({}, "vllm", "vllm.vllm_flash_attn.")):
        decision = hal.explain(AttentionConfig(**config), "cuda:sm90", packages=packages)  # type: ignore[arg-type]
        assert decision.decode.chosen == "flash_attn_3"
        assert str(decision.target).startswith(module)
    for config, packages, reason in (
            ({"sinks": True, "num_heads": 128}, "vllm", "sinks with num_heads 128, head_dim 128 and head_dim_v 128 is "
             "not supported by vllm (flash_attn_3: up to 64 heads, equal head dims)"),
            ({"attention_chunk": 64}, "vllm", "attention_chunk 64 is not supported by vllm (flash_attn_3: with "
             "flash-attn-3 or sglang-kernel)"),
            ({"context_parallel_size": 2, "sliding_window": 8}, "vllm", "sliding_window 8 with context_parallel 2 is "
             "not supported (flash_attn_3: one of the two)"),
            ({"sinks": True, "dtype": "float16"}, "sglang-kernel", "sinks with dtype float16 is not supported "
             "(flash_attn_3: bfloat16, the only dtype of sinks that the kernels take)"),
            ({"context_parallel_size": 2}, "sglang-kernel", "context_parallel 2 is not supported by sglang-kernel "
             "(flash_attn_3: with vllm)")):
        decision = hal.explain(AttentionConfig(**config), "cuda:sm90", packages=packages,  # type: ignore[arg-type]
                               decode_backend="flash_attn_3")
        assert reason in decision.decode.candidates[0].reasons


# --- the conformance grid ---

# backend, arch, packages. Version 3's three providers at once: each serves what those before it refuse.
PROVIDERS = ("flash-attn-3", "sglang-kernel", "vllm")
MACHINES = (("flash_attn_2", "sm80", ("flash-attn",)), ("flash_attn_3", "sm90", PROVIDERS[:2]),
            ("flash_attn_3", "sm90", ("vllm",)), ("flash_attn_4", "sm100", ("flash-attn-4",)),
            ("flash_attn_diffkv", "sm90", PROVIDERS[:2]), ("flash_attn_mla", "sm90", PROVIDERS))


def quick(backend: str) -> list[Case]:
    """Every word of the grid, two cases of each, and every kind of call: the full grid is ci/verify_emulated.py's."""
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for case in cases(backend):
        word = (case.phase, case.group)
        if case.note not in ("long", "many") and (seen[word] < 2 or case.group.endswith(" calls")):
            seen[word] += 1
            chosen.append(case)
    return chosen


@pytest.mark.parametrize(("backend", "arch", "packages"), MACHINES, ids=[f"{row[0]} {row[2][0]}" for row in MACHINES])
def test_quick_grid(backend: str, arch: str, packages: tuple[str, ...]) -> None:
    with there(arch, *packages) as machine:
        found = results(machine, backend, quick(backend))
    assert {result.case: result.why for result in found if result.result == "failed"} == {}
    passed = {word for result in found if result.result == "passed" for word in result.features}
    cls = registry.get(backend)
    unproven = {*cls.features, *cls.calls} - passed
    alone = {"attention_chunk", "rotary", "cache_leftpad", "seqused"}  # what vLLM's build lacks
    assert unproven == (alone if packages == ("vllm",) else
                        {"context_parallel"} if backend in ("flash_attn_3", "flash_attn_diffkv") else set())


@pytest.mark.parametrize(("backend", "arch", "package"), [
    ("flash_attn_2", "sm80", "flash-attn"), ("flash_attn_3", "sm90", "flash-attn-3"), ("flash_attn_3", "sm90", "vllm"),
    ("flash_attn_mla", "sm90", "flash-attn-3"), ("flash_attn_mla", "sm90", "vllm")])
def test_grid_inside_a_context(backend: str, arch: str, package: str) -> None:
    """What plans open: version 3's schedule (the emulator knows another call's) and version 2's varlen function."""
    groups = ("plain", "calls", "lengths", "empty rows", "sliding_window", "softcap", "non_causal",
              "return_softmax_lse", "context_parallel")
    made, failed = set(), {}
    with there(arch, package) as machine:
        for case in quick(backend):
            if case.phase == "prefill" or case.group.partition(" ")[2] not in groups:
                continue
            with hal.forward_context():
                result = Runner(registry.get(backend), machine.platform, 3).run(case)
            made |= {call.function.rpartition(".")[2] for call in machine.calls}
            machine.calls.clear()
            if result.result == "failed":
                failed[case.name] = result.why
    assert failed == {}
    assert ("get_scheduler_metadata" in made) == (package != "flash-attn")
    assert "flash_attn_varlen_func" in made or package == "flash-attn-3"


# --- deliberate faults ---

def broken(fault: data.Fault) -> Any:
    text = FILES[fault.file].read_text()
    assert text.count(fault.before) == 1, f"{fault.before!r} is {text.count(fault.before)} times in {fault.file}.py"
    return installed(changed(fault.file, text.replace(fault.before, fault.after)))


def case_of(fault: data.Fault) -> Case:
    return next(case for case in cases(fault.backend) if case.name == fault.case)


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.backend} {f.file} {f.after.strip()[:30]}" for f in FAULTS])
def test_fault_is_seen(fault: data.Fault) -> None:
    with there(fault.arch, fault.package) as machine:
        with hal.forward_context() if fault.context else nullcontext():
            [before] = results(machine, fault.backend, [case_of(fault)])
        assert before.result == "passed", before.why
        with broken(fault), hal.forward_context() if fault.context else nullcontext():
            [after] = results(machine, fault.backend, [case_of(fault)])
    assert after.result == "failed", after


def test_six_faults_per_adapter() -> None:
    assert all(sum(fault.backend == backend for fault in FAULTS) >= 6 for backend in FAMILY)


# --- traps: what a naive call gets, and what HAL gives instead ---

def test_2_pages_are_of_256_tokens() -> None:
    """flash_api.cpp: "Paged KV cache block size must be divisible by 256"."""
    with there("sm80", "flash-attn") as machine, pytest.raises(RuntimeError, match="divisible by 256"):
        vendor_function(machine, "flash_attn_varlen_func")(**two_of(paged(16, (1, 1), (5, 3))))
    decision = hal.explain(AttentionConfig(page_size=16), "cuda:sm80", decode_backend="flash_attn_2")
    assert decision.decode.candidates[0].reasons == (
        "page_size 16 is not supported (flash_attn_2: multiples of 256)",)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize(("lens_q", "lens_k"), [((1, 1), (5, 3)), ((2, 3), (0, 9)), ((70, 2), (5, 30)),
                                                ((1, 0), (4, 7))])
def test_2_packed_queries_over_pages(lens_q: Any, lens_k: Any, context: bool) -> None:
    """One token each: groups stand where tokens should, and the LSE is in that order. Tiles of queries without keys:
    their LSE goes over others' or past the end. A sequence without queries among single ones: it counts wrongly."""
    call = paged(256, lens_q, lens_k)
    with there("sm80", "flash-attn") as machine:
        try:
            naive = vendor_function(machine, "flash_attn_varlen_func")(**two_of(call))[:2]
            assert not all(map(same, naive, truth(call)))
        except RuntimeError as error:
            assert "invalid" in str(error) or "past its end" in str(error)  # noqa: PT017
        with hal.forward_context() if context else nullcontext():
            assert right(bind(machine, "flash_attn_2"), call)


def test_2_takes_its_varlen_function_where_the_host_knows_it_is_safe() -> None:
    call, seen = paged(256, (2, 5), (40, 6)), []
    known = {"cache_seqlens": call["cache_seqlens"], "cu_seqlens_q": call["cu_seqlens_q"], "cache_seqlens_cpu": [40, 6],
             "cu_seqlens_q_cpu": [0, 2, 7]}
    with there("sm80", "flash-attn") as machine:
        bound = bind(machine, "flash_attn_2")
        for context in (nullcontext(), hal.forward_context(), hal.forward_context(**known)):
            with context, machine.devices.no_sync() if len(seen) != 1 else nullcontext():
                out = bound.flash_attn_with_kvcache(**call)
                bound.flash_attn_with_kvcache(**call)
            assert same(out, truth(call)[0])
            seen.append([c.function.rpartition(".")[2] for c in machine.calls])
            machine.calls.clear()
    assert seen == [["flash_attn_with_kvcache"] * 2, ["flash_attn_varlen_func"] * 2, ["flash_attn_varlen_func"] * 2]


def test_2_prefill_of_single_tokens_and_none() -> None:
    """max_seqlen_q 1 makes exactly one query a sequence of it, whatever cu_seqlens_q says."""
    call = {"q": device_tensor(2, H, D), "k": device_tensor(7, HKV, D), "v": device_tensor(7, HKV, D, seed=2),
            "cu_seqlens_q": ints(0, 1, 1, 2), "cu_seqlens_k": ints(0, 2, 4, 7), "max_seqlen_q": 1, "max_seqlen_k": 3,
            "causal": True}
    with there("sm80", "flash-attn") as machine:
        with pytest.raises(RuntimeError, match="invalid"):
            vendor_function(machine, "flash_attn_varlen_func")(**call)
        out = bind(machine, "flash_attn_2").flash_attn_varlen_func(**call)
        assert same(out, truth(call, "flash_attn_varlen_func")[0])


def test_2_a_window_that_is_open_on_the_right_alone_and_more_queries_than_keys() -> None:
    """The kernel reads an open right side beside a left bound as max_seqlen_k, or the cache's width, keys."""
    call = {"q": device_tensor(9, H, D), "k": device_tensor(3, HKV, D), "v": device_tensor(3, HKV, D, seed=2),
            "cu_seqlens_q": ints(0, 9), "cu_seqlens_k": ints(0, 3), "max_seqlen_q": 9, "max_seqlen_k": 3,
            "causal": False, "window_size": (2, -1)}
    with there("sm80", "flash-attn") as machine:
        wanted = truth(call, "flash_attn_varlen_func")[0]
        assert not same(vendor_function(machine, "flash_attn_varlen_func")(**call), wanted)
        bound = bind(machine, "flash_attn_2", causal=False)
        assert same(bound.flash_attn_varlen_func(**call), wanted)
        cached = {"k_cache": call["k"][None], "v_cache": call["v"][None], "cache_seqlens": ints(3), "causal": False,
                  "window_size": (2, -1)}
        naive = vendor_function(machine, "flash_attn_with_kvcache")(**cached, q=call["q"][None])
        assert not same(naive, truth({**cached, "q": call["q"][None]})[0])
        machine.calls.clear()
        with pytest.raises(ValueError, match=r"window_size \(2, -1\) is not supported \(flash_attn_2, not causal, "
                                             r"with 9 queries of a sequence: over a cache of 3 tokens 4 queries"):
            bound.flash_attn_with_kvcache(**cached, q=call["q"][None])
        assert not machine.calls
        assert right(bound, {**cached, "q": call["q"][None, :4]})
        assert right(bound, {**cached, "q": call["q"][None], "window_size": (2, 0), "causal": True})


def test_2_appends_to_a_cache_of_fewer_tokens_than_a_group_has_heads() -> None:
    """Of one query it makes one of each head of a group, and refuses a cache with fewer rows than those."""
    new = {"q": device_tensor(1, 1, H, D), "k": device_tensor(1, 1, HKV, D, seed=3),
           "v": device_tensor(1, 1, HKV, D, seed=4), "cache_seqlens": ints(1)}

    def call() -> dict[str, Any]:
        return {**new, "k_cache": device_tensor(1, 2, HKV, D, seed=1), "v_cache": device_tensor(1, 2, HKV, D, seed=2)}

    with there("sm80", "flash-attn") as machine:
        with pytest.raises(RuntimeError, match="seqlen <= the seqlen of the KV cache"):
            vendor_function(machine, "flash_attn_with_kvcache")(**call())
        wanted, given = call(), call()
        out = bind(machine, "flash_attn_2").flash_attn_with_kvcache(**given)
        assert same(out, truth(wanted)[0])
        assert torch.equal(plain_of(given["k_cache"])[:, 1:], plain_of(new["k"]))
        machine.calls.clear()
        wide = {**new, "k_cache": device_tensor(1, 4, HKV, D), "v_cache": device_tensor(1, 4, HKV, D)}
        bind(machine, "flash_attn_2").flash_attn_with_kvcache(**wide)
        assert machine.calls[-1].arguments["k"] is not None  # the kernel's own append, where it has room


def test_3_numbers_of_its_results_and_of_its_lengths() -> None:
    call = paged(64, (2, 3), (9, 9), cache_seqlens=9)
    with there("sm90", "flash-attn-3") as machine:
        naive = vendor_function(machine, "flash_attn_with_kvcache")
        assert len(naive(**{**call, "cache_seqlens": ints(9, 9)}, return_softmax_lse=True)) == 4
        with pytest.raises(RuntimeError, match="seqused_k must have shape"):
            naive(**call)
        assert right(bind(machine, "flash_attn_3"), call)


def test_3_descales_beside_16_bits_are_ignored_by_the_kernel_and_refused_by_hal() -> None:
    call = paged(64, (1, 1), (5, 9), k_descale=on(torch.full((2, HKV), 3.0), DEVICE))
    with there("sm90", "flash-attn-3") as machine:
        naive = vendor_function(machine, "flash_attn_with_kvcache")(**call)
        assert same(naive, truth({n: x for n, x in call.items() if n != "k_descale"})[0])
        with pytest.raises(ValueError, match="^k_descale "):
            bind(machine, "flash_attn_3").flash_attn_with_kvcache(**call)


def test_3_sglang_drops_page_table_and_gives_no_sink_for_empty_rows() -> None:
    call = paged(64, (2, 3), (5, 9))
    spoken = {name: call[name] for name in ("q", "cu_seqlens_q", "max_seqlen_q", "causal", "page_table")} | {
        "k": call["k_cache"], "v": call["v_cache"], "seqused_k": call["cache_seqlens"]}
    sinks = on(torch.tensor([0.5, 1, 2, 3, -1, 0, 1, 2], dtype=torch.bfloat16), DEVICE)
    with there("sm90", "sglang-kernel") as machine:
        varlen = vendor_function(machine, "flash_attn_varlen_func")
        with pytest.raises((RuntimeError, ValueError)):
            varlen(**spoken, cu_seqlens_k=None, max_seqlen_k=9)
        bound = bind(machine, "flash_attn_3", sinks=True)
        assert same(bound.flash_attn_varlen_func(**spoken), truth(call)[0])
        empty = paged(64, (1, 1), (0, 9), sinks=sinks)
        naive = vendor_function(machine, "flash_attn_with_kvcache")(**empty, return_softmax_lse=True)
        assert plain_of(naive[1])[0, 0] == -INF
        assert right(bound, empty)
        with pytest.raises(ValueError, match=r"^sinks torch\.float32 is not supported"):
            bound.flash_attn_with_kvcache(**{**empty, "sinks": sinks.float()})


def test_3_vllms_function_is_told_its_version() -> None:
    """Its default is 2, which drops q_v and cp_* without a word."""
    with there("sm90", "vllm") as machine:
        assert right(bind(machine, "flash_attn_3"), paged(64, (1, 3), (5, 9)))
        assert [call.arguments["fa_version"] for call in machine.calls] == [3]


@pytest.mark.parametrize("package", PROVIDERS)
def test_mla_needs_a_scale(package: str) -> None:
    """Every provider has a default, which is right for no model."""
    config = AttentionConfig(**{**data.MLA, "softmax_scale": None})
    with there("sm90", package) as machine:
        bound = bind(machine, "flash_attn_mla", **{**data.MLA, "softmax_scale": None})
        call = decode_call(config, "flash_attn_mla", 64)
        call = {name: x for name, x in call.items() if name not in ("softcap", "attention_chunk")}
        with pytest.raises(ValueError, match=r"^softmax_scale None is not supported with qv \(flash_attn_mla: "):
            bound.flash_attn_with_kvcache(**call)
        assert same(bound.flash_attn_with_kvcache(**call, softmax_scale=0.1), truth({**call, "softmax_scale": 0.1})[0])
        with pytest.raises(ValueError, match="^qv None"):
            bound.flash_attn_with_kvcache(**{**call, "qv": None}, softmax_scale=0.1)


@pytest.mark.parametrize("release", ["4.0.0b27", "4.0.0b36"])
@pytest.mark.parametrize(("causal", "window"), [(False, (-1, 0)), (True, (-1, -1)), (False, (3, -1)), (True, (3, 0)),
                                                (False, (-1, 2)), (False, (0, 0))])
def test_4_reads_windows_literally(release: str, causal: bool, window: tuple[int, int], monkeypatch: Any) -> None:
    """-1 is a number there: (-1, 0) is full attention (b27) or none (b36), (3, -1) ends before the token itself."""
    monkeypatch.setitem(flash_attn_machines.PACKAGES, "flash-attn-4",
                        lambda arch: flash_attn_machines.FlashAttn4(release=release, arch=arch))
    call = paged(128, (3, 4), (20, 9), causal=causal, window_size=window)
    with there("sm100", "flash-attn-4") as machine:
        assert right(bind(machine, "flash_attn_4"), call)
        if window in ((-1, 0), (3, -1)):
            naive, _ = vendor_function(machine, "flash_attn_varlen_func")(
                q=call["q"], k=call["k_cache"], v=call["v_cache"], cu_seqlens_q=call["cu_seqlens_q"],
                seqused_k=call["cache_seqlens"], page_table=call["page_table"], causal=causal, window_size=window)
            assert not same(naive, truth(call)[0])


def test_4_pages_by_arch_splits_and_what_it_has_not() -> None:
    with there("sm120", "flash-attn-4") as machine, pytest.raises(AssertionError, match="Paged KV not supported"):
        vendor_function(machine, "flash_attn_varlen_func")(
            q=device_tensor(1, 1, H, D), k=device_tensor(2, 128, HKV, D), v=device_tensor(2, 128, HKV, D),
            page_table=ints(0, 1).view(1, 2))
    for arch, served in (("sm80", False), ("sm90", True), ("sm100", True), ("sm110", True), ("sm120", False)):
        decision = hal.explain(AttentionConfig(), f"cuda:{arch}", decode_backend="flash_attn_4")
        assert (decision.decode.chosen == "flash_attn_4") == served
    call = paged(128, (1, 1), (5, 9))
    with there("sm90", "flash-attn-4") as machine:
        bound = bind(machine, "flash_attn_4")
        assert isinstance(bound.flash_attn_with_kvcache(**call), torch.Tensor), "the vendor's is (out, None)"
        for name, value in (("num_splits", 3), ("k", call["q"]), ("rotary_cos", call["q"]), ("attention_chunk", 4)):
            with pytest.raises(ValueError, match=f"^{name} "):
                bound.flash_attn_with_kvcache(**{**call, name: value})


def test_no_attribute_is_the_vendors_own() -> None:
    """What each refusal and normalisation protects is in the tests above; identity would lose them (promise 4)."""
    for backend, arch, packages in MACHINES:
        config = data.MLA if backend == "flash_attn_mla" else {}
        for package in packages:
            with there(arch, package) as machine:
                bound = bind(machine, backend, **config)
                [vendor] = machine.vendors.values()
                own = {getattr(vendor.modules[f.rpartition(".")[0]], f.rpartition(".")[2]) for f in vendor.functions
                       if "." in f and f.rpartition(".")[0] in vendor.modules}
                assert not {bound.flash_attn_with_kvcache, bound.flash_attn_varlen_func} & own


# --- determinism, plans, graphs ---

@pytest.mark.parametrize(("backend", "arch", "package"), [
    ("flash_attn_2", "sm80", "flash-attn"), ("flash_attn_3", "sm90", "flash-attn-3"),
    ("flash_attn_4", "sm100", "flash-attn-4"), ("flash_attn_3", "sm90", "vllm")])
def test_deterministic_is_one_split(backend: str, arch: str, package: str) -> None:
    """As vLLM's batch invariance and SGLang's deterministic inference have it: no sum depends on the batch."""
    call = paged(256, (1, 1), (5, 9))
    with there(arch, package) as machine:
        bound = bind(machine, backend, deterministic=True)
        for context in (nullcontext(), hal.forward_context()):
            with context:
                bound.flash_attn_with_kvcache(**call)
        assert {c.arguments["num_splits"] for c in machine.calls} == {1}
        with pytest.raises(ValueError, match="^num_splits 3 is not supported"):
            bound.flash_attn_with_kvcache(**call, num_splits=3)


@pytest.mark.parametrize("package", ["flash-attn-3", "vllm"])
def test_3_schedules_once_a_step(package: str) -> None:
    """One plan for all layers alike, another for another window, a new one after update(); none outside a context."""
    call = paged(64, (2, 3), (70, 9))
    with there("sm90", package) as machine:
        bound, other = bind(machine, "flash_attn_3"), bind(machine, "flash_attn_3")

        def plans() -> int:
            return sum(c.function.endswith("get_scheduler_metadata") for c in machine.calls)

        bound.flash_attn_with_kvcache(**call)
        assert plans() == 0
        with hal.forward_context(cache_seqlens=call["cache_seqlens"]) as step, machine.devices.no_sync():
            for _ in range(3):
                out = bound.flash_attn_with_kvcache(**call)
            assert plans() == 1
            bound.flash_attn_with_kvcache(**call, window_size=(4, 0))
            bound.flash_attn_with_kvcache(**call, softcap=20.0)
            bound.flash_attn_with_kvcache(**call, num_splits=2)
            bound.flash_attn_with_kvcache(**call, window_size=(100, 0))  # of 128 that the table can hold: not all
            other.flash_attn_with_kvcache(**call)
            assert plans() == 6
            plain_of(call["cache_seqlens"]).copy_(torch.tensor([11, 30]))
            step.update()
            assert right(bound, call)
            assert plans() == 7
        assert same(out, truth({**call, "cache_seqlens": ints(70, 9)})[0])
        stale = [c.arguments["scheduler_metadata"] for c in machine.calls if "scheduler_metadata" in c.arguments][1]
        with pytest.raises(StalePlan):  # the emulator would have told
            bound.flash_attn_with_kvcache(**call, scheduler_metadata=stale)


@pytest.mark.parametrize(("backend", "arch", "package", "page_size", "queries"), [
    ("flash_attn_2", "sm80", "flash-attn", 256, 1), ("flash_attn_2", "sm80", "flash-attn", 256, 3),
    ("flash_attn_3", "sm90", "flash-attn-3", 64, 1), ("flash_attn_3", "sm90", "flash-attn-3", 64, 3),
    ("flash_attn_3", "sm90", "vllm", 64, 3), ("flash_attn_4", "sm100", "flash-attn-4", 128, 1)])
def test_graph_of_uniform_decode(backend: str, arch: str, package: str, page_size: int, queries: int) -> None:
    """A replay runs the vendor's recorded call on the memory it had, and nothing of HAL: plans must be good there."""
    with there(arch, package) as machine:
        bound = bind(machine, backend, graph=True)
        state = GraphState(registry.get(backend), DEVICE, page_size, 3, 3 * queries, 2)
        batch = state.prepare_capture(3, queries)
        caches = [device_tensor(6, page_size, HKV, D, seed=n) for n in (1, 2)]
        call = {"q": device_tensor(3 * queries, H, D), "k_cache": caches[0], "v_cache": caches[1], "causal": True,
                "cache_seqlens": batch.cache_seqlens, "page_table": batch.page_table,
                "cu_seqlens_q": batch.cu_seqlens_q, "max_seqlen_q": queries}
        with batch.warm_up():
            bound.flash_attn_with_kvcache(**call)
        machine.calls.clear()
        with batch.capture(), machine.devices.no_sync():
            out = bound.flash_attn_with_kvcache(**call)
        assert not [c for c in machine.calls if c.function.endswith("metadata")][1:], "plans are found, not made"
        [vendor] = machine.vendors.values()
        launched = [c for c in machine.calls if not c.function.endswith("metadata")]
        assert all((c.arguments["scheduler_metadata"] is not None) == (backend == "flash_attn_3") for c in launched
                   if backend != "flash_attn_2")
        steps = (((40, 7), [[1, 2], [3, 0]]), ((5,), [[4, 5]]), ((3, page_size + 9, 60), [[0, 1], [2, 3], [5, 4]]))
        for lens, table in steps:
            with machine.devices.no_sync():
                state.prepare_replay(3, queries, cache_seqlens=ints(*lens),
                                     page_table=ints(*itertools.chain(*table)).view(len(lens), 2))
            [launch] = launched
            result = vendor._call(launch.function, launch.args, launch.kwargs)
            result = result[0] if isinstance(result, tuple) else result
            rows_ = queries * len(lens)
            wanted = {**call, "q": call["q"][:rows_], "cache_seqlens": ints(*lens),
                      "page_table": ints(*itertools.chain(*table)).view(len(lens), 2),
                      "cu_seqlens_q": ints(*range(0, rows_ + 1, queries))}
            assert same(result.reshape(-1, H, D)[:rows_], truth(wanted)[0])
        assert out.shape == (3 * queries, H, D)


def test_emulators_stop_where_nothing_is_known() -> None:
    """A chunk at negative positions: what round_down makes of them is written nowhere. Without keys nothing is read."""
    with there("sm90", "flash-attn-3") as machine:
        bound = bind(machine, "flash_attn_3", attention_chunk=4)
        with pytest.raises(Undocumented, match="3 queries over 2 keys"):
            bound.flash_attn_with_kvcache(**paged(64, (3, 1), (2, 9)), attention_chunk=4)
        assert right(bound, paged(64, (3, 1), (0, 9), attention_chunk=4))
