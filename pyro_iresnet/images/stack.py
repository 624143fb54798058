"""The transform of an image flow for Pyro."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import constraints

from ..blocks import Block, Evaluation
from ..errors import check_instance, check_tensor
from ..hosts.data_dependent_init import without_start
from ..hosts.pyro.cached_transform import CachedTransform
from ..operators.linearization import vjp_of
from .transform import ImageKeywords, ImageTransform, iresnet_image_transform


class ImageStack(CachedTransform, TransformModule):
    """An :class:`ImageTransform` for Pyro: grey levels to noise.

    ``TransformedDistribution(noise, [stack.inv])`` is a distribution over images whose pixels are
    numbers between 0 and ``levels``: dequantise integers by :func:`dequantize`.

    Arguments:
        transform: the :class:`ImageTransform`.
        cache_size: 1 to remember the last call, 0 for no memory.

    Raises:
        ArgumentTypeError: ``transform`` is no :class:`ImageTransform`.

    Example:
        >>> import torch
        >>> from pyro_iresnet.images import ImageStack, iresnet_image_transform
        >>> stack = ImageStack(iresnet_image_transform((1, 8, 8), 2))
        >>> stack(256 * torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """

    codomain = constraints.real_vector

    def __init__(self, transform: ImageTransform, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.transform = check_instance(
            transform, ImageTransform, "transform", "iresnet_image_transform((1, 28, 28))"
        )
        self.shape = transform.shape
        self.size = math.prod(transform.shape)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        logit = self.transform.logit
        return constraints.independent(constraints.interval(logit.low, logit.high), 3)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.shape

    def check(self, x: Tensor, name: str) -> Tensor:
        like = next(self.parameters(), None)
        check_tensor(x, self.shape if name == "x" else (self.size,), like, name)
        return x

    def evaluate(self, x: Tensor) -> Evaluation:
        y, log_det = self.transform(x.reshape(-1, *self.shape))
        return self._evaluation(x, y.reshape(*x.shape[:-3], self.size), log_det)

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        with without_start(self):
            return self.evaluate(x)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        x = self.transform.decode(y.reshape(-1, self.size))
        return self._evaluation(x.reshape(*y.shape[:-1], *self.shape), y)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the noise of images."""
        return torch.Size((*shape[:-3], self.size))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the images of noise."""
        return torch.Size((*shape[:-1], *self.shape))

    def _evaluation(self, x: Tensor, y: Tensor, log_det: Tensor | None = None) -> Evaluation:
        blocks = [m for m in self.transform.modules() if isinstance(m, Block)]
        estimators = [block.estimator(self.size) for block in blocks]
        drawn_by = next((type(e).__name__ for e in estimators if e.stochastic), "")
        held = [] if log_det is None else [log_det]

        def log_det_again() -> Tensor:
            # A first value may come with the pair; a stochastic estimator draws each one after.
            if not held:
                with without_start(self):
                    held.append(self.transform(x.reshape(-1, *self.shape))[1])
            value = held.pop() if drawn_by else held[0]
            return value.reshape(x.shape[:-3])

        def forward(images: Tensor) -> Tensor:
            return self.transform.encode(images.reshape(-1, *self.shape)).reshape(y.shape)

        def inverse(noise: Tensor) -> Tensor:
            return self.transform.decode(noise.reshape(-1, self.size)).reshape(x.shape)

        return Evaluation(
            x,
            y,
            log_det=log_det_again,
            vjp=lambda w: vjp_of(forward, x, w),
            inverse_vjp=lambda w: vjp_of(inverse, y, w),
            drawn_by=drawn_by,
        )


def iresnet_image_stack(
    shape: Sequence[int],
    blocks_per_scale: int | Sequence[int] = 8,
    **keywords: Unpack[ImageKeywords],
) -> ImageStack:
    """Make the transform of an image flow for Pyro, as :func:`iresnet_image_flow` for nflows.

    Arguments:
        shape, blocks_per_scale, keywords: as in :func:`iresnet_image_transform`, with the same
            errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet.images import dequantize, iresnet_image_stack
        >>> stack = iresnet_image_stack((1, 8, 8), 2, levels=17)
        >>> noise = dist.Normal(torch.zeros(64), torch.ones(64)).to_event(1)
        >>> flow = dist.TransformedDistribution(noise, [stack.inv])
        >>> flow.log_prob(dequantize(torch.randint(17, (20, 1, 8, 8)), 17)).shape
        torch.Size([20])
    """
    return ImageStack(iresnet_image_transform(shape, blocks_per_scale, **keywords))
