import pytest
import torch
from torch.func import grad, vmap

from . import zoo

GRID = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([-1e4, -0.0, 0.0, 1e-12, 1e4])])


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_the_slope_is_the_derivative(name):
    activation = zoo.ACTIVATIONS[name]().double()
    value, slope = activation.value_and_slope(GRID.double())
    torch.testing.assert_close(value, activation(GRID.double()))
    torch.testing.assert_close(slope, vmap(grad(activation))(GRID.double()), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_the_slope_keeps_its_bound(name):
    activation = zoo.ACTIVATIONS[name]()
    slope = activation.value_and_slope(torch.linspace(-20, 20, 200_001))[1]
    assert slope.abs().max() <= activation.bound


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_the_second_derivative_is_finite_everywhere(name):
    activation = zoo.ACTIVATIONS[name]()
    x = GRID.double().requires_grad_()
    slope = activation.value_and_slope(x)[1]
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert second.isfinite().all()


@pytest.mark.parametrize("beta", [1e-3, 0.5, 1.0, 30.0])
def test_lipswish_starts_at_the_beta_asked(beta):
    activation = zoo.LipSwish(beta=beta)
    torch.testing.assert_close(activation.beta, torch.tensor(beta))
    value, slope = activation.value_and_slope(torch.zeros(1))
    assert value.item() == 0.0
    torch.testing.assert_close(slope, torch.tensor([0.5 / 1.1]))


def test_the_constant_of_lipswish_is_nearly_tight():
    slope = zoo.LipSwish().value_and_slope(torch.linspace(2.3, 2.5, 10_001))[1]
    assert 0.999 < slope.max() < 1.0
