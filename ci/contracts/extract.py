"""Extract the signatures that HAL's adapters rely on from the vendors' releases, into ci/contracts/*.json.

    python ci/contracts/extract.py [--check] [--wheels FOLDER] [--git NAME=CHECKOUT ...] [PACKAGE ...]

What to read is in sources.json: per package its releases (a wheel that pip downloads, or a tag or commit of the git
checkout given with --git), and per function the files that may define it, the first that does being taken. Sources
are parsed, never imported: `ast` for .py and .pyi; the op schemas that a compiled library carries as text for .so;
the prototypes of a C++ header for .h.

One JSON file a package: `releases` says where each came from; `functions` holds every distinct signature once, with
the releases that have it, so a change between two releases is two entries. A parameter is [name, kind] or [name, kind,
default]; a default is source text. `signatures` are overloads; most functions have one. A release that no entry of a
function names does not have that function.

--check writes nothing and says which committed file differs. Exit status: 0 all the same (or written), 1 something
differs, 2 something could not be read; what was not read is named.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = HERE / "sources.json"
# What a wheel may be built for: pip takes the best of these, whatever machine this is. Only text is read.
LINUX = ("manylinux1_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64",
         "manylinux_2_31_x86_64", "manylinux_2_34_x86_64", "manylinux_2_35_x86_64")
PYTHON = "3.11"
Reader = Callable[[str], "bytes | None"]
Parameters = list[list[str]]


class NotRead(Exception):
    """A release that could not be read, and what to do about it."""


# --- reading a release ---

def wheel_reader(requirement: str, platforms: list[str], folder: Path) -> tuple[Reader, str]:
    """Files of one wheel, downloaded into `folder` unless it lies there already."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                   "--python-version", PYTHON, "--dest", str(folder), requirement]
        command += [part for platform in platforms for part in ("--platform", platform)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise NotRead(f"{requirement}: pip download failed: {result.stderr.strip().splitlines()[-1:]}")
    found = sorted(folder.glob(pattern))
    if not found:
        raise NotRead(f"{requirement}: pip downloaded no {pattern}")
    archive = zipfile.ZipFile(found[0])
    names = set(archive.namelist())
    return (lambda path: archive.read(path) if path in names else None), f"wheel {found[0].name}"


def git_reader(checkout: Path, revision: str) -> tuple[Reader, str]:
    """Files of one commit of a git checkout; its work tree is not looked at."""
    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True)

    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    if commit.returncode:
        raise NotRead(f"{revision} is no commit of {checkout}: fetch its tags")
    sha = commit.stdout.decode().strip()
    names = set(git("ls-tree", "-r", "--name-only", sha).stdout.decode().splitlines())
    return (lambda path: git("show", f"{sha}:{path}").stdout if path in names else None), f"git {sha[:12]} ({revision})"


# --- parsing ---

