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
from hal.capabilities import FEATURES, LEVELS, HeadDims, PageSizes
from hal.platforms import table as platform_table

ROOT = Path(__file__).parents[1]
SELECTION, README = (ROOT / "docs" / "selection.md").read_text(), (ROOT / "README.md").read_text()
SERVING = (ROOT / "docs" / "serving.md").read_text()
BACKENDS_PAGE = (ROOT / "docs" / "backends.md").read_text()
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


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """Every backend's rows, asked once."""
    return {name: DOC.describe(registry.get(name)) for name in BACKENDS}


def test_backends_page_is_up_to_date(described: dict[str, Any]) -> None:
    assert DOC.page(described) == BACKENDS_PAGE, f"docs/backends.md is stale; {FIX}"


def test_selection_page_is_up_to_date() -> None:
    assert DOC.examples(SELECTION) == SELECTION, f"docs/selection.md is stale; {FIX}"


def test_pages_are_all_that_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DOC, "page", lambda: "a")
    monkeypatch.setattr(DOC, "examples", lambda text: "b")
    assert DOC.pages() == {ROOT / "docs" / "backends.md": "a", ROOT / "docs" / "selection.md": "b"}


def test_it_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "ci/backends_doc.py", "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert "--check" in done.stdout


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


def test_a_changed_declaration_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch, described: dict[str, Any]) -> None:
    backend = registry.get("flash_attn_2")
    for name, value in (("platforms", {"cuda": ("sm75", "sm80", "sm86", "sm89")}), ("dtypes", ("float32",)),
                        ("kv_cache_dtypes", ("fp8_e5m2",)), ("phases", ("decode",)), ("features", frozenset({"sinks"})),
                        ("requires", frozenset({"mla"})), ("graph_level", "always"), ("max_decode_query_len", 3),
                        ("adapter", False), ("levels", {"cuda": "hardware"}), ("mla_prefill", ((192, 128),)),
                        ("head_dim_pairs", None), ("reads_cache", False), ("packages", ()),
                        ("page_sizes", PageSizes(16)), ("head_dims", HeadDims(only=(128,))), ("nan_safe_tail", True),
                        ("attention_types", ("decoder",)), ("calls", frozenset({"out"})), ("kv_layout", "[x]")):
        with monkeypatch.context() as patch:
            patch.setattr(backend, name, value)
            assert DOC.describe(backend) != described["flash_attn_2"], name
    assert DOC.describe(backend) == described["flash_attn_2"]
    rows = {**described["flash_attn_2"], "Backends": ("another", *described["flash_attn_2"]["Backends"][1:])}
    assert DOC.page({**described, "flash_attn_2": rows}) != BACKENDS_PAGE
    before = DOC._sources()
    monkeypatch.setattr(backend, "sources", ())
    assert DOC._sources() != before


@pytest.mark.parametrize("name", BACKENDS)
def test_one_feature_and_one_dtype_of_each_backend_are_seen(name: str, monkeypatch: pytest.MonkeyPatch,
                                                            described: dict[str, Any]) -> None:
    backend = registry.get(name)
    if not any(table.endswith(": features") for table in described[name]):
        assert "nothing: " in described[name]["Backends"][4]  # no capability of it is served, and the page says why
        return
    kept = backend.features & backend.requires
    optional = sorted(backend.features - backend.requires - {"mla", "context_parallel"})
    for attribute, value in (("features", backend.features - {optional[0]} if optional else kept | {"deterministic"}),
                             ("dtypes", backend.dtypes[1:] if len(backend.dtypes) > 1 else ("float32",))):
        with monkeypatch.context() as patch:
            patch.setattr(backend, attribute, value)
            assert DOC.describe(backend) != described[name], attribute


def tables(page: str) -> dict[str, list[list[str]]]:
    """Heading -> the cells of every row of its tables, heads included."""
    parts = re.split(r"^## (.*)$", page, flags=re.M)
    return {heading: [re.split(r"(?<!\\) \| ", line[2:-2]) for line in body.splitlines() if line.startswith("| ")]
            for heading, body in zip(parts[1::2], parts[2::2])}


