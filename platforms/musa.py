"""Moore Threads GPUs through torch_musa."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from hal.platform import Probe, ask_devices, known_devices

if TYPE_CHECKING:
    from hal.host import Host

KIND = "musa"
TORCH_DEVICE = "musa"
EXTENSION = "torch_musa"
ARCHS = ("mp21", "mp22", "mp31")


# The engines disagree: SGLang 0.5.23 falls through to triton on MUSA, dense and MLA, and takes MATE only when asked
# for "fa3" (sglang.md section 2); vllm-musa replaces FLASH_ATTN and FLASHMLA by MATE and keeps them first. MATE is
# the vendor's own, so it is first. It is built for MP31 alone (README; check_mp31 in its C++): on mp21 and mp22 it
# keeps its place for its reason. HAL's Triton kernels are not declared here (no compiler for them was tried).
_DENSE = ("mate", "torch")
_MLA = ("mate_mla", "torch")


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    return _MLA if mla else _DENSE


def probe(host: Host) -> Probe:
    reasons = []
    if not host.glob("/dev/mtgpu*"):
        reasons.append("no /dev/mtgpu*")
    missing = host.missing(EXTENSION)
    if missing:
        shim = host.find_module("torchada") is not None
        reasons.append(missing + (" (torchada is installed, but it only renames torch_musa)" if shim else ""))
    hidden = host.hidden_by("MUSA_VISIBLE_DEVICES", "MTHREADS_VISIBLE_DEVICES")
    if hidden:
        reasons.append(hidden)
    return Probe((), "; ".join(reasons)) if reasons else ask_devices(host, KIND, EXTENSION)


def devices() -> Probe:
    """Every device of this process's torch_musa."""
    from hal.torch_import import load_torch

    torch = load_torch()
    import torch_musa

    if not torch.musa.is_available():
        return Probe((), "torch.musa.is_available() is False: is the MUSA driver loaded?")
    seen = []
    for index in range(torch.musa.device_count()):
        major, minor = torch.musa.get_device_capability(index)
        seen.append((f"mp{major}{minor}", torch.musa.get_device_name(index)))
    return known_devices(KIND, TORCH_DEVICE, ARCHS, seen, f"torch_musa {torch_musa.__version__}")


def current_stream(device: Any) -> Hashable:
    """Which stream of `device` is current: torch_musa's own answer, whether or not it tells torch.accelerator."""
    from hal.torch_import import load_torch

    stream: Hashable = load_torch().musa.current_stream(device).musa_stream
    return stream
