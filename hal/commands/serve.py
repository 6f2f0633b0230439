"""hal serve: an OpenAI-compatible server for one model whose attention is HAL's, on any device."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import signal
import sys
from pathlib import Path

from hal import default_model, env
from hal.cli_args import Once, add_cli_args, from_cli_args
from hal.commands.numbers import count, whole
from hal.commands.output import announcement, decided, level_of
from hal.config import DTYPES
from hal.decision import Decision
from hal.platform import detect

HELP = "serve a language model whose attention is HAL's, with the OpenAI API"
EPILOG = """examples:
  hal serve                                                  the small default model on http://127.0.0.1:8000/v1
  hal serve DIR --device cuda:1 --attention-backend fa3 --port 9000
  hal serve DIR --device npu --kv-cache-memory 20GiB --max-running 64
  HAL_API_KEY=secret hal serve DIR --host 0.0.0.0            for other machines: with a key

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d \\
    '{"model": "SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "Hello"}], "stream": true}'

One line on stdout says where, once the model can answer; everything else goes to stderr. Ctrl-C or SIGTERM end it: what
runs may finish within --shutdown-timeout. Exit codes: 0 after SIGTERM, 130 after Ctrl-C, 1 no backend can serve the
model or its worker can't be kept alive, 2 a wrong argument.
"""
ENGINES = ("auto", "transformers", "vllm", "sglang")
_NEEDED = ("fastapi", "uvicorn", "pydantic", "prometheus_client")
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?",
                        help=f"folder of a transformers model (default: {default_model.NAME}, fetched once)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", action=Once,
                        help="what schedules and runs the model (default: auto, which is transformers, embedded)")
    parser.add_argument("--served-model-name", metavar="NAME", action=Once,
                        help="the model's name in requests (default: the folder's)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", action=Once,
                        help="dtype of weights, attention and cache (default: auto, the model's)")
    where = parser.add_argument_group("where")
    where.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", action=Once,
                       help="address to listen at (default: 127.0.0.1, this machine alone)")
    where.add_argument("--port", metavar="N", type=_port, default=8000, action=Once,
                       help="port (default: 8000; 0: any that is free)")
    where.add_argument("--api-key", metavar="KEY", action=Once,
                       help="ask clients of /v1 for this key (default: $HAL_API_KEY, which other users of the machine "
                            "can't see; none)")
    where.add_argument("--allow-no-key", action="store_true", help="serve other machines without a key")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-model-len", metavar="N", type=_length, action=Once,
                        help="tokens of prompt and answer together (default: what the model and the cache take)")
    limits.add_argument("--max-running", metavar="N", type=count, default=32, action=Once,
                        help="requests that the engine has at once (default: 32)")
    limits.add_argument("--max-queue", metavar="N", type=count, default=256, action=Once,
                        help="requests that may wait for it; more get 429 (default: 256)")
    limits.add_argument("--max-batch-tokens", metavar="N", type=count, default=2048, action=Once,
                        help="new tokens of one step; longer prompts come in chunks (default: 2048)")
    limits.add_argument("--kv-cache-memory", metavar="SIZE", type=_size, action=Once,
                        help="e.g. 20GiB (default: 80%% of an accelerator's free memory; on a CPU an eighth of the "
                             "machine's, at most 4GiB)")
    limits.add_argument("--max-body", metavar="SIZE", type=_size, default=4 << 20, action=Once,
                        help="a request's body; larger ones get 413 (default: 4MiB)")
    limits.add_argument("--request-timeout", metavar="S", type=_seconds, default=600.0, action=Once,
                        help="seconds a request may take, waiting included (default: 600)")
    limits.add_argument("--hang-timeout", metavar="S", type=_seconds, default=300.0, action=Once,
                        help="seconds without a step after which a worker with requests is replaced (default: 300)")
    limits.add_argument("--shutdown-timeout", metavar="S", type=_seconds, default=10.0, action=Once,
                        help="seconds for what runs to finish when the server ends (default: 10)")
    limits.add_argument("--no-spare-worker", action="store_true",
                        help="keep no second worker warm: saves some 300 MB of memory, and a worker that died is back "
                             "seconds later")
    add_cli_args(parser)


def run(args: argparse.Namespace) -> int:
    before = signal.signal(signal.SIGTERM, _terminated)  # until the server has it
    try:
        return _run(args)
    except default_model.DefaultModelError as error:
        print(f"hal: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nhal: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(*_: object) -> None:
    raise SystemExit(0)


def _run(args: argparse.Namespace) -> int:
    attention = from_cli_args(args)
    key = _refuse(args)
    # Models come from folders only; transformers reads this when it is imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from hal.integrations import transformers as hosted

    hosted.version_check()
    platform = detect(attention.device)
    from hal.integrations.transformers_batching import batchable_kinds  # imports torch: after the devices were asked

    folder = default_model.prepare(_say) if args.model is None else Path(args.model).resolve()
    name = args.served_model_name or folder.name
    decisions = decided(attention, batchable_kinds(folder, attention, args.dtype), platform)
    _say(f"model: {name}, {next(iter(decisions.values())).config.dtype}, on {platform} ({platform.name})")
    for line in announcement(decisions):
        _say(line)
    _say(f"loading the weights from {folder}")
    from hal.serving import server
    from hal.serving.settings import Settings

    return server.run(Settings(
        name=name, folder=folder, engine="hal.serving.engine:load", preload="hal.serving.engine:preload",
        arguments={
            "folder": str(folder), "device": attention.device, "dtype": args.dtype,
            "page_size": next(iter(decisions.values())).page_size, "max_requests": args.max_running,
            "max_batch_tokens": args.max_batch_tokens, "cache_bytes": args.kv_cache_memory,
            "max_length": args.max_model_len,
            "backends": {kind: {"prefill_backend": d.prefill.chosen, "decode_backend": d.decode.chosen}
                         for kind, d in decisions.items()}},
        labels=_labels(name, decisions), host=args.host, port=args.port, api_key=key, max_running=args.max_running,
        max_queue=args.max_queue, max_body=args.max_body, request_timeout=args.request_timeout,
        hang_timeout=args.hang_timeout, shutdown_timeout=args.shutdown_timeout, spare_worker=not args.no_spare_worker))


def _refuse(args: argparse.Namespace) -> str | None:
    """The key to ask for, if any. Raises ValueError, or ImportError, for what can be known at once."""
    if args.engine in ("vllm", "sglang"):
        raise ValueError(f"--engine {args.engine} is not there yet: HAL's plugin for it is not written. Leave --engine "
                         "out, or give --engine transformers")
    for module in _NEEDED:
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"{module} is not installed; hal serve needs: pip install 'attention-hal[serve]'")
    if args.model is not None and not Path(args.model).is_dir():
        raise ValueError(f"MODEL {args.model!r} is no folder: names on a hub are not downloaded, give the folder with "
                         "the model's config.json and weights")
    if args.served_model_name is not None and not args.served_model_name.strip():
        raise ValueError(f"--served-model-name is {args.served_model_name!r}: give a name")
    key: str | None = env.get("HAL_API_KEY") if args.api_key is None else args.api_key
    if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
        source = "HAL_API_KEY" if args.api_key is None else "--api-key"
        raise ValueError(f"{source} must be one or more printable ASCII characters without spaces")
    from hal.serving.guard import is_loopback

    if key is None and not is_loopback(args.host) and not args.allow_no_key:
        raise ValueError(f"--host {args.host} can be reached from other machines, and anyone there could use the "
                         "model: give a key (HAL_API_KEY or --api-key), or say --allow-no-key")
    return key


def _labels(name: str, decisions: dict[str, Decision]) -> list[dict[str, str]]:
    return [{"model": name, "device": str(d.platform), "kind": kind, "phase": phase.phase, "backend": str(phase.chosen),
             "target": str(phase.target), "level": level_of(phase), "dtype": d.config.dtype,
             "page_size": str(d.page_size)}
            for kind, d in decisions.items() for phase in (d.prefill, d.decode)]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _length(text: str) -> int:
    return whole(text, 2)  # a token of the prompt and one of the answer


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds > 0, got {text!r}")
    return value


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w*)", text)
    if found is None or found[2] not in _UNITS or float(found[1]) * _UNITS[found[2]] < 1:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, or one with {', '.join(filter(None, _UNITS))}, "
                                         f"got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])
