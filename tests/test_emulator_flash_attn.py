"""The emulators of FlashAttention 2, 3 and 4, by themselves: each rule, refusal and trap with its source beside it.

Sources are `file:line` at the release named, in Dao-AILab/flash-attention unless said otherwise: "api" is
csrc/flash_attn/flash_api.cpp for 2 and hopper/flash_api.cpp for 3; "sgl-attn" is sgl-project/sgl-attn; "vllm-fa" is
vllm-project/flash-attention at 617264c1; "cute" is flash_attn/cute of the wheel. Numbers are compared with `expected`,
which is written here and shares nothing with the emulators.
"""

from __future__ import annotations

import inspect
import itertools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from emulators.attend import StalePlan, Undocumented
from emulators.common import Vendor
from emulators.devices import Devices, on, plain_of
from emulators.flash_attn_2 import FlashAttn2
from emulators.flash_attn_3 import FlashAttn3, SglKernel, VllmFlashAttn
from emulators.flash_attn_4 import FlashAttn4

INF = float("inf")
CUDA = "cuda:0"
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with Devices(CUDA, "cuda:1"):
        yield


# --- an independent answer ---

Visible = Callable[[int, int], bool]  # position of the query, key


def causal(p: int, j: int) -> bool:
    return j <= p


def everything(p: int, j: int) -> bool:
    return True


def between(left: float, right: float) -> Visible:
    return lambda p, j: p - left <= j <= p + right


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, see: Visible, scale: float | None = None,
             softcap: float = 0.0, sink: torch.Tensor | None = None,
             bias: Callable[[int, int, int], float] | None = None,
             latent: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence in float64, key by key: q [Lq, H, D] -> out [Lq, H, Dv], LSE [H, Lq]; -inf without keys."""
    len_q, heads, dim = q.shape
    q, k, v = (plain_of(t).double() for t in (q, k, v))
    scale = dim ** -0.5 if scale is None else scale
    out, lse = torch.zeros(len_q, heads, v.shape[-1], dtype=torch.float64), torch.full((heads, len_q), -INF).double()
    for i, h in itertools.product(range(len_q), range(heads)):
        p, group = i + len(k) - len_q, h // (heads // k.shape[1])
        dots = k[:, group] @ q[i, h]
        if latent is not None:
            dots = dots + v[:, group] @ plain_of(latent).double()[i, h]
        terms = {}
        for j, dot in enumerate(dots.tolist()):
            s = dot * scale
            s = softcap * math.tanh(s / softcap) if softcap else s
            if see(p, j):
                terms[j] = math.exp(s + (bias(h, p, j) if bias else 0.0))
        total = sum(terms.values()) + (math.exp(float(sink[h])) if sink is not None else 0.0)
        if total:
            lse[h, i] = math.log(total)
            weights = torch.tensor([terms.get(j, 0.0) / total for j in range(len(k))], dtype=torch.float64)
            out[i, h] = weights @ v[:, group]
    return out, lse


def close(actual: Any, wanted: torch.Tensor, tolerance: float = 2e-2) -> None:
    """Outputs are rounded to 16 bits; an LSE is float32, and compared to 1e-4."""
    torch.testing.assert_close(plain_of(actual).double(), wanted, atol=tolerance, rtol=tolerance)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> torch.Tensor:
    return on(torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype), CUDA)


def ints(*values: int) -> torch.Tensor:
    return on(torch.tensor(values, dtype=torch.int32), CUDA)


def cumulative(*lengths: int) -> torch.Tensor:
    return ints(*itertools.accumulate(lengths, initial=0))


def call(vendor: Vendor, name: str, **arguments: Any) -> Any:
    """The vendor's function whose name ends so."""
    return vendor._call(next(f for f in vendor.functions if f.endswith(name)), (), arguments)


def kvcache(vendor: Vendor, **arguments: Any) -> Any:
    return call(vendor, ".flash_attn_with_kvcache", **arguments)


def varlen(vendor: Vendor, **arguments: Any) -> Any:
    return call(vendor, ".flash_attn_varlen_func", **arguments)


# A cache of two sequences, of 5 and 3 tokens, in pages out of order.
LENGTHS = (5, 3)


def paged(page_size: int, len_q: int = 2, heads: int = 4, heads_k: int = 2, dim: int = 16, dim_v: int | None = None,
          table: str = "page_table", dtype: torch.dtype = BF16) -> dict[str, Any]:
    per_row = -(-8 // page_size)
    pages = torch.randperm(2 * per_row + 1, generator=torch.Generator().manual_seed(1))[:2 * per_row]
    return {"q": randn(2, len_q, heads, dim, dtype=dtype),
            "k_cache": randn(2 * per_row + 1, page_size, heads_k, dim, seed=1, dtype=dtype),
            "v_cache": randn(2 * per_row + 1, page_size, heads_k, dim_v or dim, seed=2, dtype=dtype),
            "cache_seqlens": ints(*LENGTHS), table: on(pages.view(2, per_row).int(), CUDA)}


def sequence(arguments: dict[str, Any], b: int, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of sequence b, token by token through the table."""
    table = plain_of(arguments["page_table"] if "page_table" in arguments else arguments["block_table"])
    length = LENGTHS[b] if length is None else length
    found = []
    for cache in (plain_of(arguments["k_cache"]), plain_of(arguments["v_cache"])):
        size = cache.shape[1]
        found.append(torch.stack([cache[int(table[b, j // size]), j % size] for j in range(length)])
                     if length else cache[0, :0])
    return found[0], found[1]


def packed(lens_q: tuple[int, ...] = (3, 2), lens_k: tuple[int, ...] = (5, 4), heads: int = 4, heads_k: int = 2,
           dim: int = 16, dtype: torch.dtype = BF16) -> dict[str, Any]:
    return {"q": randn(sum(lens_q), heads, dim, dtype=dtype),
            "k": randn(sum(lens_k), heads_k, dim, seed=1, dtype=dtype),
            "v": randn(sum(lens_k), heads_k, dim, seed=2, dtype=dtype), "cu_seqlens_q": cumulative(*lens_q),
            "cu_seqlens_k": cumulative(*lens_k), "max_seqlen_q": max(lens_q), "max_seqlen_k": max(lens_k)}


def of_packed(a: dict[str, Any], see: Visible, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What `packed` must give: [total, H, D] and [H, total]."""
    starts_q, starts_k = (plain_of(a[name]).tolist() for name in ("cu_seqlens_q", "cu_seqlens_k"))
    parts = [expected(a["q"][i:j], a["k"][m:n], a["v"][m:n], see, **more)
             for (i, j), (m, n) in zip(itertools.pairwise(starts_q), itertools.pairwise(starts_k))]
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts], 1)


# --- plain calls, every release and provider ---

KVCACHES = [
    *((lambda r=r: FlashAttn2(release=r), 256, "block_table") for r in ("2.5.9.post1", "2.6.0", "2.6.1", "2.7.4.post1",
                                                                        "2.8.3.post1")),
    *((lambda r=r: FlashAttn3(release=r), 4, "page_table") for r in ("git v2.8.3.post1", "git 203b9b3d",
                                                                     "git 0251105a")),
    *((lambda r=r: SglKernel(release=r), 1, "page_table") for r in ("0.3.21", "0.4.0", "0.4.10")),
]


@pytest.mark.parametrize(("make", "page_size", "table"), KVCACHES)
def test_paged_kv_cache(make: Any, page_size: int, table: str) -> None:
    a = paged(page_size, table=table)
    cases: list[tuple[dict[str, Any], Visible]] = [
        ({"causal": True}, causal), ({"causal": False}, everything), ({"window_size": (-1, 0)}, causal),
        ({"causal": True, "window_size": (1, 0)}, between(1, 0)),
        ({"causal": False, "window_size": (2, 1)}, between(2, 1)), ({"causal": True, "softmax_scale": 0.3}, causal)]
    for arguments, see in cases:
        out = kvcache(make(), **a, **arguments)
        assert (out.dtype, str(out.device), out.shape) == (BF16, CUDA, a["q"].shape)
        for b in range(2):
            close(out[b], expected(a["q"][b], *sequence(a, b), see, arguments.get("softmax_scale"))[0])


VARLENS: list[tuple[Any, str, dict[str, Any]]] = [
    *((FlashAttn2, r, {}) for r in ("2.5.9.post1", "2.6.0", "2.6.1", "2.7.4.post1", "2.8.3.post1")),
    *((FlashAttn3, r, {}) for r in ("git v2.8.3.post1", "git 203b9b3d", "git 0251105a")),
    *((SglKernel, r, {}) for r in ("0.3.21", "0.4.0", "0.4.10")),
    *((FlashAttn4, r, {}) for r in ("4.0.0b3", "4.0.0b27", "4.0.0b36")),
    *((VllmFlashAttn, r, {"fa_version": v}) for r in ("0.32.0", "0.33.0") for v in (2, 3, 4)),
]


@pytest.mark.parametrize(("make", "release", "more"), VARLENS)
def test_packed_sequences(make: Any, release: str, more: dict[str, Any]) -> None:
    a = packed()
    cases: list[tuple[dict[str, Any], Visible]] = [
        ({"causal": True}, causal), ({"causal": False}, everything),
        ({"causal": True, "window_size": (1, 0)}, between(1, 0))]
    for arguments, see in cases:
        out = varlen(make(release=release), **a, **arguments, **more)
        close(out[0] if isinstance(out, tuple) else out, of_packed(a, see)[0])


