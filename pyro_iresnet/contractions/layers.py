"""Layers with the weights that act: value, linearization, bound and rounding of each.

Learned scales stand in the weights, so a layer holds tensors only, and an activation has no
parameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import activations
from ..activations import Activation, Factors
from ..activations.base import Curved
from ..activations.sine import Sin
from ..activations.swish import SiLU
from ..errors import ArgumentTypeError
from ..norms import NormalizedWeight
from ..operators import Convolution, Dense, Diagonal, LinearMap, convolve
from ..operators.linear_map import row_norm
from .film import Modulation


class Layer(ABC):
    """A layer with the weights that act.

    To write one, define :meth:`__call__`, :meth:`linearize`, :meth:`bound`, :meth:`rounding`, and
    :meth:`modulated` if a context acts on the layer.
    """

    @abstractmethod
    def __call__(self, h: Tensor) -> Tensor:
        """Return the value, shapes ``(*batch, *event_in)`` to ``(*batch, *event_out)``."""

    @abstractmethod
    def linearize(self, h: Tensor) -> tuple[Tensor, LinearMap]:
        """Return the value and the Jacobian at ``h``."""

    @abstractmethod
    def bound(self) -> Tensor | float:
        """Return a proven upper bound of the Lipschitz constant, a scalar."""

    @abstractmethod
    def rounding(self, h: Tensor, value: Tensor) -> Tensor:
        r"""Estimate the rounding of the value at ``h``, shape ``(n,)``, in :math:`\epsilon / 2`."""

    def modulated(self, modulations: Sequence[Modulation]) -> "Layer":
        """Return the layer under a context."""
        return self

    def to(self, dtype: torch.dtype) -> "Layer | None":
        """Return the layer with tensors of a dtype; None if it has no such copy."""
        return None

    def rows(self, count: int) -> "Sequence[Layer]":
        """Return the layer of each of ``count`` packed contractions."""
        return count * [self]


@dataclass(frozen=True)
class Affine(Layer):
    """:math:`W h + b + s`, with a shift s from a context.

    Arguments:
        weight: the normalized weight, before scales of units; its norm is the bound.
        matrix: ``W``, with scales.
        bias: ``b``, with scales.
        factors: of the activation that follows, for the shift; None if none follows.
        index: the number of the modulation that shifts the layer; None for no shift.
        before: the scale of each unit of ``h``, which stands in ``W``; None for 1.
        behind: the scale of each row of ``W``; None for 1.
        shift: ``s``, shape ``(*batch, width)``, or None.
    """

    weight: NormalizedWeight
    matrix: Tensor
    bias: Tensor
    factors: Factors | None = None
    index: int | None = None
    before: Tensor | None = None
    behind: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, h: Tensor) -> Tensor:
        z = nn.functional.linear(h, self.matrix, self.bias)
        return z if self.shift is None else z + self.shift

    def linearize(self, h: Tensor) -> tuple[Tensor, LinearMap]:
        return self(h), Dense(self.matrix)

    def bound(self) -> Tensor:
        known = self.weight.known
        if known is not None:
            return known
        bound = self.weight.norm()
        if self.before is None and self.behind is None:
            return bound
        # The scales of units are rounded, and the products with them.
        return bound * (1 + 4 * torch.finfo(self.matrix.dtype).eps)

    def rounding(self, h: Tensor, value: Tensor) -> Tensor:
        bias = self.bias
        # The bound holds without the scales of units.
        if self.before is not None:
            h = _times(h, self.before)
        if self.behind is not None:
            bias, value = bias / self.behind, _times(value, self.behind.reciprocal())
        # An image has the bias of a channel at each place.
        constant = math.prod(value.shape[2:]) ** 0.5 * torch.linalg.vector_norm(bias)
        return self.bound() * row_norm(h) + constant + row_norm(value)

    def modulated(self, modulations: Sequence[Modulation]) -> "Affine":
        if self.index is None:
            return self
        shift = modulations[self.index].shift
        if self.factors is not None:
            shift = self.factors.fold_shift(shift)
        return replace(self, shift=shift)

    def to(self, dtype: torch.dtype) -> "Affine | None":
        if type(self) not in (Affine, Conv):
            # A subclass of a user's may hold other tensors.
            return None
        known = self.bound().to(dtype)
        weight = replace(self.weight, weight=self.weight.weight.to(dtype), known=known)
        held = [(name, getattr(self, name)) for name in ("matrix", "bias", "before", "behind")]
        tensors = {name: tensor.to(dtype) for name, tensor in held if tensor is not None}
        return replace(self, weight=weight, **tensors)

    def rows(self, count: int) -> "Sequence[Affine]":
        weights = self.weight.rows()
        same = self.matrix is self.weight.weight
        matrices = [w.weight for w in weights] if same else self.matrix.unbind()
        found = list(map(type(self), weights, matrices, self.bias.unbind()))
        if self.before is None and self.behind is None:
            return found
        before, behind = _rows(self.before, count), _rows(self.behind, count)
        pairs = zip(found, before, behind, strict=True)
        return [replace(one, before=b, behind=a) for one, b, a in pairs]


@dataclass(frozen=True)
class Conv(Affine):
    """A convolution of images that keeps their size; arguments as :class:`Affine`.

    ``circular`` is True if an image goes on at its other side; else zeros stand around it.
    """

    circular: bool = False

    def __call__(self, h: Tensor) -> Tensor:
        z = convolve(h, self.matrix, self.bias, circular=self.circular)
        return z if self.shift is None else z + self.shift[..., None, None]

    def linearize(self, h: Tensor) -> tuple[Tensor, LinearMap]:
        return self(h), Convolution(self.matrix, self.circular)


@dataclass(frozen=True)
class Activate(Layer):
    """An activation, its scales in the weights around it.

    Arguments:
        core: the activation without scales.
        stretch: the largest stretch before scales that are one number.
        event_dim: the number of trailing dimensions of one event.
        outer: the scale of each unit of the value, which stands in the next weight; None for 1.
    """

    core: Activation
    stretch: float
    event_dim: int = 1
    outer: Tensor | None = None

    def __call__(self, h: Tensor) -> Tensor:
        return self.core(h)

    def linearize(self, h: Tensor) -> tuple[Tensor, LinearMap]:
        value, slope = self.core.value_and_slope(h)
        return value, Diagonal(slope, self.event_dim)

    def bound(self) -> float:
        return self.stretch

    def rounding(self, h: Tensor, value: Tensor) -> Tensor:
        value = value if self.outer is None else _times(value, self.outer)
        return self.stretch * row_norm(value)

    def to(self, dtype: torch.dtype) -> "Activate | None":
        if not type(self.core).__module__.startswith(activations.__name__):
            # An activation of a user's may hold tensors.
            return None
        return self if self.outer is None else replace(self, outer=self.outer.to(dtype))

    def rows(self, count: int) -> "Sequence[Activate]":
        return [replace(self, outer=outer) for outer in _rows(self.outer, count)]


@dataclass(frozen=True)
class Gate(Layer):
    r"""A product with a gate :math:`\gamma` in (0, 1) from a context.

    Arguments:
        index: the number of the modulation that has the gate.
        event_dim: the number of trailing dimensions of one event.
        outer: the scale of each unit, which stands in the next weight; None for 1.
        gate: shape ``(*batch, width)``; None before a context is known.
    """

    index: int
    event_dim: int = 1
    outer: Tensor | None = None
    gate: Tensor | None = None

    def __call__(self, h: Tensor) -> Tensor:
        return h if self.gate is None else h * self._spread()

    def linearize(self, h: Tensor) -> tuple[Tensor, LinearMap]:
        gate = torch.ones_like(h) if self.gate is None else self._spread().expand_as(h)
        return self(h), Diagonal(gate, self.event_dim)

    def bound(self) -> float:
        return 1.0

    def rounding(self, h: Tensor, value: Tensor) -> Tensor:
        return row_norm(value if self.outer is None else _times(value, self.outer))

    def modulated(self, modulations: Sequence[Modulation]) -> "Gate":
        return replace(self, gate=modulations[self.index].gate)

    def rows(self, count: int) -> "Sequence[Gate]":
        return [replace(self, outer=outer) for outer in _rows(self.outer, count)]

    def _spread(self) -> Tensor:
        if self.gate is None:
            raise ArgumentTypeError("Expected a context for the gate of a layer; got none.")
        return self.gate.reshape(*self.gate.shape, *(1,) * (self.event_dim - 1))


def _times(h: Tensor, scale: Tensor) -> Tensor:
    """Return ``h``, shape ``(n, units, ...)``, times the scale of each unit."""
    return h * scale.reshape(*scale.shape, *(1,) * (h.dim() - 2))


def _rows(stacked: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return count * [None] if stacked is None else stacked.unbind()


def to_dtype(layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Layer, ...] | None:
    """Return layers with tensors of a dtype; None if one of them has no such copy."""
    copies = [layer.to(dtype) for layer in layers]
    known = tuple([layer for layer in copies if layer is not None])
    return known if len(known) == len(layers) else None


def linearize_layers(layers: Sequence[Layer], h: Tensor) -> tuple[Tensor, tuple[LinearMap, ...]]:
    """Return the value of layers in turn, and the Jacobian of each.

    Diagonal maps in a row are merged, so that a gate leaves the exact trace of a network as it is.
    """
    maps: list[LinearMap] = []
    last: LinearMap | None = None
    for layer in layers:
        h, jacobian = layer.linearize(h)
        if isinstance(jacobian, Diagonal) and isinstance(last, Diagonal):
            maps.pop()
            jacobian = Diagonal(last.diagonal * jacobian.diagonal, jacobian.event_dim)
        maps.append(jacobian)
        last = jacobian
    return h, tuple(maps)


# The classes themselves: a subclass may compute another function, or hold tensors.
CURVED = (SiLU, Sin)


class CurvedLayers(NamedTuple):
    """A perceptron of at least one hidden layer, with the weights that act.

    Arguments:
        cores: the activations, of known curvature.
        weights, biases: of the layers around the activations.
    """

    cores: tuple[Curved, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> "CurvedLayers | None":
        """Return layers as such a perceptron, or None for other layers."""
        affine: Any = layers[::2]
        active: Any = layers[1::2]
        if len(active) == 0 or len(affine) != len(active) + 1:
            return None
        for layer in active:
            if type(layer) is not Activate or type(layer.core) not in CURVED:
                return None
        for layer in affine:
            if type(layer) is not Affine or layer.shift is not None:
                return None
        return cls(
            tuple([layer.core for layer in active]),
            tuple([layer.matrix for layer in affine]),
            tuple([layer.bias for layer in affine]),
        )


def bound_of(layers: Sequence[Layer]) -> Tensor | float:
    """Return the product of the bounds of layers."""
    bound: Tensor | float = 1.0
    for layer in layers:
        bound = bound * layer.bound()
    return bound
