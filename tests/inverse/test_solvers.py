"""Properties of single solvers. test_solve.py checks all solvers."""

from dataclasses import dataclass

import pytest
import torch

from pyro_iresnet import Anderson, FixedPoint, Newton, testing, wrap
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError, LinearSolveError
from pyro_iresnet.inverse.solvers.base import Problem, Step
from pyro_iresnet.inverse.solvers.preconditioner import Affine
from pyro_iresnet.norms import Gram
from pyro_iresnet.operators import (
    Dense,
    DenseSolve,
    Diagonal,
    KrylovSolve,
    Linearization,
)
from pyro_iresnet.solvers import AffinePreconditioner, Result, Solver, solve

from .. import zoo


def problem(g, y, context=None):
    lipschitz = float(g.lipschitz_bound())
    return Problem(g.materialize(), y.flatten(1), context, lipschitz, tuple(y.shape[1:]))


def test_anderson_steps_on_affine():
    g = zoo.dense(zoo.DIM, (), lipschitz=0.97)
    y = torch.randn(20, zoo.DIM)
    solution = solve(g, y, Anderson(preconditioner=None))
    assert solution.stats.evaluations.max() <= zoo.DIM + 2
    assert solve(g, y, FixedPoint()).stats.evaluations.min() > 20
    assert solve(g, y, Anderson()).stats.evaluations.max() <= 2


def test_longer_history_saves_evaluations():
    g, y = zoo.near_minus(20), 0.1 * torch.randn(100, 20)
    solvers = [FixedPoint(), *(Anderson(h, preconditioner=None) for h in (1, 3, 8))]
    means = [float(solve(g, y, s).stats.evaluations.double().mean()) for s in solvers]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.3 * means[0]


@pytest.mark.parametrize("history", [1, 2, 5, 50])
def test_history_beyond_dimension(history):
    testing.check_solver(Anderson(history), zoo.dense(2), torch.randn(20, 2))
    testing.check_solver(Anderson(history), zoo.dense(1), torch.randn(20, 1))


def test_newton_counts_evaluations():
    g, y = zoo.near_minus(), 0.1 * torch.randn(50, zoo.DIM)
    stats = solve(g, y, Newton()).stats
    assert stats.steps.max() < 0.2 * solve(g, y, FixedPoint()).stats.steps.max()
    assert torch.equal(stats.evaluations, 1 + stats.steps * (1 + zoo.DIM))
    by_krylov = solve(g, y, Newton(linear_solve=KrylovSolve(rtol=1.0))).stats
    assert (by_krylov.evaluations > 1 + by_krylov.steps).all()
    assert by_krylov.evaluations.unique().numel() > 1


@pytest.mark.parametrize("linear_solve", [DenseSolve(), KrylovSolve(rtol=1.0)])
def test_newton_linear_solves(linear_solve):
    g = zoo.dense(40, (50,), lipschitz=0.95)
    testing.check_solver(Newton(linear_solve=linear_solve), g, torch.randn(20, 40))


def test_shows_a_jacobian_without_numbers():
    diagonal = torch.full((3, 4), 0.5)
    diagonal[1, 2] = torch.nan
    at = Linearization(torch.zeros(3, 4), Diagonal(diagonal))
    w = KrylovSolve()(at, torch.ones(3, 4), transpose=False, lipschitz=0.9).value
    assert w.isnan().any(1).tolist() == [False, True, False]
    torch.testing.assert_close(w[[0, 2]], torch.full((2, 4), 1 / 1.5))


@pytest.mark.parametrize("scale", [2.0, 3.0, 1e30])
def test_shows_a_solve_that_diverges(scale):
    """No finite number passes for a solution if the Jacobian breaks its bound."""
    at = Linearization(torch.zeros(4, 24), Dense(scale * torch.randn(24, 24)))
    try:
        w = KrylovSolve()(at, torch.randn(4, 24), transpose=False, lipschitz=0.9).value
    except LinearSolveError:
        return
    assert w.isnan().any(1).all()


def test_newton_above_dense_size():
    g = zoo.dense(40, (50,), lipschitz=0.95, norm=Gram())
    stats = solve(g, torch.randn(20, 40), Newton()).stats
    assert stats.evaluations.max() < 40
    assert stats.steps.max() <= 8


@dataclass(frozen=True)
class Wandering(Solver):
    """Solver with random and useless proposals."""

    def step(self, problem, point, state):
        proposal = point.x + 3 * torch.randn_like(point.x)
        proposal[::2] = torch.nan
        return Step(proposal, state)


