"""The default choice of an estimator."""

from ..errors import check_positive_int
from .base import ByMode
from .exact import Exact
from .roulette import Roulette
from .truncated import ConvergedSeries
from .truncation import Subsample

# Up to this size the dense Jacobian costs 1.3 times a stochastic series or less, without variance.
EXACT_IN_TRAINING = 8
# The cheapest estimator whose noise stays small beside that of drawing a batch.
IN_TRAINING = Roulette(Subsample(), control_variate=None)
# Up to this size an exact evaluation is affordable.
EXACT_IN_EVALUATION = 1024


def auto_logdet(event_size: int) -> ByMode:
    """Return the default estimator for events of a given size, as a :class:`ByMode`.

    In train mode ``Exact()`` up to 8 coordinates, where ``Exact()`` costs about as much as a draw
    (measured by ``benchmarks/run/crossover.py``), and ``Roulette(Subsample(),
    control_variate=None)`` above; in eval mode ``Exact()`` up to 1024 coordinates, and a
    deterministic ``ConvergedSeries()`` above.

    Arguments:
        event_size: the number of coordinates of one event, an integer of at least 1; else
            :class:`ArgumentError` or :class:`ArgumentTypeError`.

    Raises:
        ArgumentError, ArgumentTypeError: not an integer of at least 1.

    Example:
        >>> auto_logdet(64).evaluate
        Exact()
    """
    event_size = check_positive_int(event_size, "event_size")
    return ByMode(
        train=Exact() if event_size <= EXACT_IN_TRAINING else IN_TRAINING,
        evaluate=Exact() if event_size <= EXACT_IN_EVALUATION else ConvergedSeries(),
    )
