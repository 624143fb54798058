r"""Jacobians of perceptrons, :math:`W_n S_{n-1} W_{n-1} \cdots S_1 W_1`: sweeps and traces.

Each :math:`S_i = \mathrm{diag}(p_i)` holds the slopes of a sample. Gradients are written by hand:
a graph of small operations costs as much as the products.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .composite import Chain
from .elementary import Dense, Diagonal
from .linear_map import LinearMap


@dataclass(frozen=True)
class PerceptronJacobian:
    """The factors of a Jacobian, at least two matrices.

    Arguments:
        weights: the matrices, in the order they act.
        slopes: the diagonals between the matrices, shape ``(n, width)`` each.
    """

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    @classmethod
    def of(cls, a: LinearMap) -> "PerceptronJacobian | None":
        """Return the factors of a map with its batch flattened, or None for another kind of map."""
        if not isinstance(a, Chain) or len(a.maps) < 3 or len(a.maps) % 2 == 0:
            return None
        weights: list[Tensor] = []
        slopes: list[Tensor] = []
        for i, factor in enumerate(a.maps):
            if i % 2 == 0 and isinstance(factor, Dense):
                weights.append(factor.weight)
            elif i % 2 and isinstance(factor, Diagonal) and factor.event_dim == 1:
                slopes.append(factor.diagonal.reshape(-1, factor.diagonal.shape[-1]))
            else:
                return None
        return cls(tuple(weights), tuple(slopes))

    def sweep(self, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        r"""Return :math:`J^\top v`, and what each diagonal multiplies on the way, in order.

        Shapes are ``(n, D)`` and ``(n, width)``.
        """
        passed: list[Tensor] = []
        for w, p in zip(self.weights[:0:-1], self.slopes[::-1], strict=True):
            passed.append(v @ w)
            v = passed[-1] * p
        return times(v, self.weights[0]), passed[::-1]

    def select(self, index: Tensor) -> "PerceptronJacobian":
        """Return the Jacobians of some samples."""
        return PerceptronJacobian(self.weights, tuple([p[index] for p in self.slopes]))


def times(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, computed in the faster of two orders."""
    # A product with few columns takes up to six times as long as that of the transposes (MKL).
    return (b.T @ a.T).T if b.shape[1] < 16 or b.shape[1] % 8 else a @ b


def trace_of(j: PerceptronJacobian) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Return the traces, shape ``(n,)``, and the tensors that :func:`pull_trace` needs.

    As :meth:`Chain.trace`, without a graph; None for more than two hidden layers.
    """
    match j.weights, j.slopes:
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


def pull_trace(
    j: PerceptronJacobian, kept: tuple[Tensor, ...], g: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the weights and of the slopes, given those of the traces.

    ``kept`` are the tensors of :func:`trace_of`.
    """
    column = g[:, None]
    if len(kept) == 1:
        (w1, w2), (p,), (diagonal,) = j.weights, j.slopes, kept
        of_diagonal = g @ p
        return [of_diagonal[:, None] * w2.T, of_diagonal * w1.T], [column * diagonal]
    (w1, w2, w3), (p1, p2), (outer, middle, right) = j.weights, j.slopes, kept
    left = p2 * column
    of_middle = left.T @ p1
    of_outer = (of_middle * w2).T
    of_weights = [times(of_outer, w3.T), of_middle * outer, w1.T @ of_outer]
    return of_weights, [left @ middle, right * column]
