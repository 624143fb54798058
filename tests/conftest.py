import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_state():
    """Set float64, a fixed seed and an empty parameter store for every test."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Use one thread, because the tensors of the tests are small."""
    torch.set_num_threads(1)
