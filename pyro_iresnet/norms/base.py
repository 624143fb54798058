"""Spectral norms of weights, and weights scaled until their norm meets a bound.

The Lipschitz constant of a layer is the spectral norm of its weight, ``Lip(W x + b) = ||W||_2``
(Behrmann et al. 2019, Eq. 3). Each strategy is a pure function of the weight, a matrix or the
kernel of a convolution. Gradients pass through the norm too: a flow trained with the norm held
fixed loses most of its fit.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._torch import COARSE, full_precision, in_plain_autograd
from ..errors import ArgumentError, check_dense, check_instance
from .checks import bounds_of, check_weight
from .convolution import over_symbol, spectral_norm
from .together import Group, Rule


@dataclass(frozen=True)
class NormalizedWeight:
    """A weight scaled to its bound, as the network uses it.

    Arguments:
        weight: a matrix, or the kernel of a convolution, shape ``(out, in, height, width)``.
        strategy: takes the norm of the weight.
        known: a proven upper bound of the norm, if scaling the weight gave one.
    """

    weight: Tensor
    strategy: "Norm"
    known: Tensor | None = None

    def norm(self) -> Tensor:
        """Return a proven upper bound of the weight's norm, a scalar without gradient."""
        if self.known is not None:
            return self.known
        with torch.no_grad():
            return self._take(self.strategy.proven)

    def rows(self) -> "list[NormalizedWeight]":
        """Return each of stacked weights alone."""
        known = len(self.weight) * [None] if self.known is None else self.known.unbind()
        pairs = zip(self.weight.unbind(), known, strict=True)
        return [NormalizedWeight(weight, self.strategy, bound) for weight, bound in pairs]

    @torch.no_grad()
    def exact(self) -> Tensor:
        """Return the largest singular value; for a kernel, the tightest proven bound known."""
        return self._take(spectral_norm)

    def _take(self, norm: Callable[[Tensor], Tensor]) -> Tensor:
        weight = self.weight
        if weight.dtype in COARSE:
            weight = weight.float()
        with full_precision(weight):
            return norm(weight) if weight.dim() == 2 else over_symbol(weight, norm)


