"""The inverse of a block in coordinates of its own, certified in the coordinates of the user."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._torch import disable_compiler, in_torch_func, refuse_forward_mode, refuse_transforms
from ..coordinates import CoordinateMap
from ..errors import InversionError, check_tensor
from ..operators import ContractionMap, default_rtol
from ..solution import Result, Solution, Stats
from .solve import checked_keywords, solve_map
from .solvers import Solver

# A radius is worth another solve if it is this much smaller than the last one.
CLOSER = 0.9


@disable_compiler("its number of steps depends on the data")
@torch.no_grad()
def solve_in(
    coordinates: CoordinateMap | None,
    g: ContractionMap,
    y: Tensor,
    event_dim: int,
    solver: Solver,
    *,
    then: Callable[[Tensor], Tensor] | None = None,
    slope: float = 1.0,
    x0: Tensor | None = None,
    context: Tensor | None = None,
    atol: float | Tensor | None = None,
    rtol: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> tuple[Tensor, Solution]:
    r"""Solve :math:`z + g(z) = \varphi(y)`, to a certified error of :math:`x = \varphi^{-1}(h(z))`.

    The tolerance of z is the tolerance of x, divided by the stretch of :math:`\varphi^{-1} \circ h`
    at z. Nonlinear coordinates stretch more at x than at y if the block shrinks. Samples that miss
    the tolerance for this reason go on from their last iterate, to the tolerance there. Returns z,
    and the solution in the user's coordinates; with ``throw``, :class:`InversionError` if a sample
    fails.

    Arguments:
        coordinates: :math:`\varphi`; None for the identity.
        g: the contraction with its acting weights.
        y: shape ``(*batch, *event)``.
        event_dim: the number of trailing dimensions of one event.
        solver: goes from one iterate to the next.
        then: ``h``; None for the identity.
        slope: a Lipschitz constant of ``h``.
        x0: the start of z, in the coordinates of x.
        context, atol, rtol, max_steps, throw: as in :func:`solve`, for x.
    """
    refuse_transforms("The inverse", y)
    # Forward mode of torch.func changes dtypes on the way, so the end of the solve is too late.
    if in_torch_func():
        refuse_forward_mode("The inverse", y)
    own = checked_keywords(y.shape[: y.dim() - event_dim], y, atol, rtol, max_steps, throw)
    if coordinates is None and then is None:
        solution = solve_map(g, y, event_dim, solver, x0=x0, context=context, **own)
        return solution.value, solution
    way = _Way(coordinates, then, slope)
    if x0 is not None:
        check_tensor(x0, tuple(y.shape[y.dim() - event_dim :]), y, "x0", of="y")
    norm = partial(torch.linalg.vector_norm, dim=tuple(range(-event_dim, 0)))
    size = norm(y)
    given = solver.atol if atol is None else own["atol"]
    relative = solver.rtol if rtol is None else own["rtol"]
    asked = given + (default_rtol(y.dtype) if relative is None else relative) * size
    # In float64, so that the solution keeps the digits that the coordinates would lose. The way
    # back and there again tells the loss that remains.
    precise = way.to(y.double())
    lost = norm(way.to(way.back(precise)) - precise).to(y.dtype)
    target = precise.to(y.dtype)
    start = None if x0 is None else way.to(x0)
    limit = solver.max_steps if max_steps is None else own["max_steps"]
    within = way.within(target, asked)
    steps = evaluations = torch.zeros_like(size, dtype=torch.int64)
    while True:
        found = solve_map(
            g,
            target,
            event_dim,
            solver,
            x0=start,
            context=context,
            atol=within.nan_to_num(0.0, 0.0),
            rtol=0.0,
            max_steps=limit,
            throw=False,
        )
        z, stats = found.value, found.stats
        steps, evaluations = steps + stats.steps, evaluations + stats.evaluations
        hidden = lost / (1 - found.lipschitz)
        rounding = 4 * torch.finfo(z.dtype).eps * norm(z)
        error = way.error(z, stats.error_bound + hidden, rounding)
        narrower = way.within(z, asked)
        missed = found.converged & (error > asked) & (narrower < CLOSER * within)
        if limit is not None:
            limit -= int(stats.steps.max()) if stats.steps.numel() else 0
        if not bool(missed.any()) or (limit is not None and limit < 1):
            break
        start, within = z, torch.minimum(within, narrower)
    value = way.back(way.after(z).double()).to(y.dtype)
    finite = (norm(value) + error).isfinite()
    # Only the limit of steps kept a missed sample from another solve.
    results = torch.where(missed, int(Result.MAX_STEPS), stats.results)
    results = torch.where(finite, results, int(Result.NON_FINITE))
    # The share of the tolerance that rounding adds to the radius that was asked for.
    radius = within.nan_to_num(0.0, 0.0)
    floor = (stats.tolerance - radius).clamp(min=0.0)
    ended = (error > asked) & ~missed
    radius = torch.where(ended, radius, torch.minimum(radius, narrower.nan_to_num(0.0, 0.0)))
    allowed = way.error(z, radius + floor + hidden, rounding)
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


class _Way:
    """The way from y into the coordinates, and from z to x; arguments as in :func:`solve_in`."""

    def __init__(
        self,
        coordinates: CoordinateMap | None,
        then: Callable[[Tensor], Tensor] | None,
        slope: float,
    ) -> None:
        self.coordinates, self.then, self.slope = coordinates, then, slope
        self.is_linear = coordinates is None or coordinates.is_linear
        # The stretch, if it is the same everywhere.
        self.constant: Tensor | None = None

    def to(self, y: Tensor) -> Tensor:
        return y if self.coordinates is None else self.coordinates(y)

    def back(self, z: Tensor) -> Tensor:
        return z if self.coordinates is None else self.coordinates.inverse(z)

    def after(self, z: Tensor) -> Tensor:
        return z if self.then is None else self.then(z)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        """Bound the stretch within ``radius`` of ``z``, shape ``(*batch,)``."""
        if self.constant is not None:
            return self.constant
        if self.coordinates is None:
            stretch = torch.full_like(radius, self.slope)
        else:
            # The place does not matter to linear coordinates.
            there = z if self.is_linear else self.after(z)
            stretch = self.slope * self.coordinates.stretch(there, self.slope * radius)
        if self.is_linear:
            self.constant = stretch
        return stretch

    def within(self, z: Tensor, asked: Tensor) -> Tensor:
        """Return a radius around ``z`` whose image in the user's coordinates keeps to ``asked``."""
        # A stretch that grows with the radius is smaller within this radius than assumed.
        most = asked / self.stretch(z, torch.zeros_like(asked))
        return most if self.is_linear else asked / self.stretch(z, most)

    def error(self, z: Tensor, radius: Tensor, rounding: Tensor) -> Tensor:
        """Bound the distance from the image of ``z``, within ``radius + rounding`` of ``z``."""
        radius = radius + rounding
        return radius * self.stretch(z, radius)
