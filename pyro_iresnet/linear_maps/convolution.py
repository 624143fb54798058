"""Convolutions of images that keep their size."""

from dataclasses import dataclass

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
