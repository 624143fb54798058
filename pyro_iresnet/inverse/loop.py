"""The loop that every solver runs in: sample by sample, until each has its certificate."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..solution import Result
from .base import Problem, Solver

# Steps without a smaller residual after which rounding, not the solver, decides.
PATIENCE = 10


@dataclass(frozen=True)
class Tolerance:
    """When the error bound of a sample is small enough."""

    atol: float
    rtol: float
    floor: float

    def at(self, x_norm: Tensor, y_norm: Tensor) -> Tensor:
        asked = self.atol + self.rtol * y_norm
        return torch.maximum(asked, self.floor * torch.maximum(x_norm, y_norm))

    def stalled_at(self, x_norm: Tensor, y_norm: Tensor) -> Tensor:
        """The error up to which a residual that no longer shrinks counts as rounding's doing.

        The hidden layers round too, at their own size; that of standardised data is about 1.
        """
        return 32 * self.floor * torch.maximum(x_norm, y_norm).clamp(min=1.0)


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


def iterate(
    problem: Problem, x: Tensor, solver: Solver, tolerance: Tolerance, limit: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Iterate until every sample is done or ``limit`` steps are: values, and figures by row."""
    report = _Report(x)
    rows = torch.arange(len(x), device=x.device)
    state = solver.init(problem, x)
    gx = problem.g(x, problem.context)
    y_norm = _norm(problem.y)
    best = _Best(x, torch.full_like(y_norm, math.inf), torch.zeros_like(rows))
    stretched = torch.zeros_like(rows, dtype=torch.bool)
    step = 0
    while True:
        residual = x + gx - problem.y
        residual_norm = _norm(residual)
        best = best.update(x, residual_norm)
        error_bound = best.residual / (1 - problem.lipschitz)
        sizes = _norm(best.x), y_norm
        allowed = tolerance.at(*sizes)
        if limit is None:
            # Where y is 0 the solution is about as large as the first residual, g(0).
            least = torch.maximum(allowed, tolerance.floor * residual_norm)
            limit = _limit(solver, error_bound / least, problem.lipschitz)
        stalled = best.age >= PATIENCE
        floored = stalled & (error_bound <= tolerance.stalled_at(*sizes))
        allowed = torch.where(floored, torch.maximum(allowed, error_bound), allowed)
        results = torch.full_like(rows, Result.MAX_STEPS)
        results[error_bound <= allowed] = Result.CONVERGED
        results[stretched] = Result.NOT_A_CONTRACTION
        # Last, since infinity is within a tolerance of infinity.
        results[~(residual_norm.isfinite() & allowed.isfinite())] = Result.NON_FINITE
        ended = (results != Result.MAX_STEPS) | stalled | (step >= limit)
        if bool(ended.any()):
            figures = (best.residual, error_bound, allowed)
            report.write(
                rows[ended], best.x[ended], results[ended], step, [f[ended] for f in figures]
            )
            kept = torch.nonzero(~ended).reshape(-1)
            rows, x, gx, residual = rows[kept], x[kept], gx[kept], residual[kept]
            problem, best, y_norm = problem.select(kept), best.select(kept), y_norm[kept]
            state = tuple(s[kept] for s in state)
        if len(rows) == 0:
            return report.value, report.figures
        new, state = solver.step(problem, x, residual, state)
        g_new = problem.g(new, problem.context)
        stretched = _stretched(problem, new - x, g_new - gx, x, gx)
        x, gx = new, g_new
        step += 1


@dataclass(frozen=True)
class _Best:
    """The iterate of the smallest residual so far, and how many steps ago that was."""

    x: Tensor
    residual: Tensor
    age: Tensor

    def update(self, x: Tensor, residual: Tensor) -> "_Best":
        better = residual < self.residual
        column = better.reshape(-1, *(1,) * (x.dim() - 1))
        return _Best(
            torch.where(column, x, self.x),
            torch.where(better, residual, self.residual),
            torch.where(better, 0, self.age + 1),
        )

    def select(self, index: Tensor) -> "_Best":
        return _Best(self.x[index], self.residual[index], self.age[index])


class _Report:
    """Where the samples leave their values and figures as they end."""

    def __init__(self, x: Tensor) -> None:
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        size = torch.zeros_like(_norm(x))
        self.value = x.clone()
        self.figures = {name: count.clone() for name in ("results", "steps", "evaluations")}
        self.figures |= {name: size.clone() for name in ("residual", "error_bound", "tolerance")}

    def write(
        self, rows: Tensor, x: Tensor, results: Tensor, step: int, sizes: list[Tensor]
    ) -> None:
        self.value[rows] = x
        self.figures["results"][rows] = results
        self.figures["steps"][rows] = step
        self.figures["evaluations"][rows] = step + 1
        for name, size in zip(("residual", "error_bound", "tolerance"), sizes, strict=True):
            self.figures[name][rows] = size


def _limit(solver: Solver, ratio: Tensor, lipschitz: float) -> int:
    """The solver's own number of steps for the worst ratio of error bound to tolerance."""
    ratio = ratio[ratio.isfinite()]
    worst = float(ratio.max()) if len(ratio) else 1.0
    # Beyond what theory says, room for what rounding costs at the floor.
    return solver.default_max_steps(worst, lipschitz) + 2 * PATIENCE


def _stretched(problem: Problem, dx: Tensor, dg: Tensor, x: Tensor, gx: Tensor) -> Tensor:
    """Where ``||g(a) - g(b)||`` exceeds the bound times ``||a - b||`` by more than rounding can."""
    slack = 16 * math.sqrt(torch.finfo(x.dtype).eps)
    dx_norm = _norm(dx)
    resolved = dx_norm > slack * torch.maximum(_norm(x), _norm(gx))
    return resolved & (_norm(dg) > (problem.lipschitz + slack) * dx_norm)
