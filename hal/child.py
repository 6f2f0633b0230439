"""Asking a child process what must not be tried in this one: what hangs, aborts or exits does so there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Runs in the child. Messages go to a file of their own: packages print what they like to stdout and stderr,
# and a daemon that one leaves behind can hold a pipe open for ever. os._exit: no package's atexit is awaited.
_CODE = """
import json, os, sys
def say(*message): os.write({fd}, (json.dumps(message) + "\\n").encode())
{path}
try:
    import {module}
    say("imported")
    say("answer", {expression})
except BaseException as error:
    say("error", (type(error).__name__ + ": " + str(error)).rstrip(": "))
os._exit(0)
"""


@dataclass(frozen=True)
class Answer:
    """`text` is what the expression gave, or `error` says why there is none. One of the two is None."""

    text: str | None
    error: str | None


def ask(module: str, expression: str, environ: Mapping[str, str], path: Sequence[str], limit: float,
        own_path: bool) -> Answer:
    """Import `module` in a child process and evaluate `expression`, a string, there.

    path: import path; with own_path it is this process's own, whole, else it stands before the standard
    library. limit: seconds. Never raises for what the child does: the Answer says what happened.
    """
    importing, asking = f"importing {module}", f"asking {module}"
    lines = [f"sys.path[:] = {list(path)!r}"] if own_path else \
        [f"sys.path[:0] = {list(path)!r}", f"sys.path.append({str(Path(__file__).parents[1])!r})"]
    # A machine that is not this one sees neither this one's site-packages nor its Python variables.
    flags = [] if own_path else ["-I", "-S"]
    with tempfile.TemporaryFile() as messages:
        code = _CODE.format(fd=messages.fileno(), path="\n".join(lines), module=module, expression=expression)
        child = subprocess.Popen(
            [sys.executable, *flags, "-c", code], env=dict(environ), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            pass_fds=(messages.fileno(),))
        try:
            code_seen: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code_seen = None
        finally:
            # Its session is its own, so this ends what it started too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        messages.seek(0)
        said = [json.loads(line) for line in messages.read().decode(errors="replace").splitlines()]
    doing = asking if ["imported"] in said else importing
    last = said[-1] if said else [""]
    if last[0] == "answer":
        return Answer(last[1], None)
    if last[0] == "error":
        return Answer(None, f"{doing} failed: {last[1]}")
    if code_seen is None:
        return Answer(None, f"{doing} did not end within {limit:g} s (HAL_PROBE_TIMEOUT)")
    if code_seen < 0:
        return Answer(None, f"{doing} killed its process ({signal.Signals(-code_seen).name})")
    return Answer(None, f"{doing} ended its process with exit code {code_seen}")
