"""Encoding of a table: columns of any kind on one side, standardised real numbers on the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.covariance import ShrunkCovariance
from sklearn.model_selection import GridSearchCV
from torch import Tensor

from ..errors import ArgumentError
from .cells import ORDERED
from .columns import Category, Column, Values

# The distance of the noise to the ends of the unit interval.
TINY = 2.0**-53
# Points of the unit interval.
INSIDE = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
# Weights of the identity in a covariance.
SHRINKAGES = (1e-8, 1e-6, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class FittedColumn:
    """Column with the numbers that the training rows give.

    Arguments:
        name: the name in the table.
        kind: the values that the column may hold.
        dtype: the dtype of the samples, a name of numpy or pandas.
        a, b: the origin and the unit, as :meth:`Column.origin` returns them.
        mean, std: moments behind the curve of the kind, over the training rows.
        levels: the categories of the samples, if ``dtype`` is one of categories.
    """

    name: str
    kind: Column
    dtype: str
    a: float
    b: float
    mean: float
    std: float
    levels: tuple[Any, ...] | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that the kind and the dtype hold."""
        least, most = self.kind.range()
        if self.kind.is_integer and self.labels is None:
            low, high = _range_of(self.dtype)
            return max(least, low), min(most, high)
        return least, most

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The labels of a :class:`Category`; None for numbers."""
        return self.kind.labels if isinstance(self.kind, Category) else None

    @classmethod
    def of(
        cls,
        name: str,
        kind: Column,
        dtype: str,
        values: Values,
        levels: tuple[Any, ...] | None = None,
    ) -> "FittedColumn":
        """Fit a column to the values of the training rows, which may all be equal."""
        if not kind.is_integer and not dtype.lower().startswith(("float", "double")):
            # Real numbers do not fit into a column of integers.
            dtype = "float64"
        a, b = kind.origin(values)
        # The moments of an integer are those of its interval, so a single value has a scale too.
        noise = INSIDE if kind.is_integer else torch.zeros(1, dtype=torch.float64)
        curve: Any = kind.curve()
        encoded = curve((torch.as_tensor(values - a)[:, None] + noise) / b)
        mean, std = float(encoded.mean()), float(encoded.std())
        if not (std > 0 and math.isfinite(std) and math.isfinite(mean)):
            raise ArgumentError(
                f"Expected numbers whose squares a double holds in the column {name!r}; got a "
                f"scale of {std:g}. Change the unit."
            )
        return cls(name, kind, dtype, a, b, mean, std, levels)


class TableEncoding:
    r"""Map between rows of numbers and rows of uncorrelated real numbers of mean 0 and scale 1.

    .. math:: z = W t, \quad t_i = \bigl(f_i((x_i - a_i + u_i) / b_i) - m_i\bigr) / s_i

    with f of the kind of column i, noise :math:`u_i` uniform in [0, 1) for integers and 0 for
    others, and :math:`W = C^{-1/2}` of the covariance C of t. A flow that starts at the identity so
    starts at the best normal distribution of t.

    Arguments:
        columns: the fitted columns, in the order of the table.
        covariance: the covariance of t, shape ``(D, D)``; None for the identity.
    """

    def __init__(self, columns: Sequence[FittedColumn], covariance: Tensor | None = None) -> None:
        self.columns = tuple(columns)
        made = lambda name: torch.tensor(  # noqa: E731
            [getattr(c, name) for c in columns], dtype=torch.float64
        )
        self._a, self._b, self._mean, self._std = map(made, ("a", "b", "mean", "std"))
        ends = torch.tensor([c.range for c in columns], dtype=torch.float64)
        self._least, self._most = ends.T
        self._is_integer = torch.tensor([c.kind.is_integer for c in columns])
        curves = [c.kind.curve() for c in columns]
        # Columns of one curve are encoded together.
        self._groups: list[tuple[Any, Tensor]] = []
        for curve in {id(curve): curve for curve in curves}.values():
            alike = [i for i, other in enumerate(curves) if other is curve]
            self._groups.append((curve, torch.tensor(alike)))

        if covariance is None:
            covariance = torch.eye(len(columns), dtype=torch.float64)
        self.covariance = covariance
        sizes, directions = torch.linalg.eigh(covariance)
        self._whiten = directions / sizes.sqrt() @ directions.mT
        self._colour = directions * sizes.sqrt() @ directions.mT
        self._log_det = -0.5 * sizes.log().sum()

    @classmethod
    def of(cls, columns: Sequence[FittedColumn], rows: Values) -> "TableEncoding":
        """Fit the covariance to rows, shrunk towards the identity as cross-validation has it."""
        t, _ = cls(columns).encode(torch.from_numpy(rows))
        search = GridSearchCV(ShrunkCovariance(), {"shrinkage": SHRINKAGES}).fit(t.numpy())
        return cls(columns, torch.from_numpy(search.best_estimator_.covariance_))

    @property
    def has_integers(self) -> bool:
        """True if a column is one of integers or labels."""
        return bool(self._is_integer.any())

    def points(self, count: int) -> Tensor:
        """Return points of the unit cube for the noise, shape ``(count, D)``; one without integers.

        The points are those of a scrambled Sobol sequence, the same in every call.
        """
        if not self.has_integers:
            return torch.full((1, len(self.columns)), 0.5, dtype=torch.float64)
        sobol = torch.quasirandom.SobolEngine(len(self.columns), scramble=True, seed=0)
        return sobol.draw(count, dtype=torch.float64).clamp(TINY, 1 - TINY)

    def allowed(self, rows: Values) -> NDArray[np.bool_]:
        """Return True for each row whose values the columns may hold."""
        inside = [c.kind.allowed(rows[:, i]) for i, c in enumerate(self.columns)]
        return np.logical_and.reduce(inside)

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and the sum of log |dz/dx| of each row, in double precision.

        Arguments:
            rows: shape ``(n, D)``, labels as their numbers.
            noise: the position of an integer in its interval; None for a uniform draw.
        """
        if noise is None:
            noise = torch.rand_like(rows, dtype=torch.float64).clamp_(min=TINY)
        # Large integers would round the noise away.
        t = (rows - self._a + noise * self._is_integer) / self._b
        z, slope = torch.empty_like(t), torch.empty_like(t)
        for curve, at in self._groups:
            z[:, at] = curve(t[:, at])
            slope[:, at] = curve.log_abs_det_jacobian(t[:, at], z[:, at])
        scales = self._b.abs().log() + self._std.log()
        whitened = (z - self._mean) / self._std @ self._whiten
        return whitened, (slope - scales).sum(-1) + self._log_det

    def frame(self, rows: Tensor) -> pd.DataFrame:
        """Return rows of numbers as a table, with the labels and the dtypes of the columns."""
        found = {
            column.name: _series(column, values)
            for column, values in zip(self.columns, rows.numpy().T, strict=True)
        }
        return pd.DataFrame(found)

    def decode(self, z: Tensor) -> Tensor:
        """Return rows of numbers that the columns may hold, integers by the floor."""
        z = z.double() @ self._colour * self._std + self._mean
        t = torch.empty_like(z)
        for curve, at in self._groups:
            t[:, at] = curve.inv(z[:, at])
        rows = t * self._b
        rows = torch.where(self._is_integer, rows.floor(), rows) + self._a
        return rows.clamp(self._least, self._most)


