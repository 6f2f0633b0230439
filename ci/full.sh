#!/usr/bin/env bash
# The long run, on demand: the randomized tests with many fresh seeds, every fault and mutant of the torch backend
# against the whole conformance grid, and ten minutes of `hal serve` under load. Leaves a dated log in docs/evidence/.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p ci/logs docs/evidence
make install || exit 1

seeds=${HAL_TEST_SEEDS:-50}
log=docs/evidence/tests-$(date -u +%F).log
{
    echo "date: $(date -u +%FT%TZ)"
    echo "commit: $(git describe --always --abbrev=40 --exclude='*' --dirty=+changes 2>/dev/null || echo 'not a git checkout')"
    echo "python: $(.venv/bin/python -c 'import platform, torch; print(platform.python_version(), "torch", torch.__version__)')"
    echo "HAL_TEST_SEEDS: $seeds"
} >"$log"
# Only the end is kept, without the progress and without paths of this machine.
HAL_TEST_SEEDS=$seeds HAL_TEST_MUTATIONS=full OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q -n 2 tests 2>&1 |
    tee ci/logs/full.log |
    sed -E '/^[.sxXFE]+ +\[ *[0-9]+%\]$/d; /^bringing up nodes/d' | tail -n 40 |
    sed "s|$PWD/||g; s|$HOME|~|g" >>"$log"
code=$?
{
    echo
    echo "ci/soak_serve.py --minutes 10"
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python ci/soak_serve.py --minutes 10 2>ci/logs/soak_serve.log
} >>"$log" || code=1
cat "$log"
exit "$code"
