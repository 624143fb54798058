r"""Jacobians in factors, :math:`A_n S_{n-1} A_{n-1} \cdots S_1 A_1`, with gradients by hand.

Each :math:`A_i` is the linear part of a layer, the same for all samples, and each
:math:`S_i = \mathrm{diag}(p_i)` holds the slopes of a sample. A graph of small operations costs as
much as the products, so the rules here work on plain tensors: an event, and a hidden layer, is one
row of numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from .elementary import Diagonal
from .linear_map import LinearMap

Linear = TypeVar("Linear", bound=LinearMap)
F = TypeVar("F", bound="FactoredJacobian")


@dataclass(frozen=True)
class FactoredJacobian(ABC):
    """The factors of a Jacobian, at least two linear maps.

    Arguments:
        weights: the weights of the linear maps, in the order they act.
        slopes: the diagonals between the maps, shape ``(n, size of the layer)`` each.
    """

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    @property
    @abstractmethod
    def event_size(self) -> int:
        """The number of coordinates of one event."""

    @abstractmethod
    def push(self, i: int, t: Tensor) -> Tensor:
        """Return :math:`A_{i+1} t` for each row."""

    @abstractmethod
    def pull_back(self, i: int, r: Tensor) -> Tensor:
        r"""Return :math:`A_{i+1}^\top r` for each row."""

    @abstractmethod
    def outer(self, i: int, left: Tensor, right: Tensor) -> Tensor:
        r"""Return the gradient of :math:`\ell^\top A_{i+1} r`, summed over rows, in a weight."""

    @abstractmethod
    def trace(self) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """Return the traces, shape ``(n,)``, and the tensors that :meth:`pull_trace` needs.

        None if the traces cost more than a few products.
        """

    @abstractmethod
    def pull_trace(self, kept: tuple[Tensor, ...], g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of weights and slopes, given the gradients of the traces.

        ``kept`` are the tensors of :meth:`trace`.
        """

    def with_factors(self: F, weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> F:
        """Return a Jacobian of the same kind with other factors."""
        return replace(self, weights=tuple(weights), slopes=tuple(slopes))

    def without_factors(self: F) -> F:
        """Return the kind alone, for :meth:`with_factors`."""
        return replace(self, weights=(), slopes=())

    def select(self: F, index: Tensor) -> F:
        """Return the Jacobians of some samples."""
        return replace(self, slopes=tuple([p[index] for p in self.slopes]))

    def sweep(self, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        r"""Return :math:`J^\top v`, and the factor of each diagonal on the way, in order.

        ``v`` has the shape ``(n, event_size)``.
        """
        passed: list[Tensor] = []
        for i in range(len(self.slopes), 0, -1):
            passed.append(self.pull_back(i, v))
            v = passed[-1] * self.slopes[i - 1]
        return self.pull_back(0, v), passed[::-1]

    def pull(self, u: Tensor, lefts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        r"""Return the gradients of :math:`\ell^\top J u`, summed over rows, in weights and slopes.

        ``lefts`` are the factors of the diagonals in the sweep of :math:`\ell`, and
        :math:`\ell` itself.
        """
        of_weights: list[Tensor] = []
        of_slopes: list[Tensor] = []
        t = u
        for i, (p, r) in enumerate(zip(self.slopes, lefts, strict=False)):
            m = self.push(i, t)
            of_slopes.append(r * m)
            of_weights.append(self.outer(i, r * p, t))
            t = m * p
        return [*of_weights, self.outer(len(self.slopes), lefts[-1], t)], of_slopes


def alternating(
    maps: Sequence[LinearMap], kind: type[Linear], event_dim: int
) -> tuple[Sequence[Linear], list[Tensor]] | None:
    """Return maps of a kind, and the entries of the diagonals between them; None for other maps.

    The batch of the entries is flattened, shape ``(n, *event)``.
    """
    linear, diagonals = maps[::2], maps[1::2]
    if not diagonals or len(linear) != len(diagonals) + 1:
        return None
    slopes: list[Tensor] = []
    for a in diagonals:
        if not isinstance(a, Diagonal) or a.event_dim != event_dim:
            return None
        slopes.append(a.diagonal.reshape(-1, *a.diagonal.shape[-event_dim:]))
    found = [a for a in linear if isinstance(a, kind)]
    return (found, slopes) if len(found) == len(linear) else None
