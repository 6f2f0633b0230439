"""These tests run in a process that has a fake NPU: ci/env_npu.sh starts pytest with fake_npu.start()'s environment."""

import os

import pytest

ON_FAKE_NPU = "FAKE_NPU_SOC" in os.environ
collect_ignore_glob = [] if ON_FAKE_NPU else ["test_*.py"]

if ON_FAKE_NPU:
    import fake_npu
    import torch

    @pytest.fixture(autouse=True)
    def fresh_device() -> None:
        torch.npu.set_device(0)
        torch.npu.synchronize()
        torch.manual_seed(0)
        fake_npu.reset_counters()
