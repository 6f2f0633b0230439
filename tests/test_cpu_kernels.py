"""The cpu backend beyond the conformance grid: build, variants, threads, splits, determinism, faults and refusals."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hal
from hal import contract, env, kv_cache, oracle, registry
from hal.backends.cpu import CPU
from hal.conformance.grid import grid
from hal.conformance.runner import Runner
from hal.kernels.cpu import call, library
from hal.platform import detect

ROOT = Path(__file__).parents[1]
built = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))


def impl(dtype: str = "bfloat16", heads: int = 8, kv_heads: int = 2, dim: int = 64, **fields: Any) -> hal.AttentionImpl:
    config = hal.AttentionConfig(num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, dtype=dtype, **fields)
    return hal.get_attention_impl(config, device="cpu", backend="cpu")


def decode_call(keys: list[int], dtype: torch.dtype = torch.bfloat16, heads: int = 8, kv_heads: int = 2, dim: int = 64,
                queries: int = 1, seed: int = 0) -> dict[str, Any]:
    """A paged call on shuffled pages of 16, what is in no sequence NaN."""
    g = torch.Generator().manual_seed(seed)
    need = [-(-n // 16) for n in keys]
    pages = sum(need) + 2
    order = torch.randperm(pages, generator=g)
    k, v = (torch.full((pages, 16, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
    table = torch.full((len(keys), max([*need, 1])), int(order[-1]), dtype=torch.int32)
    at = 0
    for b, n in enumerate(keys):
        mine = order[at : at + need[b]]
        at += need[b]
        table[b, : need[b]] = mine.int()
        for i, page in enumerate(mine):
            used = min(16, n - i * 16)
            for cache in (k, v):
                cache[page, :used] = torch.randn(used, kv_heads, dim, generator=g).to(dtype)
    q = torch.randn(len(keys), queries, heads, dim, generator=g).to(dtype)
    return {"q": q, "k_cache": k, "v_cache": v, "page_table": table, "causal": True,
            "cache_seqlens": torch.tensor(keys, dtype=torch.int32)}


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
                          env={**os.environ, **environ})


# --- build and selection ---

def test_without_a_compiler_the_build_goes_on_and_says_why(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path / "lib"),
                           "--build-temp", str(tmp_path / "temp")], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "CXX": "no-such-compiler"})
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "lib" / "hal" / "kernels" / "cpu"
    assert not list(folder.glob("*.so"))
    assert "CXX=no-such-compiler was not found" in (folder / library.REASON).read_text()


def test_a_compiler_that_fails_is_a_reason_too(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no good' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path / "lib"),
                           "--build-temp", str(tmp_path / "temp")], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "CXX": str(broken)})
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "lib" / "hal" / "kernels" / "cpu" / library.REASON).read_text()
    assert "broken failed when it was installed (x.cpp:1: error: no good)" in text


def test_without_the_library_torch_serves_and_the_reason_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / library.REASON).write_text("no C++ compiler (c++, g++, clang++) was found when it was installed\n")
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    decision = hal.explain(hal.AttentionConfig(), device="cpu")
    assert decision.decode.chosen == decision.prefill.chosen == "torch"
    reasons = next(c.reasons for c in decision.decode.candidates if c.backend == "cpu")
    assert any("no C++ compiler" in reason and "install a C++ compiler" in reason for reason in reasons), reasons
    from hal.__main__ import main

    assert main(["backends"]) == 0
    assert "no C++ compiler" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(hal.NoBackendError, match="no C\\+\\+ compiler"):
        impl()
    # On an arch that is not here it counts as built, as vendor packages do.
    assert hal.explain(hal.AttentionConfig(), device="cpu:aarch64").decode.chosen == "cpu"


@built
def test_it_is_the_first_choice_on_this_machine() -> None:
    decision = hal.explain(hal.AttentionConfig(), device="cpu")
    assert decision.decode.chosen == decision.prefill.chosen == "cpu"


@built
def test_functions_have_the_contracts_signatures() -> None:
    from hal.backends.cpu import _functions

    kernels = library.load()
    functions = _functions(hal.AttentionConfig(), kernels.attention, kernels.isa())
    for function, wanted in zip(functions, (contract.WITH_KVCACHE, contract.VARLEN)):
        seen = inspect.signature(function)
        assert [(p.name, p.default, p.kind) for p in seen.parameters.values()] == [
            (p.name, p.default, p.kind) for p in wanted.parameters.values()]


# --- variants ---

def test_a_variant_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CPU_ISA", "avx9")
    with pytest.raises(ValueError, match=r"HAL_CPU_ISA='avx9' is not valid: expected one of generic, x86_64_v3"):
        env.get("HAL_CPU_ISA")


@built
def test_a_variant_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = library.Library(None, None, ("generic",), "generic")
    monkeypatch.setenv("HAL_CPU_ISA", "x86_64_v4")
    with pytest.raises(ValueError, match=r"HAL_CPU_ISA='x86_64_v4': this CPU or this build .* \(it has: generic\)"):
        one.isa()
    monkeypatch.delenv("HAL_CPU_ISA")
    assert one.isa() == 0


@built
@pytest.mark.parametrize("isa", library.load().isas if library.missing() is None else ())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_variant_agrees_with_the_oracle(isa: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CPU_ISA", isa)
    attn = impl(dtype, max_decode_query_len=16)
    for queries, keys in ((1, [1, 100, 700]), (16, [16, 90])):
        a = decode_call(keys, getattr(torch, dtype), queries=queries)
        want = oracle.flash_attn_with_kvcache(**a)
        got = attn.flash_attn_with_kvcache(**a)
        bound = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
        assert float((got.double() - want).abs().max()) < bound


@built
@pytest.mark.parametrize("isa", library.load().isas if library.missing() is None else ())
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
def test_decode_of_any_group_width_and_window(isa: str, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16, where keys lie evenly, across pages, unevenly and strided; a window that begins amid a page."""
    monkeypatch.setenv("HAL_CPU_ISA", isa)
    seed = int(torch.randint(1 << 30, ()))
    g = torch.Generator().manual_seed(seed)
    shapes = ((64, 64, None, None), (128, 128, 37, None), (96, 160, None, None), (80, 64, 20, None),
              (256, 256, None, [3, 0, 17]))
    for dim, dim_v, window, pad in shapes:
        heads = 3 * group
        for queries in (1, 2)[: 8 // group]:
            a = decode_call([33, 200, 1030], heads=heads, kv_heads=3, dim=dim, queries=queries, seed=seed)
            attn = impl(heads=heads, kv_heads=3, dim=dim, head_dim_v=dim_v if dim_v != dim else None,
                        sliding_window=window, max_decode_query_len=queries)
            if dim_v != dim:
                a["v_cache"] = torch.cat((a["v_cache"], a["v_cache"]), -1)[..., :dim_v]  # a view, rows further apart
            if window is not None:
                a["window_size"] = (window - 1, 0)
            if pad is not None:
                a["cache_leftpad"] = torch.tensor(pad, dtype=torch.int32)
            if queries == 2:  # no pages: one strided cache
                k, v = (torch.randn(3, 2 * 300, 3, d, generator=g).bfloat16()[:, ::2] for d in (dim, dim_v))
                a |= {"k_cache": k, "v_cache": v, "cache_seqlens": torch.tensor([2, 300, 131], dtype=torch.int32)}
                del a["page_table"]
                a.pop("cache_leftpad", None)
            want = oracle.flash_attn_with_kvcache(**a)
            got = attn.flash_attn_with_kvcache(**a)
            error = float((got.double() - want).abs().max())
            assert error < 2e-2, (error, seed, dim, dim_v, window, queries)


@built
@pytest.mark.parametrize("isa", library.load().isas if library.missing() is None else ())
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_keep_the_digits_of_their_dtype(isa: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With AMX both are sums of bfloat16 numbers: a product left out would cost digits that large scores need.
    monkeypatch.setenv("HAL_CPU_ISA", isa)
    attn = impl(dtype, max_decode_query_len=16, return_softmax_lse=True)
    a = decode_call([16, 300], getattr(torch, dtype), queries=16)
    a["q"] = a["q"] * 10
    _, want = oracle.flash_attn_with_kvcache(**a, return_softmax_lse=True)
    _, got = attn.flash_attn_with_kvcache(**a, return_softmax_lse=True)
    assert float(((got.double() - want).abs() / (1 + want.abs())).max()) < 4e-6


# --- threads, splits, determinism ---

@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@built
@pytest.mark.parametrize(("queries", "kv_heads", "dim", "dtype"), [
    (1, 2, 64, "bfloat16"), (40, 2, 64, "bfloat16"), (1, 8, 128, "float32"), (1, 8, 128, "bfloat16"),
    (40, 8, 128, "bfloat16")])
def test_results_do_not_depend_on_threads_or_on_the_batch(threads: Callable[[int], None], queries: int, kv_heads: int,
                                                          dim: int, dtype: str) -> None:
    a = decode_call([3000, 41, 700], getattr(torch, dtype), kv_heads=kv_heads, dim=dim, queries=queries)
    attn = impl(dtype, kv_heads=kv_heads, dim=dim, max_decode_query_len=queries)
    threads(1)
    one = attn.flash_attn_with_kvcache(**a)
    for n in (2, 3, 8):
        threads(n)
        assert torch.equal(one, attn.flash_attn_with_kvcache(**a)), n
    for b in range(3):
        alone = {**a, "q": a["q"][b : b + 1], "page_table": a["page_table"][b : b + 1],
                 "cache_seqlens": a["cache_seqlens"][b : b + 1]}
        assert torch.equal(one[b : b + 1], attn.flash_attn_with_kvcache(**alone)), b


@built
@pytest.mark.parametrize("queries", [1, 40])
def test_packed_keys_give_the_same_alone_and_behind_others(queries: int) -> None:
    g = torch.Generator().manual_seed(1)
    lens = [41, 900, 130]
    q = torch.randn(3 * queries, 8, 64, generator=g).bfloat16()
    k, v = (torch.randn(sum(lens), 2, 64, generator=g).bfloat16() for _ in range(2))
    starts = torch.tensor([0, *lens]).cumsum(0).int()

    def attend(first: int, last: int) -> torch.Tensor:
        out = impl().flash_attn_varlen_func(
            q[first * queries : last * queries], k[starts[first] : starts[last]], v[starts[first] : starts[last]],
            torch.arange(last - first + 1, dtype=torch.int32) * queries, starts[first : last + 1] - starts[first],
            queries, max(lens), causal=True)
        assert isinstance(out, torch.Tensor)
        return out

    together = attend(0, 3)
    for b in range(3):
        assert torch.equal(together[b * queries : (b + 1) * queries], attend(b, b + 1)), b


@built
@pytest.mark.parametrize("splits", [1, 2, 3, 7, 50])
def test_a_long_sequence_in_pieces_is_the_same_attention(splits: int) -> None:
    a = decode_call([5000], torch.float32)
    attn = impl("float32", return_softmax_lse=True)
    want, want_lse = oracle.flash_attn_with_kvcache(**a, return_softmax_lse=True)
    got, lse = attn.flash_attn_with_kvcache(**a, return_softmax_lse=True, num_splits=splits)
    assert float((got.double() - want).abs().max()) < 1e-6
    assert float((lse.double() - want_lse).abs().max()) < 1e-5


@built
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc/self/maps is Linux's")
def test_one_openmp_pool_of_torchs_threads() -> None:
    done = python("""
import os, torch, hal
torch.set_num_threads(3)
attn = hal.get_attention_impl(hal.AttentionConfig(num_heads=8, num_kv_heads=8, head_dim=64, dtype="float32"),
                              device="cpu", backend="cpu")
k = torch.randn(8, 1024, 8, 64)
call = lambda: attn.flash_attn_with_kvcache(torch.randn(8, 1, 8, 64), k, k.clone(), cache_seqlens=1024)
before = len(os.listdir("/proc/self/task"))
call()
after = len(os.listdir("/proc/self/task"))
torch.randn(1 << 22).exp().sum()  # torch's own parallel work finds its threads there
pools = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "libomp" in line or "iomp" in line}
print(after - before, len(os.listdir("/proc/self/task")) - before, len(pools))
""", OMP_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2", "1"], done.stdout


# --- what must not be read or written ---

@built
def test_pages_outside_the_window_are_not_read() -> None:
    a = decode_call([200], torch.float32)
    want = oracle.flash_attn_with_kvcache(**a, window_size=(20, 0))
    for page in a["page_table"][0, :10].tolist():  # keys 0..159; the window begins at 179
        a["k_cache"][page] = a["v_cache"][page] = float("nan")
    got = impl("float32", sliding_window=21).flash_attn_with_kvcache(**a, window_size=(20, 0))
    assert float((got.double() - want).abs().max()) < 1e-6


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "page": ({"page_table": torch.full((2, 3), 99, dtype=torch.int32)}, r"^page_table: got page 99"),
    "negative page": ({"page_table": torch.full((2, 3), -1, dtype=torch.int32)}, r"^page_table: got page -1"),
    "length": ({"cache_seqlens": torch.tensor([5, 99], dtype=torch.int32)}, r"^cache_seqlens: got \[99\]"),
    "lengths of another type": ({"cache_seqlens": torch.tensor([5, 9])}, r"^cache_seqlens: got torch.int64"),
    "no tensor": ({"q": [1, 2]}, r"^q: got \[1, 2\], expected a tensor"),
    "meta": ({"q": torch.empty(2, 1, 8, 64, dtype=torch.bfloat16, device="meta")}, r"^k_cache: got a tensor on cpu"),
    "heads": ({"q": torch.zeros(2, 1, 7, 64, dtype=torch.bfloat16)}, r"^k_cache: got 2 KV heads"),
    "dtype": ({"q": torch.zeros(2, 1, 8, 64)}, r"^k_cache: got torch.bfloat16, expected torch.float32"),
    "out": ({"out": torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16).expand(2, 1, 8, 64)}, r"^out: got an expanded view"),
    "scale": ({"softmax_scale": -1.0}, r"^softmax_scale: got -1.0"),
    "window": ({"window_size": (-2, 0)}, r"^window_size: got"),
    "hint": ({"pack_gqa": True}, r"^pack_gqa: got True, which the cpu backend does not honour"),
    "append past the table": ({"k": torch.zeros(2, 40, 2, 64, dtype=torch.bfloat16),
                               "v": torch.zeros(2, 40, 2, 64, dtype=torch.bfloat16)}, r"^k: got 80 tokens after"),
    "sparse": ({"causal": False, "sparse_indices": torch.full((2, 3), 999, dtype=torch.int32)},
               r"^sparse_indices: got 999"),
}


@built
@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_before_anything_is_written(name: str) -> None:
    change, message = BAD[name]
    a = decode_call([5, 40])
    a = {"out": torch.full((2, 1, 8, 64), 7.0, dtype=torch.bfloat16), **a, **change}
    before = {n: x.clone() for n, x in a.items() if n in ("k_cache", "v_cache")}
    with pytest.raises(ValueError, match=message):
        impl().flash_attn_with_kvcache(**a)
    assert all(torch.equal(x.view(torch.int16), a[n].view(torch.int16)) for n, x in before.items())
    if name != "out":
        assert bool((a["out"] == 7).all())


@built
def test_gradients_are_refused() -> None:
    a = decode_call([5], torch.float32)
    a["q"].requires_grad_()
    with pytest.raises(ValueError, match=r"^q: got a tensor that requires grad"):
        impl("float32").flash_attn_with_kvcache(**a)


@built
@pytest.mark.parametrize(("dtype", "stored"), [
    ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float8_e4m3fn"),
    ("bfloat16", "float8_e5m2"), ("float16", "float8_e4m3fn"), ("float32", "float8_e5m2")])
def test_the_write_is_that_of_torch_bit_for_bit(dtype: str, stored: str) -> None:
    g = torch.Generator().manual_seed(1)
    k, v = (torch.randn(300, 2, 40, generator=g) * 200 * torch.rand(300, 1, 1, generator=g) ** 8 for _ in range(2))
    k[0, 0, :5] = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -0.0])
    k, v = k.to(getattr(torch, dtype)), v.to(getattr(torch, dtype))
    slots = torch.randperm(320, generator=g)[:300]
    slots[7] = -1
    scales = (0.37, torch.rand(2, generator=g) + 0.1) if "float8" in stored else (None, None)
    results = []
    for write in (impl().write_kv_cache, kv_cache.write_kv_cache):
        caches = [torch.zeros(20, 16, 2, 40, dtype=getattr(torch, stored)) for _ in range(2)]
        write(k, v, *caches, slots, *scales)
        results.append([x.view(torch.uint8) for x in caches])
    for mine, wanted in zip(*results):
        real = [x.view(getattr(torch, stored)).float() for x in (mine, wanted)]
        assert bool(((mine == wanted) | (real[0].isnan() & real[1].isnan()).repeat_interleave(
            mine.shape[-1] // real[0].shape[-1], dim=-1)).all())


@built
def test_a_bad_write_is_refused() -> None:
    k = torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    cache = torch.ones(4, 16, 2, 64, dtype=torch.bfloat16)
    for slots, message in ((torch.tensor([0, 64]), "slot_mapping holds 64"), (torch.tensor([0, -2]), "holds -2"),
                           (torch.tensor([0, 1], dtype=torch.int32), "slot_mapping is torch.int32")):
        with pytest.raises(ValueError, match=message):
            impl().write_kv_cache(k, k, cache, cache.clone(), slots)
    assert bool((cache == 1).all())


# --- deliberate faults: the conformance grid notices each ---

def _number(name: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
    at = call.NUMBERS.index(name)
    return lambda t, n, scale, cap: (t, (*n[:at], change(n[at]), *n[at + 1 :]), scale, cap)


def _without(name: str) -> Callable[..., Any]:
    return lambda t, n, scale, cap: ({**t, name: None}, n, scale, cap)


# what a call is turned into -> the group of cases that must fail
FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "causal dropped": (_number("causal", lambda x: 0), "dense plain: extend bfloat16"),
    "window one short": (_number("left", lambda x: x - 1 if x > 0 else x), "dense sliding_window: extend"),
    "window dropped": (_number("left", lambda x: -1), "dense sliding_window: decode"),
    "chunk dropped": (_number("chunk", lambda x: 0), "dense attention_chunk: extend"),
    "rank of another": (_number("cp_rank", lambda x: 1 - x if x < 2 else 0), "dense context_parallel: extend"),
    "halves for pairs": (_number("interleaved", lambda x: not x), "append rotary interleaved=False"),
    "scale twice": (lambda t, n, scale, cap: (t, n, scale * 2, cap), "dense plain: decode bfloat16"),
    "softcap dropped": (lambda t, n, scale, cap: (t, n, scale, 0.0), "dense softcap: decode"),
    "sinks dropped": (_without("sinks"), "dense sinks: decode"),
    "tree dropped": (_without("tree_mask"), "dense tree_mask: decode"),
    "ranges dropped": (_without("mm_prefix_ranges"), "dense mm_prefix: extend"),
    "k_descale dropped": (_without("k_descale"), "dense fp8: decode"),
    "v_descale dropped": (_without("v_descale"), "dense fp8: decode"),
    "latent dropped": (_without("qv"), "mla plain: decode bfloat16"),
    "leftpad dropped": (_without("cache_leftpad"), "decode bfloat16 8/2x128 cache_leftpad"),
    "index dropped": (_without("cache_batch_idx"), "decode bfloat16 8/2x128 cache_batch_idx"),
}


@built
@pytest.mark.parametrize("name", FAULTS)
def test_the_grid_notices_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, group = FAULTS[name]
    cases = [case for case in grid(CPU, False) if group in case.name]
    assert cases, group
    device = detect("cpu")
    assert all(Runner(CPU, device, 1).run(case).result == "passed" for case in cases)
    real = call.call
    monkeypatch.setattr(call, "call", lambda *arguments: real(*fault(*arguments)))
    results = [Runner(CPU, device, 1).run(case).result for case in cases]
    assert "failed" in results, f"{name} goes unnoticed in {[case.name for case in cases]}"


def test_the_backend_is_the_registered_one() -> None:
    assert registry.get("cpu") is CPU
    assert registry.resolve("intel_amx") == registry.resolve("CPU_ATTN") == ["cpu"]
