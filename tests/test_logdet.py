import math

import pytest
import torch

from pyro_iresnet import (
    Adaptive,
    ArgumentError,
    ByMode,
    ContractionError,
    ConvergedSeries,
    Exact,
    HigherOrderError,
    Linearization,
    PowerSeries,
    ResidualBlock,
    Roulette,
    TracingError,
    auto_logdet,
    testing,
)
from pyro_iresnet.linear_maps import Dense

from . import zoo

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


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("hidden", [(), (8,), (8, 7), (6, 6, 6)])
def test_a_long_series_with_many_probes_is_slogdet(dim, hidden):
    g, x = zoo.dense(dim, hidden, lipschitz=0.7), torch.randn(3, dim)
    series = PowerSeries(terms=60, probes=20_000)(g.linearize(x), lipschitz=g.lipschitz)
    torch.testing.assert_close(series, reference(g, x), atol=0.03, rtol=0)


@pytest.mark.parametrize("terms", [1, 2, 5, 20])
@pytest.mark.parametrize("c", [-0.5, 0.5])
def test_the_cut_of_the_series_is_within_its_bound(terms, c):
    # For J = c I every probe is exact, so only the cut is left.
    j = Linearization(torch.zeros(1, 4), Dense(c * torch.eye(4)))
    series = PowerSeries(terms=terms)
    off = (series(j, lipschitz=0.5) - 4 * math.log1p(c)).abs()
    assert off <= series.truncation_error(0.5, 4)
    assert off >= 1e-3 * series.truncation_error(0.5, 4)


def test_the_series_is_a_function_of_x_and_differentiates_as_one():
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
def test_the_value_of_roulette_is_unbiased(roulette, hidden):
    g = zoo.dense(5, hidden, lipschitz=0.95)
    x = torch.randn(4, 5)
    testing.check_logdet(roulette, g.linearize(x), lipschitz=0.95, draws=DRAWS)


MATRICES = {
    "near_one": 0.95 * torch.eye(3),
    "near_minus_one": -0.9 * torch.eye(3),
    "rotation": 0.9 * torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "nilpotent": torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.9], [0.0, 0.0, 0.0]]),
    "zero": torch.zeros(3, 3),
}


@pytest.mark.parametrize("name", MATRICES)
def test_roulette_on_hard_jacobians(name):
    matrix = MATRICES[name].double()
    linearization = Linearization(torch.zeros(2, 3), Dense(matrix))
    testing.check_logdet(Roulette(), linearization, lipschitz=0.95, draws=DRAWS)


def test_no_draw_of_roulette_is_far_off_where_the_published_estimator_is():
    linearization = Linearization(torch.zeros(2000, 2), Dense(0.9 * torch.eye(2)))
    draws = Roulette()(linearization, lipschitz=0.9)
    assert (draws - 2 * math.log(1.9)).abs().max() <= 0.1


@pytest.mark.parametrize("hidden", [(8,), (8, 7), (6, 6, 6)])
def test_the_gradient_of_roulette_is_unbiased_under_unequal_weights(hidden):
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
    # Four standard errors, and room for the one in 16,000 that exceeds them in some 200 entries.
    assert (off <= 4 * error + 1e-9).float().mean() >= 0.99
    assert (off <= 5.5 * error + 1e-9).all()
    assert exact.norm() > 30 * error.norm() / math.sqrt(len(exact))


def test_roulette_sums_over_several_blocks_in_one_loss():
    blocks = [zoo.block(4, logdet=Roulette()) for _ in range(2)]
    x = torch.randn(2, 4).repeat(3000, 1)
    y, first = blocks[0].forward_and_logdet(x)
    _, second = blocks[1].forward_and_logdet(y)
    parameters = list(blocks[0].parameters())
    (first + second).mean().backward()
    estimate = torch.cat([p.grad.flatten() for p in parameters])
    for block in blocks:
        block.zero_grad()
        block.logdet = Exact()
    y, first = blocks[0].forward_and_logdet(x[:2])
    (first + blocks[1].forward_and_logdet(y)[1]).mean().backward()
    exact = torch.cat([p.grad.flatten() for p in parameters])
    assert (estimate - exact).norm() < 0.1 * exact.norm()


def test_a_second_derivative_of_roulette_is_refused():
    g = zoo.dense()
    x = torch.randn(3, zoo.DIM, requires_grad=True)
    logdet = Roulette()(g.linearize(x), lipschitz=g.lipschitz).sum()
    (first,) = torch.autograd.grad(logdet, x, create_graph=True)
    with pytest.raises(HigherOrderError, match="first derivatives only"):
        first.sum().backward()


