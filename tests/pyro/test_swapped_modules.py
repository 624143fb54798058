"""Stacks whose modules are swapped: by a replica, by a copy, by hand."""

import copy
import gc
import importlib
import pickle
import weakref

import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch.distributions import AffineTransform, ExpTransform

from pyro_iresnet import (
    conditional_iresnet,
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet,
    iresnet_flow,
    iresnet_stack,
)
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.hosts.pyro import ConditionalStack, Stack, actnorm

MIXED = {
    "modules": lambda: Stack([actnorm(3), iresnet(3), pyro_transforms.BatchNorm(3)]),
    "inverse": lambda: Stack([iresnet(3), iresnet(3).inv, actnorm(3).inv]),
    "twice": lambda: (lambda t: Stack([t, t.inv, iresnet(3), t]))(iresnet(3)),
    "foreign": lambda: Stack([AffineTransform(0.0, 2.0), iresnet(3), ExpTransform().inv.inv]),
    "nested": lambda: Stack([iresnet_stack(3, 1), iresnet_stack(3, 1).inv]),
    "builder": lambda: iresnet_stack(3, 2),
}
over_stacks = pytest.mark.parametrize("make", MIXED.values(), ids=MIXED)


def modules_behind(part):
    inner = getattr(part, "inv", part) if type(part).__name__ == "_InverseTransform" else part
    return set(inner.modules()) if isinstance(inner, torch.nn.Module) else set()


def replica_of(module, monkeypatch):
    """Replicate as nn.DataParallel does for its second device, with the copies left on the CPU."""
    replication = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(
        replication,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices],
    )
    return replication.replicate(module, [0, 1])[1]


@over_stacks
def test_parts_of_replica(make, monkeypatch):
    stack = make().eval()
    x = torch.rand(4, 3)
    y = stack(x).detach()
    replica = replica_of(stack, monkeypatch)
    own, others = set(replica.modules()), set(stack.modules())
    for part in replica.parts:
        assert modules_behind(part) <= own
        assert not modules_behind(part) & others
    for parameter in stack.parameters():
        parameter.data.add_(1.0)
    torch.testing.assert_close(replica(x), y)
    torch.testing.assert_close(replica.inv(y.clone()), x, atol=1e-5, rtol=1e-5)
    assert replica.log_abs_det_jacobian(x, y).shape == (4,)


def test_parts_of_conditional_replica(monkeypatch):
    stack = conditional_iresnet_stack(3, 2, 2).eval()
    context, x = torch.randn(4, 2), torch.randn(4, 3)
    y = stack.condition(context)(x).detach()
    replica = replica_of(stack, monkeypatch)
    for parameter in stack.parameters():
        parameter.data.add_(1.0)
    torch.testing.assert_close(replica.condition(context)(x), y)


@pytest.mark.parametrize("context", [None, 2])
def test_replica_in_nflows(context, monkeypatch):
    flow = iresnet_flow(3, 2) if context is None else conditional_iresnet_flow(3, context, 2)
    arguments = [torch.randn(4, 3)] if context is None else [torch.randn(4, 3), torch.randn(4, 2)]
    flow.eval()
    before = flow.log_prob(*arguments).detach()
    replica = replica_of(flow, monkeypatch)
    for parameter in flow.parameters():
        parameter.data.add_(1.0)
    torch.testing.assert_close(replica.log_prob(*arguments), before)


@over_stacks
def test_registers_every_part(make):
    stack = make()
    registered = set(stack.modules())
    assert all(modules_behind(part) <= registered for part in stack.parts)


def test_gradient_of_inverse_part():
    stack = Stack([iresnet(3).inv])
    base = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
    dist.TransformedDistribution(base, [stack.inv]).log_prob(torch.randn(4, 3)).sum().backward()
    assert all(p.grad is not None for p in stack.parameters())
    assert len(list(stack.parameters())) > 0


@over_stacks
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_have_own_parts(make, copied):
    stack = make().eval()
    x = torch.rand(4, 3)
    y = stack(x).detach()
    other = copied(stack)
    for parameter in stack.parameters():
        parameter.data.add_(1.0)
    torch.testing.assert_close(other(x), y)


@over_stacks
def test_loads_own_state(make):
    stack, other = make(), make()
    stack(torch.rand(50, 3))
    other.load_state_dict(stack.state_dict())
    x = torch.rand(4, 3)
    torch.testing.assert_close(other.eval()(x), stack.eval()(x))


def test_list_methods_reach_parts():
    stack = iresnet_stack(3, 1)
    first, block, last = stack.parts
    other = iresnet(3)
    stack[1] = other
    assert stack.parts == [first, other, last]
    stack.append(block)
    assert stack.parts == [first, other, last, block]
    del stack[0]
    assert stack.parts == [other, last, block]
    x = torch.randn(20, 3)
    torch.testing.assert_close(stack.eval()(x), block(last(other(x))))


def test_refuses_unclear_order():
    stack = Stack([AffineTransform(0.0, 2.0), iresnet(3)])
    stack.append(iresnet(3))
    with pytest.raises(ArgumentError, match="Make a new stack"):
        stack(torch.randn(2, 3))


def test_swapped_part_of_conditional_stack():
    stack = ConditionalStack([AffineTransform(0.0, 2.0), conditional_iresnet(3, 2), actnorm(3)])
    other, context, x = conditional_iresnet(3, 2), torch.randn(4, 2), torch.randn(4, 3)
    stack[0] = other
    assert stack.transforms[1] is other
    torch.testing.assert_close(stack.eval().condition(context)(x), other.condition(context)(2 * x))


def test_part_in_the_place_of_a_freed_one():
    """A stack holds a removed part until its next call, so no new part has the old one's id."""
    stack = Stack([iresnet(3), iresnet(3)], cache_size=0)
    x = torch.randn(4, 3)
    stack(x)
    removed = weakref.ref(stack[0])
    del stack[0]
    gc.collect()
    assert removed() is not None
    stack.insert(0, iresnet(3).inv.inv)
    expected = Stack(list(stack), cache_size=0)(x)
    torch.testing.assert_close(stack(x), expected)
    gc.collect()
    assert removed() is None
