"""Norms in closed form, and the exact one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .norms import Norm
from .symbol import at_size_one, spectral_norm


@dataclass(frozen=True)
class SingularValue(Norm):
    """The exact largest singular value, by a singular value decomposition.

    Certified and tight. Its gradient sees one singular value at a time: only ``u v^T`` of the
    largest.

    Example:
        >>> import torch
        >>> SingularValue().norm(torch.diag(torch.tensor([3.0, 1.0]))).item()
        3.0
    """

    def norm(self, weight: Tensor) -> Tensor:
        return spectral_norm(weight)


@dataclass(frozen=True)
class Frobenius(Norm):
    r"""The Frobenius norm, an upper bound (reading report, footnote 2), loose by up to
    :math:`\sqrt{n}` for ``n`` the smaller side.

    Example:
        >>> import torch
        >>> Frobenius().norm(torch.diag(torch.tensor([3.0, 4.0]))).item()
        5.0
    """

    def norm(self, weight: Tensor) -> Tensor:
        return at_size_one(weight, _frobenius)


@dataclass(frozen=True)
class Schur(Norm):
    r"""The geometric mean of the induced norms of order 1 and infinity, an upper bound.

    .. math:: \lVert W \rVert_2 \le \sqrt{\lVert W \rVert_1 \lVert W \rVert_\infty},\quad
              \lVert W \rVert_1 = \max_j \sum_i |W_{ij}|,\quad
              \lVert W \rVert_\infty = \max_i \sum_j |W_{ij}|

    (Schur's test.) Each of the two alone bounds the stretch in its own norm only, in which neither
    the error of an inverse nor the length of a series is measured here; together they bound the
    Euclidean one. Two sums and no product of matrices: the cheapest of all, and loose by up to
    :math:`\sqrt{n}`.

    Example:
        >>> import torch
        >>> Schur().norm(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        tensor(2.4495)
    """

    def norm(self, weight: Tensor) -> Tensor:
        return at_size_one(weight.abs(), _schur)

    def sizes(self, weights: Tensor) -> Tensor:
        # A convolution's rows hold the entries of its kernel, each once.
        return self.norm(weights.abs().flatten(3).sum(3) if weights.dim() == 5 else weights)


def _frobenius(weight: Tensor) -> Tensor:
    # In float32 the sum of a million squares is off in the fifth digit.
    precise = torch.complex128 if weight.is_complex() else torch.float64
    return torch.linalg.matrix_norm(weight.to(precise)).to(weight.real.dtype)


def _schur(size: Tensor) -> Tensor:
    return (size.sum(-1).amax(-1) * size.sum(-2).amax(-1)).sqrt()
