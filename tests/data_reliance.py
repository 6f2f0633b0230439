"""What every adapter relies on: how it calls each vendor function, and the vendor's defaults it counts on.

Held from both sides (test_contracts.py): the recorded calls must be exactly these, and every claimed release in
ci/contracts must have all of it. `sometimes`: passed where HAL's caller gives them. A new parameter of a release turns
a test red until somebody has read what it does and adds its default here.
"""

from __future__ import annotations

import ast

from contract_data import Reliance


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _reliance(positional: str = "", always: str = "", sometimes: str = "", defaults: str = "") -> Reliance:
    call = ast.parse(f"f({defaults})", mode="eval").body
    assert isinstance(call, ast.Call)
    return Reliance(_names(positional), frozenset(_names(always)), frozenset(_names(sometimes)),
                    {str(word.arg): ast.unparse(word.value) for word in call.keywords})


_FUSED = ("query, key, value, atten_mask, block_table, block_size, input_layout, num_key_value_heads, sparse_mode, "
          "pre_tokens, next_tokens")
_FUSED_V1 = "actual_seq_lengths, actual_seq_lengths_kv, num_heads, scale, softmax_lse_flag"
_FUSED_V2 = "actual_seq_qlen, actual_seq_kvlen, num_query_heads, softmax_scale, return_softmax_lse"
_FUSED_V1_LEFT = (
    "pse_shift=None, dequant_scale1=None, quant_scale1=None, dequant_scale2=None, quant_scale2=None, "
    "quant_offset2=None, antiquant_scale=None, antiquant_offset=None, key_antiquant_scale=None, "
    "key_antiquant_offset=None, value_antiquant_scale=None, value_antiquant_offset=None, query_padding_size=None, "
    "kv_padding_size=None, key_shared_prefix=None, value_shared_prefix=None, actual_shared_prefix_len=None, "
    "query_rope=None, key_rope=None, key_rope_antiquant_scale=None, inner_precise=0, antiquant_mode=0, "
    "key_antiquant_mode=0, value_antiquant_mode=0")
_FUSED_V2_LEFT = (
    "pse_shift=None, dequant_scale_query=None, dequant_scale_key=None, dequant_offset_key=None, "
    "dequant_scale_value=None, dequant_offset_value=None, dequant_scale_key_rope=None, quant_scale_out=None, "
    "quant_offset_out=None, quant_scale_p=None, query_quant_mode=0, key_quant_mode=0, value_quant_mode=0, "
    "inner_precise=0, query_dtype=None, key_dtype=None, value_dtype=None, query_rope_dtype=None, key_rope_dtype=None, "
    "key_shared_prefix_dtype=None, value_shared_prefix_dtype=None, dequant_scale_query_dtype=None, "
    "dequant_scale_key_dtype=None, dequant_scale_value_dtype=None, dequant_scale_key_rope_dtype=None, out_dtype=None")
_NO_ROPE = "query_rope=None, key_rope=None"
_SCATTER = _reliance(always="cache_mode, key, key_cache, slot_mapping, value, value_cache",
                     defaults="compress_lens=None, compress_seq_offsets=None, seq_lens=None")
_PAGED = "query, key_cache, value_cache, num_kv_heads, num_heads, scale_value, block_table, context_lens, out"

