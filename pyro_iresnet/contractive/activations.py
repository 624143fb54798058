"""Activations with their slope in closed form and a proven bound of it.

Each acts on every entry by itself, so its Jacobian is the diagonal matrix of its slopes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from ..errors import check_positive
from ..torch_modes import in_plain_autograd


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
        if in_plain_autograd():
            return _FusedLipSwish.apply(x, self.beta)
        return _lipswish(x, self.beta)


def _lipswish(x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    t = beta * x
    s = torch.sigmoid(t)
    gate = s / 1.1
    return x * gate, gate * (1 + t * (1 - s))


class _FusedLipSwish(Function):
    r"""Value and slope with their derivatives in closed form: fewer passes over memory.

    With :math:`s = \sigma(\beta x)`, :math:`c = s (1 - s) / 1.1` and
    :math:`k = c\,(2 + \beta x (1 - 2 s))`, the value has the derivatives slope in x and
    :math:`x^2 c` in beta, the slope :math:`\beta k` in x and :math:`x k` in beta.
    """

    @staticmethod
    def forward(ctx, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = _lipswish(x, beta)
        ctx.save_for_backward(x, beta, slope)
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, beta, slope = ctx.saved_tensors
        of_value, of_slope = grad_outputs
        if torch.is_grad_enabled():
            return _by_autograd(x, beta, grad_outputs)
        s = torch.sigmoid(beta * x)
        c = torch.addcmul(s, s, s, value=-1).div_(1.1)
        # Nothing is written into what a gradient is part of: it may be one of a batch of them.
        grad, along_x = torch.zeros_like(x), torch.zeros_like(x)
        if of_slope is not None:
            along_x = s.mul_(-2).add_(1).mul_(x).mul_(beta).add_(2).mul_(c) * of_slope
            grad = along_x * beta
        if of_value is not None:
            grad = torch.addcmul(grad, of_value, slope)
            along_x = torch.addcmul(along_x, c.mul_(x), of_value)
        return grad, torch.dot(along_x.reshape(-1), x.reshape(-1)).reshape(beta.shape)


def _by_autograd(
    x: Tensor, beta: Tensor, grad_outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The rule as a function of its inputs, for a second derivative."""
    given = [
        (out, grad)
        for out, grad in zip(_lipswish(x, beta), grad_outputs, strict=True)
        if grad is not None
    ]
    inputs = [t for t in (x, beta) if t.requires_grad]
    outputs, grads = zip(*given, strict=True)
    found = iter(torch.autograd.grad(outputs, inputs, grads, create_graph=True))
    of_x = next(found) if x.requires_grad else None
    return of_x, next(found) if beta.requires_grad else None


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