@pytest.mark.parametrize("version", [2, 3, 4])
def test_vllm_puts_three_versions_behind_one_function(version: int) -> None:
    """vllm_flash_attn/flash_attn_interface.py:325-500; pages of 16 in 2 (vllm-fa csrc flash_api.cpp, "% 16 == 0")."""
    c = paged(16)
    a = {"q": c["q"].reshape(4, 4, 16), "k": c["k_cache"], "v": c["v_cache"], "cu_seqlens_q": cumulative(2, 2),
         "max_seqlen_q": 2, "max_seqlen_k": 5, "seqused_k": c["cache_seqlens"], "block_table": c["page_table"]}
    out = on(torch.zeros(4, 4, 16, dtype=BF16), CUDA)
    result, lse = varlen(VllmFlashAttn(), **a, causal=True, fa_version=version, return_softmax_lse=True, out=out,
                         window_size=[-1, -1])
    assert result is out
    for b in range(2):
        wanted, wanted_lse = expected(c["q"][b], *sequence(c, b), causal)
        close(out[2 * b:2 * b + 2], wanted)
        close(lse[:, 2 * b:2 * b + 2], wanted_lse, 1e-4)


@pytest.mark.parametrize("make", [FlashAttn2, FlashAttn3, SglKernel])
def test_softcap_and_lse(make: Any) -> None:
    """2: api:116 (softcap * tanh(scale * s / softcap)); the LSE is natural, after the softcap."""
    a = paged(256, table="block_table" if make is FlashAttn2 else "page_table")
    out, lse = kvcache(make(), **a, causal=True, softcap=1.5, return_softmax_lse=True)[:2]
    for b in range(2):
        wanted, wanted_lse = expected(a["q"][b], *sequence(a, b), causal, softcap=1.5)
        close(out[b], wanted)
        close(lse[b], wanted_lse, 1e-4)


def test_softcap_came_with_2_6() -> None:
    """README.md at v2.8.3.post1, "2.6: Softcapping"; no parameter of that name at v2.5.9.post1."""
    for release, there in (("2.5.9.post1", False), ("2.6.0", True)):
        vendor = FlashAttn2(release=release)
        assert all(("softcap" in inspect.signature(vendor._function(f)).parameters) == there for f in vendor.functions)
    with pytest.raises(TypeError, match="softcap"):
        kvcache(FlashAttn2(release="2.5.9.post1"), **paged(256, table="block_table"), softcap=1.0)


@pytest.mark.parametrize("make", [FlashAttn2, FlashAttn3, SglKernel])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_append_with_rotary(make: Any, interleaved: bool, is_causal: bool) -> None:
    """flash_attn_interface.py, flash_attn_with_kvcache: keys turn at cache_seqlens + i; queries too where causal or
    local, else all of them at cache_seqlens (2: flash_fwd_kernel.h:792; 3: mainloop_fwd_sm90_tma_gmma_ws.hpp:1099)."""
    a = paged(256, table="block_table" if make is FlashAttn2 else "page_table")
    angles = torch.rand(1, 8, generator=torch.Generator().manual_seed(3)) * torch.arange(512)[:, None]
    cos, sin = (on(f(angles).to(BF16), CUDA) for f in (torch.cos, torch.sin))
    new = {"k": randn(2, 2, 2, 16, seed=7), "v": randn(2, 2, 2, 16, seed=8)}
    out = kvcache(make(), **a, **new, rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved, causal=is_causal)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        c, s = plain_of(cos)[position].double(), plain_of(sin)[position].double()
        x = plain_of(x).double()
        pairs = [(2 * r, 2 * r + 1) if interleaved else (r, r + 8) for r in range(8)]
        y = x.clone()
        for r, (one, two) in enumerate(pairs):
            y[..., one], y[..., two] = x[..., one] * c[r] - x[..., two] * s[r], x[..., one] * s[r] + x[..., two] * c[r]
        return y

    for b, length in enumerate(LENGTHS):
        k, v = sequence(a, b, length + 2)
        for i in range(2):
            close(k[length + i], turned(new["k"][b, i], length + i))
            close(v[length + i], plain_of(new["v"][b, i]).double())
        q = torch.stack([turned(a["q"][b, i], length + (i if is_causal else 0)) for i in range(2)])
        close(out[b], expected(q, k, v, causal if is_causal else everything)[0], 4e-2)


def test_unpaged_cache_with_batch_index_and_left_padding() -> None:
    """api:1391-1403, 1443; block_info.h:22-24: keys from cache_leftpad on, of the row that cache_batch_idx names."""
    a = {"q": randn(2, 2, 4, 16), "k_cache": randn(3, 8, 2, 16, seed=1), "v_cache": randn(3, 8, 2, 16, seed=2)}
    for make in (FlashAttn2, FlashAttn3, SglKernel):
        out = kvcache(make(), **a, cache_seqlens=ints(5, 8), cache_batch_idx=ints(2, 0), cache_leftpad=ints(1, 0),
                      causal=True)
        close(out[0], expected(a["q"][0], a["k_cache"][2, 1:5], a["v_cache"][2, 1:5], causal)[0])
        close(out[1], expected(a["q"][1], a["k_cache"][0], a["v_cache"][0], causal)[0])
    out = kvcache(FlashAttn2(), q=a["q"], k_cache=a["k_cache"][:2], v_cache=a["v_cache"][:2])
    close(out[0], expected(a["q"][0], a["k_cache"][0], a["v_cache"][0], everything)[0])  # no lengths: all of the cache


def test_left_padding_with_pages_is_threes_alone() -> None:
    """2: api:1396. 3: paged_kv.h:145 (the table is read at row + leftpad)."""
    a = paged(256, table="block_table")
    with pytest.raises(RuntimeError, match="We don't support Paged KV and leftpad_k running at the same time yet"):
        kvcache(FlashAttn2(), **a, cache_leftpad=ints(1, 0))
    a = paged(4)
    out = kvcache(FlashAttn3(), **a, cache_leftpad=ints(2, 0), causal=True)
    k, v = sequence(a, 0)
    close(out[0], expected(a["q"][0], k[2:], v[2:], causal)[0])


# --- refusals ---

def two(release: str = "2.8.3.post1", arch: str = "sm80") -> tuple[Vendor, dict[str, Any]]:
    return FlashAttn2(release=release, arch=arch), paged(256, table="block_table")


def three(release: str = "git 203b9b3d", arch: str = "sm90") -> tuple[Vendor, dict[str, Any]]:
    return FlashAttn3(release=release, arch=arch), paged(4)


def sgl(release: str = "0.4.10", arch: str = "sm90") -> tuple[Vendor, dict[str, Any]]:
    return SglKernel(release=release, arch=arch), paged(4)


def fp8(a: dict[str, Any]) -> dict[str, Any]:
    return {name: on(plain_of(t).to(FP8), CUDA) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
            for name, t in a.items()}


