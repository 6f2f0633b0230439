#!/usr/bin/env bash
# HAL beside the real torch_npu on a machine without CANN, in an environment of its own (.venv-npu): first as it is
# there, then on the fake NPU of tests/fake_npu. Ends PASSED, FAILED or NOT RUN: reason.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=.venv-npu/bin/python

if [ "$(uname -s)" != Linux ]; then
    echo "NOT RUN: torch_npu has wheels for Linux only, this is $(uname -s)" && exit 77
fi
if "${PYTHON:-python3}" -c 'import ctypes; ctypes.CDLL("libascendcl.so")' 2>/dev/null; then
    echo "NOT RUN: CANN is here, and this is about its absence; ci/npu.sh verifies the NPU" && exit 77
fi
if [ ! -e .venv-npu/installed ] || [ constraints.txt -nt .venv-npu/installed ]; then
    { "${PYTHON:-python3}" -m venv --clear .venv-npu &&
        "$python" -m pip install -q -c constraints.txt torch==2.13.0 torch-npu==2.13.0 pytest &&
        touch .venv-npu/installed; } || { echo FAILED && exit 1; }
fi
export OMP_NUM_THREADS=1
HAL_TEST_ENV=npu "$python" -m pytest -q tests/env_npu/test_real_torch_npu.py || { echo FAILED && exit 1; }
for tool in gcc g++ nm readelf; do
    command -v "$tool" >/dev/null ||
        { echo "NOT RUN: the fake NPU is built with $tool, which is not here (the tests without it passed)" && exit 77; }
done
HAL_TEST_ENV=npu "$python" -m pytest -q tests/env_npu/test_fake_npu.py || { echo FAILED && exit 1; }
PYTHONPATH=tests "$python" -m fake_npu -- "$python" -m pytest -q tests/env_npu/on_fake_npu || { echo FAILED && exit 1; }
echo PASSED
