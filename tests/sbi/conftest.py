"""Fixtures for the tests with sbi."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _as_sbi_has_it(tmp_path_factory):
    """Set float32, and a temporary folder for the logs of sbi."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sbi"))
        yield
    torch.set_default_dtype(default)


@pytest.fixture(autouse=True)
def _float32(_fresh_state):
    torch.set_default_dtype(torch.float32)
