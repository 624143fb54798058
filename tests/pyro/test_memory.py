"""Remembered calls of a transform."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_iresnet import (
    Exact,
    InverseIResNet,
    IResNet,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet.activations import Sine
from pyro_iresnet.norms import Gram

from .. import zoo
from ..counting import evaluations_of
from ..truth import normal


def test_one_evaluation_per_step():
    transform = iresnet(3)
    counts = evaluations_of(transform.block)
    flow = dist.TransformedDistribution(normal(3), [transform])
    y = flow.rsample((5,))
    flow.log_prob(y)
    assert counts == {"evaluate": 1, "evaluate_inverse": 0}


def test_density_never_inverts():
    stack = iresnet_stack(3, 3)
    counts = [evaluations_of(part.block) for part in stack.parts if isinstance(part, IResNet)]
    flow = dist.TransformedDistribution(normal(3), [stack.inv])
    flow.log_prob(torch.randn(5, 3))
    assert counts == [{"evaluate": 1, "evaluate_inverse": 0}] * 3


def test_inverts_without_cache():
    transform = iresnet(3).with_cache(0)
    counts = evaluations_of(transform.block)
    flow = dist.TransformedDistribution(normal(3), [transform])
    flow.log_prob(flow.rsample((5,))).sum().backward()
    assert counts["evaluate_inverse"] == 1
    assert all(p.grad is not None for p in transform.parameters())


def test_forgets_stale_calls():
    transform = iresnet(3)
    x = torch.randn(5, 3)
    with torch.no_grad():
        transform(x)
    y = transform(x)
    assert y.requires_grad
    logdet = transform.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), logdet)
    logdet.sum().backward()
    torch.optim.SGD(transform.parameters(), lr=1.0).step()
    after = transform(x)
    assert not torch.equal(after, y)
    torch.testing.assert_close(transform.inv(y), iresnet_like(transform).inv(y))
    x.mul_(2)
    assert not torch.equal(transform(x), after)
    assert transform.inv(transform(x)) is x


def iresnet_like(transform):
    fresh = IResNet(copy.deepcopy(transform.block), cache_size=0)
    fresh.load_state_dict(transform.state_dict())
    return fresh


def write_by_torch(transform, x):
    torch.optim.Adam(transform.parameters(), lr=0.1).step()


def write_by_pyro(transform, x):
    for parameter in transform.parameters():
        pyro.optim.clipped_adam.ClippedAdam([parameter], lr=0.1).step()


def write_by_data(transform, x):
    for parameter in transform.parameters():
        parameter.data.mul_(3)


def write_to_x(transform, x):
    x.data.mul_(3)


WRITES = [write_by_torch, write_by_pyro, write_by_data, write_to_x]


@pytest.mark.parametrize("write", WRITES)
def test_notices_writes(write):
    transform = iresnet(3)
    x = torch.randn(5, 3)
    y = transform(x)
    before = transform.log_abs_det_jacobian(x, y)
    before.sum().backward()
    write(transform, x)
    fresh = x.clone()
    torch.testing.assert_close(transform(x), transform(fresh))
    after = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(after, iresnet_like(transform).log_abs_det_jacobian(fresh, fresh))
    assert not torch.allclose(after, before)


def test_functional_calls_differ():
    transform = iresnet(2, [], norm=Gram(), coordinates=None)
    x = torch.randn(5, 2)
    name = "block.contraction.layers.0.weight"
    with torch.no_grad():
        for i in range(20):
            weight = torch.full((2, 2), i / 100.0)
            y = torch.func.functional_call(transform, {name: weight}, (x,))
            expected = x + x @ weight.T + transform.block.contraction.layers[0].bias
            torch.testing.assert_close(y, expected)
            del weight


def test_notices_inference_and_dtype():
    transform = iresnet(3)
    x = torch.randn(5, 3)
    with torch.inference_mode():
        inner = transform(x)
        z = torch.randn(5, 3)
        first = transform(z).clone()
        z.add_(1)
        assert not torch.equal(transform(z), first)
        transform(x)
    with torch.no_grad():
        assert not transform(x).is_inference()
        torch.testing.assert_close(transform(x), inner)
    transform(x)
    transform.float()
    with pytest.raises(TypeError, match=r"x of dtype torch\.float32"):
        transform(x)


def test_one_solve_for_inverse():
    transform = InverseIResNet(zoo.block(3))
    counts = evaluations_of(transform.block)
    x = torch.randn(5, 3)
    y = transform(x)
    logdet = transform.log_abs_det_jacobian(x, y.clone())
    assert counts["evaluate_inverse"] == 1
    torch.testing.assert_close(logdet, transform.log_abs_det_jacobian(x, y))


def test_notices_mode():
    transform = IResNet(zoo.block(20))
    x = torch.randn(500, 20)
    y = transform(x)
    trained = transform.log_abs_det_jacobian(x, y)
    transform.eval()
    assert not torch.equal(transform.log_abs_det_jacobian(x, y), trained)


def test_stack_density_never_inverts(monkeypatch):
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    stack = type(stack)([part.with_cache(0) for part in stack.parts])
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    x = torch.randn(4, zoo.DIM)
    assert stack.inv.inv is stack
    sample = flow.sample((3,))
    torch.testing.assert_close(stack.inv(stack(x)), x)

    def refuse(*args, **options):
        raise AssertionError("an inversion")

    monkeypatch.setattr("pyro_iresnet.blocks.residual.solve_in", refuse)
    assert flow.log_prob(x).shape == (4,)
    assert flow.log_prob(sample).shape == (3,)
    assert stack.with_cache(1).inv.log_abs_det_jacobian(stack(x), x).shape == (4,)


def change_the_estimator(transform):
    transform.block.logdet = Exact()


def change_the_activation(transform):
    transform.block.contraction.activations[0].frequencies = (0.1, 3.0)


def change_the_bound(transform):
    transform.block.contraction.lipschitz = 0.1


@pytest.mark.parametrize("change", [change_the_estimator, change_the_activation, change_the_bound])
def test_notices_settings(change):
    transform = iresnet(20, activation=Sine)
    zoo.trained(transform.block.contraction)
    x = torch.randn(5, 20)
    y = transform(x)
    transform.log_abs_det_jacobian(x, y)
    change(transform)
    y = transform(x)
    torch.testing.assert_close(y, transform.block(x))
    if isinstance(transform.block.logdet, Exact):
        expected = transform.block.forward_and_log_det(x)[1]
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
