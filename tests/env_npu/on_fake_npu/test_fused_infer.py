# ruff: noqa: E501 - tables: a row stays on its line
"""The fake's npu_fused_infer_attention_score against float64, in every layout; and what it refuses or quietly does.

Sources: V1, V2 are op-plugin's torch_npu-npu_fused_infer_attention_score.md and .._v2.md.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch_npu
from env_npu.on_fake_npu.plain_attention import attention, causal, close, everything, window
from torch import Tensor

HEADS, KV_HEADS, D, PAGE = 8, 2, 128, 128
SCALE = D ** -0.5
MASK = torch.triu(torch.ones(2048, 2048), 1).to(torch.int8)
ROWS, KEYS = [5, 40, 1], [40, 300, 17]  # of three sequences: chunked prefill and decode


def randn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def cumulative(lengths: list[int]) -> list[int]:
    return torch.tensor(lengths).cumsum(0).tolist()


def pages(sequences: list[Tensor], page: int, layout: str) -> tuple[Tensor, Tensor]:
    """Sequences [S, N, D] in a shuffled cache of a layout, and the block table. Unused slots are NaN."""
    count = sum(-(-len(x) // page) for x in sequences)
    order = torch.randperm(count + 2, generator=torch.Generator().manual_seed(1)).tolist()
    heads, size = sequences[0].shape[1:]
    cache = torch.full((count + 2, page, heads, size), math.nan, dtype=torch.bfloat16)
    table = torch.zeros(len(sequences), max(-(-len(x) // page) for x in sequences), dtype=torch.int32)
    for b, x in enumerate(sequences):
        for start in range(0, len(x), page):
            table[b, start // page] = order.pop()
            cache[table[b, start // page], :len(x[start:start + page])] = x[start:start + page]
    if layout == "BnBsH":
        cache = cache.flatten(2)
    elif layout == "BnNBsD":
        cache = cache.transpose(1, 2)
    elif layout == "NZ":
        cache = cache.unflatten(3, (size // 16, 16)).permute(0, 2, 3, 1, 4)
    return cache.contiguous().npu(), table.npu()


def case(rows: list[int] = ROWS, keys: list[int] = KEYS, heads: int = HEADS, kv_heads: int = KV_HEADS, d: int = D,
         dv: int | None = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return ([randn(n, heads, d) for n in rows], [randn(n, kv_heads, d) for n in keys],
            [randn(n, kv_heads, dv or d) for n in keys])


def paged(page: int = PAGE, layout: str = "BnBsH", rows: list[int] = ROWS, keys: list[int] = KEYS, **dims: int) -> tuple[
        dict[str, Any], list[Tensor], list[Tensor], list[Tensor]]:
    """A right call of v1 with TND queries over pages, and its sequences."""
    q, k, v = case(rows, keys, **dims)
    (key, table), (value, _) = pages(k, page, layout), pages(v, page, layout)
    call = {"query": torch.cat(q).npu(), "key": key, "value": value, "atten_mask": MASK.npu(), "block_table": table,
            "block_size": page, "input_layout": "TND", "num_heads": q[0].shape[1], "num_key_value_heads": k[0].shape[1],
            "scale": SCALE, "sparse_mode": 3, "actual_seq_lengths": cumulative(rows), "actual_seq_lengths_kv": list(keys),
            "softmax_lse_flag": True}
    return call, q, k, v


def v1(**call: Any) -> tuple[Tensor, Tensor]:
    query, key, value = (call.pop(name) for name in ("query", "key", "value"))
    return torch_npu.npu_fused_infer_attention_score(query, key, value, **call)  # type: ignore[no-any-return]


def v2(**call: Any) -> tuple[Tensor, Tensor]:
    names = {"num_heads": "num_query_heads", "scale": "softmax_scale", "actual_seq_lengths": "actual_seq_qlen",
             "actual_seq_lengths_kv": "actual_seq_kvlen", "softmax_lse_flag": "return_softmax_lse"}
    call = {names.get(name, name): value for name, value in call.items()}
    query, key, value = (call.pop(name) for name in ("query", "key", "value"))
    return torch_npu.npu_fused_infer_attention_score_v2(query, key, value, **call)  # type: ignore[no-any-return]


def expect(out: Tensor, lse: Tensor | None, q: list[Tensor], k: list[Tensor], v: list[Tensor], sees: Any = causal,
           scale: float = SCALE, sink: Tensor | None = None) -> None:
    """out [T, N, D], lse (T, N, 1)."""
    results = [attention(*sequence, sees, scale, sink) for sequence in zip(q, k, v)]
    close(out, torch.cat([o for o, _ in results]))
    if lse is not None:
        assert lse.shape == (*out.shape[:2], 1)
        close(lse[..., 0], torch.cat([x for _, x in results]))


@pytest.mark.parametrize("page", [16, 128])
@pytest.mark.parametrize("layout", ["BnBsH", "BnNBsD", "NZ"])
@pytest.mark.parametrize("function", [v1, v2])
def test_paged_queries_in_tnd(function: Any, layout: str, page: int) -> None:
    call, q, k, v = paged(page, layout)
    expect(*function(**call), q, k, v)


def test_dense_keys_in_tnd_have_cumulative_lengths() -> None:
    q, k, v = case(ROWS, KEYS)
    call, *_ = paged()
    del call["block_table"], call["block_size"]
    call |= {"query": torch.cat(q).npu(), "key": torch.cat(k).npu(), "value": torch.cat(v).npu(),
             "actual_seq_lengths_kv": cumulative(KEYS)}
    expect(*v1(**call), q, k, v)


@pytest.mark.parametrize(("mode", "sees", "extra"), [
    (0, everything, {"atten_mask": None}),
    (2, lambda i, j, rows, keys: j <= i, {}),
    (4, window(31, 0), {"pre_tokens": 31, "next_tokens": 0}),
    (4, window(7, 3), {"pre_tokens": 7, "next_tokens": 3}),
])
def test_sparse_modes(mode: int, sees: Any, extra: dict[str, Any]) -> None:
    call, q, k, v = paged()
    expect(*v1(**call | {"sparse_mode": mode} | extra), q, k, v, sees)


@pytest.mark.parametrize("layout", ["BSND", "BSH", "BNSD"])
@pytest.mark.parametrize("rows", [1, 3])
def test_unpacked_layouts_over_pages(layout: str, rows: int) -> None:
    call, q, k, v = paged(rows=[rows] * 3)
    query = torch.stack(q)  # BSND
    call["query"] = {"BSND": query, "BSH": query.flatten(2), "BNSD": query.transpose(1, 2)}[layout].contiguous().npu()
    out, lse = v1(**call | {"input_layout": layout, "actual_seq_lengths": None})
    assert lse.shape == (3, HEADS, rows, 1)
    if layout == "BSH":
        out = out.unflatten(-1, (HEADS, D))
    elif layout == "BNSD":
        out = out.transpose(1, 2)
    expect(out.flatten(0, 1), lse[..., 0].transpose(1, 2).flatten(0, 1)[..., None], q, k, v)


@pytest.mark.parametrize("mode", [0, 1])
def test_full_mask(mode: int) -> None:
    q, k, v = case([4] * 2, [20] * 2)
    mask = torch.rand(2, 1, 4, 20) < 0.4
    out, _ = v1(query=torch.stack(q).npu(), key=torch.stack(k).npu(), value=torch.stack(v).npu(), num_heads=HEADS,
                num_key_value_heads=KV_HEADS, input_layout="BSND", scale=SCALE, sparse_mode=mode, atten_mask=mask.npu())
    for b in range(2):
        close(out[b], attention(q[b], k[b], v[b], lambda i, j, *_: not mask[b, 0, i, j], SCALE)[0])  # noqa: B023


def test_the_lse_is_of_the_denominator_sink_included() -> None:
    # V2 gives it no other meaning, and no document says this one: hal verify on a chip shows which it is.
    call, q, k, v = paged()
    sink = randn(HEADS)
    _, lse = v2(**call | {"learnable_sink": sink.npu(), "softmax_lse_flag": True})
    expect(v2(**call | {"learnable_sink": sink.npu()})[0], lse, q, k, v, sink=sink)


def test_sinks_are_in_the_denominator() -> None:
    call, q, k, v = paged()
    sink = randn(HEADS)
    out, _ = v2(**call | {"learnable_sink": sink.npu(), "softmax_lse_flag": False})
    expect(out, None, q, k, v, sink=sink)


@pytest.mark.parametrize("layout", ["BNSD_NBSD", "BSND_NBSD", "BSND", "TND", "TND_NTD"])
@pytest.mark.parametrize("cache", ["BnBsH", "BnNBsD", "NZ"])
def test_absorbed_mla_decode(layout: str, cache: str) -> None:
    heads, keys, scale = 16, [5, 200, 129], 192 ** -0.5
    q, latent = [randn(1, heads, 576) for _ in keys], [randn(n, 1, 576) for n in keys]
    (ckv, table), (rope, _) = pages([x[..., :512] for x in latent], PAGE, cache), pages([x[..., 512:] for x in latent], PAGE, cache)
    query = torch.stack(q)  # (B, 1, N, 576)
    query = {"BNSD": query.transpose(1, 2), "BSND": query, "TND": query[:, 0]}[layout.partition("_")[0]]
    out, _ = v2(query=query[..., :512].contiguous().npu(), query_rope=query[..., 512:].contiguous().npu(), key=ckv, value=ckv,
                key_rope=rope, block_table=table, block_size=PAGE, input_layout=layout, num_heads=heads,
                num_key_value_heads=1, scale=scale, sparse_mode=0, actual_seq_lengths_kv=keys,
                actual_seq_lengths=[1, 2, 3] if "TND" in layout else None)
    out = {"BNSD_NBSD": lambda: out[:, :, 0].transpose(0, 1), "BSND_NBSD": lambda: out[:, :, 0].transpose(0, 1),
           "BSND": lambda: out[:, 0], "TND": lambda: out, "TND_NTD": lambda: out.transpose(0, 1)}[layout]()
    expect(out, None, q, latent, [x[..., :512] for x in latent], scale=scale)


def test_mla_prefill_with_rope_apart() -> None:
    rows = [7, 30]
    q, k, v = case(rows, rows, heads=4, kv_heads=4, d=192, dv=128)
    call = {"query": torch.cat(q)[..., :128], "query_rope": torch.cat(q)[..., 128:], "key": torch.cat(k)[..., :128],
            "key_rope": torch.cat(k)[..., 128:], "value": torch.cat(v), "atten_mask": MASK}
    out, lse = v1(**{name: x.contiguous().npu() for name, x in call.items()}, input_layout="TND", num_heads=4,
                  num_key_value_heads=4, scale=SCALE, sparse_mode=3, actual_seq_lengths=cumulative(rows),
                  actual_seq_lengths_kv=cumulative(rows), softmax_lse_flag=True)
    expect(out, lse, q, k, v)


def test_an_empty_sequence_gives_zero_and_an_infinite_lse() -> None:
    # V1, "key empty: all 0"; ops-transformer's kernels: "set the value of invalid batch to inf".
    call, *_ = paged(keys=[40, 0, 17])
    out, lse = v1(**call)
    assert (out[5:45] == 0).all()
    assert lse[5:45].isposinf().all()
    assert lse[:5].isfinite().all()


def test_rows_before_the_first_key_give_zero_in_mode_3() -> None:
    # V1, inner_precise: sparse_mode 3 with Q_S > KV_S repairs such rows by itself.
    call, q, k, v = paged(rows=[9], keys=[4])
    out, lse = v1(**call)
    expect(out, lse, q, k, v)
    assert (out[:5] == 0).all()
    assert lse[:5].isposinf().all()


# What a call that is not right gets without an error: each of these makes a plausible wrong number.

def wrong(out: Tensor, expected: Tensor) -> bool:
    return bool((out.cpu().double() - expected).abs().max() > 0.05)


def right_one(q: list[Tensor], k: list[Tensor], v: list[Tensor], sees: Any = causal) -> Tensor:
    return torch.cat([attention(*sequence, sees, SCALE)[0] for sequence in zip(q, k, v)])


def test_trap_scale_defaults_to_one() -> None:  # V1, scale
    call, q, k, v = paged()
    del call["scale"]
    out, _ = v1(**call)
    assert wrong(out, right_one(q, k, v))
    expect(out, None, q, k, v, scale=1.0)


def test_trap_windows_are_ignored_for_one_query_outside_tnd() -> None:  # V1, sparse_mode: no effect with Q_S = 1
    call, q, k, v = paged(rows=[1] * 3)
    out, _ = v1(**call | {"query": torch.stack(q).npu(), "input_layout": "BSND", "actual_seq_lengths": None,
                          "sparse_mode": 4, "pre_tokens": 7, "next_tokens": 0})
    assert wrong(out[:, 0], right_one(q, k, v, window(7, 0)))
    expect(out[:, 0], None, q, k, v)


def test_trap_paged_lengths_that_are_cumulative_are_taken() -> None:  # V1, PageAttention: lengths are each sequence's
    call, q, k, v = paged(keys=[40, 60, 17])
    out, _ = v1(**call | {"actual_seq_lengths_kv": cumulative([40, 60, 17])})
    assert wrong(out.nan_to_num(9.0), right_one(q, k, v))


def test_trap_a_cache_by_token_is_read_by_head() -> None:  # V1, PageAttention: 4-D is (blocknum, KV_N, blocksize, D)
    call, q, k, v = paged(page=16, layout="by token", heads=32, kv_heads=16)
    assert call["key"].shape[1:] == (16, 16, D)
    out, _ = v1(**call)
    assert wrong(out.nan_to_num(9.0), right_one(q, k, v))


def test_trap_a_compressed_mask_counts_with_its_content() -> None:  # V1, sparse_mode 2, 3, 4: the user ensures it
    call, q, k, v = paged()
    out, _ = v1(**call | {"atten_mask": torch.zeros(2048, 2048, dtype=torch.int8).npu()})
    assert wrong(out, right_one(q, k, v))


@pytest.mark.parametrize(("inner_precise", "repaired"), [(0, False), (1, False), (2, True), (3, True)])
def test_trap_a_fully_masked_row_is_an_average(inner_precise: int, repaired: bool) -> None:  # V1, inner_precise
    q, k, v = case([3], [20])
    mask = torch.zeros(1, 1, 3, 20, dtype=torch.bool)
    mask[..., 1, :] = True
    out, _ = v1(query=q[0][None].npu(), key=k[0][None].npu(), value=v[0][None].npu(), num_heads=HEADS,
                num_key_value_heads=KV_HEADS, input_layout="BSND", scale=SCALE, atten_mask=mask.npu(), inner_precise=inner_precise)
    average = v[0].double().mean(0).repeat_interleave(HEADS // KV_HEADS, 0)
    close(out[0, 1], torch.zeros_like(average) if repaired else average)


def test_trap_of_a_stack_uniform_average(monkeypatch: pytest.MonkeyPatch) -> None:  # vllm-ascend#13699
    call, q, k, v = paged()
    call |= {"sparse_mode": 0, "atten_mask": None}
    expect(v1(**call)[0], None, q, k, v, everything)
    monkeypatch.setenv("FAKE_NPU_TRAPS", "uniform_average")
    out, _ = v1(**call)
    for start, end, values in zip([0, *cumulative(ROWS)], cumulative(ROWS), v):
        close(out[start:end], values.double().mean(0).repeat_interleave(4, 0).expand(end - start, -1, -1))
    causal_call, *_ = paged()
    assert not wrong(v1(**causal_call)[0], right_one(*paged_again(causal_call)))


def paged_again(call: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The sequences of a paged BnBsH call, read back."""
    q = [call["query"].cpu()[a:b] for a, b in zip([0, *call["actual_seq_lengths"]], call["actual_seq_lengths"])]
    k, v = ([call[name].cpu()[row.long()].flatten(0, 1)[:n].unflatten(-1, (KV_HEADS, D))
             for row, n in zip(call["block_table"].cpu(), call["actual_seq_lengths_kv"])] for name in ("key", "value"))
    return q, k, v


