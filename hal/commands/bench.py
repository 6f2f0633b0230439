"""hal bench: how fast each backend is on given shapes, beside peers and the limits of the device."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from hal import env
from hal.bench import compare, peers, plot, report
from hal.bench.limits import BYTES
from hal.bench.shapes import PHASES, shapes_of
from hal.cli_args import Once
from hal.commands.explain import _fields as config_fields
from hal.commands.numbers import count, counts, whole
from hal.commands.output import check_target
from hal.config import DTYPES, AttentionConfig, LayerKind, MLADims

HELP = "time attention backends on given shapes, beside peers and the limits of the device"
EPILOG = """examples:
  hal bench                                           decode, prefill and mixed on this machine
  hal bench --device cpu --backend torch --phase decode --batch 1,8 --seqlen 128,4096
  hal bench --model DIR --dtype bfloat16 --json new.json --plot new.png
  hal bench --mla --heads 16 --phase decode --peer naive
  hal bench --peer my_package.my_module:make_peer     on the Python path; see hal.bench.peers
  hal bench --compare old.json new.json

phases:
""" + "".join(f"  {name:9}{phase.text}\n" for name, phase in PHASES.items()) + """
Every result is compared with the float64 oracle before it is timed; who is wrong is not timed.
Everyone takes turns in random order, in three passes that build their inputs anew. The spread is the
middle 80 % of all samples, widened to every pass's median. Calls rotate over copies of their inputs
(--cold-mib) so that these do not stay cached. Backends are called in a forward context, as a model's
layers call them: plans are made before the clock starts, for each copy of the inputs. A limit is the
least time for the bytes and flops of a call, by the bandwidth and the matrix product rate measured in
the same run.

exit codes: 0 measured; 1 someone was wrong or failed, a backend asked for by name can't serve, one
that should can't be bound, or no backend serves; 2 the question was wrong; 130 interrupted.
--compare: 0 whatever changed, 2 for reports that do not go together. A peer that can't serve is
shown with its reason and is no error.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one: dict[str, Any] = {"action": Once}
    parser.add_argument("--device", metavar="DEVICE", default="auto", **one,
                        help="a device of this machine: cpu, cuda, cuda:1, npu ... (default: auto)")
    parser.add_argument("--backend", metavar="A,B", type=_names, **one,
                        help="backends or aliases (default: all that serve)")
    parser.add_argument("--peer", metavar="A,B", type=_names, default=["naive", "sdpa"], **one,
                        help=f"what to time beside them; the first is the baseline: {', '.join(peers.names())}, "
                             "package.module:function, or none (default: naive,sdpa)")
    what = parser.add_argument_group("what to time")
    what.add_argument("--phase", metavar="A,B", type=_names, default=["decode", "prefill", "mixed"], **one,
                      help=f"some of {', '.join(PHASES)} (default: decode,prefill,mixed)")
    what.add_argument("--batch", metavar="N,M", type=counts, **one, help="sequences in a call")
    what.add_argument("--seqlen", metavar="N,M", type=counts, **one, help="keys of each sequence, in tokens")
    what.add_argument("--chunk", metavar="N", type=count, **one,
                      help="tokens of a prefill chunk in extend and mixed (default: 256)")
    for flag, metavar in (("--heads", "N"), ("--kv-heads", "N"), ("--head-dim", "N"), ("--page-size", "N")):
        what.add_argument(flag, metavar=metavar, type=count, **one)
    what.add_argument("--dtype", choices=DTYPES, **one)
    what.add_argument("--kv-cache-dtype", choices=("auto", *BYTES), **one)
    what.add_argument("--mla", action="store_true",
                      help="DeepSeek-V3's widths; softmax_scale 192 ** -0.5 where --config has none")
    source = what.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="JSON|@FILE", **one, help="one AttentionConfig as JSON")
    source.add_argument("--model", metavar="DIR", **one, help="a model's folder: every kind of its layers")
    how = parser.add_argument_group("how")
    amount = how.add_mutually_exclusive_group()
    amount.add_argument("--rounds", metavar="N", type=_rounds, **one,
                        help="samples of everyone on each shape, 3 or more")
    amount.add_argument("--seconds", metavar="S", type=_seconds, default=4.0, **one,
                        help="time for each shape, but 9 samples at least (default: 4)")
    how.add_argument("--threads", metavar="N", type=count, **one,
                     help="torch's threads on a CPU (default: as many as torch starts with)")
    how.add_argument("--seed", metavar="N", type=whole, default=0, **one, help="of inputs and order (default: 0)")
    how.add_argument("--cold-mib", metavar="N", type=count, default=256, **one,
                     help="MiB of inputs that calls rotate over (default: 256)")
    how.add_argument("--graph", action="store_true", help="replay captured graphs (accelerators)")
    how.add_argument("--no-check", action="store_true", help="do not compare with the oracle, and say so")
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", **one, help="write everything as JSON; - prints it instead of the table")
    out.add_argument("--plot", metavar="FILE.png|.svg", **one, help="draw it (needs matplotlib)")
    out.add_argument("--compare", metavar=("OLD.json", "NEW.json"), nargs=2, **one,
                     help="time nothing, compare two reports")


def run(args: argparse.Namespace) -> int:
    if args.compare is not None:
        return _compare(args)
    kinds = _kinds(args)
    for name in args.phase:
        if name not in PHASES:
            raise ValueError(f"--phase {name!r} is not known (known: {', '.join(PHASES)})")
    if args.chunk is not None and not set(args.phase) & set(_CHUNKED):
        raise ValueError(f"--chunk {args.chunk} is not used by --phase {','.join(args.phase)} (used by: "
                         f"{', '.join(_CHUNKED)}): leave it out")
    if env.get("HAL_CHECK"):
        raise ValueError("HAL_CHECK=1 is set, and the validation of every call would be timed with it: unset it (hal "
                         "bench compares every result with the oracle anyway)")
    peer_names = [] if args.peer == ["none"] else args.peer
    _check_output(args)
    for name in peer_names:
        peers.get(name)
    return _measure(args, kinds, peer_names)


