"""LipSwish, the smooth activation of residual flows."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._torch import is_compiling
from ..errors import check_dense, check_positive
from .base import Activation, Curved, Factors


class LipSwish(Activation):
    r"""Swish divided by 1.1, :math:`x\,\sigma(\beta x) / 1.1` with a learned :math:`\beta > 0`.

    The slope is :math:`\sigma(t)\,(1 + t\,(1 - \sigma(t))) / 1.1` with :math:`t = \beta x`. Its
    numerator lies in [-0.0999, 1.0999] for every :math:`\beta`, so the slope is below 1. A density
    needs an activation that is smooth and whose slope does not saturate; LipSwish is both.

    Arguments:
        beta: the initial :math:`\beta`, above 0; stored as its inverse softplus.

    Raises:
        ArgumentError, ArgumentTypeError: ``beta`` is no number above 0.

    References:
        Residual Flows for Invertible Generative Modeling (Chen et al., 2019), Section 3.

    Example:
        >>> import torch
        >>> value, slope = LipSwish().value_and_slope(torch.tensor([0.0]))
        >>> round(slope.item() * 1.1, 6)
        0.5
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        start = torch.tensor(check_positive(beta, "beta"), dtype=torch.float64)
        inverse_softplus = start + torch.log(-torch.expm1(-start))
        self.raw_beta = nn.Parameter(inverse_softplus.to(torch.get_default_dtype()))

    @property
    def beta(self) -> Tensor:
        return functional.softplus(self.raw_beta)

    def forward(self, x: Tensor) -> Tensor:
        check_dense(x, "x")
        return x * torch.sigmoid(self.beta * x) / 1.1

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = self.beta * x
        s = torch.sigmoid(t)
        gate = s / 1.1
        return x * gate, gate * (1 + t * (1 - s))

    def factors(self) -> Factors:
        if is_compiling():
            # A compiler fuses the scales into passes that it makes anyway.
            return super().factors()
        # Below 1e-12 the function is linear up to rounding, and no longer depends on beta.
        least = max(1e-12, torch.finfo(self.raw_beta.dtype).tiny)
        beta = functional.softplus(self.raw_beta).clamp(min=least)
        return Factors(SILU, beta, 1 / (1.1 * beta), SiLU.bound)


class SiLU(Curved):
    r""":math:`x\,\sigma(x)`, the core of :class:`LipSwish`; its slope lies in [-0.0999, 1.0999].

    With :math:`s = \sigma(x)` and the slope p, the curvature is :math:`s + p - 2 s p`.
    """

    bound = 1.1

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x)

    def value_slope_curvature(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.sigmoid(x)
        value = x * s
        # s + value (1 - s), in one pass.
        slope = torch.lerp(value, value.new_ones(()), s)
        return value, slope, torch.addcmul(s + slope, s, slope, value=-2)


# One module for all layers: SiLU has neither parameters nor settings.
SILU = SiLU()
