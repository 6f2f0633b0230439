"""The calls that the adapters' tests make: every argument of the contract, and the vendor functions' stand-ins.

The stand-ins have the real signatures (ci/contracts, any release) and answer with shapes: what is proven with them is
which function is called with which arguments, and that nothing is dropped. They say nothing about numbers.
"""

from __future__ import annotations

import contextlib
import functools
import types
import unittest.mock
from collections.abc import Iterator
from typing import Any, NamedTuple

import contract_data
import torch
from emulators.common import Call, Vendor

from hal import AttentionConfig, Platform, forward_context, registry
from hal.packages import Package, numbers

B, H, HKV, D, PAGES = 2, 4, 2, 128, 3
INF = float("inf")


class Adapter(NamedTuple):
    """backend, vendor module, platform, page size it is called with, and the configurations that change its calls."""

    backend: str
    module: str
    platform: str
    page_size: int
    configs: tuple[dict[str, Any], ...] = ({},)

    @property
    def package(self) -> Package:
        return next(p for p in registry.get(self.backend).packages if p.module == self.module)


_FP8, _SINKS = {"kv_cache_dtype": "fp8_e4m3"}, {"sinks": True, "sliding_window": 3}
_VLLM = "vllm.vllm_flash_attn.flash_attn_interface"
_ABSORBED = ({"mla": True, "num_kv_heads": 1, "softmax_scale": 0.1},)
ADAPTERS = {
    "fa3": Adapter("flash_attn_3", "flash_attn_interface", "cuda:sm90", 64, ({}, _FP8)),
    "fa3_sglang": Adapter("flash_attn_3", "sgl_kernel.flash_attn", "cuda:sm90", 64, ({}, _FP8, _SINKS)),
    "fa3_vllm": Adapter("flash_attn_3", _VLLM, "cuda:sm90", 64, ({}, _FP8, _SINKS)),
    "fa2": Adapter("flash_attn_2", "flash_attn.flash_attn_interface", "cuda:sm80", 256),
    "fa4": Adapter("flash_attn_4", "flash_attn.cute.interface", "cuda:sm100", 128, ({}, _SINKS)),
    "diffkv": Adapter("flash_attn_diffkv", "flash_attn_interface", "cuda:sm90", 64),
    "diffkv_sglang": Adapter("flash_attn_diffkv", "sgl_kernel.flash_attn", "cuda:sm90", 64, ({}, _SINKS)),
    "diffkv_vllm": Adapter("flash_attn_diffkv", _VLLM, "cuda:sm90", 64, ({}, _SINKS)),
    "mla": Adapter("flash_attn_mla", "flash_attn_interface", "cuda:sm90", 64, _ABSORBED),
    "mla_sglang": Adapter("flash_attn_mla", "sgl_kernel.flash_attn", "cuda:sm90", 64, _ABSORBED),
    "mla_vllm": Adapter("flash_attn_mla", _VLLM, "cuda:sm90", 64, _ABSORBED),
    "mate": Adapter("mate", "mate.mha_interface", "musa:mp31", 64, ({}, _SINKS)),
    "mate_mla": Adapter("mate_mla", "mate.mha_interface", "musa:mp31", 64, _ABSORBED),
    "aiter": Adapter("aiter", "aiter.ops.mha", "rocm:gfx942", 16),
    "ascend": Adapter("ascend", "torch_npu", "npu:ascend910b", 128, ({}, _SINKS)),
    "ascend_mla": Adapter("ascend_mla", "torch_npu", "npu:ascend910b", 128, _ABSORBED),
    "ascend_310p": Adapter("ascend_310p", "torch_npu", "npu:ascend310p", 128),
}
# Adapters of absorbed MLA take other tensors than the calls below: latent_call makes theirs.
LATENT = ("mate_mla", "mla", "mla_sglang", "mla_vllm", "ascend_mla")
DENSE = tuple(name for name in ADAPTERS if name not in LATENT)
# What a vendor calls once a step, before the attention; and what masks and caches are made and looked at with.
_PLANS = ("get_scheduler_metadata", "npu_format_cast", "get_npu_format")


