"""The base of the ready-made flows of nflows."""

import math

import torch
from nflows.distributions import StandardNormal
from nflows.transforms import Transform
from nflows.utils import split_leading_dim
from torch import Tensor

from ...errors import ArgumentError


class Noise(StandardNormal):
    """nflows' ``StandardNormal`` in the dtype and on the device of a transform's parameters.

    nflows draws in torch's default dtype, and reads a buffer that no state dict holds.

    Arguments:
        features: the number of coordinates.
        transform: the transform of the flow.
    """

    def __init__(self, features: int, transform: Transform) -> None:
        super().__init__([features])
        # In a tuple, since the transform is no part of the noise.
        self._of = (transform,)

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        if inputs.shape[1:] != self._shape:
            raise ArgumentError(
                f"Expected inputs of shape (batch, {self._shape[0]}); got {tuple(inputs.shape)}."
            )
        constant = 0.5 * self._shape[0] * math.log(2 * math.pi)
        return -0.5 * inputs.square().sum(-1) - constant

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        contexts = 1 if context is None else len(context)
        like = next(self._of[0].parameters(), torch.empty(0))
        samples = torch.randn(
            contexts * num_samples, *self._shape, dtype=like.dtype, device=like.device
        )
        return samples if context is None else split_leading_dim(samples, [contexts, num_samples])
