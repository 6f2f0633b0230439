"""Mutants of Ascend's adapters: small changes of their source, drawn at random; what turns each red.

    PYTHONPATH=tests python -m fake_npu -- python tests/env_npu/on_fake_npu/mutants_ascend.py

with the Python of .venv-npu writes data_mutants.py anew: first the quick grid of both backends is asked, then the
CHECKS below. What survives must be explained there by hand.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2])]

import ast

import mutate
import pytest
from env_npu.on_fake_npu import test_ascend
from env_npu.on_fake_npu.altered import FILES, FOLDER, altered
from env_npu.on_fake_npu.test_ascend import DENSE, MLA, PLATFORM, Captured, npu

from hal import registry
from hal.conformance.runner import Runner

DRAWN, SALT, SEED = 50, "ascend 1", 17
BACKENDS = ("ascend", "ascend_mla")


def _captured() -> None:
    for config, query_len in ((DENSE, 1), (MLA, 3)):
        captured = Captured(config, 3, query_len)
        for lens in ([5, 300, 128], [7, 9]):
            given = captured.new_step(lens)
            captured.state.prepare_replay(3, query_len, **npu(given))
            captured.graph.replay()
            captured.expect(given)


def _slots() -> None:
    for kept in ((), (0,), (0, 1, 2)):
        test_ascend.test_skipped_slots_leave_every_row_alone(kept)
    for slot in (256, -2):
        test_ascend.test_a_slot_outside_the_cache_is_refused_before_anything_is_written(slot)


def _short() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_ascend.test_a_window_over_fewer_keys_than_queries(patch)


# What no case of the grid asks for.
CHECKS: dict[str, Callable[[], None]] = {
    "pieces": test_ascend.test_pieces_of_a_long_query_without_keys,
    "unpaged": test_ascend.test_an_unpaged_cache_that_is_full_in_places,
    "no queries": lambda: test_ascend.test_no_queries_have_an_empty_lse(MLA),
    "varlen ranks": lambda: test_ascend.test_context_parallel_over_pages_through_the_varlen_function(1),
    "captured": _captured, "slots": _slots,
    "once a step": lambda: test_ascend.test_a_step_with_two_kinds_of_layer_waits_once((130, 7, 300), (30, 7, 1)),
    "no wait": test_ascend.test_a_step_whose_lengths_the_engine_has_on_the_host_does_not_wait_to_attend,
    "short": _short, "table": lambda: test_ascend.test_a_page_table_has_a_row_for_each_sequence_at_least(
        DENSE, test_ascend.dense, "flash_attn_with_kvcache"),
}


@cache
def mutants() -> dict[str, tuple[ast.Module, mutate.Mutant]]:
    return mutate.mutants({file: FOLDER / f"{file}.py" for file in FILES})


def drawn() -> list[str]:
    return mutate.drawn(mutants(), DRAWN, SALT)


def changed(name: str) -> dict[str, ast.Module]:
    return {name.partition(".")[0]: mutate.tree_of(mutants(), name)}


def passing() -> dict[str, list[str]]:
    """The quick cases that pass, by backend."""
    found = {}
    for backend in BACKENDS:
        runner = Runner(registry.get(backend), PLATFORM, SEED)
        found[backend] = [name for name, case in test_ascend.quick(backend).items()
                          if runner.run(case).result == "passed"]
    return found


def red(killer: str) -> bool:
    """Whether a case ("ascend: NAME") or a check ("check: NAME") ends otherwise than it should."""
    kind, _, name = killer.partition(": ")
    try:
        if kind != "check":
            return Runner(registry.get(kind), PLATFORM, SEED).run(test_ascend.quick(kind)[name]).result != "passed"
        CHECKS[name]()
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever it is, it is seen
        return True
    return False


def main() -> None:
    order = [f"{backend}: {name}" for backend, names in passing().items() for name in names if "long" not in name]
    random.Random(3).shuffle(order)  # so that every kind of case comes early
    order += [f"check: {name}" for name in CHECKS]
    killed, survivors = {}, []
    for number, name in enumerate(drawn(), 1):
        with altered(changed(name)):
            killer = next((killer for killer in order if red(killer)), None)
        if killer is not None and killer in order[:-len(CHECKS)]:  # it is likely to find the next one too
            order.remove(killer)
            order.insert(0, killer)
        print(f"{number}/{DRAWN} {name}: {killer or 'SURVIVES'}", flush=True)
        if killer is None:
            survivors.append(name)
        else:
            killed[name] = killer
    rows = "".join(f"    {name!r}:\n        {killer!r},\n" for name, killer in sorted(killed.items()))
    Path(__file__).with_name("data_mutants.py").write_text(
        '"""Mutants of Ascend\'s adapters -> what turns each red.\n\nWritten by mutants_ascend.py, but '
        'for EXPLAINED: why what survives does so."""\n\n# ruff: noqa: E501\n\n'
        f"KILLED: dict[str, str] = {{\n{rows}}}\nEXPLAINED: dict[str, str] = {{\n"
        + "".join(f"    {name!r}:\n        '',\n" for name in survivors) + "}\n")


if __name__ == "__main__":
    main()