def test_exact_has_all_derivatives():
    g = zoo.dense(3)
    x = torch.randn(2, 3, requires_grad=True)

    def logdet(x):
        return Exact()(g.linearize(x), lipschitz=g.lipschitz)

    assert torch.autograd.gradcheck(logdet, (x,))
    assert torch.autograd.gradgradcheck(logdet, (x,))
    per_sample = torch.func.vmap(torch.func.hessian(lambda p: logdet(p)))(x.detach())
    assert per_sample.shape == (2, 3, 3)


def test_the_memory_of_roulette_does_not_grow_with_its_terms():
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


def test_what_is_no_contraction_ends_in_words():
    linearization = Linearization(torch.zeros(2, 3), Dense(torch.eye(3)))
    with pytest.raises(ContractionError, match="did not end within"):
        Roulette()(linearization, lipschitz=0.5)


def test_a_nan_stays_visible_and_ends():
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
        return self.block.forward_and_logdet(x)


@pytest.mark.parametrize("estimator", [ConvergedSeries(), Roulette()])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_is_refused(estimator):
    with pytest.raises(TracingError, match=r"cannot be traced"):
        torch.jit.trace(LogDetOf(estimator), (torch.randn(2, zoo.DIM),))


@pytest.mark.parametrize("estimator", [PowerSeries(), Exact()])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_is_deterministic_traces(estimator):
    module = LogDetOf(estimator)
    traced = torch.jit.trace(module, (torch.randn(2, zoo.DIM),))
    for batch in (2, 7):
        other = torch.randn(batch, zoo.DIM)
        torch.testing.assert_close(traced(other), module(other))


def test_the_mode_decides_and_nothing_else():
    block = zoo.block(20, logdet=ByMode(train=Roulette(), evaluate=Exact()))
    x = torch.randn(500, 20)
    draws = [block.train().forward_and_logdet(x)[1] for _ in range(2)]
    assert not torch.equal(*draws)
    values = [block.eval().forward_and_logdet(x)[1] for _ in range(2)]
    assert torch.equal(*values)


def test_the_default_by_size():
    assert auto_logdet(2) == ByMode(train=Exact(), evaluate=Exact())
    assert auto_logdet(64) == ByMode(train=Roulette(), evaluate=Exact())
    assert auto_logdet(3000).evaluate == ConvergedSeries()
    wrapped = ResidualBlock(zoo.CONTRACTIONS["wrapped"]())
    assert wrapped.logdet_of(5) == Exact()
    assert wrapped.logdet_of(64) == Roulette()


def test_modes_nest():
    inner = ByMode(train=Roulette(), evaluate=Exact())
    outer = ByMode(train=inner, evaluate=PowerSeries())
    assert outer.for_mode(True) == Roulette()
    assert outer.for_mode(False) == PowerSeries()
    assert ByMode(train=Exact(), evaluate=inner).for_mode(False) == Exact()


@pytest.mark.parametrize("estimator", [Roulette(), ConvergedSeries()])
@pytest.mark.parametrize("lipschitz", [1.0, 0.0, 1.5, math.nan])
def test_a_wrong_bound_is_refused(estimator, lipschitz):
    with pytest.raises(ArgumentError, match=r"lipschitz in \(0, 1\); got"):
        estimator(zoo.dense().linearize(torch.randn(2, zoo.DIM)), lipschitz=lipschitz)


@pytest.mark.parametrize("size", [0, -1])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(ArgumentError, match="event_size to be at least 1"):
        auto_logdet(size)


def test_many_gradients_at_once():
    block, x = zoo.block(3, logdet=Exact()), torch.randn(4, 3)

    def logdet(x):
        return block.forward_and_logdet(x)[1]

    expected = torch.autograd.functional.jacobian(logdet, x)
    together = torch.autograd.functional.jacobian(logdet, x, vectorize=True)
    torch.testing.assert_close(together, expected)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("hidden", [(8,), (6, 6, 6)])
def test_a_converged_series_is_within_its_tolerance(hidden, tolerance):
    g = zoo.dense(5, hidden, lipschitz=0.9)
    linearization = g.linearize(torch.randn(4, 5))
    series = ConvergedSeries(tolerance, probes=3)
    whole = PowerSeries(terms=400, probes=3)(linearization, lipschitz=0.9)
    off = (series(linearization, lipschitz=0.9) - whole).abs()
    assert (off <= tolerance).all()
    assert torch.equal(series(linearization, lipschitz=0.9), series(linearization, lipschitz=0.9))


def test_a_series_that_does_not_converge_ends_in_words():
    linearization = Linearization(torch.zeros(2, 3), Dense(1.1 * torch.eye(3)))
    with pytest.raises(ContractionError, match="did not converge to"):
        ConvergedSeries()(linearization, lipschitz=0.5)
