"""What the attention ops of Ascend NPUs take: a row for each rule, with where it is from.

Declarations, selection's further reasons and the adapters read these rows and nothing else.

V1, V2: Ascend op-plugin 517f2e7d, documents of npu_fused_infer_attention_score and .._v2. TILING: CANN ops-transformer
a093e954, the checks of attention/fused_infer_attention_score/op_host. ATB: Ascend ATB ddcc8b62,
paged_attention_operation.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

FUSED = ("ascend910b", "ascend910c", "ascend950")  # NPUs that have the op
UNBOUNDED = 2**31 - 1  # pre_tokens and next_tokens: no bound (their default)


class Rule(NamedTuple):
    """limit: the values that are taken, or the most as one number. archs: where it holds; () is everywhere."""

    what: str
    limit: Any
    source: str
    archs: tuple[str, ...] = ()

    def breaks(self, value: Any) -> bool:
        return bool(value not in self.limit if isinstance(self.limit, tuple) else value > self.limit)

    def __str__(self) -> str:
        return ", ".join(map(str, self.limit)) if isinstance(self.limit, tuple) else f"up to {self.limit}"


RULES = {rule.what: rule for rule in (
    Rule("arch", FUSED, "V1, product table: Atlas A2 and A3; 950: op-plugin calls its V5 there; "
                        "TILING: \"Ascend310P is not supported\""),
    Rule("dtype", ("float16", "bfloat16"), "V1, query, key and value (not quantised)"),
    # Without rope, layout TND. V2 names 64 for as many KV heads as heads, TILING's text for all: "192/128/64".
    # V of 192: "not with GQA and PageAttention", so 192 goes with 128 alone.
    Rule("head_dim", (64, 128), "V2, TND and MHA; TILING; vllm-ascend#9632"),
    Rule("head_dim with head_dim_v", ((192, 128),), "V2, TND: K 192 and V 128"),
    # V2: multiples of 16 up to 1024 in TND. Sizes under 128 gave wrong numbers through other ops (sglang#38196).
    Rule("page_size", (128,), "V1, block_size: 128 is recommended; the only size of vllm-ascend 182b75ea"),
    Rule("num_heads", 256, "V2: N up to 256"),
    Rule("num_heads per KV head", 64, "V1, num_key_value_heads: A2 and A3", ("ascend910b", "ascend910c")),
    Rule("num_kv_heads * head_dim", 65535, "V1, PageAttention, layout (blocknum, blocksize, H)"),
    Rule("elements of the cache", 2**31 - 1, "V2, PageAttention: key and value within int32"),
    # Not refused: V1 and V2 want at least as many pages as all sequences' blocks together, but engines share prefixes,
    # and nothing counts them (TILING). "key and value of equal shape with PageAttention" (V2) goes against K 192 and V
    # 128 of the same page: TILING checks the last dimension of each by itself.
    Rule("keys of a sequence with one query", 262144, "V2, Q_S = 1: S up to 262144"),
    Rule("sequences", 4096, "V1, TND: entries of actual_seq_lengths"),
    Rule("query tokens of a decoded sequence", 16, "vllm-ascend 182b75ea asserts it for TND"),
    Rule("sinks with dtype", ("bfloat16",), "V2, learnable_sink; TILING: in V5 q's dtype",
         ("ascend910b", "ascend910c")),
    Rule("sinks with head_dim_v", 128, "V2, learnable_sink: D of value"),
    # Absorbed MLA, head_dim 512 beside 64.
    Rule("num_heads of absorbed MLA", (1, 2, 4, 8, 16, 32, 64, 128), "V1, V2, MLA with D 512"),
    Rule("dtype of MLA", ("bfloat16",), "vllm-ascend 182b75ea, mla_v1.py: TND with rope takes nothing else"),
    # Atlas inference products (310P): ops of ATB over a cache of 16-wide tiles.
    Rule("310P: arch", ("ascend310p",), "vllm-ascend 182b75ea, _310p/attention"),
    Rule("310P: dtype", ("float16",), "torch_npu, IsBF16Supported: SoC 220 and above"),
    Rule("310P: page_size", (128, 64), "vllm-ascend 182b75ea, _310p: get_supported_kernel_block_sizes"),
    Rule("310P: head_dim", 256, "ATB, 310P: headSize up to 256, multiples of 16"),
    Rule("310P: head_dim * page_size", 16384, "ATB, 310P: headSize * blockSize"),
)}

# Feature -> why the op has it not.
REFUSALS = {
    "softcap": "the op has no such argument and would ignore it",
    "attention_chunk": "none of its sparse modes knows chunks",
    "tree_mask": "sparse_mode 9 is for MLA on newer CANN alone",
    "mm_prefix": "none of its sparse modes knows prefixes",
}


def reasons(name: str, arch: str | None, seen: dict[str, Any]) -> Iterator[str]:
    """A sentence for each rule that a value breaks, with both sides. name: the backend's. seen: rule -> value."""
    for what, value in seen.items():
        rule = RULES[what]
        if (not rule.archs or arch in rule.archs) and rule.breaks(value):
            yield f"{what.removeprefix('310P: ')} {value} is not supported ({name}: {rule})"


def check(name: str, arch: str | None, what: str, value: Any) -> None:
    """Raise ValueError where a value breaks a rule."""
    for reason in reasons(name, arch, {what: value}):
        raise ValueError(reason)
