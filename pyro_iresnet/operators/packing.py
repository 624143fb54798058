"""Maps as words and tensors, which a compiled graph can hold; see :meth:`LinearMap.packed`."""

from collections.abc import Callable, Iterator

from torch import Tensor

from .composite import Chain, Negated, Sum
from .convolution import Convolution
from .elementary import Dense, Diagonal
from .linear_map import LinearMap

LEAVES: dict[str, Callable[[Tensor], LinearMap]] = {
    "dense": Dense,
    "diagonal1": Diagonal,
    "diagonal3": lambda diagonal: Diagonal(diagonal, 3),
    "convolution": Convolution,
    "circular": lambda kernel: Convolution(kernel, circular=True),
}
GROUPS: dict[str, Callable[[tuple[LinearMap, ...]], LinearMap]] = {
    "chain(": Chain,
    "sum(": Sum,
    "negated(": lambda maps: Negated(Chain(maps)),
}


def unpack(words: list[str], tensors: list[Tensor]) -> LinearMap:
    """Rebuild the map that :meth:`LinearMap.packed` took apart."""
    return Chain(tuple(_parts(iter(words), iter(tensors))))


def _parts(words: Iterator[str], tensors: Iterator[Tensor]) -> Iterator[LinearMap]:
    """Yield the maps up to the end of a group."""
    for word in words:
        if word == ")":
            return
        if word in GROUPS:
            yield GROUPS[word](tuple(_parts(words, tensors)))
        else:
            yield LEAVES[word](next(tensors))
