"""Rows rescaled until they are almost orthogonal."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .base import Norm, wide
from .checks import check_weight
from .convolution import at_size_one


@dataclass(frozen=True)
class AlmostOrthogonal(Norm):
    r"""Each row scaled by itself, until all rows together have norm at most 1.

    .. math:: \lVert D^{-1/2} W \rVert_2 \le 1, \qquad D_{ii} = \sum_j |W W^\top|_{ij}

    with the smaller side of W as the rows. A row below the bound is left alone, so the scaling is
    soft row by row. It costs one product. Rows that point the same way share the budget. For a
    convolution the sum also runs over the offsets between two kernels, and the bound holds at every
    image size.

    Raises:
        ArgumentError, ArgumentTypeError: in a call: ``weight`` is no matrix or batch of matrices.

    References:
        Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks (Prach and
        Lampert, 2022), Theorem 1.

    Example:
        >>> import torch
        >>> AlmostOrthogonal().constrain(torch.diag(torch.tensor([3.0, 0.5])), 1.0).diag()
        tensor([1.0000, 0.5000])
    """

    def __call__(self, weight: Tensor) -> Tensor:
        check_weight(weight)
        return at_size_one(wide(weight), lambda w: _roots((w @ w.mH).abs().sum(-1)).amax(-1))

    def sizes(self, weights: Tensor) -> Tensor:
        return at_size_one(weights, _sizes, weights.dim() - 1)


def _sizes(weights: Tensor) -> Tensor:
    if weights.dim() == 3:
        return _roots((weights @ weights.mT).abs().sum(-1))
    n, rows, columns, height, width = weights.shape
    # One convolution, with a group for each weight, takes every kernel with every other at every
    # offset.
    images = weights.transpose(0, 1).reshape(rows, n * columns, height, width)
    kernels = weights.reshape(n * rows, columns, height, width)
    products = functional.conv2d(
        images, kernels, padding=(height - 1, width - 1), groups=n
    ).reshape(rows, n, -1)
    return _roots(products.abs().sum(-1)).T


def _roots(sums: Tensor) -> Tensor:
    # The root has no derivative at 0.
    return torch.where(sums == 0, 0.0, torch.where(sums == 0, 1.0, sums).sqrt())
