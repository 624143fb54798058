"""Random probes ``u`` with ``E[u u^T] = I``, for estimates of traces."""

import math

import torch
from torch import Tensor

from .._counter_rng import BITS, signs


def rademacher(shape: tuple[int, ...], like: Tensor) -> Tensor:
    r"""Draw signs, +1 or -1 with equal chance, in the dtype and on the device of ``like``.

    Among probes with independent entries, signs give :math:`u^\top A u` the least variance: the
    diagonal of A enters without noise (Hutchinson, 1990).
    """
    size = math.prod(shape)
    # One draw of 32 bits serves 32 signs.
    words = torch.randint(0, 1 << BITS, (-(-size // BITS), 1), device=like.device)
    return (
        signs(words >> torch.arange(BITS, device=like.device), like).flatten()[:size].reshape(shape)
    )
