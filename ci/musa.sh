#!/usr/bin/env bash
# Moore Threads GPUs: is it here, and are its results right? Ends PASSED, FAILED or NOT RUN: reason.
# With torch_musa and MATE in $PYTHON, this reaches the level "hardware" for mate and mate_mla, on the chip:
#   PYTHON=/path/to/python ci/musa.sh --full --backend mate --backend mate_mla
# then `python ci/levels.py` reads the record that it leaves.
# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
verify_platform musa mthreads-gmi
