"""hal.compat: signatures to the letter, what the import system answers, and when HAL stays out of the way."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_data import load
from machines import Machine, module

import hal.compat
from hal.compat import binding, installing, settings
from hal.compat.installing import installed, plan
from hal.compat.stand_ins import LEFT_OUT, STAND_INS
from hal.host import Host
from hal.platform import Platform

ROOT = Path(__file__).parents[1]
CONTRACTS = {"2": "compat-flash-attn", "3": "compat-flash-attn-3"}
FUNCTIONS = [(number, dotted) for number, package in CONTRACTS.items()
             for dotted in json.loads((ROOT / "ci" / "contracts" / f"{package}.json").read_text())["functions"]]
SM90 = Platform("cuda", "sm90", "cuda:0", 0, "H100")
CPU = Platform("cpu", "x86_64_v3", "cpu", None, "a CPU")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As before anything was imported: other tests of this process may have imported transformers."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    hal.compat.uninstall()


# --- signatures ---

@pytest.mark.parametrize(("number", "dotted"), FUNCTIONS)
def test_signature_is_the_real_one(number: str, dotted: str) -> None:
    """Names, order, kinds and defaults, against what ci/contracts/extract.py read in the release."""
    path, _, name = dotted.rpartition(".")
    function = getattr(importlib.import_module(STAND_INS[number].modules[path]), name)
    [real] = load(CONTRACTS[number]).overloads(dotted, STAND_INS[number].version)
    ours = [(p.name, p.kind.name.lower(), None if p.default is p.empty else repr(p.default))
            for p in inspect.signature(function).parameters.values()]
    theirs = [(p.name, p.kind, None if p.default is None else repr(eval(p.default, {"torch": __import__("torch")})))
              for p in real]
    assert ours == theirs


def test_every_public_function_has_a_contract() -> None:
    for number, stand_in in STAND_INS.items():
        top = importlib.import_module(stand_in.modules[stand_in.module])
        for name in top.__all__:
            assert any(n == number and dotted.endswith(f".{name}") for n, dotted in FUNCTIONS), name


# --- the import system ---

def test_imports_specs_and_metadata() -> None:
    hal.compat.install(device="cpu")
    import flash_attn
    import flash_attn_interface
    from flash_attn import flash_attn_func
    from flash_attn.bert_padding import unpad_input
    from flash_attn.layers.rotary import apply_rotary_emb

    from hal.compat.flash_attn import flash_attn_interface as ours

    assert flash_attn.__version__ == "2.8.3.post1"
    assert flash_attn_interface.__version__ == "3.0.0"
    assert flash_attn_func is ours.flash_attn_func is sys.modules["flash_attn.flash_attn_interface"].flash_attn_func
    assert (unpad_input.__module__, apply_rotary_emb.__module__) == (
        "hal.compat.flash_attn.bert_padding", "hal.compat.flash_attn.layers.rotary")
    for name in [name for stand_in in STAND_INS.values() for name in stand_in.modules]:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.name == name
        assert Path(str(spec.origin)).is_file()
    for spelling in ("flash_attn", "flash-attn", "Flash.Attn"):
        assert importlib.metadata.version(spelling) == "2.8.3.post1"
    assert importlib.metadata.version("flash-attn-3") == "3.0.0"
    assert importlib.metadata.metadata("flash_attn")["Name"] == "flash_attn"
    tops = importlib.metadata.packages_distributions()
    assert tops["flash_attn"] == ["flash_attn"]
    assert tops["flash_attn_interface"] == tops["flash_attn_3"] == ["flash_attn_3"]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn_4")


def test_uninstall_leaves_nothing() -> None:
    before = list(sys.meta_path)
    hal.compat.install(device="cpu")
    import flash_attn

    assert installed() is not None
    hal.compat.uninstall()
    assert sys.meta_path == before
    assert "flash_attn" not in sys.modules
    assert importlib.util.find_spec("flash_attn") is None
    assert importlib.util.find_spec("flash_attn_interface") is None
    assert callable(flash_attn.flash_attn_func)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")
    hal.compat.uninstall()


def test_uninstall_gives_transformers_its_own_answers_back() -> None:
    code = """
