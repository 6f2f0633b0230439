"""The peer flex: torch's FlexAttention, compiled for each shape, reading physical pages through a BlockMask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.cpu import common
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

BLOCK = 128  # of queries, and of keys where there are no pages: FlexAttention's default
Mask = Callable[..., Any]


def flex(config: AttentionConfig, platform: Platform) -> Peer:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    common.refuse("flex", config, mla=(None,), kv_cache_dtype=("auto", config.dtype), attention_chunk=(None,),
                  sliding_window=(None,), softcap=(0.0,), sinks=(False,), causal=(True,))
    torch._dynamo.reset()  # its limit counts the shapes that one function was compiled for
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, shape: tuple[int, ...]) -> Tensor:
        out = compiled(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).reshape(shape)

    def prepare(function: str, call: dict[str, Any]) -> dict[str, Any]:
        queries, keys = common.lengths_of(function, call)
        if len(set(queries)) > 1 or len(set(keys)) > 1:
            raise ValueError("sequences of different lengths are not supported (this peer: one length a call)")
        batch, many = len(queries), queries[0]
        q = call["q"].reshape(batch, many, *call["q"].shape[-2:]).transpose(1, 2)
        if function == "flash_attn_varlen_func":
            k, v = (call[name].view(batch, keys[0], *call[name].shape[1:]).transpose(1, 2) for name in "kv")
            mask = _causal(many, keys[0])
        else:
            k, v = (call[name].flatten(0, 1).transpose(0, 1)[None] for name in ("k_cache", "v_cache"))
            mask = _paged(call["page_table"], call["k_cache"].shape[1], call["k_cache"].shape[0], many, keys[0])
        shape = (*call["q"].shape[:-1], v.shape[-1])
        return {"q": q, "k": k, "v": v, "mask": mask, "scale": common.scale_of(config, call), "shape": shape}

    return Peer(attend, attend, prepare=prepare, note="torch.compile(flex_attention, dynamic=False): compiled and its "
                "BlockMask made before the clock starts, as if shapes never changed")


def _causal(len_q: int, len_k: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, i, j: j <= i + len_k - len_q, None, None, len_q, len_k, device="cpu",
                             BLOCK_SIZE=BLOCK)


def _paged(table: Tensor, size: int, pages: int, len_q: int, len_k: int) -> Any:
    """A BlockMask over the whole cache, in which a sequence sees its own pages: those that some key of is masked as
    partial blocks, the others as full ones."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    batch, need = table.shape
    blocks = -(-len_q // BLOCK)
    logical = torch.zeros(batch, pages, dtype=torch.int64)  # physical page -> its place in the sequence
    logical.scatter_(1, table.long(), torch.arange(need).expand(batch, need))
    whole = (len_k - len_q + 1) // size  # pages that every query sees all of

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Any:
        at = logical[b, j // size] * size + j % size
        return at <= i + len_k - len_q

    def padded(ids: Tensor) -> Tensor:
        ids = torch.cat((ids, torch.zeros(batch, pages - ids.shape[1], dtype=torch.int32)), dim=1)
        return ids[:, None, None].expand(batch, 1, blocks, pages).contiguous()

    def count(number: int) -> Tensor:
        return torch.full((batch, 1, blocks), number, dtype=torch.int32)

    return BlockMask.from_kv_blocks(
        count(need - whole), padded(table[:, whole:]), count(whole), padded(table[:, :whole]), BLOCK_SIZE=(BLOCK, size),
        mask_mod=mask, seq_lengths=(len_q, pages * size), compute_q_blocks=False)
