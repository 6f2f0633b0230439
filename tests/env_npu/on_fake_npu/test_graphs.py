"""NPUGraph on the fake device: captured work runs at each replay, host lists are those of the capture or the update.

Source of the two ways to update: torch_npu/npu/graphs.py of the wheel.
"""

from __future__ import annotations

from typing import Any

import fake_npu
import pytest
import torch
import torch_npu
from env_npu.on_fake_npu.plain_attention import attention, causal, close

HEADS, D, PAGE, PAGES = 2, 128, 128, 6
SCALE = D ** -0.5


class Decode:
    """One query token of each of two sequences, over pages."""

    def __init__(self) -> None:
        self.k, self.v = (torch.randn(PAGES, PAGE, HEADS, D).bfloat16() for _ in "kv")
        self.q = torch.randn(2, HEADS, D).bfloat16()
        self.table = torch.tensor([[1, 4], [5, 2]], dtype=torch.int32)
        self.on_device = {"query": self.q.npu(), "key": self.k.flatten(2).npu(), "value": self.v.flatten(2).npu()}
        self.options: dict[str, Any] = {
            "block_table": self.table.npu(), "block_size": PAGE, "num_heads": HEADS, "num_key_value_heads": HEADS,
            "input_layout": "TND", "scale": SCALE, "actual_seq_lengths": [1, 2], "sparse_mode": 3,
            "atten_mask": torch.ones(2048, 2048, dtype=torch.int8).triu(1).npu()}
        self.out, self.lse = torch.zeros_like(self.q).npu(), torch.zeros(1).npu()

    def call(self, lengths: list[int]) -> torch.Tensor:
        return torch_npu.npu_fused_infer_attention_score(  # type: ignore[no-any-return]
            *self.on_device.values(), actual_seq_lengths_kv=lengths, **self.options)[0]

    def into(self, lengths: list[int]) -> None:
        torch_npu.npu_fused_infer_attention_score.out(
            *self.on_device.values(), actual_seq_lengths_kv=lengths, **self.options,
            workspace=torch.empty(1024, dtype=torch.uint8, device="npu"), out=[self.out, self.lse])

    def expect(self, out: torch.Tensor, lengths: list[int]) -> None:
        for b, length in enumerate(lengths):
            k, v = (cache[self.table[b].long()].flatten(0, 1)[:length] for cache in (self.k, self.v))
            close(out[b:b + 1], attention(self.q[b:b + 1], k, v, causal, SCALE)[0])


def test_a_replay_computes_with_new_contents() -> None:
    x, graph = torch.ones(3, device="npu"), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x * 2 + 1
    fake_npu.reset_counters()
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.cpu().tolist() == [2 * value + 1] * 3


def test_nothing_is_computed_while_capturing() -> None:
    x, graph = torch.zeros(3, device="npu"), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x += 1
    assert x.cpu().tolist() == [0.0] * 3
    graph.replay()
    assert x.cpu().tolist() == [1.0] * 3


def test_a_replay_without_update_has_the_old_lengths() -> None:
    decode, graph = Decode(), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        out = decode.call([100, 200])
    graph.replay()
    decode.expect(out, [100, 200])


def test_update_by_argument_name() -> None:
    decode, graph = Decode(), torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        out = decode.call([100, 200])
    for lengths in ([100, 200], [101, 201], [7, 256]):
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": lengths}])
        graph.replay()
        decode.expect(out, lengths)


def captured(decode: Decode) -> tuple[Any, Any, Any]:
    """A graph with one task group that waits for an event from outside."""
    graph, event = torch.npu.NPUGraph(), torch.npu.ExternalEvent()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        event.wait(stream)
        event.reset(stream)
        torch.npu.graph_task_group_begin(stream)
        decode.into([100, 200])
        group = torch.npu.graph_task_group_end(stream)
    return graph, event, group


