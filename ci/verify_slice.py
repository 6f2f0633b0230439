"""verify_slice.py --device KIND --json FILE: every backend that selection accepts here, against the oracle.

A small grid: ragged prefill, decode and extend over shuffled pages; plain, sliding window, softcap, sinks,
LSE. What a kernel must not read or leave unwritten is NaN. The record has the shape of `hal verify --json`,
with driver, commit, date and seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform as python_platform
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import hal
from hal import oracle, registry
from hal.host import Host
from hal.torch_import import load_torch

torch = load_torch()
NAN = float("nan")
HEADS = ((8, 2, 64), (4, 4, 128))
DTYPES = ("float16", "bfloat16")
# A softcap of 2 bends the scores of normal inputs; a real 30 or 50 would leave them as they are.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sliding_window": {"sliding_window": 9},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "return_softmax_lse": {"return_softmax_lse": True},
}
# Error allowed beside twice that of the same computation done eagerly in the same dtype.
FLOOR = {"float16": 5e-4, "bfloat16": 4e-3}
# (query lengths, key lengths) of the sequences of a batch.
PREFILL = ((5, 1, 37, 64), (5, 1, 37, 64))
EXTEND = ((3, 1, 0, 17, 2), (3, 40, 9, 130, 70))
DECODE = ((1, 1, 1, 1, 1), (1, 16, 0, 33, 150))


class Case:
    """Inputs on the host, shared by the oracle and the backend; `kv` has each sequence's keys and values."""

    def __init__(
        self, config: hal.AttentionConfig, lengths: tuple[tuple[int, ...], tuple[int, ...]], seed: int
    ) -> None:
        self.config, (self.len_q, self.len_k) = config, lengths
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, config.dtype)

        def normal(tokens: int, heads: int) -> Any:
            return torch.randn(tokens, heads, config.head_dim, generator=generator).to(dtype)

        self.q = normal(sum(self.len_q), config.num_heads)
        self.kv = [(normal(n, config.num_kv_heads), normal(n, config.num_kv_heads)) for n in self.len_k]
        self.cu_q, self.cu_k = (
            torch.tensor([sum(lens[:i]) for i in range(len(lens) + 1)], dtype=torch.int32) for lens in lengths
        )
        window = (-1, -1) if config.sliding_window is None else (config.sliding_window - 1, 0)
        self.options: dict[str, Any] = {"causal": True, "window_size": window, "softcap": config.softcap}
        if config.sinks:
            self.options["sinks"] = torch.randn(config.num_heads, generator=generator).to(dtype)
        if config.return_softmax_lse:
            self.options["return_softmax_lse"] = True

    def expected(self) -> tuple[Any, Any]:
        k, v = (torch.cat([pair[i] for pair in self.kv]) for i in (0, 1))
        options = {**self.options, "return_softmax_lse": True}
        return oracle.flash_attn_varlen_func(
            self.q, k, v, self.cu_q, self.cu_k, max(self.len_q), max(self.len_k), **options
        )

    def eager(self) -> Any:
        """The same computation step by step in the config's dtype: the yardstick of the error."""
        out = torch.zeros_like(self.q)
        for b, (k, v) in enumerate(self.kv):
            rows = slice(int(self.cu_q[b]), int(self.cu_q[b + 1]))
            group = self.config.num_heads // self.config.num_kv_heads
            q, k, v = (
                x.transpose(0, 1) for x in (self.q[rows], *(x.repeat_interleave(group, 1) for x in (k, v)))
            )
            p = torch.arange(q.shape[1]) + k.shape[1] - q.shape[1]
            seen = oracle.visible(
                p, torch.arange(k.shape[1]), k.shape[1], True, self.options["window_size"], 0
            )
            s = q @ k.transpose(1, 2) * self.config.head_dim**-0.5
            if self.config.softcap:
                s = self.config.softcap * torch.tanh(s / self.config.softcap)
            s = s.masked_fill(~seen, -torch.inf)
            if self.config.sinks:
                s = torch.cat([s, self.options["sinks"][:, None, None].expand(-1, q.shape[1], 1)], dim=2)
            weight = torch.softmax(s.float(), -1).to(self.q.dtype)[:, :, : k.shape[1]]
            out[rows] = (weight @ v).transpose(0, 1).nan_to_num()
        return out

    def paged(self, attn: Any, device: str, seed: int, tail_is_nan: bool) -> dict[str, Any]:
        """The caches and their arguments: pages shuffled, those in no table NaN, written through the impl."""
        size = attn.decision.page_size
        counts = [-(-n // size) for n in self.len_k]
        num_pages, width = sum(counts) + 3, max(counts) + 1
        pages = list(range(num_pages))
        random.Random(seed).shuffle(pages)
        poisoned = pages[sum(counts) :]
        table = torch.tensor(
            [
                [pages[sum(counts[:b]) + i] if i < n else poisoned[0] for i in range(width)]
                for b, n in enumerate(counts)
            ],
            dtype=torch.int32,
        )
        k_cache, v_cache = attn.new_kv_cache(num_pages)
        for cache in (k_cache, v_cache):
            if tail_is_nan:
                cache.fill_(NAN)
            cache[torch.tensor(poisoned, device=device)] = NAN
        slots = [
            int(table[b, t // size]) * size + t % size for b, n in enumerate(self.len_k) for t in range(n)
        ]
        k, v = (torch.cat([pair[i] for pair in self.kv]).to(device) for i in (0, 1))
        # A padding token, which must not be written anywhere.
        padding = torch.full_like(k[:1], NAN)
        attn.write_kv_cache(
            torch.cat([k, padding]),
            torch.cat([v, padding]),
            k_cache,
            v_cache,
            torch.tensor([*slots, -1], dtype=torch.int64, device=device),
        )
        return {
            "k_cache": k_cache,
            "v_cache": v_cache,
            "page_table": table.to(device),
            "cache_seqlens": torch.tensor(self.len_k, dtype=torch.int32, device=device),
        }


def call(attn: Any, case: Case, phase: str, seed: int, tail_is_nan: bool) -> Any:
    device = attn.platform.torch_device
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.options.items()}
    q, cu_q = case.q.to(device), case.cu_q.to(device)
    arguments = {} if phase == "prefill" else case.paged(attn, device, seed, tail_is_nan)
    # What the kernel will get from the allocator is likely this memory: a row it does not write shows.
    poison = [torch.full_like(q, NAN) for _ in range(4)]
    del poison
    if phase == "prefill":
        k, v = (torch.cat([pair[i] for pair in case.kv]).to(device) for i in (0, 1))
        return attn.flash_attn_varlen_func(
            q, k, v, cu_q, case.cu_k.to(device), max(case.len_q), max(case.len_k), **options
        )
    if phase == "decode":
        result = attn.flash_attn_with_kvcache(q[:, None], **arguments, **options)
        if case.config.return_softmax_lse:
            return result[0][:, 0], result[1][:, :, 0].transpose(0, 1)
        return result[:, 0]
    return attn.prefill.flash_attn_with_kvcache(
        q, **arguments, cu_seqlens_q=cu_q, max_seqlen_q=max(case.len_q), **options
    )


def check(attn: Any, case: Case, phase: str, seed: int, tail_is_nan: bool) -> tuple[bool, str]:
    """Passed or not, and the errors that say so."""
    result = call(attn, case, phase, seed, tail_is_nan)
    want_lse = case.config.return_softmax_lse
    if isinstance(result, tuple) != want_lse or (want_lse and len(result) != 2):
        return (
            False,
            f"returned {type(result).__name__}, asked for {'(out, lse)' if want_lse else 'a tensor'}",
        )
    out, lse = result if want_lse else (result, None)
    wanted, wanted_lse = case.expected()
    out = out.cpu()
    if out.shape != case.q.shape or out.dtype != case.q.dtype:
        return False, f"out is {out.dtype} {tuple(out.shape)}, expected {case.q.dtype} {tuple(case.q.shape)}"
    error, eager_error = (out.double() - wanted).abs(), (case.eager().double() - wanted).abs()
    worst, allowed_there, good = 0.0, 0.0, True
    for b in range(len(case.len_q)):
        for head in range(case.config.num_heads):
            here = (slice(int(case.cu_q[b]), int(case.cu_q[b + 1])), head)
            if not case.len_q[b]:
                continue
            seen = float(error[here].max())
            allowed = 2 * float(eager_error[here].max()) + FLOOR[case.config.dtype]
            # NaN compares false, so it fails, and stays the error that is shown.
            within = seen <= allowed
            if good and (not within or seen >= worst):
                worst, allowed_there = seen, allowed
            good = good and within
    text = f"error {worst:.2e}, allowed {allowed_there:.2e}"
    if lse is not None:
        difference = lse.cpu().double() - wanted_lse
        lse_error = float(torch.where(lse.cpu().double() == wanted_lse, 0.0, difference).abs().max())
        good = good and lse.dtype == torch.float32 and lse.shape == wanted_lse.shape and lse_error <= 2e-3
        text += f"; lse error {lse_error:.2e}, allowed 2.00e-03"
    return good, text


def grid(device: str, seed: int) -> dict[str, Any]:
    """backend -> its cases, over everything selection says of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for dtype in DTYPES:
        for heads, kv_heads, head_dim in HEADS:
            for feature, fields in FEATURES.items():
                config = hal.AttentionConfig(
                    num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, **fields
                )
                decision = hal.explain(config, device)
                candidates = {
                    phase.phase: {c.backend: c for c in phase.candidates}
                    for phase in (decision.prefill, decision.decode)
                }
                for name in candidates["decode"]:
                    backend = registry.get(name)
                    if device.partition(":")[0] not in backend.platforms or not backend.adapter:
                        continue
                    for phase, lengths in (("prefill", PREFILL), ("extend", EXTEND), ("decode", DECODE)):
                        label = f"{phase} {dtype} {heads}/{kv_heads}x{head_dim} {feature}"
                        role = "decode" if phase == "decode" else "prefill"
                        row = {"case": label, "feature": feature}
                        found.setdefault(name, []).append(row)
                        candidate = candidates[role][name]
                        if not candidate.accepted:
                            row |= {"result": "refused", "why": "; ".join(candidate.reasons)}
                            continue
                        if phase == "extend" and not backend.reads_cache:
                            row |= {"result": "refused", "why": f"{name} never reads the cache"}
                            continue
                        try:
                            attn = hal.get_attention_impl(config, device, **{f"{role}_backend": name})
                            good, why = check(
                                attn, Case(config, lengths, seed), phase, seed, backend.nan_safe_tail
                            )
                        except Exception as error:  # noqa: BLE001 - selection accepted it: any exception is a failure
                            good, why = False, f"{type(error).__name__}: {error}"
                        row |= {"result": "passed" if good else "failed", "why": why}
                        print(f"{row['result']}: {name}: {label}: {why}", flush=True)
    return {name: summary(rows) for name, rows in found.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def count(feature: str | None) -> dict[str, int]:
        counts = Counter(row["result"] for row in rows if feature in (None, row["feature"]))
        return {result: counts[result] for result in ("passed", "failed", "refused")}

    return {**count(None), "by_feature": {feature: count(feature) for feature in FEATURES}, "cases": rows}


def versions() -> dict[str, str]:
    names = {"torch", "torch_npu", "torch_musa", "triton"}
    names |= {package.distribution for name in registry.names() for package in registry.get(name).packages}
    host = Host()
    found = {name: host.version(name) for name in sorted(names)}
    return {
        "attention-hal": hal.__version__,
        "python": python_platform.python_version(),
        **{name: version for name, version in found.items() if version},
    }


def commit() -> str:
    """The commit that was verified, with "+changes" when the checkout is not exactly it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "not a git checkout"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True, help="cuda, rocm, npu, musa, cpu, or with an index")
    parser.add_argument("--json", required=True, type=Path, help="where the record goes")
    parser.add_argument("--driver", default="", help="what the vendor's tool says about the driver")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    device = hal.detect(asked.device)
    backends = grid(asked.device, asked.seed)
    record = {
        "platform": device.to_dict(),
        "driver": asked.driver,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "seed": asked.seed,
        "command": "ci/verify_slice.py",
        "backends": backends,
    }
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(record, indent=1) + "\n")
    for name, result in backends.items():
        print(f"{name}: {result['passed']} passed, {result['failed']} failed, {result['refused']} refused")
    total = Counter()
    for result in backends.values():
        total.update({key: result[key] for key in ("passed", "failed")})
    if not total["passed"]:
        print("nothing passed: no installed backend serves this device")
    return int(total["failed"] > 0 or not total["passed"])


if __name__ == "__main__":
    sys.exit(main())
