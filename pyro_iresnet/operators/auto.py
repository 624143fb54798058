"""The default choice of a linear solve."""

from .krylov import KrylovSolve
from .solve import DENSE, DenseSolve, LinearSolve


def auto_linear_solve(event_size: int) -> LinearSolve:
    """The default linear solve: ``DenseSolve()`` up to 16 coordinates, else ``KrylovSolve()``.

    Up to 16 coordinates the dense solve is the faster one for a batch.
    """
    return DenseSolve() if event_size <= DENSE else KrylovSolve()
