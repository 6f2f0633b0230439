"""The FlashAttention family as data: which version serves what on which GPU, and faults that must be seen.

SERVED is written from the vendors' sources named at each row, not from declarations. FAULTS change one line of an
adapter; the named case of the conformance grid must then fail.
"""
# ruff: noqa: E501 - a row stays on its line

from __future__ import annotations

from typing import Any, NamedTuple

from hal.config import MLADims

MLA = {"mla": True, "num_heads": 16, "softmax_scale": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {}, "page 16": {"page_size": 16}, "window": {"sliding_window": 128}, "softcap": {"softcap": 30.0},
    "sinks": {"sinks": True}, "chunk": {"attention_chunk": 64}, "lse": {"return_softmax_lse": True},
    "fp8": {"kv_cache_dtype": "fp8_e4m3"}, "non-causal": {"causal": False}, "head_dim 256": {"head_dim": 256},
    "192/128": {"head_dim": 192, "head_dim_v": 128}, "mla": MLA,
    "mla 256/256": {**MLA, "mla": MLADims(qk_nope_head_dim=192, v_head_dim=256)},
}
# Who decodes each of CONFIGS, in order; "-": none of the family; "m": flash_attn_mla.
# 2: csrc/flash_attn/flash_api.cpp: pages of 256 ("must be divisible by 256"), fp16 and bf16, V as wide as K; no sinks and
# no chunk in flash_attn_interface.py. 3: hopper/: sm90 alone; sinks in SGLang's and vLLM's builds (sgl-attn flash_api.cpp
# "sinks", vllm flash_api.cpp "s_aux"), no chunk in vLLM's. 4: cute/interface.py: no pages on sm8x and sm12x, 256 on sm100
# without seqused_k, no chunk; its public function has no descales, hence no fp8.
TWO, THREE, FOUR = "2-22--2-22---", "3333-333333mm", "44444-4-4-4--"
SINKS, VLLM, NONE = "33333333333mm", "33333-33333mm", "-------------"
BOTH = "44444-4-424--"  # 4 where it serves, else 2 (platforms/cuda.py, sm100)
OTHERS = ("sm80", "sm86", "sm89", "sm110", "sm120", "sm121")
# (archs, packages) -> decode.
SERVED: dict[tuple[tuple[str, ...], str], str] = {
    ((*OTHERS, "sm90", "sm100", "sm103"), "flash-attn"): TWO,
    (("sm90",), "flash-attn-3"): THREE, (("sm90",), "sglang-kernel"): SINKS, (("sm90",), "vllm"): VLLM,
    (("sm90",), "flash-attn,flash-attn-3"): THREE,
    ((*OTHERS, "sm100", "sm103"), "flash-attn-3"): NONE, ((*OTHERS, "sm100", "sm103"), "sglang-kernel"): NONE,
    ((*OTHERS, "sm100", "sm103"), "vllm"): NONE,
    (("sm100", "sm103"), "flash-attn-4"): FOUR, (("sm100", "sm103"), "flash-attn,flash-attn-4"): BOTH,
    # Not in the platform's order there: by name alone (sm90, sm110), or not at all.
    ((*OTHERS, "sm90"), "flash-attn-4"): NONE,
    ((*OTHERS, "sm90", "sm100", "sm103"), ""): NONE,
}
# Prefill of the two with MLA, over expanded K and V: (192, 128) and (256, 256).
PREFILL: dict[tuple[tuple[str, ...], str], str] = {
    ((*OTHERS, "sm90", "sm100", "sm103"), "flash-attn"): "-2",
    (("sm90",), "flash-attn-3"): "33", (("sm90",), "sglang-kernel"): "33", (("sm90",), "vllm"): "33",
    (("sm100", "sm103"), "flash-attn-4"): "44", ((*OTHERS, "sm90"), "flash-attn-4"): "--",
    ((*OTHERS, "sm100", "sm103"), "vllm"): "--",
}
NAMES = {"2": "flash_attn_2", "3": "flash_attn_3", "4": "flash_attn_4", "m": "flash_attn_mla"}
_FOUR = "flash_attn.cute.interface.flash_attn_varlen_func"
_VLLM = "vllm.vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"
# package -> the vendor function of (decode over pages, prefill of packed keys).
FUNCTIONS = {
    "flash-attn": ("flash_attn.flash_attn_interface.flash_attn_with_kvcache", "flash_attn.flash_attn_interface.flash_attn_varlen_func"),
    "flash-attn-3": ("flash_attn_interface.flash_attn_with_kvcache", "flash_attn_interface.flash_attn_varlen_func"),
    "sglang-kernel": ("sgl_kernel.flash_attn.flash_attn_with_kvcache", "sgl_kernel.flash_attn.flash_attn_varlen_func"),
    "vllm": (_VLLM, _VLLM), "flash-attn-4": (_FOUR, _FOUR),
}


