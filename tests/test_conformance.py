"""The conformance kit itself: its judge, its inputs, its grid, and what becomes of backends that are wrong."""

# A row of a table stays on its line.
# ruff: noqa: E501

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hal
from hal import oracle, registry
from hal.backend import Bound
from hal.backends.torch_native import TorchNative
from hal.capabilities import CALLS, FEATURES
from hal.config import ATTENTION_TYPES, DTYPES
from hal.conformance import record, runner
from hal.conformance.case import Case, Pages
from hal.conformance.eager import Scores, Sequence, eager
from hal.conformance.grid import HEAD_DIMS, PAGE_SIZES, grid
from hal.conformance.inputs import POWERS, Inputs, Maker
from hal.conformance.judge import FLOORS, LSE_FLOOR, judge
from hal.conformance.runner import KitError, Result, Runner, backend_of
from hal.platform import detect
from hal.registry import unregister_backend

NAN, INF = float("nan"), float("inf")


@functools.cache
def quick() -> dict[str, Case]:
    return {case.name: case for case in grid(TorchNative, False)}


def case_of(begin: str) -> Case:
    """The first quick case whose name begins so."""
    return next(case for name, case in quick().items() if name.startswith(begin))


def make(case: Case, nan_tail: bool = True, seed: int = 1, q_dtype: str | None = None) -> Inputs:
    return Maker(case, case.config, case.page_size or 16, q_dtype or case.config.dtype, nan_tail, seed).make()


# The judge. Two sequences of two rows and an unused row, two heads; eager is off by 0.01 in head 0 of sequence 0.
ROWS = [(0, 2), (3, 5)]


def triple() -> tuple[Any, Any, Any]:
    """(got, want, rough), all of them right but for eager's error; rows 2 and 5 belong to nothing."""
    out = torch.ones(6, 2, 4, dtype=torch.float64)
    lse = torch.full((2, 6), 3.0, dtype=torch.float64)
    rough = out.clone(), lse.clone()
    rough[0][1, 0, 2] += 0.01
    rough[1][0, 0] += 0.001
    got = out.float(), lse.float()
    got[0][2], got[0][5], got[1][:, 2] = NAN, INF, NAN
    return got, (out, lse), rough


def verdict(got: Any, want: Any, rough: Any, **more: Any) -> Any:
    return judge(got, want, rough, ROWS, True, "float32", **more)


def test_a_right_result_passes_and_rows_in_no_sequence_are_ignored() -> None:
    assert verdict(*triple()).problem is None


@pytest.mark.parametrize(("place", "bound"), [
    ((1, 0, 1), 2 * 0.01 + 2e-5), ((0, 0, 3), 2 * 0.01 + 2e-5), ((1, 1, 1), 2e-5), ((3, 0, 0), 2e-5)])
def test_the_bound_of_each_sequence_and_head(place: tuple[int, int, int], bound: float) -> None:
    """Twice eager's worst error of that sequence and head plus the floor: just below passes, just above fails."""
    for factor, good in ((0.98, True), (1.02, False)):
        got, want, rough = triple()
        got[0][place] += factor * bound
        assert (verdict(got, want, rough).problem is None) is good, factor
    sequence = 0 if place[0] < 3 else 1
    assert f"sequence {sequence}, head {place[1]}, query {place[0] - ROWS[sequence][0]}" in verdict(
        got, want, rough).problem


@pytest.mark.parametrize(("size", "share"), [(40.0, 40.0), (0.25, 0.25), (0.0, 1 / 32)])
def test_the_floor_scales_with_the_head(size: float, share: float) -> None:
    """A head of small outputs gets a small floor, whatever the other heads hold."""
    for factor, good in ((0.95, True), (1.05, False)):
        got, want, rough = triple()
        for x in (got[0], want[0], rough[0]):
            x[3:5, 1] = size
        got[0][4, 1, 3] += factor * share * FLOORS["float32"]
        assert (verdict(got, want, rough).problem is None) is good, factor


@pytest.mark.parametrize(("place", "value", "words"), [
    ((3, 1, 2), NAN, "NaN in sequence 1, query 0"), ((4, 0, 0), INF, "sequence 1, head 0"),
    ((0, 1, 0), -INF, "sequence 0, head 1")])
def test_what_is_no_number_fails(place: tuple[int, int, int], value: float, words: str) -> None:
    got, want, rough = triple()
    got[0][place] = value
    assert words in verdict(got, want, rough).problem


