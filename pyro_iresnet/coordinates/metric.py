r"""Learned metrics: norms other than the Euclidean one in which ``g`` contracts.

With an invertible matrix S,

.. math:: y = x + S\, g(S^{-1} x)

is invertible whatever S is, since :math:`S^{-1} y = z + g(z)` with :math:`z = S^{-1} x`; its
log-determinant is that of :math:`I + J_g(z)`. In ``x`` the map :math:`S \circ g \circ S^{-1}` may
stretch by up to :math:`L` times the condition of S, so that the bound costs less where coordinates
differ in what they do to each other. Where S grows without limit from one coordinate to the next,
``g`` is bound along the diagonal of its Jacobian only, as that of an autoregressive flow is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import check_not_negative
from .base import Coordinates, channels_of, over_channels


@dataclass(frozen=True)
class Metric(ABC):
    """How ``S`` is learned: a strategy, which holds no parameters.

    To write one, define :meth:`build`.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Diagonal
        >>> coordinates = Diagonal(spread=0.0).build((3,))
        >>> coordinates(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    @abstractmethod
    def build(self, event_shape: tuple[int, ...]) -> Coordinates | None:
        """The coordinates :math:`S^{-1} x` with parameters of their own; None for the identity.

        Arguments:
            event_shape: with -1 for a size that may vary. Of an image the channels are scaled.
        """


@dataclass(frozen=True)
class Identity(Metric):
    """The Euclidean metric: nothing is learned.

    Example:
        >>> from pyro_iresnet import Identity, iresnet
        >>> iresnet(3, metric=Identity()).block.coordinates is None
        True
    """

    def build(self, event_shape: tuple[int, ...]) -> Coordinates | None:
        return None


@dataclass(frozen=True)
class Diagonal(Metric):
    r"""A positive scale for each coordinate (each channel of an image), :math:`S = e^{s}`.

    Arguments:
        spread: the standard deviation of the random start of ``s``. Blocks that start with
            different metrics take up different directions first; 0 starts at the identity.

    Raises:
        ArgumentError, ArgumentTypeError: ``spread`` is no number of at least 0.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, Diagonal, ResidualBlock
        >>> block = ResidualBlock(DenseContraction(3), metric=Diagonal())
        >>> block.coordinates.log_scale.shape
        torch.Size([3])
    """

    spread: float = 0.5

    def __post_init__(self) -> None:
        check_not_negative(self.spread, "spread")

    def build(self, event_shape: tuple[int, ...]) -> Coordinates | None:
        return DiagonalMetric(channels_of(event_shape), len(event_shape), self.spread)


@dataclass(frozen=True)
class Triangular(Metric):
    r"""A lower-triangular S with a positive diagonal, :math:`S = (I + N)\, e^{s}`.

    :math:`N` is strictly lower triangular and starts at 0.

    Arguments:
        spread: the standard deviation of the random start of ``s``, as in :class:`Diagonal`.

    Raises:
        ArgumentError, ArgumentTypeError: ``spread`` is no number of at least 0.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock, Triangular
        >>> block = ResidualBlock(DenseContraction(3), metric=Triangular())
        >>> block(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    spread: float = 0.5

    def __post_init__(self) -> None:
        check_not_negative(self.spread, "spread")

    def build(self, event_shape: tuple[int, ...]) -> Coordinates | None:
        return TriangularMetric(channels_of(event_shape), len(event_shape), self.spread)


class DiagonalMetric(Coordinates):
    """The coordinates of :class:`Diagonal`."""

    def __init__(self, channels: int, event_dim: int, spread: float) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.log_scale = nn.Parameter(spread * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * over_channels(torch.exp(-self.log_scale), self.event_dim)

    def inverse(self, z: Tensor) -> Tensor:
        return z * over_channels(self.log_scale.exp(), self.event_dim)

    def pull(self, x: Tensor, w: Tensor) -> Tensor:
        return self.forward(w)

    def push(self, z: Tensor, w: Tensor) -> Tensor:
        return self.inverse(w)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        return self.log_scale.detach().exp().max().expand(radius.shape)


class TriangularMetric(Coordinates):
    """The coordinates of :class:`Triangular`."""

    def __init__(self, channels: int, event_dim: int, spread: float) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.log_scale = nn.Parameter(spread * torch.randn(channels))
        self.below = nn.Parameter(torch.zeros(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        # What is lost in a triangular solve, no certificate would know of.
        rows = x.movedim(-self.event_dim, -1).double()
        columns = rows.reshape(-1, rows.shape[-1]).mT
        z = torch.linalg.solve_triangular(self._unit(), columns, upper=False, unitriangular=True)
        z = z.mT.reshape(rows.shape) * torch.exp(-self.log_scale)
        return z.movedim(-1, -self.event_dim).to(x.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        rows = z.movedim(-self.event_dim, -1).double() * self.log_scale.exp()
        return (rows @ self._unit().mT).movedim(-1, -self.event_dim).to(z.dtype)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        scale = self._unit().detach() * self.log_scale.detach().exp()
        if not bool(scale.isfinite().all()):
            return torch.full_like(radius, torch.nan)
        # Rounded up: a singular value is exact but for rounding.
        norm = (1 + 1e-5) * torch.linalg.matrix_norm(scale, ord=2)
        return norm.to(radius.dtype).expand(radius.shape)

    def _unit(self) -> Tensor:
        below = torch.tril(self.below, -1).double()
        return below + torch.eye(len(below), dtype=below.dtype, device=below.device)
