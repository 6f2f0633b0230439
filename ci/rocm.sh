#!/usr/bin/env bash
# AMD GPUs: is it here, and are its results right? Ends PASSED, FAILED or NOT RUN: reason.
# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
verify_platform rocm rocm-smi --showdriverversion
