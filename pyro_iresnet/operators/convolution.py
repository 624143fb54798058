"""Convolutions that keep the size of an image."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from .linear_map import LinearMap


@dataclass(frozen=True)
class Convolution(LinearMap):
    """A convolution with stride 1 over images of any size, the same for all samples.

    Arguments:
        kernel: shape ``(out, in, height, width)``, odd sides.
        circular: if True, pad an image with its opposite side; else with zeros.
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
    """Convolve ``v``, shapes ``(*batch, in, height, width)`` to ``(*batch, out, ...)``."""
    flat = v.reshape(-1, *v.shape[-3:])
    padding = tuple(side // 2 for side in kernel.shape[-2:])
    if circular and any(padding):
        vertical, horizontal = padding
        flat = functional.pad(flat, (horizontal, horizontal, vertical, vertical), mode="circular")
        padding = (0, 0)
    out = functional.conv2d(flat, kernel, bias, padding=padding)
    return out.reshape(*v.shape[:-3], *out.shape[1:])


def trace_through(first: Convolution, middle: Tensor | None, last: Convolution) -> "TraceKernels":
    """Return the weights of the slopes in the trace of two convolutions with the same padding.

    ``middle`` is the 1 x 1 kernel between two sets of slopes, as a matrix; None for one set.
    """
    # The first kernel leads from a pixel to a hidden pixel at an offset. The last kernel, turned
    # round, leads back.
    turned = last.kernel.flip(-2, -1)
    if middle is None:
        weights = torch.einsum("bcij,cbij->ijb", first.kernel, turned)
    else:
        weights = torch.einsum("bcij,caij,ab->ijab", first.kernel, turned, middle)
    return TraceKernels(weights, first.circular)


@dataclass(frozen=True)
class TraceKernels:
    """The weights of the slopes in a trace, for each offset of a kernel.

    ``weights`` has the shape ``(height, width, channels)``, or
    ``(height, width, channels, channels)`` for two sets of slopes.
    """

    weights: Tensor
    circular: bool

    def trace(self, slopes: Tensor, later: Tensor | None) -> Tensor | None:
        """Return the traces, shape ``(*batch,)``; None for images smaller than a kernel.

        Slopes have the shape ``(*batch, channels, height, width)``; ``later`` are those before the
        last kernel, if there are two sets.
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
        """Yield regions of an image, and the summed weights of the offsets inside the image."""
        if self.circular:
            yield slice(None), slice(None), self.weights.sum((0, 1))
            return
        by_row, by_column = (list(_strips(side)) for side in self._sides())
        for (rows, up), (columns, across) in product(by_row, by_column):
            yield rows, columns, self.weights[up, across].sum((0, 1))


def _strips(side: int) -> Iterator[tuple[slice, slice]]:
    """Yield strips of an image in one direction, and the offsets that stay inside the image."""
    reach = side // 2
    for i in range(reach):
        yield slice(i, i + 1), slice(reach - i, None)
        yield slice(-1 - i, None if i == 0 else -i), slice(None, side - reach + i)
    yield slice(reach, -reach or None), slice(None)
