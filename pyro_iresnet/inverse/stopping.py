"""The end of a sample: its error is proven to be small enough, or no step can make it smaller."""

from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Self

import torch
from torch import Tensor

from ..solution import Result
from .solvers.base import Point, Solver, row_norm, share_kept

# Steps without a smaller residual after which rounding, not the solver, decides.
PATIENCE = 10


@dataclass(frozen=True)
class Tolerance:
    """The error bounds that are small enough.

    Arguments:
        atol, rtol: the tolerances of the caller; ``atol`` is one number, or one for each sample.
        floor: the error that rounding leaves, relative to the larger of x and y.
    """

    atol: float | Tensor
    rtol: float
    floor: float


@dataclass(frozen=True)
class _Rows:
    """A record of tensors with one entry for each sample."""

    def select(self, index: Tensor) -> Self:
        """Return the record of the samples ``index`` only."""
        return type(self)(*map(methodcaller("index_select", 0, index), vars(self).values()))


@dataclass(frozen=True)
class BatchState(_Rows):
    """The samples still at work, one entry for each.

    Arguments:
        rows: the place in the batch.
        y_norm: the norm of ``y``.
        noise: an estimate of the rounding of ``g`` at the start of the solver.
        asked: the error that the caller allows.
        best, best_size: the iterate with the smallest residual so far, and the norm of this
            residual.
        age: the number of steps since ``best``.
        evaluations: the number of evaluations of ``g`` and of products with its Jacobian.
        forced: True if the last proposal was refused, so that a fixed-point step is due.
        stretched: True if ``g`` stretched the last step beyond its bound.
        certified: True if ``best`` was within the tolerance one step ago.
        done: True if the sample has ended, and waits to leave the batch.
    """

    rows: Tensor
    y_norm: Tensor
    noise: Tensor
    asked: Tensor
    best: Tensor
    best_size: Tensor
    age: Tensor
    evaluations: Tensor
    forced: Tensor
    stretched: Tensor
    certified: Tensor
    done: Tensor

    @classmethod
    def start(
        cls, point: Point, y_norm: Tensor, noise: Tensor, tolerance: Tolerance
    ) -> "BatchState":
        """Make the state before the first step."""
        rows = torch.arange(len(point.x), device=point.x.device)
        zero, no = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
        asked = tolerance.atol + tolerance.rtol * y_norm
        infinite = torch.full_like(y_norm, torch.inf)
        return cls(rows, y_norm, noise, asked, point.x, infinite, zero, zero + 1, no, no, no, no)

    def seen(self, point: Point) -> "BatchState":
        """Return the state after an evaluation that was kept."""
        better = (point.size < self.best_size) | self.done
        if bool(better.all()):
            return replace(self, best=point.x, best_size=point.size, age=torch.zeros_like(self.age))
        return replace(
            self,
            best=torch.where(better[:, None], point.x, self.best),
            best_size=torch.where(better, point.size, self.best_size),
            age=torch.where(better, 0, self.age + 1),
        )

    def tried(
        self,
        lipschitz: float,
        solver: Solver,
        point: Point,
        tried: Point,
        verdict: "StopDecision",
        products: Tensor | int,
    ) -> "BatchState":
        """Return the state after an evaluation that may be kept or refused."""
        forced = self.forced
        if solver.safeguarded:
            # NaN compares as False, so a NaN is refused.
            enough = tried.size <= share_kept(lipschitz) * point.size
            forced = ~(enough | self.forced | self.done)
        return replace(
            self,
            evaluations=self.evaluations + (1 + products),
            forced=forced,
            stretched=_stretched(lipschitz, point, tried, verdict),
            certified=verdict.certified,
        )