def claimed(package: Package) -> list[str]:
    """Releases with a contract that the package's version range takes, oldest first; one without a version always."""
    return [release for release in contract_data.load(package.distribution).releases
            if package.minimum is None or not numbers(release) or numbers(release) >= numbers(package.minimum)]


class Recorder:
    """The vendor module of an adapter at one release (default: the newest), answering with shapes."""

    def __init__(self, module: str, release: str | None = None) -> None:
        package = next(p for p in (a.package for a in ADAPTERS.values()) if p.module == module)
        self._module = module
        release = release or claimed(package)[-1]
        bare = Vendor(package.distribution, release)
        own = {name: name.removeprefix(f"{module}.") for name in bare.functions if name.startswith(f"{module}.")}
        self.vendor = Vendor(package.distribution, release,
                             {name: functools.partial(_answer, module, last) for name, last in own.items()
                              if "." not in last or last.endswith(".out")})
        if module == "torch_npu":
            self.vendor.modules[module].npu = types.SimpleNamespace(  # type: ignore[attr-defined]
                is_current_stream_capturing=lambda: False)
            self.vendor.modules[module]._C = types.SimpleNamespace(  # type: ignore[attr-defined]
                _npu_getOption=lambda name: b"", _npu_setOption=lambda option: None)

    @property
    def module(self) -> types.ModuleType:
        return self.vendor.modules[self._module]

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """(function, all its arguments) of every call so far, but for those that make plans."""
        made = [(call.function.rpartition(".")[2], call.arguments) for call in self.vendor.calls]
        return [call for call in made if call[0] not in _PLANS]


_IN_PLACE = ("_npu_flash_attention", "_npu_paged_attention", "_npu_paged_attention_splitfuse", "_npu_reshape_and_cache")


def _answer(module: str, function: str, a: types.SimpleNamespace) -> Any:
    """The vendor's results: kvcache of FlashAttention 3 and MATE adds two, varlen of 2 one; +inf: no keys."""
    if function in ("npu_format_cast", "get_npu_format"):
        return a.input if function == "npu_format_cast" else 29
    if function in _IN_PLACE and hasattr(a, "out"):
        a.out.zero_()
    if function == "npu_scatter_pa_kv_cache" or function.endswith(".out") or function in _IN_PLACE:
        return None
    if function.endswith("_get_max_workspace"):
        return torch.zeros(1)
    if module == "torch_npu":
        q, lse = a.query, getattr(a, "softmax_lse_flag", False) or getattr(a, "return_softmax_lse", False)
        width = a.value.shape[-1] // (1 if a.block_table is None else a.num_key_value_heads)
        return torch.zeros(*q.shape[:2], width), torch.zeros(*q.shape[:2], 1) if lse else torch.empty(0)
    if function == "get_scheduler_metadata":
        return torch.zeros(4 * a.batch_size, dtype=torch.int32)
    q, given = a.q, vars(a)
    if module in ("flash_attn.cute.interface", _VLLM):  # two values, or (4) a pair of which one is None
        out = torch.zeros(*q.shape[:-1], a.v.shape[-1])
        lse = torch.full((q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0]), -INF)
        if module == _VLLM:
            return (out, lse) if a.return_softmax_lse else out
        return out, lse if a.return_lse else None
    if module == "mate.mha_interface" and given.get("qv") is not None:
        return torch.zeros(a.qv.shape), torch.zeros(q.shape[:-1] if q.dim() == 4 else (q.shape[1], q.shape[0]))
    lse_shape = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    out, lse = torch.zeros(*q.shape[:-1], D), torch.zeros(lse_shape)
    lse.view(-1)[0] = {"mate.mha_interface": -INF}.get(module, INF)
    if not (given.get("return_softmax_lse") or given.get("return_attn_probs") or given.get("return_lse")):
        return out
    if function == "flash_attn_with_kvcache" and module != "flash_attn.flash_attn_interface":
        return out, lse, torch.empty(0), torch.empty(0)
    if function == "flash_attn_varlen_func" and module == "flash_attn.flash_attn_interface":
        return out, lse, None
    return out, lse


