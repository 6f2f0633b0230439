"""Drawn mutants of the FlashAttention adapters that no case of the kit turns red, and why. Each was looked at by hand."""

# ruff: noqa: E501

EQUIVALENT: dict[str, str] = {
    'flash_attn.head_reasons: constant: 64 -> 65 in d <= 64':
        'equivalent: 65 is no multiple of 8',
    'flash_attn.target: argument is None: config of target':
        'equivalent: what it calls does not look at the configuration',
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: sign or not dropped: -2 -> 2 #2':
        'equivalent: of four dimensions; a packed k is not left to the kernel in any case',
    'flash_attn_v3._lengthen: and/or: given.get(name) is not None and given[name].shape[0] < width -> given.get(name) is not None or given[name].shape[0] < width':
        'equivalent: longer tables are cut to the width that no position reaches beyond; cos and sin are both there',
    'flash_attn_v3._lengthen: arithmetic: width - given[name].shape[0] -> width + given[name].shape[0]':
        'equivalent but for memory: rows of zeros past every position',
    'flash_attn_v3._vllm.attend: arguments swapped: 0, 1 of transpose':
        'equivalent: transposing is symmetric',
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: sign or not dropped: -2 -> 2':
        "equivalent: the third of a cache's four dimensions",
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: term dropped: rotary #2':
        'equivalent: without rotary_cos there is nothing to lengthen',
    'flash_attn_variants.head_reasons: constant: 192 -> 193 in 128 < d <= 192':
        'equivalent: 193 is no multiple of 8',
}

