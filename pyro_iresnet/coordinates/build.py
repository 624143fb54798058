"""The coordinates of a block, from its strategies."""

from ..errors import check_instance
from .base import Composed, Coordinates
from .chart import Chart
from .metric import Metric


def coordinates(
    metric: Metric, chart: Chart | None, event_shape: tuple[int, ...]
) -> Coordinates | None:
    """The chart, and the metric in what it gives; None where both leave everything as it is.

    Arguments:
        metric: a :class:`Metric`.
        chart: a :class:`Chart`, or None for none.
        event_shape: of what they act on.

    Raises:
        ArgumentTypeError: one of another type.
    """
    linear = check_instance(metric, Metric, "metric", "Diagonal()").build(event_shape)
    if chart is None:
        return linear
    nonlinear = check_instance(chart, Chart, "chart", "Asinh()").build(event_shape)
    return nonlinear if linear is None else Composed(nonlinear, linear)
