r"""Spectral norms of weights, and weights scaled to a bound of theirs.

``Lip(W x + b) = ||W||_2`` (reading report Eq. 8-10; Behrmann et al. 2019, Eq. 3). Each strategy is
a pure function of the weight, differentiable through the norm: stopping the gradient there costs a
flow most of its fit. A weight is a matrix, or the kernel of a convolution.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError, check_instance, check_positive
from .symbol import over_symbol, spectral_norm

# Dtypes in which no norm is taken.
COARSE = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ActingWeight:
    """A weight as it acts.

    Arguments:
        weight: a matrix, or the kernel of a convolution, shape ``(out, in, height, width)``.
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
            return self._take(self.strategy.proven)

    @torch.no_grad()
    def exact(self) -> Tensor:
        """Its largest singular value; of a kernel, the tightest proven bound that is known."""
        return self._take(spectral_norm)

    def _take(self, norm: Callable[[Tensor], Tensor]) -> Tensor:
        weight = self.weight
        if weight.dtype in COARSE:
            weight = weight.float()
        return norm(weight) if weight.dim() == 2 else over_symbol(weight, norm)


@dataclass(frozen=True)
class Norm(ABC):
    """A way to take ``||W||_2``, and to keep it at a bound.

    To write one, define :meth:`norm` for a batch of matrices; where that is no upper bound of the
    spectral norm, set ``certified`` to False and define :meth:`proven` too. The norm of a
    convolution follows, from the matrices of its Fourier symbol.

    Raises:
        ArgumentError, ArgumentTypeError: by :meth:`constrain`: a weight of fewer than two
            dimensions, or a bound that is no number above 0.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import DenseContraction, Norm
        >>> @dataclass(frozen=True)
        ... class OneAndInfinity(Norm):
        ...     def norm(self, weight):
        ...         sizes = weight.abs()
        ...         return (sizes.sum(-1).amax(-1) * sizes.sum(-2).amax(-1)).sqrt()
        >>> g = DenseContraction(2, lipschitz=0.9, norm=OneAndInfinity())
        >>> g.lipschitz_bound().item() <= 0.9 + 1e-6
        True
    """

    @property
    def certified(self) -> bool:
        """Whether :meth:`norm` is a proven upper bound of the spectral norm."""
        return True

    @abstractmethod
    def norm(self, weight: Tensor) -> Tensor:
        """The norm by which weights are scaled, differentiable.

        It is that of the transpose too, since matrices of one shape up to transposition are taken
        together.

        Arguments:
            weight: shape ``(*batch, rows, columns)``, real or complex.

        Returns:
            shape ``(*batch,)``, real.
        """

    def proven(self, weight: Tensor) -> Tensor:
        """A proven upper bound of ``||weight||_2``, shapes as in :meth:`norm`."""
        return self.norm(weight)

    def constrain(self, weight: Tensor, bound: float | Tensor) -> Tensor:
        r"""``weight`` where its norm is at most ``bound``, else scaled to it.

        .. math:: W \min(1, c / \lVert W \rVert)

        (Behrmann et al. 2019, Eq. 3: "soft" scaling, which leaves smaller weights alone;
        :class:`Hard` does not.)

        Arguments:
            weight: matrices, shape ``(*batch, rows, columns)``; for kernels there is
                :meth:`constrain_all`.
            bound: above 0, a number or a tensor of shape ``(*batch,)``.
        """
        if weight.dim() < 2:
            raise ArgumentError(
                f"Expected weight of shape (*batch, rows, columns); got {tuple(weight.shape)}."
            )
        if not isinstance(bound, Tensor):
            check_positive(bound, "bound")
        batch = weight.shape[:-2]
        bounds = torch.as_tensor(bound, dtype=weight.dtype, device=weight.device).expand(batch)
        many = weight.reshape(-1, *weight.shape[-2:])
        turned = wide(many)
        acting = self._constrain(turned, bounds.reshape(-1), None)[0]
        return (acting if turned.shape == many.shape else acting.mT).reshape(weight.shape)

    def sizes(self, weights: Tensor) -> Tensor:
        """The norm of each weight, or of each of its rows: what has to come down to the bound.

        Arguments:
            weights: shape ``(n, rows, columns)``, or ``(n, rows, columns, height, width)`` of
                kernels; no more rows than columns.

        Returns:
            shape ``(n,)`` or ``(n, rows)``. Weights whose sizes are at most c have norm at most c.
        """
        return self.norm(weights) if weights.dim() == 3 else over_symbol(weights, self.norm)

    def factor(self, sizes: Tensor, bound: Tensor) -> Tensor:
        """What a weight of these sizes is multiplied by."""
        # A clamp below the bound makes the factor exactly 1, and its gradient 0, where W is small.
        return bound / torch.maximum(sizes, bound)

    def _constrain(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`apply`, in a dtype that resolves a norm."""
        if weights.dtype in COARSE:
            # Too coarse for a norm: what it proves is asked of the rounded weights.
            wider = None if scales is None else scales.float()
            return self.apply(weights.float(), bounds.float(), wider)[0].to(weights), None
        return self.apply(weights, bounds, scales)

    def apply(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Bring weights to their bounds: override it for more than a factor for each or each row.

        Arguments:
            weights: as in :meth:`sizes`.
            bounds: of their norms, shape ``(n,)``.
            scales: what the constrained weights are multiplied by, shape ``(n,)``; None for 1.

        Returns:
            the weights that act, and proven bounds of their norms, shape ``(n,)``, or None.
        """
        # A norm has no second derivative at 0, where a last layer may start: it is asked
        # elsewhere, and the answer left out.
        zero = (weights == 0).flatten(1).all(1)
        sizes = self.sizes(torch.where(_spread(zero, weights), 1.0, weights))
        factors = self.factor(sizes, _spread(bounds, sizes))
        if scales is not None:
            factors = factors * _spread(scales, sizes)
        factors = torch.where(_spread(zero, sizes), _one_or(scales, sizes), factors)
        acting = weights * _spread(factors, weights)
        if not self.certified:
            return acting, None
        known = (sizes.detach() * factors.detach().abs()).flatten(1 if sizes.dim() > 1 else 0)
        known = known.amax(1) if sizes.dim() > 1 else known
        return acting, torch.where(zero, 0.0, known)

    def constrain_all(
        self,
        weights: Sequence[Tensor],
        bounds: Sequence[float],
        scales: Sequence[Tensor | None] | None = None,
    ) -> list[ActingWeight]:
        """Many weights, each kept at its bound, those of one shape (or its transpose) at once.

        Arguments:
            weights: matrices and kernels of any shapes.
            bounds: one for each.
            scales: a scalar for each, to multiply it with when it is constrained; None for 1.
        """
        if scales is None:
            scales = [None] * len(weights)
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        flat = [_as_matrix(w) for w in weights]
        for i, w in enumerate(flat):
            rows, columns, *kernel = w.shape
            shape = min(rows, columns), max(rows, columns), *kernel
            groups[(*shape, w.dtype, w.device)].append(i)
        acting: dict[int, ActingWeight] = {}
        for members in groups.values():
            turned = [flat[i].shape[0] > flat[i].shape[1] for i in members]
            pairs = zip(members, turned, strict=True)
            many = torch.stack([flat[i].transpose(0, 1) if t else flat[i] for i, t in pairs])
            each = many.new_tensor([bounds[i] for i in members])
            scaled, norms = self._constrain(many, each, _stack([scales[i] for i in members], many))
            known = [None] * len(members) if norms is None else norms.unbind()
            for i, t, w, norm in zip(members, turned, scaled.unbind(), known, strict=True):
                back = w.transpose(0, 1) if t else w
                acting[i] = ActingWeight(back.reshape(weights[i].shape), self, norm)
        return [acting[i] for i in range(len(weights))]


@dataclass(frozen=True)
class Hard(Norm):
    r"""Weights scaled to the bound whatever their norm: :math:`W\, c / \lVert W \rVert`.

    Only the direction of a weight is learned, and every layer spends its whole budget; a weight
    that is exactly 0 stays 0. The strategies themselves scale "softly": a weight below the bound
    is left alone (Behrmann et al. 2019, Eq. 3).

    Arguments:
        by: the strategy that takes the norm.

    Raises:
        ArgumentTypeError: ``by`` is no :class:`Norm`.
        ArgumentError: ``by`` has no norm to scale to.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Hard, SingularValue
        >>> weight = torch.diag(torch.tensor([0.2, 0.1]))
        >>> Hard(SingularValue()).constrain(weight, 1.0).diag()
        tensor([1.0000, 0.5000])
        >>> SingularValue().constrain(weight, 1.0).diag()
        tensor([0.2000, 0.1000])
    """

    by: Norm

    def __post_init__(self) -> None:
        check_instance(self.by, Norm, "by", "Gram()")
        if type(self.by).apply is not Norm.apply:
            raise ArgumentError(
                f"Expected by to scale a weight by a factor, as Gram() does; got {self.by}, which "
                "brings every direction to the bound by itself. Use it alone."
            )

    @property
    def certified(self) -> bool:
        return self.by.certified

    def norm(self, weight: Tensor) -> Tensor:
        return self.by.norm(weight)

    def proven(self, weight: Tensor) -> Tensor:
        return self.by.proven(weight)

    def sizes(self, weights: Tensor) -> Tensor:
        return self.by.sizes(weights)

    def factor(self, sizes: Tensor, bound: Tensor) -> Tensor:
        # What has no size has no direction either.
        return torch.where(sizes == 0, 1.0, bound / torch.where(sizes == 0, 1.0, sizes))


def _stack(scales: list[Tensor | None], like: Tensor) -> Tensor | None:
    if all(scale is None for scale in scales):
        return None
    one = like.new_ones(())
    return torch.stack([one if scale is None else scale for scale in scales])


def _one_or(scales: Tensor | None, sizes: Tensor) -> Tensor:
    return sizes.new_ones(()) if scales is None else _spread(scales, sizes)


def _spread(a: Tensor, like: Tensor) -> Tensor:
    """``a`` with dimensions of size 1 at its end, as many as ``like`` has."""
    return a.reshape(*a.shape, *(1,) * (like.dim() - a.dim()))


def _as_matrix(weight: Tensor) -> Tensor:
    """The kernel of a 1 x 1 convolution as the matrix that it is; everything else as it is."""
    return weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) else weight


def wide(weight: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has no more rows than columns."""
    # Of the two orientations the one whose products have long rows, which run up to twice as fast.
    return weight.mT if weight.shape[-2] > weight.shape[-1] else weight
