"""Linear maps as objects: the pieces of which a Jacobian is made, to multiply with.

A map acts on the event dimensions of its argument. Extra leading dimensions of the argument
(several probes, the columns of a basis) broadcast against the batch of the map.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

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
        """The kinds of its parts and their tensors, as :func:`unpack` takes them; None if it is
        made of something else, such as a function."""
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


@dataclass(frozen=True)
class Dense(LinearMap):
    """One matrix for all samples.

    Arguments:
        weight: the matrix, shape ``(event_out, event_in)``.
    """

    weight: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return v @ self.weight.T

    def vm(self, v: Tensor) -> Tensor:
        return v @ self.weight

    def select(self, index: Tensor) -> "Dense":
        return self

    def trace(self, weight: Tensor | None = None) -> Tensor:
        return self.weight.trace() if weight is None else (self.weight * weight.T).sum()

    def mean(self) -> Tensor:
        return self.weight

    def packed(self) -> tuple[list[str], list[Tensor]]:
        return ["dense"], [self.weight]

    def widths(self) -> tuple[int, ...]:
        return (self.weight.shape[1], self.weight.shape[0])


@dataclass(frozen=True)
class Diagonal(LinearMap):
    """A diagonal matrix for each sample, such as the slopes of an activation.

    Arguments:
        diagonal: its entries, shape ``(*batch, event)``.
    """

    diagonal: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def vm(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def select(self, index: Tensor) -> "Diagonal":
        return Diagonal(self.diagonal.reshape(-1, self.diagonal.shape[-1]).index_select(0, index))

    def trace(self, weight: Tensor | None = None) -> Tensor:
        return self.diagonal.sum(-1) if weight is None else self.diagonal @ weight.diagonal()

    def mean(self) -> Tensor:
        return self.mean_entries().diag()

    def mean_entries(self) -> Tensor:
        """The mean of the diagonal over the batch."""
        return self.diagonal.reshape(-1, self.diagonal.shape[-1]).mean(0)

    def packed(self) -> tuple[list[str], list[Tensor]]:
        return ["diagonal"], [self.diagonal]

    def widths(self) -> tuple[int, ...]:
        return (self.diagonal.shape[-1],) * 2


@dataclass(frozen=True)
class Chain(LinearMap):
    """The product ``A_n ... A_2 A_1`` of maps, given in the order they act: ``(A_1, ..., A_n)``."""

    maps: tuple[LinearMap, ...]

    def mv(self, v: Tensor) -> Tensor:
        for a in self.maps:
            v = a.mv(v)
        return v

    def vm(self, v: Tensor) -> Tensor:
        for a in reversed(self.maps):
            v = a.vm(v)
        return v

    def select(self, index: Tensor) -> "Chain":
        return Chain(tuple(a.select(index) for a in self.maps))

    def trace(self, weight: Tensor | None = None) -> Tensor | None:
        r"""The exact trace of a network with at most two hidden layers, else None.

        With the trace cyclic, :math:`\mathrm{tr}(W_2 S W_1) = s^\top \mathrm{diag}(W_1 W_2)` and
        :math:`\mathrm{tr}(W_3 S_2 W_2 S_1 W_1) = s_2^\top (W_2 \circ (W_1 W_3)^\top)\, s_1`:
        one product of the size of a hidden layer for each sample.
        """
        match self.maps:
            case (Dense() | Diagonal() as only,):
                return only.trace(weight)
            case (Dense(w1), Diagonal(s), Dense(w2)):
                w1 = w1 if weight is None else w1 @ weight
                return s @ (w1 * w2.T).sum(1)
            case (Dense(w1), Diagonal(s1), Dense(w2), Diagonal(s2), Dense(w3)):
                w1 = w1 if weight is None else w1 @ weight
                return ((s2 @ (w2 * (w1 @ w3).T)) * s1).sum(-1)
            case _:
                return None

    def mean(self) -> Tensor | None:
        product: Tensor | None = None
        for a in self.maps:
            if isinstance(a, Diagonal) and product is not None:
                product = a.mean_entries()[:, None] * product
                continue
            factor = a.mean()
            if factor is None:
                return None
            product = factor if product is None else factor @ product
        return product

    def halfway(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        # From both ends to the middle: where the ends need no gradient, a backward pass turns
        # round there and never runs through the first and the last map.
        middle = len(self.maps) // 2
        return Chain(self.maps[middle:]).vm(left), Chain(self.maps[:middle]).mv(right)

    def narrowed(self) -> LinearMap:
        widths = self.widths()
        if not widths or min(widths) == widths[0]:
            return self
        cut = widths.index(min(widths))
        turned = [*self.maps[cut:], *self.maps[:cut]]
        joint = len(self.maps) - cut
        last, first = turned[joint - 1], turned[joint]
        if isinstance(last, Dense) and isinstance(first, Dense):
            # The two that meet are one matrix for all samples.
            turned[joint - 1 : joint + 1] = [Dense(first.weight @ last.weight)]
        return Chain(tuple(turned))

    def packed(self) -> tuple[list[str], list[Tensor]] | None:
        kinds: list[str] = []
        tensors: list[Tensor] = []
        for a in self.maps:
            part = a.packed()
            if part is None:
                return None
            kinds += part[0]
            tensors += part[1]
        return kinds, tensors

    def widths(self) -> tuple[int, ...]:
        parts = [a.widths() for a in self.maps]
        if not all(parts):
            return ()
        return (parts[0][0], *(part[1] for part in parts))

    @property
    def transpose_is_cheaper(self) -> bool:
        # Every dense factor costs a product for each sample but the first one applied, whose
        # product with the identity is the same for all samples: start from the larger end.
        def size(a: LinearMap) -> int:
            return a.weight.numel() if isinstance(a, Dense) else 0

        return size(self.maps[-1]) >= size(self.maps[0])

    def __iter__(self) -> Iterator[LinearMap]:
        return iter(self.maps)


def unpack(kinds: list[str], tensors: list[Tensor]) -> Chain:
    """The map of :meth:`LinearMap.packed`."""
    known = {"dense": Dense, "diagonal": Diagonal}
    return Chain(tuple(known[kind](t) for kind, t in zip(kinds, tensors, strict=True)))


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
