"""Fixtures for the tests of the diagnostics."""

import warnings

import pytest

from pyro_iresnet.diagnostics import KHatWarning


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", KHatWarning)
        yield
