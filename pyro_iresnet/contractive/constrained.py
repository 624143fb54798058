"""Contractions whose bound comes from weights that are kept at a norm."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from ..linearization import Linearizable
from .base import Contraction
from .norms import Norm


class ConstrainedContraction(Contraction):
    """A contraction whose weights are each scaled to a bound of their norm.

    To write one, define :meth:`free_weights` and :meth:`acting_with` beside what
    :class:`Contraction` asks for.

    Attributes:
        norm: how the norm of a weight is taken.
    """

    norm: Norm

    @abstractmethod
    def free_weights(self) -> list[tuple[Tensor, float]]:
        """Each weight as it is stored, a matrix, and the bound of its norm."""

    @abstractmethod
    def acting_with(self, weights: Sequence[Tensor]) -> Linearizable:
        """``g`` with these weights, which keep their bounds, in the order of `free_weights`."""

    def acting(self) -> Linearizable:
        return self.acting_with(self.acting_weights())

    def acting_weights(self) -> list[Tensor]:
        """The weights that act: each scaled to its bound where its norm exceeds it."""
        weights, bounds = zip(*self.free_weights(), strict=True)
        return self.norm.constrain_all(weights, bounds)


def acting_together(contractions: Sequence[Contraction]) -> list[Linearizable]:
    """``[c.acting() for c in contractions]``, with weights of one shape taken together.

    One batched computation of the norm serves all layers of a stack that share their shape.
    """
    acting: dict[int, Linearizable] = {}
    by_norm: dict[Norm, list[ConstrainedContraction]] = defaultdict(list)
    for c in contractions:
        if isinstance(c, ConstrainedContraction):
            by_norm[c.norm].append(c)
        else:
            acting[id(c)] = c.acting()
    for norm, members in by_norm.items():
        free = [c.free_weights() for c in members]
        weights, bounds = zip(*(pair for pairs in free for pair in pairs), strict=True)
        scaled = iter(norm.constrain_all(weights, bounds))
        for c, pairs in zip(members, free, strict=True):
            acting[id(c)] = c.acting_with([next(scaled) for _ in pairs])
    return [acting[id(c)] for c in contractions]