def definitions(body: list[ast.stmt], names: list[str]) -> Iterator[ast.FunctionDef]:
    """The `def`s of a dotted name, in order; those under `if`, `try` and `with` count too."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and [node.name] == names:
            yield node
        elif isinstance(node, ast.ClassDef) and node.name == names[0] and len(names) > 1:
            yield from definitions(node.body, names[1:])
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from definitions(node.body, names)
            yield from definitions(getattr(node, "orelse", []), names)
            for handler in getattr(node, "handlers", []):
                yield from definitions(handler.body, names)


def parameters(node: ast.FunctionDef) -> Parameters:
    """[name, kind] or [name, kind, default] of every parameter; kinds are those of inspect.Parameter."""
    a = node.args
    positional = [(arg, "positional_only") for arg in a.posonlyargs]
    positional += [(arg, "positional_or_keyword") for arg in a.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(a.defaults))
    rows: list[tuple[ast.arg, str, ast.expr | None]] = [
        (arg, kind, default) for (arg, kind), default in zip(positional, [*defaults, *a.defaults])]
    rows += [(a.vararg, "var_positional", None)] if a.vararg else []
    rows += [(arg, "keyword_only", default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
    rows += [(a.kwarg, "var_keyword", None)] if a.kwarg else []
    return [[arg.arg, kind] + ([] if default is None else [ast.unparse(default)]) for arg, kind, default in rows]


def from_source(text: str, names: list[str], path: str) -> list[Parameters]:
    """Signatures of a dotted name in Python source. A stub's overloads all count, a module's do not."""
    found = list(definitions(ast.parse(text).body, names))
    if not path.endswith(".pyi"):
        found = [node for node in found if not any("overload" in ast.unparse(d) for d in node.decorator_list)]
    signatures: list[Parameters] = []
    for node in found:
        if parameters(node) not in signatures:
            signatures.append(parameters(node))
    if len(signatures) > 1 and not path.endswith(".pyi"):
        raise NotRead(f"{path} defines {'.'.join(names)} {len(signatures)} times, differently: say which one counts")
    return signatures


def from_library(content: bytes, name: str, path: str) -> str | None:
    """The op schema `name(...) -> ...` among the strings of a compiled library. Constants that code builds up lie there
    without an end, so where no string begins with the name, one that has it further on will do."""
    start, schema = f"{name}(".encode(), re.compile(rb"[ -~]*?\) -> [ -~]+")
    alone, inside = set[bytes](), set[bytes]()
    at = content.find(start)
    while at >= 0:  # a search by expression alone takes minutes in these libraries
        rest = schema.match(content, at + len(start))
        if rest:
            (inside if re.match(rb"[\w.]", content[at - 1:at]) else alone).add(start + rest.group())
        at = content.find(start, at + 1)
    found = alone or inside
    if len(found) > 1:
        raise NotRead(f"{path} has {len(found)} schemas of {name}: say which one counts")
    space = "atb" if "atb" in path.rpartition("/")[2] else "npu"
    return f"{space}::{found.pop().decode()}" if found else None


def from_header(text: str, name: str, path: str) -> str | None:
    """The op schema behind a C++ prototype, as far as it tells: what is optional there has None for a default here; of
    defaults it knows nothing more."""
    found = set(re.findall(rf"\b\w[\w:&]* {re.escape(name)}\(([^)]*)\);", text))
    if len(found) > 1:
        raise NotRead(f"{path} has {len(found)} prototypes of {name}: say which one counts")
    if not found:
        return None
    kinds = {"at::Tensor": "Tensor", "int64_t": "int", "double": "float", "bool": "bool"}
    parameters = []
    for text in found.pop().split(","):
        kind, _, parameter = re.sub(r"\bconst\b|&", " ", text).strip().rpartition(" ")
        optional = re.fullmatch(r"(?:c10|std)::optional<\s*(.*?)\s*>", kind.strip())
        kind = kinds.get(optional.group(1) if optional else kind.strip(), "")
        if not kind:
            raise NotRead(f"{path}: {text.strip()!r} of {name} is of no kind that is known here ({', '.join(kinds)})")
        parameters.append(f"{kind}? {parameter}=None" if optional else f"{kind} {parameter}")
    return f"atb::{name}({', '.join(parameters)}) -> ()"


def one_function(reader: Reader, dotted: str, files: list[str]) -> tuple[str, dict[str, Any]] | None:
    """(file, {"signatures": ...} or {"schema": ...}), None where no file of the release defines it."""
    for path in files:
        content = reader(path)
        if content is None:
            continue
        if path.endswith(".so"):
            schema = from_library(content, dotted.partition(".")[2], path)  # with its overload: "op.out"
            if schema is not None:
                return path, {"schema": schema}
            continue
        if path.endswith(".h"):
            schema = from_header(content.decode(), dotted.partition(".")[2], path)
            if schema is not None:
                return path, {"schema": schema}
            continue
        # The public name's module may re-export it: what is looked for is the name after the module.
        names = [part for part in dotted.split(".") if part[:1].isupper()] + [dotted.rpartition(".")[2]]
        signatures = from_source(content.decode(), names, path)
        if signatures:
            return path, {"signatures": signatures}
    return None


# --- one package ---

def extract(package: str, source: dict[str, Any], checkouts: dict[str, Path], folder: Path) -> dict[str, Any]:
    releases: dict[str, Any] = {}
    functions: dict[str, list[dict[str, Any]]] = {dotted: [] for dotted in source["functions"]}
    for release, where in source["releases"].items():
        if "git" in source:
            if source["git"] not in checkouts:
                raise NotRead(f"{package} is read from git: give --git {source['git']}=CHECKOUT")
            reader, origin = git_reader(checkouts[source["git"]], where)
        else:
            reader, origin = wheel_reader(where, source.get("platforms", LINUX), folder)
        files: set[str] = set()
        for dotted, candidates in source["functions"].items():
            found = one_function(reader, dotted, candidates)
            if found is None:
                continue
            files.add(found[0])
            entry = next((e for e in functions[dotted] if {k: v for k, v in e.items() if k != "releases"} == found[1]),
                         None)
            if entry is None:
                functions[dotted].append({"releases": [release], **found[1]})
            else:
                entry["releases"].append(release)
        ways = {".so": "op schemas among the library's strings", ".h": "prototypes of a C++ header"}
        how = ", ".join(text for end, text in ways.items() if any(f.endswith(end) for f in files)) or "ast"
        releases[release] = {"from": origin, "files": sorted(files), "how": how}
    empty = [dotted for dotted, entries in functions.items() if not entries]
    if empty:
        raise NotRead(f"{package}: no release defines {', '.join(empty)}: correct sources.json")
    return {"package": package, "releases": releases, "functions": functions}


def dated(contract: dict[str, Any], committed: dict[str, Any] | None) -> dict[str, Any]:
    """The contract with the day each release was read; a release that reads as before keeps its day."""
    today = datetime.date.today().isoformat()
    same = committed is not None and undated(committed)["functions"] == contract["functions"]
    for release, row in contract["releases"].items():
        before = (committed or {}).get("releases", {}).get(release, {})
        unchanged = same and {k: v for k, v in before.items() if k != "date"} == row
        row["date"] = before["date"] if unchanged else today
    return contract


def undated(contract: dict[str, Any]) -> dict[str, Any]:
    """The contract without the days, which no comparison counts."""
    rows = {release: {k: v for k, v in row.items() if k != "date"} for release, row in contract["releases"].items()}
    return {**contract, "releases": rows}


def dump(value: Any, depth: int = 0) -> str:
    """JSON with one parameter a line, so that a change shows as the line that changed."""
    pad, flat = " " * (depth + 1), json.dumps(value, ensure_ascii=False)
    leaf = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if leaf or not isinstance(value, (dict, list)) or not value:
        return flat
    if isinstance(value, dict):
        rows = [f"{pad}{json.dumps(key)}: {dump(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"
    return "[\n" + ",\n".join(pad + dump(item, depth + 1) for item in value) + "\n" + " " * depth + "]"


def differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What differs between a committed contract and a fresh one, by function and release."""
    if old is None:
        return ["is not committed"]
    rows = []
    for dotted in sorted(old["functions"].keys() | new["functions"].keys()):
        def flat(contract: dict[str, Any], dotted: str = dotted) -> dict[str, Any]:
            return {release: {k: v for k, v in entry.items() if k != "releases"}
                    for entry in contract["functions"].get(dotted, []) for release in entry["releases"]}
        before, after = flat(old), flat(new)
        rows += [f"{dotted} differs in {release}" for release in sorted(before.keys() | after.keys())
                 if before.get(release) != after.get(release)]
    if not rows and undated(old) != undated(new):
        rows.append("says another source of a release")
    return rows


