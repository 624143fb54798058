"""The base of the ready-made flows of nflows."""

import torch
from nflows.distributions import StandardNormal
from nflows.utils import split_leading_dim
from torch import Tensor


class Noise(StandardNormal):
    """nflows' ``StandardNormal`` in the flow's dtype; nflows draws in torch's default dtype."""

    def __init__(self, features: int) -> None:
        super().__init__([features])
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        contexts = 1 if context is None else len(context)
        like = self.get_buffer("_like")
        samples = torch.randn(
            contexts * num_samples, *self._shape, dtype=like.dtype, device=like.device
        )
        return samples if context is None else split_leading_dim(samples, [contexts, num_samples])
