"""The Cayley block over the whole zoo: definition, log-determinant, solves, gradients, series."""

import copy
import math
import pickle
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call, jacfwd, jacrev, vmap

from pyro_iresnet import (
    AutoIResNet,
    CayleyBlock,
    DenseContraction,
    Exact,
    FixedPoint,
    InverseIResNet,
    InversionError,
    IResNet,
    IResNetTransform,
    Newton,
    PowerSeries,
    ResidualBlock,
    Roulette,
    cached,
    certificate,
    iresnet,
    iresnet_flow,
    logdet_with_error,
    wrap,
)
from pyro_iresnet.blocks import CayleySeries
from pyro_iresnet.coordinates import Asinh, TriangularScale
from pyro_iresnet.errors import HigherOrderError, TracingError
from pyro_iresnet.logdet import ConvergedSeries, Geometric, LogOnePlus, MeanJacobian
from pyro_iresnet.norms import SingularValue
from pyro_iresnet.solvers import Anderson

from .. import zoo
from ..guides.models import banana, step
from ..truth import jacobians

ZOO = {**zoo.CONTRACTIONS, **zoo.CONDITIONAL}
TIGHT = Newton(rtol=1e-13)
SERIES = CayleySeries()
KINDS = {"residual": ResidualBlock, "cayley": CayleyBlock}


def points(name, *batch):
    """Draw points of a member of the zoo, and contexts or None."""
    x = torch.randn(*batch, *zoo.event_shape(name))
    return x, torch.randn(*batch, zoo.CONTEXT) if "conditional" in name else None


@cache
def case(name):
    """Evaluate a Cayley block of the zoo at a few points, once for several tests."""
    torch.manual_seed(0)
    block = CayleyBlock(ZOO[name](), solver=TIGHT, logdet=Exact())
    x, context = points(name, 2)
    evaluation = block.evaluate(x, context)
    # w + g(w) = x and w - g(w) = y.
    w = ((x + evaluation.y) / 2).detach()
    y, log_det = evaluation.y.detach(), evaluation.log_det().detach()
    matrix = jacobians(block, x, context)
    return SimpleNamespace(
        block=block, x=x, context=context, at=evaluation, w=w, y=y, log_det=log_det, matrix=matrix
    )


def norms(v):
    return v.flatten(1).norm(dim=1)


# ---------------------------------------------------------------------------- definition


@pytest.mark.parametrize("name", ZOO)
def test_definition(name):
    made = case(name)
    value = made.block.contraction(made.w, made.context)
    torch.testing.assert_close(value, (made.x - made.y) / 2, atol=1e-10, rtol=0)
    torch.testing.assert_close(made.block(made.x, made.context), made.y)


@pytest.mark.parametrize("name", ZOO)
def test_slopes(name):
    made = case(name)
    lipschitz = float(made.block.lipschitz_bound())
    slopes = torch.linalg.svdvals(made.matrix)
    assert float(slopes.max()) <= (1 + lipschitz) / (1 - lipschitz) * (1 + 1e-7)
    assert float(slopes.min()) >= (1 - lipschitz) / (1 + lipschitz) * (1 - 1e-7)


def test_reaches_both_slopes():
    for sign, slope in ((1, 1 / 19), (-1, 19.0)):
        block = CayleyBlock(wrap(zoo.Scaled(sign * 0.9, torch.eye(2)), lipschitz=0.9))
        torch.testing.assert_close(block(torch.ones(1, 2)), torch.full((1, 2), slope))


@pytest.mark.parametrize("name", ZOO)
def test_log_det(name):
    made = case(name)
    expected = torch.linalg.slogdet(made.matrix)
    assert bool((expected.sign > 0).all())
    torch.testing.assert_close(made.log_det, expected.logabsdet, atol=1e-8, rtol=1e-8)
    x, log_det = made.block.inverse_and_log_det(made.y, made.context)
    torch.testing.assert_close(x, made.x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_det, -made.log_det, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("contraction", ["two_hidden", "conv_zeros", "scalar"])
@pytest.mark.parametrize("name", zoo.COORDINATES)
def test_in_coordinates(name, contraction):
    g = zoo.CONTRACTIONS[contraction]()
    block = zoo.bent(CayleyBlock(g, solver=TIGHT, logdet=Exact(), **zoo.COORDINATES[name]))
    x, _ = points(contraction, 4)
    y, log_det = block.forward_and_log_det(x)
    z, out = block.coordinates(x), block.coordinates(y)
    torch.testing.assert_close(g((z + out) / 2), (z - out) / 2, atol=1e-9, rtol=0)
    expected = torch.linalg.slogdet(jacobians(block, x)).logabsdet
    torch.testing.assert_close(log_det, expected, atol=1e-7, rtol=1e-7)
    back, inverse_log_det = block.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-7, rtol=1e-7)


