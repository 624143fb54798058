"""The inverse of ``y = x + g(x)`` to a certified error: :func:`solve`."""

import math
from typing import Any, TypedDict

import torch
from torch import Tensor

from .._torch import (
    disable_compiler,
    full_precision,
    in_torch_func,
    refuse_forward_mode,
    refuse_transforms,
)
from ..contractions import Contraction
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    ContractionError,
    InversionError,
    check_flag,
    check_instance,
    check_not_negative,
    check_positive_int,
    check_tensor,
)
from ..operators import ContractionMap, default_rtol, floor
from ..operators.solve import COARSEST, raise_unresolved
from ..solution import Result, Solution, Stats
from .loop import iterate
from .mixed import single_precision, solve_mixed
from .solvers import Anderson, Problem, Solver
from .stopping import Tolerance


class SolveKeywords(TypedDict, total=False):
    """The keywords of a solve; see :func:`solve`."""

    x0: Tensor | None
    atol: float | Tensor | None
    rtol: float | None
    max_steps: int | None
    throw: bool


@disable_compiler("its number of steps depends on the data")
@torch.no_grad()
def solve(
    contraction: Contraction,
    y: Tensor,
    solver: Solver | None = None,
    *,
    x0: Tensor | None = None,
    context: Tensor | None = None,
    atol: float | Tensor | None = None,
    rtol: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution:
    r"""Solve :math:`x + g(x) = y` for each sample, to a certified error.

    A sample is done, and leaves the batch, when the proven bound of its error is at most
    :math:`\text{atol} + \text{rtol} \lVert y \rVert`. With :math:`r = x + g(x) - y` at the last
    evaluation of ``g``, the bound is :math:`\lVert r \rVert / (1 - L)` for x itself, and :math:`L
    \lVert r \rVert / (1 - L) + \lVert x' - (x - r) \rVert` for the next iterate :math:`x'` of the
    solver, which is returned if its bound is small enough.

    Rounding hides a residual of the size :math:`\rho` that :meth:`ContractionMap.rounding`
    estimates, and so an error of :math:`\rho / (1 - L)`. A sample also counts as done at an error
    of :math:`8 \epsilon / (1 - L)`, relative to the larger of ``x`` and ``y``, and if its residual
    is about :math:`\rho` and has stopped shrinking. ``stats.error_bound`` and ``stats.tolerance``
    both contain the error that rounding hides.

    A batch of 4,096 numbers or more in float64 takes the first steps of :class:`Anderson` in
    float32, if ``g`` has a copy in float32 and neither ``x0``, ``context`` nor ``max_steps`` is
    given. Certificates are of evaluations in float64 all the same.

    The solution has no gradients: :meth:`Block.inverse` is the differentiable inverse. For a block
    in coordinates of its own the solution is in the coordinates of ``g``:
    :meth:`ResidualBlock.solve` gives the solution in the coordinates of ``x``.

    Arguments:
        contraction: ``g``.
        y: shape ``(*batch, *event)``.
        solver: goes from one iterate to the next; by default :class:`Anderson`.
        x0: the start, of a shape that broadcasts to that of ``y``; by default the solver's own
            start.
        context: shape ``(*batch, size)``, for a conditional ``g``.
        atol, rtol, max_steps: override those of the solver; ``atol`` may be a tensor that
            broadcasts to the batch.
        throw: raise if a sample fails; else the solution says which samples failed.

    Raises:
        InversionError: with ``throw``, if a sample fails; holds the solution.
        ContractionError: the proven Lipschitz bound is 1 or more.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.solvers import solve
        >>> g = DenseContraction(2, lipschitz=0.5)
        >>> solution = solve(g, torch.ones(4, 2))
        >>> bool((solution.stats.error_bound <= solution.stats.tolerance).all())
        True
    """
    if not isinstance(contraction, Contraction):
        got = contraction.__name__ if isinstance(contraction, type) else type(contraction).__name__
        raise ArgumentTypeError(
            "Expected contraction to be a Contraction, such as DenseContraction(2); got "
            f"{got}. For the inverse of a block or a transform call "
            "block.solve(y) or transform.block.solve(y), in the coordinates of x."
        )
    y, context = contraction.check(y, context, "y")
    refuse_transforms("The inverse", y)
    if in_torch_func():
        refuse_forward_mode("The inverse", y)
    event_dim = contraction.event_dim
    own = checked_keywords(y.shape[: y.dim() - event_dim], y, atol, rtol, max_steps, throw)
    with full_precision(y):
        return solve_map(
            contraction.materialize(), y, event_dim, solver, x0=x0, context=context, **own
        )


def solve_map(
    g: ContractionMap,
    y: Tensor,
    event_dim: int,
    solver: Solver | None = None,
    *,
    x0: Tensor | None = None,
    context: Tensor | None = None,
    atol: float | Tensor | None = None,
    rtol: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution:
    """Solve as :func:`solve`, for a contraction with its acting weights.

    Call it with checked tensors and :func:`checked_keywords`, without gradients, without transforms
    of torch.func, and in full precision.
    """
    batch, event = y.shape[: y.dim() - event_dim], y.shape[y.dim() - event_dim :]
    solver = Anderson() if solver is None else solver
    check_instance(solver, Solver, "solver", "Anderson()")
    if x0 is not None:
        x0 = _start(x0, y, tuple(event))
    lipschitz = _below_one(g.lipschitz_bound())
    hidden = floor(y.dtype, lipschitz)
    if hidden > COARSEST:
        raise_unresolved(y.dtype, lipschitz, "the inverse")
    rows = y.reshape(batch.numel(), event.numel())
    problem = Problem(
        g=g,
        y=rows,
        context=None if context is None else context.reshape(-1, context.shape[-1]),
        lipschitz=lipschitz,
        event_shape=tuple(event),
    )
    atol = solver.atol if atol is None else atol
    rtol = solver.rtol if rtol is None else rtol
    tolerance = Tolerance(
        atol=atol.reshape(-1) if isinstance(atol, Tensor) else atol,
        rtol=default_rtol(y.dtype) if rtol is None else rtol,
        floor=hidden,
    )
    limit = solver.max_steps if max_steps is None else max_steps
    start = None if x0 is None else x0.reshape(rows.shape)
    single = None
    if start is None and limit is None and y.dtype == torch.float64:
        # A start or a limit of steps is meant for one dtype.
        single = single_precision(problem, solver)
    if single is None:
        value, figures = iterate(problem, start, solver, tolerance, limit)
    else:
        value, figures = solve_mixed(problem, single, tolerance)
    stats = Stats(**{name: figure.reshape(batch) for name, figure in figures.items()})
    worst = Result(int(stats.results.max())) if len(rows) else Result.CONVERGED
    solution = Solution(value.reshape(y.shape), worst, stats, lipschitz)
    if throw and worst != Result.CONVERGED:
        raise InversionError(solution.describe(), solution)
    return solution


def _start(x0: Tensor, y: Tensor, event: tuple[int, ...]) -> Tensor:
    check_tensor(x0, event, y, "x0", of="y")
    try:
        x0 = x0.expand(y.shape)
    except RuntimeError as error:
        raise ArgumentError(
            f"Expected x0 of the shape {tuple(y.shape)} of y; got {tuple(x0.shape)}."
        ) from error
    if not bool(x0.isfinite().all()):
        raise ArgumentError("Expected x0 to be finite; got NaN or infinity. Leave it out.")
    return x0


def checked_keywords(
    batch: torch.Size,
    like: Tensor,
    atol: float | Tensor | None,
    rtol: float | None,
    max_steps: int | None,
    throw: bool,
) -> dict[str, Any]:
    """Return the keywords of a solve, ``atol`` a number or of shape ``(*batch,)``, or raise."""
    if atol is not None:
        atol = _batched(atol, batch, like)
    if rtol is not None:
        rtol = check_not_negative(rtol, "rtol")
    if max_steps is not None:
        max_steps = check_positive_int(max_steps, "max_steps")
    if not isinstance(throw, bool):
        check_flag(throw, "throw")
    return {"atol": atol, "rtol": rtol, "max_steps": max_steps, "throw": throw}


def _batched(atol: float | Tensor, batch: torch.Size, like: Tensor) -> float | Tensor:
    if not isinstance(atol, Tensor):
        return check_not_negative(atol, "atol")
    check_tensor(atol, (), like, "atol", of="y")
    try:
        atol = atol.expand(batch)
    except RuntimeError as error:
        raise ArgumentError(
            f"Expected atol to be a number, or a tensor that broadcasts to the batch "
            f"{tuple(batch)}; got the shape {tuple(atol.shape)}."
        ) from error
    # NaN compares as False.
    if not bool(((atol >= 0) & (atol < torch.inf)).all()):
        raise ArgumentError("Expected atol to be finite and at least 0; got another entry.")
    return atol


def _below_one(proven: Tensor) -> float:
    """Return the proven Lipschitz bound as a number below 1, or raise."""
    bound = float(proven)
    if not bound < 1.0:
        cause = (
            "not finite, so its parameters hold NaN or infinity. Load or train them again"
            if not math.isfinite(bound)
            else "1 or more; its norm strategy does not keep the bound (PowerIteration is a lower "
            "bound), or lipschitz is nearer to 1 than the dtype resolves. Use Cholesky(), Gram() "
            "or SingularValue(), or a lower lipschitz"
        )
        raise ContractionError(
            f"g cannot be inverted with a certificate: its proven Lipschitz bound is {bound:.4g}, "
            f"{cause}."
        )
    return bound
