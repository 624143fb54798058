"""Inverses in float64 that take most of their steps in float32."""

import sys
from dataclasses import replace

import pytest
import torch

from pyro_iresnet import Anderson, CayleyBlock, Newton, ResidualBlock, testing
from pyro_iresnet.activations import Activation
from pyro_iresnet.contractions.sequential import LayerSequence
from pyro_iresnet.coordinates import Asinh, DiagonalScale
from pyro_iresnet.inverse import mixed
from pyro_iresnet.inverse.solvers import anderson
from pyro_iresnet.inverse.stopping import StopDecision
from pyro_iresnet.operators import KrylovSolve
from pyro_iresnet.solvers import Result, solve

from .. import zoo

COPIED = [n for n in zoo.CONTRACTIONS if "wrapped" not in n]


@pytest.fixture
def dtypes(monkeypatch):
    """Let every batch pay; return the dtypes of the iterations of each solve."""
    seen = []
    iterate = mixed.iterate

    def spy(problem, *arguments):
        seen.append(problem.y.dtype)
        return iterate(problem, *arguments)

    monkeypatch.setattr(mixed, "PAYS", 1)
    monkeypatch.setattr(mixed, "iterate", spy)
    return seen


def exact(g, y):
    return solve(g, y, Newton(rtol=1e-14), x0=y).value


def check(g, y, solution):
    error = (solution.value - exact(g, y)).flatten(1).norm(dim=1)
    assert solution.converged.all()
    assert (error <= solution.stats.error_bound).all()
    assert (solution.stats.error_bound <= solution.stats.tolerance).all()


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", COPIED)
def test_same_certificate(dtypes, monkeypatch, name, lipschitz):
    g = zoo.CONTRACTIONS[name](lipschitz=lipschitz)
    y = torch.randn(20, *zoo.event_shape(name))
    solution = solve(g, y)
    assert dtypes == [torch.float32, torch.float64]
    check(g, y, solution)
    monkeypatch.setattr(mixed, "PAYS", 10**9)
    alone = solve(g, y)
    assert len(dtypes) == 2
    torch.testing.assert_close(solution.stats.tolerance, alone.stats.tolerance, rtol=0.1, atol=0)
    residual = (solution.value + g(solution.value) - y).flatten(1).norm(dim=1)
    assert (residual / (1 - solution.lipschitz) <= 1.01 * solution.stats.tolerance).all()


