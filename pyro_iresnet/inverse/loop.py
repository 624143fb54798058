"""The loop that runs a solver, sample by sample, until each has its certificate."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..operators.krylov import KEPT
from .solvers.base import Point, Problem, Solver, Step, row_norm
from .stopping import PATIENCE, BatchState, Outcome, StopDecision, Tolerance


def iterate(
    problem: Problem,
    x0: Tensor | None,
    solver: Solver,
    tolerance: Tolerance,
    limit: int | None,
    noise: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Iterate until all samples are done, or ``limit`` steps; return values, and figures by row.

    ``noise`` is the rounding of ``g`` by row; by default as ``g`` estimates it at the start.
    """
    x, state = solver.init(problem, x0)
    report = _Report(x)
    if len(x) == 0:
        return report.value, report.figures
    point = problem.at(x, linearized=solver.linearizes)
    if noise is None:
        noise = problem.g.rounding(x.reshape(-1, *problem.event_shape), problem.context)
    samples = BatchState.start(point, row_norm(problem.y), noise, tolerance)
    taken, at_work, verdict, costly = 0, len(x), None, solver.costly
    while True:
        samples = samples.seen(point)
        # The end of a step that costs no evaluation is certified before it is tried.
        ahead = Step(point.picard, state)
        if not costly:
            ahead = _step(problem, solver, point, state, samples.forced)
        if verdict is None or taken == limit or not verdict.still_holds(samples):
            verdict = StopDecision.of(problem.lipschitz, tolerance, point, ahead.x, samples)
            if limit is None:
                limit = _limit(solver, problem.lipschitz, tolerance, point, verdict)
            ended = verdict.ended if taken < limit else torch.ones_like(verdict.ended)
            index = torch.nonzero(ended & ~samples.done).reshape(-1)
            if len(index) > 0:
                end = Outcome.of(
                    problem.lipschitz,
                    point.size.index_select(0, index),
                    ahead.x.index_select(0, index),
                    samples.select(index),
                    verdict.select(index),
                )
                report.write(samples.rows.index_select(0, index), end, taken)
                at_work -= len(index)
                if at_work == 0:
                    return report.value, report.figures
                samples = replace(samples, done=samples.done | ended)
            left = at_work / len(samples.rows)
            if left <= KEPT or (costly and left < 1):
                kept = torch.nonzero(~samples.done).reshape(-1)
                problem, point = problem.select(kept), point.select(kept)
                samples, verdict = samples.select(kept), verdict.select(kept)
                ahead = Step(ahead.x.index_select(0, kept), ahead.state.select(kept))
        if costly:
            ahead = _step(problem, solver, point, ahead.state, samples.forced)
        tried = problem.at(ahead.x, linearized=solver.linearizes)
        samples = samples.tried(problem.lipschitz, solver, point, tried, verdict, ahead.products)
        refused = samples.forced
        state = solver.learn(ahead.state, point, tried, ~refused)
        point = tried.unless(refused, point) if bool(refused.any()) else tried
        taken += 1


def _step(problem: Problem, solver: Solver, point: Point, state: Any, forced: Tensor) -> Step:
    """Return the solver's step; for samples whose last step was refused, the fixed-point step."""
    step = solver.step(problem, point, state)
    if not solver.safeguarded or not bool(forced.any()):
        return step
    return step._replace(x=torch.where(forced[:, None], point.picard, step.x))


class _Report:
    """The values and figures of all samples, written as the samples end."""

    def __init__(self, x: Tensor) -> None:
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        size = x.new_zeros(len(x))
        self.value = x.clone()
        self.figures = {name: count.clone() for name in ("results", "steps", "evaluations")}
        self.figures |= {name: size.clone() for name in ("residual", "error_bound", "tolerance")}

    def write(self, rows: Tensor, end: Outcome, taken: int) -> None:
        self.value[rows] = end.value
        self.figures["steps"][rows] = taken
        for name in ("results", "evaluations", "residual", "error_bound", "tolerance"):
            self.figures[name][rows] = getattr(end, name)


def _limit(
    solver: Solver, lipschitz: float, tolerance: Tolerance, point: Point, verdict: StopDecision
) -> int:
    """Return the solver's own number of steps for the worst ratio of error bound to tolerance."""
    # At y = 0 the solution is about as large as the first residual, g(0).
    least = torch.maximum(verdict.asked, tolerance.floor * point.size)
    ratio = point.size / (1 - lipschitz) / least
    ratio = ratio[ratio.isfinite()]
    worst = float(ratio.max()) if len(ratio) else 1.0
    # The steps of the theory, and some for rounding at the floor.
    return solver.default_max_steps(worst, lipschitz) + 2 * PATIENCE
