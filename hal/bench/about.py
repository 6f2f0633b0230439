"""What a figure depends on beside the kernel: versions, date, threads, the machine's load."""

from __future__ import annotations

import datetime
import os
import sys
from importlib import metadata
from typing import Any

import hal
from hal import registry


def about(load_before: float | None) -> dict[str, Any]:
    """hal's and the packages' versions, the date (UTC), torch's threads, and the load average before and now."""
    import torch

    known = dict.fromkeys(package.distribution for name in registry.names() for package in registry.get(name).packages)
    versions = {"hal": hal.__version__, "python": sys.version.split()[0], "torch": torch.__version__}
    for distribution in known:
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue  # what is not installed has no version
    return {"versions": versions, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
            "load": {"start": load_before, "end": load()}}


def load() -> float | None:
    """The machine's load average over a minute; None where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
