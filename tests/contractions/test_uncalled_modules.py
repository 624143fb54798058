"""Modules that a block, a stack or Pyro never calls: hooks and a forward there are refused."""

import pytest
import torch
from torch import nn

from pyro_iresnet import (
    ConditionalIResNet,
    DenseContraction,
    IResNet,
    ResidualBlock,
    actnorm,
    conditional_iresnet,
    iresnet,
    wrap,
)
from pyro_iresnet.contractions import (
    Contraction,
    LayeredContraction,
    SequentialContraction,
    SumContraction,
)
from pyro_iresnet.coordinates import Asinh, DiagonalScale
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.pyro import ConditionalStack, Stack

HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda m, i, o: o),
    "forward pre": lambda m: m.register_forward_pre_hook(lambda m, i: i),
    "backward": lambda m: m.register_full_backward_hook(lambda m, i, o: None),
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda m, o: None),
}
over_hooks = pytest.mark.parametrize("add", HOOKS.values(), ids=HOOKS)

MODULES = {
    "transform": lambda t: t,
    "block": lambda t: t.block,
    "contraction": lambda t: t.block.contraction,
    "activation": lambda t: t.block.contraction.activations[1],
    "layer": lambda t: t.block.contraction.layers[1],
    "coordinates": lambda t: t.block.coordinates,
    "part of the coordinates": lambda t: t.block.coordinates.maps[1],
}


@over_hooks
@pytest.mark.parametrize("place", ["alone", "in a stack", "last in a stack"])
@pytest.mark.parametrize("find", MODULES.values(), ids=MODULES)
def test_refuses_hook(find, place, add):
    transform = iresnet(2, [8, 8], coordinates=(Asinh(), DiagonalScale()))
    flows = {
        "alone": lambda: transform,
        "in a stack": lambda: Stack([iresnet(2, [8]), transform, actnorm(2)]),
        "last in a stack": lambda: Stack([actnorm(2), transform]),
    }
    flow = flows[place]()
    x = torch.randn(20, 2)
    flow(x)
    add(find(transform))
    for call in (flow, flow.inv):
        with pytest.raises(ArgumentError, match="without hooks"):
            call(x.clone())


@over_hooks
def test_refuses_hook_on_stack(add):
    parts = [actnorm(2), conditional_iresnet(2, 3)]
    add(stack := Stack(parts[:1]))
    with pytest.raises(ArgumentError, match="without hooks"):
        stack(torch.randn(20, 2))
    for conditional in (ConditionalStack(parts), parts[1]):
        assert isinstance(conditional, ConditionalStack | ConditionalIResNet)
        add(conditional)
        with pytest.raises(ArgumentError, match="without hooks"):
            conditional.condition(torch.randn(3))


@over_hooks
@pytest.mark.parametrize("kind", [SumContraction, SequentialContraction])
@pytest.mark.parametrize("inner", [0, 1])
def test_refuses_hook_on_part(kind, inner, add):
    parts = [DenseContraction(2, [8], lipschitz=0.4), wrap(nn.Tanh(), lipschitz=0.5)]
    block = ResidualBlock(kind(SumContraction(*parts)))
    add(parts[inner])
    for call in (block, block.inverse):
        with pytest.raises(ArgumentError, match=rf"parts\[{inner}\] without hooks"):
            call(torch.randn(5, 2))


def test_hook_on_conditioner_acts():
    transform = conditional_iresnet(2, 3)
    seen = []
    for module in transform.block.contraction.conditioner.modules():
        if not isinstance(module, nn.ModuleList):
            module.register_forward_hook(lambda m, i, o: seen.append(m))
    transform.condition(torch.randn(3))(torch.randn(5, 2))
    assert transform.block.contraction.conditioner in seen


@pytest.mark.parametrize("find", [*MODULES][1:5])
def test_refuses_replaced_forward(find):
    transform = iresnet(2, [8, 8])
    MODULES[find](transform).forward = lambda x, context=None: 0 * x
    for call in (transform, transform.inv):
        with pytest.raises(ArgumentError, match="forward"):
            call(torch.randn(5, 2))


def test_replaced_forward_of_own_contraction_acts():
    contraction = wrap(nn.Tanh(), lipschitz=0.9)
    contraction.forward = lambda x, context=None: 0.5 * x
    x = torch.randn(5, 2)
    torch.testing.assert_close(IResNet(ResidualBlock(contraction))(x), 1.5 * x)


class Zero:
    """A forward from outside."""

    def forward(self, x, context=None):
        return 0 * x


@pytest.mark.parametrize(
    "kind", [DenseContraction, SumContraction, SequentialContraction, LayeredContraction]
)
def test_refuses_subclass_with_own_forward(kind):
    with pytest.raises(ArgumentTypeError, match="Own to leave forward as it is; Own"):
        type("Own", (kind,), {"forward": Zero.forward})
    with pytest.raises(ArgumentTypeError, match="Own to leave forward as it is; Zero"):
        type("Own", (Zero, kind), {})
    materialize = {"forward": Zero.forward, "materialize": Contraction.materialize}
    assert type("Own", (kind,), materialize).forward is Zero.forward


DRAWING = {
    "recurrent": lambda: nn.LSTM(2, 2, 2, dropout=0.1),
    "attention": lambda: nn.MultiheadAttention(2, 1, dropout=0.1),
    "pooling": lambda: nn.FractionalMaxPool2d(2, 1),
}


@pytest.mark.parametrize("make", DRAWING.values(), ids=DRAWING)
def test_refuses_drawing_network(make):
    with pytest.raises(ArgumentError, match="draws anew in each call"):
        wrap(nn.Sequential(make()), lipschitz=0.9)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(2, 2), lambda: nn.MultiheadAttention(2, 1)])
def test_wraps_network_without_draws(make):
    network = make()
    assert wrap(network, lipschitz=0.9).module is network
