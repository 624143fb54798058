"""An inverse in float64 whose work is done in float32."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..operators import ContractionMap, KrylovSolve, floor
from ..operators.krylov import Product
from ..operators.solve import COARSEST
from ..solution import Result
from .loop import iterate
from .solvers import AffinePreconditioner, Anderson
from .solvers.base import Point, Problem, Solver, Step, row_norm
from .solvers.preconditioner import Affine
from .stopping import Tolerance

# The fewest numbers in a batch that gain from float32: a small batch takes as long in any dtype.
PAYS = 4096
# Newton's steps before the solver goes on in float64.
CORRECTIONS = 2
# The largest number of products in a solve for Newton's step.
PRODUCTS = 40
# The end in float32, in units of the error that rounding leaves: the last digit costs the most.
ABOVE_FLOOR = 4
EPS = torch.finfo(torch.float32).eps
# The rounding of float64 in that of float32.
FINER = torch.finfo(torch.float64).eps / EPS


@dataclass(frozen=True)
class Single:
    """The contraction in float32, and a solver of float64 whose steps may be taken there."""

    g: ContractionMap
    solver: Anderson


def single_precision(problem: Problem, solver: Solver) -> Single | None:
    """Return the contraction of a problem in float64; None if float32 does not pay or fit."""
    if problem.y.numel() < PAYS or problem.context is not None:
        return None
    resolved = ABOVE_FLOOR * floor(torch.float32, problem.lipschitz) < COARSEST
    # A subclass of a user's may know float64 only.
    if type(solver) is not Anderson or not resolved:
        return None
    if type(solver.preconditioner) not in (AffinePreconditioner, type(None)):
        return None
    g = problem.g.to(torch.float32)
    return None if g is None else Single(g, solver)


def solve_mixed(
    problem: Problem, single: Single, tolerance: Tolerance
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Iterate in float32, then in float64 from there; return values, and figures by row.

    The first steps in float64 are Newton's, :math:`x' = x - (I + J)^{-1} (x + g(x) - y)` with the
    Jacobian in float32. A sample that float32 cannot hold starts at ``y`` in float64.
    """
    y, solver = problem.y, single.solver
    rough = replace(problem, g=single.g, y=y.float())
    affine = None if solver.preconditioner is None else solver.preconditioner.fit(rough)
    known = replace(solver, preconditioner=None if affine is None else _Known(affine=affine))
    asked = tolerance.atol + tolerance.rtol * row_norm(y)
    end = Tolerance(0.5 * asked.float(), 0.0, ABOVE_FLOOR * tolerance.floor / FINER)
    noise = single.g.rounding(rough.y.reshape(-1, *problem.event_shape))
    start, before = iterate(rough, None, known, end, None, noise)
    start, noise = start.double(), FINER * noise.double()
    held = (before["results"] == int(Result.CONVERGED)) & noise.isfinite()
    lost = torch.nonzero(~held).reshape(-1)
    if len(lost) > 0:
        there = y.index_select(0, lost)
        start[lost] = there
        noise[lost] = problem.g.rounding(there.reshape(-1, *problem.event_shape))
    precise = _Corrected(single=single, affine=affine, asked=asked)
    x, figures = iterate(problem, start, precise, tolerance, None, noise)
    for name in ("steps", "evaluations"):
        figures[name] += before[name]
    return x, figures


@dataclass(frozen=True, kw_only=True)
class _Known(AffinePreconditioner):
    """A map that is fitted already."""

    affine: Affine

    def fit(self, problem: Problem) -> Affine:
        return self.affine


@dataclass(frozen=True, kw_only=True)
class _Corrected(Solver):
    """Newton's steps with a Jacobian in float32, then the steps of another solver.

    Arguments:
        single: the contraction in float32, and the other solver.
        affine: an affine map near the block, in float32, or None.
        asked: the error that is small enough, shape ``(n,)``.
    """

    single: Single
    affine: Affine | None
    asked: Tensor

    @property
    def costly(self) -> bool:
        return True

    def init(self, problem: Problem, x0: Tensor | None) -> tuple[Tensor, "_Stage"]:
        return problem.y if x0 is None else x0, _Stage(self.asked)

    def step(self, problem: Problem, point: Point, state: "_Stage") -> Step:
        if state.taken == CORRECTIONS:
            inner = (
                self.single.solver.init(problem, point.x)[1] if state.inner is None else state.inner
            )
            step = self.single.solver.step(problem, point, inner)
            return step._replace(state=replace(state, inner=step.state))
        at = self.single.g.linearize(point.x.float().reshape(-1, *problem.event_shape))
        size = point.size.clamp(min=torch.finfo(point.size.dtype).tiny)
        # Half of the residual that the tolerance allows, since g is not linear.
        share = 0.5 * (1 - problem.lipschitz) * state.asked / size
        # No error is certified: the next residual of g tells how good the shift is.
        shift, products = KrylovSolve().approximate(
            Product(at.jacobian, at.event_shape),
            (point.residual / size[:, None]).float(),
            share.float().clamp(min=8 * EPS),
            PRODUCTS,
            None if self.affine is None else self.affine.precondition,
        )
        x = point.x - shift.double() * size[:, None]
        return Step(x, replace(state, taken=state.taken + 1), products)

    def learn(self, state: "_Stage", point: Point, tried: Point, accepted: Tensor) -> "_Stage":
        if state.inner is None:
            return state
        return replace(state, inner=self.single.solver.learn(state.inner, point, tried, accepted))

    def default_max_steps(self, ratio: float, lipschitz: float) -> int:
        return CORRECTIONS + self.single.solver.default_max_steps(ratio, lipschitz)


@dataclass(frozen=True)
class _Stage:
    """The errors that are small enough, the corrections so far, and the other solver's state."""

    asked: Tensor
    taken: int = 0
    inner: Any = None

    def select(self, index: Tensor) -> "_Stage":
        inner = None if self.inner is None else self.inner.select(index)
        return _Stage(self.asked.index_select(0, index), self.taken, inner)
