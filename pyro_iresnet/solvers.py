"""Solvers of ``x + g(x) = y``, the function that runs them, and the outcome of a solve."""

from .inverse import (
    AffinePreconditioner,
    Anderson,
    FixedPoint,
    Newton,
    Point,
    Problem,
    Solver,
    Stateless,
    Step,
    solve,
)
from .solution import Result, Solution, Stats

__all__ = [
    "AffinePreconditioner",
    "Anderson",
    "FixedPoint",
    "Newton",
    "Point",
    "Problem",
    "Result",
    "Solution",
    "Solver",
    "Stateless",
    "Stats",
    "Step",
    "solve",
]
