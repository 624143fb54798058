"""Linear maps as objects: the pieces of a Jacobian, known by their products.

A map acts on the event dimensions of its argument. Extra leading dimensions of the argument
(several probes, the columns of a basis) broadcast against the batch of the map.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class LinearMap(ABC):
    """Base class of linear maps ``A``: one matrix for each sample of a batch, or one for all.

    To write one, define ``mv`` and ``vm`` as linear functions of ``v`` that broadcast over leading
    dimensions, and ``select``. Define ``trace`` too if it costs no more than a few products.
    """

    @abstractmethod
    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v``, shape ``(*lead, *batch, *event_out)``."""

    @abstractmethod
    def vm(self, v: Tensor) -> Tensor:
        """Return ``A^T v``, shape ``(*lead, *batch, *event_in)``."""

    @abstractmethod
    def select(self, index: Tensor) -> "LinearMap":
        """Return the map of samples, by positions in the flattened batch, repeats allowed."""

    def trace(self, weight: Tensor | None = None) -> Tensor | None:
        """Return ``tr(M A)``, broadcastable to ``(*batch,)``, or None if it would cost too much.

        ``weight`` is ``M``, one matrix for all samples; the identity when None.
        """
        return None

    def mean(self) -> Tensor | None:
        """Return a matrix near the mean of ``A`` over the batch, or None if it would cost too much.

        The norm of the matrix is at most the bound of ``A`` that the parts of ``A`` prove.
        """
        return None

    def halfway(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return two tensors with inner product :math:`\ell^\top A r`, cheaper than ``mv``."""
        return left, self.mv(right)

    def narrowed(self) -> "LinearMap":
        r"""Return a map with the same :math:`\det(I + A)`, on as few coordinates as is known.

        Sylvester's identity: :math:`\det(I + B A) = \det(I + A B)`.
        """
        return self

    def packed(self) -> tuple[list[str], list[Tensor]] | None:
        """Return the words that name the parts in order, and the parts' tensors, for ``unpack``.

        None if a part has no such name, as a function has none.
        """
        return None

    def cost(self) -> int | None:
        """Return the number of multiplications of one product with a vector, or None if unknown."""
        return None

    def widths(self) -> tuple[int, ...]:
        """Return the number of coordinates before, between and after the parts; empty if unknown.

        Known for maps of vectors, such as products of :class:`Dense` and :class:`Diagonal`.
        """
        return ()

    @property
    def transpose_is_cheaper(self) -> bool:
        """Return True if a dense matrix is cheaper to form by ``vm``, by rows, than by ``mv``."""
        return True


def row_norm(v: Tensor) -> Tensor:
    """Return the Euclidean norm of each row, shapes ``(n, *event)`` to ``(n,)``."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1)
