"""Platforms: what a device text means, which device a machine has, plugins. For machines see machines.py."""

import json
from pathlib import Path

import pytest
from faults import ASCEND, H200, MI300, MUSA, NVIDIA
from machines import Machine, Part, cann, cpuinfo, dev, env, plugin, torch, torch_musa, torch_npu

import hal
from hal.platform import PlatformNotFoundError, detect, probe_all
from hal.platforms import KINDS, table

# design.md section 5, spelled out: kind -> (what torch calls it, its archs).
KNOWN = {
    "cuda": ("cuda", "sm75 sm80 sm86 sm87 sm89 sm90 sm100 sm103 sm110 sm120 sm121"),
    "rocm": ("cuda", "gfx90a gfx942 gfx950 gfx1100 gfx1201"),
    "npu": ("npu", "ascend910a ascend910b ascend910c ascend310p ascend950"),
    "musa": ("musa", "mp21 mp22 mp31"),
    "cpu": ("cpu", "x86_64_v2 x86_64_v3 x86_64_v4 x86_64_v4_bf16 aarch64"),
}
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes sve bf16\nCPU implementer\t: 0x41\n"
V2 = "model name : Old\nflags : fpu sse2 ssse3 sse4_1 sse4_2 popcnt\n"
V3 = "flags : fpu sse2 sse4_2 abm avx avx2 bmi1 bmi2 f16c fma movbe\n"
V4 = V3[:-1] + " avx512f avx512bw avx512cd avx512dq avx512vl\n"

XPU = """
from hal.platform import Platform, Probe
KIND = TORCH_DEVICE = "xpu"
ARCHS = ("xe2", "xe3")
def priority(arch, mla, phase):
    return ("torch",)
def probe(host):
    if not host.glob("/dev/xe*"):
        return Probe((), "no /dev/xe*")
    return Probe((Platform("xpu", "xe2", "xpu:0", 0, "Fake Arc"),), "level zero 1.0")
"""


@pytest.mark.parametrize(
    ("kind", "arch"), [(k, arch) for k, (_, archs) in KNOWN.items() for arch in archs.split()]
)
def test_parse_every_arch(kind: str, arch: str) -> None:
    platform = hal.Platform.parse(f"{kind}:{arch}")
    assert (platform.kind, platform.arch, platform.torch_device) == (kind, arch, KNOWN[kind][0])
    assert str(platform) == f"{kind}:{arch}"
    assert platform.name == "", "an arch names a machine that need not be here"


def test_no_arch_is_missing_from_the_list_above() -> None:
    assert {kind: " ".join(module.ARCHS) for kind, module in table().items()} == {
        k: v for k, (_, v) in KNOWN.items()
    }


