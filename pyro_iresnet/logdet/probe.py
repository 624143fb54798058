"""Random probes ``u`` with ``E[u u^T] = I``, for traces (seed report Eq. 22-24)."""

import math

import torch
from torch import Tensor

BITS = 32


def rademacher(shape: tuple[int, ...], like: Tensor) -> Tensor:
    r"""Independent signs, +1 or -1 with equal chance, from torch's generator.

    Of all probes with independent entries they give :math:`u^\top A u` the least variance: the
    diagonal of A enters without noise (Hutchinson, 1990).

    Arguments:
        shape: the shape to draw.
        like: the tensor whose dtype and device to take.
    """
    size = math.prod(shape)
    # One draw of 32 bits serves 32 signs.
    words = torch.randint(0, 1 << BITS, (-(-size // BITS), 1), device=like.device)
    return (
        _signs(words >> torch.arange(BITS, device=like.device), like)
        .flatten()[:size]
        .reshape(shape)
    )


def fixed_signs(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Signs that look random and are a pure function of the seed and of their position.

    No generator is involved, so what uses them can be traced, compiled and transformed.

    Arguments:
        shape: the shape to make.
        seed: an integer.
        like: the tensor whose dtype and device to take.
    """
    position = torch.arange(math.prod(shape), device=like.device)
    return _signs(_hash(position ^ _hash_int(seed)) >> (BITS // 2), like).reshape(shape)


def _signs(words: Tensor, like: Tensor) -> Tensor:
    return (words & 1).to(like.dtype).mul(2).sub(1)


# An invertible mixing of 32 bits: shift, multiply by an odd number, and again. The multiplier is
# below 2^31, so that a product stays in the 63 bits of a signed word.
MULTIPLIER = 0x045D9F3B
MASK = (1 << BITS) - 1


def _hash(x: Tensor) -> Tensor:
    for _ in range(2):
        x = ((x ^ (x >> 16)) * MULTIPLIER) & MASK
    return x ^ (x >> 16)


def _hash_int(x: int) -> int:
    for _ in range(2):
        x = ((x ^ (x >> 16)) * MULTIPLIER + 1) & MASK
    return x
