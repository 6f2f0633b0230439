"""Huawei Ascend NPUs through torch_npu."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hal.platform import Probe, ask_devices, known_devices
from hal.torch_import import cann_error, load_torch

if TYPE_CHECKING:
    from hal.host import Host

KIND = "npu"
TORCH_DEVICE = "npu"
EXTENSION = "torch_npu"
ARCHS = ("ascend910a", "ascend910b", "ascend910c", "ascend310p", "ascend950")
# torch_npu's SoC numbers (its SocVersion enum): 910A, 310P, A2 = 910B, A3 = 910C (910_93xx), 950.
_SOC = ((100, 104, "ascend910a"), (200, 205, "ascend310p"), (220, 225, "ascend910b"),
        (250, 256, "ascend910c"), (260, 269, "ascend950"))
# Arch -> dtypes that its chip has not: torch_npu takes bfloat16 for supported from SoC 220 on (IsBF16Supported).
LACKS = {"ascend910a": ("bfloat16",), "ascend310p": ("bfloat16",)}


# SGLang 0.5.23 forces "ascend" for everything (hardware_backend/npu/utils.py); vllm-ascend 182b75ea looks up one
# class for dense and one for MLA (platform.py, get_attn_backend_cls). On ascend910a and ascend310p their op does not
# exist: both backends keep their place for their reasons, then 310P's own ops, then the portable floor. HAL's Triton
# kernels are no backend here yet.
_DENSE = ("ascend", "torch")
_310P = ("ascend", "ascend_310p", "torch")
_MLA = ("ascend_mla", "torch")


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    return _MLA if mla else _310P if arch == "ascend310p" else _DENSE


def probe(host: Host) -> Probe:
    reasons = []
    if not host.glob("/dev/davinci[0-9]*"):
        reasons.append("no /dev/davinci*")
    elif not host.glob("/dev/davinci_manager"):
        reasons.append("no /dev/davinci_manager (is it mapped into this container?)")
    missing = host.missing(EXTENSION) or cann_error(host)
    if missing:
        reasons.append(missing)
    hidden = host.hidden_by("ASCEND_RT_VISIBLE_DEVICES")
    if hidden:
        reasons.append(hidden)
    return Probe((), "; ".join(reasons)) if reasons else ask_devices(host, KIND, EXTENSION)


def devices() -> Probe:
    """Every device of this process's torch_npu."""
    torch = load_torch()
    import torch_npu

    if not torch.npu.is_available():
        visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
        why = "is the NPU driver loaded?" if visible is None else (
            f"ASCEND_RT_VISIBLE_DEVICES={visible} names no device that is here, or the NPU driver is not loaded")
        return Probe((), f"torch.npu.is_available() is False: {why}")
    # One number for all: a machine's NPUs are of one kind.
    soc = torch_npu.npu.utils.get_soc_version()
    arch = next((name for low, high, name in _SOC if low <= soc <= high), f"SoC {soc}")
    seen = [(arch, torch.npu.get_device_name(index)) for index in range(torch.npu.device_count())]
    versions = f"torch {torch.__version__}, torch_npu {torch_npu.__version__}"
    return known_devices(KIND, TORCH_DEVICE, ARCHS, seen, versions)
