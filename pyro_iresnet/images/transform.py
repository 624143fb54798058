"""The transform of an image flow: from grey levels to noise at several scales."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any, TypeAlias, Unpack, cast

import torch
from nflows.transforms import SqueezeTransform, Transform
from torch import Tensor, nn

from .._modules import contractions_of
from .._settings import SavedSettings
from ..activations import Sine
from ..cached import together
from ..errors import ArgumentError, check_dims, check_positive_int, check_tensor
from ..hosts.interleave import interleave
from ..hosts.nflows import IResNetComposite, IResNetTransform, PatientActNorm
from ..hosts.nflows.composite import decoded, encoded
from ..hosts.nflows.transform import widths
from ..logdet import ByMode, ConvergedSeries, Roulette, Subsample
from ..options import BlockKeywords, BlockOptions
from .pixels import PixelLogit, warn_of_pixels

# The smallest side of an image after a squeeze.
LEAST_SIDE = 4
# Numbers in a patch for each channel, and hidden channels where a patch is small or too large.
PATCH, LARGEST_PATCH, NARROW = 9, 432, 64
# Limits of the frequencies for grey levels, see docs/expressive-power.md.
ACTIVATION = partial(Sine, frequencies=(1.0, 20.0))
# The exact determinant of an image costs one product for each pixel.
LOGDET = ByMode(Roulette(Subsample(), control_variate=None), ConvergedSeries())
# Runs one scale, and returns its outputs with log|det| or 0.
Run: TypeAlias = Callable[[Transform, Tensor], tuple[Tensor, Tensor | float]]


class ImageKeywords(BlockKeywords, total=False):
    """The keywords of :func:`iresnet_image_transform`."""

    hidden_channels: int | Sequence[int] | None
    levels: int
    margin: float


class ImageTransform(SavedSettings, Transform):
    """Grey levels to noise: a logit, then scales of squeeze, ActNorms and blocks (nflows).

    After each scale some channels leave as noise, the others go on. The noise is one vector for
    each image. :func:`iresnet_image_transform` makes the parts.

    Arguments:
        shape: channels, height and width of the images.
        logit: from grey levels to real numbers.
        scales: the transform of each scale, the shape of an image behind the transform, and the
            number of channels that leave; all leave after the last.

    Raises:
        ArgumentError: the channels that leave do not make up the image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        logit: PixelLogit,
        scales: Sequence[tuple[Transform, tuple[int, int, int], int]],
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.logit = logit
        if len(scales) == 0:
            raise ArgumentError("Expected at least one scale; got none.")
        transforms, self.shapes, self.leaving = zip(*scales, strict=True)
        noise = sum(n * h * w for n, (_, h, w) in zip(self.leaving, self.shapes, strict=True))
        if noise != math.prod(self.shape) or self.leaving[-1] != self.shapes[-1][0]:
            raise ArgumentError(
                f"Expected all {math.prod(self.shape)} numbers of an image to leave the scales, "
                f"and all channels to leave the last; got {noise} numbers, and {self.leaving[-1]} "
                f"of {self.shapes[-1][0]} channels."
            )
        self.scales = nn.ModuleList(transforms)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "shape": self.shape, "leaving": self.leaving}

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return noise, shape ``(batch, D)``, and ``log|det|``, shape ``(batch,)``.

        ``inputs`` are grey levels with noise, numbers between 0 and ``levels``, shape
        ``(batch, channels, height, width)``.
        """
        check_batch(inputs, self.shape, self, "inputs")
        warn_of_pixels(inputs, self.logit.levels)
        return self._forth(inputs, lambda scale, x: scale(x))

    def encode(self, inputs: Tensor) -> Tensor:
        """Return the noise of images, without the log-determinants of blocks."""
        check_batch(inputs, self.shape, self, "inputs")
        return self._forth(inputs, lambda scale, x: (encoded(scale, x), 0.0))[0]

    def _forth(self, inputs: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        with together(contractions_of(self)):
            x, total = self.logit(inputs)
            noise: list[Tensor] = []
            for i, scale in enumerate(self._scales()):
                x, logabsdet = run(scale, x)
                total = total + logabsdet
                noise.append(x[:, : self.leaving[i]].flatten(1))
                x = x[:, self.leaving[i] :]
            return torch.cat(noise, 1), total

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`, to the tolerance of the solvers."""
        check_batch(inputs, (math.prod(self.shape),), self, "inputs")
        return self._back(inputs, lambda scale, x: scale.inverse(x))

    def decode(self, noise: Tensor) -> Tensor:
        """Return the images of noise, without the log-determinants of blocks."""
        check_batch(noise, (math.prod(self.shape),), self, "noise")
        return self._back(noise, lambda scale, x: (decoded(scale, x), 0.0))[0]

    def _back(self, noise: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        with together(contractions_of(self)):
            total = noise.new_zeros(len(noise))
            x = noise.new_empty(len(noise), 0, *self.shapes[-1][1:])
            for i, scale in reversed(list(enumerate(self._scales()))):
                noise, x = self._joined(noise, x, i)
                x, logabsdet = run(scale, x)
                total = total + logabsdet
            x, logabsdet = self.logit.inverse(x)
            return x, total + logabsdet

    def _scales(self) -> list[Transform]:
        return list(cast(Iterable[Transform], self.scales))

    def _joined(self, noise: Tensor, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Return the noise of the scales before, and the image behind scale ``i``."""
        leaving, (_, *sides) = self.leaving[i], self.shapes[i]
        rest, own = noise.tensor_split([noise.shape[1] - leaving * math.prod(sides)], 1)
        return rest, torch.cat([own.reshape(len(own), leaving, *sides), x], 1)


def iresnet_image_transform(
    shape: Sequence[int],
    blocks_per_scale: int | Sequence[int] = 8,
    *,
    hidden_channels: int | Sequence[int] | None = None,
    levels: int = 256,
    margin: float = 1e-4,
    **options: Unpack[BlockKeywords],
) -> ImageTransform:
    """Make the transform of :func:`iresnet_image_flow`, for a flow of your own.

    First come a logit, and at each scale a squeeze (2 x 2 pixels become four channels), then
    ActNorms of channels and blocks in turn (Behrmann et al., 2019, Section 5). After each scale but
    the last, half of the channels leave as noise. The ActNorms start from the first batch of 16
    images or more in train mode.

    Change first: ``blocks_per_scale``, then ``hidden_channels``.

    Arguments:
        shape: channels, height and width of the images; sides may differ. Sides that are odd, or
            shorter than 8, have no squeeze.
        blocks_per_scale: the number of blocks of each scale, one scale for each squeeze; or one
            number for all scales that the sides allow.
        hidden_channels: the channels of two hidden layers, or a sequence; by default 9 for each
            channel that a block sees, as many as numbers in a patch, so that ``Cholesky()`` leaves
            every patch its size; at least 64, and 64 for more than 48 channels.
        levels: the number of values of a pixel.
        margin: the distance of the logit from 0 and 1, see :class:`PixelLogit`.
        options: of each block, as in :class:`BlockOptions`: ``block``, ``lipschitz`` and so on. By
            default the activation is ``Sine`` with frequencies from 1 to 20, there are no
            ``coordinates`` (a record of ``options`` has its own), and in eval mode the estimator is
            :class:`ConvergedSeries`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Density estimation using Real NVP (Dinh et al., 2017), for scales; Residual Flows for
        Invertible Generative Modeling (Chen et al., 2019).

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import dequantize, iresnet_image_transform
        >>> transform = iresnet_image_transform((1, 8, 8), 2)
        >>> noise, logabsdet = transform(dequantize(torch.randint(256, (5, 1, 8, 8))))
        >>> noise.shape, logabsdet.shape
        (torch.Size([5, 64]), torch.Size([5]))
    """
    full = image = check_image_shape(shape)
    logit = PixelLogit(levels, margin)
    hidden = widths(hidden_channels, "hidden_channels")
    # Channels without a scale of their own train better: docs/expressive-power.md.
    given = options if "options" in options else {"coordinates": None, **options}
    records = BlockOptions.records(given, iresnet_image_transform, hidden_channels=hidden)
    counts = counts_of(blocks_per_scale, image)
    scales: list[tuple[Transform, tuple[int, int, int], int]] = []
    for i, count in enumerate(counts):
        parts: list[Transform] = []
        if squeezes(image):
            parts.append(SqueezeTransform())
            image = squeezed(image)
        blocks = (_block(record, image) for record in islice(cycle(records), count))
        parts += interleave(blocks, PatientActNorm, image[0], Transform, "PatientActNorm")
        leaving = image[0] if i == len(counts) - 1 else image[0] // 2
        scales.append((IResNetComposite(parts), image, leaving))
        image = (image[0] - leaving, *image[1:])
    return ImageTransform(full, logit, scales)


def _block(record: BlockOptions, shape: tuple[int, int, int]) -> IResNetTransform:
    """Make a block of the record, with the defaults of images."""
    hidden = hidden_of(shape) if record.hidden_dims is None else record.hidden_dims
    logdet = LOGDET if record.logdet is None else record.logdet
    activation = ACTIVATION if record.activation is None else record.activation
    whole = replace(record, hidden_dims=hidden, logdet=logdet, activation=activation)
    return IResNetTransform.from_block(whole.build(shape))


def hidden_of(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the default channels of two hidden layers, see :func:`iresnet_image_transform`."""
    patch = PATCH * shape[0]
    # Beyond the largest patch norms need the Fourier symbol, whose cost grows with the width.
    width = NARROW if patch > LARGEST_PATCH else max(NARROW, patch)
    return width, width


def counts_of(
    blocks_per_scale: int | Sequence[int], shape: tuple[int, int, int]
) -> tuple[int, ...]:
    """Return the number of blocks of each scale."""
    sides, scales = f"{shape[1]} x {shape[2]}", 0
    while squeezes(shape):
        shape, scales = squeezed(shape), scales + 1
    scales = max(1, scales)
    if isinstance(blocks_per_scale, Sequence):
        counts = check_dims(blocks_per_scale, "blocks_per_scale", "[8, 8]")
        if not counts:
            raise ArgumentError("Expected blocks_per_scale of one scale or more; got none.")
        if len(counts) > scales:
            raise ArgumentError(
                f"Expected blocks_per_scale of at most {scales} scale(s), which images of {sides} "
                f"pixels allow; got {list(counts)}."
            )
        return counts
    return scales * (check_positive_int(blocks_per_scale, "blocks_per_scale"),)


def squeezes(shape: tuple[int, int, int]) -> bool:
    """Return True if an image has even sides that are long enough for a squeeze."""
    return all(side % 2 == 0 and side // 2 >= LEAST_SIDE for side in shape[1:])


def squeezed(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of an image after a squeeze."""
    channels, height, width = shape
    return 4 * channels, height // 2, width // 2


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width, or raise unless ``shape`` holds three sizes."""
    sizes = check_dims(shape, "shape", "(1, 28, 28)")
    if len(sizes) != 3:
        raise ArgumentError(
            f"Expected shape to be (channels, height, width), such as (1, 28, 28); got {sizes}."
        )
    channels, height, width = sizes
    if width in (1, 3) and min(channels, height) > 4:
        warnings.warn(
            f"Expected shape to be (channels, height, width); got {sizes}, {channels} channels of "
            f"{height} x {width} pixels. If the channels come last, pass shape="
            f"{(width, channels, height)} and images.permute(0, 3, 1, 2).",
            stacklevel=3,
        )
    return channels, height, width


def check_batch(x: Tensor, shape: tuple[int, ...], of: nn.Module, name: str) -> None:
    """Raise unless ``x`` has one batch dimension before a shape, and the dtype of a module."""
    if len(shape) == 3 and isinstance(x, Tensor) and tuple(x.shape[1:]) != tuple(shape):
        channels, *sides = shape
        if tuple(x.shape[1:]) == (*sides, channels):
            raise ArgumentError(
                f"Expected {name} of shape (batch, {', '.join(map(str, shape))}); got "
                f"{tuple(x.shape)}, channels last. Pass {name}.permute(0, 3, 1, 2)."
            )
    check_tensor(x, shape, next(of.parameters(), None), name)
    if x.dim() != 1 + len(shape):
        raise ArgumentError(
            f"Expected {name} of shape (batch, {', '.join(map(str, shape))}); got {tuple(x.shape)}."
        )
