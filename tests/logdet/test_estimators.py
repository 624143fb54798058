import math

import pytest
import torch

from pyro_iresnet import (
    ByMode,
    ContractionError,
    Exact,
    PowerSeries,
    ResidualBlock,
    Roulette,
    testing,
)
from pyro_iresnet.errors import ArgumentError, HigherOrderError, TracingError
from pyro_iresnet.logdet import Adaptive, ConvergedSeries, Subsample, auto_logdet
from pyro_iresnet.operators import Dense, Diagonal, Linearization

from .. import zoo

DIMS = [1, 2, 3, 5, 16]
DRAWS = 4000


def reference(g, x):
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: p + g(p[None])[0]))(x)
    sign, logabsdet = torch.linalg.slogdet(jacobian)
    assert (sign > 0).all()
    return logabsdet


@pytest.mark.parametrize("dim", DIMS)
def test_exact_is_slogdet(dim):
    g, x = zoo.dense(dim), torch.randn(7, dim)
    exact = Exact()(g.linearize(x), lipschitz=g.lipschitz)
    torch.testing.assert_close(exact, reference(g, x))


# Twenty thousand probes take seconds, so one network of each dimension meets them by default.
LONG = [
    pytest.param(dim, hidden, marks=() if hidden == (8, 7) else pytest.mark.slow)
    for dim in DIMS
    for hidden in [(), (8,), (8, 7), (6, 6, 6)]
]


@pytest.mark.parametrize(("dim", "hidden"), LONG)
def test_long_series_is_slogdet(dim, hidden):
    g, x = zoo.dense(dim, hidden, lipschitz=0.7), torch.randn(3, dim)
    series = PowerSeries(terms=60, probes=20_000)(g.linearize(x), lipschitz=g.lipschitz)
    torch.testing.assert_close(series, reference(g, x), atol=0.03, rtol=0)


@pytest.mark.parametrize("terms", [1, 2, 5, 20])
@pytest.mark.parametrize("c", [-0.5, 0.5])
def test_truncation_error(terms, c):
    # Probes are exact for J = c I. Only the cut is left.
    j = Linearization(torch.zeros(1, 4), Dense(c * torch.eye(4)))
    series = PowerSeries(terms=terms)
    off = (series(j, lipschitz=0.5) - 4 * math.log1p(c)).abs()
    assert off <= series.truncation_error(0.5, 4)
    assert off >= 1e-3 * series.truncation_error(0.5, 4)


def test_deterministic_series():
    g = zoo.dense(lipschitz=0.8)
    series = PowerSeries(terms=6, probes=2)

    def logdet(x):
        return series(g.linearize(x), lipschitz=g.lipschitz)

    x = torch.randn(3, zoo.DIM, requires_grad=True)
    torch.manual_seed(1)
    first = logdet(x)
    torch.manual_seed(2)
    assert torch.equal(first, logdet(x))
    torch.testing.assert_close(first[1:], logdet(x[1:]))
    assert torch.autograd.gradcheck(logdet, (x,))
    assert torch.autograd.gradgradcheck(logdet, (x,))