@pytest.mark.parametrize(
    ("text", "kind", "torch_device", "index"),
    [
        ("cuda", "cuda", "cuda", 0),
        ("cuda:1", "cuda", "cuda:1", 1),
        ("rocm:3", "rocm", "cuda:3", 3),
        ("npu:15", "npu", "npu:15", 15),
        ("musa", "musa", "musa", 0),
        ("cpu", "cpu", "cpu", None),
    ],
)
def test_parse_kind_and_index(text: str, kind: str, torch_device: str, index: int | None) -> None:
    platform = hal.Platform.parse(text)
    assert (platform.kind, platform.arch, platform.torch_device, platform.index) == (
        kind,
        None,
        torch_device,
        index,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tpu", "device 'tpu' is not known (known: auto, cpu, cuda, musa, npu, rocm"),
        ("", "device '' is not known"),
        ("CUDA", "device 'CUDA' is not known"),
        (None, "device None is not known"),
        (0, "device 0 is not known"),
        ("cuda:", "'' is no arch of cuda (archs: sm75,"),
        ("cuda:sm70", "device 'cuda:sm70': 'sm70' is no arch of cuda (archs: sm75, sm80,"),
        ("cuda:-1", "'-1' is no arch of cuda"),
        ("cuda:1.5", "'1.5' is no arch of cuda"),
        ("cuda:gfx942", "'gfx942' is no arch of cuda"),
        ("cuda:sm90:1", "'sm90:1' is no arch of cuda"),
        ("rocm:gfx906", "(archs: gfx90a, gfx942, gfx950, gfx1100, gfx1201)"),
        ("npu:910b", "(archs: ascend910a, ascend910b, ascend910c, ascend310p, ascend950)"),
        ("musa:mp10", "(archs: mp21, mp22, mp31)"),
        ("cpu:0", "(archs: x86_64_v2, x86_64_v3, x86_64_v4, x86_64_v4_bf16, aarch64)"),
        ("auto", "device 'auto' is not known"),
    ],
)
def test_parse_refuses_and_lists_what_is_known(text: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        hal.Platform.parse(text)  # type: ignore[arg-type]
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        (ARM, "aarch64"),
        (V2, "x86_64_v2"),
        (V3, "x86_64_v3"),
        (V4, "x86_64_v4"),
        (V4[:-1] + " avx512_bf16\n", "x86_64_v4_bf16"),
    ],
)
def test_cpu_arch(text: str, arch: str, tmp_path: Path) -> None:
    found = detect("cpu", Machine(tmp_path, cpuinfo(text)).host())
    assert (found.arch, found.torch_device, found.index) == (arch, "cpu", None)
    assert found.name


