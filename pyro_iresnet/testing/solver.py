"""Check of a solver."""

from torch import Tensor

from ..contractions import Contraction
from ..inverse import solve
from ..solvers import Solver
from .promises import check_batch, require


def check_solver(solver: Solver, contraction: Contraction, x: Tensor) -> None:
    """Check that a solver finds ``x`` again, and that its certified error bound holds.

    Arguments:
        solver: the solver to check.
        contraction: a contraction of vectors or images, without context.
        x: shape ``(n, *event)``.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, Newton, testing
        >>> x = torch.randn(50, 3, dtype=torch.float64)
        >>> testing.check_solver(Newton(), DenseContraction(3).double(), x)
    """
    check_batch(contraction, x)
    y = (x + contraction(x)).detach()
    solution = solve(contraction, y, solver)
    stats = solution.stats
    error = (solution.value - x).flatten(1).norm(dim=1)
    # Rounding moves y as much as a residual, so the exact solution for y moves by as much again.
    require(
        bool((error <= 2 * stats.error_bound).all()),
        f"an error of {float(error.max()):.1e} exceeds its certified bound",
    )
    require(
        bool((stats.error_bound <= stats.tolerance).all()),
        f"an error bound of {float(stats.error_bound.max()):.1e} exceeds the tolerance",
    )
