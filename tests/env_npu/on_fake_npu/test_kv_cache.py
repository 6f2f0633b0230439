"""The fake's npu_scatter_pa_kv_cache, npu_gather_pa_kv_cache and npu_attention_update.

Sources: op-plugin's torch_npu-npu_scatter_pa_kv_cache.md and torch_npu-npu_attention_update.md.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

BLOCKS, PAGE, HEADS, D = 4, 16, 2, 32
SLOTS = [17, 3, 63, 0, 40]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def scatter(key: Tensor, value: Tensor, slots: Tensor, cache: Tensor | None = None,
            **options: Any) -> tuple[Tensor, Tensor]:
    shape = (BLOCKS, PAGE, HEADS, D)
    caches = [torch.zeros(shape, dtype=torch.bfloat16).npu() if cache is None else cache.clone().npu() for _ in "kv"]
    torch_npu.npu_scatter_pa_kv_cache(key.npu(), value.npu(), *caches, slots.npu(), **options)
    return caches[0].cpu(), caches[1].cpu()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["Norm", None])
def test_norm_writes_tokens_to_their_slots(mode: str | None, dtype: torch.dtype) -> None:
    key, value = randn(5, HEADS, D), randn(5, HEADS, D)
    k_cache, v_cache = scatter(key, value, torch.tensor(SLOTS, dtype=dtype), cache_mode=mode)
    for token, slot in enumerate(SLOTS):
        assert torch.equal(k_cache[slot // PAGE, slot % PAGE], key[token])
        assert torch.equal(v_cache[slot // PAGE, slot % PAGE], value[token])
    assert k_cache.count_nonzero() == key.count_nonzero()  # and nowhere else


def test_nz_writes_tiles_of_sixteen() -> None:
    key = randn(5, HEADS, D)
    empty = torch.zeros(BLOCKS, HEADS * D // 16, PAGE, 16, dtype=torch.bfloat16)
    k_cache, _ = scatter(key, key, torch.tensor(SLOTS), empty, cache_mode="PA_NZ")
    for token, slot in enumerate(SLOTS):
        for c in range(HEADS * D):
            assert k_cache[slot // PAGE, c // 16, slot % PAGE, c % 16] == key[token].flatten()[c]


def test_the_default_mode_is_nz() -> None:
    key = randn(5, HEADS, D)
    with pytest.raises(RuntimeError, match="does not hold 2 heads of 32 with cache_mode PA_NZ"):
        scatter(key, key, torch.tensor(SLOTS))


def test_trap_the_default_mode_writes_a_fitting_cache_wrongly() -> None:
    # (blocks, 16, 16, D) is a legal NZ shape for 16 pages of 16 heads of 16: no error, other places.
    key, slots = randn(3, 16, 16), torch.tensor([1, 20, 30])
    empty = torch.zeros(2, 16, 16, 16, dtype=torch.bfloat16)
    right, _ = scatter(key, key, slots, empty, cache_mode="Norm")
    wrong, _ = scatter(key, key, slots, empty)
    assert torch.equal(right[0, 1], key[0])
    assert not torch.equal(wrong, right)


def test_trap_a_padding_slot_of_minus_one_is_written() -> None:
    # The page: values are 0 to num_blocks * block_size - 1. Nothing is said of others, so nothing good is assumed.
    key = randn(2, HEADS, D)
    k_cache, _ = scatter(key, key, torch.tensor([5, -1]), cache_mode="Norm")
    assert torch.equal(k_cache[-1, -1], key[1])


@pytest.mark.parametrize("mode", ["Norm", "PA_NZ"])
def test_trap_a_slot_that_repeats_holds_no_token(mode: str) -> None:
    # The page: slot_mapping's values do not repeat; where they do, correctness is not guaranteed. Equal tokens or not.
    key = randn(1, HEADS, D).expand(3, HEADS, D).contiguous()
    shape = (BLOCKS, PAGE, HEADS, D) if mode == "Norm" else (BLOCKS, HEADS * D // 16, PAGE, 16)
    caches = scatter(key, key, torch.tensor([5, 20, 20]), torch.zeros(shape).bfloat16(), cache_mode=mode)
    for cache in caches:
        once, twice = (cache[slot // PAGE, slot % PAGE] if mode == "Norm" else cache[slot // PAGE, :, slot % PAGE]
                       for slot in (5, 20))
        assert torch.equal(once.flatten(), key[0].flatten())
        assert not torch.equal(twice.flatten(), key[0].flatten())


def test_a_slot_past_the_cache_fails() -> None:
    key = randn(2, HEADS, D)
    with pytest.raises(RuntimeError, match="slot_mapping from 5 to 64, the cache has 64 slots"):
        scatter(key, key, torch.tensor([5, 64]), cache_mode="Norm")


@pytest.mark.parametrize(("changes", "code", "text"), [
    ({"value": torch.zeros(5, HEADS, D)}, 161002, "torch.float32"),
    ({"slots": torch.tensor(SLOTS, dtype=torch.int16)}, 161002, "torch.int16"),
    ({"slots": torch.tensor(SLOTS[:4])}, 561002, "differ"),
    ({"cache": torch.zeros(BLOCKS, PAGE, HEADS * D, dtype=torch.bfloat16)}, 561002, "must have 4 dimensions"),
    ({"cache_mode": "PA"}, 561002, "cache_mode PA"),
    ({"seq_lens": torch.ones(5, dtype=torch.int64).npu()}, 200006, "not answered"),
])
def test_scatter_refusals(changes: dict[str, Any], code: int, text: str) -> None:
    call = {"key": randn(5, HEADS, D), "value": randn(5, HEADS, D), "slots": torch.tensor(SLOTS), "cache_mode": "Norm"}
    with pytest.raises(RuntimeError) as error:
        scatter(**call | changes)
    assert f"error code is {code}" in str(error.value)
    assert text in str(error.value)


def test_scatter_refuses_a_cache_that_is_a_view() -> None:
    key = randn(5, HEADS, D).npu()
    both = torch.zeros(BLOCKS, PAGE, HEADS, 2 * D, dtype=torch.bfloat16).npu()
    slots = torch.tensor(SLOTS).npu()
    with pytest.raises(RuntimeError, match="key_cache, stride .* is not contiguous"):
        torch_npu.npu_scatter_pa_kv_cache(key, key, both[..., :D], both[..., D:], slots, cache_mode="Norm")


def test_gather_reads_what_scatter_wrote() -> None:
    cache = randn(BLOCKS, PAGE, HEADS, D)
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32)
    key, value = (torch.zeros(25, HEADS, D, dtype=torch.bfloat16).npu() for _ in "kv")
    seq_lens = torch.tensor([20, 5], dtype=torch.int32)
    torch_npu.npu_gather_pa_kv_cache(cache.npu(), cache.npu(), table.npu(), seq_lens.npu(), key, value)
    expected = torch.cat([cache[2], cache[0][:4], cache[3][:5]])
    assert torch.equal(key.cpu(), expected)
    assert torch.equal(value.cpu(), expected)


def test_update_merges_by_lse() -> None:
    lses, outs = [torch.randn(6) for _ in range(3)], [torch.randn(6, 16) for _ in range(3)]
    out, lse = torch_npu.npu_attention_update([x.npu() for x in lses], [x.npu() for x in outs], 1)
    for i in range(6):
        weights = torch.stack([x[i] for x in lses]).double().exp()
        torch.testing.assert_close(lse.cpu()[i].double(), weights.sum().log(), rtol=1e-5, atol=1e-5)
        expected = sum(w * o[i].double() for w, o in zip(weights, outs)) / weights.sum()
        torch.testing.assert_close(out.cpu()[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_trap_the_lse_of_an_empty_part_ruins_a_merge() -> None:
    # npu_fused_infer_attention_score gives +inf where there is no key; the page's formula has no case for it.
    lses = [torch.tensor([0.5]), torch.tensor([math.inf])]
    outs = [torch.ones(1, 8), torch.zeros(1, 8)]
    out, _ = torch_npu.npu_attention_update([x.npu() for x in lses], [x.npu() for x in outs], 0)
    assert out.cpu().isnan().all()


@pytest.mark.parametrize(("lses", "outs", "kind", "code", "text"), [
    ([torch.zeros(2)], [torch.zeros(2, 8)] * 2, 0, 161002, "1 lse and 2 local_out"),
    ([torch.zeros(2)] * 17, [torch.zeros(2, 8)] * 17, 0, 161002, "17 lse"),
    ([torch.zeros(2)], [torch.zeros(2, 8)], 2, 161002, "update_type 2"),
    ([torch.zeros(2)], [torch.zeros(2, 12)], 0, 561002, "head_dim 12"),
    ([torch.zeros(2).bfloat16()], [torch.zeros(2, 8)], 0, 561002, "torch.bfloat16"),
])
def test_update_refusals(lses: list[Tensor], outs: list[Tensor], kind: int, code: int, text: str) -> None:
    with pytest.raises(RuntimeError) as error:
        torch_npu.npu_attention_update([x.npu() for x in lses], [x.npu() for x in outs], kind)
    assert f"error code is {code}" in str(error.value)
    assert text in str(error.value)
