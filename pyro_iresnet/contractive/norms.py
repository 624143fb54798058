r"""Spectral norms of weights, and weights scaled to a bound of theirs.

``Lip(W x + b) = ||W||_2`` (seed report Eq. 8-10; Behrmann et al. 2019, Eq. 3). Each strategy is a
pure function of the weight, differentiable through the norm: stopping the gradient there costs a
flow most of its fit.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import check_positive_int


@dataclass(frozen=True)
class ActingWeight:
    """A weight as it acts.

    Arguments:
        weight: a matrix.
        strategy: how its norm is taken.
        known: a proven upper bound of its norm, where constraining it has left one.
    """

    weight: Tensor
    strategy: "Norm"
    known: Tensor | None = None

    def norm(self) -> Tensor:
        """A proven upper bound of its norm, a scalar without gradient."""
        if self.known is not None:
            return self.known
        with torch.no_grad():
            return self.strategy.proven(self.weight)


@dataclass(frozen=True)
class Norm(ABC):
    """A way to take ``||W||_2``, and to keep it at a bound.

    To write one, define :meth:`norm` for a batch of matrices; where that is no upper bound of the
    spectral norm, set ``certified`` to False and define :meth:`proven` too.

    Attributes:
        certified: whether :meth:`norm` is a proven upper bound.
    """

    certified: ClassVar[bool] = True

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

    def constrain(self, weight: Tensor, bound: float | Tensor) -> Tensor:
        r"""``weight`` where its norm is at most ``bound``, else scaled to it.

        .. math:: W \min(1, c / \lVert W \rVert)

        (Behrmann et al. 2019, Eq. 3: "soft" scaling, which leaves smaller weights alone).

        Arguments:
            weight: shape ``(*batch, rows, columns)``.
            bound: above 0, a number or a tensor of shape ``(*batch,)``.
        """
        return self._constrain(weight, bound, None)[0]

    def _constrain(
        self, weight: Tensor, bound: float | Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The constrained weight times ``scale``, and a proven bound of its norm, if known."""
        # A norm has no second derivative at 0, where a last layer may start: it is asked
        # elsewhere, and the answer left out.
        zero = (weight == 0).flatten(-2).all(-1)
        norm = self.norm(torch.where(zero[..., None, None], 1.0, weight))
        # A clamp below the bound makes the factor exactly 1, and its gradient 0, where W is small.
        factor = torch.where(zero, 1.0, bound / norm.clamp(min=bound))
        if scale is not None:
            factor = factor * scale
        acting = weight * factor[..., None, None]
        if not self.certified:
            return acting, None
        return acting, torch.where(zero, 0.0, norm.detach() * factor.detach().abs())

    def constrain_all(
        self,
        weights: Sequence[Tensor],
        bounds: Sequence[float],
        scales: Sequence[Tensor | None] | None = None,
    ) -> list[ActingWeight]:
        """:meth:`constrain` for many matrices, those of one shape (or its transpose) at once.

        Arguments:
            weights: matrices of any shapes.
            bounds: one for each.
            scales: a scalar for each, to multiply it with when it is constrained; None for 1.
        """
        if scales is None:
            scales = [None] * len(weights)
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, w in enumerate(weights):
            groups[min(w.shape), max(w.shape), w.dtype, w.device].append(i)
        acting: dict[int, ActingWeight] = {}
        for members in groups.values():
            many = torch.stack([wide(weights[i]) for i in members])
            each = many.new_tensor([bounds[i] for i in members])
            scaled, norms = self._constrain(many, each, _stack([scales[i] for i in members], many))
            known = [None] * len(members) if norms is None else norms.unbind()
            for i, w, norm in zip(members, scaled.unbind(), known, strict=True):
                turned = w if weights[i].shape == w.shape else w.mT
                acting[i] = ActingWeight(turned, self, norm)
        return [acting[i] for i in range(len(weights))]


def _stack(scales: list[Tensor | None], like: Tensor) -> Tensor | None:
    if all(scale is None for scale in scales):
        return None
    one = like.new_ones(())
    return torch.stack([one if scale is None else scale for scale in scales])


def wide(weight: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has no more rows than columns."""
    # Of the two orientations the one whose products have long rows, which run up to twice as fast.
    return weight.mT if weight.shape[-2] > weight.shape[-1] else weight


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

    certified: ClassVar[bool] = False

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
