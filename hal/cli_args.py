"""The command-line arguments of any server that uses HAL: add_cli_args(parser), from_cli_args(args)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hal import registry
from hal.config import KV_CACHE_DTYPES, AttentionConfig, LayerKind
from hal.packages import Packages
from hal.platform import Platform
from hal.selection import Choice, explain_kinds

if TYPE_CHECKING:
    from hal.attention import AttentionImpl
    from hal.decision import Decision

# Key of --attention-config -> the flag that says the same.
KEYS = {
    "backend": "--attention-backend",
    "prefill_backend": "--prefill-attention-backend",
    "decode_backend": "--decode-attention-backend",
    "kv_cache_dtype": "--kv-cache-dtype",
    "page_size": "--page-size",
}
_HELP = {
    "backend": "backend or alias for both phases; strict: one that can't serve is an error (default: auto)",
    "prefill_backend": "backend of the prefill phase, where it differs",
    "decode_backend": "backend of the decode phase, where it differs",
    "kv_cache_dtype": f"dtype of the KV cache: {', '.join(KV_CACHE_DTYPES)} (default: auto, the model's)",
    "page_size": "tokens in a page of the KV cache (default: what the backends prefer)",
}


class Once(argparse.Action):
    """Store a value; an argument given twice is an error, where argparse would keep the last one silently."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        # Remembered apart from the value, which may be a default of the parser.
        given = namespace.__dict__.setdefault("_given_once", set())
        if self.dest in given:
            before = getattr(namespace, self.dest)
            raise argparse.ArgumentError(self, f"given twice, as {before!r} and {values!r}: give one of them")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Add HAL's arguments to a parser, in a group of their own. Values are checked by from_cli_args.

    Raises argparse.ArgumentError where the parser has one of these flags already.
    """
    group = parser.add_argument_group(
        "attention (HAL)", "`hal devices`, `hal backends` and `hal explain` show what there is and why.")
    group.add_argument("--device", metavar="DEVICE", action=Once,
                       help="auto, or a device: cuda, cuda:1, rocm, npu, musa, cpu or a plugin's "
                            "(default: $HAL_DEVICE, else the machine's)")
    for key, flag in KEYS.items():
        group.add_argument(flag, metavar="N" if key == "page_size" else "NAME", action=Once, help=_HELP[key])
    group.add_argument(
        "--attention-config", metavar="JSON|KEY=VALUE", action="append", default=[],
        help=f"the same as JSON or as KEY=VALUE, repeatable. Keys: {', '.join(KEYS)}. A kind of layer in "
             "front overrides them for it: sliding.backend=torch, or "
             '{"kinds": {"sliding": {"backend": "torch"}}}')


@dataclass(frozen=True)
class AttentionArgs:
    """HAL's command-line arguments, checked. Made by from_cli_args.

    device: text for detect. page_size: tokens, None for the backends' preference. kv_cache_dtype: None for
    the model's. backends: the Choice for every kind of layer. kinds: kind -> settings that override it.
    """

    device: str = "auto"
    page_size: int | None = None
    kv_cache_dtype: str | None = None
    backends: Choice = field(default_factory=Choice)
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def choice(self, kind: str) -> Choice:
        """The Choice for one kind of layer. Its own `backend` replaces the global ones of both phases."""
        own = self.kinds.get(kind, {})
        base = Choice(own["backend"]) if "backend" in own else self.backends
        return Choice(base.backend, own.get("prefill_backend", base.prefill_backend),
                      own.get("decode_backend", base.decode_backend))

    def apply(self, kinds: Sequence[LayerKind]) -> list[LayerKind]:
        """The kinds of layer of a model with page_size and kv_cache_dtype set.

        Raises ValueError for an override of a kind that the model does not have.
        """
        known = [kind.kind for kind in kinds]
        for name in self.kinds:
            if name not in known:
                raise ValueError(f"--attention-config names the layer kind {name!r}, which this model does "
                                 f"not have (kinds: {', '.join(known)})")
        return [LayerKind(kind.kind, kind.layers, self._config(kind)) for kind in kinds]

    def _config(self, kind: LayerKind) -> AttentionConfig:
        changes: dict[str, Any] = {} if self.page_size is None else {"page_size": self.page_size}
        kv = self.kinds.get(kind.kind, {}).get("kv_cache_dtype", self.kv_cache_dtype)
        if kv is not None:
            changes["kv_cache_dtype"] = kv
        return kind.config.replace(**changes)

    def get_attention_impls(self, kinds: Sequence[LayerKind]) -> dict[str, AttentionImpl]:
        """hal.get_attention_impls with these arguments; raises as it does."""
        from hal.attention import get_attention_impls

        return get_attention_impls(self.apply(kinds), self.device, choices=self._choices(kinds))

    def explain(self, kinds: Sequence[LayerKind],
                packages: Packages | str | None = None) -> dict[str, Decision]:
        """hal.explain_kinds with these arguments; raises as it does."""
        return explain_kinds(self.apply(kinds), self.device, self._choices(kinds), packages)

    def _choices(self, kinds: Sequence[LayerKind]) -> dict[str, Choice]:
        return {kind.kind: self.choice(kind.kind) for kind in kinds}


def from_cli_args(args: argparse.Namespace) -> AttentionArgs:
    """The arguments of add_cli_args, checked, so that a server fails when it starts.

    Raises ValueError naming the argument, the value seen and what was expected: for unknown devices,
    backends, keys and dtypes, bad numbers, and for two spellings of one thing. Kinds of layer are checked
    by AttentionArgs.apply, which knows the model's.
    """
    device = _get(args, "--device")
    if device not in (None, "auto"):
        try:
            Platform.parse(device)
        except ValueError as error:
            raise ValueError(f"--device: {error}") from None
    seen: dict[tuple[str, str], str] = {}  # (kind or "" for all, key) -> the spelling that set it
    values: dict[str, dict[str, Any]] = {"": {}}
    for kind, key, value, spelling in _settings(args):
        if (kind, key) in seen:
            raise ValueError(f"{seen[kind, key]} and {spelling} both set "
                             f"{f'{kind}.{key}' if kind else key}: give one of them")
        seen[kind, key] = spelling
        values.setdefault(kind, {})[key] = _check(kind, key, value, spelling)
    own = values.pop("")
    backends = Choice(own.get("backend", "auto"), own.get("prefill_backend"), own.get("decode_backend"))
    return AttentionArgs(device or "auto", own.get("page_size"), own.get("kv_cache_dtype"), backends, values)


def _get(args: argparse.Namespace, flag: str) -> Any:
    name = flag.removeprefix("--").replace("-", "_")
    if not hasattr(args, name):
        raise ValueError(f"args has no {name}: parse them with a parser that hal.add_cli_args() extended")
    return getattr(args, name)


def _settings(args: argparse.Namespace) -> Iterator[tuple[str, str, Any, str]]:
    """(kind or "", key, value, spelling) of everything that was given."""
    for key, flag in KEYS.items():
        value = _get(args, flag)
        if value is not None:
            yield "", key, value, f"{flag} {value}"
    for text in _get(args, "--attention-config"):
        said = f"--attention-config {text}"
        if not text.lstrip().startswith("{"):
            path, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"{said!r} is neither a JSON object nor KEY=VALUE (keys: {', '.join(KEYS)})")
            kind, dot, key = path.strip().removeprefix("kinds.").rpartition(".")
            if not kind and (dot or path.strip().startswith("kinds.")):
                raise ValueError(f"{said!r} names no kind of layer before {key!r} (expected KIND.KEY=VALUE)")
            yield kind, key, value.strip(), said
            continue
        try:
            settings = json.loads(text, object_pairs_hook=json_object)
        except json.JSONDecodeError as error:
            raise ValueError(f"{said!r} is not valid JSON: {error}") from None
        except ValueError as error:
            raise ValueError(f"{said}: {error}") from None
        kinds = settings.pop("kinds", {})
        for kind, own in [("", settings), *_objects(kinds, said).items()]:
            for key, value in own.items():
                yield kind, key, value, said


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice; json keeps the last one silently."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands twice in one JSON object: give one of them")
        found[key] = value
    return found


def _objects(kinds: Any, said: str) -> dict[str, dict[str, Any]]:
    if not isinstance(kinds, dict) or not all(isinstance(own, dict) for own in kinds.values()) or "" in kinds:
        raise ValueError(f"{said}: kinds must be an object of objects, kind -> settings, "
                         f"got {json.dumps(kinds)}")
    return kinds


def _check(kind: str, key: str, value: Any, spelling: str) -> Any:
    """The value of one setting, checked and converted."""
    if key not in KEYS:
        raise ValueError(f"{spelling}: unknown key {key!r} (keys: {', '.join(KEYS)}; or kinds)")
    if key == "page_size":
        if kind:
            raise ValueError(f"{spelling}: page_size can't be set for the kind {kind!r} alone: "
                             "all kinds share one")
        # Text from the command line, a number from JSON.
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{spelling}: page_size must be a whole number >= 1, got {value!r}")
        return number
    if not isinstance(value, str):
        raise ValueError(f"{spelling}: {key} must be a string, got {value!r}")
    try:
        if key == "kv_cache_dtype":
            # mla, because fp8_ds_mla exists for MLA alone; each model's config checks it again.
            return AttentionConfig(kv_cache_dtype=value, mla=True).kv_cache_dtype
        if value != "auto":
            registry.resolve(value)
    except ValueError as error:
        raise ValueError(f"{spelling}: {error}") from None
    return value
