"""Newton's method."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...errors import ArgumentTypeError, check_instance
from ...operators import DENSE, DenseSolve, KrylovSolve, LinearSolve
from .base import Point, Problem, Solver, Step


@dataclass(frozen=True)
class Newton(Solver):
    """Newton's method: :math:`x' = x - (I + J)^{-1} r` with :math:`r = x + g(x) - y`.

    Convergence near the solution is quadratic: a few steps suffice, each with one linear solve. If
    a step does not bring the residual down enough, a fixed-point step from the same point replaces
    it, so Newton's method converges for every contraction.

    Arguments:
        linear_solve: the :class:`LinearSolve` with :math:`I + J`; by default the dense solve up to
            16 coordinates, which counts as D evaluations of ``g``, and Krylov's method above.
        rtol, atol, max_steps: as in :class:`FixedPoint`, with the same errors.

    Raises:
        ArgumentError, ArgumentTypeError: as :class:`FixedPoint`; ``linear_solve`` is no
            :class:`LinearSolve`.

    Example:
        >>> from pyro_iresnet import Newton, iresnet
        >>> transform = iresnet(2, solver=Newton())
    """

    linear_solve: LinearSolve | None = None

    linearizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear_solve is not None:
            check_instance(self.linear_solve, LinearSolve, "linear_solve", "DenseSolve()")

    def step(self, problem: Problem, point: Point, state: Any) -> Step:
        at = point.linearization
        if at is None:
            raise ArgumentTypeError("Expected point to hold the linearization of g; got none.")
        linear_solve = self.linear_solve
        if linear_solve is None:
            # An early step is far from the solution even if its equation is solved exactly: a
            # residual of 1 - L times the right-hand side is enough.
            linear_solve = DenseSolve() if at.event_size <= DENSE else KrylovSolve(rtol=1.0)
        residual = point.residual.reshape(at.value.shape)
        solved = linear_solve(
            at, residual, transpose=False, lipschitz=problem.lipschitz, throw=False
        )
        x = point.x - solved.value.reshape(point.x.shape)
        if solved.failed is not None:
            # The Jacobian exceeds its bound, and the fixed-point step will show it.
            x = torch.where(solved.failed[:, None], point.picard, x)
        return Step(x, state, solved.products)
