"""Pixels as real numbers: uniform dequantisation, and the logit with its Jacobian."""

import math
import warnings
from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor
from torch.nn import functional

from .._settings import SavedSettings
from .._torch import has_values
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    check_dense,
    check_positive,
    check_positive_int,
)

INTEGERS = (torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32, torch.int64)
# The coarsest step of the noise between two levels.
STEP = 1 / 64


def dequantize(pixels: Tensor, levels: int = 256) -> Tensor:
    """Add uniform noise in [0, 1) to pixels, so that a density of real numbers can describe them.

    Jensen's inequality makes ``E[log p(pixels + noise)]`` a lower bound of the log-probability of
    the pixels (Theis, van den Oord and Bethge, 2016).

    Arguments:
        pixels: integers from 0 to ``levels - 1``, of an integer or a floating-point dtype.
        levels: the number of values of a pixel, at least 2.

    Returns:
        Numbers in the dtype of ``pixels``, or in torch's default dtype for integers. A dtype too
        coarse for noise between the levels raises :class:`ArgumentTypeError`.

    Raises:
        ArgumentError, ArgumentTypeError: other values, or no dense tensor.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import dequantize
        >>> x = dequantize(torch.tensor([0, 255], dtype=torch.uint8))
        >>> bool((x.floor() == torch.tensor([0.0, 255.0])).all())
        True
    """
    return with_noise(check_pixels(pixels, levels), levels)


def with_noise(x: Tensor, levels: int) -> Tensor:
    """Add the noise of :func:`dequantize` to checked pixels."""
    if torch.finfo(x.dtype).eps * levels > STEP:
        raise ArgumentTypeError(
            f"Expected a dtype that has numbers between {levels} levels; got {x.dtype}. Convert "
            "the pixels, and a flow that takes them, to float32 or float64."
        )
    # A sum may round up to the next level.
    below = torch.nextafter(x + 1, torch.zeros_like(x))
    # Not rand_like, whose numbers depend on the strides.
    noise = torch.rand(x.shape, dtype=x.dtype, device=x.device)
    return torch.minimum(x + noise, below)


def quantize(x: Tensor, levels: int = 256) -> Tensor:
    """Return the level of each number, an integer from 0 to ``levels - 1``, in the dtype of ``x``.

    Arguments:
        x: numbers of a floating dtype.
        levels: the number of values of a pixel, at least 2.

    Raises:
        ArgumentError, ArgumentTypeError: no dense tensor of a floating dtype, NaN among the
            numbers, or ``levels`` below 2.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import quantize
        >>> quantize(torch.tensor([-1.0, 3.7, 256.0]))
        tensor([  0.,   3., 255.])
    """
    check_dense(x, "x")
    if has_values(x) and x.isnan().any():
        raise ArgumentError(
            "Expected x to be numbers; got NaN. If a flow made them, check its parameters."
        )
    return x.floor().clamp(0, check_levels(levels) - 1)


