"""The emulator of MATE: plain calls against loops in float64, and every trap by what it does. Sources are MATE v0.2.2's
files; where a test says "the source", it is named in the emulator beside the line that does it."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from emulators.common import Vendor
from emulators.devices import Devices, on, plain_of
from emulators.mate import KVCACHE, mate
from emulators.mate_common import Unspecified
from emulators.mate_wrapper import wrapper

BF16, F16 = torch.bfloat16, torch.float16
NAN, INF = math.nan, math.inf
DEVICE = "musa:0"


@pytest.fixture(autouse=True)
def devices() -> Iterator[Devices]:
    with Devices("musa:0", "musa:1") as opened:
        yield opened


def functions(vendor: Vendor) -> Any:
    return vendor.modules["mate.mha_interface"]


def call(name: str, release: str = "0.2.2", machine: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    return getattr(functions(mate(release, **(machine or {}))), name)(**kwargs)


def ints(*values: int, device: str = DEVICE) -> torch.Tensor:
    return on(torch.tensor(values, dtype=torch.int32), device)


def table(*rows: list[int]) -> torch.Tensor:
    return on(torch.tensor(rows, dtype=torch.int32), DEVICE)


def plain(value: Any) -> torch.Tensor:
    return plain_of(value).double()


# --- the reference: one query, one key at a time ---

def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, seen: Callable[[int, int], bool],
              softcap: float = 0.0, sink: list[float] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """q [Sq, H, D], k [Sk, Hkv, D]. seen(i, j). Returns out [Sq, H, Dv] and the natural LSE [H, Sq], in float64."""
    out, lse = torch.zeros(*q.shape[:2], v.shape[-1], dtype=torch.float64), torch.full(
        (q.shape[1], q.shape[0]), -INF, dtype=torch.float64)
    ratio, v = q.shape[1] // k.shape[1], plain(v)
    queries, keys = plain(q).tolist(), plain(k).tolist()
    for i, h in itertools.product(range(len(queries)), range(len(queries[0]) if queries else 0)):
        g = h // ratio
        terms = []
        for j in range(len(keys)):
            if seen(i, j):
                s = scale * sum(map(operator.mul, queries[i][h], keys[j][g]))
                terms.append((softcap * math.tanh(s / softcap) if softcap else s, j))
        weights = [math.exp(s) for s, _ in terms]
        total = sum(weights) + (math.exp(sink[h]) if sink else 0.0)
        if total:
            lse[h, i] = math.log(total)
        for w, (_, j) in zip(weights, terms):
            out[i, h] += w / total * v[j, g]
    return out, lse


def everything(i: int, j: int) -> bool:
    return True


def causal(len_q: int, len_k: int) -> Callable[[int, int], bool]:
    return lambda i, j: j <= i + len_k - len_q


def near(result: Any, expected: torch.Tensor, tolerance: float = 2e-2) -> bool:
    """bfloat16 results of numbers about 1."""
    return bool(torch.allclose(plain(result), expected.double(), atol=tolerance, rtol=tolerance, equal_nan=True))


class Paged:
    """Sequences in pages that are not in order; what no sequence uses is NaN. D 64, heads 4 to 2."""

    def __init__(self, lens: list[int], len_q: int = 2, page_size: int = 64, dtype: torch.dtype = BF16,
                 dim: int = 64, columns: int | None = None, heads: int = 4, garbage: int = 7777, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.lens, self.len_q, self.dim = lens, len_q, dim
        per = [-(-n // page_size) for n in lens]
        columns = columns or max(1, *per)
        self.pages = sum(per) + 3
        free = torch.randperm(self.pages, generator=generator).tolist()
        self.k_cache = torch.full((self.pages, page_size, 2, dim), NAN).to(dtype)
        self.v_cache = self.k_cache.clone()
        rows = []
        self.k, self.v = [], []
        for n, used in zip(lens, per):
            mine = [free.pop() for _ in range(used)]
            rows.append(mine + [garbage] * (columns - used))
            self.k.append(randn(n, 2, dim))
            self.v.append(randn(n, 2, dim))
            for page in mine:
                self.k_cache[page] = self.v_cache[page] = 0  # the tails of used pages, as a cache is made
            for j in range(n):
                self.k_cache[mine[j // page_size], j % page_size] = self.k[-1][j]
                self.v_cache[mine[j // page_size], j % page_size] = self.v[-1][j]
        self.q = randn(len(lens), len_q, heads, dim)
        self.table, self.unused = rows, free

    def arguments(self, **more: Any) -> dict[str, Any]:
        return {"q": on(self.q, DEVICE), "k_cache": on(self.k_cache, DEVICE), "v_cache": on(self.v_cache, DEVICE),
                "cache_seqlens": ints(*self.lens), "page_table": table(*self.table), **more}

    def expected(self, seen: Callable[[int, int], Callable[[int, int], bool]], **more: Any) -> \
            tuple[torch.Tensor, torch.Tensor]:
        scale = more.pop("scale", self.dim ** -0.5)
        both = [reference(self.q[b], self.k[b], self.v[b], scale, seen(self.len_q, n), **more)
                for b, n in enumerate(self.lens)]
        return torch.stack([o for o, _ in both]), torch.stack([s for _, s in both])


# --- plain calls ---

@pytest.mark.parametrize("pack_gqa", [None, True, False])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_decode_over_pages(dtype: torch.dtype, pack_gqa: bool | None) -> None:
    case = Paged([70, 1, 128], dtype=dtype)
    out, lse, *_ = call("flash_attn_with_kvcache", **case.arguments(causal=True, return_softmax_lse=True,
                                                                    pack_gqa=pack_gqa))
    expected, expected_lse = case.expected(causal)
    assert near(out, expected)
    assert near(lse, expected_lse)
    assert (out.dtype, lse.dtype, str(out.device), tuple(lse.shape)) == (dtype, torch.float32, DEVICE, (3, 4, 2))


def test_release_0_2_0() -> None:
    """Its schedule knows no window: the first sequence counts as 5 tiles there, and as one in 0.2.2: 43 keys."""
    case = Paged([320, 64], len_q=1)
    given = {"window_size": (10, 0), "num_splits": 5}
    old, new = (schedule(case, release=release, **given) for release in ("0.2.0", "0.2.2"))
    assert (plain(old).tolist()[0], plain(new).tolist()[0]) == (5, 1)
    out = call("flash_attn_with_kvcache", "0.2.0", **case.arguments(scheduler_metadata=old, **given))

    def seen(len_q: int, len_k: int) -> Callable[[int, int], bool]:
        return lambda i, j: j >= len_k - 11
    assert near(out, case.expected(seen)[0])


def test_max_seqlen_q_decides_how_many_rows_are_written() -> None:
    case = Paged([70], len_q=300, heads=2)
    out = call("flash_attn_with_kvcache", **case.arguments(
        q=on(case.q[0], DEVICE), cu_seqlens_q=ints(0, 300), max_seqlen_q=200))
    assert plain(out)[256:].isnan().all(), "200 queries are one tile of 256"
    assert not plain(out)[:256].isnan().any()


def test_packed_queries_long_enough_for_several_tiles() -> None:
    case = Paged([300, 40], len_q=290, heads=2)
    q = torch.cat([case.q[0], case.q[1, :5]])
    out = call("flash_attn_with_kvcache", **case.arguments(
        q=on(q, DEVICE), cu_seqlens_q=ints(0, 290, 295), max_seqlen_q=290, causal=True))
    k, v = case.k, case.v
    some = [0, 63, 64, 255, 256, 289]  # rows about the edges of tiles
    for i in some:
        expected, _ = reference(q[i : i + 1], k[0], v[0], 0.125, lambda _, j, i=i: j <= i + 10)
        assert near(out[i : i + 1], expected)
    expected, _ = reference(q[290:], k[1], v[1], 0.125, causal(5, 40))
    assert near(out[290:], expected)


def test_softcap_scale_and_windows() -> None:
    case = Paged([200, 66], len_q=3)
    for window in ((5, 0), (70, 2), (-1, 1), (10, -1)):
        def seen(len_q: int, len_k: int, window: tuple[int, int] = window) -> Callable[[int, int], bool]:
            def visible(i: int, j: int) -> bool:
                p = i + len_k - len_q
                return (window[0] < 0 or j >= p - window[0]) and (window[1] < 0 or j <= p + window[1])
            return visible
        out = call("flash_attn_with_kvcache", **case.arguments(window_size=window, softcap=0.7, softmax_scale=0.5))
        assert near(out, case.expected(seen, softcap=0.7, scale=0.5)[0]), window


def test_attention_chunk() -> None:
    case = Paged([100], len_q=6)

    def seen(len_q: int, len_k: int) -> Callable[[int, int], bool]:
        return lambda i, j: j <= i + 94 and j // 32 == (i + 94) // 32
    arguments = case.arguments(causal=True, attention_chunk=32)
    assert near(call("flash_attn_with_kvcache", **arguments), case.expected(seen)[0])
    with pytest.raises(AssertionError, match="attention_chunk parameter is not supported yet"):
        call("flash_attn_with_kvcache", "0.2.0", **arguments)
    with pytest.raises(Unspecified, match="SDK >= 5.1.0"):  # docs/flash_attention.md
        call("flash_attn_with_kvcache", machine={"sdk": (5, 0, 0)}, **arguments)


def test_append_rotary_leftpad_and_batch_index() -> None:
    generator = torch.Generator().manual_seed(1)
    cache_k, cache_v = (torch.randn(3, 40, 1, 64, generator=generator).to(BF16) for _ in range(2))
    q, k, v = (torch.randn(2, 3, h, 64, generator=generator).to(BF16) for h in (2, 1, 1))
    angle = torch.rand(40, 8, generator=generator)
    cos, sin = angle.cos().to(BF16), angle.sin().to(BF16)
    lens, pads, rows = [10, 20], [2, 0], [2, 0]

    def rotated(x: torch.Tensor, position: int, interleaved: bool) -> torch.Tensor:
        x = x.double().clone()
        for t in range(8):
            a, b = (2 * t, 2 * t + 1) if interleaved else (t, t + 8)
            c, s = float(cos[position, t]), float(sin[position, t])
            x[..., a], x[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
        return x

    for interleaved, is_causal in itertools.product((True, False), (True, False)):
        kc, vc = cache_k.clone(), cache_v.clone()
        out = call("flash_attn_with_kvcache", q=on(q, DEVICE), k_cache=on(kc, DEVICE), v_cache=on(vc, DEVICE),
                   k=on(k, DEVICE), v=on(v, DEVICE), cache_seqlens=ints(*lens), cache_leftpad=ints(*pads),
                   cache_batch_idx=ints(*rows), rotary_cos=on(cos, DEVICE), rotary_sin=on(sin, DEVICE),
                   rotary_interleaved=interleaved, causal=is_causal)
        for b in range(2):
            new = torch.stack([rotated(k[b, i], lens[b] + i, interleaved) for i in range(3)])
            assert near(kc[rows[b], lens[b] : lens[b] + 3], new)
            assert torch.equal(vc[rows[b], lens[b] : lens[b] + 3], v[b])
            assert torch.equal(kc[rows[b], : lens[b]], cache_k[rows[b], : lens[b]])
            keys = torch.cat([cache_k[rows[b], pads[b] : lens[b]].double(), new])
            values = torch.cat([cache_v[rows[b], pads[b] : lens[b]], v[b]])
            # All queries at the first position where it is neither causal nor local.
            queries = torch.stack([rotated(q[b, i], lens[b] + i * is_causal, interleaved) for i in range(3)])
            seen = causal(3, len(keys)) if is_causal else everything
            assert near(out[b], reference(queries, keys, values, 0.125, seen)[0], 3e-2)
        assert torch.equal(kc[1], cache_k[1])


def test_packed_append() -> None:
    case = Paged([63, 5], columns=2)
    case.table[0][1] = page = case.unused[0]
    case.k_cache[page] = case.v_cache[page] = 0
    k, v = (torch.randn(4, 2, 64).to(BF16) for _ in range(2))
    out = call("flash_attn_with_kvcache", **case.arguments(
        k=on(k, DEVICE), v=on(v, DEVICE), cu_seqlens_k_new=ints(0, 3, 4), causal=True))
    case.k, case.v = ([torch.cat([old[0], new[:3]]), torch.cat([old[1], new[3:]])] for old, new in (
        (case.k, k), (case.v, v)))
    case.lens = [66, 6]
    assert near(out, case.expected(causal)[0])
    assert torch.equal(case.k_cache[page, 1], k[2]), "it was appended in the second page"


def test_varlen_by_both_kernels() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(n, h, 64, generator=generator).to(BF16) for n, h in ((7, 4), (80, 2), (80, 2)))
    for backend, is_causal in itertools.product(("auto", "mutlass"), (True, False)):
        out, lse = call("flash_attn_varlen_func", q=on(q, DEVICE), k=on(k, DEVICE), v=on(v, DEVICE), causal=is_causal,
                        cu_seqlens_q=ints(0, 2, 7), cu_seqlens_k=ints(0, 70, 80), max_seqlen_q=5, max_seqlen_k=70,
                        backend=backend, return_softmax_lse=True)
        for rows, cols in ((slice(0, 2), slice(0, 70)), (slice(2, 7), slice(70, 80))):
            n, m = rows.stop - rows.start, cols.stop - cols.start
            expected, sums = reference(q[rows], k[cols], v[cols], 0.125, causal(n, m) if is_causal else everything)
            assert near(out[rows], expected)
            assert near(lse[:, rows], sums)


def test_context_parallel_ranks_merge_to_the_whole() -> None:
    case = Paged([45], len_q=4)
    whole, whole_lse = case.expected(causal)
    outs, sums = [], []
    for rank in range(2):
        mine = Paged([len(range(rank, 45, 2))], len_q=4)
        mine.q = case.q
        for j, at in enumerate(range(rank, 45, 2)):
            mine.k_cache[mine.table[0][0], j], mine.v_cache[mine.table[0][0], j] = case.k[0][at], case.v[0][at]
        out, lse, *_ = call("flash_attn_with_kvcache", **mine.arguments(
            causal=True, cp_world_size=2, cp_rank=rank, cp_tot_seqused_k=ints(45), return_softmax_lse=True))
        outs.append(plain(out))
        sums.append(plain(lse))
    total = torch.logaddexp(*sums)
    merged = sum(o * (s - total).exp().transpose(1, 2)[..., None] for o, s in zip(outs, sums))
    assert near(merged, whole)
    assert near(total, whole_lse)


# --- masks ---

def test_minus_one_zero_is_causal_with_the_cache_and_an_assert_without() -> None:
    """fmha_utils.py:59 reads (-1, 0) as causal; mha_interface.py:73 lets it choose the kernel that asserts at :437."""
    case = Paged([70], len_q=5)
    out = call("flash_attn_with_kvcache", **case.arguments(window_size=(-1, 0)))
    assert near(out, case.expected(causal)[0])
    flat = {"q": on(case.q[0], DEVICE), "k": on(case.k[0], DEVICE), "v": on(case.v[0], DEVICE),
            "cu_seqlens_q": ints(0, 5), "cu_seqlens_k": ints(0, 70), "max_seqlen_q": 5, "max_seqlen_k": 70}
    with pytest.raises(AssertionError):
        call("flash_attn_varlen_func", **flat, window_size=(-1, 0))
    forced = call("flash_attn_varlen_func", **flat, window_size=(-1, 0), backend="mutlass")
    assert near(forced, case.expected(causal)[0][0])


def test_release_0_2_0_drops_the_softcap_of_packed_keys() -> None:
    """Its _check_valid_asm_input does not look at softcap, and its assembly kernel knows none."""
    case = Paged([70], len_q=5)
    flat = {"q": on(case.q[0], DEVICE), "k": on(case.k[0], DEVICE), "v": on(case.v[0], DEVICE), "softcap": 0.1,
            "cu_seqlens_q": ints(0, 5), "cu_seqlens_k": ints(0, 70), "max_seqlen_q": 5, "max_seqlen_k": 70}
    capped, plainly = (reference(case.q[0], case.k[0], case.v[0], 0.125, everything, softcap=c)[0] for c in (0.1, 0))
    assert not near(plainly, capped)
    assert near(call("flash_attn_varlen_func", **flat), capped)
    assert near(call("flash_attn_varlen_func", "0.2.0", **flat), plainly)


def test_a_window_wider_than_the_local_cache_is_dropped_under_context_parallelism() -> None:
    """fmha_utils.py:51 measures the window by this rank's cache: no longer local, so fmha_fwd.py:729 lets it pass."""
    case = Paged([40])
    cp = {"cp_world_size": 2, "cp_rank": 0, "cp_tot_seqused_k": ints(80), "causal": True}
    with pytest.raises(AssertionError, match="Local attention"):
        call("flash_attn_with_kvcache", **case.arguments(window_size=(62, 0), **cp))
    dropped = call("flash_attn_with_kvcache", **case.arguments(window_size=(63, 0), **cp))
    assert torch.equal(plain(dropped), plain(call("flash_attn_with_kvcache", **case.arguments(**cp))))


