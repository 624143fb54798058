"""Random probes ``u`` with ``E[u u^T] = I``, for estimates of traces."""

import math

import torch
from torch import Tensor

from .._counter_rng import BITS, signs


def rademacher(shape: tuple[int, ...], like: Tensor) -> Tensor:
    r"""Independent signs, +1 or -1 with equal chance, from torch's generator.

    Among probes with independent entries, signs give :math:`u^\top A u` the least variance: the
    diagonal of A enters without noise (Hutchinson, 1990).

    Arguments:
        shape: the shape to draw.
        like: the tensor whose dtype and device to take.
    """
    size = math.prod(shape)
    # One draw of 32 bits serves 32 signs.
    words = torch.randint(0, 1 << BITS, (-(-size // BITS), 1), device=like.device)
    return (
        signs(words >> torch.arange(BITS, device=like.device), like).flatten()[:size].reshape(shape)
    )
