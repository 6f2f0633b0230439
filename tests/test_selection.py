"""Selection over platforms that are not here: which backend, why not the others, and what a choice by name means."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_selection import ACCEPTED, BAD_FIELDS, CHOICES, MLA_CHOICES, NO_BFLOAT16, REASONS

import hal
from hal import AttentionConfig, LayerKind, MLADims, NoBackendError, plugins, registry
from hal.backend import AttentionBackend
from hal.backends import ALIASES, BACKENDS
from hal.capabilities import FEATURES, HeadDims, PageSizes
from hal.host import Host
from hal.packages import Package, Packages
from hal.platforms import table

EVERY_ARCH = [f"{kind}:{arch}" for kind in ("cuda", "rocm", "npu", "musa", "cpu") for arch in table()[kind].ARCHS]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS", "HAL_CHECK"):
        monkeypatch.delenv(name, raising=False)
    forget_plugins()
    yield
    registry._registered.clear()
    forget_plugins()


def forget_plugins() -> None:
    """Plugins are read once per process."""
    for value in vars(plugins).values():
        getattr(value, "cache_clear", int)()


def toy(name: str, **declared: Any) -> type[AttentionBackend]:
    """A backend of the CPU that serves everything but what `declared` says; registered."""
    base: dict[str, Any] = {"name": name, "platforms": {"cpu": ()}, "features": frozenset(FEATURES),
                            "dtypes": ("bfloat16",), "head_dims": HeadDims(), "graph_level": "always",
                            "targets": {"prefill": f"{name}.p", "decode": f"{name}.d"}}
    backend = type(name, (AttentionBackend,), {**base, **declared})
    registry.register_backend(name, backend)
    return backend


def served(device: str) -> AttentionConfig:
    """The default configuration, in a dtype that the arch has."""
    return AttentionConfig(dtype="float16") if device in NO_BFLOAT16 else AttentionConfig()


@pytest.fixture
def toys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend of HAL serves the default dtype: toys are then the only ones left on a CPU."""
    for name in BACKENDS:
        monkeypatch.setattr(registry.get(name), "dtypes", ("float32",))


# --- the choices ---

@pytest.mark.parametrize("device", CHOICES)
def test_automatic_choice(device: str) -> None:
    backend, page_size, package, (other, reason) = CHOICES[device]
    decision = hal.explain(served(device), device)
    assert (decision.prefill.chosen, decision.decode.chosen) == (backend, backend)
    assert decision.page_size == page_size
    assert [name for name in decision.needed if not name.startswith("an adapter for ")] == [package] * bool(package)
    assert decision.packages == "assumed"
    refused = [c for c in decision.candidates if not c.accepted]
    assert (refused[0].backend, refused[0].reasons[0]) == (other, reason)
    assert {c.backend for c in decision.candidates} == set(BACKENDS)
    assert decision.complete


def test_every_arch_is_served_and_says_so() -> None:
    for device in EVERY_ARCH:
        decision = hal.explain(served(device), device)
        assert decision.complete, device
        before = decision.candidates[:[c.backend for c in decision.candidates].index(str(decision.chosen))]
        for candidate in before:
            assert f"not {candidate.backend}: {candidate.reasons[0]}" in decision.summary()
        for candidate in decision.candidates:
            assert candidate.backend in str(decision)


@pytest.mark.parametrize("device", NO_BFLOAT16)
def test_a_dtype_that_the_chip_has_not_is_refused_for_every_backend(device: str) -> None:
    reason = f"dtype bfloat16 is not supported ({device}: float16, float32)"
    decision = hal.explain(AttentionConfig(), device)
    for phase in (decision.prefill, decision.decode):
        assert phase.chosen is None
        assert all(reason in candidate.reasons for candidate in phase.candidates)
    [torch] = hal.explain(AttentionConfig(), device, "torch").candidates
    assert torch.reasons == (reason,)
    # The way out stands in the error.
    excluded, chosen = ("ascend_310p (float16), torch", "ascend_310p") if "310p" in device else ("torch", "torch")
    hint = (f"dtype bfloat16 excluded {excluded} (float16, float32); dtype float16 would serve prefill and decode with "
            f"{chosen}")
    assert [hint.text for hint in decision.hints] == [hint]
    assert hint in " ".join(str(NoBackendError({"all": decision}, "auto")).split())
    assert hal.explain(AttentionConfig(dtype="float16"), device).complete
    assert hal.explain(AttentionConfig(dtype="float32"), device).complete
    assert hal.explain(AttentionConfig(), "npu:ascend910b").complete


@pytest.mark.parametrize(("device", "backend", "config", "reason"), REASONS, ids=lambda v: str(v)[:40])
def test_reason(device: str, backend: str, config: dict[str, Any], reason: str) -> None:
    decision = hal.explain(AttentionConfig(**config), device)
    for phase in (decision.prefill, decision.decode):
        candidate = next(c for c in phase.candidates if c.backend == backend)
        assert reason in candidate.reasons
        assert phase.chosen not in (None, backend)


@pytest.mark.parametrize(("device", "backend", "config"), ACCEPTED, ids=lambda v: str(v)[:40])
def test_accepted(device: str, backend: str, config: dict[str, Any]) -> None:
    packages = "sglang-kernel" if backend == "flash_attn_3" else None
    decision = hal.explain(AttentionConfig(**config), device, packages=packages)
    assert (decision.prefill.chosen, decision.decode.chosen) == (backend, backend), str(decision)


@pytest.mark.parametrize(("device", "config", "prefill", "decode", "page_size"), MLA_CHOICES)
def test_automatic_choice_of_mla(device: str, config: dict[str, Any], prefill: str, decode: str,
                                 page_size: int) -> None:
    decision = hal.explain(AttentionConfig(**{"num_heads": 128, "mla": True, "softmax_scale": 0.1, **config}), device)
    assert (decision.prefill.chosen, decision.decode.chosen, decision.page_size) == (prefill, decode, page_size)
    assert decision.decode.candidates[0].backend == ("aiter_mla" if "aiter" in decode else decode if decode != "torch"
                                                     else "ascend_mla"), "the vendor's own is asked first"


