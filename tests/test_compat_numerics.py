"""flash_attn 2 and 3 as HAL serves them, against the float64 oracle: every function, random calls with poison.

A failing case prints its seed; HAL_TEST_SEED=<seed> repeats it, HAL_TEST_SEEDS=50 runs more of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import compat_cases as cases
import pytest
import torch

from hal.compat import flash_attn_interface, settings
from hal.compat.flash_attn import bert_padding
from hal.compat.flash_attn import flash_attn_interface as two
from hal.compat.flash_attn.layers import rotary

three = flash_attn_interface
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RUNS = 10 * int(os.environ.get("HAL_TEST_SEEDS", "1"))


@pytest.fixture(params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    settings.use(settings.Settings("cpu", request.param))
    yield request.param
    settings.use(None)


def seeds() -> Iterator[tuple[int, random.Random, torch.dtype]]:
    fixed = os.environ.get("HAL_TEST_SEED")
    for _ in range(1 if fixed else RUNS):
        seed = int(fixed) if fixed else random.randrange(2**31)
        rng = random.Random(seed)
        torch.manual_seed(seed)
        yield seed, rng, rng.choice(DTYPES)


def run(version: int, function: Any, make: Any, packed: bool) -> None:
    for seed, rng, dtype in seeds():
        call = make(rng, version, dtype)
        label = f"{function.__name__} HAL_TEST_SEED={seed} {dtype} {call.mask} widths {call.width_q}, {call.width_k}"
        with_lse = rng.random() < 0.7
        result = function(**call.keywords, return_attn_probs=with_lse)
        if not with_lse:
            result = (result, None)
        elif version == 2:
            assert len(result) == 3, label
            assert result[2].shape == (0,), label
            assert result[2].dtype == dtype, label
        cases.check(version, call, result[:2], packed, dtype, label)


@pytest.mark.parametrize(("name", "form"), [
    ("flash_attn_func", "func"), ("flash_attn_kvpacked_func", "kvpacked"), ("flash_attn_qkvpacked_func", "qkvpacked")])
def test_2_dense(backend: str, name: str, form: str) -> None:
    run(2, getattr(two, name), lambda *a: cases.dense(*a, form=form), False)


@pytest.mark.parametrize(("name", "form"), [
    ("flash_attn_varlen_func", "func"), ("flash_attn_varlen_kvpacked_func", "kvpacked"),
    ("flash_attn_varlen_qkvpacked_func", "qkvpacked")])
def test_2_packed(backend: str, name: str, form: str) -> None:
    run(2, getattr(two, name), lambda *a: cases.packed(*a, form=form), True)


def test_2_packed_over_pages(backend: str) -> None:
    run(2, two.flash_attn_varlen_func, lambda *a: cases.packed(*a, paged=True), True)


@pytest.mark.parametrize(("name", "form"), [("flash_attn_func", "func"), ("flash_attn_qkvpacked_func", "qkvpacked")])
def test_3_dense(backend: str, name: str, form: str) -> None:
    run(3, getattr(three, name), lambda *a: cases.dense(*a, form=form), False)


def test_3_packed(backend: str) -> None:
    run(3, three.flash_attn_varlen_func, cases.packed, True)


@pytest.mark.parametrize("version", [2, 3])
def test_with_kvcache(backend: str, version: int) -> None:
    function = (two if version == 2 else three).flash_attn_with_kvcache
    for seed, rng, dtype in seeds():
        call, rotates = cases.cached(rng, version, dtype)
        label = f"flash_attn_with_kvcache {version} HAL_TEST_SEED={seed} {dtype} {call.mask}"
        result = function(**call.keywords, return_softmax_lse=True)
        assert len(result) == (2 if version == 2 else 4), label
        assert all(x.shape == (0,) and x.dtype == torch.float32 for x in result[2:]), label
        packed = "cu_seqlens_q" in call.keywords
        cases.check(version, call, result[:2], packed, dtype, label, rotates)
        for b, want in enumerate(call.written):
            for got, one in zip(call.holds(b), want):
                # A rotated element may round the other way.
                torch.testing.assert_close(got, one, rtol=2e-2 if rotates else 0, atol=2e-2 if rotates else 0,
                                           msg=lambda text, label=label: f"{label}: the cache: {text}")
        again = function(**{name: value for name, value in call.keywords.items() if name not in ("k", "v")} | {
            "cache_seqlens": torch.tensor([len(w[0]) + s for w, s in zip(call.written, call.starts)], dtype=torch.int32)
        } | dict.fromkeys(("rotary_cos", "rotary_sin", *(["rotary_seqlens"] if version == 3 else []))))
        assert isinstance(again, torch.Tensor), label


def test_3_seqused(backend: str) -> None:
    for seed, rng, dtype in seeds():
        call = cases.packed(rng, 3, dtype)
        cu_q, cu_k = call.keywords["cu_seqlens_q"], call.keywords["cu_seqlens_k"]
        used_q = [rng.randint(0, int(n)) for n in cu_q.diff()]
        used_k = [rng.randint(0, int(n)) for n in cu_k.diff()]
        for b, n in enumerate(used_k):
            for name in "kv":
                call.keywords[name][int(cu_k[b]) + n:int(cu_k[b + 1])] = float("nan")
        out, lse = three.flash_attn_varlen_func(
            **call.keywords, seqused_q=torch.tensor(used_q, dtype=torch.int32),
            seqused_k=torch.tensor(used_k, dtype=torch.int32), return_attn_probs=True)
        rows = torch.cat([torch.arange(int(cu_q[b]), int(cu_q[b]) + n) for b, n in enumerate(used_q)])
        call.sequences = [cases.Sequence(s.q[:used_q[b]], s.k[:used_k[b]], s.v[:used_k[b]])
                          for b, s in enumerate(call.sequences)]
        cases.check(3, call, (out[rows], lse[:, rows]), True, dtype, f"seqused HAL_TEST_SEED={seed} {call.mask}")


@pytest.mark.parametrize("packed", [False, True])
def test_3_qv(backend: str, packed: bool) -> None:
    """Absorbed MLA: D of the rope part, Dv of the latent part, one KV head; the default scale counts both."""
    for seed, rng, dtype in seeds():
        call = (cases.packed if packed else cases.dense)(rng, 3, dtype)
        heads, dim_v = 4, rng.choice((64, 128))
        q = cases.tensor(*call.keywords["q"].shape[:-2], heads, 32, dtype=dtype)
        k = cases.tensor(*call.keywords["k"].shape[:-2], 1, 32, dtype=dtype)
        v = cases.tensor(*call.keywords["k"].shape[:-2], 1, dim_v, dtype=dtype)
        qv = cases.tensor(*q.shape[:-1], dim_v, dtype=dtype)
        cu_q, cu_k = (call.keywords.get(name) for name in ("cu_seqlens_q", "cu_seqlens_k"))
        call.keywords |= {"q": q, "k": k, "v": v, "qv": qv}
        call.sequences = [
            cases.Sequence(*(x[cu[b]:cu[b + 1]] if packed else x[b] for x, cu in
                             ((q, cu_q), (k, cu_k), (v, cu_k), (qv, cu_q)))) for b in range(len(call.sequences))]
        call.scale = call.keywords.get("softmax_scale") or (32 + dim_v) ** -0.5
        function = three.flash_attn_varlen_func if packed else three.flash_attn_func
        out, lse = function(**call.keywords, return_attn_probs=True)
        cases.check(3, call, (out, lse), packed, dtype, f"qv HAL_TEST_SEED={seed} {dtype} {call.mask}")


def test_3_fp8_with_descales(backend: str) -> None:
    for seed, rng, _ in seeds():
        call = cases.dense(rng, 3, torch.float32)
        batch, kv = call.keywords["k"].shape[0], call.keywords["k"].shape[2]
        scales = {f"{name}_descale": torch.rand(batch, kv) + 0.5 for name in "qkv"}
        for name in "qkv":
            call.keywords[name] = call.keywords[name].to(torch.float8_e4m3fn)
        out, lse = three.flash_attn_func(**call.keywords, **scales, return_attn_probs=True)
        group = call.keywords["q"].shape[2] // kv
        real = {name: call.keywords[name].float() * scales[f"{name}_descale"].repeat_interleave(
            group if name == "q" else 1, 1)[:, None, :, None] for name in "qkv"}
        call.sequences = [cases.Sequence(*(real[name][b] for name in "qkv")) for b in range(batch)]
        want, want_lse = cases._joined(cases.expected(3, call, cases.oracle), False)
        assert out.dtype == torch.bfloat16
        label = f"fp8 HAL_TEST_SEED={seed} {call.mask}"
        assert float((out.double() - want).abs().max()) < 0.05 * max(1.0, float(want.abs().max())), label
        finite = ~want_lse.isinf()
        assert float((lse.double() - want_lse)[finite].abs().max().nan_to_num() if finite.any() else 0) < 1e-2, label


@pytest.mark.parametrize("version", [2, 3])
def test_without_any_key(backend: str, version: int) -> None:
    """Output 0, and an LSE of +inf in both versions: no kernel runs, the host fills it (flash_api.cpp)."""
    q, k = torch.randn(2, 3, 4, 32), torch.zeros(2, 0, 2, 32)
    out, lse, *_ = (two if version == 2 else three).flash_attn_func(q, k, k, return_attn_probs=True)
    assert bool((out == 0).all())
    assert bool((lse == float("inf")).all())


# The forward ops beneath, which ring-flash-attn and diffusers call.

def test_forward_ops(backend: str) -> None:
    for _, rng, dtype in seeds():
        call = cases.dense(rng, 2, dtype)
        left, right = call.mask.get("window_size", (-1, -1))
        k = call.keywords
        result = two._flash_attn_forward(k["q"], k["k"], k["v"], 0.0, call.scale, call.mask.get("causal", False), left,
                                         right, k.get("softcap", 0.0), None, False)
        assert len(result) == 4
        cases.check(2, call, result[:2], False, dtype, "_flash_attn_forward")
        call = cases.packed(rng, 2, dtype)
        left, right = call.mask.get("window_size", (-1, -1))
        k = call.keywords
        result = two._wrapped_flash_attn_varlen_forward(
            k["q"], k["k"], k["v"], k["cu_seqlens_q"], k["cu_seqlens_k"], k["max_seqlen_q"], k["max_seqlen_k"], 0.0,
            call.scale, call.mask.get("causal", False), left, right, k.get("softcap", 0.0))
        cases.check(2, call, result[:2], True, dtype, "_flash_attn_varlen_forward")


def test_3_combine() -> None:
    """Parts over different keys give what all keys give; a part that saw nothing may hold anything."""
    for _ in range(RUNS):
        batch, rows, heads, dim = 2, 5, 3, 16
        s, v = torch.randn(batch, heads, rows, 40, dtype=torch.float64), torch.randn(batch, heads, 40, dim).double()
        parts = [slice(0, 7), slice(7, 8), slice(8, 40)]
        out = torch.stack([(s[..., p].softmax(-1) @ v[:, :, p]).transpose(1, 2) for p in parts]).float()
        lse = torch.stack([s[..., p].logsumexp(-1).transpose(1, 2) for p in parts]).float()
        none = torch.full_like(out[:1], float("nan")), torch.full_like(lse[:1], float("-inf"))
        got, got_lse = three.flash_attn_combine(torch.cat((out, none[0])), torch.cat((lse, none[1])))
        torch.testing.assert_close(got, (s.softmax(-1) @ v).transpose(1, 2).float())
        torch.testing.assert_close(got_lse, s.logsumexp(-1).transpose(1, 2).float())
        got, got_lse = three.flash_attn_combine(*none, out_dtype=torch.bfloat16)
        assert got.dtype == torch.bfloat16
        assert bool((got == 0).all())
        assert bool((got_lse == float("-inf")).all())
    given = torch.empty(batch, rows, heads, dim)
    assert three.flash_attn_combine(out, lse, given)[0] is given


# --- helpers beside attention ---

def test_unpad_and_pad() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]])
    x = torch.arange(24.0).view(3, 4, 2)
    tokens, places, cu, longest, used = bert_padding.unpad_input(x, mask)
    assert places.tolist() == [1, 2, 3, 4, 8, 9, 10, 11]
    assert cu.tolist() == [0, 3, 4, 8]
    assert cu.dtype == torch.int32
    assert (longest, used.tolist()) == (4, [3, 1, 4])
    assert torch.equal(tokens, x.view(12, 2)[places])
    assert torch.equal(bert_padding.pad_input(tokens, places, 3, 4), x * mask[..., None])
    assert torch.equal(bert_padding.pad_input(tokens, places.int(), 3, 4), x * mask[..., None])
    # A place that is kept without being a token counts in all but seqused.
    unused = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    tokens, places, cu, longest, used = bert_padding.unpad_input(x, mask, unused)
    assert (places.tolist()[:2], cu.tolist(), longest, used.tolist()) == ([0, 1], [0, 4, 5, 9], 4, [3, 1, 4])
    assert torch.equal(bert_padding.index_first_axis(x, torch.tensor([2, 0])), x[[2, 0]])
    assert bert_padding.index_put_first_axis(x[:2], torch.tensor([3, 1]), 5)[3].tolist() == x[0].tolist()


def test_unpad_concatenated_sequences() -> None:
    """FlashAttention's own example: rows that hold 2 + 3, 3 + 2 and 6 tokens of 6 places."""
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    x = torch.randn(3, 6, 4)
    tokens, places, cu, longest = bert_padding.unpad_input_for_concatenated_sequences(x, lengths)
    assert places.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17]
    assert (cu.tolist(), cu.dtype, longest) == ([0, 2, 5, 8, 10, 16], torch.int32, 6)
    assert torch.equal(tokens, x.view(18, 4)[places])


