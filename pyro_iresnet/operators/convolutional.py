r"""Jacobians of convolutional networks in factors, with exact traces of two hidden layers.

Between two 3 x 3 convolutions with matrices :math:`U_d, V_d` at the offset d stand 1 x 1
convolutions. One step through the first kernel leads from a pixel to a hidden pixel at an offset,
and the last kernel leads back. So the trace is a sum over hidden pixels q,

.. math:: \mathrm{tr}\, J = \sum_q s_{2q}^\top (W \circ T_q)\, s_{1q}, \qquad
          T_q = \sum_{d:\, q + d \text{ inside}} (U_d V_{-d})^\top

and :math:`T_q` differs at the border of the image only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .convolution import Convolution, convolve, padded, turned_round
from .factored import FactoredJacobian, alternating
from .linear_map import LinearMap

# Rows and columns of an image, rows and columns of the offsets that leave the image there, a sign.
Strip = tuple[slice, slice, slice, slice, int]


@dataclass(frozen=True)
class ConvolutionalJacobian(FactoredJacobian):
    """The Jacobian of a convolutional network: kernels, and slopes of all pixels.

    A row of numbers holds an image with its channels last, the layout of fast convolutions.

    Arguments:
        height, width: of the images.
        circular: if True, an image goes on at its other side; else zeros stand around it.
    """

    height: int = 1
    width: int = 1
    circular: bool = False

    @classmethod
    def of(cls, maps: Sequence[LinearMap]) -> "ConvolutionalJacobian | None":
        """Return the factors of a chain of maps, their batch flattened; None for other maps."""
        found = alternating(maps, Convolution, event_dim=3)
        if found is None:
            return None
        convolutions, slopes = found
        circular = convolutions[0].circular
        if any(c.circular != circular for c in convolutions):
            return None
        rows = tuple([s.permute(0, 2, 3, 1).flatten(1) for s in slopes])
        height, width = slopes[0].shape[-2:]
        return cls(tuple([c.kernel for c in convolutions]), rows, height, width, circular)

    @property
    def event_size(self) -> int:
        return self._size(self.weights[0].shape[1])

    def push(self, i: int, t: Tensor) -> Tensor:
        return self._through(self.weights[i], t)

    def pull_back(self, i: int, r: Tensor) -> Tensor:
        return self._through(turned_round(self.weights[i]), r)

    def outer(self, i: int, left: Tensor, right: Tensor) -> Tensor:
        kernel = self.weights[i]
        n_out, n_in, *sides = kernel.shape
        if sides == [1, 1]:
            return (left.view(-1, n_out).T @ right.view(-1, n_in))[:, :, None, None]
        image, padding = padded(self._image(right), sides, circular=self.circular)
        padding: Any = padding
        return conv2d_weight(image, kernel.shape, self._image(left), padding=padding)

    def trace(self) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        sides = self.weights[0].shape[2:]
        if sides != self.weights[-1].shape[2:] or self.height < sides[0] or self.width < sides[1]:
            return None
        match self.weights[1:-1]:
            case ():
                loops = self._loops().diagonal(dim1=2, dim2=3)
                weights = self._everywhere(loops)
                return self.slopes[0] @ weights, (weights,)
            case (middle,) if middle.shape[2:] == (1, 1):
                loops = self._loops()
                heard = self._across(self.slopes[0], self._weighted(loops), turned=False)
                return torch.linalg.vecdot(heard, self.slopes[1]), (loops, heard)
            case _:
                return None

    def pull_trace(self, kept: tuple[Tensor, ...], g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        column = g[:, None]
        if len(kept) == 1:
            of_loops = self._pull_everywhere(g @ self.slopes[0])
            first, last = self._pull_loops(of_loops.diag_embed())
            return [first, last], [column * kept[0]]
        (p1, p2), (loops, heard) = self.slopes, kept
        left = p2 * column
        of_weighted = self._pull_across(left, p1)
        first, last = self._pull_loops(of_weighted * self._middle())
        of_middle = (of_weighted * loops).sum((0, 1))[:, :, None, None]
        of_p1 = self._across(left, self._weighted(loops), turned=True)
        return [first, of_middle, last], [of_p1, heard * column]

    def _through(self, kernel: Tensor, rows: Tensor) -> Tensor:
        if kernel.shape[2:] == (1, 1):
            n_out, n_in = kernel.shape[:2]
            return (rows.reshape(-1, n_in) @ kernel.view(n_out, n_in).T).view(
                len(rows), self._size(n_out)
            )
        out = convolve(self._image(rows), kernel, circular=self.circular)
        return out.permute(0, 2, 3, 1).flatten(1)

    def _image(self, rows: Tensor) -> Tensor:
        """Return images, shape ``(n, channels, height, width)``."""
        return self._places(rows).permute(0, 3, 1, 2)

    def _places(self, rows: Tensor) -> Tensor:
        """Return images with channels last, shape ``(n, height, width, channels)``."""
        channels = rows.shape[1] // (self.height * self.width)
        return rows.view(len(rows), self.height, self.width, channels)

    def _size(self, channels: int) -> int:
        return channels * self.height * self.width

    def _middle(self) -> Tensor:
        return self.weights[1][:, :, 0, 0]

    def _weighted(self, loops: Tensor) -> Tensor:
        return loops * self._middle()

    def _loops(self) -> Tensor:
        """Return the weights of the ways to a hidden pixel and back, ``(rows, columns, k, k)``."""
        back = self.weights[-1].flip(-2, -1).permute(2, 3, 1, 0)
        return back @ self.weights[0].permute(2, 3, 1, 0)

    def _pull_loops(self, of_loops: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the first and the last kernel."""
        first, last = self.weights[0], self.weights[-1]
        of_first = last.flip(-2, -1).permute(2, 3, 0, 1) @ of_loops
        of_last = of_loops @ first.permute(2, 3, 0, 1)
        return of_first.permute(3, 2, 0, 1), of_last.permute(3, 2, 0, 1).flip(-2, -1)

    def _strips(self) -> Iterator[Strip]:
        """Yield the parts of an image where offsets of the first kernel leave the image."""
        if self.circular:
            return
        whole = slice(None)
        by_row, by_column = (list(_outside(side)) for side in self.weights[0].shape[2:])
        for row, up in by_row:
            yield row, whole, up, whole, 1
        for column, across in by_column:
            yield whole, column, whole, across, 1
        # Offsets that leave the image in both directions come twice.
        for (row, up), (column, across) in product(by_row, by_column):
            yield row, column, up, across, -1

    def _across(self, rows: Tensor, weights: Tensor, *, turned: bool) -> Tensor:
        """Return :math:`T_q` times each hidden pixel, or its transpose times each."""
        whole = weights.sum((0, 1))
        matrix = whole if turned else whole.T
        out = (rows.reshape(-1, len(matrix)) @ matrix).view(len(rows), self._size(matrix.shape[1]))
        places, results = self._places(rows), self._places(out)
        for row, column, up, across, sign in self._strips():
            extra = sign * weights[up, across].sum((0, 1))
            results[:, row, column] -= places[:, row, column] @ (extra if turned else extra.T)
        return out

    def _pull_across(self, left: Tensor, right: Tensor) -> Tensor:
        r"""Return the gradient of :math:`\sum_q \ell_q^\top T_q r_q` in the weights of T."""
        lefts, rights = self._places(left), self._places(right)

        def part(row: slice, column: slice) -> Tensor:
            a, b = lefts[:, row, column], rights[:, row, column]
            return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])

        whole = part(slice(None), slice(None))
        grad = whole.expand(*self.weights[0].shape[2:], *whole.shape).clone()
        for row, column, up, across, sign in self._strips():
            grad[up, across] -= sign * part(row, column)
        return grad

    def _everywhere(self, weights: Tensor) -> Tensor:
        """Sum weights ``(rows, columns, k)`` over the offsets inside the image, for each pixel."""
        spread = weights.sum((0, 1)).expand(self.height, self.width, -1).clone()
        for row, column, up, across, sign in self._strips():
            spread[row, column] -= sign * weights[up, across].sum((0, 1))
        return spread.reshape(-1)

    def _pull_everywhere(self, grad: Tensor) -> Tensor:
        """Return the gradient in the weights of :meth:`_everywhere`."""
        places = grad.view(self.height, self.width, -1)
        result = places.sum((0, 1)).expand(*self.weights[0].shape[2:], -1).clone()
        for row, column, up, across, sign in self._strips():
            result[up, across] -= sign * places[row, column].sum((0, 1))
        return result


def _outside(side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the places near a border, and the offsets that leave the image there."""
    reach = side // 2
    for i in range(reach):
        yield slice(i, i + 1), slice(None, reach - i)
        yield slice(-1 - i, None if i == 0 else -i), slice(side - reach + i, None)
