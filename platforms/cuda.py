"""NVIDIA GPUs, by SM generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.platform import Probe, ask_devices, known_devices

if TYPE_CHECKING:
    from hal.host import Host

KIND = "cuda"
TORCH_DEVICE = "cuda"
ARCHS = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
# Device files of a driver on Linux, of WSL and of Jetson (before and since JetPack 6).
_FILES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu/igpu*")


# Dense, prefill and decode alike. vLLM 0.33 (cuda.py, _get_backend_priorities, executed for SM 7.5 to 12.1) has two
# lists: FLASHINFER first on 10.x, FLASH_ATTN first elsewhere; FLASH_ATTN is version 3 on 9.0 and 2 elsewhere.
# SGLang 0.5.23 (model_override_base.py, get_default_attn_backend): sm90 fa3, sm100 trtllm_mha, elsewhere flashinfer.
# Where they disagree (sm80 to sm89, sm120), HAL follows vLLM: FlashAttention 2 needs no plan per step.
_DENSE = ("flash_attn_2", "flashinfer", "triton", "flex_attention", "torch")
# Unequal head dims are served by version 3 itself; flash_attn_diffkv is vLLM's other cache for them.
_DENSE_SM90 = ("flash_attn_3", "flash_attn_2", "flash_attn_diffkv", "flashinfer", "triton", "flex_attention", "torch")
# vLLM's FLASHINFER runs TensorRT-LLM's kernels there, and without them sinks are lost: trtllm_mha comes first, as in
# SGLang. SGLang takes fa4 for unequal head dims; the two before it refuse those, so one list says that too.
_DENSE_SM100 = ("trtllm_mha", "flashinfer", "flash_attn_4", "flash_attn_2", "triton", "flex_attention", "torch")

# Dense attention that is not causal. vLLM 0.33, executed for 10.0 and 10.3 with non_causal: FLASH_ATTN before
# FLASHINFER there too; everywhere else its order is the causal one. trtllm_mha has no such form.
_NON_CAUSAL_SM100 = ("flash_attn_4", "flash_attn_2", "flashinfer", "triton", "flex_attention", "torch")
NON_CAUSAL = {"sm100": _NON_CAUSAL_SM100, "sm103": _NON_CAUSAL_SM100}

# MLA decode. vLLM 0.33: one list up to 9.x, one for 10.x, one for 12.x; dense first, then sparse, which refuse each
# other's configurations. SGLang 0.5.23: sm90 fa3, sm100 flashinfer, elsewhere triton.
_MLA = ("flash_attn_mla", "flashmla", "flashinfer_mla", "triton_mla", "flashmla_sparse", "torch")
# FLASHINFER_MLA is trtllm_mla on 10.x. flash_attn_mla and flashmla follow it in vLLM's list but have no kernel
# there. Sparse: vLLM's order for more than 16 heads over bfloat16; over fp8 only one of the two fits each dtype.
_MLA_SM100 = ("trtllm_mla", "cutlass_mla", "triton_mla", "flashmla_sparse", "flashinfer_mla_sparse", "torch")
# vLLM gives 11.x the list of 9.x, of which only Triton has kernels there; both engines: Triton on 12.x.
_MLA_SM110_UP = ("triton_mla", "flashinfer_mla", "flashinfer_mla_sparse", "torch")

# MLA prefill, over expanded K and V; the absorbed and the sparse forms follow for what that can't serve. The
# documentation of both engines: TensorRT-LLM's ragged kernel on sm100, else FlashAttention's varlen function;
# flashinfer and cudnn on request only. (vLLM 0.33's own list has FLASH_ATTN before TRTLLM_RAGGED on 10.x too; SGLang
# 0.5.23 runs the ragged kernel there by default.)
_PREFILL_SM100 = ("trtllm_ragged", "flash_attn_4", "flash_attn_2", "triton", "triton_mla", "flashmla_sparse",
                  "flashinfer_mla_sparse", "torch")
_PREFILL_SM90 = ("flash_attn_3", "flash_attn_2", "triton", "flash_attn_mla", "flashinfer_mla", "triton_mla",
                 "flashmla_sparse", "torch")
# FlashAttention 2 takes equal head dims alone, where vLLM pads V; SGLang prefills with Triton.
_PREFILL = ("flash_attn_2", "triton", "flashinfer_mla", "triton_mla", "flashinfer_mla_sparse", "torch")

# As for decode there, Triton comes before FlashInfer.
_PREFILL_SM110_UP = ("flash_attn_2", "triton", "triton_mla", "flashinfer_mla", "flashinfer_mla_sparse", "torch")

# arch -> (dense, MLA prefill, MLA decode); sm75 to sm89, and an arch that is not known: _BELOW_SM90.
_PRIORITY = {
    "sm90": (_DENSE_SM90, _PREFILL_SM90, _MLA),
    "sm100": (_DENSE_SM100, _PREFILL_SM100, _MLA_SM100),
    "sm103": (_DENSE_SM100, _PREFILL_SM100, _MLA_SM100),
    "sm110": (_DENSE, _PREFILL_SM110_UP, _MLA_SM110_UP),
    "sm120": (_DENSE, _PREFILL_SM110_UP, _MLA_SM110_UP),
    "sm121": (_DENSE, _PREFILL_SM110_UP, _MLA_SM110_UP),
}
_BELOW_SM90 = (_DENSE, _PREFILL, _MLA)


def priority(arch: str | None, mla: bool, phase: str) -> tuple[str, ...]:
    dense, mla_prefill, mla_decode = _PRIORITY.get(arch or "", _BELOW_SM90)
    return (mla_prefill if phase == "prefill" else mla_decode) if mla else dense


def current_stream(device: Any) -> int:
    """The address of a device's current stream; torch.cuda.current_stream() would make an object of it, each call."""
    import torch

    return int(torch._C._cuda_getCurrentRawStream(device.index))


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
