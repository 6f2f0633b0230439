"""The torch backend against the oracle: random calls over every feature, page size, dtype and head layout.

A failing case prints its seed; HAL_TEST_SEED=<seed> runs that case alone.
"""

from __future__ import annotations

import copy
import os
import random
import threading
from typing import Any

import pytest
import torch
from cases import FEATURES, kvcache_case, pick_features, varlen_case
from judge import eager, judge

import hal
from hal import oracle

FAST = 40 * int(os.environ.get("HAL_TEST_SEEDS", "1"))
PAGES = (None, 1, 16, 32, 64, 128, 256)
# group, head_dim, head_dim_v
SHAPES = ((1, 32, 32), (4, 64, 64), (8, 128, 128), (3, 40, 40), (2, 192, 128), (2, 256, 256))
ATTN = hal.get_attention_impl(hal.AttentionConfig(dtype="float32"), device="cpu", backend="torch")


def clone(args: dict[str, Any]) -> dict[str, Any]:
    """Deep enough that an append into one copy leaves the other alone; strides are kept."""
    return {n: copy.deepcopy(x) if isinstance(x, torch.Tensor) else x for n, x in args.items()}


def run(function: str, args: dict[str, Any], lse: bool, label: str) -> None:
    """One call on the torch backend and the oracle; outputs poisoned before the call, caches compared after it."""
    dtype = args["q"].dtype
    copies = [clone(args) for _ in range(3)]
    rows = oracle._rows(args["q"], args.get("cu_seqlens_q"), args.get("seqused_q"))
    shape = (*args["q"].shape[:-1], (args["v_cache"] if "v_cache" in args else args["v"]).shape[-1])
    out = torch.full(shape, float("nan"), dtype=dtype)
    got = getattr(ATTN, function)(**copies[0], out=out, return_softmax_lse=lse)
    assert (got[0] if lse else got).data_ptr() == out.data_ptr(), f"{label}: out was not written in place"
    want = getattr(oracle, function)(**copies[1], return_softmax_lse=True)
    rough = getattr(eager(dtype), function)(**copies[2], return_softmax_lse=True)
    judge(got if lse else (got, None), want, rough, rows, args.get("cu_seqlens_q") is not None, label, dtype,
          rotary="rotary_cos" in args)
    for name in ("k_cache", "v_cache"):
        if name in args:
            a, b = copies[0][name].float().nan_to_num(777), copies[1][name].float().nan_to_num(777)
            # Only a rotation rounds; everything else must be there bit for bit.
            tolerance = 1e-2 if "rotary_cos" in args else 0.0
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), f"{label}: {name} differs after the call"


def seeds(count: int, offset: int) -> list[int]:
    fixed = os.environ.get("HAL_TEST_SEED")
    if fixed:
        return [int(fixed)]
    fresh = random.SystemRandom().randrange(2**31 - count - 10**6)
    return [fresh + offset + n for n in range(count)]


def one(function: str, seed: int, must: set[str]) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    allowed = tuple(f for f in FEATURES if function == "flash_attn_with_kvcache" or f not in (
        "append", "rotary", "leftpad", "batch_idx", "sparse", "fp8", "strided"))
    features = pick_features(rng, allowed)
    if must:
        from cases import EXCLUDES

        features -= {f for m in must for f in EXCLUDES.get(m, set())} | {
            other for other, out in EXCLUDES.items() if must & out}
        features |= must
    if "rotary" in features:
        features |= {"append"}
    group, dim, dim_v = (4, 64, 512) if "qv" in features else rng.choice(SHAPES)
    dtype = rng.choice(("float32", "bfloat16", "float16"))
    label = f"{function} HAL_TEST_SEED={seed} {dtype} {sorted(features)}"
    if function == "flash_attn_with_kvcache":
        args = kvcache_case(rng, features, dtype, rng.choice(PAGES), group, dim, dim_v)
    else:
        args = varlen_case(rng, features, dtype, group, dim, dim_v)
    try:
        run(function, args, "lse" in features, label)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("feature", [None, *FEATURES])