def ints(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.int32)


def kvcache_call(adapter: str, **more: Any) -> dict[str, Any]:
    """A paged decode call that every adapter accepts."""
    page = ADAPTERS[adapter][3]
    shape = (8, HKV * D // 16, page, 16) if adapter == "ascend_310p" else (8, page, HKV, D)
    return {"q": torch.zeros(B, 1, H, D), "k_cache": torch.zeros(shape), "v_cache": torch.zeros(shape),
            "cache_seqlens": ints(5, 7),
            "page_table": ints(*range(B * PAGES)).reshape(B, PAGES), "causal": True, **more}


def varlen_call(adapter: str, **more: Any) -> dict[str, Any]:
    """A packed prefill call that every adapter accepts: sequences of 2 and 3 tokens."""
    return {"q": torch.zeros(5, H, D), "k": torch.zeros(5, HKV, D), "v": torch.zeros(5, HKV, D),
            "cu_seqlens_q": ints(0, 2, 5), "cu_seqlens_k": ints(0, 2, 5), "max_seqlen_q": 3,
            "max_seqlen_k": 3, "causal": True, **more}


def paged_varlen_call(adapter: str, **more: Any) -> dict[str, Any]:
    call = kvcache_call(adapter)
    return {**varlen_call(adapter), "k": call["k_cache"], "v": call["v_cache"], "cu_seqlens_k": None,
            "max_seqlen_k": None, "seqused_k": ints(5, 7), "page_table": call["page_table"], **more}


def latent_call(adapter: str = "mate_mla", **more: Any) -> dict[str, Any]:
    """A paged decode call over absorbed MLA: q is the rope part, the caches are two views of one tensor, or (Ascend)
    two tensors."""
    joint = torch.zeros(8, ADAPTERS[adapter].page_size, 1, 576)
    rope, latent = joint[..., 512:], joint[..., :512]
    if adapter == "ascend_mla":
        rope, latent = rope.contiguous(), latent.contiguous()
    call = {**kvcache_call(adapter), "k_cache": rope, "v_cache": latent, **more}
    call["q"] = call["q"][..., :64]
    call |= {name: call[name][..., :1, :1].expand(-1, -1, 1, dim) for name, dim in (("k", 64), ("v", 512))
             if name in call}
    if "out" in call:
        call["out"] = torch.ones(*call["q"].shape[:-1], 512)
    return {"qv": torch.zeros(*call["q"].shape[:-1], 512), **call}


def run(bound: Any, function: str, call: dict[str, Any]) -> Any:
    return getattr(bound, function)(**call)


# --- every argument of the contract, and what each adapter does with it ---

PACKED = {"q": torch.zeros(3, H, D), "max_seqlen_q": 2}
NEW = {"k": torch.zeros(B, 1, HKV, D), "v": torch.zeros(B, 1, HKV, D)}
# Argument -> (a value that is not the default, what must come with it).
KVCACHE_SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "k": (torch.ones(B, 1, HKV, D), NEW),
    "v": (torch.ones(B, 1, HKV, D), NEW),
    "qv": (torch.ones(B, 1, H, 512), {}),
    "rotary_cos": (torch.ones(512, 8), NEW),
    "rotary_sin": (torch.ones(512, 8), NEW),
    "cache_seqlens": (ints(6, 8), {}),
    "cache_batch_idx": (ints(1, 0), {}),
    "cache_leftpad": (ints(1, 0), {}),
    "page_table": (ints(*range(6, 0, -1)).reshape(2, 3), {}),
    "cu_seqlens_q": (ints(0, 1, 3), PACKED),
    "cu_seqlens_k_new": (ints(0, 1, 2), NEW),
    "max_seqlen_q": (1, {}),
    "rotary_seqlens": (ints(1, 1), NEW),
    "q_descale": (torch.full((B, HKV), 2.0), {}),
    "k_descale": (torch.full((B, HKV), 2.0), {}),
    "v_descale": (torch.full((B, HKV), 2.0), {}),
    "softmax_scale": (0.25, {}),
    "causal": (False, {"q": torch.zeros(B, 3, H, D)}),
    "window_size": ((2, 0), {}),
    "attention_chunk": (4, {}),
    "softcap": (30.0, {}),
    "rotary_interleaved": (False, NEW),
    "scheduler_metadata": (ints(1, 2, 3), {}),
    "num_splits": (3, {}),
    "pack_gqa": (True, {}),
    "sm_margin": (2, {}),
    "return_softmax_lse": (True, {}),
    "sinks": (torch.ones(H, dtype=torch.bfloat16), {"window_size": (2, 0)}),
    "out": (torch.ones(B, 1, H, D), {}),
    "tree_mask": (torch.ones(B, 1, 1, dtype=torch.bool), {}),
    "mm_prefix_ranges": (ints(0, 2, 0, 2).reshape(2, 1, 2), {}),
    "sparse_indices": (ints(1, 2).reshape(2, 1), {}),
    "cp_world_size": (2, {}),
    "cp_rank": (1, {}),
    "cp_tot_seqused_k": (ints(9, 9), {}),
}
_HINTS = {"scheduler_metadata", "pack_gqa", "sm_margin"}
_DESCALES = {"q_descale", "k_descale", "v_descale"}
_EXTENSIONS = {"tree_mask", "mm_prefix_ranges", "sparse_indices", "cp_world_size", "cp_rank",
               "cp_tot_seqused_k"}
