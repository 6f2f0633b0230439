"""Physical layouts of the paged cache, one string each: backends that share a cache must say the same."""

from __future__ import annotations

from hal.backend import AttentionBackend

# K and V in a buffer of their own, as hal.kv_cache allocates them; other strides are fine.
PAGED = AttentionBackend.kv_layout
# MLA in one tensor, as FlashMLA, FlashInfer, aiter and MATE read it: k_cache and v_cache are views of it.
MLA_JOINT = "[num_pages, page_size, kv_lora_rank + qk_rope_head_dim], latent then rope"
# MLA in two contiguous buffers, as Ascend's ops read it.
MLA_APART = "[num_pages, page_size, 1, kv_lora_rank] and [num_pages, page_size, 1, qk_rope_head_dim]"
# vLLM's paged attention in HIP; x elements of head_dim are 16 bytes.
ROCM_PAGED = "[num_pages, num_kv_heads, head_dim/x, page_size, x] and [num_pages, num_kv_heads, head_dim, page_size]"