def test_cp_lengths_are_one_per_sequence_and_not_what_the_documents_say() -> None:
    """Documented as cumulative; seqlen.hpp:140 reads [batch_idx], and fwd_kern.j2:397 the bits of an int32."""
    case = Paged([20, 30])
    cp = {"cp_world_size": 2, "cp_rank": 0, "causal": True}
    right = call("flash_attn_with_kvcache", **case.arguments(cp_tot_seqused_k=ints(40, 60), **cp))
    cumulated = call("flash_attn_with_kvcache", **case.arguments(cp_tot_seqused_k=ints(0, 40, 100), **cp))
    wide = on(torch.tensor([40, 60]), DEVICE)
    as_int64 = call("flash_attn_with_kvcache", **case.arguments(cp_tot_seqused_k=wide, **cp))
    assert not near(cumulated, plain(right))
    assert near(as_int64[0], plain(right[0]))
    assert not near(as_int64[1], plain(right[1])), "the second number is the first one's upper half"
    with pytest.raises(AssertionError, match="cp_tot_seqused_k must be provided"):
        call("flash_attn_with_kvcache", **case.arguments(**cp))
    with pytest.raises(AssertionError, match="cp_rank must be zero"):
        call("flash_attn_with_kvcache", **case.arguments(cp_rank=1))


