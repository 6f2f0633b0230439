#!/usr/bin/env bash
# Huawei Ascend NPUs: is it here, and are its results right? Ends PASSED, FAILED or NOT RUN: reason.
# With torch_npu in $PYTHON and CANN's set_env.sh sourced, this reaches the level "hardware", on the chip:
#   PYTHON=/path/to/python ci/npu.sh --full --backend ascend --backend ascend_mla
# Without a chip, on any x86-64 Linux, the levels "contract" and "emulated", in an environment made from PyPI:
#   ci/npu.sh --anywhere
# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ "${1-}" = --anywhere ] && [ $# -eq 1 ] && exec ci/env_npu.sh
read_options "$@"
[ -z "${FAKE_NPU_SOC-}" ] || not_run "this is the fake NPU of tests/fake_npu, and a record of it would be taken for a chip's"
verify_platform npu npu-smi info
