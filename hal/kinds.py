"""What callers hand in as the kinds of layer of a model, and their choices per kind, made uniform and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hal.config import AttentionConfig, LayerKind

if TYPE_CHECKING:
    from hal.selection import Choice


def as_kinds(configs: Sequence[LayerKind] | Mapping[str, AttentionConfig]) -> list[LayerKind]:
    """LayerKinds of `configs`: a list of them, or kind -> config. Raises ValueError for anything else and for twins."""
    if isinstance(configs, Mapping):
        configs = [LayerKind(name, (), config) for name, config in configs.items()]
    if isinstance(configs, (str, AttentionConfig, LayerKind)) or not isinstance(configs, Sequence):
        raise ValueError(f"configs is {configs!r}, expected a list of LayerKind or a dict of kind -> AttentionConfig")
    for kind in configs:
        if not isinstance(kind, LayerKind) or not isinstance(kind.config, AttentionConfig):
            raise ValueError(f"configs holds {kind!r}, expected LayerKind with an AttentionConfig")
    names = [kind.kind for kind in configs]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins or not names:
        raise ValueError(f"configs has the kinds {names}, expected at least one, each once")
    return list(configs)


def as_choices(kinds: Sequence[LayerKind], default: Choice, choices: Any) -> dict[str, Choice]:
    """kind -> Choice for every kind: `default`, or what `choices` (kind -> Choice or backend name) says."""
    from hal.selection import Choice

    names = [kind.kind for kind in kinds]
    if choices is None:
        return dict.fromkeys(names, default)
    if isinstance(choices, (str, Choice)):
        return dict.fromkeys(names, Choice(choices) if isinstance(choices, str) else choices)
    if not isinstance(choices, Mapping):
        raise ValueError(f"choices is {choices!r}, expected a Choice or a dict of kind -> Choice or backend name")
    per_kind = dict.fromkeys(names, default)
    for name, choice in choices.items():
        if name not in per_kind:
            raise ValueError(f"choices names the kind {name!r}, which is not there (kinds: {', '.join(names)})")
        if not isinstance(choice, (str, Choice)):
            raise ValueError(f"choices[{name!r}] is {choice!r}, expected a Choice or a backend name")
        per_kind[name] = Choice(choice) if isinstance(choice, str) else choice
    return per_kind
