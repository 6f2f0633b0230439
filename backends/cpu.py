"""cpu: HAL's own C++ kernels (hal/kernels/cpu), the whole contract on any CPU.

Each call is one C function on data pointers: lengths and tables are read there, where they lie, and what would read or
write outside the arguments' memory is refused before anything is written. The refusal comes back as a status; the
sentence is made by the validation that HAL_CHECK=1 runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.backend import AttentionBackend, Bound
from hal.capabilities import CALLS, FEATURES, HeadDims, PageSizes
from hal.config import ATTENTION_TYPES, DTYPES, AttentionConfig
from hal.kernels.cpu import call, library, memory

if TYPE_CHECKING:
    from torch import Tensor

    from hal.packages import Package
    from hal.platform import Platform


class CPU(AttentionBackend):
    """Results depend on a sequence alone: neither on the number of threads nor on what else is in the batch."""

    name = "cpu"
    platforms = {"cpu": ()}
    dtypes = DTYPES
    kv_cache_dtypes = ("fp8_e4m3", "fp8_e5m2")
    head_dims = HeadDims(low=32, high=576)
    head_dim_pairs = None
    page_sizes = PageSizes(16)
    features = frozenset(FEATURES)
    calls = frozenset(CALLS)
    mla_prefill = ((192, 128), (256, 256), (128, 128))
    attention_types = ATTENTION_TYPES
    max_decode_query_len = None
    nan_safe_tail = True
    targets = {"prefill": "hal.kernels.cpu hal_cpu_attention", "decode": "hal.kernels.cpu hal_cpu_attention"}
    sources = ("hal/contract.py",)

    @classmethod
    def not_built(cls) -> str | None:
        return library.missing()

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        kernels = library.load()
        return Bound(*_functions(config, kernels.attention, kernels.isa()))

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        """As of hal.kv_cache, on huge pages where Linux gives them."""
        from hal.kv_cache import new_kv_cache

        k, v = (memory.empty(shaped) for shaped in new_kv_cache(config, "meta", num_pages, page_size))
        return k.zero_(), v.zero_()

    @classmethod
    def write_kv_cache(cls, config: AttentionConfig) -> Callable[..., None]:
        kernels = library.load()
        return _writer(kernels.write, kernels.isa())


def _functions(config: AttentionConfig, attention: Any, isa: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two functions of hal.contract, parameters spelled out: a call binds them faster than any code could."""
    import torch

    from hal.validation import check_varlen, check_with_kvcache

    threads, grad, empty = torch.get_num_threads, torch.is_grad_enabled, torch.empty
    float32, bfloat16 = torch.float32, torch.bfloat16
    config_scale = config.softmax_scale

    def run(q: Tensor, v: Tensor, packed: bool, tensors: dict[str, Any], numbers: tuple[int, ...], window: Any,
            scale: float | None, softcap: float, out: Tensor | None, want_lse: bool) -> Any:
        """One call; None where it is not valid. numbers: those of call.NUMBERS before and after the window's."""
        shape = q.shape
        if scale is None:
            scale = config_scale
            if scale is None:
                if tensors["qv"] is not None:
                    return None
                scale = shape[-1] ** -0.5
        if grad() and any(x is not None and x.requires_grad for x in tensors.values()):
            return None
        if out is None:
            out = empty((*shape[:-1], v.shape[-1]), dtype=q.dtype if q.dtype.itemsize > 1 else bfloat16)
        tensors["out"] = out
        if want_lse:
            lse = tensors["lse"] = empty((shape[1], shape[0]) if packed else (shape[0], shape[2], shape[1]),
                                         dtype=float32)
        sinks = tensors["sinks"]
        if sinks is not None and sinks.dtype.itemsize == 8:
            tensors["sinks"] = sinks.float()
        left, right = window
        varlen, causal, *others = numbers
        status = attention(call.call(tensors, (varlen, causal, left, right, *others, isa), scale, softcap))
        if status == library.OK:
            return (out, lse) if want_lse else out
        if status == library.NO_MEMORY:
            raise MemoryError("the cpu backend got no memory for its partial results")
        return None

    def flash_attn_with_kvcache(
            q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, qv: Any = None, rotary_cos: Any = None,
            rotary_sin: Any = None, cache_seqlens: Any = None, cache_batch_idx: Any = None, cache_leftpad: Any = None,
            page_table: Any = None, cu_seqlens_q: Any = None, cu_seqlens_k_new: Any = None, max_seqlen_q: Any = None,
            rotary_seqlens: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
            softmax_scale: Any = None, causal: bool = False, window_size: Any = (-1, -1), attention_chunk: int = 0,
            softcap: float = 0.0, rotary_interleaved: bool = True, scheduler_metadata: Any = None, num_splits: int = 0,
            pack_gqa: Any = None, sm_margin: int = 0, return_softmax_lse: bool = False, *, sinks: Any = None,
            out: Any = None, tree_mask: Any = None, mm_prefix_ranges: Any = None, sparse_indices: Any = None,
            cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Any = None) -> Any:
        if scheduler_metadata is not None or pack_gqa is not None or sm_margin:
            _refuse_hints(scheduler_metadata=scheduler_metadata, pack_gqa=pack_gqa, sm_margin=sm_margin)
        problem: Exception | None = None
        try:
            number = cache_seqlens if isinstance(cache_seqlens, int) else -1
            result = run(
                q, v_cache, cu_seqlens_q is not None,
                {"q": q, "k": k_cache, "v": v_cache, "k_new": k, "v_new": v, "qv": qv, "rotary_cos": rotary_cos,
                 "rotary_sin": rotary_sin, "cache_seqlens": None if number >= 0 else cache_seqlens,
                 "cache_batch_idx": cache_batch_idx, "cache_leftpad": cache_leftpad, "page_table": page_table,
                 "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k_new, "rotary_seqlens": rotary_seqlens,
                 "q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale, "sinks": sinks,
                 "tree_mask": tree_mask, "mm_prefix_ranges": mm_prefix_ranges, "sparse_indices": sparse_indices,
                 "cp_tot_seqused_k": cp_tot_seqused_k},
                (0, causal, attention_chunk, rotary_interleaved, cp_world_size, cp_rank, number,
                 -1 if max_seqlen_q is None else max_seqlen_q, -1, threads(), num_splits),
                window_size, softmax_scale, softcap, out, return_softmax_lse)
            if result is not None:
                return result
        except call.NOT_CALLABLE as error:
            problem = error
        check_with_kvcache(
            config, q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v, qv=qv, rotary_cos=rotary_cos,
            rotary_sin=rotary_sin, cache_seqlens=cache_seqlens, cache_batch_idx=cache_batch_idx,
            cache_leftpad=cache_leftpad, page_table=page_table, cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k_new=cu_seqlens_k_new, max_seqlen_q=max_seqlen_q, rotary_seqlens=rotary_seqlens,
            q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, softmax_scale=softmax_scale, causal=causal,
            window_size=window_size, attention_chunk=attention_chunk, softcap=softcap,
            rotary_interleaved=rotary_interleaved, scheduler_metadata=scheduler_metadata, num_splits=num_splits,
            pack_gqa=pack_gqa, sm_margin=sm_margin, return_softmax_lse=return_softmax_lse, sinks=sinks, out=out,
            tree_mask=tree_mask, mm_prefix_ranges=mm_prefix_ranges, sparse_indices=sparse_indices,
            cp_world_size=cp_world_size, cp_rank=cp_rank, cp_tot_seqused_k=cp_tot_seqused_k)
        raise _unnamed("flash_attn_with_kvcache") from problem

    def flash_attn_varlen_func(
            q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None, max_seqlen_q: Any = None,
            max_seqlen_k: Any = None, seqused_q: Any = None, seqused_k: Any = None, softmax_scale: Any = None,
            causal: bool = False, qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
            window_size: Any = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
            pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False, *,
            return_softmax_lse: bool = False, page_table: Any = None, sinks: Any = None, out: Any = None,
            tree_mask: Any = None, mm_prefix_ranges: Any = None, sparse_indices: Any = None, cp_world_size: int = 1,
            cp_rank: int = 0, cp_tot_seqused_k: Any = None) -> Any:
        if pack_gqa is not None or sm_margin:
            _refuse_hints(pack_gqa=pack_gqa, sm_margin=sm_margin)
        problem: Exception | None = None
        try:
            result = run(
                q, v, True,
                {"q": q, "k": k, "v": v, "qv": qv, "page_table": page_table, "cu_seqlens_q": cu_seqlens_q,
                 "cu_seqlens_k": cu_seqlens_k, "q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale,
                 "sinks": sinks, "tree_mask": tree_mask, "mm_prefix_ranges": mm_prefix_ranges,
                 "sparse_indices": sparse_indices, "cp_tot_seqused_k": cp_tot_seqused_k, "seqused_q": seqused_q,
                 "seqused_k": seqused_k},
                (1, causal, attention_chunk, 0, cp_world_size, cp_rank, -1,
                 -1 if max_seqlen_q is None else max_seqlen_q, -1 if max_seqlen_k is None else max_seqlen_k, threads(),
                 num_splits),
                window_size, softmax_scale, softcap, out, return_softmax_lse or return_attn_probs)
            if result is not None:
                return result
        except call.NOT_CALLABLE as error:
            problem = error
        check_varlen(
            config, q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k, seqused_q=seqused_q, seqused_k=seqused_k, softmax_scale=softmax_scale,
            causal=causal, qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale,
            window_size=window_size, attention_chunk=attention_chunk, softcap=softcap, num_splits=num_splits,
            pack_gqa=pack_gqa, deterministic=deterministic, sm_margin=sm_margin, return_attn_probs=return_attn_probs,
            return_softmax_lse=return_softmax_lse, page_table=page_table, sinks=sinks, out=out, tree_mask=tree_mask,
            mm_prefix_ranges=mm_prefix_ranges, sparse_indices=sparse_indices, cp_world_size=cp_world_size,
            cp_rank=cp_rank, cp_tot_seqused_k=cp_tot_seqused_k)
        raise _unnamed("flash_attn_varlen_func") from problem

    return flash_attn_with_kvcache, flash_attn_varlen_func


