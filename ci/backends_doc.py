"""backends_doc.py [--check]: write what docs/ shows of the code.

docs/backends.md is made by executing: capabilities by asking selection (ci/asked.py), levels from hal/levels.py, orders
from the platforms, choices from hal.explain. In docs/selection.md every block that begins with "$ hal" gets the output
of its command as it is now. --check writes nothing: exit code 1 where a page is stale.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from asked import FEATURE_FIELDS, Answer, Family, ask, why_nowhere

import hal
from hal import registry
from hal.__main__ import main as hal_main
from hal.backend import AttentionBackend
from hal.backends import ALIASES, BACKENDS
from hal.capabilities import LEVELS
from hal.config import AttentionConfig
from hal.levels import REACHED
from hal.packages import Packages
from hal.platform import Platform
from hal.platforms import KINDS, table

ROOT = Path(__file__).resolve().parents[1]
# Platforms in the order of the page.
PLATFORMS = tuple(sorted(KINDS, key=("cuda", "rocm", "npu", "musa", "cpu").index))
# heading -> (what stands above the table, its columns). Tables of backends: one row each.
TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Backends": (
        "Every backend that HAL declares. One without an adapter can be asked about (`hal explain`), not used. "
        "Of several packages any one will do; which of them is taken follows the configuration. **level**: the highest "
        "reached anywhere; [Levels](#levels) has them all.",
        ("backend", "what users type", "packages", "adapter", "serves", "level")),
    "Where each runs": (
        "Archs where the base shape is served.",
        ("backend", *PLATFORMS)),
    "Dense attention: features": ("", ("backend", *(name for name in FEATURE_FIELDS))),
    "Dense attention: dtypes and calls": (
        "**KV dtypes**: beside the model's own. **query tokens**: of one sequence in a decode call, of those asked "
        "(speculation). **graph**: what a captured decode may hold.",
        ("backend", "dtypes", "KV dtypes", "attention types", "query tokens", "graph")),
    "Dense attention: shapes": (
        "What was accepted of the sizes asked. **preferred**: the page size where nobody asks for one. **unequal**: "
        "head dims of keys and values that differ. **asked with**: the base shape.",
        ("backend", "page sizes", "preferred", "head dims", "unequal", "asked with")),
    "MLA: features": ("", ("backend", *(name for name in FEATURE_FIELDS))),
    "MLA: dtypes and calls": (
        "As for dense attention.", ("backend", "dtypes", "KV dtypes", "query tokens", "graph")),
    "MLA: shapes": (
        "**absorbed**: widths of the cache, keys and values. **expanded**: widths of prefill that reads no cache.",
        ("backend", "page sizes", "preferred", "absorbed", "expanded", "asked with")),
    "What calls may use": (
        "As declared, for no configuration asks for these; an adapter refuses the others by name and `hal verify` "
        "tries each. **graph level**: what decode may be captured. **NaN-safe tail**: NaN in the unused slots of a "
        "page does no harm.",
        ("backend", "calls", "graph level", "MLA prefill", "cache layout", "NaN-safe tail")),
}
# What a model gets: column -> its configuration.
MODELS: Mapping[str, AttentionConfig] = {
    "dense bf16": AttentionConfig(),
    "sliding window": AttentionConfig(sliding_window=4096),
    "sinks and window (gpt-oss)": AttentionConfig(num_heads=64, num_kv_heads=8, head_dim=64, sliding_window=128,
                                                  sinks=True),
    "fp8 KV": AttentionConfig(kv_cache_dtype="fp8_e4m3"),
    "MLA": AttentionConfig(num_heads=16, mla=True, softmax_scale=0.1147),
    "sparse MLA": AttentionConfig(num_heads=16, mla=True, sparse=True, softmax_scale=0.1147),
    "encoder": AttentionConfig(num_heads=12, num_kv_heads=12, head_dim=64, attention_type="encoder_only",
                               causal=False),
}
# NVIDIA's archs with some of their cards (its page "CUDA GPU Compute Capability").
CARDS: Mapping[str, str] = {
    "sm75": "T4, RTX 20", "sm80": "A100, A30", "sm86": "A10, A40, RTX 30", "sm87": "Jetson Orin",
    "sm89": "L4, L40S, RTX 40", "sm90": "H100, H200, GH200", "sm100": "B200, GB200", "sm103": "B300, GB300",
    "sm110": "Jetson Thor", "sm120": "RTX 50, RTX PRO 6000 Blackwell", "sm121": "GB10 (DGX Spark)",
}
FLASH_ATTENTION = ("flash_attn_2", "flash_attn_3", "flash_attn_4", "flash_attn_diffkv", "flash_attn_mla")
ASKED_OF_IT: Mapping[str, AttentionConfig] = {
    "dense": AttentionConfig(), "page size 16": AttentionConfig(page_size=16),
    "sinks": AttentionConfig(sinks=True), "chunk": AttentionConfig(attention_chunk=64),
    "fp8 KV": AttentionConfig(kv_cache_dtype="fp8_e4m3"), "head dim 256": AttentionConfig(head_dim=256),
    "192/128": AttentionConfig(head_dim=192, head_dim_v=128),
    "MLA": AttentionConfig(num_heads=16, mla=True, softmax_scale=0.1147),
}
HEAD = """<!-- Generated by ci/backends_doc.py from what the code answers: change that, then run it again. -->
# Backends

