#!/usr/bin/env bash
# NVIDIA GPUs: is it here, are its results right, and how fast are they? Ends PASSED, FAILED or NOT RUN: reason.
# The whole grid unless --quick is given, then `hal bench`; its report goes to docs/evidence/ too.
# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
mode=full
read_options "$@"
find_platform cuda
verify cuda nvidia-smi --query-gpu=driver_version --format=csv,noheader
report=$(record_name bench cuda)
only=()
[ ${#backends[@]} -eq 0 ] || only=(--backend "$(IFS=, && echo "${backends[*]}")")
limited "$python" -m hal bench --device cuda --json "$report" "${only[@]+"${only[@]}"}" || failed "hal bench failed: $report"
echo "report: $report"
echo PASSED
