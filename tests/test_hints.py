"""Hints: the one change that would get a better-ranked backend, found by asking selection again."""

from __future__ import annotations

import json
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hal
from hal import AttentionConfig, LayerKind, NoBackendError, hints, registry
from hal.backend import AttentionBackend
from hal.capabilities import FEATURES, HeadDims, PageSizes
from hal.config import KV_CACHE_DTYPES
from hal.packages import Package, Packages
from hal.platforms import table
from hal.selection import Choice

CPU = "cpu:x86_64_v3"
ALL = frozenset(FEATURES)
ONE = Package("vendor-one", "vendor_one", "pip install vendor-one")
TWO = Package("vendor-two", "vendor_two", "ask them")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    # Toys stand before the CPU's own backends, in the order of registration.
    monkeypatch.setattr(table()["cpu"], "priority", lambda arch, mla, phase: tuple(
        name for name in registry.names() if name.startswith("toy_")))
    yield
    for name in [name for name in registry.names() if name.startswith("toy_")]:
        registry.unregister_backend(name)


def toy(name: str, **declared: Any) -> type[AttentionBackend]:
    """A backend of the CPU that serves everything but what `declared` says; registered, in order of rank."""
    base: dict[str, Any] = {"name": name, "platforms": {"cpu": ()}, "features": ALL, "head_dims": HeadDims(),
                            "dtypes": ("bfloat16",), "graph_level": "always", "max_decode_query_len": None,
                            "head_dim_pairs": None, "targets": {"prefill": f"{name}.p", "decode": f"{name}.d"}}
    backend = type(name, (AttentionBackend,), {**base, **declared})
    registry.register_backend(name, backend)
    return backend


def texts(decision: hal.Decision) -> list[str]:
    return [hint.text for hint in decision.hints]


def ask(packages: str | Packages | None = None, **config: Any) -> hal.Decision:
    return hal.explain(AttentionConfig(**config), CPU, packages=packages)


# --- settings ---

# What the better-ranked toy declares; the configuration; the hint. toy_any serves all of them.
SETTINGS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"page_sizes": PageSizes(64, only=(64,))}, {"page_size": 1},
     "page_size 1 excluded toy_best (64); page_size 64 would serve prefill and decode with toy_best"),
    ({"page_sizes": PageSizes(256, step=256)}, {"page_size": 16},
     "page_size 16 excluded toy_best (multiples of 256); page_size 256 would serve prefill and decode with toy_best"),
    ({}, {"kv_cache_dtype": "fp8_e4m3"},
     "kv_cache_dtype fp8_e4m3 excluded toy_best (auto); kv_cache_dtype auto would serve prefill and decode with "
     "toy_best"),
    ({"kv_cache_dtypes": ("fp8_e5m2",)}, {"kv_cache_dtype": "fp8_e4m3"},
     "kv_cache_dtype fp8_e4m3 excluded toy_best (fp8_e5m2, auto); kv_cache_dtype fp8_e5m2 would serve prefill and "
     "decode with toy_best"),
    ({}, {"dtype": "float16"},
     "dtype float16 excluded toy_best (bfloat16); dtype bfloat16 would serve prefill and decode with toy_best"),
    ({"graph_level": "never"}, {"graph": True},
     "graph True excluded toy_best (graph level never); graph False would serve decode with toy_best"),
    ({"max_decode_query_len": 4}, {"max_decode_query_len": 8},
     "max_decode_query_len 8 excluded toy_best (up to 4); max_decode_query_len 4 would serve decode with toy_best"),
    ({"features": ALL - {"return_softmax_lse"}}, {"return_softmax_lse": True},
     "return_softmax_lse True excluded toy_best (False); return_softmax_lse False would serve prefill and decode with "
     "toy_best"),
    ({"features": ALL - {"deterministic"}}, {"deterministic": True},
     "deterministic True excluded toy_best (False); deterministic False would serve prefill and decode with toy_best"),
    ({"features": ALL - {"context_parallel"}}, {"context_parallel_size": 2},
     "context_parallel_size 2 excluded toy_best (1); context_parallel_size 1 would serve prefill and decode with "
     "toy_best"),
]


@pytest.mark.parametrize(("declared", "config", "expected"), SETTINGS, ids=lambda v: next(iter(v), "")
                         if isinstance(v, dict) else "")