def test_causal_ranks_read_past_cache_seqlens() -> None:
    """mask.hpp:164-178: with context parallelism a causal mask knows the global length alone."""
    case = Paged([20], len_q=1)
    page = case.table[0][0]
    case.k_cache[page, 20:] = 1.0
    case.v_cache[page, 20:] = 100.0
    arguments = case.arguments(causal=True, cp_world_size=2, cp_rank=0, cp_tot_seqused_k=ints(60))
    assert float(plain(call("flash_attn_with_kvcache", **arguments)).max()) > 5
    arguments["cp_tot_seqused_k"] = ints(40)
    assert near(call("flash_attn_with_kvcache", **arguments), case.expected(causal)[0])


# --- results of empty rows, sinks, number of results ---

def test_empty_rows() -> None:
    """0 and -inf; with a sink the sink, but -inf where the sequence has no key at all (fmha_fwd_kernel.hpp:409-432)."""
    case = Paged([3, 0, 70], len_q=5, columns=2)
    sink = [0.5, -1.0, 2.0, 0.25]
    out, lse, *_ = call("flash_attn_with_kvcache", **case.arguments(causal=True, return_softmax_lse=True))
    assert near(out, case.expected(causal)[0])
    assert near(lse, case.expected(causal)[1])
    assert (plain(lse)[0, :, :2] == -INF).all()
    arguments = case.arguments(window_size=(8, 0), learnable_sink=on(torch.tensor(sink, dtype=BF16), DEVICE),
                               return_softmax_lse=True)
    out, lse, *_ = call("flash_attn_with_kvcache", **arguments)

    def seen(len_q: int, len_k: int) -> Callable[[int, int], bool]:
        return lambda i, j: i + len_k - len_q - 8 <= j <= i + len_k - len_q
    expected, sums = case.expected(seen, sink=sink)
    assert near(out, expected)
    assert near(lse[0], sums[0])
    assert near(lse[2], sums[2])
    assert near(lse[0, :, 0], torch.tensor(sink))
    assert (plain(lse)[1] == -INF).all(), "not the sink"


