"""Protocol of transforms in Pyro."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import iterated
from torch.distributions import AffineTransform, ExpTransform, constraints

from pyro_iresnet import (
    InverseIResNet,
    IResNet,
    ResidualBlock,
    iresnet,
)
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.hosts.pyro import LinearAutoregressive, Stack

from .. import zoo
from ..truth import normal

NAMES = list(zoo.PYRO_TRANSFORMS)
BATCHES = [(), (5,), (3, 4), (0,)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_both_directions(name, batch):
    transform = zoo.PYRO_TRANSFORMS[name]().with_cache(0)
    x = torch.randn(*batch, zoo.DIM)
    y = transform(x)
    assert y.shape == x.shape
    assert transform.log_abs_det_jacobian(x, y).shape == batch
    torch.testing.assert_close(transform.inv(y.clone()), x, atol=1e-7, rtol=1e-7)
    assert transform.forward_shape(x.shape) == x.shape
    assert transform.inverse_shape(x.shape) == x.shape
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    if x.numel():  # torch cannot check an empty batch
        assert transform.domain.check(x).shape == batch
    assert transform.bijective
    assert transform.sign == 1


@pytest.mark.parametrize("name", NAMES)
def test_logdet(name):
    transform = zoo.PYRO_TRANSFORMS[name]().with_cache(0)
    x, h = torch.randn(zoo.DIM), 1e-6
    rows = [(transform(x + h * e) - transform(x - h * e)) / (2 * h) for e in torch.eye(zoo.DIM)]
    expected = torch.linalg.slogdet(torch.stack(rows)).logabsdet
    logdet = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(logdet, expected, atol=1e-6, rtol=1e-6)
    inverse = transform.inv
    y = transform(x)
    torch.testing.assert_close(inverse.log_abs_det_jacobian(y, inverse(y)), -logdet)


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_agreeing_densities(name, cache_size):
    transform = zoo.PYRO_TRANSFORMS[name]().with_cache(cache_size)
    flow = dist.TransformedDistribution(normal(), [transform])
    back = dist.TransformedDistribution(flow, [transform.inv])
    x = flow.rsample((4,))
    assert x.requires_grad
    log_prob = flow.log_prob(x)
    torch.testing.assert_close(flow.log_prob(x.detach().clone()), log_prob)
    torch.testing.assert_close(
        back.log_prob(x.detach()), normal().log_prob(x.detach()), atol=1e-7, rtol=1e-7
    )
    assert flow.event_shape == (zoo.DIM,)
    assert not flow.sample((2,)).requires_grad


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", NAMES)
def test_trains_both_directions(name, direction):
    transform = zoo.PYRO_TRANSFORMS[name]()
    flow = dist.TransformedDistribution(
        normal(), [transform if direction == "forward" else transform.inv]
    )
    optimizer = torch.optim.Adam(transform.parameters(), lr=1e-2)
    data = 2.0 + 0.5 * torch.randn(64, zoo.DIM)
    losses = []
    for _ in range(3):
        loss = -flow.log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in transform.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


CACHED = zoo.PYRO_TRANSFORMS | {
    "linear_autoregressive": lambda: LinearAutoregressive(zoo.DIM),
    "conditioned": lambda: zoo.conditional().condition(torch.randn(zoo.CONTEXT)),
}


@pytest.mark.parametrize("name", CACHED)
def test_with_cache(name):
    transform, x = CACHED[name]().eval(), torch.randn(5, zoo.DIM)
    inverse, y = transform.inv, transform(x)
    other = transform.with_cache(0)
    assert transform.with_cache(1) is transform
    assert type(other) is type(transform)
    assert other.inv is not inverse
    assert torch.equal(other(x), y)
    assert transform.inv(y) is x
    assert other.inv(y) is not x
    ours, theirs = list(transform.parameters()), list(other.parameters())
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    assert list(other.state_dict()) == list(transform.state_dict())
    assert not other.training
    other.train()
    assert not transform.training


def test_with_cache_leaves_stack():
    stack, x = zoo.PYRO_TRANSFORMS["stack"]().eval(), torch.randn(5, zoo.DIM)
    y = stack(x)
    other = stack.with_cache(0)
    other.parts = other.parts[:1]
    assert len(stack.parts) > len(other.parts) == 1
    assert torch.equal(stack(x.clone()), y)


def test_stack_registers_parameters():
    block = ResidualBlock(zoo.dense(3))
    stack = dist.ComposeTransformModule([iresnet(3), InverseIResNet(block)])
    assert sum(p.numel() for p in stack.parameters()) == sum(
        p.numel() for part in stack.parts for p in part.parameters()
    )
    assert len(list(iterated(4, iresnet, 3).parameters())) == 4 * len(list(iresnet(3).parameters()))


def test_inverse_undoes_block():
    block = zoo.block(3)
    x = torch.randn(5, 3)
    y = IResNet(block)(x)
    torch.testing.assert_close(InverseIResNet(block)(y), x)


def test_inverse_stretches_further():
    block = ResidualBlock(zoo.wrap(zoo.Scaled(-0.9, torch.eye(1)), lipschitz=0.9))
    y = InverseIResNet(block)(torch.ones(1, 1))
    torch.testing.assert_close(y, torch.full((1, 1), 10.0))


def test_images():
    block = ResidualBlock(zoo.CONTRACTIONS["wrapped_image"]())
    transform = IResNet(block)
    x = torch.randn(2, *zoo.event_shape("wrapped_image"))
    assert transform.domain.event_dim == 3
    y = transform(x)
    assert transform.log_abs_det_jacobian(x, y).shape == (2,)
    torch.testing.assert_close(transform.inv(y.clone()), x)
    assert transform.forward_shape(x.shape) == x.shape
    with pytest.raises(ArgumentError):
        transform.forward_shape((3, 4))


def test_within_torch_transforms():
    transform = torch.distributions.ComposeTransform(
        [AffineTransform(1.0, 2.0), iresnet(3), ExpTransform()]
    )
    flow = torch.distributions.TransformedDistribution(normal(3), [transform])
    assert flow.log_prob(flow.sample((4,))).shape == (4,)
    assert constraints.independent(constraints.positive, 1).check(flow.sample((4,))).all()


@pytest.mark.parametrize("direction", ["density", "sample"])
def test_second_backward_pass(direction):
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    transforms = [stack.inv] if direction == "density" else [stack]
    flow = dist.TransformedDistribution(base, transforms)
    x = torch.randn(4, zoo.DIM)
    gradients = []
    for _ in range(2):
        stack.zero_grad()
        flow.log_prob(x).sum().backward()
        gradients.append([p.grad.clone() for p in stack.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_log_density_draws_afresh():
    transform = iresnet(20)
    zoo.trained(transform.block.contraction)
    flow = dist.TransformedDistribution(normal(20), [transform.inv])
    x = torch.randn(3, 20)
    with torch.no_grad():
        draws = torch.stack([flow.log_prob(x) for _ in range(50)])
        others = torch.stack([flow.log_prob(x.clone()) for _ in range(50)])
    assert (draws.std(0) > 0.3 * others.std(0)).all()


def test_restacks_parts():
    inner = Stack([iresnet(2), iresnet(2)])
    x = torch.randn(5, 2)
    for outer in (Stack(inner), Stack([inner]), Stack(part for part in inner)):
        torch.testing.assert_close(outer(x), inner(x))
