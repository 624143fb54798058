r"""Spectral norms of weights, and weights scaled to a bound of theirs.

``Lip(W x + b) = ||W||_2`` (seed report Eq. 8-10; Behrmann et al. 2019, Eq. 3). Each strategy is a
pure function of the weight, differentiable through the norm: stopping the gradient there costs a
flow most of its fit.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import check_positive_int
from ..torch_modes import in_forward_mode, is_tracing


@dataclass(frozen=True)
class Norm(ABC):
    """A way to take ``||W||_2``, and to keep it at a bound.

    To write one, define :meth:`norm` for a batch of matrices; where that is no upper bound of the
    spectral norm, define :meth:`proven` too.
    """

    @abstractmethod
    def norm(self, weight: Tensor) -> Tensor:
        """The norm by which weights are scaled, differentiable.

        It is that of the transpose too, since matrices of one shape up to transposition are taken
        together.

        Arguments:
            weight: shape ``(*batch, rows, columns)``.

        Returns:
            shape ``(*batch,)``.
        """

    def proven(self, weight: Tensor) -> Tensor:
        """A proven upper bound of ``||weight||_2``, shapes as in :meth:`norm`."""
        return self.norm(weight)

    def constrain(
        self, weight: Tensor, bound: float | Tensor, scale: Tensor | None = None
    ) -> Tensor:
        r"""``weight`` where its norm is at most ``bound``, else scaled to it.

        .. math:: W \min(1, c / \lVert W \rVert)

        (Behrmann et al. 2019, Eq. 3: "soft" scaling, which leaves smaller weights alone).

        Arguments:
            weight: shape ``(*batch, rows, columns)``.
            bound: above 0, a number or a tensor of shape ``(*batch,)``.
            scale: what to multiply the result by, shape ``(*batch,)``.
        """
        # A norm has no second derivative at 0, where a last layer may start: it is asked
        # elsewhere, and the answer left out.
        zero = (weight == 0).flatten(-2).all(-1)
        norm = self.norm(torch.where(zero[..., None, None], 1.0, weight))
        # A clamp below the bound makes the factor exactly 1, and its gradient 0, where W is small.
        factor = torch.where(zero, 1.0, bound / norm.clamp(min=bound))
        if scale is not None:
            factor = factor * scale
        return weight * factor[..., None, None]

    def constrain_all(
        self,
        weights: Sequence[Tensor],
        bounds: Sequence[float],
        scales: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """:meth:`constrain` for many matrices, those of one shape (or its transpose) at once.

        Arguments:
            weights: matrices of any shapes.
            bounds: one for each.
            scales: one scalar for each, None for 1.
        """
        if scales is None:
            scales = [None] * len(weights)
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, w in enumerate(weights):
            groups[min(w.shape), max(w.shape), w.dtype, w.device].append(i)
        acting = list(weights)
        for members in groups.values():
            wide = [_wide(weights[i]) for i in members]
            if len(wide) == 1:
                scaled = [self.constrain(wide[0], bounds[members[0]], scales[members[0]])]
            else:
                many = torch.stack(wide)
                each = many.new_tensor([bounds[i] for i in members])
                scaled = self.constrain(many, each, _stack([scales[i] for i in members], many))
                scaled = scaled.unbind()
            for i, w in zip(members, scaled, strict=True):
                acting[i] = w if weights[i].shape == w.shape else w.mT
        return acting


def _stack(scales: list[Tensor | None], like: Tensor) -> Tensor | None:
    if all(scale is None for scale in scales):
        return None
    one = like.new_ones(())
    return torch.stack([one if scale is None else scale for scale in scales])


def _wide(weight: Tensor) -> Tensor:
    # Of the two orientations the one whose products have long rows, which run up to twice as fast.
    return weight.mT if weight.shape[-2] > weight.shape[-1] else weight


@dataclass(frozen=True)
class Gram(Norm):
    r"""A smooth, certified bound from repeated squarings of the Gram matrix.

    .. math:: S(W) = \lVert Q W \rVert_F^{2/p} \ge \lVert W \rVert_2,
              \qquad Q = (W W^\top)^{2^k}, \quad p = 2^{k+2} + 2

    It is the Schatten norm of order ``p``: loose by at most the factor :math:`n^{1/p}` for ``n``
    the smaller side of W (1.6% at n = 64, k = 6). Made of matrix products only, with its gradient
    in closed form, one product more: :math:`\nabla S = Q\, (Q W) / S^{p-1}`.

    Arguments:
        squarings: ``k``, at least 1.

    References:
        The rescaled Gram iteration: Efficient Bound of Lipschitz Constant for Convolutional Layers
        by Gram Iteration (Delattre et al., 2023).

    Example:
        >>> import torch
        >>> round(Gram(squarings=6).norm(torch.diag(torch.tensor([3.0, 1.0]))).item(), 4)
        3.0
    """

    squarings: int = 6

    def __post_init__(self) -> None:
        check_positive_int(self.squarings, "squarings")

    def norm(self, weight: Tensor) -> Tensor:
        if is_tracing() or in_forward_mode():
            # A tracer records operations and knows no autograd function written in Python, and one
            # with a forward-mode rule does not compile: both take the operations as they are.
            return _gram(weight, self.squarings)[0]
        return _GramNorm.apply(weight, self.squarings)[0]


# Squarings between two rescalings: a matrix of norm 1 and side n falls to n^-4 at worst, which
# float32 holds for sides of some thousands.
RESCALE_EVERY = 3


def _gram(weight: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """``S(W)`` and its gradient ``dS/dW``, both by differentiable operations."""
    tiny = torch.finfo(weight.dtype).tiny
    w = _wide(weight)
    # By the largest entry: the squares in a norm under- or overflow where the entries do not.
    scale = w.abs().amax((-2, -1), keepdim=True).clamp(min=tiny)
    unit = w / scale
    power = unit @ unit.mT
    order = 2 ** (squarings + 2) + 2
    log_norm = torch.zeros_like(scale)
    for done in range(squarings + 1):
        if done % RESCALE_EVERY == 0 or done == squarings:
            size = torch.linalg.vector_norm(power, dim=(-2, -1), keepdim=True).clamp(min=tiny)
            # Squared once more for every squaring to come.
            log_norm = log_norm + size.log() * (2.0 ** (squarings - done + 1) / order)
            power = power / size
        if done < squarings:
            power = power @ power
    product = power @ unit
    size = torch.linalg.vector_norm(product, dim=(-2, -1), keepdim=True).clamp(min=tiny)
    root = torch.exp(log_norm + size.log() * (2.0 / order))
    direction = power @ product
    # A norm has <W, dS/dW> = S (Euler), which gives the factor that the rescalings dropped.
    euler = (unit * direction).sum((-2, -1), keepdim=True).clamp(min=tiny)
    direction = direction * (root / euler)
    if weight.shape[-2] > weight.shape[-1]:
        direction = direction.mT
    return (scale * root)[..., 0, 0], direction


class _GramNorm(Function):
    """``(S(W), dS/dW)`` of which the second output only serves the backward pass."""

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
            # A second derivative is under way: the direction has to be a function of W again.
            direction = _gram(weight, ctx.squarings)[1]
        return grad_outputs[0][..., None, None] * direction, None


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
        return torch.linalg.matrix_norm(weight, ord=2)


@dataclass(frozen=True)
class Frobenius(Norm):
    r"""The Frobenius norm, an upper bound (seed report, footnote 2), loose by up to
    :math:`\sqrt{n}` for ``n`` the smaller side.

    Example:
        >>> import torch
        >>> Frobenius().norm(torch.diag(torch.tensor([3.0, 4.0]))).item()
        5.0
    """

    def norm(self, weight: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(weight)


@dataclass(frozen=True)
class PowerIteration(Norm):
    r"""Power iteration (seed report App. B, Eq. 32-34; Miyato et al. 2018): a LOWER bound.

    .. math:: v \leftarrow W^\top u / \lVert W^\top u \rVert,\quad
              u \leftarrow W v / \lVert W v \rVert,\quad \lVert W \rVert_2 \approx u^\top W v

    What it returns is never above ``||W||_2``, so weights scaled by it may exceed the bound:
    ``lipschitz_bound()`` then gives their exact norm, and ``inverse`` refuses a contraction whose
    proven bound is 1 or more. Every call starts from the same vector, so that the norm is a pure
    function of W. The gradient is that of ``u^T W v`` with ``u, v`` held fixed,
    :math:`u v^\top`.

    Arguments:
        steps: iterations, at least 1.

    Example:
        >>> import torch
        >>> norm = PowerIteration(steps=50)
        >>> round(norm.norm(torch.diag(torch.tensor([3.0, 1.0]))).item(), 4)
        3.0
    """

    steps: int = 10

    def __post_init__(self) -> None:
        check_positive_int(self.steps, "steps")

    def norm(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            tiny = torch.finfo(weight.dtype).tiny
            # The vector of ones that App. B proposes is orthogonal to the leading singular vector
            # of many a structured W; the slope makes that a coincidence of measure zero.
            rows = weight.shape[-2]
            u = torch.linspace(1.0, 2.0, rows, dtype=weight.dtype, device=weight.device)[:, None]
            v = u
            for _ in range(self.steps):
                v = weight.mT @ u
                v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp(min=tiny)
                u = weight @ v
                u = u / torch.linalg.vector_norm(u, dim=-2, keepdim=True).clamp(min=tiny)
        return (u * (weight @ v)).sum((-2, -1))

    def proven(self, weight: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(weight, ord=2)
