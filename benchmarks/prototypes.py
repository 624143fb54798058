"""Contractive networks that were tried and left out of the package, as measured."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyro_iresnet import Cholesky, Contraction, Linearization, Norm
from pyro_iresnet.linear_maps import Chain, Dense, Diagonal
from pyro_iresnet.linearization import Acting


class OneHidden(Contraction):
    r"""A network :math:`U \phi(W x + b) + d` whose weights are made of a free matrix.

    Arguments:
        dim: of ``x``.
        free: the free matrix, of ``width`` rows.
        lipschitz: the bound.
    """

    context_dim = None

    def __init__(self, dim: int, free: Tensor, lipschitz: float, norm: Norm, sharpness: float):
        super().__init__()
        width = len(free)
        self.event_shape, self.lipschitz, self.norm = (dim,), lipschitz, norm
        self.free = nn.Parameter(free)
        self.inner = nn.Parameter(torch.zeros(width))
        self.outer = nn.Parameter(torch.zeros(dim))
        start = math.log(math.expm1(sharpness))
        self.raw_sharpness = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, _ = self.check(x, context)
        return self.acting()(x)

    def lipschitz_bound(self) -> Tensor:
        return self.free.new_tensor(self.lipschitz)


class ActingOneHidden(Acting):
    """With its two matrices in place; slopes of the activation in [0, 1]."""

    def __init__(self, g: OneHidden, first: Tensor, last: Tensor) -> None:
        self.g, self.first, self.last = g, first, last
        self.sharpness = softplus(g.raw_sharpness)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z = self.sharpness * linear(x, self.first, self.g.inner)
        return linear(softplus(z, threshold=50) / self.sharpness, self.last, self.g.outer)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        slopes = torch.sigmoid(self.sharpness * linear(x, self.first, self.g.inner))
        maps = Dense(self.first), Diagonal(slopes), Dense(self.last)
        return Linearization(self(x), Chain(maps))

    def lipschitz_bound(self) -> Tensor:
        return self.g.lipschitz_bound()


class Sandwich(OneHidden):
    r"""One hidden layer with a bound by a semidefinite program instead of a product of norms.

    .. math:: g(x) = c\sqrt2\, A^\top \Psi\, \phi(\sqrt2\, \Psi^{-1} B x + b) + d,
              \qquad \lVert [A\; B] \rVert_2 \le 1

    has :math:`\mathrm{Lip}(g) \le c` for slopes in [0, 1] and a positive diagonal
    :math:`\Psi` (Wang and Manchester, 2023, Theorem 3.2; Araujo et al., 2023).

    Arguments:
        dim, width: of ``x`` and of the hidden layer.
        lipschitz: c.
        norm: constrains ``[A B]``.
        sharpness: the start of that of the softplus.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        lipschitz: float = 0.97,
        norm: Norm = Cholesky(),  # noqa: B008
        sharpness: float = 2.0,
    ) -> None:
        free = torch.randn(width, 2 * dim) / (math.sqrt(width) + math.sqrt(2 * dim))
        super().__init__(dim, free, lipschitz, norm, sharpness)
        self.log_psi = nn.Parameter(torch.zeros(width))

    def acting(self) -> Acting:
        (weight,) = self.norm.constrain_all([self.free], [1.0])
        a, b = weight.weight.chunk(2, dim=1)
        psi = self.log_psi.exp()[:, None]
        root = math.sqrt(2)
        return ActingOneHidden(self, root * b / psi, self.lipschitz * root * (a * psi).T)


class Potential(OneHidden):
    r"""The gradient of a potential: :math:`g(x) = W^\top (\epsilon \circ \phi(W x + b)) + d`.

    With fixed random signs :math:`\epsilon` and :math:`\lVert W \rVert^2 \le c` its Jacobian
    :math:`W^\top \mathrm{diag}(\epsilon s) W` spends the whole bound with one matrix.

    Arguments:
        dim, width: of ``x`` and of the hidden layer.
        lipschitz: c.
        norm: constrains W.
        sharpness: the start of that of the softplus.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        lipschitz: float = 0.97,
        norm: Norm = Cholesky(),  # noqa: B008
        sharpness: float = 1.0,
    ) -> None:
        free = torch.randn(width, dim) / (math.sqrt(width) + math.sqrt(dim))
        super().__init__(dim, free, lipschitz, norm, sharpness)
        self.register_buffer("signs", torch.randn(width).sign())

    def acting(self) -> Acting:
        (weight,) = self.norm.constrain_all([self.free], [math.sqrt(self.lipschitz)])
        first = weight.weight
        return ActingOneHidden(self, first, (self.get_buffer("signs")[:, None] * first).T)
