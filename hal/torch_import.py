"""Importing torch so that a broken vendor extension can't take it down."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from hal.host import Host

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger("hal")
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def cann_error(host: Host) -> str | None:
    """Why torch_npu could not load here (CANN missing), None where it could or is not installed."""
    if host.version("torch_npu") is None and host.find_module("torch_npu") is None:
        return None
    error = host.library_error("libascendcl.so")
    return error and "torch_npu is installed but CANN is not usable: libascendcl.so can't be loaded " \
                     f"({error}); source CANN's set_env.sh"


def load_torch() -> ModuleType:
    """The torch module, imported if need be.

    With torch_npu installed and CANN missing, a plain `import torch` raises and can't be retried in the
    same process, so torch's backend autoload is switched off for that import, and a warning says so.
    Raises ImportError with the way out.
    """
    if "torch" in sys.modules:
        return sys.modules["torch"]
    if sys.modules.get("torch_npu") is None and AUTOLOAD not in os.environ:
        reason = cann_error(Host())
        if reason:
            logger.warning("%s. torch is imported with %s=0: the NPU will not be used", reason, AUTOLOAD)
            os.environ[AUTOLOAD] = "0"
            try:
                import torch
            finally:
                del os.environ[AUTOLOAD]
            return torch
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("torch is not installed: install the build of your accelerator's vendor "
                          "(README, 'Which torch'), e.g. pip install torch==2.13.0") from None
    except RuntimeError as error:
        raise ImportError(f"importing torch failed: {error}. In a fresh process set {AUTOLOAD}=0, or repair "
                          "the extension it names") from error
    return torch


def load_extension(kind: str) -> None:
    """Import torch and the extension that gives it the devices of a platform ("npu": torch_npu).

    The platform file names it in EXTENSION; cuda, rocm and cpu need none. Raises ImportError with the cause.
    """
    from hal.platforms import table

    load_torch()
    extension = getattr(table()[kind], "EXTENSION", None)
    if extension is None or extension in sys.modules:
        return
    try:
        importlib.import_module(extension)
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(f"importing {extension} failed: {type(error).__name__}: {error}") from error
