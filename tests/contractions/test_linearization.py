import pytest
import torch

from pyro_iresnet import Exact, ResidualBlock, testing
from pyro_iresnet.contractions import LayeredContraction, materialize_together
from pyro_iresnet.contractions.layers import Layer
from pyro_iresnet.errors import TracingError
from pyro_iresnet.norms import Gram
from pyro_iresnet.operators import Chain, Dense, Diagonal, Sum, linearize_by_autograd, unpack

from .. import zoo

BATCHES = [(), (5,), (3, 4), (0,)]


@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_agrees_with_autograd(name):
    testing.check_linearization(zoo.CONTRACTIONS[name](), torch.randn(6, *zoo.event_shape(name)))


@pytest.mark.parametrize("name", zoo.CONDITIONAL)
def test_agrees_under_context(name):
    g = zoo.CONDITIONAL[name]()
    testing.check_linearization(
        g, torch.randn(6, *zoo.event_shape(name)), torch.randn(6, zoo.CONTEXT)
    )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_any_batch_shape(name, batch):
    g = zoo.CONTRACTIONS[name]()
    event = zoo.event_shape(name)
    x = torch.randn(*batch, *event)
    linearization = g.linearize(x)
    size = linearization.event_size
    assert linearization.value.shape == (*batch, *event)
    assert linearization.as_matrix().shape == (*batch, size, size)
    assert linearization.mv(x).shape == x.shape
    flat = g.linearize(x.reshape(-1, *event))
    torch.testing.assert_close(linearization.as_matrix().reshape(-1, size, size), flat.as_matrix())


def test_same_gradients_by_fallback():
    g = zoo.dense()
    x = torch.randn(4, zoo.DIM)
    v, w = torch.randn(4, zoo.DIM), torch.randn(4, zoo.DIM)
    gradients = []
    for linearization in (g.linearize(x), linearize_by_autograd(g.forward, x)):
        scalar = (w * linearization.mv(v)).sum() + (v * linearization.vm(w)).sum().sin()
        scalar = scalar + linearization.as_matrix().pow(2).sum()
        gradients.append(torch.autograd.grad(scalar, list(g.parameters())[:-1], allow_unused=True))
    for closed, fallback in zip(*gradients, strict=True):
        torch.testing.assert_close(closed, fallback)


def test_fallback_under_no_grad():
    g = zoo.CONTRACTIONS["wrapped"]()
    x = torch.randn(4, zoo.DIM)
    with torch.no_grad():
        linearization = g.linearize(x)
        product = linearization.vm(x)
    assert not product.requires_grad
    torch.testing.assert_close(product, g.linearize(x).vm(x))


def test_no_trace_when_deep():
    assert zoo.dense(hidden_dims=(4, 4, 4)).linearize(torch.randn(2, zoo.DIM)).trace() is None


def test_starts_at_larger_end():
    s = Diagonal(torch.ones(2, 3))
    assert Chain((Dense(torch.ones(3, 2)), s, Dense(torch.ones(9, 3)))).transpose_is_cheaper
    assert not Chain((Dense(torch.ones(3, 9)), s, Dense(torch.ones(2, 3)))).transpose_is_cheaper


@pytest.mark.parametrize("padding", zoo.PADDINGS)
@pytest.mark.parametrize("hidden", [(4,), (4, 3)])
def test_trace_of_convolutions(padding, hidden):
    g = zoo.conv(padding=padding, hidden_channels=hidden, context_dim=zoo.CONTEXT)
    for size in ((3, 3), (5, 7)):
        at = g.linearize(torch.randn(4, 2, *size), torch.randn(4, zoo.CONTEXT))
        expected = at.as_matrix().diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close(at.trace(), expected)
    # Images smaller than the kernel have no exact trace.
    assert g.linearize(torch.randn(1, 2, 2, 5), torch.randn(1, zoo.CONTEXT)).trace() is None


@pytest.mark.parametrize("name", ["two_hidden", "conv_zeros", "conv_circular"])
def test_packed_jacobian(name):
    x = torch.randn(3, *zoo.event_shape(name))
    at = zoo.CONTRACTIONS[name]().linearize(x)
    words, tensors = at.jacobian.packed()
    torch.testing.assert_close(unpack(words, tensors).mv(x), at.mv(x))
    total = Sum((at.jacobian, at.jacobian))
    torch.testing.assert_close(unpack(*total.packed()).vm(x), 2 * at.vm(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["wrapped", "conditional_wrapped"])
def test_refuses_trace_by_name(name):
    if name == "wrapped":
        transform = zoo.PYRO_TRANSFORMS["wrapped"]()
    else:
        transform = zoo.CONDITIONAL_TRANSFORMS["wrapped"]().condition(torch.randn(4, zoo.CONTEXT))
    with pytest.raises(TracingError, match=r"^Wrapped cannot be traced by torch\.jit: .* layers\."):
        torch.jit.trace(lambda x: transform(x), (torch.randn(4, zoo.DIM),), check_trace=False)


class Half(Layer):
    """Half of the sine of each number, a layer without weights."""

    def __call__(self, h):
        return 0.5 * h.sin()

    def linearize(self, h):
        return self(h), Diagonal(0.5 * h.cos(), 1)

    def bound(self):
        return 0.5

    def rounding(self, h, value):
        return value.norm(dim=1)


class Weightless(LayeredContraction):
    def __init__(self):
        super().__init__((3,), None, 0.9, Gram())

    def raw_weights(self):
        return []

    def layers_with(self, weights):
        return [Half()]


@pytest.mark.parametrize("training", [True, False])
def test_network_without_weights(training):
    block = ResidualBlock(Weightless(), logdet=Exact()).train(training)
    x = torch.randn(5, 3)
    y, log_det = block.forward_and_log_det(x)
    torch.testing.assert_close(y, x + 0.5 * x.sin())
    torch.testing.assert_close(log_det, torch.log1p(0.5 * x.cos()).sum(1))
    torch.testing.assert_close(block.inverse(y), x)
    assert materialize_together([block.contraction])[0].lipschitz_bound() == 0.5
    assert block.lipschitz_bound() == 0.5
