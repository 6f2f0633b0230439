"""The adapter of FlashAttention 3 in three builds: upstream's, SGLang's and vLLM's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hal.backends import flash_attn_cache as cache
from hal.backends.flash_attn_v2 import out_and_lse, splits
from hal.backends.nvidia import VLLM_INSTALL
from hal.backends.refuse import keep, refuse, require
from hal.context import STATE
from hal.contract import VARLEN, WITH_KVCACHE
from hal.packages import Package
from hal.plan import Planner

if TYPE_CHECKING:
    from torch import Tensor

    from hal.config import AttentionConfig

Function = Callable[..., Any]
UPSTREAM = Package("flash-attn-3", "flash_attn_interface", metadata=("flash_attn_3",),
                   install="build it from the folder hopper/ of Dao-AILab/flash-attention")
# Called sgl-kernel before 0.4. The minimum is the oldest release whose signatures were read; it has sinks.
SGLANG = Package("sglang-kernel", "sgl_kernel.flash_attn", "pip install sglang-kernel", minimum="0.3.21",
                 metadata=("sgl-kernel",))
VLLM = Package("vllm", "vllm.vllm_flash_attn.flash_attn_interface", VLLM_INSTALL, minimum="0.32.0")

_DESCALES = frozenset({"q_descale", "k_descale", "v_descale"})
_MASK = frozenset({"causal", "window_size", "softcap"})
_ROTARY = frozenset({"rotary_cos", "rotary_sin", "rotary_seqlens", "rotary_interleaved"})
_APPEND = _ROTARY | {"cache_leftpad"}
_CP = frozenset({"cp_world_size", "cp_rank", "cp_tot_seqused_k"})


@dataclass(frozen=True)
class Build:
    """What a provider's functions take. appends: k and v are written by the kernel. sinks: its name for them. lse: its
    varlen function's flag. kvcache, varlen: arguments that are handed on as they are."""

    package: Package
    appends: bool
    sinks: str | None
    lse: str
    kvcache: frozenset[str]
    varlen: frozenset[str]


_HINTS = frozenset({"pack_gqa", "sm_margin"})
_OWN = _MASK | _HINTS | {"attention_chunk"}
_UPSTREAM_KVCACHE = _OWN | _APPEND | {"scheduler_metadata"}
_UPSTREAM_VARLEN = _OWN | {"num_splits", "seqused_q", "seqused_k"}
BUILDS = {build.package: build for build in (
    Build(UPSTREAM, True, None, "return_attn_probs", _UPSTREAM_KVCACHE, _UPSTREAM_VARLEN | {"deterministic"}),
    Build(SGLANG, True, "sinks", "return_softmax_lse", _UPSTREAM_KVCACHE, _UPSTREAM_VARLEN),
    # flash_attn_interface.py hands the kernel neither rotary embeddings nor a left padding, nor new keys; its build of
    # hopper/ has no attention_chunk.
    Build(VLLM, False, "s_aux", "return_softmax_lse", _MASK | _CP | {"scheduler_metadata"},
          _MASK | _CP | {"num_splits"}))}


def build_of(vendor: ModuleType, package: Package, name: str) -> Build:
    """Raises RuntimeError for a build that is too old: no version tells, those before and after 203b9b3d (August 2025)
    all call themselves 3.0.0."""
    build = BUILDS[package]
    if getattr(vendor, "FA3_AVAILABLE", True) is False:  # vLLM's; a call would miss its op
        raise RuntimeError(f"{package.distribution} was built without version 3 ({name}: "
                           f"{getattr(vendor, 'FA3_UNAVAILABLE_REASON', None) or 'it gives no reason'})")
    if build.lse not in inspect.signature(vendor.flash_attn_varlen_func).parameters:
        raise RuntimeError(f"{package.module}.flash_attn_varlen_func has no {build.lse} ({name}: builds of "
                           f"{package.distribution} from September 2025 on); {package.install}")
    return build


