"""The peer mla_torch: absorbed MLA as somebody who knows torch would write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.cpu import common
from hal.bench.peers import Peer
from hal.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform


def mla_torch(config: AttentionConfig, platform: Platform) -> Peer:
    """A sequence at a time: gather its pages, two matrix products for the scores (the heads are the rows), a float32
    softmax, one product for the values."""
    import torch

    if config.mla is None:
        raise ValueError("mla None is not supported (mla_torch: absorbed MLA)")
    common.refuse("mla_torch", config, kv_cache_dtype=("auto", config.dtype), attention_chunk=(None,),
                  sliding_window=(None,), softcap=(0.0,), sinks=(False,), causal=(True,))

    def attend(q: Tensor, qv: Tensor, rope: Tensor, latent: Tensor, table: Tensor, lengths: list[int],
               scale: float) -> Tensor:
        out = torch.empty_like(qv)
        for b, length in enumerate(lengths):
            pages = table[b, : -(-length // rope.shape[1])]
            k, c = (x[pages].flatten(0, 2)[:length] for x in (rope, latent))
            scores = torch.addmm(q[b, 0] @ k.T, qv[b, 0], c.T)
            p = torch.softmax(scores.float().mul_(scale), dim=-1).to(c.dtype)
            torch.mm(p, c, out=out[b, 0])
        return out

    def prepare(function: str, call: dict[str, Any]) -> dict[str, Any]:
        queries, keys = common.lengths_of(function, call)
        if function == "flash_attn_varlen_func" or set(queries) != {1}:
            raise ValueError("more than one query token is not supported (mla_torch: decode)")
        return {"q": call["q"], "qv": call["qv"], "rope": call["k_cache"], "latent": call["v_cache"],
                "table": call["page_table"].long(), "lengths": keys, "scale": common.scale_of(config, call)}

    return Peer(attend, attend, prepare=prepare, note="gather the pages, q @ K.T + qv @ C.T in the model's dtype, "
                "float32 softmax, P @ C; one sequence at a time, lengths known on the host")