def test_setting(declared: dict[str, Any], config: dict[str, Any], expected: str) -> None:
    toy("toy_best", **declared)
    toy("toy_any", dtypes=("bfloat16", "float16"), kv_cache_dtypes=("fp8_e4m3",))
    decision = ask(**config)
    assert decision.chosen == "toy_any"
    assert texts(decision) == [expected]
    [hint] = decision.hints
    assert hint.value == config[hint.setting]
    assert ask(**{**config, hint.setting: hint.needed}).chosen == "toy_best", "the hint is true"


def test_every_setting_is_tested_and_is_a_field() -> None:
    tested = {text.split()[0] for _, _, text in SETTINGS}
    assert tested == set(hints.SETTINGS)
    assert tested <= set(AttentionConfig.__dataclass_fields__)


# What the model fixes: (declared by the better-ranked toy, configuration). Nothing is hinted.
MODELS_OWN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"head_dims": HeadDims(only=(64,))}, {"head_dim": 80}),
    ({"head_dim_pairs": ()}, {"head_dim_v": 64}),
    ({"features": ALL - {"sliding_window"}}, {"sliding_window": 8}),
    ({"features": ALL - {"softcap"}}, {"softcap": 30.0}),
    ({"features": ALL - {"sinks"}}, {"sinks": True}),
    ({"features": ALL - {"mla"}}, {"mla": True}),
    ({"features": ALL - {"tree_mask"}}, {"tree_mask": True}),
    ({"features": ALL - {"non_causal"}}, {"causal": False}),
    ({"platforms": {"cuda": ()}}, {}),
    # Two things at once are not one change.
    ({"page_sizes": PageSizes(64, only=(64,)), "dtypes": ("float16",)}, {"page_size": 1}),
    ({"page_sizes": PageSizes(64, only=(64,)), "features": ALL - {"sinks"}}, {"page_size": 1, "sinks": True}),
]


@pytest.mark.parametrize(("declared", "config"), MODELS_OWN, ids=lambda v: "-".join(v))
def test_no_hint(declared: dict[str, Any], config: dict[str, Any]) -> None:
    toy("toy_best", **declared)
    toy("toy_any")
    decision = ask(**config)
    assert decision.chosen == "toy_any"
    assert decision.hints == ()
    assert "hint:" not in str(decision)


def test_a_page_size_that_nobody_asked_for_is_no_setting() -> None:
    """The other kind of layer took it; there is nothing to change."""
    toy("toy_64", page_sizes=PageSizes(64, only=(64,)), features=frozenset())
    toy("toy_16", page_sizes=PageSizes(16, only=(16,)))
    kinds = [LayerKind(name, (), AttentionConfig(sliding_window=window))
             for name, window in (("full", None), ("sliding", 8))]
    for decision in hal.explain_kinds(kinds, CPU).values():
        assert (decision.chosen, decision.hints) == ("toy_16", ())


def test_worse_ranked_backends_are_not_hinted() -> None:
    toy("toy_any")
    toy("toy_worse", page_sizes=PageSizes(64, only=(64,)))
    assert ask(page_size=1).hints == ()


def test_a_setting_names_every_backend_it_excluded_and_the_best_change() -> None:
    toy("toy_first", page_sizes=PageSizes(256, only=(256, 512)))
    toy("toy_second", page_sizes=PageSizes(64, step=64))
    toy("toy_any")
    assert texts(ask(page_size=1)) == [
        "page_size 1 excluded toy_first (256, 512), toy_second (multiples of 64); "
        "page_size 256 would serve prefill and decode with toy_first"]


def test_a_size_that_is_not_the_preferred_one_counts() -> None:
    toy("toy_decode", page_sizes=PageSizes(64, only=(32, 64)), phases=("decode",))
    toy("toy_prefill", page_sizes=PageSizes(16, only=(16, 32)), phases=("prefill",))
    toy("toy_any", page_sizes=PageSizes(1, only=(1,)))
    assert texts(ask(page_size=1)) == [
        "page_size 1 excluded toy_decode (32, 64), toy_prefill (16, 32); "
        "page_size 32 would serve prefill with toy_prefill and decode with toy_decode"]


