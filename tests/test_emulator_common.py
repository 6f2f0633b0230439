"""The common part of emulators, proven with a toy vendor: signatures, record, refusals, installation, devices."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contract_data
import pytest
import torch
from emulators.common import Refusal, Vendor
from emulators.devices import DeviceName, Devices, Sync, Tagged, on, plain_of

import hal
from hal import AttentionConfig, Platform, registry
from hal.packages import Package, Packages

EMULATORS = Path(__file__).parent / "emulators"

# A vendor that was never there: release 2 renames a parameter and adds a class.
_V1 = [["q", "positional_or_keyword"], ["cache", "positional_or_keyword"], ["lens", "keyword_only"],
       ["scale", "keyword_only", "1.0"]]
_V2 = [*_V1[:3], ["softmax_scale", "keyword_only", "1.0"], ["mode", "keyword_only", "toy.Mode.FAST"]]
_PLAN = [["self", "positional_or_keyword"], ["lens", "positional_or_keyword"]]
TOY = contract_data.parse({"package": "toy-vendor", "releases": {"1.0": {}, "2.0": {}}, "functions": {
    "toy_vendor.ops.attend": [{"releases": ["1.0"], "signatures": [_V1]}, {"releases": ["2.0"], "signatures": [_V2]}],
    "toy_vendor.ops.write": [{"releases": ["1.0", "2.0"], "signatures": [[["cache", "positional_or_keyword"]]]}],
    "toy_vendor.plans.Planner.plan": [{"releases": ["2.0"], "signatures": [_PLAN]}],
    "toy_vendor.plans.Planner.run": [{"releases": ["2.0"], "signatures": [_PLAN[:1]]}],
}})


def attend(a: types.SimpleNamespace) -> torch.Tensor:
    """Adds the mean of the cache's first `lens` rows to q, as the toy's document says."""
    rows = plain_of(a.cache)[:a.lens].mean(0)
    result: torch.Tensor = a.q + (on(rows, a.q.device) if isinstance(a.q, Tagged) else rows)
    return result


def toy(release: str = "2.0", **more: Any) -> Vendor:
    return Vendor("toy-vendor", release, {"toy_vendor.ops.attend": attend, **more.pop("semantics", {})}, contract=TOY,
                  **more)


@pytest.fixture
def devices() -> Iterator[Devices]:
    with Devices("cuda:0", "cuda:1", "musa:0", "npu:0") as opened:
        yield opened


# --- the rule that makes emulators worth something ---

def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found.add(ast.unparse(node))
    return found


def test_emulators_import_nothing_of_hal() -> None:
    """Not the adapters, not the oracle, not their tests: only torch, the contract data and each other."""
    files = [*EMULATORS.rglob("*.py"), Path(contract_data.__file__)]
    assert len(files) >= 4
    for path in files:
        for name in imports(path):
            top = name.partition(".")[0]
            assert top in ("torch", "contract_data", "emulators") or top in sys.stdlib_module_names, \
                f"{path.name} imports {name}"


# --- functions ---

def test_functions_have_the_releases_own_signature() -> None:
    q, cache = torch.zeros(2), torch.ones(3, 2)
    old, new = toy("1.0"), toy("2.0")
    assert old.modules["toy_vendor.ops"].attend(q, cache, lens=2, scale=2.0).tolist() == [1.0, 1.0]
    with pytest.raises(TypeError, match=r"toy_vendor.ops.attend\(\) of toy-vendor 2.0: .*'scale'"):
        new.modules["toy_vendor.ops"].attend(q, cache, lens=2, scale=2.0)
    with pytest.raises(TypeError, match="lens"):
        new.modules["toy_vendor.ops"].attend(q, cache)
    with pytest.raises(TypeError, match="too many positional"):
        new.modules["toy_vendor.ops"].attend(q, cache, 2)
    assert new.calls == [], "a call that does not bind is none"
    assert str(inspect.signature(new.modules["toy_vendor.ops"].attend)).startswith("(q, cache, *, lens, softmax_scale=")
    assert "toy_vendor.plans" not in old.modules


def test_calls_are_recorded() -> None:
    vendor, q, cache = toy(), torch.zeros(2), torch.ones(3, 2)
    vendor.modules["toy_vendor.ops"].attend(q, cache=cache, lens=2)
    [call] = vendor.calls
    assert call.function == "toy_vendor.ops.attend"
    assert call.arguments["q"] is q
    assert call.arguments["softmax_scale"] == 1.0
    assert call.arguments["mode"] == contract_data.Symbol("toy.Mode.FAST")
    assert call.passed == {"q", "cache", "lens"}
    assert ((q,), {"cache", "lens"}) == (call.args, set(call.kwargs))
    assert call.devices == {"q": "cpu", "cache": "cpu"}


def test_refusals_come_before_the_semantics_and_are_recorded() -> None:
    refusal = Refusal(lambda a: a.lens == 0, RuntimeError, "lens must be positive", "toy document, section 1")
    vendor = toy(refusals={"toy_vendor.ops.attend": (refusal,)})
    with pytest.raises(RuntimeError, match="lens must be positive"):
        vendor.modules["toy_vendor.ops"].attend(torch.zeros(2), torch.ones(3, 2), lens=0)
    assert len(vendor.calls) == 1
    assert vendor.modules["toy_vendor.ops"].attend(torch.zeros(2), torch.ones(3, 2), lens=1).tolist() == [1.0, 1.0]


def test_what_an_emulator_can_not_be() -> None:
    with pytest.raises(NotImplementedError, match="toy_vendor.ops.write has no semantics"):
        toy().modules["toy_vendor.ops"].write(torch.zeros(1))
    with pytest.raises(KeyError, match="has no toy_vendor.plans.Planner.plan"):
        toy("1.0", semantics={"toy_vendor.plans.Planner.plan": lambda a: None})
    with pytest.raises(KeyError, match=r"3\.0 has no contract \(there: 1\.0, 2\.0\)"):
        toy("3.0")
    with pytest.raises(KeyError, match="nobody has no contract"):
        Vendor("nobody", "1.0")
    with pytest.raises(ValueError, match="torch can't be emulated"):
        Vendor("torch", "2.13.0")


def test_classes_keep_state() -> None:
    def plan(a: types.SimpleNamespace) -> None:
        a.self.lens = a.lens

    vendor = toy(semantics={"toy_vendor.plans.Planner.plan": plan,
                            "toy_vendor.plans.Planner.run": lambda a: a.self.lens})
    planner = vendor.modules["toy_vendor.plans"].Planner()
    planner.plan([3])
    assert planner.run() == [3]
    assert [call.function.rpartition(".")[2] for call in vendor.calls] == ["plan", "run"]


@pytest.mark.parametrize("package", [name for name in contract_data.packages() if name != "torch"])
def test_every_vendor_of_the_contracts_can_be_made(package: str) -> None:
    for release in contract_data.load(package).releases:
        vendor = Vendor(package, release)
        assert vendor.functions
        with vendor.installed():
            for dotted in vendor.functions:
                owner, _, name = dotted.rpartition(".")
                if owner in vendor.functions:  # an overload of an op
                    module, _, op = owner.rpartition(".")
                    assert callable(getattr(getattr(importlib.import_module(module), op), name))
                elif not owner.rpartition(".")[2][:1].isupper():
                    assert callable(getattr(importlib.import_module(owner), name))


# --- installation ---

def test_installed_package_is_found_every_way_and_gone_after() -> None:
    package = Package("toy-vendor", "toy_vendor.ops", "pip install toy", minimum="1.5", metadata=("toy_vendor",))
    before = list(sys.path), set(sys.modules)
    assert "not installed" in str(Packages.installed().missing(package))
    with toy().installed() as vendor:
        import toy_vendor.ops  # type: ignore[import-not-found]

        assert toy_vendor.ops is vendor.modules["toy_vendor.ops"]
        assert toy_vendor.plans.Planner
        assert importlib.metadata.version("toy-vendor") == "2.0"
        assert Packages.installed().missing(package) is None
    with toy("1.0").installed():
        assert "toy-vendor 1.0 is too old" in str(Packages.installed().missing(package))
    with toy("1.0", version="1.7", distribution="toy_vendor").installed():
        assert Packages.installed().missing(package) is None
    with pytest.raises(ImportError):
        importlib.import_module("toy_vendor.ops")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("toy-vendor")
    assert (list(sys.path), set(sys.modules)) == before


def test_what_was_there_is_hidden_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = {name: types.ModuleType(name) for name in ("toy_vendor", "toy_vendor.ops", "toy_vendor.extra")}
    for name, module in real.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ZeroDivisionError), toy().installed():
        assert "toy_vendor.extra" not in sys.modules
        assert sys.modules["toy_vendor.ops"] is not real["toy_vendor.ops"]
        raise ZeroDivisionError
    assert all(sys.modules[name] is module for name, module in real.items())
    assert "toy_vendor.plans" not in sys.modules


# --- tensors on devices that are not here ---

def test_factories_and_tensors_say_their_device(devices: Devices) -> None:
    for name in ("cuda:1", "musa:0", "npu:0"):
        q = torch.zeros(2, 3, device=name)
        assert str(q.device) == name
        assert (q.device.type, q.device.index, q.get_device()) == (name[:-2], int(name[-1]), int(name[-1]))
        assert (q.is_cuda, q.is_cpu) == (name == "cuda:1", False)
        made = [torch.arange(3, device=q.device), torch.empty(2, device=q.device), torch.full((2,), 1.0, device=name),
                torch.tensor([1], device=q.device), torch.ones(2, 2, dtype=torch.int8, device=q.device),
                torch.empty_like(q), q.new_zeros(3), q.new_full((2,), 1), q.new_empty(2), q.view(-1), q[0], q.T, q + 1,
                torch.stack((q, q)), *q.chunk(3, -1), q.max(dim=-1).values, q.to(torch.float16), q.clone(),
                torch.where(q == 0, 0.0, q), torch.nn.functional.pad(q, (0, 1)), q.float(), q.cumsum(0),
                torch.nn.functional.scaled_dot_product_attention(q[None], q[None], q[None])]
        assert {str(t.device) for t in made} == {name}
    assert torch.zeros(1).device == torch.device("cpu")
    assert torch.zeros(1, device="cpu").device == torch.device("cpu")
    assert type(torch.zeros(1)) is torch.Tensor
    for own in ("cpu", "meta"):
        made = torch.empty_like(torch.zeros(2, device="cuda:1"), device=own)
        assert (type(made), str(made.device)) == (torch.Tensor, own)
    assert torch.zeros(1, device="cuda").device == torch.zeros(1, device="cuda:0").device
    assert torch.zeros(1, device="cuda:1").device == torch.device("cuda:1")
    with pytest.raises(RuntimeError, match="device cuda:7 is not here"):
        torch.zeros(1, device="cuda:7")


def test_device_names_compare_as_devices_do() -> None:
    npu = on(torch.zeros(1), "npu").device
    assert (str(npu), npu == DeviceName("npu:0"), hash(npu) == hash(DeviceName("npu:0"))) == ("npu:0", True, True)
    assert npu != DeviceName("npu:1")
    assert npu != "npu:0", "a torch.device equals no text either"
    assert repr(npu) == "device(type='npu', index=0)"
    with pytest.raises(ValueError, match="cpu"):
        on(torch.zeros(1), "cpu")
    with pytest.raises(ValueError, match="meta"):
        Devices("meta")


MIXED = {
    "two devices": lambda a, b: a + b,
    "cat": lambda a, b: torch.cat([a, b]),
    "matmul": lambda a, b: a @ b,
    "in place": lambda a, b: a.add_(b),
    "keyword": lambda a, b: torch.where(condition=a > 0, input=a, other=b),
    "index": lambda a, b: a[b.long()],
    "index of another, written": lambda a, b: a.__setitem__(b.long(), 1.0),
    "values of another through indices": lambda a, b: a.__setitem__(torch.zeros_like(a).long(), b),
    "sdpa": lambda a, b: torch.nn.functional.scaled_dot_product_attention(a[None, None], b[None, None], b[None, None]),
    "out": lambda a, b: torch.add(a, a, out=b),
}


@pytest.mark.parametrize("other", ["musa:0", "cuda:0", "cpu"])
@pytest.mark.parametrize("what", MIXED)
def test_devices_do_not_mix(devices: Devices, what: str, other: str) -> None:
    a, b = torch.zeros(2, 2, device="cuda:1"), torch.zeros(2, 2, device=other)
    if (what, other) in (("index", "cpu"), ("index of another, written", "cpu")):
        MIXED[what](a, b)  # torch takes indices from the CPU
        assert devices.syncs[-1].direction == "to device"
        return
    with pytest.raises(RuntimeError, match=rf"Expected all tensors to be on the same device.*{other}"):
        MIXED[what](a, b)


def test_zero_dimensional_cpu_tensors_go_with_any_device(devices: Devices) -> None:
    a = torch.zeros(2, device="cuda:1")
    assert str((a + torch.tensor(1.0)).device) == "cuda:1"
    a[0] = torch.tensor(3.0)
    assert plain_of(a).tolist() == [3.0, 0.0]
    with pytest.raises(RuntimeError, match="same device"):
        a + torch.zeros((), device="musa:0")
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3)[torch.tensor([1], device="cuda:1")]


def test_writes_through_views_reach_the_cache(devices: Devices) -> None:
    """The ways in which KV caches are written."""
    cache = torch.zeros(4, 2, 1, 2, device="cuda:1")
    kept = plain_of(cache)
    page, offset = torch.tensor([1, 3], device="cuda:1"), torch.tensor([0, 1], device="cuda:1")
    cache[page, offset] = torch.ones(2, 1, 2, device="cuda:1")
    assert kept[[1, 3], [0, 1]].tolist() == [[[1.0, 1.0]]] * 2
    cache.view(-1, 2)[2:4].fill_(5.0)
    assert kept[1].flatten().tolist() == [5.0] * 4
    cache.flatten(0, 1).index_put_((torch.tensor([7], device="cuda:1"),), torch.full((1, 1, 2), 7.0, device="cuda:1"))
    assert kept[3, 1].flatten().tolist() == [7.0, 7.0]
    cache.transpose(1, 2)[0, 0].copy_(torch.full((2, 2), 9.0, device="cuda:1"))
    assert kept[0].flatten().tolist() == [9.0] * 4
    cache.view(torch.uint8)[2, 0] = 1
    assert kept.view(torch.uint8)[2, 0].unique().tolist() == [1]
    out = torch.empty(2, device="cuda:1")
    assert torch.add(out, 1, out=out) is out
    assert cache.mul_(1) is cache
    assert cache.data_ptr() == kept.data_ptr() == cache[0].data_ptr()
    one, two = on(kept, "cuda:0"), on(kept, "musa:0")
    assert (str(one.device), str(two.device), str(cache.device)) == ("cuda:0", "musa:0", "cuda:1")
    assert (two.is_musa, one.is_musa, two.is_npu, two.is_cuda) == (True, False, False, False)
    two.zero_()
    assert not kept.any(), "on() shares the data"


WAITS = {
    "item": lambda x: x[0].item(), "tolist": lambda x: x.tolist(), "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"), "bool": lambda x: bool(x.any()), "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]), "index": lambda x: [1, 2, 3][x[0]], "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(), "mask": lambda x: x[x > 1], "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(), "equal": lambda x: torch.equal(x, x), "contains": lambda x: 2 in x,
    "repeat_interleave": lambda x: torch.repeat_interleave(x, x), "where": lambda x: torch.where(x > 1),
    "format": lambda x: f"{x[0]}", "if": lambda x: 1 if x[0] > 0 else 0, "copy_": lambda x: torch.zeros(3).copy_(x),
    "setitem": lambda x: torch.zeros(3).__setitem__(slice(None), x), "0-dim index": lambda x: x[x[0]],
    "mask written": lambda x: x.__setitem__(x > 9, x[:0]), "tensor": lambda x: torch.as_tensor([x[0], 1]),
    "range": lambda x: list(range(x[0])), "iterated": lambda x: [int(v) for v in x],
}
STAYS = {
    "arithmetic": lambda x: (x * 2 + 1).clamp(0).cumsum(0), "to dtype": lambda x: x.to(torch.float32).to(torch.int32),
    "to its own": lambda x: x.to(x.device), "views": lambda x: x.view(3, 1).T[0, :2].reshape(-1),
    "gather": lambda x: x[x.long()[:0]], "masked_fill": lambda x: x.masked_fill(x > 1, 0),
    "scalar into a mask": lambda x: x.__setitem__(x > 1, 0), "where of three": lambda x: torch.where(x > 1, x, 0),
    "shape": lambda x: (x.shape, len(x), x.dtype, x.numel(), x.is_contiguous(), x.data_ptr(), x.stride()),
    "factories": lambda x: (x.new_zeros(3), torch.arange(3, device=x.device), torch.empty_like(x)),
    "repeat_interleave with its size": lambda x: torch.repeat_interleave(x, x, output_size=6),
    "slice copy": lambda x: x[:1].copy_(x[1:2]), "is None": lambda x: x is None,
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_of_the_host_are_recorded(devices: Devices, what: str) -> None:
    x = on(torch.tensor([1, 2, 3]), "musa:0")
    WAITS[what](x)
    assert devices.syncs
    assert {(s.device, s.direction) for s in devices.syncs} == {("musa:0", "to host")}
    with pytest.raises(AssertionError, match="the host waited: "), devices.no_sync():
        WAITS[what](x)


@pytest.mark.parametrize("what", STAYS)
def test_what_stays_on_the_device_is_no_wait(devices: Devices, what: str) -> None:
    x = on(torch.tensor([1, 2, 3]), "cuda:1")
    with devices.no_sync():
        STAYS[what](x)


def test_moves_copy_and_are_recorded(devices: Devices) -> None:
    host = torch.tensor([1.0, 2.0])
    there = host.to("cuda:1")
    there.add_(1)
    assert host.tolist() == [1.0, 2.0]
    back = there.to("cpu", torch.float64)
    assert (type(back), back.dtype, back.tolist()) == (torch.Tensor, torch.float64, [2.0, 3.0])
    assert type(torch.zeros(2).copy_(there)) is torch.Tensor, "what is written stays where it is"
    assert str(there.to(torch.zeros(1, device="musa:0")).device) == "musa:0"
    assert str(host.cuda(1).device) == "cuda:1"
    assert str(torch.tensor([1], device="npu:0").device) == "npu:0"
    assert there.to("cuda:1") is there
    there.new_tensor([1.0])
    there[[0, 1]]
    assert [(s.operation, s.device, s.direction) for s in devices.syncs] == [
        ("to", "cuda:1", "to device"), ("to", "cuda:1", "to host"), ("copy_", "cuda:1", "to host"),
        ("to", "cuda:1", "between devices"),
        ("cuda", "cuda:1", "to device"), ("tensor", "npu:0", "to device"), ("new_tensor", "cuda:1", "to device"),
        ("__getitem__ with an index on the host", "cuda:1", "to device")]


def test_inference_mode_and_no_grad(devices: Devices) -> None:
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            x = torch.zeros(2, 2, device="cuda:1")
            x[0] = 1
            x.view(-1)[3:].add_(2)
            assert (str((x @ x).device), plain_of(x).tolist()) == ("cuda:1", [[1.0, 1.0], [0.0, 2.0]])


def test_the_record_ends_with_the_block() -> None:
    x = on(torch.tensor([1]), "cuda:1")
    with Devices("cuda:1") as outer:
        with Devices("cuda:1") as inner:
            x.item()
        x.item()
    x.item()
    assert (len(outer.syncs), len(inner.syncs)) == (2, 1)
    assert outer.syncs[0] == Sync("item", "cuda:1", "to host")
    assert torch.zeros(1).device.type == "cpu"


# --- HAL's own code on such tensors, unchanged ---

def paged(device: str, generator: torch.Generator) -> dict[str, Any]:
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    ints = {"dtype": torch.int32, "device": device}
    return {"q": randn(2, 2, 4, 16), "k_cache": randn(6, 4, 2, 16), "v_cache": randn(6, 4, 2, 16),
            "k": randn(2, 2, 2, 16), "v": randn(2, 2, 2, 16), "cache_seqlens": torch.tensor([5, 3], **ints),
            "page_table": torch.tensor([[4, 1], [0, 2]], **ints), "causal": True}


@pytest.mark.parametrize("device", ["cuda:1", "musa:0", "npu:0"])
def test_the_torch_backend_runs_unchanged(devices: Devices, device: str) -> None:
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, dtype="float32", page_size=4)
    bound = registry.get("torch").bind(config, Platform("cpu", None, "cpu"), None)
    here, there = (paged(name, torch.Generator().manual_seed(0)) for name in ("cpu", device))
    expected, expected_lse = bound.flash_attn_with_kvcache(**here, return_softmax_lse=True)
    before = len(devices.syncs)
    out, lse = bound.flash_attn_with_kvcache(**there, return_softmax_lse=True)
    assert (str(out.device), str(lse.device)) == (device, device)
    assert torch.equal(plain_of(out), expected)
    assert torch.equal(plain_of(lse), expected_lse)
    assert torch.equal(plain_of(there["k_cache"]), here["k_cache"]), "the append reached the cache"
    assert "tolist" in {s.operation for s in devices.syncs[before:]}, "it reads the lengths on the host"
    with pytest.raises((RuntimeError, ValueError), match=r"device|cpu"):
        bound.flash_attn_with_kvcache(**{**there, "page_table": here["page_table"]})


def test_an_adapter_with_its_vendor_on_two_devices(devices: Devices) -> None:
    """FlashAttention 2's adapter decodes without making the host wait; its vendor sees each call's device."""
    name = "flash_attn.flash_attn_interface.flash_attn_with_kvcache"
    vendor = Vendor("flash-attn", "2.8.3.post1", {name: lambda a: a.q.new_zeros(a.q.shape)})
    backend = registry.get("flash_attn_2")
    with vendor.installed():
        bound = backend.bind(AttentionConfig(), Platform.parse("cuda:sm80"), backend.packages[0])
        for device in ("cuda:0", "cuda:1"):
            call = paged(device, torch.Generator())
            with devices.no_sync():
                out = bound.flash_attn_with_kvcache(**call)
            assert str(out.device) == device
            assert set(vendor.calls[-1].devices.values()) == {device}


def test_an_adapter_that_reads_lengths_on_the_host_is_caught(devices: Devices) -> None:
    name = "torch_npu.npu_fused_infer_attention_score"
    vendor = Vendor("torch-npu", "2.13.0", {name: lambda a: (a.query.new_zeros(a.query.shape), a.query[:0])})
    vendor.modules["torch_npu"].npu = types.SimpleNamespace(  # type: ignore[attr-defined]
        is_current_stream_capturing=lambda: False)
    backend = registry.get("ascend")
    with vendor.installed():
        bound = backend.bind(AttentionConfig(num_heads=4, num_kv_heads=2), Platform("npu", "ascend910b", "npu:0"),
                             backend.packages[0])
        call = {"q": torch.zeros(2, 1, 4, 128, device="npu:0"), "causal": True,
                "k_cache": torch.zeros(3, 128, 2, 128, device="npu:0"),
                "v_cache": torch.zeros(3, 128, 2, 128, device="npu:0"),
                "page_table": torch.zeros(2, 1, dtype=torch.int32, device="npu:0"),
                "cache_seqlens": on(torch.tensor([5, 7], dtype=torch.int32), "npu:0")}
        with pytest.raises(AssertionError, match=r"the host waited: tolist \(npu:0 to host\)"), devices.no_sync():
            bound.flash_attn_with_kvcache(**call)
    assert vendor.calls[-1].arguments["actual_seq_lengths_kv"] == [5, 7]
    assert str(vendor.calls[-1].arguments["atten_mask"].device) == "npu:0"


def test_the_torch_backend_copies_lengths_once_a_step(devices: Devices) -> None:
    """Two layers, one copy of cache_seqlens; the next epoch and a call outside any context copy anew."""
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, dtype="float32", page_size=4)
    bound = registry.get("torch").bind(config, Platform("cpu", None, "cpu"), None)
    there = {n: x for n, x in paged("cuda:1", torch.Generator().manual_seed(0)).items() if n not in ("k", "v")}

    def waits() -> int:
        before = len(devices.syncs)
        bound.flash_attn_with_kvcache(**there)
        return len(devices.syncs) - before

    alone = waits()
    with hal.forward_context(cache_seqlens=there["cache_seqlens"]) as step:
        assert [waits(), waits(), waits()] == [alone, alone - 1, alone - 1]
        step.update()
        assert waits() == alone
    assert waits() == alone
