"""Expected choices and reasons, written by hand from the design and the vendors' documents. Data for test_selection."""

from __future__ import annotations

from typing import Any

# Archs without the default dtype (torch_npu's IsBF16Supported: SoC 220 and above).
NO_BFLOAT16 = ("npu:ascend910a", "npu:ascend310p")
# Device -> (backend, page size, package needed, what the first candidate passed over in favour of it says).
CHOICES: dict[str, tuple[str, int, str | None, tuple[str, str]]] = {
    "cuda:sm90": ("flash_attn_3", 64, "flash-attn-3",
                  ("flash_attn_2", "page_size 64 is not supported (flash_attn_2: multiples of 256)")),
    "rocm:gfx942": ("aiter", 16, "amd-aiter",
                    ("flash_attn_3", "platform rocm is not supported (flash_attn_3: cuda)")),
    "npu:ascend910b": ("ascend", 128, "torch-npu",
                       ("flash_attn_3", "platform npu is not supported (flash_attn_3: cuda)")),
    "musa:mp31": ("mate", 64, "mate",
                  ("flash_attn_3", "platform musa is not supported (flash_attn_3: cuda)")),
    "cuda:sm80": ("flash_attn_2", 256, "flash-attn",
                  ("flash_attn_3", "arch sm80 is not supported (flash_attn_3: sm90)")),
    "cuda:sm120": ("flash_attn_2", 256, "flash-attn",
                   ("flash_attn_3", "arch sm120 is not supported (flash_attn_3: sm90)")),
    "rocm:gfx950": ("aiter", 16, "amd-aiter",
                    ("flash_attn_3", "platform rocm is not supported (flash_attn_3: cuda)")),
    "npu:ascend910c": ("ascend", 128, "torch-npu",
                       ("flash_attn_3", "platform npu is not supported (flash_attn_3: cuda)")),
    "npu:ascend950": ("ascend", 128, "torch-npu",
                      ("flash_attn_3", "platform npu is not supported (flash_attn_3: cuda)")),
    "cuda:sm75": ("torch", 16, None,
                  ("flash_attn_2", "arch sm75 is not supported (flash_attn_2: sm80, sm86, sm87, sm89, sm90, "
                                   "sm100, sm103, sm110, sm120, sm121)")),
    "rocm:gfx90a": ("rocm_attn", 16, "vllm", ("aiter_unified", "arch gfx90a is not supported (aiter_unified: gfx942, "
                                                               "gfx950, gfx1100, gfx1201)")),
    "npu:ascend310p": ("ascend_310p", 128, "torch-npu",  # with float16: see NO_BFLOAT16
                       ("ascend", "arch ascend310p is not supported (ascend: ascend910b, ascend910c, ascend950)")),
    "musa:mp22": ("torch", 16, None, ("mate", "arch mp22 is not supported (mate: mp31)")),
    # HAL's own C++ kernels, declared but not built: only a CPU that is named, not this machine's, is told so.
    "cpu:x86_64_v3": ("cpu", 16, None,
                      ("flash_attn_3", "platform cpu is not supported (flash_attn_3: cuda)")),
}

_DECLARED = ("(flash_attn_3: sliding_window, attention_chunk, softcap, sinks, non_causal, return_softmax_lse, "
             "context_parallel, deterministic)")
