"""A fake Ascend NPU: the real torch_npu wheel on a machine without CANN, over a runtime and operators made for tests.

    environ = fake_npu.start(soc="910b1", devices=2)         # a few seconds the first time: it builds with gcc
    subprocess.run([sys.executable, "-c", code], env=environ)

In that process `import torch` finds NPUs, the real dispatcher and the real op-plugin run, and their aclnn calls are
answered by this package: numbers from Huawei's documents (fused_infer.py, kv_cache.py, attention_update.py), refusals
from the same (fused_infer_rules.py), plain torch operators from CPU torch (aten.py). On 310P three operations of ATB,
the library behind torch.ops.atb, are answered from its sources (runtime/atb.cpp, atb.py). There:

    fake_npu.reset_counters(); ...; fake_npu.counters()["host_waits"]

Not the chip: agreement says that a call means what the documents say, nothing about the hardware's numerics or speed.
Memory that nobody wrote is NaN, tensors of another device or of the host are refused, and an operator without an answer
raises. Work runs at once, in the order of the calls, unless its stream waits for an event: a missing synchronisation
between streams shows only where a test holds one of them back so.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fake_npu.build import build

# What aclrtGetSocName answers; torch_npu's SoC number of each is in its SocVersion enum.
SOCS = {
    "910a": "Ascend910A", "910b1": "Ascend910B1", "910b4": "Ascend910B4", "910_9391": "Ascend910_9391",
    "910_9362": "Ascend910_9362", "310p3": "Ascend310P3", "950": "Ascend950PR_9579",
}
# What some software stacks do wrong, as reported; off unless asked for, since others do right.
TRAPS = {
    "uniform_average": "vllm-ascend#13699: TND, sparse_mode 0 and no atten_mask gives the plain average of V",
    "mask_ends_at_512": "vllm-ascend#15503: paged, one query token, sparse_mode 0: atten_mask is ignored past key 512",
    "band_keeps_empty_rows": "V1, inner_precise, names sparse_mode 3 alone as one whose rows without keys are repaired "
                             "unasked: in modes 2 and 4 they are the plain average of V",
    "small_pages": "sglang#38196, of other operators: pages under 128 tokens are not told apart",
}


def start(soc: str = "910b1", devices: int = 2, traps: Sequence[str] = (), driver: bool = True,
          environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that has a fake NPU, made from `environ` (default: this process's).

    soc: a key of SOCS. devices: how many; 0 is a machine whose driver shows none. traps: keys of TRAPS. driver False:
    CANN is there and the driver's libascend_hal.so is not. LD_LIBRARY_PATH is read when a process starts, so all
    this is for a child process. Raises ValueError for an unknown soc or trap, BuildError where gcc is missing or fails.
    """
    if soc not in SOCS:
        raise ValueError(f"soc {soc!r} is not known here: {', '.join(SOCS)}")
    unknown = [trap for trap in traps if trap not in TRAPS]
    if unknown:
        raise ValueError(f"traps {unknown} are not known here: {', '.join(TRAPS)}")
    if not 0 <= devices <= 16:
        raise ValueError(f"devices is {devices}, expected 0 to 16")
    folder = build()
    files = folder / f"dev{devices}"
    files.mkdir(exist_ok=True)
    for name in [f"davinci{i}" for i in range(devices)] + ["davinci_manager"] * (devices > 0):
        (files / name).touch()

    result = dict(os.environ if environ is None else environ)
    for name in [name for name in result if name.startswith(("ASCEND_", "FAKE_NPU_"))]:
        del result[name]
    libraries = [str(folder / "cann")] + [str(folder / "driver")] * driver
    result.update(
        LD_LIBRARY_PATH=":".join([*libraries, *filter(None, [result.get("LD_LIBRARY_PATH")])]),
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [result.get("PYTHONPATH")])]),
        LD_PRELOAD=str(folder / "libdevice_files.so"), FAKE_NPU_DEV=str(files), FAKE_NPU_SOC=SOCS[soc],
        FAKE_NPU_DEVICES=str(devices), FAKE_NPU_TRAPS=",".join(traps),
        TASK_QUEUE_ENABLE="0",  # operators run on the calling thread, so that a refusal is raised by its own call
    )
    result.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    return result


def counters() -> dict[str, int]:
    """What this process's fake device did since the last reset: acl function or aclnn operator -> calls, and

    host_waits: times the host waited for the device (a blocking copy is one, its stream synchronisation included);
    blocking_copies_to_host, blocking_copies_to_device.
    """
    text = _library().fake_npu_counters().decode()
    found = dict.fromkeys(("host_waits", "blocking_copies_to_host", "blocking_copies_to_device"), 0)
    return found | {name: int(number) for name, _, number in (line.partition("=") for line in text.splitlines())}


def reset_counters() -> None:
    """Forgets the counters and the calls."""
    _library().fake_npu_reset_counters()
    calls(clear=True)


def calls(clear: bool = False) -> list[tuple[str, dict[str, object]]]:
    """The operators that ran since the last reset, replayed ones included: aclnn name, and by argument its value, or
    (shape, dtype). At most the last 10,000."""
    answer = sys.modules.get("fake_npu.answer")  # imported by the first operator
    found = list(answer.calls) if answer else []
    if answer and clear:
        answer.calls.clear()
    return found


def _library() -> ctypes.CDLL:
    if "FAKE_NPU_SOC" not in os.environ:
        raise RuntimeError("this process has no fake NPU: start it with the environment of fake_npu.start()")
    library = ctypes.CDLL("libascendcl.so")
    library.fake_npu_counters.restype = ctypes.c_char_p
    return library


if sys.platform != "linux":
    raise ImportError("fake_npu is for Linux: torch_npu has no other wheels")
