"""Signatures of vendor functions, of one release each, and torch_npu's op schemas. Data for test_adapters."""

from __future__ import annotations

# module -> (release, {function -> parameters}).
SIGNATURES = {
    "flash_attn.flash_attn_interface": ("2.8.3.post2", {
        "flash_attn_with_kvcache": (
            "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
            "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, "
            "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
            "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False"),
        "flash_attn_varlen_func": (
            "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, "
            "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
            "deterministic=False, return_attn_probs=False, block_table=None"),
    }),
    "flash_attn_interface": ("git 0251105a", {
        "flash_attn_with_kvcache": (
            "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, "
            "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None, "
            "cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None, "
            "q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False, "
            "window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True, "
            "scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, "
            "return_softmax_lse=False"),
        "flash_attn_varlen_func": (
            "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, "
            "seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, "
            "k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, "
            "num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False"),
    }),
    "sgl_kernel.flash_attn": ("0.4.10", {
        "flash_attn_with_kvcache": (
            "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, "
            "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None, "
            "cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None, "
            "q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False, "
            "window_size=(-1, -1), attention_chunk=None, softcap=0.0, rotary_interleaved=True, "
            "scheduler_metadata=None, num_splits=0, pack_gqa=None, only_qv=False, sm_margin=0, "
            "return_softmax_lse=False, sinks=None, score_mod=None, aux_tensors=None, ver=3, out=None"),
        "flash_attn_varlen_func": (
            "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=None, max_seqlen_k=None, "
            "seqused_q=None, seqused_k=None, page_table=None, softmax_scale=None, causal=False, "
            "qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), "
            "attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, only_qv=False, sm_margin=0, "
            "return_softmax_lse=False, sinks=None, score_mod=None, aux_tensors=None, ver=3, out=None"),
    }),
    "mate.mha_interface": ("git 3f58cc3", {
        "flash_attn_with_kvcache": (
            "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, "
            "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None, "
            "cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None, "
            "q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False, "
            "window_size=(-1, -1), learnable_sink=None, attention_chunk=0, softcap=0.0, "
            "rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, "
            "sm_margin=0, return_softmax_lse=False, cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None"),
        "flash_attn_varlen_func": (
            "q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, "
            "seqused_q=None, seqused_k=None, page_table=None, softmax_scale=None, causal=False, "
            "qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), "
            "learnable_sink=None, attention_chunk=0, softcap=0.0, scheduler_metadata=None, "
            "num_splits=0, pack_gqa=None, deterministic=False, sm_margin=0, return_softmax_lse=False, "
            "backend='auto', cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None, out=None"),
    }),
    "aiter.ops.mha": ("git e4048607a5", {
        "mha_batch_prefill_func": (
            "q, k, v, cu_seqlens_q, kv_indptr, kv_page_indices, max_seqlen_q, max_seqlen_k, "
            "dropout_p=0.0, softmax_scale=None, logits_soft_cap=0.0, causal=False, window_size=(-1, "
            "-1), alibi_slopes=None, deterministic=False, return_lse=False, return_attn_probs=False, "
            "out=None, kv_last_page_lens=None, block_table=None, seqlen_k=None, q_descale=None, "
            "k_descale=None, v_descale=None, kv_block_descale=None, sink_ptr=None, sink_size=0"),
        "flash_attn_varlen_func": (
            "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, min_seqlen_q=0, "
            "dropout_p=0.0, softmax_scale=None, logits_soft_cap=0.0, causal=False, window_size=(-1, "
            "-1, 0), bias=None, alibi_slopes=None, deterministic=False, return_lse=False, "
            "return_attn_probs=False, how_v3_bf16_cvt=1, block_table=None, out=None, "
            "cu_seqlens_q_padded=None, cu_seqlens_k_padded=None, sink_ptr=None"),
    }),
}

# torch_npu 2.13.0.
SCHEMAS = {
    "npu_fused_infer_attention_score": (
        "npu::npu_fused_infer_attention_score(Tensor query, Tensor key, Tensor value, *, Tensor? "
        "pse_shift=None, Tensor? atten_mask=None, SymInt[]? actual_seq_lengths=None, SymInt[]? "
        "actual_seq_lengths_kv=None, Tensor? dequant_scale1=None, Tensor? quant_scale1=None, Tensor? "
        "dequant_scale2=None, Tensor? quant_scale2=None, Tensor? quant_offset2=None, Tensor? "
        "antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? key_antiquant_scale=None, "
        "Tensor? key_antiquant_offset=None, Tensor? value_antiquant_scale=None, Tensor? "
        "value_antiquant_offset=None, Tensor? block_table=None, Tensor? query_padding_size=None, "
        "Tensor? kv_padding_size=None, Tensor? key_shared_prefix=None, Tensor? "
        "value_shared_prefix=None, SymInt[]? actual_shared_prefix_len=None, Tensor? query_rope=None, "
        "Tensor? key_rope=None, Tensor? key_rope_antiquant_scale=None, int num_heads=1, float "
        "scale=1., int pre_tokens=2147483647, int next_tokens=2147483647, str input_layout=\"BSH\", int "
        "num_key_value_heads=0, int sparse_mode=0, int inner_precise=0, int block_size=0, int "
        "antiquant_mode=0, int key_antiquant_mode=0, int value_antiquant_mode=0, bool "
        "softmax_lse_flag=False) -> (Tensor, Tensor)"),
    "npu_scatter_pa_kv_cache": (
        "npu::npu_scatter_pa_kv_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) "
        "value_cache, Tensor slot_mapping, *, Tensor? compress_lens=None, Tensor? "
        "compress_seq_offsets=None, Tensor? seq_lens=None, str? cache_mode=\"PA_NZ\") -> ()"),
}
