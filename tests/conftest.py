"""What several test files share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before anything imports torch. Test processes share the cores with each other, and OpenMP threads that wait
# for a busy core spin: small models run several times slower on two threads than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in its background with SIGINT ignored, and commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Folder of the default model, prepared if need be: a test that can't have it fails."""
    from hal import default_model as module

    return module.prepare()