_APPEND = {"k", "v", "rotary_cos", "rotary_sin", "rotary_seqlens", "rotary_interleaved", "cu_seqlens_k_new"}
_ROWS = {"cache_batch_idx", "cache_leftpad"}
_ROTARY = {"rotary_cos", "rotary_sin", "rotary_seqlens", "rotary_interleaved"}
_CP = {"cp_world_size", "cp_rank", "cp_tot_seqused_k"}
# vLLM's function of version 3; absorbed MLA through version 3, whoever provides it.
_VLLM_LACKS = _DESCALES | (_EXTENSIONS - _CP) | _ROTARY | {"cache_leftpad", "attention_chunk", "pack_gqa", "sm_margin",
                                                           "out"}
_LATENT_LACKS = _DESCALES | (_EXTENSIONS - _CP) | _ROTARY | {"cache_leftpad", "attention_chunk", "sinks", "softcap",
                                                             "window_size", "out"}
KVCACHE_REFUSED = {
    "fa3": _DESCALES | _EXTENSIONS | {"qv", "sinks", "out"},
    "fa3_sglang": _DESCALES | _EXTENSIONS | {"qv", "out"},
    "fa2": _HINTS | _DESCALES | _EXTENSIONS | _ROTARY | {"qv", "cache_leftpad", "attention_chunk", "sinks", "out"},
    "fa3_vllm": _VLLM_LACKS | {"qv"},
    "fa4": _DESCALES | _EXTENSIONS | _APPEND | {"qv", "cache_leftpad", "attention_chunk", "scheduler_metadata",
                                                "sm_margin", "out"},
    "diffkv": _DESCALES | _EXTENSIONS | {"qv", "sinks", "out"},
    "diffkv_sglang": _DESCALES | _EXTENSIONS | {"qv", "out"},
    "diffkv_vllm": _VLLM_LACKS | {"qv"},
    "mla": _LATENT_LACKS | _CP,
    "mla_sglang": _LATENT_LACKS | _CP,
    "mla_vllm": _LATENT_LACKS | {"pack_gqa", "sm_margin"},
    "mate": _DESCALES | _EXTENSIONS | {"qv", "attention_chunk", "scheduler_metadata", "cache_leftpad"},
    "mate_mla": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {"num_splits", "attention_chunk", "sinks",
                                                                      "softcap", "window_size"},
    "aiter": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {"qv", "num_splits", "attention_chunk",
                                                                   "sinks", "out"},
    "ascend": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {"qv", "num_splits", "attention_chunk",
                                                                    "sinks", "softcap"},
    "ascend_mla": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {
        "num_splits", "attention_chunk", "sinks", "softcap", "window_size"},
    "ascend_310p": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {
        "qv", "num_splits", "attention_chunk", "sinks", "softcap", "window_size", "causal", "return_softmax_lse"},
}
# Accepted although nothing of the call changes: what it says is checked against q, held by the lengths, or (where HAL
# appends) in the cache's memory.
_WRITTEN = {"k", "v", "cu_seqlens_k_new"}
KVCACHE_CHECKED = {"fa2": {"max_seqlen_q"}, "fa4": {"max_seqlen_q"}, "fa3_vllm": {"max_seqlen_q", *_WRITTEN},
                   "diffkv_vllm": {"max_seqlen_q", *_WRITTEN}, "aiter": {"max_seqlen_q"},
                   "ascend": {"max_seqlen_q", "out"}, "ascend_310p": {"max_seqlen_q", "out"},
                   "mate": {"max_seqlen_q", "out"}}

