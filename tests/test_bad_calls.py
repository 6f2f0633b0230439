"""Bad calls: each gives an error naming the argument, the value seen and what was expected, and writes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hal
from hal import contract, validation

CONFIG = hal.AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, dtype="float32")
ATTN = hal.get_attention_impl(CONFIG, device="cpu", backend="torch")
INT = torch.int32


def ints(*values: int, dtype: torch.dtype = INT) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def kvcache() -> dict[str, Any]:
    """A valid paged call: two sequences of 5 and 9 tokens in pages of 4, two query tokens each, appending two."""
    return {"q": torch.randn(2, 2, 4, 8), "k_cache": torch.randn(7, 4, 2, 8), "v_cache": torch.randn(7, 4, 2, 8),
            "k": torch.randn(2, 2, 2, 8), "v": torch.randn(2, 2, 2, 8), "cache_seqlens": ints(5, 9),
            "page_table": ints(0, 3, 2, 5, 1, 4).view(2, 3)[:, [0, 1, 2]], "out": torch.full((2, 2, 4, 8), 7.0)}


def varlen() -> dict[str, Any]:
    """A valid packed call: sequences of 2 and 3 query tokens over 4 and 5 keys."""
    return {"q": torch.randn(5, 4, 8), "k": torch.randn(9, 2, 8), "v": torch.randn(9, 2, 8),
            "cu_seqlens_q": ints(0, 2, 5), "cu_seqlens_k": ints(0, 4, 9), "max_seqlen_q": 3, "max_seqlen_k": 5,
            "out": torch.full((5, 4, 8), 7.0)}


T = torch.randn
NO_APPEND = {"k": None, "v": None}
COS = torch.ones(16, 4)
# what is changed in the valid call: the argument, the value and the expectation that the error must name
KVCACHE = [
    ({"q": None}, r"^q: got None, expected a tensor"),
    ({"q": T(2, 2, 8)}, r"^q: got \(2, 2, 8\), expected \[B, Sq, Hq, D\]"),
    ({"q": T(2, 2, 4, 8).double()}, r"^q: got torch.float64, expected float16, bfloat16, float32 or fp8"),
    ({"q": T(2, 2, 8, 4).transpose(2, 3)}, r"^q: got stride .*, expected a contiguous last dimension"),
    ({"q": T(2, 2, 3, 8)}, r"^k_cache: got 2 KV heads, expected a divisor of q's 3 heads"),
    ({"q": T(2, 2, 4, 16)}, r"^k_cache: got head_dim 8, expected 16"),
    ({"q": T(3, 2, 4, 8)}, r"^(page_table|k_cache): got 2 rows, expected 3 rows"),
    ({"q": T(2, 2, 4, 8).requires_grad_()}, r"^q: got a tensor that requires grad, expected inference only"),
    ({"q": T(2, 2, 4, 8, device="meta")}, r"^k_cache: got a tensor on cpu, expected one on meta"),
    ({"k_cache": T(7, 4, 8)}, r"^k_cache: got \(7, 4, 8\), expected \[num_pages or B"),
    ({"k_cache": T(7, 4, 2, 8).half()}, r"^v_cache: got torch.float32, expected torch.float16 as k_cache"),
    ({"k_cache": T(7, 4, 2, 8).half(), "v_cache": T(7, 4, 2, 8).half()},
     r"^k_cache: got torch.float16, expected torch.float32 as q, or fp8"),
    ({"k_cache": torch.ones(7, 4, 2, 8, dtype=torch.uint8), "v_cache": torch.ones(7, 4, 2, 8, dtype=torch.uint8)},
     r"^k_cache: got torch.uint8, expected torch.float32 as q, or fp8 \(float8_e4m3fn, float8_e5m2\)"),
    ({"k_cache": T(7, 4, 2, 1).expand(7, 4, 2, 8)}, r"^k_cache: got stride .*, expected a contiguous last dimension"),
    ({"k_cache": T(1, 4, 2, 8).expand(7, 4, 2, 8)}, r"^k_cache: got an expanded view, .*, expected memory of its own"),
    ({"v_cache": T(6, 4, 2, 8)}, r"^v_cache: got \(6, 4, 2, 8\), expected \(7, 4, 2\) \+ \(Dv,\) as k_cache"),
    ({"v_cache": T(7, 4, 8, 2).transpose(2, 3)}, r"^v_cache: got stride .*, expected a contiguous last dimension"),
    ({"k": None}, r"^k: got None, expected k and v together"),
    ({"v": None}, r"^v: got None, expected k and v together"),
    ({"k": "k"}, r"^k: got k, expected a tensor or None"),
    ({"k": T(2, 2, 8)}, r"^k: got \(2, 2, 8\), expected \[B, Snew, Hkv, D\]"),
    ({"k": T(2, 2, 1, 8)}, r"^k: got \(2, 2, 1, 8\), expected heads and head_dim \(2, 8\)"),
    ({"k": T(2, 2, 2, 8).half()}, r"^k: got torch.float16, expected torch.float32 as k_cache"),
    ({"k": T(2, 3, 2, 8)}, r"^v: got \(2, 2, 2, 8\), expected \(2, 3, 2\)"),
    ({"k": T(2, 4, 2, 8), "v": T(2, 4, 2, 8)}, r"^k: got 13 tokens after the append, expected at most 12"),
    ({"k": T(3, 2, 2, 8), "v": T(3, 2, 2, 8)}, r"^k: got 3 sequences, expected 2"),
    ({"cache_seqlens": None}, r"^cache_seqlens: got None, expected lengths before the append"),
    ({"cache_seqlens": ints(5, 9, dtype=torch.int64)}, r"^cache_seqlens: got torch.int64, expected torch.int32"),
    ({"cache_seqlens": ints(5, 9, 1)}, r"^cache_seqlens: got \(3,\), expected \(2,\)"),
    ({"cache_seqlens": ints(-1, 9)}, r"^cache_seqlens: got \[-1\], expected lengths from 0 to 12"),
    ({"cache_seqlens": ints(5, 13)}, r"^cache_seqlens: got \[13\], expected lengths from 0 to 12"),
    ({"cache_seqlens": [5, 9]}, r"^cache_seqlens: got \[5, 9\], expected a tensor"),
    ({"cache_seqlens": 13}, r"^cache_seqlens: got \[13\], expected lengths from 0 to 12"),
    ({"page_table": ints(0, 3, 2, 5, 1, 4, dtype=torch.int64).view(2, 3)}, r"^page_table: got torch.int64"),
    ({"page_table": ints(0, 3, 2)}, r"^page_table: got \(3,\), expected 2 dimensions"),
    ({"page_table": ints(0, 7, 2, 5, 1, 4).view(2, 3)}, r"^page_table: got page 7 for sequence 0, expected pages from 0 to 6"),
    ({"page_table": ints(0, 3, 2, 5, -1, 4).view(2, 3)}, r"^page_table: got page -1 for sequence 1, expected pages"),
    ({"page_table": ints(0, 3, 2, 5, 1, 3).view(2, 3)}, r"^page_table: got page \[3\] twice among the pages that k and v"),
    ({"page_table": ints(0, 3, 2, 5, 1, 9).view(2, 3), "sparse_indices": ints(0, 1, 2, 3).view(4, 1)},
     r"^page_table: got page 9 for sequence 1, expected pages from 0 to 6"),
    ({"page_table": ints(0, 3, 2, 5, 1, 4).view(2, 3)[:1], "sparse_indices": ints(0, 1, 2, 3).view(4, 1)},
     r"^page_table: got 1 rows, expected 2 rows"),
    ({"page_table": ints(0, 3, 2).view(1, 3)}, r"^page_table: got 1 rows, expected 2 rows"),
    ({"cache_batch_idx": ints(0, 2)}, r"^cache_batch_idx: got \[2\], expected values from 0 to 1 \(page_table's rows\)"),
    ({"cache_batch_idx": ints(1, 1)}, r"^cache_batch_idx: got \[1, 1\], expected distinct rows when appending"),
    ({"cache_leftpad": ints(6, 0)}, r"^cache_leftpad: got \[6\], expected values from 0 to cache_seqlens"),
    ({"cache_leftpad": ints(-1, 0)}, r"^cache_leftpad: got \[-1\], expected values from 0"),
    ({"cu_seqlens_q": ints(0, 2, 4)}, r"^q: got \(2, 2, 4, 8\), expected \[total_q, Hq, D\] with cu_seqlens_q"),
    ({"cu_seqlens_k_new": ints(0, 2, 4), **NO_APPEND}, r"^cu_seqlens_k_new: got a tensor, expected None without k and v"),
    ({"cu_seqlens_k_new": ints(0, 2, 4)}, r"^k: got \(2, 2, 2, 8\), expected \[total_new, Hkv, D\]"),
    ({"max_seqlen_q": 3}, r"^max_seqlen_q: got 3, expected None or q.shape\[1\] = 2"),
    ({"rotary_cos": COS[0], "rotary_sin": COS[0]}, r"^rotary_cos: got \(4,\), expected \[S, rotary_dim / 2\]"),
    ({"rotary_cos": COS}, r"^rotary_sin: got None, expected rotary_cos and rotary_sin together"),
    ({"rotary_cos": COS, "rotary_sin": COS[:, :3]}, r"^rotary_sin: got \(16, 3\), expected .* as rotary_cos"),
    ({"rotary_cos": COS, "rotary_sin": COS, **NO_APPEND}, r"^rotary_cos: got a tensor, expected None without k and v"),
    ({"rotary_cos": COS.half(), "rotary_sin": COS.half()}, r"^rotary_cos: got torch.float16, expected torch.float32 as q"),
    ({"rotary_cos": COS[:10], "rotary_sin": COS[:10]}, r"^rotary_cos: got 10 positions, expected at least 11"),
    ({"rotary_cos": T(16, 5), "rotary_sin": T(16, 5)}, r"^rotary_cos: got rotary_dim 10, expected at most head_dim 8"),
    ({"rotary_seqlens": ints(0, 0)}, r"^rotary_seqlens: got a tensor, expected None without rotary_cos"),
    ({"rotary_interleaved": 1}, r"^rotary_interleaved: got 1, expected True or False"),
    ({"q_descale": 1.0}, r"^q_descale: got 1.0, expected a tensor or None"),
    ({"k_descale": torch.ones(3, 2)}, r"^k_descale: got \(3, 2\), expected a scalar or \(2, 2\)"),
    ({"v_descale": torch.ones(2, 2).half()}, r"^v_descale: got torch.float16 .*, expected a float32 tensor"),
    ({"softmax_scale": 0}, r"^softmax_scale: got 0, expected a finite number > 0 or None"),
    ({"softmax_scale": float("nan")}, r"^softmax_scale: got nan, expected a finite number > 0"),
    ({"causal": 1}, r"^causal: got 1, expected True or False"),
    ({"window_size": 5}, r"^window_size: got 5, expected \(left, right\)"),
    ({"window_size": (-2, 0)}, r"^window_size: got \(-2, 0\), expected .*>= -1"),
    ({"window_size": (None, 0)}, r"^window_size: got \(None, 0\), expected"),
    ({"attention_chunk": -1}, r"^attention_chunk: got -1, expected a whole number >= 0"),
    ({"attention_chunk": None}, r"^attention_chunk: got None, expected a whole number >= 0 \(0: none\)"),
    ({"softcap": -1.0}, r"^softcap: got -1.0, expected a finite number >= 0"),
    ({"return_softmax_lse": "yes"}, r"^return_softmax_lse: got yes, expected True or False"),
    ({"sinks": T(3)}, r"^sinks: got torch.float32 \(3,\) on cpu, expected floating \(4,\)"),
    ({"sinks": ints(1, 1, 1, 1)}, r"^sinks: got torch.int32 .*, expected floating \(4,\)"),
    ({"out": torch.full((2, 1, 4, 8), 7.0).expand(2, 2, 4, 8)}, r"^out: got an expanded view, .*, expected memory of its own"),
    ({"out": torch.full((2, 2, 4, 7), 7.0)}, r"^out: got torch.float32 \(2, 2, 4, 7\) on cpu, expected torch.float32 \(2, 2, 4, 8\)"),
    ({"out": torch.full((2, 2, 4, 8), 7.0).half()}, r"^out: got torch.float16 .*, expected torch.float32"),
    ({"tree_mask": torch.ones(2, 2, 3, dtype=torch.bool)}, r"^tree_mask: got torch.bool \(2, 2, 3\) on cpu, expected bool \(2, 2, 2\)"),
    ({"tree_mask": torch.ones(2, 2, 2)}, r"^tree_mask: got torch.float32 .*, expected bool"),
    ({"tree_mask": torch.ones(2, 2, 2, dtype=torch.bool), "cache_seqlens": ints(1, 9), **NO_APPEND},
     r"^tree_mask: got \(2, 1\) \(query tokens, keys\), expected this step's tokens among the keys"),
    ({"mm_prefix_ranges": ints(0, 1, 2, 3).view(2, 2)}, r"^mm_prefix_ranges: got \(2, 2\), expected 3 dimensions"),
    ({"mm_prefix_ranges": ints(3, 1, 2, 3).view(2, 1, 2)}, r"^mm_prefix_ranges: got \(3, 1\), expected 0 <= start <= end"),
    ({"sparse_indices": ints(0, 1).view(2, 1)}, r"^sparse_indices: got \(2, 1\), expected \(4, topk\)"),
    ({"sparse_indices": ints(0, 1, 2, 28).view(4, 1)}, r"^sparse_indices: got 28, expected -1 \(none\) or 0 to 27"),
    ({"sparse_indices": ints(0, 1, 2, 3).view(4, 1), "causal": True},
     r"^sparse_indices: got a tensor together with causal, expected no other mask"),
    ({"cp_world_size": 0}, r"^cp_world_size: got 0, expected a whole number >= 1"),
    ({"cp_rank": 1}, r"^cp_rank: got 1, expected from 0 to 0"),
    ({"cp_world_size": 2, **NO_APPEND}, r"^cp_tot_seqused_k: got None, expected int32 \[B\] global lengths"),
    ({"cp_tot_seqused_k": ints(5, 9)}, r"^cp_tot_seqused_k: got a tensor, expected None with cp_world_size 1"),
    ({"cp_world_size": 2, "cp_tot_seqused_k": ints(10, 18)}, r"^k: got a tensor, expected None with cp_world_size 2"),
    ({"cp_world_size": 2, "cp_tot_seqused_k": ints(10, 20), **NO_APPEND},
     r"^cp_tot_seqused_k: got 20, expected lengths that give rank 0 of 2 its 9 tokens"),
    ({"qv": T(2, 2, 4, 8)}, r"^softmax_scale: got None, expected a number with qv"),
    ({"qv": T(2, 2, 4, 9), "softmax_scale": 0.1}, r"^qv: got \(2, 2, 4, 9\), expected \(2, 2, 4, 8\)"),
    ({"num_splits": -1}, r"^num_splits: got -1, expected a whole number >= 0"),
    ({"num_splits": 8}, r"^num_splits: got 8, which the torch backend does not honour"),
    ({"pack_gqa": True}, r"^pack_gqa: got True, which the torch backend does not honour"),
    ({"sm_margin": 4}, r"^sm_margin: got 4, which the torch backend does not honour"),
    ({"scheduler_metadata": ints(1)}, r"^scheduler_metadata: got .*, which the torch backend does not honour"),
]
VARLEN = [
    ({"cu_seqlens_q": None}, r"^cu_seqlens_q: got None, expected int32 \[B \+ 1\]"),
    ({"cu_seqlens_q": ints(0, 2, 5, dtype=torch.int64)}, r"^cu_seqlens_q: got torch.int64, expected torch.int32"),
    ({"cu_seqlens_q": ints(1, 2, 5)}, r"^cu_seqlens_q: got 1 first, expected 0 first"),
    ({"cu_seqlens_q": ints(0, 6, 5)}, r"^cu_seqlens_q: got \[0, 6, 5\], expected values that do not decrease"),
    ({"cu_seqlens_q": ints(0, 2, 4)}, r"^cu_seqlens_q: got 4 last, expected 5 last"),
    ({"cu_seqlens_q": ints(0)}, r"^cu_seqlens_q: got \(1,\), expected at least 2 values"),
    ({"max_seqlen_q": None}, r"^max_seqlen_q: got None, expected a whole number with cu_seqlens_q"),
    ({"max_seqlen_q": 2}, r"^max_seqlen_q: got 2, expected at least 3"),
    ({"cu_seqlens_k": None}, r"^cu_seqlens_k: got None, expected int32 \[B \+ 1\], or page_table with seqused_k"),
    ({"cu_seqlens_k": ints(0, 9), "max_seqlen_k": 9}, r"^cu_seqlens_k: got 1 sequences, expected 2"),
    ({"max_seqlen_k": 4}, r"^max_seqlen_k: got 4, expected at least 5"),
    ({"page_table": ints(0, 1).view(2, 1), "cu_seqlens_k": None, "seqused_k": ints(4, 3), "k": T(2, 4, 2, 8),
      "v": T(2, 4, 2, 8), "max_seqlen_k": 3}, r"^max_seqlen_k: got 3, expected None or at least 4, the longest"),
    ({"seqused_q": ints(3, 3)}, r"^seqused_q: got \[3\], expected lengths between 0 and each sequence's own"),
    ({"seqused_k": ints(4, 6)}, r"^seqused_k: got \[6\], expected lengths between 0"),
    ({"page_table": ints(0, 1).view(2, 1)}, r"^cu_seqlens_k: got a tensor, expected None with page_table"),
    ({"page_table": ints(0, 1).view(2, 1), "cu_seqlens_k": None}, r"^seqused_k: got None, expected int32 \[B\] with page_table"),
    ({"k": T(9, 2, 8).half()}, r"^v: got torch.float32, expected torch.float16 as k"),
    ({"deterministic": None}, r"^deterministic: got None, expected True or False"),
    ({"return_attn_probs": 1}, r"^return_attn_probs: got 1, expected True or False"),
    ({"sparse_indices": ints(0, 1, 2, 3, 4).view(5, 1)}, r"^sparse_indices: got a tensor, expected None without page_table"),
]


def refused(function: str, base: dict[str, Any], change: dict[str, Any], message: str) -> None:
    args = base | change
    before = {n: x.detach().clone() for n, x in args.items()
              if n in ("k_cache", "v_cache", "out") and isinstance(x, torch.Tensor)}
    with pytest.raises(ValueError, match=message):
        getattr(ATTN, function)(**args)
    for name, x in before.items():
        assert torch.equal(args[name], x), f"{name} was written before the error"


@pytest.mark.parametrize(("change", "message"), KVCACHE, ids=[f"{next(iter(c))}-{n}" for n, (c, _) in enumerate(KVCACHE)])
def test_kvcache(change: dict[str, Any], message: str) -> None:
    refused("flash_attn_with_kvcache", kvcache(), change, message)


@pytest.mark.parametrize(("change", "message"), VARLEN, ids=[f"{next(iter(c))}-{n}" for n, (c, _) in enumerate(VARLEN)])
def test_varlen(change: dict[str, Any], message: str) -> None:
    refused("flash_attn_varlen_func", varlen(), change, message)


def test_the_unchanged_calls_are_valid() -> None:
    """Else every row above could be refused for another reason."""
    args = kvcache()
    assert ATTN.flash_attn_with_kvcache(**args) is args["out"]
    assert not bool((args["out"] == 7.0).any())
    args = varlen()
    assert ATTN.flash_attn_varlen_func(**args) is args["out"]


def test_every_argument_of_the_contract_has_a_bad_call() -> None:
    covered = {name for change, _ in KVCACHE for name in change}
    assert covered >= set(contract.WITH_KVCACHE.parameters) - {"scheduler_metadata"}
    assert len(KVCACHE) + len(VARLEN) >= 60


def test_an_append_into_shared_or_unwritable_memory_is_refused() -> None:
    args = kvcache()
    args["v_cache"] = args["k_cache"]
    refused("flash_attn_with_kvcache", args, {}, "^v_cache: got the memory of k_cache, expected memory of its own")
    for name in ("k_cache", "v_cache", "out"):
        args = kvcache()
        with torch.inference_mode():
            frozen = args[name].clone()
        refused("flash_attn_with_kvcache", args, {name: frozen}, f"^{name}: got an inference tensor, expected a normal")
        with torch.inference_mode():
            ATTN.flash_attn_with_kvcache(**(args | {name: frozen}))


def test_rotary_into_an_fp8_cache_is_refused() -> None:
    args = {n: x.to(torch.float8_e4m3fn) if n in ("k", "v", "k_cache", "v_cache") else x for n, x in kvcache().items()}
    change = {"rotary_cos": COS, "rotary_sin": COS}
    refused("flash_attn_with_kvcache", args, change, "^rotary_cos: got a tensor, expected None with an fp8 cache")


def test_hal_check_holds_a_call_to_its_config() -> None:
    """The kernel was chosen for one configuration; another shape needs an impl of its own."""
    checked = validation.checked(lambda *a, **k: "ran", CONFIG, "flash_attn_with_kvcache")
    assert checked(**kvcache()) == "ran"
    q, cache = T(1, 1, 8, 8), T(1, 5, 2, 8)
    with pytest.raises(ValueError, match=r"^q: got num_heads 8, expected 4, the config's"):
        checked(q, cache, cache)
    with pytest.raises(ValueError, match=r"^q: got dtype float16, expected float32, the config's"):
        checked(q[:, :, :4].half(), cache.half(), cache.half())
    with pytest.raises(ValueError, match=r"^v: got head_dim_v 4, expected 8, the config's"):
        checked(q[:, :, :4], cache, cache[..., :4])
    mla = hal.AttentionConfig(num_heads=2, mla=True, softmax_scale=0.1, dtype="float32")
    checked = validation.checked(lambda *a, **k: "ran", mla, "flash_attn_with_kvcache")
    assert checked(T(1, 1, 2, 64), T(1, 5, 1, 64), T(1, 5, 1, 512), qv=T(1, 1, 2, 512)) == "ran"


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="block_table"):
        ATTN.flash_attn_with_kvcache(**kvcache(), block_table=None)


def test_hal_check_validates_any_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAL_CHECK=1 puts the same validation before a backend that has none of its own."""
    calls = []

    def kernel(*args: Any, **kwargs: Any) -> str:
        calls.append(kwargs)
        return "ran"

    checked = validation.checked(kernel, CONFIG, "flash_attn_with_kvcache")
    with pytest.raises(ValueError, match=r"^softcap: got -1.0"):
        checked(**(kvcache() | {"softcap": -1.0}))
    assert not calls
    assert checked(**kvcache()) == "ran"
    monkeypatch.setenv("HAL_CHECK", "1")
    impl = hal.get_attention_impl(CONFIG, device="cpu", backend="torch")
    assert impl.flash_attn_with_kvcache.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setenv("HAL_CHECK", "maybe")
    with pytest.raises(ValueError, match=r"HAL_CHECK='maybe' is not valid: expected 0 or 1"):
        hal.get_attention_impl(CONFIG, device="cpu", backend="torch")