def test_mla_heads_that_only_the_prefill_takes() -> None:
    """aiter decodes 16 or 128 heads per rank; its prefill over expanded K and V takes any number."""
    config = AttentionConfig(num_heads=32, mla=True, softmax_scale=0.1)
    decision = hal.explain(config, "rocm:gfx942")
    assert decision.prefill.chosen == "aiter_mla"
    reasons = {c.backend: c.reasons for c in decision.decode.candidates}
    assert "num_heads 32 is not supported (aiter_mla: 16, 128)" in reasons["aiter_mla"]
    assert str(decision.decode.chosen).endswith("triton_mla")
    multi = config.replace(num_heads=16, context_parallel_size=4, max_decode_query_len=2)
    reasons = {c.backend: c.reasons for c in hal.explain(multi, "rocm:gfx942").decode.candidates}
    assert ("max_decode_query_len 2 with context_parallel 4 is not supported on gfx942 (aiter_mla: 1; more on "
            "gfx950)") in reasons["aiter_mla"]
    assert hal.explain(multi, "rocm:gfx950").chosen == "aiter_mla"


def test_q_dtype_follows_the_cache_where_the_kernel_wants_it() -> None:
    assert hal.explain(AttentionConfig(kv_cache_dtype="fp8"), "cuda:sm90").q_dtype == "fp8_e4m3"
    assert hal.explain(AttentionConfig(), "cuda:sm90").q_dtype == "bfloat16"


def test_every_reason_carries_both_sides() -> None:
    rng = random.Random(20261120)
    fields: dict[str, list[Any]] = {
        "head_dim": [64, 72, 80, 96, 128, 192, 256, 260, 512, 600], "head_dim_v": [None, None, 64, 128, 512],
        "num_heads": [8, 512], "num_kv_heads": [1, 2, 8], "dtype": ["float16", "bfloat16", "float32"],
        "kv_cache_dtype": ["auto", "fp8_e4m3", "fp8_e5m2"], "page_size": [None, 1, 16, 48, 64, 128, 256, 1024],
        "causal": [True, False], "sliding_window": [None, 1, 128], "attention_chunk": [None, 64],
        "softcap": [0.0, 30.0], "sinks": [False, True], "tree_mask": [False, True], "mm_prefix": [False, True],
        "attention_type": ["decoder", "encoder", "encoder_decoder"], "return_softmax_lse": [False, True],
        "max_decode_query_len": [1, 4], "context_parallel_size": [1, 2], "deterministic": [False, True],
        "graph": [False, True], "mla": [None, None, None, True]}
    seen = set()
    for _ in range(1500):
        config = {name: rng.choice(values) for name, values in fields.items() if rng.random() < 0.3}
        if config.get("mla"):
            config = {n: v for n, v in config.items() if not n.startswith(("head_dim", "num_kv"))}
        device = rng.choice(EVERY_ARCH)
        packages = rng.choice([None, "triton", "flash-attn-3,mate"])
        decision = hal.explain(AttentionConfig(**config), device, packages=packages)
        for phase in (decision.prefill, decision.decode):
            accepted = {c.backend for c in phase.candidates if c.accepted}
            assert phase.chosen in accepted or (phase.chosen is None and not accepted)
            for candidate in phase.candidates:
                names = [candidate.backend, *(p.distribution for p in registry.get(candidate.backend).packages)]
                for reason in candidate.reasons:
                    value, _, supported = reason.partition("(")
                    assert value.strip(), reason
                    assert supported.rstrip().endswith(")"), reason
                    # A layout's reason names the decode backend; a dtype that the chip has not is the arch's.
                    shared = reason.startswith(("kv_layout ", "q_dtype ")) or f"({device}: " in reason
                    assert shared or any(name in reason for name in names), reason
                    seen.add(reason.split()[0])
    assert {"platform", "arch", "dtype", "head_dim", "kv_cache_dtype", "page_size", "package", "mla", "graph",
            "attention_type", "sinks", "softcap", "sliding_window", "non_causal"} <= seen


# --- a choice by name ---

def test_explicit_choice_never_falls_back() -> None:
    decision = hal.explain(AttentionConfig(page_size=16), "cuda:sm90", backend="flash_attn_2")
    assert decision.chosen is None
    assert decision.prefill.chosen is None
    assert [c.backend for c in decision.candidates] == ["flash_attn_2"]
    assert decision.kv_layout is None


def test_explicit_choice_raises_with_every_reason() -> None:
    config = AttentionConfig(page_size=17, dtype="float32", mla=True)
    with pytest.raises(NoBackendError) as error:
        hal.get_attention_impl(config, "cpu", "FLASH_ATTN")
    text = " ".join(str(error.value).split())
    assert "attention backend FLASH_ATTN can't serve this on cpu:" in text
    for name in ("flash_attn_3", "flash_attn_2", "mate"):
        kind = "musa" if name == "mate" else "cuda"
        assert f"platform cpu is not supported ({name}: {kind})" in text
    assert "torch" not in text
    assert error.value.decisions["all"].chosen is None


def test_explicit_choice_lists_all_reasons_of_a_backend() -> None:
    config = AttentionConfig(page_size=17, dtype="float32", sinks=True, attention_chunk=64)
    [candidate] = hal.explain(config, "cuda:sm75", backend="fa2").candidates
    assert [reason.split()[0] for reason in candidate.reasons] == ["arch", "dtype", "page_size", "attention_chunk",
                                                                   "sinks"]


def test_phases_by_name() -> None:
    decision = hal.explain(AttentionConfig(page_size=256), "cuda:sm90", prefill_backend="fa2")
    assert (decision.prefill.chosen, decision.decode.chosen) == ("flash_attn_2", "flash_attn_3")
    assert [c.backend for c in decision.prefill.candidates] == ["flash_attn_2"]
    decision = hal.explain(AttentionConfig(page_size=256), "cuda:sm90", "fa3", decode_backend="torch_native")
    assert (decision.prefill.chosen, decision.decode.chosen) == ("flash_attn_3", "torch")
    with pytest.raises(NoBackendError, match=r"attention backend mate \+ torch can't serve"):
        hal.get_attention_impl(device="cpu", prefill_backend="mate", decode_backend="torch")


