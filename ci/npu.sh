#!/usr/bin/env bash
# Huawei Ascend NPUs: is it here, and are its results right? Ends PASSED, FAILED or NOT RUN: reason.
# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
[ -z "${FAKE_NPU_SOC-}" ] || not_run "this is the fake NPU of tests/fake_npu, and a record of it would be taken for a chip's"
verify_platform npu npu-smi info
