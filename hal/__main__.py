"""The `hal` command. Each subcommand is a file of hal.commands, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from hal import __version__, env
from hal.decision import NoBackendError
from hal.platform import PlatformNotFoundError

COMMANDS = ("devices", "backends", "explain", "generate", "verify", "bench", "serve", "run")
_EPILOG = """examples:
  hal devices
  hal backends --platform npu
  hal explain --device cuda:sm90 --model DIR
  hal generate "What is the capital of France?"
  hal bench --device cpu --phase decode
  hal run program.py arguments...
  hal serve --port 8000
`hal COMMAND --help` has more.

exit codes: 0 done, 1 the answer is no, 2 the question was wrong (one line on stderr)
"""


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, width=100)


class _Parser(argparse.ArgumentParser):
    """No abbreviations, and one line for an error: a guess at what was meant would be silent."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_help_formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"hal: error: {message} (see {self.prog} --help)\n")


def _verbose(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", default=default,
                        help="log what HAL decides, and show the traceback of an error")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="hal", epilog=_EPILOG,
                     description="One attention API over every LLM-serving accelerator.")
    parser.add_argument("--version", action="version", version=f"hal {__version__}")
    _verbose(parser, False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name in COMMANDS:
        if asked in COMMANDS and asked != name:
            commands.add_parser(name)
            continue
        module = importlib.import_module(f"hal.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, epilog=module.EPILOG)
        _verbose(command, argparse.SUPPRESS)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hal` with these arguments (the process's own by default) and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(argv)
        if sys.stdout is not None:  # `hal devices >&-`
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has gone (`hal backends | head -1`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk shows when the output is flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(f"hal: error: {error}", 2, False)


def _run(argv: Sequence[str]) -> int:
    verbose = False
    try:
        args = _parser(argv).parse_args(argv)
        verbose = args.verbose
        if verbose:
            logging.basicConfig(format="%(name)s: %(message)s")
            logging.getLogger("hal").setLevel(logging.INFO)
        env.check()
        for stream in (sys.stdout, sys.stderr):  # an answer may hold what the terminal's encoding has not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return int(args.run(args))
    except SystemExit as end:  # argparse ends --help, --version and usage errors so
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except NoBackendError as error:
        return _failed(f"hal: error: {error}", 1, verbose)
    except BrokenPipeError:
        raise
    except (ValueError, ImportError, PlatformNotFoundError, OSError) as error:
        return _failed(f"hal: error: {' '.join(str(error).split())}", 2, verbose)
    except RuntimeError as error:  # a backend that could not be bound, and what vendors raise while running
        return _failed(f"hal: error: {type(error).__name__}: {' '.join(str(error).split())}", 1, verbose)


def _failed(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
