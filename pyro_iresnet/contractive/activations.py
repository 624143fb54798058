"""Activations with their slope in closed form and a proven bound of it.

Each acts on every entry by itself, so its Jacobian is the diagonal matrix of its slopes.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from ..errors import check_positive
from ..torch_modes import in_plain_autograd, is_compiling


class Activation(nn.Module, ABC):
    """An elementwise function with ``|slope| <= bound`` everywhere.

    To write one, define :meth:`forward` and :meth:`value_and_slope`, and set ``bound``.

    Attributes:
        bound: the largest absolute slope, proven; in the class, not learned.
    """

    bound: float = 1.0

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The value, the shape of ``x``."""

    @abstractmethod
    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the derivative at ``x``, each of the shape of ``x``."""

    def factors(self) -> "Factors":
        """The activation as a scaled core: override it where the scales are learned, so that a
        network can put them into its weights, which are fewer numbers than a batch."""
        return Factors(self, None, None)


class Factors(NamedTuple):
    r"""An activation as :math:`\phi(x) = b\,\psi(a x)`.

    Arguments:
        core: :math:`\psi`, without parameters.
        inner: :math:`a`, a scalar; None for 1.
        outer: :math:`b`, a scalar; None for 1.
    """

    core: Activation
    inner: Tensor | None
    outer: Tensor | None


class LipSwish(Activation):
    r"""Swish divided by 1.1, :math:`x\,\sigma(\beta x) / 1.1` with a learned :math:`\beta > 0`.

    The slope is :math:`\sigma(t)\,(1 + t\,(1 - \sigma(t))) / 1.1` with :math:`t = \beta x`; the
    numerator lies in [-0.0999, 1.0999] whatever :math:`\beta` is, so the slope is below 1. It is
    smooth and its own slope does not saturate, which is what a density needs.

    Arguments:
        beta: the start of :math:`\beta`, above 0. Stored as its inverse softplus.

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
        return x * torch.sigmoid(self.beta * x) / 1.1

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = self.beta * x
        s = torch.sigmoid(t)
        gate = s / 1.1
        return x * gate, gate * (1 + t * (1 - s))

    def factors(self) -> Factors:
        if is_compiling():
            # A compiler takes the scales along in the passes that are made anyway.
            return super().factors()
        # Below this the function is linear to within rounding, and depends on beta no more.
        beta = self.beta.clamp(min=1e-12)
        return Factors(SiLU(), beta, 1 / (1.1 * beta))


class SiLU(Activation):
    r""":math:`x\,\sigma(x)`, the core of :class:`LipSwish`; its slope lies in [-0.0999, 1.0999]."""

    bound = 1.1

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _FusedSiLU.apply(x) if in_plain_autograd() else _silu(x)[:2]


def _silu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, slope, and the logistic function."""
    s = torch.sigmoid(x)
    value = x * s
    return value, s + value * (1 - s), s


class _FusedSiLU(Function):
    r"""Value and slope with their derivatives in closed form: fewer passes over memory.

    With :math:`s = \sigma(x)` and the slope :math:`p`, the derivative of the slope is
    :math:`s + p - 2 s p`.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(x)
        value = x * s
        # s + value (1 - s), in one pass.
        slope = torch.lerp(value, value.new_ones(()), s)
        ctx.save_for_backward(x, slope, s)
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor | None) -> Tensor | None:
        x, slope, s = ctx.saved_tensors
        of_value, of_slope = grad_outputs
        second = torch.is_grad_enabled()
        if second:
            # A second derivative is under way: both have to be functions of x again.
            _, slope, s = _silu(x)
        if of_slope is None:
            return None if of_value is None else of_value * slope
        if second:
            curvature = s + slope - 2 * s * slope
        else:
            curvature = torch.add(s, slope).addcmul_(s, slope, value=-2)
        grad = curvature * of_slope
        return grad if of_value is None else torch.addcmul(grad, of_value, slope)


class ELU(Activation):
    r"""Exponential linear unit: :math:`x` above 0, :math:`e^x - 1` below; slope in (0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The clamp keeps the unused branch finite, or its gradient would be inf * 0 = NaN.
        return functional.elu(x), torch.where(x > 0, torch.ones_like(x), x.clamp(max=0).exp())


class Softplus(Activation):
    r""":math:`\log(1 + e^x)`; its slope is the logistic function."""

    def forward(self, x: Tensor) -> Tensor:
        # torch's default threshold, 20, would jump by 2e-9, which float64 resolves.
        return functional.softplus(x, threshold=50)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(x), torch.sigmoid(x)


class Tanh(Activation):
    r""":math:`\tanh x`; its slope is :math:`1 - \tanh^2 x`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.tanh(x)
        return value, 1 - value * value


class Sine(Activation):
    r""":math:`\sin(\omega x) / \omega`; its slope is :math:`\cos(\omega x)`.

    Arguments:
        frequency: :math:`\omega`, above 0, fixed.
    """

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        self.frequency = check_positive(frequency, "frequency")

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x) / self.frequency

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = self.frequency * x
        return torch.sin(t) / self.frequency, torch.cos(t)

    def extra_repr(self) -> str:
        return f"frequency={self.frequency}"
