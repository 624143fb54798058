"""Weights of one shape normalized by one function, against the plain operations."""

from contextlib import ExitStack

import pytest
import torch

from pyro_iresnet.norms import Cholesky, Gram


# A subclass may override any step, so it takes the plain operations.
class PlainGram(Gram):
    pass


class PlainCholesky(Cholesky):
    pass


PAIRS = {
    "cholesky": (Cholesky(), PlainCholesky()),
    "cholesky_damped": (Cholesky(2.0), PlainCholesky(2.0)),
    "gram": (Gram(), PlainGram()),
    "gram_1": (Gram(1), PlainGram(1)),
}
# Sides of a part of a factor and of several parts; padded sides; a row; a 1 x 1 convolution.
SHAPES = [(4, 7), (39, 43), (130, 131), (64, 64), (1, 3), (2, 2), (3, 5, 1, 1)]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
DTYPES = list(TOLERANCE)


def group(shape, dtype=torch.float64):
    """Make weights of one shape and its transpose, large and small, with bounds and scales."""
    turned = (shape[1], shape[0], *shape[2:])
    shapes = [shape, turned, turned, shape]
    sizes = (2.0, 0.5, 1e-3, 1.0)
    weights = [(k * torch.randn(s)).to(dtype) for k, s in zip(sizes, shapes, strict=True)]
    scales = [torch.tensor(1.3).to(dtype), None, torch.tensor(-0.7).to(dtype), None]
    return weights, [0.9, 0.8, 0.7, 0.5], scales


def outcome(norm, weights, bounds, scales, used=None):
    """Return acting weights, their bounds, and the gradients in the weights and the scales."""
    normalized = norm.constrain_all(weights, bounds, scales)
    acting = [n.weight for n in normalized]
    loss = sum(acting[i].mul(i + 1).sin().sum() for i in used or range(len(acting)))
    inputs = [t for t in (*weights, *scales) if t is not None and t.requires_grad]
    grads = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return acting, [n.norm() for n in normalized], grads


def assert_same(pair, weights, bounds, scales, used=None):
    tolerance = TOLERANCE[weights[0].dtype]
    found, expected = [outcome(norm, weights, bounds, scales, used) for norm in pair]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, equal_nan=True)


def learned(*tensors):
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_same_as_plain(name, shape, dtype):
    weights, bounds, scales = group(shape, dtype)
    learned(*weights, *scales)
    assert_same(PAIRS[name], weights, bounds, scales)


@pytest.mark.parametrize("name", PAIRS)
def test_one_tensor_per_shape(name):
    weights, bounds, scales = group((4, 7))
    learned(*weights)
    acting = [n.weight for n in PAIRS[name][0].constrain_all(weights, bounds, scales)]
    assert len({w.untyped_storage().data_ptr() for w in acting}) == 1
    assert len({w.grad_fn for w in acting}) == 1


@pytest.mark.parametrize("name", PAIRS)
def test_frozen_and_unused(name):
    weights, bounds, scales = group((4, 7))
    learned(weights[0], weights[2], scales[0])
    for used in ([0], [1, 2], [0, 1, 2, 3]):
        assert_same(PAIRS[name], weights, bounds, scales, used)
    weights, bounds, scales = group((4, 7))
    learned(*scales)
    assert_same(PAIRS[name], weights, bounds, scales)
    learned(*weights)
    assert_same(PAIRS[name], weights, bounds, [None] * 4)


@pytest.mark.parametrize("name", PAIRS)
def test_gradient_is_none_where_unused(name):
    weights, bounds, _ = group((4, 7))
    learned(weights[0], weights[1])
    together = PAIRS[name][0].constrain_all(weights, bounds)
    together[0].weight.sum().backward()
    assert weights[0].grad.norm() > 0
    assert weights[3].grad is None


