"""The inverse of ``y = x + g(x)``: solvers, the loop that runs them, gradients through it."""

from .implicit import implicit_inverse
from .in_coordinates import solve_in
from .solve import SolveKeywords, solve, solve_map
from .solvers import (
    AffinePreconditioner,
    Anderson,
    FixedPoint,
    Newton,
    Point,
    Problem,
    Solver,
    Stateless,
    Step,
)

__all__ = [
    "AffinePreconditioner",
    "Anderson",
    "FixedPoint",
    "Newton",
    "Point",
    "Problem",
    "SolveKeywords",
    "Solver",
    "Stateless",
    "Step",
    "implicit_inverse",
    "solve",
    "solve_in",
    "solve_map",
]
