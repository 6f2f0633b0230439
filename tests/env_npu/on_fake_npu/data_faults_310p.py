"""Deliberate faults of 310P's adapter -> the case of the conformance grid that each turns red."""

# ruff: noqa: E501 - tables: a row stays on its line

from __future__ import annotations

from env_npu.on_fake_npu.data_faults import Fault

_PREFILL = "dense plain: prefill float16 8/2x128"
_DECODE = "dense plain: decode float16 8/2x128"
_EXTEND = "dense plain: extend float16 8/2x128"
_MAIN, _CACHE, _PLANS = "ascend_310p", "ascend_310p_cache", "ascend_310p_plans"


def _fault(what: str, case: str, *edits: tuple[str, str, str]) -> Fault:
    return Fault(what, edits, case, "ascend_310p")


FAULTS = (
    _fault("mask tiled in another order", _EXTEND, (_CACHE, ".transpose(1, 2).contiguous()", ".clone().view(1, size // TILE, -1, TILE).clone()")),
    _fault("mask left ND", _EXTEND, (_CACHE, "x = torch_npu.npu_format_cast(x, NZ)", "pass")),
    _fault("cache with the heads apart", _DECODE, (_CACHE, "return num_pages, config.num_kv_heads * config.head_dim // TILE, page_size, TILE", "return num_pages, page_size, config.num_kv_heads * config.head_dim // TILE, TILE")),
    _fault("prefill lengths cumulative", _PREFILL, (_PLANS, "return Step(_int32(lengths), None", "return Step(_int32(list(accumulate(lengths))), None")),
    _fault("splitfuse lengths cumulative", _EXTEND, (_PLANS, "return Step(_int32(counts)", "return Step(_int32(list(accumulate(counts)))")),
    _fault("KV lengths cumulative", _DECODE, (_PLANS, "of_keys.int().contiguous()", "of_keys.cumsum(0).int()")),
    _fault("query and KV lengths swapped", _EXTEND, (_MAIN, 'mask=step.mask, seq_len=step.queries)\n', 'mask=step.mask, seq_len=step.keys.cpu())\n')),
    _fault("lengths of the host in decode", _DECODE, (_PLANS, "of_keys.int().contiguous()", "of_keys.int().cpu()")),
    _fault("mask missing", _EXTEND, (_CACHE, ".half() * HIDDEN", ".half() * 0.0")),
    _fault("mask missing in prefill", _PREFILL, (_PLANS, "triangle(device, size)", "rows(on_device([size] * size, device), size)")),
    _fault("diagonal masked too", _PREFILL, (_CACHE, "keys > last[:, None]", "keys >= last[:, None]")),
    _fault("mask aligned to the top", _EXTEND, (_PLANS, "last = [keys[b] - count + i for", "last = [i for")),
    _fault("slots int64", _DECODE, (_CACHE, "plan.slots.int()", "plan.slots")),
    _fault("K and V swapped in the write", _DECODE, (_CACHE, "key=k.contiguous(), value=v.contiguous()", "key=v.contiguous(), value=k.contiguous()")),
    _fault("scale missing", _DECODE, (_MAIN, '"scale_value": scale,', '"scale_value": 1.0,')),
    _fault("scale missing in prefill", _PREFILL, (_MAIN, "scale_value=scale, num_heads", "scale_value=1.0, num_heads")),
    _fault("KV heads swapped with the query's", _DECODE, (_MAIN, '"num_kv_heads": config.num_kv_heads,\n                "num_heads": config.num_heads,', '"num_kv_heads": config.num_heads,\n                "num_heads": config.num_kv_heads,')),
    _fault("KV heads of the query in prefill", _PREFILL, (_MAIN, "num_kv_heads=config.num_kv_heads, out=made", "num_kv_heads=config.num_heads, out=made")),
    _fault("page table of another sequence", _DECODE, (_MAIN, "table if step.table is None else table.index_select(0, step.table)}", "table[:len(step.keys)]}")),
    _fault("tokens not padded to 16", _PREFILL, (_PLANS, "more = -len(order) % TOKENS", "more = 0")),
    _fault("sequences without queries left in", _EXTEND, (_PLANS, "seen = [b for b in range(batch) if min(queries[b], keys[b])]", "seen = [b for b in range(batch) if keys[b]]")),
    _fault("rows without keys left as they are", _DECODE, (_MAIN, "out.index_copy_(0, step.blind, out.new_zeros(len(step.blind), *out.shape[1:]))", "pass")),
    _fault("results not put back", "dense lengths: prefill float16 8/2x128 few queries", (_MAIN, "out = out.index_select(0, step.back)", "out = out[:len(step.back)]")),
    _fault("fewer queries moved to the front", "dense lengths: prefill float16 8/2x128 few queries", (_PLANS, "order += [ends_q[b + 1] - 1] * (length - count) + list(range(ends_q[b + 1] - count, ends_q[b + 1]))", "order += list(range(ends_q[b + 1] - count, ends_q[b + 1])) + [ends_q[b + 1] - 1] * (length - count)"), (_PLANS, "seeing += range(len(order) + length - count, len(order) + length)", "seeing += range(len(order), len(order) + count)")),
    _fault("padding slots written", _DECODE, ("ascend_plans", "if len(kept) == len(values):", "if True:"), (_CACHE, "plan.slots.int()", "plan.slots.int().clamp(min=0)")),
    _fault("the op of single queries for several", _EXTEND, (_PLANS, "single = max(queries) == 1", "single = True")),
)
