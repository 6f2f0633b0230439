"""transformers' generate() on HAL: register() makes attn_implementation="hal" known.

    from hal.integrations import transformers as hal_transformers
    hal_transformers.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="hal")
    hal_transformers.use(model, decode_backend="torch")      # optional: without it backends are chosen by HAL
    model.generate(..., past_key_values=hal_transformers.new_cache(model))   # optional: a cache that is not copied

Every attention module gets the AttentionImpl of its kind of layer, built at its first call. Prompts go to the
prefill backend, single new tokens to the decode backend, several new tokens on a cached prefix to the prefill
backend's flash_attn_with_kvcache. Inference only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hal import registry
from hal.attention import AttentionImpl
from hal.config import AttentionConfig, LayerKind
from hal.integrations.transformers_attention import CHOICE, NAME, attention, served
from hal.integrations.transformers_cache import new_cache as new_cache
from hal.integrations.transformers_cache import takes_new_cache as takes_new_cache
from hal.integrations.transformers_mask import padding_mask
from hal.models import kinds_from_model
from hal.selection import Choice

SUPPORTED = (5, 23)  # the release series whose interface this was read from and is tested with


def version_check() -> None:
    """Raises ImportError, naming the version seen, without a transformers of the supported series."""
    major, minor = SUPPORTED
    wanted = (f"needs transformers >={major}.{minor},<{major}.{minor + 1}: "
              "pip install 'attention-hal[generate]'")
    try:
        from transformers import __version__
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed; HAL {wanted}") from None
    if __version__.split(".")[:2] != [str(major), str(minor)]:
        raise ImportError(f"transformers {__version__} is not supported; HAL {wanted}")


def register() -> None:
    """Make attn_implementation="hal" known to transformers. Calling it again does nothing.

    Raises ImportError for another version of transformers, RuntimeError when someone else has the name.
    """
    version_check()
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for table, function in ((ALL_ATTENTION_FUNCTIONS, attention),
                            (ALL_MASK_ATTENTION_FUNCTIONS, padding_mask)):
        if NAME in table and table[NAME] is not function:
            raise RuntimeError(f"attn_implementation {NAME!r} is already registered, for {table[NAME]!r}")
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, padding_mask)


def use(model: Any, backend: str = "auto", prefill_backend: str | None = None,
        decode_backend: str | None = None, layers: Iterable[int] | None = None) -> None:
    """Choose the backends of one model's attention, or only of some layers (by their numbers).

    May be called at any time and again. Raises ValueError for an unknown name at once; a choice that can't
    serve the model raises NoBackendError at its next forward.
    """
    for name in (backend, prefill_backend, decode_backend):
        if name not in (None, "auto"):
            registry.resolve(str(name))
    wanted = None if layers is None else set(layers)
    for module in model.modules():
        if wanted is None or getattr(module, "layer_idx", None) in wanted:
            setattr(module, CHOICE, Choice(backend, prefill_backend, decode_backend))


def impls(model: Any) -> dict[str, AttentionImpl]:
    """Module name -> the AttentionImpl that serves it, for every attention module that has run."""
    return {name: served[module].impl for name, module in model.named_modules() if module in served}


def layer_kinds(model: Any) -> list[LayerKind]:
    """What transformers will ask HAL for: AttentionConfig.from_model's kinds, with MLA expanded.

    transformers caches MLA's latent, and expands K and V for every head before attention: heads are
    qk_nope_head_dim + qk_rope_head_dim wide, and there is one KV head per query head. Raises as from_model, and
    ValueError for sparse layers.
    """
    return [_expanded(kind) for kind in kinds_from_model(model)]


def _expanded(kind: LayerKind) -> LayerKind:
    config, mla = kind.config, kind.config.mla
    if config.sparse:
        raise ValueError(f"layers of kind {kind.kind} are sparse, which attn_implementation 'hal' does not offer "
                         "(supported: dense attention)")
    if mla is None or isinstance(mla, bool):
        return kind
    return LayerKind(kind.kind, kind.layers, AttentionConfig(
        num_heads=config.num_heads, num_kv_heads=config.num_heads, dtype=config.dtype,
        head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim, head_dim_v=mla.v_head_dim,
        softmax_scale=config.softmax_scale))
