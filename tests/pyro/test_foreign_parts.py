"""Stacks with transforms of torch and Pyro among their parts."""

import copy

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    Normal,
    ReshapeTransform,
    StickBreakingTransform,
)

from pyro_iresnet import (
    ConvContraction,
    IResNet,
    ResidualBlock,
    conditional_iresnet,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.pyro import ActNorm, ConditionalStack, Stack, actnorm

from .. import zoo


def image_block():
    return IResNet(ResidualBlock(ConvContraction((1, 2, 2), [4])))


def test_falling_and_folding_parts():
    """A stack has the direction of its parts, as torch's composition has."""
    falling, rising = AffineTransform(0.0, -2.0), AffineTransform(1.0, 1.0)
    for parts in ([falling, rising], [falling, falling], [rising]):
        stack, torch_s = Stack(parts), ComposeTransform(parts)
        assert int(stack.sign) == int(torch_s.sign)
        base = Normal(torch.zeros(3), torch.ones(3))
        x = torch.tensor([-1.0, 0.0, 3.0])
        expected = torch.distributions.TransformedDistribution(base, [torch_s]).cdf(x)
        found = torch.distributions.TransformedDistribution(base, [stack]).cdf(x)
        torch.testing.assert_close(found, expected)
    assert Stack([iresnet(2), actnorm(2)]).sign == 1
    assert Stack([iresnet(2)]).bijective
    assert not Stack([AbsTransform()]).bijective


def test_notices_foreign_write():
    loc = torch.zeros(2)
    stack = Stack([AffineTransform(loc, torch.ones(2), event_dim=1), iresnet(2)])
    x = torch.zeros(1, 2)
    y = stack(x)
    loc.fill_(5.0)
    assert not torch.allclose(stack(x), y)
    torch.testing.assert_close(stack(x), stack(x.clone()))


def test_gradient_of_foreign_part():
    loc = torch.zeros(2, requires_grad=True)
    stack = Stack([AffineTransform(loc, torch.ones(2), event_dim=1), iresnet(2)])
    x = torch.zeros(1, 2)
    with torch.no_grad():
        stack(x)
    stack(x).sum().backward()
    assert loc.grad is not None


@pytest.mark.parametrize("part", [AffineTransform(0.0, 2.0), ExpTransform()], ids=repr)
def test_copies_after_call(part):
    stack = Stack([iresnet(2), part])
    x = torch.randn(3, 2)
    y = stack(x)
    torch.testing.assert_close(copy.deepcopy(stack)(x), y)


def test_keeps_parts():
    parts = [ActNorm(2, cache_size=0), AffineTransform(0.0, 2.0), pyro_transforms.BatchNorm(2)]
    stack = Stack([*parts, iresnet(2)])
    assert all(a is b for a, b in zip(stack.parts, parts, strict=False))
    assert stack.eval()(torch.randn(5, 2)).shape == (5, 2)


@pytest.mark.parametrize("size", [1, 3])
def test_checks_behind_foreign(size):
    stack = Stack([AffineTransform(0.0, 2.0), iresnet(2)])
    with pytest.raises(ArgumentError, match=r"x with event shape \(2,\)"):
        stack(torch.randn(5, size))
    with pytest.raises(ArgumentTypeError, match=r"x of dtype torch\.float64"):
        stack(torch.randn(5, 2, dtype=torch.float32))
    other = Stack([iresnet(2), AffineTransform(0.0, 2.0)])
    with pytest.raises(ArgumentError, match=r"y with event shape \(2,\)"):
        other.inv(torch.randn(5, size))


def test_refuses_none():
    with pytest.raises(ArgumentTypeError, match=r"Expected y to be a torch\.Tensor"):
        Stack([iresnet(2)]).inv(None)


def test_changes_shape():
    reshape = ReshapeTransform((4,), (1, 2, 2))
    x = torch.randn(5, 4)
    for stack in (
        Stack([reshape, Stack([image_block()])]),
        Stack([iresnet(4), reshape, image_block(), reshape.inv]),
        Stack([StickBreakingTransform().inv, StickBreakingTransform(), iresnet(4)]),
    ):
        z = x.softmax(-1) if isinstance(stack.parts[-1], IResNet) else x
        y = stack(z)
        torch.testing.assert_close(stack.inv(y.clone()), z, atol=1e-6, rtol=1e-6)
        assert stack.log_abs_det_jacobian(z, y).shape == (5,)
    nested = Stack([Stack([image_block()]), reshape.inv])
    image = torch.randn(5, 1, 2, 2)
    torch.testing.assert_close(nested.inv(nested(image).clone()), image, atol=1e-6, rtol=1e-6)


def test_condition_behind_foreign():
    conditional = ConditionalStack([ReshapeTransform((2, 2), (4,)), conditional_iresnet(4, 3)])
    stack = conditional.condition(torch.randn(5, 3))
    assert stack(torch.randn(2, 2)).shape == (5, 4)


@pytest.mark.compiled
def test_compiles_cold():
    stack = iresnet_stack(3, 2, [8]).eval()
    x = torch.randn(4, 3)
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), stack(x))


def test_pair_starts_nothing():
    stack = Stack([actnorm(2), iresnet(2)], cache_size=0)
    y = torch.randn(50, 2)
    x = stack.inv(y)
    before = stack.log_abs_det_jacobian(x, y)
    assert not stack.parts[0].has_started()
    assert stack.training
    with torch.no_grad():
        expected = stack.eval().log_abs_det_jacobian(x, y)
    torch.testing.assert_close(before, expected)
    norm = ActNorm(2, cache_size=0)
    norm.log_abs_det_jacobian(y, y)
    assert not norm.has_started()


def test_normal_parts_of_zoo():
    stack = Stack([zoo.PYRO_TRANSFORMS["stack"](), AffineTransform(0.5, 2.0, event_dim=1)])
    x = torch.randn(6, zoo.DIM)
    y = stack(x)
    first, affine = stack.parts
    expected = first.log_abs_det_jacobian(x, first(x)) + affine.log_abs_det_jacobian(first(x), y)
    torch.testing.assert_close(stack.log_abs_det_jacobian(x, y), expected)
