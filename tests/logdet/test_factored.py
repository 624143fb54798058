"""Draws for Jacobians in factors, whose gradient is written by hand: against the exact value."""

import math

import pytest
import torch

from pyro_iresnet import Exact, Roulette, testing
from pyro_iresnet.blocks.cayley import CayleySeries
from pyro_iresnet.errors import ContractionError, HigherOrderError
from pyro_iresnet.logdet import Adaptive, Geometric, LogOnePlus, Subsample
from pyro_iresnet.logdet import roulette as roulette_module
from pyro_iresnet.operators import Chain, Convolution, Dense, Diagonal, Linearization, Sum
from pyro_iresnet.operators.convolutional import ConvolutionalJacobian

from .. import zoo
from .test_unbiased import DRAWS, check_gradient

HIDDEN = [(8,), (8, 7), (6, 6, 6)]
TRUNCATIONS = [Adaptive(0.3), Subsample(), Subsample(0.1, exact_terms=3)]
TRAINING = Roulette(Subsample(), control_variate=None)


def plain(truncation):
    return Roulette(truncation, control_variate=None)


@pytest.fixture
def fused(monkeypatch):
    """Count the calls of the hand-written rule."""
    calls = []
    make = roulette_module.FactoredDraws

    def counted(*arguments):
        calls.append(arguments)
        return make(*arguments)

    monkeypatch.setattr(roulette_module, "FactoredDraws", counted)
    return calls


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=repr)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_value(hidden, truncation, fused):
    g = zoo.dense(4, hidden, lipschitz=0.9)
    linearization = g.linearize(torch.randn(3, 4))
    testing.check_logdet(plain(truncation), linearization, lipschitz=0.9, draws=DRAWS)
    assert fused


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=repr)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradient(hidden, truncation):
    g = zoo.dense(4, hidden, lipschitz=0.9)
    x = torch.randn(3, 4, requires_grad=True)

    def linearize(repeat):
        return g.linearize(x.repeat(repeat, 1))

    variables, weights = [x, *g.parameters()], torch.tensor([1.0, -2.0, 0.3])
    check_gradient(plain(truncation), linearize, variables, weights)


SIDES = [(3, 3), (2, 4), (4, 6), (5, 5)]
CHANNELS = [(6,), pytest.param((6, 5), marks=pytest.mark.slow), (6, 5, 4)]
# Means over many draws take seconds, so each padding meets one depth by default.
FEW = [((6,), "zeros"), ((6, 5, 4), "circular")]
MEANS = [
    pytest.param(hidden, padding, marks=() if (hidden, padding) in FEW else pytest.mark.slow)
    for hidden in [(6,), (6, 5), (6, 5, 4)]
    for padding in zoo.PADDINGS
]


@pytest.mark.parametrize(("hidden", "padding"), MEANS)
def test_value_of_images(hidden, padding, fused):
    g = zoo.conv(2, hidden, padding=padding, lipschitz=0.9)
    linearization = g.linearize(torch.randn(3, 2, 3, 4))
    testing.check_logdet(plain(Subsample()), linearization, lipschitz=0.9, draws=DRAWS)
    assert fused


