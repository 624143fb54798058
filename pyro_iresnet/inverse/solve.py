"""The loop that inverts ``y = x + g(x)``, with a certified stop for each sample."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import (
    ArgumentError,
    ContractionError,
    InversionError,
    check_instance,
    check_positive,
    check_positive_int,
    refuse_tracing,
)
from ..linear_solve import default_rtol, floor
from ..linearization import Linearizable
from ..solution import Result, Solution, Stats
from .base import Problem, Solver
from .fixed_point import FixedPoint


class Contractive(Protocol):
    """What the inverse asks of a contraction."""

    @property
    def event_dim(self) -> int: ...
    def acting(self) -> Linearizable: ...
    def lipschitz_bound(self) -> Tensor: ...
    def check(
        self, x: Tensor, context: Tensor | None = None, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]: ...


@torch.no_grad()
def solve(
    contraction: Contractive,
    y: Tensor,
    solver: Solver = FixedPoint(),  # noqa: B008  (frozen, so safe to share)
    *,
    x0: Tensor | None = None,
    context: Tensor | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
    acting: Linearizable | None = None,
) -> Solution:
    r"""Solve :math:`x + g(x) = y` for each sample, to a certified error.

    A sample is done when the proven bound of its error,
    :math:`\lVert x - x^* \rVert \le \lVert x + g(x) - y \rVert / (1 - L)`, is at most
    :math:`\text{atol} + \text{rtol} \lVert y \rVert`; it then leaves the batch. Below
    :math:`8 \epsilon / (1 - L)`, relative to the larger of ``x`` and ``y``, rounding hides the
    residual: there a sample counts as done, and ``stats.tolerance`` says what was used.

    Without gradients: :meth:`ResidualBlock.inverse` is the differentiable inverse.

    Arguments:
        contraction: ``g``.
        y: shape ``(*batch, *event)``.
        solver: how to go from one iterate to the next.
        x0: where to start, the shape of ``y``; by default ``y`` itself.
        context: shape ``(*batch, size)``, for a conditional ``g``.
        atol, rtol, max_steps: instead of those of the solver.
        throw: raise where a sample fails; else the solution says which did.
        acting: ``contraction.acting()``, where the caller has it already.

    Returns:
        A :class:`Solution`; its ``value`` has the shape of ``y``.

    Raises:
        InversionError: with ``throw``, if a sample fails; holds the solution.
        ContractionError: the proven Lipschitz bound is 1 or more.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, solve
        >>> g = DenseContraction(2, lipschitz=0.5)
        >>> solution = solve(g, torch.ones(4, 2))
        >>> bool((solution.stats.error_bound <= solution.stats.tolerance).all())
        True
    """
    refuse_tracing("The inverse")
    check_instance(solver, Solver, "solver", "FixedPoint()")
    y, context = contraction.check(y, context, "y")
    event_dim = contraction.event_dim
    batch, event = y.shape[: y.dim() - event_dim], y.shape[y.dim() - event_dim :]
    if x0 is not None and x0.shape != y.shape:
        raise ArgumentError(
            f"Expected x0 of the shape {tuple(y.shape)} of y; got {tuple(x0.shape)}."
        )
    lipschitz = _proven_bound(contraction)
    flat = y.reshape(-1, *event)
    problem = Problem(
        g=contraction.acting() if acting is None else acting,
        y=flat,
        context=None if context is None else context.reshape(-1, context.shape[-1]),
        lipschitz=lipschitz,
    )
    tolerance = _Tolerance(
        atol=check_positive(atol, "atol") if atol is not None else solver.atol or 0.0,
        rtol=check_positive(rtol, "rtol")
        if rtol is not None
        else solver.rtol or default_rtol(y.dtype),
        floor=floor(y.dtype, lipschitz),
    )
    limit = solver.max_steps if max_steps is None else check_positive_int(max_steps, "max_steps")
    start = flat if x0 is None else x0.reshape(flat.shape)
    value, rows = _iterate(problem, start, solver, tolerance, limit)
    stats = Stats(**{name: figure.reshape(batch) for name, figure in rows.items()})
    worst = Result(int(stats.results.max())) if flat.shape[0] else Result.CONVERGED
    solution = Solution(value.reshape(y.shape), worst, stats, lipschitz)
    if throw and worst != Result.CONVERGED:
        raise InversionError(solution.describe(), solution)
    return solution


def _proven_bound(contraction: Contractive) -> float:
    """The proven Lipschitz bound as a number below 1, or raise."""
    bound = float(contraction.lipschitz_bound())
    if not bound < 1.0:
        cause = (
            "its parameters hold NaN or infinity"
            if not math.isfinite(bound)
            else "its norm strategy does not keep the bound (PowerIteration is a lower bound)"
        )
        raise ContractionError(
            f"g cannot be inverted with a certificate: its proven Lipschitz bound is {bound:.4g}, "
            f"1 or more; {cause}. Use Gram(), SingularValue() or Frobenius()."
        )
    return bound


@dataclass(frozen=True)
class _Tolerance:
    atol: float
    rtol: float
    floor: float

    def at(self, x_norm: Tensor, y_norm: Tensor) -> Tensor:
        asked = self.atol + self.rtol * y_norm
        return torch.maximum(asked, self.floor * torch.maximum(x_norm, y_norm))


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


def _iterate(
    problem: Problem, x: Tensor, solver: Solver, tolerance: _Tolerance, limit: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Iterate until every sample is done or ``limit`` steps are: values, and figures by row."""
    value = x.clone()
    counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    size = x.new_zeros(len(x))
    names = ("residual", "error_bound", "tolerance")
    figures = {"results": counts, "steps": counts.clone(), "evaluations": counts.clone()}
    figures |= {name: size.clone() for name in names}
    rows = torch.arange(len(x), device=x.device)
    state = solver.init(problem, x)
    gx = problem.g(x, problem.context)
    stretched = torch.zeros_like(rows, dtype=torch.bool)
    step = 0
    while True:
        residual = x + gx - problem.y
        residual_norm = _norm(residual)
        error_bound = residual_norm / (1 - problem.lipschitz)
        allowed = tolerance.at(_norm(x), _norm(problem.y))
        if limit is None:
            limit = _limit(solver, problem, error_bound, allowed, tolerance, residual_norm)
        results = torch.full_like(rows, Result.MAX_STEPS)
        results[error_bound <= allowed] = Result.CONVERGED
        results[stretched] = Result.NOT_A_CONTRACTION
        # Last, since infinity is within a tolerance of infinity.
        results[~(residual_norm.isfinite() & allowed.isfinite())] = Result.NON_FINITE
        going = results == Result.MAX_STEPS
        ended = torch.ones_like(going) if step >= limit else ~going
        if bool(ended.any()):
            done = rows[ended]
            value[done] = x[ended]
            figures["results"][done] = results[ended]
            figures["steps"][done] = step
            figures["evaluations"][done] = step + 1
            for name, row in zip(names, (residual_norm, error_bound, allowed), strict=True):
                figures[name][done] = row[ended]
            kept = torch.nonzero(~ended).reshape(-1)
            rows, x, gx, residual = rows[kept], x[kept], gx[kept], residual[kept]
            problem, state = problem.select(kept), tuple(s[kept] for s in state)
        if len(rows) == 0:
            return value, figures
        new, state = solver.step(problem, x, residual, state)
        g_new = problem.g(new, problem.context)
        stretched = _stretched(problem, new - x, g_new - gx, x, gx)
        x, gx = new, g_new
        step += 1


def _limit(
    solver: Solver,
    problem: Problem,
    error_bound: Tensor,
    allowed: Tensor,
    tolerance: _Tolerance,
    residual_norm: Tensor,
) -> int:
    """The solver's own number of steps for the worst sample of the batch."""
    # Where y is 0 the solution is about as large as the first residual, g(0).
    allowed = torch.maximum(allowed, tolerance.floor * residual_norm)
    ratio = error_bound / allowed
    ratio = ratio[ratio.isfinite()]
    worst = float(ratio.max()) if len(ratio) else 1.0
    return solver.default_max_steps(worst, problem.lipschitz)


def _stretched(problem: Problem, dx: Tensor, dg: Tensor, x: Tensor, gx: Tensor) -> Tensor:
    """Where ``||g(a) - g(b)||`` exceeds the bound times ``||a - b||`` by more than rounding can."""
    slack = 16 * math.sqrt(torch.finfo(x.dtype).eps)
    dx_norm = _norm(dx)
    resolved = dx_norm > slack * torch.maximum(_norm(x), _norm(gx))
    return resolved & (_norm(dg) > (problem.lipschitz + slack) * dx_norm)