What every backend serves, found by asking `hal.explain` about it on each arch that it declares, one thing at a time:
the base shape of the conformance grid with that one thing changed, every package and adapter assumed present.
Combinations do not fit a table; `hal explain` knows them.

"""
CELLS = """
How to read a cell: "yes" is wherever the base shape is served; an arch (`sm90`, or `cuda` for all of them) is there
only; `a..b` is every arch from a to b in the platform's own order; "prefill" or "decode" is that phase only; "-" is
nowhere; empty was not asked, for the contract excludes it.

"""
Rows = dict[str, tuple[str, ...]]


def page(described: Mapping[str, Rows] | None = None) -> str:
    """docs/backends.md. described: backend -> table -> row, where it is known already."""
    rows = described or {name: describe(registry.get(name)) for name in BACKENDS}
    sections = {heading: _note(note) + _table(columns, [own[heading] for own in rows.values() if heading in own])
                for heading, (note, columns) in TABLES.items()}
    sections |= {"What users of other systems type": _aliases(), "Levels": _levels(), "Priorities": _priorities(),
                 "What a model gets": _models(), "Which FlashAttention": _flash_attention(),
                 "What the rows were read from": _sources()}
    contents = "".join(f"- [{heading}](#{_anchor(heading)})\n" for heading in sections)
    return HEAD + contents + CELLS + "\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _note(text: str) -> str:
    return f"{text}\n\n" if text else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
                   for line in lines)


# --- one backend ---

def describe(backend: type[AttentionBackend]) -> Rows:
    """Table -> the backend's row in it; not in the tables of a family that it does not serve."""
    families = {"Dense attention": ask(backend, False), "MLA": ask(backend, True)}
    asked = {name: family for name, family in families.items() if family}
    everywhere = frozenset(where for family in asked.values() for where in family.base)
    name = f"`{backend.name}`"
    rows: Rows = {
        "Backends": (name, ", ".join(registry.aliases_of(backend.name)) or "-", _packages(backend),
                     "yes" if backend.adapter else "not written yet", _serves(backend, asked), _highest(backend)),
        "Where each runs": (name, *(_archs([a for a in _known(kind) if any(a == arch for arch, _ in everywhere)])
                                    or "-" for kind in PLATFORMS)),
        "What calls may use": (name, ", ".join(sorted(backend.calls)) or "-", backend.graph_level,
                               ", ".join(f"{d}/{dv}" for d, dv in backend.mla_prefill) or "-",
                               backend.kv_layout if backend.reads_cache else "reads no cache",
                               "yes" if backend.nan_safe_tail else "no")}
    for title, family in asked.items():
        def words(topic: str, phases: Sequence[str] = ("prefill", "decode"), family: Family = family) -> str:
            return _words(family, topic, phases)

        features = family.words["features"]
        base = frozenset(family.base)
        rows[f"{title}: features"] = (name, *("" if word not in features else where(features[word], base)
                                              for word in FEATURE_FIELDS))
        dense = (words("types"),) if title != "MLA" else ()
        rows[f"{title}: dtypes and calls"] = (name, words("dtypes"), words("KV dtypes"), *dense,
                                              words("tokens", ("decode",)), words("graph", ("decode",)))
        widths = ("absorbed", "expanded") if title == "MLA" else ("head dims", "unequal")
        rows[f"{title}: shapes"] = (name, words("page sizes"), _shares(family.preferred, family.reads),
                                    *map(words, widths), _shares(_inverted(family.base), base))
    return rows


