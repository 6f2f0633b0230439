"""Huawei Ascend NPUs: torch_npu's fused inference attention, dense models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.backends.refuse import keep, mask, refuse, require
from hal.capabilities import HeadDims, PageSizes
from hal.contract import VARLEN, WITH_KVCACHE
from hal.packages import Package

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig
    from hal.platform import Platform

_NOTHING: frozenset[str] = frozenset()
# num_kv_heads * head_dim of a page's row in layout BnBsH; sequences in layout TND (op-plugin's document).
_WIDEST, _LONGEST_LIST = 65535, 4096
# NPUs with npu_fused_infer_attention_score: its document lists Atlas A2 and A3, op-plugin calls its V5 on 950.
# On the others op-plugin lets the call through and CANN fails ("Ascend310P is not supported").
_ARCHS = ("ascend910b", "ascend910c", "ascend950")
_MISSING = {"ascend310p": " but ops and a cache layout of its own",
            "ascend910a": ": its document lists Atlas A2 and A3 only"}


def missing_op_reasons(name: str, arch: str | None) -> list[str]:
    """Why an NPU outside _ARCHS can't run the op that both of Ascend's backends end in."""
    if arch not in _MISSING:
        return []
    return [f"arch {arch} has no npu_fused_infer_attention_score{_MISSING[arch]} ({name}: {', '.join(_ARCHS)})"]


class Ascend(AttentionBackend):
    """npu_fused_infer_attention_score in layout TND over pages of 128 tokens; sparse_mode 3 is causal.

    Left out on purpose, because the op would answer with other numbers or the reports contradict each other:
    windows (is pre_tokens W or W - 1? vllm-ascend and SGLang differ), non-causal (vllm-ascend#13699: without
    a mask TND gave uniform averages), softcap (the op has none), sinks (only
    npu_fused_infer_attention_score_v2). """

    name = "ascend"
    # From 2.10.0 on npu_scatter_pa_kv_cache always has cache_mode; of the older ones only some post releases.
    packages = (Package("torch-npu", "torch_npu", "install torch_npu for this torch, and CANN", minimum="2.10.0",
                        metadata=("torch_npu",)),)
    platforms = {"npu": _ARCHS}
    head_dims = HeadDims(only=(64, 128, 192))
    head_dim_pairs = ((192, 128),)
    # Other sizes gave wrong numbers without an error (sglang#38196); 128 is what Huawei's document
    # recommends.
    page_sizes = PageSizes(128, only=(128,))
    features = frozenset({"return_softmax_lse"})
    # TND: "decode Sq per request <= 16" (vllm-ascend).
    max_decode_query_len = 16
    # SGLang captures it in NPUGraphs by updating the host lengths; HAL's adapter has no graph state yet.
    refusals = {
        "sliding_window": "vllm-ascend passes pre_tokens W and SGLang W - 1 to the same op: not certain which is right",
        "non_causal": "it gave uniform averages and no error: vllm-ascend#13699",
        "softcap": "the op has no such argument and would ignore it",
        "sinks": "only npu_fused_infer_attention_score_v2 has them",
    }
    targets = {"prefill": "torch_npu.npu_fused_infer_attention_score",
               "decode": "torch_npu.npu_fused_infer_attention_score"}
    sources = ("Ascend op-plugin, document of torch_npu.npu_fused_infer_attention_score",
               "torch_npu 2.13.0, op schemas", "CANN ops-transformer (head dims of TND: 64, 128, 192)")

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        reasons = missing_op_reasons(cls.name, platform.arch)
        width = config.num_kv_heads * max(config.head_dim, config.v_dim)
        if width > _WIDEST:
            reasons.append(f"num_kv_heads * head_dim {width} is not supported (ascend: up to {_WIDEST})")
        if config.num_heads > 256 or config.num_heads // config.num_kv_heads > 64:
            reasons.append(f"num_heads {config.num_heads} with num_kv_heads {config.num_kv_heads} is not "
                           "supported (ascend: up to 256 heads, up to 64 per KV head)")
        return reasons

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        import torch_npu

        run = _run(torch_npu.npu_fused_infer_attention_score, config, _causal_mask(platform.torch_device))
        return Bound(_kvcache(run), _varlen(run))

    @classmethod
    def write_kv_cache(cls, config: AttentionConfig) -> Callable[..., None]:
        """Through npu_scatter_pa_kv_cache: k, v [num_tokens, Hkv, D(v)] in the cache's dtype."""
        import torch_npu

        def write_kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                           k_scale: Any = None, v_scale: Any = None) -> None:
            for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
                if scale is not None:
                    raise ValueError(f"{name} is not supported (ascend: {name} None, its cache is not fp8)")
            for name, new, cached in (("k", k, k_cache), ("v", v, v_cache)):
                fits = new.shape[1:] == cached.shape[2:] and new.dtype == cached.dtype
                if not fits or not cached.is_contiguous():
                    raise ValueError(f"{name} {new.dtype} {tuple(new.shape)} does not fit its cache (ascend: "
                                     f"contiguous, here {cached.dtype} {tuple(cached.shape)})")
            # The op has no rule for -1 slots, so they are filtered, which costs a synchronisation.
            keep_rows = slot_mapping >= 0
            torch_npu.npu_scatter_pa_kv_cache(key=k[keep_rows], value=v[keep_rows], key_cache=k_cache,
                                              value_cache=v_cache, slot_mapping=slot_mapping[keep_rows],
                                              cache_mode="Norm")  # its default is another layout

        return write_kv_cache


