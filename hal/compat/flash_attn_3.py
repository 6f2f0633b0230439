"""flash_attn_3: where FlashAttention 3 keeps its CUDA extension. Code looks whether it is there, no more."""

from hal.compat.stand_ins import STAND_INS

__version__ = STAND_INS["3"].version