def test_sinks_are_bfloat16_and_drop_the_schedule() -> None:
    case = Paged([300], len_q=1, heads=2)
    sink = torch.tensor([1.0, -1.0], dtype=BF16)
    short = call("get_scheduler_metadata", batch_size=1, max_seqlen_q=1, max_seqlen_k=300, num_heads_q=2,
                 num_heads_kv=2, headdim=64, num_splits=5)
    arguments = case.arguments(window_size=(250, 0), return_softmax_lse=True, scheduler_metadata=short, num_splits=2)

    def seen(len_q: int, len_k: int) -> Callable[[int, int], bool]:
        return lambda i, j: j >= 49
    out = call("flash_attn_with_kvcache", **arguments, learnable_sink=on(sink, DEVICE))[0]
    assert near(out, case.expected(seen, sink=[1.0, -1.0])[0])
    assert plain(call("flash_attn_with_kvcache", **arguments)[0]).isnan().any(), "the schedule, where it is followed"
    with pytest.raises(AssertionError, match="learnable_sink must be bfloat16"):
        call("flash_attn_with_kvcache", **arguments, learnable_sink=on(sink.float(), DEVICE))
    everywhere = call("flash_attn_with_kvcache", **case.arguments(learnable_sink=on(sink, DEVICE)))
    assert near(everywhere, case.expected(lambda *_: everything, sink=[1.0, -1.0])[0]), "the source asks for no window"


def test_how_many_results() -> None:
    """mha_interface.py:990: the cache function hands on the accumulators; :521: the other one does not."""
    case = Paged([70])
    with_lse = call("flash_attn_with_kvcache", **case.arguments(return_softmax_lse=True))
    assert [tuple(t.shape) for t in with_lse] == [(1, 2, 4, 64), (1, 4, 2), (1, 4, 1, 2, 64), (1, 4, 1, 2)]
    assert isinstance(call("flash_attn_with_kvcache", **case.arguments()), torch.Tensor)
    flat = {"q": on(case.q, DEVICE), "k": on(case.k[0][None], DEVICE), "v": on(case.v[0][None], DEVICE)}
    for backend in ("mubin", "mutlass"):
        out, lse = call("flash_attn_varlen_func", **flat, return_softmax_lse=True, backend=backend)
        assert (tuple(out.shape), tuple(lse.shape)) == ((1, 2, 4, 64), (1, 4, 2))
        into = on(torch.zeros(1, 2, 4, 64, dtype=BF16), DEVICE)
        assert call("flash_attn_varlen_func", **flat, out=into, backend=backend) is into
        assert near(into, plain(out))


def test_scores_far_below_zero_vanish_after_a_hidden_tile() -> None:
    """softmax.hpp:80-82: a row that saw nothing yet has maximum 0, and exp(-200 - 0) is 0."""
    case = Paged([128], len_q=66, heads=2, seed=3)
    case.q[:] = 1
    case.k_cache[case.table[0]] = -4
    out, lse, *_ = call("flash_attn_with_kvcache", **case.arguments(causal=True, softmax_scale=1.0,
                                                                    return_softmax_lse=True))
    assert (plain(lse)[0, :, 0] == -INF).all(), "the first query sees 63 keys of the first tile"
    assert not plain(out)[0, 0].any()
    assert near(lse[0, 0, 65:], torch.tensor([-256 + math.log(128)]), 1e-3)


def test_the_assembly_kernel_says_nothing_of_blind_rows() -> None:
    case = Paged([3], len_q=5)
    flat = {"q": on(case.q, DEVICE), "k": on(case.k[0][None], DEVICE), "v": on(case.v[0][None], DEVICE)}
    out, lse = call("flash_attn_varlen_func", **flat, causal=True, return_softmax_lse=True)
    assert plain(out)[0, :2].isnan().all()
    assert plain(lse)[0, :, :2].isnan().all()
    assert near(out[0, 2:], case.expected(causal)[0][0, 2:])
    out, lse = call("flash_attn_varlen_func", **flat, causal=True, return_softmax_lse=True, backend="mutlass")
    assert near(out, case.expected(causal)[0])


# --- what is read ---

def test_pages_that_no_tile_loads_stay_unread() -> None:
    case = Paged([300, 64], len_q=2)
    for page in case.table[0][:3]:
        case.k_cache[page] = case.v_cache[page] = NAN  # left of the window
    out = call("flash_attn_with_kvcache", **case.arguments(window_size=(50, 0)))
    assert not plain(out).isnan().any()
    assert plain(call("flash_attn_with_kvcache", **case.arguments(window_size=(150, 0)))).isnan().any()


def test_a_tail_of_nan_shows_through_v() -> None:
    """The whole tile is multiplied, hidden keys by 0."""
    case = Paged([70])
    case.k_cache[case.table[0][1], 6:] = NAN
    assert near(call("flash_attn_with_kvcache", **case.arguments()), case.expected(lambda *_: everything)[0])
    case.v_cache[case.table[0][1], 6:] = NAN
    assert plain(call("flash_attn_with_kvcache", **case.arguments())).isnan().all()


def test_small_pages_read_the_table_past_the_end() -> None:
    """paged_kv.hpp:133-168, 223-250: a tile has 64 keys, so with pages of 16 up to three more entries are followed."""
    case = Paged([17], page_size=16, columns=4, garbage=0)
    case.k_cache[0] = case.v_cache[0] = 0
    assert near(call("flash_attn_with_kvcache", **case.arguments()), case.expected(lambda *_: everything)[0])
    case.table[0][2] = unused = case.unused[0] or case.unused[1]
    assert plain(case.v_cache[unused]).isnan().all()
    assert plain(call("flash_attn_with_kvcache", **case.arguments())).isnan().all()
    case.table[0][2] = -1
    with pytest.raises(Unspecified, match="page -1 .* a tile of 64 keys is loaded whole"):
        call("flash_attn_with_kvcache", **case.arguments())