def with_kvcache(vendor: ModuleType, config: AttentionConfig, build: Build, name: str, mla: bool = False) -> Function:
    """mla: q and k_cache are the rope parts, qv and v_cache the latent ones; K and V are always written here then, and
    only what MLA models have is taken."""
    scale, one_split = config.softmax_scale, config.deterministic
    fp8 = config.stored_dtype == "fp8_e4m3" and not mla
    appends = build.appends and not mla
    attend = _vllm(vendor) if build.package is VLLM else vendor.flash_attn_with_kvcache
    honoured = build.kvcache | (_DESCALES if fp8 else frozenset())
    if mla:
        honoured &= {"causal", "scheduler_metadata", *_HINTS, *_CP}
    schedule = Planner(_scheduler(vendor)) if hasattr(vendor, "get_scheduler_metadata") else None

    def flash_attn_with_kvcache(q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None, *, qv: Any = None,
                                cache_seqlens: Any = None, cache_batch_idx: Any = None, page_table: Any = None,
                                cu_seqlens_q: Any = None, cu_seqlens_k_new: Any = None,
                                max_seqlen_q: int | None = None, softmax_scale: float | None = None,
                                num_splits: int = 0, sinks: Any = None, return_softmax_lse: bool = False,
                                **given: Any) -> Any:
        keep(honoured, name, WITH_KVCACHE, given)
        if mla:
            require(name, "for MLA", qv=qv)
        else:
            refuse(name, WITH_KVCACHE, {"qv": qv})
        softmax_scale = scale_for(name, scale if softmax_scale is None else softmax_scale, qv)
        num_splits = splits(name, num_splits, one_split)
        batch, most = cache.queries(name, q, cu_seqlens_q, max_seqlen_q)
        table = cache.rows(page_table, cache_batch_idx, batch)
        index = cache_batch_idx if table is None else None
        seqlens = cache.lengths(cache_seqlens, batch, q.device)
        rotary = given.get("rotary_cos") is not None
        if k is not None:
            require(name, "with k", v=v, cache_seqlens=cache_seqlens)
            if given.get("cp_world_size", 1) != 1:  # each rank would store all of them
                refuse(f"{name} with cp_world_size {given['cp_world_size']}", WITH_KVCACHE, {"k": k})
            local = tuple(given.get("window_size", (-1, -1))) != (-1, -1)
            # A window as wide as the table counts as none in the kernel, and q's rotation hangs on that.
            turns_by_width = rotary and local and not given.get("causal")
            if not appends or turns_by_width or not cache.fused(q, k, cu_seqlens_q, cu_seqlens_k_new, batch, most):
                if rotary:
                    require(name, "with rotary_cos", rotary_sin=given.get("rotary_sin"))
                    moving = bool(given.get("causal") or local or given.get("attention_chunk"))
                    turn = {n.removeprefix("rotary_"): given.pop(n, None) for n in _ROTARY}
                    q, k = cache.turned(q, k, seqlens, cu_seqlens_q, cu_seqlens_k_new, moving, **turn)
                    rotary = False
                seqlens = cache.write(k, v, k_cache, v_cache, seqlens, cu_seqlens_k_new, table, index, batch)
                k = v = None
        else:
            refuse(f"{name} without k", WITH_KVCACHE, {"v": v, "cu_seqlens_k_new": cu_seqlens_k_new,
                                                       "rotary_cos": given.pop("rotary_cos", None)})
        if index is not None and build.package is VLLM:
            table, index = index[:, None], None  # without such an argument: each row of the cache is a page
        width = k_cache.shape[1] * (1 if table is None else table.shape[1])
        if fp8:
            _for_fp8(given, name, WITH_KVCACHE, q)
            _spread_descales(given, batch, k_cache.shape[-2], q.device)
        if rotary and table is not None:
            _lengthen(given, width)
        if schedule is not None and seqlens is not None and STATE.current is not None \
                and given.get("scheduler_metadata") is None:
            given["scheduler_metadata"] = schedule(
                q.device, (seqlens, cu_seqlens_q, given.get("cache_leftpad")),
                (batch, most, width, q.shape[-2], k_cache.shape[-2], q.shape[-1],
                 v_cache.shape[-1], q.dtype, None if table is None else k_cache.shape[1],
                 0 if k is None else k.shape[-3], given.get("causal", False),
                 tuple(given.get("window_size", (-1, -1))), given.get("attention_chunk", 0),
                 given.get("softcap", 0.0) > 0, num_splits, given.get("pack_gqa"), given.get("sm_margin", 0)))
        _pass_sinks(given, name, build, sinks)
        if build.package is VLLM:
            given["max_seqlen_k"] = width
        else:
            given.update(k=k, v=v, cu_seqlens_k_new=None, cache_batch_idx=index)  # packed ones are written by now
        result = attend(q, k_cache, v_cache, qv=qv, cache_seqlens=seqlens, page_table=table, cu_seqlens_q=cu_seqlens_q,
                        max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale, num_splits=num_splits,
                        return_softmax_lse=return_softmax_lse, **given)
        return out_and_lse(result, sinks) if return_softmax_lse else result

    return flash_attn_with_kvcache