def _series(column: FittedColumn, values: Values) -> pd.Series:
    """Return numbers as a column of the table."""
    if column.labels is not None:
        at = values.astype(int)
        if column.levels is not None:
            # Declared labels may go beyond the categories.
            levels = [*column.levels, *(v for v in column.labels if v not in column.levels)]
            codes = np.array([levels.index(label) for label in column.labels])[at]
            ordered = column.dtype == ORDERED
            return pd.Series(pd.Categorical.from_codes(codes, levels, ordered=ordered))
        return pd.Series(column.labels, dtype=column.dtype).iloc[at].reset_index(drop=True)
    if column.kind.is_integer:
        if column.dtype.lower().startswith("float"):
            return pd.Series(values).astype(column.dtype)
        return pd.Series(values.astype(np.int64)).astype(column.dtype)
    dtype: Any = pd.api.types.pandas_dtype(column.dtype)
    narrow: Any = np.dtype(getattr(dtype, "numpy_dtype", dtype)).type
    cast = pd.Series(values).astype(dtype)
    if narrow is np.float64:
        return cast
    # A narrow dtype may round a sample to a limit, or beyond.
    least, most = column.range
    info = np.finfo(narrow)
    with np.errstate(over="ignore"):
        low, high = max(narrow(least), info.min), min(narrow(most), info.max)
    low = np.nextafter(low, narrow(np.inf)) if float(low) < least else low
    high = np.nextafter(high, narrow(-np.inf)) if float(high) > most else high
    return cast.clip(low, high).astype(column.dtype)


def _range_of(dtype: str) -> tuple[float, float]:
    """Return the smallest and the largest integer of a dtype that a double tells apart."""
    try:
        info = np.iinfo(dtype.lower().removesuffix("[pyarrow]"))
    except (TypeError, ValueError):
        return -(2.0**53), 2.0**53
    return max(float(info.min), -(2.0**53)), min(float(info.max), 2.0**53)
