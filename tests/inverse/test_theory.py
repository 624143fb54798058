"""Equations 12 to 15, 35 and 36 of the report: the inverse."""

import itertools

import pytest
import torch

from pyro_iresnet import FixedPoint, wrap
from pyro_iresnet.solvers import solve

from .. import zoo
from ..truth import distance

L = 0.8


@pytest.fixture
def iteration():
    """Return ``g``, ``y`` and 60 iterates of Eq. 12 from ``y``."""
    g, y = zoo.dense(lipschitz=L), torch.randn(6, zoo.DIM)
    iterates = [y]
    for _ in range(60):
        iterates.append(y - g(iterates[-1]))
    return g, y, iterates


def test_iteration_converges(iteration):
    g, y, iterates = iteration
    limit = iterates[-1]
    torch.testing.assert_close(limit, y - g(limit), atol=1e-12, rtol=0)
    torch.testing.assert_close(limit + g(limit), y, atol=1e-12, rtol=0)
    torch.testing.assert_close(limit, solve(g, y, FixedPoint(rtol=1e-14)).value, atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_solver_iterates(iteration, steps):
    g, y, iterates = iteration
    solution = solve(g, y, FixedPoint(rtol=1e-14), max_steps=steps, throw=False)
    torch.testing.assert_close(solution.value, iterates[steps])


def test_steps_shrink(iteration):
    _, _, iterates = iteration
    first = distance(iterates[1], iterates[0])
    for n in range(60):
        assert (distance(iterates[n + 1], iterates[n]) <= L**n * first + 1e-12).all()


def test_cauchy_sequence(iteration):
    _, _, iterates = iteration
    first = distance(iterates[1], iterates[0])
    for n, k in itertools.product(range(0, 30, 3), (1, 2, 5, 30)):
        apart = distance(iterates[n + k], iterates[n])
        assert (apart <= (1 - L**k) / (1 - L) * L**n * first + 1e-12).all()


def test_error_shrinks(iteration):
    g, y, iterates = iteration
    exact = solve(g, y, rtol=1e-14).value
    first = distance(iterates[1], iterates[0])
    for n, x in enumerate(iterates):
        error = distance(exact, x)
        assert (error <= L**n / (1 - L) * first + 1e-12).all()
        # Certificates of ``solve`` rest on this bound.
        assert (error <= distance(x + g(x), y) / (1 - L) + 1e-12).all()


def test_attained_bound():
    g = wrap(zoo.Scaled(-L, torch.eye(2)), lipschitz=L)
    y = torch.ones(1, 2)
    x, exact, first = y, y / (1 - L), distance(y - g(y), y)
    for n in range(20):
        torch.testing.assert_close(distance(exact, x), L**n / (1 - L) * first)
        x = y - g(x)
