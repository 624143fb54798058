"""Conditional transforms in Pyro: shapes, gradients and remembered calls."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions.transforms import _InverseTransform

from pyro_iresnet import (
    ConditionalIResNet,
    Exact,
    FixedPoint,
    ResidualBlock,
    conditional_iresnet,
    conditional_iresnet_stack,
)
from pyro_iresnet.hosts.pyro import ConditionalStack, Stack

from .. import zoo
from ..counting import evaluations_of
from ..truth import normal

NAMES = list(zoo.CONDITIONAL_TRANSFORMS)
TIGHT = FixedPoint(rtol=1e-13)

# Batch shapes of x, of the context and of the result.
SHAPES = [
    ((), (), ()),
    ((5,), (), (5,)),
    ((), (5,), (5,)),
    ((5,), (5,), (5,)),
    ((4, 5), (5,), (4, 5)),
    ((5,), (4, 5), (4, 5)),
    ((4, 1), (5,), (4, 5)),
    ((1,), (5,), (5,)),
    ((5,), (1,), (5,)),
    ((5,), (4, 1), (4, 5)),
    ((2, 1, 5), (4, 1), (2, 4, 5)),
]


def family(*transforms, dim=zoo.DIM):
    return dist.ConditionalTransformedDistribution(normal(dim), list(transforms))


def contexts(*batch, size=zoo.CONTEXT):
    return torch.randn(*batch, size)


def no_memory(transform):
    """Copy a transform, without the memory of its parts."""
    if isinstance(transform, Stack):
        return Stack([no_memory(part) for part in transform.parts])
    if isinstance(transform, _InverseTransform):
        return no_memory(transform.inv).inv
    return transform.with_cache(0)


# ---------------------------------------------------------------------------- protocol


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["block", "mixed"])
def test_broadcasts_batches(name, shapes, remembers):
    of_x, of_context, expected = shapes
    transform = zoo.CONDITIONAL_TRANSFORMS[name]().condition(contexts(*of_context))
    transform = transform if remembers else no_memory(transform)
    x = torch.randn(*of_x, zoo.DIM)
    wide = (*expected, zoo.DIM)
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape) == wide
    assert transform.log_abs_det_jacobian(x, y).shape == expected
    assert transform.inv(y).shape == transform.inverse_shape(y.shape) == wide
    torch.testing.assert_close(transform.inv(y), x.expand(wide), atol=1e-6, rtol=1e-6)
    back = transform.inv(x)
    assert back.shape == transform.inverse_shape(x.shape) == wide
    assert transform.inv.log_abs_det_jacobian(x, back).shape == expected
    torch.testing.assert_close(
        transform.inv.log_abs_det_jacobian(x, back), -transform.log_abs_det_jacobian(back, x)
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_follow_contexts(name):
    conditional, context = zoo.CONDITIONAL_TRANSFORMS[name](), contexts(5)
    transform = conditional.condition(context)
    x = torch.randn(4, 5, zoo.DIM)
    y = transform(x)
    logdet = transform.log_abs_det_jacobian(x, y)
    back = transform.inv(x)
    for i, c in enumerate(context):
        one = no_memory(conditional.condition(c))
        torch.testing.assert_close(one(x[:, i]), y[:, i])
        torch.testing.assert_close(one.log_abs_det_jacobian(x[:, i], y[:, i]), logdet[:, i])
        torch.testing.assert_close(one.inv(x[:, i]), back[:, i], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one.inv(y[:, i].clone()), x[:, i], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(y[:, 0] - x[:, 0], y[:, 1] - x[:, 1])
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    assert transform.bijective


@pytest.mark.parametrize("name", NAMES)
def test_logdet(name):
    conditional, h = zoo.CONDITIONAL_TRANSFORMS[name](), 1e-6
    for context in contexts(3):
        transform = no_memory(conditional.condition(context))
        x = torch.randn(zoo.DIM)
        points = torch.stack([x + h * torch.eye(zoo.DIM), x - h * torch.eye(zoo.DIM)])
        ahead, behind = transform(points)
        expected = torch.linalg.slogdet((ahead - behind) / (2 * h)).logabsdet
        y = transform(x)
        logdet = transform.log_abs_det_jacobian(x, y)
        torch.testing.assert_close(logdet, expected, atol=1e-7, rtol=0)
        torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -logdet)


@pytest.mark.parametrize("batches", [((0,), ()), ((0,), (1,)), ((), (0,))])
def test_empty_batches(batches):
    transform = zoo.conditional().condition(contexts(*batches[1]))
    x = torch.randn(*batches[0], zoo.DIM)
    y = transform(x)
    assert y.shape == transform.inv(x).shape == (0, zoo.DIM)
    assert transform.log_abs_det_jacobian(x, y).shape == (0,)


def test_images():
    g = zoo.CONDITIONAL["conditional_conv"]()
    conditional = ConditionalIResNet(ResidualBlock(g))
    transform = conditional.condition(contexts(2))
    x = torch.randn(3, 1, 2, 3, 4)
    y = transform(x)
    assert conditional.domain.event_dim == transform.domain.event_dim == 3
    assert y.shape == transform.forward_shape(x.shape) == (3, 2, 2, 3, 4)
    assert transform.log_abs_det_jacobian(x, y).shape == (3, 2)
    torch.testing.assert_close(transform.inv(y.clone()), x.expand_as(y), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_distribution(name):
    transform = zoo.CONDITIONAL_TRANSFORMS[name]()
    for batch in ((), (3,), (1,), (2, 1, 3)):
        flow = family(transform).condition(contexts(*batch))
        x = flow.rsample((4,))
        assert flow.batch_shape == batch
        assert x.shape == (4, *batch, zoo.DIM)
        log_prob = flow.log_prob(x)
        assert log_prob.shape == (4, *batch)
        torch.testing.assert_close(
            flow.log_prob(x.detach().clone()), log_prob, atol=1e-6, rtol=1e-6
        )
        assert flow.log_prob(torch.randn(zoo.DIM)).shape == batch
        assert flow.expand((6, *batch)).rsample().shape == (6, *batch, zoo.DIM)


def test_own_noise_per_context():
    flow = family(conditional_iresnet(2, 3), dim=2).condition(torch.zeros(1000, 3))
    x = flow.sample()
    assert x.shape == (1000, 2)
    assert (x.std(0) > 0.5).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", ["block", "in_coordinates", "stack", "mixed"])
def test_trains_encoder(name, direction):
    transform, encoder = zoo.CONDITIONAL_TRANSFORMS[name](), nn.Linear(2, zoo.CONTEXT)
    flow = family(transform if direction == "forward" else transform.inv)
    modules = nn.ModuleList([transform, encoder])
    optimizer = torch.optim.Adam(modules.parameters(), lr=1e-2)
    data, facts, losses = 2.0 + 0.5 * torch.randn(64, zoo.DIM), torch.randn(64, 2), []
    for _ in range(3):
        loss = -flow.condition(encoder(facts)).log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        assert encoder.weight.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


# ---------------------------------------------------------------------------- gradients


def brute_force(block, x, context):
    """Compute ``y`` and ``log|det|`` of one sample by autograd alone."""

    def f(x):
        return x + block.contraction(x, context)

    return f(x), torch.linalg.slogdet(torch.func.jacrev(f)(x)).logabsdet


@pytest.mark.parametrize("name", ["conditional_dense", "conditional_linear"])
def test_gradients(name):
    g = zoo.CONDITIONAL[name](lipschitz=0.6)
    block = ResidualBlock(g, solver=TIGHT, logdet=Exact())
    transform = ConditionalIResNet(block)
    encoder = nn.Linear(2, zoo.CONTEXT)
    fact, x, v = torch.randn(2), torch.randn(zoo.DIM, requires_grad=True), torch.randn(zoo.DIM)
    learned = [x, *encoder.parameters(), *block.parameters()]

    def gradients(value):
        return torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)

    conditioned = transform.condition(encoder(fact))
    y = conditioned(x)
    logdet = conditioned.log_abs_det_jacobian(x, y)
    y_, logdet_ = brute_force(block, x, encoder(fact))
    expected = gradients(y_ @ v + logdet_)
    for a, b in zip(gradients(y @ v + logdet), expected, strict=True):
        torch.testing.assert_close(a, b)

    conditioned = transform.condition(encoder(fact))
    inverse = conditioned.inv(x)
    logdet = conditioned.inv.log_abs_det_jacobian(x, inverse)
    inverse_, context = x, encoder(fact)
    for _ in range(60):
        inverse_ = x - g(inverse_, context)
    expected = gradients(inverse_ @ v - brute_force(block, inverse_, encoder(fact))[1])
    for a, b in zip(gradients(inverse @ v + logdet), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("shapes", [((2,), (2,)), ((2,), ()), ((), (2,))], ids=str)
def test_context_derivatives(direction, shapes):
    g = zoo.dense(2, (3,), context_dim=2)
    transform = ConditionalIResNet(ResidualBlock(g, solver=TIGHT, logdet=Exact()))

    def both(x, context):
        conditioned = transform.condition(context)
        conditioned = conditioned if direction == "forward" else conditioned.inv
        y = conditioned(x)
        return y, conditioned.log_abs_det_jacobian(x, y)

    x, context = (torch.randn(*shape, 2, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(both, (x, context), fast_mode=True)


def test_context_as_parameter():
    transform = conditional_iresnet(2, 3)
    context = nn.Parameter(torch.randn(3))
    conditioned = transform.condition(context)
    conditioned(torch.randn(4, 2)).sum().backward()
    assert context.grad.abs().sum() > 0
    names = [name for name, _ in conditioned.named_parameters()]
    assert names == [name for name, _ in transform.named_parameters()]


def test_torch_func():
    transform, x, context = conditional_iresnet_stack(2, 3, 2).eval(), torch.randn(2), contexts(5)

    def y(context):
        return transform.condition(context)(x)

    torch.testing.assert_close(torch.func.vmap(y)(context), y(context))
    jacobian = torch.func.vmap(torch.func.jacrev(y))(context)
    expected = torch.autograd.functional.jacobian(lambda c: y(c).sum(0), context)
    torch.testing.assert_close(jacobian, expected.transpose(0, 1))


@pytest.mark.compiled
def test_compiles_whole():
    flow = family(conditional_iresnet(2, zoo.CONTEXT, [4]).inv, dim=2)

    def loss(x, context):
        return -flow.condition(context).log_prob(x).mean()

    x, context = torch.randn(6, 2), contexts(6)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, context), loss(x, context))


# ---------------------------------------------------------------------------- memory


def test_one_evaluation_per_step(monkeypatch):
    transform = conditional_iresnet(3, zoo.CONTEXT)
    counts = evaluations_of(transform.block)
    flow = family(transform, dim=3).condition(contexts(5))
    flow.log_prob(flow.rsample((4,)))
    assert counts == {"evaluate": 1, "evaluate_inverse": 0}


@pytest.mark.parametrize("remembers", [True, False])
def test_density_never_inverts(monkeypatch, remembers):
    stack = conditional_iresnet_stack(3, zoo.CONTEXT, 3)
    blocks = [part.block for part in stack if isinstance(part, ConditionalIResNet)]
    counts = [evaluations_of(block) for block in blocks]
    flow = family(stack.inv, dim=3).condition(contexts(5))
    if not remembers:
        flow = dist.TransformedDistribution(
            normal(3), [no_memory(stack.condition(contexts(5))).inv]
        )
    flow.log_prob(torch.randn(5, 3))
    assert len(counts) == 3
    assert all(c["evaluate_inverse"] == 0 for c in counts)
    assert not remembers or all(c["evaluate"] == 1 for c in counts)


def write_in_place(transform, context, x):
    context.mul_(3)


def write_by_data(transform, context, x):
    context.data.mul_(3)


def write_to_x(transform, context, x):
    x.data.mul_(3)


def write_to_a_parameter(transform, context, x):
    for parameter in transform.parameters():
        parameter.data.mul_(3)


def change_the_estimator(transform, context, x):
    transform.block.logdet = Exact()


CHANGES = [write_in_place, write_by_data, write_to_x, write_to_a_parameter, change_the_estimator]


@pytest.mark.parametrize("batch", [(), (5,), (4, 5)])
@pytest.mark.parametrize("change", CHANGES)
def test_notices_changes(change, batch):
    transform, context = conditional_iresnet(20, zoo.CONTEXT), contexts(*batch)
    zoo.trained(transform.block.contraction)
    conditioned = transform.condition(context)
    x = torch.randn(4, 5, 20)
    y = conditioned(x)
    assert conditioned.inv(y) is x
    before = conditioned.log_abs_det_jacobian(x, y).detach()
    change(transform, context, x)
    y, fresh = conditioned(x), transform.condition(context.clone())
    torch.testing.assert_close(y, fresh(x.clone()))
    torch.testing.assert_close(conditioned.inv(x), fresh.inv(x.clone()), atol=1e-4, rtol=1e-4)
    transform.block.logdet = Exact()
    after = conditioned.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(after, transform.block.forward_and_log_det(x, context)[1])
    assert not torch.equal(after, before)


def test_new_context():
    transform, x = conditional_iresnet(2, 3), torch.randn(5, 2)
    first, second = contexts(5), contexts(5)
    conditioned = transform.condition(first)
    y = conditioned(x)
    assert not torch.allclose(transform.condition(second)(x), y)
    torch.testing.assert_close(transform.condition(first)(x), y)
    assert conditioned.inv(y) is x
    y.sum().backward()
    torch.testing.assert_close(conditioned(x), y)


def test_with_cache():
    transform, context = conditional_iresnet(2, 3).eval(), contexts(5)
    conditioned = transform.condition(context)
    other = conditioned.with_cache(0)
    assert conditioned.with_cache(1) is conditioned
    assert other.context is context
    assert all(a is b for a, b in zip(other.parameters(), transform.parameters(), strict=True))
    assert not conditioned.training
    assert not other.training
    x = torch.randn(5, 2)
    assert other(x) is not other(x)
    stack = ConditionalStack([transform], cache_size=1).eval().condition(context)
    assert stack._cache_size == 1
    assert not stack.training
