"""The exact spectral norm."""

from dataclasses import dataclass

from torch import Tensor

from .base import Norm
from .convolution import spectral_norm


@dataclass(frozen=True)
class SingularValue(Norm):
    """The exact largest singular value, certified and tight.

    It is the root of the largest eigenvalue of the Gram matrix. The gradient is that of the largest
    singular value alone, ``u v^T``.

    Raises:
        ArgumentError, ArgumentTypeError: in a call: ``weight`` is no matrix or batch of matrices.

    Example:
        >>> import torch
        >>> SingularValue()(torch.diag(torch.tensor([3.0, 1.0]))).item()
        3.0
    """

    def __call__(self, weight: Tensor) -> Tensor:
        return spectral_norm(weight)
