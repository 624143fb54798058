r"""Jacobians of perceptrons, :math:`W_n S_{n-1} W_{n-1} \cdots S_1 W_1`: sweeps, traces, matrices.

Each :math:`S_i = \mathrm{diag}(p_i)` holds the slopes of a sample. Gradients are written by hand:
a graph of small operations costs as much as the products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import (
    COARSE,
    gradients_with_graph,
    in_plain_autograd,
    needs_plain_operations,
    precisely,
)
from ..activations.base import Curved
from .composite import Chain
from .elementary import Dense, Diagonal, Matrices
from .factored import FactoredJacobian, alternating
from .linear_map import LinearMap
from .linearization import Linearization

# Coordinates up to which the columns of a Jacobian are taken at once.
FEW = 8
# Numbers in the largest tensor, up to which memory is no matter: 128 MiB in float32. Some four such
# tensors are alive at a time.
LARGEST = 2**25


@dataclass(frozen=True)
class PerceptronJacobian(FactoredJacobian):
    """The Jacobian of a perceptron: matrices, and slopes of shape ``(n, width)``."""

    @classmethod
    def of(cls, maps: Sequence[LinearMap]) -> "PerceptronJacobian | None":
        """Return the factors of a chain of maps, their batch flattened; None for other maps."""
        found = alternating(maps, Dense, event_dim=1)
        if found is None:
            return None
        dense, slopes = found
        return cls(tuple([a.weight for a in dense]), tuple(slopes))

    @property
    def event_size(self) -> int:
        return self.weights[0].shape[1]

    def push(self, i: int, t: Tensor) -> Tensor:
        return t @ self.weights[i].T

    def pull_back(self, i: int, r: Tensor) -> Tensor:
        return r @ self.weights[i] if i else times(r, self.weights[0])

    def outer(self, i: int, left: Tensor, right: Tensor) -> Tensor:
        return times(left.T, right)

    def trace(self) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        match self.weights, self.slopes:
            case (w1, w2), (p,):
                diagonal = (w1 * w2.T).sum(1)
                return p @ diagonal, (diagonal,)
            case (w1, w2, w3), (p1, p2):
                outer = (w1 @ w3).T
                middle = w2 * outer
                right = p1 @ middle.T
                return torch.linalg.vecdot(right, p2), (outer, middle, right)
            case _:
                return None

    def pull_trace(self, kept: tuple[Tensor, ...], g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        column = g[:, None]
        if len(kept) == 1:
            (w1, w2), (p,), (diagonal,) = self.weights, self.slopes, kept
            of_diagonal = g @ p
            return [of_diagonal[:, None] * w2.T, of_diagonal * w1.T], [column * diagonal]
        (w1, w2, w3), (p1, p2), (outer, middle, right) = self.weights, self.slopes, kept
        left = p2 * column
        of_middle = left.T @ p1
        of_outer = (of_middle * w2).T
        of_weights = [times(of_outer, w3.T), of_middle * outer, w1.T @ of_outer]
        return of_weights, [left @ middle, right * column]


def times(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, computed in the faster of two orders."""
    # A product with few columns takes up to six times as long as that of the transposes (MKL).
    return (b.T @ a.T).T if b.shape[1] < 16 or b.shape[1] % 8 else a @ b


def linearize_perceptron(
    cores: Sequence[Curved], weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor
) -> Linearization | None:
    r"""Linearize a perceptron by its dense Jacobian, as one operation.

    Layers :math:`z_i = W_i h_{i-1} + b_i`, :math:`h_i = \phi(z_i)` with :math:`h_0 = x` have slopes
    :math:`p_i` and curvatures :math:`c_i`. The tangent of coordinate j is :math:`m_1 = W_1 e_j`,
    :math:`t_i = p_i \circ m_i`, :math:`m_{i+1} = W_{i+1} t_i`, and the last one is column j of the
    Jacobian. The first two products are one, with a matrix that is the same for all samples:

    .. math:: m_2 = A_j\, p_1, \qquad A_j = W_2\, \mathrm{diag}(W_1 e_j)

    With the gradients :math:`g_i` of :math:`z_i` and :math:`r_i` of :math:`m_i`:

    .. math:: r_i = p_i \circ W_{i+1}^\top r_{i+1}, \qquad
              g_i = p_i \circ W_{i+1}^\top g_{i+1}
                    + c_i \circ \sum_j m_i \circ W_{i+1}^\top r_{i+1}

    A graph of small operations, and its tensors, cost as much as the products. So tangents
    :math:`t_i` are made again where a gradient needs them.

    Arguments:
        cores: the activations, at least one.
        weights, biases: one more than activations.
        x: shape ``(*batch, D)``.

    Returns:
        The linearization with :class:`Matrices`; None for many coordinates, for a layer narrower
        than them, for large batches, and outside of plain reverse mode.
    """
    size = x.shape[-1]
    if size > FEW or x.dtype in COARSE or not in_plain_autograd():
        return None
    for w in weights:
        if w.dtype != x.dtype or w.shape[0] < size or x.numel() * w.shape[0] > LARGEST:
            return None
    flat = x if x.dim() == 2 else x.reshape(-1, size)
    value, matrix = _ValueAndMatrix.apply(cores, flat, *weights, *biases)
    if flat is not x:
        value, matrix = value.reshape(x.shape), matrix.reshape(*x.shape, size)
    return Linearization(value, Matrices(matrix))


