"""Norms of weights, and the weights that they keep at a bound."""

from .base import Hard, Norm, NormalizedWeight
from .cholesky import Cholesky
from .closed_form import Frobenius, Schur, SingularValue
from .convolution import spectral_norm
from .gram import Gram
from .orthogonal import AlmostOrthogonal
from .power_iteration import PowerIteration

__all__ = [
    "AlmostOrthogonal",
    "Cholesky",
    "Frobenius",
    "Gram",
    "Hard",
    "Norm",
    "NormalizedWeight",
    "PowerIteration",
    "Schur",
    "SingularValue",
    "spectral_norm",
]
