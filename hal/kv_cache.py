"""The default paged cache: allocation and the slot-wise write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.config import AttentionConfig
from hal.torch_import import load_torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FP8 = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


def new_kv_cache(config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Tensor, Tensor]:
    """Zero-filled (k_cache, v_cache), contiguous [num_pages, page_size, num_kv_heads, head_dim(_v)].

    With MLA: (rope cache [.., 1, 64], latent cache [.., 1, 512]), two buffers.
    """
    torch = load_torch()
    dtype = getattr(torch, FP8.get(config.stored_dtype, config.stored_dtype))
    k_dim, v_dim = config.head_dim, config.v_dim
    if config.mla is not None and not isinstance(config.mla, bool):
        k_dim, v_dim = config.mla.qk_rope_head_dim, config.mla.kv_lora_rank
    shape = (num_pages, page_size, config.num_kv_heads)
    return (torch.zeros(*shape, k_dim, dtype=dtype, device=device),
            torch.zeros(*shape, v_dim, dtype=dtype, device=device))


def write_kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                   k_scale: Tensor | float | None = None, v_scale: Tensor | float | None = None) -> None:
    """Write k, v [num_tokens, num_kv_heads, head_dim] at slots; slot = page * page_size + offset, int64.

    Slots of -1 are skipped. Nothing waits for the device, so a graph can capture it. k_scale and v_scale (scalar or
    [num_kv_heads]) divide before the cast into an fp8 cache: real = stored * scale. Raises ValueError, before anything
    is written, for shapes, dtypes, devices and (where the slots are on the host) slots out of range. Caches may be
    strided views; only the last dimension must be contiguous.
    """
    import torch

    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if new.dim() != 3 or cache.dim() != 4 or new.shape[1:] != cache.shape[2:]:
            heads = ", ".join(map(str, cache.shape[2:]))
            raise ValueError(f"{name} has shape {tuple(new.shape)}, expected [num_tokens, {heads}] "
                             f"to fit {name}_cache {tuple(cache.shape)}")
        if new.device != cache.device:
            raise ValueError(f"{name} is on {new.device}, expected {cache.device} as {name}_cache")
    if k.shape[0] != v.shape[0]:
        raise ValueError(f"v has {v.shape[0]} tokens, expected {k.shape[0]} as k")
    if k_cache.shape[:2] != v_cache.shape[:2]:
        raise ValueError(f"v_cache has {tuple(v_cache.shape[:2])} pages and page_size, expected "
                         f"{tuple(k_cache.shape[:2])} as k_cache")
    if slot_mapping.dtype != torch.int64 or slot_mapping.shape != (k.shape[0],):
        raise ValueError(f"slot_mapping is {slot_mapping.dtype} {tuple(slot_mapping.shape)}, expected torch.int64 "
                         f"({k.shape[0]},)")
    if slot_mapping.device != k.device:
        raise ValueError(f"slot_mapping is on {slot_mapping.device}, expected {k.device} as k")
    scaled = []
    for name, new, cache, scale in (("k_scale", k, k_cache, k_scale), ("v_scale", v, v_cache, v_scale)):
        if scale is None:
            if new.dtype != cache.dtype:
                raise ValueError(f"{name[0]} is {new.dtype} but {name[0]}_cache is {cache.dtype}: pass {name}, or "
                                 "convert: HAL never quantises silently")
        elif cache.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise ValueError(f"{name} is for fp8 caches, but {name[0]}_cache is {cache.dtype}")
        elif isinstance(scale, torch.Tensor) and scale.dim() not in (0, 1):
            raise ValueError(f"{name} has shape {tuple(scale.shape)}, expected a scalar or [num_kv_heads]")
        elif isinstance(scale, torch.Tensor) and scale.numel() not in (1, new.shape[1]):
            raise ValueError(f"{name} has {scale.numel()} values, expected 1 or num_kv_heads = {new.shape[1]}")
        scaled.append(new if scale is None else quantize(new, cache.dtype, scale))
    if not len(slot_mapping):
        return
    page_size, keep, on_host = k_cache.shape[1], slot_mapping >= 0, slot_mapping.device.type == "cpu"
    if on_host:
        end = k_cache.shape[0] * page_size
        bad = slot_mapping[(slot_mapping < -1) | (slot_mapping >= end)]
        if bad.numel():
            raise ValueError(f"slot_mapping holds {int(bad[0])}, expected -1 (skipped) or 0 to {end - 1}")
        source = keep.nonzero()[:, 0]
    else:
        # Filtering would make the host wait for the number of rows. So a skipped token repeats one that is written, its
        # slot and its bits, in whatever order they are stored; where all are skipped, each stores what slot 0 holds.
        written = keep.int().argmax(0, keepdim=True)
        source = torch.where(keep, torch.arange(len(keep), device=keep.device), written)
    slots = slot_mapping.index_select(0, source)
    any_kept = (slots[:1] >= 0)[:, None, None]
    pages, rows = slots.clamp(min=0) // page_size, slots.clamp(min=0) % page_size
    for new, cache in zip(scaled, (k_cache, v_cache)):
        if cache.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            new, cache = new.view(torch.uint8), cache.view(torch.uint8)
        new = new.index_select(0, source)
        cache[pages, rows] = new if on_host else torch.where(any_kept, new, cache[0, :1])


def quantize(x: Tensor, dtype: torch.dtype, scale: Tensor | float) -> Tensor:
    """x / scale as fp8, clamped to the format's range (torch's own cast gives NaN or inf beyond it)."""
    import torch

    limit = torch.finfo(dtype).max
    if isinstance(scale, torch.Tensor):
        scale = scale.to(x.device, torch.float32).reshape(-1, 1)
    return (x.float() / scale).clamp(-limit, limit).to(dtype)
