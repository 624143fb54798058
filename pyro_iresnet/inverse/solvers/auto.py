"""The default choice of a solver."""

from ...errors import check_positive_int
from .anderson import Anderson
from .base import Solver


def auto_solver(event_size: int | None = None) -> Solver:
    """The default solver for events of a given size: ``Anderson()`` for every size.

    Measured by ``benchmarks/inverse.py`` in 2 and 64 dimensions: with large batches it is the
    fastest at every size. ``Newton()`` is as fast for a handful of samples, and takes the fewest
    steps where a block is close to Lipschitz 1.

    Arguments:
        event_size: the number of coordinates of one event, or None where it may vary.

    Raises:
        ArgumentError, ArgumentTypeError: not an integer of at least 1.

    Example:
        >>> auto_solver(64).history
        5
    """
    if event_size is not None:
        check_positive_int(event_size, "event_size")
    return Anderson()
