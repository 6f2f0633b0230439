"""The fake NPU from outside: generations, visible devices, a missing driver, and HAL's words for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_npu
import pytest
from fake_npu.build import BuildError

ROOT = Path(__file__).parents[2]
ASK = """
import torch, torch_npu
x = torch.zeros(2, 4, 128, dtype=torch.float16, device="npu")
fia = torch_npu.npu_fused_infer_attention_score
try:
    fia(x, x, x, input_layout="TND", num_heads=4, actual_seq_lengths=[1, 2], actual_seq_lengths_kv=[1, 2])
    from fake_npu.answer import calls
    said = calls[-1][0]
except RuntimeError as error:
    said = str(error)
import json
number = torch_npu.npu.utils.get_soc_version()
print(json.dumps([torch.npu.get_device_name(0), number, torch.npu.is_bf16_supported(), said]))
"""


def run(*command: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """A Python command with a fake NPU. changes: for start(), and `environ`, set over its result."""
    extra = changes.pop("environ", {})
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    environ = fake_npu.start(**changes, environ=clean) | extra
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True,
                          timeout=120, check=False)


@pytest.mark.parametrize(("soc", "name", "number", "bfloat16", "said"), [
    # SoC numbers: torch_npu's SocVersion; 950 goes to V5 alone: op-plugin, FusedInferAttentionScoreKernelNpuOpApi.cpp.
    ("910_9391", "Ascend910_9391", 250, True, "aclnnFusedInferAttentionScoreV3"),
    ("950", "Ascend950PR_9579", 260, True, "aclnnFusedInferAttentionScoreV5"),
    ("310p3", "Ascend310P3", 202, False, "Ascend310P is not supported"),
    ("910a", "Ascend910A", 102, False, "Ascend910A is not supported"),
])
def test_generations(soc: str, name: str, number: int, bfloat16: bool, said: str) -> None:
    done = run("-c", ASK, soc=soc)
    assert done.returncode == 0, done.stderr
    found_name, found_number, found_bfloat16, found = json.loads(done.stdout.splitlines()[-1])
    assert (found_name, found_number, found_bfloat16) == (name, number, bfloat16)
    assert said in found


def test_visible_devices_are_counted_and_start_at_zero() -> None:
    code = "import torch; print(torch.npu.device_count(), torch.npu.is_available())"
    assert run("-c", code, devices=3, environ={"ASCEND_RT_VISIBLE_DEVICES": "2,0"}).stdout.endswith("2 True\n")
    assert run("-c", code, devices=2, environ={"ASCEND_RT_VISIBLE_DEVICES": "1,7,0"}).stdout.endswith("1 True\n")


def test_no_device_is_no_error() -> None:
    done = run("-c", "import torch; print(torch.npu.device_count(), torch.npu.is_available())", devices=0)
    assert done.stdout.endswith("0 False\n"), done.stderr


def test_without_the_driver_importing_torch_fails() -> None:
    done = run("-c", "import torch", driver=False)
    assert done.returncode != 0
    assert "libascend_hal.so: cannot open shared object file" in done.stderr


def npu_row(**changes: Any) -> dict[str, Any]:
    done = run("-m", "hal", "devices", "--json", **changes)
    assert done.returncode == 0, done.stderr
    start = done.stdout.index("{")  # torch_npu may print before
    return next(row for row in json.loads(done.stdout[start:])["platforms"] if row["kind"] == "npu")


ARCHS = {"910a": "ascend910a", "910b1": "ascend910b", "910b4": "ascend910b", "910_9391": "ascend910c",
         "910_9362": "ascend910c", "310p3": "ascend310p", "950": "ascend950"}


def test_every_generation_is_asked_about() -> None:
    assert ARCHS.keys() == fake_npu.SOCS.keys()


@pytest.mark.parametrize(("soc", "arch"), ARCHS.items())
def test_hal_finds_the_devices(soc: str, arch: str) -> None:
    row = npu_row(soc=soc)
    assert row["found"] is True
    assert [device["arch"] for device in row["devices"]] == [arch, arch]
    assert {device["name"] for device in row["devices"]} == {fake_npu.SOCS[soc]}
    if soc in ("910b4", "910_9362"):
        return  # as the other of its generation
    # What the generation has not is refused with the reason, before anything is imported for it.
    code = ("import hal; from hal.decision import NoBackendError\n"
            "def ask(**c):\n"
            "    try: return hal.get_attention_impl(hal.AttentionConfig(**c), 'npu', backend='ascend').decode.backend\n"
            "    except NoBackendError as error: return ' '.join(str(error).split())\n"
            "print(ask(dtype='float16'))")
    said = run("-c", code, soc=soc).stdout.splitlines()[-1]
    if arch == "ascend910a":
        assert f"arch {arch} is not supported" in said
        assert "has no npu_fused_infer_attention_score" in said
    else:  # an alias there
        assert said == ("ascend_310p" if arch == "ascend310p" else "ascend")


def test_hal_counts_visible_devices() -> None:
    row = npu_row(devices=3, environ={"ASCEND_RT_VISIBLE_DEVICES": "2,0"})
    assert [device["torch_device"] for device in row["devices"]] == ["npu:0", "npu:1"]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"driver": False}, "libascend_hal.so"),
    ({"devices": 0}, "no /dev/davinci"),
    ({"environ": {"ASCEND_RT_VISIBLE_DEVICES": ""}}, "ASCEND_RT_VISIBLE_DEVICES is empty"),
    ({"environ": {"FAKE_NPU_DEVICES": "0"}}, "is the NPU driver loaded?"),  # device files, but the driver shows none
    ({"environ": {"ASCEND_RT_VISIBLE_DEVICES": "7"}}, "ASCEND_RT_VISIBLE_DEVICES=7 names no device that is here"),
    ({"environ": {"ASCEND_RT_VISIBLE_DEVICES": "-1"}}, "ASCEND_RT_VISIBLE_DEVICES=-1 hides every device"),
])
def test_hal_says_why_not(changes: dict[str, Any], reason: str) -> None:
    row = npu_row(**changes)
    assert row["found"] is False
    assert reason in row["reason"]


@pytest.mark.parametrize(("arguments", "text"), [
    ({"soc": "910c"}, "soc '910c' is not known here: 910a, 910b1"),
    ({"traps": ["typo"]}, "traps \\['typo'\\] are not known here: uniform_average"),
    ({"devices": 17}, "devices is 17"),
])
def test_start_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fake_npu.start(**arguments)


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"gcc, g\+\+, nm, readelf not found"):
        fake_npu.start()


def test_counters_are_for_a_process_that_has_the_device() -> None:
    with pytest.raises(RuntimeError, match="no fake NPU"):
        fake_npu.counters()


def test_the_vendor_script_takes_it_for_no_chip() -> None:
    environ = fake_npu.start() | {"PYTHON": sys.executable}
    done = subprocess.run(["ci/npu.sh"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 77
    assert done.stdout.startswith("NOT RUN: this is the fake NPU")