@pytest.mark.parametrize("rtol", [0.0, 1e-13, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_any_tolerance(dtypes, scale, rtol):
    g, y = zoo.dense(lipschitz=0.95), scale * torch.randn(50, zoo.DIM)
    check(g, y, solve(g, y, rtol=rtol))
    assert dtypes == [torch.float32, torch.float64]


def test_steps_in_float32():
    g, y = zoo.dense(64, (128, 128), lipschitz=0.98), torch.randn(100, 64)
    calls = []
    evaluate = LayerSequence.__call__

    def spy(self, x, context=None):
        calls.append(x.dtype)
        return evaluate(self, x, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerSequence, "__call__", spy)
        solution = solve(g, y)
    assert calls.count(torch.float64) <= 4
    assert calls.count(torch.float32) > 4
    check(g, y, solution)


@pytest.mark.parametrize("factor", [0.5, -1.0, 1e30, torch.nan])
def test_falls_back_on_bad_copy(dtypes, monkeypatch, factor):
    g, y = zoo.dense(lipschitz=0.95), torch.randn(50, zoo.DIM)
    copy = LayerSequence.to

    def damaged(self, dtype):
        made = copy(self, dtype)
        first = replace(made.layers[0], matrix=factor * made.layers[0].matrix)
        return replace(made, layers=(first, *made.layers[1:]))

    monkeypatch.setattr(LayerSequence, "to", damaged)
    solution = solve(g, y)
    assert dtypes == [torch.float32, torch.float64]
    check(g, y, solution)


def test_falls_back_by_sample(dtypes, monkeypatch):
    g, y = zoo.dense(lipschitz=0.95), torch.randn(50, zoo.DIM)
    clean = solve(g, y)
    solved = KrylovSolve.approximate

    def half(*args):
        w, products = solved(*args)
        w[::2] = 0.0
        return w, products

    monkeypatch.setattr(KrylovSolve, "approximate", half)
    solution = solve(g, y)
    check(g, y, solution)
    assert (solution.stats.steps[::2] > clean.stats.steps[::2]).all()
    assert torch.equal(solution.stats.steps[1:6:2], clean.stats.steps[1:6:2])


def test_beyond_range_of_float32(dtypes):
    g, y = zoo.dense(lipschitz=0.9), torch.randn(7, zoo.DIM)
    y *= torch.tensor([1.0, 1e40, 1e-50, 1.0, 1e100, 0.0, 1e-300])[:, None]
    solution = solve(g, y)
    assert dtypes == [torch.float32, torch.float64]
    check(g, y, solution)
    alone = solve(g, y[[0, 3]])
    torch.testing.assert_close(solution.value[[0, 3]], alone.value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_row_fails_alone(dtypes, bad):
    g, y = zoo.dense(), torch.randn(6, zoo.DIM)
    clean = solve(g, y)
    y[2, 1] = bad
    solution = solve(g, y, throw=False)
    assert solution.stats.results.tolist() == [0, 0, int(Result.NON_FINITE), 0, 0, 0]
    rest = torch.arange(6) != 2
    torch.testing.assert_close(solution.value[rest], clean.value[rest], rtol=1e-9, atol=0)
    assert len(dtypes) == 4


def test_counts_both_dtypes(dtypes):
    g, y = zoo.dense(20, (30,), lipschitz=0.95), torch.randn(30, 20)
    stats = solve(g, y).stats
    # One evaluation at each of two starts, and one for each step; and products of Newton's.
    assert (stats.evaluations > stats.steps + 2).all()
    loose = solve(g, y, rtol=1e-2).stats
    assert torch.equal(loose.evaluations, loose.steps + 2)


class Plain(Activation):
    def __init__(self):
        super().__init__()
        self.factor = torch.ones(1)

    def forward(self, x):
        return self.factor * x.tanh()

    def value_and_slope(self, x):
        t = x.tanh()
        return self.factor * t, 1 - t**2


ONE_DTYPE = {
    "wrapped": (zoo.CONTRACTIONS["wrapped"], {}),
    "start": (zoo.dense, {"x0": torch.zeros(zoo.DIM, dtype=torch.float64)}),
    "max_steps": (zoo.dense, {"max_steps": 50}),
    "context": (
        lambda: zoo.dense(context_dim=2),
        {"context": torch.ones(9, 2, dtype=torch.float64)},
    ),
    "newton": (zoo.dense, {"solver": Newton()}),
    "limited": (zoo.dense, {"solver": Anderson(max_steps=50)}),
    "close_to_1": (lambda: zoo.dense(lipschitz=1 - 1e-5), {}),
    "tensor": (lambda: zoo.dense(activation=Plain), {}),
    "single": (lambda: zoo.dense().float(), {}),
}


@pytest.mark.parametrize("name", ONE_DTYPE)
def test_one_dtype(dtypes, name):
    make, options = ONE_DTYPE[name]
    g = make()
    y = torch.randn(9, zoo.DIM, dtype=next(g.parameters()).dtype)
    assert solve(g, y, **options).converged.all()
    assert dtypes == []


def test_one_dtype_of_small_batch(monkeypatch):
    monkeypatch.setattr(mixed, "solve_mixed", None)
    monkeypatch.setattr(sys.modules["pyro_iresnet.inverse.solve"], "solve_mixed", None)
    g = zoo.dense()
    assert solve(g, torch.randn(mixed.PAYS // zoo.DIM, zoo.DIM)).converged.all()
    with pytest.raises(TypeError):
        solve(g, torch.randn(mixed.PAYS // zoo.DIM + 1, zoo.DIM))


BLOCKS = {
    "residual": lambda g: ResidualBlock(g),
    "cayley": lambda g: CayleyBlock(g),
    "scaled": lambda g: ResidualBlock(g, coordinates=DiagonalScale()),
    "asinh": lambda g: ResidualBlock(g, coordinates=Asinh()),
    "cayley_asinh": lambda g: CayleyBlock(g, coordinates=Asinh()),
}


@pytest.mark.parametrize("size", [4, 20])
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_block(dtypes, monkeypatch, name, size):
    block = BLOCKS[name](zoo.dense(size, (30, 30), lipschitz=0.9))
    y, weight = torch.randn(30, size), torch.randn(30, size)

    def gradients():
        at = y.clone().requires_grad_()
        loss = (weight * block.inverse(at)).sum()
        return torch.autograd.grad(loss, [at, *block.contraction.parameters()])

    found = gradients()
    assert torch.float32 in dtypes
    monkeypatch.setattr(mixed, "PAYS", 10**9)
    block.solver = Anderson(rtol=1e-13)
    for one, other in zip(found, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_skipped_certificates_change_nothing(monkeypatch):
    g, y = zoo.dense(20, (40, 40), lipschitz=0.98), torch.randn(200, 20)
    count, judge = [], StopDecision.of

    def counting(*arguments):
        count.append(1)
        return judge(*arguments)

    monkeypatch.setattr(StopDecision, "of", counting)
    for dtype in (torch.float32, torch.float64):
        g.to(dtype)
        for rtol in (None, 0.0, 1e-2):
            count.clear()
            skipping = solve(g, y.to(dtype), rtol=rtol)
            fewer = len(count)
            count.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StopDecision, "still_holds", lambda *_: False)
                always = solve(g, y.to(dtype), rtol=rtol)
            assert fewer < len(count)
            assert torch.equal(skipping.value, always.value)
            assert torch.equal(skipping.stats.steps, always.stats.steps)
            assert torch.equal(skipping.stats.error_bound, always.stats.error_bound)


def test_small_systems(monkeypatch):
    a = torch.randn(5, 5, 40)
    a = torch.einsum("ikn,jkn->ijn", a, a) + torch.eye(5)[..., None]
    b = torch.randn(5, 40)
    by_lapack = anderson._solve(a, b)
    monkeypatch.setattr(anderson, "FEW", 0)
    torch.testing.assert_close(anderson._solve(a, b), by_lapack)
    torch.testing.assert_close(torch.einsum("ijn,jn->in", a, by_lapack), b)
    testing.check_solver(Anderson(), zoo.dense(8), torch.randn(20, 8))


class Holding(Activation):
    """Hyperbolic tangent times a tensor in a list."""

    def __init__(self):
        super().__init__()
        self.held = [torch.ones(1)]

    def forward(self, x):
        return self.held[0] * x.tanh()

    def value_and_slope(self, x):
        t = x.tanh()
        return self.held[0] * t, self.held[0] * (1 - t * t)


def test_activation_of_a_user_stays_in_its_dtype(dtypes):
    g = zoo.dense(5, (12,), activation=Holding)
    y = torch.randn(20, 5)
    check(g, y, solve(g, y))
    assert set(dtypes) <= {torch.float64}


@pytest.mark.parametrize("size", [10.0**18.3, 10.0**18.5, 10.0**18.6, 1e19])
def test_bounds_are_finite_where_float32_rounds_to_infinity(dtypes, size):
    g = zoo.dense(20, (30,), lipschitz=0.97)
    y = size * torch.randn(50, 20)
    for solution in (solve(g, y), CayleyBlock(g).solve(y)):
        assert solution.converged.all()
        assert solution.stats.error_bound.isfinite().all()
    assert torch.float32 in dtypes
