"""Deliberate faults of Ascend's adapters -> the case of the conformance grid that each turns red."""

# ruff: noqa: E501 - tables: a row stays on its line

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """edits: (file, before, after). case: of `backend`'s quick grid."""

    what: str
    edits: tuple[tuple[str, str, str], ...]
    case: str
    backend: str = "ascend"


_DECODE = "dense plain: decode bfloat16 8/2x128"
_EXTEND = "dense plain: extend bfloat16 8/2x128"
_LATENT = "mla plain: decode bfloat16 16/1x576-512 mla"
FAULTS = (
    Fault("lengths not cumulated", (("ascend_plans", "self.q_ends = list(accumulate(len(row.queries) for row in rows))", "self.q_ends = [len(row.queries) for row in rows]"),), _EXTEND),
    Fault("KV lengths cumulated", (("ascend_plans", "self.keys = [row.keys for row in rows]", "self.keys = list(accumulate(row.keys for row in rows))"),), _DECODE),
    Fault("packed KV lengths not cumulated", (("ascend_plans", "                step.source = on_device(source, device)\n        step.keys = list(accumulate(step.keys))", "                step.source = on_device(source, device)"),), "dense plain: prefill bfloat16 8/2x128"),
    Fault("4-D cache passed", (("ascend_cache", "return cache.view(cache.shape[0], PAGE, -1)", "return cache"),), _DECODE),
    Fault("PA_NZ default left", (("ascend_cache", ', cache_mode="Norm")', ")"),), _DECODE),
    Fault("scale missing", (("ascend_fused", "names.scale: scale, ", ""),), _DECODE),
    Fault("mask absent with sparse 0", (("ascend_fused", '"atten_mask": mask', '"atten_mask": None'), ("ascend_fused", '{"sparse_mode": 3,', '{"sparse_mode": 0,')), _EXTEND),
    Fault("window one too wide", (("ascend_fused", "UNBOUNDED if left < 0 else left,", "UNBOUNDED if left < 0 else left + 1,"),), "dense sliding_window: decode bfloat16 8/2x128 sliding_window=9"),
    Fault("window one too narrow", (("ascend_fused", "UNBOUNDED if left < 0 else left,", "UNBOUNDED if left < 0 else left - 1,"),), "dense sliding_window: decode bfloat16 8/2x128 sliding_window=9"),
    Fault("window also to the right", (("ascend_fused", '"next_tokens": 0 if causal else', '"next_tokens": UNBOUNDED if causal else'),), "dense sliding_window: extend bfloat16 8/2x128 sliding_window=9"),
    Fault("heads unpadded", (("ascend_mla", "missing = padded(heads) - heads", "missing = 0"),), "mla heads: decode bfloat16 7/1x576-512 mla", "ascend_mla"),
    Fault("rope and latent of the query swapped", (("ascend_mla", "for x in (q, qv))", "for x in (qv, q))"),), _LATENT, "ascend_mla"),
    Fault("rope and latent cache swapped", (("ascend_mla", 'rope, latent = both(', 'latent, rope = both('),), _LATENT, "ascend_mla"),
    Fault("LSE transposed", (("ascend_fused", "softmax_lse.squeeze(-1).transpose(0, 1)", "softmax_lse.squeeze(-1)"),), "dense return_softmax_lse: extend bfloat16 8/2x128 return_softmax_lse"),
    Fault("infinity of empty rows kept", (("ascend_fused", "torch.where(softmax_lse == infinity, -infinity, softmax_lse)", "softmax_lse"),), "dense empty rows: decode bfloat16 8/2x128 return_softmax_lse"),
    Fault("sink of empty rows forgotten", (("ascend", "if lse and sinks is not None:", "if lse and sinks is None:"),), "dense empty rows: decode bfloat16 8/2x128 sinks return_softmax_lse"),
    Fault("sinks dropped", (("ascend", 'return {"learnable_sink": sinks} if with_sinks else {}', "return {}"),), "dense sinks: decode bfloat16 8/2x128 sinks"),
    Fault("padding slots written", (("ascend_plans", "if len(kept) == len(values):", "if True:"),), _DECODE),
    Fault("KV heads of the query", (("ascend_fused", '"num_key_value_heads": heads[1]', '"num_key_value_heads": heads[0]'),), _DECODE),
    Fault("pages of another size", (("ascend_cache", '"block_size": 0 if table is None else PAGE', '"block_size": 0 if table is None else 16'),), _DECODE),
    Fault("pieces of a sequence see its last keys", (("ascend_plans", "max(0, visible - behind) if how.causal else visible", "visible"),), "mla plain: extend bfloat16 16/1x576-512 mla", "ascend_mla"),
    Fault("a rank sees as many as rank 0", (("ascend_plans", "(last - how.rank) // how.world + 1", "last // how.world + 1"),), "dense context_parallel: extend bfloat16 8/2x128 context_parallel=2 rank1"),
    Fault("queries of a rank not put back", (("ascend", "out = out.index_select(0, step.back)", "pass"),), "dense context_parallel: extend bfloat16 8/2x128 context_parallel=2 rank0"),
    Fault("unpaged keys taken as packed", (("ascend_plans", "if any(row.keys != width for row in rows) or len(rows) != batch:", "if False:"),), "dense calls: extend bfloat16 8/2x128 unpaged"),
    Fault("MLA's queries see what comes after", (("ascend_mla", "(causal, (-1, -1)), query_rope", "(True, (-1, -1)), query_rope"),), "mla non_causal: extend bfloat16 16/1x576-512 mla non_causal", "ascend_mla"),
)