# (adapter of adapter_calls.py, vendor function) -> how it is called.
RELIANCE = {
    ("fa3", "flash_attn_interface.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_batch_idx, cache_seqlens, cu_seqlens_k_new, cu_seqlens_q, k, max_seqlen_q, num_splits, "
                "page_table, qv, return_softmax_lse, softmax_scale, v"),
        sometimes=("attention_chunk, cache_leftpad, causal, k_descale, pack_gqa, q_descale, rotary_cos, "
                   "rotary_interleaved, rotary_seqlens, rotary_sin, scheduler_metadata, sm_margin, softcap, "
                   "v_descale, window_size"),
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, causal=False, window_size=(-1, -1), attention_chunk=0, "
                  "softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, pack_gqa=None, sm_margin=0"),
    ),
    ("fa3", "flash_attn_interface.get_scheduler_metadata"): _reliance(
        positional=("batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, "
                    "cache_seqlens"),
        always=("cache_leftpad, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim_v, "
                "max_seqlen_k_new, num_splits, pack_gqa, page_size, qkv_dtype, sm_margin, window_size"),
        sometimes="attention_chunk",
        defaults="attention_chunk=0",
    ),
    ("fa3", "flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, num_splits, qv, return_attn_probs, "
                "seqused_k, softmax_scale"),
        sometimes=("attention_chunk, causal, deterministic, k_descale, pack_gqa, q_descale, seqused_q, "
                   "sm_margin, softcap, v_descale, window_size"),
        defaults=("seqused_q=None, causal=False, q_descale=None, k_descale=None, v_descale=None, "
                  "window_size=(-1, -1), attention_chunk=0, softcap=0.0, pack_gqa=None, deterministic=False, "
                  "sm_margin=0"),
    ),
    ("fa3_sglang", "sgl_kernel.flash_attn.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_batch_idx, cache_seqlens, cu_seqlens_k_new, cu_seqlens_q, k, max_seqlen_q, num_splits, "
                "page_table, qv, return_softmax_lse, sinks, softmax_scale, v"),
        sometimes=("attention_chunk, cache_leftpad, causal, k_descale, pack_gqa, q_descale, rotary_cos, "
                   "rotary_interleaved, rotary_seqlens, rotary_sin, scheduler_metadata, sm_margin, softcap, "
                   "v_descale, window_size"),
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, causal=False, window_size=(-1, -1), attention_chunk=None, "
                  "softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, pack_gqa=None, "
                  "only_qv=False, sm_margin=0, score_mod=None, aux_tensors=None, ver=3, out=None"),
    ),
    ("fa3_sglang", "sgl_kernel.flash_attn.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, num_splits, qv, return_softmax_lse, "
                "seqused_k, sinks, softmax_scale"),
        sometimes=("attention_chunk, causal, k_descale, pack_gqa, q_descale, seqused_q, sm_margin, softcap, "
                   "v_descale, window_size"),
        defaults=("seqused_q=None, page_table=None, causal=False, q_descale=None, k_descale=None, "
                  "v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, pack_gqa=None, "
                  "only_qv=False, sm_margin=0, score_mod=None, aux_tensors=None, ver=3, out=None"),
    ),
    ("fa3_vllm", "vllm.vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("block_table, cu_seqlens_q, fa_version, max_seqlen_k, max_seqlen_q, num_splits, q_v, "
                "return_softmax_lse, s_aux, scheduler_metadata, softmax_scale"),
        sometimes=("causal, cp_rank, cp_tot_seqused_k, cp_world_size, cu_seqlens_k, k_descale, q_descale, "
                   "seqused_k, softcap, v_descale, window_size"),
        defaults=("cu_seqlens_k=None, seqused_k=None, dropout_p=0.0, causal=False, window_size=None, "
                  "softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, out=None, "
                  "q_descale=None, k_descale=None, v_descale=None, output_scale=None, cp_world_size=1, "
                  "cp_rank=0, cp_tot_seqused_k=None, mask_mod=None, block_sparse_tensors=None, "
                  "aux_tensors=None, aux_tensor_leading_dims=None, dynamic_causal=None, "
                  "gather_kv_indices=None, gather_kv_valid_length=None"),
    ),
    ("fa3_vllm", "vllm.vllm_flash_attn.flash_attn_interface.get_scheduler_metadata"): _reliance(
        positional=("batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, "
                    "cache_seqlens"),
        always=("cache_leftpad, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim_v, "
                "max_seqlen_k_new, num_splits, pack_gqa, page_size, qkv_dtype, sm_margin, window_size"),
    ),
    ("fa2", "flash_attn.flash_attn_interface.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("block_table, cache_batch_idx, cache_seqlens, causal, k, num_splits, return_softmax_lse, "
                "softcap, softmax_scale, v, window_size"),
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_interleaved=True, "
                  "alibi_slopes=None"),
    ),
    ("fa2", "flash_attn.flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
        always="block_table, return_attn_probs, softmax_scale",
        sometimes="causal, deterministic, softcap, window_size",
        defaults=("dropout_p=0.0, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
                  "deterministic=False"),
    ),
    ("fa4", "flash_attn.cute.interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("causal, cu_seqlens_q, learnable_sink, max_seqlen_k, max_seqlen_q, num_splits, page_table, "
                "return_lse, softmax_scale, window_size"),
        sometimes="cu_seqlens_k, deterministic, pack_gqa, seqused_k, seqused_q, softcap",
        defaults=("qv=None, cu_seqlens_k=None, min_seqlen_k=None, seqused_q=None, seqused_k=None, "
                  "gather_kv_indices=None, softcap=0.0, pack_gqa=None, deterministic=False, score_mod=None, "
                  "score_mod_bwd=None, mask_mod=None, block_sparse_tensors=None, aux_tensors=None, "
                  "aux_scalars=None, scheduler_metadata=None, seqlen_k_per_split=None, "
                  "disable_scheduler_metadata=False, gather_bwd_recompute_p=False, "
                  "gather_bwd_token_chunk=None"),
    ),
    ("diffkv", "flash_attn_interface.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_batch_idx, cache_seqlens, cu_seqlens_k_new, cu_seqlens_q, k, max_seqlen_q, num_splits, "
                "page_table, qv, return_softmax_lse, softmax_scale, v"),
        sometimes=("attention_chunk, cache_leftpad, causal, pack_gqa, rotary_cos, rotary_interleaved, "
                   "rotary_seqlens, rotary_sin, scheduler_metadata, sm_margin, softcap, window_size"),
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, causal=False, window_size=(-1, -1), attention_chunk=0, "
                  "softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, pack_gqa=None, sm_margin=0"),
    ),
    ("diffkv", "flash_attn_interface.get_scheduler_metadata"): _reliance(
        positional=("batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, "
                    "cache_seqlens"),
        always=("cache_leftpad, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim_v, "
                "max_seqlen_k_new, num_splits, pack_gqa, page_size, qkv_dtype, sm_margin, window_size"),
        sometimes="attention_chunk",
        defaults="attention_chunk=0",
    ),
    ("diffkv", "flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, num_splits, qv, return_attn_probs, "
                "seqused_k, softmax_scale"),
        sometimes=("attention_chunk, causal, deterministic, pack_gqa, seqused_q, sm_margin, softcap, "
                   "window_size"),
        defaults=("seqused_q=None, causal=False, q_descale=None, k_descale=None, v_descale=None, "
                  "window_size=(-1, -1), attention_chunk=0, softcap=0.0, pack_gqa=None, deterministic=False, "
                  "sm_margin=0"),
    ),
    ("diffkv_sglang", "sgl_kernel.flash_attn.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_batch_idx, cache_seqlens, cu_seqlens_k_new, cu_seqlens_q, k, max_seqlen_q, num_splits, "
                "page_table, qv, return_softmax_lse, sinks, softmax_scale, v"),
        sometimes=("attention_chunk, cache_leftpad, causal, pack_gqa, rotary_cos, rotary_interleaved, "
                   "rotary_seqlens, rotary_sin, scheduler_metadata, sm_margin, softcap, window_size"),
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, causal=False, window_size=(-1, -1), attention_chunk=None, "
                  "softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, pack_gqa=None, "
                  "only_qv=False, sm_margin=0, score_mod=None, aux_tensors=None, ver=3, out=None"),
    ),
    ("diffkv_sglang", "sgl_kernel.flash_attn.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, num_splits, qv, return_softmax_lse, "
                "seqused_k, sinks, softmax_scale"),
        sometimes="attention_chunk, causal, pack_gqa, seqused_q, sm_margin, softcap, window_size",
        defaults=("seqused_q=None, page_table=None, causal=False, q_descale=None, k_descale=None, "
                  "v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, pack_gqa=None, "
                  "only_qv=False, sm_margin=0, score_mod=None, aux_tensors=None, ver=3, out=None"),
    ),
    ("diffkv_vllm", "vllm.vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("block_table, cu_seqlens_q, fa_version, max_seqlen_k, max_seqlen_q, num_splits, q_v, "
                "return_softmax_lse, s_aux, scheduler_metadata, softmax_scale"),
        sometimes=("causal, cp_rank, cp_tot_seqused_k, cp_world_size, cu_seqlens_k, seqused_k, softcap, "
                   "window_size"),
        defaults=("cu_seqlens_k=None, seqused_k=None, dropout_p=0.0, causal=False, window_size=None, "
                  "softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, out=None, "
                  "q_descale=None, k_descale=None, v_descale=None, output_scale=None, cp_world_size=1, "
                  "cp_rank=0, cp_tot_seqused_k=None, mask_mod=None, block_sparse_tensors=None, "
                  "aux_tensors=None, aux_tensor_leading_dims=None, dynamic_causal=None, "
                  "gather_kv_indices=None, gather_kv_valid_length=None"),
    ),
    ("diffkv_vllm", "vllm.vllm_flash_attn.flash_attn_interface.get_scheduler_metadata"): _reliance(
        positional=("batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, "
                    "cache_seqlens"),
        always=("cache_leftpad, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim_v, "
                "max_seqlen_k_new, num_splits, pack_gqa, page_size, qkv_dtype, sm_margin, window_size"),
    ),
    ("mla", "flash_attn_interface.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_batch_idx, cache_seqlens, cu_seqlens_k_new, cu_seqlens_q, k, max_seqlen_q, num_splits, "
                "page_table, qv, return_softmax_lse, softmax_scale, v"),
        sometimes="causal, pack_gqa, scheduler_metadata, sm_margin",
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, causal=False, window_size=(-1, -1), attention_chunk=0, "
                  "softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, pack_gqa=None, sm_margin=0"),
    ),
    ("mla", "flash_attn_interface.get_scheduler_metadata"): _reliance(
        positional=("batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, "
                    "cache_seqlens"),
        always=("cache_leftpad, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim_v, "
                "max_seqlen_k_new, num_splits, pack_gqa, page_size, qkv_dtype, sm_margin, window_size"),
        defaults="attention_chunk=0",
    ),
    ("mla", "flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, num_splits, qv, return_attn_probs, "
                "softmax_scale"),
        sometimes="causal, deterministic, pack_gqa, sm_margin",
        defaults=("seqused_q=None, seqused_k=None, causal=False, q_descale=None, k_descale=None, "
                  "v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, pack_gqa=None, "
                  "deterministic=False, sm_margin=0"),
    ),
    ("mla_sglang", "sgl_kernel.flash_attn.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_batch_idx, cache_seqlens, cu_seqlens_k_new, cu_seqlens_q, k, max_seqlen_q, num_splits, "
                "page_table, qv, return_softmax_lse, sinks, softmax_scale, v"),
        sometimes="causal, pack_gqa, scheduler_metadata, sm_margin",
        defaults=("rotary_cos=None, rotary_sin=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, causal=False, window_size=(-1, -1), attention_chunk=None, "
                  "softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, pack_gqa=None, "
                  "only_qv=False, sm_margin=0, score_mod=None, aux_tensors=None, ver=3, out=None"),
    ),
    ("mla_sglang", "sgl_kernel.flash_attn.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("cu_seqlens_k, cu_seqlens_q, max_seqlen_k, max_seqlen_q, num_splits, qv, return_softmax_lse, "
                "sinks, softmax_scale"),
        sometimes="causal, pack_gqa, sm_margin",
        defaults=("seqused_q=None, seqused_k=None, page_table=None, causal=False, q_descale=None, "
                  "k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, "
                  "pack_gqa=None, only_qv=False, sm_margin=0, score_mod=None, aux_tensors=None, ver=3, "
                  "out=None"),
    ),
    ("mla_vllm", "vllm.vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v",
        always=("block_table, cu_seqlens_q, fa_version, max_seqlen_k, max_seqlen_q, num_splits, q_v, "
                "return_softmax_lse, s_aux, scheduler_metadata, softmax_scale"),
        sometimes="causal, cp_rank, cp_tot_seqused_k, cp_world_size, cu_seqlens_k, seqused_k",
        defaults=("cu_seqlens_k=None, seqused_k=None, dropout_p=0.0, causal=False, window_size=None, "
                  "softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, out=None, "
                  "q_descale=None, k_descale=None, v_descale=None, output_scale=None, cp_world_size=1, "
                  "cp_rank=0, cp_tot_seqused_k=None, mask_mod=None, block_sparse_tensors=None, "
                  "aux_tensors=None, aux_tensor_leading_dims=None, dynamic_causal=None, "
                  "gather_kv_indices=None, gather_kv_valid_length=None"),
    ),
    ("mla_vllm", "vllm.vllm_flash_attn.flash_attn_interface.get_scheduler_metadata"): _reliance(
        positional=("batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, "
                    "cache_seqlens"),
        always=("cache_leftpad, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim_v, "
                "max_seqlen_k_new, num_splits, pack_gqa, page_size, qkv_dtype, sm_margin, window_size"),
    ),
    ("mate", "mate.mha_interface.get_scheduler_metadata"): _reliance(
        always=("batch_size, causal, cu_seqlens_k_new, cu_seqlens_q, has_softcap, headdim, headdim_v, max_seqlen_k, "
                "max_seqlen_k_new, max_seqlen_q, mp_margin, num_heads_kv, num_heads_q, num_splits, pack_gqa, "
                "page_size, qkv_dtype, seqused_k, window_size"),
        defaults="seqused_q=None, cu_seqlens_k=None, cache_leftpad=None, attention_chunk=0",
    ),
    ("mate", "mate.mha_interface.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_seqlens, causal, cu_seqlens_k_new, cu_seqlens_q, k, learnable_sink, max_seqlen_q, num_splits, "
                "pack_gqa, page_table, return_softmax_lse, rotary_cos, rotary_sin, scheduler_metadata, sm_margin, "
                "softmax_scale, v, window_size"),
        sometimes="cache_batch_idx, rotary_interleaved, rotary_seqlens, softcap",
        defaults=("qv=None, cache_batch_idx=None, cache_leftpad=None, rotary_seqlens=None, q_descale=None, "
                  "k_descale=None, v_descale=None, attention_chunk=0, softcap=0.0, rotary_interleaved=True, "
                  "cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None"),
    ),
    ("mate", "mate.mha_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
        always="backend, causal, learnable_sink, num_splits, return_softmax_lse, softmax_scale, window_size",
        sometimes="deterministic, out, pack_gqa, page_table, seqused_k, seqused_q, sm_margin, softcap",
        defaults=("seqused_q=None, seqused_k=None, qv=None, q_descale=None, k_descale=None, v_descale=None, "
                  "attention_chunk=0, softcap=0.0, scheduler_metadata=None, pack_gqa=None, deterministic=False, "
                  "sm_margin=0, cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None, page_table=None, "
                  "out=None"),
    ),
    ("mate_mla", "mate.mha_interface.flash_attn_with_kvcache"): _reliance(
        positional="q, k_cache, v_cache",
        always=("cache_seqlens, causal, cu_seqlens_q, max_seqlen_q, page_table, qv, return_softmax_lse, "
                "scheduler_metadata, softmax_scale"),
        defaults=("k=None, v=None, rotary_cos=None, rotary_sin=None, cache_batch_idx=None, cache_leftpad=None, "
                  "cu_seqlens_k_new=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, "
                  "window_size=(-1, -1), learnable_sink=None, attention_chunk=0, softcap=0.0, "
                  "rotary_interleaved=True, num_splits=0, pack_gqa=None, sm_margin=0, cp_world_size=1, cp_rank=0, "
                  "cp_tot_seqused_k=None"),
    ),
    ("mate_mla", "mate.mha_interface.flash_attn_varlen_func"): _reliance(
        positional="q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
        always="backend, causal, learnable_sink, num_splits, return_softmax_lse, softmax_scale, window_size",
        sometimes="deterministic, out, pack_gqa, seqused_k, seqused_q, sm_margin, softcap",
        defaults=("seqused_q=None, seqused_k=None, qv=None, q_descale=None, k_descale=None, v_descale=None, "
                  "attention_chunk=0, softcap=0.0, scheduler_metadata=None, pack_gqa=None, deterministic=False, "
                  "sm_margin=0, cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None, page_table=None, "
                  "out=None"),
    ),
    ("aiter", "aiter.ops.mha.mha_batch_prefill_func"): _reliance(
        positional="q, k, v, cu_seqlens_q, kv_indptr, kv_page_indices, max_seqlen_q, max_seqlen_k",
        always="block_table, causal, logits_soft_cap, out, return_lse, seqlen_k, softmax_scale, window_size",
        defaults=("dropout_p=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, q_descale=None, "
                  "k_descale=None, v_descale=None, kv_last_page_lens=None, sink_ptr=None, kv_block_descale=None, "
                  "sink_size=0"),
    ),
    ("aiter", "aiter.ops.mha.flash_attn_varlen_func"): _reliance(
        positional="q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
        always="causal, deterministic, logits_soft_cap, out, return_lse, softmax_scale, window_size",
        defaults=("min_seqlen_q=0, dropout_p=0.0, bias=None, alibi_slopes=None, return_attn_probs=False, "
                  "how_v3_bf16_cvt=1, block_table=None, cu_seqlens_q_padded=None, cu_seqlens_k_padded=None, "
                  "sink_ptr=None"),
    ),
    ("ascend", "torch_npu.npu_fused_infer_attention_score"): _reliance(
        always=f"{_FUSED}, {_FUSED_V1}", defaults=_FUSED_V1_LEFT),
    ("ascend", "torch_npu.npu_fused_infer_attention_score.out"): _reliance(
        always=f"{_FUSED}, {_FUSED_V1}, workspace, out", defaults=_FUSED_V1_LEFT),
    ("ascend", "torch_npu._npu_fused_infer_attention_score_get_max_workspace"): _reliance(
        always=f"{_FUSED}, {_FUSED_V1}", defaults=_FUSED_V1_LEFT),
    ("ascend", "torch_npu.npu_fused_infer_attention_score_v2"): _reliance(
        always=f"{_FUSED}, {_FUSED_V2}, learnable_sink", defaults=f"{_FUSED_V2_LEFT}, {_NO_ROPE}"),
    ("ascend", "torch_npu.npu_fused_infer_attention_score_v2.out"): _reliance(
        always=f"{_FUSED}, {_FUSED_V2}, learnable_sink, workspace, out", defaults=f"{_FUSED_V2_LEFT}, {_NO_ROPE}"),
    ("ascend", "torch_npu._npu_fused_infer_attention_score_v2_get_max_workspace"): _reliance(
        always=f"{_FUSED}, {_FUSED_V2}, learnable_sink", defaults=f"{_FUSED_V2_LEFT}, {_NO_ROPE}"),
    ("ascend", "torch_npu.npu_scatter_pa_kv_cache"): _SCATTER,
    ("ascend_mla", "torch_npu.npu_fused_infer_attention_score"): _reliance(
        always=f"{_FUSED}, {_FUSED_V1}", defaults=_FUSED_V1_LEFT),
    ("ascend_mla", "torch_npu.npu_fused_infer_attention_score_v2"): _reliance(
        always=f"{_FUSED}, {_FUSED_V2}, query_rope, key_rope", defaults=f"{_FUSED_V2_LEFT}, learnable_sink=None"),
    ("ascend_mla", "torch_npu.npu_fused_infer_attention_score_v2.out"): _reliance(
        always=f"{_FUSED}, {_FUSED_V2}, query_rope, key_rope, workspace, out",
        defaults=f"{_FUSED_V2_LEFT}, learnable_sink=None"),
    ("ascend_mla", "torch_npu._npu_fused_infer_attention_score_v2_get_max_workspace"): _reliance(
        always=f"{_FUSED}, {_FUSED_V2}, query_rope, key_rope", defaults=f"{_FUSED_V2_LEFT}, learnable_sink=None"),
    ("ascend_mla", "torch_npu.npu_scatter_pa_kv_cache"): _SCATTER,
    ("ascend_310p", "torch_npu._npu_flash_attention"): _reliance(
        always="query, key, value, mask, seq_len, scale_value, num_heads, num_kv_heads, out"),
    ("ascend_310p", "torch_npu._npu_paged_attention"): _reliance(always=_PAGED, defaults="workspace=None"),
    ("ascend_310p", "torch_npu._npu_paged_attention_splitfuse"): _reliance(always=f"{_PAGED}, mask, seq_len"),
    ("ascend_310p", "torch_npu._npu_reshape_and_cache"): _reliance(
        always="key, value, key_cache, value_cache, slot_indices"),
    ("ascend_310p", "torch_npu.npu_format_cast"): _reliance(
        positional="input, acl_format", defaults="customize_dtype=None, input_dtype=None"),
    ("ascend_310p", "torch_npu.get_npu_format"): _reliance(positional="input"),
}