@pytest.mark.parametrize(("alias", "device", "backend"), [
    ("fa3", "cuda:sm90", "flash_attn_3"), ("fa3", "musa:mp31", "mate"), ("fa3", "cuda:sm80", None),
    ("FLASH_ATTN", "cuda:sm90", "flash_attn_3"), ("FLASH_ATTN", "cuda:sm80", "flash_attn_2"),
    ("FLASH_ATTN", "musa:mp31", "mate"), ("fa2", "cuda:sm90", "flash_attn_2"),
    ("ROCM_AITER_FA", "rocm:gfx942", "aiter"), ("torch_native", "npu:ascend310p", "torch"),
    ("TORCH_SDPA", "cpu:aarch64", "torch"),
    ("mate", "cuda:sm90", None)])
def test_alias(alias: str, device: str, backend: str | None) -> None:
    decision = hal.explain(served(device), device, backend=alias)
    assert (decision.prefill.chosen, decision.decode.chosen) == (backend, backend)


@pytest.mark.parametrize(("name", "device", "dense", "mla"), [
    ("ascend", "npu:ascend910b", "ascend", "ascend_mla"), ("aiter", "rocm:gfx942", "aiter", "aiter_mla"),
    ("fa3", "musa:mp31", "mate", "mate_mla"), ("mate", "musa:mp31", "mate", None),
    ("ROCM_AITER_MLA", "rocm:gfx950", None, "aiter_mla"), ("aiter_mla", "rocm:gfx950", None, "aiter_mla")])
def test_a_name_for_dense_and_mla(name: str, device: str, dense: str | None, mla: str | None) -> None:
    """An engine's one name for both kinds of model may be the name of the dense backend itself."""
    latent = AttentionConfig(num_heads=16, mla=True, softmax_scale=0.1)
    assert hal.explain(AttentionConfig(), device, name).chosen == dense
    assert hal.explain(latent, device, name).chosen == mla


def test_a_backends_own_name_is_no_alias_of_it() -> None:
    assert registry.resolve("ascend") == ["ascend", "ascend_mla", "ascend_310p"]
    assert registry.aliases_of("ascend") == []
    assert registry.aliases_of("ascend_mla") == ["ascend"]
    with pytest.raises(ValueError, match="'ascend' is taken"):
        registry.register_backend("ascend", type("ascend", (AttentionBackend,), {"name": "ascend"}))


def test_unknown_name_suggests() -> None:
    with pytest.raises(ValueError, match=r"'flash_atn_3' is not known, did you mean 'flash_attn_3'\?") as error:
        hal.explain(device="cuda:sm90", backend="flash_atn_3")
    for name in (*BACKENDS, *ALIASES):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="'zzz' is not known \\(backends:"):
        hal.explain(device="cuda:sm90", backend="zzz")


# --- prefill and decode, one cache ---

@pytest.mark.usefixtures("toys_only")
def test_pair_reads_one_layout() -> None:
    toy("prefill_b", phases=("prefill",), kv_layout="B")
    toy("decode_a", phases=("decode",), kv_layout="A")
    toy("decode_b", phases=("decode",), kv_layout="B")
    decision = hal.explain(AttentionConfig(), "cpu:x86_64_v3")
    assert (decision.prefill.chosen, decision.decode.chosen) == ("prefill_b", "decode_b")
    assert decision.kv_layout == "B"
    decision = hal.explain(AttentionConfig(), "cpu:x86_64_v3", decode_backend="decode_a")
    assert (decision.prefill.chosen, decision.decode.chosen) == (None, "decode_a")
    reasons = next(c.reasons for c in decision.prefill.candidates if c.backend == "prefill_b")
    assert reasons == ("kv_layout B is not the decode backend's (decode_a: A)",)
    with pytest.raises(NoBackendError, match="kv_layout B is not the decode"):
        hal.get_attention_impl(AttentionConfig(), "cpu", prefill_backend="prefill_b", decode_backend="decode_a")


@pytest.mark.usefixtures("toys_only")
def test_prefill_that_never_reads_the_cache_goes_with_any_layout() -> None:
    toy("ragged", phases=("prefill",), kv_layout="B", reads_cache=False, page_sizes=PageSizes(8, only=(8,)))
    toy("paged", phases=("decode",), kv_layout="A", page_sizes=PageSizes(32, only=(32,)))
    decision = hal.explain(AttentionConfig(), "cpu:x86_64_v3")
    assert (decision.prefill.chosen, decision.decode.chosen) == ("ragged", "paged")
    assert (decision.page_size, decision.kv_layout) == (32, "A")
    assert (decision.prefill.target, decision.target) == ("ragged.p", "paged.d")


@pytest.mark.usefixtures("toys_only")
def test_phase_is_a_reason() -> None:
    toy("decode_only", phases=("decode",))
    decision = hal.explain(AttentionConfig(), "cpu:x86_64_v3", backend="decode_only")
    assert decision.chosen == "decode_only"
    assert decision.prefill.candidates[0].reasons == ("phase prefill is not supported (decode_only: decode)",)


# --- the kinds of layer of one model ---

def decide(choices: Any = None, **kinds: AttentionConfig) -> dict[str, hal.Decision]:
    return hal.explain_kinds([LayerKind(name, (), config) for name, config in kinds.items()], "cpu:x86_64_v3", choices)


@pytest.mark.usefixtures("toys_only")
def test_kinds_share_one_page_size() -> None:
    full, sliding = AttentionConfig(), AttentionConfig(sliding_window=8)
    toy("only_64", page_sizes=PageSizes(64, only=(64,)), features=frozenset())
    toy("only_16", page_sizes=PageSizes(16, only=(16,)))
    alone = decide(full=full)["full"]
    assert (alone.chosen, alone.page_size) == ("only_64", 64)
    both = decide(full=full, sliding=sliding)
    assert {kind: (d.chosen, d.page_size) for kind, d in both.items()} == {"full": ("only_16", 16),
                                                                          "sliding": ("only_16", 16)}
    reasons = {c.backend: c.reasons for c in both["full"].candidates}
    assert reasons["only_64"] == ("page_size 16 is not supported (only_64: 64)",)


@pytest.mark.usefixtures("toys_only")
@pytest.mark.parametrize(("between", "expected"), [(0, {"full": "best_64", "sliding": "any"}),
                                                   (1, {"full": "second_16", "sliding": "second_16"})])
