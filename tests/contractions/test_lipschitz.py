"""Promise of every contraction: no pair of points is stretched beyond the bound."""

from functools import partial

import pytest
import torch

from pyro_iresnet import (
    ContractionError,
    ConvContraction,
    DenseContraction,
    ResidualBlock,
    cached,
    testing,
    wrap,
)
from pyro_iresnet.activations import Activation
from pyro_iresnet.contractions import (
    Layer,
    LayeredContraction,
    SequentialContraction,
    SumContraction,
)
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.norms import PowerIteration
from pyro_iresnet.operators import LinearMap

from .. import zoo


@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_contract(name):
    testing.check_contraction(zoo.CONTRACTIONS[name](), torch.randn(40, *zoo.event_shape(name)))


@pytest.mark.parametrize("name", zoo.CONDITIONAL)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_contract_under_context(name, scale):
    context = scale * torch.randn(40, zoo.CONTEXT)
    testing.check_contraction(
        zoo.CONDITIONAL[name](), torch.randn(40, *zoo.event_shape(name)), context
    )


@pytest.mark.parametrize("name", sorted(set(zoo.CONDITIONAL) - {"conditional_wrapped"}))
def test_context_shifts_and_gates(name):
    g = zoo.CONDITIONAL[name]()
    x = torch.randn(1, *zoo.event_shape(name))
    first, second = (g.linearize(x, torch.randn(1, zoo.CONTEXT)) for _ in range(2))
    assert not torch.allclose(first.value, second.value)
    assert not torch.allclose(first.as_matrix(), second.as_matrix())


EXPANDING = {
    "dense": partial(DenseContraction, 4, [16, 16]),
    "zeros": partial(ConvContraction, (1, 2, 2), [6, 6]),
    "circular": partial(ConvContraction, (1, 2, 2), [6, 6], padding="circular"),
}


def weights_of(g):
    return [weight for _, weight in g.normalized_weights()]


def operator_norms(weight, padding):
    """Compute exact norms of a matrix, or of a convolution at several image sizes."""
    if weight.dim() == 2:
        return [torch.linalg.matrix_norm(weight, ord=2)]
    norms = []
    for size in ((2, 2), (3, 5), (6, 6)):
        matrix = zoo.operator(weight, size, circular=padding == "circular")
        # LAPACK sometimes fails to find the singular values of structured matrices.
        norms.append(torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=0).sqrt())
    return norms


# Other combinations take minutes.
TRAINED = [
    pytest.param(
        name,
        norm,
        marks=() if norm == "gram" or name == "dense" else pytest.mark.slow,
    )
    for name in EXPANDING
    for norm in zoo.CERTIFIED_NORMS
]


