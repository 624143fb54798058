"""Kinds of the columns of a table: declared, or recognised from the values."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch

from ..errors import ArgumentError
from .cells import EXACT, some
from .columns import Category, Column, HeavyTailed, Integer, Real, Values
from .encoding import FittedColumn, TableEncoding
from .rows import Rows

# Rows by which kinds are recognised and moments are taken.
SAMPLE = 200_000
# A covariance of standardised columns below this share of the largest is rounding.
RANK = 1e-10

# Integers heap at an end: the least rows, their least share, and the least over the next value.
ROWS, HEAP, EDGE = 10, 0.05, 0.5
# The distance to each end of the unit interval that shares come within.
MARGIN = 0.05
# The share of rows of one real number above which a warning comes: of any, and of a number that
# comes so many times as often as the next.
POINT, ODD_POINT, ODD = 0.3, 0.05, 5
# The share of such a number that is the smallest or the largest.
END_POINT = 0.01
# The most values of a column that holds few, and its least rows, in all and for each value. In 1500
# steps the score of 1000 rows gains 0.8 nats with 10 values, and 0.2 with 40; iris has 22 or more.
FEW, FEW_ROWS, REPEATS = 20, 50, 5
# The values of the longest scale of which several columns may be items.
SCALE = 12
# Nats a row by which a normal fits better behind asinh than without, or without a logarithm.
GAIN = 0.1
# A number is near 0 below this share of the median; the share of such rows that tells of a limit.
NEAR, CROWD = 0.1, 0.01


def fitted_columns(rows: Rows, declared: Mapping[str, Column]) -> list[FittedColumn]:
    """Recognise the kinds of the columns that are not declared, and fit all, or raise."""
    unknown = [name for name in declared if name not in rows.names]
    if unknown:
        raise ArgumentError(
            f"Expected columns to name columns of the table, {some(map(repr, rows.names))}; got "
            f"{some(map(repr, unknown))}."
        )
    sample = sample_of(rows.values)
    least, most, integer = _ends(rows.values)
    kinds: list[Column] = []
    scales: dict[tuple[float, float], list[int]] = {}
    for i, (name, labels) in enumerate(zip(rows.names, rows.labels, strict=True)):
        values = sample[:, i]
        # The ends are those of all rows, beside the sample.
        seen = np.append(values, [least[i], most[i]]) if len(sample) < len(rows.values) else values
        if labels is not None:
            kinds.append(Category(labels))
        elif name in declared:
            kinds.append(declared[name])
            _check_declared(kinds[i], rows.values[:, i], name)
            _check_varies(least[i], most[i], name, is_integer=kinds[i].is_integer)
        else:
            _check_varies(least[i], most[i], name, is_integer=bool(integer[i]))
            kinds.append(recognised(seen, is_integer=bool(integer[i])))
            if kinds[i].is_integer and most[i] - least[i] < SCALE:
                scales.setdefault((least[i], most[i]), []).append(i)
        if not kinds[i].is_integer:
            _warn_of_point_mass(values, name)
    for items in scales.values():
        shared = _of_one_scale([cast(Integer, kinds[i]) for i in items])
        for i in items:
            kinds[i] = shared
    found = [
        FittedColumn.of(name, kind, dtype, values, levels)
        for name, kind, dtype, values, levels in zip(
            rows.names, kinds, rows.dtypes, sample.T, rows.levels, strict=True
        )
    ]
    _check_independent(found, sample)
    return found


def _of_one_scale(kinds: Sequence[Integer]) -> Integer:
    """Return the narrowest limits among columns of integers with the same ends."""
    lows = [kind.low for kind in kinds if kind.low is not None]
    highs = [kind.high for kind in kinds if kind.high is not None]
    return Integer(max(lows, default=None), min(highs, default=None))


def sample_of(values: Values) -> Values:
    """Return evenly spaced rows, at most ``SAMPLE`` or so."""
    return np.array(values[:: max(1, len(values) // SAMPLE)])


def recognised(values: Values, *, is_integer: bool) -> Column:
    """Choose the kind of a column of numbers.

    Integers have a limit at an end where they heap, as ratings do, and the limit 0 if none is
    negative. Other numbers lie between 0 and 1 if all do and some lie near each end, else above 0
    if all do, unless few are near 0 and a normal fits better without the logarithm: the next row
    may then be negative. The rest is heavy-tailed if a normal fits better behind asinh.
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
    if 0 < low < MARGIN and 1 - MARGIN < high < 1:
        return Real(0.0, 1.0)
    # Log-likelihoods a row under the best normal, up to a constant, with the slope of a curve.
    if low > 0:
        logs = np.log(values)
        logged = -math.log(logs.std()) - float(logs.mean())
        crowd = float(np.mean(values < NEAR * np.median(values)))
        if crowd >= CROWD or -math.log(values.std()) - logged <= GAIN:
            return Real(low=0.0)
    tailed = HeavyTailed()
    median, spread = tailed.origin(values)
    t = (values - median) / spread
    plain = -math.log(t.std())
    bent = -math.log(np.arcsinh(t).std()) - float(np.log(np.hypot(1.0, t)).mean())
    return tailed if bent - plain > GAIN else Real()