def update(decode: Decode, group: Any, event: Any, lengths: list[int]) -> None:
    stream = torch.npu.Stream()
    with torch.npu.stream(stream):
        torch.npu.graph_task_update_begin(stream, group)
        decode.into(lengths)
        torch.npu.graph_task_update_end(stream)
        event.record(stream)


@pytest.mark.parametrize("replay_first", [False, True])
def test_update_of_a_task_group(replay_first: bool) -> None:
    # As vllm-ascend does it. The replay waits for the event, so it may be started before the update.
    decode = Decode()
    graph, event, group = captured(decode)
    for lengths in ([101, 201], [3, 256]):
        if replay_first:
            graph.replay()
        update(decode, group, event, lengths)
        if not replay_first:
            graph.replay()
        torch.npu.synchronize()
        decode.expect(decode.out, lengths)


@pytest.mark.parametrize("ordered", [True, False])
def test_trap_an_update_does_not_wait_for_the_replay_before_it(ordered: bool) -> None:
    # vllm-ascend#4233: the update is work of its own stream, ordered behind nothing that the caller does not name.
    decode = Decode()
    graph, event, group = captured(decode)
    update(decode, group, event, [100, 200])
    torch.npu.synchronize()
    gate, stream = torch.npu.ExternalEvent(), torch.npu.Stream()
    gate.wait(torch.npu.current_stream())
    graph.replay()
    first = decode.out.clone()
    if ordered:
        stream.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(stream):
        torch.npu.graph_task_update_begin(stream, group)
        decode.into([3, 256])
        torch.npu.graph_task_update_end(stream)
    gate.record(torch.npu.Stream())
    torch.npu.synchronize()
    decode.expect(first, [100, 200] if ordered else [3, 256])


def test_a_replay_whose_event_nobody_records_is_an_error() -> None:  # on the chip it hangs
    decode = Decode()
    graph, event, group = captured(decode)
    graph.replay()
    with pytest.raises(RuntimeError, match="waits for an event that nobody records"):
        torch.npu.synchronize()
    update(decode, group, event, [100, 200])
    torch.npu.synchronize()


def test_an_update_is_of_the_same_operators() -> None:
    decode = Decode()
    graph, event, group = captured(decode)
    stream = torch.npu.Stream()
    with torch.npu.stream(stream), pytest.raises(RuntimeError, match="0 of 1 captured tasks"):
        torch.npu.graph_task_update_begin(stream, group)
        torch.npu.graph_task_update_end(stream)
    update(decode, group, event, [100, 200])
    graph.replay()
    torch.npu.synchronize()


def test_a_task_group_goes_with_its_graph() -> None:
    decode = Decode()
    graph, event, group = captured(decode)
    graph.reset()
    with pytest.raises(RuntimeError, match="the graph of this task group was destroyed"):
        update(decode, group, event, [100, 200])


def test_an_update_on_a_stream_that_captures_is_refused() -> None:
    _graph, _, group = captured(Decode())  # which lives as long as its group is good
    with pytest.raises(RuntimeError, match="UpdateBegin: this stream is capturing"), \
            torch.npu.graph(torch.npu.NPUGraph()):
        torch.npu.graph_task_update_begin(torch.npu.current_stream(), group)


@pytest.mark.parametrize("wait", [lambda x: x.cpu(), lambda x: x.sum().item(), lambda x: torch.ones(3).npu()])
def test_a_wait_during_a_capture_is_refused(wait: Any) -> None:  # vllm-ascend#6002, #11514: 107030
    x, graph = torch.zeros(3, device="npu"), torch.npu.NPUGraph()
    torch.npu.synchronize()
    with pytest.raises(RuntimeError, match="during a capture"), torch.npu.graph(graph):
        wait(x)


def test_a_refusal_comes_at_the_capture() -> None:
    decode, graph = Decode(), torch.npu.NPUGraph()
    decode.options["sparse_mode"] = 7
    with pytest.raises(RuntimeError, match="sparse_mode 7"), torch.npu.graph(graph):
        decode.call([100, 200])
