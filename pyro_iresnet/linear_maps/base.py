"""Linear maps as objects: the pieces of which a Jacobian is made, to multiply with.

A map acts on the event dimensions of its argument. Extra leading dimensions of the argument
(several probes, the columns of a basis) broadcast against the batch of the map.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class LinearMap(ABC):
    """``A``, one matrix for every sample of a batch or one for all, known by its products.

    To write one: ``mv`` and ``vm`` as linear functions of ``v`` that broadcast over leading
    dimensions, ``select``, and ``trace`` if it costs no more than a few products.
    """

    @abstractmethod
    def mv(self, v: Tensor) -> Tensor:
        """``A v``, shape ``(*lead, *batch, *event_out)``."""

    @abstractmethod
    def vm(self, v: Tensor) -> Tensor:
        """``A^T v``, shape ``(*lead, *batch, *event_in)``."""

    @abstractmethod
    def select(self, index: Tensor) -> "LinearMap":
        """The map of the samples ``index``, positions in the flattened batch, repeats allowed."""

    def trace(self, weight: Tensor | None = None) -> Tensor | None:
        """``tr(M A)``, broadcastable to ``(*batch,)``, or None if it would cost too much.

        Arguments:
            weight: ``M``, one matrix for all samples; the identity when None.
        """
        return None

    def mean(self) -> Tensor | None:
        """A matrix near the mean of ``A`` over the batch, of a norm no larger than the bound of
        ``A`` that its parts prove; None where that would cost too much."""
        return None

    def halfway(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        r"""Two tensors whose inner product is :math:`\ell^\top A r`, at less than ``mv`` costs."""
        return left, self.mv(right)

    def narrowed(self) -> "LinearMap":
        r"""A map with the same :math:`\det(I + A)`, on as few coordinates as is known.

        Sylvester's identity: :math:`\det(I + B A) = \det(I + A B)`.
        """
        return self

    def packed(self) -> tuple[list[str], list[Tensor]] | None:
        """Words that name its parts in order, and the tensors of these, as ``unpack`` takes them.

        None if it is made of something else, such as a function.
        """
        return None

    def cost(self) -> int | None:
        """The multiplications of one product with a vector, or None if that is not known."""
        return None

    def widths(self) -> tuple[int, ...]:
        """The coordinates it starts from, those between its parts and those it ends in, if known.

        Known for maps of vectors that are made of :class:`Dense` and :class:`Diagonal` ones.
        """
        return ()

    @property
    def transpose_is_cheaper(self) -> bool:
        """Whether a dense matrix is cheaper to form by ``vm``, row by row, than by ``mv``."""
        return True


def as_matrix(a: LinearMap, event_shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A square map as a matrix with events flattened, in one batched pass from its cheaper side.

    Arguments:
        a: the map.
        event_shape: the shape of what it acts on.
        like: a tensor of shape ``(*batch, ...)`` with as many dimensions as one of
            ``(*batch, *event)``, whose batch, dtype and device to take.

    Returns:
        shape ``(*batch, D, D)``.
    """
    batch = like.shape[: like.dim() - len(event_shape)]
    eye = basis(event_shape, len(batch), like)
    size = len(eye)
    if a.transpose_is_cheaper:
        rows = a.vm(eye).expand(size, *batch, *event_shape)
        return rows.reshape(size, *batch, size).movedim(0, -2)
    columns = a.mv(eye).expand(size, *batch, *event_shape)
    return columns.reshape(size, *batch, size).movedim(0, -1)


def basis(shape: tuple[int, ...], batch_dims: int, like: Tensor) -> Tensor:
    """The standard basis of an event space, shape ``(size, 1, ..., 1, *shape)``.

    Arguments:
        shape: the event shape.
        batch_dims: how many dimensions of size 1 to put in the middle.
        like: the tensor whose dtype and device to take.
    """
    size = torch.Size(shape).numel()
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye.reshape(size, *(1,) * batch_dims, *shape)
