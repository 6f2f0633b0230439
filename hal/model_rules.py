"""The rules of decoders that keep K and V: which kinds of attention layer, and what each asks for.

Every rule is that of transformers 5.23, models/<model_type>/configuration_*.py (defaults, layer_types) and
modeling_*.py (the attention class and the masks); what differs from that, or comes from elsewhere, is said at
the rule. Windows count the current token, as transformers' do. A rule has the name of the first family it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hal.model_config import Source
from hal.model_features import NO_ATTENTION, told


@dataclass(frozen=True)
class Kind:
    """One kind of layer: its name, its layers, the fields of its AttentionConfig."""

    name: str
    layers: tuple[int, ...]
    fields: dict[str, Any]


# Names in layer_types -> kinds; "attention" is an older spelling that transformers still reads.
FULL = {"full_attention": "full", "attention": "full"}
SLIDING = {**FULL, "sliding_attention": "sliding"}
CHUNKED = {**FULL, "chunked_attention": "chunked"}


def split(kinds: Sequence[str], common: dict[str, Any], **own: dict[str, Any]) -> list[Kind]:
    """Kinds in order of their first layers; own: the fields that one kind adds."""
    return [Kind(name, tuple(i for i, kind in enumerate(kinds) if kind == name), {**common, **own.get(name, {})})
            for name in dict.fromkeys(kinds)]


def layers(source: Source, known: Mapping[str, str], special: Callable[[int], bool]) -> list[str]:
    """layer_types as kinds; where the config has none, the last kind known for the layers that are special."""
    count = source.whole("num_hidden_layers")
    types = source.get("layer_types", None)
    if types is None:
        return [[*known.values()][-1] if special(i) else "full" for i in range(count)]
    if not isinstance(types, (list, tuple)) or len(types) != count or not {*map(str, types)} <= set(known):
        names = [name for name in known if name != "attention"]
        extra = [name for name in NO_ATTENTION if isinstance(types, (list, tuple)) and name in types]
        raise ValueError(f"model {source.name}: layer_types must list {count} of {', '.join(names)}, got "
                         + told(types) + "".join(f"; {name} is no attention that HAL serves" for name in extra))
    return [known[str(name)] for name in types]


def with_windows(source: Source, kinds: Sequence[str], fields: dict[str, Any]) -> list[Kind]:
    window = {"sliding_window": source.whole("sliding_window")} if "sliding" in kinds else {}
    return split(kinds, fields, sliding=window)


def head_dim(source: Source) -> int:
    """head_dim, or hidden_size / num_attention_heads where the config leaves it out."""
    return source.divided() if source.get("head_dim", None) is None else source.whole("head_dim")


def even_head_dim(source: Source) -> int:
    """hidden_size / num_attention_heads, for models that read no head_dim; another head_dim is an error."""
    width = source.divided()
    if source.get("head_dim", None) not in (None, width):
        raise ValueError(f"model {source.name}: head_dim {source.get('head_dim')!r} is not hidden_size / "
                         f"num_attention_heads = {width}, which is what {source.get('model_type')} uses")
    return width


def plain(source: Source) -> list[Kind]:
    fields = {"head_dim": head_dim(source), **source.heads()}
    return split(["full"] * source.whole("num_hidden_layers"), fields)


def even(source: Source) -> list[Kind]:
    return split(["full"] * source.whole("num_hidden_layers"), {"head_dim": even_head_dim(source), **source.heads()})


def own_head_dim(source: Source) -> list[Kind]:
    # The config class has a head_dim of its own, which is not hidden_size / heads: the file must say it.
    source.whole("head_dim")
    return plain(source)


def granite(source: Source) -> list[Kind]:
    fields = {"head_dim": head_dim(source), **source.heads(), "softmax_scale": source.number("attention_multiplier")}
    return split(["full"] * source.whole("num_hidden_layers"), fields)


def all_sliding(source: Source) -> list[Kind]:
    """Every layer slides where sliding_window is set."""
    kind = "full" if source.get("sliding_window", None) is None else "sliding"
    fields = {"head_dim": head_dim(source), **source.heads()}
    return with_windows(source, [kind] * source.whole("num_hidden_layers"), fields)


def mistral(source: Source) -> list[Kind]:
    # null since v0.2. MistralConfig's own default is 4096, so a config that says nothing is ambiguous.
    source.get("sliding_window")
    return all_sliding(source)


def switched(source: Source, slides: Callable[[int], bool]) -> list[Kind]:
    """Layers slide only with use_sliding_window, and where sliding_window is null none does."""
    on = source.flag("use_sliding_window")
    windowed = on and source.get("sliding_window") is not None
    kinds = layers(source, SLIDING, lambda i: windowed and slides(i))
    if "sliding" in kinds and not on:
        raise ValueError(f"model {source.name}: layer_types has sliding_attention, but use_sliding_window is false")
    return with_windows(source, kinds, {"head_dim": head_dim(source), **source.heads()})


def qwen2(source: Source) -> list[Kind]:
    return switched(source, lambda i: i >= source.whole("max_window_layers", least=0))


def qwen3(source: Source) -> list[Kind]:
    source.whole("head_dim")  # Qwen3Config's default is 128, whatever the hidden size
    return qwen2(source)


def qwen2_moe(source: Source) -> list[Kind]:
    # Not as in qwen2: even layers below max_window_layers.
    return switched(source, lambda i: i % 2 == 0 and i < source.whole("max_window_layers", least=0))


def qwen3_moe(source: Source) -> list[Kind]:
    # max_window_layers is read by nothing: all layers slide or none.
    return switched(source, lambda i: True)


def rope_layers(source: Source) -> Sequence[int]:
    """no_rope_layers: 1 for a layer with rotary, 0 for one without; empty or absent, every fourth has none."""
    count, every = source.whole("num_hidden_layers"), source.whole("no_rope_layer_interval", 4)
    rope = source.get("no_rope_layers", None) or [int((i + 1) % every != 0) for i in range(count)]
    if not isinstance(rope, (list, tuple)) or len(rope) != count:
        raise ValueError(f"model {source.name}: no_rope_layers must list {count} of 0 and 1, got {rope!r}")
    return rope


def smollm3(source: Source) -> list[Kind]:
    # Rotary or not is no matter of attention, but it says which layers may slide.
    rope = rope_layers(source)
    return switched(source, lambda i: not rope[i])


def gemma2(source: Source) -> list[Kind]:
    softcap = 0.0 if source.get("attn_logit_softcapping") is None else source.number("attn_logit_softcapping")
    fields = {"head_dim": source.whole("head_dim"), **source.heads(), "softcap": softcap,
              "softmax_scale": source.number("query_pre_attn_scalar") ** -0.5}
    return with_windows(source, layers(source, SLIDING, lambda i: i % 2 == 0), fields)


def gemma3(source: Source) -> list[Kind]:
    # attn_logit_softcapping is not read: transformers keeps it and hands attention no softcap.
    fields: dict[str, Any] = {"head_dim": source.whole("head_dim"), **source.heads(),
                              "softmax_scale": source.number("query_pre_attn_scalar") ** -0.5}
    every = source.whole("sliding_window_pattern", 6)
    kinds = layers(source, SLIDING, lambda i: (i + 1) % every != 0)
    if not source.flag("use_bidirectional_attention"):
        return with_windows(source, kinds, fields)
    # EmbeddingGemma: |i - j| < sliding_window // 2 + 1 (Gemma3TextConfig.__post_init__).
    window = {"sliding_window": source.whole("sliding_window") // 2 + 1} if "sliding" in kinds else {}
    return split(kinds, {**fields, "causal": False, "attention_type": "encoder_only"}, sliding=window)


def gpt_oss(source: Source) -> list[Kind]:
    fields = {"head_dim": source.whole("head_dim"), **source.heads(), "sinks": True}
    return with_windows(source, layers(source, SLIDING, lambda i: i % 2 == 0), fields)


def cohere2(source: Source) -> list[Kind]:
    every = source.whole("sliding_window_pattern", 4)
    fields = {"head_dim": even_head_dim(source), **source.heads()}
    return with_windows(source, layers(source, SLIDING, lambda i: (i + 1) % every != 0), fields)


def olmo3(source: Source) -> list[Kind]:
    fields = {"head_dim": head_dim(source), **source.heads()}
    return with_windows(source, layers(source, SLIDING, lambda i: (i + 1) % 4 != 0), fields)


def llama4(source: Source) -> list[Kind]:
    rope = rope_layers(source)
    kinds = layers(source, CHUNKED, lambda i: bool(rope[i]))
    chunk = {"attention_chunk": source.whole("attention_chunk_size")} if "chunked" in kinds else {}
    return split(kinds, {"head_dim": source.whole("head_dim"), **source.heads()}, chunked=chunk)
