#!/usr/bin/env bash
# The CPU benchmark in its own environment, which is made on first use (a minute or two). --help says what it takes.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
reason=$(benchmarks/cpu/environment.sh) || { echo "benchmarks/cpu/run.sh: ${reason:-the environment could not be made}" >&2; exit 1; }
exec .venv-vllm/bin/python -m benchmarks.cpu "$@"
