"""The inverse of ``y = x + g(x)``: solvers, the loop that runs them, gradients through it."""

from .anderson import Anderson
from .auto import auto_solver
from .base import Problem, Solver
from .fixed_point import FixedPoint
from .implicit import implicit_inverse
from .newton import Newton
from .preconditioner import AffineFit, NoFit, Preconditioner
from .solve import solve

__all__ = [
    "AffineFit",
    "Anderson",
    "FixedPoint",
    "Newton",
    "NoFit",
    "Preconditioner",
    "Problem",
    "Solver",
    "auto_solver",
    "implicit_inverse",
    "solve",
]
