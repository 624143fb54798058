"""Solvers of ``x + g(x) = y``: strategies to go from one iterate to the next."""

from .anderson import Anderson
from .base import Point, Problem, Solver, Stateless, Step
from .fixed_point import FixedPoint
from .newton import Newton
from .preconditioner import AffinePreconditioner

__all__ = [
    "AffinePreconditioner",
    "Anderson",
    "FixedPoint",
    "Newton",
    "Point",
    "Problem",
    "Solver",
    "Stateless",
    "Step",
]
