"""The densely connected contraction."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import check_dims, check_lipschitz, check_positive_int
from ..linear_maps import Append, Chain, Dense, LinearMap
from ..linearization import Linearization
from .activations import Activation
from .conditioning import Conditioner, MakeConditioner, make_conditioner
from .constrained import FreeWeight
from .gram import Gram
from .layered import (
    LayeredActing,
    LayeredContraction,
    Vectors,
    activations_of,
    bias_of,
    check_norm,
    layers_of,
    make_activations,
    signed,
    widths_behind,
)
from .norms import ActingWeight, Norm
from .swish import LipSwish


class DenseNetContraction(LayeredContraction):
    r"""A network whose layers keep what they start from, with a proven Lipschitz bound.

    .. math:: h_0 = x, \qquad
              h_k = \big(\cos\theta_k\, h_{k-1},\;
                    \sin\theta_k\, \phi(W_k h_{k-1} + b_k)\big), \qquad
              g(x) = W h_n + b

    With :math:`\lVert W_k \rVert \le 1` and learned angles, :math:`\mathrm{Lip}(h_k) \le
    \mathrm{Lip}(h_{k-1})` since :math:`\cos^2 + \sin^2 = 1`, and :math:`\lVert W \rVert \le L`
    gives :math:`\mathrm{Lip}(g) \le L`. The last layer sees all hidden layers and x itself, so that
    no signal has to pass every activation. The cosines and sines go into the weights before they
    act. A context shifts the biases and gates the hidden layers, as in :class:`DenseContraction`.

    Arguments:
        dim: the number of coordinates of ``x``.
        hidden_dims: the widths that the layers add; default two of ``dim``, at least 64 and at most
            512.
        context_dim, lipschitz, activation, norm, conditioner: as in :class:`DenseContraction`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible DenseNets with Concatenated LipSwish (Perugachi-Diaz, Tomczak and Bhulai, 2021),
        Section 3, there with two positive numbers in the place of cosine and sine.

    Example:
        >>> import torch
        >>> g = DenseNetContraction(2, [16, 16], lipschitz=0.9)
        >>> g(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] | None = None,
        *,
        context_dim: int | None = None,
        lipschitz: float = 0.97,
        activation: Callable[[], Activation] = LipSwish,
        norm: Norm = Gram(),  # noqa: B008  (frozen, so safe to share)
        conditioner: MakeConditioner = Conditioner,
    ) -> None:
        super().__init__()
        self.dim = check_positive_int(dim, "dim")
        if hidden_dims is None:
            hidden_dims = 2 * [min(max(64, dim), 512)]
        hidden = check_dims(hidden_dims, "hidden_dims")
        self.kind = Vectors()
        self.event_shape = (dim,)
        self.context_dim = context_dim
        self.lipschitz = check_lipschitz(lipschitz)
        self.norm = check_norm(norm)
        self.activations = make_activations(activation, hidden)
        behind = widths_behind(self.activations, hidden)
        known = [dim + sum(behind[:k]) for k in range(len(hidden) + 1)]
        self.layers = nn.ModuleList(
            nn.Linear(n_in, n_out) for n_in, n_out in zip(known, (*hidden, dim), strict=True)
        )
        self.angles = nn.Parameter(torch.full((len(hidden),), math.pi / 4))
        modulated = list(zip(hidden, behind, strict=True)) or [(dim, dim)]
        self.conditioner = make_conditioner(conditioner, context_dim, modulated)

    def free_weights(self) -> list[FreeWeight]:
        activations = activations_of(self.activations)
        bounds = [1 / a.bound for a in activations] + [self.lipschitz]
        weights = [layer.weight for layer in layers_of(self.layers)]
        return [FreeWeight(*w) for w in zip(weights, bounds, strict=True)]

    def acting_with(self, weights: Sequence[ActingWeight]) -> "_Acting":
        # What a layer adds is kept without its scales, which go into the weights that read it.
        scales = self.angles.new_ones(self.dim)
        matrices, biases = [], []
        activations = activations_of(self.activations)
        factors = [a.factors() for a in activations]
        cosines, sines = self.angles.cos(), self.angles.sin()
        layers = layers_of(self.layers)
        for k, (activation, f) in enumerate(zip(activations, factors, strict=True)):
            matrix, bias = weights[k].weight * scales, bias_of(layers[k])
            if f.inner is not None:
                matrix, bias = f.inner * matrix, f.inner * bias
            matrices.append(signed(activation.signs, matrix))
            biases.append(signed(activation.signs, bias))
            added = sines[k] if f.outer is None else sines[k] * f.outer
            scales = torch.cat([cosines[k] * scales, added.expand(len(matrices[-1]))])
        matrices.append(weights[-1].weight * scales)
        biases.append(bias_of(layers[-1]))
        return _Acting(
            kind=self.kind,
            weights=tuple(weights),
            matrices=tuple(matrices),
            biases=tuple(biases),
            factors=tuple(factors),
            signs=tuple(a.signs for a in activations),
            conditioner=self.conditioner,
            bounds=tuple(a.bound for a in activations),
            angles=self.angles.detach(),
        )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, lipschitz={self.lipschitz}, norm={self.norm}"


@dataclass(frozen=True)
class _Acting(LayeredActing):
    """The weights that act, with all scales in them.

    Arguments:
        bounds: of the activations.
        angles: of the layers.
    """

    bounds: tuple[float, ...]
    angles: Tensor

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = x
        modulations = self._modulations(context)
        for k, f in enumerate(self.factors):
            added = f.core(self._affine(k, h, modulations))
            h = torch.cat([h, self._gated(k, added, modulations)], -1)
        return self._last(h, modulations)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        h = x
        maps: list[LinearMap] = []
        modulations = self._modulations(context)
        for k, f in enumerate(self.factors):
            added, slopes = f.core.linearize(self._affine(k, h, modulations))
            h = torch.cat([h, self._gated(k, added, modulations)], -1)
            slopes = self._gated_map(k, slopes, modulations)
            matrix = self.matrices[k]
            maps.append(Append(Chain((Dense(matrix), slopes)), matrix.shape[1]))
        maps.append(Dense(self.matrices[-1]))
        value = self._last(h, modulations)
        if modulations and not self.factors:
            maps.append(self._gate_map(modulations[0], value))
        return Linearization(value, Chain(tuple(maps)))

    def lipschitz_bound(self) -> Tensor:
        bound = self.weights[-1].norm()
        cosines, sines = self.angles.cos(), self.angles.sin()
        for k, stretch in enumerate(self.bounds):
            bound = bound * torch.hypot(cosines[k], sines[k] * stretch * self.weights[k].norm())
        return bound

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # No layer but the last multiplies what came before it by more than 1.
        modulations = self._modulations(context)
        h, total = x, _norm(x)
        for k, f in enumerate(self.factors):
            z = self._affine(k, h, modulations)
            added = f.core(z)
            h = torch.cat([h, self._gated(k, added, modulations)], -1)
            total = total + 2 * _norm(h) + _norm(z) + _norm(self.biases[k]) + _norm(added)
        value = self._last(h, modulations)
        total = total + _norm(h) + _norm(self.biases[-1]) + _norm(value)
        return torch.finfo(x.dtype).eps / 2 * total


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)
