"""Convolutions of images that keep their size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from .base import LinearMap


@dataclass(frozen=True)
class Convolution(LinearMap):
    """A convolution with stride 1 over images of any size, the same for all samples.

    Arguments:
        kernel: shape ``(out, in, height, width)``, odd sides.
        circular: whether an image goes on at its other side; else zeros stand around it.
    """

    kernel: Tensor
    circular: bool = False

    def mv(self, v: Tensor) -> Tensor:
        return convolve(v, self.kernel, circular=self.circular)

    def vm(self, v: Tensor) -> Tensor:
        turned = self.kernel.transpose(0, 1).flip(-2, -1)
        return convolve(v, turned, circular=self.circular)

    def select(self, index: Tensor) -> "Convolution":
        return self

    def packed(self) -> tuple[list[str], list[Tensor]]:
        return ["circular" if self.circular else "convolution"], [self.kernel]


def convolve(
    v: Tensor, kernel: Tensor, bias: Tensor | None = None, *, circular: bool = False
) -> Tensor:
    """``v`` under a kernel, shapes ``(*batch, in, height, width)`` to ``(*batch, out, ...)``."""
    flat = v.reshape(-1, *v.shape[-3:])
    padding = tuple(side // 2 for side in kernel.shape[-2:])
    if circular and any(padding):
        vertical, horizontal = padding
        flat = functional.pad(flat, (horizontal, horizontal, vertical, vertical), mode="circular")
        padding = (0, 0)
    out = functional.conv2d(flat, kernel, bias, padding=padding)
    return out.reshape(*v.shape[:-3], *out.shape[1:])


def trace_through(first: Convolution, middle: Tensor | None, last: Convolution) -> "TraceKernels":
    """What the trace of two convolutions needs, with slopes and a 1 x 1 kernel between them.

    Arguments:
        first, last: of one padding.
        middle: the matrix between the two sets of slopes; None where there is one set.
    """
    # A hidden pixel hears the pixel at an offset by the first kernel, and speaks to it by the
    # last one turned round.
    turned = last.kernel.flip(-2, -1)
    if middle is None:
        weights = torch.einsum("bcij,cbij->ijb", first.kernel, turned)
    else:
        weights = torch.einsum("bcij,caij,ab->ijab", first.kernel, turned, middle)
    return TraceKernels(weights, first.circular)


@dataclass(frozen=True)
class TraceKernels:
    """The weights of slopes in a trace, for each offset of a kernel.

    Arguments:
        weights: shape ``(height, width, channels)``, or with two channels at the end.
        circular: as in :class:`Convolution`.
    """

    weights: Tensor
    circular: bool

    def trace(self, slopes: Tensor, later: Tensor | None) -> Tensor | None:
        """The trace for each sample, shape ``(*batch,)``; None for images smaller than a kernel.

        Arguments:
            slopes: those behind the first kernel, shape ``(*batch, channels, height, width)``.
            later: those before the last, where there are two sets.
        """
        if any(size < side for size, side in zip(slopes.shape[-2:], self._sides(), strict=True)):
            return None
        total = slopes.new_zeros(slopes.shape[:-3])
        for rows, columns, weights in self._regions():
            here = slopes[..., rows, columns]
            if later is None:
                total = total + torch.einsum("...bhw,b->...", here, weights)
            else:
                heard = torch.einsum("ab,...bhw->...ahw", weights, here)
                total = total + (later[..., rows, columns] * heard).sum((-3, -2, -1))
        return total

    def _sides(self) -> tuple[int, int]:
        return self.weights.shape[0], self.weights.shape[1]

    def _regions(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Where in an image which offsets lie inside of it, and the sum of their weights."""
        if self.circular:
            yield slice(None), slice(None), self.weights.sum((0, 1))
            return
        by_row, by_column = (list(_strips(side)) for side in self._sides())
        for (rows, up), (columns, across) in product(by_row, by_column):
            yield rows, columns, self.weights[up, across].sum((0, 1))


def _strips(side: int) -> Iterator[tuple[slice, slice]]:
    """Strips of an image and the offsets that lie inside of it there, for one direction."""
    reach = side // 2
    for i in range(reach):
        yield slice(i, i + 1), slice(reach - i, None)
        yield slice(-1 - i, None if i == 0 else -i), slice(None, side - reach + i)
    yield slice(reach, -reach or None), slice(None)
