r"""Power series :math:`f(z) = \sum_k c_k z^k` with :math:`\log|\det dy/dx| = \mathrm{tr} f(J)`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import COARSE, in_plain_autograd, in_torch_func, needs_plain_operations


@dataclass(frozen=True)
class Series(ABC):
    r"""The series of a block: its log-determinant as a function of the Jacobian of ``g``.

    .. math:: \log\Big|\det\frac{dy}{dx}\Big| = \mathrm{tr} f(J) = \sum_{k \ge 1} c_k\,
              \mathrm{tr}(J^k), \qquad d\,\mathrm{tr} f(J) = \mathrm{tr}(f'(J)\, dJ)

    To write one, define :meth:`coefficient`, :meth:`log_det`, :meth:`expand` and :meth:`tail`. A
    series has no fields, so that a compiled graph can name it.
    """

    @abstractmethod
    def coefficient(self, k: int) -> float:
        """Return ``c_k``, for ``k`` of at least 1."""

    def slope_coefficient(self, k: int) -> float:
        r"""Return the coefficient :math:`(k + 1)\, c_{k+1}` of :math:`z^k` in :math:`f'`."""
        return (k + 1) * self.coefficient(k + 1)

    @abstractmethod
    def log_det(self, matrix: Tensor) -> Tensor:
        """Return ``tr f(A)``, differentiable, shapes ``(*batch, D, D)`` to ``(*batch,)``."""

    @abstractmethod
    def expand(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``tr f(A)`` and the matrix ``f'(A)``, for one matrix of norm below 1."""

    @abstractmethod
    def tail(self, terms: int, lipschitz: float) -> float:
        r"""Bound :math:`\sum_{k > n} |c_k| L^{k-n}` after ``n`` terms."""


@dataclass(frozen=True)
class LogOnePlus(Series):
    r""":math:`\log(1 + z) = z - z^2/2 + z^3/3 - \dots`, the series of :math:`y = x + g(x)`.

    Behrmann et al. (2019), Equation 4.

    Example:
        >>> series = LogOnePlus()
        >>> [series.coefficient(k) for k in (1, 2)], series.slope_coefficient(1)
        ([1.0, -0.5], -1.0)
    """

    def coefficient(self, k: int) -> float:
        # Not a power of -1: torch.compile takes that power wrongly for a symbolic k (torch 2.13).
        return (1.0 if k % 2 else -1.0) / k

    def slope_coefficient(self, k: int) -> float:
        return -1.0 if k % 2 else 1.0

    def log_det(self, matrix: Tensor) -> Tensor:
        return log_det_one_plus(matrix)

    def expand(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        factors, pivots = torch.linalg.lu_factor(eye + matrix)
        log_det = factors.diagonal().abs().log().sum()
        return log_det, torch.linalg.lu_solve(factors, pivots, eye)

    def tail(self, terms: int, lipschitz: float) -> float:
        return lipschitz / ((terms + 1) * (1 - lipschitz))


def log_det_one_plus(a: Tensor) -> Tensor:
    """Return ``log|det(I + A)|``, in closed form for sides 1 and 2, else by LU factors."""
    if a.dtype in COARSE:
        return log_det_one_plus(a.float()).to(a)
    match a.shape[-1]:
        case 1:
            return torch.log1p(a[..., 0, 0])
        case 2:
            return _LogDet2.apply(a) if in_plain_autograd() else torch.log(_det2(a)[0])
    # The identity first: torch.compile takes a wrong gradient of the sum in the other order, whose
    # strides are those of a transposed matrix (torch 2.13, inductor).
    b = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) + a
    if in_torch_func():
        # Forward mode under vmap, the way of torch.func.hessian over a batch, gives wrong numbers
        # for slogdet and solve (torch 2.13), and right ones for LU factors.
        factors, _ = torch.linalg.lu_factor(b)
        return factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return torch.linalg.slogdet(b).logabsdet


def _det2(a: Tensor) -> tuple[Tensor, ...]:
    """Return ``det(I + A)`` of 2 x 2 matrices, and the entries of ``I + A``."""
    p, q, r, s = a.flatten(-2).unbind(-1)
    p, s = 1 + p, 1 + s
    return p * s - q * r, p, q, r, s


def _slope2(det: Tensor, p: Tensor, q: Tensor, r: Tensor, s: Tensor) -> Tensor:
    r"""Return :math:`(I + A)^{-\top}` from the results of :func:`_det2`, ``(2, 2, *batch)``."""
    return (torch.stack([s, -r, -q, p]) / det).unflatten(0, (2, 2))


class _LogDet2(Function):
    """``log det(I + A)`` of 2 x 2 matrices, in fewer operations than autograd takes."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        found = _det2(a)
        ctx.save_for_backward(a, _slope2(*found))
        return found[0].log()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        a, slope = ctx.saved_tensors
        if needs_plain_operations(grad_outputs):
            # In a second derivative the slope must be a function of the matrix again.
            slope = _slope2(*_det2(a))
        return (slope * grad_outputs[0]).movedim((0, 1), (-2, -1))