class PixelLogit(SavedSettings, Transform):
    r"""The logit of pixels on a scale that keeps away from 0 and 1.

    .. math:: y = \log\frac{p}{1 - p}, \qquad p = a + (1 - 2a)\, \frac{x}{n}

    takes x between :attr:`low` and :attr:`high`, a little below 0 and above n, to all real
    numbers. A density over x has the unit of one level, so ``-log_prob / (D ln 2)`` are bits per
    dimension. Near an end float32 holds few digits of :math:`p` or :math:`1 - p`. So the logit of a
    sample there, computed from x, differs from the logit that made x, and so do densities; float64
    keeps the digits.

    Arguments:
        levels: ``n``, the number of values of a pixel.
        margin: ``a``, in (0, 1/2).

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Density estimation using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017), Section 4.1.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import PixelLogit
        >>> y, logabsdet = PixelLogit()(torch.full((5, 1, 8, 8), 128.0))
        >>> bool((y == 0).all()), logabsdet.shape
        (True, torch.Size([5]))
    """

    def __init__(self, levels: int = 256, margin: float = 1e-4) -> None:
        super().__init__()
        self.levels = check_levels(levels)
        self.margin = check_positive(margin, "margin")
        if self.margin >= 0.5:
            raise ArgumentError(f"Expected margin in (0, 1/2); got {margin}.")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "levels": self.levels, "margin": self.margin}

    @property
    def low(self) -> float:
        """The lower end of the numbers that have a logit, below 0."""
        return -self.margin * self.levels / (1 - 2 * self.margin)

    @property
    def high(self) -> float:
        """The upper end of the numbers that have a logit, above ``levels``."""
        return self.levels - self.low

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of numbers between ``low`` and ``high``, and ``log|det|``.

        ``inputs`` have the shape ``(batch, *event)``. An end counts as the next number within.
        """
        self._check(inputs)
        outside = (inputs < self.low) | (inputs > self.high)
        if has_values(inputs) and outside.any():
            worst = inputs[outside][0].item()
            raise ArgumentError(
                f"Expected inputs between 0 and levels={self.levels}; got {worst:g}. Scale the "
                "images to the grey levels 0, 1, ..., or set levels."
            )
        p = self.margin + (1 - 2 * self.margin) * (inputs / self.levels)
        # At an end the sum is 0 or 1, or rounds to it.
        limits = torch.finfo(p.dtype)
        outputs = torch.logit(p.clamp(limits.tiny, 1 - limits.eps / 2))
        return outputs, self._logabsdet(outputs)

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the numbers of logits, and ``log|det|``.

        A logit beyond the margin gives a number a little outside of [0, levels]. A logit whose
        number rounds to :attr:`low` or :attr:`high` gives the next number within.
        """
        self._check(inputs)
        p = torch.sigmoid(inputs)
        outputs = self.levels * (p - self.margin) / (1 - 2 * self.margin)
        eps = torch.finfo(outputs.dtype).eps
        inside = outputs.clamp(self.low * (1 - eps), self.high * (1 - eps))
        return inside, -self._logabsdet(inputs)

    def _logabsdet(self, logits: Tensor) -> Tensor:
        # dy/dx = (1 - 2 a) / (n p (1 - p)).
        slope = math.log((1 - 2 * self.margin) / self.levels)
        of_pixels = functional.softplus(logits) + functional.softplus(-logits) + slope
        return of_pixels.flatten(1).sum(1)

    def _check(self, inputs: Tensor) -> None:
        check_dense(inputs, "inputs")
        if inputs.dim() < 2:
            raise ArgumentError(
                "Expected inputs of shape (batch, channels, height, width); got "
                f"{tuple(inputs.shape)}."
            )
        if torch.finfo(inputs.dtype).eps > self.margin:
            raise ArgumentTypeError(
                f"Expected inputs of a dtype that resolves margin={self.margin}; got "
                f"{inputs.dtype}. Raise margin, or convert the flow and the images to float32."
            )

    def extra_repr(self) -> str:
        return f"levels={self.levels}, margin={self.margin}"


def check_levels(levels: int) -> int:
    """Return the number of levels, or raise unless it is an integer of at least 2."""
    return check_positive_int(levels, "levels", 2)


def warn_of_pixels(x: Tensor, levels: int) -> None:
    """Warn of numbers that look like pixels without noise, or on another scale."""
    if not has_values(x) or levels == 2 or not x.numel():
        return
    if bool((x <= 1).all()):
        found = "no number above 1, as of images scaled to [0, 1], or of black ones"
    elif bool((x == x.floor()).all()):
        found = "integers alone, which no density of real numbers fits"
    else:
        return
    warnings.warn(
        f"Expected grey levels with noise, numbers from 0 to {levels}; got {found}. Pass "
        f"dequantize(pixels, {levels}) of integers from 0 to {levels - 1}.",
        stacklevel=3,
    )


def check_pixels(pixels: Tensor, levels: int, name: str = "pixels") -> Tensor:
    """Return pixels of a floating dtype, or raise unless they are from 0 to ``levels - 1``."""
    if isinstance(pixels, Tensor) and pixels.dtype in INTEGERS:
        pixels = pixels.to(torch.get_default_dtype())
    check_dense(pixels, name)
    levels = check_levels(levels)
    # NaN is no integer either.
    wrong = (pixels < 0) | (pixels >= levels) | (pixels != pixels.floor())
    if has_values(pixels) and wrong.any():
        seen = pixels[wrong][0].item()
        raise ArgumentError(
            f"Expected {name} to be integers from 0 to {levels - 1}; got {seen:g}. Scale the "
            f"images back to grey levels, such as ({levels - 1} * images).round(), or set levels."
        )
    return pixels
