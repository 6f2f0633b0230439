"""The conformance kit against wrong backends: each turns red, in the case that is about what is broken.

Faults are written by hand (faults_torch.py); mutants are small changes of the torch backend's source, drawn at random
(mutants_torch.py). Here each is asked its own case. HAL_TEST_MUTATIONS=full asks all of them the whole grid as well,
which takes half an hour; ci/full.sh does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from faults_torch import FAULTS, Fault
from mutants_cases import CHECKS
from mutants_equivalent import ELSEWHERE, EQUIVALENT
from mutants_killed import KILLED
from mutants_torch import DRAWN, cases, drawn, first_red, made, mutants, mutated, remembered, running, search, stale

import hal
from hal.backend import AttentionBackend
from hal.conformance.runner import FAILED, PASSED

CRASHED = re.compile(r"^(not bound: )?\w+(Error|Exception): ")


@pytest.fixture(autouse=True, scope="module")
def one_oracle() -> Iterator[None]:
    """Most faults share a few controls, and mutants their cases: the oracle is asked once for each."""
    with remembered(keep=200):
        yield


def case_named(name: str) -> str:
    assert name in cases(True), (
        f"the grid has no case {name!r} any more: name another in tests/faults_torch.py, or write "
        "tests/mutants_killed.py anew (python tests/mutants_torch.py --regenerate)")
    return name


def test_the_backend_they_are_made_from_passes_every_case_they_are_asked() -> None:
    asked = {name for fault in FAULTS for name in (fault.case, fault.control)} | set(KILLED.values())
    red = first_red(made({}), [case_named(name) for name in sorted(asked)])
    assert red is None, f"{red.case}: {red.why}" if red else ""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_turns_its_case_red(fault: Fault) -> None:
    with running(fault.backend()) as runner:
        broken = runner.run(cases(True)[case_named(fault.case)])
        control = runner.run(cases(True)[case_named(fault.control)])
    assert broken.result == FAILED, broken
    assert not CRASHED.match(broken.why), f"a fault gives a wrong answer, this one no answer: {broken.why}"
    assert control.result == PASSED, control


@pytest.mark.parametrize("name", KILLED, ids=[*KILLED])
def test_a_mutant_turns_its_case_red(name: str) -> None:
    assert not stale([name]), stale([name])
    assert first_red(mutated(name), [case_named(KILLED[name])]), (
        f"{KILLED[name]} passes with this mutant: python tests/mutants_torch.py --regenerate finds another case, or "
        "tells that there is none")


def answers(backend: type[AttentionBackend], check: str) -> bool:
    with running(backend):
        config = hal.AttentionConfig(num_heads=8, num_kv_heads=2, head_dim=128)
        return CHECKS[check](hal.get_attention_impl(config, "cpu", backend=backend.name))


@pytest.mark.parametrize("name", ELSEWHERE, ids=[*ELSEWHERE])
def test_a_mutant_that_no_case_can_be_about_turns_a_check_red(name: str) -> None:
    assert not stale([name]), stale([name])
    assert answers(made({}), ELSEWHERE[name])
    assert not answers(mutated(name), ELSEWHERE[name])


def test_every_mutant_is_accounted_for() -> None:
    recorded = [*KILLED, *EQUIVALENT, *ELSEWHERE]
    assert not stale(recorded), stale(recorded)
    assert len(recorded) == len(set(recorded)) == DRAWN >= 100


def test_a_mutant_that_is_gone_says_how_to_regenerate() -> None:
    said = stale(["torch_native._read: comparison: what it was before"])
    assert said is not None
    assert "what it was before" in said
    assert "--regenerate" in said


def test_faults_and_mutants_are_many_and_distinct() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 35
    assert len({*mutants()}) > 5 * DRAWN
    assert {name.split(": ")[1] for name in drawn()} == {name.split(": ")[1] for name in mutants()}


# Not collected without being asked for: a test that is skipped proves nothing.
if os.environ.get("HAL_TEST_MUTATIONS") == "full":

    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_the_quick_grid_or_its_case_finds_a_fault(fault: Fault) -> None:
        quick = [name for name in cases(False) if name != fault.case]
        assert first_red(fault.backend(), [*quick, fault.case])

    def test_the_draw_is_as_recorded_and_the_full_grid_leaves_only_what_is_explained() -> None:
        assert set(drawn()) == {*KILLED, *EQUIVALENT, *ELSEWHERE}, "run mutants_torch.py --regenerate"
        red = search(drawn(), KILLED, workers=2)
        assert set(red) == set(KILLED)
