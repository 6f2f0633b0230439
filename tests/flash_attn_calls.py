"""Calls of the FlashAttention family on an emulated machine, and what they should give."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from emulators.devices import on, plain_of
from flash_attn_machines import DEVICE, Machine

from hal import AttentionConfig, oracle, registry
from hal.packages import Packages

H, HKV, D = 8, 2, 64
CONFIG = {"num_heads": H, "num_kv_heads": HKV, "head_dim": D}


def device_tensor(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return on(torch.randn(shape, generator=generator).to(dtype), DEVICE)


def ints(*values: int) -> Any:
    return on(torch.tensor(values, dtype=torch.int32), DEVICE)


def bind(machine: Machine, backend: str, **config: Any) -> Any:
    settings = AttentionConfig(**(config if "mla" in config else {**CONFIG, **config}))
    package = registry.get(backend).package_for(Packages.named(machine.packages), settings)
    return registry.get(backend).bind(settings, machine.platform, package)


def vendor_function(machine: Machine, name: str) -> Any:
    [vendor] = machine.vendors.values()
    dotted = next(f for f in vendor.functions if f.endswith(f".{name}"))
    return lambda **arguments: vendor._call(dotted, (), arguments)


def paged(page_size: int, lens_q: tuple[int, ...], lens_k: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Packed queries of HAL's function over a cache of two pages a sequence."""
    pages = 2 * len(lens_k)
    return {"q": device_tensor(sum(lens_q), H, D), "k_cache": device_tensor(pages, page_size, HKV, D, seed=1),
            "v_cache": device_tensor(pages, page_size, HKV, D, seed=2), "cache_seqlens": ints(*lens_k),
            "page_table": ints(*reversed(range(pages))).view(len(lens_k), 2), "max_seqlen_q": max(lens_q),
            "cu_seqlens_q": ints(*itertools.accumulate(lens_q, initial=0)), "causal": True, **more}


def two_of(call: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The same for version 2's varlen function, as one would write it."""
    lens = plain_of(call["cache_seqlens"]).tolist()
    return {"q": call["q"], "k": call["k_cache"], "v": call["v_cache"], "cu_seqlens_q": call["cu_seqlens_q"],
            "cu_seqlens_k": ints(*itertools.accumulate(lens, initial=0)), "max_seqlen_q": call["max_seqlen_q"],
            "max_seqlen_k": max(lens), "block_table": call["page_table"], "causal": True, "return_attn_probs": True,
            **more}


def truth(call: dict[str, Any], function: str = "flash_attn_with_kvcache") -> tuple[torch.Tensor, torch.Tensor]:
    host = {name: plain_of(x) if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    out, lse = getattr(oracle, function)(**{**host, "return_softmax_lse": True})
    return out, lse


def same(got: Any, wanted: torch.Tensor) -> bool:
    return torch.allclose(plain_of(got).double(), wanted.double(), atol=2e-2, rtol=2e-2)


def right(bound: Any, call: dict[str, Any]) -> bool:
    got, want = bound.flash_attn_with_kvcache(**call, return_softmax_lse=True), truth(call)
    return len(got) == 2 and all(map(same, got, want))
