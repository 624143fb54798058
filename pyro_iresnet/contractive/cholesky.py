"""Weights whose rows are made orthogonal by a Cholesky factor."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import ArgumentError, check_instance, check_positive
from ..torch_modes import in_forward_mode, is_tracing
from .gram import Gram
from .norms import Norm


@dataclass(frozen=True)
class Cholesky(Norm):
    r"""Every singular value brought near the bound, not only the largest one.

    .. math:: c\, L^{-1} W, \qquad L L^\top = W W^\top + \delta^2 I

    with the smaller side of W as the rows. A singular value :math:`\sigma` becomes
    :math:`c\, \sigma / \sqrt{\sigma^2 + \delta^2} < c`, so the bound is proven without a norm. The
    other strategies divide a weight by one number: as soon as one direction has grown, all others
    have lost their part of the budget. Here each direction spends its own, whatever the others do.

    The kernel of a convolution is multiplied by :math:`L^{-1}` over its channels, with its entries
    at all positions in one row, and then scaled by a norm of its Fourier symbol.

    Arguments:
        damping: :math:`\delta`, above 0. Singular values well below it stay in proportion, those
            well above are all alike.
        by: takes the norm of a convolution.

    Raises:
        ArgumentError: ``damping`` is not above 0, or ``by`` is not certified.
        ArgumentTypeError: one of the wrong type.

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
    by: Norm = field(default_factory=Gram)

    def __post_init__(self) -> None:
        check_positive(self.damping, "damping")
        if not check_instance(self.by, Norm, "by", "Gram()").certified:
            raise ArgumentError(f"Expected by to prove its bound, as Gram() does; got {self.by}.")

    def norm(self, weight: Tensor) -> Tensor:
        return self.by.norm(weight)

    def proven(self, weight: Tensor) -> Tensor:
        return self.by.proven(weight)

    def apply(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if weights.dim() != 3:
            rows = whitened(weights.flatten(2), self.damping)
            return self.by.apply(rows.reshape(weights.shape), bounds, scales)
        bounds = bounds if scales is None else bounds * scales
        acting = whitened(weights, self.damping) * bounds[:, None, None]
        seen = acting.detach().isfinite().flatten(1).all(1)
        return acting, torch.where(seen, bounds.detach().abs(), torch.nan)


def whitened(rows: Tensor, damping: float) -> Tensor:
    r""":math:`L^{-1} W`, of norm below 1, for matrices of shape ``(n, rows, columns)``."""
    if is_tracing() or in_forward_mode():
        # As for Gram: a tracer and a forward-mode rule take the operations as they are.
        return _whitened(rows, damping)[0]
    return _Whitened.apply(rows, damping)[0]


def _whitened(rows: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    r""":math:`X = L^{-1} W`, and :math:`L^{-1}`, both by differentiable operations."""
    n, columns = rows.shape[-2:]
    # Float32 holds half of the digits that the square of a weight asks for.
    precise = rows.double()
    # By the largest entry, since its square overflows where it does not.
    scale = precise.detach().abs().amax((-2, -1), keepdim=True).clamp(min=damping)
    unit = precise / scale
    # Of a product that rounds, and a factor of it: what could exceed 1 is damped away.
    rounding = 4 * (n + columns) * torch.finfo(unit.dtype).eps
    size = unit.detach().square().sum((-2, -1), keepdim=True)
    diagonal = (damping / scale).square() + rounding * size
    eye = torch.eye(n, dtype=unit.dtype, device=unit.device)
    gram = unit @ unit.mT + diagonal * eye
    # LAPACK raises at what is not a number; the rows keep it, to be seen where it came from.
    finite = gram.isfinite().flatten(-2).all(-1)[..., None, None]
    factor = torch.linalg.cholesky_ex(torch.where(finite, gram, eye)).L
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return (inverse @ unit).to(rows.dtype), (inverse / scale).to(rows.dtype)


class _Whitened(Function):
    r"""``(X, L^{-1})`` of which the second output only serves the backward pass.

    From :math:`dX = L^{-1} dW - \Phi(L^{-1}\, d(W W^\top)\, L^{-\top})\, X`, with
    :math:`\Phi` the lower triangle and half of the diagonal, a gradient G of X is one of W by

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
            # A second derivative is under way: both have to be functions of W again.
            whole, inverse = _whitened(rows, ctx.damping)
        grad = grad_outputs[0]
        product = grad @ whole.mT
        half = torch.tril(product, -1) + 0.5 * torch.diag_embed(product.diagonal(dim1=-2, dim2=-1))
        return inverse.mT @ (grad - (half + half.mT) @ whole), None
