r"""``(I + J) w = v`` and its transpose: in Newton's method, and in the gradient of the inverse."""

from .auto import auto_linear_solve
from .base import DENSE, DenseSolve, LinearSolve, Solved, default_rtol, floor
from .iterative import IterativeSolve, KrylovSolve, NeumannSolve

__all__ = [
    "DENSE",
    "DenseSolve",
    "IterativeSolve",
    "KrylovSolve",
    "LinearSolve",
    "NeumannSolve",
    "Solved",
    "auto_linear_solve",
    "default_rtol",
    "floor",
]