def test_page_size_with_the_best_ranks_wins(between: int, expected: dict[str, str]) -> None:
    # Ranks from best_64: 0, 1, 2 (+ between). At 64 they sum to 0 + 2 (+ between), at 16 to 1 + 1; ties go to
    # the size that the first kind prefers.
    toy("best_64", page_sizes=PageSizes(64, only=(64,)), features=frozenset())
    toy("second_16", page_sizes=PageSizes(16, only=(16,)))
    for i in range(between):
        toy(f"refuses_{i}", dtypes=("float16",))
    toy("any", page_sizes=PageSizes(64))
    decisions = decide(full=AttentionConfig(), sliding=AttentionConfig(sliding_window=8))
    assert {kind: d.chosen for kind, d in decisions.items()} == expected
    assert len({d.page_size for d in decisions.values()}) == 1


@pytest.mark.usefixtures("toys_only")
def test_kinds_can_be_chosen_apart() -> None:
    from hal.selection import Choice

    toy("one")
    toy("two")
    config = AttentionConfig()
    decisions = decide({"full": Choice("two"), "sliding": Choice()}, full=config, sliding=config)
    assert {kind: d.chosen for kind, d in decisions.items()} == {"full": "two", "sliding": "one"}


def test_kinds_disagreeing_on_page_size_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"share one page size, got \[16, 32\]"):
        decide(a=AttentionConfig(page_size=32), b=AttentionConfig(page_size=16))
    with pytest.raises(ValueError, match="expected at least one, each once"):
        decide()


# --- packages ---