AMPERE = "FlashAttention only supports Ampere GPUs or newer."
ROTARY = {"rotary_cos": torch.ones(512, 8, dtype=BF16), "rotary_sin": torch.ones(512, 8, dtype=BF16)}
NEW = {"k": torch.ones(2, 1, 2, 16, dtype=BF16), "v": torch.ones(2, 1, 2, 16, dtype=BF16)}
KVCACHE_REFUSALS: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    # where it is said; what is called; what is changed; what comes
    ("2: api:370", two(arch="sm75"), {}, RuntimeError, AMPERE),
    ("2: v2.6.1 api:829", two("2.6.1", "sm100"), {}, RuntimeError, AMPERE),
    ("2: api:1264", two(), paged(16, table="block_table"), RuntimeError, "must be divisible by 256"),
    ("2: api:1247", two(), {"cache_batch_idx": ints(0, 1)}, RuntimeError,
     "Paged KVcache does not support cache_batch_idx"),
    ("2: api:1227", two(), fp8(paged(256, table="block_table")), RuntimeError, "only support fp16 and bf16 data type"),
    ("2: api:1230", two(), {"k_cache": randn(3, 256, 2, 16, dtype=torch.float16)}, RuntimeError,
     "query and key must have the same dtype"),
    ("2: api:1272", two(), paged(256, dim=264, table="block_table"), RuntimeError, "head dimension at most 256"),
    ("2: api:1273", two(), paged(256, heads=3, table="block_table"), RuntimeError,
     "must divide number of heads in query"),
    ("2: api:1355", two(), {**NEW, "cache_seqlens": None}, RuntimeError, "seqlens_k must also be passed in"),
    ("2: api:1389", two(), {"cache_seqlens": on(torch.tensor(LENGTHS), CUDA)}, RuntimeError,
     "seqlens_k must have dtype int32"),
    ("2: api:1406", two(), ROTARY, RuntimeError, "must also be provided"),
    ("2: api:325", two(), {"num_splits": 129}, RuntimeError, "num_splits > 128 not supported"),
    ("2: api:CHECK_DEVICE", two(), {"block_table": torch.zeros(2, 1, dtype=torch.int32)}, RuntimeError,
     "must be on CUDA"),
    ("3: api:706", three(arch="sm75"), {}, RuntimeError, AMPERE),
    ("3: api:715", three(), {"k_cache": on(plain_of(paged(4)["k_cache"]).to(FP8), CUDA)}, RuntimeError,
     "query and key must have the same dtype"),
    ("3: api:710", three(), {name: on(plain_of(t).to(torch.float8_e5m2), CUDA) for name, t in paged(4).items()
                             if t.is_floating_point()}, RuntimeError,
     "only supports fp16, bf16, and fp8_e4m3 data type"),
    ("3: api:713", three(arch="sm80"), fp8(paged(4)), RuntimeError, "only supports fp16 and bf16 data type"),
    ("3: api:840 alignment", three(), fp8(paged(4, dim=24)), RuntimeError, "head_size should be a multiple of 16"),
    ("3: api:840", three(), paged(4, dim=20), RuntimeError, "head_size should be a multiple of 8"),
    ("3: api:779", three(), paged(4, dim=128, dim_v=64), RuntimeError, "If V headdim is different from Q/K dim"),
    ("3: api:781", three(arch="sm80"), paged(4, dim=64, dim_v=128), RuntimeError,
     "Only Hopper supports different V headdim"),
    ("3: api:771", three(), {"page_table": ints(0, 1, 2).view(3, 1)}, RuntimeError,
     "batch_size must be equal to batch_size_k"),
    ("3: api:730", three(), {"cu_seqlens_q": cumulative(2, 2), "q": randn(4, 4, 16)}, RuntimeError,
     "max_seqlen_q must be provided if cu_seqlens_q is provided"),
    ("3: api:1065", three(), {"qv": randn(2, 2, 4, 16)}, RuntimeError, "q_v is only supported for hdim_v >= 256"),
    ("3: api:rotary", three(), ROTARY, RuntimeError, "must also be provided"),
    ("3: api:k_new", three(), {**NEW, "cache_seqlens": None}, RuntimeError, "seqlens_k must also be passed in"),
    ("3: only sm80 and sm90a cubins (setup.py)", three(arch="sm100"), {}, RuntimeError, "no kernel image"),
    ("sgl-attn 98c2b6c api:1125", sgl(), {"sinks": randn(4, dtype=torch.float32)}, RuntimeError,
     "sinks must have dtype bfloat16"),
    ("sgl-attn 98c2b6c flash_fwd_kernel_sm80.h has no sink", sgl(arch="sm80"), {"sinks": randn(4)}, Undocumented,
     "below sm90"),
    ("sgl 0.4.10 flash_attn.py:183", sgl(), {"k_cache": None}, ValueError,
     "k_cache can only be None when only_qv=True"),
    ("sgl 0.3.21 flash_attn.py:170", sgl("0.3.21", "sm100"), {"ver": 4, **NEW}, AssertionError,
     "FA4 does not support updating KV cache in-place."),
    ("sgl 0.3.21 flash_attn.py:183", sgl("0.3.21", "sm100"), {"ver": 4, "k_descale": randn(2, 2)}, AssertionError,
     "FA4 does not support descale."),
]


@pytest.mark.parametrize(("source", "target", "change", "error", "text"), KVCACHE_REFUSALS,
                         ids=[f"{row[0]}-{row[4][:25]}" for row in KVCACHE_REFUSALS])
def test_kvcache_refusals(source: str, target: Any, change: dict[str, Any], error: type[Exception], text: str) -> None:
    vendor, plain = target
    change = {name: on(t, CUDA) if isinstance(t, torch.Tensor) and name[0] in "rkv" else t for name,
        t in change.items()}
    with pytest.raises(error, match=text.replace("(", r"\(").replace(")", r"\)")):
        kvcache(vendor, **{**plain, **change})
    assert vendor.calls[-1].function.endswith("kvcache"), "refused calls are recorded"


def of_vllm(version: int, arch: str = "sm90") -> tuple[Vendor, dict[str, Any]]:
    return VllmFlashAttn(arch=arch), {**packed(), "fa_version": version}


def of_four(release: str, arch: str) -> tuple[Vendor, dict[str, Any]]:
    return FlashAttn4(release=release, arch=arch), packed()


def four_paged(page_size: int = 4, dim: int = 16) -> dict[str, Any]:
    c = paged(page_size, dim=dim)
    return {"q": c["q"], "k": c["k_cache"], "v": c["v_cache"], "page_table": c["page_table"], "max_seqlen_q": None,
            "max_seqlen_k": None, "seqused_k": c["cache_seqlens"], "cu_seqlens_q": None, "cu_seqlens_k": None}


DESCALE = {name: torch.ones(2, 2) for name in ("q_descale", "k_descale", "v_descale")}
SINK = on(torch.ones(4, dtype=BF16), CUDA)
FOUR_DIMS = {"q": randn(5, 4, 192), "k": randn(9, 2, 192), "v": randn(9, 2, 192)}
VARLEN_REFUSALS: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("2: api:605 is behind Python's padding", (FlashAttn2(), packed()), {"dropout_p": 0.1}, Undocumented, "dropout"),
    ("2: api:587 reshape", (FlashAttn2(), packed((1, 0))), {"max_seqlen_q": 1}, RuntimeError,
     "is invalid for input of size"),
    ("2: api:549", (FlashAttn2(), packed()), {"cu_seqlens_q": on(torch.tensor([0, 3, 5]), CUDA)}, RuntimeError,
     "cu_seqlens_q must have dtype int32"),
    ("3: api:746", (FlashAttn3(), packed()), {"max_seqlen_k": None}, RuntimeError,
     "max_seqlen_k must be provided if cu_seqlens_k is provided"),
    ("3: api:CHECK_SHAPE(k", (FlashAttn3(), packed()), {"k": randn(3, 4, 2, 16), "v": randn(3, 4, 2, 16)}, RuntimeError,
     "k must have shape (total_k, num_heads_k, head_size)"),
    ("sgl 0.4.10 flash_attn.py:306", (SglKernel(arch="sm100"), packed()), {}, NotImplementedError,
     "only supported on sm90 and above"),
    ("sgl 0.4.10 flash_attn.py:312", (SglKernel(), packed()), {"max_seqlen_k": None}, ValueError, "required for FA3"),
    ("vllm interface:309", of_vllm(3), {"seqused_k": ints(5, 4)}, AssertionError,
     "cannot be provided at the same time"),
    ("vllm interface:305", of_vllm(3), {"cu_seqlens_k": None}, AssertionError,
     "cu_seqlens_k or seqused_k must be provided"),
    ("vllm interface:313", of_vllm(2), {"block_table": ints(0).view(1, 1)}, AssertionError,
     "seqused_k must be provided if"),
    ("vllm interface:348", of_vllm(2), {"s_aux": SINK}, NotImplementedError, "FA2 does not support s_aux"),
    ("vllm interface:350", of_vllm(2), {"num_splits": 2}, NotImplementedError, "FA2 does not support num_splits > 1"),
    ("vllm interface:339", of_vllm(2), {"scheduler_metadata": ints(0), **DESCALE}, NotImplementedError,
     "FA2 does not support scheduler_metadata"),
    ("vllm interface:387", of_vllm(3), {"alibi_slopes": randn(4)}, AssertionError, "Alibi is not supported in FA3"),
    ("vllm interface:503", of_vllm(5), {}, ValueError, "Unsupported FA version"),
    ("vllm-fa CMakeLists.txt:268 (9.0a alone)", of_vllm(3, "sm80"), {}, RuntimeError, "no kernel image"),
    ("vllm-fa hopper api S aux", of_vllm(3), {"s_aux": randn(4, dtype=torch.float32)}, RuntimeError,
     "We only support bf16 dtype for S aux."),
    ("vllm-fa hopper api S aux", (VllmFlashAttn(), packed(heads=66)), {"fa_version": 3, "s_aux": on(torch.ones(66),
     CUDA)},
     RuntimeError, "We only support query heads <= 64 with S aux"),
    ("vllm-fa hopper api cp", of_vllm(3), {"cp_world_size": 2}, RuntimeError, "cp_tot_seqused_k_ must be provided"),
    ("vllm-fa hopper api cp", of_vllm(3), {"cp_world_size": 2, "cp_tot_seqused_k": ints(9, 9), "window_size": [1, 0]},
     RuntimeError, "Local attention (sliding window) is not currently supported with context parallelism"),
    ("vllm-fa hopper api cp", of_vllm(3), {"cp_rank": 1}, RuntimeError, "cp_rank must be zero"),
    ("cute b3 interface:258", of_four("4.0.0b3", "sm80"), {}, AssertionError, "Supported: 9.x, 10.x, 11.x"),
    ("cute b36 interface:845", of_four("4.0.0b36", "sm75"), {}, AssertionError, "Supported: 8.x, 9.x"),
    ("cute b3 interface:449", of_four("4.0.0b3", "sm90"), four_paged(), AssertionError,
     "paged KV not supported on SM 9.0"),
    ("cute b36 interface:1611", of_four("4.0.0b36", "sm80"), four_paged(), AssertionError,
     "paged KV not supported on SM 8.0"),
    ("cute b27 interface:1364", of_four("4.0.0b27", "sm120"), four_paged(), AssertionError,
     "Paged KV not supported on SM 12.0"),
    ("cute b36 interface:1754", of_four("4.0.0b36", "sm121"), four_paged(), AssertionError,
     "Paged KV not supported on SM 12.0"),
    ("cute b3 interface:204", of_four("4.0.0b3", "sm100"), {"learnable_sink": randn(4, dtype=torch.float32)},
     AssertionError,
     "learnable_sink must be bfloat16"),
    ("cute b36 interface:822", of_four("4.0.0b36", "sm100"), {"learnable_sink": ints(1, 1, 1, 1)}, AssertionError,
     "learnable_sink must be float16, bfloat16, or float32"),
    ("cute b36 flash_fwd.py:651", of_four("4.0.0b36", "sm80"), {"learnable_sink": SINK}, AssertionError,
     "Learnable sink is not"),
    ("cute b36 flash_fwd_sm120.py:15, flash_fwd.py:651", of_four("4.0.0b36", "sm120"), {"learnable_sink": SINK},
     AssertionError,
     "Learnable sink is not"),
    ("cute b36 interface:131", of_four("4.0.0b36", "sm90"), {k: randn(9, 2, 264) if k != "q" else randn(5, 4, 264)
                                                              for k in "qkv"}, AssertionError, "not supported on SM90"),
    ("cute b36 interface:136", of_four("4.0.0b36", "sm100"), FOUR_DIMS, AssertionError, "not supported on SM100/SM110"),
    ("cute b27 interface:1309", of_four("4.0.0b27", "sm100"),
     {**{k: randn(9 if k != "q" else 5, 2 if k != "q" else 4, 256) for k in "qkv"}, "softcap": 1.0}, AssertionError,
     "head_dim=256 does not support softcap"),
    ("cute b36 flash_fwd_sm100.py:266", of_four("4.0.0b36", "sm100"), four_paged(4, 24), AssertionError,
     "Paged KV does not support irregular head dim"),
    ("cute b36 interface:1631", of_four("4.0.0b36", "sm90"), {"num_splits": 2}, AssertionError,
     "SplitKV not supported on SM 9.0"),
    ("cute b27 interface:368", of_four("4.0.0b27", "sm120"), {"num_splits": 0}, AssertionError,
     "only supports num_splits=1"),
    ("cute b36 interface:784", of_four("4.0.0b36", "sm100"), {**four_paged(), "cu_seqlens_k": cumulative(5, 4)},
     AssertionError,
     "page_table is not supported with cu_seqlens_k"),
    ("cute b36 interface:1107", of_four("4.0.0b36", "sm80"), {"score_mod": max}, NotImplementedError, "SM8x"),
    ("cute b36 interface:1103", of_four("4.0.0b36", "sm100"), {"score_mod": max, "softcap": 1.0}, AssertionError,
     "softcap and score_mod cannot be used together"),
    ("cute code cannot run here", of_four("4.0.0b36", "sm100"), {"score_mod": max}, Undocumented, "score_mod"),
    ("cute b3 interface:182", of_four("4.0.0b3", "sm100"), fp8(packed()), AssertionError,
     "must be float16 or bfloat16"),
    ("cute b36 interface:927", of_four("4.0.0b36", "sm90"), fp8(packed()), AssertionError,
     "FP8 is only supported on SM100"),
]


