import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import BatchNorm, CompositeTransform, InverseTransform, LULinear

from pyro_iresnet import (
    Exact,
    IResNetTransform,
    PowerSeries,
    Roulette,
    iresnet_stack,
    logdet_with_error,
)
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.logdet import ConvergedSeries

from .. import zoo

X = (4, zoo.DIM)


def check(flow, x, exact, draws=100, **options):
    mean, error = logdet_with_error(flow, x, draws, **options)
    assert mean.shape == error.shape == x.shape[:-1]
    assert (error > 0).all()
    assert ((mean - exact).abs() <= 4 * error).all()


ESTIMATORS = [Roulette(), ConvergedSeries(1e-6, probes=1), PowerSeries(60, probes=2)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_error_of_block(estimator):
    block, x = zoo.block(logdet=estimator), torch.randn(*X)
    exact = Exact()(block.contraction.linearize(x), lipschitz=0.97)
    check(block, x, exact)
    assert block.logdet is estimator


@pytest.mark.parametrize(
    "estimator",
    [Roulette(), pytest.param(PowerSeries(terms=40), marks=pytest.mark.slow)],
    ids=repr,
)
def test_error_of_flows(estimator):
    x = torch.randn(*X)
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    exact = flow.log_prob(x) - base.log_prob(stack(x))
    for part in stack.parts[1::2]:
        part.block.logdet = estimator
    check(flow, x, exact.detach())
    check(stack, x, exact.detach())
    check(stack.inv, stack(x).detach(), -exact.detach())

    blocks = [zoo.block(), zoo.block()]
    parts = [IResNetTransform.from_block(b) for b in blocks]
    transform = CompositeTransform([parts[0], LULinear(zoo.DIM), InverseTransform(parts[1])])
    exact = transform(x)[1].detach()
    for block in blocks:
        block.logdet = estimator
    check(transform, x, exact)
    check(Flow(transform, StandardNormal([zoo.DIM])), x, exact)


def test_error_under_context():
    block, x = zoo.CONDITIONAL["conditional_dense"](), torch.randn(*X)
    transform = IResNetTransform.from_block(zoo.ResidualBlock(block, logdet=Roulette()))
    context = torch.randn(4, zoo.CONTEXT)
    exact = Exact()(block.linearize(x, context), lipschitz=0.97).detach()
    check(transform, x, exact, 400, context=context)
    check(transform.block, x, exact, 400, context=context)


def test_no_error_of_exact():
    estimate = logdet_with_error(zoo.block(logdet=Exact()), torch.randn(*X), 5)
    assert (estimate.standard_error <= 1e-12).all()


def test_batch_shapes():
    block = zoo.block(logdet=Roulette())
    for batch in ((), (2, 3)):
        mean, error = logdet_with_error(block, torch.randn(*batch, zoo.DIM), 10)
        assert mean.shape == error.shape == batch


def test_follows_seed():
    block, x = zoo.block(logdet=ConvergedSeries()), torch.randn(*X)
    torch.manual_seed(3)
    first = logdet_with_error(block, x, 5)
    torch.manual_seed(3)
    assert torch.equal(first.mean, logdet_with_error(block, x, 5).mean)


def test_refuses_wrong_arguments():
    block, x = zoo.block(), torch.randn(*X)
    with pytest.raises(ArgumentError, match="draws to be at least 2; got 1"):
        logdet_with_error(block, x, 1)
    with pytest.raises(ArgumentTypeError, match=r"flow to be a Block.* got Linear"):
        logdet_with_error(torch.nn.Linear(2, 2), x)
    with pytest.raises(ArgumentTypeError, match=r"flow to be a Block.* got Linear"):
        logdet_with_error(torch.nn.Linear(2, 2), x, context=torch.randn(4, 2))
    with pytest.raises(ArgumentError, match="Expected no context"):
        logdet_with_error(zoo.PYRO_TRANSFORMS["stack"](), x, context=torch.randn(4, 2))


@pytest.mark.parametrize("shapes", [((), (8,)), ((6,), (5, 1)), ((1,), (4,)), ((4,), ())])
def test_broadcasts_context(shapes):
    g = zoo.CONDITIONAL["conditional_dense"]()
    block = zoo.ResidualBlock(g, logdet=Exact())
    x, context = torch.randn(*shapes[0], zoo.DIM), torch.randn(*shapes[1], zoo.CONTEXT)
    mean, error = logdet_with_error(block, x, 8, context=context)
    torch.testing.assert_close(mean, block.forward_and_log_det(x, context)[1].detach())
    assert (error <= 1e-12).all()


def test_starts_nothing():
    stack = iresnet_stack(2, 2)
    norm = BatchNorm(2)
    transform = CompositeTransform([IResNetTransform(2), norm]).train()
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (stack, transform)]
    for module, before in zip((stack, transform), states, strict=True):
        logdet_with_error(module, torch.randn(30, 2), 3)
        assert all(m.training for m in module.modules())
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_refuses_nflows_shapes():
    transform = IResNetTransform(zoo.DIM, context_features=2)
    with pytest.raises(ArgumentError, match=r"\(batch, features\) for nflows; got \(5,\)"):
        logdet_with_error(transform, torch.randn(zoo.DIM), 3)
    with pytest.raises(ArgumentError, match="each of the 4 rows of x; got 3"):
        logdet_with_error(transform, torch.randn(*X), 3, context=torch.randn(3, 2))
    with pytest.raises(ArgumentTypeError, match=r"x to be a torch\.Tensor; got list"):
        logdet_with_error(transform, [1.0], 3)
