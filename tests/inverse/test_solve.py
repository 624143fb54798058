import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pyro_iresnet import DenseContraction, FixedPoint, InversionError, testing, wrap
from pyro_iresnet.errors import TracingError
from pyro_iresnet.solvers import Result, solve

from .. import zoo


def fixed(factor, matrix):
    return wrap(zoo.Scaled(factor, matrix), lipschitz=abs(factor))


ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
HARD = {
    "minus": lambda: fixed(-0.97, torch.eye(2, dtype=torch.float64)),
    "plus": lambda: fixed(0.97, torch.eye(2, dtype=torch.float64)),
    "rotation": lambda: fixed(0.97, ROTATION),
    "kink": lambda: wrap(zoo.Kink(), lipschitz=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 7)])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_certified_round_trip(solver, hidden, lipschitz, dtype):
    g = zoo.dense(zoo.DIM, hidden, lipschitz=lipschitz).to(dtype)
    testing.check_solver(zoo.SOLVERS[solver], g, torch.randn(50, zoo.DIM, dtype=dtype))


# Contractions with another norm look alike to a solver. Extreme bounds are slow.
OTHER_NORMS = {f"{kind}_{norm}" for kind in ("dense", "conv") for norm in zoo.CERTIFIED_NORMS}
ROUND_TRIPS = [
    pytest.param(n, c, marks=pytest.mark.slow if n in OTHER_NORMS and c != 0.9 else ())
    for n in zoo.CONTRACTIONS
    for c in (0.5, 0.9, 0.99)
    if "wrapped" not in n
]


@pytest.mark.parametrize(("name", "lipschitz"), ROUND_TRIPS)
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_zoo_round_trip(solver, name, lipschitz):
    factory = zoo.CONTRACTIONS[name]
    x = torch.randn(10, *zoo.event_shape(name))
    testing.check_solver(zoo.SOLVERS[solver], factory(lipschitz=lipschitz), x)


@pytest.mark.parametrize("name", ["wrapped", "wrapped_image"])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_wrapped_round_trip(solver, name):
    x = torch.randn(10, *zoo.event_shape(name))
    testing.check_solver(zoo.SOLVERS[solver], zoo.CONTRACTIONS[name](), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_hard_cases(solver, name, scale, dtype):
    x = scale * torch.randn(20, 2, dtype=dtype)
    testing.check_solver(zoo.SOLVERS[solver], HARD[name]().to(dtype), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e6])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_extreme_scales(solver, scale, dtype):
    x = scale * torch.randn(20, zoo.DIM, dtype=dtype)
    testing.check_solver(zoo.SOLVERS[solver], zoo.dense(lipschitz=0.95).to(dtype), x)