def test_rounded_head_dims_read_what_follows_a_row() -> None:
    """paged_kv.hpp:212-219, by threads only: q is zero in those columns, so that only NaN and infinity show."""
    for page_size, shows in ((64, False), (32, True)):
        case = Paged([20], page_size=page_size, dim=80)
        wide = torch.zeros(case.pages, page_size, 2, 96, dtype=BF16)
        wide[..., 80:] = NAN
        wide[..., :80] = case.k_cache
        case.k_cache = wide[..., :80]
        case.v_cache.nan_to_num_(0.0)
        out = call("flash_attn_with_kvcache", **case.arguments())
        assert bool(plain(out).isnan().all()) == shows
        if not shows:
            assert near(out, case.expected(lambda *_: everything)[0])


@pytest.mark.parametrize(("dims", "fits"), [((64, 64), True), ((96, 80), True), ((192, 128), True), ((192, 192), True),
                                            ((128, 64), False), ((64, 128), False), ((256, 128), False)])
def test_head_dims(dims: tuple[int, int], fits: bool) -> None:
    """fmha_utils.py:157-193, after rounding each up; "Any headdim <= 512" of the documents is not so."""
    q, k, v = (on(torch.ones(1, 2, 1, d, dtype=BF16), DEVICE) for d in (dims[0], *dims))
    if fits:
        assert near(call("flash_attn_with_kvcache", q=q, k_cache=k, v_cache=v), torch.ones(1, 2, 1, dims[1]))
    else:
        with pytest.raises(AssertionError, match="Add config for headdim"):
            call("flash_attn_with_kvcache", q=q, k_cache=k, v_cache=v)


def test_head_dims_past_512_are_cut() -> None:
    """_roundup_headdim ends at 512: the last 64 of absorbed MLA's 576 columns are not read."""
    q, k = (torch.randn(1, 3, 1, 576, dtype=F16) for _ in range(2))
    out = call("flash_attn_with_kvcache", q=on(q, DEVICE), k_cache=on(k, DEVICE), v_cache=on(k[..., :512], DEVICE))
    cut, whole = (reference(q[0, ..., :d], k[0, ..., :d], k[0, ..., :512], 576 ** -0.5, everything)[0]
                  for d in (512, 576))
    assert near(out[0], cut, 5e-3)
    assert not near(out[0], whole, 5e-3)


# --- appends ---

def test_a_sequence_without_queries_gets_no_new_keys() -> None:
    """fmha_fwd_kernel.hpp:263-278 appends in the query tiles, and there is none."""
    case = Paged([5, 6])
    k, v = (torch.ones(2, 1, 2, 64, dtype=BF16) for _ in range(2))
    call("flash_attn_with_kvcache", **case.arguments(
        q=on(case.q[1], DEVICE), cu_seqlens_q=ints(0, 0, 2), max_seqlen_q=2, k=on(k, DEVICE), v=on(v, DEVICE)))
    assert not case.k_cache[case.table[0][0], 5].any()
    assert torch.equal(case.k_cache[case.table[1][0], 6], k[1, 0])


def test_what_an_append_needs() -> None:
    case = Paged([5])
    k = on(torch.ones(1, 1, 2, 64, dtype=BF16), DEVICE)
    cos = on(torch.ones(64, 8, dtype=BF16), DEVICE)
    append = {"k": k, "v": k}
    for more, message in (
        ({"k": k}, "k_new and v_new must be provided together"),
        ({"rotary_cos": cos, "rotary_sin": cos}, "new key / value to be appended to KV cache must also be provided"),
        ({**append, "rotary_cos": cos}, "rotary sin must also be provided"),
        ({**append, "rotary_cos": cos[:, :4], "rotary_sin": cos[:, :4]}, "divisible by 16"),
        ({**append, "rotary_cos": cos[:9], "rotary_sin": cos[:9]}, "at least the seqlen of KV cache"),
        ({"k": k.half(), "v": k.half()}, "k_new and v_new must have the same dtype"),
        ({"k": k[0], "v": k[0], "cu_seqlens_k_new": ints(0, 2)}, r"cu_seqlens_k_new\[-1\] must equal total_k_new"),
    ):
        with pytest.raises(AssertionError, match=message):
            call("flash_attn_with_kvcache", **case.arguments(**more))
    for more, message in (({"cache_leftpad": ints(0)}, "leftpad_k"), ({**append, "rotary_cos": cos, "rotary_sin": cos},
                                                                     "rotary_cos")):
        with pytest.raises(AssertionError, match=f"{message} parameter is not supported yet"):
            call("flash_attn_with_kvcache", "0.2.0", **case.arguments(**more))
    fixed = on(torch.zeros(1, 9, 2, 64, dtype=BF16), DEVICE)
    with pytest.raises(RuntimeError, match="AppendKV is only supported with Varlen"):  # seqlen.hpp:36
        call("flash_attn_with_kvcache", q=on(case.q, DEVICE), k_cache=fixed, v_cache=fixed, **append)
    with pytest.raises(Unspecified, match="no room"):
        call("flash_attn_with_kvcache", **case.arguments(cache_seqlens=ints(64), **append))
    odd = Paged([5], dim=80)
    with pytest.raises(Unspecified, match="over what follows a row"):
        wide = on(torch.ones(1, 1, 2, 80, dtype=BF16), DEVICE)
        call("flash_attn_with_kvcache", **odd.arguments(k=wide, v=wide))


# --- schedules ---

def schedule(case: Paged, **more: Any) -> torch.Tensor:
    release, machine = more.pop("release", "0.2.2"), more.pop("machine", None)
    given = {"batch_size": len(case.lens), "max_seqlen_q": case.len_q, "max_seqlen_k": max(case.lens),
             "num_heads_q": case.q.shape[2], "num_heads_kv": 2, "headdim": case.dim, "seqused_k": ints(*case.lens)}
    return call("get_scheduler_metadata", release, machine, **{**given, **more})


def test_a_schedule_says_what_the_kernel_will_do() -> None:
    """metadata.hpp:387-423: splits, sequences by falling work, query tiles; sorted, so not in the caller's order."""
    case = Paged([64, 640, 129], len_q=1)
    assert plain(schedule(case, num_splits=4)).tolist() == [4, 1, 3, 1, 0, 2, 1, 1, 1, 0, 0, 0]
    assert plain(schedule(case, num_splits=1)).tolist() == [1, 1, 1, 1, 2, 0, 1, 1, 1, 0, 0, 0]
    assert str(schedule(case, machine={"current_device": "musa:1"}, seqused_k=None).device) == "musa:1"
    case = Paged([64, 640, 129, 640], len_q=1)
    few = schedule(case, num_splits=4, num_heads_kv=1, machine={"multiprocessors": 4})
    # 24 blocks on 4 processors are 7 for each: 1, 2, 1 and 2 splits, which are two more than processors.
    assert plain(few).tolist()[:4] == [1, 1, 1, 1]