@pytest.mark.parametrize(("name", "norm"), TRAINED)
def test_bounds_during_training(name, norm):
    g = EXPANDING[name](lipschitz=0.9, norm=zoo.CERTIFIED_NORMS[norm]).float()
    optimizer = torch.optim.Adam(g.parameters(), lr=1e-2)
    for step in range(300):
        x = torch.randn(32, 4, dtype=torch.float32)
        x = x if g.event_dim == 1 else x.reshape(32, 1, 2, 2)
        loss = (g(x) - 4 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            g.train(step % 20 == 0)
            acting = g.materialize()
            for _, weight in g.normalized_weights():
                exact = operator_norms(weight.weight.double(), getattr(g, "padding", ""))
                assert max(exact) <= weight.norm() * (1 + 1e-5)
            assert acting.lipschitz_bound() <= 0.9 + 1e-5
    testing.check_lipschitz_bound(g.double(), x.double())


@pytest.mark.parametrize("name", EXPANDING)
def test_refuses_power_iteration(name):
    torch.manual_seed(0)
    g = zoo.trained(EXPANDING[name](lipschitz=0.99, norm=PowerIteration(steps=1)), gain=20.0)
    bound = g.lipschitz_bound()
    exact = [max(operator_norms(w.weight, getattr(g, "padding", ""))) for w in weights_of(g)]
    for weight, norm in zip(weights_of(g), exact, strict=True):
        assert norm <= weight.norm() * (1 + 1e-5)
    assert bound > 1
    x = torch.randn(3, 4) if g.event_dim == 1 else torch.randn(3, 1, 2, 2)
    with pytest.raises(ContractionError, match=r"proven Lipschitz bound is [1-9]\.\d+"):
        ResidualBlock(g).inverse(x)


def test_composed_bounds():
    parts = zoo.dense(lipschitz=0.5), zoo.dense(lipschitz=0.4)
    each = [float(part.lipschitz_bound()) for part in parts]
    assert float(SequentialContraction(*parts).lipschitz_bound()) == pytest.approx(
        each[0] * each[1]
    )
    assert float(SumContraction(*parts).lipschitz_bound()) == pytest.approx(sum(each))


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_every_image_size(padding):
    g = zoo.conv(padding=padding)
    weights = [w.weight for w in weights_of(g)]
    for size in ((3, 4), (7, 5)):
        testing.check_contraction(g, torch.randn(10, 2, *size))
    other = ConvContraction((2, 9, 9), (4, 3), padding=padding)
    other.load_state_dict(g.state_dict())
    for ours, theirs in zip(weights, weights_of(other), strict=True):
        assert torch.equal(ours, theirs.weight)


@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_stores_weights_once(name):
    g = zoo.CONTRACTIONS[name]()
    state = g.state_dict()
    stored = [v for key, v in state.items() if v.numel() and not key.endswith("_extra_state")]
    assert len({v.data_ptr() for v in stored}) == len(stored)
    if isinstance(g, LayeredContraction):
        kept = sum(v.numel() for v in stored)
        assert kept == sum(p.numel() for p in g.parameters())


@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_same_weights_every_call(name):
    g = zoo.CONTRACTIONS[name]()
    x = torch.randn(5, *zoo.event_shape(name))
    first = g(x)
    g(10 * x)
    g.linearize(x)
    assert torch.equal(first, g(x))
    with cached(ResidualBlock(g)):
        torch.testing.assert_close(g(x), first)


def test_refuses_other_parts_set_later():
    g = SequentialContraction(zoo.dense(lipschitz=0.5), zoo.dense(lipschitz=0.5))
    g.parts[1] = torch.nn.Linear(zoo.DIM, zoo.DIM)
    with pytest.raises(ArgumentTypeError, match=r"parts\[1\] to be a Contraction"):
        g(torch.randn(2, zoo.DIM))


def test_composes_wrapped_networks():
    parts = zoo.dense(lipschitz=0.4), wrap(zoo.Scaled(0.5, torch.eye(zoo.DIM)), lipschitz=0.5)
    for composed in (SumContraction(*parts), SequentialContraction(*parts)):
        assert composed.event_shape == (zoo.DIM,)
        testing.check_contraction(composed, torch.randn(20, zoo.DIM))
        assert not composed.materialize().closed_form
    with pytest.raises(ArgumentError, match="one event space"):
        SumContraction(zoo.dense(3, lipschitz=0.4), zoo.dense(4, lipschitz=0.4))


class Reversal(LinearMap):
    def mv(self, v):
        return v.flip(-1)

    def vm(self, v):
        return v.flip(-1)

    def select(self, index):
        return self


class Reverse(Layer):
    """The entries of a vector from last to first, a layer with a Jacobian of its own kind."""

    def __call__(self, h):
        return h.flip(-1)

    def linearize(self, h):
        return self(h), Reversal()

    def bound(self):
        return 1.0

    def rounding(self, h, value):
        return torch.zeros(len(h))


class Reversing(DenseContraction):
    def layers_with(self, weights):
        return [*super().layers_with(weights), Reverse()]


def test_custom_map():
    testing.check_contraction(Reversing(3, [4, 4]).double(), torch.randn(20, 3))


class Minus(Activation):
    def forward(self, x):
        return -x

    def value_and_slope(self, x):
        return -x, -torch.ones_like(x)


def test_custom_activation():
    testing.check_contraction(
        DenseContraction(3, [4, 4], activation=Minus).double(), torch.randn(20, 3)
    )


class Counted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.count = torch.nn.Parameter(torch.tensor([3]), requires_grad=False)

    def forward(self, x):
        return 0.5 * x.sin()


def test_bound_with_integer_parameter():
    assert float(wrap(Counted(), lipschitz=0.9).lipschitz_bound()) == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["two_hidden", "conv_zeros", "sequence"])
def test_bound_under_autocast(name):
    g = zoo.CONTRACTIONS[name]().float()
    x = torch.randn(5, *zoo.event_shape(name), dtype=torch.float32)
    bound = g.lipschitz_bound()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(g.lipschitz_bound(), bound)
        parts = [m for m in g.modules() if isinstance(m, LayeredContraction)]
        weights = [w.weight for part in parts for w in weights_of(part)]
        assert all(w.dtype == torch.float32 for w in weights)
        near = g(x)
        made = g.materialize()
        assert torch.equal(made.lipschitz_bound(), bound)
    torch.testing.assert_close(near.float(), g(x), atol=0.1, rtol=0.1)
    torch.testing.assert_close(made(x), g(x))


@pytest.mark.parametrize("norm", zoo.NORMS)
def test_norms_under_autocast(norm):
    g = zoo.dense(norm=zoo.NORMS[norm]).float()
    # Weights together and weights alone may differ in the last digit.
    bound, together = g.lipschitz_bound(), g.materialize().lipschitz_bound()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(g.lipschitz_bound(), bound)
        assert torch.equal(g.materialize().lipschitz_bound(), together)
    torch.testing.assert_close(together, bound)
