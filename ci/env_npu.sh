#!/usr/bin/env bash
# HAL beside the real torch_npu on a machine without CANN, in an environment of its own (.venv-npu): first as it is
# there, then on the fake NPU of tests/fake_npu: the levels "contract" and "emulated" of Ascend, as far as CI asks (the
# quick grid; ci/verify_emulated.py leaves the records). Ends PASSED, FAILED or NOT RUN: reason.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=.venv-npu/bin/python

failed() {
    echo FAILED
    exit 1
}

if [ "$(uname -s)" != Linux ]; then
    echo "NOT RUN: torch_npu has wheels for Linux only, this is $(uname -s)" && exit 77
fi
if "${PYTHON:-python3}" -c 'import ctypes; ctypes.CDLL("libascendcl.so")' 2>/dev/null; then
    echo "NOT RUN: CANN is here, and this is about its absence; ci/npu.sh verifies the NPU" && exit 77
fi
if [ ! -e .venv-npu/installed ] || [ constraints.txt -nt .venv-npu/installed ] || [ ci/env_npu.sh -nt .venv-npu/installed ]; then
    # torch first and alone, so that nothing after it can choose another; accelerate depends on it, hence --no-deps.
    { "${PYTHON:-python3}" -m venv --clear .venv-npu &&
        "$python" -m pip install -q -c constraints.txt torch==2.13.0 torch-npu==2.13.0 pytest &&
        "$python" -m pip install -q -c constraints.txt transformers gguf numpy tqdm jinja2 packaging setuptools \
            fastapi uvicorn pydantic prometheus_client &&
        "$python" -m pip install -q -c constraints.txt --no-deps accelerate psutil &&
        touch .venv-npu/installed; } || failed
fi
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
HAL_TEST_ENV=npu "$python" -m pytest -q tests/env_npu/test_real_torch_npu.py || failed
TORCH_DEVICE_BACKEND_AUTOLOAD=0 "$python" -m pytest -q tests/test_contracts.py -k "ascend or torch-npu" || failed
for tool in gcc g++ nm readelf; do
    command -v "$tool" >/dev/null ||
        { echo "NOT RUN: the fake NPU is built with $tool, which is not here (the tests without it passed)" && exit 77; }
done
HAL_TEST_ENV=npu "$python" -m pytest -q tests/env_npu/test_fake_npu.py || failed
PYTHONPATH=tests "$python" -m fake_npu -- "$python" -m pytest -q tests/env_npu/on_fake_npu || failed
# 310P: ops of ATB instead. test_310p.py asks the grid, and the other files there are about other SoCs.
PYTHONPATH=tests "$python" -m fake_npu --soc 310p3 -- "$python" -m pytest -q tests/env_npu/on_fake_npu/test_310p.py || failed
# The other generations: the quick grid of both backends, no refusal of which reaches the vendor's calls.
for soc in 910_9391 950; do
    PYTHONPATH=tests "$python" -m fake_npu --soc "$soc" -- "$python" -m pytest -q \
        tests/env_npu/on_fake_npu/test_ascend.py -k all_refusals || failed
done
# Where a stack has the reported faults, HAL's calls are not among those that meet them.
for feature in non_causal encoder "empty rows"; do
    PYTHONPATH=tests "$python" -m fake_npu --trap uniform_average --trap mask_ends_at_512 \
        --trap band_keeps_empty_rows --trap small_pages -- \
        "$python" ci/verify_emulated.py ascend --quick --case "$feature" || failed
done
TORCH_DEVICE_BACKEND_AUTOLOAD=0 "$python" -m hal.default_model >/dev/null || failed
HAL_TEST_ENV=npu "$python" -m pytest -q tests/env_npu/test_generate.py tests/env_npu/test_batching.py tests/env_npu/test_serve.py || failed
echo PASSED
