"""Rounding of an inverse, and the error bound under rounding."""

import copy
from functools import partial

import pytest
import torch

from pyro_iresnet import ContractionError, DenseContraction, Newton, ResidualBlock
from pyro_iresnet.activations import Sine
from pyro_iresnet.contractions.layers import Activate, Gate
from pyro_iresnet.norms import Gram
from pyro_iresnet.solvers import Result, solve

from .. import zoo


def without_value_at_zero(lipschitz=0.97):
    """Make a ``g`` with ``g(0) = 0`` by cancelling biases of order 1."""
    g = zoo.dense(2, (16, 16), lipschitz=lipschitz)
    with torch.no_grad():
        for _ in range(3):
            g.layers[-1].bias -= g(torch.zeros(2, dtype=g.layers[0].weight.dtype))
    return g


@pytest.mark.parametrize("name", zoo.SOLVERS)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e-12])
def test_error_bound_under_cancellation(name, scale):
    exact = without_value_at_zero().float().double()
    g = copy.deepcopy(exact).float()
    y = scale * torch.randn(200, 2, dtype=torch.float32)
    solution = solve(g, y, zoo.SOLVERS[name])
    truth = solve(exact, y.double(), Newton(rtol=1e-14)).value
    error = (solution.value.double() - truth).norm(dim=1)
    # Weights normalised in double precision differ in the last digit.
    assert (error <= 1.1 * solution.stats.error_bound).all()
    assert (solution.stats.error_bound <= solution.stats.tolerance).all()
    assert (solution.stats.error_bound <= 1e-3).all()


@pytest.mark.parametrize("name", zoo.SOLVERS)
@pytest.mark.parametrize("bias", [1.0, 1e5])
def test_no_false_accusation(name, bias):
    g = without_value_at_zero()
    with torch.no_grad():
        g.layers[0].bias.mul_(bias)
    y = torch.cat([10.0**-k * torch.randn(50, 2) for k in range(0, 14, 2)]).float()
    results = solve(g.float(), y, zoo.SOLVERS[name], throw=False).stats.results
    assert (results != int(Result.NOT_A_CONTRACTION)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_refuses_coarse_dtype(dtype):
    g = zoo.dense(lipschitz=0.97).to(dtype)
    with pytest.raises(ContractionError, match="Use float32 or float64"):
        solve(g, torch.randn(3, zoo.DIM).to(dtype))


def test_ignores_autocast():
    g, y = zoo.dense().float(), torch.randn(20, zoo.DIM, dtype=torch.float32)
    y.requires_grad_()
    block = ResidualBlock(g)
    plain = block.inverse(y)
    (expected,) = torch.autograd.grad(plain.square().sum(), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(solve(g, y).value, plain)
        x = block.inverse(y)
        (found,) = torch.autograd.grad(x.square().sum(), y)
    torch.testing.assert_close(found, expected)


def test_zero_tolerance():
    g, y = zoo.dense(), torch.randn(20, zoo.DIM)
    solution = solve(g, y, rtol=0.0)
    assert (solution.stats.error_bound <= 1e-12).all()


@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_rounding_estimate(name):
    exact = zoo.CONTRACTIONS[name]().float().double()
    g = copy.deepcopy(exact).float()
    x = torch.randn(500, *zoo.event_shape(name), dtype=torch.float32)
    error = (g(x).double() - exact(x.double())).flatten(1).norm(dim=1)
    estimate = g.materialize().rounding(x)
    # Weights normalised in double precision differ in the last digit.
    assert error.median() <= estimate.median()
    assert (error <= 2 * estimate.max()).all()
    assert estimate.median() <= 300 * error.median() + 1e-6


@pytest.mark.parametrize("frequencies", [(0.01, 0.02), (20.0, 30.0)])
def test_rounding_of_gates(frequencies):
    """Gates keep the scale of the activation before, which stands in the next weight."""
    activation = partial(Sine, frequencies=frequencies)
    g = DenseContraction(2, [16], context_dim=3, activation=activation)
    x, context = torch.randn(20, 2), torch.randn(20, 3)
    values = []
    for layer in g.materialize()._under(context):
        values.append((layer, x, layer(x)))
        x = values[-1][2]
    (activate, *of_activation), (gate, *of_gate) = values[1:3]
    assert (type(activate), type(gate)) == (Activate, Gate)
    scaled = [(value * activate.outer).norm(dim=1) for value in (of_activation[1], of_gate[1])]
    torch.testing.assert_close(gate.rounding(*of_gate), scaled[1])
    expected = activate.rounding(*of_activation) * scaled[1] / scaled[0] / activate.stretch
    torch.testing.assert_close(gate.rounding(*of_gate), expected)


@pytest.mark.parametrize("name", zoo.SOLVERS)
@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-25, 1e-30])
def test_error_bound_under_underflow(name, scale):
    g = DenseContraction(3, [], lipschitz=0.97, norm=Gram()).float()
    with torch.no_grad():
        g.layers[0].weight.copy_(-2 * torch.eye(3))
        g.layers[0].bias.zero_()
    y = torch.full((2, 3), scale, dtype=torch.float32)
    solution = solve(g, y, zoo.SOLVERS[name])
    error = (solution.value.double() - y.double() / 0.03).norm(dim=1)
    assert (error <= solution.stats.error_bound).all()