class Fault(NamedTuple):
    """backend on arch with package; in `file`, `before` becomes `after`; `case` names a case of its grid that fails.

    context: the case runs inside a forward context."""

    backend: str
    arch: str
    package: str
    file: str
    before: str
    after: str
    case: str
    context: bool = False


def _two(file: str, before: str, after: str, case: str, context: bool = False) -> Fault:
    return Fault("flash_attn_2", "sm80", "flash-attn", f"flash_attn_{file}", before, after, case, context)


def _three(file: str, before: str, after: str, case: str, context: bool = False, package: str = "flash-attn-3",
           backend: str = "flash_attn_3") -> Fault:
    return Fault(backend, "sm90", package, f"flash_attn_{file}", before, after, case, context)


def _four(before: str, after: str, case: str, arch: str = "sm100") -> Fault:
    return Fault("flash_attn_4", arch, "flash-attn-4", "flash_attn_4", before, after, case)


_SCALE = "scale if softmax_scale is None else softmax_scale"
_D = "dense"
_EMPTY = "masked_fill_(lse == float(\"inf\"), float(\"-inf\"))"
FAULTS = (
    _two("v2", f"lse.{_EMPTY}", "lse", "dense empty rows: decode bfloat16 8/2x128 return_softmax_lse"),
    _two("v2", "(owner + 1) * most - (cu_seqlens_q[1:][owner] - row)", "owner * most + row - cu_seqlens_q[owner]", "dense plain: extend bfloat16 8/2x128"),
    _two("v2", "cache_seqlens=seqlens,\n                        cache_batch_idx=index", "cache_seqlens=None,\n                        cache_batch_idx=index", "dense plain: decode bfloat16 8/2x128"),
    _two("v2", f"mask = {{\"softmax_scale\": {_SCALE}", "mask = {\"softmax_scale\": softmax_scale", "dense spelling: decode bfloat16 8/2x128 scale=0.31 scale of the config"),
    _two("v2", "\"window_size\": window_size", "\"window_size\": (-1, -1)", "dense sliding_window: decode bfloat16 8/2x128 sliding_window=9"),
    _two("v2", "\"softcap\": softcap}", "\"softcap\": 0.0}", "dense softcap: extend bfloat16 8/2x128 softcap=5.0"),
    _two("v2", "lse.transpose(0, 1).reshape(lse.shape[1], -1)", "lse.reshape(lse.shape[1], -1)", "dense return_softmax_lse: extend bfloat16 8/2x128 return_softmax_lse"),
    _two("v2", "seqlens.cumsum(0, dtype=torch.int32)", "seqlens", "dense plain: extend bfloat16 8/2x128", True),
    _two("cache", "cu_new[1:] - cu_new[:-1] if new is None else new", "0", "dense calls: extend bfloat16 8/2x128 append"),
    _two("cache", "offset = row - cu_new[owner]", "offset = row", "dense calls: extend bfloat16 8/2x128 append"),
    _two("cache", "page_table.index_select(0, cache_batch_idx)", "page_table[:len(cache_batch_idx)]", "dense calls: decode bfloat16 8/2x128 cache_batch_idx"),
    _three("v2", "    out, lse = result[:2]\n", "    out, lse = result\n", "dense return_softmax_lse: decode bfloat16 8/2x128 return_softmax_lse"),
    _three("v3", "value.reshape(1, 1).expand(batch, num_kv_heads)", "value", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128"),
    _three("v2", "torch.where(lse.isinf(), sinks.float()[:, None], lse)", "lse", "dense empty rows: decode bfloat16 8/2x128 sinks return_softmax_lse", package="sglang-kernel"),
    _three("v3", "given.update(k=k, v=v, ", "given.update(k=k, v=k, ", "dense calls: decode bfloat16 8/2x128 append one each"),
    _three("v3", "q, k = cache.turned(q, k, seqlens,", "_, k = cache.turned(q, k, seqlens,", "dense calls: extend bfloat16 8/2x128 append rotary interleaved=False"),
    _three("v3", "(seqlens, cu_seqlens_q, given", "(seqlens, None, given", "dense plain: extend bfloat16 8/2x128", True),
    _three("v3", "given.get(\"softcap\", 0.0) > 0", "False", "dense softcap: decode bfloat16 8/2x128 softcap=5.0", True),
    _three("v3", "given.get(\"causal\", False)", "False", "dense plain: extend bfloat16 8/2x128", True),
    _three("v3", f"scale_for(name, {_SCALE}, qv)\n        num_splits", "softmax_scale\n        num_splits", "dense spelling: decode bfloat16 8/2x128 scale=0.31 scale of the config"),
    _three("v3", "given[build.sinks] = sinks", "given[build.sinks] = None", "dense sinks: decode bfloat16 8/2x128 sinks", package="vllm"),
    _three("cache", "_spread(device, (cache_seqlens,), (batch,))", "cache_seqlens", "dense spelling: extend bfloat16 8/2x128 int cache_seqlens"),
    _four("None if left < 0 else left", "left", "dense plain: decode bfloat16 8/2x128"),
    _four("seqused_k=cache.lengths(cache_seqlens, batch, q.device)", "seqused_k=None", "dense plain: decode bfloat16 8/2x128"),
    _four("return (out, softmax_lse) if lse else out", "return out, softmax_lse", "dense plain: prefill bfloat16 8/2x128"),
    _four("learnable_sink=sinks", "learnable_sink=None", "dense sinks: decode bfloat16 8/2x128 sinks"),
    _four(f"softmax_scale={_SCALE}", "softmax_scale=softmax_scale", "dense spelling: prefill bfloat16 8/2x128 scale=0.31 scale of the config"),
    _four("page_table=table, softcap=softcap", "page_table=table, softcap=0.0", "dense softcap: decode bfloat16 8/2x128 softcap=5.0"),
    _four("page_table = cache.rows(page_table, None, cu_seqlens_q.shape[0] - 1)", "page_table = None", "dense plain: paged_varlen bfloat16 8/2x128 paged_varlen"),
    _four("window_size=window, learnable", "window_size=(None, None), learnable", "dense sliding_window: prefill bfloat16 8/2x128 sliding_window=9", "sm90"),
    _three("variants", "both[..., :first], both[..., first:]", "both[..., :first], both[..., :second]", "dense plain: decode bfloat16 8/2x192-128", backend="flash_attn_diffkv"),
    _three("v2", f"lse.{_EMPTY}", "lse.neg()", "dense return_softmax_lse: decode bfloat16 8/2x192-128 return_softmax_lse", backend="flash_attn_diffkv"),
    _three("v3", "cache_seqlens=seqlens, page_table=table", "cache_seqlens=None, page_table=table", "dense plain: decode bfloat16 8/2x192-128", backend="flash_attn_diffkv"),
    _three("v3", "v_cache.shape[-1], q.dtype", "q.shape[-1], q.dtype", "dense plain: decode bfloat16 8/2x192-128", True, backend="flash_attn_diffkv"),
    _three("v3", "_MASK = frozenset({\"causal\", \"window_size\", \"softcap\"})", "_MASK = frozenset({\"causal\", \"softcap\"})", "dense sliding_window: decode bfloat16 8/2x192-128 sliding_window=9", backend="flash_attn_diffkv"),
    _three("v3", "_ROTARY | {\"cache_leftpad\"}", "_ROTARY", "dense calls: decode bfloat16 8/2x192-128 cache_leftpad", backend="flash_attn_diffkv"),
    _three("v3", "result = attend(q, k_cache, v_cache, qv=qv,", "result = attend(q, k_cache, v_cache, qv=None,", "mla plain: decode bfloat16 16/1x576-512 mla", backend="flash_attn_mla"),
    _three("variants", "        return rope, latent\n", "        return latent, rope\n", "mla plain: decode bfloat16 16/1x576-512 mla", backend="flash_attn_mla"),
    _three("v3", f"scale_for(name, {_SCALE}, qv)\n        num_splits", "0.0417\n        num_splits", "mla plain: extend bfloat16 16/1x576-512 mla", backend="flash_attn_mla"),
    _three("cache", "    for tokens, cache in ((k, k_cache), (v, v_cache)):", "    for tokens, cache in ((k, k_cache),):", "mla calls: extend bfloat16 16/1x576-512 mla append", backend="flash_attn_mla"),
    _three("v3", "scale_for(name, scale if softmax_scale is None else softmax_scale, qv), **given)", "(64 + 512) ** -0.5, **given)", "mla calls: prefill bfloat16 16/1x576-512 mla varlen_qv", backend="flash_attn_mla"),
    _three("v3", "lse.view(-1, *shape[:2]).transpose(0, 1)", "lse.view(shape[0], -1, shape[1])", "mla return_softmax_lse: decode bfloat16 16/1x576-512 mla return_softmax_lse", package="vllm", backend="flash_attn_mla"),
    _three("v3", "block_table=page_table, q_v=flat_qv", "block_table=page_table[:, :1], q_v=flat_qv", "mla plain: extend bfloat16 16/1x576-512 mla", package="vllm", backend="flash_attn_mla"),
)
