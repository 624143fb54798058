"""Evaluations of Pyro transforms: the pair, both products with the Jacobian, the inverse."""

import pytest
import torch
from torch.distributions import AffineTransform, SigmoidTransform, StickBreakingTransform
from torch.distributions.transforms import IndependentTransform

from pyro_iresnet import actnorm, iresnet
from pyro_iresnet.hosts.pyro import LinearAutoregressive, Stack

from .. import zoo
from ..truth import jacobians


def affine():
    made = LinearAutoregressive(zoo.DIM)
    made.start_at(torch.ones(zoo.DIM), torch.eye(zoo.DIM) + 0.3 * torch.ones(5, 5).tril(-1))
    return made


MAKERS = {
    **zoo.PYRO_TRANSFORMS,
    "affine": affine,
    "foreign": lambda: Stack(
        [AffineTransform(0.5, 2.0, event_dim=1), zoo.PYRO_TRANSFORMS["actnorm"]()]
    ),
    "inverted": lambda: Stack(
        [zoo.PYRO_TRANSFORMS["stack"]().inv, AffineTransform(0.5, 2.0, event_dim=1).inv]
    ),
    "nested": lambda: Stack([zoo.PYRO_TRANSFORMS["alternating"](), actnorm(zoo.DIM), affine()]),
    "squashed": lambda: Stack([iresnet(zoo.DIM, [8]), IndependentTransform(SigmoidTransform(), 1)]),
}


def times(w, matrix):
    """Multiply rows by matrices, ``w^T A``."""
    return (w[:, None] @ matrix)[:, 0]


@pytest.mark.parametrize("name", MAKERS)
def test_products_with_jacobian(name):
    transform = MAKERS[name]().eval().with_cache(0)
    x = 0.5 * torch.randn(4, zoo.DIM)
    matrix = jacobians(transform, x)
    y = transform(x).detach()
    w = torch.randn(4, zoo.DIM)
    for at in (transform.evaluation(x=x), transform.evaluation(y=y), transform.evaluation(x, y)):
        torch.testing.assert_close(at.x, x, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(at.y, y, atol=1e-7, rtol=1e-7)
        expected = torch.linalg.slogdet(matrix).logabsdet
        torch.testing.assert_close(at.log_det(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(at.vjp(w), times(w, matrix), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(at.inverse_vjp(times(w, matrix)), w, atol=1e-6, rtol=1e-6)
        back = at.inverted()
        assert back.x is at.y
        assert back.y is at.x
        torch.testing.assert_close(back.log_det(), -expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(back.vjp(times(w, matrix)), w, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(back.inverse_vjp(w), times(w, matrix), atol=1e-6, rtol=1e-6)
        assert not at.vjp(w).requires_grad
        assert not at.inverse_vjp(w).requires_grad


def test_empty_stack():
    stack, x = Stack([]), torch.randn(4, 3)
    assert torch.equal(stack(x), x)
    assert torch.equal(stack.inv(x), x)
    at = stack.evaluation(x=x)
    assert torch.equal(at.vjp(x), x)


def test_changed_event_size():
    """Stack a transform whose events grow by one coordinate."""
    stack, x = Stack([iresnet(3, [4]), StickBreakingTransform()]), torch.randn(6, 3)
    y = stack(x)
    assert y.shape == (6, 4)
    assert stack.log_abs_det_jacobian(x, y).shape == (6,)
    torch.testing.assert_close(stack.inv(y.detach()), x)
    assert stack.codomain.event_dim == 1
