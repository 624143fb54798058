"""Contractions whose bound comes from weights that are kept at a norm."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..linearization import Acting
from ..torch_modes import full_precision
from .base import Contraction
from .norms import ActingWeight, Norm


class ConstrainedContraction(Contraction):
    """A contraction whose weights are each scaled to a bound of their norm.

    To write one, define :meth:`free_weights` and :meth:`acting_with` beside what
    :class:`Contraction` asks for.

    Attributes:
        norm: how the norm of a weight is taken.
    """

    norm: Norm

    @abstractmethod
    def free_weights(self) -> list["FreeWeight"]:
        """Each weight as it is stored, and what has to be done to it."""

    @abstractmethod
    def acting_with(self, weights: Sequence[ActingWeight]) -> Acting:
        """``g`` with these weights, which keep their bounds and have their scales, in the order of
        `free_weights`."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        return self.acting()(x, context)

    def acting(self) -> Acting:
        return acting_together([self])[0]

    def acting_weights(self) -> list[tuple[str, ActingWeight]]:
        """The weights that act, with the names of the parameters they are made of."""
        free = self.free_weights()
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        acting = self.norm.constrain_all(*zip(*free, strict=True))
        pairs = enumerate(zip(free, acting, strict=True))
        return [(names.get(id(w.weight), f"weight {i}"), a) for i, (w, a) in pairs]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        return self.acting().lipschitz_bound()


class FreeWeight(NamedTuple):
    """A weight before it is constrained.

    Arguments:
        weight: a matrix, or the kernel of a convolution.
        bound: of its norm.
        scale: a scalar that the constrained weight is multiplied by before it acts, such as the
            learned scales of the activations around it; None for 1.
    """

    weight: Tensor
    bound: float
    scale: Tensor | None = None


def acting_together(contractions: Sequence[Contraction]) -> list[Acting]:
    """``[c.acting() for c in contractions]``, with weights of one shape taken together.

    One batched computation of the norm serves all layers of a stack that share their shape.
    """
    acting: dict[int, Acting] = {}
    by_norm: dict[Norm, list[ConstrainedContraction]] = defaultdict(list)
    for c in contractions:
        if isinstance(c, ConstrainedContraction):
            by_norm[c.norm].append(c)
        else:
            acting[id(c)] = c.acting()
    for norm, members in by_norm.items():
        free = [c.free_weights() for c in members]
        weights, bounds, scales = zip(*(w for weights in free for w in weights), strict=True)
        with full_precision(weights[0]):
            scaled = iter(norm.constrain_all(weights, bounds, scales))
        for c, its_own in zip(members, free, strict=True):
            acting[id(c)] = c.acting_with([next(scaled) for _ in its_own])
    return [acting[id(c)] for c in contractions]
