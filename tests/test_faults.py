"""Every fault of faults.py: the stated reason is there, and everything else still answers."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from faults import ASCEND, DEVICES, FAULTS, H200, HARM, MI300, MUSA, Fault
from machines import Machine, env, package, plugin, torch, torch_musa

from hal.platform import PlatformStatus, detect, probe_all

NO_FILES = {
    "musa": "no /dev/mtgpu*",
    "npu": "no /dev/davinci*",
    "rocm": "no /dev/kfd",
    "cuda": "no /dev/nvidia*",
}
FAKES = {
    "torch",
    "torch_musa",
    "torch_npu",
    "torchada",
    "flash_attn",
    "flash_attn_interface",
    "sgl_kernel",
    "mate",
}


def check_platforms(fault: Fault, rows: Iterable[tuple[str, bool, str]]) -> None:
    """The reason stands where it should; each other platform gives its own answer."""
    seen = {kind: (found, reason) for kind, found, reason in rows}
    assert {"musa", "npu", "rocm", "cuda", "cpu"} <= set(seen)
    assert fault.reason in seen[fault.where][1]
    for kind, text in NO_FILES.items():
        found, reason = seen[kind]
        if kind in (fault.answer, *fault.elsewhere):
            assert found or kind == fault.where
        elif kind != fault.where:
            assert not found
            assert text in reason
    assert seen["cpu"][0]


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.ask == DEVICES and f.where and not f.process], ids=str
)
def test_probe(fault: Fault, tmp_path: Path) -> None:
    before = set(sys.modules)
    host = Machine(tmp_path, *fault.parts).host()
    check_platforms(fault, [(row.kind, row.found, row.reason) for row in probe_all(host)])
    assert detect(host=host).kind == fault.answer
    assert not FAKES & (set(sys.modules) - before), "a fake package was imported into the test's own process"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_command(fault: Fault, tmp_path: Path) -> None:
    done = Machine(tmp_path, *fault.parts).hal(*fault.ask)
    assert done.returncode == fault.code, done.stderr
    if not fault.where:
        assert fault.reason in " ".join(done.stderr.split())
        return
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    if fault.ask[0] == "devices":
        check_platforms(fault, [(row["kind"], row["found"], row["reason"]) for row in report["platforms"]])
        assert report["selected"]["kind"] == fault.answer
    elif fault.ask[0] == "backends":
        rows = {row["name"]: row["failed"] for row in report}
        assert fault.reason in rows[fault.where]
        assert rows["torch"] is None
    else:
        (kind,) = report["kinds"]
        for phase in ("prefill", "decode"):
            reasons = {c["backend"]: c["reasons"] for c in kind[phase]["candidates"]}
            assert fault.reason in "; ".join(reasons[fault.where])
            assert kind[phase]["chosen"] == fault.answer
            assert reasons["torch"] == []


def test_there_are_enough() -> None:
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) >= 30


@pytest.mark.parametrize(
    ("parts", "device"),
    [
        (H200, "cuda:sm90"),
        (MI300, "rocm:gfx942"),
        (ASCEND, "npu:ascend910b"),
        (MUSA, "musa:mp31"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_machines_that_faults_are_added_to_are_found(parts: tuple, device: str, tmp_path: Path) -> None:
    # Without it a fault could be "seen" on a machine that never worked.
    assert str(detect(host=Machine(tmp_path, *parts).host())) == device


@pytest.mark.parametrize("kind", ["cuda", "rocm", "npu", "musa"])
def test_vendor_package_that_leaves_a_daemon_behind_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    daemon = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n    os._exit(0)\n"
    machines = {
        "cuda": (H200[0], torch(cuda="12.8", devices=(("NVIDIA H200", (9, 0)),), before=daemon)),
        "rocm": (MI300[0], torch(hip="6.4", devices=(("MI300X", "gfx942"),), before=daemon)),
        "npu": (*ASCEND[:1], torch(before=daemon), *ASCEND[2:]),
        "musa": (MUSA[0], torch(), torch_musa((3, 1), before=daemon)),
    }
    started = time.monotonic()
    assert detect(host=Machine(tmp_path, *machines[kind]).host()).kind == kind
    assert time.monotonic() - started < 20


def test_plugins_left_out_by_hal_plugins_are_never_imported(tmp_path: Path) -> None:
    bomb = HARM["aborts"][0]
    parts = (
        plugin("hal.backends", "bomb", "bomb_plugin:Bomb", bomb),
        plugin("hal.platforms", "xbomb", "xbomb", bomb),
    )
    armed = Machine(tmp_path / "armed", *parts)
    assert armed.hal("devices").returncode < 0, "the bomb must be one, or the rest proves nothing"
    for wanted in ("", "other"):
        done = Machine(tmp_path / f"wanted-{wanted}", *parts, env(HAL_PLUGINS=wanted)).hal(
            "backends", "--json"
        )
        assert done.returncode == 0, done.stderr
        assert "bomb" not in {row["name"] for row in json.loads(done.stdout)}


def test_broken_torch_does_not_hide_a_working_npu(tmp_path: Path) -> None:
    # Two vendors' devices in one machine: the first one's package is broken, the second one's turn comes.
    parts = (MUSA[0], torch_musa((3, 1), before=HARM["aborts"][0]), *ASCEND)
    rows: dict[str, PlatformStatus] = {row.kind: row for row in probe_all(Machine(tmp_path, *parts).host())}
    assert "importing torch_musa killed its process (SIGABRT)" in rows["musa"].reason
    assert rows["npu"].found


def test_a_package_that_works_is_used(tmp_path: Path) -> None:
    # The other half of "installed but broken": the same package without the harm is chosen.
    parts = (*H200, package("flash_attn_3", "3.0.0", "flash_attn_interface.py"))
    done = Machine(tmp_path, *parts).hal("explain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kinds"][0]["decode"]["chosen"] == "flash_attn_3"
