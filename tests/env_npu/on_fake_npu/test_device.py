"""The fake device itself: memory, copies, waits, two devices, and torch's own operators."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fake_npu
import pytest
import torch


def waits() -> int:
    return fake_npu.counters()["host_waits"]


def test_two_devices_are_told_apart() -> None:
    assert torch.npu.device_count() == 2
    first, second = torch.arange(4, device="npu:0"), torch.arange(4, device="npu:1")
    assert (str(first.device), str(second.device)) == ("npu:0", "npu:1")
    # torch_npu does not look at the devices of all tensors; a kernel's addresses are its own device's.
    with pytest.raises(RuntimeError, match="aclnnAdd: other, shape .* is in npu:1; the work is for npu:0"):
        first + second
    torch.npu.set_device(1)
    assert torch.equal((second + 1).cpu(), torch.tensor([1, 2, 3, 4]))


def test_a_copy_between_devices_arrives() -> None:
    assert torch.equal(torch.arange(4, device="npu:0").to("npu:1").cpu(), torch.arange(4))


def test_new_memory_is_nan() -> None:
    torch.npu.empty_cache()
    assert torch.empty(5 << 20, device="npu").isnan().all().item()


def test_what_waits_for_the_device_is_counted() -> None:
    x = torch.arange(100, device="npu", dtype=torch.float32)
    fake_npu.reset_counters()
    y = (x * 2).cumsum(0)
    z = torch.empty(100).pin_memory()
    assert waits() == 0
    z.copy_(y, non_blocking=True)
    assert waits() == 0
    for count, wait in enumerate([y.cpu, y.sum().item, torch.npu.synchronize, torch.npu.current_stream().synchronize,
                                  lambda: y[:3].tolist(), lambda: bool((y > 0).all()), lambda: torch.ones(3).npu()], 1):
        wait()
        assert waits() == count, wait
    assert fake_npu.counters()["blocking_copies_to_host"] == 4
    assert fake_npu.counters()["blocking_copies_to_device"] == 1
    assert fake_npu.counters()["aclnnCumsum"] == 1
    fake_npu.reset_counters()
    assert waits() == 0


def test_an_npu_tensor_as_list_of_lengths_waits_for_each() -> None:
    # ascend: SymInt[] takes an npu tensor, and reads it one element at a time.
    import torch_npu

    q, kv = (torch.zeros(3, 2, 128, dtype=torch.bfloat16, device="npu") for _ in range(2))
    lengths = torch.tensor([1, 2, 3], device="npu")
    fake_npu.reset_counters()
    torch_npu.npu_fused_infer_attention_score(q, kv, kv, input_layout="TND", num_heads=2, actual_seq_lengths=[1, 2, 3],
                                              actual_seq_lengths_kv=[1, 2, 3])
    assert waits() == 0
    torch_npu.npu_fused_infer_attention_score(q, kv, kv, input_layout="TND", num_heads=2, actual_seq_lengths=[1, 2, 3],
                                              actual_seq_lengths_kv=lengths)
    assert waits() >= 3


def test_calls_tell_what_the_operators_were_given() -> None:
    x = torch.ones(2, 3, device="npu")
    fake_npu.reset_counters()
    x * 4
    name, arguments = fake_npu.calls()[-1]
    assert name == "aclnnMuls"
    assert arguments["self"] == ((2, 3), torch.float32)
    assert arguments["other"] == 4
    fake_npu.reset_counters()
    assert fake_npu.calls() == []


def test_threads_do_not_wait_for_each_other_for_ever() -> None:
    def work(index: int) -> float:
        torch.npu.set_device(index % 2)
        x = torch.full((50,), float(index), device="npu")
        for _ in range(50):
            x = (x + 1).cumsum(0) / torch.arange(1, 51, device="npu")
        return float(x.cpu()[0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [index + 50.0 for index in range(8)]


def test_an_operator_without_answer_raises_with_its_name() -> None:
    with pytest.raises(RuntimeError, match="aclnnErfinv.* has no answer"):
        torch.rand(3, device="npu").erfinv()


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": True}, {"scale": 0.3}, {"heads": 2}])
def test_scaled_dot_product_attention(options: dict[str, Any]) -> None:
    q = torch.randn(2, 4, 9, 64).bfloat16()
    k, v = (torch.randn(2, options.pop("heads", 4) if name == "k" else 4, 9, 64).bfloat16() for name in "kv")
    v = v[:, :k.shape[1]]
    mask = torch.rand(2, 1, 9, 9) < 0.7 if options.pop("mask", False) else None
    if mask is not None:
        mask[..., 0] = True
    options |= {"enable_gqa": True} if k.shape[1] == 2 else {}
    run = torch.nn.functional.scaled_dot_product_attention
    found = run(q.npu(), k.npu(), v.npu(), attn_mask=None if mask is None else mask.npu(), **options)
    assert fake_npu.counters()["aclnnFlashAttentionScore"] == 1
    torch.testing.assert_close(found.cpu().float(), run(q.float(), k.float(), v.float(), attn_mask=mask, **options),
                               rtol=2 ** -7, atol=2 ** -6)


def test_atb_operators_are_answered_on_310p_alone() -> None:
    import torch_npu

    q = torch.zeros(2, 4, 128, dtype=torch.float16, device="npu")
    cache = torch.zeros(3, 128, 4, 128, dtype=torch.float16, device="npu")
    lengths, table = torch.ones(2, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32, device="npu")
    with pytest.raises(RuntimeError, match="PagedAttentionOperation setup failed"):
        torch_npu._npu_paged_attention(query=q, key_cache=cache, value_cache=cache, num_kv_heads=4, num_heads=4,
                                       scale_value=1.0, block_table=table, context_lens=lengths, out=q.clone())


X, Y = torch.randn(4, 5), torch.randn(4, 5)
N, I = torch.tensor([2, 0, 3, 1], dtype=torch.int32), torch.tensor([3, 1, 0])
Run = Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]


def written(x: torch.Tensor, at: object, value: object) -> torch.Tensor:
    x = x.clone()
    x[at] = value
    return x


@pytest.mark.parametrize("run", [
    lambda at: at(X)[at(X) > 0], lambda at: written(at(X), at(X) > 0, 0.0), lambda at: at(X)[at(I), at(I)],
    lambda at: written(at(X), at(I), at(Y)[:3]), lambda at: torch.full_like(at(N), -1),
    lambda at: torch.ones_like(at(X)).triu(1).to(torch.int8), lambda at: at(X).bfloat16().t().contiguous().float(),
    lambda at: torch.cat([at(X), at(Y)], 1), lambda at: at(N).cumsum(0, dtype=torch.int32), lambda at: at(N).diff(),
    lambda at: torch.nn.functional.pad(at(N), (1, 0)), lambda at: at(X).max(1).indices, lambda at: at(X).amax(-1),
    lambda at: (at(X) > 0).any(1), lambda at: torch.where(at(X) > 0, at(X), at(Y)),
    lambda at: at(X).masked_fill(at(X) > 0, -1.0), lambda at: at(X).softmax(-1), lambda at: at(X) @ at(Y).t(),
    lambda at: at(X).repeat_interleave(2, 0), lambda at: torch.repeat_interleave(at(N)), lambda at: at(N) // 2,
    lambda at: at(N) % 3, lambda at: 1 - at(X), lambda at: at(X).sort(-1).values, lambda at: at(X).topk(2).indices,
    lambda at: at(X).clamp(min=0), lambda at: (at(X) / 0).nan_to_num(0.0, 1.0, 2.0), lambda at: (at(X) > 0).nonzero(),
    lambda at: at(X).to(torch.float8_e4m3fn).float(), lambda at: at(X).gather(1, at(I[None])),
])
def test_torch_operators_are_cpu_torch(run: Run) -> None:
    expected, found = run(lambda x: x), run(lambda x: x.npu())
    assert found.device.type == "npu"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
