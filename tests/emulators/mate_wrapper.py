"""MATE's flash_attn_interface at 0.2.2 (distribution flash_attn_3, wrappers/flash-attention of MATE): other names for
the same functions. sinks or s_aux for learnable_sink, cache_seqlens for seqused_k, block_table for page_table,
sm_margin for mp_margin; both names of the LSE flag. What it has no name for can't be passed: backend.

    library = mate()
    with library.installed(), wrapper(library).installed():
        from flash_attn_interface import flash_attn_with_kvcache
"""

from __future__ import annotations

import types
from typing import Any

import contract_data

from emulators.common import Vendor
from emulators.mate import KVCACHE, METADATA, VARLEN

MODULE = "flash_attn_interface"
# Names and defaults of wrappers/flash-attention/flash_attn_3/interface.py; None where a default is written as None.
_TAIL = "cp_world_size=1 cp_rank=0 cp_tot_seqused_k=None"
_DESCALES = "q_descale=None k_descale=None v_descale=None"
PARAMETERS = {
    "flash_attn_func": f"q k v softmax_scale=None causal=False qv=None {_DESCALES} window_size=(-1,-1) "
    "attention_chunk=0 softcap=0.0 num_splits=0 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False "
    f"return_softmax_lse=False sinks=None s_aux=None {_TAIL}",
    "flash_attn_varlen_func": "q k v cu_seqlens_q=None cu_seqlens_k=None max_seqlen_q=None max_seqlen_k=None "
    "seqused_q=None seqused_k=None page_table=None block_table=None softmax_scale=None causal=False qv=None "
    f"{_DESCALES} window_size=(-1,-1) attention_chunk=0 softcap=0.0 scheduler_metadata=None num_splits=0 "
    "pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False return_softmax_lse=False sinks=None "
    f"s_aux=None {_TAIL} out=None",
    "flash_attn_with_kvcache": "q k_cache v_cache k=None v=None qv=None rotary_cos=None rotary_sin=None "
    "cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None cu_seqlens_q=None "
    f"cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None {_DESCALES} softmax_scale=None causal=False "
    "window_size=(-1,-1) attention_chunk=0 softcap=0.0 rotary_interleaved=True scheduler_metadata=None num_splits=0 "
    f"pack_gqa=None sm_margin=0 return_softmax_lse=False sinks=None s_aux=None {_TAIL}",
    "get_scheduler_metadata": "batch_size max_seqlen_q max_seqlen_k num_heads_q num_heads_kv headdim cache_seqlens "
    "qkv_dtype=torch.bfloat16 headdim_v=None cu_seqlens_q=None cu_seqlens_k_new=None cache_leftpad=None "
    "page_size=None max_seqlen_k_new=0 causal=False window_size=(-1,-1) attention_chunk=0 has_softcap=False "
    "num_splits=0 pack_gqa=None sm_margin=0",
}
CALLS = {"flash_attn_func": VARLEN, "flash_attn_varlen_func": VARLEN, "flash_attn_with_kvcache": KVCACHE,
         "get_scheduler_metadata": METADATA}
NAMES = {"cache_seqlens": "seqused_k", "sm_margin": "mp_margin"}  # of get_scheduler_metadata alone
DROPPED = ("page_size",)  # of get_scheduler_metadata: taken and not handed on


def wrapper(library: Vendor) -> Vendor:
    """library: mate(). Its calls are recorded there, too."""
    rows = {name: [[p.partition("=")[0], "positional_or_keyword", *([p.partition("=")[2]] if "=" in p else [])]
                   for p in text.split()] for name, text in PARAMETERS.items()}
    contract = contract_data.parse({"package": "flash_attn_3", "releases": {"0.2.2": {}}, "functions": {
        f"{MODULE}.{name}": [{"releases": ["0.2.2"], "signatures": [row]}] for name, row in rows.items()}})

    def handed_on(name: str) -> Any:
        owner, _, function = CALLS[name].rpartition(".")
        return lambda a: getattr(library.modules[owner], function)(**renamed(name, a))

    return Vendor("flash_attn_3", "0.2.2", {f"{MODULE}.{name}": handed_on(name) for name in PARAMETERS},
                  contract=contract)


def renamed(name: str, a: types.SimpleNamespace) -> dict[str, Any]:
    given = vars(a).copy()
    if name == "get_scheduler_metadata":
        return {NAMES.get(key, key): value for key, value in given.items() if key not in DROPPED}
    sinks, s_aux = given.pop("sinks"), given.pop("s_aux")
    given["learnable_sink"] = sinks if sinks is not None else s_aux
    if "return_attn_probs" in given:
        given["return_softmax_lse"] = given.pop("return_attn_probs") or given["return_softmax_lse"]
    if "block_table" in given:
        block_table = given.pop("block_table")
        given["page_table"] = given["page_table"] if given["page_table"] is not None else block_table
    return given
