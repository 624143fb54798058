"""Activations that act on every entry by itself."""

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import check_dense
from .base import Activation


class ELU(Activation):
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


class Tanh(Activation):
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
