"""Contractions that are a list of layers."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .._settings import alike
from .._torch import full_precision
from ..activations import Activation
from ..errors import (
    ArgumentError,
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
from .hooks import HOOKS, refuse_forward, refuse_hooks
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

# Hooks that set the weight of a layer from its other tensors.
WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)
# Stride, dilation and groups of a convolution that keeps the size of an image.
PLAIN = ((1, 1), (1, 1), 1)


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
        kind: the class of the modules.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    affine: Callable[..., Affine]
    kind: type[nn.Module] = nn.Linear

    def raw_weights(self) -> list[RawWeight]:
        linears: Any = self.layers
        activations: Any = self.activations
        read(linears, activations, self.kind)
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
            factors = activation.factors()
            matrix = weights[i].weight
            if len(factors.signs) > 1:
                matrix = factors.fold(matrix, scaled=False)
            bias, index = factors.fold(linear.bias), i if conditional else None
            layers.append(self.affine(weights[i], matrix, bias, factors, index))
            layers.append(Activate(factors.core, factors.bound, event_dim))
            if conditional:
                layers.append(Gate(i, event_dim))
        alone = conditional and not layers
        last, index = weights[-1], 0 if alone else None
        layers.append(self.affine(last, last.weight, linears[-1].bias, None, index))
        return [*layers, Gate(0, event_dim)] if alone else layers


def read(layers: nn.ModuleList, activations: nn.ModuleList, kind: type[nn.Module]) -> None:
    """Let pruning, weight and spectral normalization set the weights of layers before a reading.

    A contraction never calls its layers, since the acting weights are normalized ones. A hook or a
    ``forward`` of the user's would be passed over in silence.

    Arguments:
        layers, activations: those of a contraction.
        kind: ``nn.Linear`` or ``nn.Conv2d``.

    Raises:
        ArgumentError: a layer is of another kind, has no bias, or has a ``forward`` or a hook of
            the user's; an activation has a hook or a ``forward`` set on itself.
    """
    for i, layer in enumerate(layers):
        if type(layer).forward is not kind.forward or "forward" in vars(layer):
            raise ArgumentError(
                f"Expected layers[{i}] to compute as nn.{kind.__name__}; got a "
                f"{type(layer).__name__} with a forward of its own, which a contraction never "
                "calls. Parametrize the weight (torch.nn.utils.parametrize), or wrap your network."
            )
        if isinstance(layer, nn.Conv2d) and (layer.stride, layer.dilation, layer.groups) != PLAIN:
            raise ArgumentError(
                f"Expected layers[{i}] with stride 1, dilation 1 and one group, which the bound is "
                f"for; got {layer}."
            )
        if layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            refuse_hooks(layer, f"layers[{i}]")
        if layer._forward_pre_hooks:
            for hook in layer._forward_pre_hooks.values():
                if not isinstance(hook, WEIGHT_HOOKS):
                    refuse_hooks(layer, f"layers[{i}]")
                hook(layer, ())
        if layer.bias is None:
            raise ArgumentError(
                f"Expected layers[{i}] to have a bias; got None. For no bias, set the bias to 0 "
                "and its requires_grad to False."
            )
    for i, activation in enumerate(activations):
        if any(map(vars(activation).get, HOOKS)):
            refuse_hooks(activation, f"activations[{i}]")
        if "forward" in vars(activation):
            refuse_forward(activation, f"activations[{i}]")


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

    def linearize_densely(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        found = CurvedLayers.of(self.layers) if context is None and self.event_dim == 1 else None
        at = None if found is None else linearize_perceptron(*found, x)
        return self.linearize(x, context) if at is None else at

    def lipschitz_bound(self) -> Tensor:
        bound = bound_of(self.layers)
        return bound if isinstance(bound, Tensor) else torch.tensor(bound)

    def to(self, dtype: torch.dtype) -> "LayerSequence | None":
        # The conditioner is a module, which cannot be copied at each call.
        layers = to_dtype(self.layers, dtype) if self.conditioner is None else None
        return None if layers is None else replace(self, layers=layers)

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


def _activations(module: nn.Module) -> Iterator[Activation]:
    """Iterate over the activations in a module, each without its parts."""
    for child in module.children():
        if isinstance(child, Activation):
            yield child
        else:
            yield from _activations(child)


def widths_behind(activations: nn.ModuleList, widths: Sequence[int]) -> list[int]:
    """List the width that each activation makes of the width before it."""
    pairs = zip(activations, widths, strict=True)
    return [len(a.signs) * width for a, width in pairs if isinstance(a, Activation)]
