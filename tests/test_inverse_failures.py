"""What an inverse refuses, and how it says which samples failed."""

import pytest
import torch
from torch import nn

from pyro_iresnet import (
    ArgumentError,
    DenseContraction,
    InversionError,
    LinearSolveError,
    ResidualBlock,
    solve,
    wrap,
)

from . import zoo


def test_a_zero_network_goes_backward_at_any_size():
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


def test_a_network_of_the_user_is_called_on_the_samples_alone():
    module = Recording()
    solution = solve(wrap(module, bound=0.5), torch.randn(1, 3))
    assert set(module.shapes) == {(1, 3)}
    # Once more than counted, for what rounding does to it.
    assert len(module.shapes) == int(solution.stats.evaluations) + 1


def test_a_network_that_works_in_place_is_refused():
    g = wrap(
        nn.Sequential(nn.LeakyReLU(0.5, inplace=True), zoo.Scaled(0.5, torch.eye(3))), bound=0.5
    )
    with pytest.raises(ArgumentError, match="inplace=False"):
        solve(g, torch.randn(2, 3))


@pytest.mark.parametrize("dim", [3, 20])
def test_a_violated_bound_is_seen_in_the_backward_pass(dim):
    block = ResidualBlock(wrap(zoo.Scaled(-2.0, torch.eye(dim)), bound=0.9))
    y = torch.zeros(1, dim, requires_grad=True)
    x = block.inverse(y)
    with pytest.raises(LinearSolveError, match="exceeds"):
        x.sum().backward()


def test_failures_are_named_by_their_place_in_the_batch():
    y = torch.randn(3, 4, zoo.DIM)
    y[1, 2] = torch.nan
    y[2, 3] = torch.nan
    with pytest.raises(
        InversionError, match=r"2 of 12 samples, first at \[\(1, 2\), \(2, 3\)\]"
    ) as e:
        solve(zoo.dense(), y, max_steps=1)
    assert "10 more ended as MAX_STEPS" in str(e.value)


def test_a_start_that_broadcasts_is_taken():
    g, y = zoo.dense(), torch.randn(6, zoo.DIM)
    x0 = torch.randn(zoo.DIM)
    assert torch.equal(solve(g, y, x0=x0).value, solve(g, y, x0=x0.expand(6, -1)).value)