def inference_with_grad():
    """Return a context in which gradients are enabled but not recorded."""
    context = ExitStack()
    context.enter_context(torch.inference_mode())
    context.enter_context(torch.enable_grad())
    return context


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, inference_with_grad])
@pytest.mark.parametrize("shape", [(4, 7), (39, 43)])
@pytest.mark.parametrize("name", PAIRS)
def test_without_grad(name, shape, mode):
    weights, bounds, scales = group(shape)
    learned(*weights, *scales)
    expected = PAIRS[name][1].constrain_all(weights, bounds, scales)
    with mode():
        found = PAIRS[name][0].constrain_all(weights, bounds, scales)
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.weight.requires_grad
        torch.testing.assert_close(ours.weight, theirs.weight.detach())
        torch.testing.assert_close(ours.norm(), theirs.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", PAIRS)
def test_keeps_fault_to_itself(name, broken, dtype):
    weights, bounds, scales = group((4, 7), dtype)
    weights[1][3, 2] = broken
    learned(*weights)
    acting, norms, grads = outcome(PAIRS[name][0], weights, bounds, scales)
    assert acting[1].isnan().any()
    assert norms[1].isnan()
    others = [0, 2, 3]
    rest = outcome(
        PAIRS[name][1], *[[values[i] for i in others] for values in (weights, bounds, scales)]
    )
    for i, j in enumerate(others):
        torch.testing.assert_close(acting[j], rest[0][i])
        torch.testing.assert_close(norms[j], rest[1][i])
        assert grads[j].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_zero_weight(name, dtype):
    weights, bounds, scales = group((4, 7), dtype)
    weights[0].zero_()
    learned(*weights, *scales)
    assert_same(PAIRS[name], weights, bounds, scales)
    (zero, *_) = PAIRS[name][0].constrain_all(weights, bounds, scales)
    assert (zero.weight == 0).all()


@pytest.mark.parametrize("size", [1e-34, 1e-25, 1e18, 1e30])
@pytest.mark.parametrize("name", PAIRS)
def test_extreme_sizes(name, size):
    weights, bounds, _ = group((4, 7), torch.float32)
    weights = [(size * w.double()).float() for w in weights]
    scales = [None] * 4
    # Float64 holds the squares of these sizes.
    exact = [w.double() for w in weights]
    learned(*weights, *exact)
    found = outcome(PAIRS[name][0], weights, bounds, scales)
    expected = outcome(PAIRS[name][1], exact, bounds, scales)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            a, b = a.double(), b.detach()
            assert a.isfinite().all()
            unit = b.abs().max()
            torch.testing.assert_close(a / unit, b / unit, atol=3e-5, rtol=0)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
@pytest.mark.parametrize("name", PAIRS)
def test_extreme_sizes_in_float64(name, size):
    weights, bounds, scales = group((4, 7))
    weights = [size * w for w in weights]
    learned(*weights)
    assert_same(PAIRS[name], weights, bounds, scales)
    acting = outcome(PAIRS[name][0], weights, bounds, scales)[0]
    assert all(a.isfinite().all() for a in acting)


@pytest.mark.parametrize("name", PAIRS)
def test_two_backward_passes(name):
    weights, bounds, scales = group((4, 7))
    learned(*weights, *scales)
    normalized = PAIRS[name][0].constrain_all(weights, bounds, scales)
    loss = sum(n.weight.sin().sum() for n in normalized)
    inputs = [*weights, scales[0], scales[2]]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, inputs)
    assert all(map(torch.equal, kept, second))


@pytest.mark.parametrize("name", PAIRS)
def test_weight_changed_before_backward(name):
    weights, bounds, scales = group((4, 7))
    learned(*weights, *scales)
    inputs = [*weights, scales[0], scales[2]]
    before = outcome(PAIRS[name][1], weights, bounds, scales)[2]
    normalized = PAIRS[name][0].constrain_all(weights, bounds, scales)
    loss = sum(n.weight.mul(i + 1).sin().sum() for i, n in enumerate(normalized))
    with torch.no_grad():
        for value in inputs:
            value.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), before)


@pytest.mark.parametrize("name", PAIRS)
def test_weight_given_twice(name):
    (weight, other, *_), bounds, (scale, *_) = group((5, 5))
    learned(weight, scale)
    outcomes = []
    for norm in PAIRS[name]:
        weights = [weight, weight, weight @ other, other]
        normalized = norm.constrain_all(weights, bounds, [scale, scale, scale * weight.sum(), None])
        loss = sum(n.weight.mul(i + 1).sin().sum() for i, n in enumerate(normalized))
        first = torch.autograd.grad(loss, (weight, scale), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (weight, scale))
        outcomes.append([*first, *second])
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3)])
@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives(name, shape):
    weights, bounds, scales = group(shape)
    learned(*weights, *scales)

    def acting(*inputs):
        factors = [inputs[4], None, inputs[5], None]
        return tuple(n.weight for n in PAIRS[name][0].constrain_all(inputs[:4], bounds, factors))

    inputs = (*weights, scales[0], scales[2])
    assert torch.autograd.gradcheck(acting, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(acting, inputs, fast_mode=True)


@pytest.mark.parametrize("name", PAIRS)
def test_batched_gradients(name):
    weights, bounds, scales = group((4, 7))
    learned(*weights, *scales)
    first, second, *_ = PAIRS[name][0].constrain_all(weights, bounds, scales)
    vectors = torch.randn(3, 4, 7), torch.randn(3, 7, 4)
    outputs, inputs = (first.weight, second.weight), (*weights[:2], scales[0])
    batched = torch.autograd.grad(
        outputs, inputs, vectors, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        single = torch.autograd.grad(outputs, inputs, [v[i] for v in vectors], retain_graph=True)
        torch.testing.assert_close([b[i] for b in batched], list(single))
