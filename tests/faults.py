"""Faults of a machine's environment, as data: how the machine is built, what is asked, the reason expected.

Every expected text is written by hand from what a user needs to read there, not taken from the code.
"""

from __future__ import annotations

from dataclasses import dataclass

from machines import (
    Part,
    cann,
    dev,
    env,
    metadata,
    module,
    package,
    plugin,
    torch,
    torch_musa,
    torch_npu,
)

DEVICES = ("devices", "--json")
BACKENDS = ("backends", "--json")
EXPLAIN = ("explain", "--json")
IMPL = ("-c", "import hal; hal.get_attention_impl()")

# Whole machines, for faults to be added to.
H200 = (dev("nvidia0"), torch(cuda="12.8", devices=(("NVIDIA H200", (9, 0)),)))
NVIDIA = (dev("nvidia0"), torch(cuda="12.8", devices=(("NVIDIA A100", (8, 0)),)))
MI300 = (dev("kfd"), torch(hip="6.4.1", devices=(("AMD Instinct MI300X", "gfx942:sramecc+:xnack-"),)))
ASCEND = (dev("davinci0", "davinci_manager"), torch(version="2.13.0+cpu"), torch_npu(), cann())
MUSA = (dev("mtgpu.0"), torch(), torch_musa((3, 1)))

# A package's __init__ that does harm, and what must be said of it.
HARM = {
    "raises": (
        "raise ImportError('libcudart.so.13: cannot open shared object file')",
        "failed: ImportError: libcudart.so.13: cannot open shared object file",
    ),
    "hangs": ("import time\ntime.sleep(600)", "did not end within 2 s (HAL_PROBE_TIMEOUT)"),
    "aborts": ("import os\nos.abort()", "killed its process (SIGABRT)"),
    "kills itself": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "killed its process (SIGKILL)",
    ),
    "kills its process group": (
        "import os, signal\nos.killpg(0, signal.SIGTERM)",
        "killed its process (SIGTERM)",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", "killed its process (SIGSEGV)"),
    "ends its process": ("import os\nos._exit(5)", "ended its process with exit code 5"),
    "ends its process well": ("import os\nos._exit(0)", "ended its process with exit code 0"),
    "calls sys.exit": ("import sys\nsys.exit('no licence found')", "failed: SystemExit: no licence found"),
    "calls sys.exit(0)": ("import sys\nsys.exit(0)", "failed: SystemExit: 0"),
    "is no Python": ("def broken(:", "failed: SyntaxError"),
}


@dataclass(frozen=True)
class Fault:
    """One row.

    where: the platform (hal devices) or backend (hal backends, hal explain) whose reason is read; "" for the
    text on stderr. reason: what it must contain. answer: what is chosen all the same: the kind selected by
    hal devices, the backend chosen by hal explain. code: exit code. elsewhere: platforms that need not say
    that their device files are missing. process: it needs a process of its own.
    """

    name: str
    parts: tuple[Part, ...]
    where: str
    reason: str
    ask: tuple[str, ...] = DEVICES
    answer: str | None = "cpu"
    code: int = 0
    elsewhere: tuple[str, ...] = ()
    process: bool = False

    def __str__(self) -> str:
        return self.name


