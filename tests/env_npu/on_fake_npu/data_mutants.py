"""Mutants of Ascend's adapters -> what turns each red.

Written by mutants_ascend.py, but for EXPLAINED: why what survives does so."""

# ruff: noqa: E501

KILLED: dict[str, str] = {
    'ascend._kvcache.flash_attn_with_kvcache: argument is None: cp_tot_seqused_k of shares':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend._kvcache.flash_attn_with_kvcache: arguments swapped: packed.new_zeros(*packed.shape[:2], v_cache.shape[-1]), None of shaped':
        'ascend: dense lengths: decode bfloat16 8/2x128 no query',
    'ascend._kvcache.flash_attn_with_kvcache: bound dropped: 2 of x.shape[2:]':
        'ascend: dense calls: decode-q4 bfloat16 8/2x128 unpaged',
    'ascend.new_kv_cache: arguments swapped: cls.name, config of new_cache':
        'check: varlen ranks',
    'ascend.run: and/or: step.empty and (not captures()) -> step.empty or not captures()':
        'ascend_mla: mla context_parallel: decode-q4 bfloat16 16/1x576-512 mla context_parallel=2 rank0',
    "ascend.run: condition negated: if step.order is not None and 'query_rope' in more: ...":
        'ascend_mla: mla plain: extend bfloat16 16/1x576-512 mla',
    'ascend.run: constant: 1 -> 2 in 1:':
        'check: varlen ranks',
    "ascend.run: statement deleted: more['query_rope'] = more['query_rope'].index_select(0, step.order)":
        'ascend_mla: mla context_parallel: decode-q4 bfloat16 16/1x576-512 mla context_parallel=2 rank0',
    'ascend.run: statement deleted: out = out.index_select(0, step.back)':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend.run: statement deleted: softmax_lse.index_copy_(1, blind, softmax_lse.new_full((q.shape[1], len(blind)), infinite))':
        'check: short',
    'ascend.run: term dropped: step.blind is not None':
        'check: pieces',
    'ascend.shares: condition negated: if world > 1: ...':
        'ascend: dense calls: mixed bfloat16 8/2x128 out',
    "ascend.target: arithmetic: '_v2' * config.sinks -> '_v2' + config.sinks":
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend.varlen.flash_attn_varlen_func: argument is None: with_sinks of _check_sinks':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend.varlen.flash_attn_varlen_func: arms swapped: page_table if cp_world_size > 1 else None -> None if cp_world_size > 1 else page_table':
        'check: varlen ranks',
    'ascend.varlen.flash_attn_varlen_func: comparison: page_table is not None -> page_table is None #2':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_cache.paged: arms swapped: table if step.table is None else step.table -> step.table if step.table is None else table':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_cache.table_rows: bound dropped: batch of page_table[:batch]':
        'check: table',
    'ascend_cache.writer.write_kv_cache: comparison: k.shape[0] != v.shape[0] -> k.shape[0] == v.shape[0]':
        'ascend_mla: mla plain: extend bfloat16 16/1x576-512 mla',
    'ascend_cache.writer.write_kv_cache: condition negated: if not len(slot_mapping): ...':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_cache.writer.write_kv_cache: condition negated: if slot_mapping.shape != k.shape[:1] or k.shape[0] != v.shape[0]: ...':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
    "ascend_fused._captured: arithmetic: v.shape[-1] // (1 if arguments['block_table'] is None else arguments['num_key_value_heads']) -> v.shape[-1] % (1 if arguments['block_table'] is None else arguments['num_key_value_heads'])":
        'check: captured',
    'ascend_fused._captured: arms swapped: weak(x) if isinstance(x, torch.Tensor) else x -> x if isinstance(x, torch.Tensor) else weak(x)':
        'check: captured',
    'ascend_fused._captured: bound dropped: 2 of q.shape[:2]':
        'check: captured',
    'ascend_fused.fused.attend: constant: 1 -> 0 in softmax_lse.squeeze(-1).transpose(0, 1)':
        'ascend_mla: mla spelling: prefill bfloat16 16/1x576-512 expanded192/128 mla return_softmax_lse return_attn_probs',
    'ascend_mla._absorbed.flash_attn_with_kvcache: argument is None: return_softmax_lse of shaped':
        'check: no queries',
    'ascend_mla._absorbed.flash_attn_with_kvcache: sign or not dropped: -1 -> 1':
        'ascend_mla: mla plain: extend bfloat16 16/1x576-512 mla',
    'ascend_plans.__init__: function: any(self.keys) -> all(self.keys)':
        'ascend_mla: mla spelling: prefill bfloat16 16/1x576-512 expanded192/128 mla return_softmax_lse return_attn_probs',
    'ascend_plans._between: operands swapped: b - a -> a - b':
        'ascend_mla: mla spelling: prefill bfloat16 16/1x576-512 expanded192/128 mla return_softmax_lse return_attn_probs',
    'ascend_plans._between: sign or not dropped: -1 -> 1':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.cached.ascend_cached: and/or: any((row.keys != width for row in rows)) or len(rows) != batch -> any((row.keys != width for row in rows)) and len(rows) != batch':
        'ascend: dense calls: decode-q4 bfloat16 8/2x128 unpaged',
    'ascend_plans.cached.ascend_cached: function: any((row.keys != width for row in rows)) -> all((row.keys != width for row in rows))':
        'check: unpaged',
    'ascend_plans.hide: operands swapped: len(row.queries) - row.keys - after -> after - (len(row.queries) - row.keys)':
        'check: unpaged',
    'ascend_plans.packed.ascend_packed: arguments swapped: queries, keys of _rows':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.packed.ascend_packed: arguments swapped: source, device of on_device':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.packed.ascend_packed: arms swapped: tokens[0] if tokens else () -> () if tokens else tokens[0]':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.refresh: comparison: after is None -> after is not None':
        'check: captured',
    'ascend_plans.rows_of: and/or: how.most or max(1, len(part)) -> how.most and max(1, len(part))':
        'ascend: dense pairs: prefill bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.rows_of: arithmetic: first + part[-1] -> first - part[-1]':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.rows_of: arithmetic: start + offset -> start - offset':
        'ascend_mla: mla context_parallel: decode-q4 bfloat16 16/1x576-512 mla context_parallel=2 rank0',
    'ascend_plans.rows_of: bound dropped: at + step of part[at:at + step]':
        'ascend_mla: mla plain: extend bfloat16 16/1x576-512 mla',
    'ascend_plans.rows_of: constant: 0 -> -1 in max(0, visible - behind)':
        'check: pieces',
    'ascend_plans.rows_of: function: min(seen, max(0, (last - how.rank) // how.world + 1)) -> max(seen, max(0, (last - how.rank) // how.world + 1))':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
    'ascend_plans.rows_of: operands swapped: visible - behind -> behind - visible':
        'ascend: dense pairs: decode-q4 bfloat16 8/2x128 sinks context_parallel=2 rank1',
}
EXPLAINED: dict[str, str] = {
    'ascend_plans._between: term dropped: ends[-1] != total':
        'no case has lengths that end elsewhere, which the op would refuse; tests/test_adapters.py, test_ascend_refuses and test_ascend_varlen_refuses, turn red',
    'ascend._check_sinks: and/or: sinks.dtype != q.dtype or sinks.shape != q.shape[-2:-1] -> sinks.dtype != q.dtype and sinks.shape != q.shape[-2:-1]':
        'no case has sinks of another dtype or number; tests/test_adapters.py, test_ascend_sinks_are_version_2s, turns red',
    'ascend_mla._absorbed.flash_attn_with_kvcache: sign or not dropped: -1 -> 1 #4':
        'equivalent: causal caps the right bound at 0',
    'ascend_plans.refresh: term dropped: before.shape != after.shape':
        'equivalent: what a uniform batch moves keeps its shape, and copy_ would refuse another',
    'ascend_plans.packed.ascend_packed: argument is None: max_seqlen_q of _queries':
        'no case has a bound below its lengths; tests/test_adapters.py, test_ascend_varlen_refuses, turns red',
    'ascend_plans._rows: comparison: how.world > 1 -> how.world >= 1 #2':
        'a message alone, of more rows than the op takes; test_more_rows_than_the_op_takes_are_refused_with_their_cause turns red',
}
