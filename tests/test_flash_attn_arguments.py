"""Arguments of the FlashAttention adapters that the conformance grid does not ask about, or whose effect no number
shows: what is handed on, what is left out and named."""

from __future__ import annotations

import itertools
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from emulators.devices import on, plain_of
from flash_attn_calls import HKV, D, H, bind, device_tensor, ints, paged, right, same, truth
from flash_attn_machines import DEVICE, there

import hal
from hal import AttentionConfig
from hal.config import MLADims

# backend, arch, package, a page size of its.
ADAPTERS = (("flash_attn_2", "sm80", "flash-attn", 256), ("flash_attn_3", "sm90", "flash-attn-3", 64),
            ("flash_attn_3", "sm90", "sglang-kernel", 64), ("flash_attn_3", "sm90", "vllm", 64),
            ("flash_attn_4", "sm100", "flash-attn-4", 128))
EACH = pytest.mark.parametrize(("backend", "arch", "package", "page_size"), ADAPTERS, ids=[row[2] for row in ADAPTERS])


def packed_keys(lens: tuple[int, ...] = (5, 9), **more: Any) -> dict[str, Any]:
    """Of HAL's varlen function."""
    cu = ints(*itertools.accumulate(lens, initial=0))
    q, k, v = (device_tensor(sum(lens), heads, D, seed=n) for n, heads in enumerate((H, HKV, HKV)))
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": max(lens),
            "max_seqlen_k": max(lens), "causal": True, **more}


def varlen_of(call: dict[str, Any]) -> dict[str, Any]:
    """A call of flash_attn_with_kvcache in the words of the varlen function."""
    names = {"k_cache": "k", "v_cache": "v", "cache_seqlens": "seqused_k"}
    return {names.get(name, name): x for name, x in call.items()} | {"max_seqlen_k": None}


@EACH
def test_the_calls_scale_wins_over_the_configs(backend: str, arch: str, package: str, page_size: int) -> None:
    with there(arch, package) as machine:
        bound = bind(machine, backend, softmax_scale=0.03)
        for scale in (0.2, None):
            call = paged(page_size, (2, 3), (20, 9), softmax_scale=scale)
            wanted, _ = truth({**call, "softmax_scale": scale or 0.03})
            assert same(bound.flash_attn_with_kvcache(**call), wanted)
            keys = packed_keys(softmax_scale=scale)
            wanted, _ = truth({**keys, "softmax_scale": scale or 0.03}, "flash_attn_varlen_func")
            assert same(bound.flash_attn_varlen_func(**keys), wanted)


@EACH
def test_a_page_table_may_have_more_rows_than_there_are_sequences(backend: str, arch: str, package: str,
                                                                  page_size: int) -> None:
    """Static buffers of a graph do; every vendor checks for exactly one row a sequence."""
    call = paged(page_size, (2, 3), (20, 9))
    wide = {**call, "page_table": torch.cat((call["page_table"], ints(7, 7).view(1, 2)))}
    with there(arch, package) as machine:
        bound = bind(machine, backend)
        assert same(bound.flash_attn_with_kvcache(**wide), truth(call)[0])
        assert same(bound.flash_attn_varlen_func(**varlen_of(wide)), truth(call)[0])


@EACH
def test_rows_of_an_unpaged_cache_are_picked(backend: str, arch: str, package: str, page_size: int) -> None:
    call = {"q": device_tensor(2, 1, H, D), "k_cache": device_tensor(4, page_size, HKV, D, seed=1),
            "v_cache": device_tensor(4, page_size, HKV, D, seed=2), "cache_seqlens": ints(5, 9),
            "cache_batch_idx": ints(3, 1), "causal": True}
    with there(arch, package) as machine:
        assert right(bind(machine, backend), call)


