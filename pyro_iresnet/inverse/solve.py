"""The inverse of ``y = x + g(x)`` to a certified error: :func:`solve`."""

import math
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from .._torch import disable_compiler, full_precision, refuse_transforms
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    ContractionError,
    InversionError,
    check_instance,
    check_not_negative,
    check_positive_int,
    check_tensor,
)
from ..operators import ContractionMap, default_rtol, floor
from ..solution import Result, Solution, Stats
from .loop import iterate
from .solvers import Problem, Solver, auto_solver
from .stopping import Tolerance

# The relative error that rounding alone may leave.
COARSEST = 0.1


@runtime_checkable
class Contractive(Protocol):
    """A contraction, as far as the inverse needs a contraction."""

    @property
    def event_dim(self) -> int: ...
    def materialize(self) -> ContractionMap: ...
    def check(
        self, x: Tensor, context: Tensor | None = None, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]: ...


class SolveKeywords(TypedDict, total=False):
    """The keywords of a solve; see :func:`solve`."""

    x0: Tensor | None
    atol: float | None
    rtol: float | None
    max_steps: int | None
    throw: bool


@disable_compiler("its number of steps depends on the data")
@torch.no_grad()
def solve(
    contraction: Contractive,
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

    The solution has no gradients: :meth:`Block.inverse` is the differentiable inverse. For a block
    in coordinates of its own the solution is in the coordinates of ``g``:
    :meth:`ResidualBlock.solve` gives the solution in the coordinates of ``x``.

    Arguments:
        contraction: ``g``.
        y: shape ``(*batch, *event)``.
        solver: goes from one iterate to the next; by default ``auto_solver(D)``.
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
    if isinstance(contraction, type) or not isinstance(contraction, Contractive):
        raise ArgumentTypeError(
            "Expected contraction to be a Contraction, such as DenseContraction(2), or that of a "
            f"transform, transform.block.contraction; got {_named(contraction)}. Of a block, "
            "block.solve(y) is the inverse in its own coordinates."
        )
    y, context = contraction.check(y, context, "y")
    with full_precision(y):
        return solve_map(
            contraction.materialize(),
            y,
            contraction.event_dim,
            solver,
            x0=x0,
            context=context,
            atol=atol,
            rtol=rtol,
            max_steps=max_steps,
            throw=throw,
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
    """Solve as :func:`solve`, for a contraction with its acting weights and checked tensors.

    Call it without gradients and in full precision.
    """
    refuse_transforms("The inverse", y)
    batch, event = y.shape[: y.dim() - event_dim], y.shape[y.dim() - event_dim :]
    if solver is None:
        solver = auto_solver(event.numel())
    check_instance(solver, Solver, "solver", "Anderson()")
    if x0 is not None:
        x0 = _start(x0, y, tuple(event))
    lipschitz = _below_one(g.lipschitz_bound())
    _check_resolved(y.dtype, lipschitz)
    rows = y.reshape(batch.numel(), event.numel())
    problem = Problem(
        g=g,
        y=rows,
        context=None if context is None else context.reshape(-1, context.shape[-1]),
        lipschitz=lipschitz,
        event_shape=tuple(event),
    )
    rtol = solver.rtol if rtol is None else check_not_negative(rtol, "rtol")
    tolerance = Tolerance(
        atol=_atol(solver.atol if atol is None else atol, batch),
        rtol=default_rtol(y.dtype) if rtol is None else rtol,
        floor=floor(y.dtype, lipschitz),
    )
    limit = solver.max_steps if max_steps is None else check_positive_int(max_steps, "max_steps")
    start = None if x0 is None else x0.reshape(rows.shape)
    value, figures = iterate(problem, start, solver, tolerance, limit)
    stats = Stats(**{name: figure.reshape(batch) for name, figure in figures.items()})
    worst = Result(int(stats.results.max())) if len(rows) else Result.CONVERGED
    solution = Solution(value.reshape(y.shape), worst, stats, lipschitz)
    if throw and worst != Result.CONVERGED:
        raise InversionError(solution.describe(), solution)
    return solution


def _start(x0: Tensor, y: Tensor, event: tuple[int, ...]) -> Tensor:
    check_tensor(x0, event, y, "x0")
    try:
        x0 = x0.expand(y.shape)
    except RuntimeError as error:
        raise ArgumentError(
            f"Expected x0 of the shape {tuple(y.shape)} of y; got {tuple(x0.shape)}."
        ) from error
    if not bool(x0.isfinite().all()):
        raise ArgumentError("Expected x0 to be finite; got NaN or infinity. Leave it out.")
    return x0


def _atol(value: float | Tensor, batch: torch.Size) -> float | Tensor:
    """Return a number, or one number for each sample, shape ``(n,)``."""
    if not isinstance(value, Tensor):
        return check_not_negative(value, "atol")
    if value.dim() > len(batch) or bool((value < 0).any()):
        raise ArgumentError(
            f"Expected atol of at least 0 that broadcasts to the batch {tuple(batch)}; got {value}."
        )
    return value.expand(batch).reshape(-1)


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _check_resolved(dtype: torch.dtype, lipschitz: float) -> None:
    """Raise if rounding leaves less than a digit of the solution."""
    lost = floor(dtype, lipschitz)
    if lost > COARSEST:
        raise ContractionError(
            f"{dtype} resolves the inverse to no more than {lost:.0%} of x at the Lipschitz bound "
            f"{lipschitz:.6g}. Use float32 or float64, or a lower lipschitz."
        )


def _below_one(proven: Tensor) -> float:
    """Return the proven Lipschitz bound as a number below 1, or raise."""
    bound = float(proven)
    if not bound < 1.0:
        cause = (
            "its parameters hold NaN or infinity"
            if not math.isfinite(bound)
            else "its norm strategy does not keep the bound (PowerIteration is a lower bound), or "
            "lipschitz is nearer to 1 than the dtype resolves"
        )
        raise ContractionError(
            f"g cannot be inverted with a certificate: its proven Lipschitz bound is {bound:.4g}, "
            f"1 or more; {cause}. Use Gram(), SingularValue() or Frobenius(), or a lower lipschitz."
        )
    return bound
