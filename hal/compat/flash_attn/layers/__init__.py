"""flash_attn.layers: of it, rotary."""
