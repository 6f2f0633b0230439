"""Declarations are checked before anything is asked of them: a mistake is that backend's reason, nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import hal
from hal import registry
from hal.backend import AttentionBackend, Bound
from hal.backends import ALIASES, BACKENDS
from hal.capabilities import HeadDims, PageSizes
from hal.declaration import backend_problem, platform_problem
from hal.packages import Package
from hal.platforms import table

ROOT = Path(__file__).parents[1]
# attribute: (wrong value, what the message must say)
WRONG: list[tuple[str, Any, str]] = [
    ("dtypes", "bfloat16", "dtypes is 'bfloat16', expected a tuple of str"),
    ("dtypes", ("bf16",), "dtypes has 'bf16', expected some of: float16, bfloat16, float32"),
    ("phases", "decode", "phases is 'decode', expected a tuple of str"),
    ("phases", ("decoding",), "phases has 'decoding', expected some of: prefill, decode"),
    ("kv_cache_dtypes", ("fp8",), "kv_cache_dtypes has 'fp8'"),
    ("attention_types", ("cross",), "attention_types has 'cross'"),
    ("features", {"sliding_windw"}, "features has 'sliding_windw', expected some of: sliding_window"),
    ("features", ("softcap",), "features is ('softcap',), expected a set of str"),
    ("requires", {"latent"}, "requires has 'latent'"),
    ("calls", {"appending"}, "calls has 'appending', expected some of: append, rotary"),
    ("calls", ("append",), "calls is ('append',), expected a set of str"),
    ("prefill_with", "flash_attn_3", "prefill_with is 'flash_attn_3', expected a tuple of str"),
    ("platforms", ("cuda",), "platforms is ('cuda',), expected a dict of kind -> archs"),
    ("platforms", {"cuda": "sm90"}, "platforms['cuda'] is 'sm90', expected a tuple of str"),
    ("head_dims", 128, "head_dims is 128, expected HeadDims"),
    ("head_dim_pairs", (192, 128), "head_dim_pairs is (192, 128), expected a tuple of (head_dim, head_dim_v)"),
    ("mla_prefill", None, "mla_prefill is None, expected a tuple of"),
    ("page_sizes", 16, "page_sizes is 16, expected PageSizes"),
    ("page_sizes", PageSizes(16, only=(64,)), "page_sizes.preferred is 16, which it does not support (64)"),
    ("packages", "x", "packages is 'x', expected a tuple of hal.packages.Package"),
    ("max_decode_query_len", "1", "max_decode_query_len is '1', expected a whole number >= 1, or None for any"),
    ("max_decode_query_len", 0, "max_decode_query_len is 0"),
    ("graph_level", "full", "graph_level is 'full', expected one of: never"),
    ("graph_padding_length", -1, "graph_padding_length is -1, expected a whole number >= 0"),
    ("levels", {"cuda": "certified"}, "levels has 'certified', expected one of: declared"),
    ("targets", {}, "targets has no vendor function for prefill, decode (it has: none)"),
    ("kv_layout", None, "kv_layout is None, expected str"),
    ("reads_cache", 1, "reads_cache is 1, expected bool"),
    ("adapter", None, "adapter is None, expected bool"),
    ("sources", "a document", "sources is 'a document', expected a tuple of str"),
]


def backend(**declared: Any) -> type[AttentionBackend]:
    base = {"name": "mine", "platforms": {"cpu": ()}, "targets": {"prefill": "p", "decode": "d"},
            "head_dims": HeadDims(), "packages": (Package("x", "json", "pip install x"),)}
    return type("Mine", (AttentionBackend,), {**base, **declared})


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_declaration_is_named(name: str, value: Any, message: str) -> None:
    problem = backend_problem(backend(**{name: value}))
    assert problem is not None
    assert problem.startswith(message)
    with pytest.raises(ValueError, match="^backend 'mine' is declared wrongly: "):
        hal.register_backend("mine", backend(**{name: value}))


def test_the_right_declaration_is_right() -> None:
    assert backend_problem(backend()) is None


@pytest.mark.parametrize("name", BACKENDS)
def test_the_table_holds_right_declarations_under_their_names(name: str) -> None:
    cls = registry.get(name)
    assert cls.name == name
    assert backend_problem(cls) is None
    assert cls.sources, f"{name} names no source"


def test_aliases_name_backends() -> None:
    assert {name for names in ALIASES.values() for name in names} <= set(BACKENDS)
    assert {name for backend in BACKENDS for name in registry.get(backend).prefill_with} <= set(BACKENDS)


def test_the_platforms_data_is_right() -> None:
    for kind, module in table().items():
        assert platform_problem(module) is None, kind
        named = {name for order in getattr(module, "NON_CAUSAL", {}).values() for name in order}
        assert named <= set(BACKENDS), kind


@pytest.mark.parametrize(("change", "message"), [
    ({"priority": ("torch",)}, "priority is ('torch',), expected a function"),
    ({"probe": None}, "probe is None, expected a function"),
    ({"ARCHS": None}, "ARCHS is None, expected a tuple of str"),
    ({"ARCHS": "a"}, "ARCHS is 'a', expected a tuple of str"),
    ({"TORCH_DEVICE": 1}, "TORCH_DEVICE is 1, expected a str"),
    ({"LACKS": ("bfloat16",)}, "LACKS is ('bfloat16',), expected a dict whose keys are some of: a"),
    ({"LACKS": {"b": ()}}, "LACKS is {'b': ()}, expected a dict whose keys are some of: a"),
    ({"LACKS": {"a": ("bf16",)}}, "LACKS['a'] has 'bf16', expected some of: float16, bfloat16, float32"),
    ({"NON_CAUSAL": {"a": "torch"}}, "NON_CAUSAL['a'] is 'torch', expected a tuple of str"),
])
def test_a_wrong_platform_is_named(change: dict[str, Any], message: str) -> None:
    right = {"KIND": "ypu", "TORCH_DEVICE": "ypu", "ARCHS": ("a",), "priority": print, "probe": print}
    assert platform_problem(types.SimpleNamespace(**right)) is None
    assert platform_problem(types.SimpleNamespace(**{**right, **change})) == message


PLUGIN = """
from hal.backend import AttentionBackend
from hal.platform import Platform, Probe
class Bad(AttentionBackend):
    name, platforms, head_dims = "bad", {"cpu": ()}, 128
