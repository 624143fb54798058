"""Anderson acceleration of the fixed-point iteration."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..._torch import COARSE
from ...errors import ArgumentTypeError, check_instance, check_positive_int, store_checked
from .base import Point, Problem, Solver, Step, row_norm
from .preconditioner import Affine, AffinePreconditioner

# The number of small systems that LAPACK solves as fast as an elimination for all at once.
FEW = 1000


@dataclass(frozen=True)
class Anderson(Solver):
    r"""Anderson acceleration: a step from the best combination of the last iterates.

    With :math:`r = A^{-1} (x + g(x) - y)` and the differences :math:`\Delta x_i, \Delta r_i` of the
    last ``history`` steps,

    .. math:: x' = x - r - \sum_i \gamma_i\,(\Delta x_i - \Delta r_i), \qquad
              \gamma = \arg\min \big\lVert r - \textstyle\sum_i \gamma_i \Delta r_i \big\rVert

    for each sample by itself. The preconditioner gives the matrix A; without a preconditioner, A is
    the identity. For an affine ``g`` this is GMRES, which ends after at most D steps. A step takes
    one evaluation of ``g``. If a step does not bring the residual down enough, a fixed-point step
    from the same point replaces it, so Anderson acceleration converges for every contraction.

    Anderson acceleration is the default of every block: no other solver is as exact in less time,
    in 2 and in 64 dimensions (``benchmarks/run/inverse.py``). :class:`Newton` is as fast for a
    handful of samples, and takes the fewest steps if a block is close to Lipschitz 1.

    Arguments:
        history: the number of differences to combine, at least 1; never more than coordinates.
        preconditioner: an :class:`AffinePreconditioner`, which also gives the start, or None.
        rtol, atol, max_steps: as in :class:`FixedPoint`, with the same errors.

    Raises:
        ArgumentError, ArgumentTypeError: as :class:`FixedPoint`; ``history`` is below 1;
            ``preconditioner`` is neither an :class:`AffinePreconditioner` nor None.

    References:
        Iterative Procedures for Nonlinear Integral Equations (Anderson, 1965); Anderson
        Acceleration for Fixed-Point Iterations (Walker and Ni, 2011).

    Example:
        >>> from pyro_iresnet import Anderson, iresnet
        >>> transform = iresnet(64, solver=Anderson(history=3))
    """

    history: int = 5
    preconditioner: AffinePreconditioner | None = AffinePreconditioner()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        super().__post_init__()
        store_checked(self, check_positive_int, "history")
        if self.preconditioner is not None:
            example = "AffinePreconditioner()"
            check_instance(self.preconditioner, AffinePreconditioner, "preconditioner", example)

    def init(self, problem: Problem, x0: Tensor | None) -> tuple[Tensor, "_State"]:
        affine = None if self.preconditioner is None else self.preconditioner.fit(problem)
        x = x0
        if x is None:
            x = problem.y if affine is None else affine.start(problem.y)
        return x, _State(affine, None, _History.empty(x, self.history))

    def step(self, problem: Problem, point: Point, state: "_State") -> Step:
        r = state.mixed(point.residual) if state.r is None else state.r
        x = point.x - r
        state.history.subtract_shift(x, r)
        return Step(x, replace(state, r=r))

    def learn(self, state: "_State", point: Point, tried: Point, accepted: Tensor) -> "_State":
        before, r = state.r, state.mixed(tried.residual)
        if before is None:
            raise ArgumentTypeError(
                "Expected state to be that of a step; got the state of the start."
            )
        history = state.history.extended(r - before, tried.x - point.x, accepted)
        if not bool(accepted.all()):
            r = torch.where(accepted[:, None], r, before)
        return replace(state, r=r, history=history)


@dataclass(frozen=True)
class _State:
    """The preconditioner's map, the preconditioned residual (None if unknown), the history."""

    affine: Affine | None
    r: Tensor | None
    history: "_History"

    def mixed(self, residual: Tensor) -> Tensor:
        """Return the preconditioned residual."""
        return residual if self.affine is None else self.affine.precondition(residual)

    def select(self, index: Tensor) -> "_State":
        r = None if self.r is None else self.r.index_select(0, index)
        return _State(self.affine, r, self.history.select(index))


