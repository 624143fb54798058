r"""Base classes of the coordinates :math:`z = \varphi(x)` of a block."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, check_instance, check_int
from ..operators.linearization import vjp_of


@dataclass(frozen=True)
class Coordinates(ABC):
    r"""A strategy for the coordinates :math:`z = \varphi(x)` in which a block acts.

    .. math:: y = \varphi^{-1}\big(f(\varphi(x))\big), \qquad
              \log\Big|\det\frac{dy}{dx}\Big| = \log\Big|\det\frac{df}{dz}\Big|
              + \log|\varphi'(x)| - \log|\varphi'(y)|

    A strategy holds settings and no parameters. To write one, define :meth:`build`. A state dict
    holds the settings, and loading others raises. A field that only starts a parameter says so, by
    ``field(default=1.0, metadata={"start_only": True})``, and is not compared.

    Example:
        >>> from pyro_iresnet.coordinates import Asinh
        >>> coordinates = Asinh(scale=2.0).build((3,))
        >>> coordinates.log_scale.exp().tolist()
        [2.0, 2.0, 2.0]
    """

    @abstractmethod
    def build(self, event_shape: tuple[int, ...]) -> "CoordinateMap":
        """Make the coordinates, with parameters of their own.

        ``event_shape`` is the shape of one event, with -1 for a size that may vary. The channels of
        an image are its coordinates.
        """


class CoordinateMap(nn.Module, ABC):
    r"""A bijection :math:`z = \varphi(x)` with parameters: the coordinates of one block.

    Attributes:
        event_dim: the number of trailing dimensions of one event.
        strategy: the :class:`Coordinates` that built the map, or a tuple of strategies.
        is_linear: True if the log-determinant is a constant.

    Example:
        >>> import torch
        >>> from pyro_iresnet.coordinates import Asinh
        >>> coordinates = Asinh().build((2,))
        >>> x = torch.tensor([[0.5, -3.0]])
        >>> torch.allclose(coordinates.inverse(coordinates(x)), x)
        True
    """

    event_dim: int
    strategy: Coordinates | tuple[Coordinates, ...]
    is_linear: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return ``z``, shape ``(*batch, *event)``."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return ``x``, shape ``(*batch, *event)``."""

    def log_det(self, x: Tensor) -> Tensor:
        """Return ``log|det dz/dx|`` up to a constant, shape ``(*batch,)``; 0 for a linear map."""
        return x.new_zeros(x.shape[: x.dim() - self.event_dim])

    def diagonal(self) -> Tensor | None:
        r"""Return s, shape ``(D,)``, if :math:`\varphi^{-1}(z) = e^s z` for vectors, else None."""
        return None

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        r"""Carry a gradient at ``z`` to ``x``: :math:`(dz/dx)^\top w`."""
        return vjp_of(self, x, w)

    def inverse_vjp(self, z: Tensor, w: Tensor) -> Tensor:
        r"""Carry a gradient at ``x`` to ``z``: :math:`(dx/dz)^\top w`."""
        return vjp_of(self.inverse, z, w)

    @abstractmethod
    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        r"""Bound the stretch of :math:`\varphi^{-1}` within ``radius`` of ``z``, without gradient.

        ``z`` has the shape ``(*batch, *event)``; the Euclidean radius and the bound have
        ``(*batch,)``.
        """


class Composite(CoordinateMap):
    r"""Coordinates in turn, :math:`\varphi = \varphi_n \circ \dots \circ \varphi_1`."""

    def __init__(self, maps: Sequence[CoordinateMap]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        self.event_dim = maps[0].event_dim
        self.strategy = tuple([m.strategy for m in maps])  # pyright: ignore[reportAttributeAccessIssue]
        self.is_linear = all(m.is_linear for m in maps)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        for m in self.maps:
            x = m(x)
        return x

    def inverse(self, z: Tensor) -> Tensor:
        for m in reversed(self._maps()):
            z = m.inverse(z)
        return z

    def log_det(self, x: Tensor) -> Tensor:
        total = super().log_det(x)
        for m in self._maps():
            total = total + m.log_det(x)
            x = m(x)
        return total

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        total = torch.ones_like(radius)
        for m in reversed(self._maps()):
            total = total * m.stretch(z, total * radius)
            z = m.inverse(z)
        return total

    def _maps(self) -> list[CoordinateMap]:
        return list(cast(Iterable[CoordinateMap], self.maps))


def build(
    coordinates: Coordinates | Sequence[Coordinates] | None, event_shape: tuple[int, ...]
) -> CoordinateMap | None:
    """Build the coordinates of a block; None for the coordinates of ``x`` itself.

    Arguments:
        coordinates: a strategy, a sequence of strategies that act in turn, or None; else
            :class:`ArgumentTypeError`.
        event_shape: the shape of one event. A size that varies has no parameter for each
            coordinate, and raises :class:`ArgumentError`.
    """
    example = "DiagonalScale(), (Asinh(), DiagonalScale()) or None"
    if isinstance(event_shape, str) or not isinstance(event_shape, Sequence):
        raise ArgumentTypeError(
            f"Expected event_shape to be a tuple of sizes such as (3,); got {event_shape!r}."
        )
    sizes = [check_int(size, f"event_shape[{i}]") for i, size in enumerate(event_shape)]
    if not sizes or any(size < 1 and size != -1 for size in sizes):
        raise ArgumentError(
            "Expected event_shape of one size or more, each at least 1, or -1 for any; got "
            f"{tuple(event_shape)}."
        )
    if coordinates is None:
        return None
    if not isinstance(coordinates, list | tuple):
        return check_instance(coordinates, Coordinates, "coordinates", example).build(event_shape)
    maps = [
        check_instance(c, Coordinates, f"coordinates[{i}]", "DiagonalScale()").build(event_shape)
        for i, c in enumerate(coordinates)
    ]
    return None if not maps else maps[0] if len(maps) == 1 else Composite(maps)


def channels_of(event_shape: tuple[int, ...]) -> int:
    """Return the coordinates of a vector or the channels of an image, or raise if they may vary."""
    if event_shape[0] < 0:
        raise ArgumentError(
            "Expected a contraction of a known size for coordinates, which have a parameter for "
            f"each coordinate of x; got one of event shape {event_shape}. Use coordinates=None, or "
            "a contraction whose event_shape says its size."
        )
    return event_shape[0]


def over_channels(parameter: Tensor, event_dim: int) -> Tensor:
    """Shape a vector, one entry for each coordinate or channel, to broadcast against an event."""
    return parameter.reshape(-1, *(1,) * (event_dim - 1))
