"""hal run: a Python program whose flash_attn is HAL's, on any device. Nothing in the program changes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    # One list: of two arguments argparse takes a `--` between them for its own.
    parser.add_argument("program", metavar="PROGRAM", nargs=argparse.PARSER, action=_Program,
                        help="a file, a folder or zip with __main__.py, - for a program on stdin, or with -m a "
                             "module; then the program's own arguments")


class _Program(argparse.Action):
    """A `--` before PROGRAM ends hal's options; every other is the program's."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        values = values[1:] if values[0] == "--" else values
        if not values:
            parser.error("the following arguments are required: PROGRAM")
        namespace.program = values


def run(args: argparse.Namespace) -> int:
    """Decide, say so on one line of stderr, and become the program. Returns only where it can't."""
    program, *arguments = args.program
    if not args.as_module and program != "-" and not Path(program).exists():
        raise ValueError(f"no such file: {program} (a module is named with -m)")
    flags = _interpreter_flags()
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
    # As sitecustomize.py reads it: Pythons of other environments can't run this one's packages.
    environ["HAL_FLASH_ATTN_PYTHON"] = f"{sys.implementation.cache_tag} {os.path.realpath(sys.prefix)}"
    if args.device is not None:
        environ["HAL_DEVICE"] = args.device
    if args.attention_backend is not None:
        environ["HAL_ATTENTION_BACKEND"] = args.attention_backend
    # The folder of sitecustomize.py, which every Python runs before anything else.
    startup = importlib.util.find_spec("hal.compat.startup")
    folders = [str(Path(str(startup and startup.origin)).parent), environ.get("PYTHONPATH")]
    environ["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    command = [sys.executable, *flags, *(["-m"] if args.as_module else []), program, *arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, environ)


def _interpreter_flags() -> list[str]:
    """Those that this Python was started with, for the program's: `python -O -m hal run` is `python -O`.

    Raises ValueError for those under which no Python would run sitecustomize.py.
    """
    for flag, given in (("-I", sys.flags.isolated), ("-E", sys.flags.ignore_environment), ("-S", sys.flags.no_site)):
        if given:
            raise ValueError(f"Python's {flag} keeps `hal run` from reaching the program: start it without, or call "
                             "hal.compat.install() in the program")
    # The list that multiprocessing starts its processes with; it leaves out two.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if getattr(sys.stdout, "write_through", False):
        flags.append("-u")
    return [*flags, "-i"] if sys.flags.interactive else flags
