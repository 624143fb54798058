"""The loop that runs a solver, sample by sample, until each has its certificate."""

from typing import Any

import torch
from torch import Tensor

from .solvers.base import Point, Problem, Solver, Step, row_norm
from .stopping import PATIENCE, BatchState, Outcome, StopDecision, Tolerance


def iterate(
    problem: Problem, x0: Tensor | None, solver: Solver, tolerance: Tolerance, limit: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Iterate until all samples are done, or ``limit`` steps; return values, and figures by row."""
    x, state = solver.init(problem, x0)
    report = _Report(x)
    if len(x) == 0:
        return report.value, report.figures
    point = problem.at(x, linearized=solver.linearizes)
    noise = problem.g.rounding(x.reshape(-1, *problem.event_shape), problem.context)
    samples = BatchState.start(point, row_norm(problem.y), noise, tolerance)
    taken = 0
    while True:
        samples = samples.seen(point)
        # A step without a Jacobian costs no evaluation, so its end is certified before it is tried.
        ahead = Step(point.picard, state)
        if not solver.linearizes:
            ahead = _step(problem, solver, point, state, samples.forced)
        verdict = StopDecision.of(problem.lipschitz, tolerance, point, ahead.x, samples)
        if limit is None:
            limit = _limit(solver, problem.lipschitz, tolerance, point, verdict)
        ended = verdict.ended if taken < limit else torch.ones_like(verdict.ended)
        if bool(ended.any()):
            done = torch.nonzero(ended).reshape(-1)
            end = Outcome.of(
                problem.lipschitz,
                point.size.index_select(0, done),
                ahead.x.index_select(0, done),
                samples.select(done),
                verdict.select(done),
            )
            report.write(samples.rows.index_select(0, done), end, taken)
            kept = torch.nonzero(~ended).reshape(-1)
            if len(kept) == 0:
                return report.value, report.figures
            problem, point = problem.select(kept), point.select(kept)
            samples, verdict = samples.select(kept), verdict.select(kept)
            ahead = Step(ahead.x.index_select(0, kept), ahead.state.select(kept))
        if solver.linearizes:
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
