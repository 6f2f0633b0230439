"""Vendors' signatures (ci/contracts) against what the adapters call, for every release that HAL claims.

Recorded calls = declared reliance = every claimed release. A release that differs is a red row here; data_reliance.GAPS
lists those that are claimed and can't be served. Nothing of a vendor is imported; numbers are not looked at.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import contract_data
import pytest
from adapter_calls import ADAPTERS, claimed, vendor_calls
from contract_data import CHECKS, Finding, Parameter, Reliance, Signature, differences
from data_reliance import GAPS, OTHER_DEFAULTS, RELIANCE, TORCH

from hal import AttentionConfig, contract, registry
from hal.backends import BACKENDS
from hal.packages import Package, numbers
from hal.selection import TORCH as OLDEST_TORCH

ROOT = Path(__file__).parent.parent
# Not vendors' functions, or torch's: kernels of HAL's own, which have no contract here.
OWN = "hal."
Overloads = tuple[Signature, ...]


@functools.cache
def row(adapter: str) -> Package:
    return ADAPTERS[adapter].package


def overloads(adapter: str, function: str, release: str) -> Overloads:
    return contract_data.load(row(adapter).distribution).overloads(function, release)


def gap(package: str, release: str, user: str, function: str) -> frozenset[str]:
    return frozenset(GAPS.get((package, release, user, function), ()))


RELEASES = [(adapter, function, release) for adapter, function in RELIANCE for release in claimed(row(adapter))]
TORCH_RELEASES = contract_data.load("torch").releases
TORCH_FORMS = [(function, form) for function, forms in TORCH.items() for form in forms]


def show(findings: list[Finding]) -> str:
    return "; ".join(f"{f.check}: {f.text}" for f in findings)


# --- the calls, what is declared of them, and the releases ---

def test_every_adapter_and_each_of_its_packages_is_here() -> None:
    written = [registry.get(name) for name in BACKENDS if registry.get(name).adapter]
    assert {(a.backend, a.module) for a in ADAPTERS.values()} == {
        (cls.name, package.module) for cls in written for package in cls.packages}
    # torch's calls are held by test_torch_calls_are_as_declared; cpu calls HAL's own library (test_cpu_kernels.py).
    assert [cls.name for cls in written if not cls.packages] == ["cpu", "torch"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_recorded_calls_are_as_declared(adapter: str) -> None:
    calls = defaultdict(list)
    for call in vendor_calls(adapter):
        calls[call.function].append(call)
    assert calls.keys() == {function for name, function in RELIANCE if name == adapter}
    for function, made in calls.items():
        declared = RELIANCE[adapter, function]
        [count] = {len(call.args) for call in made}
        names = [p.name for p in overloads(adapter, function, claimed(row(adapter))[-1])[0]]
        assert tuple(names[:count]) == declared.positional
        always = frozenset.intersection(*(frozenset(call.kwargs) for call in made))
        seen = frozenset().union(*(call.kwargs for call in made))
        assert sorted(always) == sorted(declared.always), function
        assert sorted(seen - always) == sorted(declared.sometimes), function


@pytest.mark.parametrize(("adapter", "function", "release"), RELEASES)
def test_every_claimed_release_has_what_is_relied_on(adapter: str, function: str, release: str) -> None:
    found = differences(RELIANCE[adapter, function], overloads(adapter, function, release))
    expected = gap(row(adapter).distribution, release, adapter, function)
    assert {f.parameter for f in found} == expected, show(found) or "the gap is closed: delete its row"


@pytest.mark.parametrize(("adapter", "release"), dict.fromkeys((a, r) for a, _, r in RELEASES))
def test_every_call_binds_to_every_claimed_release(adapter: str, release: str) -> None:
    calls = vendor_calls(adapter)
    assert len(calls) > 20
    for call in calls:
        lacking = gap(row(adapter).distribution, release, adapter, call.function) & call.kwargs.keys()
        [signature] = overloads(adapter, call.function, release)
        if lacking:
            with pytest.raises(TypeError, match="|".join(lacking)):
                contract_data.bind(signature, call.args, call.kwargs)
        else:
            contract_data.bind(signature, call.args, call.kwargs)


def test_gaps_are_claimed() -> None:
    for package, release, user, function in GAPS:
        packages = [row(user)] if user in ADAPTERS else registry.get(user).packages
        [there] = [p for p in packages if p.distribution == package]
        assert release in claimed(there), f"{package} {release} is not claimed any more: delete the row of {function}"


@pytest.mark.parametrize(("adapter", "function"), RELIANCE)
def test_what_is_left_out_means_the_same_to_vendor_and_contract(adapter: str, function: str) -> None:
    """An argument passed only where the caller gives it: else the vendor's default counts, not HAL's."""
    hal = contract.VARLEN if "varlen" in function else contract.WITH_KVCACHE
    for name in RELIANCE[adapter, function].sometimes:
        ours, theirs = hal.parameters[name].default, contract_data.value_of(RELIANCE[adapter, function].defaults[name])
        other = OTHER_DEFAULTS.get((adapter, function, name))
        if other is None:
            assert (type(ours), ours) == (type(theirs), theirs), name
        else:
            assert (repr(ours), repr(theirs)) == other[:2], name


# --- other backends: their targets exist ---

_LATENT = {"num_heads": 16, "num_kv_heads": 1, "mla": True}
# A target may depend on the configuration.
CONFIGS = [AttentionConfig(**fields) for fields in (  # type: ignore[arg-type]
    {}, _LATENT, {**_LATENT, "sparse": True, "kv_cache_dtype": "fp8_ds_mla"}, {**_LATENT, "sparse": True})]
TARGETS = sorted({(backend, package.distribution, target, release)
                  for backend in BACKENDS for cls in [registry.get(backend)] for package in cls.packages
                  for phase in cls.targets for config in CONFIGS for target in [cls.target(phase, package, config)]
                  if not target.startswith(OWN) for release in claimed(package)})


@pytest.mark.parametrize(("backend", "package", "target", "release"), TARGETS)
def test_every_target_exists_in_every_claimed_release(backend: str, package: str, target: str, release: str) -> None:
    there = bool(contract_data.load(package).overloads(target, release))
    missing = gap(package, release, backend, target) == {""}
    assert there != missing, "it does not exist" if not there else "the gap is closed: delete its row"


def test_targets_of_backends_without_a_package() -> None:
    outside = {target for name in BACKENDS for target in registry.get(name).targets.values()
               if not registry.get(name).packages and not target.startswith(OWN)}
    torch = contract_data.load("torch")
    assert outside == {"torch.nn.attention.flex_attention.flex_attention"}
    assert all(torch.overloads(target, release) for target in outside for release in torch.releases)


# --- torch's own functions ---

def torch_calls() -> Iterator[tuple[str, str, int, frozenset[str]]]:
    """(file, function, arguments by position, keywords) of every call of a torch function in backends/."""
    for path in sorted((ROOT / "backends").glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in ast.walk(tree)
                 if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "torch"
                 for alias in node.names}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            head, _, rest = ast.unparse(node.func).partition(".")
            dotted = ".".join(filter(None, (names.get(head, head), rest)))
            if re.fullmatch(r"torch(\.\w+)+", dotted):
                words = [str(word.arg) for word in node.keywords]
                assert "None" not in words, f"{path.name}:{node.lineno} passes ** to {dotted}"
                assert not any(isinstance(a, ast.Starred) for a in node.args), f"{path.name}:{node.lineno} passes *"
                yield path.name, dotted, len(node.args), frozenset(words)


def test_torch_calls_are_as_declared() -> None:
    made = {(function, count, words) for _, function, count, words in torch_calls()}
    declared = {(function, len(form.positional), form.always) for function, form in TORCH_FORMS}
    assert made == declared


@pytest.mark.parametrize("release", TORCH_RELEASES)
def test_every_torch_release_has_what_is_relied_on(release: str) -> None:
    for function, form in TORCH_FORMS:
        found = differences(form, contract_data.load("torch").overloads(function, release))
        assert not found, f"{function}: {show(found)}"


def test_torch_contracts_begin_at_the_oldest_torch() -> None:
    assert numbers(TORCH_RELEASES[0])[:2] == OLDEST_TORCH


# --- a change of the data is seen ---

def changed(signatures: Overloads, name: str, change: Callable[[Parameter], Parameter | None]) -> Overloads:
    """The overloads with one parameter changed, or removed where `change` gives None, wherever it is."""
    return tuple(tuple(new for p in signature for new in [change(p) if p.name == name else p] if new is not None)
                 for signature in signatures)


class Mutant(NamedTuple):
    what: str
    overloads: Overloads
    check: str  # the one that must turn red
    names: tuple[str, ...]  # naming one of these


def mutants(reliance: Reliance, there: Overloads) -> Iterator[Mutant]:
    # torch has overloads: what not all that fit have, no call depends on.
    names = set.intersection(*({p.name for p in s} for s in there if not differences(reliance, (s,))))
    replace = dataclasses.replace
    for name in sorted(reliance.passes):
        check = "position" if name in reliance.positional else "absent"
        renamed = changed(there, name, lambda p: replace(p, name=p.name + "_"))
        yield Mutant(f"rename {name}", renamed, check, (name,))
        yield Mutant(f"remove {name}", changed(there, name, lambda p: None), check, (name,))
    for name in sorted(reliance.always | reliance.sometimes):
        by_position = changed(there, name, lambda p: replace(p, kind="positional_only"))
        yield Mutant(f"{name} by position only", by_position, "absent", (name,))
    for first, second in zip(reliance.positional, reliance.positional[1:]):
        if first != second:
            swap = {first: second, second: first}
            swapped = tuple(tuple(replace(p, name=swap.get(p.name, p.name)) for p in s) for s in there)
            yield Mutant(f"swap {first} and {second}", swapped, "position", (first, second))
    for name in reliance.defaults.keys() & names - reliance.always - set(reliance.positional):
        other = "1" if reliance.defaults[name] != "1" else "2"
        yield Mutant(f"{name}={other}", changed(there, name, lambda p, d=other: replace(p, default=d)), "default",
                     (name,))
        yield Mutant(f"{name} without default", changed(there, name, lambda p: replace(p, default=None)), "required",
                     (name,))
    for default, check in (("None", "unknown"), (None, "required")):
        new = Parameter("brand_new", "keyword_only", default)
        yield Mutant(f"a new parameter, default {default}", tuple((*s, new) for s in there), check, (new.name,))


def check_mutants(reliance: Reliance, there: Overloads, seen: set[str]) -> int:
    """How many mutants there were; `seen` gets the checks that turned red."""
    assert not differences(reliance, there)
    count = 0
    for mutant in mutants(reliance, there):
        found = differences(reliance, mutant.overloads)
        assert any(f.check == mutant.check and f.parameter in mutant.names for f in found), \
            f"{mutant.what} is not seen: {show(found)}"
        seen.add(mutant.check)
        count += 1
    return count


def test_every_mutation_of_what_is_relied_on_is_seen() -> None:
    """Rename, remove and reorder every parameter that is passed, and change every default that is counted on."""
    seen: set[str] = set()
    count = sum(check_mutants(RELIANCE[adapter, function], overloads(adapter, function, release), seen)
                for adapter, function, release in RELEASES
                if not gap(row(adapter).distribution, release, adapter, function))
    count += sum(check_mutants(form, contract_data.load("torch").overloads(function, release), seen)
                 for function, form in TORCH_FORMS for release in TORCH_RELEASES)
    assert seen == CHECKS.keys()
    assert count > 1000


@pytest.mark.parametrize(("package", "function", "line", "instead", "check", "parameter"), [
    ("flash-attn", "flash_attn.flash_attn_interface.flash_attn_with_kvcache", '["block_table", ', '["page_table", ',
     "absent", "block_table"),
    ("mate", "mate.mha_interface.flash_attn_varlen_func", '["softcap", "positional_or_keyword", "0.0"]',
     '["softcap", "positional_or_keyword", "30.0"]', "default", "softcap"),
    ("torch-npu", "torch_npu.npu_fused_infer_attention_score", "int inner_precise=0", "int inner_precise=1",
     "default", "inner_precise"),
    ("torch-npu", "torch_npu.npu_fused_infer_attention_score", "int sparse_mode=0", "int mask_mode=0", "absent",
     "sparse_mode"),
])
def test_a_change_in_a_contract_file_is_seen(package: str, function: str, line: str, instead: str, check: str,
                                             parameter: str) -> None:
    text = (contract_data.FOLDER / f"{package}.json").read_text()
    assert line in text
    mutated = contract_data.parse(json.loads(text.replace(line, instead)))
    for (adapter, name), reliance in RELIANCE.items():
        if name == function:
            found = differences(reliance, mutated.overloads(function, mutated.releases[-1]))
            assert (check, parameter) in [(f.check, f.parameter) for f in found], adapter


def test_an_older_release_than_is_claimed_is_seen() -> None:
    """The control from the field: flash-attn 2.5.9 has no softcap, and its kvcache function gives no LSE."""
    release = "2.5.9.post1"
    assert release not in claimed(row("fa2"))
    for function, lacks in (("flash_attn_with_kvcache", {"softcap", "return_softmax_lse"}),
                            ("flash_attn_varlen_func", {"softcap"})):
        function = f"flash_attn.flash_attn_interface.{function}"
        found = differences(RELIANCE["fa2", function], overloads("fa2", function, release))
        assert {(f.check, f.parameter) for f in found} == {("absent", name) for name in lacks}


# --- the files ---

def test_every_package_has_two_releases_and_their_sources() -> None:
    sources = json.loads((contract_data.FOLDER / "sources.json").read_text())
    assert sources.keys() == set(contract_data.packages())
    for package in contract_data.packages():
        data = json.loads((contract_data.FOLDER / f"{package}.json").read_text())
        assert data["package"] == package
        assert list(data["releases"]) == list(sources[package]["releases"])
        assert list(data["functions"]) == list(sources[package]["functions"])
        # A backend claims two releases or more; a stand-in (hal/compat) has the signatures of one.
        assert len(data["releases"]) == 1 if package.startswith("compat-") else len(data["releases"]) >= 2
        assert all(entry.keys() == {"from", "files", "how", "date"} and all(entry.values())
                   for entry in data["releases"].values())


def test_the_oldest_claimed_release_has_a_contract() -> None:
    packages = {package for name in BACKENDS for package in registry.get(name).packages}
    for package in packages:
        if package.minimum is not None:
            releases = contract_data.load(package.distribution).releases
            assert numbers(package.minimum) in map(numbers, releases), package.distribution


# --- ci/contracts/extract.py ---

def script() -> Any:
    spec = importlib.util.spec_from_file_location("extract", contract_data.FOLDER / "extract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VENDOR = '''
if fast:
    from fast import merge
else:
    def merge(a): ...
try:
    from fast import run
except ImportError:
    def run(q, /, k, *, scale=1.0, **more): ...
class Wrapper:
    @overload
    def plan(self, a): ...
    def plan(self, a, b=(-1, -1), *rest): ...
'''


def test_extract_reads_signatures() -> None:
    extract = script()
    assert extract.from_source(VENDOR, ["run"], "x.py") == [[
        ["q", "positional_only"], ["k", "positional_or_keyword"], ["scale", "keyword_only", "1.0"],
        ["more", "var_keyword"]]]
    assert extract.from_source(VENDOR, ["Wrapper", "plan"], "x.py") == [[
        ["self", "positional_or_keyword"], ["a", "positional_or_keyword"],
        ["b", "positional_or_keyword", "(-1, -1)"], ["rest", "var_positional"]]]
    assert len(extract.from_source(VENDOR, ["Wrapper", "plan"], "x.pyi")) == 2, "a stub's overloads all count"
    assert extract.from_source(VENDOR, ["merge"], "x.py") == [[["a", "positional_or_keyword"]]]
    assert extract.from_source(VENDOR, ["Wrapper", "run"], "x.py") == []
    with pytest.raises(extract.NotRead, match="2 times"):
        extract.from_source("def f(a): ...\nif x:\n    def f(b): ...\n", ["f"], "x.py")
    library = b"\x00npu_op.out(Tensor q) -> ()\x00my_npu_op(int a) -> ()\x00npu_op(Tensor q, *, int n=0) -> Tensor\x00"
    assert extract.from_library(library, "npu_op", "x.so") == "npu::npu_op(Tensor q, *, int n=0) -> Tensor"
    assert extract.from_library(library, "npu_none", "x.so") is None
    run_on = b"\x00QuantOper_npu_write(Tensor x) -> ()\x00_npu_write_two(int a) -> ()\x00"
    assert extract.from_library(run_on, "_npu_write", "lib_atb.so") == "atb::_npu_write(Tensor x) -> ()"
    with pytest.raises(extract.NotRead, match="2 schemas"):
        extract.from_library(b"npu_op(int a) -> ()\x00npu_op(int b) -> ()", "npu_op", "x.so")
    assert extract.from_library(b"\x00npu_op.out(Tensor q) -> Tensor\x00", "npu_op.out", "x.so") == (
        "npu::npu_op.out(Tensor q) -> Tensor")
    header = ("NPU_API void _npu_op(const at::Tensor&query, int64_t num_heads, const double scale_value, "
              "at::Tensor &out, const c10::optional<at::Tensor>&workspace);\n"
              "NPU_API at::Tensor _npu_op_v2(const at::Tensor&query);")
    assert extract.from_header(header, "_npu_op", "x.h") == (
        "atb::_npu_op(Tensor query, int num_heads, float scale_value, Tensor out, Tensor? workspace=None) -> ()")
    assert extract.from_header(header, "_npu_none", "x.h") is None
    with pytest.raises(extract.NotRead, match="'Odd x' of f is of no kind"):
        extract.from_header("void f(Odd x);", "f", "x.h")
    with pytest.raises(extract.NotRead, match="2 prototypes"):
        extract.from_header("void f(bool x); void f(bool x, bool y);", "f", "x.h")


def test_extract_writes_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    extract = script()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version, text in (("1.0", "def run(q, k=None): ..."), ("2.0", "def run(q, key=None): ...")):
        with zipfile.ZipFile(wheels / f"ven_dor-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("vendor/ops.py", text)
    sources = {"ven-dor": {"releases": {v: f"ven-dor=={v}" for v in ("1.0", "2.0")},
                           "functions": {"vendor.ops.run": ["vendor/none.py", "vendor/ops.py"]}},
               "other": {"git": "elsewhere", "releases": {"1": "v1"}, "functions": {"o.f": ["o.py"]}}}
    monkeypatch.setattr(extract, "HERE", tmp_path)
    monkeypatch.setattr(extract, "SOURCES", tmp_path / "sources.json")
    extract.SOURCES.write_text(json.dumps(sources))
    assert extract.main(["ven-dor", "--wheels", str(wheels), "--check"]) == 1
    assert not (tmp_path / "ven-dor.json").exists()
    assert extract.main(["ven-dor", "--wheels", str(wheels)]) == 0
    written = contract_data.parse(json.loads((tmp_path / "ven-dor.json").read_text()))
    assert [[p.name for p in s] for r in ("1.0", "2.0") for s in written.overloads("vendor.ops.run", r)] == [
        ["q", "k"], ["q", "key"]]
    assert extract.main(["ven-dor", "--wheels", str(wheels), "--check"]) == 0
    with zipfile.ZipFile(wheels / "ven_dor-2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("vendor/ops.py", "def run(q, key=0): ...")
    capsys.readouterr()
    assert extract.main(["--wheels", str(wheels), "--check"]) == 2
    said = capsys.readouterr().out
    assert "ven-dor: vendor.ops.run differs in 2.0" in said
    assert "differs in 1.0" not in said
    assert "other: NOT READ: other is read from git: give --git elsewhere=CHECKOUT" in said
