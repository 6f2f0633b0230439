"""CONTRIBUTING's toy backend, done exactly as written: out of tree, one file and one entry-point line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import hal, torch
from hal import oracle
config = hal.AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, dtype="float32")
attn = hal.get_attention_impl(config, device="cpu", decode_backend="toy")
assert (attn.decode.backend, attn.prefill.backend) == ("toy", "torch"), attn.decision
assert hal.get_attention_impl(config, device="cpu").decision.chosen == "torch"  # unranked: only when asked for
k, v = attn.new_kv_cache(9)
k.normal_(), v.normal_()
q = torch.randn(2, 2, 4, 16)
call = dict(cache_seqlens=torch.tensor([17, 40], dtype=torch.int32), causal=True,
            page_table=torch.tensor([[3, 1, 0], [8, 2, 5]], dtype=torch.int32))
error = (attn.flash_attn_with_kvcache(q, k, v, **call) - oracle.flash_attn_with_kvcache(q, k, v, **call)).abs().max()
assert error < 1e-5, error
for refused in (dict(softcap=2.0), dict(window_size=(3, 0))):
    try:
        attn.flash_attn_with_kvcache(q, k, v, **call, **refused)
    except ValueError as raised:
        assert next(iter(refused)) in str(raised), raised
    else:
        raise AssertionError(refused)
print("used")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, installed with pip into a folder of their own."""
    source, target = tmp_path_factory.mktemp("toy"), tmp_path_factory.mktemp("site")
    page = (ROOT / "CONTRIBUTING.md").read_text()
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.S))
    assert set(files) == {"toy_backend.py", "pyproject.toml"}
    for name, text in files.items():
        (source / name).write_text(text)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
                    "--target", str(target), str(source)], check=True)
    return target


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run([sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, text=True,
                          capture_output=True, check=False)


def test_it_is_listed_and_explained(site: Path) -> None:
    done = run(site, "-m", "hal", "backends", "--json")
    assert "toy" in {row["name"] for row in json.loads(done.stdout)}, done.stderr
    done = run(site, "-m", "hal", "explain", "--device", "cpu", "--decode-attention-backend", "toy")
    assert done.returncode == 1
    assert "dtype bfloat16 is not supported (toy: float32)" in done.stdout
    done = run(site, "-m", "hal", "explain", "--device", "cuda:sm90", "--attention-backend", "toy", "--json")
    reasons = json.loads(done.stdout)["kinds"][0]["decode"]["candidates"][0]["reasons"]
    assert reasons == ["platform cuda is not supported (toy: cpu)"]


def test_it_is_used_and_refuses(site: Path) -> None:
    done = run(site, "-c", USE)
    assert done.stdout == "used\n", done.stderr


def test_hal_plugins_keeps_it_out(site: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "HAL_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-m", "hal", "backends", "--json"], text=True, capture_output=True,
                          check=True, env=environ)
    assert "toy" not in {row["name"] for row in json.loads(done.stdout)}
