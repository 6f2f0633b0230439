"""Runs a command in a process that has a fake NPU.

    PYTHONPATH=tests python -m fake_npu --soc 910_9391 --devices 2 -- python -m hal devices
"""

from __future__ import annotations

import argparse
import os

from fake_npu import SOCS, TRAPS, start
from fake_npu.build import BuildError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fake_npu", description="Run a command with a fake Ascend NPU.")
    parser.add_argument("--soc", choices=SOCS, default="910b1")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--trap", choices=TRAPS, action="append", default=[], dest="traps")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        environ = start(options.soc, options.devices, options.traps)
    except (BuildError, ValueError) as error:
        parser.error(str(error))
    os.execvpe(options.command[0], options.command, environ)


main()
