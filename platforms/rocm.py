"""AMD GPUs through ROCm. torch calls them "cuda"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.platform import Probe, ask_devices, known_devices

if TYPE_CHECKING:
    from hal.host import Host

KIND = "rocm"
TORCH_DEVICE = "cuda"
ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    # SGLang 0.5.23 takes aiter by default on HIP; aiter refuses the archs it has no kernels for.
    return ("aiter", "torch")


def probe(host: Host) -> Probe:
    reasons = []
    # WSL has no /dev/kfd; ROCm goes through /dev/dxg there.
    if not host.glob("/dev/kfd") and not host.glob("/dev/dxg"):
        reasons.append("no /dev/kfd")
    build = host.torch_build()
    if build.problem:
        reasons.append(build.problem)
    elif not build.hip:
        reasons.append(f"torch is built without ROCm ({build.version})")
    hidden = host.hidden_by("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    if hidden:
        reasons.append(hidden)
    return Probe((), "; ".join(reasons)) if reasons else ask_devices(host, KIND, "torch")


def devices() -> Probe:
    """Every device of this process's torch."""
    from hal.torch_import import load_torch

    torch = load_torch()
    if not torch.cuda.is_available():
        return Probe((), "torch.cuda.is_available() is False: the amdgpu driver does not serve ROCm "
                         f"{torch.version.hip}")
    seen = []
    for index in range(torch.cuda.device_count()):
        # "gfx942:sramecc+:xnack-" names features after the arch.
        arch = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        seen.append((arch, torch.cuda.get_device_name(index)))
    return known_devices(KIND, TORCH_DEVICE, ARCHS, seen, f"torch {torch.__version__}")
