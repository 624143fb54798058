"""Blocks of a user in both hosts, in the builders, and in the diagnostics."""

import math
from dataclasses import dataclass
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from nflows.transforms import CompositeTransform, InverseTransform
from torch import nn

from pyro_iresnet import (
    AutoIResNet,
    ConditionalIResNet,
    DenseContraction,
    Exact,
    FixedPoint,
    InverseIResNet,
    IResNet,
    IResNetTransform,
    cached,
    certificate,
    conditional_iresnet,
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet,
    iresnet_flow,
    iresnet_stack,
    logdet_with_error,
)
from pyro_iresnet.blocks import Block, Evaluation
from pyro_iresnet.errors import ArgumentTypeError
from pyro_iresnet.hosts.pyro import ConditionalStack, Stack
from pyro_iresnet.logdet import Series
from pyro_iresnet.options import BlockOptions
from pyro_iresnet.solvers import solve

from .. import zoo
from ..guides.models import banana, step
from ..truth import normal


@dataclass(frozen=True)
class Zero(Series):
    """Series of a map that keeps volumes."""

    def coefficient(self, k):
        return 0.0

    def log_det(self, matrix):
        return 0.0 * matrix.diagonal(dim1=-2, dim2=-1).sum(-1)

    def expand(self, matrix):
        return matrix.new_zeros(()), torch.zeros_like(matrix)

    def tail(self, terms, lipschitz):
        return 0.0


class Coupling(Block):
    """Additive coupling ``y = x + m g((1 - m) x)`` with a mask ``m``: volumes are kept."""

    def evaluate(self, x, context=None):
        z = self.to_coordinates(x)
        at = self.contraction_map().linearize(z * self.still(z), context)
        y = self.from_coordinates(z + at.value * (1 - self.still(z)))
        return self._made(x, y, at)

    def evaluate_inverse(self, y, context=None, *, x0=None):
        z = self.to_coordinates(y)
        at = self.contraction_map().linearize(z * self.still(z), context)
        x = self.from_coordinates(z - at.value * (1 - self.still(z)))
        return self._made(x, y, at)

    def _made(self, x, y, at):
        def shear(at, w):
            return self.still(w) * at.vm((1 - self.still(w)) * w)

        return self.evaluation(
            x,
            y,
            lambda: at,
            Zero(),
            lambda at, lipschitz, w: w + shear(at, w),
            lambda at, lipschitz, w: w - shear(at, w),
        )

    @staticmethod
    def still(z):
        return (torch.arange(z.shape[-1]) % 2).to(z.dtype)


class Stretched(Block):
    """Scaled residual block ``y = c (x + g(x))`` with a learned ``c``; no coordinates."""

    def __init__(self, contraction, *, start=2.0, coordinates=None, **options):
        super().__init__(contraction, **options)
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))

    def evaluate(self, x, context=None):
        at = self.contraction_map().linearize(x, context)
        return self._made(x, self.log_scale.exp() * (x + at.value), at)

    def evaluate_inverse(self, y, context=None, *, x0=None):
        target = torch.exp(-self.log_scale) * y
        x = solve(self.contraction, target.detach(), self.solver, context=context, x0=x0).value
        at = self.contraction_map().linearize(x, context)
        # One Newton step carries the gradient.
        residual = (target - x - at.value).flatten(x.dim() - self.event_dim)
        slope = torch.eye(residual.shape[-1]) + at.as_matrix()
        x = x + torch.linalg.solve(slope.detach(), residual[..., None])[..., 0].reshape(x.shape)
        return self._made(x, y, self.contraction_map().linearize(x, context))

    def _made(self, x, y, at):
        scale, size = self.log_scale.detach().exp(), at.event_size
        estimator = self.estimator(size)

        def inverse_vjp(w):
            slope = torch.eye(size) + at.as_matrix().detach()
            return torch.linalg.solve(slope.mT, w[..., None])[..., 0] / scale

        def log_det():
            value = estimator(at, lipschitz=self.contraction.lipschitz)
            return value + size * self.log_scale

        return Evaluation(x, y, log_det, lambda w: scale * (w + at.vm(w)).detach(), inverse_vjp)


OWN = {
    "coupling": Coupling,
    "stretched": Stretched,
    "partial": partial(Stretched, start=0.5),
}
TIGHT = FixedPoint(rtol=1e-12)


def made(name, **options):
    """Make a block of a user with active bounds."""
    return OWN[name](zoo.dense(4, lipschitz=0.8), solver=TIGHT, **options)