def main(arguments: list[str] | None = None) -> int:
    sources = json.loads(SOURCES.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"default: all of {', '.join(sources)}")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    parser.add_argument("--wheels", type=Path, help="folder to download into and to keep (default: a temporary one)")
    parser.add_argument("--git", action="append", default=[], metavar="NAME=CHECKOUT",
                        help="where a repository lies: " + ", ".join(sorted({s["git"] for s in sources.values()
                                                                            if "git" in s})))
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.packages) - sources.keys())
    if unknown:
        parser.error(f"unknown package {unknown[0]!r} (known: {', '.join(sources)})")
    if any("=" not in text for text in options.git):
        parser.error("--git takes NAME=CHECKOUT")
    checkouts = {name: Path(path) for name, _, path in (text.partition("=") for text in options.git)}
    status = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.wheels or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for package in options.packages or sources:
            target = HERE / f"{package}.json"
            committed = json.loads(target.read_text()) if target.is_file() else None
            try:
                fresh = extract(package, sources[package], checkouts, folder)
            except NotRead as error:
                print(f"{package}: NOT READ: {error}")
                status = 2
                continue
            changes = differences(committed, fresh)
            for change in changes:
                print(f"{package}: {change}")
            if options.check:
                status = max(status, 1 if changes else 0)
            else:
                target.write_text(dump(dated(fresh, committed)) + "\n")
            print(f"{package}: {len(fresh['releases'])} releases, {len(fresh['functions'])} functions"
                  f"{'' if changes else ', as committed'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
