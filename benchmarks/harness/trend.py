"""Slope of a series of readings, with an interval for readings that resemble their neighbours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# The share of intervals that are to hold the slope.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trend:
    """Slope of readings over a place, by least squares.

    Arguments:
        slope: the change of a reading per unit of the place.
        margin: half the width of the interval of ``CONFIDENCE``; infinite if the readings tell
            none.
        readings: the number of readings.
    """

    slope: float
    margin: float
    readings: int

    def __str__(self) -> str:
        return f"{self.slope:.3g} ± {self.margin:.2g}"


def trend(series: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Trend:
    """Fit one slope to several series, each with a level of its own.

    The interval is Student's. Readings of memory go in steps, so the residuals of neighbours
    resemble each other. With the correlation ``r`` of neighbours, if positive, ``n`` readings count
    as ``n (1 - r) / (1 + r)``.

    Arguments:
        series: places and readings of each series, such as those of one process.
    """
    levels = [(np.asarray(x, float), np.asarray(y, float)) for x, y in series if len(x)]
    count = sum(len(x) for x, _ in levels)
    if count == 0:
        return Trend(math.nan, math.inf, 0)
    x = np.concatenate([x - x.mean() for x, _ in levels])
    y = np.concatenate([y - y.mean() for _, y in levels])
    spread = float(x @ x)
    if spread == 0:
        return Trend(math.nan, math.inf, count)
    slope = float(x @ y) / spread
    rest = y - slope * x
    squares = float(rest @ rest)
    alike = max(float(rest[1:] @ rest[:-1]) / squares, 0.0) if squares > 0 else 0.0
    share = (1 - alike) / (1 + alike)
    freedom = count * share - len(levels) - 1
    if freedom < 1:
        return Trend(slope, math.inf, count)
    error = math.sqrt(squares / freedom / spread)
    width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
    return Trend(slope, width * error, count)
