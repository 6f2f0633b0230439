"""The oracle against hand-computed cases, identities and the brute-force reference (oracle_checks.py)."""

from __future__ import annotations

import os
import random

import pytest
import torch
from oracle_checks import CHECKS, int32, paged

from hal import oracle


@pytest.mark.parametrize("round", range(int(os.environ.get("HAL_TEST_SEEDS", "3"))))
@pytest.mark.parametrize("name", CHECKS)
def test_oracle(name: str, round: int) -> None:
    CHECKS[name](oracle)


def test_32k_tokens_fit_in_memory() -> None:
    """A 32k decode and a 32k extend of 300 queries: blocks, not a matrix, so the peak stays under 1 GiB."""
    import resource

    torch.manual_seed(seed := random.randrange(2**31))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    k, v = torch.randn(1, 32768, 2, 64), torch.randn(1, 32768, 2, 64)
    out, lse = oracle.flash_attn_with_kvcache(torch.randn(1, 300, 8, 64), k, v, causal=True, return_softmax_lse=True)
    assert bool(torch.isfinite(out).all()), seed
    assert bool(torch.isfinite(lse).all()), seed
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, f"{grown} KiB"


def test_poison_past_the_end_is_not_read() -> None:
    """Rows of pages past the end hold NaN and ids past the end are out of range: neither is touched."""
    cache = paged([3], 2, 1, 4)
    out = oracle.flash_attn_with_kvcache(torch.randn(1, 1, 1, 4), **cache, cache_seqlens=int32(3))
    assert bool(torch.isfinite(out).all())