@dataclass(frozen=True)
class _History:
    r"""The last differences, each scaled to a change of the residual of norm 1.

    All tensors but ``scale`` are written in place: a history serves one step.

    Arguments:
        room: the changes of the residual, 0 where a step was refused, and behind them the shifts
            :math:`\Delta x - \Delta r`; shape ``(2, slots, n, D)``.
        gram: the inner products of the changes, shape ``(slots, slots, n)``; the next residual
            fills in the row of the last change.
        along: the inner products of the changes and the last residual, shape ``(slots, n)``.
        scale: the factor of the last change, shape ``(n,)``.
        count: the number of differences so far; a new difference replaces the oldest one.
    """

    room: Tensor
    gram: Tensor
    along: Tensor
    scale: Tensor
    count: int

    @classmethod
    def empty(cls, x: Tensor, history: int) -> "_History":
        n, size = x.shape
        slots = min(history, size)
        # A little damping, since changes may be nearly parallel.
        damped = 1 + 64 * torch.finfo(x.dtype).eps
        gram = damped * torch.eye(slots, dtype=x.dtype, device=x.device)
        return cls(
            room=x.new_empty(2, slots, n, size),
            gram=gram[..., None].repeat(1, 1, n),
            along=x.new_zeros(slots, n),
            scale=x.new_zeros(n),
            count=0,
        )

    def subtract_shift(self, x: Tensor, residual: Tensor) -> None:
        """Turn the fixed-point step ``x`` into that of the best combination, in place."""
        slots = len(self.along)
        used, last = min(self.count, slots), (self.count - 1) % slots
        if used == 0:
            return
        along = (self.room[0, :used] * residual).sum(2)
        # The last change is the scaled difference of this residual and the one before. So its inner
        # products with the other changes are the differences of ``along``, with the same scale.
        with_last = (along - self.along[:used]) * self.scale
        with_last[last] = self.gram[last, last]
        self.gram[last, :used] = with_last
        self.gram[:used, last] = with_last
        self.along[:used] = along
        weights = _solve(self.gram[:used, :used], along)[..., None]
        for weight, shift in zip(weights.unbind(), self.room[1].unbind(), strict=False):
            x.addcmul_(weight, shift, value=-1)

    def extended(self, change: Tensor, move: Tensor, accepted: Tensor) -> "_History":
        """Add a difference, for the samples that accepted the step."""
        size = row_norm(change)
        usable = accepted & (size > 0)
        scale = torch.where(usable, 1 / size, 0.0)
        slot = self.count % len(self.along)
        change = self.room[0, slot].copy_(change).mul_(scale[:, None])
        shift = self.room[1, slot].copy_(move).mul_(scale[:, None]).sub_(change)
        if not bool(usable.all()):
            # A refused step may not be finite.
            for v in (change, shift):
                v.masked_fill_(~usable[:, None], 0.0)
        return replace(self, scale=scale, count=self.count + 1)

    def select(self, index: Tensor) -> "_History":
        return replace(
            self,
            room=self.room.index_select(2, index),
            gram=self.gram.index_select(2, index),
            along=self.along.index_select(1, index),
            scale=self.scale.index_select(0, index),
        )


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve ``a x = b`` for small positive definite matrices.

    Shapes are ``(side, side, n)`` and ``(side, n)``. LAPACK takes the matrices one by one, so
    elimination for all at once is faster for many.
    """
    side = len(b)
    if b.shape[1] <= FEW and side > 1 and b.dtype not in COARSE:
        return torch.linalg.solve_ex(a.permute(2, 0, 1), b.T).result.T
    both = torch.cat([a, b[:, None]], 1)
    for i in range(side - 1):
        factors = both[i + 1 :, i, None] / both[i, i]
        both[i + 1 :, i + 1 :].addcmul_(factors, both[i, i + 1 :], value=-1)
    x = both[:, side]
    for i in reversed(range(side)):
        x[i] /= both[i, i]
        x[:i].addcmul_(both[:i, i], x[i], value=-1)
    return x
