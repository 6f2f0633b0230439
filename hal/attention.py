"""get_attention_impl: the decision turned into an object whose two functions are bound in __init__."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hal import env, registry
from hal.backend import AttentionBackend, Bound
from hal.config import AttentionConfig, LayerKind
from hal.decision import Decision, NoBackendError
from hal.kinds import as_choices, as_kinds
from hal.packages import Packages
from hal.platform import Platform, detect
from hal.selection import Choice, explain_kinds
from hal.torch_import import load_extension, load_torch

if TYPE_CHECKING:
    from hal.graph import GraphState

logger = logging.getLogger("hal")


class BindError(RuntimeError):
    """A backend that selection accepted could not be bound; the text names it, the cause is the vendor's error."""


class BoundPhase:
    """One backend's two functions, as instance attributes: `attn.prefill` and `attn.decode`."""

    def __init__(self, backend: type[AttentionBackend], bound: Bound) -> None:
        self.backend = backend.name
        self.flash_attn_with_kvcache = bound.flash_attn_with_kvcache
        self.flash_attn_varlen_func = bound.flash_attn_varlen_func


class AttentionImpl:
    """Attention of one kind of layer on one device. Made by get_attention_impl; safe to use from threads.

    flash_attn_with_kvcache: the decode backend's function. flash_attn_varlen_func: the prefill backend's.
    prefill, decode: both functions of each backend; extend and mixed batches call
    `prefill.flash_attn_with_kvcache`. decision: why these. Their meaning is that of hal.contract.
    """

    flash_attn_with_kvcache: Callable[..., Any]
    flash_attn_varlen_func: Callable[..., Any]

    def __init__(self, decision: Decision, packages: Packages) -> None:
        self.decision = decision
        self.config = decision.config
        self.platform = decision.platform
        decode = registry.get(str(decision.decode.chosen))
        prefill = registry.get(str(decision.prefill.chosen))
        self._cache_owner = decode
        self._cache_readers = [decode] + [prefill] * prefill.reads(self.config, "prefill")
        self.decode = _bind(decode, decision, packages)
        self.prefill = self.decode if prefill is decode else _bind(prefill, decision, packages)
        self.flash_attn_with_kvcache = self.decode.flash_attn_with_kvcache
        self.flash_attn_varlen_func = self.prefill.flash_attn_varlen_func
        try:
            self.write_kv_cache = decode.write_kv_cache(decision.config)
        except Exception as error:
            raise BindError(f"backend {decode.name} could not bind write_kv_cache on {decision.platform}: "
                            f"{type(error).__name__}: {error}") from error

    def new_kv_cache(self, num_pages: int, page_size: int | None = None) -> tuple[Any, Any]:
        """Zero-filled (k_cache, v_cache), logically [num_pages, page_size, num_kv_heads, head_dim(_v)].

        page_size defaults to the decision's. The physical layout is the kernel's (decision.kv_layout); with
        MLA the pair is (rope cache, latent cache). Raises ValueError for a page size the kernel refuses.
        """
        size = self.decision.page_size if page_size is None else page_size
        if isinstance(num_pages, bool) or not isinstance(num_pages, int) or num_pages < 1:
            raise ValueError(f"num_pages must be a whole number >= 1, got {num_pages!r}")
        for reader in self._cache_readers:
            if size is None or isinstance(size, bool) or size not in reader.page_sizes:
                raise ValueError(f"page_size {size!r} is not supported ({reader.name}: {reader.page_sizes})")
        assert size is not None
        # Normal tensors even under inference_mode: they are written outside it too, and inductor can't take views of
        # one inference tensor (a joint K and V) as two arguments that are written.
        with load_torch().inference_mode(False):
            return self._cache_owner.new_kv_cache(self.config, self.platform.torch_device, num_pages, size)

    def graph_state(self, max_batch: int, max_tokens: int, max_pages: int, padding_page: int = 0,
                    padding_pages: int = 1) -> GraphState:
        """Static buffers for capturing decode in graphs: see hal.graph.

        max_batch: sequences. max_tokens: query tokens of all of them together. max_pages: pages of one sequence.
        padding_page: the page that rows beyond the batch name; they write to it where calls append and may read it, so
        nothing may live there (engines keep page 0 for this). padding_pages: how many pages are kept so from there on;
        a backend whose kernel can't skip a token (Ascend's) writes those of slot -1 there: room for max_tokens of them.
        Raises ValueError, with both sides, for what is over the decode backend's graph level, or that room.
        """
        from hal.graph import GraphState

        return GraphState(self._cache_owner, self.platform.torch_device, self.decision.page_size, max_batch, max_tokens,
                          max_pages, padding_page, padding_pages)

    def __repr__(self) -> str:
        return f"<hal.AttentionImpl {self.decision.summary()}>"


