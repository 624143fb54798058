"""What coordinates must know of themselves: there and back, their log-determinant, their error."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ArgumentError


class Coordinates(nn.Module, ABC):
    r"""An invertible map :math:`z = \varphi(x)` under which a residual block acts.

    .. math:: y = \varphi^{-1}\big(\varphi(x) + g(\varphi(x))\big)

    is a bijection for every contraction ``g``, since :math:`\varphi` and :math:`I + g` are.

    Attributes:
        event_dim: how many trailing dimensions form one event.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Asinh
        >>> coordinates = Asinh().build((2,))
        >>> x = torch.tensor([[0.5, -3.0]])
        >>> torch.allclose(coordinates.inverse(coordinates(x)), x)
        True
    """

    event_dim: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``z``, shape ``(*batch, *event)``."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """``x``, shape ``(*batch, *event)``."""

    def logdet(self, x: Tensor) -> Tensor:
        """``log|det dz/dx|`` less a constant, shape ``(*batch,)``; for a linear map all of it."""
        return x.new_zeros(x.shape[: x.dim() - self.event_dim])

    def pull(self, x: Tensor, w: Tensor) -> Tensor:
        """A gradient at ``z`` as one at ``x``, by the transposed Jacobian there."""
        return _transposed(self, x, w)

    def push(self, z: Tensor, w: Tensor) -> Tensor:
        """A gradient at ``x`` as one at ``z``, by the transposed Jacobian of the inverse there."""
        return _transposed(self.inverse, z, w)

    @abstractmethod
    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        r"""An upper bound of how much :math:`\varphi^{-1}` stretches, within ``radius`` of ``z``.

        Arguments:
            z: shape ``(*batch, *event)``.
            radius: Euclidean, shape ``(*batch,)``.

        Returns:
            shape ``(*batch,)``, without gradient.
        """


class Composed(Coordinates):
    r"""One after the other, :math:`\varphi = \varphi_2 \circ \varphi_1`.

    Arguments:
        first, second: :math:`\varphi_1` and :math:`\varphi_2`, of which the second is linear.
    """

    def __init__(self, first: Coordinates, second: Coordinates) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.event_dim = first.event_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def inverse(self, z: Tensor) -> Tensor:
        return self.first.inverse(self.second.inverse(z))

    def logdet(self, x: Tensor) -> Tensor:
        return self.first.logdet(x)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        outer = self.second.stretch(z, radius)
        return outer * self.first.stretch(self.second.inverse(z), outer * radius)


def _transposed(f: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x), x, w)[0]


def channels_of(event_shape: tuple[int, ...]) -> int:
    """The coordinates of a vector or the channels of an image, or raise where they may vary."""
    if event_shape[0] < 0:
        raise ArgumentError(
            "Expected a contraction of a known size for a metric or a chart, which have a "
            f"parameter for each coordinate; got one of event shape {event_shape}. Use "
            "metric=Identity() and chart=None, or a contraction whose event_shape says its size."
        )
    return event_shape[0]


def over_channels(parameter: Tensor, event_dim: int) -> Tensor:
    """A vector, one entry for each coordinate or each channel, to broadcast against an event."""
    return parameter.reshape(-1, *(1,) * (event_dim - 1))