def test_shape_and_dtype() -> None:
    got, want, rough = triple()
    assert "out is bfloat16" in verdict((got[0].bfloat16(), None), want, rough).problem
    assert "out is float32 (6, 2, 3), expected float32 (6, 2, 4)" in verdict((got[0][..., :3], None), want, rough).problem
    assert "softmax_lse is torch.float64" in verdict((got[0], got[1].double()), want, rough).problem
    assert "(6, 2), expected torch.float32 (2, 6)" in verdict((got[0], got[1].T), want, rough).problem
    assert judge((got[0], None), want, rough, ROWS, True, "float8_e4m3fn").problem == \
        "out is float32 (6, 2, 4), expected bfloat16 (6, 2, 4)"


def test_lse() -> None:
    """Natural logarithm, per head, -inf where a row sees nothing."""
    for head, bound in ((0, 2 * 0.001 + LSE_FLOOR * 4), (1, LSE_FLOOR * 4)):
        for factor, good in ((0.95, True), (1.05, False)):
            got, want, rough = triple()
            got[1][head, 1] += factor * bound
            assert (verdict(got, want, rough).problem is None) is good, (head, factor)
        assert f"softmax_lse of sequence 0, head {head}" in verdict(got, want, rough).problem
    got, want, rough = triple()
    assert "softmax_lse" in verdict((got[0], got[1] * 1.4427), want, rough).problem
    got[1][1, 3] = NAN
    assert "softmax_lse of sequence 1, head 1" in verdict(got, want, rough).problem


@pytest.mark.parametrize("value", [0.0, NAN, INF, -1e30])
def test_lse_of_a_row_that_sees_nothing(value: float) -> None:
    got, want, rough = triple()
    for x in (want[1], rough[1], got[1]):
        x[0, 4] = -INF
    assert verdict(got, want, rough).problem is None
    got[1][0, 4] = value
    assert "in a row that sees no key, expected -inf" in verdict(got, want, rough).problem


def test_batched_shapes() -> None:
    """[B, Sq, Hq, Dv] and [B, Hq, Sq]: the second sequence's LSE is its own."""
    want = torch.ones(2, 3, 2, 4).double(), torch.zeros(2, 2, 3).double()
    got = want[0].float(), want[1].float()
    rows = [(0, 3), (3, 6)]
    assert judge(got, want, want, rows, False, "float32").problem is None
    got[1][1, 0, 2] = 0.1
    assert "sequence 1, head 0" in str(judge(got, want, want, rows, False, "float32").problem)


# Eager against the oracle, which shares no code with it, and by hand.
def test_eager_by_hand() -> None:
    """Scores 0 and ln 3 at scale 0.5: weights 1/4 and 3/4; a sink of ln 4 halves them."""
    ln3, ln4 = 1.0986122886681098, 1.3862943611198906
    one = torch.ones(1)
    sequence = Sequence(q=torch.tensor([[[1.0, 0.0]]]), k=torch.tensor([[[0.0, 5.0]], [[2 * ln3, 7.0]]]),
                        v=torch.tensor([[[4.0]], [[8.0]]]), qv=None, position=torch.tensor([0, 1]), length=2,
                        q_descale=one, k_descale=one, v_descale=one)
    for sink, out, lse in ((None, 7.0, ln4), (torch.tensor([ln4]), 3.5, 2.0794415)):
        got = eager(sequence, Scores(0.5, 0.0, True, (-1, -1), 0, sink), torch.float32)
        assert got[0].item() == pytest.approx(out, rel=1e-6)
        assert got[1].item() == pytest.approx(lse, rel=1e-6)


def one_of_each() -> list[Case]:
    """A case for each phase with each feature and kind of call, in float32."""
    found: dict[Any, Case] = {}
    for case in quick().values():
        if "long" in case.note:
            continue
        key = (case.group, case.phase, case.config.max_decode_query_len, case.calls, case.note, case.expanded, case.cp_rank,
               *(f for f, asked in FEATURES.items() if asked(case.config) is not None), case.config.kv_cache_dtype)
        found.setdefault(key, dataclasses.replace(case, fields={**case.fields, "dtype": "float32"}))
    return list(found.values())


def test_eager_is_the_oracle() -> None:
    """On every phase, feature and kind of call, in float32; rotation rounds to float32, so nothing is looser there."""
    judged = 0
    for case in one_of_each():
        inputs = make(case)
        scale = {"softmax_scale": inputs.scores.scale}
        ref, ref_lse = getattr(oracle, inputs.function)(**{**inputs.arguments, "return_softmax_lse": True, **scale})
        flat = ref.view(-1, *ref.shape[-2:])
        for b, (first, last) in enumerate(inputs.rows):
            if last == first:
                continue
            out, lse = eager(inputs.sequences[b], inputs.scores, torch.float32)
            want = ref_lse[:, first:last] if inputs.packed else ref_lse[b]
            size = max(1.0, float(flat[first:last].abs().max()))
            assert (out - flat[first:last]).abs().max() < 1e-4 * size, f"{case.name}: sequence {b}"
            assert torch.equal(lse.isinf(), want.isinf()), f"{case.name}: sequence {b}"
            assert (lse - want)[~want.isinf()].abs().amax().item() < 1e-4 if bool((~want.isinf()).any()) else True
            judged += 1
    assert judged > 500


