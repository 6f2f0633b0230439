"""The backends: one file a family. Adding one is one file and one line in BACKENDS."""

from __future__ import annotations

BACKENDS = {
    "flash_attn_3": "hal.backends.flash_attn:FlashAttention3",
    "flash_attn_2": "hal.backends.flash_attn:FlashAttention2",
    "aiter": "hal.backends.aiter:Aiter",
    "ascend": "hal.backends.ascend:Ascend",
    "mate": "hal.backends.mate:Mate",
    "torch": "hal.backends.torch_native:TorchNative",
}

# What users of vLLM, SGLang and transformers type. An alias of several backends is tried in order: the
# first that serves the platform and the configuration.
ALIASES = {
    "torch_native": ("torch",),
    "torch_sdpa": ("torch",),
    "TORCH_SDPA": ("torch",),
    "fa2": ("flash_attn_2",),
    "fa3": ("flash_attn_3", "mate"),
    "FLASH_ATTN": ("flash_attn_3", "flash_attn_2", "mate"),
    "ROCM_AITER_FA": ("aiter",),
}
