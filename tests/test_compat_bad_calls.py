"""Calls of the flash_attn stand-ins that can't be served: each raises, before anything is written, and says what is wrong
in the caller's own words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hal.compat import arguments, binding, flash_attn_interface, settings
from hal.compat.flash_attn import bert_padding
from hal.compat.flash_attn import flash_attn_interface as two
from hal.compat.flash_attn.layers.rotary import apply_rotary_emb

three = flash_attn_interface


@pytest.fixture(autouse=True, params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    settings.use(settings.Settings("cpu", request.param))
    arguments._told.clear()
    yield
    settings.use(None)


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def i32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def dense(**changes: Any) -> dict[str, Any]:
    return {"q": t(2, 3, 4, 32), "k": t(2, 5, 2, 32), "v": t(2, 5, 2, 32)} | changes


def packed(**changes: Any) -> dict[str, Any]:
    return {"q": t(6, 4, 32), "k": t(9, 2, 32), "v": t(9, 2, 32), "cu_seqlens_q": i32(0, 2, 6),
            "cu_seqlens_k": i32(0, 4, 9), "max_seqlen_q": 4, "max_seqlen_k": 5} | changes


def cache(**changes: Any) -> dict[str, Any]:
    return {"q": t(2, 1, 4, 32), "k_cache": t(2, 8, 2, 32), "v_cache": t(2, 8, 2, 32),
            "cache_seqlens": i32(3, 5)} | changes


def grad(*shape: int) -> torch.Tensor:
    return t(*shape).requires_grad_()


STRIDED = t(2, 8, 2, 64)[..., ::2]
MISTAKES: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    # version 2
    (two.flash_attn_func, dense(dropout_p=0.1), "flash_attn_func: dropout_p 0.1 is not supported"),
    (two.flash_attn_func, dense(alibi_slopes=t(4)), "flash_attn_func: alibi_slopes is not supported"),
    (two.flash_attn_func, dense(q=grad(2, 3, 4, 32)), r"q: got a tensor that requires grad; HAL's flash_attn is for inference .*no_grad"),
    (two.flash_attn_func, dense(v=grad(2, 5, 2, 32)), r"v: got a tensor that requires grad; HAL's flash_attn is for inference .*inference_mode"),
    (two.flash_attn_func, dense(q=[1.0]), "q: got list, expected a tensor of 4 dimensions"),
    (two.flash_attn_func, dense(k=None), "k: got NoneType, expected a tensor of 4 dimensions"),
    (two.flash_attn_func, dense(q=t(6, 4, 32)), r"q: got \(6, 4, 32\), expected a tensor of 4 dimensions"),
    (two.flash_attn_func, dense(v=t(2, 5, 2, 32, dtype=torch.float16)), "v: got torch.float16, expected torch.float32"),
    (two.flash_attn_func, dense(k=t(3, 5, 2, 32)), r"k: got shapes \(3, 5, 2, 32\).*expected \[2, Sk, Hkv, D\]"),
    (two.flash_attn_func, dense(v=t(2, 4, 2, 32)), "k: got shapes .*of k and v"),
    (two.flash_attn_func, dense(k=t(2, 5, 2, 16)), "^k: got head_dim 16, expected 32, q's head_dim"),
    (two.flash_attn_func, dense(k=t(2, 5, 3, 32), v=t(2, 5, 3, 32)), "^q: got 4 heads beside 3 of its keys, expected a multiple"),
    (two.flash_attn_func, dense(causal="yes"), "causal: got 'yes', expected True or False"),
    (two.flash_attn_func, dense(window_size=(1,)), r"window_size: got \(1,\), expected \(left, right\)"),
    (two.flash_attn_func, dense(window_size=(1.5, 0)), r"window_size: got \(1.5, 0\)"),
    (two.flash_attn_func, dense(softcap=None), "softcap: got None, expected a number"),
    (two.flash_attn_func, dense(softmax_scale=0.0), "softmax_scale: got 0.0, expected a finite number > 0"),
    (two.flash_attn_func, dense(softmax_scale="0.1"), "softmax_scale: got 0.1, expected a finite number"),
    (two.flash_attn_func, {n: x.double() for n, x in dense().items()}, "^q: got torch.float64, expected .*bfloat16"),
    (two.flash_attn_qkvpacked_func, {"qkv": t(2, 3, 2, 4, 32)}, r"qkv: got \(2, 3, 2, 4, 32\), expected a tensor \[.., 3"),
    (two.flash_attn_qkvpacked_func, {"qkv": grad(2, 3, 3, 4, 32)}, "qkv's q: got a tensor that requires grad; HAL's flash_attn is for inference"),
    (two.flash_attn_kvpacked_func, {"q": t(2, 3, 4, 32), "kv": t(2, 5, 2, 2, 16)}, "kv's k: got head_dim 16"),
    (two.flash_attn_varlen_qkvpacked_func, {"qkv": t(6, 3, 4, 32), "cu_seqlens": i32(0, 7), "max_seqlen": 7},
     "^cu_seqlens: got 7 last, expected 6 last"),
    (two.flash_attn_varlen_func, packed(cu_seqlens_q=torch.tensor([0, 2, 6])), "cu_seqlens_q: got torch.int64, expected "
                                                                              "torch.int32"),
    (two.flash_attn_varlen_func, packed(cu_seqlens_k=i32(0, 9), max_seqlen_k=9), "cu_seqlens_k: got 1 sequences, expected 2"),
    (two.flash_attn_varlen_func, packed(cu_seqlens_q=i32(0, 4, 2)), "cu_seqlens_q: got .*expected"),
    (two.flash_attn_varlen_func, packed(max_seqlen_q=3), "max_seqlen_q: got 3, expected at least 4"),
    (two.flash_attn_varlen_func, packed(max_seqlen_k="5"), "max_seqlen_k: got '5', expected a whole number"),
    (two.flash_attn_varlen_func, packed(block_table=i32(0, 1)), r"block_table: got torch.Size\(\[2\]\)|k: got"),
    (two.flash_attn_varlen_func, packed(k=t(3, 4, 2, 32), v=t(3, 4, 2, 32), block_table=i32([0, 1], [2, 7])),
     "block_table: got page 7 for sequence 1, expected pages from 0 to 2"),
    (two.flash_attn_varlen_func, packed(k=t(3, 4, 2, 32), v=t(3, 4, 2, 32), block_table=i32([0], [2])),
     "cu_seqlens_k: got .*5.*expected lengths from 0 to 4, what block_table can hold"),
    *[(two.flash_attn_varlen_func, packed(k=t(3, 4, 2, 32), v=t(3, 4, 2, 32), max_seqlen_k=8,
                                          block_table=i32([0, 1], [2, 0]), cu_seqlens_k=cu), message) for cu, message in (
        (None, "^cu_seqlens_k: got NoneType, expected int32"), ([0, 4, 8], "^cu_seqlens_k: got list, expected int32"),
        (i32(0, 4), r"^cu_seqlens_k: got \(2,\), expected .* \[3\]"),
        (torch.tensor([0, 4, 8]), "^cu_seqlens_k: got torch.int64"),
        (i32(0, 5, 4), "^cu_seqlens_k: got .*-1"))],
    (two._flash_attn_varlen_forward, packed(dropout_p=0.0, softmax_scale=0.1, causal=True, seqused_k=torch.tensor([1, 2])),
     "^seqused_k: got torch.int64"),
    (two.flash_attn_with_kvcache, cache(k="a", v="b"), "^k: got str, expected a tensor"),
    (two.flash_attn_with_kvcache, cache(k=t(2, 1, 2, 32), v=[1]), "^v: got list, expected a tensor"),
    (three.flash_attn_func, dense(qv="x"), "^qv: got str, expected a tensor of 4 dimensions"),
    (two._flash_attn_varlen_forward, packed(dropout_p=0.0, softmax_scale=0.1, causal=True, leftpad_k=i32(0, 0)),
     "leftpad_k is not supported"),
    (two.flash_attn_with_kvcache, cache(alibi_slopes=t(4)), "flash_attn_with_kvcache: alibi_slopes is not supported"),
    (two.flash_attn_with_kvcache, cache(cache_seqlens=i32(3, 9)), r"cache_seqlens: got \[9\], expected lengths from 0 to 8"),
    (two.flash_attn_with_kvcache, cache(cache_seqlens=3.0), "cache_seqlens: got 3.0"),
    (two.flash_attn_with_kvcache, cache(k=t(2, 1, 2, 32)), "v: got None, expected k and v together"),
    (two.flash_attn_with_kvcache, cache(k=grad(2, 1, 2, 32), v=t(2, 1, 2, 32)), "k: got a tensor that requires grad; HAL's flash_attn is for inference"),
    (two.flash_attn_with_kvcache, cache(k=t(2, 4, 2, 32), v=t(2, 4, 2, 32)), "k: got 9 tokens after the append, expected "
                                                                             "at most 8"),
    (two.flash_attn_with_kvcache, cache(k_cache=STRIDED, v_cache=STRIDED), "k_cache: got stride .*contiguous last"),
    (two.flash_attn_with_kvcache, cache(rotary_cos=t(8, 8), rotary_sin=t(8, 8)), "rotary_cos: got a tensor, expected None "
                                                                                 "without k and v"),
    (two.flash_attn_with_kvcache, cache(block_table=i32([0], [1]), cache_batch_idx=i32(0, 1)),
     "cache_batch_idx is not supported: FlashAttention 2 does not take it with block_table"),
    (two.flash_attn_with_kvcache, cache(block_table=i32([0], [1]), cache_leftpad=i32(0, 1)),
     "cache_leftpad is not supported: FlashAttention 2 does not take it with block_table"),
    (two.flash_attn_with_kvcache, cache(cache_batch_idx=i32(0, 2)), r"cache_batch_idx: got \[2\], expected values from 0"),
    # version 3
    (three.flash_attn_func, dense(q=grad(2, 3, 4, 32)), "q: got a tensor that requires grad; HAL's flash_attn is for inference"),
    (three.flash_attn_func, dense(attention_chunk=-3), "attention_chunk"),
    (three.flash_attn_varlen_func, packed(q=t(2, 3, 4, 32), cu_seqlens_q=None), r"q: got \(2, 3, 4, 32\), expected a tensor of 3"),
    (three.flash_attn_varlen_func, packed(k=t(2, 5, 2, 32), v=t(2, 5, 2, 32), cu_seqlens_k=None, seqused_k=i32(4, 5)),
     r"k: got \(2, 5, 2, 32\), expected a tensor of 3"),
    (two.flash_attn_with_kvcache, cache(q=grad(2, 1, 4, 32)), "q: got a tensor that requires grad"),
    (two.flash_attn_func, dense(softmax_scale=-0.1), "softmax_scale: got -0.1, expected a finite number > 0"),
    (three.flash_attn_func, dense(qv=t(2, 3, 4, 32)), "qv: got a tensor with 2 KV heads, expected 1"),
    (three.flash_attn_qkvpacked_func, {"qkv": t(2, 3, 8, 32)}, r"qkv: got \(2, 3, 8, 32\) with num_heads_q None"),
    (three.flash_attn_varlen_func, packed(seqused_k=i32(5, 5)), r"seqused_k: got \[5\], expected lengths between 0"),
    (three.flash_attn_with_kvcache, cache(q=t(3, 4, 32), cu_seqlens_q=i32(0, 1, 3)), "max_seqlen_q: got None, expected a "
                                                                                   "whole number"),
    (three.flash_attn_with_kvcache, cache(page_table=t(2, 1)), "page_table: got torch.float32, expected torch.int32"),
    (three.flash_attn_with_kvcache, cache(page_table=i32(0, 1)), r"page_table: got torch.Size\(\[2\]\), expected int32"),
    (three.flash_attn_combine, {"out_partial": t(2, 1, 3, 4, 8), "lse_partial": t(2, 1, 4, 3)},
     r"lse_partial: got \(2, 1, 4, 3\), expected \(2, 1, 3, 4\)"),
    (three.flash_attn_combine, {"out_partial": t(2, 1, 3, 4, 8).half(), "lse_partial": t(2, 1, 3, 4)},
     "out_partial: got torch.float16"),
    # beside attention
    (bert_padding.index_put_first_axis, {"values": t(3), "indices": torch.tensor([0]), "first_axis_dim": 4},
     "indices and values: got shapes"),
    *[(function, {"input": t(3, 2), "indices": torch.tensor(indices)}, rf"indices: got torch\.{dtype}, expected whole numbers")
      for function, indices, dtype in (
          (bert_padding.index_first_axis, [True, False, True], "bool"), (bert_padding.index_first_axis, [0.0, 1.0], "float32"),
          (bert_padding.index_first_axis_residual, [0.0, 1.0], "float32"))],
    (bert_padding.index_put_first_axis, {"values": t(2, 2), "indices": torch.tensor([0.0, 1.0]), "first_axis_dim": 3},
     "indices: got torch.float32, expected whole numbers or a mask"),
    (apply_rotary_emb, {"x": t(1, 9, 2, 16), "cos": t(8, 8), "sin": t(8, 8)}, "cos: got 8 positions, expected at least 9"),
    (apply_rotary_emb, {"x": t(1, 5, 2, 16), "cos": t(8, 8), "sin": t(8, 8), "seqlen_offsets": 4}, "cos: got 8 positions, expected at least 9"),
    (apply_rotary_emb, {"x": t(1, 5, 2, 16), "cos": t(8, 8), "sin": t(8, 8), "seqlen_offsets": -1}, "seqlen_offsets: got -1, expected 0 or more"),
    (apply_rotary_emb, {"x": t(1, 5, 2, 16), "cos": t(8, 8), "sin": t(8, 8), "seqlen_offsets": i32(4)}, "cos: got 8 positions, expected at least 9"),
    (apply_rotary_emb, {"x": t(5, 2, 16), "cos": t(8, 8), "sin": t(8, 8)}, r"x: got \(5, 2, 16\), expected \[B, S, H, D\] without cu_seqlens"),
    (apply_rotary_emb, {"x": t(1, 5, 2, 16), "cos": t(8, 8), "sin": t(8, 8), "cu_seqlens": i32(0, 5)}, r"x: got .* expected \[total, H, D\] with cu_seqlens"),
    (apply_rotary_emb, {"x": t(1, 2, 2, 8), "cos": t(8, 8), "sin": t(8, 8)}, "rotary_dim up to 8"),
]


# What is a mistake in version 2 is one in 3 too, where its function of that name takes the arguments.
MISTAKES += [(getattr(three, f.__name__), keywords, message) for f, keywords, message in MISTAKES
             if f.__module__ == two.__name__ and hasattr(three, f.__name__)
             and keywords.keys() <= inspect.signature(getattr(three, f.__name__)).parameters.keys()
             and "num_heads_q" not in inspect.signature(getattr(three, f.__name__)).parameters]


def test_there_are_enough_of_each() -> None:
    for module in (two, three):
        assert sum(f.__module__ == module.__name__ for f, _, _ in MISTAKES) >= 30


@pytest.mark.parametrize(("function", "keywords", "message"), MISTAKES,
                         ids=[f"{f.__name__}-{m[:40]}" for f, _, m in MISTAKES])
def test_mistake(function: Callable[..., Any], keywords: dict[str, Any], message: str) -> None:
    before = {name: x.clone() for name, x in keywords.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(ValueError, match=message):
        function(**keywords)
    for name, x in before.items():
        assert torch.equal(x, keywords[name]), f"{name} was written"


def test_no_message_speaks_of_arguments_that_the_caller_has_not() -> None:
    """HAL's own names of arguments do not appear where the function calls them otherwise."""
    for function, keywords, _ in MISTAKES:
        names = set(inspect.signature(function).parameters)
        with pytest.raises(ValueError) as caught:
            function(**keywords)
        for word in ("k_cache", "v_cache", "page_table", "seqused_k", "block_table"):
            assert word in names or not re.search(rf"\b{word}\b", str(caught.value)), (function.__name__, str(caught.value))


