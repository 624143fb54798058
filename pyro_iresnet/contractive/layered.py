"""Contractions that are a chain of layers, with activations between them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ArgumentTypeError, check_instance
from ..linear_maps import Chain, Convolution, Dense, Diagonal, LinearMap, convolve
from ..linearization import Acting, Linearization
from .activations import Activation, Factors
from .conditioning import Conditioner, Modulation
from .constrained import ConstrainedContraction, FreeWeight
from .norms import ActingWeight, Norm


class Kind(ABC):
    """What the layers are: of vectors, or of images."""

    event_dim: int

    @abstractmethod
    def affine(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A layer at ``h``."""

    @abstractmethod
    def jacobian(self, weight: Tensor) -> LinearMap:
        """That of a layer."""

    @abstractmethod
    def spread(self, v: Tensor) -> Tensor:
        """A vector for each sample, to broadcast against what a layer gives."""


class Vectors(Kind):
    """Matrices."""

    event_dim = 1

    def affine(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(h, weight, bias)

    def jacobian(self, weight: Tensor) -> LinearMap:
        return Dense(weight)

    def spread(self, v: Tensor) -> Tensor:
        return v


@dataclass(frozen=True)
class Images(Kind):
    """Convolutions.

    Arguments:
        circular: whether an image goes on at its other side; else zeros stand around it.
    """

    circular: bool

    event_dim = 3

    def affine(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolve(h, weight, bias, circular=self.circular)

    def jacobian(self, weight: Tensor) -> LinearMap:
        return Convolution(weight, self.circular)

    def spread(self, v: Tensor) -> Tensor:
        return v[..., None, None]


class LayeredContraction(ConstrainedContraction):
    r"""A chain of layers, each of norm at most :math:`L^{1/n}`, and activations between them.

    To write one, set the attributes in ``__init__``. For layers that are put together otherwise,
    override :meth:`free_weights` and :meth:`acting_with`.

    Attributes:
        kind: what the layers are.
        layers: ``n`` modules with a ``weight`` and a ``bias``.
        activations: ``n - 1``.
        conditioner: shifts and gates from a context, or None.
    """

    kind: Kind
    layers: nn.ModuleList
    activations: nn.ModuleList
    conditioner: Conditioner | None

    def free_weights(self) -> list[FreeWeight]:
        # An activation of bound B eats a factor B of the budget of the layer that feeds it.
        share = self.lipschitz ** (1 / len(self.layers))
        activations = activations_of(self.activations)
        bounds = [share / a.bound for a in activations] + [share]
        scales: list[Tensor | None] = [None] * len(bounds)
        for i, (_, inner, outer, _) in enumerate(a.factors() for a in activations):
            before = scales[i]
            scales[i] = before if inner is None else inner if before is None else before * inner
            scales[i + 1] = outer
        weights = [layer.weight for layer in layers_of(self.layers)]
        return [FreeWeight(*w) for w in zip(weights, bounds, scales, strict=True)]

    def acting_with(self, weights: Sequence[ActingWeight]) -> "LayeredActing":
        biases = [bias_of(layer) for layer in layers_of(self.layers)]
        matrices = [w.weight for w in weights]
        activations = activations_of(self.activations)
        factors = [a.factors() for a in activations]
        for i, (activation, (_, inner, _, _)) in enumerate(zip(activations, factors, strict=True)):
            if inner is not None:
                biases[i] = inner * biases[i]
            matrices[i], biases[i] = (
                signed(activation.signs, matrices[i]),
                signed(activation.signs, biases[i]),
            )
        return LayeredActing(
            kind=self.kind,
            weights=tuple(weights),
            matrices=tuple(matrices),
            biases=tuple(biases),
            factors=tuple(factors),
            signs=tuple(a.signs for a in activations),
            conditioner=self.conditioner,
        )


@dataclass(frozen=True)
class LayeredActing(Acting):
    """The weights that act, with the scales and signs of the activations in them.

    Arguments:
        kind: what the layers are.
        weights: as they were constrained, for their norms.
        matrices, biases: as they act.
        factors: of the activations, whose scales and signs are in the weights.
        signs: of the activations, for the shifts of a context.
        conditioner: shifts and gates from a context, or None.
    """

    kind: Kind
    weights: tuple[ActingWeight, ...]
    matrices: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    factors: tuple[Factors, ...]
    signs: tuple[tuple[float, ...], ...]
    conditioner: Conditioner | None

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = x
        modulations = self._modulations(context)
        for i, f in enumerate(self.factors):
            h = self._gated(i, f.core(self._affine(i, h, modulations)), modulations)
        return self._last(h, modulations)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        h = x
        maps: list[LinearMap] = []
        modulations = self._modulations(context)
        for i, f in enumerate(self.factors):
            z = self._affine(i, h, modulations)
            h, slopes = f.core.linearize(z, self.kind.event_dim)
            h = self._gated(i, h, modulations)
            maps += [self.kind.jacobian(self.matrices[i]), self._gated_map(i, slopes, modulations)]
        maps.append(self.kind.jacobian(self.matrices[-1]))
        value = self._last(h, modulations)
        if modulations and not self.factors:
            maps.append(self._gate_map(modulations[0], value))
        return Linearization(value, Chain(tuple(maps)), self.kind.event_dim)

    def lipschitz_bound(self) -> Tensor:
        bound = torch.stack([weight.norm() for weight in self.weights]).prod()
        return bound * math.prod(f.bound for f in self.factors)

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # Each layer rounds at the size of what it adds up, and the layers after it pass that on.
        h, total = x, x.new_zeros(len(x))
        modulations = self._modulations(context)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = self._affine(i, h, modulations)
            norm = weight.norm()
            added = norm * _norm(h) + _norm(self._constant(bias, z)[None]) + _norm(z)
            total = norm * total + added
            if i < len(self.factors):
                h = self._gated(i, self.factors[i].core(z), modulations)
                total = self.factors[i].bound * (total + _norm(h))
        return torch.finfo(x.dtype).eps / 2 * total

    def _modulations(self, context: Tensor | None) -> list[Modulation]:
        if context is None or self.conditioner is None:
            return []
        modulations = list(self.conditioner(context))
        for i, (f, signs) in enumerate(zip(self.factors, self.signs, strict=True)):
            shift, gate = modulations[i]
            shift = shift if f.inner is None else f.inner * shift
            modulations[i] = Modulation(signed(signs, shift, -1), gate)
        return modulations

    def _affine(self, i: int, h: Tensor, modulations: list[Modulation]) -> Tensor:
        z = self.kind.affine(h, self.matrices[i], self.biases[i])
        if i < len(modulations):
            z = z + self.kind.spread(modulations[i].shift)
        return z

    def _last(self, h: Tensor, modulations: list[Modulation]) -> Tensor:
        value = self._affine(len(self.matrices) - 1, h, modulations)
        return value if self.factors else self._gated(0, value, modulations)

    def _gated(self, i: int, h: Tensor, modulations: list[Modulation]) -> Tensor:
        return h * self.kind.spread(modulations[i].gate) if modulations else h

    def _gated_map(self, i: int, a: LinearMap, modulations: list[Modulation]) -> LinearMap:
        if not modulations:
            return a
        gate = self.kind.spread(modulations[i].gate)
        if isinstance(a, Diagonal):
            return Diagonal(a.diagonal * gate, a.event_dim)
        return Chain((a, Diagonal(gate, self.kind.event_dim)))

    def _gate_map(self, modulation: Modulation, like: Tensor) -> LinearMap:
        gate = self.kind.spread(modulation.gate)
        return Diagonal(gate.expand_as(like), self.kind.event_dim)

    def _constant(self, bias: Tensor, like: Tensor) -> Tensor:
        """A bias as it is added to each sample."""
        return self.kind.spread(bias).expand(like.shape[1:])


def signed(signs: tuple[float, ...], v: Tensor, dim: int = 0) -> Tensor:
    """``v`` times each of the signs, side by side."""
    return v if signs == (1.0,) else torch.cat([sign * v for sign in signs], dim)


def layers_of(modules: nn.ModuleList) -> list[nn.Linear | nn.Conv2d]:
    """The layers in a list of modules, which does not know what it holds."""
    return [m for m in modules if isinstance(m, nn.Linear | nn.Conv2d)]


def bias_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Its bias, which every layer here has."""
    if layer.bias is None:
        raise TypeError("A layer of a contraction has a bias.")
    return layer.bias


def activations_of(modules: nn.ModuleList) -> list[Activation]:
    """The activations in a list of modules, which does not know what it holds."""
    return [a for a in modules if isinstance(a, Activation)]


def widths_behind(activations: nn.ModuleList, widths: Sequence[int]) -> list[int]:
    """What each activation makes of its width."""
    pairs = zip(activations_of(activations), widths, strict=True)
    return [len(a.signs) * width for a, width in pairs]


def make_activations(
    activation: Callable[[], Activation], widths: Sequence[int], kind: type[Activation] = Activation
) -> nn.ModuleList:
    """A new activation for each width, or raise with the remedy."""
    example = "LipSwish, or functools.partial(Sine, frequency=2.0)"
    if isinstance(activation, nn.Module) or not callable(activation):
        raise ArgumentTypeError(
            f"Expected activation to be a class or a callable that makes one, such as {example}; "
            f"got {activation!r}. Each layer needs its own, so pass the class."
        )
    made = nn.ModuleList()
    for width in widths:
        one = activation()
        if not isinstance(one, Activation):
            raise ArgumentTypeError(
                f"Expected activation to make an Activation, such as {example}; "
                f"it made a {type(one).__name__}."
            )
        core = one.factors().core
        if not isinstance(core, kind):
            raise ArgumentTypeError(
                f"Expected activation to act on every entry by itself, such as {example}; "
                f"got {type(one).__name__}."
            )
        one.check_width(width)
        made.append(one)
    return made


def check_norm(norm: Norm) -> Norm:
    """Return ``norm``, or raise unless it is a strategy."""
    return check_instance(norm, Norm, "norm", "Gram()")


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)