@dataclass(frozen=True)
class StopDecision(_Rows):
    r"""The samples that are done, and the reasons.

    With :math:`r = x + g(x) - y`, the fixed-point step from x is within
    :math:`L \lVert r \rVert / (1 - L)` of the solution, so that for every proposal :math:`x'` of a
    solver

    .. math:: \lVert x' - x^* \rVert
              \le \frac{L}{1 - L} \lVert r \rVert + \lVert x' - (x - r) \rVert

    Arguments:
        ended: True if the sample is done.
        ahead, ahead_bound: True if the next iterate is within the tolerance, and its certified
            error.
        certified: True if the best iterate is within the tolerance.
        scale: the larger of the norms of the best iterate and of y.
        rounding: an estimate of the rounding of a residual there.
        asked: the error that is small enough.
        finite: True if all figures are finite.
        reach: the norm of a residual above which no later step can end the sample, unless a
            residual grows.
    """

    ended: Tensor
    ahead: Tensor
    ahead_bound: Tensor
    certified: Tensor
    scale: Tensor
    rounding: Tensor
    asked: Tensor
    finite: Tensor
    reach: Tensor

    @classmethod
    def of(
        cls,
        lipschitz: float,
        tolerance: Tolerance,
        point: Point,
        ahead: Tensor,
        samples: BatchState,
    ) -> "StopDecision":
        """Judge the samples at a point with the next iterate ``ahead``."""
        scale = torch.maximum(row_norm(samples.best), samples.y_norm)
        asked = torch.maximum(samples.asked, tolerance.floor * scale)
        # On the way from the start, g rounds terms no larger than x.
        limits = torch.finfo(scale.dtype)
        # An entry below the root of the smallest number has no square, and so no part in a norm.
        lost = 2 * (limits.tiny * point.x[:1].numel()) ** 0.5
        rounding = samples.noise + 4 * limits.eps * scale + lost
        bound = point.size * (lipschitz / (1 - lipschitz))
        if ahead is not point.picard:
            # Else the difference is 0, and not worth a pass over memory.
            bound = bound + row_norm(ahead - point.picard)
        looks_ahead = bound <= asked
        certified = samples.best_size <= (1 - lipschitz) * asked
        finite = (point.size + asked).isfinite()
        # Certified twice without a better iterate ahead: another step would not help.
        ended = looks_ahead | (certified & samples.certified) | samples.stretched | ~finite
        ended |= samples.age >= PATIENCE
        # A better iterate is within the sum of two error bounds of the best one.
        later = scale + samples.best_size * (2 / (1 - lipschitz))
        most = torch.maximum(samples.asked, tolerance.floor * later)
        reach = most * ((1 - lipschitz) / max(lipschitz, limits.tiny))
        return cls(ended, looks_ahead, bound, certified, scale, rounding, asked, finite, reach)

    def still_holds(self, samples: BatchState) -> bool:
        """Return True if no sample can have come to its end since."""
        far = (samples.best_size > self.reach) & (samples.age == 0) & ~samples.stretched
        return bool((far | samples.done).all())


@dataclass(frozen=True)
class Outcome(_Rows):
    """The final figures of samples that are done.

    Arguments:
        value: the returned iterate.
        results: the :class:`Result` of each sample.
        evaluations, residual, error_bound, tolerance: as in :class:`Stats`.
    """

    value: Tensor
    results: Tensor
    evaluations: Tensor
    residual: Tensor
    error_bound: Tensor
    tolerance: Tensor

    @classmethod
    def of(
        cls,
        lipschitz: float,
        size: Tensor,
        ahead: Tensor,
        samples: BatchState,
        verdict: StopDecision,
    ) -> "Outcome":
        """Make the figures of samples whose last residual has the norm ``size``."""
        here = samples.best_size / (1 - lipschitz)
        floored = (samples.age >= PATIENCE) & (samples.best_size <= 2 * verdict.rounding)
        results = torch.full_like(samples.rows, Result.MAX_STEPS)
        results[verdict.ahead | verdict.certified | floored] = Result.CONVERGED
        results[samples.stretched] = Result.NOT_A_CONTRACTION
        # Last, since infinity is within a tolerance of infinity.
        results[~verdict.finite] = Result.NON_FINITE
        bound = torch.where(verdict.ahead, verdict.ahead_bound, here)
        # Rounding moved the computed residual by up to this much.
        hidden = verdict.rounding / (1 - lipschitz)
        return cls(
            value=torch.where(verdict.ahead[:, None], ahead, samples.best),
            results=results,
            evaluations=samples.evaluations,
            residual=torch.where(verdict.ahead, size, samples.best_size),
            error_bound=bound + hidden,
            tolerance=torch.where(floored, torch.maximum(verdict.asked, bound), verdict.asked)
            + hidden,
        )


def _stretched(lipschitz: float, a: Point, b: Point, verdict: StopDecision) -> Tensor:
    """Mark samples with ``||g(a) - g(b)||`` above the bound of ``||a - b||``, beyond rounding."""
    slack = 16 * torch.finfo(a.x.dtype).eps ** 0.5
    apart = row_norm(b.x - a.x)
    resolved = apart > slack * (verdict.scale + a.size)
    if not bool(resolved.any()):
        return resolved
    excess = row_norm(b.picard - a.picard) - (lipschitz + slack) * apart
    return resolved & (excess > 4 * verdict.rounding)
