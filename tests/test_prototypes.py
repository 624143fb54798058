"""What was tried and left out is a contraction all the same, so that its figures are fair."""

import pytest
import torch

from benchmarks.prototypes import Potential, Sandwich
from pyro_iresnet import testing


@pytest.mark.parametrize("prototype", [Potential, Sandwich])
def test_the_contract(prototype):
    g = prototype(5, 12)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.add_(torch.randn_like(parameter))
    testing.check_contraction(g, torch.randn(40, 5))