@pytest.mark.parametrize(("source", "target", "change", "error", "text"), VARLEN_REFUSALS,
                         ids=[f"{row[0]}-{row[4][:25]}" for row in VARLEN_REFUSALS])
def test_varlen_refusals(source: str, target: Any, change: dict[str, Any], error: type[Exception], text: str) -> None:
    vendor, plain = target
    with pytest.raises(error, match=text.replace("(", r"\(").replace(")", r"\)")):
        varlen(vendor, **{**plain, **change})


def test_tensors_of_two_devices_are_no_error_message_but_a_fault() -> None:
    """CHECK_DEVICE is x.is_cuda(): kernels then take pointers."""
    for vendor, a in (two(), three()):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            kvcache(vendor, **{**a, "cache_seqlens": on(plain_of(a["cache_seqlens"]), "cuda:1")})


def test_an_arch_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="sm91"):
        FlashAttn3(arch="sm91")


# --- traps of 2 ---

def test_2_names_and_what_its_kvcache_does_not_take() -> None:
    """flash_attn_interface.py at v2.8.3.post1: `block_table`, no cu_seqlens_q, no q of packed sequences."""
    kvcache_name = "flash_attn.flash_attn_interface.flash_attn_with_kvcache"
    names = inspect.signature(FlashAttn2()._function(kvcache_name)).parameters
    assert {"block_table", "cache_leftpad"} < set(names)
    assert not {"page_table", "cu_seqlens_q", "sinks", "k_descale", "scheduler_metadata"} & set(names)


@pytest.mark.parametrize("release", ["2.5.9.post1", "2.6.1", "2.8.3.post1"])
def test_2_masked_rows_have_an_lse_of_plus_infinity(release: str) -> None:
    """softmax.h:180, and flash_fwd_kernel.h:567 for tiles without keys. A merge of partial results weighs such a row
    above all others."""
    a = packed((3, 2), (1, 4))
    result = varlen(FlashAttn2(release=release), **a, causal=True, return_attn_probs=True)
    out, lse = result[:2]
    first = lse[:, :2] if release != "2.5.9.post1" else lse[0, :, :2]
    assert plain_of(first).eq(INF).all()
    assert plain_of(out)[:2].eq(0).all()
    close(out, of_packed(a, causal)[0])


def test_2_a_length_of_zero_is_plus_infinity_too() -> None:
    """flash_fwd_kernel.h:567 (Split ? -INFINITY : INFINITY)."""
    a = {**paged(256, table="block_table"), "cache_seqlens": ints(0, 3)}
    out, lse = kvcache(FlashAttn2(), **a, causal=True, return_softmax_lse=True)
    assert plain_of(lse[0]).eq(INF).all()
    assert plain_of(out[0]).eq(0).all()


def test_2_varlen_lse_was_padded_before_2_6() -> None:
    """v2.5.9.post1 api:655 [B, H, max_seqlen_q], uninitialised past a sequence; api:652 [H, total_q] since 2.6."""
    a = packed()
    wanted = of_packed(a, causal)[1]
    lse = varlen(FlashAttn2(), **a, causal=True, return_attn_probs=True)[1]
    close(lse, wanted, 1e-4)
    old = plain_of(varlen(FlashAttn2(release="2.5.9.post1"), **a, causal=True, return_attn_probs=True)[1])
    assert old.shape == (2, 4, 3)
    close(old[0], wanted[:, :3], 1e-4)
    close(old[1, :, :2], wanted[:, 3:], 1e-4)
    assert old[1, :, 2].isnan().all(), "never written"


def test_2_returns_three_values_with_the_lse_of_varlen() -> None:
    """flash_attn_interface.py, FlashAttnVarlenFunc.forward: (out, softmax_lse, S_dmask); empty without dropout."""
    result = varlen(FlashAttn2(), **packed(), return_attn_probs=True)
    assert len(result) == 3
    assert result[2].numel() == 0


def test_2_takes_a_number_of_tokens_per_row_of_the_cache() -> None:
    """flash_attn_interface.py:1579: torch.full((k_cache.shape[0],)); with pages those are not the batch."""
    a = paged(256, table="block_table")
    with pytest.raises(RuntimeError, match=r"seqlens_k must have shape \(batch_size\)"):
        kvcache(FlashAttn2(), **{**a, "cache_seqlens": 5})
    for name in ("k_cache", "v_cache"):
        a[name] = a[name][:2]
    a["block_table"] = ints(1, 0).view(2, 1)
    out = kvcache(FlashAttn2(), **{**a, "cache_seqlens": 5})
    close(out[1], expected(a["q"][1], *sequence(a, 1, 5), everything)[0])


def test_2_believes_max_seqlen_k() -> None:
    """api:737: with max_seqlen_k 0 nothing is computed. api:610: a window as wide as max_seqlen_k is dropped, whatever
    the lengths are."""
    a = packed()
    out, lse, _ = varlen(FlashAttn2(), **{**a, "max_seqlen_k": 0}, return_attn_probs=True)
    assert plain_of(out).eq(0).all()
    assert plain_of(lse).eq(INF).all()
    window = {"window_size": (1, 0), "causal": True}
    close(varlen(FlashAttn2(), **a, **window), of_packed(a, between(1, 0))[0])
    close(varlen(FlashAttn2(), **{**a, "max_seqlen_k": 1}, **window), of_packed(a, causal)[0])


def test_2_leaves_rows_past_max_seqlen_q_unwritten() -> None:
    """flash_fwd_launch_template.h:63: the grid ends there."""
    a = packed()
    out = plain_of(varlen(FlashAttn2(), **{**a, "max_seqlen_q": 2}, causal=True))
    assert out[2].isnan().all()
    close(out[:2], of_packed(a, causal)[0][:2])


def decode(page_size: int, lens: tuple[int, ...] = (5, 3, 4)) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """One token per sequence through pages, for varlen functions; the K and V of each."""
    k, v = randn(4, page_size, 2, 16, seed=1), randn(4, page_size, 2, 16, seed=2)
    a = {"q": randn(3, 4, 16), "k": k, "v": v, "cu_seqlens_q": cumulative(1, 1, 1), "cu_seqlens_k": cumulative(*lens),
         "max_seqlen_q": 1, "max_seqlen_k": max(lens), "block_table": ints(2, 0, 3).view(3, 1), "causal": True}
    wanted = [expected(a["q"][b:b + 1], k[p, :n], v[p, :n], causal) for b, (p, n) in enumerate(zip((2, 0, 3), lens))]
    return a, torch.cat([o for o, _ in wanted]), torch.cat([lse for _, lse in wanted], 1)