FAULTS = [
    # torch itself
    Fault("torch missing, no device", (), "cuda", "no /dev/nvidia*; torch is not installed"),
    Fault("torch missing, NVIDIA device", (dev("nvidia0"),), "cuda", "torch is not installed"),
    Fault("torch missing, AMD device", (dev("kfd"),), "rocm", "torch is not installed"),
    Fault(
        "torch missing, torch_musa there",
        (dev("mtgpu.0"), torch_musa((3, 1))),
        "musa",
        "importing torch_musa failed: ModuleNotFoundError: No module named 'torch'",
    ),
    Fault(
        "torch missing, attention asked for",
        (),
        "",
        "torch is not installed: install the build",
        IMPL,
        code=1,
    ),
    Fault(
        "torch: metadata but no module",
        (dev("nvidia0"), metadata("torch", "2.13.0")),
        "cuda",
        "torch 2.13.0 is half installed: it has metadata but no module",
    ),
    Fault(
        "torch: no version.py",
        (dev("nvidia0"), module("torch/__init__.py")),
        "cuda",
        "torch is half installed: torch/version.py is missing",
    ),
    Fault(
        "torch: a folder left behind",
        (dev("nvidia0"), lambda m: (m.site / "torch" / "lib").mkdir(parents=True)),
        "cuda",
        "torch is half installed: its folder has no __init__.py",
    ),
    Fault(
        "torch: CPU build on an NVIDIA machine",
        (dev("nvidia0"), torch(version="2.13.0+cpu")),
        "cuda",
        "torch is built without CUDA (2.13.0+cpu)",
    ),
    Fault(
        "torch: ROCm build on an NVIDIA machine",
        (dev("nvidia0"), torch(hip="6.4", version="2.13.0+rocm6.4")),
        "cuda",
        "torch is built for ROCm (2.13.0+rocm6.4)",
    ),
    Fault(
        "torch: CUDA build on an AMD machine",
        (dev("kfd"), torch(cuda="12.8", version="2.13.0+cu128")),
        "rocm",
        "torch is built without ROCm (2.13.0+cu128)",
    ),
    *(
        Fault(
            f"torch {what}",
            (dev("nvidia0"), torch(cuda="12.8", before=text), env(HAL_PROBE_TIMEOUT="2")),
            "cuda",
            f"importing torch {reason}",
        )
        for what, (text, reason) in HARM.items()
    ),
    Fault(
        "torch raises as a broken torch_npu makes it",
        (
            dev("nvidia0"),
            torch(
                cuda="12.8", before="raise RuntimeError('Failed to load the backend extension: torch_npu')"
            ),
        ),
        "cuda",
        "importing torch failed: RuntimeError: Failed to load the backend extension: torch_npu",
    ),
    Fault(
        "torch_npu breaks the import of torch, unless autoload is off",
        (
            *NVIDIA[:1],
            torch(
                before="import os\nif os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD') != '0':\n"
                "    raise RuntimeError('Failed to load the backend extension: torch_npu')"
            ),
            torch_npu(),
        ),
        "",
        "the NPU will not be used",
        (
            "-c",
            "import logging; logging.basicConfig()\nfrom hal.torch_import import load_torch\nload_torch()",
        ),
    ),
    # drivers and devices
    Fault(
        "NVIDIA driver missing",
        (dev("nvidia0"), torch(cuda="12.8", available=False)),
        "cuda",
        "torch.cuda.is_available() is False: the driver is missing or too old for CUDA 12.8",
    ),
    Fault(
        "AMD driver missing",
        (dev("kfd"), torch(hip="6.4.1", available=False)),
        "rocm",
        "torch.cuda.is_available() is False: the amdgpu driver does not serve ROCm 6.4.1",
    ),
    Fault(
        "MUSA driver missing",
        (dev("mtgpu.0"), torch(), torch_musa(available=False)),
        "musa",
        "torch.musa.is_available() is False",
    ),
    Fault(
        "NPU driver missing",
        (*ASCEND[:2], torch_npu(available=False), cann()),
        "npu",
        "torch.npu.is_available() is False",
    ),
    Fault(
        "no NVIDIA device counted", (dev("nvidia0"), torch(cuda="12.8", available=True)), "cuda", "0 devices"
    ),
    Fault(
        "an NVIDIA arch from the future",
        (dev("nvidia0"), torch(cuda="14.0", devices=(("NVIDIA R900", (9, 9)),))),
        "cuda",
        "cuda:0 (NVIDIA R900) is sm99, which HAL does not know (archs: sm75,",
    ),
    Fault(
        "an old AMD arch",
        (dev("kfd"), torch(hip="6.4", devices=(("AMD MI60", "gfx906:sramecc-"),))),
        "rocm",
        "rocm:0 (AMD MI60) is gfx906, which HAL does not know (archs: gfx90a,",
    ),
    Fault(
        "an unknown Ascend",
        (*ASCEND[:2], torch_npu(soc=240), cann()),
        "npu",
        "is SoC 240, which HAL does not know (archs: ascend910a,",
    ),
    Fault(
        "an old MUSA arch",
        (dev("mtgpu.0"), torch(), torch_musa((1, 0))),
        "musa",
        "is mp10, which HAL does not know",
    ),
    Fault(
        "one known and one unknown device",
        (dev("nvidia0"), torch(cuda="12.8", devices=(("NVIDIA H200", (9, 0)), ("NVIDIA R900", (9, 9))))),
        "cuda",
        "cuda:1 (NVIDIA R900) is sm99, which HAL does not know",
        answer="cuda",
    ),
    Fault(
        "a driver that raises when asked",
        (
            dev("nvidia0"),
            torch(cuda="12.8", available=True),
            module("torch/cuda.py", "def is_available(): raise RuntimeError('CUDA unknown error')"),
        ),
        "cuda",
        "asking torch failed: RuntimeError: CUDA unknown error",
    ),
    Fault(
        "a driver that hangs when asked",
        (
            dev("nvidia0"),
            torch(cuda="12.8"),
            module("torch/cuda.py", "import time\ndef is_available(): time.sleep(600)"),
            env(HAL_PROBE_TIMEOUT="2"),
        ),
        "cuda",
        "asking torch did not end within 2 s (HAL_PROBE_TIMEOUT)",
    ),
    # visible devices
    *(
        Fault(
            f"{kind}: {name}={value!r}",
            (*machine, env(**{name: value})),
            kind,
            f"{name} is empty" if not value else f"{name}={value} hides every device",
        )
        for kind, machine, names in (
            ("cuda", NVIDIA, ("CUDA_VISIBLE_DEVICES",)),
            ("rocm", MI300, ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
            ("npu", ASCEND, ("ASCEND_RT_VISIBLE_DEVICES",)),
            ("musa", MUSA, ("MUSA_VISIBLE_DEVICES",)),
        )
        for name in names
        for value in ("", "-1")
    ),
    # vendor extensions
    Fault("torch_musa missing", (dev("mtgpu.0"), torch()), "musa", "torch_musa is not installed"),
    Fault(
        "torch_musa: metadata but no module",
        (dev("mtgpu.0"), torch(), metadata("torch_musa", "2.7.1")),
        "musa",
        "torch_musa 2.7.1 is half installed: it has metadata but no module",
    ),
    *(
        Fault(
            f"torch_musa {what}",
            (dev("mtgpu.0"), torch(), torch_musa((3, 1), before=text), env(HAL_PROBE_TIMEOUT="2")),
            "musa",
            f"importing torch_musa {reason}",
        )
        for what, (text, reason) in HARM.items()
    ),
    Fault(
        "torchada without torch_musa, before a torch.cuda that looks present",
        (dev("mtgpu.0"), torch(devices=(("MTT S5000", (3, 1)),)), module("torchada/__init__.py")),
        "musa",
        "torch_musa is not installed (torchada is installed, but it only renames torch_musa)",
    ),
    Fault(
        "torchada's torch.cuda is not taken for an NVIDIA GPU",
        (
            *MUSA[:1],
            torch(cuda="12.8", devices=(("MTT S5000", (3, 1)),)),
            torch_musa((3, 1)),
            module("torchada/__init__.py"),
        ),
        "cuda",
        "no /dev/nvidia*",
        answer="musa",
        elsewhere=("musa",),
    ),
    Fault(
        "torch_npu missing",
        (dev("davinci0", "davinci_manager"), torch()),
        "npu",
        "torch_npu is not installed",
    ),
    Fault(
        "torch_npu: metadata but no module",
        (dev("davinci0", "davinci_manager"), metadata("torch-npu", "2.13.0")),
        "npu",
        "torch_npu 2.13.0 is half installed: it has metadata but no module",
    ),
    Fault("CANN missing", (*ASCEND[:2], torch_npu()), "npu", "libascendcl.so"),
    Fault("CANN missing says what to do", (*ASCEND[:2], torch_npu()), "npu", "set_env.sh"),
    Fault(
        "davinci_manager not mapped into the container",
        (dev("davinci0"), *ASCEND[1:]),
        "npu",
        "no /dev/davinci_manager (is it mapped into this container?)",
    ),
    *(
        Fault(
            f"torch_npu {what}",
            (*ASCEND[:2], torch_npu(before=text), cann(), env(HAL_PROBE_TIMEOUT="2")),
            "npu",
            f"importing torch_npu {reason}",
        )
        for what, (text, reason) in HARM.items()
        if what in ("raises", "aborts", "calls sys.exit(0)")
    ),
    # vendor kernels, on a machine that is fine otherwise
    Fault(
        "flash-attn 3 missing",
        H200,
        "flash_attn_3",
        "package flash-attn-3 is not installed",
        EXPLAIN,
        "torch",
    ),
    Fault(
        "flash-attn 3: metadata but no module",
        (*H200, metadata("flash_attn_3", "3.0.0")),
        "flash_attn_3",
        "flash-attn-3 3.0.0 is half installed: it has metadata but no module",
        EXPLAIN,
        "torch",
    ),
    *(
        Fault(
            f"flash-attn 3 {what}",
            (
                *H200,
                package("flash_attn_3", "3.0.0", "flash_attn_interface.py", text),
                env(HAL_PROBE_TIMEOUT="2"),
            ),
            "flash_attn_3",
            f"is installed but broken: importing flash_attn_interface {reason}",
            EXPLAIN,
            "torch",
        )
        for what, (text, reason) in HARM.items()
    ),
    Fault(
        "flash-attn 1",
        (*NVIDIA, package("flash-attn", "1.0.9", "flash_attn/flash_attn_interface.py")),
        "flash_attn_2",
        "flash-attn 1.0.9 is too old (needs 2.",
        EXPLAIN,
        "torch",
    ),
    Fault(
        "flash-attn 2: module but no metadata",
        (*NVIDIA, module("flash_attn/flash_attn_interface.py")),
        "flash_attn_2",
        "package flash-attn has no version in its metadata (needs 2.",
        EXPLAIN,
        "torch",
    ),
    Fault(
        "flash-attn 4 alone",
        (*NVIDIA, package("flash-attn-4", "4.0.0", "flash_attn/cute/interface.py")),
        "flash_attn_2",
        "flash-attn-4",
        EXPLAIN,
        "torch",
    ),
    Fault(
        "an old sgl-kernel",
        (*H200, package("sgl-kernel", "0.0.5", "sgl_kernel/flash_attn.py")),
        "flash_attn_3",
        "sgl-kernel 0.0.5 is too old (needs 0.3",
        EXPLAIN,
        "torch",
    ),
    Fault(
        "a broken kernel package asked for by name",
        (*H200, package("flash_attn_3", "3.0.0", "flash_attn_interface.py", HARM["aborts"][0])),
        "",
        "installed but broken: importing flash_attn_interface killed its process",
        ("-c", "import hal; hal.get_attention_impl(backend='flash_attn_3')"),
        code=1,
    ),
    Fault(
        "the wrong mate",
        (*MUSA, package("mate", "0.5.0", "mate/__init__.py", "'Matchers for unittest'")),
        "mate",
        "Matchers for unittest",
        EXPLAIN,
        "torch",
    ),
    Fault(
        "the wrong mate, for a machine that is not here",
        (package("mate", "0.5.0", "mate/__init__.py", "'Matchers for unittest'"),),
        "mate",
        "Matchers for unittest",
        (*EXPLAIN, "--device", "musa:mp31", "--packages", "installed"),
        "torch",
    ),
    # plugins
    Fault(
        "backend plugin raises",
        (plugin("hal.backends", "boom", "boom_plugin:Boom", "raise RuntimeError('boom')"),),
        "boom",
        "plugin boom (boom_plugin:Boom) did not load: RuntimeError: boom",
        BACKENDS,
    ),
    Fault(
        "backend plugin exits",
        (plugin("hal.backends", "boom", "boom_plugin:Boom", "raise SystemExit(3)"),),
        "boom",
        "did not load: SystemExit: 3",
        BACKENDS,
    ),
    Fault(
        "backend plugin names a class that is not there",
        (plugin("hal.backends", "boom", "boom_plugin:Boom"),),
        "boom",
        "did not load: AttributeError: module 'boom_plugin' has no attribute 'Boom'",
        BACKENDS,
    ),
    Fault(
        "backend plugin is no backend",
        (plugin("hal.backends", "thing", "thing_plugin:THING", "THING = 42"),),
        "thing",
        "plugin thing is no subclass of hal.AttentionBackend but 42",
        BACKENDS,
    ),
    Fault(
        "backend plugin under another name",
        (
            plugin(
                "hal.backends",
                "mine",
                "mine_plugin:Mine",
                "import hal\nclass Mine(hal.AttentionBackend):\n    name = 'yours'",
            ),
        ),
        "mine",
        "its class says name = 'yours'",
        BACKENDS,
    ),
    Fault(
        "two backend plugins of one name",
        (
            plugin("hal.backends", "twin", "first_twin:A"),
            plugin("hal.backends", "twin", "second_twin:B", distribution="second-twin"),
        ),
        "twin",
        "2 installed plugins are named 'twin'",
        BACKENDS,
    ),
    Fault(
        "backend plugin takes a known name",
        (plugin("hal.backends", "fa3", "fa3_plugin:A", "A = 1"),),
        "fa3",
        "the name is taken",
        BACKENDS,
    ),
    Fault(
        "a failed backend plugin asked for by name",
        (plugin("hal.backends", "boom", "boom_plugin:Boom", "raise RuntimeError('boom')"),),
        "",
        "--attention-backend boom: backend 'boom' can't be used: plugin boom (boom_plugin:Boom) did not load",
        ("explain", "--attention-backend", "boom"),
        code=2,
    ),
    Fault(
        "HAL_PLUGINS names a plugin that is not there",
        (plugin("hal.backends", "mine", "mine_plugin:Mine"), env(HAL_PLUGINS="ghost")),
        "ghost",
        "HAL_PLUGINS names 'ghost', which no installed package offers (offered: mine)",
        BACKENDS,
    ),
    Fault(
        "platform plugin raises",
        (plugin("hal.platforms", "xpu", "xpu_plugin", "import intel_driver"),),
        "xpu",
        "plugin xpu (xpu_plugin) did not load: ModuleNotFoundError: No module named 'intel_driver'",
        process=True,
    ),
    Fault(
        "platform plugin is no platform",
        (plugin("hal.platforms", "xpu", "xpu_plugin", "KIND = 'xpu'"),),
        "xpu",
        "plugin xpu is no platform: it has no TORCH_DEVICE, ARCHS, priority, probe",
        process=True,
    ),
    Fault(
        "platform plugin takes a known name",
        (plugin("hal.platforms", "cuda", "cuda_plugin"),),
        "cuda (plugin)",
        "the name is taken by HAL itself",
        process=True,
    ),
    Fault(
        "platform plugin's probe raises",
        (
            plugin(
                "hal.platforms",
                "xpu",
                "xpu_plugin",
                "KIND = TORCH_DEVICE = 'xpu'\nARCHS = ()\ndef priority(*args): return ()\n"
                "def probe(host): raise OSError('level zero is missing')",
            ),
        ),
        "xpu",
        "its probe raised OSError: level zero is missing",
        process=True,
    ),
    Fault(
        "platform plugin's probe exits",
        (
            plugin(
                "hal.platforms",
                "xpu",
                "xpu_plugin",
                "KIND = TORCH_DEVICE = 'xpu'\nARCHS = ()\ndef priority(*args): return ()\n"
                "def probe(host): raise SystemExit(1)",
            ),
        ),
        "xpu",
        "its probe raised SystemExit: 1",
        process=True,
    ),
    # bad HAL_* values
    Fault(
        "HAL_DEVICE unknown",
        (env(HAL_DEVICE="tpu"),),
        "",
        "HAL_DEVICE='tpu' is not valid: device 'tpu' is not known (known: auto, cpu, cuda, musa, npu, rocm",
        DEVICES,
        code=2,
    ),
    Fault(
        "HAL_DEVICE not here",
        (env(HAL_DEVICE="npu"),),
        "",
        "device 'npu' is not on this machine: no /dev/davinci*; torch_npu is not installed",
        DEVICES,
        code=1,
    ),
    Fault(
        "HAL_DEVICE with an index that is not here",
        (*NVIDIA, env(HAL_DEVICE="cuda:7")),
        "",
        "device 'cuda:7' is not on this machine",
        DEVICES,
        code=1,
    ),
    Fault(
        "HAL_ATTENTION_BACKEND unknown",
        (env(HAL_ATTENTION_BACKEND="fa9"),),
        "",
        "HAL_ATTENTION_BACKEND='fa9' is not valid: attention backend 'fa9' is not known, did you mean",
        EXPLAIN,
        code=2,
    ),
    Fault(
        "HAL_PROBE_TIMEOUT is no number",
        (env(HAL_PROBE_TIMEOUT="soon"),),
        "",
        "HAL_PROBE_TIMEOUT='soon' is not valid: expected a number of seconds",
        DEVICES,
        code=2,
    ),
    Fault(
        "HAL_PROBE_TIMEOUT is negative",
        (env(HAL_PROBE_TIMEOUT="-1"),),
        "",
        "HAL_PROBE_TIMEOUT='-1' is not valid: expected a number of seconds",
        DEVICES,
        code=2,
    ),
    Fault(
        "HAL_CHECK is neither 0 nor 1",
        (env(HAL_CHECK="yes"),),
        "",
        "HAL_CHECK='yes' is not valid: expected 0 or 1",
        ("-c", "from hal import env; env.get('HAL_CHECK')"),
        code=1,
    ),
    Fault(
        "a HAL_ variable that HAL does not read",
        (env(HAL_DEVISE="cuda"),),
        "",
        "environment variable HAL_DEVISE is not read by HAL",
        ("-v", "devices"),
    ),
]