@pytest.mark.parametrize("pairs", [False, True])
def test_rotary(pairs: bool) -> None:
    angle = torch.rand(20, 6) * 6
    cos, sin = angle.cos(), angle.sin()
    x = torch.randn(2, 5, 3, 16)
    want = torch.stack([cases.oracle.rotate(x[b], cos, sin, start + torch.arange(5), pairs)
                        for b, start in enumerate((4, 9))]).float()
    starts = torch.tensor([4, 9])
    torch.testing.assert_close(rotary.apply_rotary_emb(x, cos, sin, pairs, seqlen_offsets=starts), want)
    torch.testing.assert_close(rotary.apply_rotary_emb(x[:1], cos, sin, pairs, seqlen_offsets=4), want[:1])
    flat = torch.cat((x[0, :3], x[1]))
    cu = torch.tensor([0, 3, 8], dtype=torch.int32)
    torch.testing.assert_close(rotary.apply_rotary_emb(flat, cos, sin, pairs, seqlen_offsets=starts, cu_seqlens=cu,
                                                       max_seqlen=5), torch.cat((want[0, :3], want[1])))
    assert rotary.apply_rotary_emb_func(x, cos, sin, pairs, inplace=True, seqlen_offsets=starts) is x
    torch.testing.assert_close(x, want)


