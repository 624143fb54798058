"""Newton's method."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import check_instance
from ..linear_solve import DENSE, DenseSolve, KrylovSolve, LinearSolve
from .base import Point, Problem, Solver, Step, per_sample


@dataclass(frozen=True)
class Newton(Solver):
    r"""Newton's method: :math:`x' = x - (I + J)^{-1} r` with :math:`r = x + g(x) - y`.

    Quadratic convergence near the solution: a few steps, each of which takes a linear solve with
    the Jacobian at x. Where a step does not bring the residual down enough, a fixed-point step
    follows from where it started, so that it converges for every contraction.

    Arguments:
        linear_solve: how to solve with :math:`I + J`; by default by the dense Jacobian up to 16
            coordinates, which counts as D evaluations of ``g``, and by Krylov's method above.
        rtol, atol, max_steps: as in :class:`FixedPoint`.

    Raises:
        ArgumentError, ArgumentTypeError: as :class:`FixedPoint`; a ``linear_solve`` that is none.

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
            raise TypeError("Newton steps from a point where g was linearized.")
        linear_solve = self.linear_solve
        if linear_solve is None:
            # An early step is far from exact, however exactly its equation is solved: a residual of
            # 1 - L times the right-hand side is enough.
            linear_solve = DenseSolve() if at.event_size <= DENSE else KrylovSolve(rtol=1.0)
        solved = linear_solve(
            at, point.residual, transpose=False, lipschitz=problem.lipschitz, throw=False
        )
        x = point.x - solved.value
        if solved.failed is not None:
            # A Jacobian beyond its bound: the fixed-point step will show it.
            x = torch.where(per_sample(solved.failed, x), point.banach, x)
        return Step(x, state, solved.products)
