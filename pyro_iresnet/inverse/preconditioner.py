"""An affine map near the block, the same for all samples: where to start, and how to step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..counter import fixed_normals
from ..errors import check_positive_int
from .base import Problem, norm


class Affine(NamedTuple):
    r"""The map :math:`x \mapsto A x + c`.

    Arguments:
        inverse: :math:`A^{-1}`, transposed, to multiply rows with; shape ``(D, D)``.
        offset: ``c``, shape ``(D,)``.
    """

    inverse: Tensor
    offset: Tensor

    def start(self, y: Tensor) -> Tensor:
        """The x with ``A x + c = y``, for rows; but y where c would drown it."""
        x = (y - self.offset) @ self.inverse
        drowned = norm(y) < 0.1 * norm(self.offset[None])
        return torch.where(drowned[:, None], y, x)

    def precondition(self, residual: Tensor) -> Tensor:
        r""":math:`A^{-1} r`, for rows."""
        return residual @ self.inverse


@dataclass(frozen=True)
class Preconditioner(ABC):
    """A way to find an affine map near :math:`x + g(x)`. To write one, define :meth:`fit`.

    Example:
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import AffineFit, Anderson, Preconditioner, iresnet
        >>> @dataclass(frozen=True)
        ... class SmallOnly(Preconditioner):
        ...     def fit(self, problem):
        ...         return AffineFit().fit(problem) if problem.y.shape[-1] <= 32 else None
        >>> transform = iresnet(64, solver=Anderson(preconditioner=SmallOnly()))
    """

    @abstractmethod
    def fit(self, problem: Problem) -> Affine | None:
        """The map, or None where there is none that pays.

        It must not depend on ``problem.y``: no sample may feel its neighbours.
        """


@dataclass(frozen=True)
class AffineFit(Preconditioner):
    r"""The mean of the block at standard normal points: :math:`A = I + \bar J`, :math:`c = \bar g`.

    :math:`\bar J` is the Jacobian with the mean slopes, :math:`\bar g` the mean value, over the
    same few points at every call: between ActNorms data are standardised, and elsewhere the
    safeguard of the solver stands behind it. :math:`\lVert \bar J \rVert \le L`, so that A is
    invertible. For vectors without context whose linearization is in closed form, unless a product
    with A costs more than ``g``. The points are evaluated once for each call of the inverse,
    whatever its batch; :class:`Stats` does not count them.

    Arguments:
        points: how many; pairs of opposite ones, so an odd number is one more.

    Raises:
        ArgumentError: fewer than 1 point.

    Example:
        >>> from pyro_iresnet import AffineFit, Anderson
        >>> solver = Anderson(preconditioner=AffineFit(points=256))
    """

    points: int = 64

    def __post_init__(self) -> None:
        check_positive_int(self.points, "points")

    def fit(self, problem: Problem) -> Affine | None:
        if problem.context is not None or problem.y.dim() != 2 or len(problem.y) == 0:
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


@dataclass(frozen=True)
class NoFit(Preconditioner):
    """None: start at y, and step by the residual itself.

    Example:
        >>> from pyro_iresnet import Anderson, NoFit
        >>> solver = Anderson(preconditioner=NoFit())
    """

    def fit(self, problem: Problem) -> None:
        return None
