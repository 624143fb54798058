"""The fully connected contraction."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import (
    ArgumentTypeError,
    check_dims,
    check_instance,
    check_lipschitz,
    check_positive_int,
)
from ..linear_maps import Chain, Dense, Diagonal, LinearMap
from ..linearization import Acting, Linearization
from .activations import Activation, LipSwish
from .constrained import ConstrainedContraction, FreeWeight
from .gram import Gram
from .norms import ActingWeight, Norm


class DenseContraction(ConstrainedContraction):
    r"""A multilayer perceptron with a proven Lipschitz bound.

    .. math:: g(x) = W_n\,\phi(W_{n-1} \cdots \phi(W_1 x + b_1 + C_1 c) \cdots) + b_n

    Each weight is scaled so that its norm is at most :math:`L^{1/n}`, and each activation has slope
    at most 1, so :math:`\mathrm{Lip}(g) \le L` (Behrmann et al. 2019, Eq. 2-3). A context ``c`` is
    added to the hidden layers by free matrices ``C``: it moves the biases, which no Lipschitz
    constant in ``x`` sees. The network does not begin with an activation, so that the trace of its
    Jacobian is exact at the price of one product (up to two hidden layers).

    Arguments:
        dim: the number of coordinates of ``x``.
        hidden_dims: the widths of the hidden layers; default two of ``2 * dim``, at least 64 and
            at most 512. An empty sequence makes ``g`` linear.
        context_dim: the size of the context, or None.
        lipschitz: ``L``, in (0, 1).
        activation: an :class:`Activation` class, or a callable that makes one; called once for
            each hidden layer.
        norm: how the norm of a weight is taken, a :class:`Norm`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Sections 2 and 3.2.

    Example:
        >>> import torch
        >>> g = DenseContraction(2, [16, 16], lipschitz=0.9)
        >>> g(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
        >>> bool(g.lipschitz_bound() <= 0.9 + 1e-5)
        True
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
    ) -> None:
        super().__init__()
        self.dim = check_positive_int(dim, "input dimension")
        if hidden_dims is None:
            hidden_dims = 2 * [min(max(64, 2 * dim), 512)]
        widths = (dim, *check_dims(hidden_dims, "hidden_dims"), dim)
        self.event_shape = (dim,)
        self.lipschitz = check_lipschitz(lipschitz)
        self.norm = check_instance(norm, Norm, "norm", "Gram()")
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.activations = nn.ModuleList(_make(activation) for _ in widths[1:-1])
        self.context_dim = None
        self.context_layers = nn.ModuleList()
        if context_dim is not None:
            self.context_dim = check_positive_int(context_dim, "context_dim")
            self.context_layers.extend(
                nn.Linear(context_dim, width, bias=False) for width in widths[1:-1] or widths[-1:]
            )

    def free_weights(self) -> list[FreeWeight]:
        # An activation of bound B eats a factor B of the budget of the layer that feeds it.
        share = self.lipschitz ** (1 / len(self.layers))
        bounds = [share / a.bound for a in self._activations()] + [share]
        scales: list[Tensor | None] = [None] * len(bounds)
        for i, (_, inner, outer) in enumerate(a.factors() for a in self._activations()):
            before = scales[i]
            scales[i] = before if inner is None else inner if before is None else before * inner
            scales[i + 1] = outer
        weights = [layer.weight for layer in _linears(self.layers)]
        return [FreeWeight(*w) for w in zip(weights, bounds, scales, strict=True)]

    def acting_with(self, weights: Sequence[ActingWeight]) -> "_Acting":
        biases: list[Tensor] = [layer.bias for layer in _linears(self.layers)]
        contexts: list[Tensor] = [layer.weight for layer in _linears(self.context_layers)]
        factors = [activation.factors() for activation in self._activations()]
        for i, (_, inner, _) in enumerate(factors):
            if inner is not None:
                biases[i] = inner * biases[i]
                contexts[i : i + 1] = [inner * c for c in contexts[i : i + 1]]
        cores = tuple(core for core, _, _ in factors)
        return _Acting(tuple(weights), tuple(biases), cores, tuple(contexts))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        return self.acting()(x, context)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, lipschitz={self.lipschitz}, norm={self.norm}"

    def _activations(self) -> tuple[Activation, ...]:
        return tuple(a for a in self.activations if isinstance(a, Activation))


@dataclass(frozen=True)
class _Acting(Acting):
    """The weights that act, with the scales of the activations in them."""

    layers: tuple[ActingWeight, ...]
    biases: tuple[Tensor, ...]
    activations: tuple[Activation, ...]
    context_weights: tuple[Tensor, ...]

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = x
        for i, activation in enumerate(self.activations):
            h = activation(self._affine(i, h, context))
        return self._affine(len(self.layers) - 1, h, context)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        h = x
        maps: list[LinearMap] = []
        for i, activation in enumerate(self.activations):
            h, slope = activation.value_and_slope(self._affine(i, h, context))
            maps += [Dense(self.layers[i].weight), Diagonal(slope)]
        value = self._affine(len(self.layers) - 1, h, context)
        return Linearization(value, Chain((*maps, Dense(self.layers[-1].weight))))

    def lipschitz_bound(self) -> Tensor:
        bound = torch.stack([layer.norm() for layer in self.layers]).prod()
        return bound * math.prod(a.bound for a in self.activations)

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # Each layer rounds at the size of what it adds up, and the layers after it pass that on.
        h, total = x, torch.zeros_like(x[..., 0])
        for i, layer in enumerate(self.layers):
            z = self._affine(i, h, context)
            added = layer.norm() * _norm(h) + _norm(self.biases[i]) + _norm(z)
            total = layer.norm() * total + added
            if i < len(self.activations):
                h = self.activations[i](z)
                total = self.activations[i].bound * (total + _norm(h))
        return torch.finfo(x.dtype).eps / 2 * total

    def _affine(self, i: int, h: Tensor, context: Tensor | None) -> Tensor:
        z = nn.functional.linear(h, self.layers[i].weight, self.biases[i])
        if context is not None and i < len(self.context_weights):
            z = z + nn.functional.linear(context, self.context_weights[i])
        return z


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)


def _linears(layers: nn.ModuleList) -> list[nn.Linear]:
    # A ModuleList does not know what it holds; the type checker has to.
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _make(activation: Callable[[], Activation]) -> Activation:
    """Call ``activation`` for a new one, or raise with the remedy."""
    example = "LipSwish, or functools.partial(Sine, frequency=2.0)"
    if isinstance(activation, nn.Module) or not callable(activation):
        raise ArgumentTypeError(
            f"Expected activation to be a class or a callable that makes one, such as {example}; "
            f"got {activation!r}. Each layer needs its own, so pass the class."
        )
    made = activation()
    if not isinstance(made, Activation):
        raise ArgumentTypeError(
            f"Expected activation to make an Activation, such as {example}; "
            f"it made a {type(made).__name__}."
        )
    return made
