"""Places outside the parameters where a wrapped network keeps data: none changes unseen."""

import array
import ctypes
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pyro_iresnet import IResNet, ResidualBlock, cached, wrap

TENSOR = torch.tensor(0.5)
SPACE = SimpleNamespace(scale=0.5)


class Config:
    """Data on a class."""

    scale = 0.5


class Held:
    """Data on an instance."""

    def __init__(self):
        self.scale = 0.5


HELD = Held()


class ListWithScale(list):
    """A list with an attribute."""


@dataclass
class Fields:
    """A dataclass that takes attributes beside its fields."""

    size: int = 1


def sine(x):
    return TENSOR * x.sin()


def scaled(x):
    return scaled.scale * x.sin()


class Net(nn.Module):
    """A contraction by 0.5 to start with."""

    def __init__(self, held=None):
        super().__init__()
        self.held = held


class Holder(nn.Module):
    """A contraction whose factor is an attribute of a bare module."""

    def __init__(self, name="scale"):
        super().__init__()
        self.part = nn.Module()
        self.name = name
        setattr(self.part, name, torch.tensor(0.5))

    def forward(self, x):
        return getattr(self.part, self.name) * x.sin()


class HasTensor(nn.Module):
    """A contraction whose factor is an attribute of a layer of torch."""

    def __init__(self):
        super().__init__()
        self.part = nn.Tanh()
        self.part.scale = torch.tensor(0.5)

    def forward(self, x):
        return self.part.scale * self.part(x)


class ByHelper(Net):
    def forward(self, x):
        return sine(x)


class ByLoop(Net):
    def forward(self, x):
        return sum([TENSOR * x.sin() for _ in range(1)])


class ByProperty(Net):
    @property
    def scale(self):
        return TENSOR

    def forward(self, x):
        return self.scale * x.sin()


class ByStaticMethod(Net):
    @staticmethod
    def sine(x):
        return TENSOR * x.sin()

    def forward(self, x):
        return self.sine(x)


class Mixin:
    """A method that stands behind those of torch."""

    def sine(self, x):
        return TENSOR * x.sin()


class ByMixin(nn.Module, Mixin):
    def forward(self, x):
        return self.sine(x)


class BySpace(Net):
    def forward(self, x):
        return SPACE.scale * x.sin()


class ByConfig(Net):
    def forward(self, x):
        return Config.scale * x.sin()


class ByObject(Net):
    def forward(self, x):
        return HELD.scale * x.sin()


class ByClassAttribute(Net):
    config = HELD

    def forward(self, x):
        return self.config.scale * x.sin()


class ByHeld(Net):
    def forward(self, x):
        return self.held.scale * x.sin()


class ByItem(Net):
    def forward(self, x):
        return float(self.held[0]) * x.sin()


class ByCall(Net):
    def forward(self, x):
        return self.held(x)


class ByLookup(Net):
    def forward(self, x):
        return self.held("scale") * x.sin()


class ByChain(Net):
    def forward(self, x):
        for part in self.held:
            x = part(x)
        return x