def test_2_shuffles_the_lse_of_paged_decoding_in_varlen() -> None:
    """flash_fwd_kernel.h:1023-1025 writes [Hkv, B, groups] where api:751 returns [Hkv, groups, B] (unsplit, GQA, one
    query each). The outputs are right. Splits are written right (flash_fwd_kernel.h:1146)."""
    a, wanted, wanted_lse = decode(256)
    out, lse, _ = varlen(FlashAttn2(), **a, return_attn_probs=True)
    close(out, wanted)
    as_written = wanted_lse.view(2, 2, 3).transpose(1, 2).reshape(2, 2, 3).reshape(4, 3)
    close(lse, as_written, 1e-4)
    assert not torch.allclose(plain_of(lse).double(), wanted_lse, atol=1e-2)
    split = {**a, "max_seqlen_k": 100_000}  # enough blocks of keys for the heuristic to split
    close(varlen(FlashAttn2(), **split, return_attn_probs=True)[1], wanted_lse, 1e-4)
    one_group = {**a, "q": a["q"][:, :2]}
    lse = varlen(FlashAttn2(), **one_group, return_attn_probs=True)[1]
    close(lse[0], torch.stack([expected(a["q"][b:b + 1, :2], a["k"][p, :n], a["v"][p, :n], causal)[1][0, 0]
                               for b, (p, n) in enumerate(((2, 5), (0, 3), (3, 4)))]), 1e-4)


def test_2_puts_the_lse_of_an_empty_sequence_elsewhere() -> None:
    """flash_fwd_kernel.h:545: the early exit of paged kernels counts in [B, H, max_seqlen_q], also for packed rows."""
    c = paged(256, heads=2)
    a = {"q": randn(4, 2, 16), "k": c["k_cache"], "v": c["v_cache"], "cu_seqlens_q": cumulative(2, 2),
         "cu_seqlens_k": cumulative(5, 0), "max_seqlen_q": 2, "max_seqlen_k": 5, "block_table": c["page_table"]}
    lse = plain_of(varlen(FlashAttn2(), **a, return_attn_probs=True)[1])
    assert lse[0, 2:].isnan().all(), "its place was not written"
    assert lse[1, 2:].eq(INF).all()
    assert lse[1, :2].isnan().all(), "the first sequence's LSE of head 1 was written over"
    with pytest.raises(RuntimeError, match="written past its end"):
        varlen(FlashAttn2(), **{**a, "q": randn(3, 2, 16), "cu_seqlens_q": cumulative(2, 1)}, return_attn_probs=True)


def test_2_alibi_is_right_and_its_causal_lse_is_not() -> None:
    """mask.h:181: causal adds slope * j for -slope * (p - j); the row's LSE is off by slope * p."""
    a = paged(256, table="block_table")
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    out, lse = kvcache(FlashAttn2(), **a, causal=True, alibi_slopes=on(slopes, CUDA), return_softmax_lse=True)
    wanted, wanted_lse = expected(a["q"][0], *sequence(a, 0), causal, bias=lambda h, p,
        j: -float(slopes[h]) * abs(p - j))
    close(out[0], wanted)
    close(lse[0], wanted_lse + slopes.double()[:, None] * torch.tensor([3.0, 4.0]), 1e-4)
    out, lse = kvcache(FlashAttn2(), **a, alibi_slopes=on(slopes, CUDA), return_softmax_lse=True)
    close(lse[0], expected(a["q"][0], *sequence(a, 0), everything,
                           bias=lambda h, p, j: -float(slopes[h]) * abs(p - j))[1], 1e-4)


def test_2_pads_odd_head_dims() -> None:
    """api:1300-1308: rounded to 8 in the function with a cache, the cache copied back after an append."""
    a = paged(256, dim=20, table="block_table")
    new = {"k": randn(2, 1, 2, 20), "v": randn(2, 1, 2, 20)}
    out = kvcache(FlashAttn2(), **a, **new, causal=True)
    k, v = sequence(a, 1, 4)
    close(k[3], plain_of(new["k"])[1, 0].double())
    close(out[1], expected(a["q"][1], k, v, causal)[0])
    for release in ("2.5.9.post1", "2.8.3.post1"):
        odd = packed(dim=20)
        close(varlen(FlashAttn2(release=release), **odd, causal=True), of_packed(odd, causal)[0])


# --- traps of 3 ---

def test_3_returns_four_values_from_its_kvcache_and_none_or_two_from_varlen() -> None:
    """flash_attn_interface.py: `(out, softmax_lse, *rest)`; FlashAttnVarlenFunc returns out alone at v2.8.3.post1."""
    a = paged(4)
    result = kvcache(FlashAttn3(), **a, return_softmax_lse=True)
    assert len(result) == 4
    assert (result[1].shape, result[1].dtype) == ((2, 4, 2), torch.float32)
    assert isinstance(varlen(FlashAttn3(release="git v2.8.3.post1"), **packed()), torch.Tensor)
    with pytest.raises(TypeError, match="return_attn_probs"):
        varlen(FlashAttn3(release="git v2.8.3.post1"), **packed(), return_attn_probs=True)
    _, lse = varlen(FlashAttn3(), **packed(), return_attn_probs=True)
    close(lse, of_packed(packed(), everything)[1], 1e-4)


def test_3_varlen_has_no_pages() -> None:
    """hopper/flash_attn_interface.py: flash_attn_varlen_func passes None for page_table."""
    for release in ("git v2.8.3.post1", "git 203b9b3d", "git 0251105a"):
        with pytest.raises(TypeError, match="page_table"):
            varlen(FlashAttn3(release=release), **packed(), page_table=ints(0).view(1, 1))


def test_3_masked_rows_are_minus_infinity_but_for_a_call_without_keys() -> None:
    """softmax.h:151, epilogue_fwd.hpp:441; api:1286: fill_(infinity) where total_k is 0."""
    out, lse = varlen(FlashAttn3(), **packed((3, 2), (1, 0)), causal=True, return_attn_probs=True)
    assert plain_of(lse)[:, [0, 1, 3, 4]].eq(-INF).all()
    assert plain_of(out)[[0, 1, 3, 4]].eq(0).all()
    lse = varlen(FlashAttn3(), **{**packed((3, 2), (0, 0))}, causal=True, return_attn_probs=True)[1]
    assert plain_of(lse).eq(INF).all()


def test_3_ignores_descales_in_16_bits() -> None:
    """api:1170: descales are looked at where q is fp8, and nowhere else: neither shape nor device."""
    a = paged(4)
    plain = kvcache(FlashAttn3(), **a)
    scaled = kvcache(FlashAttn3(), **a, k_descale=torch.full((7,), 9.0), v_descale=torch.tensor(3.0))
    assert torch.equal(plain_of(plain), plain_of(scaled))


def test_3_fp8_with_descales_per_kv_head() -> None:
    """api:1170-1200: all of q, k, v fp8, descales [B, Hkv], q's too; mainloop_fwd_sm90_tma_gmma_ws.hpp:1069, 1241.
    The output is bf16."""
    a = fp8(paged(4))
    scales = {name: on(torch.tensor([[0.5, 2.0], [1.5, 0.25]]) * n, CUDA)
              for n, name in enumerate(("q_descale", "k_descale", "v_descale"), 1)}
    out, lse, *_ = kvcache(FlashAttn3(), **a, **scales, causal=True, return_softmax_lse=True, softcap=2.0)
    assert out.dtype == BF16
    for b in range(2):
        k, v = (t.double() for t in sequence(a, b))
        q = plain_of(a["q"][b]).double() * plain_of(scales["q_descale"])[b].double().repeat_interleave(2)[:, None]
        k, v = (t * plain_of(scales[n])[b].double()[:, None] for t, n in ((k, "k_descale"), (v, "v_descale")))
        wanted, wanted_lse = expected(q, k, v, causal, softcap=2.0)
        close(out[b], wanted, 4e-2)
        close(lse[b], wanted_lse, 1e-4)
    with pytest.raises(RuntimeError, match=r"k_descale must have shape \(batch_size, num_heads_k\)"):
        kvcache(FlashAttn3(), **a, k_descale=on(torch.tensor(1.0), CUDA))


