"""Norms of weights, and the weights that they keep at a bound."""

from .base import Hard, Norm, NormalizedWeight
from .cholesky import Cholesky
from .convolution import spectral_norm
from .gram import Gram, SingularValue
from .power_iteration import PowerIteration

__all__ = [
    "Cholesky",
    "Gram",
    "Hard",
    "Norm",
    "NormalizedWeight",
    "PowerIteration",
    "SingularValue",
    "spectral_norm",
]