# ---------------------------------------------------------------------------- solves


@pytest.mark.parametrize("name", ZOO)
def test_keeps_asked_tolerance(name):
    made = case(name)
    asked = 1e-3
    block = CayleyBlock(made.block.contraction, solver=Anderson(rtol=asked))
    with torch.no_grad():
        y, x = block(made.x, made.context), block.inverse(made.y, made.context)
    # Rounding adds a little.
    assert bool((norms(y - made.y) <= 1.001 * asked * norms(made.x)).all())
    assert bool((norms(x - made.x) <= 1.001 * asked * norms(made.y)).all())


def check_error_bound(block, y, context=None):
    """Check the figures of an inverse against a solve in float64."""
    exact = copy.deepcopy(block).double()
    wide = None if context is None else context.double()
    true = exact.solve(y.double(), wide, rtol=1e-14).value
    stats = (solution := block.solve(y, context)).stats
    assert bool((norms(solution.value.double() - true) <= stats.error_bound).all())
    assert bool((stats.error_bound <= stats.tolerance).all())
    if y.dtype == torch.float64:
        assert bool((stats.error_bound <= 1.01e-10 * norms(y)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ZOO)
def test_error_bound(name, dtype):
    made = case(name)
    block = CayleyBlock(copy.deepcopy(made.block.contraction)).to(dtype)
    context = None if made.context is None else made.context.to(dtype)
    check_error_bound(block, made.y.to(dtype), context)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", zoo.COORDINATES)
def test_error_bound_in_coordinates(name, dtype, scale):
    block = zoo.bent(zoo.cayley(**zoo.COORDINATES[name])).to(dtype)
    y = block(scale * torch.randn(50, zoo.DIM, dtype=dtype)).detach()
    check_error_bound(block, y)


@pytest.mark.parametrize("name", zoo.COORDINATES)
def test_keeps_tolerance_in_coordinates(name):
    tight = zoo.bent(zoo.cayley(solver=TIGHT, **zoo.COORDINATES[name]))
    x = torch.randn(50, zoo.DIM)
    y, back = tight(x).detach(), tight.inverse(x).detach()
    loose = copy.deepcopy(tight)
    for asked in (1e-2, 1e-6):
        loose.solver = Anderson(rtol=asked)
        for found, expected in ((loose(x), y), (loose.inverse(x), back)):
            assert bool((norms(found - expected) <= 1.01 * asked * norms(x)).all())


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_error_bound_is_tight(steps):
    """Stop early where ``g`` and ``w + g(w)`` stretch all they may."""
    g = wrap(zoo.Scaled(0.9, torch.eye(1)), lipschitz=0.9)
    y = torch.tensor([[1.0], [-3.0]])
    solution = CayleyBlock(g, solver=FixedPoint()).solve(y, max_steps=steps, throw=False)
    error = norms(solution.value - 19 * y)
    assert bool((error <= solution.stats.error_bound).all())
    assert bool((error >= 0.99 * solution.stats.error_bound).all())


@pytest.mark.parametrize("steps", [1, 5, 20, 60])
def test_error_bound_where_curved(steps):
    """Stop early where the way back to ``x`` stretches ever more."""
    g = DenseContraction(1, [], lipschitz=0.9, norm=SingularValue())
    with torch.no_grad():
        g.layers[0].weight.fill_(5.0)
    block = CayleyBlock(g, solver=FixedPoint(), coordinates=Asinh())
    y = torch.tensor([[0.1], [-0.15]])
    solution = block.solve(y, max_steps=steps, throw=False)
    error = norms(solution.value - (19 * y.asinh()).sinh())
    assert bool((error <= solution.stats.error_bound).all())
    # The bound is of use in the end.
    assert steps < 60 or bool((error >= 0.5 * solution.stats.error_bound).all())


@pytest.mark.parametrize("dim", [3, 20])
def test_error_bound_when_ill_conditioned(dim):
    block = CayleyBlock(DenseContraction(dim), coordinates=TriangularScale())
    with torch.no_grad():
        block.coordinates.below.normal_(std=2.0)
    block = block.float()
    y = block.coordinates.inverse(torch.randn(50, dim)).detach().float()
    # Weights of both precisions differ by rounding.
    exact = copy.deepcopy(block).double().solve(y.double(), rtol=1e-14).value
    stats = (solution := block.solve(y)).stats
    assert bool((norms(solution.value.double() - exact) <= 2 * stats.error_bound).all())
    assert bool((stats.error_bound <= stats.tolerance).all())


@pytest.mark.parametrize("solver", zoo.SOLVERS)
def test_every_solver(solver):
    block = zoo.cayley(solver=zoo.SOLVERS[solver])
    x = torch.randn(20, zoo.DIM)
    with torch.no_grad():
        torch.testing.assert_close(block.inverse(block(x)), x, atol=1e-8, rtol=1e-8)
        y = CayleyBlock(block.contraction, solver=TIGHT)(x)
        assert bool((norms(block(x) - y) <= 1.01e-10 * norms(x)).all())


def test_start_of_solve():
    block = zoo.cayley(solver=FixedPoint())
    x = torch.randn(20, zoo.DIM)
    y = block(x).detach()
    near = block.solve(y, x0=(x + y) / 2).stats
    assert int(near.steps.max()) < int(block.solve(y).stats.steps.min())
    assert bool((norms(block.inverse(y, x0=(x + y) / 2) - x) < 1e-8).all())


def test_nan_row_fails_alone():
    block = zoo.cayley()
    x = torch.randn(6, zoo.DIM)
    clean = block.solve(x)
    x[2, 1] = math.nan
    solution, rest = block.solve(x, throw=False), torch.arange(6) != 2
    assert solution.converged.tolist() == rest.tolist()
    torch.testing.assert_close(solution.value[rest], clean.value[rest], rtol=0, atol=1e-12)
    for direction in (block, block.inverse, block.forward_and_log_det):
        with pytest.raises(InversionError, match=r"NaN or infinity.*1 of 6 samples.*\[2\]"):
            direction(x)


@pytest.mark.parametrize("coordinates", [None, "asinh_triangular"])
@pytest.mark.parametrize("dim", [2, 40])
def test_empty_batches(dim, coordinates):
    block = zoo.cayley(dim, **zoo.COORDINATES.get(coordinates, {}))
    x = torch.zeros(0, dim, requires_grad=True)
    for direction in (block.forward_and_log_det, block.inverse_and_log_det):
        y, log_det = direction(x)
        assert y.shape == (0, dim)
        assert log_det.shape == (0,)
        (y.sum() + log_det.sum()).backward()
        assert x.grad.shape == (0, dim)
    assert IResNetTransform.from_block(block)(x.detach())[0].shape == (0, dim)


# ---------------------------------------------------------------------------- gradients


# The norm of the orthogonal weights of near_minus has no derivative. The gradients of the norms
# have tests of their own.
SMOOTH = [n for n in ZOO if n != "near_minus" and n.partition("_")[2] not in zoo.CERTIFIED_NORMS]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name):
    """Compare a directional derivative of both directions with a finite difference."""
    block = CayleyBlock(ZOO[name](), solver=TIGHT, logdet=Exact())
    x, context = points(name, 2)
    moved = [t for t in (x, context) if t is not None]
    moved = [t.requires_grad_() for t in moved] + list(block.parameters())
    directions = [torch.randn_like(t) for t in moved]
    weights = torch.randn_like(x), torch.randn(2), torch.randn_like(x), torch.randn(2)

    def loss(step):
        with torch.no_grad():
            for tensor, direction in zip(moved, directions, strict=True):
                tensor.add_(step * direction)
        values = (
            *block.forward_and_log_det(x, context),
            *block.inverse_and_log_det(x, context),
        )
        return sum((w * v).sum() for w, v in zip(weights, values, strict=True))

    found = torch.autograd.grad(loss(0.0), moved, allow_unused=True, materialize_grads=True)
    slope = sum((a * b).sum() for a, b in zip(found, directions, strict=True))
    h = 1e-5
    with torch.no_grad():
        ahead, behind = loss(h), loss(-2 * h)
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("coordinates", [None, "asinh_triangular"])
def test_gradcheck(coordinates):
    g = zoo.dense(2, (4,), lipschitz=0.8)
    options = zoo.COORDINATES.get(coordinates, {})
    block = zoo.bent(CayleyBlock(g, solver=TIGHT, logdet=Exact(), **options))
    names, values = zip(*block.named_parameters(), strict=True)

    def both(x, *parameters):
        state = {f"block.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(BothWays(block), state, (x,))

    x = torch.randn(2, 2, requires_grad=True)
    assert torch.autograd.gradcheck(both, (x, *values), fast_mode=True)


class BothWays(torch.nn.Module):
    """Both directions and both log-determinants in one call."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, context=None):
        forward = self.block.forward_and_log_det(x, context)
        return *forward, *self.block.inverse_and_log_det(x, context)


def test_second_derivatives():
    block = CayleyBlock(zoo.dense(2, (3,), context_dim=2), solver=TIGHT, logdet=Exact())
    inputs = [torch.randn(1, 2, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradgradcheck(BothWays(block), inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["two_hidden", "conditional_dense"])
def test_unrolled_gradients(name):
    block = CayleyBlock(ZOO[name](lipschitz=0.6), solver=TIGHT, logdet=Exact())
    x, context = points(name, 2)
    moved = [t.requires_grad_() for t in (x, context) if t is not None] + list(block.parameters())
    for sign, direction in ((1, block.forward_and_log_det), (-1, block.inverse_and_log_det)):
        w = x
        for _ in range(70):
            w = x - sign * block.contraction(w, context)
        j = block.contraction.linearize(w, context).as_matrix()
        eye = torch.eye(zoo.DIM)
        ratio = torch.linalg.solve(eye + sign * j, eye - sign * j)
        expected = w - sign * block.contraction(w, context), torch.linalg.slogdet(ratio).logabsdet
        v = torch.randn_like(x)

        def gradients(y, log_det, v=v):
            loss = (v * y).sum() + log_det.sum()
            return torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)

        found = gradients(*direction(x, context))
        for a, b in zip(found, gradients(*expected), strict=True):
            torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)


def test_gradient_above_dense_size():
    block = CayleyBlock(zoo.dense(40, (30,), lipschitz=0.9), solver=TIGHT)
    x, v = torch.randn(3, 40, requires_grad=True), torch.randn(3, 40)
    y = block(x)
    (found,) = torch.autograd.grad((v * y).sum(), x)
    j = block.contraction.linearize(((x + y) / 2).detach()).as_matrix()
    matrix = torch.linalg.solve(torch.eye(40) + j, torch.eye(40) - j)
    torch.testing.assert_close(found, (v[:, None] @ matrix)[:, 0])


def test_transforms_of_torch():
    block = CayleyBlock(zoo.dense(3), solver=TIGHT, logdet=Exact())
    x = torch.randn(3)
    expected = torch.autograd.functional.jacobian(block, x)
    torch.testing.assert_close(jacrev(block)(x), expected)
    solve = "The solve of CayleyBlock's forward pass"
    with pytest.raises(TracingError, match=rf"^{solve} cannot run under .* without vmap\.$"):
        vmap(block)(torch.randn(4, 3))
    with pytest.raises(HigherOrderError, match=f"^{solve} has no forward-mode derivative"):
        jacfwd(block)(torch.randn(4, 3))
    with pytest.raises(HigherOrderError, match="no forward-mode derivative"):
        torch.func.jvp(block, (x,), (x,))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["two_hidden", "conv_zeros", "sum", "wrapped", "conditional_sum"])
def test_vjp(name, kind, inverted):
    block = KINDS[kind](ZOO[name](), solver=TIGHT)
    x, context = points(name, 3)
    at = block.evaluate(x, context)
    at = block.evaluate_inverse(at.y.detach(), context).inverted() if inverted else at
    matrix = jacobians(block.inverse if inverted else block, at.x.detach(), context)
    check_vjp(at, matrix)


def check_vjp(at, matrix):
    """Compare both products of an evaluation with the dense Jacobian ``dy/dx``."""
    w = torch.randn_like(at.y)
    transposed = (matrix.mT @ w.flatten(1)[..., None])[..., 0].reshape(w.shape)
    torch.testing.assert_close(at.vjp(w), transposed, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(at.inverse_vjp(transposed), w, atol=1e-6, rtol=1e-6)
    assert not at.vjp(w).requires_grad


@pytest.mark.parametrize("name", ZOO)
def test_vjp_of_zoo(name):
    made = case(name)
    check_vjp(made.at, made.matrix)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", zoo.COORDINATES)
def test_vjp_in_coordinates(name, kind):
    block = zoo.bent(KINDS[kind](zoo.dense(), solver=TIGHT, **zoo.COORDINATES[name]))
    x = torch.randn(3, zoo.DIM)
    matrix = jacobians(block, x)
    at = block.evaluate(x)
    check_vjp(at, matrix)
    check_vjp(at.inverted(), torch.linalg.inv(matrix))
    check_vjp(block.evaluate_inverse(at.y.detach()), matrix)


def test_vjp_above_dense_size():
    block = CayleyBlock(zoo.dense(40, (30,), lipschitz=0.9), solver=TIGHT)
    x = torch.randn(3, 40)
    at = block.evaluate(x)
    check_vjp(at, jacobians(block, x))


# ---------------------------------------------------------------------------- series


def test_coefficients():
    z = torch.zeros((), requires_grad=True)
    value = torch.log1p(-z) - torch.log1p(z)
    for k in range(1, 9):
        (value,) = torch.autograd.grad(value, z, create_graph=True)
        assert SERIES.coefficient(k) == pytest.approx(float(value.detach()) / math.factorial(k))


def test_slope_coefficients():
    z = 0.3
    slope = sum(SERIES.slope_coefficient(k) * z**k for k in range(80))
    assert slope == pytest.approx(-2 / (1 - z**2))
    assert SERIES.slope_coefficient(3) == 0


@pytest.mark.parametrize("series", [SERIES, LogOnePlus()])
@pytest.mark.parametrize("lipschitz", [0.1, 0.5, 0.9, 0.99])
def test_tail_bounds_rest(series, lipschitz):
    for n in range(12):
        rest = sum(abs(series.coefficient(k)) * lipschitz ** (k - n) for k in range(n + 1, 5000))
        bound = series.tail(n, lipschitz)
        assert rest <= bound * (1 + 1e-12)
        # The bound is of use where the series is short.
        assert n % 2 or lipschitz > 0.5 or bound <= 1.5 * rest


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("series", [SERIES, LogOnePlus()])
def test_expand(series, dim):
    matrix = torch.randn(dim, dim)
    matrix = (0.9 * matrix / torch.linalg.matrix_norm(matrix, ord=2)).requires_grad_()
    value, slope = series.expand(matrix.detach())
    expected = series.log_det(matrix)
    torch.testing.assert_close(value, expected.detach())
    # d tr f(A) = tr(f'(A) dA).
    torch.testing.assert_close(slope, torch.autograd.grad(expected, matrix)[0].T)
    powers = [torch.linalg.matrix_power(matrix.detach(), k).trace() for k in range(1, 400)]
    partial_sum = sum(series.coefficient(k) * p for k, p in enumerate(powers, 1))
    torch.testing.assert_close(value, partial_sum, atol=1e-10, rtol=1e-10)


def test_truncation_error():
    g = wrap(zoo.Scaled(1.0, torch.tensor([[0.8]])), lipschitz=0.8)
    at = g.linearize(torch.zeros(1, 1))
    exact = float(Exact()(at, lipschitz=0.8, series=SERIES))
    for terms in (1, 2, 5, 8, 21):
        estimator = PowerSeries(terms)
        error = abs(float(estimator(at, lipschitz=0.8, series=SERIES)) - exact)
        bound = estimator.truncation_error(0.8, 1, SERIES)
        assert error <= bound * (1 + 1e-12)
        assert bound <= 4 * error


ESTIMATORS = {
    "mean_jacobian": Roulette(control_variate=MeanJacobian()),
    "plain": Roulette(control_variate=None),
    "two_probes": Roulette(probes=2),
    "geometric": Roulette(Geometric(p=0.1)),
    "power_series": PowerSeries(terms=41),
    "converged": ConvergedSeries(1e-6),
}


# The trace of a network with three hidden layers is not known.
@pytest.mark.parametrize("contraction", ["two_hidden", "three_hidden"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_mean_of_estimator(name, contraction):
    g, x = zoo.CONTRACTIONS[contraction](lipschitz=0.8), torch.randn(2, zoo.DIM)
    exact = CayleyBlock(g, logdet=Exact()).forward_and_log_det(x)[1].detach()
    estimator, fixed = ESTIMATORS[name], name in ("power_series", "converged")
    # Fixed probes are drawn anew for each draw, which takes a call.
    mean, error = logdet_with_error(CayleyBlock(g, logdet=estimator), x, 50 if fixed else 2000)
    cut = 1e-3 if fixed else 1e-9
    assert bool(((mean - exact).abs() <= 4 * error + cut).all())
    assert 0 < float(error.max()) < 0.3


@pytest.mark.parametrize("reference", [MeanJacobian(), None], ids=repr)
@pytest.mark.parametrize("name", ["two_hidden", "three_hidden"])
def test_gradient_of_roulette(name, reference):
    g = ZOO[name](lipschitz=0.8)
    exact, roulette = (
        CayleyBlock(g, logdet=logdet) for logdet in (Exact(), Roulette(control_variate=reference))
    )
    x, weights = torch.randn(2, zoo.DIM, requires_grad=True), torch.tensor([1.0, -2.0])

    def gradient(block, copies):
        log_det = block.forward_and_log_det(x.repeat(copies, 1))[1]
        loss = (weights.repeat(copies) * log_det).sum() / copies
        parts = torch.autograd.grad(loss, [x, *g.parameters()], allow_unused=True)
        return torch.cat([p.flatten() for p in parts if p is not None])

    expected = gradient(exact, 1)
    draws = torch.stack([gradient(roulette, 200) for _ in range(20)])
    # The squared error of a mean vector is sum(var) / n on average.
    error = math.sqrt(float(draws.var(0).sum()) / len(draws))
    assert (draws.mean(0) - expected).norm() <= 4 * error
    assert error <= 0.2 * expected.norm()


def test_half_of_terms():
    g = zoo.dense(lipschitz=0.5)
    at = g.linearize(torch.randn(3, zoo.DIM))
    odd, even = (PowerSeries(n)(at, lipschitz=0.5, series=SERIES) for n in (7, 8))
    assert torch.equal(odd, even)


# ---------------------------------------------------------------------------- hosts and tools


def test_certificate():
    block = zoo.cayley()
    x = torch.randn(20, zoo.DIM)
    found = certificate(block, x)
    assert found.holds
    row = found.rows[-1]
    w = (x + block(x)).detach() / 2
    at_w = torch.linalg.matrix_norm(block.contraction.linearize(w).as_matrix(), ord=2).detach()
    assert float(at_w.max()) * (1 - 1e-6) <= row.stretch <= row.bound <= row.promised + 1e-9


FLOWS = {
    "block": lambda: zoo.cayley(),
    "transform": lambda: IResNet(zoo.cayley()),
    "inverse": lambda: InverseIResNet(zoo.cayley()),
    "in_coordinates": lambda: zoo.bent(zoo.cayley(**zoo.COORDINATES["asinh_triangular"])),
    "nflows": lambda: IResNetTransform.from_block(zoo.cayley()),
    "flow": lambda: iresnet_flow(zoo.DIM, 2, hidden_features=[8], block="cayley").eval(),
}


@pytest.mark.parametrize("name", FLOWS)
def test_tools_accept_flow(name):
    flow, x = FLOWS[name](), torch.randn(8, zoo.DIM)
    found = certificate(flow, x)
    assert found.holds
    assert all(0 < r.stretch <= 0.97 for r in found.rows if r.layer == "g")
    mean, error = logdet_with_error(flow, x, 3)
    assert bool((error < 1e-12).all())
    match name:
        case "block" | "in_coordinates":
            expected = flow.forward_and_log_det(x)[1]
        case "nflows":
            expected = flow(x)[1]
        case "flow":
            expected = flow._transform(x)[1]
        case _:
            expected = flow.log_abs_det_jacobian(x, flow(x))
    torch.testing.assert_close(mean, expected.detach())


def test_tools_accept_context():
    block = CayleyBlock(zoo.CONDITIONAL["conditional_dense"]())
    x, context = torch.randn(8, zoo.DIM), torch.randn(8, zoo.CONTEXT)
    assert certificate(block, x, context=context).rows[-1].stretch <= 0.97
    mean, _ = logdet_with_error(block, x, 2, context=context)
    torch.testing.assert_close(mean, block.forward_and_log_det(x, context)[1].detach())


def test_same_when_cached():
    block, x = zoo.cayley(), torch.randn(6, zoo.DIM)
    expected = block.forward_and_log_det(x)
    with cached(block):
        torch.testing.assert_close(block.forward_and_log_det(x), expected)
        torch.testing.assert_close(block.inverse(expected[0].detach()), x)


def test_pure():
    block, x = zoo.cayley(), torch.randn(6, zoo.DIM)
    before, state = x.clone(), {k: v.clone() for k, v in block.state_dict().items()}
    random = torch.get_rng_state()
    y, log_det = block.train().forward_and_log_det(x)
    block.inverse_and_log_det(y.detach())
    again, same = block.eval().forward_and_log_det(x)
    assert torch.equal(y, again)
    assert torch.equal(log_det, same)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in block.state_dict().items())


def test_saves_weights_once():
    block, fresh = (zoo.bent(zoo.cayley(**zoo.COORDINATES["triangular"])) for _ in range(2))
    state = block.state_dict()
    storages = [v.untyped_storage().data_ptr() for v in state.values()]
    assert len(storages) == len(set(storages))
    weights = [v for k, v in state.items() if not k.endswith("_extra_state")]
    assert sum(v.numel() for v in weights) == sum(p.numel() for p in block.parameters())
    fresh.load_state_dict(copy.deepcopy(state))
    x = torch.randn(6, zoo.DIM)
    assert torch.equal(fresh(x), block(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_after_backward(duplicate):
    transform, x = iresnet(3, [8], block="cayley"), torch.randn(4, 3)
    transform.log_abs_det_jacobian(x, transform(x)).sum().backward()
    twin = duplicate(transform)
    assert torch.equal(twin(x), transform(x))
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(twin(x), transform(x))


def test_precision_under_autocast():
    block = zoo.cayley().float()
    x = torch.randn(4, zoo.DIM, dtype=torch.float32)
    expected = block.forward_and_log_det(x), block.inverse(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close((block.forward_and_log_det(x), block.inverse(x)), expected)


@pytest.mark.compiled
def test_compiles():
    block = CayleyBlock(DenseContraction(2, [4]), logdet=Exact())
    x = torch.randn(4, 2, requires_grad=True)
    compiled = torch.compile(block.forward_and_log_det, backend="eager")
    found, expected = compiled(x), block.forward_and_log_det(x)
    torch.testing.assert_close(found, expected)
    sums = [sum(value.sum() for value in values) for values in (found, expected)]
    torch.testing.assert_close(*(torch.autograd.grad(s, x) for s in sums))


def test_guide():
    guide = AutoIResNet(banana, 2, hidden_dims=[8], block="cayley")
    assert torch.tensor(step(guide)).isfinite().all()
    assert all(type(part.block) is CayleyBlock for part in guide.transform.parts[:-1])
    posterior = guide.get_posterior()
    x = posterior.rsample((6,))
    found = torch.autograd.grad(posterior.score_parts(x).entropy_term.sum(), x)[0]
    z = x.detach().clone().requires_grad_()
    expected = torch.autograd.grad(posterior.log_prob(z).sum(), z)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert certificate(guide).holds