# (device, backend, config, the whole of one reason): a backend refuses the configuration with this sentence.
REASONS: list[tuple[str, str, dict[str, Any], str]] = [
    ("cuda:sm90", "flash_attn_3", {"head_dim": 260}, "head_dim 260 is not supported (flash_attn_3: multiples "
                                                     "of 8 from 8 to 256)"),
    ("cuda:sm90", "flash_attn_3", {"head_dim": 128, "head_dim_v": 64},
     "head_dim 128 with head_dim_v 64 is not supported (flash_attn_3: multiples of 8; equal, 129 to 192 with "
     "97 to 128, or up to 64 with up to 512)"),
    ("cuda:sm90", "flash_attn_3", {"head_dim": 256, "head_dim_v": 128},
     "head_dim 256 with head_dim_v 128 is not supported (flash_attn_3: multiples of 8; equal, 129 to 192 with 97 to "
     "128, or up to 64 with up to 512)"),
    ("cuda:sm90", "flash_attn_3", {"head_dim": 192, "head_dim_v": 96},
     "head_dim 192 with head_dim_v 96 is not supported (flash_attn_3: multiples of 8; equal, 129 to 192 with 97 to "
     "128, or up to 64 with up to 512)"),
    ("cuda:sm90", "flash_attn_3", {"head_dim": 72, "head_dim_v": 512},
     "head_dim 72 with head_dim_v 512 is not supported (flash_attn_3: multiples of 8; equal, 129 to 192 with 97 to "
     "128, or up to 64 with up to 512)"),
    ("cuda:sm90", "flash_attn_3", {"dtype": "float32"},
     "dtype float32 is not supported (flash_attn_3: float16, bfloat16)"),
    ("cuda:sm90", "flash_attn_3", {"kv_cache_dtype": "fp8_e5m2"},
     "kv_cache_dtype fp8_e5m2 is not supported (flash_attn_3 with dtype bfloat16: auto, bfloat16, fp8_e4m3)"),
    ("cuda:sm90", "flash_attn_3", {"kv_cache_dtype": "fp8", "dtype": "float16"},
     "kv_cache_dtype fp8_e4m3 with dtype float16 is not supported (flash_attn_3: bfloat16, which is what the "
     "kernel returns for fp8)"),
    ("cuda:sm90", "flash_attn_3", {"kv_cache_dtype": "fp8", "head_dim": 72},
     "kv_cache_dtype fp8_e4m3 with head_dim 72 and head_dim_v 72 is not supported (flash_attn_3: multiples "
     "of 16, head_dim_v up to 256)"),
    ("cuda:sm90", "flash_attn_3", {"kv_cache_dtype": "fp8", "head_dim": 64, "head_dim_v": 512},
     "kv_cache_dtype fp8_e4m3 with head_dim 64 and head_dim_v 512 is not supported (flash_attn_3: multiples "
     "of 16, head_dim_v up to 256)"),
    ("cuda:sm90", "flash_attn_3", {"sinks": True, "dtype": "float16"},
     "sinks with dtype float16 is not supported (flash_attn_3: bfloat16, the only dtype of sinks that the kernels "
     "take)"),
    ("cuda:sm90", "flash_attn_3", {"tree_mask": True}, f"tree_mask is not supported {_DECLARED}"),
    ("cuda:sm90", "flash_attn_3", {"context_parallel_size": 4, "sliding_window": 128},
     "sliding_window 128 with context_parallel 4 is not supported (flash_attn_3: one of the two)"),
    ("cuda:sm90", "flash_attn_3", {"context_parallel_size": 4, "attention_chunk": 64},
     "attention_chunk 64 with context_parallel 4 is not supported (flash_attn_3: one of the two)"),
    ("cuda:sm80", "flash_attn_2", {"context_parallel_size": 4}, "context_parallel 4 is not supported (flash_attn_2: "
     "none, its functions have no argument for the global lengths)"),
    ("cuda:sm80", "flash_attn_2", {"page_size": 16},
     "page_size 16 is not supported (flash_attn_2: multiples of 256)"),
    ("cuda:sm80", "flash_attn_2", {"attention_chunk": 64},
     "attention_chunk 64 is not supported (flash_attn_2: sliding_window, softcap, non_causal, return_softmax_lse, "
     "deterministic)"),
    ("cuda:sm80", "flash_attn_2", {"head_dim": 192, "head_dim_v": 128},
     "head_dim 192 with head_dim_v 128 is not supported (flash_attn_2: equal dims only)"),
    ("cuda:sm80", "flash_attn_2", {"kv_cache_dtype": "fp8"},
     "kv_cache_dtype fp8_e4m3 is not supported (flash_attn_2 with dtype bfloat16: auto, bfloat16)"),
    ("rocm:gfx942", "aiter", {"page_size": 32}, "page_size 32 is not supported (aiter: 16, 1024)"),
    ("rocm:gfx942", "aiter", {"head_dim": 64}, "head_dim 64 is not supported (aiter: 128, 256)"),
    ("rocm:gfx942", "aiter", {"sliding_window": 1},
     "sliding_window 1 would be ignored by the assembly kernels, which take a left bound of 0 for none "
     "(aiter: 2 or more)"),
    ("rocm:gfx942", "aiter", {"sinks": True},
     "sinks is not supported (aiter: none, the assembly kernels that flash_attn_varlen_func picks for bfloat16 "
     "would ignore them)"),
    ("rocm:gfx942", "aiter", {"attention_type": "encoder"},
     "attention_type encoder is not supported (aiter: decoder)"),
    ("npu:ascend910b", "ascend", {"page_size": 64}, "page_size 64 is not supported (ascend: 128)"),
    ("npu:ascend910b", "ascend", {"head_dim": 256}, "head_dim 256 is not supported (ascend: 64, 128)"),
    ("npu:ascend910b", "ascend", {"head_dim": 192, "head_dim_v": 64},
     "head_dim 192 with head_dim_v 64 is not supported (ascend: 192/128)"),
    ("npu:ascend910b", "ascend", {"head_dim": 192}, "head_dim 192 is not supported (ascend: 64, 128)"),
    ("npu:ascend910b", "ascend", {"sliding_window": 4096, "context_parallel_size": 2},
     "sliding_window 4096 with context_parallel 2 is not supported (ascend: one of them)"),
    ("npu:ascend910b", "ascend", {"attention_chunk": 64},
     "attention_chunk 64 is not supported (ascend: none, none of its sparse modes knows chunks)"),
    ("npu:ascend910b", "ascend", {"softcap": 50},
     "softcap 50.0 is not supported (ascend: none, the op has no such argument and would ignore it)"),
    ("npu:ascend910b", "ascend", {"sinks": True, "dtype": "float16"},
     "sinks with dtype float16 is not supported (ascend: bfloat16)"),
    ("npu:ascend910b", "ascend", {"num_heads": 512, "num_kv_heads": 512},
     "num_kv_heads * head_dim 65536 is not supported (ascend: up to 65535)"),
    ("npu:ascend910b", "ascend", {"num_heads": 130, "num_kv_heads": 2},
     "num_heads per KV head 65 is not supported (ascend: up to 64)"),
    ("npu:ascend910b", "ascend", {"num_heads": 257, "num_kv_heads": 257, "head_dim": 64},
     "num_heads 257 is not supported (ascend: up to 256)"),
    ("npu:ascend310p", "ascend_310p", {"dtype": "float16", "page_size": 128, "head_dim": 256},
     "head_dim 256 with page_size 128 is not supported (ascend_310p: head_dim * page_size up to 16384)"),
    ("npu:ascend310p", "ascend_310p", {"dtype": "float16", "head_dim": 512},
     "head_dim 512 is not supported (ascend_310p: multiples of 16 from 16 to 256)"),
    ("npu:ascend310p", "ascend_310p", {"dtype": "float16", "sliding_window": 9},
     "sliding_window 9 is not supported (ascend_310p: none, vllm-ascend 182b75ea hands 310P's ops nothing of it)"),
    ("npu:ascend310p", "ascend", {"dtype": "float16"},
     "arch ascend310p has no npu_fused_infer_attention_score but ops and a cache layout of its own (ascend: "
     "ascend910b, ascend910c, ascend950)"),
    ("musa:mp31", "mate", {"kv_cache_dtype": "fp8"},
     "kv_cache_dtype fp8_e4m3 is not supported (mate with dtype bfloat16: auto, bfloat16)"),
    ("musa:mp31", "mate", {"head_dim": 128, "head_dim_v": 64},
     "head_dim 128 with head_dim_v 64 is not supported (mate: 192/128)"),
    ("musa:mp31", "mate", {"head_dim": 520}, "head_dim 520 is not supported (mate: multiples of 8 from 8 to 512)"),
    ("musa:mp31", "mate", {"sinks": True},
     "sinks with sliding_window None is not supported (mate: sinks with a sliding_window; they are "
     "documented on its local-attention path only)"),
    ("musa:mp31", "mate", {"attention_chunk": 8192},
     "attention_chunk 8192 is not supported (mate: none, it needs MUSA SDK 5.1 or newer, and HAL does not read "
     "that version)"),
]