@pytest.mark.parametrize(
    ("machine", "arch"), [("arm64", "aarch64"), ("x86_64", "x86_64_v2"), ("ppc64le", None)]
)
def test_cpu_without_cpuinfo(
    machine: str, arch: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    row = next(row for row in probe_all(Machine(tmp_path, cpuinfo("")).host()) if row.kind == "cpu")
    assert row.found
    assert row.devices[0].arch == arch
    assert ("machine ppc64le is none that HAL knows (archs: x86_64_v2" in row.reason) == (arch is None)


@pytest.mark.parametrize(
    ("soc", "arch"),
    [
        (100, "ascend910a"),
        (104, "ascend910a"),
        (200, "ascend310p"),
        (205, "ascend310p"),
        (220, "ascend910b"),
        (225, "ascend910b"),
        (250, "ascend910c"),
        (256, "ascend910c"),
        (260, "ascend950"),
    ],
)
def test_ascend_arch(soc: int, arch: str, tmp_path: Path) -> None:
    # torch_npu's SocVersion numbers: 910A, 310P, A2 (910B), A3 (910_93), 950.
    machine = Machine(tmp_path, *ASCEND[:2], torch_npu(soc, count=2), cann())
    assert str(detect("npu:1", machine.host())) == f"npu:{arch}"


@pytest.mark.parametrize(("capability", "arch"), [((2, 1), "mp21"), ((2, 2), "mp22"), ((3, 1), "mp31")])
def test_musa_arch(capability: tuple[int, int], arch: str, tmp_path: Path) -> None:
    assert detect("musa", Machine(tmp_path, *MUSA[:2], torch_musa(capability)).host()).arch == arch


@pytest.mark.parametrize("files", ["nvidia0", "nvidia12", "dxg", "nvhost-gpu", "nvgpu/igpu0"])
def test_cuda_device_files(files: str, tmp_path: Path) -> None:
    # Linux, WSL, Jetson before and since JetPack 6.
    assert detect(host=Machine(tmp_path, dev(files), H200[1]).host()).kind == "cuda"


@pytest.mark.parametrize("files", ["nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"])
def test_files_of_the_nvidia_driver_alone_are_no_device(files: str, tmp_path: Path) -> None:
    assert detect(host=Machine(tmp_path, dev(files), H200[1]).host()).kind == "cpu"


# What each machine's shims make torch.cuda say must not matter: (parts, the device expected).
SHIMMED: list[tuple[str, tuple[Part, ...], str]] = [
    (
        "torchada on MUSA, beside NVIDIA's device files",
        (dev("mtgpu.0", "nvidia0"), torch(cuda="12.8", devices=(("MTT S5000", (9, 0)),)), torch_musa((3, 1))),
        "musa",
    ),
    (
        "transfer_to_npu on Ascend",
        (
            dev("davinci0", "davinci_manager", "nvidia0"),
            torch(cuda="12.8", devices=(("Ascend910B", (9, 0)),)),
            torch_npu(),
            cann(),
        ),
        "npu",
    ),
    ("ROCm's torch.cuda beside NVIDIA's device files", (*MI300, dev("nvidia0")), "rocm"),
    ("MUSA before Ascend", (*MUSA, dev("davinci0", "davinci_manager"), torch_npu(), cann()), "musa"),
    ("NVIDIA", H200, "cuda"),
    ("nothing", (), "cpu"),
]


@pytest.mark.parametrize(("parts", "kind"), [row[1:] for row in SHIMMED], ids=[row[0] for row in SHIMMED])
def test_order_of_detection(parts: tuple[Part, ...], kind: str, tmp_path: Path) -> None:
    host = Machine(tmp_path, *parts).host()
    assert detect(host=host).kind == kind
    assert [row.kind for row in probe_all(host)] == list(KINDS) == ["musa", "npu", "rocm", "cuda", "cpu"]


def test_detection_stops_at_the_first_device(tmp_path: Path) -> None:
    # What comes later in the order may be broken or slow: it is not asked.
    witness = tmp_path / "imported"
    parts = (
        *MUSA,
        dev("nvidia0"),
        torch(
            cuda="12.8",
            before=f"import os\nif 'torch_musa' not in "
            f"__import__('sys').modules: open({str(witness)!r}, 'w')",
        ),
    )
    (tmp_path / "m").mkdir()
    machine = Machine(tmp_path / "m" / "x", MUSA[0], dev("nvidia0"), parts[-1], torch_musa((3, 1)))
    assert detect(host=machine.host()).kind == "musa"
    assert not witness.exists()
    assert detect("cpu", machine.host()).kind == "cpu"
    assert not witness.exists()
    probe_all(machine.host())
    assert witness.exists(), "the witness must be one, or the rest proves nothing"


TWO = (
    dev("nvidia0", "nvidia1"),
    torch(cuda="12.8", devices=(("NVIDIA R900", (9, 9)), ("NVIDIA A100", (8, 0)), ("NVIDIA H200", (9, 0)))),
)


@pytest.mark.parametrize(
    ("device", "index"),
    [("auto", 1), ("cuda", 1), ("cuda:1", 1), ("cuda:2", 2), ("cuda:sm90", 2), ("cuda:sm80", 1)],
)
def test_detect_index_and_arch(device: str, index: int, tmp_path: Path) -> None:
    # Device 0 is of an unknown arch: it keeps its number, and "cuda" means the first that can be used.
    found = detect(device, Machine(tmp_path, *TWO).host())
    assert (found.index, found.torch_device) == (index, f"cuda:{index}")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda:0", "device 'cuda:0' is not on this machine"),
        ("cuda:0", "cuda:0 (NVIDIA R900) is sm99, which HAL does not know"),
        ("cuda:3", "Here: cuda:1 (cuda:sm80), cuda:2 (cuda:sm90), cpu (cpu:x86_64_v3)"),
        ("cuda:sm100", "device 'cuda:sm100' is not on this machine"),
        ("rocm", "no /dev/kfd; torch is built without ROCm (2.13.0)"),
    ],
)
def test_detect_refuses_what_is_not_here(device: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(PlatformNotFoundError) as caught:
        detect(device, Machine(tmp_path, *TWO).host())
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("value", "device", "torch_device"),
    [
        ("cpu", "auto", "cpu"),
        ("cuda:2", "auto", "cuda:2"),
        ("", "auto", "cuda:1"),
        ("auto", "auto", "cuda:1"),
        ("cuda:2", "cpu", "cpu"),
        ("tpu", "cuda:2", "cuda:2"),
    ],
)
def test_hal_device_stands_for_auto_only(value: str, device: str, torch_device: str, tmp_path: Path) -> None:
    assert detect(device, Machine(tmp_path, *TWO, env(HAL_DEVICE=value)).host()).torch_device == torch_device