@cache
def _causal_mask(device: str) -> Tensor:
    """The compressed mask that sparse modes 2, 3 and 4 read: 1 above the diagonal means masked out."""
    import torch

    return torch.triu(torch.ones(2048, 2048, dtype=torch.int8, device=device), 1)


def _run(op: Callable[..., Any], config: AttentionConfig, atten_mask: Tensor) -> Callable[..., Any]:
    """One TND call. q_ends: where each sequence ends, without the leading 0. kv_lens: per sequence."""
    scale = config.scale

    def run(q: Tensor, k: Tensor, v: Tensor, q_ends: list[int], kv_lens: list[int], page_table: Tensor | None,
            softmax_scale: float | None, causal: bool, window_size: Any, lse: bool) -> Any:
        causal, window = mask(causal, window_size)
        q_lens = [end - start for start, end in zip([0, *q_ends], q_ends)]
        if len(q_lens) > _LONGEST_LIST:
            raise ValueError(f"cu_seqlens_q of {len(q_lens)} sequences is not supported "
                             f"(ascend: up to {_LONGEST_LIST})")
        if not causal and max(q_lens, default=0) > 1:
            raise ValueError(f"causal False is not supported with {max(q_lens)} query tokens "
                             "(ascend: causal True)")
        if window != (-1, -1):
            raise ValueError(f"window_size {tuple(window_size)} is not supported (ascend: (-1, -1))")
        short = next(((n, m) for n, m in zip(q_lens, kv_lens) if m < n), None)
        if short is not None:
            raise ValueError(f"a sequence of {short[1]} keys for {short[0]} queries is not supported "
                             "(ascend: at least as many keys; what rows without keys give is not documented)")
        # Lengths of paged keys are per sequence, of packed keys cumulative.
        lengths = kv_lens if page_table is not None else list(accumulate(kv_lens))
        out, softmax_lse = op(
            q, k, v, atten_mask=atten_mask, sparse_mode=3, input_layout="TND", actual_seq_lengths=q_ends,
            actual_seq_lengths_kv=lengths, block_table=page_table, num_heads=q.shape[1],
            num_key_value_heads=config.num_kv_heads, block_size=128 if page_table is not None else 0,
            scale=scale if softmax_scale is None else softmax_scale, softmax_lse_flag=lse)
        # LSE [total_q, Hq, 1], natural logarithm.
        return (out, softmax_lse.squeeze(-1).transpose(0, 1)) if lse else out

    return run


