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


def test_every_identity_and_mask_rule_is_turned_red() -> None:
    covered = {check for _, _, checks in MUTATIONS.values() for check in checks}
    rules = {name for name in CHECKS if name.startswith(("identity_", "mask_"))}
    # These follow from the config, and from sparse and mla rules that have mutations of their own.
    assert rules - covered == {"mask_sliding_window_counts_itself", "identity_sparse_is_a_subset"}
