"""Activations that act on every entry by itself."""

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import check_dense, check_probability
from .base import Elementwise


class ELU(Elementwise):
    r"""Exponential linear unit: :math:`x` above 0, :math:`e^x - 1` below; slope in (0, 1].

    Raises:
        ArgumentTypeError: in a call: ``x`` is no dense tensor of a floating dtype.

    Example:
        >>> import torch
        >>> value, slope = ELU().value_and_slope(torch.tensor([0.0, 2.0]))
        >>> value, slope
        (tensor([0., 2.]), tensor([1., 1.]))
    """

    def forward(self, x: Tensor) -> Tensor:
        check_dense(x, "x")
        return functional.elu(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The clamp keeps the unused branch finite, or its gradient would be inf * 0 = NaN.
        return functional.elu(x), torch.where(x > 0, torch.ones_like(x), x.clamp(max=0).exp())


class Tanh(Elementwise):
    r""":math:`\tanh x`; its slope is :math:`1 - \tanh^2 x`.

    Raises:
        ArgumentTypeError: in a call: ``x`` is no dense tensor of a floating dtype.

    Example:
        >>> import torch
        >>> Tanh().value_and_slope(torch.tensor([0.0]))
        (tensor([0.]), tensor([1.]))
    """

    def forward(self, x: Tensor) -> Tensor:
        check_dense(x, "x")
        return torch.tanh(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.tanh(x)
        return value, 1 - value * value


class LeakyReLU(Elementwise):
    """The larger of :math:`x` and :math:`a x`: piecewise linear, with a kink at 0.

    The slope changes only at the kink, so the gradient of a log-determinant does not see how the
    slopes depend on ``x``. LeakyReLU is for networks that are trained by another loss; to learn a
    density take a smooth activation, such as :class:`LipSwish`.

    Arguments:
        slope: ``a``, the slope below 0, in (0, 1); else :class:`ArgumentError`.

    Raises:
        ArgumentError: ``slope`` outside (0, 1).

    Example:
        >>> import torch
        >>> LeakyReLU(slope=0.1)(torch.tensor([-1.0, 2.0]))
        tensor([-0.1000,  2.0000])
    """

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.slope = check_probability(slope, "slope")

    def forward(self, x: Tensor) -> Tensor:
        check_dense(x, "x")
        return functional.leaky_relu(x, self.slope)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(x), torch.where(x > 0, 1.0, self.slope).to(x.dtype)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"