class _ValueAndMatrix(Function):
    """The value and the Jacobian of a perceptron, shapes ``(n, D)`` and ``(n, D, D)``."""

    @staticmethod
    def forward(ctx, cores: Sequence[Curved], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        last, (n, size) = len(cores), x.shape
        weights, biases = tensors[: last + 1], tensors[last + 1 :]
        h, p, c = cores[0].value_slope_curvature(torch.addmm(biases[0], x, weights[0].T))
        joint = weights[0].T[:, None] * weights[1]
        m = torch.bmm(p.expand(size, n, -1), joint.mT)
        matrix = m.permute(1, 2, 0)
        kept = [h, p, c]
        for i in range(1, last):
            h, p, c = cores[i].value_slope_curvature(torch.addmm(biases[i], h, weights[i].T))
            kept += [h, p, c, m]
            t = (m * p).flatten(0, 1)
            if i < last - 1:
                m = (t @ weights[i + 1].T).unflatten(0, (size, n))
            else:
                # The samples stand last, as the determinant of a small matrix wants them.
                matrix = (weights[last] @ t.T).unflatten(1, (size, n)).permute(2, 0, 1)
        ctx.cores = cores
        ctx.save_for_backward(x, *tensors, joint, *kept)
        return times(h, weights[last].T) + biases[last], matrix

    @staticmethod
    @precisely
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cores, saved = ctx.cores, ctx.saved_tensors
        last = len(cores)
        inputs = 2 * last + 3
        if needs_plain_operations(grad_outputs):

            def plain(x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
                return _by_operations(cores, x, *tensors)

            return None, *gradients_with_graph(plain, saved[:inputs], grad_outputs)
        x, *weights = saved[: last + 2]
        joint, h1, p1, c1, *kept = saved[inputs:]
        n, size = x.shape
        wanted = any(ctx.needs_input_grad[2:])
        g, of_matrix = grad_outputs
        of_weights: list[Tensor | None] = [None] * (last + 1)
        of_biases = [g.sum(0)]
        # Of t, which stands for the matrix itself where the first two products are the only ones.
        of_t = of_matrix.permute(2, 0, 1)
        # Of the product behind t.
        r = of_matrix.permute(1, 2, 0).reshape(size, size * n).T
        for i in range(last - 1, 0, -1):
            h, p, c, m = kept[4 * i - 4 : 4 * i]
            if wanted:
                of_weights[i + 1] = torch.addmm(g.T @ h, r.T, (m * p).flatten(0, 1))
            of_t = (r @ weights[i + 1]).unflatten(0, (size, n))
            of_slope = of_t[0] * m[0]
            for j in range(1, size):
                of_slope.addcmul_(of_t[j], m[j])
            g = (g @ weights[i + 1]).mul_(p).addcmul_(c, of_slope)
            of_biases.append(g.sum(0))
            r = of_t.mul_(p).flatten(0, 1)
        of_slope = of_t[0] @ joint[0]
        for j in range(1, size):
            of_slope.addmm_(of_t[j], joint[j])
        of_second = g
        g = (g @ weights[1]).mul_(p1).addcmul_(c1, of_slope)
        of_biases.append(g.sum(0))
        if wanted:
            # A product by matmul would copy the transposed matrices.
            of_joint = torch.bmm(of_t.mT, p1.expand(size, n, -1))
            by_first, by_second = of_joint * weights[0].T[:, None], of_joint * weights[1]
            of_weights[1] = torch.addmm(by_first.sum(0), of_second.T, h1)
            of_weights[0] = torch.addmm(by_second.sum(1), x.T, g).T
        of_x = times(g, weights[0]) if ctx.needs_input_grad[1] else None
        return None, of_x, *of_weights, *of_biases[::-1]


def _by_operations(cores: Sequence[Curved], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the value and the Jacobian by differentiable operations."""
    weights, biases = tensors[: len(cores) + 1], tensors[len(cores) + 1 :]
    maps: list[LinearMap] = []
    h = x
    for core, w, b in zip(cores, weights, biases, strict=False):
        h, slope = core.value_and_slope(torch.addmm(b, h, w.T))
        maps += [Dense(w), Diagonal(slope)]
    value = torch.addmm(biases[-1], h, weights[-1].T)
    maps.append(Dense(weights[-1]))
    return value, Linearization(value, Chain(tuple(maps))).as_matrix()
