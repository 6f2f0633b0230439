"""Mutants of Ascend's adapters: each drawn one turns its case or check red, or it is explained why it can't."""

from __future__ import annotations

import pytest
from env_npu.on_fake_npu.altered import altered
from env_npu.on_fake_npu.data_mutants import EXPLAINED, KILLED
from env_npu.on_fake_npu.mutants_ascend import DRAWN, changed, mutants, red

AGAIN = "write tests/env_npu/on_fake_npu/data_mutants.py anew (mutants_ascend.py says how)"


def test_every_mutant_is_accounted_for() -> None:
    gone = [name for name in (*KILLED, *EXPLAINED) if name not in mutants()]
    assert not gone, f"the source gives {gone} no more: {AGAIN}"
    assert len(KILLED) + len(EXPLAINED) == DRAWN
    assert all(EXPLAINED.values()), "a survivor without an explanation"


@pytest.mark.parametrize("killer", sorted(set(KILLED.values())))
def test_without_a_mutant_all_is_well(killer: str) -> None:
    assert not red(killer)


@pytest.mark.parametrize("name", KILLED)
def test_a_mutant_turns_its_case_red(name: str) -> None:
    with altered(changed(name)):
        assert red(KILLED[name]), f"{KILLED[name]} passes with this mutant: {AGAIN}"
