"""The result of a solve: ``Solution(value, result, stats)``."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Result(IntEnum):
    """The outcome of the solve of one sample, in order of severity.

    ``message`` gives the observation, the usual cause, and the remedy.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.solvers import Result, solve
        >>> solution = solve(DenseContraction(2), torch.tensor([[1.0, torch.nan]]), throw=False)
        >>> solution.result is Result.NON_FINITE
        True
    """

    CONVERGED = 0, "The inverse reached the tolerance."
    MAX_STEPS = (
        1,
        "The inverse did not reach the tolerance. The contraction is probably close to "
        "Lipschitz 1, or the tolerance below what the dtype can resolve. Raise max_steps or rtol, "
        "lower lipschitz, or use Newton() or float64.",
    )
    NON_FINITE = (
        2,
        "The inverse met NaN or infinity. y or the context holds one, is so large that its square "
        "overflows, or the network overflows on the way. Check y, context, x0 and the parameters, "
        "or take float64.",
    )
    NOT_A_CONTRACTION = (
        3,
        "g stretched a pair of points by more than its Lipschitz bound. The bound given with it "
        "is wrong. Correct the bound, or constrain the network.",
    )

    message: str

    def __new__(cls, value: int, message: str) -> "Result":
        member = int.__new__(cls, value)
        member._value_ = value
        member.message = message
        return member


@dataclass(frozen=True)
class Stats:
    """Figures of a solve, one entry per sample; each has the batch shape of ``y``.

    Arguments:
        results: the :class:`Result` of each sample, as int64.
        steps: the number of solver steps after which ``g`` was evaluated, in any dtype.
        evaluations: evaluations of ``g`` in any dtype; a product with its Jacobian counts as one.
        residual: ``||x + g(x) - y||`` at the point of the certificate: the returned ``x``, or the
            iterate before it.
        error_bound: certified bound of ``||x - x*||`` for the returned ``x``, rounding included.
        tolerance: the bound at which the sample counts as done: the requested tolerance or, if
            larger, the floor of the arithmetic; rounding included.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.solvers import solve
        >>> stats = solve(DenseContraction(2), torch.ones(4, 2)).stats
        >>> bool((stats.error_bound <= stats.tolerance).all()), stats.steps.shape
        (True, torch.Size([4]))
    """

    results: Tensor
    steps: Tensor
    evaluations: Tensor
    residual: Tensor
    error_bound: Tensor
    tolerance: Tensor


@dataclass(frozen=True)
class Solution:
    """The result of a solve.

    Arguments:
        value: the best ``x`` found, shape ``(*batch, *event)``.
        result: the worst :class:`Result` over the batch.
        stats: the :class:`Stats` per sample.
        lipschitz: the proven bound of ``Lip(g)`` that the certificate uses.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.solvers import solve
        >>> solution = solve(DenseContraction(2), torch.ones(4, 2))
        >>> solution.result.name, solution.converged.tolist()
        ('CONVERGED', [True, True, True, True])
    """

    value: Tensor
    result: Result
    stats: Stats
    lipschitz: float

    @property
    def converged(self) -> Tensor:
        """Return the mask of the samples that reached the tolerance, shape ``(*batch,)``."""
        return self.stats.results == int(Result.CONVERGED)

    def describe(self) -> str:
        """Describe the result: the samples concerned, their errors, and the remedy."""
        stats = self.stats
        such = stats.results.reshape(-1) == int(self.result)
        if self.result is Result.CONVERGED:
            parts = [f"{such.numel()} samples"]
        else:
            rows = torch.nonzero(stats.results == int(self.result))[:5].tolist()
            where = [row[0] if len(row) == 1 else tuple(row) for row in rows]
            parts = [f"{int(such.sum())} of {such.numel()} samples, first at {where}"]
        if such.any() and self.result is not Result.NON_FINITE:
            steps = int(stats.steps.reshape(-1)[such].max())
            worst = int(torch.where(such, stats.error_bound.reshape(-1), -1.0).argmax())
            bound = float(stats.error_bound.reshape(-1)[worst])
            residual = float(stats.residual.reshape(-1)[worst])
            tolerance = float(stats.tolerance.reshape(-1)[worst])
            parts.append(
                f"{steps} steps; worst error bound {bound:.2e} where the tolerance is "
                f"{tolerance:.2e} (both with the error that rounding may hide); residual "
                f"{residual:.1e}"
            )
        for other in Result:
            count = int((stats.results == int(other)).sum())
            if count and other not in (Result.CONVERGED, self.result):
                parts.append(f"{count} more ended as {other.name}")
        return f"{self.result.message} ({'; '.join(parts)}.)"
