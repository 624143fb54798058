"""Encoding of a context: standardised numbers, and labels one-hot."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .columns import Values
from .rows import Rows


@dataclass(frozen=True)
class ContextColumn:
    """Column of a context.

    Arguments:
        name: the name in the table.
        labels: the labels; None for numbers.
        mean, std: moments of numbers over the training rows.
    """

    name: str
    labels: tuple[Any, ...] | None
    mean: float
    std: float

    @property
    def size(self) -> int:
        """The number of encoded columns."""
        return 1 if self.labels is None else len(self.labels)


def fitted_context(rows: Rows) -> tuple[ContextColumn, ...]:
    """Fit the columns of a context, or raise if one of numbers is constant."""
    found = []
    for i, (name, labels) in enumerate(zip(rows.names, rows.labels, strict=True)):
        values = rows.values[:, i]
        mean, std = float(values.mean()), float(values.std())
        if labels is None and std <= 8 * np.finfo(np.float64).eps * np.abs(values).max():
            raise ArgumentError(
                f"Expected context columns that vary; {name!r} is {mean:g} in every row. Drop it."
            )
        found.append(ContextColumn(name, labels, mean, std))
    return tuple(found)


def encoded_context(columns: tuple[ContextColumn, ...], values: Values) -> Values:
    """Return the encoded context, shape ``(n, C)``."""
    parts = []
    for i, column in enumerate(columns):
        x = values[:, i]
        if column.labels is None:
            parts.append((x[:, None] - column.mean) / column.std)
        else:
            parts.append((x[:, None] == np.arange(column.size)).astype(np.float64))
    return np.concatenate(parts, axis=1)