def varlen_func(vendor: ModuleType, config: AttentionConfig, build: Build, name: str, kvcache: Function,
                mla: bool = False) -> Function:
    """Packed keys. Pages go to the function with a cache: upstream's has none here, and SGLang's drops page_table."""
    scale, one_split = config.softmax_scale, config.deterministic
    fp8 = config.stored_dtype == "fp8_e4m3" and config.mla is None
    honoured = build.varlen | (_DESCALES if fp8 else frozenset())
    if mla:
        honoured &= {"causal", "num_splits", "deterministic", *_HINTS, *_CP}
    qv_name = "q_v" if build.package is VLLM else "qv"
    varlen = vendor.flash_attn_varlen_func

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any = None,
                               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, *, qv: Any = None,
                               seqused_k: Any = None, page_table: Any = None, softmax_scale: float | None = None,
                               sinks: Any = None, return_attn_probs: bool = False, return_softmax_lse: bool = False,
                               **given: Any) -> Any:
        lse = return_attn_probs or return_softmax_lse
        if mla:
            refuse(f"{name} in the varlen function", VARLEN, {"page_table": page_table})
        if page_table is not None:
            refuse(f"{name} with page_table", VARLEN, {"cu_seqlens_k": cu_seqlens_k,
                                                       "seqused_q": given.pop("seqused_q", None),
                                                       "deterministic": given.pop("deterministic", False)})
            require(name, "with page_table", seqused_k=seqused_k)
            return kvcache(q, k, v, qv=qv, cache_seqlens=seqused_k, page_table=page_table, cu_seqlens_q=cu_seqlens_q,
                           max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale, sinks=sinks, return_softmax_lse=lse,
                           **{"num_splits": 1, **given})
        given["seqused_k"] = seqused_k
        keep(honoured, name, VARLEN, given)
        if mla:
            require(name, "for MLA", qv=qv)
        else:
            refuse(name, VARLEN, {"qv": qv})
        require(name, "without page_table", cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
                max_seqlen_k=max_seqlen_k)
        given["num_splits"] = splits(name, given.get("num_splits", 1), one_split)
        if fp8:
            _for_fp8(given, name, VARLEN, q)
            _spread_descales(given, cu_seqlens_q.shape[0] - 1, k.shape[-2], q.device)
        _pass_sinks(given, name, build, sinks)
        given[qv_name] = qv
        if build.package is VLLM:
            given.update(fa_version=3, block_table=None, scheduler_metadata=None)
        result = varlen(q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
                        max_seqlen_k=max_seqlen_k, **{build.lse: lse},
                        softmax_scale=scale_for(name, scale if softmax_scale is None else softmax_scale, qv), **given)
        return out_and_lse(result, sinks) if lse else result

    return flash_attn_varlen_func


def scale_for(name: str, scale: float | None, qv: Any) -> float | None:
    """The vendors' default with qv, (64 + 512) ** -0.5, is right for no model; vLLM's of q alone neither."""
    if qv is not None and scale is None:
        raise ValueError(f"softmax_scale None is not supported with qv ({name}: a number, here or in the config)")
    return scale


def _pass_sinks(given: dict[str, Any], name: str, build: Build, sinks: Any) -> None:
    if build.sinks is None:
        refuse(name, WITH_KVCACHE, {"sinks": sinks})
        return
    if sinks is not None and str(sinks.dtype) != "torch.bfloat16":  # both builds check it
        raise ValueError(f"sinks {sinks.dtype} is not supported ({name}: torch.bfloat16)")
    given[build.sinks] = sinks


def _for_fp8(given: dict[str, Any], name: str, contract: inspect.Signature, q: Tensor) -> None:
    """Descales beside 16 bits, in a prefill of an fp8 cache say, are ignored by the kernels without a word."""
    if q.dtype.itemsize > 1:
        refuse(f"{name} with q of {q.dtype}", contract, {n: given.pop(n) for n in list(given) if n in _DESCALES})