class Raises(AttentionBackend):
    name, platforms, targets = "raises", {"cpu": ()}, {"prefill": "p", "decode": "d"}
    @classmethod
    def extra_reasons(cls, config, platform, phase):
        raise ZeroDivisionError("mine")
class ypu:
    KIND, TORCH_DEVICE, ARCHS = "ypu", "cpu", ("y1",)
    @staticmethod
    def priority(arch, mla, phase): return ("torch",)
    @staticmethod
    def probe(host): return Probe((Platform("ypu", "y1", "cpu", None, "a toy"),), "toy")
"""
USE = """
import hal, torch
attn = hal.get_attention_impl(hal.AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, dtype="float32"))
assert str(attn.platform) == "ypu:y1", attn.platform
k, v = attn.new_kv_cache(1)
print(attn.decision.chosen, tuple(attn.flash_attn_with_kvcache(torch.randn(1, 1, 2, 8), k, v).shape))
"""


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    info = tmp_path / "plugin_of_a_test-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[hal.backends]\nbad = plugin_of_a_test:Bad\nraises = plugin_of_a_test:Raises\n"
        "[hal.platforms]\nypu = plugin_of_a_test:ypu\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    return subprocess.run([sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, text=True,
                          capture_output=True, check=False)


def test_a_badly_declared_plugin_harms_nobody(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "hal", "explain", "--device", "cuda:sm90", "--json")
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, "-m", "hal", "explain", "--device", "cpu", "--attention-backend", "bad")
    assert (done.returncode, done.stdout) == (2, "")
    assert "plugin bad is declared wrongly: head_dims is 128, expected HeadDims" in done.stderr
    done = run(tmp_path, "-m", "hal", "explain", "--device", "cpu", "--json")
    rows = {c["backend"]: c["reasons"] for c in json.loads(done.stdout)["kinds"][0]["decode"]["candidates"]}
    assert rows["raises"] == ["unsupported_reasons raised ZeroDivisionError: mine (raises: a mistake in the backend)"]
    assert rows["torch"] == []


def test_the_floor_serves_a_platform_of_a_plugin(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", USE)
    assert done.stdout == "torch (1, 1, 2, 8)\n", done.stderr
    assert "ypu:y1" in run(tmp_path, "-m", "hal", "devices").stdout


@pytest.mark.parametrize(("bind", "message"), [
    (lambda *a: None, "bind returned None, expected a hal.backend.Bound of two functions"),
    (lambda *a: (print, print), "expected a hal.backend.Bound of two functions"),
    (lambda *a: Bound(None, None), "expected a hal.backend.Bound of two functions"),  # type: ignore[arg-type]
    (lambda *a: sys.exit(3), "SystemExit: 3"),
    (lambda *a: 1 / 0, "ZeroDivisionError: division by zero"),
])
def test_what_bind_does_is_checked(bind: Any, message: str) -> None:
    hal.register_backend("mine", backend(bind=classmethod(lambda cls, *a: bind(*a))))
    try:
        with pytest.raises(RuntimeError, match="^backend mine passed selection on cpu:.* but could not be bound") as e:
            hal.get_attention_impl(device="cpu", backend="mine")
        assert message in str(e.value)
    finally:
        registry.unregister_backend("mine")


def test_a_cache_writer_that_can_not_be_made_is_named() -> None:
    def broken(cls: Any, config: Any) -> Any:
        raise ImportError("no vendor")

    hal.register_backend("mine", backend(bind=classmethod(lambda cls, *a: Bound(print, print)),
                                         write_kv_cache=classmethod(broken)))
    try:
        with pytest.raises(RuntimeError, match="^backend mine could not bind write_kv_cache on cpu:.*ImportError: no"):
            hal.get_attention_impl(device="cpu", backend="mine")
    finally:
        registry.unregister_backend("mine")