def test_kvcache(feature: str | None) -> None:
    """Every feature with random company, on cases of its own."""
    for seed in seeds(FAST // 4, hash(feature) % 10**6):
        one("flash_attn_with_kvcache", seed, {feature} if feature else set())


@pytest.mark.parametrize("feature", [None, "causal", "window", "both_windows", "chunk", "softcap", "sinks", "lse",
                                     "tree_mask", "mm_prefix", "qv", "cp", "scale"])
def test_varlen(feature: str | None) -> None:
    for seed in seeds(FAST // 4, hash(feature) % 10**6):
        one("flash_attn_varlen_func", seed, {feature} if feature else set())


def test_long_sequences() -> None:
    """32k decode and a 9k extend: the block paths."""
    torch.manual_seed(seed := random.randrange(2**31))
    cache = torch.randn(2, 32768, 2, 64, dtype=torch.bfloat16)
    lens = torch.tensor([32768, 9001], dtype=torch.int32)
    base = {"k_cache": cache, "v_cache": cache.flip(1), "cache_seqlens": lens, "causal": True}
    run("flash_attn_with_kvcache", base | {"q": torch.randn(2, 1, 8, 64).bfloat16()}, True, f"32k decode, seed {seed}")
    packed = {"cu_seqlens_q": torch.tensor([0, 300, 301], dtype=torch.int32), "max_seqlen_q": 300}
    run("flash_attn_with_kvcache", base | packed | {"q": torch.randn(301, 8, 64).bfloat16(), "window_size": (5000, 0)},
        False, f"extend, seed {seed}")


def test_paged_varlen() -> None:
    """varlen over a paged cache equals the kvcache function, which is judged above."""
    torch.manual_seed(random.randrange(2**31))
    cache = torch.randn(9, 16, 2, 64)
    table = torch.tensor([[3, 1, 8], [0, 5, 2]], dtype=torch.int32)
    lens, cu = torch.tensor([40, 17], dtype=torch.int32), torch.tensor([0, 5, 6], dtype=torch.int32)
    q = torch.randn(6, 4, 64)
    a = ATTN.flash_attn_varlen_func(q, cache, cache, cu, None, 5, 48, seqused_k=lens, page_table=table, causal=True)
    b = ATTN.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=lens, page_table=table, cu_seqlens_q=cu,
                                     max_seqlen_q=5, causal=True)
    assert torch.equal(a, b)
    want = oracle.flash_attn_varlen_func(q, cache, cache, cu, None, 5, 48, seqused_k=lens, page_table=table,
                                         causal=True)
    assert (a - want).abs().max() < 1e-5


@pytest.mark.parametrize("mask", [{"causal": True}, {"causal": True, "window_size": (2000, 0)}, {}])
def test_unequal_head_dims_need_no_score_matrix(mask: dict[str, Any]) -> None:
    """DeepSeek's prefill, 192 and 128: 4096 x 4096 scores of 8 heads would be 1.3 GiB; blocks need far less."""
    import resource

    torch.manual_seed(seed := random.randrange(2**31))
    q, k, v = (torch.randn(1, 4096, heads, dim).bfloat16() for heads, dim in ((8, 192), (8, 192), (8, 128)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = ATTN.flash_attn_with_kvcache(q, k, v, **mask)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 << 10, f"{grown} KiB more"
    want = oracle.flash_attn_with_kvcache(q[:, -3:], k, v, **mask)
    assert (out[:, -3:] - want).abs().max() < 1e-2, seed


@pytest.mark.parametrize("shape", [(2, 0, 4, 16), (0, 3, 4, 16)])
def test_nothing_to_ask(shape: tuple[int, ...]) -> None:
    """No query, or no sequence: an empty answer, and the append still happens."""
    batch = shape[0]
    cache, new = torch.zeros(batch, 9, 2, 16), torch.ones(batch, 2, 2, 16)
    lens = torch.full((batch,), 3, dtype=torch.int32)
    out, lse = ATTN.flash_attn_with_kvcache(torch.randn(shape), cache, cache.clone(), k=new, v=new, cache_seqlens=lens,
                                            return_softmax_lse=True)
    assert (out.shape, lse.shape) == (shape, (shape[0], shape[2], shape[1]))
    assert bool((cache[:, 3:5] == 1).all())
    assert not bool(cache[:, 5:].any())


def test_unseen_keys_have_no_influence_under_any_mask() -> None:
    """NaN before the window stays there even where a tree or a prefix range makes the mask irregular."""
    cache = torch.randn(1, 40, 1, 32)
    cache[:, :20] = float("nan")
    q = torch.randn(1, 3, 2, 32)
    tree = torch.eye(3, dtype=torch.bool)[None]
    ranges = torch.tensor([[[38, 40]]], dtype=torch.int32)
    for mask in ({"tree_mask": tree}, {"mm_prefix_ranges": ranges}, {"tree_mask": tree, "softcap": 2.0}):
        args = {"causal": True, "window_size": (7, 0), **mask}
        got, want = (f(q, cache, cache, **args) for f in (ATTN.flash_attn_with_kvcache, oracle.flash_attn_with_kvcache))
        assert (got - want).abs().max() < 1e-5


def test_only_pages_inside_the_window_are_read() -> None:
    """Pages wholly before the window hold NaN here and the answer is finite."""
    cache = torch.randn(8, 16, 1, 32)
    table = torch.arange(8, dtype=torch.int32)[None]
    cache[:5] = float("nan")
    out = ATTN.flash_attn_with_kvcache(torch.randn(1, 1, 2, 32), cache, cache, page_table=table, causal=True,
                                       cache_seqlens=torch.tensor([128], dtype=torch.int32), window_size=(31, 0))
    assert bool(torch.isfinite(out).all())


def test_threads_share_one_impl() -> None:
    """An impl holds no state: sixteen calls on four threads give what one thread gives."""
    torch.manual_seed(0)
    q, cache = torch.randn(16, 2, 4, 64), torch.randn(16, 33, 2, 64)
    want = [ATTN.flash_attn_with_kvcache(q[i : i + 1], cache[i : i + 1], cache[i : i + 1]) for i in range(16)]
    got: list[Any] = [None] * 16

    def work(start: int) -> None:
        for i in range(start, 16, 4):
            got[i] = ATTN.flash_attn_with_kvcache(q[i : i + 1], cache[i : i + 1], cache[i : i + 1])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_config_scale_is_the_default() -> None:
    """softmax_scale=None means the config's; MLA with neither raises, naming it."""
    config = hal.AttentionConfig(dtype="float32", softmax_scale=0.07)
    scaled = hal.get_attention_impl(config, device="cpu", backend="torch")
    q, cache = torch.randn(1, 1, 2, 32), torch.randn(1, 9, 1, 32)
    want = oracle.flash_attn_with_kvcache(q, cache, cache, softmax_scale=0.07)
    assert (scaled.flash_attn_with_kvcache(q, cache, cache) - want).abs().max() < 1e-5
    with pytest.raises(ValueError, match="softmax_scale: got None, expected a number with qv"):
        ATTN.flash_attn_with_kvcache(q, cache, cache, qv=q)
