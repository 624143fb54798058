"""Weights whose rows are made orthogonal by a Cholesky factor."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import in_forward_mode, is_tracing
from ..errors import ArgumentError, check_instance, check_positive, store_checked
from .base import Norm
from .gram import Gram
from .together import Rule


@dataclass(frozen=True)
class Cholesky(Norm):
    r"""Every singular value brought near the bound, not only the largest one.

    .. math:: c\, K^{-1} W, \qquad K K^\top = W W^\top + \delta^2 I

    with the smaller side of W as the rows. A singular value :math:`\sigma` becomes
    :math:`c\, \sigma / \sqrt{\sigma^2 + \delta^2} < c`, so the bound is proven without a norm. The
    other strategies divide a weight by one number: once one direction has grown, the other
    directions lose their part of the budget. Here each direction has a budget of its own.

    A convolution maps the patch around each pixel, and each pixel stands in as many patches as the
    kernel has positions, ``p``. With c channels on one side of a kernel and at least ``c p`` on the
    other side, W is the matrix of the patches, and :math:`c\, K^{-1} W / \sqrt{p}` keeps the bound
    for images of every size; where W is large, all frequencies keep their size. For fewer
    channels a row of W holds one channel at all positions, and the product :math:`K^{-1} W` is
    scaled by a norm of its Fourier symbol.

    Arguments:
        damping: :math:`\delta`, above 0. Singular values well below :math:`\delta` stay in
            proportion; singular values well above it become all alike.
        norm: takes the norm of a convolution.

    Raises:
        ArgumentError, ArgumentTypeError: ``damping`` is no number above 0, or ``norm`` is no
            certified :class:`Norm`.

    References:
        A Recipe for Improved Certifiable Robustness (Hu, Leino, Wang and Fredrikson, 2024), for
        orthogonal weights by a Cholesky factor, without damping.

    Example:
        >>> import torch
        >>> weight = torch.diag(torch.tensor([4.0, 0.4]))
        >>> Cholesky(damping=0.3).constrain(weight, 1.0).diag()
        tensor([0.9972, 0.8000])
    """

    damping: float = 0.3
    norm: Norm = field(default_factory=Gram)

    def __post_init__(self) -> None:
        store_checked(self, check_positive, "damping")
        if not check_instance(self.norm, Norm, "norm", "Gram()").certified:
            raise ArgumentError(
                f"Expected norm to prove its bound, as Gram() does; got {self.norm}."
            )

    def __call__(self, weight: Tensor) -> Tensor:
        return self.norm(weight)

    def proven(self, weight: Tensor) -> Tensor:
        return self.norm.proven(weight)

    def apply(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if weights.dim() != 3:
            return self._apply_to_kernels(weights, bounds, scales)
        bounds = bounds if scales is None else bounds * scales
        acting = whitened(weights, self.damping) * bounds[:, None, None]
        seen = acting.detach().isfinite().flatten(1).all(1)
        return acting, torch.where(seen, bounds.detach().abs(), torch.nan)

    def _apply_to_kernels(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        # Shape (n, few channels, many channels, height, width).
        positions = weights.shape[3:].numel()
        if weights.shape[1] * positions > weights.shape[2]:
            rows = whitened(weights.flatten(2), self.damping)
            return self.norm.apply(rows.reshape(weights.shape), bounds, scales)
        patches = weights.movedim(2, -1)
        matrices = patches.flatten(1, 3)
        acting, known = self.apply(matrices, bounds / math.sqrt(positions), scales)
        kernels = acting.reshape(patches.shape).movedim(-1, 2)
        return kernels, None if known is None else known * math.sqrt(positions)

    def rule(self) -> Rule | None:
        return _CholeskyRule(self.damping) if type(self) is Cholesky else None


def whitened(rows: Tensor, damping: float) -> Tensor:
    """Return :math:`L^{-1} W`, of norm below 1, for matrices of shape ``(n, rows, columns)``."""
    if is_tracing() or in_forward_mode():
        # As in Gram: a tracer and forward mode need the plain operations.
        return _whitened(rows, damping)[0]
    return _Whitened.apply(rows, damping)[0]


def _whitened(rows: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return :math:`X = L^{-1} W`, and :math:`L^{-1}`, both by differentiable operations."""
    n, columns = rows.shape[-2:]
    # The square of a weight needs twice the digits that float32 holds.
    precise = rows.double()
    scale = _scale(precise.detach(), damping)
    unit = precise / scale
    # The product and its factor round: this much damping keeps the norm below 1 all the same.
    rounding = 4 * (n + columns) * torch.finfo(unit.dtype).eps
    size = unit.detach().square().sum((-2, -1), keepdim=True)
    diagonal = (damping / scale).square() + rounding * size
    eye = torch.eye(n, dtype=unit.dtype, device=unit.device)
    gram = unit @ unit.mT + diagonal * eye
    # LAPACK raises at NaN. The rows keep the NaN, so that it shows where it arose.
    finite = gram.isfinite().flatten(-2).all(-1)[..., None, None]
    factor = torch.linalg.cholesky_ex(torch.where(finite, gram, eye)).L
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return (inverse @ unit).to(rows.dtype), (inverse / scale).to(rows.dtype)


