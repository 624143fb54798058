"""Checks of the contract that a new contraction, estimator or solver must meet.

Each check raises ``AssertionError`` that names a broken promise with its numbers, and returns
nothing. Use the checks in your own test suite:

    from pyro_iresnet import testing

    def test_my_contraction():
        testing.check_contraction(MyContraction(3).double(), torch.randn(50, 3).double())
"""

import math

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from . import errors
from .contractions.base import Contraction
from .inverse.solve import solve
from .inverse.solvers.base import Solver
from .logdet.base import LogDet
from .operators.linearization import Linearization

ROUNDING = 1e-5
# Calls that `check_logdet` averages, and the most standard errors that it allows.
CALLS, MOST = 50, 4.5


def check_contraction(contraction: Contraction, x: Tensor, context: Tensor | None = None) -> None:
    """Check every promise of a contraction at the points ``x``: shapes, Jacobian, bound, purity.

    Arguments:
        contraction: the contraction to check; in float64, so that rounding does not hide a fault.
        x: some 50 points, shape ``(n, *event)``.
        context: shape ``(n, size)``, for a conditional contraction.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.
        ArgumentError, ArgumentTypeError: ``contraction`` is no contraction, or an incomplete one.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_contraction(g, x)
    """
    check_linearization(contraction, x, context)
    check_lipschitz_bound(contraction, x, context)
    check_purity(contraction, x, context)


def check_linearization(contraction: Contraction, x: Tensor, context: Tensor | None = None) -> None:
    """Check that ``linearize`` agrees with ``forward`` and with automatic differentiation.

    Arguments and errors as in :func:`check_contraction`.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_linearization(g, x)
    """
    _is_one(contraction)
    event_dim = contraction.event_dim
    linearization = contraction.linearize(x, context)
    torch.testing.assert_close(linearization.value, contraction(x, context))

    def one(point: Tensor, its_context: Tensor | None) -> Tensor:
        batch = None if its_context is None else its_context[None]
        return contraction(point[None], batch)[0]

    in_dims = (0, None if context is None else 0)
    size = linearization.event_size
    expected = vmap(jacrev(one), in_dims=in_dims)(x, context).reshape(len(x), size, size)
    torch.testing.assert_close(linearization.as_matrix(), expected)
    v = torch.randn(3, *x.shape, dtype=x.dtype, device=x.device)
    flat = v.flatten(v.dim() - event_dim)
    mv = (expected @ flat[..., None])[..., 0].reshape(v.shape)
    vm = (expected.mT @ flat[..., None])[..., 0].reshape(v.shape)
    torch.testing.assert_close(linearization.mv(v), mv)
    torch.testing.assert_close(linearization.vm(v), vm)
    trace = linearization.trace()
    if trace is not None:
        torch.testing.assert_close(trace, expected.diagonal(dim1=-2, dim2=-1).sum(-1))
    index = torch.tensor([len(x) - 1, 0, 0], device=x.device)
    torch.testing.assert_close(linearization.select(index).mv(v[0][index]), mv[0][index])


@torch.no_grad()
def check_lipschitz_bound(
    contraction: Contraction, x: Tensor, context: Tensor | None = None
) -> None:
    """Check that the proven bound is at most ``lipschitz``, and that no stretch exceeds the bound.

    Arguments and errors as in :func:`check_contraction`.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_lipschitz_bound(g, x)
    """
    _is_one(contraction)
    bound = float(contraction.lipschitz_bound())
    _require(
        bound <= contraction.lipschitz + ROUNDING,
        f"the proven bound {bound} exceeds the promised {contraction.lipschitz}",
    )
    norms = torch.linalg.matrix_norm(contraction.linearize(x, context).as_matrix(), ord=2)
    _require(
        float(norms.max()) <= bound + ROUNDING,
        f"a local stretch {float(norms.max())} exceeds the proven bound {bound}",
    )
    for scale in (1e-3, 1.0, 1e2):
        other = x + scale * torch.randn_like(x)
        first, second = (contraction(p, context).flatten(1) for p in (x, other))
        # Values far from 0, as under a large context, round more than near points are apart.
        hidden = 8 * torch.finfo(x.dtype).eps * (first.norm(dim=1) + second.norm(dim=1))
        apart = ((first - second).norm(dim=1) - hidden).clamp(min=0)
        stretch = float((apart / (x - other).flatten(1).norm(dim=1)).max())
        _require(
            stretch <= bound + ROUNDING,
            f"a pair of points is stretched by {stretch}, the proven bound is {bound}",
        )