def _measure(args: argparse.Namespace, kinds: list[LayerKind], peer_names: list[str]) -> int:
    from hal import registry
    from hal.platform import detect

    for name in args.backend or []:
        registry.resolve(name)
    platform = detect(args.device)
    if platform.kind == "cpu" and args.graph:
        raise ValueError("--graph is not supported on cpu: graphs are captured on accelerators, leave it out")
    if platform.kind != "cpu" and args.threads is not None:
        raise ValueError(f"--threads {args.threads} is not supported on {platform.kind}: it sets torch's threads on a "
                         "CPU, leave it out")
    from hal.torch_import import load_extension

    load_extension(platform.kind)
    import torch

    from hal.bench import about, cells
    from hal.bench.run import execute

    shapes = shapes_of(args.phase, args.batch, args.seqlen, args.chunk or CHUNK, platform.kind)
    settings = cells.Settings(
        platform, kinds, shapes, args.backend, peer_names, args.rounds, args.seconds, args.seed, args.cold_mib << 20,
        not args.no_check, args.graph)
    before, load = torch.get_num_threads(), about.load()
    torch.set_num_threads(args.threads or before)
    try:
        told = report.to_dict(execute(settings, cells.prepare(settings)), settings, about.about(load))
    except KeyboardInterrupt:
        print("\nhal: interrupted, nothing was written", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(before)
    if args.json not in (None, "-"):
        Path(args.json).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=1) if args.json == "-" else report.text(told))
    if args.plot is not None:
        plot.plot(told, args.plot)
    return report.exit_code(told)


def _compare(args: argparse.Namespace) -> int:
    given = vars(args)["_given_once"] | {name for name in ("mla", "graph", "no_check") if getattr(args, name)}
    for name in sorted(given - {"compare", "json"}):
        raise ValueError(f"--{name.replace('_', '-')} is not supported with --compare: leave it out")
    _check_output(args)
    told = compare.compare(*(compare.load(file) for file in args.compare))
    if args.json not in (None, "-"):
        Path(args.json).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=1) if args.json == "-" else compare.text(told))
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """What will be written at the end must be writable now."""
    for flag in ("json", "plot"):
        file = getattr(args, flag)
        if file is None or (flag == "json" and file == "-"):
            continue
        check_target(f"--{flag}", file)
    if args.plot is not None:
        plot.check(args.plot)


CHUNK, _CHUNKED = 256, ("extend", "mixed")
# argument -> field of AttentionConfig
_FIELDS = {"heads": "num_heads", "kv_heads": "num_kv_heads", "head_dim": "head_dim", "page_size": "page_size",
           "dtype": "dtype", "kv_cache_dtype": "kv_cache_dtype"}
_OF_MODELS = ("page_size", "dtype", "kv_cache_dtype")  # may be given beside --model


def _kinds(args: argparse.Namespace) -> list[LayerKind]:
    given = {name: getattr(args, name) for name in _FIELDS if getattr(args, name) is not None}
    flags = {name: "--" + name.replace("_", "-") for name in _FIELDS}
    if args.model is not None:
        refused = [flags[name] for name in given if name not in _OF_MODELS] + ["--mla"] * args.mla
        if refused:
            raise ValueError(f"{refused[0]} is not supported with --model, whose layers say it: leave one of them out")
        changes: dict[str, Any] = {_FIELDS[name]: value for name, value in given.items()}
        kinds = [LayerKind(k.kind, k.layers, k.config.replace(**changes))
                 for k in AttentionConfig.from_model(args.model)]
    else:
        fields = config_fields(args.config or "{}")
        for name, value in given.items():
            if _FIELDS[name] in fields:
                raise ValueError(f"{_FIELDS[name]} stands in --config and in {flags[name]}: give one of them")
            fields[_FIELDS[name]] = value
        if args.mla and "mla" in fields:
            raise ValueError("mla stands in --config and in --mla: give one of them")
        if args.mla:
            fields["mla"] = True
        kinds = [LayerKind("all", (), AttentionConfig.from_dict(fields))]
    return [LayerKind(kind.kind, kind.layers, _served(kind.config)) for kind in kinds]


def _served(config: AttentionConfig) -> AttentionConfig:
    """The config with MLA's scale filled in. Raises ValueError for what there are no inputs for."""
    for field, served in (("sparse", (False,)), ("attention_type", ("decoder",)), ("context_parallel_size", (1,)),
                          ("kv_cache_dtype", ("auto", *BYTES)), ("tree_mask", (False,)),
                          ("return_softmax_lse", (False,))):
        value = getattr(config, field)
        if value not in served:
            raise ValueError(f"{field} {value!r} is not supported by hal bench, which makes no inputs for it "
                             f"(supported: {', '.join(map(str, served))})")
    if config.graph:
        raise ValueError("graph True is not supported in --config of hal bench: say --graph, which also captures")
    if isinstance(config.mla, MLADims) and config.softmax_scale is None:
        dim = config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim
        return dataclasses.replace(config, softmax_scale=dim**-0.5)
    return config


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between, none twice, got {text!r}")
    return names


def _rounds(text: str) -> int:
    return whole(text, 3)  # fewer have no spread: one in each pass


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds > 0, got {text!r}")
    return value
