"""CPU: always here. The arch is the x86-64 level, or aarch64."""

from __future__ import annotations

import platform as _platform
from typing import TYPE_CHECKING

from hal.platform import Platform, Probe

if TYPE_CHECKING:
    from hal.host import Host

KIND = "cpu"
TORCH_DEVICE = "cpu"
# x86-64 levels of the psABI; v4_bf16 adds AVX512_BF16. v2 is the least that is told apart.
ARCHS = ("x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16", "aarch64")
# Flags as Linux spells them; "abm" is LZCNT.
_V3 = {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


# vLLM 0.33 runs its C++ kernels on every CPU (CPU_ATTN). SGLang 0.5.23: intel_amx on x86, torch_native on ARM. HAL's
# C++ kernels come first on both (benchmarks/cpu). flex_attention was slower than gathering pages for SDPA where both
# were measured (torch 2.13, two cores), so the portable floor goes before it; it serves no MLA.
_DENSE = ("cpu", "torch", "flex_attention")
_MLA = ("cpu", "torch")


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    return _MLA if mla else _DENSE


def probe(host: Host) -> Probe:
    lines = [line.partition(":") for line in host.read("/proc/cpuinfo").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    # x86 Linux says "flags", ARM Linux says "Features"; other systems have no such file.
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    machine = "aarch64" if "asimd" in flags else "x86_64" if "sse2" in flags else _platform.machine()
    arch = _arch(machine, flags)
    name = facts.get("model name") or machine
    build = host.torch_build()
    unknown = [] if arch else [f"machine {machine} is none that HAL knows (archs: {', '.join(ARCHS)})"]
    reason = "; ".join([build.problem or f"torch {build.version}", *unknown])
    return Probe((Platform(KIND, arch, TORCH_DEVICE, None, name),), reason)


def _arch(machine: str, flags: set[str]) -> str | None:
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    if machine not in ("x86_64", "AMD64"):
        return None
    if not flags >= _V3:
        return "x86_64_v2"
    if not flags >= _V4:
        return "x86_64_v3"
    return "x86_64_v4_bf16" if "avx512_bf16" in flags else "x86_64_v4"