def test_probe_all_is_hal_platforms(tmp_path: Path) -> None:
    host = Machine(tmp_path, *NVIDIA).host()
    assert hal.platforms(host) == probe_all(host)
    assert json.loads(json.dumps([row.to_dict() for row in hal.platforms(host)]))[3] == {
        "kind": "cuda",
        "found": True,
        "reason": "torch 2.13.0",
        "devices": [
            {"kind": "cuda", "arch": "sm80", "torch_device": "cuda:0", "index": 0, "name": "NVIDIA A100"}
        ],
    }


def test_platform_plugin_end_to_end(tmp_path: Path) -> None:
    parts = (*NVIDIA, plugin("hal.platforms", "xpu", "xpu_plugin", XPU))
    here = Machine(tmp_path / "here", *parts, dev("xe0"))
    report = json.loads(here.hal("devices", "--json").stdout)
    # Plugins come first: they were installed on purpose.
    assert [row["kind"] for row in report["platforms"]] == ["xpu", *KINDS]
    assert report["selected"] == {
        "kind": "xpu",
        "arch": "xe2",
        "torch_device": "xpu:0",
        "index": 0,
        "name": "Fake Arc",
    }
    assert next(row for row in report["platforms"] if row["kind"] == "cuda")["found"], (
        "the others still answer"
    )

    away = Machine(tmp_path / "away", *parts)
    report = json.loads(away.hal("devices", "--json").stdout)
    assert report["platforms"][0] == {"kind": "xpu", "found": False, "reason": "no /dev/xe*", "devices": []}
    assert report["selected"]["kind"] == "cuda"

    left_out = Machine(tmp_path / "left-out", *parts, dev("xe0"), env(HAL_PLUGINS=""))
    assert json.loads(left_out.hal("devices", "--json").stdout)["selected"]["kind"] == "cuda"


def test_platform_plugin_is_a_device_for_everything(tmp_path: Path) -> None:
    machine = Machine(tmp_path, plugin("hal.platforms", "xpu", "xpu_plugin", XPU))
    code = (
        "import hal, argparse\n"
        "assert hal.Platform.parse('xpu:xe3').torch_device == 'xpu'\n"
        "parser = argparse.ArgumentParser(); hal.add_cli_args(parser)\n"
        "assert hal.from_cli_args(parser.parse_args(['--device', 'xpu:xe3'])).device == 'xpu:xe3'\n"
        "hal.Platform.parse('xpu:xe9')"
    )
    done = machine.hal("-c", code)
    assert "ValueError: device 'xpu:xe9': 'xe9' is no arch of xpu (archs: xe2, xe3)" in done.stderr


@pytest.mark.parametrize(
    ("kind", "parts", "extension"), [("musa", MUSA, "torch_musa"), ("npu", ASCEND, "torch_npu")]
)
def test_extension_is_loaded_before_anything_is_bound(
    kind: str, parts: tuple[Part, ...], extension: str, tmp_path: Path
) -> None:
    # Detection asks a child process, so torch in this one does not know these devices yet.
    code = (
        f"import sys\nfrom hal.platform import detect\nassert detect().kind == {kind!r}\n"
        f"assert {extension!r} not in sys.modules\n"
        f"from hal.torch_import import load_extension\nload_extension({kind!r})\n"
        f"assert {extension!r} in sys.modules"
    )
    done = Machine(tmp_path, *parts).hal("-c", code)
    assert done.returncode == 0, done.stderr


def test_extension_that_does_not_load_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path, torch(), torch_musa(before="raise OSError('libmusa.so.4 is missing')"))
    done = machine.hal("-c", "from hal.torch_import import load_extension; load_extension('musa')")
    assert "ImportError: importing torch_musa failed: OSError: libmusa.so.4 is missing" in done.stderr