def _packages(backend: type[AttentionBackend]) -> str:
    return " or ".join(p.distribution + (f" >= {p.minimum}" if p.minimum else "") for p in backend.packages) or "-"


def _serves(backend: type[AttentionBackend], asked: Mapping[str, Family]) -> str:
    """"dense; MLA prefill": the families, with the phase where it is one; why not, where it is nowhere."""
    parts = []
    for title, family in asked.items():
        phases = {phase for _, phase in family.base}
        short = {"Dense attention": "dense"}.get(title, title)
        parts.append(f"{short} {min(phases)}" if len(phases) == 1 else short)
    return "; ".join(parts) or f"nothing: {why_nowhere(backend)}"


def _inverted(base: Mapping[tuple[str, str], str]) -> dict[str, Answer]:
    return {shape: frozenset(key for key, own in base.items() if own == shape) for shape in base.values()}


def _words(family: Family, topic: str, phases: Sequence[str]) -> str:
    """"float16, bfloat16, float32 (sm90)": the words of a topic that are served, with where it is not everywhere."""
    asked = family.reads if topic in ("KV dtypes", "page sizes", "absorbed") else frozenset(family.base)
    asked = frozenset(family.base) - family.reads if topic == "expanded" else asked
    asked = frozenset(key for key in asked if key[1] in phases)
    if not asked:
        return "reads no cache" if topic in ("KV dtypes", "page sizes") else "-"
    return _shares({word: answer & asked for word, answer in family.words[topic].items()}, asked)


def _shares(answers: Mapping[str, Answer], asked: Answer) -> str:
    return ", ".join(word if answer == asked else f"{word} ({where(answer, asked)})"
                     for word, answer in answers.items() if answer) or "-"


def where(answer: Answer, base: Answer) -> str:
    """An answer beside the base: "yes", "-", "decode", "sm100, sm103", "decode on sm90; sm100"."""
    if answer == base or not answer:
        return "yes" if answer else "-"
    labels: dict[str, list[str]] = {}
    for arch in dict.fromkeys(arch for arch, _ in sorted(base)):
        phases = {phase for a, phase in answer if a == arch}
        if phases:
            whole = phases == {phase for a, phase in base if a == arch}
            labels.setdefault("" if whole else " and ".join(sorted(phases)), []).append(arch)
    if len(labels) == 1 and {arch for arch, _ in answer} == {arch for arch, _ in base}:
        return next(iter(labels))
    return "; ".join(f"{label} on {_archs(own)}" if label else _archs(own) for label, own in labels.items())


def _known(kind: str) -> tuple[str, ...]:
    return tuple(table()[kind].ARCHS)


def _archs(own: Sequence[str]) -> str:
    """"sm80..sm90, sm120": runs of three archs and more, in the platforms' order; the platform where all are there."""
    parts = []
    for kind in PLATFORMS:
        here = [arch for arch in _known(kind) if arch in own]
        parts += [kind] if here == list(_known(kind)) else runs(here, _known(kind))
    return ", ".join(parts)


def runs(own: Sequence[str], known: Sequence[str]) -> list[str]:
    """Runs of three archs and more shortened: ["sm80..sm90", "sm120"]."""
    found: list[list[str]] = []
    for arch in own:
        if found and known.index(arch) == known.index(found[-1][-1]) + 1:
            found[-1].append(arch)
        else:
            found.append([arch])
    return [text for run in found for text in ([f"{run[0]}..{run[-1]}"] if len(run) > 2 else run)]


# --- levels ---

