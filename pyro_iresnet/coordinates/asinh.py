"""Learned elementwise coordinates in which a change of scale becomes a shift.

A block moves points. Data and posteriors whose scale varies over orders of magnitude need a
multiplication, and in the coordinates of a logarithm a move is a multiplication.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .._settings import START_ONLY
from ..errors import ArgumentError, check_positive, store_checked
from .base import CoordinateMap, Coordinates, channels_of, over_channels

# Beyond this size float64 does not tell asinh u from log 2u.
LARGE = 1e9


@dataclass(frozen=True)
class Asinh(Coordinates):
    r""":math:`\varphi(x) = \operatorname{asinh}(x / s)` with a learned scale s of each coordinate.

    Linear well below s, a logarithm well above s. An image has one scale for each channel.

    Arguments:
        scale: the start of s, in [1e-30, 1e30], which float32 holds.

    Raises:
        ArgumentError, ArgumentTypeError: ``scale`` is no number in this range.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> from pyro_iresnet.coordinates import Asinh
        >>> block = ResidualBlock(DenseContraction(3), coordinates=Asinh())
        >>> x = 1e4 * torch.randn(5, 3)
        >>> bool(((block.inverse(block(x)) - x).norm(dim=-1) < 1e-4 * x.norm(dim=-1)).all())
        True
    """

    scale: float = field(default=1.0, metadata=START_ONLY)

    def __post_init__(self) -> None:
        store_checked(self, check_positive, "scale")
        if not 1e-30 <= self.scale <= 1e30:
            raise ArgumentError(
                f"Expected scale in [1e-30, 1e30], which float32 holds; got {self.scale}."
            )

    def build(self, event_shape: tuple[int, ...]) -> CoordinateMap:
        return _Asinh(self, event_shape)


class _Asinh(CoordinateMap):
    is_linear: ClassVar[bool] = False

    def __init__(self, strategy: Asinh, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.strategy, self.event_dim = strategy, len(event_shape)
        start = torch.tensor(strategy.scale, dtype=torch.float64).log()
        start = start.to(torch.get_default_dtype())
        self.log_scale = nn.Parameter(start.repeat(channels_of(event_shape)))

    def forward(self, x: Tensor) -> Tensor:
        u = x * over_channels(torch.exp(-self.log_scale), self.event_dim)
        # The derivative of torch takes the square of u, which may overflow.
        # A number of float16 has a square up to 255.
        size, large = u.abs(), min(LARGE, 0.5 * torch.finfo(u.dtype).max ** 0.5)
        far = u.sign() * (size.clamp(min=large).log() + math.log(2.0))
        return torch.where(size > large, far, torch.asinh(u.clamp(-large, large)))

    def inverse(self, z: Tensor) -> Tensor:
        return torch.sinh(z) * over_channels(self.log_scale.exp(), self.event_dim)

    def log_det(self, x: Tensor) -> Tensor:
        # The scale is a constant, which cancels between x and y.
        u = x * over_channels(torch.exp(-self.log_scale), self.event_dim)
        # The square of u may overflow, and hypot does not take it.
        slopes = -torch.hypot(u, torch.ones_like(u)).log()
        return slopes.flatten(slopes.dim() - self.event_dim).sum(-1)

    def stretch(self, z: Tensor, radius: Tensor) -> Tensor:
        # The slope of sinh at the far end of the reach of each coordinate.
        reach = z.abs() + radius.reshape(*radius.shape, *(1,) * self.event_dim)
        slopes = torch.cosh(reach) * over_channels(self.log_scale.detach().exp(), self.event_dim)
        return slopes.flatten(slopes.dim() - self.event_dim).amax(-1)
