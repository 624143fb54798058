"""Compiled flows agree with eager flows, without a graph break."""

import math
import shutil

import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform

from pyro_iresnet import (
    Exact,
    IResNetTransform,
    PowerSeries,
    ResidualBlock,
    Roulette,
    actnorm,
    cached,
    conditional_iresnet_stack,
)
from pyro_iresnet.logdet import Adaptive, Geometric, Truncation

from .. import zoo
from ..truth import normal

pytestmark = pytest.mark.compiled

ESTIMATORS = {
    "exact": Exact(),
    "series": PowerSeries(terms=6),
    "roulette": Roulette(),
    "geometric": Roulette(Geometric(p=0.05), probes=2),
}
BACKENDS = ["aot_eager"]
if shutil.which("c++") or shutil.which("g++"):
    BACKENDS.append(pytest.param("inductor", marks=pytest.mark.slow))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def nflows_flow(estimator, dim=zoo.DIM):
    blocks = [zoo.block(dim, logdet=estimator) for _ in range(2)]
    transform = CompositeTransform([IResNetTransform.from_block(b) for b in blocks])
    return Flow(transform, StandardNormal([dim])), transform


def pyro_flow(estimator):
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    for module in stack.modules():
        if isinstance(module, ResidualBlock):
            module.logdet = estimator
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    # Start ActNorm outside of the compiler.
    flow.log_prob(torch.randn(20, zoo.DIM))
    return flow, stack


def loss_and_gradients(loss, module, x):
    torch.manual_seed(1)
    value = loss(x)
    return [value, *torch.autograd.grad(value, list(module.parameters()), allow_unused=True)]


def check_compiled(function, module, x, backend):
    eager = loss_and_gradients(function, module, x)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    found = loss_and_gradients(compiled, module, x.clone())
    for a, b in zip(found, eager, strict=True):
        torch.testing.assert_close(a, b)


# Each estimator runs once without `slow`, in one of the four combinations.
LOSSES = [
    pytest.param(
        make,
        name,
        share,
        marks=[] if (i, share) == (j % 2, j // 2 % 2) else pytest.mark.slow,
    )
    for i, make in enumerate([nflows_flow, pyro_flow])
    for j, name in enumerate(ESTIMATORS)
    for share in (False, True)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "name", "share"), LOSSES)
def test_loss_of_flow(make, name, share, backend):
    flow, module = make(ESTIMATORS[name])

    def loss(x):
        if share:
            with cached(module):
                return -flow.log_prob(x).mean()
        return -flow.log_prob(x).mean()

    check_compiled(loss, module, torch.randn(6, zoo.DIM), backend)


def test_conditioned_flow():
    family = conditional_iresnet_stack(zoo.DIM, 3, 2, hidden_dims=[8], between=None)
    transform = family.condition(torch.randn(3))
    flow = dist.TransformedDistribution(normal(zoo.DIM), [transform.inv], validate_args=False)
    check_compiled(lambda x: -flow.log_prob(x).mean(), family, torch.randn(6, zoo.DIM), "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 3, 20])
def test_other_dimensions(dim):
    # The draws of the training default take another order when compiled.
    flow, module = nflows_flow(Roulette() if dim == 20 else None, dim)
    check_compiled(lambda x: -flow.log_prob(x).mean(), module, torch.randn(6, dim), "aot_eager")


@pytest.mark.slow
def test_training_default():
    # At every batch size one graph without a break, with the mean of the exact value and gradient.
    flow, module = nflows_flow(None, 20)
    exact, _ = nflows_flow(Exact(), 20)
    exact.load_state_dict(flow.state_dict())
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 20)
    expected = exact.log_prob(x)
    gradient = torch.autograd.grad(expected.sum(), list(exact.parameters()), allow_unused=True)
    flat = torch.cat([t.flatten() for t in gradient if t is not None])
    values, gradients = [], []
    for copies in [100] * 20 + [70] * 10:
        value = compiled(x.repeat(copies, 1)).reshape(copies, 3).mean(0)
        values.append(value.detach())
        grads = torch.autograd.grad(value.sum(), list(module.parameters()), allow_unused=True)
        gradients.append(torch.cat([t.flatten() for t in grads if t is not None]))
    found, error = torch.stack(values), torch.stack(values).std(0) / math.sqrt(30)
    assert ((found.mean(0) - expected).abs() <= 5 * error).all()
    drawn = torch.stack(gradients)
    spread = math.sqrt(float(drawn.var(0).sum()) / 30)
    assert (drawn.mean(0) - flat).norm() <= 2 * spread
    assert spread <= 0.05 * flat.norm()


@pytest.mark.slow
def test_ignores_outer_cache():
    flow, module = nflows_flow(Exact())
    x = torch.randn(6, zoo.DIM)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    with cached(module):
        flow.log_prob(x)
        first = compiled(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)
    assert not torch.allclose(compiled(x), first)
    torch.testing.assert_close(compiled(x), flow.log_prob(x))


@pytest.mark.slow
def test_draws_anew():
    flow, _ = nflows_flow(Roulette())
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, zoo.DIM)
    assert not torch.equal(compiled(x), compiled(x))


class Halving(Truncation):
    """Truncation without a dataclass. No graph can hold the truncation."""

    exact_terms = 1

    def survival(self, term, magnitude):
        return torch.full_like(magnitude, 0.95)


@pytest.mark.slow
def test_graph_break_of_truncation():
    flow, _ = nflows_flow(Roulette(Halving()))
    x = torch.randn(6, zoo.DIM)
    torch.manual_seed(0)
    eager = flow.log_prob(x)
    compiled = torch.compile(flow.log_prob, backend="aot_eager")
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), eager)


@pytest.mark.parametrize(
    "estimator",
    [
        Roulette(Adaptive(0.1)),
        pytest.param(Exact(), marks=pytest.mark.slow),
        pytest.param(PowerSeries(), marks=pytest.mark.slow),
    ],
)
def test_graph_break_of_wrapped(estimator):
    block = ResidualBlock(zoo.CONTRACTIONS["wrapped"](), logdet=estimator)
    x = torch.randn(6, zoo.DIM)
    torch.manual_seed(0)
    eager = block.forward_and_log_det(x)
    compiled = torch.compile(block.forward_and_log_det, backend="aot_eager")
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), eager)


def test_actnorm_start():
    transform, x = actnorm(3), 5 + torch.randn(50, 3)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="make that call uncompiled"):
        torch.compile(transform, fullgraph=True, backend="aot_eager")(x)
    y = torch.compile(transform, backend="aot_eager")(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3))
    again = torch.compile(transform, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(again, y)


@pytest.mark.parametrize("name", ["two_hidden", "sequence", "conv_zeros", "conditional_dense"])
def test_one_graph_per_network(name):
    g = {**zoo.CONTRACTIONS, **zoo.CONDITIONAL}[name]()
    block = ResidualBlock(g, logdet=Exact())
    x = torch.randn(6, *zoo.event_shape(name))
    context = None if g.context_dim is None else torch.randn(6, zoo.CONTEXT)
    compiled = torch.compile(block.forward_and_log_det, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, context), block.forward_and_log_det(x, context))
