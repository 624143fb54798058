r"""Learned charts: elementwise coordinates in which a scale becomes a place.

.. math:: y = \varphi^{-1}\big(\varphi(x) + g(\varphi(x))\big), \qquad
          \log\Big|\det\frac{dy}{dx}\Big| = \log|\det(I + J_g)|
          + \sum_i \log\varphi'(x_i) - \sum_i \log\varphi'(y_i)

An additive block moves points; data and posteriors whose scale varies over orders of magnitude
ask to multiply. Where :math:`\varphi` is a logarithm, a move is a multiplication.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, check_positive
from .base import Coordinates, channels_of, over_channels

# Where asinh u and log 2u differ by less than float64 resolves.
LARGE = 1e9


@dataclass(frozen=True)
class Chart(ABC):
    """How an elementwise chart is learned: a strategy, which holds no parameters.

    To write one, define :meth:`build`.

    Example:
        >>> from pyro_iresnet import Asinh
        >>> coordinates = Asinh(scale=2.0).build((3,))
        >>> coordinates.log_scale.exp().tolist()
        [2.0, 2.0, 2.0]
    """

    @abstractmethod
    def build(self, event_shape: tuple[int, ...]) -> Coordinates:
        """The coordinates, with parameters of their own.

        Arguments:
            event_shape: with -1 for a size that may vary.
        """


@dataclass(frozen=True)
class Asinh(Chart):
    r""":math:`\varphi(x) = \operatorname{asinh}(x / s)` with a learned scale s of each coordinate.

    Linear well below s, a logarithm well above it. Of an image the scale is that of a channel.

    Arguments:
        scale: the start of s, above 0.

    Raises:
        ArgumentError, ArgumentTypeError: ``scale`` is no number in [1e-30, 1e30], which float32
            holds.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Asinh, DenseContraction, ResidualBlock
        >>> block = ResidualBlock(DenseContraction(3), chart=Asinh())
        >>> x = 1e4 * torch.randn(5, 3)
        >>> bool(((block.inverse(block(x)) - x).norm(dim=-1) < 1e-4 * x.norm(dim=-1)).all())
        True
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.scale, "scale")
        if not 1e-30 <= self.scale <= 1e30:
            raise ArgumentError(
                f"Expected scale in [1e-30, 1e30], which float32 holds; got {self.scale}."
            )

    def build(self, event_shape: tuple[int, ...]) -> Coordinates:
        return AsinhChart(channels_of(event_shape), len(event_shape), self.scale)


class AsinhChart(Coordinates):
    """The coordinates of :class:`Asinh`."""

    def __init__(self, channels: int, event_dim: int, scale: float) -> None:
        super().__init__()
        self.event_dim = event_dim
        start = torch.tensor(scale, dtype=torch.float64).log().to(torch.get_default_dtype())
        self.log_scale = nn.Parameter(start.repeat(channels))

    def forward(self, x: Tensor) -> Tensor:
        u = x * over_channels(torch.exp(-self.log_scale), self.event_dim)
        # Torch differentiates by the square of u, which overflows where u does not.
        size = u.abs()
        far = u.sign() * (size.clamp(min=LARGE).log() + math.log(2.0))
        return torch.where(size > LARGE, far, torch.asinh(u.clamp(-LARGE, LARGE)))

    def inverse(self, z: Tensor) -> Tensor:
        return torch.sinh(z) * over_channels(self.log_scale.exp(), self.event_dim)

    def logdet(self, x: Tensor) -> Tensor:
        # The scale itself is a constant, which cancels between x and y.
        u = x * over_channels(torch.exp(-self.log_scale), self.event_dim)
        # Not by the square of u, which overflows where u does not.
        slopes = -torch.hypot(u, torch.ones_like(u)).log()
        return slopes.flatten(slopes.dim() - self.event_dim).sum(-1)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        # The slope of sinh at the far end of what each coordinate can reach.
        reach = z.abs() + radius.reshape(*radius.shape, *(1,) * self.event_dim)
        slopes = torch.cosh(reach) * over_channels(self.log_scale.detach().exp(), self.event_dim)
        return slopes.flatten(slopes.dim() - self.event_dim).amax(-1)
