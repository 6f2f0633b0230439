"""NVIDIA GPUs, by SM generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.platform import Probe, ask_devices, known_devices

if TYPE_CHECKING:
    from hal.host import Host

KIND = "cuda"
TORCH_DEVICE = "cuda"
ARCHS = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
# Device files of a driver on Linux, of WSL and of Jetson (before and since JetPack 6).
_FILES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu/igpu*")


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    # FlashAttention is 3 on sm90 and 2 elsewhere (vLLM 0.33 and SGLang 0.5.23 agree for dense models).
    # The rest of the field's order arrives with its declarations.
    return ("flash_attn_3", "flash_attn_2", "torch") if arch == "sm90" else ("flash_attn_2", "torch")


def probe(host: Host) -> Probe:
    reasons = []
    if not any(host.glob(pattern) for pattern in _FILES):
        reasons.append("no /dev/nvidia*")
    build = host.torch_build()
    if build.problem:
        reasons.append(build.problem)
    elif build.hip:
        reasons.append(f"torch is built for ROCm ({build.version})")
    elif not build.cuda:
        reasons.append(f"torch is built without CUDA ({build.version})")
    hidden = host.hidden_by("CUDA_VISIBLE_DEVICES")
    if hidden:
        reasons.append(hidden)
    return Probe((), "; ".join(reasons)) if reasons else ask_devices(host, KIND, "torch")


def devices() -> Probe:
    """Every device of this process's torch."""
    from hal.torch_import import load_torch

    torch = load_torch()
    if not torch.cuda.is_available():
        return Probe((), f"torch.cuda.is_available() is False: the driver is missing or too old for CUDA "
                         f"{torch.version.cuda}")
    seen = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        seen.append((f"sm{major}{minor}", torch.cuda.get_device_name(index)))
    return known_devices(KIND, TORCH_DEVICE, ARCHS, seen, f"torch {torch.__version__}")