import hal.compat
hal.compat.install(device="cpu", backend="torch")
import transformers
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX as matrix
from transformers.utils import is_flash_attn_2_available as kept, is_flash_attn_3_available as three

def model():
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                                      num_key_value_heads=1, vocab_size=10)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="flash_attention_2")

def state():
    rows = [row for n in (2, 3) for row in matrix[n]["supported_devices"]]
    return kept(), three(), [bool(ask()) for ask, name in rows if name == "cpu"]

model()
print(state())
hal.compat.uninstall()
print(state())
try:
    model()
except ImportError as error:
    print("package for FlashAttention2 doesn't seem to be installed" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["(True, True, [True, True])", "(False, False, [False, False])", "True"], done


@pytest.mark.parametrize(("name", "why"), [
    ("flash_attn.losses.cross_entropy", "it is for training"),
    ("flash_attn.ops.triton.rotary", "CUDA and Triton kernels"),
    ("flash_attn.modules.mha", "call the attention functions"),
    ("flash_attn.layers.patch_embed", "only rotary"),
    ("flash_attn.cute", "FlashAttention 4 is not answered for"),
    ("flash_attn.nothing", "not among what it offers"),
    ("flash_attn_3._C", "no CUDA extension")])
def test_what_is_left_out_says_why(name: str, why: str) -> None:
    hal.compat.install(device="cpu")
    with pytest.raises(ModuleNotFoundError, match=why):
        importlib.import_module(name)
    package, _, last = name.rpartition(".")
    if package in STAND_INS["2"].modules:
        with pytest.raises(ImportError, match=why):
            exec(f"from {package} import {last}", {})


def test_a_name_that_is_not_there_says_what_is() -> None:
    hal.compat.install(device="cpu")
    with pytest.raises(ImportError, match=r"FlashAttnFunc is not among what it offers. It has the inference functions"):
        from flash_attn.flash_attn_interface import FlashAttnFunc  # noqa: F401
    with pytest.raises(ImportError, match="flash_attn_3_gpu is not among"):
        from flash_attn_interface import flash_attn_3_gpu  # noqa: F401
    import flash_attn

    assert not hasattr(flash_attn, "cute")


@pytest.mark.parametrize("name", ["flash_attn.cute", "flash_attn.ops", "flash_attn.losses", "flash_attn.nothing",
                                  "flash_attn.layers.patch_embed", "flash_attn_3._C"])
def test_find_spec_of_what_is_left_out_is_none(name: str) -> None:
    """Python's answer where the package is there and the submodule is not; an import beside it still says why."""
    hal.compat.install(device="cpu")
    assert importlib.util.find_spec(name) is None
    with pytest.raises(ModuleNotFoundError, match="HAL answers for"):
        importlib.import_module(name)
    assert importlib.util.find_spec(name) is None


def test_a_hook_between_does_not_hide_the_reason() -> None:
    hal.compat.install(device="cpu")
    finder = installed()
    assert finder is not None

    class Hook:
        """As import hooks of tracing packages: asks the others itself."""

        def find_spec(self, *asked: Any) -> Any:
            return finder.find_spec(*asked)

    hook: Any = Hook()
    sys.meta_path.insert(0, hook)
    try:
        assert importlib.util.find_spec("flash_attn.cute") is None
        with pytest.raises(ModuleNotFoundError, match="FlashAttention 4 is not answered for"):
            importlib.import_module("flash_attn.cute")
    finally:
        sys.meta_path.remove(hook)


@pytest.mark.parametrize("name", ["flash_attn.nope", "flash_attn.flash_attn_interface.flash_attn_gpu",
                                  "flash_attn_interface.flash_attn_3_gpu", "flash_attn_3._C"])
def test_an_attribute_that_is_not_there_says_what_is(name: str) -> None:
    hal.compat.install(device="cpu")
    module, _, attribute = name.rpartition(".")
    with pytest.raises(AttributeError, match=f"{name} is not among what it offers"):
        getattr(importlib.import_module(module), attribute)
    assert not hasattr(importlib.import_module(module), attribute)
    assert importlib.reload(importlib.import_module(module)).__name__ == module


def test_reasons_are_about_names_that_are_left_out() -> None:
    names = {name for stand_in in STAND_INS.values() for name in stand_in.modules}
    assert not names & set(LEFT_OUT) - {"flash_attn.layers", "flash_attn_3"}


def test_one_version_alone() -> None:
    hal.compat.install(["3"], device="cpu")
    assert importlib.util.find_spec("flash_attn_interface") is not None
    assert importlib.util.find_spec("flash_attn") is None


def test_twice_is_once_and_otherwise_an_error() -> None:
    first = hal.compat.install(device="cpu", backend="torch")
    assert hal.compat.install(device="cpu", backend="torch") == first
    assert len([finder for finder in sys.meta_path if finder is installed()]) == 1
    with pytest.raises(RuntimeError, match="installed already.*uninstall"):
        hal.compat.install(device="cpu", backend="cpu")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"flash_attn version '4' is not answered for \(versions: 2, 3\)"):
        hal.compat.install(["4"])
    with pytest.raises(ValueError, match="versions is empty"):
        hal.compat.install([])
    with pytest.raises(ValueError, match="device 'gpu' is not known"):
        hal.compat.install(device="gpu")
    with pytest.raises(ValueError, match="'nonsense'"):
        hal.compat.install(device="cpu", backend="nonsense")
    with pytest.raises(hal.NoBackendError, match="platform cpu is not supported"):
        hal.compat.install(device="cpu", backend="flash_attn_3")
    assert installed() is None


