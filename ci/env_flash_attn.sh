#!/usr/bin/env bash
# FlashAttention 4's kernels, compiled offline as HAL's adapter asks for them, in an environment of its own
# (.venv-flash-attn): the real package, no GPU. Ends PASSED, FAILED or NOT RUN: reason.
#
#   ci/env_flash_attn.sh ARCH...    all cases for these archs, each leaving its record in docs/evidence/
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=.venv-flash-attn/bin/python

if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
    echo "NOT RUN: the CUTLASS DSL has wheels for Linux on x86-64 and Arm, and this was tried on x86-64 alone" && exit 77
fi
if [ ! -e .venv-flash-attn/installed ] || [ constraints.txt -nt .venv-flash-attn/installed ]; then
    mkdir -p ci/logs
    # Without their dependencies: some of these ask for a torch of their own.
    grep -E '^(apache-tvm-ffi|cuda-bindings|cuda-pathfinder|cuda-python|einops|flash-attn-4|nvidia-cutlass-dsl.*|protobuf|quack-kernels|torch-c-dlpack-ext|triton)==' \
        constraints.txt >ci/logs/flash-attn.txt
    { "${PYTHON:-python3}" -m venv --clear .venv-flash-attn &&
        "$python" -m pip install -q -c constraints.txt torch==2.13.0 numpy &&
        "$python" -m pip install -q --no-deps -r ci/logs/flash-attn.txt &&
        touch .venv-flash-attn/installed; } || { echo FAILED && exit 1; }
fi
export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then
    for arch in "$@"; do
        "$python" ci/compile_flash_attn_4.py "$arch" --json "docs/evidence/compiled-flash_attn_4-cuda-$arch.json" ||
            { echo FAILED && exit 1; }
    done
else
    "$python" ci/compile_flash_attn_4.py sm90 &
    "$python" ci/compile_flash_attn_4.py sm100 || { wait && echo FAILED && exit 1; }
    wait $! || { echo FAILED && exit 1; }
fi
echo PASSED