def test_what_makes_another_phase_or_kind_worse_is_no_hint() -> None:
    toy("toy_decode", page_sizes=PageSizes(64, only=(64,)), phases=("decode",))
    toy("toy_any", page_sizes=PageSizes(1, only=(1,)))
    decision = ask(page_size=1)
    assert (decision.prefill.chosen, decision.decode.chosen, decision.hints) == ("toy_any", "toy_any", ())
    toy("toy_any_size", phases=("prefill",))
    assert ask(page_size=1).hints == (), "prefill would get a worse-ranked one"


def test_each_hint_names_only_what_its_own_setting_excluded() -> None:
    toy("toy_two_reasons", page_sizes=PageSizes(64, only=(64,)), features=ALL - {"sinks"})
    toy("toy_size", page_sizes=PageSizes(128, only=(128,)))
    toy("toy_package", packages=(ONE,))
    toy("toy_dtype", kv_cache_dtypes=("fp8_e5m2",))
    toy("toy_any", kv_cache_dtypes=("fp8_e4m3",), dtypes=("bfloat16", "float16"))
    assert texts(ask("", page_size=1, sinks=True)) == [
        "page_size 1 excluded toy_size (128); page_size 128 would serve prefill and decode with toy_size",
        "installing vendor-one would serve prefill and decode with toy_package: pip install vendor-one"]


def test_a_backend_that_no_change_pairs_is_not_hinted() -> None:
    """Its page size alone would be accepted, but no prefill backend reads its layout."""
    toy("toy_best", page_sizes=PageSizes(64, only=(64,)), phases=("decode",), kv_layout="of its own")
    toy("toy_any")
    decision = ask(page_size=1)
    assert (decision.chosen, decision.hints) == ("toy_any", ())
    toy("toy_unpaired", phases=("decode",), kv_layout="of its own")
    assert ask(page_size=1, kv_cache_dtype="bfloat16").hints == ()


def test_a_backend_that_only_the_pairing_excluded_is_not_named() -> None:
    toy("toy_unpaired", phases=("decode",), kv_layout="of its own", page_sizes=PageSizes(64))
    toy("toy_best", page_sizes=PageSizes(64, only=(64,)))
    toy("toy_any")
    assert texts(ask(page_size=1)) == [
        "page_size 1 excluded toy_best (64); page_size 64 would serve prefill and decode with toy_best"]


def test_a_prefill_package_that_pairs_a_better_decode_backend() -> None:
    toy("toy_prefill", phases=("prefill",), kv_layout="of its own", packages=(ONE,))
    toy("toy_decode", phases=("decode",), kv_layout="of its own")
    toy("toy_any")
    assert ask("").decode.chosen == "toy_any"
    assert texts(ask("", kv_cache_dtype="bfloat16")) == [
        "installing vendor-one would serve prefill with toy_prefill and decode with toy_decode: pip install vendor-one"]


def test_best_ranked_first_over_both_phases() -> None:
    toy("toy_prefill", phases=("prefill",), packages=(ONE,))
    toy("toy_decode", phases=("decode",), packages=(TWO,))
    toy("toy_any")
    assert [dict(hint.serves) for hint in ask("").hints] == [{"prefill": "toy_prefill"}, {"decode": "toy_decode"}]


def test_a_kind_with_another_value_keeps_it() -> None:
    """Were the sliding kind changed too, it would lose toy_tight, and there would be no hint."""
    toy("toy_tight", requires=frozenset({"sliding_window"}), max_decode_query_len=2)
    toy("toy_best", max_decode_query_len=4)
    toy("toy_any")
    kinds = [LayerKind("full", (), AttentionConfig(max_decode_query_len=8)),
             LayerKind("sliding", (), AttentionConfig(max_decode_query_len=2, sliding_window=8))]
    decisions = hal.explain_kinds(kinds, CPU)
    assert {name: d.decode.chosen for name, d in decisions.items()} == {"full": "toy_any", "sliding": "toy_tight"}
    assert [hint.needed for hint in decisions["full"].hints] == [4]


