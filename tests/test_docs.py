"""docs/ and README against the code: generated pages are up to date, and every command shown runs as stated."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hal import env, hints, registry
from hal.__main__ import main
from hal.backends import BACKENDS
from hal.capabilities import FEATURES, LEVELS

ROOT = Path(__file__).parents[1]
SELECTION, README = (ROOT / "docs" / "selection.md").read_text(), (ROOT / "README.md").read_text()
FIX = "run: python ci/backends_doc.py"
MODEL = {"model_type": "gpt_oss", "hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
         "head_dim": 64, "num_hidden_layers": 4, "sliding_window": 128,
         "layer_types": ["sliding_attention", "full_attention"] * 2}


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("backends_doc", ROOT / "ci" / "backends_doc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOC = _generator()


def commands(page: str) -> list[tuple[str, int]]:
    """(command, exit code as stated, 0 where none is) of every `hal` line in the code blocks of a page."""
    lines = [line.removeprefix("$ ") for block in re.findall(r"^```\w*\n(.*?)^```", page, re.M | re.S)
             for line in block.splitlines() if re.match(r"(\$ )?hal ", line)]
    return [(line, int((re.findall(r"# exit code ([0-9]+)", line) or ["0"])[0])) for line in lines]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HAL_")]:
        monkeypatch.delenv(name)


def test_generated_pages_are_up_to_date() -> None:
    for path, text in DOC.pages().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is stale; {FIX}"


def test_it_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "ci/backends_doc.py", "--check"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr + FIX


def test_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("old")
    monkeypatch.setattr(DOC, "ROOT", tmp_path)
    monkeypatch.setattr(DOC, "pages", lambda: {page: "new"})
    for argv, code, text, said in ((["--check"], 1, "old", "is stale; run: python ci/backends_doc.py"),
                                   ([], 0, "new", "written"), (["--check"], 0, "new", "")):
        monkeypatch.setattr(sys, "argv", ["backends_doc.py", *argv])
        assert DOC.main() == code
        assert (page.read_text(), capsys.readouterr().out) == (text, f"page.md {said}\n" if said else "")


def test_a_changed_declaration_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = DOC.page()
    for name, value in (("platforms", {"cuda": ("sm75", "sm80", "sm86", "sm89")}), ("dtypes", ("float32",)),
                        ("kv_cache_dtypes", ("fp8_e5m2",)), ("phases", ("decode",)), ("features", frozenset({"sinks"})),
                        ("requires", frozenset({"mla"})), ("graph_level", "always"), ("max_decode_query_len", 3),
                        ("adapter", False), ("levels", {"cuda": "hardware"}), ("mla_prefill", ((192, 128),)),
                        ("head_dim_pairs", None), ("reads_cache", False), ("packages", ()), ("sources", ())):
        with monkeypatch.context() as patch:
            patch.setattr(registry.get("flash_attn_2"), name, value)
            assert DOC.page() != before, name
    assert DOC.page() == before


def test_one_row_for_each_backend() -> None:
    rows = [line for line in (ROOT / "docs" / "backends.md").read_text().splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in rows]
    assert [own[0].strip("`") for own in cells] == list(BACKENDS), FIX
    assert {len(own) for own in cells} == {len(DOC.COLUMNS)}
    page = (ROOT / "docs" / "backends.md").read_text()
    assert all(name in page for name in (*FEATURES, *LEVELS))


@pytest.mark.parametrize(("kind", "own", "expected"), [
    ("cuda", (), "all"), ("cuda", ("sm90",), "sm90"), ("cuda", ("sm90", "sm80"), "sm80, sm90"),
    ("cuda", ("sm80", "sm86", "sm87", "sm89", "sm120", "sm121"), "sm80..sm89, sm120, sm121"),
    ("rocm", ("gfx942", "gfx950"), "gfx942, gfx950")])
def test_runs_of_archs(kind: str, own: tuple[str, ...], expected: str) -> None:
    assert DOC.archs(kind, own) == expected


def test_levels_that_differ_name_their_archs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.get("aiter"), "levels", {"rocm:gfx950": "compiled"})
    assert DOC.levels(registry.get("aiter")) == "compiled: rocm:gfx950; elsewhere declared"
    monkeypatch.setattr(registry.get("aiter"), "levels", {"rocm": "contract"})
    assert DOC.levels(registry.get("aiter")) == "contract"


@pytest.mark.parametrize(("command", "code"), [*commands(SELECTION), *commands(README)],
                         ids=lambda value: str(value)[:60])
def test_command_runs_as_stated(command: str, code: int, tmp_path: Path, request: pytest.FixtureRequest,
                                capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    argv = [str(tmp_path) if word == "DIR" else word for word in shlex.split(command, comments=True)[1:]]
    if argv[0] == "generate":
        request.getfixturevalue("default_model")
        argv += ["--max-new-tokens", "1"]  # as shown, but shorter
    assert main(argv) == code, capsys.readouterr().err


def test_there_are_commands_to_run() -> None:
    shown = {command.split()[1] for command, _ in [*commands(SELECTION), *commands(README)]}
    assert shown >= {"explain", "backends", "devices", "generate"}
    assert {code for _, code in commands(SELECTION)} == {0, 1, 2}


def test_the_example_shows_what_the_page_explains() -> None:
    example = next(block for block in re.findall(r"```\n(\$ hal .*?)```", SELECTION, re.S))
    for part in ("packages", "page_size", "rank", "chosen", "  no ", "other platforms:", "hint:"):
        assert part in example, part
    assert max(map(len, example.splitlines())) <= 100


def test_selection_page_names_every_setting_and_variable() -> None:
    section = SELECTION.partition("## Hints")[2].partition("##")[0]
    for name in hints.SETTINGS:
        assert re.search(rf"\b{name}\b", section), name
    assert f"At most {('zero', 'one', 'two', 'three', 'four', 'five', 'six')[hints.MOST]}" in section
    named = set(re.findall(r"`(HAL_\w+)`", SELECTION))
    assert {"HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS"} <= named <= set(env.VARIABLES)


def test_readme_says_which_backends_have_an_adapter_and_their_level() -> None:
    """README's table under "Where it stands", against the declarations."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (yes|not yet) \| (.*?) \|$", text[text.index("## Where it stands"):], re.M)
    written = {name for names, adapter, _ in rows if adapter == "yes" for name in re.findall(r"`(\w+)`", names)}
    assert written == {name for name in BACKENDS if registry.get(name).adapter}
    assert not any(registry.get(name).levels for name in BACKENDS), "a level was reached: say so in README"