PAGE = tables(BACKENDS_PAGE)
# The field's systems, as the documentation of SGLang, vLLM and transformers has them: HAL's backend, or the capability
# that serves it -> what their users type.
SYSTEMS: dict[str, tuple[str, ...]] = {
    "torch": ("torch_native", "torch_sdpa", "TORCH_SDPA"), "cpu": ("CPU_ATTN", "intel_amx"),
    "flex_attention": ("FLEX_ATTENTION",), "triton": ("TRITON_ATTN", "triton"), "triton_mla": ("TRITON_MLA",),
    "tree_mask": ("TREE_ATTN",), "flash_attn_2": ("FLASH_ATTN", "fa2"), "flash_attn_3": ("FLASH_ATTN", "fa3"),
    "flash_attn_4": ("fa4",), "flash_attn_diffkv": ("FLASH_ATTN_DIFFKV",), "flash_attn_mla": ("FLASH_ATTN_MLA",),
    "flashinfer": ("FLASHINFER",), "trtllm_mha": ("FLASHINFER", "TRTLLM_MHA"), "flashinfer_mla": ("FLASHINFER_MLA",),
    "trtllm_mla": ("TRTLLM_MLA", "trtllm_mla", "FLASHINFER_MLA"), "flashinfer_mla_sparse": ("FLASHINFER_MLA_SPARSE",),
    "flashmla": ("FLASHMLA", "flashmla"), "flashmla_sparse": ("FLASHMLA_SPARSE",),
    "cutlass_mla": ("CUTLASS_MLA", "cutlass_mla"), "cudnn": (), "trtllm_ragged": ("TRTLLM_RAGGED",),
    "dual_chunk_flash_attn": ("dual_chunk_flash_attn",), "ascend": ("ascend",), "ascend_mla": ("ascend",),
    "mate": ("fa3",), "mate_mla": ("fa3",), "aiter": ("ROCM_AITER_FA", "aiter"),
    "aiter_unified": ("ROCM_AITER_UNIFIED_ATTN",), "rocm_attn": ("ROCM_ATTN",), "aiter_mla": ("ROCM_AITER_MLA",),
    "aiter_mla_sparse": ("ROCM_AITER_MLA_SPARSE",), "aiter_triton_mla": ("ROCM_AITER_TRITON_MLA",), "wave": ("wave",),
}


def test_every_system_of_the_field_has_its_row() -> None:
    rows = {row[0].strip("`"): row for row in PAGE["Backends"]}
    typed = {row[0].strip("`"): row[1] for row in PAGE["What users of other systems type"]}
    for system, aliases in SYSTEMS.items():
        if system == "tree_mask":  # a capability: a column, and a name for all that have it
            head, _, *features = PAGE["Dense attention: features"]
            serving = {row[0] for row in features if row[head.index("tree_mask")] not in ("-", "")}
            assert set(typed["TREE_ATTN"].split(", ")) == serving
            continue
        assert system in rows, system
        for alias in aliases:
            assert alias == system or f"`{system}`" in typed[alias], (system, alias)


def test_one_row_for_each_backend() -> None:
    for heading in ("Backends", "Where each runs", "What calls may use"):
        assert [row[0].strip("`") for row in PAGE[heading][2:]] == list(BACKENDS), FIX
    for heading, (_, columns) in DOC.TABLES.items():
        assert {len(row) for row in PAGE[heading]} == {len(columns)}, heading
    served = {row[0].strip("`") for family in ("Dense attention", "MLA") for row in PAGE[f"{family}: features"][2:]}
    assert served == set(BACKENDS) - {"dual_chunk_flash_attn"}
    named = {word for row in PAGE["Dense attention: features"][:1] for word in row}
    assert named >= set(FEATURES) - {"mla"}
    assert all(level in BACKENDS_PAGE for level in LEVELS)


def test_the_contents_lead_to_every_heading() -> None:
    links = re.findall(r"^- \[(.*)\]\(#(.*)\)$", BACKENDS_PAGE, re.M)
    assert [title for title, _ in links] == list(PAGE)
    assert all(re.fullmatch(r"[a-z0-9-]+", anchor) for _, anchor in links)
    assert len({anchor for _, anchor in links}) == len(links)