# The same of the MLA backends and of AMD's others.
REASONS += [
    ("rocm:gfx942", "aiter_mla", {"mla": True, "num_heads": 16, "dtype": "float16"},
     "dtype float16 is not supported (aiter_mla: bfloat16)"),
    ("rocm:gfx942", "aiter_mla", {"mla": True, "num_heads": 16, "softcap": 30},
     "softcap 30.0 is not supported (aiter_mla: none, mla_decode_fwd asserts that there is none)"),
    ("rocm:gfx942", "aiter_mla", {"mla": True, "num_heads": 16, "sparse": True},
     "sparse is not supported (aiter_mla: none, aiter_mla_sparse has it)"),
    ("rocm:gfx942", "aiter_mla", {}, "mla is needed (aiter_mla: mla only)"),
    ("rocm:gfx942", "aiter_mla_sparse", {"mla": True, "sparse": True, "num_heads": 64},
     "num_heads 64 is not supported (aiter_mla_sparse: 16, 128)"),
    ("rocm:gfx942", "aiter_mla_sparse", {"mla": True}, "sparse is needed (aiter_mla_sparse: mla, sparse only)"),
    ("rocm:gfx90a", "aiter_triton_mla", {"mla": True},
     "arch gfx90a is not supported (aiter_triton_mla: gfx942, gfx950, gfx1100, gfx1201)"),
    ("rocm:gfx942", "aiter_unified", {"causal": False},
     "non_causal is not supported (aiter_unified: none, the kernel asserts causal)"),
    ("rocm:gfx942", "aiter_unified", {"return_softmax_lse": True, "head_dim": 64},
     "return_softmax_lse is not supported (aiter_unified: none, the kernel returns no LSE)"),
    ("rocm:gfx942", "aiter_unified", {"page_size": 48},
     "page_size 48 is not supported (aiter_unified: 16, 32, or a multiple of 16 from 64)"),
    ("rocm:gfx942", "aiter_unified", {"page_size": 1}, "page_size 1 is not supported (aiter_unified: multiples of 16)"),
    ("rocm:gfx1100", "aiter_unified", {"kv_cache_dtype": "fp8"},
     "kv_cache_dtype fp8_e4m3 is not supported on gfx1100 (aiter_unified: gfx942, gfx950, gfx1201)"),
    ("rocm:gfx942", "rocm_attn", {"softcap": 50},
     "softcap 50.0 is not supported (rocm_attn: none, RocmAttentionImpl stores it and does not pass it on)"),
    ("rocm:gfx942", "rocm_attn", {"sinks": True},
     "sinks is not supported (rocm_attn: none, the HIP kernel has none (RocmAttentionBackend.supports_sink))"),
    ("rocm:gfx942", "rocm_attn", {"head_dim": 112},
     "head_dim 112 is not supported (rocm_attn: 32, 64, 80, 96, 128, 160, 192, 224, 256)"),
    ("rocm:gfx942", "rocm_attn", {"kv_cache_dtype": "fp8_e5m2"},
     "kv_cache_dtype fp8_e5m2 is not supported (rocm_attn with dtype bfloat16: auto, bfloat16, fp8_e4m3)"),
    ("rocm:gfx90a", "rocm_attn", {"kv_cache_dtype": "fp8"},
     "kv_cache_dtype fp8_e4m3 is not supported on gfx90a (rocm_attn: gfx942, gfx950, gfx1201)"),
    ("rocm:gfx942", "wave", {}, "dtype bfloat16 is not supported (wave: float16)"),
    ("rocm:gfx942", "rocm_attn", {"attention_type": "encoder", "causal": False, "sliding_window": 8},
     "sliding_window 8 with attention_type encoder and causal False is not supported (rocm_attn: causal windows of a "
     "decoder, it has nothing for the right)"),
    ("rocm:gfx942", "rocm_attn", {"causal": False, "sliding_window": 8},
     "sliding_window 8 with attention_type decoder and causal False is not supported (rocm_attn: causal windows of a "
     "decoder, it has nothing for the right)"),
    ("npu:ascend910b", "ascend_mla", {"mla": True, "num_heads": 129},
     "num_heads of absorbed MLA 129 is not supported (ascend_mla: 1, 2, 4, 8, 16, 32, 64, 128)"),
    ("npu:ascend910b", "ascend_mla", {"mla": True, "dtype": "float16"},
     "dtype float16 is not supported (ascend_mla: bfloat16)"),
    ("npu:ascend910b", "ascend_mla", {"mla": True, "sinks": True},
     "sinks is not supported (ascend_mla: none, learnable_sink is not for absorbed MLA decode)"),
    ("npu:ascend910b", "ascend_mla", {"mla": True, "sparse": True},
     "sparse is not supported (ascend_mla: none, npu_sparse_flash_attention has it, which is not this backend's op)"),
    ("npu:ascend310p", "ascend_mla", {"mla": True, "dtype": "float16"},
     "arch ascend310p has no MLA in vllm-ascend 182b75ea either (ascend_mla: ascend910b, ascend910c, ascend950)"),
    ("npu:ascend910a", "ascend", {"dtype": "float16"},
     "arch ascend910a has no npu_fused_infer_attention_score: its document lists Atlas A2 and A3 only (ascend: "
     "ascend910b, ascend910c, ascend950)"),
    ("musa:mp22", "mate_mla", {"mla": True}, "arch mp22 is not supported (mate_mla: mp31)"),
] + [("musa:mp31", "mate_mla", {"mla": True, name: value},
      f"{shown} is not supported (mate_mla: none, the MLA branch of flash_attn_with_kvcache ignores it)")
     for name, value, shown in (("sliding_window", 128, "sliding_window 128"), ("softcap", 30, "softcap 30.0"),
                                ("sinks", True, "sinks"), ("attention_chunk", 64, "attention_chunk 64"),
                                ("context_parallel_size", 2, "context_parallel 2"))]

