"""Right before fast: a contender's result against the float64 oracle, before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hal.bench.shapes import Shape, widths
from hal.config import AttentionConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hal.conformance.judge import Verdict

LIMIT = 2.0  # seconds the oracle may take
# What the oracle took on two cores, in seconds: for each score, and for each element of K and V turned to float64.
PER_SCORE, PER_ELEMENT, BLOCK_Q = 6e-8, 4e-9, 256


def seconds(config: AttentionConfig, shape: Shape) -> float:
    """About how long the oracle takes for a shape."""
    w = widths(config, shape)
    per_block = (w.head_dim + w.head_dim_v) * PER_ELEMENT
    return sum(w.num_heads * shape.seqlen * (n * PER_SCORE + -(-n // BLOCK_Q) * per_block) for n in shape.queries)


def reduced(config: AttentionConfig, shape: Shape) -> Shape:
    """The shape itself, or where the oracle would take too long the same one with a smaller batch, then shorter."""
    while seconds(config, shape) > LIMIT:
        if shape.batch > 2:
            shape = replace(shape, batch=max(2, shape.batch // 2))
        elif shape.seqlen > 16:
            # Not a multiple of the page size: the last page is left partly used.
            shape = replace(shape, seqlen=shape.seqlen // 4 * 2 + 1, chunk=max(1, shape.chunk // 2))
        else:
            break
    return shape


@dataclass(frozen=True)
class Reference:
    """The oracle's and eager's (out, lse) for one call, and the rows of each sequence in out."""

    want: tuple[Tensor, Tensor]
    rough: tuple[Tensor, Tensor]
    rows: list[tuple[int, int]]
    packed: bool
    q_dtype: str

    def judge(self, out: Tensor) -> Verdict:
        from hal.conformance.judge import judge

        return judge((out.cpu(), None), self.want, self.rough, self.rows, self.packed, self.q_dtype)


def reference(function: str, call: dict[str, Any], dtype: str) -> Reference:
    """What `function` should give for a call; dtype is the config's, in which eager works."""
    import torch

    from hal import oracle

    call = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    oracle_function: Callable[..., Any] = getattr(oracle, function)
    want = oracle_function(**call, return_softmax_lse=True)
    q, packed = call["q"], "cu_seqlens_q" in call
    cu = call["cu_seqlens_q"].tolist() if packed else [b * q.shape[1] for b in range(q.shape[0] + 1)]
    rows = [(cu[b], cu[b + 1]) for b in range(len(cu) - 1)]
    return Reference(want, _eager(call, rows, getattr(torch, dtype)), rows, packed, str(q.dtype).removeprefix("torch."))


def _eager(call: dict[str, Any], rows: list[tuple[int, int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Out and lse of the whole call, sequence by sequence, in the shapes of the contract."""
    import torch

    from hal.conformance.eager import Scores, Sequence, eager

    q, one = call["q"], torch.ones(1)
    flat_q = q.reshape(-1, *q.shape[-2:])
    flat_qv = call["qv"].reshape(-1, *call["qv"].shape[-2:]) if "qv" in call else None
    scale = call.get("softmax_scale") or q.shape[-1] ** -0.5
    how = Scores(scale, call.get("softcap", 0.0), call["causal"], call.get("window_size", (-1, -1)),
                 call.get("attention_chunk", 0), call.get("sinks"))
    outs, lses = [], []
    for b, (first, last) in enumerate(rows):
        k, v = _keys(call, b)
        out, lse = eager(Sequence(
            flat_q[first:last], k, v, None if flat_qv is None else flat_qv[first:last], torch.arange(k.shape[0]),
            k.shape[0], *(call.get(f"{x}_descale", one).reshape(-1) for x in "qkv")), how, dtype)
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs), torch.cat(lses, dim=1)
    if "cu_seqlens_q" in call:
        return out, lse
    return out.view(*q.shape[:-1], -1), lse.view(lse.shape[0], *q.shape[:2]).transpose(0, 1)


def _keys(call: dict[str, Any], b: int) -> tuple[Tensor, Tensor]:
    """K and V of one sequence, [n, Hkv, D(v)]."""
    import torch

    if "k" in call:
        first, last = call["cu_seqlens_k"][b : b + 2].tolist()
        return call["k"][first:last], call["v"][first:last]
    token, size = torch.arange(int(call["cache_seqlens"][b])), call["k_cache"].shape[1]
    at = call["page_table"][b].long()[token // size], token % size
    return call["k_cache"][at], call["v_cache"][at]