VARLEN_SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cu_seqlens_k": (ints(0, 3, 5), {}),
    "max_seqlen_q": (4, {}),
    "max_seqlen_k": (4, {}),
    "seqused_q": (ints(1, 1), {}),
    "seqused_k": (ints(2, 3), {}),
    "softmax_scale": (0.25, {}),
    "causal": (False, {}),
    "qv": (torch.ones(5, H, 512), {}),
    "q_descale": (torch.full((B, HKV), 2.0), {}),
    "k_descale": (torch.full((B, HKV), 2.0), {}),
    "v_descale": (torch.full((B, HKV), 2.0), {}),
    "window_size": ((2, 0), {}),
    "attention_chunk": (4, {}),
    "softcap": (30.0, {}),
    "num_splits": (3, {}),
    "pack_gqa": (True, {}),
    "deterministic": (True, {}),
    "sm_margin": (2, {}),
    "return_attn_probs": (True, {}),
    "return_softmax_lse": (True, {}),
    "page_table": (ints(*range(6)).reshape(2, 3), {}),  # in a call with pages for k and v
    "sinks": (torch.ones(H, dtype=torch.bfloat16), {"window_size": (2, 0)}),
    "out": (torch.ones(5, H, D), {}),
    "tree_mask": (torch.ones(5, 3, dtype=torch.bool), {}),
    "mm_prefix_ranges": (ints(0, 2, 0, 2).reshape(2, 1, 2), {}),
    "sparse_indices": (torch.ones(5, 1, dtype=torch.int32), {}),
    "cp_world_size": (2, {}),
    "cp_rank": (1, {}),
    "cp_tot_seqused_k": (ints(9, 9), {}),
}
_VARLEN_HINTS = {"pack_gqa", "sm_margin", "num_splits"}
_SEQUSED = {"seqused_q", "seqused_k"}  # seqused_k without page_table
VARLEN_REFUSED = {
    "fa3": _DESCALES | _EXTENSIONS | {"qv", "sinks", "out"},
    "fa3_sglang": _DESCALES | _EXTENSIONS | {"qv", "out", "deterministic"},
    "fa2": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {"qv", "attention_chunk", "sinks", "out"},
    "fa3_vllm": _VLLM_LACKS | _SEQUSED | {"qv", "deterministic"},
    "fa4": _DESCALES | _EXTENSIONS | {"qv", "attention_chunk", "sm_margin", "out"},
    "diffkv": _DESCALES | _EXTENSIONS | {"qv", "sinks", "out"},
    "diffkv_sglang": _DESCALES | _EXTENSIONS | {"qv", "out", "deterministic"},
    "diffkv_vllm": _VLLM_LACKS | _SEQUSED | {"qv", "deterministic"},
    "mla": _LATENT_LACKS | _CP | _SEQUSED | {"page_table"},
    "mla_sglang": _LATENT_LACKS | _CP | _SEQUSED | {"page_table", "deterministic"},
    "mla_vllm": _LATENT_LACKS | _SEQUSED | {"page_table", "deterministic", "pack_gqa", "sm_margin"},
    "mate": _DESCALES | _EXTENSIONS | {"qv", "attention_chunk"},
    "mate_mla": _DESCALES | _EXTENSIONS | {"qv", "attention_chunk", "page_table"},
    "aiter": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {"qv", "attention_chunk", "sinks"},
    "ascend": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {"qv", "attention_chunk", "sinks", "softcap",
                                                                    "deterministic"},
    "ascend_mla": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {
        "qv", "attention_chunk", "sinks", "softcap", "deterministic", "window_size", "page_table"},
    "ascend_310p": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {
        "qv", "attention_chunk", "sinks", "softcap", "deterministic", "window_size", "causal", "return_softmax_lse",
        "return_attn_probs"},
}
VARLEN_CHECKED = {name: {"max_seqlen_q", "max_seqlen_k", "out"} for name in ("ascend", "ascend_310p")}


