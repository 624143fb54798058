"""Fixture for the tests of benchmarks."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _float32(_fresh_state):
    """Set the dtype in which benchmarks run."""
    torch.set_default_dtype(torch.float32)
