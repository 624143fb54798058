"""Norms in closed form, and the exact spectral norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Norm
from .checks import check_weight
from .convolution import at_size_one, spectral_norm


@dataclass(frozen=True)
class SingularValue(Norm):
    """The exact largest singular value, certified and tight.

    It is the root of the largest eigenvalue of the Gram matrix. The gradient is that of the largest
    singular value alone, ``u v^T``.

    Raises:
        ArgumentError, ArgumentTypeError: in a call: ``weight`` is no matrix or batch of matrices.

    Example:
        >>> import torch
        >>> SingularValue()(torch.diag(torch.tensor([3.0, 1.0]))).item()
        3.0
    """

    def __call__(self, weight: Tensor) -> Tensor:
        return spectral_norm(weight)


@dataclass(frozen=True)
class Frobenius(Norm):
    r"""The Frobenius norm, an upper bound, loose by up to :math:`\sqrt{n}`, n the smaller side.

    Raises:
        ArgumentError, ArgumentTypeError: in a call: ``weight`` is no matrix or batch of matrices.

    Example:
        >>> import torch
        >>> Frobenius()(torch.diag(torch.tensor([3.0, 4.0]))).item()
        5.0
    """

    def __call__(self, weight: Tensor) -> Tensor:
        check_weight(weight)
        return at_size_one(weight, _frobenius)


@dataclass(frozen=True)
class Schur(Norm):
    r"""The geometric mean of the induced norms of order 1 and infinity, an upper bound.

    .. math:: \lVert W \rVert_2 \le \sqrt{\lVert W \rVert_1 \lVert W \rVert_\infty},\quad
              \lVert W \rVert_1 = \max_j \sum_i |W_{ij}|,\quad
              \lVert W \rVert_\infty = \max_i \sum_j |W_{ij}|

    This is Schur's test. It takes two sums and no product of matrices, so it is the cheapest norm;
    it is loose by up to :math:`\sqrt{n}`. Each of the two norms alone bounds the stretch in its own
    norm; together they bound the Euclidean stretch, in which this package measures the error of an
    inverse and the length of a series.

    Raises:
        ArgumentError, ArgumentTypeError: in a call: ``weight`` is no matrix or batch of matrices.

    Example:
        >>> import torch
        >>> Schur()(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        tensor(2.4495)
    """

    def __call__(self, weight: Tensor) -> Tensor:
        check_weight(weight)
        return at_size_one(weight.abs(), _schur)

    def sizes(self, weights: Tensor) -> Tensor:
        # A row of a convolution holds each entry of its kernel once.
        return self(weights.abs().flatten(3).sum(3) if weights.dim() == 5 else weights)


def _frobenius(weight: Tensor) -> Tensor:
    # In float32 the sum of a million squares is off in the fifth digit.
    precise = torch.complex128 if weight.is_complex() else torch.float64
    return torch.linalg.matrix_norm(weight.to(precise)).to(weight.real.dtype)


def _schur(size: Tensor) -> Tensor:
    return (size.sum(-1).amax(-1) * size.sum(-2).amax(-1)).sqrt()
