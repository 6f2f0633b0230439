"""compile_flash_attn_4.py ARCH [--case TEXT] [--json FILE]: FlashAttention 4's kernels, compiled for an absent GPU.

HAL's own adapter is bound and called on fake tensors, so that the package checks the very arguments it would get and
lowers the kernel that it would launch: to a cubin for ARCH, whose tensor-core instructions, registers and stack are
read back. Nothing is launched, no driver is needed, and one thing is stood in for: how many multiprocessors the GPU
has. What this does not prove: numbers, and that the dynamic shared memory of a launch fits.

It runs in the environment that ci/env_flash_attn.sh makes. --json leaves a record, by its name
docs/evidence/compiled-flash_attn_4-cuda-ARCH.json, which proves the level "compiled" for the code as it is.
Exit codes: 0 all compiled that the backend serves, 1 something did not, 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from hal import registry
from hal.commands.verify import _compact
from hal.config import AttentionConfig, MLADims
from hal.conformance.record import files, record
from hal.packages import Packages
from hal.platform import Platform

NAME, PACKAGE = "flash_attn_4", "flash-attn-4"
# arch -> (the compiler's target, multiprocessors: of H100, B200, B300, Thor). Where it serves pages; elsewhere tiles
# are not made for the smaller shared memory (backends/flash_attn_4.py), which no compiler checks.
TARGETS = {"sm90": ("sm_90a", 132), "sm100": ("sm_100a", 148), "sm103": ("sm_103a", 160), "sm110": ("sm_110a", 20)}
# Tensor-core instructions in SASS: fifth, fourth and older generations.
MMA = re.compile(r"\b(UTCHMMA|HGMMA|HMMA)\b")
_256 = MLADims(qk_nope_head_dim=192, v_head_dim=256)
# Case -> (phase, fields of AttentionConfig).
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "decode": ("decode", {}),
    "decode float16, head_dim 64": ("decode", {"dtype": "float16", "head_dim": 64}),
    "decode page_size 64": ("decode", {"page_size": 64}),  # gathered: TMA takes pages of the tile's size alone
    "decode of 4 tokens return_softmax_lse": ("decode", {"max_decode_query_len": 4, "return_softmax_lse": True}),
    "decode sliding_window softcap": ("decode", {"sliding_window": 128, "softcap": 30.0}),
    "decode sinks return_softmax_lse": ("decode", {"sinks": True, "return_softmax_lse": True}),
    "decode head_dim 192/128": ("decode", {"head_dim": 192, "head_dim_v": 128}),
    "prefill": ("prefill", {}),
    "prefill sliding_window": ("prefill", {"sliding_window": 128}),
    "prefill encoder": ("prefill", {"attention_type": "encoder_only", "causal": False}),
    "prefill mla": ("prefill", {"mla": True, "num_heads": 16, "softmax_scale": 0.1}),
    "prefill mla 256/256": ("prefill", {"mla": _256, "num_heads": 16, "softmax_scale": 0.1}),
}


def arguments(phase: str, config: AttentionConfig, page_size: int) -> dict[str, Any]:
    """Fake tensors of one call: four sequences, the cache of ten pages."""
    import torch

    def of(*shape: int, dtype: str = config.dtype) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")

    masks = {"causal": config.causal, "window_size": config.window_size, "softcap": config.softcap}
    if config.sinks:
        masks["sinks"] = of(config.num_heads)
    if phase == "decode":
        q = of(4 * config.max_decode_query_len, config.num_heads, config.head_dim)
        k, v = (of(10, page_size, config.num_kv_heads, d) for d in (config.head_dim, config.v_dim))
        return {"q": q, "k_cache": k, "v_cache": v, "cache_seqlens": of(4, dtype="int32"),
                "page_table": of(4, 3, dtype="int32"), "cu_seqlens_q": of(5, dtype="int32"),
                "max_seqlen_q": config.max_decode_query_len, "return_softmax_lse": config.return_softmax_lse, **masks}
    heads, d, dv, mla = config.num_kv_heads, config.head_dim, config.v_dim, config.mla
    if isinstance(mla, MLADims):
        heads, d, dv = config.num_heads, mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim
    return {"q": of(512, config.num_heads, d), "k": of(512, heads, d), "v": of(512, heads, dv),
            "cu_seqlens_q": of(5, dtype="int32"), "cu_seqlens_k": of(5, dtype="int32"), "max_seqlen_q": 200,
            "max_seqlen_k": 200, **masks}


class Multiprocessors:
    """In place of cutlass.utils.HardwareInfo, which asks the driver: the count alone, for the size of a grid."""

    count = 0

    def __init__(self, *_: Any) -> None:
        pass

    def get_device_multiprocessor_count(self) -> int:
        return self.count

    def get_max_active_clusters(self, cluster_size: int) -> int:
        return self.count // cluster_size


def compile_one(phase: str, config: AttentionConfig, platform: Platform, dump: Path) -> dict[str, Any]:
    """How one case ended, and what its cubin says."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    backend, packages = registry.get(NAME), Packages.named([PACKAGE])
    reasons = backend.unsupported_reasons(config, platform, packages, phase)
    if reasons:
        return {"result": "refused", "why": "; ".join(reasons)}
    for old in dump.iterdir():
        old.unlink()
    try:
        bound = backend.bind(config, platform, backend.package_for(packages, config))
        function: Callable[..., Any] = (bound.flash_attn_with_kvcache if phase == "decode"
                                        else bound.flash_attn_varlen_func)
        with FakeTensorMode():
            result = function(**arguments(phase, config, config.page_size or backend.page_sizes.preferred))
            assert isinstance(result[0] if config.return_softmax_lse else result, torch.Tensor)
    except Exception as error:  # noqa: BLE001 - the vendor's compiler raises anything; it is the case's result
        return {"result": "failed", "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    cubins = sorted(dump.glob("*.cubin"))
    if not cubins:
        return {"result": "failed", "why": "no cubin was made"}
    kernels = [inspect(path) for path in cubins]
    if not any(kernel["mma"] for kernel in kernels):
        return {"result": "failed", "why": f"no tensor-core instruction in {len(kernels)} kernels", "kernels": kernels}
    return {"result": "passed", "kernels": kernels}


def inspect(cubin: Path) -> dict[str, Any]:
    """Target, registers a thread, bytes of stack (spills) and tensor-core instructions of one kernel."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def run(*command: str) -> str:
        return subprocess.run([str(tools / command[0]), *command[1:], str(cubin)], capture_output=True, text=True,
                              check=True).stdout

    usage, code = run("cuobjdump", "-res-usage"), run("nvdisasm", "-c")
    found = [re.search(rf"\b{word}:(\d+)", usage) for word in ("REG", "STACK")]
    registers, stack = (int(match[1]) if match else -1 for match in found)
    mma = [match[1] for match in MMA.finditer(code)]
    return {"target": cubin.suffixes[-2].lstrip("."), "registers": registers, "stack": stack,
            "mma": f"{len(mma)} {mma[0]}" if mma else ""}


def compile_all(arch: str, text: str) -> list[dict[str, Any]]:
    """Each case's end, printed as it comes."""
    target, count = TARGETS[arch]
    with tempfile.TemporaryDirectory() as folder:
        # Read when the package is imported. The kernels are chosen by the first, compiled for the second.
        os.environ.update(FLASH_ATTENTION_ARCH=target, CUTE_DSL_ARCH=target, FLASH_ATTENTION_NUM_SMS=str(count),
                          CUTE_DSL_KEEP_CUBIN="1", CUTE_DSL_DUMP_DIR=folder)
        warnings.filterwarnings("ignore")
        import cutlass.utils

        found = []
        platform = Platform("cuda", arch, "cuda:0", 0, f"no GPU: compiled for {target}")
        with mock.patch.object(Multiprocessors, "count", count), \
                mock.patch.object(cutlass.utils, "HardwareInfo", Multiprocessors):
            for name, (phase, fields) in CASES.items():
                if text not in name:
                    continue
                start = time.monotonic()
                result = compile_one(phase, AttentionConfig(**fields), platform, Path(folder))
                wrong = [k["target"] for k in result.get("kernels", ()) if k["target"] != target]
                if wrong:
                    result = {"result": "failed", "why": f"compiled for {wrong[0]}, asked for {target}"}
                found.append({"case": name, **result})
                seen = result.get("why") or "; ".join(
                    f"{k['registers']} registers, {k['stack']} bytes of stack, {k['mma']}" for k in result["kernels"])
                print(f"{result['result']:8} {name}: {seen} ({time.monotonic() - start:.0f} s)", flush=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", choices=TARGETS)
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not any(args.case in name for name in CASES):
        parser.error(f"--case {args.case!r} is in no case's name ({', '.join(CASES)})")
    start, code = time.monotonic(), files(registry.get(NAME))
    cases = compile_all(args.arch, args.case)
    counts = {end: sum(case["result"] == end for case in cases) for end in ("passed", "failed", "refused")}
    print(", ".join(f"{n} {end}" for end, n in counts.items()))
    if args.json is not None:
        made = record(Platform("cuda", args.arch, "cuda:0", 0, f"no GPU: compiled for {TARGETS[args.arch][0]}"),
                      {NAME: {**counts, "whole": not args.case, "files": code, "cases": cases}}, "compiled", 0,
                      "none: compiled offline", time.monotonic() - start)
        args.json.write_text(_compact({**made, "command": f"ci/env_flash_attn.sh {args.arch}"}))
        print(f"written: {args.json}")
    return int(bool(counts["failed"]) or not counts["passed"])


if __name__ == "__main__":
    sys.exit(main())
