"""A contraction with its normalized weights in place."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .composite import Negated
from .linear_map import row_norm
from .linearization import Linearization


class ContractionMap(ABC):
    """Base class of maps ``g`` with their normalized weights, for log-determinants and inverses.

    To write one, define :meth:`__call__`, :meth:`linearize` and :meth:`lipschitz_bound`.
    """

    @property
    def closed_form(self) -> bool:
        """Return True if ``linearize`` costs little more than a call."""
        return True

    @abstractmethod
    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``g(x)``, shape ``(*batch, *event)``."""

    @abstractmethod
    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """Return ``g(x)`` and the Jacobian at ``x``."""

    def linearize_densely(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """Return the same as :meth:`linearize`, for a caller who wants the dense matrix."""
        return self.linearize(x, context)

    @abstractmethod
    def lipschitz_bound(self) -> Tensor:
        """Return a proven upper bound of ``Lip(g)`` with these weights, a scalar."""

    def to(self, dtype: torch.dtype) -> "ContractionMap | None":
        """Return the map with tensors of a dtype, or None if it has no such copy."""
        return None

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Estimate how far rounding may move ``g(x)`` in the Euclidean norm, shape ``(n,)``.

        The default knows nothing of the network: :math:`4 \epsilon` times the largest of the norms
        of ``x`` and ``g(x)`` and of 1, since hidden layers have about size 1 for standardised data.
        Shapes are ``(n, *event)`` and ``(n, size)``.
        """
        largest = torch.maximum(row_norm(x), row_norm(self(x, context)))
        return 4 * torch.finfo(x.dtype).eps * largest.clamp(min=1.0)


@dataclass(frozen=True)
class NegatedMap(ContractionMap):
    """``-g``, which has the bound and the rounding of ``g``."""

    g: ContractionMap

    @property
    def closed_form(self) -> bool:
        return self.g.closed_form

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -self.g(x, context)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        at = self.g.linearize(x, context)
        return Linearization(-at.value, Negated(at.jacobian), at.event_dim)

    def lipschitz_bound(self) -> Tensor:
        return self.g.lipschitz_bound()

    def to(self, dtype: torch.dtype) -> "NegatedMap | None":
        g = self.g.to(dtype)
        return None if g is None else NegatedMap(g)

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.g.rounding(x, context)
