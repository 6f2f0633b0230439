"""A model's config.json, opened: its settings with checks, and the wrapper they came in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Wrappers whose image tokens attend to each other in both directions, over an otherwise causal text model ->
# the text models they come with. transformers 5.23: paligemma (modeling: block_sequence_ids, the whole
# prefix), gemma3 (modeling: create_masks_for_vision_model, each image), shieldgemma2 (a gemma3 inside).
MM_PREFIX: Mapping[str, tuple[str, ...]] = {
    "paligemma": ("gemma", "gemma2"),
    "gemma3": ("gemma3_text",),
    "shieldgemma2": ("gemma3_text",),
}
# Wrappers with masks of their own that no field of AttentionConfig says.
REFUSED_WRAPPERS: Mapping[str, str] = {
    "colpali": "its image tokens attend in both directions, and it is read without its vlm_config",
}
# A default that is another key's value: as many KV heads as heads.
PER_HEAD = object()
_REQUIRED = object()
_OWN_CONFIGS = ("text_config", "vision_config", "audio_config")


@dataclass(frozen=True)
class Source:
    """One text model's settings, what to call it in messages, and how many ranks share its heads.

    wrapper and outer are the model_type and the settings around a nested text_config.
    """

    name: str
    values: Mapping[str, Any]
    wrapper: str | None = None
    outer: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        if key in self.values:
            return self.values[key]
        if default is _REQUIRED:
            raise ValueError(f"model {self.name}: its config has no key {key!r}")
        return default

    def whole(self, key: str, default: Any = _REQUIRED, least: int = 1) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"model {self.name}: {key} must be a whole number >= {least}, got {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"model {self.name}: {key} must be a finite number > 0, got {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or False; absent and null are False."""
        value = self.get(key, None)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"model {self.name}: {key} must be true or false, got {value!r}")
        return bool(value)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Source:
        """The same with what the family's config class fills in. null counts as absent only for PER_HEAD."""
        given = {k: v for k, v in self.values.items() if v is not None or defaults.get(k) is not PER_HEAD}
        return replace(self, values={**defaults, **given})

    def heads(self, heads_key: str = "num_attention_heads", kv_key: str | None = "num_key_value_heads",
              ) -> dict[str, int]:
        """num_heads and num_kv_heads of one rank. KV heads are replicated where there are fewer than ranks.

        kv_key None: one KV head per head.
        """
        heads = self.whole(heads_key)
        if heads % self.ranks:
            raise ValueError(f"model {self.name}: {heads_key} {heads} does not divide by "
                             f"tensor_parallel_size {self.ranks}")
        if kv_key is None or self.values.get(kv_key) is PER_HEAD:
            return {"num_heads": heads // self.ranks, "num_kv_heads": heads // self.ranks}
        kv = self.whole(kv_key)
        if kv % self.ranks and self.ranks % kv:
            raise ValueError(f"model {self.name}: {kv_key} {kv} neither divides by "
                             f"tensor_parallel_size {self.ranks} nor divides it")
        return {"num_heads": heads // self.ranks, "num_kv_heads": max(1, kv // self.ranks)}

    def divided(self, hidden_key: str = "hidden_size", heads_key: str = "num_attention_heads") -> int:
        """The width of a head where the model splits its hidden size evenly."""
        hidden, heads = self.whole(hidden_key), self.whole(heads_key)
        if hidden % heads:
            raise ValueError(f"model {self.name}: no head_dim, and {hidden_key} {hidden} does not divide by "
                             f"{heads_key} {heads}")
        return hidden // heads

    def dtype(self) -> str:
        """`dtype` or `torch_dtype`; where there is neither, bfloat16."""
        value = self.values.get("dtype")
        if value is None:
            value = self.values.get("torch_dtype")
        return "bfloat16" if value is None else str(value)


def read(model: Any) -> Source:
    """A folder, a dict or a transformers config as a Source. A nested text_config is the model."""
    values, name = _open(model)
    text = values.get("text_config")
    if text is None:
        return Source(name, values)
    wrapper = str(values.get("model_type") or "(a wrapper)")
    text = text.to_dict() if hasattr(text, "to_dict") else text
    if not isinstance(text, Mapping):
        raise ValueError(f"model {name}: text_config must be an object, got {text!r}")
    if wrapper in REFUSED_WRAPPERS:
        raise ValueError(f"model {name}: model_type {wrapper!r} is not served: {REFUSED_WRAPPERS[wrapper]}")
    inner = text.get("model_type")
    if wrapper in MM_PREFIX and inner not in MM_PREFIX[wrapper]:
        raise ValueError(f"model {name}: text_config's model_type {inner!r} is not known inside {wrapper!r} "
                         f"(known: {', '.join(MM_PREFIX[wrapper])})")
    # The dtype is written once, often beside text_config rather than in it.
    shared = {key: values[key] for key in ("dtype", "torch_dtype") if values.get(key) is not None}
    own = {key: value for key, value in text.items() if not (value is None and key in shared)}
    outer = {key: value for key, value in values.items() if key not in _OWN_CONFIGS}
    return Source(name, {**shared, **own}, wrapper, outer)


def _open(model: Any) -> tuple[Mapping[str, Any], str]:
    """The settings and the model's name."""
    name = ""
    if isinstance(model, (str, Path)):
        folder, name = Path(model), str(model)
        if not folder.is_dir():
            raise ValueError(f"model {name!r} is no folder: names on a hub are not downloaded, "
                             "give a folder with config.json")
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"model {name!r}: the folder has no config.json") from None
        except ValueError as error:
            raise ValueError(f"model {name!r}: config.json is no JSON: {error}") from None
    else:
        values = model.to_dict() if hasattr(model, "to_dict") else model
    if not isinstance(values, Mapping):
        raise ValueError(f"model {name!r}: config.json must hold an object" if name else "model must be a "
                         f"folder, a dict or a transformers config, got {type(model).__name__}")
    return values, name or str(values.get("_name_or_path") or values.get("model_type") or "(a dict)")