@pytest.mark.parametrize(("change", "message"), [
    ({"slot_mapping": ints(0, 1, 2)}, r"slot_mapping is torch.int32 \(3,\), expected torch.int64 \(3,\)"),
    ({"slot_mapping": ints(0, 1, dtype=torch.int64)}, r"slot_mapping is torch.int64 \(2,\), expected torch.int64 \(3,\)"),
    ({"slot_mapping": ints(0, 28, -1, dtype=torch.int64)}, r"slot_mapping holds 28, expected -1 \(skipped\) or 0 to 27"),
    ({"slot_mapping": ints(0, -2, -1, dtype=torch.int64)}, r"slot_mapping holds -2, expected"),
    ({"k": T(3, 1, 8)}, r"k has shape \(3, 1, 8\), expected \[num_tokens, 2, 8\]"),
    ({"v": T(2, 2, 8)}, r"v has 2 tokens, expected 3 as k"),
    ({"k": T(3, 2, 8).half()}, r"k is torch.float16 but k_cache is torch.float32: pass k_scale, or convert"),
    ({"v_scale": 2.0}, r"v_scale is for fp8 caches, but v_cache is torch.float32"),
    ({"v_cache": T(6, 4, 2, 8)}, r"v_cache has \(6, 4\) pages and page_size, expected \(7, 4\)"),
])
def test_write_kv_cache(change: dict[str, Any], message: str) -> None:
    args = {"k": T(3, 2, 8), "v": T(3, 2, 8), "k_cache": T(7, 4, 2, 8), "v_cache": T(7, 4, 2, 8),
            "slot_mapping": ints(0, 5, -1, dtype=torch.int64)} | change
    before = args["k_cache"].clone(), args["v_cache"].clone()
    with pytest.raises(ValueError, match=message):
        ATTN.write_kv_cache(**args)
    assert torch.equal(before[0], args["k_cache"])
    assert torch.equal(before[1], args["v_cache"])


@pytest.mark.parametrize(("args", "message"), [
    ((0,), "num_pages must be a whole number >= 1, got 0"),
    ((True,), "num_pages must be a whole number >= 1, got True"),
    ((4, 0), r"page_size 0 is not supported \(torch: any\)"),
])
def test_new_kv_cache(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ATTN.new_kv_cache(*args)
