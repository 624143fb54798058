"""Activations with their slope in closed form and a proven bound of it."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ArgumentError, check_positive
from ..linear_maps import Diagonal, LinearMap


class Activation(nn.Module, ABC):
    r"""A function between the layers of ``g`` that stretches by at most ``bound``.

    To write one, take :class:`Elementwise` for what acts on every entry by itself; otherwise define
    :meth:`forward` and :meth:`linearize`, and set ``bound``.

    Attributes:
        bound: the largest stretch, proven; in the class, not learned.
        signs: what the input is multiplied by, in turn: of several the results stand side by side.

    Raises:
        ArgumentError: by :meth:`check_width`: it cannot stand behind a layer of that width.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Activation, DenseContraction
        >>> from pyro_iresnet.linear_maps import Permutation
        >>> class Reversed(Activation):
        ...     def forward(self, x):
        ...         return x.flip(-1)
        ...     def linearize(self, x, event_dim=1):
        ...         last = torch.arange(x.shape[-1] - 1, -1, -1).expand(x.shape)
        ...         return self(x), Permutation(last)
        >>> g = DenseContraction(2, [16], activation=Reversed)
    """

    bound: float = 1.0
    signs: tuple[float, ...] = (1.0,)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The value at ``x``, shape ``(*batch, width)`` or, of images, ``(*batch, *event)``."""

    @abstractmethod
    def linearize(self, x: Tensor, event_dim: int = 1) -> tuple[Tensor, LinearMap]:
        """The value and the Jacobian at ``x``, whose events have so many dimensions."""

    def check_width(self, width: int) -> None:
        """Raise unless it can stand behind a layer of this width."""

    def factors(self) -> "Factors":
        """The activation as a scaled core: override it where the scales are learned, so that a
        network can put them into its weights, which are fewer numbers than a batch."""
        return Factors(self, None, None, self.bound)


class Elementwise(Activation):
    """An activation that acts on every entry by itself, with ``|slope| <= bound`` everywhere.

    To write one, define :meth:`forward` and :meth:`value_and_slope`, and set ``bound``.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, Elementwise
        >>> class Arctan(Elementwise):
        ...     def forward(self, x):
        ...         return x.atan()
        ...     def value_and_slope(self, x):
        ...         return x.atan(), 1 / (1 + x * x)
        >>> g = DenseContraction(2, [16], activation=Arctan)
    """

    @abstractmethod
    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the derivative at ``x``, each of the shape of ``x``."""

    def linearize(self, x: Tensor, event_dim: int = 1) -> tuple[Tensor, LinearMap]:
        value, slope = self.value_and_slope(x)
        return value, Diagonal(slope, event_dim)


class Factors(NamedTuple):
    r"""An activation as :math:`\phi(x) = b\,\psi(a s x)`, for each of its signs s.

    Arguments:
        core: :math:`\psi`, without parameters, and with one sign.
        inner: :math:`a`, a scalar; None for 1.
        outer: :math:`b`, a scalar; None for 1.
        bound: the largest stretch of the core, at all signs together.
    """

    core: Activation
    inner: Tensor | None
    outer: Tensor | None
    bound: float


class ELU(Elementwise):
    r"""Exponential linear unit: :math:`x` above 0, :math:`e^x - 1` below; slope in (0, 1].

    Example:
        >>> import torch
        >>> value, slope = ELU().value_and_slope(torch.tensor([0.0, 2.0]))
        >>> value, slope
        (tensor([0., 2.]), tensor([1., 1.]))
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The clamp keeps the unused branch finite, or its gradient would be inf * 0 = NaN.
        return functional.elu(x), torch.where(x > 0, torch.ones_like(x), x.clamp(max=0).exp())


class Softplus(Elementwise):
    r""":math:`\log(1 + e^x)`; its slope is the logistic function.

    Example:
        >>> import torch
        >>> value, slope = Softplus().value_and_slope(torch.tensor([0.0]))
        >>> round(value.item(), 4), slope.item()
        (0.6931, 0.5)
    """

    def forward(self, x: Tensor) -> Tensor:
        # torch's default threshold, 20, would jump by 2e-9, which float64 resolves.
        return functional.softplus(x, threshold=50)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(x), torch.sigmoid(x)


class Tanh(Elementwise):
    r""":math:`\tanh x`; its slope is :math:`1 - \tanh^2 x`.

    Example:
        >>> import torch
        >>> Tanh().value_and_slope(torch.tensor([0.0]))
        (tensor([0.]), tensor([1.]))
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.tanh(x)
        return value, 1 - value * value


class Sine(Elementwise):
    r""":math:`\sin(\omega x) / \omega`; its slope is :math:`\cos(\omega x)`.

    Arguments:
        frequency: :math:`\omega`, above 0, fixed.

    Raises:
        ArgumentError: ``frequency`` is not above 0.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from pyro_iresnet import DenseContraction, Sine
        >>> g = DenseContraction(2, [16], activation=partial(Sine, frequency=3.0))
        >>> g(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
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


class LeakyReLU(Elementwise):
    r"""The larger of :math:`x` and :math:`a x`: piecewise linear, with a kink at 0.

    Its slope does not change but at the kink, so the gradient of a log-determinant does not see
    how the slopes depend on ``x``: a density that is to be learned wants a smooth activation, such
    as :class:`LipSwish`. It is here for networks that are trained by something else.

    Arguments:
        slope: ``a``, the slope below 0, in (0, 1).

    Raises:
        ArgumentError: ``slope`` outside (0, 1).

    Example:
        >>> import torch
        >>> LeakyReLU(slope=0.1)(torch.tensor([-1.0, 2.0]))
        tensor([-0.1000,  2.0000])
    """

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.slope = check_positive(slope, "slope")
        if self.slope >= 1:
            raise ArgumentError(f"Expected slope in (0, 1); got {slope}.")

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.slope)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(x), torch.where(x > 0, 1.0, self.slope).to(x.dtype)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"