# Tensors that the vendor gets as something else: Ascend's op wants lengths as lists from the host.
# aiter's wants exactly one row of the page table a sequence.
# MATE's kvcache function has no out, nor has Ascend's op: the result is copied there.
# FlashAttention gets the rows of the page table that cache_batch_idx names; where HAL appends, k and v are in the cache
# before the call, and version 2 gets packed queries as rows of padding.
TRANSLATED = {
    "fa4": {"cache_batch_idx"},
    **{name: {"cache_batch_idx", "cu_seqlens_k_new"} for name in ("fa3", "fa3_sglang", "diffkv", "diffkv_sglang")},
    **{name: {"cache_batch_idx", *_WRITTEN} for name in ("fa3_vllm", "diffkv_vllm")},
    "fa2": {"cache_batch_idx", "cu_seqlens_q", "cu_seqlens_k_new"},
    "ascend": {"cache_seqlens", "cu_seqlens_q", "cu_seqlens_k", "out"},
    "ascend_310p": {"cu_seqlens_q", "cu_seqlens_k", "out"}, "aiter": {"page_table"}, "mate": {"out"}}


# --- all calls of an adapter ---

def bind(adapter: str, recorder: Recorder, **config: Any) -> Any:
    """The adapter's two functions. The recorder's vendor must be installed."""
    row = ADAPTERS[adapter]
    where = Platform("cpu", Platform.parse(row.platform).arch, "cpu")
    settings = AttentionConfig(**{"num_heads": H, "num_kv_heads": HKV, "head_dim": D, **config})
    return registry.get(row.backend).bind(settings, where, row.package)