@pytest.mark.parametrize(
    "roulette",
    [
        Roulette(),
        Roulette(probes=3),
        Roulette(Adaptive(threshold=0.05)),
        Roulette(Adaptive(threshold=2.0)),
        Roulette(Adaptive(exact_terms=4)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("hidden", [(8,), (8, 7), (6, 6, 6)])
def test_unbiased_value(roulette, hidden):
    g = zoo.dense(5, hidden, lipschitz=0.95)
    x = torch.randn(4, 5)
    testing.check_logdet(roulette, g.linearize(x), lipschitz=0.95, draws=DRAWS)


def test_bounded_draws():
    linearization = Linearization(torch.zeros(2000, 2), Dense(0.9 * torch.eye(2)))
    # The control variate of equal Jacobians is exact, so no draw would be off.
    draws = Roulette(control_variate=None)(linearization, lipschitz=0.9)
    assert 0 < (draws - 2 * math.log(1.9)).abs().max() <= 0.02


@pytest.mark.parametrize("hidden", [(8,), (8, 7), (6, 6, 6)])
def test_unbiased_gradient(hidden):
    g = zoo.dense(4, hidden, lipschitz=0.9)
    x = torch.randn(3, 4, requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 0.3])
    variables = [x, *list(g.parameters())[:-1]]

    def gradient(estimator, repeat):
        linearization = g.linearize(x.repeat(repeat, 1))
        logdet = estimator(linearization, lipschitz=g.lipschitz)
        loss = (weights.repeat(repeat) * logdet).sum() / repeat
        parts = torch.autograd.grad(loss, variables, allow_unused=True)
        return torch.cat([p.flatten() for p in parts if p is not None])

    exact = gradient(Exact(), 1)
    estimates = torch.stack([gradient(Roulette(), 100) for _ in range(60)])
    error = estimates.std(0) / math.sqrt(len(estimates))
    off = (estimates.mean(0) - exact).abs()
    # Four standard errors. By chance, one entry in 16,000 lies outside.
    assert (off <= 4 * error + 1e-9).float().mean() >= 0.99
    assert (off <= 5.5 * error + 1e-9).all()
    assert exact.norm() > 30 * error.norm() / math.sqrt(len(exact))


def test_gradient_of_two_blocks():
    blocks = [zoo.block(4, logdet=Roulette()) for _ in range(2)]
    x = torch.randn(2, 4).repeat(3000, 1)
    y, first = blocks[0].forward_and_log_det(x)
    _, second = blocks[1].forward_and_log_det(y)
    parameters = list(blocks[0].parameters())
    (first + second).mean().backward()
    estimate = torch.cat([p.grad.flatten() for p in parameters])
    for block in blocks:
        block.zero_grad()
        block.logdet = Exact()
    y, first = blocks[0].forward_and_log_det(x[:2])
    (first + blocks[1].forward_and_log_det(y)[1]).mean().backward()
    exact = torch.cat([p.grad.flatten() for p in parameters])
    assert (estimate - exact).norm() < 0.1 * exact.norm()


def test_refuses_second_derivative():
    g = zoo.dense()
    x = torch.randn(3, zoo.DIM, requires_grad=True)
    logdet = Roulette()(g.linearize(x), lipschitz=g.lipschitz).sum()
    (first,) = torch.autograd.grad(logdet, x, create_graph=True)
    with pytest.raises(HigherOrderError, match="first derivatives only"):
        first.sum().backward()


def test_derivatives_of_exact():
    g = zoo.dense(3)
    x = torch.randn(2, 3, requires_grad=True)

    def logdet(x):
        return Exact()(g.linearize(x), lipschitz=g.lipschitz)

    assert torch.autograd.gradcheck(logdet, (x,))
    assert torch.autograd.gradgradcheck(logdet, (x,))
    per_sample = torch.func.vmap(torch.func.hessian(lambda p: logdet(p)))(x.detach())
    assert per_sample.shape == (2, 3, 3)


def test_constant_memory():
    g = zoo.dense(6, (8, 8), lipschitz=0.99)
    x = torch.randn(10, 6, requires_grad=True)

    def saved(estimator):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            estimator(g.linearize(x), lipschitz=g.lipschitz)
        return sum(sizes)

    few = saved(Roulette(Adaptive(threshold=0.3, exact_terms=5)))
    many = saved(Roulette(Adaptive(threshold=0.3, exact_terms=200)))
    assert many == few


def test_refuses_expansion():
    linearization = Linearization(torch.zeros(2, 3), Dense(torch.eye(3)))
    with pytest.raises(ContractionError, match="did not end within"):
        Roulette()(linearization, lipschitz=0.5)


def test_nan_stays_visible():
    g = zoo.dense()
    x = torch.randn(3, zoo.DIM)
    x[1] = math.nan
    logdet = Roulette()(g.linearize(x), lipschitz=g.lipschitz)
    assert logdet.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("estimator", [Exact(), PowerSeries(), Roulette(), Roulette(probes=2)])
@pytest.mark.parametrize("batch", [(), (5,), (3, 4), (0,)])
@pytest.mark.parametrize("hidden", [(), (8,), (6, 6, 6)])
def test_any_batch_shape(estimator, batch, hidden):
    g = zoo.dense(5, hidden)
    x = torch.randn(*batch, 5, requires_grad=True)
    logdet = estimator(g.linearize(x), lipschitz=g.lipschitz)
    assert logdet.shape == batch
    logdet.sum().backward()
    assert all(p.grad.isfinite().all() for p in g.parameters() if p.grad is not None)


class LogDetOf(torch.nn.Module):
    def __init__(self, estimator):
        super().__init__()
        self.block = zoo.block(logdet=estimator)

    def forward(self, x):
        return self.block.forward_and_log_det(x)


@pytest.mark.parametrize("estimator", [ConvergedSeries(), Roulette()])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_refuses_tracing(estimator):
    with pytest.raises(TracingError, match=r"cannot be traced"):
        torch.jit.trace(LogDetOf(estimator), (torch.randn(2, zoo.DIM),))


@pytest.mark.parametrize("estimator", [PowerSeries(), Exact()])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_deterministic(estimator):
    module = LogDetOf(estimator)
    traced = torch.jit.trace(module, (torch.randn(2, zoo.DIM),))
    for batch in (2, 7):
        other = torch.randn(batch, zoo.DIM)
        torch.testing.assert_close(traced(other), module(other))


def test_follows_mode():
    block = zoo.block(20, logdet=ByMode(train=Roulette(), evaluate=Exact()))
    x = torch.randn(500, 20)
    draws = [block.train().forward_and_log_det(x)[1] for _ in range(2)]
    assert not torch.equal(*draws)
    values = [block.eval().forward_and_log_det(x)[1] for _ in range(2)]
    assert torch.equal(*values)


def test_default_by_size():
    assert auto_logdet(2) == ByMode(train=Exact(), evaluate=Exact())
    training = Roulette(Subsample(), control_variate=None)
    assert auto_logdet(64) == ByMode(train=training, evaluate=Exact())
    assert auto_logdet(3000).evaluate == ConvergedSeries()
    wrapped = ResidualBlock(zoo.CONTRACTIONS["wrapped"]())
    assert wrapped.estimator(5) == Exact()
    assert wrapped.estimator(64) == training


def test_nested_modes():
    inner = ByMode(train=Roulette(), evaluate=Exact())
    outer = ByMode(train=inner, evaluate=PowerSeries())
    assert outer.for_mode(True) == Roulette()
    assert outer.for_mode(False) == PowerSeries()
    assert ByMode(train=Exact(), evaluate=inner).for_mode(False) == Exact()


@pytest.mark.parametrize("estimator", [Roulette(), ConvergedSeries()])
@pytest.mark.parametrize("lipschitz", [1.0, 0.0, 1.5, math.nan])
def test_refuses_wrong_bound(estimator, lipschitz):
    with pytest.raises(ArgumentError, match=r"lipschitz in \(0, 1\); got"):
        estimator(zoo.dense().linearize(torch.randn(2, zoo.DIM)), lipschitz=lipschitz)


@pytest.mark.parametrize("size", [0, -1])
def test_refuses_wrong_size(size):
    with pytest.raises(ArgumentError, match="event_size to be at least 1"):
        auto_logdet(size)


def test_vectorized_gradients():
    block, x = zoo.block(3, logdet=Exact()), torch.randn(4, 3)

    def logdet(x):
        return block.forward_and_log_det(x)[1]

    expected = torch.autograd.functional.jacobian(logdet, x)
    together = torch.autograd.functional.jacobian(logdet, x, vectorize=True)
    torch.testing.assert_close(together, expected)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("hidden", [(8,), (6, 6, 6)])
def test_converged_within_tolerance(hidden, tolerance):
    g = zoo.dense(5, hidden, lipschitz=0.9)
    linearization = g.linearize(torch.randn(4, 5))
    series = ConvergedSeries(tolerance, probes=3)
    whole = PowerSeries(terms=400, probes=3)(linearization, lipschitz=0.9)
    off = (series(linearization, lipschitz=0.9) - whole).abs()
    assert (off <= tolerance).all()
    assert torch.equal(series(linearization, lipschitz=0.9), series(linearization, lipschitz=0.9))


def test_converged_sample_alone():
    series = ConvergedSeries(1e-2)
    # The first sample needs two terms, and the second some fifty.
    slopes = torch.tensor([[0.05, 0.04, 0.03], [0.95, 0.9, 0.8]])
    both, alone = (
        series(Linearization(torch.zeros(len(s), 3), Diagonal(s)), lipschitz=0.96)
        for s in (slopes, slopes[:1])
    )
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-15)


def test_refuses_divergent_series():
    linearization = Linearization(torch.zeros(2, 3), Dense(1.1 * torch.eye(3)))
    with pytest.raises(ContractionError, match="did not converge to"):
        ConvergedSeries()(linearization, lipschitz=0.5)
