"""Random configurations on random platforms: only documented errors, and no answer that a declaration excludes.

    HAL_FUZZ_SEED=7 pytest tests/test_selection_fuzz.py      one seed more; every failure names its own
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

import hal
from hal import registry
from hal.backend import AttentionBackend
from hal.backends import ALIASES
from hal.config import ATTENTION_TYPES, DTYPES, KV_CACHE_DTYPES, AttentionConfig, LayerKind, MLADims
from hal.decision import Decision, NoBackendError
from hal.packages import Packages
from hal.platform import Platform, PlatformNotFoundError
from hal.platforms import table
from hal.selection import Choice, explain_kinds

COUNT, PARTS = 20_000, 8
SEED = int(os.environ.get("HAL_FUZZ_SEED", "20261120"))
DOCUMENTED = (ValueError, NoBackendError, PlatformNotFoundError)  # hal.explain's, and those of its callers

# Field -> values it is drawn from, and values that AttentionConfig refuses.
FIELDS: dict[str, tuple[Any, ...]] = {
    "num_heads": (8, 16, 32, 64, 96, 128),
    "num_kv_heads": (1, 2, 4, 8),
    "head_dim": (1, 16, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 260, 384, 512, 576, 1024),
    "head_dim_v": (None, 64, 96, 128, 192, 256, 512),
    "dtype": DTYPES,
    "kv_cache_dtype": (*KV_CACHE_DTYPES[:-1], "fp8"),
    "page_size": (None, 1, 8, 16, 32, 48, 64, 96, 128, 256, 512, 544, 1024),
    "causal": (True, False),
    "sliding_window": (None, 1, 128, 4096),
    "attention_chunk": (None, 64, 8192),
    "softcap": (0.0, 30.0, 50),
    "sinks": (False, True),
    "mla": (None, True, MLADims(qk_nope_head_dim=192, v_head_dim=256), MLADims(kv_lora_rank=256)),
    "sparse": (False, True),
    "attention_type": ATTENTION_TYPES,
    "tree_mask": (False, True),
    "mm_prefix": (False, True),
    "softmax_scale": (None, 0.1, 1.0),
    "return_softmax_lse": (False, True),
    "max_decode_query_len": (1, 2, 4, 8, 16, 17, 64),
    "context_parallel_size": (1, 2, 8),
    "deterministic": (False, True),
    "graph": (False, True),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "num_heads": (0, -1, 2.0, 7), "num_kv_heads": (0, 3), "head_dim": (0, "64"), "dtype": ("float8", None),
    "kv_cache_dtype": ("fp8_ds_mla", "int4"), "page_size": (0, True), "causal": (None,), "sliding_window": (-1,),
    "attention_chunk": (0,), "softcap": (-1.0, float("nan"), float("inf"), "50"), "mla": (False, "yes"),
    "attention_type": ("prefix",), "softmax_scale": (0.0, -0.5), "max_decode_query_len": (0,),
    "context_parallel_size": (0,),
}
# Backends with an absorbed form that still prefill expanded K and V; torch, which can do both, prefers the absorbed.
EXPAND_BESIDE_ABSORBED = ("aiter_mla", "aiter_triton_mla", "ascend_mla", "mate_mla")
NO_BFLOAT16 = (("npu", "ascend910a"), ("npu", "ascend310p"))
# Backend names, aliases, and what is neither.
NONSENSE = ("", "AUTO", "flash", "fa5", "torch ", "trtllm-mha")


def test_every_field_is_drawn() -> None:
    assert set(FIELDS) == {field for field in AttentionConfig().to_dict()}


def draw_config(rng: random.Random) -> dict[str, Any]:
    """A few fields changed; in one draw of ten any number of them, with values that are errors."""
    wild = rng.random() < 0.1
    names = rng.sample(list(FIELDS), rng.randrange(len(FIELDS)) if wild else rng.randrange(5))
    config = {name: rng.choice(FIELDS[name] + (WRONG.get(name, ()) if wild else ())) for name in names}
    if rng.random() < 0.1:
        config |= dict(zip(("head_dim", "head_dim_v"), rng.choice(((192, 128), (64, 256), (64, 512), (128, 64)))))
    if rng.random() < 0.25 and not config.get("mla"):
        config |= {"mla": True, "num_heads": rng.choice((16, 32, 128))}
        config |= {"sparse": True} if rng.random() < 0.3 else {}
        config |= {"kv_cache_dtype": "fp8_ds_mla"} if rng.random() < 0.1 else {}
    if config.get("mla") and not wild:  # what follows from MLA is left out
        for name in ("head_dim", "head_dim_v", "num_kv_heads"):
            config.pop(name, None)
    if config.get("sparse") and not wild:
        config.pop("sliding_window", None)
    return config


def draw_device(rng: random.Random) -> str:
    if rng.random() < 0.02:
        return rng.choice(("cuda:sm42", "tpu", "cuda:", "npu:9", "rocm:sm90", "cpu:0", "musa", "cuda:99", "CUDA:sm90"))
    kind = rng.choice([*table(), "cuda"])
    return f"{kind}:{rng.choice(table()[kind].ARCHS)}"


def distributions() -> list[str]:
    return sorted({package.distribution for name in registry.names() for package in registry.get(name).packages})


def draw_packages(rng: random.Random, known: list[str]) -> str | None:
    if rng.random() < 0.6:
        return None
    return ",".join(rng.sample(known, rng.randrange(len(known) + 1)))


def draw_choice(rng: random.Random) -> dict[str, str]:
    names = [*registry.names(), *ALIASES]
    choice = {}
    if rng.random() < 0.3:
        choice["backend"] = rng.choice(names if rng.random() < 0.95 else NONSENSE)
    for phase in ("prefill_backend", "decode_backend"):
        if rng.random() < 0.1:
            choice[phase] = rng.choice(names if rng.random() < 0.95 else NONSENSE)
    return choice


# The declarations once more, read by other code than AttentionBackend.unsupported_reasons.

WANTS: dict[str, Callable[[AttentionConfig], bool]] = {
    "sliding_window": lambda c: c.sliding_window is not None,
    "attention_chunk": lambda c: c.attention_chunk is not None,
    "softcap": lambda c: c.softcap > 0, "sinks": lambda c: c.sinks, "mla": lambda c: c.mla is not None,
    "sparse": lambda c: c.sparse, "tree_mask": lambda c: c.tree_mask, "mm_prefix": lambda c: c.mm_prefix,
    "non_causal": lambda c: not c.causal, "return_softmax_lse": lambda c: c.return_softmax_lse,
    "context_parallel": lambda c: c.context_parallel_size > 1, "deterministic": lambda c: c.deterministic,
}


def expands(backend: type[AttentionBackend], config: AttentionConfig, phase: str) -> bool:
    """MLA's prefill on expanded K and V, which reads no cache."""
    beside = "mla" not in backend.features or backend.name in EXPAND_BESIDE_ABSORBED
    return phase == "prefill" and config.mla is not None and bool(backend.mla_prefill) and beside


