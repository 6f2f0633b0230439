"""Expected choices and refusals over the whole field, transcribed from research/ and the vendors' own code.

One row for one statement of a source. Nothing here is computed from a declaration: where a row and a declaration
differ, the source named in the row decides. The rows up to ALIAS_ROWS and the claims before "Packages" were written
before selection was first run; where the first run showed that a vendor's own code says other than an engine does,
the row names both. ORDER_ROWS and the claims after were added for mutations that no row had noticed.
"""
# ruff: noqa: E501 - a row stays on its line

from __future__ import annotations

from typing import Any, NamedTuple

from hal.config import MLADims

# For Row.chosen: whatever is chosen; the row is about the backend it rejects. "aiter" names aiter_mla too.
ANY = "*"


class Row(NamedTuple):
    """One question and its answer.

    packages: None assumes all of them, a comma list only those. phase: "prefill" or "decode". chosen: None where
    nothing can serve, ANY where that is not the row's concern. rejected: a candidate that the source ranks earlier or a user would expect, and how one of
    its reasons starts. ask: the backend or alias asked for by name.
    """

    id: str
    device: str
    config: dict[str, Any]
    packages: str | None
    phase: str
    chosen: str | None
    rejected: tuple[str, str] | None
    source: str
    ask: str = "auto"


# Names of distributions, as --packages takes them.
FA2, FA3, FA4, FI, TRI = "flash-attn", "flash-attn-3", "flash-attn-4", "flashinfer-python", "triton"
FMLA, SGL, VLLM, AITER, NPU, MATE = "flash-mla", "sglang-kernel", "vllm", "amd-aiter", "torch-npu", "mate"
FA2_FI_TRI, FI_TRI, FA2_TRI = f"{FA2},{FI},{TRI}", f"{FI},{TRI}", f"{FA2},{TRI}"
AIT_TRI, VLLM_TRI = f"{AITER},{TRI}", f"{VLLM},{TRI}"
NONE = ""

# Sources.
F = "field.md, Backends"
FP = "field.md, Selection as users know it: priorities"
V = "vllm_backends.json, executed_on_cpu_host"
VD = "vllm_backends.json, doc_ast (not importable on the host)"
VP = "vllm_backends.json, cuda_priorities"
S2, S4, S5 = "sglang.md section 2", "sglang.md section 4", "sglang.md section 5"
A3 = "ascend.md section 3"
P310 = "vllm-ascend 182b75ea, _310p/attention/attention_v1.py"
FIAD = "op-plugin 517f2e7d, documents of npu_fused_infer_attention_score and .._v2"
SIG = "signatures.json"
ROCM = "vllm/platforms/rocm.py, _get_backend_priorities"
# The vendors' own code, where it is narrower or wider than what an engine says of its backend.
CK = "ROCm/aiter op_tests/test_batch_prefill.py: page_size [16, 1024], head_dim [128, 256]"
ASM = "ROCm/aiter csrc/py_itfs_cu/asm_mla.cu: queries of bf16 or fp8, one fp8 type"
RDNA = "ROCm/aiter README, Supported Hardware: gfx942, gfx950, gfx1100, gfx1201"
FA4C = "flash-attention flash_attn/cute/interface.py: paged KV not supported on SM 8.0, on SM 12.0"
FA2C = "flash-attention csrc/flash_attn/flash_api.cpp: CHECK_SHAPE(v, .., head_size)"
FAC = "flash-attention csrc/flash_attn/flash_api.cpp and hopper/flash_api.cpp: head dims multiples of 8 up to 256"
FIC = "FlashInfer flashinfer/mla/_core.py"
# Where sources disagree: vLLM lists float16 for the two backends that end in this function, and the function itself
# gives bfloat16 whatever the query. The vendor's code decides: float16 is refused.
OUT = f"{FIC}, trtllm_batch_decode_with_kv_cache_mla: out is bfloat16 whatever the query"
FMP = "vllm_backends.json, mla_prefill_priorities: FLASH_ATTN first, the others are 10.x; SGLang flashmla_backend.py: extend is FlashInfer's"
BF16 = "ascend.md, SoC map: bf16 iff the SoC is 220 or above (IsBF16Supported)"
RWIN = "vLLM rocm_attn.py: sliding_window (W - 1, 0) for encoders; triton_prefill_attention.py: a right bound of 0 is none"
FIR = "FlashInfer README, GPU Support: SM 7.5 to 12.1"
CUDNNC = "FlashInfer flashinfer/cudnn/prefill.py: head_dim_qk 128 or 192, head_dim_vo 128; causal; return_lse"
OWN = "design.md section 6: what HAL's own kernels are for"
MP = "vllm_backends.json, mla_prefill"
WAVE = "SGLang test_wave_attention_kernels.py; wave_ops: page size 1"
MATEC = "MooreThreads/mate include/mate/attention/fmha/seqlen.hpp: cp_tot_seqused_k[batch_idx]; tests/test_fmha.py"

FP16, FP32 = {"dtype": "float16"}, {"dtype": "float32"}
E4M3, E5M2, DS = ({"kv_cache_dtype": t} for t in ("fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"))
ENC = {"attention_type": "encoder_only", "causal": False}
ENC_DEC = {"attention_type": "encoder_decoder", "causal": False}
ENCODER = {"attention_type": "encoder", "causal": False}
GPT_OSS = {"sinks": True, "num_heads": 64, "head_dim": 64}
MLA = {"mla": True, "num_heads": 128}
DSA = {"mla": True, "num_heads": 128, "sparse": True}
TREE = {"tree_mask": True, "max_decode_query_len": 8}
# MLA whose expanded widths are 256/256 (GLM-5), 128/128, and none that any prefill kernel names.
GLM5 = {"mla": MLADims(qk_nope_head_dim=192, v_head_dim=256), "num_heads": 128}
MLA_128 = {"mla": MLADims(qk_nope_head_dim=64), "num_heads": 128}
MLA_ODD = {"mla": MLADims(qk_nope_head_dim=32, v_head_dim=64), "num_heads": 128}


def page(size: int) -> dict[str, Any]:
    return {"page_size": size}


def dim(size: int) -> dict[str, Any]:
    return {"head_dim": size}


D, P = "decode", "prefill"

