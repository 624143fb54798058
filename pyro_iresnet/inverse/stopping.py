"""When a sample is done: its error is proven to be small enough, or nothing more can be done."""

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
    """When the error bound of a sample is small enough.

    Arguments:
        atol, rtol: what the caller asks; the first one number, or one for each sample.
        floor: what the arithmetic allows, relative to the larger of x and y.
    """

    atol: float | Tensor
    rtol: float
    floor: float


@dataclass(frozen=True)
class _Rows:
    """A record of tensors with one entry for each sample."""

    def select(self, index: Tensor) -> Self:
        """That of the samples ``index`` only."""
        return type(self)(*map(methodcaller("index_select", 0, index), vars(self).values()))


@dataclass(frozen=True)
class BatchState(_Rows):
    """What is known of each sample that is still at work.

    Arguments:
        rows: its place in the batch.
        y_norm: the norm of its ``y``.
        noise: how far rounding may move ``g`` where the solver starts.
        asked: the error that the caller allows.
        best: the iterate of the smallest residual so far.
        best_size: the norm of that residual.
        age: how many steps ago that was.
        evaluations: of ``g`` so far, products with its Jacobian among them.
        forced: whether its last proposal was refused, so that a fixed-point step is due.
        stretched: whether ``g`` stretched the last step beyond its bound.
        certified: whether ``best`` was within the tolerance one step ago.
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

    @classmethod
    def start(
        cls, point: Point, y_norm: Tensor, noise: Tensor, tolerance: Tolerance
    ) -> "BatchState":
        """Before the first step."""
        rows = torch.arange(len(point.x), device=point.x.device)
        zero, no = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
        asked = tolerance.atol + tolerance.rtol * y_norm
        infinite = torch.full_like(y_norm, torch.inf)
        return cls(rows, y_norm, noise, asked, point.x, infinite, zero, zero + 1, no, no, no)

    def seen(self, point: Point) -> "BatchState":
        """After an evaluation that was kept."""
        better = point.size < self.best_size
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
        """After an evaluation that may be kept or not."""
        forced = self.forced
        if solver.safeguarded:
            # Not a number is not smaller.
            forced = ~((tried.size <= share_kept(lipschitz) * point.size) | self.forced)
        return replace(
            self,
            evaluations=self.evaluations + (1 + products),
            forced=forced,
            stretched=_stretched(lipschitz, point, tried, verdict),
            certified=verdict.certified,
        )


@dataclass(frozen=True)
class StopDecision(_Rows):
    r"""Whether each sample is done, and why.

    With :math:`r = x + g(x) - y`, the fixed-point step from x is within
    :math:`L \lVert r \rVert / (1 - L)` of the solution, so that

    .. math:: \lVert x' - x^* \rVert
              \le \frac{L}{1 - L} \lVert r \rVert + \lVert x' - (x - r) \rVert

    for whatever :math:`x'` a solver proposes.

    Arguments:
        ended: whether it is.
        ahead: whether the iterate ahead is within the tolerance.
        ahead_bound: the certified error of that.
        certified: whether the best iterate is.
        scale: the larger of the norms of that and of y.
        rounding: how far rounding may move a residual there.
        asked: the error that is small enough.
        finite: whether all is.
    """

    ended: Tensor
    ahead: Tensor
    ahead_bound: Tensor
    certified: Tensor
    scale: Tensor
    rounding: Tensor
    asked: Tensor
    finite: Tensor

    @classmethod
    def of(
        cls,
        lipschitz: float,
        tolerance: Tolerance,
        point: Point,
        ahead: Tensor,
        samples: BatchState,
    ) -> "StopDecision":
        """On the samples at a point, with the iterate ``ahead`` of it."""
        scale = torch.maximum(row_norm(samples.best), samples.y_norm)
        asked = torch.maximum(samples.asked, tolerance.floor * scale)
        # On the way from the start g rounds at the size of what it adds up, x at most.
        limits = torch.finfo(scale.dtype)
        # An entry below the root of the smallest number has no square, and no part in a norm.
        lost = 2 * (limits.tiny * point.x[:1].numel()) ** 0.5
        rounding = samples.noise + 4 * limits.eps * scale + lost
        bound = point.size * (lipschitz / (1 - lipschitz))
        if ahead is not point.picard:
            # Else the difference is 0, and not worth a pass over memory.
            bound = bound + row_norm(ahead - point.picard)
        looks_ahead = bound <= asked
        certified = samples.best_size <= (1 - lipschitz) * asked
        finite = (point.size + asked).isfinite()
        # Certified twice without a better iterate ahead: no use to wait for one.
        ended = looks_ahead | (certified & samples.certified) | samples.stretched | ~finite
        ended |= samples.age >= PATIENCE
        return cls(ended, looks_ahead, bound, certified, scale, rounding, asked, finite)


@dataclass(frozen=True)
class Outcome(_Rows):
    """What is left of the samples that are done.

    Arguments:
        value: the iterate that is returned.
        results: the :class:`Result` of each.
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
        """Of samples whose last residual has the norm ``size``."""
        here = samples.best_size / (1 - lipschitz)
        floored = (samples.age >= PATIENCE) & (samples.best_size <= 2 * verdict.rounding)
        results = torch.full_like(samples.rows, Result.MAX_STEPS)
        results[verdict.ahead | verdict.certified | floored] = Result.CONVERGED
        results[samples.stretched] = Result.NOT_A_CONTRACTION
        # Last, since infinity is within a tolerance of infinity.
        results[~verdict.finite] = Result.NON_FINITE
        bound = torch.where(verdict.ahead, verdict.ahead_bound, here)
        # What was computed is a residual but for its rounding.
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
    """Where ``||g(a) - g(b)||`` exceeds the bound times ``||a - b||`` by more than rounding can."""
    slack = 16 * torch.finfo(a.x.dtype).eps ** 0.5
    apart = row_norm(b.x - a.x)
    resolved = apart > slack * (verdict.scale + a.size)
    excess = row_norm(b.picard - a.picard) - (lipschitz + slack) * apart
    return resolved & (excess > 4 * verdict.rounding)
