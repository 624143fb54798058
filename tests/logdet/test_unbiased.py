"""Means of the stochastic estimators, value and gradient, over 100,000 draws."""

import math

import pytest
import torch

from pyro_iresnet import Exact, Roulette, testing
from pyro_iresnet.logdet import Adaptive, Geometric, MeanJacobian
from pyro_iresnet.operators import Chain, Dense, Diagonal, Linearization

from .. import zoo

DRAWS = 100_000
LAYERS = {1: (), 2: (8,), 3: (8, 7), 4: (6, 6, 6)}
ESTIMATORS = {
    "default": Roulette(),
    "plain": Roulette(control_variate=None),
    "coarse": Roulette(Adaptive(threshold=1.0)),
    "two_probes": Roulette(Adaptive(exact_terms=3), probes=2),
}

ROTATION = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
NILPOTENT = torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.9], [0.0, 0.0, 0.0]])
MATRICES = {
    "near_one": 0.95 * torch.eye(3),
    "near_minus_one": -0.9 * torch.eye(3),
    "rotation": 0.9 * ROTATION,
    "nilpotent": NILPOTENT,
    "zero": torch.zeros(3, 3),
}


def around(matrix):
    """Build Jacobians ``A diag(s)`` with different slopes for each sample."""
    slopes = torch.tensor([[1.0, 1.0, 1.0], [0.2, 1.0, 0.6], [0.9, 0.1, -0.5]])
    return Linearization(torch.zeros(3, 3), Chain((Diagonal(slopes), Dense(matrix.double()))))


# Without `slow`, these two estimators meet one network and one matrix, and the others meet all.
OTHERS = ("coarse", "two_probes")
NETWORKS = [
    pytest.param(
        layers,
        estimator,
        id=f"{layers}-{name}",
        marks=pytest.mark.slow if layers != 3 and name in OTHERS else (),
    )
    for layers in LAYERS
    for name, estimator in ESTIMATORS.items()
]


@pytest.mark.parametrize(("layers", "estimator"), NETWORKS)
def test_value_of_networks(layers, estimator):
    g = zoo.dense(4, LAYERS[layers], lipschitz=0.9)
    x = torch.randn(3, 4)
    testing.check_logdet(estimator, g.linearize(x), lipschitz=0.9, draws=DRAWS)


HARD = [
    pytest.param(
        matrix,
        estimator,
        id=f"{matrix}-{name}",
        marks=pytest.mark.slow if matrix != "nilpotent" and name in OTHERS else (),
    )
    for matrix in MATRICES
    for name, estimator in ESTIMATORS.items()
]


@pytest.mark.parametrize(("name", "estimator"), HARD)
def test_value_on_hard_jacobians(name, estimator):
    testing.check_logdet(estimator, around(MATRICES[name]), lipschitz=0.95, draws=DRAWS)


@pytest.mark.parametrize("truncation", [Geometric(p=0.1), Geometric(p=0.3, exact_terms=4)])
def test_value_under_geometric(truncation):
    g = zoo.dense(4, (8, 7), lipschitz=0.6)
    linearization = g.linearize(torch.randn(3, 4))
    testing.check_logdet(Roulette(truncation), linearization, lipschitz=0.6, draws=DRAWS)


def weighted_gradient(estimator, linearize, variables, weights, repeat):
    """Differentiate a weighted sum of log-determinants, averaged over copies of the batch."""
    logdet = estimator(linearize(repeat), lipschitz=0.95)
    loss = (weights.repeat(repeat) * logdet).sum() / repeat
    parts = torch.autograd.grad(loss, variables, allow_unused=True)
    return torch.cat([p.flatten() for p in parts if p is not None])