# (device, config beside mla=True, prefill, decode, page size)
MLA_CHOICES: list[tuple[str, dict[str, Any], str, str, int]] = [
    ("npu:ascend910b", {}, "ascend_mla", "ascend_mla", 128),
    ("npu:ascend950", {"num_heads": 16}, "ascend_mla", "ascend_mla", 128),
    ("npu:ascend310p", {"dtype": "float16"}, "torch", "torch", 16),
    ("musa:mp31", {}, "mate_mla", "mate_mla", 64),
    ("rocm:gfx942", {}, "aiter_mla", "aiter_mla", 1),
    ("rocm:gfx950", {"num_heads": 16, "kv_cache_dtype": "fp8"}, "aiter_mla", "aiter_mla", 1),
    ("rocm:gfx942", {"sparse": True}, "aiter_mla_sparse", "aiter_mla_sparse", 1),
]

# (device, backend, config) that the backend accepts.
ACCEPTED: list[tuple[str, str, dict[str, Any]]] = [
    ("cuda:sm90", "flash_attn_3", {"page_size": 1, "sliding_window": 128, "softcap": 30}),
    ("cuda:sm90", "flash_attn_3", {"attention_chunk": 8192, "head_dim": 192, "head_dim_v": 128}),
    ("cuda:sm90", "flash_attn_3", {"head_dim": 64, "head_dim_v": 512}),
    ("cuda:sm90", "flash_attn_3", {"head_dim": 136, "head_dim_v": 104}),
    ("cuda:sm90", "flash_attn_3", {"kv_cache_dtype": "fp8", "max_decode_query_len": 8}),
    ("cuda:sm90", "flash_attn_3", {"attention_type": "encoder", "causal": False}),
    ("cuda:sm90", "flash_attn_3", {"sinks": True, "return_softmax_lse": True}),
    ("cuda:sm90", "flash_attn_3", {"deterministic": True, "graph": True}),
    ("cuda:sm80", "flash_attn_2", {"page_size": 512, "softcap": 50, "return_softmax_lse": True}),
    ("rocm:gfx950", "aiter", {"head_dim": 256, "softcap": 30, "sliding_window": 2, "page_size": 1024}),
    ("rocm:gfx942", "aiter_unified", {"sinks": True, "head_dim": 64, "sliding_window": 128, "page_size": 64}),
    ("rocm:gfx1201", "rocm_attn", {"head_dim": 96, "page_size": 544, "kv_cache_dtype": "fp8"}),
    ("rocm:gfx942", "aiter_mla", {"mla": True, "num_heads": 128, "return_softmax_lse": True,
                                  "context_parallel_size": 8}),
    ("npu:ascend910b", "ascend_mla", {"mla": True, "num_heads": 8, "max_decode_query_len": 16, "graph": True}),
    ("musa:mp31", "mate_mla", {"mla": True, "num_heads": 64, "max_decode_query_len": 5, "dtype": "float16"}),
    ("npu:ascend910c", "ascend", {"head_dim": 192, "head_dim_v": 128, "return_softmax_lse": True}),
    ("musa:mp31", "mate", {"head_dim": 96, "page_size": 64}),
    ("musa:mp31", "mate", {"head_dim": 384}),
    ("musa:mp31", "mate", {"sinks": True, "sliding_window": 128}),
]

