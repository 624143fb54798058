"""Failures of an inverse, and the names of the failed samples."""

import pytest
import torch
from torch import nn

from pyro_iresnet import DenseContraction, InversionError, ResidualBlock, wrap
from pyro_iresnet.errors import ArgumentError, LinearSolveError
from pyro_iresnet.solvers import solve

from .. import zoo


def test_backward_of_zero_network():
    for dim in (3, 40):
        block = ResidualBlock(DenseContraction(dim, [8]))
        with torch.no_grad():
            for parameter in block.contraction.layers[-1].parameters():
                parameter.zero_()
        y = torch.randn(4, dim, requires_grad=True)
        block.inverse(y).sum().backward()
        torch.testing.assert_close(y.grad, torch.ones_like(y))


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return 0.5 * x.sin()


def test_calls_network_on_samples():
    module = Recording()
    solution = solve(wrap(module, lipschitz=0.5), torch.randn(1, 3))
    assert set(module.shapes) == {(1, 3)}
    # One more call estimates the rounding.
    assert len(module.shapes) == int(solution.stats.evaluations) + 1


def test_refuses_inplace_network():
    g = wrap(
        nn.Sequential(nn.LeakyReLU(0.5, inplace=True), zoo.Scaled(0.5, torch.eye(3))), lipschitz=0.5
    )
    with pytest.raises(ArgumentError, match="inplace=False"):
        solve(g, torch.randn(2, 3))


@pytest.mark.parametrize("dim", [3, 20])
def test_detects_violation_in_backward(dim):
    block = ResidualBlock(wrap(zoo.Scaled(-2.0, torch.eye(dim)), lipschitz=0.9))
    y = torch.zeros(1, dim, requires_grad=True)
    x = block.inverse(y)
    with pytest.raises(LinearSolveError, match="exceeds"):
        x.sum().backward()


def test_names_failed_samples():
    y = torch.randn(3, 4, zoo.DIM)
    y[1, 2] = torch.nan
    y[2, 3] = torch.nan
    with pytest.raises(
        InversionError, match=r"2 of 12 samples, first at \[\(1, 2\), \(2, 3\)\]"
    ) as e:
        solve(zoo.dense(), y, max_steps=1)
    assert "10 more ended as MAX_STEPS" in str(e.value)


def test_broadcasts_start():
    g, y = zoo.dense(), torch.randn(6, zoo.DIM)
    x0 = torch.randn(zoo.DIM)
    assert torch.equal(solve(g, y, x0=x0).value, solve(g, y, x0=x0.expand(6, -1)).value)
