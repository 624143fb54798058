"""Blocks under torch.func and torch.compile agree with eager autograd, or refuse."""

import pyro.distributions as dist
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from pyro_iresnet import Exact, FixedPoint, PowerSeries, ResidualBlock, Roulette
from pyro_iresnet.errors import HigherOrderError, TracingError
from pyro_iresnet.logdet import ConvergedSeries

from .. import zoo


def flow(estimator=None):
    stack = zoo.PYRO_TRANSFORMS["stack"]().eval()
    for module in stack.modules():
        if estimator is not None and isinstance(module, ResidualBlock):
            module.logdet = estimator
    # Older releases of torch validate samples by a branch on their values, which vmap refuses.
    normal = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM), validate_args=False)
    return dist.TransformedDistribution(normal.to_event(1), [stack.inv], validate_args=False)


@pytest.mark.parametrize("estimator", [Exact(), PowerSeries(terms=6)])
def test_vmap_and_hessian(estimator):
    log_prob = flow(estimator).log_prob
    x = torch.randn(4, zoo.DIM)
    torch.testing.assert_close(vmap(log_prob)(x), log_prob(x))
    expected = torch.stack([torch.autograd.functional.hessian(log_prob, row) for row in x])
    torch.testing.assert_close(vmap(hessian(log_prob))(x), expected)
    torch.testing.assert_close(vmap(jacrev(jacrev(log_prob)))(x), expected)
    torch.testing.assert_close(jacfwd(log_prob)(x[0]), jacrev(log_prob)(x[0]))


def test_inverse_derivatives():
    block = ResidualBlock(zoo.dense(3), solver=FixedPoint(rtol=1e-13))
    y = torch.randn(4, 3)

    def cubes(y):
        return (block.inverse(y) ** 3).sum()

    expected = torch.autograd.functional.jacobian(cubes, y)
    torch.testing.assert_close(grad(cubes)(y), expected)
    expected = torch.autograd.functional.jacobian(block.inverse, y[0])
    torch.testing.assert_close(jacrev(block.inverse)(y[0]), expected)

    def norm_of_gradient(y):
        return grad(cubes)(y).pow(2).sum()

    def norm_by_autograd(y):
        return torch.autograd.grad(cubes(y), y, create_graph=True)[0].pow(2).sum()

    leaf = y.clone().requires_grad_()
    (expected,) = torch.autograd.grad(norm_by_autograd(leaf), leaf)
    torch.testing.assert_close(grad(norm_of_gradient)(y), expected)


@pytest.mark.parametrize("estimator", [Exact(), Roulette()])
def test_functional_call_gradients(estimator):
    block = zoo.block(logdet=estimator)
    x = torch.randn(4, zoo.DIM)

    class LogDet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block.forward_and_log_det(x)[1].sum()

    module = LogDet()
    parameters = dict(module.named_parameters())
    torch.manual_seed(1)
    functional = grad(lambda p: functional_call(module, p, (x,)))(parameters)
    torch.manual_seed(1)
    module(x).backward()
    for name, parameter in parameters.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(functional[name], expected)


def test_refuses_forward_mode():
    x = torch.randn(4, zoo.DIM)
    roulette, inverse = zoo.block(logdet=Roulette()), zoo.block().inverse
    with pytest.raises(HigherOrderError, match="Roulette has no forward-mode derivative"):
        jvp(lambda x: roulette.forward_and_log_det(x)[1], (x,), (x,))
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(HigherOrderError, match="Roulette has no forward-mode derivative"):
            roulette.forward_and_log_det(dual)
    with pytest.raises(HigherOrderError, match="The inverse has no forward-mode derivative"):
        jvp(inverse, (x,), (x,))


def test_roulette_refuses_hessian():
    block = zoo.block(logdet=Roulette())
    with pytest.raises(HigherOrderError, match="Roulette has no forward-mode derivative"):
        hessian(lambda x: block.forward_and_log_det(x)[1].sum())(torch.randn(2, zoo.DIM))


@pytest.mark.parametrize("derivative", [jacfwd, hessian])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_inverse_refuses_forward_mode(batch, dtype, derivative):
    block = zoo.block().to(dtype)
    x = torch.randn(*batch, zoo.DIM, dtype=dtype)
    with pytest.raises(HigherOrderError, match="The inverse has no forward-mode derivative"):
        derivative(block.inverse)(x)


def test_forward_mode_of_exact():
    block = zoo.block(logdet=Exact())
    x = torch.randn(4, zoo.DIM)
    parameters = {n: p.detach() for n, p in block.named_parameters()}
    tangents = {n: torch.randn_like(p) for n, p in parameters.items()}

    def value(p):
        return functional_call(block, p, (x,)).sum()

    _, forward = jvp(value, (parameters,), (tangents,))
    reverse = grad(value)(parameters)
    expected = sum((reverse[n] * tangents[n]).sum() for n in parameters)
    torch.testing.assert_close(forward, expected)


def test_refuses_batched_cotangents():
    block = zoo.block(40)
    y = torch.randn(40)
    with pytest.raises(TracingError, match="more than 16 coordinates cannot run under"):
        jacrev(block.inverse)(y)


@pytest.mark.compiled
@pytest.mark.parametrize("dim", [2, zoo.DIM])
def test_compiled_inverse(dim):
    block = zoo.block(dim)
    y = torch.randn(4, dim, requires_grad=True)
    compiled = torch.compile(block.inverse, backend="eager")
    torch.testing.assert_close(compiled(y), block.inverse(y))
    first = torch.autograd.grad(compiled(y).sum(), y)
    torch.testing.assert_close(first, torch.autograd.grad(block.inverse(y).sum(), y))


@pytest.mark.parametrize("dim", [2, 8, 20])
def test_ignores_autocast(dim):
    block = zoo.block(dim).eval()
    x = torch.randn(4, dim)
    expected = block.forward_and_log_det(x), block.inverse(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = block.forward_and_log_det(x), block.inverse(x)
    torch.testing.assert_close(other, expected)


def test_refuses_vmap_of_loops():
    x = torch.randn(4, zoo.DIM)
    with pytest.raises(TracingError, match=r"The inverse cannot run under torch.func.vmap"):
        vmap(zoo.block().inverse)(x)
    for estimator in (Roulette(), ConvergedSeries()):
        block = zoo.block(logdet=estimator)
        with pytest.raises(TracingError, match=r"cannot run under torch.func.vmap"):
            vmap(block.forward_and_log_det)(x)


@pytest.mark.compiled
def test_compiled_block():
    block = zoo.block(logdet=Exact())
    compiled = torch.compile(block.forward_and_log_det, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, zoo.DIM)
    outputs = []
    for function in (block.forward_and_log_det, compiled):
        block.zero_grad()
        y, logdet = function(x)
        (y.sum() + logdet.sum()).backward()
        outputs.append([y, logdet, *[p.grad for p in block.parameters() if p.grad is not None]])
    for eager, other in zip(*outputs, strict=True):
        torch.testing.assert_close(other, eager)


def test_inference_mode():
    log_prob = flow().log_prob
    x = torch.randn(4, zoo.DIM)
    expected = log_prob(x)
    with torch.inference_mode():
        torch.testing.assert_close(log_prob(x), expected.detach())
        block = zoo.block()
        y = block(x)
        torch.testing.assert_close(block.inverse(y), x)