# CUDA, dense: the order of each generation, each candidate in turn without those before it.
CUDA_ORDER = [
    Row("sm90 first", "cuda:sm90", {}, None, D, "flash_attn_3", None, f"{FP}: FlashAttention is 3 on sm90; {S2}: SM90 fa3"),
    Row("sm90 prefill", "cuda:sm90", {}, None, P, "flash_attn_3", None, f"{FP}: FlashAttention is 3 on sm90"),
    Row("sm90 no fa3", "cuda:sm90", {}, FA2_FI_TRI, D, "flash_attn_2", ("flash_attn_3", "package flash-attn-3"), f"{FP}: sm80..sm90 flash_attn before flashinfer; {VP} sm90"),
    Row("sm90 no fa", "cuda:sm90", {}, FI_TRI, D, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{FP}: flashinfer before triton; {VP} sm90"),
    Row("sm90 triton", "cuda:sm90", {}, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{FP}: triton before flex; {VP} sm90"),
    Row("sm90 none", "cuda:sm90", {}, NONE, D, "flex_attention", ("triton", "package triton"), f"{FP}: flex last; torch is the floor"),
    Row("sm80 first", "cuda:sm80", {}, None, D, "flash_attn_2", None, f"{FP}: FlashAttention is 3 on sm90, 2 below"),
    Row("sm80 prefill", "cuda:sm80", {}, None, P, "flash_attn_2", None, f"{FP}: FlashAttention is 3 on sm90, 2 below"),
    Row("sm80 no fa", "cuda:sm80", {}, FI_TRI, D, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{VP} sm80; {S2}: SM80 MHA flashinfer"),
    Row("sm80 triton", "cuda:sm80", {}, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{VP} sm80; {S2}: else triton"),
    Row("sm80 none", "cuda:sm80", {}, NONE, D, "flex_attention", ("triton", "package triton"), f"{VP} sm80"),
    Row("sm86 first", "cuda:sm86", {}, None, D, "flash_attn_2", None, f"{V} FLASH_ATTN: 8.6"),
    Row("sm86 no fa", "cuda:sm86", {}, FI_TRI, D, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{S2}: SM86 MHA flashinfer"),
    Row("sm89 first", "cuda:sm89", {}, None, D, "flash_attn_2", None, f"{V} FLASH_ATTN: 8.9; {VP} sm89"),
    Row("sm89 no fa", "cuda:sm89", {}, FI_TRI, D, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{S2}: SM89 MHA flashinfer"),
    Row("sm89 triton", "cuda:sm89", {}, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{VP} sm89"),
    Row("sm75 first", "cuda:sm75", FP16, None, D, "flashinfer", ("flash_attn_2", "arch sm75"), f"{F}: flash_attn_2 sm80+, flashinfer sm75..sm120; {VP} sm75"),
    Row("sm75 triton", "cuda:sm75", FP16, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{V} TRITON_ATTN: 7.5; {VP} sm75"),
    Row("sm75 none", "cuda:sm75", FP16, NONE, D, "flex_attention", ("triton", "package triton"), f"{V} FLEX_ATTENTION: 7.5"),
    Row("sm100 first", "cuda:sm100", {}, None, D, "trtllm_mha", None, f"{FP}: trtllm_mha before native flashinfer; {S2}: SM100 trtllm_mha"),
    Row("sm100 prefill", "cuda:sm100", {}, None, P, "trtllm_mha", None, f"{F}: trtllm_batch_context_with_kv_cache too"),
    Row("sm100 no flashinfer", "cuda:sm100", {}, FA2_TRI, D, "flash_attn_2", ("flashinfer", "package flashinfer"), f"{FP}: sm100 flashinfer, flash_attn, triton"),
    Row("sm100 trtllm absent", "cuda:sm100", {}, FA2_TRI, D, "flash_attn_2", ("trtllm_mha", "package flashinfer"), f"{F}: trtllm_mha is flashinfer's"),
    Row("sm100 triton", "cuda:sm100", {}, TRI, D, "triton", ("flash_attn_2", "package flash-attn"), f"{VP} sm100"),
    Row("sm100 none", "cuda:sm100", {}, NONE, D, "flex_attention", ("triton", "package triton"), f"{VP} sm100"),
    Row("sm100 flashinfer before fa", "cuda:sm100", page(256), FA2_FI_TRI, D, "flashinfer", ("trtllm_mha", "page_size 256"), f"{FP}: sm100 flashinfer before flash_attn; {S2}: trtllm_mha page 16/32/64/128"),
    Row("sm103 first", "cuda:sm103", {}, None, D, "trtllm_mha", None, f"{F}: trtllm_mha sm100/103"),
    Row("sm103 no flashinfer", "cuda:sm103", {}, FA2_TRI, D, "flash_attn_2", ("flashinfer", "package flashinfer"), f"{VP} sm103"),
    Row("sm110 first", "cuda:sm110", {}, None, D, "flash_attn_2", ("trtllm_mha", "arch sm110"), f"{VP} sm110: FLASH_ATTN first; {V} FLASH_ATTN 11.0"),
    Row("sm110 triton", "cuda:sm110", {}, TRI, D, "triton", ("flash_attn_2", "package flash-attn"), f"{VP} sm110"),
    Row("sm120 first", "cuda:sm120", {}, None, D, "flash_attn_2", ("flash_attn_3", "arch sm120"), f"{VP} sm120: FLASH_ATTN first (SGLang: flashinfer)"),
    Row("sm120 no fa", "cuda:sm120", {}, FI_TRI, D, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{VP} sm120; {S2}: SM120 MHA flashinfer"),
    Row("sm120 triton", "cuda:sm120", {}, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{VP} sm120"),
    Row("sm120 none", "cuda:sm120", {}, NONE, D, "flex_attention", ("triton", "package triton"), f"{VP} sm120"),
    Row("sm121 first", "cuda:sm121", {}, None, D, "flash_attn_2", ("flash_attn_3", "arch sm121"), f"{VP} sm121; {V} FLASH_ATTN 12.1"),
    Row("sm121 triton", "cuda:sm121", {}, TRI, D, "triton", ("flash_attn_2", "package flash-attn"), f"{VP} sm121"),
]

# CUDA, dense: pages, head dims, dtypes.
CUDA_SHAPES = [
    Row("sm90 page 1", "cuda:sm90", page(1), None, D, "flash_attn_3", None, f"{S2}: fa3 with page_size default 1"),
    Row("sm90 page 16", "cuda:sm90", page(16), None, D, "flash_attn_3", ("flash_attn_2", "page_size 16"), f"{F}: flash_attn_3 paged; flash_attn_2 %256 upstream"),
    Row("sm90 page 32", "cuda:sm90", page(32), None, D, "flash_attn_3", ("flash_attn_2", "page_size 32"), f"{V} FLASH_ATTN blocks %16"),
    Row("sm90 page 64", "cuda:sm90", page(64), None, D, "flash_attn_3", ("flash_attn_2", "page_size 64"), f"{V} FLASH_ATTN blocks %16"),
    Row("sm90 page 128", "cuda:sm90", page(128), None, D, "flash_attn_3", ("flash_attn_2", "page_size 128"), f"{V} FLASH_ATTN blocks %16"),
    Row("sm90 page 256", "cuda:sm90", page(256), None, D, "flash_attn_3", None, f"{V} FLASH_ATTN blocks %16"),
    Row("sm80 page 1", "cuda:sm80", page(1), None, D, "flashinfer", ("flash_attn_2", "page_size 1 "), f"{F}: flashinfer any page (SGLang runs 1)"),
    Row("sm80 page 16", "cuda:sm80", page(16), None, D, "flashinfer", ("flash_attn_2", "page_size 16"), f"{F}: flash_attn_2 %256 upstream; flashinfer any page"),
    Row("sm80 page 64", "cuda:sm80", page(64), None, D, "flashinfer", ("flash_attn_2", "page_size 64"), f"{F}: flashinfer any page (vLLM 16/32/64)"),
    Row("sm80 page 128", "cuda:sm80", page(128), None, D, "flashinfer", ("flash_attn_2", "page_size 128"), f"{F}: flash_attn_2 %256 upstream"),
    Row("sm80 page 256", "cuda:sm80", page(256), None, D, "flash_attn_2", None, f"{F}: flash_attn_2 %256"),
    Row("sm80 page 512", "cuda:sm80", page(512), None, D, "flash_attn_2", None, f"{F}: flash_attn_2 %256"),
    Row("sm80 page 16 no flashinfer", "cuda:sm80", page(16), FA2_TRI, D, "triton", ("flash_attn_2", "page_size 16"), f"{V} TRITON_ATTN blocks %16"),
    Row("sm80 page 16 none", "cuda:sm80", page(16), NONE, D, "flex_attention", ("triton", "package triton"), f"{V} FLEX_ATTENTION blocks %16"),
    Row("sm120 page 16", "cuda:sm120", page(16), None, D, "flashinfer", ("flash_attn_2", "page_size 16"), f"{F}: flashinfer to sm120; flash_attn_2 %256"),
    Row("sm100 page 1", "cuda:sm100", page(1), None, D, "flashinfer", ("trtllm_mha", "page_size 1 "), f"{S2}: trtllm_mha page 16/32/64/128 only"),
    Row("sm100 page 16", "cuda:sm100", page(16), None, D, "trtllm_mha", None, f"{S2}: trtllm_mha page 16"),
    Row("sm100 page 32", "cuda:sm100", page(32), None, D, "trtllm_mha", None, f"{S2}: trtllm_mha page 32"),
    Row("sm100 page 64", "cuda:sm100", page(64), None, D, "trtllm_mha", None, f"{S2}: trtllm_mha page 64"),
    Row("sm100 page 128", "cuda:sm100", page(128), None, D, "trtllm_mha", None, f"{S2}: trtllm_mha page 128"),
    Row("sm90 dim 80", "cuda:sm90", dim(80), None, D, "flash_attn_3", None, f"{V} FLASH_ATTN heads: 80"),
    Row("sm80 dim 80", "cuda:sm80", dim(80), None, D, "flash_attn_2", None, f"{V} FLASH_ATTN heads: 80"),
    Row("sm80 dim 80 page 16", "cuda:sm80", {**dim(80), **page(16)}, None, D, "triton", ("flashinfer", "head_dim 80"), f"{F}: flashinfer head 64/128/256; {V} TRITON_ATTN heads: 80"),
    Row("sm100 dim 80", "cuda:sm100", dim(80), FA2_FI_TRI, D, "flash_attn_2", ("flashinfer", "head_dim 80"), f"{F}: flashinfer head 64/128/256"),
    Row("sm100 dim 80 trtllm", "cuda:sm100", dim(80), FA2_FI_TRI, D, "flash_attn_2", ("trtllm_mha", "head_dim 80"), f"{F}: flashinfer head 64/128/256 (TRT-LLM no more)"),
    Row("sm90 dim 64", "cuda:sm90", dim(64), FI_TRI, D, "flashinfer", None, f"{F}: flashinfer head 64"),
    Row("sm90 dim 256", "cuda:sm90", dim(256), FI_TRI, D, "flashinfer", None, f"{F}: flashinfer head 256"),
    Row("sm90 dim 256 fa3", "cuda:sm90", dim(256), None, D, "flash_attn_3", None, f"{V} FLASH_ATTN heads: 256"),
    Row("sm90 dim 96", "cuda:sm90", dim(96), FI_TRI, D, "triton", ("flashinfer", "head_dim 96"), f"{F}: flashinfer head 64/128/256; {V} TRITON_ATTN heads: 96"),
    Row("sm90 dim 512", "cuda:sm90", dim(512), f"{FA3},{TRI}", D, "triton", ("flash_attn_3", "head_dim 512"), f"{V} FLASH_ATTN heads to 256, TRITON_ATTN 512"),
    Row("sm80 dim 512", "cuda:sm80", dim(512), FA2_TRI, D, "triton", ("flash_attn_2", "head_dim 512"), f"{V} FLASH_ATTN heads to 256, TRITON_ATTN 512"),
    Row("sm80 dim 16", "cuda:sm80", dim(16), TRI, D, "flex_attention", ("triton", "head_dim 16"), f"{V} TRITON_ATTN heads from 32, FLEX_ATTENTION 16"),
    Row("sm80 dim 32", "cuda:sm80", dim(32), TRI, D, "triton", None, f"{V} TRITON_ATTN heads: 32"),
    Row("sm90 fp32", "cuda:sm90", FP32, None, D, "triton", ("flash_attn_3", "dtype float32"), f"{V} FLASH_ATTN fp16, bf16; TRITON_ATTN fp32"),
    Row("sm80 fp32", "cuda:sm80", FP32, None, D, "triton", ("flash_attn_2", "dtype float32"), f"{V} FLASH_ATTN fp16, bf16"),
    Row("sm80 fp32 flashinfer", "cuda:sm80", FP32, None, D, "triton", ("flashinfer", "dtype float32"), f"{VD} FLASHINFER fp16, bf16"),
    Row("sm100 fp32", "cuda:sm100", FP32, None, D, "triton", ("trtllm_mha", "dtype float32"), f"{VD} FLASHINFER fp16, bf16"),
    Row("sm90 fp32 none", "cuda:sm90", FP32, NONE, D, "flex_attention", None, f"{V} FLEX_ATTENTION fp32"),
    Row("sm90 fp16", "cuda:sm90", FP16, None, D, "flash_attn_3", None, f"{V} FLASH_ATTN fp16"),
    Row("sm100 fp16", "cuda:sm100", FP16, None, D, "trtllm_mha", None, f"{VD} FLASHINFER fp16"),
]

# CUDA, dense: KV dtypes and features.
CUDA_FEATURES = [
    Row("sm90 e4m3", "cuda:sm90", E4M3, None, D, "flash_attn_3", ("flash_attn_2", "kv_cache_dtype fp8_e4m3"), f"{F}: flash_attn_3 fp8 KV, flash_attn_2 no fp8"),
    Row("sm90 e5m2", "cuda:sm90", E5M2, None, D, "flashinfer", ("flash_attn_3", "kv_cache_dtype fp8_e5m2"), f"{S2}: fa3 refuses fp8_e5m2; {VD} FLASHINFER fp8_e5m2"),
    Row("sm80 e4m3", "cuda:sm80", E4M3, None, D, "flashinfer", ("flash_attn_2", "kv_cache_dtype fp8_e4m3"), f"{F}: flash_attn_2 no fp8, flashinfer fp8 KV"),
    Row("sm80 e5m2", "cuda:sm80", E5M2, FI_TRI, D, "flashinfer", None, f"{VD} FLASHINFER fp8_e5m2"),
    Row("sm89 e4m3 triton", "cuda:sm89", E4M3, FA2_TRI, D, "triton", ("flash_attn_2", "kv_cache_dtype fp8_e4m3"), f"{V} TRITON_ATTN fp8_e4m3"),
    Row("sm89 e5m2 triton", "cuda:sm89", E5M2, TRI, D, "triton", None, f"{V} TRITON_ATTN fp8_e5m2"),
    Row("sm90 e4m3 none", "cuda:sm90", E4M3, NONE, D, "torch", ("flex_attention", "kv_cache_dtype fp8_e4m3"), f"{V} FLEX_ATTENTION kv auto, fp16, bf16; torch is the floor"),
    Row("sm100 e4m3", "cuda:sm100", E4M3, None, D, "trtllm_mha", None, f"{F}: trtllm_mha fp8"),
    Row("sm90 sinks", "cuda:sm90", GPT_OSS, None, D, "flash_attn_3", ("flash_attn_2", "sinks"), f"{F}: flash_attn_3 sinks (vLLM/SGLang builds), flash_attn_2 none"),
    Row("sm90 sinks upstream fa3", "cuda:sm90", GPT_OSS, f"{FA3},{TRI}", D, "triton", ("flash_attn_3", "sinks"), f"{F}: sinks in vLLM/SGLang builds only"),
    Row("sm80 sinks fa2", "cuda:sm80", GPT_OSS, FA2_FI_TRI, D, "triton", ("flash_attn_2", "sinks"), f"{F}: flash_attn_2 no sinks; {V} TRITON_ATTN sink"),
    Row("sm80 sinks flashinfer", "cuda:sm80", GPT_OSS, FA2_FI_TRI, D, "triton", ("flashinfer", "sinks"), f"{S2}: flashinfer if no sinks, else triton"),
    Row("sm75 sinks", "cuda:sm75", {**GPT_OSS, **FP16}, None, D, "triton", ("flashinfer", "sinks"), f"{S2}: flashinfer if no sinks, else triton"),
    Row("sm100 sinks", "cuda:sm100", GPT_OSS, None, D, "trtllm_mha", ("flashinfer", "sinks"), f"{FP}: HAL puts trtllm_mha first, else sinks are lost"),
    Row("sm120 sinks", "cuda:sm120", GPT_OSS, None, D, "triton", ("flashinfer", "sinks"), f"{S2}: else triton; {V} TRITON_ATTN sink"),
    Row("sm90 sinks none", "cuda:sm90", GPT_OSS, NONE, D, "torch", ("flex_attention", "sinks"), f"{V} FLEX_ATTENTION no sink; torch is the floor"),
    Row("sm90 window", "cuda:sm90", {"sliding_window": 4096}, None, D, "flash_attn_3", None, f"{V} FLASH_ATTN sliding_window"),
    Row("sm80 window", "cuda:sm80", {"sliding_window": 4096}, None, D, "flash_attn_2", None, f"{V} FLASH_ATTN sliding_window"),
    Row("sm80 window triton", "cuda:sm80", {"sliding_window": 4096}, TRI, D, "triton", None, f"{V} TRITON_ATTN sliding_window"),
    Row("sm80 window none", "cuda:sm80", {"sliding_window": 4096}, NONE, D, "flex_attention", None, f"{V} FLEX_ATTENTION sliding_window"),
    Row("sm80 window flashinfer", "cuda:sm80", {"sliding_window": 4096}, FI_TRI, D, "flashinfer", None, f"{SIG}: flashinfer plan(window_left)"),
    Row("sm100 window", "cuda:sm100", {"sliding_window": 4096}, None, D, "trtllm_mha", None, f"{SIG}: trtllm_batch_decode_with_kv_cache(window_left)"),
    Row("sm90 softcap", "cuda:sm90", {"softcap": 50.0}, None, D, "flash_attn_3", None, f"{SIG}: flash-attn-3 softcap"),
    Row("sm80 softcap", "cuda:sm80", {"softcap": 50.0}, None, D, "flash_attn_2", None, f"{SIG}: flash-attn softcap"),
    Row("sm100 softcap", "cuda:sm100", {"softcap": 50.0}, FA2_FI_TRI, D, "flashinfer", ("trtllm_mha", "softcap 50"), f"{SIG}: trtllm_batch_decode_with_kv_cache has no softcap, plan(logits_soft_cap)"),
    Row("sm80 softcap flashinfer", "cuda:sm80", {"softcap": 50.0}, FI_TRI, D, "flashinfer", None, f"{SIG}: flashinfer plan(logits_soft_cap)"),
    Row("sm90 chunk", "cuda:sm90", {"attention_chunk": 8192}, None, D, "flash_attn_3", ("flash_attn_2", "attention_chunk 8192"), f"{SIG}: attention_chunk in flash-attn-3, not in flash-attn"),
    Row("sm80 chunk flashinfer", "cuda:sm80", {"attention_chunk": 8192}, None, D, None, ("flashinfer", "attention_chunk 8192"), f"{SIG}: flashinfer plan has no chunk", "flashinfer"),
    Row("sm90 lse", "cuda:sm90", {"return_softmax_lse": True}, None, D, "flash_attn_3", None, f"{V} FLASH_ATTN LSE for decode"),
    Row("sm80 lse", "cuda:sm80", {"return_softmax_lse": True}, None, D, "flash_attn_2", None, f"{V} FLASH_ATTN LSE for decode"),
    Row("sm80 lse flashinfer", "cuda:sm80", {"return_softmax_lse": True}, FI_TRI, D, "flashinfer", None, f"{SIG}: flashinfer run(return_lse)"),
    Row("sm80 lse none", "cuda:sm80", {"return_softmax_lse": True}, NONE, D, "flex_attention", None, f"{SIG}: torch flex_attention(return_lse)"),
    Row("sm90 deterministic", "cuda:sm90", {"deterministic": True}, None, D, "flash_attn_3", None, f"{S2}: Deterministic: else fa3"),
    Row("sm80 deterministic", "cuda:sm80", {"deterministic": True}, None, D, "flash_attn_2", None, f"{V} FLASH_ATTN batch_invariance"),
    Row("sm100 deterministic", "cuda:sm100", {"deterministic": True}, None, D, "flashinfer", ("trtllm_mha", "deterministic"), f"{S2}: Deterministic: SM100/120 flashinfer"),
    Row("sm90 deterministic triton", "cuda:sm90", {"deterministic": True}, TRI, D, "triton", None, f"{V} TRITON_ATTN batch_invariance"),
    Row("sm90 graph", "cuda:sm90", {"graph": True}, None, D, "flash_attn_3", None, f"{V} FLASH_ATTN cudagraph UNIFORM_BATCH"),
    Row("sm80 graph", "cuda:sm80", {"graph": True}, None, D, "flash_attn_2", None, f"{V} FLASH_ATTN cudagraph UNIFORM_BATCH"),
    Row("sm80 graph triton", "cuda:sm80", {"graph": True}, TRI, D, "triton", None, f"{V} TRITON_ATTN cudagraph ALWAYS"),
    Row("sm100 graph", "cuda:sm100", {"graph": True}, None, D, "trtllm_mha", None, f"{S2}: trtllm_mha is the default, graphs on"),
    Row("sm90 graph torch", "cuda:sm90", {"graph": True}, None, D, None, ("torch", "graph"), f"{S2}: torch_native disables cuda graph", "torch_native"),
    Row("sm90 encoder", "cuda:sm90", ENC, None, P, "flash_attn_3", None, f"{V} FLASH_ATTN all types"),
    Row("sm80 encoder", "cuda:sm80", ENC, None, P, "flash_attn_2", None, f"{V} FLASH_ATTN encoder_only"),
    Row("sm80 encoder-decoder", "cuda:sm80", ENC_DEC, None, P, "flash_attn_2", None, f"{V} FLASH_ATTN encoder_decoder"),
    Row("sm80 whisper", "cuda:sm80", ENC_DEC, FI_TRI, P, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{S2}: Whisper -> flashinfer (vLLM's document: decoder only)"),
    Row("sm80 encoder triton", "cuda:sm80", ENC, TRI, P, "triton", None, f"{V} TRITON_ATTN encoder_only, non_causal"),
    Row("sm80 encoder none", "cuda:sm80", ENC, NONE, P, "flex_attention", ("triton", "package triton"), f"{V} FLEX_ATTENTION encoder_only, non_causal"),
    Row("sm80 encoder-decoder none", "cuda:sm80", ENC_DEC, NONE, P, "torch", ("flex_attention", "attention_type encoder_decoder"), f"{V} FLEX_ATTENTION decoder, encoder_only; {S2}: no cross attention"),
    Row("sm80 encoder-decoder triton", "cuda:sm80", ENC_DEC, TRI, P, "triton", None, f"{V} TRITON_ATTN encoder_decoder"),
    Row("sm100 encoder", "cuda:sm100", ENC, FA2_FI_TRI, P, "flash_attn_2", ("trtllm_mha", "attention_type encoder_only"), f"{VP} sm100 non_causal=1: FLASH_ATTN first"),
    Row("sm100 encoder fa4", "cuda:sm100", ENC, f"{FA4},{FA2},{FI}", P, "flash_attn_4", None, f"{VP} sm100 non_causal=1: FLASH_ATTN first; {F}: flash_attn_4 best on sm100/103"),
    Row("sm100 encoder flashinfer", "cuda:sm100", ENC, FI_TRI, P, "flashinfer", ("flash_attn_2", "package flash-attn"), f"{VP} sm100 non_causal=1: FLASHINFER second"),
    Row("sm100 encoder triton", "cuda:sm100", ENC, TRI, P, "triton", ("flashinfer", "package flashinfer"), f"{VP} sm100 non_causal=1: TRITON_ATTN third"),
    Row("sm100 encoder none", "cuda:sm100", ENC, NONE, P, "flex_attention", ("triton", "package triton"), f"{VP} sm100 non_causal=1: FLEX_ATTENTION fourth"),
    Row("sm103 non-causal", "cuda:sm103", {"causal": False}, FA2_FI_TRI, D, "flash_attn_2", ("trtllm_mha", "non_causal"), f"{VP} sm103 non_causal=1: FLASH_ATTN first"),
    Row("sm90 mm_prefix", "cuda:sm90", {"mm_prefix": True}, None, D, "triton", ("flash_attn_3", "mm_prefix"), f"{V} FLASH_ATTN no mm_prefix, TRITON_ATTN mm_prefix"),
    Row("sm80 mm_prefix", "cuda:sm80", {"mm_prefix": True}, None, D, "triton", ("flashinfer", "mm_prefix"), f"{VD} FLASHINFER no mm_prefix"),
    Row("sm80 mm_prefix fa2", "cuda:sm80", {"mm_prefix": True}, None, P, "triton", ("flash_attn_2", "mm_prefix"), f"{V} FLASH_ATTN no mm_prefix"),
    Row("sm100 mm_prefix", "cuda:sm100", {"mm_prefix": True}, None, D, "triton", ("trtllm_mha", "mm_prefix"), f"{VD} FLASHINFER no mm_prefix"),
    Row("sm80 mm_prefix none", "cuda:sm80", {"mm_prefix": True}, NONE, D, "flex_attention", None, f"{F}: flex_attention multimodal-prefix masks"),
    Row("sm90 tree", "cuda:sm90", TREE, None, D, "flashinfer", ("flash_attn_3", "tree_mask"), f"{SIG}: flashinfer plan(custom_mask)"),
    Row("sm90 tree triton", "cuda:sm90", TREE, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{F}: tree masks: triton, torch, cpu"),
    Row("sm80 tree", "cuda:sm80", TREE, None, D, "flashinfer", ("flash_attn_2", "tree_mask"), f"{SIG}: flashinfer plan(custom_mask)"),
    Row("sm80 tree triton", "cuda:sm80", TREE, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{F}: tree masks: triton, torch, cpu"),
    Row("sm100 tree", "cuda:sm100", TREE, None, D, "flashinfer", ("trtllm_mha", "tree_mask"), f"{SIG}: flashinfer plan(custom_mask)"),
    Row("sm100 tree triton", "cuda:sm100", TREE, TRI, D, "triton", ("flashinfer", "package flashinfer"), f"{F}: tree masks: triton, torch, cpu"),
    Row("sm90 tree none", "cuda:sm90", TREE, NONE, D, "flex_attention", ("triton", "package triton"), f"{SIG}: torch flex_attention(block_mask) from any mask function"),
    Row("sm90 verify 8", "cuda:sm90", {"max_decode_query_len": 8}, None, D, "flash_attn_3", None, f"{S2}: fa3 with speculation (topk 1)"),
    Row("sm80 verify 8", "cuda:sm80", {"max_decode_query_len": 8}, None, D, "flash_attn_2", None, f"{SIG}: flash_attn_with_kvcache q [B, Sq, H, D]"),
    Row("sm100 verify 8", "cuda:sm100", {"max_decode_query_len": 8}, None, D, "trtllm_mha", None, f"{S2}: SM100 trtllm_mha with spec topk 1; {SIG}: q_len_per_req"),
    Row("sm90 diffkv fa3", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, None, D, None, ("flashinfer", "head_dim 192 with head_dim_v 128"), f"{F}: flashinfer head 64/128/256", "flashinfer"),
]

# CUDA, MLA: decode in order, prefill, sparse.
CUDA_MLA = [
    Row("sm90 mla", "cuda:sm90", MLA, None, D, "flash_attn_mla", None, f"{FP}: sm80..sm90 flash_attn_mla first"),
    Row("sm90 mla flashmla", "cuda:sm90", MLA, f"{FMLA},{FI},{TRI},{FA2}", D, "flashmla", ("flash_attn_mla", "package flash-attn-3"), f"{FP}: flashmla before flashinfer_mla; {VP} sm90"),
    Row("sm90 mla flashinfer", "cuda:sm90", MLA, FA2_FI_TRI, D, "flashinfer_mla", ("flashmla", "package flash-mla"), f"{FP}: flashinfer_mla before triton_mla"),
    Row("sm90 mla triton", "cuda:sm90", MLA, FA2_TRI, D, "triton_mla", ("flashinfer_mla", "package flashinfer"), f"{FP}: triton_mla"),
    Row("sm90 mla none", "cuda:sm90", MLA, NONE, D, "torch", ("triton_mla", "package triton"), f"{F}: torch is the floor"),
    Row("sm90 mla prefill", "cuda:sm90", MLA, None, P, "flash_attn_3", None, f"{FP}: MLA prefill flash_attn varlen (3 on sm90)"),
    Row("sm80 mla", "cuda:sm80", MLA, None, D, "flashinfer_mla", ("flash_attn_mla", "arch sm80"), f"{F}: flash_attn_mla sm90; {FP}: then flashmla, flashinfer_mla"),
    Row("sm80 mla flashmla", "cuda:sm80", MLA, None, D, "flashinfer_mla", ("flashmla", "arch sm80"), f"{F}: flashmla sm90; {S2}: decode needs SM90a"),
    Row("sm80 mla prefill", "cuda:sm80", MLA, None, P, "triton", ("flash_attn_2", "MLA prefill with head_dim 192"), f"{FA2C}; {S2}: MLA else triton (vLLM pads V for FlashAttention 2)"),
    Row("sm80 mla triton", "cuda:sm80", MLA, FA2_TRI, D, "triton_mla", ("flashinfer_mla", "package flashinfer"), f"{FP}; {S2}: MLA else triton"),
    Row("sm86 mla", "cuda:sm86", MLA, None, D, "flashinfer_mla", ("flash_attn_mla", "arch sm86"), f"{F}: flashinfer_mla sm80..sm90"),
    Row("sm89 mla", "cuda:sm89", MLA, None, D, "flashinfer_mla", ("flash_attn_mla", "arch sm89"), f"{F}: flashinfer_mla sm80..sm90"),
    Row("sm75 mla", "cuda:sm75", {**MLA, **FP16}, None, D, "triton_mla", ("flashinfer_mla", "arch sm75"), f"{V} TRITON_MLA 7.5; {F}: flashinfer_mla from sm80"),
    Row("sm100 mla", "cuda:sm100", MLA, None, D, "trtllm_mla", ("flash_attn_mla", "arch sm100"), f"{FP}: sm100 flashinfer_mla (= trtllm_mla there) first"),
    Row("sm100 mla not native flashinfer", "cuda:sm100", MLA, None, D, "trtllm_mla", ("flashinfer_mla", "arch sm100"), f"{F}: flashinfer_mla sm80..sm90, sm120"),
    Row("sm100 mla prefill", "cuda:sm100", MLA, None, P, "trtllm_ragged", ("trtllm_mla", "phase prefill"), f"{FP}: MLA prefill trtllm_ragged on sm100; {F}: trtllm_mla decode only"),
    Row("sm103 mla", "cuda:sm103", MLA, None, D, "trtllm_mla", None, f"{F}: trtllm_mla sm100/103"),
    Row("sm100 mla cutlass", "cuda:sm100", {**MLA, **page(128)}, None, D, "cutlass_mla", ("trtllm_mla", "page_size 128"), f"{S2}: trtllm_mla page 32/64; {F}: cutlass_mla page 128"),
    Row("sm100 mla page 16", "cuda:sm100", {**MLA, **page(16)}, None, D, "triton_mla", ("trtllm_mla", "page_size 16"), f"{S2}: trtllm_mla page 32/64; {V} TRITON_MLA blocks %16"),
    Row("sm100 mla page 16 cutlass", "cuda:sm100", {**MLA, **page(16)}, None, D, "triton_mla", ("cutlass_mla", "page_size 16"), f"{VD} CUTLASS_MLA block 128"),
    Row("sm100 mla page 32", "cuda:sm100", {**MLA, **page(32)}, None, D, "trtllm_mla", ("cutlass_mla", "page_size 32"), f"{S2}: trtllm_mla page 32/64"),
    Row("sm100 mla page 64", "cuda:sm100", {**MLA, **page(64)}, None, D, "trtllm_mla", ("flashmla", "arch sm100"), f"{F}: flashmla dense decode is sm90"),
    Row("sm100 mla triton", "cuda:sm100", MLA, FA2_TRI, D, "triton_mla", ("trtllm_mla", "package flashinfer"), f"{VP} sm100: TRITON_MLA"),
    Row("sm100 mla e4m3", "cuda:sm100", {**MLA, **E4M3}, None, D, "trtllm_mla", None, f"{S2}: trtllm_mla kv fp8_e4m3"),
    Row("sm100 mla e4m3 128", "cuda:sm100", {**MLA, **E4M3, **page(128)}, None, D, "cutlass_mla", None, f"{VD} CUTLASS_MLA fp8"),
    Row("sm100 mla e5m2", "cuda:sm100", {**MLA, **E5M2}, None, D, "torch", ("trtllm_mla", "kv_cache_dtype fp8_e5m2"), f"{S2}: trtllm_mla kv fp8_e4m3/bf16/auto; {V} TRITON_MLA no e5m2"),
    Row("sm100 mla deterministic", "cuda:sm100", {**MLA, "deterministic": True}, None, D, "triton_mla", ("trtllm_mla", "deterministic"), f"{S2}: Deterministic: DeepSeek on SM100 triton; {V} TRITON_MLA batch_invariance"),
    Row("sm100 mla dcp", "cuda:sm100", {**MLA, "context_parallel_size": 4}, None, D, "trtllm_mla", None, f"{VD} FLASHINFER_MLA dcp on 10.x"),
    Row("sm100 mla dcp spec", "cuda:sm100", {**MLA, "context_parallel_size": 4, "max_decode_query_len": 2}, None, D, "trtllm_mla", None, f"{SIG}: causal_seqlens_kv_global (SGLang: no DCP+spec, its own limit)", "trtllm_mla"),
    Row("sm110 mla", "cuda:sm110", MLA, None, D, "triton_mla", ("trtllm_mla", "arch sm110"), f"{FP}: sm110 triton_mla"),
    Row("sm120 mla", "cuda:sm120", MLA, None, D, "triton_mla", ("trtllm_mla", "arch sm120"), f"{FP}: sm120 triton_mla; {VP} sm120; {S2}: SM120 MLA triton"),
    Row("sm120 mla flashmla", "cuda:sm120", MLA, None, D, "triton_mla", ("flashmla", "arch sm120"), f"{F}: flashmla sm90"),
    Row("sm120 mla prefill", "cuda:sm120", MLA, None, P, "triton", ("flash_attn_2", "MLA prefill with head_dim 192"), f"{FA2C}; {S2}: SM120 MLA triton"),
    Row("sm121 mla", "cuda:sm121", MLA, None, D, "triton_mla", ("trtllm_mla", "arch sm121"), f"{FP}: sm121 triton_mla"),
    Row("sm120 mla none", "cuda:sm120", MLA, NONE, D, "torch", ("triton_mla", "package triton"), f"{F}: torch is the floor"),
    Row("sm90 mla page 16", "cuda:sm90", {**MLA, **page(16)}, None, D, "flash_attn_mla", ("flashmla", "page_size 16"), f"{F}: flash_attn_mla page %16, flashmla 64"),
    Row("sm90 mla page 1", "cuda:sm90", {**MLA, **page(1)}, None, D, None, ("flashmla", "page_size 1 "), f"{F}: flashmla page 64", "flashmla"),
    Row("sm90 mla page 64 flashmla", "cuda:sm90", {**MLA, **page(64)}, f"{FMLA},{TRI},{FA2}", D, "flashmla", ("flash_attn_mla", "package flash-attn-3"), f"{F}: flashmla page 64"),
    Row("sm90 mla e4m3", "cuda:sm90", {**MLA, **E4M3}, None, D, None, ("flash_attn_mla", "kv_cache_dtype fp8_e4m3"), f"{VD} FLASH_ATTN_MLA kv auto, fp16, bf16", "FLASH_ATTN_MLA"),
    Row("sm90 mla e5m2", "cuda:sm90", {**MLA, **E5M2}, f"{FA3},{FMLA},{TRI}", D, "torch", ("flashmla", "kv_cache_dtype fp8_e5m2"), f"{V} FLASHMLA and TRITON_MLA fp8 e4m3 only"),
    Row("sm120 mla e4m3", "cuda:sm120", {**MLA, **E4M3}, None, D, "triton_mla", None, f"{V} TRITON_MLA fp8_e4m3"),
    Row("sm120 mla fp32", "cuda:sm120", {**MLA, **FP32}, None, D, "torch", ("triton_mla", "dtype float32"), f"{V} TRITON_MLA fp16, bf16"),
    Row("sm90 mla fp32", "cuda:sm90", {**MLA, **FP32}, None, D, "torch", ("flash_attn_mla", "dtype float32"), f"{VD} FLASH_ATTN_MLA fp16, bf16"),
    Row("sm120 mla page 1", "cuda:sm120", {**MLA, **page(1)}, None, D, "triton_mla", None, f"{S2}: SM120 MLA triton with page_size default 1 (vLLM: %16)"),
    Row("sm90 cp window", "cuda:sm90", {"context_parallel_size": 2, "sliding_window": 128, "return_softmax_lse": True}, None, D, None, ("flashinfer", "sliding_window 128 with context_parallel 2"), "FlashInfer fb28d724: plan() has window_left and no global lengths; vLLM PR #47181 replicates windowed layers", "flashinfer"),
    Row("sm80 mla dcp prefill", "cuda:sm80", {**MLA, "context_parallel_size": 2}, None, P, None, ("flashinfer_mla", "context_parallel 2 in prefill"), "vLLM PR #47181: causal offsets are incorrect under DCP with several tokens; flashinfer/mla/_core.py has no custom mask", "flashinfer_mla"),
    Row("sm80 graph verify", "cuda:sm80", {"graph": True, "max_decode_query_len": 4}, None, D, None, ("flashinfer", "graph with max_decode_query_len 4"), f"{V} FLASHINFER cudagraph single-token decode", "flashinfer"),
    Row("sm120 dsa page 32", "cuda:sm120", {**DSA, "kv_cache_dtype": "fp8_ds_mla", "page_size": 32}, None, D, None, ("flashinfer_mla_sparse", "page_size 32 on sm120"), "FlashInfer _sparse_mla_sm120.py: page block size 64", "flashinfer_mla_sparse"),
    Row("sm120 dsa heads 12", "cuda:sm120", {**DSA, "kv_cache_dtype": "fp8_ds_mla", "num_heads": 12}, None, D, None, ("flashinfer_mla_sparse", "num_heads 12 on sm120"), "FlashInfer _sparse_mla_sm120.py: heads 8, 16, 32, 64, 128", "flashinfer_mla_sparse"),
    Row("sm90 mla dcp", "cuda:sm90", {**MLA, "context_parallel_size": 4}, None, D, "flash_attn_mla", None, f"{F}: flash_attn_mla DCP"),
    Row("sm90 mla dcp flashmla", "cuda:sm90", {**MLA, "context_parallel_size": 4}, f"{FMLA},{TRI},{FA2}", D, "flashmla", None, f"{F}: flashmla DCP"),
    Row("sm120 mla dcp", "cuda:sm120", {**MLA, "context_parallel_size": 4}, None, D, "triton_mla", None, f"{F}: triton_mla DCP"),
    Row("sm120 mla lse", "cuda:sm120", {**MLA, "return_softmax_lse": True}, None, D, "triton_mla", None, f"{V} TRITON_MLA LSE for decode"),
    Row("sm90 mla lse", "cuda:sm90", {**MLA, "return_softmax_lse": True}, f"{FMLA},{TRI},{FA2}", D, "flashmla", None, f"{V} FLASHMLA LSE for decode"),
    Row("sm120 mla graph", "cuda:sm120", {**MLA, "graph": True}, None, D, "triton_mla", None, f"{V} TRITON_MLA cudagraph UNIFORM_BATCH"),
    Row("sm90 mla verify", "cuda:sm90", {**MLA, "max_decode_query_len": 2}, None, D, "flash_attn_mla", None, f"{S2}: MLA SM90 fa3, spec topk 1"),
    Row("sm90 dense not mla", "cuda:sm90", {}, None, D, None, ("flashmla", "mla is needed"), f"{F}: flashmla is MLA", "FLASHMLA"),
    Row("sm90 sparse", "cuda:sm90", DSA, None, D, "flashmla_sparse", ("flash_attn_mla", "sparse"), f"{F}: flashmla_sparse sm90; {FP}"),
    Row("sm90 sparse prefill", "cuda:sm90", DSA, None, P, "flashmla_sparse", ("flash_attn_3", "sparse"), f"{SIG}: flash_mla_sparse_fwd"),
    Row("sm100 sparse", "cuda:sm100", DSA, None, D, "flashmla_sparse", ("trtllm_mla", "sparse"), f"{VP} sm100: FLASHMLA_SPARSE before FLASHINFER_MLA_SPARSE"),
    Row("sm100 sparse page 32", "cuda:sm100", {**DSA, **page(32)}, None, D, "flashinfer_mla_sparse", ("flashmla_sparse", "page_size 32"), f"{F}: flashmla_sparse page 64, flashinfer_mla_sparse 32/64"),
    Row("sm100 sparse fp16", "cuda:sm100", {**DSA, **FP16}, None, D, "torch", ("flashmla_sparse", "dtype float16"), f"{V} FLASHMLA_SPARSE bf16, FLASHINFER_MLA_SPARSE fp16, but {OUT}"),
    Row("sm100 sparse fp16 flashinfer", "cuda:sm100", {**DSA, **FP16}, None, D, "torch", ("flashinfer_mla_sparse", "dtype float16"), OUT),
    Row("sm100 mla fp16", "cuda:sm100", {**MLA, **FP16}, None, D, "cutlass_mla", ("trtllm_mla", "dtype float16"), f"{VD} FLASHINFER_MLA fp16, but {OUT}; {VD} CUTLASS_MLA fp16"),
    Row("sm100 mla graph prefill", "cuda:sm100", {**MLA, "graph": True}, None, P, "trtllm_ragged", None, f"{FP}: MLA prefill trtllm_ragged on sm100; only decode is captured (vLLM: graphs of UNIFORM_BATCH at most for MLA)"),
    Row("flashmla prefill", "cuda:sm90", MLA, None, P, "flash_attn_3", ("flashmla", "phase prefill"), FMP, "flashmla"),
    Row("flashmla prefill flashinfer", "cuda:sm90", MLA, f"{FMLA},{FI}", P, "flashinfer", ("flash_attn_3", "package flash-attn-3"), FMP, "flashmla"),
    Row("trtllm_mla prefill", "cuda:sm100", MLA, None, P, "trtllm_ragged", ("trtllm_mla", "phase prefill"), f"{FP}: MLA prefill trtllm_ragged on sm100", "trtllm_mla"),
    Row("CUTLASS_MLA prefill", "cuda:sm100", MLA, None, P, "trtllm_ragged", ("cutlass_mla", "phase prefill"), f"{FP}: MLA prefill trtllm_ragged on sm100", "CUTLASS_MLA"),
    Row("sm100 sparse e4m3", "cuda:sm100", {**DSA, **E4M3}, None, D, "flashinfer_mla_sparse", ("flashmla_sparse", "kv_cache_dtype fp8_e4m3"), f"{F}: flashmla_sparse bf16, fp8_ds_mla; {V} FLASHINFER_MLA_SPARSE fp8_e4m3"),
    Row("sm100 sparse ds", "cuda:sm100", {**DSA, **DS}, None, D, "flashmla_sparse", None, f"{F}: flashmla_sparse fp8_ds_mla"),
    Row("sm90 sparse ds", "cuda:sm90", {**DSA, **DS}, None, D, "flashmla_sparse", None, f"{F}: flashmla_sparse fp8_ds_mla"),
    Row("sm90 sparse fp16", "cuda:sm90", {**DSA, **FP16}, None, D, "torch", ("flashmla_sparse", "dtype float16"), f"{V} FLASHMLA_SPARSE bf16"),
    Row("sm80 sparse", "cuda:sm80", DSA, None, D, "torch", ("flashmla_sparse", "arch sm80"), f"{F}: flashmla_sparse sm90, sm100"),
    Row("sm120 sparse", "cuda:sm120", DSA, None, D, "torch", ("triton_mla", "sparse"), f"{V} TRITON_MLA is_sparse false"),
    Row("sm120 sparse flashinfer", "cuda:sm120", DSA, None, D, "torch", ("flashinfer_mla_sparse", "kv_cache_dtype bfloat16"), f"{V} FLASHINFER_MLA_SPARSE_SM120: fp8_ds_mla"),
    Row("sm120 sparse ds", "cuda:sm120", {**DSA, **DS}, None, D, "flashinfer_mla_sparse", None, f"{V} FLASHINFER_MLA_SPARSE_SM120: fp8_ds_mla, 12.0"),
    Row("sm121 sparse ds", "cuda:sm121", {**DSA, **DS}, None, D, "flashinfer_mla_sparse", None, f"{V} FLASHINFER_MLA_SPARSE_SM120: fp8_ds_mla, 12.1"),
]

# ROCm.
ROCM_ROWS = [
    Row("gfx942 first", "rocm:gfx942", {}, None, D, "aiter", None, f"{S2}: HIP aiter"),
    Row("gfx950 first", "rocm:gfx950", {}, None, D, "aiter", None, f"{S2}: HIP aiter; {F}: gfx950"),
    Row("gfx942 prefill", "rocm:gfx942", {}, None, P, "aiter", None, f"{F}: aiter varlen FA"),
    Row("gfx942 triton", "rocm:gfx942", {}, TRI, D, "triton", ("aiter", "package amd-aiter"), f"{ROCM}: TRITON_ATTN is the fallback"),
    Row("gfx942 none", "rocm:gfx942", {}, NONE, D, "flex_attention", ("triton", "package triton"), f"{F}: flex_attention rocm"),
    Row("gfx90a", "rocm:gfx90a", {}, TRI, D, "triton", ("aiter", "arch gfx90a"), f"{F}: aiter gfx942, gfx950"),
    Row("gfx1100", "rocm:gfx1100", {}, TRI, D, "triton", ("aiter", "arch gfx1100"), f"{F}: aiter gfx942, gfx950"),
    Row("gfx1201", "rocm:gfx1201", {}, TRI, D, "triton", ("aiter", "arch gfx1201"), f"{F}: aiter gfx942, gfx950"),
    Row("gfx90a none", "rocm:gfx90a", {}, NONE, D, "flex_attention", None, f"{F}: flex_attention rocm"),
    Row("gfx942 page 16", "rocm:gfx942", page(16), None, D, "aiter", None, f"{F}: aiter page 16/32"),
    Row("gfx942 page 32", "rocm:gfx942", page(32), AIT_TRI, D, "aiter_unified", ("aiter", "page_size 32"), f"{CK} (vLLM's 32 is another kernel)"),
    Row("gfx942 page 64", "rocm:gfx942", page(64), AIT_TRI, D, "aiter_unified", ("aiter", "page_size 64"), f"{F}: aiter page 16/32, aiter_unified any; {ROCM}"),
    Row("gfx942 page 128", "rocm:gfx942", page(128), AIT_TRI, D, "aiter_unified", ("aiter", "page_size 128"), f"{F}: aiter page 16/32, aiter_unified any"),
    Row("gfx942 page 64 triton", "rocm:gfx942", page(64), TRI, D, "triton", ("aiter", "page_size 64"), f"{V} TRITON_ATTN blocks %16"),
    Row("gfx942 dim 80", "rocm:gfx942", dim(80), AIT_TRI, D, "aiter_unified", ("aiter", "head_dim 80"), f"{V} ROCM_AITER_FA heads 64, 128, 256; {VD} ROCM_AITER_UNIFIED_ATTN any"),
    Row("gfx942 dim 64", "rocm:gfx942", dim(64), AIT_TRI, D, "aiter_unified", ("aiter", "head_dim 64"), f"{CK} (vLLM's 64 is another kernel)"),
    Row("gfx942 dim 256", "rocm:gfx942", dim(256), None, D, "aiter", None, f"{V} ROCM_AITER_FA heads 256"),
    Row("gfx942 dim 512", "rocm:gfx942", dim(512), VLLM_TRI, D, "triton", ("rocm_attn", "head_dim 512"), f"{V} ROCM_ATTN heads to 256"),
    Row("gfx942 dim 80 rocm_attn", "rocm:gfx942", dim(80), VLLM_TRI, D, "rocm_attn", None, f"{V} ROCM_ATTN heads 80; {ROCM}: before TRITON_ATTN"),
    Row("gfx942 fp32", "rocm:gfx942", FP32, AIT_TRI, D, "triton", ("aiter", "dtype float32"), f"{V} ROCM_AITER_FA fp16, bf16"),
    Row("gfx942 fp32 unified", "rocm:gfx942", FP32, AIT_TRI, D, "triton", ("aiter_unified", "dtype float32"), f"{VD} ROCM_AITER_UNIFIED_ATTN fp16, bf16"),
    Row("gfx942 fp16", "rocm:gfx942", FP16, None, D, "aiter", None, f"{V} ROCM_AITER_FA fp16"),
    Row("gfx942 e4m3", "rocm:gfx942", E4M3, None, D, "aiter", None, f"{V} ROCM_AITER_FA fp8_e4m3"),
    Row("gfx942 sinks", "rocm:gfx942", GPT_OSS, AIT_TRI, D, "aiter_unified", ("aiter", "sinks"), f"{VD} ROCM_AITER_UNIFIED_ATTN sink; ROCm/aiter aiter/ops/mha.py: can_impl_fmha_v3_fwd does not look at sink_ptr"),
    Row("gfx942 sinks rocm_attn", "rocm:gfx942", GPT_OSS, VLLM_TRI, D, "triton", ("rocm_attn", "sinks"), f"{V} ROCM_ATTN no sink"),
    Row("gfx90a sinks", "rocm:gfx90a", GPT_OSS, TRI, D, "triton", ("aiter", "arch gfx90a"), f"{V} TRITON_ATTN sink"),
    Row("gfx942 window", "rocm:gfx942", {"sliding_window": 4096}, None, D, "aiter", None, f"{V} ROCM_AITER_FA sliding_window"),
    Row("gfx942 mm_prefix", "rocm:gfx942", {"mm_prefix": True}, AIT_TRI, D, "triton", ("aiter", "mm_prefix"), f"{V} ROCM_AITER_FA no mm_prefix"),
    Row("gfx942 mm_prefix unified", "rocm:gfx942", {"mm_prefix": True}, AIT_TRI, D, "triton", ("aiter_unified", "mm_prefix"), f"{VD} ROCM_AITER_UNIFIED_ATTN no mm_prefix"),
    Row("gfx942 encoder", "rocm:gfx942", ENC, AIT_TRI, P, "triton", ("aiter", "attention_type encoder_only"), f"{V} ROCM_AITER_FA decoder only"),
    Row("gfx942 encoder unified", "rocm:gfx942", ENC, AIT_TRI, P, "triton", ("aiter_unified", "non_causal"), f"{VD} ROCM_AITER_UNIFIED_ATTN no non_causal"),
    Row("gfx942 encoder rocm_attn", "rocm:gfx942", ENC, VLLM_TRI, P, "rocm_attn", None, f"{V} ROCM_ATTN encoder_only, non_causal"),
    Row("gfx942 encoder-decoder", "rocm:gfx942", ENC_DEC, VLLM_TRI, P, "triton", ("rocm_attn", "attention_type encoder_decoder"), f"{V} ROCM_ATTN decoder, encoder, encoder_only"),
    Row("gfx942 tree", "rocm:gfx942", TREE, None, D, "triton", ("aiter", "tree_mask"), f"{F}: tree masks: triton, torch, cpu"),
    Row("gfx942 graph", "rocm:gfx942", {"graph": True}, None, D, "aiter", None, f"{V} ROCM_AITER_FA cudagraph UNIFORM_BATCH"),
    Row("gfx942 mla", "rocm:gfx942", MLA, None, D, "aiter_mla", None, f"{S2}: HIP aiter for 16 or 128 heads; {ROCM}: ROCM_AITER_MLA first"),
    Row("gfx950 mla", "rocm:gfx950", MLA, None, D, "aiter_mla", None, f"{F}: aiter_mla gfx942, gfx950"),
    Row("gfx942 mla 16 heads", "rocm:gfx942", {"mla": True, "num_heads": 16}, None, D, "aiter_mla", None, f"{S2}: HIP aiter for 16 or 128 heads"),
    Row("gfx942 mla 32 heads", "rocm:gfx942", {"mla": True, "num_heads": 32}, None, D, "triton_mla", ("aiter_mla", ""), f"{S2}: HIP MLA aiter for 16 or 128 heads, else triton"),
    Row("gfx942 mla triton", "rocm:gfx942", MLA, TRI, D, "triton_mla", ("aiter_mla", "package amd-aiter"), f"{ROCM}: TRITON_MLA second"),
    Row("gfx942 mla page 16", "rocm:gfx942", {**MLA, **page(16)}, None, D, "triton_mla", ("aiter_mla", "page_size 16"), f"{F}: aiter_mla page 1; {ROCM}: TRITON_MLA second"),
    Row("gfx942 mla page 1", "rocm:gfx942", {**MLA, **page(1)}, None, D, "aiter_mla", None, f"{F}: aiter_mla page 1"),
    Row("gfx90a mla", "rocm:gfx90a", MLA, None, D, "triton_mla", ("aiter_mla", "arch gfx90a"), f"{F}: aiter_mla gfx942, gfx950"),
    Row("gfx1100 mla", "rocm:gfx1100", MLA, None, D, "triton_mla", ("aiter_mla", "arch gfx1100"), f"{F}: triton_mla rocm"),
    Row("gfx1201 mla", "rocm:gfx1201", MLA, None, D, "triton_mla", ("aiter_mla", "arch gfx1201"), f"{F}: triton_mla rocm"),
    Row("gfx942 mla no triton", "rocm:gfx942", {"mla": True, "num_heads": 32}, AITER, D, "aiter_triton_mla", ("triton_mla", "package triton"), f"{ROCM}: ROCM_AITER_TRITON_MLA third"),
    Row("gfx942 mla fp32", "rocm:gfx942", {**MLA, **FP32}, None, D, "torch", ("aiter_mla", "dtype float32"), f"{V} ROCM_AITER_MLA fp16, bf16"),
    Row("gfx942 mla e4m3", "rocm:gfx942", {**MLA, **E4M3}, None, D, "aiter_mla", None, f"{V} ROCM_AITER_MLA fp8_e4m3"),
    Row("gfx942 mla dcp", "rocm:gfx942", {**MLA, "context_parallel_size": 4}, None, D, "aiter_mla", None, f"{V} ROCM_AITER_MLA dcp"),
    Row("gfx942 mla lse", "rocm:gfx942", {**MLA, "return_softmax_lse": True}, None, D, "aiter_mla", None, f"{V} ROCM_AITER_MLA LSE for decode"),
    Row("gfx942 sparse", "rocm:gfx942", DSA, None, D, "aiter_mla_sparse", ("aiter_mla", "sparse"), f"{V} ROCM_AITER_MLA_SPARSE sparse; ROCM_AITER_MLA not"),
    Row("gfx950 sparse", "rocm:gfx950", DSA, None, D, "aiter_mla_sparse", ("triton_mla", "sparse"), f"{F}: aiter_mla_sparse gfx950"),
    Row("gfx90a sparse", "rocm:gfx90a", DSA, None, D, "torch", ("aiter_mla_sparse", "arch gfx90a"), f"{F}: aiter_mla_sparse gfx942, gfx950"),
    Row("gfx942 sparse dcp", "rocm:gfx942", {**DSA, "context_parallel_size": 4}, None, D, "torch", ("aiter_mla_sparse", "context_parallel 4"), f"{V} ROCM_AITER_MLA_SPARSE no dcp"),
    Row("gfx942 no flash_attn_3", "rocm:gfx942", {}, None, D, None, ("flash_attn_3", "platform rocm"), f"{F}: flash_attn_3 is cuda", "flash_attn_3"),
]

# NPU.
NPU_ROWS = [
    Row("910b first", "npu:ascend910b", {}, None, D, "ascend", None, f"{S2}: NPU ascend (forced); {A3}: A2"),
    Row("910c first", "npu:ascend910c", {}, None, D, "ascend", None, f"{A3}: A3 (910C)"),
    Row("950 first", "npu:ascend950", {}, None, D, "ascend", None, f"{F}: ascend 950"),
    Row("910b prefill", "npu:ascend910b", {}, None, P, "ascend", None, f"{S5}: MHA prefill FIA"),
    Row("910a", "npu:ascend910a", FP16, NPU, D, "torch", ("ascend", "arch ascend910a"), f"{F}: ascend 910B, 910C, 310P, 950"),
    Row("310p", "npu:ascend310p", FP16, NPU, D, "ascend_310p", ("ascend", "arch ascend310p"), f"{A3}: FIA tiling: Ascend310P is not supported; {P310}"),
    Row("310p prefill", "npu:ascend310p", FP16, NPU, P, "ascend_310p", None, P310),
    Row("310p page 64", "npu:ascend310p", {**FP16, **page(64), **dim(256)}, NPU, D, "ascend_310p", None, f"{P310}: 128, 64; {A3}: bs 64 => D <= 256"),
    Row("310p page 128 dim 256", "npu:ascend310p", {**FP16, **page(128), **dim(256)}, NPU, D, "torch", ("ascend_310p", "head_dim 256 with page_size 128"), f"{A3}: D * block_size <= 16384"),
    Row("310p page 128", "npu:ascend310p", {**FP16, **page(128)}, NPU, D, "ascend_310p", None, f"{P310}: 128, 64"),
    Row("310p none", "npu:ascend310p", FP16, NONE, D, "torch", ("ascend_310p", "package torch-npu"), f"{F}: entry points of torch_npu"),
    Row("310p page 16", "npu:ascend310p", {**FP16, **page(16)}, NPU, D, "torch", ("ascend_310p", "page_size 16"), f"{P310}: 128, 64"),
    Row("310p dim 80", "npu:ascend310p", {**FP16, **dim(80)}, NPU, D, "ascend_310p", None, f"{A3}: 310P: D % 16"),
    Row("310p dim 40", "npu:ascend310p", {**FP16, **dim(40)}, NPU, D, "torch", ("ascend_310p", "head_dim 40"), f"{A3}: 310P: D % 16"),
    Row("310p dim 16", "npu:ascend310p", {**FP16, **dim(16)}, NPU, D, "ascend_310p", None, f"{A3}: 310P: D % 16"),
    Row("310p verify", "npu:ascend310p", {**FP16, "max_decode_query_len": 3}, NPU, D, "ascend_310p", None, f"{P310}: SpecDecoding is splitfuse"),
    Row("310p window", "npu:ascend310p", {**FP16, "sliding_window": 9}, NPU, D, "torch", ("ascend_310p", "sliding_window 9"), f"{P310}: no window"),
    Row("310p lse", "npu:ascend310p", {**FP16, "return_softmax_lse": True}, NPU, D, "torch", ("ascend_310p", "return_softmax_lse"), "ATB's ops have no LSE"),
    Row("310p graph", "npu:ascend310p", {**FP16, "graph": True}, NPU, D, None, ("ascend_310p", "graph"), "nothing of 310P's ops is captured here yet"),
    Row("910b not 310p", "npu:ascend910b", {}, NPU, D, None, ("ascend_310p", "arch ascend910b"), P310, "ascend_310p"),
    Row("310p by ascend", "npu:ascend310p", FP16, NPU, D, "ascend_310p", None, "design.md section 4: an alias is resolved by platform", "ascend"),
    Row("910a bf16", "npu:ascend910a", {}, NPU, D, None, ("torch", "dtype bfloat16"), BF16),
    Row("310p bf16", "npu:ascend310p", {}, NPU, P, None, ("torch", "dtype bfloat16"), BF16),
    Row("310p mla bf16", "npu:ascend310p", MLA, NPU, D, None, ("ascend_mla", "arch ascend310p"), BF16),
    Row("910b none", "npu:ascend910b", {}, NONE, D, "torch", ("ascend", "package torch-npu"), f"{F}: entry points of torch_npu"),
    Row("910b page 128", "npu:ascend910b", page(128), None, D, "ascend", None, f"{S5}: only 128 is safe"),
    Row("910b page 16", "npu:ascend910b", page(16), NPU, D, "torch", ("ascend", "page_size 16"), f"{S5}: block_size 16 silently wrong"),
    Row("910b page 1", "npu:ascend910b", page(1), NPU, D, "torch", ("ascend", "page_size 1 "), f"{S5}: block_size 1 rejected"),
    Row("910b page 64", "npu:ascend910b", page(64), NPU, D, "torch", ("ascend", "page_size 64"), f"{S5}: only 128 is safe"),
    Row("910c page 32", "npu:ascend910c", page(32), NPU, D, "torch", ("ascend", "page_size 32"), f"{S5}: only 128 is safe"),
    Row("910b fp16", "npu:ascend910b", FP16, None, D, "ascend", None, f"{A3}: q fp16/bf16"),
    Row("910b fp32", "npu:ascend910b", FP32, NPU, D, "torch", ("ascend", "dtype float32"), f"{A3}: q fp16/bf16"),
    Row("910b e4m3", "npu:ascend910b", E4M3, NPU, D, "torch", ("ascend", "kv_cache_dtype fp8_e4m3"), f"{A3}: kv same (int8/int4 antiquant)"),
    Row("910b softcap", "npu:ascend910b", {"softcap": 50.0}, NPU, D, "torch", ("ascend", "softcap 50"), f"{S5}: FIA has no softcap argument; design.md section 9: refuse"),
    Row("910b sinks", "npu:ascend910b", GPT_OSS, None, D, "ascend", None, f"{A3}: learnable_sink (v2), bf16, TND, v D <= 128; {F}: ascend is v1 and v2"),
    Row("910b window", "npu:ascend910b", {"sliding_window": 128}, NPU, D, "ascend", None, f"{FIAD}: sparse_mode 4, band; pre_tokens are previous tokens"),
    Row("910b not causal", "npu:ascend910b", {"causal": False}, NPU, P, "ascend", None, f"{FIAD}: sparse_mode 4 without bounds"),
    Row("910b encoder", "npu:ascend910b", {"causal": False, "attention_type": "encoder_only"}, NPU, P, "ascend", None, f"{FIAD}: sparse_mode 4 without bounds"),
    Row("910b vision encoder", "npu:ascend910b", {"causal": False, "attention_type": "encoder"}, NPU, P, "ascend", None, f"{FIAD}: sparse_mode 4 without bounds"),
    Row("910b cross", "npu:ascend910b", {"causal": False, "attention_type": "encoder_decoder"}, NPU, P, "ascend", None, f"{FIAD}: query and key lengths apart, sparse_mode 4 without bounds"),
    Row("910b mla not causal", "npu:ascend910b", {**MLA, "causal": False}, NPU, P, "ascend_mla", None, "vllm-ascend 182b75ea, mla_v1.py: chunks of the context without a mask, merged by their LSE"),
    Row("910b sinks fp16", "npu:ascend910b", {**GPT_OSS, **FP16}, NPU, D, "torch", ("ascend", "sinks with dtype float16"), f"{FIAD}: learnable_sink is bfloat16"),
    Row("950 sinks fp16", "npu:ascend950", {**GPT_OSS, **FP16}, NPU, D, "ascend", None, f"{A3}: V5: q's dtype"),
    Row("910b cp", "npu:ascend910b", {"context_parallel_size": 2}, NPU, D, "ascend", None, f"{FIAD}: softmax_lse is for merging; {A3}: LSE natural log"),
    Row("910b cp window", "npu:ascend910b", {"context_parallel_size": 2, "sliding_window": 128}, NPU, D, "torch", ("ascend", "sliding_window 128 with context_parallel 2"), f"{FIAD}: pre_tokens is one number"),
    Row("910b chunk", "npu:ascend910b", {"attention_chunk": 8192}, NPU, D, "torch", ("ascend", "attention_chunk 8192"), f"{A3}: sparse modes 0..4 have no chunk"),
    Row("910b mm_prefix", "npu:ascend910b", {"mm_prefix": True}, NPU, D, "torch", ("ascend", "mm_prefix"), f"{A3}: sparse modes 0..4 have no prefix"),
    Row("910b tree", "npu:ascend910b", TREE, NPU, D, "torch", ("ascend", "tree_mask"), f"{A3}: sparse 9 tree (MLA, newer)"),
    Row("910b dim 64", "npu:ascend910b", dim(64), None, D, "ascend", None, f"{A3}: TND head dim 64/128/192"),
    Row("910b dim 192", "npu:ascend910b", dim(192), NPU, D, "torch", ("ascend", "head_dim 192"), f"{FIAD}: V of 192 neither with GQA nor with pages"),
    Row("910b dim 80", "npu:ascend910b", dim(80), NPU, D, "torch", ("ascend", "head_dim 80"), f"{A3}: TND head dim 64/128/192"),
    Row("910b dim 256", "npu:ascend910b", dim(256), NPU, D, "torch", ("ascend", "head_dim 256"), f"{A3}: TND 256/512 refused"),
    Row("910b verify 16", "npu:ascend910b", {"max_decode_query_len": 16}, None, D, "ascend", None, f"{A3}: decode TND Sq per request <= 16"),
    Row("910b verify 17", "npu:ascend910b", {"max_decode_query_len": 17}, NPU, D, "torch", ("ascend", "max_decode_query_len 17"), f"{A3}: decode TND Sq per request <= 16"),
    Row("910b lse", "npu:ascend910b", {"return_softmax_lse": True}, None, D, "ascend", None, f"{A3}: LSE natural log"),
    Row("910b heads ratio", "npu:ascend910b", {"num_heads": 128, "num_kv_heads": 1}, None, D, None, ("ascend", ""), f"{A3}: Nq/Nkv <= 64 (doc A2/A3)", "ascend"),
    Row("910b mla", "npu:ascend910b", MLA, None, D, "ascend_mla", None, f"{F}: ascend_mla 910B"),
    Row("910c mla", "npu:ascend910c", MLA, None, D, "ascend_mla", None, f"{F}: ascend_mla 910C"),
    Row("950 mla", "npu:ascend950", MLA, None, D, "ascend_mla", None, f"{F}: ascend_mla 950"),
    Row("910b mla prefill", "npu:ascend910b", MLA, None, P, "ascend_mla", None, f"{F}: ascend_mla MLA prefill and decode"),
    Row("910b mla alias", "npu:ascend910b", MLA, None, D, "ascend_mla", None, "design.md section 4: ascend for an MLA model is ascend_mla", "ascend"),
    Row("310p mla", "npu:ascend310p", {**MLA, **FP16}, NPU, D, "torch", ("ascend_mla", "arch ascend310p"), f"{F}: ascend_mla 910B, 910C, 950"),
    Row("910a mla", "npu:ascend910a", {**MLA, **FP16}, NPU, D, "torch", ("ascend_mla", "arch ascend910a"), f"{F}: ascend_mla 910B, 910C, 950"),
    Row("910b mla page 64", "npu:ascend910b", {**MLA, **page(64)}, NPU, D, "torch", ("ascend_mla", "page_size 64"), f"{S5}: only 128 is safe"),
    Row("910b mla fp32", "npu:ascend910b", {**MLA, **FP32}, NPU, D, "torch", ("ascend_mla", "dtype float32"), f"{A3}: q fp16/bf16"),
    Row("910b mla e4m3", "npu:ascend910b", {**MLA, **E4M3}, NPU, D, "torch", ("ascend_mla", "kv_cache_dtype fp8_e4m3"), f"{A3}: kv same (int8)"),
    Row("910b mla none", "npu:ascend910b", MLA, NONE, D, "torch", ("ascend_mla", "package torch-npu"), f"{F}: entry points of torch_npu"),
    Row("910b sparse", "npu:ascend910b", DSA, NPU, D, "torch", ("ascend_mla", "sparse"), f"{F}: ascend_mla is FIA; sparse has its own op"),
    Row("910b mla lse", "npu:ascend910b", {**MLA, "return_softmax_lse": True}, None, D, "ascend_mla", None, f"{A3}: vllm CP uses the LSE on MLA decode"),
    Row("910b graph", "npu:ascend910b", {"graph": True}, None, D, "ascend", None, f"{S5}: Graph mode: NPUGraph per batch size"),
    Row("910b dense not mla", "npu:ascend910b", {}, None, D, None, ("ascend_mla", "mla is needed"), f"{F}: ascend_mla is MLA", "ascend_mla"),
]

# MUSA.
MUSA_ROWS = [
    Row("mp31 first", "musa:mp31", {}, None, D, "mate", None, f"{F}: mate mp31 (SGLang's default there is triton, MATE must be asked for: HAL's decision)"),
    Row("mp31 prefill", "musa:mp31", {}, None, P, "mate", None, f"{F}: mate varlen"),
    Row("mp31 none", "musa:mp31", {}, NONE, D, "torch", ("mate", "package mate"), f"{F}: torch is the floor"),
    Row("mp22", "musa:mp22", {}, MATE, D, "torch", ("mate", "arch mp22"), f"{S4}: MP31 only"),
    Row("mp21", "musa:mp21", {}, MATE, D, "torch", ("mate", "arch mp21"), f"{S4}: MP31 only"),
    Row("mp22 triton", "musa:mp22", {}, None, D, "triton", ("mate", "arch mp22"), f"{S2}: MUSA MHA triton by default; {F}: triton on musa with its Triton"),
    Row("mp31 triton", "musa:mp31", {}, TRI, D, "triton", ("mate", "package mate"), f"{S2}: MUSA MHA triton by default; {F}: triton on musa with its Triton"),
    Row("mp31 page 1", "musa:mp31", page(1), MATE, D, "torch", ("mate", "page_size 1"), f"{S4} says any; its kernel then reads table entries past the end of a sequence, which the contract leaves to be anything: HAL takes 64 alone"),
    Row("mp31 page 16", "musa:mp31", page(16), MATE, D, "torch", ("mate", "page_size 16"), f"{S4} says any; its kernel then reads table entries past the end of a sequence, which the contract leaves to be anything: HAL takes 64 alone"),
    Row("mp31 page 64", "musa:mp31", page(64), None, D, "mate", None, f"{S4}: 64 = fast path; {S2}: MUSA page 64"),
    Row("mp31 page 128", "musa:mp31", page(128), MATE, D, "torch", ("mate", "page_size 128"), f"{S4} says any; its kernel then reads table entries past the end of a sequence, which the contract leaves to be anything: HAL takes 64 alone"),
    Row("mp31 fp16", "musa:mp31", FP16, None, D, "mate", None, f"{S4}: dtype fp16/bf16"),
    Row("mp31 fp32", "musa:mp31", FP32, MATE, D, "torch", ("mate", "dtype float32"), f"{S4}: dtype fp16/bf16"),
    Row("mp31 e4m3", "musa:mp31", E4M3, MATE, D, "torch", ("mate", "kv_cache_dtype fp8_e4m3"), f"{S4}: standard FMHA fp8 not supported"),
    Row("mp31 window", "musa:mp31", {"sliding_window": 4096}, None, D, "mate", None, f"{S4}: masks: local"),
    Row("mp31 softcap", "musa:mp31", {"softcap": 50.0}, None, D, "mate", None, f"{S4}: softcap ok"),
    Row("mp31 sinks local", "musa:mp31", {**GPT_OSS, "sliding_window": 128}, None, D, "mate", None, f"{F}: sinks documented on the local path"),
    Row("mp31 sinks full", "musa:mp31", GPT_OSS, MATE, D, "torch", ("mate", "sinks"), f"{F}: sinks documented on the local path only"),
    Row("mp31 dim 512", "musa:mp31", dim(512), None, D, "mate", None, f"{S4}: pair (512,512)"),
    Row("mp31 dim 256", "musa:mp31", dim(256), None, D, "mate", None, f"{S4}: pair (256,256)"),
    Row("mp31 diffkv", "musa:mp31", {"head_dim": 192, "head_dim_v": 128}, None, D, "mate", None, f"{S4}: pair (192,128)"),
    Row("mp31 diffkv 128/64", "musa:mp31", {"head_dim": 128, "head_dim_v": 64}, MATE, D, "torch", ("mate", "head_dim 128 with head_dim_v 64"), f"{S4}: (128,64) asserts"),
    Row("mp31 mm_prefix", "musa:mp31", {"mm_prefix": True}, MATE, D, "torch", ("mate", "mm_prefix"), f"{S4}: masks: none, causal, local, chunk"),
    Row("mp31 tree", "musa:mp31", TREE, MATE, D, "torch", ("mate", "tree_mask"), f"{S4}: masks: none, causal, local, chunk"),
    Row("mp31 lse", "musa:mp31", {"return_softmax_lse": True}, None, D, "mate", None, f"{S4}: LSE returned fp32 [H, total_q]"),
    Row("mp31 cp", "musa:mp31", {"context_parallel_size": 2}, None, D, "mate", None, f"{S4}: cp_world_size, cp_rank, cp_tot_seqused_k; {MATEC}"),
    Row("mp31 cp window", "musa:mp31", {"context_parallel_size": 2, "sliding_window": 128}, None, D, None, ("mate", ""), f"{S4}: CP not with local", "mate"),
    Row("mp31 verify 8", "musa:mp31", {"max_decode_query_len": 8}, None, D, "mate", None, f"{S4}: flash_attn_with_kvcache(cu_seqlens_q)"),
    Row("mp31 fa3", "musa:mp31", {}, None, D, "mate", None, f"{F}: fa3 on MUSA is mate", "fa3"),
    Row("mp31 mla", "musa:mp31", MLA, None, D, "mate_mla", ("mate", "mla"), f"{F}: mate_mla mp31"),
    Row("mp31 mla none", "musa:mp31", MLA, NONE, D, "torch", ("mate_mla", "package mate"), f"{F}: torch is the floor"),
    Row("mp22 mla", "musa:mp22", MLA, MATE, D, "torch", ("mate_mla", "arch mp22"), f"{F}: mate_mla mp31"),
    Row("mp31 mla fp32", "musa:mp31", {**MLA, **FP32}, MATE, D, "torch", ("mate_mla", "dtype float32"), f"{S4}: dtype fp16/bf16"),
    Row("mp31 mla e4m3", "musa:mp31", {**MLA, **E4M3}, MATE, D, "torch", ("mate_mla", "kv_cache_dtype fp8_e4m3"), f"{S4}: fp8 only for sparse"),
    Row("mp31 mla window", "musa:mp31", {**MLA, "sliding_window": 128}, MATE, D, "torch", ("mate_mla", "sliding_window 128"), f"{S4}: MLA branch ignores window_size"),
    Row("mp31 mla softcap", "musa:mp31", {**MLA, "softcap": 50.0}, MATE, D, "torch", ("mate_mla", "softcap 50"), f"{S4}: MLA branch ignores softcap"),
    Row("mp31 mla sinks", "musa:mp31", {**MLA, "sinks": True}, MATE, D, "torch", ("mate_mla", "sinks"), f"{S4}: MLA branch ignores sinks"),
    Row("mp31 dense not mla", "musa:mp31", {}, None, D, None, ("mate_mla", "mla is needed"), f"{F}: mate_mla is MLA decode", "mate_mla"),
]

# CPU.
CPU_ROWS = [
    Row("x86 v2", "cpu:x86_64_v2", {}, None, D, "cpu", None, f"{F}: cpu, own C++ kernels"),
    Row("x86 v3", "cpu:x86_64_v3", {}, None, D, "cpu", None, f"{F}: cpu, own C++ kernels"),
    Row("x86 v4", "cpu:x86_64_v4", {}, None, D, "cpu", None, f"{F}: cpu, own C++ kernels"),
    Row("x86 v4 bf16", "cpu:x86_64_v4_bf16", {}, None, D, "cpu", None, f"{F}: cpu, own C++ kernels"),
    Row("aarch64", "cpu:aarch64", {}, None, D, "cpu", None, f"{F}: cpu (SGLang: ARM64 torch_native, for want of AMX)"),
    Row("cpu prefill", "cpu:x86_64_v4", {}, None, P, "cpu", None, f"{F}: cpu, own C++ kernels"),
    Row("cpu fp32", "cpu:x86_64_v4", FP32, None, D, "cpu", None, f"{F}: cpu fp16, bf16, fp32"),
    Row("cpu fp16", "cpu:x86_64_v4", FP16, None, D, "cpu", None, f"{F}: cpu fp16, bf16, fp32"),
    Row("cpu page 1", "cpu:x86_64_v4", page(1), None, D, "cpu", None, f"{F}: cpu any block size"),
    Row("cpu page 16", "cpu:x86_64_v4", page(16), None, D, "cpu", None, f"{F}: cpu any block size"),
    Row("cpu page 256", "cpu:x86_64_v4", page(256), None, D, "cpu", None, f"{F}: cpu any block size"),
    Row("cpu dim 32", "cpu:x86_64_v4", dim(32), None, D, "cpu", None, f"{F}: cpu head 32..256"),
    Row("cpu dim 256", "cpu:x86_64_v4", dim(256), None, D, "cpu", None, f"{F}: cpu head 32..256"),
    Row("cpu dim 16", "cpu:x86_64_v4", dim(16), None, D, None, ("cpu", "head_dim 16"), f"{F}: cpu head 32..256", "cpu"),
    Row("cpu dim 512", "cpu:x86_64_v4", dim(512), None, D, "cpu", None, f"{OWN}: head 32..576", "CPU_ATTN"),
    Row("cpu dim 640", "cpu:x86_64_v4", dim(640), None, D, None, ("cpu", "head_dim 640"), f"{OWN}: head 32..576", "CPU_ATTN"),
    Row("cpu encoder", "cpu:x86_64_v4", ENCODER, None, P, "cpu", None, f"{F}: cpu all attention types"),
    Row("cpu encoder_only", "cpu:x86_64_v4", ENC, None, P, "cpu", None, f"{F}: cpu all attention types"),
    Row("cpu encoder_decoder", "cpu:x86_64_v4", ENC_DEC, None, P, "cpu", None, f"{F}: cpu all attention types"),
    Row("cpu window", "cpu:x86_64_v4", {"sliding_window": 128}, None, D, "cpu", None, f"{V} CPU_ATTN sliding_window"),
    Row("cpu tree", "cpu:x86_64_v4", TREE, None, D, "cpu", None, f"{F}: tree masks: triton, torch, cpu"),
    Row("cpu mla", "cpu:x86_64_v4", MLA, None, D, "cpu", None, f"{OWN}: the whole contract"),
    Row("cpu mla prefill", "cpu:x86_64_v4", MLA, None, P, "cpu", None, f"{OWN}: the whole contract"),
    Row("cpu sparse", "cpu:x86_64_v4", DSA, None, D, "cpu", None, f"{OWN}: the whole contract"),
    Row("cpu no flashinfer", "cpu:x86_64_v4", {}, None, D, None, ("flashinfer", "platform cpu"), f"{F}: flashinfer is cuda", "flashinfer"),
    Row("cpu no triton", "cpu:x86_64_v4", {}, None, D, None, ("triton", "platform cpu"), f"{F}: triton is cuda, rocm (musa, npu)", "TRITON_ATTN"),
    Row("cpu intel_amx", "cpu:x86_64_v4", {}, None, D, "cpu", None, f"{F}: intel_amx is cpu's alias", "intel_amx"),
]

# Names users type, by platform.
ALIAS_ROWS = [
    Row("FLASH_ATTN sm90", "cuda:sm90", {}, None, D, "flash_attn_3", None, f"{F}: FLASH_ATTN (3)", "FLASH_ATTN"),
    Row("FLASH_ATTN sm80", "cuda:sm80", {}, None, D, "flash_attn_2", None, f"{F}: FLASH_ATTN (2)", "FLASH_ATTN"),
    Row("fa2", "cuda:sm80", {}, None, D, "flash_attn_2", None, f"{F}: fa2", "fa2"),
    Row("fa3", "cuda:sm90", {}, None, D, "flash_attn_3", None, f"{F}: fa3", "fa3"),
    Row("fa3 mla", "cuda:sm90", MLA, None, D, "flash_attn_mla", None, f"{S2}: MLA SM90 fa3; design.md section 4", "fa3"),
    Row("FLASHINFER sm100", "cuda:sm100", {}, None, D, "trtllm_mha", None, "design.md section 4: FLASHINFER on sm100 is trtllm_mha, then flashinfer", "FLASHINFER"),
    Row("FLASHINFER sm100 page 1", "cuda:sm100", page(1), None, D, "flashinfer", ("trtllm_mha", "page_size 1 "), "design.md section 4: FLASHINFER on sm100 is trtllm_mha, then flashinfer", "FLASHINFER"),
    Row("FLASHINFER sm80", "cuda:sm80", {}, None, D, "flashinfer", None, f"{F}: FLASHINFER", "FLASHINFER"),
    Row("FLASHINFER_MLA sm80", "cuda:sm80", MLA, None, D, "flashinfer_mla", None, f"{F}: FLASHINFER_MLA (below sm100)", "FLASHINFER_MLA"),
    Row("FLASHINFER_MLA sm100", "cuda:sm100", MLA, None, D, "trtllm_mla", None, f"{F}: FLASHINFER_MLA (on sm100)", "FLASHINFER_MLA"),
    Row("TRTLLM_MLA", "cuda:sm100", MLA, None, D, "trtllm_mla", None, f"{F}: TRTLLM_MLA", "TRTLLM_MLA"),
    Row("TRTLLM_MHA", "cuda:sm100", {}, None, D, "trtllm_mha", None, f"{F}: TRTLLM_MHA", "TRTLLM_MHA"),
    Row("FLASHMLA sm90", "cuda:sm90", MLA, None, D, "flashmla", None, f"{F}: FLASHMLA", "FLASHMLA"),
    Row("FLASHMLA_SPARSE", "cuda:sm90", DSA, None, D, "flashmla_sparse", None, f"{F}: FLASHMLA_SPARSE", "FLASHMLA_SPARSE"),
    Row("CUTLASS_MLA", "cuda:sm100", MLA, None, D, "cutlass_mla", None, f"{F}: CUTLASS_MLA", "CUTLASS_MLA"),
    Row("TRITON_MLA", "cuda:sm90", MLA, None, D, "triton_mla", None, f"{F}: TRITON_MLA", "TRITON_MLA"),
    Row("TRITON_ATTN", "cuda:sm90", {}, None, D, "triton", None, f"{F}: TRITON_ATTN", "TRITON_ATTN"),
    Row("FLEX_ATTENTION", "cuda:sm90", {}, None, D, "flex_attention", None, f"{F}: FLEX_ATTENTION", "FLEX_ATTENTION"),
    Row("TORCH_SDPA", "cuda:sm90", {}, None, D, "torch", None, f"{F}: TORCH_SDPA", "TORCH_SDPA"),
    Row("TREE_ATTN", "cuda:sm90", TREE, TRI, D, "triton", None, f"{F}: tree masks: as triton, torch, cpu", "TREE_ATTN"),
    Row("FLASH_ATTN_MLA", "cuda:sm90", MLA, None, D, "flash_attn_mla", None, f"{F}: FLASH_ATTN_MLA", "FLASH_ATTN_MLA"),
    Row("FLASHINFER_MLA_SPARSE", "cuda:sm100", DSA, None, D, "flashinfer_mla_sparse", None, f"{F}: FLASHINFER_MLA_SPARSE", "FLASHINFER_MLA_SPARSE"),
    Row("ROCM_AITER_FA", "rocm:gfx942", {}, None, D, "aiter", None, f"{F}: ROCM_AITER_FA", "ROCM_AITER_FA"),
    Row("ROCM_AITER_UNIFIED_ATTN", "rocm:gfx942", {}, None, D, "aiter_unified", None, f"{F}: ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_UNIFIED_ATTN"),
    Row("ROCM_ATTN", "rocm:gfx942", {}, None, D, "rocm_attn", None, f"{F}: ROCM_ATTN", "ROCM_ATTN"),
    Row("ROCM_AITER_MLA", "rocm:gfx942", MLA, None, D, "aiter_mla", None, f"{F}: ROCM_AITER_MLA", "ROCM_AITER_MLA"),
    Row("ROCM_AITER_MLA_SPARSE", "rocm:gfx942", DSA, None, D, "aiter_mla_sparse", None, f"{F}: ROCM_AITER_MLA_SPARSE", "ROCM_AITER_MLA_SPARSE"),
    Row("ROCM_AITER_TRITON_MLA", "rocm:gfx942", MLA, None, D, "aiter_triton_mla", None, f"{F}: ROCM_AITER_TRITON_MLA", "ROCM_AITER_TRITON_MLA"),
    Row("wave", "rocm:gfx942", {**FP16, **page(1), **dim(64)}, None, D, "wave", None, f"{F}: wave gfx942; {WAVE}", "wave"),
    Row("wave decode 128", "rocm:gfx942", {**FP16, **page(1)}, None, D, None, ("wave", "head_dim 128 in decode"), WAVE, "wave"),
    Row("wave gfx90a", "rocm:gfx90a", {}, None, D, None, ("wave", "arch gfx90a"), f"{F}: wave gfx942, gfx950", "wave"),
    Row("fa4 sm120", "cuda:sm120", {}, None, D, None, ("flash_attn_4", ""), f"{F}: flash_attn_4 asserts no paged KV on sm120", "fa4"),
    Row("trtllm_ragged decode", "cuda:sm100", MLA, None, D, None, ("trtllm_ragged", "phase decode"), f"{F}: trtllm_ragged MLA prefill", "trtllm_ragged"),
    Row("cudnn decode", "cuda:sm90", {}, None, D, None, ("cudnn", "phase decode"), f"{F}: cudnn dense / ragged prefill", "cudnn"),
]


# What the orders of the other phase and the tails of the lists hold.
ORDER_ROWS = [
    # vLLM and SGLang choose one dense backend for both phases, so its order is prefill's too.
    *[row._replace(id=f"{row.id}, prefilling", phase=P) for row in CUDA_ORDER if row.phase == D],
    Row("sm100 fa4 before fa2", "cuda:sm100", {}, f"{FA4},{FA2},{TRI}", D, "flash_attn_4", ("flashinfer", "package flashinfer"), f"{F}: flash_attn_4 best on sm100/103; {FP}: sm100 flashinfer, flash_attn, triton"),
    Row("sm100 fa4 before fa2, prefilling", "cuda:sm100", {}, f"{FA4},{FA2},{TRI}", P, "flash_attn_4", ("flashinfer", "package flashinfer"), f"{F}: flash_attn_4 best on sm100/103"),
    Row("sm100 flashinfer before fa4, prefilling", "cuda:sm100", page(256), f"{FI},{FA4},{TRI}", P, "flashinfer", ("trtllm_mha", "page_size 256"), f"{FP}: sm100 flashinfer before flash_attn"),
    Row("sm100 diffkv", "cuda:sm100", {"head_dim": 192, "head_dim_v": 128}, None, D, "flash_attn_4", ("trtllm_mha", "head_dim 192 with head_dim_v 128"), f"{S2}: SM100 fa4 if asymmetric K/V dims"),
    Row("sm90 diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, None, D, "flash_attn_3", ("flash_attn_2", "head_dim 192 with head_dim_v 128"), f"{FA2C}; hopper/flash_api.cpp: 129 to 192 with 97 to 128"),
    # MLA prefill over expanded K and V.
    Row("sm90 glm5 prefill", "cuda:sm90", GLM5, None, P, "flash_attn_3", None, f"{MP}: FLASH_ATTN 192+64/256; {FP}: 3 on sm90"),
    Row("sm90 glm5 prefill fa2", "cuda:sm90", GLM5, FA2_TRI, P, "flash_attn_2", ("flash_attn_3", "package flash-attn-3"), f"{MP}: FLASH_ATTN 192+64/256; {FP}: flash_attn varlen"),
    Row("sm90 prefill triton", "cuda:sm90", MLA, f"{FMLA},{TRI}", P, "triton", ("flash_attn_3", "package flash-attn-3"), f"{FP}: MLA prefill is varlen over expanded K and V; {S2}: else triton"),
    Row("sm90 prefill vllm", "cuda:sm90", MLA, VLLM_TRI, P, "flash_attn_3", ("flash_attn_2", "package flash-attn"), f"{MP}: FLASH_ATTN, whose version 3 is vLLM's own build on sm90"),
    Row("sm90 odd prefill", "cuda:sm90", MLA_ODD, None, P, "flash_attn_mla", ("flash_attn_3", "MLA prefill with head_dim 96"), f"{FP}: sm80..sm90 flash_attn_mla, flashmla, flashinfer_mla, triton_mla"),
    Row("sm90 odd prefill flashinfer", "cuda:sm90", MLA_ODD, FI_TRI, P, "flashinfer_mla", ("flash_attn_mla", "package flash-attn-3"), f"{FP}: sm80..sm90 flash_attn_mla, flashmla, flashinfer_mla, triton_mla"),
    Row("sm80 glm5 prefill", "cuda:sm80", GLM5, FA2_TRI, P, "flash_attn_2", None, f"{MP}: FLASH_ATTN 192+64/256; {FP}: flash_attn varlen"),
    Row("sm80 odd prefill", "cuda:sm80", MLA_ODD, FI_TRI, P, "flashinfer_mla", ("triton", "MLA prefill with head_dim 96"), f"{FP}: flashinfer_mla before triton_mla"),
    Row("sm100 prefill fa4", "cuda:sm100", GLM5, f"{FA4},{FA2},{TRI}", P, "flash_attn_4", ("trtllm_ragged", "package flashinfer"), f"{F}: flash_attn_4 best on sm100/103; {MP}: FLASH_ATTN (FA2/FA3/FA4)"),
    Row("sm100 prefill fa2", "cuda:sm100", GLM5, FA2_TRI, P, "flash_attn_2", ("flash_attn_4", "package flash-attn-4"), f"{MP}: FLASH_ATTN 192+64/256; {FP}: flash_attn varlen"),
    Row("sm100 prefill triton", "cuda:sm100", MLA, TRI, P, "triton", ("flash_attn_2", "package flash-attn"), f"{S2}: else triton"),
    Row("sm100 sparse prefill", "cuda:sm100", DSA, None, P, "flashmla_sparse", ("trtllm_ragged", "sparse"), f"{VP} sm100: FLASHMLA_SPARSE before FLASHINFER_MLA_SPARSE"),
    Row("sm120 glm5 prefill", "cuda:sm120", GLM5, FA2_TRI, P, "flash_attn_2", ("trtllm_ragged", "arch sm120"), f"{MP}: FLASH_ATTN 192+64/256; {FP}: else flash_attn varlen"),
    Row("sm120 odd prefill", "cuda:sm120", MLA_ODD, FI_TRI, P, "triton_mla", ("triton", "MLA prefill with head_dim 96"), f"{FP}: sm120 triton_mla"),
    # ROCm.
    Row("gfx90a rocm_attn", "rocm:gfx90a", {}, VLLM_TRI, D, "rocm_attn", ("aiter", "arch gfx90a"), f"{ROCM}: ROCM_ATTN first"),
    Row("gfx90a rocm_attn, prefilling", "rocm:gfx90a", {}, VLLM_TRI, P, "rocm_attn", None, f"{ROCM}: ROCM_ATTN first"),
    Row("gfx1100 triton before unified", "rocm:gfx1100", {}, AIT_TRI, D, "triton", ("rocm_attn", "package vllm"), f"{ROCM}: without AITER's switch ROCM_ATTN, TRITON_ATTN; ROCm/aiter README: RDNA experimental"),
    Row("gfx1100 triton before unified, prefilling", "rocm:gfx1100", {}, AIT_TRI, P, "triton", ("rocm_attn", "package vllm"), f"{ROCM}: without AITER's switch ROCM_ATTN, TRITON_ATTN"),
    Row("gfx1100 unified", "rocm:gfx1100", {}, AITER, D, "aiter_unified", ("triton", "package triton"), f"{RDNA}; {F}: aiter_unified rocm"),
    Row("gfx1100 unified, prefilling", "rocm:gfx1100", {}, AITER, P, "aiter_unified", ("triton", "package triton"), f"{RDNA}; {F}: aiter_unified rocm"),
    Row("gfx90a none, prefilling", "rocm:gfx90a", {}, NONE, P, "flex_attention", ("triton", "package triton"), f"{F}: flex_attention rocm; torch is the floor"),
    Row("gfx942 none, prefilling", "rocm:gfx942", {}, NONE, P, "flex_attention", ("triton", "package triton"), f"{F}: flex_attention rocm; torch is the floor"),
    Row("gfx942 page 64, prefilling", "rocm:gfx942", page(64), AIT_TRI, P, "aiter_unified", ("aiter", "page_size 64"), f"{ROCM}: ROCM_AITER_UNIFIED_ATTN before TRITON_ATTN"),
    Row("gfx942 rocm_attn before unified", "rocm:gfx942", page(64), f"{VLLM},{AITER},{TRI}", D, "rocm_attn", ("aiter", "page_size 64"), f"{ROCM}: ROCM_ATTN before ROCM_AITER_UNIFIED_ATTN"),
    Row("gfx1201 mla e5m2", "rocm:gfx1201", {**MLA, **E5M2}, AIT_TRI, D, "aiter_triton_mla", ("triton_mla", "kv_cache_dtype fp8_e5m2"), f"{V} TRITON_MLA no fp8_e5m2, ROCM_AITER_TRITON_MLA fp8_e5m2; {RDNA}"),
    Row("gfx1100 mla prefill", "rocm:gfx1100", MLA, TRI, P, "triton", ("aiter_mla", "arch gfx1100"), f"{S2}: else triton; {FP}: MLA prefill is varlen over expanded K and V"),
    Row("gfx1100 odd prefill", "rocm:gfx1100", MLA_ODD, TRI, P, "triton_mla", ("triton", "MLA prefill with head_dim 96"), f"{F}: triton_mla rocm"),
    Row("gfx942 mla prefill", "rocm:gfx942", MLA, None, P, "aiter_mla", None, f"{S2}: HIP aiter"),
    Row("gfx942 mla fp16 prefill", "rocm:gfx942", {**MLA, **FP16}, AIT_TRI, P, "triton", ("aiter_mla", "dtype float16"), f"{ROCM}: TRITON_MLA before ROCM_AITER_TRITON_MLA; {ASM}"),
    Row("gfx942 mla fp16 cp prefill", "rocm:gfx942", {**MLA, **FP16, "context_parallel_size": 2}, AIT_TRI, P, "aiter_triton_mla", ("triton", "context_parallel 2"), f"{V} TRITON_ATTN no dcp, ROCM_AITER_TRITON_MLA dcp"),
    # A prefill that does not read the cache goes with any decode backend (design.md section 5).
    Row("910b mla e4m3 prefill", "npu:ascend910b", {**MLA, **E4M3}, NPU, P, "torch", ("ascend_mla", "kv_cache_dtype fp8_e4m3"), f"{A3}: kv same (int8); an extend reads the cache in prefill too"),
    Row("mp31 mla e4m3 prefill", "musa:mp31", {**MLA, **E4M3}, MATE, P, "torch", ("mate_mla", "kv_cache_dtype fp8_e4m3"), f"{S4}: fp8 only for sparse; HAL: its prefill serves absorbed extends from the same cache"),
    Row("cpu dim 16 falls", "cpu:x86_64_v4", dim(16), None, D, "torch", ("cpu", "head_dim 16"), "cpu.md, grid: flex_attention slower than gathering pages for SDPA (bf16)"),
    Row("cpu dim 16 falls, prefilling", "cpu:x86_64_v4", dim(16), None, P, "torch", ("cpu", "head_dim 16"), "cpu.md, grid: flex_attention slower than gathering pages for SDPA (bf16)"),
]


class Claim(NamedTuple):
    """What a source says of one backend. Each entry becomes a row that asks for the backend by name.

    device and config: where it serves. yes: field -> values it serves; no: field -> values it refuses. "arch" is a
    field like any other; a list of dicts under "" changes several fields at once.
    """

    backend: str
    device: str
    config: dict[str, Any]
    yes: dict[str, list[Any]]
    no: dict[str, list[Any]]
    source: str
    phase: str = D


SM80_UP = ["sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121"]
SM75_UP = ["sm75", *SM80_UP]
GFX = ["gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"]
CPUS = ["x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16", "aarch64"]
NPUS = ["ascend910a", "ascend910b", "ascend910c", "ascend310p", "ascend950"]
MUSAS = ["mp21", "mp22", "mp31"]
HALVES, ALL_DTYPES = ["float16", "bfloat16"], ["float16", "bfloat16", "float32"]
TYPES = ["encoder", "encoder_only", "encoder_decoder"]
TRUE = [True]

CLAIMS = [
    Claim("flash_attn_2", "cuda:sm80", {}, {"arch": SM80_UP}, {"arch": ["sm75"]}, f"{V} FLASH_ATTN compute_caps; {F}: sm80+"),
    Claim("flash_attn_2", "cuda:sm80", {}, {"dtype": HALVES, "head_dim": [16, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256], "attention_type": TYPES, "sliding_window": [128], "return_softmax_lse": TRUE, "deterministic": TRUE, "graph": TRUE, "causal": [False]},
          {"dtype": ["float32"], "head_dim": [512, 576], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "sinks": TRUE, "mm_prefix": TRUE, "sparse": TRUE, "mla": TRUE}, f"{V} FLASH_ATTN; {F}: no fp8, no sinks"),
    Claim("flash_attn_2", "cuda:sm80", {}, {"page_size": [256, 512]}, {"page_size": [1, 16, 64, 128, 384]}, f"{F}: page %256 upstream"),
    Claim("flash_attn_3", "cuda:sm90", {}, {"arch": ["sm90"]}, {"arch": ["sm75", "sm100", "sm103", "sm110", "sm120", "sm121"]}, f"{F}: flash_attn_3 sm90"),
    Claim("flash_attn_3", "cuda:sm90", {}, {"dtype": HALVES, "head_dim": [16, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256], "attention_type": TYPES, "sliding_window": [128], "return_softmax_lse": TRUE, "graph": TRUE, "causal": [False], "sinks": TRUE, "page_size": [1, 16, 64, 256], "kv_cache_dtype": ["fp8_e4m3"]},
          {"dtype": ["float32"], "head_dim": [512, 576], "kv_cache_dtype": ["fp8_e5m2"], "mm_prefix": TRUE, "mla": TRUE, "tree_mask": TRUE}, f"{V} FLASH_ATTN; {F}: fp8 KV, sinks; {S2}: fa3 e4m3 only"),
    Claim("flash_attn_4", "cuda:sm100", {}, {"arch": ["sm90", "sm100", "sm103"], "dtype": HALVES, "page_size": [128]}, {"arch": ["sm75", "sm80", "sm89", "sm120", "sm121"], "dtype": ["float32"]}, f"{F}: flash_attn_4; {S2}: fa4 page 128; {FA4C}"),
    Claim("flash_attn_4", "cuda:sm100", MLA, {"arch": SM80_UP}, {"arch": ["sm75"]}, f"{F}: flash_attn_4 sm80..sm121; vllm_backends.json mla_prefill: FLASH_ATTN (FA2/FA3/FA4)", P),
    Claim("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, {"dtype": HALVES, "sliding_window": [128]}, {"arch": ["sm75"], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e5m2"]}, f"{V} FLASH_ATTN_DIFFKV"),
    Claim("flash_attn_mla", "cuda:sm90", MLA, {"dtype": HALVES, "page_size": [16, 32, 64, 128], "context_parallel_size": [2]}, {"arch": ["sm80", "sm89", "sm100", "sm120"], "page_size": [1, 8], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "sparse": TRUE, "sinks": TRUE, "": [{"mla": None}]}, f"{F}: flash_attn_mla sm90, page %16, DCP; {VD} FLASH_ATTN_MLA"),
    Claim("flashinfer", "cuda:sm90", FP16, {"arch": ["sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120"]}, {}, f"{F}: flashinfer sm75..sm120"),
    Claim("flashinfer", "cuda:sm90", {}, {"dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "head_dim": [64, 128, 256], "page_size": [1, 16, 32, 64, 128], "causal": [False], "softcap": [50.0], "sliding_window": [128], "return_softmax_lse": TRUE, "attention_type": TYPES},
          {"dtype": ["float32"], "head_dim": [80, 96], "sinks": TRUE, "mm_prefix": TRUE, "mla": TRUE, "attention_chunk": [64]}, f"{F}: flashinfer; {VD} FLASHINFER; {SIG}: plan; {S2}: Whisper"),
    Claim("trtllm_mha", "cuda:sm100", {}, {"arch": ["sm100", "sm103"], "dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3"], "page_size": [16, 32, 64, 128], "sinks": TRUE, "sliding_window": [128]},
          {"arch": ["sm80", "sm89", "sm110"], "dtype": ["float32"], "page_size": [1, 8, 256], "mla": TRUE, "softcap": [50.0], "mm_prefix": TRUE, "attention_type": TYPES}, f"{F}: trtllm_mha sm100/103, sinks, fp8; {S2}: page 16/32/64/128; {SIG}"),
    Claim("flashinfer_mla", "cuda:sm80", MLA, {"arch": ["sm80", "sm86", "sm89", "sm90", "sm120"], "dtype": HALVES, "page_size": [1, 32, 64]}, {"arch": ["sm75", "sm100", "sm103"], "dtype": ["float32"], "sparse": TRUE, "sinks": TRUE, "": [{"mla": None}]}, f"{F}: flashinfer_mla sm80..sm90, sm120; {S2}: page_size default 1 (vLLM's 32/64 are TensorRT-LLM's)"),
    Claim("trtllm_mla", "cuda:sm100", MLA, {"arch": ["sm100", "sm103"], "dtype": ["bfloat16"], "kv_cache_dtype": ["fp8_e4m3"], "page_size": [32, 64], "context_parallel_size": [2], "max_decode_query_len": [2]},
          {"arch": ["sm90", "sm110", "sm120"], "dtype": ["float16", "float32"], "kv_cache_dtype": ["fp8_e5m2"], "page_size": [1, 16, 128], "sparse": TRUE, "": [{"mla": None}]}, f"{S2}: trtllm_mla; {VD} FLASHINFER_MLA, with float16; {OUT}"),
    Claim("trtllm_mla", "cuda:sm100", MLA, {}, {"": [{}]}, f"{F}: trtllm_mla decode only", P),
    Claim("flashinfer_mla_sparse", "cuda:sm100", DSA, {"arch": ["sm100", "sm103"], "dtype": ["bfloat16"], "kv_cache_dtype": ["fp8_e4m3"], "page_size": [32, 64], "return_softmax_lse": TRUE, "context_parallel_size": [2]}, {"arch": ["sm80", "sm90", "sm110"], "page_size": [1, 16], "dtype": ["float16", "float32"], "kv_cache_dtype": ["fp8_e5m2"], "": [{"sparse": False}]}, f"{V} FLASHINFER_MLA_SPARSE, with float16; {F}: page 32/64; {OUT}"),
    Claim("flashmla", "cuda:sm90", MLA, {"arch": ["sm90"], "dtype": ["bfloat16"], "page_size": [64], "context_parallel_size": [2], "return_softmax_lse": TRUE, "graph": TRUE}, {"arch": ["sm80", "sm89", "sm100", "sm120"], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e5m2"], "page_size": [1, 16, 32], "sparse": TRUE, "": [{"mla": None}]}, f"{F}: flashmla sm90, page 64, DCP; {V} FLASHMLA"),
    Claim("flashmla_sparse", "cuda:sm90", DSA, {"arch": ["sm90", "sm100", "sm103"], "kv_cache_dtype": ["fp8_ds_mla"], "page_size": [64]}, {"arch": ["sm80", "sm120"], "dtype": HALVES[:1], "page_size": [1, 16, 32], "kv_cache_dtype": ["fp8_e5m2"], "": [{"sparse": False}]}, f"{F}: flashmla_sparse; {V} FLASHMLA_SPARSE"),
    Claim("flashmla_sparse", "cuda:sm90", DSA, {"arch": ["sm90", "sm100"]}, {}, f"{F}: flash_mla sparse prefill", P),
    Claim("cutlass_mla", "cuda:sm100", MLA, {"arch": ["sm100"], "dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3"], "page_size": [128], "context_parallel_size": [2]}, {"arch": ["sm90", "sm120"], "page_size": [16, 32, 64], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e5m2"], "sparse": TRUE, "": [{"mla": None}]}, f"{F}: cutlass_mla sm100, page 128, fp8; {VD} CUTLASS_MLA"),
    Claim("cudnn", "cuda:sm90", {}, {"arch": ["sm80", "sm90", "sm100"], "dtype": HALVES}, {"arch": ["sm75"]}, f"{F}: cudnn sm80+, dense / ragged prefill", P),
    Claim("trtllm_ragged", "cuda:sm100", MLA, {"arch": ["sm100"], "dtype": HALVES}, {"arch": ["sm90", "sm120"], "dtype": ["float32"], "": [{"mla": None}]}, f"{F}: trtllm_ragged sm100, MLA prefill; vllm_backends.json mla_prefill", P),
    Claim("triton", "cuda:sm90", FP16, {"arch": SM75_UP}, {}, f"{V} TRITON_ATTN compute_caps", D),
    Claim("triton", "rocm:gfx942", FP16, {"arch": GFX}, {}, f"{F}: triton rocm; triton.md section 2: compiles for all five", D),
    Claim("triton", "cuda:sm90", {}, {"dtype": ALL_DTYPES, "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "page_size": [16, 32, 64, 128, 256], "head_dim": [32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 512], "attention_type": TYPES, "sliding_window": [128], "sinks": TRUE, "mm_prefix": TRUE, "causal": [False], "tree_mask": TRUE, "deterministic": TRUE, "graph": TRUE},
          {"head_dim": [16], "mla": TRUE, "sparse": TRUE}, f"{V} TRITON_ATTN; {F}: tree masks"),
    Claim("triton_mla", "cuda:sm120", {**MLA, **FP16}, {"arch": SM75_UP}, {}, f"{V} TRITON_MLA compute_caps"),
    Claim("triton_mla", "rocm:gfx942", MLA, {"arch": GFX}, {}, f"{F}: triton_mla rocm"),
    Claim("triton_mla", "cuda:sm120", MLA, {"dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3"], "page_size": [1, 16, 32, 64, 128, 256], "return_softmax_lse": TRUE, "context_parallel_size": [2], "deterministic": TRUE, "graph": TRUE, "causal": [False]}, {"dtype": ["float32"], "kv_cache_dtype": ["fp8_e5m2"], "sparse": TRUE, "sinks": TRUE, "": [{"mla": None}]}, f"{V} TRITON_MLA; {S2}: page_size default 1"),
    Claim("flex_attention", "cuda:sm90", FP16, {"arch": SM75_UP}, {}, f"{V} FLEX_ATTENTION compute_caps"),
    Claim("flex_attention", "rocm:gfx942", {}, {"arch": GFX}, {}, f"{F}: flex_attention rocm"),
    Claim("flex_attention", "cpu:x86_64_v3", {}, {"arch": CPUS}, {}, f"{F}: flex_attention cpu"),
    Claim("flex_attention", "cuda:sm90", {}, {"dtype": ALL_DTYPES, "page_size": [16, 32, 128], "head_dim": [16, 64, 80, 256, 512], "attention_type": ["encoder_only"], "sliding_window": [128], "mm_prefix": TRUE, "causal": [False], "deterministic": TRUE}, {"kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "page_size": [1, 8], "attention_type": ["encoder_decoder"], "sinks": TRUE, "mla": TRUE}, f"{V} FLEX_ATTENTION"),
    *[Claim("torch", f"{kind}:{archs[0]}", FP16, {"arch": archs}, {}, f"{F}: torch, any device torch runs on") for kind, archs in (("cuda", SM75_UP), ("rocm", GFX), ("cpu", CPUS), ("npu", NPUS), ("musa", MUSAS))],
    Claim("torch", "cuda:sm90", {}, {"dtype": ALL_DTYPES, "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "page_size": [1, 16, 100, 256], "head_dim": [1, 16, 80, 512], "head_dim_v": [64], "attention_type": TYPES, "sliding_window": [128], "attention_chunk": [64], "softcap": [50.0], "sinks": TRUE, "tree_mask": TRUE, "mm_prefix": TRUE, "causal": [False], "return_softmax_lse": TRUE, "context_parallel_size": [2], "deterministic": TRUE, "max_decode_query_len": [9], "": [MLA, DSA]}, {"graph": TRUE}, f"{F}: torch, the floor: every feature; {S2}: torch_native disables cuda graph"),
    Claim("aiter", "rocm:gfx942", {}, {"arch": ["gfx942", "gfx950"], "dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3"], "page_size": [16, 1024], "head_dim": [128, 256], "sliding_window": [128], "causal": [False], "graph": TRUE}, {"arch": ["gfx90a", "gfx1100", "gfx1201"], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e5m2"], "page_size": [1, 32, 64, 128], "head_dim": [32, 64, 80, 96, 192, 512], "sinks": TRUE, "attention_type": TYPES, "mm_prefix": TRUE, "mla": TRUE, "context_parallel_size": [2], "deterministic": TRUE}, f"{V} ROCM_AITER_FA; {CK}"),
    Claim("aiter_unified", "rocm:gfx942", {}, {"arch": ["gfx942", "gfx950", "gfx1100", "gfx1201"], "dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3"], "page_size": [16, 64, 128, 256], "head_dim": [64, 80, 128, 256], "sinks": TRUE}, {"dtype": ["float32"], "kv_cache_dtype": ["fp8_e5m2"], "arch": ["gfx90a"], "mm_prefix": TRUE, "mla": TRUE, "causal": [False], "context_parallel_size": [2]}, f"{VD} ROCM_AITER_UNIFIED_ATTN (its fp8_e5m2 is viewed as e4m3); {RDNA}"),
    Claim("rocm_attn", "rocm:gfx942", {}, {"arch": GFX, "dtype": ALL_DTYPES, "kv_cache_dtype": ["fp8_e4m3"], "page_size": [16, 32, 544], "head_dim": [32, 64, 80, 96, 128, 160, 192, 224, 256], "attention_type": ["encoder", "encoder_only"], "sliding_window": [128], "causal": [False], "graph": TRUE}, {"page_size": [1, 8], "kv_cache_dtype": ["fp8_e5m2"], "head_dim": [40, 72, 512], "attention_type": ["encoder_decoder"], "sinks": TRUE, "mm_prefix": TRUE, "mla": TRUE, "context_parallel_size": [2], "deterministic": TRUE}, f"{V} ROCM_ATTN; {F}: page 16/32/544; vLLM csrc/rocm/attention.cu: fp8 or fp8_e4m3"),
    Claim("aiter_mla", "rocm:gfx942", MLA, {"arch": ["gfx942", "gfx950"], "dtype": ["bfloat16"], "kv_cache_dtype": ["fp8_e4m3"], "page_size": [1], "return_softmax_lse": TRUE, "context_parallel_size": [2], "graph": TRUE}, {"arch": ["gfx90a", "gfx1100", "gfx1201"], "dtype": ["float16", "float32"], "kv_cache_dtype": ["fp8_e5m2"], "page_size": [16, 64], "sparse": TRUE, "sinks": TRUE, "sliding_window": [128], "deterministic": TRUE, "": [{"mla": None}]}, f"{V} ROCM_AITER_MLA; {F}: page 1; {ASM}"),
    Claim("aiter_mla_sparse", "rocm:gfx942", DSA, {"arch": ["gfx942", "gfx950"], "dtype": ["bfloat16"], "kv_cache_dtype": ["fp8_e4m3"], "page_size": [1, 16]}, {"arch": ["gfx90a", "gfx1100"], "dtype": ["float16", "float32"], "kv_cache_dtype": ["fp8_e5m2"], "return_softmax_lse": TRUE, "context_parallel_size": [2], "": [{"sparse": False}]}, f"{V} ROCM_AITER_MLA_SPARSE; {ASM}"),
    Claim("aiter_triton_mla", "rocm:gfx942", MLA, {"arch": ["gfx942", "gfx950", "gfx1100", "gfx1201"], "dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "page_size": [1], "return_softmax_lse": TRUE, "context_parallel_size": [2]}, {"arch": ["gfx90a"], "dtype": ["float32"], "sparse": TRUE, "sinks": TRUE, "": [{"mla": None}]}, f"{V} ROCM_AITER_TRITON_MLA; {RDNA}"),
    Claim("wave", "rocm:gfx942", {**FP16, **dim(64)}, {"arch": ["gfx942", "gfx950"]}, {"arch": ["gfx90a", "gfx1100", "gfx1201"]}, f"{F}: wave gfx942, gfx950"),
    Claim("ascend", "npu:ascend910b", {}, {"arch": ["ascend910b", "ascend910c", "ascend950"], "dtype": HALVES, "page_size": [128], "head_dim": [64, 128], "return_softmax_lse": TRUE, "graph": TRUE, "sliding_window": [1, 4096], "causal": [False], "sinks": TRUE, "context_parallel_size": [2, 4], "max_decode_query_len": [16]}, {"arch": ["ascend910a", "ascend310p"], "dtype": ["float32"], "page_size": [1, 16, 64, 256], "head_dim": [80, 96, 192, 256, 512], "max_decode_query_len": [17], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "softcap": [50.0], "attention_chunk": [64], "mm_prefix": TRUE, "tree_mask": TRUE, "mla": TRUE}, f"{A3}; {S5}: only 128 is safe"),
    Claim("ascend", "npu:ascend910b", {"head_dim": 192}, {"head_dim_v": [128]}, {"head_dim_v": [64]}, f"{A3}: qk 192 and v 128"),
    Claim("ascend_mla", "npu:ascend910b", MLA, {"arch": ["ascend910b", "ascend910c", "ascend950"], "dtype": ["bfloat16"], "page_size": [128], "return_softmax_lse": TRUE}, {"arch": ["ascend910a", "ascend310p"], "dtype": ["float16", "float32"], "page_size": [1, 64], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "sparse": TRUE, "sinks": TRUE, "softcap": [50.0], "": [{"mla": None}]}, f"{A3}: MLA D=512; {F}: ascend_mla; ascend.md section 4 (d): TND with rope bf16 only"),
    Claim("ascend_mla", "npu:ascend910b", MLA, {"arch": ["ascend910b", "ascend910c", "ascend950"]}, {}, f"{F}: ascend_mla MLA prefill", P),
    Claim("mate", "musa:mp31", {}, {"arch": ["mp31"], "dtype": HALVES, "page_size": [64], "head_dim": [64, 128, 192, 256, 384, 512], "sliding_window": [128], "softcap": [50.0], "return_softmax_lse": TRUE, "context_parallel_size": [2], "causal": [False]}, {"page_size": [1, 16, 128], "arch": ["mp21", "mp22"], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "mm_prefix": TRUE, "tree_mask": TRUE, "mla": TRUE, "": [{"head_dim": 128, "head_dim_v": 64}, {"context_parallel_size": 2, "sliding_window": 128}]}, f"{S4}: limits of MATE"),
    Claim("mate", "musa:mp31", {"head_dim": 192}, {"head_dim_v": [128]}, {"head_dim_v": [64]}, f"{S4}: pairs (192,128); (192,64) asserts"),
    Claim("mate_mla", "musa:mp31", MLA, {"arch": ["mp31"], "dtype": HALVES, "page_size": [64]}, {"arch": ["mp21", "mp22"], "dtype": ["float32"], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "softcap": [50.0], "sliding_window": [128], "sinks": TRUE, "": [{"mla": None}]}, f"{S4}: MLA branch of MATE"),
    Claim("cpu", "cpu:x86_64_v4", {}, {"arch": CPUS, "dtype": ALL_DTYPES, "page_size": [1, 16, 100, 256], "head_dim": [32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 576], "attention_type": TYPES, "sliding_window": [128], "tree_mask": TRUE, "causal": [False], "": [MLA, DSA]}, {"head_dim": [16, 584]}, f"{F}: cpu; {OWN}: the rest"),
    # Packages: each alone serves, none does not.
    *[Claim(backend, device, config, {"packages": serve}, {"packages": [NONE]}, f"{F}: entry points", phase) for backend, device, config, serve, phase in (
        ("flash_attn_4", "cuda:sm100", {}, [FA4], D), ("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, [FA3, SGL], D),
        ("flash_attn_3", "cuda:sm90", {}, [FA3, SGL], D), ("flash_attn_mla", "cuda:sm90", MLA, [FA3, SGL, VLLM], D), ("trtllm_ragged", "cuda:sm100", MLA, [FI], P),
        ("flashinfer_mla_sparse", "cuda:sm100", DSA, [FI], D), ("flashmla", "cuda:sm90", MLA, [FMLA, VLLM], D), ("flashmla_sparse", "cuda:sm90", DSA, [FMLA, VLLM], D),
        ("cutlass_mla", "cuda:sm100", MLA, [VLLM], D), ("cudnn", "cuda:sm90", {}, [FI], P), ("rocm_attn", "rocm:gfx942", {}, [VLLM], D),
        ("aiter_unified", "rocm:gfx942", {}, [AITER], D), ("aiter_mla_sparse", "rocm:gfx942", DSA, [AITER], D), ("aiter_triton_mla", "rocm:gfx942", MLA, [AITER], D),
        ("wave", "rocm:gfx942", {**FP16, **dim(64)}, ["wave-lang"], D))],
    # Query lengths of a decode call, and graphs.
    *[Claim(backend, device, config, {"max_decode_query_len": [8]}, {}, source) for backend, device, config, source in (
        ("flash_attn_4", "cuda:sm100", {}, f"{SIG}: flash_attn_varlen_func"), ("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, f"{SIG}: cu_seqlens_q"),
        ("flashinfer_mla", "cuda:sm90", MLA, f"{FIC}: qo_indptr; {S2}: topk=1 spec"), ("flashinfer_mla_sparse", "cuda:sm100", DSA, f"{SIG}: max_q_len"),
        ("flashmla", "cuda:sm90", MLA, f"{S2}: flashmla spec topk=1"), ("flashmla_sparse", "cuda:sm90", DSA, f"{F}: flash_mla sparse names keys per query token"),
        ("triton_mla", "cuda:sm120", MLA, OWN), ("aiter", "rocm:gfx942", {}, f"{SIG}: cu_seqlens_q"), ("aiter_unified", "rocm:gfx942", {}, f"{F}: unified attention, prefill and decode"),
        ("aiter_mla_sparse", "rocm:gfx942", DSA, "ROCm/aiter aiter/mla.py: indices per query token"), ("mate_mla", "musa:mp31", MLA, f"{S4}: flash_mla q[b,s,h,576]"))],
    *[Claim(backend, device, config, {"graph": TRUE}, {}, source) for backend, device, config, source in (
        ("flash_attn_4", "cuda:sm100", {}, f"{V} FLASH_ATTN UNIFORM_BATCH"), ("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, f"{V} FLASH_ATTN_DIFFKV UNIFORM_BATCH"),
        ("flash_attn_mla", "cuda:sm90", MLA, f"{S2}: SM90 MLA fa3, only torch_native and flex_attention turn graphs off"), ("trtllm_mla", "cuda:sm100", MLA, f"{S2}: only torch_native and flex_attention turn graphs off"),
        ("flashinfer", "cuda:sm90", {}, f"{S2}: only torch_native and flex_attention turn graphs off"), ("flashinfer_mla", "cuda:sm90", MLA, f"{S2}: only torch_native and flex_attention turn graphs off"),
        ("flashinfer_mla_sparse", "cuda:sm100", DSA, f"{V} FLASHINFER_MLA_SPARSE UNIFORM_BATCH"), ("flashmla_sparse", "cuda:sm90", DSA, f"{V} FLASHMLA_SPARSE UNIFORM_BATCH"),
        ("cutlass_mla", "cuda:sm100", MLA, "vLLM v1/attention/backends/mla/cutlass_mla.py: UNIFORM_SINGLE_TOKEN_DECODE"), ("aiter_unified", "rocm:gfx942", {}, f"{V} ROCM_ATTN's builder: ALWAYS"),
        ("aiter_mla_sparse", "rocm:gfx942", DSA, f"{V} ROCM_AITER_MLA_SPARSE UNIFORM_BATCH"), ("aiter_triton_mla", "rocm:gfx942", MLA, f"{V} ROCM_AITER_TRITON_MLA UNIFORM_BATCH"),
        ("wave", "rocm:gfx942", {**FP16, **dim(64)}, f"{S2}: only torch_native and flex_attention turn graphs off"), ("ascend_mla", "npu:ascend910b", MLA, f"{S5}: MLA decode graph"))],
    # Expanded MLA in prefill.
    *[Claim(backend, device, {}, {"": yes}, {"": [MLA_ODD]}, source, P) for backend, device, yes, source in (
        ("flash_attn_3", "cuda:sm90", [MLA, GLM5, MLA_128], f"{MP}: FLASH_ATTN"), ("flash_attn_2", "cuda:sm80", [GLM5, MLA_128], f"{MP}: FLASH_ATTN; {FA2C}"),
        ("flash_attn_4", "cuda:sm100", [MLA, GLM5, MLA_128], f"{MP}: FLASH_ATTN (FA2/FA3/FA4)"), ("trtllm_ragged", "cuda:sm100", [MLA, GLM5, MLA_128], f"{MP}: TRTLLM_RAGGED; FlashInfer prefill.py: (128, 128, 128)"),
        ("flashinfer", "cuda:sm100", [MLA], f"{MP}: FLASHINFER 128+64/128"), ("cudnn", "cuda:sm90", [MLA, MLA_128], f"{F}: cudnn MLA prefill; {CUDNNC}"),
        ("triton", "cuda:sm90", [MLA, GLM5, MLA_128], f"{S2}: MLA else triton; {MP}: the pairs of models"), ("aiter_triton_mla", "rocm:gfx942", [MLA], f"{F}: aiter Triton MLA"),
        ("aiter_mla", "rocm:gfx942", [MLA], f"{S2}: HIP aiter"))],
    Claim("flash_attn_2", "cuda:sm80", {}, {"head_dim": [8, 24]}, {"head_dim": [4, 260]}, FAC),
    Claim("flash_attn_3", "cuda:sm90", {}, {"head_dim": [8, 24]}, {"head_dim": [4, 260]}, FAC),
    Claim("flash_attn_4", "cuda:sm100", {}, {"deterministic": TRUE, "attention_type": TYPES, "causal": [False], "return_softmax_lse": TRUE, "sinks": TRUE, "sliding_window": [128], "softcap": [50.0], "head_dim": [16, 48, 64, 128], "page_size": [1, 16, 128], "": [{"head_dim": 192, "head_dim_v": 128}]}, {"head_dim": [4, 24, 256, 512], "attention_chunk": [64], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"]}, f"{SIG}: flash_attn_varlen_func has no descales, only the private _flash_attn_fwd has (fp8 on sm100 alone); {SIG}: flash_attn_varlen_func (learnable_sink, softcap, window_size); {V} FLASH_ATTN types; flash_attn/cute/interface.py: e4m3, e5m2, hd256 without seqused_k; flash_fwd_sm100.py: no paged KV with irregular head dims"),
    Claim("flash_attn_4", "cuda:sm90", {}, {"head_dim": [256]}, {"kv_cache_dtype": ["fp8_e4m3"], "head_dim": [264]}, f"{F}: flash_attn_4 fp8 on sm100 only; flash_attn/cute/interface.py: head dims up to 256"),
    Claim("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, {"attention_type": TYPES, "causal": [False], "return_softmax_lse": TRUE, "softcap": [50.0], "sinks": TRUE, "page_size": [16, 32]}, {"kv_cache_dtype": ["fp8_e4m3"], "page_size": [1, 8]}, f"{V} FLASH_ATTN_DIFFKV: kv auto, fp16, bf16; %16; {SIG}: sglang-kernel sinks, softcap"),
    Claim("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, {"arch": ["sm90"]}, {}, f"{V} FLASH_ATTN_DIFFKV", P),
    Claim("flash_attn_3", "cuda:sm90", {}, {"deterministic": TRUE, "context_parallel_size": [2]}, {"": [{"context_parallel_size": 2, "sliding_window": 128}, {"sinks": True, "dtype": "float16"}]}, "vLLM vllm_flash_attn (cp_world_size; local attention is not supported with it; s_aux is bf16); batch invariance: num_splits 1"),
    Claim("flash_attn_3", "cuda:sm90", {}, {"packages": [VLLM]}, {}, f"{F}: flash_attn_3 from vllm_flash_attn"),
    Claim("flash_attn_diffkv", "cuda:sm90", {"head_dim": 192, "head_dim_v": 128}, {"packages": [VLLM], "deterministic": TRUE, "context_parallel_size": [2], "attention_chunk": [64]}, {}, "the function of flash_attn_3: hopper/flash_attn_interface.py, vllm_flash_attn"),
    Claim("flash_attn_mla", "cuda:sm90", MLA, {"return_softmax_lse": TRUE, "deterministic": TRUE}, {}, f"{SIG}: flash-attn-3 return_softmax_lse; {F}: DCP"),
    Claim("flash_attn_mla", "cuda:sm90", MLA, {"arch": ["sm90"]}, {}, f"{SIG}: cu_seqlens_q with qv", P),
    Claim("trtllm_mha", "cuda:sm100", {}, {"return_softmax_lse": TRUE, "head_dim": [64, 128, 256, 512], "max_decode_query_len": [8], "graph": TRUE}, {"head_dim": [80, 96], "context_parallel_size": [2]}, f"{SIG}: return_lse; {VD} FLASHINFER heads"),
    Claim("trtllm_mla", "cuda:sm100", MLA, {"return_softmax_lse": TRUE, "sinks": TRUE, "": [{"mla": MLADims(kv_lora_rank=256)}]}, {}, f"{SIG}: trtllm_batch_decode_with_kv_cache_mla(return_lse, sinks); vllm.md section 4: MLA heads 320, 512, 576"),
    Claim("trtllm_ragged", "cuda:sm100", MLA, {"arch": ["sm103"], "causal": [False], "return_softmax_lse": TRUE, "context_parallel_size": [2]}, {}, f"{MP}: TRTLLM_RAGGED 10.x; {SIG}: is_causal, return_lse", P),
    Claim("flashinfer", "cuda:sm90", {}, {"arch": ["sm87", "sm110", "sm121"], "context_parallel_size": [2], "tree_mask": TRUE, "deterministic": TRUE, "max_decode_query_len": [8]}, {}, f"{FIR}; {VD} FLASHINFER dcp; {S2}: Deterministic; {SIG}: custom_mask"),
    Claim("flashinfer_mla", "cuda:sm90", MLA, {"arch": ["sm87", "sm121"], "kv_cache_dtype": ["fp8_e4m3"], "context_parallel_size": [2], "causal": [False], "return_softmax_lse": TRUE}, {}, f"{FIC}: FP8 kv_data_type on SM90; {FIR}; {VD} FLASHINFER_MLA dcp, non_causal"),
    Claim("flashinfer_mla", "cuda:sm90", MLA, {"arch": ["sm80", "sm90"]}, {}, f"{FIC}: decode and incremental prefill", P),
    Claim("flashinfer_mla_sparse", "cuda:sm100", DSA, {}, {"": [{"mla": None, "num_heads": 32}]}, f"{F}: sparse MLA"),
    Claim("flashmla", "cuda:sm90", MLA, {"dtype": HALVES, "kv_cache_dtype": ["fp8_e4m3"]}, {}, f"{V} FLASHMLA fp16, fp8_e4m3; {F}: fp8 dense is vLLM's extension"),
    Claim("flashmla_sparse", "cuda:sm90", DSA, {"return_softmax_lse": TRUE, "context_parallel_size": [2], "sinks": TRUE}, {"": [{"mla": None, "num_heads": 32}]}, f"{V} FLASHMLA_SPARSE LSE, dcp; {SIG}: flash_mla_sparse_fwd(attn_sink)"),
    Claim("cutlass_mla", "cuda:sm100", MLA, {"arch": ["sm103"], "return_softmax_lse": TRUE}, {"max_decode_query_len": [2]}, f"{VD} CUTLASS_MLA 10.x, dcp"),
    Claim("cudnn", "cuda:sm90", {}, {"arch": SM80_UP, "attention_type": ["encoder", "encoder_only"], "causal": [False], "return_softmax_lse": TRUE, "context_parallel_size": [2], "head_dim": [128], "": [{"head_dim": 192, "head_dim_v": 128}]}, {"head_dim": [64, 256], "sliding_window": [128], "softcap": [50.0], "sinks": TRUE}, f"{F}: cudnn sm80+; {CUDNNC}", P),
    Claim("triton", "cuda:sm90", {}, {"attention_chunk": [64], "softcap": [50.0], "return_softmax_lse": TRUE, "head_dim": [576], "head_dim_v": [64], "page_size": [1]}, {"head_dim": [584]}, f"{OWN}; {V} TRITON_ATTN_DIFFKV, heads to 576; {F}: page %16 or any"),
    Claim("flex_attention", "cuda:sm90", {}, {"attention_chunk": [64], "softcap": [50.0], "head_dim": [40, 72, 576], "tree_mask": TRUE, "return_softmax_lse": TRUE}, {"head_dim": [8]}, f"{SIG}: torch flex_attention(score_mod, block_mask, return_lse), which refuses head dims under 16; {V} FLEX_ATTENTION heads"),
    Claim("cpu", "cpu:x86_64_v4", {}, {"return_softmax_lse": TRUE, "softcap": [50.0], "max_decode_query_len": [8], "sinks": TRUE, "attention_chunk": [64], "mm_prefix": TRUE, "context_parallel_size": [2], "deterministic": TRUE, "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"], "head_dim_v": [64]}, {"graph": TRUE}, f"{OWN}: the whole contract; {V} CPU_ATTN graph NEVER"),
    Claim("aiter", "rocm:gfx942", {}, {"return_softmax_lse": TRUE, "softcap": [30.0]}, {}, "ROCm/aiter op_tests/test_batch_prefill.py: logits_soft_cap 30.0, return_lse"),
    Claim("aiter_unified", "rocm:gfx942", {}, {"sliding_window": [128], "softcap": [50.0], "head_dim": [32, 512]}, {"head_dim": [16, 576], "page_size": [1, 8]}, "ROCm/aiter aiter/ops/triton/attention/unified_attention.py (window_size, softcap) and its test (512); vLLM: block %16, head 32 or more"),
    Claim("aiter_unified", "rocm:gfx942", {}, {"arch": ["gfx942"]}, {}, f"{F}: unified attention", P),
    Claim("aiter_mla", "rocm:gfx942", MLA, {"max_decode_query_len": [4]}, {"max_decode_query_len": [5]}, "ROCm/aiter csrc/py_itfs_cu/asm_mla.cu: up to 4 query tokens"),
    Claim("aiter_mla_sparse", "rocm:gfx942", DSA, {}, {"": [{"mla": None, "num_heads": 32}]}, f"{F}: sparse MLA"),
    Claim("wave", "rocm:gfx942", {**FP16, **dim(64)}, {"head_dim": [64, 80]}, {"head_dim": [96, 128, 256], "page_size": [16]}, WAVE),
    Claim("wave", "rocm:gfx942", FP16, {"arch": ["gfx942"], "head_dim": [128]}, {"head_dim": [64, 80, 96]}, WAVE, P),
    Claim("ascend_mla", "npu:ascend910b", MLA, {"context_parallel_size": [2], "max_decode_query_len": [16]}, {"max_decode_query_len": [17]}, f"{A3}: LSE used by vllm CP on MLA decode; decode TND Sq <= 16"),
    Claim("mate", "musa:mp31", {}, {"head_dim": [8, 72, 96]}, {"head_dim": [4, 520]}, f"{S4}: head dim <= 512, rounded up"),
    Claim("mate_mla", "musa:mp31", MLA, {"causal": [False], "return_softmax_lse": TRUE}, {"page_size": [1, 16, 128]}, f"{S4}: flash_mla_with_kvcache(causal) -> (out, lse); tests use page 64 only"),
    Claim("dual_chunk_flash_attn", "cuda:sm90", {}, {}, {"": [{}]}, f"{F}: dual_chunk_flash_attn, gone from recent SGLang; no field of AttentionConfig asks for it"),
    Claim("torch", "npu:ascend910b", {}, {"arch": ["ascend910b", "ascend910c", "ascend950"]}, {"arch": ["ascend910a", "ascend310p"]}, BF16),
    Claim("rocm_attn", "rocm:gfx942", {"sliding_window": 128}, {}, {"causal": [False], "attention_type": ["encoder", "encoder_only"]}, f"{V} ROCM_ATTN has windows and encoders, but {RWIN}"),
]


def claim_rows() -> list[Row]:
    """Every entry of every claim as a row."""
    rows = []
    for number, claim in enumerate(CLAIMS):
        for good, fields in ((True, claim.yes), (False, claim.no)):
            for name, values in fields.items():
                for value in values:
                    device, changes = claim.device, {name: value} if name else dict(value)
                    if name == "arch":
                        device, changes = f"{device.partition(':')[0]}:{value}", {}
                    packages = None
                    if name == "packages":
                        packages, changes = value, {}
                    if name == "attention_type":
                        changes["causal"] = False
                    if name == "tree_mask":
                        changes["max_decode_query_len"] = 8
                    if name == "mla" or (name == "sparse" and "mla" not in claim.config):
                        changes = {**MLA, "sparse": name == "sparse"}
                    rows.append(Row(f"{claim.backend} {number} {'serves' if good else 'refuses'} {name} {value}", device,
                                    {**claim.config, **changes}, packages, claim.phase, claim.backend if good else ANY,
                                    None if good else (claim.backend, ""), claim.source, claim.backend))
    return rows


CHOICES: list[Row] = [*CUDA_ORDER, *CUDA_SHAPES, *CUDA_FEATURES, *CUDA_MLA, *ROCM_ROWS, *NPU_ROWS, *MUSA_ROWS, *CPU_ROWS, *ALIAS_ROWS, *ORDER_ROWS]
ROWS: list[Row] = [*CHOICES, *claim_rows()]

# Names users of the two engines type -> a backend that the name must lead to (field.md, aliases).
FIELD_ALIASES = {
    "torch_native": "torch", "torch_sdpa": "torch", "TORCH_SDPA": "torch", "CPU_ATTN": "cpu", "intel_amx": "cpu",
    "FLEX_ATTENTION": "flex_attention", "flex_attention": "flex_attention", "TRITON_ATTN": "triton", "triton": "triton",
    "TRITON_MLA": "triton_mla", "TREE_ATTN": "triton", "FLASH_ATTN": "flash_attn_2", "fa2": "flash_attn_2",
    "fa3": "flash_attn_3", "fa4": "flash_attn_4", "FLASH_ATTN_DIFFKV": "flash_attn_diffkv",
    "FLASH_ATTN_MLA": "flash_attn_mla", "FLASHINFER": "flashinfer", "TRTLLM_MHA": "trtllm_mha",
    "trtllm_mha": "trtllm_mha", "FLASHINFER_MLA": "flashinfer_mla", "TRTLLM_MLA": "trtllm_mla",
    "trtllm_mla": "trtllm_mla", "FLASHINFER_MLA_SPARSE": "flashinfer_mla_sparse", "FLASHMLA": "flashmla",
    "flashmla": "flashmla", "FLASHMLA_SPARSE": "flashmla_sparse", "CUTLASS_MLA": "cutlass_mla",
    "cutlass_mla": "cutlass_mla", "dual_chunk_flash_attn": "dual_chunk_flash_attn", "ascend": "ascend_mla",
    "ROCM_AITER_FA": "aiter", "aiter": "aiter", "ROCM_AITER_UNIFIED_ATTN": "aiter_unified", "ROCM_ATTN": "rocm_attn",
    "ROCM_AITER_MLA": "aiter_mla", "ROCM_AITER_MLA_SPARSE": "aiter_mla_sparse",
    "ROCM_AITER_TRITON_MLA": "aiter_triton_mla", "wave": "wave",
}
# sglang.md section 2, "Registered (23 names)", and the CLI's aliases of them.
SGLANG_NAMES = (
    "flashinfer", "llada2_cfg_flashinfer", "trtllm_mla", "cutedsl_mla", "tokenspeed_mla", "aiter", "wave", "ascend",
    "dsa", "nsa", "qsa", "dsv4", "compressed", "triton", "torch_native", "flex_attention", "flashmla", "fa3", "fa4",
    "trtllm_mha", "hpc_ops", "intel_amx", "minicpm_flashattn", "minicpm_flashinfer", "intel_xpu",
)
# vllm_backends.json, backends.
VLLM_NAMES = (
    "FLASH_ATTN", "FLASH_ATTN_DIFFKV", "TRITON_ATTN", "TRITON_ATTN_DIFFKV", "TRITON_FLASH_ATTN", "ROCM_ATTN",
    "ROCM_SEGMENTED_ATTN", "ROCM_AITER_MLA", "ROCM_AITER_TRITON_MLA", "ROCM_AITER_FA", "ROCM_AITER_MLA_SPARSE",
    "XPU_MLA_SPARSE", "FLASHINFER", "TRITON_FLASHINFER", "FLASHINFER_MLA", "TOKENSPEED_MLA", "FLASHINFER_MLA_SPARSE",
    "FLASHINFER_MLA_SPARSE_SM120", "FLASHINFER_MLA_SPARSE_SM90", "TRITON_MLA", "CUTLASS_MLA", "FLASHMLA",
    "FLASHMLA_SPARSE", "FLASHMLA_SPARSE_DSV4", "FLASHINFER_MLA_SPARSE_DSV4", "ROCM_FLASHMLA_SPARSE_DSV4",
    "FLASHMLA_SPARSE_DSV41", "FLASHINFER_MLA_SPARSE_DSV41", "ROCM_FLASHMLA_SPARSE_DSV41", "FLASHMLA_MEGA_ATTN_DSV41",
    "B12X", "FLASH_ATTN_MLA", "FLASH_ATTN_MLA_SPARSE", "FLASH_ATTN_MLA_SPARSE_FA4", "MINIMAX_M3_SPARSE", "CUTLASS_MSA",
    "TRITON_MSA", "STEP5_DSA", "NO_ATTENTION", "FLEX_ATTENTION", "HPC_ATTN", "ROCM_AITER_UNIFIED_ATTN", "CPU_ATTN",
    "CPU_MLA", "AMX_MLA", "TURBOQUANT", "ROCM_OCTAVE", "ULTRAQUANT", "TORCH_SDPA", "CUSTOM",
)

# Rows that HAL does not fulfil, and why. The source states what the vendor's kernel can do; where HAL's adapter
# does not pass it on yet, the declaration says so, and the row waits here. A row that turns green must leave.
NOT_YET: dict[str, str] = {
    **dict.fromkeys(("gfx942 graph", "aiter 38 serves graph True"), "the adapter of aiter holds nothing to capture yet"),
    "gfx942 e4m3": "aiter's adapter takes no fp8 cache",
    "aiter 38 serves kv_cache_dtype fp8_e4m3": "aiter's adapter takes no fp8 cache",
    "mp31 cp": "mate's adapter does not pass context parallelism on",
    "mate 49 serves context_parallel_size 2": "mate's adapter does not pass context parallelism on",
    "mp22 triton": "HAL's Triton kernels are not written, and what MUSA's Triton compiles of them is not known",
    "mp31 triton": "HAL's Triton kernels are not written, and what MUSA's Triton compiles of them is not known",
}

# Mutations that change no answer -> why. Keys as the test names them; a name that ends in * stands for all that
# begin so.
EQUIVALENT: dict[str, str] = {
    "flash_attn_3: head_dim_pairs any": "unequal head dims follow a rule of its own (head_reasons)",
    "flash_attn_diffkv: head_dim_pairs any": "unequal head dims follow a rule of its own (head_reasons)",
    "dual_chunk_flash_attn: *": "no configuration asks for dual-chunk attention, so it refuses every one",
    "cuda dense prefill sm90: flash_attn_2 <-> flash_attn_diffkv": "equal head dims against unequal ones",
    "cuda dense decode sm90: flash_attn_2 <-> flash_attn_diffkv": "equal head dims against unequal ones",
    "cuda dense prefill sm90: flash_attn_diffkv <-> flashinfer": "unequal head dims against equal ones",
    "cuda dense decode sm90: flash_attn_diffkv <-> flashinfer": "unequal head dims against equal ones",
    "cuda mla decode sm110/sm120/sm121: flashinfer_mla_sparse <-> torch": "fp8_ds_mla alone there, which torch has not",
    "wave: any head dim": "the head dims of each phase follow a rule of their own (extra_reasons)",
    "cuda mla prefill sm90: triton <-> flash_attn_mla": "flash_attn_3 has the packages of the one and the widths of the other",
    "rocm mla prefill gfx90a/gfx1100/gfx1201: torch <-> aiter_triton_mla": "no prefill of aiter_triton_mla on these",
}