def test_without_gradients_the_same_call_is_served() -> None:
    call = dense(q=grad(2, 3, 4, 32))
    with torch.no_grad():
        assert not two.flash_attn_func(**call).requires_grad
    with torch.inference_mode():
        assert two.flash_attn_func(**call).shape == (2, 3, 4, 32)


@pytest.mark.parametrize("function", [two._flash_attn_backward, two._flash_attn_varlen_backward,
                                      two._wrapped_flash_attn_backward, two._wrapped_flash_attn_varlen_backward])
def test_backward_is_refused_by_name(function: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match=r"_backward: HAL's flash_attn is for inference"):
        function(t(1), q=t(1))


def test_a_backend_that_can_not_serve_is_an_error(backend: None) -> None:
    from hal import NoBackendError

    settings.use(settings.Settings("cpu", "cpu"))
    with pytest.raises(NoBackendError, match="head_dim 16 is not supported"):
        two.flash_attn_func(t(1, 2, 2, 16), t(1, 2, 2, 16), t(1, 2, 2, 16))


def test_another_device_than_the_one_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.platform import Platform

    elsewhere = Platform("cuda", "sm90", "cuda:0", 0, "H100")
    monkeypatch.setattr(binding, "detect", lambda device: elsewhere)
    settings.use(settings.Settings("cuda", "auto"))
    with pytest.raises(ValueError, match="q: got a tensor on cpu, but device cuda was asked for"):
        two.flash_attn_func(**dense())
    settings.use(settings.Settings("auto", "auto"))
    monkeypatch.setenv("HAL_DEVICE", "cuda")
    with pytest.raises(ValueError, match="but device cuda was asked for"):
        two.flash_attn_func(**dense())


