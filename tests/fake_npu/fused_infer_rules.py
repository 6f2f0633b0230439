# ruff: noqa: E501 - tables: a row stays on its line
"""What npu_fused_infer_attention_score refuses, with the page that says so.

V1, V2: op-plugin, docs/zh/custom_APIs/torch_npu/torch_npu-npu_fused_infer_attention_score.md and .._v2.md. Numbers of a
thread: vllm-project/vllm-ascend or sgl-project/sglang. TILING: the checkers of CANN's ops-transformer repository
(attention/fused_infer_attention_score/op_host), read and described, not copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import torch

from fake_npu.refusal import PARAM_INVALID, TILING, Refused, Rule, check

FLOATS = (torch.float16, torch.bfloat16)
MASKS = (torch.bool, torch.int8, torch.uint8)
NOT_ANSWERED = 200006
# Features of the operator that this fake does not compute: refused, so that no test takes them for answered.
LEFT_OUT = (
    "pse_shift", "dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2", "antiquant_scale",
    "antiquant_offset", "query_padding_size", "kv_padding_size", "key_antiquant_scale", "key_antiquant_offset",
    "value_antiquant_scale", "value_antiquant_offset", "key_shared_prefix", "value_shared_prefix",
    "actual_shared_prefix_len", "key_rope_antiquant_scale", "dequant_scale_query", "q_start_idx", "kv_start_idx")
LAYOUTS = {
    "BSH": 3, "BSND": 4, "BNSD": 4, "TND": 3, "NTD": 3, "BNSD_BSND": 4, "BSH_NBSD": 3, "BSND_NBSD": 4, "BNSD_NBSD": 4,
    "TND_NTD": 3, "NTD_TND": 3, "BSH_BNSD": 3, "BSND_BNSD": 4}
LATENT = 512  # head_dim of MLA's absorbed queries, with rope apart
ROPE = 64
LATENT_LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_NBSD", "BSND_NBSD", "BSH_NBSD", "TND", "TND_NTD")
LATENT_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)


def check_fused_infer(a: SimpleNamespace, operator: str) -> None:
    """Raises Refused for the first rule that the call breaks."""
    left_out = [name for name in LEFT_OUT if getattr(a, name, None) is not None]
    if left_out or a.sparse_mode == 9:
        raise Refused(NOT_ANSWERED, f"{', '.join(left_out) or 'sparse_mode 9'} is not answered by this fake")
    a = SimpleNamespace(**vars(a))
    a.operator, a.soc = operator, os.environ["FAKE_NPU_SOC"]
    check(BEFORE, a)
    a.layout = a.input_layout.partition("_")[0]
    a.packed = a.layout in ("TND", "NTD")
    a.kv_heads = a.num_key_value_heads or a.num_heads
    a.k, a.v = a.key[0], a.value[0]
    a.head_dim = a.query.shape[-1] // (a.num_heads if a.layout == "BSH" else 1)
    a.v_dim = _kv_dim(a, a.v)
    a.k_dim = _kv_dim(a, a.k)
    a.latent = a.query_rope is not None and a.head_dim == LATENT
    a.paged = a.block_table is not None
    a.batch = len(a.actual_seq_lengths or ()) if a.packed else a.query.shape[0]
    a.rows = 0 if a.packed else a.query.shape[2 if a.layout == "BNSD" else 1]
    a.tokens = a.query.shape[1 if a.layout == "NTD" else 0]
    check(RULES, a)


def _kv_dim(a: SimpleNamespace, x: torch.Tensor) -> int:
    if a.block_table is not None and x.dim() == 5:
        return int(x.shape[2] * x.shape[4])
    joined = x.dim() == 3 and (a.block_table is not None or a.layout == "BSH")
    return int(x.shape[-1] // (a.kv_heads if joined else 1))


def _if(condition: Callable[[SimpleNamespace], object], text: Callable[[SimpleNamespace], str]) -> Callable[[SimpleNamespace], str | None]:
    return lambda a: text(a) if condition(a) else None


def _soc(a: SimpleNamespace) -> str | None:
    if a.soc.startswith("Ascend310P"):
        return "Ascend310P is not supported"
    if not a.soc.startswith(("Ascend910B", "Ascend910_93", "Ascend950")):
        return f"{a.soc} is not supported"
    new = a.operator.endswith("V5")
    return f"{a.operator} is not supported on {a.soc}" if new != a.soc.startswith("Ascend950") else None


def _dims(a: SimpleNamespace) -> str | None:
    q, k, v = a.head_dim, a.k_dim, a.v_dim
    if a.latent:
        return None
    if a.query_rope is not None:
        return None if q == k == v == 128 else f"with rope queryD({q}), keyD({k}) and valueD({v}) must be 128, or 512 for MLA"
    if a.packed:
        if v == 192 and (a.paged or a.num_heads != a.kv_heads):
            return f"valueD({v}) is not supported with PageAttention, nor with {a.num_heads} heads over {a.kv_heads}"
        if (q == k == v and q in (64, 128, 192)) or (q == k == 192 and v == 128):
            return None
        return f"When layout is TND, queryD({q}), keyD({k}), valueD({v}) must be 192/128/64, or 192 with valueD 128"
    if q > 512 or q % 16:
        return f"head dim {q} must be at most 512 and a multiple of 16"
    return None if q == k == v else f"queryD({q}), keyD({k}), valueD({v}) must be equal in layout {a.input_layout}"


def _latent(a: SimpleNamespace) -> str | None:
    if not a.latent:
        return None
    if a.kv_heads != 1:
        return f"num_key_value_heads is {a.kv_heads}, with queryD 512 it must be 1"
    if a.num_heads not in LATENT_HEADS:
        return f"num_heads is {a.num_heads}, with queryD 512 it must be one of {LATENT_HEADS}"
    if a.k_dim != LATENT or a.v_dim != LATENT:
        return f"keyD({a.k_dim}) and valueD({a.v_dim}) must be 512 as queryD is"
    if a.input_layout not in LATENT_LAYOUTS:
        return f"input_layout {a.input_layout} does not go with queryD 512"
    if a.sparse_mode not in (0, 3, 4):
        return f"sparse_mode {a.sparse_mode}: with queryD 512 it must be 0, 3 or 4"
    return None


def _rope(a: SimpleNamespace) -> str | None:
    if (a.query_rope is None) != (a.key_rope is None):
        return "query_rope and key_rope go together"
    if a.query_rope is None:
        return None
    for name, rope, x, heads in (("query_rope", a.query_rope, a.query, a.num_heads), ("key_rope", a.key_rope, a.k, a.kv_heads)):
        paged = name == "key_rope" and a.paged
        if paged and x.dim() == 5:
            if tuple(rope.shape) != (*x.shape[:2], ROPE // x.shape[4], *x.shape[3:]):
                return f"{name} has shape {tuple(rope.shape)}, key {tuple(x.shape)}"
            continue
        joined = (a.layout == "BSH" and not paged) or (paged and x.dim() == 3)
        if rope.shape[:-1] != x.shape[:-1] or rope.shape[-1] != ROPE * (heads if joined else 1) or rope.dtype != x.dtype:
            return f"{name} has shape {tuple(rope.shape)} {rope.dtype}: as {tuple(x.shape)} with D {ROPE} is expected"
    return None


def _query_lengths(a: SimpleNamespace) -> str | None:
    lengths = a.actual_seq_lengths
    if a.packed:
        if not lengths:
            return "actual_seq_lengths must be given when layout is TND"
        if len(lengths) > 4096:
            return f"actual_seq_lengths has {len(lengths)} entries, at most 4096"
        if any(y < x for x, y in zip([0, *lengths], lengths)):
            return f"actual_seq_lengths {lengths[:8]} must not decrease: they are cumulative when layout is TND"
        if lengths[-1] != a.tokens:
            return f"the last of actual_seq_lengths is {lengths[-1]}, query has T {a.tokens}"
    elif lengths and a.rows > 1:
        if len(lengths) != 1 and len(lengths) < a.batch:
            return f"actual_seq_lengths has {len(lengths)} entries, 1 or at least {a.batch} are expected"
        if max(lengths[:a.batch]) > a.rows:
            return f"actual_seq_lengths {max(lengths)} is above the query's S {a.rows}"
    return None


def _kv_lengths(a: SimpleNamespace) -> str | None:
    lengths = a.actual_seq_lengths_kv
    if lengths is None or not lengths:
        if a.paged or a.packed:
            return "actual_seq_lengths_kv must be given with block_table, and when layout is TND"
        return None
    if min(lengths) < 0:
        return f"actual_seq_lengths_kv {min(lengths)} is negative"
    if len(lengths) < a.batch and ((a.packed and not a.paged) or len(lengths) != 1):
        return (f"the key/value's actual sequence lengths shape size is {len(lengths)}, it should be bigger or equal to "
                f"batch size({a.batch}) or equal to 1")
    if not a.paged and a.packed:
        total = a.k.shape[1 if a.layout == "NTD" else 0]
        if any(y < x for x, y in zip([0, *lengths], lengths)):
            return f"actual_seq_lengths_kv {lengths[:8]} must not decrease: without block_table they are cumulative in TND"
        if lengths[-1] != total:
            return f"the last of actual_seq_lengths_kv is {lengths[-1]}, key has T {total}"
    if not a.paged and not a.packed and max(lengths) > a.k.shape[2 if a.layout == "BNSD" else 1]:
        return f"actual_seq_lengths_kv {max(lengths)} is above the key's S"
    return None


def _block_table(a: SimpleNamespace) -> str | None:
    if not a.paged:
        return None
    table = a.block_table
    if table.dtype != torch.int32 or table.dim() != 2:
        return f"block_table is {table.dtype} of {table.dim()} dimensions, int32 of 2 is expected"
    if table.shape[0] != a.batch:
        return f"block_table has {table.shape[0]} rows, the batch is {a.batch}"
    if a.block_size and table.shape[1] * a.block_size < max(a.actual_seq_lengths_kv[:a.batch]):
        return (f"block_table has {table.shape[1]} columns of {a.block_size} tokens, actual_seq_lengths_kv goes to "
                f"{max(a.actual_seq_lengths_kv[:a.batch])}")
    return None


def _block_size(a: SimpleNamespace) -> str | None:
    if not a.paged:
        return None
    size = a.block_size
    if size <= 0 or size % 16:
        return f"block_size {size} should aligned to 16"
    if a.packed or a.latent:
        return f"block_size {size} must be at most 1024" if size > 1024 else None
    if size > 512:
        return f"block_size {size} must be at most 512"
    return f"block_size {size} must be a multiple of 128 from 128 to 512 when Q_S > 1" if a.rows > 1 and size % 128 else None


def _cache(a: SimpleNamespace) -> str | None:
    if not a.paged:
        return None
    if a.k.shape[0] != a.v.shape[0]:
        return f"key has {a.k.shape[0]} blocks, value {a.v.shape[0]}: as many of each are expected"
    for name, x in (("key", a.k), ("value", a.v)):
        shape = tuple(x.shape)
        if x.dim() == 3:
            if shape[1] != a.block_size or shape[2] % a.kv_heads:
                return f"{name} {shape} as (blocknum, blocksize, H): block_size is {a.block_size}, heads {a.kv_heads}"
            if shape[2] > 65535:
                return f"{name} {shape}: KV_N * D must be at most 65535 in the layout (blocknum, blocksize, H)"
        elif x.dim() == 4:
            if shape[1] != a.kv_heads or shape[2] != a.block_size:
                return f"{name} {shape} as (blocknum, KV_N, blocksize, D): KV_N is {a.kv_heads}, block_size {a.block_size}"
            if a.layout in ("BSH", "BSND") and not a.latent and not a.soc.startswith("Ascend950"):
                return f"{name} {shape}: layout {a.input_layout} takes only (blocknum, blocksize, H)"
            if a.packed and not a.latent and a.num_heads == a.kv_heads:
                return f"{name} {shape}: TND with as many KV heads as heads takes only (blocknum, blocksize, H)"
        elif x.dim() != 5 or shape[1] != a.kv_heads or shape[3:] != (a.block_size, 16):
            return f"{name} {shape} as (blockNum, KV_N, D/16, blockSize, 16): KV_N is {a.kv_heads}, block_size {a.block_size}"
    return None


def _mask(a: SimpleNamespace) -> str | None:
    mode, mask = a.sparse_mode, a.atten_mask
    alone = not a.packed and a.rows == 1 and a.query_rope is None
    if mode in (2, 3, 4):
        if alone:
            return None  # sparse_mode has no effect
        if mask is None or tuple(mask.shape) not in ((2048, 2048), (1, 2048, 2048), (1, 1, 2048, 2048)):
            return (f"sparse_mode {mode} needs atten_mask of (2048, 2048), (1, 2048, 2048) or (1, 1, 2048, 2048), it is "
                    f"{None if mask is None else tuple(mask.shape)}")
        return None
    if mask is None:
        return "sparse_mode 1 needs atten_mask" if mode == 1 else None
    shape = tuple(mask.shape)
    if mask.dim() == 2 and (a.packed or a.query_rope is not None or a.soc.startswith("Ascend950")):
        return f"atten_mask {shape} of 2 dimensions is not supported with layout {a.input_layout}, rope or {a.soc}"
    keys = a.block_table.shape[1] * a.block_size if a.paged else max(a.actual_seq_lengths_kv or [0])
    if shape[-1] < keys:
        return f"atten_mask {shape}: the last dimension must be at least {keys}"
    longest = max((y - x for x, y in zip([0, *a.actual_seq_lengths], a.actual_seq_lengths)), default=0) if a.packed else a.rows
    if mask.dim() == 2 and alone:
        return f"atten_mask {shape}: (B, KV_S) is expected with Q_S 1 and B {a.batch}" if shape[0] != a.batch else None
    if shape[-2] < longest or mask.dim() > 4 or (mask.dim() == 4 and shape[1] != 1) or (mask.dim() > 2 and shape[0] not in (1, a.batch)):
        return f"atten_mask {shape}: (1, Q_S, KV_S), (B, 1, Q_S, KV_S) or (1, 1, Q_S, KV_S) is expected, Q_S {longest}"
    return None


def _sink(a: SimpleNamespace) -> str | None:
    sink = getattr(a, "learnable_sink", None)
    if sink is None:
        return None
    dtype = a.query.dtype if a.operator.endswith("V5") else torch.bfloat16
    if sink.dtype != dtype or tuple(sink.shape) != (a.num_heads,):
        return f"learnable_sink is {sink.dtype} {tuple(sink.shape)}, {dtype} ({a.num_heads},) is expected"
    if a.input_layout not in ("TND", "NTD_TND"):
        return f"learnable_sink with layout {a.input_layout}: TND or NTD_TND is expected"
    return f"learnable_sink with valueD({a.v_dim}): at most 128" if a.v_dim > 128 or a.latent else None


def _contiguous(a: SimpleNamespace) -> str | None:
    named = {"query": a.query, "key": a.key[0], "value": a.value[0], "atten_mask": a.atten_mask,
             "query_rope": a.query_rope, "key_rope": a.key_rope}
    for name, x in named.items():
        # MLA's key and rope caches may be two parts of one buffer: apart in the first dimension only.
        inner = x[0] if x is not None and name in ("key", "value", "key_rope") and a.query_rope is not None and x.shape[0] else x
        if x is not None and not inner.is_contiguous():
            return f"{name}, shape {tuple(x.shape)} and stride {x.stride()}, is not contiguous"
    return None


BEFORE = (
    Rule(TILING, _soc, "V1, V2, product table; 'Ascend310P is not supported': TILING; V5 alone on 950: op-plugin source"),
    Rule(PARAM_INVALID, _if(lambda a: LAYOUTS.get(a.input_layout) != a.query.dim(), lambda a:
                            f"input_layout {a.input_layout} with a query of {a.query.dim()} dimensions"), "V1, input_layout"),
    Rule(PARAM_INVALID, _if(lambda a: len({a.query.dtype, a.key[0].dtype, a.value[0].dtype}) > 1 or a.query.dtype not in FLOATS,
                            lambda a: f"query {a.query.dtype}, key {a.key[0].dtype}, value {a.value[0].dtype}: one of "
                                      "float16 and bfloat16 is expected for all"), "V1, query, key, value (not quantised)"),
    Rule(PARAM_INVALID, _if(lambda a: a.atten_mask is not None and a.atten_mask.dtype not in MASKS, lambda a:
                            f"atten_mask is {a.atten_mask.dtype}: bool, int8 or uint8 is expected"), "V1, atten_mask"),
    Rule(PARAM_INVALID, _contiguous, "V1: no non-contiguous tensors; the first dimension of MLA's caches: TILING"),
    Rule(TILING, _if(lambda a: a.sparse_mode not in (0, 1, 2, 3, 4), lambda a:
                     f"sparse_mode {a.sparse_mode}: 0 to 4 are supported"), "V1, sparse_mode"),
    Rule(TILING, _if(lambda a: a.num_heads <= 0 or a.num_heads > 256 or a.num_heads % (a.num_key_value_heads or a.num_heads),
                     lambda a: f"num_heads {a.num_heads} must be at most 256 and a multiple of num_key_value_heads "
                               f"{a.num_key_value_heads}"), "V1, axes and num_key_value_heads"),
    Rule(TILING, _if(lambda a: a.num_heads // (a.num_key_value_heads or a.num_heads) > 64 and not a.operator.endswith("V5"),
                     lambda a: f"num_heads {a.num_heads} is more than 64 times num_key_value_heads {a.num_key_value_heads}"),
         "V1, num_key_value_heads"),
)
RULES = (
    Rule(TILING, _if(lambda a: a.num_heads != (a.query.shape[0] if a.layout == "NTD" else a.query.shape[1] if a.layout in ("TND", "BNSD") else
                                               a.query.shape[2] if a.layout == "BSND" else a.num_heads), lambda a:
                     f"num_heads is {a.num_heads}, query is {tuple(a.query.shape)} in {a.input_layout}"), "V1, num_heads"),
    Rule(PARAM_INVALID, _query_lengths, "V1, actual_seq_lengths and TND; the last is T: TILING"),
    Rule(TILING, _kv_lengths, "V1, actual_seq_lengths_kv and PageAttention; text: #8107, 561002"),
    Rule(TILING, _dims, "V1, V2, TND and MLA (V2: V_D 192 neither with GQA nor with PA); text: #8045; 64: #9632 and TILING"),
    Rule(TILING, _rope, "V1, MLA: rope's D is 64, the other dimensions as query's and key's"),
    Rule(TILING, _latent, "V1, V2, MLA, D = 512"),
    Rule(TILING, _if(lambda a: a.latent and a.softmax_lse_flag and a.operator.endswith("V3"), lambda a:
                     "softmax_lse_flag is not supported with queryD 512"), "V1, MLA, D = 512; V2 has no such rule"),
    Rule(TILING, _if(lambda a: a.input_layout == "TND_NTD" and not a.latent, lambda a:
                     "input_layout TND_NTD is for queryD 512"), "V1, TND"),
    Rule(TILING, _block_size, "V1, PageAttention, TND (16, at most 1024) and MLA; text: sglang#25169, 561002"),
    Rule(PARAM_INVALID, _block_table, "V1, PageAttention; as many rows as B: V2, TILING; fewer: #8523, #8512"),
    Rule(TILING, _cache, "V1, V2, PageAttention and TND; as many blocks of key and value: TILING"),
    Rule(TILING, _mask, "V1, V2, atten_mask and sparse_mode; 2-D on 950: TILING"),
    Rule(PARAM_INVALID, _sink, "V2, learnable_sink"),
    Rule(TILING, _if(lambda a: not 0 <= a.inner_precise <= 3, lambda a: f"inner_precise {a.inner_precise}: 0 to 3"), "V1, inner_precise"),
)
