r"""A perceptron of few coordinates as one operation: its value and its dense Jacobian.

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
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import COARSE, gradients_with_graph, in_plain_autograd, needs_plain_operations
from ..activations import Sine
from ..activations.swish import SiLU
from ..operators import Chain, Dense, Diagonal, Linearization, LinearMap, Matrices
from ..operators.perceptron import times
from .layers import Activate, Affine, Layer

# Coordinates up to which the tangents of all of them are taken at once.
FEW = 8
# Numbers in the largest tensor, up to which memory is no matter: 128 MiB in float32.
LARGEST = 2**25
# Activations whose second derivative is known, and which hold no tensors.
CURVED = (SiLU, Sine)


class CurvedLayers(NamedTuple):
    """A perceptron of at least one hidden layer, with the weights that act.

    Arguments:
        cores: the activations, of known curvature.
        weights, biases: of the layers around the activations.
    """

    cores: tuple[SiLU | Sine, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> "CurvedLayers | None":
        """Return layers as such a perceptron, or None for other layers."""
        affine: Any = layers[::2]
        active: Any = layers[1::2]
        if len(active) == 0 or len(affine) != len(active) + 1:
            return None
        # A subclass computes another function.
        for layer in active:
            if type(layer) is not Activate or type(layer.core) not in CURVED:
                return None
        for layer in affine:
            if type(layer) is not Affine or layer.shift is not None:
                return None
        return cls(
            tuple([layer.core for layer in active]),
            tuple([layer.matrix for layer in affine]),
            tuple([layer.bias for layer in affine]),
        )


def linearize_densely(layers: Sequence[Layer], x: Tensor) -> Linearization | None:
    """Linearize layers at ``x`` by the dense Jacobian; None for layers or modes not made for.

    Made for perceptrons of vectors of few coordinates in plain reverse mode, without a layer
    narrower than the vectors. Shape ``(*batch, D)``.
    """
    size = x.shape[-1]
    if size > FEW or x.dtype in COARSE or not in_plain_autograd():
        return None
    found = CurvedLayers.of(layers)
    if found is None:
        return None
    for w in found.weights:
        if w.dtype != x.dtype or w.shape[0] < size or x.numel() * w.shape[0] > LARGEST:
            return None
    flat = x if x.dim() == 2 else x.reshape(-1, size)
    value, matrix = _ValueAndMatrix.apply(found.cores, flat, *found.weights, *found.biases)
    if flat is not x:
        value, matrix = value.reshape(x.shape), matrix.reshape(*x.shape, size)
    return Linearization(value, Matrices(matrix))


class _ValueAndMatrix(Function):
    """The value and the Jacobian of a perceptron, shapes ``(n, D)`` and ``(n, D, D)``."""

    @staticmethod
    def forward(
        ctx, cores: Sequence[SiLU | Sine], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
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
            of_joint = of_t.mT @ p1
            by_first, by_second = of_joint * weights[0].T[:, None], of_joint * weights[1]
            of_weights[1] = torch.addmm(by_first.sum(0), of_second.T, h1)
            of_weights[0] = torch.addmm(by_second.sum(1), x.T, g).T
        of_x = times(g, weights[0]) if ctx.needs_input_grad[1] else None
        return None, of_x, *of_weights, *of_biases[::-1]


def _by_operations(
    cores: Sequence[SiLU | Sine], x: Tensor, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
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