@pytest.mark.parametrize("num_splits", [0, 1, 3])
@pytest.mark.parametrize("window", [(-1, -1), (100, 0)])
def test_calls_with_their_own_schedule(num_splits: int, window: tuple[int, int]) -> None:
    case = Paged([500, 0, 70], columns=9)
    given = {"causal": True, "window_size": window, "num_splits": num_splits}
    out, lse, o_accum, _ = call("flash_attn_with_kvcache", **case.arguments(
        scheduler_metadata=schedule(case, **given), return_softmax_lse=True, **given))

    def seen(len_q: int, len_k: int) -> Callable[[int, int], bool]:
        return lambda i, j: j <= i + len_k - len_q and (window[0] < 0 or j >= i + len_k - len_q - window[0])
    assert near(out, case.expected(seen)[0])
    assert near(lse, case.expected(seen)[1])
    assert o_accum.shape[2] == num_splits or num_splits == 0


def test_splits_of_a_schedule_that_the_call_has_no_room_for() -> None:
    """The kernel runs the call's splits and merges the schedule's: tail keys are unread, and other memory is merged."""
    case = Paged([600], len_q=1)
    many = schedule(case, num_splits=5)
    assert plain(many).tolist()[0] == 5
    assert plain(call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=many, num_splits=3))).isnan().all()
    assert near(call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=many, num_splits=5)),
                case.expected(causal)[0])
    with pytest.raises(ValueError, match="exceeds max supported splits 128"):
        call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=many, num_splits=129))
    assert near(call("flash_attn_with_kvcache", **case.arguments(num_splits=129)), case.expected(causal)[0]), \
        "without a schedule num_splits is nothing"


def test_a_schedule_for_fewer_queries_leaves_rows_unwritten() -> None:
    case = Paged([70, 70], len_q=300, heads=2)
    own = schedule(case, causal=True)
    short = schedule(case, causal=True, cu_seqlens_q=ints(0, 300, 310))  # made when the second had ten queries
    for given, rows in ((own, 0), (short, 44)):
        out = plain(call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=given, causal=True)))
        assert int(out.isnan().any(-1).any(-1).sum()) == rows, "300 queries are two tiles of 256"


def test_a_schedule_for_other_heads_leaves_rows_unwritten() -> None:
    """The schedule is made for 60 rows of one head each, the call packs 8 heads into a tile."""
    case = Paged([70], len_q=60, heads=2)
    given = schedule(case, num_heads_q=16)  # 8 per KV head: packing is off, tiles of 64
    assert plain(given).tolist()[2] == 1
    case = Paged([70], len_q=60, heads=16)
    packed = call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=given, pack_gqa=True))
    assert plain(packed)[0].isnan().any(), "60 * 8 packed rows are two tiles of 256"
    assert not plain(call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=given))).isnan().any()


def test_a_schedule_of_a_larger_batch_is_cut_at_the_wrong_places() -> None:
    """fmha_fwd.py:766-776 asks for length alone."""
    case, larger = Paged([70, 80]), Paged([70, 80, 90, 100])
    out = call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=schedule(larger)))
    # Four slots of one split: the table is read from the third split on, and names sequence 1 twice.
    assert plain(out)[0].isnan().all()
    assert near(out[1], case.expected(lambda *_: everything)[0][1])
    with pytest.raises(AssertionError, match="metadata buffer is too small"):
        call("flash_attn_with_kvcache", **larger.arguments(scheduler_metadata=schedule(case)))


def test_new_keys_count_in_a_schedule_even_where_nothing_is_appended() -> None:
    """metadata.hpp:290-298 adds cu_seqlens_k_new; the forward call ignores it without k (seqlen.hpp:115-122). Twice the
    keys: other splits, the same numbers."""
    case = Paged([320, 64], len_q=1)
    given = {"num_splits": 8}
    own, twice = schedule(case, **given), schedule(case, cu_seqlens_k_new=ints(0, 320, 384), **given)
    assert plain(own).tolist() != plain(twice).tolist()
    for metadata in (own, twice):
        out = call("flash_attn_with_kvcache", **case.arguments(
            scheduler_metadata=metadata, num_splits=8, cu_seqlens_k_new=ints(0, 320, 384)))
        assert near(out, case.expected(causal)[0])
    counted = schedule(case, max_seqlen_k_new=640, **given)
    assert plain(counted).tolist()[:2] != plain(own).tolist()[:2]


def test_schedules_of_nothing_divide_by_zero() -> None:
    """metadata.hpp:339-342, with total_blocks 0."""
    case = Paged([0, 0], columns=1)
    with pytest.raises(Unspecified, match="divides by zero"):
        schedule(case, num_splits=4)
    assert plain(schedule(case, num_splits=1)).tolist()[:2] == [1, 1]


def test_schedules_refuse_what_they_look_at() -> None:
    case = Paged([5, 6])
    for more, message in (({"seqused_k": ints(5, 6, device="musa:0").long()}, "must be int32"),
                          ({"seqused_k": ints(5)}, r"seqused_k must have shape \(batch_size,\)"),
                          ({"seqused_k": torch.tensor([5, 6], dtype=torch.int32)}, "inputs must be on MUSA device"),
                          ({"cu_seqlens_q": ints(0, 1)}, r"cu_seqlens_q must have shape \(batch_size \+ 1,\)"),
                          ({"num_heads_q": 3}, "num_heads_q must be divisible by num_heads_kv"),
                          ({"headdim_v": 256}, "Add config for headdim 64-256")):
        with pytest.raises(AssertionError, match=message):
            schedule(case, **more)
    with pytest.raises(Unspecified, match="seqused_k is on musa:1"):  # made on the current device: :348
        schedule(case, seqused_k=ints(5, 6, device="musa:1"))
    other = schedule(case, machine={"current_device": "musa:1"}, seqused_k=None)
    with pytest.raises(Unspecified, match="scheduler_metadata is on musa:1"):
        call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=other))
    ignored = schedule(case, page_size=3, has_softcap=True, qkv_dtype=F16)
    assert plain(ignored).tolist() == plain(schedule(case)).tolist()


# --- dtypes, devices, shapes ---