@dataclass(frozen=True)
class Norm(ABC):
    """Base class of strategies that take ``||W||_2`` and keep it at a bound.

    To write one, define :meth:`__call__` for a batch of matrices. If the result is no upper bound
    of the spectral norm, let ``certified`` return False. The norm of a convolution follows from the
    matrices of its Fourier symbol.

    Raises:
        ArgumentError, ArgumentTypeError: :meth:`constrain` or a call got a weight of fewer than two
            dimensions or without entries, or :meth:`constrain` a bound that is not above 0, or of
            the wrong shape, dtype or device.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.norms import Norm
        >>> @dataclass(frozen=True)
        ... class OneAndInfinity(Norm):
        ...     def __call__(self, weight):
        ...         sizes = weight.abs()
        ...         return sizes.sum(-1).amax(-1).sqrt() * sizes.sum(-2).amax(-1).sqrt()
        >>> g = DenseContraction(2, lipschitz=0.9, norm=OneAndInfinity())
        >>> g.lipschitz_bound().item() <= 0.9 + 1e-6
        True
    """

    @property
    def certified(self) -> bool:
        """Return True if :meth:`__call__` is a proven upper bound of the spectral norm."""
        return True

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """Return the norm by which weights are scaled, differentiable, real, shape ``(*batch,)``.

        A matrix and its transpose must have the same norm, since matrices of one shape up to
        transposition are taken together.

        Arguments:
            weight: shape ``(*batch, rows, columns)``, real or complex.
        """

    def proven(self, weight: Tensor) -> Tensor:
        """Return a proven upper bound of ``||weight||_2``; shapes as in :meth:`__call__`."""
        return self(weight) if self.certified else spectral_norm(weight)

    def constrain(self, weight: Tensor, bound: float | Tensor) -> Tensor:
        r"""Return ``weight`` if its norm is at most ``bound``, else ``weight`` scaled to ``bound``.

        .. math:: W \min(1, c / \lVert W \rVert)

        (Behrmann et al. 2019, Eq. 3.) This "soft" scaling leaves smaller weights alone;
        :class:`Hard` scales every weight.

        Arguments:
            weight: matrices, shape ``(*batch, rows, columns)``; for kernels call
                :meth:`constrain_all`.
            bound: above 0 and finite, a number or a tensor that broadcasts to ``(*batch,)``, of the
                dtype and device of the weight.
        """
        check_dense(weight, "weight")
        check_weight(weight)
        batch = weight.shape[:-2]
        bounds = bounds_of(bound, weight).expand(batch)
        many = weight.reshape(-1, *weight.shape[-2:])
        turned = wide(many)
        constrain = self._coarse if turned.dtype in COARSE else self.apply
        acting = constrain(turned, bounds.reshape(-1), None)[0]
        return (acting if turned.shape == many.shape else acting.mT).reshape(weight.shape)

    def sizes(self, weights: Tensor) -> Tensor:
        """Return the norm of each weight, shape ``(n,)``.

        Arguments:
            weights: matrices, shape ``(n, rows, columns)``, or kernels, shape
                ``(n, rows, columns, height, width)``; no more rows than columns.
        """
        return self(weights) if weights.dim() == 3 else over_symbol(weights, self)

    def factor(self, sizes: Tensor, bound: Tensor) -> Tensor:
        """Return the factors that bring weights of these sizes to the bound."""
        # A clamp below the bound makes the factor exactly 1, and its gradient 0, where W is small.
        return bound / torch.maximum(sizes, bound)

    def _coarse(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply in float32, for a dtype too coarse for a norm; rounded weights prove nothing."""
        scales = None if scales is None else scales.float()
        return self.apply(weights.float(), bounds.float(), scales)[0].to(weights), None

    def apply(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Bring weights to their bounds; return them with proven bounds, shape ``(n,)``, or None.

        Override this method if one factor for each weight is not enough.

        Arguments:
            weights: as in :meth:`sizes`.
            bounds: bounds of the norms, shape ``(n,)``.
            scales: factors of the constrained weights, shape ``(n,)``; None for 1.
        """
        # A norm has no second derivative at 0, where a last layer may start: take the norm of
        # ones there, and drop the result.
        zero = (weights == 0).flatten(1).all(1)
        sizes = self.sizes(torch.where(_spread(zero, weights), 1.0, weights))
        if sizes.shape != zero.shape:
            raise ArgumentError(
                f"Expected {self} to return one norm for each weight, shape {tuple(zero.shape)}; "
                f"got {tuple(sizes.shape)}."
            )
        factors = torch.where(zero, 1.0, self.factor(sizes, bounds))
        if scales is not None:
            factors = factors * scales
        acting = weights * _spread(factors, weights)
        if not self.certified:
            return acting, None
        return acting, torch.where(zero, 0.0, sizes.detach() * factors.detach().abs())

    def rule(self) -> Rule | None:
        """Return :meth:`apply` for matrices with a derivative written by hand, or None.

        Return a rule only where ``type(self)`` is the class that defines the rule: a subclass with
        another method would get the rule of its base.
        """
        return None

    def constrain_all(
        self,
        weights: Sequence[Tensor],
        bounds: Sequence[float],
        scales: Sequence[Tensor | None] | None = None,
    ) -> list[NormalizedWeight]:
        """Bring many weights to their bounds, all weights of one shape or its transpose at once.

        Arguments:
            weights: matrices, kernels and stacked matrices, shape ``(n, rows, columns)``.
            bounds: one bound for each weight.
            scales: a scalar factor for each constrained weight, shape ``(n,)`` for stacked ones;
                None for 1.
        """
        groups: dict[tuple[Any, ...], Group] = defaultdict(Group)
        for i, weight in enumerate(weights):
            if weight.numel() == 0:
                check_weight(weight)
            # A 1 x 1 convolution is the matrix of its kernel.
            w = weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) else weight
            stacked = w.dim() == 3
            rows, columns, *side = w.shape[-2:] if stacked else w.shape
            turned = rows > columns
            shape = (columns, rows) if turned else (rows, columns)
            group = groups[*shape, *side, w.dtype, w.device]
            group.members.append(i)
            group.weights.append(w)
            group.turned.append(turned)
            group.bounds.append(bounds[i])
            group.scales.append(None if scales is None else scales[i])
            group.sizes.append(len(w) if stacked else 0)
        rule = self.rule() if in_plain_autograd() else None
        normalized: dict[int, NormalizedWeight] = {}
        for group in groups.values():
            first = group.weights[0]
            if first.dtype in COARSE:
                acting, known = group.normalized(self._coarse, None)
            else:
                acting, known = group.normalized(self.apply, rule if first.dim() < 4 else None)
            for i, w, norm in zip(group.members, acting, known, strict=True):
                back = w if w.shape == weights[i].shape else w[:, :, None, None]
                normalized[i] = NormalizedWeight(back, self, norm)
        return list(map(normalized.__getitem__, range(len(weights))))