def test_trap_of_a_stack_mask_ends_at_512(monkeypatch: pytest.MonkeyPatch) -> None:  # vllm-ascend#15503
    call, q, k, v = paged(rows=[1], keys=[768])
    mask = torch.zeros(1, 1, 1, 768, dtype=torch.bool)
    mask[..., 300:] = True
    call |= {"query": q[0][None].npu(), "input_layout": "BSND", "actual_seq_lengths": None, "sparse_mode": 0, "atten_mask": mask.npu()}
    close(v1(**call)[0][0], attention(q[0], k[0], v[0], lambda i, j, *_: j < 300, SCALE)[0])
    monkeypatch.setenv("FAKE_NPU_TRAPS", "mask_ends_at_512")
    close(v1(**call)[0][0], attention(q[0], k[0], v[0], lambda i, j, *_: j < 300 or j >= 512, SCALE)[0])


def test_trap_of_a_stack_band_keeps_empty_rows(monkeypatch: pytest.MonkeyPatch) -> None:  # V1, inner_precise
    call, q, k, v = paged(rows=[5], keys=[3])
    call |= {"sparse_mode": 4, "pre_tokens": 7, "next_tokens": 0}
    right, average = right_one(q, k, v, window(7, 0)), v[0].double().mean(0).repeat_interleave(HEADS // KV_HEADS, 0)
    assert not wrong(v1(**call)[0][2:], right[2:])
    assert not v1(**call)[0][:2].any()
    monkeypatch.setenv("FAKE_NPU_TRAPS", "band_keeps_empty_rows")
    close(v1(**call)[0][:2], average.expand(2, -1, -1))
    assert not v1(**call, inner_precise=2)[0][:2].any()
    assert not v1(**call | {"sparse_mode": 3})[0][:2].any()


def test_trap_of_a_stack_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:  # sglang#38196
    (small, q, k, v), (large, *sequences) = paged(page=16), paged(page=128)
    monkeypatch.setenv("FAKE_NPU_TRAPS", "small_pages")
    assert wrong(v1(**small)[0], right_one(q, k, v))
    assert not wrong(v1(**large)[0], right_one(*sequences))


# Refusals. changes: of the right paged call. What is in the text is what the operator saw.
BAD_TABLE = torch.zeros(2, 3, dtype=torch.int32)
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], int, str]] = [
    ("q lengths not cumulative: V1, TND", {}, {"actual_seq_lengths": ROWS}, 161002, "must not decrease"),
    ("q lengths end elsewhere: TILING", {}, {"actual_seq_lengths": [5, 45, 47]}, 161002, "has T 46"),
    ("q lengths missing: V1, TND", {}, {"actual_seq_lengths": None}, 161002, "must be given"),
    ("too many q lengths: V1, TND", {"rows": [0] * 4096 + [1], "keys": [1] * 4097}, {}, 161002, "at most 4096"),
    ("kv lengths missing: V1, PageAttention", {}, {"actual_seq_lengths_kv": None}, 561002, "must be given"),
    ("kv lengths of fewer rows: #8107", {}, {"actual_seq_lengths_kv": [40, 300]}, 561002, "bigger or equal to batch size(3)"),
    ("block table of fewer rows: #8523", {}, {"block_table": BAD_TABLE}, 161002, "2 rows, the batch is 3"),
    ("block table of more rows: V2", {}, {"block_table": torch.zeros(4, 3, dtype=torch.int32)}, 161002, "4 rows, the batch is 3"),
    ("block table too narrow: V1", {}, {"actual_seq_lengths_kv": [40, 385, 17]}, 161002, "goes to 385"),
    ("block table int64: V1", {}, {"block_table": BAD_TABLE.long()}, 161002, "torch.int64"),
    ("page 1: sglang#25169", {"page": 1, "layout": "BnBsH"}, {}, 561002, "block_size 1 should aligned to 16"),
    ("page 24: V1, TND", {"page": 24}, {}, 561002, "block_size 24 should aligned to 16"),
    ("page 2048: V1, TND", {"page": 2048}, {}, 561002, "at most 1024"),
    ("block_size missing: V1", {}, {"block_size": 0}, 561002, "block_size 0"),
    ("cache and block_size differ", {}, {"block_size": 256}, 561002, "block_size is 256"),
    ("cache by token: V1, PageAttention", {"layout": "by token"}, {}, 561002, "(blocknum, KV_N, blocksize, D): KV_N is 2"),
    ("BnNBsD with MHA: V2, TND", {"layout": "BnNBsD", "heads": 4, "kv_heads": 4}, {}, 561002, "takes only (blocknum, blocksize, H)"),
    ("head dim 256: #9632", {"d": 256}, {}, 561002, "When layout is TND, queryD(256), keyD(256), valueD(256) must be 192/128/64"),
    ("head dim 80", {"d": 80}, {}, 561002, "queryD(80)"),
    ("V of 192 over pages: V2", {"d": 192, "heads": 4, "kv_heads": 4}, {}, 561002, "valueD(192) is not supported with PageAttention"),
    ("heads not divisible: V1", {}, {"num_key_value_heads": 3}, 561002, "num_heads 8"),
    ("ratio above 64: V1", {"heads": 130, "kv_heads": 2}, {}, 561002, "more than 64 times"),
    ("more than 256 heads: V1", {"heads": 257, "kv_heads": 257}, {}, 561002, "at most 256"),
    ("num_heads not the query's: V1", {}, {"num_heads": 4}, 561002, "num_heads is 4"),
    ("mode 3 without mask: V1", {}, {"atten_mask": None}, 561002, "sparse_mode 3 needs atten_mask of (2048, 2048)"),
    ("mode 4 with a full mask: V1", {}, {"sparse_mode": 4, "atten_mask": MASK[:40, :384]}, 561002, "(40, 384)"),
    ("mode 1 without mask: V1", {}, {"sparse_mode": 1, "atten_mask": None}, 561002, "needs atten_mask"),
    ("mode 5: V1", {}, {"sparse_mode": 5}, 561002, "sparse_mode 5"),
    ("a float mask: V1", {}, {"atten_mask": MASK.half()}, 161002, "torch.float16"),
    ("2-D full mask in TND: TILING", {}, {"sparse_mode": 0, "atten_mask": MASK[:40, :384]}, 561002, "2 dimensions"),
    ("full mask narrower than the table: V1", {}, {"sparse_mode": 0, "atten_mask": MASK[None, :40, :300]}, 561002, "at least 384"),
    ("inner_precise 4: V1", {}, {"inner_precise": 4}, 561002, "inner_precise 4"),
    ("float32: V1", {}, {"query": torch.zeros(46, HEADS, D)}, 161002, "torch.float32"),
    ("TND_NTD without MLA: V1", {}, {"input_layout": "TND_NTD"}, 561002, "TND_NTD"),
    ("rope alone: V1, MLA", {}, {"query_rope": torch.zeros(46, HEADS, 64, dtype=torch.bfloat16)}, 561002, "go together"),
]