def test_rotary_leaves_rows_past_the_sequences() -> None:
    """As the real kernel, whose programs are of sequences: cu_seqlens may end before the rows do."""
    angle = torch.rand(8, 4) * 6
    x = torch.randn(7, 2, 8)
    cu = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    for offsets in (0, 2, torch.tensor([1, 0, 3])):
        got = rotary.apply_rotary_emb(x, angle.cos(), angle.sin(), seqlen_offsets=offsets, cu_seqlens=cu, max_seqlen=3)
        want = rotary.apply_rotary_emb(x[:5], angle.cos(), angle.sin(), seqlen_offsets=offsets, cu_seqlens=cu,
                                       max_seqlen=3)
        assert torch.equal(got[:5], want)
        assert not torch.equal(want[1], x[1])
        assert torch.equal(got[5:], x[5:])


@pytest.mark.parametrize("packed", [False, True])
def test_rotary_waits_for_no_device(packed: bool) -> None:
    """On the meta device a value that the host asks for is an error: as a graph's capture would find."""
    shape, offsets = ((7, 2, 8), torch.zeros(2, device="meta", dtype=torch.int32)) if packed else ((2, 5, 2, 8), 3)
    x, cos = torch.empty(shape, device="meta"), torch.empty(20, 4, device="meta")
    cu = torch.empty(3, device="meta", dtype=torch.int32) if packed else None
    for start in (offsets, 0):
        assert rotary.apply_rotary_emb(x, cos, cos, seqlen_offsets=start, cu_seqlens=cu, max_seqlen=4).shape == shape
