"""Affine maps near the block, one map for all samples, to start and to precondition a solver."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._counter_rng import fixed_normals
from ...errors import check_positive_int, store_checked
from .base import Problem, row_norm


class Affine(NamedTuple):
    r"""The map :math:`x \mapsto A x + c`; ``inverse`` is :math:`A^{-1}`, transposed, ``(D, D)``."""

    inverse: Tensor
    offset: Tensor

    def start(self, y: Tensor) -> Tensor:
        """Return x with ``A x + c = y`` for each row; y itself if c is ten times larger than y."""
        x = (y - self.offset) @ self.inverse
        drowned = row_norm(y) < 0.1 * row_norm(self.offset[None])
        return torch.where(drowned[:, None], y, x)

    def precondition(self, residual: Tensor) -> Tensor:
        """Return :math:`A^{-1} r`, for rows."""
        return residual @ self.inverse


@dataclass(frozen=True)
class AffinePreconditioner:
    r"""The mean of the block at standard normal points: :math:`A = I + \bar J`, :math:`c = \bar g`.

    :math:`\bar J` is the Jacobian with the mean slopes, and :math:`\bar g` the mean value, over the
    same few points at every call. Standard normal points suit data between ActNorms, which are
    standardised; for other data the solver has its safeguard. :math:`\lVert \bar J \rVert \le L`,
    so A is invertible. The map is fitted for vectors without context whose linearization is in
    closed form, unless a product with A costs more than ``g``. Each call of the inverse evaluates
    the points once, whatever its batch; :class:`Stats` does not count these evaluations.

    Arguments:
        points: the number of points, at least 1; they are pairs of opposites, so an odd number gets
            one more.

    Raises:
        ArgumentError: fewer than 1 point.

    Example:
        >>> from pyro_iresnet import Anderson
        >>> from pyro_iresnet.solvers import AffinePreconditioner
        >>> solver = Anderson(preconditioner=AffinePreconditioner(points=256))
    """

    points: int = 64

    def __post_init__(self) -> None:
        store_checked(self, check_positive_int, "points")

    def fit(self, problem: Problem) -> Affine | None:
        """Return the map, or None if no map pays.

        The map depends on no value of ``problem.y``, so no sample feels its neighbours.
        """
        if problem.context is not None or len(problem.event_shape) != 1 or len(problem.y) == 0:
            return None
        if not problem.g.closed_form:
            return None
        if problem.y.dtype not in (torch.float32, torch.float64):
            return None
        size = problem.y.shape[1]
        half = fixed_normals(((self.points + 1) // 2, size), 0, problem.y)
        at = problem.g.linearize(torch.cat([half, -half]), None)
        cost = at.jacobian.cost()
        mean = at.jacobian.mean() if cost is not None and size * size <= cost else None
        if mean is None:
            return None
        eye = torch.eye(size, dtype=mean.dtype, device=mean.device)
        inverse, failed = torch.linalg.inv_ex(eye + mean)
        if bool(failed) or not bool(inverse.isfinite().all()):
            return None
        return Affine(inverse.mT.contiguous(), at.value.mean(0))