@pytest.mark.parametrize(("dtype", "asked"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_true_error(dtype, asked):
    g = zoo.dense(lipschitz=0.9)
    x = torch.randn(100, zoo.DIM)
    y = x + g(x)
    value = solve(g.to(dtype), y.to(dtype)).value
    # Float32 weights are another network. Check the residual of the same network in float64.
    residual = value.double() + g.double()(value.double()) - y.to(dtype).double()
    assert (residual.norm(dim=-1) / (1 - 0.9) <= asked * y.norm(dim=-1)).all()


def test_steps_of_equation_36():
    solution = solve(HARD["minus"](), torch.randn(3, 2), FixedPoint())
    # Step 871 is certified without an evaluation.
    assert solution.stats.steps.tolist() == [870] * 3
    assert solution.stats.evaluations.tolist() == [871] * 3


def test_loose_tolerance():
    g, y = zoo.dense(lipschitz=0.9), torch.randn(20, zoo.DIM)
    loose, tight = (solve(g, y, FixedPoint(rtol=r)) for r in (1e-2, 1e-12))
    assert (loose.stats.steps < tight.stats.steps).all()
    error = (loose.value - tight.value).norm(dim=-1)
    assert (error <= 1e-2 * y.norm(dim=-1)).all()
    override = solve(g, y, FixedPoint(rtol=1e-12), rtol=1e-2)
    assert torch.equal(override.value, loose.value)


def test_absolute_tolerance():
    g, y = zoo.dense(lipschitz=0.9), torch.randn(20, zoo.DIM)
    solution = solve(g, y, FixedPoint(atol=0.5))
    torch.testing.assert_close(solution.stats.tolerance, 0.5 + 1e-10 * y.norm(dim=-1))


def test_converges_at_rounding_floor():
    g = zoo.dense(lipschitz=0.99).float()
    y = torch.randn(20, zoo.DIM, dtype=torch.float32)
    solution = solve(g, y, FixedPoint(rtol=1e-30))
    assert solution.result == Result.CONVERGED
    floor = 8 * 2**-23 / (1 - solution.lipschitz)
    larger = torch.maximum(y.norm(dim=-1), solution.value.norm(dim=-1))
    rounding = g.materialize().rounding(y) + 4 * 2**-23 * larger
    allowed = floor * larger + rounding / (1 - solution.lipschitz)
    torch.testing.assert_close(solution.stats.tolerance, allowed)
    assert (allowed < 1e-3 * larger).all()
    assert abs(solution.lipschitz - 0.99) < 1e-6


@pytest.mark.parametrize("name", ["two_hidden", "wrapped"])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_independent_samples(solver, name):
    g = zoo.CONTRACTIONS[name]()
    y = torch.randn(16, zoo.DIM)
    together = solve(g, y, zoo.SOLVERS[solver])
    alone = [solve(g, row, zoo.SOLVERS[solver]) for row in y]
    rounding = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(together.value, torch.stack([a.value for a in alone]), **rounding)
    assert together.stats.steps.tolist() == [int(a.stats.steps) for a in alone]
    assert together.stats.evaluations.tolist() == [int(a.stats.evaluations) for a in alone]
    swapped = solve(g, torch.cat([1e6 * y[:8], y[8:]]), zoo.SOLVERS[solver])
    torch.testing.assert_close(swapped.value[8:], together.value[8:], **rounding)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_nan_row_fails_alone(solver, bad):
    g, y, solver = zoo.dense(), torch.randn(6, zoo.DIM), zoo.SOLVERS[solver]
    clean = solve(g, y, solver)
    y[2, 1] = bad
    solution = solve(g, y, solver, throw=False)
    assert solution.result == Result.NON_FINITE
    assert solution.converged.tolist() == [True, True, False, True, True, True]
    rest = torch.arange(6) != 2
    torch.testing.assert_close(solution.value[rest], clean.value[rest], rtol=0, atol=1e-13)
    assert torch.equal(solution.stats.steps[rest], clean.stats.steps[rest])
    with pytest.raises(InversionError, match=r"NaN or infinity.*1 of 6 samples, first at \[2\]"):
        solve(g, y, solver)


@pytest.mark.parametrize("name", zoo.SOLVERS)
def test_raises_after_max_steps(name):
    g, y, solver = zoo.dense(lipschitz=0.95), 3 * torch.randn(3, 4, zoo.DIM), zoo.SOLVERS[name]
    with pytest.raises(InversionError) as caught:
        solve(g, y, solver, max_steps=1)
    words = str(caught.value)
    assert "did not reach the tolerance" in words
    assert "12 of 12 samples" in words
    assert "1 steps" in words
    assert "Raise max_steps" in words
    solution = solve(g, y, replace(solver, max_steps=1), throw=False)
    assert solution.result == caught.value.solution.result == Result.MAX_STEPS
    assert not solution.converged.any()
    assert solution.converged.shape == (3, 4)
    bound = (y - solution.value - g(solution.value)).norm(dim=-1) / (1 - solution.lipschitz)
    torch.testing.assert_close(solution.stats.error_bound, bound)


class Expanding(nn.Module):
    def forward(self, x):
        return 2.0 * x.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_detects_expansion(solver, dtype):
    y, solver = torch.randn(20, 2, dtype=dtype), zoo.SOLVERS[solver]
    solution = solve(wrap(Expanding(), lipschitz=0.9), y, solver, throw=False)
    assert solution.result == Result.NOT_A_CONTRACTION
    with pytest.raises(InversionError, match="stretched a pair of points"):
        solve(wrap(Expanding(), lipschitz=0.9), y, solver)


@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_given_start(solver):
    g, x, solver = zoo.dense(lipschitz=0.9), torch.randn(10, zoo.DIM), zoo.SOLVERS[solver]
    y = x + g(x)
    warm, cold = solve(g, y, solver, x0=x), solve(g, y, solver)
    assert (warm.stats.steps == 0).all()
    torch.testing.assert_close(warm.value, cold.value)
    block = zoo.ResidualBlock(g, solver=solver)
    torch.testing.assert_close(block.inverse(y, x0=x + 1.0), cold.value)


@pytest.mark.parametrize("batch", [(), (5,), (3, 4), (0,)])
@pytest.mark.parametrize("name", ["two_hidden", "wrapped_image"])
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_any_batch_shape(solver, name, batch):
    g = zoo.CONTRACTIONS[name]()
    y = torch.randn(*batch, *zoo.event_shape(name))
    solution = solve(g, y, zoo.SOLVERS[solver])
    assert solution.value.shape == y.shape
    assert solution.stats.steps.shape == batch
    torch.testing.assert_close(solution.value + g(solution.value), y)


@pytest.mark.parametrize("name", zoo.CONDITIONAL)
@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_under_context(solver, name):
    g = zoo.CONDITIONAL[name]()
    event = zoo.event_shape(name)
    x, context = torch.randn(4, *event), torch.randn(3, 1, zoo.CONTEXT)
    y = x + g(x, context)
    assert y.shape == (3, 4, *event)
    value = solve(g, y, zoo.SOLVERS[solver], context=context).value
    torch.testing.assert_close(value, x.expand(3, 4, *event))


@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_exact_zero(solver):
    g = DenseContraction(3, [8])
    nn.init.zeros_(g.layers[0].bias)
    nn.init.zeros_(g.layers[1].bias)
    solution = solve(g, torch.zeros(2, 3), zoo.SOLVERS[solver])
    assert (solution.value == 0).all()
    assert (solution.stats.steps == 0).all()


@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_nonzero_solution_of_zero(solver):
    g = zoo.dense(lipschitz=0.9)
    solution = solve(g, torch.zeros(2, zoo.DIM), zoo.SOLVERS[solver])
    assert solution.value.norm() > 0.1
    torch.testing.assert_close(g(solution.value), -solution.value)


class Inverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = zoo.block()

    def forward(self, y):
        return self.block.inverse(y)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_refuses_tracing():
    with pytest.raises(TracingError, match="The inverse cannot be traced"):
        torch.jit.trace(Inverse(), (torch.randn(2, zoo.DIM),))


class Reflecting(nn.Module):
    def forward(self, x):
        return -x


@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_detects_singular_jacobian(solver):
    solution = solve(
        wrap(Reflecting(), lipschitz=0.9), torch.ones(3, 2), zoo.SOLVERS[solver], throw=False
    )
    assert solution.result == Result.NOT_A_CONTRACTION
