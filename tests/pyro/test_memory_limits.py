"""Calls that a transform must not answer from memory."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyro_iresnet import IResNet, ResidualBlock, actnorm, cached, iresnet, iresnet_stack, wrap
from pyro_iresnet.contractions import LayeredContraction, RawWeight
from pyro_iresnet.contractions.layers import Affine
from pyro_iresnet.errors import ArgumentTypeError
from pyro_iresnet.norms import Gram

from ..truth import normal

MAKE = {
    "iresnet": lambda: iresnet(3),
    "actnorm": lambda: actnorm(3),
    "stack": lambda: iresnet_stack(3, 2),
}
over_transforms = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@over_transforms
def test_no_answer_for_none(make):
    transform = make()
    x = torch.randn(20, 3)
    transform(x)
    for call in (transform, transform.inv, transform._call, transform._inverse):
        with pytest.raises(ArgumentTypeError, match="NoneType"):
            call(None)
    with pytest.raises(ArgumentTypeError, match="NoneType"):
        transform.log_abs_det_jacobian(None, None)


DENSITIES = {
    "log_prob": lambda stack, v: dist.TransformedDistribution(normal(3), [stack.inv]).log_prob(v),
    "sampling": lambda stack, v: dist.TransformedDistribution(normal(3), [stack]).log_prob(v),
    "both ways": lambda stack, v: stack.inv(v).sum(-1) + stack(v).sum(-1),
}


@pytest.mark.parametrize("inside_cached", [False, True])
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_gradient_under_checkpoint(density, inside_cached):
    stack = iresnet_stack(3, 2)
    stack(torch.randn(100, 3))
    x = torch.randn(40, 3)
    expected = torch.autograd.grad(density(stack, x.clone()).mean(), list(stack.parameters()))
    assert stack._memory is not None
    stack._memory = None
    with cached(stack if inside_cached else []):
        value = checkpoint(partial(density, stack), x, use_reentrant=False).mean()
        found = torch.autograd.grad(value, list(stack.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    # A remembered call would hold the graph that a checkpoint is there to drop.
    assert stack._memory is None


def test_gradient_when_saved_on_cpu():
    stack = iresnet_stack(3, 2).eval()
    x = torch.randn(4, 3)
    y = stack(x)
    with torch.autograd.graph.save_on_cpu():
        assert stack(x) is not y
        stack.inv.log_abs_det_jacobian(y, x).sum().backward()
    assert stack(x) is not y


@over_transforms
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_after_call(make):
    transform = make().eval()
    x = torch.randn(4, 3)
    transform(x)
    traced = torch.jit.trace(transform, (x,))
    other = torch.randn(4, 3)
    torch.testing.assert_close(traced(other), transform(other))


@over_transforms
def test_notices_detach_in_place(make):
    transform = make().eval()
    source = torch.randn(4, 3, requires_grad=True)
    x = 2 * source
    transform(x)
    x.detach_().requires_grad_()
    transform(x).sum().backward()
    assert x.grad is not None
    assert source.grad is None


def check_gradients_add(transform, first, second):
    """Check that two equal losses of one point have the same gradients, each with a graph."""
    first.backward()
    once = [p.grad.clone() for p in transform.parameters() if p.grad is not None]
    second.backward()
    twice = [p.grad for p in transform.parameters() if p.grad is not None]
    assert once
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)


@over_transforms
@pytest.mark.parametrize("way", ["forward", "inverse", "log_det", "density"])
def test_two_losses_of_one_point(make, way):
    transform = make().eval()
    x = torch.randn(4, 3)
    y = transform(x).detach()
    transform._memory = None
    values = {
        "forward": lambda: transform(x),
        "inverse": lambda: transform.inv(y),
        "log_det": lambda: transform.log_abs_det_jacobian(x, transform(x)),
        "density": lambda: dist.TransformedDistribution(normal(3), [transform.inv]).log_prob(x),
    }
    first, second = values[way]().sum(), values[way]().sum()
    check_gradients_add(transform, first, second)


def test_two_log_dets_of_one_call():
    transform = iresnet(3)
    x = torch.randn(4, 3)
    y = transform(x)
    first, second = (transform.log_abs_det_jacobian(x, y).sum() for _ in range(2))
    check_gradients_add(transform, first, second)


def test_one_answer_without_gradients():
    transform = iresnet(3)
    x = torch.randn(4, 3)
    with torch.no_grad():
        assert transform(x) is transform(x)


FROM_GLOBAL = {"scale": 0.5}
GLOBAL_TENSOR = torch.tensor(0.5)


class Net(nn.Module):
    """A contraction by 0.5 to start with, whose factor may be kept anywhere."""

    def __init__(self, **state):
        super().__init__()
        vars(self).update(state)

    def scale(self):
        raise NotImplementedError

    def forward(self, x):
        return self.scale() * x.sin()


class ByTensor(Net):
    def scale(self):
        return self.factor


class ByList(Net):
    def scale(self):
        return self.factors[0]


class ByDict(Net):
    def scale(self):
        return float(self.factors["first"][0])


class BySet(Net):
    def scale(self):
        return max(self.factors)


class ByArray(Net):
    def scale(self):
        return torch.as_tensor(self._factor)


class ByClass(Net):
    factors = [0.5]  # noqa: RUF012

    def scale(self):
        return self.factors[0]


class ByGlobal(Net):
    def scale(self):
        return FROM_GLOBAL["scale"]


class ByGlobalTensor(Net):
    def scale(self):
        return GLOBAL_TENSOR


class ByFunction(Net):
    def scale(self):
        return self.factor()


class ByPart(Net):
    def scale(self):
        return self.parts[0].weight.detach()[0, 0]


@dataclass
class Settings:
    factors: list = field(default_factory=lambda: [0.5])


class Plain:
    def __init__(self):
        self.factors = [0.5]


class ByObject(Net):
    def scale(self):
        return self.settings.factors[0]


class Counter:
    """An object whose state no look can see."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class BySlot(Net):
    def scale(self):
        return self.counter.value


