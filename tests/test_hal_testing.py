"""`pytest -p hal.testing`: a package out of tree, installed with pip, verified as its author would do it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKEND = "paged_softmax:PagedSoftmax"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/out_of_tree, installed into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source") / "paged", tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "tests" / "out_of_tree", source, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
                    "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def author(site: Path, tmp_path: Path) -> Path:
    """The folder the author is in: tests of their own, and nothing of this repository."""
    (tmp_path / "test_own.py").write_text("def test_own_window():\n    pass\n")
    return tmp_path


def command(site: Path, cwd: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT)])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HAL_", "PAGED"))}
    return subprocess.run([sys.executable, *words], cwd=cwd, text=True, capture_output=True, check=False,
                          env={**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environ})


def verify(site: Path, cwd: Path, *words: str, backend: str = BACKEND, **environ: str) -> tuple[int, str]:
    done = command(site, cwd, "-m", "pytest", "-p", "hal.testing", "-p", "no:cacheprovider", "--hal-device", "cpu",
                   "--hal-backend", backend, *words, **environ)
    return done.returncode, done.stdout + done.stderr


def counts(output: str) -> dict[str, int]:
    """Of pytest's last line."""
    ends = re.findall(r"(\d+) (passed|failed|skipped|deselected|error)", output.splitlines()[-1])
    return {word: int(n) for n, word in ends}


def test_a_right_backend_passes(site: Path, author: Path) -> None:
    """The whole quick grid, every declared word proven; what it does not declare is skipped as refused."""
    code, output = verify(site, author, "--hal-only", "-q", "-rs")
    assert code == 0, output[-3000:]
    seen = counts(output)
    assert "failed" not in seen
    assert seen["passed"] > 100
    assert seen["skipped"] > 100
    assert "refused: rotary_cos: got" in output or "refused: k: got" in output
    assert "refused: sinks is not supported (paged_softmax: " in output


def test_a_mistake_fails_and_can_be_repeated(site: Path, author: Path) -> None:
    """It names the case, how far off it was and the command that repeats it, which does.

    As every window case fails, the declaration is unproven: a failure of its own.
    """
    code, output = verify(site, author, "--hal-only", "-k", "sliding_window and (dense and decode or declared)",
                          "--hal-seed", "3", PAGED_SOFTMAX_MISTAKE="1")
    assert code == 1, output[-3000:]
    assert "dense sliding_window: decode bfloat16 8/2x128 sliding_window=9" in output
    assert "paged_softmax declares sliding_window, and no case proves it: " in output
    assert counts(output)["failed"] >= 3
    assert re.search(r"out of sequence \d, head \d, query \d: error \S+, bound \S+", output), output[-3000:]
    repeat = next(line for line in output.splitlines() if line.startswith("to repeat: hal verify "))
    words = shlex.split(repeat.removeprefix("to repeat: hal "))
    assert words[words.index("--seed") + 1] == "3"
    again = command(site, author, "-m", "hal", *words, PAGED_SOFTMAX_MISTAKE="1")
    assert again.returncode == 1, again.stderr
    assert "paged_softmax: 0 passed, 1 failed" in again.stdout
    right = command(site, author, "-m", "hal", *words)
    assert right.returncode == 0, right.stdout + right.stderr


def test_selection_and_own_tests(site: Path, author: Path) -> None:
    """-k picks among the cases as among any tests, one process or two; without --hal-only the author's own run too."""
    pick = ("-q", "-k", "head_dim and decode or own_window", "--hal-seed", "5")
    code, output = verify(site, author, *pick)
    assert code == 0, output[-3000:]
    one = counts(output)
    code, output = verify(site, author, *pick, "--hal-only", "-n", "2")
    assert code == 0, output[-3000:]
    two = counts(output)
    assert one["passed"] == two["passed"] + 1 > 5
    assert one["skipped"] == two["skipped"] > 0


def test_seed_and_backend_are_in_the_header(site: Path, author: Path) -> None:
    """A fresh seed is printed, by the installed name too; and collecting runs nothing."""
    seeds = set()
    for _ in range(2):
        code, output = verify(site, author, "--hal-only", "--collect-only", backend="paged_softmax")
        assert code == 0, output[-3000:]
        seeds.add(re.search(r"hal: paged_softmax, --hal-seed (\d+)", output)[1])  # type: ignore[index]
    assert len(seeds) == 2


@pytest.mark.parametrize(("words", "backend", "said"), [
    ((), "paged_softmax:Nope", "'Nope' in paged_softmax is None, expected a subclass"),
    ((), "no_such_module:Class", "No module named 'no_such_module'"),
    ((), "no_such", "attention backend 'no_such' is not known"),
    (("--hal-device", "cuda:sm90"), BACKEND, "cuda:sm90"),
])
def test_wrong_options(site: Path, author: Path, words: tuple[str, ...], backend: str, said: str) -> None:
    """Pytest's usage error, one line, no traceback."""
    code, output = verify(site, author, "--hal-only", *words, backend=backend)
    assert code == 4, output[-3000:]
    assert said in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output