_FACTORY = "out=None, dtype=None, layout=None, device=None, pin_memory=False, requires_grad=False"
# torch's own functions, wherever a backend calls one: a form for every way in which it is called.
TORCH = {
    "torch.arange": (
        _reliance("end", always="device", defaults=_FACTORY),
        _reliance("start, end", always="device", defaults=_FACTORY),
        _reliance("start, end, step", always="device, dtype", defaults=_FACTORY),
    ),
    "torch.cat": (_reliance("tensors", always="dim", defaults="out=None"),),
    "torch.exp": (_reliance("input", defaults="out=None"),),
    "torch.full": (
        _reliance("size, fill_value", always="device", defaults=_FACTORY),
        _reliance("size, fill_value", always="device, dtype", defaults=_FACTORY),
    ),
    "torch.full_like": (_reliance("input, fill_value", defaults=_FACTORY + ", memory_format=None"),),
    "torch.logaddexp": (_reliance("input, other", defaults="out=None"),),
    "torch.logsumexp": (_reliance("input", always="dim", defaults="keepdim=False, out=None"),),
    "torch.nn.functional.pad": (_reliance("input, pad", defaults="mode='constant', value=None"),),
    "torch.nn.functional.scaled_dot_product_attention": (
        _reliance("query, key, value", always="scale",
                  defaults="attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False"),
        _reliance("query, key, value", always="attn_mask, enable_gqa, is_causal, scale", defaults="dropout_p=0.0"),
    ),
    "torch.ones": (_reliance("size, size", always="device, dtype", defaults=_FACTORY),),
    "torch.stack": (_reliance("tensors", always="dim", defaults="out=None"),),
    "torch.tanh": (_reliance("input", defaults="out=None"),),
    "torch.tensor": (_reliance("data", always="device", defaults="dtype=None, requires_grad=False, pin_memory=False"),),
    "torch.triu": (_reliance("input, diagonal", defaults="out=None"),),
    "torch.where": (_reliance("condition, input, other", defaults="out=None"),),
    "torch.zeros": (
        _reliance("size", always="device, dtype", defaults=_FACTORY),
        _reliance("size, size, size", always="device, dtype", defaults=_FACTORY),
    ),
}

# An argument of HAL's contract that is left to the vendor where the caller leaves it out: the two defaults must be the
# same. (adapter, vendor function, parameter) -> (contract's, vendor's, why that is the same nevertheless)
OTHER_DEFAULTS = {
    **{(adapter, "sgl_kernel.flash_attn.flash_attn_with_kvcache", "attention_chunk"):
       ("0", "None", "the function turns None into 0") for adapter in ("fa3_sglang", "diffkv_sglang")},
    **{(adapter, "vllm.vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func", "window_size"):
       ("(-1, -1)", "None", "the function turns None into (-1, -1)") for adapter in ("fa3_vllm", "diffkv_vllm")},
}

# (package, release, adapter or backend, function) -> the parameters it lacks, "" where it lacks the function. The
# release is in the range that the backend's Package claims and can't be served: each row is a finding. A row whose
# release fits, or is no longer claimed, turns a test red: delete it then.
GAPS = {
    # Both builds say they are version 3.0.0.b1 and 3.0.0, so no minimum can tell them apart: bind refuses the older.
    **{("flash-attn-3", "git v2.8.3.post1", adapter, "flash_attn_interface.flash_attn_varlen_func"):
       ("return_attn_probs",) for adapter in ("fa3", "diffkv", "mla")},
}
