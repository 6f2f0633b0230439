"""hal backends: every known backend, what it serves and how far that is verified."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hal import registry
from hal.backend import AttentionBackend
from hal.capabilities import FEATURES, LEVELS
from hal.cli_args import Once
from hal.levels import REACHED
from hal.platform import Platform
from hal.platforms import table as platform_table
from hal.text import table

HELP = "list the attention backends, what each serves and how far that is verified"
EPILOG = f"""examples:
  hal backends                              every backend
  hal backends --platform cuda:sm90 --mla   those for MLA models on one generation
  hal backends --feature sinks --feature softcap
  hal backends --package flash-attn --level contract
  hal backends --json                       for programs, with the level for each platform:arch

Filters add up. No backend that passes them all is an answer too: exit code 0.
levels, lowest first: {', '.join(LEVELS)}
features: {', '.join(list(FEATURES)[:6])},
  {', '.join(list(FEATURES)[6:])}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", metavar="KIND[:ARCH]", action=Once,
                        help="only backends of this platform: cuda, npu, cuda:sm90, ...")
    parser.add_argument("--feature", metavar="NAME", action="append", default=[],
                        help="only backends with this feature; repeatable")
    parser.add_argument("--level", metavar="LEVEL", action=Once,
                        help="only backends verified this far or further, on --platform where it is given")
    parser.add_argument("--package", metavar="NAME", action=Once, help="only backends that this package serves")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--mla", action="store_true", help="only backends that serve MLA")
    models.add_argument("--dense", action="store_true", help="only backends that serve models without MLA")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    backends = [registry.get(name) for name in registry.names()]
    kind, arch = _platform(args.platform)
    for feature in args.feature:
        _known("--feature", feature, list(FEATURES))
    if args.level is not None:
        _known("--level", args.level, list(LEVELS))
    package = None if args.package is None else _plain(args.package)
    if package is not None and package not in {_plain(p.distribution) for b in backends for p in b.packages}:
        _known("--package", args.package, list(dict.fromkeys(p.distribution for b in backends for p in b.packages)))

    rows = []
    for backend in backends:
        row = _describe(backend)
        reached = [level for name, level in row["levels"].items()
                   if kind is None or name == f"{kind}:{arch}" or (arch is None and name.startswith(f"{kind}:"))]
        if ((kind is None or reached) and backend.features.issuperset(args.feature)
                and (args.level is None or any(LEVELS.index(r) >= LEVELS.index(args.level) for r in reached))
                and (package is None or package in {_plain(p.distribution) for p in backend.packages})
                and (not args.mla or "mla" in backend.features or backend.mla_prefill)
                and (not args.dense or "mla" not in backend.requires)):
            rows.append(row)
    passed = len(rows)
    # A plugin that can't be used is shown whatever was asked: what it would have served is not known.
    rows += [{"name": name, "aliases": [], "package": None, "levels": {}, "level": None, "evidence": [],
              "features": {}, "platforms": {}, "adapter": None, "not_built": None, "failed": reason}
             for name, reason in registry.plugin_failures().items()]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if rows:
        print(table(("backend", "level", "platforms and features"), [_row(row) for row in rows]))
    print(f"{passed} of {len(backends)} backends" + ("" if passed else ": none passes all of these filters"))
    return 0


def _platform(text: str | None) -> tuple[str | None, str | None]:
    """KIND[:ARCH] as (kind, arch). Raises ValueError with what is known."""
    if text is None:
        return None, None
    kind, colon, arch = text.partition(":")
    kinds = platform_table()
    if kind not in kinds:
        raise ValueError(f"--platform {text!r} is not known (known: {', '.join(sorted(kinds))})")
    if colon and arch not in kinds[kind].ARCHS:
        raise ValueError(f"--platform {text!r}: {arch!r} is no arch of {kind} (archs: {', '.join(kinds[kind].ARCHS)})")
    return kind, arch or None


def _known(flag: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise ValueError(f"{flag} {value!r} is not known (known: {', '.join(known)})")


def _plain(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def _describe(backend: type[AttentionBackend]) -> dict[str, Any]:
    """One backend as JSON. `platforms`, `adapter` (False: not written yet, it can be asked about but not used)
    `not_built` (why HAL's own kernels are missing here) and `failed` (why a plugin can't be used) are null where all is
    well; both are beside the stable keys."""
    archs = {kind: list(archs) for kind, archs in backend.platforms.items()}
    levels = {}
    for kind, module in platform_table().items():
        if kind in backend.platforms:  # a backend of every platform has a plugin's kind too
            archs.setdefault(kind, list(backend.platforms[kind]))
            for arch in archs[kind] or module.ARCHS:
                levels[f"{kind}:{arch}"] = backend.level(Platform(kind, arch, module.TORCH_DEVICE))
    return {"name": backend.name, "aliases": registry.aliases_of(backend.name),
            "package": " or ".join(package.distribution for package in backend.packages) or None,
            "levels": levels, "level": max(levels.values(), key=LEVELS.index, default="declared"),
            "evidence": list(dict.fromkeys([*backend.evidence, *(
                proof for _, proof in REACHED.get(backend.name, {}).values())])),
            "features": {name: name in backend.features for name in FEATURES},
            "platforms": archs, "adapter": backend.adapter,
            "not_built": backend.not_built(), "failed": None}


def _row(row: dict[str, Any]) -> tuple[str, str, str]:
    if row["failed"]:
        return row["name"], "failed", row["failed"]
    told = ["" if row["adapter"] else "adapter not written yet", row["not_built"] or "",
            ", ".join(f"{kind} ({' '.join(archs) or 'all'})" for kind, archs in row["platforms"].items()),
            f"package {row['package']}" if row["package"] else "",
            ", ".join(name for name, served in row["features"].items() if served) or "no optional feature"]
    return row["name"], row["level"], "; ".join(filter(None, told))
