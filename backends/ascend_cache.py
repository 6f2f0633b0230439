"""The paged cache as Ascend's ops take it: pages of 128 tokens, written through npu_scatter_pa_kv_cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backends.ascend_plans import Step, slots
from hal.backends.ascend_rules import RULES, check
from hal.kv_cache import new_kv_cache

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig

PAGE: int = RULES["page_size"].limit[0]


def writer(name: str) -> Callable[..., None]:
    """npu_scatter_pa_kv_cache: k, v [num_tokens, Hkv, D(v)] in the cache's dtype."""
    import torch_npu

    planned = slots(name)

    def write_kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                       k_scale: Any = None, v_scale: Any = None) -> None:
        for argument, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None:
                raise ValueError(f"{argument} is not supported ({name}: {argument} None, its cache is not fp8)")
        for argument, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
            if new.shape[1:] != cache.shape[2:] or new.dtype != cache.dtype or not cache.is_contiguous():
                raise ValueError(f"{argument} {new.dtype} {tuple(new.shape)} does not fit its cache ({name}: "
                                 f"contiguous, here {cache.dtype} {tuple(cache.shape)} with strides {cache.stride()})")
        if slot_mapping.shape != k.shape[:1] or k.shape[0] != v.shape[0]:
            raise ValueError(f"slot_mapping {tuple(slot_mapping.shape)} with k {tuple(k.shape)} and v {tuple(v.shape)} "
                             f"is not supported ({name}: as many of each)")
        if k_cache.shape[:2] != v_cache.shape[:2]:
            raise ValueError(f"v_cache {tuple(v_cache.shape)} beside k_cache {tuple(k_cache.shape)} is not supported "
                             f"({name}: as many pages, of one size)")
        if not len(slot_mapping):
            return
        plan = planned(k.device, (slot_mapping,), (k_cache.shape[0] * k_cache.shape[1],))
        if plan.source is not None:
            k, v = k.index_select(0, plan.source), v.index_select(0, plan.source)
        if len(k):  # cache_mode: its default is another layout
            torch_npu.npu_scatter_pa_kv_cache(key=k.contiguous(), value=v.contiguous(), key_cache=k_cache,
                                              value_cache=v_cache, slot_mapping=plan.slots, cache_mode="Norm")

    return write_kv_cache


def new_cache(name: str, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
    """As everywhere, within what the op can address."""
    width = max(config.head_dim, config.v_dim) if config.mla is None else config.v_dim  # MLA: the latent part
    check(name, None, "elements of the cache", num_pages * page_size * config.num_kv_heads * width)
    return new_kv_cache(config, device, num_pages, page_size)


def pages(name: str, argument: str, cache: Tensor) -> Tensor:
    """[num_pages, 128, Hkv * D]: a cache with the heads apart would be read as another layout."""
    if cache.shape[1] != PAGE or not cache.is_contiguous():
        raise ValueError(f"{argument} {tuple(cache.shape)} with strides {cache.stride()} is not supported ({name}: "
                         f"contiguous [num_pages, {PAGE}, num_kv_heads, head_dim])")
    check(name, None, "elements of the cache", cache.numel())
    return cache.view(cache.shape[0], PAGE, -1)


def both(name: str, **caches: Tensor) -> list[Tensor]:
    """pages() of two caches, with as many pages each: TILING compares all but the last dimension."""
    one, other = [pages(name, argument, cache) for argument, cache in caches.items()]
    if one.shape[0] != other.shape[0]:
        first, second = caches
        raise ValueError(f"{second} of {other.shape[0]} pages beside {first} of {one.shape[0]} is not supported "
                         f"({name}: as many of each)")
    return [one, other]


def table_rows(name: str, page_table: Tensor, batch: int) -> Tensor:
    """A row for each sequence, as the op wants them; a table with room for more sequences is cut."""
    if page_table.shape[0] < batch:
        raise ValueError(f"page_table with {page_table.shape[0]} rows is not supported ({name}: {batch}, as there are "
                         "sequences)")
    return page_table if page_table.shape[0] == batch else page_table[:batch]


def paged(table: Tensor | None, step: Step) -> dict[str, Any]:
    """The op's arguments about pages; without a table there are none."""
    return {"block_table": table if step.table is None else step.table, "block_size": 0 if table is None else PAGE}