def test_kinds_are_asked_together() -> None:
    toy("toy_64", page_sizes=PageSizes(64, only=(64,)), features=frozenset())
    toy("toy_16", page_sizes=PageSizes(16, only=(16,)))

    def decide(window: int | None) -> dict[str, hal.Decision]:
        kinds = [LayerKind(name, (), AttentionConfig(page_size=16, sliding_window=own))
                 for name, own in (("full", None), ("other", window))]
        return hal.explain_kinds(kinds, CPU)

    assert texts(decide(None)["full"]) == ["page_size 16 excluded toy_64 (64); page_size 64 would serve prefill and "
                                           "decode with toy_64"]
    assert decide(8)["full"].hints == (), "64 would leave the kind with a window without a backend"


def test_an_explicit_choice_is_hinted_within_its_name() -> None:
    toy("toy_best")
    toy("toy_named", page_sizes=PageSizes(64, only=(64,)))
    decision = hal.explain(AttentionConfig(page_size=16), CPU, "toy_named")
    assert decision.chosen is None
    assert texts(decision) == ["page_size 16 excluded toy_named (64); page_size 64 would serve prefill and decode with "
                               "toy_named"]
    with pytest.raises(NoBackendError, match=r"hint:  page_size 16 excluded toy_named \(64\)"):
        hal.get_attention_impl(AttentionConfig(page_size=16), "cpu", "toy_named")


def test_phases_apart() -> None:
    toy("toy_best", page_sizes=PageSizes(64, only=(64,)))
    toy("toy_any")
    decision = hal.explain_kinds([LayerKind("all", (), AttentionConfig(page_size=1))], CPU,
                                 Choice(prefill_backend="toy_any"))["all"]
    assert texts(decision) == ["page_size 1 excluded toy_best (64); page_size 64 would serve decode with toy_best"]
    assert decision.hints[0].serves == {"decode": "toy_best"}


# --- packages ---

def test_package() -> None:
    toy("toy_one", packages=(ONE,))
    toy("toy_two", packages=(TWO,), phases=("decode",))
    toy("toy_any")
    decision = ask("")
    assert decision.chosen == "toy_any"
    assert texts(decision) == [
        "installing vendor-one would serve prefill and decode with toy_one: pip install vendor-one",
        "installing vendor-two would serve decode with toy_two: ask them"]
    assert [hint.to_dict() for hint in decision.hints] == [
        {"setting": "package", "value": None, "needed": "vendor-one", "text": decision.hints[0].text,
         "serves": {"prefill": "toy_one", "decode": "toy_one"}},
        {"setting": "package", "value": None, "needed": "vendor-two", "text": decision.hints[1].text,
         "serves": {"decode": "toy_two"}}]
    assert texts(ask("vendor-two")) == [decision.hints[0].text], "the second would not get a better one"
    assert ask("vendor-one").hints == ()
    assert ask("assumed").hints == ()


def test_the_first_of_several_packages_that_serves_is_named() -> None:
    class Picky(AttentionBackend):
        @classmethod
        def package_reasons(cls, package: Package, config: AttentionConfig) -> list[str]:
            return ["sinks is not supported by vendor-one (toy_best: with vendor-two)"] if config.sinks \
                and package is ONE else []

    toy("toy_best", packages=(ONE, TWO), package_reasons=Picky.package_reasons)
    toy("toy_any")
    assert [hint.needed for hint in ask("").hints] == ["vendor-one"]
    assert [hint.needed for hint in ask("", sinks=True).hints] == ["vendor-two"]


def test_one_distribution_of_two_backends() -> None:
    toy("toy_best", packages=(Package("vendor-one", "vendor_one.mla", "x"),), phases=("decode",))
    toy("toy_next", packages=(ONE,))
    toy("toy_any")
    assert texts(ask("")) == [
        "installing vendor-one would serve prefill with toy_next and decode with toy_best: x"]


