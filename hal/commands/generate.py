"""hal generate: text from a language model whose attention is HAL's, on any device."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from hal import default_model
from hal.cli_args import AttentionArgs, Once, add_cli_args, from_cli_args
from hal.commands.numbers import count
from hal.commands.output import announcement, decided
from hal.config import DTYPES, LayerKind
from hal.decision import Decision
from hal.platform import detect

HELP = "generate text with a language model whose attention is HAL's"
EPILOG = """examples:
  hal generate "What is the capital of France?"              a small default model, fetched once
  hal generate "Why is the sky blue?" --max-new-tokens 200 --temperature 0.7 --seed 1
  hal generate "Hello" --model DIR --device cuda:1 --attention-backend fa3
  hal generate "2 + 2 =" --no-chat --json

The answer goes to stdout, everything else to stderr. Exit codes: 0 done, 1 no backend can serve
the model (or the default model can't be prepared), 2 a wrong argument, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to say to the model")
    parser.add_argument("--model", metavar="DIR", action=Once,
                        help=f"folder of a transformers model (default: {default_model.NAME})")
    parser.add_argument("--max-new-tokens", metavar="N", type=count, default=64, action=Once,
                        help="most tokens to generate (default: 64)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", action=Once,
                        help="dtype of weights and attention (default: auto, the model's)")
    parser.add_argument("--temperature", metavar="T", type=_temperature, default=0.0, action=Once,
                        help="0: always the likeliest token; else sample (default: 0)")
    parser.add_argument("--seed", metavar="N", type=_seed, action=Once, help="makes sampling repeatable")
    parser.add_argument("--no-chat", action="store_true", help="give the model the prompt as it is")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    add_cli_args(parser)


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except default_model.DefaultModelError as error:
        print(f"hal: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nhal: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    attention = from_cli_args(args)
    _refuse(args, attention)
    if args.model is not None and not Path(args.model).is_dir():
        raise ValueError(f"--model {args.model!r} is no folder: names on a hub are not downloaded, give the "
                         "folder with the model's config.json and weights")
    # Models come from folders only; transformers reads this when it is imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from hal.integrations import transformers as hosted

    hosted.version_check()
    platform = detect(attention.device)
    folder = default_model.prepare(_say) if args.model is None else Path(args.model)
    name = f"{default_model.NAME} (licence {default_model.LICENSE})" if args.model is None else str(folder)
    kinds = hosted.layer_kinds(folder)
    if args.dtype != "auto":
        kinds = [LayerKind(k.kind, k.layers, k.config.replace(dtype=args.dtype)) for k in kinds]
    decisions = decided(attention, attention.apply(kinds), platform)
    _say(f"model: {name}, {kinds[0].config.dtype}, on {platform} ({platform.name})")
    for line in announcement(decisions):
        _say(line)
    model, tokenizer = _load(folder, kinds, decisions)
    result = _generate(model, tokenizer, args)
    _check_served(model, kinds, decisions)
    if args.json:
        print(json.dumps({"model": name, "platform": platform.to_dict(), **result, "kinds": [
            {"kind": k.kind, "layers": list(k.layers), **decisions[k.kind].to_dict()} for k in kinds]},
            indent=2))
    else:
        first, rate = result["seconds_to_first_token"], result["tokens_per_second"]
        _say(f"prompt {result['prompt_tokens']} tokens; generated {result['generated_tokens']}"
             + (" (stopped by --max-new-tokens)" if result["finish"] == "length" else "")
             + f"; first token after {first:.2f} s" + (f", then {rate:.1f} tokens/s" if rate else ""))
    return 0


def _refuse(args: argparse.Namespace, attention: AttentionArgs) -> None:
    """transformers keeps the cache itself: unpaged, in the model's dtype."""
    if not args.prompt:
        raise ValueError("prompt is empty: give some text")
    if attention.page_size is not None:
        raise ValueError(f"--page-size {attention.page_size} is not supported here: transformers' cache has "
                         "no pages")
    asked = {attention.kv_cache_dtype, *(own.get("kv_cache_dtype") for own in attention.kinds.values())}
    for dtype in asked - {None, "auto"}:
        raise ValueError(f"--kv-cache-dtype {dtype} is not supported here: transformers caches in the "
                         "model's dtype (supported: auto)")


def _load(folder: Path, kinds: list[LayerKind], decisions: dict[str, Decision]) -> tuple[Any, Any]:
    """(model, tokenizer), the model on its device with the backends that were announced."""
    from hal.integrations import transformers as hosted
    from hal.torch_import import load_torch

    torch: Any = load_torch()
    transformers: Any = importlib.import_module("transformers")
    hosted.register()
    _say(f"loading the weights from {folder}")
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, kinds[0].config.dtype), attn_implementation="hal",
            local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"the model in {folder} can't be loaded: {error}") from error
    model.to(next(iter(decisions.values())).platform.torch_device).eval()
    for kind in kinds:
        decision = decisions[kind.kind]
        hosted.use(model, prefill_backend=decision.prefill.chosen, decode_backend=decision.decode.chosen,
                   layers=kind.layers)
    # A model's own settings (repetition_penalty, top_k ...) must not leak in: only what was asked for counts.
    ends, pad = _ends(model), model.generation_config.pad_token_id
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends or None, pad_token_id=ends[0] if pad is None and ends else pad)
    return model, tokenizer