def check_purity(contraction: Contraction, x: Tensor, context: Tensor | None = None) -> None:
    """Check that calls change neither the contraction nor their inputs, in train and eval mode.

    Arguments and errors as in :func:`check_contraction`.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_purity(g, x)
    """
    _is_one(contraction)
    state = {name: value.clone() for name, value in contraction.state_dict().items()}
    inputs = {"x": x} if context is None else {"x": x, "context": context}
    before = {name: value.clone() for name, value in inputs.items()}
    modes = [(module, module.training) for module in contraction.modules()]
    try:
        first = contraction.train()(x, context)
        linearized = contraction.linearize(x, context).value
        contraction.lipschitz_bound()
        second = contraction.eval()(x, context)
    finally:
        for module, training in modes:
            module.training = training
    for name, value in inputs.items():
        _require(torch.equal(value, before[name]), f"a call changed {name}")
    for name, value in contraction.state_dict().items():
        _require(torch.equal(value, state[name]), f"a call changed {name}")
    _require(torch.equal(first, second), "train and eval mode give different values")
    torch.testing.assert_close(linearized, first)


@torch.no_grad()
def check_logdet(
    estimator: LogDet, linearization: Linearization, *, lipschitz: float, draws: int = 2000
) -> None:
    """Check that the mean of an estimator is the log-determinant, within its standard error.

    The standard error is that of the means of 50 calls, since the samples of one call may depend on
    each other. The limit for each sample is 4.5 standard errors (Student's t with 49 degrees of
    freedom), so pass few samples: 10 samples fail by chance in one of 2,000 runs.

    Arguments:
        estimator: the estimator to check.
        linearization: the linearization of a contraction, in float64, shape ``(n, *event)``.
        lipschitz: the bound of the contraction.
        draws: the number of estimates to average, in calls of equal size.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, Roulette, testing
        >>> _ = torch.manual_seed(0)
        >>> g = DenseContraction(3).double()
        >>> linearization = g.linearize(torch.randn(4, 3, dtype=torch.float64))
        >>> testing.check_logdet(Roulette(), linearization, lipschitz=g.lipschitz)
    """
    size = linearization.event_size
    jacobian = linearization.as_matrix()
    identity = torch.eye(size, dtype=jacobian.dtype, device=jacobian.device)
    exact = torch.linalg.slogdet(identity + jacobian).logabsdet
    samples = torch.arange(len(exact), device=exact.device).repeat(max(1, draws // CALLS))
    means: list[Tensor] = []
    for _ in range(CALLS):
        estimates = estimator(linearization.select(samples), lipschitz=lipschitz)
        _require(
            estimates.shape == samples.shape,
            f"expected the batch shape {tuple(samples.shape)}, got {tuple(estimates.shape)}",
        )
        means.append(estimates.reshape(-1, len(exact)).mean(0))
    of_calls = torch.stack(means)
    error = of_calls.std(0) / math.sqrt(CALLS)
    off = ((of_calls.mean(0) - exact).abs() / (error + ROUNDING)).max()
    _require(float(off) <= MOST, f"the mean is off by {float(off):.1f} standard errors")


def check_solver(solver: Solver, contraction: Contraction, x: Tensor) -> None:
    """Check that a solver finds ``x`` again, and that its certified error bound holds.

    Arguments:
        solver: the solver to check.
        contraction: a contraction of vectors or images, without context.
        x: shape ``(n, *event)``.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, Newton, testing
        >>> x = torch.randn(50, 3, dtype=torch.float64)
        >>> testing.check_solver(Newton(), DenseContraction(3).double(), x)
    """
    y = (x + contraction(x)).detach()
    solution = solve(contraction, y, solver)
    stats = solution.stats
    error = (solution.value - x).flatten(1).norm(dim=1)
    # Rounding moves y as much as a residual, so the exact solution for y moves by as much again.
    _require(
        bool((error <= 2 * stats.error_bound).all()),
        f"an error of {float(error.max()):.1e} exceeds its certified bound",
    )
    _require(
        bool((stats.error_bound <= stats.tolerance).all()),
        f"an error bound of {float(stats.error_bound.max()):.1e} exceeds the tolerance",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _is_one(contraction: Contraction) -> None:
    example = "DenseContraction(2)"
    errors.check_instance(contraction, Contraction, "contraction", example).check_complete()