@pytest.mark.parametrize(("hidden", "padding"), MEANS)
def test_gradient_of_images(hidden, padding):
    g = zoo.conv(2, hidden, padding=padding, lipschitz=0.9)
    x = torch.randn(2, 2, 3, 3, requires_grad=True)

    def linearize(repeat):
        return g.linearize(x.repeat(repeat, 1, 1, 1))

    check_gradient(plain(Subsample()), linearize, [x, *g.parameters()], torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("padding", zoo.PADDINGS)
@pytest.mark.parametrize("hidden", CHANNELS)
def test_rules_of_images(hidden, padding, size):
    g = zoo.conv(2, hidden, padding=padding)
    at = g.linearize(torch.randn(3, 2, *size))
    j = ConvolutionalJacobian.of(at.jacobian.maps)
    weights = [w.detach().requires_grad_() for w in j.weights]
    slopes = [p.detach().requires_grad_() for p in j.slopes]
    j = j.with_factors(weights, slopes)
    u, v = torch.randn(2, 3, j.event_size)
    swept, passed = j.sweep(v)
    images = v.reshape(3, *size, 2).permute(0, 3, 1, 2)
    expected = at.vm(images).permute(0, 2, 3, 1).reshape(3, -1)
    torch.testing.assert_close(swept, expected)
    found = [t for part in j.pull(u, [*passed, v]) for t in part]
    torch.testing.assert_close(found, [*torch.autograd.grad((swept * u).sum(), weights + slopes)])
    traced = j.trace()
    if len(hidden) == 3 or min(size) < 3:
        # Deep networks, and images smaller than a kernel, have no trace in closed form.
        assert traced is None
        return
    traces, kept = traced
    diagonal = at.as_matrix().diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(traces, diagonal.sum(-1))
    scales = torch.tensor([1.0, -2.0, 0.3])
    found = [t for part in j.pull_trace(kept, scales) for t in part]
    torch.testing.assert_close(found, [*torch.autograd.grad(traces @ scales, weights + slopes)])


def test_convolutions_that_do_not_fit(fused):
    # The paddings differ, so no rule by hand exists; the draws of any map serve.
    kernels = 0.05 * torch.randn(2, 2, 2, 3, 3)
    first, last = Convolution(kernels[0], circular=True), Convolution(kernels[1])
    chain = Chain((first, Diagonal(torch.rand(2, 2, 3, 3), 3), last))
    assert ConvolutionalJacobian.of(chain.maps) is None
    assert chain.trace() is None
    linearization = Linearization(torch.zeros(2, 2, 3, 3), chain, 3)
    testing.check_logdet(plain(Subsample()), linearization, lipschitz=0.9, draws=DRAWS)
    assert not fused


def test_sum_is_no_chain(fused):
    w = 0.05 * torch.randn(4, 4)
    total = Sum((Dense(w), Diagonal(0.2 * torch.rand(5, 4)), Dense(w.T)))
    linearization = Linearization(torch.zeros(5, 4), total)
    testing.check_logdet(plain(Subsample()), linearization, lipschitz=0.9, draws=DRAWS)
    assert not fused


def test_geometric(fused):
    linearization = zoo.dense(4, (8, 7), lipschitz=0.6).linearize(torch.randn(3, 4))
    testing.check_logdet(plain(Geometric(0.3)), linearization, lipschitz=0.6, draws=DRAWS)
    assert fused


@pytest.mark.parametrize("series", [LogOnePlus(), CayleySeries()], ids=repr)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)])
def test_exact_in_one_dimension(hidden, series, batch):
    # A sign u has u J^k u = J^k, so the whole series is exact, and its gradient too.
    g = zoo.dense(1, hidden, lipschitz=0.8)
    x = torch.randn(*batch, 1, requires_grad=True)
    weights = torch.linspace(-1.0, 2.0, math.prod(batch)).reshape(batch)
    found = []
    for estimator in (plain(Adaptive(1e-13)), plain(Subsample(1e-13)), Exact()):
        value = estimator(g.linearize(x), lipschitz=0.8, series=series)
        assert value.shape == batch
        grads = torch.autograd.grad(
            (weights * value).sum(), [x, *g.parameters()], allow_unused=True
        )
        found.append((value, [t for t in grads if t is not None]))
    for value, grads in found[:2]:
        torch.testing.assert_close(value, found[-1][0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(grads, found[-1][1], rtol=1e-9, atol=1e-10)


def test_first_term_is_exact():
    # J^2 = 0, so the log-determinant is the trace, without any draw.
    w1, w2 = torch.tensor([[0.0, 0.9]]).double(), torch.tensor([[0.9], [0.0]]).double()
    slopes = torch.rand(7, 1).double()
    chain = Chain((Dense(w1), Diagonal(slopes), Dense(w2)))
    value = TRAINING(Linearization(torch.zeros(7, 2).double(), chain), lipschitz=0.9)
    torch.testing.assert_close(value, torch.zeros(7).double())


@pytest.mark.parametrize("name", [n for n in zoo.CONTRACTIONS if n.startswith("dense_")])
def test_zoo(name):
    g = zoo.CONTRACTIONS[name](lipschitz=0.8)
    x = torch.randn(2, *zoo.event_shape(name))
    testing.check_logdet(TRAINING, g.linearize(x), lipschitz=0.8, draws=DRAWS)


def test_context(fused):
    g = zoo.dense(3, (8, 7), context_dim=2, lipschitz=0.9)
    x, context = torch.randn(3, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)

    def linearize(repeat):
        return g.linearize(x.repeat(repeat, 1), context.repeat(repeat, 1))

    variables = [x, context, *g.parameters()]
    check_gradient(TRAINING, linearize, variables, torch.tensor([1.0, -2.0, 0.3]))
    assert fused


def test_without_gradients():
    g = zoo.dense(4, (8, 7), lipschitz=0.9)
    x = torch.randn(50, 4)
    torch.manual_seed(1)
    with torch.no_grad():
        quiet = TRAINING(g.linearize(x), lipschitz=0.9)
    torch.manual_seed(1)
    torch.testing.assert_close(TRAINING(g.linearize(x), lipschitz=0.9).detach(), quiet)


def test_frozen_parameters():
    g = zoo.dense(4, (8, 7), lipschitz=0.9)
    x = torch.randn(50, 4)
    g.layers[1].weight.requires_grad_(False)
    torch.manual_seed(1)
    TRAINING(g.linearize(x), lipschitz=0.9).sum().backward()
    kept = [p.grad for n, p in g.named_parameters() if n != "layers.1.weight"]
    assert g.layers[1].weight.grad is None
    g.layers[1].weight.requires_grad_(True)
    g.zero_grad()
    torch.manual_seed(1)
    TRAINING(g.linearize(x), lipschitz=0.9).sum().backward()
    expected = [p.grad for n, p in g.named_parameters() if n != "layers.1.weight"]
    torch.testing.assert_close(kept, expected)


def test_backward_twice():
    g = zoo.dense(4, (8, 7), lipschitz=0.9)
    value = TRAINING(g.linearize(torch.randn(50, 4)), lipschitz=0.9).sum()
    value.backward(retain_graph=True)
    once = [p.grad.clone() for p in g.parameters() if p.grad is not None]
    value.backward()
    twice = [p.grad for p in g.parameters() if p.grad is not None]
    torch.testing.assert_close(twice, [2 * grad for grad in once])


def test_nan_rows():
    g = zoo.dense(4, (8, 7), lipschitz=0.9)
    x = torch.randn(40, 4)
    x[[3, 17]] = torch.nan
    x.requires_grad_()
    value = TRAINING(g.linearize(x), lipschitz=0.9)
    assert value.isnan().nonzero().flatten().tolist() == [3, 17]
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert grad.isnan().any(1).nonzero().flatten().tolist() == [3, 17]


def test_dtypes():
    g = zoo.dense(4, (8, 7), lipschitz=0.9).float()
    x = torch.randn(40, 4, dtype=torch.float32, requires_grad=True)
    value = TRAINING(g.linearize(x), lipschitz=0.9)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value.sum(), x)[0].dtype == torch.float32


def test_saved_memory():
    def saved(exact_terms):
        total = []

        def pack(tensor):
            total.append(tensor.numel())
            return tensor

        g = zoo.dense(6, (16, 16), lipschitz=0.9)
        at = g.linearize(torch.randn(100, 6))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            plain(Adaptive(exact_terms=exact_terms))(at, lipschitz=0.9)
        return sum(total)

    assert saved(50) == saved(5)


def test_no_second_derivative():
    g = zoo.dense(4, (8, 7), lipschitz=0.9)
    x = torch.randn(20, 4, requires_grad=True)
    value = TRAINING(g.linearize(x), lipschitz=0.9).sum()
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    for variable in (x, *(p for p in g.parameters() if p.ndim == 2)):
        with pytest.raises(HigherOrderError, match="first derivatives only"):
            torch.autograd.grad(grad.sum(), variable, retain_graph=True)


def test_broken_promise():
    w = 1.5 * torch.eye(3).double()
    chain = Chain((Dense(w), Diagonal(torch.ones(5, 3).double()), Dense(w)))
    at = Linearization(torch.zeros(5, 3).double(), chain)
    for truncation in (Adaptive(), Subsample()):
        with pytest.raises(ContractionError, match="of 5 samples"):
            plain(truncation)(at, lipschitz=0.5)


@pytest.mark.parametrize("threshold", [0.05, 1.5, 3.0, 20.0])
def test_every_sample_has_its_chance(threshold):
    magnitude = torch.rand(20)
    truncation = Subsample(threshold)
    weight = torch.zeros(20)
    for _ in range(4000):
        played = truncation.play(1, magnitude)
        kept, factor = (torch.arange(20), 1.0) if played is None else played
        assert kept.tolist() == sorted(set(kept.tolist()))
        weight[kept] += factor / 4000
        # No weight lifts a term above the threshold, or above the largest term.
        lifted = (magnitude[kept] * factor).max() if len(kept) else 0.0
        assert lifted <= max(threshold, magnitude.max()) * (1 + 1e-6)
    # A weight w has the variance w - 1 for one play.
    spread = math.sqrt(max(1e-12, threshold / magnitude.max().item() - 1) / 4000)
    assert (weight - 1).abs().max() <= 5 * spread + 1e-6


def test_part_of_a_batch():
    magnitude = torch.full((40,), 0.3)
    # Above half of the threshold no part is worth a cut.
    assert Subsample(0.5).play(1, magnitude) is None
    kept, factor = Subsample(1.0).play(1, magnitude)
    assert (len(kept), factor) == (12, 40 / 12)
    magnitude[7] = torch.nan
    kept, factor = Subsample(0.5).play(1, magnitude)
    assert (kept.tolist(), factor) == ([i for i in range(40) if i != 7], 1.0)


def test_rare_survivor():
    magnitude = torch.full((4,), 1e-3)
    sizes = [len(Subsample(0.5).play(1, magnitude)[0]) for _ in range(5_000)]
    # One of four samples goes on with probability 4 * 1e-3 / 0.5.
    assert max(sizes) == 1
    assert abs(sum(sizes) / 5_000 - 0.008) < 5 * math.sqrt(0.008 / 5_000)
    assert Subsample(0.5).play(1, magnitude[:0])[0].numel() == 0
    assert Subsample(0.5).play(1, torch.tensor([torch.nan, torch.inf]))[0].numel() == 0
    assert Subsample(0.5).play(1, torch.zeros(3))[0].numel() == 0