def test_the_dense_call_refuses() -> None:
    case = Paged([5, 6])
    here = case.arguments()
    fp8 = {n: on(plain_of(here[n]).to(torch.float8_e4m3fn), DEVICE) for n in ("q", "k_cache", "v_cache")}
    for more, message in (
        (fp8, "inputs must be float16 or bfloat16"),
        ({"k_cache": fp8["k_cache"], "v_cache": fp8["v_cache"]}, "inputs must have the same dtype"),
        ({"q": here["q"].float()}, "inputs must be float16 or bfloat16"),
        ({"cache_seqlens": here["cache_seqlens"].long()}, "must be int32"),
        ({"page_table": here["page_table"].long()}, "page_table must be int32"),
        ({"cache_seqlens": 5}, r"seqused_k must have shape \(batch_size,\)"),  # as many as there are pages: :914
        ({"cache_seqlens": torch.tensor([5, 6], dtype=torch.int32)}, "inputs must be on MUSA device"),
        ({"page_table": here["page_table"][:1]}, "batch_size must equal batch_size_k"),
        ({"k_cache": here["k_cache"].transpose(1, 3).contiguous().transpose(1, 3)}, "k_cache must have contiguous"),
        ({"qv": here["q"]}, "qv parameter is not supported yet"),
        ({"cu_seqlens_q": ints(0, 1, 2), "q": here["q"][0]}, "^$"),
        ({"cache_batch_idx": ints(0)}, "kv_batch_idx must have shape"),
    ):
        with pytest.raises(AssertionError, match=message):
            call("flash_attn_with_kvcache", **{**here, **more})
    with pytest.raises(Unspecified, match="page_table is on musa:1"):
        call("flash_attn_with_kvcache", **{**here, "page_table": on(plain_of(here["page_table"]), "musa:1")})
    with pytest.raises(ValueError, match="Get unknown backend best"):
        call("flash_attn_varlen_func", q=here["q"], k=here["q"], v=here["q"], backend="best")
    with pytest.raises(AttributeError, match="is_musa"):  # mha_interface.py:93-97
        call("flash_attn_varlen_func", q=here["q"][0], k=here["q"][0], v=here["q"][0])
    with pytest.raises(ValueError, match=r"0\.1\.3 is not emulated"):
        mate("0.1.3")


def test_descales_are_ignored() -> None:
    case = Paged([20])
    scales = {n: on(torch.full((1, 2), 9.0), DEVICE) for n in ("q_descale", "k_descale", "v_descale")}
    assert near(call("flash_attn_with_kvcache", **case.arguments(**scales)), case.expected(lambda *_: everything)[0])


# --- the latent path ---

