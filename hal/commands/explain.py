"""hal explain: which backend serves which phase of which kind of layer, and why not the others."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from hal.cli_args import Once, add_cli_args, from_cli_args, json_object
from hal.config import AttentionConfig, LayerKind
from hal.decision import Decision
from hal.text import table

HELP = "say which backend is chosen for a model on a device, here or not, and why not the others"
EPILOG = """examples:
  hal explain                                   this machine, the default configuration
  hal explain --device cuda:sm90 --model DIR    a model on a machine that is not here
  hal explain --device musa:mp31 --config '{"head_dim": 80, "sliding_window": 4096}'
  hal explain --device cuda:sm90 --config @layer.json --packages flash-attn
  hal explain --device npu:ascend910b --attention-backend ascend --kv-cache-dtype fp8_e4m3 --json
  hal explain --device cuda:sm90 --page-size 1 --all    every backend with every reason

A hint is a change that alone would get a better-ranked backend: selection was asked again with it.
exit code: 0, or 1 where some phase of some kind of layer has no backend
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="DIR", action=Once, help="a model's folder: all kinds of its layers")
    what.add_argument("--config", metavar="JSON|@FILE", action=Once,
                      help="one AttentionConfig as JSON (default: its defaults)")
    parser.add_argument("--tensor-parallel-size", metavar="N", action=Once,
                        help="ranks the heads of --model are divided among (default: 1)")
    parser.add_argument("--packages", metavar="installed|assumed|A,B", action=Once,
                        help="vendor packages to count on (default: installed for a device of this machine, "
                             "assumed where DEVICE names an arch)")
    parser.add_argument("--all", action="store_true",
                        help="every backend with every reason, also those of other platforms")
    parser.add_argument("--json", action="store_true", help="print JSON, which always has everything")
    add_cli_args(parser)


def run(args: argparse.Namespace) -> int:
    attention = from_cli_args(args)
    kinds = attention.apply(_kinds(args))
    decisions = attention.explain(kinds, args.packages)
    first = next(iter(decisions.values()))
    if args.json:
        rows = [{"kind": kind.kind, "layers": list(kind.layers), **_of_kind(decisions[kind.kind])}
                for kind in kinds]
        size = next((d.page_size for d in decisions.values() if d.page_size is not None), None)
        print(json.dumps({"platform": first.platform.to_dict(), "page_size": size,
                          "packages": first.packages, "kinds": rows}, indent=2))
    else:
        print(table(("platform", "packages", "page_size"), [(str(first.platform), first.packages,
                                                             str(first.page_size))]))
        for kind in kinds:
            print(f"\n{_header(kind)}\n{decisions[kind.kind].text(args.all)}")
    return 0 if all(decision.complete for decision in decisions.values()) else 1


def _of_kind(decision: Decision) -> dict[str, Any]:
    # platform, page_size and packages are one for all kinds.
    shared = ("platform", "page_size", "packages")
    return {key: value for key, value in decision.to_dict().items() if key not in shared}


def _header(kind: LayerKind) -> str:
    """The kind, its number of layers and the fields of its config that are not the default."""
    fields = [f for f in dataclasses.fields(kind.config) if getattr(kind.config, f.name) != f.default]
    told = ", ".join(f"{f.name}={getattr(kind.config, f.name)}" for f in fields) or "default configuration"
    layers = f" ({len(kind.layers)} layer{'s' if len(kind.layers) != 1 else ''})" if kind.layers else ""
    return table((f"[{kind.kind}]{layers}", told), [])


def _kinds(args: argparse.Namespace) -> list[LayerKind]:
    ranks = args.tensor_parallel_size
    if args.model is None:
        if ranks is not None:
            raise ValueError(f"--tensor-parallel-size {ranks} divides the heads of --model, which is not "
                             "given; the head counts of --config are per rank already")
        fields = _fields(args.config or "{}")
        for key, flag in (("page_size", "--page-size"), ("kv_cache_dtype", "--kv-cache-dtype")):
            if key in fields and getattr(args, key) is not None:
                raise ValueError(f"{key} stands in --config and in {flag}: give one of them")
        return [LayerKind("all", (), AttentionConfig.from_dict(fields))]
    if ranks is not None and not (ranks.isdecimal() and int(ranks) >= 1):
        raise ValueError(f"--tensor-parallel-size must be a whole number >= 1, got {ranks!r}")
    if not Path(args.model).is_dir():
        raise ValueError(f"--model {args.model!r} is no folder: give the one with the model's config.json")
    return AttentionConfig.from_model(args.model, int(ranks or 1))


def _fields(text: str) -> dict[str, Any]:
    said = f"--config {text}"
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{said}: can't be read: {error}") from None
    try:
        fields = json.loads(text, object_pairs_hook=json_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"{said} is not valid JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{said}: expected a JSON object of AttentionConfig's fields, "
                         f"got {json.dumps(fields)}")
    return fields
