"""Checks of an oracle: hand-computed cases and identities that need no other implementation.

Each check takes the oracle module, so that test_oracle_mutations.py can run it on a broken copy. Random checks
draw a fresh seed (or $HAL_TEST_SEED) and name it when they fail.
"""

from __future__ import annotations

import functools
import math
import os
import random
from types import ModuleType
from typing import Any

import torch

from hal import merge_attention_states

NAN, INF = float("nan"), float("inf")
CHECKS: dict[str, Any] = {}


def check(function: Any) -> Any:
    @functools.wraps(function)
    def seeded(oracle: ModuleType) -> None:
        seed = int(os.environ.get("HAL_TEST_SEED", random.randrange(2**31)))
        torch.manual_seed(seed)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # the hand-computed numbers below are exact to 1e-12
        try:
            function(oracle)
        except Exception as error:
            raise AssertionError(f"{function.__name__} with HAL_TEST_SEED={seed}: {error}") from error
        finally:
            torch.set_default_dtype(default)

    CHECKS[function.__name__] = seeded
    return seeded


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    a, b = a.double(), b.double()
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    assert bool((torch.isnan(a) == torch.isnan(b)).all()), "NaN in one of them"
    finite = torch.isfinite(a) & torch.isfinite(b)
    assert bool((a == b)[~finite & ~torch.isnan(a)].all()), "infinities differ"
    worst = (a - b)[finite].abs().max().item() if bool(finite.any()) else 0.0
    assert worst <= tolerance, f"largest difference {worst}"


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def paged(lens: list[int], page_size: int, heads: int, dim: int, dim_v: int | None = None) -> dict[str, torch.Tensor]:
    """A cache whose unused tokens and pages hold NaN, with pages in random order and wild ids past each end."""
    need = [-(-n // page_size) for n in lens]
    width = max(need) + 2
    pages = torch.randperm(sum(need) + 3)
    table = torch.full((len(lens), width), 2**30, dtype=torch.int32)
    k = torch.full((len(pages), page_size, heads, dim), NAN, dtype=torch.float64)
    v = torch.full((len(pages), page_size, heads, dim_v or dim), NAN, dtype=torch.float64)
    at = 0
    for b, n in enumerate(lens):
        table[b, : need[b]] = pages[at : at + need[b]].int()
        at += need[b]
        for t in range(n):
            page = int(table[b, t // page_size])
            k[page, t % page_size], v[page, t % page_size] = rand(heads, dim), rand(heads, dim_v or dim)
    return {"k_cache": k, "v_cache": v, "page_table": table}


def weights_seen(oracle: ModuleType, len_q: int, len_k: int, **kwargs: Any) -> list[list[int]]:
    """Which keys each query sees: q is 0, so attention is uniform over the visible keys, and v is one-hot."""
    q = torch.zeros(1, len_q, 1, 4, dtype=torch.float64)
    k = rand(1, len_k, 1, 4)
    v = torch.eye(len_k, dtype=torch.float64).view(1, len_k, 1, len_k)
    out = oracle.flash_attn_with_kvcache(q, k, v, **kwargs)
    seen = []
    for i in range(len_q):
        keys = [j for j in range(len_k) if out[0, i, 0, j] > 0]
        for j in keys:  # every visible key has the same weight
            assert abs(out[0, i, 0, j].item() - 1 / len(keys)) < 1e-12
        seen.append(keys)
    return seen


# --- hand-computed cases ---------------------------------------------------------------------------------------


@check
def hand_two_keys(oracle: ModuleType) -> None:
    """Scores ln 1 and ln 3 weigh 1/4 and 3/4; the LSE is ln 4."""
    q = torch.tensor([[[[1.0]]]]).double()
    k = torch.tensor([0.0, math.log(3.0)]).double().view(1, 2, 1, 1)
    v = torch.tensor([8.0, 16.0]).double().view(1, 2, 1, 1)
    out, lse = oracle.flash_attn_with_kvcache(q, k, v, return_softmax_lse=True)
    same(out, torch.tensor([[[[14.0]]]]))
    same(lse, torch.tensor([[[math.log(4.0)]]]))


@check
def hand_default_scale(oracle: ModuleType) -> None:
    """softmax_scale None is head_dim ** -0.5: q.k = 4 ln 3 over sqrt(16) is ln 3."""
    q = torch.zeros(1, 1, 1, 16, dtype=torch.float64)
    q[..., 0] = 4.0
    k = torch.zeros(1, 2, 1, 16, dtype=torch.float64)
    k[0, 1, 0, 0] = math.log(3.0)
    v = torch.tensor([8.0, 16.0]).double().view(1, 2, 1, 1)
    same(oracle.flash_attn_with_kvcache(q, k, v), torch.tensor([[[[14.0]]]]))


@check
def hand_explicit_scale(oracle: ModuleType) -> None:
    q = torch.tensor([[[[2.0]]]]).double()
    k = torch.tensor([0.0, 1.0]).double().view(1, 2, 1, 1)
    v = torch.tensor([8.0, 16.0]).double().view(1, 2, 1, 1)
    same(oracle.flash_attn_with_kvcache(q, k, v, softmax_scale=math.log(3.0) / 2), torch.tensor([[[[14.0]]]]))


@check
def hand_softcap(oracle: ModuleType) -> None:
    """Scaled score x becomes c * tanh(x / c); c = ln 3 / tanh(1), x = c gives ln 3: scale first, then cap."""
    cap = math.log(3.0) / math.tanh(1.0)
    q = torch.tensor([[[[2.0]]]]).double()
    k = torch.tensor([0.0, cap]).double().view(1, 2, 1, 1)
    v = torch.tensor([8.0, 16.0]).double().view(1, 2, 1, 1)
    same(oracle.flash_attn_with_kvcache(q, k, v, softmax_scale=0.5, softcap=cap), torch.tensor([[[[14.0]]]]))


@check
def hand_sink(oracle: ModuleType) -> None:
    """A sink of ln 4 beside two keys of weight 1 and 3 halves the output; it is neither scaled nor capped."""
    q = torch.tensor([[[[2.0]]]]).double()
    k = torch.tensor([0.0, 1.0]).double().view(1, 2, 1, 1)
    v = torch.tensor([8.0, 16.0]).double().view(1, 2, 1, 1)
    out, lse = oracle.flash_attn_with_kvcache(q, k, v, softmax_scale=math.log(3.0) / 2, softcap=0.0,
                                              sinks=torch.tensor([math.log(4.0)]), return_softmax_lse=True)
    same(out, torch.tensor([[[[7.0]]]]), 1e-6)
    same(lse, torch.tensor([[[math.log(8.0)]]]), 1e-6)
    capped = oracle.flash_attn_with_kvcache(q * 0, k, v, softcap=0.5, sinks=torch.tensor([math.log(2.0)]))
    same(capped, torch.tensor([[[[6.0]]]]), 1e-6)  # weights 1, 1 and a sink of 2, were it not capped at 0.5


@check
def hand_gqa(oracle: ModuleType) -> None:
    """Query head h reads KV head h // group: heads 0, 1 read head 0 and 2, 3 read head 1."""
    v = torch.tensor([10.0, 20.0]).double().view(1, 1, 2, 1)
    out = oracle.flash_attn_with_kvcache(rand(1, 1, 4, 1), rand(1, 1, 2, 1), v)
    same(out.flatten(), torch.tensor([10.0, 10.0, 20.0, 20.0]))


@check
def hand_qv(oracle: ModuleType) -> None:
    """MLA: the score is q.k + qv.v, one scale; here 0 and ln 3 come from the latent part alone."""
    q, qv = torch.zeros(1, 1, 1, 1).double(), torch.tensor([[[[1.0, 0.0]]]]).double()
    v = torch.tensor([[0.0, 8.0], [math.log(3.0), 16.0]]).double().view(1, 2, 1, 2)
    out = oracle.flash_attn_with_kvcache(q, rand(1, 2, 1, 1), v, qv=qv, softmax_scale=1.0)
    same(out[0, 0, 0, 1], torch.tensor(14.0))
    out = oracle.flash_attn_with_kvcache(q + 1, torch.tensor([0.0, math.log(2.0)]).double().view(1, 2, 1, 1), v, qv=qv,
                                         softmax_scale=1.0)
    same(out[0, 0, 0, 1], torch.tensor((8 + 6 * 16) / 7.0).double())  # weights 1 and 2 * 3
    raised = ""
    try:
        oracle.flash_attn_with_kvcache(q, rand(1, 2, 1, 1), v, qv=qv)
    except ValueError as error:
        raised = str(error)
    assert "softmax_scale" in raised, "qv without softmax_scale must raise"


@check
def hand_descales(oracle: ModuleType) -> None:
    """real = stored * descale, per KV head: a stored key of 1 with k_descale ln 3 scores ln 3; v doubles."""
    q = torch.ones(1, 1, 2, 1).double() / 2
    k = torch.tensor([0.0, 1.0]).double().view(1, 2, 1, 1).expand(1, 2, 2, 1)
    v = torch.tensor([8.0, 16.0]).double().view(1, 2, 1, 1).expand(1, 2, 2, 1)
    out = oracle.flash_attn_with_kvcache(
        q, k, v, softmax_scale=1.0, q_descale=torch.tensor(2.0).double(),
        k_descale=torch.tensor([[math.log(3.0), 0.0]]).double(), v_descale=torch.tensor([[2.0, 1.0]]).double())
    same(out.flatten(), torch.tensor([28.0, 12.0]))


@check
def hand_rotary(oracle: ModuleType) -> None:
    """A quarter turn per position: (1, 0) at position 1 becomes (0, 1). Interleaved pairs differ from halves."""
    angle = torch.arange(8).double()[:, None] * math.pi / 2 * torch.ones(1, 2)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double().view(1, 1, 5)
    pairs = oracle.rotate(x, angle.cos(), angle.sin(), torch.tensor([1]), True)
    same(pairs.flatten(), torch.tensor([-2.0, 1.0, -4.0, 3.0, 5.0]))
    halves = oracle.rotate(x, angle.cos(), angle.sin(), torch.tensor([1]), False)
    same(halves.flatten(), torch.tensor([-3.0, -4.0, 1.0, 2.0, 5.0]))


# --- mask rules, by the keys that a query sees -----------------------------------------------------------------


@check
def mask_causal_bottom_right(oracle: ModuleType) -> None:
    """FlashAttention-3's own two examples: 2 queries over 5 keys, 5 queries over 2 keys."""
    assert weights_seen(oracle, 2, 5, causal=True) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert weights_seen(oracle, 5, 2, causal=True) == [[], [], [], [0], [0, 1]]


@check
def mask_window_left(oracle: ModuleType) -> None:
    assert weights_seen(oracle, 3, 6, window_size=(2, -1)) == [[1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5]]


@check
def mask_window_right(oracle: ModuleType) -> None:
    assert weights_seen(oracle, 3, 6, window_size=(-1, 1)) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@check
def mask_causal_caps_right(oracle: ModuleType) -> None:
    assert weights_seen(oracle, 2, 4, causal=True, window_size=(1, 3)) == [[1, 2], [2, 3]]
    assert weights_seen(oracle, 2, 4, window_size=(1, 0)) == [[1, 2], [2, 3]]


@check
def mask_sliding_window_counts_itself(oracle: ModuleType) -> None:
    """sliding_window = W of a model is window_size = (W - 1, 0): W tokens with the current one."""
    from hal import AttentionConfig

    config = AttentionConfig(sliding_window=3)
    assert weights_seen(oracle, 1, 8, causal=True, window_size=config.window_size) == [[5, 6, 7]]


@check
def mask_chunk(oracle: ModuleType) -> None:
    assert weights_seen(oracle, 5, 5, attention_chunk=2) == [[0, 1], [0, 1], [2, 3], [2, 3], [4]]
    assert weights_seen(oracle, 3, 8, attention_chunk=3, causal=True) == [[3, 4, 5], [6], [6, 7]]
    # More queries than keys: positions -2 and -1 are in chunk [-3, 0), which holds no key.
    assert weights_seen(oracle, 4, 2, attention_chunk=3) == [[], [], [0, 1], [0, 1]]


@check
def mask_tree(oracle: ModuleType) -> None:
    """Three drafted tokens after four cached ones; the third is a sibling of the second."""
    tree = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]], dtype=torch.bool)
    assert weights_seen(oracle, 3, 7, causal=True, tree_mask=tree) == [
        [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6]]
    assert weights_seen(oracle, 3, 7, causal=True, tree_mask=tree, window_size=(3, 0)) == [
        [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 6]]


@check
def mask_mm_prefix(oracle: ModuleType) -> None:
    """Positions 2..4 see each other both ways; the rest stays causal. Ranges are absolute and -1 padded."""
    ranges = int32(2, 5, -1, -1).view(1, 2, 2)
    assert weights_seen(oracle, 4, 6, causal=True, mm_prefix_ranges=ranges) == [
        [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert weights_seen(oracle, 6, 6, causal=True, mm_prefix_ranges=ranges)[:2] == [[0], [0, 1]]
    window = weights_seen(oracle, 6, 6, causal=True, window_size=(0, 0), mm_prefix_ranges=ranges)
    assert window == [[0], [1], [2, 3, 4], [2, 3, 4], [2, 3, 4], [5]]


@check
def mask_sparse(oracle: ModuleType) -> None:
    indices = int32(0, 3, -1, 2, -1, -1).view(2, 3)
    assert weights_seen(oracle, 2, 4, sparse_indices=indices) == [[0, 3], [2]]
    none = weights_seen(oracle, 1, 4, sparse_indices=int32(-1, -1).view(1, 2))
    assert none == [[]]


@check
def mask_leftpad(oracle: ModuleType) -> None:
    """The cache starts at leftpad; positions and chunks count from it."""
    assert weights_seen(oracle, 1, 6, cache_leftpad=int32(2), cache_seqlens=int32(5)) == [[2, 3, 4]]
    seen = weights_seen(oracle, 2, 6, cache_leftpad=int32(1), cache_seqlens=int32(6), attention_chunk=2, causal=True)
    assert seen == [[3, 4], [5]]


@check
def mask_seqused(oracle: ModuleType) -> None:
    q, k = torch.zeros(5, 1, 2).double(), rand(7, 1, 2)
    v = torch.eye(7).double().view(7, 1, 7)
    out = oracle.flash_attn_varlen_func(q, k, v, int32(0, 2, 5), int32(0, 3, 7), 3, 4, seqused_q=int32(2, 2),
                                        seqused_k=int32(2, 3), causal=True)
    keys = [[j for j in range(7) if out[i, 0, j] > 0] for i in range(4)]
    assert keys == [[0], [0, 1], [3, 4], [3, 4, 5]]


@check
def mask_cache_batch_idx(oracle: ModuleType) -> None:
    k, v = rand(3, 2, 1, 2), torch.tensor([1.0, 2.0, 3.0]).double().view(3, 1, 1, 1).expand(3, 2, 1, 1)
    out = oracle.flash_attn_with_kvcache(rand(2, 1, 1, 2), k, v, cache_batch_idx=int32(2, 0))
    same(out.flatten(), torch.tensor([3.0, 1.0]))


@check
def empty_rows(oracle: ModuleType) -> None:
    """Nothing visible: output 0 and LSE -inf, or the sink. Zero-length queries and caches are legal."""
    cache = paged([0, 3], 2, 1, 4)
    q = rand(3, 2, 4)
    out, lse = oracle.flash_attn_with_kvcache(q, **cache, cache_seqlens=int32(0, 3), cu_seqlens_q=int32(0, 3, 3),
                                              max_seqlen_q=3, return_softmax_lse=True)
    same(out, torch.zeros(3, 2, 4))
    same(lse, torch.full((2, 3), -INF))
    sinks = torch.tensor([0.5, -2.0])
    out, lse = oracle.flash_attn_with_kvcache(rand(2, 1, 2, 4), **cache, cache_seqlens=int32(0, 3), sinks=sinks,
                                              return_softmax_lse=True)
    same(out[0], torch.zeros(1, 2, 4))
    same(lse[0, :, 0], sinks)
    one, lse = oracle.flash_attn_with_kvcache(rand(1, 4, 1, 4), rand(1, 2, 1, 4), rand(1, 2, 1, 4), causal=True,
                                              return_softmax_lse=True)
    same(one[0, :2], torch.zeros(2, 1, 4))
    same(lse[0, 0, :2], torch.full((2,), -INF))


# --- identities ------------------------------------------------------------------------------------------------


@check
def identity_page_permutation(oracle: ModuleType) -> None:
    """Where a page lies does not matter, nor what lies past the end, nor what the table says there."""
    lens = [5, 8, 1, 13]
    cache = paged(lens, 4, 2, 8)
    q = rand(4, 2, 4, 8)
    order = torch.randperm(cache["k_cache"].shape[0])
    table = cache["page_table"].clone()
    inverse = torch.argsort(order).int()
    for b, n in enumerate(lens):
        used = -(-n // 4)
        table[b, :used] = inverse[cache["page_table"][b, :used].long()]
        table[b, used:] = -(2**31)
    moved = {"k_cache": cache["k_cache"][order], "v_cache": cache["v_cache"][order], "page_table": table}
    here = oracle.flash_attn_with_kvcache(q, **cache, cache_seqlens=int32(*lens), causal=True)
    same(here, oracle.flash_attn_with_kvcache(q, **moved, cache_seqlens=int32(*lens), causal=True), 0.0)
    assert bool(torch.isfinite(here).all()), "the poison was read"


@check
def identity_paged_is_unpaged(oracle: ModuleType) -> None:
    """A paged cache, an unpaged cache and packed keys with the same tokens give the same."""
    lens, page = [5, 9], 4
    cache = paged(lens, page, 1, 8)
    q = rand(2, 3, 2, 8)
    k, v = torch.full((2, 12, 1, 8), NAN).double(), torch.full((2, 12, 1, 8), NAN).double()
    for b, n in enumerate(lens):
        for t in range(n):
            place = int(cache["page_table"][b, t // page]), t % page
            k[b, t], v[b, t] = cache["k_cache"][place], cache["v_cache"][place]
    got = oracle.flash_attn_with_kvcache(q, **cache, cache_seqlens=int32(*lens), causal=True)
    same(got, oracle.flash_attn_with_kvcache(q, k, v, cache_seqlens=int32(*lens), causal=True), 0.0)
    packed_k, packed_v = torch.cat([k[0, :5], k[1, :9]]), torch.cat([v[0, :5], v[1, :9]])
    out, lse = oracle.flash_attn_varlen_func(q.flatten(0, 1), packed_k, packed_v, int32(0, 3, 6), int32(0, 5, 14), 3, 9,
                                             causal=True, return_attn_probs=True)
    same(got.flatten(0, 1), out, 0.0)
    table = oracle.flash_attn_varlen_func(q.flatten(0, 1), cache["k_cache"], cache["v_cache"], int32(0, 3, 6), None, 3,
                                          9, seqused_k=int32(*lens), page_table=cache["page_table"], causal=True)
    same(out, table, 0.0)
    assert lse.shape == (2, 6)


@check
def identity_split_and_merge(oracle: ModuleType) -> None:
    """Attention over two parts of a cache, merged by LSE, is attention over the whole; a sink is in one part."""
    q, k, v = rand(1, 1, 4, 8), rand(1, 11, 2, 8), rand(1, 11, 2, 8)
    sinks = torch.randn(4)
    whole, lse = oracle.flash_attn_with_kvcache(q, k, v, sinks=sinks, return_softmax_lse=True)
    for cut in (0, 4, 11):
        a = oracle.flash_attn_with_kvcache(q, k[:, :cut], v[:, :cut], sinks=sinks, return_softmax_lse=True)
        b = oracle.flash_attn_with_kvcache(q, k[:, cut:], v[:, cut:], return_softmax_lse=True)
        out, merged = merge_attention_states(*a, *b)
        same(out, whole, 1e-12)
        same(merged, lse, 1e-12)


@check
def identity_window_is_masked_causal(oracle: ModuleType) -> None:
    """A causal window is causal attention over the keys inside the window, row by row."""
    q, k, v = rand(1, 6, 2, 8), rand(1, 10, 1, 8), rand(1, 10, 1, 8)
    got = oracle.flash_attn_with_kvcache(q, k, v, causal=True, window_size=(2, 0))
    for i in range(6):
        p = i + 4
        low = max(0, p - 2)
        row = oracle.flash_attn_with_kvcache(q[:, i : i + 1], k[:, low : p + 1], v[:, low : p + 1], causal=True)
        same(got[:, i : i + 1], row)


@check
def identity_append_then_attend(oracle: ModuleType) -> None:
    """Appending k, v and attending is attending over the longer cache; the cache then holds them."""
    lens, new = [3, 4, 0], [2, 1, 3]
    total = [n + m for n, m in zip(lens, new)]
    full = paged(total, 4, 2, 8)
    short = {name: x.clone() for name, x in full.items()}
    k, v = [], []
    for b, n in enumerate(lens):
        for t in range(n, total[b]):
            place = int(full["page_table"][b, t // 4]), t % 4
            k.append(full["k_cache"][place])
            v.append(full["v_cache"][place])
            short["k_cache"][place] = short["v_cache"][place] = NAN
    q, cu = rand(6, 4, 8), int32(0, 2, 3, 6)
    got = oracle.flash_attn_with_kvcache(q, **short, k=torch.stack(k), v=torch.stack(v), cache_seqlens=int32(*lens),
                                         cu_seqlens_q=cu, max_seqlen_q=3, cu_seqlens_k_new=cu, causal=True)
    want = oracle.flash_attn_with_kvcache(q, **full, cache_seqlens=int32(*total), cu_seqlens_q=cu, max_seqlen_q=3,
                                          causal=True)
    same(got, want, 0.0)
    for name in ("k_cache", "v_cache"):
        same(short[name], full[name], 0.0)


@check
def identity_append_rotates(oracle: ModuleType) -> None:
    """Rotary with an append is rotating k at cache_seqlens + i and q likewise; all of q at cache_seqlens if full."""
    angle = torch.rand(32, 1).double() * 6 @ torch.ones(1, 4).double() * torch.arange(1, 5)
    cos, sin = angle.cos(), angle.sin()
    lens = int32(2, 7)
    for interleaved in (True, False):
        for causal, window in ((True, (-1, -1)), (False, (-1, -1)), (False, (20, 20))):
            q, k, v = rand(2, 3, 2, 8), rand(2, 3, 1, 8), rand(2, 3, 1, 8)
            kc, vc = rand(2, 16, 1, 8), rand(2, 16, 1, 8)
            kc2, vc2 = kc.clone(), vc.clone()
            got = oracle.flash_attn_with_kvcache(q, kc, vc, k=k, v=v, rotary_cos=cos, rotary_sin=sin,
                                                 cache_seqlens=lens, causal=causal, window_size=window,
                                                 rotary_interleaved=interleaved)
            rotated_q, rotated_k = torch.empty_like(q), torch.empty_like(k)
            for b, n in enumerate(lens.tolist()):
                steps = torch.arange(3) if causal or window != (-1, -1) else torch.zeros(3, dtype=torch.long)
                rotated_q[b] = oracle.rotate(q[b], cos, sin, n + steps, interleaved)
                rotated_k[b] = oracle.rotate(k[b], cos, sin, n + torch.arange(3), interleaved)
            want = oracle.flash_attn_with_kvcache(rotated_q, kc2, vc2, k=rotated_k, v=v, cache_seqlens=lens,
                                                  causal=causal, window_size=window)
            same(got, want)
            same(kc, kc2)
    got = oracle.flash_attn_with_kvcache(q, kc, vc, k=k, v=v, rotary_cos=cos, rotary_sin=sin, cache_seqlens=lens,
                                         rotary_seqlens=int32(9, 0), causal=True, rotary_interleaved=True)
    for b, n in enumerate((9, 0)):
        rotated_q[b] = oracle.rotate(q[b], cos, sin, n + torch.arange(3), True)
        rotated_k[b] = oracle.rotate(k[b], cos, sin, n + torch.arange(3), True)
    same(got, oracle.flash_attn_with_kvcache(rotated_q, kc2, vc2, k=rotated_k, v=v, cache_seqlens=lens, causal=True))


@check
def identity_context_parallel(oracle: ModuleType) -> None:
    """Two and four ranks, each with tokens r, r + n, ..., merged by LSE, are the unsharded result: multi-token causal
    queries, windows and a sink on one rank."""
    lens = [9, 2, 1, 14]
    q = rand(4, 2, 2, 8)
    k, v = rand(4, 14, 1, 8), rand(4, 14, 1, 8)
    sinks = torch.randn(2)
    for window in ((-1, -1), (4, 0)):
        kwargs = {"causal": True, "window_size": window, "return_softmax_lse": True}
        whole = oracle.flash_attn_with_kvcache(q, k, v, cache_seqlens=int32(*lens), sinks=sinks, **kwargs)
        for world in (2, 4):
            state = None
            for rank in range(world):
                local = [len(range(rank, n, world)) for n in lens]
                mine_k, mine_v = (torch.full((4, 8, 1, 8), NAN).double() for _ in "kv")
                for b, n in enumerate(lens):
                    mine_k[b, : local[b]], mine_v[b, : local[b]] = k[b, rank:n:world], v[b, rank:n:world]
                part = oracle.flash_attn_with_kvcache(
                    q, mine_k, mine_v, cache_seqlens=int32(*local), cp_world_size=world, cp_rank=rank,
                    cp_tot_seqused_k=int32(*lens), sinks=sinks if rank == 1 else None, **kwargs)
                state = part if state is None else merge_attention_states(*state, *part)
            same(state[0], whole[0])
            same(state[1], whole[1])


@check
def identity_sink_is_an_extra_key(oracle: ModuleType) -> None:
    """A sink is one more key with that score and a value of 0."""
    q, k, v = rand(1, 3, 2, 8), rand(1, 5, 2, 8), rand(1, 5, 2, 8)
    sinks = rand(2) + torch.tensor([9.0, -3.0])  # one above every score, one below
    out, lse = oracle.flash_attn_with_kvcache(q, k, v, sinks=sinks, softmax_scale=0.3, return_softmax_lse=True)
    # One more dimension carries the sink: q has 1 there, the extra key has sink / scale and nothing else.
    q2 = torch.cat([q, torch.ones(1, 3, 2, 1)], -1)
    k2 = torch.cat([k, torch.zeros(1, 5, 2, 1)], -1)
    extra = torch.zeros(1, 1, 2, 9, dtype=torch.float64)
    extra[0, 0, :, 8] = sinks / 0.3
    v2 = torch.cat([v, torch.zeros(1, 1, 2, 8)], 1)
    want, want_lse = oracle.flash_attn_with_kvcache(q2, torch.cat([k2, extra], 1), v2, softmax_scale=0.3,
                                                    return_softmax_lse=True)
    same(out, want)
    same(lse, want_lse)


@check
def identity_mla_is_concatenation(oracle: ModuleType) -> None:
    """Absorbed MLA through qv is plain attention with [k | v] as keys."""
    q, qv, k, v = rand(2, 2, 4, 8), rand(2, 2, 4, 16), rand(2, 7, 1, 8), rand(2, 7, 1, 16)
    got = oracle.flash_attn_with_kvcache(q, k, v, qv=qv, softmax_scale=0.2, causal=True)
    want = oracle.flash_attn_with_kvcache(torch.cat([q, qv], -1), torch.cat([k, v], -1), v, softmax_scale=0.2,
                                          causal=True)
    same(got, want)


@check
def identity_sparse_is_a_subset(oracle: ModuleType) -> None:
    """Naming every slot of a sequence is attending to all of it; naming some is attending to those."""
    cache = paged([7], 4, 1, 8)
    q = rand(1, 2, 2, 8)
    slots = [int(cache["page_table"][0, t // 4]) * 4 + t % 4 for t in range(7)]
    both = torch.stack([int32(*slots), int32(*slots[:3], -1, -1, -1, -1)])
    got = oracle.flash_attn_with_kvcache(q, **cache, cache_seqlens=int32(7), sparse_indices=both)
    same(got[:, :1], oracle.flash_attn_with_kvcache(q[:, :1], **cache, cache_seqlens=int32(7)))
    same(got[:, 1:], oracle.flash_attn_with_kvcache(q[:, 1:], **cache, cache_seqlens=int32(3)))


@check
def identity_blocks(oracle: ModuleType) -> None:
    """Long sequences cross the oracle's own blocks: a shuffle of the keys changes nothing without a mask, and
    causal rows equal attention over their own prefix."""
    n = oracle.BLOCK_K * 2 + 37
    q, k, v = rand(1, 2, 2, 4), rand(1, n, 1, 4), rand(1, n, 1, 4)
    order = torch.randperm(n)
    same(oracle.flash_attn_with_kvcache(q, k, v), oracle.flash_attn_with_kvcache(q, k[:, order], v[:, order]))
    rows = oracle.BLOCK_Q + 5
    long_q = rand(1, rows, 2, 4)
    got = oracle.flash_attn_with_kvcache(long_q, k, v, causal=True)
    for i in (0, oracle.BLOCK_Q - 1, oracle.BLOCK_Q, rows - 1):
        end = n - rows + i + 1
        same(got[:, i : i + 1], oracle.flash_attn_with_kvcache(long_q[:, i : i + 1], k[:, :end], v[:, :end]))


@check
def result_shapes(oracle: ModuleType) -> None:
    q, k, v = rand(2, 3, 4, 8), rand(2, 5, 2, 8), rand(2, 5, 2, 6)
    out, lse = oracle.flash_attn_with_kvcache(q, k, v, return_softmax_lse=True)
    assert out.shape == (2, 3, 4, 6)
    assert lse.shape == (2, 4, 3)
    flat, flat_lse = oracle.flash_attn_with_kvcache(q.flatten(0, 1), k, v, cu_seqlens_q=int32(0, 3, 6), max_seqlen_q=3,
                                                    return_softmax_lse=True)
    assert flat.shape == (6, 4, 6)
    same(flat.view(2, 3, 4, 6), out, 0.0)
    for b in range(2):
        same(flat_lse[:, 3 * b : 3 * b + 3], lse[b], 0.0)
    into = torch.full((2, 3, 4, 6), NAN)
    oracle.flash_attn_with_kvcache(q, k, v, out=into)
    same(into, out, 1e-6)
