"""ATB's attention and cache operations on 310P: what they refuse and compute.

ATB: Ascend ATB ddcc8b62, by file: checks of src/ops/ops_infer/*/*_operation.cpp, dtypes and formats of
ops_configs/atb_ops_info.ini, tiling and kernels of src/kernels/mixkernels. DOC: op-plugin 517f2e7d,
op_plugin/python/atb/_atb_api_docs.py. TEST: ATB's tests for 310P, whose expected results say what masks, tables and the
NZ layout mean (tests/apitest/opstest/python/operations/paged_attention/.._parallel_decoding_310P.py).

A refusal is the status of Setup, which op-plugin raises. It drops the status of Execute, so what only an execution
finds leaves the output unwritten: NaN here. Imported by runtime/atb.cpp when the first operation is set up.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import torch
from torch import Tensor

from fake_npu import answer
from fake_npu.decode import FRACTAL_NZ
from fake_npu.refusal import Rule, check
from fake_npu.signatures import SIGNATURES

TILE = 16
AREA = 128 * 128
BATCH, HEADS = 2000, 256  # NZ_BATCH_LIMIT, PARALLEL_MAX_BATCH; PARALLEL_MAX_HEAD
INT32 = 3  # aclDataType
NOT_ANSWERED = 200006
# types.h of ATB: ErrorType
PARAM, DTYPE, FORMAT, DIM, DIMS = 1, 6, 7, 8, 16
NORM, SPEC = 1, 3  # mask types that are answered: a triangle for all (SelfAttention), a row for each token
NOBODYS = 77  # what a slot holds that several tokens were written to


# --- the NZ layout: the last two dimensions (m, n) as (n / 16, m, 16) ---

def from_nz(x: Tensor) -> Tensor:
    """[.., n / 16, m, 16] -> [.., m, n]."""
    return x.transpose(-3, -2).flatten(-2)


def tokens(cache: Tensor, pages: Tensor, length: int, heads: int) -> Tensor:
    """[length, heads, head_dim] of one sequence, from [pages, heads * head_dim / 16, page_size, 16]."""
    return from_nz(cache[pages.long()]).flatten(0, 1)[:length].unflatten(-1, (heads, -1))


# --- refusals ---

def _soc(a: SimpleNamespace) -> str | None:
    soc = os.environ["FAKE_NPU_SOC"]
    return None if soc.startswith("Ascend310P") else f"{soc}: ATB is answered for 310P alone"


def _half(*names: str) -> Rule:
    def broken(a: SimpleNamespace) -> str | None:
        return next((f"{name} is {getattr(a, name).dtype}, expected float16" for name in names
                     if getattr(a, name) is not None and getattr(a, name).dtype != torch.float16), None)

    return Rule(DTYPE, broken, "DOC: query, caches and mask are float16 on Atlas inference products; ATB, ini")


def _heads(a: SimpleNamespace) -> str | None:
    if a.head_num <= 0 or a.kv_head_num < 0 or (a.kv_head_num and a.head_num % a.kv_head_num):
        return f"headNum {a.head_num} with kvHeadNum {a.kv_head_num}"
    return None


def _paged_dims(a: SimpleNamespace) -> str | None:
    dims = [x.dim() for x in (a.query, a.key_cache, a.value_cache, a.block_table, a.context_lens)]
    return None if dims == [3, 4, 4, 2, 1] else f"dimensions {dims}, expected 3, 4, 4, 2, 1"


def _cache(a: SimpleNamespace) -> str | None:
    k, v = a.key_cache.shape, a.value_cache.shape
    heads, size = a.kv_head_num or a.head_num, k[2]
    if k[:3] != v[:3] or k[3] != TILE or v[3] != TILE:
        return f"caches {tuple(k)} and {tuple(v)}: as many pages, tiles and tokens, the last dimension 16"
    head_dim = k[1] * TILE // heads
    if head_dim % TILE or head_dim > 256 or head_dim * size > AREA or size % TILE or not size:
        return f"head_dim {head_dim} with pages of {size}: multiples of 16, up to 256, their product up to {AREA}"
    if head_dim != a.query.shape[2] or a.out.shape[1:] != a.query.shape[1:]:
        return f"head_dim of query {tuple(a.query.shape)}, out {tuple(a.out.shape)}, cache {head_dim}"
    return None


def _lengths(a: SimpleNamespace) -> str | None:
    for name in ("block_table", "context_lens"):
        if getattr(a, name).dtype != torch.int32:
            return f"{name} is {getattr(a, name).dtype}, expected int32"
    return None


def _spec_lens(a: SimpleNamespace) -> str | None:
    if a.calc_type == 0:
        return None
    if a.q_lens_dtype != INT32:
        return f"qSeqLen has aclDataType {a.q_lens_dtype}, expected int32"
    if a.q_lens is None:
        return "qSeqLen: hostData is null"
    if min(a.q_lens, default=0) <= 0:
        return f"qSeqLen {a.q_lens}: each above 0"
    return None


def _spec_limits(a: SimpleNamespace) -> str | None:
    if a.calc_type == 0:
        return None
    size, wide = a.key_cache.shape[2], a.head_num * a.query.shape[2]
    if len(a.q_lens) > BATCH or a.head_num > HEADS or size > 128 or wide > AREA:
        return (f"{len(a.q_lens)} sequences, {a.head_num} heads, pages of {size}, heads * head_dim {wide}: up to "
                f"{BATCH}, {HEADS}, 128, {AREA}")
    return None


def _paged_mask(a: SimpleNamespace) -> str | None:
    if a.calc_type == 0:
        return None if a.mask_type == 0 else f"maskType {a.mask_type} without calcType SPEC is not answered"
    if a.mask_type != SPEC:
        return f"maskType {a.mask_type} is not answered"
    if (a.mask.format == FRACTAL_NZ) != (a.key_cache.format == FRACTAL_NZ):
        return "mask and caches: both NZ"
    if a.mask.dim() != 4 or a.mask.shape[3] != TILE or a.mask.shape[2] < TILE or a.mask.shape[0] != 1:
        return f"mask {tuple(a.mask.shape)}, expected [1, keys / 16, tokens, 16]"
    return None


def _encoder_dims(a: SimpleNamespace) -> str | None:
    q, k, v = a.query.shape, a.key.shape, a.value.shape
    if len(q) != 3 or k != v or len(k) != 3 or q[2] != k[2] or a.out.shape != q:
        return f"query {tuple(q)}, key {tuple(k)}, value {tuple(v)}, out {tuple(a.out.shape)}"
    if (q[1], k[1]) != (a.head_num, a.kv_head_num or a.head_num):
        return f"heads {q[1]} and {k[1]}, headNum {a.head_num} and kvHeadNum {a.kv_head_num}"
    return None if q[2] <= 256 and q[2] % TILE == 0 else f"head_dim {q[2]}: multiples of 16 up to 256"


def _seq_len(a: SimpleNamespace) -> str | None:
    if a.seq_len_dtype != INT32 or a.seq_len is None or a.seq_len_dims != 1:
        return (f"seqLen: aclDataType {a.seq_len_dtype}, {a.seq_len_dims} dimensions, "
                f"{'not ' if a.seq_len is None else ''}on the host; expected int32 [batch] there")
    if not 0 < len(a.seq_len) <= BATCH or min(a.seq_len) <= 0:
        return f"seqLen {a.seq_len}: 1 to {BATCH} sequences, each above 0"
    return None


def _encoder_mask(a: SimpleNamespace) -> str | None:
    if a.mask_type != NORM or a.triu:
        return f"maskType {a.mask_type} with isTriuMask {a.triu} is not answered"
    if a.mask.format != FRACTAL_NZ or a.mask.dim() != 4 or a.mask.shape[0] != 1 or a.mask.shape[3] != TILE:
        return f"mask {tuple(a.mask.shape)} of format {a.mask.format}, expected NZ [1, keys / 16, queries, 16]"
    most = max(a.seq_len)
    if a.mask.shape[1] * TILE < most or a.mask.shape[2] < most:
        return f"mask {tuple(a.mask.shape)} does not cover a sequence of {most}"
    return None


def _encoder_tokens(a: SimpleNamespace) -> str | None:
    if a.query.shape[0] % TILE or a.query.shape[0] != a.key.shape[0] or a.query.shape[0] < sum(a.seq_len):
        return (f"{a.query.shape[0]} and {a.key.shape[0]} tokens of sequences {a.seq_len}: their sum, rounded up to a "
                "multiple of 16")
    return None


def _write_dims(a: SimpleNamespace) -> str | None:
    k, v, kc, vc = a.key.shape, a.value.shape, a.key_cache.shape, a.value_cache.shape
    if (len(k), len(v), len(kc), len(vc), a.slots.dim()) != (3, 3, 4, 4, 1) or k[:2] != v[:2] or k[0] != len(a.slots):
        return f"key {tuple(k)}, value {tuple(v)}, caches {tuple(kc)} and {tuple(vc)}, slots {tuple(a.slots.shape)}"
    for x, cache in ((k, kc), (v, vc)):
        if cache[3] != TILE or x[1] * x[2] != cache[1] * TILE or cache[2] % TILE or kc[2] != vc[2]:
            return f"a cache {tuple(cache)} for {tuple(x)}"
    return None


def _write_formats(a: SimpleNamespace) -> str | None:
    if a.key_cache.format != FRACTAL_NZ or a.value_cache.format != FRACTAL_NZ:
        return f"caches of format {a.key_cache.format} and {a.value_cache.format}, expected NZ"
    return None


def _write_dtypes(a: SimpleNamespace) -> str | None:
    if a.slots.dtype != torch.int32:
        return f"slots are {a.slots.dtype}, expected int32"
    pairs = ((a.key, a.key_cache), (a.value, a.value_cache))
    return next((f"{x.dtype} into {cache.dtype}" for x, cache in pairs if x.dtype != cache.dtype), None)


_SOC = Rule(NOT_ANSWERED, _soc, "this fake")
_HEADS = Rule(PARAM, _heads, "ATB, paged_attention_operation.cpp: CommonParamCheck")
PAGED = (
    _SOC, _HEADS,
    Rule(DIMS, _paged_dims, "ATB, paged_attention_operation.cpp: InferShapeDimCheck"),
    _half("query", "key_cache", "value_cache", "mask", "out"),
    Rule(DTYPE, _lengths, "ATB, atb_ops_info.ini; pagedattention/paged_attention_operation.cpp"),
    Rule(DIM, _cache, "ATB, paged_attention_operation.cpp: KVCacheDimCheck310P, SetupDimCheck; its tiling"),
    Rule(PARAM, _spec_lens, "ATB, paged_attention/param.cpp: ParseQLens; paged_attention_tiling.cpp"),
    Rule(DIM, _spec_limits, "ATB, paged_attention_tiling.cpp: GetPaParallelCheck"),
    Rule(DIM, _paged_mask, "ATB, atb_ops_info.ini; pagedattention/paged_attention_operation.cpp: CheckMask"),
)
ENCODER = (
    _SOC, _HEADS,
    Rule(DIM, _encoder_dims, "ATB, self_attention_operation.cpp: HeadSizeDimCheck310P, InferShapePADimCheck; DOC"),
    _half("query", "key", "value", "mask", "out"),
    Rule(PARAM, _seq_len, "ATB, self_attention/param.cpp: BuildFromTensorEncoder; flash_attention_nz_tiling.cpp: "
                          "FlashAttentionNzCheck, qSeqLenAligned"),
    Rule(DIM, _encoder_mask, "ATB, unpad_flash_attention_nz_operation.cpp: CheckNzMask; CheckSeqLen"),
    Rule(DIM, _encoder_tokens, "DOC, _npu_flash_attention_v2, 4: nTokens of PA_ENCODER on Atlas inference products"),
)
WRITE = (
    _SOC,
    Rule(DIM, _write_dims, "ATB, reshape_and_cache_operation.cpp: KVCacheDimCheck310P and .._910BNZ"),
    Rule(FORMAT, _write_formats, "ATB, atb_ops_info.ini: ReshapeAndCacheOperationAtlas300"),
    Rule(DTYPE, _write_dtypes, "ATB, reshape_and_cache/reshape_and_cache_operation.cpp: slot should be int32"),
)


# --- numbers ---

def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """[Sq, N, D] of [Sq, N, D] and [Sk, Nkv, D] twice. mask [Sq, Sk] is added to the scaled scores."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * scale
    if mask is not None:
        scores = scores + mask.float()
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).to(query.dtype)