def test_links_to_evidence_exist() -> None:
    linked = re.findall(r"\]\((evidence/[^)]*)\)", BACKENDS_PAGE)
    assert linked
    for link in linked:
        assert (ROOT / "docs" / link).is_file(), link


def cell(heading: str, backend: str, column: str) -> str:
    head, *rows = PAGE[heading]
    return next(row[head.index(column)] for row in rows if row[0] == f"`{backend}`")


@pytest.mark.parametrize(("heading", "backend", "column", "expected"), [
    # Facts of the vendors, where archs, phases or combinations differ.
    ("Dense attention: features", "mate", "sinks", "-"),  # beside a window only
    ("Dense attention: features", "mate", "sinks + sliding_window", "yes"),
    ("Dense attention: features", "flash_attn_2", "sinks", "-"),
    ("Dense attention: dtypes and calls", "triton", "dtypes", "float16, bfloat16 (sm80..sm121, rocm), float32"),
    ("Dense attention: dtypes and calls", "flash_attn_4", "KV dtypes", "-"),
    ("Dense attention: shapes", "ascend", "page sizes", "128"),
    ("Dense attention: shapes", "aiter", "page sizes", "16, 1024"),
    ("MLA: shapes", "flashmla", "page sizes", "64"),
    ("MLA: shapes", "trtllm_ragged", "page sizes", "reads no cache"),
    ("MLA: dtypes and calls", "flashinfer_mla", "KV dtypes", "fp8_e4m3 (sm90)"),
    ("MLA: features", "flashmla_sparse", "sparse", "yes"),
    ("Backends", "cutlass_mla", "serves", "MLA decode"),
    ("Where each runs", "flash_attn_3", "cuda", "sm90"),
    ("Where each runs", "torch", "npu", "npu"),
])
def test_cells(heading: str, backend: str, column: str, expected: str) -> None:
    assert cell(heading, backend, column) == expected


def test_what_a_model_gets() -> None:
    head, _, *rows = PAGE["What a model gets"]
    split = rows.index(head)
    now, later = ({row[0]: dict(zip(head, row)) for row in part} for part in (rows[:split], rows[split + 2:]))
    for part in (now, later):  # every arch is in one row
        assert {name.partition(":")[0] for name in part} == {"cuda", "rocm", "npu", "musa", "cpu"}
    assert now["cuda: sm90"]["sinks and window (gpt-oss)"] == "flash_attn_3"
    assert now["cpu"]["MLA"] == "cpu"
    assert later["cuda: sm100, sm103"]["sinks and window (gpt-oss)"] == "trtllm_mha"
    assert later["cuda: sm100, sm103"]["MLA"] == "trtllm_ragged / trtllm_mla"
    assert now["npu: ascend910a, ascend310p"]["dense bf16"] == "none"
    assert not {name for row in now.values() for cell in list(row.values())[1:] for name in cell.split(" / ")
                if name != "none" and not registry.get(name).adapter}


def test_priorities_have_every_arch_and_both_kinds() -> None:
    text = BACKENDS_PAGE.partition("## Priorities")[2].partition("\n## ")[0]
    for title, wanted in {"Dense, prefill": "cuda: sm90 | flash_attn_3",
                          "Dense, decode": "cuda: sm100, sm103 | trtllm_mha",
                          "MLA, prefill": "cuda: sm100, sm103 | trtllm_ragged",
                          "MLA, decode": "cuda: sm75..sm90 | flash_attn_mla"}.items():
        part = text.partition(f"### {title}\n")[2].partition("###")[0]
        assert f"| {wanted} →" in part, title
    for mla, phase in ((False, "decode"), (True, "prefill"), (True, "decode")):
        for arch in ("sm80", "sm90", "sm120"):
            assert " → ".join(platform_table()["cuda"].priority(arch, mla, phase)) in text


@pytest.mark.parametrize(("own", "expected"), [
    (("sm90",), ["sm90"]), (("sm80", "sm90"), ["sm80", "sm90"]),
    (("sm80", "sm86", "sm87", "sm89", "sm120", "sm121"), ["sm80..sm89", "sm120", "sm121"]), ((), [])])
