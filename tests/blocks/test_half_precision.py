"""Blocks in half precision: right to the dtype, in every call and in the gradient of x."""

import copy

import pytest
import torch

from pyro_iresnet import CayleyBlock, Exact, PowerSeries, ResidualBlock, Roulette
from pyro_iresnet.hosts.pyro import LinearAutoregressive
from pyro_iresnet.logdet import Adaptive, ConvergedSeries

from .. import zoo

# Enough terms that no roulette matters, since rounding may decide it.
SURE = Adaptive(threshold=1e-4, exact_terms=8)
LOGDETS = {
    "exact": Exact(),
    "power": PowerSeries(),
    "converged": ConvergedSeries(),
    "roulette": Roulette(SURE),
    "plain_roulette": Roulette(SURE, control_variate=None),
}


def numbers(block, x):
    """Return images, log-determinants, products with the Jacobian, and a gradient."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    found = [*block.forward_and_log_det(x), *block.inverse_and_log_det(x)]
    evaluation = block.evaluate(x.detach())
    found += [evaluation.vjp(x.detach()), evaluation.inverse_vjp(x.detach())]
    loss = sum(f.sum() for f in found[:4])
    found = [f.detach() for f in found]
    return [*found, *torch.autograd.grad(loss, x)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOGDETS)
@pytest.mark.parametrize("kind", [ResidualBlock, CayleyBlock])
@pytest.mark.parametrize("dim", [3, 5, 20])
def test_half_precision(dim, kind, name, dtype):
    half = kind(zoo.dense(dim, lipschitz=0.3), logdet=LOGDETS[name]).to(dtype)
    x = torch.randn(4, dim).to(dtype)
    precise = copy.deepcopy(half).double()
    pairs = zip(numbers(half, x), numbers(precise, x.double()), strict=True)
    for found, expected in pairs:
        assert found.dtype == dtype
        size = 1 + float(expected.abs().max())
        assert float((found.double() - expected).abs().max()) <= 32 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_affine_in_half(dtype):
    half = LinearAutoregressive(3)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    half = half.to(dtype)
    precise = copy.deepcopy(half).double()
    x = torch.randn(4, 3).to(dtype)
    for found, expected in (
        (half.evaluate_inverse(x).x, precise.evaluate_inverse(x.double()).x),
        (half.evaluate(x).inverse_vjp(x), precise.evaluate(x.double()).inverse_vjp(x.double())),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)
