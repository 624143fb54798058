"""The spectral norm from the Gram matrix: exact, and by repeated squarings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import in_forward_mode, is_tracing
from ..errors import check_positive_int, store_checked
from .base import Norm, wide
from .checks import check_weight
from .convolution import spectral_norm
from .together import Rule


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
class Gram(Norm):
    r"""A smooth, certified bound from repeated squarings of the Gram matrix.

    .. math:: S(W) = \lVert Q W \rVert_F^{2/p} \ge \lVert W \rVert_2,
              \qquad Q = (W W^\top)^{2^k}, \quad p = 2^{k+2} + 2

    S is the Schatten norm of order ``p``. It is loose by at most the factor :math:`n^{1/p}` for
    ``n`` the smaller side of W (1.6% at n = 64, k = 6). It takes matrix products only, and one
    product more for its gradient in closed form, :math:`\nabla S = Q\, (Q W) / S^{p-1}`.

    Arguments:
        squarings: ``k``, an integer of at least 1.

    Raises:
        ArgumentError, ArgumentTypeError: ``squarings`` is no integer of at least 1.

    References:
        The rescaled Gram iteration: Efficient Bound of Lipschitz Constant for Convolutional Layers
        by Gram Iteration (Delattre et al., 2023).

    Example:
        >>> import torch
        >>> round(Gram(squarings=6)(torch.diag(torch.tensor([3.0, 1.0]))).item(), 4)
        3.0
    """

    squarings: int = 6

    def __post_init__(self) -> None:
        store_checked(self, check_positive_int, "squarings")

    def __call__(self, weight: Tensor) -> Tensor:
        check_weight(weight)
        if is_tracing() or in_forward_mode() or not torch.is_grad_enabled():
            # A tracer cannot record an autograd function written in Python, and an autograd
            # function with a forward-mode rule does not compile: both need the plain operations.
            # Without gradients there is no direction to compute.
            w = wide(weight)
            scale = _scale(w)
            return (scale * _schatten(w / scale, self.squarings)[0])[..., 0, 0]
        return _GramNorm.apply(weight, self.squarings)[0]

    def rule(self) -> Rule | None:
        return _GramRule(self.squarings) if type(self) is Gram else None


# Squarings between two rescalings: a matrix of norm 1 and side n falls to n^-4 at worst, and
# float32 holds n^-4 for sides of some thousands.
RESCALE_EVERY = 3


def _gram(weight: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """Return ``S(W)`` and its gradient ``dS/dW``, both by differentiable operations."""
    w = wide(weight)
    scale = _scale(w)
    unit = w / scale
    root, power, product, _ = _schatten(unit, squarings)
    direction = power @ product
    # <W, dS/dW> = S for a norm (Euler): this gives the factor that the rescalings dropped.
    euler = (_real(unit) * _real(direction)).sum((-2, -1), keepdim=True)
    direction = direction * (root / euler.clamp(min=torch.finfo(weight.dtype).tiny))
    if weight.shape[-2] > weight.shape[-1]:
        direction = direction.mT
    return (scale * root)[..., 0, 0], direction


def _scale(weight: Tensor) -> Tensor:
    """Return the largest part of an entry: squares may under- or overflow where entries do not."""
    tiny = torch.finfo(weight.dtype).tiny
    return _real(weight).abs().amax((-2, -1), keepdim=True).clamp(min=tiny)


def _frobenius(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_real(matrix), dim=(-2, -1), keepdim=True)


def _real(matrix: Tensor) -> Tensor:
    """Return the parts of complex entries, whose norm torch takes 30 times faster."""
    return torch.view_as_real(matrix).flatten(-2) if matrix.is_complex() else matrix


def _schatten(unit: Tensor, squarings: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return S, Q, and QW with its norm, for matrices of size 1; Q is divided by a number."""
    tiny = torch.finfo(unit.dtype).tiny
    power = unit @ unit.mH
    order = 2 ** (squarings + 2) + 2
    log_norm = 0.0
    for done in range(squarings + 1):
        if done % RESCALE_EVERY == 0 or done == squarings:
            size = _frobenius(power).clamp(min=tiny)
            # Every later squaring squares this factor once more.
            log_norm = log_norm + size.log() * (2.0 ** (squarings - done + 1) / order)
            power = power / size
        if done < squarings:
            power = power @ power
    product = power @ unit
    size = _frobenius(product).clamp(min=tiny)
    root = torch.exp(log_norm + size.log() * (2.0 / order))
    return root, power, product, size


class _GramNorm(Function):
    """The pair ``(S(W), dS/dW)``; its second entry serves the backward pass only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
        size, direction = _gram(weight, squarings)
        return size, direction

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        weight, squarings = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, output[1])
        ctx.squarings = squarings

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        weight, direction = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative is under way: the direction must be a function of W again.
            direction = _gram(weight, ctx.squarings)[1]
        return grad_outputs[0][..., None, None] * direction, None


# A product with a side of 61 to 63 takes up to a third longer than a product with a side of 64.
# From this side on, at most this many rows of 0 are added to reach a multiple of 8: more rows, or
# rows of a smaller side, cost more than they save.
PADDED_FROM, MOST_PADDING = 32, 3


@dataclass(frozen=True)
class _GramRule(Rule):
    squarings: int

    def normalize(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        n, rows, columns = weights.shape
        scale = _scale(weights)
        padding = -rows % 8
        if rows >= PADDED_FROM and 0 < padding <= MOST_PADDING:
            unit = weights.new_zeros(n, rows + padding, columns)
            torch.div(weights, scale, out=unit[:, :rows])
        else:
            unit = weights / scale
        root, power, product, size = _schatten(unit, self.squarings)
        sizes = (scale * root).flatten()
        largest = torch.maximum(sizes, bounds)
        soft = bounds / largest
        factors = soft if scales is None else soft * scales
        acting = weights * factors[:, None, None]
        # dS/dW is Q (Q W) times S / ||Q W||^2, by <W, dS/dW> = S.
        slope = torch.where(sizes > bounds, -(root / size.square()).flatten() / largest, 0.0)
        kept = (weights, soft, factors, slope, power[:, :rows], product)
        return acting, sizes * factors.abs(), kept

    def gradient(self, grad: Tensor, scales: Tensor | None, kept: Any) -> tuple[Tensor, Tensor]:
        weights, soft, factors, slope, power, product = kept
        of_scales = soft * (weights * grad).sum((-2, -1))
        slope = slope * (of_scales if scales is None else of_scales * scales)
        direct = grad * factors[:, None, None]
        return torch.baddbmm(direct, power, product * slope[:, None, None]), of_scales