class ByMatrix(nn.Module):
    """A contraction by a sparse matrix, and a factor."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.scale = torch.tensor(1.0)

    def forward(self, x):
        return self.scale * (self.matrix.to_dense() @ x.mT).mT


class ByScript(nn.Module):
    scale: float

    def __init__(self):
        super().__init__()
        self.scale = 0.5

    def forward(self, x):
        return self.scale * x.sin()


def with_attribute(value):
    value.scale = 0.5
    return value


def halves():
    linears = [nn.Linear(3, 3, bias=False) for _ in range(4)]
    for linear in linears:
        linear.weight.data = 0.9 * torch.eye(3)
    return linears


def on_meta():
    net = ByHeld(Held())
    net.unused = torch.empty(2, device="meta")
    return net


def set_scale(holder):
    return lambda net: setattr(holder, "scale", 0.1)


def set_held(net):
    net.held.scale = 0.1


def set_item(net):
    net.held[0] = 0.1


def fill_global(net):
    TENSOR.fill_(0.1)


def patch(net):
    net[0].forward = lambda x: 0.1 * x


def shrink(i):
    return lambda net: net.held[i].weight.data.mul_(0.1)


LOOKUP = {"scale": 0.5}


def half():
    return 0.5 * torch.eye(3)


CASES = {
    "bare module": (Holder, lambda net: net.part.scale.fill_(0.1)),
    "private name": (lambda: Holder("_scale"), lambda net: net.part._scale.fill_(0.1)),
    "layer of torch": (HasTensor, lambda net: net.part.scale.fill_(0.1)),
    "replaced forward": (lambda: nn.Sequential(nn.Tanh()), patch),
    "second module in a list": (lambda: ByChain(halves()), shrink(1)),
    "last module in a list": (lambda: ByChain(halves()), shrink(3)),
    "helper": (ByHelper, fill_global),
    "loop": (ByLoop, fill_global),
    "property": (ByProperty, fill_global),
    "static method": (ByStaticMethod, fill_global),
    "mixin": (ByMixin, fill_global),
    "namespace": (BySpace, set_scale(SPACE)),
    "class": (ByConfig, set_scale(Config)),
    "class of an object": (lambda: ByHeld(Config()), set_scale(Config)),
    "class as attribute": (lambda: ByHeld(Config), set_scale(Config)),
    "object": (ByObject, set_scale(HELD)),
    "object on a class": (ByClassAttribute, set_scale(HELD)),
    "list with an attribute": (lambda: ByHeld(with_attribute(ListWithScale())), set_held),
    "dataclass with an attribute": (lambda: ByHeld(with_attribute(Fields())), set_held),
    "function with an attribute": (lambda: ByCall(scaled), set_scale(scaled)),
    "bound method of a dict": (
        lambda: ByLookup(LOOKUP.get),
        lambda net: LOOKUP.update(scale=0.1),
    ),
    "array": (lambda: ByItem(array.array("d", [0.5])), set_item),
    "deque": (lambda: ByItem(deque([0.5])), set_item),
    "array of C": (lambda: ByItem((ctypes.c_double * 1)(0.5)), set_item),
    "masked array": (lambda: ByItem(np.ma.array([0.5])), set_item),
    "generator": (
        lambda: ByHeld(with_attribute(SimpleNamespace(random=torch.Generator()))),
        set_held,
    ),
    "sparse": (lambda: ByMatrix(half().to_sparse()), lambda net: net.matrix._values().fill_(0.1)),
    "beside a sparse": (lambda: ByMatrix(half().to_sparse()), lambda net: net.scale.fill_(0.1)),
    "beside meta": (on_meta, set_held),
    "script": (
        lambda: torch.jit.script(ByScript()),
        lambda net: setattr(net, "scale", 0.1),
    ),
}


@pytest.fixture(autouse=True)
def restore():
    TENSOR.fill_(0.5)
    LOOKUP.update(scale=0.5)
    scaled.scale = SPACE.scale = Config.scale = HELD.scale = 0.5


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("outer", ["alone", "cached"])
@pytest.mark.parametrize("case", CASES)
def test_notices_a_change(case, outer):
    make, change = CASES[case]
    net = make()
    transform = IResNet(ResidualBlock(wrap(net, lipschitz=0.99)))
    x = torch.randn(5, 3)
    with torch.no_grad(), cached(transform if outer == "cached" else []):
        y = transform(x)
        assert torch.equal(transform(x), y)
        change(net)
        after = transform(x)
    assert not torch.allclose(after, y)
    with torch.no_grad():
        torch.testing.assert_close(after, transform(x.clone()))


@pytest.mark.parametrize("case", ["bare module", "helper", "class", "object", "replaced forward"])
def test_remembers_between_changes(case):
    transform = IResNet(ResidualBlock(wrap(CASES[case][0](), lipschitz=0.99)))
    x = torch.randn(5, 3)
    y = transform(x)
    assert transform.inv(y) is x