def _levels_of(backend: type[AttentionBackend]) -> Iterator[tuple[str, str, str]]:
    """(arch, level, what proves it) on every arch that the backend declares."""
    for kind in PLATFORMS:
        if kind in backend.platforms:
            for arch in backend.platforms[kind] or _known(kind):
                level = backend.level(Platform(kind, arch, table()[kind].TORCH_DEVICE))
                proven = REACHED.get(backend.name, {}).get(f"{kind}:{arch}", ("", ""))
                yield arch, level, proven[1] if proven[0] == level else ""


def _highest(backend: type[AttentionBackend]) -> str:
    return max((level for _, level, _ in _levels_of(backend)), key=LEVELS.index)


def _levels() -> str:
    """Backend, level, proof: a line for each that differs; "declared" is said once for what nothing was proven of."""
    rows, bare = [], []
    for name in BACKENDS:
        groups: dict[tuple[str, str], list[str]] = {}
        for arch, level, proof in _levels_of(registry.get(name)):
            groups.setdefault((level, proof), []).append(arch)
        if set(groups) == {(LEVELS[0], "")}:
            bare.append(f"`{name}`")
            continue
        for level, proof in sorted(groups, key=lambda g: -LEVELS.index(g[0])):
            link = f"[{proof}](evidence/{proof})" if proof.endswith(".json") else proof or "-"
            rows.append((f"`{name}`", level, _archs(groups[level, proof]), link))
    note = (f"Lowest first: {', '.join(LEVELS)}; what each proves stands in the README. They are derived "
            "(`ci/levels.py`): from the records in [evidence](evidence/README.md) about exactly this code, and from "
            "the contract check against the releases named here.")
    return (f"{note}\n\n" + _table(("backend", "level", "archs", "proven by"), rows)
            + f"\nDeclared, on every arch of theirs: {', '.join(bare)}.\n")


# --- platforms ---

