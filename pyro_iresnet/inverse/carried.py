"""The inverse of a block that acts in coordinates of its own, certified in those of the user."""

from typing import Protocol

import torch
from torch import Tensor

from ..errors import InversionError, check_not_negative, check_positive_int, check_tensor
from ..linear_solve import default_rtol
from ..linearization import Acting
from ..solution import Result, Solution, Stats
from ..torch_modes import disable_compiler
from .base import Solver
from .solve import Contractive, solve

# A radius is worth another solve where it is this much smaller than the last one.
CLOSER = 0.9


class Coordinates(Protocol):
    """What the inverse asks of coordinates ``z`` of ``x``."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def inverse(self, z: Tensor) -> Tensor: ...
    def stretch(self, z: Tensor, radius: Tensor) -> Tensor: ...


@disable_compiler("its number of steps depends on the data")
@torch.no_grad()
def solve_in(
    coordinates: Coordinates,
    contraction: Contractive,
    y: Tensor,
    solver: Solver,
    *,
    x0: Tensor | None = None,
    context: Tensor | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
    acting: Acting | None = None,
) -> tuple[Tensor, Solution]:
    r"""Solve :math:`z + g(z) = \varphi(y)`, to a certified error of :math:`x = \varphi^{-1}(z)`.

    What is asked of x is asked of z divided by how far the coordinates stretch there. A chart
    stretches more at x than at y where the block shrinks: samples that miss then go on from where
    they are, to what is asked there.

    Arguments:
        coordinates: :math:`\varphi`.
        y: shape ``(*batch, *event)``.
        contraction, solver, x0, context, atol, rtol, max_steps, throw, acting: as in
            :func:`solve`, in the user's coordinates.

    Returns:
        ``z``, and the solution in the user's coordinates.

    Raises:
        InversionError: with ``throw``, if a sample fails.
    """
    event_dim = contraction.event_dim
    if x0 is not None:
        check_tensor(x0, tuple(y.shape[y.dim() - event_dim :]), y, "x0")
    size = _norm(y, event_dim)
    given = solver.atol if atol is None else check_not_negative(atol, "atol")
    relative = solver.rtol if rtol is None else check_not_negative(rtol, "rtol")
    asked = given + (default_rtol(y.dtype) if relative is None else relative) * size
    # In float64, so that what the way into the coordinates loses is not lost on the solution; what
    # is lost even so, the way back and there again tells.
    precise = coordinates(y.double())
    lost = _norm(coordinates(coordinates.inverse(precise)) - precise, event_dim).to(y.dtype)
    target = precise.to(y.dtype)
    start = None if x0 is None else coordinates(x0)
    limit = solver.max_steps if max_steps is None else check_positive_int(max_steps, "max_steps")
    within = _within(coordinates, target, asked)
    steps = evaluations = torch.zeros_like(size, dtype=torch.int64)
    while True:
        found = solve(
            contraction,
            target,
            solver,
            x0=start,
            context=context,
            atol=within.nan_to_num(0.0, 0.0),
            rtol=0.0,
            max_steps=limit,
            throw=False,
            acting=acting,
        )
        z, stats = found.value, found.stats
        steps, evaluations = steps + stats.steps, evaluations + stats.evaluations
        hidden = lost / (1 - found.lipschitz)
        error = _error(coordinates, z, stats.error_bound + hidden, event_dim)
        narrower = _within(coordinates, z, asked)
        missed = found.converged & (error > asked) & (narrower < CLOSER * within)
        if limit is not None:
            limit -= int(stats.steps.max()) if stats.steps.numel() else 0
        if not bool(missed.any()) or (limit is not None and limit < 1):
            break
        start, within = z, torch.minimum(within, narrower)
    value = coordinates.inverse(z.double()).to(y.dtype)
    finite = (_norm(value, event_dim) + error).isfinite()
    results = torch.where(finite, stats.results, int(Result.NON_FINITE))
    allowed = _error(coordinates, z, stats.tolerance + hidden, event_dim)
    figures = Stats(
        results=results,
        steps=steps,
        evaluations=evaluations,
        residual=stats.residual,
        error_bound=error,
        tolerance=torch.maximum(asked, allowed),
    )
    worst = Result(int(results.max())) if results.numel() else Result.CONVERGED
    solution = Solution(value, worst, figures, found.lipschitz)
    if throw and worst != Result.CONVERGED:
        raise InversionError(solution.describe(), solution)
    return z, solution


def _within(coordinates: Coordinates, z: Tensor, asked: Tensor) -> Tensor:
    """A radius around ``z`` whose image in the user's coordinates keeps to what is asked."""
    # What stretches more, the farther it reaches, stretches no more within this than assumed.
    most = asked / coordinates.stretch(z, torch.zeros_like(asked))
    return asked / coordinates.stretch(z, most)


def _error(coordinates: Coordinates, z: Tensor, radius: Tensor, event_dim: int) -> Tensor:
    """How far from its image what is within ``radius`` of ``z`` may be, the rounding of z
    itself included."""
    radius = radius + 4 * torch.finfo(z.dtype).eps * _norm(z, event_dim)
    return radius * coordinates.stretch(z, radius)


def _norm(v: Tensor, event_dim: int) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(v.dim() - event_dim), dim=-1)
