r"""Learned linear coordinates: norms other than the Euclidean one in which ``g`` contracts.

With an invertible matrix S,

.. math:: y = x + S\, g(S^{-1} x)

is invertible, since :math:`S^{-1} y = z + g(z)` with :math:`z = S^{-1} x`. The log-determinant is
that of :math:`I + J_g(z)`. In ``x`` the map :math:`S \circ g \circ S^{-1}` may stretch by up to
:math:`L` times the condition of S, so the bound costs less if the coordinates differ in their
effect on each other. If S grows without limit from one coordinate to the next, the bound holds
along the diagonal of the Jacobian only, as in an autoregressive flow.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._settings import START_ONLY
from ..errors import check_not_negative, store_checked
from .base import CoordinateMap, Coordinates, channels_of, over_channels


@dataclass(frozen=True)
class DiagonalScale(Coordinates):
    """A learned positive scale for each coordinate (each channel of an image), :math:`S = e^{s}`.

    Arguments:
        spread: the standard deviation of the random start of ``s``, at least 0; else
            :class:`ArgumentError`. Blocks that start with different scales take up different
            directions first; 0 starts at the identity.

    Raises:
        ArgumentError, ArgumentTypeError: ``spread`` is no number of at least 0.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> from pyro_iresnet.coordinates import DiagonalScale
        >>> block = ResidualBlock(DenseContraction(3), coordinates=DiagonalScale())
        >>> block.coordinates.log_scale.shape
        torch.Size([3])
    """

    spread: float = field(default=0.5, metadata=START_ONLY)

    def __post_init__(self) -> None:
        store_checked(self, check_not_negative, "spread")

    def build(self, event_shape: tuple[int, ...]) -> CoordinateMap:
        return _DiagonalScale(self, event_shape)


@dataclass(frozen=True)
class TriangularScale(Coordinates):
    r"""A learned lower-triangular S with a positive diagonal, :math:`S = (I + N)\, e^{s}`.

    :math:`N` is strictly lower triangular and starts at 0.

    Arguments:
        spread: as in :class:`DiagonalScale`.

    Raises:
        ArgumentError, ArgumentTypeError: ``spread`` is no number of at least 0.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> from pyro_iresnet.coordinates import TriangularScale
        >>> block = ResidualBlock(DenseContraction(3), coordinates=TriangularScale())
        >>> block(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    spread: float = field(default=0.5, metadata=START_ONLY)

    def __post_init__(self) -> None:
        store_checked(self, check_not_negative, "spread")

    def build(self, event_shape: tuple[int, ...]) -> CoordinateMap:
        return _TriangularScale(self, event_shape)


class _DiagonalScale(CoordinateMap):
    def __init__(self, strategy: DiagonalScale, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.strategy, self.event_dim = strategy, len(event_shape)
        self.log_scale = nn.Parameter(strategy.spread * torch.randn(channels_of(event_shape)))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.exp(-self.log_scale)
        return x * (scale if self.event_dim == 1 else over_channels(scale, self.event_dim))

    def inverse(self, z: Tensor) -> Tensor:
        scale = self.log_scale.exp()
        return z * (scale if self.event_dim == 1 else over_channels(scale, self.event_dim))

    def diagonal(self) -> Tensor | None:
        return self.log_scale if self.event_dim == 1 else None

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        return self.forward(w)

    def inverse_vjp(self, z: Tensor, w: Tensor) -> Tensor:
        return self.inverse(w)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        return self.log_scale.detach().exp().max().expand(radius.shape)


class _TriangularScale(CoordinateMap):
    def __init__(self, strategy: TriangularScale, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels = channels_of(event_shape)
        self.strategy, self.event_dim = strategy, len(event_shape)
        self.log_scale = nn.Parameter(strategy.spread * torch.randn(channels))
        self.below = nn.Parameter(torch.zeros(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        # No certificate would know of digits that a triangular solve loses.
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
        # Rounded up, since a singular value is exact but for rounding.
        norm = (1 + 1e-5) * torch.linalg.matrix_norm(scale, ord=2)
        return norm.to(radius.dtype).expand(radius.shape)

    def _unit(self) -> Tensor:
        below = torch.tril(self.below, -1).double()
        return below + torch.eye(len(below), dtype=below.dtype, device=below.device)
