"""What a mutant showed that no Case of the conformance kit can ask for, as checks of an impl."""

from __future__ import annotations

from collections.abc import Callable

from hal.attention import AttentionImpl
from hal.oracle import flash_attn_with_kvcache as truth


def descales_of_16_bits(attn: AttentionImpl) -> bool:
    """k_descale with a cache that is not fp8: the contract's check lets it pass, so it counts."""
    import torch

    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 8, 128), torch.randn(1, 20, 2, 128), torch.randn(1, 20, 2, 128)
    args = {"q": q.bfloat16(), "k_cache": k.bfloat16(), "v_cache": v.bfloat16(), "k_descale": torch.tensor(3.0)}
    got, want = attn.flash_attn_with_kvcache(**args), truth(**args)
    return bool((got.double() - want).abs().max() < 0.02)


def nan_that_nobody_sees(attn: AttentionImpl) -> bool:
    """NaN in tokens before the window, under a mask that is no window."""
    import torch

    torch.manual_seed(0)
    cache = torch.randn(1, 40, 2, 128).bfloat16()
    cache[:, :20] = float("nan")
    args = {"q": torch.randn(1, 3, 8, 128).bfloat16(), "k_cache": cache, "v_cache": cache, "causal": True,
            "window_size": (7, 0), "tree_mask": torch.eye(3, dtype=torch.bool)[None]}
    got, want = attn.flash_attn_with_kvcache(**args), truth(**args)
    return bool((got.double() - want).abs().max() < 0.02)


# What no Case can ask for: a true answer of the right backend, a false one of the mutant's.
CHECKS: dict[str, Callable[[AttentionImpl], bool]] = {
    "descales of a 16-bit cache": descales_of_16_bits,
    "NaN that no query sees": nan_that_nobody_sees,
}
