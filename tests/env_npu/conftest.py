"""These tests need the real torch_npu: ci/env_npu.sh makes its environment and sets HAL_TEST_ENV."""

import os

collect_ignore_glob = [] if os.environ.get("HAL_TEST_ENV") == "npu" else ["test_*.py"]
