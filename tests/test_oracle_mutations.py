"""The oracle broken on purpose: every rule has a check that turns red without it.

Each row replaces one piece of hal/oracle.py's text and names the checks that must fail on the broken copy.
"""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from oracle_checks import CHECKS

from hal import oracle

# name: (text in the oracle, what it becomes, checks that must turn red)
MUTATIONS = {
    "causal is dropped": ("    if causal:\n        right = 0\n", "", ["mask_causal_bottom_right", "mask_causal_caps_right"]),
    "causal is aligned top left": ("p = i + len_k - len_q", "p = i", ["mask_causal_bottom_right", "mask_window_left"]),
    "the left window is off by one": ("p - key <= left)", "p - key < left)", ["mask_window_left", "identity_window_is_masked_causal"]),
    "the left window is dropped": ("if left >= 0:", "if False:", ["mask_window_left", "identity_window_is_masked_causal"]),
    "the right window is off by one": ("key - p <= right)", "key - p < right)", ["mask_window_right", "mask_causal_bottom_right"]),
    "a window of 0 counts as none": ("if right >= 0:", "if right > 0:", ["mask_causal_bottom_right", "mask_causal_caps_right"]),
    "the chunk is dropped": ("if chunk > 0:", "if False:", ["mask_chunk", "mask_leftpad"]),
    "chunks round towards zero": ('rounding_mode="floor"', 'rounding_mode="trunc"', ["mask_chunk"]),
    "chunks end one late": ("(key < start + chunk)", "(key <= start + chunk)", ["mask_chunk"]),
    "the tree mask is dropped": ("if tree_mask is not None:", "if False:", ["mask_tree"]),
    "the tree mask hides the cache": ("own = (step >= 0)[None, :]", "own = (step >= -99)[None, :]", ["mask_tree"]),
    "prefix ranges are dropped": ("seen = seen | (inside_p", "seen = seen & (inside_p", ["mask_mm_prefix"]),
    "prefix ranges are closed": ("inside_key = (p >= start) & (p < end), (key >= start) & (key < end)",
                                 "inside_key = (p >= start) & (p <= end), (key >= start) & (key <= end)", ["mask_mm_prefix"]),
    "sparse -1 is slot -1": ("indices[i][indices[i] >= 0].long()", "indices[i].long()", ["mask_sparse"]),
    "leftpad is dropped": ("leftpad = _ints(cache_leftpad, [0] * batch)", "leftpad = [0] * batch", ["mask_leftpad"]),
    "positions ignore leftpad": ("end - leftpad[b] if cp_tot", "end if cp_tot", ["mask_leftpad"]),
    "seqused_q is dropped": ("if seqused_q is None else seqused_q.tolist()", "", ["mask_seqused"]),
    "seqused_k is dropped": ("if seqused_k is None else start + int(seqused_k[b])", "", ["mask_seqused"]),
    "cache_batch_idx is dropped": ("owner = _ints(cache_batch_idx, list(range(batch)))", "owner = list(range(batch))",
                                   ["mask_cache_batch_idx"]),
    "pages are read in storage order": ("return page_table[owner[b]].long()[token // page_size], token % page_size",
                                        "return token // page_size, token % page_size",
                                        ["identity_page_permutation", "identity_paged_is_unpaged"]),
    "the offset in a page is lost": ("[token // page_size], token % page_size", "[token // page_size], token * 0",
                                     ["identity_paged_is_unpaged"]),
    "the LSE is base 2": ("top + torch.log(total)", "top + torch.log2(total)", ["hand_two_keys", "identity_split_and_merge"]),
    "the LSE forgets the maximum": ("-INF, top + torch.log(total)", "-INF, torch.log(total)",
                                    ["identity_split_and_merge", "identity_context_parallel"]),
    "the append lands one late": ("place(b, before[b], before[b] + appended[b])",
                                  "place(b, before[b] + 1, before[b] + 1 + appended[b])", ["identity_append_then_attend"]),
    "appended tokens are not attended to": ("end = before[b] + appended[b]", "end = before[b]", ["identity_append_then_attend"]),
    "ranks hold blocks, not strides": ("key = j * cp_world_size + cp_rank", "key = j + cp_rank", ["identity_context_parallel"]),
    "context parallelism uses local lengths": ("if cp_tot_seqused_k is None else int(cp_tot_seqused_k[b])", "",
                                               ["identity_context_parallel"]),
    "the sink is dropped": ("if sinks is not None:\n            sink", "if False:\n            sink",
                            ["hand_sink", "identity_sink_is_an_extra_key", "empty_rows"]),
    "the sink is scaled": ("sink = sinks[:, None]", "sink = sinks[:, None] * scale",
                           ["hand_sink", "identity_sink_is_an_extra_key"]),
    "the sink adds to the output": ("acc = acc * decay[:, :, None]\n            top", "top",
                                    ["identity_sink_is_an_extra_key"]),
    "softcap is dropped": ("if softcap > 0:", "if False:", ["hand_softcap"]),
    "softcap comes before the scale": ("s = softcap * torch.tanh(s / softcap)",
                                       "s = softcap * torch.tanh(s / scale / softcap) * scale", ["hand_softcap"]),
    "the scale is dropped": ("s = s * scale", "s = s", ["hand_default_scale", "hand_explicit_scale"]),
    "query heads interleave over KV heads": ("kb = torch.where(used, k[j0:j1], 0.0).repeat_interleave(group, dim=1)\n"
                                             "            vb = torch.where(used, v[j0:j1], 0.0).repeat_interleave(group, dim=1)",
                                             "kb = torch.where(used, k[j0:j1], 0.0).repeat(1, group, 1)\n"
                                             "            vb = torch.where(used, v[j0:j1], 0.0).repeat(1, group, 1)", ["hand_gqa"]),
    "qv is dropped": ("if qv is not None:\n                s", "if False:\n                s", ["hand_qv", "identity_mla_is_concatenation"]),
    "qv has a default scale": ("    if qv is not None:\n        raise", "    if False:\n        raise", ["hand_qv"]),
    "descales are dropped": ("    if descale is None:\n        return x", "    if True:\n        return x", ["hand_descales"]),
    "rotary always pairs neighbours": ("if interleaved:", "if True:", ["hand_rotary"]),
    "rotary turns the other way": ("a * c - b * s, a * s + b * c\n    else", "a * c + b * s, b * c - a * s\n    else", ["hand_rotary"]),
    "rotary positions start at 0": ("start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n                positions",
                                    "start = 0\n                positions", ["identity_append_rotates"]),
    "full attention rotates q along": ("if causal or local else", "if True else", ["identity_append_rotates"]),
    "empty rows give NaN": ("torch.where(total[:, :, None] == 0, 0.0, acc / total[:, :, None])", "(acc / total[:, :, None])",
                            ["empty_rows"]),
    "blocks forget the earlier sum": ("total = total * decay + weight.sum(-1)", "total = weight.sum(-1)", ["identity_blocks"]),
    "blocks skip a key": ("j1 = min(j0 + BLOCK_K, k.shape[0])", "j1 = min(j0 + BLOCK_K - 1, k.shape[0])", ["identity_blocks"]),
    "blocks forget the earlier output": ("acc = acc * decay[:, :, None] + torch", "acc = acc + torch", ["identity_blocks"]),
    "a huge left window overflows": ("p - key <= left)", "key >= p - left)", ["mask_window_of_int64"]),
    "a huge right window overflows": ("key - p <= right)", "key <= p + right)", ["mask_window_of_int64"]),
    "a NaN score has the LSE of an empty row": ("torch.where(total == 0, -INF, top + torch.log(total))",
                                                "torch.where(total > 0, top + torch.log(total), -INF)", ["hand_visible_nan"]),
    "a NaN score has the output of an empty row": ("torch.where(total[:, :, None] == 0, 0.0, acc / total[:, :, None])",
                                                   "torch.where(total[:, :, None] > 0, acc / total[:, :, None], 0.0)",
                                                   ["hand_visible_nan"]),
    # The same of k would change nothing: its scores are masked afterwards.
    "values that nobody sees are read": ("torch.where(used, v[j0:j1], 0.0)", "v[j0:j1]",
                                         ["brute_force_kvcache", "brute_force_varlen", "brute_force_context_parallel"]),
    "one token past the end is attended to": ("end = before[b] + appended[b]\n",
                                              "end = before[b] + appended[b]\n        end += end % page_size != 0\n",
                                              ["brute_force_kvcache", "mask_leftpad", "identity_page_permutation"]),
    "the sink is in the first block only": ("if sinks is not None:\n            sink", "if sinks is not None and i0 == 0:\n            sink",
                                            ["hand_sink_in_every_block"]),
    "out is not written": ("out.copy_(result)", "pass", ["hand_sink_in_every_block", "result_shapes"]),
    "the LSE of a batch is not transposed": ("lse.view(lse.shape[0], q.shape[0], q.shape[1]).transpose(0, 1)",
                                             "lse.view(q.shape[0], lse.shape[0], q.shape[1])",
                                             ["result_shapes", "empty_rows", "brute_force_kvcache"]),
    "an int length is the first sequence's": ("[value] * len(default)", "[value] + default[1:]",
                                              ["hand_int_cache_seqlens", "brute_force_kvcache"]),
    "no cache_seqlens is an empty cache": ("before = _ints(cache_seqlens, [capacity] * batch)", "before = _ints(cache_seqlens, [0] * batch)",
                                           ["hand_int_cache_seqlens", "hand_two_keys", "brute_force_kvcache"]),
    "cache_batch_idx is dropped for tables": ("page_table[owner[b]].long()", "page_table[b].long()",
                                              ["brute_force_kvcache", "brute_force_sparse"]),
    "cache_batch_idx is dropped for caches": ("torch.full_like(token, owner[b]), token", "torch.full_like(token, b), token",
                                              ["mask_cache_batch_idx", "brute_force_kvcache"]),
    "tables are the first sequence's": ("page_table[b].long()[token // k.shape[1]]", "page_table[0].long()[token // k.shape[1]]",
                                        ["identity_paged_is_unpaged", "brute_force_varlen"]),
    "the append counts from leftpad": ("place(b, before[b], before[b] + appended[b])",
                                       "place(b, before[b] - leftpad[b], before[b] - leftpad[b] + appended[b])",
                                       ["brute_force_kvcache", "brute_force_sparse"]),
    "the append is packed as q is": ("_rows(k, cu_seqlens_k_new)", "_rows(k, cu_seqlens_q)", ["brute_force_kvcache"]),
    "descales interleave over query heads": ("scale[b].repeat_interleave(x.shape[1] // scale.shape[1])",
                                             "scale[b].repeat(x.shape[1] // scale.shape[1])",
                                             ["brute_force_kvcache", "brute_force_varlen", "brute_force_sparse"]),
    "descales are the first sequence's": ("x * scale[b].repeat", "x * scale[0].repeat",
                                          ["brute_force_kvcache", "brute_force_varlen", "brute_force_sparse"]),
    "qv is not descaled": ("_descale(flat_qv[first:last], q_descale, b)", "flat_qv[first:last].double()", ["brute_force_kvcache"]),
    "v is not descaled": ("_descale(v_cache[page, offset], v_descale, b)\n        len_k", "v_cache[page, offset].double()\n        len_k",
                          ["hand_descales", "brute_force_kvcache"]),
    "varlen: q is not descaled": ("qb = _descale(q[first:last], q_descale, b)", "qb = q[first:last].double()",
                                  ["brute_force_varlen", "brute_force_sparse"]),
    "varlen: qv is not descaled": ("_descale(qv[first:last], q_descale, b)", "qv[first:last].double()", ["brute_force_varlen"]),
    "varlen: k and v are not descaled": ("kb, vb = _descale(kb, k_descale, b), _descale(vb, v_descale, b)", "kb, vb = kb.double(), vb.double()",
                                         ["brute_force_varlen", "brute_force_context_parallel"]),
    "sparse: k is not descaled": ("_descale(k_cache[page, offset], k_descale, b),\n", "k_cache[page, offset].double(),\n",
                                  ["brute_force_sparse"]),
    "sparse: v is not descaled": ("_descale(v_cache[page, offset], v_descale, b), None if", "v_cache[page, offset].double(), None if",
                                  ["brute_force_sparse"]),
    "sparse: sinks are dropped": ("scale, softcap, sinks, lambda", "scale, softcap, None, lambda", ["brute_force_sparse"]),
    "sparse: softcap is dropped": ("scale, softcap, sinks, lambda", "scale, 0.0, sinks, lambda", ["brute_force_sparse"]),
    "sparse: qv is dropped": ("None if qv is None else qv[i : i + 1]", "None", ["brute_force_sparse"]),
    "sparse: the offset in a page is lost": ("slots // page_size, slots % page_size", "slots // page_size, slots * 0",
                                             ["brute_force_sparse", "identity_sparse_is_a_subset"]),
    "q's rotary counts from leftpad": ("start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n            #",
                                       "start = before[b] - leftpad[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n            #",
                                       ["brute_force_kvcache"]),
    "k's rotary counts from leftpad": ("start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n                positions",
                                       "start = before[b] - leftpad[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n                positions",
                                       ["brute_force_kvcache", "brute_force_sparse"]),
    "rotary_seqlens is dropped for q": ("start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n            #",
                                        "start = before[b]\n            #", ["identity_append_rotates", "brute_force_kvcache"]),
    "rotary_seqlens is dropped for k": ("start = before[b] if rotary_seqlens is None else int(rotary_seqlens[b])\n                positions",
                                        "start = before[b]\n                positions", ["identity_append_rotates", "brute_force_kvcache"]),
    "a chunk is not local to rotary": (" or attention_chunk > 0\n", "\n", ["identity_append_rotates", "brute_force_kvcache"]),
    "a right window is not local to rotary": ("local = window_size[0] >= 0 or window_size[1] >= 0", "local = window_size[0] >= 0",
                                              ["identity_append_rotates", "brute_force_kvcache"]),
    "a left window is not local to rotary": ("local = window_size[0] >= 0 or window_size[1] >= 0", "local = window_size[1] >= 0",
                                             ["identity_append_rotates", "brute_force_kvcache"]),
    "the sines of interleaved pairs are wrong": ("a * s + b * c\n    else", "a * s - b * c\n    else",
                                                 ["hand_rotary_45_degrees", "identity_append_rotates", "brute_force_kvcache"]),
    "the sines of halves are wrong": ("turned[..., half : 2 * half] = a * c - b * s, a * s + b * c",
                                      "turned[..., half : 2 * half] = a * c - b * s, b * c - a * s",
                                      ["hand_rotary", "hand_rotary_45_degrees", "identity_append_rotates"]),
    "the rotated q is not rounded": ("rotary_interleaved).to(q.dtype).double()", "rotary_interleaved)", ["brute_force_kvcache"]),
    # "(key < len_k)" in the ranges has no row: a valid call gives a rank no token past the global length.
    "prefix ranges count local tokens": ("(key >= start) & (key < end)", "(j >= start) & (j < end)", ["brute_force_context_parallel"]),
    "prefix ranges are the first sequence's": ("ranges[b] if", "ranges[0] if", ["brute_force_kvcache", "brute_force_varlen"]),
    "a packed tree starts at row 0": ("tree_mask[first + i] if packed", "tree_mask[i] if packed",
                                      ["brute_force_kvcache", "brute_force_varlen", "brute_force_context_parallel"]),
    "trees are the first sequence's": ("tree_mask[b][i]", "tree_mask[0][i]", ["brute_force_kvcache"]),
    "varlen: causal is dropped": ("len_k, causal, window_size, attention_chunk, True", "len_k, False, window_size, attention_chunk, True",
                                  ["mask_seqused", "identity_paged_is_unpaged", "brute_force_varlen"]),
    "varlen: the window is dropped": ("len_k, causal, window_size, attention_chunk, True", "len_k, causal, (-1, -1), attention_chunk, True",
                                      ["brute_force_varlen", "brute_force_context_parallel"]),
    "varlen: the chunk is dropped": ("len_k, causal, window_size, attention_chunk, True", "len_k, causal, window_size, 0, True",
                                     ["brute_force_varlen"]),
    "varlen: the tree is dropped": ("attention_chunk, True, tree_mask,", "attention_chunk, True, None,",
                                    ["brute_force_varlen", "brute_force_context_parallel"]),
    "varlen: the ranges are dropped": ("mm_prefix_ranges, cp_world_size, cp_rank)\n        result[first:last], lse[:, first:last] = attend(qb, kb, vb, qvb, scale, softcap, sink, mask)\n    return _finish(result, lse, q, True",
                                       "None, cp_world_size, cp_rank)\n        result[first:last], lse[:, first:last] = attend(qb, kb, vb, qvb, scale, softcap, sink, mask)\n    return _finish(result, lse, q, True",
                                       ["brute_force_varlen", "brute_force_context_parallel"]),
    "varlen: context parallelism uses local lengths": ("kb.shape[0] if cp_tot_seqused_k is None else int(cp_tot_seqused_k[b])", "kb.shape[0]",
                                                       ["brute_force_context_parallel"]),
    "varlen: return_softmax_lse is dropped": ("return_softmax_lse or return_attn_probs", "return_attn_probs",
                                              ["brute_force_varlen", "brute_force_sparse"]),
    "varlen: return_attn_probs is dropped": ("return_softmax_lse or return_attn_probs", "return_softmax_lse",
                                             ["identity_paged_is_unpaged", "brute_force_varlen"]),
    "varlen: softcap is dropped": ("attend(qb, kb, vb, qvb, scale, softcap, sink, mask)\n    return _finish(result, lse, q, True",
                                   "attend(qb, kb, vb, qvb, scale, 0.0, sink, mask)\n    return _finish(result, lse, q, True",
                                   ["brute_force_varlen", "brute_force_context_parallel"]),
    "varlen: sinks are dropped": ("attend(qb, kb, vb, qvb, scale, softcap, sink, mask)\n    return _finish(result, lse, q, True",
                                  "attend(qb, kb, vb, qvb, scale, softcap, None, mask)\n    return _finish(result, lse, q, True",
                                  ["brute_force_varlen", "brute_force_context_parallel"]),
    "varlen: qv is dropped": ("attend(qb, kb, vb, qvb, scale, softcap, sink, mask)\n    return _finish(result, lse, q, True",
                              "attend(qb, kb, vb, None, scale, softcap, sink, mask)\n    return _finish(result, lse, q, True",
                              ["brute_force_varlen"]),
    "softcap is dropped for caches": ("attend(qb, kb, vb, qvb, scale, softcap, sink, mask)\n    return _finish(result, lse, q, packed",
                                      "attend(qb, kb, vb, qvb, scale, 0.0, sink, mask)\n    return _finish(result, lse, q, packed",
                                      ["hand_softcap", "brute_force_kvcache", "brute_force_context_parallel"]),
}


def broken(old: str, new: str) -> types.ModuleType:
    source = Path(str(oracle.__file__)).read_text()
    assert old in source, f"the oracle no longer contains {old!r}: write this mutation anew"
    module = types.ModuleType("broken_oracle")
    exec(compile(source.replace(old, new), "broken_oracle.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_oracle_turns_red(name: str) -> None:
    old, new, checks = MUTATIONS[name]
    module = broken(old, new)
    for check in checks:
        with pytest.raises(AssertionError):
            CHECKS[check](module)


def test_every_check_is_turned_red() -> None:
    covered = {check for _, _, checks in MUTATIONS.values() for check in checks}
    # This one follows from the config.
    assert set(CHECKS) - covered == {"mask_sliding_window_counts_itself"}
