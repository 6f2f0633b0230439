#!/usr/bin/env bash
# Huawei Ascend NPUs: is it here, and are its results right? Ends PASSED, FAILED or NOT RUN: reason.
# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
verify_platform npu npu-smi info
