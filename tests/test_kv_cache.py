"""new_kv_cache and write_kv_cache: what is written is what attention reads."""

from __future__ import annotations

import random

import pytest
import torch
from emulators.devices import Devices, on

import hal
from hal import oracle
from hal.kv_cache import write_kv_cache


def impl(**fields: object) -> hal.AttentionImpl:
    base = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "dtype": "float32"}
    return hal.get_attention_impl(hal.AttentionConfig(**{**base, **fields}), device="cpu", backend="torch")


def test_new_cache_is_zero_and_shaped() -> None:
    k, v = impl(head_dim_v=6, page_size=32).new_kv_cache(3)
    assert (k.shape, v.shape) == ((3, 32, 2, 8), (3, 32, 2, 6))
    assert not bool(k.any())
    assert not bool(v.any())
    assert impl().new_kv_cache(3, page_size=5)[0].shape == (3, 5, 2, 8)
    rope, latent = impl(num_heads=16, num_kv_heads=1, head_dim=576, mla=True, dtype="bfloat16").new_kv_cache(2)
    assert (rope.shape, latent.shape) == ((2, 16, 1, 64), (2, 16, 1, 512))
    assert impl(kv_cache_dtype="fp8_e5m2").new_kv_cache(1)[0].dtype == torch.float8_e5m2


@pytest.mark.parametrize("strided", [False, True])
def test_write_then_attend(strided: bool) -> None:
    """Tokens written at shuffled slots, -1 skipped, are what the oracle sees in a dense cache."""
    torch.manual_seed(seed := random.randrange(2**31))
    attn = impl(page_size=4)
    k_cache, v_cache = attn.new_kv_cache(6)
    if strided:
        both = torch.zeros(6, 2, 4, 16)
        k_cache, v_cache = both[..., :8].transpose(1, 2), both[..., 8:].transpose(1, 2)
    k, v = torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    table = torch.tensor([[4, 1, 3]], dtype=torch.int32)
    slots = torch.tensor([int(table[0, t // 4]) * 4 + t % 4 for t in range(9)])
    padded = torch.cat([slots, torch.tensor([-1, -1])])
    poison = torch.full((2, 2, 8), float("nan"))
    attn.write_kv_cache(torch.cat([k, poison]), torch.cat([v, poison]), k_cache, v_cache, padded)
    q, lens = torch.randn(1, 3, 4, 8), torch.tensor([9], dtype=torch.int32)
    got = attn.flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=lens, page_table=table, causal=True)
    want = oracle.flash_attn_with_kvcache(q, k[None], v[None], causal=True)
    assert (got - want).abs().max() < 1e-5, seed
    untouched = [p for p in range(6) if p not in (4, 1, 3)]
    assert not bool(k_cache[untouched].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("slots", [[], [-1], [-1, -1, -1], [0], [0, -1], [-1, 0, -1, -1], [7, 5, 3],
                                   [-1, 7, 3, -1, 0, -1], [-1, 23, -1, -1, 9]])
def test_skipped_slots_change_nothing(slots: list[int], strided: bool, device: str, dtype: torch.dtype) -> None:
    """Bit for bit what a loop over the tokens writes, whatever the skipped ones hold."""
    old = torch.randn(6, 4, 2, 16).to(dtype)
    new = torch.randn(2, len(slots), 2, 8)
    new[:, [i for i, slot in enumerate(slots) if slot < 0]] = torch.nan
    new = new.to(dtype)
    both = old.clone()
    caches = (both[..., :8], both[..., 8:]) if strided else (both[..., :8].clone(), both[..., 8:].clone())
    want = [old[..., :8].clone(), old[..., 8:].clone()]
    for cache, tokens in zip(want, new):
        for slot, token in zip(slots, tokens):
            if slot >= 0:
                cache[slot // 4, slot % 4] = token
    slot_mapping = torch.tensor(slots, dtype=torch.int64)
    with Devices("cuda:0") as devices:
        write_kv_cache(*(x if device == "cpu" else on(x, device) for x in (*new, *caches, slot_mapping)))
        assert not devices.syncs
    for cache, expected in zip(caches, want):
        assert torch.equal(cache.contiguous().view(torch.uint8), expected.view(torch.uint8))


def test_writing_does_not_wait_for_the_device() -> None:
    with Devices("cuda:0") as devices:
        k, cache = torch.randn(3, 2, 8, device="cuda:0"), torch.zeros(2, 6, 4, 2, 8, device="cuda:0")
        slots = torch.tensor([5, -1, 2], device="cuda:0")
        before = len(devices.syncs)
        write_kv_cache(k, k, cache[0], cache[1], slots)
        assert devices.syncs[before:] == []
        assert cache[0].flatten(0, 1)[[5, 2]].tolist() == k[[0, 2]].tolist()


def test_caches_are_normal_tensors_under_inference_mode() -> None:
    attn = impl(page_size=4)
    with torch.inference_mode():
        caches = attn.new_kv_cache(2)
    assert not any(cache.is_inference() for cache in caches)
    attn.write_kv_cache(torch.ones(1, 2, 8), torch.ones(1, 2, 8), *caches, torch.tensor([3]))


@pytest.mark.parametrize(("name", "dtype", "step"), [("fp8_e4m3", torch.float8_e4m3fn, 2.0**-4),
                                                     ("fp8_e5m2", torch.float8_e5m2, 2.0**-3)])
def test_fp8_write_divides_and_clamps(name: str, dtype: torch.dtype, step: float) -> None:
    """real = stored * scale, to one rounding (3 and 2 bits of mantissa); beyond the range it clamps, never NaN."""
    attn = impl(kv_cache_dtype=name)
    k_cache, v_cache = attn.new_kv_cache(1)
    k = torch.tensor([1.0, -3.0, 0.5, 7.0, 1e9, -1e9, 0.0, 2.0]).expand(1, 2, 8).contiguous()
    scale = torch.tensor([2.0, 4.0])
    attn.write_kv_cache(k, k, k_cache, v_cache, torch.tensor([5]), k_scale=scale, v_scale=2.0)
    real = k_cache[0, 5].float() * scale[:, None]
    limit = torch.finfo(dtype).max
    want = torch.stack([k[0, h].clamp(-limit * s, limit * s) for h, s in enumerate(scale.tolist())])
    assert bool(((real - want).abs() <= want.abs() * step).all())
    assert bool(torch.isfinite(v_cache.float()).all())
    out = attn.flash_attn_with_kvcache(torch.zeros(1, 1, 4, 8), k_cache[:, 5:6], v_cache[:, 5:6],
                                       k_descale=scale[None], v_descale=torch.tensor(2.0))
    assert bool(((out[0, 0, 0] - k[0, 0].clamp(-limit * 2, limit * 2)).abs() <= k[0, 0].abs() * step + 1e-6).all())
