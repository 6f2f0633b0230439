"""hal run: a Python program whose flash_attn is HAL's, on any device. Nothing in the program changes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from hal import env
from hal.cli_args import Once
from hal.compat import binding, installing
from hal.compat.stand_ins import STAND_INS
from hal.decision import NoBackendError
from hal.platform import Platform, detect

HELP = "run a Python program that imports flash_attn, with HAL's kernels in its place"
EPILOG = """examples:
  hal run generate.py --model DIR                    generate.py says `from flash_attn import ...`, or transformers
                                                     is told attn_implementation="flash_attention_2"
  hal run --device cpu --attention-backend torch -m package.module arguments...
  hal run --flash-attn-version 3 script.py           flash_attn_interface alone

Options of HAL come before the program; what comes after it is the program's. The program is Python's own to run: its
exit code, tracebacks and signals are what `python PROGRAM` would give, and Python processes that it starts are served
too. Inference only. docs/drop-in.md has what is served and what is refused.

exit codes: the program's; 1 no backend can serve, 2 a wrong argument or device, before the program starts
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hal run [options] (program.py | -m module) [arguments...]"
    parser.add_argument("--device", metavar="DEVICE", action=Once,
                        help="auto: tensors are served wherever they are; else the device they must be on "
                             "(default: $HAL_DEVICE, else auto)")
    parser.add_argument("--attention-backend", metavar="NAME", action=Once,
                        help="backend or alias; strict: one that can't serve is an error (default: auto)")
    parser.add_argument("--flash-attn-version", choices=(*STAND_INS, "both"), action=Once, metavar="VERSION",
                        help="2 (the package flash_attn), 3 (flash_attn_interface) or both (default: both, but for "
                             "one that is installed and serves the device itself)")
    parser.add_argument("-m", dest="as_module", action="store_true", help="PROGRAM is a module, as python -m has it")
    parser.add_argument("program", metavar="PROGRAM",
                        help="a file, a folder or zip with __main__.py, or with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")


def run(args: argparse.Namespace) -> int:
    """Decide, say so on one line of stderr, and become the program. Returns only where it can't."""
    if not args.as_module and not Path(args.program).exists():
        raise ValueError(f"no such file: {args.program} (a module is named with -m)")
    if args.attention_backend not in (None, "auto"):
        env.VARIABLES["HAL_ATTENTION_BACKEND"].parse(args.attention_backend)
    if args.device not in (None, "auto"):
        Platform.parse(args.device)
    backend = args.attention_backend or str(env.get("HAL_ATTENTION_BACKEND"))
    wanted = args.flash_attn_version
    versions = None if wanted is None else list(STAND_INS) if wanted == "both" else [wanted]
    decided = installing.plan(versions, detect(args.device or "auto"))
    decision = binding.usual(decided.platform, backend)
    if not decision.complete:
        raise NoBackendError({"all": decision}, backend)
    kernels = " and ".join(dict.fromkeys((str(decision.prefill.chosen), str(decision.decode.chosen))))
    print(f"hal run: {decided.sentences()} (kernels: {kernels})", file=sys.stderr, flush=True)
    if args.verbose:
        print(decision, file=sys.stderr, flush=True)
    environ = dict(os.environ)
    environ["HAL_FLASH_ATTN"] = ",".join(stand_in.number for stand_in in decided.answered)
    if args.device is not None:
        environ["HAL_DEVICE"] = args.device
    if args.attention_backend is not None:
        environ["HAL_ATTENTION_BACKEND"] = args.attention_backend
    # The folder of sitecustomize.py, which every Python runs before anything else.
    startup = importlib.util.find_spec("hal.compat.startup")
    folders = [str(Path(str(startup and startup.origin)).parent), environ.get("PYTHONPATH")]
    environ["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    command = [sys.executable, *(["-m"] if args.as_module else []), args.program, *args.arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, environ)
