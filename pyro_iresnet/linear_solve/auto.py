"""The default choice of a linear solve."""

from .base import DENSE, DenseSolve, LinearSolve
from .iterative import KrylovSolve


def auto_linear_solve(event_size: int) -> LinearSolve:
    """``DenseSolve()`` up to 16 coordinates, where it is the faster of the two for a batch, and
    ``KrylovSolve()`` above."""
    return DenseSolve() if event_size <= DENSE else KrylovSolve()