def site(folder: Path, *modules: str, **metadata: str) -> Packages:
    """Packages of a machine with these module files and distributions (name, with _ for -, = version)."""
    for module in modules:
        path = folder / (module.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for parent in list(path.relative_to(folder).parents)[:-1]:
            (folder / parent / "__init__.py").touch()
    for name, version in metadata.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return Packages.installed(Host(path=[str(folder)]))


def first_reasons(packages: Packages, device: str, backend: str, **config: Any) -> tuple[str, ...]:
    decision = hal.explain(AttentionConfig(**config), device, backend, packages=packages)
    return next(c.reasons for c in decision.candidates if c.backend == backend)


@pytest.mark.parametrize(("modules", "metadata", "device", "backend", "reasons"), [
    ([], {}, "musa:mp31", "mate", ["package mate is not installed; install Moore Threads' MATE"]),
    (["mate.matchers"], {"mate": "9.9"}, "musa:mp31", "mate", ["Matchers for unittest"]),
    (["mate.mha_interface"], {"mate": "0.2.2"}, "musa:mp31", "mate", []),
    (["mate.mha_interface"], {"mate": "0.1.3"}, "musa:mp31", "mate", ["mate 0.1.3 is too old (needs 0.2.1 or newer)"]),
    (["flash_attn.flash_attn_interface"], {"flash_attn": "2.5.9.post1"}, "cuda:sm80", "flash_attn_2",
     ["flash-attn 2.5.9.post1 is too old (needs 2.7.4 or newer); pip install flash-attn"]),
    (["flash_attn.flash_attn_interface"], {"flash_attn": "2.8.3.post2"}, "cuda:sm80", "flash_attn_2", []),
    (["flash_attn.flash_attn_interface"], {}, "cuda:sm80", "flash_attn_2", ["has no version in its metadata"]),
    (["flash_attn.cute.interface"], {"flash_attn_4": "4.0.0"}, "cuda:sm80", "flash_attn_2",
     ["flash_attn is here, but as flash-attn-4 without version 2"]),
    (["sgl_kernel.flash_attn"], {"sgl_kernel": "0.3.21"}, "cuda:sm90", "flash_attn_3", []),
    (["sgl_kernel.flash_attn"], {"sgl_kernel": "0.3.20"}, "cuda:sm90", "flash_attn_3",
     ["package flash-attn-3 is not installed", "sgl-kernel 0.3.20 is too old (needs 0.3.21 or newer)",
      "package vllm is not installed"]),
    (["flash_attn_interface"], {}, "cuda:sm90", "flash_attn_3", []),
    (["aiter.other"], {}, "rocm:gfx942", "aiter", ["package aiter is installed but has no aiter.ops.mha"]),
])
def test_installed_packages(tmp_path: Path, modules: list[str], metadata: dict[str, str], device: str, backend: str,
                            reasons: list[str]) -> None:
    seen = first_reasons(site(tmp_path, *modules, **metadata), device, backend)
    assert len(seen) == len(reasons), seen
    for reason, expected in zip(seen, reasons):
        assert expected in reason


def test_mate_never_says_to_install_the_other_mate(tmp_path: Path) -> None:
    [reason] = first_reasons(site(tmp_path, "mate.matchers"), "musa:mp31", "mate")
    assert "never `pip install mate`" in reason
    assert "MooreThreads/mate" in reason


def test_named_packages() -> None:
    decision = hal.explain(device="cuda:sm90", packages="flash_attn, Triton")
    assert (decision.chosen, decision.page_size, decision.needed) == ("flash_attn_2", 256, ("flash-attn",))
    reasons = next(c.reasons for c in decision.candidates if c.backend == "flash_attn_3")
    assert reasons[-3:] == tuple(f"package {name} is not among --packages (flash-attn, triton)"
                                 for name in ("flash-attn-3", "sglang-kernel", "vllm"))
    # What comes with torch alone: flex_attention stands before the floor, and has no sinks.
    assert hal.explain(device="cuda:sm90", packages="").chosen == "flex_attention"
    assert hal.explain(AttentionConfig(sinks=True), "cuda:sm90", packages="").chosen == "torch"


def test_sinks_follow_the_package() -> None:
    """Upstream's build comes first, but has no sinks; the configuration decides which package is used."""
    sinks, plain = AttentionConfig(sinks=True), AttentionConfig()
    sglang = "sgl_kernel.flash_attn.flash_attn_with_kvcache"
    for packages, config, chosen, target in (
            ("sglang-kernel", sinks, "flash_attn_3", sglang),
            ("flash-attn-3,sglang-kernel", sinks, "flash_attn_3", sglang),
            ("flash-attn-3,sglang-kernel", plain, "flash_attn_3", "flash_attn_interface.flash_attn_with_kvcache"),
            ("flash-attn-3", sinks, "torch", None)):
        decision = hal.explain(config, "cuda:sm90", packages=packages)
        assert decision.chosen == chosen
        assert target in (None, decision.target)
    reasons = hal.explain(sinks, "cuda:sm90", packages="flash-attn-3").candidates[0].reasons
    assert reasons == ("sinks is not supported by flash-attn-3 (flash_attn_3: with sglang-kernel or vllm)",
                       "package sglang-kernel is not among --packages (flash-attn-3)",
                       "package vllm is not among --packages (flash-attn-3)")


@pytest.mark.usefixtures("toys_only")
def test_a_package_that_does_not_import_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfbroken_vendor.py").write_text("raise RuntimeError('no driver')\n")
    (tmp_path / "whole_vendor.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    toy("needs_broken", packages=(Package("halfbroken-vendor", "halfbroken_vendor", "reinstall it"),))
    toy("needs_whole", packages=(Package("whole-vendor", "whole_vendor", "reinstall it"),))
    decision = hal.explain(AttentionConfig(), "cpu")
    assert decision.packages == "installed"
    assert decision.chosen == "needs_whole"
    reasons = {c.backend: c.reasons for c in decision.candidates}
    assert reasons["needs_broken"] == ("package halfbroken-vendor is installed but broken: importing "
                                       "halfbroken_vendor failed: RuntimeError: no driver",)


# --- environment ---

def test_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_ATTENTION_BACKEND", "fa2")
    assert hal.explain(device="cuda:sm90").chosen == "flash_attn_2"
    assert hal.explain(device="musa:mp31").chosen is None, "as strict as an argument"
    assert hal.explain(device="cuda:sm90", backend="fa3").chosen == "flash_attn_3", "an argument comes first"
    mixed = hal.explain(AttentionConfig(page_size=256), "cuda:sm90", decode_backend="fa3")
    assert (mixed.prefill.chosen, mixed.decode.chosen) == ("flash_attn_2", "flash_attn_3")
    with pytest.raises(NoBackendError, match="attention backend fa2 .HAL_ATTENTION_BACKEND. can't serve this"):
        hal.get_attention_impl(device="cpu")
    monkeypatch.setenv("HAL_ATTENTION_BACKEND", "fa9")
    with pytest.raises(ValueError, match=r"HAL_ATTENTION_BACKEND='fa9' is not valid.*flash_attn_3"):
        hal.explain(device="cuda:sm90")
    monkeypatch.setenv("HAL_ATTENTION_BACKEND", "")
    assert hal.explain(device="cuda:sm90").chosen == "flash_attn_3"


def test_environment_chooses_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_DEVICE", "musa:mp31")
    assert hal.explain().chosen == "mate"
    assert hal.explain(device="cuda:sm90").chosen == "flash_attn_3", "an argument comes first"
    monkeypatch.setenv("HAL_DEVICE", "cuda:sm13")
    with pytest.raises(ValueError, match=r"HAL_DEVICE='cuda:sm13' is not valid.*sm90"):
        hal.explain()


def test_hypothetical_device_is_not_bound() -> None:
    with pytest.raises(ValueError, match="cuda:sm90 is hypothetical"):
        hal.get_attention_impl(device=hal.Platform.parse("cuda:sm90"))


# --- registration and plugins ---

@pytest.mark.usefixtures("toys_only")
def test_register_and_unregister() -> None:
    backend = toy("mine")
    assert registry.names()[-1] == "mine"
    assert registry.get("mine") is backend
    assert hal.explain(AttentionConfig(), "cpu:x86_64_v3").chosen == "mine"
    registry.unregister_backend("mine")
    assert "mine" not in registry.names()
    with pytest.raises(ValueError, match="'mine' was not registered"):
        registry.unregister_backend("mine")


@pytest.mark.parametrize("name", ["flash_attn_3", "fa3", "FLASH_ATTN"])
def test_taken_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"backend name '{name}' is taken"):
        hal.register_backend(name, type(name, (AttentionBackend,), {"name": name}))


def test_registered_twice_or_wrongly() -> None:
    backend = toy("mine")
    with pytest.raises(ValueError, match="'mine' is taken"):
        hal.register_backend("mine", backend)
    with pytest.raises(ValueError, match="its class says name = 'mine'"):
        hal.register_backend("yours", backend)
    with pytest.raises(ValueError, match=r"must be a subclass of hal\.AttentionBackend, got 3"):
        hal.register_backend("three", 3)  # type: ignore[arg-type]


def test_registered_by_import_string_is_imported_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    hal.register_backend("lazy", "module_of_a_lazy_backend:Lazy")
    module = types.ModuleType("module_of_a_lazy_backend")
    module.Lazy = type("Lazy", (AttentionBackend,), {  # type: ignore[attr-defined]
        "name": "lazy", "platforms": {}, "targets": {"prefill": "p", "decode": "d"}})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert registry.get("lazy") is module.Lazy


PLUGIN_MODULE = """
from hal.backend import AttentionBackend
from hal.capabilities import FEATURES
def make(name):
    return type(name, (AttentionBackend,), {"name": name, "platforms": {"cpu": ()}, "graph_level": "always",
                                            "features": frozenset(FEATURES),
                                            "targets": {"prefill": "plugged.p", "decode": "plugged.d"}})
plugged, torch, other = make("plugged"), make("torch"), make("other")
number = 3
"""


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """plug(name="module:attribute"): installs a distribution with these entry points of group hal.backends."""
    def install(**entries: str) -> None:
        (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN_MODULE)
        info = tmp_path / "plugin_of_a_test-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1\n")
        lines = [f"{name} = {target}" for name, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[hal.backends]", *lines, ""]))
        monkeypatch.syspath_prepend(str(tmp_path))
        forget_plugins()

    yield install
    sys.modules.pop("plugin_of_a_test", None)


@pytest.mark.usefixtures("toys_only")
def test_plugins_come_last_and_never_replace(plug: Any) -> None:
    plug(plugged="plugin_of_a_test:plugged", torch="plugin_of_a_test:torch", misnamed="plugin_of_a_test:other",
         number="plugin_of_a_test:number", broken="plugin_of_a_test_that_is_missing:x")
    assert registry.names() == [*BACKENDS, "plugged"]
    assert registry.get("torch").__name__ == "TorchNative"
    failures = registry.plugin_failures()
    assert set(failures) == {"torch", "misnamed", "number", "broken"}
    assert "the name is taken" in failures["torch"]
    assert "its class says name = 'other'" in failures["misnamed"]
    assert "no subclass of hal.AttentionBackend but 3" in failures["number"]
    assert "ModuleNotFoundError" in failures["broken"]
    with pytest.raises(ValueError, match="'broken' can't be used: plugin broken "):
        hal.explain(device="cpu:x86_64_v3", backend="broken")
    assert hal.explain(AttentionConfig(dtype="float32"), "cpu:x86_64_v3", "torch").chosen == "torch"
    assert hal.explain(AttentionConfig(), "cpu:x86_64_v3").chosen == "plugged"
    toy("registered")
    assert registry.names()[-2:] == ["registered", "plugged"]


def test_plugins_can_be_filtered(plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(plugged="plugin_of_a_test:plugged")
    assert "plugged" in registry.names()
    monkeypatch.setenv("HAL_PLUGINS", "")
    assert "plugged" not in registry.names()


# --- AttentionConfig ---

@pytest.mark.parametrize(("field", "value", "expected"), BAD_FIELDS)
def test_bad_field(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        AttentionConfig(**{field: value})
    text = str(error.value)
    assert field in text
    assert str(value) in text
    assert expected in text


def test_bad_combinations_and_unknown_fields() -> None:
    with pytest.raises(ValueError, match="head_dim follows from mla and would be 576, got 64"):
        AttentionConfig(mla=True, head_dim=64)
    with pytest.raises(ValueError, match=r"mla\.kv_lora_rank must be a whole number >= 1, got 0"):
        MLADims(kv_lora_rank=0)
    with pytest.raises(ValueError, match="sliding_window must be None with sparse=True"):
        AttentionConfig(sparse=True, sliding_window=4)
    with pytest.raises(ValueError, match="unknown field heads in attention config"):
        AttentionConfig.from_dict({"heads": 3})
    with pytest.raises(ValueError, match="unknown field rank in mla"):
        AttentionConfig.from_dict({"mla": {"rank": 3}})
    with pytest.raises(TypeError):
        AttentionConfig(32)  # type: ignore[misc]


def test_config_round_trip() -> None:
    for config in (AttentionConfig(), AttentionConfig(mla=True, softmax_scale=0.1),
                   AttentionConfig(mla=MLADims(kv_lora_rank=256), kv_cache_dtype="fp8_ds_mla"),
                   AttentionConfig(num_heads=6, num_kv_heads=2, head_dim_v=64, kv_cache_dtype="fp8", softcap=30,
                                   sliding_window=8, attention_type="encoder", causal=False, sinks=True)):
        assert AttentionConfig.from_dict(config.to_dict()) == config


def test_config_replace_with_mla() -> None:
    mla = AttentionConfig(mla=True)
    assert (mla.head_dim, mla.v_dim, mla.num_kv_heads) == (576, 512, 1)
    assert mla.replace(page_size=64).page_size == 64
    assert mla.replace(num_heads=128).head_dim == 576
    assert AttentionConfig().replace(mla=MLADims(kv_lora_rank=256)).head_dim == 320
    with pytest.raises(ValueError, match="page_size"):
        mla.replace(page_size=-1)


def test_config_derived_values() -> None:
    assert AttentionConfig(sliding_window=8).window_size == (7, 0), "the window counts the current token"
    assert AttentionConfig(sliding_window=8, causal=False).window_size == (7, 7)
    assert AttentionConfig().window_size == (-1, 0)
    assert AttentionConfig(head_dim=64).scale == 0.125
    assert AttentionConfig(kv_cache_dtype="fp8").stored_dtype == "fp8_e4m3"
    with pytest.raises(ValueError, match="softmax_scale must be given for MLA"):
        _ = AttentionConfig(mla=True).scale


# --- what a backend requires, and what is not written yet ---

@pytest.mark.usefixtures("toys_only")
def test_a_backend_of_mla_alone_needs_mla() -> None:
    toy("latent", requires=frozenset({"mla"}), head_dim_pairs=((576, 512),))
    refused = hal.explain(AttentionConfig(), "cpu:x86_64_v3", "latent").candidates[0].reasons
    assert refused == ("mla is needed (latent: mla only)",)
    assert hal.explain(AttentionConfig(mla=True), "cpu:x86_64_v3", "latent").chosen == "latent"


@pytest.mark.usefixtures("toys_only")
def test_expanded_mla_prefills_without_the_cache() -> None:
    """Prefill over expanded K and V takes its own head dims; page size, layout and KV dtype are decode's alone."""
    toy("absorbed", requires=frozenset({"mla"}), head_dim_pairs=((576, 512),), phases=("decode",), kv_layout="latent",
        page_sizes=PageSizes(64, only=(64,)), kv_cache_dtypes=("fp8_e4m3",))
    toy("expanded", features=frozenset(), mla_prefill=((192, 128),), page_sizes=PageSizes(16, only=(16,)))
    config = AttentionConfig(mla=True, kv_cache_dtype="fp8")
    decision = hal.explain(config, "cpu:x86_64_v3")
    assert (decision.prefill.chosen, decision.decode.chosen, decision.page_size) == ("expanded", "absorbed", 64)
    wide = AttentionConfig(mla=MLADims(v_head_dim=192))
    reasons = {c.backend: c.reasons for c in hal.explain(wide, "cpu:x86_64_v3").prefill.candidates}
    assert reasons["expanded"] == ("MLA prefill with head_dim 192 and head_dim_v 192 is not supported "
                                   "(expanded: 192/128)",)
    reasons = {c.backend: c.reasons for c in decision.decode.candidates}
    assert any(reason.startswith("mla ") for reason in reasons["expanded"])


@pytest.mark.usefixtures("toys_only")
def test_a_backend_without_adapter_can_be_asked_about_but_not_used() -> None:
    toy("unwritten", adapter=False)
    asked = hal.explain(AttentionConfig(), "cpu:x86_64_v3")
    assert asked.chosen == "unwritten"
    assert asked.needed == ("an adapter for unwritten (not written yet)",)
    here = hal.explain(AttentionConfig(), "cpu")
    reasons = {c.backend: c.reasons for c in here.candidates}
    assert reasons["unwritten"] == ("adapter is not written yet (unwritten: it can be asked about, not used)",)
    with pytest.raises(NoBackendError, match="adapter is not written yet"):
        hal.get_attention_impl(AttentionConfig(), "cpu", "unwritten")


# --- what must not be dropped, and what a pair needs ---

def test_choices_per_kind_are_never_dropped() -> None:
    kinds = {"full": AttentionConfig(dtype="float32"), "sliding": AttentionConfig(dtype="float32", sliding_window=8)}
    with pytest.raises(ValueError, match="choices names the kind 'slidng', which is not there .kinds: full, sliding."):
        hal.get_attention_impls(kinds, "cpu", choices={"slidng": "torch"})
    impls = hal.get_attention_impls(kinds, "cpu", choices={"sliding": "torch"})
    first = "torch" if registry.get("cpu").not_built() else "cpu"
    assert {name: impl.decode.backend for name, impl in impls.items()} == {"full": first, "sliding": "torch"}
    assert hal.get_attention_impls(kinds, "cpu", backend="torch")["full"].prefill.backend == "torch"
    with pytest.raises(NoBackendError):
        hal.get_attention_impls(kinds, "cpu", prefill_backend="flash_attn_2")
    with pytest.raises(ValueError, match="attention backend '' is not known"):
        hal.get_attention_impl(device="cpu", prefill_backend="")


@pytest.mark.parametrize("configs", [[], {}, AttentionConfig(), "full", [AttentionConfig()], {"full": {}}, 0,
                                     [LayerKind("a", (), AttentionConfig()), LayerKind("a", (), AttentionConfig())]])
def test_what_is_no_list_of_kinds_is_refused(configs: Any) -> None:
    with pytest.raises(ValueError, match="^configs (is|has|holds) "):
        hal.get_attention_impls(configs, "cpu")
    with pytest.raises(ValueError, match="^configs (is|has|holds) "):
        hal.explain_kinds(configs, "cpu:x86_64_v3")


@pytest.mark.parametrize("config", [{}, 0, {"head_dim": 64}])
def test_what_is_no_config_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="^configs holds "):
        hal.get_attention_impl(config)
    with pytest.raises(ValueError, match="^configs holds "):
        hal.explain(config, "cpu:x86_64_v3")


@pytest.mark.usefixtures("toys_only")
def test_a_decode_backend_that_no_prefill_goes_with_says_so() -> None:
    toy("lonely", phases=("decode",), kv_layout="its own")
    toy("other")
    decision = hal.explain(AttentionConfig(), "cpu:x86_64_v3")
    assert decision.chosen == "other"
    reasons = {c.backend: c.reasons for c in decision.candidates}["lonely"]
    assert len(reasons) == 1
    assert reasons[0].startswith("kv_layout its own with q bfloat16 is read by no accepted prefill backend (other: ")
    assert "not lonely: kv_layout its own" in decision.summary()


def test_a_pair_makes_queries_one_dtype() -> None:
    """flash_attn_3 wants fp8 queries with an fp8 cache, torch bfloat16 ones: one q can't be both."""
    decision = hal.explain(AttentionConfig(kv_cache_dtype="fp8"), "cuda:sm90", prefill_backend="flash_attn_3",
                           decode_backend="torch")
    assert decision.prefill.chosen is None
    assert "q_dtype fp8_e4m3 is not the decode backend's (torch: bfloat16)" in decision.prefill.candidates[0].reasons


@pytest.mark.usefixtures("toys_only")
def test_page_sizes_that_only_a_common_multiple_serves() -> None:
    toy("of_64", phases=("decode",), page_sizes=PageSizes(64, step=64))
    toy("of_48", phases=("prefill",), page_sizes=PageSizes(48, step=48))
    decision = hal.explain(AttentionConfig(), "cpu:x86_64_v3")
    assert (decision.prefill.chosen, decision.decode.chosen, decision.page_size) == ("of_48", "of_64", 192)


def test_a_cache_is_one_that_both_backends_read() -> None:
    toy("wide", phases=("prefill",), page_sizes=PageSizes(256, step=256), graph_level="never",
        dtypes=("float32",), bind=classmethod(lambda cls, *a: registry.get("torch").bind(*a)))
    attn = hal.get_attention_impl(AttentionConfig(dtype="float32"), "cpu", prefill_backend="wide",
                                  decode_backend="torch")
    assert attn.decision.page_size == 256
    assert attn.new_kv_cache(1)[0].shape[1] == 256
    for size in (16, True):
        with pytest.raises(ValueError, match=f"page_size {size} is not supported .(wide|torch): "):
            attn.new_kv_cache(1, size)


def test_torch_missing_or_too_old_is_everybodys_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.host import TorchBuild

    for build, reason in ((TorchBuild("2.5.1", None, None), "torch 2.5.1 is too old (every backend needs torch 2.6"),
                          (TorchBuild("", None, None, "torch is not installed"), "torch is not installed: install")):
        monkeypatch.setattr(Host, "torch_build", lambda self, build=build: build)
        decision = hal.explain(AttentionConfig(), "cpu")
        assert decision.chosen is None
        assert all(any(r.startswith(reason) for r in c.reasons) for c in decision.candidates)
        assert hal.explain(AttentionConfig(), "cpu:x86_64_v3").complete  # not about this machine


def test_an_arch_that_is_here_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = hal.detect("cpu")
    monkeypatch.setenv("HAL_DEVICE", str(here))
    assert hal.explain().packages == "installed"
    monkeypatch.setenv("HAL_DEVICE", "cuda:sm90")
    assert hal.explain().packages == "assumed"
    with pytest.raises(ValueError, match="device is the Platform cuda with neither an arch nor a name"):
        hal.explain(device=hal.Platform.parse("cuda"))


def test_rules_of_combinations_see_the_page_size_that_is_decided_on() -> None:
    """aiter_unified's kernel asserts at pages of 48, also where another kind of layer asked for them."""
    kinds = {"a": AttentionConfig(page_size=48, sinks=True), "b": AttentionConfig(sinks=True)}
    decisions = hal.explain_kinds(kinds, "rocm:gfx942")
    assert decisions["b"].page_size == 48
    for name in kinds:
        reasons = {c.backend: c.reasons for c in decisions[name].candidates}["aiter_unified"]
        assert any(reason.startswith("page_size 48 is not supported (aiter_unified: ") for reason in reasons)


def test_graph_level_and_query_tokens() -> None:
    toy("one_token", graph_level="single-token decode", max_decode_query_len=None)
    several = AttentionConfig(graph=True, max_decode_query_len=4)
    candidate = hal.explain(several, "cpu:x86_64_v3", decode_backend="one_token").candidates[0]
    assert candidate.reasons == ("graph with max_decode_query_len 4 is not supported (one_token: graph level "
                                 "single-token decode)",)
    assert hal.explain(AttentionConfig(graph=True), "cpu:x86_64_v3", decode_backend="one_token").chosen == "one_token"


def test_a_graph_is_asked_of_decode_alone() -> None:
    """Nobody captures prefill: a backend of graph level never prefills beside one that can be captured."""
    toy("captured", phases=("decode",))
    toy("eager", graph_level="never")
    config = AttentionConfig(graph=True, max_decode_query_len=1)
    decision = hal.explain(config, "cpu:x86_64_v3", prefill_backend="eager", decode_backend="captured")
    assert (decision.prefill.chosen, decision.decode.chosen) == ("eager", "captured")
    decision = hal.explain(config, "cpu:x86_64_v3", "eager")
    assert decision.prefill.candidates[0].accepted
    assert decision.decode.candidates[0].reasons == ("graph is not supported (eager: graph level never)",)


# --- a name that decodes only, and non-causal orders ---

def test_what_decodes_only_brings_its_prefill_for_mla_alone() -> None:
    toy("latent", phases=("decode",), requires=frozenset({"mla"}), head_dim_pairs=((576, 512),),
        prefill_with=("expanded",))
    toy("expanded", mla_prefill=((192, 128),), features=frozenset())
    mla = AttentionConfig(mla=True)
    decision = hal.explain(mla, "cpu:x86_64_v3", "latent")
    assert (decision.prefill.chosen, decision.decode.chosen) == ("expanded", "latent")
    assert [c.backend for c in decision.prefill.candidates] == ["latent", "expanded"]
    assert [c.backend for c in decision.decode.candidates] == ["latent"], "it never decodes in its stead"
    dense = hal.explain(AttentionConfig(), "cpu:x86_64_v3", "latent")
    assert [c.backend for c in dense.prefill.candidates] == ["latent"]
    # Named for prefill alone, or not at all, other rules hold.
    assert [c.backend for c in hal.explain(mla, "cpu:x86_64_v3", decode_backend="latent",
                                           prefill_backend="expanded").prefill.candidates] == ["expanded"]


def test_non_causal_order_is_the_platforms_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense attention alone, both phases; what the order leaves out keeps its place after it; hints rank by it too."""
    toy("toy_first")
    toy("toy_second", page_sizes=PageSizes(64, only=(64,)))
    order = ("toy_second", "toy_first")
    monkeypatch.setattr(table()["cpu"], "priority", lambda arch, mla, phase: ("toy_first", "toy_second"))
    monkeypatch.setattr(table()["cpu"], "NON_CAUSAL", {"x86_64_v3": order}, raising=False)

    def first(device: str = "cpu:x86_64_v3", **config: Any) -> tuple[str, ...]:
        decision = hal.explain(AttentionConfig(**config), device)
        assert [c.backend for c in decision.prefill.candidates] == [c.backend for c in decision.decode.candidates]
        return tuple(c.backend for c in decision.candidates[:2])

    assert first(causal=False) == order
    assert first() == order[::-1]
    assert first("cpu:x86_64_v4", causal=False) == order[::-1]
    assert first(causal=False, mla=True) == order[::-1]
    rest = [c.backend for c in hal.explain(AttentionConfig(causal=False), "cpu:x86_64_v3").candidates[2:]]
    assert rest == list(BACKENDS)
    [hint] = hal.explain(AttentionConfig(causal=False, page_size=16), "cpu:x86_64_v3").hints
    assert hint.serves == {"prefill": "toy_second", "decode": "toy_second"}
    assert hal.explain(AttentionConfig(page_size=16), "cpu:x86_64_v3").hints == ()


# --- the vendor's function ---

@pytest.mark.parametrize(("device", "ask", "config", "prefill", "decode"), [
    ("cuda:sm90", "flashinfer", {}, "BatchPrefillWithPagedKVCacheWrapper.run",
     "BatchDecodeWithPagedKVCacheWrapper.run"),
    ("cuda:sm90", "flashinfer", {"mla": True}, "flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper.run",
     "BatchMLAPagedAttentionWrapper.run"),
    ("cuda:sm90", "flashmla_sparse", {"mla": True, "sparse": True}, "flash_mla_sparse_fwd", "flash_mla_sparse_fwd"),
    ("cuda:sm90", "flashmla_sparse", {"mla": True, "sparse": True, "kv_cache_dtype": "fp8_ds_mla"},
     "flash_mla_with_kvcache", "flash_mla_with_kvcache"),
])
def test_target_follows_the_configuration(device: str, ask: str, config: dict[str, Any], prefill: str,
                                          decode: str) -> None:
    decision = hal.explain(AttentionConfig(**config), device, ask)
    assert str(decision.prefill.target).endswith(prefill)
    assert str(decision.decode.target).endswith(decode)


# --- one phase alone ---

def test_wave_serves_each_phase_its_own_head_dims() -> None:
    """SGLang's tests run 64 and 80 in decode, 128 in extend."""
    ran = "(wave: 128 in prefill; 64, 80 in decode)"
    for dim, phases in ((64, ["decode"]), (80, ["decode"]), (128, ["prefill"])):
        decision = hal.explain(AttentionConfig(dtype="float16", page_size=1, head_dim=dim), "rocm:gfx942", "wave")
        for phase in (decision.prefill, decision.decode):
            [wave] = phase.candidates
            own = f"head_dim {dim} in {phase.phase} is not supported {ran}"
            assert (own in wave.reasons) == (phase.phase not in phases)