def test_runs_of_archs(own: tuple[str, ...], expected: list[str]) -> None:
    assert DOC.runs(own, platform_table()["cuda"].ARCHS) == expected


BOTH = {("sm80", "prefill"), ("sm80", "decode"), ("sm90", "prefill"), ("sm90", "decode")}


@pytest.mark.parametrize(("answer", "expected"), [
    (BOTH, "yes"), (set(), "-"), ({("sm80", "decode"), ("sm90", "decode")}, "decode"),
    ({("sm90", "prefill"), ("sm90", "decode")}, "sm90"), ({("sm90", "prefill")}, "prefill on sm90"),
    (BOTH - {("sm80", "prefill")}, "decode on sm80; sm90")])
def test_where(answer: set[tuple[str, str]], expected: str) -> None:
    assert DOC.where(frozenset(answer), frozenset(BOTH)) == expected


def test_levels_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    proven = {"torch": {"cpu:aarch64": ("hardware", "verify-cpu-aarch64-2026-01-02.json"),
                        "cpu:x86_64_v3": ("contract", "torch 2.6.0, 2.13.0")}}
    monkeypatch.setattr(DOC, "REACHED", proven)
    monkeypatch.setattr("hal.backend.REACHED", proven)
    text = DOC._levels()
    assert "| `torch` | hardware | aarch64 | [verify-cpu-aarch64-2026-01-02.json](evidence/verify-cpu-" in text
    assert "| `torch` | contract | x86_64_v3 | torch 2.6.0, 2.13.0 |" in text
    assert "| `torch` | declared | cuda, rocm, npu, musa, x86_64_v2, x86_64_v4, x86_64_v4_bf16 | - |" in text
    assert "`flash_attn_2`" in text.partition("Declared, on every arch of theirs")[2]
    assert DOC.describe(registry.get("torch"))["Backends"][-1] == "hardware"
    monkeypatch.setattr(registry.get("aiter"), "levels", {"rocm:gfx950": "compiled"})  # as one out of tree would
    assert "| `aiter` | compiled | gfx950 | - |" in DOC._levels()


@pytest.mark.parametrize(("command", "code"), [*commands(SELECTION), *commands(README), *commands(SERVING)],
                         ids=lambda value: str(value)[:60])
def test_command_runs_as_stated(command: str, code: int, tmp_path: Path, request: pytest.FixtureRequest,
                                monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    argv = [str(tmp_path) if word == "DIR" else word for word in shlex.split(command, comments=True)[1:]]
    if argv[0] == "generate":
        request.getfixturevalue("default_model")
        argv += ["--max-new-tokens", "1"]  # as shown, but shorter
    if argv[0] == "serve":
        request.getfixturevalue("default_model")
        # As shown, up to where it would listen: tests/test_serve_model.py goes on from there.
        monkeypatch.setattr("hal.serving.server.run", lambda settings: 0)
    assert main(argv) == code, capsys.readouterr().err


def test_there_are_commands_to_run() -> None:
    shown = {command.split()[1] for command, _ in [*commands(SELECTION), *commands(README)]}
    assert shown >= {"explain", "backends", "devices", "generate", "serve"}
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
    """README's table under "Where it stands", against the declarations and the levels derived."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (yes|not yet) \| (.*?) \|$", text[text.index("## Where it stands"):], re.M)
    written = {name for names, adapter, _ in rows if adapter == "yes" for name in re.findall(r"`(\w+)`", names)}
    assert written == {name for name in BACKENDS if registry.get(name).adapter}
    levels = {row[0].strip("`"): row[-1] for row in PAGE["Backends"]}
    for names, adapter, said in rows:
        for name in re.findall(r"`(\w+)`", names) if adapter == "yes" else ():
            named = [level for level in LEVELS if level in said]
            assert max(named, key=LEVELS.index, default=None) == levels[name], f"README says {said!r} of {name}"
    assert {levels[name] for name in set(levels) & set(BACKENDS) - written} == {"declared"}