@dataclass(frozen=True)
class Misled(AffinePreconditioner):
    """Preconditioner with an affine map unlike the block."""

    def fit(self, problem):
        size = problem.y.shape[1]
        return Affine(-5 * torch.eye(size, dtype=problem.y.dtype), problem.y.new_ones(size))


BAD = {"wandering": Wandering(), "misled": Anderson(preconditioner=Misled())}


@pytest.mark.parametrize("name", ["two_hidden", "wrapped"])
@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("bad", BAD)
def test_safeguard_saves_solver(bad, lipschitz, name):
    g = zoo.dense(lipschitz=lipschitz) if name == "two_hidden" else zoo.CONTRACTIONS[name]()
    testing.check_solver(BAD[bad], g, torch.randn(10, zoo.DIM))


@pytest.mark.parametrize("factor", [-0.97, 0.97])
def test_default_steps_suffice(factor):
    g = wrap(zoo.Scaled(factor, torch.eye(2)), lipschitz=0.97)
    solution = solve(g, torch.randn(6, 2), Wandering())
    plain = solve(g, torch.randn(6, 2), FixedPoint())
    assert solution.result == Result.CONVERGED
    # Each step of the iteration costs one refused and one accepted proposal.
    assert (solution.stats.steps <= 2 * plain.stats.steps.max() + 2).all()


def test_exact_affine_fit():
    g = zoo.dense(zoo.DIM, (), lipschitz=0.9)
    one, other = (AffinePreconditioner().fit(problem(g, torch.randn(n, zoo.DIM))) for n in (3, 7))
    assert torch.equal(one.inverse, other.inverse)
    assert torch.equal(one.offset, other.offset)
    y = 10 * torch.randn(5, zoo.DIM)
    x = one.start(y)
    torch.testing.assert_close(x + g(x), y)


def test_fit_keeps_generator():
    g, y = zoo.dense(), torch.randn(3, zoo.DIM)
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    solve(g, y)
    assert torch.equal(torch.randn(3), expected)


def test_starts_at_small_y():
    affine = AffinePreconditioner().fit(problem(zoo.dense(), torch.randn(3, zoo.DIM)))
    y = torch.stack([1e-9 * torch.ones(zoo.DIM), torch.ones(zoo.DIM), torch.full((zoo.DIM,), 1e9)])
    starts = affine.start(y)
    assert torch.equal(starts[0], y[0])
    assert not torch.equal(starts[1:], y[1:])


NO_FIT = {
    "context": lambda: problem(
        zoo.dense(context_dim=2), torch.randn(3, zoo.DIM), torch.randn(3, 2)
    ),
    "image": lambda: problem(zoo.CONTRACTIONS["wrapped_image"](), torch.randn(3, 2, 3, 4)),
    "wrapped": lambda: problem(zoo.CONTRACTIONS["wrapped"](), torch.randn(3, zoo.DIM)),
    "dearer_than_g": lambda: problem(zoo.dense(40, (3,)), torch.randn(3, 40)),
    "empty": lambda: problem(zoo.dense(), torch.zeros(0, zoo.DIM)),
}


@pytest.mark.parametrize("name", NO_FIT)
def test_no_fit(name):
    assert AffinePreconditioner().fit(NO_FIT[name]()) is None


def test_fit_saves_evaluations():
    g, y = zoo.dense(20, (40, 40), lipschitz=0.98), torch.randn(200, 20)
    plain, fitted = (
        solve(g, y, Anderson(preconditioner=p)).stats.evaluations.double().mean()
        for p in (None, AffinePreconditioner())
    )
    assert fitted < 0.95 * plain


WRONG = {
    "history": (lambda: Anderson(0), ArgumentError, "history to be at least 1"),
    "history_type": (lambda: Anderson(2.5), ArgumentTypeError, "history to be an integer"),
    "preconditioner": (
        lambda: Anderson(preconditioner=AffinePreconditioner),
        ArgumentTypeError,
        "got the class AffinePreconditioner. Call it",
    ),
    "points": (lambda: AffinePreconditioner(0), ArgumentError, "points to be at least 1"),
    "linear_solve": (
        lambda: Newton("dense"),
        ArgumentTypeError,
        r"linear_solve to be a LinearSolve such as DenseSolve\(\)",
    ),
    "krylov_rtol": (lambda: KrylovSolve(rtol=0.0), ArgumentError, "rtol"),
    "directions": (lambda: KrylovSolve(directions=0), ArgumentError, "directions to be at least 1"),
    "rtol": (lambda: Anderson(rtol=-1.0), ArgumentError, "rtol"),
    "max_steps": (lambda: Newton(max_steps=0), ArgumentError, "max_steps to be at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses_wrong_arguments(name):
    make, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        make()
