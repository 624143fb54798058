"""The default choice of a solver."""

from ...errors import check_positive_int
from .anderson import Anderson
from .base import Solver


def auto_solver(event_size: int | None = None) -> Solver:
    """Return the default solver for events of a given size: ``Anderson()`` for every size.

    Anderson acceleration is the fastest solver for large batches, in 2 and in 64 dimensions
    (``benchmarks/run/inverse.py``). ``Newton()`` is as fast for a handful of samples, and takes the
    fewest steps if a block is close to Lipschitz 1.

    Arguments:
        event_size: the number of coordinates of one event, at least 1 (else :class:`ArgumentError`
            or :class:`ArgumentTypeError`); None if the number may vary.

    Raises:
        ArgumentError, ArgumentTypeError: not an integer of at least 1.

    Example:
        >>> auto_solver(64).history
        5
    """
    if event_size is not None:
        check_positive_int(event_size, "event_size")
    return Anderson()
