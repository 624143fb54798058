"""The default choice of a solver."""

from .base import Solver
from .fixed_point import FixedPoint


def auto_solver(event_size: int | None = None) -> Solver:
    """The default solver for events of a given size: ``FixedPoint()`` for every size.

    Arguments:
        event_size: the number of coordinates of one event, or None where it may vary.

    Example:
        >>> auto_solver(2)
        FixedPoint(rtol=None, atol=0.0, max_steps=None)
    """
    return FixedPoint()
