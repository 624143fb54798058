import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_state():
    """Float64, a fixed seed and an empty parameter store for every test."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tensors of the tests are small: threads only wait for each other."""
    torch.set_num_threads(1)
