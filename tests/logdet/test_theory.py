"""Equations 16 to 24 and 27 to 31 of the report: the log-determinant."""

import itertools
import math

import pytest
import torch

from pyro_iresnet import Exact, PowerSeries, ResidualBlock
from pyro_iresnet.logdet.series import LogOnePlus
from pyro_iresnet.operators import Dense, Linearization

from .. import zoo

L = 0.8


def matrix(dim=4, norm=L):
    """Draw a matrix of the given spectral norm. The matrix is not normal."""
    a = torch.randn(dim, dim)
    return norm * a / torch.linalg.matrix_norm(a, ord=2)


def linear(a):
    """Linearize ``g(x) = A x`` at a point."""
    return Linearization(torch.zeros(1, len(a)), Dense(a))


def logm(a):
    """Compute the logarithm of a matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eig(a)
    return (vectors @ torch.diag(values.log()) @ torch.linalg.inv(vectors)).real


def all_signs(dim):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=torch.float64)


def test_jacobian_of_block():
    block, x = ResidualBlock(zoo.dense()), torch.randn(4, zoo.DIM)
    whole = torch.func.vmap(torch.func.jacrev(lambda p: block(p[None])[0]))(x)
    ours = block.contraction.linearize(x).as_matrix()
    torch.testing.assert_close(whole, torch.eye(zoo.DIM) + ours)


def test_bounded_determinant():
    for _ in range(50):
        a = matrix()
        sign, logabsdet = torch.linalg.slogdet(torch.eye(4) + a)
        assert sign == 1
        torch.testing.assert_close(Exact()(linear(a), lipschitz=L)[0], logabsdet)
        assert 4 * math.log(1 - L) <= logabsdet <= 4 * math.log(1 + L)


def test_logdet_is_trace():
    a = matrix()
    trace = logm(torch.eye(4) + a).trace()
    torch.testing.assert_close(torch.linalg.matrix_exp(logm(torch.eye(4) + a)), torch.eye(4) + a)
    torch.testing.assert_close(Exact()(linear(a), lipschitz=L)[0], trace)


def partial_sum(a, terms):
    power, total = torch.eye(len(a)), torch.zeros_like(a)
    for n in range(1, terms + 1):
        power = power @ a
        total = total + LogOnePlus().coefficient(n) * power
    return total


@pytest.mark.parametrize("terms", [1, 2, 5, 20, 60])
def test_series_converges(terms):
    a = matrix()
    off = partial_sum(a, terms) - logm(torch.eye(4) + a)
    bound = L**terms * LogOnePlus().tail(terms, L)
    assert bound <= L ** (terms + 1) / ((terms + 1) * (1 - L)) + 1e-12
    assert torch.linalg.matrix_norm(off, ord=2) <= bound + 1e-12


@pytest.mark.parametrize("terms", [1, 3, 8])
def test_error_grows_with_dimension(terms):
    rest = -math.log1p(-L) - sum(L**k / k for k in range(1, terms + 1))
    for dim in (1, 10, 100):
        j = -L * torch.eye(dim)
        off = (partial_sum(j, terms).trace() - dim * math.log1p(-L)).abs()
        torch.testing.assert_close(off, torch.tensor(dim * rest))
        assert off <= PowerSeries(terms=terms).truncation_error(L, dim)


def test_unbiased_signs():
    a, u = matrix(6), all_signs(6)
    forms = ((u @ a) * u).sum(-1)
    torch.testing.assert_close(forms.mean(), a.trace())
    # Entries off the diagonal make the noise.
    off = a + a.T - 2 * torch.diag(a.diag())
    torch.testing.assert_close(forms.var(correction=0), off.square().sum() / 2)


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_biased_truncation(terms):
    a, u = matrix(6), all_signs(6)
    estimates, v = torch.zeros(len(u)), u
    for n in range(1, terms + 1):
        v = v @ a.T
        estimates = estimates + (-1) ** (n - 1) * (u * v).sum(-1) / n
    torch.testing.assert_close(estimates.mean(), partial_sum(a, terms).trace())
    bias = estimates.mean() - torch.linalg.slogdet(torch.eye(6) + a).logabsdet
    assert 1e-4 < bias.abs() <= PowerSeries(terms=terms).truncation_error(L, 6)


def test_powers_by_products():
    g, x, u = zoo.dense(), torch.randn(3, zoo.DIM), torch.randn(3, zoo.DIM)
    linearization = g.linearize(x)
    power, v = linearization.as_matrix(), u
    for n in range(1, 6):
        v = linearization.mv(v)
        expected = torch.einsum("bi,bij,bj->b", u, torch.linalg.matrix_power(power, n), u)
        torch.testing.assert_close((u * v).sum(-1), expected)


def test_determinant_of_exponential():
    # Jacobi's formula for the log-determinant of I + J = exp(tA).
    a = matrix(norm=0.5)

    def logdet(t):
        j = torch.linalg.matrix_exp(t * a) - torch.eye(4)
        return Exact()(linear(j), lipschitz=L)[0]

    for t in (-0.7, 0.0, 0.3, 1.0):
        at = torch.tensor(t, requires_grad=True)
        (slope,) = torch.autograd.grad(logdet(at), at)
        torch.testing.assert_close(slope, a.trace())
        torch.testing.assert_close(logdet(at).detach(), t * a.trace())
