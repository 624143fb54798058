"""Assertions that name the promise that is broken."""

import torch
from torch import Tensor

from ..contractions import Contraction
from ..errors import ArgumentError, check_instance

ROUNDING = 1e-5


def close(found: Tensor, expected: Tensor, message: str) -> None:
    """Raise unless two tensors agree to the tolerance of ``torch.testing``."""
    torch.testing.assert_close(found, expected, msg=lambda told: f"{message}. {told}")


def require(condition: bool, message: str) -> None:
    """Raise ``AssertionError`` with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def check_batch(contraction: Contraction, x: Tensor) -> None:
    """Raise unless a contraction is complete, and ``x`` is one batch of its points."""
    example = "DenseContraction(2)"
    check_instance(contraction, Contraction, "contraction", example).check_complete()
    event = ", ".join(map(str, contraction.event_shape))
    if x.dim() != 1 + contraction.event_dim or not len(x):
        raise ArgumentError(
            f"Expected x of shape (n, {event}), with n of at least 1; got {tuple(x.shape)}."
        )
