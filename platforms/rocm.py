"""AMD GPUs through ROCm. torch calls them "cuda"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.platform import Probe, ask_devices, known_devices

if TYPE_CHECKING:
    from hal.host import Host

KIND = "rocm"
TORCH_DEVICE = "cuda"
ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")


# The GPUs that AITER's assembly and composable kernels are for.
_CDNA3 = ("gfx942", "gfx950")
# Dense, prefill and decode alike. Where the engines disagree: SGLang 0.5.23 takes aiter on HIP
# (model_override_base.py, get_default_attn_backend); vLLM 0.33 puts ROCM_ATTN before it and lists it only with
# VLLM_ROCM_USE_AITER set (rocm.py, _get_backend_priorities), which its users report as too slow a default (#46596).
# So aiter is first, and the others keep vLLM's order. flex_attention is in neither list; it stands before the
# portable floor as on CUDA. wave is left out: SGLang calls it experimental.
_DENSE_CDNA3 = ("aiter", "rocm_attn", "aiter_unified", "triton", "flex_attention", "torch")
# vLLM 0.33 on gfx90a and RDNA: ROCM_ATTN, TRITON_ATTN (its one switch for all of aiter asks for gfx942 or gfx950).
# aiter_unified runs on RDNA, experimentally (README), so it is never first there; aiter is here for its reason.
_DENSE = ("rocm_attn", "triton", "aiter_unified", "flex_attention", "torch", "aiter")
# MLA decode. vLLM 0.33: ROCM_AITER_MLA, TRITON_MLA, ROCM_AITER_TRITON_MLA, and without aiter TRITON_MLA; for sparse
# models ROCM_AITER_MLA_SPARSE alone. SGLang 0.5.23 agrees: aiter for 16 or 128 heads, else Triton.
_DECODE_CDNA3 = ("aiter_mla", "triton_mla", "aiter_triton_mla", "aiter_mla_sparse", "torch")
_DECODE = ("triton_mla", "aiter_triton_mla", "torch", "aiter_mla")
# MLA prefill, over expanded K and V: aiter's varlen function, for any number of heads, in both engines; Triton where
# aiter is not. The absorbed forms follow for what those can't serve.
_PREFILL_CDNA3 = ("aiter_mla", "triton", "aiter_triton_mla", "triton_mla", "aiter_mla_sparse", "torch")
_PREFILL = ("triton", "triton_mla", "torch", "aiter_triton_mla", "aiter_mla")


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    if not mla:
        return _DENSE_CDNA3 if arch in _CDNA3 else _DENSE
    if phase == "prefill":
        return _PREFILL_CDNA3 if arch in _CDNA3 else _PREFILL
    return _DECODE_CDNA3 if arch in _CDNA3 else _DECODE


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