def closure():
    factors = [0.5]
    return (lambda: factors[0]), factors


def by_closure():
    function, factors = closure()
    return ByFunction(factor=function), lambda: factors.__setitem__(0, 0.1)


def by_partial():
    factors = [0.5]
    net = ByFunction(factor=partial(max, factors))
    return net, lambda: factors.__setitem__(0, 0.1)


def by_part():
    linear = nn.Linear(1, 1)
    linear.weight.data.fill_(0.5)
    return ByPart(parts=[linear]), lambda: linear.weight.data.fill_(0.1)


def by_hook():
    net = nn.Tanh()
    return nn.Sequential(net), lambda: net.register_forward_hook(lambda m, i, out: 0.1 * out)


def by_item(kind, **state):
    net = kind(**state)
    [holder] = [v for v in vars(net).values() if isinstance(v, list | dict)] or [None]
    return net, holder


CASES = {
    "tensor": lambda: (n := ByTensor(factor=torch.tensor(0.5)), lambda: n.factor.fill_(0.1)),
    "new tensor": lambda: (
        n := ByTensor(factor=torch.tensor(0.5)),
        lambda: setattr(n, "factor", torch.tensor(0.1)),
    ),
    "list": lambda: (n := ByList(factors=[0.5]), lambda: n.factors.__setitem__(0, 0.1)),
    "tensors in a list": lambda: (
        n := ByList(factors=[torch.tensor(0.5)]),
        lambda: n.factors[0].fill_(0.1),
    ),
    "dict": lambda: (
        n := ByDict(factors={"first": (0.5,)}),
        lambda: n.factors.update(first=(0.1,)),
    ),
    "array in a dict": lambda: (
        n := ByDict(factors={"first": np.array([0.5])}),
        lambda: n.factors["first"].fill(0.1),
    ),
    "set": lambda: (n := BySet(factors={0.1, 0.5}), lambda: n.factors.remove(0.5)),
    "private array": lambda: (n := ByArray(_factor=np.array(0.5)), lambda: n._factor.fill(0.1)),
    "class": lambda: (ByClass(), lambda: ByClass.factors.__setitem__(0, 0.1)),
    "global": lambda: (ByGlobal(), lambda: FROM_GLOBAL.update(scale=0.1)),
    "global tensor": lambda: (ByGlobalTensor(), lambda: GLOBAL_TENSOR.fill_(0.1)),
    "closure": by_closure,
    "partial": by_partial,
    "module in a list": by_part,
    "hook": by_hook,
    "dataclass": lambda: (
        n := ByObject(settings=Settings()),
        lambda: n.settings.factors.__setitem__(0, 0.1),
    ),
    "object": lambda: (
        n := ByObject(settings=Plain()),
        lambda: n.settings.factors.__setitem__(0, 0.1),
    ),
    "slot": lambda: (n := BySlot(counter=Counter(0.5)), lambda: setattr(n.counter, "value", 0.1)),
    "large list": lambda: (
        n := ByList(factors=[0.5, *([[]] * 2000)]),
        lambda: n.factors.__setitem__(0, 0.1),
    ),
}


@pytest.fixture(autouse=True)
def restore():
    yield
    FROM_GLOBAL.update(scale=0.5)
    GLOBAL_TENSOR.fill_(0.5)
    ByClass.factors[0] = 0.5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("outer", ["alone", "in a stack", "cached"])
def test_notices_a_change(case, outer):
    net, change = case()
    transform = IResNet(ResidualBlock(wrap(net, lipschitz=0.99)))
    if outer == "in a stack":
        transform = type(iresnet_stack(3, 1))([actnorm(3).eval(), transform])
    x = torch.randn(5, 3)
    with torch.no_grad(), cached(transform if outer == "cached" else []):
        y = transform(x)
        assert torch.equal(transform(x), y)
        change()
        after = transform(x)
        fresh = transform(x.clone())
    assert not torch.allclose(after, y)
    torch.testing.assert_close(after, fresh)


@pytest.mark.parametrize("case", ["tensor", "list", "private array", "closure", "object"])
def test_remembers_between_changes(case):
    transform = IResNet(ResidualBlock(wrap(CASES[case]()[0], lipschitz=0.99)))
    y = transform(torch.randn(5, 3))
    assert transform.inv(y) is transform._memory.evaluation.x


class Bounded(LayeredContraction):
    """A layer whose budget stands in a list."""

    def __init__(self):
        super().__init__((3,), None, 0.9, Gram())
        self.weight, self.bias = nn.Parameter(torch.eye(3)), nn.Parameter(torch.zeros(3))
        self.bounds = [0.9]

    def raw_weights(self):
        return [RawWeight(self.weight, self.bounds[0])]

    def layers_with(self, weights):
        return [Affine(weights[0], weights[0].weight, self.bias)]


def test_cached_notices_a_list():
    transform = IResNet(ResidualBlock(Bounded()))
    x = torch.randn(5, 3)
    with cached(transform):
        y = transform(x.clone())
        transform.block.contraction.bounds[0] = 0.1
        torch.testing.assert_close(transform(x.clone()) - x, (y - x) / 9)
