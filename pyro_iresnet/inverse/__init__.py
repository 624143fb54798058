"""The inverse of ``y = x + g(x)``: solvers, the loop that runs them, gradients through it."""

from .anderson import Anderson
from .auto import auto_solver
from .base import Point, Problem, Solver, Stateless, Step
from .carried import solve_in
from .fixed_point import FixedPoint
from .implicit import implicit_inverse
from .newton import Newton
from .preconditioner import Affine, AffineFit, NoFit, Preconditioner
from .solve import solve

__all__ = [
    "Affine",
    "AffineFit",
    "Anderson",
    "FixedPoint",
    "Newton",
    "NoFit",
    "Point",
    "Preconditioner",
    "Problem",
    "Solver",
    "Stateless",
    "Step",
    "auto_solver",
    "implicit_inverse",
    "solve",
    "solve_in",
]