# The inputs.
def gathered(inputs: Inputs, b: int, name: str, count: int, leftpad: int = 0) -> torch.Tensor:
    """count tokens of sequence b, read out of the paged cache element by element."""
    cache, table = inputs.arguments[name], inputs.arguments["page_table"]
    size, owner = cache.shape[1], inputs.arguments.get("cache_batch_idx", torch.arange(99))[b]
    return torch.stack([cache[table[owner, t // size], t % size] for t in range(leftpad, leftpad + count)]) \
        if count else cache[0, :0]


@pytest.mark.parametrize("begin", ["dense plain: extend", "dense plain: decode", "mla plain: mixed",
                                   "dense calls: extend bfloat16 8/2x128 cache_leftpad", "dense pages: decode bfloat16 8/2x128 page1",
                                   "dense calls: extend bfloat16 8/2x128 cache_batch_idx", "dense fp8: extend",
                                   "dense calls: extend bfloat16 8/2x128 append"])
def test_the_cache_holds_the_sequences(begin: str) -> None:
    case = case_of(begin)
    inputs = make(case)
    pads = inputs.arguments.get("cache_leftpad", torch.zeros(len(inputs.rows), dtype=torch.int32)).tolist()
    seen = 0
    for b, sequence in enumerate(inputs.sequences):
        old = int(inputs.arguments["cache_seqlens"][b]) - pads[b]
        assert old + (case.appended[b] if case.appended else 0) == len(sequence.k) == sequence.length
        for name, want in (("k_cache", sequence.k), ("v_cache", sequence.v)):
            got = gathered(inputs, b, name, old, pads[b])
            assert torch.equal(got.float(), want[:old].float()), (b, name)
            seen += got.numel()
    assert seen


def pages_of(inputs: Inputs) -> list[list[int]]:
    size, table = inputs.arguments["k_cache"].shape[1], inputs.arguments["page_table"]
    return [table[b, : -(-int(n) // size)].tolist() for b, n in enumerate(inputs.arguments["cache_seqlens"])]


@pytest.mark.parametrize("nan_tail", [True, False])
def test_pages_and_poison(nan_tail: bool) -> None:
    """Shuffled pages, none shared; NaN in pages of nobody, in table entries past the end, and in tails if promised."""
    inputs = make(case_of("dense plain: extend bfloat16"), nan_tail)
    a, used = inputs.arguments, pages_of(inputs)
    flat = [page for mine in used for page in mine]
    assert len(flat) == len(set(flat)) > 5
    assert flat != sorted(flat)
    cache, table, size = a["k_cache"], a["page_table"], a["k_cache"].shape[1]
    spare = set(range(inputs.pages)) - set(flat)
    assert len(spare) >= 3
    for page in spare:
        assert bool(cache[page].isnan().all())
        assert bool(a["v_cache"][page].isnan().all())
    tails = 0
    for b, mine in enumerate(used):
        past = table[b, len(mine) :]
        assert len(past) > 0
        assert set(past.tolist()) <= spare
        filled = int(a["cache_seqlens"][b]) - (len(mine) - 1) * size
        if mine and filled < size:
            tail = cache[mine[-1], filled:]
            assert bool((tail.isnan() if nan_tail else tail == 40).all())
            tails += 1
    assert tails > 2


def test_garbage_past_the_table() -> None:
    inputs = make(case_of("dense lengths: extend bfloat16 8/2x128 garbage table"))
    for b, mine in enumerate(pages_of(inputs)):
        assert bool((inputs.arguments["page_table"][b, len(mine) :] == 1 << 30).all())


def test_writes_make_the_cache() -> None:
    """What the device is given through write_kv_cache, -1 slots included, is the cache that the oracle gets."""
    for begin in ("dense plain: extend bfloat16", "dense fp8: extend", "dense fp8: decode bfloat16+fp8_e5m2"):
        case = case_of(begin)
        inputs = make(case)
        impl = hal.get_attention_impl(case.config, "cpu", "torch")
        caches = impl.new_kv_cache(inputs.pages)
        skipped = 0
        for write in inputs.writes:
            scales = {} if write.k_scale is None else {"k_scale": write.k_scale, "v_scale": write.v_scale}
            impl.write_kv_cache(write.k, write.v, *caches, write.slots, **scales)
            lost = write.slots == -1
            skipped += int(lost.sum())
            assert bool((write.k[lost] == 7).all())
        assert skipped
        for cache, name in zip(caches, ("k_cache", "v_cache")):
            assert torch.equal(cache.float().nan_to_num(777), inputs.arguments[name].float().nan_to_num(777))


@pytest.mark.parametrize("per_head", [True, False])
def test_descales(per_head: bool) -> None:
    """Powers of two, so that division is exact; [B, Hkv] differs between heads and sequences, a scalar is one."""
    case = next(c for c in quick().values() if c.group == "dense fp8" and c.phase == "extend"
                and ("descale_per_head" in c.calls) is per_head)
    inputs = make(case)
    scale = inputs.arguments["k_descale"]
    assert scale.dtype == torch.float32
    assert scale.shape == ((len(inputs.rows), 2) if per_head else ())
    assert set(scale.view(-1).tolist()) <= set(POWERS)
    if per_head:
        assert not torch.equal(scale[:, 0], scale[:, 1])
        assert not torch.equal(scale[0], scale[1]) or not torch.equal(scale[0], scale[2])
    for b, sequence in enumerate(inputs.sequences):
        assert torch.equal(sequence.k_descale, scale[b] if per_head else scale.expand(2))
    rows = [s for s in inputs.sequences if len(s.k) > 16]
    for sequence in rows:
        real = sequence.k.float() * sequence.k_descale[None, :, None]
        assert 0.8 < real.std().item() < 1.2  # of a standard normal, whatever the scale
        assert torch.equal((real / sequence.k_descale[None, :, None]).to(sequence.k.dtype).float(), sequence.k.float())
    assert rows


def test_a_seed_repeats() -> None:
    case = case_of("dense calls: extend bfloat16 8/2x128 cache_batch_idx")
    first, again, other = make(case), make(case), make(case, seed=2)
    for name, x in first.arguments.items():
        if isinstance(x, torch.Tensor):
            assert torch.equal(x.float().nan_to_num(777), again.arguments[name].float().nan_to_num(777)), name
    for name in ("q", "page_table", "k_cache"):
        a, b = first.arguments[name].float(), other.arguments[name].float()
        assert a.shape != b.shape or not torch.equal(a.nan_to_num(777), b.nan_to_num(777)), name


def test_a_key_lost_from_a_long_sequence_is_seen() -> None:
    """In bfloat16, wherever it was: the bound must not drown one key of two thousand."""
    for begin, count in (("dense long: decode bfloat16 8/2x128 long", 2100), ("mla long: decode", 2100),
                         ("dense long: extend", 2100), ("dense long: prefill", 600)):
        case = case_of(begin)
        inputs = make(case)
        want = getattr(oracle, inputs.function)(**{**inputs.arguments, "return_softmax_lse": True})
        rough = Runner(TorchNative, detect("cpu"), 1)._eager(inputs, want, torch.bfloat16)
        sequence, (first, last) = inputs.sequences[0], inputs.rows[0]
        assert len(sequence.k) == count
        for lost in (0, 1, 17, count // 4, 511, 512, count - 2):
            keep = torch.arange(count) != lost
            less = dataclasses.replace(sequence, k=sequence.k[keep], v=sequence.v[keep],
                                       position=sequence.position[keep])
            out = want[0].clone()
            out.view(-1, *out.shape[-2:])[first:last] = eager(less, inputs.scores, torch.float32)[0]
            seen = judge((out.bfloat16(), None), want, rough, inputs.rows, inputs.packed, "bfloat16")
            assert seen.problem is not None, f"{case.name}: key {lost}"
        exact = judge((want[0].bfloat16(), None), want, rough, inputs.rows, inputs.packed, "bfloat16")
        assert exact.problem is None, case.name


# The grid.
NAMES = "from hal import registry; from hal.conformance.grid import grid\n" \
        "for full in (False, True):\n    for c in grid(registry.get('torch'), full): print(c)"


def test_names_and_cases_are_the_same_in_every_process() -> None:
    seen = {subprocess.run([sys.executable, "-c", NAMES.replace("print(c)", "print(c.name, sorted(c.calls), c.keys)")],
                           env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
                           check=True).stdout for seed in ("1", "2")}
    assert len(seen) == 1
    lines = seen.pop().splitlines()
    assert len(lines) == len(quick()) + len(grid(TorchNative, True))


def test_two_cases_never_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that hides another is an error, not one case less."""
    monkeypatch.setattr(Case, "name", "same")
    with pytest.raises(AssertionError, match="two cases have one name"):
        grid(TorchNative, False)


def test_quick_holds_every_word_of_the_vocabulary() -> None:
    cases = list(quick().values())
    words = {word for case in cases for word in case.features}
    wanted = [*FEATURES, *CALLS, *(f"dtype {d}" for d in DTYPES), *(f"page_size {n}" for n in PAGE_SIZES),
              *(f"attention_type {t}" for t in ATTENTION_TYPES), *(f"head_dim {n}" for n in HEAD_DIMS),
              "head_dim 192/128", "head_dim 576/512", "head_dim 320/256", "mla_prefill 192/128", "mla_prefill 256/256",
              "mla_prefill 128/128", "kv_cache_dtype fp8_e4m3", "kv_cache_dtype fp8_e5m2", "max_decode_query_len",
              "phase prefill", "phase decode"]
    assert [word for word in wanted if word not in words] == []
    assert set(record.declared(TorchNative)) <= words
    dense = [c.config for c in cases if c.config.mla is None]
    assert {(c.num_heads // c.num_kv_heads, c.num_kv_heads > 1) for c in dense} >= {(1, True), (4, True), (8, False)}
    assert {c.phase for c in cases} == {"prefill", "extend", "mixed", "paged_varlen", "decode"}
    assert max(n for c in cases for n in c.keys if isinstance(n, int)) == 32768
    lengths = [(c.phase, n) for c in cases for n in c.keys]
    for phase in ("decode", "extend", "mixed"):
        edges = {n.more for p, n in lengths if p == phase and isinstance(n, Pages)}
        assert {-1, 0, 1} <= edges | ({-1, 0, 1} if phase == "extend" else set())


def test_quick_asks_the_combinations_that_were_once_missing() -> None:
    """Multi-token verify of everything, both rotary styles, both-sided windows, appends beside other calls."""
    cases = list(quick().values())
    plain = [c for c in cases if c.group == "dense plain" and c.config.max_decode_query_len == 4]
    assert {c.config.dtype for c in plain} == set(DTYPES)
    rotary = [c.rotary for c in cases if c.rotary]
    assert {(r["interleaved"], "seqlens" in r) for r in rotary} == {(True, False), (False, False), (True, True)}
    assert any(c.window == (8, 3) for c in cases)
    assert any(c.config.sliding_window and not c.config.causal and c.phase == "extend" for c in cases)
    assert any(c.config.sinks and c.config.context_parallel_size > 1 for c in cases)
    for call in ("unpaged", "cache_batch_idx", "cache_leftpad", "strided_cache"):
        assert any({"append", call} <= c.calls for c in cases), call
    assert any("append" in c.calls and c.config.kv_cache_dtype == "fp8_e5m2" for c in cases)
    notes = {c.note for c in cases}
    assert {"int cache_seqlens", "no cache_seqlens", "scale of the config", "return_attn_probs", "garbage table"} <= notes


def test_spellings_are_in_the_call() -> None:
    arguments = {note: make(next(c for c in quick().values() if c.note == note)).arguments for note in (
        "int cache_seqlens", "no cache_seqlens", "scale of the config", "return_attn_probs")}
    assert arguments["int cache_seqlens"]["cache_seqlens"] == 37
    assert "cache_seqlens" not in arguments["no cache_seqlens"]
    assert "softmax_scale" not in arguments["scale of the config"]
    assert arguments["return_attn_probs"]["return_attn_probs"] is True
    assert make(case_of("dense windows: prefill bfloat16 8/2x128 sliding_window=9 non_causal window=8,3")).arguments[
        "window_size"] == (8, 3)


@pytest.mark.parametrize("name", registry.names())
def test_every_backend_has_a_grid(name: str) -> None:
    """It builds, its names are unique, and each of its inputs could be made (one seed, the short quick ones)."""
    backend = registry.get(name)
    small, full = grid(backend, False), grid(backend, True)
    assert {c.name for c in small} <= {c.name for c in full}
    for cases in (small, full):
        assert len({c.name for c in cases}) == len(cases)
    dense, mla = "mla" not in backend.requires, "mla" in backend.features or bool(backend.mla_prefill)
    assert len(full) >= (1500 if "sparse" not in backend.requires else 800)
    if dense and mla:
        assert 2500 <= len(full) <= 4000
    asked = {word for case in small for word in case.features}
    assert set(record.declared(backend)) - asked <= UNASKED.get(name, set())


# What a backend declares and no case can ask for, because HAL's own tensors can't express it yet.
# And the contract excludes context parallelism beside sparse_indices.
UNASKED = {"flashmla_sparse": {"kv_cache_dtype fp8_ds_mla", "context_parallel"},
           "flashinfer_mla_sparse": {"kv_cache_dtype fp8_ds_mla", "context_parallel"}}


# The runner: backends that are wrong in one way, made of the one that is right.
Spoil = Callable[[Callable[..., Any], dict[str, Any]], Any]


@pytest.fixture
def ends() -> Iterator[Callable[..., Result]]:
    """ends(begin, spoil, **declarations): how a case ends on torch, spoiled."""
    made: list[str] = []

    def run(begin: str, spoil: Spoil | None = None, **declarations: Any) -> Result:
        class Toy(TorchNative):
            name = f"toy{len(made)}"

            @classmethod
            def bind(cls, config: Any, platform: Any, package: Any) -> Bound:
                right = super().bind(config, platform, package)
                if spoil is None:
                    return right

                def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
                    return lambda **a: spoil(function, a)

                return Bound(wrap(right.flash_attn_with_kvcache), wrap(right.flash_attn_varlen_func))

        for name, value in declarations.items():
            setattr(Toy, name, value)
        hal.register_backend(Toy.name, Toy)
        made.append(Toy.name)
        return Runner(Toy, detect("cpu"), 5).run(case_of(begin))

    yield run
    for name in made:
        unregister_backend(name)


DECODE = "dense plain: decode float32"
LSE = "dense return_softmax_lse: decode bfloat16 8/2x128"
OUT = "dense calls: decode bfloat16 8/2x128 out"
NO_OUT = {"calls": TorchNative.calls - {"out"}}


def raises(error: Exception) -> Spoil:
    def spoil(function: Callable[..., Any], a: dict[str, Any]) -> Any:
        raise error

    return spoil


def returns(change: Callable[[Any], Any]) -> Spoil:
    return lambda function, a: change(function(**a))


def given(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The arguments changed before the right function gets them."""
    def spoil(function: Callable[..., Any], a: dict[str, Any]) -> Any:
        change(a)
        return function(**a)

    return spoil


def changed(function: Callable[..., Any], a: dict[str, Any]) -> Any:
    """Right, but writes into the cache's first element that is a number."""
    result = function(**a)
    flat = a["k_cache"].view(-1)
    flat[int((~flat.isnan()).nonzero()[0])] += 1
    return result


def unwritten(function: Callable[..., Any], a: dict[str, Any]) -> Any:
    """Like a kernel that forgets its last row: what torch.empty held stays there."""
    result = function(**a)
    out = torch.empty_like(result)
    out[:-1] = result[:-1]
    return out


def test_right_is_passed(ends: Callable[..., Result]) -> None:
    for begin in (DECODE, LSE, OUT, "dense deterministic: decode", "dense calls: extend bfloat16 8/2x128 append"):
        result = ends(begin, returns(lambda x: x))
        assert (result.result, result.bound > 0) == ("passed", True), result.why
    assert ends(OUT, raises(ValueError("out (a tensor) is not supported (toy: out None)")), **NO_OUT).result == "refused"
    result = ends("dense softcap: decode", features=TorchNative.features - {"softcap"})
    assert (result.result, "softcap 5.0 is not supported (toy" in result.why) == ("refused", True)


WRONG: dict[str, tuple[str, Spoil | None, dict[str, Any], str]] = {
    "declares and refuses": ("dense softcap: decode", raises(ValueError("softcap 5.0 is not supported")), {}, "ValueError: softcap"),
    "declares a call and refuses it": (OUT, raises(ValueError("out is not supported")), {}, "ValueError: out"),
    "serves an undeclared call": (OUT, returns(lambda x: x), NO_OUT, "served out, which it does not declare"),
    "refuses without the name": (OUT, raises(ValueError("can do without that")), NO_OUT, "ValueError: can do without"),
    "refuses another argument": ("dense calls: extend bfloat16 8/2x128 append", raises(ValueError("bad kernel")),
                                 {"calls": TorchNative.calls - {"append", "rotary"}}, "ValueError: bad kernel"),
    "TypeError": (DECODE, raises(TypeError("unexpected keyword")), {}, "TypeError: unexpected keyword"),
    "TypeError for an undeclared call": (OUT, raises(TypeError("out")), NO_OUT, "TypeError: out"),
    "a tuple unasked": (DECODE, returns(lambda x: (x, x)), {}, "returned (Tensor, Tensor), expected a tensor"),
    "a tuple of one": (DECODE, returns(lambda x: (x,)), {}, "returned (Tensor), expected a tensor"),
    "None": (DECODE, returns(lambda x: None), {}, "returned NoneType"),
    "no LSE": (LSE, returns(lambda x: x[0]), {}, "returned Tensor, expected (out, softmax_lse)"),
    "LSE None": (LSE, returns(lambda x: (x[0], None)), {}, "returned (Tensor, NoneType)"),
    "four values": (LSE, returns(lambda x: (*x, None, None)), {}, "expected (out, softmax_lse)"),
    "base-2 LSE": (LSE, returns(lambda x: (x[0], x[1] * 1.442695)), {}, "softmax_lse of sequence"),
    "+inf for empty rows": (LSE, returns(lambda x: (x[0], x[1].abs())), {}, "in a row that sees no key"),
    "LSE transposed": (LSE, returns(lambda x: (x[0], x[1].transpose(1, 2))), {}, "softmax_lse is torch.float32 (7, 1, 8)"),
    "another dtype": (DECODE, returns(lambda x: x.bfloat16()), {}, "out is bfloat16"),
    "out unused": (OUT, given(lambda a: a.pop("out")), {}, "out was given and not written"),
    "out left as it was": (OUT, lambda function, a: a["out"], {}, "NaN in sequence 0"),
    "a row unwritten": (DECODE, unwritten, {}, "NaN in sequence 6"),
    "the cache changed": (DECODE, changed, {}, "k_cache after the call differs"),
    "q changed": (DECODE, lambda function, a: (function(**a), a["q"].mul_(2))[0], {}, "q was changed by the call"),
    "q scaled before the call": (DECODE, given(lambda a: a["q"].mul_(1.5)), {}, "q was changed by the call"),
    "lengths changed": (DECODE, lambda function, a: (function(**a), a["cache_seqlens"].add_(1))[0], {}, "cache_seqlens was changed"),
    "the last key dropped": (DECODE, given(lambda a: a.update(cache_seqlens=(a["cache_seqlens"] - 1).clamp(min=0))), {}, "out of sequence"),
    "one key too many": (DECODE, given(lambda a: a.update(cache_seqlens=a["cache_seqlens"] + 1)), {}, "NaN in sequence 0"),
    "one head wrong": (DECODE, returns(lambda x: x.index_copy(2, torch.tensor([5]), x[:, :, 5:6] * 1.001)), {}, "head 5"),
    "the window dropped": ("dense sliding_window: decode", given(lambda a: a.pop("window_size")), {}, "out of sequence"),
    "only one side of a window": ("dense windows: extend", given(lambda a: a.update(window_size=(8, -1))), {}, "out of sequence"),
    "append forgotten": ("dense calls: extend bfloat16 8/2x128 append", lambda function, a: function(**{
        n: x for n, x in a.items() if n not in ("k", "v", "cu_seqlens_k_new")}), {}, "out of sequence"),
    "no kernel": (DECODE, None, {"bind": classmethod(lambda cls, config, platform, package: 1 // 0)}, "not bound: BindError"),
    "selection lets everything through": ("dense softcap: decode", returns(lambda x: x), {
        "features": frozenset(), "unsupported_reasons": classmethod(lambda cls, *a, **more: [])},
        "selection accepts softcap, which toy0 does not declare"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_is_failed(what: str, ends: Callable[..., Result]) -> None:
    begin, spoil, declarations, words = WRONG[what]
    result = ends(begin, spoil, **declarations)
    assert result.result == "failed", result.why
    assert words in result.why


def test_noise_is_not_deterministic(ends: Callable[..., Result]) -> None:
    """The second call differs in one bit, also where both calls write into the same `out`."""
    begin = "dense deterministic: decode"
    count = iter(range(99))
    result = ends(begin, returns(lambda x: x * (1 + 2**-7 * (next(count) % 2))))
    assert result.why == "deterministic was asked for, and a second call gave other bits"
    count = iter(range(99))
    memory: list[Any] = []

    def shared(function: Callable[..., Any], a: dict[str, Any]) -> Any:
        out = function(**a)
        if not memory:
            memory.append(out.clone())
        memory[0].copy_(out * (1 + 2**-7 * (next(count) % 2)))
        return memory[0]

    assert "other bits" in ends(begin, shared).why


def test_a_writer_that_takes_minus_one_for_a_slot(ends: Callable[..., Result]) -> None:
    def writer(cls: Any, config: Any) -> Any:
        right = TorchNative.write_kv_cache(config)

        def write(k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any, **scales: Any) -> None:
            right(k, v, k_cache, v_cache, slots.where(slots >= 0, 0), **scales)

        return write

    for begin in (DECODE, "dense fp8: decode"):
        result = ends(begin, returns(lambda x: x), write_kv_cache=classmethod(writer))
        assert (result.result, "after write_kv_cache differs at page" in result.why) == ("failed", True), result.why


def test_a_kit_that_contradicts_itself_judges_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when it is off by little: eager's error is what backends are allowed."""
    def off(*args: Any) -> Any:
        out, lse = eager(*args)
        return out * 1.01, lse

    monkeypatch.setattr(runner, "eager", off)
    with pytest.raises(KitError, match="eager and the oracle are .* apart: the kit is wrong"):
        Runner(TorchNative, detect("cpu"), 1).run(case_of("dense plain: decode bfloat16"))
    monkeypatch.setattr(runner, "eager", lambda *args: (eager(*args)[0], eager(*args)[1] + 0.01))
    with pytest.raises(KitError):
        Runner(TorchNative, detect("cpu"), 1).run(case_of("dense plain: decode bfloat16"))


def test_checks_are_on_only_while_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAL_CHECK", raising=False)
    seen = []
    with runner.checking():
        seen.append(os.environ["HAL_CHECK"])
    assert (seen, "HAL_CHECK" in os.environ) == (["1"], False)


# Declared words and their proofs.
def result(word: str, end: str, why: str = "") -> Result:
    return Result(f"case of {word}", end, why, 0.0, 0.0, 0.0, (word,))


def without(words: set[str]) -> list[Result]:
    return [result(w, "passed") for w in record.declared(TorchNative) if w not in words]


@pytest.mark.parametrize(("results", "why"), [
    ([], "no case asks for it"),
    ([("failed", "wrong")], "every case failed, the first: wrong"),
    ([("refused", "bad kernel"), ("failed", "wrong")], "declared, then refused: bad kernel"),
    ([("refused", "page_size 16 is not supported (toy: 16)")], "declared, then refused: page_size 16"),
    ([("refused", "page_size 1 is not supported (toy: 16)")], None),
    ([("refused", "arch x; page_size 1 is not supported"), ("refused", "dtype")], "declared, then refused: arch x"),
    ([("failed", "wrong"), ("passed", "")], None),
])
def test_unproven(results: list[tuple[str, str]], why: str | None) -> None:
    """A word counts as proven by a pass, or as not declared here if selection refuses that very word in every case."""
    word = "page_size 1"
    seen = record.unproven(TorchNative, without({word}) + [result(word, *r) for r in results])
    assert set(seen) == ({word} if why else set())
    assert why is None or seen[word].startswith(why)


def test_a_refusal_beside_an_undeclared_feature_tells_nothing_about_a_word() -> None:
    """The base of absorbed MLA has the head dims of an unequal pair: that MLA is refused is not about the pair."""
    class Plain(TorchNative):
        features = TorchNative.features - {"mla"}

    word = "head_dim 576/512"
    rest = [r for r in without({word, "mla"}) if r.features != (word,)]
    mla = Result("mla", "refused", "mla is not supported", 0.0, 0.0, 0.0, (word, "mla"))
    own = result(word, "refused", "head_dim 576 with head_dim_v 512 is not supported")
    assert record.unproven(Plain, [*rest, mla, own]) == {}
    assert record.unproven(Plain, [*rest, mla]) == {word: "no case asks for it"}
    assert record.unproven(TorchNative, [*without({word}), mla, own]) == {word: "declared, then refused: mla is not supported"}


def test_summary_counts_by_feature() -> None:
    results = [Result("a", "passed", "", 0.1234567, 0.2, 0.0, ("x", "y")), Result("b", "failed", "bad", 0, 0, 0, ("x",)),
               Result("c", "refused", "no", 0, 0, 0, ("y",))]
    made = record.summary(TorchNative, results, False)
    assert (made["passed"], made["failed"], made["refused"], made["unproven"]) == (1, 1, 1, {})
    assert made["by_feature"] == {"x": {"passed": 1, "failed": 1, "refused": 0},
                                  "y": {"passed": 1, "failed": 0, "refused": 1}}
    assert made["cases"] == [{"case": "a", "result": "passed", "error": 0.123, "bound": 0.2},
                             {"case": "b", "result": "failed", "why": "bad"},
                             {"case": "c", "result": "refused", "why": "no"}]


def test_backend_of(ends: Callable[..., Result]) -> None:
    assert backend_of("torch") is TorchNative
    assert backend_of("hal.backends.torch_native:TorchNative") is TorchNative
    for text, words in (("hal.config:AttentionConfig", "expected a subclass"), ("hal.config:Nope", "is None"),
                        ("no_such", "is not known")):
        with pytest.raises(ValueError, match=words):
            backend_of(text)


def test_a_class_with_a_taken_name_is_not_mistaken_for_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    import hal.backends.torch_native as module

    monkeypatch.setattr(module, "Other", type("Other", (TorchNative,), {"name": "torch"}), raising=False)
    with pytest.raises(ValueError, match="its name 'torch' is another backend's"):
        backend_of("hal.backends.torch_native:Other")
