"""Expected answers of NVIDIA's backends, from the vendors' sources named in backends/. Data for test_cuda_backends."""

from __future__ import annotations

from typing import Any

MLA: dict[str, Any] = {"num_heads": 128, "mla": True, "softmax_scale": 0.1}
SPARSE = {**MLA, "sparse": True}

# (device, config, prefill, decode, page size)
CHOICES: list[tuple[str, dict[str, Any], str, str, int]] = [
    ("cuda:sm100", {}, "trtllm_mha", "trtllm_mha", 64),
    ("cuda:sm103", {"sinks": True, "head_dim": 64, "sliding_window": 128}, "trtllm_mha", "trtllm_mha", 64),
    ("cuda:sm100", {"softcap": 50.0, "head_dim": 256}, "flashinfer", "flashinfer", 16),
    ("cuda:sm100", {"causal": False, "head_dim": 72}, "flash_attn_2", "flash_attn_2", 256),
    ("cuda:sm100", {"head_dim": 192, "head_dim_v": 128}, "flash_attn_4", "flash_attn_4", 128),
    ("cuda:sm100", {"context_parallel_size": 2}, "flashinfer", "flashinfer", 16),
    ("cuda:sm100", {"mm_prefix": True}, "triton", "triton", 16),
    ("cuda:sm75", {"dtype": "float16"}, "flashinfer", "flashinfer", 16),
    ("cuda:sm75", {"dtype": "float16", "sinks": True}, "triton", "triton", 16),
    ("cuda:sm89", {"kv_cache_dtype": "fp8"}, "flashinfer", "flashinfer", 16),
    ("cuda:sm80", {"page_size": 16}, "flashinfer", "flashinfer", 16),
    ("cuda:sm80", {"head_dim": 192, "head_dim_v": 128}, "triton", "triton", 16),
    ("cuda:sm80", {"dtype": "float32"}, "triton", "triton", 16),
    ("cuda:sm90", {"tree_mask": True}, "flashinfer", "flashinfer", 16),
    ("cuda:sm120", {"sinks": True}, "triton", "triton", 16),
    ("cpu:aarch64", {"tree_mask": True}, "cpu", "cpu", 16),
    ("cpu:aarch64", {"head_dim": 16}, "torch", "torch", 16),
    ("cuda:sm100", MLA, "trtllm_ragged", "trtllm_mla", 64),
    ("cuda:sm100", {**MLA, "kv_cache_dtype": "fp8"}, "trtllm_ragged", "trtllm_mla", 64),
    ("cuda:sm100", {**MLA, "page_size": 128}, "trtllm_ragged", "cutlass_mla", 128),
    ("cuda:sm100", {**MLA, "page_size": 16}, "trtllm_ragged", "triton_mla", 16),
    ("cuda:sm90", MLA, "flash_attn_3", "flash_attn_mla", 64),
    ("cuda:sm90", {**MLA, "kv_cache_dtype": "fp8"}, "flash_attn_3", "flashmla", 64),
    ("cuda:sm90", {**MLA, "context_parallel_size": 8}, "flash_attn_3", "flash_attn_mla", 64),
    ("cuda:sm80", MLA, "triton", "flashinfer_mla", 64),
    ("cuda:sm89", {**MLA, "kv_cache_dtype": "fp8"}, "triton", "triton_mla", 64),
    ("cuda:sm110", MLA, "triton", "triton_mla", 64),
    ("cuda:sm120", MLA, "triton", "triton_mla", 64),
    ("cuda:sm90", SPARSE, "flashmla_sparse", "flashmla_sparse", 64),
    ("cuda:sm90", {**SPARSE, "kv_cache_dtype": "fp8_ds_mla"}, "flashmla_sparse", "flashmla_sparse", 64),
    ("cuda:sm100", {**SPARSE, "kv_cache_dtype": "fp8"}, "flashinfer_mla_sparse", "flashinfer_mla_sparse", 64),
    # vLLM lists float16, but FlashInfer's function returns bfloat16 whatever the query (flashinfer/mla/_core.py).
    ("cuda:sm100", {**SPARSE, "dtype": "float16"}, "torch", "torch", 16),
    ("cuda:sm100", {**MLA, "dtype": "float16"}, "trtllm_ragged", "cutlass_mla", 128),
    # A graph holds decode alone.
    ("cuda:sm100", {**MLA, "graph": True}, "trtllm_ragged", "trtllm_mla", 64),
    ("cuda:sm100", {"causal": False}, "flash_attn_4", "flash_attn_4", 128),
    ("cuda:sm120", {**SPARSE, "kv_cache_dtype": "fp8_ds_mla"}, "flashinfer_mla_sparse", "flashinfer_mla_sparse", 64),
]

