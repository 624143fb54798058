import pytest
import torch
from torch.func import grad, vmap

from .. import zoo

GRID = (
    torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([-1e4, -0.0, 0.0, 1e-12, 1e4])])
).double()


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_slope_is_derivative(name):
    activation = zoo.ACTIVATIONS[name]().double()
    value, slope = activation.value_and_slope(GRID.double())
    torch.testing.assert_close(value, activation(GRID.double()))
    torch.testing.assert_close(slope, vmap(grad(activation))(GRID.double()), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_slope_keeps_bound(name):
    activation = zoo.ACTIVATIONS[name]()
    slope = activation.value_and_slope(torch.linspace(-20, 20, 200_001))[1]
    assert slope.abs().max() <= activation.bound


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_second_derivative_is_finite(name):
    activation = zoo.ACTIVATIONS[name]()
    x = GRID.double().requires_grad_()
    slope = activation.value_and_slope(x)[1]
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert second.isfinite().all()


@pytest.mark.parametrize("beta", [1e-3, 0.5, 1.0, 30.0])
def test_starts_at_given_beta(beta):
    activation = zoo.LipSwish(beta=beta)
    torch.testing.assert_close(activation.beta, torch.tensor(beta))
    value, slope = activation.value_and_slope(torch.zeros(1))
    assert value.item() == 0.0
    torch.testing.assert_close(slope, torch.tensor([0.5 / 1.1]))


def test_tight_constant_of_lipswish():
    slope = zoo.LipSwish().value_and_slope(torch.linspace(2.3, 2.5, 10_001))[1]
    assert 0.999 < slope.max() < 1.0


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_factors_rebuild_activation(name):
    activation = zoo.ACTIVATIONS[name]()
    factors = activation.factors()
    core = factors.core
    inner, outer = (1.0 if f is None else f for f in (factors.inner, factors.outer))
    assert not list(core.parameters())
    torch.testing.assert_close(outer * core(inner * GRID), activation(GRID))
    value, slope = core.value_and_slope(inner * GRID)
    expected = activation.value_and_slope(GRID)
    torch.testing.assert_close((outer * value, outer * inner * slope), expected)


@pytest.mark.parametrize("raw_beta", [-90.0, -40.0, 40.0])
def test_finite_at_extreme_beta(raw_beta):
    g = zoo.dense().float()
    with torch.no_grad():
        for activation in g.activations:
            activation.raw_beta.fill_(raw_beta)
    x = torch.randn(20, zoo.DIM, dtype=torch.float32)
    expected = g.double().linearize(x.double())
    found = g.float().linearize(x)
    for a, b in ((found.value, expected.value), (found.as_matrix(), expected.as_matrix())):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("raw_beta", [-90.0, -18.0, -8.0, 40.0])
def test_extreme_beta_in_half(raw_beta, dtype):
    g = zoo.dense()
    with torch.no_grad():
        for activation in g.activations:
            activation.raw_beta.fill_(raw_beta)
    assert bool(g.to(dtype)(torch.randn(20, zoo.DIM).to(dtype)).isfinite().all())


def test_second_order_of_fused_silu():
    core, x = zoo.LipSwish().factors().core, torch.linspace(-3, 3, 7, requires_grad=True)
    assert torch.autograd.gradcheck(core.value_and_slope, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(core.value_and_slope, (x,), check_batched_grad=True)
    for i in range(2):
        (alone,) = torch.autograd.grad(core.value_and_slope(x)[i].sum(), x)
        (plain,) = torch.autograd.grad(
            (core(x) if i == 0 else x.sigmoid() * (1 + x * (1 - x.sigmoid()))).sum(), x
        )
        torch.testing.assert_close(alone, plain)
