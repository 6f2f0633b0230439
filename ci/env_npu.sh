#!/usr/bin/env bash
# HAL beside the real torch_npu on a machine without CANN, in an environment of its own (.venv-npu).
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
HAL_TEST_ENV=npu "$python" -m pytest -q tests/env_npu || { echo FAILED && exit 1; }
echo PASSED
