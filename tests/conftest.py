import pyro
import pytest
import torch
from packaging.version import Version
from torch.distributions import Distribution

# The compiler of older releases does not follow the blocks; docs/installation.md says so.
COMPILES = Version("2.13.0")


def pytest_runtest_setup(item):
    """Leave tests of the compiler out under a release of torch that is too old for them."""
    if item.get_closest_marker("compiled") and Version(torch.__version__) < COMPILES:
        pytest.skip(f"torch.compile follows the blocks from torch {COMPILES}")


@pytest.fixture(autouse=True)
def _fresh_state(request):
    """Set float64, a fixed seed and an empty parameter store for every test."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    # The compiler switches torch's validation off at its first call, and Pyro switches it on.
    compiles = request.node.get_closest_marker("compiled") is not None
    Distribution.set_default_validate_args(not compiles)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Use one thread, because the tensors of the tests are small."""
    torch.set_num_threads(1)
