"""Flows of images for the report's second table, at about one number of parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import zuko
from nflows.nn.nets import ConvResidualNet, ResidualNet
from nflows.transforms import (
    ActNorm,
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    OneByOneConvolution,
    ReversePermutation,
    SqueezeTransform,
    Transform,
)
from torch import Tensor

from pyro_iresnet.images import ImageFlow, ImageTransform, PixelLogit, iresnet_image_flow
from pyro_iresnet.images.transform import squeezed, squeezes

Shape = tuple[int, int, int]
Maker = Callable[[Shape, int, float], ImageFlow]


def makers() -> dict[str, Maker]:
    """Return the makers of the flows, by name; each takes shape, levels and margin."""
    return {
        "i-ResNet": partial(_iresnet, "residual"),
        "i-ResNet, Cayley": partial(_iresnet, "cayley"),
        "Real NVP": _real_nvp,
        "Glow": _glow,
        "NICE": _nice,
        "MADE": partial(_autoregressive, 1),
        "MAF": partial(_autoregressive, 5),
        "FFJORD": _ffjord,
    }


# Of the default i-ResNet on images of 1 x 28 x 28.
BUDGET = 200_000


def _iresnet(block: str, shape: Shape, levels: int, margin: float) -> ImageFlow:
    count = 8 if block == "residual" else 4
    make = partial(iresnet_image_flow, shape, levels=levels, margin=margin, block=block)
    size = size_of(flow := make(count))
    if abs(size / BUDGET - 1) < 0.05:
        return flow
    # Colours have more channels at each scale, so their blocks are few and narrow.
    count = count // 2 if size > 1.5 * BUDGET else count
    return _fitting(lambda width: make(count, hidden_channels=width))


def _fitting(make: Callable[[int], ImageFlow]) -> ImageFlow:
    """Make the flow with the width whose number of parameters is nearest to the budget."""
    low, high = 2, 512
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size_of(make(middle)) < BUDGET else (low, middle)
    return min(make(low), make(high), key=lambda flow: abs(size_of(flow) - BUDGET))


def size_of(flow: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in flow.parameters())


def _scales(
    shape: Shape, levels: int, margin: float, step: Callable[[int, int], list[Transform]]
) -> ImageFlow:
    """Make a flow of 8 steps at each scale, where half of the channels leave after a scale."""
    full, scales = shape, []
    while True:
        parts: list[Transform] = []
        if squeezes(shape):
            parts.append(SqueezeTransform())
            shape = squeezed(shape)
        for i in range(8):
            parts += step(i, shape[0])
        last = not squeezes(shape)
        leaving = shape[0] if last else shape[0] // 2
        scales.append((CompositeTransform(parts), shape, leaving))
        shape = (shape[0] - leaving, *shape[1:])
        if last:
            return ImageFlow(ImageTransform(full, PixelLogit(levels, margin), scales))


def _mask(i: int, channels: int) -> Tensor:
    mask = torch.ones(channels)
    mask[i % 2 :: 2] = -1
    return mask


def _net(width: int, n_in: int, n_out: int) -> ConvResidualNet:
    net = ConvResidualNet(n_in, n_out, width, num_blocks=1)
    # As in this project: on a CPU, a convolution of few channels is faster so.
    return net.to(memory_format=torch.channels_last)


def _real_nvp(shape: Shape, levels: int, margin: float) -> ImageFlow:
    def make(width: int) -> ImageFlow:
        net: Any = partial(_net, width)

        def step(i: int, channels: int) -> list[Transform]:
            return [ActNorm(channels), AffineCouplingTransform(_mask(i, channels), net)]

        return _scales(shape, levels, margin, step)

    return _fitting(make)


def _glow(shape: Shape, levels: int, margin: float) -> ImageFlow:
    def make(width: int) -> ImageFlow:
        net: Any = partial(_net, width)

        def step(i: int, channels: int) -> list[Transform]:
            coupling = AffineCouplingTransform(_mask(0, channels), net)
            return [ActNorm(channels), OneByOneConvolution(channels), coupling]

        return _scales(shape, levels, margin, step)

    return _fitting(make)


class _Flat(Transform):
    """A transform of vectors, for images of one place with many channels behind it."""

    def __init__(self, shape: Shape, transform: Transform) -> None:
        super().__init__()
        self.shape = shape
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = self.transform(inputs.flatten(1))
        return outputs[:, :, None, None], logabsdet

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = self.transform.inverse(inputs.flatten(1))
        return outputs.reshape(-1, *self.shape), logabsdet


def _vectors(shape: Shape, levels: int, margin: float, transform: Transform) -> ImageFlow:
    size = shape[0] * shape[1] * shape[2]
    scale = (_Flat(shape, transform), (size, 1, 1), size)
    return ImageFlow(ImageTransform(shape, PixelLogit(levels, margin), [scale]))


def _nice(shape: Shape, levels: int, margin: float) -> ImageFlow:
    size = shape[0] * shape[1] * shape[2]

    def make(width: int) -> ImageFlow:
        net: Any = partial(ResidualNet, hidden_features=width)
        parts: list[Transform] = [ActNorm(size)]
        for i in range(4):
            parts.append(AdditiveCouplingTransform(_mask(i, size), net))
        return _vectors(shape, levels, margin, CompositeTransform([*parts, ActNorm(size)]))

    return _fitting(make)


def _autoregressive(layers: int, shape: Shape, levels: int, margin: float) -> ImageFlow:
    size = shape[0] * shape[1] * shape[2]

    def make(width: int) -> ImageFlow:
        parts: list[Transform] = []
        for _ in range(layers):
            # Other masks of nflows join fewer units than pixels to the first pixels alone.
            masked = MaskedAffineAutoregressiveTransform(
                size, width, use_residual_blocks=False, random_mask=True
            )
            parts += [ActNorm(size), masked]
            parts.append(ReversePermutation(size))
        return _vectors(shape, levels, margin, CompositeTransform(parts))

    return _fitting(make)


class _OfZuko(Transform):
    """A continuous flow of zuko, with a stochastic trace."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.flow = zuko.flows.CNF(size, hidden_features=[width, width], exact=False)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # As in the plane, a score has less error than a step of training.
        ode = self.flow.transform
        ode.atol, ode.rtol = (1e-3, 1e-3) if self.training else (1e-5, 1e-4)
        return self.flow().transform.call_and_ladj(inputs)

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.flow().transform.inv.call_and_ladj(inputs)


def _ffjord(shape: Shape, levels: int, margin: float) -> ImageFlow:
    size = shape[0] * shape[1] * shape[2]

    def make(width: int) -> ImageFlow:
        parts = [ActNorm(size), _OfZuko(size, width), ActNorm(size)]
        return _vectors(shape, levels, margin, CompositeTransform(parts))

    return _fitting(make)
