"""verify_emulated.py BACKEND [--arch ARCH] [--quick] [--case TEXT] [--seed N] [--json FILE]: the conformance grid
against an emulator of the vendor's package.

The emulators and their devices stand in EMULATED below; --arch is for backends that have several there. Ascend's run
the real torch_npu over the fake NPU of tests/fake_npu, so with the Python that ci/env_npu.sh makes (.venv-npu). The
whole grid leaves a record, docs/evidence/emulated-BACKEND-KIND-ARCH.json, which proves the level "emulated" for the
code as it is now; --quick and --case leave none unless --json says where.
Exit codes: 0 passed, 1 something failed or is unproven, 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the emulators are there

from hal import registry
from hal.commands.verify import _compact, _readable
from hal.conformance.case import Case
from hal.conformance.grid import grid
from hal.conformance.record import emulator_files, record, summary
from hal.conformance.runner import Result, Runner
from hal.platform import Platform

ROOT, SEED = Path(__file__).resolve().parents[1], 20260


class Emulated(NamedTuple):
    """emulator: its file. kind, archs: the devices that are emulated, the usual one first. open: a context with the
    package installed on a device of an arch."""

    emulator: str
    kind: str
    archs: tuple[str, ...]
    open: Callable[[str], AbstractContextManager[Any]]

    def platform(self, arch: str) -> Platform:
        return Platform(self.kind, arch, f"{self.kind}:0", 0, f"emulated {arch}")


@contextmanager
def _mate(arch: str) -> Any:
    from emulators.mate import mate
    from emulators.torch_musa import TorchMusa

    with ExitStack() as stack:
        machine = stack.enter_context(TorchMusa("musa:0"))
        yield stack.enter_context(mate(current_device=machine.current).installed())


def _cuda(*packages: str) -> Callable[[str], AbstractContextManager[Any]]:
    """An NVIDIA GPU with vendor packages: their calls are the machine's."""
    def open_machine(arch: str) -> AbstractContextManager[Any]:
        from flash_attn_machines import there

        return there(arch, *packages)

    return open_machine


# Arch -> the SoC of tests/fake_npu that stands for it.
SOCS = {"ascend910b": "910b1", "ascend910c": "910_9391", "ascend950": "950", "ascend310p": "310p3"}


def _fake_npu(arch: str) -> AbstractContextManager[Any]:
    """The fake NPU of this process (main() starts a process that has one); its log is cut to a length of its own."""
    return nullcontext(SimpleNamespace(calls=[]))


# Version 3's providers at once: what one refuses (sinks, context parallelism) the next serves.
_THREE = ("tests/emulators/flash_attn_3.py", "cuda", ("sm90",), _cuda("flash-attn-3", "sglang-kernel", "vllm"))
_NPU = ("tests/fake_npu/answer.py", "npu", ("ascend910b", "ascend910c", "ascend950"), _fake_npu)
_MATE = ("tests/emulators/mate.py", "musa", ("mp31",), _mate)
EMULATED = {
    "mate": Emulated(*_MATE),
    "mate_mla": Emulated(*_MATE),
    "flash_attn_2": Emulated("tests/emulators/flash_attn_2.py", "cuda", ("sm80",), _cuda("flash-attn")),
    "flash_attn_3": Emulated(*_THREE),
    "flash_attn_4": Emulated("tests/emulators/flash_attn_4.py", "cuda", ("sm100", "sm90", "sm103", "sm110"),
                             _cuda("flash-attn-4")),
    "flash_attn_diffkv": Emulated(*_THREE),
    "flash_attn_mla": Emulated(*_THREE),
    "ascend": Emulated(*_NPU),
    "ascend_mla": Emulated(*_NPU),
    "ascend_310p": Emulated("tests/fake_npu/atb.py", "npu", ("ascend310p",), _fake_npu),
}


def results(backend: str, arch: str, cases: list[Case], seed: int) -> list[Result]:
    """How each case ended."""
    import torch

    torch.set_num_threads(1)  # several processes share the cores
    row = EMULATED[backend]
    with row.open(arch) as vendor:
        runner, found = Runner(registry.get(backend), row.platform(arch), seed), []
        for case in cases:
            found.append(runner.run(case))
            vendor.calls.clear()
        return found


def _share(backend: str, arch: str, first: int, step: int, quick: bool, text: str,
           seed: int) -> list[tuple[int, Result]]:
    cases = _cases(backend, quick, text)
    where = range(first, len(cases), step)
    return list(zip(where, results(backend, arch, [cases[i] for i in where], seed)))


def _cases(backend: str, quick: bool, text: str) -> list[Case]:
    return [case for case in grid(registry.get(backend), not quick) if text in case.name]


def run(backend: str, arch: str, quick: bool, text: str, seed: int, jobs: int) -> dict[str, Any]:
    """The record. Its versions are those of the emulated package."""
    start, row = time.monotonic(), EMULATED[backend]
    emulator = emulator_files(ROOT, row.emulator)
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        shares = [pool.submit(_share, backend, arch, n, jobs, quick, text, seed) for n in range(jobs)]
        found = [result for _, result in sorted((r for share in shares for r in share.result()), key=lambda r: r[0])]
    with row.open(arch):
        made = record(row.platform(arch), {backend: summary(registry.get(backend), found, not text)},
                      "quick" if quick else "full", seed, "none: emulated", time.monotonic() - start)
    command = f"python ci/verify_emulated.py {backend}" + f" --arch {arch}" * (arch != row.archs[0])
    return {**made, "emulator": row.emulator, "emulator_files": emulator, "command": command}


def on_fake_npu(arch: str) -> None:
    """Start this command again in a process that has the fake NPU; returns there."""
    try:
        from fake_npu import SOCS as NAMES
        from fake_npu import start
        from fake_npu.build import BuildError
    except ImportError as error:
        raise SystemExit(f"verify_emulated.py: {error}") from error
    here = os.environ.get("FAKE_NPU_SOC")
    if here is not None:
        if here != NAMES[SOCS[arch]]:
            raise SystemExit(f"verify_emulated.py: this process has a fake {here}, {arch} is {NAMES[SOCS[arch]]}")
        return
    try:
        environ = start(SOCS[arch], devices=1)
    except BuildError as error:
        raise SystemExit(f"verify_emulated.py: {error} (ci/env_npu.sh makes .venv-npu)") from error
    os.execvpe(sys.executable, [sys.executable, *sys.argv], environ)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=EMULATED)
    parser.add_argument("--arch", help="one of those emulated (default: the first, in EMULATED below)")
    parser.add_argument("--quick", action="store_true", help="each feature at least once")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: a whole number >= 1")
    if not _cases(args.backend, args.quick, args.case):
        parser.error(f"--case {args.case!r} is in no case's name")
    row = EMULATED[args.backend]
    arch = args.arch or row.archs[0]
    if arch not in row.archs:
        parser.error(f"--arch {arch}: {args.backend} is emulated on {', '.join(row.archs)}")
    if row.kind == "npu":
        on_fake_npu(arch)
    made = run(args.backend, arch, args.quick, args.case, args.seed, args.jobs)
    where = row.platform(arch)
    target = args.json
    if target is None and not (args.quick or args.case):
        target = ROOT / "docs" / "evidence" / f"emulated-{args.backend}-{where.kind}-{where.arch}.json"
    if target is not None:
        target.write_text(_compact(made))
        print(f"written: {target}")
    print(_readable(made, []))
    part = made["backends"][args.backend]
    return int(bool(part["failed"] or part["unproven"] or not part["passed"]))


if __name__ == "__main__":
    sys.exit(main())