# (device, backend, phase, config, the whole of one reason)
REASONS: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("cuda:sm120", "flash_attn_4", "decode", {}, "paged KV cache on sm120 is not supported (flash_attn_4: sm90, sm100, "
     "sm103, sm110; elsewhere it asserts that page_table is None)"),
    ("cuda:sm100", "flash_attn_4", "decode", {"kv_cache_dtype": "fp8"},
     "kv_cache_dtype fp8_e4m3 is not supported (flash_attn_4 with dtype bfloat16: auto, bfloat16)"),
    ("cuda:sm100", "flash_attn_4", "decode", {"head_dim": 192}, "head_dim 192 with head_dim_v 192 is not supported on "
     "sm100 (flash_attn_4: up to 128 with up to 128, 192 with 128)"),
    ("cuda:sm90", "flash_attn_4", "decode", {"head_dim": 264, "head_dim_v": 64},
     "head_dim 264 with head_dim_v 64 is not supported (flash_attn_4: multiples of 16 up to 256)"),
    ("cuda:sm90", "flash_attn_4", "decode", {"head_dim": 128, "head_dim_v": 72},
     "head_dim 128 with head_dim_v 72 is not supported (flash_attn_4: multiples of 16 up to 256)"),
    ("cuda:sm90", "flash_attn_4", "decode", {"head_dim": 72},
     "head_dim 72 is not supported (flash_attn_4: multiples of 16 from 16 to 256)"),
    ("cuda:sm110", "flash_attn_4", "decode", {"head_dim": 256}, "head_dim 256 on sm110 is not supported (flash_attn_4: "
     "4.0.0b27's kernel for 256 there takes no seqused_k, which a paged KV cache needs)"),
    ("cuda:sm100", "flash_attn_4", "decode", {"head_dim": 256, "softcap": 50},
     "softcap 50.0 with head_dim 256 on sm100 is not supported (flash_attn_4: without softcap, or head_dim up to 192)"),
    ("cuda:sm90", "flash_attn_diffkv", "decode", {},
     "head_dim 128 with head_dim_v 128 is not supported (flash_attn_diffkv: unequal dims only)"),
    ("cuda:sm90", "flash_attn_diffkv", "decode", {"head_dim": 128, "head_dim_v": 64},
     "head_dim 128 with head_dim_v 64 is not supported (flash_attn_diffkv: multiples of 8; 129 to 192 with 97 to 128, "
     "or up to 64 with up to 512)"),
    ("cuda:sm90", "flash_attn_mla", "decode", {}, "mla is needed (flash_attn_mla: mla only)"),
    ("cuda:sm90", "flash_attn_mla", "decode", {**MLA, "page_size": 1},
     "page_size 1 is not supported (flash_attn_mla: multiples of 16)"),
    ("cuda:sm90", "dual_chunk_flash_attn", "decode", {}, "dual_chunk_attention_config None is not supported "
     "(dual_chunk_flash_attn: only models that have one; always refused, for no field of AttentionConfig asks for it)"),
    ("cuda:sm90", "trtllm_mha", "decode", {}, "arch sm90 is not supported (trtllm_mha: sm100, sm103)"),
    ("cuda:sm100", "trtllm_mha", "decode", {"page_size": 256},
     "page_size 256 is not supported (trtllm_mha: 16, 32, 64, 128)"),
    ("cuda:sm100", "trtllm_mha", "decode", {"sinks": True, "return_softmax_lse": True}, "return_softmax_lse with sinks "
     "is not supported (trtllm_mha: one of the two; whether the LSE holds the sink is not documented)"),
    ("cuda:sm100", "trtllm_mla", "prefill", MLA, "phase prefill is not supported (trtllm_mla: decode)"),
    ("cuda:sm100", "trtllm_mla", "decode", {**MLA, "sinks": True, "context_parallel_size": 2},
     "sinks with context_parallel 2 is not supported (trtllm_mla: one of the two)"),
    ("cuda:sm100", "trtllm_ragged", "prefill", {}, "mla is needed (trtllm_ragged: mla only)"),
    ("cuda:sm75", "flashinfer", "decode", {},
     "dtype bfloat16 on sm75 is not supported (flashinfer: float16 there, bfloat16 on sm80 and newer)"),
    ("cuda:sm80", "flashinfer", "decode", {"causal": False, "sliding_window": 8}, "sliding_window 8 with non_causal is "
     "not supported (flashinfer: causal windows, plan() has window_left and nothing for the right)"),
    ("cuda:sm80", "flashinfer", "decode", {"context_parallel_size": 2, "max_decode_query_len": 4},
     "max_decode_query_len 4 with context_parallel 2 is not supported (flashinfer: 1, it has no argument for the "
     "global lengths)"),
    ("cuda:sm80", "flashinfer_mla", "decode", {**MLA, "kv_cache_dtype": "fp8"},
     "kv_cache_dtype fp8_e4m3 on sm80 is not supported (flashinfer_mla: sm90)"),
    ("cuda:sm90", "flashinfer_mla", "decode", {**MLA, "kv_cache_dtype": "fp8", "dtype": "float16"},
     "kv_cache_dtype fp8_e4m3 with dtype float16 is not supported (flashinfer_mla: bfloat16)"),
    ("cuda:sm100", "flashinfer_mla_sparse", "decode", {**SPARSE, "kv_cache_dtype": "fp8_ds_mla"},
     "kv_cache_dtype fp8_ds_mla on sm100 is not supported (flashinfer_mla_sparse: auto or fp8_e4m3 there, fp8_ds_mla "
     "on sm120 and sm121)"),
    ("cuda:sm120", "flashinfer_mla_sparse", "decode", SPARSE,
     "kv_cache_dtype bfloat16 on sm120 is not supported (flashinfer_mla_sparse: fp8_ds_mla)"),
    ("cuda:sm120", "flashinfer_mla_sparse", "decode", {**SPARSE, "dtype": "float16", "kv_cache_dtype": "fp8_ds_mla"},
     "dtype float16 is not supported (flashinfer_mla_sparse: bfloat16)"),
    ("cuda:sm100", "flashinfer_mla_sparse", "decode", {**SPARSE, "dtype": "float16"},
     "dtype float16 is not supported (flashinfer_mla_sparse: bfloat16)"),
    ("cuda:sm100", "trtllm_mla", "decode", {**MLA, "dtype": "float16"},
     "dtype float16 is not supported (trtllm_mla: bfloat16)"),
    ("cuda:sm120", "flashinfer_mla_sparse", "decode", {**SPARSE, "context_parallel_size": 2},
     "context_parallel 2 on sm120 is not supported (flashinfer_mla_sparse: sm100, sm103)"),
    ("cuda:sm90", "flashmla", "decode", {**MLA, "page_size": 1}, "page_size 1 is not supported (flashmla: 64)"),
    ("cuda:sm100", "flashmla", "decode", MLA, "arch sm100 is not supported (flashmla: sm90)"),
    ("cuda:sm90", "flashmla", "decode", SPARSE, "sparse is not supported (flashmla: none, flashmla_sparse has it)"),
    ("cuda:sm90", "flashmla_sparse", "decode", {**SPARSE, "num_heads": 256},
     "num_heads 256 is not supported (flashmla_sparse: up to 128)"),
    ("cuda:sm90", "flashmla_sparse", "decode", {**SPARSE, "kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8_e4m3 is not "
     "supported (flashmla_sparse with dtype bfloat16: auto, bfloat16, fp8_ds_mla)"),
    ("cuda:sm100", "cutlass_mla", "decode", {**MLA, "max_decode_query_len": 2},
     "max_decode_query_len 2 is not supported (cutlass_mla: up to 1)"),
    ("cuda:sm100", "cutlass_mla", "decode", {**MLA, "num_heads": 256},
     "num_heads 256 is not supported (cutlass_mla: up to 128)"),
    ("cuda:sm90", "cudnn", "prefill", {"sliding_window": 8}, "sliding_window 8 is not supported (cudnn: none, "
     "cudnn_batch_prefill_with_kv_cache has no such argument)"),
    ("cuda:sm80", "triton", "decode", {"kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8_e4m3 on sm80 is not supported "
     "(triton: not on sm75, sm80, sm86, sm87, gfx90a, gfx1100, where Triton has no such type)"),
    ("cuda:sm90", "flash_attn_2", "prefill", MLA, "MLA prefill with head_dim 192 and head_dim_v 128 is not supported "
     "(flash_attn_2: 128/128, 256/256)"),
    ("cpu:aarch64", "cpu", "decode", {"head_dim": 16}, "head_dim 16 is not supported (cpu: from 32 to 576)"),
]

# (alias, device, config, prefill, decode): what both engines' users type, dense and MLA.
ALIASES: list[tuple[str, str, dict[str, Any], str | None, str | None]] = [
    ("fa3", "cuda:sm90", MLA, "flash_attn_3", "flash_attn_mla"),
    ("fa3", "musa:mp31", MLA, "mate_mla", "mate_mla"),
    ("fa4", "cuda:sm100", {}, "flash_attn_4", "flash_attn_4"),
    ("fa4", "cuda:sm120", {}, None, None),
    ("FLASH_ATTN", "cuda:sm100", {}, "flash_attn_4", "flash_attn_4"),
    ("FLASH_ATTN", "cuda:sm120", {}, "flash_attn_2", "flash_attn_2"),
    ("FLASH_ATTN_DIFFKV", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, "flash_attn_diffkv", "flash_attn_diffkv"),
    ("FLASHINFER", "cuda:sm100", {"sinks": True}, "trtllm_mha", "trtllm_mha"),
    ("FLASHINFER", "cuda:sm100", {"softcap": 30.0}, "flashinfer", "flashinfer"),
    ("FLASHINFER", "cuda:sm80", {}, "flashinfer", "flashinfer"),
    ("flashinfer", "cuda:sm90", MLA, "flashinfer", "flashinfer_mla"),
    ("FLASHINFER_MLA", "cuda:sm100", MLA, "trtllm_ragged", "trtllm_mla"),
    ("FLASHINFER_MLA", "cuda:sm90", MLA, "flashinfer_mla", "flashinfer_mla"),
    ("trtllm_mla", "cuda:sm100", MLA, "trtllm_ragged", "trtllm_mla"),
    ("CUTLASS_MLA", "cuda:sm100", MLA, "trtllm_ragged", "cutlass_mla"),
    ("flashmla", "cuda:sm90", MLA, "flash_attn_3", "flashmla"),
    ("FLASHMLA", "cuda:sm90", MLA, "flash_attn_3", "flashmla"),
    ("flashmla", "cuda:sm90", {}, None, None),
    ("cutlass_mla", "cuda:sm100", MLA, "trtllm_ragged", "cutlass_mla"),
    ("TRTLLM_MLA", "cuda:sm100", MLA, "trtllm_ragged", "trtllm_mla"),
    ("dsa", "cuda:sm100", SPARSE, "flashmla_sparse", "flashmla_sparse"),
    ("triton", "cuda:sm90", {}, "triton", "triton"),
    ("triton", "cuda:sm90", MLA, "triton", "triton_mla"),
    ("TRITON_MLA", "cuda:sm120", MLA, "triton_mla", "triton_mla"),
    ("TREE_ATTN", "cuda:sm90", {"tree_mask": True}, "triton", "triton"),
    ("TREE_ATTN", "npu:ascend910b", {"tree_mask": True}, "torch", "torch"),
    ("intel_amx", "cpu:x86_64_v4_bf16", {}, "cpu", "cpu"),
    ("DUAL_CHUNK_FLASH_ATTN", "cuda:sm90", {}, None, None),
]
