"""The sine with learned frequencies, the activation that bends most."""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    check_positive,
    check_positive_int,
    check_tensor,
)
from .base import Activation, Curved, Factors


class Sine(Activation):
    r"""A sine whose frequency is learned for each unit, :math:`\sin(\omega x) / \omega`.

    The slope :math:`\cos(\omega x)` is at most 1 for every frequency, while the curvature grows
    with :math:`\omega`. So the frequencies decide how sharply a network bends at a given Lipschitz
    bound. They stay within two limits:

    .. math:: \omega = a\,(b / a)^{\sigma(r)}

    with a learned r for each unit. Without an upper limit a frequency grows until two neighbouring
    numbers of the dtype lie a period apart, and the density between the data has no meaning.

    A new ``Sine`` has one frequency. A network gives a ``Sine`` one frequency for each unit of the
    layer before, spread evenly over the middle of the range (:meth:`follow`).

    Arguments:
        frequencies: the limits a and b, with 0 < a < b, both in [1e-30, 1e30]; a higher b fits
            finer detail, and a network with few rows in many dimensions overfits sooner.

    Raises:
        ArgumentError, ArgumentTypeError: ``frequencies`` is no such pair.

    References:
        Implicit Neural Representations with Periodic Activation Functions (Sitzmann et al., 2020),
        for networks of sines; there the frequencies are fixed, and no slope is bounded.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.activations import Sine
        >>> g = DenseContraction(2, [16], activation=partial(Sine, frequencies=(0.1, 2.0)))
        >>> g.activations[0].frequency.shape
        torch.Size([16])
    """

    def __init__(self, frequencies: tuple[float, float] = (0.3, 12.0)) -> None:
        super().__init__()
        if not isinstance(frequencies, tuple | list) or len(frequencies) != 2:
            raise ArgumentTypeError(
                f"Expected frequencies to be two numbers, such as (0.3, 12.0); got {frequencies!r}."
            )
        low, high = (check_positive(f, "a limit of frequencies") for f in frequencies)
        if not 1e-30 <= low < high <= 1e30:
            raise ArgumentError(
                "Expected frequencies to be two numbers, the lower first, in [1e-30, 1e30], which "
                f"float32 holds; got {frequencies!r}."
            )
        self.frequencies = (low, high)
        # The dimensions of an event behind that of the units.
        self._behind = 0
        self.raw_frequency = nn.Parameter(torch.zeros(1))

    @property
    def frequency(self) -> Tensor:
        r"""The frequency :math:`\omega` of each unit, differentiable."""
        return cast(Tensor, self.factors().inner)

    def follow(self, width: int, event_dim: int = 1) -> None:
        raw = self._parameters.get("raw_frequency")
        if raw is None or raw.shape != (1,):
            raise ArgumentError(
                "Expected a new Sine for each layer, with raw_frequency as it was made; got one "
                "that a layer has already, or that is changed. Pass the class, and change "
                "raw_frequency in the network."
            )
        # Frequencies at the ends of the range would hardly move: the sigmoid is flat there.
        middles = (torch.arange(width, dtype=raw.dtype, device=raw.device) + 0.5) / width
        spread = raw.detach() + SPREAD * (2 * middles - 1)
        self.raw_frequency = nn.Parameter(spread, requires_grad=raw.requires_grad)
        self._behind = event_dim - 1

    def forward(self, x: Tensor) -> Tensor:
        frequency = self._frequency_at(x)
        return torch.sin(frequency * x) / frequency

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frequency = self._frequency_at(x)
        t = frequency * x
        return torch.sin(t) / frequency, torch.cos(t)

    def factors(self) -> Factors:
        low, high = map(math.log, self.frequencies)
        frequency = torch.exp(low + (high - low) * torch.sigmoid(self.raw_frequency))
        return Factors(SIN, frequency, frequency.reciprocal(), SIN.bound, by_unit=True)

    def extra_repr(self) -> str:
        return f"frequencies={self.frequencies}"

    def _frequency_at(self, x: Tensor) -> Tensor:
        """Check ``x``, and return the frequencies in a shape that multiplies ``x``."""
        raw, behind = self.raw_frequency, self._behind
        # One frequency serves units of any number.
        check_tensor(x, () if len(raw) == 1 else (len(raw), *behind * (-1,)), raw, "x")
        frequency = self.frequency
        return frequency[0] if len(raw) == 1 else frequency.reshape(-1, *behind * (1,))


# The share of the range over which frequencies start, on the scale of r.
SPREAD = 2.0


class Sin(Curved):
    r""":math:`\sin x`, the core of :class:`Sine`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)

    def value_slope_curvature(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sine = torch.sin(x)
        return sine, torch.cos(x), -sine


# One module for all layers: Sin has neither parameters nor settings.
SIN = Sin()


# The highest frequency times the number of coordinates, and the limits of the highest frequency.
PRODUCT = 180.0
MOST, LEAST = 12.0, 2.0
# The most that the lowest frequency is, and the most over the highest.
LOWEST, RATIO = 0.3, 0.1


def auto_activation(dim: int) -> Callable[[], Activation]:
    r"""Return the default activation of a density estimator of ``dim`` coordinates.

    The default is a :class:`Sine` with frequencies from a to b:

    .. math:: b = \min(\max(180 / D, 2), 12), \qquad a = \min(0.3, b / 10)

    The more coordinates, the more rows a frequency needs. So high frequencies overfit a table of
    many columns.

    Arguments:
        dim: the number of coordinates, an integer of at least 1.

    Raises:
        ArgumentError, ArgumentTypeError: not an integer of at least 1.

    Example:
        >>> auto_activation(2)().frequencies
        (0.3, 12.0)
        >>> auto_activation(64)().frequencies
        (0.28125, 2.8125)
    """
    dim = check_positive_int(dim, "dim")
    high = min(max(PRODUCT / dim, LEAST), MOST)
    return partial(Sine, (min(LOWEST, RATIO * high), high))
