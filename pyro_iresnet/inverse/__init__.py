"""The inverse of ``y = x + g(x)``: solvers, the loop that runs them, gradients through it."""

from .auto import auto_solver
from .base import Problem, Solver
from .fixed_point import FixedPoint
from .implicit import implicit_inverse
from .solve import solve

__all__ = [
    "FixedPoint",
    "Problem",
    "Solver",
    "auto_solver",
    "implicit_inverse",
    "solve",
]
