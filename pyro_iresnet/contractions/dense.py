"""The fully connected contraction."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..activations import Activation, auto_activation, make_activations
from ..errors import check_dims, check_positive_int
from ..norms import Cholesky, Norm
from .film import FiLM, MakeConditioner, make_conditioner
from .layers import Affine
from .sequential import Perceptron

# Up to this size the log-determinant is exact in training (``auto_logdet``). Above, a network of
# two hidden layers has an exact trace, a deeper one has not.
FEW = 8
# The last layer at the start, relative to torch's own.
START = 0.1


class DenseContraction(Perceptron):
    r"""A multilayer perceptron with a proven Lipschitz bound.

    .. math:: g(x) = W_n\,\phi(W_{n-1} \cdots \phi(W_1 x + b_1) \cdots) + b_n

    Each weight is scaled so that its norm is at most :math:`L^{1/n}`, and each activation has slope
    at most 1, so :math:`\mathrm{Lip}(g) \le L` (Behrmann et al. 2019, Eq. 2-3). A context shifts
    the biases of the hidden layers and gates their outputs, see :class:`FiLM`: neither changes the
    constant in ``x``. The network does not begin with an activation, so that one product gives the
    exact trace of its Jacobian (up to two hidden layers, with activations that act on every entry
    by itself).

    Arguments:
        dim: the number of coordinates of ``x``.
        hidden_dims: the widths of the hidden layers; default three of 48 up to 8 coordinates, and
            two of ``2 * dim``, at least 64 and at most 512, above. An empty sequence makes ``g``
            linear.
        context_dim: the size of the context, or None.
        lipschitz: ``L``, in (0, 1).
        activation: an :class:`Activation` class, or a callable that makes one; called once for each
            hidden layer. By default ``auto_activation(dim)``.
        norm: the :class:`Norm` strategy of the weights.
        conditioner: the :class:`FiLM` class, or a callable that makes one, called with the size of
            the context and the widths; for a network with a context.

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

    affine = Affine

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] | None = None,
        *,
        context_dim: int | None = None,
        lipschitz: float = 0.97,
        activation: Callable[[], Activation] | None = None,
        norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
        conditioner: MakeConditioner = FiLM,
    ) -> None:
        dim = check_positive_int(dim, "dim")
        super().__init__((dim,), context_dim, lipschitz, norm)
        self.dim = dim
        if hidden_dims is None:
            hidden_dims = 3 * [48] if dim <= FEW else 2 * [min(max(64, 2 * dim), 512)]
        hidden = check_dims(hidden_dims, "hidden_dims")
        activation = auto_activation(dim) if activation is None else activation
        self.activations = make_activations(activation, hidden)
        pairs = zip((dim, *hidden), (*hidden, dim), strict=True)
        layers = [nn.Linear(n_in, n_out) for n_in, n_out in pairs]
        with torch.no_grad():
            # A block starts near the identity, so that a guide starts near its base: the first
            # gradients of a posterior far out would outweigh those of all later steps.
            layers[-1].weight.mul_(START)
            layers[-1].bias.zero_()
        self.layers = nn.ModuleList(layers)
        self.conditioner = make_conditioner(conditioner, context_dim, hidden or (dim,))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, lipschitz={self.lipschitz}, norm={self.norm}"
