r"""Spectral norms of weights, and weights scaled to a bound of theirs.

``Lip(W x + b) = ||W||_2`` (seed report Eq. 8-10; Behrmann et al. 2019, Eq. 3). Each strategy is a
pure function of the weight, differentiable through the norm: stopping the gradient there costs a
flow most of its fit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import check_positive_int
from ..torch_modes import in_forward_mode, is_tracing


@dataclass(frozen=True)
class Norm(ABC):
    """A way to take ``||W||_2``, and to keep it at a bound.

    To write one, define :meth:`norm`; where that is no upper bound of the spectral norm, define
    :meth:`proven` too.
    """

    @abstractmethod
    def norm(self, weight: Tensor) -> Tensor:
        """The norm by which weights are scaled, a scalar, differentiable."""

    def proven(self, weight: Tensor) -> Tensor:
        """A proven upper bound of ``||weight||_2``, a scalar."""
        return self.norm(weight)

    def constrain(self, weight: Tensor, bound: float) -> Tensor:
        r"""``weight`` where its norm is at most ``bound``, else scaled to it.

        .. math:: W \min(1, c / \lVert W \rVert)

        (Behrmann et al. 2019, Eq. 3: "soft" scaling, which leaves smaller weights alone).
        """
        # A norm has no second derivative at 0, where a last layer may start: it is asked
        # elsewhere, and the answer left out.
        zero = (weight == 0).all()
        norm = self.norm(torch.where(zero, torch.ones_like(weight), weight))
        # A clamp below the bound makes the factor exactly 1, and its gradient 0, where W is small.
        return weight * torch.where(zero, 1.0, bound / norm.clamp(min=bound))


@dataclass(frozen=True)
class Gram(Norm):
    r"""A smooth, certified bound from repeated squarings of the Gram matrix.

    .. math:: S(W) = \lVert (W^\top W)^{2^k} \rVert_F^{1 / 2^{k+1}} \ge \lVert W \rVert_2

    It is the Schatten norm of order :math:`p = 2^{k+2}`: loose by at most the factor
    :math:`n^{1/p}` for ``n`` the smaller side of W (1.6% at n = 64, k = 6). Made of matrix
    products only, with its gradient in closed form:
    :math:`\nabla S = W G^{p/2-1} / S^{p-1}`, :math:`G = W^\top W`, whose factor is the product
    of the squarings already made.

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
    wide = weight.shape[0] < weight.shape[1]
    w = weight.T if wide else weight
    # By the largest entry: the squares in a norm under- or overflow where the entries do not.
    scale = w.abs().amax().clamp(min=tiny)
    unit = w / scale
    power = unit.T @ unit
    product = power
    sizes, shares = [], []
    for done in range(squarings):
        if done % RESCALE_EVERY == 0:
            # Squared once more for every squaring to come, log S takes 2^-(done + 1) of this.
            sizes.append(torch.linalg.vector_norm(power).clamp(min=tiny))
            shares.append(2.0 ** -(done + 1))
            power = power / sizes[-1]
            # By its largest entry: the squares in a norm would underflow.
            product = product / product.abs().amax().clamp(min=tiny)
        power = power @ power
        product = product @ power
    sizes.append(torch.linalg.vector_norm(power))
    log_root = torch.stack(sizes).log() @ power.new_tensor([*shares, 2.0 ** -(squarings + 1)])
    root = torch.exp(log_root)
    # A norm has <W, dS/dW> = S (Euler), which gives the factor that the rescalings dropped.
    direction = unit @ product
    direction = direction * (root / (unit * direction).sum().clamp(min=tiny))
    return scale * root, direction.T if wide else direction


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
        return grad_outputs[0] * direction, None


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
            rows = weight.shape[0]
            u = torch.linspace(1.0, 2.0, rows, dtype=weight.dtype, device=weight.device)
            v = weight.new_zeros(weight.shape[1])
            for _ in range(self.steps):
                v = weight.T @ u
                v = v / torch.linalg.vector_norm(v).clamp(min=tiny)
                u = weight @ v
                u = u / torch.linalg.vector_norm(u).clamp(min=tiny)
        return u @ weight @ v

    def proven(self, weight: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(weight, ord=2)