@pytest.mark.parametrize("name", OWN)
def test_pyro_host(name):
    block, x = made(name), torch.randn(6, 4)
    jacobian = torch.func.vmap(torch.func.jacrev(block))(x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    for transform in (IResNet(block), InverseIResNet(block).inv):
        y = transform(x)
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
        torch.testing.assert_close(transform.inv(y.clone()), x)
    flow = dist.TransformedDistribution(normal(4), [Stack([IResNet(block), InverseIResNet(block)])])
    torch.testing.assert_close(flow.log_prob(x), normal(4).log_prob(x))


@pytest.mark.parametrize("name", OWN)
def test_nflows_host(name):
    transform, x = IResNetTransform.from_block(made(name)), torch.randn(6, 4)
    y, log_det = transform(x)
    back, inverse = transform.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -log_det)
    z, total = CompositeTransform([transform, InverseTransform(transform)])(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(total, torch.zeros(6), atol=1e-9, rtol=0)


@pytest.mark.parametrize("coordinates", [None, *zoo.COORDINATES])
def test_volume_preserved(coordinates):
    block = zoo.bent(made("coupling", **zoo.COORDINATES.get(coordinates, {})))
    x = torch.randn(6, 4)
    y, log_det = block.forward_and_log_det(x)
    jacobian = torch.func.vmap(torch.func.jacrev(block))(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(block.inverse(y), x)
    w, at = torch.randn(6, 4), block.evaluate(x)
    torch.testing.assert_close(at.vjp(w), (w[:, None] @ jacobian)[:, 0])
    torch.testing.assert_close(at.inverse_vjp(at.vjp(w)), w)
    torch.testing.assert_close(at.inverted().vjp(at.vjp(w)), w)


@pytest.mark.parametrize("name", OWN)
def test_context(name):
    conditional = ConditionalIResNet(OWN[name](zoo.dense(4, context_dim=3), solver=TIGHT))
    transform, x = conditional.condition(torch.randn(6, 3)), torch.randn(6, 4)
    torch.testing.assert_close(transform.inv(transform(x).clone()), x)
    family = dist.ConditionalTransformedDistribution(normal(4), [ConditionalStack([conditional])])
    assert family.condition(torch.randn(6, 3)).log_prob(x).shape == (6,)


BUILDERS = {
    "iresnet": lambda b: iresnet(2, [4], block=b),
    "iresnet_stack": lambda b: iresnet_stack(2, 2, [4], block=b),
    "conditional_iresnet": lambda b: conditional_iresnet(2, 3, [4], block=b),
    "conditional_iresnet_stack": lambda b: conditional_iresnet_stack(2, 3, 2, [4], block=b),
    "IResNetTransform": lambda b: IResNetTransform(2, [4], block=b),
    "iresnet_flow": lambda b: iresnet_flow(2, 2, hidden_features=[4], block=b),
    "conditional_iresnet_flow": lambda b: conditional_iresnet_flow(
        2, 3, 2, hidden_features=[4], block=b
    ),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("builder", BUILDERS)
def test_builder_makes_block(builder, name):
    flow = BUILDERS[builder](OWN[name])
    blocks = [m for m in flow.modules() if isinstance(m, Block)]
    kind = getattr(OWN[name], "func", OWN[name])
    assert blocks
    assert all(type(block) is kind and block.options.block is OWN[name] for block in blocks)
    if name == "partial":
        assert all(block.log_scale.detach().exp().item() == pytest.approx(0.5) for block in blocks)
    x, context = torch.randn(20, 2), torch.randn(20, 3)
    if "conditional" not in builder:
        context = None
    elif "flow" not in builder:
        flow = flow.condition(context)
    # An ActNorm starts from the first call.
    flow.log_prob(x, context) if "flow" in builder else flow(x)
    assert certificate(flow, x, context=context if "flow" in builder else None).holds
    mean, error = logdet_with_error(flow, x, 2, context=context if "flow" in builder else None)
    assert mean.shape == (20,)
    assert float(error.max()) < 1e-9


@pytest.mark.parametrize("name", OWN)
def test_flow_trains_and_samples(name):
    flow = iresnet_flow(2, 2, hidden_features=[8], block=OWN[name])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    x, losses = torch.randn(64, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.2]]), []
    for _ in range(4):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    sample, log_prob = flow.eval().sample_and_log_prob(5)
    torch.testing.assert_close(flow.log_prob(sample), log_prob, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", OWN)
def test_guide(name):
    guide = AutoIResNet(banana, 2, hidden_dims=[8], block=OWN[name])
    assert torch.tensor(step(guide)).isfinite().all()
    posterior = guide.get_posterior()
    x = posterior.rsample((6,))
    entropy = posterior.score_parts(x).entropy_term
    found = torch.autograd.grad(entropy.sum(), x)[0]
    z = x.detach().clone().requires_grad_()
    expected = torch.autograd.grad(posterior.log_prob(z).sum(), z)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert certificate(guide).holds


@pytest.mark.parametrize("name", OWN)
def test_same_when_cached(name):
    block, x = made(name), torch.randn(6, 4)
    expected = block.forward_and_log_det(x)
    with cached(block):
        torch.testing.assert_close(block.forward_and_log_det(x), expected)


def test_stretch_of_own_block():
    block, x = made("coupling"), torch.randn(20, 4)
    (row,) = [r for r in certificate(block, x).rows if r.layer == "g"]
    at = block.contraction.linearize(x * block.still(x))
    expected = torch.linalg.matrix_norm(at.as_matrix().detach(), ord=2).max()
    assert row.stretch == pytest.approx(expected.item())


@pytest.mark.parametrize("name", OWN)
def test_options_through_json(name):
    options = BlockOptions(block=OWN[name], hidden_dims=[4], logdet=Exact())
    again = BlockOptions.from_json(options.to_json())
    blocks = []
    for record in (options, again):
        torch.manual_seed(0)
        blocks.append(record.build(2))
    assert type(blocks[0]) is type(blocks[1])
    x = torch.randn(3, 2)
    assert torch.equal(blocks[0](x), blocks[1](x))


def test_refuses_other_result():
    with pytest.raises(ArgumentTypeError, match="result of block to be a Block"):
        iresnet(2, block=lambda g, **options: nn.Identity())
    with pytest.raises(TypeError, match="abstract"):
        Block(DenseContraction(2))