def test_3_attention_chunk() -> None:
    """mask.h:117: keys of the query's own chunk, intersected with causal. api:121: also limits the window."""
    a = paged(4)
    for b in range(2):
        close(kvcache(FlashAttn3(), **a, causal=True, attention_chunk=2)[b],
              expected(a["q"][b], *sequence(a, b), lambda p, j: p // 2 * 2 <= j <= p)[0])
    assert torch.equal(plain_of(kvcache(SglKernel(), **a, causal=True)),
                       plain_of(kvcache(SglKernel(), **a, causal=True, attention_chunk=None)))
    with pytest.raises(Undocumented, match="negative positions"):
        kvcache(FlashAttn3(), **{**a, "cache_seqlens": ints(1, 3)}, causal=True, attention_chunk=2)
    # block.h:22, sm90 mainloop:1377: of no keys no block is visited, whatever round_down makes of a negative position.
    out = kvcache(FlashAttn3(), **{**a, "cache_seqlens": ints(0, 3)}, causal=True, attention_chunk=2)
    assert not plain_of(out)[0].any()
    assert plain_of(out)[1].any()


def test_3_a_window_over_everything_is_none_and_turns_queries_otherwise() -> None:
    """api:790-791: window (big, big) without causal is no window; then FixedPosition holds (mainloop:1099)."""
    new = {"k": randn(2, 2, 2, 16, seed=7), "v": randn(2, 2, 2, 16, seed=8),
           "rotary_cos": on(torch.rand(8, 8).to(BF16), CUDA), "rotary_sin": on(torch.rand(8, 8).to(BF16), CUDA)}

    def run(**more: Any) -> torch.Tensor:
        return plain_of(kvcache(FlashAttn3(), **paged(4), **new, **more)).clone()

    assert torch.equal(run(window_size=(100, 100)), run())
    local = run(window_size=(5, 0))  # len_k is 7 and 5, the table 8 wide: local, and causal in effect
    assert not torch.equal(local[0], run()[0])
    assert torch.equal(run(window_size=(7, 0), causal=True), run(causal=True))


def test_3_default_scale_with_qv_counts_both_parts() -> None:
    """flash_attn_interface.py: (q.shape[-1] + qv.shape[-1]) ** -0.5; vLLM's takes q's alone (interface:325)."""
    a = paged(4, heads=2, heads_k=1, dim=64, dim_v=512)
    qv = randn(2, 2, 2, 512, seed=5)
    out = kvcache(FlashAttn3(), **a, qv=qv, causal=True)
    close(out[0], expected(a["q"][0], *sequence(a, 0), causal, 576 ** -0.5, latent=qv[0])[0])
    flat = {"q": a["q"].reshape(4, 2, 64), "k": a["k_cache"], "v": a["v_cache"], "cu_seqlens_q": cumulative(2, 2),
            "max_seqlen_q": 2, "max_seqlen_k": 5, "seqused_k": a["cache_seqlens"], "block_table": a["page_table"]}
    out = varlen(VllmFlashAttn(), **flat, fa_version=3, q_v=qv.reshape(4, 2, 512), causal=True)
    close(out[:2], expected(a["q"][0], *sequence(a, 0), causal, 64 ** -0.5, latent=qv[0])[0], 4e-2)


def test_3_a_number_of_tokens_counts_rows_of_the_cache_or_of_q() -> None:
    """v2.8.3.post1 flash_attn_interface.py:754 k_cache.shape[0]; 203b9b3d: q.shape[0]; SGLang 0.4.0:167 and 0.4.10:210
    the same two."""
    a = {**paged(4), "cache_seqlens": 5}
    for old in (FlashAttn3(release="git v2.8.3.post1"), SglKernel(release="0.4.0")):
        with pytest.raises(RuntimeError, match=r"seqused_k must have shape \(batch_size\)"):
            kvcache(old, **a)
    for new in (FlashAttn3(), SglKernel()):
        close(kvcache(new, **a)[1], expected(a["q"][1], *sequence(a, 1, 5), everything)[0])


def test_3_packed_queries_and_packed_new_tokens() -> None:
    """api:1000-1045: cu_seqlens_q with cu_seqlens_k_new; rows of q that no sequence owns stay unwritten."""
    a = paged(4)
    q, new = randn(5, 4, 16), {"k": randn(3, 2, 16, seed=4), "v": randn(3, 2, 16, seed=5)}
    out = kvcache(FlashAttn3(), **{**a, "q": q}, **new, cu_seqlens_q=cumulative(3, 1), max_seqlen_q=3,
                  cu_seqlens_k_new=cumulative(2, 1), causal=True)
    close(out[:3], expected(q[:3], *sequence(a, 0, 7), causal)[0])
    close(out[3:4], expected(q[3:4], *sequence(a, 1, 4), causal)[0])
    assert plain_of(out)[4].isnan().all()
    close(sequence(a, 1, 4)[0][3], plain_of(new["k"])[2].double())


def test_3_seqused_in_varlen() -> None:
    """seqlen.h:84-92: only the first seqused tokens count, at their cumulative places; the rest is not written."""
    a = packed()
    out = varlen(FlashAttn3(), **a, seqused_q=ints(2, 2), seqused_k=ints(3, 4), causal=True)
    close(out[:2], expected(a["q"][:2], a["k"][:3], a["v"][:3], causal)[0])
    assert plain_of(out)[2].isnan().all()
    close(out[3:], expected(a["q"][3:], a["k"][5:], a["v"][5:], causal)[0])


# --- scheduler metadata ---

PLAN = {"batch_size": 2, "max_seqlen_q": 2, "max_seqlen_k": 8, "num_heads_q": 4, "num_heads_kv": 2, "headdim": 16,
        "qkv_dtype": BF16, "page_size": 4, "causal": True}


def plan(vendor: Vendor, **more: Any) -> torch.Tensor:
    return call(vendor, ".get_scheduler_metadata", **{**PLAN, "cache_seqlens": ints(*LENGTHS), **more})


def test_3_metadata_is_used_and_may_be_copied_and_reused() -> None:
    for release in ("git v2.8.3.post1", "git 203b9b3d"):
        vendor, a = FlashAttn3(release=release), paged(4)
        kept = on(torch.zeros(64, dtype=torch.int32), CUDA)
        made = plan(vendor)
        kept[:len(made)] = made  # what engines do for graphs
        for _ in range(2):
            out = kvcache(vendor, **a, causal=True, scheduler_metadata=kept[:len(made)])
            assert torch.equal(plain_of(out), plain_of(kvcache(vendor, **a, causal=True)))


@pytest.mark.parametrize(("release", "is_causal", "window", "size"), [
    ("git v2.8.3.post1", True, (-1, -1), 3),  # v2.8.3.post1 api:956: 1 + B
    ("git 203b9b3d", True, (-1, -1), 17), ("git 203b9b3d", False, (-1, -1), 13), ("git 203b9b3d", True, (2, 0), 13),
])  # api:614-627: vectors of B rounded to 4, one more unless local, one more if causal or local, and the semaphore
def test_3_metadata_sizes(release: str, is_causal: bool, window: tuple[int, int], size: int) -> None:
    vendor = FlashAttn3(release=release)
    assert len(plan(vendor, causal=is_causal, window_size=window)) == size
    if release != "git v2.8.3.post1":
        other = plan(vendor, causal=not is_causal, window_size=(-1, -1) if window != (-1, -1) else (2, 0))
        if len(other) != size:
            with pytest.raises(RuntimeError, match=r"scheduler_metadata must have shape \(metadata_size\)"):
                kvcache(vendor, **paged(4), causal=is_causal, window_size=window, scheduler_metadata=other)


def test_3_metadata_of_shorter_queries_leaves_rows_unwritten() -> None:
    """flash_prepare_scheduler.cu: num_m_blocks per sequence comes from the plan, so later tiles never run."""
    vendor = FlashAttn3()
    a = {**packed((200, 1), (300, 300), heads=1, heads_k=1), "causal": True}
    c = {"q": a["q"], "k_cache": randn(80, 8, 1, 16), "v_cache": randn(80, 8, 1, 16), "cache_seqlens": ints(300, 300),
         "page_table": on(torch.arange(80).view(2, 40).int(), CUDA), "cu_seqlens_q": a["cu_seqlens_q"],
         "max_seqlen_q": 200, "causal": True}
    shape = {"num_heads_q": 1, "num_heads_kv": 1, "max_seqlen_q": 200, "max_seqlen_k": 320, "page_size": 8,
             "cache_seqlens": ints(300, 300)}
    right = kvcache(vendor, **c, scheduler_metadata=plan(vendor, **shape, cu_seqlens_q=a["cu_seqlens_q"]))
    assert not plain_of(right).isnan().any()
    wrong = plain_of(kvcache(vendor, **c, scheduler_metadata=plan(vendor, **shape, cu_seqlens_q=cumulative(1, 1))))
    assert wrong[192:200].isnan().all(), "rows past the planned tile of 192"
    assert torch.equal(wrong[:192], plain_of(right)[:192])


@pytest.mark.parametrize(("more", "said"), [
    ({"cache_seqlens": ints(5, 4)}, "lens_k"), ({"num_heads_q": 8}, "heads"), ({"headdim": 64}, "head_dims"),
    ({"page_size": None}, "paged"), ({"has_softcap": True}, "softcap"), ({"qkv_dtype": torch.float16}, "dtype"),
    ({"max_seqlen_k_new": 1}, "appended")])
def test_3_metadata_of_another_call_is_said_aloud(more: dict[str, Any], said: str) -> None:
    """The kernel would not notice; no document says that it may be done."""
    vendor = FlashAttn3()
    with pytest.raises(StalePlan, match=said):
        kvcache(vendor, **paged(4), causal=True, scheduler_metadata=plan(vendor, **more))
    with pytest.raises(StalePlan, match="not made by"):
        kvcache(vendor, **paged(4), causal=True, scheduler_metadata=on(torch.zeros(17, dtype=torch.int32), CUDA))


def test_vllm_metadata_has_sizes_of_its_own() -> None:
    """vllm-fa hopper api: no sorted vector, and one for split counts where num_splits > 1."""
    vendor = VllmFlashAttn()
    sizes = {(causal_, splits): len(plan(vendor, causal=causal_, num_splits=splits))
             for causal_ in (True, False) for splits in (0, 8)}
    assert sizes == {(True, 0): 9, (True, 8): 13, (False, 0): 5, (False, 8): 9}
    with pytest.raises(TypeError, match="attention_chunk"):
        plan(vendor, attention_chunk=0)


# --- SGLang's build ---

def test_sgl_sinks_and_four_values() -> None:
    """sgl-attn 98c2b6c softmax.h:160-180: exp(sink) joins the denominator, unscaled, and the LSE."""
    a, sinks = paged(1), randn(4, seed=9)
    result = kvcache(SglKernel(), **a, causal=True, sinks=sinks, return_softmax_lse=True)
    assert len(result) == 4
    assert len(varlen(SglKernel(), **packed(), return_softmax_lse=True)) == 4
    for b in range(2):
        wanted, wanted_lse = expected(a["q"][b], *sequence(a, b), causal, sink=plain_of(sinks))
        close(result[0][b], wanted)
        close(result[1][b], wanted_lse, 1e-4)


def test_sgl_sinks_of_rows_without_keys() -> None:
    """A row masked in a tile that has keys: its sink (softmax.h finalize). A sequence without keys: its tile is
    skipped,
    -inf (epilogue_fwd.hpp store_zero)."""
    sinks = randn(4, seed=9)
    a = {**paged(1), "cache_seqlens": ints(1, 0)}
    out, lse, *_ = kvcache(SglKernel(), **a, causal=True, sinks=sinks, return_softmax_lse=True)
    close(lse[0, :, 0], plain_of(sinks).double(), 1e-4)
    assert plain_of(lse[1]).eq(-INF).all()
    assert plain_of(out[0, 0]).eq(0).all()
    assert plain_of(out[1]).eq(0).all()


def test_sgl_varlen_takes_pages_and_does_not_read_them() -> None:
    """sgl_kernel/flash_attn.py 0.4.10:336 `None,  # page_table`: with as many pages as sequences, page b is read for
    sequence b."""
    k, v = randn(2, 8, 2, 16, seed=1), randn(2, 8, 2, 16, seed=2)
    a = {"q": randn(4, 4, 16), "k": k, "v": v, "cu_seqlens_q": cumulative(2, 2), "cu_seqlens_k": None,
         "max_seqlen_q": 2, "max_seqlen_k": 8, "seqused_k": ints(5, 3), "page_table": ints(1, 0).view(2, 1)}
    out = varlen(SglKernel(), **a, causal=True)
    close(out[:2], expected(a["q"][:2], k[0, :5], v[0, :5], causal)[0])
    with pytest.raises(RuntimeError, match="batch_size must be equal to batch_size_k"):
        varlen(SglKernel(), **{**a, "k": randn(3, 8, 2, 16), "v": randn(3, 8, 2, 16)})


def test_sgl_ver_means_something_in_one_release() -> None:
    """0.3.21 flash_attn.py:163 sends ver=4 to FlashAttention 4; 0.4.0 and 0.4.10 have no such line and run 3."""
    a = paged(4)
    shared = {**a, "causal": True, "qv": None, "ver": 4, "return_softmax_lse": True}
    assert len(kvcache(SglKernel(release="0.3.21", arch="sm100"), **shared)) == 2
    assert len(kvcache(SglKernel(release="0.4.10"), **shared)) == 4
    with pytest.raises(RuntimeError, match="no kernel image"):
        kvcache(SglKernel(release="0.4.10", arch="sm100"), **shared)
    out = kvcache(SglKernel(release="0.3.21", arch="sm100"), **a, window_size=(2, -1), ver=4)
    # _fa4_interface.py:276: windows as they stand.
    close(out[0], expected(a["q"][0], *sequence(a, 0), between(2, -1))[0])
    out = kvcache(SglKernel(release="0.3.21", arch="sm100"), **a, window_size=(-1, 0), ver=4)
    assert plain_of(out).eq(0).all(), "no key at all, where flash-attn-4's own b3 reads full attention"
    chunked = kvcache(SglKernel(release="0.3.21", arch="sm100"), **a, causal=True, attention_chunk=2, ver=4)
    close(chunked[0], expected(a["q"][0], *sequence(a, 0), causal)[0])  # not handed on


def test_sgl_only_qv_scores_by_the_latent_part() -> None:
    """sgl_kernel/flash_attn.py 0.4.10:203: scale qv ** -0.5 with a cache, but :316 of both parts in varlen."""
    a = paged(4, heads=2, heads_k=1, dim=64, dim_v=512)
    qv = randn(2, 2, 2, 512, seed=5)
    arguments = {**a, "q": None, "k_cache": None, "qv": qv, "only_qv": True, "causal": True}
    k, v = sequence(a, 0)
    wanted = expected(qv[0], v, v, causal, 512 ** -0.5)[0]
    close(kvcache(SglKernel(), **arguments)[0], wanted, 4e-2)
    b = {"q": randn(2, 2, 64), "k": on(k, CUDA), "v": on(v, CUDA), "cu_seqlens_q": cumulative(2),
         "cu_seqlens_k": cumulative(5), "max_seqlen_q": 2, "max_seqlen_k": 5}
    out = varlen(SglKernel(), **b, qv=qv[0], only_qv=True, causal=True)
    close(out, expected(qv[0], v, v, causal, 576 ** -0.5)[0], 4e-2)


# --- vLLM's build ---

def test_vllm_2_drops_arguments_without_a_word() -> None:
    """vllm interface:339: refused only where the metadata and all three descales come together; q_v and cp_* are passed
    to nothing."""
    a = {**packed(), "causal": True}
    plain = varlen(VllmFlashAttn(), **a)
    for more in ({"k_descale": torch.ones(1), "v_descale": torch.ones(1)}, {"q_v": randn(5, 4, 16)},
                 {"cp_world_size": 2, "cp_rank": 1}, {"scheduler_metadata": ints(1)}):
        assert torch.equal(plain_of(varlen(VllmFlashAttn(), **a, **more)), plain_of(plain)), more


def test_vllm_2_needs_offsets_where_there_are_no_pages() -> None:
    """vllm interface:335: cu_seqlens_k is torch.empty_like then, which block_info.h:23 reads as offsets."""
    a = {**packed(), "cu_seqlens_k": None, "seqused_k": ints(5, 4)}
    with pytest.raises(Undocumented, match=r"torch\.empty"):
        varlen(VllmFlashAttn(), **a)


def test_vllm_2_straightens_the_lse_of_paged_decoding_and_bends_the_other() -> None:
    """vllm-fa flash_api.cpp, lse_size_before: transposed wherever unsplit, also after the standard kernel, which had
    written it right (flash_fwd_kernel.h:40)."""
    a, wanted, wanted_lse = decode(16)
    del a["cu_seqlens_k"]
    out, lse = varlen(VllmFlashAttn(), **a, seqused_k=ints(5, 3, 4), return_softmax_lse=True)
    close(out, wanted)
    close(lse, wanted_lse, 1e-4)
    b = {**packed((1, 1, 1), (5, 3, 4)), "causal": True}
    lse = varlen(VllmFlashAttn(), **b, return_softmax_lse=True)[1]
    right = of_packed(b, causal)[1]
    assert not torch.allclose(plain_of(lse).double(), right, atol=1e-2)
    close(varlen(FlashAttn2(), **b, return_attn_probs=True)[1], right, 1e-4)


def test_vllm_3_believes_max_seqlen_k_where_upstream_counts_pages() -> None:
    """vllm-fa hopper api: seqlen_k = max_seqlen_k if given; a window of max_seqlen_k - 1 or more is dropped."""
    c = paged(4)
    a = {"q": c["q"].reshape(4, 4, 16), "k": c["k_cache"], "v": c["v_cache"], "cu_seqlens_q": cumulative(2, 2),
         "max_seqlen_q": 2, "seqused_k": c["cache_seqlens"], "block_table": c["page_table"], "fa_version": 3,
         "window_size": [1, 0], "causal": True}
    for told, see in ((5, between(1, 0)), (2, causal)):
        close(varlen(VllmFlashAttn(), **a, max_seqlen_k=told)[:2], expected(c["q"][0], *sequence(c, 0), see)[0])


def test_vllm_3_context_parallel_ranks_add_up() -> None:
    """vllm-fa hopper mask.h: key j of rank r is j * n + r of the whole; merged over ranks, the unsharded answer.
    Without
    causal a rank sees all that it holds."""
    q, k, v = randn(3, 4, 16), randn(9, 2, 16, seed=1), randn(9, 2, 16, seed=2)
    parts = []
    for rank in range(2):
        own_k, own_v = (on(plain_of(t)[rank::2].contiguous(), CUDA) for t in (k, v))
        parts.append(varlen(VllmFlashAttn(), q=q, k=own_k, v=own_v, cu_seqlens_q=cumulative(3), max_seqlen_q=3,
                            cu_seqlens_k=cumulative(len(own_k)), max_seqlen_k=len(own_k), causal=True, fa_version=3,
                            return_softmax_lse=True, cp_world_size=2, cp_rank=rank, cp_tot_seqused_k=ints(9)))
    outs, lses = ([plain_of(p[i]).double() for p in parts] for i in (0, 1))
    total = torch.logaddexp(*lses)
    merged = sum(o * torch.exp(lse - total).T[..., None] for o, lse in zip(outs, lses))
    wanted, wanted_lse = expected(q, k, v, causal)
    close(merged, wanted)
    close(total, wanted_lse, 1e-4)


def test_vllm_3_context_parallel_rows_without_keys_and_a_sink() -> None:
    """vllm-fa hopper block.h: which tiles reach a block of keys counts from the global length and the rank. Row 0 of
    rank 1 sees nothing and stands in a tile that sees something: its LSE is the sink."""
    q, k, v = randn(64, 8, 16), randn(32, 2, 16, seed=1), randn(32, 2, 16, seed=2)
    sinks = on(torch.linspace(-1, 2, 8).bfloat16(), CUDA)
    out, lse = varlen(VllmFlashAttn(), q=q, k=k, v=v, cu_seqlens_q=cumulative(64), max_seqlen_q=64,
                      cu_seqlens_k=cumulative(32), max_seqlen_k=32, causal=True, fa_version=3, return_softmax_lse=True,
                      s_aux=sinks, cp_world_size=2, cp_rank=1, cp_tot_seqused_k=ints(64))
    close(plain_of(lse)[:, 0].double(), plain_of(sinks).double(), 1e-6)
    assert not plain_of(out)[0].any()


def test_vllm_4_makes_negative_windows_none() -> None:
    """vllm interface:481-482; so (W - 1, -1) and (-1, 0) mean what they say there."""
    a = packed()
    for size, see in (([1, -1], between(1, INF)), ([-1, 0], causal), ([-1, -1], everything)):
        close(varlen(VllmFlashAttn(), **a, fa_version=4, window_size=size), of_packed(a, see)[0])


# --- 4 ---

def nothing(p: int, j: int) -> bool:
    return False


@pytest.mark.parametrize(("release", "is_causal", "window", "see"), [
    # b3 interface:263-266, b27 interface:395-399: causal sets right to 0; a negative sum is no window.
    ("4.0.0b3", False, (-1, -1), everything), ("4.0.0b3", True, (-1, -1), causal), ("4.0.0b27", True, (-1, 0), causal),
    ("4.0.0b3", False, (-1, 0), everything), ("4.0.0b27", False, (-1, 0), everything),
    ("4.0.0b27", False, (0, -1), everything), ("4.0.0b27", False, (2, -1), between(2, -1)),
    ("4.0.0b27", False, (-1, 2), between(-1, 2)),
    # b36 interface:445-450: both negative is no window, before causal; else each is read as it stands.
    ("4.0.0b36", False, (-1, -1), everything), ("4.0.0b36", True, (-1, -1), causal),
    ("4.0.0b36", False, (-1, 0), nothing), ("4.0.0b36", True, (-1, 0), nothing), ("4.0.0b36", False, (0, -1), nothing),
    ("4.0.0b36", False, (2, -1), between(2, -1)),
    # None is unbounded everywhere.
    ("4.0.0b3", False, (None, 0), causal), ("4.0.0b36", False, (None, 0), causal), ("4.0.0b36", True, (2, None),
     between(2, 0)),
    ("4.0.0b27", False, (2, None), between(2, INF)), ("4.0.0b36", False, (None, None), everything)])
def test_4_reads_windows_literally(release: str, is_causal: bool, window: Any, see: Visible) -> None:
    a = packed()
    out, lse = varlen(FlashAttn4(release=release), **a, causal=is_causal, window_size=window, return_lse=True)
    wanted, wanted_lse = of_packed(a, see)
    close(out, wanted)
    close(lse, wanted_lse, 1e-4)


def test_4_always_returns_two_values() -> None:
    """cute b36 interface:4032 `return out, lse`: without return_lse the second is None."""
    for release in ("4.0.0b3", "4.0.0b27", "4.0.0b36"):
        assert varlen(FlashAttn4(release=release), **packed())[1] is None


def test_4_has_no_function_with_a_cache() -> None:
    vendor = FlashAttn4()
    with vendor.installed():
        import flash_attn.cute.interface as interface

        assert not hasattr(interface, "flash_attn_with_kvcache")
    parameters = inspect.signature(vendor._function("flash_attn.cute.interface.flash_attn_varlen_func")).parameters
    assert not {"cache_seqlens", "rotary_cos", "k_descale", "attention_chunk"} & set(parameters)
    assert list(parameters)[3] == "qv"
    assert "qv" not in inspect.signature(FlashAttn4(release="4.0.0b3")._function(
        "flash_attn.cute.interface.flash_attn_varlen_func")).parameters


@pytest.mark.parametrize(("release", "arch"), [("4.0.0b3", "sm100"), ("4.0.0b27", "sm90"), ("4.0.0b36", "sm110")])
def test_4_pages_and_sinks(release: str, arch: str) -> None:
    """page_table with seqused_k; without it, all that the table has counts (seqlen_info: seqlen_k_static)."""
    a, sink = four_paged(), randn(4, seed=9)
    out, lse = varlen(FlashAttn4(release=release, arch=arch), **a, causal=True, learnable_sink=sink, return_lse=True)
    c = paged(4)
    for b in range(2):
        wanted, wanted_lse = expected(c["q"][b], *sequence(c, b), causal, sink=plain_of(sink))
        close(out[b], wanted)
        close(lse[b], wanted_lse, 1e-4)
    out, _ = varlen(FlashAttn4(release=release, arch=arch), **{**a, "seqused_k": None}, causal=True)
    close(out[1], expected(c["q"][1], *sequence(c, 1, 8), causal)[0])


@pytest.mark.parametrize(("release", "arch", "with_sink"), [
    ("4.0.0b3", "sm90", "nan"), ("4.0.0b3", "sm100", "sink"), ("4.0.0b27", "sm90", "sink"), ("4.0.0b36", "sm100",
     "sink")])
def test_4_rows_without_keys(release: str, arch: str, with_sink: str) -> None:
    """cute softmax.py finalize: -inf. With a sink b3 on sm90 adds exp2(sink - -inf), hence NaN; flash_fwd_sm100.py:2318
    and
    later releases give the sink."""
    a = packed((3, 2), (1, 4))
    lse = plain_of(varlen(FlashAttn4(release=release, arch=arch), **a, causal=True, return_lse=True)[1])
    assert lse[:, :2].eq(-INF).all()
    sink = randn(4, seed=9)
    out, lse = varlen(FlashAttn4(release=release, arch=arch), **a, causal=True, return_lse=True, learnable_sink=sink)
    assert plain_of(out)[:2].eq(0).all()
    if with_sink == "nan":
        assert plain_of(lse)[:, :2].isnan().all()
        assert not plain_of(lse)[:, 2:].isnan().any()
    else:
        close(lse[:, 0], plain_of(sink).double(), 1e-4)


def test_4_without_any_key() -> None:
    """cute b36 interface:899-907: out 0, LSE -inf or the sink; b3 has no such line."""
    a, sink = packed((3, 2), (0, 0)), randn(4, seed=9)
    out, lse = varlen(FlashAttn4(), **a, return_lse=True)
    assert plain_of(out).eq(0).all()
    assert plain_of(lse).eq(-INF).all()
    close(varlen(FlashAttn4(), **a, return_lse=True, learnable_sink=sink)[1][:, 1], plain_of(sink).double(), 1e-4)
    with pytest.raises(Undocumented, match="without any query or key"):
        varlen(FlashAttn4(release="4.0.0b3"), **a)


def test_4_softcap_and_seqused() -> None:
    a = packed()
    out, _ = varlen(FlashAttn4(), **a, softcap=1.5, causal=True, seqused_q=ints(2, 2), seqused_k=ints(3, 4))
    close(out[:2], expected(a["q"][:2], a["k"][:3], a["v"][:3], causal, softcap=1.5)[0])
    assert plain_of(out)[2].isnan().all(), "queries past seqused_q are not written"


def test_4_latent_queries_have_their_lse_the_other_way_round() -> None:
    """cute b36 interface:869: (total_q, H) with qv; scale of both parts (interface:854). sm100 alone, 64 + 512."""
    a = {**packed(heads=2, heads_k=1, dim=64), "v": randn(9, 1, 512, seed=3)}
    qv = randn(5, 2, 512, seed=4)
    out, lse = varlen(FlashAttn4(), **a, qv=qv, causal=True, return_lse=True)
    wanted, wanted_lse = expected(a["q"][:3], a["k"][:5], a["v"][:5], causal, 576 ** -0.5, latent=qv[:3])
    close(out[:3], wanted)
    assert lse.shape == (5, 2)
    close(lse[:3], wanted_lse.T, 1e-4)
    with pytest.raises(AssertionError, match="only support Blackwell arch with qv"):
        varlen(FlashAttn4(arch="sm120"), **a, qv=qv)
    with pytest.raises(AssertionError, match="local not yet supported with qv"):
        varlen(FlashAttn4(), **a, qv=qv, window_size=(2, 0))
    with pytest.raises(AssertionError):
        varlen(FlashAttn4(release="4.0.0b27"), **a, qv=qv, learnable_sink=randn(2))


def test_4_automatic_splits_fail_on_sm90_for_long_keys() -> None:
    """cute b36 interface:315-328, 1631: num_splits=0 chooses a split where there are more than 4 blocks of keys."""
    long = {**packed((1,), (700,), heads=1, heads_k=1), "num_splits": 0}
    with pytest.raises(AssertionError, match=r"SplitKV not supported on SM 9\.0"):
        varlen(FlashAttn4(arch="sm90"), **long)
    varlen(FlashAttn4(arch="sm90"), **{**packed(), "num_splits": 0})
    out, _ = varlen(FlashAttn4(arch="sm100"), **long)
    close(out, of_packed(long, everything)[0])


def test_everything_is_recorded_and_installable() -> None:
    vendor = FlashAttn2(release="2.6.1")
    with vendor.installed():
        from flash_attn.flash_attn_interface import flash_attn_with_kvcache

        flash_attn_with_kvcache(**paged(256, table="block_table"))
    assert vendor.calls[0].devices["block_table"] == CUDA
    assert isinstance(vendor.calls[0], tuple)
    assert isinstance(types.SimpleNamespace(**vendor.calls[0].arguments).causal, bool)
