"""The default choice of a linear solve."""

from ..errors import check_positive_int
from .krylov import KrylovSolve
from .solve import DENSE, DenseSolve, LinearSolve


def auto_linear_solve(event_size: int) -> LinearSolve:
    """Return ``DenseSolve()`` up to 16 coordinates (faster for a batch), else ``KrylovSolve()``."""
    event_size = check_positive_int(event_size, "event_size")
    return DenseSolve() if event_size <= DENSE else KrylovSolve()
