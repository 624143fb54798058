"""Contractions that are a list of layers."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._settings import alike
from .._torch import full_precision
from ..activations import Activation, Factors
from ..activations.base import on_inputs
from ..errors import (
    check_instance,
    check_lipschitz,
    check_positive_int,
)
from ..norms import Norm, NormalizedWeight
from ..operators import Chain, ContractionMap, Linearization
from ..operators.perceptron import linearize_perceptron
from ..operators.solve import check_resolved
from .base import Contraction
from .film import FiLM
from .hooks import read
from .layers import (
    Activate,
    Affine,
    CurvedLayers,
    Gate,
    Layer,
    bound_of,
    linearize_layers,
    to_dtype,
)


class RawWeight(NamedTuple):
    """A weight as it is stored, and the bound that it is normalized to.

    Arguments:
        weight: a matrix, or the kernel of a convolution.
        bound: the bound of its norm.
        scale: a scalar that multiplies the normalized weight, such as the learned scales of the
            activations around it; None for 1.
    """

    weight: Tensor
    bound: float
    scale: Tensor | None = None


MakeLayers = Callable[[Sequence[NormalizedWeight]], list[Layer]]


class LayeredContraction(Contraction):
    r"""A contraction that is a list of layers, each weight normalized to a bound.

    To write one, define :meth:`raw_weights` and :meth:`layers_with`. Value, Jacobian, bound and
    rounding follow from the layers.

    Arguments:
        event_shape: the shape of one event, with -1 for a size that may vary.
        context_dim: the size of the context, or None.
        lipschitz: ``L``, in (0, 1).
        norm: the strategy that takes the norm of a weight.

    Attributes:
        conditioner: shifts and gates from a context; None until a subclass sets one.
    """

    norm: Norm
    conditioner: FiLM | None

    def __init__(
        self, event_shape: tuple[int, ...], context_dim: int | None, lipschitz: float, norm: Norm
    ) -> None:
        super().__init__()
        self.event_shape = event_shape
        self.context_dim = (
            None if context_dim is None else check_positive_int(context_dim, "context_dim")
        )
        self.lipschitz = check_resolved(torch.get_default_dtype(), check_lipschitz(lipschitz))
        self.norm = check_instance(norm, Norm, "norm", "Gram()")
        self.conditioner = None

    def settings(self) -> dict[str, Any]:
        own = {
            "norm": self.norm,
            "activation": alike(list(_activations(self))),
            "conditioner": self.conditioner,
        }
        return {**super().settings(), **own}

    @abstractmethod
    def raw_weights(self) -> list[RawWeight]:
        """List each weight as it is stored, with its bound and scale."""

    @abstractmethod
    def layers_with(self, weights: Sequence[NormalizedWeight]) -> list[Layer]:
        """Make the layers from normalized weights, in the order of :meth:`raw_weights`."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        return self.materialize()(x, context)

    def materialize(self) -> "LayerSequence":
        raw, make = self._prepared()
        layers = tuple(make(normalized(self.norm, raw)))
        return LayerSequence(layers, len(self.event_shape), self.conditioner)

    def normalized_weights(self) -> list[tuple[str, NormalizedWeight]]:
        """List the weights that act, with the names of the parameters behind them."""
        raw = self.raw_weights()
        names = {_place_of(t): name for name, t in self.state_dict(keep_vars=True).items()}
        pairs = enumerate(zip(raw, normalized(self.norm, raw), strict=True))
        return [(names.get(_place_of(w.weight), f"weight {i}"), n) for i, (w, n) in pairs]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        raw, make = self._prepared()
        return _tensor(bound_of(make(normalized(self.norm, raw))))

    def _prepared(self) -> tuple[list[RawWeight], MakeLayers]:
        """Return the weights as they are stored, and the function that makes the layers."""
        return self.raw_weights(), self.layers_with