def _bind(backend: type[AttentionBackend], decision: Decision, packages: Packages) -> BoundPhase:
    try:
        package = backend.package_for(packages, decision.config)
        bound = backend.bind(decision.config, decision.platform, package)
        if not (isinstance(bound, Bound) and callable(bound.flash_attn_with_kvcache)
                and callable(bound.flash_attn_varlen_func)):
            raise TypeError(f"bind returned {bound!r}, expected a hal.backend.Bound of two functions")
    except (Exception, SystemExit) as error:
        raise BindError(f"backend {backend.name} passed selection on {decision.platform} but could not be bound: "
                           f"{type(error).__name__}: {error}") from error
    logical = partial(backend.logical_cache, decision.config)
    functions = {"flash_attn_with_kvcache": bound.flash_attn_with_kvcache,
                 "flash_attn_varlen_func": bound.flash_attn_varlen_func}
    if env.get("HAL_CHECK"):
        from hal.context import verified
        from hal.validation import checked

        functions = {name: verified(checked(function, decision.config, name, logical))
                     for name, function in functions.items()}
    from hal.custom_ops import compilable  # imports torch, which bind has loaded by now

    bound_for = f"{backend.name} {decision.platform} {decision.platform.torch_device} {decision.config}"
    return BoundPhase(backend, Bound(**{name: compilable(function, name, bound_for, logical)
                                        for name, function in functions.items()}))


def get_attention_impl(config: AttentionConfig | None = None, device: str | Platform = "auto", backend: str = "auto",
                       prefill_backend: str | None = None, decode_backend: str | None = None) -> AttentionImpl:
    """The attention of this machine for one kind of layer.

    config: defaults of AttentionConfig when None. device: "auto", "cuda", "cuda:1", "npu", ... backend: "auto",
    a backend or an alias, which is strict; prefill_backend and decode_backend override it for their phase.
    Raises NoBackendError with the whole table of reasons, PlatformNotFoundError when the device is not here,
    ValueError for unknown names.
    """
    config = AttentionConfig() if config is None else config
    return get_attention_impls({"all": config}, device, backend, prefill_backend, decode_backend)["all"]


def get_attention_impls(configs: Sequence[LayerKind] | Mapping[str, AttentionConfig],
                        device: str | Platform = "auto", backend: str = "auto",
                        prefill_backend: str | None = None, decode_backend: str | None = None,
                        choices: Mapping[str, Choice | str] | None = None) -> dict[str, AttentionImpl]:
    """The attention of every kind of layer of one model, decided jointly: kind -> AttentionImpl, one page size.

    configs: what AttentionConfig.from_model returns, or kind -> config. backend, prefill_backend and
    decode_backend as in get_attention_impl, for every kind; choices: kind -> backend name or Choice, for the
    kinds that differ. Raises as get_attention_impl does, and ValueError for a kind that is not there.
    """
    kinds = as_kinds(configs)
    per_kind = as_choices(kinds, Choice(backend, prefill_backend, decode_backend), choices)
    platform = device if isinstance(device, Platform) else detect(device)
    if not platform.name:
        raise ValueError(f"device {platform} is hypothetical: bind on what hal.detect() found, or use hal.explain()")
    packages = Packages.installed()
    decisions = explain_kinds(kinds, platform, per_kind, packages)
    if not all(decision.complete for decision in decisions.values()):
        raise NoBackendError(decisions, " + ".join(dict.fromkeys(str(choice) for choice in per_kind.values())))
    for name, decision in decisions.items():
        logger.info("%s%s", f"[{name}] " if len(decisions) > 1 else "", decision.summary())
    load_extension(platform.kind)
    return {name: AttentionImpl(decision, packages) for name, decision in decisions.items()}