# Red in a test: mutant -> (its module, its name, its arguments).
ELSEWHERE: dict[str, tuple[str, str, tuple[object, ...]]] = {
    'flash_attn.bind: argument is None: cls.name of expanded_only':
        ('test_flash_attn_arguments', 'test_prefill_of_mla_names_itself_where_it_has_no_cache', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    'flash_attn.bind: arguments swapped: build, cls.name of varlen_func':
        ('test_flash_attn_arguments', 'test_the_calls_scale_wins_over_the_configs', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    'flash_attn.bind: arguments swapped: vendor, config of with_kvcache':
        ('test_flash_attn_arguments', 'test_the_calls_scale_wins_over_the_configs', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    'flash_attn.bind: arms swapped: v3.with_kvcache(vendor, config, build, cls.name) if config.mla is None else expanded_only(cls.name) -> expanded_only(cls.name) if config.mla is None else v3.with_kvcache(vendor, config, build, cls.name)':
        ('test_flash_attn_arguments', 'test_the_calls_scale_wins_over_the_configs', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    "flash_attn.calls_of: arithmetic: cls.calls - {'rotary', 'cache_leftpad', 'seqused'} -> cls.calls + {'rotary', 'cache_leftpad', 'seqused'}":
        ('test_flash_attn_arguments', 'test_3_calls_by_provider', ()),
    "flash_attn.calls_of: arms swapped: cls.calls - {'rotary', 'cache_leftpad', 'seqused'} if package is VLLM else cls.calls -> cls.calls if package is VLLM else cls.calls - {'rotary', 'cache_leftpad', 'seqused'}":
        ('test_flash_attn_arguments', 'test_3_calls_by_provider', ()),
    "flash_attn.calls_of: operands swapped: cls.calls - {'rotary', 'cache_leftpad', 'seqused'} -> {'rotary', 'cache_leftpad', 'seqused'} - cls.calls":
        ('test_flash_attn_arguments', 'test_3_calls_by_provider', ()),
    "flash_attn.extra_reasons: and/or: config.sinks and config.dtype != 'bfloat16' -> config.sinks or config.dtype != 'bfloat16'":
        ('test_flash_attn_family', 'test_who_serves_what', ('decode',)),
    'flash_attn.extra_reasons: arithmetic: d % 16 -> d // 16':
        ('test_flash_attn_family', 'test_who_serves_what', ('decode',)),
    "flash_attn.extra_reasons: condition negated: if config.sinks and config.dtype != 'bfloat16': ...":
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 128, True)),
    'flash_attn.extra_reasons: condition negated: if fp8 and (d % 16 or dv % 16 or dv > 256): ...':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 128, True)),
    'flash_attn.extra_reasons: statement deleted: if fp8 and (d % 16 or dv % 16 or dv > 256): ...':
        ('test_flash_attn_arguments', 'test_3_widths_of_an_fp8_cache', (72, 72, False)),
    'flash_attn.extra_reasons: term dropped: dv % 16':
        ('test_flash_attn_arguments', 'test_3_widths_of_an_fp8_cache', (192, 120, False)),
    'flash_attn.head_reasons: and/or: 128 < d <= 192 and 96 < dv <= 128 -> 128 < d <= 192 or 96 < dv <= 128':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 96, False)),
    'flash_attn.head_reasons: and/or: d % 8 == dv % 8 == 0 and (128 < d <= 192 and 96 < dv <= 128 or (d <= 64 and dv <= 512)) -> d % 8 == dv % 8 == 0 or (128 < d <= 192 and 96 < dv <= 128 or (d <= 64 and dv <= 512))':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 96, False)),
    'flash_attn.head_reasons: argument is None: config of head_reasons':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 128, 128, True)),
    'flash_attn.head_reasons: arithmetic: dv % 8 -> dv // 8':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 128, True)),
    'flash_attn.head_reasons: constant: 8 -> 9 in d % 8':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 128, True)),
    'flash_attn.head_reasons: term dropped: 128 < d <= 192 and 96 < dv <= 128 or (d <= 64 and dv <= 512)':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_3', 'sm90', 192, 96, False)),
    'flash_attn.package_reasons: comparison: config.head_dim != config.v_dim -> config.head_dim == config.v_dim':
        ('test_flash_attn_family', 'test_who_serves_what', ('decode',)),
    'flash_attn.package_reasons: comparison: size > 1 -> size >= 1':
        ('test_flash_attn_arguments', 'test_the_calls_scale_wins_over_the_configs', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    'flash_attn.package_reasons: statement deleted: if config.attention_chunk: ...':
        ('test_flash_attn_family', 'test_who_serves_what', ('decode',)),
    'flash_attn.target: arguments swapped: package, config of target':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 64, 64, True)),
    'flash_attn_4._call.call: sign or not dropped: not splittable -> splittable':
        ('test_flash_attn_arguments', 'test_splits_are_handed_on', ('flash_attn_4', 'sm100', 'flash-attn-4', 128)),
    'flash_attn_4._call.call: sign or not dropped: not splittable -> splittable #2':
        ('test_flash_attn_arguments', 'test_splits_are_handed_on', ('flash_attn_4', 'sm100', 'flash-attn-4', 128)),
    'flash_attn_4._call.call: statement deleted: if sinks is not None and str(sinks.dtype) not in _SINKS: ...':
        ('test_flash_attn_arguments', 'test_4_sinks_of_another_dtype_are_named', ()),
    'flash_attn_4._call.call: term dropped: not splittable #2':
        ('test_flash_attn_arguments', 'test_4_splits_where_its_kernels_can', ()),
    'flash_attn_4._call: and/or: arch in _BLACKWELL and config.v_dim < 192 -> arch in _BLACKWELL or config.v_dim < 192':
        ('test_flash_attn_arguments', 'test_4_splits_where_its_kernels_can', ()),
    'flash_attn_4._expanded_rules: argument is None: config of _dedicated_reasons':
        ('test_flash_attn_arguments', 'test_4_prefills_mla_within_what_its_kernels_have', ('sm80', False, True)),
    'flash_attn_4._expanded_rules: arguments swapped: config.mla, MLADims of isinstance':
        ('test_flash_attn_arguments', 'test_4_prefills_mla_within_what_its_kernels_have', ('sm80', False, True)),
    'flash_attn_4._expanded_rules: arithmetic: config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim -> config.mla.qk_nope_head_dim - config.mla.qk_rope_head_dim':
        ('test_flash_attn_arguments', 'test_4_prefills_mla_within_what_its_kernels_have', ('sm86', False, False)),
    'flash_attn_4._expanded_rules: arithmetic: reasons + cls._dedicated_reasons(config, platform) -> reasons - cls._dedicated_reasons(config, platform)':
        ('test_flash_attn_arguments', 'test_4_prefills_mla_within_what_its_kernels_have', ('sm80', False, True)),
    'flash_attn_4._expanded_rules: term dropped: arch not in _PAGED':
        ('test_flash_attn_arguments', 'test_4_prefills_mla_within_what_its_kernels_have', ('sm90', True, True)),
    'flash_attn_4._kvcache.flash_attn_with_kvcache: argument is None: softmax_scale of call':
        ('test_flash_attn_arguments', 'test_the_calls_scale_wins_over_the_configs', ('flash_attn_4', 'sm100', 'flash-attn-4', 128)),
    'flash_attn_4._kvcache.flash_attn_with_kvcache: constant: 1 -> 0 in 1 if table is None else table.shape[1]':
        ('test_flash_attn_arguments', 'test_longest_keys_are_what_the_cache_can_hold', ()),
    'flash_attn_4._varlen.flash_attn_varlen_func: argument is None: _NAME of require #2':
        ('test_flash_attn_arguments', 'test_what_is_needed_is_named_with_the_backend', ('flash_attn_4', 'sm100', 'flash-attn-4', 128)),
    'flash_attn_4._varlen.flash_attn_varlen_func: statement deleted: page_table = cache.rows(page_table, None, cu_seqlens_q.shape[0] - 1)':
        ('test_flash_attn_arguments', 'test_a_page_table_may_have_more_rows_than_there_are_sequences', ('flash_attn_4', 'sm100', 'flash-attn-4', 128)),
    'flash_attn_4.extra_reasons: and/or: d != dv and (d % 16 or dv % 16 or max(d, dv) > 256) -> d != dv or (d % 16 or dv % 16 or max(d, dv) > 256)':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 128, 64, True)),
    'flash_attn_4.extra_reasons: and/or: d % 16 or dv % 16 or max(d, dv) > 256 -> d % 16 and dv % 16 and (max(d, dv) > 256)':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 128, 72, False)),
    'flash_attn_4.extra_reasons: arithmetic: d % 16 -> d // 16':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 128, 64, True)),
    'flash_attn_4.extra_reasons: arithmetic: dv % 16 -> dv // 16':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 128, 64, True)),
    'flash_attn_4.extra_reasons: arms swapped: cls._expanded_rules(config, platform) if cls._expands(config, phase) else [] -> [] if cls._expands(config, phase) else cls._expanded_rules(config, platform)':
        ('test_flash_attn_arguments', 'test_4_prefills_mla_within_what_its_kernels_have', ('sm80', False, True)),
    'flash_attn_4.extra_reasons: comparison: max(d, dv) > 256 -> max(d, dv) >= 256':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 256, 128, True)),
    'flash_attn_4.extra_reasons: constant: 256 -> 255 in (256, 256)':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm100', 256, 256, False)),
    'flash_attn_4.extra_reasons: constant: 256 -> 255 in max(d, dv) > 256':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 256, 128, True)),
    'flash_attn_4.extra_reasons: function: max(d, dv) -> min(d, dv)':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm90', 272, 64, False)),
    'flash_attn_4.extra_reasons: term dropped: (d, dv) not in ((192, 128), (256, 256))':
        ('test_flash_attn_arguments', 'test_widths', ('flash_attn_4', 'sm100', 192, 128, True)),
    'flash_attn_cache._make_cut: bound dropped: batch of page_table[:batch]':
        ('test_flash_attn_arguments', 'test_a_page_table_may_have_more_rows_than_there_are_sequences', ('flash_attn_2', 'sm80', 'flash-attn', 256)),
    'flash_attn_cache._make_positions: function: max(each, 1) -> min(each, 1)':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (1, 33, {'causal': True, 'window_size': [7, 0]}, True)),
    'flash_attn_cache._make_positions: function: max(each, 1) -> min(each, 1) #2':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (1, 33, {'causal': True, 'window_size': [7, 0]}, True)),
    'flash_attn_cache._make_positions: operands swapped: row - cu_seqlens[owner] -> cu_seqlens[owner] - row':
        ('test_flash_attn_arguments', 'test_3_rotary_where_the_kernel_would_turn_otherwise', ('flash-attn-3', False, 'no queries of one')),
    'flash_attn_cache._make_slots: and/or: new or 0 -> new and 0':
        ('test_flash_attn_arguments', 'test_tokens_in_a_batch_are_appended', ('flash_attn_3', 'sm90', 'vllm', 64, 3)),
    'flash_attn_cache._make_slots: arithmetic: row % max(new or 0, 1) -> row // max(new or 0, 1)':
        ('test_flash_attn_arguments', 'test_tokens_in_a_batch_are_appended', ('flash_attn_3', 'sm90', 'vllm', 64, 1)),
    'flash_attn_cache.fused: and/or: cu_seqlens_q is None or q.shape[0] == batch * most -> cu_seqlens_q is None and q.shape[0] == batch * most':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (3, 3, {'causal': True}, False)),
    'flash_attn_cache.fused: arithmetic: batch * most -> batch + most':
        ('test_flash_attn_arguments', 'test_2_tokens_in_a_batch_beside_ragged_queries', (True,)),
    'flash_attn_cache.fused: term dropped: k.shape[1] <= most':
        ('test_flash_attn_arguments', 'test_every_new_token_is_stored', ('flash_attn_3', 'sm90', 'flash-attn-3', 64, 'no queries')),
    'flash_attn_cache.turned.rotate: arguments swapped: 2 * half, 2 of slice':
        ('test_flash_attn_arguments', 'test_3_rotary_where_the_kernel_would_turn_otherwise', ('flash-attn-3', True, 'no queries of one')),
    'flash_attn_cache.turned.rotate: constant: 0 -> -1 in table.index_select(0, at)':
        ('test_flash_attn_arguments', 'test_3_rotary_where_the_kernel_would_turn_otherwise', ('flash-attn-3', False, 'no queries of one')),
    'flash_attn_cache.turned.rotate: constant: 1 -> 2 in -1':
        ('test_flash_attn_arguments', 'test_3_rotary_where_the_kernel_would_turn_otherwise', ('flash-attn-3', False, 'no queries of one')),
    'flash_attn_cache.turned.rotate: operands swapped: wide[..., one] * c - wide[..., two] * s -> wide[..., two] * s - wide[..., one] * c':
        ('test_flash_attn_arguments', 'test_3_rotary_where_the_kernel_would_turn_otherwise', ('flash-attn-3', False, 'no queries of one')),
    'flash_attn_cache.turned: argument is None: cu_seqlens_k_new of rotate':
        ('test_flash_attn_arguments', 'test_3_rotary_where_the_kernel_would_turn_otherwise', ('flash-attn-3', False, 'no queries of one')),
    'flash_attn_cache.write: bound dropped: -2 of tokens.shape[-2:]':
        ('test_flash_attn_arguments', 'test_tokens_in_a_batch_are_appended', ('flash_attn_3', 'sm90', 'vllm', 64, 1)),
    'flash_attn_v2._open_right: and/or: left >= 0 and right < 0 and (not causal) -> left >= 0 or right < 0 or (not causal)':
        ('test_flash_attn_family', 'test_2_a_window_that_is_open_on_the_right_alone_and_more_queries_than_keys', ()),
    'flash_attn_v2.varlen_func.flash_attn_varlen_func: function: max(max_seqlen_k, max_seqlen_q) -> min(max_seqlen_k, max_seqlen_q)':
        ('test_flash_attn_family', 'test_2_a_window_that_is_open_on_the_right_alone_and_more_queries_than_keys', ()),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: and/or: _open_right(window_size, causal) and most > width + 1 -> _open_right(window_size, causal) or most > width + 1':
        ('test_flash_attn_family', 'test_2_a_window_that_is_open_on_the_right_alone_and_more_queries_than_keys', ()),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: arithmetic: k_cache.shape[1] * (1 if table is None else table.shape[1]) -> k_cache.shape[1] + (1 if table is None else table.shape[1])':
        ('test_flash_attn_family', 'test_2_a_window_that_is_open_on_the_right_alone_and_more_queries_than_keys', ()),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: constant: 2 -> 1 in -2':
        ('test_flash_attn_family', 'test_2_appends_to_a_cache_of_fewer_tokens_than_a_group_has_heads', ()),
    'flash_attn_v2.with_kvcache.flash_attn_with_kvcache: term dropped: _open_right(window_size, causal)':
        ('test_flash_attn_family', 'test_2_a_window_that_is_open_on_the_right_alone_and_more_queries_than_keys', ()),
    'flash_attn_v2._empty: argument is None: shape of new_empty':
        ('test_flash_attn_arguments', 'test_2_no_query_at_all', (False,)),
    'flash_attn_v2._make_route: arithmetic: end - start -> end + start':
        ('test_flash_attn_family', 'test_2_takes_its_varlen_function_where_the_host_knows_it_is_safe', ()),
    'flash_attn_v2._make_route: bound dropped: 1 of ends[1:]':
        ('test_flash_attn_family', 'test_2_packed_queries_over_pages', ((2, 3), (0, 9), True)),
    'flash_attn_v2._make_route: operands swapped: end - start -> start - end':
        ('test_flash_attn_family', 'test_2_packed_queries_over_pages', ((2, 3), (0, 9), True)),
    'flash_attn_v2.splits: arms swapped: 1 if one else num_splits -> num_splits if one else 1':
        ('test_flash_attn_arguments', 'test_splits_are_handed_on', ('flash_attn_2', 'sm80', 'flash-attn', 256)),
    "flash_attn_v2.varlen_func.flash_attn_varlen_func: statement deleted: require(NAME, 'without page_table', cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)":
        ('test_flash_attn_arguments', 'test_what_is_needed_is_named_with_the_backend', ('flash_attn_2', 'sm80', 'flash-attn', 256)),
    'flash_attn_v3._lengthen: constant: 0 -> -1 in (0, 0, 0, width - given[name].shape[0])':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (3, 3, {'causal': True}, True)),
    'flash_attn_v3._lengthen: operands swapped: width - given[name].shape[0] -> given[name].shape[0] - width':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (3, 3, {'causal': True}, True)),
    'flash_attn_v3._vllm.attend: condition negated: if lse is None: ...':
        ('test_flash_attn_arguments', 'test_rows_of_an_unpaged_cache_are_picked', ('flash_attn_3', 'sm90', 'vllm', 64)),
    'flash_attn_v3.varlen_func.flash_attn_varlen_func: argument is None: q of _for_fp8':
        ('test_flash_attn_arguments', 'test_3_packed_fp8_keys', ('flash-attn-3', False)),
    'flash_attn_v3.varlen_func.flash_attn_varlen_func: arguments swapped: k.shape[-2], q.device of _spread_descales':
        ('test_flash_attn_arguments', 'test_3_packed_fp8_keys', ('flash-attn-3', False)),
    "flash_attn_v3.varlen_func.flash_attn_varlen_func: arguments swapped: name, 'with page_table' of require":
        ('test_flash_attn_arguments', 'test_what_is_needed_is_named_with_the_backend', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    'flash_attn_v3.varlen_func.flash_attn_varlen_func: arithmetic: cu_seqlens_q.shape[0] - 1 -> cu_seqlens_q.shape[0] + 1':
        ('test_flash_attn_arguments', 'test_3_packed_fp8_keys', ('flash-attn-3', False)),
    'flash_attn_v3.varlen_func.flash_attn_varlen_func: condition negated: if fp8: ...':
        ('test_flash_attn_arguments', 'test_3_packed_fp8_keys', ('flash-attn-3', False)),
    'flash_attn_v3.varlen_func.flash_attn_varlen_func: operands swapped: cu_seqlens_q.shape[0] - 1 -> 1 - cu_seqlens_q.shape[0]':
        ('test_flash_attn_arguments', 'test_3_packed_fp8_keys', ('flash-attn-3', False)),
    "flash_attn_v3.varlen_func.flash_attn_varlen_func: statement deleted: require(name, 'without page_table', cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)":
        ('test_flash_attn_arguments', 'test_what_is_needed_is_named_with_the_backend', ('flash_attn_3', 'sm90', 'flash-attn-3', 64)),
    'flash_attn_v3.varlen_func: arms swapped: _DESCALES if fp8 else frozenset() -> frozenset() if fp8 else _DESCALES':
        ('test_flash_attn_arguments', 'test_3_packed_fp8_keys', ('flash-attn-3', False)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: argument is None: name of scale_for':
        ('test_flash_attn_family', 'test_mla_needs_a_scale', ('flash-attn-3',)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: arguments swapped: cu_seqlens_k_new, table of write':
        ('test_flash_attn_arguments', 'test_tokens_in_a_batch_are_appended', ('flash_attn_3', 'sm90', 'vllm', 64, 1)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: constant: 1 -> 0 in -1 #7':
        ('test_flash_attn_family', 'test_deterministic_is_one_split', ('flash_attn_3', 'sm90', 'flash-attn-3')),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: constant: 1 -> 0 in k_cache.shape[1]':
        ('test_flash_attn_arguments', 'test_every_new_token_is_stored', ('flash_attn_3', 'sm90', 'vllm', 64, 'more tokens than a window')),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: sign or not dropped: -1 -> 1 #4':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (3, 3, {'causal': False}, True)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: sign or not dropped: -3 -> 3':
        ('test_flash_attn_arguments', 'test_3_who_appends_a_batch', (3, 3, {'causal': True}, False)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: sign or not dropped: not appends -> appends':
        ('test_flash_attn_arguments', 'test_tokens_in_a_batch_are_appended', ('flash_attn_3', 'sm90', 'vllm', 64, 1)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: statement deleted: if build.package is VLLM: ...':
        ('test_flash_attn_arguments', 'test_the_calls_scale_wins_over_the_configs', ('flash_attn_3', 'sm90', 'vllm', 64)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: statement deleted: table, index = (index[:, None], None)':
        ('test_flash_attn_arguments', 'test_rows_of_an_unpaged_cache_are_picked', ('flash_attn_3', 'sm90', 'vllm', 64)),
    'flash_attn_v3.with_kvcache.flash_attn_with_kvcache: term dropped: schedule is not None':
        ('test_flash_attn_arguments', 'test_3_without_a_scheduler_plans_nothing', ()),
    "flash_attn_variants.target: arms swapped: f'{VLLM.module}.flash_attn_varlen_func' if package is VLLM else super().target(phase, package, config) -> super().target(phase, package, config) if package is VLLM else f'{VLLM.module}.flash_attn_varlen_func'":
        ('test_flash_attn_arguments', 'test_mla_context_parallelism_is_vllms', ('flash-attn-3', False)),
}
