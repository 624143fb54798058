"""Contractions that are a list of layers."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from .._torch import full_precision
from ..activations import Activation
from ..errors import ArgumentError, check_instance, check_lipschitz, check_positive_int
from ..norms import Norm, NormalizedWeight
from ..operators import Chain, ContractionMap, Linearization
from ..operators.solve import check_resolved
from .base import Contraction
from .film import FiLM
from .layers import Activate, Affine, Gate, Layer, bound_of, linearize_layers


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

    @abstractmethod
    def raw_weights(self) -> list[RawWeight]:
        """List each weight as it is stored, with its bound and scale."""

    @abstractmethod
    def layers_with(self, weights: Sequence[NormalizedWeight]) -> list[Layer]:
        """Make the layers from normalized weights, in the order of :meth:`raw_weights`."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        with full_precision(x):
            g = self.materialize()
        return g(x, context)

    def materialize(self) -> "LayerSequence":
        raw = self.raw_weights()
        normalized = self.norm.constrain_all(*zip(*raw, strict=True)) if raw else []
        return self._map_with(normalized)

    def normalized_weights(self) -> list[tuple[str, NormalizedWeight]]:
        """List the weights that act, with the names of the parameters behind them."""
        raw = self.raw_weights()
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        if not raw:
            return []
        with full_precision(raw[0].weight):
            normalized = self.norm.constrain_all(*zip(*raw, strict=True))
        pairs = enumerate(zip(raw, normalized, strict=True))
        return [(names.get(id(w.weight), f"weight {i}"), n) for i, (w, n) in pairs]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        return materialize_together([self])[0].lipschitz_bound()

    def _map_with(self, weights: Sequence[NormalizedWeight]) -> "LayerSequence":
        event_dim = len(self.event_shape)
        return LayerSequence(tuple(self.layers_with(weights)), event_dim, self.conditioner)


class Perceptron(LayeredContraction):
    """Linear layers with activations between them, each weight at its share :math:`L^{1/n}`.

    To write one, set the attributes in ``__init__``.

    Attributes:
        layers: ``n`` modules with a ``weight`` and a ``bias``.
        activations: ``n - 1`` activations.
        affine: makes a layer, :class:`Affine` or a class with its arguments.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    affine: Callable[..., Affine]

    def raw_weights(self) -> list[RawWeight]:
        linears: Any = self.layers
        activations: Any = self.activations
        share = self.lipschitz ** (1 / len(linears))
        raw: list[RawWeight] = []
        outer: Tensor | None = None
        for linear, activation in zip(linears, activations, strict=False):
            factors = activation.factors()
            scale = factors.inner
            if outer is not None:
                scale = outer if scale is None else outer * scale
            # An activation of bound B eats a factor B of the budget of the layer before it.
            raw.append(RawWeight(linear.weight, share / activation.bound, scale))
            outer = factors.outer
        return [*raw, RawWeight(linears[-1].weight, share, outer)]

    def layers_with(self, weights: Sequence[NormalizedWeight]) -> list[Layer]:
        linears: Any = self.layers
        activations: Any = self.activations
        conditional, event_dim = self.conditioner is not None, len(self.event_shape)
        layers: list[Layer] = []
        for i, (linear, activation) in enumerate(zip(linears, activations, strict=False)):
            if linear.bias is None:
                raise_unbiased(i)
            factors = activation.factors()
            matrix = weights[i].weight
            if len(factors.signs) > 1:
                matrix = factors.fold(matrix, scaled=False)
            bias, index = factors.fold(linear.bias), i if conditional else None
            layers.append(self.affine(weights[i], matrix, bias, factors, index))
            layers.append(Activate(factors.core, factors.bound, event_dim))
            if conditional:
                layers.append(Gate(i, event_dim))
        if linears[-1].bias is None:
            raise_unbiased(len(linears) - 1)
        alone = conditional and not layers
        last, index = weights[-1], 0 if alone else None
        layers.append(self.affine(last, last.weight, linears[-1].bias, None, index))
        return [*layers, Gate(0, event_dim)] if alone else layers


@dataclass(frozen=True)
class LayerSequence(ContractionMap):
    """Layers in turn, at least one, with a conditioner (or None) for shifts and gates."""

    layers: tuple[Layer, ...]
    event_dim: int
    conditioner: FiLM | None = None

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self.layers if context is None else self._under(context):
            x = layer(x)
        return x

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        layers = self.layers if context is None else self._under(context)
        value, maps = linearize_layers(layers, x)
        return Linearization(value, Chain(maps), self.event_dim)

    def lipschitz_bound(self) -> Tensor:
        bound = bound_of(self.layers)
        return bound if isinstance(bound, Tensor) else torch.tensor(bound)

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # Each layer rounds at the size of its terms, and the layers after it pass that on.
        total = x.new_zeros(len(x))
        for layer in self.layers if context is None else self._under(context):
            value = layer(x)
            total = layer.bound() * total + layer.rounding(x, value)
            x = value
        return torch.finfo(x.dtype).eps / 2 * total

    def _under(self, context: Tensor) -> tuple[Layer, ...]:
        if self.conditioner is None:
            return self.layers
        modulations = self.conditioner(context)
        return tuple([layer.modulated(modulations) for layer in self.layers])


def materialize_together(contractions: Sequence[Contraction]) -> list[ContractionMap]:
    """Return ``[c.materialize() for c in contractions]``, by one batched norm for each shape."""
    maps: dict[int, ContractionMap] = {}
    by_norm: dict[Norm, list[LayeredContraction]] = defaultdict(list)
    for c in contractions:
        if isinstance(c, LayeredContraction):
            by_norm[c.norm].append(c)
        else:
            maps[id(c)] = c.materialize()
    for norm, members in by_norm.items():
        raw = [c.raw_weights() for c in members]
        weights, bounds, scales = zip(*[w for each in raw for w in each], strict=True)
        with full_precision(weights[0]):
            normalized = norm.constrain_all(weights, bounds, scales)
        begin = 0
        for c, each in zip(members, raw, strict=True):
            maps[id(c)] = c._map_with(normalized[begin : begin + len(each)])
            begin += len(each)
    return [maps[id(c)] for c in contractions]


def raise_unbiased(layer: int) -> NoReturn:
    """Raise for a layer whose bias was taken away."""
    raise ArgumentError(
        f"Expected layers[{layer}] to have a bias; got None. A bias of zeros has no effect."
    )


def widths_behind(activations: nn.ModuleList, widths: Sequence[int]) -> list[int]:
    """List the width that each activation makes of the width before it."""
    pairs = zip(activations, widths, strict=True)
    return [len(a.signs) * width for a, width in pairs if isinstance(a, Activation)]
