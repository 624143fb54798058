"""Density estimators of images."""

import math
from collections.abc import Sequence
from typing import Unpack, cast

import torch
from nflows.flows import Flow
from torch import Tensor

from ..errors import ArgumentError, check_instance, check_not_negative, check_positive_int
from ..hosts.data_dependent_init import without_start
from ..hosts.nflows.noise import Noise
from .pixels import check_pixels, quantize, with_noise
from .transform import ImageKeywords, ImageTransform, check_batch, iresnet_image_transform


class ImageFlow(Flow):
    """An nflows ``Flow`` over the grey levels of images, with a standard normal as the noise.

    ``log_prob(pixels)`` adds uniform noise to the pixels and returns the log-density, nats: an
    unbiased estimate of a lower bound of the log-probability. ``sample`` returns pixels.

    Arguments:
        transform: from grey levels to noise.

    Raises:
        ArgumentTypeError: ``transform`` is no :class:`ImageTransform`.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import ImageFlow, iresnet_image_transform
        >>> flow = ImageFlow(iresnet_image_transform((1, 8, 8), 2, levels=17)).eval()
        >>> codes = flow.encode(torch.zeros(5, 1, 8, 8))
        >>> bool((flow.decode(codes) == 0).all())
        True
    """

    def __init__(self, transform: ImageTransform) -> None:
        example = "iresnet_image_transform((1, 28, 28))"
        check_instance(transform, ImageTransform, "transform", example)
        self.shape = transform.shape
        super().__init__(transform, Noise(math.prod(self.shape), transform))
        self.levels = transform.logit.levels

    @property
    def transform(self) -> ImageTransform:
        """The transform from grey levels to noise."""
        return cast(ImageTransform, self._transform)

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density of each image, shape ``(batch,)``, nats.

        Arguments:
            inputs: integers from 0 to ``levels - 1``, shape ``(batch, *shape)``.
            context: None; the flow takes no context.
        """
        _refuse(context)
        return super().log_prob(with_noise(self._pixels(inputs, "inputs"), self.levels))

    def bits_per_dim(self, inputs: Tensor) -> Tensor:
        r"""Return :math:`-\log_2 p(x) / D` of each image, with fresh noise in each call."""
        return -self.log_prob(inputs) / (math.prod(self.shape) * math.log(2))

    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw pixels, shape ``(num_samples, *shape)``.

        Arguments:
            num_samples: the number of images.
            context: None; the flow takes no context.
            batch_size: the number of images to draw at a time; all by default.
            temperature: the standard deviation of the noise, at least 0. Below 1 images are more
                typical and less diverse.
        """
        _refuse(context)
        count = check_positive_int(num_samples, "num_samples")
        size = count if batch_size is None else check_positive_int(batch_size, "batch_size")
        scale = check_not_negative(temperature, "temperature")
        parts: list[Tensor] = []
        for start in range(0, count, size):
            noise = self._distribution.sample(min(size, count - start))
            parts.append(self.decode(scale * noise))
        return torch.cat(parts)

    def sample_and_log_prob(
        self, num_samples: int, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw pixels, and return them with their :meth:`log_prob`, shape ``(num_samples,)``."""
        pixels = self.sample(num_samples, context)
        # Samples are no data for the ActNorms.
        with without_start(self):
            return pixels, self.log_prob(pixels)

    def transform_to_noise(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the noise of pixels, as :meth:`encode`."""
        _refuse(context)
        return self.encode(inputs)

    def encode(self, inputs: Tensor) -> Tensor:
        """Return the noise of pixels, dequantised at the middle of each level, ``(batch, D)``."""
        return self._noise_of(inputs, "inputs")

    @torch.no_grad()
    def decode(self, noise: Tensor) -> Tensor:
        """Return the pixels of noise, shapes ``(batch, D)`` to ``(batch, *shape)``.

        Pixels have no gradient; ``transform.decode`` returns numbers that have one.
        """
        return quantize(self.transform.decode(noise), self.levels)

    def interpolate(self, first: Tensor, second: Tensor, steps: int = 8) -> Tensor:
        """Return images between pairs of images, shape ``(batch, steps, *shape)``.

        The noise goes along a great circle from one end to the other, so that its length stays
        typical.

        Arguments:
            first, second: pixels, shape ``(batch, *shape)``.
            steps: the number of images, both ends counted; at least 2.
        """
        steps = check_positive_int(steps, "steps", 2)
        a, b = self._noise_of(first, "first"), self._noise_of(second, "second")
        if len(a) != len(b):
            raise ArgumentError(
                f"Expected as many second images as first; got {len(a)} and {len(b)}."
            )
        share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
        angle = cosine.clamp(-1, 1).acos()[:, None, None]
        sine = angle.sin()
        straight = sine < 1e-4
        sine = torch.where(straight, 1.0, sine)
        left = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
        right = torch.where(straight, share, (share * angle).sin() / sine)
        noise = left * a[:, None] + right * b[:, None]
        return self.decode(noise.flatten(0, 1)).unflatten(0, (len(a), steps))

    def _noise_of(self, pixels: Tensor, name: str) -> Tensor:
        # A few images to look at are no data for the ActNorms.
        with without_start(self):
            return self.transform.encode(self._pixels(pixels, name) + 0.5)

    def _pixels(self, inputs: Tensor, name: str) -> Tensor:
        """Return pixels in the dtype of the parameters, or raise for other values."""
        pixels = check_pixels(inputs, self.levels, name)
        like = next(self.parameters(), pixels)
        # with_noise refuses a dtype too coarse for the noise, whatever the dtype of the pixels.
        pixels = pixels.to(like.dtype)
        check_batch(pixels, self.shape, self, name)
        return pixels


def _refuse(context: object) -> None:
    if context is not None:
        raise ArgumentError(
            "Expected no context, since the flow has no conditional blocks; got one of type "
            f"{type(context).__name__}. Train one flow for each class."
        )


def iresnet_image_flow(
    shape: Sequence[int],
    blocks_per_scale: int | Sequence[int] = 8,
    **keywords: Unpack[ImageKeywords],
) -> ImageFlow:
    """Make an nflows ``Flow`` over images, of convolutional blocks at several scales.

    Call the flow once on images of the data in train mode, from which its ActNorms start, and
    ``eval()`` before you sample, and for a deterministic log-determinant.

    Arguments:
        shape, blocks_per_scale, keywords: as in :func:`iresnet_image_transform`, with the same
            errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import iresnet_image_flow
        >>> flow = iresnet_image_flow((1, 8, 8), blocks_per_scale=2, levels=17)
        >>> pixels = torch.randint(17, (20, 1, 8, 8))
        >>> flow.bits_per_dim(pixels).mean().backward()
        >>> flow.eval().sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    return ImageFlow(iresnet_image_transform(shape, blocks_per_scale, **keywords))
