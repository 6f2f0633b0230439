"""`hal serve` as a command: what it refuses before anything is loaded, signals and exit codes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from hal.__main__ import main
from hal.commands import serve

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS", "HAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The Settings that would be served, instead of serving them."""
    from hal.serving import server

    seen: list[Any] = []

    def run(settings: Any) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(server, "run", run)
    return seen


@pytest.mark.parametrize(("arguments", "message"), [
    (["no/such/dir"], "MODEL 'no/such/dir' is no folder: names on a hub are not downloaded"),
    (["--device", "npu"], "device 'npu' is not on this machine: "),
    (["--device", "cuda:sm90"], "device 'cuda:sm90' is not on this machine"),
    (["--device", "tpu"], "device 'tpu' is not known (known: auto, "),
    (["--attention-backend", "flash_attn_33"], "attention backend 'flash_attn_33' is not known"),
    (["--engine", "vllm"], "--engine vllm is not there yet: HAL's plugin for it is not written. Leave --engine out"),
    (["--engine", "sglang"], "--engine sglang is not there yet"),
    (["--engine", "llama.cpp"], "argument --engine: invalid choice: 'llama.cpp'"),
    (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and anyone there could use the model"),
    (["--host", "::"], "--host :: can be reached"), (["--host", "example.org"], "--host example.org can be reached"),
    (["--api-key", ""], "--api-key must be one or more printable ASCII characters without spaces"),
    (["--api-key", "a b"], "--api-key must be one or more printable"),
    (["--port", "70000"], "argument --port: must be a whole number from 0 to 65535, got '70000'"),
    (["--port", "x"], "argument --port: must be a whole number"),
    (["--port", "1", "--port", "2"], "argument --port: given twice, as 1 and 2"),
    (["--max-running", "0"], "argument --max-running: must be a whole number >= 1, got '0'"),
    (["--max-queue", "-1"], "argument --max-queue: must be a whole number"),
    (["--max-model-len", "1.5"], "argument --max-model-len: must be a whole number >= 2"),
    (["--max-model-len", "1"], "argument --max-model-len: must be a whole number >= 2, got '1'"),
    (["--hang-timeout", "0"], "argument --hang-timeout: must be a number of seconds > 0, got '0'"),
    (["--kv-cache-memory", "lots"], "argument --kv-cache-memory: must be a number of bytes, or one with KiB, MiB, GiB"),
    (["--max-body", "4 elephants"], "argument --max-body: must be a number of bytes"),
    (["--request-timeout", "0"], "argument --request-timeout: must be a number of seconds > 0, got '0'"),
    (["--shutdown-timeout", "inf"], "argument --shutdown-timeout: must be a number of seconds"),
    (["--dtype", "float64"], "argument --dtype: invalid choice: 'float64'"),
    (["--kv-cache-dtype", "fp8_e4m3"], "kv_cache_dtype fp8_e4m3 is not supported for batching"),
    (["--served-model-name", " "], "--served-model-name is ' ': give a name"),
    (["--tensor-parallel-size=2"], "unrecognized arguments: --tensor-parallel-size=2"),
    (["--attention-config", "sliding.backend=torch"], "layer kind 'sliding', which this model does not have"),
])
@pytest.mark.model
def test_wrong_arguments_exit_2(arguments: list[str], message: str, default_model: Path, served: list[Any],
                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "loading" not in err
    assert (out, served) == ("", [])


@pytest.mark.model
def test_a_backend_that_can_not_serve_exits_1_with_the_table(default_model: Path, served: list[Any],
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--device", "cpu", "--attention-backend", "fa3"]) == 1
    err = capsys.readouterr().err
    assert "attention backend fa3 can't serve this on cpu" in err
    assert "platform cpu is not supported (flash_attn_3: " in err
    assert "loading" not in err
    assert served == []


def test_models_that_can_not_be_batched(tmp_path: Path, served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """MLA, with the way out; a folder that is no model."""
    config = {"model_type": "deepseek_v3", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 16,
              "qk_rope_head_dim": 8, "v_head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["serve", str(tmp_path), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert "they can't be batched" in err
    assert "One request at a time works: `hal generate`" in err
    (tmp_path / "config.json").unlink()
    assert main(["serve", str(tmp_path), "--device", "cpu"]) == 2
    assert "the folder has no config.json" in capsys.readouterr().err
    assert served == []


@pytest.mark.model
def test_what_is_told_is_what_is_served(default_model: Path, served: list[Any], monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HAL_API_KEY", "from-the-environment")
    assert main(["serve", str(default_model), "--device", "cpu", "--attention-backend", "torch", "--host", "0.0.0.0",
                 "--served-model-name", "me", "--kv-cache-memory", "1.5GiB", "--max-running", "3", "--dtype", "float16",
                 "--max-model-len", "100", "--no-spare-worker", "--page-size", "32"]) == 0
    [settings] = served
    assert settings.arguments == {
        "folder": str(default_model), "device": "cpu", "dtype": "float16", "page_size": 32, "max_requests": 3,
        "max_batch_tokens": 2048, "cache_bytes": 3 << 29, "max_length": 100,
        "backends": {"full": {"prefill_backend": "torch", "decode_backend": "torch"}}}
    assert (settings.name, settings.api_key, settings.max_running, settings.spare_worker) == (
        "me", "from-the-environment", 3, False)
    assert "from-the-environment" not in repr(settings)
    assert [(row["phase"], row["backend"], row["kind"]) for row in settings.labels] == [
        ("prefill", "torch", "full"), ("decode", "torch", "full")]
    out, err = capsys.readouterr()
    assert "[full] decode runs hal.backends.torch_native.flash_attn_with_kvcache" in err
    assert "from-the-environment" not in out + err
    assert main(["serve", "--api-key", "typed", "--device", "cpu"]) == 0
    assert served[-1].api_key == "typed"
    assert served[-1].name == "SmolLM2-135M-Instruct"
    monkeypatch.delenv("HAL_API_KEY")
    assert main(["serve", "--allow-no-key", "--host", "0.0.0.0", "--device", "cpu"]) == 0
    assert served[-1].api_key is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve, "_NEEDED", ("fastapi", "no_such_package"))
    assert main(["serve"]) == 2
    assert "no_such_package is not installed; hal serve needs: pip install 'attention-hal[serve]'" in \
        capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    assert "hal serve DIR --device cuda:1 --attention-backend fa3 --port 9000" in out
    assert "Exit codes" in out


@pytest.mark.model
def test_a_port_that_is_taken(default_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--device", "cpu", "--port", str(port)]) == 2
    assert f"--host 127.0.0.1 --port {port}: can't listen there (Address already in use)" in capsys.readouterr().err


# Serves the double as the command would its own engine.
_DOUBLE = """
import sys
from pathlib import Path
from hal.serving import server
from hal.serving.settings import Settings
folder = Path(sys.argv[1])
sys.exit(server.run(Settings(name="double", folder=folder, engine="serve_double:load", port=0, spare_worker=False,
                             arguments={"folder": str(folder), "fails": sys.argv[2]})))
"""


@pytest.mark.model
@pytest.mark.parametrize(("sent", "code", "said"), [
    (signal.SIGINT, 130, ["hal: SIGINT: ending; what runs has 10 s"]),
    (signal.SIGTERM, 0, ["hal: SIGTERM: ending; what runs has 10 s"]),
    (signal.SIGKILL, -signal.SIGKILL, [])])
def test_how_signals_end_it(default_model: Path, sent: signal.Signals, code: int, said: list[str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", _DOUBLE, str(default_model), ""], cwd=ROOT / "tests",
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("hal: double is served at http://127.0.0.1:")
    [worker] = psutil.Process(process.pid).children()
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.splitlines() == said
    worker.wait(10)  # it ends with the server, however that ended


@pytest.mark.model
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_before_it_listens(default_model: Path, sent: signal.Signals, code: int) -> None:
    """While it imports, and while the tokenizer is read."""
    process = subprocess.Popen([sys.executable, "-m", "hal", "serve", str(default_model), "--device", "cpu", "--port",
                                "0", "--no-spare-worker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while (line := process.stderr.readline()) and not line.startswith("loading the weights"):
            pass
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