class Latent:
    """Absorbed MLA in pages of 64. joined: one tensor [latent | rope], as the kernel for 128 heads needs it."""

    def __init__(self, lens: list[int], len_q: int = 1, heads: int = 2, joined: bool = True, dtype: torch.dtype = BF16,
                 page_size: int = 64) -> None:
        generator = torch.Generator().manual_seed(5)
        self.lens, self.len_q = lens, len_q
        per = [max(1, -(-n // page_size)) for n in lens]
        both = torch.full((sum(per) + 1, page_size, 1, 576), NAN).to(dtype)
        self.table, self.k = [], []
        for b, n in enumerate(lens):
            mine = [sum(per[: b + 1]) - i for i in range(per[b])]  # page 0 is unused
            self.table.append(mine + [7777] * (max(per) - per[b]))
            self.k.append(torch.randn(n, 1, 576, generator=generator).to(dtype))
            both[mine] = 0
            for j in range(n):
                both[mine[j // page_size], j % page_size] = self.k[-1][j]
        self.v_cache, self.k_cache = both[..., :512], both[..., 512:]
        if not joined:
            self.v_cache, self.k_cache = self.v_cache.contiguous(), self.k_cache.contiguous()
        self.both = (torch.randn(len(lens), len_q, heads, 576, generator=generator) * 0.3).to(dtype)
        self.workspace = on(torch.full((1 << 16,), 255, dtype=torch.uint8), DEVICE)

    def arguments(self, **more: Any) -> dict[str, Any]:
        return {"q": on(self.both[..., 512:], DEVICE), "qv": on(self.both[..., :512], DEVICE), "softmax_scale": 0.1,
                "k_cache": on(self.k_cache, DEVICE), "v_cache": on(self.v_cache, DEVICE),
                "cache_seqlens": ints(*self.lens), "page_table": table(*self.table),
                "scheduler_metadata": (self.workspace, False), "return_softmax_lse": True, **more}

    def expected(self, b: int, is_causal: bool, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        seen = causal(self.len_q, self.lens[b]) if is_causal else everything
        return reference(self.both[b, :, :heads], self.k[b], self.k[b][..., :512], 0.1, seen)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("joined", [True, False])
def test_latent_calls(joined: bool, is_causal: bool) -> None:
    case = Latent([70, 1, 129], len_q=2, heads=3, joined=joined)
    case.lens = [70, 2, 129]
    case.k[1] = torch.cat([case.k[1], torch.zeros(1, 1, 576, dtype=BF16)])  # the zeroed row after it
    out, lse = call("flash_attn_with_kvcache", **case.arguments(causal=is_causal))
    assert (tuple(out.shape), tuple(lse.shape)) == ((3, 2, 3, 512), (3, 2, 3)), "two results; the LSE is [B, Sq, H]"
    for b in range(3):
        expected, sums = case.expected(b, is_causal, heads=3)
        assert near(out[b], expected, 3e-2)
        assert near(plain(lse)[b].T, sums)
    packed = {n: case.arguments()[n].flatten(0, 1) for n in ("q", "qv")}
    again, flat = call("flash_attn_with_kvcache", **case.arguments(
        causal=is_causal, cu_seqlens_q=ints(0, 2, 4, 6), max_seqlen_q=2, **packed))
    assert torch.equal(plain(again).view(3, 2, 3, 512), plain(out))
    assert torch.equal(plain(flat), plain(lse).flatten(0, 1).T), "[H, total_q] when packed"


def test_the_rope_part_of_128_heads_is_read_behind_the_latent_one() -> None:
    """flash_mla_asm.mu:288-298, 729-730: one base address; :579-582: strides of 576."""
    case = Latent([5], heads=128)
    out, _ = call("flash_attn_with_kvcache", **case.arguments())
    assert near(out[0, :, :2], case.expected(0, False)[0], 3e-2)
    elsewhere = torch.zeros_like(case.k_cache.new_empty(2, 64, 1, 576))[..., :64]
    ignored, _ = call("flash_attn_with_kvcache", **case.arguments(k_cache=on(elsewhere, DEVICE)))
    assert torch.equal(plain(ignored), plain(out)), "k_cache's own values are not read"
    apart = Latent([5], heads=128, joined=False)
    with pytest.raises(RuntimeError, match="ckv stride -3 must be multiple of 576"):
        call("flash_attn_with_kvcache", **apart.arguments())


def test_the_workspace_is_believed() -> None:
    """mla_pybind.mu:908: `is_inited` skips the schedule, whatever it was made for."""
    case = Latent([320, 10])
    arguments = case.arguments()
    right = [plain(t) for t in call("flash_attn_with_kvcache", **arguments)]
    assert near(right[0][0], case.expected(0, False)[0], 3e-2)
    again = call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=(case.workspace, True)))
    assert torch.equal(plain(again[0]), right[0])
    call("flash_attn_with_kvcache", **case.arguments(cache_seqlens=ints(128, 10)))  # an earlier step's lengths
    stale = call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=(case.workspace, True)))
    tail_unread = reference(case.both[0], case.k[0][:128], case.k[0][:128, :, :512], 0.1, everything)[0]
    assert near(stale[0][0], tail_unread, 3e-2)
    assert not near(stale[0][0], right[0][0], 3e-2)
    plain_of(case.workspace).zero_()
    out, lse = call("flash_attn_with_kvcache", **case.arguments(scheduler_metadata=(case.workspace, True)))
    assert not plain(out).any(), "a workspace of zeros has no splits: 0 and +inf"
    assert (plain(lse) == INF).all()


def test_the_latent_path_ignores() -> None:
    """mha_interface.py:929-944 hands on none of these."""
    case = Latent([100], len_q=2)
    right = plain(call("flash_attn_with_kvcache", **case.arguments(causal=True))[0])
    new = {"k": on(torch.ones(1, 1, 1, 64, dtype=BF16), DEVICE), "v": on(torch.ones(1, 1, 1, 512, dtype=BF16), DEVICE)}
    sink = on(torch.full((2,), 50.0, dtype=BF16), DEVICE)
    for more in ({"window_size": (3, 0)}, {"softcap": 0.1}, {"learnable_sink": sink}, {"attention_chunk": 16}, new,
                 {"cache_leftpad": ints(50)}, {"num_splits": 3}, {"k_descale": sink}, {"cache_batch_idx": ints(9)},
                 {"cp_world_size": 2, "cp_tot_seqused_k": ints(200)}, {"cu_seqlens_k_new": ints(0, 50)}):
        before = case.v_cache.clone()
        out = call("flash_attn_with_kvcache", **case.arguments(causal=True, **more))[0]
        assert torch.equal(plain(out), right), more
        assert torch.equal(before.nan_to_num(9.0), case.v_cache.nan_to_num(9.0)), "nothing is appended"


def test_the_latent_path_refuses() -> None:
    case = Latent([5])
    other = on(torch.zeros(9999, dtype=torch.uint8), "musa:1")
    for more, message in (
        ({"scheduler_metadata": None}, "workspace must be provided"),
        ({"scheduler_metadata": (case.workspace[:100], False)}, "workspace is too small"),
        ({"scheduler_metadata": (case.workspace.view(torch.int32), False)}, "Inconsistency of Tensor type"),
        ({"scheduler_metadata": (other, False)}, "device_id"),
        ({"cache_seqlens": ints(5).long()}, "Inconsistency of Tensor type"),
        ({"page_table": table([1]).long()}, "Inconsistency of Tensor type: block_table"),
        ({"k_cache": on(case.k_cache.half(), DEVICE)}, "input tensor dtypes must match"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call("flash_attn_with_kvcache", **case.arguments(**more))
    with pytest.raises(TypeError, match="cache_seqlens"):
        call("flash_attn_with_kvcache", **case.arguments(cache_seqlens=None))
    with pytest.raises(RuntimeError, match="page size only supports 64"):
        call("flash_attn_with_kvcache", **Latent([5], page_size=32).arguments())


def test_blind_rows_of_the_latent_path() -> None:
    """Merged: 0 and +inf (mpxx_mla_combine.hpp:100). Alone: in a library that was not read, NaN here."""
    case = Latent([0, 70])
    out, lse = call("flash_attn_with_kvcache", **case.arguments())
    assert plain(out)[0].isnan().all()
    assert plain(lse)[0].isnan().all()
    assert near(out[1], case.expected(1, False)[0], 3e-2)
    case = Latent([129], len_q=5)
    out, _ = call("flash_attn_with_kvcache", **case.arguments(causal=True))
    assert near(out[0], case.expected(0, True)[0], 3e-2), "four rows see nothing of the last page, which is a split"
    case = Latent([66], len_q=70)
    out, lse = call("flash_attn_with_kvcache", **case.arguments(causal=True))
    assert (plain(lse)[0, :4] == INF).all()
    assert not plain(out)[0, :4].any()


def test_latent_pages_that_are_not_scheduled_stay_unread() -> None:
    case = Latent([70, 5])
    case.table[1][1] = 0
    assert case.v_cache[0].isnan().all()
    assert not plain(call("flash_attn_with_kvcache", **case.arguments())[0]).isnan().any()
    case.v_cache[case.table[0][1], 6:] = NAN
    assert plain(call("flash_attn_with_kvcache", **case.arguments())[0])[0].isnan().all(), "the tail of a page"


# --- flash_attn_interface ---

def test_the_wrapper_renames() -> None:
    library = mate()
    sink = on(torch.tensor([0.5, 0.5, 1.0, 1.0], dtype=BF16), DEVICE)
    case = Paged([70])
    with library.installed(), wrapper(library).installed():
        import flash_attn_interface as fa

        metadata = fa.get_scheduler_metadata(
            batch_size=1, max_seqlen_q=2, max_seqlen_k=70, num_heads_q=4, num_heads_kv=2, headdim=64, page_size=64,
            cache_seqlens=ints(70), sm_margin=0)
        assert plain(metadata).tolist() == plain(schedule(case)).tolist()
        with pytest.raises(TypeError, match="seqused_k"):
            fa.get_scheduler_metadata(1, 2, 70, 4, 2, 64, ints(70), seqused_k=ints(70))
        for name in ("sinks", "s_aux"):
            out = fa.flash_attn_with_kvcache(**case.arguments(window_size=(9, 0), **{name: sink}))
            assert near(out, plain(call("flash_attn_with_kvcache", **case.arguments(window_size=(9, 0),
                                                                                    learnable_sink=sink))))
        with pytest.raises(TypeError, match="learnable_sink"):
            fa.flash_attn_with_kvcache(**case.arguments(learnable_sink=sink))
        flat = {"q": on(case.q, DEVICE), "k": on(case.k[0][None], DEVICE), "v": on(case.v[0][None], DEVICE)}
        assert len(fa.flash_attn_func(**flat, return_attn_probs=True)) == 2
        paged = {"q": on(case.q[0], DEVICE), "k": on(case.k_cache, DEVICE), "v": on(case.v_cache, DEVICE)}
        out = fa.flash_attn_varlen_func(**paged, cu_seqlens_q=ints(0, 2), max_seqlen_q=2, seqused_k=ints(70),
                                        block_table=table(*case.table))
        assert near(out, case.expected(lambda *_: everything)[0][0])
    assert KVCACHE in {c.function for c in library.calls}
