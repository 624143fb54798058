"""Maps made of maps: products, sums and negatives."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .convolution import Convolution
from .convolutional import ConvolutionalJacobian
from .elementary import Dense, Diagonal
from .linear_map import LinearMap


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
        r"""Return the exact trace of a network with at most two hidden layers, else None.

        Known for perceptrons and for convolutions. A trace is cyclic, so
        :math:`\mathrm{tr}(W_2 S W_1) = s^\top \mathrm{diag}(W_1 W_2)` and
        :math:`\mathrm{tr}(W_3 S_2 W_2 S_1 W_1) = s_2^\top (W_2 \circ (W_1 W_3)^\top)\, s_1`: one
        product of the size of a hidden layer for each sample.
        """
        match self.maps:
            case (Dense() | Diagonal() as only,):
                return only.trace(weight)
            case (Dense(w1), Diagonal(s)) if s.shape[-1] == w1.shape[1]:
                w1 = w1 if weight is None else w1 @ weight
                return s @ w1.diagonal()
            case (Dense(w1), Diagonal(s), Dense(w2)):
                w1 = w1 if weight is None else w1 @ weight
                return s @ (w1 * w2.T).sum(1)
            case (Dense(w1), Diagonal(s1), Dense(w2), Diagonal(s2), Dense(w3)):
                w1 = w1 if weight is None else w1 @ weight
                return ((s2 @ (w2 * (w1 @ w3).T)) * s1).sum(-1)
            case (Convolution(), Diagonal(s), *_) if weight is None:
                j = ConvolutionalJacobian.of(self.maps)
                found = None if j is None else j.trace()
                return None if found is None else found[0].reshape(s.shape[:-3])
            case _:
                return None

    def mean(self) -> Tensor | None:
        product: Tensor | None = None
        for a in self.maps:
            if isinstance(a, Diagonal) and a.event_dim == 1 and product is not None:
                product = a.mean_entries()[:, None] * product
                continue
            factor = a.weight if isinstance(a, Dense) else a.mean()
            if factor is None:
                return None
            product = factor if product is None else factor @ product
        return product

    def halfway(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        # From both ends to the middle: if the end vectors need no gradient, a backward pass never
        # runs through the first and the last map.
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
            # Two dense maps that meet are one matrix for all samples.
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

    def cost(self) -> int | None:
        return _cost(self.maps)

    def widths(self) -> tuple[int, ...]:
        widths: list[int] = []
        for a in self.maps:
            # The two frequent kinds without a call.
            if isinstance(a, Dense):
                of_map = a.weight.shape[1], a.weight.shape[0]
            elif isinstance(a, Diagonal) and a.event_dim == 1:
                of_map = a.diagonal.shape[-1:]
            else:
                of_map = a.widths()
            if not of_map:
                return ()
            widths += of_map[-1:] if widths else (of_map[0], of_map[-1])
        return tuple(widths)

    @property
    def transpose_is_cheaper(self) -> bool:
        # The factor applied first meets the identity, so its product is the same for all samples.
        # Every other dense factor costs a product for each sample. So start from the larger end.
        first, last = self.maps[0], self.maps[-1]
        size = last.weight.numel() if isinstance(last, Dense) else 0
        return size >= (first.weight.numel() if isinstance(first, Dense) else 0)

    def __iter__(self) -> Iterator[LinearMap]:
        return iter(self.maps)


@dataclass(frozen=True)
class Sum(LinearMap):
    """The sum of maps on one event space, at least one."""

    maps: tuple[LinearMap, ...]

    def mv(self, v: Tensor) -> Tensor:
        return sum((a.mv(v) for a in self.maps[1:]), self.maps[0].mv(v))

    def vm(self, v: Tensor) -> Tensor:
        return sum((a.vm(v) for a in self.maps[1:]), self.maps[0].vm(v))

    def select(self, index: Tensor) -> "Sum":
        return Sum(tuple(a.select(index) for a in self.maps))

    def trace(self, weight: Tensor | None = None) -> Tensor | None:
        return _total([a.trace(weight) for a in self.maps])

    def mean(self) -> Tensor | None:
        return _total([a.mean() for a in self.maps])

    def packed(self) -> tuple[list[str], list[Tensor]] | None:
        words: list[str] = []
        tensors: list[Tensor] = []
        for a in self.maps:
            part = a.packed()
            if part is None:
                return None
            words += ["chain(", *part[0], ")"]
            tensors += part[1]
        return ["sum(", *words, ")"], tensors

    def cost(self) -> int | None:
        return _cost(self.maps)


@dataclass(frozen=True)
class Negated(LinearMap):
    """The negative ``-A`` of a map."""

    a: LinearMap

    def mv(self, v: Tensor) -> Tensor:
        return -self.a.mv(v)

    def vm(self, v: Tensor) -> Tensor:
        return -self.a.vm(v)

    def select(self, index: Tensor) -> "Negated":
        return Negated(self.a.select(index))

    def mean(self) -> Tensor | None:
        mean = self.a.mean()
        return None if mean is None else -mean

    def narrowed(self) -> LinearMap:
        narrow = self.a.narrowed()
        return self if narrow is self.a else Negated(narrow)

    def packed(self) -> tuple[list[str], list[Tensor]] | None:
        part = self.a.packed()
        return None if part is None else (["negated(", *part[0], ")"], part[1])

    def cost(self) -> int | None:
        return self.a.cost()

    def widths(self) -> tuple[int, ...]:
        return self.a.widths()

    @property
    def transpose_is_cheaper(self) -> bool:
        return self.a.transpose_is_cheaper


def _total(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return sum(known[1:], known[0]) if len(known) == len(parts) else None


def _cost(maps: tuple[LinearMap, ...]) -> int | None:
    total = 0
    for a in maps:
        cost = a.weight.numel() if isinstance(a, Dense) else a.cost()
        if cost is None:
            return None
        total += cost
    return total
