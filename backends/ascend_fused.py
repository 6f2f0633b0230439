"""One call of npu_fused_infer_attention_score in layout TND, eager or captured in an NPUGraph.

A captured call keeps the host lists of its capture, so it is captured as a task group that an update can reach, behind
an event that the update records: torch_npu/npu/graphs.py 2.13.0 does the same, and vllm-ascend. hal.graph's
prepare_replay() refreshes the plan, which updates every call that was captured with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from hal.backends.ascend_plans import Step, update_stream
from hal.backends.ascend_rules import UNBOUNDED
from hal.graph import captures

if TYPE_CHECKING:
    from torch import Tensor


class Names(NamedTuple):
    """A version of the op and what it calls its arguments."""

    op: str
    q_ends: str
    keys: str
    heads: str
    scale: str
    lse: str


V1 = Names("npu_fused_infer_attention_score", "actual_seq_lengths", "actual_seq_lengths_kv", "num_heads", "scale",
           "softmax_lse_flag")
V2 = Names("npu_fused_infer_attention_score_v2", "actual_seq_qlen", "actual_seq_kvlen", "num_query_heads",
           "softmax_scale", "return_softmax_lse")


def sparse(causal: bool, window: tuple[int, int]) -> dict[str, int]:
    """The mask's arguments. pre_tokens are "previous tokens" (V1), the current one not counted: a window of W is W - 1,
    as SGLang passes it, and npu_fusion_attention's document masks tril(diagonal -pre_tockens - 1) for mode 4;
    vllm-ascend 182b75ea passes W. `hal verify` on a chip shows which it is. One query in TND has a window too: CANN
    drops the mode for BSH, BSND and BNSD alone (TILING, GetLegacyIfaFlag).

    Without causal it is a band without bounds: sparse_mode 0 has given uniform averages (vllm-ascend#13699).
    """
    left, right = window
    if causal and left < 0:
        return {"sparse_mode": 3, "pre_tokens": UNBOUNDED, "next_tokens": UNBOUNDED}
    return {"sparse_mode": 4, "pre_tokens": UNBOUNDED if left < 0 else left,
            "next_tokens": 0 if causal else UNBOUNDED if right < 0 else right}


@cache
def causal_mask(device: str) -> Tensor:
    """The compressed mask that sparse modes 2, 3 and 4 read: 1 above the diagonal means masked out."""
    import torch

    return torch.triu(torch.ones(2048, 2048, dtype=torch.int8, device=device), 1)


def fused(names: Names, device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """attend(step, q, k, v, heads, scale, lse, **more) -> (out [T, H, Dv], softmax_lse [H, T] with -inf)."""
    import torch
    import torch_npu

    op, mask, capturing = getattr(torch_npu, names.op), causal_mask(device), torch_npu.npu.is_current_stream_capturing
    infinity = float("inf")

    def attend(step: Step, q: Tensor, k: Tensor, v: Tensor, heads: tuple[int, int], scale: float, lse: bool,
               **more: Any) -> tuple[Tensor, Tensor]:
        arguments = {"query": q, "key": k, "value": v, "atten_mask": mask, "input_layout": "TND", names.heads: heads[0],
                     "num_key_value_heads": heads[1], names.scale: scale, names.lse: lse, **more}
        if captures():
            out, softmax_lse = _captured(names, op, step, arguments)
        elif capturing():
            raise RuntimeError(f"{names.op} inside an NPUGraph that HAL does not know of: it would keep the lengths of "
                               "this call; capture on the buffers of attn.graph_state(), inside its capture()")
        else:
            out, softmax_lse = op(**arguments, **{names.q_ends: step.q_ends, names.keys: step.keys})
        if not lse:
            return out, softmax_lse
        # [T, H, 1], natural logarithm; +inf where a row sees no key, whose output is 0.
        softmax_lse = softmax_lse.squeeze(-1).transpose(0, 1)
        return out, torch.where(softmax_lse == infinity, -infinity, softmax_lse)

    return attend


def _captured(names: Names, op: Any, step: Step, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    import torch
    import torch_npu

    npu: Any = torch_npu.npu
    stream, event, device = npu.current_stream(), npu.ExternalEvent(), arguments["query"].device
    lengths = {names.q_ends: step.q_ends, names.keys: step.keys}
    q, v = arguments["query"], arguments["value"]
    width = v.shape[-1] // (1 if arguments["block_table"] is None else arguments["num_key_value_heads"])
    result = [q.new_empty(*q.shape[:-1], width),
              q.new_empty((*q.shape[:2], 1) if arguments[names.lse] else (0,), dtype=torch.float32)]
    workspace = getattr(torch_npu, f"_{names.op}_get_max_workspace")(**arguments, **lengths)
    event.wait(stream)
    event.reset(stream)
    npu.graph_task_group_begin(stream)
    op.out(**arguments, **lengths, workspace=workspace, out=result)
    group = npu.graph_task_group_end(stream)
    # The graph owns the memory: tensors kept here would keep its pool from using it again.
    weak = torch_npu._C._weak_ref_tensor
    kept = {name: weak(x) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    kept |= {"workspace": weak(workspace), "out": [weak(x) for x in result]}

    def update() -> None:
        stream = update_stream(device)
        with npu.stream(stream):
            npu.graph_task_update_begin(stream, group)
            op.out(**kept, **{names.q_ends: step.q_ends, names.keys: step.keys})
            npu.graph_task_update_end(stream)
            event.record(stream)

    step.tasks.append(update)
    return result[0], result[1]