def test_too_old_and_broken_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vendor_old.py").touch()
    info = tmp_path / "vendor_old-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vendor-old\nVersion: 1.0\n")
    (tmp_path / "vendor_torn.py").write_text("raise RuntimeError('no driver')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    toy("toy_old", packages=(Package("vendor-old", "vendor_old", "pip install -U vendor-old", minimum="2.0"),))
    toy("toy_torn", packages=(Package("vendor-torn", "vendor_torn", "pip install -U vendor-torn"),))
    toy("toy_any")
    decision = hal.explain(AttentionConfig(), "cpu")
    assert decision.chosen == "toy_any"
    assert texts(decision) == [
        "installing vendor-old 2.0 or newer would serve prefill and decode with toy_old: pip install -U vendor-old",
        "reinstalling vendor-torn would serve prefill and decode with toy_torn: pip install -U vendor-torn"]


def test_an_adapter_that_is_not_written_is_never_hinted_on_the_machine() -> None:
    toy("toy_best", page_sizes=PageSizes(64, only=(64,)), adapter=False)
    toy("toy_any")
    assert len(ask(page_size=1).hints) == 1, "a platform that is not here is asked about as if it were"
    assert hal.explain(AttentionConfig(page_size=1), "cpu").hints == ()


def test_of_many_the_best_ranked_are_shown() -> None:
    for i in range(8):
        toy(f"toy_{i}", packages=(Package(f"vendor-{i}", f"vendor_{i}", "x"),))
    toy("toy_any")
    assert [hint.needed for hint in ask("").hints] == [f"vendor-{i}" for i in range(hints.MOST)]


# --- the real declarations ---

@pytest.mark.parametrize(("device", "config", "packages", "start"), [
    ("cuda:sm80", {"page_size": 16}, "flash-attn", "page_size 16 excluded flash_attn_2 (multiples of 256); page_size "),
    ("cuda:sm80", {"kv_cache_dtype": "fp8"}, "flash-attn", "kv_cache_dtype fp8_e4m3 excluded flash_attn_2 (auto)"),
    ("musa:mp31", {"dtype": "float32"}, "mate", "dtype float32 excluded mate (float16, bfloat16); dtype float16 "),
    ("npu:ascend910b", {"page_size": 16}, "torch-npu", "page_size 16 excluded ascend (128); page_size 128 would "),
    ("rocm:gfx942", {"page_size": 64}, "amd-aiter", "page_size 64 excluded aiter (16, 1024)"),
    ("musa:mp31", {}, "", "installing mate 0.2.1 or newer would serve prefill and decode with mate: install Moore "
                           "Threads' MATE"),
    ("cuda:sm80", {}, "", "installing flash-attn 2.7.4 or newer would serve prefill and decode with flash_attn_2: "
                              "pip install flash-attn"),
])
def test_vendors(device: str, config: dict[str, Any], packages: str, start: str) -> None:
    told = texts(hal.explain(AttentionConfig(**config), device, packages=packages))
    assert any(text.startswith(start) for text in told), told


def test_every_hint_is_true() -> None:
    """On every arch, for settings that exclude backends: doing what the hint says chooses what it says."""
    seen = set()
    for kind in ("cuda", "rocm", "npu", "musa"):
        for arch in table()[kind].ARCHS:
            for config in ({"page_size": 1}, {"kv_cache_dtype": "fp8_e5m2"}, {"page_size": 48, "mla": True},
                           {"graph": True}, {"max_decode_query_len": 8}, {"deterministic": True}, {"dtype": "float32"}):
                for packages in ("assumed", "triton"):
                    asked = AttentionConfig(**config)  # type: ignore[arg-type]
                    decision = hal.explain(asked, f"{kind}:{arch}", packages=packages)
                    for hint in decision.hints:
                        package = hint.setting == "package"
                        then = hal.explain(asked if package else asked.replace(**{hint.setting: hint.needed}),
                                           f"{kind}:{arch}",
                                           packages=f"{packages},{hint.needed}" if package else packages)
                        for phase, backend in hint.serves.items():
                            after, before = getattr(then, phase), getattr(decision, phase)
                            assert after.chosen == backend, hint
                            assert after.rank(backend) < before.rank(before.chosen), hint
                        seen.add(hint.setting)
    assert {"page_size", "package", "dtype", "kv_cache_dtype"} <= seen


# --- what they cost, and where they go ---

def test_a_decision_that_nobody_shows_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hints, "find", lambda *question: asked.append(question) or ())
    decision = hal.explain(AttentionConfig(page_size=1), "cuda:sm90")
    _ = decision.summary(), repr(decision), decision == decision, decision.to_dict
    hal.get_attention_impl(device="cpu")
    assert asked == []
    _ = str(decision), decision.to_dict(), decision.hints
    assert len(asked) == 1