def _spread_descales(given: dict[str, Any], batch: int, num_kv_heads: int, device: Any) -> None:
    """Descales as the kernel wants them, [B, Hkv]; the contract allows scalars."""
    import torch

    for name in _DESCALES & given.keys():
        value = given[name]
        if isinstance(value, (int, float)):
            given[name] = torch.full((batch, num_kv_heads), value, dtype=torch.float32, device=device)
        elif value is not None and value.numel() == 1:
            given[name] = value.reshape(1, 1).expand(batch, num_kv_heads)


def _lengthen(given: dict[str, Any], width: int) -> None:
    """With pages the kernel checks for as many rotary rows as the table can hold, whatever it reads."""
    from torch.nn import functional

    for name in ("rotary_cos", "rotary_sin"):
        if given.get(name) is not None and given[name].shape[0] < width:
            given[name] = functional.pad(given[name], (0, 0, 0, width - given[name].shape[0]))


def _scheduler(vendor: ModuleType) -> Function:
    """`make` of the schedule that one step's layers share. Its widths are the call's: the kernel resolves windows and
    splits by them, in both functions, and takes no notice where they differ."""

    def scheduler_metadata(device: Any, cache_seqlens: Any, cu_seqlens_q: Any, cache_leftpad: Any, batch: int,
                           max_seqlen_q: int, width: int, num_heads: int, num_kv_heads: int, head_dim: int,
                           head_dim_v: int, dtype: Any, page_size: int | None, max_seqlen_k_new: int, causal: bool,
                           window: tuple[int, int], chunk: int, softcap: bool, num_splits: int,
                           pack_gqa: bool | None, sm_margin: int) -> Any:
        return vendor.get_scheduler_metadata(
            batch, max_seqlen_q, width, num_heads, num_kv_heads, head_dim, cache_seqlens, qkv_dtype=dtype,
            headdim_v=head_dim_v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k_new=None,
            cache_leftpad=cache_leftpad, page_size=page_size, max_seqlen_k_new=max_seqlen_k_new, causal=causal,
            window_size=window, has_softcap=softcap, num_splits=num_splits, pack_gqa=pack_gqa, sm_margin=sm_margin,
            **({"attention_chunk": chunk} if chunk else {}))

    return scheduler_metadata


def _make_starts(device: Any, batch: int, queries: int) -> Tensor:
    import torch

    return (torch.arange(batch + 1, device=device) * queries).int()


_starts = Planner(_make_starts)


def _vllm(vendor: ModuleType) -> Function:
    """vLLM's one function with the names of upstream's for a cache. It takes packed queries alone."""
    varlen = vendor.flash_attn_varlen_func

    def attend(q: Any, k_cache: Any, v_cache: Any, *, qv: Any, cache_seqlens: Any, page_table: Any, cu_seqlens_q: Any,
               max_seqlen_q: int | None, max_seqlen_k: int, return_softmax_lse: bool,
               scheduler_metadata: Any = None, **given: Any) -> Any:
        shape, flat, flat_qv = q.shape, q, qv
        if cu_seqlens_q is None:
            max_seqlen_q = q.shape[1]
            cu_seqlens_q = _starts(q.device, (), (q.shape[0], q.shape[1]))
            flat = q.reshape(-1, *q.shape[-2:])
            flat_qv = None if qv is None else qv.reshape(-1, *qv.shape[-2:])
        if cache_seqlens is None:
            cache_seqlens = cache.lengths(max_seqlen_k, cu_seqlens_q.shape[0] - 1, q.device)
        result = varlen(flat, k_cache, v_cache, cu_seqlens_q=cu_seqlens_q, max_seqlen_q=max_seqlen_q,
                        max_seqlen_k=max_seqlen_k, seqused_k=cache_seqlens, block_table=page_table, q_v=flat_qv,
                        return_softmax_lse=return_softmax_lse, scheduler_metadata=scheduler_metadata, fa_version=3,
                        **given)
        if flat is q:
            return result
        out, lse = result if return_softmax_lse else (result, None)
        out = out.view(*shape[:-1], out.shape[-1])
        if lse is None:
            return out
        return out, lse.view(-1, *shape[:2]).transpose(0, 1).contiguous()

    return attend