def excluded(backend: type[AttentionBackend], config: AttentionConfig, platform: Platform, packages: str | None,
             phase: str, size: int | None) -> str | None:
    """The declaration that excludes a backend; None where none does."""
    if platform.kind not in backend.platforms:
        return "platforms"
    archs = backend.platforms[platform.kind]
    if archs and platform.arch not in archs:
        return "arch"
    if phase not in backend.phases:
        return "phases"
    if config.dtype not in backend.dtypes:
        return "dtypes"
    if config.dtype == "bfloat16" and (platform.kind, platform.arch) in NO_BFLOAT16:
        return "the chip's dtypes"
    expanded = expands(backend, config, phase)
    reads = backend.reads_cache and not expanded
    stored = config.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    if reads and stored != config.dtype and stored not in backend.kv_cache_dtypes:
        return "kv_cache_dtypes"
    if reads and size is not None:
        pages = backend.page_sizes
        if (size not in pages.only) if pages.only else size % pages.step:
            return "page_sizes"
    wanted = {feature for feature, wants in WANTS.items() if wants(config)}
    if expanded:
        wanted -= {"mla"}
        assert isinstance(config.mla, MLADims)
        pair = (config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim, config.mla.v_head_dim)
        if pair not in backend.mla_prefill:
            return "mla_prefill"
    else:
        dim, dim_v, dims = config.head_dim, config.head_dim_v or config.head_dim, backend.head_dims
        if dim != dim_v and backend.head_dim_pairs is not None and (dim, dim_v) not in backend.head_dim_pairs:
            return "head_dim_pairs"
        if dim == dim_v and ((dim not in dims.only) if dims.only else not (dims.low <= dim <= dims.high
                                                                           and dim % dims.step == 0)):
            return "head_dims"
    if wanted - backend.features:
        return f"features {sorted(wanted - backend.features)}"
    if backend.requires - {feature for feature, wants in WANTS.items() if wants(config)}:
        return "requires"
    if config.graph and phase == "decode" and backend.graph_level == "never":
        return "graph_level"
    if config.attention_type not in backend.attention_types:
        return "attention_types"
    most = backend.max_decode_query_len
    if phase == "decode" and most is not None and config.max_decode_query_len > most:
        return "max_decode_query_len"
    if backend.packages and packages is not None:
        names = {name.strip().lower().replace("_", "-") for name in packages.split(",")}
        if not any(package.distribution.lower().replace("_", "-") in names for package in backend.packages):
            return "packages"
    return None