@pytest.mark.parametrize(("backend", "arch", "package", "page_size"), ADAPTERS[:4])  # version 4 refuses k
@pytest.mark.parametrize("new", [1, 3])
def test_tokens_in_a_batch_are_appended(backend: str, arch: str, package: str, page_size: int, new: int) -> None:
    """Equally many of each sequence, [B, new, Hkv, D]; the cache is what the oracle leaves."""
    call = paged(page_size, (new, new), (5, page_size - 1))
    call |= {"q": call["q"].view(2, new, H, D), "cu_seqlens_q": None, "k": device_tensor(2, new, HKV, D, seed=5),
             "v": device_tensor(2, new, HKV, D, seed=6)}
    host = {name: plain_of(x).clone() if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    wanted, _ = truth(host)
    with there(arch, package) as machine:
        assert same(bind(machine, backend).flash_attn_with_kvcache(**call), wanted)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(plain_of(call[name]), host[name])


def appended(queries: tuple[int, ...], new: tuple[int, ...], page_size: int, **more: Any) -> dict[str, Any]:
    """Packed new tokens behind 30 and 40 that are there."""
    call = paged(page_size, queries, (30, 40), **more)
    k, v = (device_tensor(sum(new), HKV, D, seed=n) for n in (5, 6))
    return call | {"k": k, "v": v, "cu_seqlens_k_new": ints(*itertools.accumulate(new, initial=0))}


def rotary(rows: int, interleaved: bool = False) -> dict[str, Any]:
    turn = torch.outer(torch.arange(float(rows)), 10000 ** -(torch.arange(16) / 16))
    return {"rotary_cos": on(turn.cos().bfloat16(), DEVICE), "rotary_sin": on(turn.sin().bfloat16(), DEVICE),
            "rotary_interleaved": interleaved}


# What a kernel's own append leaves out: sequences without queries, and tokens before the first key that is read.
APPENDED = {"no queries of one": ((0, 2), (3, 2), {}), "no queries": ((0, 0), (3, 2), {"max_seqlen_q": 1}),
            "more tokens than a window": ((1, 1), (33, 400), {"window_size": (7, 0)}),
            "more tokens than queries": ((2, 1), (60, 1), {})}


@pytest.mark.parametrize(("backend", "arch", "package", "page_size"), ADAPTERS[:4], ids=[r[2] for r in ADAPTERS[:4]])
@pytest.mark.parametrize("name", APPENDED)
def test_every_new_token_is_stored(backend: str, arch: str, package: str, page_size: int, name: str) -> None:
    queries, new, more = APPENDED[name]
    for batched in (False, True):
        call = appended(queries, new, max(page_size, 256), **more)
        if batched:  # the same number of queries and of tokens each
            q, n = max(queries), max(new)
            call |= {"q": device_tensor(2, q, H, D), "k": device_tensor(2, n, HKV, D, seed=5),
                     "v": device_tensor(2, n, HKV, D, seed=6), "cu_seqlens_q": None, "cu_seqlens_k_new": None,
                     "max_seqlen_q": q}
        host = {key: plain_of(x).clone() if isinstance(x, torch.Tensor) else x for key, x in call.items()}
        wanted, _ = truth(host)
        with there(arch, package) as machine:
            assert same(bind(machine, backend).flash_attn_with_kvcache(**call), wanted)
        for cache in ("k_cache", "v_cache"):
            assert torch.equal(plain_of(call[cache]), host[cache]), (cache, batched)


@pytest.mark.parametrize("package", ["flash-attn-3", "sglang-kernel"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", ["no queries of one", "more tokens than a window", "a window as wide as the table"])
def test_3_rotary_where_the_kernel_would_turn_otherwise(package: str, interleaved: bool, name: str) -> None:
    """New tokens that HAL stores are turned by HAL; without causal a window as wide as the table counts as none in
    flash_api.cpp, and all of q would be turned at one position."""
    queries, new, more = APPENDED.get(name, ((3, 2), (3, 2), {"causal": False, "window_size": (600, -1)}))
    call = appended(queries, new, 256, **rotary(1024, interleaved), **more)
    host = {key: plain_of(x).clone() if isinstance(x, torch.Tensor) else x for key, x in call.items()}
    wanted, _ = truth(host)
    with there("sm90", package) as machine:
        assert same(bind(machine, "flash_attn_3").flash_attn_with_kvcache(**call), wanted)
        with pytest.raises(ValueError, match="^rotary_sin None is not supported with rotary_cos"):
            bind(machine, "flash_attn_3").flash_attn_with_kvcache(**{**call, "rotary_sin": None})
        with pytest.raises(ValueError, match=r"^rotary_cos .* is not supported \(flash_attn_3 without k: "):
            bind(machine, "flash_attn_3").flash_attn_with_kvcache(**{**call, "k": None, "v": None,
                                                                     "cu_seqlens_k_new": None})
    for cache in ("k_cache", "v_cache"):
        assert same(call[cache], host[cache])


@pytest.mark.parametrize(("queries", "new", "more"), [
    (3, 3, {"causal": True}), (3, 3, {"causal": False}), (3, 2, {"causal": True, "window_size": (7, 0)}),
    (1, 33, {"causal": True, "window_size": (7, 0)}), (3, 3, {"causal": False, "window_size": (7, 2)})])
@pytest.mark.parametrize("turned", [False, True])
def test_3_who_appends_a_batch(queries: int, new: int, more: dict[str, Any], turned: bool) -> None:
    """The kernel where it stores every token and turns as the contract has it, with as many rotary rows as its check
    wants; HAL else. The result is the same."""
    call = paged(64, (queries, queries), (30, 40), **more) | {
        "q": device_tensor(2, queries, H, D), "cu_seqlens_q": None, "k": device_tensor(2, new, HKV, D, seed=5),
        "v": device_tensor(2, new, HKV, D, seed=6), **(rotary(100) if turned else {})}
    host = {key: plain_of(x).clone() if isinstance(x, torch.Tensor) else x for key, x in call.items()}
    wanted, _ = truth(host)
    by_kernel = new <= queries and not (turned and "window_size" in more and not more["causal"])
    with there("sm90", "flash-attn-3") as machine, hal.forward_context():
        assert same(bind(machine, "flash_attn_3").flash_attn_with_kvcache(**call), wanted)
        plan, made = machine.calls
    assert same(call["k_cache"], host["k_cache"])
    assert (made.arguments["k"] is not None) == by_kernel
    assert plan.arguments["max_seqlen_k_new"] == (new if by_kernel else 0)
    if turned and by_kernel:
        rows = plain_of(made.arguments["rotary_cos"])
        assert rows.shape[0] == 128
        assert torch.equal(rows[:100], plain_of(call["rotary_cos"]))
        assert not rows[100:].any()


def test_3_calls_by_provider() -> None:
    from hal import registry
    from hal.backends.flash_attn_v3 import SGLANG, UPSTREAM, VLLM

    cls = registry.get("flash_attn_3")
    assert cls.calls_of(UPSTREAM) == cls.calls_of(SGLANG) == cls.calls >= {"rotary", "cache_leftpad", "seqused"}
    assert cls.calls_of(VLLM) == cls.calls - {"rotary", "cache_leftpad", "seqused"}


@pytest.mark.parametrize(("backend", "arch", "package", "page_size"), ADAPTERS[1:3] + ADAPTERS[:1])
def test_prefill_of_mla_names_itself_where_it_has_no_cache(backend: str, arch: str, package: str,
                                                            page_size: int) -> None:
    with there(arch, package) as machine:
        bound = bind(machine, backend, mla=MLADims(qk_nope_head_dim=64, v_head_dim=128), num_heads=8, softmax_scale=0.1)
        with pytest.raises(ValueError, match=backend):
            bound.flash_attn_with_kvcache(**paged(page_size, (1, 1), (5, 9)))


@pytest.mark.parametrize(("d", "dv", "served"), [
    (128, 128, True), (64, 64, True), (72, 72, False), (192, 128, True), (192, 120, False), (64, 256, True),
    (64, 512, False), (72, 128, False)])
def test_3_widths_of_an_fp8_cache(d: int, dv: int, served: bool) -> None:
    """flash_api.cpp: head dims of fp8 are multiples of 16; V's kernels for it end at 256."""
    config = AttentionConfig(head_dim=d, head_dim_v=dv, kv_cache_dtype="fp8_e4m3")
    [candidate] = hal.explain(config, "cuda:sm90", decode_backend="flash_attn_3").decode.candidates
    assert candidate.accepted == served, candidate.reasons


@pytest.mark.parametrize("backend", ["flash_attn_3", "flash_attn_mla"])
def test_ranks_append_nothing(backend: str) -> None:
    """Each would store all of the tokens; the contract has them written first."""
    config = {"mla": True, "num_heads": 16, "softmax_scale": 0.1} if backend == "flash_attn_mla" else {}
    call = appended((1, 1), (1, 1), 64, cp_world_size=2, cp_rank=1, cp_tot_seqused_k=ints(60, 80))
    if config:
        call["qv"] = call["q"]
    with there("sm90", "vllm") as machine:
        bound = bind(machine, backend, context_parallel_size=2, **config)
        before = plain_of(call["k_cache"]).clone()
        with pytest.raises(ValueError, match=rf"^k .* is not supported \({backend} with cp_world_size 2: k None"):
            bound.flash_attn_with_kvcache(**call)
        assert torch.equal(plain_of(call["k_cache"]), before)


def test_2_ragged_queries_over_the_whole_cache_inside_a_context() -> None:
    call = paged(256, (2, 5), (0, 0), cache_seqlens=None)
    with there("sm80", "flash-attn") as machine, hal.forward_context():
        assert same(bind(machine, "flash_attn_2").flash_attn_with_kvcache(**call), truth(call)[0])


def test_3_vllm_without_it_is_refused_when_bound() -> None:
    """flash_attn_interface.py there says so in FA3_AVAILABLE; a call would miss torch.ops._vllm_fa3_C."""
    with there("sm90", "vllm") as machine:
        [vendor] = machine.vendors.values()
        module = vendor.modules["vllm.vllm_flash_attn.flash_attn_interface"]
        module.FA3_AVAILABLE, module.FA3_UNAVAILABLE_REASON = False, "FA3 is only supported on devices with ..."
        with pytest.raises(RuntimeError, match=r"vllm was built without version 3 \(flash_attn_3: FA3 is only"):
            bind(machine, "flash_attn_3")


@pytest.mark.parametrize(("arch", "sinks", "wide"), [
    ("sm80", False, True), ("sm86", False, False), ("sm89", False, False), ("sm90", True, True), ("sm100", True, True),
    ("sm120", False, False), ("sm121", False, False)])
def test_4_prefills_mla_within_what_its_kernels_have(arch: str, sinks: bool, wide: bool) -> None:
    """flash_fwd.py: "Learnable sink is not supported in this kernel" below sm90 and on sm12x; 256/256 needs 131,072
    bytes of shared memory (can_implement of the real package is False), and sm86, sm89 and sm12x have 101,376."""
    plain = {"num_heads": 16, "mla": True, "softmax_scale": 0.1}
    deep = {**plain, "mla": MLADims(qk_nope_head_dim=192, v_head_dim=256)}
    for fields, served in (({**plain, "sinks": True}, sinks), (deep, wide), (plain, True)):
        decision = hal.explain(AttentionConfig(**fields), f"cuda:{arch}", prefill_backend="flash_attn_4")
        [candidate] = decision.prefill.candidates
        assert candidate.accepted == served, (fields, candidate.reasons)


def test_4_sinks_of_another_dtype_are_named() -> None:
    call = paged(128, (1, 1), (5, 9), sinks=on(torch.zeros(H, dtype=torch.float64), DEVICE))
    with there("sm100", "flash-attn-4") as machine, pytest.raises(
            ValueError, match=r"^sinks torch\.float64 is not supported \(flash_attn_4: torch\.bfloat16, "):
        bind(machine, "flash_attn_4", sinks=True).flash_attn_with_kvcache(**call)


@pytest.mark.parametrize("context", [False, True])
def test_2_tokens_in_a_batch_beside_ragged_queries(context: bool) -> None:
    """Its kernel appends for batched queries alone, and its varlen function not at all."""
    call = paged(256, (2, 3), (5, 9), k=device_tensor(2, 3, HKV, D, seed=5), v=device_tensor(2, 3, HKV, D, seed=6))
    host = {name: plain_of(x).clone() if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    with there("sm80", "flash-attn") as machine, hal.forward_context() if context else nullcontext():
        assert same(bind(machine, "flash_attn_2").flash_attn_with_kvcache(**call), truth(host)[0])


@EACH
def test_max_seqlen_q_of_batched_queries(backend: str, arch: str, package: str, page_size: int) -> None:
    """Redundant, so another number than q's can only be a mistake."""
    call = paged(page_size, (2, 2), (5, 9))
    call |= {"q": call["q"].view(2, 2, H, D), "cu_seqlens_q": None}
    with there(arch, package) as machine:
        bound = bind(machine, backend)
        assert right(bound, call)
        with pytest.raises(ValueError, match=r"^max_seqlen_q 3 is not supported \(flash_attn_\d: 2, as q\)"):
            bound.flash_attn_with_kvcache(**{**call, "max_seqlen_q": 3})


@EACH
def test_what_is_needed_is_named_with_the_backend(backend: str, arch: str, package: str, page_size: int) -> None:
    with there(arch, package) as machine:
        bound = bind(machine, backend)
        for name in ("cu_seqlens_k", *(("max_seqlen_q", "max_seqlen_k") if backend != "flash_attn_4" else ())):
            said = f"{name} None is not supported without page_table ({backend}: it is needed)"
            with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
                bound.flash_attn_varlen_func(**packed_keys(**{name: None}))
        said = f"seqused_k None is not supported with page_table ({backend}: it is needed)"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            bound.flash_attn_varlen_func(**varlen_of(paged(page_size, (2, 3), (5, 9))) | {"seqused_k": None})
        assert not machine.calls


def test_of_several_refused_arguments_the_first_of_the_call_is_named() -> None:
    with there("sm80", "flash-attn") as machine:
        bound = bind(machine, "flash_attn_2")
        wrong = {"attention_chunk": 4, "sinks": device_tensor(H), "rotary_interleaved": False}
        for names in itertools.permutations(wrong):
            more = {name: wrong[name] for name in names if name != "rotary_interleaved"}
            first = next(iter(more))
            with pytest.raises(ValueError, match=f"^{first} "):
                bound.flash_attn_varlen_func(**packed_keys(), **more)
            with pytest.raises(ValueError, match=f"^{names[0]} "):
                bound.flash_attn_with_kvcache(**paged(256, (1, 1), (5, 9)), **{name: wrong[name] for name in names})


@EACH
def test_splits_are_handed_on(backend: str, arch: str, package: str, page_size: int) -> None:
    call = paged(page_size, (1, 1), (5, 9))
    with there(arch, package) as machine:
        bound = bind(machine, backend)
        for number in (0, 1, 3):
            bound.flash_attn_with_kvcache(**call, num_splits=number)
        assert [c.arguments["num_splits"] for c in machine.calls] == [0, 1, 3]


def test_4_splits_where_its_kernels_can() -> None:
    """_flash_attn_fwd: "SplitKV is not supported" below sm100 and for head_dim_v from 192 on; 0 is 1 there."""
    call = paged(128, (1, 1), (5, 9))
    with there("sm90", "flash-attn-4") as machine:
        bind(machine, "flash_attn_4").flash_attn_with_kvcache(**call)
        assert [c.arguments["num_splits"] for c in machine.calls] == [1]
    wide = {"num_heads": 8, "mla": MLADims(qk_nope_head_dim=192, v_head_dim=256), "softmax_scale": 0.1}
    keys = packed_keys() | {name: device_tensor(14, 8, 256, seed=n) for n, name in enumerate(("q", "k", "v"))}
    with there("sm100", "flash-attn-4") as machine:
        bound = bind(machine, "flash_attn_4", **wide)
        assert same(bound.flash_attn_varlen_func(**keys, num_splits=0), truth({**keys, "softmax_scale": 0.1},
                                                                            "flash_attn_varlen_func")[0])


def test_longest_keys_are_what_the_cache_can_hold() -> None:
    """No number shows it: kernels of version 4 and vLLM's choose splits and grids by max_seqlen_k."""
    rows = {"q": device_tensor(2, 1, H, D), "k_cache": device_tensor(2, 128, HKV, D, seed=1),
            "v_cache": device_tensor(2, 128, HKV, D, seed=2), "cache_seqlens": ints(5, 9), "causal": True}
    for backend, arch, package in (("flash_attn_4", "sm100", "flash-attn-4"), ("flash_attn_3", "sm90", "vllm")):
        with there(arch, package) as machine:
            bound = bind(machine, backend)
            bound.flash_attn_with_kvcache(**rows)
            bound.flash_attn_with_kvcache(**paged(128, (1, 1), (5, 9)))
            assert [c.arguments["max_seqlen_k"] for c in machine.calls] == [128, 256]
    with there("sm80", "flash-attn") as machine, hal.forward_context():
        bind(machine, "flash_attn_2").flash_attn_with_kvcache(**paged(256, (2, 3), (5, 9)))
        assert [c.arguments["max_seqlen_k"] for c in machine.calls] == [512]


@pytest.mark.parametrize("context", [False, True])
def test_2_equally_many_packed_queries_are_a_batch(context: bool) -> None:
    """A view of q, not rows of padding, and no plan: decode, and speculation, are this."""
    call = paged(256, (3, 3), (20, 9))
    with there("sm80", "flash-attn") as machine, hal.forward_context() if context else nullcontext():
        assert same(bind(machine, "flash_attn_2").flash_attn_with_kvcache(**call), truth(call)[0])
        [made] = machine.calls
    assert made.function.endswith("flash_attn_with_kvcache")
    assert plain_of(made.arguments["q"]).data_ptr() == plain_of(call["q"]).data_ptr()
    assert made.arguments["q"].shape == (2, 3, H, D)


@pytest.mark.parametrize("packed", [False, True])
def test_2_no_query_at_all(packed: bool) -> None:
    """A grid of no blocks is a CUDA error; the shapes are the contract's."""
    call = paged(256, (0, 0), (5, 9), max_seqlen_q=1)
    if not packed:
        call |= {"q": call["q"].view(2, 0, H, D), "cu_seqlens_q": None, "max_seqlen_q": 0}
    with there("sm80", "flash-attn") as machine:
        out, lse = bind(machine, "flash_attn_2").flash_attn_with_kvcache(**call, return_softmax_lse=True)
        assert (out.shape, out.dtype) == (call["q"].shape, torch.bfloat16)
        assert (lse.shape, lse.dtype) == ((H, 0) if packed else (2, H, 0), torch.float32)
        assert not machine.calls


@pytest.mark.parametrize("package", ["flash-attn-3", "sglang-kernel", "vllm"])
@pytest.mark.parametrize("spread", [False, True])
def test_3_packed_fp8_keys(package: str, spread: bool) -> None:
    """Prefill without a cache: q, k and v are fp8 as the cache is; the kernel wants descales of [B, Hkv]."""
    def descale(value: float) -> Any:
        return on(torch.full((2, HKV), value) if spread else torch.tensor(value), DEVICE)

    keys = packed_keys(q_descale=descale(0.5), k_descale=descale(1.5), v_descale=descale(0.25))
    keys |= {name: keys[name].to(torch.float8_e4m3fn) for name in ("q", "k", "v")}
    with there("sm90", package) as machine:
        out = bind(machine, "flash_attn_3", kv_cache_dtype="fp8_e4m3").flash_attn_varlen_func(**keys)
        wanted, _ = truth(keys, "flash_attn_varlen_func")
        assert torch.allclose(plain_of(out).double(), wanted.double(), atol=3e-2, rtol=5e-2)
        [made] = machine.calls
        assert made.arguments["k_descale"].shape == (2, HKV)
        with pytest.raises(ValueError, match="^q_descale|^k_descale|^v_descale"):
            bind(machine, "flash_attn_3").flash_attn_varlen_func(**keys)


def test_3_without_a_scheduler_plans_nothing() -> None:
    """SGLang's sgl_kernel.flash_attn has no get_scheduler_metadata."""
    call = paged(64, (2, 3), (20, 9))
    with there("sm90", "sglang-kernel") as machine, hal.forward_context():
        assert right(bind(machine, "flash_attn_3"), call)
        assert [c.function.rpartition(".")[2] for c in machine.calls] == ["flash_attn_with_kvcache"]


# Widths over pages, from the vendors' checks. 4: multiples of 8 (interface.py, _validate_head_dims), of 16 over pages
# ("irregular head dim"); on sm100 and sm110 up to 128 with up to 128, 192 with 128, and 256 without seqused_k. 3:
# flash_api.cpp, "If V headdim is different from Q/K dim, we only support ...".
YES, NO = True, False
WIDTHS = [
    *(("flash_attn_4", "sm90", d, dv, served) for d, dv, served in (
        (64, 64, YES), (72, 72, NO), (128, 72, NO), (72, 128, NO), (128, 64, YES), (240, 240, YES), (256, 256, YES),
        (256, 128, YES), (128, 256, YES), (272, 64, NO), (64, 272, NO), (272, 272, NO), (8, 8, NO), (136, 64, NO))),
    *(("flash_attn_4", arch, d, dv, served) for arch in ("sm100", "sm103", "sm110") for d, dv, served in (
        (128, 128, YES), (96, 48, YES), (192, 128, YES), (192, 192, NO), (128, 192, NO), (144, 64, NO), (64, 144, NO),
        (256, 256, NO), (256, 128, NO), (72, 72, NO), (192, 112, NO))),
    *((backend, "sm90", d, dv, served) for backend in ("flash_attn_3", "flash_attn_diffkv") for d, dv, served in (
        (192, 128, YES), (136, 104, YES), (192, 96, NO), (128, 64, NO), (128, 112, NO), (200, 128, NO), (192, 136, NO),
        (64, 512, YES), (64, 520, NO), (72, 512, NO), (60, 512, NO), (64, 508, NO), (40, 64, YES))),
    ("flash_attn_diffkv", "sm90", 128, 128, NO), ("flash_attn_3", "sm90", 128, 128, YES),
]


@pytest.mark.parametrize(("backend", "arch", "d", "dv", "served"), WIDTHS)
def test_widths(backend: str, arch: str, d: int, dv: int, served: bool) -> None:
    config = AttentionConfig(head_dim=d, head_dim_v=dv)
    for phase in ("prefill", "decode"):
        decision = hal.explain(config, f"cuda:{arch}", **{f"{phase}_backend": backend})
        [candidate] = getattr(decision, phase).candidates
        assert candidate.accepted == served, (phase, candidate.reasons)
        assert served or [reason.startswith(f"head_dim {d} ") for reason in candidate.reasons] == [True]


@pytest.mark.parametrize(("arch", "nope", "v", "field", "served"), [
    (arch, nope, v, field, not (arch == "sm100" and nope == 192)) for arch in ("sm90", "sm100")
    for nope, v in ((192, 256), (128, 128)) for field in ({"softcap": 30.0}, {"sinks": True})])
def test_4_kernel_for_256_has_neither_softcap_nor_sinks(arch: str, nope: int, v: int, field: dict[str, Any],
                                                        served: bool) -> None:
    """interface.py: "SM100 forward with head_dim=256 ..."; expanded MLA of 192 + 64 goes there."""
    config = AttentionConfig(num_heads=16, mla=MLADims(qk_nope_head_dim=nope, v_head_dim=v), softmax_scale=0.1, **field)
    decision = hal.explain(config, f"cuda:{arch}", prefill_backend="flash_attn_4")
    [candidate] = decision.prefill.candidates
    about = [reason for reason in candidate.reasons if reason.startswith(next(iter(field)))]
    assert bool(about) != served, candidate.reasons


@pytest.mark.parametrize(("package", "served"), [("flash-attn-3", False), ("sglang-kernel", False), ("vllm", True)])
def test_mla_context_parallelism_is_vllms(package: str, served: bool) -> None:
    config = AttentionConfig(num_heads=16, mla=True, softmax_scale=0.1, context_parallel_size=2)
    decision = hal.explain(config, "cuda:sm90", packages=package, decode_backend="flash_attn_mla")
    assert (decision.decode.chosen == "flash_attn_mla") == served
    function = "flash_attn_varlen_func" if package == "vllm" else "flash_attn_with_kvcache"
    plain = hal.explain(config.replace(context_parallel_size=1), "cuda:sm90", packages=package,
                        decode_backend="flash_attn_mla")
    assert str(plain.decode.target).endswith(f".{function}")


def test_the_joint_cache_of_unequal_head_dims() -> None:
    """Two views, side by side, of one tensor of head_dim + head_dim_v."""
    from hal import registry

    for d, dv in ((192, 128), (64, 256)):
        k, v = registry.get("flash_attn_diffkv").new_kv_cache(
            AttentionConfig(num_kv_heads=2, head_dim=d, head_dim_v=dv), "cpu", 3, 64)
        assert (k.shape, v.shape) == ((3, 64, 2, d), (3, 64, 2, dv))
        assert k.stride() == v.stride() == (64 * 2 * (d + dv), 2 * (d + dv), d + dv, 1)
        assert v.data_ptr() - k.data_ptr() == d * k.itemsize