def _pages(name: str, pages: Tensor) -> Tensor:
    """[num_pages, 128, Hkv * D]: a cache with the heads apart would be read as another layout."""
    if pages.shape[1] != 128 or not pages.is_contiguous():
        raise ValueError(f"{name} {tuple(pages.shape)} with strides {pages.stride()} is not supported "
                         "(ascend: contiguous [num_pages, 128, num_kv_heads, head_dim])")
    return pages.view(pages.shape[0], 128, -1)


def _kvcache(run: Callable[..., Any]) -> Callable[..., Any]:
    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, *, cache_seqlens: Any = None,
                                page_table: Any = None, cu_seqlens_q: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                causal: bool = False, window_size: Any = (-1, -1),
                                return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_NOTHING, "ascend", WITH_KVCACHE, given)
        require("ascend", "by flash_attn_with_kvcache", page_table=page_table, cache_seqlens=cache_seqlens)
        batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
        # The op takes lengths from the host: a copy per call for now, which the forward context will share.
        kv_lens = [cache_seqlens] * batch if isinstance(cache_seqlens, int) else cache_seqlens.tolist()
        if cu_seqlens_q is not None:
            q_ends, packed = cu_seqlens_q[1:].tolist(), q
        else:
            q_ends, packed = [q.shape[1] * (i + 1) for i in range(batch)], q.reshape(-1, *q.shape[2:])
        _check_longest(max_seqlen_q, q_ends)
        result = run(packed, _pages("k_cache", k_cache), _pages("v_cache", v_cache), q_ends, kv_lens,
                     page_table, softmax_scale, causal, window_size, return_softmax_lse)
        if cu_seqlens_q is not None:
            return result
        if not return_softmax_lse:
            return result.view(*q.shape[:-1], -1)
        lse = result[1].reshape(-1, batch, q.shape[1]).transpose(0, 1)
        return result[0].view(*q.shape[:-1], -1), lse

    return flash_attn_with_kvcache


def _varlen(run: Callable[..., Any]) -> Callable[..., Any]:
    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *,
                               seqused_k: Any = None, page_table: Any = None,
                               softmax_scale: float | None = None, causal: bool = False,
                               window_size: Any = (-1, -1), return_attn_probs: bool = False,
                               return_softmax_lse: bool = False, **given: Any) -> Any:
        keep(_NOTHING, "ascend", VARLEN, given)
        q_ends = cu_seqlens_q[1:].tolist()
        _check_longest(max_seqlen_q, q_ends)
        if page_table is not None:
            refuse("ascend with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k})
            require("ascend", "with page_table", seqused_k=seqused_k)
            k, v, kv_lens = _pages("k", k), _pages("v", v), seqused_k.tolist()
        else:
            refuse("ascend without page_table", VARLEN, {"seqused_k": seqused_k})
            require("ascend", "without page_table", cu_seqlens_k=cu_seqlens_k)
            kv_lens = cu_seqlens_k.diff().tolist()
            _check_longest(max_seqlen_k, cu_seqlens_k[1:].tolist(), "max_seqlen_k")
        return run(q, k, v, q_ends, kv_lens, page_table, softmax_scale, causal, window_size,
                   return_attn_probs or return_softmax_lse)

    return flash_attn_varlen_func


def _check_longest(longest: int | None, ends: list[int], name: str = "max_seqlen_q") -> None:
    # The op takes no such argument, so it can only be wrong.
    seen = max((end - start for start, end in zip([0, *ends], ends)), default=0)
    if longest is not None and longest < seen:
        raise ValueError(f"{name} {longest} is not supported for this call (ascend: at least {seen}, the "
                         "longest sequence)")
