"""The densely connected contraction."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Activation, LipSwish, make_activations
from ..errors import check_dims, check_positive_int
from ..norms import Gram, Norm, NormalizedWeight
from ..operators import Append as AppendMap
from ..operators import Chain, LinearMap
from ..operators.linear_map import row_norm
from .film import FiLM, MakeConditioner, Modulation, make_conditioner
from .hooks import read
from .layers import Activate, Affine, Gate, Layer, bound_of, linearize_layers, to_dtype
from .sequential import LayeredContraction, RawWeight, widths_behind


@dataclass(frozen=True)
class Append(Layer):
    r"""The input, and behind it the output of layers: :math:`h \mapsto (h, f(h))`.

    The bound is :math:`\sqrt{\cos^2\theta + (\sin\theta\, L_f)^2}`, since the layers that read the
    output multiply its two parts by :math:`\cos\theta` and :math:`\sin\theta`.

    Arguments:
        layers: ``f``, of vectors.
        angle: :math:`\theta`, a scalar without gradient.
    """

    layers: tuple[Layer, ...]
    angle: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        added = h
        for layer in self.layers:
            added = layer(added)
        return torch.cat([h, added], -1)

    def linearize(self, h: Tensor) -> tuple[Tensor, LinearMap]:
        added, maps = linearize_layers(self.layers, h)
        return torch.cat([h, added], -1), AppendMap(Chain(maps), h.shape[-1])

    def bound(self) -> Tensor:
        return torch.hypot(self.angle.cos(), self.angle.sin() * bound_of(self.layers))

    def rounding(self, h: Tensor, value: Tensor) -> Tensor:
        total = row_norm(value)
        for layer in self.layers:
            out = layer(h)
            total = total + layer.rounding(h, out)
            h = out
        return total

    def modulated(self, modulations: Sequence[Modulation]) -> "Append":
        layers = tuple([layer.modulated(modulations) for layer in self.layers])
        return replace(self, layers=layers)

    def to(self, dtype: torch.dtype) -> "Append | None":
        layers = to_dtype(self.layers, dtype)
        if layers is None:
            return None
        return replace(self, layers=layers, angle=self.angle.to(dtype))


class DenseNetContraction(LayeredContraction):
    r"""A network whose layers keep their input, with a proven Lipschitz bound.

    .. math:: h_0 = x, \qquad
              h_k = \big(\cos\theta_k\, h_{k-1},\;
                    \sin\theta_k\, \phi(W_k h_{k-1} + b_k)\big), \qquad
              g(x) = W h_n + b

    With :math:`\lVert W_k \rVert \le 1` and learned angles,
    :math:`\mathrm{Lip}(h_k) \le \mathrm{Lip}(h_{k-1})` since :math:`\cos^2 + \sin^2 = 1`, and
    :math:`\lVert W \rVert \le L` gives :math:`\mathrm{Lip}(g) \le L`. The last layer sees x and all
    hidden layers, so no signal has to pass every activation. Cosines and sines go into the weights
    before they act. A context shifts the biases and gates the hidden layers, as in
    :class:`DenseContraction`.

    Arguments:
        dim: the number of coordinates of ``x``.
        hidden_dims: the widths that the layers add; default two of ``dim``, at least 64 and at most
            512.
        context_dim, lipschitz, activation, norm, conditioner: as in :class:`DenseContraction`,
            with the same errors.

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
        conditioner: MakeConditioner = FiLM,
    ) -> None:
        dim = check_positive_int(dim, "dim")
        super().__init__((dim,), context_dim, lipschitz, norm)
        self.dim = dim
        if hidden_dims is None:
            hidden_dims = 2 * [min(max(64, dim), 512)]
        hidden = check_dims(hidden_dims, "hidden_dims")
        self.activations = make_activations(activation, hidden)
        behind = widths_behind(self.activations, hidden)
        known = [dim + sum(behind[:k]) for k in range(len(hidden) + 1)]
        self.layers = nn.ModuleList(
            nn.Linear(n_in, n_out) for n_in, n_out in zip(known, (*hidden, dim), strict=True)
        )
        self.angles = nn.Parameter(torch.full((len(hidden),), math.pi / 4))
        modulated = list(zip(hidden, behind, strict=True)) or [(dim, dim)]
        self.conditioner = make_conditioner(conditioner, context_dim, modulated)

    def raw_weights(self) -> list[RawWeight]:
        linears: Any = self.layers
        activations: Any = self.activations
        read(linears, activations, nn.Linear)
        bounds = [1 / activation.bound for activation in activations] + [self.lipschitz]
        return [RawWeight(m.weight, b) for m, b in zip(linears, bounds, strict=True)]

    def layers_with(self, weights: Sequence[NormalizedWeight]) -> list[Layer]:
        linears: Any = self.layers
        activations: Any = self.activations
        # An added part is kept without its scales, which go into the weights that read the part.
        scales = self.angles.new_ones(self.dim)
        conditional = self.conditioner is not None
        cosines, sines, angles = self.angles.cos(), self.angles.sin(), self.angles.detach()
        layers: list[Layer] = []
        for k, activation in enumerate(activations):
            factors = activation.factors()
            # The bound of a part is taken with its scales, which make up the activation's.
            matrix = factors.fold(weights[k].weight * scales)
            bias = factors.fold(linears[k].bias)
            affine = Affine(weights[k], matrix, bias, factors, k if conditional else None)
            gates = [Gate(k)] if conditional else []
            added = (affine, Activate(factors.core, activation.bound), *gates)
            layers.append(Append(added, angles[k]))
            share = sines[k] if factors.outer is None else sines[k] * factors.outer
            scales = torch.cat([cosines[k] * scales, share.expand(len(matrix))])
        alone = conditional and not layers
        last = weights[-1], weights[-1].weight * scales, linears[-1].bias
        layers.append(Affine(*last, None, 0 if alone else None))
        return [*layers, Gate(0)] if alone else layers

    def extra_repr(self) -> str:
        return f"dim={self.dim}, lipschitz={self.lipschitz}, norm={self.norm}"
