r"""The norm of a convolution at every image size, from the Fourier symbol of its kernel.

At the frequency :math:`\omega`, a convolution over the whole plane is the matrix
:math:`\hat K(\omega) = \sum_p K_p e^{-i \omega \cdot p}`. The norm of the convolution is the
largest norm of these matrices (Sedghi, Gupta and Long, 2019, for the frequencies of one image).
Circular padding takes some of these frequencies, and zero padding is a part of the plane: neither
norm is larger, whatever the size of the image. :math:`u^* \hat K v` is a trigonometric polynomial
of degree :math:`d = (k-1)/2` in each direction. So its largest value on a grid of N frequencies
falls short of its largest value over all frequencies by at most the factor
:math:`1 / \cos(\pi d / N)` for each direction.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._torch import COARSE
from .checks import check_weight

# Frequencies in each direction for a kernel of side 3, whose bound is then 4% loose. The grid grows
# with the degree of the kernel, so the bound of a larger kernel is as tight.
GRID = 16


def over_symbol(kernel: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the norm of a convolution at every image size, shape ``(*batch,)``.

    Arguments:
        kernel: shape ``(*batch, out, in, height, width)``, stride and dilation 1.
        norm: a norm of matrices, shapes ``(*batch, out, in)`` to ``(*batch,)``.
    """
    height, width = kernel.shape[-2:]
    rows, columns = _frequencies(height), _frequencies(width)
    # The symbols at w and -w are conjugate: half of one direction suffices.
    half = columns // 2 + 1
    by_row = _waves(height, rows, rows, kernel)
    by_column = _waves(width, columns, half, kernel)
    kernel = kernel.to(by_row.dtype)
    with torch.no_grad():
        symbols = torch.einsum("...oihw,ha,wb->...aboi", kernel, by_row, by_column)
        largest = norm(symbols).flatten(-2).argmax(-1)
    # The gradient of a maximum is that of one frequency, so the others need no graph.
    row, column = by_row.mT[largest // half], by_column.mT[largest % half]
    symbol = torch.einsum("...oihw,...h,...w->...oi", kernel, row, column)
    return norm(symbol) * (_slack(height, rows) * _slack(width, columns))


def spectral_norm(weight: Tensor) -> Tensor:
    """Return the largest singular value of matrices, shapes ``(*batch, m, n)`` to ``(*batch,)``.

    It is the root of the largest eigenvalue of the Gram matrix of the smaller side.
    """
    check_weight(weight)
    if weight.dtype in COARSE:
        return spectral_norm(weight.float()).to(weight.dtype)
    # Squares of very large or small entries would over- or underflow.
    scale = weight.detach().abs().flatten(-2).amax(-1)
    scale = torch.where(scale == 0, 1.0, scale)
    return _root(weight / scale[..., None, None]) * scale


def _root(weight: Tensor) -> Tensor:
    tall = weight.shape[-2] > weight.shape[-1]
    gram = weight.mH @ weight if tall else weight @ weight.mH
    # LAPACK raises at NaN, and would not say where the NaN arose.
    finite = gram.isfinite().flatten(-2).all(-1)
    gram = torch.where(finite[..., None, None], gram, 0.0)
    # A singular value decomposition in float32 fails where many singular values are equal, and
    # training towards a bound makes them equal.
    largest = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=torch.finfo(gram.dtype).tiny)
    return torch.where(finite, largest.sqrt(), torch.nan)


def _frequencies(side: int) -> int:
    return GRID * max(1, (side - 1) // 2)


def _slack(side: int, count: int) -> float:
    return 1 / math.cos(math.pi * (side - 1) / 2 / count)


def _waves(side: int, count: int, kept: int, like: Tensor) -> Tensor:
    """Return the phases of each position of a kernel at each frequency, shape ``(side, kept)``."""
    position = torch.arange(side, dtype=like.dtype, device=like.device)
    frequency = torch.arange(kept, dtype=like.dtype, device=like.device) * (2 * math.pi / count)
    phase = position[:, None] * frequency
    return torch.complex(phase.cos(), -phase.sin())