class Perceptron(LayeredContraction):
    """Linear layers with activations between them, each weight at its share :math:`L^{1/n}`.

    To write one, set the attributes in ``__init__``.

    Attributes:
        layers: ``n`` modules with a ``weight`` and a ``bias``.
        activations: ``n - 1`` activations.
        affine: makes a layer, :class:`Affine` or a class with its arguments.
        kind: the class of the modules.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    affine: Callable[..., Affine]
    kind: type[nn.Module] = nn.Linear

    def raw_weights(self, found: Sequence[Factors] | None = None) -> list[RawWeight]:
        found = self._factors() if found is None else found
        linears: Any = self.layers
        activations: Any = self.activations
        read(linears, activations, self.kind)
        share = self.lipschitz ** (1 / len(linears))
        raw: list[RawWeight] = []
        outer: Tensor | None = None
        for linear, activation, factors in zip(linears, activations, found, strict=False):
            scale = None if factors.by_unit else factors.inner
            if outer is not None:
                scale = outer if scale is None else outer * scale
            # An activation of bound B eats a factor B of the budget of the layer before it.
            raw.append(RawWeight(linear.weight, share / activation.bound, scale))
            outer = None if factors.by_unit else factors.outer
        return [*raw, RawWeight(linears[-1].weight, share, outer)]

    def layers_with(
        self, weights: Sequence[NormalizedWeight], found: Sequence[Factors] | None = None
    ) -> list[Layer]:
        found = self._factors() if found is None else found
        linears: Any = self.layers
        conditional, event_dim = self.conditioner is not None, len(self.event_shape)
        layers: list[Layer] = []
        outer: Tensor | None = None
        for i, (linear, factors) in enumerate(zip(linears, found, strict=False)):
            matrix, bias = factors.fold_layer(weights[i].weight, linear.bias, outer)
            index, before, behind = i if conditional else None, outer, None
            outer = None
            if factors.by_unit:
                behind, outer = factors.inner, factors.outer
            affine = self.affine(weights[i], matrix, bias, factors, index, before, behind)
            layers += [affine, Activate(factors.core, factors.bound, event_dim, outer)]
            if conditional:
                layers.append(Gate(i, event_dim, outer))
        alone = conditional and not layers
        last, index = weights[-1], 0 if alone else None
        matrix = last.weight if outer is None else on_inputs(last.weight, outer)
        layers.append(self.affine(last, matrix, linears[-1].bias, None, index, outer))
        return [*layers, Gate(0, event_dim)] if alone else layers

    def _prepared(self) -> tuple[list[RawWeight], MakeLayers]:
        kind, own = type(self), vars(self)
        if (
            kind.raw_weights is not Perceptron.raw_weights
            or kind.layers_with is not Perceptron.layers_with
            or "raw_weights" in own
            or "layers_with" in own
        ):
            return super()._prepared()
        # Learned scales are computed once for both.
        found = self._factors()
        return self.raw_weights(found), partial(self.layers_with, found=found)

    def _factors(self) -> list[Factors]:
        activations: Any = self.activations
        return [activation.factors() for activation in activations]


@dataclass(frozen=True)
class LayerSequence(ContractionMap):
    """Layers in turn, at least one, with a conditioner (or None) for shifts and gates.

    Arguments:
        whole: the sequence of packed contractions, of which this one is a row; else None.
        row: the number of the row.
    """

    layers: tuple[Layer, ...]
    event_dim: int
    conditioner: FiLM | None = None
    whole: "LayerSequence | None" = None
    row: int = 0

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self.layers if context is None else self._under(context):
            x = layer(x)
        return x

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        layers = self.layers if context is None else self._under(context)
        value, maps = linearize_layers(layers, x)
        return Linearization(value, Chain(maps), self.event_dim)

    def linearize_densely(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        found = CurvedLayers.of(self.layers) if context is None and self.event_dim == 1 else None
        at = None if found is None else linearize_perceptron(*found, x)
        return self.linearize(x, context) if at is None else at

    def lipschitz_bound(self) -> Tensor:
        return _tensor(bound_of(self.layers))

    def to(self, dtype: torch.dtype) -> "LayerSequence | None":
        # The conditioner is a module, which cannot be copied at each call.
        layers = to_dtype(self.layers, dtype) if self.conditioner is None else None
        return None if layers is None else LayerSequence(layers, self.event_dim)

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # Each layer rounds at the size of its terms, and the layers after it pass that on.
        total = x.new_zeros(len(x))
        for layer in self.layers if context is None else self._under(context):
            value = layer(x)
            total = layer.bound() * total + layer.rounding(x, value)
            x = value
        return torch.finfo(x.dtype).eps / 2 * total

    def rows(self, count: int) -> "list[LayerSequence]":
        """Return the sequence of each of ``count`` packed contractions."""
        each = zip(*[layer.rows(count) for layer in self.layers], strict=True)
        return [LayerSequence(r, self.event_dim, None, self, i) for i, r in enumerate(each)]

    def _under(self, context: Tensor) -> tuple[Layer, ...]:
        if self.conditioner is None:
            return self.layers
        modulations = self.conditioner(context)
        return tuple([layer.modulated(modulations) for layer in self.layers])


def _tensor(bound: Tensor | float) -> Tensor:
    return bound if isinstance(bound, Tensor) else torch.tensor(bound)


def _place_of(tensor: Tensor) -> tuple[object, ...]:
    """Return where a tensor lies, the same for two views of one row of a stacked tensor."""
    return tensor.data_ptr(), tensor.shape


def _activations(module: nn.Module) -> Iterator[Activation]:
    """Iterate over the activations in a module, each without its parts."""
    for child in module.children():
        if isinstance(child, Activation):
            yield child
        else:
            yield from _activations(child)


def normalized(norm: Norm, raw: Sequence[RawWeight]) -> list[NormalizedWeight]:
    """Return the weights that act; a network without weights has none."""
    if not raw:
        return []
    with full_precision(raw[0].weight):
        return norm.constrain_all(*zip(*raw, strict=True))