# (field, bad value, what the message must say beside the field and the value)
BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("num_heads", 0, ">= 1"),
    ("num_heads", 33, "multiple of num_kv_heads"),
    ("num_heads", True, "whole number"),
    ("num_kv_heads", -8, ">= 1"),
    ("num_kv_heads", 8.0, "whole number"),
    ("head_dim", "128", "whole number"),
    ("head_dim_v", 0, ">= 1"),
    ("dtype", "int8", "float16, bfloat16, float32"),
    ("dtype", None, "float16, bfloat16, float32"),
    ("kv_cache_dtype", "int4", "fp8_e4m3"),
    ("kv_cache_dtype", "fp8_ds_mla", "mla"),
    ("page_size", 0, ">= 1"),
    ("page_size", 16.0, "whole number"),
    ("causal", 1, "True or False"),
    ("sliding_window", 0, ">= 1"),
    ("sliding_window", -1, ">= 1"),
    ("attention_chunk", 0, ">= 1"),
    ("softcap", -1.0, ">= 0"),
    ("softcap", float("nan"), "finite"),
    ("softcap", float("inf"), "finite"),
    ("softcap", True, "finite number"),
    ("sinks", "yes", "True or False"),
    ("mla", 576, "MLADims"),
    ("sparse", None, "True or False"),
    ("attention_type", "cross", "encoder_decoder"),
    ("tree_mask", 1, "True or False"),
    ("mm_prefix", "no", "True or False"),
    ("softmax_scale", 0.0, "> 0"),
    ("softmax_scale", "0.1", "finite number"),
    ("return_softmax_lse", 0, "True or False"),
    ("max_decode_query_len", 0, ">= 1"),
    ("context_parallel_size", 0, ">= 1"),
    ("deterministic", None, "True or False"),
    ("graph", 2, "True or False"),
]
