"""The calls that the adapters' tests make: every argument of the contract, and the vendor functions' stand-ins.

The stand-ins have the real signatures (ci/contracts, any release) and answer with shapes: what is proven with them is
which function is called with which arguments, and that nothing is dropped. They say nothing about numbers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import contract_data
import torch
from emulators.common import Call, Vendor

from hal import AttentionConfig, Platform, registry
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
ADAPTERS = {
    "fa3": Adapter("flash_attn_3", "flash_attn_interface", "cuda:sm90", 64, ({}, _FP8)),
    "fa3_sglang": Adapter("flash_attn_3", "sgl_kernel.flash_attn", "cuda:sm90", 64, ({}, _FP8, _SINKS)),
    "fa2": Adapter("flash_attn_2", "flash_attn.flash_attn_interface", "cuda:sm80", 256),
    "mate": Adapter("mate", "mate.mha_interface", "musa:mp31", 64, ({}, _SINKS)),
    "aiter": Adapter("aiter", "aiter.ops.mha", "rocm:gfx942", 16),
    "ascend": Adapter("ascend", "torch_npu", "npu:ascend910b", 128),
}


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
        mine = [name for name in bare.functions if name.rpartition(".")[0] == module]
        self.vendor = Vendor(package.distribution, release,
                             {name: functools.partial(_answer, module, name.rpartition(".")[2]) for name in mine})

    @property
    def module(self) -> types.ModuleType:
        return self.vendor.modules[self._module]

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """(function, all its arguments) of every call so far."""
        return [(call.function.rpartition(".")[2], call.arguments) for call in self.vendor.calls]


def _answer(module: str, function: str, a: types.SimpleNamespace) -> Any:
    """The vendor's results: kvcache of FlashAttention 3 and MATE adds two, varlen of 2 one; +inf: no keys."""
    if function == "npu_scatter_pa_kv_cache":
        return None
    if module == "torch_npu":
        q = a.query
        return torch.zeros(*q.shape[:2], D), torch.zeros(*q.shape[:2], 1) if a.softmax_lse_flag else torch.empty(0)
    q, given = a.q, vars(a)
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
    return {"q": torch.zeros(B, 1, H, D), "k_cache": torch.zeros(8, page, HKV, D),
            "v_cache": torch.zeros(8, page, HKV, D), "cache_seqlens": ints(5, 7),
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


def run(bound: Any, function: str, call: dict[str, Any]) -> Any:
    return getattr(bound, function)(**call)


# --- every argument of the contract, and what each adapter does with it ---

PACKED = {"q": torch.zeros(3, H, D), "max_seqlen_q": 2}
NEW = {"k": torch.zeros(B, 1, HKV, D), "v": torch.zeros(B, 1, HKV, D)}
# Argument -> (a value that is not the default, what must come with it).
KVCACHE_SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "k": (torch.ones(B, 1, HKV, D), {"v": NEW["v"]}),
    "v": (torch.ones(B, 1, HKV, D), {"k": NEW["k"]}),
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
KVCACHE_REFUSED = {
    "fa3": _DESCALES | _EXTENSIONS | {"qv", "sinks", "out"},
    "fa3_sglang": _DESCALES | _EXTENSIONS | {"qv", "out"},
    "fa2": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | {"qv", "rotary_seqlens", "cu_seqlens_k_new",
                                                       "attention_chunk", "sinks", "out"},
    "mate": _DESCALES | _EXTENSIONS | {"qv", "attention_chunk", "out"},
    "aiter": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {"qv", "num_splits", "attention_chunk",
                                                                   "sinks", "out"},
    "ascend": _HINTS | _DESCALES | _EXTENSIONS | _ROWS | _APPEND | {"qv", "num_splits", "attention_chunk",
                                                                    "sinks", "out", "softcap", "window_size",
                                                                    "causal"},
}
# Accepted although nothing of the call changes: what it says is checked against q, or held by the lengths.
KVCACHE_CHECKED = {"fa2": {"max_seqlen_q"}, "aiter": {"max_seqlen_q"}, "ascend": {"max_seqlen_q"}}

VARLEN_SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cu_seqlens_k": (ints(0, 3, 6), {}),
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
    "mate": _DESCALES | _EXTENSIONS | {"qv", "attention_chunk"},
    "aiter": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {"qv", "attention_chunk", "sinks"},
    "ascend": _VARLEN_HINTS | _DESCALES | _EXTENSIONS | _SEQUSED | {"qv", "attention_chunk", "sinks", "out",
                                                                    "softcap", "window_size", "causal",
                                                                    "deterministic"},
}
VARLEN_CHECKED = {"ascend": {"max_seqlen_q", "max_seqlen_k"}}


# Tensors that the vendor gets as something else: Ascend's op wants lengths as lists from the host.
# aiter's wants exactly one row of the page table a sequence.
TRANSLATED = {"ascend": {"cache_seqlens", "cu_seqlens_q", "cu_seqlens_k"}, "aiter": {"page_table"}}


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
    for name, (value, more) in KVCACHE_SAMPLES.items():
        more = {n: v for n, v in more.items() if n not in KVCACHE_REFUSED[adapter]}
        yield "flash_attn_with_kvcache", kvcache_call(adapter, **more, **{name: value})
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


@functools.cache
def vendor_calls(adapter: str) -> tuple[Call, ...]:
    """Every call that reaches the vendor, over all arguments and configurations, at the newest release."""
    recorder = Recorder(ADAPTERS[adapter].module)
    with recorder.vendor.installed():
        for config in ADAPTERS[adapter].configs:
            bound = bind(adapter, recorder, **config)
            for function, call in calls_of(adapter):
                try:
                    getattr(bound, function)(**call)
                except ValueError:
                    continue  # refused: test_adapters.py says which and how
        if adapter == "ascend":
            write = registry.get("ascend").write_kv_cache(AttentionConfig())
            k, cache = torch.zeros(3, 1, 1), torch.zeros(2, 128, 1, 1)
            write(k, k, cache, cache, torch.tensor([7, -1, 130]))
    return tuple(recorder.vendor.calls)