@dataclass(frozen=True)
class Hard(Norm):
    r"""Weights scaled to the bound, whatever their norm: :math:`W\, c / \lVert W \rVert`.

    Only the direction of a weight is learned, and every layer spends its whole budget. A weight of
    exactly 0 stays 0. The other strategies scale "softly": they leave a weight below the bound
    alone (Behrmann et al. 2019, Eq. 3).

    Arguments:
        norm: a :class:`Norm` that scales a weight by a factor.

    Raises:
        ArgumentTypeError: ``norm`` is no :class:`Norm`.
        ArgumentError: ``norm`` does not scale a weight by a factor.

    Example:
        >>> import torch
        >>> from pyro_iresnet.norms import Hard, SingularValue
        >>> weight = torch.diag(torch.tensor([0.2, 0.1]))
        >>> Hard(SingularValue()).constrain(weight, 1.0).diag()
        tensor([1.0000, 0.5000])
        >>> SingularValue().constrain(weight, 1.0).diag()
        tensor([0.2000, 0.1000])
    """

    norm: Norm

    def __post_init__(self) -> None:
        check_instance(self.norm, Norm, "norm", "Gram()")
        if type(self.norm).apply is not Norm.apply:
            raise ArgumentError(
                f"Expected norm to scale a weight by a factor, as Gram() does; got {self.norm}, "
                "which brings every direction to the bound by itself. Use it alone."
            )

    @property
    def certified(self) -> bool:
        return self.norm.certified

    def __call__(self, weight: Tensor) -> Tensor:
        return self.norm(weight)

    def proven(self, weight: Tensor) -> Tensor:
        return self.norm.proven(weight)

    def sizes(self, weights: Tensor) -> Tensor:
        return self.norm.sizes(weights)

    def factor(self, sizes: Tensor, bound: Tensor) -> Tensor:
        # A weight of size 0 has no direction.
        factors = bound / torch.where(sizes == 0, 1.0, sizes)
        # A weight of denormal numbers stays finite, below the bound.
        return torch.where(sizes == 0, 1.0, factors.clamp(max=torch.finfo(sizes.dtype).max))


def _spread(a: Tensor, like: Tensor) -> Tensor:
    """Return ``a`` with dimensions of size 1 at its end, as many dimensions as ``like``."""
    return a.reshape(*a.shape, *(1,) * (like.dim() - a.dim()))


def wide(weight: Tensor) -> Tensor:
    """Return the matrix or its transpose, whichever has no more rows than columns."""
    # Products of the wide orientation have long rows, and run up to twice as fast.
    return weight.mT if weight.shape[-2] > weight.shape[-1] else weight
