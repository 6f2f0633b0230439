"""The backends: one file a family. Adding one is one file and one line in BACKENDS."""

from __future__ import annotations

BACKENDS = {
    "flash_attn_3": "hal.backends.flash_attn:FlashAttention3",
    "flash_attn_2": "hal.backends.flash_attn:FlashAttention2",
    # CUDA
    "flash_attn_4": "hal.backends.flash_attn_4:FlashAttention4",
    "flash_attn_diffkv": "hal.backends.flash_attn_variants:FlashAttentionDiffKV",
    "flash_attn_mla": "hal.backends.flash_attn_variants:FlashAttentionMLA",
    "dual_chunk_flash_attn": "hal.backends.flash_attn_variants:DualChunkFlashAttention",
    "trtllm_mha": "hal.backends.trtllm:TrtllmMHA",
    "trtllm_mla": "hal.backends.trtllm:TrtllmMLA",
    "trtllm_ragged": "hal.backends.trtllm:TrtllmRagged",
    "flashinfer": "hal.backends.flashinfer:FlashInfer",
    "flashinfer_mla": "hal.backends.flashinfer:FlashInferMLA",
    "flashinfer_mla_sparse": "hal.backends.trtllm:FlashInferMLASparse",
    "flashmla": "hal.backends.flashmla:FlashMLA",
    "flashmla_sparse": "hal.backends.flashmla:FlashMLASparse",
    "cutlass_mla": "hal.backends.flashmla:CutlassMLA",
    "cudnn": "hal.backends.cudnn:CuDNN",
    # Any GPU, and CPU
    "triton": "hal.backends.triton:Triton",
    "triton_mla": "hal.backends.triton:TritonMLA",
    "flex_attention": "hal.backends.flex_attention:FlexAttention",
    "cpu": "hal.backends.cpu:CPU",
    "aiter": "hal.backends.aiter:Aiter",
    "ascend": "hal.backends.ascend:Ascend",
    "mate": "hal.backends.mate:Mate",
    # ROCm
    "rocm_attn": "hal.backends.rocm_attn:RocmAttn",
    "aiter_unified": "hal.backends.aiter_triton:AiterUnified",
    "aiter_mla": "hal.backends.aiter_mla:AiterMLA",
    "aiter_mla_sparse": "hal.backends.aiter_mla:AiterMLASparse",
    "aiter_triton_mla": "hal.backends.aiter_triton:AiterTritonMLA",
    "wave": "hal.backends.wave:Wave",
    # NPU
    "ascend_mla": "hal.backends.ascend_mla:AscendMLA",
    "ascend_310p": "hal.backends.ascend_310p:Ascend310P",
    # MUSA
    "mate_mla": "hal.backends.mate_mla:MateMLA",
    "torch": "hal.backends.torch_native:TorchNative",
}

# What users of vLLM, SGLang and transformers type. An alias of several backends is tried in order: the
# first that serves the platform and the configuration.
ALIASES = {
    "torch_native": ("torch",),
    "torch_sdpa": ("torch",),
    "TORCH_SDPA": ("torch",),
    "fa2": ("flash_attn_2",),
    "fa3": ("flash_attn_3", "flash_attn_mla", "mate", "mate_mla"),
    # 3 on sm90, 2 below it; on sm100 version 4 comes before 2, as in platforms/cuda.py.
    "FLASH_ATTN": ("flash_attn_3", "flash_attn_4", "flash_attn_2", "mate"),
    # CUDA: vLLM's names, then SGLang's. A dense backend refuses MLA and an MLA one needs it, so a name that means
    # both is one list. What decodes only brings its own for prefill (`prefill_with` in its declaration).
    "fa4": ("flash_attn_4",),
    "FLASH_ATTN_DIFFKV": ("flash_attn_diffkv",),
    "FLASH_ATTN_MLA": ("flash_attn_mla",),
    "FLASHINFER": ("trtllm_mha", "flashinfer"),
    "FLASHINFER_MLA": ("trtllm_mla", "flashinfer_mla"),
    "FLASHINFER_MLA_SPARSE": ("flashinfer_mla_sparse",),
    "FLASHINFER_MLA_SPARSE_SM120": ("flashinfer_mla_sparse",),
    "FLASHMLA": ("flashmla", "mate_mla"),
    "FLASHMLA_SPARSE": ("flashmla_sparse",),
    "CUTLASS_MLA": ("cutlass_mla",),
    "TRTLLM_RAGGED": ("trtllm_ragged",),
    "TRTLLM_MHA": ("trtllm_mha",),
    "TRTLLM_MLA": ("trtllm_mla",),
    "DUAL_CHUNK_FLASH_ATTN": ("dual_chunk_flash_attn",),
    "flashinfer": ("flashinfer", "flashinfer_mla"),
    "dsa": ("flashmla_sparse", "flashinfer_mla_sparse"),
    "nsa": ("flashmla_sparse", "flashinfer_mla_sparse"),
    # Any GPU, and CPU
    "TRITON_ATTN": ("triton",),
    "TRITON_ATTN_DIFFKV": ("triton",),
    "TRITON_MLA": ("triton_mla",),
    "triton": ("triton", "triton_mla"),
    "FLEX_ATTENTION": ("flex_attention",),
    "TREE_ATTN": ("triton", "flashinfer", "flex_attention", "cpu", "torch"),
    "CPU_ATTN": ("cpu",),
    "intel_amx": ("cpu",),
    # ROCm: vLLM 0.33's names, and SGLang's "aiter", which serves models with MLA too.
    "ROCM_AITER_FA": ("aiter",),
    "ROCM_AITER_UNIFIED_ATTN": ("aiter_unified",),
    "ROCM_ATTN": ("rocm_attn",),
    "ROCM_AITER_MLA": ("aiter_mla",),
    "ROCM_AITER_MLA_SPARSE": ("aiter_mla_sparse",),
    "ROCM_AITER_TRITON_MLA": ("aiter_triton_mla",),
    "aiter": ("aiter", "aiter_mla", "aiter_mla_sparse"),
    # NPU: SGLang's one name for both.
    "ascend": ("ascend", "ascend_mla", "ascend_310p"),
}
