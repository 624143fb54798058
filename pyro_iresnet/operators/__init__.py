"""Linear maps as objects, the linearization of a contraction, and solves with ``I + J``."""

from .composite import Chain, Negated, Sum
from .contraction_map import ContractionMap, NegatedMap
from .convolution import Convolution, convolve
from .elementary import Dense, Diagonal, Matrices
from .krylov import KrylovSolve, auto_linear_solve
from .linear_map import LinearMap
from .linearization import Linearization, linearize_by_autograd
from .packing import unpack
from .solve import DENSE, DenseSolve, LinearSolve, Solved, default_rtol, floor

__all__ = [
    "DENSE",
    "Chain",
    "ContractionMap",
    "Convolution",
    "Dense",
    "DenseSolve",
    "Diagonal",
    "KrylovSolve",
    "LinearMap",
    "LinearSolve",
    "Linearization",
    "Matrices",
    "Negated",
    "NegatedMap",
    "Solved",
    "Sum",
    "auto_linear_solve",
    "convolve",
    "default_rtol",
    "floor",
    "linearize_by_autograd",
    "unpack",
]
