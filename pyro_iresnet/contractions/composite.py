"""Contractions made of contractions."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, check_instance
from ..operators import Chain, ContractionMap, Linearization, LinearMap, Sum
from .base import Contraction
from .together import materialize_together


class _Composed(Contraction):
    """Contractions of one event space. A context goes to those that take one."""

    def __init__(self, *parts: Contraction) -> None:
        super().__init__()
        if not parts:
            raise ArgumentError(f"Expected parts of {type(self).__name__}: at least one; got none.")
        for i, part in enumerate(parts):
            check_instance(part, Contraction, f"parts[{i}]", "DenseContraction(2)")
        self.parts = nn.ModuleList(parts)
        self.event_shape = _shared_shape([part.event_shape for part in parts])
        sizes = {part.context_dim for part in parts if part.context_dim is not None}
        if len(sizes) > 1:
            raise ArgumentError(f"Expected parts of one context_dim; got {sorted(sizes)}.")
        self.context_dim = sizes.pop() if sizes else None

    @abstractmethod
    def materialize(self) -> "_Parts": ...

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        return self.materialize()(x, context)

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        return self.materialize().lipschitz_bound()

    def _contractions(self) -> list[Contraction]:
        parts = list(cast(Iterable[Contraction], self.parts))
        for i, part in enumerate(parts):
            check_instance(part, Contraction, f"parts[{i}]", "DenseContraction(2)")
        return parts

    def _parts(self) -> tuple[tuple[ContractionMap, bool], ...]:
        contractions = self._contractions()
        for i, part in enumerate(contractions):
            part.check_uncalled(f"parts[{i}]")
        together = materialize_together(contractions)
        pairs = zip(together, contractions, strict=True)
        return tuple((acting, c.context_dim is not None) for acting, c in pairs)


def _shared_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the event shape that suits all, where -1 suits any size."""
    suited = [{size for size in sizes if size != -1} for sizes in zip(*shapes, strict=False)]
    if len({len(shape) for shape in shapes}) > 1 or any(len(sizes) > 1 for sizes in suited):
        raise ArgumentError(
            f"Expected parts that act on one event space; got the event shapes {shapes}. Build "
            "them for the same number of coordinates, or the same channels."
        )
    return tuple(sizes.pop() if sizes else -1 for sizes in suited)


class SequentialContraction(_Composed):
    r"""Contractions in turn, :math:`g = g_n \circ \cdots \circ g_1`, of bound :math:`\prod_i L_i`.

    Arguments:
        parts: one or more, of one event shape; a context goes to the parts that take one.

    Raises:
        ArgumentError, ArgumentTypeError: no parts, or parts that do not fit each other.

    Example:
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.contractions import SequentialContraction
        >>> g = SequentialContraction(
        ...     DenseContraction(2, lipschitz=0.9), DenseContraction(2, lipschitz=0.9)
        ... )
        >>> round(g.lipschitz, 2)
        0.81
    """

    def __init__(self, *parts: Contraction) -> None:
        super().__init__(*parts)
        self.lipschitz = math.prod(part.lipschitz for part in parts)
        self._check_constant()

    def materialize(self) -> "_Sequence":
        return _Sequence(self._parts(), self.event_dim)


class SumContraction(_Composed):
    r"""The sum of contractions, :math:`g = \sum_i g_i`, such as a local and a global contraction.

    :math:`\mathrm{Lip}(g) \le \sum_i L_i`: divide the budget between the parts.

    Arguments:
        parts: as in :class:`SequentialContraction`; the sum of the bounds must be below 1.

    Raises:
        ArgumentError: no parts, parts that do not fit each other, or bounds whose sum is 1 or more.

    Example:
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.contractions import SumContraction
        >>> g = SumContraction(
        ...     DenseContraction(2, lipschitz=0.5), DenseContraction(2, lipschitz=0.4)
        ... )
        >>> round(g.lipschitz, 2)
        0.9
    """

    def __init__(self, *parts: Contraction) -> None:
        super().__init__(*parts)
        self.lipschitz = sum(part.lipschitz for part in parts)
        if not self.lipschitz < 1:
            bounds = [round(part.lipschitz, 4) for part in parts]
            raise ArgumentError(
                f"Expected parts whose bounds sum up to less than 1; got {bounds}. Build them with "
                "a lower lipschitz."
            )
        self._check_constant()

    def materialize(self) -> "_Sum":
        return _Sum(self._parts(), self.event_dim)


@dataclass(frozen=True)
class _Parts(ContractionMap):
    """The maps of parts, each with True if the part takes the context."""

    parts: tuple[tuple[ContractionMap, bool], ...]
    event_dim: int

    @property
    def closed_form(self) -> bool:
        return all(part.closed_form for part, _ in self.parts)

    def to(self, dtype: torch.dtype) -> "_Parts | None":
        parts = [(part.to(dtype), takes) for part, takes in self.parts]
        known = tuple([(part, takes) for part, takes in parts if part is not None])
        return replace(self, parts=known) if len(known) == len(parts) else None

    def _seen(self, context: Tensor | None) -> list[tuple[ContractionMap, Tensor | None]]:
        return [(part, context if takes else None) for part, takes in self.parts]


class _Sequence(_Parts):
    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for part, its_context in self._seen(context):
            x = part(x, its_context)
        return x

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        maps: list[LinearMap] = []
        for part, its_context in self._seen(context):
            at = part.linearize(x, its_context)
            x = at.value
            maps += at.jacobian.maps if isinstance(at.jacobian, Chain) else [at.jacobian]
        return Linearization(x, Chain(tuple(maps)), self.event_dim)

    def lipschitz_bound(self) -> Tensor:
        return torch.stack([part.lipschitz_bound() for part, _ in self.parts]).prod()

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        total = x.new_zeros(len(x))
        for part, its_context in self._seen(context):
            total = part.lipschitz_bound() * total + part.rounding(x, its_context)
            x = part(x, its_context)
        return total


class _Sum(_Parts):
    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        values = [part(x, its_context) for part, its_context in self._seen(context)]
        return sum(values[1:], values[0])

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        parts = [part.linearize(x, its_context) for part, its_context in self._seen(context)]
        values = [part.value for part in parts]
        jacobian = Sum(tuple(part.jacobian for part in parts))
        return Linearization(sum(values[1:], values[0]), jacobian, self.event_dim)

    def lipschitz_bound(self) -> Tensor:
        return torch.stack([part.lipschitz_bound() for part, _ in self.parts]).sum()

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        parts = [part.rounding(x, its_context) for part, its_context in self._seen(context)]
        return sum(parts[1:], parts[0])
