"""NVIDIA's backends over GPUs that are not here: choices, reasons, names, and MLA prefill through FlashAttention."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from data_cuda import ALIASES, CHOICES, MLA, REASONS

import hal
from hal import AttentionConfig, Platform, registry
from hal.backends import BACKENDS


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS", "HAL_CHECK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("device", "config", "prefill", "decode", "page_size"), CHOICES)
def test_choice(device: str, config: dict[str, Any], prefill: str, decode: str, page_size: int) -> None:
    decision = hal.explain(AttentionConfig(**config), device)
    assert (decision.prefill.chosen, decision.decode.chosen, decision.page_size) == (prefill, decode, page_size)
    assert decision.prefill.target
    assert decision.decode.target
    assert max(map(len, str(decision).splitlines())) <= 100


@pytest.mark.parametrize(("device", "backend", "phase", "config", "reason"), REASONS, ids=lambda v: str(v)[:40])
def test_reason(device: str, backend: str, phase: str, config: dict[str, Any], reason: str) -> None:
    candidates = getattr(hal.explain(AttentionConfig(**config), device), phase).candidates
    assert reason in next(c.reasons for c in candidates if c.backend == backend)


@pytest.mark.parametrize(("alias", "device", "config", "prefill", "decode"), ALIASES)
def test_alias(alias: str, device: str, config: dict[str, Any], prefill: str | None, decode: str | None) -> None:
    decision = hal.explain(AttentionConfig(**config), device, backend=alias)
    assert (decision.prefill.chosen, decision.decode.chosen) == (prefill, decode)


def test_fa3_for_mla_prefills_expanded_whatever_the_order() -> None:
    asked = hal.explain(AttentionConfig(**MLA), "cuda:sm90", decode_backend="flashmla", prefill_backend="fa3")
    assert (asked.prefill.chosen, asked.decode.chosen, asked.page_size) == ("flash_attn_3", "flashmla", 64)


def test_fp8_dense_flashmla_and_context_parallel_follow_the_package() -> None:
    fp8, shards = AttentionConfig(**MLA, kv_cache_dtype="fp8"), AttentionConfig(**MLA, context_parallel_size=2)
    for config, backend, packages, expected in (
            (fp8, "flashmla", "flash-mla",
             "kv_cache_dtype fp8_e4m3 is not supported by flash-mla (flashmla: with vllm)"),
            (shards, "flash_attn_mla", "flash-attn-3",
             "context_parallel 2 is not supported by flash-attn-3 (flash_attn_mla: with vllm)")):
        refused = hal.explain(config, "cuda:sm90", decode_backend=backend, packages=packages)
        assert expected in refused.decode.candidates[0].reasons
        served = hal.explain(config, "cuda:sm90", decode_backend=backend, packages=f"{packages},vllm")
        assert served.decode.chosen == backend
        assert str(served.decode.target).startswith("vllm.")


def test_declarations_name_their_sources_and_claim_nothing_more() -> None:
    for name in BACKENDS:
        backend = registry.get(name)
        assert backend.sources, name
        if not backend.adapter:
            assert not backend.levels, name
            assert not backend.evidence, name


@pytest.mark.parametrize(("backend", "arch", "module"), [
    ("flash_attn_3", "sm90", "flash_attn_interface"), ("flash_attn_2", "sm80", "flash_attn.flash_attn_interface")])
def test_mla_prefill_reads_no_latent_cache(backend: str, arch: str, module: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """An fp8 cache is decode's: expanded K and V are 16-bit, and the kvcache function is refused by name."""
    import torch
    vendor: Any = types.ModuleType(module)
    vendor.flash_attn_with_kvcache = vendor.flash_attn_varlen_func = (
        lambda q, k, v, *a, return_attn_probs=False, **given: q.new_zeros(*q.shape[:-1], v.shape[-1]))
    monkeypatch.setitem(sys.modules, module, vendor)
    cls = registry.get(backend)
    package = next(p for p in cls.packages if p.module == module)
    config = AttentionConfig(**{**MLA, "num_heads": 4, "kv_cache_dtype": "fp8"})
    bound = cls.bind(config, Platform("cuda", arch, "cuda"), package)
    q, k, v = torch.zeros(5, 4, 192), torch.zeros(5, 4, 192), torch.zeros(5, 4, 128)
    cu = torch.tensor([0, 5], dtype=torch.int32)
    assert bound.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5, causal=True).shape == (5, 4, 128)
    with pytest.raises(ValueError, match=rf"^k_descale .*\({backend}"):
        bound.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5, causal=True, k_descale=2.0)
    with pytest.raises(ValueError, match=f"flash_attn_with_kvcache is not supported for MLA .{backend}: "):
        bound.flash_attn_with_kvcache(q, k, v, cache_seqlens=cu)


def test_a_build_of_version_3_from_before_return_attn_probs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version number does not tell; every varlen call would be a TypeError."""
    vendor: Any = types.ModuleType("flash_attn_interface")
    vendor.flash_attn_with_kvcache = vendor.flash_attn_varlen_func = lambda q, k, v: q
    monkeypatch.setitem(sys.modules, "flash_attn_interface", vendor)
    cls = registry.get("flash_attn_3")
    with pytest.raises(RuntimeError, match=r"flash_attn_varlen_func has no return_attn_probs \(flash_attn_3: builds of "
                                           "flash-attn-3 from September 2025 on"):
        cls.bind(AttentionConfig(), Platform("cuda", "sm90", "cuda"), cls.packages[0])
