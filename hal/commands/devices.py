"""hal devices: every known platform, found or not, and why not."""

from __future__ import annotations

import argparse
import json
import sys

from hal.host import Host
from hal.platform import PlatformNotFoundError, PlatformStatus, probe_all, select
from hal.text import table

HELP = "list the platforms HAL knows, which are here, and why the others are not"
EPILOG = """examples:
  hal devices                    the table, and the device that "auto" means
  hal devices --json             the same for programs
  HAL_DEVICE=cuda:1 hal devices  which device a program would get under this setting

exit code: 0, or 1 where $HAL_DEVICE names a device that is not here
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    host = Host()
    rows = probe_all(host)
    try:
        selected, problem = select(rows, host), ""
    except PlatformNotFoundError as error:
        selected, problem = None, str(error)
    if args.json:
        print(json.dumps({"selected": selected.to_dict() if selected else None,
                          "platforms": [row.to_dict() for row in rows]}, indent=2))
    else:
        print(table(("platform", "found", "devices and reason"), [_row(row) for row in rows]))
        if selected:
            device = selected.torch_device
            print(f"\nselected: {device}" + (f" ({selected})" if device != str(selected) else ""))
    if problem:
        print(f"hal: error: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _row(row: PlatformStatus) -> tuple[str, str, str]:
    devices = [f"{device.torch_device}: {device.arch}, {device.name}" for device in row.devices]
    return row.kind, "yes" if row.found else "no", "; ".join([*devices, row.reason])
