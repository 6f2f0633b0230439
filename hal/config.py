"""What a layer of attention asks for: AttentionConfig, the same for every backend."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPES = ("float16", "bfloat16", "float32")
# fp8_ds_mla: 656 bytes a token, DeepSeek's own layout (512 fp8 + 4 float32 scales + 64 bf16).
KV_CACHE_DTYPES = ("auto", *DTYPES, "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla")
ATTENTION_TYPES = ("decoder", "encoder", "encoder_only", "encoder_decoder")
_KV_ALIASES = {"fp8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}


@dataclass(frozen=True)
class MLADims:
    """Dimensions of multi-head latent attention, in elements. The defaults are DeepSeek-V3's."""

    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _positive_int(f"mla.{field.name}", getattr(self, field.name))

    @property
    def head_dim(self) -> int:
        """Width of the absorbed query: latent part and rope part (576 for DeepSeek-V3)."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """One kind of attention layer. Frozen and keyword-only; dtypes are strings ("bfloat16").

    Head counts are per rank. Lengths and windows are in tokens, head dims in elements. `sliding_window`
    counts the current token, so W means window_size=(W-1, 0). With `mla`, head_dim becomes the absorbed
    width (kv_lora_rank + qk_rope_head_dim), head_dim_v the latent width and num_kv_heads 1.

    Raises ValueError naming the field, the value seen and what was expected.
    """

    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    head_dim_v: int | None = None
    dtype: str = "bfloat16"
    kv_cache_dtype: str = "auto"
    page_size: int | None = None
    causal: bool = True
    sliding_window: int | None = None
    attention_chunk: int | None = None
    softcap: float = 0.0
    sinks: bool = False
    mla: MLADims | bool | None = None
    sparse: bool = False
    attention_type: str = "decoder"
    tree_mask: bool = False
    mm_prefix: bool = False
    softmax_scale: float | None = None
    return_softmax_lse: bool = False
    max_decode_query_len: int = 1
    context_parallel_size: int = 1
    deterministic: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        def set_(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

        for name in ("num_heads", "num_kv_heads", "head_dim", "max_decode_query_len", "context_parallel_size"):
            _positive_int(name, getattr(self, name))
        for name in ("head_dim_v", "page_size", "sliding_window", "attention_chunk"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        for name in ("causal", "sinks", "sparse", "tree_mask", "mm_prefix", "return_softmax_lse", "deterministic",
                     "graph"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        set_("dtype", _one_of("dtype", _plain_dtype(self.dtype), DTYPES))
        kv = _plain_dtype(self.kv_cache_dtype)
        set_("kv_cache_dtype", _one_of("kv_cache_dtype", _KV_ALIASES.get(kv, kv), KV_CACHE_DTYPES))
        _one_of("attention_type", self.attention_type, ATTENTION_TYPES)
        if not _is_number(self.softcap) or self.softcap < 0:
            raise ValueError(f"softcap must be a finite number >= 0 (0: none), got {self.softcap!r}")
        set_("softcap", float(self.softcap))
        if self.softmax_scale is not None and (not _is_number(self.softmax_scale) or self.softmax_scale <= 0):
            raise ValueError(f"softmax_scale must be a finite number > 0 or None, got {self.softmax_scale!r}")
        if self.mla is not None and not isinstance(self.mla, (bool, MLADims)):
            raise ValueError(f"mla must be None, True or MLADims(...), got {self.mla!r}")
        if self.mla is True or self.mla is False:
            set_("mla", MLADims() if self.mla else None)
        if isinstance(self.mla, MLADims):
            self._set_mla_dims(self.mla)
        if self.kv_cache_dtype == "fp8_ds_mla" and self.mla is None:
            raise ValueError("kv_cache_dtype 'fp8_ds_mla' is a layout of MLA caches: set mla, or use fp8_e4m3")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads must be a multiple of num_kv_heads, "
                             f"got {self.num_heads} and {self.num_kv_heads}")
        if self.sparse and self.sliding_window is not None:
            raise ValueError("sparse attention names its keys itself: sliding_window must be None with sparse=True")

    def _set_mla_dims(self, mla: MLADims) -> None:
        """Absorbed MLA has one latent KV head; a default or an equal value is accepted, anything else is an error."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, value in (("head_dim", mla.head_dim), ("head_dim_v", mla.kv_lora_rank), ("num_kv_heads", 1)):
            seen = getattr(self, name)
            if seen not in (value, defaults[name]):
                raise ValueError(f"{name} follows from mla and would be {value}, got {seen}: leave it out")
            object.__setattr__(self, name, value)

    @property
    def v_dim(self) -> int:
        """head_dim_v, or head_dim where none was given."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    @property
    def stored_dtype(self) -> str:
        """dtype of the KV cache: kv_cache_dtype with "auto" resolved."""
        return self.dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @property
    def window_size(self) -> tuple[int, int]:
        """(left, right) of the two functions: sliding_window counts the current token; -1 is unbounded."""
        left = -1 if self.sliding_window is None else self.sliding_window - 1
        return (left, 0 if self.causal else left)

    @property
    def scale(self) -> float:
        """softmax_scale, or head_dim ** -0.5. Raises for MLA, where the default is wrong for every model."""
        if self.softmax_scale is not None:
            return self.softmax_scale
        if self.mla is not None:
            raise ValueError("softmax_scale must be given for MLA: neither 576 ** -0.5 nor 64 ** -0.5 is any model's")
        return float(self.head_dim**-0.5)

    def replace(self, **changes: Any) -> AttentionConfig:
        """A copy with some fields changed; checks run again."""
        if self.mla is not None and "mla" not in changes:
            # Fields that mla fixed are re-derived from it.
            base = {"head_dim": 128, "head_dim_v": None, "num_kv_heads": 8}
            changes = {**base, **changes}
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AttentionConfig:
        """The inverse of to_dict. Unknown keys raise ValueError with the list of fields."""
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"unknown field {', '.join(unknown)} in attention config (fields: {', '.join(known)})")
        values = dict(fields)
        if isinstance(values.get("mla"), Mapping):
            dims = [f.name for f in dataclasses.fields(MLADims)]
            unknown = sorted(set(values["mla"]) - set(dims))
            if unknown:
                raise ValueError(f"unknown field {', '.join(unknown)} in mla (fields: {', '.join(dims)})")
            values["mla"] = MLADims(**values["mla"])
        return cls(**values)

    @classmethod
    def from_model(cls, model: Any, tensor_parallel_size: int = 1) -> list[LayerKind]:
        """One LayerKind per kind of attention layer of a model: see hal.models.kinds_from_model."""
        from hal.models import kinds_from_model

        return kinds_from_model(model, tensor_parallel_size)


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer of a model ("full", "sliding", "mla"), the layers that are of it, their config."""

    kind: str
    layers: tuple[int, ...]
    config: AttentionConfig


def _plain_dtype(value: Any) -> str:
    """"bfloat16" for "bfloat16" and for torch.bfloat16, without importing torch."""
    return str(value).removeprefix("torch.")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not known (known: {', '.join(allowed)})")
    return value


def _positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