def _generate(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    if tokenizer.chat_template and not args.no_chat:
        inputs = tokenizer.apply_chat_template([{"role": "user", "content": args.prompt}], return_dict=True,
                                               add_generation_prompt=True, return_tensors="pt")
    else:
        inputs = tokenizer(args.prompt, return_tensors="pt")
    inputs = inputs.to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    if args.seed is not None:
        torch.manual_seed(args.seed)
    sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0} \
        if args.temperature else {"do_sample": False}
    streamer = _Streamer(None if args.json else tokenizer)
    begin = time.perf_counter()
    out = model.generate(**inputs, **sampling, max_new_tokens=args.max_new_tokens, streamer=streamer,
                         past_key_values=_cache(model))
    tokens = out[0, prompt_tokens:].tolist()
    ended = tokens[-1] in _ends(model)
    first, last = streamer.times[0], streamer.times[-1]
    return {"text": tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens,
            "prompt_tokens": prompt_tokens, "generated_tokens": len(tokens),
            "finish": "stop" if ended else "length",
            "seconds_to_first_token": first - begin,
            "tokens_per_second": (len(tokens) - 1) / (last - first) if len(tokens) > 1 else None}


def _cache(model: Any) -> Any:
    """One that is written in place; None, transformers' own, for a model whose cache is of another kind."""
    from hal.integrations import transformers as hosted

    return hosted.new_cache(model) if hosted.takes_new_cache(model) else None


def _ends(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


class _Streamer:
    """What generate() calls with the prompt, then with every token; prints them unless tokenizer is None."""

    def __init__(self, tokenizer: Any) -> None:
        transformers: Any = importlib.import_module("transformers")
        self.times: list[float] = []
        self.printer = None if tokenizer is None else transformers.TextStreamer(
            tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.seen_prompt = False

    def put(self, value: Any) -> None:
        if self.seen_prompt:
            self.times.append(time.perf_counter())
        self.seen_prompt = True
        if self.printer is not None:
            self.printer.put(value)

    def end(self) -> None:
        if self.printer is not None:
            self.printer.end()


def _check_served(model: Any, kinds: list[LayerKind], decisions: dict[str, Decision]) -> None:
    """What was announced is what ran: every layer, with the backends named."""
    from hal.integrations.transformers import impls

    ran = {getattr(model.get_submodule(name), "layer_idx", None): impl for name, impl in impls(model).items()}
    for kind in kinds:
        said = decisions[kind.kind]
        for layer in kind.layers:
            impl = ran.get(layer)
            if impl is None:
                raise RuntimeError(f"layer {layer} ran without HAL: {type(model).__name__} does not use "
                                   "transformers' attention interface")
            backends = impl.prefill.backend, impl.decode.backend
            if backends != (said.prefill.chosen, said.decode.chosen):
                raise RuntimeError(f"layer {layer} ran on {backends}, but {said.prefill.chosen} and "
                                   f"{said.decode.chosen} were announced")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # Logits divided by less than this overflow: 0 is what is meant.
    if not (value == 0 or 1e-3 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"must be 0, or a number >= 0.001, got {text!r}")
    return value
