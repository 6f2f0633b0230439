"""The conformance kit as ordinary tests: `pytest -p hal.testing --hal-backend package.module:Class`.

Adds one test for each case of the grid, and one for each word that the backend declares. What selection or the
adapter refuses is skipped with its reason, and `declared[word]` fails where nothing proved a declared word. Beside
the project's own tests, or alone: `pytest -p hal.testing --hal-backend my_package.kernels:MyBackend --hal-only`.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from hal.platform import PlatformNotFoundError

if TYPE_CHECKING:
    from hal.conformance.case import Case
    from hal.conformance.runner import Result, Runner


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hal", "conformance of attention backends")
    group.addoption("--hal-backend", metavar="NAME", action="append", default=[],
                    help="a backend of HAL, or package.module:Class; repeatable")
    group.addoption("--hal-device", metavar="DEVICE", default="auto", help="where to run it (default: auto)")
    group.addoption("--hal-full", action="store_true", help="the whole grid (default: the quick one)")
    group.addoption("--hal-seed", metavar="N", type=int, help="repeat a run (default: a fresh seed)")
    group.addoption("--hal-only", action="store_true", help="collect no other tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hal-backend") and config.getoption("--hal-seed") is None:
        # Workers of pytest-xdist get the seed of the one that started them.
        given = getattr(config, "workerinput", {}).get("hal_seed")
        config.option.hal_seed = random.SystemRandom().randrange(1 << 31) if given is None else given


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist: the same seed everywhere."""
    node.workerinput["hal_seed"] = node.config.getoption("--hal-seed")


def pytest_report_header(config: pytest.Config) -> str | None:
    names = config.getoption("--hal-backend")
    return f"hal: {', '.join(names)}, --hal-seed {config.getoption('--hal-seed')}" if names else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    names = config.getoption("--hal-backend")
    if config.getoption("--hal-only"):
        items.clear()
    for name in names:
        try:
            backend = Backend.from_parent(session, name=name)
        except (ValueError, ImportError, PlatformNotFoundError) as error:  # an unknown name, device or module
            raise pytest.UsageError(f"--hal-backend {name}: {error}") from error
        items.extend(backend.collect())


class Backend(pytest.Collector):
    """One backend on one device, and the results so far: `declared` tests ask for them."""

    def __init__(self, **kwargs: Any) -> None:
        from hal.conformance.grid import grid, lacking
        from hal.conformance.runner import Runner, backend_of
        from hal.platform import detect

        super().__init__(**kwargs, nodeid=f"hal.testing::{kwargs['name']}")
        self.seed: int = self.config.getoption("--hal-seed")
        self.device: str = self.config.getoption("--hal-device")
        self.full = bool(self.config.getoption("--hal-full"))
        self.backend = backend_of(self.name)
        self.runner: Runner = Runner(self.backend, detect(self.device), self.seed)
        self.cases: list[Case] = grid(self.backend, self.full, lacking(detect(self.device)))
        self.results: dict[str, Result] = {}

    def collect(self) -> Iterator[pytest.Item]:
        from hal.conformance.record import declared

        for case in self.cases:
            yield CaseItem.from_parent(self, name=case.name, case=case)
        for word in declared(self.backend):
            yield DeclaredItem.from_parent(self, name=f"declared[{word}]", word=word)

    def result(self, case: Case) -> Result:
        """Of this process: run at most once. Under pytest-xdist the case's own test may run elsewhere."""
        if case.name not in self.results:
            self.results[case.name] = self.runner.run(case)
        return self.results[case.name]


class HalItem(pytest.Item):
    parent: Backend

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        return str(excinfo.value) if excinfo.errisinstance(AssertionError) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[str, None, str]:
        return "hal.testing", None, f"{self.parent.name}: {self.name}"


class CaseItem(HalItem):
    """One case. Refused is skipped: it is no pass, and nothing is wrong with it."""

    def __init__(self, *, case: Case, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case

    def runtest(self) -> None:
        from hal.conformance.runner import FAILED, REFUSED

        result = self.parent.result(self.case)
        if result.result == REFUSED:
            pytest.skip(f"refused: {result.why}")
        size = " --full" if self.parent.full else ""
        if result.result == FAILED:
            raise AssertionError(
                f"{self.name}\n{result.why}\nto repeat: hal verify --device {self.parent.device} --backend "
                f"{self.parent.name}{size} --seed {self.parent.seed} --case {shlex.quote(self.name)}")


class DeclaredItem(HalItem):
    """A declared word has a passing case, or selection refuses it on this device by name."""

    def __init__(self, *, word: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.word = word

    def runtest(self) -> None:
        from hal.conformance.record import unproven
        from hal.conformance.runner import PASSED

        results = []
        for case in self.parent.cases:
            if self.word in case.features:
                results.append(self.parent.result(case))
                if results[-1].result == PASSED:
                    return
        why = unproven(self.parent.backend, results).get(self.word)
        if why:
            raise AssertionError(f"{self.parent.backend.name} declares {self.word}, and no case proves it: {why}")
        pytest.skip(f"refused on this device: {self.word}")
