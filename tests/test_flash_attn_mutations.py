"""Mutants of the FlashAttention adapters: each is turned red by the case or the test recorded for it."""

from __future__ import annotations

import importlib

import pytest
from mutants_flash_attn import DRAWN, Where, drawn, mutants, mutated, run, stale
from mutants_flash_attn_kept import ELSEWHERE, EQUIVALENT
from mutants_flash_attn_killed import KILLED


def test_every_drawn_mutant_is_accounted_for() -> None:
    recorded = [*KILLED, *ELSEWHERE, *EQUIVALENT]
    assert not stale(recorded), stale(recorded)
    assert len(recorded) == len(set(recorded)) == sum(DRAWN.values())
    for file in DRAWN:
        assert sum(name.startswith(f"{file}.") for name in recorded) == DRAWN[file]
    assert {name.split(": ")[1] for name in drawn()} == {name.split(": ")[1] for name in mutants()}


@pytest.mark.parametrize("name", KILLED)
def test_a_mutant_turns_its_case_red(name: str) -> None:
    assert not stale([name]), stale([name])
    where, case = KILLED[name]
    before = run(Where(*where), case)
    with mutated(name):
        after = run(Where(*where), case)
    assert before != after, f"{case} ends as {after} with this mutant too: regenerate the records"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_mutant_turns_a_test_red(name: str) -> None:
    assert not stale([name]), stale([name])
    module, test, arguments = ELSEWHERE[name]
    function = getattr(importlib.import_module(module), test)
    function(*arguments)
    with mutated(name), pytest.raises((Exception, pytest.fail.Exception)):
        function(*arguments)
