"""Rejected prototypes are contractions, so the benchmarks of prototypes are fair."""

import pytest
import torch

from benchmarks.models.prototypes import Potential, Sandwich
from pyro_iresnet import testing


@pytest.mark.parametrize("prototype", [Potential, Sandwich])
def test_contract(prototype):
    g = prototype(5, 12)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.add_(torch.randn_like(parameter))
    testing.check_contraction(g, torch.randn(40, 5))
