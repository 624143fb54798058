"""Recognition of the kind of a column from its values."""

import math

import numpy as np

from .columns import Column, HeavyTailed, Integer, Real, Values

# Integers heap at an end: the least rows, their least share, and the least over the next value.
ROWS, HEAP, EDGE = 10, 0.05, 0.5
# Nats a row by which a normal fits better behind asinh than without.
GAIN = 0.1


def recognised(values: Values, *, is_integer: bool) -> Column:
    """Choose the kind of a column of numbers.

    Integers have a limit at an end where they heap, as ratings do, and the limit 0 if none is
    negative. Other numbers lie between 0 and 1 if all do and cover half of the interval, else above
    0 if all do. The rest is heavy-tailed if a normal fits better behind asinh.
    """
    low, high = float(values.min()), float(values.max())
    if is_integer:
        # Two neighbours are a yes and a no; a single value says nothing of limits.
        binary, single = high - low == 1, high == low
        upper = int(high) if binary or (not single and _heaps(values, high, high - 1)) else None
        lower = int(low) if binary or (not single and _heaps(values, low, low + 1)) else None
        if lower is None and low >= 0:
            lower = 0
        return Integer(lower, upper)
    if low > 0 and high < 1 and high - low > 0.5:
        return Real(0.0, 1.0)
    if low > 0:
        return Real(low=0.0)
    tailed = HeavyTailed()
    median, spread = tailed.origin(values)
    t = (values - median) / spread
    # Log-likelihoods a row under the best normal, up to a constant; behind asinh with its slope.
    plain = -math.log(t.std())
    bent = -math.log(np.arcsinh(t).std()) - float(np.log(np.hypot(1.0, t)).mean())
    return tailed if bent - plain > GAIN else Real()


def _heaps(values: Values, end: float, inside: float) -> bool:
    at_end, beside = int(np.sum(values == end)), int(np.sum(values == inside))
    return at_end >= max(ROWS, HEAP * len(values), EDGE * beside)
