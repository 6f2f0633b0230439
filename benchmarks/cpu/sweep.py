"""What is measured, as data: every case of the sweep, in the order it is run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from hal.bench.limits import BYTES
from hal.bench.shapes import Shape
from hal.config import AttentionConfig, MLADims

GROUPS = ("decode", "prefill", "extend", "mla", "write")
HEADS = {"GQA 32/8": (32, 8), "MHA 32/32": (32, 32), "MLA 16": (16, 1), "MLA 128": (128, 1)}
HEAD_DIM = 128
DTYPES = ("bfloat16", "float16", "float32")
MIB, GIB = 1 << 20, 1 << 30
NAIVE_BYTES = 32 * MIB  # of K and V, beyond which the naive loop would take most of a run
NAIVE_PAIRS = 2048 * 2048
COLD_BYTES = 256 * MIB


@dataclass(frozen=True)
class Case:
    """One cell: `batch` sequences of `seqlen` keys; for write, batch * seqlen tokens. chunk: query tokens of extend."""

    group: str
    heads: str
    dtype: str
    page_size: int
    batch: int
    seqlen: int
    threads: int
    chunk: int = 0
    flex: bool = False

    @property
    def key(self) -> str:
        chunk = f" chunk {self.chunk}" if self.chunk else ""
        return (f"{self.group} {self.batch}x{self.seqlen}{chunk} {self.heads} {self.dtype} page {self.page_size} "
                f"threads {self.threads}")

    def but(self, **changes: Any) -> str:
        """The key of the same case with some fields changed."""
        return Case(**{**asdict(self), **changes}).key

    @property
    def shape(self) -> Shape:
        phase = "decode" if self.group == "mla" else self.group
        return Shape(phase, self.batch, self.seqlen, self.chunk or 1)

    @property
    def config(self) -> AttentionConfig:
        heads, kv_heads = HEADS[self.heads]
        if self.group == "mla":
            mla = MLADims()
            return AttentionConfig(num_heads=heads, mla=mla, dtype=self.dtype, page_size=self.page_size,
                                   softmax_scale=(mla.qk_nope_head_dim + mla.qk_rope_head_dim) ** -0.5)
        return AttentionConfig(num_heads=heads, num_kv_heads=kv_heads, head_dim=HEAD_DIM, dtype=self.dtype,
                               page_size=self.page_size)

    @property
    def kv_bytes(self) -> int:
        """Of K and V of one call."""
        config = self.config
        width = config.mla.head_dim if isinstance(config.mla, MLADims) else 2 * config.num_kv_heads * HEAD_DIM
        return self.batch * self.seqlen * width * BYTES[self.dtype]

    @property
    def peers(self) -> list[str]:
        """Who runs beside HAL; the naive loop and SDPA where they do not take all the time and memory."""
        if self.group == "mla":
            return ["mla_torch", "sglang", "sdpa", "stream"]
        decode = self.group == "decode"
        pairs = self.batch * self.seqlen * (self.chunk or self.seqlen)
        small = self.kv_bytes <= NAIVE_BYTES if decode else pairs <= NAIVE_PAIRS
        return ["vllm", "vllm_vec", "sglang", "stream" if decode else "matmul", *["naive"] * small,
                *["sdpa"] * (self.kv_bytes <= 256 * MIB), *["flex"] * self.flex]

    @property
    def memory(self) -> int:
        """About how many bytes the cell takes: the copies that calls rotate over, once for each layout, and the
        oracle's and the gathering contenders' temporaries."""
        copies = max(1, min(64, COLD_BYTES // max(1, self.kv_bytes)))
        layouts = 1 + len({"vllm", "vllm_vec", "stream", "sdpa", "sglang"} & set(self.peers)
                          - ({"sglang"} if self.group != "mla" else set()))
        return copies * self.kv_bytes * layouts + self.kv_bytes


def quick() -> list[Case]:
    """About five minutes on two cores: every goal has a cell."""
    gqa, mha = "GQA 32/8", "MHA 32/32"
    b, h, f = DTYPES

    def one(group: str, heads: str, dtype: str, batch: int, seqlen: int, threads: int = 1, page: int = 128,
            chunk: int = 0, flex: bool = False) -> Case:
        return Case(group, heads, dtype, page, batch, seqlen, threads, chunk, flex)

    return [
        one("decode", gqa, b, 1, 1024), one("decode", gqa, b, 4, 4096, flex=True), one("decode", gqa, b, 64, 128),
        one("decode", mha, b, 4, 1024), one("decode", gqa, b, 4, 1024, page=16), one("decode", gqa, f, 4, 1024),
        one("decode", mha, f, 1, 4096), one("decode", gqa, h, 4, 1024), one("decode", gqa, b, 4, 1024),
        one("decode", gqa, b, 1, 32768), one("decode", gqa, b, 1, 32768, 2),
        one("prefill", gqa, b, 1, 512), one("prefill", gqa, b, 1, 2048, flex=True), one("prefill", gqa, f, 1, 512),
        one("prefill", gqa, h, 1, 512), one("prefill", gqa, b, 1, 2048, 2),
        one("extend", gqa, b, 1, 4096, chunk=256), one("extend", gqa, f, 1, 4096, chunk=256),
        one("extend", gqa, h, 1, 4096, chunk=256),
        one("mla", "MLA 16", b, 4, 1024), one("mla", "MLA 128", b, 1, 4096),
        one("write", gqa, b, 64, 1), one("write", gqa, b, 1, 1024), one("write", gqa, b, 8, 1024),
        one("write", gqa, f, 8, 1024),
    ]


def full() -> list[Case]:
    """The whole sweep, the quick cells first, then the others shuffled (always alike): wherever a run is cut short,
    what was measured is a fair sample."""
    first = quick()
    seen = {case.key for case in first}
    rest = [case for case in _all() if case.key not in seen]
    return first + sorted(rest, key=lambda case: hashlib.sha256(case.key.encode()).digest())


def _all() -> Iterator[Case]:
    pair = ("GQA 32/8", "MHA 32/32")
    for heads, dtype, page, threads in product(pair, DTYPES, (16, 128), (1, 2)):
        for batch, seqlen in product((1, 4, 16, 64), (128, 1024, 4096, 32768)):
            yield Case("decode", heads, dtype, page, batch, seqlen, threads)
    for heads, dtype, threads in product(pair, DTYPES, (1, 2)):
        for batch, seqlen in ((1, 128), (1, 512), (4, 512), (1, 2048), *(((1, 4096),) if dtype == "bfloat16" else ())):
            yield Case("prefill", heads, dtype, 128, batch, seqlen, threads)
        for batch, seqlen, chunk in ((1, 4096, 256), (4, 2048, 256), (8, 1024, 64), (1, 32768, 128)):
            yield Case("extend", heads, dtype, 128, batch, seqlen, threads, chunk)
    for heads, dtype, page, threads in product(("MLA 16", "MLA 128"), ("bfloat16", "float32"), (16, 128), (1, 2)):
        for batch, seqlen in ((1, 1024), (4, 1024), (16, 1024), (1, 4096), (4, 4096), (1, 32768)):
            yield Case("mla", heads, dtype, page, batch, seqlen, threads)
    for heads, dtype, page, threads in product(pair, DTYPES, (16, 128), (1, 2)):
        for batch, seqlen in ((64, 1), (1, 1024), (8, 1024)):
            yield Case("write", heads, dtype, page, batch, seqlen, threads)