def check_gradient(estimator, linearize, variables, weights, batches=50):
    exact = weighted_gradient(Exact(), linearize, variables, weights, 1)
    copies = DRAWS // batches
    estimates = torch.stack(
        [
            weighted_gradient(estimator, linearize, variables, weights, copies)
            for _ in range(batches)
        ]
    )
    mean_error = (estimates.mean(0) - exact).norm()
    # Squared error of a mean vector: sum(var) / n on average.
    standard_error = math.sqrt(float(estimates.var(0).sum()) / batches)
    assert mean_error <= 4 * standard_error + 1e-10
    assert standard_error <= 0.05 * exact.norm() + 1e-10


@pytest.mark.parametrize("estimator", [Roulette(), Roulette(control_variate=None)], ids=repr)
@pytest.mark.parametrize("layers", LAYERS)
def test_gradient_of_weighted_sum(layers, estimator):
    g = zoo.dense(4, LAYERS[layers], lipschitz=0.9)
    x = torch.randn(3, 4, requires_grad=True)
    variables = [x, *g.parameters()]

    def linearize(repeat):
        return g.linearize(x.repeat(repeat, 1))

    if layers == 1:
        variables = list(g.parameters())  # one Jacobian everywhere for a linear g
    check_gradient(estimator, linearize, variables, torch.tensor([1.0, -2.0, 0.3]))


@pytest.mark.parametrize("reference", [MeanJacobian(), None], ids=repr)
@pytest.mark.parametrize("name", ["near_one", "near_minus_one", "rotation", "nilpotent"])
def test_gradient_on_hard_jacobians(name, reference):
    matrix = MATRICES[name].double().requires_grad_()
    slopes = torch.tensor([[1.0, 1.0, 1.0], [0.2, 1.0, 0.6]])

    def linearize(repeat):
        chain = Chain((Diagonal(slopes.repeat(repeat, 1)), Dense(matrix)))
        # The value depends on the weights, as g(x) does.
        return Linearization(slopes.repeat(repeat, 1) @ matrix.T, chain)

    check_gradient(
        Roulette(control_variate=reference), linearize, [matrix], torch.tensor([1.0, -0.5])
    )


def test_control_variate_cuts_variance():
    g = zoo.dense(20, (40, 40), lipschitz=0.9)
    x = torch.randn(50, 20)
    linearization = g.linearize(x)

    def deviation(reference):
        roulette = Roulette(Adaptive(0.05), control_variate=reference)
        with torch.no_grad():
            draws = [roulette(linearization, lipschitz=0.9) for _ in range(300)]
        return torch.stack(draws).std(0).mean()

    assert deviation(MeanJacobian()) < 0.6 * deviation(None)


def test_exact_single_sample():
    g = zoo.dense(5)
    linearization = g.linearize(torch.randn(1, 5))
    exact = Exact()(linearization, lipschitz=g.lipschitz)
    torch.testing.assert_close(Roulette()(linearization, lipschitz=g.lipschitz), exact)


def test_independent_draws():
    g = zoo.dense(6)
    linearization = g.linearize(torch.randn(2, 6).repeat(2000, 1))
    draws = Roulette()(linearization, lipschitz=g.lipschitz).reshape(2000, 2)
    centred = (draws - draws.mean(0)) / draws.std(0)
    assert (centred[:, 0] * centred[:, 1]).mean().abs() < 4 / math.sqrt(2000)


@pytest.mark.parametrize(
    "name",
    [
        "three_hidden",
        "sequence",
        "conv_zeros",
        pytest.param("conv_circular", marks=pytest.mark.slow),
    ],
)
def test_other_networks(name):
    g = zoo.CONTRACTIONS[name](lipschitz=0.8)
    x = torch.randn(2, *zoo.event_shape(name))
    testing.check_logdet(Roulette(), g.linearize(x), lipschitz=0.8, draws=DRAWS)

    def linearize(repeat):
        return g.linearize(x.repeat(repeat, *(1 for _ in zoo.event_shape(name))))

    weights = [p for n, p in g.named_parameters() if n.endswith("weight")]
    check_gradient(Roulette(), linearize, weights, torch.tensor([1.0, -2.0]))
