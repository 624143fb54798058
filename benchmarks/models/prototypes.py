"""Contractive networks that were tried and left out of the package."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyro_iresnet.contractions import Contraction
from pyro_iresnet.norms import Cholesky
from pyro_iresnet.operators import Chain, ContractionMap, Dense, Diagonal, Linearization


class OneHidden(Contraction):
    r"""Network :math:`U \phi(W x + b) + d` whose weights are made of a free matrix.

    Arguments:
        dim: the number of coordinates.
        width: the width of the hidden layer.
        columns: the columns of the free matrix, which has ``width`` rows.
        sharpness: the sharpness of the softplus at the start.
    """

    context_dim = None
    lipschitz = 0.97
    norm = Cholesky()

    def __init__(self, dim: int, width: int, columns: int, sharpness: float) -> None:
        super().__init__()
        self.event_shape = (dim,)
        scale = math.sqrt(width) + math.sqrt(columns)
        self.free = nn.Parameter(torch.randn(width, columns) / scale)
        self.inner = nn.Parameter(torch.zeros(width))
        self.outer = nn.Parameter(torch.zeros(dim))
        start = math.log(math.expm1(sharpness))
        self.raw_sharpness = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, _ = self.check(x, context)
        return self.materialize()(x)

    def lipschitz_bound(self) -> Tensor:
        return self.free.new_tensor(self.lipschitz)


class ActingOneHidden(ContractionMap):
    """Network with its two matrices in place; slopes of the activation in [0, 1]."""

    def __init__(self, g: OneHidden, first: Tensor, last: Tensor) -> None:
        self.g, self.first, self.last = g, first, last
        self.sharpness = softplus(g.raw_sharpness)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._value(self._sharp(x))

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        z = self._sharp(x)
        maps = Dense(self.first), Diagonal(torch.sigmoid(z)), Dense(self.last)
        return Linearization(self._value(z), Chain(maps))

    def lipschitz_bound(self) -> Tensor:
        return self.g.lipschitz_bound()

    def _sharp(self, x: Tensor) -> Tensor:
        return self.sharpness * linear(x, self.first, self.g.inner)

    def _value(self, z: Tensor) -> Tensor:
        return linear(softplus(z, threshold=50) / self.sharpness, self.last, self.g.outer)


class Sandwich(OneHidden):
    r"""Hidden layer with a bound by a semidefinite program instead of a product of norms.

    .. math:: g(x) = c\sqrt2\, A^\top \Psi\, \phi(\sqrt2\, \Psi^{-1} B x + b) + d,
              \qquad \lVert [A\; B] \rVert_2 \le 1

    has :math:`\mathrm{Lip}(g) \le c` for slopes in [0, 1] and a positive diagonal
    :math:`\Psi` (Wang and Manchester, 2023; Araujo et al., 2023).

    Arguments:
        dim: the number of coordinates.
        width: the width of the hidden layer.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width, columns=2 * dim, sharpness=2.0)
        self.log_psi = nn.Parameter(torch.zeros(width))

    def materialize(self) -> ContractionMap:
        (weight,) = self.norm.constrain_all([self.free], [1.0])
        a, b = weight.weight.chunk(2, dim=1)
        psi = self.log_psi.exp()[:, None]
        root = math.sqrt(2)
        return ActingOneHidden(self, root * b / psi, self.lipschitz * root * (a * psi).T)


class Potential(OneHidden):
    r"""Gradient of a potential: :math:`g(x) = W^\top (\epsilon \circ \phi(W x + b)) + d`.

    With fixed random signs :math:`\epsilon` and :math:`\lVert W \rVert^2 \le c` its Jacobian
    :math:`W^\top \mathrm{diag}(\epsilon s) W` spends the whole bound with one matrix.

    Arguments:
        dim: the number of coordinates.
        width: the width of the hidden layer.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, width, columns=dim, sharpness=1.0)
        self.register_buffer("signs", torch.randn(width).sign())

    def materialize(self) -> ContractionMap:
        (weight,) = self.norm.constrain_all([self.free], [math.sqrt(self.lipschitz)])
        first = weight.weight
        return ActingOneHidden(self, first, (self.get_buffer("signs")[:, None] * first).T)