def _paged(a: SimpleNamespace) -> None:
    heads, size = a.kv_head_num or a.head_num, a.key_cache.shape[2]
    lens = a.context_lens.tolist()
    mask = None if a.mask is None else from_nz(a.mask)[0]  # a row for each token of all sequences together
    start = 0
    for b, count in enumerate(a.q_lens if a.calc_type else [1] * len(lens)):
        rows, length = slice(start, start + count), lens[b]
        start += count
        if length <= 0:
            continue  # no block is visited, and nothing is written
        pages = a.block_table[b, :-(-length // size)]
        key, value = (tokens(cache, pages, length, heads) for cache in (a.key_cache, a.value_cache))
        if mask is not None and (mask.shape[1] < length or mask.shape[0] < start):
            raise IndexError(f"the mask {tuple(a.mask.shape)} ends before {length} keys or {start} tokens")
        a.out[rows] = attend(a.query[rows], key, value, a.scale, None if mask is None else mask[rows, :length])


def _encoder(a: SimpleNamespace) -> None:
    mask, start = from_nz(a.mask)[0], 0
    for count in a.seq_len:
        rows = slice(start, start + count)
        a.out[rows] = attend(a.query[rows], a.key[rows], a.value[rows], a.scale, mask[:count, :count])
        start += count


def _write(a: SimpleNamespace) -> None:
    """Slots below 0 are skipped (reshape_and_cache_nz.cpp). Cores share the tokens, so of a slot that repeats anybody's
    may be last."""
    size = a.key_cache.shape[2]
    slots = a.slots.long()
    if len(slots) and int(slots.max()) >= a.key_cache.shape[0] * size:
        raise IndexError(f"aicore exception: slot {int(slots.max())} of {a.key_cache.shape[0] * size}")
    kept = slots >= 0
    values, counts = slots[kept].unique(return_counts=True)
    twice = values[counts > 1]
    for x, cache in ((a.key, a.key_cache), (a.value, a.value_cache)):
        at = slots[kept]
        cache[at // size, :, at % size] = x[kept].flatten(1).unflatten(1, (-1, TILE))
        cache[twice // size, :, twice % size] = NOBODYS


# With what runtime/atb.cpp reads of each, in its order; letters as in signatures.py.
_ANSWERS = (
    ("PagedAttention", ("query:T key_cache:T value_cache:T block_table:T context_lens:T mask:T q_lens:A q_lens_dtype:i "
                        "out:T scale:d head_num:i kv_head_num:i mask_type:i calc_type:i"), PAGED, _paged),
    ("SelfAttention", ("query:T key:T value:T mask:T seq_len:A seq_len_dtype:i seq_len_dims:i out:T scale:d head_num:i "
                       "kv_head_num:i mask_type:i triu:i"), ENCODER, _encoder),
    ("ReshapeAndCache", "key:T value:T key_cache:T value_cache:T slots:T kv_cache_cfg:i", WRITE, _write),
)
for _name, _arguments, _rules, _compute in _ANSWERS:
    _operation = f"atb{_name}Operation"
    SIGNATURES[_operation] = tuple((part[:-2], part[-1]) for part in _arguments.split())
    answer.CHECK[_operation] = lambda a, rules=_rules: check(rules, a)  # type: ignore[misc]
    answer.COMPUTE[_operation] = _compute
