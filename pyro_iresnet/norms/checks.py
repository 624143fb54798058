"""Checks of weights and of their bounds."""

import torch
from torch import Tensor

from .._torch import has_values
from ..errors import ArgumentError, ArgumentTypeError, check_dense, check_positive, check_tensor


def check_weight(weight: Tensor) -> None:
    """Raise unless ``weight`` is one or more matrices with entries, real or complex."""
    if not isinstance(weight, Tensor) or not weight.is_complex():
        check_dense(weight, "weight")
    if weight.dtype is torch.complex32:
        raise ArgumentTypeError(
            "Expected weight of a floating dtype, complex64 or complex128; got torch.complex32, in "
            "which torch does not compute norms. Convert it: weight.to(torch.complex64)."
        )
    if weight.dim() < 2 or 0 in weight.shape[-2:]:
        raise ArgumentError(
            "Expected weight of shape (*batch, rows, columns), with a row and a column at least; "
            f"got {tuple(weight.shape)}."
        )


def bounds_of(bound: float | Tensor, weight: Tensor) -> Tensor:
    """Return the bounds of a batch of weights as a tensor, or raise."""
    if not isinstance(bound, Tensor):
        # `new_tensor` fails for a view with the negative bit.
        return weight.new_full((), check_positive(bound, "bound"))
    check_tensor(bound, (), weight, "bound", of="weight")
    batch = weight.shape[:-2]
    # A dimension may be missing or of size 1.
    fits = zip(bound.shape[::-1], batch[::-1], strict=False)
    if bound.dim() > len(batch) or any(b not in (1, n) for b, n in fits):
        raise ArgumentError(
            f"Expected bound of a shape that broadcasts to the batch {tuple(batch)} of weight; "
            f"got {tuple(bound.shape)}."
        )
    # NaN compares as False.
    if has_values(bound) and not bool(((bound > 0) & (bound < torch.inf)).all()):
        raise ArgumentError("Expected bound to be finite and above 0; got another entry.")
    return bound
