"""Density estimators of images."""

import math
from collections.abc import Sequence
from typing import Unpack, cast

import torch
from nflows.flows import Flow
from torch import Tensor

from ..errors import ArgumentError, check_instance, check_not_negative, check_positive_int
from ..hosts.nflows.noise import Noise
from ..options import BlockKeywords
from .pixels import check_pixels, quantize, with_noise
from .transform import ImageTransform, iresnet_image_transform


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
        return super().log_prob(with_noise(self._pixels(inputs), self.levels))

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
        return pixels, self.log_prob(pixels)

    def transform_to_noise(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the noise of pixels, as :meth:`encode`."""
        _refuse(context)
        return self.encode(inputs)

    def encode(self, inputs: Tensor) -> Tensor:
        """Return the noise of pixels, dequantised at the middle of each level, ``(batch, D)``."""
        return self.transform.encode(self._pixels(inputs) + 0.5)

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
        steps = check_positive_int(steps, "steps")
        if steps < 2:
            raise ArgumentError(f"Expected steps to be at least 2; got {steps}.")
        a, b = self.encode(first), self.encode(second)
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

    def _pixels(self, inputs: Tensor) -> Tensor:
        """Return pixels in the dtype of the parameters, or raise for other values."""
        dtype = next(self.parameters(), torch.empty(0)).dtype
        # with_noise refuses a dtype too coarse for the noise, whatever the dtype of the pixels.
        return check_pixels(inputs, self.levels).to(dtype)


def _refuse(context: object) -> None:
    if context is not None:
        raise ArgumentError(
            "Expected no context, since the flow has no conditional blocks; got one of type "
            f"{type(context).__name__}. Train one flow for each class."
        )


def iresnet_image_flow(
    shape: Sequence[int],
    blocks_per_scale: int | Sequence[int] = 8,
    *,
    hidden_channels: int | Sequence[int] | None = None,
    levels: int = 256,
    margin: float = 1e-4,
    factor_out: bool = True,
    **options: Unpack[BlockKeywords],
) -> ImageFlow:
    """Make an nflows ``Flow`` over images, of convolutional blocks at several scales.

    The flow runs from grey levels to noise: uniform dequantisation, a logit, and at each scale a
    squeeze (2 x 2 pixels become four channels), then ActNorms of channels and blocks in turn
    (Behrmann et al., 2019, Section 5). After each scale but the last, half of the channels leave
    as noise. The ActNorms start from the first batch in train mode. Call ``eval()`` before you
    sample, and for a deterministic log-determinant.

    Change first: ``blocks_per_scale``, then ``hidden_channels``.

    Arguments:
        shape: channels, height and width of the images; sides may differ. A scale whose sides are
            odd, or shorter than 8, has no squeeze.
        blocks_per_scale: the number of blocks of each scale, or one number for all scales that the
            sides allow.
        hidden_channels: the channels of two hidden layers, or a sequence; by default 9 for each
            channel that a block sees, as many as numbers in a patch, so that ``Cholesky()`` leaves
            every patch its size; at least 64, and 64 for more than 48 channels.
        levels: the number of values of a pixel.
        margin: the distance of the logit from 0 and 1, see :class:`PixelLogit`.
        factor_out: False to keep all channels to the end.
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
        >>> from pyro_iresnet.images import iresnet_image_flow
        >>> flow = iresnet_image_flow((1, 8, 8), blocks_per_scale=2, levels=17)
        >>> pixels = torch.randint(17, (20, 1, 8, 8))
        >>> flow.bits_per_dim(pixels).mean().backward()
        >>> flow.eval().sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    return ImageFlow(
        iresnet_image_transform(
            shape,
            blocks_per_scale,
            hidden_channels=hidden_channels,
            levels=levels,
            margin=margin,
            factor_out=factor_out,
            **options,
        )
    )
