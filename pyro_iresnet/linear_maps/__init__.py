"""Linear maps as objects: the pieces of which a Jacobian is made."""

from .base import LinearMap, as_matrix, basis
from .composite import Append, Chain, Sum
from .convolution import Convolution, convolve
from .elementary import Dense, Diagonal, Permutation
from .packing import unpack

__all__ = [
    "Append",
    "Chain",
    "Convolution",
    "Dense",
    "Diagonal",
    "LinearMap",
    "Permutation",
    "Sum",
    "as_matrix",
    "basis",
    "convolve",
    "unpack",
]