def _heaps(values: Values, end: float, inside: float) -> bool:
    at_end, beside = int(np.sum(values == end)), int(np.sum(values == inside))
    return at_end >= max(ROWS, HEAP * len(values), EDGE * beside)


def _ends(values: Values) -> tuple[Values, Values, np.ndarray]:
    """Return the smallest and the largest value of each column, and True for integers."""
    least, most, integer = [], [], []
    for start in range(0, len(values), SAMPLE):
        part = values[start : start + SAMPLE]
        least.append(part.min(0))
        most.append(part.max(0))
        # Doubles beyond 2^53 are all integers.
        integer.append(((part == np.floor(part)) & (np.abs(part) <= EXACT)).all(0))
    return np.min(least, 0), np.max(most, 0), np.all(integer, 0)


def _check_declared(kind: Column, values: Values, name: str) -> None:
    outside = np.flatnonzero(~kind.allowed(values))
    if len(outside):
        raise ArgumentError(
            f"Expected values of the column {name!r} that {kind} holds; got "
            f"{values[outside[0]]:g} in the row {outside[0] + 1}, counted from 1, and "
            f"{len(outside)} such rows in all. Declare other limits, or drop the rows."
        )


def _check_varies(least: float, most: float, name: str, *, is_integer: bool) -> None:
    resolution = 8 * np.finfo(np.float64).eps * max(abs(least), abs(most))
    if not is_integer and most - least <= resolution:
        raise ArgumentError(
            f"Expected columns that vary; {name!r} is {least:g} in every row. Drop it."
        )


def _warn_of_point_mass(values: Values, name: str) -> None:
    points, counts = np.unique(values, return_counts=True)
    if len(points) <= FEW and len(values) >= max(FEW_ROWS, REPEATS * len(points)):
        warnings.warn(
            f"The column {name!r} holds {len(points)} numbers alone in {len(values)} rows, where a "
            "density of real numbers grows without limit. Multiply the column to integers, such as "
            "halves by 2, and declare Integer(); or declare Category().",
            stacklevel=2,
        )
        return
    most = int(counts.argmax())
    is_odd = counts[most] > ODD * np.delete(counts, most).max(initial=0)
    at_end = most in (0, len(points) - 1) and counts[most] >= ROWS
    share = POINT if not is_odd else END_POINT if at_end else ODD_POINT
    if counts[most] > share * len(values):
        warnings.warn(
            f"{counts[most] / len(values):.0%} of the rows of the column {name!r} are "
            f"{points[most]:g}, where a density of real numbers grows without limit. Make a label "
            "of the column (is it this number?), and fit the other rows by themselves; or declare "
            f"limits beyond {points[most]:g}, and clip the samples.",
            stacklevel=2,
        )


def _check_independent(columns: list[FittedColumn], values: Values) -> None:
    """Raise if a column of real numbers is a linear function of others, as it is or encoded."""
    real = [i for i, c in enumerate(columns) if not c.kind.is_integer]
    if len(real) < 2 or len(values) <= len(real):
        return
    found = [columns[i] for i in real]
    x = torch.from_numpy(values[:, real])
    for t in (x, TableEncoding(found).encode(x, torch.zeros(1))[0]):
        t = (t - t.mean(0)) / t.std(0)
        sizes, directions = torch.linalg.eigh(t.T @ t / len(t))
        if sizes[0] > RANK * sizes[-1]:
            continue
        names = [c.name for c, w in zip(found, directions[:, 0], strict=True) if abs(w) > 1e-3]
        raise ArgumentError(
            f"Expected columns without a linear relation, as they are or encoded; {some(names)} "
            "have one, as copies, sums, products and shares do, and the density is infinite. Drop "
            "one of them."
        )