def test_a_device_that_nobody_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"q: got a tensor on meta, which is no device that HAL found"):
        two.flash_attn_func(*(torch.empty(1, 2, 2, 32, device="meta") for _ in "qkv"))


def test_hints_change_nothing_and_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    call = {name: x.bfloat16() for name, x in dense().items()}
    want = three.flash_attn_func(**call)
    for _ in range(2):
        got = three.flash_attn_func(**call, num_splits=4, pack_gqa=True, sm_margin=8, k_descale=t(2, 2))
        assert torch.equal(got, want)
    told = [record.getMessage() for record in caplog.records if record.name == "hal" and "no effect" in record.getMessage()]
    assert [re.search(r"num_splits|pack_gqa|sm_margin|k_descale", line).group() for line in told] == [
        "num_splits", "pack_gqa", "sm_margin", "k_descale"]


def test_scheduler_metadata_too(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]

    metadata = three.get_scheduler_metadata(2, 1, 8, 4, 2, 32, i32(3, 5))
    assert metadata.dtype == torch.int32
    given = cache()
    want = three.flash_attn_with_kvcache(**given)
    assert told() == []
    for _ in range(2):
        assert torch.equal(three.flash_attn_with_kvcache(**given, scheduler_metadata=metadata), want)
    [line] = told()
    assert line.startswith("flash_attn_with_kvcache: scheduler_metadata has no effect here")
    for _ in range(2):
        three.get_scheduler_metadata(2, 1, 8, 4, 2, 32, i32(3, 5), num_splits=3, pack_gqa=True, sm_margin=4)
    assert [line.partition("=")[0] for line in told()[1:]] == [
        f"get_scheduler_metadata: {name}" for name in ("num_splits", "pack_gqa", "sm_margin")]


