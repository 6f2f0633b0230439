"""The drop-in flash_attn beside the emulators of the real packages, which others' readings of the sources went into.

The same call goes to both; outputs and softmax_lse must agree, infinities of empty rows included. 16 bits and heads
that the real kernels take; what an emulator does not know is left out of the calls, and says so here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import compat_cases as cases
import pytest
import torch
from emulators.devices import Devices, on, plain_of
from emulators.flash_attn_2 import FlashAttn2
from emulators.flash_attn_3 import FlashAttn3

from hal.compat import flash_attn_interface as three
from hal.compat import settings
from hal.compat.flash_attn import flash_attn_interface as two

CUDA = "cuda:0"
RUNS = 8 * int(os.environ.get("HAL_TEST_SEEDS", "1"))


@pytest.fixture(autouse=True)
def _torch_backend() -> Iterator[None]:
    settings.use(settings.Settings("cpu", "torch"))
    yield
    settings.use(None)


def calls(version: int, make: Any) -> Iterator[tuple[str, Any]]:
    fixed = os.environ.get("HAL_TEST_SEED")
    made = 0
    while made < (1 if fixed else RUNS):
        seed = int(fixed) if fixed else random.randrange(2**31)
        rng = random.Random(seed)
        torch.manual_seed(seed)
        call = make(rng, version, rng.choice((torch.bfloat16, torch.float16)))
        left, right = call.mask.get("window_size", (-1, -1))
        # Version 2's kernel bounds an open right side beside a left bound by the number of keys: not its documents.
        if version == 2 and left >= 0 and not 0 <= right < call.width_k and call.width_q > call.width_k:
            continue
        # Version 2, told of one query a sequence at most, wants exactly one of each.
        if version == 2 and call.width_q == 1 and any(len(s.q) != 1 for s in call.sequences):
            continue
        # Positions before the first key: the kernel divides a negative number by the chunk, which nobody documents.
        if call.mask.get("attention_chunk") and any(len(s.q) > len(s.k) for s in call.sequences):
            continue
        made += 1
        yield f"HAL_TEST_SEED={seed} {call.mask}", call


def same(label: str, got: Any, real: Any) -> None:
    out, lse = (plain_of(x).float() for x in real[:2])
    assert not bool(out.isnan().any()), label  # nothing that the kernel leaves unwritten
    torch.testing.assert_close(got[0].float(), out, rtol=2e-2, atol=2e-2, msg=lambda text: f"{label}: {text}")
    assert bool((got[1].isposinf() == lse.isposinf()).all()), f"{label}: +inf in other rows"
    assert bool((got[1].isneginf() == lse.isneginf()).all()), f"{label}: -inf in other rows"
    finite = lse.isfinite()
    torch.testing.assert_close(got[1][finite], lse[finite], rtol=2e-3, atol=2e-3, msg=lambda text: f"{label}: {text}")


def emulated(vendor: Any, module: str, name: str, keywords: dict[str, Any]) -> Any:
    """What the emulator of the package gives for copies of the arguments, on its device."""
    import importlib

    with Devices(CUDA), vendor.installed():
        there = {key: on(x.clone(), CUDA) if isinstance(x, torch.Tensor) else x for key, x in keywords.items()}
        return getattr(importlib.import_module(module), name)(**there)


def test_2_packed() -> None:
    for label, call in calls(2, cases.packed):
        real = emulated(FlashAttn2(arch="sm90"), "flash_attn.flash_attn_interface", "flash_attn_varlen_func",
                        call.keywords | {"return_attn_probs": True})
        got = two.flash_attn_varlen_func(**call.keywords, return_attn_probs=True)
        same(label, got, real)
        assert plain_of(real[2]).shape == got[2].shape == (0,)


def test_3_packed() -> None:
    for label, call in calls(3, cases.packed):
        real = emulated(FlashAttn3(arch="sm90"), "flash_attn_interface", "flash_attn_varlen_func",
                        call.keywords | {"return_attn_probs": True})
        same(label, three.flash_attn_varlen_func(**call.keywords, return_attn_probs=True), real)


def cached(rng: random.Random, version: int, dtype: torch.dtype) -> Any:
    """Calls that the real kernels take, and whose append is not subject to their traps: new tokens that a window, or a
    sequence without queries, leaves unwritten (backends/flash_attn_cache.py writes those itself)."""
    while True:
        call, _ = cases.cached(rng, version, dtype)
        given = call.keywords
        if isinstance(given["cache_seqlens"], int):  # the release of 2 makes as many of it as the cache has rows
            given["cache_seqlens"] = torch.full((len(call.sequences),), given["cache_seqlens"], dtype=torch.int32)
        kind, _, _ = cases.bounds(version, call.mask.get("causal", False), *call.mask.get("window_size", (-1, -1)),
                                  call.mask.get("attention_chunk", 0), call.width_q, call.width_k)
        rotary = given.get("rotary_cos")
        # Version 2 counts a group of heads as that many queries of a single one, and asks as many rows of the cache.
        group = call.keywords["q"].shape[-2] // given["k_cache"].shape[2] if version == 2 else 1
        if not ("block_table" in given or ("k" in given and (kind == "local" or "cu_seqlens_q" in given))
                or ("k" in given and group > call.width_k)
                or (rotary is not None and rotary.shape[1] % 8)):
            return call


@pytest.mark.parametrize("version", [2, 3])
def test_with_kvcache(version: int) -> None:
    vendor, module, ours = ((FlashAttn2(arch="sm90"), "flash_attn.flash_attn_interface", two) if version == 2 else
                            (FlashAttn3(arch="sm90"), "flash_attn_interface", three))
    for label, call in calls(version, cached):
        keywords = call.keywords | {"return_softmax_lse": True}
        real = emulated(vendor, module, "flash_attn_with_kvcache", keywords)
        got = ours.flash_attn_with_kvcache(**keywords)
        assert len(got) == len(real), label
        same(label, got, real)
