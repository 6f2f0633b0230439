"""The aclnn operators that are answered, with their arguments in order: what op-plugin passes to EXEC_NPU_CMD.

T tensor, L tensor list, S scalar, A int array, B bool array, i int64, b bool, d double, f float, s text, e a dtype or
an int8 enum. Source: op_plugin/ops/opapi/*.cpp of Ascend/op-plugin; the C functions' own headers come with CANN.
"""

from __future__ import annotations

_OPERANDS = "self:T other:T"
_UNARY = ("Abs BitwiseNot Ceil Cos Erf Exp Floor IsFinite IsInf IsNegInf IsPosInf Isfinite Log Log1p "
          "LogicalNot Neg Reciprocal Relu Round Rsqrt Sigmoid Sign Silu Sin Sqrt Tanh Trunc")
_INPLACE_UNARY = "Exp Log Neg Sqrt Rsqrt Sigmoid Tanh Reciprocal Relu Cos Sin Abs Round Floor Ceil"
_BINARY = ("Mul Div FloorDivide Maximum Minimum EqTensor NeTensor LtTensor LeTensor GtTensor GeTensor LogicalAnd "
           "LogicalOr LogicalXor BitwiseAndTensor BitwiseOrTensor BitwiseXorTensor PowTensorTensor "
           "RemainderTensorTensor FmodTensor Atan2 LogAddExp")
_BINARY_SCALAR = ("Muls Divs FloorDivides EqScalar NeScalar LtScalar LeScalar GtScalar GeScalar BitwiseAndScalar "
                  "BitwiseOrScalar BitwiseXorScalar PowTensorScalar RemainderTensorScalar FmodScalar LeftShifts")

_FIA_HEAD = ("query:T key:L value:L pse_shift:T atten_mask:T actual_seq_lengths:A actual_seq_lengths_kv:A "
             "dequant_scale1:T quant_scale1:T dequant_scale2:T quant_scale2:T quant_offset2:T antiquant_scale:T "
             "antiquant_offset:T block_table:T query_padding_size:T kv_padding_size:T key_antiquant_scale:T "
             "key_antiquant_offset:T value_antiquant_scale:T value_antiquant_offset:T key_shared_prefix:T "
             "value_shared_prefix:T actual_shared_prefix_len:A query_rope:T key_rope:T key_rope_antiquant_scale:T ")
_FIA_TAIL = ("num_heads:i scale:d pre_tokens:i next_tokens:i input_layout:s num_key_value_heads:i sparse_mode:i "
             "inner_precise:i block_size:i antiquant_mode:i softmax_lse_flag:b key_antiquant_mode:i "
             "value_antiquant_mode:i ")
_FIA_OUT = "out:T lse:T"

_ATTENTION = {
    "FusedInferAttentionScoreV3": _FIA_HEAD + _FIA_TAIL + _FIA_OUT,
    "FusedInferAttentionScoreV4": (_FIA_HEAD + "dequant_scale_query:T learnable_sink:T " + _FIA_TAIL
                                   + "query_quant_mode:i " + _FIA_OUT),
    "FusedInferAttentionScoreV5": (_FIA_HEAD + "dequant_scale_query:T learnable_sink:T q_start_idx:A kv_start_idx:A "
                                   + _FIA_TAIL + "query_quant_mode:i pse_type:i " + _FIA_OUT),
    "ScatterPaKvCache": ("key:T key_cache:T slot_mapping:T value:T value_cache:T compress_lens:T "
                         "compress_seq_offsets:T seq_lens:T cache_mode:s scatter_mode:s strides:A offsets:A"),
    "GatherPaKvCache": ("key_cache:T value_cache:T block_tables:T seq_lens:T key:T value:T seq_offset:T cache_mode:s "
                        "is_seq_lens_cumsum:b"),
    "FlashAttentionScore": ("query:T key:T value:T pse:T drop_mask:T padding_mask:T atten_mask:T prefix:A scale:d "
                            "keep_prob:d pre_tokens:i next_tokens:i head_num:i input_layout:s inner_precise:i "
                            "sparse_mode:i softmax_max:T softmax_sum:T softmax_out:T out:T"),
    "AttentionUpdate": "lse:L local_out:L update_type:i out:T lse_out:T",
}