def calls_of(adapter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(function, call): every argument of the contract alone, and every argument of these calls left out once.

    Calls that the adapter refuses are among them.
    """
    if adapter in LATENT:
        yield from _latent_calls(adapter)
        return
    for name, (value, more) in KVCACHE_SAMPLES.items():
        more = {n: v for n, v in more.items() if n not in KVCACHE_REFUSED[adapter]}
        yield "flash_attn_with_kvcache", kvcache_call(adapter, **{**more, name: value})
        if name in ("cache_batch_idx", "cache_leftpad"):
            yield "flash_attn_with_kvcache", kvcache_call(adapter, page_table=None, **{name: value})
    for name, (value, more) in VARLEN_SAMPLES.items():
        more = {n: v for n, v in more.items() if n not in VARLEN_REFUSED[adapter]}
        yield "flash_attn_varlen_func", varlen_call(adapter, **more, **{name: value})
        yield "flash_attn_varlen_func", paged_varlen_call(adapter, **more, **{name: value})
    for call in (kvcache_call(adapter), kvcache_call(adapter, page_table=None)):
        yield "flash_attn_with_kvcache", call
        for name in ("cache_seqlens", "page_table", "causal"):
            yield "flash_attn_with_kvcache", {n: v for n, v in call.items() if n != name}
    for call in (varlen_call(adapter), paged_varlen_call(adapter)):
        yield "flash_attn_varlen_func", call
        yield "flash_attn_varlen_func", {n: v for n, v in call.items() if n != "causal"}


def latent_varlen_call(**more: Any) -> dict[str, Any]:
    """Absorbed MLA over packed keys: rope parts and, as v, the latent ones."""
    return {**varlen_call("mla", **more), "q": torch.zeros(5, H, 64), "qv": torch.zeros(5, H, 512),
            "k": torch.zeros(5, 1, 64), "v": torch.zeros(5, 1, 512)}


def _latent_calls(adapter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    varlen = functools.partial(varlen_call, adapter) if adapter in ("mate_mla", "ascend_mla") else latent_varlen_call
    latent = functools.partial(latent_call, adapter if adapter == "ascend_mla" else "mate_mla")
    for name, (value, more) in KVCACHE_SAMPLES.items():
        more = {n: v for n, v in more.items() if n not in KVCACHE_REFUSED[adapter]}
        yield "flash_attn_with_kvcache", latent(**{**more, name: value})
    for name, (value, more) in VARLEN_SAMPLES.items():
        more = {n: v for n, v in more.items() if n not in VARLEN_REFUSED[adapter]}
        yield "flash_attn_varlen_func", varlen(**more, **{name: value})
    for function, call in (("flash_attn_with_kvcache", latent()), ("flash_attn_varlen_func", varlen())):
        yield function, call
        yield function, {n: v for n, v in call.items() if n != "causal"}


def _more_calls(adapter: str, recorder: Recorder) -> None:
    """What Ascend's adapters call while a graph is captured, and with sinks, which must be of q's dtype."""
    quiet = types.SimpleNamespace(wait=lambda stream: None, reset=lambda stream: None)
    vars(recorder.module.npu).update(  # type: ignore[attr-defined]
        current_stream=lambda: None, ExternalEvent=lambda: quiet, graph_task_group_begin=lambda stream: None,
        graph_task_group_end=lambda stream: None)
    recorder.module._C = types.SimpleNamespace(_weak_ref_tensor=lambda x: x)  # type: ignore[attr-defined]
    for config in ADAPTERS[adapter].configs:
        bound = bind(adapter, recorder, **config)
        call = latent_call(adapter) if adapter in LATENT else kvcache_call(adapter)
        calls = [call]
        if config.get("sinks"):
            calls = [{**call, "window_size": (2, 0), "sinks": torch.ones(H)}]
            run(bound, "flash_attn_with_kvcache", calls[0])
        elif not config:
            calls.append({**call, "window_size": (2, 0)})
        with unittest.mock.patch("hal.backends.ascend_fused.captures", return_value=True):
            for each in calls:
                run(bound, "flash_attn_with_kvcache", each)


@functools.cache
def vendor_calls(adapter: str) -> tuple[Call, ...]:
    """Every call that reaches the vendor, over all arguments and configurations, at the newest release."""
    recorder = Recorder(ADAPTERS[adapter].module)
    with recorder.vendor.installed():
        for config in ADAPTERS[adapter].configs:
            bound = bind(adapter, recorder, **config)
            for function, call in calls_of(adapter):
                if config is _FP8:  # an fp8 cache wants fp8 queries
                    call = {**call, "q": call["q"].to(torch.float8_e4m3fn)}
                for where in (contextlib.nullcontext, forward_context):  # plans are made inside one alone
                    try:
                        with where():
                            getattr(bound, function)(**call)
                    except ValueError:
                        continue  # refused: test_adapters.py says which and how
        if adapter == "ascend_310p":
            cls, config = registry.get(adapter), AttentionConfig(num_heads=H, num_kv_heads=HKV, dtype="float16")
            new = torch.zeros(3, HKV, D, dtype=torch.float16)
            cls.write_kv_cache(config)(new, new, *cls.new_kv_cache(config, "cpu", 2, 128), torch.tensor([7, -1, 130]))
        if adapter in ("ascend", "ascend_mla"):
            _more_calls(adapter, recorder)
            write = registry.get(adapter).write_kv_cache(AttentionConfig())
            k, cache = torch.zeros(3, 1, 1), torch.zeros(2, 128, 1, 1)
            write(k, k, cache, cache, torch.tensor([7, -1, 130]))
    return tuple(recorder.vendor.calls)
