"""`import hal`, and what needs no hardware, loads neither torch nor a vendor package nor a plugin."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from machines import Machine, plugin

ROOT = Path(__file__).parents[1]
VENDORS = (
    "torch",
    "torch_npu",
    "torch_musa",
    "torchada",
    "flash_attn",
    "flash_attn_interface",
    "flash_attn_3",
    "flashinfer",
    "flash_mla",
    "aiter",
    "mate",
    "sgl_kernel",
    "triton",
    "vllm",
    "sglang",
    "transformers",
    "numpy",
    "gguf",
    "accelerate",
    "tqdm",
    "jinja2",
    "fastapi",
    "pydantic",
    "uvicorn",
    "prometheus_client",
)

# What must be free, and whether it may load the plugins that are installed.
FREE = [
    ("import hal", False),
    ("import hal; dir(hal)", False),
    ("import hal; hal.AttentionConfig()", False),
    ("import hal; hal.MLADims()", False),
    ("import hal.platforms, hal.backends", False),
    ("import hal; hal.AttentionBackend; hal.NoBackendError; hal.Decision", False),
    ("import hal.__main__", False),
    ("from hal.__main__ import main; main(['--version'])", False),
    ("import hal; hal.Platform.parse('cuda:sm90')", True),
    ("import hal; hal.explain(device='cuda:sm90')", True),
    ("import hal; hal.explain(hal.AttentionConfig(mla=True, softmax_scale=0.1), 'npu:ascend910b')", True),
    (
        "import hal, argparse; p = argparse.ArgumentParser(); hal.add_cli_args(p); "
        "hal.from_cli_args(p.parse_args(['--device', 'musa:mp31', '--attention-backend', 'mate']))",
        True,
    ),
    ("from hal.__main__ import main; main(['devices'])", True),
    ("from hal.__main__ import main; main(['backends', '--json'])", True),
    ("from hal.__main__ import main; main(['explain', '--device', 'rocm:gfx942'])", True),
    ("from hal.__main__ import main; main(['generate', '--help'])", True),
    ("from hal.__main__ import main; main(['run', '--help'])", True),
    ("import hal.compat; hal.compat.install", False),
    ("from hal.__main__ import main; main(['serve', '--help'])", True),
]
_REPORT = "\nimport json, sys\nsys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))"


def modules_after(code: str) -> set[str]:
    """Everything in sys.modules after `code` ran in this environment, where torch is installed."""
    done = subprocess.run(
        [sys.executable, "-c", code + _REPORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("code", [code for code, _ in FREE])
def test_no_vendor_package(code: str) -> None:
    loaded = modules_after(code)
    assert not loaded & set(VENDORS)
    assert any(name.startswith("hal") for name in loaded)


def test_the_check_above_can_fail() -> None:
    assert "torch" in modules_after("import torch")


@pytest.mark.parametrize("code", [code for code, plugins in FREE if not plugins])
def test_no_plugin(code: str, tmp_path: Path) -> None:
    parts = [
        plugin(group, "spy", "spy_plugin", "raise SystemExit(77)", distribution=group.replace(".", "-"))
        for group in ("hal.backends", "hal.platforms")
    ]
    done = Machine(tmp_path, *parts).hal("-c", code + "\nimport sys\nassert 'spy_plugin' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_import_hal_loads_one_module() -> None:
    mine = {name for name in modules_after("import hal") if name.partition(".")[0] == "hal"}
    assert mine == {"hal"}


def imports(tree: ast.Module) -> list[str]:
    """Top-level packages imported when the module is: not inside functions, not under TYPE_CHECKING."""
    found = []
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports do not work in folders that are linked"
            found.append(str(node.module))
        elif isinstance(node, ast.If):
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            todo += node.orelse if typing_only else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            todo += [*node.body, *node.orelse, *node.finalbody, *(s for h in node.handlers for s in h.body)]
        elif isinstance(node, (ast.ClassDef, ast.With)):
            todo += node.body
    return [name.partition(".")[0] for name in found]


# The oracle is arithmetic on tensors from its first line; the rest of HAL imports it inside functions. hal.testing is a
# pytest plugin: pytest imports it, nothing else does. hal.custom_ops registers torch's ops: a bind imports it. The
# drop-in flash_attn is imported by programs that hold tensors already.
NEEDS_MORE = {"hal/oracle.py", "hal/testing.py", "hal/custom_ops.py", "hal/compat/arguments.py", "hal/compat/calls.py",
              "hal/compat/flash_attn_interface.py"}


@pytest.mark.parametrize(
    "file",
    sorted(
        {
            str(p.relative_to(ROOT))
            for folder in ("hal", "hal/bench", "hal/commands", "hal/compat", "hal/conformance", "backends", "platforms")
            for p in (ROOT / folder).glob("*.py")
        }
        - NEEDS_MORE
    ),
)
def test_core_imports_the_standard_library_alone(file: str) -> None:
    found = imports(ast.parse((ROOT / file).read_text()))
    assert set(found) <= sys.stdlib_module_names | {"hal"}