@pytest.mark.parametrize(("what", "made", "changes", "code", "text"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_refusals(what: str, made: dict[str, Any], changes: dict[str, Any], code: int, text: str) -> None:
    call, *_ = paged(**made)
    call |= {name: x.npu() if isinstance(x, Tensor) else x for name, x in changes.items()}
    with pytest.raises(RuntimeError) as error:
        v1(**call)
    assert f"error code is {code}" in str(error.value)
    assert text in str(error.value)


@pytest.mark.parametrize("name", ["query", "key", "value", "atten_mask"])
def test_tensors_are_contiguous(name: str) -> None:  # V1: no non-contiguous tensors
    call, *_ = paged()
    call[name] = torch.stack([call[name]] * 2, -1)[..., 0]
    with pytest.raises(RuntimeError, match=f"{name}, shape .* is not contiguous"):
        v1(**call)


def test_pages_of_unpacked_prefill_are_multiples_of_128() -> None:  # V1, PageAttention, Q_S > 1
    call, q, *_ = paged(page=64, rows=[2] * 3)
    call |= {"input_layout": "BSND", "actual_seq_lengths": None, "query": torch.stack(q).npu()}
    with pytest.raises(RuntimeError, match="block_size 64 must be a multiple of 128"):
        v1(**call)
    v1(**call | {"query": torch.stack(q)[:, :1].contiguous().npu()})  # Q_S = 1: 16 is enough


def test_sink_refusals() -> None:  # V2, learnable_sink
    call, *_ = paged()
    for sink, text in ((torch.zeros(HEADS), "torch.float32"), (randn(HEADS + 1), r"\(9,\)")):
        with pytest.raises(RuntimeError, match=text) as error:
            v2(**call | {"learnable_sink": sink.npu()})
        assert "error code is 161002" in str(error.value)


def test_what_is_left_out_is_refused() -> None:
    call, *_ = paged()
    with pytest.raises(RuntimeError, match="pse_shift is not answered by this fake"):
        v1(**call | {"pse_shift": randn(3, HEADS, 40, 384).npu()})


def test_mla_refusals() -> None:  # V1, MLA, D = 512
    def call(heads: int = 16, layout: str = "BSND", **changes: Any) -> dict[str, Any]:
        return {"query": randn(2, 1, heads, 512).npu(), "query_rope": randn(2, 1, heads, 64).npu(),
                "key": randn(4, PAGE, 512).npu(), "value": randn(4, PAGE, 512).npu(), "key_rope": randn(4, PAGE, 64).npu(),
                "block_table": torch.zeros(2, 1, dtype=torch.int32).npu(), "block_size": PAGE, "input_layout": layout,
                "num_heads": heads, "num_key_value_heads": 1, "actual_seq_lengths_kv": [3, 4]} | changes
    v1(**call())
    for changes, text in (({"heads": 12}, "num_heads is 12"), ({"sparse_mode": 2, "atten_mask": MASK.npu()}, "0, 3 or 4"),
                          ({"softmax_lse_flag": True}, "softmax_lse_flag is not supported with queryD 512"),
                          ({"key_rope": randn(4, PAGE, 32).npu()}, "key_rope has shape")):
        with pytest.raises(RuntimeError, match=text) as error:
            v1(**call(**changes))
        assert "error code is 561002" in str(error.value)
    v2(**call(softmax_lse_flag=True))  # V2 has no such rule
