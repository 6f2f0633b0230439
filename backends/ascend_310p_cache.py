"""The cache and the masks of 310P's ops: tiles of 16 columns, in torch_npu's format NZ.

The last two dimensions (m, n) of a matrix lie as (n / 16, m, 16). Of a tensor that has this shape already, with m a
multiple of 16, format NZ changes the name alone: not one element moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from hal.backends import ascend_plans
from hal.backends.ascend_310p_rules import RULES
from hal.backends.ascend_plans import Slots, on_device
from hal.plan import Planner

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hal.config import AttentionConfig

NZ = 29  # ACL_FORMAT_FRACTAL_NZ
TILE: int = RULES["columns of a tile"].limit
HIDDEN = -60000.0  # ATB's tests of 310P add this to the scores that are not to count, in float16
_ALLOW = "ALLOW_INTERNAL_FORMAT"
_setting = threading.Lock()


def as_nz(x: Tensor) -> Tensor:
    """x [.., n / 16, m, 16] in format NZ. torch_npu gives it as ND, with a warning, unless
    torch.npu.config.allow_internal_format says otherwise, which other ops obey too: it is set for this cast alone."""
    import torch_npu

    core: Any = torch_npu._C
    with _setting:
        before = core._npu_getOption(_ALLOW)
        core._npu_setOption({_ALLOW: "enable"})
        try:
            x = torch_npu.npu_format_cast(x, NZ)
        finally:
            core._npu_setOption({_ALLOW: before.decode()})
    seen = format_of(x)
    if seen != NZ:
        raise RuntimeError(f"npu_format_cast gave format {seen}, not NZ ({NZ}), the only one that 310P's ops write "
                           "their caches in")
    return x


def format_of(x: Tensor) -> int:
    """Its aclFormat: torch_npu says it as a number or, in newer releases, as an enum."""
    import torch_npu

    return int(torch_npu.get_npu_format(x))


def shape(name: str, config: AttentionConfig, num_pages: int, page_size: int) -> tuple[int, int, int, int]:
    """Of one cache. Raises ValueError for a page size that does not go with the head dim."""
    for reason in size_reasons(name, config, page_size):
        raise ValueError(reason)
    return num_pages, config.num_kv_heads * config.head_dim // TILE, page_size, TILE


def size_reasons(name: str, config: AttentionConfig, page_size: int) -> list[str]:
    rule = RULES["head_dim * page_size"]
    return [f"head_dim {config.head_dim} with page_size {page_size} is not supported ({name}: head_dim * page_size "
            f"{rule})"] if rule.breaks(config.head_dim * page_size) else []


def caches(name: str, config: AttentionConfig, k: Tensor, v: Tensor, argument: str = "k_cache") -> None:
    """Raise ValueError for a cache of another layout."""
    wide = config.num_kv_heads * config.head_dim // TILE
    for which, x in ((argument, k), (argument.replace("k", "v", 1), v)):
        if x.dim() != 4 or (x.shape[1], x.shape[3]) != (wide, TILE) or not x.is_contiguous():
            raise ValueError(f"{which} {tuple(x.shape)} with strides {x.stride()} is not supported ({name}: contiguous "
                             f"[num_pages, {wide}, page_size, {TILE}] of new_kv_cache)")
    if k.shape != v.shape:
        raise ValueError(f"{argument.replace('k', 'v', 1)} {tuple(v.shape)} beside {argument} {tuple(k.shape)} is not "
                         f"supported ({name}: as many pages, of one size)")
    sizes = RULES["page_size"]
    if sizes.breaks(k.shape[2]):
        raise ValueError(f"page_size {k.shape[2]} is not supported ({name}: {sizes})")
    for reason in size_reasons(name, config, k.shape[2]):
        raise ValueError(reason)


@cache
def triangle(device: torch.device, size: int) -> Tensor:
    """[1, size / 16, size, 16] for size queries over as many keys: HIDDEN above the diagonal."""
    return rows(on_device(range(size), device), size)


def rows(last: Tensor, size: int) -> Tensor:
    """[1, size / 16, len(last), 16]: a row for each query, whose last visible key is `last` of it; HIDDEN after it."""
    import torch

    keys = torch.arange(size, device=last.device)
    mask = (keys > last[:, None]).half() * HIDDEN
    return as_nz(mask.view(1, -1, size // TILE, TILE).transpose(1, 2).contiguous())


def _slots(name: str) -> Planner:
    """Without those of -1, as int32: on 310P the op takes nothing else."""
    planned = ascend_plans.slots(name).make

    def ascend_310p_slots(device: torch.device, slot_mapping: Tensor, room: int) -> Slots:
        plan = planned(device, slot_mapping, room)
        return Slots(plan.source, plan.slots.int())

    return Planner(ascend_310p_slots)


def writer(name: str, config: AttentionConfig) -> Callable[..., None]:
    """_npu_reshape_and_cache: k, v [num_tokens, Hkv, D] in the cache's dtype."""
    import torch_npu

    planned = _slots(name)

    def write_kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                       k_scale: Any = None, v_scale: Any = None) -> None:
        for argument, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None:
                raise ValueError(f"{argument} is not supported ({name}: {argument} None, its cache is not fp8)")
        caches(name, config, k_cache, v_cache)
        for argument, new, pages in (("k", k, k_cache), ("v", v, v_cache)):
            if new.shape[1:] != (config.num_kv_heads, config.head_dim) or new.dtype != pages.dtype:
                raise ValueError(f"{argument} {new.dtype} {tuple(new.shape)} does not fit its cache ({name}: "
                                 f"{pages.dtype} [num_tokens, {config.num_kv_heads}, {config.head_dim}])")
            if format_of(pages) != NZ:
                raise ValueError(f"{argument}_cache of format {format_of(pages)} is not supported ({name}: NZ ({NZ}), "
                                 "as new_kv_cache makes it)")
        if slot_mapping.shape != k.shape[:1] or k.shape[0] != v.shape[0]:
            raise ValueError(f"slot_mapping {tuple(slot_mapping.shape)} with k {tuple(k.shape)} and v {tuple(v.shape)} "
                             f"is not supported ({name}: as many of each)")
        if not len(slot_mapping):
            return
        plan = planned(k.device, (slot_mapping,), (k_cache.shape[0] * k_cache.shape[2],))
        if plan.source is not None:
            k, v = k.index_select(0, plan.source), v.index_select(0, plan.source)
        if len(k):
            torch_npu._npu_reshape_and_cache(key=k.contiguous(), value=v.contiguous(), key_cache=k_cache,
                                             value_cache=v_cache, slot_indices=plan.slots)

    return write_kv_cache
