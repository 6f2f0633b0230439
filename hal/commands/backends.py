"""hal backends: every known backend, what it serves and how far that is verified."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hal import registry
from hal.backend import AttentionBackend
from hal.capabilities import FEATURES, LEVELS
from hal.cli_args import Once
from hal.platform import Platform
from hal.platforms import table as platform_table
from hal.text import table

HELP = "list the attention backends, what each serves and how far that is verified"
EPILOG = f"""examples:
  hal backends                  every backend
  hal backends --platform npu   those of one platform
  hal backends --json           the same for programs, with the level for each platform:arch

levels, lowest first: {', '.join(LEVELS)}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", metavar="KIND", action=Once,
                        help="only backends of this platform: cuda, npu, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    kinds = sorted(platform_table())
    if args.platform is not None and args.platform not in kinds:
        raise ValueError(f"--platform {args.platform!r} is not known (known: {', '.join(kinds)})")
    backends = [registry.get(name) for name in registry.names()]
    rows = [_describe(b) for b in backends if args.platform is None or args.platform in b.platforms]
    rows += [{"name": name, "aliases": [], "package": None, "levels": {}, "level": None, "evidence": [],
              "features": {}, "platforms": {}, "failed": reason}
             for name, reason in registry.plugin_failures().items()]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(table(("backend", "level", "package", "platforms and features"), [_row(row) for row in rows]))
    return 0


def _describe(backend: type[AttentionBackend]) -> dict[str, Any]:
    """One backend as JSON. `platforms` and `failed` (why a plugin can't be used, or null) are beside the
    stable keys."""
    archs = {kind: list(archs) for kind, archs in backend.platforms.items()}
    levels = {}
    for kind, module in platform_table().items():
        if kind in archs:
            for arch in archs[kind] or module.ARCHS:
                levels[f"{kind}:{arch}"] = backend.level(Platform(kind, arch, module.TORCH_DEVICE))
    return {"name": backend.name, "aliases": registry.aliases_of(backend.name),
            "package": " or ".join(package.distribution for package in backend.packages) or None,
            "levels": levels, "level": max(levels.values(), key=LEVELS.index, default="declared"),
            "evidence": list(backend.evidence),
            "features": {name: name in backend.features for name in FEATURES},
            "platforms": archs, "failed": None}


def _row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["failed"]:
        return row["name"], "failed", "-", row["failed"]
    platforms = ", ".join(f"{kind} ({' '.join(archs) or 'all'})" for kind, archs in row["platforms"].items())
    features = ", ".join(name for name, served in row["features"].items() if served) or "no optional feature"
    return row["name"], row["level"], row["package"] or "-", f"{platforms}; {features}"