def _merged(kind: str, row: Callable[[str], tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Rows of a platform's archs, those that are alike in one."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for arch in _known(kind):
        groups.setdefault(row(arch), []).append(arch)
    for cells, own in groups.items():
        yield kind if tuple(own) == _known(kind) else f"{kind}: {', '.join(runs(own, _known(kind)))}", *cells


def _priorities() -> str:
    note = ("The order in which a platform's backends are tried; every other backend follows. Where dense attention "
            "that is not causal has an order of its own, it stands last.")

    def order(kind: str, arch: str, mla: bool, phase: str) -> str:
        return " → ".join(table()[kind].priority(arch, mla, phase))

    questions = {"Dense, prefill": (False, "prefill"), "Dense, decode": (False, "decode"),
                 "MLA, prefill": (True, "prefill"), "MLA, decode": (True, "decode")}
    text = f"{note}\n"
    for title, (mla, phase) in questions.items():
        rows = [row for kind in PLATFORMS
                for row in _merged(kind, lambda arch, k=kind, m=mla, p=phase: (order(k, arch, m, p),))]  # type: ignore[misc]
        text += f"\n### {title}\n\n" + _table(("platform and arch", "order"), rows)
    rows = [(f"{kind}: {arch}", " → ".join(names)) for kind in PLATFORMS
            for arch, names in getattr(table()[kind], "NON_CAUSAL", {}).items()]
    return text + "\n### Dense, not causal\n\n" + _table(("platform and arch", "order"), rows)


def _models() -> str:
    note = ("Prefill / decode, by `hal.explain` with every package assumed present; one name is both. All are "
            "bfloat16; \"none\" is an arch without it. An encoder has no decode.")
    text = f"{note}\n"
    for title, now in (("With the adapters that are written", True), ("When all adapters are written", False)):
        rows = [row for kind in PLATFORMS for row in _merged(kind, lambda arch, k=kind, n=now: tuple(  # type: ignore[misc]
            _choice(k, arch, n, name, config) for name, config in MODELS.items()))]
        text += f"\n### {title}\n\n" + _table(("platform and arch", *MODELS), rows)
    return text


def _choice(kind: str, arch: str, now: bool, name: str, config: AttentionConfig) -> str:
    # A device that has a name is here, so that adapters which are not written do not count.
    device = Platform(kind, arch, table()[kind].TORCH_DEVICE, name="assumed" if now else "")
    decision = hal.explain(config, device, packages=Packages.assumed())
    phases = (decision.prefill,) if name == "encoder" else (decision.prefill, decision.decode)
    return " / ".join(dict.fromkeys(phase.chosen or "none" for phase in phases))


def _flash_attention() -> str:
    """Which of the family serves on each arch, and why the plain dense configuration gets no other."""
    note = ("Of the FlashAttention family alone, in the platform's order and with every package present: the first "
            "that serves prefill / decode; one name is both. \"By name\": it serves, but is not in that order, so "
            "it is used when asked for. Another family may come before this one ([Priorities](#priorities)).")
    rows = [(cells[0], ", ".join(CARDS[arch] for arch in _unfold(cells[0])), *cells[1:])
            for cells in _merged("cuda", lambda arch: tuple(_of_family(arch, c) for c in ASKED_OF_IT.values()))]
    versions = FLASH_ATTENTION[:3]
    whys = _merged("cuda", lambda arch: tuple(_why_not(arch, name) for name in versions))
    return (f"{note}\n\n" + _table(("arch", "cards", *ASKED_OF_IT), rows)
            + "\nWhy, for the plain dense configuration over pages (in brackets what would serve):\n\n"
            + _table(("arch", *versions), whys))


def _unfold(label: str) -> list[str]:
    """The archs that a label of _merged stands for."""
    known, found = _known("cuda"), []
    for part in label.partition(": ")[2].split(", "):
        first, _, last = part.partition("..")
        found += known[known.index(first): known.index(last or first) + 1]
    return found


def _reasons(arch: str, config: AttentionConfig, phase: str, name: str) -> tuple[str, ...]:
    decision = hal.explain(config, Platform("cuda", arch, "cuda"), packages=Packages.assumed(),
                           **{f"{phase}_backend": name})
    chosen = decision.prefill if phase == "prefill" else decision.decode
    return next(c.reasons for c in chosen.candidates if c.backend == name)


def _of_family(arch: str, config: AttentionConfig) -> str:
    firsts = []
    for phase in ("prefill", "decode"):
        order = table()["cuda"].priority(arch, config.mla is not None, phase)
        family = [*(name for name in order if name in FLASH_ATTENTION),
                  *(name for name in FLASH_ATTENTION if name not in order)]
        first = next((name for name in family if not _reasons(arch, config, phase, name)), "none")
        firsts.append(first if first in (*order, "none") else f"{first} by name")
    return " / ".join(dict.fromkeys(firsts))


def _why_not(arch: str, name: str) -> str:
    """"serves", or what the first reason against it says would."""
    reasons = _reasons(arch, AttentionConfig(), "decode", name)
    return f"no ({reasons[0].partition(f'({name}: ')[2]}" if reasons else "serves"


# --- names and sources ---

def _aliases() -> str:
    note = "A name that means several backends is tried in this order; each serves what the others refuse."
    rows = [(f"`{alias}`", ", ".join(f"`{name}`" for name in names)) for alias, names in ALIASES.items()]
    return f"{note}\n\n" + _table(("name", "backends"), rows)


def _sources() -> str:
    backends = [registry.get(name) for name in BACKENDS]
    return "".join(f"- `{b.name}`: {'; '.join(b.sources) or 'no source is named'}\n" for b in backends)


# --- the pages ---

def examples(text: str) -> str:
    """A page with the output of every block that begins with "$ hal" as the command prints it now."""
    return re.sub(r"```\n\$ (hal [^\n]*)\n.*?```", lambda block: f"```\n$ {block[1]}\n{output(block[1])}```", text,
                  flags=re.S)


def output(command: str) -> str:
    """What a `hal` command prints, with no HAL_* variable and no plugin of this machine."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HAL_")}
    os.environ["HAL_PLUGINS"] = ""
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            hal_main(shlex.split(command, comments=True)[1:])
    finally:
        del os.environ["HAL_PLUGINS"]
        os.environ.update(kept)
    return out.getvalue()


def pages() -> dict[Path, str]:
    """Every generated page and what it should hold now."""
    selection = ROOT / "docs" / "selection.md"
    return {ROOT / "docs" / "backends.md": page(), selection: examples(selection.read_text())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    args = parser.parse_args()
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if not args.check:
            path.write_text(text)
        print(f"{path.relative_to(ROOT)} {'is stale; run: python ci/backends_doc.py' if args.check else 'written'}")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
