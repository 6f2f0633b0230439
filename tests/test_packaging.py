"""The repository's own promises: what is packaged, what is pinned, what must not be written down."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hal.platforms import table

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {name: [Requirement(r) for r in requirements]
          for name, requirements in PYPROJECT["project"]["optional-dependencies"].items()}
CONSTRAINTS = {canonicalize_name(name): version for name, _, version in
               (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
                if line.strip() and not line.startswith("#"))}
TORCH = CONSTRAINTS["torch"]


def git(*args: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return done.stdout


def repository_files() -> list[Path]:
    """Every file that is in git or would be: what git ignores is left out."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({ROOT / name for name in names if name and (ROOT / name).is_file()})


def install_lines() -> list[str]:
    """Every logical line of a script or page that installs something with pip."""
    pages = ["Makefile", ".ci/*", "ci/*", ".github/**/*.yml", "*.md", "docs/**/*.md"]
    files = [file for page in pages for file in sorted(ROOT.glob(page)) if file.is_file()]
    lines = [line for file in files for line in file.read_text().replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.search(r"(pip\d?\b|\$\(pip\)|\buv\b).*\binstall\b", line)]


def test_packages_are_those_on_disk() -> None:
    # os.walk follows hal/backends and hal/platforms, which are links.
    on_disk = set()
    for folder, _, files in os.walk(ROOT / "hal", followlinks=True):
        if any(name.endswith(".py") for name in files):
            assert "__init__.py" in files, f"{folder} has modules but no __init__.py"
            on_disk.add(".".join(Path(folder).relative_to(ROOT).parts))
    assert on_disk == set(PYPROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", ["backends", "platforms"])
def test_link(name: str) -> None:
    link = ROOT / "hal" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    entry = git("ls-files", "--stage", f"hal/{name}")
    assert not entry or entry.startswith("120000 "), f"hal/{name} is committed as no link: {entry}"
    assert PYPROJECT["tool"]["setuptools"]["package-dir"][f"hal.{name}"] == name


def test_hal_depends_on_nothing_and_no_extra_can_replace_torch() -> None:
    assert PYPROJECT["project"]["dependencies"] == []
    for extra, requirements in EXTRAS.items():
        # accelerate depends on torch; "mate" on the public index is another project than Moore Threads' MATE.
        names = {canonicalize_name(r.name) for r in requirements}
        assert not names & {"torch", "torchvision", "torchaudio", "accelerate", "mate"}, extra


def test_constraints_pin_what_the_extras_ask_for() -> None:
    for requirement in [r for requirements in EXTRAS.values() for r in requirements]:
        name = canonicalize_name(requirement.name)
        assert name in CONSTRAINTS, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(CONSTRAINTS[name]), f"{requirement} against {CONSTRAINTS[name]}"
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in CONSTRAINTS.values()), CONSTRAINTS


def test_every_install_of_torch_is_pinned() -> None:
    lines = install_lines()
    for line in lines:
        # "torch" as a requirement: not torch-npu, not part of a path or of another name.
        for version in re.findall(r"(?<![\w./-])torch(?![\w./-])(?:==([\w.+]+))?", line.partition(" #")[0]):
            assert version == TORCH, f"torch is not pinned to {TORCH} in: {line}"
        if "accelerate" in line:
            assert "--no-deps" in line, f"accelerate would bring a torch of its own: {line}"
    assert any(f"torch=={TORCH}" in line for line in lines)
    assert f"torch=={TORCH}" in (ROOT / "Makefile").read_text()


def test_every_version_of_torch_in_the_scripts_is_the_pinned_one() -> None:
    for script in [ROOT / "Makefile", *sorted((ROOT / "ci").glob("*.*"))]:
        for version in re.findall(r"\btorch==([0-9][\w.+]*)", script.read_text()):
            assert version == TORCH, f"{script.name} says torch=={version}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"])
def test_page_exists(name: str) -> None:
    assert (ROOT / name).read_text().strip()


def test_no_file_names_a_machine_or_a_package_host() -> None:
    # Spelled apart, so that this file does not find itself.
    folders = [rf"(?<![\w.~-])/{name}(?![\w-])" for name in ("wo" "rk", "ro" "ot", "ho" "me", "Us" "ers")]
    folders += ["/tm" "p/work", "/tm" "p/infra", "/op" "t/pypi", "/op" "t/wheels"]
    hosts = [r"py" r"pi\.org", "python" "hosted", r"download\.py" r"torch", r"ana" r"conda\.org", "np" "mjs"]
    forbidden = re.compile("|".join(folders + hosts))
    for path in repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found = forbidden.search(line)
            assert not found, f"{path.relative_to(ROOT)}:{number} names {found.group()!r}" if found else ""


@pytest.mark.parametrize("kind", ["cuda", "rocm", "npu", "musa", "cpu"])
def test_the_ci_matrix_of_a_platform_names_its_archs(kind: str) -> None:
    matrix = yaml.safe_load((ROOT / "ci" / f"{kind}.yml").read_text())
    assert matrix["platform"] == kind
    assert os.access(ROOT / matrix["script"], os.X_OK)
    assert tuple(matrix["anywhere"]["archs"]) == table()[kind].ARCHS
    assert {r["arch"] for r in matrix["runners"]} <= set(table()[kind].ARCHS)


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "ci").glob("*.sh")))
def test_script_is_executable_and_parses(script: str) -> None:
    path = ROOT / "ci" / script
    assert script == "common.sh" or os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
