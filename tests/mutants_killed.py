"""Mutants of the torch backend -> the case of the conformance kit that turns each red.

Written by `python tests/mutants_torch.py --regenerate`.
"""

# ruff: noqa: E501

KILLED: dict[str, str] = {
    'torch_native._append: arithmetic: token // size -> token % size':
        'dense calls: decode bfloat16 8/2x128 append packed_decode',
    'torch_native._append: bound dropped: -2 of v.shape[-2:]':
        'dense calls: decode bfloat16 8/2x128 append packed_decode',
    'torch_native._append: bound dropped: first of new[first:last] #2':
        'dense calls: decode bfloat16 8/2x128 append packed_decode',
    'torch_native._append: comparison: sin is not None -> sin is None':
        'dense calls: decode bfloat16 8/2x128 append rotary packed_decode interleaved=False',
    'torch_native._append: constant: 1 -> 0 in k_cache.shape[1]':
        'dense calls: decode bfloat16 8/2x128 append packed_decode',
    'torch_native._attention: arms swapped: q.dtype if q.dtype.itemsize > 1 else torch.bfloat16 -> torch.bfloat16 if q.dtype.itemsize > 1 else q.dtype':
        'dense plain: prefill float16 8/2x128',
    'torch_native._read: arithmetic: low * size -> low + size':
        'dense plain: decode float16 8/2x128',
    'torch_native._read: condition negated: if page_table is None: ...':
        'dense plain: decode float16 8/2x128',
    'torch_native._read: operands swapped: first - low * size -> low * size - first':
        'dense sliding_window: decode-q4 bfloat16 8/2x128 sliding_window=9',
    'torch_native._read: statement deleted: if cache.dtype.itemsize == 1: ...':
        'dense plain: decode float16 8/2x128',
    'torch_native._refuse_hints: and/or: a.get(name) is not None and a[name] not in values -> a.get(name) is not None or a[name] not in values':
        'dense plain: prefill float16 8/2x128',
    'torch_native._rotate_rows: operands swapped: a * c - b * s -> b * s - a * c':
        'dense calls: decode bfloat16 8/2x128 append rotary packed_decode interleaved',
    'torch_native._varlen.keys: arguments swapped: b, first of _read #2':
        'dense plain: paged_varlen float16 8/2x128 paged_varlen',
    'torch_native._varlen.keys: arithmetic: call.start[b] + low -> call.start[b] - low':
        'dense sliding_window: paged_varlen float16 8/2x128 sliding_window=9 paged_varlen',
    'torch_native._varlen.keys: bound dropped: first of v[first:last]':
        'dense plain: prefill float16 8/2x128',
    'torch_native._varlen: and/or: return_softmax_lse or return_attn_probs -> return_softmax_lse and return_attn_probs':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_native._with_kvcache: argument is None: flat_qv of _attention':
        'mla plain: decode float16 16/1x576-512 mla',
    'torch_native._with_kvcache: argument is None: rotary_cos of _rotate_rows':
        'dense calls: decode bfloat16 8/2x128 append rotary packed_decode interleaved=False',
    'torch_native._with_kvcache: arguments swapped: rotary_cos, rotary_sin of _append':
        'dense calls: decode bfloat16 8/2x128 append rotary packed_decode interleaved=False',
    'torch_native._with_kvcache: arms swapped: call.before if rotary_seqlens is None else rotary_seqlens.tolist() -> rotary_seqlens.tolist() if rotary_seqlens is None else call.before':
        'dense calls: decode bfloat16 8/2x128 append packed_decode',
    'torch_native._with_kvcache: constant: 1 -> 0 in -1 #2':
        'mla plain: decode float16 16/1x576-512 mla',
    'torch_native._with_kvcache: constant: 1 -> 2 in -1 #2':
        'mla plain: decode float16 16/1x576-512 mla',
    'torch_native._with_kvcache: sign or not dropped: -2 -> 2':
        'dense plain: extend float16 8/2x128',
    "torch_native._with_kvcache: term dropped: a['attention_chunk'] > 0":
        'dense calls: extend bfloat16 8/2x128 attention_chunk=16 non_causal append rotary interleaved=False',
    "torch_native._with_kvcache: term dropped: a['causal']":
        'dense calls: extend bfloat16 8/2x128 append rotary interleaved=False',
    'torch_sequence._exact.fold: arguments swapped: group * n, -1 of reshape':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence._exact: arithmetic: group * n -> group + n':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence._exact: condition negated: if softcap > 0: ...':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence._exact: constant: 1 -> 0 in k.permute(1, 2, 0)':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence._exact: constant: 2 -> 3 in :2':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence._exact: sign or not dropped: -1 -> 1 #2':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence._exact: sign or not dropped: -1 -> 1 #4':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    "torch_sequence._is_plain_causal: term dropped: a['causal']":
        'dense types: prefill bfloat16 8/2x128 non_causal encoder',
    "torch_sequence._limits: arms swapped: 0 if a['causal'] else right -> right if a['causal'] else 0":
        'dense plain: decode-q4 float16 8/2x128',
    'torch_sequence._limits: condition negated: if chunk > 0: ...':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._limits: function: max(0, p - left) -> min(0, p - left)':
        'dense types: prefill bfloat16 8/2x128 sliding_window=9 non_causal encoder',
    'torch_sequence._limits: function: max(low, p // chunk * chunk) -> min(low, p // chunk * chunk)':
        'dense attention_chunk: prefill bfloat16 8/2x128 attention_chunk=16',
    "torch_sequence._limits: statement deleted: right = 0 if a['causal'] else right":
        'dense plain: decode-q4 float16 8/2x128',
    'torch_sequence._mask: bound dropped: 1 of (:, 1:)':
        'dense plain: decode-q4 float16 8/2x128',
    "torch_sequence._mask: comparison: a['mm_prefix_ranges'] is not None -> a['mm_prefix_ranges'] is None":
        'dense plain: decode-q4 float16 8/2x128',
    'torch_sequence._mask: comparison: p >= start -> p > start':
        'dense mm_prefix: prefill bfloat16 8/2x128 mm_prefix',
    "torch_sequence._mask: statement deleted: if a['mm_prefix_ranges'] is not None: ...":
        'dense mm_prefix: prefill bfloat16 8/2x128 mm_prefix',
    'torch_sequence._real: condition negated: if descale.numel() == 1: ...':
        'dense fp8: decode bfloat16+fp8_e4m3 8/2x128',
    'torch_sequence._real: statement deleted: if descale.numel() == 1: ...':
        'dense fp8: decode bfloat16+fp8_e4m3 8/2x128',
    'torch_sequence._sdpa: and/or: mask is None and (not causal) -> mask is None or not causal':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._sdpa: arithmetic: width - dim -> width + dim #2':
        'dense head_dim: prefill bfloat16 8/2x192-128',
    'torch_sequence._sdpa: arms swapped: out if mask is None else out.masked_fill(~mask.any(-1)[:, None, None], 0.0) -> out.masked_fill(~mask.any(-1)[:, None, None], 0.0) if mask is None else out':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._sdpa: function: mask.any(-1) -> mask.all(-1)':
        'dense plain: decode-q4 float16 8/2x128',
    'torch_sequence._sdpa: function: max(dim, v.shape[-1]) -> min(dim, v.shape[-1])':
        'dense head_dim: prefill bfloat16 8/2x192-128',
    'torch_sequence._sdpa: operands swapped: width - dim -> dim - width #2':
        'dense head_dim: prefill bfloat16 8/2x64-128',
    'torch_sequence._sdpa: sign or not dropped: -1 -> 1 #3':
        'dense head_dim: prefill bfloat16 8/2x192-128',
    'torch_sequence._sdpa: sign or not dropped: not causal -> causal':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._span: argument is None: a of _limits':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._span: argument is None: first of range':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._span: arguments swapped: len_k, a of _limits':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._span: arguments swapped: p, len_k of _limits':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence._span: statement deleted: if high > low: ...':
        'dense plain: prefill float16 8/2x128',
    "torch_sequence._sparse: arms swapped: None if qv is None else _real(qv[t:t + 1], a['q_descale'], b) -> _real(qv[t:t + 1], a['q_descale'], b) if qv is None else None":
        'dense sparse: decode-q4 bfloat16 8/2x128 sparse',
    'torch_sequence._sparse: bound dropped: t + 1 of qv[t:t + 1]':
        'mla sparse: decode-q4 bfloat16 16/1x576-512 mla sparse',
    'torch_sequence._sparse: comparison: slots >= 0 -> slots > 0':
        'dense sparse: extend bfloat16 8/2x128 sparse',
    'torch_sequence._sparse: constant: 0 -> -1 in slots >= 0':
        'dense sparse: decode-q4 bfloat16 8/2x128 sparse',
    'torch_sequence._sparse: constant: 1 -> 0 in k_store.shape[1]':
        'dense sparse: decode-q4 bfloat16 8/2x128 sparse',
    'torch_sequence._sparse: sign or not dropped: not slots.numel() -> slots.numel()':
        'dense sparse: decode-q4 bfloat16 8/2x128 sparse',
    'torch_sequence.sequence: and/or: free and _all_visible(p0, p1, low, high, a, call.len_k[b]) -> free or _all_visible(p0, p1, low, high, a, call.len_k[b])':
        'dense plain: decode-q4 float16 8/2x128',
    "torch_sequence.sequence: and/or: free and qv is None and (lse is None) and (a['sinks'] is None) and (a['softcap'] == 0) and (q.dtype.itemsize > 1) and (k_store.dtype == q.dtype) and (a['q_descale'] is None) and (a['k_descale'] is None) and (a['v_descale'] is None) -> free or qv is None or lse is None or (a['sinks'] is None) or (a['softcap'] == 0) or (q.dtype.itemsize > 1) or (k_store.dtype == q.dtype) or (a['q_descale'] is None) or (a['k_descale'] is None) or (a['v_descale'] is None)":
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    "torch_sequence.sequence: and/or: lse is not None and a['sinks'] is not None -> lse is not None or a['sinks'] is not None":
        'dense sinks: decode bfloat16 8/2x128 sinks',
    'torch_sequence.sequence: and/or: plain and _is_plain_causal(a, last - first, call.len_k[b]) -> plain or _is_plain_causal(a, last - first, call.len_k[b])':
        'dense plain: decode float16 8/2x128',
    'torch_sequence.sequence: argument is None: a of _all_visible':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence.sequence: argument is None: k of _real #2':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence.sequence: argument is None: mask of _exact':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence.sequence: argument is None: step of range':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence.sequence: arguments swapped: b, low of keys':
        'dense plain: prefill float16 8/2x128',
    "torch_sequence.sequence: arguments swapped: q[i0:i1], a['q_descale'] of _real":
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    "torch_sequence.sequence: arms swapped: None if qv is None else _real(qv[i0:i1], a['q_descale'], b) -> _real(qv[i0:i1], a['q_descale'], b) if qv is None else None":
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence.sequence: bound dropped: i0 of (:, i0:i1)':
        'dense empty rows: decode bfloat16 8/2x128 sinks return_softmax_lse',
    'torch_sequence.sequence: bound dropped: i1 of q[i0:i1] #3':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    "torch_sequence.sequence: condition negated: if a['sparse_indices'] is not None: ...":
        'dense plain: prefill float16 8/2x128',
    'torch_sequence.sequence: condition negated: if plain: ...':
        'dense spelling: prefill bfloat16 8/2x128 return_softmax_lse return_attn_probs',
    'torch_sequence.sequence: condition negated: if whole: ...':
        'dense plain: decode float16 8/2x128',
    'torch_sequence.sequence: function: max(1, local * (1 if plain else heads)) -> min(1, local * (1 if plain else heads))':
        'dense plain: decode float16 8/2x128',
    'torch_sequence.sequence: function: min(i0 + step, last) -> max(i0 + step, last)':
        'dense plain: decode-q4 float16 8/2x128',
    'torch_sequence.sequence: operands swapped: call.end[b] - call.start[b] -> call.start[b] - call.end[b]':
        'dense tree_mask: prefill bfloat16 8/2x128 tree_mask',
    'torch_sequence.sequence: operands swapped: last - first -> first - last #3':
        'dense plain: decode-q4 float16 8/2x128',
    'torch_sequence.sequence: operands swapped: p0 + i1 - i0 - 1 -> 1 - (p0 + i1 - i0)':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence.sequence: operands swapped: p0 + i1 - i0 -> i0 - (p0 + i1)':
        'dense plain: prefill float16 8/2x128',
    'torch_sequence.sequence: sign or not dropped: not (free and _all_visible(p0, p1, low, high, a, call.len_k[b])) -> free and _all_visible(p0, p1, low, high, a, call.len_k[b])':
        'dense plain: decode-q4 float16 8/2x128',
    "torch_sequence.sequence: statement deleted: lse[:, i0:i1] = a['sinks'].float()[:, None]":
        'dense sinks: decode bfloat16 8/2x128 sinks return_softmax_lse no keys',
    "torch_sequence.sequence: term dropped: a['mm_prefix_ranges'] is None":
        'dense mm_prefix: prefill bfloat16 8/2x128 mm_prefix',
    'torch_sequence.sequence: term dropped: lse is not None':
        'dense sinks: decode bfloat16 8/2x128 sinks',
}
