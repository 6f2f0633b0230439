"""cuDNN's fused attention: prefill of fresh sequences, dense and expanded MLA."""

from __future__ import annotations

from hal.backend import AttentionBackend
from hal.backends.nvidia import FLASHINFER, SM80_UP
from hal.capabilities import HeadDims


class CuDNN(AttentionBackend):
    """flashinfer.cudnn.cudnn_batch_prefill_with_kv_cache over ragged K and V; it is given no pages.

    Its LSE is in base 2 and padded per sequence: the adapter's to convert. torch's SDPA reaches the same library
    for batches of one length, which serving does not have.
    """

    name = "cudnn"
    packages = (FLASHINFER,)
    platforms = {"cuda": SM80_UP}
    phases = ("prefill",)
    reads_cache = False
    # cudnn/prefill.py: "head_dim_qk must be 128 or 192, and head_dim_vo must be 128".
    head_dims = HeadDims(only=(128,))
    head_dim_pairs = ((192, 128),)
    mla_prefill = ((192, 128), (128, 128))
    # context_parallel: each rank prefills the tokens it was given, all of them, and reads no shard of a cache.
    features = frozenset({"non_causal", "return_softmax_lse", "context_parallel"})
    attention_types = ("decoder", "encoder", "encoder_only")
    adapter = False
    refusals = {"sliding_window": "cudnn_batch_prefill_with_kv_cache has no such argument",
                "sinks": "cudnn_batch_prefill_with_kv_cache has no such argument",
                "softcap": "cudnn_batch_prefill_with_kv_cache has no such argument"}
    targets = {"prefill": "{module}.cudnn.cudnn_batch_prefill_with_kv_cache"}
    sources = ("flashinfer-python 0.7.2.post1, signatures of flashinfer/cudnn/prefill.py",
               "FlashInfer fb28d724 (0.6.18), flashinfer/cudnn/prefill.py (head dims, LSE)")
