"""Pseudo-random numbers from a seed and a position, without a generator to trace or compile."""

import math

import torch
from torch import Tensor

BITS = 32


def fixed_signs(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Return pseudo-random signs of a shape, in the dtype and on the device of ``like``."""
    position = torch.arange(math.prod(shape), device=like.device)
    return signs(_hash(position ^ _hash_int(seed)) >> (BITS // 2), like).reshape(shape)


def fixed_normals(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Return pseudo-random standard normal numbers; arguments as in :func:`fixed_signs`."""
    position = torch.arange(math.prod(shape), device=like.device)
    words = _hash(position ^ _hash_int(seed))
    # Each number lies in the middle of its cell, so neither 0 nor 1 occurs.
    uniform = (words.to(torch.float64) + 0.5) / 2.0**BITS
    return torch.special.ndtri(uniform).to(like.dtype).reshape(shape)


def signs(words: Tensor, like: Tensor) -> Tensor:
    """Return the last bit of each word as +1 or -1, in the dtype of ``like``."""
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
