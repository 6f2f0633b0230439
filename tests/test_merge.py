"""merge_attention_states: what the identities of oracle_checks.py do not cover."""

from __future__ import annotations

import math
import random

import pytest
import torch

from hal import merge_attention_states

INF, NAN = float("inf"), float("nan")


def test_hand_computed() -> None:
    """Weights 1 and 3 (LSE 0 and ln 3): 8 and 16 give 14, and the LSE is ln 4."""
    out, lse = merge_attention_states(torch.tensor([[[8.0]]]), torch.tensor([[0.0]]), torch.tensor([[[16.0]]]),
                                      torch.tensor([[math.log(3.0)]]))
    assert out.item() == pytest.approx(14.0)
    assert lse.item() == pytest.approx(math.log(4.0))


@pytest.mark.parametrize("empty_first", [True, False])
def test_an_empty_partial_is_ignored_whatever_it_holds(empty_first: bool) -> None:
    full, none = (torch.randn(3, 2, 4), torch.randn(2, 3)), (torch.full((3, 2, 4), NAN), torch.full((2, 3), -INF))
    out, lse = merge_attention_states(*(none + full if empty_first else full + none))
    assert torch.equal(out, full[0])
    assert torch.equal(lse, full[1])


def test_both_empty() -> None:
    none = torch.full((1, 3, 2, 4), NAN), torch.full((1, 2, 3), -INF)
    out, lse = merge_attention_states(*none, *none)
    assert torch.equal(out, torch.zeros(1, 3, 2, 4))
    assert torch.equal(lse, torch.full((1, 2, 3), -INF))


def test_large_lse_does_not_overflow() -> None:
    out, lse = merge_attention_states(torch.ones(1, 1, 1), torch.tensor([[2000.0]]), torch.zeros(1, 1, 1),
                                      torch.tensor([[2000.0]]))
    assert out.item() == 0.5
    assert lse.item() == pytest.approx(2000.0 + math.log(2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_order_and_dtype(dtype: torch.dtype) -> None:
    """Three partials merged in any order agree to one rounding of the dtype; the output keeps it."""
    torch.manual_seed(seed := random.randrange(2**31))
    parts = [(torch.randn(5, 2, 8).to(dtype), torch.randn(2, 5) * 4) for _ in range(3)]
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        state = parts[order[0]]
        for n in order[1:]:
            state = merge_attention_states(*state, *parts[n])
        results.append(state)
    assert results[0][0].dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    assert (results[0][0].float() - results[1][0].float()).abs().max() < tolerance, seed
    assert (results[0][1] - results[1][1]).abs().max() < 1e-5, seed


@pytest.mark.parametrize(("change", "message"), [
    ({"out_b": torch.zeros(3, 2, 5)}, r"out_b has shape \(3, 2, 5\), expected out_a's \(3, 2, 4\)"),
    ({"lse_a": torch.zeros(3, 2)}, r"lse_a has shape \(3, 2\), expected \(2, 3\)"),
    ({"lse_b": torch.zeros(2, 3).half()}, r"lse_b is torch.float16, expected torch.float32 or torch.float64"),
    ({"lse_b": torch.full((2, 3), INF)}, r"lse_b holds \+inf, expected -inf"),
    ({"out_a": torch.zeros(2, 4), "out_b": torch.zeros(2, 4)}, r"out_a has shape \(2, 4\), expected \[total_q, H, D\]"),
])
def test_refused(change: dict[str, torch.Tensor], message: str) -> None:
    args = {"out_a": torch.zeros(3, 2, 4), "lse_a": torch.zeros(2, 3), "out_b": torch.zeros(3, 2, 4),
            "lse_b": torch.zeros(2, 3)} | change
    with pytest.raises(ValueError, match=message):
        merge_attention_states(**args)
