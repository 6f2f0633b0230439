"""Runs one case on one backend: selection, the call, the judgement. Ends as passed, failed or refused."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import hal
from hal import registry
from hal.attention import AttentionImpl
from hal.backend import AttentionBackend
from hal.capabilities import CALLS, FEATURES
from hal.conformance.case import PHASES, Case
from hal.conformance.eager import eager
from hal.conformance.inputs import Inputs, Maker, Write
from hal.conformance.judge import FLOORS, judge
from hal.packages import Packages
from hal.platform import Platform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PASSED, FAILED, REFUSED = "passed", "failed", "refused"
# Eager and the oracle share no code: further apart than this in float32, one of them is wrong. SANE: so many floors,
# where rounding to the dtype is part of what is computed.
SAME, SANE = 1e-3, 60


class KitError(RuntimeError):
    """The kit contradicts itself: eager is far from the oracle. Never the backend's fault."""


@dataclass(frozen=True)
class Result:
    """How one case ended. why: the reasons of a refusal, or what was wrong. error, bound: of the nearest miss."""

    case: str
    result: str
    why: str
    error: float
    bound: float
    seconds: float
    features: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """HAL_CHECK=1 while impls are bound: every call is validated in full (design.md, promise 4)."""
    before = os.environ.get("HAL_CHECK")
    os.environ["HAL_CHECK"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HAL_CHECK"]
        else:
            os.environ["HAL_CHECK"] = before


@contextlib.contextmanager
def poisoned(case: Case) -> Iterator[None]:
    """torch.empty gives NaN, from Python and C++, where the device's torch knows this; not to decide determinism."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if not case.config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Runner:
    """Cases of one backend on one device. Impls are bound once per configuration."""

    def __init__(self, backend: type[AttentionBackend], device: Platform, seed: int) -> None:
        self.backend, self.device, self.seed = backend, device, seed
        self.packages = Packages.installed()
        self.impls: dict[Any, AttentionImpl] = {}
        self.after: list[Tensor] | None = None  # the caches after the latest call, where they are comparable

    def run(self, case: Case) -> Result:
        """Raises KitError where the kit itself is wrong; whatever else happens is the case's result."""
        start = time.perf_counter()
        outcome, why, error, bound = self._run(case)
        return Result(case.name, outcome, why, error, bound, time.perf_counter() - start, case.features)

    def _run(self, case: Case) -> tuple[str, str, float, float]:
        role = PHASES[case.phase][0]
        config = case.config
        reasons = self._refusal(case, role)
        if reasons:
            return REFUSED, "; ".join(reasons), 0.0, 0.0
        silent = self._not_declared(case)
        if silent:
            why = f"selection accepts {', '.join(silent)}, which {self.backend.name} does not declare"
            return FAILED, why, 0.0, 0.0
        undeclared = case.calls - self.backend.calls_of(self.backend.package_for(self.packages, config))
        try:
            impl = self._impl(config, role)
        except Exception as error:  # noqa: BLE001 - selection accepted it: whatever it raises is its failure
            return FAILED, f"not bound: {type(error).__name__}: {error}", 0.0, 0.0
        page_size = impl.decision.page_size
        q_dtype = getattr(impl.decision, "q_dtype", config.dtype) if role == "decode" else self.backend.q_dtype(config)
        inputs = Maker(case, config, page_size, q_dtype, self.backend.nan_safe_tail, self.seed).make()
        try:
            got, problem = self._call(impl, role, case, inputs)
        except ValueError as error:
            names = {CALLS[call] for call in undeclared} | undeclared
            if any(re.search(rf"\b{name}\b", str(error)) for name in (names if undeclared else ())):
                return REFUSED, str(error), 0.0, 0.0
            return FAILED, f"ValueError: {error}", 0.0, 0.0
        except Exception as error:  # noqa: BLE001 - as above
            return FAILED, f"{type(error).__name__}: {error}", 0.0, 0.0
        if undeclared:
            return FAILED, (f"served {', '.join(sorted(undeclared))}, which it does not declare ({self.backend.name}: "
                            f"calls {', '.join(sorted(self.backend.calls)) or 'none'}): declare it, or refuse the "
                            "argument by name"), 0.0, 0.0
        return (FAILED, problem, 0.0, 0.0) if problem else self._judge(case, inputs, got, q_dtype)

    def _refusal(self, case: Case, role: str) -> list[str]:
        """Why selection passes this backend over; empty where it takes it."""
        named = {f"{role}_backend": self.backend.name}
        decision = hal.explain(case.config, self.device, **named)
        chosen = decision.prefill if role == "prefill" else decision.decode
        reasons = next(list(c.reasons) for c in chosen.candidates if c.backend == self.backend.name)
        if not reasons and not decision.complete:
            other = decision.decode if role == "prefill" else decision.prefill
            reasons = [f"no {other.phase} backend goes with it: {c.backend}: {'; '.join(c.reasons)}"
                       for c in other.candidates[:1]]
        if not reasons and case.phase in ("extend", "mixed", "paged_varlen") and not self.backend.reads_cache:
            reasons = [f"phase {case.phase} is not supported ({self.backend.name}: it never reads the cache)"]
        if not reasons and role == "prefill" and case.config.mla is not None:
            expands = bool(self.backend.mla_prefill)
            if case.expanded and not expands:
                reasons = [f"expanded MLA is not supported ({self.backend.name}: mla_prefill is empty)"]
            if not case.expanded and "mla" not in self.backend.features:
                reasons = [f"absorbed MLA in prefill is not supported ({self.backend.name}: expanded keys only)"]
        return reasons

    def _not_declared(self, case: Case) -> list[str]:
        """What the case asks for and the declarations leave out, although selection did not refuse."""
        backend, config = self.backend, case.config
        words = [f for f, asked in FEATURES.items() if asked(config) is not None and f not in backend.features
                 and not (f == "mla" and case.expanded and backend.mla_prefill)]
        reads = case.phase != "prefill" and backend.reads_cache
        for name, value, known in (("dtype", config.dtype, backend.dtypes),
                                   ("attention_type", config.attention_type, backend.attention_types),
                                   ("page_size", config.page_size, backend.page_sizes)):
            if value is not None and (reads or name != "page_size") and value not in known:
                words.append(f"{name} {value}")
        if reads and config.stored_dtype not in (config.dtype, *backend.kv_cache_dtypes):
            words.append(f"kv_cache_dtype {config.stored_dtype}")
        return words

    def _impl(self, config: Any, role: str) -> AttentionImpl:
        key = (config, role)
        if key not in self.impls:
            with checking():
                self.impls[key] = hal.get_attention_impl(config, self.device,
                                                         **{f"{role}_backend": self.backend.name})
        return self.impls[key]

    def _call(self, impl: AttentionImpl, role: str, case: Case, inputs: Inputs) -> tuple[Any, str | None]:
        """((out, lse or None) on the host, what is wrong with the caches or with the form of the result)."""
        import torch

        device = impl.platform.torch_device
        # Copies: what the call does to them must not reach the oracle.
        a = {name: x.clone().to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.arguments.items()}
        k_name, v_name = ("k", "v") if case.phase == "paged_varlen" else ("k_cache", "v_cache")
        logical = None
        if inputs.writes:
            caches = self._caches(impl, case, inputs, a[k_name], a[v_name])
            logical = [a[name].shape == cache.shape for name, cache in zip((k_name, v_name), caches)]
            if all(logical):
                for name, cache in zip((k_name, v_name), caches):
                    problem = _differs(cache.cpu(), inputs.arguments[name], f"{name} after write_kv_cache")
                    if problem:
                        return None, problem
            a[k_name], a[v_name] = caches
        q = a["q"]
        width = case.config.v_dim if "qv" in a or not case.expanded else a["v"].shape[-1]
        dtype = torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype
        # What the kernel gets from the allocator is likely this memory: a row it leaves unwritten shows.
        poison = [torch.full((*q.shape[:-1], width), float("nan"), dtype=dtype, device=device) for _ in range(4)]
        if "out" in case.calls:
            a["out"] = poison[0]
        out = a.get("out")
        del poison
        function = getattr(impl.prefill if role == "prefill" else impl.decode, inputs.function)
        with poisoned(case):
            got = function(**a)
        want_lse = case.config.return_softmax_lse
        parts = got if isinstance(got, tuple) else (got,)
        if want_lse != isinstance(got, tuple) or len(parts) != 1 + want_lse or not all(
                isinstance(x, torch.Tensor) for x in parts):
            kind = f"({', '.join(type(x).__name__ for x in parts)})" if isinstance(got, tuple) else type(got).__name__
            return None, f"returned {kind}, expected {'(out, softmax_lse)' if want_lse else 'a tensor'}"
        for name, x in a.items():
            if isinstance(x, torch.Tensor) and name not in (k_name, v_name, "out") and not torch.equal(
                    _bits(x.cpu()), _bits(inputs.arguments[name])):
                return None, f"{name} was changed by the call"
        pair = got if want_lse else (got, None)
        if out is not None and pair[0].data_ptr() != out.data_ptr() and out.numel():
            return None, "out was given and not written: the result is in other memory"
        if case.config.deterministic and "append" not in case.calls:
            first = [_bits(x.clone()) for x in parts]  # the second call may write to the same memory
            again = function(**a)
            if not all(torch.equal(x, _bits(y)) for x, y in zip(first, again if want_lse else (again,))):
                return None, "deterministic was asked for, and a second call gave other bits"
        self.after = [a[k_name].cpu(), a[v_name].cpu()] if logical and all(logical) else None
        return (pair[0].cpu(), None if pair[1] is None else pair[1].cpu()), None

    def _caches(self, impl: AttentionImpl, case: Case, inputs: Inputs, k_host: Tensor,
                v_host: Tensor) -> tuple[Tensor, Tensor]:
        """The device's caches, filled through write_kv_cache; by hand where the call brings its own layout."""
        import torch

        if "unpaged" in case.calls or "strided_cache" in case.calls:
            if "strided_cache" not in case.calls:
                return k_host.clone(), v_host.clone()
            # K and V of one page side by side, heads outside tokens: [pages, Hkv, page_size, Dk + Dv].
            raw = torch.uint8 if k_host.dtype.itemsize == 1 else k_host.dtype
            both = torch.cat([k_host.view(raw), v_host.view(raw)], -1).transpose(1, 2).contiguous()
            width = k_host.shape[-1]
            k, v = both[..., :width].transpose(1, 2), both[..., width:].transpose(1, 2)
            return k.view(k_host.dtype), v.view(v_host.dtype)
        k_cache, v_cache = impl.new_kv_cache(inputs.pages)
        for write in inputs.writes:
            if len(write.slots):
                self._write(impl, write, k_cache, v_cache)
        return k_cache, v_cache

    def _write(self, impl: AttentionImpl, write: Write, k_cache: Tensor, v_cache: Tensor) -> None:
        device = k_cache.device
        scales = {} if write.k_scale is None or write.v_scale is None else {
            "k_scale": write.k_scale.to(device), "v_scale": write.v_scale.to(device)}
        impl.write_kv_cache(write.k.to(device), write.v.to(device), k_cache, v_cache, write.slots.to(device), **scales)

    def _judge(self, case: Case, inputs: Inputs, got: Any, q_dtype: str) -> tuple[str, str, float, float]:
        import torch

        from hal import oracle
        from hal.kv_cache import FP8

        host = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in inputs.arguments.items()}
        host["return_softmax_lse"] = True
        if case.config.softmax_scale is not None:  # the oracle knows no config
            host["softmax_scale"] = case.config.softmax_scale
        want = getattr(oracle, inputs.function)(**host)
        q = inputs.arguments["q"]
        rough = self._eager(inputs, want, torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype)
        name = FP8.get(q_dtype, q_dtype)
        _sane(case, inputs, want, self._eager(inputs, want, torch.float32), FLOORS[name])
        verdict = judge(got, want, rough, inputs.rows, inputs.packed, name, rotary=bool(case.rotary))
        if verdict.problem:
            return FAILED, verdict.problem, verdict.error, verdict.bound
        if self.after is not None:
            for after, which in zip(self.after, ("k", "v") if case.phase == "paged_varlen" else ("k_cache", "v_cache")):
                tolerance = 2 * FLOORS[name] if case.rotary and which == "k_cache" else 0.0
                problem = _differs(after, host[which], f"{which} after the call", tolerance)
                if problem:
                    return FAILED, problem, verdict.error, verdict.bound
        return PASSED, f"error {verdict.error:.2e}, bound {verdict.bound:.2e}", verdict.error, verdict.bound

    def _eager(self, inputs: Inputs, want: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Eager's (out, lse) in the shapes of the oracle's."""
        import torch

        out, lse = torch.zeros_like(want[0]), torch.full_like(want[1], float("-inf"))
        flat = out.view(-1, *out.shape[-2:])
        for b, (sequence, (first, last)) in enumerate(zip(inputs.sequences, inputs.rows)):
            if last == first:
                continue
            flat[first:last], one = eager(sequence, inputs.scores, dtype)
            if inputs.packed:
                lse[:, first:last] = one
            else:
                lse[b] = one
        return out, lse


def _sane(case: Case, inputs: Inputs, want: tuple[Tensor, Tensor], rough: tuple[Tensor, Tensor], floor: float) -> None:
    """Eager in float32 and the oracle come to the same."""
    # Rotated elements fall on either side of a tie in the dtype; with fp8 queries eager rounds the weights too.
    most = SANE * floor if case.rotary or inputs.arguments["q"].dtype.itemsize == 1 else SAME
    out, ref = (x.double().reshape(-1, *x.shape[-2:]) for x in (rough[0], want[0]))
    for b, (first, last) in enumerate(inputs.rows):
        if last > first:
            lse, ref_lse = (x[:, first:last] if inputs.packed else x[b] for x in (rough[1], want[1]))
            apart = max(float((out[first:last] - ref[first:last]).abs().max()) / max(
                1.0, float(ref[first:last].abs().max())), float((lse - ref_lse).nan_to_num(0.0).abs().max()))
            if not apart <= most:
                raise KitError(f"{case.name}: eager and the oracle are {apart:.3g} apart: the kit is wrong, report it")


def _bits(x: Tensor) -> Tensor:
    """x as integers, so that NaN equals NaN and fp8 can be compared."""
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(kinds[x.dtype.itemsize])


def _differs(seen: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> str | None:
    """A sentence where two caches differ (NaN equals NaN), else None."""
    a, b = seen.float(), expected.float()
    same = (a == b) | (a.isnan() & b.isnan())
    if tolerance:
        same |= (a - b).abs() <= tolerance * (1 + b.abs())
    if bool(same.all()):
        return None
    page, offset, head = (int(i) for i in (~same).nonzero()[0][:3])
    return (f"{what} differs at page {page}, offset {offset}, head {head}: {int((~same).sum())} of {same.numel()} "
            "numbers")


def backend_of(text: str) -> type[AttentionBackend]:
    """A backend by name, or "package.module:Class", which is registered under its own name first."""
    if ":" not in text:
        return registry.get(text)
    module, _, name = text.partition(":")
    import importlib

    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, AttentionBackend)):
        raise ValueError(f"backend {text!r}: {name!r} in {module} is {found!r}, expected a subclass of "
                         "hal.backend.AttentionBackend")
    if found.name not in registry.names():
        hal.register_backend(found.name, found)
    if registry.get(found.name) is not found:
        raise ValueError(f"backend {text!r}: its name {found.name!r} is another backend's: rename it")
    return found
