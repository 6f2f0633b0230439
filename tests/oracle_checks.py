"""Checks of an oracle: hand-computed cases, identities, and random calls against the reference of brute_force.py.

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

import brute_force
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


@check
def hand_rotary_45_degrees(oracle: ModuleType) -> None:
    """45 degrees a position: (a, b) at position 1 is (a - b, a + b) / sqrt(2), at position 2 (-b, a)."""
    angle = torch.arange(4)[:, None] * math.pi / 4 * torch.ones(1, 2)
    r = math.sqrt(0.5)
    tokens = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]] * 2).view(1, 2, 1, 5)
    for interleaved, want in (
            (True, [[-1 * r, 3 * r, -1 * r, 7 * r, 5.0], [-2.0, 1.0, -4.0, 3.0, 5.0]]),
            (False, [[-2 * r, -2 * r, 4 * r, 6 * r, 5.0], [-3.0, -4.0, 1.0, 2.0, 5.0]])):
        k_cache, v_cache = torch.zeros(1, 3, 1, 5), torch.zeros(1, 3, 1, 1)
        call = {"v": torch.tensor([8.0, 16.0]).view(1, 2, 1, 1), "rotary_cos": angle.cos(), "rotary_sin": angle.sin(),
                "cache_seqlens": int32(1), "rotary_interleaved": interleaved, "return_softmax_lse": True}
        oracle.flash_attn_with_kvcache(torch.zeros(1, 1, 1, 5), k_cache, v_cache, k=tokens, **call)
        same(k_cache[0, :, 0], torch.tensor([[0.0] * 5, *want]))
        # q (1, 0) stands at position 1, the keys (1, 0) at 1 and 2: their angles to q are 0 and 45 degrees. The key
        # that was there is 0.
        one = torch.zeros(1, 2, 1, 5)
        one[..., 0] = 1.0
        out, lse = oracle.flash_attn_with_kvcache(one[:, :1], k_cache * 0, v_cache, k=one, softmax_scale=2.0, **call)
        total = 1 + math.exp(2.0) + math.exp(2 * r)
        same(lse, torch.tensor([[[math.log(total)]]]))
        same(out, torch.tensor([[[[(8 * math.exp(2.0) + 16 * math.exp(2 * r)) / total]]]]))


@check
def hand_visible_nan(oracle: ModuleType) -> None:
    """A NaN among the keys that a query sees is a NaN, never the output 0 and the LSE -inf of an empty row."""
    q, k, v = rand(1, 2, 2, 4), rand(1, 5, 2, 4), rand(1, 5, 2, 4)
    k[0, 2, 1, 3] = v[0, 4, 0] = NAN
    for sinks in (None, torch.randn(2)):
        out, lse = oracle.flash_attn_with_kvcache(q, k, v, sinks=sinks, return_softmax_lse=True)
        assert bool(torch.isnan(out).all()), "a NaN was seen, and the output does not show it"
        assert bool(torch.isnan(lse[:, 1]).all()), "a NaN key was seen, and the LSE does not show it"
        assert bool(torch.isfinite(lse[:, 0]).all()), "a NaN value is no score"


@check
def hand_int_cache_seqlens(oracle: ModuleType) -> None:
    """An int holds for every sequence; None is the whole cache, paged or not."""
    v = torch.tensor([1.0, 2.0, 6.0, 11.0]).view(4, 1, 1).expand(3, 4, 1, 1)
    q, k = torch.zeros(3, 1, 1, 2), rand(3, 4, 1, 2)
    same(oracle.flash_attn_with_kvcache(q, k, v, cache_seqlens=3).flatten(), torch.tensor([3.0, 3.0, 3.0]))
    same(oracle.flash_attn_with_kvcache(q, k, v).flatten(), torch.tensor([5.0, 5.0, 5.0]))
    pages = {"k_cache": k.view(6, 2, 1, 2), "v_cache": v.reshape(6, 2, 1, 1), "page_table": int32(*range(6)).view(3, 2)}
    same(oracle.flash_attn_with_kvcache(q, **pages, cache_seqlens=3).flatten(), torch.tensor([3.0, 3.0, 3.0]))
    same(oracle.flash_attn_with_kvcache(q, **pages).flatten(), torch.tensor([5.0, 5.0, 5.0]))


@check
def hand_sink_in_every_block(oracle: ModuleType) -> None:
    """One key of weight 1 and a sink of ln 3: an output of a quarter of v and LSE ln 4, in every row, and in out=."""
    rows = oracle.BLOCK_Q * 2 + 3
    q, v, into = torch.zeros(1, rows, 1, 1), torch.full((1, 1, 1, 1), 8.0), torch.full((1, rows, 1, 1), NAN)
    out, lse = oracle.flash_attn_with_kvcache(q, rand(1, 1, 1, 1), v, sinks=torch.tensor([math.log(3.0)]), out=into,
                                              return_softmax_lse=True)
    same(out, torch.full((1, rows, 1, 1), 2.0))
    same(lse, torch.full((1, 1, rows), math.log(4.0)))
    same(into, out, 0.0)


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
def mask_window_of_int64(oracle: ModuleType) -> None:
    """The largest window is no window, also for the negative positions of more queries than keys."""
    top = 2**63 - 1
    for len_q, len_k in ((3, 5), (5, 2)):
        for window in ((-1, top), (top, -1), (top, top)):
            assert weights_seen(oracle, len_q, len_k, window_size=window) == [list(range(len_k))] * len_q, window
        causal = weights_seen(oracle, len_q, len_k, causal=True)
        assert weights_seen(oracle, len_q, len_k, causal=True, window_size=(top, top)) == causal


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


def turn(x: torch.Tensor, angle: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [T, H, D] with its pairs as complex numbers, turned by angle [T, D / 2]."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    z = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)[:, None, :]
    return torch.stack([z.real, z.imag], -1).flatten(-2) if interleaved else torch.cat([z.real, z.imag], -1)


@check
def identity_append_rotates(oracle: ModuleType) -> None:
    """Rotary with an append is rotating k at cache_seqlens + i and q likewise; all of q at cache_seqlens if full.
    rotary_seqlens takes the place of cache_seqlens."""
    angle = torch.rand(32, 1) * 6 * torch.arange(1, 5)
    lens = int32(2, 7)
    for interleaved in (True, False):
        for moving, mask in ((True, {"causal": True}), (False, {}), (True, {"window_size": (20, -1)}),
                             (True, {"window_size": (-1, 20)}), (True, {"attention_chunk": 30})):
            for start in (None, int32(9, 0)):
                q, k, v = rand(2, 3, 2, 8), rand(2, 3, 1, 8), rand(2, 3, 1, 8)
                kc, vc = rand(2, 16, 1, 8), rand(2, 16, 1, 8)
                kc2, vc2 = kc.clone(), vc.clone()
                got = oracle.flash_attn_with_kvcache(
                    q, kc, vc, k=k, v=v, rotary_cos=angle.cos(), rotary_sin=angle.sin(), cache_seqlens=lens,
                    rotary_seqlens=start, rotary_interleaved=interleaved, **mask)
                rotated_q, rotated_k = torch.empty_like(q), torch.empty_like(k)
                for b, n in enumerate((lens if start is None else start).tolist()):
                    rotated_k[b] = turn(k[b], angle[n : n + 3], interleaved)
                    at = angle[n : n + 3] if moving else angle[n : n + 1].expand(3, -1)
                    rotated_q[b] = turn(q[b], at, interleaved)
                want = oracle.flash_attn_with_kvcache(rotated_q, kc2, vc2, k=rotated_k, v=v, cache_seqlens=lens, **mask)
                same(got, want)
                same(kc, kc2)


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
    """Long sequences cross the oracle's own blocks: the order of the keys changes nothing without a mask, and
    causal rows equal attention over their own prefix."""
    n = oracle.BLOCK_K * 2 + 37
    q, k, v = rand(1, 2, 2, 4), rand(1, n, 1, 4), rand(1, n, 1, 4)
    # In rising order of the first query's scores every block has a new maximum for it, in falling order none after the
    # first has.
    rising = (k[0, :, 0] @ q[0, 0, 0]).argsort()
    for order in (torch.randperm(n), rising, rising.flip(0)):
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


# --- random calls against the brute-force reference --------------------------------------------------------------

# Each line is one call per run: what is drawn is the sizes and the numbers, never whether a feature occurs. Unless a
# line says "paged" the cache is not; unless it says "batch" q is packed.
KVCACHE_CALLS = (
    "paged batch causal",
    "whole causal sinks",
    "paged whole batch window",
    "paged empty left sinks causal",
    "int batch append-batch right",
    "paged index append-batch leftpad chunk causal",
    "paged batch append-packed leftpad rotary causal",
    "append-packed rotary neox partial right index",
    "paged batch append-batch rotary rotary-at chunk index",
    "batch append-packed rotary neox leftpad rotary-at",
    "paged empty append-packed leftpad rotary partial left half",
    "batch append-batch rotary neox causal half",
    "paged tree left",
    "batch append-batch tree causal",
    "paged prefix left causal leftpad",
    "batch prefix chunk causal tree",
    "paged batch qv descales causal",
    "qv scalars scale softcap sinks index",
    "paged append-batch descales softcap sinks window fp8",
    "paged index empty descales qv chunk",
)
VARLEN_CALLS = (
    "causal",
    "paged window sinks empty",
    "used-q left probs",
    "used-k right softcap",
    "paged used-q chunk descales scale",
    "used-q used-k causal chunk sinks probs",
    "qv descales causal",
    "paged qv scalars softcap sinks window half",
    "tree left used-q",
    "paged tree causal prefix",
    "used-k prefix left causal fp8 descales probs",
    "empty used-q used-k causal window sinks",
)
SPARSE_CALLS = (
    "paged sparse",
    "paged sparse batch descales sinks",
    "paged sparse qv scalars softcap scale",
    "paged sparse batch append-packed rotary leftpad",
    "paged sparse index append-batch sinks softcap descales",
    "paged sparse empty qv batch",
)
VARLEN_SPARSE_CALLS = (
    "paged sparse",
    "paged sparse descales sinks used-q",
    "paged sparse empty qv softcap scale probs",
)
PARALLEL_CALLS = (
    "causal",
    "paged left sinks",
    "batch right",
    "paged prefix left causal",
    "tree window",
    "batch chunk causal",
    "paged qv descales softcap causal empty",
    "batch prefix causal half",
)
HEADS, GROUP, DIM, DIM_V = 2, 2, 4, 6


def pick(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def cumulative(lens: list[int]) -> torch.Tensor:
    return int32(*(sum(lens[:b]) for b in range(len(lens) + 1)))


def dtypes(on: set[str]) -> tuple[torch.dtype, torch.dtype]:
    """(of q and the rotary tables, of keys, values and the cache)."""
    dtype = torch.bfloat16 if "half" in on else torch.float64
    return dtype, torch.float8_e4m3fn if "fp8" in on else dtype


def lengths(on: set[str], new: list[int]) -> tuple[list[int], list[int]]:
    """Queries and keys of three sequences: fewer queries than keys unless some are empty, keys all different."""
    len_q = [pick(2, 3)] * 3 if "batch" in on else (torch.randperm(3) + 2).tolist()
    len_k = [n + 6 + m for n, m in zip(torch.randperm(5).tolist(), new)]
    if "empty" in on:
        len_k[0] = new[0]
        len_q = len_q if "batch" in on else [*len_q[:2], 0]
    return len_q, len_k


def storage(on: set[str], held: list[int], rows: list[int], dtype: torch.dtype, full: bool) -> dict[str, torch.Tensor]:
    """A cache of NaN with room for held[b] tokens of sequence b in row rows[b]; full: and for none beyond."""
    page = pick(2, 4)
    if "paged" not in on:
        shape, table = (max(rows) + 1, max(held) + 3 * (not full)), None
    else:
        need = [-(-n // page) for n in held]
        table = torch.full((max(rows) + 1, max(need) + 2 * (not full)), 2**30, dtype=torch.int32)
        order = torch.randperm(sum(need) + 2).int()
        for b, n in enumerate(need):
            table[rows[b], :n] = order[sum(need[:b]) : sum(need[: b + 1])]
        shape = (len(order), page)
    k, v = (torch.full((*shape, HEADS, dim), NAN).to(dtype) for dim in (DIM, DIM_V))
    return {"k_cache": k, "v_cache": v} | ({} if table is None else {"page_table": table})


def features(on: set[str], len_q: list[int], len_k: list[int], width: int) -> dict[str, Any]:
    """The arguments that both functions have. len_q, len_k: tokens that count; width: max_seqlen_q."""
    call: dict[str, Any] = {"causal": "causal" in on}
    for name, window in (("window", (pick(0, 2), pick(0, 1))), ("left", (pick(0, 1), -1)), ("right", (-1, pick(0, 1)))):
        if name in on:
            call["window_size"] = window
    if "chunk" in on:
        call["attention_chunk"] = pick(2, 4)
    if "softcap" in on:
        call["softcap"] = 0.7
    if "scale" in on or "qv" in on:
        call["softmax_scale"] = 0.3
    if "sinks" in on:
        call["sinks"] = torch.randn(HEADS * GROUP)
    if "descales" in on or "scalars" in on:
        shape = (3, HEADS) if "descales" in on else ()
        call |= {f"{x}_descale": torch.rand(shape, dtype=torch.float32) + 0.5 for x in "qkv"}
    if "tree" in on:  # neighbours differ in every place, so that one sequence's tree is not another's
        tree = torch.rand(width, width) < 0.5
        trees = [tree if b % 2 == 0 else ~tree for b in range(3)]
        call["tree_mask"] = torch.stack(trees)
    if "prefix" in on:  # all of the first sequence, nothing of the second, two ranges of the third
        third = (pick(0, 1), 4, len_k[2] - min(len_q[2], 2), len_k[2] - pick(0, 1))
        call["mm_prefix_ranges"] = int32(0, 40, -1, -1, -1, -1, -1, -1, *third).view(3, 2, 2)
    return call


def slots(table: torch.Tensor, page: int, held: list[int], rows: list[int]) -> torch.Tensor:
    """sparse_indices [sum(rows), 5]: some of the held[b] tokens of each query's sequence, with gaps; the first: none.

    table: [B, max_pages], the pages of each sequence; rows: how many queries each sequence has.
    """
    out = torch.full((sum(rows), 5), -1, dtype=torch.int32)
    for b, count in enumerate(rows):
        for row in range(sum(rows[:b]), sum(rows[:b]) + count):
            some = torch.randperm(held[b])[: pick(2, 4)].tolist() if row else []
            for column, token in zip(torch.randperm(5).tolist(), some):
                out[row, column] = table[b, token // page] * page + token % page
    return out


def kvcache_call(words: str, world: int = 1, rank: int = 0) -> dict[str, Any]:
    """A random call of flash_attn_with_kvcache in which all that `words` names occurs, on rank of world ranks.

    The cache holds NaN wherever no query of the call may look, and where the call appends.
    """
    on = set(words.split())
    new = [pick(1, 3)] * 3 if "append-batch" in on else [0, 3, 1] if "append-packed" in on else [0, 0, 0]
    len_q, total = lengths(on, new)
    if "whole" in on or "int" in on:
        total = [8 + new[0]] * 3
    local = [len(range(rank, n, world)) for n in total]
    before = [n - m for n, m in zip(local, new)]
    q_dtype, dtype = dtypes(on)
    rows = [4, 2, 3] if "index" in on else [0, 1, 2]
    call: dict[str, Any] = storage(on, local, rows, dtype, "whole" in on)
    if "whole" in on and "paged" in on:  # the last page is full
        before = local = total = [call["page_table"].shape[1] * call["k_cache"].shape[1]] * 3
    call |= features(on, len_q, total, width := max(len_q))
    shape = (3, width) if "batch" in on else (sum(len_q),)
    call["q"] = rand(*shape, HEADS * GROUP, DIM).to(q_dtype)
    if "qv" in on:
        call["qv"] = rand(*shape, HEADS * GROUP, DIM_V).to(q_dtype)
    if "batch" not in on:
        call |= {"cu_seqlens_q": cumulative(len_q), "max_seqlen_q": width}
        if "tree" in on:
            call["tree_mask"] = torch.cat([tree[:n] for tree, n in zip(call["tree_mask"], len_q)])
    if "whole" not in on:
        call["cache_seqlens"] = before[0] if "int" in on else int32(*before)
    if "index" in on:
        call["cache_batch_idx"] = int32(*rows)
    if "leftpad" in on:
        call["cache_leftpad"] = int32(*(min(pick(1, 2), n) for n in before))
    if any(new):
        shape = (3, new[0]) if "append-batch" in on else (sum(new),)
        call |= {"k": rand(*shape, HEADS, DIM).to(dtype), "v": rand(*shape, HEADS, DIM_V).to(dtype)}
        if "append-packed" in on:
            call["cu_seqlens_k_new"] = cumulative(new)
    if "rotary" in on:
        angle = torch.rand(24, 1 if "partial" in on else 2) * 6
        call |= {"rotary_cos": angle.cos().to(q_dtype), "rotary_sin": angle.sin().to(q_dtype),
                 "rotary_interleaved": "neox" not in on}
    if "rotary-at" in on:
        call["rotary_seqlens"] = int32(*((before[b] + 3 + b) % 12 for b in range(3)))
    if world > 1:
        call |= {"cp_world_size": world, "cp_rank": rank, "cp_tot_seqused_k": int32(*total)}
    if "sparse" in on:
        call["sparse_indices"] = slots(call["page_table"][rows], call["k_cache"].shape[1], local, len_q)
    for place in brute_force.kvcache_reads(**call):
        call["k_cache"][place], call["v_cache"][place] = rand(HEADS, DIM).to(dtype), rand(HEADS, DIM_V).to(dtype)
    return call


def varlen_call(words: str, world: int = 1, rank: int = 0) -> dict[str, Any]:
    """The same of flash_attn_varlen_func. Rows of q and of packed keys that do not count hold NaN."""
    on = set(words.split())
    len_q, total = lengths(on - {"batch"}, [0, 0, 0])
    local = [len(range(rank, n, world)) for n in total]
    q_dtype, dtype = dtypes(on)
    rows_q = [n + 1 + b % 2 for b, n in enumerate(len_q)] if "used-q" in on else len_q
    rows_k = [n + 1 + b % 2 for b, n in enumerate(local)] if "used-k" in on else local
    width = max(rows_q)
    call: dict[str, Any] = features(on, len_q, total, width)
    call |= {"cu_seqlens_q": cumulative(rows_q), "max_seqlen_q": width, "max_seqlen_k": max(rows_k)}
    for name, dim in (("q", DIM), ("qv", DIM_V)):
        if name == "q" or name in on:
            q = rand(sum(rows_q), HEADS * GROUP, dim)
            for b, n in enumerate(len_q):
                q[sum(rows_q[:b]) + n : sum(rows_q[: b + 1])] = NAN
            call[name] = q.to(q_dtype)
    if "tree" in on:
        call["tree_mask"] = torch.cat([tree[:n] for tree, n in zip(call["tree_mask"], rows_q)])
    if "used-q" in on:
        call["seqused_q"] = int32(*len_q)
    if "used-k" in on or "paged" in on:
        call["seqused_k"] = int32(*local)
    cache = storage(on, local, [0, 1, 2], dtype, False)
    if "paged" in on:
        call |= {"k": cache["k_cache"], "v": cache["v_cache"], "page_table": cache["page_table"]}
    else:
        call["cu_seqlens_k"] = cumulative(rows_k)
        call |= {name: torch.full((sum(rows_k), HEADS, dim), NAN).to(dtype) for name, dim in (("k", DIM), ("v", DIM_V))}
    if world > 1:
        call |= {"cp_world_size": world, "cp_rank": rank, "cp_tot_seqused_k": int32(*total)}
    if "sparse" in on:
        call["sparse_indices"] = slots(call["page_table"], call["k"].shape[1], local, rows_q)
    for page, offset in brute_force.varlen_reads(**call):
        at = (page, offset) if "paged" in on else offset
        call["k"][at], call["v"][at] = rand(HEADS, DIM).to(dtype), rand(HEADS, DIM_V).to(dtype)
    return call


def compare(oracle: ModuleType, words: str, call: dict[str, Any]) -> None:
    """out, lse and the caches after the call are those of the reference, and the poison was not read."""
    mine, theirs = ({name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in call.items()} for _ in "ab")
    try:
        if "k_cache" in call:
            want = brute_force.with_kvcache(**mine)
            got = oracle.flash_attn_with_kvcache(**theirs, return_softmax_lse=True)
        else:
            want = brute_force.varlen(**mine)
            flag = "return_attn_probs" if "probs" in words.split() else "return_softmax_lse"
            got = oracle.flash_attn_varlen_func(**theirs, **{flag: True})
        assert not any(bool(torch.isnan(x).any()) for x in want), "the reference read poison"
        same(got[0], want[0], 1e-9)
        same(got[1], want[1], 1e-9)
        for name in {"k_cache", "v_cache"} & call.keys():
            same(theirs[name], mine[name], 1e-12)
    except Exception as error:
        raise AssertionError(f"{words!r}: {error}") from error


@check
def brute_force_kvcache(oracle: ModuleType) -> None:
    for words in KVCACHE_CALLS:
        compare(oracle, words, kvcache_call(words))


@check
def brute_force_varlen(oracle: ModuleType) -> None:
    for words in VARLEN_CALLS:
        compare(oracle, words, varlen_call(words))


@check
def brute_force_sparse(oracle: ModuleType) -> None:
    for words in SPARSE_CALLS:
        compare(oracle, words, kvcache_call(words))
    for words in VARLEN_SPARSE_CALLS:
        compare(oracle, words, varlen_call(words))


@check
def brute_force_context_parallel(oracle: ModuleType) -> None:
    for world in (2, 3):
        for words in PARALLEL_CALLS:
            for rank in range(world):
                compare(oracle, words, kvcache_call(words, world, rank))
                if "batch" not in words:
                    compare(oracle, words, varlen_call(words, world, rank))