def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    with pytest.raises(RuntimeError, match="flash_attn was imported before.*first thing"):
        hal.compat.install(device="cpu")
    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.setitem(sys.modules, "transformers.utils.import_utils", types.ModuleType("import_utils"))
    with pytest.raises(RuntimeError, match="transformers was imported before"):
        hal.compat.install(device="cpu")
    assert installed() is None


def test_importing_it_is_free() -> None:
    code = ("import sys, hal.compat, hal.compat.installing as i; i.put([i.STAND_INS['2']], None)\n"
            "import importlib.util; importlib.util.find_spec('flash_attn')\n"
            "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- beside the real packages ---

REAL = (module("flash_attn/__init__.py"), module("flash_attn/flash_attn_interface.py"),
        module("flash_attn_interface.py"))


def test_the_real_package_is_left_alone_where_it_serves(tmp_path: Path) -> None:
    host = Machine(tmp_path, *REAL).host()
    for versions in (None, ["2"], ["3"], ["2", "3"]):
        with pytest.raises(ValueError, match="cuda:sm90 is served by the installed flash_attn"):
            plan(versions, SM90, host)
    assert plan(None, CPU, host).shadowed == tuple(STAND_INS.values())
    assert "not by the installed flash_attn and flash_attn_interface, which can't" in plan(None, CPU, host).sentences()


def test_each_package_for_itself(tmp_path: Path) -> None:
    host = Machine(tmp_path, *REAL[:2]).host()
    decided = plan(None, SM90, host)
    assert (decided.answered, decided.real) == ((STAND_INS["3"],), (STAND_INS["2"],))
    assert decided.sentences() == ("flash_attn_interface 3.0.0 answered by HAL on cuda:sm90; flash_attn by the "
                                   "installed package, which is left alone")
    assert plan(["3"], SM90, host).answered == (STAND_INS["3"],)


def test_a_package_that_does_not_import_or_serves_other_archs_is_replaced(tmp_path: Path) -> None:
    broken = Machine(tmp_path / "a", REAL[0], module("flash_attn/flash_attn_interface.py", "import flash_attn_2_cuda"),
                     REAL[2]).host()
    assert plan(None, SM90, broken).answered == (STAND_INS["2"],)
    whole = Machine(tmp_path / "b", *REAL).host()
    sm75 = Platform("cuda", "sm75", "cuda:0", 0, "T4")
    assert plan(None, sm75, whole).answered == tuple(STAND_INS.values())
    rocm = Platform("rocm", "gfx942", "cuda:0", 0, "MI300X")
    assert plan(None, rocm, whole).real == (STAND_INS["2"],)


def test_hal_does_not_take_its_own_stand_in_for_the_package() -> None:
    """Else HAL's backend flash_attn_2 would count as installed, and end in itself."""
    from hal import registry
    from hal.packages import Packages

    hal.compat.install(device="cpu")
    import flash_attn  # noqa: F401

    for name in ("flash_attn_2", "flash_attn_3"):
        [package, *_] = registry.get(name).packages
        assert "is not installed" in str(Packages.installed().missing(package))
    assert Host().find_module("flash_attn") is None
    assert Host().version("flash-attn") is None


# --- binding ---

def test_bound_once_per_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hal.compat.flash_attn import flash_attn_func

    made = []
    real = binding.get_attention_impl
    monkeypatch.setattr(binding, "get_attention_impl", lambda *a: made.append(a[0]) or real(*a))
    settings.use(settings.Settings("cpu", "torch"))
    q, k = torch.randn(1, 3, 4, 32), torch.randn(1, 5, 2, 32)
    results: list[Any] = []

    def work() -> None:
        results.extend(flash_attn_func(q, k, k, causal=True) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(torch.equal(results[0], one) for one in results)
    assert len(made) == 1
    flash_attn_func(q, k, k)
    flash_attn_func(q, k, k, causal=True, softcap=3.0)
    flash_attn_func(q, k, k, causal=True, window_size=(2, 2))
    flash_attn_func(q, k, k, causal=True, return_attn_probs=True)
    flash_attn_func(q.bfloat16(), k.bfloat16(), k.bfloat16(), causal=True)
    assert [(c.causal, c.softcap, c.sliding_window, c.return_softmax_lse, c.dtype) for c in made[1:]] == [
        (False, 0.0, None, False, "float32"), (True, 3.0, None, False, "float32"), (True, 0.0, 3, False, "float32"),
        (True, 0.0, None, True, "float32"), (True, 0.0, None, False, "bfloat16")]
    settings.use(None)


def test_a_backend_without_unpaged_caches_gets_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hal import registry
    from hal.compat import flash_attn_interface as three

    cls = registry.get("torch")
    q, k = torch.randn(2, 3, 4, 32), torch.randn(2, 5, 1, 32)
    v, qv = torch.randn(2, 5, 1, 64), torch.randn(2, 3, 4, 64)
    settings.use(settings.Settings("cpu", "torch"))
    calls = [{}, {"causal": True}, {"window_size": (1, 1)}, {"qv": qv}]
    want = [three.flash_attn_func(q, k, v, return_attn_probs=True, **call) for call in calls]
    settings.use(settings.Settings("cpu", "torch"))
    monkeypatch.setattr(cls, "calls", cls.calls - {"unpaged"})
    used = []
    run = cls.bind.__func__

    def bind(cls: Any, *args: Any) -> Any:
        bound = run(cls, *args)
        return type(bound)(bound.flash_attn_with_kvcache,
                           lambda *a, **kw: used.append(kw) or bound.flash_attn_varlen_func(*a, **kw))

    monkeypatch.setattr(cls, "bind", classmethod(bind))
    for call, (out, lse) in zip(calls, want):
        got, got_lse = three.flash_attn_func(q, k, v, return_attn_probs=True, **call)
        torch.testing.assert_close(got, out)
        torch.testing.assert_close(got_lse, lse)
    assert len(used) == len(calls)
    settings.use(None)


@pytest.mark.parametrize(("batch", "len_q", "len_k"), [(2, 0, 5), (2, 3, 0), (0, 3, 5), (0, 0, 0), (0, 1, 5)])
def test_no_tokens_with_and_without_unpaged_caches(monkeypatch: pytest.MonkeyPatch, batch: int, len_q: int,
                                                   len_k: int) -> None:
    import torch

    from hal import registry
    from hal.compat import flash_attn_interface as three

    q, k, v = torch.randn(batch, len_q, 4, 32), torch.randn(batch, len_k, 2, 32), torch.randn(batch, len_k, 2, 16)
    cls = registry.get("torch")
    for unpaged in (True, False):
        if not unpaged:
            monkeypatch.setattr(cls, "calls", cls.calls - {"unpaged"})
        settings.use(settings.Settings("cpu", "torch"))
        out, lse = three.flash_attn_func(q, k, v, return_attn_probs=True)
        assert torch.equal(out, torch.zeros(batch, len_q, 4, 16))
        assert (lse.shape, lse.dtype, bool((lse == float("inf")).all())) == ((batch, 4, len_q), torch.float32, True)
        assert three.flash_attn_func(q, k, v).shape == out.shape
    settings.use(None)


def test_widths_of_windows_bind_nothing_new() -> None:
    import torch

    from hal.compat.flash_attn import flash_attn_func

    settings.use(settings.Settings("cpu", "torch"))
    for length in range(5, 15):
        q, k = torch.randn(1, 20, 2, 32), torch.randn(1, length, 2, 32)
        flash_attn_func(q, k, k, window_size=(3, -1))
        flash_attn_func(q, k, k, window_size=(length - 1, 1))
    assert len(binding._bound) == 1
    settings.use(None)


def test_windows_of_different_kinds_are_bound_apart() -> None:
    import torch

    settings.use(settings.Settings("cpu", "torch"))
    q, k = torch.randn(1, 4, 2, 32), torch.randn(1, 9, 2, 32)
    kinds = [(-1, -1), (3, -1), (3, 2), (-1, 2), (3, 0), (-1, 0)]
    for window in kinds:
        binding.find(q, k, k, None, False, window, 0, 0.0, False)
    configs = [binding.config_of(*list(key)[1:2], *key[2], *key[3:]) for key in binding._bound]
    assert {(c.causal, c.sliding_window is None) for c in configs} == {(False, True), (False, False), (True, False),
                                                                       (True, True)}
    assert len(configs) == len(kinds)
    settings.use(None)


def test_kernels_that_nobody_announced_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from hal.compat.flash_attn import flash_attn_func

    settings.use(settings.Settings("cpu", "auto"))
    usual = binding.usual(binding.platform_of(torch.device("cpu"))).decode.chosen
    for dim in (32, 16, 16):
        x = torch.randn(1, 2, 2, dim)
        flash_attn_func(x, x, x)
        flash_attn_func(x, x, x, causal=True)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("flash_attn: ")]
    assert len(told) == (1 if usual == "cpu" else 0)
    assert all("head_dim 16 is not supported" in line for line in told)
    settings.use(None)


def test_a_platform_is_a_device_too() -> None:
    assert installing._text(Platform("rocm", "gfx942", "cuda:1", 1, "MI300X")) == "rocm:1"
    here = hal.detect("cpu")
    assert hal.compat.install(device=here).platform == here
    assert settings.current().device == "cpu"


def test_the_plan_is_public_data() -> None:
    decided = installing.plan(None, CPU, Host(path=[]))
    assert decided.sentences() == (
        "flash_attn 2.8.3.post1 and flash_attn_interface 3.0.0 answered by HAL on cpu:x86_64_v3")


def test_in_a_compiled_graph_the_functions_are_hal_s_ops() -> None:
    import torch

    from hal.compat.flash_attn import flash_attn_func

    q, k = torch.randn(1, 3, 4, 32), torch.randn(1, 5, 2, 32)
    seen: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    with torch.inference_mode():
        want = flash_attn_func(q, k, k, causal=True)
        got = torch.compile(lambda *x: flash_attn_func(*x, causal=True), backend=backend, fullgraph=True)(q, k, k)
    assert torch.equal(got, want)
    assert "hal.flash_attn_with_kvcache.default" in seen