def _refuse_hints(**hints: Any) -> None:
    """Tuning hints that these kernels have no knob for are refused, not dropped; num_splits is honoured."""
    for name, value in hints.items():
        if value is not None and value != 0:
            default = 0 if name == "sm_margin" else None
            raise ValueError(f"{name}: got {value!r}, which the cpu backend does not honour; it is a tuning hint: "
                             f"leave it at {default!r}")


def _unnamed(function: str) -> Exception:
    return RuntimeError(f"the cpu kernels refused a call of {function} in which HAL's validation finds no mistake: "
                        "please report the arguments' shapes, strides and lengths")


def _writer(write: Any, isa: int) -> Callable[..., None]:
    import torch

    from hal import kv_cache

    threads, is_compiling = torch.get_num_threads, torch.compiler.is_compiling

    def write_kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                       k_scale: Tensor | float | None = None, v_scale: Tensor | float | None = None) -> None:
        if is_compiling():  # the same in torch ops, which a tracer can follow
            return kv_cache.write_kv_cache(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale)
        problem: Exception | None = None
        try:
            tensors: dict[str, Tensor | None] = {
                "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slot_mapping}
            numbers = []
            for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
                if isinstance(scale, torch.Tensor):
                    tensors[name] = scale.float()
                numbers.append(0.0 if scale is None or name in tensors else float(scale))
            if write(call.write(tensors, threads(), isa, *numbers)) == library.OK:
                return None
        except call.NOT_CALLABLE as error:
            problem = error
        # It raises before it writes; should it find no mistake, what it wrote is thrown away.
        kv_cache.write_kv_cache(k, v, k_cache.clone(), v_cache.clone(), slot_mapping, k_scale, v_scale)
        raise _unnamed("write_kv_cache") from problem

    return write_kv_cache
