"""Convolutions that keep the size of an image."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        return convolve(v, turned_round(self.kernel), circular=self.circular)

    def select(self, index: Tensor) -> "Convolution":
        return self

    def packed(self) -> tuple[list[str], list[Tensor]]:
        return ["circular" if self.circular else "convolution"], [self.kernel]


def convolve(
    v: Tensor, kernel: Tensor, bias: Tensor | None = None, *, circular: bool = False
) -> Tensor:
    """Convolve ``v``, shapes ``(*batch, in, height, width)`` to ``(*batch, out, ...)``."""
    flat, padding = padded(v.reshape(-1, *v.shape[-3:]), kernel.shape[-2:], circular=circular)
    if v.device.type == "cpu":
        # With channels last, a convolution of few channels runs two to four times as fast.
        flat, kernel = channels_last(flat), channels_last(kernel)
    out = functional.conv2d(flat, kernel, bias, padding=padding)
    return out.reshape(*v.shape[:-3], *out.shape[1:])


def padded(
    images: Tensor, sides: Sequence[int], *, circular: bool
) -> tuple[Tensor, tuple[int, int]]:
    """Return images and the zeros that a convolution of these sides adds to keep their size."""
    vertical, horizontal = (side // 2 for side in sides)
    if not (circular and (vertical or horizontal)):
        return images, (vertical, horizontal)
    around = (horizontal, horizontal, vertical, vertical)
    return functional.pad(images, around, mode="circular"), (0, 0)


def channels_last(images: Tensor) -> Tensor:
    """Return images whose channels of a pixel lie together in memory."""
    # By permutations, since vmap knows no memory formats.
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def turned_round(kernel: Tensor) -> Tensor:
    """Return the kernel of the transposed convolution."""
    return kernel.transpose(0, 1).flip(-2, -1)
