"""AttentionBackend: what a backend declares, and the reasons it gives when it can't serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from hal.capabilities import FEATURES, LEVELS, HeadDims, PageSizes
from hal.config import AttentionConfig, MLADims
from hal.levels import REACHED
from hal.packages import Package, Packages

if TYPE_CHECKING:
    from torch import Tensor

    from hal.platform import Platform

@dataclass(frozen=True)
class Bound:
    """A backend's two functions for one configuration on one device, and the vendor function each ends in."""

    flash_attn_with_kvcache: Callable[..., Any]
    flash_attn_varlen_func: Callable[..., Any]


@lru_cache(maxsize=256)
def _sized(config: AttentionConfig, size: int | None) -> AttentionConfig:
    """The config with the page size that is decided on, for rules that combine it with other fields."""
    return config if size == config.page_size else config.replace(page_size=size)


class AttentionBackend:
    """A family of kernels: declarations first, then `bind`. Never instantiated by selection.

    A subclass states what it serves in the class attributes below; `unsupported_reasons` turns them into
    sentences that carry the value seen and the values supported. `bind` runs only on the real device and is
    the only place that imports the vendor package. Anything declared is a promise.
    """

    name: ClassVar[str]
    #: Any one of these packages will do; () needs none. The first one that is present and serves is used.
    packages: ClassVar[tuple[Package, ...]] = ()
    #: kind -> archs; () means every arch of that kind.
    platforms: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16")
    #: KV cache dtypes beside those of `dtypes` (which must equal the config's dtype).
    kv_cache_dtypes: ClassVar[tuple[str, ...]] = ()
    head_dims: ClassVar[HeadDims] = HeadDims()
    #: (head_dim, head_dim_v) pairs served where the two differ; None: any pair.
    head_dim_pairs: ClassVar[tuple[tuple[int, int], ...] | None] = ()
    page_sizes: ClassVar[PageSizes] = PageSizes(16)
    features: ClassVar[frozenset[str]] = frozenset()
    #: What its functions take beyond the plain call (capabilities.CALLS); its adapter refuses the others by name.
    calls: ClassVar[frozenset[str]] = frozenset()
    #: Features that a configuration must ask for: a backend of MLA alone requires "mla".
    requires: ClassVar[frozenset[str]] = frozenset()
    #: (qk, v) head dims of expanded MLA that its varlen function takes in prefill, without reading the cache.
    mla_prefill: ClassVar[tuple[tuple[int, int], ...]] = ()
    #: Names of backends that prefill MLA, in order, where this one decodes only and is asked for by name.
    prefill_with: ClassVar[tuple[str, ...]] = ()
    #: Why a feature is not served, where that is worth saying; the reason shows it instead of the feature list.
    refusals: ClassVar[Mapping[str, str]] = {}
    attention_types: ClassVar[tuple[str, ...]] = ("decoder",)
    phases: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    #: False for a prefill backend that never reads the paged cache.
    reads_cache: ClassVar[bool] = True
    #: Most query tokens a sequence may have in a decode call; None: any number.
    max_decode_query_len: ClassVar[int | None] = 1
    #: Physical layout of the paged cache. Backends of one pair must agree.
    kv_layout: ClassVar[str] = "[num_pages, page_size, num_kv_heads, head_dim]"
    #: What of decode can be captured in a graph (capabilities.GRAPH_LEVELS). Nobody captures prefill.
    graph_level: ClassVar[str] = "never"
    #: cache_seqlens of a row that pads a captured batch: the shortest that the captured kernel takes.
    graph_padding_length: ClassVar[int] = 0
    #: Whether its captured write leaves out tokens of slot -1. Where not, graph_state gives each a slot of its own in
    #: the padding pages.
    graph_skips_slots: ClassVar[bool] = True
    #: False where the backend can be asked about but not used: its adapter is not written yet.
    adapter: ClassVar[bool] = True
    #: NaN in the unused tail of a used page does no harm.
    nan_safe_tail: ClassVar[bool] = False
    #: "platform:arch" (or a platform) -> verification level reached (design.md section 7), with its evidence. For
    #: backends out of tree; those of HAL have theirs in hal/levels.py, which is derived.
    levels: ClassVar[Mapping[str, str]] = {}
    evidence: ClassVar[tuple[str, ...]] = ()
    #: The vendor functions the two attributes end in, for people: {"prefill": ..., "decode": ...}.
    targets: ClassVar[Mapping[str, str]] = {}
    #: Documents and source files that the declarations above were taken from.
    sources: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def not_built(cls) -> str | None:
        """Why HAL's own kernels that this backend needs are not in this installation; None where nothing is missing."""
        return None

    @classmethod
    def level(cls, platform: Platform) -> str:
        """Highest verification level on one platform, of hal/levels.py and `levels`; "declared" where nothing more."""
        proven = REACHED.get(cls.name, {}).get(str(platform), (LEVELS[0], ""))[0]
        if not cls.levels:
            return proven
        own = cls.levels.get(str(platform), cls.levels.get(platform.kind, LEVELS[0]))
        return max(proven, own, key=LEVELS.index)

    @classmethod
    def preferred_page_size(cls, config: AttentionConfig) -> int:
        """Of `page_sizes` the one to take where none was asked for."""
        return cls.page_sizes.preferred

    @classmethod
    def q_dtype(cls, config: AttentionConfig) -> str:
        """dtype that q must have: the config's, unless the kernel wants fp8 queries with an fp8 cache."""
        return config.dtype

    @classmethod
    def reads(cls, config: AttentionConfig, phase: str) -> bool:
        """Whether the paged cache is read in a phase; if not, its page size, layout and dtype do not matter."""
        return cls.reads_cache and not cls._expands(config, phase)

    @classmethod
    def _expands(cls, config: AttentionConfig, phase: str) -> bool:
        """MLA's prefill over expanded K and V, where this backend has no absorbed form of its own."""
        return bool(config.mla is not None and phase == "prefill" and cls.mla_prefill and "mla" not in cls.features)

    @classmethod
    def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
        """Why one of several packages can't serve, where what they offer differs. Reasons carry both sides."""
        return []

    @classmethod
    def calls_of(cls, package: Package | None) -> frozenset[str]:
        """Of `calls`, what one of several packages takes, where they differ; the adapter refuses the rest by name."""
        return cls.calls

    @classmethod
    def package_for(cls, packages: Packages, config: AttentionConfig) -> Package | None:
        """The first of `packages` that is present and serves the configuration; None where none is or is needed."""
        return next((package for package in cls.packages
                     if packages.missing(package) is None and not cls.package_reasons(package, config)), None)

    @classmethod
    def target(cls, phase: str, package: Package | None, config: AttentionConfig) -> str:
        """Dotted name of the vendor function that serves a phase of a configuration that is served."""
        return cls.targets[phase].format(module=package.module if package else "")

    @classmethod
    def unsupported_reasons(cls, config: AttentionConfig, platform: Platform, packages: Packages,
                            phase: str = "decode", page_size: int | None = None) -> list[str]:
        """Why this backend can't serve; empty when it can. Every reason carries both sides.

        page_size overrides the config's, for the joint decision over several kinds of layer.
        """
        name = cls.name
        if platform.kind not in cls.platforms:
            return [f"platform {platform.kind} is not supported ({name}: {', '.join(cls.platforms)})"]
        reasons = []
        archs = cls.platforms[platform.kind]
        if archs and platform.arch not in archs:
            reasons.append(f"arch {platform.arch} is not supported ({name}: {', '.join(archs)})")
        if phase not in cls.phases:
            reasons.append(f"phase {phase} is not supported ({name}: {', '.join(cls.phases)})")
        if config.dtype not in cls.dtypes:
            reasons.append(f"dtype {config.dtype} is not supported ({name}: {', '.join(cls.dtypes)})")
        stored, reads, expands = config.stored_dtype, cls.reads(config, phase), cls._expands(config, phase)
        if reads and stored != config.dtype and stored not in cls.kv_cache_dtypes:
            also = ", ".join(("auto", config.dtype, *cls.kv_cache_dtypes))
            reasons.append(f"kv_cache_dtype {stored} is not supported ({name} with dtype {config.dtype}: {also})")
        reasons += cls._expanded_reasons(config) if expands else cls.head_reasons(config)
        size = page_size if page_size is not None else config.page_size
        if size is not None and reads and size not in cls.page_sizes:
            reasons.append(f"page_size {size} is not supported ({name}: {cls.page_sizes})")
        for feature, asked in FEATURES.items():
            value = asked(config)
            if value is None and feature in cls.requires:
                reasons.append(f"{feature} is needed ({name}: {', '.join(sorted(cls.requires))} only)")
            if value is not None and feature not in cls.features and not (expands and feature == "mla"):
                has = ", ".join(f for f in FEATURES if f in cls.features) or "none of the optional features"
                why = f"none, {cls.refusals[feature]}" if feature in cls.refusals else has
                reasons.append(f"{feature}{'' if value is True else f' {value}'} is not supported ({name}: {why})")
        most = cls.max_decode_query_len
        if config.graph and phase == "decode":  # the graph level is of decode alone
            if cls.graph_level == "never":
                reasons.append(f"graph is not supported ({name}: graph level never)")
            if config.max_decode_query_len > 1 and cls.graph_level == "single-token decode":
                reasons.append(f"graph with max_decode_query_len {config.max_decode_query_len} is not supported "
                               f"({name}: graph level single-token decode)")
        if config.attention_type not in cls.attention_types:
            reasons.append(f"attention_type {config.attention_type} is not supported "
                           f"({name}: {', '.join(cls.attention_types)})")
        if phase == "decode" and most is not None and config.max_decode_query_len > most:
            reasons.append(f"max_decode_query_len {config.max_decode_query_len} is not supported "
                           f"({name}: up to {most})")
        reasons += cls.extra_reasons(_sized(config, size), platform, phase)
        if cls.packages and cls.package_for(packages, config) is None:
            for package in cls.packages:
                missing = packages.missing(package)
                reasons += [missing] if missing else cls.package_reasons(package, config)
        if not cls.adapter and not packages.adapters_assumed:
            reasons.append(f"adapter is not written yet ({name}: it can be asked about, not used)")
        missing_kernels = None if packages.adapters_assumed else cls.not_built()
        if missing_kernels:
            reasons.append(missing_kernels)
        return reasons

    @classmethod
    def _expanded_reasons(cls, config: AttentionConfig) -> list[str]:
        """The widths of expanded MLA against those declared for prefill."""
        assert isinstance(config.mla, MLADims)
        pair = (config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim, config.mla.v_head_dim)
        if pair in cls.mla_prefill:
            return []
        pairs = ", ".join(f"{d}/{dv}" for d, dv in cls.mla_prefill)
        return [f"MLA prefill with head_dim {pair[0]} and head_dim_v {pair[1]} is not supported ({cls.name}: {pairs})"]

    @classmethod
    def head_reasons(cls, config: AttentionConfig) -> list[str]:
        """head_dim and head_dim_v against the declared dims and pairs. MLA brings its own pair."""
        name, pair = cls.name, (config.head_dim, config.v_dim)
        if config.mla is not None and "mla" not in cls.features:
            return []  # the missing feature is the reason, not its width
        if pair[0] != pair[1]:
            if cls.head_dim_pairs is None or pair in cls.head_dim_pairs:
                return []
            pairs = ", ".join(f"{d}/{dv}" for d, dv in cls.head_dim_pairs) or "equal dims only"
            return [f"head_dim {pair[0]} with head_dim_v {pair[1]} is not supported ({name}: {pairs})"]
        if config.head_dim not in cls.head_dims:
            return [f"head_dim {config.head_dim} is not supported ({name}: {cls.head_dims})"]
        return []

    @classmethod
    def extra_reasons(cls, config: AttentionConfig, platform: Platform, phase: str) -> list[str]:
        """Rules that no single attribute can state (combinations). Reasons carry both sides.

        config.page_size is the size that is decided on, None where none is yet.
        """
        return []

    @classmethod
    def bind(cls, config: AttentionConfig, platform: Platform, package: Package | None) -> Bound:
        """The two functions for one configuration on the real device. Imports the vendor package.

        May raise anything the import raises: selection has made sure beforehand that it imports.
        """
        raise TypeError(f"backend {cls.name} does not implement bind()")

    @classmethod
    def new_kv_cache(cls, config: AttentionConfig, device: str, num_pages: int, page_size: int) -> tuple[Any, Any]:
        """Zero-filled (k_cache, v_cache) of `num_pages` pages, in this backend's physical layout."""
        from hal.kv_cache import new_kv_cache

        return new_kv_cache(config, device, num_pages, page_size)

    @classmethod
    def logical_cache(cls, config: AttentionConfig, x: Tensor) -> Tensor:
        """A cache in the contract's shape, for checks and for shapes of results: itself, where strides express its
        layout; else a view of its memory, whose numbers stand elsewhere. What is no cache of this backend comes back.
        """
        return x

    @classmethod
    def write_kv_cache(cls, config: AttentionConfig) -> Callable[..., None]:
        """The function that writes k and v into the cache at slots."""
        from hal.kv_cache import write_kv_cache

        return write_kv_cache