def check(decision: Decision, packages: str | None, choice: dict[str, str]) -> None:
    """Nothing accepted that a declaration excludes; the choice is the first that fits, and the order the platform's."""
    config, platform = decision.config, decision.platform
    served: dict[str, list[type[AttentionBackend]]] = {}
    for phase in (decision.prefill, decision.decode):
        wanted = choice.get(f"{phase.phase}_backend", choice.get("backend", "auto"))
        if wanted == "auto":
            module = table()[platform.kind]
            order = module.priority(platform.arch, config.mla is not None, phase.phase)
            if not config.causal and config.mla is None and platform.kind == "cuda":
                order = (*module.NON_CAUSAL.get(platform.arch, ()), *order)
            assert [c.backend for c in phase.candidates] == list(dict.fromkeys([*order, *registry.names()]))
        else:
            names = registry.resolve(wanted)
            brought = [other for name in names for other in registry.get(name).prefill_with]
            brought = brought if config.mla is not None and phase.phase == "prefill" else []
            assert [c.backend for c in phase.candidates] == list(dict.fromkeys([*names, *brought]))
        served[phase.phase] = []
        for candidate in phase.candidates:
            backend = registry.get(candidate.backend)
            why = excluded(backend, config, platform, packages, phase.phase, decision.page_size)
            # Another layout, or dtype of queries, than the other phase's is the pairing's reason, not a declaration's.
            others = [reason for reason in candidate.reasons if not reason.startswith(("kv_layout ", "q_dtype "))]
            if why is not None:
                assert others, f"{candidate.backend} accepted for {phase.phase} although {why} excludes it"
            if not others:
                served[phase.phase].append(backend)
    first_decode, first_prefill = (next(iter(served[phase]), None) for phase in ("decode", "prefill"))
    pairs = [(d, p) for d in served["decode"] for p in served["prefill"]
             if not p.reads_cache or expands(p, config, "prefill")
             or (p.kv_layout, p.q_dtype(config)) == (d.kv_layout, d.q_dtype(config))]
    first = pairs[0] if pairs else (first_decode, None if first_decode else first_prefill)
    expected = tuple(backend.name if backend else None for backend in first)
    assert (decision.decode.chosen, decision.prefill.chosen) == expected


def asks_the_unknown(device: str, choice: dict[str, str]) -> bool:
    """A device that is not known or not here, or a backend's name that is not known."""
    try:
        known = Platform.parse(device).arch is not None
    except ValueError:
        known = False
    return not known or any(name not in {*registry.names(), *ALIASES} for name in choice.values())


def ask(rng: random.Random, known: list[str]) -> str:
    """One random question, checked. What came of it: "served", "partly", "none" or an error's name."""
    fields, device, packages = draw_config(rng), draw_device(rng), draw_packages(rng, known)
    choice = draw_choice(rng)
    try:
        config = AttentionConfig(**fields)
    except ValueError:
        return "ValueError"
    two = rng.random() < 0.1
    try:
        if two:
            other = config.replace(sliding_window=64) if not config.sparse else config
            kinds = [LayerKind("one", (0,), config), LayerKind("two", (1,), other)]
            decisions = list(explain_kinds(kinds, device, Choice(**choice), packages).values())
        else:
            decisions = [hal.explain(config, device, packages=packages, **choice)]
    except DOCUMENTED as error:
        if not asks_the_unknown(device, choice):
            raise AssertionError("a known device and known names raised") from error
        return type(error).__name__
    if two:
        assert len({decision.page_size for decision in decisions if decision.decode.chosen}) <= 1
    for decision in decisions:
        check(decision, packages, choice)
    served = [bool(phase.chosen) for decision in decisions for phase in (decision.prefill, decision.decode)]
    return "served" if all(served) else "partly" if any(served) else "none"


@pytest.mark.parametrize("part", range(PARTS))
def test_random_questions(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    known, outcomes = distributions(), dict[str, int]()
    for number in range(COUNT // PARTS):
        seed = f"{SEED}-{part}-{number}"
        try:
            outcome = ask(random.Random(seed), known)
        except BaseException as error:
            error.args = (f"seed {seed!r}: {describe(seed, known)}: {type(error).__name__}: {error}",)
            raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    with capsys.disabled():
        print(f"\nfuzz seed {SEED}-{part}-0..{COUNT // PARTS - 1}: {dict(sorted(outcomes.items()))}")
    assert outcomes.get("served", 0) > COUNT // PARTS // 10  # a fuzz that only meets errors tests nothing
    assert outcomes.get("ValueError", 0)
    assert outcomes.get("none", 0)


def describe(seed: str, known: list[str]) -> str:
    """The question of a seed, for the message."""
    rng = random.Random(seed)
    return f"{draw_config(rng)} on {draw_device(rng)} with {draw_packages(rng, known)}, {draw_choice(rng)}"


def test_explain_is_documented_for_no_backend() -> None:
    """get_attention_impl is what raises NoBackendError; an unserved explain is a Decision with none chosen."""
    config = AttentionConfig(attention_type="encoder_decoder", mla=True, graph=True)
    decision = hal.explain(config, "cpu:x86_64_v3", packages=Packages.named([]))
    assert decision.decode.chosen is None
    assert all(candidate.reasons for candidate in decision.candidates)