class Wrapper(torch.Tensor):
    """As a DTensor: a size, a dtype and a device, and memory elsewhere."""

    @staticmethod
    def __new__(cls, x: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called")


@pytest.mark.parametrize(("function", "call", "name"), [
    (two.flash_attn_func, dense, "q"), (two.flash_attn_func, dense, "k"), (three.flash_attn_func, dense, "v"),
    (two.flash_attn_varlen_func, packed, "k"), (two.flash_attn_with_kvcache, cache, "v_cache"),
    (two.flash_attn_with_kvcache, cache, "cache_seqlens")])
def test_a_tensor_without_memory_is_refused_by_name(function: Any, call: Any, name: str) -> None:
    """The cpu backend's kernels take addresses: what has elements and none would end the process."""
    settings.use(settings.Settings("cpu", "cpu"))
    given = call()
    given[name] = Wrapper(given[name])
    with pytest.raises(NotImplementedError, match=rf"^{name}: got a Wrapper without memory of its own"):
        function(**given)


def test_under_fake_tensor_mode_too() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    settings.use(settings.Settings("cpu", "cpu"))
    with FakeTensorMode(), pytest.raises(NotImplementedError, match="^q: got a FakeTensor without memory"):
        two.flash_attn_func(**dense())


def test_index_put_takes_what_indexing_takes() -> None:
    """The real one is zeros with output[indices] = values."""
    values = t(2, 3).requires_grad_()
    for indices in (torch.tensor([3, 1]), i32(3, 1), torch.tensor([-1, 1]), torch.tensor([False, True, False, True])):
        want = torch.zeros(4, 3)
        want[indices.long() if indices.dtype == torch.int32 else indices] = values.detach()
        got = bert_padding.index_put_first_axis(values, indices, 4)
        assert torch.equal(got, want)
        [slope] = torch.autograd.grad(got.sum(), values)
        assert torch.equal(slope, torch.ones(2, 3))


def test_the_residual_carries_its_gradient() -> None:
    """As in the real one, whose backward adds the rows' to it (IndexFirstAxisResidual)."""
    x = t(3, 2).requires_grad_()
    rows, residual = bert_padding.index_first_axis_residual(x, torch.tensor([2, 0]))
    [slope] = torch.autograd.grad(rows.sum() + 10 * residual.sum(), x)
    assert torch.equal(slope, torch.tensor([[11.0, 11.0], [10.0, 10.0], [11.0, 11.0]]))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_more_is_served_than_by_the_real_kernels(dtype: torch.dtype) -> None:
    given = {name: x.to(dtype) for name, x in dense().items()}
    want = two.flash_attn_func(**{name: x.float() for name, x in given.items()})
    for module in (two, three):
        torch.testing.assert_close(module.flash_attn_func(**given).float(), want, rtol=0.02, atol=0.02)
    given = dense()
    given["v"] = given["v"][..., :16]
    assert two.flash_attn_func(**given).shape == (2, 3, 4, 16)
