#!/usr/bin/env bash
# Unmodified packages that import flash_attn, on a CPU through `hal run`: transformers, diffusers (a diffusion
# transformer) and yunchang (sequence parallelism over two processes), each against the attention it has without
# flash_attn. In an environment of its own (.venv-compat). Ends PASSED, FAILED or NOT RUN: reason.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=.venv-compat/bin/python

failed() {
    echo FAILED
    exit 1
}

if "${PYTHON:-python3}" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "NOT RUN: this is about a machine without a GPU, and torch sees one" && exit 77
fi
if [ ! -e .venv-compat/installed ] || [ constraints.txt -nt .venv-compat/installed ] || [ ci/env_compat.sh -nt .venv-compat/installed ]; then
    # torch first and alone, so that nothing after it can choose another; these depend on it, hence --no-deps.
    { "${PYTHON:-python3}" -m venv --clear .venv-compat &&
        "$python" -m pip install -q -c constraints.txt torch==2.13.0 pytest &&
        "$python" -m pip install -q -c constraints.txt transformers gguf numpy tqdm jinja2 setuptools importlib_metadata pillow requests &&
        "$python" -m pip install -q -c constraints.txt --no-deps accelerate psutil diffusers yunchang &&
        touch .venv-compat/installed; } || failed
fi
"$python" ci/check_torch.py torch==2.13.0 || failed
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
"$python" -m hal.default_model >/dev/null || failed
HAL_TEST_ENV=compat "$python" -m pytest -q tests/env_compat || failed
echo PASSED