def _scale(rows: Tensor, damping: float) -> Tensor:
    """Return the largest entry, at least the damping: the square of an entry may overflow."""
    return rows.abs().amax((-2, -1), keepdim=True).clamp(min=damping)


class _Whitened(Function):
    r"""The pair ``(X, L^{-1})``; its second entry serves the backward pass only.

    :math:`dX = L^{-1} dW - \Phi(L^{-1}\, d(W W^\top)\, L^{-\top})\, X`, with :math:`\Phi` the
    lower triangle and half of the diagonal. So a gradient G with respect to X gives the gradient
    with respect to W

    .. math:: L^{-\top} (G - (M + M^\top) X), \qquad M = \Phi(G X^\top)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        return _whitened(rows, damping)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        rows, damping = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(rows, *output)
        ctx.damping = damping

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        rows, whole, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative is under way: X and L^-1 must be functions of W again.
            whole, inverse = _whitened(rows, ctx.damping)
        grad = grad_outputs[0]
        product = grad @ whole.mT
        half = torch.tril(product, -1) + 0.5 * torch.diag_embed(product.diagonal(dim1=-2, dim2=-1))
        return inverse.mT @ (grad - (half + half.mT) @ whole), None


# The largest side that LAPACK factorises and inverts faster than matrix products do by parts.
LEAF = 64


@dataclass(frozen=True)
class _CholeskyRule(Rule):
    damping: float

    def normalize(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        n, columns = weights.shape[-2:]
        factors = bounds if scales is None else bounds * scales
        spread = factors[:, None, None]
        # In float64, no square of a float32 number over- or underflows.
        unit, damping, shares = weights.double(), self.damping, spread
        if unit is weights:
            scale = _scale(weights, damping)
            unit, damping, shares = unit / scale, damping / scale[..., 0], spread / scale
        gram = unit @ unit.mT
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        rounding = 4 * (n + columns) * torch.finfo(unit.dtype).eps
        diagonal += damping**2 + rounding * diagonal.sum(-1, keepdim=True)
        inverse = _inverse_factor(gram)
        whole = (inverse @ unit).to(weights.dtype)
        seen = whole.sum((-2, -1)).isfinite()
        known = torch.where(seen, factors.abs(), torch.nan)
        return whole * spread, known, (bounds, whole, (inverse * shares).to(weights.dtype))

    def gradient(self, grad: Tensor, scales: Tensor | None, kept: Any) -> tuple[Tensor, Tensor]:
        bounds, whole, inverse = kept
        half = (grad @ whole.mT).tril_()
        diagonal = half.diagonal(dim1=-2, dim2=-1)
        of_scales = bounds * diagonal.sum(-1)
        diagonal *= 0.5
        both = half + half.mT
        return inverse.mT @ torch.baddbmm(grad, both, whole, alpha=-1), of_scales


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the inverse of the Cholesky factor of matrices, shape ``(n, rows, rows)``."""
    factor = torch.linalg.cholesky_ex(gram[:, :LEAF, :LEAF]).L
    eye = torch.eye(factor.shape[-1], dtype=gram.dtype, device=gram.device)
    first = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    if gram.shape[-1] <= LEAF:
        return first
    below = torch.linalg.solve_triangular(factor, gram[:, :LEAF, LEAF:], upper=False).mT
    rest = _inverse_factor(torch.baddbmm(gram[:, LEAF:, LEAF:], below, below.mT, alpha=-1))
    inverse = torch.zeros_like(gram)
    inverse[:, :LEAF, :LEAF], inverse[:, LEAF:, LEAF:] = first, rest
    inverse[:, LEAF:, :LEAF] = -(rest @ (below @ first))
    return inverse