def test_hints_are_about_the_question_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read late, they still answer for the candidates and the environment of the decision."""
    toy("toy_best", page_sizes=PageSizes(64, only=(64,)))
    toy("toy_any")
    decision = ask(page_size=1)
    registry.unregister_backend("toy_best")
    monkeypatch.setenv("HAL_ATTENTION_BACKEND", "torch")
    assert len(decision.hints) == 1


def test_pickled_decisions_keep_their_hints() -> None:
    decision = hal.explain(AttentionConfig(page_size=16), "cuda:sm80", packages="flash-attn")
    again = pickle.loads(pickle.dumps(decision))
    assert again == decision
    assert again.hints == decision.hints != ()


def test_summary_stays_one_line() -> None:
    for device, package in (("cuda:sm80", "flash-attn"), ("npu:ascend910b", "torch-npu")):
        decision = hal.explain(AttentionConfig(page_size=16), device, packages=package)
        assert decision.hints
        assert "\n" not in decision.summary()
        assert "hint" not in decision.summary()


def test_cost() -> None:
    """Selection and hints, together and warm. The limit of 5 ms is selection's; hints are for people and JSON."""
    hal.explain(AttentionConfig(page_size=1), "cuda:sm90", packages="triton").to_dict()
    best = []
    for _ in range(5):
        started = time.perf_counter()
        decision = hal.explain(AttentionConfig(page_size=1), "cuda:sm90", packages="triton")
        chosen = time.perf_counter()
        assert decision.hints
        best.append((chosen - started, time.perf_counter() - chosen))
    selecting, hinting = (min(times) for times in zip(*best))
    assert selecting < 0.005
    assert hinting < 0.1


def test_fp8_ds_mla_is_offered_to_mla_alone() -> None:
    class OnlyIt(AttentionBackend):
        @classmethod
        def extra_reasons(cls, config: AttentionConfig, platform: hal.Platform, phase: str) -> list[str]:
            return [] if config.stored_dtype == "fp8_ds_mla" else ["kv_cache_dtype is another (toy_best: fp8_ds_mla)"]

    toy("toy_best", kv_cache_dtypes=KV_CACHE_DTYPES[1:], extra_reasons=OnlyIt.extra_reasons)
    toy("toy_any")
    kinds = {"mla": AttentionConfig(mla=True), "dense": AttentionConfig()}
    decisions = hal.explain_kinds(kinds, CPU)
    assert [(hint.setting, hint.needed) for hint in decisions["mla"].hints] == [("kv_cache_dtype", "fp8_ds_mla")]
    assert decisions["dense"].hints == ()


def test_any_decision_can_be_shown() -> None:
    """Random questions: printing and JSON never raise, and fit 100 columns."""
    rng = random.Random(20261121)
    devices = [f"{kind}:{arch}" for kind in ("cuda", "rocm", "npu", "musa", "cpu") for arch in table()[kind].ARCHS]
    fields: dict[str, list[Any]] = {
        "head_dim": [64, 80, 256, 512], "dtype": ["float16", "float32"], "kv_cache_dtype": ["fp8_e4m3", "fp8_e5m2"],
        "page_size": [1, 16, 17, 64, 128, 256], "sliding_window": [128], "sinks": [True], "return_softmax_lse": [True],
        "max_decode_query_len": [4, 40], "context_parallel_size": [2], "deterministic": [True], "graph": [True],
        "attention_type": ["encoder"], "softcap": [30.0]}
    shown = 0
    for _ in range(250):
        size = {"page_size": rng.choice(fields["page_size"])} if rng.random() < 0.5 else {}
        kinds = {}
        for kind in ("full", "mla", "sliding")[:rng.choice((1, 1, 2, 3))]:
            own = {name: rng.choice(values) for name, values in fields.items() if rng.random() < 0.15}
            own = {**own, **size} if size else {name: value for name, value in own.items() if name != "page_size"}
            if kind == "mla":
                own = {name: value for name, value in own.items() if name != "head_dim"} | {"mla": True}
            kinds[kind] = AttentionConfig(**own)
        choice = rng.choice([Choice(), Choice(), Choice("fa3"), Choice(decode_backend="FLASH_ATTN")])
        packages = rng.choice([None, "", "triton"])
        for decision in hal.explain_kinds(kinds, rng.choice(devices), choice, packages).values():
            for text in (decision.text(), decision.text(show_all=True)):
                assert max(map(len, text.splitlines())) <= 100, text
            json.dumps(decision.to_dict())
            shown += len(decision.hints)
    assert shown > 100
