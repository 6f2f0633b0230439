"""new_kv_cache and write_kv_cache: what is written is what attention reads."""

from __future__ import annotations

import random

import pytest
import torch

import hal
from hal import oracle


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
