"""Which of HAL's functions serves a call: chosen once per kind of call and device, then looked up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hal import env, registry
from hal.attention import AttentionImpl, get_attention_impl
from hal.compat import settings
from hal.config import DTYPES, AttentionConfig, MLADims
from hal.platform import Platform, detect, platform_of
from hal.selection import explain

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("hal")


@dataclass(frozen=True)
class Bound:
    """HAL's functions for one kind of call. one, many: flash_attn_with_kvcache for one query token a sequence, for any
    number. unpaged: they take a cache that is a plain [B, S, Hkv, D] tensor."""

    one: Callable[..., Any]
    many: Callable[..., Any]
    varlen: Callable[..., Any]
    unpaged: bool


Key = tuple[Any, ...]
_bound: dict[Key, Bound] = {}
_said: set[tuple[str, str, str]] = set()
_lock = threading.RLock()


def forget() -> None:
    """What was bound, and said: it was for other settings."""
    with _lock:
        _bound.clear()
        _said.clear()
        platform_of.cache_clear()


def find(q: Tensor, k: Tensor, v: Tensor, page_size: int | None, causal: bool, window: tuple[int, int], chunk: int,
         softcap: float, lse: bool, latent: bool = False) -> Bound:
    """The functions for a call. k, v: keys and values, or caches. latent: with qv, absorbed MLA.

    Raises NoBackendError where no backend serves it, ValueError where there can't be one.
    """
    bounds = window
    if window != (-1, -1):  # bounded or not is the kind of call; widths may follow lengths, which have no end
        bounds = (min(window[0], 1), min(window[1], 1))
    key: Key = (q.device, q.dtype, q.shape[-2:], k.shape[-2], v.shape[-1], page_size, causal, bounds, chunk, softcap,
                lse, latent)
    bound = _bound.get(key)
    if bound is None:
        with _lock:
            bound = _bound.get(key) or _bind(*key[:7], window, *key[8:])
            _bound[key] = bound
    return bound


def _bind(device: Any, dtype: Any, heads: tuple[int, int], *more: Any) -> Bound:
    platform = platform_of(device, "q: got a tensor on")
    _refuse_other_devices(platform)
    impl = get_attention_impl(config_of(dtype, *heads, *more), platform, settings.current().backend)
    _say(impl)
    return Bound(impl.decode.flash_attn_with_kvcache, impl.prefill.flash_attn_with_kvcache,
                 impl.prefill.flash_attn_varlen_func,
                 all("unpaged" in registry.get(name).calls for name in (impl.decode.backend, impl.prefill.backend)))


def config_of(dtype: Any, heads: int, dim: int, kv_heads: int, dim_v: int, page_size: int | None, causal: bool,
              window: tuple[int, int], chunk: int, softcap: float, lse: bool, latent: bool) -> AttentionConfig:
    """What a call asks of a backend. dtype: of q, k and v."""
    name = str(dtype).removeprefix("torch.")
    fp8 = name.startswith("float8")
    if not fp8 and name not in DTYPES:
        raise ValueError(f"q: got {dtype}, expected {', '.join(f'torch.{known}' for known in DTYPES)} or fp8")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"q: got {heads} heads beside {kv_heads} of its keys, expected a multiple")
    left, right = window
    common: dict[str, Any] = {
        "num_heads": heads, "dtype": "bfloat16" if fp8 else name, "kv_cache_dtype": name if fp8 else "auto",
        "page_size": page_size, "causal": causal or right == 0, "attention_chunk": chunk or None, "softcap": softcap,
        "return_softmax_lse": lse,
        # Its width is the call's; that there is one is what backends differ in.
        "sliding_window": left + 1 if left >= 0 else right + 1 if right > 0 else None}
    if not latent:
        return AttentionConfig(num_kv_heads=kv_heads, head_dim=dim, head_dim_v=None if dim_v == dim else dim_v,
                               **common)
    if kv_heads != 1:
        raise ValueError(f"qv: got a tensor with {kv_heads} KV heads, expected 1: HAL serves qv as absorbed MLA")
    return AttentionConfig(mla=MLADims(kv_lora_rank=dim_v, qk_rope_head_dim=dim), **common)


def _refuse_other_devices(platform: Platform) -> None:
    """A device that was chosen is strict, as a backend is."""
    asked = str(env.get("HAL_DEVICE")) if settings.current().device == "auto" else settings.current().device
    if asked == "auto":
        return
    wanted = detect(asked)
    if platform != wanted and (":" in asked or platform.kind != wanted.kind):
        raise ValueError(f"q: got a tensor on {platform.torch_device}, but device {asked} was asked for: move the "
                         f"model there, or leave the device to its tensors (--device auto, HAL_DEVICE)")


def usual(platform: Platform, backend: str = "auto") -> Any:
    """The Decision for plain causal attention: what `hal run` announces before it knows the script's calls."""
    return explain(AttentionConfig(page_size=None), platform, backend)


def _say(impl: AttentionImpl) -> None:
    """One line on stderr for kernels that nobody announced: those that serve plain attention were."""
    pair = (str(impl.platform), impl.prefill.backend, impl.decode.backend)
    if not _said:
        announced = usual(impl.platform, settings.current().backend)
        _said.add((str(impl.platform), str(announced.prefill.chosen), str(announced.decode.chosen)))
    if pair not in _said:
        _said.add(pair)
        logger.warning("flash_attn: %s", impl.decision.summary())


settings.forget.append(forget)
