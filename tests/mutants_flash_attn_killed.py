"""Mutants of the FlashAttention adapters -> (where, the case of the conformance kit that turns each red).

Written by `python tests/mutants_flash_attn.py --regenerate`.
"""

# ruff: noqa: E501

KILLED: dict[str, tuple[tuple[str, str, str, bool], str]] = {
    'flash_attn_4._call.call: and/or: not splittable and num_splits not in (0, 1) -> not splittable or num_splits not in (0, 1)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'mla calls: prefill bfloat16 16/1x576-512 expanded192/128 mla seqused'),
    'flash_attn_4._call.call: arms swapped: (out, softmax_lse) if lse else out -> out if lse else (out, softmax_lse)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4._call.call: arms swapped: scale if softmax_scale is None else softmax_scale -> softmax_scale if softmax_scale is None else scale':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense spelling: prefill bfloat16 8/2x128 scale=0.31 scale of the config'),
    'flash_attn_4._call.call: comparison: softmax_scale is None -> softmax_scale is not None':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense spelling: prefill bfloat16 8/2x128 scale=0.31 scale of the config'),
    'flash_attn_4._call.call: statement deleted: causal, window = mask_4(causal, window_size)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4._dedicated: arms swapped: config.head_dim if mla is None or isinstance(mla, bool) else mla.qk_nope_head_dim + mla.qk_rope_head_dim -> mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla is None or isinstance(mla, bool) else config.head_dim':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4._dedicated: comparison: wide == 256 -> wide != 256':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: prefill bfloat16 8/2x128 seqused'),
    'flash_attn_4._dedicated_reasons: argument is None: platform of _dedicated':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4._dedicated_reasons: condition negated: if not cls._dedicated(config, platform): ...':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense sinks: decode bfloat16 8/2x128 sinks return_softmax_lse no keys'),
    'flash_attn_4._dedicated_reasons: sign or not dropped: not cls._dedicated(config, platform) -> cls._dedicated(config, platform)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense sinks: decode bfloat16 8/2x128 sinks return_softmax_lse no keys'),
    'flash_attn_4._kvcache.flash_attn_with_kvcache: arguments swapped: q, k_cache of call':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4._varlen.flash_attn_varlen_func: argument is None: k of call':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: prefill bfloat16 8/2x128 seqused'),
    'flash_attn_4._varlen.flash_attn_varlen_func: arguments swapped: causal, window_size of call':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: prefill bfloat16 8/2x128 seqused'),
    "flash_attn_4._varlen.flash_attn_varlen_func: arguments swapped: f'{_NAME} with page_table', VARLEN of refuse":
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: paged_varlen bfloat16 8/2x128 paged_varlen'),
    'flash_attn_4._varlen.flash_attn_varlen_func: arguments swapped: page_table, None of rows':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: paged_varlen bfloat16 8/2x128 paged_varlen'),
    'flash_attn_4._varlen.flash_attn_varlen_func: condition negated: if page_table is None: ...':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: prefill bfloat16 8/2x128 seqused'),
    'flash_attn_4._varlen.flash_attn_varlen_func: operands swapped: cu_seqlens_q.shape[0] - 1 -> 1 - cu_seqlens_q.shape[0]':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: paged_varlen bfloat16 8/2x128 paged_varlen'),
    'flash_attn_4._varlen.flash_attn_varlen_func: statement deleted: keep(honoured, _NAME, VARLEN, given)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: prefill bfloat16 8/2x128 out'),
    'flash_attn_4._varlen.flash_attn_varlen_func: term dropped: return_attn_probs':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs'),
    'flash_attn_4.extra_reasons: and/or: arch in _BLACKWELL and (d, dv) == (256, 256) -> arch in _BLACKWELL or (d, dv) == (256, 256)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4.extra_reasons: arithmetic: reasons + cls._dedicated_reasons(config, platform) -> reasons - cls._dedicated_reasons(config, platform)':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4.extra_reasons: comparison: config.mla is not None -> config.mla is None':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'mla calls: prefill bfloat16 16/1x576-512 expanded192/128 mla seqused'),
    'flash_attn_4.extra_reasons: condition negated: if arch in _BLACKWELL and (d > 128 or dv > 128) and ((d, dv) not in ((192, 128), (256, 256))): ...':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4.extra_reasons: condition negated: if d != dv and (d % 16 or dv % 16 or max(d, dv) > 256): ...':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4.extra_reasons: constant: 128 -> 127 in d > 128':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_4.mask_4: arms swapped: None if left < 0 else left -> left if left < 0 else None':
        (('flash_attn_4', 'sm100', 'flash-attn-4', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_cache._make_after: arms swapped: cu_new[1:] - cu_new[:-1] if new is None else new -> new if new is None else cu_new[1:] - cu_new[:-1]':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_cache._make_slots: arms swapped: owner if index is None else index[owner].long() -> index[owner].long() if index is None else owner':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 append unpaged'),
    'flash_attn_cache._make_slots: comparison: cu_new is None -> cu_new is not None':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_cache._make_slots: condition negated: if cu_new is None: ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_cache._make_slots: statement deleted: if cu_new is None: ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_cache.lengths: arguments swapped: device, (cache_seqlens,) of _spread':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: decode bfloat16 8/2x128 int cache_seqlens'),
    'flash_attn_cache.rows: comparison: page_table is None -> page_table is not None':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_cache.rows: condition negated: if page_table is None: ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_cache.write: argument is None: k.device of _slots':
        (('flash_attn_2', 'sm80', 'flash-attn', True), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_cache.write: sign or not dropped: -1 -> 1 #2':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_v2._empty: sign or not dropped: -1 -> 1 #2':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense lengths: decode bfloat16 8/2x128 no query'),
    'flash_attn_v2._make_route: arithmetic: (owner + 1) * most - (cu_seqlens_q[1:][owner] - row) -> (owner + 1) * most + (cu_seqlens_q[1:][owner] - row)':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2._make_route: arithmetic: owner + 1 -> owner - 1':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2._make_route: bound dropped: 1 of cu_seqlens_q[1:]':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2._make_route: operands swapped: (owner + 1) * most - (cu_seqlens_q[1:][owner] - row) -> cu_seqlens_q[1:][owner] - row - (owner + 1) * most':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2._make_route: operands swapped: cu_seqlens_q[1:][owner] - row -> row - cu_seqlens_q[1:][owner]':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2._may_ask_the_host: and/or: context is not None and context.epoch is not None and (context.epoch.graph is None) -> context is not None or context.epoch is not None or context.epoch.graph is None':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 strided_cache'),
    "flash_attn_v2.out_and_lse: argument is None: float('-inf') of masked_fill_":
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense lengths: extend bfloat16 8/2x128 return_softmax_lse fewer keys than queries'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: and/or: return_attn_probs or return_softmax_lse -> return_attn_probs and return_softmax_lse':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: argument is None: max_seqlen_k of varlen':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: argument is None: max_seqlen_q of max #2':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: arms swapped: scale if softmax_scale is None else softmax_scale -> softmax_scale if softmax_scale is None else scale':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: prefill bfloat16 8/2x128 scale=0.31 scale of the config'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: comparison: softmax_scale is None -> softmax_scale is not None':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: prefill bfloat16 8/2x128 scale=0.31 scale of the config'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: function: max(max_seqlen_q, 2) -> min(max_seqlen_q, 2)':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs'),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: statement deleted: keep(_VARLEN, NAME, VARLEN, given)':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: prefill bfloat16 8/2x128 out'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arguments swapped: -1, *out.shape[-2:] of view':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arguments swapped: lse.shape[1], -1 of reshape':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense lengths: extend bfloat16 8/2x128 return_softmax_lse fewer keys than queries'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arguments swapped: v_cache, cu_seqlens_q of varlen':
        (('flash_attn_2', 'sm80', 'flash-attn', True), 'dense calls: extend bfloat16 8/2x128 strided_cache'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arguments swapped: v_cache, packed of _empty':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense lengths: decode bfloat16 8/2x128 no query'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arms swapped: out_and_lse(result) if return_softmax_lse else result -> result if return_softmax_lse else out_and_lse(result) #2':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arms swapped: scale if softmax_scale is None else softmax_scale -> softmax_scale if softmax_scale is None else scale':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: extend bfloat16 8/2x128 scale=0.31 scale of the config'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: bound dropped: -2 of q.shape[-2:]':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: bound dropped: 1 of q.shape[1:]':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: comparison: softmax_scale is None -> softmax_scale is not None':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense spelling: extend bfloat16 8/2x128 scale=0.31 scale of the config'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: comparison: table is not None -> table is None':
        (('flash_attn_2', 'sm80', 'flash-attn', True), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    "flash_attn_v2.with_kvcache.flash_attn_with_kvcache: comparison: way == 'varlen' -> way != 'varlen'":
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: condition negated: if not packed: ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: condition negated: if not q.numel() or group > width or (not cache.fused(q, k, cu_seqlens_q, cu_seqlens_k_new, batch, most)): ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: condition negated: if not uniform: ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    "flash_attn_v2.with_kvcache.flash_attn_with_kvcache: condition negated: if way == 'varlen': ...":
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: constant: 1 -> 0 in -1 #2':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense lengths: extend bfloat16 8/2x128 return_softmax_lse fewer keys than queries'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: constant: 1 -> 0 in 1:':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: function: max(most, 2) -> min(most, 2)':
        (('flash_attn_2', 'sm80', 'flash-attn', True), 'dense calls: extend bfloat16 8/2x128 strided_cache'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: sign or not dropped: not cache.fused(q, k, cu_seqlens_q, cu_seqlens_k_new, batch, most) -> cache.fused(q, k, cu_seqlens_q, cu_seqlens_k_new, batch, most)':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: statement deleted: if not uniform: ...':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: term dropped: not cache.fused(q, k, cu_seqlens_q, cu_seqlens_k_new, batch, most)':
        (('flash_attn_2', 'sm80', 'flash-attn', False), 'dense calls: decode bfloat16 8/2x128 append packed_decode'),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: term dropped: table is not None':
        (('flash_attn_2', 'sm80', 'flash-attn', True), 'dense calls: extend bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._make_starts: arithmetic: batch + 1 -> batch - 1':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    "flash_attn_v3._pass_sinks: and/or: sinks is not None and str(sinks.dtype) != 'torch.bfloat16' -> sinks is not None or str(sinks.dtype) != 'torch.bfloat16'":
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._pass_sinks: comparison: sinks is not None -> sinks is None':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._pass_sinks: condition negated: if build.sinks is None: ...':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._scheduler.scheduler_metadata: argument is None: max_seqlen_q of get_scheduler_metadata':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._spread_descales: and/or: value is not None and value.numel() == 1 -> value is not None or value.numel() == 1':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense fp8: decode bfloat16+fp8_e4m3 8/2x128 descale_per_head'),
    'flash_attn_v3._vllm.attend: arms swapped: result if return_softmax_lse else (result, None) -> (result, None) if return_softmax_lse else result':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._vllm.attend: bound dropped: -1 of shape[:-1]':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._vllm.attend: bound dropped: -2 of q.shape[-2:]':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._vllm.attend: bound dropped: -2 of qv.shape[-2:]':
        (('flash_attn_mla', 'sm90', 'vllm', False), 'mla calls: decode bfloat16 16/1x576-512 mla unpaged'),
    'flash_attn_v3._vllm.attend: bound dropped: 2 of shape[:2]':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense sinks: decode bfloat16 8/2x128 sinks return_softmax_lse no keys'),
    'flash_attn_v3._vllm.attend: comparison: flat is q -> flat is not q':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._vllm.attend: comparison: qv is None -> qv is not None':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._vllm.attend: constant: 1 -> 0 in q.shape[1]':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3._vllm.attend: operands swapped: cu_seqlens_q.shape[0] - 1 -> 1 - cu_seqlens_q.shape[0]':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense spelling: decode bfloat16 8/2x128 unpaged no cache_seqlens'),
    'flash_attn_v3._vllm.attend: statement deleted: if cache_seqlens is None: ...':
        (('flash_attn_3', 'sm90', 'vllm', True), 'dense spelling: decode bfloat16 8/2x128 unpaged no cache_seqlens'),
    'flash_attn_v3.scale_for: term dropped: scale is None':
        (('flash_attn_mla', 'sm90', 'flash-attn-3', False), 'mla calls: decode bfloat16 16/1x576-512 mla unpaged'),
    'flash_attn_v3.varlen_func.flash_attn_varlen_func: and/or: return_attn_probs or return_softmax_lse -> return_attn_probs and return_softmax_lse':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs'),
    'flash_attn_v3.varlen_func: arithmetic: build.varlen | (_DESCALES if fp8 else frozenset()) -> build.varlen & (_DESCALES if fp8 else frozenset())':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense plain: prefill bfloat16 8/2x128'),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: argument is None: q.device of lengths':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense spelling: decode bfloat16 8/2x128 int cache_seqlens'),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: arms swapped: 0 if k is None else k.shape[-3] -> k.shape[-3] if k is None else 0':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: arms swapped: scale if softmax_scale is None else softmax_scale -> softmax_scale if softmax_scale is None else scale':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense spelling: extend bfloat16 8/2x128 scale=0.31 scale of the config'),
    "flash_attn_v3.with_kvcache.flash_attn_with_kvcache: comparison: given.get('softcap', 0.0) > 0 -> given.get('softcap', 0.0) >= 0":
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense calls: decode bfloat16 8/2x128 unpaged'),
    'flash_attn_v3.with_kvcache: condition negated: if mla: ...':
        (('flash_attn_3', 'sm90', 'flash-attn-3', True), 'dense calls: decode bfloat16 8/2x128 cache_leftpad'),
    'flash_attn_variants.bind: argument is None: kvcache of Bound':
        (('flash_attn_mla', 'sm90', 'flash-attn-3', False), 'mla calls: decode bfloat16 16/1x576-512 mla out'),
    'flash_attn_variants.head_reasons: and/or: 128 < d <= 192 and 96 < dv <= 128 or (d <= 64 and dv <= 512) -> (128 < d <= 192 and 96 < dv <= 128) and (d <= 64 and dv <= 512)':
        (('flash_attn_diffkv', 'sm90', 'flash-attn-3', False), 'dense calls: decode bfloat16 8/2x192-128 unpaged'),
    'flash_attn_variants.head_reasons: arithmetic: d % 8 -> d // 8':
        (('flash_attn_diffkv', 'sm90', 'flash-attn-3', False), 'dense calls: decode bfloat16 8/2x192-128 unpaged'),
    'flash_attn_variants.head_reasons: condition negated: if d == dv: ...':
        (('flash_attn_diffkv', 'sm90', 'flash-attn-3', False), 'dense calls: decode bfloat16 8/2x192-128 unpaged'),
    'flash_attn_variants.head_reasons: statement deleted: if d % 8 == dv % 8 == 0 and (128 < d <= 192 and 96 < dv <= 128 or (d <= 64 and dv <= 512)): ...':
        (('flash_attn_diffkv', 'sm90', 'flash-attn-3', False), 'dense calls: decode bfloat16 8/2x192-128 unpaged'),
    'flash_attn_variants.joint_cache: bound dropped: first of (..., first:)':
        (('flash_attn_diffkv', 'sm90', 'flash-attn-3', False), 'dense calls: decode bfloat16 8/2x192-128 out'),
    'flash_attn_variants.package_reasons: comparison: package is not VLLM -> package is VLLM':
        (('flash_attn_mla', 'sm90', 'vllm', False), 'mla context_parallel: decode-q4 bfloat16 16/1x576-512 mla context_parallel=2 rank0'),
    'flash_attn_variants.target: arguments swapped: package, config of target':
        (('flash_attn_diffkv', 'sm90', 'flash-attn-3', False), 'mla calls: prefill bfloat16 16/1x576-512 expanded192/128 mla out'),
}
