"""docs/transformers.md and benchmarks/batching.py: the program runs, the figures are the record's, the goal judged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # benchmarks is no installed package

from benchmarks import batching  # noqa: E402

PAGE = (ROOT / "docs" / "transformers.md").read_text()


@pytest.mark.model
def test_the_pages_program_answers(default_model: Path, tmp_path: Path) -> None:
    found = re.search(r"<!-- file: batch.py -->\n```python\n(.*?)```", PAGE, re.S)
    assert found is not None
    (tmp_path / "batch.py").write_text(found[1])
    done = subprocess.run([sys.executable, "batch.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if " | " in line]
    assert sorted(line.partition(" | ")[0] for line in answers) == ["Once upon a time", "The capital of France is",
                                                                   "Two and two is"]
    assert any("Paris" in line for line in answers)


def test_the_pages_figures_are_those_of_the_newest_record() -> None:
    newest = max((ROOT / "docs" / "evidence").glob("bench-batching-*.json"))
    report = json.loads(newest.read_text(encoding="utf-8"))
    assert newest.name in PAGE
    assert "\n".join(line.rstrip() for line in batching.text(report).splitlines()) in PAGE
    assert report["goal"] == batching.judge(report["cells"])
    assert report["cells"] == [batching.summary(cell["requests"], cell["rates"]) for cell in report["cells"]]


def test_the_goal_is_judged_by_medians_against_sdpa() -> None:
    def cell(requests: int, hal: list[float]) -> dict[str, object]:
        return batching.summary(requests, {"hal": hal, "cb sdpa": [10.0, 20.0, 10.0], "generate": [5.0, 5.0, 5.0]})

    few, many = cell(1, [9.0, 20.0, 9.8]), cell(32, [13.0, 26.0, 40.0])
    assert few["over cb sdpa"] == pytest.approx({"ratio": 0.98, "low": 0.9, "high": 1.0})
    assert many["over generate"] == pytest.approx({"ratio": 5.2, "low": 2.6, "high": 8.0})
    goal = batching.judge([few, many])
    assert (goal["many"], goal["worst"]) == pytest.approx((2.6, 0.98))
    assert (goal["many_met"], goal["worst_met"]) == (True, True)
    goal = batching.judge([cell(8, [9.6, 9.6, 9.6]), cell(32, [12.9, 12.9, 12.9])])
    assert (goal["many_met"], goal["worst_met"], goal["worst_requests"]) == (False, False, 8)
    assert batching.judge([few])["many_met"] is None


def test_prompts_are_of_the_lengths_asked_for() -> None:
    prompts = batching.prompts_of(50, 20, 100, seed=1)
    assert {len(prompt) for prompt in prompts} <= set(range(20, 31))
    assert len({len(prompt) for prompt in prompts}) > 5
    assert prompts != batching.prompts_of(50, 20, 100, seed=2)
    assert all(10 <= token < 100 for prompt in prompts for token in prompt)