_TORCH = {
    **{name: "self:T out:T" for name in _UNARY.split()},
    **{f"Inplace{name}": "self:T" for name in _INPLACE_UNARY.split()},
    **{name: f"{_OPERANDS} out:T" for name in _BINARY.split()},
    **{f"Inplace{name}": _OPERANDS for name in _BINARY.split()},
    **{name: "self:T other:S out:T" for name in _BINARY_SCALAR.split()},
    **{f"Inplace{name}": "self:T other:S" for name in _BINARY_SCALAR.split()},
    "Add": f"{_OPERANDS} alpha:S out:T", "Adds": "self:T other:S alpha:S out:T",
    "InplaceAdd": f"{_OPERANDS} alpha:S", "InplaceAdds": "self:T other:S alpha:S",
    "Sub": f"{_OPERANDS} alpha:S out:T", "Subs": "self:T other:S alpha:S out:T",
    "InplaceSub": f"{_OPERANDS} alpha:S", "InplaceSubs": "self:T other:S alpha:S",
    "Rsub": f"{_OPERANDS} alpha:S out:T", "Rsubs": "self:T other:S alpha:S out:T",
    "RemainderScalarTensor": "self:S other:T out:T", "PowScalarTensor": "self:S other:T out:T",
    "DivMod": f"{_OPERANDS} mode:i out:T", "DivMods": "self:T other:S mode:i out:T",
    "InplaceDivMod": f"{_OPERANDS} mode:i", "InplaceDivMods": "self:T other:S mode:i",
    "InplaceCopy": "self:T source:T", "Cast": "self:T dtype:e out:T",
    "InplaceZero": "self:T", "InplaceOne": "self:T",
    "InplaceFillScalar": "self:T value:S", "InplaceFillTensor": "self:T value:T",
    "Arange": "start:S end:S step:S out:T", "Cat": "tensors:L dim:i out:T", "Stack": "tensors:L dim:i out:T",
    "Cumsum": "self:T dim:i dtype:e out:T",
    "Index": "self:T indices:L out:T", "IndexPutImpl": "self:T indices:L values:T accumulate:b unsafe:b",
    "IndexSelect": "self:T dim:i index:T out:T", "Gather": "self:T dim:i index:T out:T",
    "Embedding": "weight:T indices:T out:T",
    "InplaceMaskedFillScalar": "self:T mask:T value:S", "InplaceMaskedFillTensor": "self:T mask:T value:T",
    "SWhere": "condition:T self:T other:T out:T", "MaskedSelect": "self:T mask:T out:T", "Nonzero": "self:T out:T",
    "NonzeroV2": "self:T out:T",
    "ScatterNdUpdate": "self:T indices:T updates:T", "InplaceScatter": "self:T dim:i index:T source:T reduction:i",
    "InplaceScatterValue": "self:T dim:i index:T value:S reduction:i",
    "ReduceSum": "self:T dims:A keepdim:b dtype:e out:T", "Mean": "self:T dims:A keepdim:b dtype:e out:T",
    "Max": "self:T out:T", "Min": "self:T out:T", "Amax": "self:T dims:A keepdim:b out:T",
    "Amin": "self:T dims:A keepdim:b out:T", "All": "self:T dims:A keepdim:b out:T",
    "Any": "self:T dims:A keepdim:b out:T", "MaxDim": "self:T dim:i keepdim:b out:T indices:T",
    "MinDim": "self:T dim:i keepdim:b out:T indices:T", "ArgMax": "self:T dim:i keepdim:b out:T",
    "ArgMin": "self:T dim:i keepdim:b out:T", "Equal": f"{_OPERANDS} out:T",
    "Sort": "self:T stable:b dim:i descending:b out:T indices:T",
    "Topk": "self:T k:i dim:i largest:b sorted:b out:T indices:T",
    "RepeatInterleaveInt": "self:T repeats:i size:i out:T",
    "RepeatInterleaveIntWithDim": "self:T repeats:i dim:i size:i out:T",
    "RepeatInterleave": "self:T repeats:T size:i out:T",
    "RepeatInterleaveWithDim": "self:T repeats:T dim:i size:i out:T",
    "RepeatInterleaveTensor": "repeats:T size:i out:T",
    "Repeat": "self:T repeats:A out:T", "Flip": "self:T dims:A out:T", "Eye": "n:i m:i out:T",
    "Tril": "self:T diagonal:i out:T", "Triu": "self:T diagonal:i out:T",
    "InplaceTril": "self:T diagonal:i", "InplaceTriu": "self:T diagonal:i",
    "ConstantPadNd": "self:T pad:A value:S out:T", "SplitWithSize": "self:T sizes:A dim:i out:L",
    "Matmul": f"{_OPERANDS} out:T precision:e", "Mm": f"{_OPERANDS} out:T precision:e",
    "BatchMatMul": f"{_OPERANDS} out:T precision:e", "Mv": f"{_OPERANDS} out:T precision:e",
    "Addmm": "self:T mat1:T mat2:T beta:S alpha:S out:T precision:e",
    "Softmax": "self:T dim:i out:T", "LogSoftmax": "self:T dim:i out:T", "LogSumExp": "self:T dims:A keepdim:b out:T",
    "Clamp": "self:T min:S max:S out:T", "ClampMin": "self:T min:S out:T", "ClampMax": "self:T max:S out:T",
    "NanToNum": "self:T nan:f posinf:f neginf:f out:T", "InplaceNanToNum": "self:T nan:f posinf:f neginf:f",
    "InplaceNormal": "self:T mean:f std:f seed:i offset:i", "InplaceUniform": "self:T low:d high:d seed:i offset:i",
    "InplaceRandom": "self:T low:i high:i seed:i offset:i", "Randperm": "n:i seed:i offset:i out:T",
    "InplaceIndexCopy": "self:T dim:i index:T source:T", "IndexAdd": "self:T dim:i index:T source:T alpha:S out:T",
    "IsClose": "self:T other:T rtol:d atol:d equal_nan:b out:T", "Roll": "self:T shifts:A dims:A out:T",
    "SearchSorted": "sequence:T self:T out_int32:b right:b sorter:T out:T",
    "Bincount": "self:T weights:T minlength:i out:T", "Linspace": "start:S end:S steps:i out:T",
}

SIGNATURES: dict[str, tuple[tuple[str, str], ...]] = {
    f"aclnn{name}": tuple((part.partition(":")[0], part.partition(":")[2]) for part in text.split())
    for name, text in (_ATTENTION | _TORCH).items()
}


def letters(name: str) -> str:
    return "".join(kind for _, kind in SIGNATURES[name])
