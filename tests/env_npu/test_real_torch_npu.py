"""HAL beside the real torch_npu wheel where CANN is missing: a plain `import torch` dies there, HAL must not.

Everything runs in a subprocess: what is tested is what a fresh process does, and a failed import of torch
can't be retried in the same one.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*args: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("HAL_", "ASCEND_"))}
    environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=environ, capture_output=True, text=True,
                          timeout=120, check=False)


def passes(code: str) -> str:
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_import_torch_dies_here() -> None:
    # The premise of this file. Without it the other tests would pass for nothing.
    assert importlib.metadata.version("torch_npu") == "2.13.0"
    done = python("-c", "import torch")
    assert done.returncode != 0
    assert "Failed to load the backend extension: torch_npu" in done.stderr


def test_import_hal_loads_neither() -> None:
    passes("import sys, hal, hal.backends, hal.platforms\n"
           "assert not {'torch', 'torch_npu'} & set(sys.modules)")


def test_devices_says_why_there_is_no_npu() -> None:
    done = python("-m", "hal", "devices", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    npu = next(row for row in report["platforms"] if row["kind"] == "npu")
    assert npu["found"] is False
    assert npu["devices"] == []
    assert "/dev/davinci" in npu["reason"]
    assert "libascendcl.so" in npu["reason"]
    assert "CANN" in npu["reason"]
    assert report["selected"]["kind"] == "cpu"


def test_load_torch_survives_and_says_so() -> None:
    code = ("import logging, os; logging.basicConfig()\n"
            "from hal.torch_import import load_torch\n"
            "torch = load_torch()\n"
            "assert load_torch() is torch\n"
            "assert 'TORCH_DEVICE_BACKEND_AUTOLOAD' not in os.environ\n"
            "print(torch.ones(2).sum().item(), torch.__version__)")
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.0 2.13.0")
    assert "libascendcl.so" in done.stderr
    assert "NPU will not be used" in done.stderr


def test_attention_on_the_cpu_still_works() -> None:
    code = ("import hal\n"
            "attn = hal.get_attention_impl(hal.AttentionConfig(page_size=16), device='cpu')\n"
            "import torch\n"
            "q = torch.ones(3, 32, 128, dtype=torch.bfloat16)\n"
            "kv = torch.ones(3, 8, 128, dtype=torch.bfloat16)\n"
            "lens = torch.tensor([0, 3], dtype=torch.int32)\n"
            "out = attn.flash_attn_varlen_func(q, kv, kv, lens, lens, 3, 3, causal=True)\n"
            "print(out.float().mean().item())")
    assert float(passes(code)) == 1.0


def test_asking_for_npu_is_refused_with_the_reason() -> None:
    done = python("-c", "import hal; hal.detect('npu')")
    assert done.returncode != 0
    assert "libascendcl.so" in done.stderr
    assert "PlatformNotFoundError" in done.stderr


def test_hypothetical_npu_can_be_explained_here() -> None:
    done = python("-m", "hal", "explain", "--device", "npu:ascend910b", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["platform"]["arch"] == "ascend910b"
